//! Queues over HTTP: settings, commands, and whatever is wrong with either.

use serde_json::{Value, json};

use crate::support::{Answer, Server};

impl Server {
    async fn put(&self, queue: &str, body: &str) -> Answer {
        self.put_if(queue, body, &[]).await
    }

    async fn put_if(&self, queue: &str, body: &str, headers: &[(&str, &str)]) -> Answer {
        let path = format!("/api/v1/queues/{queue}");
        self.ask("PUT", &path, Some(body.as_bytes()), headers).await
    }

    async fn queue(&self, queue: &str) -> Value {
        self.get(&format!("/api/v1/queues/{queue}")).await.expect(200).json()
    }

    async fn command(&self, queue: &str, command: &str) -> Answer {
        self.post(&format!("/api/v1/queues/{queue}/{command}"), "").await
    }

    async fn delete(&self, queue: &str) -> Answer {
        self.ask("DELETE", &format!("/api/v1/queues/{queue}"), None, &[]).await
    }

    async fn task(&self, body: &str) -> Value {
        self.post("/api/v1/tasks", body).await.expect(201).json()
    }
}

#[tokio::test]
async fn a_queue_is_put_read_changed_and_deleted() {
    let server = Server::new();
    let body = r#"{"name":"Mail","max_concurrent":3,"max_concurrent_per_key":2,"rate_limit":"50/s","priority":"high","timeout":"1m","max_retries":2,
        "retry":{"strategy":"fixed","delay":4},"ageing":"5m","fair":true}"#;
    let put = server.put("mail", body).await.expect(200);
    assert_eq!(put.header("etag"), "\"1\"");
    let mut shown = put.json();
    assert_eq!(server.queue("mail").await, shown);
    for time in ["created_at", "changed_at"] {
        assert!(shown[time].take().is_string(), "{shown}");
    }
    insta::assert_json_snapshot!(shown);
    // The settings that are shown are settings to put; the same ones once more change nothing.
    let again = server
        .put("mail", &shown["settings"].to_string())
        .await
        .expect(200)
        .json();
    assert_eq!(again["version"], 1);
    // What is not named gets its default.
    let replaced = server.put("mail", "{}").await.expect(200).json();
    assert_eq!(replaced["settings"], json!({ "auto_start": true, "persistent": true }));
    assert_eq!((&replaced["version"], &replaced["name"]), (&json!(2), &json!("mail")));
    server.delete("mail").await.expect(204);
    server.get("/api/v1/queues/mail").await.expect(404);
    server.delete("mail").await.expect(404);
}

