//! The engine: the verbs of a node, and what it is built from.

use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
use pensum_core::agent::Amounts;
use pensum_core::input::{Invalid, Patch, Problem};
use pensum_core::seam::Seams;
use pensum_core::store::{Applied, Call, Command, Enqueued, NodeRecord, Rejected, Retention};
use pensum_core::{Json, Name, NewTask, NodeId, Spec, State, Store, TaskId, TaskRecord, Time};
use serde::Serialize;
use tokio::sync::broadcast;

use crate::agents::Agents;
use crate::bulk::{self, BulkReceipt, BulkRequest};
use crate::explain::{self, Explanation};
use crate::hub::{EngineEvent, Hub};
use crate::metrics::{HandlerMetrics, Metrics, NodeMetrics};
use crate::node::Node;
use crate::queues::Queues;
use crate::shutdown::{self, ShutdownReport};
use crate::status::{self, SystemStatus};
use crate::{EngineBuilder, EngineError, Handler, claim, completer, heartbeat, intake, keeper, process, reaper};

/// How many tasks a node runs at once when it is not told.
pub const SLOTS_DEFAULT: usize = 64;
/// How long a lease lasts without renewal when it is not told.
pub const LEASE_DEFAULT: Duration = Duration::from_secs(30);
/// How long a handler has to return once it was asked to stop, when it is not told.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(10);
/// Names of handlers and capabilities that begin with this are the engine's own.
pub const RESERVED_PREFIX: &str = "pensum.";
/// How long a waiter trusts this node's own news before it looks at the store, where other nodes write too.
const WAIT_LOOK: Duration = Duration::from_millis(500);

/// Who this node is.
#[derive(Clone, Debug, Serialize)]
pub struct NodeInfo {
    /// This incarnation; a restart is another one.
    #[serde(serialize_with = "as_text")]
    pub id: NodeId,
    /// The name kept as `executor_id`.
    pub name: Name,
    /// Where its HTTP API listens, if it has one.
    pub address: Option<String>,
    /// When it was built.
    pub started_at: Time,
    /// How many tasks it runs at once.
    pub slots: usize,
}

fn as_text<S: serde::Serializer>(id: &NodeId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

/// A node over a store: the verbs, and once [started](Engine::start), the loops that run tasks. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) seams: Seams,
    pub(crate) info: NodeInfo,
    pub(crate) handlers: HashMap<Name, Arc<dyn Handler>>,
    pub(crate) capabilities: Arc<[Name]>,
    pub(crate) queues: Option<Arc<[Name]>>,
    /// What the machine has for tasks; `None` for whatever they ask.
    pub(crate) offered: Option<Amounts>,
    pub(crate) lease: Duration,
    pub(crate) grace: Duration,
    pub(crate) retention: Retention,
    pub(crate) allow_inline: bool,
    pub(crate) seen_queues: Queues,
    pub(crate) hub: Hub,
    pub(crate) node: Node,
    pub(crate) metrics: Metrics,
    pub(crate) agents: Agents,
}

/// Tasks that were checked, with all that they leave to their queue.
#[derive(Clone, Debug)]
pub struct Prepared(Vec<NewTask>);

impl Prepared {
    /// The tasks, as they will be enqueued.
    pub fn tasks(&self) -> &[NewTask] {
        &self.0
    }

    /// The tasks, to be enqueued by other means.
    pub fn into_tasks(self) -> Vec<NewTask> {
        self.0
    }
}

impl From<Inner> for Engine {
    fn from(inner: Inner) -> Engine {
        Engine { inner: Arc::new(inner) }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({})", self.inner.info.name)
    }
}

/// What it is made of.
impl Engine {
    /// Begins a node over a store.
    pub fn builder(store: Arc<dyn Store>) -> EngineBuilder {
        EngineBuilder::new(store)
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }

    /// Time, randomness and spawning.
    pub fn seams(&self) -> &Seams {
        &self.inner.seams
    }

    /// The present.
    pub fn now(&self) -> Time {
        self.inner.seams.now()
    }

    /// Who this node is.
    pub fn node(&self) -> &NodeInfo {
        &self.inner.info
    }

    /// The names of this node's handlers, sorted, without the engine's own.
    pub fn handlers(&self) -> Vec<Name> {
        let mut names: Vec<Name> = self
            .inner
            .handlers
            .keys()
            .filter(|n| !n.starts_with(RESERVED_PREFIX))
            .cloned()
            .collect();
        names.sort();
        names
    }

    pub(crate) fn handler(&self, name: &str) -> Option<Arc<dyn Handler>> {
        self.inner.handlers.get(name).cloned()
    }

