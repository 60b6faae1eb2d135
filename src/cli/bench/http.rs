//! The HTTP API of a node in a process of its own, from clients of this process on the same machine: what the clients
//! use of the processor is missing to the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use tokio::task::JoinSet;

use super::Bench;
use super::child::Server;
use super::meter::{seconds_since, tick};
use super::report::{Figure, Spread};
use super::wire::Wire;
use super::work::{BULK, IN_FLIGHT, PARKED, payload};

const MODE: &str = "http";
/// Connections that post batches.
const BATCH_CONNECTIONS: usize = 2;
/// Reads of one run, at most.
const READS_MAX: u64 = 2_000;
/// Lists that are asked for in turns.
const LISTS: [&str; 5] = [
    "/api/v1/tasks?status=ready&limit=50",
    "/api/v1/tasks?status=ready&queue=default&handler=parked&priority=normal&limit=50",
    "/api/v1/tasks?status=running&limit=50",
    "/api/v1/tasks?status=failed&status=retrying&limit=50",
    "/api/v1/tasks?limit=200",
];

/// What the runs found.
#[derive(Default)]
struct Runs {
    single: Vec<f64>,
    single_p50: Vec<f64>,
    single_p99: Vec<f64>,
    batch: Vec<f64>,
    get_p50: Vec<f64>,
    get_p99: Vec<f64>,
    list_p50: Vec<f64>,
    list_p99: Vec<f64>,
}

pub(super) async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let mut runs = Runs::default();
    let (singles, reads) = (bench.tasks.min(100_000), bench.tasks.min(READS_MAX));
    let meter = bench.meter();
    for _ in 0..bench.runs {
        bench.scratch.clear().await?;
        let server = Server::start(&bench.scratch, bench.slots).await?;
        one_run(bench, &server, singles, reads, &mut runs).await?;
        server.stop().await?;
    }
    let insert = bench.limits()?.insert.clone();
    let total = singles + bench.tasks;
    let durability = bench.durability.clone();
    let rate = |metric: &str, values: &[f64], n| {
        Figure::new(MODE, metric, "tasks/s", values, n)
            .durability(&durability)
            .against(&insert)
    };
    let time = |metric: String, values: &[f64], n| Figure::new(MODE, metric, "ms", values, n);
    let figures = [
        rate("single POST, 50 in flight", &runs.single, singles)
            .note("50 connections; the task is on disk with the answer"),
        time("single POST, 50 in flight, p50".to_owned(), &runs.single_p50, singles).durability(&durability),
        time("single POST, 50 in flight, p99".to_owned(), &runs.single_p99, singles).durability(&durability),
        rate("batch POST of 1,000", &runs.batch, bench.tasks).note("2 connections"),
        time(format!("GET one of {total}, p50"), &runs.get_p50, reads).note("1 connection, tasks of all ages"),
        time(format!("GET one of {total}, p99"), &runs.get_p99, reads).note("1 connection, tasks of all ages"),
        time(format!("list at {total} tasks, p50"), &runs.list_p50, reads).note("1 connection, five filters in turns"),
        time(format!("list at {total} tasks, p99"), &runs.list_p99, reads).note("1 connection, five filters in turns"),
    ];
    for figure in figures {
        bench.report.add(figure.machine(&meter))?;
    }
    Ok(())
}

async fn one_run(bench: &Bench, server: &Server, singles: u64, reads: u64, runs: &mut Runs) -> anyhow::Result<()> {
    let address = server.address.as_str();
    let start = tick();
    let spread = post_singles(address, singles, bench.payload).await?;
    runs.single.push(singles as f64 / seconds_since(start));
    runs.single_p50.push(spread.ms(0.5));
    runs.single_p99.push(spread.ms(0.99));

    let start = tick();
    let ids = post_batches(address, bench.tasks, bench.payload).await?;
    runs.batch.push(bench.tasks as f64 / seconds_since(start));

    let mut wire = Wire::connect(address).await?;
    check_count(&mut wire, address, singles + bench.tasks).await?;
    let mut spread = Spread::new()?;
    for number in 0..reads {
        // A step that shares no factor with most lengths visits tasks of all ages.
        let id = &ids[(number * 7_919 % ids.len() as u64) as usize];
        let request = Wire::get(address, &format!("/api/v1/tasks/{id}"));
        let start = tick();
        wire.expect(&request, 200).await?;
        spread.add(start.elapsed());
    }
    runs.get_p50.push(spread.ms(0.5));
    runs.get_p99.push(spread.ms(0.99));

    let requests = LISTS.map(|target| Wire::get(address, target));
    let mut spread = Spread::new()?;
    for number in 0..reads.min(1_000) {
        let start = tick();
        wire.expect(&requests[number as usize % LISTS.len()], 200).await?;
        spread.add(start.elapsed());
    }
    runs.list_p50.push(spread.ms(0.5));
    runs.list_p99.push(spread.ms(0.99));
    Ok(())
}

/// The node must have every task that it acknowledged.
async fn check_count(wire: &mut Wire, address: &str, count: u64) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Stats {
        ready_tasks: u64,
    }
    wire.expect(&Wire::get(address, "/api/v1/queues/stats"), 200).await?;
    let Stats { ready_tasks } = serde_json::from_slice(wire.body()).context("the counts of a node")?;
    ensure!(ready_tasks == count, "the node has {ready_tasks} of {count} tasks");
    Ok(())
}

/// Creates tasks one a request, [`IN_FLIGHT`] at once; how long each request took.
async fn post_singles(address: &str, count: u64, bytes: usize) -> anyhow::Result<Spread> {
    let next = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (address, next) = (address.to_owned(), Arc::clone(&next));
        clients.spawn(async move {
            let mut wire = Wire::connect(&address).await?;
            let mut spread = Spread::new()?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(spread);
                }
                let request = Wire::post(&address, "/api/v1/tasks", &item(number, bytes));
                let start = tick();
                wire.expect(&request, 201).await?;
                spread.add(start.elapsed());
            }
        });
    }
    let mut all = Spread::new()?;
    while let Some(done) = clients.join_next().await {
        all.merge(&done??)?;
    }
    Ok(all)
}

fn item(number: u64, bytes: usize) -> String {
    format!("{{\"handler\":\"{PARKED}\",\"parameters\":{}}}", payload(number, bytes))
}

/// Creates tasks in batches of [`BULK`], [`BATCH_CONNECTIONS`] at once; the first id of each batch and some others.
async fn post_batches(address: &str, count: u64, bytes: usize) -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Created {
        ids: Vec<String>,
    }
    const KEPT: usize = 10;
    let next = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..BATCH_CONNECTIONS {
        let (address, next) = (address.to_owned(), Arc::clone(&next));
        clients.spawn(async move {
            let mut wire = Wire::connect(&address).await?;
            let mut ids = Vec::new();
            loop {
                let from = next.fetch_add(BULK, Ordering::Relaxed);
                if from >= count {
                    return anyhow::Ok(ids);
                }
                let items: Vec<String> = (from..(from + BULK).min(count))
                    .map(|number| item(number, bytes))
                    .collect();
                let body = format!("{{\"tasks\":[{}]}}", items.join(","));
                wire.expect(&Wire::post(&address, "/api/v1/tasks/batch", &body), 201)
                    .await?;
                let created: Created = serde_json::from_slice(wire.body()).context("the answer to a batch")?;
                let step = created.ids.len().div_ceil(KEPT).max(1);
                ids.extend(created.ids.into_iter().step_by(step));
            }
        });
    }
    let mut ids = Vec::new();
    while let Some(done) = clients.join_next().await {
        ids.extend(done??);
    }
    Ok(ids)
}
