//! Circuit breakers: the verbs, and their rows.
//!
//! Locks are taken in one order: the rows of tasks, then those of breakers by namespace and name, then the version of the
//! queues, then queues. A claim that holds a breaker waits for no task, and a verb of queues for no breaker.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use pensum_core::breaker::{BREAKERS_MAX, BreakerCommand, BreakerRecord, BreakerSettings};
use pensum_core::store::{Call, Rejected};
use pensum_core::{Name, Time};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::Inner;
use super::error::Fault;
use super::pool::{Durability, Pool, Statement, Tx, Value, as_params, text};
use super::queue::GROW;
use super::row::{self, gate};

/// The columns of a breaker, in the order of [`read`].
pub(super) const COLUMNS: &str =
    "b.namespace, b.name, b.settings, b.memory, b.put_by, b.created_at, b.changed_at, b.version";
/// Adds one with [`values`].
const INSERT: &str =
    "INSERT INTO pensum.breaker(namespace, name, settings, memory, put_by, created_at, changed_at, version)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
/// Changes one to [`values`].
const UPDATE: &str =
    "UPDATE pensum.breaker SET settings = $3, memory = $4, put_by = $5, created_at = $6, changed_at = $7,
    version = $8 WHERE namespace = $1 AND name = $2";
const DELETE: &str = "DELETE FROM pensum.breaker WHERE namespace = $1 AND name = $2";
/// One breaker, locked.
static LOCK: LazyLock<String> = LazyLock::new(|| {
    format!("SELECT {COLUMNS} FROM pensum.breaker b WHERE b.namespace = $1 AND b.name = $2 FOR UPDATE")
});
/// Several, locked one after the other.
static LOCK_ALL: LazyLock<String> = LazyLock::new(|| {
    format!(
        r#"SELECT {COLUMNS} FROM pensum.breaker b
           WHERE (b.namespace, b.name) IN (SELECT * FROM unnest($1::text[], $2::text[]))
           ORDER BY b.namespace COLLATE "C", b.name COLLATE "C" FOR UPDATE"#
    )
});
/// How many leases are runs of what each of some breakers covers, taken since a time of its own. The breakers have numbers,
/// and so have what they cover.
static PROBING: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH given AS MATERIALIZED (SELECT * FROM unnest($1::integer[], $2::text[], $3::bigint[])
            AS given(place, namespace, since)),
        handlers AS MATERIALIZED (SELECT * FROM unnest($4::integer[], $5::text[]) AS covered(place, name)),
        agents AS MATERIALIZED (SELECT * FROM unnest($6::integer[], $7::text[]) AS covered(place, name)),
        held AS MATERIALIZED (SELECT leased.* FROM {} leased WHERE leased.taken_at >= (SELECT min(since) FROM given))
        SELECT g.place, count(*) FROM given g JOIN held l ON l.taken_at >= g.since
        JOIN pensum.class c ON c.id = l.class AND c.namespace = g.namespace LEFT JOIN pensum.name n ON n.id = l.executor
        WHERE (g.place, c.handler) IN (SELECT place, name FROM handlers)
           OR (g.place, n.text) IN (SELECT place, name FROM agents)
        GROUP BY g.place",
        row::rows_at("class, executor, taken_at", gate::RUNNING, "ALL")
    )
});

/// A breaker from [`COLUMNS`]: its namespace, and itself without what probes it.
pub(super) fn read(row: &Row) -> Result<(Name, BreakerRecord), Fault> {
    let name: Name = row.try_get::<_, &str>(1)?.into();
    let damaged = |error: serde_json::Error| Fault::Damaged(format!("breaker {name} is not readable ({error})"));
    let record = BreakerRecord {
        settings: serde_json::from_str(row.try_get(2)?).map_err(damaged)?,
        memory: serde_json::from_str(row.try_get(3)?).map_err(damaged)?,
        probing: 0,
        put_by: row.try_get::<_, &str>(4)?.into(),
        created_at: Time::from_micros(row.try_get(5)?),
        changed_at: Time::from_micros(row.try_get(6)?),
        version: row.try_get::<_, i64>(7)? as u64,
        name,
    };
    Ok((row.try_get::<_, &str>(0)?.into(), record))
}

