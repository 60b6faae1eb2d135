//! The integration tests of the engine, in one binary.
#![expect(
    clippy::unwrap_used,
    reason = "a test that panics has failed, which is what it should do"
)]

mod agents;
mod breakers;
mod cgroup;
mod control;
mod durable;
mod explain;
mod http;
mod nodes;
mod process;
mod queues;
mod running;
mod stores;
mod subprocess;
mod support;
mod volatile;
