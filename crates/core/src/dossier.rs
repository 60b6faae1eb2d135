//! Everything that a store keeps about one task, so that it can be carried to another store and compared there.
//!
//! A dossier says the same in every store, whichever way the store writes it down: a history that one keeps as rows and
//! another derives from its columns is the same list of events here.

use std::time::Duration;

use crate::agent::AgentRecord;
use crate::breaker::BreakerRecord;
use crate::queue::QueueRecord;
use crate::store::{LogEntry, Signal, StoreError, TaskEvent};
use crate::task::{Execution, TaskRecord};
use crate::{Json, Name, State, TaskId, Time};

/// Most dossiers, and most idempotency keys, in one parcel.
pub const PARCEL_MAX: usize = 1_000;
/// A parcel takes no further dossier once it weighs this much, in bytes of its texts and some for each row.
pub const PARCEL_BYTES: usize = 8 << 20;

/// Everything about one task that is not running.
///
/// What only a running task has (its lease, why it was asked to stop) is not here: a store with running tasks is not
/// exported.
#[derive(Clone, Debug, PartialEq)]
pub struct Dossier {
    /// The namespace that it lives in.
    pub namespace: Name,
    /// Who enqueued it.
    pub creator: Option<Name>,
    /// What it asks for, and where it is.
    pub task: TaskRecord,
    /// Its unique key, held or not.
    pub unique: Option<UniqueKey>,
    /// What an earlier run left.
    pub checkpoint: Option<Json>,
    /// The attempts that have ended, first to last.
    pub executions: Vec<Execution>,
    /// Its history in the order of its sequence numbers, without its creation, which `creator` and `task.created_at` tell.
    pub events: Vec<TaskEvent>,
    /// Its log lines, oldest first.
    pub logs: Vec<LogEntry>,
    /// Its unread signals, oldest first.
    pub inbox: Vec<Signal>,
    /// The results of its finished durable steps, first to last.
    pub steps: Vec<(Name, Json)>,
}

/// The unique key that a task was enqueued with.
#[derive(Clone, Debug, PartialEq)]
pub struct UniqueKey {
    /// The key.
    pub key: Name,
    /// How long it is held from enqueue; `None`: until the task ends.
    pub ttl: Option<Duration>,
    /// How the task holds it; `None` when it does not: the task ended, or another one took the key over.
    pub hold: Option<Hold>,
}

/// How long a task goes on holding its unique key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Until it ends.
    UntilEnd,
    /// Until this time, whatever the task does. It may have passed already.
    Until(Time),
}

/// What is remembered under an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// The namespace of the key.
    pub namespace: Name,
    /// The key.
    pub key: String,
    /// The digest of what was asked.
    pub digest: [u8; 32],
    /// The ids that were answered.
    pub ids: Vec<TaskId>,
    /// Until when it is remembered.
    pub expires_at: Time,
}

impl Remembered {
    /// Where an export goes on after this key.
    pub fn bookmark(&self) -> Bookmark {
        Bookmark::Key(self.namespace.clone(), self.key.clone())
    }
}

/// Where a page of an export starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bookmark {
    /// With the first task in this row or a later one.
    Task(i64),
    /// With the first idempotency key after this one, by namespace and key, in the order of their bytes. All tasks come
    /// before the keys.
    Key(Name, String),
}

impl Bookmark {
    /// The beginning.
    pub const START: Bookmark = Bookmark::Task(0);

    /// The beginning of the idempotency keys, where the queues are, too.
    pub fn first_key() -> Bookmark {
        Bookmark::Key(Name::from(""), String::new())
    }

    /// True for [`Bookmark::first_key`].
    pub fn is_first_key(&self) -> bool {
        matches!(self, Bookmark::Key(namespace, key) if namespace.is_empty() && key.is_empty())
    }
}

/// One page of everything that a store keeps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parcel {
    /// Tasks, by row.
    pub dossiers: Vec<Dossier>,
    /// Idempotency keys, by namespace and key.
    pub remembered: Vec<Remembered>,
    /// Queues with their namespaces, by both: all of them on the first page of the keys.
    pub queues: Vec<(Name, QueueRecord)>,
    /// Agents with their namespaces, by both, without their sessions; on the same page.
    pub agents: Vec<(Name, AgentRecord)>,
    /// Circuit breakers with their namespaces, by both; on the same page.
    pub breakers: Vec<(Name, BreakerRecord)>,
    /// Where the next page starts; `None` at the end.
    pub next: Option<Bookmark>,
}

