//! Circuit breakers: what they hold up, and what opens and closes them.

use std::time::Duration;

use pensum_core::agent::AgentSettings;
use pensum_core::breaker::{BreakerCommand, BreakerRecord, BreakerSettings, BreakerState};
use pensum_core::store::{AgentClaim, ClaimRequest, Claimed, Rejected, StoreError};
use pensum_core::time::Span;
use pensum_core::{Name, NewTask, NodeId, Outcome, State};

use super::World;
use super::world::{ids, retry, task, task_with};

fn flaky() -> NewTask {
    task_with(|t| t.spec.handler = Name::from("flaky"))
}

fn some(count: usize) -> Vec<NewTask> {
    (0..count).map(|_| flaky()).collect()
}

/// Opens at the second failure within a minute, for ten seconds.
fn of_flaky() -> BreakerSettings {
    BreakerSettings {
        handlers: vec![Name::from("flaky")],
        failures: Some(2),
        open_for: Span(Duration::from_secs(10)),
        ..BreakerSettings::default()
    }
}

async fn put(w: &World, settings: BreakerSettings) -> BreakerRecord {
    w.store
        .put_breaker(&w.call(), "b".into(), settings, None)
        .await
        .unwrap()
}

async fn known(w: &World) -> BreakerRecord {
    w.store.breakers("default").await.unwrap().remove(0)
}

async fn state(w: &World) -> BreakerState {
    known(w).await.state(w.now())
}

async fn of_node(w: &World, node: u64, slots: usize) -> Vec<Claimed> {
    let request = ClaimRequest {
        node: NodeId(node),
        ..w.request(slots)
    };
    w.store.claim(request, w.now()).await.unwrap()
}

async fn fail(w: &World, claimed: &Claimed) {
    w.finish(claimed.lease, retry()).await.unwrap();
}

fn is<T: std::fmt::Debug>(answer: Result<T, StoreError>, wanted: &Rejected) {
    match answer {
        Err(StoreError::Rejected(rejected)) => assert_eq!(rejected, *wanted),
        other => panic!("{other:?} should be {wanted:?}"),
    }
}

pub(crate) async fn failures_open_a_breaker_on_all_nodes_and_others_go_on(w: &World) {
    put(w, of_flaky()).await;
    w.add_all(some(5)).await;
    let held = of_node(w, 1, 3).await;
    fail(w, &held[0]).await;
    assert_eq!(state(w).await, BreakerState::Closed);
    fail(w, &held[1]).await;
    let record = known(w).await;
    assert_eq!((record.state(w.now()), record.version), (BreakerState::Open, 2));
    assert_eq!((record.memory.opened_at, record.changed_at), (Some(w.now()), w.now()));
    let other = w.add(task()).await;
    assert_eq!(ids(&of_node(w, 2, 10).await), [other]);
    // What ran goes on, and its end says nothing any more.
    w.done(&held[2]).await;
    assert_eq!(known(w).await.version, 2);
    w.pass(9.0);
    assert!(of_node(w, 2, 10).await.is_empty());
}

pub(crate) async fn a_half_open_breaker_lets_its_probes_try_and_closes_when_they_succeed(w: &World) {
    put(
        w,
        BreakerSettings {
            probes: 2,
            ..of_flaky()
        },
    )
    .await;
    w.add_all(some(9)).await;
    let held = of_node(w, 1, 3).await;
    fail(w, &held[0]).await;
    fail(w, &held[1]).await;
    w.pass(10.0);
    assert_eq!(state(w).await, BreakerState::HalfOpen);
    let first = of_node(w, 1, 1).await;
    assert_eq!(known(w).await.probing, 1);
    let second = of_node(w, 2, 10).await;
    assert_eq!((first.len(), second.len()), (1, 1));
    assert!(of_node(w, 1, 10).await.is_empty());
    // It had started before, and is none of the two.
    w.done(&held[2]).await;
    w.done(&first[0]).await;
    assert_eq!(state(w).await, BreakerState::HalfOpen);
    let third = of_node(w, 3, 10).await;
    assert_eq!(third.len(), 1);
    w.done(&second[0]).await;
    let record = known(w).await;
    assert_eq!((record.state(w.now()), record.version), (BreakerState::Closed, 3));
    assert_eq!(of_node(w, 1, 10).await.len(), 5);
    w.done(&third[0]).await;
}

