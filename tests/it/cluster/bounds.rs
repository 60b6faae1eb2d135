//! What all nodes keep to together: rates, agents' leases, circuit breakers.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Cluster, database};
use crate::agent_run::Agent;
use crate::harness::{
    Http, NOTE_TIMES, SOON, Server, eventually, items, lines, long, program, runs_at_once, shell, text, with,
};

/// Starts of a rate that holds on three nodes together, by the times that the tasks themselves keep.
#[test]
fn a_rate_holds_on_all_nodes_together() {
    const RATE: f64 = 50.0;
    const BURST: f64 = 10.0;
    let seconds: u32 = if long() { 60 } else { 10 };
    let database = database();
    let cluster = Cluster::start(&database.url(), 3, &["--slots", "32"]);
    let http = &cluster.nodes[0].http;
    let settings = json!({ "rate_limit": { "starts": RATE as u64, "burst": BURST as u64 } });
    http.put("/api/v1/queues/mail", &settings).expect(200);
    http.post("/api/v1/queues/mail/pause", &json!({})).expect(200);
    // A third more than can start within the time.
    let count = (RATE * f64::from(seconds) * 4.0 / 3.0 + BURST) as usize;
    let tasks = vec![json!({ "handler": "noop", "queue": "mail" }); count];
    for batch in tasks.chunks(count.div_ceil(3)) {
        cluster.nodes[0].create_all(batch);
    }
    http.post("/api/v1/queues/mail/resume", &json!({})).expect(200);
    eventually(
        "all of them to end",
        Duration::from_secs(seconds.into()) * 2 + SOON,
        || {
            let counts = &http.get("/api/v1/queues/mail").expect(200)["tasks"]["completed"];
            (counts.as_u64() == Some(count as u64)).then_some(())
        },
    );
    let tasks = http.all("/api/v1/tasks?queue=mail");
    let mut starts: Vec<f64> = tasks
        .iter()
        .map(|task| {
            text(&task["started_at"])
                .parse::<jiff::Timestamp>()
                .unwrap()
                .as_microsecond() as f64
                / 1e6
        })
        .collect();
    starts.sort_by(f64::total_cmp);
    assert_eq!(starts.len(), count);
    // Never more than the bucket lets through, over any span of time; the span holds both of its ends.
    for (first, from) in starts.iter().enumerate() {
        for (last, to) in starts.iter().enumerate().skip(first) {
            let (started, span) = ((last - first + 1) as f64, to - from);
            assert!(
                started <= 1.0 + BURST + RATE * span,
                "{started} tasks started within {span} s"
            );
        }
    }
    let end = starts[0] + f64::from(seconds);
    let within = starts.iter().filter(|at| **at <= end).count() as f64;
    let most = RATE * f64::from(seconds) + BURST;
    let longest = starts.windows(2).map(|two| two[1] - two[0]).fold(0.0, f64::max);
    println!("{within} tasks started within {seconds} s, of {most} that may");
    // Where other tests run beside this one, they may take a part of a short time.
    let least = if long() { 0.95 } else { 0.8 };
    assert!(
        (least * most..=1.05 * most).contains(&within),
        "{within} tasks started within {seconds} s; the longest time without a start was {longest} s"
    );
    let mut nodes: Vec<String> = http
        .all("/api/v1/executions")
        .iter()
        .map(|e| text(&e["executor_id"]))
        .collect();
    nodes.sort();
    nodes.dedup();
    assert!(nodes.len() >= 2, "only {nodes:?} ran any");
    cluster.finish();
}

/// By the times that the executions themselves keep: none starts before the end of the one that made room for it.
#[test]
fn a_queue_is_as_wide_as_it_says_by_the_times_of_all_nodes() {
    const WIDTH: usize = 3;
    let database = database();
    let cluster = Cluster::start(&database.url(), 3, &["--slots", "8"]);
    let http = &cluster.nodes[0].http;
    http.put("/api/v1/queues/narrow", &json!({ "max_concurrent": WIDTH }))
        .expect(200);
    let task = json!({ "handler": "sleep", "parameters": { "seconds": 0.05 }, "queue": "narrow" });
    for node in &cluster.nodes {
        node.create_all(&vec![task.clone(); 30]);
    }
    eventually("all of them to end", SOON * 2, || {
        (http.get("/api/v1/queues/narrow").expect(200)["tasks"]["completed"] == 90).then_some(())
    });
    let time = |value: &Value| text(value).parse::<jiff::Timestamp>().unwrap();
    let runs: Vec<_> = http
        .all("/api/v1/executions")
        .iter()
        .map(|run| (time(&run["started_at"]), time(&run["finished_at"])))
        .collect();
    let beside = |at: jiff::Timestamp| runs.iter().filter(|(from, to)| *from <= at && at < *to).count();
    assert_eq!(runs.iter().map(|(from, _)| beside(*from)).max(), Some(WIDTH));
    cluster.finish();
}

