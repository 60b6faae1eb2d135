//! Queues: what they allow, and what is asked of them.

use pensum_core::input::QueueInput;
use pensum_core::queue::QueueCommand;
use pensum_engine::QueueView;

use super::{Error, Pensum};

impl Pensum {
    /// Gives a queue just these settings, and makes it where there is none.
    ///
    /// # Errors
    /// [`Error::Invalid`] for wrong settings and for a name that no queue can have, [`Error::Rejected`] when 1,000 queues
    /// have settings already.
    pub async fn put_queue(&self, queue: &str, settings: QueueInput) -> Result<QueueView, Error> {
        Ok(self.engine().put_queue(&self.call(), queue, settings, None).await?)
    }

    /// Takes a queue's settings away.
    ///
    /// # Errors
    /// [`Error::Rejected`] while it holds unfinished tasks, or when it has no settings.
    pub async fn delete_queue(&self, queue: &str) -> Result<(), Error> {
        Ok(self.engine().delete_queue(&self.call(), queue).await?)
    }

    /// The queues that have settings or hold tasks, by id.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn queues(&self) -> Result<Vec<QueueView>, Error> {
        Ok(self.engine().list_queues("default").await?)
    }

    /// Starts nothing more of a queue, until it is resumed; what runs goes on.
    ///
    /// # Errors
    /// [`Error::Rejected`] when it has no settings and holds no task.
    pub async fn pause_queue(&self, queue: &str) -> Result<QueueView, Error> {
        self.command_queue(queue, QueueCommand::Pause).await
    }

    /// Starts the tasks of a paused queue again.
    ///
    /// # Errors
    /// As for [`Pensum::pause_queue`].
    pub async fn resume_queue(&self, queue: &str) -> Result<QueueView, Error> {
        self.command_queue(queue, QueueCommand::Resume).await
    }

    /// Starts what is now in a queue without `auto_start`. What is enqueued later waits for the next time.
    ///
    /// # Errors
    /// As for [`Pensum::pause_queue`]; also while it is paused.
    pub async fn process_queue(&self, queue: &str) -> Result<QueueView, Error> {
        self.command_queue(queue, QueueCommand::Process).await
    }

    async fn command_queue(&self, queue: &str, command: QueueCommand) -> Result<QueueView, Error> {
        Ok(self.engine().command_queue(&self.call(), queue, command).await?)
    }
}
