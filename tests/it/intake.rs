//! Tasks that programs leave in a store on PostgreSQL within transactions of their own.

use std::collections::BTreeMap;
use std::time::Duration;

use pensum::{Batch, Context, Handler, Json, OnConflict, Outbox, Outcome, Pensum, Task, TaskError};
use pensum_core::input::Invalid;
use pensum_testing::postgres::{Database, connect};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::harness::{Cli, Random, SOON, Server, assert_says, eventually, items, text};

/// A program with a database of its own, and where it runs.
struct Program {
    runtime: tokio::runtime::Runtime,
    client: Client,
    database: Database,
}

impl Program {
    fn new() -> Program {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let database = runtime.block_on(Database::fresh());
        let client = runtime.block_on(async { connect(&database.url()).await });
        Program {
            runtime,
            client,
            database,
        }
    }

    fn node(&self, args: &[&str]) -> Server {
        let mut server = Server::unstarted_on(self.database.url(), args);
        server.restart();
        server
    }

    fn sql(&self, statement: &str) {
        self.runtime
            .block_on(self.client.batch_execute(statement))
            .unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }

    fn insert(&self, task: &Value) {
        let sql = "INSERT INTO pensum.intake(task) VALUES ($1::text::jsonb)";
        let task = task.to_string();
        self.runtime.block_on(self.client.execute(sql, &[&task])).unwrap();
    }

    fn waiting(&self) -> i64 {
        let sql = "SELECT count(*) FROM pensum.intake WHERE rejected_at IS NULL";
        let row = self.runtime.block_on(self.client.query_one(sql, &[])).unwrap();
        row.get(0)
    }
}

#[test]
fn what_a_transaction_inserts_runs_once_it_has_committed_and_never_when_it_has_not() {
    let program = Program::new();
    let server = program.node(&[]);
    program.sql("CREATE TABLE orders(item text)");
    for end in ["ROLLBACK", "COMMIT"] {
        program.sql(&format!(
            r#"BEGIN; INSERT INTO orders VALUES ('lamp');
               INSERT INTO pensum.intake(task, actor) VALUES
                 ('{{"handler": "log", "parameters": {{"message": "{end}"}}, "tags": ["shop"]}}', 'shop');
               SELECT pg_notify('pensum_pensum', ''); {end}"#
        ));
    }
    let task = eventually("the task to run", SOON, || {
        let tasks = server.http.all("/api/v1/tasks?tag=shop");
        assert!(tasks.len() <= 1, "{tasks:#?}");
        tasks.into_iter().find(|task| task["status"] == "completed")
    });
    assert_eq!(task["parameters"]["message"], "COMMIT");
    let events = server.task(&format!("{}/events", text(&task["id"])));
    assert_eq!(items(&events["items"])[0]["actor"], "shop");
    assert_eq!(server.http.get("/api/v1/intake").expect(200)["items"], json!([]));
    server.finish();
}

#[test]
fn what_is_inserted_gets_from_its_queue_what_it_does_not_name() {
    let program = Program::new();
    let server = program.node(&[]);
    let settings = json!({ "priority": "urgent", "max_retries": 1 });
    server.http.put("/api/v1/queues/noop", &settings).expect(200);
    program.insert(&json!({ "handler": "noop", "name": "plain" }));
    program.insert(&json!({ "handler": "noop", "name": "named", "queue": "default", "priority": "normal" }));
    let tasks = eventually("both tasks to run", SOON, || {
        let tasks = server.http.all("/api/v1/tasks?status=completed");
        (tasks.len() == 2).then_some(tasks)
    });
    for task in tasks {
        let given = [&task["queue"], &task["priority"], &task["max_retries"]];
        match text(&task["name"]).as_str() {
            "plain" => assert_eq!(given, [&json!("noop"), &json!("urgent"), &json!(1)]),
            _ => assert_eq!(given, [&json!("default"), &json!("normal"), &json!(3)]),
        }
    }
    server.finish();
}

