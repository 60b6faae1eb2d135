//! Log lines: pages, and streams that end with the task.

use std::time::Duration;

use crate::support::Server;

const TASKS: &str = "/api/v1/tasks";

#[tokio::test]
async fn log_lines_are_read_page_by_page() {
    let server = Server::new();
    server.start();
    let id = server.gated().await;
    server.open();
    server.ended(&id).await;
    let all = server.get(&format!("{TASKS}/{id}/logs")).await.expect(200).json();
    let messages: Vec<_> = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["message"].as_str().unwrap())
        .collect();
    assert_eq!(messages, ["before the gate", "behind the gate"]);
    assert_eq!(all["items"][0]["stream"], "stdout");
    assert!(all["next_cursor"].is_null());
    let first = server
        .get(&format!("{TASKS}/{id}/logs?limit=1"))
        .await
        .expect(200)
        .json();
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = server
        .get(&format!("{TASKS}/{id}/logs?limit=1&cursor={cursor}"))
        .await
        .expect(200)
        .json();
    assert_eq!(second["items"][0]["message"], "behind the gate");
    assert!(second["next_cursor"].is_null());
    let after = &all["items"][0]["seq"];
    let behind = server
        .get(&format!("{TASKS}/{id}/logs?after={after}&attempt=1"))
        .await
        .expect(200)
        .json();
    assert_eq!(behind["items"], second["items"]);
    let other = server
        .get(&format!("{TASKS}/{id}/logs?attempt=2"))
        .await
        .expect(200)
        .json();
    assert_eq!(other["items"], serde_json::json!([]));
    server
        .get(&format!("{TASKS}/{id}/logs?after=1&cursor={cursor}"))
        .await
        .expect(400);
}

#[tokio::test]
async fn a_followed_log_ends_with_its_task() {
    let server = Server::new();
    server.start();
    let id = server.gated().await;
    let path = format!("{TASKS}/{id}/logs?follow=true");
    let follow = async {
        let answer = server.get(&path).await.expect(200);
        assert_eq!(answer.header("content-type"), "application/x-ndjson");
        let lines: Vec<serde_json::Value> = answer.text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let messages: Vec<_> = lines.iter().map(|l| l["message"].as_str().unwrap()).collect();
        assert_eq!(messages, ["before the gate", "behind the gate"]);
    };
    let release = async {
        server.open();
        server.ended(&id).await;
    };
    tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(follow, release) })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_followed_log_as_server_sent_events_says_how_the_task_ended() {
    let server = Server::new();
    server.start();
    let id = server.gated().await;
    server.open();
    server.ended(&id).await;
    let accept = [("accept", "text/event-stream")];
    let answer = server
        .ask("GET", &format!("{TASKS}/{id}/logs?follow=true"), None, &accept)
        .await
        .expect(200);
    assert_eq!(answer.header("content-type"), "text/event-stream");
    let events: Vec<_> = answer.text.split_terminator("\n\n").collect();
    assert_eq!(events.len(), 3, "{}", answer.text);
    assert!(events[0].contains("event: log\ndata: {"), "{}", events[0]);
    assert_eq!(events[2], "event: end\ndata: {\"status\":\"completed\"}");
    let seq = events[0].lines().next().unwrap().strip_prefix("id: ").unwrap();
    let resumed = [("accept", "text/event-stream"), ("last-event-id", seq)];
    let rest = server
        .ask("GET", &format!("{TASKS}/{id}/logs?follow=true"), None, &resumed)
        .await
        .expect(200);
    assert_eq!(rest.text, format!("{}\n\n{}\n\n", events[1], events[2]));
}
