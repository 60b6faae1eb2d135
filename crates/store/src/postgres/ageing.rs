//! Tasks that rise in the claim order while they wait, and those that stand elsewhere because their queue has changed.
//!
//! Whoever writes a row says where it stands and when it rises, by what its node knows of the queues. The pass that ends
//! what is overdue lets rise whose time has come, and walks along the rows, all at once after a change and slowly
//! otherwise, to mend what was written by a node that had not heard of it.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use pensum_core::order::{OrderRule, deadline_of, place};
use pensum_core::{Name, Priority, Time};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::Inner;
use super::error::Fault;
use super::key;
use super::pool::{Durability, Statement, Value};
use super::row::{flag, gate, rank};
use super::width;

/// Most tasks that rise in one step.
const RAISED_MAX: i64 = 1_000;
/// How many rows one step walks along.
const WALKED: i64 = 2_000;
/// How many keys one step looks at, of which perhaps nothing is left.
const TURNS_WALKED: i64 = 500;

/// How far the walk is.
#[derive(Default)]
pub(super) struct Ageing(Mutex<Walk>);

struct Walk {
    /// What queues say that do not say the usual, as it was when the walk began.
    rules: Arc<Rules>,
    row: i64,
    /// It has come to the last row since something changed.
    is_past_rows: bool,
    /// How far it is among the turns of fair queues.
    scope: String,
    /// How far it is among the keys, of which others may have their turn than should.
    key: String,
    /// It has come to the last key since something changed.
    is_past_keys: bool,
}

impl Default for Walk {
    /// A node walks once when it starts: nodes of an earlier version may have written rows that stand otherwise.
    fn default() -> Walk {
        Walk {
            rules: Arc::default(),
            row: 0,
            is_past_rows: false,
            scope: String::new(),
            key: String::new(),
            is_past_keys: false,
        }
    }
}

impl Walk {
    /// Something has changed since it last came to the end.
    fn is_urgent(&self) -> bool {
        !self.is_past_rows || !self.is_past_keys
    }
}

/// By namespace and queue, where it is not the usual.
pub(super) type Rules = BTreeMap<(Name, Name), OrderRule>;

/// What is looked at of a row.
const COLUMNS: &str = "l.row, l.class, l.rank, l.flags, l.deadline, l.run_at, l.ready_at, l.gate, l.rises_at, l.scope,
    coalesce(l.version, 1), t.number";
/// The tasks that rise first.
static DUE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS} FROM (SELECT * FROM pensum.live
           WHERE rises_at <= $1 AND rises_at IS NOT NULL AND gate IN (0, 7) ORDER BY rises_at LIMIT {RAISED_MAX}) l
         LEFT JOIN pensum.turn t ON t.scope = l.scope"
    )
});
/// The next rows on the way.
static NEXT: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS} FROM (SELECT * FROM pensum.live WHERE row > $1 ORDER BY row LIMIT {WALKED}) l
         LEFT JOIN pensum.turn t ON t.scope = l.scope ORDER BY l.row"
    )
});
const FIRST_DUE: &str = "SELECT rises_at FROM pensum.live WHERE rises_at IS NOT NULL AND gate IN (0, 7)
    ORDER BY rises_at LIMIT 1";
/// Moves rows that are still as they were seen, and that nobody is taking.
static MOVE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH given AS MATERIALIZED (SELECT * FROM unnest($1::bigint[], $2::smallint[], $3::bigint[], $4::smallint[],
            $5::integer[], $6::bigint[], $7::bigint[]) AS given(row, gate, version, rank, risen, rises_at, place)),
        held AS MATERIALIZED (SELECT found.at, given.* FROM given CROSS JOIN LATERAL (
            SELECT ctid AS at FROM pensum.live
            WHERE row = given.row AND gate = given.gate AND coalesce(version, 1) = given.version
            FOR UPDATE SKIP LOCKED) found)
        UPDATE pensum.live l SET rank = held.rank, flags = (l.flags & ~{RISEN}) | held.risen, rises_at = held.rises_at,
            deadline = held.place
        FROM held WHERE l.ctid = ANY(ARRAY(SELECT at FROM held)) AND l.row = held.row",
        RISEN = flag::RISEN
    )
});
/// Turns of keys of which nothing is left that is unfinished, among the next ones.
static FORGET: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH next AS MATERIALIZED (
            SELECT scope FROM pensum.turn WHERE scope > $1 ORDER BY scope LIMIT {TURNS_WALKED}),
        gone AS (DELETE FROM pensum.turn WHERE scope = ANY(ARRAY(
            SELECT t.scope FROM pensum.turn t JOIN next ON next.scope = t.scope
            WHERE NOT EXISTS (SELECT 1 FROM pensum.live l WHERE l.scope = t.scope) FOR UPDATE OF t SKIP LOCKED)))
        SELECT max(scope) FROM next"
    )
});

