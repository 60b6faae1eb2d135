//! The task: what was asked for ([`Spec`]), and where it is ([`Lifecycle`]).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::outcome::{ErrorInfo, Progress, Usage};
use crate::time::Span;
use crate::transition::Refusal;
use crate::{Json, LeaseId, Name, NodeId, Priority, RetryPolicy, State, TaskId, Time, WaitingFor};

/// The longest a task may run when it does not say otherwise.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);
/// How many retries a task has when it does not say otherwise.
pub const MAX_RETRIES_DEFAULT: u32 = 3;

/// What a task asks for: written once at enqueue, untouched by the life cycle.
///
/// What most tasks leave alone is in [`Details`], so that a plain task costs one small allocation and one short row.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// What runs it.
    pub handler: Name,
    /// Where it waits.
    pub queue: Name,
    /// How much it matters.
    pub priority: Priority,
    /// The handler's input.
    pub parameters: Json,
    /// Start to end of one attempt; `None` is [`TIMEOUT_DEFAULT`], zero is no limit.
    pub timeout: Option<Duration>,
    /// How many failures are followed by another attempt; `None` is [`MAX_RETRIES_DEFAULT`].
    pub max_retries: Option<u32>,
    /// Tasks of one key never run at the same time, unless their queues have a `max_concurrent_per_key`.
    pub key: Option<Name>,
    /// When it should be done: orders tasks of one priority.
    pub deadline: Option<Time>,
    /// The rest.
    pub details: Option<Box<Details>>,
}

/// The fields of a task that most tasks leave alone. Stored as one JSON text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the fields are those of the task in docs/tasks.md and carry its names"
)]
pub struct Details {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub execution_context: Option<Json>,
    #[serde(skip_serializing_if = "is_default")]
    pub on_dependency_failure: OnDependencyFailure,
    /// Not started by then: cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Longest from ready to start; over it the task fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_timeout: Option<Span>,
    /// Longest silence (no progress, log or heartbeat) of a running attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_timeout: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_limit: Option<OnLimit>,
    /// How many tokens of its queue's rate a start takes; `None` is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub units: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryPolicy>,
    /// Capabilities that whoever runs the task must offer; empty is `[handler]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assigned_to: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_id: Option<TaskId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workflow_id: Option<TaskId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Enqueued into a queue that was not persistent: users see `durable: false`. Whoever enqueues says it with
    /// [`NewTask::accept_by`].
    #[serde(skip_serializing_if = "is_default")]
    pub volatile: bool,
    /// W3C Trace Context of whoever enqueued the task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// What its author wrote down although it is the default. Not stored: enqueueing uses it up.
    #[serde(skip)]
    pub named: Named,
}

/// Fields that a task names with the value that they have by default, so that its queue's defaults leave them alone. A
/// field with another value needs no such note.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// The queue [`QUEUE_DEFAULT`].
    pub queue: bool,
    /// The priority [`Priority::Normal`].
    pub priority: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What happens to a task when one that it depends on fails or is cancelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDependencyFailure {
    /// It is cancelled too.
    #[default]
    Cancel,
    /// The failed dependency counts as met.
    Ignore,
    /// It runs once all dependencies have ended, and is told which failed: for clean-up and notices.
    Run,
}

impl OnDependencyFailure {
    /// A small number for storage; never renumbered.
    pub const fn code(self) -> i64 {
        match self {
            OnDependencyFailure::Cancel => 0,
            OnDependencyFailure::Ignore => 1,
            OnDependencyFailure::Run => 2,
        }
    }

    /// From storage.
    pub const fn from_code(code: i64) -> Option<OnDependencyFailure> {
        Some(match code {
            0 => OnDependencyFailure::Cancel,
            1 => OnDependencyFailure::Ignore,
            2 => OnDependencyFailure::Run,
            _ => return None,
        })
    }
}

/// What happens at submission when a limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnLimit {
    /// The task waits.
    Wait,
    /// The submission is refused.
    Reject,
}