    pub(crate) fn capabilities(&self) -> Arc<[Name]> {
        Arc::clone(&self.inner.capabilities)
    }

    /// The queues that this node takes tasks from; `None` for all.
    pub(crate) fn queues(&self) -> Option<Arc<[Name]>> {
        self.inner.queues.clone()
    }

    /// What the machine has for tasks; `None` for whatever they ask.
    pub(crate) fn offered(&self) -> Option<Amounts> {
        self.inner.offered
    }

    pub(crate) fn lease(&self) -> Duration {
        self.inner.lease
    }

    pub(crate) fn grace(&self) -> Duration {
        self.inner.grace
    }

    pub(crate) fn retention(&self) -> Retention {
        self.inner.retention
    }

    pub(crate) fn allows_inline(&self) -> bool {
        self.inner.allow_inline
    }

    /// The queues with settings, as this node saw them last.
    pub(crate) fn seen_queues(&self) -> &Queues {
        &self.inner.seen_queues
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.inner.hub
    }

    pub(crate) fn live(&self) -> &Node {
        &self.inner.node
    }

    pub(crate) fn counters(&self) -> &Metrics {
        &self.inner.metrics
    }

    pub(crate) fn inner_agents(&self) -> &Agents {
        &self.inner.agents
    }

    /// Something may have become claimable.
    pub(crate) fn wake_claims(&self) {
        self.inner.node.wake.notify_one();
        self.inner.agents.wake();
    }
}

/// Verbs.
impl Engine {
    /// Adds tasks, all or none. `Ok` means that they are on disk, but for a batch of nothing but tasks of queues that are not
    /// persistent.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for what a handler of this node says of its parameters, by path (`tasks[2].parameters.url`),
    /// and for tasks of queues that are not persistent, as long as the engine is not [started](Engine::start).
    pub async fn enqueue(&self, call: &Call, tasks: Vec<NewTask>) -> Result<Vec<Enqueued>, EngineError> {
        let prepared = self.prepare(&call.namespace, tasks).await?;
        self.enqueue_prepared(call, prepared).await
    }

    /// Checks tasks as [`Engine::enqueue`] does, and fills in what they leave to their queue: the queue that bears their
    /// handler's name, where they name none and somebody put that one, and the priority, timeout and retries that their queue
    /// says.
    ///
    /// # Errors
    /// Those of [`Engine::enqueue`], but for what only the store knows.
    pub async fn prepare(&self, namespace: &Name, mut tasks: Vec<NewTask>) -> Result<Prepared, EngineError> {
        self.check(&tasks)?;
        self.fill_from_queues(namespace, &mut tasks).await?;
        Ok(Prepared(tasks))
    }

