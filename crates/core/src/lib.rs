//! Vocabulary and pure decisions of Pensum.
//!
//! Everything here is a value or a pure function: this crate does no I/O and reads no clock. Time, randomness and
//! spawning enter through [`seam`], and every store verb takes `now`.
//!
//! Start at [`transition::apply`], the one function that decides every state change of a task, and at
//! [`store::Store`], the trait that SQLite, PostgreSQL and the in-memory model implement.

pub mod agent;
pub mod breaker;
pub mod capacity;
pub mod dossier;
pub mod fingerprint;
pub mod graph;
pub mod id;
pub mod input;
pub mod intake;
pub mod json;
#[cfg(feature = "testkit")]
pub mod model;
pub mod order;
pub mod outcome;
pub mod query;
pub mod queue;
pub mod retry;
pub mod seam;
pub mod state;
pub mod store;
pub mod task;
pub mod time;
pub mod transition;
pub mod view;

pub use fingerprint::Fingerprint;
pub use id::{ExecutionId, LeaseId, NodeId, TaskId};
pub use json::Json;
pub use outcome::{ErrorInfo, Outcome, Usage, Wait};
pub use query::{Counts, Page, TaskFilter};
pub use retry::{RetryPolicy, RetryStrategy};
pub use state::{Priority, State, Status, WaitingFor};
pub use store::{Rejected, Store, StoreError};
pub use task::{Details, Lifecycle, NewTask, Spec, TaskRecord};
pub use time::Time;
pub use transition::{Event, Transition, apply};

/// A short shared string: handler, queue, key, capability, tag. Cloning it copies a pointer.
pub type Name = std::sync::Arc<str>;
