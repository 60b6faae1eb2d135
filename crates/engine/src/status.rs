//! The system in one answer.

use std::collections::BTreeMap;

use pensum_core::Status;
use pensum_core::agent::AgentStatus;
use pensum_core::store::NodeRecord;
use serde::Serialize;

use crate::{AgentView, Engine, EngineError};

/// This program's version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The answer of `/system/status`.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct SystemStatus {
    /// `running`, `stopping`, or `idle` for a node that was not started.
    pub status: String,
    /// The program's version.
    pub version: String,
    /// Seconds since this node was built.
    pub uptime_seconds: f64,
    /// All tasks in the store.
    pub total_tasks: u64,
    /// How many tasks have each status.
    pub task_counts: BTreeMap<String, u64>,
    /// Tasks that run on this node now.
    pub active_tasks: u64,
    /// Attempts that have ended.
    pub total_executions: u64,
    /// Queues with unfinished tasks.
    pub active_queues: u64,
    /// How many agents are known.
    pub registered_agents: u64,
    /// Agents by id.
    pub agent_status: BTreeMap<String, AgentHealth>,
    /// How well it works.
    pub performance_metrics: PerformanceMetrics,
    /// What the store holds.
    pub persistence_stats: PersistenceStats,
    /// The nodes that work on the store.
    pub nodes: Vec<NodeRecord>,
}

/// One agent.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the names say it")]
pub struct AgentHealth {
    pub name: String,
    pub status: AgentStatus,
    pub active_tasks: u64,
    /// The share of its newest 100 runs that did not fail, as far as this node took their results: 0 to 1, and 1 while there
    /// are none.
    pub health_score: f64,
}

/// How well the system works.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct PerformanceMetrics {
    /// The mean of the agents' health scores, 0 to 1; where no agent is known, the success rate.
    pub overall_health: f64,
    /// Completed ÷ (completed + failed), 0 to 1; 1 when nothing has ended yet.
    pub success_rate: f64,
    /// Tasks that ended on this node, per minute since it was built.
    pub tasks_per_minute: f64,
    /// Mean wall time of a run on this node, in seconds.
    pub average_duration_seconds: f64,
    /// Slots of this node that are taken ÷ slots, 0 to 1.
    pub slot_utilization: f64,
}

/// What the store holds.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct PersistenceStats {
    /// Unfinished tasks.
    pub active: u64,
    /// Completed tasks.
    pub completed: u64,
    /// Failed tasks.
    pub errored: u64,
    /// Records that could not be read: a store refuses a damaged file as a whole, so it keeps none aside.
    pub quarantined: u64,
}

/// The agents, and how well each works.
pub(crate) async fn agents(engine: &Engine, namespace: &str) -> Result<BTreeMap<String, AgentHealth>, EngineError> {
    let agents = engine.agents(namespace, None, None).await?;
    let of = |agent: AgentView| {
        let health = AgentHealth {
            health_score: engine.inner_agents().health.score(namespace, &agent.id),
            name: agent.name,
            status: agent.status,
            active_tasks: agent.active_tasks,
        };
        (agent.id, health)
    };
    Ok(agents.into_iter().map(of).collect())
}

fn mean(scores: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let count = scores.len();
    (count > 0).then(|| scores.sum::<f64>() / count as f64)
}

pub(crate) async fn status(engine: &Engine, namespace: &str) -> Result<SystemStatus, EngineError> {
    let counts = engine.store().counts(namespace, engine.now()).await?;
    let total = counts.total();
    let node = engine.metrics();
    let decided = total.completed + total.failed;
    let success_rate = if decided == 0 {
        1.0
    } else {
        total.completed as f64 / decided as f64
    };
    let state = match (engine.is_accepting(), engine.live().is_started()) {
        (true, _) => "running",
        (false, true) => "stopping",
        (false, false) => "idle",
    };
    let agents = agents(engine, namespace).await?;
    let overall_health = mean(agents.values().map(|agent| agent.health_score)).unwrap_or(success_rate);
    Ok(SystemStatus {
        status: state.to_owned(),
        version: VERSION.to_owned(),
        uptime_seconds: node.uptime_seconds,
        total_tasks: total.sum(),
        task_counts: Status::ALL
            .into_iter()
            .map(|s| (s.as_str().to_owned(), total.of(s)))
            .collect(),
        active_tasks: engine.running() as u64,
        total_executions: counts.executions,
        active_queues: counts.queues.values().filter(|q| q.unfinished() > 0).count() as u64,
        registered_agents: agents.len() as u64,
        agent_status: agents,
        performance_metrics: PerformanceMetrics {
            overall_health,
            success_rate,
            tasks_per_minute: node.tasks_per_minute,
            average_duration_seconds: node.average_duration_seconds,
            slot_utilization: node.concurrent_tasks as f64 / node.slots as f64,
        },
        persistence_stats: PersistenceStats {
            active: total.unfinished(),
            completed: total.completed,
            errored: total.failed,
            quarantined: 0,
        },
        nodes: engine.nodes().await?,
    })
}
