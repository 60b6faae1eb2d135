//! Circuit breakers over HTTP: settings, commands, what they do, and whatever is wrong with either.

use pensum_core::breaker::BREAKERS_MAX;
use serde_json::{Value, json};

use crate::support::{Answer, Server};

const BREAKERS: &str = "/api/v1/breakers";

impl Server {
    async fn put_breaker(&self, name: &str, body: &str) -> Answer {
        self.put_breaker_if(name, body, &[]).await
    }

    async fn put_breaker_if(&self, name: &str, body: &str, headers: &[(&str, &str)]) -> Answer {
        let path = format!("{BREAKERS}/{name}");
        self.ask("PUT", &path, Some(body.as_bytes()), headers).await
    }

    async fn breaker(&self, name: &str) -> Value {
        self.get(&format!("{BREAKERS}/{name}")).await.expect(200).json()
    }

    async fn command_breaker(&self, name: &str, command: &str) -> Answer {
        self.post(&format!("{BREAKERS}/{name}/{command}"), "").await
    }
}

#[tokio::test]
async fn a_breaker_is_put_read_changed_and_deleted() {
    let server = Server::new();
    let body = r#"{"handlers":["send_mail"],"agents":["worker-1"],"failures":3,"failure_rate":0.5,"calls_min":4,"window":"2m",
        "open_for":5,"probes":2}"#;
    let put = server.put_breaker("mail", body).await.expect(200);
    assert_eq!(put.header("etag"), "\"1\"");
    let got = server.get(&format!("{BREAKERS}/mail")).await.expect(200);
    assert_eq!((got.header("etag"), got.json()), ("\"1\"", put.json()));
    let mut shown = put.json();
    for time in ["created_at", "changed_at"] {
        assert!(shown[time].take().is_string(), "{shown}");
    }
    insta::assert_json_snapshot!(shown);
    // The settings that are shown are settings to put; the same ones once more change nothing.
    let again = server.put_breaker("mail", &shown["settings"].to_string()).await;
    assert_eq!(again.expect(200).json()["version"], 1);
    // What is not named gets its default.
    let replaced = server.put_breaker("mail", r#"{"handlers":["send_mail"]}"#).await;
    let replaced = replaced.expect(200).json();
    let settings = json!({ "handlers": ["send_mail"], "agents": [], "failures": 5, "calls_min": 10, "window": 60, "open_for": 30,
        "probes": 1 });
    assert_eq!((&replaced["settings"], &replaced["version"]), (&settings, &json!(2)));
    let deleted = server.ask("DELETE", &format!("{BREAKERS}/mail"), None, &[]).await;
    assert_eq!(deleted.expect(204).text, "");
    server.get(&format!("{BREAKERS}/mail")).await.expect(404);
    assert_eq!(server.get(BREAKERS).await.expect(200).json()["items"], json!([]));
}

#[tokio::test]
async fn a_name_may_say_what_the_breaker_covers() {
    let server = Server::new();
    for (name, settings) in [
        ("handler:mail%2Feu", json!([["mail/eu"], []])),
        ("agent:worker-1", json!([[], ["worker-1"]])),
    ] {
        let put = server.put_breaker(name, "{}").await.expect(200).json();
        let covered = json!([put["settings"]["handlers"], put["settings"]["agents"]]);
        assert_eq!(covered, settings, "{name}");
        assert_eq!(server.breaker(name).await, put);
    }
}

