//! The one function that decides every state change of a task.
//!
//! Stores load a [`Lifecycle`], call [`apply`], save [`Transition::next`] and carry out [`Transition::effects`]. Nothing
//! else moves a task. Only claims and bulk upkeep are set-based in the stores, and property tests show that they
//! equal this function.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::outcome::Wait;
use crate::task::{ExecutionStatus, Lease, Lifecycle, OnDependencyFailure};
use crate::{LeaseId, NodeId, State, Time, WaitingFor};

/// How often a task may bring down a node that runs nothing else before it is dead-lettered.
pub const CRASHES_ALONE_MAX: u32 = 3;

/// Something that happens to a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A node takes it.
    Claim(Lease),
    /// The holder of a lease reports; refused when the lease is no longer the task's.
    Holder(LeaseId, Report),
    /// Its lease ran out while its node may still live.
    LeaseExpired,
    /// Its node died.
    NodeDied(Blame),
    /// Someone cancels it.
    Cancel,
    /// Someone pauses it.
    Pause,
    /// Someone resumes it.
    Resume,
    /// Someone retries it, after it ended or while it backs off.
    Retry {
        /// How many of its dependencies have not ended (any more): the retried task waits for them.
        unmet: u32,
        /// Who answers for it from now on, when it is not durable.
        accepted_by: Option<NodeId>,
    },
    /// Someone wants it to run now instead of at its time.
    RunNow,
    /// Someone gives it another time.
    Reschedule(Time),
    /// Its `expires_at` passed before it started.
    Expired,
    /// It was ready for longer than its `queue_timeout`.
    QueueTimeout,
    /// The process that accepted it has ended, and it is not durable.
    Abandoned,
    /// A signal of the name that it waits for arrived.
    Signalled,
    /// The time that it waits for came.
    WakeDue,
    /// Its last unfinished child ended.
    ChildrenEnded,
    /// A task that it depends on ended; true when it completed.
    DependencyEnded(bool),
    /// A task that it depends on had ended, and was retried: whoever still waits, waits for it again.
    DependencyRevived,
}

/// What the holder of a lease reports.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// Finished well.
    Done,
    /// Wants to run again at a time.
    Again(Time),
    /// Wants to wait.
    Wait {
        /// For what.
        on: Wait,
        /// What it waits for is there already: a signal in the inbox, or no unfinished child.
        met: bool,
    },
    /// Paused as requested and gave up its slot.
    Yielded,
    /// Paused as requested and keeps its slot (a stopped process).
    PauseStarted,
    /// Failed.
    Failed {
        /// Delay before the next attempt; `None` when there must not be one.
        retry_after: Option<Duration>,
    },
    /// Stopped as requested.
    Stopped,
    /// Given back unfinished by a node that shuts down.
    Released,
}

/// Whom a node's death is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The task had run long or checkpointed: it merely was there.
    None,
    /// The task had just started, beside others: it runs alone next time.
    Suspect,
    /// The task had just started, and ran alone.
    Alone,
}

/// What [`apply`] decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    /// The lifecycle to save.
    pub next: Lifecycle,
    /// What to append to the task's events; also the reason.
    pub kind: EventKind,
    /// What else has to happen in the same transaction, or right after it.
    pub effects: Effects,
}

/// What else a transition asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// An attempt ended with this status: write its execution record.
    pub attempt_ended: Option<ExecutionStatus>,
    /// The task ended: tell its dependants and its parent, free its unique key.
    pub ended: Option<State>,
    /// The task can be claimed now or later: put it into the claim order.
    pub requeued: bool,
    /// Tell the node that runs it.
    pub interrupt: Option<Interrupt>,
}

/// What a running task is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// Stop.
    Cancel,
    /// Pause.
    Pause,
    /// Go on.
    Resume,
}

/// The name of an event in a task's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it; docs/lifecycle.md lists who causes each")]
pub enum EventKind {
    Created,
    Started,
    Completed,
    Failed,
    Cancelled,
    Retrying,
    Again,
    Waiting,
    Woken,
    Yielded,
    Released,
    Crashed,
    LeaseExpired,
    CancelRequested,
    PauseRequested,
    Paused,
    Resumed,
    Retried,
    Rescheduled,
    DependencyMet,
    DependenciesMet,
    Signalled,
    Updated,
    DependencyRevived,
}

