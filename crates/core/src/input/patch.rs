//! A change to a task.

use serde::{Deserialize, Deserializer, Serialize};

use super::check::Check;
use super::parse::{Invalid, optional_object};
use super::{DESCRIPTION_MAX, TITLE_MAX};
use crate::task::{Details, Lifecycle, Spec};
use crate::time::Span;
use crate::{Json, Priority, RetryPolicy, State, Time};

/// A change to a task. Absent fields stay; `null` clears a field that may be absent.
///
/// Names, description, metadata, tags and `assigned_to` may change at any time; priority, deadline, timeouts and
/// retries while the task has not ended (a running attempt keeps its own timeout); parameters and execution context
/// while it is queued, and after it failed or was cancelled, so that it can be retried with others; queue and start time
/// while it is queued.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the fields are those of the task")]
pub struct Patch {
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub name: Option<Option<String>>,
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub description: Option<Option<String>>,
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub assigned_to: Option<Option<String>>,
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub deadline: Option<Option<Time>>,
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub expires_at: Option<Option<Time>>,
    #[schema(value_type = Option<serde_json::Value>)]
    pub metadata: Option<Json>,
    pub tags: Option<Vec<String>>,
    #[schema(value_type = Option<String>)]
    pub priority: Option<Priority>,
    #[schema(value_type = Option<f64>)]
    pub timeout: Option<Span>,
    pub max_retries: Option<u32>,
    #[serde(deserialize_with = "optional_object")]
    #[schema(value_type = Option<Object>)]
    pub retry: Option<RetryPolicy>,
    #[schema(value_type = Option<serde_json::Value>)]
    pub parameters: Option<Json>,
    #[schema(value_type = Option<serde_json::Value>)]
    pub execution_context: Option<Json>,
    pub queue: Option<String>,
    #[schema(value_type = Option<String>)]
    pub run_at: Option<Time>,
    #[schema(value_type = Option<f64>)]
    pub delay: Option<Span>,
}

fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

impl Patch {
    /// What is wrong with the values themselves.
    ///
    /// # Errors
    /// Every problem, by path.
    pub fn check(&self, now: Time) -> Result<(), Invalid> {
        let mut check = Check::default();
        check.text("name", self.name.as_ref().and_then(|n| n.as_deref()), TITLE_MAX);
        check.text(
            "description",
            self.description.as_ref().and_then(|d| d.as_deref()),
            DESCRIPTION_MAX,
        );
        check.label("assigned_to", self.assigned_to.as_ref().and_then(|a| a.as_deref()));
        for (path, time) in [
            ("deadline", self.deadline.flatten()),
            ("expires_at", self.expires_at.flatten()),
            ("run_at", self.run_at),
        ] {
            if let Some(time) = time {
                check.sane_time(path, time, now);
            }
        }
        check.json("metadata", self.metadata.as_ref());
        check.json("parameters", self.parameters.as_ref());
        check.json("execution_context", self.execution_context.as_ref());
        check.labels("tags", self.tags.as_deref().unwrap_or_default());
        check.retries(self.max_retries);
        if let Some(retry) = &self.retry {
            check.retry(retry);
        }
        if let Some(queue) = &self.queue {
            check.queue("queue", queue);
        }
        if self.run_at.is_some() && self.delay.is_some() {
            check.fail("delay", "cannot stand beside run_at; give one of them");
        }
        check.done()
    }

    /// Why a task in this state cannot take the change, if so.
    pub fn refusal(&self, task: &Lifecycle) -> Option<&'static str> {
        let scheduling = self.priority.is_some()
            || self.deadline.is_some()
            || self.expires_at.is_some()
            || self.timeout.is_some()
            || self.max_retries.is_some()
            || self.retry.is_some();
        let content = self.parameters.is_some() || self.execution_context.is_some();
        let place = self.queue.is_some() || self.run_at.is_some() || self.delay.is_some();
        match task.state {
            State::Queued => None,
            State::Running | State::Waiting if content || place => {
                Some("it is running; parameters, execution_context, queue and start time change only while queued")
            }
            State::Running | State::Waiting => None,
            State::Completed if scheduling || content || place => {
                Some("it has completed; only name, description, metadata, tags and assigned_to can change")
            }
            State::Failed | State::Cancelled if scheduling || place => Some(
                "it has ended; only name, description, metadata, tags, assigned_to, parameters and execution_context can \
                 change until it is retried",
            ),
            State::Completed | State::Failed | State::Cancelled => None,
        }
    }

    /// The new start time, where the change has one.
    pub fn start(&self, now: Time) -> Option<Time> {
        self.run_at.or_else(|| self.delay.map(|d| now.plus(d.0)))
    }

    /// Carries the change into the spec.
    pub fn apply_to(&self, spec: &mut Spec) {
        if let Some(priority) = self.priority {
            spec.priority = priority;
        }
        if let Some(deadline) = self.deadline {
            spec.deadline = deadline;
        }
        if let Some(timeout) = self.timeout {
            spec.timeout = Some(timeout.0);
        }
        if self.max_retries.is_some() {
            spec.max_retries = self.max_retries;
        }
        if let Some(parameters) = &self.parameters {
            spec.parameters = parameters.clone();
        }
        if let Some(queue) = &self.queue {
            spec.queue = queue.as_str().into();
        }
        let mut details = spec.details.take().map(|d| *d).unwrap_or_default();
        if let Some(name) = &self.name {
            details.name.clone_from(name);
        }
        if let Some(description) = &self.description {
            details.description.clone_from(description);
        }
        if let Some(assigned_to) = &self.assigned_to {
            details.assigned_to.clone_from(assigned_to);
        }
        if let Some(expires_at) = self.expires_at {
            details.expires_at = expires_at;
        }
        if let Some(metadata) = &self.metadata {
            details.metadata = Some(metadata.clone());
        }
        if let Some(context) = &self.execution_context {
            details.execution_context = Some(context.clone());
        }
        if let Some(tags) = &self.tags {
            details.tags.clone_from(tags);
        }
        if self.retry.is_some() {
            details.retry = self.retry;
        }
        spec.details = (details != Details::default()).then(|| Box::new(details));
    }
}
