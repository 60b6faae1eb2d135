//! What the store keeps, for a copy of it: the rows of a page of tasks, put together.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use pensum_core::dossier::{self, Bookmark, Dossier, Hold, PARCEL_BYTES, Parcel, Remembered, UniqueKey};
use pensum_core::store::{LogEntry, LogLine, LogStream, Signal, TaskEvent};
use pensum_core::transition::EventKind;
use pensum_core::{Json, Name, StoreError, TaskId, Time};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::Inner;
use super::error::Fault;
use super::pool::{Pool, Statement, Value};
use super::reads::{EXECUTION, FOUND, Found, Whereabouts, last_execution, read_execution, terminal_kind};
use super::row::{self, OutcomeRow, mark, read_error, seq_of};
use super::{agent, breaker, queue};

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
        queues: Vec::new(),
        agents: Vec::new(),
        breakers: Vec::new(),
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
    let is_change = |seq: u64| {
        events
            .iter()
            .any(|event| event.seq == seq && event.kind == EventKind::Updated)
    };
    let seq = seq_of(outcome.end_version(is_change));
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
    let is_first = namespace.is_empty() && key.is_empty();
    let queues = if is_first { queue::all(pool).await? } else { Vec::new() };
    let agents = if is_first { agent::all(pool).await? } else { Vec::new() };
    let breakers = if is_first {
        breaker::all(pool).await?
    } else {
        Vec::new()
    };
    let full = remembered.len() == limit;
    let next = remembered.last().filter(|_| full).map(Remembered::bookmark);
    Ok(Parcel {
        next,
        remembered,
        queues,
        agents,
        breakers,
        dossiers: Vec::new(),
    })
}
