//! Dependencies and unique keys.

use serde_json::{Value, json};

use crate::harness::{Server, assert_says, eventually, items, shell, text, with};

const TELL_FAILED: &str = r#"printf '{"failed":"%s"}' "$PENSUM_FAILED_DEPENDENCIES""#;

#[test]
fn a_failed_dependency_cancels_is_ignored_or_is_told_of() {
    let server = Server::start(&[]);
    let none = server.file("none");
    let after = |task: Value, of: &[&str], policy: &str| {
        with(task, json!({ "depends_on": of, "on_dependency_failure": policy }))
    };
    let ids = server.create_all(&[
        json!({ "ref": "bad", "handler": "fail", "max_retries": 0, "parameters": { "message": "broken" }, "delay": 0.5 }),
        json!({ "ref": "good", "handler": "noop" }),
        with(after(json!({ "handler": "noop" }), &["bad", "good"], "cancel"), json!({ "ref": "cancelled" })),
        after(json!({ "handler": "noop" }), &["cancelled"], "cancel"),
        after(shell(TELL_FAILED, &none), &["good", "bad"], "ignore"),
        after(shell(TELL_FAILED, &none), &["bad", "good", "cancelled"], "run"),
        after(shell(TELL_FAILED, &none), &["good"], "run"),
        json!({ "handler": "noop", "depends_on": ["bad"] }),
    ]);
    let waiting = server.task(&ids[2]);
    assert_eq!(
        (&waiting["status"], &waiting["waiting_for"]),
        (&json!("pending"), &json!("dependencies"))
    );
    let explained = server.task(&format!("{}/explain", ids[2]));
    assert_eq!(explained["gates"][0]["gate"], "dependencies", "{explained}");
    assert_says(&explained["gates"][0]["message"], &ids[0]);

    assert_eq!(server.wait_both(&ids[0], "failed")["error"]["message"], "broken");
    for at in [2, 3, 7] {
        let task = server.wait_both(&ids[at], "cancelled");
        assert_eq!(task["error"]["type"], "dependency_failed", "{task}");
        assert_eq!(task["attempt"], 0);
    }
    server.wait_both(&ids[4], "completed");
    let told = text(&server.wait_both(&ids[5], "completed")["result"]["failed"]);
    let mut told: Vec<&str> = told.split(',').collect();
    told.sort_unstable();
    let mut wanted = [ids[0].as_str(), ids[2].as_str()];
    wanted.sort_unstable();
    assert_eq!(told, wanted, "run is told of those that failed or were cancelled");
    assert_eq!(server.wait_both(&ids[6], "completed")["result"]["failed"], "");

    let sides = server.task(&format!("{}/dependencies", ids[2]));
    assert_eq!(items(&sides["depends_on"]).len(), 2);
    assert_eq!(sides["dependants_total"], 2, "{sides}");
    server.finish();
}

#[test]
fn a_dependency_that_has_ended_already_counts_at_once() {
    let server = Server::start(&[]);
    let good = server.create(&json!({ "handler": "noop" }));
    let bad = server.create(&json!({ "handler": "fail", "max_retries": 0 }));
    server.wait(&good, "completed");
    server.wait(&bad, "failed");
    let on = |ids: &[&str]| server.create(&json!({ "handler": "noop", "depends_on": ids }));
    let (fine, lost) = (on(&[&good]), on(&[&good, &bad]));
    server.wait_both(&fine, "completed");
    server.wait_both(&lost, "cancelled");
    let unknown = "00000000-0000-7000-8000-000000000000";
    let refused = server
        .http
        .post(
            "/api/v1/tasks",
            &json!({ "handler": "noop", "depends_on": [good, unknown] }),
        )
        .expect(422);
    assert_eq!(refused["errors"][0]["path"], "depends_on[1]", "{refused}");
    let cycle = json!({ "tasks": [
        { "ref": "a", "handler": "noop", "depends_on": ["b"] }, { "ref": "b", "handler": "noop", "depends_on": ["a"] } ] });
    assert_says(&server.http.post("/api/v1/tasks/batch", &cycle).expect(422), "cycle");
    server.finish();
}

fn unique(key: &str, more: Value) -> Value {
    let unique = with(json!({ "key": key }), more);
    json!({ "handler": "noop", "delay": "1h", "unique": unique })
}

#[test]
fn a_unique_key_keeps_replaces_or_rejects() {
    let server = Server::start(&[]);
    let post = |task: &Value| server.http.post("/api/v1/tasks", task);
    let id_of = |body: &Value| text(&body["id"]);

    let first = id_of(&post(&unique("k", json!({}))).expect(201));
    assert_eq!(
        id_of(&post(&unique("k", json!({ "on_conflict": "keep" }))).expect(200)),
        first
    );
    let refused = post(&unique("k", json!({ "on_conflict": "reject" }))).expect(409);
    assert_says(&refused, &first);
    let output = server.cli().run(&[
        "task",
        "create",
        "--handler",
        "noop",
        "--unique",
        "k",
        "--on-conflict",
        "reject",
    ]);
    assert_says(&output.fails(6), &first);
    // Another handler has keys of its own.
    let other = with(
        unique("k", json!({ "on_conflict": "reject" })),
        json!({ "handler": "sleep", "parameters": { "seconds": 0 } }),
    );
    post(&other).expect(201);

    let second = id_of(&post(&unique("k", json!({ "on_conflict": "replace" }))).expect(201));
    assert_ne!(second, first);
    server.wait_both(&first, "cancelled");
    let kept = server
        .cli()
        .json(&["task", "create", "--handler", "noop", "--unique", "k"]);
    assert_eq!(id_of(&kept), second);

    // The key is free once its task has ended.
    server.command(&second, "cancel").expect(200);
    let third = id_of(&post(&unique("k", json!({ "on_conflict": "reject" }))).expect(201));
    assert!(third != second && third != first);
    // Of the ended ones none can come back while the third has the key.
    assert_says(&server.command(&second, "retry").expect(409), &third);
    server.finish();
}

#[test]
fn a_started_task_is_not_replaced() {
    let server = Server::start(&[]);
    let gate = server.file("gate");
    let task = with(
        shell(r#"until [ -e "$1" ]; do sleep 0.05; done"#, &gate),
        json!({ "unique": { "key": "run", "on_conflict": "replace" } }),
    );
    let running = server.create(&task);
    server.wait(&running, "running");
    let kept = server.http.post("/api/v1/tasks", &task).expect(200);
    assert_eq!(text(&kept["id"]), running);
    std::fs::write(&gate, "").unwrap();
    server.wait_both(&running, "completed");
    server.finish();
}

#[test]
fn a_unique_key_with_a_time_to_live_outlasts_its_task_but_not_the_time() {
    let server = Server::start(&[]);
    let task = json!({ "handler": "noop", "unique": { "key": "daily", "ttl": 3 } });
    let first = server.create(&task);
    server.wait(&first, "completed");
    let kept = server.http.post("/api/v1/tasks", &task).expect(200);
    assert_eq!(
        (text(&kept["id"]), text(&kept["status"])),
        (first.clone(), "completed".to_owned())
    );
    let again = eventually("the key to be free", std::time::Duration::from_secs(20), || {
        let answer = server.http.post("/api/v1/tasks", &task);
        (answer.status == 201).then(|| answer.expect(201))
    });
    let held = crate::harness::seconds_between(&server.task(&first)["created_at"], &again["created_at"]);
    assert!((3.0..15.0).contains(&held), "held for {held} s");
    server.finish();
}
