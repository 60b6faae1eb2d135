//! Starting a command: its environment, the search for its program, and errors that say what to do.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use rustix::fs::Access;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, pidfd_open, prlimit};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};

use super::cgroup::Group;
use super::handle::Shared;
use super::output::{Capture, Stream};
use super::signal;
use super::spec::{CommandSpec, Limits, SpecError, check_variable};
use super::table;
use super::tree::Tree;
use super::usage::Clock;
use super::wait::{Pipes, Process};

/// The variables of this process that a command gets too, besides all that begin with `LC_`.
const INHERITED: [&str; 9] = [
    "PATH", "HOME", "LANG", "TZ", "TMPDIR", "USER", "LOGNAME", "SHELL", "TERM",
];
/// Where programs are looked up when no `PATH` is set.
const PATH_DEFAULT: &str = "/usr/local/bin:/usr/bin:/bin";

/// Why a command was not started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The specification cannot be run.
    #[error(transparent)]
    Invalid(#[from] SpecError),
    /// There is no such program.
    #[error("cannot start `{program}`: {}", not_found_help(program, searched))]
    ProgramNotFound {
        /// The program as it was asked for.
        program: String,
        /// The directories it was looked up in, or the path that does not exist.
        searched: String,
    },
    /// The file exists but may not be executed.
    #[error(
        "cannot start `{program}`: {} may not be executed by this user; make it executable (chmod +x) or name another program",
        path.display()
    )]
    PermissionDenied {
        /// The program as it was asked for.
        program: String,
        /// The file found for it.
        path: PathBuf,
    },
    /// The file is no program this machine can run.
    #[error(
        "cannot start `{program}`: {} is not a program this machine can run; {help}",
        path.display()
    )]
    NotRunnable {
        /// The program as it was asked for.
        program: String,
        /// The file found for it.
        path: PathBuf,
        /// What is most likely wrong with it.
        help: &'static str,
    },
    /// The directory to run in cannot be entered.
    #[error("cannot start `{program}` in the directory {}: {problem}", cwd.display())]
    WorkingDirectory {
        /// The program as it was asked for.
        program: String,
        /// The directory as it was asked for.
        cwd: PathBuf,
        /// What is wrong with it and what to do.
        problem: &'static str,
    },
    /// Arguments and environment are longer than the operating system takes.
    #[error(
        "cannot start `{program}`: its arguments and environment are too long; pass large input through `stdin` or a file"
    )]
    TooLong {
        /// The program as it was asked for.
        program: String,
    },
    /// The machine is short of processes, descriptors or memory. Worth trying again later.
    #[error(
        "cannot start `{program}`: this machine is short of processes, descriptors or memory ({source}); run fewer commands at once"
    )]
    Exhausted {
        /// The program as it was asked for.
        program: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// Anything else that the operating system refused.
    #[error("cannot start `{program}`: {source}")]
    Io {
        /// The program as it was asked for.
        program: String,
        /// What the operating system said.
        source: io::Error,
    },
}

fn not_found_help(program: &str, searched: &str) -> String {
    if program.contains(char::is_whitespace) {
        "there is no program of that name; no shell is involved, so give the arguments one by one in `args`".to_owned()
    } else if program.contains('/') {
        format!("there is no file {searched}; check the path")
    } else {
        format!("there is no such program in {searched}; install it, give its full path, or set PATH in `env`")
    }
}