pub(crate) async fn a_probe_that_fails_opens_the_breaker_again(w: &World) {
    put(w, of_flaky()).await;
    w.add_all(some(4)).await;
    for claimed in of_node(w, 1, 2).await {
        fail(w, &claimed).await;
    }
    w.pass(10.0);
    let probe = of_node(w, 1, 10).await.remove(0);
    w.pass(1.0);
    fail(w, &probe).await;
    assert_eq!(state(w).await, BreakerState::Open);
    w.pass(9.5);
    assert!(of_node(w, 1, 10).await.is_empty());
    w.pass(0.5);
    let probe = of_node(w, 1, 10).await;
    assert_eq!(probe.len(), 1);
    // A probe whose node dies tells nothing, and makes room for another.
    w.pass(30.0);
    w.reap().await;
    assert_eq!((state(w).await, known(w).await.probing), (BreakerState::HalfOpen, 0));
    assert_eq!(of_node(w, 1, 10).await.len(), 1);
}

pub(crate) async fn deaths_and_cancels_open_no_breaker(w: &World) {
    put(
        w,
        BreakerSettings {
            failures: Some(1),
            ..of_flaky()
        },
    )
    .await;
    let all = w.add_all(some(3)).await;
    let held = of_node(w, 1, 3).await;
    w.cancel(all[0]).await.unwrap();
    w.finish(held[0].lease, Outcome::Cancelled).await.unwrap();
    w.finish(held[1].lease, Outcome::Released).await.unwrap();
    w.pass(30.0);
    w.reap().await;
    assert_eq!(state(w).await, BreakerState::Closed);
    let error = pensum_core::ErrorInfo::new("boom", "it broke");
    let held = of_node(w, 1, 1).await;
    w.finish(held[0].lease, Outcome::Fail(error)).await.unwrap();
    assert_eq!(state(w).await, BreakerState::Open);
}

pub(crate) async fn a_breaker_of_an_agent_holds_up_that_agent_alone(w: &World) {
    let settings = AgentSettings {
        capabilities: vec![Name::from("flaky")],
        max_concurrent_tasks: 5,
        ..AgentSettings::default()
    };
    for (name, session) in [("bad", NodeId(71)), ("good", NodeId(72))] {
        w.store
            .put_agent(&w.call(), name.into(), settings.clone())
            .await
            .unwrap();
        w.store.open_session(&w.call(), name.into(), session).await.unwrap();
    }
    put(
        w,
        BreakerSettings {
            handlers: Vec::new(),
            agents: vec![Name::from("bad")],
            ..of_flaky()
        },
    )
    .await;
    let take = async |name: &str, session, slots| {
        let request = ClaimRequest {
            node: session,
            executor: Name::from(name),
            agent: Some(AgentClaim {
                namespace: Name::from("default"),
                name: Name::from(name),
                have: Vec::new(),
            }),
            ..w.request(slots)
        };
        w.store.claim(request, w.now()).await.unwrap()
    };
    w.add_all(some(6)).await;
    for claimed in take("good", NodeId(72), 2).await {
        fail(w, &claimed).await;
    }
    assert_eq!(state(w).await, BreakerState::Closed);
    for claimed in take("bad", NodeId(71), 2).await {
        fail(w, &claimed).await;
    }
    assert_eq!(state(w).await, BreakerState::Open);
    assert!(take("bad", NodeId(71), 5).await.is_empty());
    assert_eq!(take("good", NodeId(72), 1).await.len(), 1);
    w.pass(10.0);
    let probe = take("bad", NodeId(71), 5).await;
    assert_eq!(probe.len(), 1);
    w.done(&probe[0]).await;
    assert_eq!(state(w).await, BreakerState::Closed);
}

