//! Several nodes over one store: signs of life, deaths, and commands that reach another node.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pensum_core::model::ModelStore;
use pensum_core::seam::{Clock, ManualClock};
use pensum_core::store::{Call, Command};
use pensum_core::transition::EventKind;
use pensum_core::{NewTask, Outcome, State, Store, TaskId, Time};
use pensum_engine::{Engine, EngineBuilder};
use serde_json::json;
use tokio::sync::Notify;

use crate::support::{Faults, FaultyStore, fun, seams, spec, with, world};

/// Nodes over one store, on one clock.
struct Nodes {
    store: Arc<ModelStore>,
    seams: pensum_core::seam::Seams,
    /// A handler of `stay` began.
    began: Arc<Notify>,
}

impl Nodes {
    fn new() -> Nodes {
        Nodes {
            store: Arc::new(ModelStore::new(3)),
            seams: seams(),
            began: Arc::new(Notify::new()),
        }
    }

    fn node(&self, name: &str, build: impl FnOnce(EngineBuilder) -> EngineBuilder) -> Engine {
        let store: Arc<dyn Store> = Arc::clone(&self.store) as Arc<dyn Store>;
        let engine = build(Engine::builder(store).seams(self.seams.clone()).name(name)).build();
        engine.start();
        engine
    }

    /// A node whose handler `stay` runs until it is told to stop.
    fn worker(&self, name: &str) -> Engine {
        let began = Arc::clone(&self.began);
        let stay = fun(move |ctx| {
            began.notify_one();
            async move {
                ctx.cancellation().cancelled().await;
                Outcome::Cancelled
            }
        });
        self.node(name, |builder| builder.handler("stay", stay))
    }

    async fn add(&self, engine: &Engine) -> TaskId {
        let call = Call::new("tester", engine.now());
        engine
            .enqueue(&call, vec![NewTask::new(spec("stay"))])
            .await
            .unwrap()
            .remove(0)
            .id
    }

    async fn kinds(&self, id: TaskId) -> Vec<EventKind> {
        let events = self.store.events("default", id).await.unwrap();
        events.into_iter().map(|event| event.kind).collect()
    }
}

