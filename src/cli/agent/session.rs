//! The loop of an agent: it polls, has tasks run, and says how they ended.

use std::collections::HashMap;
use std::time::Duration;

use pensum_core::seam::Random;
use pensum_engine::SystemRandom;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::super::client::Client;
use super::super::exit::{Exit, Failure};
use super::super::output;
use super::super::signals::Signals;
use super::path;
use super::runner::{End, Runner, Running};
use super::work::{Beaten, Ended, Given, Polled};

/// How long a poll waits for work, in milliseconds.
const WAIT_MS: u64 = 20_000;
/// Time between two heartbeats while something runs: a cancel is heard within it.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// The first and the longest pause after the node could not be reached, or the program crashed.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What ends an agent.
pub(super) enum Stop {
    /// A signal to this process.
    Signals(Signals),
    /// The end of the node that runs it.
    Token(CancellationToken),
}

impl Stop {
    async fn next(&mut self) -> Exit {
        match self {
            Stop::Signals(signals) => signals.next().await,
            Stop::Token(token) => {
                token.cancelled().await;
                Exit::Ok
            }
        }
    }
}

/// Growing pauses.
#[derive(Default)]
struct Pause {
    times: u32,
}

impl Pause {
    fn next(&mut self) -> Duration {
        let pause = PAUSE.0.saturating_mul(1 << self.times.min(10)).min(PAUSE.1);
        self.times += 1;
        // Many agents of a node that comes back do not come all at once.
        pause.mul_f64(0.5 + SystemRandom.bits() as f64 / u64::MAX as f64 / 2.0)
    }
}

/// One process that polls for an agent.
pub(super) struct Session<'a> {
    client: &'a Client,
    base: String,
    session: String,
    max: usize,
    runner: Runner,
    grace: Duration,
    registration: Value,
    running: HashMap<String, Running>,
    /// Ends that no answer has confirmed yet.
    results: Vec<Ended>,
    ends: mpsc::UnboundedSender<End>,
    ended: mpsc::UnboundedReceiver<End>,
    outage: Pause,
    crashes: Pause,
    /// Nothing is taken before then: the program crashed, or the node was not there.
    rests_until: Option<Instant>,
    is_draining: bool,
}

/// What a loop came by.
enum Came {
    Polled(anyhow::Result<String>),
    Ended(End),
    Beat,
    Signal(Exit),
}

