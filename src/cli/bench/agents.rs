//! Remote agents against a node in a process of its own, from connections of this process on the same machine: what they use
//! of the processor is missing to the node.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinSet;

use super::Bench;
use super::child::Server;
use super::meter::{seconds_since, tick};
use super::process::Resident;
use super::report::{Figure, Spread};
use super::wire::Wire;
use super::work::{BULK, payload};

const MODE: &str = "agents";
/// The handler that only agents have.
const HANDLER: &str = "remote";
/// Agents, each with a connection of its own, and how many tasks a poll asks for.
const CONNECTIONS: [usize; 3] = [1, 8, 64];
const BATCHES: [usize; 3] = [1, 10, 100];
/// Tasks of one measurement of throughput: the fewest and the most.
const TASKS: (u64, u64) = (2_000, 50_000);
/// Agents that wait while the latency is measured, and how many starts are timed.
const WAITING: usize = 8;
const STARTS_MAX: u64 = 1_000;
/// Agents that do nothing but wait, and for how long they are watched.
const IDLE: usize = 1_000;
const IDLE_FOR: Duration = Duration::from_secs(12);
/// Clock ticks a second that `/proc` counts in.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a poll answers, as far as a bench reads it.
#[derive(Deserialize)]
struct Polled {
    tasks: Vec<Given>,
}

#[derive(Deserialize)]
struct Given {
    execution_id: String,
    lease_token: String,
}

pub(super) async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    throughput(bench).await?;
    latency(bench).await?;
    idle(bench).await
}

async fn throughput(bench: &mut Bench) -> anyhow::Result<()> {
    for connections in CONNECTIONS {
        for batch in BATCHES {
            let wanted = (connections * batch) as u64 * 250;
            let count = bench.tasks.min(wanted.clamp(TASKS.0, TASKS.1));
            let mut runs = Vec::new();
            let meter = bench.meter();
            for _ in 0..bench.runs {
                bench.scratch.clear().await?;
                let server = Server::start(&bench.scratch, bench.slots).await?;
                runs.push(drain(bench, &server, connections, batch, count).await?);
                server.stop().await?;
            }
            let metric = format!("no-op tasks, batch {batch}, {connections} connections");
            let insert = bench.limits()?.insert.clone();
            let figure = Figure::new(MODE, metric, "tasks/s", &runs, count)
                .durability(&bench.durability)
                .against(&insert)
                .note("lease and result are on disk before the agent hears of them");
            bench.report.add(figure.machine(&meter))?;
        }
    }
    Ok(())
}

/// Tasks that are there already, run by agents: tasks a second.
async fn drain(bench: &Bench, server: &Server, connections: usize, batch: usize, count: u64) -> anyhow::Result<f64> {
    let address = server.address.as_str();
    let mut wire = Wire::connect(address).await?;
    post_tasks(&mut wire, address, count, bench.payload).await?;
    let mut agents = Vec::with_capacity(connections);
    for number in 0..connections {
        agents.push(Agent::register(address, &format!("agent-{number}"), batch).await?);
    }
    let done = Arc::new(AtomicU64::new(0));
    let start = tick();
    let mut running = JoinSet::new();
    for mut agent in agents {
        let done = Arc::clone(&done);
        running.spawn(async move {
            while done.load(Ordering::Relaxed) < count {
                let given = agent.poll(batch, 100).await?;
                // The results of the poll before were taken with this one.
                done.fetch_add(agent.taken, Ordering::Relaxed);
                agent.finish(&given);
            }
            anyhow::Ok(())
        });
    }
    while let Some(agent) = running.join_next().await {
        agent??;
    }
    let rate = count as f64 / seconds_since(start);
    // The node may have closed the first connection, which was idle meanwhile.
    check_completed(&mut Wire::connect(address).await?, address, count).await?;
    Ok(rate)
}

/// The node must have completed every task.
async fn check_completed(wire: &mut Wire, address: &str, count: u64) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Stats {
        completed_tasks: u64,
    }
    wire.expect(&Wire::get(address, "/api/v1/queues/stats"), 200).await?;
    let Stats { completed_tasks } = serde_json::from_slice(wire.body()).context("the counts of a node")?;
    ensure!(completed_tasks == count, "{completed_tasks} of {count} tasks completed");
    Ok(())
}

/// From the submission of a task until one of some waiting agents has it.
async fn latency(bench: &mut Bench) -> anyhow::Result<()> {
    let count = bench.tasks.min(STARTS_MAX);
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    let meter = bench.meter();
    for _ in 0..bench.runs {
        bench.scratch.clear().await?;
        let server = Server::start(&bench.scratch, bench.slots).await?;
        let address = server.address.as_str();
        let (sender, mut starts) = tokio::sync::mpsc::unbounded_channel();
        let mut waiting = JoinSet::new();
        for number in 0..WAITING {
            let mut agent = Agent::register(address, &format!("agent-{number}"), 1).await?;
            let sender = sender.clone();
            waiting.spawn(async move {
                loop {
                    let given = agent.poll(1, 20_000).await?;
                    if !given.is_empty() && sender.send(tick()).is_err() {
                        return anyhow::Ok(());
                    }
                    agent.finish(&given);
                }
            });
        }
        let mut wire = Wire::connect(address).await?;
        let mut spread = Spread::new()?;
        for number in 0..count {
            // The agent that had the last one is back by then.
            tokio::time::sleep(Duration::from_millis(3)).await;
            let request = Wire::post(address, "/api/v1/tasks", &item(number, bench.payload));
            let submitted = tick();
            wire.expect(&request, 201).await?;
            let started = starts.recv().await.context("no agent waits any more")?;
            spread.add(started.saturating_duration_since(submitted));
        }
        p50.push(spread.ms(0.5));
        p99.push(spread.ms(0.99));
        waiting.abort_all();
        server.stop().await?;
    }
    let note = format!("{WAITING} agents wait; from the POST until the answer to a poll");
    for (metric, runs) in [
        ("submission to start, idle, p50", p50),
        ("submission to start, idle, p99", p99),
    ] {
        let figure = Figure::new(MODE, metric, "ms", &runs, count).durability(&bench.durability);
        bench.report.add(figure.machine(&meter).note(&*note))?;
    }
    Ok(())
}

