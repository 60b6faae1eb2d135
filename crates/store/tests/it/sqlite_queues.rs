//! Queues with settings in a file: what a restart, a crash and an older file leave of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pensum_core::queue::{QueueCommand, QueueSettings, Rate};
use pensum_core::store::{ClaimRequest, Claimed, Finish, Store};
use pensum_core::{Json, Name, NewTask, NodeId, Outcome, Priority, Time};
use pensum_store::sqlite::SqliteStore;

use crate::sqlite_files::{call, noop, open, t};

fn of(queue: &str) -> NewTask {
    let mut task = noop();
    task.spec.queue = Name::from(queue);
    task
}

async fn claim(store: &SqliteStore, now: Time) -> Vec<Claimed> {
    let request = ClaimRequest::new(NodeId(1), "node", 100, Duration::from_secs(30));
    store.claim(request, now).await.unwrap()
}

/// A store with a queue that gives one a minute and three at once, two of which have started and ended, a narrow queue, and a
/// paused one.
async fn prepare(store: &SqliteStore) {
    let rate = Rate {
        starts: 1,
        per: Duration::from_secs(60).into(),
        burst: 3,
    };
    let limited = QueueSettings {
        rate: Some(rate),
        ..QueueSettings::default()
    };
    let narrow = QueueSettings {
        max_concurrent: Some(1),
        ..QueueSettings::default()
    };
    store
        .put_queue(&call(t(0)), "limited".into(), limited, None)
        .await
        .unwrap();
    store
        .put_queue(&call(t(0)), "narrow".into(), narrow, None)
        .await
        .unwrap();
    store
        .command_queue(&call(t(0)), "paused".into(), QueueCommand::Pause)
        .await
        .unwrap();
    let tasks = [of("limited"), of("limited"), of("narrow"), of("narrow"), of("paused")];
    store.enqueue(&call(t(0)), tasks.into()).await.unwrap();
    let claimed = claim(store, t(1)).await;
    assert_eq!(claimed.len(), 3);
    for claimed in &claimed {
        let finish = Finish::new(claimed.lease, Outcome::Done(Json::null()));
        store.finish(vec![finish], t(2)).await.unwrap().remove(0).unwrap();
    }
    store
        .enqueue(&call(t(3)), (0..5).map(|_| of("limited")).collect())
        .await
        .unwrap();
}

/// One token is left, the narrow queue has room for one, and the paused one is paused.
async fn check(store: &SqliteStore) {
    let found = claim(store, t(4)).await;
    let count = |queue: &str| found.iter().filter(|claimed| &*claimed.spec.queue == queue).count();
    assert_eq!((count("limited"), count("narrow"), count("paused")), (1, 1, 0));
    let queues = store.queues("default").await.unwrap();
    let names: Vec<&str> = queues.iter().map(|queue| &*queue.name).collect();
    assert_eq!(names, ["limited", "narrow", "paused"]);
    assert_eq!(queues.iter().map(|queue| queue.running).collect::<Vec<_>>(), [1, 1, 0]);
    assert_eq!(queues[2].paused_at, Some(t(0)));
    assert_eq!(store.verify().await.unwrap().violations, Vec::<String>::new());
}

fn path(home: &tempfile::TempDir) -> PathBuf {
    home.path().join("store.db")
}

/// The files as a crash at this moment would leave them.
fn crash(from: &Path, to: &Path) {
    for suffix in ["", "-wal"] {
        let name = |path: &Path| format!("{}{suffix}", path.display());
        std::fs::copy(name(from), name(to)).unwrap();
    }
}

#[tokio::test]
async fn limits_hold_across_a_restart_in_good_order() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&path(&home));
    prepare(&store).await;
    store.close().await.unwrap();
    check(&open(&path(&home))).await;
}

#[tokio::test]
async fn limits_hold_across_a_crash() {
    let (home, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(&path(&home));
    prepare(&store).await;
    crash(&path(&home), &path(&image));
    check(&open(&path(&image))).await;
}

#[tokio::test]
async fn a_store_of_the_first_version_gets_its_table_of_queues() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&path(&home));
    store.enqueue(&call(t(0)), vec![of("q")]).await.unwrap();
    store.close().await.unwrap();
    let db = rusqlite::Connection::open(path(&home)).unwrap();
    db.execute_batch(
        "DROP TABLE queue; DROP TABLE agent; DROP TABLE agent_lease; DROP TABLE breaker;
         ALTER TABLE live DROP COLUMN acceptor; PRAGMA user_version = 1;",
    )
    .unwrap();
    drop(db);
    let store = open(&path(&home));
    store
        .command_queue(&call(t(1)), "q".into(), QueueCommand::Pause)
        .await
        .unwrap();
    assert!(claim(&store, t(2)).await.is_empty());
    store
        .command_queue(&call(t(3)), "q".into(), QueueCommand::Resume)
        .await
        .unwrap();
    assert_eq!(claim(&store, t(4)).await.len(), 1);
}

