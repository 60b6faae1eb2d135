//! Reading a store beside the node that has it: checks and copies while work goes on.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::harness::{Cli, Http, Server, items, text};

/// Most copies that are made.
const ROUNDS: usize = 6;

#[test]
fn a_busy_store_can_be_checked_and_copied() {
    let server = Server::start(&["--slots", "8"]);
    let (db, done) = (server.db_url(), AtomicBool::new(false));
    let submitted = std::thread::scope(|scope| {
        let (base, done) = (server.http.base.clone(), &done);
        let load = scope.spawn(move || {
            let http = Http::new(base);
            let task = json!({ "handler": "fail", "parameters": { "times": 1 }, "key": "k",
                "retry": { "strategy": "fixed", "delay": 0.01, "jitter": false } });
            let mut submitted = 0;
            while !done.load(Ordering::SeqCst) {
                let tasks = [vec![json!({ "handler": "noop" }); 20], vec![task.clone()]].concat();
                let answer = http.post("/api/v1/tasks/batch", &json!({ "tasks": tasks })).expect(201);
                submitted += items(&answer["ids"]).len();
            }
            submitted
        });
        let mut seen = 0;
        for round in 0..ROUNDS {
            let report = Cli::default().json(&["db", "verify", "--db", &db]);
            assert_eq!(
                report["violations"],
                json!([]),
                "of a store that is being written: {report}"
            );
            let tasks = report["tasks"].as_u64().unwrap();
            assert!(tasks >= seen, "{tasks} tasks after {seen}");
            seen = tasks;
            assert_eq!(Cli::default().json(&["db", "stats", "--db", &db])["kind"], "sqlite");
            let copy = server.file(&format!("copy-{round}.db"));
            Cli::default()
                .run(&["db", "backup", copy.to_str().unwrap(), "--db", &db])
                .expect(0);
            let report = Cli::default().json(&["db", "verify", "--db", &format!("sqlite:{}", copy.display())]);
            assert_eq!(report["violations"], json!([]), "of a copy: {report}");
            assert!(
                report["tasks"].as_u64().unwrap() >= seen,
                "the copy lacks tasks: {report}"
            );
        }
        done.store(true, Ordering::SeqCst);
        load.join().unwrap()
    });
    assert_eq!(
        server.http.get("/api/v1/system/status").expect(200)["total_tasks"],
        submitted
    );
    server.finish();
}

#[test]
fn a_copy_is_a_store_that_a_node_can_go_on_with() {
    let mut server = Server::start(&[]);
    let waiting = server.create(&json!({ "handler": "noop", "delay": 1 }));
    let failed = server.create(&json!({ "handler": "fail", "max_retries": 0 }));
    server.wait(&failed, "failed");
    let copy = server.file("copy.db");
    let backup = ["db", "backup", copy.to_str().unwrap(), "--db", &server.db_url()];
    Cli::default().run(&backup).expect(0);
    Cli::default().run(&backup).fails(6);
    server.stop();
    let mut other = Server::unstarted(&copy);
    other.http.base = other.try_restart().unwrap();
    other.wait_both(&waiting, "completed");
    assert_eq!(other.task(&failed)["status"], "failed");
    other.finish();
    server.finish();
}

#[test]
fn no_task_is_counted_twice_while_it_moves_from_status_to_status() {
    let server = Server::start(&["--slots", "8"]);
    let restless = json!({ "handler": "fail", "max_retries": 40,
        "retry": { "strategy": "fixed", "delay": 0.005, "jitter": false } });
    let ids = server.create_all(&vec![restless; 20]);
    let mut looks = 0;
    loop {
        let status = server.http.get("/api/v1/system/status").expect(200);
        let counts = status["task_counts"].as_object().unwrap();
        let sum: u64 = counts.values().filter_map(serde_json::Value::as_u64).sum();
        assert_eq!(
            (sum, &status["total_tasks"]),
            (20, &json!(20)),
            "after {looks} looks: {status}"
        );
        let listed = server.http.all("/api/v1/tasks?handler=fail");
        assert!(
            listed
                .iter()
                .map(|task| text(&task["id"]))
                .eq(ids.iter().rev().cloned()),
            "{listed:#?}"
        );
        let attempts = server.http.all(&format!("/api/v1/tasks/{}/executions", ids[7]));
        let numbers = attempts.iter().map(|attempt| attempt["attempt"].as_u64().unwrap());
        assert!(numbers.eq(1..=attempts.len() as u64), "{attempts:#?}");
        looks += 1;
        if counts["failed"] == 20 {
            break;
        }
    }
    assert!(looks > 20, "{looks} looks show nothing");
    for id in &ids {
        assert_eq!(server.task(id)["attempt"], 41);
    }
    server.finish();
}
