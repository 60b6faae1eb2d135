//! SIGTERM: what runs gets its time, what is not done is given back, and nothing acknowledged is lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;

use crate::harness::{Http, SOON, Server, eventually, lines, marked, shell, text, with};

const WAIT_FOR_FILE: &str = r#"echo "$PENSUM_TASK_ID" >> "$1.started"; until [ -e "$1" ]; do sleep 0.1; done"#;
const SLOTS: usize = 8;

fn started(server: &Server) -> usize {
    lines(&server.file("gate.started")).len()
}

#[test]
fn a_stopped_node_gives_its_tasks_back_without_spending_an_attempt() {
    let mut server = Server::start(&["--slots", "8", "--grace", "1"]);
    let gate = server.file("gate");
    let quick = server.create_all(&vec![
        json!({ "handler": "sleep", "parameters": { "seconds": 0.01 } });
        100
    ]);
    let blocked = server.create_all(&vec![shell(WAIT_FOR_FILE, &gate); 20]);
    eventually("all slots to be taken", SOON, || {
        (started(&server) == SLOTS).then_some(())
    });

    let stopping = AtomicBool::new(false);
    let (acknowledged, took) = std::thread::scope(|scope| {
        let base = server.http.base.clone();
        let stopping = &stopping;
        // A client that goes on, and one that reads a log: neither holds the end up.
        let client = scope.spawn(move || {
            let http = Http::new(base);
            let mut ids = Vec::new();
            while let Ok(answer) = http.send(Method::POST, "/api/v1/tasks", Some(&json!({ "handler": "noop" })), &[]) {
                match answer.status {
                    201 => ids.push(text(&answer.body["id"])),
                    503 => break,
                    other => panic!("{other}: {}", answer.body),
                }
            }
            assert!(
                stopping.load(Ordering::SeqCst),
                "the node went away before it was told to"
            );
            ids
        });
        let (base, path) = (
            server.http.base.clone(),
            format!("/api/v1/tasks/{}/logs?follow=true", blocked[0]),
        );
        let reader = scope.spawn(move || {
            let http = Http::new(base);
            http.stream(&path, "text/event-stream", |_| true);
        });
        std::thread::sleep(Duration::from_millis(300));
        let began = Instant::now();
        stopping.store(true, Ordering::SeqCst);
        server.stop();
        let took = began.elapsed();
        let _ = reader.join();
        (client.join().unwrap(), took)
    });
    assert!(took < Duration::from_secs(8), "a grace of 1 s became {took:?}");
    assert!(marked(&gate).is_empty(), "commands outlived their node");
    assert!(!acknowledged.is_empty());
    server.verify();

    server.restart();
    eventually("what was given back to run again", SOON, || {
        (started(&server) >= 2 * SLOTS).then_some(())
    });
    std::fs::write(&gate, "").unwrap();
    for id in blocked.iter().chain(&quick).chain(&acknowledged) {
        let task = server.wait(id, "completed");
        assert_eq!(
            (&task["attempt"], &task["retry_count"]),
            (&json!(1), &json!(0)),
            "{task}"
        );
    }
    let given_back = blocked
        .iter()
        .filter(|id| server.events(id).iter().any(|kind| kind == "released"))
        .count();
    assert_eq!(given_back, SLOTS);
    for id in &blocked {
        let executions = server.http.all(&format!("/api/v1/tasks/{id}/executions"));
        assert_eq!(executions.len(), 1, "{executions:?}");
        assert_eq!(executions[0]["status"], "completed");
    }
    server.finish();
}

#[test]
fn tasks_that_end_within_the_grace_are_waited_for() {
    let mut server = Server::start(&["--grace", "20"]);
    let sleeping = server.create(&json!({ "handler": "sleep", "parameters": { "seconds": 2 } }));
    server.wait(&sleeping, "running");
    let began = Instant::now();
    server.stop();
    let took = began.elapsed();
    assert!(
        took < Duration::from_secs(12),
        "it waited longer than for its tasks: {took:?}"
    );
    server.restart();
    let task = server.task(&sleeping);
    assert_eq!(
        (&task["status"], &task["attempt"]),
        (&json!("completed"), &json!(1)),
        "{task}"
    );
    assert!(!server.events(&sleeping).iter().any(|kind| kind == "released"));
    server.finish();
}

#[test]
fn a_second_sigterm_ends_at_once() {
    let mut server = Server::start(&["--grace", "60"]);
    let gate = server.file("gate");
    let ids = server.create_all(&vec![with(shell(WAIT_FOR_FILE, &gate), json!({ "timeout": 0 })); 4]);
    eventually("all to run", SOON, || (started(&server) == 4).then_some(()));
    server.signal(Signal::TERM);
    eventually("the first signal to be noticed", SOON, || {
        server.log().contains("stopping").then_some(())
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(server.ended().is_none(), "the first signal waits for the tasks");
    let began = Instant::now();
    server.signal(Signal::TERM);
    let status = server.wait_end(SOON);
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "it took {:?}",
        began.elapsed()
    );
    assert_eq!(status.code(), Some(143), "{status}");
    server.verify();

    server.restart();
    std::fs::write(&gate, "").unwrap();
    for id in &ids {
        server.wait(id, "completed");
        let ends = server.events(id).iter().filter(|kind| *kind == "completed").count();
        assert_eq!(ends, 1);
    }
    eventually("nothing of the first runs to be left", SOON, || {
        marked(&gate).is_empty().then_some(())
    });
    server.finish();
}

#[test]
fn an_idle_node_stops_at_once_even_with_open_connections() {
    let mut server = Server::start(&["--grace", "30"]);
    let http = Http::new(server.http.base.clone());
    http.get("/healthz").expect(200);
    http.get("/readyz").expect(200);
    let began = Instant::now();
    server.stop();
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "it took {:?}",
        began.elapsed()
    );
    server.verify();
    server.finish();
}
