//! How handlers are run: order, slots, timeouts, panics, cancels, logs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use pensum_core::store::Command;
use pensum_core::time::Span;
use pensum_core::{ErrorInfo, Json, NewTask, Outcome, Priority, Spec, State, Status};
use pensum_engine::{EngineError, EngineEvent, StopReason, kinds};
use serde_json::json;

use crate::support::{error, fun, retry_in, spec, with, world};

const CANCEL: Command = Command::Cancel { reason: None };

#[tokio::test(start_paused = true)]
async fn tasks_run_in_the_order_of_their_priority_and_then_of_their_age() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&order);
    let world = world(|b| {
        b.slots(1).handler(
            "note",
            fun(move |ctx| {
                seen.lock().push(ctx.parameters::<u32>().unwrap());
                async { Outcome::Done(Json::null()) }
            }),
        )
    });
    let mut last = None;
    for (number, priority) in [
        (3, Priority::Low),
        (1, Priority::Critical),
        (2, Priority::Normal),
        (4, Priority::Low),
    ] {
        last = Some(
            world
                .add(Spec {
                    priority,
                    ..with("note", json!(number))
                })
                .await,
        );
    }
    let world = world.start();
    world.end(last.unwrap()).await;
    assert_eq!(*order.lock(), [1, 2, 3, 4]);
    assert_eq!(
        world.faults.largest_claim.load(Ordering::SeqCst),
        1,
        "a claim asks for no more than its free slots"
    );
}

