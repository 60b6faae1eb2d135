//! What the writer is asked, and how it answers.

use std::sync::mpsc::Sender;
use std::time::Duration;

use pensum_core::agent::AgentRecord;
use pensum_core::breaker::BreakerRecord;
use pensum_core::dossier::Import;
use pensum_core::input::Patch;
use pensum_core::queue::QueueRecord;
use pensum_core::store::{
    Applied, Beat, Call, Checkpoint, ClaimRequest, Command, Enqueued, Finish, Pruned, Reaped, Rejected, Renewal,
    Retention,
};
use pensum_core::{LeaseId, Lifecycle, Name, NewTask, NodeId, StoreError, TaskId, TaskRecord, Time};
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::agent;
use super::breaker;
use super::memory::FreshTask;
use super::queue::Ask;

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;
/// Sends an answer once the group is committed, or the error that undid it.
pub(super) type Done = Box<dyn FnOnce(Option<&StoreError>) + Send>;

/// A task to enqueue, with its details written out on the caller's thread.
pub(super) struct Prepared {
    pub(super) task: NewTask,
    pub(super) details: Option<String>,
}

/// Writes out what does not depend on the store.
pub(super) fn prepare(tasks: Vec<NewTask>) -> Vec<Prepared> {
    let write = |task: &NewTask| task.spec.details.as_ref().and_then(|d| serde_json::to_string(d).ok());
    tasks
        .into_iter()
        .map(|task| Prepared {
            details: write(&task),
            task,
        })
        .collect()
}

/// True for tasks none of which is durable, or changes one that is.
fn are_volatile(tasks: &[Prepared]) -> bool {
    !tasks.is_empty() && tasks.iter().all(|prepared| prepared.task.is_volatile())
}

/// One claimed task, as the writer knows it.
pub(super) struct Grant {
    pub(super) row: i64,
    pub(super) class: u32,
    pub(super) lease: LeaseId,
    pub(super) lifecycle: Lifecycle,
    pub(super) has_checkpoint: bool,
    /// See [`Claimed::bare`](pensum_core::store::Claimed::bare).
    pub(super) bare: Option<u64>,
    pub(super) fresh: Option<FreshTask>,
}

/// Claimed tasks on their way to the claimer; those that never arrive go back.
pub(super) struct Grants {
    pub(super) items: Vec<Grant>,
    pub(super) home: Sender<Verb>,
    /// For an agent: they are answered once they are on disk, and stay where they are when they never arrive. The agent's next
    /// claim answers them again.
    pub(super) outlive: bool,
}

impl Drop for Grants {
    fn drop(&mut self) {
        if !self.items.is_empty() && !self.outlive {
            let lost = self.items.iter().map(|g| (g.row, g.lease)).collect();
            // A writer that is gone has no leases either.
            let _ = self.home.send(Verb::Unclaim(lost));
        }
    }
}

/// A claim and where its answer goes.
pub(super) struct Claim {
    pub(super) request: ClaimRequest,
    pub(super) now: Time,
    pub(super) reply: Reply<Grants>,
    pub(super) home: Sender<Verb>,
}

/// A read on the writer's connection.
pub(super) type Read = Box<dyn FnOnce(Result<&Connection, StoreError>) + Send>;

/// Everything that the writer can be asked.
#[expect(
    clippy::large_enum_variant,
    reason = "one message a call; boxing the claim would cost more than moving it"
)]
pub(super) enum Verb {
    Enqueue {
        call: Call,
        tasks: Vec<Prepared>,
        reply: Reply<Vec<Enqueued>>,
    },
    Claim(Claim),
    /// Claims whose claimer went away.
    Unclaim(Vec<(i64, LeaseId)>),
    /// Time passed, and something may have come due.
    Tick(Time),
    Renew {
        beats: Vec<Beat>,
        lease: Duration,
        now: Time,
        reply: Reply<Vec<Renewal>>,
    },
    Finish {
        finishes: Vec<(Finish, Vec<Prepared>)>,
        now: Time,
        reply: Reply<Vec<Result<Applied, Rejected>>>,
    },
    Checkpoint {
        checkpoint: Checkpoint,
        spawn: Vec<Prepared>,
        now: Time,
        reply: Reply<Result<Applied, Rejected>>,
    },
    Command {
        call: Call,
        tasks: Vec<TaskId>,
        command: Command,
        reply: Reply<Vec<Result<Applied, Rejected>>>,
    },
    Update {
        call: Call,
        task: TaskId,
        patch: Patch,
        expected_version: Option<u64>,
        reply: Reply<Result<TaskRecord, Rejected>>,
    },
    Reap {
        now: Time,
        limit: usize,
        reply: Reply<Reaped>,
    },
    Prune {
        retention: Retention,
        now: Time,
        limit: usize,
        reply: Reply<Pruned>,
    },
    /// Something about a queue; what it is afterwards.
    Queue {
        call: Call,
        queue: Name,
        ask: Ask,
        reply: Reply<Option<QueueRecord>>,
    },
    /// The queues of a namespace.
    Queues {
        namespace: Name,
        reply: Reply<Vec<QueueRecord>>,
    },
    /// Something about an agent; what it is afterwards.
    Agent {
        call: Call,
        agent: Name,
        ask: agent::Ask,
        reply: Reply<Option<AgentRecord>>,
    },
    /// Something about a breaker; what it is afterwards.
    Breaker {
        call: Call,
        breaker: Name,
        ask: breaker::Ask,
        reply: Reply<Option<BreakerRecord>>,
    },
    /// The breakers of a namespace.
    Breakers {
        namespace: Name,
        reply: Reply<Vec<BreakerRecord>>,
    },
    /// An agent is heard.
    Beat {
        call: Call,
        agent: Name,
        session: Option<NodeId>,
        reply: Reply<AgentRecord>,
    },
    /// The agents of a namespace.
    Agents {
        namespace: Name,
        reply: Reply<Vec<AgentRecord>>,
    },
    /// One step of an import.
    Import {
        step: Import,
        now: Time,
        reply: Reply<()>,
    },
    /// Whether nothing is running, so that an export may read.
    Quiet {
        now: Time,
        reply: Reply<()>,
    },
    /// A read on the writer's connection, where there is no other.
    Read(Read),
    /// What the memory says that the disk does not.
    Audit(Reply<Vec<String>>),
    Close(Reply<()>),
    /// The store was dropped without being closed.
    Stop,
}

