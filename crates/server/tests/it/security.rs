//! What keeps other sites and other machines out.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use pensum_core::model::ModelStore;

use crate::support::Server;

const TASKS: &str = "/api/v1/tasks";

async fn from(server: &Server, method: &str, headers: &[(&str, &str)]) -> u16 {
    let mut request = Request::builder()
        .method(method)
        .uri(TASKS)
        .header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = if method == "POST" { r#"{"handler":"noop"}"# } else { "" };
    server.send(request.body(Body::from(body)).unwrap()).await.status
}

#[tokio::test]
async fn a_host_that_is_not_ours_is_refused() {
    let store = Arc::new(ModelStore::new(1));
    let server = Server::with(store, |options| {
        options.allowed_hosts = vec!["tasks.example".to_owned()]
    });
    for (host, status) in [
        ("localhost", 200),
        ("localhost:7400", 200),
        ("127.0.0.1:7400", 200),
        ("[::1]:7400", 200),
        ("tasks.example", 200),
        ("rebound.example", 421),
        ("127.0.0.1.rebound.example", 421),
        ("", 421),
    ] {
        assert_eq!(from(&server, "GET", &[("host", host)]).await, status, "{host}");
    }
    assert_eq!(
        from(&server, "GET", &[]).await,
        200,
        "a client without a Host header is no browser"
    );
    assert_eq!(
        from(&server, "GET", &[("host", "localhost"), ("host", "rebound.example")]).await,
        400
    );
}

#[tokio::test]
async fn another_site_changes_nothing() {
    let server = Server::new();
    for (origin, status) in [
        ("http://localhost:7400", 201),
        ("http://evil.example", 403),
        ("http://localhost:3000", 403),
        ("null", 403),
        ("", 403),
    ] {
        assert_eq!(
            from(&server, "POST", &[("host", "localhost:7400"), ("origin", origin)]).await,
            status,
            "{origin}"
        );
    }
    for (site, status) in [
        ("same-origin", 201),
        ("none", 201),
        ("cross-site", 403),
        ("same-site", 403),
    ] {
        assert_eq!(
            from(&server, "POST", &[("host", "localhost"), ("sec-fetch-site", site)]).await,
            status,
            "{site}"
        );
    }
    let answer = server
        .ask("GET", TASKS, None, &[("origin", "http://evil.example")])
        .await
        .expect(200);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        "",
        "and cannot read the answer"
    );
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("cache-control"), "no-store");
}

#[tokio::test]
async fn inline_commands_and_calls_run_only_where_they_are_allowed() {
    let store = Arc::new(ModelStore::new(1));
    let strict = Server::with(Arc::clone(&store) as _, |_| {});
    let open = Server::with(store, |options| options.allow_inline = true);
    let command = r#"{"handler":"command","parameters":{"program":"true"},"delay":60}"#;
    let call = r#"{"handler":"http","parameters":{"url":"http://127.0.0.1:1/"},"delay":60}"#;
    for body in [command, call] {
        let refused = strict.post(TASKS, body).await.expect(403).json();
        assert_eq!(refused["errors"][0]["path"], "handler");
        let batch = format!(r#"{{"tasks":[{{"handler":"noop"}},{body}]}}"#);
        let refused = strict.post("/api/v1/tasks/batch", &batch).await.expect(403).json();
        assert_eq!(refused["errors"][0]["path"], "tasks[1].handler");
        let id = open.post(TASKS, body).await.expect(201).id();
        let path = format!("{TASKS}/{id}");
        strict
            .patch(&path, r#"{"parameters":{"program":"false"}}"#)
            .await
            .expect(403);
        strict.patch(&path, r#"{"name":"harmless"}"#).await.expect(200);
    }
    strict.post(TASKS, r#"{"handler":"noop"}"#).await.expect(201);
}
