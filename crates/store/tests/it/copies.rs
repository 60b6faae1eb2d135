//! Copies of whole stores: random ones compare equal and go on alike, wrong ones are noticed, half ones are refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pensum_core::dossier::{Bookmark, Import};
use pensum_core::input::Patch;
use pensum_core::model::ModelStore;
use pensum_core::outcome::Progress;
use pensum_core::store::{Beat, Call, ClaimRequest, IdempotencyKey, LogLine, LogStream, NodeBeat, Store};
use pensum_core::task::ExecutionStatus;
use pensum_core::{Json, Name, NewTask, NodeId, Outcome, Spec, State, StoreError, TaskId, Time};
use pensum_store::copy::{Copied, Side, Stage, copy};
use pensum_store::sqlite::{SqliteOptions, SqliteStore};
use pensum_testing::run::is_long;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::postgres_suite;
use crate::random::{self, Op, op};

/// A directory beside what cargo builds.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self, name: &str) -> Arc<dyn Store> {
        Arc::new(SqliteStore::open(SqliteOptions::new(self.path(name))).unwrap())
    }
}

fn noon() -> Time {
    Time::parse("2026-03-01T12:00:00Z").unwrap()
}

async fn try_copy(from: &dyn Store, to: &dyn Store, now: Time) -> Result<Copied, StoreError> {
    copy_at(from, to, now, &mut |_, _| {}).await
}

async fn copy_at(
    from: &dyn Store,
    to: &dyn Store,
    now: Time,
    tell: &mut (dyn FnMut(Stage, u64) + Send),
) -> Result<Copied, StoreError> {
    let now = &move || now;
    copy(Side { store: from, now }, Side { store: to, now }, tell).await
}

async fn good_copy(from: &dyn Store, to: &dyn Store, now: Time) -> Copied {
    let copied = try_copy(from, to, now).await.unwrap();
    assert_eq!(copied.faults, Vec::<String>::new());
    copied
}

/// Lets every lease run out and every node go, and agents with their sessions, which a copy does not carry.
async fn rest(store: &dyn Store, now: Time) -> Time {
    let now = now.plus(Duration::from_secs(60));
    for node in 1..4 {
        store.leave(NodeId(node), now).await.unwrap();
    }
    while store.reap(now, 1000).await.unwrap().leases_expired > 0 {}
    for agent in store.agents("default").await.unwrap() {
        store.delete_agent(&Call::new("tester", now), agent.name).await.unwrap();
    }
    now
}

/// Does what the random operations leave out.
async fn enrich(side: &random::Side, n: usize, now: Time) {
    let lines = ["", "one line", "a \"second\" – größer", "\u{1F980}"];
    if let Some(lease) = side.leases.last() {
        let line = |n: usize| LogLine {
            at: now,
            attempt: n as u32 % 3,
            stream: [LogStream::Stdout, LogStream::Stderr, LogStream::Log][n % 3],
            message: lines[n % lines.len()].to_owned(),
        };
        let progress = Progress {
            percent: 100.0 * (n % 97) as f64 / 97.0,
            message: n.is_multiple_of(2).then(|| lines[n % lines.len()].to_owned()),
        };
        let beat = Beat {
            lease: *lease,
            progress: Some(progress),
            logs: (0..n % 4).map(line).collect(),
        };
        let renewed = side.store.renew(vec![beat], Duration::from_secs(30), now).await;
        renewed.unwrap();
    }
    let key = IdempotencyKey {
        key: format!("request {n} – {}", lines[n % lines.len()]),
        digest: [n as u8; 32],
    };
    let call = Call {
        namespace: Name::from(["default", "elsewhere"][n % 2]),
        idempotency: Some(key),
        ..Call::new(format!("user {}", n % 5), now)
    };
    let mut task = NewTask::new(Spec::new(
        "noop",
        Json::from(serde_json::json!({ "n": [n, 0.1, null] })),
    ));
    task.spec.queue = Name::from(format!("queue {}", n % 7));
    let details = task.spec.details_mut();
    details.tags = vec![format!("tag {}", n % 11)];
    details.metadata = Some(Json::from(serde_json::json!({ "ratio": n as f64 / 7.0 })));
    details.requires = vec![Name::from("gpu")];
    side.store.enqueue(&call, vec![task]).await.unwrap();
    if let Some(id) = side.tasks.get(n % side.tasks.len().max(1)) {
        let patch = Patch {
            description: Some(Some(format!("change {n}"))),
            tags: Some(vec!["changed".to_owned()]),
            ..Patch::default()
        };
        // A task that was deleted refuses, which is fine.
        let _ = side.store.update(&Call::new("tester", now), *id, patch, None).await;
    }
}