#[tokio::test]
async fn every_wrong_setting_is_named() {
    let server = Server::new();
    let check = async |queue: &str, body: &str, status: u16, part: &str| {
        let answer = server.put(queue, body).await;
        assert!(
            answer.status == status && answer.text.contains(part),
            "{queue} {body}: {}",
            answer.text
        );
        assert_eq!(answer.header("content-type"), "application/problem+json");
    };
    check("mail", "", 400, "the body is empty").await;
    check("mail", "{", 400, "is not JSON").await;
    check("mail", "[]", 422, "expected an object").await;
    check("mail", r#"{"max_concurrent":0}"#, 422, r#""path":"max_concurrent""#).await;
    let per_key = r#""path":"max_concurrent_per_key""#;
    check("mail", r#"{"max_concurrent_per_key":0}"#, 422, per_key).await;
    check("mail", r#"{"max_concurrent_per_key":10001}"#, 422, per_key).await;
    check("mail", r#"{"persistent":0}"#, 422, r#""path":"persistent""#).await;
    check("mail", r#"{"ageing":0.5}"#, 422, "ageing: must be at least 1 s").await;
    check("mail", r#"{"fair":1}"#, 422, "fair").await;
    check("mail", r#"{"rate_limit":"fast"}"#, 422, "is not a rate").await;
    check(
        "mail",
        r#"{"rate_limit":{"starts":1,"per":"400d"}}"#,
        422,
        "rate_limit.per",
    )
    .await;
    check("mail", r#"{"status":"open"}"#, 422, "set by the engine").await;
    check("a%20b", "{}", 422, r#""path":"id""#).await;
    check(&"x".repeat(201), "{}", 422, "must be 1 to 200").await;
    let answer = server.put_if("mail", "{}", &[("if-match", "3")]).await.expect(400);
    assert!(answer.text.contains("If-Match"), "{}", answer.text);
    server.put("stats", "{}").await.expect(405);
    server
        .ask("PUT", "/api/v1/queues/mail?x=1", Some(b"{}"), &[])
        .await
        .expect(400);
    let listed = server.get("/api/v1/queues").await.expect(200).json();
    assert_eq!(listed["items"], json!([]), "nothing was put");
}

#[tokio::test]
async fn a_put_with_a_version_meets_only_that_one() {
    let server = Server::new();
    server.put_if("q", "{}", &[("if-match", "\"1\"")]).await.expect(412);
    server.put_if("q", "{}", &[("if-match", "\"0\"")]).await.expect(200);
    let refused = server
        .put_if("q", r#"{"max_concurrent":2}"#, &[("if-match", "\"0\"")])
        .await
        .expect(412);
    assert!(refused.text.contains("is at version 1, not 0"), "{}", refused.text);
    server
        .put_if("q", r#"{"max_concurrent":2}"#, &[("if-match", "\"1\"")])
        .await
        .expect(200);
    server
        .put_if("q", r#"{"max_concurrent":3}"#, &[("if-match", "*")])
        .await
        .expect(200);
    assert_eq!(server.queue("q").await["settings"]["max_concurrent"], 3);
}

#[tokio::test]
async fn commands_may_be_repeated_and_say_why_they_do_not_fit() {
    let server = Server::new();
    server.put("q", "{}").await.expect(200);
    for (command, status) in [
        ("pause", "paused"),
        ("pause", "paused"),
        ("resume", "open"),
        ("resume", "open"),
    ] {
        assert_eq!(server.command("q", command).await.expect(200).json()["status"], status);
    }
    // One that starts by itself needs no asking.
    assert_eq!(
        server.command("q", "process").await.expect(200).json()["status"],
        "open"
    );
    server.command("q", "pause").await.expect(200);
    let refused = server.command("q", "process").await.expect(409);
    assert!(
        refused.text.contains("it is paused; resume it first"),
        "{}",
        refused.text
    );
    let unknown = server.command("p", "pause").await.expect(404);
    assert!(
        unknown.text.contains("there is no queue `p`; there are q"),
        "{}",
        unknown.text
    );
    server
        .post("/api/v1/queues/q/pause", r#"{"until":"noon"}"#)
        .await
        .expect(422);
    server.get("/api/v1/queues/q/pause").await.expect(405);
    assert_eq!(
        server.get("/api/v1/queues").await.json()["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn queues_that_only_hold_tasks_are_listed_too() {
    let server = Server::new();
    server.put("b", "{}").await.expect(200);
    server.task(r#"{"handler":"noop","queue":"a"}"#).await;
    server.task(r#"{"handler":"noop","queue":"c"}"#).await;
    let page = server.get("/api/v1/queues?limit=2").await.expect(200).json();
    let ids = |page: &Value| -> Vec<String> {
        let items = page["items"].as_array().unwrap();
        items
            .iter()
            .map(|queue| queue["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids(&page), ["a", "b"]);
    let next = page["next_cursor"].as_str().unwrap();
    let rest = server
        .get(&format!("/api/v1/queues?cursor={next}"))
        .await
        .expect(200)
        .json();
    assert_eq!((ids(&rest), &rest["next_cursor"]), (vec!["c".to_owned()], &Value::Null));
    let held = server.queue("a").await;
    assert_eq!(
        (&held["version"], &held["put_by"], &held["tasks"]["ready"]),
        (&json!(0), &Value::Null, &json!(1))
    );
    assert_eq!(
        server.delete("a").await.expect(404).json()["detail"],
        "there is no queue `a` with settings of its own"
    );
    server.put("a", "{}").await.expect(200);
    let refused = server.delete("a").await.expect(409);
    assert!(refused.text.contains("1 unfinished task"), "{}", refused.text);
    server.get("/api/v1/queues?colour=red").await.expect(400);
}

#[tokio::test]
async fn tasks_are_answered_with_what_their_queue_gave_them() {
    let server = Server::new();
    server
        .put("noop", r#"{"priority":"urgent","timeout":9,"max_retries":0}"#)
        .await
        .expect(200);
    let task = server.task(r#"{"handler":"noop"}"#).await;
    let fields = ["queue", "priority", "timeout", "max_retries"];
    assert_eq!(
        fields.map(|field| task[field].clone()),
        [json!("noop"), json!("urgent"), json!(9), json!(0)]
    );
    let read = server
        .get(&format!("/api/v1/tasks/{}", task["id"].as_str().unwrap()))
        .await
        .json();
    assert_eq!(
        fields.map(|field| read[field].clone()),
        fields.map(|field| task[field].clone())
    );
    let batch = r#"{"tasks":[{"handler":"noop"},{"handler":"noop","queue":"default","priority":"normal"}]}"#;
    let ids = server.post("/api/v1/tasks/batch", batch).await.expect(201).json();
    for (id, queue) in [(&ids["ids"][0], "noop"), (&ids["ids"][1], "default")] {
        let task = server
            .get(&format!("/api/v1/tasks/{}", id.as_str().unwrap()))
            .await
            .json();
        assert_eq!(task["queue"], queue);
    }
}

#[tokio::test]
async fn the_status_says_whether_tasks_start() {
    let server = Server::new();
    server.start();
    let closed = async |queue: &str, status: &str, part: &str| {
        let queue = server.queue(queue).await;
        assert_eq!(queue["status"], status, "{queue}");
        assert!(queue["closed"].as_str().unwrap().contains(part), "{queue}");
        queue
    };
    server.put("gate", r#"{"max_concurrent":1}"#).await.expect(200);
    assert_eq!(server.queue("gate").await["closed"], Value::Null);
    let id = server.gated().await;
    assert_eq!(closed("gate", "full", "1 of 1 tasks run").await["running"], 1);
    let waiting = server.task(r#"{"handler":"gate"}"#).await;
    let told = server
        .get(&format!("/api/v1/tasks/{}/explain", waiting["id"].as_str().unwrap()))
        .await
        .json();
    assert_eq!(told["gates"][0]["gate"], "queue", "{told}");
    server.command("gate", "pause").await.expect(200);
    assert!(closed("gate", "paused", "is paused since").await["paused_at"].is_string());
    server.open();
    server.ended(&id).await;

    server.put("hand", r#"{"auto_start":false}"#).await.expect(200);
    closed("hand", "manual", "run `pensum queue process hand`").await;
    server.put("rated", r#"{"rate_limit":"1/h"}"#).await.expect(200);
    let task = server.task(r#"{"handler":"noop","queue":"rated"}"#).await;
    server.ended(task["id"].as_str().unwrap()).await;
    let queue = closed("rated", "rate_limited", "it starts the next one at").await;
    assert!(queue["opens_at"].is_string(), "{queue}");
}

#[tokio::test]
async fn a_submission_that_meets_a_limit_is_429_with_the_limit_and_when_to_try_again() {
    let server = Server::new();
    server
        .put("short", r#"{"max_depth":2,"max_age":"1h"}"#)
        .await
        .expect(200);
    let batch = r#"{"tasks":[{"handler":"noop"},{"handler":"noop","queue":"short"},{"handler":"noop","queue":"short"},
        {"handler":"noop","queue":"short"}]}"#;
    let refused = server.post("/api/v1/tasks/batch", batch).await.expect(429);
    assert_eq!(
        (refused.header("content-type"), refused.header("retry-after")),
        ("application/problem+json", "")
    );
    let message = "the queue `short` is at its max_depth of 2: 2 tasks wait in it; submit it again later";
    let problem = json!({
        "type": "urn:pensum:problem:queue-full",
        "title": "The queue takes no more at this moment",
        "status": 429,
        "detail": format!("tasks[3].queue: {message}"),
        "errors": [{ "path": "tasks[3].queue", "message": message }],
    });
    assert_eq!(refused.json(), problem);
    let stats = server.get("/api/v1/queues/stats").await.expect(200).json();
    assert_eq!(stats["ready_tasks"], 0, "nothing of the batch is written");
    server
        .put("calls", r#"{"rate_limit":{"starts":1,"per":"1h","burst":3}}"#)
        .await
        .expect(200);
    let made = server.task(r#"{"handler":"noop","queue":"calls","units":2}"#).await;
    assert_eq!(made["units"], 2);
    let body = r#"{"handler":"noop","queue":"calls","units":2,"on_limit":"reject"}"#;
    let refused = server.post("/api/v1/tasks", body).await.expect(429);
    assert_eq!(refused.header("retry-after"), "3600");
    let problem = refused.json();
    assert_eq!(
        (&problem["retry_after"], &problem["errors"][0]["path"]),
        (&json!(3_600), &json!("queue"))
    );
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("those ready before take 2 and this one takes 2")
    );
}
