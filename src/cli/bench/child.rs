//! Other processes of this program: nodes to talk to, and holders of tasks to kill.

use std::env;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::meter::tick;
use super::scratch::Scratch;
use super::wire::Wire;

/// Longest wait for a child to say something, or to end.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a node that is not ready yet.
const LOOK: Duration = Duration::from_micros(200);

/// A child process; killed when it is dropped.
pub(super) struct Process {
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts this program with other arguments.
    pub(super) fn spawn(arguments: &[&str]) -> anyhow::Result<Process> {
        let program = env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        // Settings for a person's nodes must not steer a bench.
        for (name, _) in env::vars_os() {
            if name
                .to_str()
                .is_some_and(|name| name.starts_with("PENSUM_") && name != "PENSUM_LOG")
            {
                command.env_remove(name);
            }
        }
        command.env_remove("PENSUM_LOG").env("PENSUM_LOG", "warn");
        let mut child = command.spawn().context("cannot start this program again")?;
        let out = child.stdout.take().context("a child without standard output")?;
        Ok(Process {
            input: child.stdin.take(),
            child,
            lines: BufReader::new(out).lines(),
        })
    }

    pub(super) fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("the child has ended")
    }

    /// The next line that it prints.
    pub(super) async fn line(&mut self) -> anyhow::Result<String> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line())
            .await
            .context("a child said nothing")??;
        line.context("a child ended early")
    }

    /// Gives it a line to read.
    pub(super) async fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("a child whose standard input is closed")?;
        input.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(input.flush().await?)
    }

    /// Closes its standard input.
    pub(super) fn hush(&mut self) {
        drop(self.input.take());
    }

    /// Ends it as a power cut would, and waits until it is gone.
    pub(super) async fn kill(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Asks it to end, and waits until it has.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid()?)
            .ok()
            .and_then(Pid::from_raw)
            .context("a child without an id")?;
        kill_process(pid, Signal::TERM)?;
        self.wait().await
    }

    /// Waits until it has ended, and well.
    pub(super) async fn wait(mut self) -> anyhow::Result<()> {
        let status = tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .context("a child did not end")??;
        ensure!(status.success(), "a child ended with {status}");
        Ok(())
    }
}

/// `pensum serve` in a process of its own.
pub(super) struct Server {
    process: Process,
    pub(super) address: String,
    /// From just before the process was started until it said that it is ready.
    pub(super) ready_after: Duration,
}

impl Server {
    /// Starts a node and waits until it takes work.
    pub(super) async fn start(scratch: &Scratch, slots: usize) -> anyhow::Result<Server> {
        let (url, slots) = (scratch.url(), slots.to_string());
        let start = tick();
        let mut process = Process::spawn(&[
            "serve",
            "--db",
            url.as_str(),
            "--listen",
            "127.0.0.1:0",
            "--slots",
            slots.as_str(),
        ])?;
        let said = process.line().await?;
        let address = said
            .rsplit_once("http://")
            .map(|(_, address)| address.trim().to_owned());
        let address = address.with_context(|| format!("a node said `{said}` instead of its address"))?;
        until_ready(&address, start).await?;
        Ok(Server {
            process,
            address,
            ready_after: start.elapsed(),
        })
    }

    pub(super) fn pid(&self) -> anyhow::Result<u32> {
        self.process.pid()
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.process.stop().await
    }
}

async fn until_ready(address: &str, start: Instant) -> anyhow::Result<()> {
    let probe = Wire::get(address, "/readyz");
    loop {
        if let Ok(mut wire) = Wire::connect(address).await
            && matches!(wire.exchange(&probe).await, Ok(200))
        {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            bail!("the node at {address} was not ready within {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(LOOK).await;
    }
}
