//! Copies: what the store keeps, to and from another store.
//!
//! Here the number of an event follows from the version that it took its task to, and that of a log line is its place
//! among the lines of its task. What comes from a store that counts otherwise gets numbers that keep its order.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use pensum_core::dossier::{self, Bookmark, Dossier, Hold, Import, PARCEL_BYTES, Parcel, Remembered, UniqueKey};
use pensum_core::store::{LogEntry, LogLine, LogStream, Signal, TaskEvent};
use pensum_core::task::{Execution, OnConflict, Unique};
use pensum_core::transition::EventKind;
use pensum_core::{Json, Name, NewTask, StoreError, TaskId, TaskRecord, Time, Usage};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::Inner;
use super::enqueue::{INSERT_TASK, New, Prepared, tag_statement, task_values};
use super::error::Fault;
use super::key;
use super::pool::{Durability, Pool, Statement, Value, text};
use super::reads::{EXECUTION, FOUND, Found, Whereabouts, last_execution, read_execution, terminal_kind};
use super::row::{self, Cell, LiveRow, OutcomeRow, gate, mark, read_error, scope_of, seq_of};
use super::step::{EventRow, event_statement, execution_statement, tally_statement};

/// The entry of `meta` that stands while another store is being copied into this one.
const FILLING: &str = "SELECT 1 FROM pensum.meta WHERE key = 'filling'";

/// True when a copy into this store was begun and not finished.
pub(super) async fn is_half_copied(pool: &Arc<Pool>) -> Result<bool, Fault> {
    Ok(!pool.read(FILLING, &[]).await?.is_empty())
}

/// What runs, where, and until when at most.
const BUSY: &str = "SELECT count(*), array_agg(DISTINCT n.text), max(l.due_at) FROM pensum.live l
    LEFT JOIN pensum.name n ON n.id = l.executor WHERE l.gate = 6";
/// What was enqueued and is no task yet.
const INTAKE: &str = "SELECT count(*) FROM pensum.intake WHERE rejected_at IS NULL";
/// The next tasks, each with about how many bytes it weighs.
const WEIGHTS: &str = "SELECT t.row, (500 + octet_length(t.parameters) + coalesce(octet_length(t.details), 0)
      + coalesce((SELECT octet_length(o.result) FROM pensum.outcome o WHERE o.row = t.row), 0)
      + coalesce((SELECT octet_length(c.state) FROM pensum.checkpoint c WHERE c.row = t.row), 0)
      + coalesce((SELECT sum(100 + octet_length(l.message)) FROM pensum.log l WHERE l.row = t.row), 0)
      + coalesce((SELECT sum(100 + octet_length(i.payload)) FROM pensum.inbox i WHERE i.row = t.row), 0)
      + coalesce((SELECT sum(100 + octet_length(s.result)) FROM pensum.step s WHERE s.row = t.row), 0)
      + coalesce((SELECT sum(100 + coalesce(octet_length(e.error_message), 0)) FROM pensum.event e
                  WHERE e.row = t.row), 0)
      + coalesce((SELECT sum(100 + coalesce(octet_length(e.error_message), 0)) FROM pensum.execution e
                  WHERE e.row = t.row), 0))::bigint
    FROM pensum.task t WHERE t.row >= $1 ORDER BY t.row LIMIT $2";
static TASKS: LazyLock<String> = LazyLock::new(|| format!("{} WHERE t.row = ANY($1) ORDER BY t.row", *FOUND));
static EXECUTIONS: LazyLock<String> = LazyLock::new(|| {
    format!("SELECT e.row, {EXECUTION} FROM pensum.execution e WHERE e.row = ANY($1) ORDER BY e.row, e.attempt")
});
/// What else there is of tasks, in the order in which [`Rest::read`] takes it.
static REST: LazyLock<[&str; 7]> = LazyLock::new(|| {
    [
        "SELECT row, expires_at FROM pensum.unique_key WHERE row = ANY($1)",
        "SELECT row, state FROM pensum.checkpoint WHERE row = ANY($1)",
        "SELECT row, seq, name, payload, at FROM pensum.inbox WHERE row = ANY($1) ORDER BY row, seq",
        "SELECT row, name, result FROM pensum.step WHERE row = ANY($1) ORDER BY row, seq",
        "SELECT row, seq, at, attempt, stream, message FROM pensum.log WHERE row = ANY($1) ORDER BY row, seq",
        EXECUTIONS.as_str(),
        "SELECT row, seq, at, kind, actor, attempt, error_kind, error_message FROM pensum.event
         WHERE row = ANY($1) ORDER BY row, seq",
    ]
});

