//! Opening the schema: is it ours, and of a version that we know?

use std::sync::Arc;

use pensum_core::StoreError;
use tokio_postgres::types::Type;

use super::error::Fault;
use super::pool::{Durability, Pool};

/// Each step brings the schema from its index to the next version.
const MIGRATIONS: [&str; 5] = [
    include_str!("schema.sql"),
    include_str!("queue.sql"),
    include_str!("agent.sql"),
    concat!(
        include_str!("breaker.sql"),
        include_str!("volatile.sql"),
        include_str!("order.sql")
    ),
    include_str!("width.sql"),
];
/// The schema version that this program writes.
pub(super) const VERSION: u64 = MIGRATIONS.len() as u64;
/// `server_version_num` of the oldest server that understands the statements.
const SERVER_OLDEST: i32 = 130_000;

/// What the server says of itself.
pub(super) struct Server {
    pub(super) version: String,
    pub(super) fsync: String,
    pub(super) synchronous_commit: String,
}

/// Asks the server, and refuses one that is too old.
pub(super) async fn inspect(pool: &Arc<Pool>) -> Result<Server, StoreError> {
    let fault = |fault: Fault| fault.describe(&pool.location);
    let sql = "SELECT current_setting('server_version'), current_setting('server_version_num')::int4,
               current_setting('fsync'), current_setting('synchronous_commit')";
    let rows = pool.read(sql, &[]).await.map_err(fault)?;
    let read = |column: usize| -> Result<String, StoreError> {
        let row = rows.first().ok_or(StoreError::Closed)?;
        row.try_get(column).map_err(|error| fault(Fault::Db(error)))
    };
    let number: i32 = match rows.first() {
        Some(row) => row.try_get(1).map_err(|error| fault(Fault::Db(error)))?,
        None => 0,
    };
    let server = Server {
        version: read(0)?,
        fsync: read(2)?,
        synchronous_commit: read(3)?,
    };
    if number < SERVER_OLDEST {
        return Err(StoreError::Unavailable(format!(
            "{} runs PostgreSQL {}; this program needs 13 or later",
            pool.location, server.version
        )));
    }
    Ok(server)
}

/// Brings the schema up to date. Nodes that start at once wait for the first of them.
pub(super) async fn migrate(pool: &Arc<Pool>, schema: &str) -> Result<(), StoreError> {
    migrate_all(pool, schema)
        .await
        .map_err(|fault| fault.describe(&pool.location))?
}

async fn migrate_all(pool: &Arc<Pool>, schema: &str) -> Result<Result<(), StoreError>, Fault> {
    // The common case takes no lock: a busy store must not make a new node wait.
    match found_version(pool, schema).await? {
        Found::Version(found) if found == VERSION => return Ok(Ok(())),
        Found::Version(found) if found > VERSION => return Ok(Err(StoreError::Newer { found, known: VERSION })),
        Found::Foreign => return Ok(Err(foreign(pool, schema))),
        Found::Version(_) | Found::Nothing => {}
    }
    let mut tx = pool.begin(Durability::Acknowledged).await?;
    // What exists already is no news to anyone.
    tx.query("SET LOCAL client_min_messages = warning", &[]).await?;
    tx.query(
        "SELECT pg_advisory_xact_lock(hashtextextended('pensum migrate ' || $1, 0))",
        &[(&schema, Type::TEXT)],
    )
    .await?;
    tx.query(&format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\""), &[])
        .await?;
    tx.query(
        "CREATE TABLE IF NOT EXISTS pensum.meta(key text PRIMARY KEY, value bigint NOT NULL)",
        &[],
    )
    .await?;
    let rows = tx
        .query("SELECT value FROM pensum.meta WHERE key = 'schema_version'", &[])
        .await?;
    let found = match rows.first() {
        Some(row) => row.try_get::<_, i64>(0)? as u64,
        None => 0,
    };
    if found > VERSION {
        tx.rollback().await?;
        return Ok(Err(StoreError::Newer { found, known: VERSION }));
    }
    for (step, script) in MIGRATIONS.iter().enumerate().skip(found as usize) {
        for statement in statements(script) {
            tx.query(&statement, &[]).await?;
        }
        tx.query(
            "INSERT INTO pensum.meta(key, value) VALUES ('schema_version', $1)
             ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value",
            &[(&(step as i64 + 1), Type::INT8)],
        )
        .await?;
    }
    tx.commit(&[]).await?;
    Ok(Ok(()))
}

/// True when the schema holds a store, of whatever version.
pub(super) async fn exists(pool: &Arc<Pool>, schema: &str) -> Result<bool, StoreError> {
    match found_version(pool, schema).await {
        Ok(found) => Ok(matches!(found, Found::Version(_))),
        Err(fault) => Err(fault.describe(&pool.location)),
    }
}

/// The statements of a script, without its comments. None of ours holds a semicolon in a text.
fn statements(script: &str) -> Vec<String> {
    let code: Vec<&str> = script
        .lines()
        .filter(|line| !line.trim_start().starts_with("--"))
        .collect();
    code.join("\n")
        .split(';')
        .map(str::trim)
        .filter(|s| !s.is_empty())
        .map(str::to_owned)
        .collect()
}

enum Found {
    Nothing,
    Foreign,
    Version(u64),
}

fn foreign(pool: &Pool, schema: &str) -> StoreError {
    StoreError::Corrupt(format!(
        "the schema {schema} in {} holds tables of another application; name another with ?schema=NAME",
        pool.location
    ))
}

async fn found_version(pool: &Arc<Pool>, schema: &str) -> Result<Found, Fault> {
    let rows = pool
        .read(
            "SELECT count(*), count(*) FILTER (WHERE c.relname = 'meta') FROM pg_catalog.pg_class c
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relkind = 'r'",
            &[(&schema, Type::TEXT)],
        )
        .await?;
    let Some(row) = rows.first() else {
        return Ok(Found::Nothing);
    };
    match (row.try_get::<_, i64>(0)?, row.try_get::<_, i64>(1)?) {
        (0, _) => return Ok(Found::Nothing),
        (_, 0) => return Ok(Found::Foreign),
        _ => {}
    }
    let rows = pool
        .read("SELECT value FROM pensum.meta WHERE key = 'schema_version'", &[])
        .await?;
    Ok(match rows.first() {
        Some(row) => Found::Version(row.try_get::<_, i64>(0)? as u64),
        None => Found::Foreign,
    })
}
