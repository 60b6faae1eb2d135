//! The lease-keeper: renews every lease of the node in one call, carries progress and logs, and watches the clocks of
//! what runs with one coarse sweep instead of a timer for each task.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pensum_core::seam::BoxFuture;
use pensum_core::store::{Beat, Renewal};
use pensum_core::{StoreError, TaskId, Time};

use crate::claim::Failures;
use crate::run::{Run, StopReason};
use crate::{Engine, executor};

/// How often the clocks of running tasks are looked at: how late a timeout may be noticed.
pub(crate) const SWEEP: Duration = Duration::from_millis(50);
/// How long progress and log lines may wait for company before they are sent.
const FLUSH: Duration = Duration::from_millis(200);
/// How many times a lease is renewed in its length.
const RENEWALS_PER_LEASE: u32 = 3;
/// A share of the lease: the longest pause after a renewal that failed.
const FAILURE_PAUSE_DIVISOR: u32 = 10;

/// How many of the tasks that lost their leases at one moment are named in the log.
const LOST_NAMED: usize = 20;

/// A call under way: its answer, and what is needed to take it in.
struct Call {
    runs: Vec<Sent>,
    sent_at: Time,
    answer: BoxFuture<'static, Result<Vec<Renewal>, StoreError>>,
}

struct Sent {
    run: Arc<Run>,
    pause_epoch: u32,
    beat: Beat,
}

/// Keeps leases until everything ends.
pub(crate) async fn run(engine: Engine) {
    let mut keeper = Keeper {
        renewed_at: engine.now(),
        flushed_at: engine.now(),
        not_before: Time::EPOCH,
        taken: 0,
        failures: Failures::default(),
        engine,
    };
    let engine = keeper.engine.clone();
    let node = engine.live();
    let mut call: Option<Call> = None;
    loop {
        if call.is_none() && !node.has_runs() {
            tokio::select! {
                biased;
                () = node.some_runs.notified() => {}
                () = node.stopped.cancelled() => return,
            }
        }
        let tick = engine.seams().clock.sleep_until(engine.now().plus(SWEEP));
        let answer = match &mut call {
            Some(call) => tokio::select! {
                biased;
                answer = &mut call.answer => Some(answer),
                () = tick => None,
                () = node.stopped.cancelled() => return,
            },
            None => tokio::select! {
                biased;
                () = tick => None,
                () = node.stopped.cancelled() => return,
            },
        };
        if let Some(answer) = answer
            && let Some(call) = call.take()
        {
            keeper.take_in(call, answer);
        } else {
            keeper.sweep();
        }
        if call.is_none() {
            call = keeper.next_call();
        }
    }
}

/// What the clocks of a run ask for.
enum Due {
    Stop(StopReason),
    Kill,
}

fn due_action(run: &Run, now: Time) -> Option<Due> {
    if run.is_concluded() {
        return None;
    }
    let stopping = run.stop_reason();
    if stopping.is_some() && run.kill_at().is_some_and(|at| at <= now) {
        return (!run.is_killed()).then_some(Due::Kill);
    }
    if run.lease_until() <= now && stopping != Some(StopReason::LeaseLost) {
        return Some(Due::Stop(StopReason::LeaseLost));
    }
    if stopping.is_some() {
        None
    } else {
        run.overdue(now).map(Due::Stop)
    }
}

/// Runs whose leases are gone, each counted and said once, and all of one moment in one line: a store that was away for a
/// while may take every lease of the node with it.
#[derive(Default)]
pub(crate) struct Lost {
    tasks: Vec<TaskId>,
}

impl Lost {
    pub(crate) fn note(&mut self, engine: &Engine, run: &Run) {
        if run.lose() {
            engine.counters().lease_lost();
            self.tasks.push(run.id());
        }
    }

    pub(crate) fn say(self, message: &str) {
        if self.tasks.is_empty() {
            return;
        }
        let named = &self.tasks[..self.tasks.len().min(LOST_NAMED)];
        let tasks = named.iter().map(TaskId::to_string).collect::<Vec<_>>().join(" ");
        tracing::warn!(count = self.tasks.len(), %tasks, "{message}");
    }
}

struct Keeper {
    engine: Engine,
    /// When all leases were last sent for renewal.
    renewed_at: Time,
    /// When progress and logs were last sent.
    flushed_at: Time,
    /// After a failure: no call before this.
    not_before: Time,
    taken: u64,
    failures: Failures,
}

