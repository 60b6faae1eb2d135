//! `/tasks/bulk`: one command for every task of a filter, carried out by a durable task of its own.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::Response;
use pensum_core::TaskId;
use pensum_engine::BulkRequest;
use serde::Serialize;

use crate::app::{App, json};
use crate::extract::Submission;
use crate::problem::{Problem, ProblemDetails};
use crate::tasks::location;

/// What became of a bulk request.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct BulkStarted {
    /// The task that carries it out; its progress is the progress of the whole. Absent after a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    task_id: Option<TaskId>,
    /// How many tasks matched the filter when it was asked.
    matched: u64,
}

/// Cancels, retries, deletes, pauses or resumes every task of a filter.
///
/// 202 with the id of the task that does the work: read that task for its progress. A filter without any field is
/// refused unless `all` is true.
#[utoipa::path(post, path = "/api/v1/tasks/bulk", operation_id = "start_bulk", tag = "commands", request_body = BulkRequest,
    responses(
        (status = 202, description = "Begun", body = BulkStarted, headers(("Location" = String))),
        (status = 200, description = "A dry run: nothing was done", body = BulkStarted),
        (status = 409, description = "The Idempotency-Key was used for another request", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 422, description = "Some values are wrong", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn start(State(app): State<App>, submission: Submission) -> Result<Response, Problem> {
    let request: BulkRequest = submission.parse()?;
    let receipt = app.engine.bulk(&submission.call, request).await?;
    let answer = BulkStarted {
        task_id: receipt.task,
        matched: receipt.matched,
    };
    let Some(task) = receipt.task else {
        return Ok(json(StatusCode::OK, &answer));
    };
    let mut response = json(StatusCode::ACCEPTED, &answer);
    response.headers_mut().insert(header::LOCATION, location(task)?);
    Ok(response)
}
