//! The library that users write against.

mod error;
mod outbox;
mod pensum;
mod queues;
mod task;
mod typed;

pub use error::{Error, TaskError};
pub use outbox::Outbox;
pub(crate) use pensum::result_of;
pub use pensum::{Builder, Pensum};
pub use task::{Batch, ItemRef, Task};
pub(crate) use typed::Typed;
