//! The order within queues that have one of their own: keys that take turns, and what rises while it waits.

use std::time::Duration;

use pensum_core::{TaskId, Time};

use super::Books;
use super::order::{Claim, level_of};
use crate::history::{Entry, What};
use crate::scenario::TaskPlan;
use crate::world::queue_name;

/// The highest level.
const CRITICAL: i64 = 5;

/// What was noted of turns and of upkeep.
#[derive(Default)]
pub(super) struct Turns {
    /// When a run of a key ended last, and in which queue; where in the history.
    served: std::collections::BTreeMap<String, (usize, Duration, String)>,
    /// The latest time, by any clock, by which upkeep had moved what rises, and when it did.
    swept: Vec<(Duration, Time)>,
}

impl Turns {
    pub(super) fn note(&mut self, books: &Books<'_>, at: usize, entry: &Entry) {
        match &entry.what {
            What::Finished { task, .. } => {
                let Some(book) = books.tasks.get(task) else { return };
                if let Some(key) = &book.key {
                    self.served.insert(key.clone(), (at, entry.at, book.queue.clone()));
                }
            }
            What::Queued(crate::history::Queued::Swept { now }) => self.swept.push((entry.at, *now)),
            _ => {}
        }
    }

    /// A claim takes nothing while it leaves something that had its turn before, or has risen above it.
    pub(super) fn judge(&self, books: &mut Books<'_>, at: usize, claim: &Claim<'_>, all: &[Entry]) {
        let broken = self
            .out_of_turn(books, claim, all)
            .or_else(|| self.risen(books, claim, all));
        if let Some((promise, what)) = broken {
            books.broken(promise, Some(at), what);
        }
    }

    /// In a fair queue a key that was served goes behind whatever had been ready then.
    fn out_of_turn(&self, books: &Books<'_>, claim: &Claim<'_>, all: &[Entry]) -> Option<(&'static str, String)> {
        claim.taken.iter().find_map(|taken| {
            let key = taken.key?;
            let (served_at, served, queue) = self.served.get(key)?;
            if queue != taken.queue || *served >= claim.at {
                return None;
            }
            let mut settings = books.queues.get(queue)?.since(*served);
            if !settings.all(|change| change.settings.fair) || books.ever_ages(queue) {
                return None;
            }
            let had_its_turn = |book: &super::Book, plan: &TaskPlan| {
                let kept = book.kept_at?;
                let is_before = kept < *served_at && all[kept].at < *served;
                let of_queue = plan.queue.is_some_and(|number| *queue_name(number) == **queue);
                (is_before && of_queue && level_of(plan.priority) == i64::from(taken.priority)).then_some(())
            };
            let left = books.left_behind(claim, all).find(|(task, book, plan)| {
                had_its_turn(book, plan).is_some() && self.has_the_key(books, *task, plan, *served)
            })?;
            let (left, taken) = (books.label(left.0), books.label(taken.task));
            Some((
                "keys take turns",
                format!("{taken} is given out while {left}, whose turn it is before, is ready"),
            ))
        })
    }

    /// Whether a task has the turn of its key, which was not served since.
    fn has_the_key(&self, books: &Books<'_>, task: TaskId, plan: &TaskPlan, since: Duration) -> bool {
        let Some(key) = plan.key else { return true };
        let name = format!("key {key}");
        if self.served.get(&name).is_some_and(|(_, at, _)| *at >= since) {
            return false;
        }
        let others = books.tasks.iter().filter(|(other, book)| {
            let of_key = books.plans.get(&book.label).is_some_and(|plan| plan.key == Some(key));
            **other != task && of_key
        });
        others
            .into_iter()
            .all(|(_, book)| book.has_ended() && book.holds.iter().all(|hold| hold.closed))
    }

    /// What waits in a queue with ageing stands with the more important ones after a while.
    fn risen(&self, books: &Books<'_>, claim: &Claim<'_>, all: &[Entry]) -> Option<(&'static str, String)> {
        // Where it stands is known as far as upkeep had moved it, and the claimer's clock had come.
        let moved = self
            .swept
            .iter()
            .rev()
            .filter(|(at, _)| *at < claim.at)
            .map(|(_, now)| *now)
            .max()?;
        let moved = moved.min(claim.now);
        let plain = claim.taken.iter().filter(|taken| !books.ever_ages(taken.queue));
        let lowest = plain.min_by_key(|taken| taken.priority)?;
        let (left, ..) = books.left_behind(claim, all).find(|(_, book, plan)| {
            let risen = || {
                let kept = all[book.kept_at?].at;
                let changes = books.queues.get(&*queue_name(plan.queue?))?;
                let mut ageing = changes.since(kept).map(|change| {
                    let settings = change.settings;
                    let is_open = settings.max_concurrent.is_none() && settings.rate.is_none() && !change.paused;
                    settings.ageing.filter(|_| is_open)
                });
                let first = ageing.next()??;
                if plan.key.is_some() || ageing.any(|other| other != Some(first)) {
                    return None;
                }
                let rises = moved.since(books.dawn.plus(kept)).as_micros() / first.0.as_micros().max(1);
                Some(
                    level_of(plan.priority)
                        .saturating_add(i64::try_from(rises).ok()?)
                        .min(CRITICAL),
                )
            };
            risen().is_some_and(|level| level > i64::from(lowest.priority))
        })?;
        let (left, taken) = (books.label(left), books.label(lowest.task));
        Some((
            "what waits rises",
            format!("{taken} is given out while {left}, which has risen above it, is ready"),
        ))
    }
}

impl Books<'_> {
    /// Whether what waits in a queue may ever have risen.
    pub(super) fn ever_ages(&self, queue: &str) -> bool {
        let changes = self.queues.get(queue);
        changes.is_some_and(|changes| {
            changes
                .since(Duration::ZERO)
                .any(|change| change.settings.ageing.is_some())
        })
    }

    /// What a claim of a node leaves that was surely ready, but for its queue and its key.
    pub(super) fn left_behind<'b>(
        &'b self,
        claim: &'b Claim<'_>,
        all: &'b [Entry],
    ) -> impl Iterator<Item = (TaskId, &'b super::Book, &'b TaskPlan)> {
        // The clock of the claimer may be behind that of whoever made a task ready.
        let now = Duration::from_micros(claim.now.as_micros().saturating_sub(self.dawn.as_micros()).max(0) as u64);
        self.tasks.iter().filter_map(move |(task, book)| {
            let plan = *self.plans.get(&book.label)?;
            let since = book.surely_waits_since(plan, claim.at, all)?;
            let is_taken = claim.taken.iter().any(|taken| taken.task == *task);
            (since < now && !is_taken).then_some((*task, book, plan))
        })
    }
}
