//! The model store: the whole trait in memory, written to be read rather than to be fast.
//!
//! It is built on [`crate::apply`] and plain scans. The conformance suite and random-operation tests hold the SQL
//! stores to what it does; the simulation runs on it.

mod agent;
mod breaker;
mod capacity;
mod command;
mod dossier;
mod enqueue;
mod node;
mod queue;
mod read;
mod run;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::agent::{AgentCommand, AgentRecord, AgentSettings};
use crate::breaker::{BreakerCommand, BreakerRecord, BreakerSettings};
use crate::dossier::{Bookmark, Import, Parcel};
use crate::input::Patch;
use crate::outcome::{ErrorInfo, Progress, Usage};
use crate::query::{Counts, Page, Paged, TaskFilter};
use crate::queue::{PER_KEY_MAX, QueueCommand, QueueRecord, QueueSettings};
use crate::seam::{Random, SeededRandom};
use crate::store::{
    Applied, Beat, Call, Checkpoint, ClaimRequest, Claimed, Command, Enqueued, Finish, LogEntry, NodeBeat, NodeRecord,
    NodeReply, Pruned, Reaped, Rejected, Renewal, Retention, Signal, Store, StoreError, StoreStats, TaskEvent,
    Verified,
};
use crate::task::{Execution, ExecutionStatus, Lifecycle, NewTask, Spec, TaskRecord, Unique};
use crate::transition::{Effects, Event, apply};
use crate::{Json, Name, NodeId, State, TaskId, Time};

/// A run that goes on for this long, or has checkpointed, has survived its start: a node's death is not charged to it.
pub const PROBATION: Duration = Duration::from_secs(60);

/// A store in memory.
pub struct ModelStore {
    model: Mutex<Model>,
    random: SeededRandom,
}

impl ModelStore {
    /// An empty store whose ids and leases follow from the seed.
    pub fn new(seed: u64) -> ModelStore {
        ModelStore {
            model: Mutex::new(Model {
                next_row: 1,
                ..Model::default()
            }),
            random: SeededRandom::new(seed),
        }
    }

    fn bits(&self) -> u64 {
        self.random.bits()
    }
}

#[derive(Default)]
pub(crate) struct Model {
    tasks: BTreeMap<i64, Entry>,
    /// By namespace, handler and key.
    unique: BTreeMap<(Name, Name, Name), UniqueHold>,
    /// By namespace and key.
    idempotency: BTreeMap<(Name, String), Remembered>,
    nodes: BTreeMap<NodeId, node::Known>,
    /// By namespace and name.
    queues: BTreeMap<(Name, Name), QueueRecord>,
    /// The number that a key's last run in a fair queue took at its end, by namespace and key.
    served: BTreeMap<(Name, Name), i64>,
    /// By namespace and name.
    agents: BTreeMap<(Name, Name), AgentRecord>,
    /// By namespace and name.
    breakers: BTreeMap<(Name, Name), BreakerRecord>,
    next_row: i64,
    next_seq: u64,
    /// What follows from tasks that ended, worked off one by one: chains of dependants may be long.
    following: VecDeque<(i64, Event, Option<ErrorInfo>)>,
    /// Another store is being copied into this one.
    filling: bool,
    closed: bool,
}

struct UniqueHold {
    row: i64,
    /// With a time to live the hold ends then, whatever the task does; without one it ends with the task.
    expires_at: Option<Time>,
}

struct Remembered {
    digest: [u8; 32],
    ids: Vec<TaskId>,
    expires_at: Time,
}

struct Entry {
    id: TaskId,
    namespace: Name,
    created_at: Time,
    spec: Spec,
    lifecycle: Lifecycle,
    holder: Option<Holder>,
    unique: Option<Unique>,
    depends_on: Vec<TaskId>,
    progress: Option<Progress>,
    result: Option<Json>,
    error: Option<ErrorInfo>,
    /// Why a running task was asked to stop, until it does.
    cancel_reason: Option<ErrorInfo>,
    checkpoint: Option<Json>,
    version: u64,
    executions: Vec<Execution>,
    events: Vec<TaskEvent>,
    logs: Vec<LogEntry>,
    inbox: VecDeque<Signal>,
    steps: Vec<(Name, Json)>,
}

/// What is known of a lease beside its fence.
#[derive(Clone)]
struct Holder {
    executor: Name,
    taken_at: Time,
    alone: bool,
    checkpointed: bool,
}

