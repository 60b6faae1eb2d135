//! What a claim costs with many tasks in the store: pending ones, finished ones, and ones that nobody may claim.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use pensum_core::queue::{QueueCommand, QueueSettings};
use pensum_core::store::{Call, ClaimRequest, Finish, LeaseRef};
use pensum_core::{Json, Name, NewTask, NodeId, Outcome, Store};

use super::Bench;
use super::meter::tick;
use super::report::{Baseline, Figure, Spread};
use super::scratch::Scratch;
use super::work::{HANDLER, World, now, task};

/// Pending tasks of the small store.
const SMALL: u64 = 1_000;
/// Claims of one run: fewer than the small store has tasks, so that both stores claim tasks from the disk.
const SAMPLES: u64 = 900;
/// Finished tasks for each task of `--tasks`.
const FINISHED: u64 = 5;
/// Tasks that nobody may claim in the small store: one that holds the key or the place, and one that waits for it.
const FEW_GATED: u64 = 2;
/// The key of tasks of which one runs all the time.
const KEY: &str = "busy";
/// The queue of tasks that nobody may claim.
const QUEUE: &str = "other";
/// How long the holder of the key or the place keeps it: longer than any run takes.
const HOLD: Duration = Duration::from_secs(3_600);

/// Why nobody may claim the tasks beside those that are claimed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// Another task of their key runs.
    BusyKey,
    /// Their queue is not asked for.
    NotAsked,
    /// Their queue is paused.
    Paused,
    /// As many of their queue run as may.
    Full,
}

impl Gate {
    const ALL: [Gate; 4] = [Gate::BusyKey, Gate::NotAsked, Gate::Paused, Gate::Full];

    const fn name(self) -> &'static str {
        match self {
            Gate::BusyKey => "of one busy key",
            Gate::NotAsked => "of another queue",
            Gate::Paused => "of a paused queue",
            Gate::Full => "of a full queue",
        }
    }

    /// Closes the queue, after its tasks are enqueued.
    async fn close(self, store: &Arc<dyn Store>) -> anyhow::Result<()> {
        let call = Call::new("bench", now(store));
        match self {
            Gate::BusyKey | Gate::NotAsked => {}
            Gate::Paused => {
                store.command_queue(&call, QUEUE.into(), QueueCommand::Pause).await?;
            }
            Gate::Full => {
                let settings = QueueSettings {
                    max_concurrent: Some(1),
                    ..QueueSettings::default()
                };
                store.put_queue(&call, QUEUE.into(), settings, None).await?;
            }
        }
        Ok(())
    }

    /// One of the tasks runs meanwhile.
    const fn is_held(self) -> bool {
        matches!(self, Gate::BusyKey | Gate::Full)
    }
}

/// Two stores to claim from in turns.
struct Pair {
    mode: &'static str,
    large: Scratch,
    small: Scratch,
    /// What is large and small of them.
    names: [String; 2],
    /// Why the others cannot be claimed.
    gate: Option<Gate>,
}

impl Pair {
    fn new(bench: &Bench, mode: &'static str, names: [String; 2]) -> anyhow::Result<Pair> {
        Ok(Pair {
            mode,
            large: bench.scratch.beside("many")?,
            small: bench.scratch.beside("few")?,
            names,
            gate: None,
        })
    }

    fn request(&self) -> ClaimRequest {
        ClaimRequest {
            queues: (self.gate == Some(Gate::NotAsked)).then(|| Arc::from([Name::from("default")])),
            ..request(1)
        }
    }
}

/// Claims with many pending tasks, against claims with few.
pub(super) async fn pending(bench: &mut Bench) -> anyhow::Result<()> {
    let (few, many) = (SMALL.min(bench.tasks), bench.tasks);
    let names = [many, few].map(|count| format!("with {count} pending"));
    let pair = Pair::new(bench, "pending", names)?;
    for (scratch, count) in [(&pair.large, many), (&pair.small, few)] {
        let world = Arc::new(World::new(scratch.fresh().await?, bench.slots, bench.payload));
        world.enqueue_bulk(HANDLER, count).await?;
        world.close().await?;
    }
    compare(bench, pair).await
}

/// Claims with many finished tasks, against claims with none.
pub(super) async fn finished(bench: &mut Bench) -> anyhow::Result<()> {
    let (few, ended) = (SMALL.min(bench.tasks), bench.tasks * FINISHED);
    let names = [ended, 0].map(|count| format!("with {count} finished"));
    let pair = Pair::new(bench, "finished", names)?;
    for (scratch, ended) in [(&pair.large, ended), (&pair.small, 0)] {
        let world = Arc::new(World::new(scratch.fresh().await?, bench.slots, bench.payload));
        if ended > 0 {
            world.engine.start();
            world.enqueue_bulk(HANDLER, ended).await?;
            world.until_empty().await?;
        }
        world.engine.shutdown(Duration::from_secs(10)).await;
        world.enqueue_bulk(HANDLER, few).await?;
        world.store.close().await?;
    }
    compare(bench, pair).await
}

