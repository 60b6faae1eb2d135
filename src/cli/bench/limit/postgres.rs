//! What raw PostgreSQL does here: insert by `unnest`, claim with `SKIP LOCKED`, delete by key, on one connection and on
//! several, with small and large batches.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};

use super::{Limits, MODE};
use crate::cli::bench::Bench;
use crate::cli::bench::database::Schema;
use crate::cli::bench::meter::{seconds_since, tick};
use crate::cli::bench::report::{Baseline, Figure, Spread};
use crate::cli::bench::work::payload;

/// Rows in one transaction.
const BATCHES: [u64; 2] = [100, 1_000];
const CONNECTIONS: [u64; 2] = [1, 4];
/// Rows of one run, at most.
const ROWS_MAX: u64 = 50_000;
/// Commits of one row in one run, at most.
const COMMITS_MAX: u64 = 1_000;
const INSERT: &str = "INSERT INTO job(id, payload) SELECT * FROM unnest($1::bigint[], $2::text[])";
/// By the rows' places: by id, a thousand rows took half as long again (52,000 instead of 79,000 rows/s).
const CLAIM: &str = "UPDATE job SET lease = 1 WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM job WHERE lease IS NULL ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED)) RETURNING id, payload";
const DELETE: &str = "DELETE FROM job WHERE id = ANY($1::bigint[])";

/// How the work is cut up.
#[derive(Clone, Copy)]
struct Shape {
    connections: u64,
    /// Rows in one transaction.
    batch: u64,
    /// Rows in all, the same for each connection.
    rows: u64,
    payload: usize,
}

impl Shape {
    fn all(tasks: u64, payload: usize) -> Vec<Shape> {
        let mut shapes = Vec::new();
        for connections in CONNECTIONS {
            for batch in BATCHES {
                let round = connections * batch;
                let rows = (tasks.min(ROWS_MAX) / round).max(1) * round;
                shapes.push(Shape {
                    connections,
                    batch,
                    rows,
                    payload,
                });
            }
        }
        shapes
    }

    /// The first rows of a connection's batches.
    fn batches_of(self, connection: u64) -> impl Iterator<Item = u64> {
        let share = self.rows / self.connections;
        (connection * share..(connection + 1) * share).step_by(self.batch as usize)
    }

    fn metric(self, what: &str) -> String {
        let connections = if self.connections == 1 {
            "connection"
        } else {
            "connections"
        };
        format!(
            "raw PostgreSQL {what}, {} {connections} × {}",
            self.connections, self.batch
        )
    }
}

/// Rates of every run with one shape.
#[derive(Default)]
struct Rates {
    insert: Vec<f64>,
    claim: Vec<f64>,
    delete: Vec<f64>,
    claim_delete: Vec<f64>,
    three: Vec<f64>,
    one: Vec<f64>,
}

/// Measures the raw store in a schema. What others are compared with is the fastest shape of each.
pub(super) async fn run(bench: &mut Bench, schema: &Schema) -> anyhow::Result<Limits> {
    let mut best: [Option<Baseline>; 3] = [None, None, None];
    for shape in Shape::all(bench.tasks, bench.payload) {
        let meter = bench.meter();
        let mut rates = Rates::default();
        for _ in 0..bench.runs {
            three_transactions(schema, shape, &mut rates).await.map_err(explained)?;
            rates.one.push(one_transaction(schema, shape).await.map_err(explained)?);
        }
        let figures = [
            ("insert", rates.insert, Some(0)),
            ("claim", rates.claim, None),
            ("delete", rates.delete, None),
            ("claim + delete", rates.claim_delete, Some(1)),
            ("life cycle, 3 transactions", rates.three, Some(2)),
            ("life cycle, 1 transaction", rates.one, Some(2)),
        ];
        let note = format!(
            "3 columns, a partial index of what is ready, payload {} bytes; claims commit without the disk, but for those \
             of the life cycle in 1 transaction",
            bench.payload
        );
        for (what, runs, baseline) in figures {
            if let Some(index) = baseline {
                let baseline = Baseline::new(shape.metric(what), &runs);
                if best[index].as_ref().is_none_or(|best| baseline.beats(best)) {
                    best[index] = Some(baseline);
                }
            }
            let figure = Figure::new(MODE, shape.metric(what), "rows/s", &runs, shape.rows);
            bench.report.add(figure.machine(&meter).note(note.as_str()))?;
        }
    }
    commits(bench, schema).await?;
    schema.clear().await?;
    match best {
        [Some(insert), Some(claim_delete), Some(life_cycle)] => Ok(Limits {
            insert,
            claim_delete,
            life_cycle,
        }),
        _ => anyhow::bail!("nothing was measured"),
    }
}

