//! Nodes that are killed.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::load::{Load, Silent};
use super::{Cluster, LEASE, database, script};
use crate::harness::{Random, SOON, eventually, items, lines, long, text};

#[test]
fn acknowledged_tasks_survive_kills_of_nodes_that_share_a_store() {
    let (total, kills) = if long() { (20_000, 20) } else { (2_000, 4) };
    let database = database();
    let mut random = Random::new();
    let mut cluster = Cluster::start(&database.url(), 3, &["--slots", "16"]);
    let load = Load::new(cluster.bases(), total);
    load.run(&mut random, |random| {
        // Most kills fall into the submission, the rest into the work that is left.
        let early = kills * 3 / 4;
        for kill in 1..=kills {
            if kill <= early {
                load.wait_for_share(early + 1, kill);
            }
            std::thread::sleep(Duration::from_millis(random.below(500)));
            let victim = random.below(3) as usize;
            let node = &mut cluster.nodes[victim];
            node.kill();
            node.restart();
            load.moved(victim, &node.http.base);
        }
    });
    let longest = Duration::from_secs(if long() { 180 } else { 60 });
    load.check(&cluster.nodes[0].http, longest, Silent::Killed);
    cluster.finish();
}

/// At its first run it stays until it is killed; it ends at once when it runs again.
const STUCK_ONCE: &str = r#"
[ -e "$1/$PENSUM_TASK_ID" ] && exit 0
: > "$1/$PENSUM_TASK_ID"
echo "$PENSUM_TASK_ID" >> "$1/started"
exec sleep 600
"#;

#[test]
fn what_a_killed_node_had_just_started_comes_back_when_its_leases_run_out() {
    const TASKS: usize = 64;
    let database = database();
    let mut cluster = Cluster::start(&database.url(), 1, &["--slots", "64"]);
    let node = &cluster.nodes[0];
    let dir = node.dir().to_owned();
    let tasks: Vec<Value> = (0..TASKS).map(|_| script(STUCK_ONCE, &[&dir])).collect();
    let ids = node.create_all(&tasks);
    eventually("all of them to start", SOON, || {
        (lines(&dir.join("started")).len() == TASKS).then_some(())
    });
    cluster.nodes[0].kill();
    let killed = jiff::Timestamp::now();
    let killed_at = Instant::now();
    // Kills what is left of the commands, and takes the tasks over.
    let other = cluster.join(&["--slots", "64"]);
    let node = &cluster.nodes[other];
    eventually("all of them to come back", SOON, || {
        let running = node.http.get("/api/v1/executions?limit=200").expect(200);
        let crashed = items(&running["items"])
            .iter()
            .filter(|e| e["status"] == "crashed")
            .count();
        (crashed == TASKS).then_some(())
    });
    println!("noticed after {:.2} s", killed_at.elapsed().as_secs_f64());
    for id in &ids {
        let task = node.wait(id, "completed");
        assert_eq!(
            (&task["attempt"], &task["retry_count"]),
            (&2.into(), &0.into()),
            "{task}"
        );
        let events = node.http.all(&format!("/api/v1/tasks/{id}/events"));
        let kinds: Vec<&str> = events.iter().filter_map(|event| event["kind"].as_str()).collect();
        assert_eq!(kinds, ["created", "started", "crashed", "started", "completed"]);
        let crashed: jiff::Timestamp = text(&events[2]["at"]).parse().unwrap();
        let late = crashed.duration_since(killed).as_secs_f64();
        assert!(
            late <= (LEASE + Duration::from_secs(2)).as_secs_f64(),
            "{id} came back {late} s after the kill"
        );
    }
    cluster.finish();
}
