//! Durable background jobs in one library: enqueue a task, and it runs to its end, whatever happens to the process.
//!
//! ```
//! use pensum::{Context, Pensum, Task, TaskError};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Greet {
//!     name: String,
//! }
//!
//! async fn greet(ctx: Context, job: Greet) -> Result<String, TaskError> {
//!     ctx.progress(50.0, format!("thinking of {}", job.name));
//!     Ok(format!("Hello, {}!", job.name))
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), pensum::Error> {
//! let pensum = Pensum::builder().store("sqlite::memory:").handler("greet", greet).start().await?;
//! let id = pensum.enqueue(Task::new("greet", Greet { name: "Ada".into() })).await?;
//! let greeting: String = pensum.result(id).await?;
//! assert_eq!(greeting, "Hello, Ada!");
//! pensum.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! With `sqlite:jobs.db` instead of `sqlite::memory:` an `Ok` from [`Pensum::enqueue`] means that the task is on disk.
//! A handler may run more than once for one task (a process can die after the work and before its outcome is
//! stored), so work that must not be repeated goes into a durable step: [`Context::step`] stores its result, and a later
//! attempt gets that result instead of doing the work again.
//!
//! - [`Task`] and [`Batch`] say what to do, when, and after what.
//! - A handler is an `async fn(Context, Parameters) -> Result<Output, TaskError>` over serde types, or a [`Handler`].
//! - [`Pensum`] enqueues, waits, cancels, pauses, and sets queues up with [`QueueInput`]; [`Pensum::engine`] has the full set of verbs.
//! - [`Outbox`] enqueues within transactions of your own on PostgreSQL.
//! - [`testkit`] runs handlers in your tests, inline or step by step, on a clock that you move.

mod facade;
/// The examples of the page on the library, compiled and run by `cargo test --doc`.
#[cfg(doctest)]
#[doc = include_str!("../docs/library.md")]
mod library_page {}
/// The same of the page on transactions.
#[cfg(doctest)]
#[doc = include_str!("../docs/transactions.md")]
mod transactions_page {}
pub mod testkit;

pub use facade::{Batch, Builder, Error, ItemRef, Outbox, Pensum, Task, TaskError};
pub use pensum_core::input::{QueueInput, RateInput};
pub use pensum_core::outcome::{Progress, Wait};
pub use pensum_core::task::{NewTask, OnConflict, OnDependencyFailure, OnLimit, Resources, Spec, TaskRecord};
pub use pensum_core::{ErrorInfo, Json, Outcome, Priority, RetryPolicy, State, Status, TaskId, Time};
pub use pensum_engine::{Context, Engine, EngineEvent, Handler, QueueStatus, QueueView, StopReason};