fn keyed(queue: &str, key: &str, priority: Priority) -> NewTask {
    let mut task = of(queue);
    task.spec.key = Some(Name::from(key));
    task.spec.priority = priority;
    task
}

#[tokio::test]
async fn who_has_waited_before_a_restart_has_waited_after_it() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&path(&home));
    let aged = QueueSettings {
        ageing: Some(Duration::from_secs(60).into()),
        ..QueueSettings::default()
    };
    store.put_queue(&call(t(0)), "aged".into(), aged, None).await.unwrap();
    let mut plain = of("aged");
    plain.spec.priority = Priority::Low;
    let tasks = vec![plain, keyed("aged", "k", Priority::Low)];
    store.enqueue(&call(t(0)), tasks).await.unwrap();
    store.reap(t(70), 1_000).await.unwrap();
    store.close().await.unwrap();
    let store = open(&path(&home));
    let reaped = store.reap(t(130), 1_000).await.unwrap();
    assert_eq!(reaped.next_due, Some(t(180)));
    let mut high = of("aged");
    high.spec.priority = Priority::High;
    store.enqueue(&call(t(130)), vec![high]).await.unwrap();
    let order: Vec<Priority> = claim(&store, t(131)).await.iter().map(|c| c.spec.priority).collect();
    assert_eq!(order, [Priority::Low, Priority::Low, Priority::High]);
    assert_eq!(store.verify().await.unwrap().violations, Vec::<String>::new());
}

#[tokio::test]
async fn a_restart_begins_a_new_round_of_turns() {
    let home = tempfile::tempdir().unwrap();
    let mut store = open(&path(&home));
    let fair = QueueSettings {
        fair: true,
        max_concurrent: Some(1),
        ..QueueSettings::default()
    };
    store.put_queue(&call(t(0)), "fair".into(), fair, None).await.unwrap();
    let mut tasks = vec![keyed("fair", "noisy", Priority::Normal); 10];
    tasks.extend(["a", "b"].map(|key| keyed("fair", key, Priority::Normal)));
    store.enqueue(&call(t(0)), tasks).await.unwrap();
    let mut order = Vec::new();
    for start in 1..=6 {
        if start == 3 {
            store.close().await.unwrap();
            store = open(&path(&home));
        }
        let claimed = claim(&store, t(start)).await;
        order.extend(claimed.iter().map(|c| c.spec.key.clone().unwrap()));
        let finish = Finish::new(claimed[0].lease, Outcome::Done(Json::null()));
        store.finish(vec![finish], t(start)).await.unwrap().remove(0).unwrap();
    }
    let order: Vec<&str> = order.iter().map(|key| &**key).collect();
    assert_eq!(order, ["noisy", "a", "noisy", "b", "noisy", "noisy"]);
    assert_eq!(store.verify().await.unwrap().violations, Vec::<String>::new());
}

#[tokio::test]
async fn many_tasks_are_moved_in_bounded_steps() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&path(&home));
    for batch in 0..5 {
        let tasks = (0..1_000).map(|n| keyed("aged", &format!("{batch} {n}"), Priority::Low));
        store.enqueue(&call(t(0)), tasks.collect()).await.unwrap();
    }
    let mut high = of("other");
    high.spec.priority = Priority::High;
    store.enqueue(&call(t(1)), vec![high]).await.unwrap();
    let aged = QueueSettings {
        ageing: Some(Duration::from_secs(10).into()),
        ..QueueSettings::default()
    };
    for (settings, is_first) in [
        (QueueSettings::default(), true),
        (aged, false),
        (QueueSettings::default(), true),
    ] {
        store
            .put_queue(&call(t(50)), "aged".into(), settings, None)
            .await
            .unwrap();
        let mut steps = 1;
        while store
            .reap(t(50), 1_000)
            .await
            .unwrap()
            .next_due
            .is_some_and(|due| due <= t(50))
        {
            steps += 1;
        }
        assert!(steps <= 3, "{steps}");
        let claimed = claim(&store, t(50)).await;
        assert_eq!(&*claimed[0].spec.queue == "other", is_first);
        let back = claimed
            .iter()
            .map(|c| Finish::new(c.lease, Outcome::Released))
            .collect();
        store.finish(back, t(50)).await.unwrap();
        assert_eq!(store.verify().await.unwrap().violations, Vec::<String>::new());
    }
}
