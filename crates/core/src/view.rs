//! Tasks and attempts as users read them.

use serde::Serialize;

use crate::outcome::{ErrorInfo, Progress, Usage};
use crate::task::{Execution, ExecutionStatus, Lifecycle, OnDependencyFailure, OnLimit, Resources, TaskRecord};
use crate::time::Span;
use crate::{Json, Priority, RetryPolicy, Status, TaskId, Time, WaitingFor};

/// A task as it is shown: what was asked for, and where it is.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the fields are those of the task in docs/tasks.md")]
pub struct TaskView {
    #[schema(value_type = String)]
    pub id: TaskId,
    pub name: String,
    pub description: Option<String>,
    pub handler: String,
    pub task_type: String,
    pub status: Status,
    /// What it waits for, where it does.
    pub waiting_for: Option<String>,
    pub queue: String,
    pub priority: Priority,
    #[schema(value_type = serde_json::Value)]
    pub parameters: Json,
    #[schema(value_type = Option<serde_json::Value>)]
    pub metadata: Option<Json>,
    #[schema(value_type = Option<serde_json::Value>)]
    pub execution_context: Option<Json>,
    #[schema(value_type = Vec<String>)]
    pub depends_on: Vec<TaskId>,
    pub on_dependency_failure: OnDependencyFailure,
    #[schema(value_type = Option<String>)]
    pub run_at: Option<Time>,
    #[schema(value_type = Option<String>)]
    pub deadline: Option<Time>,
    #[schema(value_type = Option<String>)]
    pub expires_at: Option<Time>,
    /// Seconds; 0 is no limit.
    #[schema(value_type = f64)]
    pub timeout: Span,
    #[schema(value_type = Option<f64>)]
    pub queue_timeout: Option<Span>,
    #[schema(value_type = Option<f64>)]
    pub heartbeat_timeout: Option<Span>,
    pub max_retries: u32,
    pub on_limit: Option<OnLimit>,
    /// How many tokens of its queue's rate limit a start takes.
    pub units: u32,
    #[schema(value_type = Object)]
    pub retry: RetryPolicy,
    pub key: Option<String>,
    pub requires: Vec<String>,
    pub agent_id: Option<String>,
    pub resources: Option<Resources>,
    pub created_by: Option<String>,
    pub assigned_to: Option<String>,
    pub tags: Vec<String>,
    /// False: accepted by a queue that was not persistent, and cancelled when the process that accepted it ends.
    pub durable: bool,
    pub attempt: u32,
    pub retry_count: u32,
    pub progress: Option<Progress>,
    #[schema(value_type = Option<serde_json::Value>)]
    pub result: Option<Json>,
    pub error: Option<ErrorInfo>,
    #[schema(value_type = String)]
    pub created_at: Time,
    #[schema(value_type = Option<String>)]
    pub ready_at: Option<Time>,
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Time>,
    #[schema(value_type = Option<String>)]
    pub finished_at: Option<Time>,
    #[schema(value_type = Option<String>)]
    pub paused_at: Option<Time>,
    #[schema(value_type = Option<String>)]
    pub cancel_requested_at: Option<Time>,
    #[schema(value_type = Option<String>)]
    pub workflow_id: Option<TaskId>,
    #[schema(value_type = Option<String>)]
    pub parent_id: Option<TaskId>,
    pub schedule: Option<String>,
    #[schema(value_type = Option<String>)]
    pub dead_lettered_at: Option<Time>,
    pub version: u64,
}

