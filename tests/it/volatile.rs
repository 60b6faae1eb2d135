//! Queues that are not persistent, on real processes that stop and are killed: what ends with them, and what goes on.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cluster::{self, Cluster, LEASE};
use crate::harness::{Cli, SOON, Server, alive, assert_says, eventually, items, shell, text, with};

/// Runs until it is stopped.
const STAY: &str = r#"echo $$ > "$1.new"; mv "$1.new" "$1"; while :; do sleep 0.05; done"#;

fn make_queue(server: &Server, persistent: bool) {
    let put = server
        .http
        .put("/api/v1/queues/previews", &json!({ "persistent": persistent }));
    assert_eq!(put.expect(200)["settings"]["persistent"], persistent);
}

fn later(queue: &str) -> Value {
    json!({ "handler": "noop", "queue": queue, "delay": "1h" })
}

/// Cancelled, and it says why.
#[track_caller]
fn is_abandoned(task: &Value) {
    assert_eq!(
        (&task["status"], &task["durable"]),
        (&json!("cancelled"), &json!(false)),
        "{task}"
    );
    assert_eq!(task["error"]["type"], "process_ended", "{task}");
    assert_says(
        &task["error"]["message"],
        "which accepted it, has ended, and its queue was not persistent",
    );
}

#[test]
fn a_task_says_that_it_is_not_durable_wherever_it_is_shown() {
    let server = Server::start(&[]);
    make_queue(&server, false);
    let task = server.http.post("/api/v1/tasks", &later("previews")).expect(201);
    assert_eq!(task["durable"], false);
    let id = text(&task["id"]);
    assert_eq!(server.task(&id)["durable"], false);
    let cli = server.cli();
    assert_eq!(cli.json(&["task", "get", &id])["durable"], false);
    assert_says(
        &cli.run(&["task", "get", &id]).expect(0),
        "no: it ends with the process that accepted it",
    );
    assert_says(
        &cli.run(&["queue", "get", "previews"]).expect(0),
        "not durable: they end with the process",
    );
    let ids = server.create_all(&[later("previews"), later("other")]);
    assert_eq!(
        [0, 1].map(|at| server.task(&ids[at])["durable"].clone()),
        [json!(false), json!(true)]
    );
    let listed = server.http.get("/api/v1/tasks?queue=previews").expect(200);
    assert!(items(&listed["items"]).iter().all(|task| task["durable"] == false));
    // What is made later of the queue is no matter of a task that is there.
    make_queue(&server, true);
    assert_eq!(server.task(&id)["durable"], false);
    assert_eq!(
        server.http.post("/api/v1/tasks", &later("previews")).expect(201)["durable"],
        true
    );
    cli.run(&["queue", "put", "previews", "--persistent", "false"])
        .expect(0);
    assert_eq!(
        server.http.post("/api/v1/tasks", &later("previews")).expect(201)["durable"],
        false
    );
    server.command(&id, "cancel").expect(200);
    let retried = server.command(&id, "retry").expect(200);
    assert_eq!(retried["durable"], false);
    server.wait(&id, "completed");
    server.finish();
}

#[test]
fn a_killed_process_takes_along_what_it_accepted_and_nothing_else() {
    let mut server = Server::start(&[]);
    make_queue(&server, false);
    let file = server.file("pid");
    let in_previews = json!({ "queue": "previews" });
    let runs = server.create(&with(shell(STAY, &file), in_previews));
    let pid = server.pid_in(&file);
    let unique = with(
        later("previews"),
        json!({ "unique": { "key": "one", "on_conflict": "reject" } }),
    );
    let waits = server.create(&unique);
    server.http.post("/api/v1/tasks", &unique).expect(409);
    let paused = server.create(&later("previews"));
    server.command(&paused, "pause").expect(200);
    let kept = server.create(&later("other"));
    let cancelled = server.create(&json!({ "handler": "noop", "depends_on": [waits] }));
    let goes_on = json!({ "handler": "noop", "depends_on": [waits], "on_dependency_failure": "run" });
    let goes_on = server.create(&goes_on);
    server.kill();
    server.verify();
    server.restart();
    for id in [&runs, &waits, &paused] {
        is_abandoned(&server.task(id));
    }
    assert_eq!(server.events(&runs), ["created", "started", "crashed", "cancelled"]);
    assert_eq!(server.task(&cancelled)["error"]["type"], "dependency_failed");
    server.wait(&goes_on, "completed");
    assert_eq!(server.task(&kept)["status"], "pending");
    eventually("what ran to be gone", SOON, || (!alive(pid)).then_some(()));
    // The unique key is free again, and a retry lives with this process.
    server.http.post("/api/v1/tasks", &unique).expect(201);
    let retried = server.command(&paused, "retry").expect(200);
    assert_eq!(retried["durable"], false);
    server.finish();
}

