//! Circuit breakers in files: the block `breakers` of the configuration, which a node puts when it starts.

use pensum_core::input::{self, BreakerInput};
use pensum_core::store::{Call, Rejected};
use pensum_engine::{Engine, EngineError};

use crate::cli::exit::Failure;
use crate::yaml::{Fault, Node};

/// Who gives breakers the settings of the configuration.
const ACTOR: &str = "config";
/// How often a breaker that changes meanwhile is looked at again.
const TRIES: usize = 10;

/// Reads `{NAME: {…}}`.
pub(crate) fn read(block: &Node) -> Result<Vec<(String, BreakerInput)>, Vec<Fault>> {
    block.read_entries("breakers", |name, node| {
        let input = input::parse_object::<BreakerInput>(node.json_object().as_bytes())?;
        input.clone().resolve(name)?;
        Ok((name.to_owned(), input))
    })
}

/// Gives breakers the settings of the configuration. One that somebody else has put since keeps what it has.
pub(crate) async fn apply(engine: &Engine, breakers: Vec<(String, BreakerInput)>) -> Result<(), Failure> {
    for (breaker, input) in breakers {
        put(engine, &breaker, input).await?;
    }
    Ok(())
}

async fn put(engine: &Engine, breaker: &str, input: BreakerInput) -> Result<(), Failure> {
    let mut tries = 1;
    loop {
        let call = Call::new(ACTOR, engine.now());
        let version = match engine.breaker(&call.namespace, breaker).await {
            Ok(found) if found.put_by != ACTOR => {
                if found.settings.resolve(breaker) != input.resolve(breaker) {
                    tracing::warn!(
                        breaker,
                        put_by = found.put_by,
                        "the circuit breaker keeps the settings that it was given since, not those of the configuration"
                    );
                }
                return Ok(());
            }
            Ok(found) => found.version,
            Err(EngineError::Rejected(Rejected::NoBreaker(_))) => 0,
            Err(error) => return Err(error.into()),
        };
        match engine.put_breaker(&call, breaker, input.clone(), Some(version)).await {
            Ok(_) => return Ok(()),
            // Another node puts it, too, or it opens or closes.
            Err(EngineError::Rejected(Rejected::BreakerVersionMismatch { .. } | Rejected::NoBreaker(_)))
                if tries < TRIES =>
            {
                tries += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
