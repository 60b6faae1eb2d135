//! The nodes that run the tasks of a measurement: this process, or several others over one store.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::sync::mpsc;

use super::Bench;
use super::child::Process;
use super::meter::shared_clock;
use super::scratch::{Scratch, open};
use super::work::World;
use crate::cli::output;

/// What a node says once its store is open.
const READY: &str = "ready";
/// What it is told, to start.
const GO: &str = "go";

/// Nodes that are ready to start, or have started.
pub(super) enum Nodes {
    /// The engine of this process.
    Here(Arc<World>),
    /// Other processes.
    There(Vec<Process>),
}

impl Nodes {
    /// As many nodes as the bench asks for, over the world's store.
    pub(super) async fn ready(bench: &Bench, world: &Arc<World>) -> anyhow::Result<Nodes> {
        if bench.nodes == 1 {
            return Ok(Nodes::Here(Arc::clone(world)));
        }
        Nodes::there(&bench.scratch, bench.nodes, bench.slots, false).await
    }

    /// Nodes in processes of their own. With `tell` each says when a run starts.
    pub(super) async fn there(scratch: &Scratch, count: u64, slots: usize, tell: bool) -> anyhow::Result<Nodes> {
        let (url, slots) = (scratch.url(), slots.to_string());
        let part = if tell { "herald" } else { "node" };
        let arguments = ["bench", "--child", part, "--store", &url, "--slots", &slots];
        let mut processes = (0..count)
            .map(|_| Process::spawn(&arguments))
            .collect::<Result<Vec<_>, _>>()?;
        for process in &mut processes {
            let said = process.line().await?;
            ensure!(said == READY, "a node said `{said}`");
        }
        Ok(Nodes::There(processes))
    }

    /// Lets them begin.
    pub(super) async fn start(mut self) -> anyhow::Result<Nodes> {
        match &mut self {
            Nodes::Here(world) => world.engine.start(),
            Nodes::There(processes) => {
                for process in processes {
                    process.say(GO).await?;
                }
            }
        }
        Ok(self)
    }

    /// When the next run started, by the [shared clock](shared_clock), on the one other node there is.
    pub(super) async fn next_start(&mut self) -> anyhow::Result<Duration> {
        let Nodes::There(processes) = self else {
            anyhow::bail!("the node of this process does not tell");
        };
        let process = processes.first_mut().context("there is no node")?;
        let said = process.line().await?;
        let nanoseconds = said.parse().with_context(|| format!("a node said `{said}`"))?;
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Ends nodes of other processes. How often each node started a task.
    pub(super) async fn end(&mut self) -> anyhow::Result<Vec<u64>> {
        match self {
            Nodes::Here(world) => Ok(vec![world.runs()]),
            Nodes::There(processes) => {
                let mut runs = Vec::new();
                for mut process in processes.drain(..) {
                    process.hush();
                    let said = process.line().await?;
                    runs.push(said.parse().with_context(|| format!("a node said `{said}`"))?);
                    process.wait().await?;
                }
                Ok(runs)
            }
        }
    }
}

/// The child: a node that starts at a word, ends with its standard input, and says how often it started a task.
pub(super) async fn serve(url: &str, slots: usize, tell: bool) -> anyhow::Result<()> {
    let store = open(url).await?;
    let (sender, mut starts) = mpsc::unbounded_channel();
    let world = World::listening(store, slots, 0, tell.then_some(sender));
    output::println(READY)?;
    if input_line().await? != GO {
        return world.close().await;
    }
    world.engine.start();
    let end = input_line();
    let mut end = std::pin::pin!(end);
    loop {
        tokio::select! {
            line = &mut end => {
                line?;
                break;
            }
            Some(start) = starts.recv() => output::println(&shared_clock(start).as_nanos().to_string())?,
        }
    }
    world.close().await?;
    output::println(&world.runs().to_string())
}

/// The next line of standard input; empty when whoever writes it is gone.
async fn input_line() -> anyhow::Result<String> {
    let line = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line.trim().to_owned())
    });
    Ok(line.await??)
}
