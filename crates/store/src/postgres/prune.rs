//! Removing what is past its retention.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use pensum_core::store::{Pruned, Retention};
use pensum_core::{State, Time};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::counts::Cells;
use super::error::Fault;
use super::pool::{Durability, Pool, Statement, Tx, Value};
use super::row::{Cell, damaged, flag, mark};
use super::step::tally_statement;

/// How many finished tasks one pass looks at, at least. There is no index on the time of the end, which every finish
/// would pay for; passes go round the table instead, oldest task first.
const LOOK_MAX: usize = 20_000;

/// A row to erase: its number, its class, and the marks that say where else it has left something.
pub(super) type Trace = (i64, u32, u32);

/// The latest ends that are past their retention.
struct Cutoff {
    completed: i64,
    failed: i64,
}

impl Cutoff {
    fn new(retention: Retention, now: Time) -> Cutoff {
        let before = |keep: Duration| {
            let keep = i64::try_from(keep.as_micros()).unwrap_or(i64::MAX);
            now.as_micros().saturating_sub(keep)
        };
        Cutoff {
            completed: before(retention.completed),
            failed: before(retention.failed),
        }
    }

    /// True of an outcome `o` that is old enough, in SQL that takes both cutoffs as `$1` and `$2`.
    fn is_old() -> String {
        format!(
            "o.finished_at <= CASE o.state WHEN {} THEN $2 ELSE $1 END",
            State::Failed.code()
        )
    }
}

/// What a look along the table found.
struct Look {
    old: Vec<i64>,
    /// Where it stopped; `None` at the end, or where the rest is too young.
    last: Option<i64>,
}

/// Removes finished tasks that are past their retention, from where the last pass of this store stopped.
pub(super) async fn prune(
    pool: &Arc<Pool>,
    cursor: &AtomicI64,
    retention: Retention,
    now: Time,
    limit: usize,
) -> Result<Pruned, Fault> {
    forget_keys(pool, now, LOOK_MAX.max(limit)).await?;
    let cutoff = Cutoff::new(retention, now);
    let started_at = cursor.load(Ordering::Relaxed);
    let Look { mut old, last } = look(pool, started_at, i64::MAX, &cutoff, limit).await?;
    // Whoever asks again until nothing is left must not go round for ever.
    let more = last.is_some();
    let mut stopped = last;
    if stopped.is_none() && started_at > 0 {
        let rest = look(pool, 0, started_at, &cutoff, limit - old.len()).await?;
        old.extend(rest.old);
        stopped = rest.last;
    }
    let removed = remove(pool, &old, &cutoff).await?;
    cursor.store(stopped.unwrap_or(0), Ordering::Relaxed);
    Ok(Pruned { removed, more })
}

/// Removes keys that nobody remembers any more, at most `limit` of each kind: those of a whole day come due in a day,
/// and all at once would hold everything else up.
async fn forget_keys(pool: &Arc<Pool>, now: Time, limit: usize) -> Result<(), Fault> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let params = || vec![Value::Int8(Some(now.as_micros())), Value::Int8(Some(limit))];
    let statements = [
        "DELETE FROM pensum.unique_key WHERE (namespace, handler, key) IN
         (SELECT namespace, handler, key FROM pensum.unique_key WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2
          FOR UPDATE SKIP LOCKED)",
        "DELETE FROM pensum.idempotency WHERE (namespace, key) IN
         (SELECT namespace, key FROM pensum.idempotency WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2
          FOR UPDATE SKIP LOCKED)",
    ]
    .map(|sql| Statement { sql, params: params() });
    pool.begin(Durability::Relaxed).await?.commit(&statements).await?;
    Ok(())
}

/// True when an unfinished task depends on the outcome `o`. A scalar, so that it is looked up row by row.
const IS_NEEDED: &str = "(SELECT 1 FROM pensum.dependency d JOIN pensum.live l ON l.row = d.dependent
                          WHERE d.prerequisite = o.row LIMIT 1) IS NOT NULL";