/// The statement that writes one with its [`COLUMNS`].
fn write(sql: &'static str, namespace: &str, record: &BreakerRecord) -> Statement<'static> {
    let owned = |value: &str| Value::Text(Some(text(value))).into_owned();
    let json = |json: Result<String, serde_json::Error>| Value::Text(json.ok().map(Into::into));
    Statement {
        sql,
        params: vec![
            owned(namespace),
            owned(&record.name),
            json(serde_json::to_string(&record.settings)),
            json(serde_json::to_string(&record.memory)),
            owned(&record.put_by),
            Value::Int8(Some(record.created_at.as_micros())),
            Value::Int8(Some(record.changed_at.as_micros())),
            Value::Int8(Some(record.version as i64)),
        ],
    }
}

/// Adds one that comes from another store.
pub(super) fn insert(namespace: &str, record: &BreakerRecord) -> Statement<'static> {
    write(INSERT, namespace, record)
}

/// The breakers of these places, locked in the order in which everyone locks them.
pub(super) fn lock_all<'a>(places: impl Iterator<Item = (&'a Name, &'a Name)>) -> Statement<'static> {
    let own = |name: &str| Some(text(name).into_owned().into());
    let (namespaces, names) = places.map(|(namespace, name)| (own(namespace), own(name))).unzip();
    Statement {
        sql: &LOCK_ALL,
        params: vec![Value::Texts(namespaces), Value::Texts(names)],
    }
}

/// Counts the probes of breakers: the answer names those that have any by their numbers.
pub(super) fn count_probes<'a>(
    breakers: impl Iterator<Item = (usize, &'a Name, &'a BreakerRecord)>,
) -> Statement<'static> {
    let own = |name: &Name| Some(text(name).into_owned().into());
    let (mut places, mut namespaces, mut since) = (Vec::new(), Vec::new(), Vec::new());
    let (mut handlers, mut agents) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for (place, namespace, record) in breakers {
        let Some(at) = record.half_open_at() else { continue };
        let place = i32::try_from(place).ok();
        places.push(place);
        namespaces.push(own(namespace));
        since.push(Some(at.as_micros()));
        for (covered, all) in [
            (&record.settings.handlers, &mut handlers),
            (&record.settings.agents, &mut agents),
        ] {
            all.0.extend(covered.iter().map(|_| place));
            all.1.extend(covered.iter().map(own));
        }
    }
    Statement {
        sql: &PROBING,
        params: vec![
            Value::Int4s(places),
            Value::Texts(namespaces),
            Value::Int8s(since),
            Value::Int4s(handlers.0),
            Value::Texts(handlers.1),
            Value::Int4s(agents.0),
            Value::Texts(agents.1),
        ],
    }
}

/// By the numbers of breakers, how many runs probe them.
pub(super) fn read_probes(rows: &[Row]) -> Result<BTreeMap<usize, u64>, Fault> {
    let read = |row: &Row| {
        Ok((
            row.try_get::<_, i32>(0)? as usize,
            row.try_get::<_, i64>(1)?.max(0) as u64,
        ))
    };
    rows.iter().map(read).collect()
}

/// A verb at work: the breaker is locked, if there is one.
struct Change {
    tx: Tx,
    found: Option<BreakerRecord>,
}

impl Change {
    async fn begin(inner: &Arc<Inner>, call: &Call, breaker: &Name) -> Result<Change, Fault> {
        let tx = inner.pool.begin(Durability::Acknowledged).await?;
        let mut change = Change { tx, found: None };
        change.look(call, breaker).await?;
        Ok(change)
    }

    async fn look(&mut self, call: &Call, breaker: &Name) -> Result<(), Fault> {
        let (namespace, name) = (text(&call.namespace), text(breaker));
        let place = [(&namespace as _, Type::TEXT), (&name as _, Type::TEXT)];
        let rows = self.tx.query(&LOCK, &place).await?;
        self.found = rows.first().map(read).transpose()?.map(|(_, record)| record);
        Ok(())
    }

    /// Answers it with its probes, after it was written where `sql` says how.
    async fn end(
        mut self,
        inner: &Arc<Inner>,
        call: &Call,
        record: BreakerRecord,
        sql: Option<&'static str>,
    ) -> Result<BreakerRecord, Fault> {
        let mut probing = 0;
        if record.memory.opened_at.is_some() {
            let count = count_probes([(0, &call.namespace, &record)].into_iter());
            let answers = self.tx.pipeline(&[count]).await?;
            probing = read_probes(answers.first().map_or(&[], Vec::as_slice))?
                .into_values()
                .sum();
        }
        match sql {
            Some(sql) => {
                self.tx.commit(&[write(sql, &call.namespace, &record), GROW]).await?;
                inner.wake.breakers_changed();
            }
            None => self.tx.rollback().await?,
        }
        Ok(BreakerRecord { probing, ..record })
    }