impl EventKind {
    /// Every kind; the position is the number in storage, so new ones go to the end.
    pub const ALL: [EventKind; 24] = [
        EventKind::Created,
        EventKind::Started,
        EventKind::Completed,
        EventKind::Failed,
        EventKind::Cancelled,
        EventKind::Retrying,
        EventKind::Again,
        EventKind::Waiting,
        EventKind::Woken,
        EventKind::Yielded,
        EventKind::Released,
        EventKind::Crashed,
        EventKind::LeaseExpired,
        EventKind::CancelRequested,
        EventKind::PauseRequested,
        EventKind::Paused,
        EventKind::Resumed,
        EventKind::Retried,
        EventKind::Rescheduled,
        EventKind::DependencyMet,
        EventKind::DependenciesMet,
        EventKind::Signalled,
        EventKind::Updated,
        EventKind::DependencyRevived,
    ];

    /// The number in storage.
    pub const fn code(self) -> i64 {
        self as i64
    }

    /// From storage.
    pub fn from_code(code: i64) -> Option<EventKind> {
        usize::try_from(code).ok().and_then(|c| EventKind::ALL.get(c)).copied()
    }
}

/// Why [`apply`] refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The reporting lease is not the task's any more: someone else owns it, or it ended.
    LeaseLost,
    /// The event makes no sense in this state; the text says why and what to do.
    Forbidden(&'static str),
    /// Nothing to do: the task is already as asked.
    Nothing,
}

/// Decides what `event` does to a task at `now`.
///
/// # Errors
/// A [`Refusal`]; nothing may be changed then.
pub fn apply(task: &Lifecycle, event: &Event, now: Time) -> Result<Transition, Refusal> {
    use Refusal::{Forbidden, LeaseLost, Nothing};
    use State::{Cancelled, Completed, Failed, Queued, Running, Waiting};
    match (task.state, event) {
        (Queued, Event::Claim(lease)) if task.is_claimable(now) => Ok(claimed(task, *lease, now)),
        (_, Event::Claim(_)) => Err(Forbidden("it cannot be claimed now")),

        (Running, Event::Holder(lease, report)) if task.lease.is_some_and(|l| l.id == *lease) => {
            reported(task, report, now)
        }
        (_, Event::Holder(..)) => Err(LeaseLost),

        (Running, Event::LeaseExpired) => Ok(interrupted(task, EventKind::LeaseExpired, Blame::None, now)),
        (Running, Event::NodeDied(blame)) => Ok(interrupted(task, EventKind::Crashed, *blame, now)),
        // A store that writes no row for a claim learns of a crash while the row still says queued.
        (_, Event::LeaseExpired | Event::NodeDied(_)) => Err(LeaseLost),

        (Queued | Waiting, Event::Cancel) => Ok(ended(task, Cancelled, EventKind::Cancelled, now)),
        (Running, Event::Cancel) if task.cancel_requested_at.is_some() => Err(Nothing),
        (Running, Event::Cancel) => Ok(cancel_requested(task, now)),
        (Cancelled, Event::Cancel) => Err(Nothing),
        (Completed, Event::Cancel) => Err(Forbidden("it has completed already")),
        (Failed, Event::Cancel) => Err(Forbidden("it has failed already; delete it or retry it")),

        (Queued | Waiting, Event::Pause) if task.paused_at.is_none() => Ok(paused(task, now)),
        (Running, Event::Pause) if task.cancel_requested_at.is_some() => Err(Forbidden("it is being cancelled")),
        (Running, Event::Pause) if task.paused_at.is_none() && task.pause_requested_at.is_none() => {
            Ok(pause_requested(task, now))
        }
        (Queued | Waiting | Running, Event::Pause) => Err(Nothing),
        (Completed | Failed | Cancelled, Event::Pause) => Err(Forbidden("it has ended; only unfinished tasks pause")),

        (Queued | Waiting, Event::Resume) if task.paused_at.is_some() => Ok(resumed(task, now)),
        (Running, Event::Resume) if task.paused_at.is_some() || task.pause_requested_at.is_some() => {
            Ok(resumed_running(task))
        }
        (Queued | Waiting | Running, Event::Resume) => Err(Forbidden("it is not paused")),
        (Completed | Failed | Cancelled, Event::Resume) => Err(Forbidden("it has ended; retry it to run it again")),

        (Failed | Cancelled, Event::Retry { unmet, accepted_by }) => Ok(revived(task, *unmet, *accepted_by, now)),
        (Queued, Event::Retry { .. }) if task.backing_off && task.paused_at.is_none() => {
            Ok(due(task, EventKind::Retried, now))
        }
        (Queued | Waiting, Event::Retry { .. }) => Err(Forbidden("it has not ended; there is nothing to retry")),
        (Running, Event::Retry { .. }) => Err(Forbidden("it is running; cancel it first")),
        (Completed, Event::Retry { .. }) => Err(Forbidden("it has completed; submit it again to run it again")),

        (Queued, Event::RunNow | Event::Reschedule(_)) if task.paused_at.is_some() => {
            Err(Forbidden("it is paused; resume it first"))
        }
        (Queued, Event::RunNow) if task.waiting_for.is_some() => {
            Err(Forbidden("it waits for its dependencies; they decide when it runs"))
        }
        (Queued, Event::RunNow) if task.run_at <= now => Err(Nothing),
        (Queued, Event::RunNow) => Ok(due(task, EventKind::Rescheduled, now)),
        (Queued, Event::Reschedule(at)) => Ok(rescheduled(task, *at, now)),
        (Running | Waiting, Event::RunNow | Event::Reschedule(_)) => Err(Forbidden("it is running already")),
        (Completed | Failed | Cancelled, Event::RunNow | Event::Reschedule(_)) => {
            Err(Forbidden("it has ended; retry it to run it again"))
        }

        (Queued, Event::Expired) if !task.has_started() => Ok(ended(task, Cancelled, EventKind::Cancelled, now)),
        (Queued, Event::QueueTimeout) if task.is_claimable(now) => Ok(ended(task, Failed, EventKind::Failed, now)),
        (_, Event::Expired | Event::QueueTimeout) => Err(Nothing),

        // Whoever runs it at this moment, on whichever node, has lost its lease.
        (Queued | Running | Waiting, Event::Abandoned) if task.accepted_by.is_some() => {
            Ok(ended(task, Cancelled, EventKind::Cancelled, now))
        }
        (_, Event::Abandoned) => Err(Nothing),

        (Waiting, Event::Signalled) if task.waiting_for == Some(WaitingFor::Signal) => Ok(woken(task, now)),
        (Waiting, Event::ChildrenEnded) if task.waiting_for == Some(WaitingFor::Children) => Ok(woken(task, now)),
        (Waiting, Event::WakeDue) if task.wake_at.is_some_and(|at| at <= now) => Ok(woken(task, now)),
        (Queued | Running | Waiting, Event::Signalled) => Err(Nothing),
        (Completed | Failed | Cancelled, Event::Signalled) => Err(Forbidden("it has ended; nobody reads its signals")),
        (_, Event::ChildrenEnded | Event::WakeDue) => Err(Nothing),

        (Queued, Event::DependencyEnded(completed)) if task.unmet > 0 => Ok(dependency_ended(task, *completed, now)),
        (Queued, Event::DependencyRevived) if task.unmet > 0 => Ok(dependency_revived(task)),
        (_, Event::DependencyEnded(_) | Event::DependencyRevived) => Err(Nothing),
    }
}

