//! What can be asked of a store: filters, pages, counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Name, Priority, Status, TaskId, Time};

/// How many items a list answers when it is not told.
pub const PAGE_DEFAULT: usize = 50;
/// How many items a list answers at most.
pub const PAGE_MAX: usize = 200;

/// Which tasks: every given field must match. Empty matches all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::IntoParams, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct TaskFilter {
    /// Any of these statuses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub status: Vec<Status>,
    /// In this queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    #[schema(value_type = Option<String>)]
    pub queue: Option<Name>,
    /// Run by this handler.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    #[schema(value_type = Option<String>)]
    pub handler: Option<Name>,
    /// Of this type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_type: Option<String>,
    /// Of this priority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Assigned to this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assigned_to: Option<String>,
    /// Meant for this agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// Created by this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// With this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    #[schema(value_type = Option<String>)]
    pub key: Option<Name>,
    /// With this tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Of this workflow.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    #[schema(value_type = Option<String>)]
    pub workflow_id: Option<TaskId>,
    /// Children of this task.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    #[schema(value_type = Option<String>)]
    pub parent_id: Option<TaskId>,
    /// Created at or after.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    #[schema(value_type = Option<String>)]
    pub created_after: Option<Time>,
    /// Created before.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    #[schema(value_type = Option<String>)]
    pub created_before: Option<Time>,
    /// In the dead-letter queue (true), or not (false).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_lettered: Option<bool>,
    /// This text is part of the name, description or handler, whatever the case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub q: Option<String>,
}

/// Which part of a list. Lists run from the newest task to the oldest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// How many items, 1 to [`PAGE_MAX`].
    pub limit: usize,
    /// Go on after the task of this row number, as [`TaskPage::next`] gave it.
    pub before_row: Option<i64>,
}

impl Default for Page {
    fn default() -> Page {
        Page {
            limit: PAGE_DEFAULT,
            before_row: None,
        }
    }
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Paged<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next page starts; `None` at the end. A page that examined its bound of rows without filling up
    /// gives one too, so a list of rare matches may have short pages before its end.
    pub next: Option<i64>,
}

/// How many tasks there are, by queue and status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// By queue.
    pub queues: BTreeMap<String, StatusCounts>,
    /// Attempts that have ended.
    pub executions: u64,
    /// Failed tasks in the dead-letter queue.
    pub dead_letters: u64,
}

impl Counts {
    /// Over all queues.
    pub fn total(&self) -> StatusCounts {
        let mut total = StatusCounts::default();
        for counts in self.queues.values() {
            for status in Status::ALL {
                *total.of_mut(status) += counts.of(status);
            }
        }
        total
    }
}

/// How many tasks have each status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the fields are the eight statuses")]
pub struct StatusCounts {
    pub pending: u64,
    pub ready: u64,
    pub running: u64,
    pub completed: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub paused: u64,
    pub retrying: u64,
}

impl StatusCounts {
    /// The count of one status.
    pub const fn of(&self, status: Status) -> u64 {
        match status {
            Status::Pending => self.pending,
            Status::Ready => self.ready,
            Status::Running => self.running,
            Status::Completed => self.completed,
            Status::Failed => self.failed,
            Status::Cancelled => self.cancelled,
            Status::Paused => self.paused,
            Status::Retrying => self.retrying,
        }
    }

    /// The count of one status, to change it.
    pub const fn of_mut(&mut self, status: Status) -> &mut u64 {
        match status {
            Status::Pending => &mut self.pending,
            Status::Ready => &mut self.ready,
            Status::Running => &mut self.running,
            Status::Completed => &mut self.completed,
            Status::Failed => &mut self.failed,
            Status::Cancelled => &mut self.cancelled,
            Status::Paused => &mut self.paused,
            Status::Retrying => &mut self.retrying,
        }
    }

    /// All tasks.
    pub fn sum(&self) -> u64 {
        Status::ALL.into_iter().map(|s| self.of(s)).sum()
    }

    /// Tasks that have not ended.
    pub const fn unfinished(&self) -> u64 {
        self.pending + self.ready + self.running + self.paused + self.retrying
    }
}
