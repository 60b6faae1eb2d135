//! The end of a node: in order, or at once.

use std::sync::Arc;
use std::time::Duration;

use pensum_core::{StoreError, Time};
use serde::Serialize;

use crate::executor::{End, conclude};
use crate::reaper::PASS_TASKS_MAX;
use crate::run::{Run, StopReason};
use crate::{Engine, heartbeat};

/// How long handlers have to return once they were asked to stop because the node does.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// How long the claim loop may take to end before tasks are given back all the same.
const CLAIMS_END_MAX: Duration = Duration::from_secs(1);
/// How long the dropping of handlers may take.
const DROP_TIME_MAX: Duration = Duration::from_secs(1);
/// How long the last outcomes may take to reach the store.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(5);
/// How long the cancelling of tasks may take that end with the node.
const ABANDON_TIME_MAX: Duration = Duration::from_secs(5);
/// How often the end is looked for between notices of it.
const LOOK: Duration = Duration::from_millis(50);

/// What a shutdown did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ShutdownReport {
    /// Tasks that ended by themselves within the grace.
    pub ended: usize,
    /// Tasks that were stopped and given back.
    pub given_back: usize,
    /// Tasks whose handlers did not even stop when they were dropped; given back too.
    pub stuck: usize,
    /// Outcomes that did not reach the store: those tasks run again when their leases run out.
    pub unsaved: usize,
}

pub(crate) async fn shutdown(engine: &Engine, grace: Duration) -> ShutdownReport {
    let node = engine.live();
    node.stopping.cancel();
    if node.is_started() {
        let end = engine.now().plus(CLAIMS_END_MAX);
        tokio::select! {
            biased;
            () = node.claims_over.cancelled() => {}
            () = engine.seams().clock.sleep_until(end) => {}
        }
    }
    let before = node.busy();
    // What is paused will not end by itself.
    stop(engine, engine.now(), |run| run.is_paused());
    until(engine, grace, || node.busy() == 0).await;
    let mut report = ShutdownReport {
        ended: before.saturating_sub(node.busy()),
        ..ShutdownReport::default()
    };
    report.given_back = node.busy();
    if report.given_back > 0 {
        stop(engine, engine.now(), |_| true);
        until(engine, STOP_GRACE, || node.busy() == 0).await;
        for run in node.all_runs() {
            run.kill();
        }
        until(engine, DROP_TIME_MAX, || node.busy() == 0).await;
        report.stuck = give_back_stuck(engine);
    }
    until(engine, FLUSH_TIME_MAX, || !node.has_runs()).await;
    report.unsaved = node.all_runs().len();
    if report.unsaved > 0 {
        tracing::warn!(
            tasks = report.unsaved,
            "the store took no outcome of these tasks; they run again later"
        );
    }
    if node.is_started() {
        heartbeat::leave(engine).await;
    }
    if node.answers() {
        abandon(engine).await;
    }
    node.stopped.cancel();
    report
}

pub(crate) async fn abort(engine: &Engine) {
    let node = engine.live();
    node.stopping.cancel();
    node.stopped.cancel();
    for run in node.all_runs() {
        run.stop(StopReason::Shutdown, engine.now(), Duration::ZERO);
        run.kill();
    }
    until(engine, DROP_TIME_MAX, || node.busy() == 0).await;
}

/// Cancels what this node accepted that is not durable: now that it has left, nobody answers for it any more. Whatever is not
/// done in time, another node does, or the next start.
async fn abandon(engine: &Engine) {
    let end = engine.now().plus(ABANDON_TIME_MAX);
    let abandoning = async {
        loop {
            let now = engine.now();
            let reaped = engine.store().reap(now, PASS_TASKS_MAX).await?;
            engine.announce_ended(&reaped.ended, now);
            if (reaped.moved() as usize) < PASS_TASKS_MAX {
                return Ok::<_, StoreError>(());
            }
        }
    };
    tokio::select! {
        biased;
        done = abandoning => match done {
            Ok(()) | Err(StoreError::Closed) => {}
            Err(error) => tracing::warn!(%error, "tasks that are not durable could not be cancelled yet"),
        },
        () = engine.seams().clock.sleep_until(end) => {
            tracing::warn!("not all tasks that are not durable could be cancelled in time; the rest is later");
        }
    }
}

fn stop(engine: &Engine, now: Time, which: impl Fn(&Run) -> bool) {
    for run in engine.live().all_runs() {
        if which(&run) && !run.is_concluded() {
            run.stop(StopReason::Shutdown, now, STOP_GRACE);
        }
    }
}

/// Gives back what is held by handlers that block their threads: this process ends, and they with it.
fn give_back_stuck(engine: &Engine) -> usize {
    let node = engine.live();
    let mut finishes = Vec::new();
    let mut stuck = 0;
    for run in node.all_runs() {
        if !run.is_concluded() {
            stuck += 1;
            finishes.extend(conclude(&run, End::NotStarted).map(|finish| (Arc::clone(&run), finish)));
        }
    }
    node.send(&mut finishes);
    stuck
}

/// Waits until `done`, at most `time`.
async fn until(engine: &Engine, time: Duration, done: impl Fn() -> bool) {
    let node = engine.live();
    let end = engine.now().plus(time);
    while !done() && engine.now() < end {
        let mut settled = std::pin::pin!(node.settled.notified());
        settled.as_mut().enable();
        if done() {
            return;
        }
        tokio::select! {
            biased;
            () = settled => {}
            () = engine.seams().clock.sleep_until(end.min(engine.now().plus(LOOK))) => {}
        }
    }
}
