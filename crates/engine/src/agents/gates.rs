//! Why no agent takes a task: what none of them offers, whom it is kept for, and who is full.

use std::collections::BTreeMap;

use pensum_core::agent::{AgentRecord, Amounts, Demand};
use pensum_core::query::PAGE_MAX;
use pensum_core::task::Resources;
use pensum_core::{Name, NodeId, Page, Status, TaskFilter, TaskRecord, Time};

use crate::breakers::OpenBreakers;
use crate::explain::{Gate, GateKind, gate};
use crate::{Engine, EngineError};

/// How many agents a message names.
const NAMED_MAX: usize = 20;
/// How many pages of running tasks are looked through for what they take of the agents.
const RUNNING_PAGES_MAX: usize = 5;

/// The agents of a namespace, for whom a task may be.
pub(crate) struct Offers {
    agents: Vec<AgentRecord>,
    now: Time,
}

impl Offers {
    pub(crate) async fn read(engine: &Engine, namespace: &str, now: Time) -> Result<Offers, EngineError> {
        let agents = engine.store().agents(namespace).await?;
        Ok(Offers { agents, now })
    }

    /// The agent that a session is of.
    pub(crate) fn agent_of(&self, session: NodeId) -> Option<&Name> {
        let found = self.agents.iter().find(|agent| agent.session == Some(session));
        found.map(|agent| &agent.name)
    }

    /// True when there is an agent with the capabilities that a task asks for.
    pub(crate) fn suit(&self, handler: &Name, demand: &Demand) -> bool {
        self.suiting(handler, demand).next().is_some()
    }

    fn suiting<'a>(&'a self, handler: &'a Name, demand: &'a Demand) -> impl Iterator<Item = &'a AgentRecord> {
        let suits = |agent: &&AgentRecord| demand.suits_agent(handler, &agent.settings.capabilities);
        self.agents.iter().filter(suits)
    }

    /// What agents there are, for a task that none of them suits.
    pub(crate) fn in_words(&self) -> String {
        if self.agents.is_empty() {
            return "there are no agents".to_owned();
        }
        let offers = |agent: &AgentRecord| {
            let capabilities = agent.settings.capabilities.iter().take(NAMED_MAX);
            let capabilities: Vec<&str> = capabilities.map(|capability| &**capability).collect();
            format!("`{}` ({})", agent.name, capabilities.join(", "))
        };
        format!("there are the agents {}", list(self.agents.iter().map(offers)))
    }

    /// What keeps a task from the agents, and where it is kept for one of them, from everybody else. `here`: this node could
    /// run it. Who is full concerns only a task that is ready.
    pub(crate) fn closed(
        &self,
        record: &TaskRecord,
        demand: &Demand,
        breakers: &OpenBreakers,
        here: bool,
        is_ready: bool,
    ) -> Option<Gate> {
        let handler = &record.spec.handler;
        let preferred = demand.agent.as_ref();
        let preferred = preferred.and_then(|name| self.agents.iter().find(|agent| agent.name == *name));
        if let Some(agent) = preferred
            && agent.is_awaited(handler, demand, self.now)
        {
            return is_ready.then(|| breakers.of_agent(&agent.name).unwrap_or_else(|| kept(agent)));
        }
        let suiting: Vec<&AgentRecord> = self.suiting(handler, demand).collect();
        if here || suiting.is_empty() {
            return None;
        }
        let fitting: Vec<&AgentRecord> = suiting
            .iter()
            .copied()
            .filter(|agent| demand.resources.fits(agent.settings.offered()))
            .collect();
        if fitting.is_empty() {
            return too_large(&suiting, demand);
        }
        let there: Vec<&AgentRecord> = fitting.iter().copied().filter(|agent| self.is_there(agent)).collect();
        if there.is_empty() {
            let away = list(fitting.iter().map(|agent| self.away(agent)));
            let message = format!("the agents that could run it take no work: {away}");
            return Some(Gate {
                since: fitting.iter().filter_map(|agent| self.away_since(agent)).max(),
                ..gate(GateKind::Agent, message)
            });
        }
        let shut: Option<Vec<Gate>> = there.iter().map(|agent| breakers.of_agent(&agent.name)).collect();
        if let Some(shut) = shut {
            return shut.into_iter().min_by_key(|gate| gate.opens_at.unwrap_or(Time::MAX));
        }
        let is_full = |agent: &&AgentRecord| agent.running >= u64::from(agent.settings.max_concurrent_tasks);
        if !is_ready || !there.iter().all(is_full) {
            return None;
        }
        let full = there
            .iter()
            .map(|agent| format!("`{}` runs {}", agent.name, load(agent)));
        let message = format!("every agent that could run it is full: {}", list(full));
        Some(gate(GateKind::Slot, message))
    }

    /// The gate of a task that every agent that could run it is short of resources for: others hold them.
    pub(crate) async fn short(
        &self,
        engine: &Engine,
        namespace: &str,
        handler: &Name,
        demand: &Demand,
    ) -> Result<Option<Gate>, EngineError> {
        let there = self.suiting(handler, demand).filter(|agent| self.is_there(agent));
        let there: Vec<&AgentRecord> = there.collect();
        if there.is_empty() || demand.resources == Amounts::default() {
            return Ok(None);
        }
        let held = held_by_sessions(engine, namespace, self.now).await?;
        let left = |agent: &AgentRecord| {
            let held = agent.session.and_then(|session| held.get(&session).copied());
            agent.settings.offered().minus(held.unwrap_or_default())
        };
        if there.iter().any(|agent| demand.resources.fits(left(agent))) {
            return Ok(None);
        }
        let short = there
            .iter()
            .map(|agent| format!("`{}` has {} free", agent.name, lacking(demand, left(agent))));
        let message = format!(
            "what runs on the agents that could run it holds the resources that it asks for: {}",
            list(short)
        );
        Ok(Some(gate(GateKind::Resources, message)))
    }

    /// True for an agent that takes work.
    fn is_there(&self, agent: &AgentRecord) -> bool {
        agent.is_alive(self.now) && agent.draining_at.is_none()
    }

    fn away(&self, agent: &AgentRecord) -> String {
        let name = &agent.name;
        match (agent.is_alive(self.now), self.away_since(agent)) {
            (false, Some(since)) => format!("`{name}` is offline since {since}"),
            (false, None) => format!("`{name}` is offline"),
            (true, Some(since)) => format!("`{name}` is draining since {since}"),
            (true, None) => format!("`{name}`"),
        }
    }

    /// Since when an agent takes nothing, where that is so and known.
    fn away_since(&self, agent: &AgentRecord) -> Option<Time> {
        match agent.is_alive(self.now) {
            true => agent.draining_at,
            false => Some(agent.seen_at?.plus(agent.settings.lease())),
        }
    }
}

