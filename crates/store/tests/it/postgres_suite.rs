//! The suite and random operations on PostgreSQL, directly and through a pooler in transaction mode.

use std::sync::Arc;

use pensum_core::store::Store;
use pensum_testing::postgres::Database;

use crate::conformance::store_suite;

/// A database with an empty store. It stays until the server stops, for the store outlives what could drop it.
async fn database() -> Database {
    Database::from_template("store", async |url: String| {
        let store = pensum_store::connect(&url, "tests").await.unwrap();
        store.close().await.unwrap();
    })
    .await
}

pub(crate) async fn direct() -> Arc<dyn Store> {
    let database = database().await;
    let store = pensum_store::connect(&database.url(), "tests").await.unwrap();
    std::mem::forget(database);
    store
}

async fn pooled() -> Arc<dyn Store> {
    let database = database().await;
    let store = pensum_store::connect(&database.pooled_url(), "tests").await.unwrap();
    std::mem::forget(database);
    store
}

store_suite!(postgres, crate::postgres_suite::direct());
store_suite!(postgres_through_a_pooler, crate::postgres_suite::pooled());

#[test]
fn random_operations_on_postgres_equal_the_model() {
    let cases = if pensum_testing::run::is_long() { 300 } else { 20 };
    crate::random::compare(cases, direct);
}
