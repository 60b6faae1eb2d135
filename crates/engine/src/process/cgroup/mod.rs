//! Commands in control groups (cgroup v2): the kernel bounds their memory, counts what they use, and kills them whole.
//!
//! Commands of a process are sampled until it asks for more with [`use_cgroups`], which needs a cgroup that was delegated to it. From
//! then on each command has a cgroup of its own. The sampling goes on beneath, less often, as a second line of defence: it sees what
//! was used before a process came into its cgroup, and members that somebody moved out of it.

mod domain;
mod group;
mod parse;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use domain::Domain;
pub(super) use group::{Figures, Group};

/// How the limits of this process's commands are enforced, and what they use is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcement {
    /// By the kernel: each command has a cgroup of its own.
    Cgroup,
    /// By looking at the tree of processes many times a second, and `RLIMIT_CPU`.
    Sampled,
}

/// Why commands get no cgroups of their own, and what to do about it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotDelegated {
    /// There is no cgroup v2 file system.
    #[error("no cgroup v2 file system is mounted here")]
    NotMounted,
    /// The cgroup of this process is not below any mount of the file system.
    #[error(
        "the cgroup of this process, {path}, cannot be seen here; a container needs a cgroup namespace of its own (Docker: --cgroupns=private)"
    )]
    OutOfSight {
        /// As `/proc/self/cgroup` names it.
        path: String,
    },
    /// Memory cannot be controlled there.
    #[error("{} has no memory controller; {help}", directory.display())]
    NoMemoryController {
        /// The cgroup of this process.
        directory: PathBuf,
        /// What most likely brings it.
        help: &'static str,
    },
    /// This process may make cgroups there because it is root's, but systemd keeps them for itself.
    #[error("{} belongs to systemd, which has not delegated it; {DELEGATE}", directory.display())]
    Kept {
        /// The cgroup of this process.
        directory: PathBuf,
    },
    /// Other processes are in the way: a cgroup that has processes cannot have cgroups with controllers below it.
    #[error(
        "process {pid} ({name}) is in {} too, where this process must be alone; {ALONE}",
        directory.display()
    )]
    NotAlone {
        /// The cgroup of this process.
        directory: PathBuf,
        /// One of the others.
        pid: i32,
        /// The name of its program.
        name: String,
    },
    /// The operating system refused; everything is as it was.
    #[error("{what} failed ({source}); {help}")]
    Refused {
        /// What was tried.
        what: String,
        /// What the operating system said.
        #[source]
        source: std::sync::Arc<io::Error>,
        /// What to do.
        help: &'static str,
    },
}

const DELEGATE: &str = "set Delegate=memory io in the unit";
const ALONE: &str =
    "start it with `exec`, or in a unit or scope of its own (systemd-run --user --scope -p Delegate=yes)";

/// What [`use_cgroups`] came to.
static DOMAIN: OnceLock<Result<Domain, NotDelegated>> = OnceLock::new();

/// Gives each command that this process starts from now on a cgroup of its own, below the cgroup of this process, if that was delegated
/// to it. The directory that they are in.
///
/// A cgroup cannot hold processes and cgroups with controllers at once, so this process, with all its threads, moves into a cgroup
/// below its own; that is why it has to be asked for. Processes that it started before must have ended, for they would be in the way.
/// What dead processes left there is killed and removed. Once in the life of a process: later calls give the first answer. Takes some
/// milliseconds, in which it blocks.
///
/// # Errors
/// Where there is no such cgroup; then nothing has changed, and commands are sampled as before.
pub fn use_cgroups() -> Result<&'static Path, NotDelegated> {
    match DOMAIN.get_or_init(Domain::claim) {
        Ok(domain) => Ok(domain.directory()),
        Err(why) => Err(why.clone()),
    }
}

/// How the limits of commands are enforced that are started now.
pub fn enforcement() -> Enforcement {
    match domain() {
        Some(_) => Enforcement::Cgroup,
        None => Enforcement::Sampled,
    }
}

fn domain() -> Option<&'static Domain> {
    DOMAIN.get()?.as_ref().ok()
}

/// Writes a cgroup's file, which is there or not: nothing is ever created.
fn write(file: &Path, value: &str) -> io::Result<()> {
    use std::io::Write as _;
    std::fs::OpenOptions::new()
        .write(true)
        .open(file)?
        .write_all(value.as_bytes())
}
