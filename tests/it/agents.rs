//! Agents that talk to the program over HTTP, as any program could.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{SOON, Server, items, text};

/// How late a cancel may reach an agent that sends heartbeats all the time.
const CANCEL_HEARD: Duration = Duration::from_secs(1);

impl Server {
    fn register(&self, id: &str, more: &Value) -> Value {
        let mut agent = json!({ "id": id, "capabilities": ["transcode"] });
        agent.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.http.post("/api/v1/agents", &agent).expect(201)
    }

    fn ask_agent(&self, id: &str, verb: &str, body: &Value) -> Value {
        self.http.post(&format!("/api/v1/agents/{id}/{verb}"), body).expect(200)
    }

    /// Polls once for one task.
    fn take(&self, id: &str) -> Value {
        let polled = self.ask_agent(id, "poll", &json!({ "session": "1", "wait_ms": 10_000 }));
        assert_eq!(items(&polled["tasks"]).len(), 1, "{polled}");
        polled["tasks"][0].clone()
    }

    fn beat(&self, id: &str, execution: &Value) -> Value {
        self.ask_agent(id, "heartbeat", &json!({ "session": "1", "executions": [execution] }))
    }

    fn complete(&self, given: &Value, outcome: &Value) -> String {
        let result = named(given, json!({ "outcome": outcome }));
        let answer = self
            .http
            .post("/api/v1/executions/complete", &json!({ "results": [result] }));
        text(&answer.expect(200)["results"][0]["status"])
    }
}

/// What names a run, and more about it.
fn named(given: &Value, more: Value) -> Value {
    let name = json!({ "execution_id": given["execution_id"], "lease_token": given["lease_token"] });
    crate::harness::with(name, more)
}

#[test]
fn an_agent_polls_reports_and_completes() {
    let server = Server::start(&[]);
    server.register("worker-1", &json!({}));
    let id = server.create(&json!({ "handler": "transcode", "parameters": { "file": "a.mov" } }));
    let given = server.take("worker-1");
    assert_eq!(
        (&given["task"]["id"], &given["task"]["parameters"]["file"]),
        (&json!(id), &json!("a.mov"))
    );
    let report = json!({ "progress": { "percent": 50, "message": "half" }, "checkpoint": { "frame": 12 },
        "logs": [{ "message": "frame 12", "stream": "stdout" }] });
    let heard = server.beat("worker-1", &named(&given, report));
    assert_eq!((&heard["lost"], &heard["cancel"]), (&json!([]), &json!([])));
    assert_eq!(server.task(&id)["progress"]["percent"], 50.0);
    let logs = server.http.all(&format!("/api/v1/tasks/{id}/logs"));
    assert_eq!(logs[0]["message"], "frame 12");
    // It goes on from its checkpoint when it asks to.
    assert_eq!(server.complete(&given, &json!({ "again": { "after": 0 } })), "accepted");
    let again = server.take("worker-1");
    assert_eq!(
        (&again["checkpoint"], &again["task"]["attempt"]),
        (&json!({ "frame": 12 }), &json!(1))
    );
    assert_eq!(
        server.complete(&again, &json!({ "done": { "frames": 24 } })),
        "accepted"
    );
    assert_eq!(server.complete(&again, &json!({ "done": { "frames": 24 } })), "repeat");
    // The first run of the attempt ended otherwise, which it may say again.
    assert_eq!(
        server.complete(&given, &json!({ "done": { "frames": 24 } })),
        "lease_lost"
    );
    assert_eq!(server.complete(&given, &json!({ "again": { "after": 0 } })), "repeat");
    let task = server.wait_both(&id, "completed");
    assert_eq!(task["result"]["frames"], 24);
    let executions = server.task(&format!("{id}/executions"));
    assert_eq!(executions["items"][0]["executor_id"], "worker-1");
    server.finish();
}

