//! A deploy: each node stopped in order and started again, under load.

use std::time::Duration;

use super::load::{Load, Silent};
use super::{Cluster, database, listed, script};
use crate::harness::{Random, SOON, eventually, items, long};

#[test]
fn a_rolling_restart_spends_no_attempt() {
    let (total, rounds) = if long() { (20_000, 6) } else { (1_500, 1) };
    let database = database();
    let mut random = Random::new();
    let mut cluster = Cluster::start(&database.url(), 3, &["--slots", "16", "--grace", "1"]);
    // These run for longer than a node waits for them, so they are given back: until the gate opens.
    let gate = cluster.nodes[0].file("gate");
    let slow = vec![script(r#"until [ -e "$1" ]; do sleep 0.1; done"#, &[&gate]); 6];
    let slow = cluster.nodes[0].create_all(&slow);
    let load = Load::new(cluster.bases(), total).paced(Duration::from_millis(10));
    load.run(&mut random, |_| {
        for restart in 0..3 * rounds {
            load.wait_for_share(3 * rounds + 1, restart + 1);
            let victim = (restart % 3) as usize;
            let old = cluster.nodes[victim].http.base.clone();
            cluster.nodes[victim].stop();
            let left = listed(&cluster.nodes[(victim + 1) % 3].http, "address");
            assert!(!left.contains(&old), "{old} has ended, and is listed: {left:?}");
            cluster.nodes[victim].restart();
            load.moved(victim, &cluster.nodes[victim].http.base);
        }
        std::fs::write(&gate, "").unwrap();
    });
    let http = &cluster.nodes[0].http;
    load.check(http, Duration::from_secs(if long() { 180 } else { 60 }), Silent::None);
    for task in http.all("/api/v1/tasks") {
        let failed_once = task["handler"] == "fail";
        assert_eq!(task["attempt"], if failed_once { 2 } else { 1 }, "{task}");
        assert_eq!(task["retry_count"], u64::from(failed_once), "{task}");
    }
    let given_back = slow.iter().flat_map(|id| cluster.nodes[0].events(id));
    assert!(
        given_back.filter(|kind| kind == "released").count() > 0,
        "the slow ones were given back"
    );
    // Each has its place in the list once, under the address that it has now.
    eventually("the list to be of those that run", SOON, || {
        let nodes = http.get("/api/v1/nodes").expect(200);
        (items(&nodes["items"]).len() == 3).then_some(())
    });
    cluster.finish();
}
