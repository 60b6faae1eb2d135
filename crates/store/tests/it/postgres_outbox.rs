//! Tasks written within transactions of the application.

use std::sync::Arc;
use std::time::Duration;

use pensum_core::intake::{self, AdmitRequest};
use pensum_core::query::TaskFilter;
use pensum_core::store::{Call, ClaimRequest, Claimed, Store, StoreError};
use pensum_core::task::{Dependency, OnConflict, Unique};
use pensum_core::{Json, Name, NewTask, NodeId, Page, Spec, State, TaskId, Time};
use pensum_store::postgres::Outbox;
use pensum_testing::postgres::{Database, connect};
use tokio_postgres::{Client, IsolationLevel};

struct Bench {
    store: Arc<dyn Store>,
    outbox: Outbox,
    database: Database,
}

impl Bench {
    async fn new() -> Bench {
        Bench::with("").await
    }

    /// A store whose URL ends like this.
    async fn with(query: &str) -> Bench {
        let database = Database::fresh().await;
        let url = format!("{}{query}", database.url());
        Bench {
            store: pensum_store::connect(&url, "tests").await.unwrap(),
            outbox: Outbox::default(),
            database,
        }
    }

    async fn client(&self) -> Client {
        let client = connect(&self.database.url()).await;
        let table = "CREATE TABLE IF NOT EXISTS orders(item text)";
        client.batch_execute(table).await.unwrap();
        client
    }

    fn now(&self) -> Time {
        self.store.clock().unwrap().now()
    }

    async fn exists(&self, id: TaskId) -> bool {
        self.store.task("default", id).await.unwrap().is_some()
    }

    async fn claim(&self) -> Vec<Claimed> {
        let request = ClaimRequest::new(NodeId(7), "tester-node", 1_000, Duration::from_secs(30));
        self.store.claim(request, self.now()).await.unwrap()
    }

    async fn finish(self) {
        let verified = self.store.verify().await.unwrap();
        assert_eq!(verified.violations, Vec::<String>::new());
        self.store.close().await.unwrap();
    }
}

fn call(now: Time) -> Call {
    Call::new("shop", now)
}

fn task(handler: &str) -> NewTask {
    NewTask::new(Spec::new(handler, Json::empty_object()))
}

#[tokio::test]
async fn a_task_is_there_exactly_if_the_transaction_commits() {
    let bench = Bench::new().await;
    let mut client = bench.client().await;
    for commit in [true, false] {
        let transaction = client.transaction().await.unwrap();
        transaction
            .batch_execute("INSERT INTO orders VALUES ('lamp')")
            .await
            .unwrap();
        let now = bench.outbox.now(&transaction).await.unwrap();
        let mut second = task("ship");
        second.spec.details_mut().tags = vec!["express".to_owned()];
        let tasks = vec![task("bill"), second];
        let ids = bench.outbox.enqueue(&transaction, &call(now), tasks).await.unwrap();
        assert!(
            !bench.exists(ids[0]).await && bench.claim().await.is_empty(),
            "before the commit"
        );
        if commit {
            transaction.commit().await.unwrap();
        } else {
            transaction.rollback().await.unwrap();
        }
        assert_eq!(
            (bench.exists(ids[0]).await, bench.exists(ids[1]).await),
            (commit, commit)
        );
        if commit {
            let record = bench.store.task("default", ids[1]).await.unwrap().unwrap();
            assert_eq!((record.created_at, record.lifecycle.state), (now, State::Queued));
            let events = bench.store.events("default", ids[1]).await.unwrap();
            assert_eq!(events[0].actor.as_deref(), Some("shop"));
            let tagged = TaskFilter {
                tag: Some("express".to_owned()),
                ..TaskFilter::default()
            };
            let found = bench
                .store
                .tasks("default", tagged, Page::default(), now)
                .await
                .unwrap();
            assert_eq!(found.items[0].id, ids[1]);
            let claimed: Vec<TaskId> = bench.claim().await.iter().map(|c| c.lease.task).collect();
            assert_eq!(claimed, ids);
        }
    }
    let rows = client.query("SELECT item FROM orders", &[]).await.unwrap();
    assert_eq!(rows.len(), 1);
    let counts = bench.store.counts("default", bench.now()).await.unwrap();
    assert_eq!((counts.total().sum(), counts.total().running), (2, 2));
    bench.finish().await;
}

