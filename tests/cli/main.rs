//! The program as its users meet it: real processes, their output and their exit codes.
#![expect(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod program;
mod resume;
mod run;
mod serve;
