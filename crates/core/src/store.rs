//! The store: one trait, verbs of the domain, one verb a transaction.
//!
//! A batch goes in and per-item results come out. Every verb takes `now` (in its [`Call`] where someone acts); no query
//! builder, transaction handle or capability flag crosses the trait. `Ok` from a mutating verb means that the change
//! is on disk, but for what says otherwise: claims, renewals, progress and logs may be lost by a power cut, because
//! losing them only repeats work.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::agent::{AGENTS_MAX, AgentCommand, AgentRecord, AgentSettings, Amounts};
use crate::breaker::{BREAKERS_MAX, BreakerCommand, BreakerRecord, BreakerSettings};
use crate::capacity::Full;
use crate::dossier::{Bookmark, Import, Parcel};
use crate::input::Patch;
use crate::intake::{AdmitRequest, Admitted, IntakeRecord, IntakeStatus, Judge};
use crate::outcome::{ErrorInfo, Outcome, Progress, Usage};
use crate::query::{Counts, Page, Paged, TaskFilter};
use crate::queue::{QUEUES_MAX, QueueCommand, QueueRecord, QueueSettings};
use crate::seam::Clock;
use crate::task::{Execution, Lifecycle, NewTask, Spec, TaskRecord};
use crate::transition::{EventKind, Interrupt, Refusal};
use crate::{ExecutionId, Json, LeaseId, Name, NodeId, State, TaskId, Time};

/// Most tasks in one enqueue.
pub const BATCH_MAX: usize = 10_000;
/// Most dependencies of one task.
pub const DEPENDENCIES_MAX: usize = 1_000;
/// Most log lines that are kept for one task; the oldest stay, the last line says that more were dropped.
pub const LOG_LINES_MAX: u64 = 10_000;
/// Most unread signals in one inbox.
pub const INBOX_MAX: usize = 1_000;
/// How long a node is listed after it was last heard.
pub const NODE_LISTED: Duration = Duration::from_secs(3600);
/// How long an idempotency key is remembered.
pub const IDEMPOTENCY_TTL: Duration = Duration::from_secs(24 * 3600);

/// Who acts, where, and when.
#[derive(Clone, Debug)]
pub struct Call {
    /// The namespace of everything that the verb names.
    pub namespace: Name,
    /// Who asks: a user, a token, a node. Kept with the event.
    pub actor: Name,
    /// The present.
    pub now: Time,
    /// Makes a repeat of the same request answer as the first one did.
    pub idempotency: Option<IdempotencyKey>,
    /// The process that answers for tasks that are not durable and are revived by this call.
    pub process: Option<NodeId>,
}

impl Call {
    /// A call in the namespace `default`.
    pub fn new(actor: impl Into<Name>, now: Time) -> Call {
        Call {
            namespace: Name::from("default"),
            actor: actor.into(),
            now,
            idempotency: None,
            process: None,
        }
    }
}

/// The `Idempotency-Key` of a request and the digest of what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The key, scoped to the namespace.
    pub key: String,
    /// A digest of verb, path and body: the same key with another digest is refused.
    pub digest: [u8; 32],
}

/// A task id and the lease that its holder has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseRef {
    /// The task.
    pub task: TaskId,
    /// The fence.
    pub lease: LeaseId,
}

/// What an enqueue did with one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enqueued {
    /// The task: new, or the one that holds the unique key.
    pub id: TaskId,
    /// False when a unique key or an idempotency key gave an existing task.
    pub created: bool,
}

/// A node asks for work, or a session of an agent does.
#[derive(Clone, Debug)]
pub struct ClaimRequest {
    /// Who asks: a node, or an agent's session.
    pub node: NodeId,
    /// The name kept as `executor_id`.
    pub executor: Name,
    /// How many tasks at most.
    pub slots: usize,
    /// Which capabilities (handler names among them) the node has: a task is claimed only when all that it requires
    /// are here. `None` takes every task.
    pub capabilities: Option<Arc<[Name]>>,
    /// Only tasks of these queues; `None` takes tasks of every queue.
    pub queues: Option<Arc<[Name]>>,
    /// What the node's machine has for tasks; `None` is as much as they ask for.
    pub resources: Option<Amounts>,
    /// An agent asks: then its registration says what it may take, instead of `capabilities` and `resources`.
    pub agent: Option<AgentClaim>,
    /// How long the lease lasts without renewal.
    pub lease: Duration,
    /// When nothing can be claimed at once, the store may hold the request this long and answer when something can;
    /// zero answers at once. A store may always answer early, with nothing.
    pub wait: Duration,
}

