//! Pausing tasks that wait and commands that run; cancelling both.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{
    SOON, SPIN, Server, alive, assert_says, cpu_ticks, eventually, lines, marked, shell, state, throughout, with,
};

#[test]
fn a_paused_command_stands_still_and_goes_on() {
    let server = Server::start(&[]);
    let gate = server.file("gate");
    let id = server.create(&with(shell(SPIN, &gate), json!({ "timeout": 0 })));
    let pid = server.pid_in(&server.file("gate.pid"));

    let answer = server.command(&id, "pause");
    assert!(matches!(answer.status, 200 | 202), "{answer:?}");
    server.wait_both(&id, "paused");
    eventually("the process to be stopped", SOON, || {
        (state(pid) == Some('T')).then_some(())
    });
    let used = cpu_ticks(pid);
    throughout("it stands still", Duration::from_millis(600), || {
        state(pid) == Some('T') && cpu_ticks(pid) == used && server.task(&id)["status"] == "paused"
    });
    let explained = server.task(&format!("{id}/explain"));
    assert!(
        explained["gates"]
            .as_array()
            .unwrap()
            .iter()
            .any(|gate| gate["gate"] == "paused"),
        "{explained}"
    );

    server.cli().run(&["task", "resume", &id]).expect(0);
    eventually("the process to go on", SOON, || (cpu_ticks(pid) > used).then_some(()));
    assert_eq!(server.task(&id)["status"], "running");
    // Once more, the other way round.
    server.cli().run(&["task", "pause", &id]).expect(0);
    eventually("the process to be stopped", SOON, || {
        (state(pid) == Some('T')).then_some(())
    });
    server.wait(&id, "paused");
    std::fs::write(&gate, "").unwrap();
    server.command(&id, "resume").expect(200);
    let task = server.wait_both(&id, "completed");
    assert_eq!(task["attempt"], 1, "a pause costs no attempt");
    let events = server.events(&id);
    assert_eq!(events.iter().filter(|kind| *kind == "paused").count(), 2, "{events:?}");
    assert_eq!(events.iter().filter(|kind| *kind == "resumed").count(), 2, "{events:?}");
    server.finish();
}

#[test]
fn the_time_of_a_pause_is_not_the_time_of_the_task() {
    let server = Server::start(&[]);
    let gate = server.file("gate");
    let id = server.create(&with(shell(SPIN, &gate), json!({ "timeout": 3, "max_retries": 0 })));
    server.pid_in(&server.file("gate.pid"));
    let answer = server.command(&id, "pause");
    assert!(matches!(answer.status, 200 | 202), "{answer:?}");
    server.wait(&id, "paused");
    throughout("it is paused beyond its timeout", Duration::from_secs(4), || {
        server.task(&id)["status"] == "paused"
    });
    std::fs::write(&gate, "").unwrap();
    server.command(&id, "resume").expect(200);
    server.wait_both(&id, "completed");
    server.finish();
}

#[test]
fn a_running_handler_that_cannot_pause_says_so() {
    let server = Server::start(&[]);
    let id = server.create(&json!({ "handler": "sleep", "parameters": { "seconds": 60 } }));
    server.wait(&id, "running");
    assert_says(&server.command(&id, "pause").expect(409), "cannot pause");
    assert_says(&server.cli().run(&["task", "pause", &id]).fails(6), "cannot pause");
    assert_eq!(server.task(&id)["status"], "running");
    server.command(&id, "cancel");
    server.wait_both(&id, "cancelled");
    assert_says(&server.command(&id, "pause").expect(409), "ended");
    server.finish();
}

