//! Enqueue: decides first (every rejection), then writes.
//!
//! Tasks that nothing ties to others go in together with those of other callers, many calls to a transaction. The rest
//! (dependencies, keys, parents, idempotency keys) take locks, each call in a transaction of its own.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use pensum_core::agent::Demand;
use pensum_core::order::place;
use pensum_core::store::{Applied, Call, Enqueued, IDEMPOTENCY_TTL, Rejected};
use pensum_core::task::{Dependency, OnConflict, OnDependencyFailure, Unique};
use pensum_core::transition::Event;
use pensum_core::{ErrorInfo, Lifecycle, Name, NewTask, Priority, Spec, State, StoreError, TaskId, Time};
use tokio::sync::oneshot;

use super::Inner;
use super::capacity::{self, Dropped};
use super::error::Fault;
use super::key;
use super::pool::{Durability, Statement, Value, text};
use super::reads::TASK;
use super::row::{self, Cell, LiveRow, mark, micros, scope_of, task_id};
use super::step::{Facts, Place as Whereabouts, Work, dependency_failed, tally_statement};

/// Transactions with new tasks under way at once: while one waits for the disk, the next is being filled.
const FLIGHTS_MAX: usize = 2;
/// Most tasks of several callers in one transaction.
const FLIGHT_TASKS_MAX: usize = 4_000;

/// A task to enqueue, with what does not depend on the transaction.
pub(super) struct Prepared {
    pub(super) task: NewTask,
    pub(super) class: u32,
    pub(super) details: Option<String>,
}

/// Looks classes up and writes details out.
pub(super) async fn prepare(inner: &Arc<Inner>, namespace: &Name, tasks: Vec<NewTask>) -> Result<Vec<Prepared>, Fault> {
    let mut prepared: Vec<Prepared> = Vec::with_capacity(tasks.len());
    for task in tasks {
        let spec = &task.spec;
        // Batches mostly hold tasks of one class.
        let same = prepared.last().filter(|last: &&Prepared| {
            let known = &last.task.spec;
            known.handler == spec.handler && known.queue == spec.queue && Demand::of(known) == Demand::of(spec)
        });
        let class = match same {
            Some(last) => last.class,
            None => {
                inner
                    .catalog
                    .class_id(&inner.pool, (namespace, &spec.queue, &spec.handler, &Demand::of(spec)))
                    .await?
            }
        };
        let details = spec.details.as_ref().and_then(|d| serde_json::to_string(d).ok());
        prepared.push(Prepared { task, class, details });
    }
    Ok(prepared)
}

/// True for a task that touches no other: no dependency, key or parent.
pub(super) fn is_simple(task: &NewTask) -> bool {
    task.depends_on.is_empty()
        && task.unique.is_none()
        && task.spec.key.is_none()
        && task.spec.details.as_ref().is_none_or(|d| d.parent_id.is_none())
}

/// How new tasks are committed: nobody waits for the disk where none of them is durable.
fn durability(tasks: &[Prepared]) -> Durability {
    match !tasks.is_empty() && tasks.iter().all(|prepared| prepared.task.is_volatile()) {
        true => Durability::Relaxed,
        false => Durability::Acknowledged,
    }
}

/// A call on its way into a transaction with others.
struct Job {
    call: Call,
    actor: u32,
    tasks: Vec<Prepared>,
    reply: oneshot::Sender<Result<Vec<Enqueued>, StoreError>>,
}

/// Calls that wait for the next transaction.
#[derive(Default)]
pub(super) struct Departures {
    waiting: Mutex<(Vec<Job>, usize)>,
}

/// Enqueues the tasks of one call.
pub(super) async fn enqueue(inner: &Arc<Inner>, call: Call, tasks: Vec<NewTask>) -> Result<Vec<Enqueued>, StoreError> {
    let fault = |fault: Fault| fault.describe(&inner.pool.location);
    let (_, judging) = inner.queues.judging(&call.namespace, tasks.iter());
    let simple = call.idempotency.is_none() && judging.is_empty() && tasks.iter().all(is_simple);
    let tasks = prepare(inner, &call.namespace, tasks).await.map_err(fault)?;
    let actor = inner.catalog.name_id(&inner.pool, &call.actor).await.map_err(fault)?;
    if !simple {
        return alone(inner, &call, &tasks).await;
    }
    let (reply, answer) = oneshot::channel();
    inner.departures.board(
        inner,
        Job {
            call,
            actor,
            tasks,
            reply,
        },
    );
    answer.await.unwrap_or_else(|_| {
        Err(StoreError::Unavailable(
            "the runtime that wrote the tasks ended meanwhile; they may be in the store, or not".to_owned(),
        ))
    })
}

/// The tasks of one call in a transaction of their own.
async fn alone(inner: &Arc<Inner>, call: &Call, tasks: &[Prepared]) -> Result<Vec<Enqueued>, StoreError> {
    inner
        .retry(|| special(inner, call, tasks))
        .await?
        .map_err(StoreError::from)
}

