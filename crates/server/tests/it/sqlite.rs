//! The same API over SQLite: what the model store lets pass must pass here, and what it keeps must be kept on disk.

use std::sync::Arc;

use pensum_core::Store;
use serde_json::json;

use crate::support::Server;

const TASKS: &str = "/api/v1/tasks";

fn open(directory: &tempfile::TempDir) -> Arc<dyn Store> {
    let path = directory.path().join("tasks.db");
    pensum_store::open(&format!("sqlite:{}", path.display()), "the tests").unwrap()
}

#[tokio::test]
async fn what_is_answered_is_what_is_on_disk_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::over(open(&directory));
    let full = json!({
        "name": "Report 😀", "handler": "noop", "parameters": {"message": "hi", "n": 1.50, "deep": [[{}]]},
        "metadata": {"a": 1}, "priority": "urgent", "delay": 3600, "tags": ["x"], "key": "k",
        "unique": {"key": "u"}, "timeout": "250ms", "retry": {"strategy": "fixed", "delay": 2},
    });
    let mut answered = vec![server.post(TASKS, &full.to_string()).await.expect(201).json()];
    for body in [
        r#"{"handler":"noop"}"#,
        r#"{"task_type":"testing","run_at":"2020-01-01T00:00:00Z"}"#,
    ] {
        answered.push(server.post(TASKS, body).await.expect(201).json());
    }
    let body = format!(r#"{{"handler":"noop","depends_on":[{}]}}"#, answered[1]["id"]);
    answered.push(server.post(TASKS, &body).await.expect(201).json());
    for task in &answered {
        let read = server
            .get(&format!("{TASKS}/{}", task["id"].as_str().unwrap()))
            .await
            .expect(200)
            .json();
        assert_eq!(&read, task);
    }
    server.engine.store().close().await.unwrap();
    drop(server);
    let server = Server::over(open(&directory));
    for task in &answered {
        let read = server
            .get(&format!("{TASKS}/{}", task["id"].as_str().unwrap()))
            .await
            .expect(200)
            .json();
        assert_eq!(&read, task);
    }
    let again = server.post(TASKS, &full.to_string()).await.expect(200).json();
    assert_eq!(again["id"], answered[0]["id"], "the unique key outlives the restart");
}

#[tokio::test]
async fn a_task_lives_its_life_over_sqlite() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::over(open(&directory));
    server.start();
    let id = server.gated().await;
    let path = format!("{TASKS}/{id}");
    server.post(&format!("{path}/pause"), "").await.expect(409);
    server.ask("DELETE", &path, None, &[]).await.expect(409);
    server.open();
    let ended = server.ended(&id).await;
    assert_eq!(
        (&ended["status"], &ended["result"]),
        (&json!("completed"), &json!("through"))
    );
    let log = server.get(&format!("{path}/logs?follow=true")).await.expect(200);
    assert_eq!(log.text.lines().count(), 2, "{}", log.text);
    let attempts = server.get(&format!("{path}/executions")).await.expect(200).json();
    assert_eq!(attempts["items"][0]["status"], "completed");
    let events = server.get(&format!("{path}/events")).await.expect(200).json();
    let kinds: Vec<_> = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["created", "started", "completed"]);
    server.post(&format!("{path}/cancel"), "").await.expect(409);
    server.ask("DELETE", &path, None, &[]).await.expect(204);
    server.get(&path).await.expect(404);
}

#[tokio::test]
async fn lists_and_keys_work_over_sqlite() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::over(open(&directory));
    server.start();
    let tasks: Vec<_> = (0..25)
        .map(|n| format!(r#"{{"handler":"noop","name":"{n}","delay":60}}"#))
        .collect();
    let body = format!(r#"{{"tasks":[{}]}}"#, tasks.join(","));
    let key = [("idempotency-key", "batch")];
    let first = server
        .ask("POST", "/api/v1/tasks/batch", Some(body.as_bytes()), &key)
        .await
        .expect(201);
    let second = server
        .ask("POST", "/api/v1/tasks/batch", Some(body.as_bytes()), &key)
        .await
        .expect(200);
    assert_eq!(first.text, second.text);
    server
        .ask(
            "POST",
            "/api/v1/tasks/batch",
            Some(br#"{"tasks":[{"handler":"noop"}]}"#),
            &key,
        )
        .await
        .expect(409);
    let (mut seen, mut query) = (Vec::new(), "limit=10&status=pending".to_owned());
    loop {
        let page = server.get(&format!("{TASKS}?{query}")).await.expect(200).json();
        seen.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|t| t["name"].as_str().unwrap().to_owned()),
        );
        let Some(cursor) = page["next_cursor"].as_str() else {
            break;
        };
        query = format!("limit=10&status=pending&cursor={cursor}");
    }
    assert_eq!(seen, (0..25).rev().map(|n| n.to_string()).collect::<Vec<_>>());
    let stats = server.get("/api/v1/queues/stats").await.expect(200).json();
    assert_eq!(stats["pending_tasks"], 25);
    server.get("/readyz").await.expect(200);
    server.engine.store().close().await.unwrap();
    server.get("/readyz").await.expect(503);
    server.post(TASKS, r#"{"handler":"noop"}"#).await.expect(503);
}

#[test]
fn no_body_makes_the_server_fail_over_sqlite() {
    let directory = tempfile::tempdir().unwrap();
    crate::fuzz::bombard(|| Server::over(open(&directory)), 400);
}
