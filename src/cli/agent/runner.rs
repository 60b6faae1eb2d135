//! What runs one task: a program, or a call of an endpoint.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pensum_core::{ErrorInfo, Outcome};
use pensum_engine::kinds;
use pensum_engine::process::{
    CommandSpec, Exit, ExitReason, Limits, Process, ProcessHandle, SpawnError, SpecError, Stream,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::super::now;
use super::http::Endpoint;
use super::work::{Ended, Given, Said, written};

/// The exit code by which a program says that another attempt would fail, too: `EX_DATAERR` of sysexits.h.
const NOT_RETRYABLE: i32 = 65;

/// What runs tasks.
#[derive(Clone, Debug)]
pub(super) enum Runner {
    /// A program for each task.
    Program {
        /// The program and its arguments.
        argv: Vec<String>,
        /// Variables beside those of the task.
        env: BTreeMap<String, String>,
        /// What each run may use; how long it may take says its task.
        limits: Limits,
    },
    /// A call for each task.
    Endpoint(Endpoint),
}

/// Reads what each run of a program may use: `memory` and `cpu_seconds`.
pub(super) fn read_limits(limits: &Value) -> Result<Limits, SpecError> {
    let spec = CommandSpec::from_json(&json!({ "program": "any", "limits": limits }))?;
    match spec.limits.wall {
        None => Ok(spec.limits),
        Some(_) => Err(SpecError {
            field: "limits.wall".to_owned(),
            problem: "is what the `timeout` of a task says; leave it out".to_owned(),
        }),
    }
}

/// A run that goes on.
pub(super) struct Running {
    pub(super) given: Given,
    pub(super) said: Arc<Mutex<Said>>,
    brake: Brake,
    asked: Arc<Mutex<Asked>>,
}

/// How a run is ended from outside.
enum Brake {
    Process(ProcessHandle),
    Call(CancellationToken),
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

/// A run, and its end.
type Started = (Running, Pin<Box<dyn Future<Output = End> + Send>>);

impl Runner {
    /// Starts a run for a task. `Err` is the end of one that never was.
    pub(super) fn start(&self, given: Given) -> Result<Started, Box<End>> {
        match self {
            Runner::Program { argv, env, limits } => start_program(argv, env, limits, given),
            Runner::Endpoint(endpoint) => Ok(start_call(endpoint.clone(), given)),
        }
    }
}

fn start_program(
    argv: &[String],
    env: &BTreeMap<String, String>,
    limits: &Limits,
    given: Given,
) -> Result<Started, Box<End>> {
    let (program, args) = argv
        .split_first()
        .map_or(("", &[] as &[String]), |(first, rest)| (first.as_str(), rest));
    let mut spec = CommandSpec::new(program);
    spec.args = args.to_vec();
    spec.env.clone_from(env);
    spec.stdin = Some(given.input());
    spec.limits = Limits {
        wall: given.timeout(),
        ..limits.clone()
    };
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
        brake: Brake::Process(process.handle()),
        said,
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
    Ok((running, Box::pin(end)))
}

fn start_call(endpoint: Endpoint, given: Given) -> Started {
    let stopped = CancellationToken::new();
    let running = Running {
        brake: Brake::Call(stopped.clone()),
        said: Arc::default(),
        asked: Arc::default(),
        given: given.clone(),
    };
    let asked = Arc::clone(&running.asked);
    let end = async move {
        let ended = endpoint.call(&given, &stopped).await;
        // An endpoint that was not heard to the end has no say any more.
        let ended = ended.or_else(|| {
            let outcome = match *asked.lock() {
                Asked::Cancel => Outcome::Cancelled,
                Asked::Release => Outcome::Released,
                Asked::Nothing | Asked::Abandon => return None,
            };
            Some(Ended {
                execution_id: given.execution_id.clone(),
                lease_token: given.lease_token.clone(),
                outcome: written(outcome),
                rest: json!({}),
                checkpoint: None,
            })
        });
        End {
            execution_id: given.execution_id,
            crashed: false,
            ended,
        }
    };
    (running, Box::pin(end))
}

impl Running {
    /// Stops it, because somebody cancelled the task.
    pub(super) fn cancel(&self, grace: Duration) {
        self.stop(Asked::Cancel, grace);
    }

    /// Stops it, and gives the task back.
    pub(super) fn release(&self, grace: Duration) {
        self.stop(Asked::Release, grace);
    }

    /// Stops it at once: the task runs elsewhere, or has ended.
    pub(super) fn abandon(&self) {
        self.stop(Asked::Abandon, Duration::from_secs(1));
    }

    /// Holds it, or lets it go on.
    pub(super) async fn pause(&self, pause: bool) {
        let Brake::Process(handle) = &self.brake else { return };
        match (pause, handle.is_paused()) {
            (true, false) => handle.pause().await,
            (false, true) => handle.resume().await,
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
        match &self.brake {
            Brake::Process(handle) => {
                let handle = handle.clone();
                tokio::spawn(async move { handle.stop(grace).await });
            }
            Brake::Call(stopped) => stopped.cancel(),
        }
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
    let mut rest = json!({ "usage": exit.used() });
    said.take(&mut rest);
    Ended {
        execution_id: given.execution_id.clone(),
        lease_token: given.lease_token.clone(),
        outcome: written(outcome),
        rest,
        checkpoint: said.take_checkpoint(),
    }
}

fn not_started(given: &Given, error: SpawnError) -> End {
    let error = ErrorInfo::new(kinds::SPAWN, error.to_string());
    let ended = Ended {
        execution_id: given.execution_id.clone(),
        lease_token: given.lease_token.clone(),
        outcome: written(Outcome::Retry { error, after: None }),
        rest: json!({}),
        checkpoint: None,
    };
    End {
        execution_id: given.execution_id.clone(),
        ended: Some(ended),
        crashed: true,
    }
}
