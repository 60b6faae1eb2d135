//! `/breakers`: circuit breakers, their settings, and what is asked of them.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use pensum_core::breaker::BreakerCommand;
use pensum_core::input::BreakerInput;
use pensum_engine::BreakerView;

use crate::app::{App, Listing, json, tagged};
use crate::commands::Nothing;
use crate::executions::Window;
use crate::extract::{Caller, NAMESPACE, Params, Segment, Submission, if_match};
use crate::problem::{Problem, ProblemDetails};

/// Lists the circuit breakers, by id.
#[utoipa::path(get, path = "/api/v1/breakers", operation_id = "list_breakers", tag = "breakers",
    params(("limit" = Option<usize>, Query, description = "How many items, 1 to 200; 50 by default"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, description = "One page", body = Listing<BreakerView>)))]
pub(crate) async fn list(State(app): State<App>, params: Params) -> Result<Response, Problem> {
    let window = Window::of(params)?;
    let all = app.engine.list_breakers(NAMESPACE).await?;
    Ok(json(StatusCode::OK, &window.cut(all, |breaker| breaker)))
}

/// Reads a circuit breaker. The ETag is its version, for `If-Match`.
#[utoipa::path(get, path = "/api/v1/breakers/{name}", operation_id = "get_breaker", tag = "breakers",
    params(("name" = String, Path, description = "The breaker's id")),
    responses(
        (status = 200, description = "The breaker", body = BreakerView, headers(("ETag" = String))),
        (status = 404, description = "There is none", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn get(State(app): State<App>, Segment(name): Segment, _: Caller) -> Result<Response, Problem> {
    let breaker = app.engine.breaker(NAMESPACE, &name).await?;
    Ok(tagged(breaker.version, &breaker))
}

/// Makes a circuit breaker, or gives it other settings. What the body does not name gets its default.
#[utoipa::path(put, path = "/api/v1/breakers/{name}", operation_id = "put_breaker", tag = "breakers", request_body = BreakerInput,
    params(("name" = String, Path, description = "The breaker's id, such as `handler:send_mail`"),
        ("If-Match" = Option<String>, Header, description = "The version that was read, in quotes, \"0\" for one that is not there: refused with 412 when it is another by now")),
    responses(
        (status = 200, description = "The breaker afterwards", body = BreakerView, headers(("ETag" = String))),
        (status = 409, description = "There are 1,000 breakers already", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 412, description = "It changed meanwhile, or opened or closed", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 422, description = "Some values are wrong", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn put(
    State(app): State<App>,
    Segment(name): Segment,
    headers: HeaderMap,
    submission: Submission,
) -> Result<Response, Problem> {
    let expected = if_match(&headers)?;
    let input: BreakerInput = submission.parse()?;
    let breaker = app.engine.put_breaker(&submission.call, &name, input, expected).await?;
    Ok(tagged(breaker.version, &breaker))
}

/// Removes a circuit breaker; what it held up starts.
#[utoipa::path(delete, path = "/api/v1/breakers/{name}", operation_id = "delete_breaker", tag = "breakers",
    params(("name" = String, Path, description = "The breaker's id")),
    responses(
        (status = 204, description = "Gone"),
        (status = 404, description = "There is none", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn delete(
    State(app): State<App>,
    Segment(name): Segment,
    Caller(call): Caller,
) -> Result<Response, Problem> {
    app.engine.delete_breaker(&call, &name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Closes a circuit breaker, and forgets what it has seen.
#[utoipa::path(post, path = "/api/v1/breakers/{name}/reset", operation_id = "reset_breaker", tag = "breakers", request_body = Option<Nothing>,
    params(("name" = String, Path, description = "The breaker's id")),
    responses(
        (status = 200, description = "The breaker afterwards, also when it was closed already", body = BreakerView),
        (status = 404, description = "There is none", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn reset(app: State<App>, name: Segment, submission: Submission) -> Result<Response, Problem> {
    command(app, name, submission, BreakerCommand::Reset).await
}

/// Opens a circuit breaker now; after its time it lets somebody try.
#[utoipa::path(post, path = "/api/v1/breakers/{name}/trip", operation_id = "trip_breaker", tag = "breakers", request_body = Option<Nothing>,
    params(("name" = String, Path, description = "The breaker's id")),
    responses(
        (status = 200, description = "The breaker afterwards", body = BreakerView),
        (status = 404, description = "There is none", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn trip(app: State<App>, name: Segment, submission: Submission) -> Result<Response, Problem> {
    command(app, name, submission, BreakerCommand::Trip).await
}

async fn command(
    State(app): State<App>,
    Segment(name): Segment,
    submission: Submission,
    command: BreakerCommand,
) -> Result<Response, Problem> {
    submission.parse_or_default::<Nothing>()?;
    let breaker = app.engine.command_breaker(&submission.call, &name, command).await?;
    Ok(tagged(breaker.version, &breaker))
}