impl ClaimRequest {
    /// A claim of up to `slots` tasks of every kind and queue, for a node, which is answered at once.
    pub fn new(node: NodeId, executor: impl Into<Name>, slots: usize, lease: Duration) -> ClaimRequest {
        ClaimRequest {
            node,
            executor: executor.into(),
            slots,
            capabilities: None,
            queues: None,
            resources: None,
            agent: None,
            lease,
            wait: Duration::ZERO,
        }
    }
}

/// The part of a claim that an agent adds.
#[derive(Clone, Debug)]
pub struct AgentClaim {
    /// The namespace in which it is registered; it takes no tasks of another.
    pub namespace: Name,
    /// Its id.
    pub name: Name,
    /// What it knows that it holds. Whatever else its session has leased was in an answer that never arrived, and is
    /// answered again, before anything new.
    pub have: Vec<ExecutionId>,
}

/// A claimed task.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// What to name in every later write.
    pub lease: LeaseRef,
    /// The namespace that it lives in.
    pub namespace: Name,
    /// What to do.
    pub spec: Arc<Spec>,
    /// Where it is, after the claim.
    pub lifecycle: Lifecycle,
    /// What an earlier run of this task left.
    pub checkpoint: Option<Json>,
    /// When it was enqueued.
    pub created_at: Time,
    /// Its version after the claim, of a task that has nothing beside what is here: no dependencies, progress or error of
    /// before. `None` where the store would have to look.
    pub bare: Option<u64>,
}

impl Claimed {
    /// The task, where this is all of it.
    pub fn record(&self) -> Option<TaskRecord> {
        Some(TaskRecord {
            id: self.lease.task,
            created_at: self.created_at,
            spec: (*self.spec).clone(),
            lifecycle: self.lifecycle.clone(),
            progress: None,
            result: None,
            error: None,
            depends_on: Vec::new(),
            version: self.bare?,
        })
    }
}

/// A holder says that it lives, and what happened since.
#[derive(Clone, Debug)]
pub struct Beat {
    /// Which lease.
    pub lease: LeaseRef,
    /// The newest progress, when it changed.
    pub progress: Option<Progress>,
    /// New log lines.
    pub logs: Vec<LogLine>,
}

/// What a holder learns in return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease holds, now until `expires_at`.
    Held {
        /// The new end.
        expires_at: Time,
        /// Someone wants the task to stop.
        cancel: bool,
        /// Someone wants the task to pause (true), or not any more (false).
        pause: bool,
    },
    /// The task is someone else's, or ended: stop, and write nothing.
    Lost,
}

/// A holder ends a run of a task.
#[derive(Clone, Debug)]
pub struct Finish {
    /// Which lease.
    pub lease: LeaseRef,
    /// What the handler said.
    pub outcome: Outcome,
    /// A draw from `[0, 1)` for the jitter of a retry.
    pub draw: f64,
    /// What the run used.
    pub usage: Usage,
    /// Log lines not yet sent.
    pub logs: Vec<LogLine>,
    /// The last progress not yet sent.
    pub progress: Option<Progress>,
    /// Signals that the handler used up, by [`Signal::seq`]; removed in the same transaction.
    pub consumed: Vec<u64>,
    /// Children to enqueue in the same transaction; their parent is this task.
    pub spawn: Vec<NewTask>,
}

impl Finish {
    /// A finish without logs, signals or children.
    pub fn new(lease: LeaseRef, outcome: Outcome) -> Finish {
        Finish {
            lease,
            outcome,
            draw: 0.5,
            usage: Usage::default(),
            logs: Vec::new(),
            progress: None,
            consumed: Vec::new(),
            spawn: Vec::new(),
        }
    }
}

/// What a finish, a command or the reaper did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// The state of the named task afterwards; `None` when it was deleted.
    pub state: Option<State>,
    /// Every task that ended in this transaction: this one, and those that depended on it.
    pub ended: Vec<(TaskId, State)>,
    /// What its node has to be told.
    pub interrupt: Option<Interrupt>,
    /// Ids of spawned children, in order.
    pub spawned: Vec<TaskId>,
}

/// A running task saves something without ending its run.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Which lease.
    pub lease: LeaseRef,
    /// The state to save; `None` keeps the present one.
    pub state: Option<Json>,
    /// A durable step that finished, with its result.
    pub step: Option<(Name, Json)>,
    /// Signals used up.
    pub consumed: Vec<u64>,
    /// Children to enqueue in the same transaction.
    pub spawn: Vec<NewTask>,
    /// The run has paused as requested, and keeps its lease.
    pub paused: bool,
}

