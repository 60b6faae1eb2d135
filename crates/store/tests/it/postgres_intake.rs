//! The intake of stores on PostgreSQL: what other programs insert, whoever dies meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pensum_core::intake::{self, AdmitRequest, Admitted, IntakeRecord, IntakeStatus, IntakeTask};
use pensum_core::query::{Page, TaskFilter};
use pensum_core::store::{Call, ClaimRequest, Claimed, IdempotencyKey, Rejected, Retention, Store, StoreError};
use pensum_core::{Json, Name, NewTask, NodeId, State, TaskId, TaskRecord, Time, WaitingFor};
use pensum_testing::postgres::{Database, connect};
use tokio::time::Instant;
use tokio_postgres::Client;

/// Longest wait for what should happen at once.
const SOON: Duration = Duration::from_secs(20);

/// What every node says of a row: whatever the input allows.
fn judge(row: &IntakeTask) -> Result<Vec<NewTask>, String> {
    intake::read(&row.task, row.created_at).map_err(|problems| problems.to_string())
}

/// A database with a store, and a program beside it.
struct Bench {
    store: Arc<dyn Store>,
    client: Client,
    database: Database,
}

impl Bench {
    async fn new() -> Bench {
        let database = Database::from_template("store", async |url: String| {
            let store = pensum_store::connect(&url, "tests").await.unwrap();
            store.close().await.unwrap();
        })
        .await;
        Bench {
            store: pensum_store::connect(&database.url(), "tests").await.unwrap(),
            client: connect(&database.url()).await,
            database,
        }
    }

    fn now(&self) -> Time {
        self.store.clock().unwrap().now()
    }

    fn call(&self) -> Call {
        Call::new("tester", self.now())
    }

    /// Another node on the same database.
    async fn another(&self) -> Arc<dyn Store> {
        pensum_store::connect(&self.database.url(), "tests").await.unwrap()
    }

    async fn insert(&self, task: &str) -> i64 {
        insert(&self.client, task).await
    }

    async fn sql(&self, statement: &str) {
        self.client.batch_execute(statement).await.unwrap();
    }

    /// Admits until there is nothing more.
    async fn admit(&self) -> Admitted {
        let mut all = Admitted::default();
        loop {
            let admitted = admit(&*self.store, 500).await.unwrap();
            all.rows += admitted.rows;
            all.tasks.extend(admitted.tasks);
            all.rejected.extend(admitted.rejected);
            if !admitted.more {
                return all;
            }
        }
    }

    /// The reason why the one row that there is was refused.
    async fn refusal(&self, task: &str) -> String {
        let id = self.insert(task).await;
        let admitted = self.admit().await;
        assert_eq!(
            (admitted.rows, admitted.tasks.len(), admitted.rejected.len()),
            (0, 0, 1),
            "{task}"
        );
        assert_eq!(admitted.rejected[0].0, id);
        let row = self.rows(Some(IntakeStatus::Rejected)).await.remove(0);
        assert_eq!((row.id, row.status), (id, IntakeStatus::Rejected));
        assert!(row.rejected_at.is_some());
        let error = row.error.unwrap();
        assert_eq!(error, admitted.rejected[0].1);
        error
    }

