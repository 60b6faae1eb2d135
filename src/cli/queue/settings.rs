//! Queues in files: the block `queues` of the configuration, which a node puts when it starts.

use pensum_core::input::{self, QueueInput, check_queue_id};
use pensum_core::store::{Call, Rejected};
use pensum_engine::{Engine, EngineError};

use crate::cli::exit::Failure;
use crate::yaml::{Fault, Node};

/// Who gives queues the settings of the configuration.
const ACTOR: &str = "config";
/// How often a queue that another node changes meanwhile is looked at again.
const TRIES: usize = 10;

/// Reads `{NAME: {…}}`.
pub(crate) fn read(block: &Node) -> Result<Vec<(String, QueueInput)>, Vec<Fault>> {
    block.read_entries("queues", |name, node| {
        check_queue_id(name)?;
        let input = input::parse_object::<QueueInput>(node.json_object().as_bytes())?;
        input.clone().resolve()?;
        Ok((name.to_owned(), input))
    })
}

/// Gives queues the settings of the configuration. One that somebody else has put since keeps what it has.
pub(crate) async fn apply(engine: &Engine, queues: Vec<(String, QueueInput)>) -> Result<(), Failure> {
    for (queue, input) in queues {
        put(engine, &queue, input).await?;
    }
    Ok(())
}

async fn put(engine: &Engine, queue: &str, input: QueueInput) -> Result<(), Failure> {
    let mut tries = 1;
    loop {
        let call = Call::new(ACTOR, engine.now());
        let version = match engine.queue(&call.namespace, queue).await {
            Ok(found) => {
                let settings = found.settings.clone().resolve();
                if let Some(other) = found.put_by.filter(|actor| actor != ACTOR) {
                    if settings != input.resolve() {
                        tracing::warn!(
                            queue,
                            put_by = other,
                            "the queue keeps the settings that it was given since, not those of the configuration; \
                             write them there, or put those of the file with `pensum queue put --file`"
                        );
                    }
                    return Ok(());
                }
                found.version
            }
            Err(EngineError::NoQueue { .. }) => 0,
            Err(error) => return Err(error.into()),
        };
        match engine.put_queue(&call, queue, input.clone(), Some(version)).await {
            Ok(_) => return Ok(()),
            Err(EngineError::Rejected(Rejected::QueueVersionMismatch { .. })) if tries < TRIES => tries += 1,
            Err(error) => return Err(error.into()),
        }
    }
}