#[test]
fn what_is_refused_is_shown_mended_and_removed() {
    let program = Program::new();
    let server = program.node(&[]);
    let cli = server.cli();
    program.insert(&json!({ "handler": "log", "parameters": { "message": 7 } }));
    program.insert(&json!({ "handler": "noop", "priority": 9 }));
    program.insert(&json!({ "tasks": [{ "handler": "noop" }, { "handler": "sleep", "parameters": {} }] }));
    program.insert(&json!({ "handler": "command", "parameters": { "program": "true" } }));
    program.insert(&json!({ "handler": "pensum.bulk" }));
    program.insert(&json!({ "handler": "noop", "tags": ["good"] }));
    let rejected = eventually("five refusals", SOON, || {
        let rows = server.http.all("/api/v1/intake?status=rejected");
        (rows.len() == 5).then_some(rows)
    });
    let errors: Vec<&str> = rejected
        .iter()
        .rev()
        .map(|row| row["error"].as_str().unwrap())
        .collect();
    assert_says(errors[0], "parameters.message: ");
    assert_says(errors[1], "priority: 9 is not a priority");
    assert_says(errors[2], "tasks[1].parameters");
    assert_says(
        errors[3],
        "handler: inline `command` tasks are not taken from the intake",
    );
    assert_says(errors[4], "handler: names that begin with `pensum.`");
    eventually("the good one to run", SOON, || {
        let tasks = server.http.all("/api/v1/tasks?tag=good&status=completed");
        (tasks.len() == 1).then_some(())
    });
    assert_eq!(server.http.all("/api/v1/tasks").len(), 1);
    assert_says(&server.log(), "the intake holds what cannot be enqueued");

    let id = |at: usize| rejected[at]["id"].to_string();
    let listed = cli.json(&["intake", "list", "--limit", "2"]);
    assert_eq!(listed["items"], json!(rejected[..2]));
    let all = cli.run(&["intake", "list", "--all", "-o", "name"]).expect(0);
    assert_eq!(all.lines().count(), 5);
    assert_says(
        &cli.run(&["intake", "list", "--status", "lost"]).fails(2),
        "waiting or rejected",
    );

    let wrong = r#"{"handler": "noop", "priority": 8}"#;
    let refused = cli.run(&["intake", "retry", &id(3), "--task", wrong]).fails(2);
    assert_says(&refused, "task.priority: 8 is not a priority");
    let better = r#"{"handler": "noop", "priority": 5, "tags": ["mended"]}"#;
    assert_eq!(
        cli.run(&["intake", "retry", &id(3), "--task", better]).expect(0),
        format!("row {} waits to be enqueued\n", id(3))
    );
    eventually("the mended one to run", SOON, || {
        let tasks = server.http.all("/api/v1/tasks?tag=mended&status=completed");
        (tasks.len() == 1).then_some(())
    });
    let path = format!("/api/v1/intake/{}", id(4));
    server.http.post(&format!("{path}/retry"), &json!({})).expect(202);
    eventually("the next refusal", SOON, || {
        let row = server.http.all("/api/v1/intake?status=rejected").pop()?;
        (row["rejected_at"] != rejected[4]["rejected_at"]).then_some(())
    });
    server.http.delete(&path).expect(204);
    server.http.delete(&path).expect(404);
    server.http.post(&format!("{path}/retry"), &json!({})).expect(404);
    cli.run(&["intake", "delete", &id(0), &id(1), &id(2)]).expect(0);
    assert_says(&cli.run(&["intake", "delete", &id(0)]).fails(3), "there is no row");
    assert_eq!(server.http.get("/api/v1/intake").expect(200)["items"], json!([]));
    server.finish();
}

#[test]
fn commands_come_through_the_intake_where_that_was_asked_for() {
    let program = Program::new();
    let server = program.node(&["--allow-inline", "true"]);
    program.insert(&json!({ "handler": "command", "parameters": { "program": "echo", "args": ["hello"] } }));
    let task = eventually("the command to run", SOON, || {
        server.http.all("/api/v1/tasks?status=completed").pop()
    });
    assert_eq!(task["result"]["stdout"], "hello\n");
    server.finish();
}

#[test]
fn a_store_without_an_intake_has_an_empty_one() {
    let server = Server::start(&[]);
    assert_eq!(server.http.get("/api/v1/intake").expect(200)["items"], json!([]));
    server.http.get("/api/v1/intake?status=lost").expect(400);
    server.http.get("/api/v1/intake?cursor=00").expect(400);
    server.http.post("/api/v1/intake/1/retry", &json!({})).expect(404);
    server.http.post("/api/v1/intake/x/retry", &json!({})).expect(404);
    server
        .http
        .post("/api/v1/intake/1/retry", &json!({ "colour": 1 }))
        .expect(422);
    server.http.delete("/api/v1/intake/1").expect(404);
    assert_eq!(server.cli().run(&["intake", "list", "-o", "name"]).expect(0), "");
    server.finish();
}

