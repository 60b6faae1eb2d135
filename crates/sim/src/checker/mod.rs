//! The judge: reads what happened and what became of each task, and says what must not have been.
//!
//! It shares no code with the decisions of the engine or of a store. It knows what was promised, and keeps its own books:
//! who held which lease until when, who ended when, what was acknowledged.

mod agents;
mod breakers;
mod ends;
mod intake;
mod leases;
mod order;
mod processes;
mod queues;
mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pensum_core::{LeaseId, NodeId, State, TaskId, Time};

use crate::history::{Entry, Executor, What};
use crate::scenario::{Scenario, TaskPlan};
use crate::world::Outcome;

/// Something that must not have been.
#[derive(Clone, Debug, PartialEq)]
pub struct Violation {
    /// Which promise was broken.
    pub promise: &'static str,
    /// How.
    pub what: String,
    /// Where in the history it shows, when it shows there.
    pub entry: Option<usize>,
}

/// A lease as the books have it.
#[derive(Clone, Debug)]
struct Hold {
    lease: LeaseId,
    executor: Executor,
    attempt: u32,
    /// When it was given, by the clock of the world, and by that of whoever claimed.
    granted_at: Duration,
    claimed_at: Time,
    until: Time,
    /// A report of the holder ended it.
    closed: bool,
    /// It was taken back: it ran out, the session that had it was replaced, its agent removed, or what was run ended with the
    /// process that had accepted it.
    over: bool,
}

/// What the books say of one task.
#[derive(Default)]
struct Book {
    kept_at: Option<usize>,
    label: String,
    key: Option<String>,
    queue: String,
    /// The process with which it ends, where it is not durable.
    process: Option<NodeId>,
    /// It was cancelled with it.
    abandoned: bool,
    /// When it ended last.
    ended_at: Option<Duration>,
    /// It was cancelled for others, or for its age.
    dropped: bool,
    acknowledged: bool,
    deleted: bool,
    /// People interfered with it, or tried to.
    touched: bool,
    /// When they first did.
    touched_at: Option<Duration>,
    /// When somebody was heard who wants it to stop; nobody has retried it since.
    cancelled: Option<Duration>,
    /// How often it was put back after an end that the history tells of.
    revived: usize,
    /// How often somebody's retry was carried out, after an end or within a delay.
    retried: usize,
    holds: Vec<Hold>,
    /// How many leases it had had when it was last put back after an end.
    holds_before: usize,
    /// Where in the history it ended, and how.
    ends: Vec<(usize, State)>,
    /// Failures that the store took since it was last put back.
    failures: u32,
}

/// The books, while the history is read.
struct Books<'a> {
    scenario: &'a Scenario,
    plans: BTreeMap<String, &'a TaskPlan>,
    tasks: BTreeMap<TaskId, Book>,
    queues: BTreeMap<String, queues::Changes>,
    processes: BTreeMap<NodeId, processes::Process>,
    seats: BTreeMap<String, agents::Seat>,
    breakers: BTreeMap<String, breakers::Changes>,
    /// Leases under which the store has taken the end of a run.
    finished: BTreeSet<LeaseId>,
    dawn: Time,
    stood_still: bool,
    /// The history was not written within the store.
    outside: bool,
    /// By what time, by any clock that the store was shown, leases were judged.
    latest: Time,
    violations: Vec<Violation>,
}

impl<'a> Books<'a> {
    fn new(scenario: &'a Scenario, dawn: Time) -> Books<'a> {
        Books {
            scenario,
            plans: scenario
                .tasks()
                .map(|plan| (format!("t{}", plan.label), plan))
                .collect(),
            tasks: BTreeMap::new(),
            queues: BTreeMap::new(),
            processes: BTreeMap::new(),
            seats: BTreeMap::new(),
            breakers: BTreeMap::new(),
            finished: BTreeSet::new(),
            dawn,
            stood_still: false,
            outside: false,
            latest: Time::EPOCH,
            violations: Vec::new(),
        }
    }

    fn broken(&mut self, promise: &'static str, entry: Option<usize>, what: impl Into<String>) {
        self.violations.push(Violation {
            promise,
            what: what.into(),
            entry,
        });
    }

    fn book(&mut self, task: TaskId) -> &mut Book {
        self.tasks.entry(task).or_default()
    }

    fn label(&self, task: TaskId) -> String {
        match self.tasks.get(&task) {
            Some(book) if !book.label.is_empty() => book.label.clone(),
            _ => format!("row {}", task.row()),
        }
    }

    fn plan(&self, task: TaskId) -> Option<&'a TaskPlan> {
        self.plans.get(&self.tasks.get(&task)?.label).copied()
    }

