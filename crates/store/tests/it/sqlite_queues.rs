//! Queues with settings in a file: what a restart, a crash and an older file leave of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pensum_core::queue::{QueueCommand, QueueSettings, Rate};
use pensum_core::store::{ClaimRequest, Claimed, Finish, Store};
use pensum_core::{Json, Name, NewTask, NodeId, Outcome, Time};
use pensum_store::sqlite::SqliteStore;

use crate::sqlite_files::{call, noop, open, t};

fn of(queue: &str) -> NewTask {
    let mut task = noop();
    task.spec.queue = Name::from(queue);
    task
}

async fn claim(store: &SqliteStore, now: Time) -> Vec<Claimed> {
    let request = ClaimRequest {
        node: NodeId(1),
        executor: Name::from("node"),
        slots: 100,
        capabilities: None,
        queues: None,
        resources: None,
        agent: None,
        lease: Duration::from_secs(30),
        wait: Duration::ZERO,
    };
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