    /// How many rows wait, asked past the store.
    async fn waiting(&self) -> i64 {
        let sql = "SELECT count(*) FROM pensum.intake WHERE rejected_at IS NULL";
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    async fn rows(&self, status: Option<IntakeStatus>) -> Vec<IntakeRecord> {
        let page = Page::default();
        self.store.intake("default", status, page).await.unwrap().items
    }

    async fn task(&self, id: TaskId) -> TaskRecord {
        self.store
            .task("default", id)
            .await
            .unwrap()
            .expect("the task is there")
    }

    /// All tasks, oldest first.
    async fn tasks(&self) -> Vec<TaskRecord> {
        let mut all = Vec::new();
        let mut page = Page {
            limit: 200,
            before_row: None,
        };
        loop {
            let filter = TaskFilter::default();
            let found = self
                .store
                .tasks("default", filter, page.clone(), self.now())
                .await
                .unwrap();
            all.extend(found.items);
            match found.next {
                Some(row) => page.before_row = Some(row),
                None => break,
            }
        }
        all.reverse();
        all
    }

    async fn claim(&self, slots: usize) -> Vec<Claimed> {
        let request = ClaimRequest::new(NodeId(7), "tester-node", slots, Duration::from_secs(30));
        self.store.claim(request, self.now()).await.unwrap()
    }

    async fn finish(self) {
        let verified = self.store.verify().await.unwrap();
        assert_eq!(verified.violations, Vec::<String>::new());
        self.store.close().await.unwrap();
    }
}

async fn insert(client: &Client, task: &str) -> i64 {
    let sql = "INSERT INTO pensum.intake(task) VALUES ($1::text::jsonb) RETURNING id";
    client.query_one(sql, &[&task]).await.unwrap().get(0)
}

async fn admit(store: &dyn Store, limit: usize) -> Result<Admitted, StoreError> {
    let wait = Duration::ZERO;
    let now = store.clock().unwrap().now();
    store.admit(AdmitRequest { limit, wait }, now, &judge).await
}

/// A task with labels that fit one by one, and not together into an index.
fn too_wide() -> String {
    // Not all alike: PostgreSQL would compress them.
    let mut random = 1u64;
    let mut label = || {
        let digit = |_| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from_u32(0x4E00 + (random >> 33) as u32 % 20_000).unwrap()
        };
        (0..190).map(digit).collect::<String>()
    };
    let requires: Vec<String> = (0..50).map(|_| label()).collect();
    format!(
        r#"{{"handler":"noop","requires":{}}}"#,
        Json::of(&requires).unwrap().get()
    )
}

/// The numbers that tasks bear as their parameters, in the order of the tasks.
fn numbers(tasks: &[TaskRecord]) -> Vec<u64> {
    tasks.iter().map(|task| task.spec.parameters.to().unwrap()).collect()
}

#[tokio::test]
async fn a_committed_row_becomes_a_task_once_and_goes() {
    let bench = Bench::new().await;
    let sql = r#"INSERT INTO pensum.intake(task, actor)
        VALUES ('{"handler": "mail", "parameters": {"to": "Ada"}, "priority": "high", "tags": ["t"], "queue": "q"}', 'shop')"#;
    bench.sql(sql).await;
    assert_eq!(bench.rows(None).await[0].status, IntakeStatus::Waiting);
    let before = bench.now();
    let admitted = bench.admit().await;
    assert_eq!(
        (admitted.rows, admitted.tasks.len(), admitted.rejected.len()),
        (1, 1, 0)
    );
    assert_eq!(&*admitted.tasks[0].handler, "mail");
    let task = bench.task(admitted.tasks[0].id).await;
    assert_eq!((&*task.spec.handler, &*task.spec.queue), ("mail", "q"));
    assert_eq!(task.spec.priority, pensum_core::Priority::High);
    assert_eq!(task.spec.details.as_ref().unwrap().tags, ["t"]);
    assert_eq!(task.lifecycle.state, State::Queued);
    assert!(task.created_at >= before);
    let events = bench.store.events("default", task.id).await.unwrap();
    assert_eq!(events[0].actor.as_deref(), Some("shop"));
    assert!(bench.rows(None).await.is_empty());
    assert_eq!(bench.admit().await, Admitted::default());
    assert_eq!(bench.tasks().await.len(), 1);
    bench.finish().await;
}

