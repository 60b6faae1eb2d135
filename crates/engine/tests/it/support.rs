//! Worlds for tests: an engine over the model store, on tokio's paused clock, with handlers made of closures.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pensum_core::agent::{AgentCommand, AgentRecord, AgentSettings};
use pensum_core::breaker::{BreakerCommand, BreakerRecord, BreakerSettings};
use pensum_core::input::Patch;
use pensum_core::model::ModelStore;
use pensum_core::query::{Counts, Paged};
use pensum_core::queue::{QueueCommand, QueueRecord, QueueSettings};
use pensum_core::seam::{BoxFuture, Clock, Seams, SeededRandom};
use pensum_core::store::*;
use pensum_core::task::Execution;
use pensum_core::{
    ErrorInfo, Json, Name, NewTask, NodeId, Outcome, Page, RetryPolicy, Spec, Store, StoreError, TaskFilter, TaskId,
    TaskRecord, Time,
};
use pensum_engine::{Context, Engine, EngineBuilder, Handler, TokioSpawn};

/// Tokio's clock, which stands still in tests until nothing can run.
struct TokioClock {
    start: tokio::time::Instant,
    base: Time,
}

impl Clock for TokioClock {
    fn now(&self) -> Time {
        self.base.plus(self.start.elapsed())
    }

    fn sleep_until(&self, time: Time) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(time.since(self.now())))
    }
}

pub(crate) fn seams() -> Seams {
    Seams {
        clock: Arc::new(TokioClock {
            start: tokio::time::Instant::now(),
            base: Time::parse("2026-03-01T12:00:00Z").unwrap(),
        }),
        random: Arc::new(SeededRandom::new(7)),
        spawn: Arc::new(TokioSpawn),
    }
}

/// A handler made of a closure.
pub(crate) struct Fun<F> {
    f: F,
    can_pause: bool,
}

pub(crate) fn fun<F, Fut>(f: F) -> impl Handler
where
    F: Fn(Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    Fun {
        f: move |ctx| Box::pin(f(ctx)) as Pin<Box<dyn Future<Output = Outcome> + Send>>,
        can_pause: false,
    }
}

#[async_trait]
impl<F> Handler for Fun<F>
where
    F: Fn(Context) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send + Sync + 'static,
{
    async fn run(&self, ctx: Context) -> Outcome {
        (self.f)(ctx).await
    }

    fn can_pause(&self) -> bool {
        self.can_pause
    }
}

/// An engine over a store that can be made to fail.
pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) faults: Arc<Faults>,
}

pub(crate) fn world(build: impl FnOnce(EngineBuilder) -> EngineBuilder) -> World {
    let faults = Arc::new(Faults::default());
    let store = Arc::new(FaultyStore {
        inner: Arc::new(ModelStore::new(1)),
        faults: Arc::clone(&faults),
        clock: None,
    });
    let builder = Engine::builder(store).seams(seams()).name("test").builtin_handlers();
    World {
        engine: build(builder).build(),
        faults,
    }
}

impl World {
    pub(crate) fn start(self) -> World {
        self.engine.start();
        self
    }

    pub(crate) fn call(&self) -> Call {
        Call::new("tester", self.engine.now())
    }

    pub(crate) async fn add(&self, spec: Spec) -> TaskId {
        self.add_task(NewTask::new(spec)).await
    }

    pub(crate) async fn add_task(&self, task: NewTask) -> TaskId {
        self.engine.enqueue(&self.call(), vec![task]).await.unwrap()[0].id
    }

    pub(crate) async fn get(&self, id: TaskId) -> TaskRecord {
        self.engine.store().task("default", id).await.unwrap().unwrap()
    }

    /// The task once it has ended; the test fails when it does not within an hour of its own clock.
    pub(crate) async fn end(&self, id: TaskId) -> TaskRecord {
        self.engine
            .wait("default", id, Some(Duration::from_secs(3600)))
            .await
            .unwrap()
    }