/// Claims beside many ready tasks that nobody may claim, against claims beside few; see [`Gate`]. They are older than those
/// that are claimed.
pub(super) async fn gated(bench: &mut Bench) -> anyhow::Result<()> {
    for gate in Gate::ALL {
        let many = bench.tasks.max(FEW_GATED);
        let names = [many, FEW_GATED].map(|count| format!("beside {count} {}", gate.name()));
        let mut pair = Pair::new(bench, "gated", names)?;
        pair.gate = Some(gate);
        for (scratch, count) in [(&pair.large, many), (&pair.small, FEW_GATED)] {
            let payload = bench.payload;
            let make = move |number| -> anyhow::Result<NewTask> {
                let mut new = task(HANDLER, number, payload)?;
                if gate == Gate::BusyKey {
                    new.spec.key = Some(Name::from(KEY));
                } else {
                    new.spec.queue = Name::from(QUEUE);
                }
                Ok(new)
            };
            let world = Arc::new(World::new(scratch.fresh().await?, bench.slots, bench.payload));
            world.enqueue_made(count, make).await?;
            gate.close(&world.store).await?;
            world.enqueue_bulk(HANDLER, SMALL.min(bench.tasks)).await?;
            world.close().await?;
        }
        compare(bench, pair).await?;
    }
    Ok(())
}

/// Compares the claims of a pair, and removes it.
async fn compare(bench: &mut Bench, pair: Pair) -> anyhow::Result<()> {
    let mut note =
        "claims of one task through the store, in turns with the baseline's; each is finished and replaced".to_owned();
    for scratch in [&pair.large, &pair.small] {
        if let Scratch::Schema(schema) = scratch {
            schema.vacuum().await?;
        }
    }
    if bench.scratch.is_shared() {
        note.push_str("; after VACUUM (ANALYZE)");
    }
    let (mut p50, mut p99) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let meter = bench.meter();
    for _ in 0..bench.runs {
        for (index, spread) in one_run(bench, &pair).await?.iter().enumerate() {
            p50[index].push(spread.ms(0.5));
            p99[index].push(spread.ms(0.99));
        }
    }
    pair.large.clear().await?;
    pair.small.clear().await?;
    let [large, small] = &pair.names;
    for (share, values) in [("p50", p50), ("p99", p99)] {
        let baseline = Baseline::new(format!("claim {share} {small}"), &values[1]);
        let metric = format!("claim {share} {large}");
        let figure = Figure::new(pair.mode, metric, "ms", &values[0], bench.tasks.min(SAMPLES))
            .durability(&bench.durability)
            .against(&baseline);
        bench.report.add(figure.machine(&meter).note(note.as_str()))?;
    }
    Ok(())
}

/// Claims from two stores in turns, so that whatever else happens on the machine meets both.
async fn one_run(bench: &Bench, pair: &Pair) -> anyhow::Result<[Spread; 2]> {
    let stores = [pair.large.open().await?, pair.small.open().await?];
    let mut holders = Vec::new();
    if pair.gate.is_some_and(Gate::is_held) {
        for store in &stores {
            holders.push(hold(store).await?);
        }
    }
    let mut spreads = [Spread::new()?, Spread::new()?];
    for number in 0..bench.tasks.min(SAMPLES) {
        for (store, spread) in stores.iter().zip(&mut spreads) {
            spread.add(claim_one(store, pair.request(), number, bench.payload).await?);
        }
    }
    for (store, holder) in stores.iter().zip(holders) {
        finish(store, holder, Outcome::Released).await?;
    }
    for store in stores {
        store.close().await?;
    }
    Ok(spreads)
}

/// A request for as many tasks as there are slots, which answers at once.
pub(super) fn request(slots: usize) -> ClaimRequest {
    ClaimRequest::new(NodeId(1), "bench", slots, Duration::from_secs(60))
}

/// Takes the oldest task, which is one of those that nobody else may claim then.
async fn hold(store: &Arc<dyn Store>) -> anyhow::Result<LeaseRef> {
    let request = ClaimRequest {
        lease: HOLD,
        ..request(1)
    };
    let claimed = store.claim(request, now(store)).await?;
    let claimed = claimed.first().context("nothing could be claimed")?;
    let is_gated = claimed.spec.key.is_some() || &*claimed.spec.queue == QUEUE;
    ensure!(is_gated, "the oldest task is of no busy key or full queue");
    Ok(claimed.lease)
}

/// Claims a task and answers how long that took; then ends it and puts another in its place.
async fn claim_one(
    store: &Arc<dyn Store>,
    request: ClaimRequest,
    number: u64,
    payload: usize,
) -> anyhow::Result<Duration> {
    let asked = now(store);
    let start = tick();
    let claimed = store.claim(request, asked).await?;
    let took = start.elapsed();
    let claimed = claimed.first().context("nothing could be claimed")?;
    ensure!(
        claimed.spec.key.is_none() && &*claimed.spec.queue == "default",
        "a task was claimed that nobody may claim"
    );
    finish(store, claimed.lease, Outcome::Done(Json::null())).await?;
    store
        .enqueue(&Call::new("bench", now(store)), vec![task(HANDLER, number, payload)?])
        .await?;
    Ok(took)
}

async fn finish(store: &Arc<dyn Store>, lease: LeaseRef, outcome: Outcome) -> anyhow::Result<()> {
    for ended in store.finish(vec![Finish::new(lease, outcome)], now(store)).await? {
        ended?;
    }
    Ok(())
}
