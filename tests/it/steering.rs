//! Changing, deleting, bulk commands, and the explanations.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{SOON, Server, assert_says, eventually, items, shell, text, with};

const WAIT_FOR_FILE: &str = r#"until [ -e "$1" ]; do sleep 0.05; done"#;

#[test]
fn a_task_can_be_changed_as_far_as_its_state_allows() {
    let server = Server::start(&[]);
    let id =
        server.create(&json!({ "handler": "log", "delay": "1h", "name": "old", "parameters": { "message": "a" } }));
    let path = format!("/api/v1/tasks/{id}");
    let version = server.task(&id)["version"].as_u64().unwrap();
    let change = json!({ "name": "new", "priority": "urgent", "parameters": { "message": "b" }, "tags": ["x"] });
    let tag = format!("\"{version}\"");
    let patch = |body: &Value, tag: &str| {
        server
            .http
            .send(Method::PATCH, &path, Some(body), &[("if-match", tag)])
            .unwrap()
    };
    let changed = patch(&change, &tag).expect(200);
    assert_eq!(
        (&changed["name"], &changed["priority"], &changed["tags"]),
        (&json!("new"), &json!("urgent"), &json!(["x"]))
    );
    assert!(changed["version"].as_u64().unwrap() > version);
    assert_says(&patch(&change, &tag).expect(412), "version");
    server.http.patch(&path, &json!({ "status": "completed" })).expect(422);
    assert_says(
        &server.http.patch(&path, &json!({ "max_retries": 5000 })).expect(422),
        "max_retries",
    );

    let told = server.cli().json(&[
        "task",
        "update",
        &id,
        "--description",
        "by hand",
        "--priority",
        "low",
        "--clear",
        "name",
    ]);
    assert_eq!(
        (&told["description"], &told["priority"], &told["name"]),
        (&json!("by hand"), &json!("low"), &json!("log"))
    );
    server.command(&id, "execute").expect(200);
    assert_eq!(server.wait_both(&id, "completed")["result"], "b");
    // After its end only what describes it.
    server.http.patch(&path, &json!({ "description": "done" })).expect(200);
    assert_says(
        &server.http.patch(&path, &json!({ "priority": "high" })).expect(409),
        "it has completed; only name",
    );
    server
        .cli()
        .run(&["task", "update", &id, "--priority", "high"])
        .fails(6);

    let gate = server.file("gate");
    let running = server.create(&shell(WAIT_FOR_FILE, &gate));
    server.wait(&running, "running");
    assert_says(
        &server
            .http
            .patch(&format!("/api/v1/tasks/{running}"), &json!({ "queue": "other" }))
            .expect(409),
        "running",
    );
    std::fs::write(&gate, "").unwrap();
    server.wait(&running, "completed");
    server.finish();
}

#[test]
fn a_deleted_task_is_gone_and_what_is_needed_stays() {
    let server = Server::start(&[]);
    let gate = server.file("gate");
    let running = server.create(&shell(WAIT_FOR_FILE, &gate));
    let child = server.create(&json!({ "handler": "noop", "depends_on": [running] }));
    let spare = server.create(&json!({ "handler": "noop", "delay": "1h" }));
    server.wait(&running, "running");
    let path = |id: &str| format!("/api/v1/tasks/{id}");
    server.http.delete(&path(&running)).expect(409);
    server.cli().run(&["task", "delete", &running]).fails(6);
    server.http.delete(&path(&spare)).expect(204);
    server.http.delete(&path(&spare)).expect(404);
    server.cli().run(&["task", "get", &spare]).fails(3);
    for part in ["", "/events", "/executions", "/logs", "/explain", "/dependencies"] {
        assert_says(&server.http.get(&format!("{}{part}", path(&spare))).expect(404), &spare);
    }
    std::fs::write(&gate, "").unwrap();
    server.wait(&child, "completed");
    server.cli().run(&["task", "delete", &running]).expect(0);
    server.http.get(&path(&running)).expect(404);
    assert_eq!(server.task(&child)["status"], "completed");
    assert_eq!(server.http.get("/api/v1/system/status").expect(200)["total_tasks"], 1);
    server.finish();
}

