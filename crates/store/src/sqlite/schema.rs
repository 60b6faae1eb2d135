//! Opening the file: is it ours, whole, and of a version that we know?

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use pensum_core::StoreError;
use rusqlite::{Connection, OpenFlags};

use super::error::Fault;

/// `PRAGMA application_id` of a Pensum store: "PNSM".
pub(super) const APPLICATION_ID: i32 = 0x504E_534D;
/// Each step brings the schema from its index to the next version.
const MIGRATIONS: [&str; 4] = [
    include_str!("schema.sql"),
    include_str!("queue.sql"),
    include_str!("agent.sql"),
    concat!(include_str!("breaker.sql"), include_str!("volatile.sql")),
];
/// How every SQLite database begins.
const MAGIC: &[u8] = b"SQLite format 3\0";
/// The schema version that this program writes.
pub(super) const VERSION: u64 = MIGRATIONS.len() as u64;
/// Older versions can corrupt a database whose WAL is reset while another connection writes (fixed in 3.51.3).
const SQLITE_OLDEST: i32 = 3_051_003;

/// Refuses a SQLite library that is too old to be trusted with the file.
pub(super) fn check_library() -> Result<(), StoreError> {
    let found = rusqlite::version_number();
    if found < SQLITE_OLDEST {
        return Err(StoreError::Unavailable(format!(
            "this program was built with SQLite {}, which can corrupt databases; build it with 3.51.3 or later",
            rusqlite::version()
        )));
    }
    Ok(())
}

/// What a look at the file, without opening it as a database, tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing, or an empty file: to be created.
    Nothing,
    /// A database that is, or may be, ours.
    Database,
}

/// Looks at the first bytes, so that a file of someone else is refused before SQLite touches it.
pub(super) fn inspect(path: &Path) -> Result<Found, StoreError> {
    let shown = path.display();
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => {
            return Err(StoreError::Unavailable(format!(
                "{shown} cannot be read ({error}); check its permissions"
            )));
        }
    };
    let unreadable = |error: std::io::Error| StoreError::Unavailable(format!("{shown} cannot be read ({error})"));
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(StoreError::Unavailable(format!(
            "{shown} is a directory; give the path of a file in it"
        )));
    }
    if metadata.len() == 0 || is_half_made(path) {
        return Ok(Found::Nothing);
    }
    let mut header = Vec::with_capacity(100);
    file.by_ref().take(100).read_to_end(&mut header).map_err(unreadable)?;
    let has_magic = header.len() == 100 && header.starts_with(MAGIC);
    header.resize(100, 0);
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (application, found) = (word(68), u64::from(word(60)));
    let is_known = has_magic && application == APPLICATION_ID as u32 && found <= VERSION;
    if !is_known && is_ours_by_log(path) {
        return Ok(Found::Database);
    }
    if !has_magic {
        return Err(StoreError::Corrupt(format!(
            "{shown} is not a SQLite database; give the path of a Pensum store, or of a file that does not exist yet"
        )));
    }
    let has_wal = beside(path, "-wal").metadata().is_ok_and(|m| m.len() > 0);
    if application != APPLICATION_ID as u32 && (application != 0 || !has_wal) && !is_empty_database(path) {
        return Err(StoreError::Corrupt(format!(
            "{shown} is a database of another application (application id {application:#x}); give another path"
        )));
    }
    if application == APPLICATION_ID as u32 && found > VERSION {
        return Err(StoreError::Newer { found, known: VERSION });
    }
    let page_size = match u64::from(u16::from_be_bytes([header[16], header[17]])) {
        1 => 65_536,
        size => size,
    };
    let pages = u64::from(word(28));
    if !has_wal && pages * page_size > metadata.len() {
        return Err(StoreError::Corrupt(format!(
            "{shown} is cut short: it should hold {} bytes and has {}; restore it from a backup",
            pages * page_size,
            metadata.len()
        )));
    }
    Ok(Found::Database)
}

/// The file that SQLite keeps beside a database under this suffix.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// True when a power cut came while the first page of a new file was written. The page may be there, in part or not at
/// all; the journal beside it says that the file was empty before, and SQLite makes it so again.
fn is_half_made(path: &Path) -> bool {
    /// The first bytes of a rollback journal (<https://www.sqlite.org/fileformat2.html#the_rollback_journal>).
    const JOURNAL: [u8; 8] = [0xD9, 0xD5, 0x05, 0xF9, 0x20, 0xA1, 0x63, 0xD7];
    let mut header = [0; 20];
    let read = File::open(beside(path, "-journal")).and_then(|mut file| file.read_exact(&mut header));
    // Bytes 16 to 19 are the pages that the database had.
    read.is_ok() && header.starts_with(&JOURNAL) && header[16..] == [0; 4]
}