/// A statement that was prepared and is gone, or is there already, belongs to another connection of a pooler.
fn explained(error: anyhow::Error) -> anyhow::Error {
    let database_error = error.downcast_ref::<tokio_postgres::Error>();
    let pooled = [SqlState::INVALID_SQL_STATEMENT_NAME, SqlState::DUPLICATE_PSTATEMENT];
    match database_error.and_then(tokio_postgres::Error::code) {
        Some(code) if pooled.contains(code) => error.context(
            "the baseline prepares its statements, which a pooler in transaction mode mixes up; name the server itself",
        ),
        _ => error,
    }
}

async fn commits(bench: &mut Bench, schema: &Schema) -> anyhow::Result<()> {
    let count = bench.tasks.clamp(10, COMMITS_MAX);
    let (mut rates, mut p50, mut p99) = (Vec::new(), Vec::new(), Vec::new());
    let meter = bench.meter();
    for _ in 0..bench.runs {
        let mut row = OneRow::at(schema).await?;
        let mut spread = Spread::new()?;
        let start = tick();
        for _ in 0..count {
            spread.add(row.commit().await?);
        }
        rates.push(count as f64 / seconds_since(start));
        p50.push(spread.ms(0.5));
        p99.push(spread.ms(0.99));
    }
    let metric = "raw PostgreSQL commit of one row";
    let figures = [
        (metric.to_owned(), "per s", rates),
        (format!("{metric} p50"), "ms", p50),
        (format!("{metric} p99"), "ms", p99),
    ];
    for (metric, unit, runs) in figures {
        let figure = Figure::new(MODE, metric, unit, &runs, count);
        bench.report.add(figure.machine(&meter).note("one connection"))?;
    }
    Ok(())
}

type Param<'a> = &'a (dyn ToSql + Sync);

/// A connection with its statements.
struct Worker {
    client: Client,
    insert: Statement,
    claim: Statement,
    delete: Statement,
}

impl Worker {
    async fn connect(schema: &Schema) -> anyhow::Result<Worker> {
        let client = schema.connect().await?;
        client
            .batch_execute(&format!("SET search_path = \"{}\"", schema.name()))
            .await?;
        Ok(Worker {
            insert: client.prepare(INSERT).await?,
            claim: client.prepare(CLAIM).await?,
            delete: client.prepare(DELETE).await?,
            client,
        })
    }

    async fn insert(&self, from: u64, shape: Shape) -> anyhow::Result<()> {
        let (ids, payloads) = rows(from, shape);
        self.client.execute(&self.insert, &[&ids, &payloads]).await?;
        Ok(())
    }

    /// One round trip, and no wait for the disk: a claim that is lost is made again.
    async fn claim(&self, batch: u64) -> anyhow::Result<Vec<i64>> {
        let claim: [Param; 1] = [&(batch as i64)];
        let (begun, rows, committed) = tokio::join!(
            biased;
            self.client.batch_execute("BEGIN; SET LOCAL synchronous_commit = off"),
            self.client.query(&self.claim, &claim),
            self.client.batch_execute("COMMIT"),
        );
        begun?;
        let ids = read(&rows?)?;
        committed?;
        Ok(ids)
    }

    async fn delete(&self, ids: &[i64]) -> anyhow::Result<()> {
        let deleted = self.client.execute(&self.delete, &[&ids]).await?;
        ensure!(
            deleted as usize == ids.len(),
            "{deleted} of {} rows were deleted",
            ids.len()
        );
        Ok(())
    }

    /// One transaction and one round trip: inserts a batch, deletes what was claimed before, and claims a batch.
    async fn turn(&self, from: u64, shape: Shape, before: &[i64]) -> anyhow::Result<Vec<i64>> {
        let (ids, payloads) = rows(from, shape);
        let insert: [Param; 2] = [&ids, &payloads];
        let delete: [Param; 1] = [&before];
        let claim: [Param; 1] = [&(shape.batch as i64)];
        let (begun, inserted, deleted, claimed, committed) = tokio::join!(
            biased;
            self.client.batch_execute("BEGIN"),
            self.client.execute(&self.insert, &insert),
            self.client.execute(&self.delete, &delete),
            self.client.query(&self.claim, &claim),
            self.client.batch_execute("COMMIT"),
        );
        begun?;
        inserted?;
        deleted?;
        let ids = read(&claimed?)?;
        committed?;
        Ok(ids)
    }
}

fn rows(from: u64, shape: Shape) -> (Vec<i64>, Vec<String>) {
    let numbers = from..from + shape.batch;
    let payloads = numbers.clone().map(|row| payload(row, shape.payload)).collect();
    (numbers.map(|row| row as i64).collect(), payloads)
}

/// The ids of claimed rows, whose payloads are read as a worker would.
fn read(rows: &[Row]) -> anyhow::Result<Vec<i64>> {
    let id = |row: &Row| {
        let _payload: String = row.try_get(1)?;
        Ok(row.try_get(0)?)
    };
    rows.iter().map(id).collect()
}

