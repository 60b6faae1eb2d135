//! `/tasks/{id}/…`: what a person asks of one task.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use pensum_core::input::Invalid;
use pensum_core::store::{Call, Command, Rejected};
use pensum_core::transition::Interrupt;
use pensum_core::view::TaskView;
use pensum_core::{Json, TaskId};
use serde::{Deserialize, Serialize};

use crate::app::{App, json};
use crate::extract::{Submission, TaskPath};
use crate::problem::{Problem, ProblemDetails};
use crate::tasks::read;

/// Longest reason of a cancellation, in characters.
const REASON_MAX: usize = 1_000;
/// Longest name of a signal, in characters.
const SIGNAL_NAME_MAX: usize = 200;

/// The body of a command that takes nothing: empty, or an empty object.
#[derive(Default, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

/// Why a task is cancelled.
#[derive(Default, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CancelInput {
    /// Shown as the error of the task; at most 1,000 characters.
    #[serde(default)]
    reason: Option<String>,
}

/// A signal for a task's inbox.
#[derive(Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignalInput {
    /// Its name, 1 to 200 characters.
    name: String,
    /// What it carries: any JSON, `null` by default.
    #[serde(default)]
    #[schema(value_type = Option<serde_json::Value>)]
    payload: Json,
}

/// Runs a waiting task now instead of at its time.
#[utoipa::path(post, path = "/api/v1/tasks/{id}/execute", operation_id = "execute_task", tag = "commands", request_body = Option<Nothing>,
    params(("id" = String, Path, description = "The task's id, a UUID")),
    responses(
        (status = 200, description = "The task afterwards", body = TaskView),
        (status = 404, description = "No such task", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "Its state does not allow it", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn execute(state: State<App>, path: TaskPath, submission: Submission) -> Result<Response, Problem> {
    submission.parse_or_default::<Nothing>()?;
    carry_out(state, path, submission.call, Command::RunNow).await
}

/// Cancels a task: at once while it waits; a running one is asked to stop, and killed after the grace time.
#[utoipa::path(post, path = "/api/v1/tasks/{id}/cancel", operation_id = "cancel_task", tag = "commands", request_body = Option<CancelInput>,
    params(("id" = String, Path, description = "The task's id, a UUID")),
    responses(
        (status = 200, description = "Cancelled", body = TaskView),
        (status = 202, description = "It runs, and was asked to stop", body = TaskView),
        (status = 404, description = "No such task", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "It has ended already", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn cancel(state: State<App>, path: TaskPath, submission: Submission) -> Result<Response, Problem> {
    let CancelInput { reason } = submission.parse_or_default()?;
    if let Some(reason) = &reason {
        check_text("reason", reason, 0, REASON_MAX)?;
    }
    carry_out(state, path, submission.call, Command::Cancel { reason }).await
}

/// Holds a task back; a running one is asked to pause, where its handler can.
#[utoipa::path(post, path = "/api/v1/tasks/{id}/pause", operation_id = "pause_task", tag = "commands", request_body = Option<Nothing>,
    params(("id" = String, Path, description = "The task's id, a UUID")),
    responses(
        (status = 200, description = "Paused", body = TaskView),
        (status = 202, description = "It runs, and was asked to pause", body = TaskView),
        (status = 404, description = "No such task", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "It has ended, or cannot pause while it runs", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn pause(state: State<App>, path: TaskPath, submission: Submission) -> Result<Response, Problem> {
    submission.parse_or_default::<Nothing>()?;
    carry_out(state, path, submission.call, Command::Pause).await
}

/// Lets a paused task go on.
#[utoipa::path(post, path = "/api/v1/tasks/{id}/resume", operation_id = "resume_task", tag = "commands", request_body = Option<Nothing>,
    params(("id" = String, Path, description = "The task's id, a UUID")),
    responses(
        (status = 200, description = "The task afterwards", body = TaskView),
        (status = 404, description = "No such task", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "It is not paused", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn resume(state: State<App>, path: TaskPath, submission: Submission) -> Result<Response, Problem> {
    submission.parse_or_default::<Nothing>()?;
    carry_out(state, path, submission.call, Command::Resume).await
}

/// Runs a task again after it ended, or now instead of after its delay.
#[utoipa::path(post, path = "/api/v1/tasks/{id}/retry", operation_id = "retry_task", tag = "commands", request_body = Option<Nothing>,
    params(("id" = String, Path, description = "The task's id, a UUID")),
    responses(
        (status = 200, description = "The task afterwards", body = TaskView),
        (status = 404, description = "No such task", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "Its state does not allow it, or its unique key was taken by another task", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn retry(state: State<App>, path: TaskPath, submission: Submission) -> Result<Response, Problem> {
    submission.parse_or_default::<Nothing>()?;
    carry_out(state, path, submission.call, Command::Retry).await
}

/// Puts a signal into a task's inbox, and wakes it if it waits for that name.
#[utoipa::path(post, path = "/api/v1/tasks/{id}/signal", operation_id = "signal_task", tag = "commands", request_body = SignalInput,
    params(("id" = String, Path, description = "The task's id, a UUID")),
    responses(
        (status = 200, description = "The task afterwards", body = TaskView),
        (status = 404, description = "No such task", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "It has ended, or its inbox is full", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 422, description = "Some values are wrong", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn signal(state: State<App>, path: TaskPath, submission: Submission) -> Result<Response, Problem> {
    let SignalInput { name, payload } = submission.parse()?;
    check_text("name", &name, 1, SIGNAL_NAME_MAX)?;
    if let Some(problem) = payload.problem() {
        return Err(Invalid::one("payload", problem).into());
    }
    carry_out(
        state,
        path,
        submission.call,
        Command::Signal {
            name: name.into(),
            payload,
        },
    )
    .await
}

async fn carry_out(
    State(app): State<App>,
    TaskPath(id): TaskPath,
    call: Call,
    command: Command,
) -> Result<Response, Problem> {
    let status = apply(&app, id, &call, command).await?;
    Ok(json(status, &read(&app, id).await?))
}

async fn apply(app: &App, id: TaskId, call: &Call, command: Command) -> Result<StatusCode, Problem> {
    let mut results = app.engine.command(call, vec![id], command).await?;
    match results.pop() {
        Some(Ok(applied)) => {
            let asked = matches!(applied.interrupt, Some(Interrupt::Cancel | Interrupt::Pause));
            let goes_on = applied.state.is_some_and(|state| !state.is_terminal());
            Ok(if asked && goes_on {
                StatusCode::ACCEPTED
            } else {
                StatusCode::OK
            })
        }
        Some(Err(Rejected::Nothing(_))) => Ok(StatusCode::OK),
        Some(Err(rejected)) => Err(rejected.into()),
        None => Err(Problem::internal(&"the store answered a command without a result")),
    }
}

fn check_text(path: &str, text: &str, least: usize, most: usize) -> Result<(), Problem> {
    let message = if text.contains('\0') {
        "contains the NUL character, which cannot be stored".to_owned()
    } else if !(least..=most).contains(&text.chars().count()) {
        format!("must be {least} to {most} characters long")
    } else {
        return Ok(());
    };
    Err(Invalid::one(path, message).into())
}
