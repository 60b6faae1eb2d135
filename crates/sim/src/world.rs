//! A world: machines with nodes on them, one store, clients, and what befalls them; first with faults, then without.

mod agents;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pensum_core::input::Patch;
use pensum_core::model::ModelStore;
use pensum_core::query::{Page, TaskFilter};
use pensum_core::queue::{QueueCommand, QueueSettings};
use pensum_core::seam::Clock;
use pensum_core::store::{Call, Command, IdempotencyKey, Store, TaskEvent, Verified};
use pensum_core::task::{Dependency, OnConflict, OnDependencyFailure, OnLimit, Unique};
use pensum_core::{Json, Name, NewTask, Priority, RetryPolicy, Spec, State, TaskId, TaskRecord, Time};
use pensum_engine::{Engine, EngineError, ResultInput};
use pensum_store::sqlite::SqliteStore;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::handlers::{ACT, Actor, COMMON, PAUSABLE, Part, SIGNAL, Stage};
use crate::history::{Entry, History, NodeName, What};
use crate::machine::{DAWN, Machine, WorldClock};
use crate::remote::{agent_id, cores, skill_name};
use crate::scenario::{Act, Action, NodePlan, OnFailure, Order, QueueOrder, Scenario, StoreKind, TaskPlan};
use crate::wire::{Weather, Wire};

/// How long the healed world has to bring everything to an end, in its own time.
const CONVERGES_IN: Duration = Duration::from_secs(1_800);
/// How long a node that stops in good order waits for its handlers.
const GRACE: Duration = Duration::from_secs(2);
/// Whoever started it kills a node that takes longer than this to stop.
const STOPS_IN: Duration = Duration::from_secs(60);
/// How often a client whose fate is unknown asks again, where its request has a key.
const TRIES: u32 = 3;
/// How long a client waits for a node that is not there.
const RECONNECT: Duration = Duration::from_millis(500);
/// How long a client waits for an answer at most.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a client looks for a node that lives.
const CONNECTS_MAX: u32 = 40;

/// What became of a world.
pub struct Outcome {
    /// When it began, by its own clock.
    pub dawn: Time,
    /// All that happened.
    pub entries: Vec<Entry>,
    /// Every task that the store has at the end.
    pub tasks: Vec<Final>,
    /// The store's own check.
    pub verified: Verified,
    /// What did not come to an end, and why.
    pub stuck: Vec<String>,
    /// How long the world lived, in its own time.
    pub lived: Duration,
}

/// A task at the end of the world.
pub struct Final {
    /// As the store has it.
    pub record: TaskRecord,
    /// Its history, as the store tells it.
    pub events: Vec<TaskEvent>,
}

struct Slot {
    plan: NodePlan,
    now: Mutex<Option<Incarnation>>,
    restart: Notify,
}

#[derive(Clone)]
pub(crate) struct Incarnation {
    name: NodeName,
    pub(crate) machine: Arc<Machine>,
    pub(crate) engine: Engine,
}

pub(crate) struct World {
    pub(crate) scenario: Scenario,
    start: Instant,
    dawn: Time,
    store: Arc<dyn Store>,
    pub(crate) weather: Arc<Weather>,
    pub(crate) history: Arc<History>,
    pub(crate) stage: Arc<Stage>,
    slots: Vec<Slot>,
    seats: Vec<agents::Seat>,
    /// What came of the runs of agents, by the agent's number: some bring what is another one's.
    pub(crate) results: Mutex<Vec<(usize, ResultInput)>>,
    ids: Mutex<BTreeMap<u32, TaskId>>,
    over: AtomicBool,
    ended: Notify,
}

/// Lives through a scenario.
///
/// # Errors
/// When the store cannot be made, or cannot be read at the end.
pub fn live(scenario: &Scenario) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    let outcome = runtime.block_on(async {
        let world = Arc::new(World::new(scenario.clone())?);
        world.live().await
    });
    // What is still on its way dies with the world.
    runtime.shutdown_background();
    outcome
}

