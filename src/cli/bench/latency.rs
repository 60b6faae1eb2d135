//! How long an idle node takes from the call of enqueue to the start of the handler.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::Bench;
use super::limit::OneRow;
use super::meter::{shared_clock, tick};
use super::nodes::Nodes;
use super::report::{Baseline, Figure, Spread};
use super::scratch::{Disk, Scratch};
use super::work::World;

/// Samples of one run, at most.
const SAMPLES_MAX: u64 = 1_000;
/// Between two samples, so that everything about the one before is over.
const GAP: Duration = Duration::from_millis(2);
/// Longest wait for a start.
const START_MAX: Duration = Duration::from_secs(10);
const SHARES: [(&str, f64); 3] = [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)];

/// Which node runs the tasks.
#[derive(Clone, Copy)]
enum Runner {
    /// The one that enqueues them.
    Same,
    /// One in another process.
    Other,
}

pub(super) async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    measure(bench, Runner::Same).await?;
    if bench.scratch.is_shared() {
        measure(bench, Runner::Other).await?;
    }
    Ok(())
}

async fn measure(bench: &mut Bench, runner: Runner) -> anyhow::Result<()> {
    let samples = bench.tasks.min(SAMPLES_MAX);
    let (mut starts_ms, mut commits_ms) = (vec![Vec::new(); SHARES.len()], vec![Vec::new(); SHARES.len()]);
    let meter = bench.meter();
    for _ in 0..bench.runs {
        let (starts, commits) = one_run(bench, samples, runner).await?;
        for (index, (_, share)) in SHARES.into_iter().enumerate() {
            starts_ms[index].push(starts.ms(share));
            commits_ms[index].push(commits.ms(share));
        }
    }
    let (what, note) = match runner {
        Runner::Same => ("enqueue to start, idle", "one task at a time, in process"),
        Runner::Other => (
            "enqueue to start on another node, idle",
            "one task at a time, enqueued here and run by a node in another process",
        ),
    };
    let commit = match bench.scratch {
        Scratch::File(_) => "4 KiB append + fdatasync",
        Scratch::Schema(_) => "raw commit of one row",
    };
    for (index, (share, _)) in SHARES.into_iter().enumerate() {
        let baseline = Baseline::new(format!("{commit} beside it, {share}"), &commits_ms[index]);
        let metric = format!("{what}, {share}");
        let figure = Figure::new("latency", metric, "ms", &starts_ms[index], samples)
            .durability(&bench.durability)
            .against(&baseline);
        bench.report.add(figure.machine(&meter).note(note))?;
    }
    Ok(())
}

/// Samples of the start and, between them, of what one commit costs at least.
async fn one_run(bench: &Bench, samples: u64, runner: Runner) -> anyhow::Result<(Spread, Spread)> {
    let (sender, starts) = mpsc::unbounded_channel();
    let store = bench.scratch.fresh().await?;
    let world = Arc::new(World::listening(store, bench.slots, bench.payload, Some(sender)));
    let mut starts = match runner {
        Runner::Same => {
            world.engine.start();
            Starts::Here(starts)
        }
        Runner::Other => {
            let nodes = Nodes::there(&bench.scratch, 1, bench.slots, true).await?;
            Starts::There(nodes.start().await?)
        }
    };
    let (mut latency, mut commits) = (Spread::new()?, Spread::new()?);
    let mut commit = Commit::beside(bench).await?;
    // The first one pays for files and caches that come into being.
    for number in 0..=samples {
        tokio::time::sleep(GAP).await;
        let called = tick();
        world.enqueue_one(number).await?;
        let took = tokio::time::timeout(START_MAX, starts.next(called)).await??;
        world.until_empty().await?;
        tokio::time::sleep(GAP).await;
        let committed = commit.take().await?;
        if number > 0 {
            latency.add(took);
            commits.add(committed);
        }
    }
    if let Starts::There(nodes) = &mut starts {
        nodes.end().await?;
    }
    world.close().await?;
    Ok((latency, commits))
}

/// Where runs are heard of.
enum Starts {
    Here(UnboundedReceiver<Instant>),
    There(Nodes),
}

impl Starts {
    /// Waits for the next start: how long after the call it was.
    async fn next(&mut self, called: Instant) -> anyhow::Result<Duration> {
        match self {
            Starts::Here(starts) => {
                let started = starts.recv().await.context("the node is gone")?;
                Ok(started.saturating_duration_since(called))
            }
            Starts::There(nodes) => {
                let started = nodes.next_start().await?;
                Ok(started.saturating_sub(shared_clock(called)))
            }
        }
    }
}

/// What one commit costs at least.
enum Commit {
    /// A block on the disk.
    Disk(Disk),
    /// A row in the plainest table of the server.
    Row(OneRow),
}

impl Commit {
    async fn beside(bench: &Bench) -> anyhow::Result<Commit> {
        Ok(match &bench.scratch {
            Scratch::File(file) => Commit::Disk(Disk::at(file.beside("disk")?)?),
            Scratch::Schema(schema) => Commit::Row(OneRow::at(&schema.beside("raw")).await?),
        })
    }

    async fn take(&mut self) -> anyhow::Result<Duration> {
        match self {
            Commit::Disk(disk) => disk.append(),
            Commit::Row(row) => row.commit().await,
        }
    }
}
