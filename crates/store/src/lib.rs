//! Stores of Pensum: embedded SQLite, migrations, and the conformance suite.

pub mod postgres;
pub mod copy;
pub mod sqlite;

use std::sync::Arc;

use pensum_core::StoreError;
use pensum_core::store::Store;

use sqlite::{SqliteOptions, SqliteStore};

/// Opens the store that a URL names: `sqlite:PATH`, or `sqlite::memory:`. A file is created when there is none.
///
/// # Errors
/// [`StoreError::Unavailable`] for a URL of another kind; else what [`SqliteStore::open`] says.
pub fn open(url: &str, owner: &str) -> Result<Arc<dyn Store>, StoreError> {
    let Some(path) = url.strip_prefix("sqlite:") else {
        return Err(StoreError::Unavailable(format!(
            "`{}` is not the URL of a store: write sqlite:PATH or sqlite::memory:",
            pensum_core::id::clip(url)
        )));
    };
    let path = path.strip_prefix("//").unwrap_or(path);
    let options = SqliteOptions {
        owner: owner.to_owned(),
        ..SqliteOptions::new(path)
    };
    Ok(Arc::new(SqliteStore::open(options)?))
}
