//! The way between a node and the store, on which calls fail, are late, are done twice, or lose their answers; and the
//! record of what the store really did.

mod agents;
mod queues;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pensum_core::agent::{AgentCommand, AgentRecord, AgentSettings};
use pensum_core::breaker::{BreakerCommand, BreakerRecord, BreakerSettings};
use pensum_core::input::Patch;
use pensum_core::query::{Counts, Page, Paged, TaskFilter};
use pensum_core::queue::{QueueCommand, QueueRecord, QueueSettings};
use pensum_core::seam::Clock;
use pensum_core::store::*;
use pensum_core::task::Execution;
use pensum_core::{Json, Name, NewTask, NodeId, Outcome, TaskId, TaskRecord, Time};
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::history::{Executor, Fault, History, NodeName, Remote, What};
use crate::scenario::FaultPlan;

/// What all wires of a world share.
pub(crate) struct Weather {
    plan: FaultPlan,
    seed: u64,
    /// The longest delay.
    slow: Duration,
    calls: Mutex<BTreeMap<(String, &'static str), u64>>,
    claims: AtomicU64,
    fair: AtomicBool,
    away_until: Mutex<Instant>,
    seen: Mutex<BTreeMap<TaskId, TaskRecord>>,
    books: Arc<Mutex<agents::Books>>,
    pub(crate) history: Arc<History>,
}

impl Weather {
    pub(crate) fn new(plan: FaultPlan, seed: u64, lease: Duration, history: Arc<History>) -> Weather {
        Weather {
            plan,
            seed,
            slow: lease * 3 / 2,
            calls: Mutex::default(),
            claims: AtomicU64::new(0),
            fair: AtomicBool::new(false),
            away_until: Mutex::new(Instant::now()),
            seen: Mutex::default(),
            books: Arc::default(),
            history,
        }
    }

    /// True once nothing goes wrong any more.
    pub(crate) fn is_fair(&self) -> bool {
        self.fair.load(Ordering::Relaxed)
    }

    /// There are breakers, whose changes are to be told.
    pub(crate) fn watch_breakers(&self) {
        self.books.lock().breakers = Some(BTreeMap::new());
    }

    /// There are queues with limits, of which all is to be told.
    pub(crate) fn watch_queues(&self) {
        self.books.lock().limits = true;
    }

    /// Nothing goes wrong from now on.
    pub(crate) fn clear(&self) {
        self.fair.store(true, Ordering::Relaxed);
        *self.away_until.lock() = Instant::now();
    }

    /// The store answers nobody for a while.
    pub(crate) fn away(&self, by: Duration) {
        let mut until = self.away_until.lock();
        *until = (*until).max(Instant::now() + by);
    }

    fn is_away(&self) -> bool {
        Instant::now() < *self.away_until.lock()
    }

