//! The library that users write against.

mod error;
mod pensum;
mod task;
mod typed;

pub use error::{Error, TaskError};
pub(crate) use pensum::result_of;
pub use pensum::{Builder, Pensum};
pub use task::{Batch, ItemRef, Task};
pub(crate) use typed::Typed;
