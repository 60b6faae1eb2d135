//! Agents of a node's configuration: programs and workers that it starts and watches, and endpoints that it calls.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{SOON, Server, alive, assert_says, eventually, program, text, throughout, with};

/// A node with these agents in its configuration. `{dir}` in their settings stands for a directory of the test.
fn node_with(agents: &Value) -> Server {
    let dir = TempDir::with_prefix("pensum-it-").unwrap();
    let (config, db) = (dir.path().join("agents.json"), dir.path().join("x.db"));
    let text = json!({ "agents": agents }).to_string();
    std::fs::write(&config, text.replace("{dir}", &dir.path().display().to_string())).unwrap();
    Server::start_on(dir, db, &["--config", &config.display().to_string(), "--grace", "5"])
}

fn work(more: Value) -> Value {
    let retry = json!({ "strategy": "fixed", "delay": 0.1, "jitter": false });
    with(json!({ "handler": "work", "retry": retry }), more)
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn a_node_runs_the_program_of_an_agent_for_each_task_and_takes_it_along() {
    let script = r#"echo $$ > "$1/pid"; [ "$PENSUM_ATTEMPT" = 1 ] && [ -e "$1/slow" ] && sleep 60; echo "\"$WORD\"""#;
    let mut node = node_with(&json!({ "speaker": {
        "capabilities": ["work"], "program": ["sh", "-c", script, "sh", "{dir}"], "env": { "WORD": "hello" }, "grace": 1
    }}));
    let task = node.wait_both(&node.create(&work(json!({}))), "completed");
    assert_eq!(task["result"], "hello");
    let agent = node.http.get("/api/v1/agents/speaker").expect(200);
    assert_eq!(
        (&agent["agent_type"], &agent["status"]),
        (&json!("program"), &json!("idle"))
    );
    std::fs::remove_file(node.file("pid")).unwrap();
    std::fs::write(node.file("slow"), "").unwrap();
    let id = node.create(&work(json!({})));
    let pid = node.pid_in(&node.file("pid"));
    node.stop();
    assert!(!alive(pid), "the program goes with the node");
    std::fs::remove_file(node.file("slow")).unwrap();
    node.restart();
    let task = node.wait(&id, "completed");
    assert_eq!(
        (&task["attempt"], &task["result"]),
        (&json!(1), &json!("hello")),
        "an orderly end costs no attempt"
    );
    node.finish();
}

/// Notes its process id, and polls for tasks whose result is 7.
const WORKER: &str =
    r#"echo $$ > "$1/pid"; exec "$2" agent run --id "$PENSUM_AGENT_ID" -C work --lease 2s -- sh -c 'echo 7'"#;

/// The program that is tested.
fn pensum() -> String {
    program().get_program().to_str().unwrap().to_owned()
}

/// The process id of a worker, once it is another one.
fn another(node: &Server, last: i32) -> i32 {
    eventually("another process", SOON, || {
        let pid = node.pid_in(&node.file("pid"));
        (pid != last).then_some(pid)
    })
}

#[test]
fn a_worker_that_dies_is_started_again_and_ends_with_the_node() {
    let mut node = node_with(&json!({ "worker": {
        "capabilities": ["work"], "worker": ["sh", "-c", WORKER, "sh", "{dir}", pensum()]
    }}));
    let mut last = 0;
    for _ in 0..3 {
        let pid = another(&node, last);
        let task = node.wait(&node.create(&work(json!({}))), "completed");
        assert_eq!(task["result"], 7);
        kill(pid);
        last = pid;
    }
    let pid = another(&node, last);
    assert_says(&node.log(), "SIGKILL");
    node.stop();
    assert!(!alive(pid), "the worker ends with the node");
    node.finish();
}

#[test]
fn a_worker_that_hangs_is_started_again() {
    let node = node_with(&json!({ "worker": {
        "capabilities": ["work"], "grace": 0.5, "worker": ["sh", "-c", WORKER, "sh", "{dir}", pensum()]
    }}));
    let task = node.wait(&node.create(&work(json!({}))), "completed");
    assert_eq!(task["result"], 7);
    let pid = node.pid_in(&node.file("pid"));
    kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
    let id = node.create(&work(json!({})));
    another(&node, pid);
    assert!(!alive(pid));
    assert_eq!(node.wait(&id, "completed")["result"], 7);
    assert_says(&node.log(), "was not heard any more");
    node.finish();
}

/// What an endpoint was asked.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<Value>>>);

/// Answers as the task's parameter `how` says.
async fn answer(State(asked): State<Asked>, Json(body): Json<Value>) -> Response {
    let (how, attempt) = (
        text(&body["task"]["parameters"]["how"]),
        body["task"]["attempt"].clone(),
    );
    asked.0.lock().push(body);
    match how.as_str() {
        "result" => Json(json!({ "sum": 42 })).into_response(),
        "outcome" => Json(json!({ "outcome": { "fail": { "message": "no", "type": "refused" } } })).into_response(),
        "text" => "plain words".into_response(),
        "busy" if attempt == 1 => (StatusCode::SERVICE_UNAVAILABLE, "come back").into_response(),
        "busy" => Json(json!({ "attempt": attempt })).into_response(),
        "wrong" => (StatusCode::UNPROCESSABLE_ENTITY, "no such customer").into_response(),
        "huge" => "x".repeat((1 << 20) + 1).into_response(),
        "hang" => std::future::pending().await,
        _ => StatusCode::ACCEPTED.into_response(),
    }
}

/// A node with an agent that is an endpoint of this process, which is gone at the end of `test`.
fn with_endpoint(test: impl FnOnce(Server, Asked)) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let asked = Asked::default();
    let app = axum::Router::new()
        .route("/run", post(answer))
        .with_state(asked.clone());
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}/run", listener.local_addr().unwrap());
    runtime.spawn(async move { axum::serve(listener, app).await });
    let agent = json!({ "capabilities": ["work"], "max_concurrent_tasks": 20, "lease": 1, "url": url });
    test(node_with(&json!({ "caller": agent })), asked);
}