    /// What goes wrong with the next call.
    pub(crate) fn next(&self, verb: Verb, caller: String) -> Option<Fault> {
        let number = {
            let mut calls = self.calls.lock();
            let number = calls.entry((caller.clone(), verb.name)).or_insert(0);
            *number += 1;
            *number
        };
        if self.is_fair() {
            return None;
        }
        let plan = &self.plan;
        // By its own name, so that a plan that is cut down elsewhere still means the same call.
        let call = format!("{caller} {} {number}", verb.name);
        if plan.only.as_ref().is_some_and(|only| !only.contains(&call)) {
            return None;
        }
        let mut draws = Draws(self.seed ^ fold(&call));
        let mut left = draws.unit();
        let mut hits = |share: f64| {
            left -= share;
            left < 0.0
        };
        let late = |draw: f64| Duration::from_millis((self.slow.as_millis() as f64 * draw * draw) as u64);
        let fault = if hits(plan.error) {
            Fault::Error
        } else if hits(plan.lost_reply) {
            Fault::LostReply
        } else if hits(plan.delay) {
            let by = late(draws.unit());
            match draws.unit() < 0.5 {
                true => Fault::LateRequest(by),
                false => Fault::LateReply(by),
            }
        } else if hits(plan.duplicate) && verb.may_repeat {
            Fault::Duplicate
        } else if hits(plan.stale) && verb.reads {
            Fault::Stale
        } else {
            return None;
        };
        self.history.add(What::Fault { call, fault });
        Some(fault)
    }
}

/// FNV-1a, by Glenn Fowler, Landon Curt Noll and Kiem-Phong Vo.
pub(crate) fn fold(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

/// SplitMix64, by Sebastiano Vigna: numbers that follow from a seed, and that no new version of a library changes, for plans
/// that are kept rely on them.
pub(crate) struct Draws(pub(crate) u64);

impl Draws {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Verb {
    name: &'static str,
    /// The network may deliver it twice.
    may_repeat: bool,
    reads: bool,
}

pub(crate) const fn writes(name: &'static str) -> Verb {
    Verb {
        name,
        may_repeat: true,
        reads: false,
    }
}

const fn reads(name: &'static str) -> Verb {
    Verb {
        name,
        may_repeat: false,
        reads: true,
    }
}

/// The label in a task's parameters.
pub(crate) fn label_of(parameters: &Json) -> String {
    #[derive(Deserialize)]
    struct Labelled {
        label: String,
    }
    match parameters.to::<Labelled>() {
        Ok(labelled) => labelled.label,
        Err(_) => "a task without a label".to_owned(),
    }
}

/// The store as one incarnation of a node sees it.
pub(crate) struct Wire {
    pub(crate) inner: Arc<dyn Store>,
    pub(crate) weather: Arc<Weather>,
    pub(crate) node: NodeName,
    pub(crate) clock: Option<Arc<dyn Clock>>,
}

/// The far end of the wire: what a call needs to be carried out, whatever becomes of its caller.
#[derive(Clone)]
struct Far {
    inner: Arc<dyn Store>,
    history: Arc<History>,
    books: Arc<Mutex<agents::Books>>,
    node: NodeName,
}

fn unavailable<T>(why: &str) -> Result<T, StoreError> {
    Err(StoreError::Unavailable(format!("simulated: {why}")))
}

impl Wire {
    /// Carries out a call, or does to it what the weather asks for.
    async fn call<T, F, Fut>(&self, verb: Verb, carry_out: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(Far) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        self.meet(self.weather.next(verb, self.node.to_string()), carry_out)
            .await
    }

    async fn meet<T, F, Fut>(&self, fault: Option<Fault>, carry_out: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(Far) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let store = Far {
            inner: Arc::clone(&self.inner),
            history: Arc::clone(&self.weather.history),
            books: Arc::clone(&self.weather.books),
            node: self.node,
        };
        if self.weather.is_away() {
            // A moment, so that nobody tries again without end at the same instant.
            tokio::time::sleep(Duration::from_millis(10)).await;
            return unavailable("the store is away");
        }
        match fault {
            None | Some(Fault::Stale) => carry_out(store).await,
            Some(Fault::Error) => unavailable("nothing was done"),
            Some(Fault::LostReply) => {
                let _ = carry_out(store).await;
                unavailable("the answer was lost")
            }
            Some(Fault::Duplicate) => {
                let _ = carry_out(store.clone()).await;
                carry_out(store).await
            }
            Some(Fault::LateRequest(by)) => {
                // What is on its way arrives, even if whoever sent it is gone by then.
                let (reply, answer) = oneshot::channel();
                tokio::spawn(async move {
                    tokio::time::sleep(by).await;
                    let _ = reply.send(carry_out(store).await);
                });
                answer.await.unwrap_or_else(|_| unavailable("the connection broke"))
            }
            Some(Fault::LateReply(by)) => {
                let answer = carry_out(store).await;
                tokio::time::sleep(by).await;
                answer
            }
        }
    }
}

impl Far {
    fn add(&self, what: What) {
        self.history.add(what);
    }

    fn kept(&self, tasks: Vec<(TaskId, String)>) {
        if !tasks.is_empty() {
            self.add(What::Kept(tasks));
        }
    }

    fn applied(&self, applied: &Applied, spawn: &[NewTask]) {
        let children = applied.spawned.iter().zip(spawn);
        self.kept(
            children
                .map(|(id, task)| (*id, label_of(&task.spec.parameters)))
                .collect(),
        );
        if !applied.ended.is_empty() {
            self.add(What::Ended(applied.ended.clone()));
        }
    }

    async fn enqueue(self, call: Call, tasks: Vec<NewTask>) -> Result<Vec<Enqueued>, StoreError> {
        let labels: Vec<String> = tasks.iter().map(|task| label_of(&task.spec.parameters)).collect();
        let before = self.before(&tasks, call.now).await?;
        let answer = self.inner.enqueue(&call, tasks).await;
        if let Ok(enqueued) = &answer {
            let new = enqueued.iter().zip(labels).filter(|(task, _)| task.created);
            self.kept(new.map(|(task, label)| (task.id, label)).collect());
        }
        if let Some(before) = before {
            self.tell_intake(before, &answer, call.now).await?;
        }
        answer
    }

    async fn claim(self, request: ClaimRequest, now: Time, claim: u64) -> Result<Vec<Claimed>, StoreError> {
        let (since, asks) = (
            self.history.now(),
            request.agent.clone().map(|agent| (agent, request.node)),
        );
        let lease_time = request.lease;
        let claimed = self.inner.claim(request, now).await?;
        let executor = match asks {
            Some((agent, session)) => self.asked(agent, session, since, now, &claimed),
            None => Executor::Node(self.node),
        };
        for task in &claimed {
            let (id, lease) = (task.lease.task, task.lease.lease);
            if matches!(executor, Executor::Agent { .. }) && !self.books.lock().granted.insert(lease) {
                let task = id;
                self.add(What::Remote(Remote::GivenAgain { task, lease, executor }));
                continue;
            }
            let until = task.lifecycle.lease.map_or(now, |lease| lease.expires_at);
            self.add(What::Granted {
                task: task.lease.task,
                label: label_of(&task.spec.parameters),
                lease: task.lease.lease,
                executor,
                attempt: task.lifecycle.attempt,
                queue: task.spec.queue.to_string(),
                key: task.spec.key.as_ref().map(Name::to_string),
                priority: task.spec.priority as u8,
                units: task.spec.units(),
                now,
                starts: until.minus(lease_time),
                until,
                claim,
            });
        }
        Ok(claimed)
    }

    async fn renew(self, beats: Vec<Beat>, lease: Duration, now: Time) -> Result<Vec<Renewal>, StoreError> {
        let leases: Vec<LeaseRef> = beats.iter().map(|beat| beat.lease).collect();
        let renewals = self.inner.renew(beats, lease, now).await?;
        for (held, renewal) in leases.iter().zip(&renewals) {
            let LeaseRef { task, lease } = *held;
            self.add(match renewal {
                Renewal::Held { expires_at, .. } => What::Renewed {
                    task,
                    lease,
                    until: *expires_at,
                },
                Renewal::Lost => What::LeaseLost {
                    task,
                    lease,
                    verb: "renewal",
                },
            });
        }
        Ok(renewals)
    }

    async fn finish(self, finishes: Vec<Finish>, now: Time) -> Result<Vec<Result<Applied, Rejected>>, StoreError> {
        let sent: Vec<(LeaseRef, &'static str, Vec<NewTask>)> = finishes
            .iter()
            .map(|finish| (finish.lease, outcome_name(&finish.outcome), finish.spawn.clone()))
            .collect();
        let answers = self.inner.finish(finishes, now).await?;
        for ((LeaseRef { task, lease }, outcome, spawn), answer) in sent.into_iter().zip(&answers) {
            match answer {
                Ok(applied) => {
                    self.add(What::Finished {
                        task,
                        lease,
                        outcome,
                        state: applied.state,
                    });
                    self.applied(applied, &spawn);
                }
                Err(Rejected::LeaseLost(_)) => self.add(What::LeaseLost {
                    task,
                    lease,
                    verb: "finish",
                }),
                Err(_) => {}
            }
        }
        self.breakers().await;
        Ok(answers)
    }

    async fn checkpoint(self, checkpoint: Checkpoint, now: Time) -> Result<Result<Applied, Rejected>, StoreError> {
        let (LeaseRef { task, lease }, spawn) = (checkpoint.lease, checkpoint.spawn.clone());
        let answer = self.inner.checkpoint(checkpoint, now).await?;
        match &answer {
            Ok(applied) => {
                self.add(What::Saved { task, lease });
                self.applied(applied, &spawn);
            }
            Err(Rejected::LeaseLost(_)) => self.add(What::LeaseLost {
                task,
                lease,
                verb: "checkpoint",
            }),
            Err(_) => {}
        }
        Ok(answer)
    }

    async fn command(
        self,
        call: Call,
        tasks: Vec<TaskId>,
        command: Command,
    ) -> Result<Vec<Result<Applied, Rejected>>, StoreError> {
        let answers = self.inner.command(&call, tasks.clone(), command.clone()).await?;
        for (task, answer) in tasks.iter().zip(&answers) {
            let Ok(applied) = answer else { continue };
            self.add(What::Commanded {
                task: *task,
                command: command_name(&command),
                state: applied.state,
            });
            match command {
                Command::Delete => self.add(What::Deleted(*task)),
                Command::Retry => {
                    self.add(What::Revived(*task));
                    self.put_back(*task).await?;
                }
                _ => {}
            }
            self.applied(applied, &[]);
        }
        self.breakers().await;
        Ok(answers)
    }

    fn changed_queue(&self, found: Result<QueueRecord, StoreError>) -> Result<QueueRecord, StoreError> {
        if let Ok(queue) = &found {
            self.add(What::of_queue(queue));
        }
        found
    }

    async fn reap(self, now: Time, limit: usize) -> Result<Reaped, StoreError> {
        let reaped = self.inner.reap(now, limit).await?;
        if reaped.leases_expired > 0 {
            self.add(What::Reaped {
                now,
                leases: reaped.leases_expired,
            });
        }
        if !reaped.ended.is_empty() {
            self.add(What::Ended(reaped.ended.clone()));
        }
        self.swept(&reaped.ended, now).await?;
        self.breakers().await;
        Ok(reaped)
    }
}

fn command_name(command: &Command) -> &'static str {
    match command {
        Command::Cancel { .. } => "cancel",
        Command::Pause => "pause",
        Command::Resume => "resume",
        Command::Retry => "retry",
        Command::RunNow => "run now",
        Command::Signal { .. } => "signal",
        Command::Delete => "delete",
    }
}

/// What goes on at the far end as long as someone waits for it.
struct OnTheWay<T> {
    call: tokio::task::JoinHandle<Result<T, StoreError>>,
    /// Dropped with the caller, where what was answered just before is still to be told.
    told: Option<oneshot::Sender<()>>,
}

impl<T: Send + 'static> OnTheWay<T> {
    /// What ends with its caller at once.
    fn cut(call: impl Future<Output = Result<T, StoreError>> + Send + 'static) -> OnTheWay<T> {
        OnTheWay {
            call: tokio::spawn(call),
            told: None,
        }
    }

    /// What ends with its caller, unless it has been carried out by then: that is written down.
    fn told(call: impl Future<Output = Result<T, StoreError>> + Send + 'static) -> OnTheWay<T> {
        let (told, gone) = oneshot::channel::<()>();
        let call = tokio::spawn(async move {
            tokio::select! {
                biased;
                answer = call => answer,
                _ = gone => unavailable("the connection broke"),
            }
        });
        OnTheWay { call, told: Some(told) }
    }
}

impl<T> Future for OnTheWay<T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let ended = std::task::ready!(Pin::new(&mut self.call).poll(context));
        Poll::Ready(ended.unwrap_or_else(|_| unavailable("the connection broke")))
    }
}