impl Departures {
    fn board(&self, inner: &Arc<Inner>, job: Job) {
        let mut waiting = self.waiting.lock();
        waiting.0.push(job);
        if waiting.1 < FLIGHTS_MAX {
            waiting.1 += 1;
            drop(waiting);
            let flight = Flight {
                inner: Arc::clone(inner),
                landed: false,
            };
            tokio::spawn(async move {
                while let Some(jobs) = flight.inner.departures.depart() {
                    fly(&flight.inner, jobs).await;
                }
                flight.land();
            });
        }
    }

    /// The calls for the next transaction; `None` ends a flight.
    fn depart(&self) -> Option<Vec<Job>> {
        let mut waiting = self.waiting.lock();
        if waiting.0.is_empty() {
            waiting.1 -= 1;
            return None;
        }
        let (mut tasks, mut full) = (0, false);
        // What need not wait for the disk does not travel with what must.
        let first = waiting.0.first().map(|job| durability(&job.tasks));
        let fits = |job: &mut Job| {
            if full || Some(durability(&job.tasks)) != first {
                return false;
            }
            full = tasks > 0 && tasks + job.tasks.len() > FLIGHT_TASKS_MAX;
            tasks += job.tasks.len();
            !full
        };
        Some(waiting.0.extract_if(.., fits).collect())
    }
}

/// A flight under way. Its runtime may end before it does.
struct Flight {
    inner: Arc<Inner>,
    landed: bool,
}

impl Flight {
    /// Nothing waits for it any more.
    fn land(mut self) {
        self.landed = true;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.landed {
            return;
        }
        let mut waiting = self.inner.departures.waiting.lock();
        waiting.1 -= 1;
        // Nobody would come for these.
        let stranded = if waiting.1 == 0 {
            std::mem::take(&mut waiting.0)
        } else {
            Vec::new()
        };
        drop(waiting);
        drop(stranded);
    }
}

/// True when a queue of the tasks has come to judge them since they boarded.
fn is_judged(inner: &Inner, job: &Job) -> bool {
    let tasks = job.tasks.iter().map(|prepared| &prepared.task);
    !inner.queues.judging(&job.call.namespace, tasks).1.is_empty()
}

async fn fly(inner: &Arc<Inner>, mut jobs: Vec<Job>) {
    let mut flown = inner.retry(|| simple(inner, &jobs)).await;
    while matches!(flown, Ok(None)) {
        let (judged, rest): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| is_judged(inner, job));
        for job in judged {
            let inner = Arc::clone(inner);
            tokio::spawn(async move {
                let answer = alone(&inner, &job.call, &job.tasks).await;
                let _ = job.reply.send(answer);
            });
        }
        jobs = rest;
        flown = inner.retry(|| simple(inner, &jobs)).await;
    }
    match flown.map(Option::unwrap_or_default) {
        Ok(mut ids) => {
            let mut classes: Vec<u32> = jobs.iter().flat_map(|job| &job.tasks).map(|task| task.class).collect();
            classes.dedup();
            for class in classes {
                inner.came(class);
            }
            let mut ids = ids.drain(..);
            for job in jobs {
                let own = ids.by_ref().take(job.tasks.len());
                // Whoever asked may have gone.
                let _ = job
                    .reply
                    .send(Ok(own.map(|id| Enqueued { id, created: true }).collect()));
            }
            inner.wake.ready();
        }
        Err(error) => {
            for job in jobs {
                let _ = job.reply.send(Err(error.clone()));
            }
        }
    }
}

/// The columns of `live` that a task without ties fills.
const NEW_LIVE: [(&str, &str); 13] = [
    ("row", "bigint"),
    ("class", "integer"),
    ("rank", "smallint"),
    ("deadline", "bigint"),
    ("run_at", "bigint"),
    ("gate", "smallint"),
    ("flags", "integer"),
    ("due_at", "bigint"),
    ("timer_at", "bigint"),
    ("ready_at", "bigint"),
    ("expires_at", "bigint"),
    ("queue_timeout", "bigint"),
    ("acceptor", "bigint"),
];

pub(super) static INSERT_NEW_LIVE: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    let (columns, arrays) = (row::names(&NEW_LIVE), row::unnest(&NEW_LIVE, 1));
    format!("INSERT INTO pensum.live({columns}) SELECT * FROM {arrays}")
});
/// The same for tasks of queues that age what waits.
static INSERT_AGEING: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    let columns = [&NEW_LIVE[..], &[("rises_at", "bigint")]].concat();
    let (names, arrays) = (row::names(&columns), row::unnest(&columns, 1));
    format!("INSERT INTO pensum.live({names}) SELECT * FROM {arrays}")
});
pub(super) static INSERT_TASK: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    format!(
        "INSERT INTO pensum.task({}) SELECT * FROM {}",
        row::names(&TASK),
        row::unnest(&TASK, 1)
    )
});
const INSERT_TAGS: &str =
    "INSERT INTO pensum.tag(tag, row) SELECT * FROM unnest($1::text[], $2::bigint[]) ON CONFLICT DO NOTHING";

