//! Status, counts and probes.

use std::time::Duration;

use pensum_core::store::NodeBeat;
use pensum_core::{NodeId, Time};

use crate::support::Server;

#[tokio::test]
async fn the_status_has_the_fields_of_the_contract() {
    let server = Server::new();
    server.post("/api/v1/tasks", r#"{"handler":"noop"}"#).await.expect(201);
    let status = server.get("/api/v1/system/status").await.expect(200).json();
    for field in [
        "status",
        "version",
        "uptime_seconds",
        "total_tasks",
        "task_counts",
        "active_tasks",
        "total_executions",
        "active_queues",
        "registered_agents",
        "agent_status",
        "performance_metrics",
        "persistence_stats",
        "nodes",
    ] {
        assert!(!status[field].is_null(), "{field} in {status}");
    }
    assert_eq!(
        (&status["total_tasks"], &status["task_counts"]["ready"]),
        (&1.into(), &1.into())
    );
}

#[tokio::test]
async fn counts_are_kept_per_queue_and_in_all() {
    let server = Server::new();
    for body in [
        r#"{"handler":"noop","queue":"a"}"#,
        r#"{"handler":"noop","queue":"b"}"#,
        r#"{"handler":"noop","queue":"b","delay":60}"#,
    ] {
        server.post("/api/v1/tasks", body).await.expect(201);
    }
    let stats = server.get("/api/v1/queues/stats").await.expect(200).json();
    insta::assert_json_snapshot!(stats);
}

#[tokio::test]
async fn nodes_are_listed_with_their_load() {
    let server = Server::new();
    let beat = |number: u64, name: &str| NodeBeat {
        node: NodeId(number),
        name: name.into(),
        version: "1.2.3".to_owned(),
        address: (number == 1).then(|| "http://127.0.0.1:7400".to_owned()),
        started_at: Time::from_micros(number as i64),
        slots: 8,
        running: 3,
        ttl: Duration::from_secs(15),
    };
    let none = server.get("/api/v1/nodes").await.expect(200).json();
    assert_eq!(none, serde_json::json!({ "items": [], "next_cursor": null }));
    for (number, name) in [(2, "b"), (1, "a"), (3, "c")] {
        let now = server.engine.now();
        let beat = beat(number, name);
        server.engine.store().heartbeat(beat, now).await.unwrap();
    }
    let listed = server.get("/api/v1/nodes").await.expect(200).json();
    assert_eq!(listed["next_cursor"], serde_json::Value::Null);
    let mut first = listed["items"][0].clone();
    Time::parse(first["seen_at"].take().as_str().unwrap()).unwrap();
    insta::assert_json_snapshot!(first);
    let names = |page: &serde_json::Value| -> Vec<String> {
        let items = page["items"].as_array().unwrap();
        items
            .iter()
            .map(|node| node["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&listed), ["a", "b", "c"]);
    let page = server.get("/api/v1/nodes?limit=2").await.expect(200).json();
    let next = page["next_cursor"].as_str().unwrap();
    let rest = server.get(&format!("/api/v1/nodes?cursor={next}")).await.expect(200);
    assert_eq!((names(&page).len(), names(&rest.json())), (2, vec!["c".to_owned()]));
    let status = server.get("/api/v1/system/status").await.expect(200).json();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3);
    server.get("/api/v1/nodes?colour=red").await.expect(400);
}

#[tokio::test]
async fn probes_tell_life_from_readiness() {
    let server = Server::new();
    server.start();
    assert_eq!(server.get("/healthz").await.expect(200).json()["status"], "ok");
    server.get("/readyz").await.expect(200);
    server.engine.shutdown(std::time::Duration::ZERO).await;
    server.get("/healthz").await.expect(200);
    let answer = server.get("/readyz").await.expect(503);
    assert_eq!(answer.header("retry-after"), "1");
    assert!(answer.json()["detail"].as_str().unwrap().contains("shutting down"));
}

#[tokio::test]
async fn a_store_that_is_gone_is_unavailable_not_an_error() {
    let server = Server::new();
    server.engine.store().close().await.unwrap();
    server.get("/readyz").await.expect(503);
    let answer = server.post("/api/v1/tasks", r#"{"handler":"noop"}"#).await.expect(503);
    assert_eq!(answer.header("retry-after"), "1");
    server.get("/healthz").await.expect(200);
}