impl<T> Drop for OnTheWay<T> {
    fn drop(&mut self) {
        if self.told.is_none() {
            self.call.abort();
        }
    }
}

fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done(_) => "done",
        Outcome::Again { .. } => "again",
        Outcome::Wait { .. } => "wait",
        Outcome::Yielded { .. } => "yielded",
        Outcome::Retry { .. } => "failed",
        Outcome::Fail(_) => "failed for good",
        Outcome::Cancelled => "cancelled",
        Outcome::Released => "released",
    }
}

/// A read, passed on; its namespace first where it has one.
macro_rules! read {
    ($self:ident.$verb:ident(&$space:ident $(, $argument:ident)*)) => {{
        let space = $space.to_owned();
        $self
            .call(reads(stringify!($verb)), move |store| {
                let (space, $($argument,)*) = (space.clone(), $($argument.clone(),)*);
                async move { store.inner.$verb(&space, $($argument),*).await }
            })
            .await
    }};
    ($self:ident.$verb:ident($($argument:ident),*)) => {
        $self
            .call(reads(stringify!($verb)), move |store| async move { store.inner.$verb($($argument),*).await })
            .await
    };
}

#[async_trait]
impl Store for Wire {
    async fn enqueue(&self, call: &Call, tasks: Vec<NewTask>) -> Result<Vec<Enqueued>, StoreError> {
        let call = call.clone();
        let verb = Verb {
            // Only with a key does the store know that it has seen it.
            may_repeat: call.idempotency.is_some(),
            ..writes("enqueue")
        };
        self.call(verb, move |store| store.enqueue(call.clone(), tasks.clone()))
            .await
    }