/// The row of a task that is new.
pub(super) fn live_of(id: TaskId, prepared: &Prepared, scope: Option<Name>, unmet: u32, now: Time) -> LiveRow {
    let (task, spec) = (&prepared.task, &prepared.task.spec);
    let mut live = LiveRow {
        deadline: spec.deadline,
        scope,
        expires_at: spec.expires_at(),
        queue_timeout: spec.queue_timeout(),
        parent: spec.details.as_ref().and_then(|d| d.parent_id).map(TaskId::row),
        ..LiveRow::plain(id.row(), prepared.class, spec.priority, now)
    };
    live.life = Lifecycle {
        accepted_by: task.accepted_by,
        ..Lifecycle::new(now, task.run_at, unmet, policy(spec))
    };
    let mut marked = |on: bool, mark: u32| {
        if on {
            live.marks |= mark;
        }
    };
    marked(spec.details.as_ref().is_some_and(|d| !d.tags.is_empty()), mark::TAGS);
    marked(task.unique.is_some(), mark::UNIQUE);
    marked(unmet > 0, mark::DEPENDS);
    live
}

/// Writes the tasks of these calls; `None` where a queue has come to judge some of them.
async fn simple(inner: &Arc<Inner>, jobs: &[Job]) -> Result<Option<Vec<TaskId>>, Fault> {
    let version = inner.queues.version();
    if jobs.iter().any(|job| is_judged(inner, job)) {
        return Ok(None);
    }
    let count = jobs.iter().map(|job| job.tasks.len()).sum();
    if count == 0 {
        return Ok(Some(Vec::new()));
    }
    let mut rows = inner.rows.take(&inner.pool, count).await?.into_iter();
    let mut fresh: Vec<New<'_>> = Vec::with_capacity(count);
    let mut lives: Vec<(LiveRow, Time)> = Vec::with_capacity(count);
    let mut tallies: BTreeMap<(u32, Cell), i64> = BTreeMap::new();
    for job in jobs {
        for prepared in &job.tasks {
            let Some(row) = rows.next() else {
                return Err(Fault::Damaged("too few row numbers".to_owned()));
            };
            let now = job.call.now;
            let id = TaskId::mint(now, row, inner.bits());
            let mut live = live_of(id, prepared, None, 0, now);
            if inner.queues.has_rules() {
                live.age(inner.order_rule(prepared.class), now);
            }
            *tallies
                .entry((prepared.class, live.cell(live.gate_at(now))))
                .or_default() += 1;
            lives.push((live, now));
            fresh.push(New {
                id,
                actor: Some(job.actor),
                created_at: now,
                prepared,
            });
        }
    }
    let ids = fresh.iter().map(|new| new.id).collect();
    let mut insert = Statement {
        sql: &INSERT_NEW_LIVE,
        params: new_live_values(&lives),
    };
    if lives.iter().any(|(live, _)| live.rises_at.is_some()) {
        insert.sql = &INSERT_AGEING;
        let rises_at = lives.iter().map(|(live, _)| micros(live.rises_at));
        insert.params.push(Value::Int8s(rises_at.collect()));
    }
    let mut statements = vec![
        capacity::guard(version),
        Statement {
            sql: &INSERT_TASK,
            params: task_values(&fresh),
        },
        insert,
        tally_statement(&tallies),
    ];
    statements.extend(tag_statement(&fresh));
    let durability = jobs
        .first()
        .map_or(Durability::Acknowledged, |job| durability(&job.tasks));
    inner.pool.begin(durability).await?.commit(&statements).await?;
    Ok(Some(ids))
}

pub(super) fn new_live_values(lives: &[(LiveRow, Time)]) -> Vec<Value<'static>> {
    let int8 = |f: &dyn Fn(&LiveRow, Time) -> Option<i64>| -> Value<'static> {
        Value::Int8s(lives.iter().map(|(live, now)| f(live, *now)).collect())
    };
    vec![
        int8(&|l, _| Some(l.row)),
        Value::Int4s(lives.iter().map(|(l, _)| Some(l.class as i32)).collect()),
        Value::Int2s(lives.iter().map(|(l, _)| Some(l.rank())).collect()),
        int8(&|l, _| Some(place(l.deadline, l.row))),
        int8(&|l, _| Some(l.life.run_at.as_micros())),
        Value::Int2s(lives.iter().map(|(l, now)| Some(l.gate_at(*now))).collect()),
        Value::Int4s(lives.iter().map(|(l, _)| Some(l.flags() as i32)).collect()),
        int8(&|l, now| micros(l.due_at(now))),
        int8(&|l, _| micros(l.timer_at())),
        int8(&|l, _| {
            if l.life.ready_at == Some(l.life.run_at) {
                None
            } else {
                micros(l.life.ready_at)
            }
        }),
        int8(&|l, _| micros(l.expires_at)),
        int8(&|l, _| {
            l.queue_timeout
                .map(|d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
        }),
        int8(&|l, _| row::acceptor(&l.life)),
    ]
}

