//! `Idempotency-Key`: a repeat answers as the first request did, and changes nothing more.

use crate::support::{Answer, Server};

const TASKS: &str = "/api/v1/tasks";

async fn keyed(server: &Server, path: &str, body: &str, key: &str) -> Answer {
    server
        .ask("POST", path, Some(body.as_bytes()), &[("idempotency-key", key)])
        .await
}

#[tokio::test]
async fn a_repeated_post_answers_the_first_task() {
    let server = Server::new();
    let body = r#"{"handler":"noop"}"#;
    let first = keyed(&server, TASKS, body, "a").await.expect(201);
    assert_eq!(first.header("idempotency-replayed"), "");
    let second = keyed(&server, TASKS, body, "a").await.expect(200);
    assert_eq!(second.header("idempotency-replayed"), "true");
    assert_eq!(first.id(), second.id());
    assert_ne!(keyed(&server, TASKS, body, "b").await.expect(201).id(), first.id());
    assert_eq!(server.get("/api/v1/queues/stats").await.json()["ready_tasks"], 2);
}

#[tokio::test]
async fn a_key_stands_for_one_request_only() {
    let server = Server::new();
    let body = r#"{"handler":"noop"}"#;
    keyed(&server, TASKS, body, "a").await.expect(201);
    keyed(&server, TASKS, r#"{"handler":"noop","name":"other"}"#, "a")
        .await
        .expect(409);
    keyed(&server, "/api/v1/tasks/batch", body, "a").await.expect(422);
    keyed(&server, "/api/v1/tasks/batch", r#"{"tasks":[{"handler":"noop"}]}"#, "a")
        .await
        .expect(409);
    assert_eq!(server.get("/api/v1/queues/stats").await.json()["ready_tasks"], 1);
}

#[tokio::test]
async fn a_repeated_batch_answers_the_first_ids() {
    let server = Server::new();
    let body = r#"{"tasks":[{"handler":"noop"},{"handler":"noop"}]}"#;
    let first = keyed(&server, "/api/v1/tasks/batch", body, "a").await.expect(201);
    let second = keyed(&server, "/api/v1/tasks/batch", body, "a").await.expect(200);
    assert_eq!(first.text, second.text);
    assert_eq!(second.header("idempotency-replayed"), "true");
}

#[tokio::test]
async fn a_repeated_command_is_carried_out_once() {
    let server = Server::new();
    let id = server.post(TASKS, r#"{"handler":"noop","delay":60}"#).await.id();
    let path = format!("{TASKS}/{id}/signal");
    for _ in 0..3 {
        keyed(&server, &path, r#"{"name":"go"}"#, "a").await.expect(200);
    }
    assert_eq!(server.engine.store().inbox(id.parse().unwrap()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_key_that_is_no_key_is_refused() {
    let server = Server::new();
    let long = "k".repeat(256);
    for key in ["", "tab\there", &long] {
        keyed(&server, TASKS, r#"{"handler":"noop"}"#, key).await.expect(400);
    }
    let request = axum::http::Request::post(TASKS)
        .header("idempotency-key", "a")
        .header("idempotency-key", "b")
        .body(r#"{"handler":"noop"}"#.into())
        .unwrap();
    server.send(request).await.expect(400);
    keyed(&server, TASKS, r#"{"handler":"noop"}"#, &"k".repeat(255))
        .await
        .expect(201);
}
