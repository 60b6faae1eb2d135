//! Lists: filters, pages and cursors.

use std::collections::BTreeSet;

use crate::support::{NOBODY, Server};

const TASKS: &str = "/api/v1/tasks";

async fn ids(server: &Server, query: &str) -> Vec<String> {
    let json = server.get(&format!("{TASKS}?{query}")).await.expect(200).json();
    json["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["name"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn a_cursor_leads_through_all_pages_without_gap_or_repeat() {
    let server = Server::new();
    let tasks: Vec<_> = (0..57)
        .map(|n| format!(r#"{{"handler":"noop","name":"{n}"}}"#))
        .collect();
    server
        .post("/api/v1/tasks/batch", &format!(r#"{{"tasks":[{}]}}"#, tasks.join(",")))
        .await
        .expect(201);
    let mut seen = Vec::new();
    let mut query = "limit=10".to_owned();
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
        query = format!("limit=10&cursor={cursor}");
    }
    let newest_first: Vec<_> = (0..57).rev().map(|n| n.to_string()).collect();
    assert_eq!(seen, newest_first);
    assert_eq!(ids(&server, "").await.len(), 50);
    assert_eq!(ids(&server, "limit=200").await.len(), 57);
}

#[tokio::test]
async fn a_filter_finds_what_it_names() {
    let server = Server::new();
    server.start();
    for body in [
        r#"{"handler":"noop","name":"a","queue":"q1","tags":["t"],"priority":"high","delay":60}"#,
        r#"{"handler":"log","name":"b","queue":"q2","created_by":"ann","assigned_to":"bob","key":"k","delay":60,"parameters":{"message":"m"}}"#,
        r#"{"handler":"fail","name":"c","max_retries":0,"parameters":{"message":"no"},"task_type":"testing"}"#,
    ] {
        server.post(TASKS, body).await.expect(201);
    }
    let failed = server.get(&format!("{TASKS}?q=c")).await.json()["items"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(server.ended(&failed).await["status"], "failed");
    for (query, names) in [
        ("queue=q1", "a"),
        ("handler=log", "b"),
        ("task_type=testing", "c"),
        ("priority=high", "a"),
        ("priority=3", "a"),
        ("assigned_to=bob", "b"),
        ("created_by=ann", "b"),
        ("key=k", "b"),
        ("tag=t", "a"),
        ("status=failed", "c"),
        ("status=pending,failed", "cba"),
        ("status=pending&status=failed", "cba"),
        ("status=completed", ""),
        ("dead_lettered=true", "c"),
        ("dead_lettered=false", "ba"),
        ("created_before=2020-01-01T00:00:00Z", ""),
        ("created_after=2020-01-01T00:00:00Z", "cba"),
        ("created_after=2020-01-01T00:00:00%2B01:00&queue=q2", "b"),
        (&format!("workflow_id={NOBODY}"), ""),
        (&format!("parent_id={NOBODY}"), ""),
        ("agent_id=x", ""),
    ] {
        assert_eq!(ids(&server, query).await.concat(), names, "{query}");
    }
    let dead = server.get("/api/v1/dead-letters").await.expect(200).json();
    assert_eq!(
        (dead["items"].as_array().unwrap().len(), &dead["items"][0]["name"]),
        (1, &"c".into())
    );
    server.get("/api/v1/dead-letters?dead_lettered=false").await.expect(400);
}

#[tokio::test]
async fn a_wrong_query_is_refused_with_the_name_of_the_parameter() {
    let server = Server::new();
    let id = server.post(TASKS, r#"{"handler":"noop"}"#).await.id();
    let task = format!("{TASKS}/{id}");
    for (path, name) in [
        (format!("{TASKS}?colour=red"), "colour"),
        (format!("{TASKS}?limit=0"), "limit"),
        (format!("{TASKS}?limit=201"), "limit"),
        (format!("{TASKS}?limit=x"), "limit"),
        (format!("{TASKS}?limit=-1"), "limit"),
        (format!("{TASKS}?limit=1&limit=2"), "limit"),
        (format!("{TASKS}?status=gone"), "status"),
        (format!("{TASKS}?status="), "status"),
        (format!("{TASKS}?status=ready,"), "status"),
        (format!("{TASKS}?priority=huge"), "priority"),
        (format!("{TASKS}?workflow_id=x"), "workflow_id"),
        (format!("{TASKS}?created_after=yesterday"), "created_after"),
        (format!("{TASKS}?dead_lettered=maybe"), "dead_lettered"),
        (format!("{TASKS}?queue=a%00b"), "queue"),
        (format!("{TASKS}?q={}", "x".repeat(201)), "q"),
        (format!("{TASKS}?cursor=x"), "cursor"),
        (format!("{TASKS}?cursor=01000000000000000100000000"), "cursor"),
        (format!("{TASKS}/{id}?full=true"), "full"),
        (format!("{task}/events?after=1"), "after"),
        (format!("{task}/events?cursor=1"), "cursor"),
        (format!("{task}/executions?limit=0"), "limit"),
        (format!("{task}/logs?after=x"), "after"),
        (format!("{task}/logs?after=18446744073709551615"), "after"),
        (format!("{task}/logs?follow=2"), "follow"),
        (format!("{task}/logs?attempt=-1"), "attempt"),
        (format!("{task}/dependencies?x=1"), "x"),
        (format!("{task}/explain?x=1"), "x"),
        ("/api/v1/executions?task_id=x".to_owned(), "task_id"),
        ("/api/v1/queues/stats?queue=a".to_owned(), "queue"),
        ("/api/v1/system/status?x=1".to_owned(), "x"),
    ] {
        let json = server.get(&path).await.expect(400).json();
        assert_eq!(json["errors"][0]["path"], name, "{path}: {json}");
    }
}

#[tokio::test]
async fn attempts_and_events_of_a_task_are_listed() {
    let server = Server::new();
    server.start();
    let body =
        r#"{"handler":"fail","parameters":{"message":"no"},"max_retries":2,"retry":{"strategy":"fixed","delay":0}}"#;
    let id = server.post(TASKS, body).await.expect(201).id();
    assert_eq!(server.ended(&id).await["status"], "failed");
    let all = server.get(&format!("{TASKS}/{id}/executions")).await.expect(200).json();
    let attempts: Vec<_> = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["attempt"].as_u64().unwrap())
        .collect();
    assert_eq!(attempts, [1, 2, 3]);
    let page = server.get(&format!("{TASKS}/{id}/executions?limit=2")).await.json();
    let cursor = page["next_cursor"].as_str().unwrap();
    let rest = server
        .get(&format!("{TASKS}/{id}/executions?limit=2&cursor={cursor}"))
        .await
        .json();
    assert_eq!(
        (&rest["items"][0]["attempt"], &rest["next_cursor"]),
        (&3.into(), &serde_json::Value::Null)
    );

    let one = all["items"][1]["id"].as_str().unwrap();
    assert_eq!(
        server
            .get(&format!("/api/v1/executions/{one}"))
            .await
            .expect(200)
            .json(),
        all["items"][1]
    );
    server.get(&format!("/api/v1/executions/{id}.9")).await.expect(404);
    server.get("/api/v1/executions/nonsense").await.expect(404);
    let of_task = server
        .get(&format!("/api/v1/executions?task_id={id}"))
        .await
        .expect(200)
        .json();
    assert_eq!(of_task["items"], all["items"]);
    let ended = server.get("/api/v1/executions").await.expect(200).json();
    assert_eq!(ended["items"].as_array().unwrap().len(), 3);

    let events = server.get(&format!("{TASKS}/{id}/events")).await.expect(200).json();
    let kinds: BTreeSet<_> = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["kind"].as_str().unwrap())
        .collect();
    assert!(kinds.contains("created") && kinds.contains("failed"), "{kinds:?}");
    for path in ["executions", "events", "logs", "dependencies"] {
        server.get(&format!("{TASKS}/{NOBODY}/{path}")).await.expect(404);
    }
}
