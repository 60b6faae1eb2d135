//! Everything at once, at random: tasks of all kinds, commands on any of them, kills and stops between. Afterwards
//! every task has ended as its history and its dependencies say.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Random, Server, eventually, items, long, text, with};

const COMMANDS: [&str; 6] = ["cancel", "pause", "resume", "retry", "execute", "signal"];
const PRIORITIES: [&str; 5] = ["low", "normal", "high", "urgent", "critical"];
const POLICIES: [&str; 3] = ["cancel", "ignore", "run"];
const CONFLICTS: [&str; 3] = ["keep", "replace", "reject"];

/// What the client knows of.
#[derive(Default)]
struct Known {
    ids: Vec<String>,
    deleted: BTreeSet<String>,
}

#[test]
fn random_commands_and_kills_leave_every_task_with_a_consistent_end() {
    let (operations, ends) = if long() { (6_000, 25) } else { (700, 5) };
    let mut random = Random::new();
    let mut server = Server::start(&["--slots", "6", "--grace", "0"]);
    let mut known = Known::default();
    for operation in 1..=operations {
        match random.below(100) {
            0..45 => create(&server, &mut random, &mut known),
            45..85 => command(&server, &mut random, &known),
            85..90 => change(&server, &mut random, &known),
            90..92 => delete(&server, &mut random, &mut known),
            _ => look(&server, &mut random, &known),
        }
        if operation % (operations / ends) == 0 {
            if random.chance(70) {
                server.kill()
            } else {
                server.stop()
            }
            if random.chance(30) {
                server.verify();
            }
            server.restart();
        }
    }
    settle(&server);
    check(&server, &known);
    println!("{} tasks, {} deleted", known.ids.len(), known.deleted.len());
    server.finish();
}

fn pick<'a>(random: &mut Random, from: &'a [impl AsRef<str>]) -> &'a str {
    from[random.below(from.len() as u64) as usize].as_ref()
}

fn handler(random: &mut Random) -> Value {
    let quick = json!({ "strategy": "fixed", "delay": 0.02, "jitter": false });
    match random.below(10) {
        0..4 => json!({ "handler": "noop" }),
        4..6 => json!({ "handler": "sleep", "parameters": { "seconds": random.below(60) as f64 / 1000.0 } }),
        6..8 => json!({ "handler": "fail", "retry": quick, "max_retries": random.below(3),
            "parameters": { "times": random.below(3) } }),
        8 => json!({ "handler": "log", "parameters": { "message": "hello" } }),
        _ => json!({ "handler": "command", "retry": quick, "max_retries": 1,
            "parameters": { "program": "sh", "args": ["-c", format!("exit {}", random.below(2))] } }),
    }
}

fn create(server: &Server, random: &mut Random, known: &mut Known) {
    let size = if random.chance(70) { 1 } else { 2 + random.below(7) };
    let tasks: Vec<Value> = (0..size)
        .map(|item| {
            let mut task = with(handler(random), json!({ "priority": pick(random, &PRIORITIES) }));
            task["ref"] = json!(format!("item-{item}"));
            if random.chance(30) {
                task["key"] = json!(format!("key-{}", random.below(4)));
            }
            if random.chance(30) {
                task["delay"] = json!(random.below(300) as f64 / 1000.0);
            }
            if random.chance(10) {
                let conflict = pick(random, &CONFLICTS);
                task["unique"] = json!({ "key": format!("u-{}", random.below(3)), "on_conflict": conflict });
            }
            let mut on: Vec<String> = Vec::new();
            if item > 0 && random.chance(40) {
                on.push(format!("item-{}", random.below(item)));
            }
            let living: Vec<&String> = known
                .ids
                .iter()
                .rev()
                .take(30)
                .filter(|id| !known.deleted.contains(*id))
                .collect();
            if !living.is_empty() && random.chance(40) {
                on.push(pick(random, &living).to_owned());
            }
            task["depends_on"] = json!(on);
            task["on_dependency_failure"] = json!(pick(random, &POLICIES));
            task
        })
        .collect();
    let answer = server.http.post("/api/v1/tasks/batch", &json!({ "tasks": tasks }));
    match answer.status {
        200 | 201 => {
            for id in items(&answer.body["ids"]) {
                let id = text(id);
                if !known.ids.contains(&id) {
                    known.ids.push(id);
                }
            }
        }
        // A unique key was taken, by a task of before or by one of the batch.
        409 | 422 => assert!(answer.body.to_string().contains("unique"), "{}", answer.body),
        other => panic!("{other}: {}", answer.body),
    }
}

fn command(server: &Server, random: &mut Random, known: &Known) {
    if known.ids.is_empty() {
        return;
    }
    let (id, command) = (pick(random, &known.ids), pick(random, &COMMANDS));
    let body = if command == "signal" {
        json!({ "name": "go" })
    } else {
        json!({})
    };
    let answer = server.http.post(&format!("/api/v1/tasks/{id}/{command}"), &body);
    let expected = if known.deleted.contains(id) {
        vec![404]
    } else {
        vec![200, 202, 409]
    };
    assert!(expected.contains(&answer.status), "{command}: {answer:?}");
}

