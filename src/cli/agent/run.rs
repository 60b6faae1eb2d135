//! `pensum agent run`: any program as an agent.

use std::collections::BTreeMap;

use pensum_core::time::Span;
use pensum_engine::process::{Limits, SpecError, kill_orphans};
use serde_json::{Value, json};

use super::super::client::Client;
use super::super::exit::{Exit, Failure};
use super::super::signals::Signals;
use super::super::{machine, output};
use super::runner::{Runner, read_limits};
use super::session::{Session, Stop};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The agent's id; a second process of the same id takes over from the first.
    #[arg(long)]
    id: String,
    /// What it can do: names of handlers, or whatever tasks require. Say it again for more.
    #[arg(short = 'C', long = "capability", required = true, value_name = "NAME")]
    capabilities: Vec<String>,
    /// How many tasks at once.
    #[arg(long, default_value_t = 1, value_name = "N")]
    max: u32,
    /// A name for people.
    #[arg(long)]
    name: Option<String>,
    /// What its machine has for tasks, such as cpu_cores=4 or memory_gb=8. Say it again for more.
    #[arg(long = "resource", value_name = "NAME=AMOUNT", value_parser = machine::pair)]
    resources: Vec<(String, String)>,
    /// A label, such as zone=eu. Say it again for more.
    #[arg(long = "label", value_name = "NAME=TEXT", value_parser = machine::pair)]
    labels: Vec<(String, String)>,
    /// How long it may be silent before what it runs goes elsewhere; 30 s by default.
    #[arg(long, value_name = "DURATION", value_parser = Span::parse)]
    lease: Option<Span>,
    /// How long the program may go on after it was asked to stop.
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = Span::parse)]
    grace: Span,
    /// Memory that the program and all it starts may use together for one task, such as 512MiB.
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Seconds of processor time that they may use together for one task.
    #[arg(long, value_name = "SECONDS")]
    cpu_seconds: Option<f64>,
    /// The program and its arguments, after `--`.
    #[arg(required = true, last = true, value_name = "PROGRAM")]
    command: Vec<String>,
}

impl Args {
    fn registration(&self) -> anyhow::Result<Value> {
        let mut body = json!({
            "id": self.id,
            "agent_type": "program",
            "capabilities": self.capabilities,
            "max_concurrent_tasks": self.max,
            "agent_version": env!("CARGO_PKG_VERSION"),
        });
        if let Some(name) = &self.name {
            body["name"] = json!(name);
        }
        if let Some(lease) = self.lease {
            body["lease"] = json!(lease.0.as_secs_f64());
        }
        for (name, amount) in &self.resources {
            let amount: f64 = amount
                .parse()
                .map_err(|_| Failure::usage(format!("--resource {name}={amount}: the amount is not a number")))?;
            body["resources"][name] = json!(amount);
        }
        for (name, text) in &self.labels {
            body["labels"][name] = json!(text);
        }
        Ok(body)
    }

    fn limits(&self) -> Result<Limits, Failure> {
        let limits = json!({ "memory": self.memory, "cpu_seconds": self.cpu_seconds });
        read_limits(&limits).map_err(|SpecError { field, problem }| {
            let flag = field.trim_start_matches("limits.").replace('_', "-");
            Failure::usage(format!("--{flag}: {problem}"))
        })
    }
}

pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<Exit> {
    if client.is_alone() {
        let message = "an agent needs a node that gives it work: start `pensum serve`, and name it with --url";
        return Err(Failure::usage(message).into());
    }
    let limits = args.limits()?;
    let mut stop = Stop::Signals(Signals::new()?);
    let registration = args.registration()?;
    client.post("/api/v1/agents", &registration).await?;
    machine::enforce_limits().log();
    // One that was killed outright left its programs running.
    tokio::task::spawn_blocking(kill_orphans).await?;
    output::warn(&format!("agent {} waits for work", args.id));
    let runner = Runner::Program {
        argv: args.command,
        env: BTreeMap::new(),
        limits,
    };
    let mut session = Session::new(client, &args.id, registration, args.max as usize, runner, args.grace.0);
    session.run(&mut stop).await
}
