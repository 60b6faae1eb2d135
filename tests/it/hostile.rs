//! Commands that behave badly: noisy, silent about their end, without manners about text, or not there at all.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{SOON, Server, assert_says, eventually, marked, shell, text, with};

/// Most lines that are kept of a task, with one more that says so.
const LOG_LINES_MAX: usize = 10_000;

#[test]
fn a_flood_of_output_is_cut_and_harms_nobody() {
    let server = Server::start(&[]);
    let none = server.file("none");
    let flood = server.create(&shell(
        "i=0; while [ $i -lt 40000 ]; do i=$((i+1)); echo line $i; done",
        &none,
    ));
    let long = server.create(&shell("head -c 20000000 /dev/zero | tr '\\0' x", &none));
    let other = server.create(&json!({ "handler": "noop" }));
    server.wait(&other, "completed");

    let task = server.wait_both(&flood, "completed");
    assert!(task["result"].to_string().len() <= 1 << 20, "the result is bounded");
    let lines = server.http.all(&format!("/api/v1/tasks/{flood}/logs"));
    assert!(
        (LOG_LINES_MAX..=LOG_LINES_MAX + 1).contains(&lines.len()),
        "{} lines",
        lines.len()
    );
    assert_eq!(
        (&lines[0]["message"], &lines[9]["message"]),
        (&json!("line 1"), &json!("line 10"))
    );
    assert_says(&lines[lines.len() - 1]["message"], "drop");

    let task = server.wait_both(&long, "completed");
    assert_eq!(task["result"]["stdout_truncated"], true, "cut, and said to be");
    assert!(task["result"].to_string().len() <= 1 << 20);
    server.finish();
}

#[test]
fn a_command_ends_with_its_program_whatever_it_leaves_in_the_background() {
    let server = Server::start(&[]);
    let mark = server.file("mark");
    let began = Instant::now();
    let id = server.create(&shell(r#"sh -c 'sleep 300; : "$1"' sh "$1" & echo done"#, &mark));
    let task = server.wait_both(&id, "completed");
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "it waited for the background: {:?}",
        began.elapsed()
    );
    assert_eq!(task["result"]["stdout"], "done\n", "{task}");
    eventually("the background to be gone", SOON, || {
        marked(&mark).is_empty().then_some(())
    });
    server.finish();
}

#[test]
fn bytes_that_are_no_text_are_replaced_and_never_lost() {
    let server = Server::start(&[]);
    let none = server.file("none");
    let id = server.create(&shell(r"printf 'a\000b\377c\n\033[31mred\n<script>\n'; exit 0", &none));
    let task = server.wait_both(&id, "completed");
    let stdout = text(&task["result"]["stdout"]);
    assert!(
        stdout.contains('a') && stdout.contains("<script>") && !stdout.contains('\0'),
        "{stdout:?}"
    );
    let lines = server.http.all(&format!("/api/v1/tasks/{id}/logs"));
    assert_eq!(lines.len(), 3, "{lines:?}");
    let told = server.cli().run(&["task", "logs", &id]).expect(0);
    assert!(
        !told.contains('\u{1b}') && told.contains("red"),
        "what a task wrote must not steer a terminal: {told:?}"
    );
    for text in ["a\u{0}b", "\u{0}"] {
        let refused = json!({ "handler": "log", "parameters": { "message": text } });
        assert_says(&server.http.post("/api/v1/tasks", &refused).expect(422), "u0000");
    }
    server.finish();
}

#[test]
fn a_command_that_cannot_start_says_why() {
    let server = Server::start(&[]);
    let command =
        |parameters: Value| server.create(&json!({ "handler": "command", "max_retries": 0, "parameters": parameters }));
    let missing = command(json!({ "program": "no-such-program-anywhere" }));
    let nowhere = command(json!({ "program": "true", "cwd": "/no/such/place" }));
    let plain = server.file("plain");
    std::fs::write(&plain, "no program").unwrap();
    let not_executable = command(json!({ "program": plain }));
    for (id, says) in [
        (&missing, "install it"),
        (&nowhere, "/no/such/place"),
        (&not_executable, "chmod +x"),
    ] {
        let task = server.wait_both(id, "failed");
        assert_eq!(task["error"]["type"], "spawn", "{task}");
        assert_says(&task["error"]["message"], says);
    }
    for wrong in [
        json!({}),
        json!({ "program": "" }),
        json!({ "program": "true", "arg": [] }),
        json!([]),
    ] {
        server
            .http
            .post("/api/v1/tasks", &json!({ "handler": "command", "parameters": wrong }))
            .expect(422);
    }
    server.finish();
}

#[test]
fn a_command_sees_neither_the_secrets_nor_the_files_of_its_node() {
    let server = Server::start(&[]);
    let none = server.file("none");
    let script =
        r#"env; for fd in 3 4 5 6 7 8 9 10 11 12; do [ -e /proc/$$/fd/$fd ] && echo "descriptor $fd"; done; cat"#;
    let id = server.create(&with(shell(script, &none), json!({ "max_retries": 0 })));
    let seen = text(&server.wait_both(&id, "completed")["result"]["stdout"]);
    assert!(
        seen.contains(&format!("PENSUM_TASK_ID={id}")) && seen.contains("PATH="),
        "{seen}"
    );
    assert!(
        !seen.contains(crate::harness::SECRET),
        "the environment of the node leaks: {seen}"
    );
    assert!(!seen.contains("descriptor"), "{seen}");
    server.finish();
}

#[test]
fn an_idempotency_key_belongs_to_one_request() {
    let server = Server::start(&[]);
    let send = |body: &Value, key: &str| {
        let headers = [("idempotency-key", key)];
        server
            .http
            .send(reqwest::Method::POST, "/api/v1/tasks", Some(body), &headers)
            .unwrap()
    };
    let task = json!({ "handler": "noop", "delay": "1h" });
    let id = text(&send(&task, "one").expect(201)["id"]);
    assert_eq!(text(&send(&task, "one").expect(200)["id"]), id);
    assert_says(
        &send(&json!({ "handler": "noop" }), "one").expect(409),
        "Idempotency-Key",
    );
    assert_ne!(text(&send(&task, "two").expect(201)["id"]), id);
    // What was refused may be mended and sent again under its key.
    send(&json!({ "handler": "noop", "priority": "huge" }), "three").expect(422);
    send(&json!({ "handler": "noop", "priority": "high" }), "three").expect(201);
    assert_eq!(server.http.all("/api/v1/tasks").len(), 3);
    server.finish();
}