    /// Adds tasks that were [prepared](Engine::prepare) for the namespace of the call, all or none. `Ok` means that they
    /// are on disk.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn enqueue_prepared(&self, call: &Call, tasks: Prepared) -> Result<Vec<Enqueued>, EngineError> {
        self.enqueue_unchecked(call, tasks.0).await
    }

    pub(crate) async fn enqueue_unchecked(
        &self,
        call: &Call,
        tasks: Vec<NewTask>,
    ) -> Result<Vec<Enqueued>, EngineError> {
        let handlers: Option<Vec<Name>> = self
            .hub()
            .is_watched()
            .then(|| tasks.iter().map(|t| t.spec.handler.clone()).collect());
        let enqueued = self.store().enqueue(call, tasks).await?;
        self.wake_claims();
        for (handler, item) in handlers.into_iter().flatten().zip(&enqueued) {
            if item.created {
                let namespace = call.namespace.clone();
                self.hub().emit(EngineEvent::Enqueued {
                    task: item.id,
                    namespace,
                    handler,
                    at: call.now,
                });
            }
        }
        Ok(enqueued)
    }

    /// What this node's handlers say of tasks to be enqueued.
    ///
    /// # Errors
    /// Every problem, by path.
    pub fn check(&self, tasks: &[NewTask]) -> Result<(), Invalid> {
        let mut problems = Vec::new();
        for (index, task) in tasks.iter().enumerate() {
            if task.spec.handler.starts_with(RESERVED_PREFIX) {
                let message = format!("names that begin with `{RESERVED_PREFIX}` are the engine's own; use another");
                problems.push(Problem {
                    path: format!("tasks[{index}].handler"),
                    message,
                });
                continue;
            }
            let Some(handler) = self.inner.handlers.get(&task.spec.handler) else {
                continue;
            };
            if let Err(Invalid(found)) = handler.check(&task.spec.parameters) {
                problems.extend(found.into_iter().map(|problem| {
                    let dot = if problem.path.is_empty() || problem.path.starts_with('[') {
                        ""
                    } else {
                        "."
                    };
                    let path = format!("tasks[{index}].parameters{dot}{}", problem.path);
                    Problem {
                        path,
                        message: problem.message,
                    }
                }));
            }
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Invalid(problems))
        }
    }

    /// Carries out a command on each task; per-item results, in order. A task that runs on this node learns of it at
    /// once, one on another node within about a second.
    ///
    /// # Errors
    /// Those of the store as a whole.
    pub async fn command(
        &self,
        call: &Call,
        tasks: Vec<TaskId>,
        command: Command,
    ) -> Result<Vec<Result<Applied, Rejected>>, EngineError> {
        let unpausable = match command {
            Command::Pause => self.live().unpausable(&tasks),
            _ => Vec::new(),
        };
        let mut call = call.clone();
        if command == Command::Retry && self.live().is_started() && heartbeat::be_heard(self).await.is_ok() {
            call.process = Some(self.node().id);
            self.live().answer();
        }
        let call = &call;
        let mut asked = tasks.clone();
        asked.retain(|task| !unpausable.contains(task));
        let mut answers = match asked.is_empty() {
            true => Vec::new(),
            false => self.store().command(call, asked.clone(), command).await?,
        };
        for (task, answer) in asked.iter().zip(&answers) {
            if let Ok(applied) = answer {
                self.applied(*task, applied, call.now);
            }
        }
        self.wake_claims();
        if unpausable.is_empty() {
            return Ok(answers);
        }
        let mut answers = answers.drain(..);
        let why = "its handler cannot pause while running; cancel it instead";
        let forbidden = |task: TaskId| {
            Err(Rejected::Forbidden {
                task,
                state: State::Running,
                why,
            })
        };
        Ok(tasks
            .into_iter()
            .map(|task| match unpausable.contains(&task) {
                true => forbidden(task),
                false => answers.next().unwrap_or(Err(Rejected::NotFound(task))),
            })
            .collect())
    }

    /// Passes on what a verb did: to the run here, to waiters, to listeners.
    fn applied(&self, task: TaskId, applied: &Applied, now: Time) {
        if let Some(interrupt) = applied.interrupt {
            self.live().interrupt(task, interrupt, now, self.grace());
        }
        self.announce_ended(&applied.ended, now);
        if applied.state.is_none() {
            self.hub().ended(task);
        }
        if self.hub().is_watched() && !applied.ended.iter().any(|(ended, _)| *ended == task) {
            self.hub().emit(EngineEvent::Changed { task, at: now });
        }
    }

    /// Tells waiters and listeners of tasks that ended without a run of theirs ending here.
    pub(crate) fn announce_ended(&self, ended: &[(TaskId, State)], now: Time) {
        let watched = !ended.is_empty() && self.hub().is_watched();
        for (task, state) in ended {
            self.hub().ended(*task);
            if watched {
                self.hub().emit(EngineEvent::Ended {
                    task: *task,
                    state: *state,
                    error: None,
                    at: now,
                });
            }
        }
    }

    /// Changes what a task asks for.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for wrong values, [`EngineError::Rejected`] where its state does not allow the change.
    pub async fn update(
        &self,
        call: &Call,
        task: TaskId,
        patch: Patch,
        expected_version: Option<u64>,
    ) -> Result<TaskRecord, EngineError> {
        patch.check(call.now)?;
        if let Some(parameters) = &patch.parameters {
            self.check_parameters(&call.namespace, task, parameters).await?;
        }
        let record = self.store().update(call, task, patch, expected_version).await??;
        self.wake_claims();
        if self.hub().is_watched() {
            self.hub().emit(EngineEvent::Changed { task, at: call.now });
        }
        Ok(record)
    }

    /// Refuses parameters that the handler of a task would not have taken when it was enqueued.
    async fn check_parameters(&self, namespace: &str, task: TaskId, parameters: &Json) -> Result<(), EngineError> {
        // What is not there is the store's to refuse.
        let Some(found) = self.store().task(namespace, task).await? else {
            return Ok(());
        };
        if found.spec.handler.starts_with(RESERVED_PREFIX) {
            let message = format!("are the engine's own for a task of `{}`, and stay", found.spec.handler);
            return Err(Invalid::one("parameters", message).into());
        }
        let changed = NewTask::new(Spec::new(found.spec.handler, parameters.clone()));
        self.check(&[changed]).map_err(|Invalid(problems)| {
            let single = |problem: Problem| Problem {
                path: problem.path.replacen("tasks[0].", "", 1),
                ..problem
            };
            Invalid(problems.into_iter().map(single).collect()).into()
        })
    }

    /// Waits until a task has ended, wherever it runs.
    ///
    /// # Errors
    /// [`EngineError::WaitTimeout`] when it has not ended after `timeout`; [`EngineError::NotFound`].
    pub async fn wait(
        &self,
        namespace: &str,
        task: TaskId,
        timeout: Option<Duration>,
    ) -> Result<TaskRecord, EngineError> {
        let until = timeout.map_or(Time::MAX, |t| self.now().plus(t));
        let waiter = self.hub().wait_for(task);
        loop {
            let mut ended = std::pin::pin!(waiter.ended.notified());
            ended.as_mut().enable();
            let record = self
                .store()
                .task(namespace, task)
                .await?
                .ok_or(EngineError::NotFound(task))?;
            if record.lifecycle.state.is_terminal() {
                return Ok(record);
            }
            let now = self.now();
            if now >= until {
                return Err(EngineError::WaitTimeout);
            }
            let look = self.seams().clock.sleep_until(until.min(now.plus(WAIT_LOOK)));
            tokio::select! {
                biased;
                () = ended => {}
                () = look => {}
            }
        }
    }

    /// What happens on this node from now on, best effort: a slow reader misses some.
    pub fn subscribe(&self) -> broadcast::Receiver<EngineEvent> {
        self.hub().subscribe()
    }

    /// Why a task does not run, or that it does: every gate that is closed.
    ///
    /// # Errors
    /// [`EngineError::NotFound`].
    pub async fn explain(&self, namespace: &str, task: TaskId) -> Result<Explanation, EngineError> {
        explain::explain(self, namespace, task).await
    }

    /// Does something to every task that a filter matches, as a durable task of its own.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for a filter that is empty without `all: true`.
    pub async fn bulk(&self, call: &Call, request: BulkRequest) -> Result<BulkReceipt, EngineError> {
        bulk::submit(self, call, request).await
    }

    /// How the system is, in the namespace `default`.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn status(&self) -> Result<SystemStatus, EngineError> {
        self.status_of("default").await
    }

    /// How the system is, as one namespace sees it.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn status_of(&self, namespace: &str) -> Result<SystemStatus, EngineError> {
        status::status(self, namespace).await
    }

    /// The nodes that work on the store, oldest first: those that were heard within the last hour and did not leave.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn nodes(&self) -> Result<Vec<NodeRecord>, EngineError> {
        Ok(self.store().nodes(self.now()).await?)
    }

    /// What this node has done since it was built.
    pub fn metrics(&self) -> NodeMetrics {
        self.inner.metrics.snapshot(self)
    }

    /// The same by handler, for histograms.
    pub fn handler_metrics(&self) -> Vec<HandlerMetrics> {
        self.inner.metrics.by_handler()
    }
}