#[tokio::test]
async fn a_session_that_dies_leaves_nothing() {
    let bench = Bench::new().await;
    let mut client = bench.client().await;
    let transaction = client.transaction().await.unwrap();
    let now = bench.outbox.now(&transaction).await.unwrap();
    let ids = bench
        .outbox
        .enqueue(&transaction, &call(now), vec![task("ship")])
        .await
        .unwrap();
    let pid: i32 = transaction
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .unwrap()
        .get(0);
    let other = bench.client().await;
    other
        .execute("SELECT pg_terminate_backend($1, 10000)", &[&pid])
        .await
        .unwrap();
    assert!(transaction.commit().await.is_err());
    assert!(!bench.exists(ids[0]).await);
    bench.finish().await;
}

#[tokio::test]
async fn a_task_with_ties_is_refused_before_anything_is_written() {
    let bench = Bench::new().await;
    let mut client = bench.client().await;
    let transaction = client.transaction().await.unwrap();
    let now = bench.outbox.now(&transaction).await.unwrap();
    let [mut keyed, mut unique, mut after] = [(); 3].map(|()| task("ship"));
    keyed.spec.key = Some(Name::from("k"));
    unique.unique = Some(Box::new(Unique {
        key: Name::from("u"),
        ttl: None,
        on_conflict: OnConflict::Keep,
    }));
    after.depends_on.push(Dependency::Item(0));
    for tied in [keyed, unique, after] {
        assert!(!Outbox::takes(&tied));
        let tasks = vec![task("ship"), tied];
        let refused = bench.outbox.enqueue(&transaction, &call(now), tasks).await.unwrap_err();
        assert!(matches!(&refused, StoreError::Conflict(why) if why.contains("tasks[1]") && why.contains("intake")));
    }
    transaction.commit().await.expect("the transaction goes on");
    assert_eq!(
        bench.store.counts("default", bench.now()).await.unwrap().total().sum(),
        0
    );
    bench.finish().await;
}

#[tokio::test]
async fn what_is_due_later_waits_for_its_time() {
    let bench = Bench::new().await;
    let mut client = bench.client().await;
    let transaction = client.transaction().await.unwrap();
    let now = bench.outbox.now(&transaction).await.unwrap();
    let later = NewTask {
        run_at: Some(now.plus(Duration::from_secs(3_600))),
        ..task("ship")
    };
    let ids = bench
        .outbox
        .enqueue(&transaction, &call(now), vec![later])
        .await
        .unwrap();
    transaction.commit().await.unwrap();
    assert!(bench.claim().await.is_empty());
    let record = bench.store.task("default", ids[0]).await.unwrap().unwrap();
    assert_eq!(record.lifecycle.run_at, now.plus(Duration::from_secs(3_600)));
    bench.finish().await;
}

#[tokio::test]
async fn a_batch_of_many_kinds_keeps_its_order() {
    let bench = Bench::new().await;
    let mut client = bench.client().await;
    let kinds = ["a", "b", "c"];
    let mut expected = Vec::new();
    // The second time every kind is known.
    for _ in 0..2 {
        let transaction = client.transaction().await.unwrap();
        let now = bench.outbox.now(&transaction).await.unwrap();
        let tasks = (0..300).map(|n| {
            let mut task = task(kinds[n % 3]);
            task.spec.queue = Name::from(["x", "y"][n % 2]);
            task.spec.parameters = Json::of(&n).unwrap();
            if n % 7 == 0 {
                task.spec.details_mut().requires = vec![Name::from("gpu")];
            }
            task
        });
        let tasks: Vec<NewTask> = tasks.collect();
        let ids = bench
            .outbox
            .enqueue(&transaction, &call(now), tasks.clone())
            .await
            .unwrap();
        transaction.commit().await.unwrap();
        expected.extend(ids.into_iter().zip(tasks));
    }
    let claimed = bench.claim().await;
    assert_eq!(claimed.len(), expected.len());
    for (claimed, (id, task)) in claimed.iter().zip(&expected) {
        assert_eq!((claimed.lease.task, &*claimed.spec), (*id, &task.spec));
    }
    bench.finish().await;
}

