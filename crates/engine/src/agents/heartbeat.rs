//! Heartbeats: leases renewed, and what was said and asked meanwhile.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::future::try_join_all;
use pensum_core::agent::AgentRecord;
use pensum_core::store::{Beat, Call, Checkpoint, Renewal};
use pensum_core::{ExecutionId, Name, NodeId, Outcome, Time};

use super::finish::{self, Ending, Last};
use super::runs::Run;
use super::token::{self, Token};
use super::wire::{BeatInput, EXECUTIONS_MAX, Faults, Heard, HeartbeatInput};
use crate::{Engine, EngineError, executor};

/// A run that its agent says something of.
struct Said {
    execution: ExecutionId,
    token: Token,
    beat: BeatInput,
}

impl Engine {
    /// Hears of an agent: renews the leases of its runs, keeps what they said, and tells what was asked of them. A run that took
    /// longer than its timeout is ended.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for wrong values; [`EngineError::Rejected`] where the agent is not registered or another
    /// session took over; those of the store, after which all of it can be sent again.
    pub async fn heartbeat_agent(&self, call: &Call, agent: &str, input: HeartbeatInput) -> Result<Heard, EngineError> {
        let said = check(&input.session, input.executions, call)?;
        let agent = Name::from(agent);
        let session = input
            .session
            .map(|session| token::session(&call.namespace, &agent, &session));
        let record = self.store().beat_agent(call, agent.clone(), session).await?;
        let (mine, foreign): (Vec<Said>, Vec<Said>) = said
            .into_iter()
            .partition(|said| is_of(&record, session, said.token.session));
        save(self, &mine).await?;
        let now = self.now();
        let mut heard = Heard {
            cancel: Vec::new(),
            pause: Vec::new(),
            lost: foreign.into_iter().map(|said| said.beat.execution_id).collect(),
            drain: record.draining_at.is_some(),
            lease_expires_at: now.plus(record.settings.lease()),
        };
        let (late, mine): (Vec<Said>, Vec<Said>) = mine.into_iter().partition(|said| said.token.is_overdue(now));
        heard.lost.extend(end_late(self, call, &agent, late).await?);
        renew(self, call, mine, &record, &mut heard, now).await?;
        Ok(heard)
    }
}

/// Checks what a heartbeat says.
fn check(session: &Option<String>, executions: Vec<BeatInput>, call: &Call) -> Result<Vec<Said>, EngineError> {
    let mut faults = Faults::default();
    if let Some(session) = session {
        faults.session(session);
    }
    faults.count("executions", executions.len(), EXECUTIONS_MAX);
    let mut named = HashSet::new();
    let mut said = Vec::with_capacity(executions.len());
    for (index, beat) in executions.into_iter().enumerate() {
        let path = format!("executions[{index}]");
        faults.usage(&path, beat.usage);
        faults.logs(&path, &beat.logs, call.now);
        if let Some(problem) = beat.checkpoint.as_ref().and_then(pensum_core::Json::problem) {
            faults.add(format!("{path}.checkpoint"), problem);
        }
        let execution = beat.execution_id.parse::<ExecutionId>();
        let token = beat.lease_token.parse::<Token>();
        match (execution, token) {
            (Ok(execution), Ok(_)) if !named.insert(execution) => {
                faults.add(format!("{path}.execution_id"), "is named twice in this request");
            }
            (Ok(execution), Ok(token)) => said.push(Said { execution, token, beat }),
            (execution, token) => {
                if let Err(wrong) = execution {
                    faults.add(format!("{path}.execution_id"), wrong);
                }
                if let Err(wrong) = token {
                    faults.add(format!("{path}.lease_token"), wrong);
                }
            }
        }
    }
    faults.finish()?;
    Ok(said)
}

/// True when a lease was given to the session that is named, or to any of the agent's where none is.
fn is_of(agent: &AgentRecord, session: Option<NodeId>, holder: NodeId) -> bool {
    match session {
        Some(session) => session == holder,
        None => agent.session == Some(holder) || agent.fenced.contains(&holder),
    }
}

/// Saves the checkpoints. First of all, for they alone can be refused by a store that is full, and can be sent again.
async fn save(engine: &Engine, said: &[Said]) -> Result<(), EngineError> {
    let now = engine.now();
    let writes = said.iter().filter_map(|said| {
        let checkpoint = Checkpoint {
            state: Some(said.beat.checkpoint.clone()?),
            ..Checkpoint::new(said.token.lease_of(said.execution.task))
        };
        Some(engine.store().checkpoint(checkpoint, now))
    });
    // A lease that is lost shows when it is renewed.
    try_join_all(writes).await?;
    Ok(())
}

/// Ends runs that took longer than their tasks allow.
async fn end_late(engine: &Engine, call: &Call, agent: &Name, late: Vec<Said>) -> Result<Vec<String>, EngineError> {
    let endings = late.into_iter().map(async |Said { execution, token, beat }| {
        let record = engine.store().task(&call.namespace, execution.task).await?;
        let name = beat.execution_id;
        let last = Last {
            usage: beat.usage,
            logs: beat.logs,
            progress: beat.progress,
        };
        let ending = record.map(|record| {
            let outcome = Outcome::Retry {
                error: executor::timed_out(&record.spec),
                after: None,
            };
            let run = Arc::new(Run::of(&call.namespace, &record));
            let ending = Ending::new(engine, execution, token, run, outcome, last);
            Ending {
                agent: Some(agent.clone()),
                ..ending
            }
        });
        Ok::<_, EngineError>((name, ending))
    });
    let (names, endings): (Vec<String>, Vec<Option<Ending>>) = try_join_all(endings).await?.into_iter().unzip();
    let endings: Vec<Ending> = endings.into_iter().flatten().collect();
    // Refused is what was lost before.
    finish::bring(engine, call, &endings).await?;
    Ok(names)
}

async fn renew(
    engine: &Engine,
    call: &Call,
    said: Vec<Said>,
    record: &AgentRecord,
    heard: &mut Heard,
    now: Time,
) -> Result<(), EngineError> {
    if said.is_empty() {
        return Ok(());
    }
    let mut names = Vec::with_capacity(said.len());
    let mut beats = Vec::with_capacity(said.len());
    for Said { execution, token, beat } in said {
        names.push(beat.execution_id);
        beats.push(Beat {
            lease: token.lease_of(execution.task),
            progress: beat.progress.map(Into::into),
            logs: finish::lines(beat.logs, execution.attempt, now),
        });
    }
    let shown = match engine.hub().is_watched() {
        true => beats.clone(),
        false => Vec::new(),
    };
    let renewals = engine.store().renew(beats, record.settings.lease(), now).await?;
    for (beat, renewal) in shown.into_iter().zip(&renewals) {
        if *renewal == Renewal::Lost {
            continue;
        }
        if let Some(progress) = beat.progress {
            finish::announce_progress(engine, call, beat.lease.task, progress, now);
        }
        finish::announce_lines(engine, call, beat.lease.task, &beat.logs);
    }
    for (name, renewal) in names.into_iter().zip(renewals) {
        match renewal {
            Renewal::Held { cancel: true, .. } => heard.cancel.push(name),
            Renewal::Held { pause: true, .. } => heard.pause.push(name),
            Renewal::Held { .. } => {}
            Renewal::Lost => heard.lost.push(name),
        }
    }
    Ok(())
}
