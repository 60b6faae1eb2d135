//! `pensum bench`: what this program does on this machine, disk or database server, beside what raw SQL does in the same
//! run.
//!
//! One JSON object a line on standard output, progress and a table on standard error. docs/performance.md says how to
//! read them.

mod agents;
mod child;
mod claims;
mod dag;
mod database;
mod http;
mod latency;
mod limit;
mod meter;
mod nodes;
mod process;
mod report;
mod scratch;
mod throughput;
mod wire;
mod work;

use std::sync::Arc;

use anyhow::Context as _;
use clap::ValueEnum;

use super::exit::{Exit, Failure};
use super::signals::Signals;
use super::{Global, output};
use database::{Database, Schema};
use limit::Limits;
use meter::Meter;
use report::Report;
use scratch::{Scratch, ScratchFile};

/// How many tasks run at once in a bench when it is not told.
const SLOTS: usize = 1024;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Where to measure: `sqlite:FILE` for a new file on a disk, `postgres://USER@HOST/DATABASE` for a server, where the
    /// bench makes a database of its own. Either is removed afterwards.
    #[arg(long, value_name = "URL", default_value = "sqlite:pensum-bench.db")]
    store: String,
    /// How many tasks; other sizes follow from it.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    tasks: u64,
    /// What to measure, like --mode.
    #[arg(value_enum, value_name = "MODE", conflicts_with = "mode")]
    modes: Vec<Mode>,
    /// What to measure; may be repeated. The raw limits are always measured, to compare with.
    #[arg(long, value_enum, value_name = "MODE", default_values_t = [Mode::Limit, Mode::Enqueue, Mode::Drain, Mode::EndToEnd, Mode::Latency])]
    mode: Vec<Mode>,
    /// How often; the figure is the median.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    runs: u64,
    /// The size of a task's parameters, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 200, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    payload: u64,
    /// How many tasks run at once.
    #[arg(long, value_name = "N", default_value_t = SLOTS as u64, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    slots: u64,
    /// How many nodes, in processes of their own, run the tasks of `drain` and `end-to-end`; one runs them in this
    /// process. More than one needs PostgreSQL.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    nodes: u64,
    /// A part that the bench runs in a process of its own.
    #[arg(long, hide = true, value_enum)]
    child: Option<ChildPart>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Everything below.
    All,
    /// The raw store: SQLite and the disk, or PostgreSQL.
    Limit,
    /// Tasks in: single and bulk.
    Enqueue,
    /// Tasks out: run what is there already.
    Drain,
    /// In and out at the same time: single and bulk.
    EndToEnd,
    /// Enqueue to start on an idle node.
    Latency,
    /// The cost of a claim with many pending tasks.
    Pending,
    /// The cost of a claim with five times as many finished tasks.
    Finished,
    /// The cost of a claim beside many ready tasks that nobody may claim: of one busy key, of another queue, of a
    /// paused one, of a full one.
    Gated,
    /// A graph of tasks that wait for each other.
    Dependencies,
    /// Tasks of a killed process: how soon they can be claimed again.
    Recovery,
    /// From the start of `pensum serve` until it takes work.
    Start,
    /// Memory of `pensum serve`.
    Memory,
    /// The HTTP API.
    Http,
    /// Remote agents: tasks a second, the latency of a start, and what idle ones cost.
    Agents,
}

impl Mode {
    const EACH: [Mode; 13] = [
        Mode::Enqueue,
        Mode::Drain,
        Mode::EndToEnd,
        Mode::Latency,
        Mode::Dependencies,
        Mode::Pending,
        Mode::Finished,
        Mode::Gated,
        Mode::Recovery,
        Mode::Start,
        Mode::Memory,
        Mode::Http,
        Mode::Agents,
    ];
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ChildPart {
    /// Claims every task and waits to be killed.
    Hold,
    /// Runs tasks.
    Node,
    /// Runs tasks and says when each starts.
    Herald,
}

/// What the measurements share.
struct Bench {
    scratch: Scratch,
    tasks: u64,
    runs: u64,
    payload: usize,
    slots: usize,
    nodes: u64,
    /// The server's first process, where the store is on a server of this machine.
    postmaster: Option<u32>,
    /// What an acknowledgement of the measured store means.
    durability: String,
    limits: Option<Limits>,
    report: Report,
}

impl Bench {
    fn limits(&self) -> anyhow::Result<&Limits> {
        self.limits.as_ref().context("the raw limits were not measured")
    }

