//! What goes wrong beneath the verbs, and what the caller is told.

use pensum_core::StoreError;
use tokio_postgres::error::SqlState;

/// A failure of the database, of the way to it, or of what it holds.
#[derive(Debug)]
pub(super) enum Fault {
    /// The server refused a statement, or the connection broke.
    Db(tokio_postgres::Error),
    /// No connection could be had.
    Pool(String),
    /// No answer came in time; what was asked may have happened.
    Silent,
    /// A row that no program of this schema version writes.
    Damaged(String),
    /// The store is closed.
    Closed,
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Fault {
        Fault::Db(error)
    }
}

impl Fault {
    /// True when the transaction was undone because of others at the same moment, and may simply be tried again.
    pub(super) fn is_contention(&self) -> bool {
        let Fault::Db(error) = self else { return false };
        error.code().is_some_and(|code| {
            *code == SqlState::T_R_DEADLOCK_DETECTED || *code == SqlState::T_R_SERIALIZATION_FAILURE
        })
    }

    /// True when a lock was not to be had in the time that the transaction gave it.
    pub(super) fn is_lock_timeout(&self) -> bool {
        matches!(self, Fault::Db(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE))
    }

    /// True when queues have changed since those were read by which the transaction decided: see `capacity::guard`.
    pub(super) fn is_stale(&self) -> bool {
        matches!(self, Fault::Db(error) if error.code() == Some(&SqlState::DIVISION_BY_ZERO))
    }

    /// What the caller is told.
    pub(super) fn describe(self, location: &str) -> StoreError {
        match self {
            Fault::Closed => StoreError::Closed,
            Fault::Damaged(what) => {
                StoreError::Corrupt(format!("{location} holds what this program cannot read: {what}"))
            }
            Fault::Silent => StoreError::Unavailable(format!("{location} did not answer in time")),
            Fault::Pool(why) => StoreError::Unavailable(format!("{location} cannot be reached: {why}")),
            Fault::Db(error) => describe(&error, location),
        }
    }
}

fn describe(error: &tokio_postgres::Error, location: &str) -> StoreError {
    let Some(db) = error.as_db_error() else {
        let cause = std::error::Error::source(error)
            .map(|c| format!(" ({c})"))
            .unwrap_or_default();
        return StoreError::Unavailable(format!("the connection to {location} failed: {error}{cause}"));
    };
    let code = db.code();
    if *code == SqlState::UNDEFINED_TABLE || *code == SqlState::UNDEFINED_COLUMN {
        return StoreError::Corrupt(format!(
            "{location} does not have the tables of this program ({}); was its schema dropped?",
            db.message()
        ));
    }
    let hint = if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        "; give this user the rights to the schema and its tables"
    } else if *code == SqlState::READ_ONLY_SQL_TRANSACTION {
        "; this server is a standby: name the primary, or all hosts with target_session_attrs=read-write"
    } else if *code == SqlState::TOO_MANY_CONNECTIONS {
        "; lower pool_size in the store's URL, raise max_connections, or put a pooler between"
    } else {
        ""
    };
    StoreError::Unavailable(format!("{location}: {} (SQLSTATE {}){hint}", db.message(), code.code()))
}
