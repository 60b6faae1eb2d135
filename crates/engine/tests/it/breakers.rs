//! Circuit breakers, and what a node's machine has: what waits, what is let through, and what `explain` says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use pensum_core::breaker::{BreakerCommand, BreakerState};
use pensum_core::input::{BreakerInput, parse_object};
use pensum_core::task::Resources;
use pensum_core::{ErrorInfo, Json, NewTask, Outcome, Spec, State, TaskId};
use pensum_engine::{BreakerView, EngineBuilder, EngineError, Explanation, Gate, GateKind};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::{World, error, fun, retry_in, spec, with, world};

impl World {
    async fn put_breaker(&self, name: &str, settings: Value) -> BreakerView {
        let input = parse_object::<BreakerInput>(settings.to_string().as_bytes()).unwrap();
        let call = self.call();
        self.engine.put_breaker(&call, name, input, None).await.unwrap()
    }

    async fn breaker(&self, name: &str) -> BreakerView {
        self.engine.breaker("default", name).await.unwrap()
    }

    async fn explained(&self, id: TaskId) -> Explanation {
        self.engine.explain("default", id).await.unwrap()
    }

    async fn is_ready(&self, id: TaskId) -> bool {
        self.get(id).await.lifecycle.state == State::Queued
    }
}

/// The only gate that is closed.
#[track_caller]
fn gate(explanation: &Explanation, kind: GateKind) -> &Gate {
    match explanation.gates.as_slice() {
        [gate] if gate.gate == kind => gate,
        _ => panic!("{explanation:?}"),
    }
}

/// What a handler named `flaky` does: it fails while it is `broken`, and counts its runs.
#[derive(Default)]
struct Flaky {
    broken: AtomicBool,
    runs: AtomicUsize,
}

impl Flaky {
    fn new() -> Arc<Flaky> {
        let flaky = Flaky::default();
        flaky.broken.store(true, Ordering::SeqCst);
        Arc::new(flaky)
    }