/// A row that stands elsewhere than it should.
struct Misplaced {
    row: i64,
    gate: i16,
    version: i64,
    rank: i16,
    risen: i32,
    rises_at: Option<i64>,
    place: i64,
    scope: Option<Name>,
}

impl Misplaced {
    fn of(inner: &Inner, found: &Row, now: Time) -> Result<Option<Misplaced>, Fault> {
        let (row, class, rank_found): (i64, i32, i16) = (found.try_get(0)?, found.try_get(1)?, found.try_get(2)?);
        let Some(class) = inner.catalog.known_class(class as u32) else {
            return Ok(None);
        };
        let rule = inner.queues.rule(&class);
        let flags: i32 = found.try_get(3)?;
        let risen = (flags as u32 & flag::RISEN) >> flag::RISEN_SHIFT;
        let Some(priority) = Priority::from_level(-i64::from(rank_found) - i64::from(risen)) else {
            return Ok(None);
        };
        let place_found: i64 = found.try_get(4)?;
        let run_at = Time::from_micros(found.try_get(5)?);
        let ready_at: Option<i64> = found.try_get(6)?;
        let ready_from = match flags as u32 & flag::READY_IS_RUN {
            0 => ready_at.map_or(run_at, Time::from_micros),
            _ => run_at,
        };
        let gate: i16 = found.try_get(7)?;
        // What has come due may stand behind its gate until a claim opens it.
        if !matches!(gate, gate::READY | gate::KEY | gate::LATER | gate::RETRYING) {
            return Ok(None);
        }
        let level = rule.level(priority, ready_from, now);
        let rises_at = rule.rises_at(priority, ready_from, level).map(Time::as_micros);
        let served: Option<i64> = found.try_get(11)?;
        // Behind its key a task stands by itself.
        let served = served.filter(|_| gate == gate::READY);
        let wanted = Misplaced {
            row,
            gate,
            version: found.try_get(10)?,
            rank: rank(level),
            risen: risen_flag(priority, level) as i32,
            rises_at,
            place: place(deadline_of(place_found), rule.age(row, served)),
            scope: found.try_get::<_, Option<&str>>(9)?.map(Name::from),
        };
        let stands = (rank_found, found.try_get::<_, Option<i64>>(8)?, place_found);
        Ok((stands != (wanted.rank, wanted.rises_at, wanted.place)).then_some(wanted))
    }
}

/// How far a task has risen, as its flags keep it.
pub(super) fn risen_flag(priority: Priority, level: Priority) -> u32 {
    u32::try_from(level.level() - priority.level()).unwrap_or(0) << flag::RISEN_SHIFT
}

/// One bounded step. Answers when the next one has something to do; [`Time::EPOCH`] for at once.
pub(super) async fn step(inner: &Arc<Inner>, now: Time) -> Result<Option<Time>, Fault> {
    match walk(inner, now).await {
        Err(fault) if fault.is_contention() => Ok(Some(Time::EPOCH)),
        done => done,
    }
}