/// What a task needs of the machine that runs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Processor cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_cores: Option<f64>,
    /// Memory in GB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_gb: Option<f64>,
    /// Disk in GB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_gb: Option<f64>,
    /// GPU memory in GB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_memory_gb: Option<f64>,
}

impl Spec {
    /// A plain task for `handler` with `parameters` in the queue `default`.
    pub fn new(handler: impl Into<Name>, parameters: Json) -> Spec {
        Spec {
            handler: handler.into(),
            queue: Name::from(QUEUE_DEFAULT),
            priority: Priority::Normal,
            parameters,
            timeout: None,
            max_retries: None,
            key: None,
            deadline: None,
            details: None,
        }
    }

    /// The rare fields, made on first use.
    pub fn details_mut(&mut self) -> &mut Details {
        self.details.get_or_insert_with(Box::default)
    }

    /// Longest run of one attempt; `None` when there is no limit.
    pub fn timeout(&self) -> Option<Duration> {
        match self.timeout {
            None => Some(TIMEOUT_DEFAULT),
            Some(Duration::ZERO) => None,
            some => some,
        }
    }

    /// How many failures are followed by another attempt.
    pub fn max_retries(&self) -> u32 {
        self.max_retries.unwrap_or(MAX_RETRIES_DEFAULT)
    }

    /// The delay policy between attempts.
    pub fn retry(&self) -> RetryPolicy {
        self.details.as_ref().and_then(|d| d.retry).unwrap_or_default()
    }

    /// Longest silence of a running attempt.
    pub fn heartbeat_timeout(&self) -> Option<Duration> {
        self.details.as_ref().and_then(|d| d.heartbeat_timeout).map(|s| s.0)
    }

    /// Longest wait from ready to start.
    pub fn queue_timeout(&self) -> Option<Duration> {
        self.details.as_ref().and_then(|d| d.queue_timeout).map(|s| s.0)
    }

    /// The moment after which it must not start any more.
    pub fn expires_at(&self) -> Option<Time> {
        self.details.as_ref().and_then(|d| d.expires_at)
    }

    /// False for a task that need not survive the process which accepted it.
    pub fn is_durable(&self) -> bool {
        self.details.as_ref().is_none_or(|d| !d.volatile)
    }

    /// Who answers for the task when a process revives it from this state; a durable one needs nobody.
    ///
    /// # Errors
    /// Where a task that is not durable would be nobody's.
    pub fn accepted_again(&self, state: State, process: Option<NodeId>) -> Result<Option<NodeId>, Refusal> {
        let is_revived = matches!(state, State::Failed | State::Cancelled) && !self.is_durable();
        match (is_revived, process) {
            (false, _) => Ok(None),
            (true, Some(process)) => Ok(Some(process)),
            (true, None) => Err(Refusal::Forbidden(
                "it is not durable, and no process here would answer for it; retry it through a running node",
            )),
        }
    }

    /// How many tokens of its queue's rate a start takes.
    pub fn units(&self) -> u32 {
        self.details.as_ref().and_then(|d| d.units).unwrap_or(1).max(1)
    }

    /// What happens at submission when its queue is at a limit.
    pub fn on_limit(&self) -> OnLimit {
        self.details.as_ref().and_then(|d| d.on_limit).unwrap_or(OnLimit::Wait)
    }

    /// The name that people see: the given one, else the handler.
    pub fn display_name(&self) -> &str {
        self.details
            .as_ref()
            .and_then(|d| d.name.as_deref())
            .unwrap_or(&self.handler)
    }
}

/// Most units of one task.
pub const UNITS_MAX: u32 = 1_000_000;
/// The queue of tasks that name none.
pub const QUEUE_DEFAULT: &str = "default";

/// A task to enqueue: validated, its references resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct NewTask {
    /// What it asks for.
    pub spec: Spec,
    /// Not before this time; `None` is at once.
    pub run_at: Option<Time>,
    /// What must end first.
    pub depends_on: SmallVec<[Dependency; 2]>,
    /// At most one unfinished task per key.
    pub unique: Option<Box<Unique>>,
    /// Not durable: the process with whose end it is cancelled.
    pub accepted_by: Option<NodeId>,
}