/// What it costs the node that many agents wait for work.
async fn idle(bench: &mut Bench) -> anyhow::Result<()> {
    let (mut cores, mut memory) = (Vec::new(), Vec::new());
    let meter = bench.meter();
    for _ in 0..bench.runs {
        bench.scratch.clear().await?;
        let server = Server::start(&bench.scratch, bench.slots).await?;
        let (address, pid) = (server.address.as_str(), server.pid()?);
        let before = Resident::of(pid)?.rss;
        let mut waiting = JoinSet::new();
        for number in 0..IDLE {
            let mut agent = Agent::register(address, &format!("agent-{number}"), 1).await?;
            waiting.spawn(async move {
                loop {
                    agent.poll(1, 20_000).await?;
                }
                #[expect(unreachable_code, reason = "names the type of the error")]
                anyhow::Ok(())
            });
        }
        // The first polls, and what their connections cost once, are not what is measured.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (start, ticks) = (tick(), ticks_of(pid)?);
        tokio::time::sleep(IDLE_FOR).await;
        let used = (ticks_of(pid)? - ticks) as f64 / TICKS_PER_SECOND;
        cores.push((used / seconds_since(start) * 100.0).max(0.01));
        memory.push((Resident::of(pid)?.rss - before).max(0.01));
        waiting.abort_all();
        server.stop().await?;
    }
    let note = format!(
        "{IDLE} agents, each with a connection and a poll of 20 s; watched for {} s",
        IDLE_FOR.as_secs()
    );
    let figures = [
        ("node, idle agents parked", "% of a core", cores),
        ("node, more memory for them", "MB", memory),
    ];
    for (metric, unit, runs) in figures {
        let figure = Figure::new(MODE, metric, unit, &runs, IDLE as u64);
        bench.report.add(figure.machine(&meter).note(&*note))?;
    }
    Ok(())
}

/// Processor time of a process, in clock ticks: fields 14 and 15 of `/proc/PID/stat` (proc(5)).
fn ticks_of(pid: u32) -> anyhow::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit_once(')').context("a process without a name")?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    // The first field after the name is the third.
    let used = field(11).zip(field(12)).map(|(user, system)| user + system);
    used.context("no processor time")
}

/// An agent with a connection.
struct Agent {
    wire: Wire,
    address: String,
    target: String,
    /// The results that the next poll carries, as JSON.
    results: String,
    riding: u64,
    /// How many results the last poll carried.
    taken: u64,
}

impl Agent {
    async fn register(address: &str, id: &str, slots: usize) -> anyhow::Result<Agent> {
        let mut wire = Wire::connect(address).await?;
        let body = json!({ "id": id, "capabilities": [HANDLER], "max_concurrent_tasks": slots }).to_string();
        wire.expect(&Wire::post(address, "/api/v1/agents", &body), 201).await?;
        Ok(Agent {
            wire,
            address: address.to_owned(),
            target: format!("/api/v1/agents/{id}/poll"),
            results: String::new(),
            riding: 0,
            taken: 0,
        })
    }

    async fn poll(&mut self, max: usize, wait_ms: u64) -> anyhow::Result<Vec<Given>> {
        let body = format!(
            "{{\"session\":\"s\",\"max\":{max},\"wait_ms\":{wait_ms},\"results\":[{}]}}",
            self.results
        );
        self.wire
            .expect(&Wire::post(&self.address, &self.target, &body), 200)
            .await?;
        self.taken = std::mem::take(&mut self.riding);
        self.results.clear();
        let polled: Polled = serde_json::from_slice(self.wire.body()).context("the answer to a poll")?;
        Ok(polled.tasks)
    }

    /// Does nothing, and says so with the next poll.
    fn finish(&mut self, given: &[Given]) {
        for Given {
            execution_id,
            lease_token,
        } in given
        {
            if self.riding > 0 {
                self.results.push(',');
            }
            self.results.push_str(&format!(
                "{{\"execution_id\":\"{execution_id}\",\"lease_token\":\"{lease_token}\",\"outcome\":{{\"done\":null}}}}"
            ));
            self.riding += 1;
        }
    }
}

fn item(number: u64, bytes: usize) -> String {
    format!(
        "{{\"handler\":\"{HANDLER}\",\"parameters\":{}}}",
        payload(number, bytes)
    )
}

async fn post_tasks(wire: &mut Wire, address: &str, count: u64, bytes: usize) -> anyhow::Result<()> {
    for from in (0..count).step_by(BULK as usize) {
        let items: Vec<String> = (from..(from + BULK).min(count))
            .map(|number| item(number, bytes))
            .collect();
        let body = format!("{{\"tasks\":[{}]}}", items.join(","));
        wire.expect(&Wire::post(address, "/api/v1/tasks/batch", &body), 201)
            .await?;
    }
    Ok(())
}
