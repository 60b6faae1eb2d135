//! What survives: lost leases, lost replies, a store that is away, shutdowns, steps, signals.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pensum_core::store::Command;
use pensum_core::{ErrorInfo, Json, Name, NewTask, Outcome, Spec, State, Wait};
use pensum_engine::{StopReason, kinds};
use serde_json::json;

use crate::support::{fun, retry_in, spec, with, world};

#[tokio::test(start_paused = true)]
async fn leases_are_renewed_for_as_long_as_a_task_runs() {
    let world = world(|b| b.lease(Duration::from_secs(6))).start();
    let id = world.add(with("sleep", json!({ "seconds": 120 }))).await;
    let end = world.end(id).await;
    assert_eq!((end.lifecycle.state, end.lifecycle.attempt), (State::Completed, 1));
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_lease_is_lost_stops_and_writes_nothing() {
    let runs = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&runs);
    let world = world(|b| {
        b.lease(Duration::from_secs(6)).handler(
            "slow",
            fun(move |ctx| {
                let run = count.fetch_add(1, Ordering::SeqCst);
                async move {
                    if run > 0 {
                        return Outcome::Done(Json::from(json!("second")));
                    }
                    ctx.cancellation().cancelled().await;
                    assert_eq!(ctx.stop_reason(), Some(StopReason::LeaseLost));
                    Outcome::Done(Json::from(json!("first, too late")))
                }
            }),
        )
    })
    .start();
    world.faults.renewals_hang.store(true, Ordering::SeqCst);
    let id = world.add(spec("slow")).await;
    let end = world.end(id).await;
    assert_eq!(end.result.unwrap().get(), "\"second\"");
    assert_eq!(
        (end.lifecycle.attempt, end.lifecycle.failures),
        (2, 0),
        "a lost lease is no failure"
    );
    assert!(world.engine.metrics().leases_lost > 0);
}