/// What goes with a transition into the record.
#[derive(Default)]
struct Facts {
    actor: Option<Name>,
    error: Option<ErrorInfo>,
    result: Option<Json>,
    usage: Usage,
}

impl Entry {
    fn record(&self) -> TaskRecord {
        TaskRecord {
            id: self.id,
            created_at: self.created_at,
            spec: self.spec.clone(),
            lifecycle: self.lifecycle.clone(),
            progress: self.progress.clone(),
            result: self.result.clone(),
            error: self.error.clone(),
            depends_on: self.depends_on.clone(),
            version: self.version,
        }
    }
}

impl Model {
    fn open(&mut self) -> Result<&mut Model, StoreError> {
        if self.closed { Err(StoreError::Closed) } else { Ok(self) }
    }

    fn entry(&mut self, task: TaskId) -> Option<&mut Entry> {
        self.tasks.get_mut(&task.row()).filter(|e| e.id == task)
    }

    fn seq(&mut self) -> u64 {
        self.next_seq += 1;
        self.next_seq
    }

    /// Carries one event through [`apply`] into the entry of `row` and on to whatever follows from it.
    fn happen(
        &mut self,
        row: i64,
        event: &Event,
        facts: Facts,
        now: Time,
        applied: &mut Applied,
    ) -> Result<Effects, Rejected> {
        let effects = self.step(row, event, facts, now, applied)?;
        while let Some((row, event, error)) = self.following.pop_front() {
            // Whoever does not wait any more refuses, which is fine.
            let _ = self.step(
                row,
                &event,
                Facts {
                    error,
                    ..Facts::default()
                },
                now,
                applied,
            );
            self.drop_error_of_the_waiting(row);
        }
        Ok(effects)
    }

    fn step(
        &mut self,
        row: i64,
        event: &Event,
        facts: Facts,
        now: Time,
        applied: &mut Applied,
    ) -> Result<Effects, Rejected> {
        let seq = self.seq();
        let Some(entry) = self.tasks.get_mut(&row) else {
            return Err(Rejected::NotFound(TaskId::from_bytes([0; 16])));
        };
        let before = entry.lifecycle.state;
        let transition =
            apply(&entry.lifecycle, event, now).map_err(|r| Rejected::from_refusal(entry.id, before, r))?;
        let effects = transition.effects;
        let attempt = transition.next.attempt;
        let running = entry.lifecycle.state == State::Running;
        entry.lifecycle = transition.next;
        entry.version += 1;
        if entry.lifecycle.state == State::Cancelled || effects.interrupt.is_some() {
            // The reason given with the request outlives the handler's own last words.
            entry.error = entry
                .cancel_reason
                .clone()
                .or(facts.error.clone())
                .or(entry.error.take());
        } else if facts.error.is_some() {
            entry.error.clone_from(&facts.error);
        }
        match entry.lifecycle.state {
            State::Completed => {
                entry.result.clone_from(&facts.result);
                entry.error = None;
            }
            State::Queued if before.is_terminal() => {
                entry.result = None;
                entry.error = None;
                entry.cancel_reason = None;
            }
            _ => {}
        }
        let error = entry.error.clone();
        entry.events.push(TaskEvent {
            seq,
            at: now,
            kind: transition.kind,
            actor: facts.actor,
            attempt,
            error: error.clone(),
        });
        if let Some(status) = effects.attempt_ended {
            let executor = entry
                .holder
                .as_ref()
                .map(|h| h.executor.to_string())
                .unwrap_or_default();
            entry.executions.push(Execution {
                task: entry.id,
                attempt,
                executor_id: executor,
                status,
                started_at: entry.lifecycle.started_at.unwrap_or(now),
                finished_at: Some(now),
                usage: facts.usage,
                result: facts.result,
                error: if status == ExecutionStatus::Completed {
                    None
                } else {
                    facts.error.or(error)
                },
            });
        }
        let holder = entry.holder.clone();
        let is_over = running && entry.lifecycle.state != State::Running;
        if is_over {
            entry.holder = None;
        }
        let id = entry.id;
        if is_over {
            self.note_turn(row);
        }
        if let (Some(status), Some(holder)) = (effects.attempt_ended, &holder) {
            self.note_end(row, &holder.executor, holder.taken_at, status, now);
        }
        let revived = before.is_terminal() && effects.requeued;
        if let Some(state) = effects.ended {
            self.on_ended(row, state, applied);
        } else if revived {
            for dependant in self.dependants_of(id) {
                self.following.push_back((dependant, Event::DependencyRevived, None));
            }
        }
        Ok(effects)
    }

