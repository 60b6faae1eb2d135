//! What goes wrong: in a handler ([`TaskError`]), and between the caller and the engine ([`Error`]).

use std::any::Any;
use std::time::Duration;

use pensum_core::input::Invalid;
use pensum_core::store::Rejected;
use pensum_core::{ErrorInfo, Outcome, StoreError, TaskId};
use pensum_engine::EngineError;

/// Why a handler failed, and what should follow.
///
/// Every error that implements [`std::error::Error`] converts with `?` into one that is retried by the task's policy.
#[derive(Debug)]
pub struct TaskError {
    info: ErrorInfo,
    next: Next,
}

#[derive(Debug)]
enum Next {
    Policy,
    After(Duration),
    Never,
}

impl TaskError {
    /// Another attempt may mend it: retried after the delay of the task's policy, while retries are left.
    pub fn retry(message: impl Into<String>) -> TaskError {
        TaskError {
            info: ErrorInfo::new("error", message),
            next: Next::Policy,
        }
    }

    /// Retried after this delay instead of the policy's.
    pub fn retry_after(message: impl Into<String>, delay: Duration) -> TaskError {
        TaskError {
            info: ErrorInfo::new("error", message),
            next: Next::After(delay),
        }
    }

    /// No further attempt can mend it: the task fails now.
    pub fn fatal(message: impl Into<String>) -> TaskError {
        TaskError {
            info: ErrorInfo::new("error", message),
            next: Next::Never,
        }
    }

    /// Gives the error a machine-readable kind, shown as `error.type`.
    pub fn kind(mut self, kind: impl Into<String>) -> TaskError {
        self.info.kind = kind.into();
        self
    }

    pub(crate) fn outcome(self) -> Outcome {
        match self.next {
            Next::Policy => Outcome::Retry {
                error: self.info,
                after: None,
            },
            Next::After(delay) => Outcome::Retry {
                error: self.info,
                after: Some(delay),
            },
            Next::Never => Outcome::Fail(self.info),
        }
    }
}

impl<E: std::error::Error + 'static> From<E> for TaskError {
    fn from(error: E) -> TaskError {
        // The engine's own errors keep their kind.
        if let Some(info) = (&error as &dyn Any).downcast_ref::<ErrorInfo>() {
            return TaskError {
                info: info.clone(),
                next: Next::Policy,
            };
        }
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        TaskError::retry(message)
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The task as given cannot be accepted.
    #[error("{0}")]
    Invalid(#[from] Invalid),
    /// The parameters or a result cannot be written as JSON, or read as the type that was asked for.
    #[error("{what} cannot be converted: {source}")]
    Json {
        /// What was converted.
        what: String,
        /// What serde says.
        source: serde_json::Error,
    },
    /// The store refused it; nothing was changed.
    #[error(transparent)]
    Rejected(Rejected),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No such task.
    #[error("there is no task {0}")]
    NotFound(TaskId),
    /// The wait was longer than allowed.
    #[error("task {0} has not ended in time")]
    WaitTimeout(TaskId),
    /// The task ended without a result.
    #[error("task {task} {state}: {error}")]
    Ended {
        /// Which task.
        task: TaskId,
        /// `failed` or `cancelled`.
        state: pensum_core::State,
        /// Why.
        error: ErrorInfo,
    },
}

impl Error {
    pub(crate) fn of(error: EngineError, task: TaskId) -> Error {
        match error {
            EngineError::WaitTimeout => Error::WaitTimeout(task),
            other => other.into(),
        }
    }
}
