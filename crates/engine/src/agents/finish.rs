//! Ends of runs that agents held, on their way to the store.

use std::sync::Arc;

use pensum_core::outcome::Usage;
use pensum_core::store::{Applied, Call, Finish, LogLine, LogStream, Rejected};
use pensum_core::{ExecutionId, Name, Outcome, StoreError, Time};

use super::runs::Run;
use super::token::Token;
use super::wire::{LogInput, ProgressInput, UsageInput};
use crate::completer::{self, Ended};
use crate::hub::EngineEvent;
use crate::run::tidy;
use crate::{Engine, EngineError};

/// The end of a run.
pub(super) struct Ending {
    pub(super) execution: ExecutionId,
    /// The agent that held it, as far as it is registered.
    pub(super) agent: Option<Name>,
    /// When the run began, as far as its token tells.
    pub(super) claimed_at: Option<Time>,
    /// The run before.
    pub(super) run: Arc<Run>,
    pub(super) finish: Finish,
}

/// What a run said last, and what it used.
pub(super) struct Last {
    pub(super) usage: Option<UsageInput>,
    pub(super) logs: Vec<LogInput>,
    pub(super) progress: Option<ProgressInput>,
}

impl Ending {
    pub(super) fn new(
        engine: &Engine,
        execution: ExecutionId,
        token: Token,
        run: Arc<Run>,
        outcome: Outcome,
        last: Last,
    ) -> Ending {
        let now = engine.now();
        let mut finish = Finish::new(token.lease_of(execution.task), outcome);
        if matches!(finish.outcome, Outcome::Retry { .. }) {
            finish.draw = engine.seams().random.unit();
        }
        // Timeouts count from the claim; without one only the start of the attempt is known.
        let claimed_at = token
            .deadline
            .zip(run.timeout)
            .map(|(deadline, timeout)| deadline.minus(timeout));
        let started_at = claimed_at.or(run.started_at).unwrap_or(now);
        finish.usage = usage(last.usage.unwrap_or_default(), now.since(started_at).as_secs_f64());
        finish.logs = lines(last.logs, execution.attempt, now);
        finish.progress = last.progress.map(Into::into);
        Ending {
            execution,
            agent: None,
            claimed_at,
            run,
            finish,
        }
    }
}

fn usage(said: UsageInput, measured: f64) -> Usage {
    let wall_seconds = said.wall_seconds.unwrap_or(measured);
    let share = said.cpu_seconds.filter(|_| wall_seconds > 0.0);
    Usage {
        cpu_seconds: said.cpu_seconds,
        cpu_percent: said.cpu_percent.or(share.map(|cpu| 100.0 * cpu / wall_seconds)),
        memory_mb: said.memory_mb,
        read_mb: said.read_mb,
        written_mb: said.written_mb,
        wall_seconds,
    }
}

/// Log lines as the store keeps them.
pub(super) fn lines(said: Vec<LogInput>, attempt: u32, now: Time) -> Vec<LogLine> {
    let line = |mut line: LogInput| {
        tidy(&mut line.message);
        LogLine {
            at: line.at.unwrap_or(now),
            attempt,
            stream: line.stream.unwrap_or(LogStream::Log),
            message: line.message,
        }
    };
    said.into_iter().map(line).collect()
}

/// Brings ends of runs to the store, all in one call, and passes on what they did; per-item results, in order.
pub(super) async fn bring(
    engine: &Engine,
    call: &Call,
    endings: &[Ending],
) -> Result<Vec<Result<(), Rejected>>, EngineError> {
    if endings.is_empty() {
        return Ok(Vec::new());
    }
    let now = engine.now();
    let finishes = endings.iter().map(|ending| ending.finish.clone()).collect();
    let answers = match engine.store().finish(finishes, now).await {
        Ok(answers) => answers,
        Err(StoreError::Rejected(_)) if endings.len() > 1 => {
            // Refused as a whole, one of them is to blame.
            let mut answers = Vec::with_capacity(endings.len());
            for ending in endings {
                answers.extend(Box::pin(bring(engine, call, std::slice::from_ref(ending))).await?);
            }
            return Ok(answers);
        }
        Err(StoreError::Rejected(rejected)) => vec![Err(rejected)],
        Err(error) => return Err(error.into()),
    };
    let watched = engine.hub().is_watched();
    let settle = |(ending, answer): (&Ending, Result<Applied, Rejected>)| {
        answer.map(|applied| settle(engine, call, ending, &applied, watched, now))
    };
    let settled = endings.iter().zip(answers).map(settle).collect();
    for ending in endings {
        engine.inner_agents().runs.forget(ending.finish.lease.lease);
    }
    engine.wake_claims();
    Ok(settled)
}

fn settle(engine: &Engine, call: &Call, ending: &Ending, applied: &Applied, watched: bool, now: Time) {
    let Ending { run, finish, .. } = ending;
    if let Some(agent) = &ending.agent {
        engine
            .inner_agents()
            .health
            .note(&call.namespace, agent, &finish.outcome);
    }
    if watched {
        let task = run.task;
        if let Some(progress) = finish.progress.clone() {
            announce_progress(engine, call, task, progress, now);
        }
        announce_lines(engine, call, task, &finish.logs);
    }
    let ended = Ended {
        task: run.task,
        namespace: &call.namespace,
        handler: &run.handler,
        priority: run.priority,
    };
    completer::applied(engine, ended, finish, applied, watched, now);
}

pub(super) fn announce_progress(
    engine: &Engine,
    call: &Call,
    task: pensum_core::TaskId,
    progress: pensum_core::outcome::Progress,
    now: Time,
) {
    engine.hub().emit(EngineEvent::Progress {
        task,
        namespace: call.namespace.clone(),
        progress,
        at: now,
    });
}

pub(super) fn announce_lines(engine: &Engine, call: &Call, task: pensum_core::TaskId, lines: &[LogLine]) {
    for line in lines {
        engine.hub().emit(EngineEvent::Log {
            task,
            namespace: call.namespace.clone(),
            line: line.clone(),
        });
    }
}
