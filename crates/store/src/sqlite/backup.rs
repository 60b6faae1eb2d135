//! Copies and figures.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use pensum_core::StoreError;
use pensum_core::store::StoreStats;
use rusqlite::Connection;
use rusqlite::backup::Backup;

use super::error::Fault;
use super::schema;

/// Pages copied between two breaths: a backup must not keep the disk from the writer.
const STEP_PAGES: i32 = 2048;

/// Copies the database to a new file, while others write.
pub(super) fn backup(db: &Connection, to: &Path, path: &str) -> Result<(), StoreError> {
    let shown = to.display();
    if to.symlink_metadata().is_ok() {
        return Err(StoreError::Unavailable(format!(
            "{shown} exists already; name a file that does not"
        )));
    }
    let part = to.with_file_name(format!(
        "{}.part",
        to.file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_else(|| "backup".to_owned())
    ));
    let copied = copy(db, &part).map_err(|fault| match fault {
        Fault::Sql(error) => Fault::Sql(error).describe(&part.display().to_string()),
        Fault::Damaged(_) => fault.describe(path),
    });
    let finished = copied.and_then(|()| {
        let failed = |error: std::io::Error| StoreError::Unavailable(format!("{shown} cannot be written ({error})"));
        std::fs::File::open(&part)
            .and_then(|file| file.sync_all())
            .map_err(failed)?;
        // Only a whole copy gets the name.
        std::fs::hard_link(&part, to).map_err(failed)
    });
    // A copy that was not finished is of no use.
    let _ = std::fs::remove_file(&part);
    finished
}

fn copy(db: &Connection, part: &Path) -> Result<(), Fault> {
    // Left over from a copy that was cut short.
    let _ = std::fs::remove_file(part);
    let mut target = Connection::open(part)?;
    {
        // The read transaction keeps the copy from starting again at each commit.
        let reading = db.unchecked_transaction()?;
        reading.query_row("SELECT count(*) FROM meta", [], |_| Ok(()))?;
        let copying = Backup::new(&reading, &mut target)?;
        copying.run_to_completion(STEP_PAGES, Duration::ZERO, None)?;
        drop(copying);
        reading.finish()?;
    }
    // One self-contained file, that opens as one that was closed.
    target.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
    target.close().map_err(|(_, error)| Fault::Sql(error))
}

/// Figures about the file.
pub(super) fn stats(db: &Connection, location: &str, memory: bool) -> Result<StoreStats, Fault> {
    let mut rows = BTreeMap::new();
    let mut statement = db.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")?;
    let tables = statement
        .query_map([], |row| row.get::<_, String>(0))?
        .collect::<Result<Vec<_>, _>>()?;
    for table in tables {
        let sql = format!("SELECT count(*) FROM \"{}\"", table.replace('"', "\"\""));
        rows.insert(table, db.query_row(&sql, [], |row| row.get::<_, i64>(0))? as u64);
    }
    let bytes = if memory {
        let pragma = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0));
        (pragma("PRAGMA page_count")? * pragma("PRAGMA page_size")?) as u64
    } else {
        let size = |suffix: &str| {
            std::fs::metadata(format!("{location}{suffix}"))
                .map(|m| m.len())
                .unwrap_or(0)
        };
        size("") + size("-wal")
    };
    Ok(StoreStats {
        kind: "sqlite".to_owned(),
        schema_version: schema::VERSION,
        location: location.to_owned(),
        bytes,
        rows,
        durability: if memory {
            "none: lost with the process"
        } else {
            "wal, synchronous=full"
        }
        .to_owned(),
    })
}
