//! What a claim costs with many tasks in the store: pending ones, finished ones, and ones that nobody may claim.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
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
/// Tasks that nobody may claim in the small store: one that holds the key, and one that waits for it.
const FEW_GATED: u64 = 2;
/// The key of tasks of which one runs all the time.
const KEY: &str = "busy";
/// The queue that nobody asks for.
const QUEUE: &str = "other";
/// How long the holder of the key keeps it: longer than any run takes.
const HOLD: Duration = Duration::from_secs(3_600);

/// Two stores to claim from in turns.
struct Pair {
    mode: &'static str,
    large: Scratch,
    small: Scratch,
    /// What is large and small of them.
    names: [String; 2],
    /// Only tasks of the default queue are asked for.
    one_queue: bool,
    /// One task of the key runs meanwhile.
    busy_key: bool,
}

impl Pair {
    fn new(bench: &Bench, mode: &'static str, names: [String; 2]) -> anyhow::Result<Pair> {
        Ok(Pair {
            mode,
            large: bench.scratch.beside("many")?,
            small: bench.scratch.beside("few")?,
            names,
            one_queue: false,
            busy_key: false,
        })
    }

    fn request(&self) -> ClaimRequest {
        ClaimRequest {
            queues: self.one_queue.then(|| Arc::from([Name::from("default")])),
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

/// Claims beside many ready tasks that nobody may claim, against claims beside few: tasks of one key, of which one runs,
/// and tasks of a queue that is not asked for. They are older than those that are claimed.
pub(super) async fn gated(bench: &mut Bench) -> anyhow::Result<()> {
    for busy_key in [true, false] {
        let what = if busy_key {
            "of one busy key"
        } else {
            "of another queue"
        };
        let many = bench.tasks.max(FEW_GATED);
        let names = [many, FEW_GATED].map(|count| format!("beside {count} {what}"));
        let mut pair = Pair::new(bench, "gated", names)?;
        (pair.busy_key, pair.one_queue) = (busy_key, !busy_key);
        for (scratch, count) in [(&pair.large, many), (&pair.small, FEW_GATED)] {
            let payload = bench.payload;
            let make = move |number| -> anyhow::Result<NewTask> {
                let mut new = task(HANDLER, number, payload)?;
                if busy_key {
                    new.spec.key = Some(Name::from(KEY));
                } else {
                    new.spec.queue = Name::from(QUEUE);
                }
                Ok(new)
            };
            let world = Arc::new(World::new(scratch.fresh().await?, bench.slots, bench.payload));
            world.enqueue_made(count, make).await?;
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
    if pair.busy_key {
        for store in &stores {
            holders.push(hold_key(store).await?);
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
    ClaimRequest {
        node: NodeId(1),
        executor: "bench".into(),
        slots,
        capabilities: None,
        queues: None,
        lease: Duration::from_secs(60),
        wait: Duration::ZERO,
    }
}

/// Takes the oldest task, which is of the key.
async fn hold_key(store: &Arc<dyn Store>) -> anyhow::Result<LeaseRef> {
    let request = ClaimRequest {
        lease: HOLD,
        ..request(1)
    };
    let claimed = store.claim(request, now(store)).await?;
    let claimed = claimed.first().context("nothing could be claimed")?;
    let key = claimed.spec.key.as_deref();
    ensure!(key == Some(KEY), "the oldest task is not of the key {KEY}");
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
