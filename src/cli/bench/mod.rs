//! `pensum bench`: what this program does on this machine and disk, beside what raw SQLite does in the same run.
//!
//! One JSON object a line on standard output, progress and a table on standard error. docs/performance.md says how to
//! read them.

mod child;
mod claims;
mod dag;
mod http;
mod latency;
mod limit;
mod meter;
mod process;
mod report;
mod scratch;
mod throughput;
mod wire;
mod work;

use anyhow::Context as _;
use clap::ValueEnum;

use super::exit::{Exit, Failure};
use super::{Global, output};
use limit::Limits;
use report::Report;
use scratch::Scratch;

/// How many tasks run at once in a bench when it is not told.
const SLOTS: usize = 1024;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Where to make the database: a new file on the disk to measure. It is removed afterwards.
    #[arg(long, value_name = "URL", default_value = "sqlite:pensum-bench.db")]
    store: String,
    /// How many tasks; other sizes follow from it.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    tasks: u64,
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
    /// A part that the bench runs in a process of its own.
    #[arg(long, hide = true, value_enum)]
    child: Option<ChildPart>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Everything below.
    All,
    /// The disk and raw SQLite.
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
}

impl Mode {
    const EACH: [Mode; 11] = [
        Mode::Enqueue,
        Mode::Drain,
        Mode::EndToEnd,
        Mode::Latency,
        Mode::Dependencies,
        Mode::Pending,
        Mode::Finished,
        Mode::Recovery,
        Mode::Start,
        Mode::Memory,
        Mode::Http,
    ];
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ChildPart {
    /// Claims every task and waits to be killed.
    Hold,
}

/// What the measurements share.
struct Bench {
    scratch: Scratch,
    tasks: u64,
    runs: u64,
    payload: usize,
    slots: usize,
    /// What an acknowledgement of the measured store means.
    durability: String,
    limits: Option<Limits>,
    report: Report,
}

impl Bench {
    fn limits(&self) -> anyhow::Result<&Limits> {
        self.limits.as_ref().context("the raw limits were not measured")
    }
}

pub(super) async fn bench(global: &Global, args: Args) -> anyhow::Result<Exit> {
    if let Some(ChildPart::Hold) = args.child {
        process::hold(&args.store, args.tasks).await?;
        return Ok(Exit::Ok);
    }
    let bench = Bench {
        scratch: Scratch::at(&args.store)?,
        tasks: args.tasks,
        runs: args.runs,
        payload: args.payload as usize,
        slots: args.slots as usize,
        durability: String::new(),
        limits: None,
        report: Report::default(),
    };
    tokio::select! {
        measured = measure(bench, &args.mode) => {
            let report = measured?;
            if global.output.is_for_people() {
                output::warn(&report.table());
            }
            Ok(Exit::Ok)
        }
        // Whatever was made is removed as the measurement is dropped.
        _ = tokio::signal::ctrl_c() => Err(Failure::silent(Exit::Interrupted).into()),
    }
}

async fn measure(mut bench: Bench, modes: &[Mode]) -> anyhow::Result<Report> {
    bench.durability = {
        let store = bench.scratch.fresh().await?;
        let durability = work::durability_of(&store).await;
        store.close().await.map_err(Failure::from)?;
        durability?
    };
    progress(Mode::Limit);
    let limits = limit::run(&mut bench)?;
    bench.limits = Some(limits);
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
            Mode::Dependencies => dag::run(&mut bench).await?,
            Mode::Recovery => process::recovery(&mut bench).await?,
            Mode::Start => process::start(&mut bench).await?,
            Mode::Memory => process::memory(&mut bench).await?,
            Mode::Http => http::run(&mut bench).await?,
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
