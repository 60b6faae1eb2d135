//! The completer: brings outcomes to the store, many in one call and without delay, and never loses one.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use pensum_core::store::{Applied, Finish, Rejected};
use pensum_core::{ErrorInfo, Name, Outcome, Priority, State, StoreError, TaskId, Time, Wait};

use crate::claim::Failures;
use crate::hub::EngineEvent;
use crate::keeper::Lost;
use crate::run::Run;
use crate::{Engine, kinds};

/// Most finishes in one call.
const BATCH_MAX: usize = 2_048;
/// Most calls under way: while one waits for the disk, the next is being filled in.
const CALLS_MAX: usize = 4;
/// Longest pause between tries while the store is unavailable.
const PAUSE_MAX: Duration = Duration::from_secs(2);

type Batch = Vec<(Arc<Run>, Finish)>;

/// Sends finishes until everything ends.
pub(crate) async fn run(engine: Engine) {
    let node = engine.live();
    let mut calls = FuturesUnordered::new();
    loop {
        while calls.len() < CALLS_MAX {
            let batch = node.take_finishes(BATCH_MAX);
            if batch.is_empty() {
                break;
            }
            calls.push(finish(&engine, batch));
        }
        tokio::select! {
            biased;
            () = node.finish_ready.notified(), if calls.len() < CALLS_MAX => {}
            Some(()) = calls.next(), if !calls.is_empty() => {}
            () = node.stopped.cancelled() => return,
        }
    }
}

/// Brings outcomes to the store until no run is left, for a node without loops.
pub(crate) async fn drain(engine: &Engine) {
    let node = engine.live();
    while node.has_runs() {
        let batch = node.take_finishes(BATCH_MAX);
        if batch.is_empty() {
            node.finish_ready.notified().await;
        } else {
            finish(engine, batch).await;
        }
    }
}

/// Brings one batch to the store, however long it takes.
async fn finish(engine: &Engine, batch: Batch) {
    let node = engine.live();
    let mut batch = batch;
    let mut failures = Failures::default();
    loop {
        let finishes = batch.iter().map(|(_, finish)| finish.clone()).collect();
        let now = engine.now();
        match engine.store().finish(finishes, now).await {
            Ok(answers) => {
                failures.over();
                batch = settle(engine, batch, answers, now);
                if batch.is_empty() {
                    return;
                }
            }
            Err(StoreError::Closed) => {
                tracing::warn!(
                    outcomes = batch.len(),
                    "the store is closed; these tasks will run again"
                );
                node.acknowledged(batch.len());
                return;
            }
            // A verb for single items refuses them one by one; refused as a whole, one of them is to blame.
            Err(StoreError::Rejected(rejected)) if batch.len() == 1 => {
                batch = settle(engine, batch, vec![Err(rejected)], now);
                if batch.is_empty() {
                    return;
                }
            }
            Err(StoreError::Rejected(_)) => {
                for item in batch {
                    Box::pin(finish(engine, vec![item])).await;
                }
                return;
            }
            Err(error) => {
                let nap = failures.next(engine, &error).min(PAUSE_MAX);
                engine.seams().clock.sleep_until(engine.now().plus(nap)).await;
            }
        }
    }
}