/// A page of an export.
pub(super) async fn export(
    inner: &Arc<Inner>,
    from: &Bookmark,
    limit: usize,
) -> Result<Result<Parcel, StoreError>, Fault> {
    let limit = limit.max(1);
    let mut tx = inner.pool.snapshot().await?;
    let none = Vec::new;
    let answers = tx
        .pipeline(&[
            Statement {
                sql: BUSY,
                params: none(),
            },
            Statement {
                sql: INTAKE,
                params: none(),
            },
        ])
        .await?;
    if let Some(refusal) = refusal(&answers, &inner.pool.location)? {
        tx.rollback().await?;
        return Ok(Err(refusal));
    }
    let row = match from {
        Bookmark::Task(row) => *row,
        Bookmark::Key(namespace, key) => {
            tx.rollback().await?;
            return Ok(Ok(export_keys(&inner.pool, namespace, key, limit).await?));
        }
    };
    let most = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
    let weights = tx.query(WEIGHTS, &[(&row, Type::INT8), (&most, Type::INT8)]).await?;
    let (mut rows, mut weight) = (Vec::new(), 0);
    let mut next = Bookmark::first_key();
    for found in &weights {
        let row: i64 = found.try_get(0)?;
        if rows.len() >= limit || weight >= PARCEL_BYTES as i64 {
            next = Bookmark::Task(row);
            break;
        }
        weight += found.try_get::<_, i64>(1)?;
        rows.push(Some(row));
    }
    let statements: Vec<Statement<'_>> = std::iter::once(TASKS.as_str())
        .chain(*REST)
        .map(|sql| Statement {
            sql,
            params: vec![Value::Int8s(rows.clone())],
        })
        .collect();
    let mut answers = tx.commit(&statements).await?.into_iter();
    let tasks = answers.next().unwrap_or_default();
    let mut rest = Rest::read(answers)?;
    let mut dossiers = Vec::with_capacity(tasks.len());
    for found in &tasks {
        let found = Found::read(found, &inner.pool, &inner.catalog).await?;
        let found = found.ok_or_else(|| Fault::Damaged("a task is neither unfinished nor finished".to_owned()))?;
        dossiers.push(rest.dossier(inner, found).await?);
    }
    Ok(Ok(Parcel {
        dossiers,
        remembered: Vec::new(),
        next: Some(next),
    }))
}

/// Why nothing may be exported now.
fn refusal(answers: &[Vec<Row>], location: &str) -> Result<Option<StoreError>, Fault> {
    let Some(busy) = answers.first().and_then(|rows| rows.first()) else {
        return Ok(None);
    };
    let tasks: i64 = busy.try_get(0)?;
    if tasks > 0 {
        let nodes: Option<Vec<Option<String>>> = busy.try_get(1)?;
        let nodes: Vec<Name> = nodes
            .unwrap_or_default()
            .into_iter()
            .flatten()
            .map(Name::from)
            .collect();
        let until = busy.try_get::<_, Option<i64>>(2)?.map(Time::from_micros);
        return Ok(Some(dossier::still_running(tasks as u64, &nodes, until)));
    }
    let waiting: i64 = answers
        .get(1)
        .and_then(|rows| rows.first())
        .map_or(Ok(0), |row| row.try_get(0))?;
    Ok((waiting > 0).then(|| {
        StoreError::Conflict(format!(
            "{waiting} rows of {location} wait in the table intake and are no tasks yet; let a node admit them, or delete \
             them"
        ))
    }))
}

/// What is about tasks in tables of its own, by row.
#[derive(Default)]
struct Rest {
    holds: HashMap<i64, Hold>,
    checkpoints: HashMap<i64, Json>,
    inbox: HashMap<i64, Vec<Signal>>,
    steps: HashMap<i64, Vec<(Name, Json)>>,
    logs: HashMap<i64, Vec<LogEntry>>,
    executions: HashMap<i64, Vec<Row>>,
    events: HashMap<i64, Vec<TaskEvent>>,
}