#[test]
fn a_paused_task_is_not_started() {
    let server = Server::start(&[]);
    let ran = server.file("ran");
    let effect = |more| with(shell(r#"echo "$PENSUM_TASK_ID" >> "$1""#, &ran), more);
    let id = server.create(&effect(json!({ "delay": 0.6 })));
    server.command(&id, "pause").expect(200);
    // A repeat is harmless.
    server.command(&id, "pause").expect(200);
    throughout("it waits beyond its time", Duration::from_millis(1500), || {
        server.task(&id)["status"] == "paused"
    });
    assert!(lines(&ran).is_empty());
    server.command(&id, "execute").expect(409);
    server.cli().run(&["task", "resume", &id]).expect(0);
    server.wait_both(&id, "completed");
    assert_says(&server.command(&id, "resume").expect(409), "ended");
    server.finish();
}

#[test]
fn cancelling_ends_a_command_with_all_its_processes() {
    let server = Server::start(&[]);
    let file = server.file("pids");
    let script = r#"sh -c 'echo $$ >> "$1"; while :; do sleep 0.5; done' sh "$1" & echo $$ >> "$1"; wait"#;
    let by_http = server.create(&shell(script, &file));
    let by_cli = server.create(&shell(script, &file));
    let pids = eventually("four processes", SOON, || {
        let pids: Vec<i32> = lines(&file).iter().filter_map(|line| line.parse().ok()).collect();
        (pids.len() == 4).then_some(pids)
    });
    let began = Instant::now();
    let asked = server.http.post(
        &format!("/api/v1/tasks/{by_http}/cancel"),
        &json!({ "reason": "no longer needed" }),
    );
    assert!(matches!(asked.status, 200 | 202), "{asked:?}");
    server
        .cli()
        .run(&["task", "cancel", &by_cli, "--reason", "not this one either", "--wait"])
        .expect(0);
    for (id, reason) in [(&by_http, "no longer needed"), (&by_cli, "not this one either")] {
        let task = server.wait_both(id, "cancelled");
        assert_eq!(task["error"]["message"], reason, "{task}");
        assert_eq!(server.events(id).iter().filter(|kind| *kind == "cancelled").count(), 1);
    }
    eventually("all processes to be gone", SOON, || {
        (marked(&file).is_empty() && !pids.iter().any(|pid| alive(*pid))).then_some(())
    });
    assert!(
        began.elapsed() < Duration::from_secs(9),
        "SIGTERM is enough for them: {:?}",
        began.elapsed()
    );
    server.command(&by_http, "cancel").expect(200);
    server.finish();
}

#[test]
fn a_paused_command_can_be_cancelled() {
    let server = Server::start(&[]);
    let gate = server.file("gate");
    let id = server.create(&shell(SPIN, &gate));
    let pid = server.pid_in(&server.file("gate.pid"));
    let answer = server.command(&id, "pause");
    assert!(matches!(answer.status, 200 | 202), "{answer:?}");
    eventually("the process to be stopped", SOON, || {
        (state(pid) == Some('T')).then_some(())
    });
    server.cli().run(&["task", "cancel", &id]).expect(0);
    server.wait_both(&id, "cancelled");
    assert!(!alive(pid));
    server.finish();
}

#[test]
fn cancelling_a_task_that_waits_for_its_retry_keeps_it_from_running() {
    let server = Server::start(&[]);
    let failing = json!({ "handler": "fail", "retry": { "strategy": "fixed", "delay": 2, "jitter": false } });
    let id = server.create(&failing);
    server.wait_both(&id, "retrying");
    let task = server.command(&id, "cancel").expect(200);
    assert_eq!(task["status"], "cancelled");
    throughout("it stays cancelled", Duration::from_millis(2500), || {
        server.task(&id)["status"] == "cancelled"
    });
    assert_eq!(server.task(&id)["attempt"], 1);
    let other = server.create(&json!({ "handler": "noop", "delay": "1h" }));
    server.cli().run(&["task", "cancel", &other]).expect(0);
    server.wait_both(&other, "cancelled");
    let done = server.create(&json!({ "handler": "noop" }));
    server.wait(&done, "completed");
    assert_says(&server.cli().run(&["task", "cancel", &done]).fails(6), "completed");
    server.finish();
}
