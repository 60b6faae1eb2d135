//! What ends of runs tell the circuit breakers that cover them, in the transaction that ends the runs.
//!
//! Whether any does is decided on what the node remembers, so that ends of other runs cost no statement. A breaker that was
//! put on another node a moment ago is missed by an end that is under way already; one that begins once this node has heard
//! of it reads all breakers first. It hears of it some 10 ms after the change. Where notices do not come through, what it
//! remembers is at most [`AGE_MAX`](super::queue::AGE_MAX) old.

use std::collections::BTreeSet;
use std::sync::Arc;

use pensum_core::breaker::BreakerRecord;
use pensum_core::task::ExecutionStatus;
use pensum_core::{Name, Time};
use tokio_postgres::Row;

use super::Inner;
use super::breaker;
use super::covering::Breakers;
use super::error::Fault;
use super::pool::{Statement, Value, text};
use super::queue::GROW;
use super::row::Run;

/// Writes what breakers have seen.
const SEEN: &str =
    "UPDATE pensum.breaker b SET memory = seen.memory, changed_at = seen.changed_at, version = seen.version
    FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])
        AS seen(namespace, name, memory, changed_at, version)
    WHERE b.namespace = seen.namespace AND b.name = seen.name";

/// The end of an attempt that breakers cover.
#[derive(Clone)]
pub(super) struct Note {
    namespace: Name,
    handler: Name,
    executor: Name,
    succeeded: bool,
    taken_at: Time,
    covering: BTreeSet<usize>,
}

/// Those of one transaction, in order.
pub(super) struct Notes {
    breakers: Arc<Breakers>,
    all: Vec<Note>,
}

impl Notes {
    /// None, of the breakers that the node remembers.
    pub(super) fn of(inner: &Inner) -> Notes {
        Notes {
            breakers: inner.queues.breakers(),
            all: Vec::new(),
        }
    }

    /// The end of an attempt, if that says anything to a breaker.
    pub(super) async fn note(
        &self,
        inner: &Inner,
        class: u32,
        run: Run,
        status: ExecutionStatus,
    ) -> Result<Option<Note>, Fault> {
        let succeeded = match status {
            ExecutionStatus::Completed => true,
            ExecutionStatus::Failed => false,
            // A death, or a person, says nothing of what it does.
            _ => return Ok(None),
        };
        if self.breakers.is_empty() {
            return Ok(None);
        }
        let class = inner.catalog.class(&inner.pool, class).await?;
        let executor = inner.catalog.name(&inner.pool, run.executor).await?;
        let covering = self.breakers.covering(&class.namespace, &class.handler, &executor);
        let note = || Note {
            namespace: class.namespace.clone(),
            handler: class.handler.clone(),
            executor: executor.clone(),
            succeeded,
            taken_at: run.taken_at,
            covering: covering.clone(),
        };
        Ok((!covering.is_empty()).then(note))
    }

    /// These instead, of the same breakers.
    pub(super) fn with<'a>(&self, all: impl Iterator<Item = &'a Note>) -> Notes {
        Notes {
            breakers: Arc::clone(&self.breakers),
            all: all.cloned().collect(),
        }
    }

    pub(super) fn add(&mut self, note: Note) {
        self.all.push(note);
    }

    /// True when no breaker covers any of them.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Locks the breakers that cover any of them: the last locks that an end waits for, but for the version of the queues.
    pub(super) fn lock(&self) -> Statement<'static> {
        let covering: BTreeSet<usize> = self.all.iter().flat_map(|note| note.covering.iter().copied()).collect();
        breaker::lock_all(covering.into_iter().map(|place| {
            let (namespace, record) = self.breakers.get(place);
            (namespace, &record.name)
        }))
    }

    /// What is to be written of the breakers that [`Notes::lock`] has answered, each once; and whether that is for claims to
    /// know: one has opened or closed, or may have room for another probe.
    pub(super) fn write(&self, locked: &[Row], now: Time) -> Result<(Vec<Statement<'static>>, bool), Fault> {
        let mut seen: Vec<(Name, BreakerRecord)> = Vec::new();
        let (mut changed, mut tells) = (false, false);
        for row in locked {
            let (namespace, mut record) = breaker::read(row)?;
            let before = record.memory.clone();
            let covers =
                |note: &&Note| note.namespace == namespace && record.settings.covers(&note.handler, &note.executor);
            let notes: Vec<&Note> = self.all.iter().filter(covers).collect();
            for note in notes {
                changed |= record.note(note.succeeded, note.taken_at, now);
            }
            tells |= before.opened_at.is_some() || record.memory.opened_at.is_some();
            if record.memory != before {
                seen.push((namespace, record));
            }
        }
        let mut statements = Vec::new();
        if !seen.is_empty() {
            let own = |value: &str| Some(text(value).into_owned().into());
            let memory = |record: &BreakerRecord| serde_json::to_string(&record.memory).ok().map(Into::into);
            statements.push(Statement {
                sql: SEEN,
                params: vec![
                    Value::Texts(seen.iter().map(|(namespace, _)| own(namespace)).collect()),
                    Value::Texts(seen.iter().map(|(_, record)| own(&record.name)).collect()),
                    Value::Texts(seen.iter().map(|(_, record)| memory(record)).collect()),
                    Value::Int8s(
                        seen.iter()
                            .map(|(_, record)| Some(record.changed_at.as_micros()))
                            .collect(),
                    ),
                    Value::Int8s(seen.iter().map(|(_, record)| Some(record.version as i64)).collect()),
                ],
            });
        }
        if changed {
            statements.push(GROW);
        }
        Ok((statements, tells))
    }
}