#[test]
fn nodes_that_are_killed_while_they_admit_lose_and_double_nothing() {
    const ROUNDS: u64 = 6;
    const ROWS: u64 = 60;
    let program = Program::new();
    let mut random = Random::new();
    // Short, so that the test does not wait long for what dead nodes held.
    let mut nodes = [(); 2].map(|()| program.node(&["--lease", "4"]));
    let mut inserted = 0;
    for _ in 0..ROUNDS {
        let victim = &mut nodes[random.below(2) as usize];
        for at in 0..ROWS {
            let key = if random.chance(30) { json!("k") } else { Value::Null };
            let unique = if random.chance(30) {
                json!({ "key": inserted.to_string() })
            } else {
                Value::Null
            };
            program.insert(&json!({ "handler": "noop", "parameters": inserted, "key": key, "unique": unique }));
            inserted += 1;
            if at == ROWS / 2 {
                victim.kill();
            }
        }
        victim.restart();
    }
    eventually("an empty intake", SOON * 2, || (program.waiting() == 0).then_some(()));
    let tasks = eventually("the end of all tasks", SOON * 2, || {
        let tasks = nodes[0].http.all("/api/v1/tasks");
        tasks.iter().all(|task| task["status"] == "completed").then_some(tasks)
    });
    let mut seen: BTreeMap<u64, u32> = BTreeMap::new();
    for task in &tasks {
        *seen.entry(task["parameters"].as_u64().unwrap()).or_default() += 1;
    }
    assert_eq!(seen, (0..inserted).map(|n| (n, 1)).collect());
    let [mut first, second] = nodes;
    first.stop();
    second.finish();
}

/// A library over the program's database.
async fn library(url: &str) -> Pensum {
    Pensum::builder()
        .store(url)
        .handler(
            "ship",
            |_: Context, item: String| async move { Ok::<_, TaskError>(item) },
        )
        .handler("tick", |_: Context, (): ()| async move { Ok::<_, TaskError>("tock") })
        .raw_handler("bomb", Bomb)
        .start()
        .await
        .unwrap()
}

/// Has a defect: its check panics.
struct Bomb;

#[async_trait::async_trait]
impl Handler for Bomb {
    async fn run(&self, _: Context) -> Outcome {
        Outcome::Done(Json::null())
    }

    fn check(&self, _: &Json) -> Result<(), Invalid> {
        panic!("a defect of a handler's check");
    }
}

