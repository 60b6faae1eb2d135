//! Reads of one task. What belongs together is read at one moment: in one statement, or in one snapshot.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use pensum_core::queue::PER_KEY_MAX;
use pensum_core::store::{LogEntry, LogLine, LogStream, Signal, TaskEvent};
use pensum_core::task::{Details, Execution, ExecutionStatus};
use pensum_core::transition::EventKind;
use pensum_core::{Json, Name, Priority, Spec, State, TaskId, TaskRecord, Time, Usage};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::error::Fault;
use super::names::Catalog;
use super::pool::{Param, Pool, Statement, Value, text};
use super::row::{
    LIVE, LIVE_LIST, LiveRow, OUTCOME, OUTCOME_LIST, OutcomeRow, damaged, gate, list, mark, read_error, scope_of,
    task_id,
};

/// The columns of `task`, in the order in which [`StoredTask::read`] takes them.
pub(super) const TASK: [(&str, &str); 18] = [
    ("row", "bigint"),
    ("id", "uuid"),
    ("class", "integer"),
    ("created_at", "bigint"),
    ("actor", "integer"),
    ("parameters", "text"),
    ("priority", "smallint"),
    ("deadline", "bigint"),
    ("timeout", "bigint"),
    ("max_retries", "bigint"),
    ("key", "text"),
    ("details", "text"),
    ("parent", "bigint"),
    ("workflow", "bigint"),
    ("created_by", "text"),
    ("assigned_to", "text"),
    ("unique_key", "text"),
    ("unique_ttl", "bigint"),
];

/// A task as it was enqueued.
#[derive(Clone, Debug)]
pub(super) struct StoredTask {
    pub(super) id: TaskId,
    pub(super) class: u32,
    pub(super) created_at: Time,
    /// The interned name of who enqueued it; `None` for the child of a task.
    pub(super) actor: Option<u32>,
    pub(super) spec: Spec,
    pub(super) unique_key: Option<Name>,
    /// How long the key is held, from enqueue; `None`: until the task ends.
    pub(super) unique_ttl: Option<Duration>,
}

impl StoredTask {
    /// From [`TASK`], beginning at `from`. The catalog must know the class by now.
    pub(super) fn read(found: &Row, from: usize, catalog: &Catalog) -> Result<StoredTask, Fault> {
        let at = |column: usize| from + column;
        let row: i64 = found.try_get(at(0))?;
        let class_id = found.try_get::<_, i32>(at(2))? as u32;
        let class = catalog.known_class(class_id).ok_or_else(|| damaged(row, "class"))?;
        let parameters = Json::parse(found.try_get(at(5))?).map_err(|_| damaged(row, "JSON text as parameters"))?;
        let priority = match found.try_get::<_, Option<i16>>(at(6))? {
            None => Priority::Normal,
            Some(level) => Priority::from_level(i64::from(level)).ok_or_else(|| damaged(row, "priority"))?,
        };
        let details = match found.try_get::<_, Option<&str>>(at(11))? {
            None => None,
            Some(text) => {
                let details: Details = serde_json::from_str(text).map_err(|_| damaged(row, "JSON text as details"))?;
                Some(Box::new(details))
            }
        };
        let duration = |column: usize| -> Result<Option<Duration>, Fault> {
            let micros: Option<i64> = found.try_get(column)?;
            Ok(micros.map(|m| Duration::from_micros(m.max(0) as u64)))
        };
        Ok(StoredTask {
            id: task_id(found, at(1))?,
            class: class_id,
            created_at: Time::from_micros(found.try_get(at(3))?),
            actor: found.try_get::<_, Option<i32>>(at(4))?.map(|n| n as u32),
            spec: Spec {
                handler: class.handler.clone(),
                queue: class.queue.clone(),
                priority,
                parameters,
                timeout: duration(at(8))?,
                max_retries: found
                    .try_get::<_, Option<i64>>(at(9))?
                    .map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
                key: found.try_get::<_, Option<&str>>(at(10))?.map(Name::from),
                deadline: found.try_get::<_, Option<i64>>(at(7))?.map(Time::from_micros),
                details,
            },
            unique_key: found.try_get::<_, Option<&str>>(at(16))?.map(Name::from),
            unique_ttl: duration(at(17))?,
        })
    }
}