/// One step of an import.
#[derive(Clone, Debug)]
pub enum Import {
    /// Marks the store as one that is being filled: it cannot be opened again until [`Import::End`]. Refused when the
    /// store holds anything.
    Begin,
    /// Adds what a page of an export holds, all or nothing, in the order of the export.
    Parcel(Parcel),
    /// The store is complete.
    End,
}

impl Parcel {
    /// Checks that this may be imported next, into a store whose next free row is `next_row`.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when rows come out of order, or a task is running.
    pub fn check(&self, next_row: i64) -> Result<(), StoreError> {
        let mut next_row = next_row;
        for dossier in &self.dossiers {
            let id = dossier.task.id;
            if id.row() < next_row {
                return Err(StoreError::Conflict(format!(
                    "task {id} of row {} comes after row {}; import the pages of an export in their order",
                    id.row(),
                    next_row - 1
                )));
            }
            if dossier.task.lifecycle.state == State::Running {
                return Err(StoreError::Conflict(format!(
                    "task {id} is running, and a lease cannot be carried to another store"
                )));
            }
            next_row = id.row() + 1;
        }
        Ok(())
    }
}

/// The refusal to export a store in which tasks run, and where: `until` is when the last of their leases has run out.
pub fn still_running(tasks: u64, nodes: &[Name], until: Option<Time>) -> StoreError {
    const NAMED: usize = 5;
    let mut names: Vec<&str> = nodes.iter().take(NAMED).map(AsRef::as_ref).collect();
    if nodes.len() > NAMED {
        names.push("others");
    }
    let tasks = if tasks == 1 {
        "1 task is running".to_owned()
    } else {
        format!("{tasks} tasks are running")
    };
    let until = until
        .map(|at| format!(", or wait until {at}, when the leases have run out"))
        .unwrap_or_default();
    StoreError::Conflict(format!("{tasks} on {}; stop what runs them{until}", names.join(", ")))
}

/// The refusal to import into a store that holds something.
pub fn not_empty(location: &str, tasks: u64) -> StoreError {
    let what = match tasks {
        0 => "idempotency keys, queues, agents, breakers, or rows of its intake,".to_owned(),
        1 => "1 task".to_owned(),
        _ => format!("{tasks} tasks"),
    };
    StoreError::Conflict(format!(
        "{location} holds {what} already; name an empty store to copy to"
    ))
}

/// The refusal to open, or to copy into again, a store that holds half a copy.
pub fn half_copied(location: &str) -> StoreError {
    StoreError::Conflict(format!(
        "{location} holds a copy that was not finished; remove it, and copy again into a new store"
    ))
}

/// The refusal of a page for a store that is not being filled.
pub fn not_begun(location: &str) -> StoreError {
    StoreError::Conflict(format!(
        "no copy into {location} has begun, so nothing can be added to one"
    ))
}

impl Dossier {
    /// The row that its id carries.
    pub fn row(&self) -> i64 {
        self.task.id.row()
    }

    /// The largest sequence number in it; 0 for none. A store that has it goes on counting behind it.
    pub fn seq_max(&self) -> u64 {
        let events = self.events.iter().map(|e| e.seq);
        let logs = self.logs.iter().map(|l| l.seq);
        let inbox = self.inbox.iter().map(|s| s.seq);
        events.chain(logs).chain(inbox).max().unwrap_or(0)
    }

    /// The same with places instead of sequence numbers, for a comparison with a store that counts otherwise: the order
    /// of events, of log lines and of signals is what both keep.
    pub fn by_places(mut self) -> Dossier {
        (1..).zip(&mut self.events).for_each(|(place, event)| event.seq = place);
        (1..).zip(&mut self.logs).for_each(|(place, entry)| entry.seq = place);
        (1..)
            .zip(&mut self.inbox)
            .for_each(|(place, signal)| signal.seq = place);
        self
    }

    /// About how much it weighs, in bytes: its texts, and some for each row.
    pub fn weight(&self) -> usize {
        const ROW: usize = 100;
        let json = |json: &Option<Json>| json.as_ref().map_or(0, |json| json.get().len());
        let task = &self.task;
        let details = task.spec.details.as_ref().map_or(0, |details| {
            let texts = details.description.iter().chain(&details.tags).map(String::len);
            let webhooks = details.webhooks.iter().map(|webhook| webhook.get().len());
            5 * ROW + json(&details.metadata) + json(&details.execution_context) + texts.chain(webhooks).sum::<usize>()
        });
        let executions = self.executions.iter().map(|e| ROW + json(&e.result));
        let events = self
            .events
            .iter()
            .map(|e| ROW + e.error.as_ref().map_or(0, |e| e.message.len()));
        let logs = self.logs.iter().map(|l| ROW + l.line.message.len());
        let inbox = self.inbox.iter().map(|s| ROW + s.payload.get().len());
        let steps = self
            .steps
            .iter()
            .map(|(name, result)| ROW + name.len() + result.get().len());
        let rows = executions.chain(events).chain(logs).chain(inbox).chain(steps);
        let own = task.spec.parameters.get().len() + details + json(&task.result) + json(&self.checkpoint);
        5 * ROW + own + 16 * task.depends_on.len() + rows.sum::<usize>()
    }

