//! Queues in files: the block `queues` of the configuration, which a node puts when it starts.

use pensum_core::input::{self, Invalid, QueueInput, check_queue_id};
use pensum_core::store::{Call, Rejected};
use pensum_engine::{Engine, EngineError};

use crate::cli::exit::Failure;
use crate::yaml::{Fault, Node, Value};

/// Who gives queues the settings of the configuration.
const ACTOR: &str = "config";
/// How often a queue that another node changes meanwhile is looked at again.
const TRIES: usize = 10;

/// Reads `{NAME: {…}}`.
pub(crate) fn read(block: &Node) -> Result<Vec<(String, QueueInput)>, Vec<Fault>> {
    let Some(entries) = block.entries() else {
        let message = format!("queues: must be a map, not {}", block.kind());
        return Err(vec![Fault::new(block.at, message)]);
    };
    let mut queues = Vec::with_capacity(entries.len());
    let mut faults = Vec::new();
    for (key, node) in entries {
        let named = format!("queues.{}", key.name);
        if let Err(Invalid(problems)) = check_queue_id(&key.name) {
            faults.extend(
                problems
                    .iter()
                    .map(|p| Fault::new(key.at, format!("{named}: {}", p.message))),
            );
            continue;
        }
        // A queue of which nothing is said has what every queue has.
        let text = match node.value {
            Value::Null => "{}".to_owned(),
            _ => node.json(),
        };
        let input = input::parse_object::<QueueInput>(text.as_bytes());
        match input.and_then(|input| input.clone().resolve().map(|_| input)) {
            Ok(input) => queues.push((key.name.clone(), input)),
            Err(Invalid(problems)) => faults.extend(problems.iter().map(|problem| node.fault(&named, problem))),
        }
    }
    match faults.is_empty() {
        true => Ok(queues),
        false => Err(faults),
    }
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
