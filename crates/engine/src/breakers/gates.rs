//! Why a task does not start: a circuit breaker holds it, or the agents that could run it, up.

use pensum_core::Time;
use pensum_core::breaker::{BreakerRecord, Tripped};

use super::view::in_words;
use crate::explain::{Gate, GateKind, gate};
use crate::{Engine, EngineError};

/// The breakers of a namespace that let nothing start now.
pub(crate) struct OpenBreakers(Vec<(BreakerRecord, Gate)>);

impl OpenBreakers {
    pub(crate) async fn read(engine: &Engine, namespace: &str, now: Time) -> Result<OpenBreakers, EngineError> {
        let all = engine.store().breakers(namespace).await?.into_iter();
        let open = all.filter_map(|breaker| {
            let tripped = breaker.room(breaker.probing, now).err()?;
            let (since, opens_at) = match tripped {
                Tripped::Open { since, until } => (since, Some(until)),
                Tripped::Probing { since, .. } => (since, None),
            };
            let closed = Gate {
                since: Some(since),
                opens_at,
                ..gate(GateKind::Breaker, in_words(&breaker, tripped))
            };
            Some((breaker, closed))
        });
        Ok(OpenBreakers(open.collect()))
    }

    /// The gates of those that cover a handler.
    pub(crate) fn of_handler(&self, handler: &str) -> impl Iterator<Item = Gate> {
        let covers = move |breaker: &BreakerRecord| breaker.settings.handlers.iter().any(|name| **name == *handler);
        self.0
            .iter()
            .filter(move |(breaker, _)| covers(breaker))
            .map(|(_, gate)| gate.clone())
    }

    /// The gate of one that covers an agent.
    pub(crate) fn of_agent(&self, agent: &str) -> Option<Gate> {
        let found = self.0.iter().find(|(breaker, _)| breaker.settings.covers_agent(agent));
        found.map(|(_, gate)| gate.clone())
    }
}
