//! Power cuts: the files of a store as they could look after one, at any moment, opened and held against what had been
//! acknowledged.
//!
//! A workload runs in a process of its own, under a recorder ([`record`]) that notes every write, sync and answer in
//! one order ([`log`]). A disk ([`disk`]) that stops anywhere in it ([`cut`]) leaves images ([`image`]), which are checked
//! ([`check`]) against what the workload was promised ([`ledger`], [`judge`]).
//!
//! `PENSUM_TEST_SEED=N` repeats the choices of a run, `PENSUM_TEST_LONG=1` makes more images. Threads interleave anew
//! each time, so a seed finds the same kind of moment and not the same bytes.

mod callers;
mod check;
mod cut;
mod dice;
mod disk;
mod examine;
mod image;
mod judge;
mod ledger;
mod limits;
mod log;
mod record;
mod workload;

use pensum_testing::run::{is_long, seed};

use cut::Moment;
use dice::Dice;
use disk::Syncs;
use examine::{Failure, examine, fail_on};
use ledger::Ledger;
use log::Log;
use record::SKIPPED;
use workload::SESSIONS;

/// How many workloads, and how many images of each: 60 in all, with `PENSUM_TEST_LONG` 500.
fn extent() -> (u64, usize) {
    if is_long() { (5, 100) } else { (1, 60) }
}

/// Cuts of each kind in turn, in the order of the log.
fn choose(log: &Log, images: usize, dice: &mut Dice) -> Vec<(Moment, usize)> {
    let places = cut::places(log, &Ledger::of(log));
    let mut turns = Moment::TURNS.into_iter().cycle();
    let mut cuts: Vec<_> = turns
        .by_ref()
        .take(images)
        .map(|moment| (moment, dice.pick(&places[&moment])))
        .collect();
    cuts.sort_by_key(|(_, cut)| *cut);
    cuts
}

#[test]
fn a_power_cut_at_any_moment_loses_nothing_that_was_acknowledged() {
    let first = seed();
    let (workloads, images) = extent();
    for seed in first..first + workloads {
        let Some(log) = record::record(seed, SESSIONS) else {
            println!("{SKIPPED}");
            return;
        };
        let mut dice = Dice::new(seed);
        let cuts = choose(&log, images, &mut dice);
        let (figures, failures) = examine(&log, Syncs::Honest, cuts, dice);
        println!("seed {seed}: {} steps, {figures:?}", log.records.len());
        fail_on(&failures, seed);
        assert!(figures.in_commit >= 12 && figures.in_fold >= 8, "{figures:?}");
        assert!(figures.with_lost >= 15 && figures.with_torn >= 8, "{figures:?}");
        let rare = Ledger::of(&log).rare();
        let least = [5, 100, 50, 40];
        assert!(rare.iter().zip(least).all(|(count, least)| *count >= least), "{rare:?}");
        assert!(figures.acknowledged > 5_000 && figures.in_flight > 20, "{figures:?}");
    }
}

#[test]
fn a_power_cut_while_a_store_is_made_leaves_one_that_opens() {
    let seed = seed();
    let Some(log) = record::record(seed, 1) else {
        println!("{SKIPPED}");
        return;
    };
    let creation = cut::places(&log, &Ledger::of(&log)).remove(&Moment::Creation).unwrap();
    let cuts = creation.iter().flat_map(|cut| [(Moment::Creation, *cut); 8]).collect();
    let (figures, failures) = examine(&log, Syncs::Honest, cuts, Dice::new(seed));
    println!("seed {seed}: {figures:?}");
    fail_on(&failures, seed);
    assert!(
        figures.images > 100 && figures.with_lost > 20 && figures.with_torn > 5,
        "{figures:?}"
    );
}

#[test]
fn a_disk_that_only_says_it_synced_is_caught_losing_what_was_acknowledged() {
    let seed = seed();
    let Some(log) = record::record(seed, 2) else {
        println!("{SKIPPED}");
        return;
    };
    let mut dice = Dice::new(seed);
    let length = log.records.len();
    let mut cuts = choose(&log, 100, &mut dice);
    cuts.retain(|(_, cut)| *cut > length / 2);
    cuts.truncate(20);
    let (figures, failures) = examine(&log, Syncs::IgnoredFrom(length / 3), cuts, dice);
    // Some of the files are damaged; others are sound, and only the answers show what they lack.
    let is_loss = |failure: &&Failure| failure.wrong.iter().all(|wrong| wrong.starts_with("lost: "));
    let losses = failures.iter().filter(is_loss).count();
    println!(
        "{} of {} images are bad, {losses} of them sound",
        failures.len(),
        figures.images
    );
    assert!(failures.len() >= figures.images / 2 && losses >= 2);
}

#[test]
#[ignore = "the other tests start it in a process of its own"]
fn the_workload_under_the_recorder() {
    if !record::run_if_recorded() {
        println!("skipped: the tests of power cuts start this by themselves");
    }
}