/// A task on its way into its row.
pub(super) struct New<'a> {
    pub(super) id: TaskId,
    pub(super) actor: Option<u32>,
    pub(super) created_at: Time,
    pub(super) prepared: &'a Prepared,
}

pub(super) fn task_values<'a>(fresh: &[New<'a>]) -> Vec<Value<'a>> {
    fn int8<'a>(fresh: &[New<'a>], f: impl Fn(&New<'a>) -> Option<i64>) -> Value<'a> {
        Value::Int8s(fresh.iter().map(f).collect())
    }
    fn texts<'a>(fresh: &[New<'a>], f: impl Fn(&'a Prepared) -> Option<Cow<'a, str>>) -> Value<'a> {
        Value::Texts(fresh.iter().map(|new| f(new.prepared)).collect())
    }
    fn rare(prepared: &Prepared) -> Option<&pensum_core::task::Details> {
        prepared.task.spec.details.as_deref()
    }
    let duration = |d: std::time::Duration| i64::try_from(d.as_micros()).unwrap_or(i64::MAX);
    vec![
        int8(fresh, |n| Some(n.id.row())),
        Value::Uuids(fresh.iter().map(|n| Some(n.id.uuid())).collect()),
        Value::Int4s(fresh.iter().map(|n| Some(n.prepared.class as i32)).collect()),
        int8(fresh, |n| Some(n.created_at.as_micros())),
        Value::Int4s(fresh.iter().map(|n| n.actor.map(|a| a as i32)).collect()),
        texts(fresh, |p| Some(text(p.task.spec.parameters.get()))),
        Value::Int2s(
            fresh
                .iter()
                .map(|n| n.prepared.task.spec.priority)
                .map(|p| (p != Priority::Normal).then(|| p.level() as i16))
                .collect(),
        ),
        int8(fresh, |n| micros(n.prepared.task.spec.deadline)),
        int8(fresh, |n| n.prepared.task.spec.timeout.map(duration)),
        int8(fresh, |n| n.prepared.task.spec.max_retries.map(i64::from)),
        texts(fresh, |p| p.task.spec.key.as_deref().map(text)),
        texts(fresh, |p| p.details.as_deref().map(text)),
        int8(fresh, |n| rare(n.prepared).and_then(|d| d.parent_id).map(TaskId::row)),
        int8(fresh, |n| rare(n.prepared).and_then(|d| d.workflow_id).map(TaskId::row)),
        texts(fresh, |p| rare(p).and_then(|d| d.created_by.as_deref()).map(text)),
        texts(fresh, |p| rare(p).and_then(|d| d.assigned_to.as_deref()).map(text)),
        texts(fresh, |p| p.task.unique.as_ref().map(|u| text(&u.key))),
        int8(fresh, |n| {
            n.prepared.task.unique.as_ref().and_then(|u| u.ttl).map(duration)
        }),
    ]
}

pub(super) fn tag_statement<'a>(fresh: &[New<'a>]) -> Option<Statement<'a>> {
    let mut tags: Vec<Option<Cow<'a, str>>> = Vec::new();
    let mut rows = Vec::new();
    for new in fresh {
        for tag in new
            .prepared
            .task
            .spec
            .details
            .as_ref()
            .map(|d| d.tags.as_slice())
            .unwrap_or_default()
        {
            tags.push(Some(text(tag)));
            rows.push(Some(new.id.row()));
        }
    }
    let params = vec![Value::Texts(tags), Value::Int8s(rows)];
    matches!(&params[0], Value::Texts(tags) if !tags.is_empty()).then_some(Statement {
        sql: INSERT_TAGS,
        params,
    })
}

/// Replaces the tags of a task.
pub(super) fn retag(row: i64, tags: &[String]) -> Vec<Statement<'static>> {
    let mut statements = vec![Statement {
        sql: "DELETE FROM pensum.tag WHERE row = $1",
        params: vec![Value::Int8(Some(row))],
    }];
    if !tags.is_empty() {
        let texts = tags
            .iter()
            .map(|tag| Some(Cow::Owned(text(tag).into_owned())))
            .collect();
        let params = vec![Value::Texts(texts), Value::Int8s(vec![Some(row); tags.len()])];
        statements.push(Statement {
            sql: INSERT_TAGS,
            params,
        });
    }
    statements
}

async fn special(
    inner: &Arc<Inner>,
    call: &Call,
    tasks: &[Prepared],
) -> Result<Result<Vec<Enqueued>, Rejected>, Fault> {
    let mut work = Work::begin(inner, durability(tasks), call.now).await?;
    let outcome = work.enqueue(call, tasks).await?;
    match outcome {
        Ok(enqueued) => {
            if work.commit().await? {
                inner.wake.ready();
            }
            Ok(Ok(enqueued))
        }
        Err(rejected) => {
            work.tx.rollback().await?;
            Ok(Err(rejected))
        }
    }
}

