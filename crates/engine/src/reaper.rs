//! Upkeep: ends what is overdue, and removes what is past its retention.

use std::time::Duration;

use pensum_core::{StoreError, Time};

use crate::claim::Failures;
use crate::{Engine, heartbeat};

/// Longest time between two passes.
const PASS_MAX: Duration = Duration::from_secs(1);
/// Shortest time between two passes.
const PASS_MIN: Duration = Duration::from_millis(10);
/// Most tasks in one pass.
pub(crate) const PASS_TASKS_MAX: usize = 1_000;
/// How long a node that was cut off from the store itself leaves the others to say that they live.
const UNHEARD_PAUSE: Duration = heartbeat::BEAT_EVERY.saturating_mul(2);
/// Time between two clean-ups.
const PRUNE_EVERY: Duration = Duration::from_secs(3_600);
/// Most tasks removed in one transaction.
const PRUNE_TASKS_MAX: usize = 1_000;
/// Time between two transactions of one clean-up, in which other work goes on.
const PRUNE_PAUSE: Duration = Duration::from_millis(50);

/// Ends overdue leases, waits and tasks until everything ends.
pub(crate) async fn run(engine: Engine) {
    let node = engine.live();
    let mut failures = Failures::default();
    while !node.stopped.is_cancelled() {
        let now = engine.now();
        if heartbeat::is_unheard(&engine, now) {
            sleep(&engine, UNHEARD_PAUSE).await;
            continue;
        }
        node.forget_due();
        let nap = match engine.store().reap(now, PASS_TASKS_MAX).await {
            Ok(reaped) => {
                failures.over();
                engine.announce_ended(&reaped.ended, now);
                let moved = reaped.moved();
                if moved > 0 {
                    engine.wake_claims();
                }
                let until_due = reaped.next_due.map_or(PASS_MAX, |due| due.since(now));
                if moved as usize >= PASS_TASKS_MAX {
                    PASS_MIN
                } else {
                    until_due.clamp(PASS_MIN, PASS_MAX)
                }
            }
            Err(StoreError::Closed) => return,
            Err(error) => failures.next(&engine, &error),
        };
        if !sleep_until_due(&engine, now.plus(nap)).await {
            return;
        }
    }
}

/// Sleeps until `wake`, or until a wait ends that was stored meanwhile. False when everything ended.
async fn sleep_until_due(engine: &Engine, mut wake: Time) -> bool {
    let node = engine.live();
    loop {
        wake = wake.min(node.due());
        tokio::select! {
            biased;
            () = engine.seams().clock.sleep_until(wake) => return true,
            () = node.due_sooner.notified() => {}
            () = node.stopped.cancelled() => return false,
        }
    }
}

/// Removes what is past its retention until everything ends.
pub(crate) async fn prune(engine: Engine) {
    let mut failures = Failures::default();
    loop {
        let nap = match engine
            .store()
            .prune(engine.retention(), engine.now(), PRUNE_TASKS_MAX)
            .await
        {
            Ok(pruned) => {
                failures.over();
                if pruned.more { PRUNE_PAUSE } else { PRUNE_EVERY }
            }
            Err(StoreError::Closed) => return,
            Err(error) => failures.next(&engine, &error),
        };
        if !sleep(&engine, nap).await {
            return;
        }
    }
}

/// False when everything ended meanwhile.
async fn sleep(engine: &Engine, nap: Duration) -> bool {
    tokio::select! {
        biased;
        () = engine.seams().clock.sleep_until(engine.now().plus(nap)) => true,
        () = engine.live().stopped.cancelled() => false,
    }
}