    async fn refuse<T>(self, rejected: Rejected) -> Result<Result<T, Rejected>, Fault> {
        self.tx.rollback().await?;
        Ok(Err(rejected))
    }
}

/// Makes a breaker, or gives it other settings.
pub(super) async fn put(
    inner: &Arc<Inner>,
    call: &Call,
    breaker: &Name,
    settings: &BreakerSettings,
    expected: Option<u64>,
) -> Result<Result<BreakerRecord, Rejected>, Fault> {
    let mut change = Change::begin(inner, call, breaker).await?;
    if change.found.is_none() {
        // Of those that are made at once, one after the other is counted.
        let lock = "SELECT pg_advisory_xact_lock(hashtextextended('pensum.breaker', 0))";
        change.tx.query(lock, &[]).await?;
        change.look(call, breaker).await?;
    }
    if let Some(mut record) = change.found.clone() {
        if let Err(rejected) = record.check(expected) {
            return change.refuse(rejected).await;
        }
        let changed = record.put(settings.clone(), &call.actor, call.now);
        return Ok(Ok(change.end(inner, call, record, changed.then_some(UPDATE)).await?));
    }
    let rows = change.tx.query("SELECT count(*) FROM pensum.breaker", &[]).await?;
    let count: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
    if count >= BREAKERS_MAX as i64 {
        return change.refuse(Rejected::TooManyBreakers).await;
    }
    if expected.is_some_and(|expected| expected > 0) {
        return change.refuse(Rejected::NoBreaker(breaker.clone())).await;
    }
    let record = BreakerRecord::new(breaker.clone(), settings.clone(), call.actor.clone(), call.now);
    Ok(Ok(change.end(inner, call, record, Some(INSERT)).await?))
}

/// Carries out a command.
pub(super) async fn command(
    inner: &Arc<Inner>,
    call: &Call,
    breaker: &Name,
    command: BreakerCommand,
) -> Result<Result<BreakerRecord, Rejected>, Fault> {
    let change = Change::begin(inner, call, breaker).await?;
    let Some(mut record) = change.found.clone() else {
        return change.refuse(Rejected::NoBreaker(breaker.clone())).await;
    };
    let changed = record.command(command, call.now);
    Ok(Ok(change.end(inner, call, record, changed.then_some(UPDATE)).await?))
}

/// Removes a breaker.
pub(super) async fn delete(inner: &Arc<Inner>, call: &Call, breaker: &Name) -> Result<Result<(), Rejected>, Fault> {
    let change = Change::begin(inner, call, breaker).await?;
    if change.found.is_none() {
        return change.refuse(Rejected::NoBreaker(breaker.clone())).await;
    }
    let gone = Statement {
        sql: DELETE,
        params: vec![
            Value::Text(Some(text(&call.namespace))),
            Value::Text(Some(text(breaker))),
        ],
    };
    change.tx.commit(&[gone, GROW]).await?;
    inner.wake.breakers_changed();
    Ok(Ok(()))
}

/// The breakers of a namespace, by name.
pub(super) async fn list(pool: &Arc<Pool>, namespace: &Name) -> Result<Vec<BreakerRecord>, Fault> {
    let sql = format!(r#"SELECT {COLUMNS} FROM pensum.breaker b WHERE b.namespace = $1 ORDER BY b.name COLLATE "C""#);
    let rows = pool.read(&sql, &[(&text(namespace), Type::TEXT)]).await?;
    let mut breakers: Vec<BreakerRecord> = Vec::new();
    for row in &rows {
        breakers.push(read(row)?.1);
    }
    if breakers.iter().any(|record| record.memory.opened_at.is_some()) {
        let count = count_probes(
            breakers
                .iter()
                .enumerate()
                .map(|(place, record)| (place, namespace, record)),
        );
        for (place, probing) in read_probes(&pool.read(count.sql, &as_params(&count.params)).await?)? {
            breakers[place].probing = probing;
        }
    }
    Ok(breakers)
}

/// Reads all breakers with their namespaces, in the order of the bytes of both.
pub(super) static ALL: LazyLock<String> = LazyLock::new(|| {
    format!(r#"SELECT {COLUMNS} FROM pensum.breaker b ORDER BY b.namespace COLLATE "C", b.name COLLATE "C""#)
});

/// All of them, as a copy carries them.
pub(super) async fn all(pool: &Arc<Pool>) -> Result<Vec<(Name, BreakerRecord)>, Fault> {
    pool.read(&ALL, &[]).await?.iter().map(read).collect()
}