    async fn claim(&self, request: ClaimRequest, now: Time) -> Result<Vec<Claimed>, StoreError> {
        let weather = Arc::clone(&self.weather);
        self.call(writes("claim"), move |store| {
            let claim = weather.claims.fetch_add(1, Ordering::Relaxed);
            // At the far end, so that it is written down when it happens, whether or not the claimer stands still by then.
            let outlives = request.agent.is_some();
            let claim = store.claim(request.clone(), now, claim);
            match outlives {
                true => OnTheWay::told(claim),
                false => OnTheWay::cut(claim),
            }
        })
        .await
    }

    async fn renew(&self, beats: Vec<Beat>, lease: Duration, now: Time) -> Result<Vec<Renewal>, StoreError> {
        self.call(writes("renew"), move |store| store.renew(beats.clone(), lease, now))
            .await
    }

    async fn finish(&self, finishes: Vec<Finish>, now: Time) -> Result<Vec<Result<Applied, Rejected>>, StoreError> {
        self.call(writes("finish"), move |store| store.finish(finishes.clone(), now))
            .await
    }

    async fn checkpoint(&self, checkpoint: Checkpoint, now: Time) -> Result<Result<Applied, Rejected>, StoreError> {
        // A step or a state twice is harmless; children would come twice, which no network does to a statement.
        let verb = Verb {
            may_repeat: checkpoint.spawn.is_empty(),
            ..writes("checkpoint")
        };
        self.call(verb, move |store| store.checkpoint(checkpoint.clone(), now))
            .await
    }