#[tokio::test]
async fn a_kind_that_is_new_to_the_store_may_come_from_two_transactions_at_once() {
    let bench = Bench::new().await;
    let (mut one, mut other) = (bench.client().await, bench.client().await);
    let first = one.transaction().await.unwrap();
    let now = bench.outbox.now(&first).await.unwrap();
    let mut ids = bench
        .outbox
        .enqueue(&first, &call(now), vec![task("new")])
        .await
        .unwrap();
    let outbox = bench.outbox.clone();
    let waiting = tokio::spawn(async move {
        let second = other.transaction().await.unwrap();
        let ids = outbox.enqueue(&second, &call(now), vec![task("new")]).await.unwrap();
        second.commit().await.unwrap();
        ids
    });
    first.commit().await.unwrap();
    ids.extend(waiting.await.unwrap());
    let claimed = bench.claim().await;
    assert_eq!(claimed.len(), 2);
    for id in ids {
        assert!(claimed.iter().any(|c| c.lease.task == id));
    }
    bench.finish().await;
}

#[tokio::test]
async fn stricter_isolation_is_no_obstacle() {
    let bench = Bench::new().await;
    let mut client = bench.client().await;
    for isolation in [IsolationLevel::RepeatableRead, IsolationLevel::Serializable] {
        let transaction = client
            .build_transaction()
            .isolation_level(isolation)
            .start()
            .await
            .unwrap();
        let now = bench.outbox.now(&transaction).await.unwrap();
        let kind = format!("{isolation:?}");
        let tasks = vec![task(&kind), task(&kind)];
        let ids = bench.outbox.enqueue(&transaction, &call(now), tasks).await.unwrap();
        transaction.commit().await.unwrap();
        assert!(bench.exists(ids[0]).await && bench.exists(ids[1]).await);
    }
    bench.finish().await;
}

