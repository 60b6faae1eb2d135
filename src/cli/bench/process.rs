//! What is measured from outside: recovery after a kill, the time to be ready, memory.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use pensum_core::store::{Beat, Call, ClaimRequest, LeaseRef, NodeBeat, Renewal};
use pensum_core::{NodeId, Store, Time};

use super::Bench;
use super::child::{Process, Server};
use super::claims::request;
use super::meter::{seconds_since, tick};
use super::report::{Baseline, Figure};
use super::scratch::open;
use super::work::{PARKED, World, now, task};
use crate::cli::output;

/// Orphans, at most.
const ORPHANS_MAX: u64 = 100_000;
/// Tasks of one claim while orphans are made, and of one renewal.
const CLAIM: usize = 1_000;
/// What a child says when it holds its tasks, followed by the milliseconds until it has lost them.
const HOLDING: &str = "holding";
/// Who dies.
const HOLDER: NodeId = NodeId(2);
/// How long the leases of the holder go on after its last renewal, on a store that others share.
const LAST_LEASE: Duration = Duration::from_secs(3);
/// Longest wait for orphans, in seconds.
const RECOVERY_MAX: f64 = 120.0;
/// How long a node is left alone before its memory is read.
const SETTLE: Duration = Duration::from_millis(1_500);
/// Between two looks for orphans that are not claimable yet.
const LOOK: Duration = Duration::from_millis(1);

/// The child of `recovery`: claims every task of the store and waits to be killed.
pub(super) async fn hold(url: &str, tasks: u64) -> anyhow::Result<()> {
    let store = open(url).await?;
    let mut held = Vec::new();
    while (held.len() as u64) < tasks {
        let request = ClaimRequest {
            node: HOLDER,
            ..request(CLAIM)
        };
        let claimed = store.claim(request, now(&store)).await?;
        ensure!(!claimed.is_empty(), "{} of {tasks} tasks could be claimed", held.len());
        held.extend(claimed.into_iter().map(|claimed| claimed.lease));
    }
    let left = if pensum_store::is_postgres(url) {
        last_renewal(&store, held).await?
    } else {
        // A write after the claims takes their manifest to the disk, as the finishes of a busy node would.
        let call = Call::new("bench", now(&store));
        store.enqueue(&call, vec![task(PARKED, 0, 0)?]).await?;
        Duration::ZERO
    };
    output::println(&format!("{HOLDING} {}", left.as_millis()))?;
    std::future::pending::<()>().await;
    Ok(())
}

/// Says for the last time that the holder lives, and renews all that it holds. How long until the last lease ends.
async fn last_renewal(store: &Arc<dyn Store>, held: Vec<LeaseRef>) -> anyhow::Result<Duration> {
    let beat = NodeBeat {
        node: HOLDER,
        name: "bench".into(),
        version: "bench".to_owned(),
        address: None,
        started_at: now(store),
        slots: held.len(),
        running: held.len(),
        ttl: LAST_LEASE / 2,
    };
    store.heartbeat(beat, now(store)).await?;
    let mut end: Option<Time> = None;
    for leases in held.chunks(CLAIM) {
        let beat = |&lease| Beat {
            lease,
            progress: None,
            logs: Vec::new(),
        };
        let beats = leases.iter().map(beat).collect();
        for renewal in store.renew(beats, LAST_LEASE, now(store)).await? {
            match renewal {
                Renewal::Held { expires_at, .. } => end = end.max(Some(expires_at)),
                Renewal::Lost => anyhow::bail!("a lease was lost while it was held"),
            }
        }
    }
    Ok(end.context("nothing is held")?.since(now(store)))
}

