//! Stores of Pensum: embedded SQLite, PostgreSQL for many nodes, migrations, and the conformance suite.

pub mod copy;
pub mod postgres;
pub mod sqlite;

use std::sync::Arc;

use pensum_core::StoreError;
use pensum_core::store::Store;

use postgres::{PostgresOptions, PostgresStore};
use sqlite::{SqliteOptions, SqliteStore};

/// True for the URL of a store on PostgreSQL.
pub fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

/// The URL of a store as people may see it: without a password.
pub fn shown(url: &str) -> String {
    if !is_postgres(url) {
        return url.to_owned();
    }
    PostgresOptions::parse(url).map_or_else(|_| "postgres://…".to_owned(), |options| options.location())
}

/// Opens the store that a URL names: `postgres://USER@HOST:PORT/DATABASE`, or what [`open`] opens.
///
/// # Errors
/// What [`PostgresOptions::parse`], [`PostgresStore::open`] or [`open`] say.
pub async fn connect(url: &str, owner: &str) -> Result<Arc<dyn Store>, StoreError> {
    if is_postgres(url) {
        let store = PostgresStore::open(PostgresOptions::parse(url)?).await?;
        return Ok(Arc::new(store));
    }
    let (url, owner) = (url.to_owned(), owner.to_owned());
    match tokio::task::spawn_blocking(move || open(&url, &owner)).await {
        Ok(opened) => opened,
        Err(_) => Err(StoreError::Unavailable("opening the store was interrupted".to_owned())),
    }
}

/// True when a URL names a store that is there. Makes none.
///
/// # Errors
/// [`StoreError::Unavailable`] when its server cannot be reached, or for a URL of another kind.
pub async fn exists(url: &str) -> Result<bool, StoreError> {
    if is_postgres(url) {
        return PostgresStore::exists(&PostgresOptions::parse(url)?).await;
    }
    let path = url
        .strip_prefix("sqlite:")
        .map(|path| path.strip_prefix("//").unwrap_or(path));
    Ok(path.is_some_and(|path| std::path::Path::new(path).exists()))
}

/// Opens the store on this machine that a URL names: `sqlite:PATH`, or `sqlite::memory:`. A file is created when there
/// is none.
///
/// # Errors
/// [`StoreError::Unavailable`] for a URL of another kind; else what [`SqliteStore::open`] says.
pub fn open(url: &str, owner: &str) -> Result<Arc<dyn Store>, StoreError> {
    let Some(path) = url.strip_prefix("sqlite:") else {
        return Err(StoreError::Unavailable(format!(
            "`{}` is not the URL of a store: write sqlite:PATH, sqlite::memory: or postgres://USER@HOST:PORT/DATABASE",
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
