//! Polls: results in, tasks out.

use std::time::Duration;

use pensum_core::agent::AgentRecord;
use pensum_core::store::{AgentClaim, Beat, Call, ClaimRequest, Claimed};
use pensum_core::view::TaskView;
use pensum_core::{ExecutionId, Name, NodeId, Rejected, StoreError, TaskId, Time};
use tokio_util::sync::CancellationToken;

use super::parked::Place;
use super::results;
use super::runs::Run;
use super::token::{self, Token};
use super::wire::{EXECUTIONS_MAX, Faults, Given, POLL_TASKS_MAX, POLL_WAIT_MS_MAX, PollInput, Polled};
use crate::hub::EngineEvent;
use crate::{Engine, EngineError};

/// A share of an agent's lease: the longest that one claim waits, so that the agent is heard in between.
const WAIT_DIVISOR: u32 = 3;
/// How long to wait before asking again a store that does not hold claims.
const LOOK_MAX: Duration = Duration::from_millis(250);
/// An empty answer that took at least this long was held by the store, which can be asked again at once.
const HELD_MIN: Duration = Duration::from_millis(50);
/// A share of an agent's lease: what is given again with less than this left is renewed first.
const RENEW_DIVISOR: u32 = 2;

/// A poll whose values are right.
struct Poll<'a> {
    call: &'a Call,
    agent: Name,
    session: NodeId,
    max: usize,
    have: Vec<ExecutionId>,
    lease: Duration,
    /// When it is to have an answer.
    until: Time,
    /// The agent was draining when the poll began.
    is_draining: bool,
}

impl Engine {
    /// Takes an agent's results, then gives it tasks, for which it may wait. It answers without tasks as soon as `over` is
    /// cancelled, this node stops, or a newer poll of the session comes.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for wrong values; [`EngineError::Rejected`] where the agent is not registered or another
    /// session took over; those of the store. Nothing was given then, and what was taken is a repeat the next time.
    pub async fn poll_agent(
        &self,
        call: &Call,
        agent: &str,
        input: PollInput,
        over: &CancellationToken,
    ) -> Result<Polled, EngineError> {
        let have = check(&input, call)?;
        let agent = Name::from(agent);
        let session = token::session(&call.namespace, &agent, &input.session);
        let record = enter(self, call, &agent, session).await?;
        let place = self.inner_agents().parked.enter(session);
        let accepted = match input.results.is_empty() {
            true => Vec::new(),
            false => results::take(self, call, input.results, Some((&agent, session))).await?,
        };
        let now = self.now();
        let mut poll = Poll {
            call,
            agent,
            session,
            max: input.max,
            have,
            lease: record.settings.lease(),
            until: now.plus(Duration::from_millis(input.wait_ms)),
            is_draining: record.draining_at.is_some(),
        };
        let tasks = match poll.tasks(self, &place, over).await {
            Ok(tasks) => tasks,
            // What was taken is to be known; whatever is wrong will be so at the next poll.
            Err(_) if !accepted.is_empty() => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Polled {
            tasks,
            accepted,
            drain: poll.is_draining,
        })
    }
}

/// Checks what a poll says; gives what the agent has.
fn check(input: &PollInput, call: &Call) -> Result<Vec<ExecutionId>, EngineError> {
    let mut faults = Faults::default();
    faults.session(&input.session);
    if !(1..=POLL_TASKS_MAX).contains(&input.max) {
        faults.add("max", format!("must be 1 to {POLL_TASKS_MAX}"));
    }
    if input.wait_ms > POLL_WAIT_MS_MAX {
        faults.add("wait_ms", format!("must be 0 to {POLL_WAIT_MS_MAX}"));
    }
    faults.count("have", input.have.len(), EXECUTIONS_MAX);
    let mut have = Vec::with_capacity(input.have.len());
    for (index, execution) in input.have.iter().enumerate() {
        match execution.parse() {
            Ok(execution) => have.push(execution),
            Err(wrong) => faults.add(format!("have[{index}]"), wrong),
        }
    }
    results::check(&mut faults, &input.results, call);
    faults.finish()?;
    Ok(have)
}

/// Has the session heard, and opened where it is new.
async fn enter(engine: &Engine, call: &Call, agent: &Name, session: NodeId) -> Result<AgentRecord, EngineError> {
    match engine.store().beat_agent(call, agent.clone(), Some(session)).await {
        Err(StoreError::Rejected(Rejected::SessionFenced(_))) => {
            // One that was replaced before is refused here again.
            let record = engine.store().open_session(call, agent.clone(), session).await?;
            // What the session before it held is free.
            engine.wake_claims();
            Ok(record)
        }
        answer => Ok(answer?),
    }
}