/// A node dies with many claimed tasks: how long until they can be claimed again.
pub(super) async fn recovery(bench: &mut Bench) -> anyhow::Result<()> {
    let orphans = bench.tasks.min(ORPHANS_MAX);
    let (mut first, mut all) = (Vec::new(), Vec::new());
    let meter = bench.meter();
    for _ in 0..bench.runs {
        park(bench, orphans).await?;
        let (url, count) = (bench.scratch.url(), orphans.to_string());
        let mut holder = Process::spawn(&["bench", "--child", "hold", "--store", &url, "--tasks", &count])?;
        let said = holder.line().await?;
        let left = said.strip_prefix(HOLDING).and_then(|left| left.trim().parse().ok());
        let left = Duration::from_millis(left.with_context(|| format!("a child said `{said}`"))?);
        holder.kill().await?;
        // Nobody can know earlier that its tasks are free, and how long that takes is a setting.
        tokio::time::sleep(left + LOOK).await;
        let (first_claim, all_claimable) = recover(bench, orphans).await?;
        first.push(first_claim);
        all.push(all_claimable);
    }
    let note = if bench.scratch.is_shared() {
        "the process that held them was killed by SIGKILL; counted from the end of its leases, with one node to find them"
    } else {
        "the process that held them was killed by SIGKILL"
    };
    for (metric, runs) in [("open to first claim", first), ("open to all orphans claimable", all)] {
        let figure = Figure::new("recovery", metric, "s", &runs, orphans).durability(&bench.durability);
        bench.report.add(figure.machine(&meter).note(note))?;
    }
    Ok(())
}

/// Opens the store of a dead node: seconds until the first claim, and until all of its tasks are claimable.
async fn recover(bench: &Bench, orphans: u64) -> anyhow::Result<(f64, f64)> {
    let start = tick();
    let world = World::new(bench.scratch.open().await?, bench.slots, bench.payload);
    let store = Arc::clone(&world.store);
    // What a holder on a store of its own wrote after its claims is one more; what shares its store is recovered by
    // whichever node is left.
    let wanted = if bench.scratch.is_shared() {
        world.engine.start();
        orphans
    } else {
        orphans + 1
    };
    let (mut first_claim, mut all_claimable) = (None, None);
    loop {
        let asked = tick();
        if first_claim.is_none() && !store.claim(request(1), now(&store)).await?.is_empty() {
            first_claim = Some(seconds_since(start));
        }
        // The task that was claimed just now runs again.
        let ready = store.counts("default", now(&store)).await?.total().ready + u64::from(first_claim.is_some());
        if all_claimable.is_none() && ready >= wanted {
            all_claimable = Some(seconds_since(start));
        }
        if let (Some(first), Some(all)) = (first_claim, all_claimable) {
            world.close().await?;
            return Ok((first, all));
        }
        ensure!(
            seconds_since(start) < RECOVERY_MAX,
            "{ready} of {wanted} tasks came back within {RECOVERY_MAX} s"
        );
        tokio::time::sleep(LOOK.max(asked.elapsed())).await;
    }
}

/// Fills a store with tasks that no node runs, and closes it.
async fn park(bench: &Bench, tasks: u64) -> anyhow::Result<()> {
    let world = Arc::new(World::new(bench.scratch.fresh().await?, bench.slots, bench.payload));
    if tasks > 0 {
        world.enqueue_bulk(PARKED, tasks).await?;
    }
    world.close().await
}

/// From the start of the process until it takes work.
pub(super) async fn start(bench: &mut Bench) -> anyhow::Result<()> {
    let mut empty = None;
    for tasks in [0, bench.tasks] {
        park(bench, tasks).await?;
        let meter = bench.meter();
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
        if let Some(empty) = &empty {
            figure = figure.against(empty);
        }
        empty = Some(Baseline::new("ready, empty", &times));
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
            if let Some(idle) = &idle[index] {
                figure = figure.against(idle);
            }
            idle[index] = Some(Baseline::new(format!("{kind}, idle"), &runs));
            bench
                .report
                .add(figure.note("`pensum serve` after 1.5 s; MB are 10⁶ bytes"))?;
        }
    }
    Ok(())
}

/// Memory of a process, in MB (10⁶ bytes).
pub(super) struct Resident {
    pub(super) rss: f64,
    /// Pages that several processes share count in part.
    pss: f64,
}

impl Resident {
    pub(super) fn of(pid: u32) -> anyhow::Result<Resident> {
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