impl<'a> Session<'a> {
    pub(super) fn new(
        client: &'a Client,
        id: &str,
        registration: Value,
        max: usize,
        runner: Runner,
        grace: Duration,
    ) -> Session<'a> {
        let (ends, ended) = mpsc::unbounded_channel();
        Session {
            client,
            base: path(id),
            session: format!("{:016x}", SystemRandom.bits()),
            max,
            runner,
            grace,
            registration,
            running: HashMap::new(),
            results: Vec::new(),
            ends,
            ended,
            outage: Pause::default(),
            crashes: Pause::default(),
            rests_until: None,
            is_draining: false,
        }
    }

    /// Works until a signal comes, or another process takes over.
    pub(super) async fn work(&mut self, stop: &mut Stop) -> anyhow::Result<Exit> {
        let mut beat = interval(BEAT_EVERY);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let came = {
                let free = self.max.saturating_sub(self.running.len());
                let poll = poll(self.client, &self.base, self.question(free), self.rests_until, free > 0);
                tokio::select! {
                    biased;
                    exit = stop.next() => Came::Signal(exit),
                    Some(end) = self.ended.recv() => Came::Ended(end),
                    _ = beat.tick(), if !self.running.is_empty() => Came::Beat,
                    answer = poll => Came::Polled(answer),
                }
            };
            match came {
                Came::Signal(exit) => return Ok(exit),
                Came::Ended(end) => {
                    self.take_end(end);
                    self.report().await;
                }
                Came::Beat => self.beat().await?,
                Came::Polled(answer) => {
                    if let Some(polled) = self.heard(answer).await? {
                        let polled: Polled = serde_json::from_str(&polled)?;
                        self.note_drain(polled.drain);
                        for given in polled.tasks {
                            self.start(given);
                        }
                    }
                }
            }
        }
    }

    fn question(&self, free: usize) -> Value {
        // What has ended and was not heard of yet is not to be given again, either.
        let unheard = self.results.iter().map(|ended| &ended.execution_id);
        let have: Vec<&String> = self.running.keys().chain(unheard).collect();
        json!({ "session": self.session, "max": free.max(1), "wait_ms": WAIT_MS, "have": have })
    }

    /// An answer, or `None` where the node could not be reached: then it is asked again after a pause.
    async fn heard(&mut self, answer: anyhow::Result<String>) -> anyhow::Result<Option<String>> {
        let error = match answer {
            Ok(answer) => {
                if self.outage.times > 0 {
                    output::warn("the node is back");
                }
                self.outage = Pause::default();
                self.rests_until = None;
                return Ok(Some(answer));
            }
            Err(error) => error,
        };
        match error.downcast_ref::<Failure>().map(|failure| failure.exit) {
            Some(Exit::Unreachable | Exit::Failed) => {
                if self.outage.times == 0 {
                    output::warn(&format!("{error}; it is tried again until it answers"));
                }
                self.rests_until = Some(Instant::now() + self.outage.next());
                Ok(None)
            }
            // Another store stands behind the address now, or somebody removed the agent while it was silent.
            Some(Exit::NotFound) => {
                self.client.post("/api/v1/agents", &self.registration).await?;
                Ok(None)
            }
            _ => Err(error),
        }
    }

    fn start(&mut self, given: Given) {
        if self.running.contains_key(&given.execution_id) {
            return;
        }
        match self.runner.start(given) {
            Ok((running, end)) => {
                self.running.insert(running.given.execution_id.clone(), running);
                let ends = self.ends.clone();
                tokio::spawn(async move {
                    // Nobody waits for it once the agent has gone.
                    let _ = ends.send(end.await);
                });
            }
            Err(end) => {
                let _ = self.ends.send(*end);
            }
        }
    }

    fn take_end(&mut self, end: End) {
        self.running.remove(&end.execution_id);
        if end.crashed {
            let pause = self.crashes.next();
            output::warn(&format!(
                "the program crashed or could not be started; the next task in {:.1} s",
                pause.as_secs_f64()
            ));
            self.rests_until = Some(Instant::now() + pause);
        } else {
            self.crashes = Pause::default();
        }
        self.results.extend(end.ended);
    }

    /// Says how runs ended. What could not be said is said with the next one, or the next heartbeat.
    async fn report(&mut self) {
        if self.results.is_empty() {
            return;
        }
        let body = json!({ "results": self.results });
        match self.client.post("/api/v1/executions/complete", &body).await {
            Ok(answer) => {
                self.results.clear();
                let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
                for item in answer["results"].as_array().into_iter().flatten() {
                    if !matches!(item["status"].as_str(), Some("accepted" | "repeat")) {
                        let what = item["message"].as_str().or(item["status"].as_str()).unwrap_or_default();
                        output::warn(&format!("{}: {what}", output::plain(&item["execution_id"])));
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "results wait"),
        }
    }

    async fn beat(&mut self) -> anyhow::Result<()> {
        self.report().await;
        let mut executions = Vec::with_capacity(self.running.len());
        for (id, running) in &self.running {
            let mut beat = json!({ "execution_id": id, "lease_token": running.given.lease_token });
            let mut said = running.said.lock();
            said.take(&mut beat);
            if let Some(checkpoint) = said.take_checkpoint() {
                beat["checkpoint"] = checkpoint;
            }
            executions.push(beat);
        }
        let body = json!({ "session": self.session, "executions": executions });
        let answer = self.client.post(&format!("{}/heartbeat", self.base), &body).await;
        let Some(answer) = self.heard(answer).await? else {
            return Ok(());
        };
        let beaten: Beaten = serde_json::from_str(&answer)?;
        self.note_drain(beaten.drain);
        for (id, running) in &self.running {
            if beaten.lost.contains(id) {
                running.abandon();
            } else if beaten.cancel.contains(id) {
                running.cancel(self.grace);
            } else {
                running.pause(beaten.pause.contains(id)).await;
            }
        }
        Ok(())
    }

    fn note_drain(&mut self, drain: bool) {
        if drain != self.is_draining {
            self.is_draining = drain;
            output::warn(if drain {
                "draining: nothing more is taken"
            } else {
                "work is taken again"
            });
        }
    }

    /// Ends what runs at once: another process has it.
    pub(super) fn abandon(&self) {
        self.running.values().for_each(Running::abandon);
    }

    /// Lets what runs come to its end within the grace, gives back what does not, and leaves. A second signal ends at once.
    pub(super) async fn finish(&mut self, stop: &mut Stop) -> anyhow::Result<()> {
        let grace = self.grace;
        if !self.running.is_empty() {
            output::warn(&format!(
                "{} running; they have {} s",
                self.running.len(),
                grace.as_secs_f64()
            ));
        }
        let mut over = Box::pin(sleep(grace));
        let mut is_over = false;
        let mut beat = interval(BEAT_EVERY);
        while !self.running.is_empty() {
            let came = tokio::select! {
                biased;
                exit = stop.next(), if !matches!(stop, Stop::Token(_)) => Came::Signal(exit),
                Some(end) = self.ended.recv() => Came::Ended(end),
                () = &mut over, if !is_over => Came::Polled(Ok(String::new())),
                _ = beat.tick() => Came::Beat,
            };
            match came {
                Came::Ended(end) => {
                    self.take_end(end);
                    self.report().await;
                }
                Came::Polled(_) => {
                    is_over = true;
                    self.running.values().for_each(|running| running.release(self.grace));
                }
                Came::Beat => self.beat().await?,
                Came::Signal(_) => break,
            }
        }
        self.report().await;
        let leave = json!({ "session": self.session });
        if let Err(error) = self.client.post(&format!("{}/leave", self.base), &leave).await {
            tracing::debug!(%error, "the node will notice by itself that the agent has gone");
        }
        Ok(())
    }
}

/// Asks for work, after the pause that there may be; for ever where no slot is free.
async fn poll(
    client: &Client,
    base: &str,
    question: Value,
    rests_until: Option<Instant>,
    has_room: bool,
) -> anyhow::Result<String> {
    if !has_room {
        return std::future::pending().await;
    }
    if let Some(until) = rests_until {
        tokio::time::sleep_until(until).await;
    }
    client.post(&format!("{base}/poll"), &question).await
}
