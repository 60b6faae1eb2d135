//! What a killed node leaves is there when the next one starts, and goes on as it should.

use std::time::Duration;

use serde_json::json;

use crate::harness::{
    SOON, SPIN, Server, alive, eventually, lines, seconds_between, shell, state, text, throughout, with,
};

const WAIT_FOR_FILE: &str = r#"echo $$ > "$1.pid"; until [ -e "$1" ]; do sleep 0.05; done"#;

#[test]
fn everything_that_waits_survives_a_kill() {
    let mut server = Server::start(&[]);
    let noop = |more| with(json!({ "handler": "noop" }), more);
    let retry = json!({ "strategy": "fixed", "delay": 4, "jitter": false });
    let retrying = server.create(&json!({ "handler": "fail", "parameters": { "times": 1 }, "retry": retry }));
    let exhausted = server.create(&json!({ "handler": "fail", "max_retries": 0 }));
    server.wait(&retrying, "retrying");
    server.wait(&exhausted, "failed");
    let daily = noop(json!({ "unique": { "key": "daily", "ttl": "1h" } }));
    let held = server.create(&daily);
    server.wait(&held, "completed");

    let delayed = server.create(&noop(json!({ "delay": 4 })));
    let dependent = server.create(&noop(json!({ "depends_on": [delayed, retrying] })));
    let doomed = server.create(&noop(
        json!({ "delay": "1h", "expires_at": crate::harness::time_in(Duration::from_secs(4)) }),
    ));
    let paused = server.create(&noop(json!({ "delay": 0.5 })));
    server.command(&paused, "pause").expect(200);
    let cancelled = server.create(&noop(json!({ "delay": 1 })));
    server.command(&cancelled, "cancel").expect(200);
    let once = noop(json!({ "delay": "1h", "unique": { "key": "once" } }));
    let unique = server.create(&once);
    let signalled = server.create(&noop(json!({ "delay": "1h" })));
    server
        .http
        .post(
            &format!("/api/v1/tasks/{signalled}/signal"),
            &json!({ "name": "go", "payload": [1, 2] }),
        )
        .expect(200);
    let before = server.task(&retrying);
    server.kill();
    server.verify();
    server.restart();

    let after = server.task(&retrying);
    for field in ["attempt", "retry_count", "run_at", "error"] {
        if after["status"] == "retrying" {
            assert_eq!(after[field], before[field], "{field} of a retrying task");
        }
    }
    assert_eq!(server.task(&cancelled)["status"], "cancelled");
    let dead = server.http.all("/api/v1/dead-letters");
    assert_eq!(
        dead.iter().map(|task| text(&task["id"])).collect::<Vec<_>>(),
        [exhausted]
    );
    assert_eq!(
        text(&server.http.post("/api/v1/tasks", &once).expect(200)["id"]),
        unique
    );
    assert_eq!(text(&server.http.post("/api/v1/tasks", &daily).expect(200)["id"]), held);
    assert!(server.events(&signalled).iter().any(|kind| kind == "signalled"));
    throughout("it is still paused", Duration::from_millis(700), || {
        server.task(&paused)["status"] == "paused"
    });
    server.command(&paused, "resume").expect(200);
    server.wait_both(&paused, "completed");

    let done = server.wait_both(&delayed, "completed");
    let waited = seconds_between(&done["created_at"], &done["started_at"]);
    assert!((4.0..25.0).contains(&waited), "started after {waited} s");
    let done = server.wait_both(&retrying, "completed");
    assert_eq!(
        (&done["attempt"], &done["retry_count"]),
        (&json!(2), &json!(1)),
        "{done}"
    );
    server.wait_both(&dependent, "completed");
    assert_eq!(server.wait_both(&doomed, "cancelled")["error"]["type"], "expired");
    server.finish();
}

#[test]
fn what_ran_when_the_node_was_killed_runs_again_and_its_orphans_are_gone() {
    let mut server = Server::start(&[]);
    let gate = server.file("gate");
    let id = server.create(&shell(WAIT_FOR_FILE, &gate));
    let orphan = server.pid_in(&server.file("gate.pid"));
    // A claim is on disk with the next commit at the latest.
    server.create(&json!({ "handler": "noop" }));
    server.kill();
    assert!(alive(orphan), "a command outlives a killed node");
    std::fs::remove_file(server.file("gate.pid")).unwrap();
    server.verify();
    server.restart();
    eventually("the orphan to be gone", SOON, || (!alive(orphan)).then_some(()));
    let second = server.pid_in(&server.file("gate.pid"));
    assert_ne!(second, orphan);
    std::fs::write(&gate, "").unwrap();
    let task = server.wait_both(&id, "completed");
    assert_eq!(
        task["retry_count"], 0,
        "a crash of the node is no failure of the task: {task}"
    );
    let kinds = server.events(&id);
    assert_eq!(kinds.iter().filter(|kind| *kind == "crashed").count(), 1, "{kinds:?}");
    let executions = server.http.all(&format!("/api/v1/tasks/{id}/executions"));
    let statuses: Vec<_> = executions.iter().map(|execution| text(&execution["status"])).collect();
    assert_eq!(statuses, ["crashed", "completed"]);
    server.finish();
}