/// Life.
impl Engine {
    /// Starts the loops: claims, lease-keeping, finishing, reaping, signs of life. Once; later calls do nothing. Must be called
    /// within the runtime that the seams spawn on.
    pub fn start(&self) {
        if !self.live().begin() {
            return;
        }
        let seams = self.seams();
        if self.inner.handlers.contains_key("command") {
            // A node that was killed left its commands running; their tasks run again.
            seams.spawn("orphans", async {
                drop(tokio::task::spawn_blocking(process::kill_orphans).await)
            });
        }
        seams.spawn("heartbeat", heartbeat::run(self.clone()));
        seams.spawn("completer", completer::run(self.clone()));
        seams.spawn("keeper", keeper::run(self.clone()));
        seams.spawn("reaper", reaper::run(self.clone()));
        seams.spawn("pruner", reaper::prune(self.clone()));
        if self.store().has_intake() {
            seams.spawn("intake", intake::run(self.clone()));
        }
        seams.spawn("claims", claim::run(self.clone()));
    }

    /// True from [`Engine::start`] until a shutdown begins.
    pub fn is_accepting(&self) -> bool {
        self.live().is_accepting()
    }

    /// How many handlers run here now.
    pub fn running(&self) -> usize {
        self.live().busy()
    }

    /// Stops: claims nothing from now on, lets what runs end within `grace`, then asks it to stop and gives it back
    /// without an attempt spent. Returns within `grace` and some seconds, even if the store is gone. Closing the store
    /// is the caller's.
    pub async fn shutdown(&self, grace: Duration) -> ShutdownReport {
        shutdown::shutdown(self, grace).await
    }

    /// Ends at once: drops every handler, with its subprocesses, and writes nothing. The leases run out by themselves.
    pub async fn abort(&self) {
        shutdown::abort(self).await;
    }
}