/// What of this node's machine a task lacks; what others hold of it concerns only a task that is ready.
pub(crate) fn scarce_here(engine: &Engine, demand: &Demand, is_ready: bool) -> Option<Gate> {
    let offered = engine.offered()?;
    if !demand.resources.fits(offered) {
        let message = format!(
            "it asks for more resources than this node has: {}",
            lacking(demand, offered)
        );
        return Some(gate(GateKind::Resources, message));
    }
    let left = offered.minus(engine.live().held());
    let message = || {
        format!(
            "what runs on this node holds the resources that it asks for: {} are free",
            lacking(demand, left)
        )
    };
    (is_ready && !demand.resources.fits(left)).then(|| gate(GateKind::Resources, message()))
}

/// What the running tasks of sessions and nodes take, as far as they are looked through.
async fn held_by_sessions(
    engine: &Engine,
    namespace: &str,
    now: Time,
) -> Result<BTreeMap<NodeId, Amounts>, EngineError> {
    let filter = TaskFilter {
        status: vec![Status::Running],
        ..TaskFilter::default()
    };
    let mut page = Page {
        limit: PAGE_MAX,
        before_row: None,
    };
    let mut held: BTreeMap<NodeId, Amounts> = BTreeMap::new();
    for _ in 0..RUNNING_PAGES_MAX {
        let found = engine
            .store()
            .tasks(namespace, filter.clone(), page.clone(), now)
            .await?;
        for task in found.items {
            if let Some(lease) = task.lifecycle.lease {
                let held = held.entry(lease.node).or_default();
                *held = held.plus(Demand::of(&task.spec).resources);
            }
        }
        match found.next {
            Some(row) => page.before_row = Some(row),
            None => break,
        }
    }
    Ok(held)
}

/// The gate of a task that an agent is to have.
fn kept(agent: &AgentRecord) -> Gate {
    let is_full = agent.running >= u64::from(agent.settings.max_concurrent_tasks);
    let how = match is_full {
        true => format!("is busy: it runs {}", load(agent)),
        false => format!("runs {}, and gets it when it next asks for work", load(agent)),
    };
    let message = format!("it is kept for agent `{}`, which {how}", agent.name);
    gate(GateKind::Agent, message)
}

fn load(agent: &AgentRecord) -> String {
    format!("{} of {} tasks", agent.running, agent.settings.max_concurrent_tasks)
}

/// The gate of a task that asks for more than any agent's machine has.
fn too_large(suiting: &[&AgentRecord], demand: &Demand) -> Option<Gate> {
    let lacks = |agent: &&&AgentRecord| demand.resources.lacking(agent.settings.offered()).len();
    let nearest = suiting.iter().min_by_key(lacks)?;
    let message = format!(
        "it asks for more resources than any agent that could run it has; agent `{}` comes nearest, with {}",
        nearest.name,
        lacking(demand, nearest.settings.offered())
    );
    Some(gate(GateKind::Resources, message))
}

/// What a task asks for and does not find, such as `1 of 4 cpu_cores`.
fn lacking(demand: &Demand, left: Amounts) -> String {
    let (asked, found) = (demand.resources.resources(), left.resources());
    let names = demand.resources.lacking(left).into_iter();
    list(names.map(|name| format!("{} of {} {name}", amount(&found, name), amount(&asked, name))))
}

fn amount(resources: &Resources, name: &str) -> f64 {
    let amount = match name {
        "cpu_cores" => resources.cpu_cores,
        "memory_gb" => resources.memory_gb,
        "disk_gb" => resources.disk_gb,
        _ => resources.gpu_memory_gb,
    };
    amount.unwrap_or_default()
}

/// The first of many, and how many more there are.
fn list(items: impl Iterator<Item = String>) -> String {
    let mut items: Vec<String> = items.collect();
    let more = items.len().saturating_sub(NAMED_MAX);
    items.truncate(NAMED_MAX);
    if more > 0 {
        items.push(format!("{more} more"));
    }
    items.join(", ")
}