fn transition(next: Lifecycle, kind: EventKind, effects: Effects) -> Transition {
    Transition { next, kind, effects }
}

fn claimed(task: &Lifecycle, lease: Lease, now: Time) -> Transition {
    let next = Lifecycle {
        state: State::Running,
        attempt: task.next_attempt(),
        started_at: if task.same_attempt && task.started_at.is_some() {
            task.started_at
        } else {
            Some(now)
        },
        same_attempt: false,
        backing_off: false,
        lease: Some(lease),
        ..task.clone()
    };
    transition(next, EventKind::Started, Effects::default())
}

/// Reports of the lease's holder.
fn reported(task: &Lifecycle, report: &Report, now: Time) -> Result<Transition, Refusal> {
    let cancel = task.cancel_requested_at.is_some();
    Ok(match report {
        Report::Done => ended(task, State::Completed, EventKind::Completed, now),
        Report::Stopped => ended(task, State::Cancelled, EventKind::Cancelled, now),
        Report::PauseStarted if task.pause_requested_at.is_none() => return Err(Refusal::Nothing),
        Report::PauseStarted => {
            let next = Lifecycle {
                paused_at: Some(now),
                pause_requested_at: None,
                ..task.clone()
            };
            transition(next, EventKind::Paused, Effects::default())
        }
        // Whoever asked for a cancel does not want another attempt, nor a wait.
        Report::Failed { .. } | Report::Again(_) | Report::Wait { .. } | Report::Yielded | Report::Released
            if cancel =>
        {
            ended(task, State::Cancelled, EventKind::Cancelled, now)
        }
        Report::Failed {
            retry_after: Some(delay),
        } => backed_off(task, *delay, now),
        Report::Failed { retry_after: None } => ended(task, State::Failed, EventKind::Failed, now),
        Report::Again(at) => requeued(task, (*at).max(now), EventKind::Again, now),
        Report::Wait { on, met } => waiting(task, on, *met, now),
        Report::Yielded => requeued(task, now, EventKind::Yielded, now),
        Report::Released => requeued(task, now, EventKind::Released, now),
    })
}

