//! Tasks that are not durable, on files: whoever opens one finds nothing of the process before.

use std::path::Path;
use std::time::Duration;

use pensum_core::store::{Call, ClaimRequest, NodeBeat, Store};
use pensum_core::{Json, Name, NewTask, NodeId, Spec, State, TaskId, Time};
use pensum_store::sqlite::{SqliteOptions, SqliteStore};

use crate::sqlite_files::open;

const PROCESS: NodeId = NodeId(7);
/// More than the opening cancels in one transaction.
const MANY: usize = 10_500;

fn now() -> Time {
    Time::parse("2026-03-01T12:00:00Z").unwrap()
}

fn task() -> NewTask {
    NewTask::new(Spec::new("noop", Json::null()))
}

fn volatile() -> NewTask {
    let mut task = task();
    task.accept_by(PROCESS);
    task
}

async fn add(store: &SqliteStore, tasks: Vec<NewTask>) -> Vec<TaskId> {
    let made = store.enqueue(&Call::new("tester", now()), tasks).await.unwrap();
    made.into_iter().map(|made| made.id).collect()
}

async fn lives(store: &SqliteStore) {
    let beat = NodeBeat {
        node: PROCESS,
        name: Name::from("process"),
        version: "1".to_owned(),
        address: None,
        started_at: now(),
        slots: 1,
        running: 0,
        ttl: Duration::from_secs(15),
    };
    store.heartbeat(beat, now()).await.unwrap();
}

async fn claim(store: &SqliteStore, slots: usize) -> Vec<TaskId> {
    let request = ClaimRequest::new(PROCESS, "process", slots, Duration::from_secs(30));
    let claimed = store.claim(request, now()).await.unwrap();
    claimed.iter().map(|claimed| claimed.lease.task).collect()
}

async fn state(store: &SqliteStore, id: TaskId) -> (State, Option<String>) {
    let found = store.task("default", id).await.unwrap().unwrap();
    (found.lifecycle.state, found.error.map(|error| error.kind))
}

async fn is_sound(store: &SqliteStore) {
    assert_eq!(store.verify().await.unwrap().violations, Vec::<String>::new());
}

fn abandoned() -> (State, Option<String>) {
    (State::Cancelled, Some("process_ended".to_owned()))
}

/// The files as a crash of the process at this moment would leave them.
fn crash(from: &Path, to: &Path) {
    for suffix in ["", "-wal"] {
        let name = |path: &Path| format!("{}{suffix}", path.display());
        std::fs::copy(name(from), name(to)).unwrap();
    }
}

#[tokio::test]
async fn what_a_crashed_process_accepted_is_cancelled_before_anything_starts() {
    let home = tempfile::tempdir().unwrap();
    let (path, image) = (home.path().join("store.db"), home.path().join("image.db"));
    let store = open(&path);
    lives(&store).await;
    let running = add(&store, vec![volatile()]).await[0];
    assert_eq!(claim(&store, 1).await, [running]);
    let ids = add(&store, vec![volatile(); MANY]).await;
    let durable = add(&store, vec![task()]).await[0];
    // An answered submission outlives the process, also without a sync.
    let last = add(&store, vec![volatile()]).await[0];
    crash(&path, &image);
    // Whoever only looks changes nothing.
    let read_only = SqliteOptions {
        read_only: true,
        ..SqliteOptions::new(&image)
    };
    let looked = SqliteStore::open(read_only).unwrap();
    assert_eq!(state(&looked, last).await.0, State::Queued);
    is_sound(&looked).await;
    looked.close().await.unwrap();
    let after = open(&image);
    is_sound(&after).await;
    // The id of the process says nothing: this one took it over, and lives.
    lives(&after).await;
    assert_eq!(claim(&after, MANY).await, [durable]);
    for id in [running, ids[0], ids[MANY / 2], ids[MANY - 1], last] {
        assert_eq!(state(&after, id).await, abandoned());
    }
    let counts = after.counts("default", now()).await.unwrap();
    let queue = &counts.queues["default"];
    assert_eq!((queue.cancelled, queue.sum()), (MANY as u64 + 2, MANY as u64 + 3));
    is_sound(&after).await;
    let fresh = add(&after, vec![volatile()]).await[0];
    after.reap(now(), 10).await.unwrap();
    assert_eq!(state(&after, fresh).await.0, State::Queued);
    after.close().await.unwrap();
    // A stop in good order is the end of a process, too.
    let again = open(&image);
    assert!(claim(&again, 1).await == [durable]);
    assert_eq!(state(&again, fresh).await, abandoned());
    is_sound(&again).await;
}

#[tokio::test]
async fn submissions_of_both_kinds_at_once_are_all_answered() {
    let home = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(open(&home.path().join("store.db")));
    lives(&store).await;
    let mut callers = Vec::new();
    for caller in 0..8 {
        let store = store.clone();
        callers.push(tokio::spawn(async move {
            let mut ids = Vec::new();
            for round in 0..50 {
                let durable = (caller + round) % 3 == 0;
                let task = if durable { task() } else { volatile() };
                ids.push((add(&store, vec![task]).await[0], durable));
            }
            ids
        }));
    }
    for caller in callers {
        for (id, durable) in caller.await.unwrap() {
            let found = store.task("default", id).await.unwrap().unwrap();
            assert_eq!(found.spec.is_durable(), durable);
            assert_eq!(found.lifecycle.accepted_by, (!durable).then_some(PROCESS));
        }
    }
    is_sound(&store).await;
}