#[test]
fn a_process_that_stops_cancels_what_it_accepted() {
    let database = cluster::database();
    let mut server = Server::unstarted_on(database.url(), &[]);
    server.restart();
    make_queue(&server, false);
    let ids = server.create_all(&vec![later("previews"); 1_500]);
    let durable = server.create(&later("other"));
    server.stop();
    // Nobody else is there who could have.
    let (cli, url) = (Cli::default(), database.url());
    for id in [&ids[0], &ids[1_499]] {
        is_abandoned(&cli.json(&["task", "get", id, "--db", &url]));
    }
    let open = cli
        .run(&["task", "list", "--status", "pending", "-o", "name", "--db", &url])
        .expect(0);
    assert_eq!(open.trim(), durable);
    server.restart();
    server.finish();
}

#[test]
fn nodes_notice_the_death_of_the_one_that_accepted() {
    let database = cluster::database();
    let mut cluster = Cluster::start(&database.url(), 2, &[]);
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    make_queue(first, false);
    eventually("the other node to know the queue", SOON, || {
        let task = second.http.post("/api/v1/tasks", &later("previews")).expect(201);
        (task["durable"] == false).then_some(())
    });
    let file = second.file("pid");
    let there = with(cluster::only_on(1, STAY, &file), json!({ "queue": "previews" }));
    let runs = first.create(&there);
    let pid = second.pid_in(&file);
    let (waits, kept) = (first.create(&later("previews")), first.create(&later("other")));
    let theirs = second.create(&later("previews"));
    cluster.nodes[0].kill();
    let second = &cluster.nodes[1];
    eventually("the death to be noticed", SOON + LEASE, || {
        (second.task(&waits)["status"] == "cancelled").then_some(())
    });
    is_abandoned(&second.task(&waits));
    is_abandoned(&second.task(&runs));
    // It ran on the node that lives, which learns of it.
    eventually("the command to be stopped", SOON, || (!alive(pid)).then_some(()));
    assert_eq!(second.task(&kept)["status"], "pending");
    assert_eq!(second.task(&theirs)["status"], "pending");
    cluster.finish();
}

#[test]
fn a_command_that_ends_at_once_takes_no_task_that_would_end_with_it() {
    let database = cluster::database();
    let sqlite = Server::start(&[]);
    let mut postgres = Server::unstarted_on(database.url(), &[]);
    postgres.restart();
    for mut server in [sqlite, postgres] {
        make_queue(&server, false);
        let url = server.db_url();
        let create = [
            "task",
            "create",
            "--handler",
            "noop",
            "--queue",
            "previews",
            "-o",
            "name",
            "--db",
            &url,
        ];
        if url.starts_with("sqlite:") {
            // The node owns the file, and the command goes through it.
            let id = Cli::default().run(&create).expect(0);
            assert_eq!(server.task(id.trim())["durable"], false);
        }
        let id = server.create(&later("previews"));
        server.stop();
        let refused = Cli::default().run(&create).fails(2);
        assert_says(
            &refused,
            "queue: `previews` is not persistent: its tasks end with the process that accepts them",
        );
        let refused = Cli::default().run(&["task", "retry", &id, "--db", &url]).fails(6);
        assert_says(&refused, "retry it through a running node");
        let durable = ["task", "create", "--handler", "noop", "-o", "name", "--db", &url];
        Cli::default().run(&durable).expect(0);
        server.restart();
        server.finish();
    }
}

#[test]
fn what_is_wrong_is_refused_and_what_files_say_is_put() {
    let file = tempfile::tempdir().unwrap();
    let config = file.path().join("tasks.json");
    let queue = json!({ "name": "Previews", "max_concurrent": 2, "auto_start": true, "persistent": false });
    std::fs::write(&config, json!({ "queues": { "previews": queue } }).to_string()).unwrap();
    let server = Server::start(&["--config", config.to_str().unwrap()]);
    let settings = &server.http.get("/api/v1/queues/previews").expect(200)["settings"];
    assert_eq!(
        (&settings["persistent"], &settings["max_concurrent"]),
        (&json!(false), &json!(2))
    );
    assert_eq!(
        server.http.post("/api/v1/tasks", &later("previews")).expect(201)["durable"],
        false
    );
    let said = with(later("previews"), json!({ "durable": true }));
    let refused = server.http.post("/api/v1/tasks", &said).expect(422);
    assert_eq!(refused["errors"][0]["path"], "durable");
    let refused = server
        .http
        .put("/api/v1/queues/x", &json!({ "persistent": "no" }))
        .expect(422);
    assert_eq!(refused["errors"][0]["path"], "persistent");
    server
        .cli()
        .run(&["queue", "put", "x", "--persistent", "maybe"])
        .fails(2);
    server.finish();
}

#[test]
fn what_a_stopped_process_gave_back_is_cancelled_too() {
    let mut server = Server::start(&["--grace", "1"]);
    make_queue(&server, false);
    let file = server.file("pid");
    let runs = server.create(&with(shell(STAY, &file), json!({ "queue": "previews" })));
    let pid = server.pid_in(&file);
    server.signal(Signal::TERM);
    server.wait_end(Duration::from_secs(30));
    assert!(!alive(pid));
    let url = server.db_url();
    is_abandoned(&Cli::default().json(&["task", "get", &runs, "--db", &url]));
    server.restart();
    server.finish();
}