    async fn command(
        &self,
        call: &Call,
        tasks: Vec<TaskId>,
        command: Command,
    ) -> Result<Vec<Result<Applied, Rejected>>, StoreError> {
        let call = call.clone();
        self.call(writes("command"), move |store| {
            store.command(call.clone(), tasks.clone(), command.clone())
        })
        .await
    }

    async fn update(
        &self,
        call: &Call,
        task: TaskId,
        patch: Patch,
        expected_version: Option<u64>,
    ) -> Result<Result<TaskRecord, Rejected>, StoreError> {
        let call = call.clone();
        self.call(writes("update"), move |store| {
            let (call, patch) = (call.clone(), patch.clone());
            async move { store.inner.update(&call, task, patch, expected_version).await }
        })
        .await
    }

    async fn heartbeat(&self, beat: NodeBeat, now: Time) -> Result<NodeReply, StoreError> {
        self.call(writes("heartbeat"), move |store| {
            let beat = beat.clone();
            async move {
                let heard = store.inner.heartbeat(beat.clone(), now).await?;
                store.beats(&beat, now);
                Ok(heard)
            }
        })
        .await
    }

    async fn leave(&self, node: NodeId, now: Time) -> Result<(), StoreError> {
        self.call(writes("leave"), move |store| async move {
            store.inner.leave(node, now).await?;
            store.left(node);
            Ok(())
        })
        .await
    }

    async fn nodes(&self, now: Time) -> Result<Vec<NodeRecord>, StoreError> {
        read!(self.nodes(now))
    }

    fn clock(&self) -> Option<Arc<dyn Clock>> {
        self.clock.clone()
    }

    async fn reap(&self, now: Time, limit: usize) -> Result<Reaped, StoreError> {
        self.call(writes("reap"), move |store| store.reap(now, limit)).await
    }

