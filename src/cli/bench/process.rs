//! What is measured from outside: recovery after a kill, the time to be ready, memory.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use pensum_core::store::Call;
use pensum_engine::system_seams;

use super::Bench;
use super::child::{Process, Server};
use super::claims::request;
use super::meter::{Meter, seconds_since, tick};
use super::report::{Figure, median};
use super::work::{HANDLER, PARKED, World};
use crate::cli::client::open_store;
use crate::cli::exit::Failure;
use crate::cli::output;

/// Orphans, at most.
const ORPHANS_MAX: u64 = 100_000;
/// Tasks of one claim while orphans are counted.
const CLAIM: usize = 1_000;
/// What a child says when it holds its tasks.
const HOLDING: &str = "holding";
/// How long a node is left alone before its memory is read.
const SETTLE: Duration = Duration::from_millis(1_500);
/// Between two claims of orphans that are not claimable yet.
const LOOK: Duration = Duration::from_millis(1);

/// The child of `recovery`: claims every task of the store and waits to be killed.
pub(super) async fn hold(url: &str, tasks: u64) -> anyhow::Result<()> {
    let owner = format!("bench, process {}", std::process::id());
    let store = open_store(url, &owner).await.map_err(Failure::from)?;
    let mut held = 0;
    while held < tasks {
        let claimed = store.claim(request(CLAIM), system_seams().now()).await?;
        ensure!(!claimed.is_empty(), "{held} of {tasks} tasks could be claimed");
        held += claimed.len() as u64;
    }
    // A write after the claims takes their manifest to the disk, as the finishes of a busy node would.
    let call = Call::new("bench", system_seams().now());
    store.enqueue(&call, vec![super::work::task(PARKED, 0, 0)?]).await?;
    output::println(HOLDING)?;
    std::future::pending::<()>().await;
    Ok(())
}

/// A node dies with many claimed tasks: how long until they can be claimed again.
pub(super) async fn recovery(bench: &mut Bench) -> anyhow::Result<()> {
    let orphans = bench.tasks.min(ORPHANS_MAX);
    let (mut first, mut all) = (Vec::new(), Vec::new());
    let meter = Meter::start();
    for _ in 0..bench.runs {
        let world = Arc::new(World::new(bench.scratch.fresh().await?, bench.slots, bench.payload));
        world.enqueue_bulk(HANDLER, orphans).await?;
        world.close().await?;
        let (url, count) = (bench.scratch.url(), orphans.to_string());
        let mut holder = Process::spawn(&[
            "bench",
            "--child",
            "hold",
            "--store",
            url.as_str(),
            "--tasks",
            count.as_str(),
        ])?;
        let said = holder.line().await?;
        ensure!(said == HOLDING, "a child said `{said}`");
        holder.kill().await?;

        let start = tick();
        let store = bench.scratch.open().await?;
        let wanted = orphans + 1;
        let mut ready = 0;
        let mut first_claim = None;
        while ready < wanted {
            let now = system_seams().now();
            if first_claim.is_none() && !store.claim(request(1), now).await?.is_empty() {
                first_claim = Some(seconds_since(start));
            }
            let total = store.counts("default", now).await?.total();
            ready = total.ready + total.running;
            if ready < wanted {
                tokio::time::sleep(LOOK).await;
            }
            ensure!(
                seconds_since(start) < 60.0,
                "{ready} of {wanted} tasks came back within a minute"
            );
        }
        all.push(seconds_since(start));
        first.push(first_claim.context("nothing could be claimed")?);
        store.close().await?;
    }
    for (metric, runs) in [("open to first claim", first), ("open to all orphans claimable", all)] {
        let figure = Figure::new("recovery", metric, "s", &runs, orphans).durability(&bench.durability);
        bench.report.add(
            figure
                .machine(&meter)
                .note("the process that held them was killed by SIGKILL"),
        )?;
    }
    Ok(())
}

/// Fills a store with tasks that no node runs, and closes it.
pub(super) async fn park(bench: &Bench, tasks: u64) -> anyhow::Result<()> {
    let world = Arc::new(World::new(bench.scratch.fresh().await?, bench.slots, bench.payload));
    if tasks > 0 {
        world.enqueue_bulk(PARKED, tasks).await?;
    }
    world.close().await
}

/// From the start of the process until it takes work.
pub(super) async fn start(bench: &mut Bench) -> anyhow::Result<()> {
    let mut empty_median = None;
    for tasks in [0, bench.tasks] {
        park(bench, tasks).await?;
        let meter = Meter::start();
        let mut times = Vec::new();
        for _ in 0..bench.runs {
            let server = Server::start(&bench.scratch, bench.slots).await?;
            times.push(server.ready_after.as_secs_f64() * 1e3);
            server.stop().await?;
        }
        let metric = if tasks == 0 {
            "ready, empty".to_owned()
        } else {
            format!("ready, {tasks} pending")
        };
        let mut figure = Figure::new("start", metric, "ms", &times, tasks).machine(&meter);
        if let Some(empty) = empty_median {
            figure = figure.against("ready, empty", empty);
        }
        empty_median = Some(median(&times));
        bench
            .report
            .add(figure.note("from the start of `pensum serve` until /readyz answers 200"))?;
    }
    Ok(())
}

/// Resident memory of a node that does nothing.
pub(super) async fn memory(bench: &mut Bench) -> anyhow::Result<()> {
    let mut idle = [None, None];
    for tasks in [0, bench.tasks] {
        park(bench, tasks).await?;
        let (mut rss, mut pss) = (Vec::new(), Vec::new());
        for _ in 0..bench.runs {
            let server = Server::start(&bench.scratch, bench.slots).await?;
            tokio::time::sleep(SETTLE).await;
            let resident = Resident::of(server.pid()?)?;
            rss.push(resident.rss);
            pss.push(resident.pss);
            server.stop().await?;
        }
        for (index, (kind, runs)) in [("resident", rss), ("proportional", pss)].into_iter().enumerate() {
            let state = if tasks == 0 {
                "idle".to_owned()
            } else {
                format!("{tasks} pending")
            };
            let mut figure = Figure::new("memory", format!("{kind}, {state}"), "MB", &runs, tasks);
            if let Some(median) = idle[index] {
                figure = figure.against(format!("{kind}, idle"), median);
            }
            idle[index] = Some(median(&runs));
            bench
                .report
                .add(figure.note("`pensum serve` after 1.5 s; MB are 10⁶ bytes"))?;
        }
    }
    Ok(())
}

/// Memory of a process, in MB (10⁶ bytes).
struct Resident {
    rss: f64,
    /// Pages that several processes share count in part.
    pss: f64,
}

impl Resident {
    fn of(pid: u32) -> anyhow::Result<Resident> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let field = |name: &str| -> anyhow::Result<f64> {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .with_context(|| format!("{path} has no {name}"))?;
            let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
            Ok(kib * 1024.0 / 1e6)
        };
        Ok(Resident {
            rss: field("Rss:")?,
            pss: field("Pss:")?,
        })
    }
}
