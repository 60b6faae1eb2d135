//! `pensum queue …`: what queues allow, and what is asked of them.

mod put;
mod settings;

use clap::Subcommand;
use pensum_core::Time;
use pensum_core::input::{RateInput, check_queue_id};
use serde_json::Value;

use super::Global;
use super::client::Client;
use super::exit::Exit;
use super::named::{self, Kind};
use super::output::{self, Column, plain};

pub(crate) use settings::{apply, read};

static COLUMNS: [Column; 11] = [
    Column::text("id", |queue, _| plain(&queue["id"])),
    Column::text("name", |queue, _| plain(&queue["name"])).wide(),
    Column::text("status", |queue, _| plain(&queue["status"])),
    Column::number("running", |queue, _| running(queue)),
    Column::text("rate", |queue, _| rate(&queue["settings"]["rate_limit"])),
    Column::number("ready", |queue, _| plain(&queue["tasks"]["ready"])),
    Column::number("later", |queue, _| later(&queue["tasks"])),
    Column::number("completed", |queue, _| plain(&queue["tasks"]["completed"])),
    Column::number("failed", |queue, _| plain(&queue["tasks"]["failed"])),
    Column::text("put by", |queue, _| plain(&queue["put_by"])).wide(),
    Column::number("version", |queue, _| plain(&queue["version"])).wide(),
];

const QUEUES: Kind = Kind {
    root: "/api/v1/queues",
    one: "queue",
    ask: ("Take the settings of", "queues away?"),
    gone: "deleted",
    columns: &COLUMNS,
    describe,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the queues that have settings or hold tasks.
    List {
        /// How many queues at most; 50 by default.
        #[arg(short = 'n', long)]
        limit: Option<usize>,
        /// All of them, however many.
        #[arg(short, long)]
        all: bool,
    },
    /// Show queues.
    Get(Names),
    /// Give a queue settings, or change those that are named; or put all queues of a file.
    Put(Box<put::PutArgs>),
    /// Start nothing more of queues; what runs goes on.
    Pause(Names),
    /// Start the tasks of paused queues again.
    Resume(Names),
    /// Start what is in queues now that start nothing by themselves.
    Process(Names),
    /// Take the settings of queues away; refused while they hold unfinished tasks.
    Delete(Names),
}

#[derive(clap::Args, Debug)]
pub(crate) struct Names {
    /// The queues.
    #[arg(required = true, value_name = "NAME", value_parser = name)]
    names: Vec<String>,
}

/// A name that a queue can have, for clap.
fn name(text: &str) -> Result<String, String> {
    named::checked(text, check_queue_id)
}

pub(crate) async fn queue(global: &Global, command: Command) -> anyhow::Result<Exit> {
    // A store can be given queues before it is served for the first time.
    let client = Client::connect(global, matches!(command, Command::Put(_))).await?;
    let result = dispatch(global, &client, command).await;
    client.close().await;
    result
}

async fn dispatch(global: &Global, client: &Client, command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::List { limit, all } => QUEUES.list(global, client, &[], limit, all).await,
        Command::Get(Names { names }) => QUEUES.get(global, client, &names).await,
        Command::Put(args) => put::put(global, client, *args).await,
        Command::Pause(Names { names }) => QUEUES.command(global, client, "pause", &names).await,
        Command::Resume(Names { names }) => QUEUES.command(global, client, "resume", &names).await,
        Command::Process(Names { names }) => QUEUES.command(global, client, "process", &names).await,
        Command::Delete(Names { names }) => QUEUES.remove(global, client, &names).await,
    }
}

fn describe(queue: &Value, now: Time) -> String {
    let settings = &queue["settings"];
    let changed = match queue["changed_at"].is_null() {
        true => String::new(),
        false => format!("{} ago", output::age(&queue["changed_at"], now)),
    };
    let starts = match settings["auto_start"].as_bool() {
        Some(false) => "when asked to",
        _ => "by itself",
    };
    let tasks = match settings["persistent"].as_bool() {
        Some(false) => "not durable: they end with the process that accepts them",
        _ => "",
    };
    let retry = match settings["retry"].is_null() {
        true => String::new(),
        false => settings["retry"].to_string(),
    };
    output::fields(&[
        ("id", plain(&queue["id"])),
        ("name", plain(&queue["name"])),
        ("status", plain(&queue["status"])),
        ("because", plain(&queue["closed"])),
        ("opens at", plain(&queue["opens_at"])),
        ("running", running(queue)),
        ("per key", plain(&settings["max_concurrent_per_key"])),
        ("ready", plain(&queue["tasks"]["ready"])),
        ("later", later(&queue["tasks"])),
        ("completed", plain(&queue["tasks"]["completed"])),
        ("failed", plain(&queue["tasks"]["failed"])),
        ("starts", starts.to_owned()),
        ("tasks", tasks.to_owned()),
        ("rate", rate(&settings["rate_limit"])),
        ("max depth", plain(&settings["max_depth"])),
        ("max age", plain(&settings["max_age"])),
        ("when full", plain(&settings["when_full"])),
        ("priority", plain(&settings["priority"])),
        ("timeout", plain(&settings["timeout"])),
        ("max retries", plain(&settings["max_retries"])),
        ("retry", retry),
        ("ageing", plain(&settings["ageing"])),
        ("fair", plain(&settings["fair"])),
        ("put by", plain(&queue["put_by"])),
        ("changed", changed),
        ("version", plain(&queue["version"])),
    ])
}

/// How many run, of how many that may.
fn running(queue: &Value) -> String {
    match &queue["settings"]["max_concurrent"] {
        Value::Null => plain(&queue["running"]),
        most => format!("{}/{most}", plain(&queue["running"])),
    }
}

/// How many wait for something of their own: a time, a dependency, a resume.
fn later(tasks: &Value) -> String {
    let count = |status: &str| tasks[status].as_u64().unwrap_or_default();
    (count("pending") + count("retrying") + count("paused")).to_string()
}

/// A rate as people write it: `50/s, burst 10`.
fn rate(rate: &Value) -> String {
    let Ok(rate) = serde_json::from_value::<RateInput>(rate.clone()) else {
        return String::new();
    };
    let seconds = rate.per.0.as_secs_f64();
    let per = [("s", 1.0), ("m", 60.0), ("h", 3_600.0), ("d", 86_400.0)]
        .into_iter()
        .find(|(_, unit)| *unit == seconds)
        .map_or_else(|| format!("{seconds}s"), |(name, _)| name.to_owned());
    let burst = rate.burst.map(|burst| format!(", burst {burst}")).unwrap_or_default();
    format!("{}/{per}{burst}", rate.starts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_shown_as_it_is_written() {
        let say = |text: &str| rate(&serde_json::from_str(text).unwrap());
        assert_eq!(say(r#"{"starts":50,"per":1,"burst":10}"#), "50/s, burst 10");
        assert_eq!(say(r#"{"starts":3,"per":90}"#), "3/90s");
        assert_eq!(say("null"), "");
    }
}
