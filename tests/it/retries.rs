//! Failing, trying again, dead letters, and what each attempt leaves behind.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{SOON, Server, assert_says, eventually, items, seconds_between, shell, text, with};

#[test]
fn a_failing_task_is_tried_again_after_its_delay_and_each_attempt_is_kept() {
    let server = Server::start(&[]);
    let id = server.create(&json!({
        "handler": "fail", "parameters": { "times": 2, "message": "not yet" }, "max_retries": 5,
        "retry": { "strategy": "exponential", "delay": 0.4, "factor": 2, "jitter": false } }));
    let retrying = server.wait_both(&id, "retrying");
    assert_eq!(
        (&retrying["waiting_for"], &retrying["error"]["message"]),
        (&json!("time"), &json!("not yet"))
    );
    let task = server.wait_both(&id, "completed");
    assert_eq!((&task["attempt"], &task["retry_count"]), (&json!(3), &json!(2)));

    let executions = server.http.all(&format!("/api/v1/tasks/{id}/executions"));
    let shown: Vec<_> = executions
        .iter()
        .map(|e| (e["attempt"].as_u64().unwrap(), text(&e["status"])))
        .collect();
    let wanted = [(1, "failed"), (2, "failed"), (3, "completed")].map(|(n, s)| (n, s.to_owned()));
    assert_eq!(shown, wanted);
    for (pair, least) in executions.windows(2).zip([0.4, 0.8]) {
        let gap = seconds_between(&pair[0]["finished_at"], &pair[1]["started_at"]);
        assert!(
            (least - 0.01..least + 10.0).contains(&gap),
            "tried again after {gap} s, not {least}"
        );
    }
    for execution in &executions {
        assert!(
            execution["resource_usage"]["wall_seconds"].as_f64().is_some(),
            "{execution}"
        );
        let alone = server
            .http
            .get(&format!("/api/v1/executions/{}", text(&execution["id"])))
            .expect(200);
        assert_eq!(&alone, execution);
    }
    let told = server.cli().json(&["task", "executions", &id]);
    assert_eq!(items(&told["items"]).len(), 3);
    let kinds = server.events(&id);
    assert_eq!(kinds.iter().filter(|kind| *kind == "retrying").count(), 2, "{kinds:?}");
    assert_eq!(kinds.last().map(String::as_str), Some("completed"));
    server.finish();
}

#[test]
fn max_retries_is_the_number_of_further_attempts() {
    let server = Server::start(&[]);
    let failing = |retries: u64| json!({ "handler": "fail", "max_retries": retries, "retry": { "delay": 0.05, "jitter": false } });
    for retries in [0, 1, 3] {
        let id = server.create(&failing(retries));
        let task = server.wait_both(&id, "failed");
        assert_eq!(task["attempt"], retries + 1, "{task}");
        assert_eq!(task["retry_count"], retries + 1, "failures of {task}");
        assert_eq!(task["error"]["type"], "failed");
        assert!(!task["dead_lettered_at"].is_null());
    }
    // The command line waits for the end and says how it was.
    let args = ["task", "create", "--handler", "fail", "--max-retries", "0", "--wait"];
    assert_eq!(server.cli().run(&args).code, Some(1));
    let args = ["task", "create", "--handler", "noop", "--wait"];
    assert_eq!(server.cli().run(&args).code, Some(0));
    server.finish();
}

#[test]
fn each_attempt_of_a_command_has_its_usage_and_its_log() {
    let server = Server::start(&[]);
    let none = server.file("none");
    let script = r#"echo "attempt $PENSUM_ATTEMPT"; i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; echo oops >&2; [ "$PENSUM_ATTEMPT" = 2 ]"#;
    let id = server.create(&with(
        shell(script, &none),
        json!({ "retry": { "delay": 0.1, "jitter": false } }),
    ));
    let task = server.wait_both(&id, "completed");
    assert_eq!(
        task["result"],
        json!({ "stdout": "attempt 2\n", "exit_code": 0 }),
        "{task}"
    );

    let executions = server.http.all(&format!("/api/v1/executions?task_id={id}"));
    assert_eq!(executions.len(), 2);
    assert_eq!(executions[0]["error"]["type"], "exit_code", "{}", executions[0]);
    assert_says(&executions[0]["error"]["message"], "oops");
    for (index, execution) in executions.iter().enumerate() {
        let usage = &execution["resource_usage"];
        let number = |name: &str| usage[name].as_f64().unwrap_or_else(|| panic!("no {name}: {execution}"));
        assert!(number("cpu_seconds") > 0.0 && number("memory_mb") > 0.1, "{usage}");
        assert!(number("wall_seconds") > 0.0 && number("cpu_percent") > 0.0, "{usage}");
        let logs = server.http.all(text(&execution["logs"]).as_str());
        let said: Vec<_> = logs
            .iter()
            .map(|line| (text(&line["stream"]), text(&line["message"])))
            .collect();
        let first = ("stdout".to_owned(), format!("attempt {}", index + 1));
        assert_eq!(said, [first, ("stderr".to_owned(), "oops".to_owned())], "{logs:?}");
        let told = server
            .cli()
            .run(&["task", "logs", &id, "--attempt", &(index + 1).to_string()])
            .expect(0);
        assert_eq!(told, format!("attempt {}\noops\n", index + 1));
    }
    server.finish();
}