#[test]
fn a_key_is_as_wide_as_its_queue_says_on_all_nodes_together() {
    let database = database();
    let cluster = Cluster::start(&database.url(), 2, &["--slots", "8"]);
    let [first, second] = [&cluster.nodes[0], &cluster.nodes[1]];
    let settings = json!({ "max_concurrent_per_key": 2 });
    first.http.put("/api/v1/queues/tenants", &settings).expect(200);
    let of_key = |key: &str| {
        with(
            shell(NOTE_TIMES, &first.file(key)),
            json!({ "queue": "tenants", "key": key }),
        )
    };
    let mut ids = Vec::new();
    for round in 0..12 {
        let (node, key) = ([first, second][round % 2], ["a", "b"][round / 2 % 2]);
        ids.extend(node.create_all(&vec![of_key(key); 2]));
    }
    for id in &ids {
        first.wait(id, "completed");
    }
    for key in ["a", "b"] {
        assert_eq!(runs_at_once(&first.file(key)), (12, 2), "{key}");
    }
    let mut nodes: Vec<String> = (first.http.all("/api/v1/executions").iter())
        .map(|execution| text(&execution["executor_id"]))
        .collect();
    nodes.sort();
    nodes.dedup();
    assert_eq!(nodes.len(), 2, "only {nodes:?} ran any");
    cluster.finish();
}

#[test]
fn an_agent_works_on_while_other_nodes_are_killed() {
    const TASKS: usize = 40;
    let database = database();
    let mut cluster = Cluster::start(&database.url(), 3, &[]);
    let script = r#"echo "$PENSUM_TASK_ID" >> "$1/ran"; sleep 0.1; echo "$PENSUM_ATTEMPT""#;
    let agent = Agent::start(&cluster.nodes[0], "steady", &["--max", "2"], script);
    let mut ids = Vec::new();
    for round in 0..4 {
        let at = &cluster.nodes[round % 2 + if round < 2 { 1 } else { 0 }];
        for _ in 0..TASKS / 4 {
            ids.push(at.create(&json!({ "handler": "work" })));
        }
        let victim = 1 + round % 2;
        cluster.nodes[victim].kill();
        cluster.nodes[victim].restart();
    }
    let node = &cluster.nodes[0];
    for id in &ids {
        let task = node.wait(id, "completed");
        assert_eq!((&task["attempt"], &task["result"]), (&json!(1), &json!(1)), "{task}");
    }
    let mut ran = lines(&node.file("ran"));
    ran.sort();
    ids.sort();
    assert_eq!(ran, ids, "each ran once");
    agent.stop();
    cluster.finish();
}

#[test]
fn an_agent_of_the_configuration_goes_over_to_another_node() {
    let database = database();
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("agents.json");
    let agent = json!({ "capabilities": ["work"], "lease": 2, "program": ["sh", "-c", "echo $PPID"] });
    std::fs::write(&config, json!({ "agents": { "single": agent } }).to_string()).unwrap();
    let mut cluster = Cluster::start(&database.url(), 2, &["--config", &config.display().to_string()]);
    let ran_by = |cluster: &Cluster, at: usize| {
        let task = cluster.nodes[at].wait(&cluster.nodes[at].create(&json!({ "handler": "work" })), "completed");
        let is_of = |node: &&Server| json!(node.pid()) == task["result"];
        cluster.nodes.iter().position(|node| is_of(&node)).unwrap()
    };
    let first = ran_by(&cluster, 0);
    assert_eq!(ran_by(&cluster, 1), first, "one node at a time runs it");
    cluster.nodes[first].kill();
    let other = 1 - first;
    let id = cluster.nodes[other].create(&json!({ "handler": "work" }));
    let task = cluster.nodes[other].wait(&id, "completed");
    assert_eq!(task["result"], cluster.nodes[other].pid(), "the node that is left");
    cluster.finish();
}

#[test]
fn a_poll_that_waits_at_one_node_hears_of_a_drain_at_another() {
    let database = database();
    let cluster = Cluster::start(&database.url(), 2, &[]);
    let [first, second] = [&cluster.nodes[0].http, &cluster.nodes[1].http];
    first
        .post("/api/v1/agents", &json!({ "id": "a", "capabilities": ["x"] }))
        .expect(201);
    std::thread::scope(|scope| {
        let poll = json!({ "session": "1", "wait_ms": 25_000 });
        let polled = scope.spawn(move || second.post("/api/v1/agents/a/poll", &poll).expect(200));
        // Until the poll waits at the store.
        std::thread::sleep(Duration::from_secs(1));
        let began = Instant::now();
        first.post("/api/v1/agents/a/drain", &json!({})).expect(200);
        assert_eq!(polled.join().unwrap()["drain"], true);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    });
    cluster.finish();
}