impl Checkpoint {
    /// An empty checkpoint of a lease.
    pub fn new(lease: LeaseRef) -> Checkpoint {
        Checkpoint {
            lease,
            state: None,
            step: None,
            consumed: Vec::new(),
            spawn: Vec::new(),
            paused: false,
        }
    }
}

/// What a person asks of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Stop it, or keep it from starting.
    Cancel {
        /// Why, for the error of the cancelled task.
        reason: Option<String>,
    },
    /// Hold it back; a running one is asked to pause.
    Pause,
    /// Let it go on.
    Resume,
    /// Run it again after it ended, or now instead of after its delay.
    Retry,
    /// Run it now instead of at its time.
    RunNow,
    /// Put a signal into its inbox.
    Signal {
        /// The signal's name.
        name: Name,
        /// What it carries.
        payload: Json,
    },
    /// Remove it and everything about it. Refused while it runs or others wait for it.
    Delete,
}

/// A signal in a task's inbox.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    /// Order of arrival.
    pub seq: u64,
    /// Its name.
    pub name: Name,
    /// What it carries.
    pub payload: Json,
    /// When it arrived.
    pub at: Time,
}

/// Where a log line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// A subprocess's standard output.
    Stdout,
    /// A subprocess's standard error.
    Stderr,
    /// The handler's own words.
    Log,
}

impl LogStream {
    /// A small number for storage; never renumbered.
    pub const fn code(self) -> i64 {
        match self {
            LogStream::Stdout => 1,
            LogStream::Stderr => 2,
            LogStream::Log => 3,
        }
    }

    /// From storage.
    pub const fn from_code(code: i64) -> LogStream {
        match code {
            1 => LogStream::Stdout,
            2 => LogStream::Stderr,
            _ => LogStream::Log,
        }
    }
}

/// A line to log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogLine {
    /// When it was said.
    pub at: Time,
    /// Which attempt said it.
    pub attempt: u32,
    /// Where it comes from.
    pub stream: LogStream,
    /// The line, without its line end.
    pub message: String,
}

/// A log line as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct LogEntry {
    /// Order within the store; go on reading after it.
    pub seq: u64,
    /// The line.
    pub line: LogLine,
}

/// Something that happened to a task.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskEvent {
    /// Order within the store, as far as the store kept one for this event; 0 for events that are derived from the
    /// task's own columns (created, started).
    pub seq: u64,
    /// When.
    pub at: Time,
    /// What.
    pub kind: EventKind,
    /// Who caused it.
    pub actor: Option<Name>,
    /// In which attempt.
    pub attempt: u32,
    /// The error, where there is one.
    pub error: Option<ErrorInfo>,
}

/// What one pass of the reaper did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reaped {
    /// Leases that had run out.
    pub leases_expired: u64,
    /// Tasks that expired or waited too long in their queue.
    pub overdue: u64,
    /// Waits that came to their time.
    pub woken: u64,
    /// Tasks that are not durable, and whose process has ended.
    pub abandoned: u64,
    /// Tasks that ended in this pass.
    pub ended: Vec<(TaskId, State)>,
    /// When the next pass has something to do, as far as is known.
    pub next_due: Option<Time>,
}

impl Reaped {
    /// How many tasks it moved, those aside that followed.
    pub const fn moved(&self) -> u64 {
        self.leases_expired + self.overdue + self.woken + self.abandoned
    }
}

/// Which finished tasks may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long completed and cancelled tasks stay.
    pub completed: Duration,
    /// How long failed tasks stay.
    pub failed: Duration,
}

impl Default for Retention {
    /// A week for completed and cancelled tasks, thirty days for failed ones.
    fn default() -> Retention {
        let day = Duration::from_secs(86_400);
        Retention {
            completed: 7 * day,
            failed: 30 * day,
        }
    }
}

/// What one pass of `prune` did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// How many tasks went.
    pub removed: u64,
    /// The pass came to its bound before it had looked at every task: call again.
    pub more: bool,
}

/// A node says that it lives, and how it is.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeBeat {
    /// This incarnation.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// The program's version.
    pub version: String,
    /// Where its HTTP API listens, if it has one.
    pub address: Option<String>,
    /// When it was built.
    pub started_at: Time,
    /// How many tasks it runs at once.
    pub slots: usize,
    /// How many it runs now.
    pub running: usize,
    /// It is given up for dead when it says nothing for this long.
    pub ttl: Duration,
}

impl NodeBeat {
    /// True when a node that last said this at `seen_at` is given up for dead at `now`.
    pub fn is_lost(&self, seen_at: Time, now: Time) -> bool {
        now >= seen_at.plus(self.ttl)
    }

