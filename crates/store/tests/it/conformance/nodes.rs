//! Nodes: who is listed, who is given up for dead, and what that means for their tasks.

use std::time::Duration;

use pensum_core::store::{Checkpoint, ClaimRequest, Claimed, Command, NODE_LISTED, NodeBeat};
use pensum_core::task::ExecutionStatus;
use pensum_core::transition::EventKind;
use pensum_core::{Name, NodeId, State, TaskId};

use super::World;
use super::world::{LEASE, NODE, ids, json, task};

const OTHER: NodeId = NodeId(2);
/// Shorter than a lease, as a node has it: when its leases run out, it is known whether it lives.
const TTL: Duration = Duration::from_secs(15);

fn beat(w: &World, node: NodeId) -> NodeBeat {
    NodeBeat {
        node,
        name: Name::from(format!("name of {}", node.0)),
        version: "1.2.3".to_owned(),
        address: Some("http://127.0.0.1:7400".to_owned()),
        started_at: w.now(),
        slots: 8,
        running: 3,
        ttl: TTL,
    }
}

/// A node says that it lives; answers how many commands there were for it.
async fn lives(w: &World, node: NodeId) -> u64 {
    w.store.heartbeat(beat(w, node), w.now()).await.unwrap().commands
}

async fn claim_as(w: &World, node: NodeId, slots: usize) -> Vec<Claimed> {
    let request = ClaimRequest {
        node,
        ..w.request(slots)
    };
    w.store.claim(request, w.now()).await.unwrap()
}

/// Name and status of every node that is listed.
async fn listed(w: &World) -> Vec<(String, String)> {
    let nodes = w.store.nodes(w.now()).await.unwrap();
    nodes
        .into_iter()
        .map(|node| (node.name.to_string(), node.status))
        .collect()
}

fn pair(name: &str, status: &str) -> (String, String) {
    (name.to_owned(), status.to_owned())
}

async fn is_suspect(w: &World, id: TaskId) -> bool {
    w.get(id).await.lifecycle.suspect
}

pub(crate) async fn a_node_is_listed_from_its_first_beat_until_it_leaves(w: &World) {
    assert!(listed(w).await.is_empty());
    let started_at = w.now();
    lives(w, OTHER).await;
    w.pass(5.0);
    lives(w, NODE).await;
    let again = NodeBeat {
        running: 4,
        started_at,
        ..beat(w, OTHER)
    };
    w.store.heartbeat(again, w.now()).await.unwrap();
    let nodes = w.store.nodes(w.now()).await.unwrap();
    assert_eq!(nodes.len(), 2);
    let oldest = &nodes[0];
    assert_eq!(
        (&*oldest.id, &*oldest.name, &*oldest.status, &*oldest.version),
        ("node-0000000000000002", "name of 2", "running", "1.2.3")
    );
    assert_eq!(oldest.address.as_deref(), Some("http://127.0.0.1:7400"));
    assert_eq!((oldest.slots, oldest.running), (8, 4));
    assert_eq!((oldest.started_at, oldest.seen_at), (started_at, w.now()));
    assert_eq!(nodes[1].id, NODE.to_string());
    w.store.leave(OTHER, w.now()).await.unwrap();
    w.store.leave(NodeId(77), w.now()).await.unwrap();
    assert_eq!(listed(w).await, [pair("name of 1", "running")]);
}

pub(crate) async fn a_silent_node_is_lost_until_it_says_something(w: &World) {
    lives(w, NODE).await;
    w.pass(TTL.as_secs_f64() - 0.1);
    assert_eq!(listed(w).await, [pair("name of 1", "running")]);
    w.pass(0.1);
    assert_eq!(listed(w).await, [pair("name of 1", "lost")]);
    lives(w, NODE).await;
    assert_eq!(listed(w).await, [pair("name of 1", "running")]);
    w.pass(NODE_LISTED.as_secs_f64());
    assert_eq!(listed(w).await, [pair("name of 1", "lost")]);
    w.pass(1.0);
    w.reap().await;
    assert!(listed(w).await.is_empty());
    lives(w, NODE).await;
    assert_eq!(listed(w).await, [pair("name of 1", "running")]);
}

pub(crate) async fn two_incarnations_of_one_name_are_two_nodes(w: &World) {
    for node in [OTHER, NODE] {
        let beat = NodeBeat {
            name: Name::from("alpha"),
            ..beat(w, node)
        };
        w.store.heartbeat(beat, w.now()).await.unwrap();
    }
    let nodes = w.store.nodes(w.now()).await.unwrap();
    let ids: Vec<&str> = nodes.iter().map(|node| &*node.id).collect();
    // They started in the same moment: the id decides.
    assert_eq!(ids, ["node-0000000000000001", "node-0000000000000002"]);
    assert!(nodes.iter().all(|node| &*node.name == "alpha"));
}

