//! The agents of a node's configuration: registered when it starts, run and watched by it, and stopped with it.

use std::time::Duration;

use pensum_engine::process::{CommandSpec, Process};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::super::client::Client;
use super::super::exit::Exit;
use super::http::Endpoint;
use super::path;
use super::runner::Runner;
use super::session::{Pause, Session, Stop};
use super::settings::{Configured, Kind};

/// An agent that ran for this long before it ended is started again without a long pause.
const STEADY: Duration = Duration::from_secs(60);
/// How often a node looks whether an agent is still there: one that another node runs, or a process of its own that polls.
const LOOK: Duration = Duration::from_secs(5);
/// A process is silent that was found so this many times in a row. Once may be for the machine, which stood still as well.
const SILENT_LOOKS: u32 = 2;

/// The agents that a node runs.
pub(crate) struct Supervisor {
    stop: CancellationToken,
    agents: JoinSet<()>,
}

impl Supervisor {
    /// Registers and starts agents, for the node at `address`, such as `http://127.0.0.1:7400`.
    ///
    /// # Errors
    /// When one of them cannot be registered.
    pub(crate) async fn start(address: &str, agents: Vec<Configured>) -> anyhow::Result<Supervisor> {
        let mut supervisor = Supervisor {
            stop: CancellationToken::new(),
            agents: JoinSet::new(),
        };
        for agent in agents {
            let client = Client::to(address)?;
            let Some(kind) = agent.kind.clone() else {
                client.post("/api/v1/agents", &registration(&agent)?).await?;
                continue;
            };
            let (stop, address) = (supervisor.stop.clone(), address.to_owned());
            supervisor
                .agents
                .spawn(async move { watch(&client, &address, &agent, &kind, &stop).await });
        }
        Ok(supervisor)
    }

    /// True when there is none that the node runs.
    pub(crate) fn is_empty(&self) -> bool {
        self.agents.is_empty()
    }

    /// Stops them, and waits until they have ended.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        while self.agents.join_next().await.is_some() {}
    }
}

fn registration(agent: &Configured) -> anyhow::Result<Value> {
    Ok(serde_json::to_value(&agent.input)?)
}

/// How a run of an agent ended.
enum Ended {
    /// The node stops.
    Stopped,
    /// Another process runs the agent now.
    TakenOver,
    /// The process that polls for it ended so; its place is still this node's.
    Process(String),
}

