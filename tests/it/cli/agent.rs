//! `pensum agent list|get|drain|undrain|remove`.

use serde_json::{Value, json};

use super::program::Place;
use crate::harness::Http;

/// A node with two agents that are registered and say nothing more.
fn registered(place: &Place) -> (super::program::Started, String) {
    let (node, url) = place.serve(&[]);
    let http = Http::new(url.as_str());
    for (id, capabilities) in [
        ("worker-1", json!(["transcode", "scale"])),
        ("worker-2", json!(["scale"])),
    ] {
        let agent = json!({ "id": id, "capabilities": capabilities, "max_concurrent_tasks": 2, "agent_version": "7.1",
            "resources": { "cpu_cores": 4, "memory_gb": 1.5 }, "labels": { "zone": "eu" } });
        http.post("/api/v1/agents", &agent).expect(201);
    }
    (node, url)
}

#[test]
fn agents_are_listed_drained_and_removed() {
    let place = Place::new();
    let (_node, url) = registered(&place);
    let ends = |code: i32, args: &[&str]| place.ends(code, &[&["agent"], args, &["--url", &url]].concat());
    let task = place.ends(
        0,
        &["task", "create", "--handler", "transcode", "-o", "name", "--url", &url],
    );
    let http = Http::new(url.as_str());
    let polled = http
        .post(
            "/api/v1/agents/worker-1/poll",
            &json!({ "session": "1", "wait_ms": 5_000 }),
        )
        .expect(200);
    assert_eq!(polled["tasks"][0]["task"]["id"], task.out.trim());

    let table = ends(0, &["list"]).out;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["ID", "STATUS", "TASKS", "CAPABILITIES", "RESOURCES", "SEEN"]);
    assert_eq!(
        rows[1][..7],
        [
            "worker-1",
            "busy",
            "1/2",
            "transcode,",
            "scale",
            "cpu_cores=4.0,",
            "memory_gb=1.5"
        ]
    );
    assert_eq!(rows[2][..4], ["worker-2", "idle", "0/2", "scale"]);
    assert_eq!(rows[1].last(), Some(&"ago"));
    let wide = ends(0, &["list", "-o", "wide"]).out;
    assert!(wide.contains("zone=eu") && wide.contains("7.1"), "{wide}");
    assert_eq!(ends(0, &["list", "-o", "name"]).out, "worker-1\nworker-2\n");
    assert_eq!(ends(0, &["list", "-C", "transcode", "-o", "name"]).out, "worker-1\n");
    assert_eq!(ends(0, &["list", "--status", "idle", "-o", "name"]).out, "worker-2\n");
    assert_eq!(ends(0, &["list", "-n", "1", "-o", "jsonl"]).out.lines().count(), 1);
    assert_eq!(
        ends(0, &["list", "--all", "-o", "json"]).json()["items"]
            .as_array()
            .map(Vec::len),
        Some(2)
    );
    assert!(ends(2, &["list", "--status", "lazy"]).err.contains("status"));

    let block = ends(0, &["get", "worker-1"]).out;
    for (name, value) in [
        ("id", "worker-1"),
        ("program", "7.1"),
        ("status", "busy"),
        ("tasks", "1/2"),
        ("capabilities", "transcode, scale"),
        ("resources", "cpu_cores=4.0, memory_gb=1.5"),
        ("labels", "zone=eu"),
        ("lease", "30 s"),
    ] {
        let line = block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        assert_eq!(line, Some(value), "{name}:\n{block}");
    }
    assert!(
        ends(0, &["get", "worker-1", "worker-2", "-o", "yaml"])
            .out
            .contains("- id: worker-1")
    );

    let drained = ends(0, &["drain", "worker-1", "worker-2"]).out;
    assert!(
        drained.contains("busy, draining") && drained.contains("idle, draining"),
        "{drained}"
    );
    assert_eq!(
        ends(0, &["undrain", "worker-1", "-o", "json"]).json()["draining"],
        false
    );
    // The first refusal decides the code, and every one is tried.
    let some = ends(3, &["undrain", "nobody", "worker-2", "-o", "name"]);
    assert!(
        some.out == "worker-2\n" && some.err.contains("there is no agent `nobody`"),
        "{some:?}"
    );
    for command in ["get", "drain", "undrain", "remove"] {
        let refused = ends(3, &[command, "nobody"]);
        assert!(
            refused.out.is_empty() && refused.err.contains("`nobody`"),
            "{refused:?}"
        );
        assert!(ends(2, &[command]).err.contains("<ID>"));
    }

    assert_eq!(ends(0, &["remove", "worker-2"]).out, "agent worker-2 removed\n");
    assert_eq!(
        ends(0, &["remove", "worker-1", "-o", "json"]).json(),
        json!({ "id": "worker-1", "removed": true })
    );
    assert_eq!(ends(0, &["list", "-o", "json"]).json()["items"], json!([]));
    // What it ran waits for somebody else.
    let waiting = place
        .ends(0, &["task", "get", task.out.trim(), "-o", "json", "--url", &url])
        .json();
    assert_eq!(
        (&waiting["status"], &waiting["error"]),
        (&json!("ready"), &Value::Null),
        "{waiting}"
    );
}

#[test]
fn agents_of_a_store_without_a_node_are_shown_and_forgotten() {
    let place = Place::new();
    let (mut node, _) = registered(&place);
    node.signal(rustix::process::Signal::TERM);
    node.wait();
    let db = ["--db", "sqlite:p.db"];
    let ends = |code: i32, args: &[&str]| place.ends(code, &[&["agent"], args, &db[..]].concat());
    let listed = ends(0, &["list", "-o", "json"]).json();
    assert_eq!(
        (&listed["items"][0]["id"], &listed["items"][1]["id"]),
        (&json!("worker-1"), &json!("worker-2"))
    );
    ends(0, &["drain", "worker-1"]);
    assert!(ends(0, &["get", "worker-1"]).out.contains(", draining"));
    ends(0, &["remove", "worker-1", "worker-2", "--yes"]);
    assert_eq!(ends(0, &["list", "-o", "name"]).out, "");
}
