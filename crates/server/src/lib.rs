//! The HTTP API of Pensum: JSON under `/api/v1`, errors as RFC 9457 problem details, its own description at
//! `/openapi.json`.
//!
//! [`router`] answers requests and knows no sockets; [`serve`] puts it on a listener. The server knows the engine
//! and core, never a database.

mod agents;
mod app;
mod batch;
mod breakers;
mod bulk;
mod commands;
mod cursor;
mod dead_letters;
mod executions;
mod extract;
mod intake;
mod logs;
mod openapi;
mod problem;
mod queues;
mod security;
mod serve;
mod system;
mod tasks;

pub use app::{AppState, ServerOptions, router};
pub use extract::{BATCH_BODY_MAX, BODY_MAX, WORK_BODY_MAX};
pub use openapi::openapi;
pub use problem::{Fault, Kind, Problem, ProblemDetails};
pub use serve::serve;
