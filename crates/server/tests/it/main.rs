//! The API as clients see it, on the model store and on SQLite.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

mod agents;
mod breakers;
mod commands;
mod create;
mod dead_letters;
mod fuzz;
mod idempotency;
mod lists;
mod logs;
mod openapi;
mod queues;
mod security;
mod socket;
mod sqlite;
mod support;
mod system;
mod wrong;