fn small(row: &Row, column: usize) -> Result<u32, Fault> {
    Ok(u32::try_from(row.try_get::<_, i64>(column)?).unwrap_or(u32::MAX))
}

fn time(row: &Row, column: usize) -> Result<Time, Fault> {
    Ok(Time::from_micros(row.try_get(column)?))
}

impl Rest {
    /// From the answers to [`REST`].
    fn read(mut answers: impl Iterator<Item = Vec<Row>>) -> Result<Rest, Fault> {
        let mut rest = Rest::default();
        let mut next = || answers.next().unwrap_or_default();
        for found in next() {
            let until: Option<i64> = found.try_get(1)?;
            let hold = until.map_or(Hold::UntilEnd, |at| Hold::Until(Time::from_micros(at)));
            rest.holds.insert(found.try_get(0)?, hold);
        }
        for found in next() {
            let row: i64 = found.try_get(0)?;
            let state = Json::parse(found.try_get(1)?);
            let state = state.map_err(|_| row::damaged(row, "JSON text as checkpoint"))?;
            rest.checkpoints.insert(row, state);
        }
        for found in next() {
            rest.inbox.entry(found.try_get(0)?).or_default().push(Signal {
                seq: found.try_get::<_, i64>(1)? as u64,
                name: found.try_get::<_, &str>(2)?.into(),
                payload: Json::parse(found.try_get(3)?).unwrap_or_default(),
                at: time(&found, 4)?,
            });
        }
        for found in next() {
            let result = Json::parse(found.try_get(2)?).unwrap_or_default();
            let step = (found.try_get::<_, &str>(1)?.into(), result);
            rest.steps.entry(found.try_get(0)?).or_default().push(step);
        }
        for found in next() {
            rest.logs.entry(found.try_get(0)?).or_default().push(LogEntry {
                seq: found.try_get::<_, i64>(1)? as u64,
                line: LogLine {
                    at: time(&found, 2)?,
                    attempt: small(&found, 3)?,
                    stream: LogStream::from_code(i64::from(found.try_get::<_, i16>(4)?)),
                    message: found.try_get(5)?,
                },
            });
        }
        for found in next() {
            rest.executions.entry(found.try_get(0)?).or_default().push(found);
        }
        for found in next() {
            let row: i64 = found.try_get(0)?;
            let kind = i64::from(found.try_get::<_, i16>(3)?);
            rest.events.entry(row).or_default().push(TaskEvent {
                seq: found.try_get::<_, i64>(1)? as u64,
                at: time(&found, 2)?,
                kind: EventKind::from_code(kind).ok_or_else(|| row::damaged(row, "event"))?,
                actor: found.try_get::<_, Option<&str>>(4)?.map(Name::from),
                attempt: small(&found, 5)?,
                error: read_error(&found, 6)?,
            });
        }
        Ok(rest)
    }

    async fn dossier(&mut self, inner: &Arc<Inner>, found: Found) -> Result<Dossier, Fault> {
        let (task, row) = (&found.task, found.task.id.row());
        let class = inner.catalog.class(&inner.pool, task.class).await?;
        let parent = task.spec.details.as_ref().and_then(|d| d.parent_id);
        let creator = match task.actor {
            Some(actor) => Some(inner.catalog.name(&inner.pool, actor).await?),
            None => parent.map(|id| Name::from(format!("task:{id}"))),
        };
        let mut executions = Vec::new();
        for found in self.executions.remove(&row).unwrap_or_default() {
            executions.push(read_execution(&found, 1, task.id)?);
        }
        let mut events = self.events.remove(&row).unwrap_or_default();
        if let Whereabouts::Finished(outcome) = &found.place {
            let executor = match outcome.executor {
                Some(executor) => inner.catalog.name(&inner.pool, executor).await?.to_string(),
                None => String::new(),
            };
            executions.extend(last_execution(outcome, task.id, executor));
            unfold_events(outcome, &mut events);
        }
        let unique = task.unique_key.clone().map(|key| UniqueKey {
            key,
            ttl: task.unique_ttl,
            hold: self.holds.remove(&row),
        });
        Ok(Dossier {
            namespace: class.namespace.clone(),
            creator,
            unique,
            checkpoint: self.checkpoints.remove(&row),
            executions,
            events,
            logs: self.logs.remove(&row).unwrap_or_default(),
            inbox: self.inbox.remove(&row).unwrap_or_default(),
            steps: self.steps.remove(&row).unwrap_or_default(),
            task: found.record(),
        })
    }
}