/// A new table, and a worker for each connection.
async fn fresh(schema: &Schema, shape: Shape) -> anyhow::Result<Vec<Arc<Worker>>> {
    schema.clear().await?;
    let name = schema.name();
    let sql = format!(
        "CREATE SCHEMA \"{name}\"; SET search_path = \"{name}\";
         CREATE TABLE job(id bigint PRIMARY KEY, lease bigint, payload text NOT NULL);
         CREATE INDEX job_ready ON job(id) WHERE lease IS NULL"
    );
    schema.connect().await?.batch_execute(&sql).await?;
    let mut workers = Vec::new();
    for _ in 0..shape.connections {
        workers.push(Arc::new(Worker::connect(schema).await?));
    }
    Ok(workers)
}

/// Inserts all rows, then claims and deletes them batch by batch.
async fn three_transactions(schema: &Schema, shape: Shape, rates: &mut Rates) -> anyhow::Result<()> {
    let workers = fresh(schema, shape).await?;
    let n = shape.rows as f64;
    let start = tick();
    let mut inserting = JoinSet::new();
    for (connection, worker) in workers.iter().cloned().enumerate() {
        inserting.spawn(async move {
            for from in shape.batches_of(connection as u64) {
                worker.insert(from, shape).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = inserting.join_next().await {
        done??;
    }
    let insert = seconds_since(start);

    let start = tick();
    let mut emptying = JoinSet::new();
    for worker in workers {
        emptying.spawn(async move { empty(&worker, shape.batch).await });
    }
    let (mut claim, mut delete, mut rows) = (0.0, 0.0, 0);
    while let Some(done) = emptying.join_next().await {
        let (claimed, deleted, count) = done??;
        claim += claimed;
        delete += deleted;
        rows += count;
    }
    ensure!(rows == shape.rows, "{rows} of {} rows were claimed", shape.rows);
    let claim_delete = seconds_since(start);
    // Connections claim at the same time: their seconds, divided by how many they are, are those of the clock.
    let connections = shape.connections as f64;
    rates.insert.push(n / insert);
    rates.claim.push(n * connections / claim);
    rates.delete.push(n * connections / delete);
    rates.claim_delete.push(n / claim_delete);
    rates.three.push(n / (insert + claim_delete));
    Ok(())
}

/// Claims and deletes until nothing is left: seconds for claims, seconds for deletes, rows.
async fn empty(worker: &Worker, batch: u64) -> anyhow::Result<(f64, f64, u64)> {
    let (mut claim, mut delete, mut rows) = (0.0, 0.0, 0);
    loop {
        let start = tick();
        let ids = worker.claim(batch).await?;
        claim += seconds_since(start);
        if ids.is_empty() {
            return Ok((claim, delete, rows));
        }
        let start = tick();
        worker.delete(&ids).await?;
        delete += seconds_since(start);
        rows += ids.len() as u64;
    }
}

/// Each transaction inserts a batch, claims a batch, and deletes what the one before claimed.
async fn one_transaction(schema: &Schema, shape: Shape) -> anyhow::Result<f64> {
    let workers = fresh(schema, shape).await?;
    let start = tick();
    let mut turning = JoinSet::new();
    for (connection, worker) in workers.into_iter().enumerate() {
        turning.spawn(async move {
            let mut claimed = Vec::new();
            for from in shape.batches_of(connection as u64) {
                claimed = worker.turn(from, shape, &claimed).await?;
            }
            worker.delete(&claimed).await
        });
    }
    while let Some(done) = turning.join_next().await {
        done??;
    }
    let rate = shape.rows as f64 / seconds_since(start);
    let sql = format!("SELECT count(*) FROM \"{}\".job", schema.name());
    let left: i64 = schema.connect().await?.query_one(&sql, &[]).await?.try_get(0)?;
    ensure!(left == 0, "{left} rows are left of the raw life cycle");
    Ok(rate)
}

/// A table that grows by one row at a time: what one commit costs at least.
pub(in crate::cli::bench) struct OneRow {
    client: Client,
    insert: Statement,
}

impl OneRow {
    /// A new table.
    pub(in crate::cli::bench) async fn at(schema: &Schema) -> anyhow::Result<OneRow> {
        schema.clear().await?;
        let (client, name) = (schema.connect().await?, schema.name());
        let sql = format!("CREATE SCHEMA \"{name}\"; CREATE TABLE \"{name}\".one(payload text NOT NULL)");
        client.batch_execute(&sql).await?;
        let insert = client
            .prepare(&format!("INSERT INTO \"{name}\".one(payload) VALUES ($1)"))
            .await?;
        Ok(OneRow { client, insert })
    }

    /// Inserts one row and waits until the disk has it.
    pub(in crate::cli::bench) async fn commit(&mut self) -> anyhow::Result<Duration> {
        let start = tick();
        self.client.execute(&self.insert, &[&"x"]).await?;
        Ok(start.elapsed())
    }
}
