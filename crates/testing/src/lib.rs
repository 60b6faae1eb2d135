//! What the tests of Pensum run against, for `[dev-dependencies]` alone; no program contains it.
//!
//! - [`run`]: how much, and with which seed.
//! - [`postgres::Database`]: a database of a test's own on the server that all tests share.
//! - [`postgres::Server`]: a server of a test's own, to crash, to stop, to put a standby beside.
//! - [`postgres::Pooler`]: a pgbouncer of a test's own.
//!
//! All of it is real: processes of the PostgreSQL that this machine has, which `tests/postgres` finds. What fails here
//! panics, because a test that has no server has no answer.
#![expect(
    clippy::disallowed_methods,
    reason = "servers are processes that live by the real clock, outside what a test moves"
)]

pub mod postgres;
pub mod run;
