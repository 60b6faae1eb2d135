//! Figures about the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use pensum_core::store::StoreStats;

use super::error::Fault;
use super::pool::Pool;
use super::schema::{self, Server};

/// Tables up to this size are counted; of larger ones the server's own estimate is given.
const COUNTED_BYTES_MAX: i64 = 256 << 20;

/// Figures about the schema: its tables with their indexes in bytes, and their rows. The rows of a table above
/// [`COUNTED_BYTES_MAX`] are the estimate of the server's last ANALYZE.
pub(super) async fn stats(pool: &Arc<Pool>, server: &Server) -> Result<StoreStats, Fault> {
    let tables = "SELECT c.relname::text, c.reltuples::bigint, pg_relation_size(c.oid), pg_total_relation_size(c.oid)
                  FROM pg_catalog.pg_class c WHERE c.relkind = 'r' AND c.relnamespace =
                  (SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = 'pensum.task'::regclass)";
    let mut stats = StoreStats {
        kind: "postgres".to_owned(),
        schema_version: schema::VERSION,
        location: pool.location.clone(),
        bytes: 0,
        rows: BTreeMap::new(),
        durability: durability(server),
    };
    let mut counts: Vec<String> = Vec::new();
    for table in pool.read(tables, &[]).await? {
        let (name, estimate): (String, i64) = (table.try_get(0)?, table.try_get(1)?);
        stats.bytes += table.try_get::<_, i64>(3)?.max(0) as u64;
        // A table that was never analysed has no estimate.
        if table.try_get::<_, i64>(2)? > COUNTED_BYTES_MAX && estimate > 0 {
            stats.rows.insert(name, estimate as u64);
        } else {
            let quoted = name.replace('"', "\"\"");
            let literal = name.replace('\'', "''");
            counts.push(format!("SELECT '{literal}', count(*) FROM pensum.\"{quoted}\""));
        }
    }
    for row in pool.read(&counts.join(" UNION ALL "), &[]).await? {
        stats.rows.insert(row.try_get(0)?, row.try_get::<_, i64>(1)? as u64);
    }
    Ok(stats)
}

/// What an acknowledgement means.
fn durability(server: &Server) -> String {
    // Where the server's own setting does not wait for the disk, the transactions of this program ask for it.
    let commit = match server.synchronous_commit.as_str() {
        "off" => "on",
        own => own,
    };
    format!(
        "PostgreSQL {}, fsync={}, synchronous_commit={commit}",
        server.version.split(' ').next().unwrap_or_default(),
        server.fsync
    )
}