    /// Starts watching what the rest of the machine does.
    fn meter(&self) -> Meter {
        Meter::start(self.postmaster)
    }
}

pub(super) async fn bench(global: &Global, args: Args) -> anyhow::Result<Exit> {
    match args.child {
        Some(ChildPart::Hold) => process::hold(&args.store, args.tasks).await?,
        Some(ChildPart::Node) => nodes::serve(&args.store, args.slots as usize, false).await?,
        Some(ChildPart::Herald) => nodes::serve(&args.store, args.slots as usize, true).await?,
        None => return whole(global, &args).await,
    }
    Ok(Exit::Ok)
}

async fn whole(global: &Global, args: &Args) -> anyhow::Result<Exit> {
    // From here on a signal ends the measurement but not what removes its traces.
    let mut signals = Signals::new()?;
    if !pensum_store::is_postgres(&args.store) {
        if args.nodes > 1 {
            let message = format!(
                "--nodes {}: one process owns a SQLite file, so several nodes need --store postgres://USER@HOST/DATABASE",
                args.nodes
            );
            return Err(Failure::usage(message).into());
        }
        let bench = args.bench(Scratch::File(ScratchFile::at(&args.store)?), None);
        return finish(global, bench, args, &mut signals).await;
    }
    let database = Arc::new(Database::create(&args.store).await?);
    let bench = args.bench(Scratch::Schema(Schema::of(&database)), Some(&database));
    let done = finish(global, bench, args, &mut signals).await;
    let removed = database.remove().await;
    // Of two failures the first is the one that the bench was about.
    let exit = done?;
    removed?;
    Ok(exit)
}

impl Args {
    /// What to measure.
    fn modes(&self) -> &[Mode] {
        if self.modes.is_empty() { &self.mode } else { &self.modes }
    }

    fn bench(&self, scratch: Scratch, database: Option<&Arc<Database>>) -> Bench {
        Bench {
            scratch,
            tasks: self.tasks,
            runs: self.runs,
            payload: self.payload as usize,
            slots: self.slots as usize,
            nodes: self.nodes,
            postmaster: database.and_then(|database| database.postmaster()),
            durability: String::new(),
            limits: None,
            report: Report::of(database.map(|database| database.settings().to_owned())),
        }
    }
}

/// Measures, unless a signal comes first. Files that were made are removed as the measurement is dropped.
async fn finish(global: &Global, bench: Bench, args: &Args, signals: &mut Signals) -> anyhow::Result<Exit> {
    tokio::select! {
        measured = measure(bench, args.modes()) => {
            let report = measured?;
            if global.output.is_for_people() {
                output::warn(&report.table());
            }
            Ok(Exit::Ok)
        }
        exit = signals.next() => Err(Failure::silent(exit).into()),
    }
}

async fn measure(mut bench: Bench, modes: &[Mode]) -> anyhow::Result<Report> {
    progress(Mode::Limit);
    let limits = limit::run(&mut bench).await?;
    bench.limits = Some(limits);
    if modes.iter().any(|mode| *mode != Mode::Limit) {
        let store = bench.scratch.fresh().await?;
        let durability = work::durability_of(&store).await;
        store.close().await.map_err(Failure::from)?;
        bench.durability = durability?;
    }
    for mode in Mode::EACH {
        if !modes.contains(&mode) && !modes.contains(&Mode::All) {
            continue;
        }
        progress(mode);
        match mode {
            Mode::All | Mode::Limit => {}
            Mode::Enqueue => throughput::enqueue(&mut bench).await?,
            Mode::Drain => throughput::drain(&mut bench).await?,
            Mode::EndToEnd => throughput::end_to_end(&mut bench).await?,
            Mode::Latency => latency::run(&mut bench).await?,
            Mode::Pending => claims::pending(&mut bench).await?,
            Mode::Finished => claims::finished(&mut bench).await?,
            Mode::Gated => claims::gated(&mut bench).await?,
            Mode::Dependencies => dag::run(&mut bench).await?,
            Mode::Recovery => process::recovery(&mut bench).await?,
            Mode::Start => process::start(&mut bench).await?,
            Mode::Memory => process::memory(&mut bench).await?,
            Mode::Http => http::run(&mut bench).await?,
            Mode::Agents => agents::run(&mut bench).await?,
        }
    }
    Ok(bench.report)
}

fn progress(mode: Mode) {
    let name = mode
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default();
    output::warn(&format!("measuring {name}"));
}