/// Back to the queue within the same attempt; a requested pause takes effect here.
fn requeued(task: &Lifecycle, run_at: Time, kind: EventKind, now: Time) -> Transition {
    let pausing = task.pause_requested_at.is_some() || task.paused_at.is_some();
    let next = Lifecycle {
        state: State::Queued,
        waiting_for: None,
        run_at,
        wake_at: None,
        signal: None,
        same_attempt: true,
        backing_off: false,
        // Whoever answers has survived its start; a node that shut down before it could has not cleared it.
        suspect: task.suspect && kind == EventKind::Released,
        lease: None,
        ready_at: (run_at <= now && !pausing).then_some(now),
        paused_at: task.paused_at.or(pausing.then_some(now)),
        pause_requested_at: None,
        ..task.clone()
    };
    transition(
        next,
        kind,
        Effects {
            requeued: true,
            ..Effects::default()
        },
    )
}

fn waiting(task: &Lifecycle, on: &Wait, met: bool, now: Time) -> Transition {
    let (waiting_for, wake_at, signal) = match on {
        Wait::Children => (WaitingFor::Children, None, None),
        Wait::Signal { name, until } => (WaitingFor::Signal, *until, Some(name.clone())),
        Wait::Until(at) => (WaitingFor::Time, Some(*at), None),
    };
    if met || wake_at.is_some_and(|at| at <= now) {
        return requeued(task, now, EventKind::Again, now);
    }
    let pausing = task.pause_requested_at.is_some();
    let next = Lifecycle {
        state: State::Waiting,
        waiting_for: Some(waiting_for),
        wake_at,
        signal,
        same_attempt: true,
        lease: None,
        paused_at: task.paused_at.or(pausing.then_some(now)),
        pause_requested_at: None,
        ..task.clone()
    };
    transition(next, EventKind::Waiting, Effects::default())
}

fn woken(task: &Lifecycle, now: Time) -> Transition {
    let Transition { next, effects, .. } = requeued(task, now, EventKind::Woken, now);
    transition(next, EventKind::Woken, effects)
}

fn backed_off(task: &Lifecycle, delay: Duration, now: Time) -> Transition {
    let Transition { next, mut effects, .. } = requeued(task, now.plus(delay), EventKind::Retrying, now);
    effects.attempt_ended = Some(ExecutionStatus::Failed);
    let next = Lifecycle {
        same_attempt: false,
        backing_off: true,
        failures: task.failures + 1,
        ..next
    };
    transition(next, EventKind::Retrying, effects)
}

/// The lease is gone and nobody reported: never a failure of the task, and charged as `blame` says.
fn interrupted(task: &Lifecycle, kind: EventKind, blame: Blame, now: Time) -> Transition {
    let crashes = task.crashes + u32::from(blame == Blame::Alone);
    let crashed = Some(ExecutionStatus::Crashed);
    if task.cancel_requested_at.is_some() {
        let mut end = ended(task, State::Cancelled, EventKind::Cancelled, now);
        end.effects.attempt_ended = crashed;
        return end;
    }
    if crashes >= CRASHES_ALONE_MAX {
        let mut end = ended(
            &Lifecycle {
                crashes,
                ..task.clone()
            },
            State::Failed,
            EventKind::Failed,
            now,
        );
        end.effects.attempt_ended = crashed;
        return end;
    }
    let Transition { next, mut effects, .. } = requeued(task, now, kind, now);
    effects.attempt_ended = crashed;
    let suspect = blame != Blame::None;
    transition(
        Lifecycle {
            same_attempt: false,
            crashes,
            suspect,
            ..next
        },
        kind,
        effects,
    )
}

fn ended(task: &Lifecycle, state: State, kind: EventKind, now: Time) -> Transition {
    let attempt_ended = (task.state == State::Running || task.same_attempt).then_some(match state {
        State::Completed => ExecutionStatus::Completed,
        State::Cancelled => ExecutionStatus::Cancelled,
        _ => ExecutionStatus::Failed,
    });
    let failed = state == State::Failed;
    let next = Lifecycle {
        state,
        waiting_for: None,
        wake_at: None,
        signal: None,
        same_attempt: false,
        backing_off: false,
        failures: task.failures + u32::from(failed && attempt_ended.is_some()),
        unmet: 0,
        lease: None,
        finished_at: Some(now),
        paused_at: None,
        pause_requested_at: None,
        dead_lettered_at: failed.then_some(now),
        accepted_by: None,
        ..task.clone()
    };
    transition(
        next,
        kind,
        Effects {
            attempt_ended,
            ended: Some(state),
            ..Effects::default()
        },
    )
}