impl TaskView {
    /// The view of a record at `now`.
    pub fn of(record: TaskRecord, now: Time) -> TaskView {
        let TaskRecord {
            id,
            created_at,
            spec,
            lifecycle,
            progress,
            result,
            error,
            depends_on,
            version,
        } = record;
        let retry = spec.retry();
        let durable = spec.is_durable();
        let timeout = Span(spec.timeout().unwrap_or_default());
        let max_retries = spec.max_retries();
        let units = spec.units();
        let name = spec.display_name().to_owned();
        let details = spec.details.map(|d| *d).unwrap_or_default();
        TaskView {
            id,
            name,
            description: details.description,
            task_type: details.task_type.unwrap_or_else(|| "custom".to_owned()),
            status: Status::of(&lifecycle, now),
            waiting_for: waiting_for(&lifecycle, now),
            handler: spec.handler.to_string(),
            queue: spec.queue.to_string(),
            priority: spec.priority,
            parameters: spec.parameters,
            metadata: details.metadata,
            execution_context: details.execution_context,
            depends_on,
            on_dependency_failure: details.on_dependency_failure,
            run_at: (!lifecycle.state.is_terminal()).then_some(lifecycle.run_at),
            deadline: spec.deadline,
            expires_at: details.expires_at,
            timeout,
            queue_timeout: details.queue_timeout,
            heartbeat_timeout: details.heartbeat_timeout,
            max_retries,
            on_limit: details.on_limit,
            units,
            retry,
            key: spec.key.map(|k| k.to_string()),
            requires: details.requires.iter().map(ToString::to_string).collect(),
            agent_id: details.agent_id,
            resources: details.resources,
            created_by: details.created_by,
            assigned_to: details.assigned_to,
            tags: details.tags,
            durable,
            attempt: lifecycle.attempt,
            retry_count: lifecycle.failures,
            progress,
            result,
            error,
            created_at,
            // A delayed task becomes ready by the clock alone, without a write that could say so.
            ready_at: lifecycle
                .ready_at
                .or_else(|| (Status::of(&lifecycle, now) == Status::Ready).then_some(lifecycle.run_at)),
            started_at: lifecycle.started_at,
            finished_at: lifecycle.finished_at,
            paused_at: lifecycle.paused_at,
            cancel_requested_at: lifecycle.cancel_requested_at,
            workflow_id: details.workflow_id,
            parent_id: details.parent_id,
            schedule: details.schedule,
            dead_lettered_at: lifecycle.dead_lettered_at,
            version,
        }
    }
}

fn waiting_for(lifecycle: &Lifecycle, now: Time) -> Option<String> {
    match (lifecycle.waiting_for, &lifecycle.signal) {
        (Some(WaitingFor::Signal), Some(name)) => Some(format!("signal:{name}")),
        (Some(what), _) => Some(what.as_str().to_owned()),
        (None, _) if lifecycle.state == crate::State::Queued && lifecycle.run_at > now => Some("time".to_owned()),
        (None, _) => None,
    }
}

/// One attempt as it is shown.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the fields are those of the execution in docs/tasks.md")]
pub struct ExecutionView {
    pub id: String,
    #[schema(value_type = String)]
    pub task_id: TaskId,
    pub attempt: u32,
    pub executor_id: String,
    pub status: ExecutionStatus,
    #[schema(value_type = String)]
    pub started_at: Time,
    #[schema(value_type = Option<String>)]
    pub finished_at: Option<Time>,
    pub resource_usage: Usage,
    #[schema(value_type = Option<serde_json::Value>)]
    pub result: Option<Json>,
    pub error: Option<ErrorInfo>,
    /// Where its log lines are.
    pub logs: String,
}

impl From<Execution> for ExecutionView {
    fn from(execution: Execution) -> ExecutionView {
        let Execution {
            task,
            attempt,
            executor_id,
            status,
            started_at,
            finished_at,
            usage,
            result,
            error,
        } = execution;
        ExecutionView {
            id: crate::ExecutionId { task, attempt }.to_string(),
            task_id: task,
            attempt,
            executor_id,
            status,
            started_at,
            finished_at,
            resource_usage: usage,
            result,
            error,
            logs: format!("/api/v1/tasks/{task}/logs?attempt={attempt}"),
        }
    }
}
