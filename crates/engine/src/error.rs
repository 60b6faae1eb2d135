//! Why a verb of the engine failed.

use pensum_core::id::clip;
use pensum_core::input::Invalid;
use pensum_core::{Name, Rejected, StoreError, TaskId};

/// Why the engine refused, or could not do, what was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// The store refused it; nothing was changed.
    #[error(transparent)]
    Rejected(Rejected),
    /// The input is wrong; nothing was changed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The store could not do it.
    #[error(transparent)]
    Store(StoreError),
    /// The task had not ended when the time to wait was over.
    #[error("the task has not ended yet; wait again or longer")]
    WaitTimeout,
    /// No such task.
    #[error("there is no task {0}")]
    NotFound(TaskId),
    /// Nobody put a queue of this name, and no task is in one.
    #[error("there is no queue `{}`; {}", clip(queue), those(known))]
    NoQueue {
        /// The name.
        queue: Name,
        /// The queues that there are, the first ones of many.
        known: Vec<String>,
    },
}

impl From<StoreError> for EngineError {
    fn from(error: StoreError) -> EngineError {
        match error {
            StoreError::Rejected(rejected) => rejected.into(),
            error => EngineError::Store(error),
        }
    }
}

impl From<Rejected> for EngineError {
    fn from(rejected: Rejected) -> EngineError {
        match rejected {
            Rejected::NotFound(task) => EngineError::NotFound(task),
            rejected => EngineError::Rejected(rejected),
        }
    }
}

fn those(known: &[String]) -> String {
    match known.is_empty() {
        true => "there are none yet".to_owned(),
        false => format!("there are {}", known.join(", ")),
    }
}
