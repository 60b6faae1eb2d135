//! Why a task does not start: a circuit breaker holds it up.

use pensum_core::breaker::Tripped;
use pensum_core::{TaskRecord, Time};

use super::view::in_words;
use crate::explain::{Gate, GateKind, gate};
use crate::{Engine, EngineError};

/// The gates of the breakers that cover a task's handler and let nothing of it start now.
pub(crate) async fn open_breakers(
    engine: &Engine,
    namespace: &str,
    record: &TaskRecord,
    now: Time,
) -> Result<Vec<Gate>, EngineError> {
    let breakers = engine.store().breakers(namespace).await?;
    let covering = breakers
        .iter()
        .filter(|breaker| breaker.settings.handlers.contains(&record.spec.handler));
    let closed = covering.filter_map(|breaker| {
        let tripped = breaker.room(breaker.probing, now).err()?;
        let (since, opens_at) = match tripped {
            Tripped::Open { since, until } => (since, Some(until)),
            Tripped::Probing { since, .. } => (since, None),
        };
        Some(Gate {
            since: Some(since),
            opens_at,
            ..gate(GateKind::Breaker, in_words(breaker, tripped))
        })
    });
    Ok(closed.collect())
}
