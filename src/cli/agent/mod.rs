//! `pensum agent …`: who runs tasks beside the nodes, and any program as one of them.

mod http;
mod run;
mod runner;
mod session;
mod settings;
mod supervise;
mod work;

use clap::Subcommand;
use pensum_core::Time;
use serde_json::Value;

use super::Global;
use super::client::Client;
use super::exit::Exit;
use super::named::{self, Kind};
use super::output::{self, Column, plain};

pub(crate) use settings::{Configured, read};
pub(crate) use supervise::Supervisor;

static COLUMNS: [Column; 9] = [
    Column::text("id", |agent, _| plain(&agent["id"])),
    Column::text("name", |agent, _| plain(&agent["name"])).wide(),
    Column::text("status", |agent, _| status(agent)),
    Column::number("tasks", |agent, _| tasks(agent)),
    Column::text("capabilities", |agent, _| list(&agent["capabilities"])),
    Column::text("resources", |agent, _| pairs(&agent["resources"])),
    Column::text("labels", |agent, _| pairs(&agent["labels"])).wide(),
    Column::text("seen", seen),
    Column::text("program", |agent, _| plain(&agent["agent_version"])).wide(),
];

const AGENTS: Kind = Kind {
    root: "/api/v1/agents",
    one: "agent",
    ask: ("Forget", "agents?"),
    gone: "removed",
    columns: &COLUMNS,
    describe,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the agents.
    List {
        /// Only those of this status: idle, busy, offline.
        #[arg(long)]
        status: Option<String>,
        /// Only those that can do this.
        #[arg(short = 'C', long)]
        capability: Option<String>,
        /// How many agents at most; 50 by default.
        #[arg(short = 'n', long)]
        limit: Option<usize>,
        /// All of them, however many.
        #[arg(short, long)]
        all: bool,
    },
    /// Show agents.
    Get(Ids),
    /// Give agents nothing more; what they run goes on.
    Drain(Ids),
    /// Give drained agents work again.
    Undrain(Ids),
    /// Forget agents; what they run goes back to its queue.
    Remove(Ids),
    /// Run a program for each task that an agent takes: the task as JSON on its standard input, the result on its standard
    /// output.
    Run(Box<run::Args>),
}

#[derive(clap::Args, Debug)]
pub(crate) struct Ids {
    /// The agents.
    #[arg(required = true, value_name = "ID", value_parser = named::name)]
    ids: Vec<String>,
}

pub(crate) async fn agent(global: &Global, command: Command) -> anyhow::Result<Exit> {
    let client = Client::connect(global, false).await?;
    let result = dispatch(global, &client, command).await;
    client.close().await;
    result
}

async fn dispatch(global: &Global, client: &Client, command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::List {
            status,
            capability,
            limit,
            all,
        } => {
            let filters = [("status", status), ("capability", capability)];
            let query: Vec<(&str, String)> = filters
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)))
                .collect();
            AGENTS.list(global, client, &query, limit, all).await
        }
        Command::Get(Ids { ids }) => AGENTS.get(global, client, &ids).await,
        Command::Drain(Ids { ids }) => AGENTS.command(global, client, "drain", &ids).await,
        Command::Undrain(Ids { ids }) => AGENTS.command(global, client, "undrain", &ids).await,
        Command::Remove(Ids { ids }) => AGENTS.remove(global, client, &ids).await,
        Command::Run(args) => run::run(client, *args).await,
    }
}

/// Where an agent is read.
fn path(id: &str) -> String {
    AGENTS.path(id)
}

fn describe(agent: &Value, now: Time) -> String {
    output::fields(&[
        ("id", plain(&agent["id"])),
        ("name", plain(&agent["name"])),
        ("type", plain(&agent["agent_type"])),
        ("program", plain(&agent["agent_version"])),
        ("status", status(agent)),
        ("seen", seen(agent, now)),
        ("tasks", tasks(agent)),
        ("capabilities", list(&agent["capabilities"])),
        ("resources", pairs(&agent["resources"])),
        ("labels", pairs(&agent["labels"])),
        ("lease", format!("{} s", plain(&agent["lease"]))),
        ("registered by", plain(&agent["created_by"])),
        ("version", plain(&agent["version"])),
    ])
}

fn status(agent: &Value) -> String {
    let status = plain(&agent["status"]);
    match agent["draining"].as_bool() {
        Some(true) => format!("{status}, draining"),
        _ => status,
    }
}

/// How many it runs, of how many that it may.
fn tasks(agent: &Value) -> String {
    format!(
        "{}/{}",
        plain(&agent["active_tasks"]),
        plain(&agent["max_concurrent_tasks"])
    )
}

fn seen(agent: &Value, now: Time) -> String {
    match agent["seen_at"].is_null() {
        true => String::new(),
        false => format!("{} ago", output::age(&agent["seen_at"], now)),
    }
}

fn list(values: &Value) -> String {
    let texts: Vec<String> = values.as_array().into_iter().flatten().map(plain).collect();
    texts.join(", ")
}

fn pairs(values: &Value) -> String {
    let pairs = values.as_object().into_iter().flatten();
    let texts: Vec<String> = pairs
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| format!("{name}={}", plain(value)))
        .collect();
    texts.join(", ")
}
