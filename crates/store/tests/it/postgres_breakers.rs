//! Circuit breakers, and several nodes whose runs fail and succeed at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pensum_core::agent::AgentSettings;
use pensum_core::breaker::{BreakerCommand, BreakerRecord, BreakerSettings, BreakerState};
use pensum_core::queue::QueueSettings;
use pensum_core::store::{AgentClaim, ClaimRequest, Claimed, Finish, Store};
use pensum_core::time::Span;
use pensum_core::{ErrorInfo, Json, Name, NewTask, NodeId, Outcome, Time};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::conformance::world::task_with;
use crate::nodes::{Nodes, PATIENCE, in_time, of_node};

const OPEN_FOR: Duration = Duration::from_secs(10);

impl Nodes {
    async fn put_breaker(&self, node: usize, name: &str, settings: BreakerSettings) {
        let (store, call) = (&self.stores[node], self.call());
        store.put_breaker(&call, name.into(), settings, None).await.unwrap();
    }

    async fn ask_breaker(&self, node: usize, command: BreakerCommand) {
        let (store, call) = (&self.stores[node], self.call());
        store.command_breaker(&call, "b".into(), command).await.unwrap();
    }

    /// The breaker of a name, as every node shows it.
    async fn known(&self, name: &str) -> BreakerRecord {
        let mut shown = Vec::new();
        for store in &self.stores {
            let breakers = store.breakers("default").await.unwrap();
            shown.extend(breakers.into_iter().find(|breaker| *breaker.name == *name));
        }
        // Parked claims may start probes meanwhile.
        let but_probes = |breaker: &BreakerRecord| BreakerRecord {
            probing: 0,
            ..breaker.clone()
        };
        let first = but_probes(&shown[0]);
        assert!(shown.iter().all(|breaker| but_probes(breaker) == first), "{shown:?}");
        shown.swap_remove(0)
    }

    async fn state(&self) -> BreakerState {
        self.known("b").await.state(self.now)
    }

