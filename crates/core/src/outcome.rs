//! What a handler says when it returns, and what an attempt cost.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::transition::Report;
use crate::{Json, Name, NodeId, RetryPolicy, Time};

/// The whole vocabulary of a handler's answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Finished, with a result.
    Done(Json),
    /// Run me again, after a delay, with this checkpoint; not a failure and not a new attempt.
    Again {
        /// Delay before the next run.
        after: Duration,
        /// State for the next run; `None` keeps the present one.
        checkpoint: Option<Json>,
    },
    /// Wake me when the wait ends; holds no slot meanwhile.
    Wait {
        /// For what.
        on: Wait,
        /// State for the next run; `None` keeps the present one.
        checkpoint: Option<Json>,
    },
    /// Paused, as was requested; goes on from this checkpoint when resumed.
    Yielded {
        /// State for the next run; `None` keeps the present one.
        checkpoint: Option<Json>,
    },
    /// Failed in a way that another attempt may mend.
    Retry {
        /// What went wrong.
        error: ErrorInfo,
        /// The handler's own choice of delay; `None` follows the task's policy.
        after: Option<Duration>,
    },
    /// Failed for good: no further attempt.
    Fail(ErrorInfo),
    /// Stopped, as was requested.
    Cancelled,
    /// Given back unfinished because the node shuts down: costs no attempt.
    Released,
}

/// What an outcome says: to the life cycle, and into the record.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// What the holder of the lease reports.
    pub report: Report,
    /// The result of a task that finished.
    pub result: Option<Json>,
    /// What went wrong.
    pub error: Option<ErrorInfo>,
    /// The checkpoint to keep; `None` keeps the present one.
    pub checkpoint: Option<Json>,
}

impl Outcome {
    /// What this outcome says of a task that has failed `failures` times and may be retried `max_retries` times, by the
    /// policy `retry` and a draw from `[0, 1)` for its jitter. `met`: what it wants to wait for is there already.
    pub fn said(self, failures: u32, max_retries: u32, retry: RetryPolicy, draw: f64, now: Time, met: bool) -> Said {
        let mut said = Said {
            report: Report::Done,
            result: None,
            error: None,
            checkpoint: None,
        };
        said.report = match self {
            Outcome::Done(result) => {
                said.result = Some(result);
                Report::Done
            }
            Outcome::Again { after, checkpoint } => {
                said.checkpoint = checkpoint;
                Report::Again(now.plus(after))
            }
            Outcome::Wait { on, checkpoint } => {
                said.checkpoint = checkpoint;
                Report::Wait { on, met }
            }
            Outcome::Yielded { checkpoint } => {
                said.checkpoint = checkpoint;
                Report::Yielded
            }
            Outcome::Retry { error, after } => {
                said.error = Some(error);
                let delay = after.unwrap_or_else(|| retry.backoff(failures + 1, draw));
                Report::Failed {
                    retry_after: (failures < max_retries).then_some(delay),
                }
            }
            Outcome::Fail(error) => {
                said.error = Some(error);
                Report::Failed { retry_after: None }
            }
            Outcome::Cancelled => {
                said.error = Some(ErrorInfo::new("cancelled", "its handler stopped"));
                Report::Stopped
            }
            Outcome::Released => Report::Released,
        };
        said
    }
}

/// What a handler waits for.
#[derive(Clone, Debug, PartialEq)]
pub enum Wait {
    /// All its children have ended.
    Children,
    /// A signal of this name is in its inbox, or the time is up.
    Signal {
        /// The signal's name.
        name: Name,
        /// When to give up waiting; the handler then runs and finds no signal.
        until: Option<Time>,
    },
    /// A time.
    Until(Time),
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct ErrorInfo {
    /// A short machine-readable kind, such as `timeout` or `exit_code`; the lists in the documentation name them.
    #[serde(rename = "type")]
    pub kind: String,
    /// A sentence for people.
    pub message: String,
}

/// The largest error message that is kept, in bytes; longer ones are cut.
pub const ERROR_MESSAGE_MAX: usize = 8 * 1024;

impl ErrorInfo {
    /// The error of a run whose agent died.
    pub fn agent_crashed(agent: &str) -> ErrorInfo {
        ErrorInfo::new("crashed_agent", format!("agent `{agent}` died while it ran the task"))
    }

    /// The error of a task that was not durable and whose process is gone.
    pub fn process_ended(process: NodeId) -> ErrorInfo {
        let message = format!("{process}, which accepted it, has ended, and its queue was not persistent");
        ErrorInfo::new("process_ended", message)
    }

    /// An error of a kind with a message, cut to [`ERROR_MESSAGE_MAX`] and freed of NUL characters.
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> ErrorInfo {
        let mut message: String = message.into();
        if message.len() > ERROR_MESSAGE_MAX {
            let mut end = ERROR_MESSAGE_MAX;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
            message.push('…');
        }
        if message.contains('\0') {
            message = message.replace('\0', "\u{FFFD}");
        }
        ErrorInfo {
            kind: kind.into(),
            message,
        }
    }
}

/// What one attempt used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Usage {
    /// Processor time, user and system, children included, in seconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu_seconds: Option<f64>,
    /// `cpu_seconds` ÷ `wall_seconds` × 100.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu_percent: Option<f64>,
    /// The most memory in use at once, in MB (10⁶ bytes).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_mb: Option<f64>,
    /// Read from storage, children included, in MB (10⁶ bytes); what came from caches does not count.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub read_mb: Option<f64>,
    /// Written to storage, children included, in MB (10⁶ bytes).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub written_mb: Option<f64>,
    /// From start to end, in seconds.
    pub wall_seconds: f64,
}

/// How far a running task says it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Progress {
    /// 0 to 100.
    pub percent: f64,
    /// What it is doing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message: Option<String>,
}
