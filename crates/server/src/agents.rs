//! `/agents`: programs outside the nodes that register, ask for tasks and bring results.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use pensum_core::agent::{AgentCommand, AgentStatus};
use pensum_core::id::clip;
use pensum_core::input::AgentInput;
use pensum_engine::{Accepted, AgentView, Heard, HeartbeatInput, PollInput, Polled, ResultInput};
use serde::{Deserialize, Serialize};

use crate::app::{App, Listing, json};
use crate::commands::Nothing;
use crate::executions::Window;
use crate::extract::{Caller, NAMESPACE, Params, Segment, Submission, WORK_BODY_MAX};
use crate::problem::{Problem, ProblemDetails};

/// The session that an agent ends.
#[derive(Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LeaveInput {
    /// As it was named in polls.
    session: String,
}

/// Results of runs, at most 1,000.
#[derive(Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CompleteInput {
    /// The results.
    results: Vec<ResultInput>,
}

/// What became of results.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct Completed {
    /// Of each, in order.
    results: Vec<Accepted>,
}

/// Registers an agent, or changes what it said of itself before. It counts as a sign of life.
#[utoipa::path(post, path = "/api/v1/agents", operation_id = "register_agent", tag = "agents", request_body = AgentInput,
    responses(
        (status = 201, description = "The agent is new", body = AgentView),
        (status = 200, description = "It was registered before, and is as it says now", body = AgentView),
        (status = 409, description = "There are 10,000 agents already", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 422, description = "Some values are wrong", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn register(State(app): State<App>, submission: Submission) -> Result<Response, Problem> {
    let input: AgentInput = submission.parse()?;
    let (view, is_new) = app.engine.register_agent(&submission.call, input).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok(json(status, &view))
}

/// Lists agents by id.
#[utoipa::path(get, path = "/api/v1/agents", operation_id = "list_agents", tag = "agents",
    params(("status" = Option<AgentStatus>, Query, description = "Only agents with this status"),
        ("capability" = Option<String>, Query, description = "Only agents with this capability"),
        ("limit" = Option<usize>, Query, description = "How many items, 1 to 200; 50 by default"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses(
        (status = 200, description = "One page", body = Listing<AgentView>),
        (status = 400, description = "An unknown or wrong parameter, or an altered cursor", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn list(State(app): State<App>, mut params: Params) -> Result<Response, Problem> {
    let status = params.with("status", |text| match text {
        "idle" => Ok(AgentStatus::Idle),
        "busy" => Ok(AgentStatus::Busy),
        "offline" => Ok(AgentStatus::Offline),
        other => Err(format!("must be idle, busy or offline, not `{}`", clip(other))),
    })?;
    let capability = params.text("capability")?;
    let window = Window::of(params)?;
    let all = app.engine.agents(NAMESPACE, status, capability.as_deref()).await?;
    Ok(json(StatusCode::OK, &window.cut(all, |agent| agent)))
}

/// Reads an agent.
#[utoipa::path(get, path = "/api/v1/agents/{id}", operation_id = "get_agent", tag = "agents",
    params(("id" = String, Path, description = "The agent's id")),
    responses(
        (status = 200, description = "The agent", body = AgentView),
        (status = 404, description = "It is not registered", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn get(State(app): State<App>, Segment(id): Segment, _: Caller) -> Result<Response, Problem> {
    Ok(json(StatusCode::OK, &app.engine.agent(NAMESPACE, &id).await?))
}

/// Forgets an agent; what it runs is taken from it and runs again.
#[utoipa::path(delete, path = "/api/v1/agents/{id}", operation_id = "remove_agent", tag = "agents",
    params(("id" = String, Path, description = "The agent's id")),
    responses(
        (status = 204, description = "Gone"),
        (status = 404, description = "It is not registered", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn remove(
    State(app): State<App>,
    Segment(id): Segment,
    Caller(call): Caller,
) -> Result<Response, Problem> {
    app.engine.remove_agent(&call, &id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Gives an agent nothing more; what it runs goes on.
#[utoipa::path(post, path = "/api/v1/agents/{id}/drain", operation_id = "drain_agent", tag = "agents", request_body = Option<Nothing>,
    params(("id" = String, Path, description = "The agent's id")),
    responses(
        (status = 200, description = "The agent afterwards, also when it was draining already", body = AgentView),
        (status = 404, description = "It is not registered", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn drain(app: State<App>, id: Segment, submission: Submission) -> Result<Response, Problem> {
    command(app, id, submission, AgentCommand::Drain).await
}

/// Gives a draining agent work again.
#[utoipa::path(post, path = "/api/v1/agents/{id}/undrain", operation_id = "undrain_agent", tag = "agents", request_body = Option<Nothing>,
    params(("id" = String, Path, description = "The agent's id")),
    responses(
        (status = 200, description = "The agent afterwards, also when it was not draining", body = AgentView),
        (status = 404, description = "It is not registered", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn undrain(app: State<App>, id: Segment, submission: Submission) -> Result<Response, Problem> {
    command(app, id, submission, AgentCommand::Undrain).await
}

async fn command(
    State(app): State<App>,
    Segment(id): Segment,
    submission: Submission,
    command: AgentCommand,
) -> Result<Response, Problem> {
    submission.parse_or_default::<Nothing>()?;
    let view = app.engine.command_agent(&submission.call, &id, command).await?;
    Ok(json(StatusCode::OK, &view))
}

/// Ends a session: tasks that it still holds are given back without spending an attempt, and the agent is offline.
#[utoipa::path(post, path = "/api/v1/agents/{id}/leave", operation_id = "leave_agent", tag = "agents", request_body = LeaveInput,
    params(("id" = String, Path, description = "The agent's id")),
    responses(
        (status = 204, description = "It has left"),
        (status = 404, description = "It is not registered", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "The session has ended already, or another took over: type `urn:pensum:problem:session_fenced`", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 422, description = "Some values are wrong", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn leave(
    State(app): State<App>,
    Segment(id): Segment,
    submission: Submission,
) -> Result<Response, Problem> {
    let LeaveInput { session } = submission.parse()?;
    app.engine.leave_agent(&submission.call, &id, &session).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Brings an agent's results, then gives it tasks, for which it may wait. What was given in an answer that never arrived is
/// given again, with the same token, before anything new; a newer poll of the session ends one that waits. It may be
/// repeated as it is, and takes no notice of an `Idempotency-Key`.
#[utoipa::path(post, path = "/api/v1/agents/{id}/poll", operation_id = "poll_agent", tag = "agents", request_body = PollInput,
    params(("id" = String, Path, description = "The agent's id")),
    responses(
        (status = 200, description = "Tasks, and what became of each result", body = Polled),
        (status = 404, description = "It is not registered", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "Another session took over: type `urn:pensum:problem:session_fenced`. Nothing was taken", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 422, description = "Some values are wrong; nothing was taken", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn poll(
    State(app): State<App>,
    Segment(id): Segment,
    submission: Submission<WORK_BODY_MAX>,
) -> Result<Response, Problem> {
    let input: PollInput = submission.parse()?;
    let polled = app
        .engine
        .poll_agent(&submission.call, &id, input, &app.draining)
        .await?;
    Ok(json(StatusCode::OK, &polled))
}

/// Says that an agent lives: renews the leases of the runs that it names, keeps what they say, and answers what was asked of
/// them. It takes no notice of an `Idempotency-Key`.
#[utoipa::path(post, path = "/api/v1/agents/{id}/heartbeat", operation_id = "heartbeat_agent", tag = "agents", request_body = HeartbeatInput,
    params(("id" = String, Path, description = "The agent's id")),
    responses(
        (status = 200, description = "What is asked of its runs", body = Heard),
        (status = 404, description = "It is not registered", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "Another session took over: type `urn:pensum:problem:session_fenced`", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 422, description = "Some values are wrong; nothing was kept", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn heartbeat(
    State(app): State<App>,
    Segment(id): Segment,
    submission: Submission<WORK_BODY_MAX>,
) -> Result<Response, Problem> {
    let input: HeartbeatInput = submission.parse()?;
    let heard = app.engine.heartbeat_agent(&submission.call, &id, input).await?;
    Ok(json(StatusCode::OK, &heard))
}

/// Brings results of agents' runs, each by its lease token. What was brought before is a repeat, and changes nothing.
#[utoipa::path(post, path = "/api/v1/executions/complete", operation_id = "complete_executions", tag = "agents", request_body = CompleteInput,
    responses(
        (status = 200, description = "What became of each", body = Completed),
        (status = 422, description = "Some values are wrong; nothing was taken", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn complete(
    State(app): State<App>,
    submission: Submission<WORK_BODY_MAX>,
) -> Result<Response, Problem> {
    let CompleteInput { results } = submission.parse()?;
    let results = app.engine.complete_executions(&submission.call, results).await?;
    Ok(json(StatusCode::OK, &Completed { results }))
}
