//! Whatever is sent, the server stays a server: no answer in the 500s.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::support::{NOBODY, Server};

/// How many requests of each kind.
fn cases() -> u32 {
    if pensum_testing::run::is_long() { 20_000 } else { 400 }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        prop::sample::select(vec!["noop", "\u{0}", "1h", "critical", "2026-01-01T00:00:00Z", NOBODY])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(field(), inner, 0..6).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn field() -> impl Strategy<Value = String> {
    let known = vec![
        "handler",
        "task_type",
        "parameters",
        "metadata",
        "execution_context",
        "queue",
        "priority",
        "depends_on",
        "dependencies",
        "on_dependency_failure",
        "run_at",
        "delay",
        "deadline",
        "expires_at",
        "timeout",
        "queue_timeout",
        "heartbeat_timeout",
        "max_retries",
        "on_limit",
        "units",
        "retry",
        "key",
        "unique",
        "requires",
        "agent_id",
        "resources",
        "created_by",
        "assigned_to",
        "tags",
        "name",
        "description",
        "ref",
        "tasks",
        "action",
        "filter",
        "dry_run",
        "all",
        "status",
        "reason",
        "payload",
        "id",
        "strategy",
        "factor",
        "ttl",
        "on_conflict",
        "max_concurrent",
        "auto_start",
        "persistent",
        "rate_limit",
        "starts",
        "per",
        "burst",
        "capabilities",
        "max_concurrent_tasks",
        "labels",
        "lease",
        "session",
        "max",
        "have",
        "results",
        "executions",
        "execution_id",
        "lease_token",
        "outcome",
        "usage",
        "logs",
        "progress",
        "checkpoint",
        "handlers",
        "agents",
        "failures",
        "failure_rate",
        "calls_min",
        "window",
        "open_for",
        "probes",
    ];
    prop_oneof![4 => prop::sample::select(known).prop_map(str::to_owned), 1 => "\\PC{0,8}"]
}

fn valid() -> Vec<Value> {
    vec![
        json!({"handler": "noop", "parameters": {"a": 1}, "priority": "high", "tags": ["x"], "delay": 5}),
        json!({"handler": "sleep", "parameters": {"seconds": 1}, "retry": {"strategy": "fixed", "delay": 1},
            "unique": {"key": "k", "ttl": "1h", "on_conflict": "replace"}, "resources": {"cpu_cores": 1}}),
        json!({"tasks": [{"ref": "a", "handler": "noop"}, {"handler": "log", "parameters": {"message": "m"}, "depends_on": ["a"]}]}),
        json!({"action": "cancel", "filter": {"status": ["ready"], "queue": "default"}, "dry_run": true}),
        json!({"name": "go", "payload": {"b": [null]}}),
        json!({"reason": "why"}),
        json!({"name": "q", "max_concurrent": 2, "max_concurrent_per_key": 3, "auto_start": false, "persistent": false, "rate_limit": "50/s",
            "ageing": "5m", "fair": true}),
        json!({"rate_limit": {"starts": 5, "per": "1m", "burst": 2}, "priority": 2, "timeout": 5, "max_retries": 1,
            "retry": {"strategy": "fixed", "delay": 1}}),
        json!({"id": "b", "capabilities": ["x"], "max_concurrent_tasks": 2, "resources": {"cpu_cores": 1}, "labels": {"k": "v"},
            "lease": 5}),
        json!({"session": "1", "max": 2, "have": [format!("{NOBODY}.1")], "results": [{"execution_id": format!("{NOBODY}.1"),
            "lease_token": "0".repeat(64), "outcome": {"wait": {"signal": "s", "timeout": 5}}, "usage": {"cpu_seconds": 1},
            "logs": [{"message": "m", "stream": "stdout"}], "progress": {"percent": 5, "message": "m"}}]}),
        json!({"session": "1", "executions": [{"execution_id": format!("{NOBODY}.1"), "lease_token": "0".repeat(64),
            "checkpoint": {}, "progress": {"percent": 5}}]}),
        json!({"handlers": ["x"], "agents": ["a"], "failures": 3, "failure_rate": 0.5, "calls_min": 4, "window": "2m", "open_for": 5,
            "probes": 2}),
        json!({"name": null, "priority": 3, "deadline": "2030-01-01T00:00:00Z", "tags": ["t"]}),
    ]
}

/// A valid body with one value, somewhere, replaced.
fn mutated() -> impl Strategy<Value = Value> {
    (
        prop::sample::select(valid()),
        any_json(),
        prop::collection::vec(any::<prop::sample::Index>(), 1..4),
    )
        .prop_map(|(mut body, value, way)| {
            replace(&mut body, value, &way);
            body
        })
}

/// Replaces the value that a way from the root leads to.
fn replace(spot: &mut Value, value: Value, way: &[prop::sample::Index]) {
    match (way.split_first(), spot) {
        (Some((index, rest)), Value::Object(map)) if !map.is_empty() => {
            let at = index.index(map.len());
            replace(map.values_mut().nth(at).unwrap(), value, rest);
        }
        (Some((index, rest)), Value::Array(items)) if !items.is_empty() => {
            let at = index.index(items.len());
            replace(&mut items[at], value, rest);
        }
        (_, spot) => *spot = value,
    }
}

/// A valid body with bytes flipped, cut or doubled.
fn garbled() -> impl Strategy<Value = Vec<u8>> {
    (
        prop::sample::select(valid()),
        any::<prop::sample::Index>(),
        any::<u8>(),
        0..3u8,
    )
        .prop_map(|(body, at, byte, how)| {
            let mut bytes = body.to_string().into_bytes();
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.truncate(at),
                _ => bytes.insert(at, byte),
            }
            bytes
        })
}