#[test]
fn a_poll_whose_answer_was_lost_is_answered_again_and_one_that_waits_is_woken() {
    let server = Server::start(&[]);
    server.register("worker-1", &json!({}));
    let id = server.create(&json!({ "handler": "transcode" }));
    let lost = server.take("worker-1");
    let again = server.take("worker-1");
    assert_eq!(
        (&again["execution_id"], &again["lease_token"]),
        (&lost["execution_id"], &lost["lease_token"])
    );
    let results = json!([named(&again, json!({ "outcome": { "done": 1 } }))]);
    let begun = Instant::now();
    let (polled, took) = std::thread::scope(|scope| {
        let client = crate::harness::Http::new(server.http.base.clone());
        let waiting = scope.spawn(move || {
            let body = json!({ "session": "1", "wait_ms": 15_000, "results": results });
            let polled = client.post("/api/v1/agents/worker-1/poll", &body).expect(200);
            (polled, begun.elapsed())
        });
        server.wait(&id, "completed");
        server.create(&json!({ "handler": "transcode" }));
        waiting.join().unwrap()
    });
    assert_eq!(polled["accepted"][0]["status"], "accepted");
    assert_eq!(items(&polled["tasks"]).len(), 1);
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(server.complete(&polled["tasks"][0], &json!({ "done": 2 })), "accepted");
    server.finish();
}

#[test]
fn a_cancel_reaches_the_agent_with_its_next_heartbeat() {
    let server = Server::start(&[]);
    server.register("worker-1", &json!({}));
    let id = server.create(&json!({ "handler": "transcode" }));
    let given = server.take("worker-1");
    let asked = Instant::now();
    server.command(&id, "cancel").expect(202);
    let heard = crate::harness::eventually("the cancel", SOON, || {
        let heard = server.beat("worker-1", &named(&given, json!({})));
        (!items(&heard["cancel"]).is_empty()).then_some(heard)
    });
    assert!(asked.elapsed() < CANCEL_HEARD, "{:?}", asked.elapsed());
    assert_eq!(heard["cancel"], json!([given["execution_id"]]));
    assert_eq!(server.complete(&given, &json!({ "cancelled": {} })), "accepted");
    server.wait_both(&id, "cancelled");
    server.finish();
}

#[test]
fn a_task_outlives_the_server_in_the_hands_of_its_agent() {
    let mut server = Server::start(&[]);
    server.register("worker-1", &json!({}));
    let id = server.create(&json!({ "handler": "transcode" }));
    let given = server.take("worker-1");
    server.kill();
    server.verify();
    server.restart();
    let task = server.task(&id);
    assert_eq!((&task["status"], &task["attempt"]), (&json!("running"), &json!(1)));
    // The same session goes on, and what it has is not given to anybody else.
    let polled = server.ask_agent(
        "worker-1",
        "poll",
        &json!({ "session": "1", "have": [given["execution_id"]] }),
    );
    assert_eq!(polled["tasks"], json!([]));
    let heard = server.beat("worker-1", &named(&given, json!({ "checkpoint": 1 })));
    assert_eq!(heard["lost"], json!([]));
    assert_eq!(server.complete(&given, &json!({ "done": "late" })), "accepted");
    assert_eq!(server.wait_both(&id, "completed")["result"], "late");
    server.finish();
}

#[test]
fn a_server_that_stops_answers_the_polls_that_wait() {
    let mut server = Server::start(&[]);
    server.register("worker-1", &json!({}));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let client = crate::harness::Http::new(server.http.base.clone());
        let waiting = scope.spawn(move || {
            let body = json!({ "session": "1", "wait_ms": 15_000 });
            client.post("/api/v1/agents/worker-1/poll", &body).expect(200)
        });
        // The poll shows itself: the agent was heard later than it was registered.
        let registered = server.http.get("/api/v1/agents/worker-1").expect(200)["created_at"].clone();
        crate::harness::eventually("the poll", SOON, || {
            let agent = server.http.get("/api/v1/agents/worker-1").expect(200);
            (agent["seen_at"] != registered).then_some(())
        });
        server.signal(Signal::TERM);
        assert_eq!(waiting.join().unwrap()["tasks"], json!([]));
    });
    assert_eq!(server.wait_end(SOON).code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    server.finish();
}