fn change(server: &Server, random: &mut Random, known: &Known) {
    if known.ids.is_empty() {
        return;
    }
    let id = pick(random, &known.ids);
    let answer = server.http.patch(
        &format!("/api/v1/tasks/{id}"),
        &json!({ "priority": pick(random, &PRIORITIES) }),
    );
    let expected = if known.deleted.contains(id) {
        vec![404]
    } else {
        vec![200, 409]
    };
    assert!(expected.contains(&answer.status), "{answer:?}");
}

fn delete(server: &Server, random: &mut Random, known: &mut Known) {
    if known.ids.is_empty() {
        return;
    }
    let id = pick(random, &known.ids).to_owned();
    let answer = server
        .http
        .send(Method::DELETE, &format!("/api/v1/tasks/{id}"), None, &[])
        .unwrap();
    let expected = if known.deleted.contains(&id) {
        vec![404]
    } else {
        vec![204, 409]
    };
    assert!(expected.contains(&answer.status), "{answer:?}");
    if answer.status == 204 {
        known.deleted.insert(id);
    }
}

fn look(server: &Server, random: &mut Random, known: &Known) {
    if known.ids.is_empty() {
        return;
    }
    let id = pick(random, &known.ids);
    let part = pick(
        random,
        &["", "/explain", "/events", "/executions", "/dependencies", "/logs"],
    );
    let expected = if known.deleted.contains(id) { 404 } else { 200 };
    server.http.get(&format!("/api/v1/tasks/{id}{part}")).expect(expected);
}

/// Lets everything go on and end.
fn settle(server: &Server) {
    let end = Duration::from_secs(if long() { 300 } else { 60 });
    eventually("every task to end", end, || {
        for task in server.http.all("/api/v1/tasks?status=paused") {
            server.command(&text(&task["id"]), "resume");
        }
        let counts = server.http.get("/api/v1/system/status").expect(200)["task_counts"].take();
        let open = ["pending", "ready", "running", "retrying", "paused"];
        open.iter().all(|status| counts[*status] == 0).then_some(())
    });
}

fn is_end(kind: &str) -> bool {
    matches!(kind, "completed" | "failed" | "cancelled")
}

fn check(server: &Server, known: &Known) {
    let all: BTreeMap<String, Value> = server
        .http
        .all("/api/v1/tasks")
        .into_iter()
        .map(|task| (text(&task["id"]), task))
        .collect();
    let expected: BTreeSet<&String> = known.ids.iter().filter(|id| !known.deleted.contains(*id)).collect();
    assert!(
        expected.iter().copied().eq(all.keys()),
        "as many tasks as were acknowledged"
    );
    let status = server.http.get("/api/v1/system/status").expect(200);
    assert_eq!(status["total_tasks"], all.len());
    for kind in ["completed", "failed", "cancelled"] {
        let listed = all.values().filter(|task| task["status"] == kind).count();
        assert_eq!(status["task_counts"][kind], listed, "{kind}");
        assert_eq!(
            server.http.all(&format!("/api/v1/tasks?status={kind}")).len(),
            listed,
            "{kind}"
        );
    }
    let dead = server.http.all("/api/v1/dead-letters").len();
    assert_eq!(status["task_counts"]["failed"], dead);

    let events: BTreeMap<&String, Vec<String>> = all.keys().map(|id| (id, server.events(id))).collect();
    for (id, kinds) in &events {
        let describe = || format!("{id}: {kinds:?}, {}", all[*id]);
        for pair in kinds.windows(2).filter(|pair| is_end(&pair[0])) {
            assert!(
                matches!(pair[1].as_str(), "retried" | "updated"),
                "{} after {}: {}",
                pair[1],
                pair[0],
                describe()
            );
        }
        let last = kinds
            .iter()
            .rev()
            .find(|kind| is_end(kind))
            .unwrap_or_else(|| panic!("no end: {}", describe()));
        assert_eq!(all[*id]["status"], last.as_str(), "{}", describe());
        let executions = server.http.all(&format!("/api/v1/tasks/{id}/executions"));
        assert_eq!(all[*id]["attempt"], executions.len(), "{executions:?}: {}", describe());
        assert!(
            executions.iter().all(|execution| execution["status"] != "running"),
            "{executions:?}"
        );
    }
    let retried = |id: &String| events[id].iter().any(|kind| kind == "retried");
    for (id, task) in all.iter().filter(|(id, _)| !retried(id)) {
        for dependency in items(&task["depends_on"]).iter().map(text) {
            let Some(found) = all.get(&dependency) else { continue };
            let (ended, policy) = (text(&task["status"]), text(&task["on_dependency_failure"]));
            if policy == "cancel" && ended == "completed" {
                assert_eq!(
                    found["status"], "completed",
                    "{id} ran although {dependency} did not complete"
                );
            }
            let order = crate::harness::seconds_between(&found["finished_at"], &task["finished_at"]);
            assert!(
                order >= 0.0 || ended != "completed" || retried(&dependency),
                "{id} ended before {dependency}"
            );
        }
    }
}
