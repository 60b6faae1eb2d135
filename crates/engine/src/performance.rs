//! How well a node works, and what its tasks take, in one report.

use std::collections::BTreeMap;

use pensum_core::Time;
use pensum_core::task::Resources;
use serde::Serialize;

use crate::metrics::HandlerMetrics;
use crate::process::{Enforcement, enforcement};
use crate::status::AgentHealth;
use crate::{Engine, EngineError};

/// The answer of `/system/performance`.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Performance {
    /// When it was made.
    #[schema(value_type = String)]
    pub report_timestamp: Time,
    /// Agents by id.
    pub agent_metrics: BTreeMap<String, AgentHealth>,
    /// What this node's machine has for tasks, and how their limits are enforced.
    pub resource_metrics: ResourceMetrics,
    /// What runs took whose results this node took since it was built, by handler.
    pub handler_metrics: BTreeMap<String, HandlerUsage>,
}

/// What a node's machine has for tasks.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct ResourceMetrics {
    /// What there is; null for whatever tasks ask for.
    pub offered: Option<Resources>,
    /// What tasks that run here asked for.
    pub held: Resources,
    /// How the limits of commands are enforced.
    pub limits: LimitModes,
}

/// How the limits of commands are enforced.
#[derive(Clone, Copy, Debug, Serialize, utoipa::ToSchema)]
pub struct LimitModes {
    /// `cgroup`: the kernel keeps the whole tree of processes within its limit. `sampled`: its memory is measured many times a
    /// second.
    pub memory: &'static str,
    /// `cgroup_and_rlimit`: what the kernel counted of the whole tree is read many times a second, and it bounds the processor
    /// time of each process. `sampled_and_rlimit`: that of the whole tree is measured instead.
    pub cpu: &'static str,
    /// `watched`: by a clock that stands still while the task is paused.
    pub wall: &'static str,
}

impl LimitModes {
    /// In the words of the report.
    pub const fn of(enforcement: Enforcement) -> LimitModes {
        let (memory, cpu) = match enforcement {
            Enforcement::Cgroup => ("cgroup", "cgroup_and_rlimit"),
            Enforcement::Sampled => ("sampled", "sampled_and_rlimit"),
        };
        LimitModes {
            memory,
            cpu,
            wall: "watched",
        }
    }
}

/// What the runs of a handler took.
#[derive(Clone, Copy, Debug, Serialize, utoipa::ToSchema)]
pub struct HandlerUsage {
    /// Runs that ended.
    pub runs: u64,
    /// The sum of their wall times, in seconds.
    pub wall_seconds: f64,
    /// The sum of their processor time, of those that measured it, in seconds.
    pub cpu_seconds: f64,
    /// The most memory that one of them used, of those that measured it, in MB.
    pub memory_mb_max: f64,
    /// What they read from storage, of those that measured it, in MB.
    pub read_mb: f64,
    /// What they wrote to storage, of those that measured it, in MB.
    pub written_mb: f64,
}

impl HandlerUsage {
    fn of(metrics: &HandlerMetrics) -> HandlerUsage {
        HandlerUsage {
            runs: metrics.durations.iter().sum(),
            wall_seconds: metrics.duration_sum_seconds,
            cpu_seconds: metrics.cpu_sum_seconds,
            memory_mb_max: metrics.memory_mb_max,
            read_mb: metrics.read_mb_sum,
            written_mb: metrics.written_mb_sum,
        }
    }
}

impl Engine {
    /// How well this node works, and what its tasks take.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn performance(&self, namespace: &str) -> Result<Performance, EngineError> {
        let handlers = self.handler_metrics();
        let used = handlers
            .iter()
            .filter(|metrics| metrics.durations.iter().sum::<u64>() > 0);
        Ok(Performance {
            report_timestamp: self.now(),
            agent_metrics: crate::status::agents(self, namespace).await?,
            resource_metrics: ResourceMetrics {
                offered: self.offered().map(|offered| offered.resources()),
                held: self.live().held().resources(),
                limits: LimitModes::of(enforcement()),
            },
            handler_metrics: used
                .map(|metrics| (metrics.handler.to_string(), HandlerUsage::of(metrics)))
                .collect(),
        })
    }
}
