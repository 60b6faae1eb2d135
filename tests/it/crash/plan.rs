//! A scenario of the simulation, cut to what real processes can live through in some seconds.

use std::time::Duration;

use pensum_sim::{
    Act, Action, AgentOrder, AgentPlan, FaultPlan, QueueOrder, QueuePlan, RatePlan, Scenario, Size, Step, StoreKind,
    TaskPlan,
};

/// The lease of every node.
pub(super) const LEASE: Duration = Duration::from_secs(2);
const LEASE_MS: u64 = LEASE.as_millis() as u64;
/// The simulation's time runs on for free; here it passes so many times as fast.
const FASTER: u64 = 4;
/// What a subprocess of a busy machine may take longer than its plan says before it is timed out.
const SLACK_MS: u64 = 3_000;
/// A plan of forty tasks for one slot would take a minute.
const SLOTS_MIN: usize = 3;
/// Each agent is a process that takes its share of the machine.
const AGENTS_MAX: usize = 2;
/// A task that takes a while, five units, and one after the other would take a minute.
const RATE_FASTER: u64 = 4 * FASTER;
/// The shortest ageing that a queue may have.
const AGEING_MIN_MS: u64 = 1_000;
/// A deadly task is given up after so many deaths.
const DEATHS_MAX: u32 = 3;

/// The scenario of a seed for at most so many nodes.
pub(super) fn scenario(seed: u64, nodes_max: usize) -> Scenario {
    let mut scenario = Scenario::of(seed, StoreKind::Sqlite, Size::Large);
    let lease_ms = scenario.lease_ms;
    scenario.nodes.truncate(nodes_max);
    for node in &mut scenario.nodes {
        node.slots = node.slots.max(SLOTS_MIN);
        // All processes of one machine have one clock.
        node.behind_ms = 0;
        node.restart_ms /= FASTER;
    }
    let nodes = scenario.nodes.len();
    scenario.shared_clock = true;
    scenario.lease_ms = LEASE_MS;
    // What goes wrong between real nodes and a real store follows from what befalls the two.
    scenario.faults = FaultPlan::default();
    scenario.agents.truncate(AGENTS_MAX);
    for agent in &mut scenario.agents {
        agent.restart_ms /= FASTER;
    }
    let agents = scenario.agents.clone();
    scenario.steps.retain(|step| match step.action {
        // What people ask of agents has its tests; here it is their processes that something befalls.
        Action::Agent { order, .. } => matches!(
            order,
            AgentOrder::Kill | AgentOrder::Replace | AgentOrder::Freeze { .. } | AgentOrder::Leave
        ),
        Action::Breaker { .. } => false,
        _ => true,
    });
    for step in &mut scenario.steps {
        fit(step, nodes, &agents, lease_ms);
    }
    scenario
}

fn fit(step: &mut Step, nodes: usize, agents: &[AgentPlan], lease_ms: u64) {
    step.at_ms /= FASTER;
    match &mut step.action {
        Action::Submit {
            node,
            patience_ms,
            tasks,
        } => {
            *node %= nodes;
            *patience_ms = patience_ms.map(|ms| ms / FASTER);
            for task in tasks {
                possible(task, agents, lease_ms);
            }
        }
        Action::Order { node, .. }
        | Action::Breaker { node, .. }
        | Action::Kill { node }
        | Action::Restart { node } => *node %= nodes,
        Action::Queue { node, order, .. } => {
            *node %= nodes;
            if let QueueOrder::Put { plan } = order {
                *plan = quick(*plan);
            }
        }
        Action::Agent { node, agent, order } => {
            *node %= nodes;
            *agent %= agents.len();
            if let AgentOrder::Freeze { for_ms } = order {
                *for_ms /= FASTER / 2;
            }
        }
        // Longer than a lease where it was, and shorter where it was.
        Action::Freeze { node, for_ms } => {
            *node %= nodes;
            *for_ms = *for_ms * LEASE_MS / lease_ms;
        }
        Action::StoreAway { for_ms } => *for_ms = *for_ms * LEASE_MS / lease_ms,
    }
}

/// A queue through which everything comes in some seconds.
fn quick(plan: QueuePlan) -> QueuePlan {
    QueuePlan {
        max: plan.max.map(|max| max + 1),
        max_age_ms: plan.max_age_ms.map(|ms| ms / FASTER),
        rate: plan.rate.map(|rate| RatePlan {
            per_ms: rate.per_ms / RATE_FASTER,
            ..rate
        }),
        ageing_ms: plan.ageing_ms.map(|ms| (ms / FASTER).max(AGEING_MIN_MS)),
        ..plan
    }
}

