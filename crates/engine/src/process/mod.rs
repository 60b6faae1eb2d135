//! Subprocesses: started with an argument vector, watched as a whole tree, and never left behind.
//!
//! [`Process::spawn`] starts a [`CommandSpec`] in a process group of its own, [`Process::wait`] feeds its standard input, hands its
//! output line by line to a sink, measures the tree and enforces [`Limits`], and a [`ProcessHandle`] stops, pauses and resumes it from
//! anywhere. Linux only: the tree is read from `/proc`. Where a program [asks for it](use_cgroups) and has a cgroup (version 2) of its own,
//! each command gets one below, and the kernel itself bounds its memory and counts what it uses.
//!
//! What belongs to a command's tree, and so is measured, limited and killed with it:
//!
//! - every process of its group, and every descendant of those, whatever group or session it moved to;
//! - every process that carries the command's mark, the environment variable [`MARK`], so that a daemon that forked twice and called
//!   `setsid` between two looks at `/proc` is found all the same;
//! - every process in the command's cgroup, where it has one.
//!
//! When the command's first process ends, what is left of its tree is killed: a finished command holds nothing.
//!
//! No descriptor above 2 reaches a command: Rust opens every file, socket and pipe with `O_CLOEXEC`, and what else is open, inherited
//! from whoever started this process, is marked the same way before each start.

mod cgroup;
mod handle;
mod housing;
mod orphans;
mod output;
mod signal;
mod spawn;
mod spec;
mod table;
mod tree;
mod units;
mod usage;
mod verdict;
mod wait;
mod watch;

pub use cgroup::{Enforcement, NotDelegated, enforcement, use_cgroups};
pub use handle::{ProcessHandle, Stopped};
pub use orphans::kill_orphans;
pub use output::{
    CAPTURED_BYTES_MAX, LINE_BYTES_MAX, STDERR_TAIL_BYTES_MAX, STDOUT_BYTES_MAX, Stream, TRUNCATED_MARKER,
};
pub use spawn::SpawnError;
pub use spec::{CommandSpec, Limits, SpecError};
pub use table::MARK;
pub use usage::Usage;
pub use verdict::progress_of;
pub use wait::{Exit, ExitReason, PIPE_DRAIN, Process};
pub use watch::{SAMPLE_INTERVAL, WALL_GRACE};