#[test]
fn bulk_commands_reach_what_matches_and_nothing_else() {
    let server = Server::start(&[]);
    let waiting = |tag: &str| json!({ "handler": "noop", "delay": "1h", "tags": [tag] });
    let mine = server.create_all(&vec![waiting("mine"); 450]);
    let yours = server.create_all(&vec![waiting("yours"); 20]);
    let failing = json!({ "handler": "fail", "max_retries": 0, "queue": "bad", "parameters": { "times": 1 } });
    let bad = server.create_all(&vec![failing; 30]);
    for id in &bad {
        server.wait(id, "failed");
    }
    let bulk = |body: Value| server.http.post("/api/v1/tasks/bulk", &body);
    let counted = bulk(json!({ "action": "cancel", "filter": { "tag": "mine" }, "dry_run": true })).expect(200);
    assert_eq!(
        (&counted["matched"], &counted["task_id"]),
        (&json!(450), &json!(null)),
        "{counted}"
    );
    assert_eq!(server.task(&mine[0])["status"], "pending", "a dry run does nothing");
    bulk(json!({ "action": "cancel", "filter": {} })).expect(422);
    bulk(json!({ "action": "cancel", "filter": { "tga": "mine" } })).expect(422);
    server.cli().run(&["task", "cancel", "--filter", "tga=mine"]).fails(2);

    let begun = bulk(json!({ "action": "cancel", "filter": { "tag": "mine" } })).expect(202);
    server.wait(&text(&begun["task_id"]), "completed");
    let count = |query: &str| server.http.all(&format!("/api/v1/tasks?{query}")).len();
    assert_eq!(count("tag=mine&status=cancelled"), 450);
    assert_eq!(count("tag=yours&status=pending"), 20);

    server
        .cli()
        .run(&["task", "pause", "--filter", "tag=yours", "--wait"])
        .expect(0);
    assert_eq!(count("tag=yours&status=paused"), 20);
    let begun = bulk(json!({ "action": "resume", "filter": { "tag": "yours" } })).expect(202);
    server.wait(&text(&begun["task_id"]), "completed");
    assert_eq!(count("tag=yours&status=pending"), 20);

    let told = server
        .cli()
        .run(&["dlq", "retry", "--all", "--queue", "bad", "--dry-run"])
        .expect(0);
    assert!(told.contains("30"), "{told}");
    server
        .cli()
        .run(&["task", "retry", "--filter", "status=failed,queue=bad", "--wait"])
        .expect(0);
    for id in &bad {
        assert_eq!(server.wait(id, "completed")["attempt"], 2);
    }
    server
        .cli()
        .run(&["task", "delete", "--filter", "tag=mine", "--yes", "--wait"])
        .expect(0);
    assert_eq!(count("tag=mine"), 0);
    server.http.get(&format!("/api/v1/tasks/{}", mine[7])).expect(404);
    assert_eq!(server.task(&yours[0])["status"], "pending");
    server.finish();
}

#[test]
fn a_bulk_command_runs_once_for_one_idempotency_key() {
    let server = Server::start(&[]);
    server.create_all(&vec![json!({ "handler": "noop", "delay": "1h", "tags": ["t"] }); 3]);
    let body = json!({ "action": "cancel", "filter": { "tag": "t" } });
    let send = |body: &Value| {
        server
            .http
            .send(
                Method::POST,
                "/api/v1/tasks/bulk",
                Some(body),
                &[("idempotency-key", "once")],
            )
            .unwrap()
    };
    let first = send(&body);
    let again = send(&body);
    assert_eq!(text(&first.expect(202)["task_id"]), text(&again.body["task_id"]));
    send(&json!({ "action": "pause", "filter": { "tag": "t" } })).expect(409);
    server.finish();
}