    /// Notes what everybody else looks up, before the entry itself is judged.
    fn note(&mut self, at: usize, entry: &Entry) {
        match &entry.what {
            What::Kept(tasks) => {
                for (task, label) in tasks {
                    let book = self.book(*task);
                    book.label.clone_from(label);
                    book.kept_at = Some(at);
                }
            }
            What::Acknowledged { tasks, .. } => {
                for (_, task, _) in tasks {
                    self.book(*task).acknowledged = true;
                }
            }
            What::Commanded {
                task,
                command: "cancel",
                ..
            } => self.book(*task).cancelled = Some(entry.at),
            What::NodeFreezes(..) => self.stood_still = true,
            What::Finished { lease, .. } => drop(self.finished.insert(*lease)),
            What::Deleted(task) => self.book(*task).deleted = true,
            What::Revived(task) => {
                let book = self.book(*task);
                book.retried += 1;
                book.cancelled = None;
                // Within a delay it only makes it due.
                if book.ends.len() > book.revived {
                    book.revived += 1;
                    book.failures = 0;
                    book.holds_before = book.holds.len();
                }
            }
            _ => {}
        }
    }
}

/// Everything that must not have been.
pub fn check(scenario: &Scenario, outcome: &Outcome) -> Vec<Violation> {
    judge(Books::new(scenario, outcome.dawn), outcome)
}

/// Like [`check`], for a history that was put together afterwards: leases from what the store tells of attempts, runs
/// from what they wrote down. Such a history does not know what a claim could see, so nothing is said of priorities, nor
/// what a node knew of its lease when it started a handler.
pub fn check_from_outside(scenario: &Scenario, outcome: &Outcome) -> Vec<Violation> {
    let books = Books {
        outside: true,
        ..Books::new(scenario, outcome.dawn)
    };
    judge(books, outcome)
}

fn judge(mut books: Books<'_>, outcome: &Outcome) -> Vec<Violation> {
    for entry in &outcome.entries {
        if let What::Orders { task, .. } = entry.what {
            let book = books.book(task);
            book.touched = true;
            book.touched_at.get_or_insert(entry.at);
        }
    }
    let dependencies: BTreeMap<TaskId, Vec<TaskId>> = outcome
        .tasks
        .iter()
        .map(|task| (task.record.id, task.record.depends_on.clone()))
        .collect();
    let revived: BTreeSet<TaskId> = outcome
        .entries
        .iter()
        .filter_map(|entry| match entry.what {
            What::Revived(task) => Some(task),
            _ => None,
        })
        .collect();
    let expiries = outcome.tasks.iter();
    let expiries = expiries.filter_map(|task| Some((task.record.id, task.record.spec.expires_at()?)));
    let mut order = order::Order::new(dependencies, expiries.collect(), revived);
    let mut effects = ends::Effects::default();
    for (at, entry) in outcome.entries.iter().enumerate() {
        books.note(at, entry);
        books.queues(at, entry);
        books.agents(at, entry);
        books.breakers(at, entry);
        books.intake(at, entry, &outcome.entries);
        books.processes(at, entry);
        books.leases(at, entry);
        order.read(&mut books, at, entry, &outcome.entries);
        effects.read(&mut books, at, entry);
    }
    order.unique_keys(&mut books);
    books.refusals(&outcome.entries);
    effects.finals(&mut books, outcome);
    books.violations
}
