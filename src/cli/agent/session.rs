//! The loop of an agent: it polls, has tasks run, and says how they ended.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::{BoxFuture, OptionFuture};
use pensum_core::seam::Random;
use pensum_engine::SystemRandom;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::super::client::Client;
use super::super::exit::Exit;
use super::super::output;
use super::super::signals::Signals;
use super::path;
use super::runner::{End, Runner, Running};
use super::work::{Beaten, Ended, Given, Polled};

/// How long a poll waits for work, in milliseconds.
const WAIT_MS: u64 = 20_000;
/// The longest time between two heartbeats while something runs: a cancel is heard within it.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// The shortest time between two heartbeats.
const BEAT_MIN: Duration = Duration::from_millis(100);
/// A share of the lease: the longest time between two heartbeats, so that one of them may come late.
const BEATS_PER_LEASE: f64 = 3.0;
/// Most results of one request.
const RESULTS_MAX: usize = 1_000;
/// What a request has of results or words from runs before the rest waits for the next one, in bytes; half of what a node takes.
const BODY_BYTES: usize = 8 << 20;
/// How long programs that lost their tasks have to end.
const FAREWELL: Duration = Duration::from_secs(3);
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
pub(super) struct Pause {
    times: u32,
}

impl Pause {
    pub(super) fn next(&mut self) -> Duration {
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
    /// Nothing is asked before then: the node was not there.
    away_until: Option<Instant>,
    /// Nothing is taken before then: the program crashed.
    crashed_until: Option<Instant>,
    is_draining: bool,
}

/// A poll on its way.
struct Asked<'a> {
    /// It is not sent before then.
    rests_until: Option<Instant>,
    answer: BoxFuture<'a, anyhow::Result<String>>,
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
            away_until: None,
            crashed_until: None,
            is_draining: false,
        }
    }

    /// Works until it is told to stop, and ends in good order.
    ///
    /// # Errors
    /// When it cannot go on, such as after another process took over. Nothing that it started runs any more then.
    pub(super) async fn run(&mut self, stop: &mut Stop) -> anyhow::Result<Exit> {
        let ended = match self.work(stop).await {
            Ok(()) => self.finish(stop).await,
            Err(error) => Err(error),
        };
        if ended.is_err() {
            self.abandon().await;
        }
        ended
    }

    /// Works until a signal comes, or another process takes over.
    async fn work(&mut self, stop: &mut Stop) -> anyhow::Result<()> {
        let mut beat = self.beats();
        // A poll stays where it waits while runs end and heartbeats go: the node need not take it up again with each.
        let mut asked: Option<Asked<'_>> = None;
        loop {
            let rests_until = self.away_until.max(self.crashed_until);
            asked = asked
                .filter(|asked| asked.rests_until == rests_until)
                .or_else(|| self.ask(rests_until));
            let answer = OptionFuture::from(asked.as_mut().map(|asked| &mut asked.answer));
            let came = tokio::select! {
                biased;
                exit = stop.next() => Came::Signal(exit),
                Some(end) = self.ended.recv() => Came::Ended(end),
                _ = beat.tick(), if !self.running.is_empty() || !self.results.is_empty() => Came::Beat,
                Some(answer) = answer => Came::Polled(answer),
            };
            if matches!(came, Came::Polled(_)) {
                asked = None;
            }
            match came {
                Came::Signal(_) => return Ok(()),
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

    /// The times of heartbeats.
    fn beats(&self) -> Interval {
        let lease = self.registration["lease"].as_f64().map(|lease| lease / BEATS_PER_LEASE);
        let every = lease.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let mut beats = interval(every.unwrap_or(BEAT_EVERY).clamp(BEAT_MIN, BEAT_EVERY));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beats
    }

    /// Asks for work where there is a free slot, and not before the end of a pause.
    fn ask(&self, rests_until: Option<Instant>) -> Option<Asked<'a>> {
        let free = self.max.saturating_sub(self.running.len());
        let (client, path, question) = (self.client, format!("{}/poll", self.base), self.question(free));
        let answer = async move {
            if let Some(until) = rests_until {
                tokio::time::sleep_until(until).await;
            }
            client.post(&path, &question).await
        };
        (free > 0).then(|| Asked {
            rests_until,
            answer: Box::pin(answer),
        })
    }

    fn question(&self, free: usize) -> Value {
        // What has ended and was not heard of yet is not to be given again, either.
        let unheard = self.results.iter().map(|ended| &ended.execution_id);
        let have: Vec<&String> = self.running.keys().chain(unheard).collect();
        json!({ "session": self.session, "max": free, "wait_ms": WAIT_MS, "have": have })
    }

    /// An answer, or `None` where the node could not be reached: then it is asked again after a pause.
    async fn heard(&mut self, answer: anyhow::Result<String>) -> anyhow::Result<Option<String>> {
        let error = match answer {
            Ok(answer) => {
                if self.outage.times > 0 {
                    output::warn("the node is back");
                }
                self.outage = Pause::default();
                self.away_until = None;
                return Ok(Some(answer));
            }
            Err(error) => error,
        };
        // Another store stands behind the address now, or somebody removed the agent while it was silent.
        let error = match Exit::of(&error) {
            Some(Exit::NotFound) => match self.client.post("/api/v1/agents", &self.registration).await {
                Ok(_) => return Ok(None),
                Err(error) => error,
            },
            _ => error,
        };
        if !matches!(Exit::of(&error), Some(Exit::Unreachable | Exit::Failed)) {
            return Err(error);
        }
        if self.outage.times == 0 {
            output::warn(&format!("{error}; it is tried again until it answers"));
        }
        self.away_until = Some(Instant::now() + self.outage.next());
        Ok(None)
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
            self.crashed_until = Some(Instant::now() + pause);
        } else {
            self.crashes = Pause::default();
            self.crashed_until = None;
        }
        self.results.extend(end.ended);
    }

    /// Says how runs ended. What could not be said is said with the next one, or the next heartbeat.
    async fn report(&mut self) {
        while !self.results.is_empty() {
            let mut bytes = 0;
            let fits = |ended: &&Ended| {
                let is_first = bytes == 0;
                bytes += ended.size();
                is_first || bytes <= BODY_BYTES
            };
            let count = self.results.iter().take(RESULTS_MAX).take_while(fits).count();
            let sent = match self.send_results(count).await {
                Ok(answer) => serde_json::from_str::<Value>(&answer).unwrap_or_default(),
                Err(error) => return tracing::debug!(%error, "results wait"),
            };
            let ended: Vec<Ended> = self.results.drain(..count).collect();
            for (item, ended) in sent["results"].as_array().into_iter().flatten().zip(ended) {
                let status = item["status"].as_str().unwrap_or_default();
                if matches!(status, "accepted" | "repeat") {
                    continue;
                }
                let what = item["message"].as_str().unwrap_or(status);
                output::warn(&format!("{}: {what}", ended.execution_id));
                // A run of which nothing is heard would be given again.
                if status == "invalid" {
                    self.results.extend(ended.refused(what));
                }
            }
        }
    }

    /// Sends the first results, after the states that their runs saved last.
    async fn send_results(&mut self, count: usize) -> anyhow::Result<String> {
        let saved = |ended: &Ended| {
            let checkpoint = ended.checkpoint.as_ref()?;
            Some(
                json!({ "execution_id": ended.execution_id, "lease_token": ended.lease_token, "checkpoint": checkpoint }),
            )
        };
        let executions: Vec<Value> = self.results[..count].iter().filter_map(saved).collect();
        if !executions.is_empty() {
            let body = json!({ "session": self.session, "executions": executions });
            self.client.post(&format!("{}/heartbeat", self.base), &body).await?;
            self.results[..count]
                .iter_mut()
                .for_each(|ended| ended.checkpoint = None);
        }
        let body = json!({ "results": self.results[..count] });
        self.client.post("/api/v1/executions/complete", &body).await
    }

    async fn beat(&mut self) -> anyhow::Result<()> {
        self.report().await;
        let mut executions = Vec::with_capacity(self.running.len());
        let mut bytes = 0;
        for (id, running) in &self.running {
            let mut beat = json!({ "execution_id": id, "lease_token": running.given.lease_token });
            if bytes < BODY_BYTES {
                let mut said = running.said.lock();
                said.take(&mut beat);
                if let Some(checkpoint) = said.take_checkpoint() {
                    beat["checkpoint"] = checkpoint;
                }
                bytes += beat.to_string().len();
            }
            executions.push(beat);
        }
        let body = json!({ "session": self.session, "executions": executions });
        let answer = self.client.post(&format!("{}/heartbeat", self.base), &body).await;
        let Some(answer) = self.heard(answer).await? else {
            self.take_back(executions);
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

    /// Keeps for the next heartbeat what this one could not say.
    fn take_back(&self, executions: Vec<Value>) {
        for beat in executions {
            let running = beat["execution_id"].as_str().and_then(|id| self.running.get(id));
            if let Some(running) = running {
                running.said.lock().take_back(beat);
            }
        }
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

    /// Ends what runs at once: another process has it, or nobody hears of it any more.
    async fn abandon(&mut self) {
        self.running.values().for_each(Running::abandon);
        let ended = async {
            while !self.running.is_empty() {
                let Some(end) = self.ended.recv().await else { return };
                self.running.remove(&end.execution_id);
            }
        };
        // What is left is killed as this process ends.
        let _ = tokio::time::timeout(FAREWELL, ended).await;
    }

    /// Lets what runs come to its end within the grace, gives back what does not, and leaves. A second signal ends at once, and
    /// decides the exit code.
    async fn finish(&mut self, stop: &mut Stop) -> anyhow::Result<Exit> {
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
        let mut ended = Exit::Ok;
        let mut beat = self.beats();
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
                Came::Signal(exit) => {
                    ended = exit;
                    break;
                }
            }
        }
        self.report().await;
        let leave = json!({ "session": self.session });
        if let Err(error) = self.client.post(&format!("{}/leave", self.base), &leave).await {
            tracing::debug!(%error, "the node will notice by itself that the agent has gone");
        }
        Ok(ended)
    }
}
