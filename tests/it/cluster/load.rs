//! A mixed load over several nodes, and what must be true of it afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::script;
use crate::harness::{Http, Random, eventually, items, kill_marked, lines, text, with};

/// Threads that submit, and that check, at the same time.
const CLIENTS: u64 = 4;
/// Largest batch.
const BATCH_MAX: u64 = 40;
/// How many keys the keyed tasks share.
const KEYS: u64 = 20;
/// A queue of which no more than this many tasks run at once, on all nodes together.
const NARROW: &str = "narrow";
const WIDTH: usize = 3;
/// The statuses of what has not ended.
const OPEN: [&str; 5] = ["pending", "ready", "running", "retrying", "paused"];
/// Longest wait for an acknowledgement, outages included.
const ACKNOWLEDGED_IN: Duration = Duration::from_secs(120);

/// Says in a file of the key, or of the queue, when it starts and ends, and when it is stopped before its end; a SIGKILL alone says nothing.
const SPEAKING: &str = r#"
run="$PENSUM_TASK_ID/$PENSUM_ATTEMPT/$$"
trap 'echo "stopped $run" >> "$1"; exit 143' TERM
echo "start $run" >> "$1"
sleep "$2"
echo "end $run" >> "$1"
"#;

/// Tasks of many kinds, submitted by several clients to any of the nodes.
pub(super) struct Load {
    /// Where the nodes listen now.
    bases: RwLock<Vec<String>>,
    total: u64,
    /// How many were handed out to clients.
    given: AtomicU64,
    /// Acknowledged ids, with the number of the task.
    acknowledged: Mutex<Vec<(u64, String)>>,
    /// Requests that were repeated because their answers were lost or said "later".
    repeated: AtomicU64,
    /// Between two requests of a client.
    pace: Duration,
    dir: TempDir,
}

impl Load {
    pub(super) fn new(bases: Vec<String>, total: u64) -> Load {
        Load {
            bases: RwLock::new(bases),
            total,
            given: AtomicU64::new(0),
            acknowledged: Mutex::new(Vec::new()),
            repeated: AtomicU64::new(0),
            pace: Duration::ZERO,
            dir: TempDir::with_prefix("pensum-load-").unwrap(),
        }
    }

    /// Has each client rest between two requests, so that the submission takes some time.
    pub(super) fn paced(mut self, pace: Duration) -> Load {
        self.pace = pace;
        self
    }

    /// Tells the clients that a node listens elsewhere now.
    pub(super) fn moved(&self, node: usize, base: &str) {
        self.bases.write().unwrap()[node] = base.to_owned();
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.lock().unwrap().len() as u64
    }

    pub(super) fn repeated(&self) -> u64 {
        self.repeated.load(Ordering::Relaxed)
    }

    /// Waits until this share of all tasks is acknowledged.
    #[track_caller]
    pub(super) fn wait_for_share(&self, of: u64, part: u64) {
        let due = self.total * part / of;
        eventually("the clients to get on", ACKNOWLEDGED_IN, || {
            (self.acknowledged() >= due).then_some(())
        });
    }

