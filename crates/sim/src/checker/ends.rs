//! What handlers did, and what became of each task: nothing acknowledged is lost, nothing ends that did not run, and each
//! ends as its plan lets it.

use std::collections::{BTreeMap, BTreeSet};

use pensum_core::capacity::DROPPED;
use pensum_core::transition::EventKind;
use pensum_core::{State, TaskId};

use super::{Book, Books, Hold};
use crate::handlers::Proof;
use crate::history::{Entry, Executor, PROCESS_ENDED, Returned, What};
use crate::scenario::Act;
use crate::world::{Final, Outcome, has_ended};

/// How many crashes of its node, while it ran alone, end a task.
const CRASHES_MAX: usize = 3;

/// What handlers did.
#[derive(Default)]
pub(super) struct Effects {
    done: BTreeSet<(TaskId, u64)>,
    /// Which lease of its task each run is of, counted from the first one.
    places: BTreeMap<u64, usize>,
    /// The first run that heard that a step is kept, behind the place of its lease.
    steps_kept: BTreeMap<(TaskId, u32), (usize, u64)>,
    labels: BTreeMap<String, TaskId>,
}

impl Books<'_> {
    /// Which of the task's leases a run is of that starts now. The answer to an agent's poll may come so late that somebody
    /// else has another one by then; a node looks before it starts.
    fn place(&self, task: TaskId, executor: Executor, attempt: u32) -> usize {
        let holds = self
            .tasks
            .get(&task)
            .map(|book| book.holds.as_slice())
            .unwrap_or_default();
        let is_its = |hold: &Hold| match executor {
            Executor::Node(_) => true,
            Executor::Agent { .. } => hold.executor == executor && hold.attempt == attempt,
        };
        holds.iter().rposition(is_its).unwrap_or_default()
    }
}

impl Effects {
    pub(super) fn read(&mut self, books: &mut Books<'_>, at: usize, entry: &Entry) {
        match &entry.what {
            What::Kept(tasks) => {
                for (task, label) in tasks {
                    if let Some(first) = self.labels.insert(label.clone(), *task) {
                        books.broken(
                            "what is asked for once is kept once",
                            Some(at),
                            format!("{label} is kept again; it was row {} already", first.row()),
                        );
                    }
                }
            }
            What::Runs {
                run,
                task,
                executor,
                attempt,
            } => {
                let label = books.label(*task);
                let now = entry.at;
                let is_shown_the_time = match executor {
                    Executor::Node(node) => {
                        let behind = books.scenario.nodes[node.node].behind_ms;
                        !books.outside && (books.scenario.shared_clock || behind == 0)
                    }
                    // Its answer may have taken its time.
                    Executor::Agent { .. } => false,
                };
                self.places.insert(*run, books.place(*task, *executor, *attempt));
                self.was_given(books, at, *task, *executor, *attempt);
                let holds = books.tasks.get(task).map_or(&[][..], |book| &book.holds);
                let dawn = books.dawn;
                // What ends with the process that accepted it is taken from whoever has it, who hears of that later; a lease
                // that was taken back for its time has run out by then.
                let is_own = |hold: &Hold| hold.executor == *executor && hold.attempt == *attempt;
                let is_taken = |hold: &Hold| hold.over && !hold.closed && hold.until > dawn.plus(now);
                let was_taken = holds.iter().any(|hold| is_own(hold) && is_taken(hold));
                let why = match holds.last() {
                    _ if was_taken => None,
                    None => Some("nobody was given a lease".to_owned()),
                    Some(hold) if hold.executor != *executor => Some(format!("{} has the lease", hold.executor)),
                    Some(hold) if hold.attempt != *attempt => {
                        Some(format!("the lease is for attempt {}, not {attempt}", hold.attempt))
                    }
                    Some(hold) if hold.closed => Some("its run had ended".to_owned()),
                    Some(hold) if is_shown_the_time && hold.until <= dawn.plus(now) => {
                        Some("its lease has run out".to_owned())
                    }
                    Some(_) => None,
                };
                // Whose clock is behind cannot know that its lease is over; the fence sees to it.
                if let Some(why) = why.filter(|_| is_shown_the_time) {
                    books.broken(
                        "nothing starts without a live lease",
                        Some(at),
                        format!("run {run} of {label} starts on {executor}, and {why}"),
                    );
                }
            }
            What::Returns {
                run,
                task,
                how: Returned::Done,
            } => {
                self.done.insert((*task, *run));
            }
            What::StepDone { run, task, step } => {
                let before = self.steps_kept.get(&(*task, *step)).copied();
                // What an earlier lease's holder does late, it does in vain: it was given the task before the step was kept.
                if let Some((_, before)) = before.filter(|before| *before < self.rank(*run)) {
                    let label = books.label(*task);
                    books.broken(
                        "a kept step is not done again",
                        Some(at),
                        format!("run {run} does step {step} of {label}, which run {before} heard is kept"),
                    );
                }
            }
            What::StepKept { run, task, step } => {
                let rank = self.rank(*run);
                // Whoever is put back after an end begins anew.
                if books.tasks.get(task).is_none_or(|book| rank.0 >= book.holds_before) {
                    self.steps_kept.entry((*task, *step)).or_insert(rank);
                }
            }
            What::Revived(task) => self.steps_kept.retain(|(of, _), _| of != task),
            _ => {}
        }
    }

    /// Runs of a later lease know what was kept under an earlier one.
    fn rank(&self, run: u64) -> (usize, u64) {
        (self.places.get(&run).copied().unwrap_or_default(), run)
    }

