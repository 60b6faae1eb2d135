//! Reads of one task: what the disk says, with the leases laid over it.

use std::time::Duration;

use pensum_core::store::{LogEntry, LogLine, LogStream, Signal, TaskEvent};
use pensum_core::task::{Details, Execution, ExecutionStatus};
use pensum_core::transition::EventKind;
use pensum_core::{Json, Name, Priority, Spec, State, TaskId, TaskRecord, Time, Usage};
use rusqlite::{Connection, Row};

use super::error::Fault;
use super::names::Catalog;
use super::row::{LiveRow, OutcomeRow, damaged, mark, read_error};
use super::step::Run;
use super::view::Seen;

/// A task as it was enqueued.
pub(super) struct StoredTask {
    pub(super) id: TaskId,
    pub(super) class: u32,
    pub(super) created_at: Time,
    pub(super) actor: Option<u32>,
    pub(super) spec: Spec,
}

const TASK: &str =
    "SELECT id, class, created_at, actor, parameters, priority, deadline, timeout, max_retries, key, details
    FROM task WHERE row = ?";

/// Loads a task by its row.
pub(super) fn stored_task(db: &Connection, catalog: &Catalog, row: i64) -> Result<Option<StoredTask>, Fault> {
    let mut statement = db.prepare_cached(TASK)?;
    let mut rows = statement.query([row])?;
    rows.next()?.map(|found| read_task(found, catalog, row)).transpose()
}

fn read_task(found: &Row<'_>, catalog: &Catalog, row: i64) -> Result<StoredTask, Fault> {
    let class_id: u32 = found.get(1)?;
    let class = catalog.class(class_id).ok_or_else(|| damaged(row, "class"))?;
    let parameters = Json::parse(found.get(4)?).map_err(|_| damaged(row, "JSON text as parameters"))?;
    let priority = match found.get::<_, Option<i64>>(5)? {
        None => Priority::Normal,
        Some(level) => Priority::from_level(level).ok_or_else(|| damaged(row, "priority"))?,
    };
    let details = match found
        .get_ref(10)?
        .as_str_or_null()
        .map_err(|_| damaged(row, "text as details"))?
    {
        None => None,
        Some(text) => {
            let details: Details = serde_json::from_str(text).map_err(|_| damaged(row, "JSON text as details"))?;
            Some(Box::new(details))
        }
    };
    let micros = |value: Option<i64>| value.map(|m| Duration::from_micros(m.max(0) as u64));
    Ok(StoredTask {
        id: TaskId::from_bytes(found.get(0)?),
        class: class_id,
        created_at: Time::from_micros(found.get(2)?),
        actor: found.get(3)?,
        spec: Spec {
            handler: class.handler.clone(),
            queue: class.queue.clone(),
            priority,
            parameters,
            timeout: micros(found.get(7)?),
            max_retries: found.get(8)?,
            key: found.get(9)?,
            deadline: found.get::<_, Option<i64>>(6)?.map(Time::from_micros),
            details,
        },
    })
}

/// Where a task is.
pub(super) enum Whereabouts {
    Unfinished(Box<LiveRow>, Option<Run>),
    Finished(Box<OutcomeRow>),
}

/// Where the task of a row is. `seen` was taken before this reads the disk, so a later version there wins.
pub(super) fn whereabouts(db: &Connection, row: i64, seen: Option<Seen>) -> Result<Option<Whereabouts>, Fault> {
    let Some(live) = LiveRow::load(db, row)? else {
        return Ok(OutcomeRow::load(db, row)?.map(|outcome| Whereabouts::Finished(Box::new(outcome))));
    };
    Ok(Some(match seen {
        Some(seen) if seen.live.version >= live.version => {
            let run = Run {
                executor: seen.executor,
                taken_at: seen.taken_at,
            };
            Whereabouts::Unfinished(Box::new(seen.live), Some(run))
        }
        _ => Whereabouts::Unfinished(Box::new(live), None),
    }))
}

/// A task with everything about it that its record shows, if the namespace has it under this id.
pub(super) fn find(
    db: &Connection,
    catalog: &Catalog,
    namespace: &str,
    id: TaskId,
    seen: Option<Seen>,
) -> Result<Option<(StoredTask, Whereabouts)>, Fault> {
    let Some(task) = stored_task(db, catalog, id.row())?.filter(|task| task.id == id) else {
        return Ok(None);
    };
    if catalog
        .class(task.class)
        .is_none_or(|class| *class.namespace != *namespace)
    {
        return Ok(None);
    }
    Ok(whereabouts(db, id.row(), seen)?.map(|place| (task, place)))
}

