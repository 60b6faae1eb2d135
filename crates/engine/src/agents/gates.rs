//! Why no agent takes a task: what none of them offers, whom it is kept for, and who is full.

use std::collections::BTreeMap;

use pensum_core::agent::{AgentRecord, Amounts, Demand};
use pensum_core::task::Resources;
use pensum_core::{Name, NodeId, TaskRecord, Time};

use crate::breakers::OpenBreakers;
use crate::explain::{Gate, GateKind, gate};
use crate::{Engine, EngineError};

/// How many agents a message names.
const NAMED_MAX: usize = 20;

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
        let is_there = |agent: &&&AgentRecord| agent.is_alive(self.now) && agent.draining_at.is_none();
        let there: Vec<&AgentRecord> = fitting.iter().filter(is_there).copied().collect();
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

    /// The gate of a task that every agent that could run it is short of resources for, where `held` is taken of each.
    pub(crate) fn short(&self, handler: &Name, demand: &Demand, held: &BTreeMap<NodeId, Amounts>) -> Option<Gate> {
        let is_there = |agent: &&AgentRecord| agent.is_alive(self.now) && agent.draining_at.is_none();
        let there: Vec<&AgentRecord> = self.suiting(handler, demand).filter(is_there).collect();
        let left = |agent: &AgentRecord| {
            let held = agent.session.and_then(|session| held.get(&session).copied());
            agent.settings.offered().minus(held.unwrap_or_default())
        };
        if there.is_empty() || there.iter().any(|agent| demand.resources.fits(left(agent))) {
            return None;
        }
        let asked = demand.resources.resources();
        let short = |agent: &&AgentRecord| {
            let (left, name) = (left(agent), &agent.name);
            let lacking = demand.resources.lacking(left).into_iter();
            let free = left.resources();
            let amounts = lacking.map(|name| format!("{} of {} {name}", amount(&free, name), amount(&asked, name)));
            format!("`{name}` has {} free", list(amounts))
        };
        let message = format!(
            "what runs on the agents that could run it holds the resources that it asks for: {}",
            list(there.iter().map(short))
        );
        Some(gate(GateKind::Resources, message))
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
    let short = |left: Amounts| {
        let (asked, left_over) = (demand.resources.resources(), left.resources());
        let lacking = demand.resources.lacking(left).into_iter();
        list(lacking.map(|name| format!("{} of {} {name}", amount(&left_over, name), amount(&asked, name))))
    };
    if !demand.resources.fits(offered) {
        let message = format!("it asks for more resources than this node has: {}", short(offered));
        return Some(gate(GateKind::Resources, message));
    }
    let left = offered.minus(engine.live().held());
    let message = || {
        format!(
            "what runs on this node holds the resources that it asks for: {} are free",
            short(left)
        )
    };
    (is_ready && !demand.resources.fits(left)).then(|| gate(GateKind::Resources, message()))
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
    let (asked, offered) = (demand.resources.resources(), nearest.settings.offered().resources());
    let lacking = demand.resources.lacking(nearest.settings.offered());
    let short = lacking
        .into_iter()
        .map(|name| format!("{} of {} {name}", amount(&offered, name), amount(&asked, name)));
    let message = format!(
        "it asks for more resources than any agent that could run it has; agent `{}` comes nearest, with {}",
        nearest.name,
        list(short)
    );
    Some(gate(GateKind::Resources, message))
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