#[test]
fn no_body_makes_the_server_fail() {
    bombard(Server::new, cases() * 4);
}

/// Sends many bodies to every route that takes one.
pub(crate) fn bombard(make: impl FnOnce() -> Server, cases: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (server, routes) = runtime.block_on(async {
        let server = make();
        let id = server
            .post("/api/v1/tasks", r#"{"handler":"noop","delay":3600}"#)
            .await
            .id();
        let mut routes = vec![
            ("POST", "/api/v1/tasks".to_owned()),
            ("POST", "/api/v1/tasks/batch".to_owned()),
            ("POST", "/api/v1/tasks/bulk".to_owned()),
            ("PATCH", format!("/api/v1/tasks/{id}")),
        ];
        server
            .ask("PUT", "/api/v1/queues/q", Some(b"{}"), &[])
            .await
            .expect(200);
        routes.push(("PUT", "/api/v1/queues/q".to_owned()));
        for verb in ["pause", "resume", "process"] {
            routes.push(("POST", format!("/api/v1/queues/q/{verb}")));
        }
        server
            .ask("PUT", "/api/v1/breakers/b", Some(br#"{"handlers":["x"]}"#), &[])
            .await
            .expect(200);
        for name in ["b", "handler:noop"] {
            routes.push(("PUT", format!("/api/v1/breakers/{name}")));
        }
        for verb in ["reset", "trip"] {
            routes.push(("POST", format!("/api/v1/breakers/b/{verb}")));
        }
        let agent = r#"{"id":"a","capabilities":["noop","x"]}"#;
        server.post("/api/v1/agents", agent).await.expect(201);
        routes.push(("POST", "/api/v1/agents".to_owned()));
        routes.push(("POST", "/api/v1/executions/complete".to_owned()));
        for verb in ["poll", "heartbeat", "drain", "undrain", "leave"] {
            routes.push(("POST", format!("/api/v1/agents/a/{verb}")));
        }
        for verb in ["execute", "cancel", "pause", "resume", "retry", "signal"] {
            routes.push(("POST", format!("/api/v1/tasks/{id}/{verb}")));
        }
        (server, routes)
    });
    let bodies = prop_oneof![
        any_json().prop_map(|v| v.to_string().into_bytes()),
        mutated().prop_map(|v| v.to_string().into_bytes()),
        garbled(),
        prop::collection::vec(any::<u8>(), 0..64),
    ];
    let requests = (prop::sample::select(routes), bodies);
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&requests, |((method, path), body)| {
            let answer = runtime.block_on(server.ask(method, &path, Some(&body), &[]));
            prop_assert!(
                answer.status < 500,
                "{method} {path} {}: {}",
                String::from_utf8_lossy(&body),
                answer.text
            );
            let problem = answer.status >= 400;
            prop_assert_eq!(answer.header("content-type") == "application/problem+json", problem);
            Ok(())
        })
        .unwrap();
}

#[test]
fn no_query_makes_the_server_fail() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (server, id) = runtime.block_on(async {
        let server = Server::new();
        let id = server
            .post("/api/v1/tasks", r#"{"handler":"noop","delay":3600}"#)
            .await
            .id();
        (server, id)
    });
    let paths = vec![
        "/api/v1/tasks".to_owned(),
        "/api/v1/executions".to_owned(),
        "/api/v1/dead-letters".to_owned(),
        "/api/v1/dead-letters/groups".to_owned(),
        "/api/v1/queues".to_owned(),
        "/api/v1/agents".to_owned(),
        "/api/v1/breakers".to_owned(),
        format!("/api/v1/tasks/{id}/logs"),
        format!("/api/v1/tasks/{id}/events"),
    ];
    let names = vec![
        "limit",
        "cursor",
        "status",
        "priority",
        "q",
        "after",
        "attempt",
        "created_after",
        "task_id",
        "tag",
        "fingerprint",
        "capability",
        "x",
    ];
    let values = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        "[a-z0-9%+&=;,.:-]{0,30}",
        "[0-9a-f]{26}"
    ];
    let queries = (
        prop::sample::select(paths),
        prop::collection::vec((prop::sample::select(names), values), 0..4),
    );
    let mut runner = TestRunner::new(Config {
        cases: cases(),
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&queries, |(path, pairs)| {
            let query: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let answer = runtime.block_on(server.get(&format!("{path}?{}", query.join("&"))));
            prop_assert!(answer.status < 500, "{path} {query:?}: {}", answer.text);
            Ok(())
        })
        .unwrap();
}