async fn command(engine: &Engine, id: TaskId, command: Command) {
    let call = Call::new("tester", engine.now());
    let answers = engine.command(&call, vec![id], command).await.unwrap();
    assert!(answers[0].is_ok(), "{answers:?}");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_reaches_a_task_on_another_node_long_before_its_lease_is_renewed() {
    // At several distances from the last beat: it must never be more than one beat late.
    for millis in [1_100, 1_400, 1_700, 1_999] {
        let nodes = Nodes::new();
        let (asking, running) = (nodes.node("asking", |b| b), nodes.worker("running"));
        let id = nodes.add(&asking).await;
        nodes.began.notified().await;
        tokio::time::sleep(Duration::from_millis(millis)).await;
        let asked = tokio::time::Instant::now();
        command(&asking, id, Command::Cancel { reason: None }).await;
        let record = asking.wait("default", id, None).await.unwrap();
        assert_eq!(record.lifecycle.state, State::Cancelled);
        // The lease lasts 30 s, and is renewed after ten.
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        for engine in [asking, running] {
            engine.shutdown(Duration::ZERO).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_is_listed_until_it_ends_and_as_lost_when_it_just_stops() {
    let nodes = Nodes::new();
    let first = nodes.node("first", |b| b.slots(3).address("http://127.0.0.1:7400"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let second = nodes.worker("second");
    nodes.add(&first).await;
    nodes.began.notified().await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let listed = first.nodes().await.unwrap();
    assert_eq!(listed, first.status().await.unwrap().nodes);
    let told: Vec<_> = listed
        .iter()
        .map(|node| (&*node.name, &*node.status, node.running, node.slots, &node.address))
        .collect();
    let address = Some("http://127.0.0.1:7400".to_owned());
    assert_eq!(
        told,
        [
            ("first", "running", 0, 3, &address),
            ("second", "running", 1, 64, &None)
        ]
    );
    assert_eq!(listed[1].id, second.node().id.to_string());
    assert!(first.now().since(listed[0].seen_at) <= Duration::from_secs(1));
    assert_eq!(listed[0].started_at, first.node().started_at);
    second.shutdown(Duration::ZERO).await;
    let third = nodes.node("third", |b| b);
    tokio::time::sleep(Duration::from_secs(1)).await;
    third.abort().await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let listed = first.nodes().await.unwrap();
    let told: Vec<_> = listed.iter().map(|node| (&*node.name, &*node.status)).collect();
    assert_eq!(told, [("first", "running"), ("third", "lost")]);
    first.shutdown(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_node_died_is_suspected_whenever_in_its_lease_that_was() {
    for millis in [10, 5_000, 9_990, 10_200, 19_000, 29_900] {
        let nodes = Nodes::new();
        let (watching, dying) = (nodes.node("watching", |b| b), nodes.worker("dying"));
        let id = nodes.add(&watching).await;
        nodes.began.notified().await;
        tokio::time::sleep(Duration::from_millis(millis)).await;
        dying.abort().await;
        tokio::time::sleep(Duration::from_secs(32)).await;
        let record = nodes.store.task("default", id).await.unwrap().unwrap();
        assert!(record.lifecycle.suspect, "{millis}: {:?}", nodes.kinds(id).await);
        assert_eq!(nodes.kinds(id).await.last(), Some(&EventKind::Crashed), "{millis}");
        watching.shutdown(Duration::ZERO).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_not_heard_itself_takes_no_node_for_dead() {
    // As on a machine that slept: all are silent, and none is dead.
    let world = world(|b| b).start();
    let id = world.add(with("sleep", json!({ "seconds": 300 }))).await;
    world.until(id, |record| record.lifecycle.state == State::Running).await;
    world.faults.beats_fail.store(true, Ordering::SeqCst);
    world.faults.renewals_hang.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(world.engine.nodes().await.unwrap()[0].status, "lost");
    world.faults.beats_fail.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let events = world.engine.store().events("default", id).await.unwrap();
    let kinds: Vec<_> = events.iter().map(|event| event.kind).collect();
    // It stopped the task by itself, and gave it back as soon as that could be said.
    let expected = [
        EventKind::Created,
        EventKind::Started,
        EventKind::Released,
        EventKind::Started,
    ];
    assert_eq!(kinds, expected);
}

#[tokio::test(start_paused = true)]
async fn a_node_beats_once_a_second_whether_the_store_answers_or_not() {
    let world = world(|b| b).start();
    let count = |faults: &Faults| faults.beats.swap(0, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(10_500)).await;
    assert_eq!(count(&world.faults), 11);
    world.faults.down.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(count(&world.faults), 60);
    assert_eq!(world.engine.nodes().await.unwrap()[0].status, "lost");
    world.faults.down.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.engine.nodes().await.unwrap()[0].status, "running");
    world.engine.shutdown(Duration::ZERO).await;
    let ended = count(&world.faults);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((ended, count(&world.faults)), (1, 0));
    assert!(world.engine.nodes().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_time_of_a_store_with_a_clock_is_the_time_of_its_nodes() {
    let noon = Time::parse("2031-05-05T12:00:00Z").unwrap();
    let clock = Arc::new(ManualClock::new(noon));
    let store = || {
        Arc::new(FaultyStore {
            inner: Arc::new(ModelStore::new(1)),
            faults: Arc::default(),
            clock: Some(Arc::clone(&clock) as Arc<dyn Clock>),
        })
    };
    let engine = Engine::builder(store()).build();
    assert_eq!((engine.now(), engine.node().started_at), (noon, noon));
    clock.advance(Duration::from_secs(5));
    assert_eq!(engine.now(), noon.plus(Duration::from_secs(5)));
    let told_otherwise = Engine::builder(store()).seams(seams()).build();
    assert!(told_otherwise.now() < noon);
}
