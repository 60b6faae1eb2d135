//! What comes before what: dependencies, priorities, and unique keys.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pensum_core::{State, TaskId, Time};

use super::turns::Turns;
use super::{Book, Books};
use crate::history::{Entry, Executor, What};
use crate::scenario::{Act, OnFailure, TaskPlan};

pub(super) struct Order {
    dependencies: BTreeMap<TaskId, Vec<TaskId>>,
    expiries: BTreeMap<TaskId, Time>,
    /// Put back by someone at some time: whoever waited for the first end did so rightly.
    revived: BTreeSet<TaskId>,
    last_claim: Option<u64>,
    turns: Turns,
}

impl Order {
    pub(super) fn new(
        dependencies: BTreeMap<TaskId, Vec<TaskId>>,
        expiries: BTreeMap<TaskId, Time>,
        revived: BTreeSet<TaskId>,
    ) -> Order {
        Order {
            dependencies,
            expiries,
            revived,
            last_claim: None,
            turns: Turns::default(),
        }
    }

    pub(super) fn read(&mut self, books: &mut Books<'_>, at: usize, entry: &Entry, all: &[Entry]) {
        self.turns.note(books, at, entry);
        let What::Granted { task, claim, now, .. } = entry.what else {
            return;
        };
        let is_first = books.tasks.get(&task).is_some_and(|book| book.holds.len() == 1);
        if is_first && self.expiries.get(&task).is_some_and(|expires_at| *expires_at <= now) {
            let label = books.label(task);
            books.broken(
                "what has expired does not start",
                Some(at),
                format!("{label} is given out for the first time, and has expired by then"),
            );
        }
        self.dependencies(books, at, task);
        if self.last_claim != Some(claim) && !books.outside {
            self.last_claim = Some(claim);
            if let Some(claim) = Claim::of(books, at, claim, all) {
                priorities(books, at, &claim, all);
                self.turns.judge(books, at, &claim, all);
            }
        }
    }

    fn dependencies(&self, books: &mut Books<'_>, at: usize, task: TaskId) {
        let policy = books.plan(task).map_or(OnFailure::Cancel, |plan| plan.on_failure);
        for on in self.dependencies.get(&task).into_iter().flatten() {
            if self.revived.contains(on) || self.revived.contains(&task) {
                continue;
            }
            let Some(book) = books.tasks.get(on) else { continue };
            // One that was cancelled as it was submitted, for what it depended on itself, has no end of its own in the
            // history; and of one that was deleted, or whose own dependency was, only the plan knows what it depended on.
            let end = book.ends.last().map(|(_, state)| *state);
            let (label, other) = (books.label(task), books.label(*on));
            match end {
                Some(State::Completed) => {}
                Some(_) if policy != OnFailure::Cancel => {}
                Some(state) => books.broken(
                    "dependencies come first",
                    Some(at),
                    format!("{label} starts although {other}, which it depends on, is {state}"),
                ),
                None if book.holds.is_empty() && self.may_have_depended(books, *on) => {}
                None => books.broken(
                    "dependencies come first",
                    Some(at),
                    format!("{label} starts before {other}, which it depends on, has ended"),
                ),
            }
        }
    }

    fn may_have_depended(&self, books: &Books<'_>, task: TaskId) -> bool {
        self.dependencies.get(&task).is_none_or(|own| !own.is_empty())
            || books.plan(task).is_some_and(|plan| !plan.depends_on.is_empty())
    }

    /// Of one unique key no two tasks are unfinished at the same time.
    pub(super) fn unique_keys(&self, books: &mut Books<'_>) {
        // From where to where in the history each task had its key.
        type Spans = Vec<(usize, usize, TaskId)>;
        let mut by_key: BTreeMap<(u8, (bool, bool)), Spans> = BTreeMap::new();
        for (task, book) in &books.tasks {
            let (Some(kept_at), Some(plan)) = (book.kept_at, books.plan(*task)) else {
                continue;
            };
            let (Some(key), false) = (plan.unique, self.revived.contains(task)) else {
                continue;
            };
            let Some((ended_at, _)) = book.ends.first() else {
                continue;
            };
            // Seen from outside, a task may have ended before anybody heard that it is kept.
            if *ended_at < kept_at {
                continue;
            }
            // The key is that of the handler, too.
            let handler = (matches!(plan.act, Act::Pausable { .. }), plan.demand.is_some());
            by_key
                .entry((key, handler))
                .or_default()
                .push((kept_at, *ended_at, *task));
        }
        for spans in by_key.values_mut() {
            spans.sort_unstable();
            for pair in spans.windows(2) {
                if pair[1].0 < pair[0].1 {
                    let (first, second) = (books.label(pair[0].2), books.label(pair[1].2));
                    books.broken(
                        "unique keys are unique",
                        Some(pair[1].0),
                        format!("{second} is kept while {first} has its unique key"),
                    );
                }
            }
        }
    }
}