impl Process {
    /// Starts a command in a process group of its own. [`wait`](Process::wait) must be polled from then on: it does the rest.
    ///
    /// Of this process's environment the command sees only `PATH`, `HOME`, `LANG`, `LC_*`, `TZ`, `TMPDIR`, `USER`, `LOGNAME`, `SHELL`
    /// and `TERM`; then come the variables of `spec.env`, then those of `extra_env`, which win, and [`MARK`](super::MARK). `sink` gets
    /// each line of output as it comes, without its end; it is called from within `wait` and should not block.
    ///
    /// Where this process [uses cgroups](super::use_cgroups) the command gets one, and one with a limit on memory does not begin before
    /// it is there: some 10 ms, or less than one where other commands started just before.
    ///
    /// A limit on processor time is also set as `RLIMIT_CPU`, one second above, as a net under the sampling that enforces it. It is set
    /// just after the start, so a process forked before that has only the sampling.
    ///
    /// No descriptor above 2 reaches the command: all of this process are marked close-on-exec first, also any that was meant for a
    /// child which somebody else is about to start.
    ///
    /// # Errors
    ///
    /// [`SpawnError`]; its message names the program or directory and says what to do.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O and time enabled.
    pub fn spawn(
        spec: &CommandSpec,
        extra_env: impl IntoIterator<Item = (String, String)>,
        sink: impl FnMut(Stream, String) + Send + 'static,
    ) -> Result<Process, SpawnError> {
        spec.validate()?;
        let mark = table::marker();
        let env = environment(spec, extra_env, &mark)?;
        let cwd = working_directory(spec)?;
        let path = find_program(spec, &env, cwd.as_deref())?;
        let mut command = Command::new(&path);
        command
            .arg0(&spec.program)
            .args(&spec.args)
            .env_clear()
            .envs(env)
            .stdin(if spec.stdin.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(cwd) = &cwd {
            command.current_dir(cwd);
        }
        // Descriptors opened by Rust close themselves on `exec`. Those that this process inherited from whoever started it, or that a C
        // library opened, may not: mark them all. One system call.
        close_fds::set_fds_cloexec_threadsafe(3, &[]);
        let group = Group::create(&spec.limits).map(Arc::new);
        let clock = Clock::start();
        let child = command.spawn().map_err(|source| refused(&spec.program, path, source))?;
        let input = spec.stdin.clone().unwrap_or_default();
        adopt(
            child,
            clock,
            mark,
            group,
            input,
            spec.limits.clone(),
            Capture::new(Box::new(sink)),
        )
        .map_err(|source| failure(&spec.program, source))
    }
}

/// Takes a started child under watch. On an error the child is dropped, and with it killed.
fn adopt(
    mut child: Child,
    clock: Clock,
    mark: String,
    group: Option<Arc<Group>>,
    input: String,
    limits: Limits,
    capture: Capture,
) -> io::Result<Process> {
    let gone = || io::Error::other("the process vanished as it started");
    let root = child
        .id()
        .and_then(|id| Pid::from_raw(id.cast_signed()))
        .ok_or_else(gone)?;
    // Memory stays counted where it was first used, and children begin where their parent is. So a process whose memory is bounded
    // stands still, from before it has come to its first instruction if all goes well, until it is in its cgroup.
    if group.as_ref().is_some_and(|group| group.bounded) {
        signal::send_group(root, Signal::STOP);
    }
    let exit = exit_of(root)?;
    let start = table::entry(root.as_raw_nonzero().get()).ok_or_else(gone)?.start;
    let mut tree = Tree::new(root.as_raw_nonzero().get(), start, mark);
    // A command may end before anyone waits for it, and its memory is not to be seen after that.
    tree.update_root();
    if let Some(seconds) = limits.cpu_seconds {
        let net = seconds.ceil() as u64 + 1;
        let limit = Rlimit {
            current: Some(net),
            maximum: Some(net.saturating_add(1)),
        };
        if let Err(error) = prlimit(Some(root), Resource::Cpu, limit) {
            tracing::debug!(%error, "RLIMIT_CPU not set, the sampling alone enforces the limit");
        }
    }
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(gone());
    };
    let pipes = Pipes {
        stdin: child.stdin.take().map(|pipe| (pipe, input)),
        stdout,
        stderr,
    };
    let shared = Arc::new(Shared::new(root, tree, clock, group));
    let moving = shared.move_in();
    Ok(Process::new(shared, child, exit, pipes, capture, limits, moving))
}

/// A descriptor that turns readable when the process has ended. Unlike a wait for its status this leaves it to be reaped: its last
/// figures stay in `/proc`, and its id is not given away.
#[expect(
    deprecated,
    reason = "the replacement is unsafe; what it asks for, that the descriptor stays the same, holds for an `OwnedFd`"
)]
fn exit_of(pid: Pid) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd_open(pid, PidfdFlags::empty())?, Interest::READABLE)
}

fn environment(
    spec: &CommandSpec,
    extra: impl IntoIterator<Item = (String, String)>,
    mark: &str,
) -> Result<BTreeMap<OsString, OsString>, SpawnError> {
    let allowed =
        |name: &OsString| INHERITED.iter().any(|allowed| name == allowed) || name.as_bytes().starts_with(b"LC_");
    let mut env: BTreeMap<OsString, OsString> = std::env::vars_os().filter(|(name, _)| allowed(name)).collect();
    env.extend(spec.env.iter().map(|(name, value)| (name.into(), value.into())));
    for (name, value) in extra {
        check_variable(&name, &value)?;
        env.insert(name.into(), value.into());
    }
    env.insert(table::MARK.into(), mark.into());
    Ok(env)
}