impl NewTask {
    /// A task that may start at once.
    pub fn new(spec: Spec) -> NewTask {
        NewTask {
            spec,
            run_at: None,
            depends_on: SmallVec::new(),
            unique: None,
            accepted_by: None,
        }
    }

    /// Makes it a task that is not durable: it ends with this process at the latest.
    pub fn accept_by(&mut self, process: NodeId) {
        self.accepted_by = Some(process);
        self.spec.details_mut().volatile = true;
    }

    /// True when no promise is broken by losing this task in a power cut, and nothing that is durable would be changed by
    /// adding it. (A replaced task may be durable.)
    pub fn is_volatile(&self) -> bool {
        let replaces = |unique: &Unique| unique.on_conflict == OnConflict::Replace;
        self.accepted_by.is_some() && !self.unique.as_deref().is_some_and(replaces)
    }
}

/// A dependency of a task to enqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dependency {
    /// On a task that the store has.
    Task(TaskId),
    /// On another item of the same batch, by its index.
    Item(usize),
}

/// "Only one of these": scoped to the namespace and the handler.
#[derive(Clone, Debug, PartialEq)]
pub struct Unique {
    /// The key.
    pub key: Name,
    /// How long the key is held, from enqueue; `None`: until the task ends. With a time to live the key outlasts the
    /// task's end, and does not outlast the time.
    pub ttl: Option<Duration>,
    /// What a second submission gets.
    pub on_conflict: OnConflict,
}

/// What a submission gets when its unique key is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnConflict {
    /// The id of the task that has the key; nothing is enqueued.
    #[default]
    Keep,
    /// The unstarted task that has the key is replaced by the new one; a started one is kept.
    Replace,
    /// A refusal that names the task.
    Reject,
}

/// Where a task is: the scheduling columns, all that [`crate::apply`] reads and writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Lifecycle {
    /// Stored state.
    pub state: State,
    /// What it waits for, where it does.
    pub waiting_for: Option<WaitingFor>,
    /// Not claimed before.
    pub run_at: Time,
    /// State waiting: when the wait ends by itself.
    pub wake_at: Option<Time>,
    /// State waiting for a signal: its name.
    pub signal: Option<Name>,
    /// The attempt that runs or ran last; 0 before the first start.
    pub attempt: u32,
    /// The next claim goes on with `attempt` instead of counting a new one: after a wait, a yield, or a release.
    pub same_attempt: bool,
    /// Attempts that failed so far; users see it as `retry_count`.
    pub failures: u32,
    /// `run_at` is the delay after a failure.
    pub backing_off: bool,
    /// Node crashes that were charged to this task, counted only while it ran alone.
    pub crashes: u32,
    /// Suspected of killing its node: runs alone next time.
    pub suspect: bool,
    /// Dependencies that have not ended.
    pub unmet: u32,
    /// What a failed dependency does.
    pub on_dependency_failure: OnDependencyFailure,
    /// When it last became claimable.
    pub ready_at: Option<Time>,
    /// When the present or last attempt started.
    pub started_at: Option<Time>,
    /// When it ended.
    pub finished_at: Option<Time>,
    /// Held back since.
    pub paused_at: Option<Time>,
    /// A cancel was asked for while it ran.
    pub cancel_requested_at: Option<Time>,
    /// A pause was asked for while it ran.
    pub pause_requested_at: Option<Time>,
    /// Failed, and in the dead-letter queue since.
    pub dead_lettered_at: Option<Time>,
    /// The fence, while it runs.
    pub lease: Option<Lease>,
    /// Not durable and not ended: the process with whose end it is cancelled.
    pub accepted_by: Option<NodeId>,
}

