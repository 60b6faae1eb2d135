//! Queues with settings: the verbs.

mod defaults;
mod gates;
mod view;

use pensum_core::input::{Invalid, QueueInput, check_queue_id};
use pensum_core::queue::{QueueCommand, QueueRecord};
use pensum_core::store::Call;
use pensum_core::{Counts, Name};

pub(crate) use defaults::{NAMESPACE_DEFAULT, Queues};
pub(crate) use gates::{closed_queue, level_of, turn_of_key};
pub use view::{QueueStatus, QueueView};

use crate::{Engine, EngineError, RESERVED_PREFIX};

/// How many queues a message names that says that there is no such queue.
const KNOWN_NAMED_MAX: usize = 20;

/// Refuses what would hold up the engine's own tasks.
fn check_not_own(queue: &str) -> Result<(), Invalid> {
    match queue.starts_with(RESERVED_PREFIX) {
        false => Ok(()),
        true => {
            let message = format!("names that begin with `{RESERVED_PREFIX}` are the engine's own; use another");
            Err(Invalid::one("id", message))
        }
    }
}

impl Engine {
    /// Gives a queue settings, and makes it where nobody put it yet. With `expected_version` only when it is at that
    /// version; 0 is a queue that nobody put or commanded.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for wrong settings, and for a name that no queue can have (at the path `id`);
    /// [`EngineError::Rejected`] when it is at another version, or there are too many queues.
    pub async fn put_queue(
        &self,
        call: &Call,
        queue: &str,
        settings: QueueInput,
        expected_version: Option<u64>,
    ) -> Result<QueueView, EngineError> {
        check_queue_id(queue)?;
        check_not_own(queue)?;
        let settings = settings.resolve()?;
        let put = self
            .store()
            .put_queue(call, Name::from(queue), settings, expected_version);
        let record = put.await?;
        self.queue_changed(call).await;
        self.view_of(call, record).await
    }

    /// Pauses, resumes or processes a queue that somebody put or that holds a task.
    ///
    /// # Errors
    /// [`EngineError::NoQueue`] for any other name; [`EngineError::Invalid`] for a queue of the engine's own, at the path `id`;
    /// [`EngineError::Rejected`] where the command does not fit the queue.
    pub async fn command_queue(
        &self,
        call: &Call,
        queue: &str,
        command: QueueCommand,
    ) -> Result<QueueView, EngineError> {
        check_not_own(queue)?;
        // A slip of the finger must not make a queue that nobody works with.
        self.queue(&call.namespace, queue).await?;
        let record = self.store().command_queue(call, Name::from(queue), command).await?;
        self.queue_changed(call).await;
        self.view_of(call, record).await
    }

    /// Takes a queue's settings away.
    ///
    /// # Errors
    /// [`EngineError::NoQueue`]; [`EngineError::Rejected`] while it holds unfinished tasks, and for a queue that only
    /// holds ended ones and that nobody put.
    pub async fn delete_queue(&self, call: &Call, queue: &str) -> Result<(), EngineError> {
        self.queue(&call.namespace, queue).await?;
        self.store().delete_queue(call, Name::from(queue)).await?;
        self.queue_changed(call).await;
        Ok(())
    }

    /// Every queue that somebody put or that holds a task, by name; without the engine's own.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list_queues(&self, namespace: &str) -> Result<Vec<QueueView>, EngineError> {
        let now = self.now();
        let put = self.store().queues(namespace).await?;
        let mut counts = self.store().counts(namespace, now).await?;
        let mut views: Vec<QueueView> = Vec::with_capacity(put.len());
        for record in put {
            let counted = counts.queues.remove(&*record.name).unwrap_or_default();
            views.push(QueueView::of(record, counted, now));
        }
        let held = counts.queues.into_iter();
        let held = held.filter(|(name, counted)| counted.sum() > 0 && !name.starts_with(RESERVED_PREFIX));
        views.extend(held.map(|(name, counted)| QueueView::unput(name, counted)));
        views.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(views)
    }

    /// One queue.
    ///
    /// # Errors
    /// [`EngineError::NoQueue`] for a name that nobody put and that no task is in.
    pub async fn queue(&self, namespace: &str, queue: &str) -> Result<QueueView, EngineError> {
        let mut views = self.list_queues(namespace).await?;
        if let Some(at) = views.iter().position(|view| view.id == queue) {
            return Ok(views.swap_remove(at));
        }
        let mut known: Vec<String> = views.into_iter().map(|view| view.id).collect();
        let more = known.len().saturating_sub(KNOWN_NAMED_MAX);
        known.truncate(KNOWN_NAMED_MAX);
        if more > 0 {
            known.push(format!("{more} more"));
        }
        Err(EngineError::NoQueue {
            queue: Name::from(queue),
            known,
        })
    }

    /// The record of a queue that somebody put or commanded.
    pub(crate) async fn queue_record(&self, namespace: &str, queue: &str) -> Result<Option<QueueRecord>, EngineError> {
        let put = self.store().queues(namespace).await?;
        Ok(put.into_iter().find(|record| *record.name == *queue))
    }

    async fn view_of(&self, call: &Call, record: QueueRecord) -> Result<QueueView, EngineError> {
        let Counts { mut queues, .. } = self.store().counts(&call.namespace, call.now).await?;
        let counted = queues.remove(&*record.name).unwrap_or_default();
        Ok(QueueView::of(record, counted, self.now()))
    }

    async fn queue_changed(&self, call: &Call) {
        // The change is on disk; the heartbeat reads it again where this fails.
        if let Err(error) = self.load_queues(&call.namespace).await {
            tracing::debug!(%error, "the queues could not be read again after a change");
        }
        self.wake_claims();
    }
}