    /// An agent starts nothing that was not given to it, sooner or later.
    fn was_given(&self, books: &mut Books<'_>, at: usize, task: TaskId, executor: Executor, attempt: u32) {
        if books.outside || matches!(executor, Executor::Node(_)) {
            return;
        }
        let holds = books
            .tasks
            .get(&task)
            .map(|book| book.holds.as_slice())
            .unwrap_or_default();
        if !holds
            .iter()
            .any(|hold| hold.executor == executor && hold.attempt == attempt)
        {
            let label = books.label(task);
            books.broken(
                "nothing starts without a live lease",
                Some(at),
                format!("{label} starts at {executor}, who was never given attempt {attempt} of it"),
            );
        }
    }

    pub(super) fn finals(&self, books: &mut Books<'_>, outcome: &Outcome) {
        for sentence in &outcome.stuck {
            books.broken("everything comes to an end", None, sentence.clone());
        }
        for sentence in &outcome.verified.violations {
            books.broken("the store is sound", None, sentence.clone());
        }
        let there: BTreeMap<TaskId, &Final> = outcome.tasks.iter().map(|task| (task.record.id, task)).collect();
        let lost: Vec<TaskId> = books
            .tasks
            .iter()
            .filter(|(id, book)| {
                (book.acknowledged || book.kept_at.is_some()) && !book.deleted && !there.contains_key(id)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            let label = books.label(id);
            books.broken("nothing acknowledged is lost", None, format!("{label} is gone"));
        }
        for task in &outcome.tasks {
            self.ended(books, task);
        }
    }

    fn ended(&self, books: &mut Books<'_>, task: &Final) {
        let (id, life) = (task.record.id, &task.record.lifecycle);
        let label = books.label(id);
        if !has_ended(life.state) {
            return;
        }
        let blank = Book::default();
        let book = books.tasks.get(&id).unwrap_or(&blank);
        let (retried, touched) = (book.retried, book.touched);
        let (dropped, abandoned) = (book.dropped, book.abandoned);
        let own_end = book.ends.last().map(|(_, state)| *state);
        let crashes = book.holds[book.holds_before..]
            .iter()
            .filter(|hold| !hold.closed)
            .count();
        let is = |kind: EventKind| matches!(kind, EventKind::Completed | EventKind::Failed | EventKind::Cancelled);
        let ends = task.events.iter().filter(|event| is(event.kind)).count();
        if ends == 0 || ends > retried + 1 {
            books.broken(
                "a task ends once",
                None,
                format!("the history of {label} tells of {ends} ends, and it was retried {retried} times"),
            );
        }
        if own_end.is_some_and(|state| state != life.state) {
            books.broken(
                "an end is final",
                None,
                format!("{label} ended as {own_end:?} and is {} now", life.state),
            );
        }
        if life.state == State::Completed {
            self.proven(books, task, &label);
        }
        let kind = task.record.error.as_ref().map_or("", |error| error.kind.as_str());
        let is_blamed = matches!(kind, "crashed_node" | "crashed_agent");
        if is_blamed && crashes < CRASHES_MAX {
            books.broken(
                "only what kills nodes is blamed for it",
                None,
                format!("{label} is blamed for crashes, and only {crashes} of its leases were taken back"),
            );
        }
        let is_told = match kind {
            DROPPED => dropped,
            PROCESS_ENDED => abandoned,
            _ => true,
        };
        if !is_told && !books.outside {
            books.broken(
                "only what waits too long is dropped",
                None,
                format!("{label} is cancelled as `{kind}`, and nobody was seen to do that"),
            );
        }
        let Some(plan) = books.plan(id) else { return };
        let is_plain = !touched
            && task.record.depends_on.is_empty()
            && plan.depends_on.is_empty()
            && plan.expires_ms.is_none()
            && plan.queue_timeout_ms.is_none()
            && !is_blamed
            && !matches!(kind, DROPPED | PROCESS_ENDED)
            // Time goes on while a node stands still.
            && !(kind == "timeout" && (books.stood_still || plan.demand.is_some()));
        let expected = match &plan.act {
            Act::Fail { attempts, .. } | Act::Panic { attempts } if *attempts > plan.retries => State::Failed,
            Act::FailForGood | Act::Hang => State::Failed,
            Act::Deadly { runs } if *runs as usize > CRASHES_MAX => State::Failed,
            _ => State::Completed,
        };
        // A failed attempt counts where the one before was lost with its node, too.
        let may_differ = matches!(plan.act, Act::Fail { .. } | Act::Panic { .. }) && life.state == State::Completed;
        if is_plain && life.state != expected && !(may_differ && life.attempt > plan.retries + 1) {
            books.broken(
                "a task ends as its handler says",
                None,
                format!(
                    "{label} is {} ({kind}), and should be {expected}: {:?}",
                    life.state, plan.act
                ),
            );
        }
    }

    fn proven(&self, books: &mut Books<'_>, task: &Final, label: &str) {
        let proof = task.record.result.as_ref().map(|result| result.to::<Proof>());
        let why = match proof {
            Some(Ok(Proof { run })) if self.done.contains(&(task.record.id, run)) => return,
            Some(Ok(Proof { run })) => format!("its result is that of run {run}, which did not return it"),
            _ => "it has no result of a run".to_owned(),
        };
        books.broken(
            "what is completed was done",
            None,
            format!("{label} is completed, and {why}"),
        );
    }
}