impl Verb {
    /// How many rows it is about, at most: what bounds a group.
    pub(super) fn weight(&self) -> usize {
        match self {
            Verb::Enqueue { tasks, .. } => tasks.len(),
            Verb::Finish { finishes, .. } => finishes.len(),
            Verb::Command { tasks, .. } => tasks.len(),
            Verb::Renew { beats, .. } => beats.len(),
            Verb::Reap { limit, .. } | Verb::Prune { limit, .. } => *limit,
            Verb::Import {
                step: Import::Parcel(parcel),
                ..
            } => parcel.dossiers.len(),
            _ => 1,
        }
    }

    /// True when its answer promises that a change is on disk.
    pub(super) fn is_acknowledged(&self) -> bool {
        matches!(
            self,
            Verb::Enqueue { tasks, .. } if !are_volatile(tasks)
        ) || matches!(
            self,
            Verb::Finish { .. }
                | Verb::Checkpoint { .. }
                | Verb::Command { .. }
                | Verb::Update { .. }
                | Verb::Reap { .. }
                | Verb::Prune { .. }
                | Verb::Import { .. }
                | Verb::Queue { .. }
                | Verb::Agent { .. }
                | Verb::Breaker { .. }
        )
    }

    /// True for an enqueue whose answer does not wait for the disk.
    pub(super) fn is_relaxed(&self) -> bool {
        matches!(self, Verb::Enqueue { tasks, .. } if are_volatile(tasks))
    }

    /// The present that it names.
    pub(super) const fn now(&self) -> Option<Time> {
        match self {
            Verb::Enqueue { call, .. }
            | Verb::Command { call, .. }
            | Verb::Update { call, .. }
            | Verb::Queue { call, .. }
            | Verb::Agent { call, .. }
            | Verb::Breaker { call, .. }
            | Verb::Beat { call, .. } => Some(call.now),
            Verb::Claim(Claim { now, .. })
            | Verb::Tick(now)
            | Verb::Renew { now, .. }
            | Verb::Finish { now, .. }
            | Verb::Checkpoint { now, .. }
            | Verb::Reap { now, .. }
            | Verb::Prune { now, .. }
            | Verb::Import { now, .. }
            | Verb::Quiet { now, .. } => Some(*now),
            Verb::Unclaim(_)
            | Verb::Queues { .. }
            | Verb::Agents { .. }
            | Verb::Breakers { .. }
            | Verb::Read(_)
            | Verb::Audit(_)
            | Verb::Close(_)
            | Verb::Stop => None,
        }
    }

    /// Answers with an error.
    pub(super) fn fail(self, error: &StoreError) {
        fn to<T>(reply: Reply<T>, error: &StoreError) {
            let _ = reply.send(Err(error.clone()));
        }
        match self {
            Verb::Enqueue { reply, .. } => to(reply, error),
            Verb::Claim(claim) => to(claim.reply, error),
            Verb::Renew { reply, .. } => to(reply, error),
            Verb::Finish { reply, .. } => to(reply, error),
            Verb::Checkpoint { reply, .. } => to(reply, error),
            Verb::Command { reply, .. } => to(reply, error),
            Verb::Update { reply, .. } => to(reply, error),
            Verb::Reap { reply, .. } => to(reply, error),
            Verb::Prune { reply, .. } => to(reply, error),
            Verb::Import { reply, .. } | Verb::Quiet { reply, .. } => to(reply, error),
            Verb::Read(read) => read(Err(error.clone())),
            Verb::Audit(reply) => to(reply, error),
            Verb::Queue { reply, .. } => to(reply, error),
            Verb::Queues { reply, .. } => to(reply, error),
            Verb::Agent { reply, .. } => to(reply, error),
            Verb::Breaker { reply, .. } => to(reply, error),
            Verb::Breakers { reply, .. } => to(reply, error),
            Verb::Beat { reply, .. } => to(reply, error),
            Verb::Agents { reply, .. } => to(reply, error),
            Verb::Close(reply) => to(reply, error),
            Verb::Unclaim(_) | Verb::Tick(_) | Verb::Stop => {}
        }
    }
}

/// Keeps an answer until its group is committed.
pub(super) fn later<T: Send + 'static>(reply: Reply<T>, value: Result<T, StoreError>) -> Done {
    Box::new(move |error| {
        // The caller may have gone; what it asked for is done all the same.
        let _ = reply.send(match error {
            Some(error) => Err(error.clone()),
            None => value,
        });
    })
}