    /// What is listed at `now` of a node that last said this at `seen_at`.
    pub fn record(&self, seen_at: Time, now: Time) -> NodeRecord {
        let status = if self.is_lost(seen_at, now) { "lost" } else { "running" };
        NodeRecord {
            id: self.node.to_string(),
            name: self.name.clone(),
            status: status.to_owned(),
            version: self.version.clone(),
            address: self.address.clone(),
            started_at: self.started_at,
            seen_at,
            slots: self.slots as u64,
            running: self.running as u64,
        }
    }
}

/// What a node learns in return.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeReply {
    /// Grows whenever somebody asked something (cancel, pause, resume) of a task that this node holds: when it has grown
    /// since the last beat, the node renews its leases at once and so learns what was asked.
    pub commands: u64,
}

/// A node as the store knows it.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct NodeRecord {
    /// This incarnation, such as `node-0123456789abcdef`.
    pub id: String,
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// `running`, or `lost` once it has been silent for longer than it said it would be.
    pub status: String,
    /// The program's version.
    pub version: String,
    /// Where its HTTP API listens, if it has one.
    pub address: Option<String>,
    /// When it was built.
    #[schema(value_type = String)]
    pub started_at: Time,
    /// When it last said that it lives.
    #[schema(value_type = String)]
    pub seen_at: Time,
    /// How many tasks it runs at once.
    pub slots: u64,
    /// How many it ran when it last said so.
    pub running: u64,
}

/// What `verify` found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verified {
    /// How many tasks were looked at.
    pub tasks: u64,
    /// One sentence for each violation, at most [`VIOLATIONS_MAX`].
    pub violations: Vec<String>,
}

/// How many violations a report lists.
pub const VIOLATIONS_MAX: usize = 100;

/// Figures about the store itself, for people: rows by table, bytes, settings.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StoreStats {
    /// `sqlite`, `postgres` or `model`.
    pub kind: String,
    /// Schema version.
    pub schema_version: u64,
    /// Where it is.
    pub location: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// Rows by table.
    pub rows: BTreeMap<String, u64>,
    /// What an acknowledgement means here, such as `wal, synchronous=full`.
    pub durability: String,
}

