//! Every wrong input on every route that changes something: the right status, the right path, never a 500.

use crate::support::{NOBODY, Server};

/// Asks, and checks the status and, unless empty, the path of one of the reported values.
async fn check(server: &Server, method: &str, path: &str, body: &str, status: u16, problem: &str) {
    let answer = server.ask(method, path, Some(body.as_bytes()), &[]).await;
    let shown = &body[..body.len().min(120)];
    assert_eq!(answer.status, status, "{method} {path} {shown}: {}", answer.text);
    assert_eq!(
        answer.header("content-type"),
        "application/problem+json",
        "{method} {path} {shown}"
    );
    let json = answer.json();
    assert_eq!(json["status"], status, "{method} {path} {shown}");
    assert!(
        json["detail"].as_str().is_some_and(|d| !d.is_empty()),
        "{method} {path} {shown}: {json}"
    );
    let paths: Vec<&str> = json["errors"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|e| e["path"].as_str())
        .collect();
    if !problem.is_empty() {
        assert!(
            paths.contains(&problem),
            "{method} {path} {shown}: {json} should name {problem}"
        );
    }
}

const TASKS: &str = "/api/v1/tasks";
const BATCH: &str = "/api/v1/tasks/batch";
const BULK: &str = "/api/v1/tasks/bulk";

