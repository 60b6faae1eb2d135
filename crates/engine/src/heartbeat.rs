//! The node's sign of life: it tells the store every second that it lives, and learns whether somebody asked something of
//! what runs here, and which settings the queues have.

use std::time::Duration;

use pensum_core::store::NodeBeat;
use pensum_core::{StoreError, Time};

use crate::Engine;
use crate::claim::Failures;
use crate::status::VERSION;

/// Time between two beats, also while they fail: how late a command may reach a task that runs on another node.
pub(crate) const BEAT_EVERY: Duration = Duration::from_secs(1);
/// A share of the lease: how long a node may be silent before it is given up for dead. A node that lives has renewed its
/// leases within their first third, so whoever finds one that ran out knows already whether its node died.
const TTL_DIVISOR: u32 = 2;
/// Nodes with leases of a few seconds beat more often: this many times before they would be given up.
const BEATS_PER_TTL: u32 = 5;
/// How long the store may take to note that the node ends.
const LEAVE_TIME_MAX: Duration = Duration::from_secs(1);

fn ttl(engine: &Engine) -> Duration {
    engine.lease() / TTL_DIVISOR
}

/// Beats until everything ends.
pub(crate) async fn run(engine: Engine) {
    let node = engine.live();
    let every = BEAT_EVERY.min(ttl(&engine) / BEATS_PER_TTL);
    let mut failures = Failures::default();
    let mut looked = Time::EPOCH;
    loop {
        let sent = engine.now();
        let answer = tokio::select! {
            biased;
            answer = beat(&engine, sent) => answer,
            () = node.stopped.cancelled() => return,
        };
        match answer {
            Ok(()) => failures.over(),
            Err(StoreError::Closed) => return,
            Err(error) => drop(failures.next(&engine, &error)),
        }
        let is_due = sent.since(looked) >= BEAT_EVERY;
        if is_due {
            looked = sent;
        }
        tokio::select! {
            biased;
            () = engine.seams().clock.sleep_until(sent.plus(every)) => {}
            () = node.stopped.cancelled() => return,
            // A store that takes its time with this must not keep the node from saying that it lives.
            () = look_at_queues(&engine, is_due) => {}
        }
    }
}

/// Reads the settings of the queues, then waits to be given up.
async fn look_at_queues(engine: &Engine, is_due: bool) {
    if is_due && let Err(error) = engine.reload_queues().await {
        tracing::debug!(%error, "the queues could not be read again");
    }
    std::future::pending().await
}

async fn beat(engine: &Engine, sent: Time) -> Result<(), StoreError> {
    let node = engine.live();
    let _turn = node.beating.lock().await;
    if node.stopped.is_cancelled() {
        return Ok(());
    }
    let info = engine.node();
    let beat = NodeBeat {
        node: info.id,
        name: info.name.clone(),
        version: VERSION.to_owned(),
        address: info.address.clone(),
        started_at: info.started_at,
        slots: info.slots,
        running: node.busy(),
        ttl: ttl(engine),
    };
    let reply = engine.store().heartbeat(beat, sent).await?;
    node.heard(sent, reply.commands);
    Ok(())
}

/// Tells the store of this node, where it has not heard of it yet.
pub(crate) async fn be_heard(engine: &Engine) -> Result<(), StoreError> {
    match engine.live().was_heard() {
        true => Ok(()),
        false => beat(engine, engine.now()).await,
    }
}

/// True when the store has not heard of this node for so long that others may take it for dead: the store was gone, or
/// the machine slept. The other nodes may be as silent, and alive; this is no time to judge them.
pub(crate) fn is_unheard(engine: &Engine, now: Time) -> bool {
    now.since(engine.live().heard_at()) >= ttl(engine)
}

/// Takes the node off the list of those that live, once it holds nothing any more. No beat follows.
pub(crate) async fn leave(engine: &Engine) {
    let node = engine.live();
    let leaving = async {
        // A beat under way would bring the node back.
        let _turn = node.beating.lock().await;
        let left = engine.store().leave(engine.node().id, engine.now()).await;
        node.stopped.cancel();
        left
    };
    let end = engine.now().plus(LEAVE_TIME_MAX);
    tokio::select! {
        biased;
        left = leaving => match left {
            Ok(()) | Err(StoreError::Closed) => {}
            Err(error) => tracing::warn!(%error, "the store could not note that this node ends; it lists it as lost"),
        },
        () = engine.seams().clock.sleep_until(end) => {
            tracing::warn!("the store did not note in time that this node ends; it lists it as lost");
        }
    }
}
