//! All connections of a store ended at once, again and again.

use std::time::Duration;

use pensum_testing::postgres::{connect, url};

use super::load::{Load, Silent};
use super::{Cluster, complaints, database, only_on, runtime};
use crate::harness::{Random, eventually, long, seconds_between};

/// Time between two ends of all connections.
const EVERY: Duration = Duration::from_millis(250);
const TIMES: usize = 20;
/// How many lines of warning and error the whole storm is worth to a node.
const COMPLAINTS_MAX: usize = 100;
/// How soon a task that one node was given starts on another that is idle, once notices come through again: before that
/// would have looked by itself.
const NOTICED_IN: f64 = 0.4;
/// How long the nodes have to listen again.
const BACK_IN: Duration = Duration::from_secs(5);
/// How long the rest of the load has: on a slow machine thousands of tasks are left when all have been submitted.
const PATIENCE: Duration = Duration::from_secs(180);
/// Transactions in a second of three idle nodes that hear of work. Without notices each looks for it 20 times a second.
const LOOKS_MAX: i64 = 45;

#[test]
fn work_goes_on_while_all_connections_are_ended_again_and_again() {
    let database = database();
    let mut random = Random::new();
    let cluster = Cluster::start(&database.url(), 3, &["--slots", "16"]);
    let total = if long() { 20_000 } else { 1_000 };
    let load = Load::new(cluster.bases(), total).paced(Duration::from_millis(20));
    load.run(&mut random, |_| {
        load.wait_for_share(10, 1);
        let ended = end_connections(database.name());
        println!("{ended} connections ended");
        assert!(ended >= TIMES, "{ended} connections are no storm");
    });
    load.check(&cluster.nodes[0].http, PATIENCE, Silent::None);
    eventually("the nodes to believe in notices again", BACK_IN, || {
        (transactions(database.name()) < LOOKS_MAX).then_some(())
    });
    let asked = &cluster.nodes[0];
    let id = asked.create(&only_on(1, ":", &asked.file("none")));
    let task = asked.wait(&id, "completed");
    let late = seconds_between(&task["created_at"], &task["started_at"]);
    assert!(late < NOTICED_IN, "a task started {late} s after another node took it");
    for node in &cluster.nodes {
        let said = complaints(node);
        assert!(
            said.len() <= COMPLAINTS_MAX,
            "{} lines:\n{}",
            said.len(),
            said.join("\n")
        );
        println!("{} lines", said.len());
    }
    cluster.finish();
}

/// Ends every connection to a database, many times; says how many there were.
fn end_connections(database: &str) -> usize {
    let end = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'");
    runtime().block_on(async {
        let admin = connect(&url()).await;
        let mut ended = 0;
        for _ in 0..TIMES {
            ended += admin.query(&end, &[]).await.unwrap().len();
            tokio::time::sleep(EVERY).await;
        }
        ended
    })
}

/// How many transactions a database has in a second.
fn transactions(database: &str) -> i64 {
    let count = format!("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = '{database}'");
    runtime().block_on(async {
        let admin = connect(&url()).await;
        let before: i64 = admin.query_one(&count, &[]).await.unwrap().get(0);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let after: i64 = admin.query_one(&count, &[]).await.unwrap().get(0);
        println!("{} transactions in a second", after - before);
        after - before
    })
}