    /// Closes the nodes; that none of them waited for another one in a circle. Connections tell that at their ends.
    async fn close_without_deadlocks(self) {
        for store in &self.stores {
            store.close().await.unwrap();
        }
        let others =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                      AND backend_type = 'client backend'";
        let are_gone = async {
            while self.watcher.query_one(others, &[]).await.unwrap().get::<_, i64>(0) > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        in_time(are_gone).await;
        let sql = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
        let deadlocks: i64 = self.watcher.query_one(sql, &[]).await.unwrap().get(0);
        assert_eq!(deadlocks, 0);
    }
}

fn of(handler: &str, count: usize) -> Vec<NewTask> {
    (0..count)
        .map(|_| task_with(|task| task.spec.handler = Name::from(handler)))
        .collect()
}

/// Opens at the third failure.
fn flaky(probes: u32) -> BreakerSettings {
    BreakerSettings {
        handlers: vec!["flaky".into()],
        failures: Some(3),
        open_for: Span(OPEN_FOR),
        probes,
        ..BreakerSettings::default()
    }
}

/// Counts, and never opens.
fn patient(handlers: &[&str], agents: &[&str]) -> BreakerSettings {
    BreakerSettings {
        handlers: handlers.iter().map(|name| Name::from(*name)).collect(),
        agents: agents.iter().map(|name| Name::from(*name)).collect(),
        failures: None,
        ..BreakerSettings::default()
    }
}

fn done() -> Outcome {
    Outcome::Done(Json::null())
}

fn failed() -> Outcome {
    Outcome::Fail(ErrorInfo::new("boom", "it broke"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_on_different_nodes_open_a_breaker_and_its_probes_close_it_for_all() {
    let mut nodes = Nodes::new(3).await;
    nodes.put_breaker(0, "b", flaky(4)).await;
    nodes.add(0, of("flaky", 40)).await;
    let mut held = Vec::new();
    for node in 0..3 {
        held.push(nodes.claim(node, 2).await);
    }
    for (node, held) in held.iter().enumerate() {
        assert_eq!(nodes.state().await, BreakerState::Closed);
        nodes.end_as(node, &held[..1], failed).await;
    }
    assert_eq!(nodes.state().await, BreakerState::Open);
    for node in 0..3 {
        nodes.add(0, of("sound", 1)).await;
        let others = nodes.claim(node, 10).await;
        assert_eq!(others.len(), 1);
        assert_eq!(&*others[0].spec.handler, "sound");
        nodes.end_as(node, &others, done).await;
    }
    nodes.now = nodes.now.plus(OPEN_FOR);
    for (node, held) in held.iter().enumerate() {
        // These say nothing of how it is now.
        nodes.end_as(node, &held[1..], done).await;
    }
    // Of many claims at once on all nodes no more than the probes get something, each time.
    let mut probes: Vec<(usize, Claimed)> = Vec::new();
    let started = Instant::now();
    while probes.len() < 4 {
        assert!(started.elapsed() < PATIENCE, "{}", probes.len());
        let claims: JoinSet<_> = (0..24)
            .map(|claim| {
                let (node, now) = (claim % 3, nodes.now);
                let (store, request) = (Arc::clone(&nodes.stores[node]), of_node(node as u64 + 1, 10));
                async move { (node, store.claim(request, now).await.unwrap()) }
            })
            .collect();
        for (node, claimed) in in_time(claims.join_all()).await {
            probes.extend(claimed.into_iter().map(|claimed| (node, claimed)));
        }
        assert!(probes.len() <= 4, "{}", probes.len());
        assert_eq!(nodes.known("b").await.probing, probes.len() as u64);
    }
    // One that comes back makes room for another, on whichever node.
    let (node, probe) = probes.pop().unwrap();
    let parked = nodes.park((node + 1) % 3, of_node((node as u64 + 1) % 3 + 1, 10));
    nodes.end_as(node, &[probe], || Outcome::Released).await;
    let another = in_time(parked).await.unwrap().0;
    assert_eq!(another.len(), 1);
    probes.push(((node + 1) % 3, another.into_iter().next().unwrap()));
    let parked: Vec<_> = (0..3)
        .map(|node| nodes.park(node, of_node(node as u64 + 1, 1)))
        .collect();
    let mut waiting = JoinSet::new();
    for claim in parked {
        waiting.spawn(async move { claim.await.unwrap().0 });
    }
    let mut ended = 0;
    while let Some((node, probe)) = probes.pop() {
        nodes.end_as(node, &[probe], done).await;
        ended += 1;
        let expected = if ended < 4 {
            BreakerState::HalfOpen
        } else {
            BreakerState::Closed
        };
        assert_eq!(nodes.state().await, expected);
    }
    for claimed in in_time(waiting.join_all()).await {
        assert_eq!(claimed.len(), 1);
    }
    for node in 0..3 {
        assert!(nodes.claim(node, 5).await.len() >= 5);
    }
    assert_eq!(nodes.known("b").await.version, 3);
    nodes.verify().await;
    nodes.close_without_deadlocks().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_of_a_node_that_claims_nothing_count_once_it_has_heard_of_the_breaker() {
    let nodes = Nodes::new(2).await;
    nodes.add(0, of("flaky", 1_000)).await;
    let held = nodes.claim(1, 1_000).await;
    nodes.put_breaker(0, "b", patient(&["flaky"], &[])).await;
    let counted = async || nodes.known("b").await.counted(nodes.now);
    let mut left = held.as_slice();
    while counted().await == (0, 0) {
        let (first, rest) = left.split_first().expect("it should have heard of the breaker by now");
        nodes.end_as(1, std::slice::from_ref(first), done).await;
        left = rest;
    }
    let (well, failing) = left.split_at(left.len() / 2);
    nodes.end_as(1, well, done).await;
    nodes.end_as(1, failing, failed).await;
    assert_eq!(counted().await, (1 + left.len() as u64, failing.len() as u64));
    nodes.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parked_claims_hear_when_a_breaker_is_reset_and_when_it_is_half_open() {
    let nodes = Nodes::new(2).await;
    let settings = AgentSettings {
        capabilities: vec!["flaky".into()],
        max_concurrent_tasks: 1,
        ..AgentSettings::default()
    };
    let (store, call) = (&nodes.stores[0], nodes.call());
    store.put_agent(&call, "agent".into(), settings).await.unwrap();
    store.open_session(&call, "agent".into(), NodeId(71)).await.unwrap();
    let agent = || ClaimRequest {
        executor: "agent".into(),
        agent: Some(AgentClaim {
            namespace: "default".into(),
            name: "agent".into(),
            have: Vec::new(),
        }),
        ..of_node(71, 1)
    };
    let short = Duration::from_millis(300);
    for (settings, wakes) in [(OPEN_FOR * 1_000, true), (short, false)] {
        let covering = BreakerSettings {
            open_for: Span(settings),
            agents: vec!["agent".into()],
            ..flaky(100)
        };
        nodes.put_breaker(0, "b", covering).await;
        nodes.ask_breaker(0, BreakerCommand::Trip).await;
        nodes.add(0, of("flaky", 3)).await;
        let opened = Instant::now();
        let mut parked: Vec<_> = (0..2)
            .map(|node| nodes.park(node, of_node(node as u64 + 1, 1)))
            .collect();
        parked.push(nodes.park(1, agent()));
        tokio::time::sleep(short / 3).await;
        assert!(parked.iter().all(|claim| !claim.is_finished()));
        let asked = Instant::now();
        if wakes {
            nodes.ask_breaker(1, BreakerCommand::Reset).await;
        }
        for parked in parked {
            let (claimed, at) = in_time(parked).await.unwrap();
            assert_eq!(claimed.len(), 1);
            let late = match wakes {
                true => at.saturating_duration_since(asked),
                false => (at - opened).checked_sub(short).expect("it was open for a while"),
            };
            assert!(late < Duration::from_secs(5), "{late:?}");
            nodes.end_as(0, &claimed, done).await;
        }
    }
    nodes.verify().await;
}

/// Ends what it has claimed in one batch, every third time as a failure, until nothing is left; how many ends of each
/// handler there were, and failures among them.
async fn work(store: Arc<dyn Store>, node: usize, now: Time) -> Vec<(Name, bool)> {
    let mut ended = Vec::new();
    loop {
        let claimed = store.claim(of_node(node as u64 + 1, 120), now).await.unwrap();
        if claimed.is_empty() {
            return ended;
        }
        let mut finishes = Vec::new();
        for (at, claimed) in claimed.iter().enumerate() {
            let fails = node != 1 && at % 3 == 0;
            finishes.push(Finish::new(claimed.lease, if fails { failed() } else { done() }));
            ended.push((claimed.spec.handler.clone(), fails));
        }
        for answer in store.finish(finishes, now).await.unwrap() {
            answer.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_in_big_batches_on_several_nodes_lose_no_count_and_wait_for_nobody_in_a_circle() {
    let nodes = Nodes::new(3).await;
    // Each end concerns some of these, in another order than that of their names.
    let covered = [
        ("z", patient(&["one", "two"], &[])),
        ("m", patient(&["two", "three"], &[])),
        ("a", patient(&["three"], &["node1"])),
        ("k", patient(&[], &["node2", "node3"])),
    ];
    for (node, (name, settings)) in covered.iter().enumerate() {
        nodes.put_breaker(node % 3, name, settings.clone()).await;
    }
    // This one is half-open all the time, with room for all.
    let tried = BreakerSettings {
        failures: None,
        probes: u32::MAX,
        open_for: Span(Duration::ZERO),
        ..patient(&["tried"], &[])
    };
    nodes.put_breaker(0, "b", tried).await;
    nodes.ask_breaker(0, BreakerCommand::Trip).await;
    for handler in ["one", "two", "three", "tried"] {
        nodes.add(0, of(handler, 500)).await;
    }
    let over = Arc::new(AtomicBool::new(false));
    // Meanwhile queues and another breaker change.
    let changes = {
        let (store, call, over) = (Arc::clone(&nodes.stores[2]), nodes.call(), Arc::clone(&over));
        tokio::spawn(async move {
            for turn in 1u32.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let settings = QueueSettings {
                    max_concurrent: Some(1_000 + turn),
                    ..QueueSettings::default()
                };
                store.put_queue(&call, "default".into(), settings, None).await.unwrap();
                let other = BreakerSettings {
                    calls_min: turn,
                    ..patient(&["one", "three"], &[])
                };
                store.put_breaker(&call, "y".into(), other, None).await.unwrap();
                // Claims read all of this again after each change, and are to come to something.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    };
    let mut nodes_at_work = JoinSet::new();
    for (node, store) in nodes.stores.iter().enumerate() {
        let (store, now) = (Arc::clone(store), nodes.now);
        nodes_at_work.spawn(async move { (node, work(store, node, now).await) });
    }
    let mut ended: Vec<(usize, Name, bool)> = Vec::new();
    for (node, ends) in in_time(nodes_at_work.join_all()).await {
        ended.extend(ends.into_iter().map(|(handler, fails)| (node, handler, fails)));
    }
    over.store(true, Ordering::Relaxed);
    in_time(changes).await.unwrap();
    // Who gave up early for others being at work leaves the rest.
    let rest = work(Arc::clone(&nodes.stores[0]), 0, nodes.now).await;
    ended.extend(rest.into_iter().map(|(handler, fails)| (0, handler, fails)));
    for (name, settings) in &covered {
        let covers = |(node, handler, _): &&(usize, Name, bool)| settings.covers(handler, &format!("node{}", node + 1));
        let covered: Vec<_> = ended.iter().filter(covers).collect();
        let failures = covered.iter().filter(|(.., fails)| *fails).count();
        let counted = nodes.known(name).await.counted(nodes.now);
        assert_eq!(counted, (covered.len() as u64, failures as u64), "breaker {name}");
    }
    nodes.verify().await;
    nodes.close_without_deadlocks().await;
}
