//! What only PostgreSQL has to show of its reads: lists over many rows, counts and prunes beside other writers, and a
//! `verify` that sees every kind of damage.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pensum_core::outcome::Wait;
use pensum_core::store::{
    Call, ClaimRequest, Claimed, Finish, LogLine, LogStream, Rejected, Retention, Store, StoreError,
};
use pensum_core::task::{Dependency, Unique};
use pensum_core::{Name, NewTask, NodeId, Outcome, Page, Status, TaskFilter, TaskId, Time};
use pensum_testing::postgres::{Database, connect};

use crate::conformance::world::{after, json, retry, task, task_with};

fn noon() -> Time {
    Time::parse("2026-03-01T12:00:00Z").unwrap()
}

async fn database() -> Database {
    Database::from_template("reads", async |url: String| {
        open(&url).await.close().await.unwrap();
    })
    .await
}

async fn open(url: &str) -> Arc<dyn Store> {
    pensum_store::connect(url, "tests").await.unwrap()
}

async fn enqueue(store: &dyn Store, namespace: &str, tasks: Vec<NewTask>) -> Vec<TaskId> {
    let call = Call {
        namespace: Name::from(namespace),
        ..Call::new("tester", noon())
    };
    let enqueued = store.enqueue(&call, tasks).await.unwrap();
    enqueued.into_iter().map(|e| e.id).collect()
}

async fn claim(store: &dyn Store, slots: usize) -> Vec<Claimed> {
    let request = ClaimRequest::new(NodeId(1), "node", slots, Duration::from_secs(30));
    store.claim(request, noon()).await.unwrap()
}

/// Enqueues tasks that have ended at once.
async fn ended(store: &dyn Store, tasks: usize) -> Vec<TaskId> {
    let ids = enqueue(store, "default", vec![task(); tasks]).await;
    let claimed = claim(store, tasks).await;
    let finishes: Vec<Finish> = claimed
        .iter()
        .map(|c| Finish::new(c.lease, Outcome::Done(json("1"))))
        .collect();
    assert_eq!(finishes.len(), tasks);
    for result in store.finish(finishes, noon()).await.unwrap() {
        result.unwrap();
    }
    ids
}

async fn verify(store: &dyn Store) {
    assert_eq!(store.verify().await.unwrap().violations, Vec::<String>::new());
}

