//! Nodes behind a pooler in transaction mode, through which no notices come.

use std::time::{Duration, Instant};

use super::load::{Load, Silent};
use super::{Cluster, complaints, database, only_on};
use crate::harness::{Random, SOON, eventually, long, seconds_between};
use pensum_testing::postgres::Pooler;

/// How late a task may start on an idle node that another node was given.
const STARTED_IN: f64 = 1.0;

#[test]
fn nodes_work_behind_a_pooler_in_transaction_mode() {
    let database = database();
    let pooler = Pooler::start(&database.url());
    let mut random = Random::new();
    let cluster = Cluster::start(&pooler.url(), 2, &["--slots", "16"]);
    let (asked, runner) = (&cluster.nodes[0], &cluster.nodes[1]);

    let (count, longest) = if long() { (5_000, 180) } else { (500, 60) };
    let load = Load::new(cluster.bases(), count);
    load.run(&mut random, |_| {});
    load.check(&asked.http, Duration::from_secs(longest), Silent::None);

    // Idle now, each finds what the other one was given.
    for round in 0..10 {
        let id = asked.create(&only_on(1, ":", &asked.file("none")));
        let task = asked.wait(&id, "completed");
        let late = seconds_between(&task["created_at"], &task["started_at"]);
        assert!(late < STARTED_IN, "task {round} started {late} s after it was created");
    }

    let pid_file = runner.file("pid");
    let id = asked.create(&only_on(1, r#"echo $$ > "$1"; exec sleep 600"#, &pid_file));
    runner.pid_in(&pid_file);
    let began = Instant::now();
    asked.command(&id, "cancel").expect(202);
    asked.wait(&id, "cancelled");
    println!("the cancel took {:?}", began.elapsed());

    for node in &cluster.nodes {
        // Said when the first notice did not come through, which takes two seconds.
        let says = |line: &&String| line.contains("notices do not come through");
        eventually("the node to say that no notices come", SOON, || {
            (node.log_all().iter().filter(says).count() > 0).then_some(())
        });
        assert_eq!(node.log_all().iter().filter(says).count(), 1, "said once");
        assert_eq!(complaints(node), Vec::<String>::new());
    }
    cluster.finish();
}
