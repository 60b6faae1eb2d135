//! One run of the program for one task.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pensum_core::{ErrorInfo, Outcome};
use pensum_engine::kinds;
use pensum_engine::process::{CommandSpec, Exit, ExitReason, Process, ProcessHandle, SpawnError, Stream};
use serde_json::{Value, json};

use super::super::now;
use super::work::{Ended, Given, Said, used, written};

/// The exit code by which a program says that another attempt would fail, too: `EX_DATAERR` of sysexits.h.
const NOT_RETRYABLE: i32 = 65;

/// What to run.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) program: String,
    pub(super) args: Vec<String>,
    /// Between `SIGTERM` and `SIGKILL`.
    pub(super) grace: Duration,
}

/// A run that goes on.
pub(super) struct Running {
    pub(super) given: Given,
    pub(super) said: Arc<Mutex<Said>>,
    handle: ProcessHandle,
    grace: Duration,
    asked: Arc<Mutex<Asked>>,
}

/// Why a run is being ended from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Asked {
    #[default]
    Nothing,
    /// Somebody cancelled the task.
    Cancel,
    /// The agent ends, and gives the task back.
    Release,
    /// The lease is lost: whatever it says counts for nothing.
    Abandon,
}

/// How a run came to its end: what to send, and whether the program itself is at fault, by its crash or because it could not
/// be started.
pub(super) struct End {
    pub(super) execution_id: String,
    pub(super) ended: Option<Ended>,
    pub(super) crashed: bool,
}

impl Program {
    /// Starts it for a task. `Err` is the end of a run that never was.
    pub(super) fn start(
        &self,
        given: Given,
    ) -> Result<(Running, impl Future<Output = End> + Send + 'static), Box<End>> {
        let mut spec = CommandSpec::new(self.program.clone());
        spec.args.clone_from(&self.args);
        spec.stdin = Some(given.input());
        spec.limits.wall = given.timeout();
        let said = Arc::new(Mutex::new(Said::default()));
        let lines = Arc::clone(&said);
        let sink = move |stream, line: String| {
            if stream == Stream::Stderr {
                lines.lock().take_line(&line, now());
            }
        };
        let process = match Process::spawn(&spec, environment(&given), sink) {
            Ok(process) => process,
            Err(error) => return Err(Box::new(not_started(&given, error))),
        };
        let running = Running {
            handle: process.handle(),
            said,
            grace: self.grace,
            asked: Arc::default(),
            given: given.clone(),
        };
        let (asked, said) = (Arc::clone(&running.asked), Arc::clone(&running.said));
        let end = async move {
            let exit = process.wait().await;
            let asked = *asked.lock();
            let ended = (asked != Asked::Abandon).then(|| ended(&given, &exit, asked, &mut said.lock()));
            End {
                execution_id: given.execution_id,
                crashed: asked == Asked::Nothing && exit.reason == ExitReason::Signalled,
                ended,
            }
        };
        Ok((running, end))
    }
}

impl Running {
    /// Stops it, because somebody cancelled the task.
    pub(super) fn cancel(&self) {
        self.stop(Asked::Cancel, self.grace);
    }

    /// Stops it, and gives the task back.
    pub(super) fn release(&self) {
        self.stop(Asked::Release, self.grace);
    }

    /// Stops it at once: the task runs elsewhere.
    pub(super) fn abandon(&self) {
        self.stop(Asked::Abandon, Duration::from_secs(1));
    }

    /// Holds it, or lets it go on.
    pub(super) async fn pause(&self, pause: bool) {
        match (pause, self.handle.is_paused()) {
            (true, false) => self.handle.pause().await,
            (false, true) => self.handle.resume().await,
            _ => {}
        }
    }

    fn stop(&self, why: Asked, grace: Duration) {
        {
            let mut asked = self.asked.lock();
            if *asked != Asked::Nothing {
                return;
            }
            *asked = why;
        }
        let handle = self.handle.clone();
        tokio::spawn(async move { handle.stop(grace).await });
    }
}

fn environment(given: &Given) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    vec![
        ("PENSUM_TASK_ID".to_owned(), text(&given.task["id"])),
        ("PENSUM_ATTEMPT".to_owned(), text(&given.task["attempt"])),
        ("PENSUM_EXECUTION_ID".to_owned(), given.execution_id.clone()),
        ("PENSUM_HANDLER".to_owned(), text(&given.task["handler"])),
    ]
}

fn ended(given: &Given, exit: &Exit, asked: Asked, said: &mut Said) -> Ended {
    let outcome = match (asked, exit.outcome()) {
        // Many programs exit with code 0 when they are told to stop, so what they say now is no success.
        (Asked::Cancel, _) => Outcome::Cancelled,
        (Asked::Release, _) => Outcome::Released,
        (_, Outcome::Retry { error, .. }) if exit.code == Some(NOT_RETRYABLE) => Outcome::Fail(error),
        (_, Outcome::Retry { .. }) if exit.reason == ExitReason::WallExceeded => {
            let seconds = given.timeout().unwrap_or_default().as_secs_f64();
            let error = ErrorInfo::new(
                kinds::TIMEOUT,
                format!("it ran for longer than its timeout of {seconds} s"),
            );
            Outcome::Retry { error, after: None }
        }
        (_, outcome) => outcome,
    };
    let mut rest = json!({ "usage": used(&exit.used()) });
    said.take(&mut rest);
    Ended {
        execution_id: given.execution_id.clone(),
        lease_token: given.lease_token.clone(),
        outcome: written(outcome),
        rest,
    }
}

fn not_started(given: &Given, error: SpawnError) -> End {
    let error = ErrorInfo::new(kinds::SPAWN, error.to_string());
    let ended = Ended {
        execution_id: given.execution_id.clone(),
        lease_token: given.lease_token.clone(),
        outcome: written(Outcome::Retry { error, after: None }),
        rest: json!({}),
    };
    End {
        execution_id: given.execution_id.clone(),
        ended: Some(ended),
        crashed: true,
    }
}
