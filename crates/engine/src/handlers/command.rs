//! `command`: runs a program as a subprocess.

use async_trait::async_trait;
use pensum_core::input::Invalid;
use pensum_core::outcome::Usage;
use pensum_core::store::LogStream;
use pensum_core::{ErrorInfo, Json, Outcome};
use serde_json::json;
use std::time::Duration;

use super::bad_parameters;
use crate::process::{CommandSpec, Exit, ExitReason, Process, ProcessHandle, SpawnError, Stream};
use crate::run::StopReason;
use crate::{Context, Handler, kinds};

/// A line on standard error that begins with this sets the task's progress: `pensum:progress 40 almost half`.
const PROGRESS_PREFIX: &str = "pensum:progress ";
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
        ctx.usage(usage(&exit));
        return outcome(&exit);
    }
    // Many programs exit with code 0 when they are told to stop, so what they say now is no success.
    let (_, exit) = tokio::join!(handle.stop(stop_grace(ctx)), end);
    ctx.usage(usage(&exit));
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
        Stream::Stderr => match progress(&line) {
            Some((percent, message)) => ctx.progress(percent, message),
            None => ctx.log_line(LogStream::Stderr, line),
        },
    }
}

fn progress(line: &str) -> Option<(f64, Option<String>)> {
    let rest = line.strip_prefix(PROGRESS_PREFIX)?.trim();
    let (percent, message) = rest.split_once(' ').unwrap_or((rest, ""));
    let percent: f64 = percent
        .trim_end_matches('%')
        .parse()
        .ok()
        .filter(|p: &f64| p.is_finite())?;
    let message = message.trim();
    Some((percent, (!message.is_empty()).then(|| message.to_owned())))
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

fn usage(exit: &Exit) -> Usage {
    Usage {
        cpu_seconds: Some(exit.usage.cpu_seconds),
        cpu_percent: Some(exit.usage.cpu_percent),
        memory_mb: Some(exit.usage.memory_mb),
        wall_seconds: exit.usage.wall_seconds,
    }
}

fn outcome(exit: &Exit) -> Outcome {
    if exit.success() {
        return Outcome::Done(result(exit));
    }
    let (kind, what) = match exit.reason {
        ExitReason::CpuExceeded => (
            kinds::CPU_EXCEEDED,
            "it used more processor time than limits.cpu_seconds".into(),
        ),
        ExitReason::MemoryExceeded => (kinds::MEMORY_EXCEEDED, "it used more memory than limits.memory".into()),
        ExitReason::WallExceeded => (kinds::WALL_EXCEEDED, "it ran for longer than limits.wall".into()),
        ExitReason::Signalled => {
            let name = exit.signal_name.map(str::to_owned);
            let name = name
                .or_else(|| exit.signal.map(|n| format!("signal {n}")))
                .unwrap_or_else(|| "a signal".into());
            (kinds::SIGNAL, format!("{name} ended it"))
        }
        ExitReason::Exited => match exit.code {
            Some(code) => (kinds::EXIT_CODE, format!("it exited with code {code}")),
            None => (kinds::EXIT_CODE, "its exit code was lost".to_owned()),
        },
    };
    let tail = exit.stderr_tail.trim_end();
    let message = if tail.is_empty() {
        what
    } else {
        format!("{what}: {tail}")
    };
    Outcome::Retry {
        error: ErrorInfo::new(kind, message),
        after: None,
    }
}

/// Standard output as the task's result.
fn result(exit: &Exit) -> Json {
    let text = exit.stdout.trim();
    if !exit.stdout_truncated
        && !text.is_empty()
        && let Ok(json) = Json::parse(text.to_owned())
        && json.problem().is_none()
    {
        return json;
    }
    // Escapes make JSON longer than the text; what does not fit is cut, and said to be.
    let mut keep = exit.stdout.as_str();
    let mut truncated = exit.stdout_truncated;
    loop {
        let mut value = json!({ "stdout": keep, "exit_code": 0 });
        if truncated {
            value["stdout_truncated"] = json!(true);
        }
        let json = Json::from(value);
        if json.problem().is_none() || keep.is_empty() {
            return json;
        }
        keep = &keep[..keep.floor_char_boundary(keep.len() / 2)];
        truncated = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: Option<(f64, Option<&str>)>) {
        assert_eq!(
            progress(line),
            expected.map(|(p, m)| (p, m.map(str::to_owned))),
            "{line}"
        );
    }

    #[test]
    fn a_progress_line_is_a_percentage_and_words() {
        check("pensum:progress 40 almost half", Some((40.0, Some("almost half"))));
        check("pensum:progress 12.5%", Some((12.5, None)));
        check("pensum:progress soon", None);
        check("pensum:progress NaN x", None);
        check("progress 40", None);
    }
}
