//! The suite, for each store.

use std::sync::Arc;

use pensum_core::model::ModelStore;
use pensum_core::store::Store;

use crate::conformance::store_suite;

async fn model() -> Arc<dyn Store> {
    Arc::new(ModelStore::new(7))
}

store_suite!(model_store, crate::stores::model());