fn cancel_requested(task: &Lifecycle, now: Time) -> Transition {
    let next = Lifecycle {
        cancel_requested_at: Some(now),
        pause_requested_at: None,
        ..task.clone()
    };
    let effects = Effects {
        interrupt: Some(Interrupt::Cancel),
        ..Effects::default()
    };
    transition(next, EventKind::CancelRequested, effects)
}

fn pause_requested(task: &Lifecycle, now: Time) -> Transition {
    let next = Lifecycle {
        pause_requested_at: Some(now),
        ..task.clone()
    };
    let effects = Effects {
        interrupt: Some(Interrupt::Pause),
        ..Effects::default()
    };
    transition(next, EventKind::PauseRequested, effects)
}

fn paused(task: &Lifecycle, now: Time) -> Transition {
    transition(
        Lifecycle {
            paused_at: Some(now),
            ..task.clone()
        },
        EventKind::Paused,
        Effects::default(),
    )
}

fn resumed(task: &Lifecycle, now: Time) -> Transition {
    let claimable = task.state == State::Queued && task.waiting_for.is_none() && task.run_at <= now;
    let next = Lifecycle {
        paused_at: None,
        ready_at: if claimable { Some(now) } else { task.ready_at },
        ..task.clone()
    };
    let effects = Effects {
        requeued: task.state == State::Queued,
        ..Effects::default()
    };
    transition(next, EventKind::Resumed, effects)
}

fn resumed_running(task: &Lifecycle) -> Transition {
    let next = Lifecycle {
        paused_at: None,
        pause_requested_at: None,
        ..task.clone()
    };
    let effects = Effects {
        interrupt: Some(Interrupt::Resume),
        ..Effects::default()
    };
    transition(next, EventKind::Resumed, effects)
}

/// An ended task is queued again with all its retries; its attempts go on counting.
fn revived(task: &Lifecycle, unmet: u32, accepted_by: Option<NodeId>, now: Time) -> Transition {
    let next = Lifecycle {
        state: State::Queued,
        waiting_for: (unmet > 0).then_some(WaitingFor::Dependencies),
        run_at: now,
        ready_at: (unmet == 0).then_some(now),
        unmet,
        failures: 0,
        crashes: 0,
        suspect: false,
        finished_at: None,
        cancel_requested_at: None,
        dead_lettered_at: None,
        accepted_by,
        ..task.clone()
    };
    transition(
        next,
        EventKind::Retried,
        Effects {
            requeued: true,
            ..Effects::default()
        },
    )
}

fn due(task: &Lifecycle, kind: EventKind, now: Time) -> Transition {
    let next = Lifecycle {
        run_at: now,
        ready_at: Some(now),
        backing_off: false,
        ..task.clone()
    };
    transition(
        next,
        kind,
        Effects {
            requeued: true,
            ..Effects::default()
        },
    )
}

fn rescheduled(task: &Lifecycle, at: Time, now: Time) -> Transition {
    let claimable = at <= now && task.waiting_for.is_none();
    let next = Lifecycle {
        run_at: at,
        ready_at: if claimable { task.ready_at.or(Some(now)) } else { None },
        backing_off: false,
        ..task.clone()
    };
    transition(
        next,
        EventKind::Rescheduled,
        Effects {
            requeued: true,
            ..Effects::default()
        },
    )
}

fn dependency_ended(task: &Lifecycle, completed: bool, now: Time) -> Transition {
    if !completed && task.on_dependency_failure == OnDependencyFailure::Cancel {
        return ended(task, State::Cancelled, EventKind::Cancelled, now);
    }
    let unmet = task.unmet - 1;
    if unmet > 0 {
        return transition(
            Lifecycle { unmet, ..task.clone() },
            EventKind::DependencyMet,
            Effects::default(),
        );
    }
    let claimable = task.run_at <= now && task.paused_at.is_none();
    let next = Lifecycle {
        unmet,
        waiting_for: None,
        ready_at: claimable.then_some(now),
        ..task.clone()
    };
    transition(
        next,
        EventKind::DependenciesMet,
        Effects {
            requeued: true,
            ..Effects::default()
        },
    )
}

fn dependency_revived(task: &Lifecycle) -> Transition {
    let next = Lifecycle {
        unmet: task.unmet + 1,
        ..task.clone()
    };
    transition(next, EventKind::DependencyRevived, Effects::default())
}