/// Adds the events that the row of a finished task stands for, where they belong.
fn unfold_events(outcome: &OutcomeRow, events: &mut Vec<TaskEvent>) {
    let life = &outcome.life;
    // A change of an ended task moves its version on, and has the odd number below the one that follows from it.
    let is_change = |version: u32| {
        let seq = seq_of(version).saturating_sub(1);
        events
            .iter()
            .any(|event| event.seq == seq && event.kind == EventKind::Updated)
    };
    let mut version = outcome.version;
    while is_change(version) {
        version -= 1;
    }
    let seq = seq_of(version);
    let derived = |seq, at, kind| TaskEvent {
        seq,
        at,
        kind,
        actor: None,
        attempt: life.attempt,
        error: None,
    };
    if outcome.status.is_some()
        && outcome.marks & mark::START == 0
        && let Some(started_at) = life.started_at
    {
        events.push(derived(seq - 1, started_at, EventKind::Started));
    }
    events.push(TaskEvent {
        actor: outcome.actor.clone(),
        error: outcome.error.clone(),
        ..derived(seq, life.finished_at.unwrap_or(life.run_at), terminal_kind(life.state))
    });
    events.sort_by_key(|event| event.seq);
}

async fn export_keys(pool: &Arc<Pool>, namespace: &str, key: &str, limit: usize) -> Result<Parcel, Fault> {
    // The order of the bytes, whatever the order of the database is.
    let sql = r#"SELECT namespace, key, digest, ids, expires_at FROM pensum.idempotency
        WHERE (namespace COLLATE "C", key COLLATE "C") > ($1, $2)
        ORDER BY namespace COLLATE "C", key COLLATE "C" LIMIT $3"#;
    let most = i64::try_from(limit).unwrap_or(i64::MAX);
    let params = [
        (&namespace as _, Type::TEXT),
        (&key as _, Type::TEXT),
        (&most as _, Type::INT8),
    ];
    let mut remembered = Vec::new();
    for found in pool.read(sql, &params).await? {
        let digest: &[u8] = found.try_get(2)?;
        let ids: &[u8] = found.try_get(3)?;
        remembered.push(Remembered {
            namespace: found.try_get::<_, &str>(0)?.into(),
            key: found.try_get(1)?,
            digest: digest
                .try_into()
                .map_err(|_| Fault::Damaged("the digest of an idempotency key is cut short".to_owned()))?,
            ids: ids
                .as_chunks::<16>()
                .0
                .iter()
                .map(|bytes| TaskId::from_bytes(*bytes))
                .collect(),
            expires_at: time(&found, 4)?,
        });
    }
    let full = remembered.len() == limit;
    let next = remembered.last().filter(|_| full).map(Remembered::bookmark);
    Ok(Parcel {
        next,
        remembered,
        dossiers: Vec::new(),
    })
}

/// One step of an import.
pub(super) async fn import(inner: &Arc<Inner>, step: &Import, now: Time) -> Result<Result<(), StoreError>, Fault> {
    let location = &inner.pool.location;
    let prepared = match step {
        // Names and classes are looked up before the transaction: new ones take one of their own.
        Import::Parcel(parcel) => match Page::prepare(inner, parcel).await? {
            Ok(page) => Some(page),
            Err(refusal) => return Ok(Err(refusal)),
        },
        Import::Begin | Import::End => None,
    };
    let mut tx = inner.pool.begin(Durability::Acknowledged).await?;
    // Of two that copy at once, one waits for the other, and is then refused.
    tx.query("LOCK TABLE pensum.meta IN SHARE ROW EXCLUSIVE MODE", &[])
        .await?;
    let none = Vec::new;
    let answers = tx
        .pipeline(&[
            Statement {
                sql: FILLING,
                params: none(),
            },
            Statement {
                sql: "SELECT max(row) FROM pensum.task",
                params: none(),
            },
        ])
        .await?;
    let filling = answers.first().is_some_and(|rows| !rows.is_empty());
    let last: Option<i64> = answers
        .get(1)
        .and_then(|rows| rows.first())
        .map_or(Ok(None), |row| row.try_get(0))?;
    let refused = match step {
        Import::Begin if filling => Some(dossier::half_copied(location)),
        Import::Begin => held(&mut tx).await?.map(|tasks| dossier::not_empty(location, tasks)),
        _ if !filling => Some(dossier::not_begun(location)),
        Import::Parcel(parcel) => parcel.check(last.unwrap_or(0) + 1).err(),
        Import::End => None,
    };
    if let Some(refusal) = refused {
        tx.rollback().await?;
        return Ok(Err(refusal));
    }
    match (step, prepared) {
        (Import::Begin, _) => {
            let sql = "INSERT INTO pensum.meta(key, value) VALUES ('filling', 1)";
            tx.commit(&[Statement { sql, params: none() }]).await?;
        }
        (Import::End, _) => {
            let sql = "DELETE FROM pensum.meta WHERE key = 'filling'";
            tx.commit(&[Statement { sql, params: none() }]).await?;
        }
        (_, Some(page)) => {
            tx.commit(&page.statements(now)).await?;
            inner.rows.forget().await;
            inner.wake.ready();
        }
        _ => tx.rollback().await?,
    }
    Ok(Ok(()))
}