    async fn task(&self, namespace: &str, task: TaskId) -> Result<Option<TaskRecord>, StoreError> {
        let namespace = namespace.to_owned();
        let fault = self.weather.next(reads("task"), self.node.to_string());
        let read = self
            .meet(fault, move |store| {
                let namespace = namespace.clone();
                async move { store.inner.task(&namespace, task).await }
            })
            .await?;
        let Some(record) = &read else { return Ok(None) };
        let before = self.weather.seen.lock().insert(task, record.clone());
        Ok(match fault {
            Some(Fault::Stale) => before.or(read),
            _ => read,
        })
    }

    async fn tasks(
        &self,
        namespace: &str,
        filter: TaskFilter,
        page: Page,
        now: Time,
    ) -> Result<Paged<TaskRecord>, StoreError> {
        read!(self.tasks(&namespace, filter, page, now))
    }

    async fn executions(&self, namespace: &str, task: TaskId) -> Result<Vec<Execution>, StoreError> {
        read!(self.executions(&namespace, task))
    }

    async fn all_executions(&self, namespace: &str, page: Page) -> Result<Paged<Execution>, StoreError> {
        read!(self.all_executions(&namespace, page))
    }

    async fn events(&self, namespace: &str, task: TaskId) -> Result<Vec<TaskEvent>, StoreError> {
        read!(self.events(&namespace, task))
    }

    async fn logs(&self, namespace: &str, task: TaskId, after: u64, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        read!(self.logs(&namespace, task, after, limit))
    }

    async fn dependants(&self, namespace: &str, task: TaskId) -> Result<Vec<TaskId>, StoreError> {
        read!(self.dependants(&namespace, task))
    }

    async fn inbox(&self, task: TaskId) -> Result<Vec<Signal>, StoreError> {
        read!(self.inbox(task))
    }

    async fn steps(&self, task: TaskId) -> Result<Vec<(Name, Json)>, StoreError> {
        read!(self.steps(task))
    }

    async fn key_holders(&self, namespace: &str, key: &str) -> Result<Vec<TaskId>, StoreError> {
        let (space, key) = (namespace.to_owned(), key.to_owned());
        self.call(reads("key_holders"), move |store| {
            let (space, key) = (space.clone(), key.clone());
            async move { store.inner.key_holders(&space, &key).await }
        })
        .await
    }

    async fn put_queue(
        &self,
        call: &Call,
        queue: Name,
        settings: QueueSettings,
        expected_version: Option<u64>,
    ) -> Result<QueueRecord, StoreError> {
        let call = call.clone();
        let verb = Verb {
            // The second one would find another version.
            may_repeat: expected_version.is_none(),
            ..writes("put_queue")
        };
        self.call(verb, move |store| {
            let (call, queue, settings) = (call.clone(), queue.clone(), settings.clone());
            async move {
                let found = store.inner.put_queue(&call, queue, settings, expected_version).await;
                store.changed_queue(found)
            }
        })
        .await
    }

    async fn command_queue(&self, call: &Call, queue: Name, command: QueueCommand) -> Result<QueueRecord, StoreError> {
        let call = call.clone();
        self.call(writes("command_queue"), move |store| {
            let (call, queue) = (call.clone(), queue.clone());
            async move { store.changed_queue(store.inner.command_queue(&call, queue, command).await) }
        })
        .await
    }

    async fn delete_queue(&self, call: &Call, queue: Name) -> Result<(), StoreError> {
        let call = call.clone();
        self.call(writes("delete_queue"), move |store| {
            let (call, queue) = (call.clone(), queue.clone());
            async move { store.inner.delete_queue(&call, queue).await }
        })
        .await
    }

    async fn queues(&self, namespace: &str) -> Result<Vec<QueueRecord>, StoreError> {
        read!(self.queues(&namespace))
    }

    async fn put_agent(&self, call: &Call, agent: Name, settings: AgentSettings) -> Result<AgentRecord, StoreError> {
        let call = call.clone();
        self.call(writes("put_agent"), move |store| {
            let (call, agent, settings) = (call.clone(), agent.clone(), settings.clone());
            async move { store.changed("put", store.inner.put_agent(&call, agent, settings).await) }
        })
        .await
    }

    async fn command_agent(&self, call: &Call, agent: Name, command: AgentCommand) -> Result<AgentRecord, StoreError> {
        let call = call.clone();
        self.call(writes("command_agent"), move |store| {
            let (call, agent) = (call.clone(), agent.clone());
            let verb = match command {
                AgentCommand::Drain => "drain",
                AgentCommand::Undrain => "undrain",
            };
            async move { store.changed(verb, store.inner.command_agent(&call, agent, command).await) }
        })
        .await
    }

