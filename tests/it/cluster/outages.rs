//! A server that crashes and comes back.

use std::time::{Duration, Instant};

use pensum_testing::postgres::{Mode, Server as Postgres};

use super::load::{Load, Silent};
use super::{Cluster, LEASE, complaints, probe};
use crate::harness::{Http, Random, long};

/// How long a node may take to work again after its database is back.
const BACK_IN: Duration = Duration::from_secs(5);
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