impl World {
    fn new(scenario: Scenario) -> anyhow::Result<World> {
        let start = Instant::now();
        let dawn = Time::parse(DAWN).unwrap_or(Time::EPOCH);
        let history = Arc::new(History::new(start));
        let store: Arc<dyn Store> = match scenario.store {
            StoreKind::Model => Arc::new(ModelStore::new(scenario.seed)),
            StoreKind::Sqlite => Arc::new(SqliteStore::on_this_thread(scenario.seed)?),
        };
        let lease = Duration::from_millis(scenario.lease_ms);
        let slots = scenario.nodes.iter().map(|plan| Slot {
            plan: plan.clone(),
            now: Mutex::new(None),
            restart: Notify::new(),
        });
        Ok(World {
            weather: Arc::new(Weather::new(
                scenario.faults.clone(),
                scenario.seed,
                lease,
                Arc::clone(&history),
            )),
            stage: Arc::new(Stage::new(Arc::clone(&history))),
            slots: slots.collect(),
            seats: scenario.agents.iter().map(|_| agents::Seat::default()).collect(),
            results: Mutex::default(),
            ids: Mutex::default(),
            over: AtomicBool::new(false),
            ended: Notify::new(),
            start,
            dawn,
            store,
            history,
            scenario,
        })
    }

    async fn live(self: &Arc<World>) -> anyhow::Result<Outcome> {
        for slot in 0..self.slots.len() {
            tokio::spawn(Arc::clone(self).supervise(slot));
        }
        for agent in 0..self.seats.len() {
            tokio::spawn(Arc::clone(self).supervise_agent(agent));
        }
        if self.scenario.has_breakers() {
            self.weather.watch_breakers();
        }
        if self.scenario.has_limits() {
            self.weather.watch_queues();
        }
        let mut errands = Vec::new();
        for (number, step) in self.scenario.steps.iter().enumerate() {
            tokio::time::sleep_until(self.start + Duration::from_millis(step.at_ms)).await;
            let (world, action) = (Arc::clone(self), step.action.clone());
            errands.push(tokio::spawn(async move { world.act(number as u64, action).await }));
        }
        // Whoever is still waiting for an answer gets one, or gives up, while things still go wrong.
        for errand in errands {
            errand.await?;
        }
        self.heal();
        let stuck = self.converge().await;
        self.dismiss_agents();
        let lived = self.start.elapsed();
        self.leave().await;
        let mut tasks = Vec::new();
        for record in self.records().await? {
            let events = self.store.events("default", record.id).await?;
            tasks.push(Final { record, events });
        }
        Ok(Outcome {
            dawn: self.dawn,
            verified: self.store.verify().await?,
            entries: self.history.take(),
            tasks,
            stuck,
            lived,
        })
    }

    fn clock(&self, behind: Duration) -> WorldClock {
        WorldClock {
            start: self.start,
            dawn: self.dawn,
            behind,
        }
    }

    fn now(&self) -> Time {
        self.clock(Duration::ZERO).now()
    }