#[test]
fn a_paused_command_stays_paused_and_a_cancelled_one_cancelled() {
    let mut server = Server::start(&[]);
    let (held, stopped) = (server.file("held"), server.file("stopped"));
    let paused = server.create(&shell(SPIN, &held));
    let deaf = r#"trap "" TERM; echo $$ > "$1.pid"; until [ -e "$1" ]; do sleep 0.05; done"#;
    let cancelled = server.create(&shell(deaf, &stopped));
    let pid = server.pid_in(&server.file("held.pid"));
    let deaf_pid = server.pid_in(&server.file("stopped.pid"));
    server.cli().run(&["task", "pause", &paused]).expect(0);
    eventually("it to stand still", SOON, || (state(pid) == Some('T')).then_some(()));
    server.wait(&paused, "paused");
    let asked = server.command(&cancelled, "cancel");
    assert_eq!(
        asked.status, 202,
        "it does not listen to SIGTERM, so it takes its time: {asked:?}"
    );
    server.kill();
    server.restart();
    server.wait_both(&cancelled, "cancelled");
    throughout("it is still paused", Duration::from_millis(500), || {
        server.task(&paused)["status"] == "paused"
    });
    eventually("both orphans to be gone", SOON, || {
        (!alive(pid) && !alive(deaf_pid)).then_some(())
    });
    std::fs::write(&held, "").unwrap();
    server.command(&paused, "resume").expect(200);
    server.wait_both(&paused, "completed");
    server.finish();
}

#[test]
fn a_bulk_command_goes_on_after_a_kill() {
    let mut server = Server::start(&[]);
    let waiting = json!({ "handler": "noop", "delay": "1h", "tags": ["t"] });
    for _ in 0..3 {
        server.create_all(&vec![waiting.clone(); 1000]);
    }
    let body = json!({ "action": "cancel", "filter": { "tag": "t" } });
    let id = text(&server.http.post("/api/v1/tasks/bulk", &body).expect(202)["task_id"]);
    std::thread::sleep(Duration::from_millis(30));
    server.kill();
    server.restart();
    server.wait(&id, "completed");
    let counts = server.http.get("/api/v1/system/status").expect(200)["task_counts"].take();
    assert_eq!(
        (&counts["cancelled"], &counts["pending"]),
        (&json!(3000), &json!(0)),
        "{counts}"
    );
    server.finish();
}

#[test]
fn keys_are_free_and_the_order_stands_after_a_kill() {
    let mut server = Server::start(&["--slots", "1"]);
    let (gate, order) = (server.file("gate"), server.file("order"));
    let holder = server.create(&with(
        shell(WAIT_FOR_FILE, &gate),
        json!({ "key": "k", "priority": "critical" }),
    ));
    server.pid_in(&server.file("gate.pid"));
    let effect = |more| with(shell(r#"echo "$PENSUM_TASK_ID" >> "$1""#, &order), more);
    let ids: Vec<String> = [
        json!({ "priority": "low", "key": "k" }),
        json!({ "priority": "normal" }),
        json!({ "priority": "urgent", "key": "k" }),
        json!({ "priority": "normal", "deadline": crate::harness::time_in(Duration::from_secs(600)) }),
        json!({ "priority": "high", "key": "k" }),
    ]
    .into_iter()
    .map(|more| server.create(&effect(more)))
    .collect();
    server.kill();
    server.restart();
    std::fs::write(&gate, "").unwrap();
    for id in ids.iter().chain([&holder]) {
        server.wait_both(id, "completed");
    }
    // A key is free only once the end of its task is on disk; until then the others are next.
    let ran = lines(&order);
    let among = |some: &[usize]| -> Vec<usize> {
        let at = |id: &String| ids.iter().position(|other| other == id).unwrap();
        ran.iter().map(at).filter(|at| some.contains(at)).collect()
    };
    assert_eq!((among(&[0, 2, 4]), among(&[1, 3])), (vec![2, 4, 0], vec![3, 1]));
    server.finish();
}