/// The directory to run in as an absolute path, so that program paths relative to it can be built.
fn working_directory(spec: &CommandSpec) -> Result<Option<PathBuf>, SpawnError> {
    let Some(cwd) = &spec.cwd else { return Ok(None) };
    let problem = match std::fs::metadata(cwd) {
        Ok(found) if !found.is_dir() => "it is not a directory; name one or leave `cwd` out",
        Ok(_) if rustix::fs::access(cwd, Access::EXEC_OK).is_err() => {
            "this user may not enter it; change its permissions"
        }
        Ok(_) => {
            return std::path::absolute(cwd)
                .map(Some)
                .map_err(|source| failure(&spec.program, source));
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            "this user may not reach it; change the permissions of the directories above it"
        }
        Err(_) => "it does not exist; create it first or correct `cwd`",
    };
    Err(SpawnError::WorkingDirectory {
        program: spec.program.clone(),
        cwd: cwd.clone(),
        problem,
    })
}

/// Looks the program up as `execvp` would, with the command's own `PATH`. Done here so that errors can tell a missing program from a
/// missing interpreter, and so that the standard library can use `posix_spawn`, which does not copy this process's page tables.
fn find_program(
    spec: &CommandSpec,
    env: &BTreeMap<OsString, OsString>,
    cwd: Option<&Path>,
) -> Result<PathBuf, SpawnError> {
    let in_cwd = |path: &Path| cwd.map_or_else(|| path.to_owned(), |cwd| cwd.join(path));
    let runnable = |path: &Path| path.is_file() && rustix::fs::access(path, Access::EXEC_OK).is_ok();
    let denied = |path: PathBuf| SpawnError::PermissionDenied {
        program: spec.program.clone(),
        path,
    };
    if spec.program.contains('/') {
        let path = in_cwd(Path::new(&spec.program));
        return match std::fs::metadata(&path) {
            Ok(_) if runnable(&path) => Ok(path),
            Ok(_) => Err(denied(path)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(denied(path)),
            Err(_) => Err(SpawnError::ProgramNotFound {
                program: spec.program.clone(),
                searched: path.display().to_string(),
            }),
        };
    }
    let search = env
        .get(&OsString::from("PATH"))
        .cloned()
        .unwrap_or_else(|| PATH_DEFAULT.into());
    let mut not_runnable = None;
    for directory in std::env::split_paths(&search) {
        // An empty entry means the current directory. The `.` keeps a `/` in the path, so that nothing is searched a second time.
        let directory = if directory.as_os_str().is_empty() {
            PathBuf::from(".")
        } else {
            directory
        };
        let path = in_cwd(&directory.join(&spec.program));
        if runnable(&path) {
            return Ok(path);
        }
        if path.is_file() {
            not_runnable.get_or_insert(path);
        }
    }
    Err(not_runnable.map_or_else(
        || SpawnError::ProgramNotFound {
            program: spec.program.clone(),
            searched: search.to_string_lossy().into_owned(),
        },
        denied,
    ))
}

/// What a refusal to execute a file that was found means.
fn refused(program: &str, path: PathBuf, source: io::Error) -> SpawnError {
    let program_name = program.to_owned();
    match Errno::from_io_error(&source) {
        Some(Errno::NOENT) => SpawnError::NotRunnable {
            program: program_name,
            path,
            help: "the interpreter in its first line (#!) or the loader it was built for is missing",
        },
        Some(Errno::NOEXEC) => SpawnError::NotRunnable {
            program: program_name,
            path,
            help: "a script needs an interpreter in its first line (#!), or run it with program `sh` and its path in `args`",
        },
        Some(Errno::ACCESS | Errno::PERM) => SpawnError::PermissionDenied {
            program: program_name,
            path,
        },
        _ => failure(program, source),
    }
}

fn failure(program: &str, source: io::Error) -> SpawnError {
    let program = program.to_owned();
    match Errno::from_io_error(&source) {
        Some(Errno::TOOBIG) => SpawnError::TooLong { program },
        Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE) => SpawnError::Exhausted { program, source },
        _ => SpawnError::Io { program, source },
    }
}
