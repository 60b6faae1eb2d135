//! A running command: its pipes served, its tree sampled, its limits enforced, and its end.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::pin::{Pin, pin};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::handle::{ProcessHandle, Shared};
use super::output::{Capture, Captured, read_all};
use super::signal;
use super::spec::Limits;
use super::usage::Usage;
use super::watch::watch;

/// How long the pipes of a command whose first process has ended may stay open before what holds them is killed.
pub const PIPE_DRAIN: Duration = Duration::from_millis(500);
/// How long the last output of a killed tree is read.
const LAST_READ: Duration = Duration::from_millis(200);
/// Time between two looks while members use the grace of a stop.
const GRACE_LOOK: Duration = Duration::from_millis(20);

/// A started command. Dropping it, or the future of its [`wait`](Self::wait), kills the whole tree.
pub struct Process {
    guard: Guard,
    exit: AsyncFd<OwnedFd>,
    pipes: Pipes,
    capture: Capture,
    limits: Limits,
    /// The way of the first process into the command's cgroup.
    moving: Option<JoinHandle<()>>,
}

/// How a command ended, what it wrote and what it used.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Exit {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it; `None` if it exited.
    pub signal: Option<i32>,
    /// The name of that signal, such as `SIGKILL`; `None` also for real-time signals.
    pub signal_name: Option<&'static str>,
    /// Standard output, up to [`STDOUT_BYTES_MAX`](super::STDOUT_BYTES_MAX), invalid UTF-8 and NUL replaced by U+FFFD.
    pub stdout: String,
    /// Standard output was longer.
    pub stdout_truncated: bool,
    /// The end of standard error, up to [`STDERR_TAIL_BYTES_MAX`](super::STDERR_TAIL_BYTES_MAX): where programs say why they failed.
    pub stderr_tail: String,
    /// Bytes of output that the sink did not get, past [`CAPTURED_BYTES_MAX`](super::CAPTURED_BYTES_MAX).
    pub output_dropped: u64,
    /// What the tree used.
    pub usage: Usage,
    /// Who or what ended it.
    pub reason: ExitReason,
}

impl Exit {
    /// Whether the command ended by itself with code 0.
    pub fn success(&self) -> bool {
        self.reason == ExitReason::Exited && self.code == Some(0)
    }
}

/// Who or what ended a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// It exited by itself.
    Exited,
    /// A signal ended it, other than for a limit.
    Signalled,
    /// It was killed for using more processor time than [`Limits::cpu_seconds`].
    CpuExceeded,
    /// It was killed for using more memory than [`Limits::memory`].
    MemoryExceeded,
    /// It was ended for running longer than [`Limits::wall`].
    WallExceeded,
}

/// The ends of a command's pipes that are ours.
pub(super) struct Pipes {
    pub(super) stdin: Option<(ChildStdin, String)>,
    pub(super) stdout: ChildStdout,
    pub(super) stderr: ChildStderr,
}

/// The child, with its tree killed if it is dropped before it was reaped.
struct Guard {
    shared: Arc<Shared>,
    child: Child,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let reaped = self.shared.state.lock().reaped;
        if !reaped {
            self.shared.abandon();
        }
    }
}

impl Process {
    pub(super) fn new(
        shared: Arc<Shared>,
        child: Child,
        exit: AsyncFd<OwnedFd>,
        pipes: Pipes,
        capture: Capture,
        limits: Limits,
        moving: Option<JoinHandle<()>>,
    ) -> Self {
        Self {
            guard: Guard { shared, child },
            exit,
            pipes,
            capture,
            limits,
            moving,
        }
    }

    /// Control of this command for other tasks.
    pub fn handle(&self) -> ProcessHandle {
        ProcessHandle {
            shared: Arc::clone(&self.guard.shared),
        }
    }

