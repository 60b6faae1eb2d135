//! The program as its users meet it: real processes, their output and their exit codes.

mod agent;
mod breaker;
mod copy;
mod dlq;
mod nodes;
mod program;
mod queue;
mod resume;
mod run;
mod serve;