/// Why a verb refused one item. Nothing was changed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Rejected {
    /// No such task.
    #[error("there is no task {0}")]
    NotFound(TaskId),
    /// The lease is not the task's any more.
    #[error("the lease on task {0} is lost: it expired and was taken over, or the task ended")]
    LeaseLost(TaskId),
    /// The task's state does not allow it.
    #[error("task {task} is {state}: {why}")]
    Forbidden {
        /// The task.
        task: TaskId,
        /// Its state.
        state: State,
        /// Why, and what to do.
        why: &'static str,
    },
    /// The task is as asked already; harmless.
    #[error("task {0} is as asked already")]
    Nothing(TaskId),
    /// A dependency that does not exist.
    #[error("tasks[{item}].depends_on[{position}]: there is no task {id}")]
    UnknownDependency {
        /// Which item of the batch.
        item: usize,
        /// Which of its dependencies.
        position: usize,
        /// The id that was named.
        id: TaskId,
    },
    /// A dependency on an item that the batch does not have.
    #[error("tasks[{item}].depends_on[{position}]: there is no tasks[{index}] in this batch of {items}")]
    UnknownItem {
        /// Which item of the batch.
        item: usize,
        /// Which of its dependencies.
        position: usize,
        /// The index that was named.
        index: usize,
        /// How many items there are.
        items: usize,
    },
    /// Items of the batch wait for each other.
    #[error("the dependencies form a cycle: {}", .0.iter().map(|i| format!("tasks[{i}]")).collect::<Vec<_>>().join(" → "))]
    Cycle(Vec<usize>),
    /// The unique key is taken, and the submission asked to be refused then.
    #[error("tasks[{item}].unique: the key `{key}` is held by task {holder}")]
    UniqueTaken {
        /// Which item of the batch.
        item: usize,
        /// The key.
        key: Name,
        /// Who has it.
        holder: TaskId,
    },
    /// Two items of the batch have the same unique key, and the later one asked to be refused then. Otherwise the
    /// first one is enqueued and stands for both.
    #[error("tasks[{item}].unique: tasks[{earlier}] of the same batch has the key `{key}` already")]
    UniqueTwice {
        /// The later item.
        item: usize,
        /// The earlier item.
        earlier: usize,
        /// The key.
        key: Name,
    },
    /// A retry would need the unique key that another task took meanwhile.
    #[error("task {task} cannot run again: its unique key is held by task {holder}")]
    UniqueTakenByOther {
        /// The task to retry.
        task: TaskId,
        /// Who has the key.
        holder: TaskId,
    },
    /// The idempotency key was used for another request.
    #[error("the Idempotency-Key was used for another request; use a new key for a new request")]
    IdempotencyMismatch,
    /// Unfinished tasks wait for it.
    #[error("task {task} cannot be deleted: {dependants} unfinished task(s) depend on it")]
    HasDependants {
        /// The task.
        task: TaskId,
        /// How many wait for it.
        dependants: u64,
    },
    /// The task was changed by someone else meanwhile.
    #[error("task {task} is at version {found}, not {expected}: it changed meanwhile; read it again")]
    VersionMismatch {
        /// The task.
        task: TaskId,
        /// What the caller saw.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// No queue of that name has been put.
    #[error("there is no queue `{0}` with settings of its own")]
    NoQueue(Name),
    /// The command does not fit what the queue is.
    #[error("queue `{queue}`: {why}")]
    QueueForbids {
        /// The queue.
        queue: Name,
        /// Why, and what to do.
        why: &'static str,
    },
    /// Without its settings all that waits in the queue would start at once.
    #[error("queue `{queue}` cannot be deleted: it holds {unfinished} unfinished task(s)")]
    QueueHasTasks {
        /// The queue.
        queue: Name,
        /// How many.
        unfinished: u64,
    },
    /// The queue was changed by someone else meanwhile.
    #[error("queue `{queue}` is at version {found}, not {expected}: it changed meanwhile; read it again")]
    QueueVersionMismatch {
        /// The queue.
        queue: Name,
        /// What the caller saw; 0: that there was none.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// The queue takes no more at this moment, or does not start it at once as the task asked for.
    #[error("tasks[{item}].queue: {full}")]
    QueueFull {
        /// Which item of the batch.
        item: usize,
        /// Which queue, and what of it is full.
        full: Box<Full>,
    },
    /// There are as many queues with settings as may be.
    #[error("there are {QUEUES_MAX} queues with settings of their own, which is the most; delete some first")]
    TooManyQueues,
    /// No breaker of that name.
    #[error("there is no circuit breaker `{0}`")]
    NoBreaker(Name),
    /// The breaker was changed by someone else meanwhile, or opened or closed.
    #[error("circuit breaker `{breaker}` is at version {found}, not {expected}: it changed meanwhile; read it again")]
    BreakerVersionMismatch {
        /// The breaker.
        breaker: Name,
        /// What the caller saw; 0: that there was none.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// There are as many breakers as may be.
    #[error("there are {BREAKERS_MAX} circuit breakers, which is the most; delete some first")]
    TooManyBreakers,
    /// No agent of that name is registered.
    #[error("there is no agent `{0}`; register it first")]
    NoAgent(Name),
    /// Another process polls for the agent now, or the session was closed.
    #[error(
        "this session of agent `{0}` has ended: a newer one took over, or it was closed; stop, or open another session"
    )]
    SessionFenced(Name),
    /// There are as many agents as may be.
    #[error("there are {AGENTS_MAX} agents, which is the most; remove some first")]
    TooManyAgents,
    /// The inbox is full.
    #[error("the inbox of task {0} holds {INBOX_MAX} unread signals; it takes no more until some are read")]
    InboxFull(TaskId),
}

impl Rejected {
    /// The rejection for a refusal by [`crate::apply`].
    pub fn from_refusal(task: TaskId, state: State, refusal: Refusal) -> Rejected {
        match refusal {
            Refusal::LeaseLost => Rejected::LeaseLost(task),
            Refusal::Forbidden(why) => Rejected::Forbidden { task, state, why },
            Refusal::Nothing => Rejected::Nothing(task),
        }
    }
}

/// Why a verb failed as a whole. Nothing was changed, unless the variant says that it is not known.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StoreError {
    /// A rejection of the whole batch.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The store cannot take it now: disk full, read-only, too busy, connection lost. Trying again later may help.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// Another process owns the file.
    #[error("{path} is in use by {owner}; stop it, or talk to it instead")]
    Locked {
        /// The file.
        path: String,
        /// Who has it, as the lock file says: an address or a process id.
        owner: String,
    },
    /// The present state of the store does not allow it: it is to be empty, or quiet, or whole, and is not.
    #[error("{0}")]
    Conflict(String),
    /// The file is not a Pensum store, or is damaged.
    #[error("{0}")]
    Corrupt(String),
    /// The store was written by a newer program.
    #[error("the store has schema version {found}, this program knows up to {known}: use a newer pensum")]
    Newer {
        /// What it has.
        found: u64,
        /// What we know.
        known: u64,
    },
    /// The store is closed, or closing.
    #[error("the store is closed")]
    Closed,
}