#[tokio::test(start_paused = true)]
async fn a_task_that_takes_too_long_fails_as_timeout_and_is_tried_again() {
    let world = world(|b| b).start();
    let task = Spec {
        timeout: Some(Duration::from_secs(2)),
        max_retries: Some(1),
        ..retry_in(with("sleep", json!({ "seconds": 600 })), 5)
    };
    let began = world.engine.now();
    let id = world.add(task).await;
    let end = world.end(id).await;
    assert_eq!(end.lifecycle.state, State::Failed);
    assert_eq!((error(&end).0.as_str(), end.lifecycle.attempt), (kinds::TIMEOUT, 2));
    let took = world.engine.now().since(began);
    assert!(
        took >= Duration::from_secs(9) && took < Duration::from_secs(11),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_ignores_its_token_is_dropped_after_the_grace() {
    let world = world(|b| {
        b.grace(Duration::from_secs(3))
            .handler("deaf", fun(|_| std::future::pending()))
    })
    .start();
    let id = world.add(spec("deaf")).await;
    world.until(id, |r| r.lifecycle.state == State::Running).await;
    let asked = world.engine.now();
    world.command(id, CANCEL).await.unwrap();
    assert_eq!(world.end(id).await.lifecycle.state, State::Cancelled);
    let took = world.engine.now().since(asked);
    assert!(
        took >= Duration::from_secs(3) && took < Duration::from_millis(3200),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn silence_longer_than_the_heartbeat_timeout_fails_the_attempt_and_heartbeats_prevent_it() {
    let world = world(|b| {
        b.handler(
            "beating",
            fun(|ctx| async move {
                for _ in 0..20 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    ctx.heartbeat();
                }
                Outcome::Done(Json::null())
            }),
        )
        .handler(
            "silent",
            fun(|ctx| async move {
                ctx.cancellation().cancelled().await;
                assert_eq!(ctx.stop_reason(), Some(StopReason::HeartbeatTimeout));
                Outcome::Cancelled
            }),
        )
    })
    .start();
    let strict = |handler| {
        let mut spec = Spec {
            max_retries: Some(0),
            ..spec(handler)
        };
        spec.details_mut().heartbeat_timeout = Some(Span(Duration::from_secs(2)));
        spec
    };
    let beating = world.add(strict("beating")).await;
    let silent = world.add(strict("silent")).await;
    assert_eq!(error(&world.end(silent).await).0, kinds::HEARTBEAT_TIMEOUT);
    assert_eq!(world.end(beating).await.lifecycle.state, State::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure_with_its_message_whether_at_once_or_later_and_harms_no_neighbour() {
    let world = world(|b| {
        b.handler(
            "at_once",
            fun(|_| -> std::future::Ready<Outcome> { panic!("at once: {}", 7) }),
        )
        .handler(
            "later",
            fun(|_| async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                panic!("later");
            }),
        )
    });
    let brittle = |handler| Spec {
        max_retries: Some(0),
        ..spec(handler)
    };
    let at_once = world.add(brittle("at_once")).await;
    let neighbour = world.add(spec("noop")).await;
    let later = world.add(brittle("later")).await;
    let world = world.start();
    assert_eq!(
        error(&world.end(at_once).await),
        (kinds::PANIC.to_owned(), "at once: 7".to_owned())
    );
    assert_eq!(
        error(&world.end(later).await),
        (kinds::PANIC.to_owned(), "later".to_owned())
    );
    assert_eq!(world.end(neighbour).await.lifecycle.state, State::Completed);
    assert_eq!(world.engine.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_running_task_learns_of_its_cancel_at_once_and_an_error_after_it_counts_as_cancelled() {
    let world = world(|b| {
        b.handler(
            "fussy",
            fun(|ctx| async move {
                ctx.cancellation().cancelled().await;
                assert_eq!(ctx.stop_reason(), Some(StopReason::Cancel));
                Outcome::Retry {
                    error: ErrorInfo::new("failed", "interrupted"),
                    after: None,
                }
            }),
        )
    })
    .start();
    let id = world.add(spec("fussy")).await;
    world.until(id, |r| r.lifecycle.state == State::Running).await;
    let asked = world.engine.now();
    world.command(id, CANCEL).await.unwrap();
    assert_eq!(world.end(id).await.lifecycle.state, State::Cancelled);
    assert!(world.engine.now().since(asked) < Duration::from_millis(50));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_waits_for_its_retry_can_be_cancelled() {
    let world = world(|b| b).start();
    let id = world.add(retry_in(with("fail", json!({ "message": "no" })), 600)).await;
    let record = world.until(id, |r| r.lifecycle.backing_off).await;
    assert_eq!(Status::of(&record.lifecycle, world.engine.now()), Status::Retrying);
    world.command(id, CANCEL).await.unwrap();
    let end = world.end(id).await;
    assert_eq!((end.lifecycle.state, end.lifecycle.attempt), (State::Cancelled, 1));
}

#[tokio::test(start_paused = true)]
async fn a_task_fails_as_often_as_asked_and_then_completes() {
    let world = world(|b| b).start();
    let id = world
        .add(retry_in(with("fail", json!({ "message": "not yet", "times": 2 })), 1))
        .await;
    let end = world.end(id).await;
    assert_eq!(
        (end.lifecycle.state, end.lifecycle.attempt, end.lifecycle.failures),
        (State::Completed, 3, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn log_lines_and_progress_reach_the_store_while_the_task_runs_and_in_order() {
    let world = world(|b| {
        b.handler(
            "chatty",
            fun(|ctx| async move {
                for line in 0..100 {
                    ctx.log(format!("line {line}"));
                    ctx.progress(f64::from(line), "going on".to_owned());
                    tokio::time::sleep(Duration::from_millis(37)).await;
                }
                Outcome::Done(Json::null())
            }),
        )
    })
    .start();
    let id = world.add(spec("chatty")).await;
    let record = world
        .until(id, |r| r.progress.as_ref().is_some_and(|p| p.percent > 10.0))
        .await;
    assert_eq!(record.lifecycle.state, State::Running);
    assert!(!world.messages(id).await.is_empty());
    world.end(id).await;
    let expected: Vec<_> = (0..100).map(|line| format!("line {line}")).collect();
    assert_eq!(world.messages(id).await, expected);
}

#[tokio::test(start_paused = true)]
async fn wrong_parameters_are_refused_at_submission_by_path_and_change_nothing() {
    let world = world(|b| b);
    let tasks = vec![
        NewTask::new(with("sleep", json!({ "seconds": 1 }))),
        NewTask::new(with("sleep", json!({ "seconds": -1 }))),
        NewTask::new(with("log", json!({ "text": "x" }))),
        NewTask::new(with("http", json!({ "url": "gopher://x" }))),
        NewTask::new(with("command", json!({ "program": "sh", "args": "x" }))),
        NewTask::new(spec("pensum.bulk")),
    ];
    let Err(EngineError::Invalid(invalid)) = world.engine.enqueue(&world.call(), tasks).await else {
        panic!("wrong parameters were taken");
    };
    let paths: Vec<_> = invalid.0.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "tasks[1].parameters.seconds",
            "tasks[2].parameters.text",
            "tasks[3].parameters.url",
            "tasks[4].parameters.args",
            "tasks[5].handler"
        ]
    );
    assert_eq!(world.engine.status().await.unwrap().total_tasks, 0);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_no_store_can_keep_fails_the_task() {
    let world = world(|b| {
        b.handler(
            "huge",
            fun(|_| async { Outcome::Done(Json::from(json!("x".repeat(2 << 20)))) }),
        )
    })
    .start();
    let id = world.add(spec("huge")).await;
    assert_eq!(error(&world.end(id).await).0, kinds::BAD_RESULT);
}

#[tokio::test(start_paused = true)]
async fn events_and_hooks_tell_a_task_s_story() {
    let hooked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&hooked);
    let world = world(|b| b.on_event(move |event| seen.lock().push(event.summary().event))).start();
    let mut events = world.engine.subscribe();
    let id = world.add(with("log", json!({ "message": "hello" }))).await;
    world.end(id).await;
    let mut story = Vec::new();
    while let Ok(event) = events.try_recv() {
        assert_eq!(event.task(), id);
        if let EngineEvent::Ended { state, .. } = &event {
            assert_eq!(*state, State::Completed);
        }
        story.push(event.summary().event);
    }
    assert_eq!(story, ["enqueued", "started", "log", "ended"]);
    assert_eq!(*hooked.lock(), story);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_task_ends_with_it_or_with_the_time() {
    let world = world(|b| b).start();
    let id = world.add(with("sleep", json!({ "seconds": 5 }))).await;
    let early = world.engine.wait("default", id, Some(Duration::from_secs(1))).await;
    assert_eq!(early.unwrap_err(), EngineError::WaitTimeout);
    let end = world.engine.wait("default", id, None).await.unwrap();
    assert_eq!(end.lifecycle.state, State::Completed);
    let unknown = pensum_core::TaskId::mint(world.engine.now(), 999, 5);
    assert_eq!(
        world.engine.wait("default", unknown, None).await.unwrap_err(),
        EngineError::NotFound(unknown)
    );
}

/// On threads of the machine, for a handler that blocks one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_handler_that_blocks_its_thread_does_not_hold_up_the_tasks_behind_it() {
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = Mutex::new(blocked);
    let world = world(|b| {
        b.handler(
            "blocking",
            fun(move |_| {
                let _ = blocked.lock().recv();
                async { Outcome::Done(Json::null()) }
            }),
        )
    });
    let blocking = world
        .add(Spec {
            priority: Priority::Critical,
            ..spec("blocking")
        })
        .await;
    let mut behind = Vec::new();
    for _ in 0..20 {
        behind.push(world.add(spec("noop")).await);
    }
    let world = world.start();
    for id in behind {
        assert_eq!(world.end(id).await.lifecycle.state, State::Completed);
    }
    assert_eq!(world.get(blocking).await.lifecycle.state, State::Running);
    release.send(()).unwrap();
    assert_eq!(world.end(blocking).await.lifecycle.state, State::Completed);
}