    /// One incarnation after the other, until the world is over.
    async fn supervise(self: Arc<World>, slot: usize) {
        for life in 0.. {
            let incarnation = self.incarnate(NodeName { node: slot, life });
            let Incarnation { name, machine, engine } = incarnation.clone();
            *self.slots[slot].now.lock() = Some(incarnation);
            self.history.add(What::NodeStarts(name));
            engine.start();
            let in_order = tokio::select! {
                biased;
                () = machine.died() => false,
                () = self.slots[slot].restart.notified() => {
                    let stop = machine.run(tokio::time::timeout(STOPS_IN, engine.shutdown(GRACE)));
                    stop.await.is_some_and(|stopped| stopped.is_ok())
                }
            };
            machine.kill();
            self.history.add(match in_order {
                true => What::NodeLeaves(name),
                false => What::NodeDies(name),
            });
            if self.over.load(Ordering::SeqCst) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(self.slots[slot].plan.restart_ms)).await;
        }
        *self.slots[slot].now.lock() = None;
        self.ended.notify_one();
    }

    fn incarnate(&self, name: NodeName) -> Incarnation {
        let machine = Machine::new();
        let behind = match self.scenario.shared_clock {
            true => Duration::ZERO,
            false => Duration::from_millis(self.slots[name.node].plan.behind_ms),
        };
        let seed = self.scenario.seed ^ ((name.node as u64 + 1) << 32) ^ (u64::from(name.life) << 48);
        let seams = machine.seams(self.clock(behind), seed);
        let wire = Wire {
            inner: Arc::clone(&self.store),
            weather: Arc::clone(&self.weather),
            node: name,
            clock: self
                .scenario
                .shared_clock
                .then(|| Arc::new(self.clock(Duration::ZERO)) as Arc<dyn Clock>),
        };
        let actor = |can_pause| Actor {
            stage: Arc::clone(&self.stage),
            node: name,
            machine: Arc::clone(&machine),
            can_pause,
        };
        let offered = self.slots[name.node].plan.cores;
        let mut builder = Engine::builder(Arc::new(wire))
            .seams(seams)
            .name(format!("n{}", name.node + 1))
            .slots(self.slots[name.node].plan.slots)
            .lease(Duration::from_millis(self.scenario.lease_ms))
            .grace(GRACE)
            .handler(ACT, actor(false))
            .handler(COMMON, actor(false))
            .handler(PAUSABLE, actor(true));
        if let Some(offered) = offered {
            builder = builder.resources(cores(offered));
        }
        let engine = builder.build();
        Incarnation { name, machine, engine }
    }

    /// The node that a client meant, or another one that lives; `None` when none comes up for a while.
    pub(crate) async fn reach(&self, node: usize) -> Option<Incarnation> {
        for _ in 0..CONNECTS_MAX {
            for offset in 0..self.slots.len() {
                let found = self.slots[(node + offset) % self.slots.len()].now.lock().clone();
                if let Some(found) = found.filter(|found| !found.machine.is_dead()) {
                    return Some(found);
                }
            }
            tokio::time::sleep(RECONNECT).await;
        }
        None
    }

    async fn act(&self, number: u64, action: Action) {
        match action {
            Action::Submit {
                node,
                patience_ms,
                tasks,
            } => self.submit(number, node, patience_ms, &tasks).await,
            Action::Order { node, task, order } => self.order(number, node, task, order).await,
            Action::Queue { node, queue, order } => self.change_queue(node, queue, order).await,
            Action::Agent { node, agent, order } => self.befall(node, agent, order).await,
            Action::Breaker { node, breaker, order } => self.change_breaker(node, breaker, order).await,
            Action::Kill { node } => {
                if let Some(found) = &*self.slots[node].now.lock() {
                    found.machine.kill();
                }
            }
            Action::Freeze { node, for_ms } => {
                let found = self.slots[node].now.lock().clone();
                if let Some(found) = found
                    && found.machine.freeze()
                {
                    let by = Duration::from_millis(for_ms);
                    self.history.add(What::NodeFreezes(found.name, by));
                    tokio::time::sleep(by).await;
                    if found.machine.thaw() {
                        self.history.add(What::NodeThaws(found.name));
                    }
                }
            }
            Action::Restart { node } => self.slots[node].restart.notify_one(),
            Action::StoreAway { for_ms } => {
                let by = Duration::from_millis(for_ms);
                self.history.add(What::StoreAway(by));
                self.weather.away(by);
                tokio::time::sleep(by).await;
                self.history.add(What::StoreBack);
            }
        }
    }

    async fn submit(&self, submission: u64, node: usize, patience_ms: Option<u64>, plans: &[TaskPlan]) {
        let patience = patience_ms.map_or(PATIENCE, Duration::from_millis);
        // Every other client names its request, and may repeat it.
        let named = submission.is_multiple_of(2);
        let digest = [submission as u8; 32];
        for attempt in 1.. {
            let Some(found) = self.reach(node + attempt as usize - 1).await else {
                return;
            };
            self.history.add(What::Submits {
                submission,
                node: found.name,
                labels: plans.iter().map(|plan| plan.label).collect(),
            });
            let tasks = self.tasks(plans);
            let call = Call {
                idempotency: named.then(|| IdempotencyKey {
                    key: format!("submission {submission}"),
                    digest,
                }),
                ..Call::new("a client", found.engine.now())
            };
            let answer = tokio::time::timeout(patience, found.machine.run(found.engine.enqueue(&call, tasks))).await;
            let (why, unsure) = match answer {
                Ok(Some(Ok(enqueued))) => {
                    let tasks: Vec<(u32, TaskId, bool)> = plans
                        .iter()
                        .zip(&enqueued)
                        .map(|(plan, task)| (plan.label, task.id, task.created))
                        .collect();
                    let mut ids = self.ids.lock();
                    ids.extend(tasks.iter().map(|(label, id, _)| (*label, *id)));
                    drop(ids);
                    self.history.add(What::Acknowledged { submission, tasks });
                    return;
                }
                Ok(Some(Err(error))) => {
                    let unsure = error.to_string().contains("simulated");
                    (error.to_string(), unsure)
                }
                Ok(None) => ("the connection broke".to_owned(), true),
                Err(_) => ("it took too long".to_owned(), true),
            };
            self.history.add(What::Refused {
                submission,
                why,
                unsure,
            });
            if !unsure || !named || attempt >= TRIES {
                return;
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    /// What the plans ask for, as far as the client knows of what they depend on.
    fn tasks(&self, plans: &[TaskPlan]) -> Vec<NewTask> {
        let ids = self.ids.lock();
        let new = |plan: &TaskPlan| {
            let dependency = |label: &u32| {
                let item = plans.iter().position(|other| other.label == *label);
                item.map(Dependency::Item)
                    .or_else(|| ids.get(label).copied().map(Dependency::Task))
            };
            let mut task = new_task(plan, self.now());
            task.depends_on = plan.depends_on.iter().filter_map(dependency).collect();
            task
        };
        plans.iter().map(new).collect()
    }

    async fn order(&self, request: u64, node: usize, label: u32, order: Order) {
        let Some(task) = self.ids.lock().get(&label).copied() else {
            return;
        };
        let Some(found) = self.reach(node).await else { return };
        self.history.add(What::Orders {
            request,
            node: found.name,
            task,
            order,
        });
        let call = Call::new("somebody", found.engine.now());
        let command = match order {
            Order::Cancel => Command::Cancel { reason: None },
            Order::Pause => Command::Pause,
            Order::Resume => Command::Resume,
            Order::Retry => Command::Retry,
            Order::RunNow => Command::RunNow,
            Order::Signal => Command::Signal {
                name: Name::from(SIGNAL),
                payload: Json::null(),
            },
            Order::Delete => Command::Delete,
            Order::Promote => {
                let patch = Patch {
                    priority: Some(Priority::Critical),
                    ..Patch::default()
                };
                let update = found.machine.run(found.engine.update(&call, task, patch, None));
                let answer = match tokio::time::timeout(PATIENCE, update).await {
                    Ok(Some(Ok(_))) => Some(true),
                    Ok(Some(Err(EngineError::Rejected(_)))) => Some(false),
                    _ => None,
                };
                self.history.add(What::Ordered { request, answer });
                return;
            }
        };
        let sent = found.machine.run(found.engine.command(&call, vec![task], command));
        let answer = match tokio::time::timeout(PATIENCE, sent).await {
            Ok(Some(Ok(answers))) => Some(answers.iter().all(Result::is_ok)),
            _ => None,
        };
        self.history.add(What::Ordered { request, answer });
    }

    /// Somebody changes a queue, and does not try again.
    async fn change_queue(&self, node: usize, queue: u8, order: QueueOrder) {
        let Some(found) = self.reach(node).await else { return };
        let call = Call::new("somebody", found.engine.now());
        let store = found.engine.store();
        let change = async {
            let queue = queue_name(queue);
            match order {
                QueueOrder::Width { max } => {
                    let settings = QueueSettings {
                        max_concurrent: Some(max),
                        ..QueueSettings::default()
                    };
                    store.put_queue(&call, queue, settings, None).await
                }
                QueueOrder::Put { plan } => store.put_queue(&call, queue, plan.settings(), None).await,
                QueueOrder::Open => store.put_queue(&call, queue, QueueSettings::default(), None).await,
                QueueOrder::Pause => store.command_queue(&call, queue, QueueCommand::Pause).await,
                QueueOrder::Resume => store.command_queue(&call, queue, QueueCommand::Resume).await,
            }
        };
        // What became of it shows in what the store carries out.
        let _ = tokio::time::timeout(PATIENCE, found.machine.run(change)).await;
    }

    fn heal(&self) {
        self.weather.clear();
        for slot in &self.slots {
            if let Some(found) = &*slot.now.lock()
                && found.machine.thaw()
            {
                self.history.add(What::NodeThaws(found.name));
            }
        }
        self.thaw_agents();
        self.history.add(What::Healed);
    }

    async fn records(&self) -> anyhow::Result<Vec<TaskRecord>> {
        let mut records = Vec::new();
        let mut page = Page {
            limit: 200,
            before_row: None,
        };
        loop {
            let filter = TaskFilter::default();
            let found = self.store.tasks("default", filter, page.clone(), self.now()).await?;
            records.extend(found.items);
            match found.next {
                Some(next) => page.before_row = Some(next),
                None => return Ok(records),
            }
        }
    }

    /// Waits until every task has ended; what is paused is resumed. What never ends is told.
    async fn converge(&self) -> Vec<String> {
        let end = Instant::now() + CONVERGES_IN;
        loop {
            let records = match self.records().await {
                Ok(records) => records,
                Err(error) => return vec![format!("the store cannot be read: {error}")],
            };
            let open: Vec<&TaskRecord> = records.iter().filter(|r| !r.lifecycle.state.is_terminal()).collect();
            if open.is_empty() {
                return Vec::new();
            }
            if Instant::now() >= end {
                return open.iter().map(|record| self.stuck(record)).collect();
            }
            for queue in self.store.queues("default").await.unwrap_or_default() {
                if queue.paused_at.is_some() {
                    let call = Call::new("the healer", self.now());
                    // Whatever is wrong with that store shows in what gets stuck.
                    if let Ok(queue) = self.store.command_queue(&call, queue.name, QueueCommand::Resume).await {
                        self.history.add(What::of_queue(&queue));
                    }
                }
            }
            self.restore_agents().await;
            let held = open
                .iter()
                .filter(|r| r.lifecycle.paused_at.is_some() || r.lifecycle.pause_requested_at.is_some());
            let held: Vec<TaskId> = held.map(|record| record.id).collect();
            if !held.is_empty() {
                let call = Call::new("the healer", self.now());
                // One that has ended meanwhile refuses, which is fine.
                let _ = self.store.command(&call, held, Command::Resume).await;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn stuck(&self, record: &TaskRecord) -> String {
        let life = &record.lifecycle;
        let wait = life
            .waiting_for
            .map(|what| format!(", waits for {what:?}"))
            .unwrap_or_default();
        format!(
            "{} is {}{wait} after {} s without a fault ({life:?})",
            crate::wire::label_of(&record.spec.parameters),
            life.state,
            CONVERGES_IN.as_secs(),
        )
    }

    /// All nodes stop in good order.
    async fn leave(&self) {
        self.over.store(true, Ordering::SeqCst);
        for slot in &self.slots {
            slot.restart.notify_one();
        }
        let all_gone = || self.slots.iter().all(|slot| slot.now.lock().is_none());
        let end = Instant::now() + Duration::from_secs(120);
        while !all_gone() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// What a queue of a plan is called.
pub fn queue_name(queue: u8) -> Name {
    Name::from(format!("queue-{queue}"))
}

/// The task that a plan asks for, submitted at `now`; what it depends on aside.
pub(crate) fn new_task(plan: &TaskPlan, now: Time) -> NewTask {
    let part = Part {
        label: format!("t{}", plan.label),
        act: plan.act.clone(),
    };
    let handler = match plan.act {
        Act::Pausable { .. } => PAUSABLE,
        _ if plan.demand.is_some() => COMMON,
        _ => ACT,
    };
    let mut spec = Spec::new(handler, Json::of(&part).unwrap_or_else(|_| Json::null()));
    spec.priority = match plan.priority {
        0 => Priority::Low,
        1 => Priority::Normal,
        2 => Priority::High,
        _ => Priority::Critical,
    };
    if let Some(queue) = plan.queue {
        spec.queue = queue_name(queue);
    }
    spec.timeout = Some(Duration::from_millis(plan.timeout_ms));
    spec.max_retries = Some(plan.retries);
    spec.key = plan.key.map(|key| Name::from(format!("key {key}")));
    let after = |ms: u64| now.plus(Duration::from_millis(ms));
    let details = spec.details_mut();
    details.retry = Some(RetryPolicy::fixed(Duration::from_secs(1)));
    details.expires_at = plan.expires_ms.map(after);
    details.queue_timeout = plan.queue_timeout_ms.map(|ms| Duration::from_millis(ms).into());
    details.on_dependency_failure = match plan.on_failure {
        OnFailure::Cancel => OnDependencyFailure::Cancel,
        OnFailure::Ignore => OnDependencyFailure::Ignore,
        OnFailure::Run => OnDependencyFailure::Run,
    };
    details.units = plan.units;
    details.on_limit = plan.rejects.then_some(OnLimit::Reject);
    if let Some(demand) = &plan.demand {
        details.requires = demand
            .skills
            .iter()
            .map(|skill| Name::from(skill_name(*skill)))
            .collect();
        details.agent_id = demand.prefers.map(agent_id);
        details.resources = (demand.cores > 0).then(|| cores(demand.cores));
    }
    let mut task = NewTask::new(spec);
    task.run_at = (plan.delay_ms > 0).then(|| after(plan.delay_ms));
    task.unique = plan.unique.map(|key| {
        Box::new(Unique {
            key: Name::from(format!("unique {key}")),
            ttl: None,
            on_conflict: OnConflict::Keep,
        })
    });
    task
}

/// True for a state that does not change by itself.
pub(crate) fn has_ended(state: State) -> bool {
    matches!(state, State::Completed | State::Failed | State::Cancelled)
}
