//! The integration tests of the engine, in one binary.

mod control;
mod durable;
mod explain;
mod http;
mod process;
mod running;
mod subprocess;
mod support;
