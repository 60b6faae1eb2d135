//! Who may run and write: one lease for a task at a time, one task for a key, nothing from whoever lost its lease, and
//! failures counted as they were promised to be.

use std::time::Duration;

use pensum_core::{LeaseId, State, TaskId};

use super::{Book, Books, Hold};
use crate::history::{Entry, What};
use crate::scenario::Act;

/// How many retries a task has that does not say.
const RETRIES_DEFAULT: u32 = 3;

impl Books<'_> {
    /// A lease is over once its holder said so, or once any clock that the store was shown had passed its end.
    pub(super) fn is_live(&self, hold: &Hold) -> bool {
        !hold.is_over() && self.latest < hold.until
    }

    pub(super) fn leases(&mut self, at: usize, entry: &Entry) {
        match &entry.what {
            What::Reaped { now, .. } => {
                self.latest = self.latest.max(*now);
                let last = self.tasks.values_mut().filter_map(|book| book.holds.last_mut());
                for hold in last.filter(|hold| hold.until <= *now) {
                    hold.over = true;
                }
            }
            What::Granted {
                task,
                lease,
                executor,
                attempt,
                key,
                now,
                until,
                label,
                ..
            } => {
                self.latest = self.latest.max(*now);
                if self.book(*task).label.is_empty() {
                    self.book(*task).label.clone_from(label);
                }
                let label = self.label(*task);
                let live = |hold: &&Hold| self.is_live(hold);
                if let Some(hold) = self.tasks.get(task).and_then(|book| book.holds.iter().find(live)) {
                    let (first, until) = (hold.executor, hold.until);
                    self.broken(
                        "one lease at a time",
                        Some(at),
                        format!("{label} is given to {executor} while {first} holds it until {until}"),
                    );
                }
                // One that ends with its process may have been given out, and be written down, just before.
                let ended = self.tasks.get(task).filter(|book| book.has_ended());
                if ended.is_some_and(|book| !book.ends_with_its_process(entry.at)) {
                    self.broken(
                        "what has ended does not start",
                        Some(at),
                        format!("{label} is given to {executor} and had ended"),
                    );
                }
                // A claim that was waiting may have been served, and be written down, just before.
                let cancelled = self.tasks.get(task).and_then(|book| book.cancelled);
                if cancelled.is_some_and(|cancelled| cancelled < entry.at) {
                    self.broken(
                        "what is cancelled does not start again",
                        Some(at),
                        format!("{label} is given to {executor} after somebody had cancelled it"),
                    );
                }
                if let Some(key) = key {
                    let holder = self.tasks.iter().find(|(other, book)| {
                        *other != task && book.key.as_ref() == Some(key) && book.holds.iter().any(|h| self.is_live(h))
                    });
                    if let Some((other, _)) = holder {
                        let other = self.label(*other);
                        self.broken(
                            "of one key only one runs",
                            Some(at),
                            format!("{label} is given out with key {key}, which {other} has"),
                        );
                    }
                }
                let book = self.book(*task);
                let over = book.ends_with_its_process(entry.at);
                book.key.clone_from(key);
                book.holds.push(Hold {
                    lease: *lease,
                    executor: *executor,
                    attempt: *attempt,
                    granted_at: entry.at,
                    claimed_at: *now,
                    until: *until,
                    closed: false,
                    over,
                });
            }
            What::Renewed { task, lease, until } => {
                self.fenced(at, *task, *lease, "renewal");
                if let Some(hold) = self.hold(*task, *lease) {
                    hold.until = *until;
                }
            }
            What::Saved { task, lease } => self.fenced(at, *task, *lease, "checkpoint"),
            What::Finished {
                task,
                lease,
                outcome,
                state,
            } => {
                self.fenced(at, *task, *lease, "finish");
                if let Some(hold) = self.hold(*task, *lease) {
                    hold.closed = true;
                }
                self.failure(at, *task, outcome, *state);
            }
            What::LeaseLost { task, lease, verb } => {
                let label = self.label(*task);
                let live = self
                    .tasks
                    .get(task)
                    .and_then(|book| book.holds.last())
                    .is_some_and(|hold| hold.lease == *lease && self.is_live(hold));
                if live {
                    self.broken(
                        "a live lease is honoured",
                        Some(at),
                        format!("a {verb} of {label} is refused, and its lease was live"),
                    );
                }
            }
            What::Ended(tasks) => {
                for (task, state) in tasks {
                    let book = self.book(*task);
                    book.ends.push((at, *state));
                    book.ended_at = Some(entry.at);
                    if book.process.is_some() {
                        // Whoever runs it has lost it, where it did not say itself that its run is over.
                        book.holds.iter_mut().for_each(|hold| hold.over = true);
                    }
                    let (ends, may) = (book.ends.len(), book.revived + 1);
                    if ends > may {
                        let label = self.label(*task);
                        self.broken(
                            "a task ends once",
                            Some(at),
                            format!("{label} ended {ends} times, and was put back {} times", may - 1),
                        );
                    }
                }
            }
            _ => {}
        }
    }

    fn hold(&mut self, task: TaskId, lease: LeaseId) -> Option<&mut Hold> {
        self.book(task).holds.iter_mut().find(|hold| hold.lease == lease)
    }

    /// Only the newest holder may write, and only until it has said that it is done.
    fn fenced(&mut self, at: usize, task: TaskId, lease: LeaseId, verb: &str) {
        let label = self.label(task);
        let book = self.book(task);
        let why = match book.holds.iter().rposition(|hold| hold.lease == lease) {
            None => "nobody was ever given that lease",
            Some(place) if place + 1 < book.holds.len() => "a newer lease was given out",
            Some(place) if book.holds[place].closed => "its run had ended",
            Some(place) if book.may_be_of_the_next_life(&book.holds[place]) => return,
            Some(place) if book.holds[place].over => "it had been taken back",
            Some(_) => return,
        };
        self.broken(
            "a stale owner writes nothing",
            Some(at),
            format!("a {verb} of {label} was taken, and {why}"),
        );
    }

    /// Failures are counted, and the last one that is allowed ends the task.
    fn failure(&mut self, at: usize, task: TaskId, outcome: &str, state: Option<State>) {
        let retries = self.plan(task).map_or(RETRIES_DEFAULT, |plan| plan.retries);
        let is_for_good = self.plan(task).is_some_and(|plan| plan.act == Act::FailForGood);
        let label = self.label(task);
        let book = self.book(task);
        let due = match outcome {
            "failed" => {
                book.failures += 1;
                book.failures > retries
            }
            "failed for good" if is_for_good => true,
            _ => return,
        };
        let failures = book.failures;
        match state {
            // Whoever asked for a cancel gets one.
            Some(State::Cancelled) if book.touched => {}
            Some(State::Failed) if due => {}
            Some(State::Queued) if !due => {}
            other => self.broken(
                "dead letters exactly when due",
                Some(at),
                format!("{label} is {other:?} after failure {failures}, with {retries} retries"),
            ),
        }
    }
}

impl Hold {
    pub(super) fn is_over(&self) -> bool {
        self.closed || self.over
    }
}

impl Book {
    /// It is not durable, and has ended at this very time, maybe while somebody ran it.
    fn ends_with_its_process(&self, at: Duration) -> bool {
        self.process.is_some() && self.ended_at == Some(at)
    }

    /// It ended and was put back at the very time at which this lease was given out, so that it may be the end that came first.
    fn may_be_of_the_next_life(&self, hold: &Hold) -> bool {
        !hold.closed && !self.has_ended() && self.ends_with_its_process(hold.granted_at)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.deleted || self.ends.len() > self.revived
    }
}