/// Where an item of a batch goes.
#[derive(Clone, Copy)]
enum Place {
    New,
    Existing(TaskId),
    /// An earlier item of the batch has its unique key.
    Same(usize),
}

/// A batch that may be written.
pub(super) struct Plan {
    /// Empty when every item is new.
    places: Vec<Place>,
    /// Unstarted tasks that lose their unique key.
    replaced: Vec<TaskId>,
    /// What makes room for the rest in a full queue.
    dropped: Dropped,
}

/// Who holds the unique keys of a batch, by handler and key.
type Holders = HashMap<(String, String), TaskId>;

impl Work {
    /// Everything that an enqueue does, but the commit.
    pub(super) async fn enqueue(
        &mut self,
        call: &Call,
        tasks: &[Prepared],
    ) -> Result<Result<Vec<Enqueued>, Rejected>, Fault> {
        match self.remembered(call).await? {
            Ok(None) => {}
            Ok(Some(ids)) => return Ok(Ok(ids.into_iter().map(|id| Enqueued { id, created: false }).collect())),
            Err(rejected) => return Ok(Err(rejected)),
        }
        let plan = match self.plan(&call.namespace, tasks).await? {
            Ok(plan) => plan,
            Err(rejected) => return Ok(Err(rejected)),
        };
        let enqueued = self
            .write_batch(&call.namespace, Some(&call.actor), tasks, plan)
            .await?;
        self.remember(call, enqueued.iter().map(|e| e.id));
        Ok(Ok(enqueued))
    }

    /// Finds every reason to refuse a batch; changes nothing.
    pub(super) async fn plan(&mut self, namespace: &Name, tasks: &[Prepared]) -> Result<Result<Plan, Rejected>, Fault> {
        let mut places = Vec::new();
        let mut replaced = Vec::new();
        let keys = tasks.iter().filter_map(|t| t.task.spec.key.as_ref());
        self.wanted.extend(keys.map(|key| scope_of(namespace, key)));
        let depends = tasks.iter().any(|t| !t.task.depends_on.is_empty());
        let wanted: Vec<(&str, &str)> = tasks
            .iter()
            .filter_map(|t| t.task.unique.as_ref().map(|u| (&*t.task.spec.handler, &*u.key)))
            .collect();
        if depends && !wanted.is_empty() {
            // Before any row, as everywhere.
            self.tx.pipeline(&[lock_uniques(namespace, &wanted)]).await?;
        }
        if depends && let Err(rejected) = self.check_dependencies(namespace, tasks).await? {
            return Ok(Err(rejected));
        }
        if !wanted.is_empty() {
            let holders = self.unique_holders(namespace, &wanted).await?;
            let mut taken: HashMap<(Name, Name), usize> = HashMap::new();
            for (item, task) in tasks.iter().enumerate() {
                match self.place_unique(&task.task, item, &holders, &mut taken, &mut replaced) {
                    Ok(place) => places.push(place),
                    Err(rejected) => return Ok(Err(rejected)),
                }
            }
            // Items that stand for one task may wait for each other through it.
            if depends && let Some(cycle) = find_cycle(tasks, &places) {
                return Ok(Err(Rejected::Cycle(cycle)));
            }
        }
        let is_new = |item: usize| matches!(places.get(item), None | Some(Place::New));
        let dropped = match self.make_room(namespace, tasks, &is_new, &replaced).await? {
            Ok(dropped) => dropped,
            Err(rejected) => return Ok(Err(rejected)),
        };
        Ok(Ok(Plan {
            places,
            replaced,
            dropped,
        }))
    }

    /// Refuses dependencies that are not there or wait for each other; locks those that are.
    async fn check_dependencies(
        &mut self,
        namespace: &Name,
        tasks: &[Prepared],
    ) -> Result<Result<(), Rejected>, Fault> {
        let items = tasks.len();
        let unknown = pensum_core::graph::find_unknown_item(items, tasks.iter().map(|t| &t.task));
        if let Some((item, position, index)) = unknown {
            return Ok(Err(Rejected::UnknownItem {
                item,
                position,
                index,
                items,
            }));
        }
        if let Some(cycle) = find_cycle(tasks, &[]) {
            return Ok(Err(Rejected::Cycle(cycle)));
        }
        let named = named(tasks);
        let mut rows: Vec<i64> = named.iter().map(|(.., id)| id.row()).collect();
        rows.sort_unstable();
        rows.dedup();
        self.load_any(&rows).await?;
        for (item, position, id) in named {
            if !self.exists(namespace, id).await? {
                return Ok(Err(Rejected::UnknownDependency { item, position, id }));
            }
        }
        Ok(Ok(()))
    }

    /// True when the namespace has this task, which must have been loaded.
    pub(super) async fn exists(&self, namespace: &str, id: TaskId) -> Result<bool, Fault> {
        let Some(class) = self.class_of(id.row()) else {
            return Ok(false);
        };
        if matches!(self.place(id), None | Some(Whereabouts::Unknown)) {
            return Ok(false);
        }
        Ok(*self.inner.catalog.class(&self.inner.pool, class).await?.namespace == *namespace)
    }

