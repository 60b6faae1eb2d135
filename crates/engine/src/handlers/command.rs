//! `command`: runs a program as a subprocess.

use async_trait::async_trait;
use pensum_core::input::Invalid;
use pensum_core::store::LogStream;
use pensum_core::{ErrorInfo, Json, Outcome};
use std::time::Duration;

use super::bad_parameters;
use crate::process::{CommandSpec, Process, ProcessHandle, SpawnError, Stream, progress_of};
use crate::run::StopReason;
use crate::{Context, Handler, kinds};

/// What a command leaves of the grace for the killing of what outlives its `SIGTERM`.
const KILL_TIME: Duration = Duration::from_secs(1);
/// How long after a pause could not be noted it is tried again.
const PAUSE_AGAIN: Duration = Duration::from_secs(1);

/// `command {program, args, env, cwd, stdin, limits}`: exit code 0 is done, and standard output is the result: as JSON
/// where it is JSON, else as `{"stdout": …, "exit_code": 0}`. Any other end is a failure that is tried again.
///
/// On cancel and timeout the whole process tree gets `SIGTERM`, and what is left of it after the grace `SIGKILL`. On
/// pause it gets `SIGSTOP`, on resume `SIGCONT`.
#[derive(Clone, Copy, Debug)]
pub struct CommandHandler;

#[async_trait]
impl Handler for CommandHandler {
    async fn run(&self, ctx: Context) -> Outcome {
        match spec(&ctx.spec().parameters) {
            Ok(spec) => run_command(&ctx, &spec).await,
            Err(invalid) => Outcome::Fail(bad_parameters(&invalid)),
        }
    }

    fn can_pause(&self) -> bool {
        true
    }

    fn check(&self, parameters: &Json) -> Result<(), Invalid> {
        spec(parameters).map(drop)
    }
}

fn spec(parameters: &Json) -> Result<CommandSpec, Invalid> {
    CommandSpec::from_json(&parameters.value()).map_err(|error| {
        let path = if error.field == "." { String::new() } else { error.field };
        Invalid::one(path, error.problem)
    })
}

/// Runs a command for a task: what `command` does, for handlers that make their command in another way.
pub(crate) async fn run_command(ctx: &Context, spec: &CommandSpec) -> Outcome {
    let env = match environment(ctx).await {
        Ok(env) => env,
        Err(error) => return Outcome::Retry { error, after: None },
    };
    let lines = ctx.clone();
    let process = match Process::spawn(spec, env, move |stream, line| take_line(&lines, stream, line)) {
        Ok(process) => process,
        Err(error) => return not_started(error),
    };
    let handle = process.handle();
    let mut end = std::pin::pin!(process.wait());
    let ended = tokio::select! {
        biased;
        exit = &mut end => Some(exit),
        () = follow_pauses(ctx, &handle) => None,
        () = ctx.cancellation().cancelled() => None,
    };
    if let Some(exit) = ended {
        ctx.usage(exit.used());
        return exit.outcome();
    }
    // Many programs exit with code 0 when they are told to stop, so what they say now is no success.
    let (_, exit) = tokio::join!(handle.stop(stop_grace(ctx)), end);
    ctx.usage(exit.used());
    Outcome::Cancelled
}

async fn environment(ctx: &Context) -> Result<Vec<(String, String)>, ErrorInfo> {
    let mut env = vec![
        ("PENSUM_TASK_ID".to_owned(), ctx.id().to_string()),
        ("PENSUM_ATTEMPT".to_owned(), ctx.attempt().to_string()),
    ];
    let failed = ctx.failed_dependencies().await?;
    if !failed.is_empty() {
        let ids: Vec<_> = failed.iter().map(ToString::to_string).collect();
        env.push(("PENSUM_FAILED_DEPENDENCIES".to_owned(), ids.join(",")));
    }
    Ok(env)
}

/// Time between `SIGTERM` and `SIGKILL`: short where the task may run elsewhere already.
fn stop_grace(ctx: &Context) -> Duration {
    let grace = ctx.grace();
    let grace = grace.checked_sub(KILL_TIME).unwrap_or(grace / 2);
    match ctx.stop_reason() {
        Some(StopReason::LeaseLost) => grace.min(KILL_TIME),
        _ => grace,
    }
}

fn take_line(ctx: &Context, stream: Stream, line: String) {
    match stream {
        Stream::Stdout => ctx.log_line(LogStream::Stdout, line),
        Stream::Stderr => match progress_of(&line) {
            Some((percent, message)) => ctx.progress(percent, message),
            None => ctx.log_line(LogStream::Stderr, line),
        },
    }
}

/// Stops and continues the process tree as the task is paused and resumed. Returns when the lease is lost.
async fn follow_pauses(ctx: &Context, handle: &ProcessHandle) {
    loop {
        if !ctx.pause_changed().await {
            handle.resume().await;
            continue;
        }
        handle.pause().await;
        while ctx.pause_requested() {
            match ctx.paused().await {
                Ok(()) => break,
                Err(error) if error.kind == kinds::STORE_UNAVAILABLE => {
                    let again = ctx.now().plus(PAUSE_AGAIN);
                    ctx.engine().seams().clock.sleep_until(again).await;
                }
                Err(_) => return,
            }
        }
        if !ctx.pause_requested() {
            handle.resume().await;
        }
    }
}

fn not_started(error: SpawnError) -> Outcome {
    match error {
        SpawnError::Invalid(error) => Outcome::Fail(ErrorInfo::new(kinds::BAD_PARAMETERS, error.to_string())),
        error => Outcome::Retry {
            error: ErrorInfo::new(kinds::SPAWN, error.to_string()),
            after: None,
        },
    }
}