/// The verbs.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Adds tasks, all or none. The ids come back in order. A batch of nothing but tasks that are
    /// [not durable](NewTask::is_volatile) may be lost in a power cut.
    ///
    /// A dependency that ended already counts at once: completed as met, failed or cancelled by the task's policy.
    ///
    /// Refused with [`Rejected::QueueFull`] where a new task meets a [limit](crate::capacity) of its queue; it is counted and
    /// written in one transaction, so that of many at once no more pass than there is room for.
    async fn enqueue(&self, call: &Call, tasks: Vec<NewTask>) -> Result<Vec<Enqueued>, StoreError>;

    /// Takes up to `slots` claimable tasks: highest priority first, then earliest deadline, then oldest. Of one key
    /// at most one task is leased at any time, and more only where the queues of all of these
    /// [let that be](crate::order::KeyTurns), by their settings at that moment.
    ///
    /// Of a queue with settings no more than its [`room`](QueueRecord::room), counted by the leases that its tasks hold
    /// at that moment, on whichever node.
    ///
    /// Nothing that an open [breaker](crate::breaker) covers, and of what a half-open one covers no more than its probes, by
    /// the leases that were taken since. Each end of an attempt, completed or failed, is noted by the breakers that cover
    /// it, in its own transaction.
    ///
    /// A claimer never holds more resources than it has, counted by its leases. A task that prefers an agent is kept for it
    /// while it [may be waited for](AgentRecord::is_awaited).
    ///
    /// An agent gets no more than its registration allows, nothing while it is draining, and its leases are on disk when it
    /// hears of them: they outlive the process that gave them. Refused with [`Rejected::NoAgent`], and with
    /// [`Rejected::SessionFenced`] for a session that is not the present one.
    ///
    /// A suspected task comes alone: while one is claimable, the node gets nothing until each of its leases has run for
    /// 60 s, checkpointed, or ended; then it gets the suspect, and nothing else until that one has done the same.
    async fn claim(&self, request: ClaimRequest, now: Time) -> Result<Vec<Claimed>, StoreError>;

    /// Renews leases for `lease` from `now`, and keeps progress and logs. Not acknowledged as durable.
    async fn renew(&self, beats: Vec<Beat>, lease: Duration, now: Time) -> Result<Vec<Renewal>, StoreError>;

    /// Ends runs of tasks; per-item results, in order.
    async fn finish(&self, finishes: Vec<Finish>, now: Time) -> Result<Vec<Result<Applied, Rejected>>, StoreError>;

    /// Saves state of a running task, fenced by its lease.
    async fn checkpoint(&self, checkpoint: Checkpoint, now: Time) -> Result<Result<Applied, Rejected>, StoreError>;

    /// Carries out a command on each task; per-item results, in order. [`Rejected::Nothing`] is harmless.
    async fn command(
        &self,
        call: &Call,
        tasks: Vec<TaskId>,
        command: Command,
    ) -> Result<Vec<Result<Applied, Rejected>>, StoreError>;

    /// Changes what a task asks for; see [`Patch`] for what may change when.
    async fn update(
        &self,
        call: &Call,
        task: TaskId,
        patch: Patch,
        expected_version: Option<u64>,
    ) -> Result<Result<TaskRecord, Rejected>, StoreError>;

    /// Notes that a node lives. Not acknowledged as durable.
    async fn heartbeat(&self, beat: NodeBeat, now: Time) -> Result<NodeReply, StoreError>;

    /// Notes that a node has ended in good order: it holds no lease and is not listed any more. What it accepted that is not
    /// durable is cancelled by the next [reap](Store::reap).
    async fn leave(&self, node: NodeId, now: Time) -> Result<(), StoreError>;

    /// The nodes that have said something within [`NODE_LISTED`] and did not leave, oldest first, then by id.
    async fn nodes(&self, now: Time) -> Result<Vec<NodeRecord>, StoreError>;

    /// The clock that judges leases, for a store that several machines share; `None`: the machine's own.
    fn clock(&self) -> Option<Arc<dyn Clock>> {
        None
    }

    /// Ends what is overdue: leases, expiries, queue timeouts, waits, and what has waited longer than a queue keeps it. At
    /// most `limit` tasks a pass.
    ///
    /// Cancels tasks that are not durable and were accepted by a process that is not among the nodes any more, or is silent
    /// for longer than it said. A store that one process owns cancels them when it is opened, before anything can start.
    ///
    /// It also lets tasks rise that have waited for long enough in queues that age them, and moves those that stand elsewhere
    /// since their queue has changed: a bounded step, after which [`Reaped::next_due`] says when the next one is due.
    ///
    /// A lease that ran out is blamed on its node's death when that node beat before and is silent for longer than it
    /// said; then a task that had just started is suspected of it.
    async fn reap(&self, now: Time, limit: usize) -> Result<Reaped, StoreError>;

    /// One task.
    async fn task(&self, namespace: &str, task: TaskId) -> Result<Option<TaskRecord>, StoreError>;

    /// Some tasks, in their order; `None` for each that there is not.
    async fn some_tasks(&self, namespace: &str, tasks: &[TaskId]) -> Result<Vec<Option<TaskRecord>>, StoreError> {
        let mut found = Vec::with_capacity(tasks.len());
        for task in tasks {
            found.push(self.task(namespace, *task).await?);
        }
        Ok(found)
    }

    /// Tasks, newest first. `now` decides between statuses that depend on the clock.
    async fn tasks(
        &self,
        namespace: &str,
        filter: TaskFilter,
        page: Page,
        now: Time,
    ) -> Result<Paged<TaskRecord>, StoreError>;

    /// The attempts of a task, first to last, the present one included.
    async fn executions(&self, namespace: &str, task: TaskId) -> Result<Vec<Execution>, StoreError>;

    /// Ended attempts of all tasks, newest task first.
    async fn all_executions(&self, namespace: &str, page: Page) -> Result<Paged<Execution>, StoreError>;

    /// The history of a task, oldest first.
    async fn events(&self, namespace: &str, task: TaskId) -> Result<Vec<TaskEvent>, StoreError>;

    /// Log lines of a task after `after`, oldest first, at most `limit`.
    async fn logs(&self, namespace: &str, task: TaskId, after: u64, limit: usize) -> Result<Vec<LogEntry>, StoreError>;

    /// Unfinished and finished tasks that depend on this one.
    async fn dependants(&self, namespace: &str, task: TaskId) -> Result<Vec<TaskId>, StoreError>;

    /// Unread signals of a task, oldest first.
    async fn inbox(&self, task: TaskId) -> Result<Vec<Signal>, StoreError>;

    /// Results of the durable steps that a task has finished.
    async fn steps(&self, task: TaskId) -> Result<Vec<(Name, Json)>, StoreError>;

    /// Which tasks of a key are leased now, oldest first; at most [`PER_KEY_MAX`](crate::queue::PER_KEY_MAX).
    async fn key_holders(&self, namespace: &str, key: &str) -> Result<Vec<TaskId>, StoreError>;

    /// Gives a queue settings, and makes it where nobody put it yet. With `expected_version` only when it is at that
    /// version, 0 for a queue that nobody put. The present settings once more change nothing.
    async fn put_queue(
        &self,
        call: &Call,
        queue: Name,
        settings: QueueSettings,
        expected_version: Option<u64>,
    ) -> Result<QueueRecord, StoreError>;

    /// Carries out a command on a queue, and makes it where nobody put it yet. A queue that is as asked already stays as
    /// it is.
    async fn command_queue(&self, call: &Call, queue: Name, command: QueueCommand) -> Result<QueueRecord, StoreError>;

    /// Takes a queue's settings away. Refused while it holds unfinished tasks.
    async fn delete_queue(&self, call: &Call, queue: Name) -> Result<(), StoreError>;

    /// The queues that somebody put, by name, at most [`QUEUES_MAX`].
    async fn queues(&self, namespace: &str) -> Result<Vec<QueueRecord>, StoreError>;

    /// Registers an agent, or changes what is registered, and notes that it is heard. The present settings once more
    /// change nothing else.
    async fn put_agent(&self, call: &Call, agent: Name, settings: AgentSettings) -> Result<AgentRecord, StoreError>;

    /// Carries out a command on an agent. One that is as asked already stays as it is.
    async fn command_agent(&self, call: &Call, agent: Name, command: AgentCommand) -> Result<AgentRecord, StoreError>;

    /// Forgets an agent; the leases of its session end as if they had run out.
    async fn delete_agent(&self, call: &Call, agent: Name) -> Result<(), StoreError>;

    /// Opens a session of an agent, or goes on with the present one. The leases of a session that it replaces end: its
    /// process is taken to have died.
    async fn open_session(&self, call: &Call, agent: Name, session: NodeId) -> Result<AgentRecord, StoreError>;

    /// Closes a session: its leases are given back without spending an attempt.
    async fn close_session(&self, call: &Call, agent: Name, session: NodeId) -> Result<(), StoreError>;

    /// Notes that an agent is heard; a claim notes it too. Refused for a session that is not the present one. Not
    /// acknowledged as durable.
    async fn beat_agent(&self, call: &Call, agent: Name, session: Option<NodeId>) -> Result<AgentRecord, StoreError>;

    /// The agents of a namespace, by name, at most [`AGENTS_MAX`].
    async fn agents(&self, namespace: &str) -> Result<Vec<AgentRecord>, StoreError>;

    /// Makes a circuit breaker, or gives it other settings; with `expected_version` only when it is at that version, 0 for
    /// one that is not there.
    async fn put_breaker(
        &self,
        call: &Call,
        breaker: Name,
        settings: BreakerSettings,
        expected_version: Option<u64>,
    ) -> Result<BreakerRecord, StoreError>;

    /// Carries out a command on a breaker. One that is as asked already stays as it is.
    async fn command_breaker(
        &self,
        call: &Call,
        breaker: Name,
        command: BreakerCommand,
    ) -> Result<BreakerRecord, StoreError>;

    /// Removes a breaker; what it held up starts.
    async fn delete_breaker(&self, call: &Call, breaker: Name) -> Result<(), StoreError>;

    /// The breakers of a namespace, by name, at most [`BREAKERS_MAX`].
    async fn breakers(&self, namespace: &str) -> Result<Vec<BreakerRecord>, StoreError>;

    /// Counts by queue and status.
    async fn counts(&self, namespace: &str, now: Time) -> Result<Counts, StoreError>;

    /// Removes finished tasks that are past their retention, at most `limit` a pass. A task with unfinished dependants
    /// stays. Expired unique and idempotency keys go too.
    async fn prune(&self, retention: Retention, now: Time, limit: usize) -> Result<Pruned, StoreError>;

    /// Checks every invariant; changes nothing.
    async fn verify(&self) -> Result<Verified, StoreError>;

    /// Figures about the store.
    async fn stats(&self) -> Result<StoreStats, StoreError>;

    /// Writes a consistent copy to a new file while work goes on.
    async fn backup(&self, to: &Path) -> Result<(), StoreError>;

    /// True for a store with an intake: a table where other programs leave tasks within transactions of their own.
    fn has_intake(&self) -> bool {
        false
    }

    /// Admits rows of the intake in the order of their numbers: what `judge` answers for one is enqueued, and the row
    /// goes, both in one transaction; what it refuses, or the store does, stays with the reason.
    async fn admit(&self, request: AdmitRequest, now: Time, judge: Judge<'_>) -> Result<Admitted, StoreError> {
        let _ = (request, now, judge);
        Ok(Admitted::default())
    }

    /// The rows of the intake that ask for tasks in a namespace, newest first.
    async fn intake(
        &self,
        namespace: &str,
        status: Option<IntakeStatus>,
        page: Page,
    ) -> Result<Paged<IntakeRecord>, StoreError> {
        let _ = (namespace, status, page);
        Ok(Paged {
            items: Vec::new(),
            next: None,
        })
    }

    /// Has a rejected row of the intake looked at again, with another text where one is given. False when there is no such
    /// row in the namespace; a row that waits goes on waiting.
    ///
    /// Refused with [`StoreError::Conflict`] where a row that waits would get another text.
    async fn retry_intake(&self, call: &Call, id: i64, task: Option<Json>) -> Result<bool, StoreError> {
        let _ = (call, id, task);
        Ok(false)
    }

    /// Removes a row of the intake, so that it is never admitted. False when there is no such row in the namespace.
    async fn delete_intake(&self, call: &Call, id: i64) -> Result<bool, StoreError> {
        let _ = (call, id);
        Ok(false)
    }

    /// A page of everything that the store keeps, to be imported elsewhere: tasks by row, then idempotency keys. At most
    /// `limit` of each, and no more once the page weighs [`PARCEL_BYTES`](crate::dossier::PARCEL_BYTES).
    ///
    /// Refused with [`StoreError::Conflict`] while a task is running. Pages belong together only as long as nothing
    /// changes between them.
    async fn export(&self, from: Bookmark, limit: usize, now: Time) -> Result<Parcel, StoreError> {
        let _ = (from, limit, now);
        Err(StoreError::Unavailable(
            "this kind of store cannot be copied from".to_owned(),
        ))
    }

    /// Takes what another store exported: ids with their rows, sequence numbers, versions and times stay as they are,
    /// and what comes later goes on counting behind them. What is carried in takes part in everything at once: a page is
    /// one transaction.
    ///
    /// Refused with [`StoreError::Conflict`] by a store that holds something of its own.
    async fn import(&self, step: Import, now: Time) -> Result<(), StoreError> {
        let _ = (step, now);
        Err(StoreError::Unavailable(
            "this kind of store cannot be copied to".to_owned(),
        ))
    }

    /// Writes out what is pending and lets go of the files. Later calls answer [`StoreError::Closed`].
    async fn close(&self) -> Result<(), StoreError>;
}
