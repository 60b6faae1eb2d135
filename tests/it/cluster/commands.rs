//! What people ask of one node reaches the tasks that another one runs.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::json;

use super::{Cluster, database, only_on};
use crate::harness::{SOON, Server, alive, eventually, seconds_between, state};

/// How late a command may reach a task on another node.
const REACHED_IN: f64 = 1.5;

/// Says which process it is, and stays.
const STAY: &str = r#"echo $$ > "$1"; exec sleep 600"#;

/// How many of each command are timed.
const ROUNDS: usize = 3;

#[test]
fn commands_reach_tasks_on_other_nodes() {
    let database = database();
    // The lease that a node has when it is not told.
    let mut cluster = Cluster::start(&database.url(), 1, &["--lease", "30"]);
    let runner = &cluster.nodes[0];
    let sleep = json!({ "handler": "sleep", "parameters": { "seconds": 600 } });
    let sleeps = runner.create_all(&vec![sleep; ROUNDS]);
    for id in &sleeps {
        runner.wait(id, "running");
    }
    let asked = cluster.join(&["--lease", "30"]);
    let (runner, asked) = (&cluster.nodes[0], &cluster.nodes[asked]);
    let mut took: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut note = |what, seconds| took.entry(what).or_default().push(seconds);
    for (round, sleep) in sleeps.iter().enumerate() {
        let pid_file = runner.file(&format!("pid-{round}"));
        let command = asked.create(&only_on(0, STAY, &pid_file));
        let pid = runner.pid_in(&pid_file);

        asked.command(&command, "pause").expect(202);
        asked.wait(&command, "paused");
        assert_eq!(state(pid), Some('T'), "the process stands still");
        note("pause", between(asked, &command, "pause_requested", "paused"));

        asked.command(&command, "resume").expect(200);
        let resumed = Instant::now();
        eventually("the process to go on", SOON, || (state(pid) != Some('T')).then_some(()));
        note("resume", resumed.elapsed().as_secs_f64());
        assert_eq!(asked.task(&command)["status"], "running");

        for id in [&command, sleep] {
            asked.command(id, "cancel").expect(202);
            asked.wait(id, "cancelled");
            note("cancel", between(asked, id, "cancel_requested", "cancelled"));
        }
        assert!(!alive(pid), "the process is gone");
    }
    for (command, times) in &mut took {
        times.sort_by(f64::total_cmp);
        println!("{command}: {times:?}");
        // One that had to wait for a busy machine says nothing.
        assert!(times[times.len() / 2] <= REACHED_IN, "{command}: {times:?} s");
    }
    cluster.finish();
}

/// Seconds from one event in a task's history to another.
#[track_caller]
fn between(node: &Server, id: &str, from: &str, to: &str) -> f64 {
    let events = node.http.all(&format!("/api/v1/tasks/{id}/events"));
    let at = |kind: &str| {
        events
            .iter()
            .rfind(|event| event["kind"] == kind)
            .map(|event| event["at"].clone())
    };
    let (Some(from_at), Some(to_at)) = (at(from), at(to)) else {
        panic!("no {from} and {to} in {events:?}")
    };
    seconds_between(&from_at, &to_at)
}