    fn bound(self: &Arc<Flaky>) -> impl FnOnce(EngineBuilder) -> EngineBuilder + use<> {
        let flaky = Arc::clone(self);
        let handler = fun(move |_| {
            let flaky = Arc::clone(&flaky);
            async move {
                flaky.runs.fetch_add(1, Ordering::SeqCst);
                sleep(Duration::from_secs(1)).await;
                match flaky.broken.load(Ordering::SeqCst) {
                    true => Outcome::Retry {
                        error: ErrorInfo::new("down", "the other side is down"),
                        after: None,
                    },
                    false => Outcome::Done(Json::null()),
                }
            }
        });
        move |builder| builder.handler("flaky", handler).slots(8)
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    fn mend(&self) {
        self.broken.store(false, Ordering::SeqCst);
    }
}

/// Fails for good at its first failure.
fn once(handler: &str) -> Spec {
    Spec {
        max_retries: Some(0),
        ..spec(handler)
    }
}

#[tokio::test(start_paused = true)]
async fn what_fails_again_and_again_is_left_alone_probed_and_closed() {
    let flaky = Flaky::new();
    let world = world(flaky.bound()).start();
    let settings = json!({ "failures": 3, "window": 60, "open_for": 20 });
    assert_eq!(
        world.put_breaker("handler:flaky", settings).await.state,
        BreakerState::Closed
    );
    for _ in 0..3 {
        let id = world.add(once("flaky")).await;
        assert_eq!(world.end(id).await.lifecycle.state, State::Failed);
    }
    let opened = world.breaker("handler:flaky").await;
    assert_eq!(opened.state, BreakerState::Open, "{opened:?}");
    let (opened_at, tries_at) = (opened.opened_at.unwrap(), opened.tries_at.unwrap());
    assert_eq!(tries_at, opened_at.plus(Duration::from_secs(20)));

    // Nothing of it starts, and everything else does.
    let mut waiting = Vec::new();
    for _ in 0..5 {
        waiting.push(world.add(once("flaky")).await);
    }
    let other = world.add(spec("noop")).await;
    assert_eq!(world.end(other).await.lifecycle.state, State::Completed);
    sleep(Duration::from_secs(15)).await;
    assert_eq!(flaky.runs(), 3);
    let explanation = world.explained(waiting[4]).await;
    let closed = gate(&explanation, GateKind::Breaker);
    assert_eq!((closed.since, closed.opens_at), (Some(opened_at), Some(tries_at)));
    for part in ["`handler:flaky` is open", "pensum breaker reset handler:flaky"] {
        assert!(closed.message.contains(part), "{closed:?}");
    }

    // Half-open it lets one through, and waits for its end.
    flaky.mend();
    let first = world
        .until(waiting[0], |task| task.lifecycle.state == State::Running)
        .await;
    assert!(first.lifecycle.started_at.unwrap() >= tries_at);
    let explanation = world.explained(waiting[1]).await;
    let closed = gate(&explanation, GateKind::Breaker);
    assert!(closed.message.contains("is half-open: 1 of 1 try"), "{closed:?}");
    assert_eq!((closed.since, closed.opens_at), (Some(tries_at), None));
    let view = world.breaker("handler:flaky").await;
    assert_eq!(
        (view.state, view.probing, view.tries_at),
        (BreakerState::HalfOpen, 1, None)
    );
    assert_eq!(flaky.runs(), 4);

    // Its success closes the breaker, and everything runs at once.
    let probe = world.end(waiting[0]).await;
    let mut ended = Vec::new();
    for id in &waiting[1..] {
        let task = world.end(*id).await;
        assert_eq!((task.lifecycle.state, task.lifecycle.attempt), (State::Completed, 1));
        ended.push(task.lifecycle.finished_at.unwrap());
    }
    assert_eq!(ended.iter().max(), ended.iter().min());
    assert!(ended[0] > probe.lifecycle.finished_at.unwrap());
    let closed = world.breaker("handler:flaky").await;
    assert_eq!(
        (closed.state, closed.failures, closed.because),
        (BreakerState::Closed, 0, None)
    );
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_fails_opens_it_again_and_its_task_waits_without_losing_attempts() {
    let flaky = Flaky::new();
    let world = world(flaky.bound()).start();
    world
        .put_breaker("handler:flaky", json!({ "failures": 2, "open_for": 20, "probes": 2 }))
        .await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        let spec = Spec {
            max_retries: Some(2),
            ..spec("flaky")
        };
        ids.push(world.add(retry_in(spec, 1)).await);
    }
    // All four begin, and two failures open it; the ends of the other two say nothing any more.
    sleep(Duration::from_secs(10)).await;
    assert_eq!(flaky.runs(), 4);
    assert_eq!(world.breaker("handler:flaky").await.state, BreakerState::Open);
    // Two probes after 20 s, two more 20 s after their failure.
    sleep(Duration::from_secs(15)).await;
    assert_eq!(flaky.runs(), 6);
    let view = world.breaker("handler:flaky").await;
    assert_eq!((view.state, view.version), (BreakerState::Open, 3), "{view:?}");
    flaky.mend();
    for id in &ids {
        let task = world.end(*id).await;
        assert_eq!(task.lifecycle.state, State::Completed, "{task:?}");
        assert!(task.lifecycle.attempt <= 3, "{task:?}");
    }
    assert_eq!(flaky.runs(), 10, "four failed, two probes failed, then all four ran");
}

#[tokio::test(start_paused = true)]
async fn a_rate_opens_it_once_there_were_enough_ends_and_a_cancel_is_no_failure() {
    let world = world(|b| {
        b.handler(
            "half",
            fun(|ctx| async move {
                let parameters: Value = ctx.parameters().unwrap();
                match parameters["fails"] == true {
                    true => Outcome::Fail(ErrorInfo::new("odd", "as asked")),
                    false => Outcome::Done(Json::null()),
                }
            }),
        )
    })
    .start();
    world
        .put_breaker(
            "b",
            json!({ "handlers": ["half", "sleep"], "failure_rate": 0.5, "calls_min": 4 }),
        )
        .await;
    let slow = world.add(with("sleep", json!({ "seconds": 3600 }))).await;
    world.until(slow, |task| task.lifecycle.state == State::Running).await;
    world
        .command(slow, pensum_core::store::Command::Cancel { reason: None })
        .await
        .unwrap();
    world.end(slow).await;
    let before = world.breaker("b").await;
    assert_eq!((before.calls, before.failures), (0, 0), "{before:?}");
    for (fails, state) in [
        (true, BreakerState::Closed),
        (false, BreakerState::Closed),
        (true, BreakerState::Closed),
        (true, BreakerState::Open),
    ] {
        let id = world.add(with("half", json!({ "fails": fails }))).await;
        let task = world.end(id).await;
        if fails {
            assert_eq!(error(&task).0, "odd");
        }
        assert_eq!(world.breaker("b").await.state, state);
    }
}

#[tokio::test(start_paused = true)]
async fn people_open_close_and_remove_it_at_once() {
    let world = world(|b| b).start();
    world.put_breaker("handler:noop", json!({ "open_for": "1h" })).await;
    let command = async |command| {
        let call = world.call();
        let commanded = world.engine.command_breaker(&call, "handler:noop", command).await;
        commanded.unwrap().state
    };
    assert_eq!(command(BreakerCommand::Trip).await, BreakerState::Open);
    let first = world.add(spec("noop")).await;
    sleep(Duration::from_secs(60)).await;
    assert!(world.is_ready(first).await);
    let begun = world.engine.now();
    assert_eq!(command(BreakerCommand::Reset).await, BreakerState::Closed);
    assert_eq!(world.end(first).await.lifecycle.state, State::Completed);
    assert!(world.engine.now().since(begun) < Duration::from_millis(100));

    assert_eq!(command(BreakerCommand::Trip).await, BreakerState::Open);
    let second = world.add(spec("noop")).await;
    sleep(Duration::from_secs(60)).await;
    assert!(world.is_ready(second).await);
    let begun = world.engine.now();
    world
        .engine
        .delete_breaker(&world.call(), "handler:noop")
        .await
        .unwrap();
    assert_eq!(world.end(second).await.lifecycle.state, State::Completed);
    assert!(world.engine.now().since(begun) < Duration::from_millis(100));
    let gone = world.engine.breaker("default", "handler:noop").await;
    assert!(matches!(gone, Err(EngineError::Rejected(_))), "{gone:?}");
}

/// A task that asks for cores.
fn cores(handler: &str, cores: f64) -> Spec {
    let mut spec = with(handler, json!({}));
    spec.details_mut().resources = Some(Resources {
        cpu_cores: Some(cores),
        ..Resources::default()
    });
    spec
}

/// A node with two cores, whose handler `work` notes how many of its runs there are at once.
fn two_cores(running: &Arc<AtomicUsize>, most: &Arc<AtomicUsize>) -> World {
    let (running, most) = (Arc::clone(running), Arc::clone(most));
    let handler = fun(move |_| {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        async move {
            let now = running.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(now, Ordering::SeqCst);
            sleep(Duration::from_secs(10)).await;
            running.fetch_sub(1, Ordering::SeqCst);
            Outcome::Done(Json::null())
        }
    });
    let offered = Resources {
        cpu_cores: Some(2.0),
        ..Resources::default()
    };
    world(move |b| b.handler("work", handler).resources(offered).slots(16)).start()
}

#[tokio::test(start_paused = true)]
async fn a_node_never_runs_more_than_its_machine_has() {
    let (running, most) = (Arc::default(), Arc::default());
    let world = two_cores(&running, &most);
    let mut ids = Vec::new();
    for _ in 0..7 {
        ids.push(world.add(cores("work", 1.0)).await);
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(running.load(Ordering::SeqCst), 2);
    let explanation = world.explained(ids[6]).await;
    let scarce = gate(&explanation, GateKind::Resources);
    assert!(scarce.message.contains("0 of 1 cpu_cores are free"), "{scarce:?}");
    // What asks for nothing goes by.
    let free = world.add(spec("noop")).await;
    assert_eq!(world.end(free).await.lifecycle.state, State::Completed);
    for id in &ids {
        assert_eq!(world.end(*id).await.lifecycle.state, State::Completed);
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_asks_for_more_than_there_is_waits_and_says_so() {
    let (running, most) = (Arc::default(), Arc::default());
    let world = two_cores(&running, &most);
    let large = world.add_task(NewTask::new(cores("work", 3.0))).await;
    sleep(Duration::from_secs(60)).await;
    assert!(world.is_ready(large).await);
    let explanation = world.explained(large).await;
    let scarce = gate(&explanation, GateKind::Resources);
    assert!(
        scarce
            .message
            .contains("more resources than this node has: 2 of 3 cpu_cores"),
        "{scarce:?}"
    );
    // Smaller ones are not held up by it.
    let small = world.add(cores("work", 2.0)).await;
    assert_eq!(world.end(small).await.lifecycle.state, State::Completed);
    assert!(world.is_ready(large).await);
}
