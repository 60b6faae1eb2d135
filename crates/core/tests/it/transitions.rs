//! `apply` as one table, and what holds for every sequence of events.

use std::fmt::Write;
use std::time::Duration;

use pensum_core::outcome::Wait;
use pensum_core::task::{Lease, OnDependencyFailure};
use pensum_core::transition::{Blame, Refusal, Report, Transition};
use pensum_core::{Event, LeaseId, Lifecycle, Name, NodeId, State, Status, Time, apply};
use proptest::prelude::*;

const NOW: Time = Time::from_micros(1_700_000_000_000_000);
const LEASE: LeaseId = LeaseId(7);

fn lease(id: LeaseId) -> Lease {
    Lease {
        id,
        node: NodeId(1),
        expires_at: NOW.plus(Duration::from_secs(30)),
    }
}

fn after(from: &Lifecycle, event: &Event) -> Lifecycle {
    apply(from, event, NOW)
        .unwrap_or_else(|r| panic!("{event:?} on {from:?}: {r:?}"))
        .next
}

fn holder(report: Report) -> Event {
    Event::Holder(LEASE, report)
}

/// One lifecycle of every kind that the engine can reach, by name.
fn situations() -> Vec<(&'static str, Lifecycle)> {
    let ready = Lifecycle::new(NOW, None, 0, OnDependencyFailure::Cancel);
    let later = Lifecycle::new(
        NOW,
        Some(NOW.plus(Duration::from_secs(60))),
        0,
        OnDependencyFailure::Cancel,
    );
    let blocked = Lifecycle::new(NOW, None, 2, OnDependencyFailure::Cancel);
    let last_blocked = Lifecycle::new(NOW, None, 1, OnDependencyFailure::Ignore);
    let running = after(&ready, &Event::Claim(lease(LEASE)));
    let retrying = after(
        &running,
        &holder(Report::Failed {
            retry_after: Some(Duration::from_secs(5)),
        }),
    );
    let children = after(
        &running,
        &holder(Report::Wait {
            on: Wait::Children,
            met: false,
        }),
    );
    let on = Wait::Signal {
        name: Name::from("go"),
        until: None,
    };
    let signal = after(&running, &holder(Report::Wait { on, met: false }));
    let due = Lifecycle {
        wake_at: Some(NOW),
        ..children.clone()
    };
    let pausing = after(&running, &Event::Pause);
    let accepted = Lifecycle {
        accepted_by: Some(NodeId(3)),
        ..ready.clone()
    };
    vec![
        ("ready", ready.clone()),
        ("scheduled", later),
        ("blocked by two", blocked),
        ("blocked by one, ignoring", last_blocked),
        ("paused", after(&ready, &Event::Pause)),
        ("retrying", retrying),
        ("running", running.clone()),
        ("running, cancel requested", after(&running, &Event::Cancel)),
        ("running, pause requested", pausing.clone()),
        ("running, stopped", after(&pausing, &holder(Report::PauseStarted))),
        (
            "running alone for the third time",
            Lifecycle {
                crashes: 2,
                suspect: true,
                ..running.clone()
            },
        ),
        ("waiting for children", children.clone()),
        ("waiting for a signal", signal),
        ("waiting, time is up", due),
        ("completed", after(&running, &holder(Report::Done))),
        ("failed", after(&running, &holder(Report::Failed { retry_after: None }))),
        ("cancelled", after(&ready, &Event::Cancel)),
        ("ready, not durable", accepted.clone()),
        ("running, not durable", after(&accepted, &Event::Claim(lease(LEASE)))),
        (
            "waiting, not durable",
            Lifecycle {
                accepted_by: accepted.accepted_by,
                ..children
            },
        ),
        ("cancelled, was not durable", after(&accepted, &Event::Abandoned)),
    ]
}

fn events() -> Vec<(&'static str, Event)> {
    let second = Duration::from_secs(1);
    vec![
        ("claim", Event::Claim(lease(LeaseId(8)))),
        ("done", holder(Report::Done)),
        ("done, stale lease", Event::Holder(LeaseId(6), Report::Done)),
        ("again later", holder(Report::Again(NOW.plus(second)))),
        (
            "wait for children",
            holder(Report::Wait {
                on: Wait::Children,
                met: false,
            }),
        ),
        (
            "wait, met already",
            holder(Report::Wait {
                on: Wait::Children,
                met: true,
            }),
        ),
        ("yielded", holder(Report::Yielded)),
        ("pause started", holder(Report::PauseStarted)),
        (
            "failed, retry",
            holder(Report::Failed {
                retry_after: Some(second),
            }),
        ),
        ("failed, final", holder(Report::Failed { retry_after: None })),
        ("stopped", holder(Report::Stopped)),
        ("released", holder(Report::Released)),
        ("lease expired", Event::LeaseExpired),
        ("node died, not its fault", Event::NodeDied(Blame::None)),
        ("node died, suspect", Event::NodeDied(Blame::Suspect)),
        ("node died, alone", Event::NodeDied(Blame::Alone)),
        ("cancel", Event::Cancel),
        ("pause", Event::Pause),
        ("resume", Event::Resume),
        ("retry", retry(0, None)),
        ("retry, one dependency unfinished", retry(1, None)),
        ("retry by a process", retry(0, Some(NodeId(4)))),
        ("run now", Event::RunNow),
        ("reschedule", Event::Reschedule(NOW.plus(second))),
        ("expired", Event::Expired),
        ("queue timeout", Event::QueueTimeout),
        ("process ended", Event::Abandoned),
        ("signalled", Event::Signalled),
        ("wake due", Event::WakeDue),
        ("children ended", Event::ChildrenEnded),
        ("dependency completed", Event::DependencyEnded(true)),
        ("dependency failed", Event::DependencyEnded(false)),
        ("dependency retried", Event::DependencyRevived),
    ]
}