/// Where a task is.
#[derive(Clone, Debug)]
pub(super) enum Whereabouts {
    Unfinished(Box<LiveRow>),
    Finished(Box<OutcomeRow>),
}

/// A task with everything about it that its record shows.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) task: StoredTask,
    pub(super) place: Whereabouts,
    pub(super) depends_on: Vec<TaskId>,
}

/// Selects what [`Found::read`] takes; what follows says which tasks.
pub(super) static FOUND: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {}, {}, {}, CASE WHEN coalesce(l.flags, o.flags) & {} <> 0 THEN ARRAY(
           SELECT p.id FROM pensum.dependency d JOIN pensum.task p ON p.row = d.prerequisite
           WHERE d.dependent = t.row ORDER BY d.position) END
         FROM pensum.task t LEFT JOIN pensum.live l ON l.row = t.row LEFT JOIN pensum.outcome o ON o.row = t.row",
        list(&TASK, "t"),
        *LIVE_LIST,
        *OUTCOME_LIST,
        mark::DEPENDS
    )
});
static FIND: LazyLock<String> = LazyLock::new(|| format!("{} WHERE t.row = $1 AND t.id = $2", *FOUND));
/// The number of a task's class in a row of [`FOUND`].
const FOUND_CLASS: usize = 2;

impl Found {
    /// From [`FOUND`]. Reads the classes again when one is new.
    pub(super) async fn read(found: &Row, pool: &Arc<Pool>, catalog: &Catalog) -> Result<Option<Found>, Fault> {
        catalog
            .class(pool, found.try_get::<_, i32>(FOUND_CLASS)? as u32)
            .await?;
        let (live, outcome) = (TASK.len(), TASK.len() + LIVE.len());
        let place = if found.try_get::<_, Option<i64>>(live)?.is_some() {
            Whereabouts::Unfinished(Box::new(LiveRow::read(found, live)?))
        } else if found.try_get::<_, Option<i64>>(outcome)?.is_some() {
            Whereabouts::Finished(Box::new(OutcomeRow::read(found, outcome)?))
        } else {
            return Ok(None);
        };
        let depends_on: Option<Vec<uuid::Uuid>> = found.try_get(outcome + OUTCOME.len())?;
        Ok(Some(Found {
            task: StoredTask::read(found, 0, catalog)?,
            place,
            depends_on: depends_on
                .unwrap_or_default()
                .into_iter()
                .map(TaskId::from_uuid)
                .collect(),
        }))
    }

    /// The task as the store has it.
    pub(super) fn record(self) -> TaskRecord {
        let (lifecycle, progress, result, error, version) = match self.place {
            Whereabouts::Unfinished(live) => (live.life, live.progress, None, live.error, live.version),
            Whereabouts::Finished(end) => (end.life, end.progress, end.result, end.error, end.version),
        };
        TaskRecord {
            id: self.task.id,
            created_at: self.task.created_at,
            spec: self.task.spec,
            lifecycle,
            progress,
            result,
            error,
            depends_on: self.depends_on,
            version: u64::from(version),
        }
    }

    fn is_in(&self, namespace: &str, catalog: &Catalog) -> bool {
        catalog
            .known_class(self.task.class)
            .is_some_and(|class| *class.namespace == *namespace)
    }
}

