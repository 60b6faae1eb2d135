//! How the server and its queues are.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use pensum_core::TaskId;
use pensum_core::query::StatusCounts;
use pensum_core::store::NodeRecord;
use pensum_engine::{NodeMetrics, Performance, SystemStatus};
use serde::Serialize;

use crate::app::{App, Listing, json};
use crate::executions::Window;
use crate::extract::{Caller, NAMESPACE, Params};
use crate::problem::{Kind, Problem, ProblemDetails};

/// How long a store may take to show that it is there.
const READY_TIMEOUT: Duration = Duration::from_secs(2);

/// Tells how the system is: counts, agents, health.
#[utoipa::path(get, path = "/api/v1/system/status", operation_id = "get_status", tag = "system",
    responses((status = 200, description = "The status", body = SystemStatus)))]
pub(crate) async fn status(State(app): State<App>, _: Caller) -> Result<Response, Problem> {
    Ok(json(StatusCode::OK, &app.engine.status().await?))
}

/// Tells what this node has done since it was built.
#[utoipa::path(get, path = "/api/v1/system/metrics", operation_id = "get_metrics", tag = "system",
    responses((status = 200, description = "The counters of this node", body = NodeMetrics)))]
pub(crate) async fn metrics(State(app): State<App>, _: Caller) -> Response {
    json(StatusCode::OK, &app.engine.metrics())
}

/// Tells how well agents work, what this node's machine has for tasks, and what the runs of each handler took.
#[utoipa::path(get, path = "/api/v1/system/performance", operation_id = "get_performance", tag = "system",
    responses((status = 200, description = "The report", body = Performance)))]
pub(crate) async fn performance(State(app): State<App>, _: Caller) -> Result<Response, Problem> {
    Ok(json(StatusCode::OK, &app.engine.performance(NAMESPACE).await?))
}

/// Lists the nodes that work on the store, oldest first: those that were heard within the last hour and did not end.
#[utoipa::path(get, path = "/api/v1/nodes", operation_id = "list_nodes", tag = "system",
    params(("limit" = Option<usize>, Query, description = "How many items, 1 to 200; 50 by default"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, description = "One page", body = Listing<NodeRecord>)))]
pub(crate) async fn nodes(State(app): State<App>, params: Params) -> Result<Response, Problem> {
    let window = Window::of(params)?;
    let all = app.engine.nodes().await?;
    Ok(json(StatusCode::OK, &window.cut(all, |node| node)))
}

/// How many tasks of each status there are.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct QueueStats {
    /// Queued for later, or waiting for dependencies.
    pending_tasks: u64,
    /// Queued and due.
    ready_tasks: u64,
    /// Held by a node or an agent, or waiting in the middle of their run.
    running_tasks: u64,
    /// Queued for later after a failure.
    retrying_tasks: u64,
    /// Held back on request.
    paused_tasks: u64,
    /// Ended well.
    completed_tasks: u64,
    /// Ended badly.
    failed_tasks: u64,
    /// Ended on request.
    cancelled_tasks: u64,
}

impl From<&StatusCounts> for QueueStats {
    fn from(counts: &StatusCounts) -> QueueStats {
        QueueStats {
            pending_tasks: counts.pending,
            ready_tasks: counts.ready,
            running_tasks: counts.running,
            retrying_tasks: counts.retrying,
            paused_tasks: counts.paused,
            completed_tasks: counts.completed,
            failed_tasks: counts.failed,
            cancelled_tasks: counts.cancelled,
        }
    }
}

/// The counts of all queues together, and of each.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct AllQueueStats {
    #[serde(flatten)]
    total: QueueStats,
    /// Failed tasks in the dead-letter queue.
    dead_letters: u64,
    /// By queue.
    queues: BTreeMap<String, QueueStats>,
}

/// Counts tasks by status, per queue and in all.
#[utoipa::path(get, path = "/api/v1/queues/stats", operation_id = "get_queue_stats", tag = "queues",
    responses((status = 200, description = "The counts", body = AllQueueStats)))]
pub(crate) async fn queues(State(app): State<App>, Caller(call): Caller) -> Result<Response, Problem> {
    let counts = app.engine.store().counts(NAMESPACE, call.now).await?;
    let answer = AllQueueStats {
        total: QueueStats::from(&counts.total()),
        dead_letters: counts.dead_letters,
        queues: counts
            .queues
            .iter()
            .map(|(name, counts)| (name.clone(), QueueStats::from(counts)))
            .collect(),
    };
    Ok(json(StatusCode::OK, &answer))
}

/// How a probe finds the server.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct Health {
    /// `ok`.
    status: &'static str,
    /// How long the server has been up, in seconds.
    uptime_seconds: f64,
}

/// Tells that the process lives; asks nothing of the store.
#[utoipa::path(get, path = "/healthz", operation_id = "get_health", tag = "system",
    responses((status = 200, description = "It lives", body = Health)))]
pub(crate) async fn healthz(State(app): State<App>) -> Response {
    json(StatusCode::OK, &health(&app))
}

/// Tells whether the server takes work: its store answers, and it is not shutting down.
#[utoipa::path(get, path = "/readyz", operation_id = "get_readiness", tag = "system",
    responses(
        (status = 200, description = "It takes work", body = Health),
        (status = 503, description = "It does not, and why", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn readyz(State(app): State<App>) -> Result<Response, Problem> {
    if app.draining.is_cancelled() || !app.engine.is_accepting() {
        return Err(Problem::new(
            Kind::Unavailable,
            "the node takes no work: it has not started yet, or is shutting down",
        ));
    }
    // A read and a write of nothing: the two may have failed apart.
    let store = app.engine.store();
    let probe = async {
        store.task(NAMESPACE, TaskId::from_bytes([0; 16])).await?;
        store.renew(Vec::new(), Duration::from_secs(1), app.engine.now()).await
    };
    match tokio::time::timeout(READY_TIMEOUT, probe).await {
        Ok(answer) => answer?,
        Err(_) => {
            let detail = format!("the store has not answered within {} s", READY_TIMEOUT.as_secs());
            return Err(Problem::new(Kind::Unavailable, detail));
        }
    };
    Ok(json(StatusCode::OK, &health(&app)))
}

fn health(app: &App) -> Health {
    Health {
        status: "ok",
        uptime_seconds: app.engine.now().since(app.options.started_at).as_secs_f64(),
    }
}
