//! Counts by queue and status, from the counters that every writer keeps.

use std::collections::BTreeMap;
use std::sync::Arc;

use pensum_core::query::StatusCounts;
use pensum_core::{Counts, Time};
use tokio_postgres::types::Type;

use super::error::Fault;
use super::names::Catalog;
use super::pool::{Durability, Pool, Tx};
use super::row::{Cell, gate};

/// How many appended changes one fold takes: some 200 ms.
const FOLD_MAX: usize = 100_000;

/// How many tasks of a class count in a cell.
pub(super) type Cells = BTreeMap<(u32, Cell), i64>;

impl Cell {
    fn from_code(code: i16) -> Option<Cell> {
        const ALL: [Cell; 10] = [
            Cell::Ready,
            Cell::Dependencies,
            Cell::Later,
            Cell::Retrying,
            Cell::Paused,
            Cell::Running,
            Cell::Completed,
            Cell::Failed,
            Cell::Cancelled,
            Cell::Executions,
        ];
        ALL.into_iter().find(|cell| *cell as i16 == code)
    }
}

/// Counts of a namespace at `now`.
pub(super) async fn counts(pool: &Arc<Pool>, catalog: &Catalog, namespace: &str, now: Time) -> Result<Counts, Fault> {
    // What came due since its gate was last moved counts as ready.
    let sql = format!(
        "WITH due AS MATERIALIZED (
           SELECT l.class, l.gate, count(*) AS n FROM pensum.live l
           WHERE l.gate IN ({later}, {retrying}) AND l.due_at <= $1 GROUP BY l.class, l.gate)
         SELECT class, cell, sum(n)::bigint FROM (
           SELECT class, cell, n FROM pensum.counter
           UNION ALL SELECT class, cell, n FROM pensum.tally
           UNION ALL SELECT class, {ready}::smallint, n FROM due
           UNION ALL SELECT class, CASE gate WHEN {later} THEN {from_later} ELSE {from_retrying} END::smallint, -n FROM due
         ) AS changes GROUP BY class, cell",
        later = gate::LATER,
        retrying = gate::RETRYING,
        ready = Cell::Ready as i16,
        from_later = Cell::Later as i16,
        from_retrying = Cell::Retrying as i16,
    );
    let rows = pool.read(&sql, &[(&now.as_micros(), Type::INT8)]).await?;
    let mut queues: BTreeMap<String, BTreeMap<Cell, i64>> = BTreeMap::new();
    for row in &rows {
        let ((class, cell), n) = read_cell(row)?;
        let class = catalog.class(pool, class).await?;
        if *class.namespace == *namespace {
            let cells = queues.entry(class.queue.to_string()).or_default();
            *cells.entry(cell).or_default() += n;
        }
    }
    // Attempts count where the task was when they ended, which may be another queue than where it is removed.
    let executions: i64 = queues.values().filter_map(|cells| cells.get(&Cell::Executions)).sum();
    let mut counts = Counts {
        executions: executions.max(0) as u64,
        ..Counts::default()
    };
    for (queue, cells) in queues {
        let of = |cell: Cell| cells.get(&cell).copied().unwrap_or(0).max(0) as u64;
        counts.dead_letters += of(Cell::Failed);
        let found = StatusCounts {
            pending: of(Cell::Dependencies) + of(Cell::Later),
            ready: of(Cell::Ready),
            running: of(Cell::Running),
            completed: of(Cell::Completed),
            failed: of(Cell::Failed),
            cancelled: of(Cell::Cancelled),
            paused: of(Cell::Paused),
            retrying: of(Cell::Retrying),
        };
        if found.sum() > 0 {
            counts.queues.insert(queue, found);
        }
    }
    Ok(counts)
}

pub(super) fn read_cell(row: &tokio_postgres::Row) -> Result<((u32, Cell), i64), Fault> {
    let class: i32 = row.try_get(0)?;
    let cell = Cell::from_code(row.try_get(1)?)
        .ok_or_else(|| Fault::Damaged(format!("class {class} counts in an unknown cell")))?;
    Ok(((class as u32, cell), row.try_get(2)?))
}

/// All counters, as this transaction sees them.
pub(super) async fn counters(tx: &mut Tx) -> Result<Cells, Fault> {
    let sql = "SELECT class, cell, sum(n)::bigint FROM (
                 SELECT class, cell, n FROM pensum.counter UNION ALL SELECT class, cell, n FROM pensum.tally
               ) AS changes GROUP BY class, cell";
    tx.query(sql, &[]).await?.iter().map(read_cell).collect()
}

/// Moves what writers appended to the tally into the counters. A change is in one or the other at every moment.
pub(super) async fn fold(pool: &Arc<Pool>) -> Result<(), Fault> {
    // A fold that a power cut takes back leaves the tally as it was.
    let mut tx = pool.begin(Durability::Relaxed).await?;
    // One node at a time: two would wait for each other's rows. The table's name, with its schema, names the lock.
    let lock = "SELECT pg_try_advisory_xact_lock(hashtextextended('pensum.tally', 0))";
    let rows = tx.query(lock, &[]).await?;
    let mine = match rows.first() {
        Some(row) => row.try_get(0)?,
        None => false,
    };
    if !mine {
        return tx.rollback().await;
    }
    // Only a fold removes rows here, and none is ever changed, so places stay true.
    let sql = format!(
        "WITH moved AS (
           DELETE FROM pensum.tally WHERE ctid = ANY(ARRAY(SELECT ctid FROM pensum.tally LIMIT {FOLD_MAX}))
           RETURNING class, cell, n)
         INSERT INTO pensum.counter(class, cell, n)
         SELECT class, cell, sum(n)::bigint FROM moved GROUP BY class, cell HAVING sum(n) <> 0 ORDER BY class, cell
         ON CONFLICT (class, cell) DO UPDATE SET n = counter.n + EXCLUDED.n"
    );
    tx.query(&sql, &[]).await?;
    tx.commit(&[]).await?;
    Ok(())
}
