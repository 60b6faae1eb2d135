//! Many seeds on all cores.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::checker::{Violation, check};
use crate::history::{Fault, PROCESS_ENDED, Queued, What};
use crate::scenario::{Scenario, Size, StoreKind};
use crate::story::fingerprint;
use crate::world::{Outcome, live};

/// One seed in this many is lived through twice.
const TWICE_IN: u64 = 100;

/// Which seeds, and how.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The first seed.
    pub from: u64,
    /// How many.
    pub seeds: u64,
    /// Over which store.
    pub store: StoreKind,
    /// How large the worlds are.
    pub size: Size,
    /// On how many threads.
    pub jobs: usize,
    /// Stops at the first seed that breaks a promise.
    pub stop_early: bool,
}

/// A seed that broke a promise, or was not the same twice.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The seed.
    pub seed: u64,
    /// What it broke.
    pub violations: Vec<Violation>,
}

/// What a batch has seen.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How many worlds.
    pub worlds: u64,
    /// Tasks that were kept.
    pub tasks: u64,
    /// Calls to the store that went wrong.
    pub faults: u64,
    /// Of those: done, and the answer lost.
    pub lost_replies: u64,
    /// Writes that were refused because their lease was lost.
    pub leases_lost: u64,
    /// Leases that the reaper took back.
    pub leases_expired: u64,
    /// Nodes that died.
    pub deaths: u64,
    /// Nodes that stood still.
    pub freezes: u64,
    /// Nodes that were started after another incarnation of theirs.
    pub restarts: u64,
    /// Runs of handlers.
    pub runs: u64,
    /// Submissions that queues refused.
    pub refused: u64,
    /// Tasks that queues dropped.
    pub dropped: u64,
    /// Tasks that ended with the process that accepted them.
    pub abandoned: u64,
    /// Worlds that were lived through twice, and were the same.
    pub repeated: u64,
    /// How long the worlds lived, by their own clocks.
    pub lived: Duration,
    /// Seeds that broke a promise.
    pub failures: Vec<Verdict>,
}

impl Tally {
    fn add(&mut self, outcome: &Outcome) {
        self.worlds += 1;
        self.lived += outcome.lived;
        for entry in &outcome.entries {
            match &entry.what {
                What::Kept(tasks) => self.tasks += tasks.len() as u64,
                What::Fault { fault, .. } => {
                    self.faults += 1;
                    self.lost_replies += u64::from(*fault == Fault::LostReply);
                }
                What::LeaseLost { .. } => self.leases_lost += 1,
                What::Reaped { leases, .. } => self.leases_expired += leases,
                What::NodeDies(_) => self.deaths += 1,
                What::NodeFreezes(..) => self.freezes += 1,
                What::NodeStarts(name) => self.restarts += u64::from(name.life > 0),
                What::Runs { .. } => self.runs += 1,
                What::Queued(Queued::Judged { refused: Some(_), .. }) => self.refused += 1,
                What::Queued(Queued::Cancelled { kind, .. }) if kind == PROCESS_ENDED => self.abandoned += 1,
                What::Queued(Queued::Cancelled { .. }) => self.dropped += 1,
                _ => {}
            }
        }
    }

    /// What there was too little of for the batch to have shown anything; empty for a batch that did.
    pub fn vacuous(&self) -> Vec<String> {
        let least = [
            ("calls that went wrong", self.faults, 3),
            ("lost answers", self.lost_replies, 1),
            ("leases lost or expired", self.leases_lost + self.leases_expired, 1),
            ("runs of handlers", self.runs, 4),
        ];
        // What is rarer shows over ten worlds.
        let rare = [
            ("dead nodes", self.deaths, 5),
            ("restarts", self.restarts, 5),
            ("frozen nodes", self.freezes, 2),
        ];
        // And what takes a queue that is full, over a hundred.
        let rarest = [
            ("refused submissions", self.refused, 5),
            ("dropped tasks", self.dropped, 1),
            ("tasks that ended with their process", self.abandoned, 2),
        ];
        let few = |(what, found, least): &(&str, u64, u64), per: u64| {
            let wanted = self.worlds * least / per;
            (*found < wanted).then(|| format!("{found} {what} in {} worlds, and not {wanted}", self.worlds))
        };
        let least = least.iter().filter_map(|row| few(row, 1));
        let rare = rare.iter().filter_map(|row| few(row, 10));
        let rarest = rarest.iter().filter_map(|row| few(row, 100));
        least.chain(rare).chain(rarest).collect()
    }
}

impl Batch {
    /// Lives through every seed. `progress` hears of the number of seeds so far, now and then.
    ///
    /// # Errors
    /// When a world cannot be made.
    pub fn run(&self, progress: impl Fn(u64) + Sync) -> anyhow::Result<Tally> {
        let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let total = Mutex::new(Tally::default());
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.jobs.max(1))
                .map(|_| scope.spawn(|| self.work(&next, &stop, &total, &progress)))
                .collect();
            for worker in workers {
                worker
                    .join()
                    .map_err(|_| anyhow::anyhow!("a world panicked; see above"))??;
            }
            Ok::<(), anyhow::Error>(())
        })?;
        let mut tally = total.into_inner();
        tally.failures.sort_by_key(|verdict| verdict.seed);
        Ok(tally)
    }

    fn work(
        &self,
        next: &AtomicU64,
        stop: &AtomicBool,
        total: &Mutex<Tally>,
        progress: &(impl Fn(u64) + Sync),
    ) -> anyhow::Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.seeds {
                break;
            }
            let seed = self.from + number;
            let violations = self.one(seed, total)?;
            if !violations.is_empty() {
                stop.store(self.stop_early, Ordering::Relaxed);
                total.lock().failures.push(Verdict { seed, violations });
            }
            progress(number + 1);
        }
        Ok(())
    }

    fn one(&self, seed: u64, total: &Mutex<Tally>) -> anyhow::Result<Vec<Violation>> {
        let scenario = Scenario::of(seed, self.store, self.size);
        let outcome = live(&scenario)?;
        let mut violations = check(&scenario, &outcome);
        total.lock().add(&outcome);
        if seed.is_multiple_of(TWICE_IN) {
            let (first, second) = (fingerprint(&outcome), fingerprint(&live(&scenario)?));
            if first == second {
                total.lock().repeated += 1;
            } else {
                violations.push(Violation {
                    promise: "a seed tells one story",
                    what: format!("it was {first:016x} first and {second:016x} then"),
                    entry: None,
                });
            }
        }
        Ok(violations)
    }
}
