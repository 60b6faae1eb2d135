//! A graph of tasks that wait for each other.

use anyhow::ensure;
use pensum_core::graph::find_cycle;
use pensum_core::input::{self, BatchInput};
use pensum_core::seam::{Random, SeededRandom};
use pensum_core::task::Dependency;
use pensum_core::{NewTask, Time};
use serde_json::json;

use super::Bench;
use super::meter::{seconds_since, tick};
use super::report::Figure;
use super::work::{HANDLER, World, task};

const MODE: &str = "dependencies";
/// Tasks of the graph, at most: as many as one enqueue takes.
const TASKS_MAX: u64 = 10_000;
/// Tasks of one layer.
const LAYER: u64 = 100;
/// Dependencies of one task, at most.
const FAN_IN_MAX: u64 = 4;
const SEED: u64 = 20_260_101;

/// Which earlier tasks each task waits for: one to four of the layer before it.
fn edges(count: u64) -> Vec<Vec<u64>> {
    let random = SeededRandom::new(SEED);
    (0..count)
        .map(|index| {
            let layer = index / LAYER;
            if layer == 0 {
                return Vec::new();
            }
            let fan_in = 1 + random.bits() % FAN_IN_MAX;
            let mut on: Vec<u64> = (0..fan_in)
                .map(|_| (layer - 1) * LAYER + random.bits() % LAYER)
                .collect();
            on.sort_unstable();
            on.dedup();
            on
        })
        .collect()
}

fn graph(edges: &[Vec<u64>], payload: usize) -> anyhow::Result<Vec<NewTask>> {
    let with_edges = |(index, on): (usize, &Vec<u64>)| {
        let mut new = task(HANDLER, index as u64, payload)?;
        new.depends_on = on.iter().map(|item| Dependency::Item(*item as usize)).collect();
        anyhow::Ok(new)
    };
    edges.iter().enumerate().map(with_edges).collect()
}

/// The same graph as a client sends it.
fn document(edges: &[Vec<u64>]) -> String {
    let name = |index: u64| format!("t{index}");
    let item = |(index, on): (usize, &Vec<u64>)| {
        let depends_on: Vec<String> = on.iter().copied().map(name).collect();
        json!({ "ref": name(index as u64), "handler": HANDLER, "parameters": { "i": index }, "depends_on": depends_on })
    };
    json!({ "tasks": edges.iter().enumerate().map(item).collect::<Vec<_>>() }).to_string()
}

pub(super) async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let count = bench.tasks.clamp(1, TASKS_MAX);
    let edges = edges(count);
    let links: usize = edges.iter().map(Vec::len).sum();
    let document = document(&edges);
    let (mut rates, mut checks) = (Vec::new(), Vec::new());
    let meter = bench.meter();
    for _ in 0..bench.runs {
        let start = tick();
        let batch: BatchInput = input::parse(document.as_bytes())?;
        let tasks = batch.resolve(Time::EPOCH)?;
        ensure!(find_cycle(&tasks).is_none(), "the graph has a cycle");
        checks.push(seconds_since(start) * 1e3);

        let tasks = graph(&edges, bench.payload)?;
        let world = World::new(bench.scratch.fresh().await?, bench.slots, bench.payload);
        world.engine.start();
        let start = tick();
        world.enqueue_together(tasks).await?;
        world.until_empty().await?;
        rates.push(count as f64 / seconds_since(start));
        let counts = world.store.counts("default", world.engine.now()).await?;
        ensure!(
            counts.total().completed == count,
            "{} of {count} tasks completed",
            counts.total().completed
        );
        world.close().await?;
    }
    let note = format!("layers of {LAYER}, {links} dependencies, {} slots", bench.slots);
    let figure = Figure::new(MODE, "enqueue a graph and run it to the end", "tasks/s", &rates, count)
        .durability(&bench.durability)
        .against(&bench.limits()?.life_cycle);
    bench.report.add(figure.machine(&meter).note(note.as_str()))?;
    let figure = Figure::new(MODE, "read, check and search for cycles", "ms", &checks, count);
    bench.report.add(figure.machine(&meter).note(note))
}
