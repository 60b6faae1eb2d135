//! Several nodes over one store that fails at random, nodes that die, people who interfere; then everything heals, and
//! an independent checker looks at what became of each task.
//!
//! `PENSUM_SIMULATION_SEEDS=100..200` runs other seeds; a failure names its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use pensum_core::model::ModelStore;
use pensum_core::seam::Seams;
use pensum_core::store::{Call, Command};
use pensum_core::task::Dependency;
use pensum_core::transition::EventKind;
use pensum_core::{ErrorInfo, Json, Name, NewTask, Outcome, State, Store, TaskId, Wait};
use pensum_engine::Engine;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::support::{Faults, FaultyStore, fun, retry_in, seams, spec, with};

const NODES: usize = 3;
const TASKS: usize = 120;
/// Fewer injected faults than this, and the run has shown nothing.
const FAULTS_MIN: usize = 50;

/// What handlers did, counted where no store can lie about it.
#[derive(Default)]
struct Effects {
    /// Ends of durable steps by task; more than one only where an end was not acknowledged.
    steps: Mutex<BTreeMap<TaskId, usize>>,
    /// Runs that returned well, by task.
    returned: Mutex<BTreeSet<TaskId>>,
}

struct Simulation {
    model: Arc<ModelStore>,
    faults: Arc<Faults>,
    effects: Arc<Effects>,
    seams: Seams,
    random: StdRng,
    nodes: Vec<Engine>,
    acknowledged: Vec<TaskId>,
    interfered: BTreeSet<TaskId>,
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let faults = Arc::new(Faults::default());
        let mut simulation = Simulation {
            model: Arc::new(ModelStore::new(seed)),
            faults,
            effects: Arc::new(Effects::default()),
            seams: seams(),
            random: StdRng::seed_from_u64(seed),
            nodes: Vec::new(),
            acknowledged: Vec::new(),
            interfered: BTreeSet::new(),
        };
        for _ in 0..NODES {
            let node = simulation.node();
            simulation.nodes.push(node);
        }
        simulation
    }

    fn node(&self) -> Engine {
        let store = FaultyStore {
            inner: Arc::clone(&self.model),
            faults: Arc::clone(&self.faults),
            clock: None,
        };
        let (steps, returned) = (Arc::clone(&self.effects), Arc::clone(&self.effects));
        let engine = Engine::builder(Arc::new(store))
            .seams(self.seams.clone())
            .slots(4)
            .lease(Duration::from_secs(10))
            .grace(Duration::from_secs(2))
            .builtin_handlers()
            .handler(
                "stepping",
                fun(move |ctx| {
                    let effects = Arc::clone(&steps);
                    async move {
                        let id = ctx.id();
                        let step = || async {
                            *effects.steps.lock().entry(id).or_default() += 1;
                            Ok(1)
                        };
                        if let Err(error) = ctx.step::<u32, _, _>("once", step).await {
                            return Outcome::Retry { error, after: None };
                        }
                        if ctx.attempt() == 1 {
                            return Outcome::Retry {
                                error: ErrorInfo::new("failed", "once more"),
                                after: None,
                            };
                        }
                        Outcome::Done(Json::null())
                    }
                }),
            )
            .handler(
                "parent",
                fun(|ctx| async move {
                    if ctx.checkpoint().is_some() {
                        return Outcome::Done(Json::null());
                    }
                    ctx.spawn_child(NewTask::new(spec("noop")));
                    ctx.spawn_child(NewTask::new(with("sleep", json!({ "seconds": 3 }))));
                    Outcome::Wait {
                        on: Wait::Children,
                        checkpoint: Some(Json::from(json!(true))),
                    }
                }),
            )
            .handler(
                "counted",
                fun(move |ctx| {
                    let effects = Arc::clone(&returned);
                    async move {
                        tokio::time::sleep(Duration::from_millis(300)).await;
                        effects.returned.lock().insert(ctx.id());
                        Outcome::Done(Json::null())
                    }
                }),
            )
            .build();
        engine.start();
        engine
    }

    fn any_node(&mut self) -> Engine {
        let index = self.random.random_range(0..NODES);
        self.nodes[index].clone()
    }

    fn task(&mut self) -> NewTask {
        let mut spec = match self.random.random_range(0..7) {
            0 => spec("noop"),
            1 => retry_in(with("fail", json!({ "times": 2 })), 1),
            2 => retry_in(with("fail", json!({})), 1),
            3 => with("sleep", json!({ "seconds": self.random.random_range(0..25) })),
            4 => retry_in(spec("stepping"), 1),
            5 => spec("parent"),
            _ => spec("counted"),
        };
        if self.random.random_bool(0.2) {
            spec.key = Some(Name::from(format!("key {}", self.random.random_range(0..3))));
        }
        // A lost node is no failure, but an interrupted write is: such tasks need some patience.
        if &*spec.handler == "stepping" {
            spec.max_retries = Some(50);
        }
        let mut task = NewTask::new(spec);
        if self.random.random_bool(0.2) && !self.acknowledged.is_empty() {
            let on = self.random.random_range(0..self.acknowledged.len());
            task.depends_on.push(Dependency::Task(self.acknowledged[on]));
        }
        task
    }

    async fn interfere(&mut self) {
        if self.acknowledged.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.acknowledged.len());
        let task = self.acknowledged[index];
        let command = match self.random.random_range(0..4) {
            0 => Command::Cancel { reason: None },
            1 => Command::Pause,
            2 => Command::Resume,
            _ => Command::RunNow,
        };
        let node = self.any_node();
        self.interfered.insert(task);
        let call = Call::new("someone", node.now());
        // Refusals and failures are part of the life that is simulated here.
        let _ = node.command(&call, vec![task], command).await;
    }

    async fn kill_a_node(&mut self) {
        let index = self.random.random_range(0..NODES);
        let node = self.nodes[index].clone();
        node.abort().await;
        if self.random.random_bool(0.5) {
            self.model.crash_node(node.node().id, node.now());
        }
        self.nodes[index] = self.node();
    }

    async fn live(&mut self, seed: u64) {
        *self.faults.chaos.lock() = Some(StdRng::seed_from_u64(seed ^ 0xFA17));
        for _ in 0..TASKS {
            let (node, task) = (self.any_node(), self.task());
            let call = Call::new("someone", node.now());
            if let Ok(enqueued) = node.enqueue(&call, vec![task]).await {
                self.acknowledged.extend(enqueued.iter().map(|e| e.id));
            }
            if self.random.random_bool(0.15) {
                self.interfere().await;
            }
            if self.random.random_bool(0.04) {
                self.kill_a_node().await;
            }
            let millis = self.random.random_range(0..800);
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
    }

    /// No more faults; what was paused is resumed. Everything must come to an end.
    async fn heal(&mut self) {
        *self.faults.chaos.lock() = None;
        for _ in 0..600 {
            let node = self.nodes[0].clone();
            let call = Call::new("someone", node.now());
            let paused: Vec<TaskId> = self.acknowledged.clone();
            node.store().command(&call, paused, Command::Resume).await.unwrap();
            let counts = node.store().counts("default", node.now()).await.unwrap();
            if counts.total().unfinished() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        let mut stuck = Vec::new();
        for id in &self.acknowledged {
            let explanation = self.nodes[0].explain("default", *id).await.unwrap();
            if !explanation.status.is_terminal() {
                stuck.push(explanation);
            }
        }
        panic!("these never ended: {stuck:#?}");
    }

    async fn check(&self) {
        let verified = self.model.verify().await.unwrap();
        assert_eq!(verified.violations, Vec::<String>::new());
        for id in &self.acknowledged {
            let record = self
                .model
                .task("default", *id)
                .await
                .unwrap()
                .expect("an acknowledged task is gone");
            let events = self.model.events("default", *id).await.unwrap();
            let ends = events
                .iter()
                .filter(|e| matches!(e.kind, EventKind::Completed | EventKind::Failed | EventKind::Cancelled))
                .count();
            assert_eq!(ends, 1, "{id} ended {ends} times: {events:?}");
            // A task that was alone on three nodes that died soon after its start is taken for the cause.
            let blamed = record.error.as_ref().is_some_and(|e| e.kind == "crashed_node");
            let left_alone = !blamed && !self.interfered.contains(id) && record.depends_on.is_empty();
            let expected = match &*record.spec.handler {
                "fail" if record.spec.parameters.get() == "{}" => State::Failed,
                _ => State::Completed,
            };
            if left_alone {
                assert_eq!(record.lifecycle.state, expected, "{id}: {record:?} {events:?}");
            }
            if &*record.spec.handler == "counted" && record.lifecycle.state == State::Completed {
                assert!(
                    self.effects.returned.lock().contains(id),
                    "{id} completed without having run"
                );
            }
        }
        let injected = self.faults.injected.load(Ordering::SeqCst);
        assert!(injected >= FAULTS_MIN, "only {injected} faults");
        assert!(self.acknowledged.len() > TASKS / 2);
    }
}

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("PENSUM_SIMULATION_SEEDS") else {
        return 0..12;
    };
    let (from, to) = text.split_once("..").expect("PENSUM_SIMULATION_SEEDS is FROM..TO");
    from.parse().unwrap()..to.parse().unwrap()
}

#[test]
fn whatever_fails_every_acknowledged_task_ends_exactly_once() {
    for seed in seeds() {
        eprintln!("seed {seed}");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut simulation = Simulation::new(seed);
            simulation.live(seed).await;
            simulation.heal().await;
            simulation.check().await;
            for node in &simulation.nodes {
                let report = node.shutdown(Duration::from_secs(5)).await;
                assert_eq!((report.given_back, report.unsaved), (0, 0));
            }
        });
    }
}
