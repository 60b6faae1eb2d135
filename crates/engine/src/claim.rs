//! The claim loop: asks the store for as much work as there are free slots, the moment there are any.

use std::sync::Arc;
use std::time::Duration;

use pensum_core::store::{ClaimRequest, Claimed, Finish};
use pensum_core::{Outcome, StoreError, Time};

use crate::Engine;
use crate::executor;
use crate::run::Run;

/// How long a store may hold a claim that finds nothing.
const CLAIM_WAIT: Duration = Duration::from_secs(10);
/// The same as a share of the lease, which by this node's clock begins when the claim is sent: what comes of it must have
/// time left to run.
const CLAIM_WAIT_DIVISOR: u32 = 3;
/// How long to wait before asking again a store that does not hold claims.
const POLL_MAX: Duration = Duration::from_millis(250);
/// An empty answer that took at least this long was held by the store, which can be asked again at once.
const HELD_MIN: Duration = Duration::from_millis(50);
/// First and longest pause after a claim that failed.
const FAILURE_PAUSE_MIN: Duration = Duration::from_millis(100);
const FAILURE_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Most outcomes that wait for the disk before no more work is claimed: what a slow disk must bring to a standstill.
const UNACKNOWLEDGED_MAX: usize = 16_384;

/// Claims until the node stops.
pub(crate) async fn run(engine: Engine) {
    claim_all(&engine).await;
    engine.live().claims_over.cancel();
}

async fn claim_all(engine: &Engine) {
    let node = engine.live();
    let mut failures = Failures::default();
    // What runs may have children, which ask only what was seen. The heartbeat looks again where this fails.
    tokio::select! {
        biased;
        _ = engine.reload_queues() => {}
        () = node.stopping.cancelled() => return,
    }
    while !node.stopping.is_cancelled() {
        let free = match node.unacknowledged() < UNACKNOWLEDGED_MAX {
            true => node.free(),
            false => 0,
        };
        if free == 0 {
            wait_for_room(engine).await;
            continue;
        }
        let sent = engine.now();
        let commands = node.commands();
        match claim(engine, free, sent).await {
            Some(Ok(claimed)) if claimed.is_empty() => {
                failures.over();
                if engine.now().since(sent) < HELD_MIN {
                    pause(engine, POLL_MAX).await;
                }
            }
            Some(Ok(claimed)) => {
                failures.over();
                take(engine, claimed, sent);
                if node.commands() != commands {
                    // It may be these tasks that something was asked of, while they were on their way.
                    node.want_renewal();
                }
            }
            Some(Err(StoreError::Closed)) => {
                tracing::info!("the store is closed; this node claims nothing more");
                return;
            }
            Some(Err(error)) => {
                let nap = failures.next(engine, &error);
                pause(engine, nap).await;
            }
            None => return,
        }
    }
}

/// One claim. `None` when the node stops: what waits at the store must not be given the very tasks that this node is about to
/// give back. The store takes back what was on its way.
async fn claim(engine: &Engine, slots: usize, now: Time) -> Option<Result<Vec<Claimed>, StoreError>> {
    let request = ClaimRequest {
        capabilities: Some(engine.capabilities()),
        queues: engine.queues(),
        resources: engine.offered(),
        wait: CLAIM_WAIT.min(engine.lease() / CLAIM_WAIT_DIVISOR),
        ..ClaimRequest::new(engine.node().id, engine.node().name.clone(), slots, engine.lease())
    };
    let stopping = &engine.live().stopping;
    tokio::select! {
        biased;
        claimed = engine.store().claim(request, now) => Some(claimed),
        () = stopping.cancelled() => None,
    }
}

async fn wait_for_room(engine: &Engine) {
    let node = engine.live();
    let mut settled = std::pin::pin!(node.settled.notified());
    settled.as_mut().enable();
    if node.free() > 0 && node.unacknowledged() < UNACKNOWLEDGED_MAX {
        return;
    }
    tokio::select! {
        biased;
        () = node.slot_freed.notified() => {}
        () = settled => {}
        () = node.stopping.cancelled() => {}
    }
}

/// Waits for a hint that there may be work, or for `nap`.
async fn pause(engine: &Engine, nap: Duration) {
    let node = engine.live();
    tokio::select! {
        biased;
        () = node.wake.notified() => {}
        () = engine.seams().clock.sleep_until(engine.now().plus(nap)) => {}
        () = node.stopping.cancelled() => {}
    }
}

/// Makes runs of what was claimed and hands them to the executor.
pub(crate) fn take(engine: &Engine, claimed: Vec<Claimed>, sent: Time) {
    let node = engine.live();
    let now = engine.now();
    let lease_until = sent.plus(engine.lease());
    let runs: Vec<Arc<Run>> = claimed
        .into_iter()
        .map(|c| Arc::new(Run::new(engine, c, lease_until, now)))
        .collect();
    node.add(&runs);
    if node.stopping.is_cancelled() {
        give_back(engine, runs);
        return;
    }
    node.take_slots(runs.len());
    executor::dispatch(engine, runs);
}

fn give_back(engine: &Engine, runs: Vec<Arc<Run>>) {
    let mut finishes = runs
        .into_iter()
        .filter(|run| run.conclude())
        .map(|run| {
            let finish = Finish::new(run.lease, Outcome::Released);
            (run, finish)
        })
        .collect();
    engine.live().send(&mut finishes);
}

/// Failures in a row of one loop, with growing pauses. The first one is said, unless another loop of the node has said the
/// same a moment ago.
#[derive(Default)]
pub(crate) struct Failures {
    count: u32,
    said: bool,
}

impl Failures {
    /// Counts a failure and answers how long to wait.
    pub(crate) fn next(&mut self, engine: &Engine, error: &StoreError) -> Duration {
        if self.count == 0 {
            self.said = engine.live().may_complain(engine.now());
            if self.said {
                tracing::warn!(%error, "the store does not answer; trying again until it does");
            } else {
                tracing::debug!(%error, "the store does not answer here either");
            }
        }
        self.count += 1;
        FAILURE_PAUSE_MIN
            .saturating_mul(1 << self.count.min(10))
            .min(FAILURE_PAUSE_MAX)
    }

    /// It works again.
    pub(crate) fn over(&mut self) {
        if self.said {
            tracing::info!(failures = self.count, "the store answers again");
        }
        *self = Failures::default();
    }
}