/// A task, if the namespace has it under this id.
pub(super) async fn find(
    pool: &Arc<Pool>,
    catalog: &Catalog,
    namespace: &str,
    id: TaskId,
) -> Result<Option<Found>, Fault> {
    let params: [Param<'_>; 2] = [(&id.row(), Type::INT8), (&id.uuid(), Type::UUID)];
    let rows = pool.read(&FIND, &params).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let found = Found::read(row, pool, catalog).await?;
    Ok(found.filter(|found| found.is_in(namespace, catalog)))
}

/// A task and what another statement, that takes its row, finds of it at the same moment.
async fn find_with(
    sql: &str,
    pool: &Arc<Pool>,
    catalog: &Catalog,
    namespace: &str,
    id: TaskId,
) -> Result<Option<(Found, Vec<Row>)>, Fault> {
    let row = || Value::Int8(Some(id.row()));
    let statements = [
        Statement {
            sql: FIND.as_str(),
            params: vec![row(), Value::Uuid(id.uuid())],
        },
        Statement {
            sql,
            params: vec![row()],
        },
    ];
    let mut answers = pool.snapshot().await?.commit(&statements).await?.into_iter();
    let (tasks, rest) = (answers.next().unwrap_or_default(), answers.next().unwrap_or_default());
    let Some(row) = tasks.first() else { return Ok(None) };
    let found = Found::read(row, pool, catalog).await?;
    Ok(found
        .filter(|found| found.is_in(namespace, catalog))
        .map(|found| (found, rest)))
}

/// The columns of `execution` that [`read_execution`] takes.
pub(super) const EXECUTION: &str =
    "e.attempt, e.executor, e.status, e.started_at, e.finished_at, e.usage, e.result, e.error_kind, e.error_message";

/// An attempt that ended without ending its task, from [`EXECUTION`], beginning at `from`.
pub(super) fn read_execution(row: &Row, from: usize, id: TaskId) -> Result<Execution, Fault> {
    let at = |column: usize| from + column;
    let usage: Option<Usage> = row
        .try_get::<_, Option<&str>>(at(5))?
        .and_then(|text| serde_json::from_str(text).ok());
    let status = i64::from(row.try_get::<_, i16>(at(2))?);
    Ok(Execution {
        task: id,
        attempt: attempt(row, at(0))?,
        executor_id: row.try_get(at(1))?,
        status: ExecutionStatus::from_code(status).ok_or_else(|| damaged(id.row(), "execution status"))?,
        started_at: Time::from_micros(row.try_get(at(3))?),
        finished_at: row.try_get::<_, Option<i64>>(at(4))?.map(Time::from_micros),
        usage: usage.unwrap_or_default(),
        result: row
            .try_get::<_, Option<String>>(at(6))?
            .and_then(|text| Json::parse(text).ok()),
        error: read_error(row, at(7))?,
    })
}

fn attempt(row: &Row, column: usize) -> Result<u32, Fault> {
    Ok(u32::try_from(row.try_get::<_, i64>(column)?).unwrap_or(u32::MAX))
}

/// The attempt that a task's end ended.
pub(super) fn last_execution(outcome: &OutcomeRow, id: TaskId, executor_id: String) -> Option<Execution> {
    let status = outcome.status?;
    let life = &outcome.life;
    let completed = status == ExecutionStatus::Completed;
    Some(Execution {
        task: id,
        attempt: life.attempt,
        executor_id,
        status,
        started_at: life.started_at.or(life.finished_at).unwrap_or(life.run_at),
        finished_at: life.finished_at,
        usage: outcome.usage,
        result: outcome.result.clone(),
        error: if completed { None } else { outcome.error.clone() },
    })
}

async fn name_of(pool: &Arc<Pool>, catalog: &Catalog, number: Option<u32>) -> Result<String, Fault> {
    match number {
        Some(number) => Ok(catalog.name(pool, number).await?.to_string()),
        None => Ok(String::new()),
    }
}

/// All attempts of a task, the present one included.
pub(super) async fn executions(
    pool: &Arc<Pool>,
    catalog: &Catalog,
    namespace: &str,
    id: TaskId,
) -> Result<Vec<Execution>, Fault> {
    let sql = format!("SELECT {EXECUTION} FROM pensum.execution e WHERE e.row = $1 ORDER BY e.attempt");
    let Some((found, rows)) = find_with(&sql, pool, catalog, namespace, id).await? else {
        return Ok(Vec::new());
    };
    let mut executions = Vec::with_capacity(rows.len() + 1);
    for row in &rows {
        executions.push(read_execution(row, 0, id)?);
    }
    match &found.place {
        Whereabouts::Finished(outcome) => {
            let executor_id = name_of(pool, catalog, outcome.executor).await?;
            executions.extend(last_execution(outcome, id, executor_id));
        }
        Whereabouts::Unfinished(live) => {
            let life = &live.life;
            if let Some(started_at) = life
                .started_at
                .filter(|_| life.state == State::Running || life.same_attempt)
            {
                executions.push(Execution {
                    task: id,
                    attempt: life.attempt,
                    executor_id: name_of(pool, catalog, live.run.map(|run| run.executor)).await?,
                    status: ExecutionStatus::Running,
                    started_at,
                    finished_at: None,
                    usage: Usage::default(),
                    result: None,
                    error: None,
                });
            }
        }
    }
    Ok(executions)
}

/// The event that an end is.
pub(super) const fn terminal_kind(state: State) -> EventKind {
    match state {
        State::Completed => EventKind::Completed,
        State::Failed => EventKind::Failed,
        _ => EventKind::Cancelled,
    }
}

/// The history of a task. Its creation, its end, and the start of a run without other events are derived.
pub(super) async fn events(
    pool: &Arc<Pool>,
    catalog: &Catalog,
    namespace: &str,
    id: TaskId,
) -> Result<Vec<TaskEvent>, Fault> {
    let sql = "SELECT seq, at, kind, actor, attempt, error_kind, error_message FROM pensum.event WHERE row = $1
               ORDER BY seq";
    let Some((found, rows)) = find_with(sql, pool, catalog, namespace, id).await? else {
        return Ok(Vec::new());
    };
    let task = &found.task;
    let creator = match task.actor {
        Some(actor) => Some(catalog.name(pool, actor).await?),
        None => {
            let parent = task.spec.details.as_ref().and_then(|d| d.parent_id);
            parent.map(|id| Name::from(format!("task:{id}")))
        }
    };
    let derived = |at: Time, kind: EventKind, attempt: u32| TaskEvent {
        seq: 0,
        at,
        kind,
        actor: None,
        attempt,
        error: None,
    };
    let mut events = vec![TaskEvent {
        actor: creator,
        ..derived(task.created_at, EventKind::Created, 0)
    }];
    for row in &rows {
        let kind = i64::from(row.try_get::<_, i16>(2)?);
        events.push(TaskEvent {
            seq: row.try_get::<_, i64>(0)? as u64,
            at: Time::from_micros(row.try_get(1)?),
            kind: EventKind::from_code(kind).ok_or_else(|| damaged(id.row(), "event"))?,
            actor: row.try_get::<_, Option<&str>>(3)?.map(Name::from),
            attempt: attempt(row, 4)?,
            error: read_error(row, 5)?,
        });
    }
    match &found.place {
        Whereabouts::Finished(outcome) => {
            let life = &outcome.life;
            if outcome.status.is_some()
                && outcome.marks & mark::START == 0
                && let Some(started_at) = life.started_at
            {
                events.push(derived(started_at, EventKind::Started, life.attempt));
            }
            events.push(TaskEvent {
                seq: outcome.seq(),
                at: life.finished_at.unwrap_or(life.run_at),
                kind: terminal_kind(life.state),
                actor: outcome.actor.clone(),
                attempt: life.attempt,
                error: outcome.error.clone(),
            });
        }
        Whereabouts::Unfinished(live) => {
            if let Some(run) = live.run.filter(|_| live.marks & mark::START == 0) {
                events.push(derived(run.taken_at, EventKind::Started, live.life.attempt));
            }
        }
    }
    Ok(events)
}

/// True of a task of a namespace, in the SQL of a read that takes its row, its id and the namespace first.
const IS_TASK: &str = "EXISTS (SELECT 1 FROM pensum.task t JOIN pensum.class c ON c.id = t.class
                       WHERE t.row = $1 AND t.id = $2 AND c.namespace = $3)";