/// All rows of a list, and how many pages it took.
async fn pages(store: &dyn Store, filter: &TaskFilter) -> (Vec<TaskId>, usize) {
    let (mut ids, mut number) = (Vec::new(), 0);
    let mut page = Page {
        limit: 200,
        before_row: None,
    };
    loop {
        let found = store
            .tasks("default", filter.clone(), page.clone(), noon())
            .await
            .unwrap();
        ids.extend(found.items.iter().map(|t| t.id));
        number += 1;
        page.before_row = found.next;
        if page.before_row.is_none() {
            return (ids, number);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_more_rows_than_a_page_may_look_at_lose_none() {
    let database = database().await;
    let store = open(&database.url()).await;
    let running = enqueue(&*store, "default", vec![task(); 3]).await;
    claim(&*store, 3).await;
    let mut ready = enqueue(&*store, "default", vec![task(); 10]).await;
    let later = noon().plus(Duration::from_secs(60));
    let mut pending = enqueue(&*store, "default", vec![task_with(|t| t.run_at = Some(later)); 10]).await;
    for _ in 0..3 {
        enqueue(&*store, "elsewhere", vec![task(); 7_000]).await;
    }
    ready.extend(enqueue(&*store, "default", vec![task(); 10]).await);
    pending.extend(enqueue(&*store, "default", vec![task_with(|t| t.run_at = Some(later)); 10]).await);
    for list in [&mut ready, &mut pending] {
        list.reverse();
    }
    let of = |status| TaskFilter {
        status: vec![status],
        ..TaskFilter::default()
    };
    // What others have too many of is walked over; what is rare is found at once.
    assert_eq!(pages(&*store, &of(Status::Ready)).await, (ready.clone(), 2));
    assert_eq!(pages(&*store, &of(Status::Pending)).await, (pending.clone(), 1));
    let running: Vec<TaskId> = running.into_iter().rev().collect();
    assert_eq!(pages(&*store, &of(Status::Running)).await, (running.clone(), 1));
    let mut all: Vec<TaskId> = [ready, pending, running].concat();
    all.sort_by_key(|id| std::cmp::Reverse(id.row()));
    assert_eq!(pages(&*store, &TaskFilter::default()).await, (all, 2));
    let named = TaskFilter {
        q: Some("nothing has this name".to_owned()),
        ..TaskFilter::default()
    };
    assert_eq!(pages(&*store, &named).await, (Vec::new(), 2));
    let page = Page::default();
    let many = store.tasks("elsewhere", named, page.clone(), noon()).await.unwrap();
    assert!(many.items.is_empty() && many.next.is_some(), "a page is bounded");
    let nobody = store
        .tasks("nowhere", TaskFilter::default(), page, noon())
        .await
        .unwrap();
    assert!(nobody.items.is_empty() && nobody.next.is_none());
    verify(&*store).await;
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_of_all_tasks_are_listed_once_each() {
    let database = database().await;
    let store = open(&database.url()).await;
    ended(&*store, 30).await;
    enqueue(&*store, "default", vec![task(); 30]).await;
    for claimed in claim(&*store, 30).await {
        let failed = store
            .finish(vec![Finish::new(claimed.lease, retry())], noon())
            .await
            .unwrap();
        assert!(failed[0].is_ok());
    }
    ended(&*store, 30).await;
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let page = Page {
            limit: 7,
            before_row: before,
        };
        let found = store.all_executions("default", page).await.unwrap();
        assert!(found.items.len() <= 7);
        seen.extend(found.items.iter().map(|e| e.task.row()));
        before = found.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(seen.len(), 90);
    assert!(seen.is_sorted_by(|a, b| a > b));
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_stay_true_while_nodes_write_and_fold_at_once() {
    let database = database().await;
    let stores = [open(&database.url()).await, open(&database.url()).await];
    let work = stores.iter().flat_map(|store| {
        (0..3).map(|_| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                for _ in 0..10 {
                    enqueue(&*store, "default", vec![task(); 5]).await;
                    for claimed in claim(&*store, 3).await {
                        let finish = Finish::new(claimed.lease, Outcome::Done(json("1")));
                        store.finish(vec![finish], noon()).await.unwrap().remove(0).unwrap();
                    }
                    store.reap(noon(), 100).await.unwrap();
                }
            })
        })
    });
    let work: Vec<_> = work.collect();
    for task in work {
        task.await.unwrap();
    }
    let counts = stores[0].counts("default", noon()).await.unwrap();
    let total = counts.total();
    assert_eq!(total.sum(), 300);
    assert_eq!(counts.executions, total.completed);
    verify(&*stores[0]).await;
    // Sooner or later all that was appended is folded.
    let client = connect(&database.url()).await;
    for _ in 0..100 {
        stores[0].reap(noon(), 100).await.unwrap();
        let left: i64 = client
            .query_one("SELECT count(*) FROM pensum.tally", &[])
            .await
            .unwrap()
            .get(0);
        if left == 0 {
            break;
        }
    }
    let counter = "SELECT sum(n)::bigint FROM pensum.counter WHERE cell <> 9";
    let counted: i64 = client.query_one(counter, &[]).await.unwrap().get(0);
    assert_eq!(counted, 300);
    assert_eq!(stores[1].counts("default", noon()).await.unwrap(), counts);
    for store in stores {
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_prune_at_once_remove_each_task_once_and_none_that_is_needed() {
    let database = database().await;
    let stores = [open(&database.url()).await, open(&database.url()).await];
    let old = ended(&*stores[0], 300).await;
    // A chain of ended tasks: whoever removes one removes what points at the next.
    for pair in old.windows(2).step_by(3) {
        let chained = enqueue(&*stores[0], "default", vec![after(&[Dependency::Task(pair[0])])]).await;
        let claimed = claim(&*stores[0], 1).await;
        assert_eq!(claimed[0].lease.task, chained[0]);
        let finish = Finish::new(claimed[0].lease, Outcome::Done(json("1")));
        stores[0].finish(vec![finish], noon()).await.unwrap().remove(0).unwrap();
    }
    let retention = Retention {
        completed: Duration::from_secs(1),
        failed: Duration::from_secs(1),
    };
    let later = noon().plus(Duration::from_secs(2));
    let pruners: Vec<_> = (0..4)
        .map(|number| {
            let store = Arc::clone(&stores[number % 2]);
            tokio::spawn(async move {
                let mut removed = 0;
                loop {
                    let pruned = store.prune(retention, later, 20).await.unwrap();
                    removed += pruned.removed;
                    if !pruned.more {
                        return removed;
                    }
                }
            })
        })
        .collect();
    let mut needed = BTreeSet::new();
    for id in old.iter().rev() {
        match stores[1]
            .enqueue(&Call::new("tester", noon()), vec![after(&[Dependency::Task(*id)])])
            .await
        {
            Ok(_) => {
                needed.insert(*id);
            }
            Err(StoreError::Rejected(Rejected::UnknownDependency { .. })) => {}
            Err(other) => panic!("{other}"),
        }
    }
    let mut removed = 0;
    for pruner in pruners {
        removed += pruner.await.unwrap();
    }
    loop {
        let pruned = stores[0].prune(retention, later, 1_000).await.unwrap();
        removed += pruned.removed;
        if !pruned.more {
            break;
        }
    }
    assert_eq!(removed, 400 - needed.len() as u64, "{} are needed", needed.len());
    for id in &needed {
        assert!(stores[0].task("default", *id).await.unwrap().is_some());
    }
    verify(&*stores[0]).await;
    for store in stores {
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_name_every_table() {
    let database = database().await;
    let store = open(&database.url()).await;
    ended(&*store, 3).await;
    enqueue(&*store, "default", vec![task(); 2]).await;
    let stats = store.stats().await.unwrap();
    assert_eq!(stats.kind, "postgres");
    assert_eq!(
        (stats.rows["task"], stats.rows["live"], stats.rows["outcome"]),
        (5, 2, 3)
    );
    assert!(stats.bytes > 8_192);
    assert!(stats.durability.starts_with("PostgreSQL "), "{}", stats.durability);
    assert!(stats.location.ends_with(database.name()), "{}", stats.location);
    store.close().await.unwrap();
}

/// Something of everything, without a fault.
async fn fill(url: String) {
    let store = open(&url).await;
    let parent = enqueue(&*store, "default", vec![task()]).await;
    let spawning = claim(&*store, 1).await.remove(0);
    assert_eq!(spawning.lease.task, parent[0]);
    let waiting = Outcome::Wait {
        on: Wait::Children,
        checkpoint: Some(json("1")),
    };
    let finish = Finish {
        spawn: vec![task(), task()],
        ..Finish::new(spawning.lease, waiting)
    };
    store.finish(vec![finish], noon()).await.unwrap().remove(0).unwrap();
    // One of the children fails once, with a word; the other one ends.
    let mut claimed = claim(&*store, 2).await;
    let line = LogLine {
        at: noon(),
        attempt: 1,
        stream: LogStream::Log,
        message: "a word".to_owned(),
    };
    let failed = Finish {
        logs: vec![line],
        ..Finish::new(claimed.remove(0).lease, retry())
    };
    let done = Finish::new(claimed.remove(0).lease, Outcome::Done(json("2")));
    for result in store.finish(vec![failed, done], noon()).await.unwrap() {
        result.unwrap();
    }
    let first = enqueue(&*store, "default", vec![task()]).await;
    claim(&*store, 1).await;
    let tagged = task_with(|t| t.spec.details_mut().tags = vec!["red".into()]);
    let unique = task_with(|t| {
        t.unique = Some(Box::new(Unique {
            key: Name::from("u"),
            ttl: None,
            on_conflict: Default::default(),
        }));
    });
    let keyed = task_with(|t| t.spec.key = Some(Name::from("k")));
    let dependant = after(&[Dependency::Task(first[0])]);
    let tasks = vec![task(), tagged, unique, keyed.clone(), keyed, dependant];
    enqueue(&*store, "default", tasks).await;
    verify(&*store).await;
    store.close().await.unwrap();
}

/// What is done to a sound store, and a part of the sentence that tells of it.
const DAMAGES: [(&str, &str); 36] = [
    ("DELETE FROM pensum.outcome", "is neither unfinished nor finished"),
    (
        "INSERT INTO pensum.outcome(row, state, flags, finished_at, run_at, version)
         SELECT row, 3, flags & 4095, 1, 1, 2 FROM pensum.live",
        "is both unfinished and finished",
    ),
    (
        "DELETE FROM pensum.task WHERE row IN (SELECT row FROM pensum.live)",
        "unfinished row",
    ),
    (
        "DELETE FROM pensum.task WHERE row IN (SELECT row FROM pensum.outcome)",
        "finished row",
    ),
    (
        "UPDATE pensum.outcome SET state = 1",
        "is in a state that is not an end",
    ),
    (
        "UPDATE pensum.live SET state = 4 WHERE gate = 0",
        "is in a state that is an end",
    ),
    ("UPDATE pensum.task SET id = gen_random_uuid()", "names another row"),
    ("UPDATE pensum.task SET class = 999", "the class of task"),
    (
        "UPDATE pensum.live SET class = class + 1",
        "is in one class and counts in another",
    ),
    ("UPDATE pensum.live SET rank = -5", "stands elsewhere in the order"),
    ("UPDATE pensum.live SET rank = 3", "unknown priority"),
    ("UPDATE pensum.live SET deadline = 5", "stands elsewhere in the order"),
    (
        "UPDATE pensum.live SET scope = 'default' || chr(31) || 'x'",
        "the turn of another key",
    ),
    ("UPDATE pensum.live SET parent = NULL", "would tell another parent"),
    (
        "UPDATE pensum.live SET unmet = 5 WHERE unmet IS NOT NULL",
        "another number of unmet dependencies",
    ),
    (
        "UPDATE pensum.live SET waiting_for = 1 WHERE gate = 0",
        "waits for dependencies without having any",
    ),
    (
        "UPDATE pensum.live SET children = 7 WHERE children IS NOT NULL",
        "another number of unfinished children",
    ),
    (
        "UPDATE pensum.live SET flags = flags & ~1024",
        "its end would not tell them",
    ),
    (
        "UPDATE pensum.dependency SET prerequisite = 999999",
        "a dependency names row 999999",
    ),
    (
        "UPDATE pensum.unique_key SET row = 999999",
        "a unique key names row 999999",
    ),
    (
        "UPDATE pensum.unique_key SET row = (SELECT min(row) FROM pensum.outcome)",
        "has ended and still holds its unique key",
    ),
    (
        "UPDATE pensum.live SET flags = flags & ~1",
        "something in the table checkpoint",
    ),
    (
        "UPDATE pensum.live SET flags = flags & ~8",
        "something in the table unique_key",
    ),
    (
        "UPDATE pensum.live SET flags = flags & ~16",
        "something in the table dependency",
    ),
    (
        "UPDATE pensum.live SET flags = flags & ~32",
        "something in the table log",
    ),
    (
        "UPDATE pensum.live SET flags = flags & ~64",
        "something in the table event",
    ),
    (
        "UPDATE pensum.live SET flags = flags & ~128",
        "something in the table execution",
    ),
    (
        "DELETE FROM pensum.live WHERE (flags & 256) <> 0",
        "something in the table tag",
    ),
    (
        "UPDATE pensum.live SET node = NULL",
        "with 3 of the 4 columns of a lease",
    ),
    (
        "UPDATE pensum.live SET flags = flags | 4194304 WHERE gate = 0",
        "has the flags",
    ),
    (
        "UPDATE pensum.live SET gate = 2 WHERE gate = 0",
        "stands at gate 2 instead of 0",
    ),
    ("UPDATE pensum.live SET due_at = 5 WHERE gate = 0", "has due_at"),
    ("UPDATE pensum.live SET timer_at = 5 WHERE gate = 0", "has timer_at"),
    (
        "UPDATE pensum.live SET gate = 0 WHERE gate = 7",
        "more tasks have their turn than may",
    ),
    (
        "UPDATE pensum.live SET gate = 7 WHERE scope IS NOT NULL",
        "tasks wait, and none has its turn",
    ),
    (
        "ALTER SEQUENCE pensum.task_row RESTART WITH 1",
        "the next row would be 1",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn verify_tells_of_every_damage() {
    let count = ("INSERT INTO pensum.tally VALUES (1, 0, 3)", "tasks as Ready and has");
    let attempts = (
        "UPDATE pensum.counter SET n = n + 1; DELETE FROM pensum.execution",
        "ended attempts are counted",
    );
    for (damage, sentence) in DAMAGES.into_iter().chain([count, attempts]) {
        let database = Database::from_template("sound", fill).await;
        connect(&database.url()).await.batch_execute(damage).await.unwrap();
        let store = open(&database.url()).await;
        let found = store.verify().await.unwrap().violations;
        assert!(
            found.iter().any(|violation| violation.contains(sentence)),
            "{damage}: {found:#?}"
        );
        store.close().await.unwrap();
    }
}
