//! Keys of which several tasks run at once, and several nodes that claim them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pensum_core::queue::QueueSettings;
use pensum_core::store::{ClaimRequest, Finish};
use pensum_core::{Json, Name, NewTask, Outcome, Time};
use tokio::task::JoinSet;

use crate::conformance::world::{ids, task_with};
use crate::nodes::{Nodes, in_time, of_node};

async fn widen(nodes: &Nodes, node: usize, queue: &str, width: u32) {
    let settings = QueueSettings {
        max_concurrent_per_key: Some(width),
        ..QueueSettings::default()
    };
    let (store, call) = (&nodes.stores[node], nodes.call());
    let put = store.put_queue(&call, Name::from(queue), settings, None);
    in_time(put).await.unwrap();
}

fn keyed(queue: &str, key: &str) -> NewTask {
    task_with(|task| (task.spec.queue, task.spec.key) = (queue.into(), Some(key.into())))
}

/// Of one key: how many tasks of a queue are leased, and how many of others.
async fn leased(nodes: &Nodes, key: &str, queue: &str) -> (usize, usize) {
    let sql = "SELECT count(*) FILTER (WHERE c.queue = $2), count(*) FILTER (WHERE c.queue <> $2)
        FROM pensum.live l JOIN pensum.class c ON c.id = l.class
        WHERE l.scope = 'default' || chr(31) || $1 AND l.lease IS NOT NULL";
    let row = nodes.watcher.query_one(sql, &[&key, &queue]).await.unwrap();
    (row.get::<_, i64>(0) as usize, row.get::<_, i64>(1) as usize)
}

