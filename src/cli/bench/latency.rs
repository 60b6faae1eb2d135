//! How long an idle node takes from the call of enqueue to the start of the handler.

use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;

use super::Bench;
use super::meter::{Meter, tick};
use super::report::{Figure, Spread, median};
use super::scratch::Disk;
use super::work::World;

/// Samples of one run, at most.
const SAMPLES_MAX: u64 = 1_000;
/// Between two samples, so that everything about the one before is over.
const GAP: Duration = Duration::from_millis(2);
/// Longest wait for a start.
const START_MAX: Duration = Duration::from_secs(10);
const SHARES: [(&str, f64); 3] = [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)];

pub(super) async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let samples = bench.tasks.min(SAMPLES_MAX);
    let (mut starts_ms, mut disk_ms) = (vec![Vec::new(); SHARES.len()], vec![Vec::new(); SHARES.len()]);
    let meter = Meter::start();
    for _ in 0..bench.runs {
        let (starts, disk) = one_run(bench, samples).await?;
        for (index, (_, share)) in SHARES.into_iter().enumerate() {
            starts_ms[index].push(starts.ms(share));
            disk_ms[index].push(disk.ms(share));
        }
    }
    for (index, (name, _)) in SHARES.into_iter().enumerate() {
        let disk = format!("4 KiB append + fdatasync beside it, {name}");
        let figure = Figure::new(
            "latency",
            format!("enqueue to start, idle, {name}"),
            "ms",
            &starts_ms[index],
            samples,
        )
        .durability(&bench.durability)
        .against(disk, median(&disk_ms[index]));
        bench
            .report
            .add(figure.machine(&meter).note("one task at a time, in process"))?;
    }
    Ok(())
}

/// Samples of the start and, between them, of the disk.
async fn one_run(bench: &Bench, samples: u64) -> anyhow::Result<(Spread, Spread)> {
    let (sender, mut starts) = mpsc::unbounded_channel();
    let world = World::listening(bench.scratch.fresh().await?, bench.slots, bench.payload, Some(sender));
    world.engine.start();
    let (mut latency, mut sync) = (Spread::new()?, Spread::new()?);
    let mut disk = Disk::beside(&bench.scratch)?;
    // The first one pays for files and caches that come into being.
    for number in 0..=samples {
        tokio::time::sleep(GAP).await;
        let called = tick();
        world.enqueue_one(number).await?;
        let started = tokio::time::timeout(START_MAX, starts.recv())
            .await?
            .context("the node is gone")?;
        world.until_empty().await?;
        tokio::time::sleep(GAP).await;
        let synced = disk.append()?;
        if number > 0 {
            latency.add(started.saturating_duration_since(called));
            sync.add(synced);
        }
    }
    world.close().await?;
    Ok((latency, sync))
}
