//! A server that crashes and comes back.

use std::time::{Duration, Instant};

use pensum_testing::postgres::{Mode, Server as Postgres};
use serde_json::json;

use super::load::{Load, Silent};
use super::{Cluster, LEASE, complaints, probe};
use crate::harness::{Http, Random, assert_says, long};

/// How long a node may take to work again after its database is back.
const BACK_IN: Duration = Duration::from_secs(5);
/// How long a node with a grace of a second may take to stop while its database is gone.
const STOPPED_IN: Duration = Duration::from_secs(20);
/// How many lines of warning and error one outage is worth to a node.
const COMPLAINTS_MAX: usize = 10;

#[test]
fn acknowledged_tasks_survive_crashes_of_the_database() {
    let (total, outages) = if long() { (20_000, 10) } else { (1_000, 3) };
    let mut postgres = Postgres::start(&[]);
    let mut random = Random::new();
    let cluster = Cluster::start(&postgres.url(), 3, &["--slots", "16"]);
    let load = Load::new(cluster.bases(), total).paced(Duration::from_millis(20));
    load.run(&mut random, |random| {
        for outage in 1..=outages {
            load.wait_for_share(outages + 1, outage);
            let before: Vec<usize> = cluster.nodes.iter().map(|node| complaints(node).len()).collect();
            postgres.stop(Mode::Immediate);
            // One of them is longer than the leases, so that nothing that ran before it may go on.
            let time = match outage == outages {
                true => LEASE + Duration::from_secs(1),
                false => Duration::from_millis(200 + random.below(1_000)),
            };
            std::thread::sleep(time);
            postgres.start_again();
            let times = work_again(&cluster.bases());
            println!("outage of {time:?}; then the nodes took {times:?}");
            for (node, before) in cluster.nodes.iter().zip(before) {
                let said = complaints(node).split_off(before);
                assert!(
                    said.len() <= COMPLAINTS_MAX,
                    "{} lines about an outage of {time:?}:\n{}",
                    said.len(),
                    said.join("\n")
                );
            }
        }
    });
    let longest = Duration::from_secs(if long() { 180 } else { 60 });
    load.check(&cluster.nodes[0].http, longest, Silent::None);
    cluster.finish();
}

/// Has each node run a task that another one takes, which therefore has no chance to wake it directly.
#[track_caller]
pub(super) fn work_again(bases: &[String]) -> Vec<Duration> {
    let back = Instant::now();
    std::thread::scope(|scope| {
        let probes: Vec<_> = (0..bases.len())
            .map(|runner| {
                let at = &bases[(runner + 1) % bases.len()];
                scope.spawn(move || {
                    probe(&Http::new(at), runner, BACK_IN * 4);
                    back.elapsed()
                })
            })
            .collect();
        let times: Vec<Duration> = probes.into_iter().map(|probe| probe.join().unwrap()).collect();
        assert!(
            times.iter().all(|time| *time <= BACK_IN),
            "each node works again within {BACK_IN:?} of the database's return: {times:?}"
        );
        times
    })
}

#[test]
fn a_node_stops_in_order_although_its_database_is_gone() {
    let mut postgres = Postgres::start(&[("fsync", "off")]);
    let mut cluster = Cluster::start(&postgres.url(), 2, &["--grace", "1"]);
    let ids = cluster.nodes[0].create_all(&vec![json!({ "handler": "sleep", "parameters": { "seconds": 60 } }); 4]);
    for id in &ids {
        cluster.nodes[0].wait(id, "running");
    }
    postgres.stop(Mode::Immediate);
    for node in &mut cluster.nodes {
        let began = Instant::now();
        node.stop();
        println!("stopped in {:?}", began.elapsed());
        assert!(began.elapsed() < STOPPED_IN, "{:?}", began.elapsed());
    }
    // And one that starts meanwhile says what is wrong instead of waiting.
    assert_eq!(cluster.nodes[0].try_restart(), None);
    let said = cluster.nodes[0].log();
    assert_says(&said, "Connection refused");

    postgres.start_again();
    cluster.nodes[1].restart();
    let node = &cluster.nodes[1];
    for id in &ids {
        let task = node.wait(id, "running");
        assert_eq!(task["retry_count"], 0, "{task}");
        node.command(id, "cancel");
        node.wait(id, "cancelled");
    }
    cluster.finish();
}