    /// Frees the unique key, and tells dependants and the parent.
    fn on_ended(&mut self, row: i64, state: State, applied: &mut Applied) {
        let Some(entry) = self.tasks.get(&row) else { return };
        let (id, parent) = (entry.id, entry.spec.details.as_ref().and_then(|d| d.parent_id));
        applied.ended.push((id, state));
        self.unique
            .retain(|_, hold| hold.row != row || hold.expires_at.is_some());
        for dependant in self.dependants_of(id) {
            let completed = state == State::Completed;
            let error = (!completed).then(|| dependency_failed(id, state));
            self.following
                .push_back((dependant, Event::DependencyEnded(completed), error));
        }
        if let Some(parent) = parent
            && self.unfinished_children(parent) == 0
        {
            self.following.push_back((parent.row(), Event::ChildrenEnded, None));
        }
    }

    /// A dependency's failure is the error of a task that it cancelled, not of one that ignores it.
    fn drop_error_of_the_waiting(&mut self, row: i64) {
        if let Some(entry) = self.tasks.get_mut(&row)
            && !entry.lifecycle.state.is_terminal()
            && entry.error.as_ref().is_some_and(|e| e.kind == "dependency_failed")
        {
            entry.error = None;
        }
    }

    fn dependants_of(&self, id: TaskId) -> Vec<i64> {
        self.tasks
            .iter()
            .filter(|(_, e)| e.depends_on.contains(&id))
            .map(|(row, _)| *row)
            .collect()
    }

    fn unfinished_children(&self, parent: TaskId) -> usize {
        let is_child = |e: &&Entry| e.spec.details.as_ref().is_some_and(|d| d.parent_id == Some(parent));
        self.tasks
            .values()
            .filter(is_child)
            .filter(|e| !e.lifecycle.state.is_terminal())
            .count()
    }

    fn unfinished_dependencies(&self, entry: &Entry) -> u32 {
        let unfinished = |id: &&TaskId| {
            self.tasks
                .get(&id.row())
                .is_some_and(|e| !e.lifecycle.state.is_terminal())
        };
        u32::try_from(entry.depends_on.iter().filter(unfinished).count()).unwrap_or(u32::MAX)
    }
}

fn dependency_failed(id: TaskId, state: State) -> ErrorInfo {
    ErrorInfo::new(
        "dependency_failed",
        format!("task {id}, which it depends on, is {state}"),
    )
}

#[async_trait]
impl Store for ModelStore {
    async fn enqueue(&self, call: &Call, tasks: Vec<NewTask>) -> Result<Vec<Enqueued>, StoreError> {
        self.model.lock().open()?.enqueue(call, tasks, &|| self.bits())
    }

    async fn claim(&self, request: ClaimRequest, now: Time) -> Result<Vec<Claimed>, StoreError> {
        let mut model = self.model.lock();
        let model = model.open()?;
        Ok(match &request.agent {
            Some(agent) => model.claim_for_agent(&request, agent, now, &|| self.bits())?,
            None => model.claim(&request, &agent::Offer::Node(&request), now, &|| self.bits()),
        })
    }

    async fn renew(&self, beats: Vec<Beat>, lease: Duration, now: Time) -> Result<Vec<Renewal>, StoreError> {
        let mut model = self.model.lock();
        let model = model.open()?;
        Ok(beats.into_iter().map(|beat| model.renew(beat, lease, now)).collect())
    }

    async fn finish(&self, finishes: Vec<Finish>, now: Time) -> Result<Vec<Result<Applied, Rejected>>, StoreError> {
        let mut model = self.model.lock();
        let model = model.open()?;
        Ok(finishes
            .into_iter()
            .map(|finish| model.finish(finish, now, &|| self.bits()))
            .collect())
    }

    async fn checkpoint(&self, checkpoint: Checkpoint, now: Time) -> Result<Result<Applied, Rejected>, StoreError> {
        Ok(self.model.lock().open()?.checkpoint(checkpoint, now, &|| self.bits()))
    }

    async fn command(
        &self,
        call: &Call,
        tasks: Vec<TaskId>,
        command: Command,
    ) -> Result<Vec<Result<Applied, Rejected>>, StoreError> {
        self.model.lock().open()?.commands(call, &tasks, &command)
    }