    fn place_unique(
        &self,
        task: &NewTask,
        item: usize,
        holders: &Holders,
        taken: &mut HashMap<(Name, Name), usize>,
        replaced: &mut Vec<TaskId>,
    ) -> Result<Place, Rejected> {
        let Some(unique) = &task.unique else {
            return Ok(Place::New);
        };
        let scope = (task.spec.handler.clone(), unique.key.clone());
        let key = unique.key.clone();
        if let Some(earlier) = taken.get(&scope) {
            if unique.on_conflict == OnConflict::Reject {
                return Err(Rejected::UniqueTwice {
                    item,
                    earlier: *earlier,
                    key,
                });
            }
            return Ok(Place::Same(*earlier));
        }
        let holder = holders
            .get(&(scope.0.to_string(), text(&scope.1).into_owned()))
            .copied();
        taken.insert(scope, item);
        match (holder, unique.on_conflict) {
            (None, _) => Ok(Place::New),
            (Some(holder), OnConflict::Reject) => Err(Rejected::UniqueTaken { item, key, holder }),
            (Some(holder), OnConflict::Replace) if self.is_unstarted(holder) => {
                replaced.push(holder);
                Ok(Place::New)
            }
            (Some(holder), _) => Ok(Place::Existing(holder)),
        }
    }

    fn is_unstarted(&self, id: TaskId) -> bool {
        self.live(id.row())
            .is_some_and(|(found, live)| found == id && !live.life.has_started())
    }

    /// Who has these unique keys of the namespace, by handler and key. Locks the keys first, and then whoever has them.
    pub(super) async fn unique_holders(&mut self, namespace: &str, keys: &[(&str, &str)]) -> Result<Holders, Fault> {
        let answers = self
            .tx
            .pipeline(&[
                lock_uniques(namespace, keys),
                Statement {
                    sql: "SELECT u.handler, u.key, t.id, u.expires_at FROM unnest($1::text[], $2::text[]) AS given(handler, key)
                          JOIN pensum.unique_key u ON u.namespace = $3 AND u.handler = given.handler AND u.key = given.key
                          JOIN pensum.task t ON t.row = u.row",
                    params: unique_values(namespace, keys),
                },
            ])
            .await?;
        let mut held: HashMap<(String, String), (TaskId, Option<Time>)> = HashMap::new();
        for found in answers.get(1).into_iter().flatten() {
            let expires_at: Option<i64> = found.try_get(3)?;
            let holder = (task_id(found, 2)?, expires_at.map(Time::from_micros));
            held.insert((found.try_get(0)?, found.try_get(1)?), holder);
        }
        for (handler, key) in keys {
            let key = ((*handler).to_owned(), text(key).into_owned());
            let given = (namespace.to_owned(), key.0.clone(), key.1.clone());
            if let Some(holder) = self.uniques.get(&given) {
                held.insert(key, *holder);
            }
        }
        let mut rows: Vec<i64> = held.values().map(|(id, _)| id.row()).collect();
        rows.sort_unstable();
        self.load_any(&rows).await?;
        // One that has ended or gone since the look, which waited for that, has its key only as long as the time says.
        let holds = |(id, expires_at): &(TaskId, Option<Time>)| match (self.place(*id), expires_at) {
            (None | Some(Whereabouts::Unknown), _) => false,
            (Some(_), Some(at)) => *at > self.now,
            (Some(place), None) => matches!(place, Whereabouts::Live(_)),
        };
        held.retain(|_, holder| holds(holder));
        Ok(held.into_iter().map(|(key, (id, _))| (key, id)).collect())
    }

    /// Gives a unique key to a row.
    pub(super) fn take_unique(&mut self, namespace: &str, handler: &str, unique: &Unique, id: TaskId) {
        let owned = |t: &str| Value::Text(Some(Cow::Owned(text(t).into_owned())));
        let expires_at = unique.ttl.map(|ttl| self.now.plus(ttl));
        let key = (namespace.to_owned(), handler.to_owned(), text(&unique.key).into_owned());
        self.uniques.insert(key, (id, expires_at));
        self.extra.push(Statement {
            sql: "INSERT INTO pensum.unique_key(namespace, handler, key, row, expires_at) VALUES ($1, $2, $3, $4, $5)
                  ON CONFLICT (namespace, handler, key) DO UPDATE SET row = EXCLUDED.row, expires_at = EXCLUDED.expires_at",
            params: vec![
                owned(namespace),
                owned(handler),
                owned(&unique.key),
                Value::Int8(Some(id.row())),
                Value::Int8(micros(expires_at)),
            ],
        });
    }