/// Makes of a task one that a subprocess can act out: steps, children, waits and repeats become work of their length.
fn possible(task: &mut TaskPlan, agents: &[AgentPlan], lease_ms: u64) {
    let is_possible = |skills: &[u8]| {
        agents
            .iter()
            .any(|agent| skills.iter().all(|skill| agent.skills.contains(skill)))
    };
    task.demand = task.demand.take().filter(|demand| is_possible(&demand.skills));
    if let Some(demand) = &mut task.demand {
        demand.cores = 0;
        demand.prefers = demand.prefers.filter(|agent| *agent < agents.len());
    }
    task.delay_ms /= FASTER;
    task.expires_ms = task.expires_ms.map(|ms| ms / FASTER);
    task.queue_timeout_ms = task.queue_timeout_ms.map(|ms| ms / FASTER);
    task.timeout_ms = match task.act {
        // Nothing but its timeout ends it, once for each attempt.
        Act::Hang => task.timeout_ms / FASTER / 2,
        _ => task.timeout_ms / FASTER + SLACK_MS,
    };
    let work = |ms: u64| Act::Work { ms };
    task.act = match task.act.clone() {
        // What outlives its lease does so here.
        Act::Work { ms } if ms >= lease_ms => work(LEASE_MS + (ms - lease_ms) / FASTER),
        Act::Work { ms } | Act::AwaitSignal { ms } => work(ms / FASTER),
        Act::Steps { count, ms } => work(u64::from(count) * ms / FASTER),
        Act::Again { times } => work(u64::from(times) * 300 / FASTER),
        Act::Children { count, .. } => work(u64::from(count) * 100 / FASTER),
        Act::Fail { attempts, ms } => Act::Fail {
            attempts,
            ms: ms / FASTER,
        },
        // An agent whose program crashes takes nothing for a while.
        Act::Panic { attempts } if task.demand.is_some() => Act::Fail { attempts, ms: 0 },
        // No exit code says that there is no use in another attempt.
        Act::FailForGood => {
            task.retries = 0;
            Act::Fail { attempts: 99, ms: 0 }
        }
        Act::Stubborn { ms } => Act::Stubborn { ms: ms / FASTER },
        Act::Pausable { ms } => Act::Pausable { ms: ms / FASTER },
        act @ (Act::Panic { .. } | Act::Hang | Act::Deadly { .. }) => act,
    };
}

/// What `act.sh` is told of an act: the role, a count, and milliseconds.
pub(super) fn role(act: &Act) -> (&'static str, u32, u64) {
    match *act {
        Act::Work { ms } | Act::Pausable { ms } => ("work", 0, ms),
        Act::Fail { attempts, ms } => ("fail", attempts, ms),
        Act::Panic { attempts } => ("panic", attempts, 0),
        Act::Hang => ("hang", 0, 0),
        Act::Stubborn { ms } => ("stubborn", 0, ms),
        Act::Deadly { runs } => ("deadly", runs, 0),
        ref other => panic!("no subprocess acts out {other:?}"),
    }
}

/// How many nodes die by SIGKILL where everything goes as planned; whoever runs what is for agents may be one of them.
pub(super) fn kills(scenario: &Scenario) -> u32 {
    let killed = scenario
        .steps
        .iter()
        .filter(|step| matches!(step.action, Action::Kill { .. }));
    let of_nodes = scenario.tasks().filter(|task| task.demand.is_none());
    let deadly = of_nodes.map(|task| match task.act {
        Act::Deadly { runs } => runs.min(DEATHS_MAX),
        _ => 0,
    });
    killed.count() as u32 + deadly.sum::<u32>()
}

/// True where a step is of this kind.
pub(super) fn has(scenario: &Scenario, kind: fn(&Action) -> bool) -> bool {
    scenario.steps.iter().any(|step| kind(&step.action))
}

/// True where a queue is put with such settings.
pub(super) fn puts(step: &Step, has: fn(&QueuePlan) -> bool) -> bool {
    match &step.action {
        Action::Queue {
            order: QueueOrder::Put { plan },
            ..
        } => has(plan),
        _ => false,
    }
}