    async fn update(
        &self,
        call: &Call,
        task: TaskId,
        patch: Patch,
        expected_version: Option<u64>,
    ) -> Result<Result<TaskRecord, Rejected>, StoreError> {
        Ok(self.model.lock().open()?.update(call, task, &patch, expected_version))
    }

    async fn heartbeat(&self, beat: NodeBeat, now: Time) -> Result<NodeReply, StoreError> {
        Ok(self.model.lock().open()?.heartbeat(beat, now))
    }

    async fn leave(&self, node: NodeId, _now: Time) -> Result<(), StoreError> {
        self.model.lock().open()?.nodes.remove(&node);
        Ok(())
    }

    async fn nodes(&self, now: Time) -> Result<Vec<NodeRecord>, StoreError> {
        Ok(self.model.lock().open()?.list_nodes(now))
    }

    async fn reap(&self, now: Time, limit: usize) -> Result<Reaped, StoreError> {
        Ok(self.model.lock().open()?.reap(now, limit))
    }

    async fn task(&self, namespace: &str, task: TaskId) -> Result<Option<TaskRecord>, StoreError> {
        Ok(self.model.lock().open()?.find(namespace, task).map(|e| e.record()))
    }

    async fn tasks(
        &self,
        namespace: &str,
        filter: TaskFilter,
        page: Page,
        now: Time,
    ) -> Result<Paged<TaskRecord>, StoreError> {
        Ok(self.model.lock().open()?.list(namespace, &filter, &page, now))
    }

    async fn executions(&self, namespace: &str, task: TaskId) -> Result<Vec<Execution>, StoreError> {
        Ok(self
            .model
            .lock()
            .open()?
            .find(namespace, task)
            .map(read::executions)
            .unwrap_or_default())
    }

    async fn all_executions(&self, namespace: &str, page: Page) -> Result<Paged<Execution>, StoreError> {
        Ok(self.model.lock().open()?.all_executions(namespace, &page))
    }

    async fn events(&self, namespace: &str, task: TaskId) -> Result<Vec<TaskEvent>, StoreError> {
        Ok(self
            .model
            .lock()
            .open()?
            .find(namespace, task)
            .map(|e| e.events.clone())
            .unwrap_or_default())
    }

    async fn logs(&self, namespace: &str, task: TaskId, after: u64, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        let mut model = self.model.lock();
        let entry = model.open()?.find(namespace, task);
        Ok(entry
            .map(|e| e.logs.iter().filter(|l| l.seq > after).take(limit).cloned().collect())
            .unwrap_or_default())
    }

    async fn dependants(&self, namespace: &str, task: TaskId) -> Result<Vec<TaskId>, StoreError> {
        let mut model = self.model.lock();
        let model = model.open()?;
        let depends = |e: &&Entry| *e.namespace == *namespace && e.depends_on.contains(&task);
        Ok(model.tasks.values().filter(depends).map(|e| e.id).collect())
    }

    async fn inbox(&self, task: TaskId) -> Result<Vec<Signal>, StoreError> {
        Ok(self
            .model
            .lock()
            .open()?
            .entry(task)
            .map(|e| e.inbox.iter().cloned().collect())
            .unwrap_or_default())
    }

    async fn steps(&self, task: TaskId) -> Result<Vec<(Name, Json)>, StoreError> {
        Ok(self
            .model
            .lock()
            .open()?
            .entry(task)
            .map(|e| e.steps.clone())
            .unwrap_or_default())
    }

    async fn key_holders(&self, namespace: &str, key: &str) -> Result<Vec<TaskId>, StoreError> {
        let mut model = self.model.lock();
        let holds = |e: &&Entry| {
            *e.namespace == *namespace && e.spec.key.as_deref() == Some(key) && e.lifecycle.state == State::Running
        };
        let holders = model.open()?.tasks.values().filter(holds).map(|e| e.id);
        Ok(holders.take(PER_KEY_MAX as usize).collect())
    }

    async fn put_queue(
        &self,
        call: &Call,
        queue: Name,
        settings: QueueSettings,
        expected_version: Option<u64>,
    ) -> Result<QueueRecord, StoreError> {
        let mut model = self.model.lock();
        Ok(model.open()?.put_queue(call, queue, settings, expected_version)?)
    }

