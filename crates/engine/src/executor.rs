//! The executor: takes a claimed run, polls its handler, and turns the end into a finish.
//!
//! Few futures serve many short runs: a worker polls each handler once where it is, and only a handler that is not
//! done by then gets a future of its own. A worker that a handler holds up is noticed by the keeper, which starts
//! another one for the runs behind it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};
use std::time::Duration;

use pensum_core::seam::BoxFuture;
use pensum_core::store::Finish;
use pensum_core::{ErrorInfo, Outcome, Spec, Time};

use crate::context::Context;
use crate::hub::EngineEvent;
use crate::run::{Run, StopReason};
use crate::{Engine, kinds};

/// How many runs a worker ends before it frees their slots and sends their finishes together.
const BURST_MAX: usize = 32;
/// How many waiting runs are worth another worker.
const RUNS_PER_WORKER: usize = 8;
/// How long a worker holds finishes and slots back at most.
const BURST_TIME_MAX: Duration = Duration::from_micros(200);
/// A share of the lease at whose end nothing starts any more: time for the run's first writes.
const LEASE_MARGIN_DIVISOR: u32 = 10;
/// Most workers that start by themselves; more only help where handlers block.
const WORKERS_MAX: usize = 16;

/// Queues runs and sees to it that workers look at them.
pub(crate) fn dispatch(engine: &Engine, runs: Vec<Arc<Run>>) {
    let most = engine.live().processors.min(WORKERS_MAX);
    let mut more = 0;
    {
        let mut ready = engine.live().ready.lock();
        ready.queue.extend(runs);
        while ready.workers < most.min(ready.queue.len().div_ceil(RUNS_PER_WORKER)) {
            ready.workers += 1;
            more += 1;
        }
    }
    for _ in 0..more {
        engine.seams().spawn("worker", work(engine.clone()));
    }
}

/// Starts another worker where the queue stands still. The keeper calls it.
pub(crate) fn relieve(engine: &Engine) {
    {
        let mut ready = engine.live().ready.lock();
        if ready.queue.is_empty() {
            return;
        }
        ready.workers += 1;
    }
    engine.seams().spawn("worker", work(engine.clone()));
}

async fn work(engine: Engine) {
    let node = engine.live();
    let watched = engine.hub().is_watched();
    let mut burst = Burst {
        engine: &engine,
        finishes: Vec::with_capacity(BURST_MAX),
        ended: 0,
        since: engine.now(),
    };
    loop {
        let next = {
            let mut ready = node.ready.lock();
            let next = ready.queue.pop_front();
            if next.is_none() {
                ready.workers -= 1;
            }
            next
        };
        let Some(run) = next else { break };
        node.taken.fetch_add(1, Ordering::Relaxed);
        let now = engine.now();
        if burst.flush_if_due(now) {
            tokio::task::yield_now().await;
        }
        if let Some(end) = start(&run, now, watched) {
            burst.add(&run, end);
        }
    }
    burst.flush(engine.now());
}

/// Ends of runs that a worker hands on together.
struct Burst<'a> {
    engine: &'a Engine,
    finishes: Vec<(Arc<Run>, Finish)>,
    ended: usize,
    since: Time,
}

impl Burst<'_> {
    fn add(&mut self, run: &Arc<Run>, end: End) {
        self.ended += 1;
        self.finishes
            .extend(conclude(run, end).map(|finish| (Arc::clone(run), finish)));
    }

    fn flush_if_due(&mut self, now: Time) -> bool {
        let due = self.ended >= BURST_MAX || (self.ended > 0 && now.since(self.since) >= BURST_TIME_MAX);
        if due {
            self.flush(now);
        } else if self.ended == 0 {
            self.since = now;
        }
        due
    }

    fn flush(&mut self, now: Time) {
        let node = self.engine.live();
        node.send(&mut self.finishes);
        self.finishes.reserve(BURST_MAX);
        node.free_slots(self.ended);
        (self.ended, self.since) = (0, now);
    }
}

/// How a run ended.
pub(crate) enum End {
    Returned(Outcome),
    Panicked(String),
    /// Its future was dropped.
    Killed,
    /// It never began.
    NotStarted,
}

/// Starts a run and polls it once. Its end, if that was all; else the rest goes on in a future of its own.
fn start(run: &Arc<Run>, now: Time, watched: bool) -> Option<End> {
    let engine = &run.engine;
    let margin = engine.lease() / LEASE_MARGIN_DIVISOR;
    if run.stop_reason().is_some() || engine.live().stopping.is_cancelled() || run.lease_until() <= now.plus(margin) {
        return Some(End::NotStarted);
    }
    let Some(handler) = run.handler.clone() else {
        let message = format!("node {} has no handler `{}`", engine.node().name, run.spec.handler);
        let error = ErrorInfo::new(kinds::NO_HANDLER, message);
        return Some(End::Returned(Outcome::Retry { error, after: None }));
    };
    if watched {
        let (task, namespace, handler) = (run.id(), run.namespace.clone(), run.spec.handler.clone());
        engine.hub().emit(EngineEvent::Started {
            task,
            namespace,
            handler,
            attempt: run.attempt,
            at: now,
        });
    }
    let ctx = Context::new(Arc::clone(run));
    let mut future: BoxFuture<'static, Outcome> = Box::pin(async move { handler.run(ctx).await });
    match poll_once(&mut future, Waker::noop()) {
        Poll::Ready(end) => {
            dispose(future);
            Some(end)
        }
        Poll::Pending => {
            engine.seams().spawn("run", rest(Arc::clone(run), future));
            None
        }
    }
}

fn poll_once(future: &mut BoxFuture<'static, Outcome>, waker: &Waker) -> Poll<End> {
    let mut cx = std::task::Context::from_waker(waker);
    match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut cx))) {
        Ok(poll) => poll.map(End::Returned),
        Err(panic) => Poll::Ready(End::Panicked(panic_message(&*panic))),
    }
}