/// Collects what may go among the rows in `(after, until]`, at most `limit`.
async fn look(pool: &Arc<Pool>, after: i64, until: i64, cutoff: &Cutoff, limit: usize) -> Result<Look, Fault> {
    let most = LOOK_MAX.max(limit);
    let sql = format!(
        "WITH o AS MATERIALIZED (
           SELECT row, state, finished_at FROM pensum.outcome WHERE row > $3 AND row <= $4 ORDER BY row LIMIT $5),
         old AS MATERIALIZED (
           SELECT row FROM (SELECT * FROM o ORDER BY row) o WHERE {} AND NOT {IS_NEEDED} LIMIT $6)
         SELECT ARRAY(SELECT row FROM old ORDER BY row), max(o.row), count(*),
                (SELECT t.created_at FROM pensum.task t WHERE t.row = max(o.row)) FROM o",
        Cutoff::is_old()
    );
    let [most_rows, limit_rows] = [most, limit].map(|n| i64::try_from(n).unwrap_or(i64::MAX));
    let rows = pool
        .read(
            &sql,
            &[
                (&cutoff.completed, Type::INT8),
                (&cutoff.failed, Type::INT8),
                (&after, Type::INT8),
                (&until, Type::INT8),
                (&most_rows, Type::INT8),
                (&limit_rows, Type::INT8),
            ],
        )
        .await?;
    let Some(row) = rows.first() else {
        return Ok(Look {
            old: Vec::new(),
            last: None,
        });
    };
    let old: Vec<i64> = row.try_get(0)?;
    if old.len() >= limit {
        let last = old.last().copied();
        return Ok(Look { old, last });
    }
    let looked: i64 = row.try_get(2)?;
    // Rows stand in the order of their enqueue: behind one that came too lately to be past any retention, nothing is.
    let youngest: Option<i64> = row.try_get(3)?;
    let young = youngest.is_some_and(|at| at > cutoff.completed.max(cutoff.failed));
    let last = if looked < most_rows || young {
        None
    } else {
        row.try_get(1)?
    };
    Ok(Look { old, last })
}

/// Removes those of the rows that nobody has touched or come to need meanwhile; answers how many.
async fn remove(pool: &Arc<Pool>, rows: &[i64], cutoff: &Cutoff) -> Result<u64, Fault> {
    if rows.is_empty() {
        return Ok(0);
    }
    let lock = format!(
        "SELECT o.row, t.class, o.flags, o.state FROM pensum.outcome o JOIN pensum.task t ON t.row = o.row
         WHERE o.row = ANY($3) AND {} ORDER BY o.row FOR UPDATE OF o SKIP LOCKED",
        Cutoff::is_old()
    );
    // Asked anew once the rows are locked: who adds a dependant locks them too, so from now on none comes.
    let needed = "SELECT d.prerequisite FROM pensum.dependency d JOIN pensum.live l ON l.row = d.dependent
                  WHERE d.prerequisite = ANY($1)";
    let all = || Value::Int8s(rows.iter().copied().map(Some).collect());
    let mut tx = pool.begin(Durability::Acknowledged).await?;
    let answers = tx
        .pipeline(&[
            // One node at a time: two that remove a task and one that depended on it would wait for each other.
            Statement {
                sql: "SELECT pg_advisory_xact_lock(hashtextextended('pensum.outcome', 0))",
                params: Vec::new(),
            },
            Statement {
                sql: &lock,
                params: vec![
                    Value::Int8(Some(cutoff.completed)),
                    Value::Int8(Some(cutoff.failed)),
                    all(),
                ],
            },
            Statement {
                sql: needed,
                params: vec![all()],
            },
        ])
        .await?;
    let mut answers = answers.into_iter().skip(1);
    let locked = answers.next().unwrap_or_default();
    let needed = answers.next().unwrap_or_default();
    let needed: HashSet<i64> = needed.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let mut traces: Vec<Trace> = Vec::with_capacity(locked.len());
    let mut tallies = Cells::new();
    for row in &locked {
        let (trace, state, by_attempt) = read_locked(row)?;
        if needed.contains(&trace.0) {
            continue;
        }
        *tallies.entry((trace.1, Cell::of_end(state))).or_default() -= 1;
        *tallies.entry((trace.1, Cell::Executions)).or_default() -= i64::from(by_attempt);
        traces.push(trace);
    }
    for (class, attempts) in erase(&mut tx, &traces).await? {
        *tallies.entry((class, Cell::Executions)).or_default() -= attempts;
    }
    tallies.retain(|_, n| *n != 0);
    tx.commit(&[tally_statement(&tallies)]).await?;
    Ok(traces.len() as u64)
}