pub(crate) async fn a_fresh_task_of_a_dead_node_is_suspected_and_runs_alone(w: &World) {
    lives(w, NODE).await;
    let id = w.add(task()).await;
    claim_as(w, NODE, 1).await;
    let other = w.add(task()).await;
    // However late somebody notices: it ran for as long as its node was heard.
    w.pass(1000.0);
    let reaped = w.reap().await;
    assert_eq!((reaped.leases_expired, reaped.overdue), (1, 0));
    let record = w.get(id).await;
    assert_eq!(
        (record.lifecycle.state, record.lifecycle.suspect),
        (State::Queued, true)
    );
    let error = record.error.unwrap();
    assert_eq!(
        (&*error.kind, &*error.message),
        ("crashed_node", "node-0000000000000001 died while it ran the task")
    );
    let executions = w.store.executions("default", id).await.unwrap();
    assert_eq!(executions[0].status, ExecutionStatus::Crashed);
    let events = w.store.events("default", id).await.unwrap();
    assert_eq!(events.last().unwrap().kind, EventKind::Crashed);
    let alone = claim_as(w, OTHER, 10).await;
    assert_eq!(ids(&alone), [id]);
    assert!(claim_as(w, OTHER, 10).await.is_empty());
    w.done(&alone[0]).await;
    assert_eq!(ids(&claim_as(w, OTHER, 10).await), [other]);
}

pub(crate) async fn a_task_that_survived_its_start_is_not_suspected_of_its_nodes_death(w: &World) {
    lives(w, NODE).await;
    let old = w.add(task()).await;
    let held = claim_as(w, NODE, 1).await;
    w.pass(61.0);
    let (saved, fresh) = (w.add(task()).await, w.add(task()).await);
    let young = claim_as(w, NODE, 2).await;
    let checkpoint = Checkpoint {
        state: Some(json("1")),
        ..Checkpoint::new(young[0].lease)
    };
    w.store.checkpoint(checkpoint, w.now()).await.unwrap().unwrap();
    let beats = [&held[0], &young[0], &young[1]].map(|claimed| pensum_core::store::Beat {
        lease: claimed.lease,
        progress: None,
        logs: Vec::new(),
    });
    w.store.renew(beats.to_vec(), LEASE, w.now()).await.unwrap();
    lives(w, NODE).await;
    w.pass(LEASE.as_secs_f64());
    assert_eq!(w.reap().await.leases_expired, 3);
    for (id, expected) in [(old, false), (saved, false), (fresh, true)] {
        assert_eq!(is_suspect(w, id).await, expected);
        assert_eq!(w.error_kind(id).await.as_deref(), Some("crashed_node"));
        assert_eq!(w.get(id).await.lifecycle.failures, 0);
    }
}

pub(crate) async fn a_task_that_was_alone_when_its_node_died_thrice_fails(w: &World) {
    let id = w.add(task()).await;
    for number in 1..=4 {
        lives(w, NodeId(number)).await;
        assert_eq!(ids(&claim_as(w, NodeId(number), 5).await), [id]);
        w.pass(LEASE.as_secs_f64());
        let reaped = w.reap().await;
        assert_eq!(
            (reaped.leases_expired, reaped.ended.len()),
            (1, usize::from(number == 4))
        );
    }
    assert_eq!(w.state(id).await, State::Failed);
    assert_eq!(w.error_kind(id).await.as_deref(), Some("crashed_node"));
}

pub(crate) async fn a_lease_that_ran_out_on_a_living_node_is_no_crash(w: &World) {
    lives(w, NODE).await;
    let id = w.add(task()).await;
    claim_as(w, NODE, 1).await;
    w.pass(LEASE.as_secs_f64());
    lives(w, NODE).await;
    assert_eq!(w.reap().await.leases_expired, 1);
    assert!(!is_suspect(w, id).await && w.get(id).await.error.is_none());
    let events = w.store.events("default", id).await.unwrap();
    assert_eq!(events.last().unwrap().kind, EventKind::LeaseExpired);
    // Nor is it one on a node that left, for whatever reason it left something behind.
    claim_as(w, NODE, 1).await;
    w.store.leave(NODE, w.now()).await.unwrap();
    w.pass(LEASE.as_secs_f64());
    assert_eq!(w.reap().await.leases_expired, 1);
    assert!(!is_suspect(w, id).await && w.get(id).await.error.is_none());
}

pub(crate) async fn a_command_for_a_held_task_is_counted_for_its_holder_alone(w: &World) {
    assert_eq!((lives(w, NODE).await, lives(w, OTHER).await), (0, 0));
    let (held, queued) = (w.add(task()).await, w.add(task()).await);
    claim_as(w, NODE, 1).await;
    let told = |before: u64, after: u64| assert!(after > before, "{before} {after}");
    let first = lives(w, NODE).await;
    w.command(held, Command::Pause).await.unwrap();
    let second = lives(w, NODE).await;
    told(first, second);
    // As asked already, and asked of a task that nobody holds.
    w.command(held, Command::Pause).await.unwrap_err();
    w.command(queued, Command::Pause).await.unwrap();
    w.command(queued, Command::Resume).await.unwrap();
    assert_eq!(lives(w, NODE).await, second);
    w.command(held, Command::Resume).await.unwrap();
    let third = lives(w, NODE).await;
    told(second, third);
    w.cancel(held).await.unwrap();
    told(third, lives(w, NODE).await);
    assert_eq!(lives(w, OTHER).await, 0);
}