#[tokio::test]
async fn what_is_submitted_is_admitted_after_the_commit() {
    let bench = Bench::new().await;
    let mut client = bench.client().await;
    let admit = async || {
        let request = AdmitRequest {
            limit: 10,
            wait: Duration::ZERO,
        };
        let judge = |row: &intake::IntakeTask| intake::read(&row.task, row.created_at).map_err(|p| p.to_string());
        bench.store.admit(request, bench.now(), &judge).await.unwrap()
    };
    let json = Json::parse(r#"{"handler":"ship","key":"k","parameters":{"n":12345678901234567890123}}"#.to_owned());
    let json = json.unwrap();
    for commit in [false, true] {
        let transaction = client.transaction().await.unwrap();
        let now = bench.outbox.now(&transaction).await.unwrap();
        let row = bench.outbox.submit(&transaction, &call(now), &json).await.unwrap();
        assert!(row > 0);
        assert_eq!(admit().await.rows, 0);
        match commit {
            true => transaction.commit().await.unwrap(),
            false => transaction.rollback().await.unwrap(),
        }
        assert_eq!(admit().await.rows, u64::from(commit));
    }
    let claimed = bench.claim().await;
    assert_eq!(claimed[0].spec.parameters.get(), r#"{"n": 12345678901234567890123}"#);
    let events = bench.store.events("default", claimed[0].lease.task).await.unwrap();
    assert_eq!(events[0].actor.as_deref(), Some("shop"));
    bench.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commit_tells_the_nodes_unless_that_is_unwanted() {
    let bench = Bench::new().await;
    let mut client = bench.client().await;
    let (heard, mut notices) = tokio::sync::mpsc::unbounded_channel();
    let config: tokio_postgres::Config = bench.database.url().parse().unwrap();
    let (listener, mut connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|ctx| connection.poll_message(ctx)).await {
            if let tokio_postgres::AsyncMessage::Notification(notice) = message {
                let _ = heard.send((notice.process_id(), notice.payload().to_owned()));
            }
        }
    });
    listener.batch_execute("LISTEN pensum_pensum").await.unwrap();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let submitted = Json::parse(r#"{"handler":"ship"}"#.to_owned()).unwrap();
    for notify in [false, true] {
        let outbox = bench.outbox.clone().notify(notify);
        let transaction = client.transaction().await.unwrap();
        let now = outbox.now(&transaction).await.unwrap();
        outbox
            .enqueue(&transaction, &call(now), vec![task("ship")])
            .await
            .unwrap();
        transaction.commit().await.unwrap();
        let transaction = client.transaction().await.unwrap();
        outbox.submit(&transaction, &call(now), &submitted).await.unwrap();
        transaction.commit().await.unwrap();
    }
    // They come in the order of the commits, so this one ends the list.
    client.batch_execute("NOTIFY pensum_pensum, 'end'").await.unwrap();
    let mut own = 0;
    loop {
        let heard = tokio::time::timeout(Duration::from_secs(20), notices.recv()).await;
        match heard.expect("a notice").unwrap() {
            (_, payload) if payload == "end" => break,
            (from, _) => own += u32::from(from == pid),
        }
    }
    assert_eq!(own, 2);
    bench.finish().await;
}

#[tokio::test]
async fn another_schema_and_a_pooler_change_nothing() {
    let bench = Bench::with("?schema=jobs_2").await;
    let outbox = Outbox::new("jobs_2").unwrap();
    let mut client = connect(&bench.database.pooled_url()).await;
    let transaction = client.transaction().await.unwrap();
    let now = outbox.now(&transaction).await.unwrap();
    let ids = outbox
        .enqueue(&transaction, &call(now), vec![task("ship"), task("bill")])
        .await
        .unwrap();
    transaction.commit().await.unwrap();
    assert!(bench.exists(ids[0]).await && bench.exists(ids[1]).await);
    let transaction = client.transaction().await.unwrap();
    let elsewhere = Outbox::default().now(&transaction).await.unwrap_err();
    assert!(
        matches!(&elsewhere, StoreError::Corrupt(why) if why.contains("the schema pensum")),
        "{elsewhere:?}"
    );
    transaction.rollback().await.unwrap();
    for name in ["", "a-b", "Jobs", "x\".y"] {
        assert!(Outbox::new(name).is_err(), "{name}");
    }
    bench.finish().await;
}

#[tokio::test]
async fn a_schema_of_another_version_is_left_alone() {
    let bench = Bench::new().await;
    let mut client = bench.client().await;
    let set = |version: u32| format!("UPDATE pensum.meta SET value = {version} WHERE key = 'schema_version'");
    client.batch_execute(&set(99)).await.unwrap();
    let transaction = client.transaction().await.unwrap();
    let newer = bench.outbox.now(&transaction).await;
    assert!(matches!(newer, Err(StoreError::Newer { found: 99, .. })), "{newer:?}");
    transaction.rollback().await.unwrap();
    client.batch_execute(&set(0)).await.unwrap();
    let transaction = client.transaction().await.unwrap();
    let older = bench.outbox.now(&transaction).await.unwrap_err();
    assert!(
        matches!(&older, StoreError::Conflict(why) if why.contains("pensum db migrate")),
        "{older:?}"
    );
    transaction.rollback().await.unwrap();
    client.batch_execute(&set(1)).await.unwrap();
    bench.finish().await;
}
