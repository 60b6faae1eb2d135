//! Queues that are not persistent: who accepts their tasks, and how those end with a node.

use std::sync::Arc;
use std::time::Duration;

use pensum_core::input::{Invalid, QueueInput, parse_object};
use pensum_core::outcome::Wait;
use pensum_core::store::Command;
use pensum_core::{Json, NewTask, NodeId, Outcome, Spec, State, TaskFilter, TaskId};
use pensum_engine::EngineError;

use crate::support::{World, error, fun, spec, world};

async fn make_queue(world: &World, queue: &str) {
    let input = parse_object::<QueueInput>(br#"{"persistent":false}"#).unwrap();
    world.engine.put_queue(&world.call(), queue, input, None).await.unwrap();
}

fn in_queue(queue: &str) -> Spec {
    Spec {
        queue: queue.into(),
        ..spec("noop")
    }
}

fn later(world: &World, queue: &str) -> NewTask {
    NewTask {
        run_at: Some(world.engine.now().plus(Duration::from_secs(3_600))),
        ..NewTask::new(in_queue(queue))
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_accepts_a_task_once_it_is_heard_and_cancels_it_when_it_stops() {
    let world = world(|b| b).start();
    make_queue(&world, "previews").await;
    let id = world.add_task(later(&world, "previews")).await;
    let nodes = world.engine.nodes().await.unwrap();
    assert_eq!(nodes.len(), 1);
    let record = world.get(id).await;
    assert!(!record.spec.is_durable());
    assert_eq!(record.lifecycle.accepted_by, Some(world.engine.node().id));
    // However long the node lives, so does the task.
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.get(id).await.lifecycle.state, State::Queued);
    let kept = world.add_task(later(&world, "other")).await;
    let waiter = world.engine.clone();
    let waited = tokio::spawn(async move { waiter.wait("default", id, None).await });
    world.engine.shutdown(Duration::ZERO).await;
    let ended = waited.await.unwrap().unwrap();
    assert_eq!(ended.lifecycle.state, State::Cancelled);
    assert_eq!(error(&ended).0, "process_ended");
    assert_eq!(world.get(kept).await.lifecycle.state, State::Queued);
}

#[tokio::test(start_paused = true)]
async fn who_submits_a_task_has_no_say_in_who_accepts_it() {
    let world = world(|b| b).start();
    make_queue(&world, "previews").await;
    let mut durable = later(&world, "other");
    durable.accept_by(NodeId(9));
    let durable = world.get(world.add_task(durable).await).await;
    assert!(durable.spec.is_durable() && durable.lifecycle.accepted_by.is_none());
    let mut other = later(&world, "previews");
    other.accept_by(NodeId(9));
    let other = world.get(world.add_task(other).await).await;
    assert_eq!(other.lifecycle.accepted_by, Some(world.engine.node().id));
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_runs_no_node_takes_none() {
    let world = world(|b| b);
    make_queue(&world, "previews").await;
    let tasks = vec![NewTask::new(spec("noop")), NewTask::new(in_queue("previews"))];
    let refused = world.engine.enqueue(&world.call(), tasks).await.unwrap_err();
    let EngineError::Invalid(Invalid(problems)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].path, "tasks[1].queue");
    assert!(
        problems[0].message.contains("`previews` is not persistent"),
        "{problems:?}"
    );
    world.add(spec("noop")).await;
}

#[tokio::test(start_paused = true)]
async fn children_are_durable_or_not_by_their_own_queue() {
    let parent = fun(|ctx| async move {
        if ctx.checkpoint().is_some() {
            return Outcome::Done(Json::null());
        }
        ctx.spawn_child(NewTask::new(in_queue("previews")));
        ctx.spawn_child(NewTask::new(in_queue("other")));
        Outcome::Wait {
            on: Wait::Children,
            checkpoint: Some(Json::null()),
        }
    });
    let world = world(|b| b.handler("parent", parent)).start();
    make_queue(&world, "previews").await;
    make_queue(&world, "parents").await;
    let started = world.add(in_queue("previews")).await;
    world.end(started).await;
    for (queue, durable) in [("other", true), ("parents", false)] {
        let mut task = spec("parent");
        task.queue = queue.into();
        let id = world.add(task).await;
        assert_eq!(world.end(id).await.spec.is_durable(), durable);
        let mut children = children_of(&world, id).await;
        children.sort();
        assert_eq!(children, [("other".to_owned(), true), ("previews".to_owned(), false)]);
    }
}

/// The queues of a task's children, and whether they are durable.
async fn children_of(world: &World, parent: TaskId) -> Vec<(String, bool)> {
    let filter = TaskFilter {
        parent_id: Some(parent),
        ..TaskFilter::default()
    };
    let store = Arc::clone(world.engine.store());
    let page = pensum_core::Page::default();
    let found = store.tasks("default", filter, page, world.engine.now()).await.unwrap();
    let told = |task: &pensum_core::TaskRecord| (task.spec.queue.to_string(), task.spec.is_durable());
    found.items.iter().map(told).collect()
}

#[tokio::test(start_paused = true)]
async fn a_retry_lives_with_the_node_that_took_it() {
    let world = world(|b| b).start();
    make_queue(&world, "previews").await;
    let id = world.add_task(later(&world, "previews")).await;
    world.command(id, Command::Cancel { reason: None }).await.unwrap();
    world
        .engine
        .command_queue(&world.call(), "previews", pensum_core::queue::QueueCommand::Pause)
        .await
        .unwrap();
    world.command(id, Command::Retry).await.unwrap();
    let record = world.get(id).await;
    assert_eq!(record.lifecycle.accepted_by, Some(world.engine.node().id));
    assert!(!record.spec.is_durable());
    world.engine.shutdown(Duration::ZERO).await;
    assert_eq!(error(&world.get(id).await).0, "process_ended");
}
