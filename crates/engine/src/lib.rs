//! The node of Pensum: claim loop, executor, leases and the built-in handlers.

pub mod process;
