//! The baseline: the life cycle of a job in the plainest table that could hold one, by raw SQL on the same machine in the
//! same run. All figures of throughput are compared with it.

mod postgres;
mod sqlite;

use super::Bench;
use super::report::Baseline;
use super::scratch::Scratch;

pub(super) use postgres::OneRow;

const MODE: &str = "limit";

/// What to compare with.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// Rows inserted a second.
    pub(super) insert: Baseline,
    /// Rows claimed and deleted a second, in two transactions for each batch.
    pub(super) claim_delete: Baseline,
    /// Whole life cycles a second.
    pub(super) life_cycle: Baseline,
}

/// Measures the raw store.
pub(super) async fn run(bench: &mut Bench) -> anyhow::Result<Limits> {
    match bench.scratch.beside("raw")? {
        Scratch::File(raw) => sqlite::run(bench, &raw),
        Scratch::Schema(raw) => postgres::run(bench, &raw).await,
    }
}