async fn result_of(pensum: &Pensum, tag: &str) -> Value {
    let filter = pensum_core::TaskFilter {
        tag: Some(tag.to_owned()),
        ..pensum_core::TaskFilter::default()
    };
    let end = tokio::time::Instant::now() + SOON;
    loop {
        let store = pensum.engine().store();
        let page = pensum_core::Page::default();
        let found = store
            .tasks("default", filter.clone(), page, pensum.engine().now())
            .await;
        if let Some(task) = found.unwrap().items.pop() {
            return pensum.result(task.id).await.unwrap();
        }
        assert!(tokio::time::Instant::now() < end, "no task with the tag {tag}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn the_library_enqueues_and_submits_within_a_transaction() {
    let mut program = Program::new();
    let url = program.database.url();
    let client = &mut program.client;
    program.runtime.block_on(async {
        let pensum = library(&url).await;
        let outbox = pensum.outbox().unwrap().actor("shop");
        let transaction = client.transaction().await.unwrap();
        let lamp = outbox.enqueue(&transaction, Task::new("ship", "lamp")).await.unwrap();
        let mut batch = Batch::new();
        batch.add(Task::new("ship", "a"));
        batch.add(Task::new("tick", ()));
        let two = outbox.enqueue_all(&transaction, batch).await.unwrap();
        let mut batch = Batch::new();
        let first = batch.add(Task::new("ship", "first"));
        batch.add(Task::new("ship", "second").after_item(first).tag("chain"));
        outbox.submit_all(&transaction, batch).await.unwrap();
        let keyed = Task::new("tick", ())
            .key("k")
            .delay(Duration::from_millis(10))
            .tag("keyed");
        outbox.submit(&transaction, keyed).await.unwrap();
        assert!(pensum.task(lamp).await.unwrap().is_none(), "before the commit");
        transaction.commit().await.unwrap();
        assert_eq!(pensum.result::<String>(lamp).await.unwrap(), "lamp");
        assert_eq!(pensum.result::<String>(two[0]).await.unwrap(), "a");
        assert_eq!(pensum.result::<String>(two[1]).await.unwrap(), "tock");
        assert_eq!(result_of(&pensum, "chain").await, "second");
        assert_eq!(result_of(&pensum, "keyed").await, "tock");
        pensum.shutdown().await;
    });
    Cli::default().run(&["db", "verify", "--db", &url]).expect(0);
}

#[test]
fn the_library_refuses_within_a_transaction_what_cannot_be() {
    let mut program = Program::new();
    let url = program.database.url();
    let client = &mut program.client;
    program.runtime.block_on(async {
        let pensum = library(&url).await;
        let outbox = pensum.outbox().unwrap();
        let transaction = client.transaction().await.unwrap();
        let refusal = async |task: Task| outbox.enqueue(&transaction, task).await.unwrap_err().to_string();
        assert_says(
            &refusal(Task::new("ship", "x").key("k")).await,
            "a task with a key; submit it instead",
        );
        let unique = Task::new("ship", "x").unique("u", OnConflict::Keep);
        assert_says(&refusal(unique).await, "tasks[0].unique: nodes would have to wait");
        let after = Task::new("ship", "x").after("0198c1f0-7f3c-7abc-8def-0123456789ab".parse().unwrap());
        assert_says(&refusal(after).await, "depends_on");
        assert_says(&refusal(Task::new("ship", 7)).await, "parameters");
        assert_says(&refusal(Task::new("no op", ())).await, "handler");
        let submitted = outbox.submit(&transaction, Task::new("ship", 7).key("k")).await;
        assert_says(&submitted.unwrap_err().to_string(), "parameters");
        let submitted = outbox.submit_all(&transaction, Batch::new()).await;
        assert_says(&submitted.unwrap_err().to_string(), "must hold 1 to 10000 tasks");
        transaction.commit().await.expect("the transaction goes on");
        assert_eq!(pensum.engine().status().await.unwrap().total_tasks, 0);
        pensum.shutdown().await;

        let elsewhere = Pensum::builder().store("sqlite::memory:").start().await.unwrap();
        assert_says(
            &elsewhere.outbox().unwrap_err().to_string(),
            "only a store on PostgreSQL",
        );
        elsewhere.shutdown().await;
    });
}

/// A block of the page on transactions, by the name of its file.
fn block(file: &str) -> String {
    let page = include_str!("../../docs/transactions.md");
    let (_, rest) = page.split_once(&format!("```sql file={file}\n")).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

#[test]
fn the_rights_on_the_page_are_those_that_an_application_needs() {
    let program = Program::new();
    let server = program.node(&[]);
    let role = program.database.name().replace("test_", "shop_");
    let url = program.database.url().replacen("postgres@", &format!("{role}@"), 1);
    assert_ne!(
        url,
        program.database.url(),
        "this server is reached as another user than postgres"
    );
    program.sql(&block("rights.sql").replace("shop", &role));
    let task = json!({ "handler": "noop", "tags": ["t"] });
    let insert = format!("INSERT INTO pensum.intake(task) VALUES ('{task}')");
    let done = program.runtime.block_on(async {
        let mut client = connect(&url).await;
        client.batch_execute(&format!("{insert}; NOTIFY pensum_pensum")).await?;
        let stolen = client.query("SELECT * FROM pensum.task", &[]).await;
        assert!(stolen.is_err(), "it may not read what others do");
        let more = block("more-rights.sql").replace("shop", &role);
        program.client.batch_execute(&more).await?;
        let transaction = client.transaction().await?;
        let outbox = Outbox::new();
        let kind = || Task::new("noop", ()).queue("new").tag("t");
        let enqueued = outbox.enqueue(&transaction, kind()).await;
        let submitted = outbox.submit(&transaction, kind().key("k")).await;
        transaction.commit().await?;
        enqueued.unwrap();
        submitted.unwrap();
        Ok::<(), tokio_postgres::Error>(())
    });
    let ended = done.map(|()| {
        eventually("three tasks to run", SOON, || {
            let tasks = server.http.all("/api/v1/tasks?tag=t&status=completed");
            (tasks.len() == 3).then_some(())
        });
    });
    program.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
    ended.unwrap();
    server.finish();
}

#[test]
fn a_handler_that_panics_when_it_checks_costs_its_own_row_alone() {
    let program = Program::new();
    let url = program.database.url();
    let pensum = program.runtime.block_on(library(&url));
    program.insert(&json!({ "handler": "bomb" }));
    program.insert(&json!({ "handler": "tick", "tags": ["after"] }));
    program.runtime.block_on(async {
        assert_eq!(result_of(&pensum, "after").await, "tock");
        let page = pensum_core::Page::default();
        let rows = pensum.engine().intake("default", None, page).await.unwrap().items;
        assert_says(&rows[0].error, "parameters: the handler panicked");
        pensum.shutdown().await;
    });
}
