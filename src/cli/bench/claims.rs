//! What a claim costs with many tasks in the store: pending ones, and finished ones.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use pensum_core::store::{Call, ClaimRequest, Finish};
use pensum_core::{Json, NodeId, Outcome, Store};
use pensum_engine::system_seams;

use super::Bench;
use super::meter::{Meter, tick};
use super::report::{Figure, Spread, median};
use super::work::{HANDLER, World, task};

/// Pending tasks of the small store.
const SMALL: u64 = 1_000;
/// Claims of one run: fewer than the small store has tasks, so that both stores claim tasks from the disk.
const SAMPLES: u64 = 900;
/// Finished tasks for each task of `--tasks`.
const FINISHED: u64 = 5;

/// Claims with many pending tasks, against claims with few.
pub(super) async fn pending(bench: &mut Bench) -> anyhow::Result<()> {
    let (few, many) = (SMALL.min(bench.tasks), bench.tasks);
    let (large, small) = (bench.scratch.beside("many")?, bench.scratch.beside("few")?);
    for (scratch, count) in [(&large, many), (&small, few)] {
        let world = Arc::new(World::new(scratch.fresh().await?, bench.slots, bench.payload));
        world.enqueue_bulk(HANDLER, count).await?;
        world.close().await?;
    }
    compare(
        bench,
        "pending",
        [&large, &small],
        [(many, "pending"), (few, "pending")],
    )
    .await
}

/// Claims with many finished tasks, against claims with none.
pub(super) async fn finished(bench: &mut Bench) -> anyhow::Result<()> {
    let (few, ended) = (SMALL.min(bench.tasks), bench.tasks * FINISHED);
    let (large, small) = (bench.scratch.beside("many")?, bench.scratch.beside("few")?);
    for (scratch, ended) in [(&large, ended), (&small, 0)] {
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
    compare(
        bench,
        "finished",
        [&large, &small],
        [(ended, "finished"), (0, "finished")],
    )
    .await
}

/// Claims from two stores in turns, so that whatever else happens on the machine meets both.
async fn compare(
    bench: &mut Bench,
    mode: &'static str,
    places: [&super::scratch::Scratch; 2],
    names: [(u64, &str); 2],
) -> anyhow::Result<()> {
    let mut p99 = [Vec::new(), Vec::new()];
    let mut p50 = [Vec::new(), Vec::new()];
    let meter = Meter::start();
    for _ in 0..bench.runs {
        let stores = [places[0].open().await?, places[1].open().await?];
        let mut spreads = [Spread::new()?, Spread::new()?];
        for number in 0..SAMPLES.min(bench.tasks) {
            for (store, spread) in stores.iter().zip(&mut spreads) {
                spread.add(claim_one(store, number, bench.payload).await?);
            }
        }
        for (index, spread) in spreads.iter().enumerate() {
            p50[index].push(spread.ms(0.5));
            p99[index].push(spread.ms(0.99));
        }
        for store in stores {
            store.close().await?;
        }
    }
    let [large, small] = names.map(|(count, what)| format!("with {count} {what}"));
    let note = "claims of one task through the store, in turns with the baseline's; each is finished and replaced";
    for (share, values) in [("p50", p50), ("p99", p99)] {
        let figure = Figure::new(
            mode,
            format!("claim {share} {large}"),
            "ms",
            &values[0],
            SAMPLES.min(bench.tasks),
        )
        .durability(&bench.durability)
        .against(format!("claim {share} {small}"), median(&values[1]));
        bench.report.add(figure.machine(&meter).note(note))?;
    }
    Ok(())
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

/// Claims a task and answers how long that took; then ends it and puts another in its place.
async fn claim_one(store: &Arc<dyn Store>, number: u64, payload: usize) -> anyhow::Result<Duration> {
    let seams = system_seams();
    let start = tick();
    let claimed = store.claim(request(1), seams.now()).await?;
    let took = start.elapsed();
    let claimed = claimed.first().context("nothing could be claimed")?;
    for ended in store
        .finish(
            vec![Finish::new(claimed.lease, Outcome::Done(Json::null()))],
            seams.now(),
        )
        .await?
    {
        ended?;
    }
    store
        .enqueue(&Call::new("bench", seams.now()), vec![task(HANDLER, number, payload)?])
        .await?;
    Ok(took)
}
