//! `cargo run --release -p pensum-sim -- --seed 7`: one world as a story; `--seeds 1000`: many, judged.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use pensum_sim::mutants::{Catch, Greenhouse, mutants, repository};
use pensum_sim::{Batch, Scenario, Size, StoreKind, check, live, shrink, story};

/// Lives through simulated worlds that try to break Pensum.
#[derive(Parser)]
struct Options {
    /// Tell the story of one seed.
    #[arg(long, conflicts_with_all = ["seeds", "replay"])]
    seed: Option<u64>,
    /// Tell the story of a plan in a file, such as one of `regressions/`.
    #[arg(long, value_name = "FILE", conflicts_with = "seeds")]
    replay: Option<PathBuf>,
    /// Live through this many seeds.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first of them; by default one that was never tried, from the clock.
    #[arg(long)]
    from: Option<u64>,
    /// What keeps the tasks.
    #[arg(long, default_value = "model")]
    store: StoreKind,
    /// How large the worlds are.
    #[arg(long, default_value = "small")]
    size: Size,
    /// How many threads live through worlds; by default one for each core.
    #[arg(long)]
    jobs: Option<usize>,
    /// Cut a failing plan down, and tell the story of what is left.
    #[arg(long)]
    shrink: bool,
    /// Keep the plan whose story is told in this file, as a regression.
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
    /// Leave nothing out of the story.
    #[arg(long)]
    everything: bool,
    /// Go on after the first seed that fails.
    #[arg(long)]
    go_on: bool,
    /// Plant the bugs of the list one after the other, and see each of them caught; with a name, only that one.
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "")]
    mutants: Option<String>,
    /// What the engine says while it lives, such as `debug`.
    #[arg(long, default_value = "off", value_name = "LEVEL")]
    log: String,
}

#[expect(clippy::print_stdout, reason = "a program that tells stories")]
fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(&options.log))
        .without_time()
        .init();
    if let Some(name) = &options.mutants {
        return plant(name);
    }
    if let Some(seed) = options.seed {
        return tell(&options, Scenario::of(seed, options.store, options.size));
    }
    if let Some(file) = &options.replay {
        let text = std::fs::read_to_string(file)?;
        return tell(&options, serde_json::from_str(&text)?);
    }
    let batch = Batch {
        from: options.from.unwrap_or_else(from_the_clock),
        seeds: options.seeds,
        store: options.store,
        size: options.size,
        jobs: options
            .jobs
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        stop_early: !options.go_on,
    };
    eprintln!(
        "seeds {} to {} over {:?}",
        batch.from,
        batch.from + batch.seeds - 1,
        batch.store
    );
    let began = tokio::time::Instant::now();
    let shown = AtomicU64::new(0);
    let tally = batch.run(|done| {
        let step = (batch.seeds / 20).max(1);
        if done / step > shown.fetch_max(done / step, Ordering::Relaxed) {
            eprintln!("{done} of {} worlds", batch.seeds);
        }
    })?;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{} worlds in {seconds:.1} s: {:.0} a second, {:.0} a second and core; they lived for {:.1} days",
        tally.worlds,
        tally.worlds as f64 / seconds,
        tally.worlds as f64 / seconds / batch.jobs as f64,
        tally.lived.as_secs_f64() / 86_400.0
    );
    println!(
        "{} tasks, {} runs, {} calls went wrong ({} lost their answers), {} leases expired, {} late writes refused, \
         {} nodes died, {} stood still, {} submissions were refused, {} tasks dropped, {} ended with their process, \
         {} worlds were the same twice",
        tally.tasks,
        tally.runs,
        tally.faults,
        tally.lost_replies,
        tally.leases_expired,
        tally.leases_lost,
        tally.deaths,
        tally.freezes,
        tally.refused,
        tally.dropped,
        tally.abandoned,
        tally.repeated
    );
    for verdict in &tally.failures {
        println!("seed {}:", verdict.seed);
        for violation in &verdict.violations {
            println!("  {}: {}", violation.promise, violation.what);
        }
    }
    if let Some(first) = tally.failures.first() {
        println!(
            "tell its story with --seed {} --store {}{}",
            first.seed,
            name(options.store),
            match options.size {
                Size::Small => "",
                Size::Large => " --size large",
            }
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn name(store: StoreKind) -> &'static str {
    match store {
        StoreKind::Model => "model",
        StoreKind::Sqlite => "sqlite",
    }
}

#[expect(clippy::disallowed_methods, reason = "seeds that nobody has tried before")]
fn from_the_clock() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

#[expect(clippy::print_stdout, reason = "a program that tells stories")]
fn tell(options: &Options, scenario: Scenario) -> anyhow::Result<ExitCode> {
    let mut scenario = scenario;
    if options.shrink {
        let (smallest, tries) = shrink(&scenario)?;
        eprintln!("the smallest of {tries} plans that were tried");
        scenario = smallest;
    }
    let outcome = live(&scenario)?;
    let violations = check(&scenario, &outcome);
    println!("{}", story(&scenario, &outcome, &violations, options.everything));
    if let Some(file) = &options.keep {
        std::fs::write(file, serde_json::to_string_pretty(&scenario)? + "\n")?;
        eprintln!("the plan is in {}", file.display());
    }
    Ok(if violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Plants the bugs whose names begin with `name`.
#[expect(clippy::print_stdout, reason = "a program that tells stories")]
fn plant(name: &str) -> anyhow::Result<ExitCode> {
    let greenhouse = Greenhouse::new(&repository())?;
    let mutants: Vec<_> = mutants().filter(|mutant| mutant.name.starts_with(name)).collect();
    anyhow::ensure!(!mutants.is_empty(), "no bug on the list is called {name}");
    let mut missed = 0;
    for mutant in &mutants {
        match greenhouse.grow(mutant)? {
            Catch::Caught(news) => println!("caught  {:<32} {}", mutant.name, news.join(" ")),
            Catch::Missed => {
                missed += 1;
                println!(
                    "MISSED  {:<32} {}, in {} seeds",
                    mutant.name, mutant.wrong, mutant.seeds
                );
            }
        }
    }
    println!("{} of {} bugs were caught", mutants.len() - missed, mutants.len());
    Ok(match missed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
