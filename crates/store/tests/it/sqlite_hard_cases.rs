//! Cases on SQLite that are easy to get wrong: clocks that go back, rows that change outside their order, paths with
//! two names, clean-ups that must come round.

use std::path::Path;
use std::time::Duration;

use pensum_core::store::{ClaimRequest, Claimed, Command, Finish, Retention, Store};
use pensum_core::{Json, Name, NewTask, NodeId, Outcome, State, StoreError, TaskId, Time};
use pensum_store::sqlite::{SqliteOptions, SqliteStore};

use crate::sqlite_files::{call, ids, noop, open, sound, t};

async fn add(store: &SqliteStore, tasks: Vec<NewTask>, now: Time) -> Vec<TaskId> {
    let made = store.enqueue(&call(now), tasks).await.unwrap();
    made.into_iter().map(|m| m.id).collect()
}

async fn claim(store: &SqliteStore, slots: usize, now: Time) -> Vec<Claimed> {
    let request = ClaimRequest::new(NodeId(1), "node", slots, Duration::from_secs(30));
    store.claim(request, now).await.unwrap()
}

async fn command(store: &SqliteStore, task: TaskId, command: Command, now: Time) {
    let answers = store.command(&call(now), vec![task], command).await.unwrap();
    assert!(answers[0].is_ok(), "{answers:?}");
}

#[tokio::test]
async fn tasks_are_not_lost_when_the_clock_was_set_back_before_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("store.db");
    let store = open(&path);
    let tasks = add(&store, vec![noop(), noop()], t(3600)).await;
    store.close().await.unwrap();
    let store = open(&path);
    assert!(claim(&store, 9, t(0)).await.is_empty());
    sound(&store).await;
    assert_eq!(ids(&claim(&store, 9, t(3600)).await), tasks);
    sound(&store).await;
}

#[tokio::test]
async fn a_signal_to_a_task_that_waits_in_the_queue_leaves_nothing_behind() {
    let store = open(Path::new(":memory:"));
    let task = add(&store, vec![noop()], t(0)).await[0];
    let signal = Command::Signal {
        name: Name::from("go"),
        payload: Json::null(),
    };
    command(&store, task, signal, t(1)).await;
    sound(&store).await;
    let claimed = claim(&store, 1, t(2)).await;
    let finish = Finish::new(claimed[0].lease, Outcome::Done(Json::null()));
    store.finish(vec![finish], t(3)).await.unwrap().remove(0).unwrap();
    sound(&store).await;
    command(&store, task, Command::Delete, t(4)).await;
    sound(&store).await;
}

#[tokio::test]
async fn a_clean_up_comes_round_however_many_young_tasks_there_are() {
    let store = open(Path::new(":memory:"));
    let day = 86_400;
    let cancelled = async |count: usize, now: Time| {
        for _ in 0..count / 5_000 {
            let made = add(&store, vec![noop(); 5_000], now).await;
            let cancel = Command::Cancel { reason: None };
            let answers = store.command(&call(now), made, cancel).await.unwrap();
            assert!(answers.iter().all(Result::is_ok));
        }
    };
    cancelled(5_000, t(0)).await;
    cancelled(55_000, t(6 * day)).await;
    let prune = async |now: Time| store.prune(Retention::default(), now, 10_000).await.unwrap().removed;
    assert_eq!(prune(t(6 * day)).await, 0);
    assert_eq!(prune(t(7 * day + 1)).await, 5_000);
}

#[tokio::test]
async fn a_store_under_two_names_has_one_owner() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("store.db");
    let link = home.path().join("link.db");
    let store = open(&path);
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let second = SqliteStore::open(SqliteOptions::new(&link));
    assert!(
        matches!(second.as_ref().err(), Some(StoreError::Locked { .. })),
        "{:?}",
        second.err()
    );
    drop(store);
    assert!(SqliteStore::open(SqliteOptions::new(&link)).is_ok());
}

#[tokio::test]
async fn what_expired_while_nobody_ran_is_not_started_after_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("store.db");
    let store = open(&path);
    let mut expiring = noop();
    expiring.spec.details_mut().expires_at = Some(t(30));
    let mut impatient = noop();
    impatient.spec.details_mut().queue_timeout = Some(Duration::from_secs(30).into());
    let tasks = add(&store, vec![expiring, impatient, noop()], t(0)).await;
    store.close().await.unwrap();
    let store = open(&path);
    assert_eq!(ids(&claim(&store, 9, t(100)).await), tasks[2..]);
    sound(&store).await;
    store.reap(t(100), 100).await.unwrap();
    for (task, state) in tasks.iter().zip([State::Cancelled, State::Failed, State::Running]) {
        let record = store.task("default", *task).await.unwrap().unwrap();
        assert_eq!(record.lifecycle.state, state);
    }
    sound(&store).await;
}

#[tokio::test]
async fn a_clock_that_once_ran_ahead_does_not_hide_who_kills_the_node() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("store.db");
    let store = open(&path);
    let task = add(&store, vec![noop()], t(86_400)).await[0];
    command(&store, task, Command::Pause, t(86_400)).await;
    store.close().await.unwrap();
    let store = open(&path);
    command(&store, task, Command::Resume, t(0)).await;
    command(&store, task, Command::Cancel { reason: None }, t(0)).await;
    let task = add(&store, vec![noop()], t(0)).await[0];
    assert_eq!(ids(&claim(&store, 1, t(0)).await), [task]);
    store.reap(t(1), 0).await.unwrap();
    drop(store);
    let store = open(&path);
    store.reap(t(10), 0).await.unwrap();
    let record = store.task("default", task).await.unwrap().unwrap();
    assert!(record.lifecycle.suspect, "{:?}", record.lifecycle);
}
