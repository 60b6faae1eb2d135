//! Limits at submission while several nodes submit, claim and change settings at once.

use std::sync::Arc;
use std::time::Duration;

use pensum_core::query::StatusCounts;
use pensum_core::queue::{QueueSettings, Rate, WhenFull};
use pensum_core::store::{Finish, Rejected, StoreError};
use pensum_core::task::OnLimit;
use pensum_core::time::Span;
use pensum_core::{Json, Name, NewTask, Outcome};
use pensum_store::postgres::Outbox;
use tokio::task::JoinSet;

use crate::conformance::world::task_with;
use crate::nodes::{Nodes, of_node};

/// What became of submissions.
#[derive(Debug, Default, PartialEq)]
struct Told {
    taken: usize,
    refused: usize,
}

async fn put(nodes: &Nodes, node: usize, settings: QueueSettings) {
    let call = nodes.call();
    let put = nodes.stores[node].put_queue(&call, Name::from("q"), settings, None);
    put.await.unwrap();
}

/// Submits so many tasks at once, one by one, round the nodes.
async fn submit(nodes: &Nodes, count: usize, task: &NewTask) -> Told {
    let mut submissions = JoinSet::new();
    for number in 0..count {
        let store = Arc::clone(&nodes.stores[number % nodes.stores.len()]);
        let (call, task) = (nodes.call(), task.clone());
        submissions.spawn(async move { store.enqueue(&call, vec![task]).await });
    }
    let mut told = Told::default();
    for answer in submissions.join_all().await {
        match answer {
            Ok(_) => told.taken += 1,
            Err(StoreError::Rejected(Rejected::QueueFull { .. })) => told.refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    told
}

async fn count(nodes: &Nodes, status: impl Fn(&StatusCounts) -> u64) -> u64 {
    let counts = nodes.stores[0].counts("default", nodes.now).await.unwrap();
    counts.queues.get("q").map_or(0, status)
}

fn plain() -> NewTask {
    task_with(|t| t.spec.queue = Name::from("q"))
}

fn now_or_never(units: u32) -> NewTask {
    task_with(|t| {
        t.spec.queue = Name::from("q");
        t.spec.details_mut().on_limit = Some(OnLimit::Reject);
        t.spec.details_mut().units = Some(units);
    })
}

fn depth(max: u32, when_full: WhenFull) -> QueueSettings {
    QueueSettings {
        max_depth: Some(max),
        when_full,
        ..QueueSettings::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_racing_submissions_that_are_not_to_wait_just_as_many_pass_as_may_run() {
    let nodes = Nodes::new(3).await;
    let width = QueueSettings {
        max_concurrent: Some(7),
        ..QueueSettings::default()
    };
    put(&nodes, 0, width).await;
    let told = submit(&nodes, 60, &now_or_never(1)).await;
    assert_eq!(told, Told { taken: 7, refused: 53 });
    let claimed = nodes.claim(1, 3).await;
    let ends = claimed
        .iter()
        .map(|c| Finish::new(c.lease, Outcome::Done(Json::null())));
    nodes.stores[1].finish(ends.collect(), nodes.now).await.unwrap();
    let told = submit(&nodes, 30, &now_or_never(1)).await;
    assert_eq!(told, Told { taken: 3, refused: 27 });
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_racing_submissions_that_are_not_to_wait_just_as_many_pass_as_there_are_tokens_for() {
    let nodes = Nodes::new(3).await;
    let (starts, per) = (1, Span(Duration::from_secs(3_600)));
    let rate = QueueSettings {
        rate: Some(Rate { starts, per, burst: 20 }),
        ..QueueSettings::default()
    };
    put(&nodes, 0, rate).await;
    let told = submit(&nodes, 40, &now_or_never(3)).await;
    assert_eq!(told, Told { taken: 6, refused: 34 });
    // Claims of all nodes take no more than that, and what is left lets two more pass.
    let mut taken = 0;
    for node in 0..3 {
        taken += nodes.claim(node, 4).await.len();
    }
    assert_eq!(taken, 6);
    let told = submit(&nodes, 9, &now_or_never(1)).await;
    assert_eq!(told, Told { taken: 2, refused: 7 });
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_never_gets_deeper_than_it_may_whoever_submits() {
    let nodes = Nodes::new(3).await;
    // The other nodes have looked at the queues before, and do not look again.
    for node in 0..3 {
        nodes.stores[node]
            .enqueue(&nodes.call(), vec![task_with(|_| {})])
            .await
            .unwrap();
    }
    put(&nodes, 0, depth(25, WhenFull::Refuse)).await;
    let told = submit(&nodes, 80, &plain()).await;
    assert_eq!(told, Told { taken: 25, refused: 55 });
    assert_eq!(count(&nodes, |of| of.ready).await, 25);
    put(&nodes, 2, depth(30, WhenFull::Refuse)).await;
    let told = submit(&nodes, 40, &plain()).await;
    assert_eq!(told, Told { taken: 5, refused: 35 });
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_dropped_while_others_claim_and_submit_is_never_lost_or_run() {
    let nodes = Nodes::new(3).await;
    put(&nodes, 0, depth(10, WhenFull::DropOldest)).await;
    let mut claims = JoinSet::new();
    for node in 0..3 {
        let (store, now) = (Arc::clone(&nodes.stores[node]), nodes.now);
        claims.spawn(async move {
            let mut held = 0;
            for _ in 0..10 {
                held += store.claim(of_node(node as u64 + 1, 1), now).await.unwrap().len();
            }
            held as u64
        });
    }
    let told = submit(&nodes, 90, &plain()).await;
    let running: u64 = claims.join_all().await.into_iter().sum();
    // One that could drop nothing, because all that waited had just been started, was refused.
    assert_eq!(told.taken + told.refused, 90);
    assert!(count(&nodes, |of| of.ready).await <= 10);
    assert_eq!(count(&nodes, |of| of.running).await, running);
    let all = count(&nodes, |of| of.ready + of.running + of.cancelled).await;
    assert_eq!(all, told.taken as u64);
    nodes.verify().await;
}

#[tokio::test]
async fn the_outbox_takes_nothing_that_would_have_to_be_counted() {
    let mut nodes = Nodes::new(1).await;
    put(&nodes, 0, depth(1, WhenFull::Refuse)).await;
    let call = nodes.call();
    let transaction = nodes.watcher.transaction().await.unwrap();
    let outbox = Outbox::default();
    let refused = outbox
        .enqueue(&transaction, &call, vec![task_with(|_| {}), plain()])
        .await;
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("tasks[1]: the queue `q` has limits"), "{message}");
    outbox
        .enqueue(&transaction, &call, vec![task_with(|_| {})])
        .await
        .unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(count(&nodes, |of| of.sum()).await, 0);
}