#[tokio::test(start_paused = true)]
async fn outcomes_wait_for_a_store_that_is_away_and_none_is_lost() {
    let world = world(|b| b).start();
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(world.add(with("sleep", json!({ "seconds": 1 }))).await);
    }
    for id in &ids {
        world.until(*id, |r| r.lifecycle.state == State::Running).await;
    }
    world.faults.down.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(world.get(ids[0]).await.lifecycle.state, State::Running);
    world.faults.down.store(false, Ordering::SeqCst);
    for id in ids {
        let end = world.end(id).await;
        assert_eq!((end.lifecycle.state, end.lifecycle.attempt), (State::Completed, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_outcome_whose_acknowledgement_was_lost_is_stored_once() {
    let world = world(|b| b).start();
    world.faults.lose_finish_reply.store(true, Ordering::SeqCst);
    let id = world.add(spec("noop")).await;
    let end = world.end(id).await;
    assert_eq!((end.lifecycle.state, end.lifecycle.attempt), (State::Completed, 1));
    let report = world.engine.shutdown(Duration::from_secs(5)).await;
    assert_eq!(report.unsaved, 0);
    assert_eq!(world.faults.finishes.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_lets_tasks_end_and_gives_the_rest_back_without_an_attempt_spent() {
    let world = world(|b| b.handler("deaf", fun(|_| std::future::pending()))).start();
    let short = world.add(with("sleep", json!({ "seconds": 2 }))).await;
    let long = world.add(with("sleep", json!({ "seconds": 200 }))).await;
    let deaf = world.add(spec("deaf")).await;
    for id in [short, long, deaf] {
        world.until(id, |r| r.lifecycle.state == State::Running).await;
    }
    let began = world.engine.now();
    let report = world.engine.shutdown(Duration::from_secs(5)).await;
    assert_eq!(
        (report.ended, report.given_back, report.stuck, report.unsaved),
        (1, 2, 0, 0)
    );
    assert!(world.engine.now().since(began) < Duration::from_secs(9));
    assert!(!world.engine.is_accepting());
    assert_eq!(world.get(short).await.lifecycle.state, State::Completed);
    for id in [long, deaf] {
        let record = world.get(id).await;
        assert_eq!(record.lifecycle.state, State::Queued);
        assert!(record.lifecycle.same_attempt && record.lifecycle.failures == 0);
    }
    let later = world.add(spec("noop")).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(
        world.get(later).await.lifecycle.state,
        State::Queued,
        "nothing is claimed after a shutdown"
    );
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_even_when_the_store_is_gone() {
    let world = world(|b| b).start();
    let id = world.add(with("sleep", json!({ "seconds": 200 }))).await;
    world.until(id, |r| r.lifecycle.state == State::Running).await;
    world.faults.down.store(true, Ordering::SeqCst);
    let began = world.engine.now();
    let report = world.engine.shutdown(Duration::from_secs(1)).await;
    assert_eq!(report.unsaved, 1);
    assert!(world.engine.now().since(began) < Duration::from_secs(15));
}

#[tokio::test(start_paused = true)]
async fn an_abort_drops_what_runs_and_writes_nothing() {
    let world = world(|b| b).start();
    let id = world.add(with("sleep", json!({ "seconds": 200 }))).await;
    world.until(id, |r| r.lifecycle.state == State::Running).await;
    world.engine.abort().await;
    assert_eq!(world.engine.running(), 0);
    assert_eq!(world.get(id).await.lifecycle.state, State::Running);
}

#[tokio::test(start_paused = true)]
async fn a_step_runs_once_however_many_attempts_there_are() {
    let charges = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&charges);
    let world = world(|b| {
        b.handler(
            "order",
            fun(move |ctx| {
                let count = Arc::clone(&count);
                async move {
                    let charge = || async { Ok(count.fetch_add(1, Ordering::SeqCst) + 41) };
                    let receipt: usize = match ctx.step("charge", charge).await {
                        Ok(receipt) => receipt,
                        Err(error) => return Outcome::Fail(error),
                    };
                    if ctx.attempt() < 3 {
                        return Outcome::Retry {
                            error: ErrorInfo::new("failed", "parcel lost"),
                            after: None,
                        };
                    }
                    Outcome::Done(Json::from(json!(receipt)))
                }
            }),
        )
    })
    .start();
    let id = world.add(retry_in(spec("order"), 1)).await;
    let end = world.end(id).await;
    assert_eq!((end.result.unwrap().get(), end.lifecycle.attempt), ("41", 3));
    assert_eq!(charges.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn signals_leave_the_inbox_with_the_checkpoint_that_used_them() {
    let world = world(|b| {
        b.handler(
            "approval",
            fun(|ctx| async move {
                let signals = ctx.signals().await.unwrap();
                let mut seen: Vec<String> = ctx.checkpoint().map(|c| c.to().unwrap()).unwrap_or_default();
                for signal in &signals {
                    seen.push(signal.payload.to().unwrap());
                    ctx.consume(signal.seq);
                }
                if seen.len() == 1 {
                    ctx.save(&seen).await.unwrap();
                    assert!(ctx.signals().await.unwrap().is_empty());
                }
                if seen.len() >= 2 {
                    return Outcome::Done(Json::of(&seen).unwrap());
                }
                let on = Wait::Signal {
                    name: Name::from("approved"),
                    until: None,
                };
                Outcome::Wait { on, checkpoint: None }
            }),
        )
    })
    .start();
    let id = world.add(spec("approval")).await;
    for payload in ["one", "two"] {
        world.until(id, |r| r.lifecycle.state == State::Waiting).await;
        let signal = Command::Signal {
            name: Name::from("approved"),
            payload: Json::from(json!(payload)),
        };
        world.command(id, signal).await.unwrap();
    }
    let end = world.end(id).await;
    assert_eq!(
        (end.result.unwrap().get(), end.lifecycle.attempt),
        (r#"["one","two"]"#, 1)
    );
    assert!(world.engine.store().inbox(id).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_parent_spawns_children_waits_for_them_and_goes_on() {
    let world = world(|b| {
        b.handler(
            "parent",
            fun(|ctx| async move {
                if ctx.checkpoint().is_some() {
                    return Outcome::Done(Json::from(json!("all children ended")));
                }
                for _ in 0..3 {
                    ctx.spawn_child(NewTask::new(with("sleep", json!({ "seconds": 3 }))));
                }
                Outcome::Wait {
                    on: Wait::Children,
                    checkpoint: Some(Json::from(json!(true))),
                }
            }),
        )
    })
    .start();
    let began = world.engine.now();
    let id = world.add(spec("parent")).await;
    let end = world.end(id).await;
    assert_eq!((end.lifecycle.state, end.lifecycle.attempt), (State::Completed, 1));
    let took = world.engine.now().since(began);
    assert!(
        took >= Duration::from_secs(3) && took < Duration::from_secs(5),
        "{took:?}"
    );
    assert_eq!(world.engine.status().await.unwrap().task_counts["completed"], 4);
}

#[tokio::test(start_paused = true)]
async fn children_of_a_run_that_fails_are_not_enqueued() {
    let world = world(|b| {
        b.handler(
            "parent",
            fun(|ctx| async move {
                ctx.spawn_child(NewTask::new(spec("noop")));
                Outcome::Fail(ErrorInfo::new("failed", "no"))
            }),
        )
    })
    .start();
    let id = world.add(spec("parent")).await;
    world.end(id).await;
    assert_eq!(world.engine.status().await.unwrap().total_tasks, 1);
}

#[tokio::test(start_paused = true)]
async fn an_outcome_that_the_store_refuses_fails_the_task_with_the_reason() {
    let world = world(|b| {
        b.handler(
            "parent",
            fun(|ctx| async move {
                let mut child = NewTask::new(spec("noop"));
                let nobody = pensum_core::TaskId::mint(ctx.now(), 999_999, 1);
                child.depends_on.push(pensum_core::task::Dependency::Task(nobody));
                ctx.spawn_child(child);
                Outcome::Done(Json::null())
            }),
        )
    })
    .start();
    let id = world
        .add(Spec {
            max_retries: Some(0),
            ..spec("parent")
        })
        .await;
    let end = world.end(id).await;
    assert_eq!(end.error.unwrap().kind, kinds::BAD_OUTCOME);
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_on_a_lease_that_may_have_run_out() {
    let runs = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&runs);
    let world = world(|b| {
        b.lease(Duration::from_secs(10)).handler(
            "once",
            fun(move |_| {
                count.fetch_add(1, Ordering::SeqCst);
                async { Outcome::Done(Json::null()) }
            }),
        )
    });
    world.faults.delay_claim.store(true, Ordering::SeqCst);
    let id = world.add(spec("once")).await;
    let world = world.start();
    let end = world.end(id).await;
    assert_eq!((end.lifecycle.state, end.lifecycle.attempt), (State::Completed, 2));
    assert_eq!(
        runs.load(Ordering::SeqCst),
        1,
        "the first claim's answer came after its lease"
    );
}