/// True of a task of any namespace, in the SQL of a read that takes its row and its id first.
const IS_ID: &str = "EXISTS (SELECT 1 FROM pensum.task t WHERE t.row = $1 AND t.id = $2)";

/// Log lines of a task after `after`.
pub(super) async fn logs(
    pool: &Arc<Pool>,
    namespace: &str,
    id: TaskId,
    after: u64,
    limit: usize,
) -> Result<Vec<LogEntry>, Fault> {
    let sql = format!(
        "SELECT seq, at, attempt, stream, message FROM pensum.log
         WHERE row = $1 AND seq > $4 AND {IS_TASK} ORDER BY seq LIMIT $5"
    );
    let (after, limit) = (
        i64::try_from(after).unwrap_or(i64::MAX),
        i64::try_from(limit).unwrap_or(i64::MAX),
    );
    let rows = pool
        .read(
            &sql,
            &[
                (&id.row(), Type::INT8),
                (&id.uuid(), Type::UUID),
                (&text(namespace), Type::TEXT),
                (&after, Type::INT8),
                (&limit, Type::INT8),
            ],
        )
        .await?;
    let read = |row: &Row| -> Result<LogEntry, Fault> {
        Ok(LogEntry {
            seq: row.try_get::<_, i64>(0)? as u64,
            line: LogLine {
                at: Time::from_micros(row.try_get(1)?),
                attempt: attempt(row, 2)?,
                stream: LogStream::from_code(i64::from(row.try_get::<_, i16>(3)?)),
                message: row.try_get(4)?,
            },
        })
    };
    rows.iter().map(read).collect()
}

