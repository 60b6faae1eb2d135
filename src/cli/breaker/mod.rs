//! `pensum breaker …`: what is left alone for a while because it fails again and again.

mod settings;

use clap::Subcommand;
use pensum_core::Time;
use pensum_core::time::Span;
use serde_json::{Value, json};

use super::Global;
use super::client::Client;
use super::exit::Exit;
use super::named::{self, Kind};
use super::output::{self, Column, plain};

pub(crate) use settings::{apply, read};

static COLUMNS: [Column; 6] = [
    Column::text("id", |breaker, _| plain(&breaker["id"])),
    Column::text("state", |breaker, _| plain(&breaker["state"])),
    Column::text("covers", |breaker, _| covers(&breaker["settings"])),
    Column::text("failures", |breaker, _| failures(breaker)),
    Column::text("tries at", |breaker, _| plain(&breaker["tries_at"])),
    Column::number("version", |breaker, _| plain(&breaker["version"])).wide(),
];

const BREAKERS: Kind = Kind {
    root: "/api/v1/breakers",
    one: "circuit breaker",
    ask: ("Remove", "circuit breakers?"),
    gone: "deleted",
    columns: &COLUMNS,
    describe,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the circuit breakers.
    List {
        /// How many breakers at most; 50 by default.
        #[arg(short = 'n', long)]
        limit: Option<usize>,
        /// All of them, however many.
        #[arg(short, long)]
        all: bool,
    },
    /// Show circuit breakers.
    Get(Names),
    /// Make a circuit breaker, or give it other settings; what is not named gets its default.
    Put(Box<PutArgs>),
    /// Close circuit breakers, and forget what they have seen.
    Reset(Names),
    /// Open circuit breakers now.
    Trip(Names),
    /// Remove circuit breakers; what they held up starts.
    Delete(Names),
}

#[derive(clap::Args, Debug)]
pub(crate) struct Names {
    /// The circuit breakers.
    #[arg(required = true, value_name = "NAME", value_parser = named::name)]
    names: Vec<String>,
}

#[derive(clap::Args, Debug)]
#[command(allow_negative_numbers = true)]
pub(crate) struct PutArgs {
    /// Its name; handler:NAME and agent:NAME say what they cover.
    #[arg(value_parser = named::name)]
    name: String,
    /// A handler that it covers. Say it again for more.
    #[arg(long = "handler", value_name = "NAME")]
    handlers: Vec<String>,
    /// An agent that it covers. Say it again for more.
    #[arg(long = "agent", value_name = "ID")]
    agents: Vec<String>,
    /// So many failures within the window open it; 5 by default.
    #[arg(long, value_name = "N")]
    failures: Option<u32>,
    /// So large a part of the ends within the window opens it, such as 0.5.
    #[arg(long, value_name = "PART")]
    failure_rate: Option<f64>,
    /// How many ends there must be before their rate counts; 10 by default.
    #[arg(long, value_name = "N")]
    calls_min: Option<u32>,
    /// How far back ends count; 60 s by default.
    #[arg(long, value_name = "DURATION", value_parser = Span::parse)]
    window: Option<Span>,
    /// How long it is open before it lets somebody try; 30 s by default.
    #[arg(long, value_name = "DURATION", value_parser = Span::parse)]
    open_for: Option<Span>,
    /// How many may try at once, and how many must succeed; 1 by default.
    #[arg(long, value_name = "N")]
    probes: Option<u32>,
    /// Only when it is at this version; 0: only when there is none.
    #[arg(long, value_name = "N")]
    if_version: Option<u64>,
}

impl PutArgs {
    fn body(&self) -> Value {
        let mut body = json!({ "handlers": self.handlers, "agents": self.agents });
        let spans = [("window", self.window), ("open_for", self.open_for)];
        for (name, span) in spans {
            if let Some(span) = span {
                body[name] = json!(span.0.as_secs_f64());
            }
        }
        let counts = [
            ("failures", self.failures),
            ("calls_min", self.calls_min),
            ("probes", self.probes),
        ];
        for (name, count) in counts {
            if let Some(count) = count {
                body[name] = json!(count);
            }
        }
        if let Some(rate) = self.failure_rate {
            body["failure_rate"] = json!(rate);
        }
        body
    }
}

pub(crate) async fn breaker(global: &Global, command: Command) -> anyhow::Result<Exit> {
    let client = Client::connect(global, matches!(command, Command::Put(_))).await?;
    let result = dispatch(global, &client, command).await;
    client.close().await;
    result
}

async fn dispatch(global: &Global, client: &Client, command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::List { limit, all } => BREAKERS.list(global, client, &[], limit, all).await,
        Command::Get(Names { names }) => BREAKERS.get(global, client, &names).await,
        Command::Put(args) => {
            let put = client
                .put(&BREAKERS.path(&args.name), &args.body(), args.if_version)
                .await?;
            BREAKERS.show(global, &[put])?;
            Ok(Exit::Ok)
        }
        Command::Reset(Names { names }) => BREAKERS.command(global, client, "reset", &names).await,
        Command::Trip(Names { names }) => BREAKERS.command(global, client, "trip", &names).await,
        Command::Delete(Names { names }) => BREAKERS.remove(global, client, &names).await,
    }
}

fn describe(breaker: &Value, now: Time) -> String {
    let settings = &breaker["settings"];
    let rate = match settings["failure_rate"].as_f64() {
        Some(rate) => format!("{rate} of at least {}", plain(&settings["calls_min"])),
        None => String::new(),
    };
    let seconds = |name: &str| format!("{} s", plain(&settings[name]));
    output::fields(&[
        ("id", plain(&breaker["id"])),
        ("state", plain(&breaker["state"])),
        ("because", plain(&breaker["because"])),
        ("tries at", plain(&breaker["tries_at"])),
        ("covers", covers(settings)),
        ("failures", failures(breaker)),
        ("opens at failures", plain(&settings["failures"])),
        ("opens at rate", rate),
        ("window", seconds("window")),
        ("open for", seconds("open_for")),
        ("probes", plain(&settings["probes"])),
        ("put by", plain(&breaker["put_by"])),
        ("changed", format!("{} ago", output::age(&breaker["changed_at"], now))),
        ("version", plain(&breaker["version"])),
    ])
}

fn covers(settings: &Value) -> String {
    let names = |what: &str, list: &Value| {
        let names = list.as_array().into_iter().flatten();
        names.map(|name| format!("{what} {}", plain(name))).collect::<Vec<_>>()
    };
    let mut all = names("handler", &settings["handlers"]);
    all.extend(names("agent", &settings["agents"]));
    all.join(", ")
}

/// How many of the latest ends failed. One that is not closed counts none.
fn failures(breaker: &Value) -> String {
    if breaker["state"] != "closed" {
        return String::new();
    }
    format!("{}/{}", plain(&breaker["failures"]), plain(&breaker["calls"]))
}