    /// Submits everything, while `meanwhile` does its harm.
    pub(super) fn run(&self, random: &mut Random, meanwhile: impl FnOnce(&mut Random)) {
        let base = self.bases.read().unwrap()[0].clone();
        let settings = json!({ "max_concurrent": WIDTH });
        Http::new(&base)
            .put(&format!("/api/v1/queues/{NARROW}"), &settings)
            .expect(200);
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let random = Random::of(random.next());
                scope.spawn(move || self.submit(client, random));
            }
            meanwhile(random);
        });
        println!("{} tasks, {} requests repeated", self.total, self.repeated());
    }

    /// One client: takes numbers and submits their tasks until there are none left, each request under a key of its own.
    fn submit(&self, client: u64, mut random: Random) {
        let mut http = Http::new("");
        for request in 0.. {
            let wanted = if random.chance(60) {
                1
            } else {
                1 + random.below(BATCH_MAX)
            };
            let from = self.given.fetch_add(wanted, Ordering::Relaxed);
            let numbers = from..(from + wanted).min(self.total);
            if numbers.is_empty() {
                return;
            }
            let key = format!("client-{client}-request-{request}");
            let tasks: Vec<Value> = numbers
                .clone()
                .map(|number| self.task(number, from, &mut random))
                .collect();
            let ids = self.send(&mut http, &mut random, &key, &tasks);
            // A client whose answer was lost asks again, at whatever time and wherever.
            if random.chance(5) {
                assert_eq!(
                    self.send(&mut http, &mut random, &key, &tasks),
                    ids,
                    "the same key gave other tasks"
                );
            }
            self.acknowledged.lock().unwrap().extend(numbers.zip(ids));
            std::thread::sleep(self.pace);
        }
    }

    /// The task of a number, in a batch whose first one has the number `first`.
    fn task(&self, number: u64, first: u64, random: &mut Random) -> Value {
        let key = format!("key-{}", number / 10 % KEYS);
        let quick = json!({ "strategy": "fixed", "delay": 0.05, "jitter": false });
        let mut task = match number % 10 {
            2 => {
                let on = match number > first {
                    true => vec![reference(first + random.below(number - first))],
                    false => self.some_acknowledged(random),
                };
                json!({ "handler": "noop", "depends_on": on })
            }
            // Some are long enough to be met by a failure while they run.
            3 => {
                let seconds = if number % 100 == 13 { "0.4" } else { "0.01" };
                let task = script(SPEAKING, &[&self.key_file(&key), Path::new(seconds)]);
                with(task, json!({ "key": key }))
            }
            4 => json!({ "handler": "fail", "parameters": { "times": 1 }, "retry": quick, "max_retries": 1 }),
            5 => json!({ "handler": "log", "parameters": { "message": format!("number {number}") } }),
            6 => script(r#"echo "$PENSUM_TASK_ID" >> "$1""#, &[&self.effects()]),
            7 => json!({ "handler": "sleep", "parameters": { "seconds": 0.02 }, "key": key }),
            8 => json!({ "handler": "sleep", "parameters": { "seconds": 0.05 } }),
            9 if number % 20 == 19 => {
                let task = script(SPEAKING, &[&self.key_file(NARROW), Path::new("0.01")]);
                with(task, json!({ "queue": NARROW }))
            }
            _ => json!({ "handler": "noop" }),
        };
        task["name"] = json!(format!("number {number}"));
        task["ref"] = json!(reference(number));
        task
    }

    fn some_acknowledged(&self, random: &mut Random) -> Vec<String> {
        let acknowledged = self.acknowledged.lock().unwrap();
        match acknowledged.len() as u64 {
            0 => Vec::new(),
            known => vec![acknowledged[random.below(known) as usize].1.clone()],
        }
    }

    fn effects(&self) -> PathBuf {
        self.dir.path().join("effects")
    }

    fn key_file(&self, key: &str) -> PathBuf {
        self.dir.path().join(key)
    }

    /// Submits until it is acknowledged, at any node, under the same key.
    fn send(&self, http: &mut Http, random: &mut Random, key: &str, tasks: &[Value]) -> Vec<String> {
        let (path, body) = match tasks {
            [one] => ("/api/v1/tasks", one.clone()),
            many => ("/api/v1/tasks/batch", json!({ "tasks": many })),
        };
        eventually("an acknowledgement", ACKNOWLEDGED_IN, || {
            let bases = self.bases.read().unwrap().clone();
            http.base.clone_from(&bases[random.below(bases.len() as u64) as usize]);
            let answer = http.send(Method::POST, path, Some(&body), &[("idempotency-key", key)]);
            match answer {
                Ok(answer) if matches!(answer.status, 200 | 201) => {
                    let replayed = answer.header("idempotency-replayed") == Some("true");
                    assert_eq!(answer.status == 200, replayed, "200 is the answer to a repeat alone");
                    match path {
                        "/api/v1/tasks" => Some(vec![text(&answer.body["id"])]),
                        _ => Some(items(&answer.body["ids"]).iter().map(text).collect()),
                    }
                }
                Ok(answer) if answer.status != 503 => panic!("{path} answered {}: {}", answer.status, answer.body),
                _ => {
                    self.repeated.fetch_add(1, Ordering::Relaxed);
                    None
                }
            }
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        kill_marked(self.dir.path());
    }
}

fn reference(number: u64) -> String {
    format!("n-{number}")
}

/// Which runs of keyed commands may have ended without a word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Silent {
    /// Those of nodes that were killed, and their commands after them.
    Killed,
    /// None: every node lived all the time.
    None,
}

impl Load {
    /// Waits for the end of everything and checks that all of it completed, each task once, in turn and with its effect.
    #[track_caller]
    pub(super) fn check(&self, http: &Http, longest: Duration, silent: Silent) {
        let began = Instant::now();
        let ids: BTreeMap<u64, String> = self.acknowledged.lock().unwrap().iter().cloned().collect();
        assert_eq!(ids.len() as u64, self.total, "every number was acknowledged");
        let mut counts = Value::Null;
        let all_ended = |counts: &Value| OPEN.iter().all(|status| counts[*status] == 0);
        eventually("all tasks to end", longest * 2, || {
            let answer = http.send(Method::GET, "/api/v1/system/status", None, &[]).ok()?;
            counts = answer.body["task_counts"].clone();
            (all_ended(&counts) || began.elapsed() > longest).then_some(())
        });
        assert!(
            all_ended(&counts),
            "some have not ended after {longest:?}: {counts}; {}",
            unfinished(http)
        );
        println!("{:.1} s until the last one ended", began.elapsed().as_secs_f64());
        self.check_list(http, &ids);
        self.check_histories(&http.base, &ids);
        self.check_effects(&ids);
        self.check_keys(silent, http);
        self.check_width(silent, http);
    }

    fn check_list(&self, http: &Http, ids: &BTreeMap<u64, String>) {
        let listed = http.all("/api/v1/tasks");
        let mut names = BTreeMap::new();
        for task in &listed {
            assert_eq!(task["status"], "completed", "{task}");
            *names.entry(text(&task["name"])).or_insert(0) += 1;
        }
        for number in ids.keys() {
            let made = names.get(&format!("number {number}"));
            assert_eq!(made, Some(&1), "how often number {number} was made");
        }
        let found: BTreeSet<String> = listed.iter().map(|task| text(&task["id"])).collect();
        assert_eq!(found.len(), listed.len(), "a task is listed twice");
        let lost: Vec<&String> = ids.values().filter(|id| !found.contains(*id)).collect();
        assert!(lost.is_empty(), "acknowledged, and gone: {lost:?}");
    }

    /// Each history has one end.
    fn check_histories(&self, base: &str, ids: &BTreeMap<u64, String>) {
        let ids: Vec<&String> = ids.values().collect();
        std::thread::scope(|scope| {
            for part in ids.chunks(ids.len().div_ceil(CLIENTS as usize)) {
                scope.spawn(move || {
                    let http = Http::new(base);
                    for id in part {
                        let events = http.get(&format!("/api/v1/tasks/{id}/events")).expect(200);
                        let kinds: Vec<String> = items(&events["items"])
                            .iter()
                            .map(|event| text(&event["kind"]))
                            .collect();
                        let ends = |kind: &&String| matches!(kind.as_str(), "completed" | "failed" | "cancelled");
                        assert_eq!(kinds.iter().filter(ends).count(), 1, "task {id}: {kinds:?}");
                    }
                });
            }
        });
    }

    fn check_effects(&self, ids: &BTreeMap<u64, String>) {
        let found: BTreeSet<String> = lines(&self.effects()).into_iter().collect();
        let wanted: BTreeSet<String> = ids
            .iter()
            .filter(|(number, _)| *number % 10 == 6)
            .map(|(_, id)| id.clone())
            .collect();
        let missing: Vec<_> = wanted.difference(&found).collect();
        assert!(missing.is_empty(), "completed without an effect: {missing:?}");
        assert!(found.is_subset(&wanted), "an effect of a task that nobody submitted");
    }

    /// Between the start and the end of a run of a key no other run of that key says anything.
    fn check_keys(&self, silent: Silent, http: &Http) {
        let mut runs = 0;
        for key in 0..KEYS {
            let said = lines(&self.key_file(&format!("key-{key}")));
            let mut open: Option<&str> = None;
            for (at, line) in said.iter().enumerate() {
                let (word, run) = line.split_once(' ').unwrap_or_else(|| panic!("half a line: {line}"));
                let near = || said[at.saturating_sub(6)..said.len().min(at + 6)].join("\n");
                match (word, open) {
                    ("start", None) => {}
                    ("start", Some(before)) => {
                        let later = said[at..].iter().any(|line| line.ends_with(before));
                        assert!(!later, "{run} of key-{key} started while {before} ran:\n{}", near());
                        assert!(
                            silent == Silent::Killed,
                            "{before} of key-{key} never ended:\n{}",
                            near()
                        );
                        assert!(
                            was_taken_back(http, before),
                            "{run} of key-{key} started although {before} had not ended:\n{}",
                            near()
                        );
                    }
                    (_, Some(before)) => assert_eq!(run, before, "key-{key}:\n{}", near()),
                    (_, None) => panic!("{line}, and had not started:\n{}", near()),
                }
                open = (word == "start").then_some(run);
                runs += u64::from(word == "start");
            }
        }
        println!("{runs} runs of keyed commands, one after the other");
    }
}

impl Load {
    /// Of the narrow queue no more run at once than may, by what the runs themselves say.
    fn check_width(&self, silent: Silent, http: &Http) {
        let said = lines(&self.key_file(NARROW));
        let mut open: Vec<&str> = Vec::new();
        let (mut runs, mut most) = (0, 0);
        for (at, line) in said.iter().enumerate() {
            let (word, run) = line.split_once(' ').unwrap_or_else(|| panic!("half a line: {line}"));
            if word != "start" {
                open.retain(|other| *other != run);
                continue;
            }
            runs += 1;
            if open.len() == WIDTH {
                // One of them was killed without a word, and its place is free once its lease is over.
                let never_ends = |other: &&str| !said[at..].iter().any(|line| line.ends_with(*other));
                let gone = open
                    .iter()
                    .position(|other| never_ends(other) && was_taken_back(http, other));
                let near = said[at.saturating_sub(12)..said.len().min(at + 6)].join("\n");
                assert!(
                    silent == Silent::Killed && gone.is_some(),
                    "{run} started while {open:?} ran, and {WIDTH} of {NARROW} may:\n{near}"
                );
                open.remove(gone.unwrap_or_default());
            }
            open.push(run);
            most = most.max(open.len());
        }
        println!("{runs} runs of a queue of {WIDTH}, {most} at once");
    }
}

/// True when the attempt of a run ended by the death of its node or of its lease.
fn was_taken_back(http: &Http, run: &str) -> bool {
    let mut parts = run.split('/');
    let (id, attempt) = (parts.next().unwrap(), parts.next().unwrap());
    let executions = http.all(&format!("/api/v1/tasks/{id}/executions"));
    let found = executions
        .iter()
        .find(|execution| execution["attempt"].as_u64() == attempt.parse().ok());
    found.is_some_and(|execution| execution["status"] == "crashed")
}

/// What has not ended, for whoever reads why a test failed.
fn unfinished(http: &Http) -> String {
    let tasks = OPEN.iter().flat_map(|status| {
        let page = http.get(&format!("/api/v1/tasks?status={status}&limit=5")).expect(200);
        items(&page["items"]).to_vec()
    });
    let explained = tasks.map(|task| {
        let why = http.get(&format!("/api/v1/tasks/{}/explain", text(&task["id"]))).body;
        format!("{task}\n  {why}")
    });
    explained.collect::<Vec<_>>().join("\n")
}