    /// Serves the command until it ends: writes its input, reads its output, samples its tree and enforces its limits.
    ///
    /// Returns when the first process has ended and nothing of the tree is left. Members that outlive it and hold its output open have
    /// [`PIPE_DRAIN`] to end, those in a [`ProcessHandle::stop`] the rest of its grace; then they are killed, and what they still write
    /// is lost. Dropping the future kills the tree.
    pub async fn wait(self) -> Exit {
        let Self {
            mut guard,
            exit,
            pipes,
            mut capture,
            limits,
            moving,
        } = self;
        let shared = Arc::clone(&guard.shared);
        let verdict = {
            let mut read = pin!(read_all(pipes.stdout, pipes.stderr, &mut capture));
            let mut reading = true;
            let verdict = {
                let mut watch = pin!(watch(&shared, &exit, &limits));
                let mut write = pin!(feed(pipes.stdin));
                let mut writing = true;
                loop {
                    tokio::select! {
                        verdict = &mut watch => break verdict,
                        () = &mut read, if reading => reading = false,
                        () = &mut write, if writing => writing = false,
                    }
                }
            };
            shared.root_ended();
            reading = drain(&shared, read.as_mut(), reading).await;
            // The first process is not reaped yet, so the group's id is still its own.
            shared.sweep().await;
            if reading {
                let _ = timeout(LAST_READ, read).await;
            }
            if let Some(moving) = moving {
                drop(moving.await);
            }
            shared.move_out().await;
            let killed = shared.state.lock().figures.out_of_memory;
            verdict.or(killed.then_some(ExitReason::MemoryExceeded))
        };
        let status = guard.reap().await;
        assemble(status, verdict, &limits, capture.finish(), shared.usage())
    }
}

impl Guard {
    /// Takes the status of the first process, which has ended. `None` if the operating system kept none, as it does where this process
    /// was started with `SIGCHLD` ignored.
    async fn reap(&mut self) -> Option<ExitStatus> {
        let status = {
            let mut state = self.shared.state.lock();
            state.reaped = true;
            self.child.try_wait()
        };
        match status {
            Ok(Some(status)) => Some(status),
            Ok(None) => self.child.wait().await.ok(),
            Err(error) => {
                tracing::error!(%error, "a command ended and its status is lost");
                None
            }
        }
    }
}

/// Writes a command's input and closes it. A command need not read it all.
async fn feed(stdin: Option<(ChildStdin, String)>) {
    if let Some((mut pipe, text)) = stdin
        && let Err(error) = pipe.write_all(text.as_bytes()).await
    {
        tracing::debug!(%error, "a command closed its input before the end");
    }
}

/// After the end of the first process: gives other members the time they are due, see [`Process::wait`]. Whether output is still open.
async fn drain(shared: &Shared, mut read: Pin<&mut impl Future<Output = ()>>, mut reading: bool) -> bool {
    let drained = Instant::now() + PIPE_DRAIN;
    loop {
        let now = Instant::now();
        let grace = shared.stop_until().filter(|until| *until > now);
        let until = match grace {
            Some(until) if reading => until.max(drained),
            Some(until) => until,
            None if reading => drained,
            None => return false,
        };
        let left = until.saturating_duration_since(now);
        if left.is_zero() || (!reading && !shared.anything_lives().await) {
            return reading;
        }
        tokio::select! {
            () = read.as_mut(), if reading => reading = false,
            () = sleep(left.min(GRACE_LOOK)) => {}
        }
    }
}

fn assemble(
    status: Option<ExitStatus>,
    verdict: Option<ExitReason>,
    limits: &Limits,
    captured: Captured,
    usage: Usage,
) -> Exit {
    let code = status.and_then(|status| status.code());
    let number = status.and_then(|status| status.signal());
    Exit {
        code,
        signal: number,
        signal_name: number.and_then(signal::name),
        stdout: captured.stdout,
        stdout_truncated: captured.stdout_truncated,
        stderr_tail: captured.stderr_tail,
        output_dropped: captured.dropped,
        usage,
        reason: verdict.unwrap_or_else(|| reason(code, number, limits, &usage)),
    }
}

/// The reason of an end that no limit of the watch brought about. The kernel enforces the processor limit too: by a signal to the first
/// process, or to one of its children, which a shell reports as 128 and the signal's number.
fn reason(code: Option<i32>, signal: Option<i32>, limits: &Limits, usage: &Usage) -> ExitReason {
    const XCPU: i32 = Signal::XCPU.as_raw();
    let spent = limits.cpu_seconds.is_some_and(|limit| usage.cpu_seconds >= limit);
    match (signal, code) {
        (Some(XCPU), _) if spent => ExitReason::CpuExceeded,
        (_, Some(code)) if spent && code == 128 + XCPU => ExitReason::CpuExceeded,
        (Some(_), _) => ExitReason::Signalled,
        _ => ExitReason::Exited,
    }
}