#[test]
fn every_closed_gate_is_explained() {
    let server = Server::start(&["--slots", "1"]);
    let gate = server.file("gate");
    let running = server.create(&shell(WAIT_FOR_FILE, &gate));
    server.wait(&running, "running");
    let noop = |more| server.create(&with(json!({ "handler": "noop" }), more));
    let timed = noop(json!({ "delay": "1h" }));
    let dependent = noop(json!({ "depends_on": [running] }));
    let paused = noop(json!({ "delay": "1h" }));
    server.command(&paused, "pause").expect(200);
    let crowded = noop(json!({}));
    let foreign = server.create(&json!({ "handler": "render-on-gpu" }));
    let capable = noop(json!({ "requires": ["gpu"] }));
    for (id, gate, says) in [
        (&running, "running", "runs"),
        (&timed, "time", "start time"),
        (&dependent, "dependencies", running.as_str()),
        (&paused, "paused", "resume"),
        (&crowded, "slots", "1 slots"),
        (&foreign, "capability", "`render-on-gpu`"),
        (&capable, "capability", "`gpu`"),
    ] {
        for explanation in [
            server.task(&format!("{id}/explain")),
            server.cli().json(&["task", "explain", id]),
        ] {
            let gates = items(&explanation["gates"]);
            let found = gates
                .iter()
                .find(|found| found["gate"] == gate)
                .unwrap_or_else(|| panic!("{explanation}"));
            assert_says(&found["message"], says);
            assert!(!text(&explanation["summary"]).is_empty());
        }
        let printed = server.cli().run(&["task", "explain", id]).expect(0);
        assert_says(&printed, &format!("- {gate}: "));
    }
    std::fs::write(&gate, "").unwrap();
    server.wait(&dependent, "completed");
    let ended = server.task(&format!("{dependent}/explain"));
    assert_eq!(ended["gates"][0]["gate"], "ended", "{ended}");
    server.finish();
}

#[test]
fn signals_wait_in_the_inbox_and_are_bounded() {
    let server = Server::start(&[]);
    let id = server.create(&json!({ "handler": "noop", "delay": "1h" }));
    let signal = json!({ "name": "approved", "payload": { "by": "ada" } });
    server
        .http
        .post(&format!("/api/v1/tasks/{id}/signal"), &signal)
        .expect(200);
    server
        .cli()
        .run(&["task", "signal", &id, "approved", "{\"by\":\"bob\"}"])
        .expect(0);
    let events = server.events(&id);
    assert_eq!(
        events.iter().filter(|kind| *kind == "signalled").count(),
        2,
        "{events:?}"
    );
    server
        .http
        .post(&format!("/api/v1/tasks/{id}/signal"), &json!({ "name": "" }))
        .expect(422);
    server.command(&id, "execute").expect(200);
    server.wait(&id, "completed");
    assert_says(
        &server
            .http
            .post(&format!("/api/v1/tasks/{id}/signal"), &signal)
            .expect(409),
        "ended",
    );
    server.finish();
}

#[test]
fn the_wait_of_the_command_line_ends_with_the_task_or_with_its_time() {
    let server = Server::start(&[]);
    let gate = server.file("gate");
    let id = server.create(&shell(WAIT_FOR_FILE, &gate));
    assert_says(
        &server.cli().run(&["task", "wait", &id, "--timeout", "0.5"]).fails(124),
        &id,
    );
    let (cli, waited) = (server.cli(), id.clone());
    let waiter = std::thread::spawn(move || cli.run(&["task", "wait", &waited, "--timeout", "60"]));
    std::thread::sleep(Duration::from_millis(100));
    std::fs::write(&gate, "").unwrap();
    waiter.join().unwrap().expect(0);
    let listed = eventually("it to be listed as completed", SOON, || {
        let told = server.cli().json(&["task", "list", "--status", "completed"]);
        (items(&told["items"]).len() == 1).then_some(told)
    });
    assert_eq!(text(&listed["items"][0]["id"]), id);
    server.finish();
}
