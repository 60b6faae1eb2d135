//! Agents as users read them.

use std::collections::BTreeMap;

use pensum_core::Time;
use pensum_core::agent::{AgentRecord, AgentStatus};
use pensum_core::task::Resources;
use pensum_core::time::Span;
use serde::Serialize;

/// An agent as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct AgentView {
    /// Its id, which tasks name as `agent_id`.
    pub id: String,
    /// A name for people; the id where there is none.
    pub name: String,
    /// What kind of agent it is, in its author's words.
    pub agent_type: Option<String>,
    /// The version of its program.
    pub agent_version: Option<String>,
    /// What it can do.
    pub capabilities: Vec<String>,
    /// How many tasks it runs at once.
    pub max_concurrent_tasks: u32,
    /// What its machine has for tasks.
    pub resources: Option<Resources>,
    /// Free text for people and lists.
    pub labels: BTreeMap<String, String>,
    /// How long its leases last without a heartbeat, and how long it may be silent, in seconds.
    #[schema(value_type = f64)]
    pub lease: Span,
    /// How it is.
    pub status: AgentStatus,
    /// It is given nothing more.
    pub draining: bool,
    /// Since when it is given nothing more.
    #[schema(value_type = Option<String>)]
    pub draining_at: Option<Time>,
    /// How many leases it holds now.
    pub active_tasks: u64,
    /// When it was last heard; null once it said that it goes.
    #[schema(value_type = Option<String>)]
    pub seen_at: Option<Time>,
    /// When it was registered first.
    #[schema(value_type = String)]
    pub created_at: Time,
    /// When it was changed last.
    #[schema(value_type = String)]
    pub changed_at: Time,
    /// Who registered it last.
    pub created_by: String,
    /// Grows with each change of what it says of itself and each command.
    pub version: u64,
}

impl AgentView {
    pub(super) fn of(record: AgentRecord, now: Time) -> AgentView {
        let (status, lease) = (record.status(now), Span(record.settings.lease()));
        let id = record.name.to_string();
        let settings = record.settings;
        AgentView {
            name: settings.title.unwrap_or_else(|| id.clone()),
            id,
            agent_type: settings.agent_type,
            agent_version: settings.agent_version,
            capabilities: settings.capabilities.iter().map(ToString::to_string).collect(),
            max_concurrent_tasks: settings.max_concurrent_tasks,
            resources: settings.resources,
            labels: settings.labels,
            lease,
            status,
            draining: record.draining_at.is_some(),
            draining_at: record.draining_at,
            active_tasks: record.running,
            seen_at: record.seen_at,
            created_at: record.created_at,
            changed_at: record.changed_at,
            created_by: record.put_by.to_string(),
            version: record.version,
        }
    }
}
