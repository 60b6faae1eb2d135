//! Scenarios of the simulation, lived through by real processes over real stores, and judged by the simulation's judge:
//! nodes are killed, stopped and started again, the store is taken away from under them, and the tasks themselves
//! are subprocesses, some of which kill their node. Agents are killed and stopped as nodes are. What the tasks did is read from a file that they write, what became of
//! them from the store once nobody holds it any more.
//!
//! `PENSUM_TEST_SEED=N` lives through that seed alone.

mod agents;
mod client;
mod drive;
mod judge;
mod lies;
mod nodes;
mod place;
mod plan;
mod promises;
mod record;
mod told;

use std::sync::Mutex;
use std::time::Instant;

use pensum_sim::{Action, AgentOrder, QueuePlan, Scenario, Step};
use pensum_testing::run::given_seed;

use crate::harness::long;
use drive::{Tally, live};
use place::Kind;

/// How many SIGKILLs a long run over one store must see.
const KILLS_LONG: u32 = 150;
/// A long run plans more, for some find their node dead already.
const KILLS_PLANNED: u32 = KILLS_LONG * 2;
/// A scenario that is chosen for its kills plans as many.
const KILLS_OF_ONE: u32 = 3;
/// One that is chosen for its queues has so many tasks in them.
const OF_QUEUES_MIN: usize = 15;
/// One that is chosen for its agents has so many tasks that they may run.
const FOR_AGENTS_MIN: usize = 5;
/// How many scenarios are lived through at the same time: processes mostly wait.
const AT_ONCE: usize = 6;

/// What a scenario is chosen for.
type Has = fn(&Scenario) -> bool;

#[test]
fn a_node_over_sqlite_keeps_its_promises_in_the_scenarios_of_the_simulation() {
    let tally = run(Kind::Sqlite, 1, &[limited, with_agents, freezes, restarts]);
    assert!(tally.seeds == 1 || tally.restarts >= tally.kills, "{tally:?}");
}

#[test]
fn nodes_over_postgres_keep_their_promises_in_the_scenarios_of_the_simulation() {
    let tally = run(Kind::Postgres, 3, &[limited, with_agents, restarts, outages]);
    assert!(
        tally.seeds == 1 || tally.outages > 0,
        "the server was never stopped: {tally:?}"
    );
}

fn kills(scenario: &Scenario) -> bool {
    plan::kills(scenario) >= KILLS_OF_ONE
}

/// Kills where queues have limits of every kind.
fn limited(scenario: &Scenario) -> bool {
    let limits = |has: fn(&QueuePlan) -> bool| scenario.steps.iter().any(|step| plan::puts(step, has));
    let of_queues = scenario.tasks().filter(|task| task.queue.is_some());
    let is_full = of_queues.count() >= OF_QUEUES_MIN;
    kills(scenario)
        && is_full
        && limits(|plan| plan.depth.is_some())
        && limits(|plan| plan.fair)
        && limits(|plan| plan.volatile)
}

/// Kills of nodes and of agents.
fn with_agents(scenario: &Scenario) -> bool {
    let is_kill = |order: &AgentOrder| matches!(order, AgentOrder::Kill | AgentOrder::Replace);
    let is_killed = |step: &Step| matches!(&step.action, Action::Agent { order, .. } if is_kill(order));
    let for_agents = scenario.tasks().filter(|task| task.demand.is_some());
    kills(scenario) && scenario.steps.iter().any(is_killed) && for_agents.count() >= FOR_AGENTS_MIN
}

fn freezes(scenario: &Scenario) -> bool {
    plan::has(scenario, |action| matches!(action, Action::Freeze { .. }))
}

fn restarts(scenario: &Scenario) -> bool {
    plan::has(scenario, |action| matches!(action, Action::Restart { .. }))
}

fn outages(scenario: &Scenario) -> bool {
    plan::has(scenario, |action| matches!(action, Action::StoreAway { .. }))
}

/// Lives through one scenario of each kind; in a long run through as many as it takes.
fn run(kind: Kind, nodes_max: usize, wanted: &[Has; 4]) -> Tally {
    let scenarios = scenarios(nodes_max, wanted);
    let (began, count) = (Instant::now(), scenarios.len());
    let next = Mutex::new(scenarios.into_iter());
    let total = Mutex::new((Tally::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(count) {
            scope.spawn(|| {
                loop {
                    let Some(scenario) = next.lock().unwrap().next() else {
                        return;
                    };
                    let began = Instant::now();
                    let (tally, verdict) = live(&scenario, kind);
                    println!(
                        "seed {} in {:.1} s: {tally:?}",
                        scenario.seed,
                        began.elapsed().as_secs_f64()
                    );
                    let mut total = total.lock().unwrap();
                    total.0.add(&tally);
                    total.1.extend(verdict.err().map(|story| (scenario.seed, story)));
                }
            });
        }
    });
    let (tally, failures) = total.into_inner().unwrap();
    println!("{kind:?} in {:.1} s: {tally:?}", began.elapsed().as_secs_f64());
    for (seed, story) in &failures {
        println!("repeat it over {kind:?} with PENSUM_TEST_SEED={seed}\n{story}");
    }
    let seeds: Vec<u64> = failures.iter().map(|(seed, _)| *seed).collect();
    assert!(
        seeds.is_empty(),
        "promises were broken over {kind:?} with the seeds {seeds:?}"
    );
    // One seed alone may be a quiet one.
    if count > 1 {
        let least = if long() { KILLS_LONG } else { 1 };
        assert!(
            tally.kills >= least,
            "only {} nodes were killed, not {least}",
            tally.kills
        );
        assert!(tally.runs >= tally.seeds * 3, "hardly anything ran: {tally:?}");
        assert!(tally.lies >= tally.seeds, "the judge was hardly tried: {tally:?}");
        // Whether a few are enough for that is a matter of luck.
        assert!(
            !long() || tally.agent_kills > 0 && tally.agent_runs > 0,
            "agents hardly had anything: {tally:?}"
        );
        assert!(
            !long() || tally.refused.min(tally.dropped).min(tally.abandoned) > 0,
            "no queue was ever at a limit: {tally:?}"
        );
    }
    tally
}

fn scenarios(nodes_max: usize, wanted: &[Has; 4]) -> Vec<Scenario> {
    if let Some(seed) = given_seed() {
        return vec![plan::scenario(seed, nodes_max)];
    }
    // Others each time, and short, so that one is easily copied.
    let first = record::now().as_micros() as u64 % 1_000_000;
    let mut all = (first..).map(|seed| plan::scenario(seed, nodes_max));
    if !long() {
        // Nodes that share a store, where they can.
        let nodes_min = nodes_max.min(2);
        let mut with = |has: &Has| all.find(|scenario| scenario.nodes.len() >= nodes_min && has(scenario));
        return wanted.iter().filter_map(|has| with(has)).collect();
    }
    let mut planned = 0;
    let mut chosen = Vec::new();
    while planned < KILLS_PLANNED {
        let Some(scenario) = all.find(kills) else {
            break;
        };
        planned += plan::kills(&scenario);
        chosen.push(scenario);
    }
    chosen
}