#[tokio::test]
async fn a_row_of_a_transaction_that_did_not_commit_is_nothing() {
    let bench = Bench::new().await;
    let mut client = connect(&bench.database.url()).await;
    let transaction = client.transaction().await.unwrap();
    let sql = r#"INSERT INTO pensum.intake(task) VALUES ('{"handler": "noop"}')"#;
    transaction.batch_execute(sql).await.unwrap();
    assert_eq!(bench.admit().await, Admitted::default(), "it has not committed");
    transaction.rollback().await.unwrap();
    let mut dying = connect(&bench.database.url()).await;
    let transaction = dying.transaction().await.unwrap();
    transaction.batch_execute(sql).await.unwrap();
    let pid: i32 = transaction
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .unwrap()
        .get(0);
    bench.sql(&format!("SELECT pg_terminate_backend({pid}, 10000)")).await;
    assert!(transaction.commit().await.is_err());
    assert_eq!(bench.admit().await, Admitted::default());
    assert!(bench.rows(None).await.is_empty() && bench.tasks().await.is_empty());
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admissions_that_are_cut_off_anywhere_neither_lose_nor_double_a_row() {
    const ROWS: u64 = 120;
    let bench = Bench::new().await;
    for n in 0..ROWS {
        let unique = if n % 3 == 0 {
            format!(r#","unique":{{"key":"{n}"}}"#)
        } else {
            String::new()
        };
        bench
            .insert(&format!(r#"{{"handler":"noop","parameters":{n}{unique}}}"#))
            .await;
    }
    let done = Arc::new(AtomicBool::new(false));
    // The server ends sessions of the store at moments of its own choice.
    let (url, over) = (bench.database.url(), Arc::clone(&done));
    let assassin = tokio::spawn(async move {
        let client = connect(&url).await;
        let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()
                    AND application_name = 'pensum' AND random() < 0.5";
        while !over.load(Ordering::SeqCst) {
            client.batch_execute(kill).await.unwrap();
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    });
    let mut rounds = 0u64;
    let end = Instant::now() + SOON * 3;
    while bench.waiting().await > 0 {
        assert!(Instant::now() < end, "{rounds} rounds");
        let store = Arc::clone(&bench.store);
        let admission = tokio::spawn(async move { admit(&*store, 7).await });
        // And the node gives admissions up at moments of its own.
        let patience = Duration::from_micros(300 + rounds * 7_919 % (5_000 + rounds * 2_000));
        tokio::time::sleep(patience).await;
        admission.abort();
        let _ = admission.await;
        rounds += 1;
        if rounds > 40 {
            done.store(true, Ordering::SeqCst);
        }
    }
    done.store(true, Ordering::SeqCst);
    assassin.await.unwrap();
    let mut found = numbers(&bench.tasks().await);
    found.sort_unstable();
    assert_eq!(found, (0..ROWS).collect::<Vec<_>>(), "after {rounds} rounds");
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_admit_at_the_same_time_take_each_row_once_and_in_order() {
    const ROWS: u64 = 1_200;
    let bench = Bench::new().await;
    let nodes = [Arc::clone(&bench.store), bench.another().await, bench.another().await];
    let inserted = Arc::new(AtomicU64::new(0));
    let admissions: Vec<_> = nodes
        .iter()
        .map(|node| {
            let (node, inserted) = (Arc::clone(node), Arc::clone(&inserted));
            tokio::spawn(async move {
                let mut rows = 0;
                loop {
                    let all_are_in = inserted.load(Ordering::SeqCst) == ROWS;
                    let admitted = admit(&*node, 50).await.unwrap();
                    rows += admitted.rows;
                    let page = Page::default();
                    let waiting = node.intake("default", Some(IntakeStatus::Waiting), page).await.unwrap();
                    if all_are_in && waiting.items.is_empty() {
                        return rows;
                    }
                }
            })
        })
        .collect();
    for n in 0..ROWS {
        let key = if n % 5 == 0 { r#","key":"k""# } else { "" };
        bench
            .insert(&format!(r#"{{"handler":"noop","parameters":{n}{key}}}"#))
            .await;
        inserted.fetch_add(1, Ordering::SeqCst);
    }
    let mut rows = 0;
    for admission in admissions {
        rows += admission.await.unwrap();
    }
    assert_eq!(rows, ROWS);
    assert_eq!(numbers(&bench.tasks().await), (0..ROWS).collect::<Vec<_>>());
    for node in &nodes[1..] {
        node.close().await.unwrap();
    }
    bench.finish().await;
}

#[tokio::test]
async fn what_cannot_be_enqueued_stays_with_every_problem_by_its_path() {
    let bench = Bench::new().await;
    let check = async |task: &str, reason: &str| {
        let found = bench.refusal(task).await;
        let task: String = task.chars().take(200).collect();
        assert!(found.contains(reason), "{task}: {found:?} should say {reason:?}");
    };
    check(r#"{"handler":"noop","priority":9}"#, "priority: 9 is not a priority").await;
    check(r#"{"handler":"noop","colour":1}"#, "colour: unknown field `colour`").await;
    check(r#"{"handler":"noop","id":"x"}"#, "id: `id` is set by the engine").await;
    check(r#"{"handler":7}"#, "handler: invalid type").await;
    check(r#"{}"#, "handler: is required").await;
    check(r#""noop""#, "expected an object").await;
    check("null", "expected an object").await;
    check(
        r#"{"handler":"a b","tags":[""],"max_retries":2000}"#,
        "tags[0]: must not be empty",
    )
    .await;
    check(r#"{"handler":"noop","run_at":"tomorrow"}"#, "run_at: ").await;
    check(
        r#"{"handler":"noop","run_at":"2026-01-01T00:00:00Z","delay":3}"#,
        "delay: cannot stand",
    )
    .await;
    let nobody = "0198c1f0-7f3c-7abc-8def-0123456789ab";
    let orphan = format!(r#"{{"handler":"noop","depends_on":["{nobody}"]}}"#);
    check(&orphan, &format!("depends_on[0]: there is no task {nobody}")).await;
    check(
        r#"{"handler":"noop","depends_on":["a"]}"#,
        "depends_on[0]: `a` is neither",
    )
    .await;
    let deep = format!(
        r#"{{"handler":"noop","parameters":{}{}}}"#,
        "[".repeat(101),
        "]".repeat(101)
    );
    check(&deep, "parameters: is nested deeper").await;
    let long = format!(r#"{{"handler":"noop","parameters":"{}"}}"#, "x".repeat(1 << 20));
    check(&long, "task: is 1048613 bytes of JSON, the most is 1048576").await;
    let longer = format!(r#"{{"handler":"noop","parameters":"{}"}}"#, "x".repeat(17 << 20));
    check(&longer, "bytes of JSON, the most is 16777216").await;
    check("[]", "tasks: must hold 1 to 10000 tasks").await;
    let half = r#"[{"handler":"noop"},{"handler":"noop","timeout":"soon"}]"#;
    check(half, "tasks[1].timeout: `soon` is not a duration").await;
    let lost = format!(r#"{{"tasks":[{{"handler":"noop"}},{{"handler":"noop","depends_on":["{nobody}"]}}]}}"#);
    check(&lost, "tasks[1].depends_on[0]: there is no task").await;
    let circle = r#"[{"ref":"a","handler":"x","depends_on":["b"]},{"ref":"b","handler":"x","depends_on":["a"]}]"#;
    check(circle, "cycle: tasks[0] → tasks[1]").await;
    // Labels that fit one by one, and not together into an index.
    let wide = too_wide();
    check(&wide, "the database refuses it: index row").await;
    assert!(bench.tasks().await.is_empty(), "of a batch all or nothing");
    bench.finish().await;
}

#[tokio::test]
async fn columns_that_nobody_can_mean_are_refused_by_the_insert_or_the_admission() {
    let bench = Bench::new().await;
    for columns in [
        r#"(task) VALUES ('{"handler": "a\u0000b"}')"#,
        r#"(task) VALUES ('{"handler": ')"#,
        "(task) VALUES (NULL)",
        r#"(task, namespace) VALUES ('{}', '')"#,
        r#"(task, namespace) VALUES ('{}', 'a b')"#,
        r#"(task, actor) VALUES ('{}', E'a\nb')"#,
        r#"(task, actor) VALUES ('{}', repeat('x', 201))"#,
    ] {
        let insert = format!("INSERT INTO pensum.intake{columns}");
        assert!(bench.client.batch_execute(&insert).await.is_err(), "{columns}");
    }
    for time in ["infinity", "-infinity", "12345-01-01"] {
        bench
            .sql(&format!(
                r#"INSERT INTO pensum.intake(task, created_at) VALUES ('{{"handler": "noop"}}', '{time}')"#
            ))
            .await;
        let admitted = bench.admit().await;
        assert!(
            admitted.rejected[0].1.starts_with("created_at: must be"),
            "{time}: {admitted:?}"
        );
        assert_eq!(bench.rows(None).await[0].created_at, None);
    }
    bench.finish().await;
}

#[tokio::test]
async fn a_bad_row_keeps_no_good_one_back() {
    let bench = Bench::new().await;
    let mut bad = BTreeSet::new();
    let wide = too_wide();
    // What shows only when everything is written.
    bench
        .sql("ALTER TABLE pensum.tag ALTER COLUMN tag TYPE varchar(20)")
        .await;
    for n in 0..60 {
        match n % 10 {
            3 => bad.insert(bench.insert(r#"{"handler":"noop","delay":"never"}"#).await),
            5 if n < 30 => bad.insert(
                bench
                    .insert(r#"{"handler":"noop","tags":["more than twenty letters"]}"#)
                    .await,
            ),
            7 => bad.insert(bench.insert(&wide).await),
            _ => {
                bench.insert(&format!(r#"{{"handler":"noop","parameters":{n}}}"#)).await;
                true
            }
        };
    }
    let admitted = bench.admit().await;
    assert_eq!(
        admitted.rejected.iter().map(|(id, _)| *id).collect::<BTreeSet<_>>(),
        bad
    );
    let good: Vec<u64> = (0..60)
        .filter(|n| ![3, 7].contains(&(n % 10)) && ![5, 15, 25].contains(n))
        .collect();
    assert_eq!(numbers(&bench.tasks().await), good);
    let listed: BTreeSet<i64> = bench
        .rows(Some(IntakeStatus::Rejected))
        .await
        .iter()
        .map(|row| row.id)
        .collect();
    assert_eq!(listed, bad);
    assert!(bench.rows(Some(IntakeStatus::Waiting)).await.is_empty());
    bench.finish().await;
}

#[tokio::test]
async fn keys_unique_keys_and_dependencies_hold_within_one_admission_as_elsewhere() {
    let bench = Bench::new().await;
    let unique = |n: u64, conflict: &str| {
        format!(
            r#"{{"handler":"noop","parameters":{n},"delay":3600,"unique":{{"key":"u","on_conflict":"{conflict}"}}}}"#
        )
    };
    for (n, conflict) in [(1, "keep"), (2, "keep"), (3, "reject"), (4, "replace"), (5, "keep")] {
        bench.insert(&unique(n, conflict)).await;
    }
    let admitted = bench.admit().await;
    assert_eq!((admitted.rows, admitted.tasks.len()), (4, 2));
    assert!(
        admitted.rejected[0]
            .1
            .starts_with("unique: the key `u` is held by task"),
        "{admitted:?}"
    );
    let states: BTreeMap<u64, State> = bench
        .tasks()
        .await
        .iter()
        .map(|task| (task.spec.parameters.to().unwrap(), task.lifecycle.state))
        .collect();
    assert_eq!(states, BTreeMap::from([(1, State::Cancelled), (4, State::Queued)]));

    for n in 10..14 {
        bench
            .insert(&format!(
                r#"{{"handler":"noop","parameters":{n},"key":"one at a time"}}"#
            ))
            .await;
    }
    bench.admit().await;
    let claimed = bench.claim(10).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].spec.parameters.get(), "10");

    let batch = r#"{"tasks":[{"ref":"a","handler":"noop","parameters":20},
                            {"handler":"noop","parameters":21,"depends_on":["a"]}]}"#;
    bench.insert(batch).await;
    let admitted = bench.admit().await;
    let [first, second] = [0, 1].map(|item: usize| admitted.tasks[item].id);
    let dependant = format!(r#"{{"handler":"noop","parameters":22,"depends_on":["{second}"]}}"#);
    bench.insert(&dependant).await;
    let third = bench.admit().await.tasks[0].id;
    assert_eq!(bench.task(second).await.depends_on, [first]);
    assert_eq!(bench.task(third).await.depends_on, [second]);
    assert_eq!(
        bench.task(third).await.lifecycle.waiting_for,
        Some(WaitingFor::Dependencies)
    );
    bench.finish().await;
}

#[tokio::test]
async fn delays_count_from_the_insert() {
    let bench = Bench::new().await;
    let row = r#"INSERT INTO pensum.intake(task, created_at)
                 VALUES ('{"handler": "noop", "delay": 7200}', now() - interval '1 hour')"#;
    bench.sql(row).await;
    let task = bench.task(bench.admit().await.tasks[0].id).await;
    let left = task.lifecycle.run_at.since(bench.now()).as_secs();
    assert!((3_500..=3_600).contains(&left), "{left}");
    bench.finish().await;
}

#[tokio::test]
async fn namespaces_are_kept_apart() {
    let bench = Bench::new().await;
    bench
        .sql(
            r#"INSERT INTO pensum.intake(task, namespace) VALUES ('{"handler":"noop"}', 'other'), ('[]', 'other'),
                ('{"handler":"noop"}', 'default')"#,
        )
        .await;
    let admitted = bench.admit().await;
    let namespaces: Vec<&str> = admitted.tasks.iter().map(|task| &*task.namespace).collect();
    assert_eq!(namespaces, ["other", "default"]);
    assert_eq!(bench.tasks().await.len(), 1);
    assert!(bench.rows(None).await.is_empty());
    let rejected = admitted.rejected[0].0;
    let theirs = Call {
        namespace: Name::from("other"),
        ..bench.call()
    };
    assert!(!bench.store.retry_intake(&bench.call(), rejected, None).await.unwrap());
    assert!(!bench.store.delete_intake(&bench.call(), rejected).await.unwrap());
    assert!(bench.store.delete_intake(&theirs, rejected).await.unwrap());
    bench.finish().await;
}

#[tokio::test]
async fn a_rejected_row_can_be_tried_again_mended_and_removed() {
    let bench = Bench::new().await;
    let (store, call) = (&bench.store, bench.call());
    let id = bench.insert(r#"{"handler":"no op"}"#).await;
    bench.admit().await;
    assert!(store.retry_intake(&call, id, None).await.unwrap());
    assert_eq!(bench.rows(None).await[0].status, IntakeStatus::Waiting);
    assert!(store.retry_intake(&call, id, None).await.unwrap(), "it waits already");
    let better = Json::parse(r#"{"handler":"noop"}"#.to_owned()).unwrap();
    let refused = store.retry_intake(&call, id, Some(better.clone())).await;
    assert!(matches!(refused, Err(StoreError::Conflict(why)) if why.contains("waits to be admitted")));
    assert_eq!(bench.admit().await.rejected.len(), 1, "it is as wrong as before");
    assert!(store.retry_intake(&call, id, Some(better.clone())).await.unwrap());
    assert_eq!(bench.admit().await.tasks.len(), 1);
    assert!(
        !store.retry_intake(&call, id, Some(better)).await.unwrap(),
        "it is a task by now"
    );
    assert!(!store.delete_intake(&call, id).await.unwrap());

    let waiting = bench.insert(r#"{"handler":"noop"}"#).await;
    assert!(store.delete_intake(&call, waiting).await.unwrap());
    assert_eq!(bench.admit().await, Admitted::default());
    bench.finish().await;
}

#[tokio::test]
async fn a_repeated_retry_answers_as_the_first_one_did() {
    let bench = Bench::new().await;
    let id = bench.insert("[]").await;
    bench.admit().await;
    let call = |digest: u8| Call {
        idempotency: Some(IdempotencyKey {
            key: "again".to_owned(),
            digest: [digest; 32],
        }),
        ..bench.call()
    };
    assert!(bench.store.retry_intake(&call(1), id, None).await.unwrap());
    assert_eq!(bench.admit().await.rejected.len(), 1);
    assert!(bench.store.retry_intake(&call(1), id, None).await.unwrap());
    assert_eq!(
        bench.rows(None).await[0].status,
        IntakeStatus::Rejected,
        "it was retried once"
    );
    assert_eq!(
        bench.store.retry_intake(&call(2), id, None).await,
        Err(StoreError::Rejected(Rejected::IdempotencyMismatch))
    );
    bench.finish().await;
}

#[tokio::test]
async fn the_list_goes_page_by_page_from_the_newest_and_leaves_large_rows_out() {
    let bench = Bench::new().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(bench.insert("{}").await);
    }
    let large = format!(r#"{{"handler":"{}"}}"#, "x".repeat(70_000));
    ids.push(bench.insert(&large).await);
    let rows = bench.rows(None).await;
    assert_eq!((rows[0].task.clone(), rows[0].bytes), (None, 70_015));
    assert_eq!(rows[1].task.as_ref().unwrap().get(), "{}");
    let mut found = Vec::new();
    let mut page = Page {
        limit: 4,
        before_row: None,
    };
    loop {
        let paged = bench.store.intake("default", None, page.clone()).await.unwrap();
        found.extend(paged.items.iter().map(|row| row.id));
        match paged.next {
            Some(row) => page.before_row = Some(row),
            None => break,
        }
    }
    ids.reverse();
    assert_eq!(found, ids);
    bench.finish().await;
}

#[tokio::test]
async fn rejected_rows_go_with_the_retention_of_failed_tasks() {
    let bench = Bench::new().await;
    bench.insert("[]").await;
    bench.admit().await;
    bench
        .sql("UPDATE pensum.intake SET rejected_at = now() - interval '2 days'")
        .await;
    bench.insert("[]").await;
    bench.admit().await;
    let kept = bench.insert(r#"{"handler":"noop"}"#).await;
    bench
        .sql("UPDATE pensum.intake SET created_at = now() - interval '2 days' WHERE rejected_at IS NULL")
        .await;
    let day = Duration::from_secs(86_400);
    let retention = Retention {
        completed: day,
        failed: day,
    };
    bench.store.prune(retention, bench.now(), 100).await.unwrap();
    let rows = bench.rows(None).await;
    assert_eq!(rows.len(), 2);
    assert_eq!((rows[0].id, rows[0].status), (kept, IntakeStatus::Waiting));
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_request_is_answered_at_the_notice_and_without_one_at_the_next_look() {
    let bench = Bench::new().await;
    for notice in ["SELECT pg_notify('pensum_pensum', '')", ""] {
        let store = Arc::clone(&bench.store);
        let held = tokio::spawn(async move {
            let request = AdmitRequest { limit: 500, wait: SOON };
            let now = store.clock().unwrap().now();
            store.admit(request, now, &judge).await.unwrap()
        });
        let sql =
            format!(r#"BEGIN; INSERT INTO pensum.intake(task) VALUES ('{{"handler":"noop"}}'); {notice}; COMMIT"#);
        bench.sql(&sql).await;
        let inserted = Instant::now();
        assert_eq!(held.await.unwrap().rows, 1);
        let took = inserted.elapsed();
        assert!(took < Duration::from_secs(5), "with {notice:?} it took {took:?}");
    }
    bench.finish().await;
}

#[tokio::test]
async fn whoever_holds_a_row_or_the_turn_holds_up_nothing_else() {
    let bench = Bench::new().await;
    let held = bench.insert(r#"{"handler":"noop","parameters":1}"#).await;
    bench.insert(r#"{"handler":"noop","parameters":2}"#).await;
    let person = connect(&bench.database.url()).await;
    let edit = format!("BEGIN; SELECT * FROM pensum.intake WHERE id = {held} FOR UPDATE");
    person.batch_execute(&edit).await.unwrap();
    assert_eq!(bench.admit().await.rows, 1);
    assert_eq!(numbers(&bench.tasks().await), [2]);
    person.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(bench.admit().await.rows, 1);

    // A node in the middle of an admission: another one leaves the rest to it.
    bench.insert(r#"{"handler":"noop","parameters":3}"#).await;
    let turn = "BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('pensum.intake', 0))";
    person
        .batch_execute(&turn.replace("pensum.", "\"pensum\"."))
        .await
        .unwrap();
    person.batch_execute("ROLLBACK").await.unwrap();
    person.batch_execute(turn).await.unwrap();
    assert_eq!(bench.admit().await, Admitted::default());
    person.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(bench.admit().await.rows, 1);
    bench.finish().await;
}

#[tokio::test]
async fn a_large_batch_and_many_rows_come_through_whole() {
    let bench = Bench::new().await;
    let batch: Vec<String> = (0..10_000)
        .map(|n| format!(r#"{{"handler":"noop","parameters":{n}}}"#))
        .collect();
    bench.insert(&format!("[{}]", batch.join(","))).await;
    bench
        .sql(
            r#"INSERT INTO pensum.intake(task)
               SELECT jsonb_build_object('handler', 'noop', 'parameters', 9999 + n) FROM generate_series(1, 1100) n"#,
        )
        .await;
    let admitted = bench.admit().await;
    assert_eq!((admitted.rows, admitted.tasks.len()), (1_101, 11_100));
    assert_eq!(numbers(&bench.tasks().await), (0..11_100).collect::<Vec<_>>());
    bench.finish().await;
}

#[tokio::test]
async fn rows_are_admitted_through_a_pooler_too() {
    let bench = Bench::new().await;
    let store = pensum_store::connect(&bench.database.pooled_url(), "tests")
        .await
        .unwrap();
    bench.insert(r#"{"handler":"noop"}"#).await;
    bench.insert(r#"{"handler":"noop","unique":{"key":"u"}}"#).await;
    let long = format!(r#"{{"handler":"noop","parameters":"{}"}}"#, "x".repeat(100_000));
    bench.insert(&long).await;
    bench.insert("7").await;
    let admitted = admit(&*store, 500).await.unwrap();
    assert_eq!((admitted.rows, admitted.rejected.len()), (3, 1));
    store.close().await.unwrap();
    bench.finish().await;
}