impl Keeper {
    /// Looks at every clock.
    fn sweep(&mut self) {
        let engine = &self.engine;
        let now = engine.now();
        let grace = engine.grace();
        let mut due = Vec::new();
        engine.live().for_each_run(|run| {
            if let Some(action) = due_action(run, now) {
                due.push((Arc::clone(run), action));
            }
        });
        // Not under the table's lock: this wakes handlers.
        let mut lost = Lost::default();
        for (run, action) in due {
            match action {
                Due::Kill => run.kill(),
                Due::Stop(reason) => {
                    if reason == StopReason::LeaseLost {
                        lost.note(engine, &run);
                    }
                    run.stop(reason, now, grace);
                }
            }
        }
        lost.say("leases could not be renewed in time; these tasks are stopped here");
        let taken = engine.live().taken.load(Ordering::Relaxed);
        if taken == self.taken {
            executor::relieve(engine);
        }
        self.taken = taken;
    }

    /// What to send now, if anything.
    fn next_call(&mut self) -> Option<Call> {
        let engine = &self.engine;
        let now = engine.now();
        // After the clock was set back, nothing may stand still until it has caught up.
        self.renewed_at = self.renewed_at.min(now);
        self.flushed_at = self.flushed_at.min(now);
        self.not_before = self.not_before.min(now.plus(engine.lease() / FAILURE_PAUSE_DIVISOR));
        if now < self.not_before {
            return None;
        }
        let is_due = now.since(self.renewed_at) >= engine.lease() / RENEWALS_PER_LEASE;
        let renewal = engine.live().take_wanted_renewal() || is_due;
        let flush = now.since(self.flushed_at) >= FLUSH;
        if !renewal && !flush {
            return None;
        }
        let mut runs = Vec::new();
        engine.live().for_each_run(|run| {
            if renewal || (run.is_dirty() && !run.is_concluded()) {
                runs.push(Arc::clone(run));
            }
        });
        if renewal {
            self.renewed_at = now;
        }
        self.flushed_at = now;
        if runs.is_empty() {
            return None;
        }
        let runs: Vec<Sent> = runs
            .into_iter()
            .map(|run| Sent {
                pause_epoch: run.pause_epoch(),
                beat: run.beat(),
                run,
            })
            .collect();
        let beats = runs.iter().map(|sent| sent.beat.clone()).collect();
        let (store, lease) = (Arc::clone(engine.store()), engine.lease());
        let answer = Box::pin(async move { store.renew(beats, lease, now).await });
        Some(Call {
            runs,
            sent_at: now,
            answer,
        })
    }

    fn take_in(&mut self, call: Call, answer: Result<Vec<Renewal>, StoreError>) {
        let now = self.engine.now();
        let until = call.sent_at.plus(self.engine.lease());
        let mut finishes = Vec::new();
        let mut lost = Lost::default();
        match answer {
            Ok(renewals) => {
                self.failures.over();
                for (sent, renewal) in call.runs.into_iter().zip(renewals) {
                    self.take_renewal(&sent, renewal, until, now, &mut lost);
                    finishes.extend(sent.run.beat_answered(None).map(|finish| (sent.run, finish)));
                }
            }
            Err(error) => {
                self.not_before = now.plus(
                    self.failures
                        .next(&self.engine, &error)
                        .min(self.engine.lease() / FAILURE_PAUSE_DIVISOR),
                );
                // Due again at once, as soon as the pause is over.
                self.renewed_at = Time::EPOCH;
                for Sent { run, beat, .. } in call.runs {
                    let unsent = Some((beat.progress, beat.logs));
                    finishes.extend(run.beat_answered(unsent).map(|finish| (run, finish)));
                }
            }
        }
        lost.say("leases are lost; these tasks are stopped here");
        self.engine.live().send(&mut finishes);
    }

    fn take_renewal(&self, sent: &Sent, renewal: Renewal, until: Time, now: Time, lost: &mut Lost) {
        let run = &sent.run;
        match renewal {
            Renewal::Held { cancel, pause, .. } => {
                run.renewed_until(until);
                if run.is_concluded() {
                    return;
                }
                if cancel && run.stop_reason().is_none() {
                    run.stop(StopReason::Cancel, now, self.engine.grace());
                }
                run.renewed_pause(pause, sent.pause_epoch, now);
            }
            // Its finish may have arrived before this beat.
            Renewal::Lost if run.is_concluded() => {}
            Renewal::Lost => {
                lost.note(&self.engine, run);
                run.stop(StopReason::LeaseLost, now, self.engine.grace());
            }
        }
    }
}