impl Poll<'_> {
    /// Tasks, as soon as there are some.
    async fn tasks(
        &mut self,
        engine: &Engine,
        place: &Place<'_>,
        over: &CancellationToken,
    ) -> Result<Vec<Given>, EngineError> {
        let stopping = &engine.live().stopping;
        let ended = async {
            tokio::select! {
                () = place.superseded.cancelled() => {}
                () = stopping.cancelled() => {}
                () = over.cancelled() => {}
            }
        };
        tokio::select! {
            biased;
            () = ended => Ok(Vec::new()),
            tasks = self.claim_until(engine, place) => tasks,
        }
    }

    async fn claim_until(&mut self, engine: &Engine, place: &Place<'_>) -> Result<Vec<Given>, EngineError> {
        // The poll before this one may be at its last claim.
        let _turn = place.turn.lock().await;
        let agents = engine.inner_agents();
        loop {
            let mut woken = std::pin::pin!(agents.wake.notified());
            woken.as_mut().enable();
            let mut asked = std::pin::pin!(agents.asked.notified());
            asked.as_mut().enable();
            let sent = engine.now();
            let claimed = tokio::select! {
                biased;
                claimed = engine.store().claim(self.request(sent), sent) => claimed?,
                // What is taken back here comes with the next claim.
                () = asked.as_mut() => Vec::new(),
            };
            if !claimed.is_empty() {
                return self.give(engine, claimed, sent).await;
            }
            let now = engine.now();
            if now >= self.until {
                return Ok(Vec::new());
            }
            if now.since(sent) < HELD_MIN || self.is_draining {
                let nap = self.until.min(now.plus(LOOK_MAX.min(self.lease / WAIT_DIVISOR)));
                tokio::select! {
                    biased;
                    () = asked => {}
                    // A draining agent gets nothing, whatever there is.
                    () = woken, if !self.is_draining => {}
                    () = engine.seams().clock.sleep_until(nap) => {}
                }
            }
            if self.begins_to_drain(engine).await? {
                return Ok(Vec::new());
            }
        }
    }

    /// True when the agent was asked to drain since the poll began: it is to know that it may end.
    async fn begins_to_drain(&mut self, engine: &Engine) -> Result<bool, EngineError> {
        let call = Call {
            now: engine.now(),
            ..self.call.clone()
        };
        let heard = engine.store().beat_agent(&call, self.agent.clone(), Some(self.session));
        let is_draining = heard.await?.draining_at.is_some();
        Ok(std::mem::replace(&mut self.is_draining, is_draining) != is_draining && is_draining)
    }

    fn request(&self, now: Time) -> ClaimRequest {
        ClaimRequest {
            agent: Some(AgentClaim {
                namespace: self.call.namespace.clone(),
                name: self.agent.clone(),
                have: self.have.clone(),
            }),
            wait: self.until.since(now).min(self.lease / WAIT_DIVISOR),
            ..ClaimRequest::new(self.session, self.agent.clone(), self.max, self.lease)
        }
    }

    /// What was claimed, as the agent gets it.
    async fn give(&self, engine: &Engine, mut claimed: Vec<Claimed>, sent: Time) -> Result<Vec<Given>, EngineError> {
        self.renew_old(engine, &mut claimed).await?;
        let watched = engine.hub().is_watched();
        let unknown = |claimed: &&Claimed| claimed.bare.is_none();
        let tasks: Vec<TaskId> = claimed.iter().filter(unknown).map(|c| c.lease.task).collect();
        let found = match tasks.is_empty() {
            true => Vec::new(),
            false => engine.store().some_tasks(&self.call.namespace, &tasks).await?,
        };
        let mut found = found.into_iter();
        let now = engine.now();
        let mut given = Vec::with_capacity(claimed.len());
        for claimed in claimed {
            let record = claimed.record().or_else(|| found.next().flatten());
            // Between the claim and this look it may have been taken away.
            let held = record.and_then(|record| {
                let lease = record.lifecycle.lease.filter(|lease| lease.id == claimed.lease.lease)?;
                Some((record, lease))
            });
            let Some((record, lease)) = held else { continue };
            let granted = claimed.lifecycle.lease.unwrap_or(lease);
            // A lease that nobody renewed tells when it was given, so a task that is given again has the same token.
            let claimed_at = granted.expires_at.minus(self.lease);
            let token = Token {
                lease: lease.id,
                session: lease.node,
                deadline: claimed.spec.timeout().map(|timeout| claimed_at.plus(timeout)),
            };
            if watched && claimed_at >= sent {
                engine.hub().emit(EngineEvent::Started {
                    task: record.id,
                    namespace: self.call.namespace.clone(),
                    handler: record.spec.handler.clone(),
                    attempt: record.lifecycle.attempt,
                    at: claimed_at,
                });
            }
            let execution = ExecutionId {
                task: record.id,
                attempt: record.lifecycle.attempt,
            };
            engine.inner_agents().runs.note(Run::of(&self.call.namespace, &record));
            given.push(Given {
                task: TaskView::of(record, now),
                execution_id: execution.to_string(),
                lease_token: token.to_string(),
                lease_expires_at: lease.expires_at,
                checkpoint: claimed.checkpoint,
            });
        }
        Ok(given)
    }

    /// Renews what is given again so late that the lease could end before the first heartbeat.
    async fn renew_old(&self, engine: &Engine, claimed: &mut [Claimed]) -> Result<(), EngineError> {
        let now = engine.now();
        let soon = now.plus(self.lease / RENEW_DIVISOR);
        let is_old = |claimed: &&Claimed| claimed.lifecycle.lease.is_some_and(|lease| lease.expires_at < soon);
        let beats: Vec<Beat> = claimed
            .iter()
            .filter(is_old)
            .map(|claimed| Beat {
                lease: claimed.lease,
                progress: None,
                logs: Vec::new(),
            })
            .collect();
        if !beats.is_empty() {
            engine.store().renew(beats, self.lease, now).await?;
            for claimed in claimed.iter_mut().filter(|claimed| is_old(&&**claimed)) {
                // Its lease ends later now.
                claimed.bare = None;
            }
        }
        Ok(())
    }
}
