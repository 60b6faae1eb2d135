//! Tasks a second: in, out, and through.

use std::sync::Arc;

use super::Bench;
use super::limit::{CLAIM_DELETE_METRIC, INSERT_METRIC, LIFE_CYCLE_METRIC};
use super::meter::{Meter, seconds_since, tick};
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

    fn note(self, bench: &Bench) -> String {
        let calls = match self {
            Supply::Single => format!("1 task a call, {IN_FLIGHT} calls in flight"),
            Supply::Bulk => format!("{BULK} tasks a call, {BULKS_IN_FLIGHT} calls in flight"),
        };
        format!("{calls}, payload {} bytes, in process", bench.payload)
    }
}

/// Enqueues alone.
pub(super) async fn enqueue(bench: &mut Bench) -> anyhow::Result<()> {
    for supply in Supply::ALL {
        let mut rates = Vec::new();
        let meter = Meter::start();
        for _ in 0..bench.runs {
            let world = Arc::new(World::new(bench.scratch.fresh().await?, bench.slots, bench.payload));
            let start = tick();
            match supply {
                Supply::Single => world.enqueue_singles(bench.tasks).await?,
                Supply::Bulk => world.enqueue_bulk(HANDLER, bench.tasks).await?,
            };
            rates.push(bench.tasks as f64 / seconds_since(start));
            world.close().await?;
        }
        let figure = Figure::new("enqueue", supply.name(), "tasks/s", &rates, bench.tasks)
            .durability(&bench.durability)
            .against(INSERT_METRIC, bench.limits()?.insert);
        let note = supply.note(bench);
        bench.report.add(figure.machine(&meter).note(note))?;
    }
    Ok(())
}

/// Tasks that are there already, run to the end: from the first start until the store is empty.
pub(super) async fn drain(bench: &mut Bench) -> anyhow::Result<()> {
    let mut rates = Vec::new();
    let meter = Meter::start();
    for _ in 0..bench.runs {
        let world = Arc::new(World::new(bench.scratch.fresh().await?, bench.slots, bench.payload));
        let sample = world.enqueue_bulk(HANDLER, bench.tasks).await?;
        world.engine.start();
        world.until_empty().await?;
        rates.push(bench.tasks as f64 / seconds_since(world.first_start()?));
        world.check(bench.tasks, sample).await?;
        world.close().await?;
    }
    let figure = Figure::new("drain", "tasks", "tasks/s", &rates, bench.tasks)
        .durability(&bench.durability)
        .against(CLAIM_DELETE_METRIC, bench.limits()?.claim_delete);
    let note = format!(
        "{} slots, no-op handler, each task with a result and a terminal event",
        bench.slots
    );
    bench.report.add(figure.machine(&meter).note(note))
}

/// Enqueue and run at the same time: from the first enqueue until the store is empty.
pub(super) async fn end_to_end(bench: &mut Bench) -> anyhow::Result<()> {
    for supply in Supply::ALL {
        let mut rates = Vec::new();
        let meter = Meter::start();
        for _ in 0..bench.runs {
            let world = Arc::new(World::new(bench.scratch.fresh().await?, bench.slots, bench.payload));
            world.engine.start();
            let start = tick();
            let sample = match supply {
                Supply::Single => world.enqueue_singles(bench.tasks).await?,
                Supply::Bulk => world.enqueue_bulk(HANDLER, bench.tasks).await?,
            };
            world.until_empty().await?;
            rates.push(bench.tasks as f64 / seconds_since(start));
            world.check(bench.tasks, sample).await?;
            world.close().await?;
        }
        let figure = Figure::new("end-to-end", supply.name(), "tasks/s", &rates, bench.tasks)
            .durability(&bench.durability)
            .against(LIFE_CYCLE_METRIC, bench.limits()?.life_cycle);
        let note = format!(
            "{}, {} slots, each task with a result and a terminal event",
            supply.note(bench),
            bench.slots
        );
        bench.report.add(figure.machine(&meter).note(note))?;
    }
    Ok(())
}
