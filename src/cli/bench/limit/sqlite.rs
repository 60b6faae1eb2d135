//! What the disk and raw SQLite do here, with a transaction for every hundred rows.

use rusqlite::{Connection, params};

use super::{Limits, MODE};
use crate::cli::bench::Bench;
use crate::cli::bench::meter::{seconds_since, tick};
use crate::cli::bench::report::{Baseline, Figure, Spread};
use crate::cli::bench::scratch::{Disk, ScratchFile};
use crate::cli::bench::work::payload;

/// Rows in one transaction.
const BATCH: u64 = 100;
/// Rows of one run, at most.
const ROWS_MAX: u64 = 50_000;
/// Blocks appended in one run, at most.
const APPENDS_MAX: u64 = 3_000;

const SCHEMA: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -65536;
CREATE TABLE job(
    id BLOB PRIMARY KEY, queue TEXT NOT NULL, handler TEXT NOT NULL, state INTEGER NOT NULL, priority INTEGER NOT NULL,
    attempt INTEGER NOT NULL, attempts_max INTEGER NOT NULL, due INTEGER NOT NULL, lease_until INTEGER, holder TEXT,
    created INTEGER NOT NULL, payload TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX job_ready ON job(queue, state, priority, due);
CREATE INDEX job_lease ON job(state, lease_until);";
const INSERT: &str = "INSERT INTO job VALUES (?1, 'default', 'noop', 0, 3, 0, 3, ?2, NULL, NULL, ?2, ?3)";
const CLAIM: &str = "UPDATE job SET state = 1, attempt = attempt + 1, lease_until = ?1, holder = 'node' WHERE id IN
    (SELECT id FROM job WHERE queue = 'default' AND state = 0 ORDER BY priority, due LIMIT ?2) RETURNING id, payload";
const DELETE: &str = "DELETE FROM job WHERE id = ?1";

/// Names of the figures that others are compared with.
const INSERT_METRIC: &str = "raw SQLite insert";
const CLAIM_DELETE_METRIC: &str = "raw SQLite claim + delete";
const LIFE_CYCLE_METRIC: &str = "raw SQLite life cycle, 1 transaction";

/// Measures the raw store in a file, and the disk beside it.
pub(super) fn run(bench: &mut Bench, scratch: &ScratchFile) -> anyhow::Result<Limits> {
    let n = (bench.tasks.min(ROWS_MAX) / BATCH).max(1) * BATCH;
    let meter = bench.meter();
    let mut steps = Vec::new();
    let mut one = Vec::new();
    for _ in 0..bench.runs {
        steps.push(three_transactions(scratch, n, bench.payload)?);
        one.push(one_transaction(scratch, n, bench.payload)?);
    }
    let rate = |seconds: fn(&Steps) -> f64| -> Vec<f64> { steps.iter().map(|s| n as f64 / seconds(s)).collect() };
    let insert = rate(|s| s.insert);
    let claim_delete = rate(|s| s.claim + s.delete);
    let figures = [
        (INSERT_METRIC, insert.clone()),
        ("raw SQLite claim", rate(|s| s.claim)),
        ("raw SQLite delete", rate(|s| s.delete)),
        (CLAIM_DELETE_METRIC, claim_delete.clone()),
        (
            "raw SQLite life cycle, 3 transactions",
            rate(|s| s.insert + s.claim + s.delete),
        ),
        (LIFE_CYCLE_METRIC, one.clone()),
    ];
    let note = format!(
        "one connection, batches of {BATCH}, 12 columns, 2 indexes, payload {} bytes",
        bench.payload
    );
    for (metric, runs) in figures {
        let figure = Figure::new(MODE, metric, "rows/s", &runs, n).durability("wal, synchronous=full");
        bench.report.add(figure.machine(&meter).note(note.as_str()))?;
    }
    measure_disk(bench, scratch)?;
    Ok(Limits {
        insert: Baseline::new(INSERT_METRIC, &insert),
        claim_delete: Baseline::new(CLAIM_DELETE_METRIC, &claim_delete),
        life_cycle: Baseline::new(LIFE_CYCLE_METRIC, &one),
    })
}

fn measure_disk(bench: &mut Bench, scratch: &ScratchFile) -> anyhow::Result<()> {
    let appends = bench.tasks.clamp(10, APPENDS_MAX);
    let (mut rates, mut p50, mut p99) = (Vec::new(), Vec::new(), Vec::new());
    let meter = bench.meter();
    for _ in 0..bench.runs {
        let mut disk = Disk::at(scratch.beside("disk")?)?;
        let mut spread = Spread::new()?;
        let start = tick();
        for _ in 0..appends {
            spread.add(disk.append()?);
        }
        rates.push(appends as f64 / seconds_since(start));
        p50.push(spread.ms(0.5));
        p99.push(spread.ms(0.99));
    }
    let figures = [
        ("4 KiB append + fdatasync", "per s", rates),
        ("4 KiB append + fdatasync p50", "ms", p50),
        ("4 KiB append + fdatasync p99", "ms", p99),
    ];
    for (metric, unit, runs) in figures {
        bench.report.add(
            Figure::new(MODE, metric, unit, &runs, appends)
                .durability("fdatasync")
                .machine(&meter),
        )?;
    }
    Ok(())
}

/// Seconds that each step took for all rows.
struct Steps {
    insert: f64,
    claim: f64,
    delete: f64,
}

fn fresh(scratch: &ScratchFile) -> anyhow::Result<Connection> {
    scratch.clear();
    let db = Connection::open(scratch.path())?;
    db.execute_batch(SCHEMA)?;
    Ok(db)
}

/// An id that grows with time in its first half and is spread in its second, as a UUIDv7 is.
fn id(row: u64) -> [u8; 16] {
    let high = u128::from(1_700_000_000_000 + row) << 64;
    (high | u128::from(row.wrapping_mul(0xD134_2543_DE82_EF95))).to_be_bytes()
}

/// One transaction round what `step` does.
fn transaction<T>(db: &Connection, step: impl FnOnce() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    db.execute_batch("BEGIN IMMEDIATE")?;
    let done = step()?;
    db.execute_batch("COMMIT")?;
    Ok(done)
}

fn insert(statement: &mut rusqlite::Statement<'_>, from: u64, payload_bytes: usize) -> rusqlite::Result<()> {
    for row in from..from + BATCH {
        statement.execute(params![id(row), row as i64, payload(row, payload_bytes)])?;
    }
    Ok(())
}

fn claim(statement: &mut rusqlite::Statement<'_>) -> rusqlite::Result<Vec<[u8; 16]>> {
    let rows = statement.query_map(params![1, BATCH as i64], |row| {
        // The payload is read as a worker would.
        let _payload: String = row.get(1)?;
        row.get(0)
    })?;
    rows.collect()
}

fn delete(statement: &mut rusqlite::Statement<'_>, ids: &[[u8; 16]]) -> rusqlite::Result<()> {
    ids.iter().try_for_each(|id| statement.execute([id]).map(drop))
}

fn three_transactions(scratch: &ScratchFile, n: u64, payload_bytes: usize) -> anyhow::Result<Steps> {
    let db = fresh(scratch)?;
    let (mut inserts, mut claims, mut deletes) = (db.prepare(INSERT)?, db.prepare(CLAIM)?, db.prepare(DELETE)?);
    let mut steps = Steps {
        insert: 0.0,
        claim: 0.0,
        delete: 0.0,
    };
    let start = tick();
    for from in (0..n).step_by(BATCH as usize) {
        transaction(&db, || insert(&mut inserts, from, payload_bytes))?;
    }
    steps.insert = seconds_since(start);
    for _ in 0..n / BATCH {
        let start = tick();
        let ids = transaction(&db, || claim(&mut claims))?;
        steps.claim += seconds_since(start);
        let start = tick();
        transaction(&db, || delete(&mut deletes, &ids))?;
        steps.delete += seconds_since(start);
    }
    Ok(steps)
}

/// Each transaction inserts a batch, claims a batch, and deletes what the one before claimed.
fn one_transaction(scratch: &ScratchFile, n: u64, payload_bytes: usize) -> anyhow::Result<f64> {
    let db = fresh(scratch)?;
    let (mut inserts, mut claims, mut deletes) = (db.prepare(INSERT)?, db.prepare(CLAIM)?, db.prepare(DELETE)?);
    let mut claimed = Vec::new();
    let start = tick();
    for from in (0..n).step_by(BATCH as usize) {
        claimed = transaction(&db, || {
            insert(&mut inserts, from, payload_bytes)?;
            delete(&mut deletes, &claimed)?;
            claim(&mut claims)
        })?;
    }
    transaction(&db, || delete(&mut deletes, &claimed))?;
    Ok(n as f64 / seconds_since(start))
}