    /// Writes a batch that [`Work::plan`] found good. Without an actor it is the parent's, as its children say themselves.
    pub(super) async fn write_batch(
        &mut self,
        namespace: &Name,
        actor: Option<&Name>,
        tasks: &[Prepared],
        plan: Plan,
    ) -> Result<Vec<Enqueued>, Fault> {
        let now = self.now;
        for old in plan.replaced {
            let error = Some(ErrorInfo::new("replaced", "a newer task took its unique key"));
            let facts = Facts {
                actor: actor.cloned(),
                error,
                ..Facts::default()
            };
            // It had not started a moment ago, and is locked since.
            let _ = self
                .happen(old.row(), &Event::Cancel, facts, &mut Applied::default())
                .await?;
        }
        self.drop_all(plan.dropped).await?;
        let count = (0..tasks.len())
            .filter(|i| matches!(plan.places.get(*i), None | Some(Place::New)))
            .count();
        let inner = Arc::clone(&self.inner);
        let mut rows = inner.rows.take(&inner.pool, count).await?.into_iter();
        let mut ids: Vec<Enqueued> = Vec::with_capacity(tasks.len());
        for item in 0..tasks.len() {
            ids.push(match plan.places.get(item) {
                None | Some(Place::New) => {
                    let row = rows
                        .next()
                        .ok_or_else(|| Fault::Damaged("too few row numbers".to_owned()))?;
                    Enqueued {
                        id: TaskId::mint(now, row, inner.bits()),
                        created: true,
                    }
                }
                Some(Place::Existing(id)) => Enqueued {
                    id: *id,
                    created: false,
                },
                Some(Place::Same(earlier)) => Enqueued {
                    id: ids[*earlier].id,
                    created: false,
                },
            });
        }
        let actor = match actor {
            Some(actor) => Some(inner.catalog.name_id(&inner.pool, actor).await?),
            None => None,
        };
        self.load_parents(tasks).await?;
        let mut ended = Vec::new();
        let mut edges: Vec<(i64, i32, i64)> = Vec::new();
        let mut fresh = Vec::with_capacity(count);
        for (item, prepared) in tasks.iter().enumerate().filter(|(item, _)| ids[*item].created) {
            let id = ids[item].id;
            fresh.push(New {
                id,
                actor,
                created_at: now,
                prepared,
            });
            self.write_task(namespace, id, prepared, &ids, &mut edges, &mut ended);
        }
        let task_params = task_values(&fresh).into_iter().map(Value::into_owned).collect();
        if !fresh.is_empty() {
            self.extra.push(Statement {
                sql: &INSERT_TASK,
                params: task_params,
            });
        }
        if let Some(tags) = tag_statement(&fresh) {
            let params = tags.params.into_iter().map(Value::into_owned).collect();
            self.extra.push(Statement {
                sql: INSERT_TAGS,
                params,
            });
        }
        if !edges.is_empty() {
            self.extra.push(Statement {
                sql: "INSERT INTO pensum.dependency(dependent, position, prerequisite)
                      SELECT * FROM unnest($1::bigint[], $2::integer[], $3::bigint[])",
                params: vec![
                    Value::Int8s(edges.iter().map(|(dependent, ..)| Some(*dependent)).collect()),
                    Value::Int4s(edges.iter().map(|(_, position, _)| Some(*position)).collect()),
                    Value::Int8s(edges.iter().map(|(.., prerequisite)| Some(*prerequisite)).collect()),
                ],
            });
        }
        self.note_dependants(&edges);
        // Dependencies that had ended before count once the whole batch is in: an item may name a later one.
        for (row, of, state) in ended {
            let completed = state == State::Completed;
            let error = (!completed).then(|| dependency_failed(of, state));
            let facts = Facts {
                error,
                ..Facts::default()
            };
            let event = Event::DependencyEnded(completed);
            let _ = self.happen(row, &event, facts, &mut Applied::default()).await?;
        }
        Ok(ids)
    }

    async fn load_parents(&mut self, tasks: &[Prepared]) -> Result<(), Fault> {
        let parents: HashSet<i64> = tasks
            .iter()
            .filter_map(|t| t.task.spec.details.as_ref().and_then(|d| d.parent_id))
            .map(TaskId::row)
            .collect();
        let mut parents: Vec<i64> = parents.into_iter().collect();
        parents.sort_unstable();
        self.load_any(&parents).await
    }

    fn write_task(
        &mut self,
        namespace: &Name,
        id: TaskId,
        prepared: &Prepared,
        ids: &[Enqueued],
        edges: &mut Vec<(i64, i32, i64)>,
        ended: &mut Vec<(i64, TaskId, State)>,
    ) {
        let task = &prepared.task;
        let mut seen = HashSet::new();
        let mut position = 0;
        for dependency in &task.depends_on {
            let (on, is_new) = match dependency {
                Dependency::Task(id) => (*id, false),
                Dependency::Item(item) => (ids[*item].id, ids[*item].created),
            };
            if !seen.insert(on) {
                continue;
            }
            edges.push((id.row(), position, on.row()));
            position += 1;
            if !is_new && let Some(Whereabouts::Ended(outcome)) = self.place(on) {
                ended.push((id.row(), on, outcome.life.state));
            }
        }
        let scope = task.spec.key.as_ref().map(|key| scope_of(namespace, key));
        let live = live_of(id, prepared, scope, seen.len() as u32, self.now);
        if let Some(unique) = &task.unique {
            self.take_unique(namespace, &task.spec.handler, unique, id);
        }
        let parent = live.parent;
        self.add(id, live);
        if let Some(parent) = parent.and_then(|row| self.live_mut(row)) {
            parent.children += 1;
        }
    }