/// A locked row of [`remove`], how the task ended, and whether an attempt ended with it.
fn read_locked(row: &Row) -> Result<(Trace, State, bool), Fault> {
    let (number, class): (i64, i32) = (row.try_get(0)?, row.try_get(1)?);
    let flags = row.try_get::<_, i32>(2)? as u32;
    let state = State::from_code(i64::from(row.try_get::<_, i16>(3)?)).ok_or_else(|| damaged(number, "state"))?;
    let by_attempt = flags >> flag::STATUS_SHIFT & 7 != 0;
    Ok(((number, class as u32, flags & mark::ALL), state, by_attempt))
}

/// Removes every trace of rows, whether they ended or not. Their counts are the caller's to change: what comes back is
/// how many rows of attempts went, by class.
pub(super) async fn erase(tx: &mut Tx, traces: &[Trace]) -> Result<BTreeMap<u32, i64>, Fault> {
    let rows_with = |marks: u32| -> Vec<Option<i64>> {
        let marked = traces.iter().filter(|(.., m)| marks == 0 || m & marks != 0);
        marked.map(|(row, ..)| Some(*row)).collect()
    };
    let tables: [(u32, &str); 13] = [
        (
            mark::EXECUTIONS,
            "DELETE FROM pensum.execution WHERE row = ANY($1) RETURNING row",
        ),
        (0, "DELETE FROM pensum.outcome WHERE row = ANY($1)"),
        (0, "DELETE FROM pensum.live WHERE row = ANY($1)"),
        (0, "DELETE FROM pensum.task WHERE row = ANY($1)"),
        (0, "DELETE FROM pensum.dependency WHERE prerequisite = ANY($1)"),
        (mark::DEPENDS, "DELETE FROM pensum.dependency WHERE dependent = ANY($1)"),
        (mark::CHECKPOINT, "DELETE FROM pensum.checkpoint WHERE row = ANY($1)"),
        (mark::INBOX, "DELETE FROM pensum.inbox WHERE row = ANY($1)"),
        (mark::STEPS, "DELETE FROM pensum.step WHERE row = ANY($1)"),
        (mark::UNIQUE, "DELETE FROM pensum.unique_key WHERE row = ANY($1)"),
        (mark::LOGS, "DELETE FROM pensum.log WHERE row = ANY($1)"),
        (mark::EVENTS, "DELETE FROM pensum.event WHERE row = ANY($1)"),
        (mark::TAGS, "DELETE FROM pensum.tag WHERE row = ANY($1)"),
    ];
    let mut statements = Vec::with_capacity(tables.len());
    for (marks, sql) in tables {
        let rows = rows_with(marks);
        if !rows.is_empty() {
            let params = vec![Value::Int8s(rows)];
            statements.push(Statement { sql, params });
        }
    }
    let classes: BTreeMap<i64, u32> = traces.iter().map(|(row, class, _)| (*row, *class)).collect();
    let mut attempts = BTreeMap::new();
    // Only the first statement answers rows.
    for gone in tx.pipeline(&statements).await?.iter().flatten() {
        if let Some(class) = classes.get(&gone.try_get::<_, i64>(0)?) {
            *attempts.entry(*class).or_default() += 1;
        }
    }
    Ok(attempts)
}