/// Runs an agent again and again until the node stops.
async fn watch(client: &Client, address: &str, agent: &Configured, kind: &Kind, stop: &CancellationToken) {
    let id = &agent.input.id;
    let mut pauses = Pause::default();
    let mut has_place = false;
    loop {
        let started = Instant::now();
        let ended = run(client, address, agent, kind, has_place, stop).await;
        if stop.is_cancelled() {
            return;
        }
        if started.elapsed() >= STEADY {
            pauses = Pause::default();
        }
        let pause = pauses.next();
        match &ended {
            Ok(Ended::Stopped) => return,
            Ok(Ended::TakenOver) => tracing::warn!(agent = %id, "another process runs the agent now"),
            Ok(Ended::Process(how)) => tracing::warn!(agent = %id, how, again_in = ?pause, "the agent ended"),
            Err(error) => tracing::warn!(agent = %id, %error, again_in = ?pause, "the agent could not go on"),
        }
        // The place of a process that ended would not be free before its lease is over.
        has_place = matches!(ended, Ok(Ended::Process(_)));
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

/// Runs an agent until the node stops, another process takes over, or what polls for it ends.
async fn run(
    client: &Client,
    address: &str,
    agent: &Configured,
    kind: &Kind,
    has_place: bool,
    stop: &CancellationToken,
) -> anyhow::Result<Ended> {
    if !has_place {
        take_place(client, agent, stop).await?;
    }
    if stop.is_cancelled() {
        return Ok(Ended::Stopped);
    }
    let runner = match kind {
        Kind::Worker(argv) => return worker(client, address, agent, argv, stop).await,
        Kind::Program(argv) => Runner::Program {
            argv: argv.clone(),
            env: agent.env.clone(),
            limits: agent.limits.clone(),
        },
        Kind::Url(url) => Runner::Endpoint(Endpoint::new(url, address)?),
    };
    let max = agent.input.max_concurrent_tasks.unwrap_or(1) as usize;
    let mut session = Session::new(client, &agent.input.id, registration(agent)?, max, runner, agent.grace);
    match session.run(&mut Stop::Token(stop.clone())).await {
        Ok(_) => Ok(Ended::Stopped),
        Err(error) if Exit::of(&error) == Some(Exit::Conflict) => Ok(Ended::TakenOver),
        Err(error) => Err(error),
    }
}

/// Waits until no other process runs the agent, and has it seen, so that other nodes leave it to this one.
async fn take_place(client: &Client, agent: &Configured, stop: &CancellationToken) -> anyhow::Result<()> {
    until_free(client, &agent.input.id, stop).await?;
    if !stop.is_cancelled() {
        client.post("/api/v1/agents", &registration(agent)?).await?;
    }
    Ok(())
}

/// Waits until no other process runs the agent: a node of the same configuration, or this one before it was started again.
async fn until_free(client: &Client, id: &str, stop: &CancellationToken) -> anyhow::Result<()> {
    loop {
        let found = match client.get_value(&path(id), &[]).await {
            Ok(found) => found,
            Err(error) if Exit::of(&error) == Some(Exit::NotFound) => return Ok(()),
            Err(error) => return Err(error),
        };
        if found["status"] == "offline" {
            return Ok(());
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = sleep(LOOK) => {}
        }
    }
}

/// Waits until an agent that was heard since that time is silent: it hangs, for it has neither ended nor taken its leave.
async fn until_silent(client: &Client, id: &str, seen_at: &Value) {
    let mut silent = 0;
    while silent < SILENT_LOOKS {
        sleep(LOOK).await;
        // What cannot be read now is read the next time.
        let Ok(found) = client.get_value(&path(id), &[]).await else {
            continue;
        };
        let was_heard = found["seen_at"].is_string() && found["seen_at"] != *seen_at;
        silent = match was_heard && found["status"] == "offline" {
            true => silent + 1,
            false => 0,
        };
    }
}

/// Runs a process that polls by itself, until it ends, falls silent, or the node stops.
async fn worker(
    client: &Client,
    address: &str,
    agent: &Configured,
    argv: &[String],
    stop: &CancellationToken,
) -> anyhow::Result<Ended> {
    let seen_at = client.get_value(&path(&agent.input.id), &[]).await?["seen_at"].take();
    let id = agent.input.id.clone();
    let (program, args) = argv
        .split_first()
        .map_or(("", &[] as &[String]), |(first, rest)| (first.as_str(), rest));
    let mut spec = CommandSpec::new(program);
    spec.args = args.to_vec();
    spec.env.clone_from(&agent.env);
    let env = vec![
        ("PENSUM_URL".to_owned(), address.to_owned()),
        ("PENSUM_AGENT_ID".to_owned(), id.clone()),
    ];
    let process = Process::spawn(&spec, env, move |_, line| tracing::info!(agent = %id, "{line}"))?;
    let handle = process.handle();
    let mut end = std::pin::pin!(process.wait());
    let exit = tokio::select! {
        biased;
        exit = &mut end => Some(exit),
        () = stop.cancelled() => None,
        () = until_silent(client, &agent.input.id, &seen_at) => None,
    };
    if exit.is_none() {
        tokio::join!(handle.stop(agent.grace), end);
    }
    if stop.is_cancelled() {
        return Ok(Ended::Stopped);
    }
    let Some(exit) = exit else {
        return Ok(Ended::Process("killed, for it was not heard any more".to_owned()));
    };
    Ok(match (exit.code, exit.signal_name) {
        (Some(code), _) if code == i32::from(Exit::Conflict.code()) => Ended::TakenOver,
        (Some(code), _) => Ended::Process(format!("exit code {code}")),
        (None, Some(signal)) => Ended::Process(signal.to_owned()),
        (None, None) => Ended::Process("a signal".to_owned()),
    })
}
