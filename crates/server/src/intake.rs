//! `/intake`: what other programs left in the store within transactions of their own, and was not enqueued yet.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use pensum_core::Json;
use pensum_core::id::clip;
use pensum_core::intake::{IntakeRecord, IntakeStatus};
use pensum_core::query::Page;
use pensum_engine::EngineError;
use serde::{Deserialize, Serialize};

use crate::app::{App, Listing, json};
use crate::cursor::{self, List};
use crate::extract::{BATCH_BODY_MAX, Caller, NAMESPACE, Params, Segment, Submission};
use crate::problem::{Kind, Problem, ProblemDetails};

/// What to try again with.
#[derive(Default, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct IntakeRetry {
    /// A task, or a batch, to stand in the row from now on; what is there by default.
    #[serde(default)]
    #[schema(value_type = Option<serde_json::Value>)]
    task: Option<Json>,
}

/// A row that waits again.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct IntakeRetried {
    /// Its number in the intake.
    id: i64,
    /// `waiting`.
    status: IntakeStatus,
}

/// Lists the rows of the intake, newest first: those that wait to be enqueued, and those that were refused.
#[utoipa::path(get, path = "/api/v1/intake", operation_id = "list_intake", tag = "intake",
    params(("status" = Option<IntakeStatus>, Query, description = "Only rows that wait, or only rejected ones"),
        ("limit" = Option<usize>, Query, description = "How many items, 1 to 200; 50 by default"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses(
        (status = 200, description = "One page; empty for a store without an intake", body = Listing<IntakeRecord>),
        (status = 400, description = "An unknown or wrong parameter, or an altered cursor", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn list(State(app): State<App>, mut params: Params) -> Result<Response, Problem> {
    let status = params.read::<IntakeStatus>("status")?;
    let limit = params.limit()?;
    let before_row = params
        .text("cursor")?
        .map(|text| cursor::decode(List::Intake, &text))
        .transpose()?;
    params.finish()?;
    let found = app.engine.intake(NAMESPACE, status, Page { limit, before_row }).await?;
    let next_cursor = found.next.map(|row| cursor::encode(List::Intake, row));
    let items: Vec<IntakeRecord> = found.items;
    Ok(json(StatusCode::OK, &Listing { items, next_cursor }))
}

/// Has a rejected row looked at again, as it is or with another task.
#[utoipa::path(post, path = "/api/v1/intake/{id}/retry", operation_id = "retry_intake", tag = "intake", request_body = Option<IntakeRetry>,
    params(("id" = i64, Path, description = "The number of the row")),
    responses(
        (status = 202, description = "It waits to be enqueued", body = IntakeRetried),
        (status = 404, description = "No such row: it was enqueued or deleted meanwhile, or never was", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "It waits already and cannot be given another task, or the Idempotency-Key was used for another request", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 422, description = "The task would be refused again", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn retry(
    State(app): State<App>,
    Segment(id): Segment,
    submission: Submission<BATCH_BODY_MAX>,
) -> Result<Response, Problem> {
    let id = number(&id)?;
    let IntakeRetry { task } = submission.parse_or_default()?;
    match app.engine.retry_intake(&submission.call, id, task).await {
        Ok(true) => {
            let status = IntakeStatus::Waiting;
            Ok(json(StatusCode::ACCEPTED, &IntakeRetried { id, status }))
        }
        Ok(false) => Err(no_row(id)),
        Err(EngineError::Invalid(mut invalid)) => {
            for problem in invalid.0.iter_mut().filter(|problem| problem.path != "task") {
                let dot = if problem.path.is_empty() { "" } else { "." };
                problem.path = format!("task{dot}{}", problem.path);
            }
            Err(invalid.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Removes a row, so that it is never enqueued.
#[utoipa::path(delete, path = "/api/v1/intake/{id}", operation_id = "delete_intake", tag = "intake",
    params(("id" = i64, Path, description = "The number of the row")),
    responses(
        (status = 204, description = "Gone"),
        (status = 404, description = "No such row: it was enqueued or deleted meanwhile, or never was", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn delete(
    State(app): State<App>,
    Segment(id): Segment,
    Caller(call): Caller,
) -> Result<Response, Problem> {
    let id = number(&id)?;
    match app.engine.delete_intake(&call, id).await? {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(no_row(id)),
    }
}

/// The number of a row. What is no number names no row: 404.
fn number(text: &str) -> Result<i64, Problem> {
    text.parse().map_err(|_| no_row(clip(text)))
}

fn no_row(id: impl std::fmt::Display) -> Problem {
    let detail = format!("there is no row {id} in the intake; one that was enqueued is there no more");
    Problem::new(Kind::NotFound, detail)
}