#[tokio::test]
async fn a_wrong_task_is_refused_with_the_path_of_what_is_wrong() {
    let server = Server::new();
    for (body, status, problem) in [
        ("", 400, ""),
        ("nonsense", 400, ""),
        ("{", 400, ""),
        (r#"{"handler":"noop"} trailing"#, 400, ""),
        (r#"{"handler":"noop",}"#, 400, ""),
        ("\u{feff}{}", 400, ""),
        ("[]", 422, ""),
        ("null", 422, ""),
        ("7", 422, ""),
        ("\"noop\"", 422, ""),
        ("[[[[[[]]]]]]", 422, ""),
        ("{}", 422, "handler"),
        (r#"{"handler":7}"#, 422, "handler"),
        (r#"{"handler":["noop"]}"#, 422, "handler"),
        (r#"{"handler":""}"#, 422, "handler"),
        (r#"{"handler":"no op"}"#, 422, "handler"),
        (r#"{"handler":"pensum.bulk"}"#, 422, "handler"),
        (r#"{"handler":"noop","handler":"noop"}"#, 422, "handler"),
        (r#"{"handler":"noop","colour":1}"#, 422, "colour"),
        (r#"{"handler":"noop","id":"x"}"#, 422, "id"),
        (r#"{"handler":"noop","status":"completed"}"#, 422, "status"),
        (r#"{"handler":"noop","version":1}"#, 422, "version"),
        (r#"{"task_type":"cooking"}"#, 422, "task_type"),
        (r#"{"handler":"noop","priority":9}"#, 422, "priority"),
        (r#"{"handler":"noop","priority":-1}"#, 422, "priority"),
        (r#"{"handler":"noop","priority":1.5}"#, 422, "priority"),
        (r#"{"handler":"noop","priority":[]}"#, 422, "priority"),
        (r#"{"handler":"noop","priority":"huge"}"#, 422, "priority"),
        (r#"{"handler":"noop","priority":99999999999999999999}"#, 422, "priority"),
        (r#"{"handler":"noop","max_retries":-1}"#, 422, "max_retries"),
        (r#"{"handler":"noop","max_retries":1e3}"#, 422, "max_retries"),
        (r#"{"handler":"noop","max_retries":5000}"#, 422, "max_retries"),
        (r#"{"handler":"noop","timeout":-5}"#, 422, "timeout"),
        (r#"{"handler":"noop","timeout":1e400}"#, 400, ""),
        (r#"{"handler":"noop","timeout":1e300}"#, 422, "timeout"),
        (r#"{"handler":"noop","timeout":"soon"}"#, 422, "timeout"),
        (r#"{"handler":"noop","queue_timeout":0}"#, 422, "queue_timeout"),
        (r#"{"handler":"noop","heartbeat_timeout":{}}"#, 422, "heartbeat_timeout"),
        (r#"{"handler":"noop","run_at":"2026"}"#, 422, "run_at"),
        (r#"{"handler":"noop","run_at":1700000000}"#, 422, "run_at"),
        (r#"{"handler":"noop","run_at":"9999-01-01T00:00:00Z"}"#, 422, "run_at"),
        (
            r#"{"handler":"noop","run_at":"2026-01-01T00:00:00Z","delay":1}"#,
            422,
            "delay",
        ),
        (
            r#"{"handler":"noop","deadline":"0001-01-01T00:00:00Z"}"#,
            422,
            "deadline",
        ),
        (r#"{"handler":"noop","expires_at":""}"#, 422, "expires_at"),
        (r#"{"handler":"noop","depends_on":"x"}"#, 422, "depends_on"),
        (r#"{"handler":"noop","depends_on":["nobody"]}"#, 422, "depends_on[0]"),
        (
            r#"{"handler":"noop","depends_on":["0198c1f0-7f3c-7abc-8def-0123456789ab"]}"#,
            422,
            "depends_on[0]",
        ),
        (
            r#"{"handler":"noop","on_dependency_failure":"shrug"}"#,
            422,
            "on_dependency_failure",
        ),
        (r#"{"handler":"noop","on_limit":"shrug"}"#, 422, "on_limit"),
        (r#"{"handler":"noop","units":0}"#, 422, "units"),
        (r#"{"handler":"noop","units":1000001}"#, 422, "units"),
        (r#"{"handler":"noop","units":"many"}"#, 422, "units"),
        (r#"{"handler":"noop","queue":""}"#, 422, "queue"),
        (r#"{"handler":"noop","queue":"a b"}"#, 422, "queue"),
        (r#"{"handler":"noop","key":" "}"#, 422, "key"),
        (r#"{"handler":"noop","unique":{"key":""}}"#, 422, "unique.key"),
        (r#"{"handler":"noop","unique":{}}"#, 422, "unique.key"),
        (r#"{"handler":"noop","unique":["k"]}"#, 422, "unique"),
        (r#"{"handler":"noop","retry":[]}"#, 422, "retry"),
        (r#"{"handler":"noop","resources":[]}"#, 422, "resources"),
        (
            r#"{"handler":"noop","unique":{"key":"a","colour":1}}"#,
            422,
            "unique.colour",
        ),
        (r#"{"handler":"noop","unique":{"key":"a","ttl":0}}"#, 422, "unique.ttl"),
        (
            r#"{"handler":"noop","unique":{"key":"a","on_conflict":"fight"}}"#,
            422,
            "unique.on_conflict",
        ),
        (r#"{"handler":"noop","retry":{"factor":0}}"#, 422, "retry.factor"),
        (r#"{"handler":"noop","retry":{"speed":1}}"#, 422, "retry.speed"),
        (r#"{"handler":"noop","retry":{"jitter":3}}"#, 422, "retry.jitter"),
        (r#"{"handler":"noop","requires":[7]}"#, 422, "requires[0]"),
        (r#"{"handler":"noop","requires":[""]}"#, 422, "requires[0]"),
        (r#"{"handler":"noop","tags":["a","b\u0000"]}"#, 422, "tags[1]"),
        (
            r#"{"handler":"noop","resources":{"cpu_cores":-1}}"#,
            422,
            "resources.cpu_cores",
        ),
        (r#"{"handler":"noop","resources":{"cpus":1}}"#, 422, "resources.cpus"),
        (r#"{"handler":"noop","name":"a\u0000b"}"#, 422, "name"),
        (r#"{"handler":"noop","name":{}}"#, 422, "name"),
        (r#"{"handler":"noop","parameters":{"a":"\u0000"}}"#, 422, "parameters"),
        (r#"{"handler":"noop","metadata":["\u0000"]}"#, 422, "metadata"),
        (r#"{"handler":"noop","metadata":["\ud83d"]}"#, 422, "metadata"),
        (r#"{"handler":"noop","name":"\ud83d"}"#, 400, ""),
        (
            r#"{"handler":"noop","execution_context":"\u0000"}"#,
            422,
            "execution_context",
        ),
        (r#"{"handler":"noop","created_by":"\u0007"}"#, 422, "created_by"),
        (r#"{"handler":"noop","assigned_to":""}"#, 422, "assigned_to"),
        (r#"{"handler":"noop","agent_id":""}"#, 422, "agent_id"),
        (
            r#"{"handler":"sleep","parameters":{"seconds":"x"}}"#,
            422,
            "parameters.seconds",
        ),
        (r#"{"handler":"command","parameters":{}}"#, 422, "parameters"),
        (r#"{"handler":"command","parameters":["true"]}"#, 422, "parameters"),
    ] {
        check(&server, "POST", TASKS, body, status, problem).await;
    }
    for (what, body) in [
        ("name", format!(r#"{{"handler":"noop","name":"{}"}}"#, "n".repeat(501))),
        ("handler", format!(r#"{{"handler":"{}"}}"#, "h".repeat(201))),
        (
            "tags",
            format!(r#"{{"handler":"noop","tags":[{}]}}"#, vec!["\"t\""; 51].join(",")),
        ),
        (
            "depends_on",
            format!(
                r#"{{"handler":"noop","depends_on":[{}]}}"#,
                vec!["\"t\""; 1001].join(",")
            ),
        ),
        (
            "parameters",
            format!(
                r#"{{"handler":"noop","parameters":{}{}}}"#,
                "[".repeat(200),
                "]".repeat(200)
            ),
        ),
        (
            "parameters",
            format!(
                r#"{{"handler":"noop","parameters":{}{}}}"#,
                "[".repeat(90_000),
                "]".repeat(90_000)
            ),
        ),
    ] {
        check(&server, "POST", TASKS, &body, 422, what).await;
    }
    let counts = server.get("/api/v1/queues/stats").await.json();
    assert_eq!(counts["queues"], serde_json::json!({}), "nothing was created");
}

#[tokio::test]
async fn a_wrong_batch_is_refused_whole() {
    let server = Server::new();
    for (body, status, problem) in [
        ("", 400, ""),
        ("{}", 422, ""),
        ("[]", 422, ""),
        (r#"{"tasks":{}}"#, 422, "tasks"),
        (r#"{"tasks":[]}"#, 422, "tasks"),
        (r#"{"tasks":[null]}"#, 422, "tasks[0]"),
        (r#"{"tasks":[[]]}"#, 422, "tasks[0]"),
        (r#"{"tasks":[{"handler":"noop"},{}]}"#, 422, "tasks[1].handler"),
        (
            r#"{"tasks":[{"handler":"noop"},{"handler":"noop","colour":1}]}"#,
            422,
            "tasks[1].colour",
        ),
        (r#"{"tasks":[{"handler":"noop"}],"more":1}"#, 422, "more"),
        (
            r#"{"tasks":[{"ref":"a","handler":"noop"},{"ref":"a","handler":"noop"}]}"#,
            422,
            "tasks[1].ref",
        ),
        (
            r#"{"tasks":[{"ref":"a","handler":"noop","depends_on":["a"]}]}"#,
            422,
            "",
        ),
        (
            r#"{"tasks":[{"ref":"a","handler":"noop","depends_on":["b"]},{"ref":"b","handler":"noop","depends_on":["a"]}]}"#,
            422,
            "",
        ),
        (
            r#"{"tasks":[{"handler":"noop"},{"handler":"noop","depends_on":["0198c1f0-7f3c-7abc-8def-0123456789ab"]}]}"#,
            422,
            "tasks[1].depends_on[0]",
        ),
        (
            r#"{"tasks":[{"handler":"noop","unique":{"key":"k"}},{"handler":"noop","unique":{"key":"k","on_conflict":"reject"}}]}"#,
            422,
            "tasks[1].unique",
        ),
        (
            r#"{"tasks":[{"handler":"noop"},{"handler":"sleep","parameters":{"seconds":-1}}]}"#,
            422,
            "tasks[1].parameters.seconds",
        ),
    ] {
        check(&server, "POST", BATCH, body, status, problem).await;
    }
    let many = format!(r#"{{"tasks":[{}]}}"#, vec![r#"{"handler":"noop"}"#; 10_001].join(","));
    check(&server, "POST", BATCH, &many, 422, "tasks").await;
    let counts = server.get("/api/v1/queues/stats").await.json();
    assert_eq!(counts["queues"], serde_json::json!({}), "nothing was created");
}

#[tokio::test]
async fn a_wrong_change_is_refused() {
    let server = Server::new();
    let id = server.post(TASKS, r#"{"handler":"noop","delay":60}"#).await.id();
    let path = format!("{TASKS}/{id}");
    for (body, status, problem) in [
        ("", 400, ""),
        ("x", 400, ""),
        ("[]", 422, ""),
        ("null", 422, ""),
        (r#"{"status":"completed"}"#, 422, "status"),
        (r#"{"colour":1}"#, 422, "colour"),
        (r#"{"handler":"x"}"#, 422, "handler"),
        (r#"{"priority":"huge"}"#, 422, "priority"),
        (r#"{"name":7}"#, 422, "name"),
        (r#"{"name":"\u0000"}"#, 422, "name"),
        (r#"{"tags":"x"}"#, 422, "tags"),
        (r#"{"tags":[""]}"#, 422, "tags[0]"),
        (r#"{"deadline":"soon"}"#, 422, "deadline"),
        (r#"{"run_at":"2026-01-01T00:00:00Z","delay":1}"#, 422, "delay"),
        (r#"{"max_retries":1001}"#, 422, "max_retries"),
        (r#"{"timeout":-1}"#, 422, "timeout"),
        (r#"{"retry":{"factor":1000}}"#, 422, "retry.factor"),
        (r#"{"parameters":"\u0000"}"#, 422, "parameters"),
        (r#"{"queue":"a b"}"#, 422, "queue"),
        (r#"{"assigned_to":""}"#, 422, "assigned_to"),
    ] {
        check(&server, "PATCH", &path, body, status, problem).await;
    }
    check(
        &server,
        "PATCH",
        &format!("{TASKS}/{NOBODY}"),
        r#"{"name":"x"}"#,
        404,
        "",
    )
    .await;
    check(&server, "PATCH", &format!("{TASKS}/nobody"), r#"{"name":"x"}"#, 404, "").await;
    let stale = server
        .ask("PATCH", &path, Some(br#"{"name":"x"}"#), &[("if-match", "\"999\"")])
        .await
        .expect(412);
    assert!(
        stale.json()["detail"].as_str().unwrap().contains("not 999"),
        "{}",
        stale.text
    );
    for tag in ["999", "\"x\"", "W/\"1\"", "\"\"", "\"-1\""] {
        server
            .ask("PATCH", &path, Some(br#"{"name":"x"}"#), &[("if-match", tag)])
            .await
            .expect(400);
    }
    server.post(&format!("{path}/cancel"), "").await.expect(200);
    check(&server, "PATCH", &path, r#"{"priority":"high"}"#, 409, "").await;
}

#[tokio::test]
async fn a_wrong_command_is_refused() {
    let server = Server::new();
    let id = server.post(TASKS, r#"{"handler":"noop","delay":60}"#).await.id();
    for verb in ["execute", "cancel", "pause", "resume", "retry"] {
        let path = format!("{TASKS}/{id}/{verb}");
        for (body, status, problem) in [
            ("x", 400, ""),
            ("[]", 422, ""),
            ("7", 422, ""),
            (r#"{"colour":1}"#, 422, "colour"),
        ] {
            check(&server, "POST", &path, body, status, problem).await;
        }
        check(&server, "POST", &format!("{TASKS}/{NOBODY}/{verb}"), "", 404, "").await;
        check(&server, "POST", &format!("{TASKS}/nobody/{verb}"), "{}", 404, "").await;
        check(&server, "POST", &format!("{path}?now=true"), "", 400, "now").await;
    }
    let cancel = format!("{TASKS}/{id}/cancel");
    check(&server, "POST", &cancel, r#"{"reason":7}"#, 422, "reason").await;
    check(&server, "POST", &cancel, r#"{"reason":"\u0000"}"#, 422, "reason").await;
    check(
        &server,
        "POST",
        &cancel,
        &format!(r#"{{"reason":"{}"}}"#, "r".repeat(1001)),
        422,
        "reason",
    )
    .await;
    let signal = format!("{TASKS}/{id}/signal");
    for (body, status, problem) in [
        ("", 400, ""),
        ("{}", 422, "name"),
        ("[\"go\"]", 422, ""),
        (r#"{"name":""}"#, 422, "name"),
        (r#"{"name":7}"#, 422, "name"),
        (r#"{"name":"a\u0000"}"#, 422, "name"),
        (r#"{"name":"go","payload":"\u0000"}"#, 422, "payload"),
        (r#"{"name":"go","more":1}"#, 422, "more"),
    ] {
        check(&server, "POST", &signal, body, status, problem).await;
    }
    check(
        &server,
        "POST",
        &format!("{TASKS}/{NOBODY}/signal"),
        r#"{"name":"go"}"#,
        404,
        "",
    )
    .await;
    check(&server, "DELETE", &format!("{TASKS}/{NOBODY}"), "", 404, "").await;
    check(&server, "DELETE", &format!("{TASKS}/nobody"), "", 404, "").await;
}

#[tokio::test]
async fn a_transition_that_the_state_forbids_is_a_conflict() {
    let server = Server::new();
    server.start();
    let running = server.gated().await;
    for (verb, body) in [("pause", ""), ("execute", ""), ("retry", "")] {
        check(&server, "POST", &format!("{TASKS}/{running}/{verb}"), body, 409, "").await;
    }
    check(&server, "DELETE", &format!("{TASKS}/{running}"), "", 409, "").await;
    check(
        &server,
        "PATCH",
        &format!("{TASKS}/{running}"),
        r#"{"parameters":{}}"#,
        409,
        "",
    )
    .await;
    server.open();
    assert_eq!(server.ended(&running).await["status"], "completed");
    for (verb, body) in [
        ("cancel", ""),
        ("pause", ""),
        ("resume", ""),
        ("execute", ""),
        ("signal", r#"{"name":"go"}"#),
    ] {
        check(&server, "POST", &format!("{TASKS}/{running}/{verb}"), body, 409, "").await;
    }
    let batch = r#"{"tasks":[{"ref":"a","handler":"noop","delay":60},{"handler":"noop","depends_on":["a"]}]}"#;
    let ids = server.post(BATCH, batch).await.expect(201).json();
    check(
        &server,
        "DELETE",
        &format!("{TASKS}/{}", ids["ids"][0].as_str().unwrap()),
        "",
        409,
        "",
    )
    .await;
}

#[tokio::test]
async fn a_wrong_bulk_request_is_refused() {
    let server = Server::new();
    for (body, status, problem) in [
        ("", 400, ""),
        ("{}", 422, ""),
        ("[]", 422, ""),
        (r#"{"action":"explode","filter":{"queue":"a"}}"#, 422, "action"),
        (r#"{"action":"cancel","filter":{"colour":1}}"#, 422, "filter.colour"),
        (
            r#"{"action":"cancel","filter":{"status":["gone"]}}"#,
            422,
            "filter.status[0]",
        ),
        (
            r#"{"action":"cancel","filter":{"parent_id":"x"}}"#,
            422,
            "filter.parent_id",
        ),
        (
            r#"{"action":"cancel","filter":{"created_after":"x"}}"#,
            422,
            "filter.created_after",
        ),
        (
            r#"{"action":"cancel","filter":{"queue":"a"},"dry_run":"yes"}"#,
            422,
            "dry_run",
        ),
        (r#"{"action":"cancel","filter":{"queue":"a"},"more":1}"#, 422, "more"),
        (r#"{"action":"cancel","filter":{}}"#, 422, ""),
    ] {
        check(&server, "POST", BULK, body, status, problem).await;
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let server = Server::new();
    let large = format!(r#"{{"handler":"noop","parameters":"{}"}}"#, "x".repeat(2 << 20));
    let id = server.post(TASKS, r#"{"handler":"noop","delay":60}"#).await.id();
    check(&server, "POST", TASKS, &large, 413, "").await;
    check(&server, "POST", BULK, &large, 413, "").await;
    check(&server, "PATCH", &format!("{TASKS}/{id}"), &large, 413, "").await;
    for verb in ["execute", "cancel", "pause", "resume", "retry", "signal"] {
        check(&server, "POST", &format!("{TASKS}/{id}/{verb}"), &large, 413, "").await;
    }
    check(&server, "PUT", "/api/v1/breakers/b", &large, 413, "").await;
    for verb in ["reset", "trip"] {
        check(&server, "POST", &format!("/api/v1/breakers/b/{verb}"), &large, 413, "").await;
    }
    let spaces = " ".repeat((16 << 20) + 1);
    check(&server, "POST", BATCH, &spaces, 413, "").await;
    let fits = format!(
        r#"{{"tasks":[{{"handler":"noop","parameters":"{}"}}]}}"#,
        "x".repeat(1_000_000)
    );
    let both = format!("{}{}", " ".repeat(2 << 20), fits);
    server.post(BATCH, &both).await.expect(201);
}

#[tokio::test]
async fn a_body_that_says_it_is_something_else_is_refused() {
    let server = Server::new();
    for media in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "nonsense",
    ] {
        let answer = server
            .ask(
                "POST",
                TASKS,
                Some(br#"{"handler":"noop"}"#),
                &[("content-type", media)],
            )
            .await;
        answer.expect(415);
    }
    let plain = axum::http::Request::post(TASKS)
        .body(r#"{"handler":"noop"}"#.into())
        .unwrap();
    server.send(plain).await.expect(201);
}

#[tokio::test]
async fn text_that_is_not_utf_8_is_refused() {
    let server = Server::new();
    for body in [
        &b"{\"handler\":\"\xff\"}"[..],
        b"{\"handler\":\"noop\",\"parameters\":\"\xc3\x28\"}",
        b"\xff\xfe",
    ] {
        server.ask("POST", TASKS, Some(body), &[]).await.expect(400);
    }
}

#[tokio::test]
async fn routes_and_methods_that_do_not_exist_are_named() {
    let server = Server::new();
    for path in [
        "/",
        "/api",
        "/api/v1",
        "/api/v1/workflows",
        "/api/v1/tasks/",
        "/api/v2/tasks",
        "/%ff",
        "/api/v1/tasks/%ff",
    ] {
        let answer = server.get(path).await.expect(404);
        assert_eq!(answer.header("content-type"), "application/problem+json", "{path}");
    }
    let answer = server.ask("PUT", TASKS, None, &[]).await.expect(405);
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let mut allowed: Vec<_> = answer.header("allow").split(',').collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD", "POST"]);
    server.ask("DELETE", BATCH, None, &[]).await.expect(405);
}

#[tokio::test]
async fn a_panic_is_answered_and_does_not_end_the_server() {
    let server = Server::new();
    check(&server, "POST", TASKS, r#"{"handler":"bomb"}"#, 500, "").await;
    server.post(TASKS, r#"{"handler":"noop"}"#).await.expect(201);
}

#[tokio::test]
async fn the_problem_format_stays() {
    let server = Server::new();
    let answer = server
        .post(TASKS, r#"{"handler":"a b","queue":"","tags":[""]}"#)
        .await
        .expect(422);
    insta::assert_json_snapshot!(answer.json());
    let answer = server.get("/api/v1/tasks/nobody").await.expect(404);
    insta::assert_json_snapshot!(answer.json());
}
