//! Queues with settings, and several nodes that claim from them at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pensum_core::queue::{QueueCommand, QueueRecord, QueueSettings, Rate};
use pensum_core::store::{ClaimRequest, Claimed, Finish, Rejected, StoreError};
use pensum_core::time::Span;
use pensum_core::{Json, Name, NewTask, Outcome, Priority};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::conformance::world::task_with;
use crate::nodes::{Nodes, in_time, of_node};

impl Nodes {
    async fn put_queue(&self, node: usize, queue: &str, settings: QueueSettings) -> QueueRecord {
        let (store, call) = (&self.stores[node], self.call());
        store.put_queue(&call, Name::from(queue), settings, None).await.unwrap()
    }

    async fn ask_queue(&self, node: usize, queue: &str, command: QueueCommand) {
        let (store, call) = (&self.stores[node], self.call());
        store.command_queue(&call, Name::from(queue), command).await.unwrap();
    }

    async fn leases(&self) -> usize {
        let sql = "SELECT count(*) FROM pensum.live WHERE lease IS NOT NULL";
        self.watcher.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) as usize
    }
}

fn of(queue: &str, count: usize) -> Vec<NewTask> {
    (0..count)
        .map(|_| task_with(|task| task.spec.queue = Name::from(queue)))
        .collect()
}

fn width(max: u32) -> QueueSettings {
    QueueSettings {
        max_concurrent: Some(max),
        ..QueueSettings::default()
    }
}

fn rate(starts: u32, burst: u32) -> QueueSettings {
    let per = Span(Duration::from_secs(1));
    QueueSettings {
        rate: Some(Rate { starts, per, burst }),
        ..QueueSettings::default()
    }
}