/// Drops a future; a panic of what it held ends there.
fn dispose(future: BoxFuture<'static, Outcome>) {
    if catch_unwind(AssertUnwindSafe(|| drop(future))).is_err() {
        tracing::error!("a handler panicked while it was dropped");
    }
}

/// A handler that was not done at once: polled until it is, or killed.
async fn rest(run: Arc<Run>, future: BoxFuture<'static, Outcome>) {
    let mut future = Some(future);
    let end = std::future::poll_fn(|cx| {
        if run.poll_killed(cx.waker()) {
            return Poll::Ready(End::Killed);
        }
        match &mut future {
            Some(future) => poll_once(future, cx.waker()),
            None => Poll::Ready(End::Killed),
        }
    })
    .await;
    if let Some(future) = future.take() {
        dispose(future);
    }
    let node = run.engine.live();
    let mut finishes: Vec<_> = conclude(&run, end)
        .map(|finish| (Arc::clone(&run), finish))
        .into_iter()
        .collect();
    node.send(&mut finishes);
    node.free_slots(1);
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "the handler panicked".to_owned())
}

/// The finish of a run, unless it was concluded before, or has to wait for a beat that is on its way.
pub(crate) fn conclude(run: &Arc<Run>, end: End) -> Option<Finish> {
    if !run.conclude() {
        return None;
    }
    let engine = &run.engine;
    let now = engine.now();
    if run.is_paused() {
        run.request_pause(false, now);
    }
    let aborted = run.is_killed() && engine.live().stopped.is_cancelled();
    let outcome = match (classify(run, end), aborted) {
        (Some(outcome), false) => outcome,
        _ => {
            engine.live().remove([run].into_iter());
            return None;
        }
    };
    let mut extras = run.extras.lock();
    let mut outcome = checked(outcome);
    if extras.unsure_children.is_some() && keeps_extras(&outcome) {
        let why = "a write with children got no answer; whether they are there shows in the next attempt";
        let error = ErrorInfo::new(kinds::STORE_UNAVAILABLE, why);
        outcome = Outcome::Retry { error, after: None };
    }
    let mut finish = Finish::new(run.lease, outcome);
    if matches!(finish.outcome, Outcome::Retry { .. }) {
        finish.draw = engine.seams().random.unit();
    }
    finish.usage = extras.usage.take().unwrap_or_default();
    finish.usage.wall_seconds = now.since(run.started).as_secs_f64();
    if keeps_extras(&finish.outcome) {
        finish.consumed = std::mem::take(&mut extras.consumed);
        finish.spawn = std::mem::take(&mut extras.spawn);
    }
    drop(extras);
    run.seal(finish)
}

/// What the end means, given why the run was asked to stop. `None` when nothing may be written.
fn classify(run: &Run, end: End) -> Option<Outcome> {
    let reason = run.stop_reason();
    let outcome = match end {
        End::Returned(outcome) => outcome,
        End::Panicked(message) => {
            let error = ErrorInfo::new(kinds::PANIC, message);
            Outcome::Retry { error, after: None }
        }
        End::NotStarted if reason == Some(StopReason::Cancel) => return Some(Outcome::Cancelled),
        End::NotStarted => return Some(Outcome::Released),
        End::Killed => Outcome::Cancelled,
    };
    let gave_up = matches!(
        outcome,
        Outcome::Retry { .. } | Outcome::Fail(_) | Outcome::Cancelled | Outcome::Released
    );
    Some(match reason {
        Some(StopReason::Cancel) if gave_up => Outcome::Cancelled,
        Some(StopReason::Timeout) if gave_up => Outcome::Retry {
            error: timed_out(&run.spec),
            after: None,
        },
        Some(StopReason::HeartbeatTimeout) if gave_up => {
            let limit = run.spec.heartbeat_timeout().unwrap_or_default();
            let what = "it was silent for longer than its heartbeat_timeout";
            Outcome::Retry {
                error: overdue(kinds::HEARTBEAT_TIMEOUT, what, limit),
                after: None,
            }
        }
        // The store has the last word: the fence refuses this where the lease is really lost.
        Some(StopReason::LeaseLost | StopReason::Shutdown) if gave_up => Outcome::Released,
        _ => outcome,
    })
}

/// The error of a run that took longer than its task allows.
pub(crate) fn timed_out(spec: &Spec) -> ErrorInfo {
    let limit = spec.timeout().unwrap_or_default();
    overdue(kinds::TIMEOUT, "it ran for longer than its timeout", limit)
}

fn overdue(kind: &str, what: &str, limit: Duration) -> ErrorInfo {
    ErrorInfo::new(kind, format!("{what} of {} s", limit.as_secs_f64()))
}

/// A failed run runs again, and would spawn and consume again.
fn keeps_extras(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Done(_) | Outcome::Again { .. } | Outcome::Wait { .. } | Outcome::Yielded { .. }
    )
}

/// The outcome, or a failure where it holds JSON that no store keeps.
fn checked(outcome: Outcome) -> Outcome {
    let (json, kind, what) = match &outcome {
        Outcome::Done(result) => (Some(result), kinds::BAD_RESULT, "the result"),
        Outcome::Again { checkpoint, .. } | Outcome::Wait { checkpoint, .. } | Outcome::Yielded { checkpoint } => {
            (checkpoint.as_ref(), kinds::BAD_CHECKPOINT, "the checkpoint")
        }
        _ => return outcome,
    };
    match json.and_then(pensum_core::Json::problem) {
        None => outcome,
        Some(problem) => Outcome::Fail(ErrorInfo::new(kind, format!("{what} {problem}"))),
    }
}
