//! Status, counts and probes.

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
