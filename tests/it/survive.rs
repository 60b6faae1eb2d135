//! What a node acknowledged survives its violent death.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Http, Random, Server, eventually, items, lines, long, shell, text};

/// Threads that submit at the same time.
const CLIENTS: u64 = 4;
/// Largest batch.
const BATCH_MAX: u64 = 40;

/// What the threads share.
struct Load {
    /// Where the node listens now.
    base: RwLock<String>,
    /// How many tasks are to be submitted.
    total: u64,
    /// How many were handed out to threads.
    given: AtomicU64,
    /// Acknowledged ids, with the number of the task.
    acknowledged: Mutex<Vec<(u64, String)>>,
    /// Tasks with a visible effect.
    with_effect: Mutex<BTreeSet<String>>,
    /// Requests that were repeated after a broken connection.
    repeated: AtomicU64,
    effects: PathBuf,
}

#[test]
fn acknowledged_tasks_survive_kills_and_end_exactly_once() {
    let (total, kills) = if long() { (20_000, 20) } else { (2_000, 5) };
    let mut random = Random::new();
    let mut server = Server::start(&["--slots", "16"]);
    let load = Load {
        base: RwLock::new(server.http.base.clone()),
        total,
        given: AtomicU64::new(0),
        acknowledged: Mutex::new(Vec::new()),
        with_effect: Mutex::new(BTreeSet::new()),
        repeated: AtomicU64::new(0),
        effects: server.file("effects"),
    };
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (load, random) = (&load, Random::of(random.next()));
            scope.spawn(move || submit(load, client, random));
        }
        // Most kills fall into the submission, the rest into the work that is left.
        let early = kills * 4 / 5;
        for kill in 1..=kills {
            if kill <= early {
                let due = total * kill / (early + 1);
                eventually("the clients to get on", Duration::from_secs(120), || {
                    (load.acknowledged.lock().unwrap().len() as u64 >= due).then_some(())
                });
            }
            std::thread::sleep(Duration::from_millis(random.below(150)));
            server.kill();
            server.restart();
            load.base.write().unwrap().clone_from(&server.http.base);
        }
    });
    check(&server, &load);
    println!(
        "{total} tasks, {kills} kills, {} requests repeated",
        load.repeated.load(Ordering::Relaxed)
    );
    server.finish();
}

/// One client: takes tasks and submits them until there are none left, each request under a key of its own.
fn submit(load: &Load, client: u64, mut random: Random) {
    let mut http = Http::new(load.base.read().unwrap().clone());
    for request in 0.. {
        let wanted = if random.chance(60) {
            1
        } else {
            1 + random.below(BATCH_MAX)
        };
        let from = load.given.fetch_add(wanted, Ordering::Relaxed);
        let numbers = from..(from + wanted).min(load.total);
        if numbers.is_empty() {
            return;
        }
        let key = format!("client-{client}-request-{request}");
        let tasks: Vec<Value> = numbers.clone().map(|number| task(number, &load.effects)).collect();
        let ids = acknowledged(load, &mut http, &key, &tasks);
        // A client whose answer was lost asks again, at whatever time.
        if random.chance(5) {
            assert_eq!(
                acknowledged(load, &mut http, &key, &tasks),
                ids,
                "the same key gave other tasks"
            );
        }
        for (number, id) in numbers.zip(ids) {
            if has_effect(number) {
                load.with_effect.lock().unwrap().insert(id.clone());
            }
            load.acknowledged.lock().unwrap().push((number, id));
        }
    }
}

fn has_effect(number: u64) -> bool {
    number % 7 == 3
}

fn task(number: u64, effects: &Path) -> Value {
    let mut task = match number % 7 {
        3 => shell(r#"echo "$PENSUM_TASK_ID" >> "$1""#, effects),
        5 => json!({ "handler": "log", "parameters": { "message": format!("number {number}") } }),
        _ => json!({ "handler": "noop" }),
    };
    task["name"] = json!(format!("number {number}"));
    task
}

/// Submits until it is acknowledged, under the same key.
fn acknowledged(load: &Load, http: &mut Http, key: &str, tasks: &[Value]) -> Vec<String> {
    let (path, body) = match tasks {
        [one] => ("/api/v1/tasks", one.clone()),
        many => ("/api/v1/tasks/batch", json!({ "tasks": many })),
    };
    eventually("an acknowledgement", Duration::from_secs(60), || {
        let answer = http.send(Method::POST, path, Some(&body), &[("idempotency-key", key)]);
        match answer {
            Ok(answer) if answer.status == 201 || answer.status == 200 => {
                let replayed = answer.header("idempotency-replayed") == Some("true");
                assert_eq!(
                    answer.status == 200,
                    replayed,
                    "200 is the answer to a repeat, and only to that"
                );
                match path {
                    "/api/v1/tasks" => Some(vec![text(&answer.body["id"])]),
                    _ => Some(items(&answer.body["ids"]).iter().map(text).collect()),
                }
            }
            Ok(answer) if answer.status == 503 => None,
            Ok(answer) => panic!("{path} answered {}: {}", answer.status, answer.body),
            Err(_) => {
                load.repeated.fetch_add(1, Ordering::Relaxed);
                http.base.clone_from(&load.base.read().unwrap());
                None
            }
        }
    })
}

fn check(server: &Server, load: &Load) {
    let acknowledged = load.acknowledged.lock().unwrap();
    let ids: BTreeSet<&str> = acknowledged.iter().map(|(_, id)| id.as_str()).collect();
    assert_eq!(ids.len() as u64, load.total, "every task has an id of its own");

    let longest = Duration::from_secs(if long() { 600 } else { 60 });
    eventually("all tasks to end", longest, || {
        let counts = server.http.get("/api/v1/system/status").expect(200)["task_counts"].take();
        let ended = ["completed", "failed", "cancelled"]
            .iter()
            .filter_map(|status| counts[*status].as_u64())
            .sum::<u64>();
        (ended >= load.total).then_some(())
    });
    let status = server.http.get("/api/v1/system/status").expect(200);
    assert_eq!(status["task_counts"]["completed"], load.total, "{status}");
    assert_eq!(
        status["total_tasks"], load.total,
        "a repeated key made a second task: {status}"
    );
    assert_eq!(status["persistence_stats"]["completed"], load.total, "{status}");
    assert_eq!(server.cli().json(&["status"])["total_tasks"], load.total);

    let listed = server.http.all("/api/v1/tasks");
    let mut names = BTreeMap::new();
    for task in &listed {
        assert_eq!(task["status"], "completed", "{task}");
        *names.entry(text(&task["name"])).or_insert(0) += 1;
    }
    assert!(names.values().all(|count| *count == 1), "a task was made twice");
    let found: BTreeSet<String> = listed.iter().map(|task| text(&task["id"])).collect();
    assert_eq!((found.len(), listed.len()), (ids.len(), ids.len()));
    assert!(
        found.iter().all(|id| ids.contains(id.as_str())),
        "a task that nobody submitted"
    );

    for id in &ids {
        let events = server.events(id);
        let ends = events
            .iter()
            .filter(|kind| matches!(kind.as_str(), "completed" | "failed" | "cancelled"))
            .count();
        assert_eq!(ends, 1, "task {id}: {events:?}");
    }
    let effects: BTreeSet<String> = lines(&load.effects).into_iter().collect();
    let wanted = load.with_effect.lock().unwrap();
    let missing: Vec<_> = wanted.difference(&effects).collect();
    assert!(missing.is_empty(), "completed without an effect: {missing:?}");
    assert!(effects.is_subset(&wanted), "an effect of a task that nobody submitted");
}
