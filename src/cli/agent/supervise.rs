//! The agents of a node's configuration: registered when it starts, run and watched by it, and stopped with it.

use std::time::Duration;

use pensum_engine::process::{CommandSpec, Process};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::super::client::Client;
use super::super::exit::{Exit, Failure};
use super::http::Endpoint;
use super::path;
use super::runner::Runner;
use super::session::{Pause, Session, Stop};
use super::settings::{Configured, Kind};

/// An agent that ran for this long before it ended is started again without a long pause.
const STEADY: Duration = Duration::from_secs(60);
/// How often a node looks whether an agent that another one runs is still there.
const LOOK: Duration = Duration::from_secs(5);

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
            if agent.kind.is_none() {
                client.post("/api/v1/agents", &registration(&agent)?).await?;
                continue;
            }
            let (stop, address) = (supervisor.stop.clone(), address.to_owned());
            supervisor
                .agents
                .spawn(async move { watch(&client, &address, &agent, &stop).await });
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

/// Runs an agent again and again until the node stops.
async fn watch(client: &Client, address: &str, agent: &Configured, stop: &CancellationToken) {
    let id = &agent.input.id;
    let mut pauses = Pause::default();
    let mut is_own = false;
    loop {
        let started = Instant::now();
        let ended = match &agent.kind {
            None => return,
            Some(Kind::Worker(argv)) => {
                let taken = match is_own {
                    // Its place is not free before the lease of the one that has just ended is over.
                    true => Ok(()),
                    false => take_place(client, agent, stop).await,
                };
                let ended = match taken {
                    Ok(()) if stop.is_cancelled() => return,
                    Ok(()) => worker(address, agent, argv, stop).await,
                    Err(error) => Err(error),
                };
                is_own = matches!(&ended, Ok(why) if *why != taken_over());
                ended
            }
            Some(Kind::Program(argv)) => {
                let runner = Runner::Program {
                    argv: argv.clone(),
                    env: agent.env.clone(),
                };
                session(client, agent, runner, stop).await
            }
            Some(Kind::Url(url)) => match Endpoint::new(url, address) {
                Ok(endpoint) => session(client, agent, Runner::Endpoint(endpoint), stop).await,
                Err(error) => Err(error),
            },
        };
        if stop.is_cancelled() {
            return;
        }
        if started.elapsed() >= STEADY {
            pauses = Pause::default();
        }
        let pause = pauses.next();
        match ended {
            Ok(why) => tracing::warn!(agent = %id, why, again_in = ?pause, "the agent ended"),
            Err(error) => tracing::warn!(agent = %id, %error, again_in = ?pause, "the agent could not go on"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

/// Runs an agent in this process until the node stops, or another process takes over.
async fn session(
    client: &Client,
    agent: &Configured,
    runner: Runner,
    stop: &CancellationToken,
) -> anyhow::Result<String> {
    until_free(client, &agent.input.id, stop).await?;
    if stop.is_cancelled() {
        return Ok(String::new());
    }
    let registration = registration(agent)?;
    client.post("/api/v1/agents", &registration).await?;
    let max = agent.input.max_concurrent_tasks.unwrap_or(1) as usize;
    let mut session = Session::new(client, &agent.input.id, registration, max, runner, agent.grace);
    let mut token = Stop::Token(stop.clone());
    match session.run(&mut token).await {
        Ok(_) => Ok(String::new()),
        Err(error)
            if error
                .downcast_ref::<Failure>()
                .is_some_and(|failure| failure.exit == Exit::Conflict) =>
        {
            Ok("another process took over".to_owned())
        }
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
            Err(error)
                if error
                    .downcast_ref::<Failure>()
                    .is_some_and(|f| f.exit == Exit::NotFound) =>
            {
                return Ok(());
            }
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

fn exit_code(code: i32) -> String {
    format!("exit code {code}")
}

/// How a worker ends that another process has taken the place of.
fn taken_over() -> String {
    exit_code(i32::from(Exit::Conflict as u8))
}

/// Runs a process that polls by itself, until it ends or the node stops.
async fn worker(
    address: &str,
    agent: &Configured,
    argv: &[String],
    stop: &CancellationToken,
) -> anyhow::Result<String> {
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
        exit = &mut end => exit,
        () = stop.cancelled() => {
            let (_, exit) = tokio::join!(handle.stop(agent.grace), end);
            exit
        }
    };
    Ok(match (exit.code, exit.signal_name) {
        (Some(code), _) => exit_code(code),
        (None, Some(signal)) => signal.to_owned(),
        (None, None) => "a signal".to_owned(),
    })
}