fn queues_of(claimed: &[Claimed]) -> Vec<&str> {
    claimed.iter().map(|claimed| &*claimed.spec.queue).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_more_of_a_queue_run_than_its_width_whoever_claims() {
    const TASKS: usize = 500;
    const WIDTH: usize = 3;
    let nodes = Nodes::new(3).await;
    nodes.put_queue(0, "narrow", width(WIDTH as u32)).await;
    nodes.add(0, of("narrow", TASKS)).await;
    let (running, done, most) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut workers = JoinSet::new();
    for worker in 0..6 {
        let (store, now) = (Arc::clone(&nodes.stores[worker % 3]), nodes.now);
        let (running, done, most) = (Arc::clone(&running), Arc::clone(&done), Arc::clone(&most));
        workers.spawn(async move {
            while done.load(Ordering::SeqCst) < TASKS {
                let request = ClaimRequest {
                    wait: Duration::from_millis(200),
                    ..of_node(worker as u64 + 1, 2)
                };
                let claimed = store.claim(request, now).await.unwrap();
                // These are counted as running for a shorter time than they are.
                let before = running.fetch_add(claimed.len(), Ordering::SeqCst);
                most.fetch_max(before + claimed.len(), Ordering::SeqCst);
                tokio::task::yield_now().await;
                running.fetch_sub(claimed.len(), Ordering::SeqCst);
                for task in claimed {
                    // Some go back first: by another way than those that are done.
                    let is_done = task.lease.task.row() % 5 != 0 || task.checkpoint.is_some();
                    let again = Outcome::Again {
                        after: Duration::ZERO,
                        checkpoint: Some(Json::null()),
                    };
                    let outcome = if is_done { Outcome::Done(Json::null()) } else { again };
                    let ended = store.finish(vec![Finish::new(task.lease, outcome)], now).await.unwrap();
                    assert!(ended[0].is_ok(), "{ended:?}");
                    done.fetch_add(usize::from(is_done), Ordering::SeqCst);
                }
            }
        });
    }
    let mut looks = 0;
    while done.load(Ordering::SeqCst) < TASKS {
        let leases = nodes.leases().await;
        assert!(leases <= WIDTH, "{leases} leases at once");
        looks += 1;
    }
    in_time(workers.join_all()).await;
    assert!(looks > 10, "nobody looked");
    assert_eq!(most.load(Ordering::SeqCst), WIDTH, "the width was never used");
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_share_the_rate_of_a_queue_to_the_last_token() {
    let mut nodes = Nodes::new(3).await;
    nodes.put_queue(0, "paced", rate(100, 10)).await;
    nodes.add(0, of("paced", 150)).await;
    let (begin, mut started) = (nodes.now, 0);
    for step in 0..200 {
        nodes.now = begin.plus(Duration::from_millis(5 * step));
        let (one, two, three) = tokio::join!(nodes.claim(0, 7), nodes.claim(1, 7), nodes.claim(2, 7));
        started += one.len() + two.len() + three.len();
        let allowed = 10 + 5 * step as usize / 10;
        assert_eq!(started, allowed, "after {} ms", 5 * step);
    }
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_on_one_node_is_obeyed_by_the_next_claim_on_another() {
    let nodes = Nodes::new(2).await;
    nodes.add(0, of("shy", 60)).await;
    nodes.add(0, of("bold", 60)).await;
    for _ in 0..10 {
        nodes.ask_queue(0, "shy", QueueCommand::Pause).await;
        let claimed = nodes.claim(1, 1).await;
        assert_eq!(queues_of(&claimed), ["bold"]);
        nodes.ask_queue(0, "shy", QueueCommand::Resume).await;
        let claimed = nodes.claim(1, 1).await;
        assert_eq!(queues_of(&claimed), ["shy"]);
        nodes.end(1, &claimed).await;
        nodes.put_queue(0, "shy", width(1)).await;
        let claimed = nodes.claim(1, 2).await;
        assert_eq!(queues_of(&claimed), ["shy", "bold"]);
        nodes.put_queue(0, "shy", width(2)).await;
        let another = nodes.claim(1, 2).await;
        assert_eq!(queues_of(&another), ["shy", "bold"]);
        nodes.put_queue(0, "shy", QueueSettings::default()).await;
        let rest = nodes.claim(1, 1).await;
        assert_eq!(queues_of(&rest), ["shy"]);
        for claimed in [claimed, another, rest] {
            nodes.end(1, &claimed).await;
        }
    }
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_becomes_free_on_one_node_is_taken_on_another_at_once() {
    let nodes = Nodes::new(2).await;
    nodes.put_queue(0, "narrow", width(1)).await;
    nodes.add(0, of("narrow", 22)).await;
    let mut held = nodes.claim(0, 1).await;
    let mut waits = Vec::new();
    for round in 0..20 {
        let (here, there) = (round % 2, 1 - round % 2);
        let parked = nodes.park(there, of_node(there as u64 + 1, 1));
        // It is full for this node as well, and the parked claim has looked meanwhile, or does so after the end.
        assert!(nodes.claim(here, 1).await.is_empty());
        nodes.end(here, &held).await;
        let ended = Instant::now();
        let (claimed, at) = in_time(parked).await.unwrap();
        assert_eq!((claimed.len(), nodes.leases().await), (1, 1));
        waits.push(at.saturating_duration_since(ended));
        held = claimed;
    }
    waits.sort_unstable();
    assert!(waits[waits.len() / 2] < Duration::from_millis(100), "{waits:?}");
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stands_still_in_a_claim_keeps_nobody_from_other_queues() {
    let nodes = Nodes::new(1).await;
    nodes.put_queue(0, "narrow", width(5)).await;
    nodes.add(0, of("narrow", 3)).await;
    nodes.add(0, of("wide", 3)).await;
    let held = "BEGIN; SELECT 1 FROM pensum.queue FOR UPDATE";
    nodes.watcher.batch_execute(held).await.unwrap();
    let claimed = nodes.claim(0, 10).await;
    assert_eq!(queues_of(&claimed), ["wide"; 3]);
    nodes.watcher.batch_execute("ROLLBACK").await.unwrap();
    let claimed = in_time(nodes.park(0, of_node(1, 1))).await.unwrap().0;
    assert_eq!(queues_of(&claimed), ["narrow"]);
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_changes_at_the_same_moment_none_is_lost() {
    let nodes = Nodes::new(3).await;
    let put = |node: usize, max: u32, expected: Option<u64>| {
        let (store, call) = (Arc::clone(&nodes.stores[node % 3]), nodes.call());
        async move { store.put_queue(&call, Name::from("new"), width(max), expected).await }
    };
    // All of them see that there is none.
    let all: JoinSet<_> = (1..=9).map(|n| put(n as usize, n, Some(0))).collect();
    let (made, refused): (Vec<_>, Vec<_>) = in_time(all.join_all()).await.into_iter().partition(Result::is_ok);
    assert_eq!((made.len(), refused.len()), (1, 8));
    let late = |refused: &Result<QueueRecord, StoreError>| {
        let Err(StoreError::Rejected(Rejected::QueueVersionMismatch { found, .. })) = refused else {
            return false;
        };
        *found == 1
    };
    assert!(refused.iter().all(late), "{refused:?}");
    let all: JoinSet<_> = (1..=9).map(|n| put(n as usize, 100 + n, None)).collect();
    let mut versions: Vec<u64> = Vec::new();
    for changed in in_time(all.join_all()).await {
        versions.push(changed.unwrap().version);
    }
    versions.sort_unstable();
    assert_eq!(versions, (2..=10).collect::<Vec<u64>>());
    nodes.verify().await;
}

fn aged(seconds: u64) -> QueueSettings {
    QueueSettings {
        ageing: Some(Span(Duration::from_secs(seconds))),
        ..QueueSettings::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_take_turns_on_all_nodes_together() {
    let nodes = Nodes::new(2).await;
    let fair = QueueSettings {
        fair: true,
        ..QueueSettings::default()
    };
    nodes.put_queue(0, "fair", fair).await;
    let keyed = |key: &str| task_with(|task| (task.spec.queue, task.spec.key) = ("fair".into(), Some(key.into())));
    let mut tasks = vec![keyed("noisy"); 20];
    tasks.extend(["a", "b", "c"].map(keyed));
    tasks.push(keyed("a"));
    nodes.add(0, tasks).await;
    let mut order = Vec::new();
    for start in 0..8 {
        // The nodes claim by turns, too.
        let claimed = nodes.claim(start % 2, 1).await;
        nodes.end(start % 2, &claimed).await;
        order.extend(claimed.iter().map(|c| c.spec.key.clone().unwrap()));
    }
    let order: Vec<&str> = order.iter().map(|key| &**key).collect();
    assert_eq!(order, ["noisy", "a", "b", "c", "noisy", "a", "noisy", "noisy"]);
    let turns = "SELECT count(*) FROM pensum.turn";
    assert_eq!(nodes.watcher.query_one(turns, &[]).await.unwrap().get::<_, i64>(0), 4);
    nodes.verify().await;
    // The turns of keys of which nothing is left are forgotten.
    nodes.stores[1].reap(nodes.now, 1_000).await.unwrap();
    assert_eq!(nodes.watcher.query_one(turns, &[]).await.unwrap().get::<_, i64>(0), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_enqueued_by_a_node_that_had_not_heard_of_a_change_rises_too() {
    let mut nodes = Nodes::new(2).await;
    nodes.put_queue(0, "aged", aged(10)).await;
    let low = task_with(|task| (task.spec.queue, task.spec.priority) = ("aged".into(), Priority::Low));
    let low = nodes.add(1, vec![low]).await[0];
    nodes.now = nodes.now.plus(Duration::from_secs(20));
    let reaped = nodes.stores[0].reap(nodes.now, 1_000).await.unwrap();
    assert_eq!(reaped.next_due, Some(nodes.now.plus(Duration::from_secs(10))));
    let high = task_with(|task| (task.spec.queue, task.spec.priority) = ("aged".into(), Priority::High));
    nodes.add(1, vec![high]).await;
    assert_eq!(nodes.claim(1, 1).await[0].lease.task, low);
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_are_moved_in_bounded_steps() {
    let mut nodes = Nodes::new(1).await;
    for _ in 0..5 {
        nodes.add(0, of("aged", 1_000)).await;
    }
    nodes.now = nodes.now.plus(Duration::from_secs(15));
    let risen = async |nodes: &Nodes| {
        let sql =
            "SELECT count(*) FILTER (WHERE rank = -3), count(*) FILTER (WHERE rises_at IS NOT NULL) FROM pensum.live";
        let row = nodes.watcher.query_one(sql, &[]).await.unwrap();
        (row.get::<_, i64>(0), row.get::<_, i64>(1))
    };
    for (settings, all) in [(aged(10), 5_000), (QueueSettings::default(), 0)] {
        nodes.put_queue(0, "aged", settings).await;
        let mut before = risen(&nodes).await;
        for step in 1.. {
            let reaped = nodes.stores[0].reap(nodes.now, 1_000).await.unwrap();
            let after = risen(&nodes).await;
            assert!(before.0.abs_diff(after.0) <= 2_000, "{before:?} {after:?}");
            before = after;
            nodes.verify().await;
            if reaped.next_due.is_none_or(|due| due > nodes.now) {
                assert_eq!((step, after), (3, (all, all)));
                break;
            }
        }
    }
}
