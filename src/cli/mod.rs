//! The command line.

mod agent;
mod bench;
mod bound;
mod breaker;
mod client;
mod config;
mod copy;
mod db;
mod dlq;
mod exit;
mod intake;
mod machine;
mod named;
mod node;
pub(crate) mod output;
mod queue;
mod run;
mod serve;
mod signals;
mod status;
mod task;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use pensum_core::Time;
use pensum_core::seam::Clock;
use pensum_core::time::Span;
use tracing_subscriber::EnvFilter;

use exit::{Exit, Failure};
use output::Format;

/// Where a node listens when nobody says otherwise.
const URL_DEFAULT: &str = "http://127.0.0.1:7400";

/// Durable background jobs, queues and plans in one program.
#[derive(Debug, Parser)]
#[command(name = "pensum", version, about, max_term_width = 120, propagate_version = true)]
#[command(
    after_help = "Exit codes: 0 ok, 1 the run failed, 2 usage, 3 not found, 4 not allowed, 5 unreachable, \
                        6 conflict, 124 timeout."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// How results are written to standard output; logs go to standard error.
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value = "table",
        hide_possible_values = true,
        value_name = "table|wide|json|jsonl|yaml|name",
        help_heading = "Global options"
    )]
    pub(crate) output: Format,
    /// Show again and again until interrupted, or until the task has ended.
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) watch: bool,
    /// Wait until the tasks have ended; exit 1 when one failed or was cancelled.
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) wait: bool,
    /// Longest wait, as seconds or words (90, "1h 30m"); exit 124 when it is over.
    #[arg(long, global = true, value_name = "DURATION", value_parser = Span::parse, help_heading = "Global options")]
    pub(crate) timeout: Option<Span>,
    /// Do not ask before something is removed.
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) yes: bool,
    /// The node to talk to; PENSUM_URL, or http://127.0.0.1:7400, when absent.
    #[arg(long, global = true, value_name = "URL", help_heading = "Global options")]
    url: Option<String>,
    /// The token to show to the node; PENSUM_TOKEN when absent.
    #[arg(long, global = true, help_heading = "Global options")]
    token: Option<String>,
    /// Work on a store directly, such as sqlite:pensum.db.
    #[arg(long, global = true, value_name = "URL", help_heading = "Global options")]
    pub(crate) db: Option<String>,
}

impl Global {
    /// The store of commands that open one: the flag, else `PENSUM_DB`, else nothing.
    pub(crate) fn store(&self) -> Option<String> {
        self.db.clone().or_else(|| environment("PENSUM_DB"))
    }

    /// The node to talk to.
    pub(crate) fn url(&self) -> String {
        self.url
            .clone()
            .or_else(|| environment("PENSUM_URL"))
            .unwrap_or_else(|| URL_DEFAULT.to_owned())
    }

    /// The token to show to the node.
    pub(crate) fn token(&self) -> Option<String> {
        self.token.clone().or_else(|| environment("PENSUM_TOKEN"))
    }
}

/// A variable of the environment that is set to something. Read here and not by clap, which would repeat it in every
/// usage message.
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node: the engine and the HTTP API.
    Serve(serve::Args),
    /// Run a plan file here to its end, with live progress.
    Run(run::Args),
    /// Create, read and steer tasks.
    #[command(subcommand, visible_alias = "tasks")]
    Task(task::Command),
    /// Show how the node is doing.
    Status,
    /// Show which nodes work on the store.
    #[command(subcommand, visible_alias = "nodes")]
    Node(node::Command),
    /// Show, set up, pause and resume queues.
    #[command(subcommand, visible_alias = "queues")]
    Queue(queue::Command),
    /// Show, drain and remove agents, and run a program as one.
    #[command(subcommand, visible_alias = "agents")]
    Agent(agent::Command),
    /// Show, set up, reset and trip circuit breakers.
    #[command(subcommand, visible_alias = "breakers")]
    Breaker(breaker::Command),
    /// Show and mend failed tasks.
    #[command(subcommand)]
    Dlq(dlq::Command),
    /// Show and mend what other programs left in the store and could not be enqueued.
    #[command(subcommand)]
    Intake(intake::Command),
    /// Look after a store.
    #[command(subcommand)]
    Db(db::Command),
    /// Measure this program on this machine.
    Bench(bench::Args),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version were asked for, so they go to standard output; a closed pipe there is no error.
            let _ = error.print();
            return if error.use_stderr() {
                Exit::Usage.into()
            } else {
                Exit::Ok.into()
            };
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&anyhow::Error::new(error).context("cannot start the runtime")),
    };
    let result = runtime.block_on(dispatch(cli));
    // Work that cannot be stopped (a blocking call on a lost disk) must not hold the end up.
    runtime.shutdown_timeout(Duration::from_millis(500));
    match result {
        Ok(exit) => exit.into(),
        Err(error) => exit::report(&error),
    }
}

async fn dispatch(cli: Cli) -> anyhow::Result<Exit> {
    let Cli { global, command } = cli;
    if !matches!(command, Command::Serve(_)) {
        init_logging("warn")?;
    }
    match command {
        Command::Serve(args) => serve::serve(&global, args).await,
        Command::Run(args) => run::run(&global, args).await,
        Command::Task(command) => task::task(&global, command).await,
        Command::Status => status::status(&global).await,
        Command::Node(command) => node::node(&global, command).await,
        Command::Queue(command) => queue::queue(&global, command).await,
        Command::Agent(command) => agent::agent(&global, command).await,
        Command::Breaker(command) => breaker::breaker(&global, command).await,
        Command::Dlq(command) => dlq::dlq(&global, command).await,
        Command::Intake(command) => intake::intake(&global, command).await,
        Command::Db(command) => db::db(&global, command).await,
        Command::Bench(args) => bench::bench(&global, args).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "pensum", &mut script);
            output::print(&String::from_utf8_lossy(&script))?;
            Ok(Exit::Ok)
        }
    }
}

/// Sends logs to standard error. `PENSUM_LOG` beats `level`.
pub(crate) fn init_logging(level: &str) -> anyhow::Result<()> {
    let wanted = std::env::var("PENSUM_LOG").unwrap_or_else(|_| level.to_owned());
    // The drivers below say each broken connection once more; the store says once what that means.
    let filter = EnvFilter::try_new(format!("deadpool=off,tokio_postgres=warn,{wanted}")).map_err(|error| {
        Failure::usage(format!(
            "PENSUM_LOG / logging.level: `{wanted}` is not a log filter ({error}); write warn, info or debug"
        ))
    })?;
    let colors = console::colors_enabled_stderr();
    // A second start in one process (a test) keeps the first one's subscriber.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colors)
        .try_init();
    Ok(())
}

/// The present.
pub(crate) fn now() -> Time {
    pensum_engine::SystemClock.now()
}

/// Asks before something is removed, where someone can answer; elsewhere `--yes` is needed only there too.
pub(crate) fn confirm(global: &Global, question: &str) -> anyhow::Result<()> {
    use std::io::{BufRead, IsTerminal};
    let asked = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if global.yes || !asked {
        return Ok(());
    }
    output::warn(&format!("{question} [y/N]"));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        Ok(())
    } else {
        Err(Failure::new(
            Exit::NotAllowed,
            "nothing was removed; say --yes to go ahead without the question",
        )
        .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
