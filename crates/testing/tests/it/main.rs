//! The tests of what tests run against, in one binary.

#![expect(clippy::disallowed_methods, reason = "servers live by the real clock")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod postgres;