/// The record of a task.
pub(super) fn record(db: &Connection, task: StoredTask, place: Whereabouts) -> Result<TaskRecord, Fault> {
    let row = task.id.row();
    let (lifecycle, progress, result, error, version, marks) = match place {
        Whereabouts::Unfinished(live, _) => {
            let live = *live;
            (live.life, live.progress, None, live.error, live.version, live.marks)
        }
        Whereabouts::Finished(outcome) => {
            let outcome = *outcome;
            (
                outcome.life,
                outcome.progress,
                outcome.result,
                outcome.error,
                outcome.version,
                outcome.marks,
            )
        }
    };
    let depends_on = if marks & mark::DEPENDS == 0 {
        Vec::new()
    } else {
        prerequisites(db, row)?
    };
    Ok(TaskRecord {
        id: task.id,
        created_at: task.created_at,
        spec: task.spec,
        lifecycle,
        progress,
        result,
        error,
        depends_on,
        version: u64::from(version),
    })
}

fn prerequisites(db: &Connection, row: i64) -> Result<Vec<TaskId>, Fault> {
    let mut statement = db.prepare_cached(
        "SELECT t.id FROM dependency d JOIN task t ON t.row = d.prerequisite WHERE d.dependent = ? ORDER BY d.position",
    )?;
    let ids = statement
        .query_map([row], |r| Ok(TaskId::from_bytes(r.get(0)?)))?
        .collect::<Result<_, _>>()?;
    Ok(ids)
}

/// The tasks that depend on this one.
pub(super) fn dependants(db: &Connection, row: i64) -> Result<Vec<TaskId>, Fault> {
    let mut statement = db.prepare_cached(
        "SELECT t.id FROM dependency d JOIN task t ON t.row = d.dependent WHERE d.prerequisite = ? ORDER BY d.dependent",
    )?;
    let ids = statement
        .query_map([row], |r| Ok(TaskId::from_bytes(r.get(0)?)))?
        .collect::<Result<_, _>>()?;
    Ok(ids)
}

/// The attempt that a task's end ended.
pub(super) fn last_execution(catalog: &Catalog, outcome: &OutcomeRow, id: TaskId) -> Option<Execution> {
    let status = outcome.status?;
    let life = &outcome.life;
    let completed = status == ExecutionStatus::Completed;
    Some(Execution {
        task: id,
        attempt: life.attempt,
        executor_id: outcome
            .executor
            .and_then(|n| catalog.name(n))
            .map(|n| n.to_string())
            .unwrap_or_default(),
        status,
        started_at: life.started_at.or(life.finished_at).unwrap_or(life.run_at),
        finished_at: life.finished_at,
        usage: outcome.usage,
        result: outcome.result.clone(),
        error: if completed { None } else { outcome.error.clone() },
    })
}

/// The attempts that ended without ending the task, first to last.
pub(super) fn earlier_executions(db: &Connection, id: TaskId) -> Result<Vec<Execution>, Fault> {
    let mut statement = db.prepare_cached(
        "SELECT attempt, executor, status, started_at, finished_at, usage, result, error_kind, error_message
         FROM execution WHERE row = ? ORDER BY attempt",
    )?;
    let mut rows = statement.query([id.row()])?;
    let mut executions = Vec::new();
    while let Some(row) = rows.next()? {
        let usage: Option<Usage> = row
            .get_ref(5)?
            .as_str_or_null()
            .ok()
            .flatten()
            .and_then(|text| serde_json::from_str(text).ok());
        executions.push(Execution {
            task: id,
            attempt: row.get(0)?,
            executor_id: row.get(1)?,
            status: ExecutionStatus::from_code(row.get(2)?).ok_or_else(|| damaged(id.row(), "execution status"))?,
            started_at: Time::from_micros(row.get(3)?),
            finished_at: row.get::<_, Option<i64>>(4)?.map(Time::from_micros),
            usage: usage.unwrap_or_default(),
            result: row.get::<_, Option<String>>(6)?.and_then(|text| Json::parse(text).ok()),
            error: read_error(row, 7)?,
        });
    }
    Ok(executions)
}

