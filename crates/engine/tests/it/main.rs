//! The integration tests of the engine, in one binary.

mod process;
