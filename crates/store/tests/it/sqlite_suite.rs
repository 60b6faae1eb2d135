//! The suite and random operations on SQLite, in memory and on a file.

use std::sync::Arc;

use pensum_core::store::Store;
use pensum_store::sqlite::{SqliteOptions, SqliteStore};

use crate::conformance::store_suite;

async fn in_memory() -> Arc<dyn Store> {
    pensum_store::open("sqlite::memory:", "tests").unwrap()
}

async fn on_a_file() -> Arc<dyn Store> {
    // The directory outlives the test, beside what cargo builds.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap().keep();
    Arc::new(SqliteStore::open(SqliteOptions::new(directory.join("store.db"))).unwrap())
}

store_suite!(sqlite_in_memory, crate::sqlite_suite::in_memory());
store_suite!(sqlite_on_a_file, crate::sqlite_suite::on_a_file());

#[test]
fn random_operations_with_restarts_on_sqlite_equal_the_model() {
    crate::random::compare_with_restarts(100, || {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        // The directory goes with whoever may open the store again.
        Arc::new(move || {
            let path = directory.path().join("store.db");
            Arc::new(SqliteStore::open(SqliteOptions::new(path)).unwrap())
        })
    });
}

#[test]
fn random_operations_on_sqlite_equal_the_model() {
    crate::random::compare(300, in_memory);
}