/// All attempts of a task, the present one included.
pub(super) fn executions(
    db: &Connection,
    catalog: &Catalog,
    id: TaskId,
    place: &Whereabouts,
) -> Result<Vec<Execution>, Fault> {
    let mut executions = earlier_executions(db, id)?;
    match place {
        Whereabouts::Finished(outcome) => executions.extend(last_execution(catalog, outcome, id)),
        Whereabouts::Unfinished(live, run) => {
            let life = &live.life;
            if let Some(started_at) = life
                .started_at
                .filter(|_| life.state == State::Running || life.same_attempt)
            {
                executions.push(Execution {
                    task: id,
                    attempt: life.attempt,
                    executor_id: run.as_ref().map(|run| run.executor.to_string()).unwrap_or_default(),
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
pub(super) fn events(
    db: &Connection,
    catalog: &Catalog,
    task: &StoredTask,
    place: &Whereabouts,
) -> Result<Vec<TaskEvent>, Fault> {
    let parent = task.spec.details.as_ref().and_then(|d| d.parent_id);
    let creator = match (task.actor, parent) {
        (Some(actor), _) => catalog.name(actor),
        (None, parent) => parent.map(|id| Name::from(format!("task:{id}"))),
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
    let mut statement = db.prepare_cached(
        "SELECT seq, at, kind, actor, attempt, error_kind, error_message FROM event WHERE row = ? ORDER BY seq",
    )?;
    let mut rows = statement.query([task.id.row()])?;
    while let Some(row) = rows.next()? {
        events.push(TaskEvent {
            seq: row.get::<_, i64>(0)? as u64,
            at: Time::from_micros(row.get(1)?),
            kind: EventKind::from_code(row.get(2)?).ok_or_else(|| damaged(task.id.row(), "event"))?,
            actor: row.get(3)?,
            attempt: row.get(4)?,
            error: read_error(row, 5)?,
        });
    }
    match place {
        Whereabouts::Finished(outcome) => {
            let life = &outcome.life;
            if outcome.status.is_some()
                && outcome.marks & mark::START == 0
                && let Some(started_at) = life.started_at
            {
                events.push(derived(started_at, EventKind::Started, life.attempt));
            }
            events.push(TaskEvent {
                seq: outcome.seq,
                at: life.finished_at.unwrap_or(life.run_at),
                kind: terminal_kind(life.state),
                actor: outcome.actor.clone(),
                attempt: life.attempt,
                error: outcome.error.clone(),
            });
        }
        Whereabouts::Unfinished(live, Some(run)) if live.marks & mark::START == 0 => {
            events.push(derived(run.taken_at, EventKind::Started, live.life.attempt));
        }
        Whereabouts::Unfinished(..) => {}
    }
    Ok(events)
}

/// Log lines of a row after `after`.
pub(super) fn logs(db: &Connection, row: i64, after: u64, limit: usize) -> Result<Vec<LogEntry>, Fault> {
    let mut statement = db.prepare_cached(
        "SELECT seq, at, attempt, stream, message FROM log WHERE row = ? AND seq > ? ORDER BY seq LIMIT ?",
    )?;
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let entries = statement.query_map((row, after, i64::try_from(limit).unwrap_or(i64::MAX)), |r| {
        Ok(LogEntry {
            seq: r.get::<_, i64>(0)? as u64,
            line: LogLine {
                at: Time::from_micros(r.get(1)?),
                attempt: r.get(2)?,
                stream: LogStream::from_code(r.get(3)?),
                message: r.get(4)?,
            },
        })
    })?;
    Ok(entries.collect::<Result<_, _>>()?)
}

/// Unread signals of a row.
pub(super) fn inbox(db: &Connection, row: i64) -> Result<Vec<Signal>, Fault> {
    let mut statement = db.prepare_cached("SELECT seq, name, payload, at FROM inbox WHERE row = ? ORDER BY seq")?;
    let signals = statement.query_map([row], |r| {
        Ok(Signal {
            seq: r.get::<_, i64>(0)? as u64,
            name: r.get(1)?,
            payload: Json::parse(r.get(2)?).unwrap_or_default(),
            at: Time::from_micros(r.get(3)?),
        })
    })?;
    Ok(signals.collect::<Result<_, _>>()?)
}

/// Results of finished steps of a row.
pub(super) fn steps(db: &Connection, row: i64) -> Result<Vec<(Name, Json)>, Fault> {
    let mut statement = db.prepare_cached("SELECT name, result FROM step WHERE row = ? ORDER BY seq")?;
    let steps = statement.query_map([row], |r| Ok((r.get(0)?, Json::parse(r.get(1)?).unwrap_or_default())))?;
    Ok(steps.collect::<Result<_, _>>()?)
}

/// What an earlier run of a row left.
pub(super) fn checkpoint(db: &Connection, row: i64) -> Result<Option<Json>, Fault> {
    let mut statement = db.prepare_cached("SELECT state FROM checkpoint WHERE row = ?")?;
    let mut rows = statement.query([row])?;
    let Some(found) = rows.next()? else { return Ok(None) };
    Ok(Some(
        Json::parse(found.get(0)?).map_err(|_| damaged(row, "JSON text as checkpoint"))?,
    ))
}

/// True when this is the id of the task in its row.
pub(super) fn is_id(db: &Connection, id: TaskId) -> Result<bool, Fault> {
    Ok(db
        .prepare_cached("SELECT 1 FROM task WHERE row = ? AND id = ?")?
        .exists((id.row(), id.as_bytes()))?)
}