/// The tasks that depend on this one.
pub(super) async fn dependants(pool: &Arc<Pool>, namespace: &str, id: TaskId) -> Result<Vec<TaskId>, Fault> {
    let sql = format!(
        "SELECT w.id FROM pensum.dependency d JOIN pensum.task w ON w.row = d.dependent
         WHERE d.prerequisite = $1 AND {IS_TASK} ORDER BY d.dependent"
    );
    let rows = pool
        .read(
            &sql,
            &[
                (&id.row(), Type::INT8),
                (&id.uuid(), Type::UUID),
                (&text(namespace), Type::TEXT),
            ],
        )
        .await?;
    rows.iter().map(|row| task_id(row, 0)).collect()
}

/// Unread signals of a task.
pub(super) async fn inbox(pool: &Arc<Pool>, id: TaskId) -> Result<Vec<Signal>, Fault> {
    let sql = format!("SELECT seq, name, payload, at FROM pensum.inbox WHERE row = $1 AND {IS_ID} ORDER BY seq");
    let rows = pool
        .read(&sql, &[(&id.row(), Type::INT8), (&id.uuid(), Type::UUID)])
        .await?;
    let read = |row: &Row| -> Result<Signal, Fault> {
        Ok(Signal {
            seq: row.try_get::<_, i64>(0)? as u64,
            name: row.try_get::<_, &str>(1)?.into(),
            payload: Json::parse(row.try_get(2)?).unwrap_or_default(),
            at: Time::from_micros(row.try_get(3)?),
        })
    };
    rows.iter().map(read).collect()
}

/// Results of the finished steps of a task.
pub(super) async fn steps(pool: &Arc<Pool>, id: TaskId) -> Result<Vec<(Name, Json)>, Fault> {
    let sql = format!("SELECT name, result FROM pensum.step WHERE row = $1 AND {IS_ID} ORDER BY seq");
    let rows = pool
        .read(&sql, &[(&id.row(), Type::INT8), (&id.uuid(), Type::UUID)])
        .await?;
    let read = |row: &Row| -> Result<(Name, Json), Fault> {
        let result = Json::parse(row.try_get(1)?).unwrap_or_default();
        Ok((row.try_get::<_, &str>(0)?.into(), result))
    };
    rows.iter().map(read).collect()
}

/// Which tasks of a key are leased.
pub(super) async fn key_holders(pool: &Arc<Pool>, namespace: &str, key: &str) -> Result<Vec<TaskId>, Fault> {
    let sql = format!(
        "SELECT t.id FROM pensum.live l JOIN pensum.task t ON t.row = l.row
         WHERE l.scope = $1 AND l.gate = {} ORDER BY l.row LIMIT {PER_KEY_MAX}",
        gate::RUNNING
    );
    let rows = pool.read(&sql, &[(&&*scope_of(namespace, key), Type::TEXT)]).await?;
    rows.iter().map(|row| task_id(row, 0)).collect()
}