    async fn delete_agent(&self, call: &Call, agent: Name) -> Result<(), StoreError> {
        let call = call.clone();
        self.call(writes("delete_agent"), move |store| {
            let (call, agent) = (call.clone(), agent.clone());
            async move {
                let before = store.ends(call.now).await;
                let removed = store.inner.delete_agent(&call, agent.clone()).await;
                store.tell_ends(&before, call.now).await;
                store.gone(agent, "remove", removed).await
            }
        })
        .await
    }

    async fn open_session(&self, call: &Call, agent: Name, session: NodeId) -> Result<AgentRecord, StoreError> {
        let call = call.clone();
        self.call(writes("open_session"), move |store| {
            let (call, agent) = (call.clone(), agent.clone());
            async move {
                let before = store.ends(call.now).await;
                let opened = store.inner.open_session(&call, agent, session).await;
                store.tell_ends(&before, call.now).await;
                store.changed("open", opened)
            }
        })
        .await
    }

    async fn close_session(&self, call: &Call, agent: Name, session: NodeId) -> Result<(), StoreError> {
        let call = call.clone();
        self.call(writes("close_session"), move |store| {
            let (call, agent) = (call.clone(), agent.clone());
            async move {
                let before = store.ends(call.now).await;
                let closed = store.inner.close_session(&call, agent.clone(), session).await;
                store.tell_ends(&before, call.now).await;
                store.gone(agent, "close", closed).await
            }
        })
        .await
    }

    async fn beat_agent(&self, call: &Call, agent: Name, session: Option<NodeId>) -> Result<AgentRecord, StoreError> {
        let call = call.clone();
        self.call(writes("beat_agent"), move |store| {
            let (call, agent) = (call.clone(), agent.clone());
            async move {
                let now = call.now;
                let heard = store.inner.beat_agent(&call, agent, session).await;
                if let Ok(record) = &heard {
                    store.heard(&record.name, now);
                }
                heard
            }
        })
        .await
    }

    async fn agents(&self, namespace: &str) -> Result<Vec<AgentRecord>, StoreError> {
        read!(self.agents(&namespace))
    }

    async fn put_breaker(
        &self,
        call: &Call,
        breaker: Name,
        settings: BreakerSettings,
        expected_version: Option<u64>,
    ) -> Result<BreakerRecord, StoreError> {
        let call = call.clone();
        self.call(writes("put_breaker"), move |store| {
            let (call, breaker, settings) = (call.clone(), breaker.clone(), settings.clone());
            async move {
                let put = store.inner.put_breaker(&call, breaker, settings, expected_version);
                let found = put.await;
                store.breakers().await;
                found
            }
        })
        .await
    }

    async fn command_breaker(
        &self,
        call: &Call,
        breaker: Name,
        command: BreakerCommand,
    ) -> Result<BreakerRecord, StoreError> {
        let call = call.clone();
        self.call(writes("command_breaker"), move |store| {
            let (call, breaker) = (call.clone(), breaker.clone());
            async move {
                let found = store.inner.command_breaker(&call, breaker, command).await;
                store.breakers().await;
                found
            }
        })
        .await
    }

    async fn delete_breaker(&self, call: &Call, breaker: Name) -> Result<(), StoreError> {
        let call = call.clone();
        self.call(writes("delete_breaker"), move |store| {
            let (call, breaker) = (call.clone(), breaker.clone());
            async move {
                let gone = store.inner.delete_breaker(&call, breaker).await;
                store.breakers().await;
                gone
            }
        })
        .await
    }

    async fn breakers(&self, namespace: &str) -> Result<Vec<BreakerRecord>, StoreError> {
        read!(self.breakers(&namespace))
    }

    async fn counts(&self, namespace: &str, now: Time) -> Result<Counts, StoreError> {
        read!(self.counts(&namespace, now))
    }

    async fn prune(&self, retention: Retention, now: Time, limit: usize) -> Result<Pruned, StoreError> {
        self.call(writes("prune"), move |store| async move {
            store.inner.prune(retention, now, limit).await
        })
        .await
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
        // The store outlives its nodes.
        Ok(())
    }
}
