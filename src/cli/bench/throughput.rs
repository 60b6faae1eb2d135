//! Tasks a second: in, out, and through.

use std::fmt;
use std::sync::Arc;

use pensum_core::TaskId;

use super::Bench;
use super::meter::{seconds_since, tick};
use super::nodes::Nodes;
use super::report::Figure;
use super::work::{BULK, BULKS_IN_FLIGHT, HANDLER, IN_FLIGHT, World};

/// How tasks are handed in.
#[derive(Clone, Copy)]
enum Supply {
    Single,
    Bulk,
}

impl Supply {
    const ALL: [Supply; 2] = [Supply::Single, Supply::Bulk];

    const fn name(self) -> &'static str {
        match self {
            Supply::Single => "single, 50 in flight",
            Supply::Bulk => "bulk, 1,000 a call",
        }
    }

    async fn enqueue(self, world: &Arc<World>, tasks: u64) -> anyhow::Result<TaskId> {
        match self {
            Supply::Single => world.enqueue_singles(tasks).await,
            Supply::Bulk => world.enqueue_bulk(HANDLER, tasks).await,
        }
    }

    fn note(self, bench: &Bench) -> String {
        let calls = match self {
            Supply::Single => format!("1 task a call, {IN_FLIGHT} calls in flight"),
            Supply::Bulk => format!("{BULK} tasks a call, {BULKS_IN_FLIGHT} calls in flight"),
        };
        let place = match bench.nodes {
            1 => "in process",
            _ => "from a process that runs none",
        };
        format!("{calls}, payload {} bytes, {place}", bench.payload)
    }
}

/// Enqueues alone.
pub(super) async fn enqueue(bench: &mut Bench) -> anyhow::Result<()> {
    for supply in Supply::ALL {
        let mut rates = Vec::new();
        let meter = bench.meter();
        for _ in 0..bench.runs {
            let world = Arc::new(World::new(bench.scratch.fresh().await?, bench.slots, bench.payload));
            let start = tick();
            supply.enqueue(&world, bench.tasks).await?;
            rates.push(bench.tasks as f64 / seconds_since(start));
            world.close().await?;
        }
        let figure = Figure::new("enqueue", supply.name(), "tasks/s", &rates, bench.tasks)
            .durability(&bench.durability)
            .against(&bench.limits()?.insert);
        let note = supply.note(bench);
        bench.report.add(figure.machine(&meter).note(note))?;
    }
    Ok(())
}

/// Tasks that are there already, run to the end: from the first start until the store is empty.
pub(super) async fn drain(bench: &mut Bench) -> anyhow::Result<()> {
    let mut rates = Vec::new();
    let mut shares = Shares::default();
    let meter = bench.meter();
    for _ in 0..bench.runs {
        let world = Arc::new(World::new(bench.scratch.fresh().await?, bench.slots, bench.payload));
        let sample = world.enqueue_bulk(HANDLER, bench.tasks).await?;
        let nodes = Nodes::ready(bench, &world).await?;
        let go = tick();
        let mut nodes = nodes.start().await?;
        world.until_empty().await?;
        // Other processes do not say when their first run began: there it is the word to start.
        let first = world.first_start().unwrap_or(go);
        rates.push(bench.tasks as f64 / seconds_since(first));
        let runs = nodes.end().await?;
        world.check(bench.tasks, sample, runs.iter().sum()).await?;
        shares.add(runs);
        world.close().await?;
    }
    let figure = Figure::new("drain", metric(bench, "tasks"), "tasks/s", &rates, bench.tasks)
        .durability(&bench.durability)
        .against(&bench.limits()?.claim_delete);
    let note = format!(
        "{} slots, no-op handler, each task with a result and a terminal event{shares}",
        bench.slots
    );
    bench.report.add(figure.machine(&meter).note(note))
}

/// Enqueue and run at the same time: from the first enqueue until the store is empty.
pub(super) async fn end_to_end(bench: &mut Bench) -> anyhow::Result<()> {
    for supply in Supply::ALL {
        let mut rates = Vec::new();
        let mut shares = Shares::default();
        let meter = bench.meter();
        for _ in 0..bench.runs {
            let world = Arc::new(World::new(bench.scratch.fresh().await?, bench.slots, bench.payload));
            let mut nodes = Nodes::ready(bench, &world).await?.start().await?;
            let start = tick();
            let sample = supply.enqueue(&world, bench.tasks).await?;
            world.until_empty().await?;
            rates.push(bench.tasks as f64 / seconds_since(start));
            let runs = nodes.end().await?;
            world.check(bench.tasks, sample, runs.iter().sum()).await?;
            shares.add(runs);
            world.close().await?;
        }
        let metric = metric(bench, supply.name());
        let figure = Figure::new("end-to-end", metric, "tasks/s", &rates, bench.tasks)
            .durability(&bench.durability)
            .against(&bench.limits()?.life_cycle);
        let note = format!(
            "{}, {} slots, each task with a result and a terminal event{shares}",
            supply.note(bench),
            bench.slots
        );
        bench.report.add(figure.machine(&meter).note(note))?;
    }
    Ok(())
}

fn metric(bench: &Bench, what: &str) -> String {
    match bench.nodes {
        1 => what.to_owned(),
        nodes => format!("{what}, {nodes} nodes"),
    }
}

/// How many tasks each node ran, in the newest run.
#[derive(Default)]
struct Shares(Vec<u64>);

impl Shares {
    fn add(&mut self, runs: Vec<u64>) {
        self.0 = runs;
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() < 2 {
            return Ok(());
        }
        let shares: Vec<String> = self.0.iter().map(u64::to_string).collect();
        write!(
            f,
            "; nodes in processes of their own, which ran {} tasks",
            shares.join(" + ")
        )
    }
}
