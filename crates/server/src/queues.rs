//! `/queues`: their settings, and what is asked of them.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use pensum_core::input::QueueInput;
use pensum_core::queue::QueueCommand;
use pensum_engine::QueueView;

use crate::app::{App, Listing, json, tagged};
use crate::commands::Nothing;
use crate::executions::Window;
use crate::extract::{Caller, NAMESPACE, Params, Segment, Submission, if_match};
use crate::problem::{Problem, ProblemDetails};

/// Lists the queues that somebody put and those that hold tasks, by id.
#[utoipa::path(get, path = "/api/v1/queues", operation_id = "list_queues", tag = "queues",
    params(("limit" = Option<usize>, Query, description = "How many items, 1 to 200; 50 by default"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, description = "One page", body = Listing<QueueView>)))]
pub(crate) async fn list(State(app): State<App>, params: Params) -> Result<Response, Problem> {
    let window = Window::of(params)?;
    let all = app.engine.list_queues(NAMESPACE).await?;
    Ok(json(StatusCode::OK, &window.cut(all, |queue| queue)))
}

/// Reads a queue. The ETag is its version, for `If-Match`.
#[utoipa::path(get, path = "/api/v1/queues/{name}", operation_id = "get_queue", tag = "queues",
    params(("name" = String, Path, description = "The queue's id")),
    responses(
        (status = 200, description = "The queue", body = QueueView, headers(("ETag" = String))),
        (status = 404, description = "Nobody put it, and no task is in it", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn get(State(app): State<App>, Segment(name): Segment, _: Caller) -> Result<Response, Problem> {
    let queue = app.engine.queue(NAMESPACE, &name).await?;
    Ok(tagged(queue.version, &queue))
}

/// Gives a queue settings, and makes it where there is none. What the body does not name gets its default.
#[utoipa::path(put, path = "/api/v1/queues/{name}", operation_id = "put_queue", tag = "queues", request_body = QueueInput,
    params(("name" = String, Path, description = "The queue's id"),
        ("If-Match" = Option<String>, Header, description = "The version that was read, in quotes, \"0\" for a queue without settings: refused with 412 when it is another by now")),
    responses(
        (status = 200, description = "The queue afterwards", body = QueueView, headers(("ETag" = String))),
        (status = 409, description = "There are 1,000 queues with settings already", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 412, description = "It changed meanwhile", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 422, description = "Some values are wrong", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn put(
    State(app): State<App>,
    Segment(name): Segment,
    headers: HeaderMap,
    submission: Submission,
) -> Result<Response, Problem> {
    let expected = if_match(&headers)?;
    let input: QueueInput = submission.parse()?;
    let queue = app.engine.put_queue(&submission.call, &name, input, expected).await?;
    Ok(tagged(queue.version, &queue))
}

/// Takes a queue's settings away. Refused while it holds unfinished tasks, which would all start at once.
#[utoipa::path(delete, path = "/api/v1/queues/{name}", operation_id = "delete_queue", tag = "queues",
    params(("name" = String, Path, description = "The queue's id")),
    responses(
        (status = 204, description = "Gone"),
        (status = 404, description = "Nobody put it", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "It holds unfinished tasks", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn delete(
    State(app): State<App>,
    Segment(name): Segment,
    Caller(call): Caller,
) -> Result<Response, Problem> {
    app.engine.delete_queue(&call, &name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Starts nothing more of a queue; what runs goes on.
#[utoipa::path(post, path = "/api/v1/queues/{name}/pause", operation_id = "pause_queue", tag = "queues", request_body = Option<Nothing>,
    params(("name" = String, Path, description = "The queue's id")),
    responses(
        (status = 200, description = "The queue afterwards, also when it was paused already", body = QueueView),
        (status = 404, description = "Nobody put it, and no task is in it", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "There are 1,000 queues with settings already", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn pause(app: State<App>, name: Segment, submission: Submission) -> Result<Response, Problem> {
    command(app, name, submission, QueueCommand::Pause).await
}

/// Starts the tasks of a paused queue again.
#[utoipa::path(post, path = "/api/v1/queues/{name}/resume", operation_id = "resume_queue", tag = "queues", request_body = Option<Nothing>,
    params(("name" = String, Path, description = "The queue's id")),
    responses(
        (status = 200, description = "The queue afterwards, also when it was not paused", body = QueueView),
        (status = 404, description = "Nobody put it, and no task is in it", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn resume(app: State<App>, name: Segment, submission: Submission) -> Result<Response, Problem> {
    command(app, name, submission, QueueCommand::Resume).await
}

/// Lets everything start that is in a queue without `auto_start` now. What is enqueued later waits for the next time.
#[utoipa::path(post, path = "/api/v1/queues/{name}/process", operation_id = "process_queue", tag = "queues", request_body = Option<Nothing>,
    params(("name" = String, Path, description = "The queue's id")),
    responses(
        (status = 200, description = "The queue afterwards, also when it starts by itself", body = QueueView),
        (status = 404, description = "Nobody put it, and no task is in it", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "It is paused", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn process(app: State<App>, name: Segment, submission: Submission) -> Result<Response, Problem> {
    command(app, name, submission, QueueCommand::Process).await
}

async fn command(
    State(app): State<App>,
    Segment(name): Segment,
    submission: Submission,
    command: QueueCommand,
) -> Result<Response, Problem> {
    submission.parse_or_default::<Nothing>()?;
    let queue = app.engine.command_queue(&submission.call, &name, command).await?;
    Ok(tagged(queue.version, &queue))
}