#[test]
fn dead_letters_are_listed_and_can_be_tried_again() {
    let server = Server::start(&[]);
    let gate = server.file("gate");
    let task = with(shell(r#"[ -e "$1" ]"#, &gate), json!({ "max_retries": 0 }));
    let ids = server.create_all(&[task.clone(), task.clone(), task]);
    for id in &ids {
        server.wait_both(id, "failed");
    }
    let listed = || -> Vec<String> {
        server
            .http
            .all("/api/v1/dead-letters")
            .iter()
            .map(|task| text(&task["id"]))
            .collect()
    };
    assert_eq!(listed().len(), 3);
    let told = server.cli().json(&["dlq", "list"]);
    assert_eq!(items(&told["items"]).len(), 3);

    std::fs::write(&gate, "").unwrap();
    server.cli().run(&["dlq", "retry", &ids[0], "--wait"]).expect(0);
    server.command(&ids[1], "retry").expect(200);
    for id in &ids[..2] {
        let task = server.wait_both(id, "completed");
        assert_eq!(task["attempt"], 2, "attempts go on counting");
        assert!(task["dead_lettered_at"].is_null(), "{task}");
    }
    assert_eq!(listed(), [ids[2].clone()]);
    server.cli().run(&["dlq", "delete", &ids[2]]).expect(0);
    assert!(listed().is_empty());
    server.http.get(&format!("/api/v1/tasks/{}", ids[2])).expect(404);
    assert_says(&server.command(&ids[0], "retry").expect(409), "completed");
    server.finish();
}

#[test]
fn a_retried_dependency_is_waited_for_again() {
    let server = Server::start(&[]);
    let gate = server.file("gate");
    let bad = server.create(&with(shell(r#"[ -e "$1" ]"#, &gate), json!({ "max_retries": 0 })));
    let child = server.create(&json!({ "handler": "noop", "depends_on": [bad] }));
    server.wait_both(&child, "cancelled");
    std::fs::write(&gate, "").unwrap();
    server.command(&bad, "retry").expect(200);
    server.wait(&bad, "completed");
    server.command(&child, "retry").expect(200);
    server.wait_both(&child, "completed");
    server.finish();
}

#[test]
fn a_retry_may_be_pulled_forward() {
    let server = Server::start(&[]);
    let slow = json!({ "handler": "fail", "parameters": { "times": 1 },
        "retry": { "strategy": "fixed", "delay": 250, "jitter": false } });
    let ids = server.create_all(&[slow.clone(), slow]);
    for id in &ids {
        server.wait_both(id, "retrying");
    }
    let explained = server.task(&format!("{}/explain", ids[0]));
    assert_eq!(explained["gates"][0]["gate"], "time", "{explained}");
    assert!(explained["gates"][0]["opens_at"].is_string(), "{explained}");
    server.command(&ids[0], "retry").expect(200);
    server.cli().run(&["task", "retry", &ids[1]]).expect(0);
    for id in &ids {
        server.wait_both(id, "completed");
    }
    server.finish();
}

#[test]
fn progress_and_log_lines_can_be_followed() {
    let server = Server::start(&[]);
    let gate = server.file("gate");
    let script = r#"echo "pensum:progress 40 almost half" >&2; echo one; until [ -e "$1" ]; do sleep 0.05; done; echo two; echo "pensum:progress 90" >&2; echo "no progress" >&2"#;
    let id = server.create(&shell(script, &gate));
    let seen = eventually("progress", SOON, || {
        let task = server.task(&id);
        (!task["progress"].is_null()).then_some(task)
    });
    assert_eq!(seen["progress"], json!({ "percent": 40.0, "message": "almost half" }));
    assert_eq!(seen["status"], "running");

    let followed = std::thread::scope(|scope| {
        let base = server.http.base.clone();
        let path = format!("/api/v1/tasks/{id}/logs?follow=true");
        let (send, first) = std::sync::mpsc::channel();
        let by_http = scope.spawn(move || {
            let mut lines = Vec::new();
            crate::harness::Http::new(base).stream(&path, "application/x-ndjson", |line| {
                let line: Value = serde_json::from_str(line).unwrap();
                lines.push(text(&line["message"]));
                let _ = send.send(());
                true
            });
            lines
        });
        let cli = server.cli();
        let id = &id;
        let by_cli = scope.spawn(move || cli.run(&["task", "logs", id, "--follow"]).expect(0));
        first
            .recv_timeout(Duration::from_secs(20))
            .expect("a line before the task ends");
        std::fs::write(&gate, "").unwrap();
        (by_http.join().unwrap(), by_cli.join().unwrap())
    });
    // Two pipes have no common order.
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    assert_eq!(sorted(followed.0), ["no progress", "one", "two"]);
    assert_eq!(
        sorted(followed.1.lines().map(str::to_owned).collect()),
        ["no progress", "one", "two"]
    );
    server.wait_both(&id, "completed");

    let mut events = Vec::new();
    server.http.stream(
        &format!("/api/v1/tasks/{id}/logs?follow=true"),
        "text/event-stream",
        |line| {
            events.extend(line.strip_prefix("event: ").map(str::to_owned));
            true
        },
    );
    assert_eq!(events, ["log", "log", "log", "end"]);
    server.finish();
}