    pub(crate) async fn command(&self, id: TaskId, command: Command) -> Result<Applied, Rejected> {
        self.engine
            .command(&self.call(), vec![id], command)
            .await
            .unwrap()
            .remove(0)
    }

    /// Waits until the task is as asked for.
    pub(crate) async fn until(&self, id: TaskId, what: impl Fn(&TaskRecord) -> bool) -> TaskRecord {
        for _ in 0..20_000 {
            let record = self.get(id).await;
            if what(&record) {
                return record;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("never came to it: {:?}", self.get(id).await);
    }

    pub(crate) async fn messages(&self, id: TaskId) -> Vec<String> {
        let entries = self.engine.store().logs("default", id, 0, 1000).await.unwrap();
        entries.into_iter().map(|entry| entry.line.message).collect()
    }
}

pub(crate) fn spec(handler: &str) -> Spec {
    Spec::new(handler, Json::empty_object())
}

pub(crate) fn with(handler: &str, parameters: serde_json::Value) -> Spec {
    Spec::new(handler, Json::from(parameters))
}

/// A retry one second after each failure, without jitter.
pub(crate) fn retry_in(spec: Spec, seconds: u64) -> Spec {
    let mut spec = spec;
    spec.details_mut().retry = Some(RetryPolicy::fixed(Duration::from_secs(seconds)));
    spec
}

pub(crate) fn error(record: &TaskRecord) -> (String, String) {
    let ErrorInfo { kind, message } = record.error.clone().unwrap();
    (kind, message)
}

/// What goes wrong with a store.
#[derive(Default)]
pub(crate) struct Faults {
    /// Every verb that writes answers that the store is unavailable.
    pub(crate) down: AtomicBool,
    /// Renewals never answer.
    pub(crate) renewals_hang: AtomicBool,
    /// Signs of life do not arrive.
    pub(crate) beats_fail: AtomicBool,
    /// The next finish is carried out, but its answer is lost.
    pub(crate) lose_finish_reply: AtomicBool,
    /// The answer to the next claim takes a minute.
    pub(crate) delay_claim: AtomicBool,
    pub(crate) finishes: AtomicUsize,
    pub(crate) beats: AtomicUsize,
    pub(crate) queue_reads: AtomicUsize,
    pub(crate) claims: AtomicUsize,
    pub(crate) largest_claim: AtomicUsize,
}

impl Faults {
    fn check(&self) -> Result<(), StoreError> {
        match self.down.load(Ordering::SeqCst) {
            true => Err(StoreError::Unavailable("switched off by the test".to_owned())),
            false => Ok(()),
        }
    }
}

/// The model store behind a connection that fails.
pub(crate) struct FaultyStore {
    pub(crate) inner: Arc<ModelStore>,
    pub(crate) faults: Arc<Faults>,
    pub(crate) clock: Option<Arc<dyn Clock>>,
}

#[async_trait]
impl Store for FaultyStore {
    async fn enqueue(&self, call: &Call, tasks: Vec<NewTask>) -> Result<Vec<Enqueued>, StoreError> {
        self.faults.check()?;
        self.inner.enqueue(call, tasks).await
    }

    async fn claim(&self, request: ClaimRequest, now: Time) -> Result<Vec<Claimed>, StoreError> {
        self.faults.check()?;
        self.faults.claims.fetch_add(1, Ordering::SeqCst);
        self.faults.largest_claim.fetch_max(request.slots, Ordering::SeqCst);
        let answer = self.inner.claim(request, now).await;
        let found = answer.as_ref().is_ok_and(|claimed| !claimed.is_empty());
        if found && self.faults.delay_claim.swap(false, Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        answer
    }

    async fn renew(&self, beats: Vec<Beat>, lease: Duration, now: Time) -> Result<Vec<Renewal>, StoreError> {
        self.faults.check()?;
        if self.faults.renewals_hang.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.inner.renew(beats, lease, now).await
    }

    async fn finish(&self, finishes: Vec<Finish>, now: Time) -> Result<Vec<Result<Applied, Rejected>>, StoreError> {
        self.faults.check()?;
        self.faults.finishes.fetch_add(1, Ordering::SeqCst);
        let answer = self.inner.finish(finishes, now).await;
        match self.faults.lose_finish_reply.swap(false, Ordering::SeqCst) {
            true => Err(StoreError::Unavailable("the reply was lost".to_owned())),
            false => answer,
        }
    }

    async fn checkpoint(&self, checkpoint: Checkpoint, now: Time) -> Result<Result<Applied, Rejected>, StoreError> {
        self.faults.check()?;
        self.inner.checkpoint(checkpoint, now).await
    }

    async fn command(
        &self,
        call: &Call,
        tasks: Vec<TaskId>,
        command: Command,
    ) -> Result<Vec<Result<Applied, Rejected>>, StoreError> {
        self.faults.check()?;
        self.inner.command(call, tasks, command).await
    }

    async fn update(
        &self,
        call: &Call,
        task: TaskId,
        patch: Patch,
        expected_version: Option<u64>,
    ) -> Result<Result<TaskRecord, Rejected>, StoreError> {
        self.faults.check()?;
        self.inner.update(call, task, patch, expected_version).await
    }

    async fn heartbeat(&self, beat: NodeBeat, now: Time) -> Result<NodeReply, StoreError> {
        self.faults.beats.fetch_add(1, Ordering::SeqCst);
        self.faults.check()?;
        if self.faults.beats_fail.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("switched off by the test".to_owned()));
        }
        self.inner.heartbeat(beat, now).await
    }

    async fn leave(&self, node: NodeId, now: Time) -> Result<(), StoreError> {
        self.faults.check()?;
        self.inner.leave(node, now).await
    }

    async fn nodes(&self, now: Time) -> Result<Vec<NodeRecord>, StoreError> {
        self.inner.nodes(now).await
    }

    fn clock(&self) -> Option<Arc<dyn Clock>> {
        self.clock.clone()
    }

    async fn reap(&self, now: Time, limit: usize) -> Result<Reaped, StoreError> {
        self.faults.check()?;
        self.inner.reap(now, limit).await
    }

    async fn task(&self, namespace: &str, task: TaskId) -> Result<Option<TaskRecord>, StoreError> {
        self.inner.task(namespace, task).await
    }

    async fn tasks(
        &self,
        namespace: &str,
        filter: TaskFilter,
        page: Page,
        now: Time,
    ) -> Result<Paged<TaskRecord>, StoreError> {
        self.inner.tasks(namespace, filter, page, now).await
    }

    async fn executions(&self, namespace: &str, task: TaskId) -> Result<Vec<Execution>, StoreError> {
        self.inner.executions(namespace, task).await
    }

    async fn all_executions(&self, namespace: &str, page: Page) -> Result<Paged<Execution>, StoreError> {
        self.inner.all_executions(namespace, page).await
    }

    async fn events(&self, namespace: &str, task: TaskId) -> Result<Vec<TaskEvent>, StoreError> {
        self.inner.events(namespace, task).await
    }

    async fn logs(&self, namespace: &str, task: TaskId, after: u64, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        self.inner.logs(namespace, task, after, limit).await
    }

    async fn dependants(&self, namespace: &str, task: TaskId) -> Result<Vec<TaskId>, StoreError> {
        self.inner.dependants(namespace, task).await
    }

    async fn inbox(&self, task: TaskId) -> Result<Vec<Signal>, StoreError> {
        self.inner.inbox(task).await
    }

    async fn steps(&self, task: TaskId) -> Result<Vec<(Name, Json)>, StoreError> {
        self.inner.steps(task).await
    }

    async fn key_holders(&self, namespace: &str, key: &str) -> Result<Vec<TaskId>, StoreError> {
        self.inner.key_holders(namespace, key).await
    }

    async fn put_queue(
        &self,
        call: &Call,
        queue: Name,
        settings: QueueSettings,
        expected_version: Option<u64>,
    ) -> Result<QueueRecord, StoreError> {
        self.faults.check()?;
        self.inner.put_queue(call, queue, settings, expected_version).await
    }

    async fn command_queue(&self, call: &Call, queue: Name, command: QueueCommand) -> Result<QueueRecord, StoreError> {
        self.faults.check()?;
        self.inner.command_queue(call, queue, command).await
    }

    async fn delete_queue(&self, call: &Call, queue: Name) -> Result<(), StoreError> {
        self.faults.check()?;
        self.inner.delete_queue(call, queue).await
    }

    async fn queues(&self, namespace: &str) -> Result<Vec<QueueRecord>, StoreError> {
        self.faults.check()?;
        self.faults.queue_reads.fetch_add(1, Ordering::SeqCst);
        self.inner.queues(namespace).await
    }

    async fn put_agent(&self, call: &Call, agent: Name, settings: AgentSettings) -> Result<AgentRecord, StoreError> {
        self.faults.check()?;
        self.inner.put_agent(call, agent, settings).await
    }

    async fn command_agent(&self, call: &Call, agent: Name, command: AgentCommand) -> Result<AgentRecord, StoreError> {
        self.faults.check()?;
        self.inner.command_agent(call, agent, command).await
    }

    async fn delete_agent(&self, call: &Call, agent: Name) -> Result<(), StoreError> {
        self.faults.check()?;
        self.inner.delete_agent(call, agent).await
    }

    async fn open_session(&self, call: &Call, agent: Name, session: NodeId) -> Result<AgentRecord, StoreError> {
        self.faults.check()?;
        self.inner.open_session(call, agent, session).await
    }

    async fn close_session(&self, call: &Call, agent: Name, session: NodeId) -> Result<(), StoreError> {
        self.faults.check()?;
        self.inner.close_session(call, agent, session).await
    }

    async fn beat_agent(&self, call: &Call, agent: Name, session: Option<NodeId>) -> Result<AgentRecord, StoreError> {
        self.faults.check()?;
        self.inner.beat_agent(call, agent, session).await
    }

    async fn agents(&self, namespace: &str) -> Result<Vec<AgentRecord>, StoreError> {
        self.faults.check()?;
        self.inner.agents(namespace).await
    }

    async fn put_breaker(
        &self,
        call: &Call,
        breaker: Name,
        settings: BreakerSettings,
        expected_version: Option<u64>,
    ) -> Result<BreakerRecord, StoreError> {
        self.faults.check()?;
        self.inner.put_breaker(call, breaker, settings, expected_version).await
    }

    async fn command_breaker(
        &self,
        call: &Call,
        breaker: Name,
        command: BreakerCommand,
    ) -> Result<BreakerRecord, StoreError> {
        self.faults.check()?;
        self.inner.command_breaker(call, breaker, command).await
    }

    async fn delete_breaker(&self, call: &Call, breaker: Name) -> Result<(), StoreError> {
        self.faults.check()?;
        self.inner.delete_breaker(call, breaker).await
    }

    async fn breakers(&self, namespace: &str) -> Result<Vec<BreakerRecord>, StoreError> {
        self.faults.check()?;
        self.inner.breakers(namespace).await
    }

    async fn counts(&self, namespace: &str, now: Time) -> Result<Counts, StoreError> {
        self.inner.counts(namespace, now).await
    }

    async fn prune(&self, retention: Retention, now: Time, limit: usize) -> Result<Pruned, StoreError> {
        self.faults.check()?;
        self.inner.prune(retention, now, limit).await
    }

    async fn verify(&self) -> Result<Verified, StoreError> {
        self.inner.verify().await
    }

    async fn stats(&self) -> Result<StoreStats, StoreError> {
        self.inner.stats().await
    }

    async fn backup(&self, to: &std::path::Path) -> Result<(), StoreError> {
        self.inner.backup(to).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.inner.close().await
    }
}
