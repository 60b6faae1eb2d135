//! Attempts and the history of tasks.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use pensum_core::outcome::ErrorInfo;
use pensum_core::query::Page;
use pensum_core::store::TaskEvent;
use pensum_core::transition::EventKind;
use pensum_core::view::ExecutionView;
use pensum_core::{ExecutionId, TaskId, Time};
use serde::Serialize;

use crate::app::{App, Listing, json};
use crate::cursor::{self, List};
use crate::extract::{Caller, NAMESPACE, Params, Segment, TaskPath};
use crate::problem::{Kind, Problem, ProblemDetails};

/// Something that happened to a task.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct EventView {
    /// Order within the store, as far as one was kept; 0 for what follows from the task's own columns.
    seq: u64,
    /// When.
    #[schema(value_type = String)]
    at: Time,
    /// What.
    kind: EventKind,
    /// Who caused it.
    actor: Option<String>,
    /// In which attempt.
    attempt: u32,
    /// The error, where there is one.
    error: Option<ErrorInfo>,
}

impl From<TaskEvent> for EventView {
    fn from(event: TaskEvent) -> EventView {
        let TaskEvent {
            seq,
            at,
            kind,
            actor,
            attempt,
            error,
        } = event;
        EventView {
            seq,
            at,
            kind,
            actor: actor.map(|a| a.to_string()),
            attempt,
            error,
        }
    }
}

/// Lists the attempts of a task, first to last, the present one included.
#[utoipa::path(get, path = "/api/v1/tasks/{id}/executions", operation_id = "list_executions_of_task", tag = "executions",
    params(("id" = String, Path, description = "The task's id, a UUID"),
        ("limit" = Option<usize>, Query, description = "How many items, 1 to 200; 50 by default"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses(
        (status = 200, description = "One page", body = Listing<ExecutionView>),
        (status = 404, description = "No such task", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn of_task(
    State(app): State<App>,
    TaskPath(id): TaskPath,
    params: Params,
) -> Result<Response, Problem> {
    let window = Window::of(params)?;
    check_exists(&app, id).await?;
    let all = app.engine.store().executions(NAMESPACE, id).await?;
    Ok(json(StatusCode::OK, &window.cut(all, ExecutionView::from)))
}

/// Lists what happened to a task, oldest first.
#[utoipa::path(get, path = "/api/v1/tasks/{id}/events", operation_id = "list_events", tag = "tasks",
    params(("id" = String, Path, description = "The task's id, a UUID"),
        ("limit" = Option<usize>, Query, description = "How many items, 1 to 200; 50 by default"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses(
        (status = 200, description = "One page", body = Listing<EventView>),
        (status = 404, description = "No such task", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn events(
    State(app): State<App>,
    TaskPath(id): TaskPath,
    params: Params,
) -> Result<Response, Problem> {
    let window = Window::of(params)?;
    check_exists(&app, id).await?;
    let all = app.engine.store().events(NAMESPACE, id).await?;
    Ok(json(StatusCode::OK, &window.cut(all, EventView::from)))
}

/// Lists the ended attempts of all tasks, those of the newest tasks first; with `task_id` the attempts of that task.
#[utoipa::path(get, path = "/api/v1/executions", operation_id = "list_executions", tag = "executions",
    params(("task_id" = Option<String>, Query, description = "Only the attempts of this task, running ones included"),
        ("limit" = Option<usize>, Query, description = "How many items, 1 to 200; 50 by default"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses(
        (status = 200, description = "One page", body = Listing<ExecutionView>),
        (status = 400, description = "An unknown or wrong parameter, or an altered cursor", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn list(State(app): State<App>, mut params: Params) -> Result<Response, Problem> {
    if let Some(task) = params.read::<TaskId>("task_id")? {
        let window = Window::of(params)?;
        let all = app.engine.store().executions(NAMESPACE, task).await?;
        return Ok(json(StatusCode::OK, &window.cut(all, ExecutionView::from)));
    }
    let limit = params.limit()?;
    let before_row = params
        .text("cursor")?
        .map(|text| cursor::decode(List::Executions, &text))
        .transpose()?;
    params.finish()?;
    let found = app
        .engine
        .store()
        .all_executions(NAMESPACE, Page { limit, before_row })
        .await?;
    let items = found.items.into_iter().map(ExecutionView::from).collect();
    let next_cursor = found.next.map(|row| cursor::encode(List::Executions, row));
    Ok(json(StatusCode::OK, &Listing { items, next_cursor }))
}

/// Reads one attempt.
#[utoipa::path(get, path = "/api/v1/executions/{id}", operation_id = "get_execution", tag = "executions",
    params(("id" = String, Path, description = "The execution's id: the task's id, a dot and the attempt's number")),
    responses(
        (status = 200, description = "The attempt", body = ExecutionView),
        (status = 404, description = "No such attempt", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn get(State(app): State<App>, Segment(text): Segment, _: Caller) -> Result<Response, Problem> {
    let id: ExecutionId = text
        .parse()
        .map_err(|sentence: String| Problem::new(Kind::NotFound, sentence))?;
    let all = app.engine.store().executions(NAMESPACE, id.task).await?;
    match all.into_iter().find(|execution| execution.attempt == id.attempt) {
        Some(execution) => Ok(json(StatusCode::OK, &ExecutionView::from(execution))),
        None => Err(Problem::new(Kind::NotFound, format!("there is no execution {id}"))),
    }
}

/// 404 when there is no such task: a list about it would be empty and say nothing.
pub(crate) async fn check_exists(app: &App, id: TaskId) -> Result<(), Problem> {
    match app.engine.store().task(NAMESPACE, id).await? {
        Some(_) => Ok(()),
        None => Err(Problem::no_task(id)),
    }
}

/// A page of a list that is short enough to be read as a whole, by position.
pub(crate) struct Window {
    from: usize,
    limit: usize,
}

impl Window {
    pub(crate) fn of(mut params: Params) -> Result<Window, Problem> {
        let limit = params.limit()?;
        let from = params
            .text("cursor")?
            .map(|text| cursor::decode(List::Items, &text))
            .transpose()?;
        params.finish()?;
        Ok(Window {
            from: from.and_then(|f| usize::try_from(f).ok()).unwrap_or_default(),
            limit,
        })
    }

    pub(crate) fn cut<T, V>(&self, all: Vec<T>, view: impl Fn(T) -> V) -> Listing<V> {
        let end = self.from.saturating_add(self.limit);
        let next_cursor = (end < all.len()).then(|| cursor::encode(List::Items, end as i64));
        let items = all.into_iter().skip(self.from).take(self.limit).map(view).collect();
        Listing { items, next_cursor }
    }
}