pub(crate) async fn people_open_close_change_and_remove_breakers(w: &World) {
    let record = put(w, of_flaky()).await;
    assert_eq!(
        (record.version, &*record.put_by, &record.settings),
        (1, "tester", &of_flaky())
    );
    w.add_all(some(3)).await;
    let ask = async |command| {
        let asked = w.store.command_breaker(&w.call(), "b".into(), command).await;
        asked.map(|record| (record.state(w.now()), record.version))
    };
    assert_eq!(ask(BreakerCommand::Reset).await, Ok((BreakerState::Closed, 1)));
    assert_eq!(ask(BreakerCommand::Trip).await, Ok((BreakerState::Open, 2)));
    w.claim_nothing().await;
    assert_eq!(ask(BreakerCommand::Reset).await, Ok((BreakerState::Closed, 3)));
    assert_eq!(w.claim(1).await.len(), 1);
    ask(BreakerCommand::Trip).await.unwrap();
    let again = async |expected| {
        w.store
            .put_breaker(&w.call(), "b".into(), BreakerSettings::default(), Some(expected))
            .await
    };
    let mismatch = Rejected::BreakerVersionMismatch {
        breaker: "b".into(),
        expected: 3,
        found: 4,
    };
    is(again(3).await, &mismatch);
    assert_eq!(again(4).await.unwrap().version, 5);
    // It covers nothing any more.
    assert_eq!(w.claim(1).await.len(), 1);
    put(w, of_flaky()).await;
    w.claim_nothing().await;
    w.store.delete_breaker(&w.call(), "b".into()).await.unwrap();
    assert_eq!(w.claim(1).await.len(), 1);
    let gone = Rejected::NoBreaker("b".into());
    is(w.store.delete_breaker(&w.call(), "b".into()).await, &gone);
    is(
        w.store
            .command_breaker(&w.call(), "b".into(), BreakerCommand::Trip)
            .await,
        &gone,
    );
    is(
        w.store.put_breaker(&w.call(), "b".into(), of_flaky(), Some(2)).await,
        &gone,
    );
    assert_eq!(w.store.breakers("default").await.unwrap(), []);
}

pub(crate) async fn breakers_of_different_namespaces_do_not_meet(w: &World) {
    let elsewhere = w.call_in("elsewhere");
    w.store
        .put_breaker(&elsewhere, "b".into(), of_flaky(), None)
        .await
        .unwrap();
    w.store
        .command_breaker(&elsewhere, "b".into(), BreakerCommand::Trip)
        .await
        .unwrap();
    let here = w.add(flaky()).await;
    w.store.enqueue(&elsewhere, vec![flaky()]).await.unwrap();
    assert_eq!(ids(&w.claim(10).await), [here]);
    assert_eq!(w.store.breakers("default").await.unwrap(), []);
}

pub(crate) async fn a_parked_claim_hears_that_a_breaker_lets_it_try(w: &World) {
    put(
        w,
        BreakerSettings {
            open_for: Span(Duration::from_secs(3_600)),
            ..of_flaky()
        },
    )
    .await;
    let ask = async |command| w.store.command_breaker(&w.call(), "b".into(), command).await;
    ask(BreakerCommand::Trip).await.unwrap();
    let id = w.add(flaky()).await;
    let request = ClaimRequest {
        wait: Duration::from_secs(5),
        ..w.request(1)
    };
    let (store, now) = (std::sync::Arc::clone(&w.store), w.now());
    let parked = tokio::spawn(async move {
        loop {
            let claimed = store.claim(request.clone(), now).await.unwrap();
            if !claimed.is_empty() {
                return claimed;
            }
            tokio::task::yield_now().await;
        }
    });
    tokio::task::yield_now().await;
    assert!(!parked.is_finished());
    ask(BreakerCommand::Reset).await.unwrap();
    assert_eq!(ids(&parked.await.unwrap()), [id]);
    assert_eq!(w.state(id).await, State::Running);
}

pub(crate) async fn breakers_are_carried_into_a_copy(w: &World) {
    put(w, of_flaky()).await;
    w.add_all(some(3)).await;
    for claimed in of_node(w, 1, 2).await {
        w.finish(
            claimed.lease,
            Outcome::Fail(pensum_core::ErrorInfo::new("boom", "it broke")),
        )
        .await
        .unwrap();
    }
    let other = super::dossiers::copy(w).await;
    assert_eq!(
        other.store.breakers("default").await.unwrap(),
        w.store.breakers("default").await.unwrap()
    );
    other.claim_nothing().await;
    other.pass(10.0);
    assert_eq!(other.claim(5).await.len(), 1);
    other.verify().await;
}
