//! What people ask of tasks, one at a time and in bulk.

use serde_json::json;

use crate::support::Server;

const TASKS: &str = "/api/v1/tasks";

#[tokio::test]
async fn a_waiting_task_obeys_at_once() {
    let server = Server::new();
    let id = server.post(TASKS, r#"{"handler":"noop","delay":3600}"#).await.id();
    let path = format!("{TASKS}/{id}");
    assert_eq!(
        server.post(&format!("{path}/pause"), "").await.expect(200).json()["status"],
        "paused"
    );
    assert_eq!(
        server.post(&format!("{path}/pause"), "{}").await.expect(200).json()["status"],
        "paused"
    );
    assert_eq!(
        server.post(&format!("{path}/resume"), "").await.expect(200).json()["status"],
        "pending"
    );
    assert_eq!(
        server.post(&format!("{path}/execute"), "").await.expect(200).json()["status"],
        "ready"
    );
    let cancelled = server
        .post(&format!("{path}/cancel"), r#"{"reason":"not needed"}"#)
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&cancelled["status"], &cancelled["error"]["message"]),
        (&json!("cancelled"), &json!("not needed"))
    );
    assert_eq!(
        server.post(&format!("{path}/retry"), "").await.expect(200).json()["status"],
        "ready"
    );
}

#[tokio::test]
async fn a_running_task_is_asked_to_stop() {
    let server = Server::new();
    server.start();
    let id = server.gated().await;
    let asked = server
        .post(&format!("{TASKS}/{id}/cancel"), r#"{"reason":"enough"}"#)
        .await
        .expect(202)
        .json();
    assert_eq!(asked["id"], json!(id));
    let ended = server.ended(&id).await;
    assert_eq!(
        (&ended["status"], &ended["error"]["message"]),
        (&json!("cancelled"), &json!("enough"))
    );
}

#[tokio::test]
async fn a_signal_lies_in_the_inbox() {
    let server = Server::new();
    let id = server.post(TASKS, r#"{"handler":"noop","delay":3600}"#).await.id();
    let body = r#"{"name":"approved","payload":{"by":"ann"}}"#;
    server.post(&format!("{TASKS}/{id}/signal"), body).await.expect(200);
    let inbox = server.engine.store().inbox(id.parse().unwrap()).await.unwrap();
    assert_eq!(
        (&*inbox[0].name, inbox[0].payload.get()),
        ("approved", r#"{"by":"ann"}"#)
    );
}

#[tokio::test]
async fn a_bulk_request_tells_what_matches_and_does_it_in_a_task() {
    let server = Server::new();
    for _ in 0..5 {
        server
            .post(TASKS, r#"{"handler":"noop","queue":"old","delay":3600}"#)
            .await
            .expect(201);
    }
    server
        .post(TASKS, r#"{"handler":"noop","queue":"new","delay":3600}"#)
        .await
        .expect(201);
    let dry = r#"{"action":"cancel","filter":{"queue":"old"},"dry_run":true}"#;
    let answer = server.post("/api/v1/tasks/bulk", dry).await.expect(200);
    assert_eq!(answer.json(), json!({"matched": 5}));
    server.start();
    let real = r#"{"action":"cancel","filter":{"queue":"old"}}"#;
    let answer = server.post("/api/v1/tasks/bulk", real).await.expect(202);
    assert_eq!(answer.json()["matched"], 5);
    let id = answer.json()["task_id"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("location"), format!("{TASKS}/{id}"));
    let ended = server.ended(&id).await;
    assert_eq!(
        (&ended["status"], &ended["progress"]["percent"]),
        (&json!("completed"), &json!(100.0)),
        "{ended}"
    );
    let stats = server.get("/api/v1/queues/stats").await.json();
    assert_eq!(stats["queues"]["old"]["cancelled_tasks"], 5);
    assert_eq!(stats["queues"]["new"]["cancelled_tasks"], 0);
}

#[tokio::test]
async fn an_explanation_says_why_a_task_waits() {
    let server = Server::new();
    let id = server.post(TASKS, r#"{"handler":"noop","delay":3600}"#).await.id();
    let explained = server.get(&format!("{TASKS}/{id}/explain")).await.expect(200);
    assert!(explained.text.contains("time"), "{}", explained.text);
    server
        .get(&format!("{TASKS}/{}/explain", crate::support::NOBODY))
        .await
        .expect(404);
}