/// Claimers on all nodes that end what they get at once, until `count` tasks have ended.
fn work(nodes: &Nodes, count: usize, done: &Arc<AtomicUsize>) -> JoinSet<()> {
    let mut workers = JoinSet::new();
    for worker in 0..6 {
        let (store, now, done) = (
            Arc::clone(&nodes.stores[worker % nodes.stores.len()]),
            nodes.now,
            Arc::clone(done),
        );
        workers.spawn(async move {
            while done.load(Ordering::SeqCst) < count {
                let request = ClaimRequest {
                    wait: Duration::from_millis(200),
                    ..of_node(worker as u64 + 1, 2)
                };
                for task in store.claim(request, now).await.unwrap() {
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
    workers
}

#[tokio::test]
async fn a_store_from_before_queues_were_wide_is_brought_up_to_date() {
    let mut nodes = Nodes::new(1).await;
    let before = "ALTER TABLE pensum.queue DROP COLUMN per_key;
        UPDATE pensum.meta SET value = 4 WHERE key = 'schema_version'";
    nodes.stores[0].close().await.unwrap();
    nodes.watcher.batch_execute(before).await.unwrap();
    nodes.join().await;
    widen(&nodes, 1, "wide", 2).await;
    nodes
        .add(1, vec![keyed("wide", "a"), keyed("wide", "a"), keyed("wide", "a")])
        .await;
    assert_eq!(nodes.claim(1, 10).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_more_of_a_key_run_than_its_queues_let_whoever_claims() {
    const WIDTH: u32 = 3;
    const TASKS: usize = 200;
    let nodes = Nodes::new(3).await;
    widen(&nodes, 0, "wide", WIDTH).await;
    for batch in 0..TASKS / 20 {
        let mut tasks: Vec<NewTask> = (0..20).map(|n| keyed("wide", ["a", "b"][n % 2])).collect();
        tasks[7].spec.queue = Name::from("narrow");
        nodes.add(batch % 3, tasks).await;
    }
    let done = Arc::new(AtomicUsize::new(0));
    let mut workers = work(&nodes, TASKS, &done);
    let (mut most, mut alone) = (0, 0);
    while done.load(Ordering::SeqCst) < TASKS && workers.try_join_next().is_none() {
        for key in ["a", "b"] {
            let (wide, narrow) = leased(&nodes, key, "wide").await;
            let is_kept = wide <= WIDTH as usize && narrow == 0 || (wide, narrow) == (0, 1);
            assert!(is_kept, "of {key} {wide} run, and {narrow} that should run alone");
            most = most.max(wide);
            alone += narrow;
        }
    }
    in_time(workers.join_all()).await;
    assert_eq!(most, WIDTH as usize, "the width was never used");
    assert!(alone > 0, "the narrow ones were never seen");
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_change_no_more_start_than_the_new_width_lets() {
    const TASKS: usize = 400;
    let nodes = Nodes::new(3).await;
    for batch in 0..TASKS / 20 {
        nodes.add(batch % 3, vec![keyed("q", "k"); 20]).await;
    }
    let done = Arc::new(AtomicUsize::new(0));
    let workers = work(&nodes, TASKS, &done);
    let (mut changes, mut most) = (0, 0);
    for width in [4, 1, 6, 2, 1, 3].into_iter().cycle() {
        widen(&nodes, changes % 3, "q", width).await;
        changes += 1;
        let mut before = leased(&nodes, "k", "q").await.0;
        for _ in 0..5 {
            let running = leased(&nodes, "k", "q").await.0;
            assert!(
                running <= before.max(width as usize),
                "{running} run of {width} that may, after {before}"
            );
            (before, most) = (running, most.max(running));
        }
        if done.load(Ordering::SeqCst) == TASKS {
            break;
        }
    }
    in_time(workers.join_all()).await;
    assert!(changes > 5 && most > 1, "{changes} changes, {most} at once");
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_does_that_has_not_heard_of_a_width_is_mended() {
    let nodes = Nodes::new(2).await;
    widen(&nodes, 0, "wide", 3).await;
    let tasks = nodes.add(1, vec![keyed("wide", "k"); 5]).await;
    // It lets the best one have its turn, and no others.
    let narrow = "UPDATE pensum.live SET gate = 7, due_at = NULL
        WHERE gate = 0 AND row > (SELECT min(row) FROM pensum.live)";
    assert_eq!(nodes.watcher.execute(narrow, &[]).await.unwrap(), 2);
    let first = nodes.claim(1, 10).await;
    assert_eq!(ids(&first), tasks[..1]);
    nodes.verify().await;
    nodes.stores[0].reap(nodes.now, 1_000).await.unwrap();
    nodes.verify().await;
    let rest = nodes.claim(0, 10).await;
    assert_eq!(ids(&rest), tasks[1..3]);
    nodes.end(1, &first).await;
    nodes.end(0, &rest).await;
    assert_eq!(ids(&nodes.claim(1, 10).await), tasks[3..]);
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_goes_on_with_a_change_in_which_another_one_died() {
    let nodes = Nodes::new(1).await;
    let tasks = nodes.add(0, vec![keyed("wide", "k"); 3]).await;
    // As it is left by a node that has written the settings and nothing else.
    let change = "INSERT INTO pensum.queue(namespace, name, settings, bucket, created_at, changed_at, version)
        VALUES ('default', 'wide', '{\"max_concurrent_per_key\": 2}', 0, 0, 0, 1);
        UPDATE pensum.queue_version SET value = value + 1";
    nodes.watcher.batch_execute(change).await.unwrap();
    assert_eq!(ids(&nodes.claim(0, 10).await), tasks[..1]);
    let mut next_due = Some(Time::EPOCH);
    while next_due == Some(Time::EPOCH) {
        next_due = nodes.stores[0].reap(nodes.now, 1_000).await.unwrap().next_due;
    }
    assert_eq!(ids(&nodes.claim(0, 10).await), tasks[1..2]);
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_keys_get_and_give_turns_in_steps() {
    const KEYS: usize = 1_300;
    let nodes = Nodes::new(1).await;
    for _ in 0..3 {
        let tasks: Vec<NewTask> = (0..KEYS).map(|key| keyed("q", &format!("{key}"))).collect();
        for batch in tasks.chunks(650) {
            nodes.add(0, batch.to_vec()).await;
        }
    }
    let turns = async || {
        let sql = "SELECT count(*) FROM pensum.live WHERE gate = 0";
        nodes.watcher.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) as usize
    };
    assert_eq!(turns().await, KEYS);
    for (width, each) in [(2, 2), (5, 3), (1, 1)] {
        widen(&nodes, 0, "q", width).await;
        assert_eq!(turns().await, each * KEYS);
        nodes.verify().await;
    }
}
