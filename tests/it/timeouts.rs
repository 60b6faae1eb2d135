//! What ends a task that does not end by itself, and what is left of it then.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{SOON, Server, alive, assert_says, eventually, lines, marked, shell, with};

/// How long a command has from the request to stop until it is killed, by default.
const KILL_GRACE: Duration = Duration::from_secs(10);

#[test]
fn nothing_of_a_command_outlives_its_timeout() {
    let server = Server::start(&[]);
    let stubborn = server.file("stubborn");
    let escaped = server.file("escaped");
    // The inner shells name the file too, so that they are found by their arguments.
    let deaf = r#"sh -c 'trap "" TERM INT HUP; echo $$ >> "$1"; while :; do sleep 0.2; done' sh "$1" & wait"#;
    let fled = r#"trap "" TERM; setsid sh -c 'trap "" TERM; echo $$ >> "$1"; while :; do sleep 0.2; done' sh "$1" & wait; sleep 60"#;
    let limits = json!({ "timeout": 2, "max_retries": 0 });
    let first = server.create(&with(shell(deaf, &stubborn), limits.clone()));
    let again = json!({ "timeout": "2s", "max_retries": 1, "retry": { "strategy": "fixed", "delay": 600, "max_delay": 600, "jitter": false } });
    let second = server.create(&with(shell(fled, &escaped), again));
    let began = Instant::now();
    let children = [server.pid_in(&stubborn), server.pid_in(&escaped)];

    let longest = Duration::from_secs(2) + KILL_GRACE + Duration::from_secs(1);
    eventually(
        "the grandchildren to be gone",
        longest.saturating_sub(began.elapsed()),
        || {
            let left = marked(&stubborn).len() + marked(&escaped).len();
            (left == 0 && !children.iter().any(|pid| alive(*pid))).then_some(())
        },
    );
    let failed = server.wait_both(&first, "failed");
    assert_eq!(failed["error"]["type"], "timeout", "{failed}");
    assert_says(&failed["error"]["message"], "2");
    let retrying = server.wait_both(&second, "retrying");
    assert_eq!(retrying["error"]["type"], "timeout", "{retrying}");
    assert_eq!(retrying["retry_count"], 1);
    assert_eq!((lines(&stubborn).len(), lines(&escaped).len()), (1, 1), "each ran once");
    server.finish();
}

#[test]
fn a_task_that_does_not_start_in_time_ends_without_having_run() {
    let server = Server::start(&["--slots", "1"]);
    let gate = server.file("gate");
    let ran = server.file("ran");
    let blocker = server.create(&shell(r#"until [ -e "$1" ]; do sleep 0.05; done"#, &gate));
    server.wait(&blocker, "running");
    let effect = || shell(r#"echo "$PENSUM_TASK_ID" >> "$1""#, &ran);
    let expires = crate::harness::time_in(Duration::from_secs(1));
    let expired = server.create(&with(effect(), json!({ "expires_at": expires })));
    let later = server.create(&with(effect(), json!({ "expires_at": expires, "delay": "1h" })));
    let waited = server.create(&with(effect(), json!({ "queue_timeout": 1 })));
    let patient = server.create(&with(effect(), json!({ "queue_timeout": "1h" })));

    for id in [&expired, &later] {
        let task = server.wait_both(id, "cancelled");
        assert_eq!(task["error"]["type"], "expired", "{task}");
        assert_eq!(
            (&task["attempt"], &task["started_at"]),
            (&json!(0), &json!(null)),
            "{task}"
        );
    }
    let task = server.wait_both(&waited, "failed");
    assert_eq!(task["error"]["type"], "queue_timeout", "{task}");
    assert_eq!(task["attempt"], 0, "{task}");
    assert_eq!(server.task(&blocker)["status"], "running");
    std::fs::write(&gate, "").unwrap();
    server.wait(&patient, "completed");
    assert_eq!(lines(&ran), [patient]);
    server.finish();
}

#[test]
fn a_silent_task_fails_and_a_talkative_one_does_not() {
    let server = Server::start(&[]);
    let none = server.file("none");
    let limits = json!({ "heartbeat_timeout": 1, "max_retries": 0 });
    let silent = server.create(&with(shell("sleep 60", &none), limits.clone()));
    let talk = "for i in 1 2 3 4 5 6 7 8 9 10; do echo $i; sleep 0.25; done";
    let talkative = server.create(&with(shell(talk, &none), limits));
    let task = server.wait_both(&silent, "failed");
    assert_eq!(task["error"]["type"], "heartbeat_timeout", "{task}");
    let task = server.wait_both(&talkative, "completed");
    assert_eq!(task["attempt"], 1, "{task}");
    server.finish();
}

#[test]
fn a_command_over_its_limits_is_ended() {
    let server = Server::start(&[]);
    let mark = server.file("mark");
    let command = |script: &str, limits: serde_json::Value| {
        let parameters = json!({ "program": "sh", "args": ["-c", script, "sh", mark], "limits": limits });
        json!({ "handler": "command", "parameters": parameters, "max_retries": 0 })
    };
    let neighbour = server.create(&command("sleep 60", json!({ "memory": "64MiB" })));
    let grow = "python3 -c 'held = []\nwhile True: held.append(bytearray(range(256)) * 16384)'";
    let growing = server.create(&command(grow, json!({ "memory": "64MiB" })));
    let spinning = server.create(&command("while :; do :; done", json!({ "cpu_seconds": 0.5 })));
    let sleeping = server.create(&command("sleep 60", json!({ "wall": "500ms" })));
    assert_eq!(server.wait_both(&growing, "failed")["error"]["type"], "memory_exceeded");
    assert_eq!(server.wait_both(&spinning, "failed")["error"]["type"], "cpu_exceeded");
    assert_eq!(server.wait_both(&sleeping, "failed")["error"]["type"], "wall_exceeded");
    let attempts = server.http.all(&format!("/api/v1/tasks/{growing}/executions"));
    assert!(
        attempts[0]["resource_usage"]["memory_mb"].as_f64().unwrap() > 50.0,
        "{attempts:?}"
    );
    assert_eq!(server.task(&neighbour)["status"], "running");
    server.command(&neighbour, "cancel").expect(202);
    server.wait_both(&neighbour, "cancelled");
    eventually("all to be gone", SOON, || marked(&mark).is_empty().then_some(()));

    let report = server.http.get("/api/v1/system/performance").expect(200);
    let limits = &report["resource_metrics"]["limits"];
    let said: Vec<String> = server
        .log_all()
        .into_iter()
        .filter(|line| line.contains("kept to their limits"))
        .collect();
    assert_eq!(said.len(), 1, "{said:?}");
    // Without a cgroup of its own the node says why.
    let (memory, cpu, reason) = match limits["memory"].as_str() {
        Some("cgroup") => ("cgroup", "cgroup_and_rlimit", "cgroup=/"),
        _ => ("sampled", "sampled_and_rlimit", "why="),
    };
    assert_eq!(*limits, json!({ "memory": memory, "cpu": cpu, "wall": "watched" }));
    assert!(
        said[0].contains(&format!("memory={memory:?} cpu={cpu:?} {reason}")),
        "{said:?}"
    );
    server.finish();
}
