//! Agents of a store in a file: their leases outlive the process that gave them, its crash included.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pensum_core::agent::{AgentSettings, AgentStatus};
use pensum_core::store::{AgentClaim, Checkpoint, ClaimRequest, Claimed, Command, Finish, Rejected, Store};
use pensum_core::{ExecutionId, Json, Name, NewTask, NodeId, Outcome, State, Time};
use pensum_store::sqlite::SqliteStore;

use crate::sqlite_files::{call, noop, open, t};

const SESSION: NodeId = NodeId(7);

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

fn poll(slots: usize, have: &[&Claimed]) -> ClaimRequest {
    let execution = |claimed: &&Claimed| ExecutionId {
        task: claimed.lease.task,
        attempt: claimed.lifecycle.attempt,
    };
    ClaimRequest {
        agent: Some(AgentClaim {
            namespace: Name::from("default"),
            name: Name::from("w"),
            have: have.iter().map(execution).collect(),
        }),
        ..ClaimRequest::new(SESSION, "w", slots, Duration::from_secs(30))
    }
}

fn of_node() -> ClaimRequest {
    ClaimRequest::new(NodeId(1), "node", 100, Duration::from_secs(30))
}

/// A store in which an agent holds three tasks, one of them with a checkpoint and one asked to stop, and three more wait:
/// one of them of the key of the first that is held, one that prefers the agent.
async fn prepare(store: &SqliteStore) -> Vec<Claimed> {
    let settings = AgentSettings {
        capabilities: vec![Name::from("noop")],
        max_concurrent_tasks: 4,
        ..AgentSettings::default()
    };
    store.put_agent(&call(t(0)), "w".into(), settings).await.unwrap();
    store.open_session(&call(t(0)), "w".into(), SESSION).await.unwrap();
    let keyed = |mut task: NewTask| {
        task.spec.key = Some(Name::from("k"));
        task
    };
    let mut preferring = noop();
    preferring.spec.details_mut().agent_id = Some("w".to_owned());
    let tasks = vec![keyed(noop()), noop(), noop(), keyed(noop()), preferring, noop()];
    store.enqueue(&call(t(0)), tasks).await.unwrap();
    let held = store.claim(poll(3, &[]), t(1)).await.unwrap();
    assert_eq!(held.len(), 3);
    let checkpoint = Checkpoint {
        state: Some(Json::parse("7".to_owned()).unwrap()),
        ..Checkpoint::new(held[1].lease)
    };
    store.checkpoint(checkpoint, t(2)).await.unwrap().unwrap();
    let cancel = Command::Cancel { reason: None };
    let asked = store
        .command(&call(t(2)), vec![held[2].lease.task], cancel)
        .await
        .unwrap();
    assert!(asked[0].is_ok());
    held
}

/// What was held is held still: nobody else gets it, and the agent ends it with the leases that it had.
async fn check(store: &SqliteStore, held: &[Claimed]) {
    let record = &store.agents("default").await.unwrap()[0];
    assert_eq!((record.running, record.session), (3, Some(SESSION)));
    let others = store.claim(of_node(), t(5)).await.unwrap();
    assert_eq!(others.len(), 1, "the key is held, and the agent is awaited: {others:?}");
    let record = &store.agents("default").await.unwrap()[0];
    assert_eq!(record.status(t(5)), AgentStatus::Busy);
    assert_eq!(store.verify().await.unwrap().violations, Vec::<String>::new());
    let again = store.claim(poll(1, &[&held[0]]), t(6)).await.unwrap();
    assert_eq!(again.len(), 2);
    assert_eq!((again[0].lease, again[1].lease), (held[1].lease, held[2].lease));
    assert_eq!(again[0].checkpoint.as_ref().map(Json::get), Some("7"));
    assert_eq!(again[0].lifecycle, {
        let mut lifecycle = held[1].lifecycle.clone();
        lifecycle.lease = again[0].lifecycle.lease;
        lifecycle
    });
    for (claimed, outcome) in [
        (&held[0], Outcome::Done(Json::null())),
        (&held[1], Outcome::Done(Json::null())),
        (&held[2], Outcome::Cancelled),
    ] {
        let finish = Finish::new(claimed.lease, outcome);
        store.finish(vec![finish], t(7)).await.unwrap().remove(0).unwrap();
    }
    let execution = &store.executions("default", held[0].lease.task).await.unwrap()[0];
    assert_eq!((&*execution.executor_id, execution.attempt), ("w", 1));
    assert_eq!(execution.started_at, t(1));
    let rest = store.claim(poll(10, &[]), t(8)).await.unwrap();
    assert_eq!(rest.len(), 2);
    assert_eq!(store.verify().await.unwrap().violations, Vec::<String>::new());
}

#[tokio::test]
async fn what_an_agent_holds_outlives_the_process_in_good_order() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&path(&home));
    let held = prepare(&store).await;
    store.close().await.unwrap();
    check(&open(&path(&home)), &held).await;
}

#[tokio::test]
async fn what_an_agent_holds_outlives_a_crash_of_the_process() {
    let (home, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(&path(&home));
    let held = prepare(&store).await;
    crash(&path(&home), &path(&image));
    check(&open(&path(&image)), &held).await;
}

#[tokio::test]
async fn an_agent_that_does_not_come_back_after_a_restart_loses_what_it_held() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&path(&home));
    let held = prepare(&store).await;
    store.close().await.unwrap();
    let store = open(&path(&home));
    // The file was closed for a day: the agent gets its lease from now.
    let day = t(86_400);
    assert_eq!(store.reap(day, 100).await.unwrap().leases_expired, 0);
    let record = &store.agents("default").await.unwrap()[0];
    assert_eq!(record.status(day), AgentStatus::Offline);
    let late = day.plus(Duration::from_secs(30));
    assert_eq!(store.reap(late, 100).await.unwrap().leases_expired, 3);
    let finish = Finish::new(held[0].lease, Outcome::Done(Json::null()));
    let refused = store.finish(vec![finish], late).await.unwrap().remove(0);
    assert_eq!(refused, Err(Rejected::LeaseLost(held[0].lease.task)));
    let record = store.task("default", held[2].lease.task).await.unwrap().unwrap();
    assert_eq!(record.lifecycle.state, State::Cancelled);
    assert_eq!(store.verify().await.unwrap().violations, Vec::<String>::new());
}

#[tokio::test]
async fn a_claim_that_could_not_be_written_is_answered_once_it_can() {
    let home = tempfile::tempdir().unwrap();
    let store = open(&path(&home));
    let held = prepare(&store).await;
    store.set_size_limit(1).await.unwrap();
    let mut refused = None;
    // The file has some room left: what is enqueued fills it.
    for _ in 0..1_000 {
        if store
            .enqueue(&call(t(3)), (0..50).map(|_| noop()).collect())
            .await
            .is_err()
        {
            refused = Some(store.claim(poll(1, &[&held[0], &held[1], &held[2]]), t(3)).await);
            break;
        }
    }
    let answer = refused.expect("the limit should be reached");
    store.set_size_limit(1 << 40).await.unwrap();
    let next = store
        .claim(poll(1, &[&held[0], &held[1], &held[2]]), t(4))
        .await
        .unwrap();
    assert_eq!(next.len(), 1);
    if let Ok(claimed) = answer {
        assert_eq!(claimed[0].lease, next[0].lease);
    }
    assert_eq!(store.verify().await.unwrap().violations, Vec::<String>::new());
    let time: Time = t(5);
    let finish = Finish::new(next[0].lease, Outcome::Done(Json::null()));
    store.finish(vec![finish], time).await.unwrap().remove(0).unwrap();
}