fn retry(unmet: u32, accepted_by: Option<NodeId>) -> Event {
    Event::Retry { unmet, accepted_by }
}

fn cell(outcome: &Result<Transition, Refusal>) -> String {
    match outcome {
        Err(Refusal::LeaseLost) => "– lease lost".to_owned(),
        Err(Refusal::Nothing) => "– as it is".to_owned(),
        Err(Refusal::Forbidden(why)) => format!("✗ {why}"),
        Ok(Transition { next, kind, effects }) => {
            let status = Status::of(next, NOW);
            let mut text = format!("{} ({status}), {kind:?}", next.state);
            if let Some(attempt) = effects.attempt_ended {
                text.push_str(&format!(", attempt {attempt:?}"));
            }
            if let Some(interrupt) = effects.interrupt {
                text.push_str(&format!(", tell {interrupt:?}"));
            }
            if next.suspect {
                text.push_str(", suspect");
            }
            if let Some(process) = next.accepted_by {
                text.push_str(&format!(", lives with {process}"));
            }
            text
        }
    }
}

#[test]
fn every_state_answers_every_event() {
    let mut table = String::new();
    for (situation, lifecycle) in situations() {
        writeln!(table, "## {situation}").unwrap();
        for (name, event) in events() {
            writeln!(table, "{name:<34} {}", cell(&apply(&lifecycle, &event, NOW))).unwrap();
        }
    }
    insta::assert_snapshot!(table);
}

fn any_event() -> impl Strategy<Value = Event> {
    let all: Vec<Event> = events().into_iter().map(|(_, e)| e).collect();
    prop::sample::select(all)
}

fn check_invariants(task: &Lifecycle) {
    assert_eq!(
        task.state == State::Running,
        task.lease.is_some(),
        "lease ⇔ running: {task:?}"
    );
    assert_eq!(
        task.state.is_terminal(),
        task.finished_at.is_some(),
        "terminal ⇔ finished_at: {task:?}"
    );
    assert_eq!(
        task.state == State::Failed,
        task.dead_lettered_at.is_some(),
        "failed ⇔ dead letter: {task:?}"
    );
    assert_eq!(
        task.state == State::Waiting,
        task.waiting_for.is_some() && task.unmet == 0 && task.state != State::Queued,
        "{task:?}"
    );
    if task.state.is_terminal() {
        assert!(
            task.paused_at.is_none() && task.wake_at.is_none() && task.signal.is_none(),
            "{task:?}"
        );
        assert_eq!(task.accepted_by, None, "nobody answers for what has ended: {task:?}");
    }
    if task.unmet > 0 {
        assert_eq!(task.state, State::Queued, "{task:?}");
    }
}

proptest! {
    #[test]
    fn invariants_hold_after_any_sequence_of_events(steps in prop::collection::vec((any_event(), 0u64..100), 1..60)) {
        for (_, mut task) in situations() {
            let mut now = NOW;
            for (event, seconds) in &steps {
                now = now.plus(Duration::from_secs(*seconds));
                // The holder in these events has the lease of the latest claim.
                let event = match event {
                    Event::Holder(LeaseId(7), report) => {
                        Event::Holder(task.lease.map_or(LEASE, |l| l.id), report.clone())
                    }
                    other => other.clone(),
                };
                let before = task.clone();
                if let Ok(transition) = apply(&task, &event, now) {
                    let ended = transition.effects.ended;
                    prop_assert_eq!(ended.is_some(), !before.state.is_terminal() && transition.next.state.is_terminal());
                    prop_assert!(transition.next.attempt >= before.attempt);
                    task = transition.next;
                    check_invariants(&task);
                }
            }
        }
    }

    #[test]
    fn no_report_of_a_stale_lease_changes_anything(event in any_event()) {
        if let Event::Holder(_, report) = event {
            for (_, task) in situations() {
                prop_assert_eq!(apply(&task, &Event::Holder(LeaseId(99), report.clone()), NOW), Err(Refusal::LeaseLost));
            }
        }
    }
}