#[test]
fn a_worker_of_the_configuration_runs_beside_one_node_only() {
    let database = database();
    let home = tempfile::tempdir().unwrap();
    let (config, starts) = (home.path().join("agents.json"), home.path().join("starts"));
    let script = r#"echo $$ >> "$1"
        exec "$2" agent run --id "$PENSUM_AGENT_ID" --lease 2s -C work -- sh -c 'sleep 5; echo $PENSUM_ATTEMPT'"#;
    let pensum = program().get_program().to_str().unwrap().to_owned();
    let worker = ["sh", "-c", script, "sh", starts.to_str().unwrap(), &pensum];
    let agent = json!({ "capabilities": ["work"], "lease": 2, "worker": worker });
    std::fs::write(&config, json!({ "agents": { "single": agent } }).to_string()).unwrap();
    let with_worker = ["--config", &config.display().to_string()];
    let mut cluster = Cluster::start(&database.url(), 1, &with_worker);
    cluster.join(&with_worker);
    for node in &cluster.nodes {
        let task = node.wait(
            &node.create(&json!({ "handler": "work", "max_retries": 0 })),
            "completed",
        );
        assert_eq!((&task["attempt"], &task["result"]), (&json!(1), &json!(1)), "{task}");
    }
    assert_eq!(lines(&starts).len(), 1);
    cluster.finish();
}

#[test]
fn a_breaker_opens_tries_and_closes_on_all_nodes_together() {
    let database = database();
    let cluster = Cluster::start(&database.url(), 3, &[]);
    let broken = cluster.nodes[0].file("broken");
    let runs = cluster.nodes[0].file("runs");
    std::fs::write(&broken, "").unwrap();
    let script = format!(
        "echo \"$PENSUM_TASK_ID\" >> \"$1\"; sleep 0.3; [ ! -e '{}' ]",
        broken.display()
    );
    let flaky = with(shell(&script, &runs), json!({ "max_retries": 0 }));
    let settings = json!({ "failures": 3, "open_for": 3 });
    cluster.nodes[0]
        .http
        .put("/api/v1/breakers/handler:command", &settings)
        .expect(200);
    let state = |http: &Http| http.get("/api/v1/breakers/handler:command").expect(200);
    // One failure for each node opens it for all of them.
    for node in &cluster.nodes {
        let id = node.create(&flaky);
        node.wait(&id, "failed");
    }
    for node in &cluster.nodes {
        assert_eq!(state(&node.http)["state"], "open");
    }
    let waiting: Vec<String> = (0..9).map(|number| cluster.nodes[number % 3].create(&flaky)).collect();
    let told = cluster.nodes[1].task(&format!("{}/explain", waiting[2]));
    assert_eq!(told["gates"][0]["gate"], "breaker", "{told}");
    assert_eq!(lines(&runs).len(), 3);
    // The first probe fails and opens it again; then the other side is mended.
    eventually("a probe to start", SOON, || (lines(&runs).len() == 4).then_some(()));
    eventually("it to open again", SOON, || {
        (state(&cluster.nodes[2].http)["state"] == "open").then_some(())
    });
    assert_eq!(lines(&runs).len(), 4, "one tried, on all nodes together");
    std::fs::remove_file(&broken).unwrap();
    eventually("everything to end", SOON, || {
        let ended = |id: &String| cluster.nodes[0].task(id)["finished_at"].is_string();
        waiting.iter().all(ended).then_some(())
    });
    let failed = waiting
        .iter()
        .filter(|id| cluster.nodes[0].task(id)["status"] == "failed")
        .count();
    assert_eq!((failed, lines(&runs).len()), (1, 12));
    for node in &cluster.nodes {
        let closed = state(&node.http);
        assert_eq!((&closed["state"], &closed["because"]), (&json!("closed"), &Value::Null));
    }
    // The second probe was alone, too: nothing else began before it had ended.
    let mut times: Vec<(String, String)> = waiting
        .iter()
        .map(|id| cluster.nodes[0].task(id))
        .filter(|task| task["status"] == "completed")
        .map(|task| (text(&task["started_at"]), text(&task["finished_at"])))
        .collect();
    times.sort();
    assert!(
        items(&json!(times)).len() == 8 && times[1..].iter().all(|(start, _)| *start >= times[0].1),
        "{times:?}"
    );
    cluster.finish();
}