/// Takes the store's answers in; what has to be sent again, otherwise, comes back.
fn settle(engine: &Engine, batch: Batch, answers: Vec<Result<Applied, Rejected>>, now: Time) -> Batch {
    let node = engine.live();
    let watched = engine.hub().is_watched();
    let mut again = Vec::new();
    let mut settled = Vec::with_capacity(batch.len());
    let mut lost = Lost::default();
    for ((run, finish), answer) in batch.into_iter().zip(answers) {
        match answer {
            Ok(answer) => {
                let ended = Ended {
                    task: run.id(),
                    namespace: &run.namespace,
                    handler: &run.spec.handler,
                    priority: run.spec.priority,
                };
                applied(engine, ended, &finish, &answer, watched, now);
            }
            Err(Rejected::LeaseLost(task)) => {
                tracing::debug!(%task, attempt = run.attempt, outcome = name(&finish.outcome), "refused");
                lost.note(engine, &run);
                engine.hub().ended(task);
            }
            Err(Rejected::NotFound(task)) => tracing::warn!(%task, "an outcome came for a task that is gone"),
            Err(rejected) if is_refusal(&finish) => {
                tracing::error!(task = %run.id(), %rejected, "the store takes no outcome of this run; its lease runs out");
            }
            Err(rejected) => {
                again.push((run, refused(finish, &rejected)));
                continue;
            }
        }
        settled.push(run);
    }
    lost.say("outcomes came too late: the leases are lost, or the outcomes were stored by an earlier try");
    node.remove(settled.iter());
    node.acknowledged(settled.len());
    // Keys, dependants and children: something may be claimable now.
    engine.wake_claims();
    again
}

/// What to write instead of an outcome that the store does not take.
fn refused(finish: Finish, rejected: &Rejected) -> Finish {
    let error = ErrorInfo::new(
        kinds::BAD_OUTCOME,
        format!("the store refused what the handler returned: {rejected}"),
    );
    let Finish {
        lease,
        usage,
        logs,
        progress,
        ..
    } = finish;
    Finish {
        usage,
        logs,
        progress,
        ..Finish::new(lease, Outcome::Fail(error))
    }
}

fn is_refusal(finish: &Finish) -> bool {
    matches!(&finish.outcome, Outcome::Fail(error) if error.kind == kinds::BAD_OUTCOME)
}

/// A run whose end the store took.
pub(crate) struct Ended<'a> {
    pub(crate) task: TaskId,
    pub(crate) namespace: &'a Name,
    pub(crate) handler: &'a Name,
    pub(crate) priority: Priority,
}

/// Passes on what the end of a run did: to counters, to the reaper, to waiters and listeners.
pub(crate) fn applied(engine: &Engine, ended: Ended<'_>, finish: &Finish, applied: &Applied, watched: bool, now: Time) {
    engine
        .counters()
        .finished(ended.handler, ended.priority, finish, applied.state);
    if let Outcome::Wait {
        on: Wait::Until(at) | Wait::Signal { until: Some(at), .. },
        ..
    } = &finish.outcome
    {
        engine.live().note_due(*at);
    }
    announce(engine, &ended, finish, applied, watched, now);
}

fn announce(engine: &Engine, ended: &Ended<'_>, finish: &Finish, applied: &Applied, watched: bool, now: Time) {
    let hub = engine.hub();
    let task = ended.task;
    for (ended, _) in &applied.ended {
        hub.ended(*ended);
    }
    let state = applied.state.unwrap_or(State::Queued);
    if state.is_terminal() {
        hub.ended(task);
    }
    if !watched {
        return;
    }
    let error = match &finish.outcome {
        Outcome::Retry { error, .. } | Outcome::Fail(error) => Some(error.clone()),
        _ => None,
    };
    if state.is_terminal() {
        hub.emit(EngineEvent::Ended {
            task,
            state,
            error,
            at: now,
        });
    } else {
        hub.emit(EngineEvent::Requeued {
            task,
            namespace: ended.namespace.clone(),
            state,
            error,
            at: now,
        });
    }
    for (ended, state) in applied.ended.iter().filter(|(ended, _)| *ended != task) {
        hub.emit(EngineEvent::Ended {
            task: *ended,
            state: *state,
            error: None,
            at: now,
        });
    }
}

fn name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done(_) => "done",
        Outcome::Again { .. } => "again",
        Outcome::Wait { .. } => "wait",
        Outcome::Yielded { .. } => "yielded",
        Outcome::Retry { .. } => "retry",
        Outcome::Fail(_) => "fail",
        Outcome::Cancelled => "cancelled",
        Outcome::Released => "released",
    }
}
