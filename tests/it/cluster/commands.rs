//! What people ask of one node reaches the tasks that another one runs.

use std::time::Instant;

use serde_json::json;

use super::{Cluster, database, only_on};
use crate::harness::{SOON, Server, alive, eventually, seconds_between, state};

/// How late a command may reach a task on another node.
const REACHED_IN: f64 = 1.5;

/// Says which process it is, and stays.
const STAY: &str = r#"echo $$ > "$1"; exec sleep 600"#;

#[test]
fn commands_reach_tasks_on_other_nodes() {
    let database = database();
    // The lease that a node has when it is not told.
    let mut cluster = Cluster::start(&database.url(), 1, &["--lease", "30"]);
    let runner = &cluster.nodes[0];
    let sleep = runner.create(&json!({ "handler": "sleep", "parameters": { "seconds": 600 } }));
    runner.wait(&sleep, "running");
    let asked = cluster.join(&["--lease", "30"]);
    let (runner, asked) = (&cluster.nodes[0], &cluster.nodes[asked]);
    for round in 0..3 {
        let pid_file = runner.file(&format!("pid-{round}"));
        let command = asked.create(&only_on(0, STAY, &pid_file));
        let pid = runner.pid_in(&pid_file);

        asked.command(&command, "pause").expect(202);
        asked.wait(&command, "paused");
        assert_eq!(state(pid), Some('T'), "the process stands still");
        within(asked, &command, "pause_requested", "paused");

        asked.command(&command, "resume").expect(200);
        let resumed = Instant::now();
        eventually("the process to go on", SOON, || (state(pid) != Some('T')).then_some(()));
        let took = resumed.elapsed().as_secs_f64();
        assert!(took <= REACHED_IN, "the process went on {took} s after the resume");
        assert_eq!(asked.task(&command)["status"], "running");

        asked.command(&command, "cancel").expect(202);
        asked.wait(&command, "cancelled");
        within(asked, &command, "cancel_requested", "cancelled");
        assert!(!alive(pid), "the process is gone");
    }
    asked.command(&sleep, "cancel").expect(202);
    asked.wait(&sleep, "cancelled");
    within(asked, &sleep, "cancel_requested", "cancelled");
    cluster.finish();
}

/// Looks in the history how long it took from one event to the next.
#[track_caller]
fn within(node: &Server, id: &str, from: &str, to: &str) {
    let events = node.http.all(&format!("/api/v1/tasks/{id}/events"));
    let at = |kind: &str| {
        events
            .iter()
            .rfind(|event| event["kind"] == kind)
            .map(|event| event["at"].clone())
    };
    let (Some(from_at), Some(to_at)) = (at(from), at(to)) else {
        panic!("no {from} and {to} in {events:?}")
    };
    let took = seconds_between(&from_at, &to_at);
    assert!(took <= REACHED_IN, "{took} s from {from} to {to}");
}
