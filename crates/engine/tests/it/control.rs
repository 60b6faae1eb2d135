//! What people ask for: pauses, commands, bulk operations.

use std::time::Duration;

use pensum_core::store::{Command, Rejected};
use pensum_core::{State, TaskFilter};
use pensum_engine::{BulkAction, BulkRequest, EngineError};
use serde_json::json;

use crate::support::{retry_in, spec, with, world};

#[tokio::test(start_paused = true)]
async fn a_running_task_whose_handler_cannot_pause_refuses_to_and_is_unchanged() {
    let world = world(|b| b).start();
    let running = world.add(with("sleep", json!({ "seconds": 60 }))).await;
    world.until(running, |r| r.lifecycle.state == State::Running).await;
    let later = world
        .engine
        .store()
        .task("default", running)
        .await
        .unwrap()
        .unwrap()
        .version;
    let mut queued = pensum_core::NewTask::new(spec("noop"));
    queued.run_at = Some(world.engine.now().plus(Duration::from_secs(3600)));
    let queued = world.add_task(queued).await;
    let answers = world
        .engine
        .command(&world.call(), vec![running, queued], Command::Pause)
        .await
        .unwrap();
    let Err(Rejected::Forbidden { task, why, .. }) = &answers[0] else {
        panic!("{answers:?}")
    };
    assert_eq!(
        (*task, *why),
        (running, "its handler cannot pause while running; cancel it instead")
    );
    assert!(answers[1].is_ok());
    let record = world.get(running).await;
    assert!(record.lifecycle.pause_requested_at.is_none() && record.version == later);
    assert!(world.get(queued).await.lifecycle.paused_at.is_some());
}

fn request(action: BulkAction, filter: TaskFilter) -> BulkRequest {
    BulkRequest {
        action,
        filter: filter.into(),
        all: false,
        dry_run: false,
    }
}

#[tokio::test(start_paused = true)]
async fn a_bulk_operation_reaches_every_task_that_was_there_at_its_start() {
    let world = world(|b| b).start();
    for _ in 0..450 {
        let mut task = pensum_core::NewTask::new(spec("noop"));
        task.run_at = Some(world.engine.now().plus(Duration::from_secs(3600)));
        task.spec.queue = "later".into();
        world.add_task(task).await;
    }
    let filter = TaskFilter {
        queue: Some("later".into()),
        ..TaskFilter::default()
    };
    let dry = BulkRequest {
        dry_run: true,
        ..request(BulkAction::Cancel, filter.clone())
    };
    let dry = world.engine.bulk(&world.call(), dry).await.unwrap();
    assert_eq!((dry.task, dry.matched, dry.exact), (None, 450, true));
    let receipt = world
        .engine
        .bulk(&world.call(), request(BulkAction::Cancel, filter))
        .await
        .unwrap();
    let mut task = pensum_core::NewTask::new(spec("noop"));
    task.run_at = Some(world.engine.now().plus(Duration::from_secs(3600)));
    task.spec.queue = "later".into();
    let after = world.add_task(task).await;
    let end = world.end(receipt.task.unwrap()).await;
    let result = end.result.unwrap().value();
    assert_eq!(
        (&result["matched"], &result["done"], &result["refused"]),
        (&json!(450), &json!(450), &json!(0))
    );
    assert_eq!(world.engine.status().await.unwrap().task_counts["cancelled"], 450);
    assert_eq!(world.get(after).await.lifecycle.state, State::Queued);
}

#[tokio::test(start_paused = true)]
async fn failed_tasks_are_retried_in_bulk() {
    let world = world(|b| b).start();
    let mut ids = Vec::new();
    for _ in 0..5 {
        let mut task = retry_in(with("fail", json!({ "message": "no", "times": 1 })), 1);
        task.max_retries = Some(0);
        ids.push(world.add(task).await);
    }
    for id in &ids {
        assert_eq!(world.end(*id).await.lifecycle.state, State::Failed);
    }
    let filter = TaskFilter {
        dead_lettered: Some(true),
        ..TaskFilter::default()
    };
    world
        .engine
        .bulk(&world.call(), request(BulkAction::Retry, filter))
        .await
        .unwrap();
    for id in ids {
        world.until(id, |r| r.lifecycle.state == State::Completed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_bulk_operation_on_everything_has_to_say_so() {
    let world = world(|b| b);
    let everything = request(BulkAction::Delete, TaskFilter::default());
    let refused = world.engine.bulk(&world.call(), everything.clone()).await.unwrap_err();
    assert!(matches!(refused, EngineError::Invalid(_)), "{refused}");
    let said = BulkRequest {
        all: true,
        dry_run: true,
        ..everything
    };
    assert_eq!(world.engine.bulk(&world.call(), said).await.unwrap().matched, 0);
}

#[tokio::test(start_paused = true)]
async fn status_counts_what_there_is() {
    let world = world(|b| b).start();
    let done = world.add(spec("noop")).await;
    let mut failing = with("fail", json!({}));
    failing.max_retries = Some(0);
    let failed = world.add(failing).await;
    world.end(done).await;
    world.end(failed).await;
    let status = world.engine.status().await.unwrap();
    assert_eq!(
        (status.status.as_str(), status.total_tasks, status.total_executions),
        ("running", 2, 2)
    );
    assert_eq!(
        (status.persistence_stats.completed, status.persistence_stats.quarantined),
        (1, 0)
    );
    assert!((status.performance_metrics.success_rate - 0.5).abs() < 1e-9);
    let metrics = world.engine.metrics();
    assert_eq!(
        (metrics.tasks_completed, metrics.tasks_failed, metrics.concurrent_tasks),
        (1, 1, 0)
    );
}
