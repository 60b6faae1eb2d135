//! `/tasks`: create, list, read, change, delete, and what one task depends on.

use std::collections::HashMap;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pensum_core::input::{Patch, TaskInput};
use pensum_core::query::{Page, TaskFilter};
use pensum_core::store::{Command, Enqueued};
use pensum_core::task::NewTask;
use pensum_core::view::TaskView;
use pensum_core::{Lifecycle, Status, TaskId, TaskRecord, Time};
use pensum_engine::Explanation;
use serde::Serialize;

use crate::app::{App, Listing, json, tagged};
use crate::cursor::{self, List};
use crate::extract::{Caller, NAMESPACE, Params, Submission, TaskPath, if_match};
use crate::problem::{Kind, Problem, ProblemDetails};

/// Says that the answer is that of an earlier request with the same `Idempotency-Key`.
pub(crate) const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// The handlers that run whatever their parameters say.
const INLINE: [&str; 2] = ["command", "http"];
/// Longest text to search for, in characters.
const SEARCH_MAX: usize = 200;
/// How many tasks on either side the dependencies of a task show.
const RELATIVES_MAX: usize = 1_000;

/// Creates a task.
///
/// 201 with the new task; 200 with the existing one when its `unique` key, or the `Idempotency-Key`, led to that.
#[utoipa::path(post, path = "/api/v1/tasks", operation_id = "create_task", tag = "tasks", request_body = TaskInput,
    responses(
        (status = 201, description = "Created", body = TaskView, headers(("Location" = String))),
        (status = 200, description = "There already: kept by its unique key, or created by an earlier request with the same Idempotency-Key (then with `Idempotency-Replayed: true`)", body = TaskView),
        (status = 403, description = "Inline `command` and `http` are not allowed here", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "The unique key is taken, or the Idempotency-Key was used for another request", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 422, description = "Some values are wrong", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 429, description = "The queue is full, or at a limit at which the task is not to wait; `Retry-After` where that is known", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn create(State(app): State<App>, submission: Submission) -> Result<Response, Problem> {
    let input: TaskInput = submission.parse()?;
    let call = submission.call;
    let mut task = input.resolve(&HashMap::new(), call.now)?;
    check_inline(&app, std::slice::from_ref(&task)).map_err(Problem::of_single)?;
    if let Some(traceparent) = submission.traceparent {
        task.spec.details_mut().traceparent = Some(traceparent);
    }
    let certain_replay = call.idempotency.is_some() && task.unique.is_none();
    let single = |error| Problem::from(error).of_single();
    let prepared = app.engine.prepare(&call.namespace, vec![task]).await.map_err(single)?;
    // What was asked for is the whole truth about a task without dependencies: no need to read it back.
    let known = prepared
        .tasks()
        .first()
        .filter(|task| task.depends_on.is_empty())
        .cloned();
    let enqueued = app.engine.enqueue_prepared(&call, prepared).await.map_err(single)?;
    let Some(&Enqueued { id, created }) = enqueued.first() else {
        return Err(Problem::internal(&"the store answered an enqueue without an id"));
    };
    let view = match known {
        Some(task) if created => fresh(id, task, call.now),
        _ => read(&app, id).await?,
    };
    let mut response = json(if created { StatusCode::CREATED } else { StatusCode::OK }, &view);
    if created {
        response.headers_mut().insert(header::LOCATION, location(id)?);
    } else if certain_replay {
        response
            .headers_mut()
            .insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// The view of a task that was just enqueued.
fn fresh(id: TaskId, task: NewTask, now: Time) -> TaskView {
    let policy = task
        .spec
        .details
        .as_ref()
        .map(|d| d.on_dependency_failure)
        .unwrap_or_default();
    let record = TaskRecord {
        id,
        created_at: now,
        lifecycle: Lifecycle::new(now, task.run_at, 0, policy),
        spec: task.spec,
        progress: None,
        result: None,
        error: None,
        depends_on: Vec::new(),
        version: 1,
    };
    TaskView::of(record, now)
}

/// Refuses tasks that would run whatever they say, where that is not allowed.
pub(crate) fn check_inline(app: &App, tasks: &[NewTask]) -> Result<(), Problem> {
    if app.options.allow_inline {
        return Ok(());
    }
    match tasks.iter().position(|task| INLINE.contains(&&*task.spec.handler)) {
        None => Ok(()),
        Some(index) => Err(inline_refused(
            format!("tasks[{index}].handler"),
            &tasks[index].spec.handler,
        )),
    }
}

fn inline_refused(path: impl Into<String>, handler: &str) -> Problem {
    let message = format!(
        "inline `{handler}` tasks are not allowed on this server; use a handler that its configuration binds to a \
         command or call, or set handlers.allow_inline"
    );
    Problem::at(Kind::Forbidden, path, message)
}

/// Lists tasks, newest first.
#[utoipa::path(get, path = "/api/v1/tasks", operation_id = "list_tasks", tag = "tasks", params(TaskFilter,
        ("limit" = Option<usize>, Query, description = "How many items, 1 to 200; 50 by default"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses(
        (status = 200, description = "One page; `next_cursor` is null at the end. A page may be short before the end where matches are rare", body = Listing<TaskView>),
        (status = 400, description = "An unknown or wrong parameter, or an altered cursor", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn list(State(app): State<App>, mut params: Params) -> Result<Response, Problem> {
    let mut filter = filter(&mut params)?;
    filter.dead_lettered = params.flag("dead_lettered")?;
    let limit = params.limit()?;
    let before_row = params
        .text("cursor")?
        .map(|text| cursor::decode(List::Tasks, &text))
        .transpose()?;
    params.finish()?;
    let now = app.engine.now();
    let found = app
        .engine
        .store()
        .tasks(NAMESPACE, filter, Page { limit, before_row }, now)
        .await?;
    let items = found
        .items
        .into_iter()
        .map(|record| TaskView::of(record, now))
        .collect();
    let next_cursor = found.next.map(|row| cursor::encode(List::Tasks, row));
    Ok(json(StatusCode::OK, &Listing { items, next_cursor }))
}

/// The filter in a query, but for `dead_lettered`.
pub(crate) fn filter(params: &mut Params) -> Result<TaskFilter, Problem> {
    let mut status: Vec<Status> = Vec::new();
    for text in params.all("status") {
        for name in text.split(',') {
            let one = name
                .trim()
                .parse()
                .map_err(|message| Problem::at(Kind::BadRequest, "status", message))?;
            if !status.contains(&one) {
                status.push(one);
            }
        }
    }
    Ok(TaskFilter {
        status,
        queue: params.text("queue")?.map(Into::into),
        handler: params.text("handler")?.map(Into::into),
        task_type: params.text("task_type")?,
        priority: params.read("priority")?,
        assigned_to: params.text("assigned_to")?,
        agent_id: params.text("agent_id")?,
        created_by: params.text("created_by")?,
        key: params.text("key")?.map(Into::into),
        tag: params.text("tag")?,
        workflow_id: params.read("workflow_id")?,
        parent_id: params.read("parent_id")?,
        created_after: params.with("created_after", Time::parse)?,
        created_before: params.with("created_before", Time::parse)?,
        dead_lettered: None,
        q: params.with("q", |text| match text.chars().count() {
            0..=SEARCH_MAX => Ok(text.to_owned()),
            _ => Err(format!("is longer than {SEARCH_MAX} characters")),
        })?,
    })
}

/// Reads a task. The ETag is its version, for `If-Match`.
#[utoipa::path(get, path = "/api/v1/tasks/{id}", operation_id = "get_task", tag = "tasks",
    params(("id" = String, Path, description = "The task's id, a UUID")),
    responses(
        (status = 200, description = "The task", body = TaskView, headers(("ETag" = String))),
        (status = 404, description = "No such task", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn get(State(app): State<App>, TaskPath(id): TaskPath, _: Caller) -> Result<Response, Problem> {
    let view = read(&app, id).await?;
    Ok(tagged(view.version, &view))
}

/// Changes a task. What may change depends on where it is: after its end only what describes it.
#[utoipa::path(patch, path = "/api/v1/tasks/{id}", operation_id = "update_task", tag = "tasks", request_body = Patch,
    params(("id" = String, Path, description = "The task's id, a UUID"),
        ("If-Match" = Option<String>, Header, description = "The version that was read, in quotes: refused with 412 when it is another by now")),
    responses(
        (status = 200, description = "The task afterwards", body = TaskView, headers(("ETag" = String))),
        (status = 404, description = "No such task", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "Its state does not allow the change", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 412, description = "It changed meanwhile", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 422, description = "Some values are wrong", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn patch(
    State(app): State<App>,
    TaskPath(id): TaskPath,
    headers: HeaderMap,
    submission: Submission,
) -> Result<Response, Problem> {
    let expected = if_match(&headers)?;
    let patch: Patch = submission.parse()?;
    let call = submission.call;
    patch.check(call.now)?;
    if patch.parameters.is_some() && !app.options.allow_inline {
        // New parameters would be a new command: refused like a new task.
        let task = app
            .engine
            .store()
            .task(NAMESPACE, id)
            .await?
            .ok_or_else(|| Problem::no_task(id))?;
        if INLINE.contains(&&*task.spec.handler) {
            return Err(inline_refused("parameters", &task.spec.handler));
        }
    }
    let record = app.engine.update(&call, id, patch, expected).await?;
    let view = TaskView::of(record, call.now);
    Ok(tagged(view.version, &view))
}

/// Deletes a task and everything about it. Refused while it runs, and while unfinished tasks depend on it.
#[utoipa::path(delete, path = "/api/v1/tasks/{id}", operation_id = "delete_task", tag = "tasks",
    params(("id" = String, Path, description = "The task's id, a UUID")),
    responses(
        (status = 204, description = "Gone"),
        (status = 404, description = "No such task", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 409, description = "It runs, or unfinished tasks depend on it", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn delete(
    State(app): State<App>,
    TaskPath(id): TaskPath,
    Caller(call): Caller,
) -> Result<Response, Problem> {
    for result in app.engine.command(&call, vec![id], Command::Delete).await? {
        result?;
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// A task on the other side of a dependency.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct Relative {
    /// Its id.
    #[schema(value_type = String)]
    id: TaskId,
    /// Its name.
    name: String,
    /// Its handler.
    handler: String,
    /// Where it is.
    status: Status,
}

/// What a task waits for, and what waits for it.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct Dependencies {
    /// The tasks that it depends on, the first 1,000.
    depends_on: Vec<Relative>,
    /// The tasks that depend on it, the first 1,000.
    dependants: Vec<Relative>,
    /// How many tasks depend on it.
    dependants_total: usize,
}

/// Tells what a task waits for, and what waits for it.
#[utoipa::path(get, path = "/api/v1/tasks/{id}/dependencies", operation_id = "get_dependencies", tag = "tasks",
    params(("id" = String, Path, description = "The task's id, a UUID")),
    responses(
        (status = 200, description = "Both sides", body = Dependencies),
        (status = 404, description = "No such task", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn dependencies(
    State(app): State<App>,
    TaskPath(id): TaskPath,
    Caller(call): Caller,
) -> Result<Response, Problem> {
    let store = app.engine.store();
    let task = store.task(NAMESPACE, id).await?.ok_or_else(|| Problem::no_task(id))?;
    let dependants = store.dependants(NAMESPACE, id).await?;
    let answer = Dependencies {
        depends_on: relatives(&app, &task.depends_on, call.now).await?,
        dependants: relatives(&app, &dependants, call.now).await?,
        dependants_total: dependants.len(),
    };
    Ok(json(StatusCode::OK, &answer))
}

async fn relatives(app: &App, ids: &[TaskId], now: Time) -> Result<Vec<Relative>, Problem> {
    let mut found = Vec::with_capacity(ids.len().min(RELATIVES_MAX));
    for &id in ids.iter().take(RELATIVES_MAX) {
        // One that was pruned or deleted meanwhile has nothing to show.
        if let Some(task) = app.engine.store().task(NAMESPACE, id).await? {
            found.push(Relative {
                id,
                name: task.spec.display_name().to_owned(),
                handler: task.spec.handler.to_string(),
                status: Status::of(&task.lifecycle, now),
            });
        }
    }
    Ok(found)
}

/// Tells why a task is not running: every gate, since when, and when it is expected to open.
#[utoipa::path(get, path = "/api/v1/tasks/{id}/explain", operation_id = "explain_task", tag = "tasks",
    params(("id" = String, Path, description = "The task's id, a UUID")),
    responses(
        (status = 200, description = "The explanation", body = Explanation),
        (status = 404, description = "No such task", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn explain(State(app): State<App>, TaskPath(id): TaskPath, _: Caller) -> Result<Response, Problem> {
    Ok(json(StatusCode::OK, &app.engine.explain(NAMESPACE, id).await?))
}

/// The task as it is now.
pub(crate) async fn read(app: &App, id: TaskId) -> Result<TaskView, Problem> {
    let record = app
        .engine
        .store()
        .task(NAMESPACE, id)
        .await?
        .ok_or_else(|| Problem::no_task(id))?;
    Ok(TaskView::of(record, app.engine.now()))
}

/// Where a task can be read.
pub(crate) fn location(id: TaskId) -> Result<HeaderValue, Problem> {
    HeaderValue::try_from(format!("/api/v1/tasks/{id}")).map_err(|error| Problem::internal(&error))
}