async fn walk(inner: &Arc<Inner>, now: Time) -> Result<Option<Time>, Fault> {
    let rules = inner.queues.rules();
    let (from, is_urgent, scope, key) = {
        let mut walk = inner.ageing.0.lock();
        if walk.rules != rules {
            *walk = Walk {
                rules: Arc::clone(&rules),
                scope: std::mem::take(&mut walk.scope),
                ..Walk::default()
            };
        }
        // Without settings of any queue no key ever had more than one turn.
        walk.is_past_keys |= !inner.queues.any();
        let has_keys = inner.queues.is_wide() || !walk.is_past_keys;
        let key = has_keys.then(|| walk.key.clone());
        (walk.row, walk.is_urgent(), walk.scope.clone(), key)
    };
    if rules.is_empty() && !is_urgent {
        return Ok(None);
    }
    let any_ages = rules.values().any(|rule| rule.ageing.is_some());
    if any_ages {
        let due = inner.pool.read(&DUE, &[(&now.as_micros(), Type::INT8)]).await?;
        mend(inner, &due, now).await?;
    }
    let next = inner.pool.read(&NEXT, &[(&from, Type::INT8)]).await?;
    mend(inner, &next, now).await?;
    let is_last = next.len() < WALKED as usize;
    let last: i64 = next.last().map_or(Ok(0), |row| row.try_get(0))?;
    let scope = forget(inner, scope).await?;
    let key = match key {
        Some(key) => Some(width::walk(inner, &key, now).await?),
        None => None,
    };
    let is_urgent = {
        let mut walk = inner.ageing.0.lock();
        if walk.rules == rules {
            walk.row = if is_last { 0 } else { last };
            walk.is_past_rows |= is_last;
            if let Some(key) = key {
                walk.is_past_keys |= key.is_empty();
                walk.key = key;
            }
        }
        walk.scope = scope;
        walk.is_urgent()
    };
    if is_urgent {
        return Ok(Some(Time::EPOCH));
    }
    if !any_ages {
        return Ok(None);
    }
    let first = inner.pool.read(FIRST_DUE, &[]).await?;
    let first: Option<i64> = first.first().map_or(Ok(None), |row| row.try_get(0))?;
    Ok(first.map(Time::from_micros))
}

/// Moves those that stand elsewhere than they should.
async fn mend(inner: &Arc<Inner>, found: &[Row], now: Time) -> Result<(), Fault> {
    let mut misplaced = Vec::new();
    for row in found {
        // Another node may have added it.
        inner
            .catalog
            .class(&inner.pool, row.try_get::<_, i32>(1)? as u32)
            .await?;
        misplaced.extend(Misplaced::of(inner, row, now)?);
    }
    if misplaced.is_empty() {
        return Ok(());
    }
    let scopes = misplaced.iter().filter_map(|row| row.scope.clone()).collect();
    let int8 = |f: fn(&Misplaced) -> Option<i64>| Value::Int8s(misplaced.iter().map(f).collect());
    let mut statements: Vec<Statement<'_>> = key::lock(&scopes).into_iter().collect();
    statements.push(Statement {
        sql: &MOVE,
        params: vec![
            int8(|m| Some(m.row)),
            Value::Int2s(misplaced.iter().map(|m| Some(m.gate)).collect()),
            int8(|m| Some(m.version)),
            Value::Int2s(misplaced.iter().map(|m| Some(m.rank)).collect()),
            Value::Int4s(misplaced.iter().map(|m| Some(m.risen)).collect()),
            int8(|m| m.rises_at),
            int8(|m| Some(m.place)),
        ],
    });
    statements.extend(key::settle(&scopes, &inner.key_order(), now));
    inner.pool.begin(Durability::Relaxed).await?.commit(&statements).await?;
    Ok(())
}

/// Forgets turns that nobody waits for; answers up to which key.
async fn forget(inner: &Arc<Inner>, from: String) -> Result<String, Fault> {
    let statement = Statement {
        sql: &FORGET,
        params: vec![Value::Text(Some(from.into()))],
    };
    let tx = inner.pool.begin(Durability::Relaxed).await?;
    let answers = tx.commit(&[statement]).await?;
    let last = answers.first().and_then(|rows| rows.first());
    let last: Option<String> = last.map_or(Ok(None), |row| row.try_get(0))?;
    Ok(last.unwrap_or_default())
}