    /// The ids that the same request answered before. Locks the key: a repeat at the same moment waits for the first.
    pub(super) async fn remembered(&mut self, call: &Call) -> Result<Result<Option<Vec<TaskId>>, Rejected>, Fault> {
        let Some(key) = &call.idempotency else {
            return Ok(Ok(None));
        };
        let params = || {
            vec![
                Value::Text(Some(Cow::Borrowed(&*call.namespace))),
                Value::Text(Some(text(&key.key))),
            ]
        };
        let answers = self
            .tx
            .pipeline(&[
                Statement {
                    sql: "SELECT count(pg_advisory_xact_lock(hashtextextended(
                          format('pensum.idempotency %s %s', $1, $2), 0)))",
                    params: params(),
                },
                Statement {
                    sql: "SELECT digest, ids, expires_at FROM pensum.idempotency WHERE namespace = $1 AND key = $2",
                    params: params(),
                },
            ])
            .await?;
        let Some(found) = answers.get(1).and_then(|rows| rows.first()) else {
            return Ok(Ok(None));
        };
        if found.try_get::<_, i64>(2)? <= call.now.as_micros() {
            return Ok(Ok(None));
        }
        if found.try_get::<_, &[u8]>(0)? != key.digest {
            return Ok(Err(Rejected::IdempotencyMismatch));
        }
        let ids: &[u8] = found.try_get(1)?;
        Ok(Ok(Some(
            ids.as_chunks::<16>()
                .0
                .iter()
                .map(|bytes| TaskId::from_bytes(*bytes))
                .collect(),
        )))
    }

    /// Remembers what a request answered.
    pub(super) fn remember(&mut self, call: &Call, ids: impl Iterator<Item = TaskId>) {
        let Some(key) = &call.idempotency else { return };
        let owned = |t: &str| Value::Text(Some(Cow::Owned(text(t).into_owned())));
        self.extra.push(Statement {
            sql: "INSERT INTO pensum.idempotency(namespace, key, digest, ids, expires_at) VALUES ($1, $2, $3, $4, $5)
                  ON CONFLICT (namespace, key) DO UPDATE SET digest = EXCLUDED.digest, ids = EXCLUDED.ids,
                  expires_at = EXCLUDED.expires_at",
            params: vec![
                owned(&call.namespace),
                owned(&key.key),
                Value::Bytes(key.digest.to_vec()),
                Value::Bytes(ids.flat_map(|id| *id.as_bytes()).collect()),
                Value::Int8(Some(call.now.plus(IDEMPOTENCY_TTL).as_micros())),
            ],
        });
    }
}

fn unique_values<'a>(namespace: &'a str, keys: &[(&'a str, &'a str)]) -> Vec<Value<'a>> {
    vec![
        Value::Texts(keys.iter().map(|(handler, _)| Some(Cow::Borrowed(*handler))).collect()),
        Value::Texts(keys.iter().map(|(_, key)| Some(text(key))).collect()),
        Value::Text(Some(Cow::Borrowed(namespace))),
    ]
}

fn lock_uniques<'a>(namespace: &'a str, keys: &[(&'a str, &'a str)]) -> Statement<'a> {
    Statement {
        sql: key::LOCK_UNIQUES,
        params: unique_values(namespace, keys),
    }
}

/// The tasks that items depend on by their ids: which item, which of its dependencies, which task.
fn named(tasks: &[Prepared]) -> Vec<(usize, usize, TaskId)> {
    let mut named = Vec::new();
    for (item, task) in tasks.iter().enumerate() {
        for (position, dependency) in task.task.depends_on.iter().enumerate() {
            if let Dependency::Task(id) = dependency {
                named.push((item, position, *id));
            }
        }
    }
    named
}

/// A cycle among the items of a batch, as far as their places are known.
fn find_cycle(tasks: &[Prepared], places: &[Place]) -> Option<Vec<usize>> {
    let edges = |item: usize| {
        tasks[item].task.depends_on.iter().filter_map(|d| match d {
            Dependency::Item(index) => match places.get(*index) {
                Some(Place::Same(earlier)) => Some(*earlier),
                _ => Some(*index),
            },
            Dependency::Task(_) => None,
        })
    };
    pensum_core::graph::find_cycle_in(tasks.len(), edges)
}

fn policy(spec: &Spec) -> OnDependencyFailure {
    spec.details
        .as_ref()
        .map(|d| d.on_dependency_failure)
        .unwrap_or_default()
}
