//! Agents, what tasks demand of whoever runs them, and circuit breakers, in the worlds that have such.

use rand::RngExt;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};

use super::{Act, Action, Draft, NodePlan, Scenario};

/// How many skills there are.
const SKILLS: u8 = 3;
/// Most agents of a world.
const AGENTS: usize = 4;

/// An agent, of which one process follows the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentPlan {
    /// What it can do.
    pub skills: Vec<u8>,
    /// It runs what nodes can run, too.
    pub common: bool,
    /// How many tasks it runs at once.
    pub slots: u32,
    /// How many cores its machine has.
    pub cores: u32,
    /// How long its leases last, in milliseconds.
    pub lease_ms: u64,
    /// How long it takes to come back, in milliseconds.
    pub restart_ms: u64,
    /// The share of what it does late, twice, or not at all.
    pub sloppy: f64,
}

/// What a task demands of whoever runs it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DemandPlan {
    /// Skills that only agents have.
    pub skills: Vec<u8>,
    /// The agent that it prefers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefers: Option<usize>,
    /// How many cores it takes.
    #[serde(default)]
    pub cores: u32,
}

/// What befalls an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentOrder {
    /// Its process ends without a word.
    Kill,
    /// Its process stands still.
    Freeze {
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// Another process of it starts, while the one before goes on.
    Replace,
    /// It says that it goes, and comes back.
    Leave,
    /// A person lets it have nothing more.
    Drain,
    /// A person lets it have work again.
    Undrain,
    /// It registers with one slot and one core.
    Shrink,
    /// It registers as it is planned.
    Restore,
    /// A person removes it; it registers again.
    Remove,
}

/// What a person asks of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerOrder {
    /// There is to be such a one.
    Put {
        /// So many failures open it.
        failures: u32,
        /// For so long, in milliseconds.
        open_ms: u64,
        /// So many may try then.
        probes: u32,
    },
    /// Open it.
    Trip,
    /// Close it.
    Reset,
    /// Remove it.
    Delete,
}

impl Scenario {
    /// True when for each task there is somebody who can run it.
    pub fn is_possible(&self) -> bool {
        let able = |demand: &DemandPlan| {
            let node = |node: &NodePlan| node.cores.is_none_or(|cores| demand.cores <= cores);
            let agent = |agent: &AgentPlan| {
                let skilled = match demand.skills.is_empty() {
                    true => agent.common,
                    false => demand.skills.iter().all(|skill| agent.skills.contains(skill)),
                };
                skilled && demand.cores <= agent.cores
            };
            demand.skills.is_empty() && self.nodes.iter().any(node) || self.agents.iter().any(agent)
        };
        self.tasks().filter_map(|task| task.demand.as_ref()).all(able)
    }
}

impl Act {
    /// True for what an agent can do, too.
    pub fn suits_agents(&self) -> bool {
        !matches!(self, Act::Children { .. } | Act::Pausable { .. })
    }
}

impl Draft {
    /// In some worlds there are agents, and tasks for them.
    pub(super) fn agents(&mut self, nodes: &mut [NodePlan]) -> Vec<AgentPlan> {
        if self.random.random_bool(0.7) {
            return Vec::new();
        }
        let count = self.random.random_range(1..=AGENTS);
        let agents: Vec<AgentPlan> = (0..count).map(|_| self.agent()).collect();
        for node in nodes {
            node.cores = self.random.random_bool(0.5).then(|| self.random.random_range(1..=4));
        }
        let mut steps = std::mem::take(&mut self.steps);
        for step in &mut steps {
            let Action::Submit { tasks, .. } = &mut step.action else {
                continue;
            };
            for task in tasks.iter_mut().filter(|task| task.act.suits_agents()) {
                let demand = self.random.random_bool(0.7).then(|| self.demand(&agents));
                // Nodes and agents keep steps in ways of their own.
                let is_of_both = |demand: &DemandPlan| demand.skills.is_empty();
                task.demand = demand.filter(|demand| !(is_of_both(demand) && matches!(task.act, Act::Steps { .. })));
            }
        }
        self.steps = steps;
        for _ in 0..self.random.random_range(1..=6) {
            let (at_ms, node, agent) = (self.at(), self.node(), self.random.random_range(0..count));
            let order = match self.random.random_range(0..20) {
                0..4 => AgentOrder::Kill,
                4..7 => AgentOrder::Freeze {
                    for_ms: self.random.random_range(500..8_000),
                },
                7..10 => AgentOrder::Replace,
                10..12 => AgentOrder::Leave,
                12..15 => AgentOrder::Drain,
                15 => AgentOrder::Undrain,
                16 | 17 => AgentOrder::Shrink,
                18 => AgentOrder::Restore,
                _ => AgentOrder::Remove,
            };
            self.push(at_ms, Action::Agent { node, agent, order });
        }
        agents
    }

    fn agent(&mut self) -> AgentPlan {
        let random = &mut self.random;
        let skills: Vec<u8> = (0..SKILLS).filter(|_| random.random_bool(0.5)).collect();
        AgentPlan {
            common: skills.is_empty() || random.random_bool(0.5),
            skills,
            slots: random.random_range(1..=3),
            cores: random.random_range(1..=4),
            lease_ms: *[1_000, 2_000, 5_000].choose(random).unwrap_or(&2_000),
            restart_ms: random.random_range(200..5_000),
            sloppy: match random.random_bool(0.5) {
                true => 0.0,
                false => random.random_range(0.0..0.3),
            },
        }
    }

    /// What one of the agents can do.
    fn demand(&mut self, agents: &[AgentPlan]) -> DemandPlan {
        let random = &mut self.random;
        let able = random.random_range(0..agents.len());
        let agent = &agents[able];
        let mut skills = agent.skills.clone();
        skills.retain(|_| random.random_bool(0.6));
        if skills.is_empty() && !agent.common {
            skills.clone_from(&agent.skills);
        }
        DemandPlan {
            skills,
            prefers: random.random_bool(0.4).then(|| match random.random_bool(0.7) {
                true => able,
                false => random.random_range(0..agents.len()),
            }),
            cores: match random.random_bool(0.5) {
                true => random.random_range(1..=agent.cores),
                false => 0,
            },
        }
    }

    /// In some worlds people have breakers.
    pub(super) fn breakers(&mut self) {
        if self.random.random_bool(0.75) {
            return;
        }
        for _ in 0..self.random.random_range(1..=2) {
            let breaker = self.random.random_range(0..3);
            for number in 0..self.random.random_range(1..=5) {
                let at_ms = if number == 0 { self.at() / 20 } else { self.at() };
                let order = match self.random.random_range(0..10) {
                    _ if number == 0 => self.breaker(),
                    0..3 => self.breaker(),
                    3..6 => BreakerOrder::Trip,
                    6..8 => BreakerOrder::Reset,
                    _ => BreakerOrder::Delete,
                };
                let node = self.node();
                self.push(at_ms, Action::Breaker { node, breaker, order });
            }
        }
    }

    fn breaker(&mut self) -> BreakerOrder {
        BreakerOrder::Put {
            failures: self.random.random_range(1..=3),
            open_ms: self.random.random_range(500..6_000),
            probes: self.random.random_range(1..=2),
        }
    }
}