/// What one claim of a node takes.
pub(super) struct Claim<'a> {
    pub(super) at: Duration,
    /// By the clock of the claimer.
    pub(super) now: Time,
    pub(super) taken: Vec<Taken<'a>>,
}

/// A task that is taken, as its claim saw it.
pub(super) struct Taken<'a> {
    pub(super) task: TaskId,
    pub(super) priority: u8,
    pub(super) queue: &'a str,
    pub(super) key: Option<&'a str>,
}

/// The level of a priority of a plan.
pub(super) fn level_of(priority: u8) -> i64 {
    match priority {
        0 => 1,
        1 => 2,
        2 => 3,
        _ => 5,
    }
}

impl<'a> Claim<'a> {
    /// The claim whose first task is given here; `None` for one that need not take what goes first.
    fn of(books: &Books<'_>, at: usize, claim: u64, all: &'a [Entry]) -> Option<Claim<'a>> {
        let What::Granted { now, executor, .. } = all[at].what else {
            return None;
        };
        // An agent may not be for what it leaves, and a breaker may hold that up.
        if matches!(executor, Executor::Agent { .. }) || !books.breakers.is_empty() {
            return None;
        }
        let taken = all[at..].iter().map_while(|entry| match &entry.what {
            What::Granted {
                claim: of,
                task,
                priority,
                queue,
                key,
                ..
            } if *of == claim => Some(Taken {
                task: *task,
                priority: *priority,
                queue,
                key: key.as_deref(),
            }),
            _ => None,
        });
        let taken: Vec<Taken<'_>> = taken.collect();
        // A suspect goes before others and alone.
        let is_suspect = |taken: &Taken<'_>| books.tasks.get(&taken.task).is_some_and(|book| book.holds.len() > 1);
        (!taken.iter().any(is_suspect)).then_some(Claim {
            at: all[at].at,
            now,
            taken,
        })
    }
}

/// A claim takes nothing while it leaves something more important that was surely ready.
fn priorities(books: &mut Books<'_>, at: usize, claim: &Claim<'_>, all: &[Entry]) {
    // What may have risen stands higher than it says.
    let plain = claim.taken.iter().filter(|taken| !books.ever_ages(taken.queue));
    let Some(lowest) = plain.min_by_key(|taken| taken.priority) else {
        return;
    };
    let left = books.left_behind(claim, all).find(|(_, _, plan)| {
        level_of(plan.priority) > i64::from(lowest.priority) && plan.key.is_none() && plan.queue.is_none()
    });
    if let Some((left, ..)) = left {
        let (left, taken) = (books.label(left), books.label(lowest.task));
        books.broken(
            "the more important goes first",
            Some(at),
            format!("{taken} is given out while {left}, which is more important, is ready"),
        );
    }
}

impl Book {
    /// Since when a task has waited that was surely ready all the time, but for its queue and its key, and still waits;
    /// nobody has asked anything of it by `now`.
    pub(super) fn surely_waits_since(&self, plan: &TaskPlan, now: Duration, all: &[Entry]) -> Option<Duration> {
        let is_touched = self.touched_at.is_some_and(|at| at <= now);
        let waits = !is_touched && !self.deleted && self.holds.is_empty() && self.ends.is_empty();
        let is_plain = plan.depends_on.is_empty()
            && plan.delay_ms == 0
            && plan.demand.is_none()
            && plan.expires_ms.is_none()
            && plan.queue_timeout_ms.is_none();
        let kept_at = self.kept_at.filter(|_| waits && is_plain)?;
        Some(all[kept_at].at)
    }
}