/// True when the log holds the first page of a store of ours, of a version that we know. A power cut while the log was
/// folded into the database may have torn that page in the file; SQLite then reads it from the log, and folds it anew.
fn is_ours_by_log(path: &Path) -> bool {
    // The file format: <https://www.sqlite.org/fileformat2.html#wal_file_format>.
    let Ok(mut log) = File::open(beside(path, "-wal")) else {
        return false;
    };
    let mut header = [0; 32];
    if log.read_exact(&mut header).is_err() {
        return false;
    }
    let page_size = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
    // A frame: 24 bytes, of which the first four are the page's number and 8 to 15 the salt of the log, and the page.
    let mut frame = [0; 24 + 72];
    let mut at = header.len() as u64;
    while log.seek(SeekFrom::Start(at)).is_ok() && log.read_exact(&mut frame).is_ok() && frame[8..16] == header[16..24]
    {
        let (number, page) = (&frame[..4], &frame[24..]);
        let version = u64::from(u32::from_be_bytes([page[60], page[61], page[62], page[63]]));
        let is_known = page.starts_with(MAGIC) && page[68..] == APPLICATION_ID.to_be_bytes() && version <= VERSION;
        if number == [0, 0, 0, 1] && is_known {
            return true;
        }
        at += 24 + u64::from(page_size);
    }
    false
}

/// True for a database without tables, which SQLite's shell makes of a path it is merely shown.
fn is_empty_database(path: &Path) -> bool {
    let uri = format!(
        "file:{}?immutable=1",
        path.display().to_string().replace('%', "%25").replace('?', "%3f")
    );
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(uri, flags)
        .and_then(|db| db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0)))
        .is_ok_and(|tables| tables == 0)
}

/// Settings of a connection that writes.
pub(super) fn configure_writer(db: &Connection, memory: bool) -> Result<(), Fault> {
    db.execute_batch(
        "PRAGMA page_size = 4096; PRAGMA foreign_keys = OFF; PRAGMA trusted_schema = OFF; PRAGMA temp_store = MEMORY;
         PRAGMA cache_size = -32768;",
    )?;
    if !memory {
        db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        db.execute_batch(
            "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = 67108864;",
        )?;
    }
    db.set_prepared_statement_cache_capacity(200);
    db.busy_timeout(std::time::Duration::from_secs(5))?;
    Ok(())
}

/// Settings of a connection that reads.
pub(super) fn configure_reader(db: &Connection) -> Result<(), Fault> {
    db.execute_batch(
        "PRAGMA foreign_keys = OFF; PRAGMA trusted_schema = OFF; PRAGMA temp_store = MEMORY; PRAGMA query_only = ON;
         PRAGMA cache_size = -2048;",
    )?;
    db.set_prepared_statement_cache_capacity(100);
    db.busy_timeout(std::time::Duration::from_secs(5))?;
    Ok(())
}

/// Brings the schema up to date, each step in a transaction of its own.
pub(super) fn migrate(db: &Connection, path: &str) -> Result<(), StoreError> {
    let fault = |error: rusqlite::Error| Fault::Sql(error).describe(path);
    let found: u64 = db
        .query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
        .map_err(fault)? as u64;
    let application: i32 = db
        .query_row("PRAGMA application_id", [], |row| row.get(0))
        .map_err(fault)?;
    let tables: i64 = db
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(fault)?;
    if tables > 0 && application != APPLICATION_ID {
        return Err(StoreError::Corrupt(format!(
            "{path} is a database of another application; give another path"
        )));
    }
    if found > VERSION {
        return Err(StoreError::Newer { found, known: VERSION });
    }
    for (step, sql) in MIGRATIONS.iter().enumerate().skip(found as usize) {
        let script = format!(
            "BEGIN IMMEDIATE; {sql} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {}; COMMIT;",
            step + 1
        );
        if let Err(error) = db.execute_batch(&script) {
            // The transaction may have ended itself; then there is nothing to roll back.
            let _ = db.execute_batch("ROLLBACK");
            return Err(fault(error));
        }
    }
    if found < VERSION {
        // The header of the file itself shall say whose it is, not only the log.
        let _ = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    }
    Ok(())
}
