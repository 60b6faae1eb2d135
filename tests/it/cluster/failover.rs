//! A primary that dies, and a standby that takes its place.

use std::time::Duration;

use pensum_testing::postgres::{Confirm, Server as Postgres};

use super::load::{Load, Silent};
use super::outages::work_again;
use super::{Cluster, complaints};
use crate::harness::{Random, long};

#[test]
fn nodes_follow_a_promoted_standby_and_lose_nothing() {
    let total = if long() { 20_000 } else { 1_000 };
    let mut primary = Postgres::start(&[]);
    let mut standby = primary.standby(Confirm::Flushed);
    let url = format!("postgres://postgres@{},{}/postgres", place(&primary), place(&standby));
    let mut random = Random::new();
    let cluster = Cluster::start(&url, 3, &["--slots", "16"]);
    let load = Load::new(cluster.bases(), total).paced(Duration::from_millis(10));
    load.run(&mut random, |random| {
        load.wait_for_share(2, 1);
        let before: Vec<usize> = cluster.nodes.iter().map(|node| complaints(node).len()).collect();
        primary.kill();
        std::thread::sleep(Duration::from_millis(random.below(1_000)));
        standby.promote();
        println!("then the nodes took {:?}", work_again(&cluster.bases()));
        for (node, before) in cluster.nodes.iter().zip(before) {
            let said = complaints(node).split_off(before);
            assert!(said.len() <= 10, "{} lines:\n{}", said.len(), said.join("\n"));
        }
    });
    let longest = Duration::from_secs(if long() { 180 } else { 60 });
    load.check(&cluster.nodes[0].http, longest, Silent::None);
    cluster.finish();
}

/// The host and port of a server.
fn place(server: &Postgres) -> String {
    let url = server.url();
    let (_, rest) = url.split_once('@').unwrap();
    rest.split_once('/').unwrap().0.to_owned()
}
