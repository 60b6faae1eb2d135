//! Scenarios of the simulation, lived through by real processes over real stores, and judged by the simulation's judge:
//! nodes are killed, stopped and started again, the store is taken away from under them, and the tasks themselves
//! are subprocesses, some of which kill their node. What the tasks did is read from a file that they write, what became of
//! them from the store once nobody holds it any more.
//!
//! `PENSUM_TEST_SEED=N` lives through that seed alone.

mod client;
mod drive;
mod judge;
mod lies;
mod nodes;
mod place;
mod plan;
mod record;
mod told;

use std::sync::Mutex;
use std::time::Instant;

use pensum_sim::{Action, Scenario};

use crate::harness::{Random, long};
use drive::{Tally, live};
use place::Kind;

/// How many SIGKILLs a long run over one store must see.
const KILLS_LONG: u32 = 150;
/// A long run plans more, for some find their node dead already.
const KILLS_PLANNED: u32 = KILLS_LONG * 4 / 3;
/// In a long run a scenario must plan as many.
const KILLS_OF_ONE: u32 = 3;
/// How many scenarios are lived through at the same time: processes mostly wait.
const AT_ONCE: usize = 4;

#[test]
fn a_node_over_sqlite_keeps_its_promises_in_the_scenarios_of_the_simulation() {
    let kinds: [fn(&Action) -> bool; 4] = [is_kill, is_kill, is_freeze, is_restart];
    let tally = run(Kind::Sqlite, 1, &kinds);
    assert!(tally.seeds == 1 || tally.restarts >= tally.kills, "{tally:?}");
}

#[test]
fn nodes_over_postgres_keep_their_promises_in_the_scenarios_of_the_simulation() {
    let kinds: [fn(&Action) -> bool; 4] = [is_kill, is_freeze, is_restart, is_outage];
    let tally = run(Kind::Postgres, 3, &kinds);
    assert!(
        tally.seeds == 1 || tally.outages > 0,
        "the server was never stopped: {tally:?}"
    );
}

fn is_kill(action: &Action) -> bool {
    matches!(action, Action::Kill { .. })
}

fn is_freeze(action: &Action) -> bool {
    matches!(action, Action::Freeze { .. })
}

fn is_restart(action: &Action) -> bool {
    matches!(action, Action::Restart { .. })
}

fn is_outage(action: &Action) -> bool {
    matches!(action, Action::StoreAway { .. })
}

/// Lives through one scenario with each of these kinds of accident; in a long run through as many as it takes.
fn run(kind: Kind, nodes_max: usize, kinds: &[fn(&Action) -> bool; 4]) -> Tally {
    let scenarios = scenarios(nodes_max, kinds);
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
    let least = match (count, long()) {
        (1, _) => 0,
        (_, true) => KILLS_LONG,
        (_, false) => 1,
    };
    assert!(
        tally.kills >= least,
        "only {} nodes were killed, not {least}",
        tally.kills
    );
    assert!(tally.runs >= tally.seeds * 3, "hardly anything ran: {tally:?}");
    assert!(tally.lies >= tally.seeds, "the judge was hardly tried: {tally:?}");
    tally
}

fn scenarios(nodes_max: usize, kinds: &[fn(&Action) -> bool; 4]) -> Vec<Scenario> {
    let mut random = Random::new();
    if let Some(seed) = std::env::var("PENSUM_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
    {
        return vec![plan::scenario(seed, nodes_max)];
    }
    // Short, so that a seed is easily copied.
    let first = random.below(1_000_000);
    let mut all = (first..).map(|seed| plan::scenario(seed, nodes_max));
    if !long() {
        // Nodes that share a store, where they can.
        let nodes_min = nodes_max.min(2);
        let mut with = |kind: &fn(&Action) -> bool| {
            all.find(|scenario| scenario.nodes.len() >= nodes_min && plan::has(scenario, *kind))
        };
        return kinds.iter().filter_map(|kind| with(kind)).collect();
    }
    let mut planned = 0;
    let mut chosen = Vec::new();
    while planned < KILLS_PLANNED {
        let Some(scenario) = all.find(|scenario| plan::kills(scenario) >= KILLS_OF_ONE) else {
            break;
        };
        planned += plan::kills(&scenario);
        chosen.push(scenario);
    }
    chosen
}
