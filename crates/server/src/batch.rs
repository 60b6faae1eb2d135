//! `/tasks/batch`: many tasks in one transaction.

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use pensum_core::TaskId;
use pensum_core::input::BatchInput;
use serde::Serialize;

use crate::app::{App, json};
use crate::extract::{BATCH_BODY_MAX, Submission};
use crate::problem::{Problem, ProblemDetails};
use crate::tasks::{REPLAYED, check_inline};

/// The ids of a batch.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct BatchCreated {
    /// One id for each task of the request, in its order.
    #[schema(value_type = Vec<String>)]
    ids: Vec<TaskId>,
}

/// Creates up to 10,000 tasks, all or none. `depends_on` may name another item by its `ref`.
#[utoipa::path(post, path = "/api/v1/tasks/batch", operation_id = "create_tasks", tag = "tasks", request_body = BatchInput,
    responses(
        (status = 201, description = "Created", body = BatchCreated),
        (status = 200, description = "All were there already: kept by their unique keys, or created by an earlier request with the same Idempotency-Key (then with `Idempotency-Replayed: true`)", body = BatchCreated),
        (status = 409, description = "A unique key is taken, or the Idempotency-Key was used for another request", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 422, description = "Some values are wrong; nothing was created", body = ProblemDetails, content_type = "application/problem+json"),
        (status = 429, description = "A queue is full, or at a limit at which one of the tasks is not to wait; nothing was created", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn create(
    State(app): State<App>,
    submission: Submission<BATCH_BODY_MAX>,
) -> Result<Response, Problem> {
    let input: BatchInput = submission.parse()?;
    let call = submission.call;
    let mut tasks = input.resolve(call.now)?;
    check_inline(&app, &tasks)?;
    if let Some(traceparent) = &submission.traceparent {
        for task in &mut tasks {
            task.spec.details_mut().traceparent = Some(traceparent.clone());
        }
    }
    let certain_replay = call.idempotency.is_some() && tasks.iter().any(|task| task.unique.is_none());
    let enqueued = app.engine.enqueue(&call, tasks).await?;
    let created = enqueued.iter().any(|item| item.created);
    let ids = enqueued.into_iter().map(|item| item.id).collect();
    let mut response = json(
        if created { StatusCode::CREATED } else { StatusCode::OK },
        &BatchCreated { ids },
    );
    if !created && certain_replay {
        response
            .headers_mut()
            .insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}
