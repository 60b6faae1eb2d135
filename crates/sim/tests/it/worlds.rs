//! Fresh seeds, on every store; and that a run which shows nothing is told from one that does.

use std::time::{SystemTime, UNIX_EPOCH};

use pensum_sim::{Batch, Scenario, Size, StoreKind, Tally, live};
use pensum_testing::run::{given_seed, is_long};

/// Seeds that nobody has tried: every run of the tests goes on searching. `PENSUM_TEST_SEED` names the first one instead.
#[expect(clippy::disallowed_methods, reason = "seeds that nobody has tried before")]
fn first_seed() -> u64 {
    given_seed().unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64)
}

fn survives(store: StoreKind, size: Size, seeds: u64) -> Tally {
    let batch = Batch {
        from: first_seed(),
        seeds,
        store,
        size,
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
        stop_early: true,
    };
    let tally = batch.run(|_| {}).unwrap();
    println!("{tally:?}");
    assert!(tally.failures.is_empty(), "{:#?}", tally.failures);
    assert_eq!(tally.vacuous(), Vec::<String>::new());
    assert!(tally.repeated > 0, "no world was lived through twice");
    tally
}

#[test]
fn no_promise_is_broken_over_the_model_store() {
    survives(StoreKind::Model, Size::Small, if is_long() { 14_000 } else { 600 });
}

#[test]
fn no_promise_is_broken_over_sqlite() {
    survives(StoreKind::Sqlite, Size::Small, if is_long() { 4_000 } else { 300 });
}

#[test]
fn no_promise_is_broken_in_large_worlds() {
    survives(StoreKind::Model, Size::Large, if is_long() { 2_000 } else { 120 });
}

#[test]
fn a_plan_comes_back_from_its_file_as_it_was() {
    for seed in 0..50 {
        let scenario = Scenario::of(seed, StoreKind::Sqlite, Size::Large);
        let text = serde_json::to_string(&scenario).unwrap();
        assert_eq!(serde_json::from_str::<Scenario>(&text).unwrap(), scenario);
    }
}

#[test]
fn a_batch_in_which_nothing_goes_wrong_shows_nothing() {
    let mut scenario = Scenario::of(3, StoreKind::Model, Size::Small);
    scenario.faults = Default::default();
    let outcome = live(&scenario).unwrap();
    assert!(outcome.stuck.is_empty());
    let calm = Tally {
        worlds: 100,
        runs: 1_000,
        ..Tally::default()
    };
    assert!(!calm.vacuous().is_empty());
}