    /// The fields in which another dossier differs, by their paths; empty when it is equal.
    pub fn differences(&self, other: &Dossier) -> Vec<&'static str> {
        let mut found = Vec::new();
        macro_rules! compare {
            ($($($field:ident).+;)+) => {
                $(if self.$($field).+ != other.$($field).+ {
                    found.push(concat!($(".", stringify!($field)),+).trim_start_matches('.'));
                })+
            };
        }
        compare! {
            namespace; creator; task.id; task.created_at; task.progress; task.result; task.error; task.depends_on;
            task.version; task.spec.handler; task.spec.queue; task.spec.priority; task.spec.parameters;
            task.spec.timeout; task.spec.max_retries; task.spec.key; task.spec.deadline; task.spec.details;
            task.lifecycle.state; task.lifecycle.waiting_for; task.lifecycle.run_at; task.lifecycle.wake_at;
            task.lifecycle.signal; task.lifecycle.attempt; task.lifecycle.same_attempt; task.lifecycle.failures;
            task.lifecycle.backing_off; task.lifecycle.crashes; task.lifecycle.suspect; task.lifecycle.unmet;
            task.lifecycle.on_dependency_failure; task.lifecycle.ready_at; task.lifecycle.started_at;
            task.lifecycle.finished_at; task.lifecycle.paused_at; task.lifecycle.cancel_requested_at;
            task.lifecycle.pause_requested_at; task.lifecycle.dead_lettered_at; task.lifecycle.lease; task.lifecycle.accepted_by;
            unique; checkpoint; executions; events; logs; inbox; steps;
        }
        if found.is_empty() && self != other {
            // A field that the list above does not know yet.
            found.push("task");
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Lifecycle, OnDependencyFailure, Spec};

    fn dossier(row: i64) -> Dossier {
        Dossier {
            namespace: Name::from("default"),
            creator: Some(Name::from("tester")),
            task: TaskRecord {
                id: TaskId::mint(Time::EPOCH, row, 5),
                created_at: Time::EPOCH,
                spec: Spec::new("noop", Json::null()),
                lifecycle: Lifecycle::new(Time::EPOCH, None, 0, OnDependencyFailure::Cancel),
                progress: None,
                result: None,
                error: None,
                depends_on: Vec::new(),
                version: 1,
            },
            unique: None,
            checkpoint: None,
            executions: Vec::new(),
            events: Vec::new(),
            logs: Vec::new(),
            inbox: Vec::new(),
            steps: Vec::new(),
        }
    }

    #[test]
    fn a_difference_is_named_by_its_path() {
        let one = dossier(1);
        assert_eq!(one.differences(&one.clone()), Vec::<&str>::new());
        let mut other = one.clone();
        other.task.lifecycle.run_at = Time::from_micros(1);
        other.steps.push((Name::from("step"), Json::null()));
        assert_eq!(one.differences(&other), ["task.lifecycle.run_at", "steps"]);
    }

    #[test]
    fn a_parcel_is_refused_out_of_order_and_with_a_running_task() {
        let parcel = |dossiers: Vec<Dossier>| Parcel {
            dossiers,
            ..Parcel::default()
        };
        parcel(vec![dossier(3), dossier(9)]).check(3).unwrap();
        assert!(parcel(vec![dossier(3)]).check(4).is_err());
        assert!(parcel(vec![dossier(3), dossier(3)]).check(1).is_err());
        let mut running = dossier(3);
        running.task.lifecycle.state = State::Running;
        assert!(parcel(vec![running]).check(1).is_err());
    }

    #[test]
    fn the_refusal_of_a_busy_store_names_who_and_until_when() {
        let until = Time::parse("2026-03-01T12:00:00Z").unwrap();
        let refusal = still_running(2, &[Name::from("a"), Name::from("b")], Some(until)).to_string();
        assert_eq!(
            refusal,
            "2 tasks are running on a, b; stop what runs them, or wait until 2026-03-01T12:00:00Z, when the leases have \
             run out"
        );
    }
}