/// How many tasks the store holds, if it holds anything.
async fn held(tx: &mut super::pool::Tx) -> Result<Option<u64>, Fault> {
    let sql = "SELECT (SELECT count(*) FROM pensum.task), EXISTS (SELECT 1 FROM pensum.idempotency)
               OR EXISTS (SELECT 1 FROM pensum.intake)";
    let rows = tx.query(sql, &[]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let (tasks, more): (i64, bool) = (row.try_get(0)?, row.try_get(1)?);
    Ok((tasks > 0 || more).then_some(tasks as u64))
}

/// A page on its way into the tables.
struct Page<'a> {
    parcel: &'a Parcel,
    tasks: Vec<(TaskId, Option<u32>, Time, Prepared)>,
    lives: Vec<LiveRow>,
    outcomes: Vec<OutcomeRow>,
    events: Vec<EventRow>,
    executions: Vec<Execution>,
}

impl<'a> Page<'a> {
    async fn prepare(inner: &Arc<Inner>, parcel: &'a Parcel) -> Result<Result<Page<'a>, StoreError>, Fault> {
        let mut page = Page {
            parcel,
            tasks: Vec::with_capacity(parcel.dossiers.len()),
            lives: Vec::new(),
            outcomes: Vec::new(),
            events: Vec::new(),
            executions: Vec::new(),
        };
        for dossier in &parcel.dossiers {
            if let Err(refusal) = page.take_in(inner, dossier).await? {
                return Ok(Err(refusal));
            }
        }
        Ok(Ok(page))
    }

    async fn take_in(&mut self, inner: &Arc<Inner>, dossier: &Dossier) -> Result<Result<(), StoreError>, Fault> {
        let (task, spec) = (&dossier.task, &dossier.task.spec);
        let details = spec.details.as_deref();
        let requires = details.map(|d| d.requires.as_slice()).unwrap_or_default();
        let class = (&dossier.namespace, &spec.queue, &spec.handler, requires);
        let class = inner.catalog.class_id(&inner.pool, class).await?;
        let parent = details.and_then(|d| d.parent_id);
        // A child's creator is its parent, which its row says already.
        let creator = dossier
            .creator
            .as_ref()
            .filter(|creator| parent.is_none_or(|parent| ***creator != *format!("task:{parent}")));
        let actor = match creator {
            Some(creator) => Some(inner.catalog.name_id(&inner.pool, creator).await?),
            None => None,
        };
        let asked = NewTask {
            unique: dossier.unique.as_ref().map(|unique| {
                Box::new(Unique {
                    key: unique.key.clone(),
                    ttl: unique.ttl,
                    on_conflict: OnConflict::default(),
                })
            }),
            ..NewTask::new(spec.clone())
        };
        let details = details.and_then(|details| serde_json::to_string(details).ok());
        let prepared = Prepared {
            task: asked,
            class,
            details,
        };
        self.tasks.push((task.id, actor, task.created_at, prepared));
        if task.lifecycle.state.is_terminal() {
            return self.take_in_finished(inner, dossier).await;
        }
        Ok(self.take_in_unfinished(dossier, class))
    }

    fn take_in_unfinished(&mut self, dossier: &Dossier, class: u32) -> Result<(), StoreError> {
        let (task, spec) = (&dossier.task, &dossier.task.spec);
        let row = task.id.row();
        let numbers = numbers(task, &dossier.events, None)?;
        self.put_events(row, dossier.events.iter().zip(numbers));
        self.executions.extend(dossier.executions.iter().cloned());
        let started = dossier.events.iter().any(|event| event.kind == EventKind::Started);
        let mut marks = marks(dossier);
        for (mark, is) in [
            (mark::START, started),
            (mark::EVENTS, !dossier.events.is_empty()),
            (mark::EXECUTIONS, !dossier.executions.is_empty()),
        ] {
            marks |= if is { mark } else { 0 };
        }
        self.lives.push(LiveRow {
            deadline: spec.deadline,
            scope: spec.key.as_ref().map(|key| scope_of(&dossier.namespace, key)),
            life: task.lifecycle.clone(),
            version: version(task),
            expires_at: spec.expires_at(),
            queue_timeout: spec.queue_timeout(),
            parent: spec.details.as_ref().and_then(|d| d.parent_id).map(TaskId::row),
            marks,
            progress: task.progress.clone(),
            error: task.error.clone(),
            ..LiveRow::plain(row, class, spec.priority, task.lifecycle.run_at)
        });
        Ok(())
    }

    async fn take_in_finished(
        &mut self,
        inner: &Arc<Inner>,
        dossier: &Dossier,
    ) -> Result<Result<(), StoreError>, Fault> {
        let (task, events) = (&dossier.task, &dossier.events);
        let (row, life) = (task.id.row(), &task.lifecycle);
        let end = events.iter().rposition(|event| {
            event.kind == terminal_kind(life.state)
                && Some(event.at) == life.finished_at
                && event.attempt == life.attempt
        });
        let Some(end) = end else {
            return Ok(Err(StoreError::Conflict(format!(
                "task {} is {} and its history does not say since when; verify the store that it comes from",
                task.id, life.state
            ))));
        };
        let mut outcome = OutcomeRow {
            row,
            life: life.clone(),
            version: version(task),
            marks: marks(dossier),
            status: None,
            executor: None,
            result: task.result.clone(),
            error: task.error.clone(),
            usage: Usage::default(),
            actor: events[end].actor.clone(),
            progress: task.progress.clone(),
        };
        let mut executions = &dossier.executions[..];
        if let Some((last, earlier)) = executions.split_last() {
            let folded = OutcomeRow {
                status: Some(last.status),
                executor: match last.executor_id.as_str() {
                    "" => None,
                    name => Some(inner.catalog.name_id(&inner.pool, &Name::from(name)).await?),
                },
                usage: last.usage,
                ..outcome.clone()
            };
            if last_execution(&folded, task.id, last.executor_id.clone()).as_ref() == Some(last) {
                (outcome, executions) = (folded, earlier);
            }
        }
        let numbers = match numbers(task, events, Some(end)) {
            Ok(numbers) => numbers,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let start = end
            .checked_sub(1)
            .filter(|start| outcome.status.is_some() && is_derived(&events[*start], &outcome))
            .filter(|start| numbers[*start] + 1 == numbers[end]);
        if outcome.status.is_some() && start.is_none() {
            outcome.marks |= mark::START;
        }
        let stored: Vec<(&TaskEvent, u64)> = events
            .iter()
            .zip(numbers)
            .enumerate()
            .filter(|(at, _)| *at != end && Some(*at) != start)
            .map(|(_, event)| event)
            .collect();
        if !stored.is_empty() {
            outcome.marks |= mark::EVENTS;
        }
        if !executions.is_empty() {
            outcome.marks |= mark::EXECUTIONS;
        }
        self.put_events(row, stored.into_iter());
        self.executions.extend(executions.iter().cloned());
        self.outcomes.push(outcome);
        Ok(Ok(()))
    }

    fn put_events<'e>(&mut self, row: i64, events: impl Iterator<Item = (&'e TaskEvent, u64)>) {
        self.events.extend(events.map(|(event, seq)| EventRow {
            row,
            seq,
            at: event.at,
            kind: event.kind,
            actor: event.actor.clone(),
            attempt: event.attempt,
            error: event.error.clone(),
        }));
    }