impl Lifecycle {
    /// A task that may be claimed from `run_at` on, once `unmet` dependencies have ended.
    pub fn new(now: Time, run_at: Option<Time>, unmet: u32, on_dependency_failure: OnDependencyFailure) -> Lifecycle {
        let run_at = run_at.unwrap_or(now).max(now);
        Lifecycle {
            state: State::Queued,
            waiting_for: (unmet > 0).then_some(WaitingFor::Dependencies),
            run_at,
            wake_at: None,
            signal: None,
            attempt: 0,
            same_attempt: false,
            failures: 0,
            backing_off: false,
            crashes: 0,
            suspect: false,
            unmet,
            on_dependency_failure,
            ready_at: (unmet == 0 && run_at <= now).then_some(now),
            started_at: None,
            finished_at: None,
            paused_at: None,
            cancel_requested_at: None,
            pause_requested_at: None,
            dead_lettered_at: None,
            lease: None,
            accepted_by: None,
        }
    }

    /// Since when a waiting task could have been claimed, or will be.
    pub fn ready_from(&self) -> Time {
        self.ready_at.unwrap_or(self.run_at)
    }

    /// True when a claim may take it at `now`, keys and lanes aside.
    pub fn is_claimable(&self, now: Time) -> bool {
        self.state == State::Queued && self.waiting_for.is_none() && self.paused_at.is_none() && self.run_at <= now
    }

    /// When a claim that was made at `now` starts it: the clock of a claimer may be behind that of whoever made it ready, or
    /// have been read before.
    pub fn starts_at(&self, now: Time) -> Time {
        self.ready_at.map_or(now, |ready_at| ready_at.max(now))
    }

    /// The number that a claim gives to the attempt it starts.
    pub fn next_attempt(&self) -> u32 {
        if self.same_attempt {
            self.attempt.max(1)
        } else {
            self.attempt + 1
        }
    }

    /// True once an attempt has started.
    pub fn has_started(&self) -> bool {
        self.attempt > 0 || self.state == State::Running
    }
}

/// Who holds a running task, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The fence.
    pub id: LeaseId,
    /// Who holds it.
    pub node: NodeId,
    /// When it ends unless renewed.
    pub expires_at: Time,
}

/// A task as the store has it.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskRecord {
    /// Its identity.
    pub id: TaskId,
    /// When it was enqueued.
    pub created_at: Time,
    /// What it asks for.
    pub spec: Spec,
    /// Where it is.
    pub lifecycle: Lifecycle,
    /// How far it says it is.
    pub progress: Option<Progress>,
    /// Result of a completed task.
    pub result: Option<Json>,
    /// Error of the last failed attempt, or why it was cancelled.
    pub error: Option<ErrorInfo>,
    /// What it depends on.
    pub depends_on: Vec<TaskId>,
    /// Grows with each change that users can see, for conditional updates.
    pub version: u64,
}

/// One attempt of one task.
#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    /// The task.
    pub task: TaskId,
    /// From 1.
    pub attempt: u32,
    /// Which node or agent ran it.
    pub executor_id: String,
    /// How it stands.
    pub status: ExecutionStatus,
    /// When it started.
    pub started_at: Time,
    /// When it ended.
    pub finished_at: Option<Time>,
    /// What it used.
    pub usage: Usage,
    /// Its result.
    pub result: Option<Json>,
    /// Its error.
    pub error: Option<ErrorInfo>,
}

/// How an attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExecutionStatus {
    /// Runs, or waits between two runs of the same attempt.
    Running,
    /// Ended well.
    Completed,
    /// Ended with an error.
    Failed,
    /// Stopped on request.
    Cancelled,
    /// Its node died; not a failure of the task.
    Crashed,
}

impl ExecutionStatus {
    /// A small number for storage; never renumbered.
    pub const fn code(self) -> i64 {
        match self {
            ExecutionStatus::Running => 1,
            ExecutionStatus::Completed => 3,
            ExecutionStatus::Failed => 4,
            ExecutionStatus::Cancelled => 5,
            ExecutionStatus::Crashed => 6,
        }
    }

    /// From storage.
    pub const fn from_code(code: i64) -> Option<ExecutionStatus> {
        Some(match code {
            1 => ExecutionStatus::Running,
            3 => ExecutionStatus::Completed,
            4 => ExecutionStatus::Failed,
            5 => ExecutionStatus::Cancelled,
            6 => ExecutionStatus::Crashed,
            _ => return None,
        })
    }
}

/// Free-form key and value pairs, sorted.
pub type Map = BTreeMap<String, Json>;
