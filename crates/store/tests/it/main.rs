//! The tests of the stores, in one binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod conformance;
mod copies;
mod nodes;
mod postgres_agents;
mod postgres_breakers;
mod postgres_intake;
mod postgres_limits;
mod postgres_outbox;
mod postgres_queues;
mod postgres_races;
mod postgres_reads;
mod postgres_suite;
mod postgres_widths;
mod power;
mod random;
mod sqlite_agents;
mod sqlite_files;
mod sqlite_hard_cases;
mod sqlite_queues;
mod sqlite_stress;
mod sqlite_suite;
mod sqlite_volatile;
mod stores;