#[tokio::test]
async fn every_route_says_that_there_is_no_such_breaker() {
    let server = Server::new();
    server.put_breaker("other", r#"{"handlers":["x"]}"#).await.expect(200);
    for (method, path) in [
        ("GET", "/api/v1/breakers/nobody"),
        ("DELETE", "/api/v1/breakers/nobody"),
        ("POST", "/api/v1/breakers/nobody/reset"),
        ("POST", "/api/v1/breakers/nobody/trip"),
    ] {
        let answer = server.ask(method, path, None, &[]).await.expect(404);
        assert_eq!(answer.header("content-type"), "application/problem+json");
        assert!(
            answer.text.contains("there is no circuit breaker `nobody`"),
            "{method} {path}: {}",
            answer.text
        );
    }
    for (method, path) in [
        ("POST", "/api/v1/breakers"),
        ("PATCH", "/api/v1/breakers/other"),
        ("POST", "/api/v1/breakers/other"),
        ("GET", "/api/v1/breakers/other/reset"),
        ("DELETE", "/api/v1/breakers/other/trip"),
    ] {
        server.ask(method, path, None, &[]).await.expect(405);
    }
    server.post("/api/v1/breakers/other/close", "").await.expect(404);
}

#[tokio::test]
async fn every_wrong_setting_is_named_by_its_path() {
    let server = Server::new();
    let check = async |name: &str, body: &str, status: u16, part: &str| {
        let answer = server.put_breaker(name, body).await;
        assert!(
            answer.status == status && answer.text.contains(part),
            "{name} {body}: {}",
            answer.text
        );
        assert_eq!(answer.header("content-type"), "application/problem+json");
    };
    check("b", "", 400, "the body is empty").await;
    check("b", "{", 400, "is not JSON").await;
    check("b", "[]", 422, "expected an object").await;
    check("b", "{}", 422, r#""path":"handlers","message":"covers nothing"#).await;
    check("handler:", "{}", 422, "covers nothing").await;
    check("two%20words", r#"{"handlers":["x"]}"#, 422, r#""path":"id""#).await;
    check(&"x".repeat(201), r#"{"handlers":["x"]}"#, 422, "must be 1 to 200").await;
    let long = format!("handler:{}", "x".repeat(193));
    check(&long, "{}", 422, "must be 1 to 200").await;
    for (settings, path) in [
        (r#"{"handlers":["a b"]}"#, "handlers[0]"),
        (r#"{"handlers":["a",""]}"#, "handlers[1]"),
        (r#"{"handlers":"x"}"#, "handlers"),
        (r#"{"agents":[7]}"#, "agents[0]"),
        (r#"{"agents":["a\u0000"]}"#, "agents[0]"),
        (r#"{"handlers":["x"],"failures":0}"#, "failures"),
        (r#"{"handlers":["x"],"failures":1000001}"#, "failures"),
        (r#"{"handlers":["x"],"failures":-1}"#, "failures"),
        (r#"{"handlers":["x"],"failure_rate":0}"#, "failure_rate"),
        (r#"{"handlers":["x"],"failure_rate":1.01}"#, "failure_rate"),
        (r#"{"handlers":["x"],"calls_min":0}"#, "calls_min"),
        (r#"{"handlers":["x"],"window":0}"#, "window"),
        (r#"{"handlers":["x"],"window":"soon"}"#, "window"),
        (r#"{"handlers":["x"],"open_for":-1}"#, "open_for"),
        (r#"{"handlers":["x"],"open_for":"400y"}"#, "open_for"),
        (r#"{"handlers":["x"],"probes":0}"#, "probes"),
        (r#"{"handlers":["x"],"probes":1.5}"#, "probes"),
        (r#"{"handlers":["x"],"state":"open"}"#, "state"),
    ] {
        check("b", settings, 422, &format!(r#""path":"{path}""#)).await;
    }
    let many = json!({ "handlers": vec!["x"; 101] }).to_string();
    check("b", &many, 422, r#""path":"handlers""#).await;
    // All that is wrong is named at once.
    let several = server
        .put_breaker("a%20b", r#"{"failures":0,"probes":0}"#)
        .await
        .expect(422);
    let errors = several.json();
    let paths: Vec<&str> = errors["errors"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|e| e["path"].as_str())
        .collect();
    assert_eq!(paths, ["id", "handlers", "failures", "probes"]);
    let query = server.ask("PUT", "/api/v1/breakers/b?x=1", Some(br#"{"handlers":["x"]}"#), &[]);
    query.await.expect(400);
    assert_eq!(
        server.get(BREAKERS).await.expect(200).json()["items"],
        json!([]),
        "nothing was put"
    );
}

#[tokio::test]
async fn a_put_with_a_version_meets_only_that_one() {
    let server = Server::new();
    let put = async |body: &str, tag: &str| server.put_breaker_if("b", body, &[("if-match", tag)]).await;
    put(r#"{"handlers":["x"]}"#, "\"1\"").await.expect(404);
    put(r#"{"handlers":["x"]}"#, "\"0\"").await.expect(200);
    let refused = put(r#"{"handlers":["y"]}"#, "\"0\"").await.expect(412);
    assert!(refused.text.contains("is at version 1, not 0"), "{}", refused.text);
    put(r#"{"handlers":["y"]}"#, "\"1\"").await.expect(200);
    // It changes its version when it opens, too.
    let tripped = server.command_breaker("b", "trip").await.expect(200);
    assert_eq!(tripped.header("etag"), "\"3\"");
    put(r#"{"handlers":["z"]}"#, "\"2\"").await.expect(412);
    put(r#"{"handlers":["z"]}"#, "*").await.expect(200);
    assert_eq!(server.breaker("b").await["settings"]["handlers"], json!(["z"]));
    for tag in ["3", "\"x\"", "W/\"1\"", "\"\"", "\"-1\""] {
        let answer = put("{}", tag).await.expect(400);
        assert!(answer.text.contains("If-Match"), "{}", answer.text);
    }
}

#[tokio::test]
async fn commands_may_be_repeated_and_other_settings_keep_it_open() {
    let server = Server::new();
    server
        .put_breaker("b", r#"{"handlers":["x"],"open_for":"1h"}"#)
        .await
        .expect(200);
    for (command, state, version) in [
        ("reset", "closed", 1),
        ("trip", "open", 2),
        ("reset", "closed", 3),
        ("reset", "closed", 3),
        ("trip", "open", 4),
    ] {
        let shown = server.command_breaker("b", command).await.expect(200).json();
        assert_eq!(
            (&shown["state"], &shown["version"]),
            (&json!(state), &json!(version)),
            "{command}"
        );
        assert_eq!(server.breaker("b").await["state"], state);
    }
    let open = server.breaker("b").await;
    assert!(open["opened_at"].is_string() && open["tries_at"].is_string(), "{open}");
    assert!(
        open["because"]
            .as_str()
            .unwrap()
            .contains("run `pensum breaker reset b`"),
        "{open}"
    );
    let put = server.put_breaker("b", r#"{"handlers":["x"],"open_for":"2h"}"#).await;
    assert_eq!(put.expect(200).json()["state"], "open");
    for command in ["reset", "trip"] {
        let path = format!("{BREAKERS}/b/{command}");
        server.post(&path, r#"{"until":"noon"}"#).await.expect(422);
        server.post(&path, "[]").await.expect(422);
        server.post(&path, "x").await.expect(400);
        server.post(&path, "{}").await.expect(200);
    }
}

#[tokio::test]
async fn breakers_are_listed_by_id_page_by_page() {
    let server = Server::new();
    for name in ["c", "a", "b"] {
        server.put_breaker(name, r#"{"handlers":["x"]}"#).await.expect(200);
    }
    let ids = |page: &Value| -> Vec<String> {
        let items = page["items"].as_array().unwrap();
        items
            .iter()
            .map(|item| item["id"].as_str().unwrap().to_owned())
            .collect()
    };
    let page = server.get(&format!("{BREAKERS}?limit=2")).await.expect(200).json();
    assert_eq!(ids(&page), ["a", "b"]);
    let next = page["next_cursor"].as_str().unwrap();
    let rest = server
        .get(&format!("{BREAKERS}?cursor={next}"))
        .await
        .expect(200)
        .json();
    assert_eq!((ids(&rest), &rest["next_cursor"]), (vec!["c".to_owned()], &Value::Null));
    for query in ["colour=red", "limit=0", "limit=201", "cursor=x"] {
        server.get(&format!("{BREAKERS}?{query}")).await.expect(400);
    }
}

#[tokio::test]
async fn there_are_only_so_many() {
    let server = Server::new();
    for number in 0..BREAKERS_MAX {
        server
            .put_breaker(&format!("b-{number}"), r#"{"handlers":["x"]}"#)
            .await
            .expect(200);
    }
    let refused = server.put_breaker("more", r#"{"handlers":["x"]}"#).await.expect(409);
    assert!(refused.text.contains("1000"), "{}", refused.text);
    server.put_breaker("b-0", r#"{"handlers":["y"]}"#).await.expect(200);
    server
        .ask("DELETE", &format!("{BREAKERS}/b-1"), None, &[])
        .await
        .expect(204);
    server.put_breaker("more", r#"{"handlers":["x"]}"#).await.expect(200);
}

#[tokio::test]
async fn a_failure_opens_it_and_a_task_explains_that_it_waits() {
    let server = Server::new();
    server.start();
    server
        .put_breaker("handler:fail", r#"{"failures":1,"open_for":"1h"}"#)
        .await
        .expect(200);
    let task = r#"{"handler":"fail","max_retries":0}"#;
    let failed = server.post("/api/v1/tasks", task).await.expect(201).id();
    assert_eq!(server.ended(&failed).await["status"], "failed");
    let open = server.breaker("handler:fail").await;
    assert_eq!(open["state"], "open");
    let waiting = server.post("/api/v1/tasks", task).await.expect(201).id();
    let told = server
        .get(&format!("/api/v1/tasks/{waiting}/explain"))
        .await
        .expect(200)
        .json();
    let gate = &told["gates"][0];
    assert_eq!(
        (&gate["gate"], &gate["since"], &gate["opens_at"]),
        (&json!("breaker"), &open["opened_at"], &open["tries_at"]),
        "{told}"
    );
    assert_eq!(told["status"], "ready");
    server.command_breaker("handler:fail", "reset").await.expect(200);
    assert_eq!(server.ended(&waiting).await["status"], "failed");
}
