//! Agents over HTTP: the whole way of a task, and whatever is wrong with any step of it.

use serde_json::{Value, json};

use crate::support::{Answer, NOBODY, Server};

const AGENTS: &str = "/api/v1/agents";

impl Server {
    async fn register(&self, id: &str) -> Answer {
        self.post(AGENTS, &json!({ "id": id, "capabilities": ["x"] }).to_string())
            .await
    }

    async fn of_agent(&self, id: &str, what: &str, body: &Value) -> Answer {
        self.post(&format!("{AGENTS}/{id}/{what}"), &body.to_string()).await
    }

    async fn polled(&self, id: &str, body: &Value) -> Value {
        self.of_agent(id, "poll", body).await.expect(200).json()
    }

    /// Creates a task for agents, and has one take it.
    async fn taken(&self, agent: &str) -> Value {
        self.post("/api/v1/tasks", r#"{"handler":"x"}"#).await.expect(201);
        let mut polled = self.polled(agent, &json!({ "session": "1" })).await;
        polled["tasks"][0].take()
    }

    /// The task of something that was given, and its executions: what a wrong request must not change.
    async fn seen(&self, given: &Value) -> (Value, Value) {
        let path = format!("/api/v1/tasks/{}", given["task"]["id"].as_str().unwrap());
        (
            self.get(&path).await.expect(200).json(),
            self.get(&format!("{path}/executions")).await.json(),
        )
    }
}

fn result(given: &Value, outcome: &Value) -> Value {
    json!({ "execution_id": given["execution_id"], "lease_token": given["lease_token"], "outcome": outcome })
}

#[tokio::test]
async fn an_agent_registers_is_read_changed_and_removed() {
    let server = Server::new();
    let body = r#"{"id":"gpu-1","name":"The first","agent_type":"trainer","agent_version":"1.2","capabilities":["x","y"],
        "max_concurrent_tasks":2,"resources":{"cpu_cores":4},"labels":{"zone":"b"},"lease":"10s"}"#;
    let mut shown = server.post(AGENTS, body).await.expect(201).json();
    assert_eq!(server.get(&format!("{AGENTS}/gpu-1")).await.expect(200).json(), shown);
    for time in ["created_at", "changed_at", "seen_at"] {
        assert!(shown[time].take().is_string(), "{shown}");
    }
    insta::assert_json_snapshot!(shown);
    // The same once more changes nothing; another lease does.
    assert_eq!(server.post(AGENTS, body).await.expect(200).json()["version"], 1);
    let changed = server
        .post(AGENTS, &body.replace("10s", "20s"))
        .await
        .expect(200)
        .json();
    assert_eq!((&changed["version"], &changed["lease"]), (&json!(2), &json!(20)));
    server.register("b").await.expect(201);
    let ids = async |query: &str| -> Vec<String> {
        let page = server.get(&format!("{AGENTS}?{query}")).await.expect(200).json();
        let items = page["items"].as_array().unwrap();
        items
            .iter()
            .map(|agent| agent["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids("capability=x").await, ["b", "gpu-1"]);
    assert_eq!(ids("capability=y&status=idle").await, ["gpu-1"]);
    assert_eq!(ids("limit=1").await, ["b"]);
    assert!(ids("status=offline").await.is_empty());
    let path = format!("{AGENTS}/gpu-1");
    for (command, draining) in [("drain", true), ("drain", true), ("undrain", false)] {
        let view = server.post(&format!("{path}/{command}"), "").await.expect(200).json();
        assert_eq!(view["draining"], draining);
    }
    let status = server.get("/api/v1/system/status").await.json();
    assert_eq!(
        (&status["registered_agents"], &status["agent_status"]["gpu-1"]["status"]),
        (&json!(2), &json!("idle"))
    );
    server.ask("DELETE", &path, None, &[]).await.expect(204);
    server.ask("DELETE", &path, None, &[]).await.expect(404);
    server.get(&path).await.expect(404);
}

#[tokio::test]
async fn a_task_goes_to_an_agent_and_comes_back() {
    let server = Server::new();
    server.register("a").await.expect(201);
    let given = server.taken("a").await;
    let id = given["task"]["id"].as_str().unwrap();
    assert_eq!(
        (&given["task"]["status"], &given["execution_id"]),
        (&json!("running"), &json!(format!("{id}.1")))
    );
    let again = server.polled("a", &json!({ "session": "1" })).await;
    assert_eq!(again["tasks"][0]["lease_token"], given["lease_token"]);
    let execution = json!({ "execution_id": given["execution_id"], "lease_token": given["lease_token"],
        "progress": { "percent": 40, "message": "half" }, "logs": [{ "message": "a line" }], "checkpoint": null });
    let heard = server
        .of_agent("a", "heartbeat", &json!({ "session": "1", "executions": [execution] }))
        .await
        .expect(200)
        .json();
    assert!(heard["lease_expires_at"].is_string());
    assert_eq!(
        (&heard["cancel"], &heard["lost"], &heard["drain"]),
        (&json!([]), &json!([]), &json!(false))
    );
    let (task, _) = server.seen(&given).await;
    assert_eq!(task["progress"]["message"], "half");
    let logs = server.get(&format!("/api/v1/tasks/{id}/logs")).await.json();
    assert_eq!(logs["items"][0]["message"], "a line");
    let results = json!({ "results": [result(&given, &json!({ "done": [1] }))] });
    for status in ["accepted", "repeat"] {
        let answer = server.post("/api/v1/executions/complete", &results.to_string()).await;
        let answer = answer.expect(200).json();
        assert_eq!(
            answer,
            json!({ "results": [{ "execution_id": given["execution_id"], "status": status }] })
        );
    }
    let (task, executions) = server.seen(&given).await;
    assert_eq!((&task["status"], &task["result"]), (&json!("completed"), &json!([1])));
    assert_eq!(executions["items"][0]["executor_id"], "a");
}

#[tokio::test]
async fn a_wrong_registration_is_refused_with_the_path_of_what_is_wrong() {
    let server = Server::new();
    for (body, status, problem) in [
        ("", 400, ""),
        ("{", 400, ""),
        ("[]", 422, ""),
        ("{}", 422, "id"),
        (r#"{"id":"a"}"#, 422, "capabilities"),
        (r#"{"id":"a","capabilities":[]}"#, 422, "capabilities"),
        (r#"{"id":"a","capabilities":"x"}"#, 422, "capabilities"),
        (r#"{"id":"a","capabilities":["x",7]}"#, 422, "capabilities[1]"),
        (r#"{"id":"a","capabilities":["x",""]}"#, 422, "capabilities[1]"),
        (r#"{"id":"a","capabilities":["pensum.bulk"]}"#, 422, "capabilities[0]"),
        (r#"{"id":"a","capabilities":[{"name":"x"}]}"#, 422, "capabilities[0]"),
        (r#"{"id":"a b","capabilities":["x"]}"#, 422, "id"),
        (r#"{"id":7,"capabilities":["x"]}"#, 422, "id"),
        (r#"{"id":"a","capabilities":["x"],"colour":1}"#, 422, "colour"),
        (r#"{"id":"a","capabilities":["x"],"status":"idle"}"#, 422, "status"),
        (r#"{"id":"a","capabilities":["x"],"name":""}"#, 422, "name"),
        (
            r#"{"id":"a","capabilities":["x"],"max_concurrent_tasks":0}"#,
            422,
            "max_concurrent_tasks",
        ),
        (
            r#"{"id":"a","capabilities":["x"],"max_concurrent_tasks":10001}"#,
            422,
            "max_concurrent_tasks",
        ),
        (
            r#"{"id":"a","capabilities":["x"],"resources":{"cpus":1}}"#,
            422,
            "resources.cpus",
        ),
        (
            r#"{"id":"a","capabilities":["x"],"resources":{"memory_gb":-1}}"#,
            422,
            "resources.memory_gb",
        ),
        (r#"{"id":"a","capabilities":["x"],"labels":[]}"#, 422, "labels"),
        (r#"{"id":"a","capabilities":["x"],"labels":{"k":1}}"#, 422, "labels.k"),
        (r#"{"id":"a","capabilities":["x"],"lease":0}"#, 422, "lease"),
        (r#"{"id":"a","capabilities":["x"],"lease":"1d"}"#, 422, "lease"),
    ] {
        let answer = server.post(AGENTS, body).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
        let wanted = format!(r#""path":"{problem}""#);
        assert!(
            problem.is_empty() || answer.text.contains(&wanted),
            "{body}: {}",
            answer.text
        );
    }
    assert_eq!(
        server.get(AGENTS).await.json()["items"],
        json!([]),
        "nobody was registered"
    );
    for query in ["status=asleep", "colour=red", "status=idle&status=busy", "capability="] {
        server.get(&format!("{AGENTS}?{query}")).await.expect(400);
    }
}

#[tokio::test]
async fn wrong_values_of_polls_and_heartbeats_are_named_and_change_nothing() {
    let server = Server::new();
    server.register("a").await.expect(201);
    let given = server.taken("a").await;
    let before = server.seen(&given).await;
    let (execution, token) = (given["execution_id"].clone(), given["lease_token"].clone());
    let good = result(&given, &json!({ "done": 1 }));
    let with = |field: &str, value: Value| {
        let mut item = good.clone();
        item[field] = value;
        item
    };
    let poll = |field: &str, value: Value| {
        let mut body = json!({ "session": "1", "results": [good] });
        body[field] = value;
        body
    };
    let beat = |field: &str, value: Value| {
        let mut item = json!({ "execution_id": execution, "lease_token": token });
        item[field] = value;
        json!({ "session": "1", "executions": [item] })
    };
    for (what, body, problem) in [
        ("poll", json!({}), "session"),
        ("poll", poll("session", json!("")), "session"),
        ("poll", poll("session", json!("a\u{7}")), "session"),
        ("poll", poll("session", json!("s".repeat(201))), "session"),
        ("poll", poll("session", json!(7)), "session"),
        ("poll", poll("colour", json!(7)), "colour"),
        ("poll", poll("max", json!(0)), "max"),
        ("poll", poll("max", json!(1_001)), "max"),
        ("poll", poll("max", json!(-1)), "max"),
        ("poll", poll("wait_ms", json!(30_001)), "wait_ms"),
        ("poll", poll("wait_ms", json!("1s")), "wait_ms"),
        ("poll", poll("have", json!(["nonsense"])), "have[0]"),
        ("poll", poll("have", json!(execution)), "have"),
        ("poll", poll("results", json!([{}])), "results[0].execution_id"),
        (
            "poll",
            poll("results", json!([with("colour", json!(1))])),
            "results[0].colour",
        ),
        (
            "poll",
            poll("results", json!([with("logs", json!([{}]))])),
            "results[0].logs[0].message",
        ),
        (
            "poll",
            poll(
                "results",
                json!([with("logs", json!([{ "message": "m", "at": "9999-01-01T00:00:00Z" }]))]),
            ),
            "results[0].logs[0].at",
        ),
        (
            "poll",
            poll("results", json!([with("usage", json!({ "memory_mb": -1 }))])),
            "results[0].usage.memory_mb",
        ),
        (
            "poll",
            poll("results", json!([with("usage", json!({ "gpu": 1 }))])),
            "results[0].usage.gpu",
        ),
        (
            "poll",
            poll("results", json!([with("progress", json!({ "percent": "all" }))])),
            "results[0].progress.percent",
        ),
        ("poll", poll("results", json!(vec![good.clone(); 1_001])), "results"),
        ("heartbeat", json!({ "session": "" }), "session"),
        ("heartbeat", json!({ "colour": "" }), "colour"),
        (
            "heartbeat",
            beat("execution_id", json!("x")),
            "executions[0].execution_id",
        ),
        (
            "heartbeat",
            beat("lease_token", json!("x")),
            "executions[0].lease_token",
        ),
        ("heartbeat", beat("checkpoint", json!("\0")), "executions[0].checkpoint"),
        (
            "heartbeat",
            beat("checkpoint", json!("x".repeat(1 << 20))),
            "executions[0].checkpoint",
        ),
        ("heartbeat", beat("result", json!(1)), "executions[0].result"),
        (
            "heartbeat",
            beat("usage", json!({ "cpu_seconds": -1 })),
            "executions[0].usage.cpu_seconds",
        ),
        ("leave", json!({}), "session"),
        ("leave", json!({ "session": "" }), "session"),
    ] {
        let answer = server.of_agent("a", what, &body).await;
        let shown = body.to_string().chars().take(200).collect::<String>();
        assert_eq!(answer.status, 422, "{what} {shown}: {}", answer.text);
        let wanted = format!(r#""path":"{problem}""#);
        assert!(answer.text.contains(&wanted), "{what} {shown}: {}", answer.text);
        assert_eq!(server.seen(&given).await, before, "{what} {shown}");
    }
    let twice = json!({ "executions": [{ "execution_id": execution, "lease_token": token, "checkpoint": 1 },
        { "execution_id": execution, "lease_token": token }] });
    let answer = server.of_agent("a", "heartbeat", &twice).await.expect(422);
    assert!(answer.text.contains("executions[1].execution_id"), "{}", answer.text);
    assert_eq!(server.seen(&given).await, before);
    let results = json!({ "results": [good], "session": "1" });
    let answer = server.post("/api/v1/executions/complete", &results.to_string()).await;
    assert!(answer.expect(422).text.contains(r#""path":"session""#));
    let results = json!({ "results": [with("result", json!(1))] });
    let answer = server.post("/api/v1/executions/complete", &results.to_string()).await;
    assert!(
        answer
            .expect(422)
            .text
            .contains("unknown field `result`, expected one of `execution_id`, `lease_token`, `outcome`")
    );
    assert_eq!(server.seen(&given).await, before);
}

#[tokio::test]
async fn results_that_cannot_be_taken_say_why_and_change_nothing() {
    let server = Server::new();
    server.register("a").await.expect(201);
    server.register("b").await.expect(201);
    let given = server.taken("a").await;
    server.polled("b", &json!({ "session": "1" })).await;
    let before = server.seen(&given).await;
    let token = given["lease_token"].as_str().unwrap();
    let with = |field: &str, value: Value| {
        let mut item = result(&given, &json!({ "done": 1 }));
        item[field] = value;
        item
    };
    let complete = "/api/v1/executions/complete";
    for (path, item, status, part) in [
        (
            complete,
            with("execution_id", json!("x")),
            "invalid",
            "is not an execution id",
        ),
        (
            complete,
            with("lease_token", json!("x")),
            "invalid",
            "is no lease token",
        ),
        (
            complete,
            with("lease_token", json!(format!("{}{}", "0".repeat(32), &token[32..]))),
            "lease_lost",
            "is lost",
        ),
        (
            complete,
            with("execution_id", json!(format!("{NOBODY}.1"))),
            "lease_lost",
            "there is no task",
        ),
        (
            complete,
            with("outcome", json!({ "explode": {} })),
            "invalid",
            "is no outcome",
        ),
        (
            complete,
            with("outcome", json!({ "done": "x".repeat(1 << 20) })),
            "invalid",
            "the most is",
        ),
        (
            complete,
            with("outcome", json!({ "retry": {} })),
            "invalid",
            "retry.message: is required",
        ),
        (
            "b",
            with("outcome", json!({ "done": 1 })),
            "invalid",
            "was given to agent `a`",
        ),
    ] {
        let answer = match path {
            "b" => server.polled("b", &json!({ "session": "1", "results": [item] })).await["accepted"].take(),
            path => {
                let body = json!({ "results": [item] });
                server.post(path, &body.to_string()).await.expect(200).json()["results"].take()
            }
        };
        assert_eq!(
            (&answer[0]["status"], &answer[0]["execution_id"]),
            (&json!(status), &item["execution_id"])
        );
        assert!(answer[0]["message"].as_str().unwrap().contains(part), "{answer}");
        assert_eq!(server.seen(&given).await, before, "{part}");
    }
}

#[tokio::test]
async fn unknown_agents_and_fenced_sessions_are_refused_and_change_nothing() {
    let server = Server::new();
    let session = json!({ "session": "1" });
    for what in ["poll", "heartbeat", "leave", "drain", "undrain"] {
        let body = if what.contains("drain") {
            json!({})
        } else {
            session.clone()
        };
        let answer = server.of_agent("nobody", what, &body).await.expect(404);
        assert!(
            answer.text.contains("there is no agent `nobody`"),
            "{what}: {}",
            answer.text
        );
    }
    server.get(&format!("{AGENTS}/nobody")).await.expect(404);
    assert_eq!(server.get(AGENTS).await.json()["items"], json!([]));

    server.register("a").await.expect(201);
    let given = server.taken("a").await;
    let newer = server.polled("a", &json!({ "session": "2" })).await;
    assert_eq!(newer["tasks"][0]["task"]["id"], given["task"]["id"]);
    let before = server.seen(&given).await;
    let execution =
        json!({ "execution_id": given["execution_id"], "lease_token": given["lease_token"], "checkpoint": 1 });
    for (what, body) in [
        (
            "poll",
            json!({ "session": "1", "results": [result(&given, &json!({ "done": 1 }))] }),
        ),
        ("heartbeat", json!({ "session": "1", "executions": [execution] })),
        ("leave", session),
    ] {
        let answer = server.of_agent("a", what, &body).await.expect(409);
        assert_eq!(answer.json()["type"], "urn:pensum:problem:session_fenced", "{what}");
        assert_eq!(server.seen(&given).await, before, "{what}");
    }
    server
        .of_agent("a", "leave", &json!({ "session": "2" }))
        .await
        .expect(204);
    let (task, _) = server.seen(&given).await;
    assert_eq!(task["status"], "ready");
}

#[tokio::test]
async fn bodies_have_their_bounds() {
    let server = Server::new();
    server.register("a").await.expect(201);
    let large = " ".repeat((1 << 20) + 1);
    for path in ["", "/a/drain", "/a/undrain", "/a/leave"] {
        server.post(&format!("{AGENTS}{path}"), &large).await.expect(413);
    }
    let huge = " ".repeat((16 << 20) + 1);
    for path in ["agents/a/poll", "agents/a/heartbeat", "executions/complete"] {
        server.post(&format!("/api/v1/{path}"), &huge).await.expect(413);
    }
    let fits = format!("{}{}", " ".repeat(15 << 20), json!({ "session": "1" }));
    server.post(&format!("{AGENTS}/a/poll"), &fits).await.expect(200);
}
