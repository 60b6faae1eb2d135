//! What goes wrong in SQLite, in the words of the store.

use pensum_core::StoreError;
use rusqlite::ErrorCode;

/// Why a verb could not be carried out. Always fatal for the whole group of verbs.
#[derive(Debug)]
pub(super) enum Fault {
    /// SQLite refused.
    Sql(rusqlite::Error),
    /// The file holds something that this program never writes.
    Damaged(String),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Fault {
        Fault::Sql(error)
    }
}

impl Fault {
    /// The error that callers see.
    pub(super) fn describe(&self, path: &str) -> StoreError {
        let error = match self {
            Fault::Damaged(what) => {
                return StoreError::Corrupt(format!("{path} is damaged: {what}; restore it from a backup"));
            }
            Fault::Sql(error) => error,
        };
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StoreError::Unavailable(format!(
                "disk full: {path} cannot grow; free some space and try again, nothing was changed ({text})"
            )),
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => StoreError::Unavailable(format!(
                "{path} cannot be written; make the file and its directory writable for this user ({text})"
            )),
            Some(ErrorCode::CannotOpen) => StoreError::Unavailable(format!(
                "{path} cannot be opened; check that its directory exists and is writable ({text})"
            )),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Unavailable(format!(
                "another program holds a lock on {path}; close it and try again ({text})"
            )),
            Some(ErrorCode::SystemIoFailure) => StoreError::Unavailable(format!(
                "the disk that holds {path} reports an error; check the disk ({text})"
            )),
            Some(ErrorCode::NotADatabase) => StoreError::Corrupt(format!(
                "{path} is not a SQLite database; give the path of a Pensum store"
            )),
            Some(ErrorCode::DatabaseCorrupt) => {
                StoreError::Corrupt(format!("{path} is damaged ({text}); restore it from a backup"))
            }
            _ => StoreError::Unavailable(format!("{path}: {text}")),
        }
    }
}