    async fn command_queue(&self, call: &Call, queue: Name, command: QueueCommand) -> Result<QueueRecord, StoreError> {
        Ok(self.model.lock().open()?.command_queue(call, queue, command)?)
    }

    async fn delete_queue(&self, call: &Call, queue: Name) -> Result<(), StoreError> {
        Ok(self.model.lock().open()?.delete_queue(call, queue)?)
    }

    async fn queues(&self, namespace: &str) -> Result<Vec<QueueRecord>, StoreError> {
        Ok(self.model.lock().open()?.list_queues(namespace))
    }

    async fn put_agent(&self, call: &Call, agent: Name, settings: AgentSettings) -> Result<AgentRecord, StoreError> {
        Ok(self.model.lock().open()?.put_agent(call, agent, settings)?)
    }

    async fn command_agent(&self, call: &Call, agent: Name, command: AgentCommand) -> Result<AgentRecord, StoreError> {
        Ok(self.model.lock().open()?.command_agent(call, &agent, command)?)
    }

    async fn delete_agent(&self, call: &Call, agent: Name) -> Result<(), StoreError> {
        Ok(self.model.lock().open()?.delete_agent(call, &agent)?)
    }

    async fn open_session(&self, call: &Call, agent: Name, session: NodeId) -> Result<AgentRecord, StoreError> {
        Ok(self.model.lock().open()?.open_session(call, &agent, session)?)
    }

    async fn close_session(&self, call: &Call, agent: Name, session: NodeId) -> Result<(), StoreError> {
        Ok(self.model.lock().open()?.close_session(call, &agent, session)?)
    }

    async fn beat_agent(&self, call: &Call, agent: Name, session: Option<NodeId>) -> Result<AgentRecord, StoreError> {
        Ok(self.model.lock().open()?.beat_agent(call, &agent, session)?)
    }

    async fn agents(&self, namespace: &str) -> Result<Vec<AgentRecord>, StoreError> {
        Ok(self.model.lock().open()?.list_agents(namespace))
    }

    async fn put_breaker(
        &self,
        call: &Call,
        breaker: Name,
        settings: BreakerSettings,
        expected_version: Option<u64>,
    ) -> Result<BreakerRecord, StoreError> {
        let mut model = self.model.lock();
        Ok(model.open()?.put_breaker(call, breaker, settings, expected_version)?)
    }

    async fn command_breaker(
        &self,
        call: &Call,
        breaker: Name,
        command: BreakerCommand,
    ) -> Result<BreakerRecord, StoreError> {
        Ok(self.model.lock().open()?.command_breaker(call, breaker, command)?)
    }

    async fn delete_breaker(&self, call: &Call, breaker: Name) -> Result<(), StoreError> {
        Ok(self.model.lock().open()?.delete_breaker(call, breaker)?)
    }

    async fn breakers(&self, namespace: &str) -> Result<Vec<BreakerRecord>, StoreError> {
        Ok(self.model.lock().open()?.list_breakers(namespace))
    }

    async fn counts(&self, namespace: &str, now: Time) -> Result<Counts, StoreError> {
        Ok(self.model.lock().open()?.counts(namespace, now))
    }

    async fn prune(&self, retention: Retention, now: Time, limit: usize) -> Result<Pruned, StoreError> {
        Ok(self.model.lock().open()?.prune(retention, now, limit))
    }

    async fn verify(&self) -> Result<Verified, StoreError> {
        Ok(self.model.lock().open()?.verify())
    }

    async fn stats(&self) -> Result<StoreStats, StoreError> {
        let mut model = self.model.lock();
        let model = model.open()?;
        Ok(StoreStats {
            kind: "model".to_owned(),
            location: "memory".to_owned(),
            durability: "none: lost with the process".to_owned(),
            rows: BTreeMap::from([("task".to_owned(), model.tasks.len() as u64)]),
            ..StoreStats::default()
        })
    }

    async fn backup(&self, _to: &Path) -> Result<(), StoreError> {
        Err(StoreError::Unavailable(
            "the model store lives in memory and has nothing to back up".to_owned(),
        ))
    }

    async fn export(&self, from: Bookmark, limit: usize, _now: Time) -> Result<Parcel, StoreError> {
        self.model.lock().open()?.export(from, limit)
    }

    async fn import(&self, step: Import, _now: Time) -> Result<(), StoreError> {
        self.model.lock().open()?.import(step)
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.model.lock().open()?.closed = true;
        Ok(())
    }
}
