//! A node that stands still past its leases and then goes on: a stopped process, a machine that slept.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Cluster, LEASE, database, name_of, only_on, script};
use crate::harness::{SOON, Server, eventually, items, lines, seconds_between, text};

/// Says which process ran it, after a time; the first one runs on while its node stands still.
const SLOW: &str = r#"echo "start $$" >> "$1"; sleep 1; echo "end $$" >> "$1"; echo "end $$""#;

#[test]
fn a_node_that_stood_still_past_its_lease_cannot_end_what_another_one_took_over() {
    let database = database();
    let mut cluster = Cluster::start(&database.url(), 1, &[]);
    let first = &cluster.nodes[0];
    let said = first.file("said");
    let command = first.create(&script(SLOW, &[&said]));
    let sleep = first.create(&json!({ "handler": "sleep", "parameters": { "seconds": 1.5 } }));
    eventually("the command to start", SOON, || (lines(&said).len() == 1).then_some(()));
    first.wait(&sleep, "running");
    first.signal(Signal::STOP);
    let second = cluster.join(&[]);
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[second]);
    let name = name_of(second);

    let ended: Vec<Value> = [&command, &sleep].map(|id| second.wait(id, "completed")).to_vec();
    first.signal(Signal::CONT);
    // It learns of its loss, and takes up new work.
    eventually("the first node to say what it lost", SOON, || {
        [&command, &sleep]
            .iter()
            .all(|id| !losses(first, id).is_empty())
            .then_some(())
    });
    let own = first.create(&only_on(0, ":", &said));
    second.wait(&own, "completed");

    for (id, ended) in [&command, &sleep].into_iter().zip(ended) {
        let now = second.task(id);
        assert_eq!(now, ended, "nothing that ended changes any more");
        let events = second.events(id);
        let kinds: Vec<&str> = events.iter().map(String::as_str).collect();
        // A node that fell silent counts as dead, one that was heard meanwhile as late.
        let lost = kinds[2];
        assert!(["crashed", "lease_expired"].contains(&lost), "{kinds:?}");
        assert_eq!(kinds, ["created", "started", lost, "started", "completed"]);
        let executions = second.http.all(&format!("/api/v1/tasks/{id}/executions"));
        let last = executions.iter().find(|execution| execution["attempt"] == 2).unwrap();
        assert_eq!(last["executor_id"], name.as_str(), "{executions:?}");
        let lines = losses(first, id);
        assert_eq!(lines.len(), 1, "the loss of {id} is said once: {lines:#?}");
    }
    // The result is that of the run which counts.
    let stdout = text(&second.task(&command)["result"]["stdout"]);
    let last = lines(&said).into_iter().rfind(|line| line.starts_with("end "));
    assert_eq!(last.as_deref(), Some(stdout.trim()));
    cluster.finish();
}

/// What a node complained of a task.
fn losses(node: &Server, id: &str) -> Vec<String> {
    let mut lines = super::complaints(node);
    lines.retain(|line| line.contains(id));
    lines
}

#[test]
fn a_node_that_stood_still_for_less_than_its_lease_keeps_what_it_runs() {
    let database = database();
    let mut cluster = Cluster::start(&database.url(), 1, &["--lease", "8"]);
    let first = &cluster.nodes[0];
    let sleep = first.create(&json!({ "handler": "sleep", "parameters": { "seconds": 4 } }));
    first.wait(&sleep, "running");
    first.signal(Signal::STOP);
    let second = cluster.join(&["--lease", "8"]);
    // Longer than a node may be silent before it is listed as lost.
    eventually("the node to be listed as lost", SOON, || {
        let nodes = cluster.nodes[second].http.all("/api/v1/nodes");
        nodes.iter().any(|node| node["status"] == "lost").then_some(())
    });
    assert!(LEASE < Duration::from_secs(8));
    cluster.nodes[0].signal(Signal::CONT);
    let task = cluster.nodes[second].wait(&sleep, "completed");
    assert_eq!(task["attempt"], 1, "{task}");
    let executions = cluster.nodes[second]
        .http
        .all(&format!("/api/v1/tasks/{sleep}/executions"));
    assert_eq!(items(&json!(executions)).len(), 1);
    assert!(
        seconds_between(&task["started_at"], &task["finished_at"]) < 8.0,
        "{task}"
    );
    cluster.finish();
}