/// Makes about `tasks` tasks by random operations, and lets them rest.
async fn fill(store: &Arc<dyn Store>, tasks: usize, start: Time) -> Time {
    /// What one side keeps of its ids would make each operation slower than the last.
    const CHAPTER: usize = 400;
    let mut runner = TestRunner::deterministic();
    let (mut now, mut made, mut steps) = (start, 0, 0);
    while made < tasks {
        let mut side = random::Side::of(store.clone());
        while side.tasks.len() < CHAPTER.min(tasks) {
            let op = op().new_tree(&mut runner).unwrap().current();
            match op {
                // Most would be gone before the end.
                Op::Prune => continue,
                Op::Pass(seconds) => now = now.plus(Duration::from_millis(u64::from(seconds) * 100)),
                _ => {}
            }
            side.perform(&op, now).await;
            steps += 1;
            if steps % 10 == 0 {
                enrich(&side, steps / 10, now).await;
            }
        }
        made += side.tasks.len();
    }
    rest(&**store, now).await
}

/// How many tasks the large copies have. To make them takes more than as much longer, for after each change of a queue the
/// store looks at all that waits.
fn tasks_of_a_large_copy() -> usize {
    if is_long() { 10_000 } else { 2_000 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_store_is_copied_from_memory_to_a_file_and_from_file_to_file() {
    let place = Place::new();
    let (from, to) = (sqlite().await, place.open("to.db"));
    let tasks = tasks_of_a_large_copy();
    let now = fill(&from, tasks, noon()).await;
    let copied = good_copy(&*from, &*to, now).await;
    assert!(copied.tasks as usize > tasks * 3 / 4, "{copied:?}");
    assert!(
        copied.events > copied.tasks && copied.logs > 0 && copied.keys > 0,
        "{copied:?}"
    );
    let namespaces = ["default", "elsewhere"];
    for state in State::ALL.iter().filter(|state| **state != State::Running) {
        assert!(
            has(&*from, *state, now).await,
            "no task is {state}, so that nothing is known of copies of such"
        );
    }
    to.close().await.unwrap();
    let to = place.open("to.db");
    for namespace in namespaces {
        assert_eq!(
            from.counts(namespace, now).await.unwrap(),
            to.counts(namespace, now).await.unwrap()
        );
    }
    assert_eq!(to.verify().await.unwrap().violations, Vec::<String>::new());
    // A copy of the copy, out of a file that was closed meanwhile.
    let third = place.open("third.db");
    let again = good_copy(&*to, &*third, now).await;
    assert_eq!(again, copied);
}

async fn has(store: &dyn Store, state: State, now: Time) -> bool {
    let mut next = Some(Bookmark::START);
    while let Some(from) = next {
        let parcel = store.export(from, 1000, now).await.unwrap();
        if parcel.dossiers.iter().any(|d| d.task.lifecycle.state == state) {
            return true;
        }
        next = parcel.next;
    }
    false
}

/// Copies random stores that `from` gives to ones that `to` gives, and lets both go on: they must do the same.
fn compare<F, T>(cases: u32, from: impl Fn() -> F, to: impl Fn() -> T)
where
    F: Future<Output = Arc<dyn Store>>,
    T: Future<Output = Arc<dyn Store>>,
{
    let cases = if is_long() { 50 * cases } else { cases };
    let before = prop::collection::vec(op().prop_map(Op::without_turns), 1..60);
    let after = prop::collection::vec(op(), 1..40);
    random::try_random(cases, 100, &(before, after), async |(before, after)| {
        go_on(&before, &after, from().await, to().await).await
    });
}

async fn go_on(before: &[Op], after: &[Op], from: Arc<dyn Store>, to: Arc<dyn Store>) -> Result<(), TestCaseError> {
    let mut now = noon();
    let pass = |now: &mut Time, op: &Op| {
        if let Op::Pass(seconds) = op {
            *now = now.plus(Duration::from_secs((*seconds).into()));
        }
    };
    let mut original = random::Side::of(from.clone());
    for op in before {
        pass(&mut now, op);
        original.perform(op, now).await;
    }
    now = rest(&*from, now).await;
    let copied = try_copy(&*from, &*to, now).await.unwrap();
    prop_assert_eq!(copied.faults, Vec::<String>::new());
    let mut other = random::Side {
        store: to.clone(),
        ..original.clone()
    };
    for (number, op) in after.iter().enumerate() {
        pass(&mut now, op);
        let (expected, found) = (original.perform(op, now).await, other.perform(op, now).await);
        prop_assert_eq!(expected, found, "operation {} after the copy: {:?}", number, op);
        if number % 5 > 0 && number + 1 < after.len() {
            continue;
        }
        // The ids of what is new are the only ones that may differ.
        let (expected, found) = (original.picture(now).await, other.picture(now).await);
        for (what, expected) in &expected {
            prop_assert_eq!(Some(expected), found.get(what), "{} after {:?}", what, op);
        }
    }
    for store in [&from, &to] {
        prop_assert_eq!(store.verify().await.unwrap().violations, Vec::<String>::new());
        let _ = store.close().await;
    }
    Ok(())
}

async fn model() -> Arc<dyn Store> {
    Arc::new(ModelStore::new(3))
}

async fn sqlite() -> Arc<dyn Store> {
    pensum_store::open("sqlite::memory:", "tests").unwrap()
}

#[test]
fn random_copies_of_sqlite_in_sqlite_go_on_alike() {
    compare(40, sqlite, sqlite);
}

#[test]
fn random_copies_of_the_model_in_sqlite_go_on_alike() {
    compare(40, model, sqlite);
}

#[test]
fn random_copies_of_sqlite_in_the_model_go_on_alike() {
    compare(40, sqlite, model);
}

#[test]
fn random_copies_of_sqlite_in_postgres_go_on_alike() {
    compare(10, sqlite, postgres_suite::direct);
}

#[test]
fn random_copies_of_postgres_in_sqlite_go_on_alike() {
    compare(10, postgres_suite::direct, sqlite);
}

#[test]
fn random_copies_of_the_model_in_postgres_go_on_alike() {
    compare(10, model, postgres_suite::direct);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_store_is_copied_to_postgres_and_back() {
    let place = Place::new();
    let (from, between, to) = (sqlite().await, postgres_suite::direct().await, place.open("to.db"));
    let tasks = tasks_of_a_large_copy();
    let now = fill(&from, tasks, noon()).await;
    let there = good_copy(&*from, &*between, now).await;
    assert!(there.tasks as usize > tasks * 3 / 4, "{there:?}");
    let back = good_copy(&*between, &*to, now).await;
    assert_eq!(there, back);
    // What the detour left out would be missing on both of its sides.
    let faults = good_copy(&*from, &*place.open("straight.db"), now).await;
    assert_eq!(faults, back);
}

async fn add(store: &dyn Store, count: usize) -> Vec<TaskId> {
    let tasks = (0..count).map(|_| NewTask::new(Spec::new("noop", Json::null())));
    let made = store.enqueue(&Call::new("tester", noon()), tasks.collect()).await;
    made.unwrap().into_iter().map(|made| made.id).collect()
}

fn request(slots: usize) -> ClaimRequest {
    ClaimRequest::new(NodeId(1), "node one", slots, Duration::from_secs(30))
}

/// Changes the file of a store behind its back.
fn meddle(path: &Path, sql: &str) {
    let db = rusqlite::Connection::open(path).unwrap();
    db.busy_timeout(Duration::from_secs(5)).unwrap();
    db.execute_batch(sql).unwrap();
}

/// A copy to whose target something happens before it is compared.
async fn damaged_copy(sql: &str) -> (Vec<String>, Vec<TaskId>) {
    let place = Place::new();
    let (from, to) = (place.open("from.db"), place.open("to.db"));
    let ids = add(&*from, 5).await;
    let claimed = from.claim(request(2), noon()).await.unwrap();
    for claimed in claimed {
        let finish = pensum_core::store::Finish::new(claimed.lease, Outcome::Done(Json::null()));
        from.finish(vec![finish], noon()).await.unwrap().remove(0).unwrap();
    }
    let path = place.path("to.db");
    let mut damage = Some(sql);
    let mut tell = |stage: Stage, _| {
        if stage == Stage::Comparing
            && let Some(sql) = damage.take()
        {
            meddle(&path, sql);
        }
    };
    let copied = copy_at(&*from, &*to, noon(), &mut tell).await.unwrap();
    assert!(damage.is_none(), "the copy was not compared");
    // What is wrong must not pass for complete.
    to.close().await.unwrap();
    let opened = SqliteStore::open(SqliteOptions::new(&path));
    assert!(matches!(opened.err(), Some(StoreError::Conflict(_))));
    (copied.faults, ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_wrong_with_a_copy_is_said_with_its_task_and_field() {
    let (faults, ids) = damaged_copy("UPDATE task SET parameters = '1' WHERE row = 4").await;
    assert_eq!(faults, [format!("task {} differs in task.spec.parameters", ids[3])]);
    let (faults, ids) = damaged_copy("DELETE FROM task WHERE row = 2; DELETE FROM outcome WHERE row = 2").await;
    assert_eq!(faults[0], format!("task {} is not in the target", ids[1]));
    let (faults, ids) = damaged_copy(
        "UPDATE live SET run_at = run_at + 1, flags = 0 WHERE row = 5;
         UPDATE outcome SET actor = 'someone else' WHERE row = 1;",
    )
    .await;
    assert_eq!(faults[0], format!("task {} differs in events", ids[0]));
    let says = |field: &str| faults[1].contains(field);
    assert!(says(&ids[4].to_string()) && says("task.lifecycle.run_at"), "{faults:?}");
    let (faults, _) = damaged_copy("UPDATE counter SET failed = failed + 1").await;
    assert_eq!(faults[0], "the target: class 0 counts 1 failed tasks and has 0");
    let (faults, _) =
        damaged_copy("INSERT INTO idempotency VALUES ('default', 'k', zeroblob(32), zeroblob(16), 1)").await;
    assert_eq!(faults, ["the idempotency key `k` of the namespace default differs"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_copy_is_refused_until_it_is_removed() {
    let place = Place::new();
    let (from, to) = (place.open("from.db"), place.open("to.db"));
    add(&*from, 3).await;
    to.import(Import::Begin, noon()).await.unwrap();
    let parcel = from.export(Bookmark::START, 2, noon()).await.unwrap();
    to.import(Import::Parcel(parcel), noon()).await.unwrap();
    // The process dies here.
    drop(to);
    let path = place.path("to.db");
    let refused = SqliteStore::open(SqliteOptions::new(&path)).err();
    let Some(StoreError::Conflict(why)) = refused else {
        panic!("{refused:?}")
    };
    assert!(
        why.contains("to.db holds a copy that was not finished; remove it"),
        "{why}"
    );
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
    good_copy(&*from, &*place.open("to.db"), noon()).await;
    place.open("to.db").close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_copy_leaves_the_target_as_it_was() {
    let place = Place::new();
    let (from, to) = (place.open("from.db"), place.open("to.db"));
    add(&*from, 2).await;
    let beat = NodeBeat {
        node: NodeId(1),
        name: Name::from("node one"),
        version: "1".to_owned(),
        address: None,
        started_at: noon(),
        slots: 1,
        running: 0,
        ttl: Duration::from_secs(10),
    };
    from.heartbeat(beat, noon()).await.unwrap();
    let refused = try_copy(&*from, &*to, noon()).await.unwrap_err().to_string();
    assert!(refused.contains("the source is in use by node one"), "{refused}");
    from.claim(request(1), noon()).await.unwrap();
    from.leave(NodeId(1), noon()).await.unwrap();
    let refused = try_copy(&*from, &*to, noon()).await.unwrap_err().to_string();
    assert!(refused.contains("1 task is running on node one"), "{refused}");
    // The lease runs out.
    let later = noon().plus(Duration::from_secs(30));
    assert_eq!(good_copy(&*from, &*to, later).await.tasks, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ran_when_the_source_died_is_copied_as_crashed() {
    let place = Place::new();
    let from = place.open("from.db");
    let ids = add(&*from, 1).await;
    from.claim(request(1), noon()).await.unwrap();
    // A commit takes the claim to the disk.
    add(&*from, 1).await;
    drop(from);
    let (from, to) = (place.open("from.db"), place.open("to.db"));
    good_copy(&*from, &*to, noon()).await;
    let executions = to.executions("default", ids[0]).await.unwrap();
    assert_eq!(executions[0].status, ExecutionStatus::Crashed);
    assert!(to.task("default", ids[0]).await.unwrap().unwrap().lifecycle.suspect);
}