    /// Everything that the page writes.
    fn statements(&self, now: Time) -> Vec<Statement<'_>> {
        let fresh: Vec<New<'_>> = self
            .tasks
            .iter()
            .map(|(id, actor, created_at, prepared)| New {
                id: *id,
                actor: *actor,
                created_at: *created_at,
                prepared,
            })
            .collect();
        let mut statements = Vec::new();
        if !fresh.is_empty() {
            let rows: Vec<Option<i64>> = fresh.iter().map(|new| Some(new.id.row())).collect();
            let last = rows.last().copied().flatten();
            statements.push(Statement {
                sql: &INSERT_TASK,
                params: task_values(&fresh).into_iter().map(Value::into_owned).collect(),
            });
            statements.extend(tag_statement(&fresh).map(|tags| Statement {
                sql: tags.sql,
                params: tags.params.into_iter().map(Value::into_owned).collect(),
            }));
            statements.extend(self.rows_of_tasks(now));
            statements.extend(self.tables_beside());
            statements.extend(follow_ups(rows));
            statements.push(Statement {
                sql: "SELECT setval('pensum.task_row', greatest($1, (SELECT last_value FROM pensum.task_row)))",
                params: vec![Value::Int8(last)],
            });
        }
        statements.extend(self.keys());
        statements
    }

    fn rows_of_tasks(&self, now: Time) -> Vec<Statement<'_>> {
        let mut statements = Vec::new();
        let mut tallies: BTreeMap<(u32, Cell), i64> = BTreeMap::new();
        let lives: Vec<&LiveRow> = self.lives.iter().collect();
        let outcomes: Vec<&OutcomeRow> = self.outcomes.iter().collect();
        for live in &lives {
            *tallies.entry((live.class, live.cell(live.gate_at(now)))).or_default() += 1;
        }
        let classes: HashMap<i64, u32> = self.tasks.iter().map(|(id, _, _, p)| (id.row(), p.class)).collect();
        for outcome in &outcomes {
            let class = classes.get(&outcome.row).copied().unwrap_or(0);
            *tallies.entry((class, Cell::of_end(outcome.life.state))).or_default() += 1;
            *tallies.entry((class, Cell::Executions)).or_default() += i64::from(outcome.status.is_some());
        }
        for execution in &self.executions {
            let class = classes.get(&execution.task.row()).copied().unwrap_or(0);
            *tallies.entry((class, Cell::Executions)).or_default() += 1;
        }
        if !lives.is_empty() {
            statements.push(Statement {
                sql: &row::SAVE_LIVE,
                params: LiveRow::values(&lives, now),
            });
        }
        if !outcomes.is_empty() {
            statements.push(Statement {
                sql: &row::SAVE_OUTCOME,
                params: OutcomeRow::values(&outcomes),
            });
        }
        if !self.events.is_empty() {
            statements.push(event_statement(&self.events));
        }
        if !self.executions.is_empty() {
            statements.push(execution_statement(&self.executions));
        }
        tallies.retain(|_, n| *n != 0);
        statements.push(tally_statement(&tallies));
        let scopes: BTreeSet<Name> = lives.iter().filter_map(|live| live.scope.clone()).collect();
        statements.extend(settle(&scopes, now));
        statements
    }

    /// What stands in tables of its own.
    fn tables_beside(&self) -> Vec<Statement<'_>> {
        let dossiers = || self.parcel.dossiers.iter();
        let edges = || {
            dossiers().flat_map(|d| {
                d.task
                    .depends_on
                    .iter()
                    .enumerate()
                    .map(move |(at, on)| (d.row(), at, on.row()))
            })
        };
        let held = || dossiers().filter_map(|d| d.unique.as_ref().and_then(|u| Some((d, u, u.hold?))));
        let inbox = || {
            dossiers().flat_map(|d| {
                // Its own numbers go on behind the version.
                let fits = d.inbox.iter().all(|signal| signal.seq <= seq_of(version(&d.task)));
                d.inbox
                    .iter()
                    .enumerate()
                    .map(move |(at, s)| (d.row(), if fits { s.seq as i64 } else { at as i64 + 1 }, s))
            })
        };
        let steps = || {
            dossiers().flat_map(|d| {
                d.steps
                    .iter()
                    .enumerate()
                    .map(move |(at, s)| (d.row(), at as i64 + 1, s))
            })
        };
        let logs = || {
            dossiers().flat_map(|d| {
                d.logs
                    .iter()
                    .enumerate()
                    .map(move |(at, l)| (d.row(), at as i64 + 1, l))
            })
        };
        let checkpoints = || dossiers().filter_map(|d| d.checkpoint.as_ref().map(|state| (d.row(), state)));
        let all = vec![
            Statement {
                sql: "INSERT INTO pensum.dependency(dependent, position, prerequisite)
                      SELECT * FROM unnest($1::bigint[], $2::integer[], $3::bigint[])",
                params: vec![
                    int8(edges().map(|e| e.0)),
                    Value::Int4s(edges().map(|e| Some(e.1 as i32)).collect()),
                    int8(edges().map(|e| e.2)),
                ],
            },
            Statement {
                sql: "INSERT INTO pensum.unique_key(namespace, handler, key, row, expires_at)
                      SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])",
                params: vec![
                    texts(held().map(|(d, ..)| &*d.namespace)),
                    texts(held().map(|(d, ..)| &*d.task.spec.handler)),
                    texts(held().map(|(_, u, _)| &*u.key)),
                    int8(held().map(|(d, ..)| d.row())),
                    Value::Int8s(
                        held()
                            .map(|(.., hold)| match hold {
                                Hold::UntilEnd => None,
                                Hold::Until(at) => Some(at.as_micros()),
                            })
                            .collect(),
                    ),
                ],
            },
            Statement {
                sql: "INSERT INTO pensum.checkpoint(row, state) SELECT * FROM unnest($1::bigint[], $2::text[])",
                params: vec![
                    int8(checkpoints().map(|c| c.0)),
                    texts(checkpoints().map(|c| c.1.get())),
                ],
            },
            Statement {
                sql: "INSERT INTO pensum.inbox(row, seq, name, payload, at)
                      SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::bigint[])",
                params: vec![
                    int8(inbox().map(|i| i.0)),
                    int8(inbox().map(|i| i.1)),
                    texts(inbox().map(|i| &*i.2.name)),
                    texts(inbox().map(|i| i.2.payload.get())),
                    int8(inbox().map(|i| i.2.at.as_micros())),
                ],
            },
            Statement {
                sql: "INSERT INTO pensum.step(row, seq, name, result)
                      SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[])",
                params: vec![
                    int8(steps().map(|s| s.0)),
                    int8(steps().map(|s| s.1)),
                    texts(steps().map(|s| &*s.2.0)),
                    texts(steps().map(|s| s.2.1.get())),
                ],
            },
            Statement {
                sql: "INSERT INTO pensum.log(row, seq, at, attempt, stream, message) SELECT * FROM
                      unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::smallint[], $6::text[])",
                params: vec![
                    int8(logs().map(|l| l.0)),
                    int8(logs().map(|l| l.1)),
                    int8(logs().map(|l| l.2.line.at.as_micros())),
                    int8(logs().map(|l| i64::from(l.2.line.attempt))),
                    Value::Int2s(logs().map(|l| Some(l.2.line.stream.code() as i16)).collect()),
                    texts(logs().map(|l| l.2.line.message.as_str())),
                ],
            },
        ];
        let is_empty = |statement: &Statement<'_>| matches!(statement.params.iter().rev().find_map(len), Some(0));
        all.into_iter().filter(|statement| !is_empty(statement)).collect()
    }

    fn keys(&self) -> Option<Statement<'_>> {
        let keys = &self.parcel.remembered;
        let hex = |bytes: &[u8]| Cow::Owned(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let ids = |found: &Remembered| found.ids.iter().flat_map(|id| *id.as_bytes()).collect::<Vec<u8>>();
        (!keys.is_empty()).then(|| Statement {
            sql: "INSERT INTO pensum.idempotency(namespace, key, digest, ids, expires_at)
                  SELECT namespace, key, decode(digest, 'hex'), decode(ids, 'hex'), expires_at
                  FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[])
                  AS given(namespace, key, digest, ids, expires_at)",
            params: vec![
                texts(keys.iter().map(|k| &*k.namespace)),
                texts(keys.iter().map(|k| k.key.as_str())),
                Value::Texts(keys.iter().map(|k| Some(hex(&k.digest))).collect()),
                Value::Texts(keys.iter().map(|k| Some(hex(&ids(k)))).collect()),
                int8(keys.iter().map(|k| k.expires_at.as_micros())),
            ],
        })
    }
}