fn asking(how: &str, more: Value) -> Value {
    work(with(json!({ "parameters": { "how": how } }), more))
}

/// Brings the result of a call later, as its callback says; what is said of it.
fn bring(node: &Server, given: &Value, outcome: Value) -> String {
    let callback = text(&given["callback"]);
    let path = callback.strip_prefix(&node.http.base).unwrap();
    let token = &given["lease_token"];
    let result = json!({ "execution_id": given["execution_id"], "lease_token": token, "outcome": outcome });
    let answer = node.http.post(path, &json!({ "results": [result] })).expect(200);
    text(&answer["results"][0]["status"])
}

#[test]
fn an_endpoint_answers_with_a_result_or_an_outcome() {
    with_endpoint(|node, asked| {
        for (how, status, result, error) in [
            ("result", "completed", json!({ "sum": 42 }), ""),
            ("text", "completed", json!("plain words"), ""),
            ("busy", "completed", json!({ "attempt": 2 }), ""),
            ("outcome", "failed", Value::Null, "no"),
            (
                "wrong",
                "failed",
                Value::Null,
                "answered 422 Unprocessable Entity: no such customer",
            ),
        ] {
            let id = node.create(&asking(how, json!({})));
            let task = node.wait(&id, status);
            assert_eq!(task["result"], result, "{how}");
            if status == "failed" {
                assert_eq!(task["attempt"], 1, "{task}");
                assert_says(&text(&task["error"]["message"]), error);
            }
        }
        let busy = node.http.all("/api/v1/executions");
        assert_eq!(busy.len(), 6, "each but the busy one was asked once");
        for (how, more, kind, message) in [
            (
                "huge",
                json!({ "max_retries": 0 }),
                "bad_result",
                "more than 1048576 bytes",
            ),
            ("hang", json!({ "max_retries": 0, "timeout": 1 }), "timeout", ""),
        ] {
            let task = node.wait(&node.create(&asking(how, more)), "failed");
            assert_eq!(task["error"]["type"], kind, "{task}");
            assert_says(&text(&task["error"]["message"]), message);
        }
        let first = asked.0.lock()[0].clone();
        let id = text(&first["task"]["id"]);
        assert_eq!(
            (&first["execution_id"], &first["checkpoint"]),
            (&json!(format!("{id}.1")), &Value::Null)
        );
        assert_eq!(
            first["callback"],
            format!("{}/api/v1/executions/complete", node.http.base)
        );
        node.finish();
    });
}

#[test]
fn an_endpoint_may_bring_the_result_later_by_the_token_of_the_run() {
    with_endpoint(|node, asked| {
        let id = node.create(&asking("later", json!({})));
        let given = eventually("the call", SOON, || asked.0.lock().first().cloned());
        // Meanwhile the node keeps the lease, which lasts for a second, with heartbeats of its own.
        throughout("it runs on", Duration::from_secs(3), || {
            node.task(&id)["status"] == "running"
        });
        assert_eq!(bring(&node, &given, json!({ "done": [1, 2] })), "accepted");
        assert_eq!(bring(&node, &given, json!({ "done": [1, 2] })), "repeat");
        assert_eq!(
            bring(&node, &given, json!({ "fail": { "message": "late" } })),
            "lease_lost"
        );
        let task = node.wait_both(&id, "completed");
        assert_eq!((&task["result"], &task["attempt"]), (&json!([1, 2]), &json!(1)));
        assert_eq!(asked.0.lock().len(), 1, "called once");
        eventually("the slot to be free", SOON, || {
            let agent = node.http.get("/api/v1/agents/caller").expect(200);
            (agent["status"] == "idle").then_some(())
        });
        node.finish();
    });
}

#[test]
fn a_run_that_an_endpoint_has_taken_is_cancelled_without_it() {
    with_endpoint(|node, asked| {
        let id = node.create(&asking("later", json!({})));
        let given = eventually("the call", SOON, || asked.0.lock().first().cloned());
        node.command(&id, "cancel").expect(202);
        node.wait(&id, "cancelled");
        assert_eq!(bring(&node, &given, json!({ "done": null })), "lease_lost");
        assert_eq!(node.task(&id)["status"], "cancelled");
        node.finish();
    });
}

#[test]
fn an_endpoint_that_is_not_there_fails_the_attempt() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let node = node_with(&json!({ "gone": { "capabilities": ["work"], "url": format!("http://{closed}/") } }));
    let task = node.wait(&node.create(&work(json!({ "max_retries": 2 }))), "failed");
    assert_eq!(
        (&task["attempt"], &task["error"]["type"]),
        (&json!(3), &json!("http_connect"))
    );
    assert_says(&text(&task["error"]["message"]), "could not be called");
    node.finish();
}
