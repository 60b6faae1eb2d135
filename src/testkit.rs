//! Handlers in your own tests: no background work, no waiting, and a clock that moves when you move it.
//!
//! A [`TestKit`] keeps its tasks in memory. In *inline* mode a task runs inside the call that enqueues it; in *manual*
//! mode it runs when the test says so. Delays, retries and expiries come due when the test moves the clock.
//!
//! ```
//! use pensum::testkit::TestKit;
//! use pensum::{Context, Pensum, Status, Task, TaskError};
//! use std::time::Duration;
//!
//! async fn flaky(ctx: Context, _: ()) -> Result<u32, TaskError> {
//!     if ctx.attempt() < 3 { Err(TaskError::retry("not yet")) } else { Ok(ctx.attempt()) }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), pensum::Error> {
//! let kit = TestKit::manual(Pensum::builder().handler("flaky", flaky));
//! let id = kit.enqueue(Task::new("flaky", ())).await?;
//! assert_eq!(kit.status(id).await?, Status::Ready);
//! assert_eq!(kit.run_due().await?, 1);
//! assert_eq!(kit.status(id).await?, Status::Retrying);
//! kit.advance(Duration::from_secs(3600)).await?;
//! kit.advance(Duration::from_secs(3600)).await?;
//! assert_eq!(kit.result::<u32>(id).await?, 3);
//! # Ok(())
//! # }
//! ```

use std::sync::Arc;
use std::time::Duration;

use pensum_core::model::ModelStore;
use pensum_core::seam::{ManualClock, Seams, SeededRandom};
use pensum_core::store::{Call, Command};
use pensum_core::{Status, TaskId, TaskRecord, Time};
use pensum_engine::{Engine, TokioSpawn};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::facade::{Builder, result_of};
use crate::{Batch, Error, Task};

/// Where every kit's clock starts.
const START: &str = "2026-01-01T00:00:00Z";

/// An engine for tests.
pub struct TestKit {
    engine: Engine,
    clock: Arc<ManualClock>,
    inline: bool,
}

impl TestKit {
    /// A kit whose tasks run inside the call that enqueues them.
    pub fn inline(builder: Builder) -> TestKit {
        TestKit::new(builder, true)
    }

    /// A kit whose tasks run in [`TestKit::run_due`].
    pub fn manual(builder: Builder) -> TestKit {
        TestKit::new(builder, false)
    }

    fn new(builder: Builder, inline: bool) -> TestKit {
        let clock = Arc::new(ManualClock::new(Time::parse(START).unwrap_or(Time::EPOCH)));
        let seams = Seams {
            clock: clock.clone(),
            random: Arc::new(SeededRandom::new(1)),
            spawn: Arc::new(TokioSpawn),
        };
        let engine = builder
            .configure(Engine::builder(Arc::new(ModelStore::new(1))).seams(seams))
            .build();
        TestKit { engine, clock, inline }
    }

    /// Adds a task; inline, it runs now, unless it is delayed or waits for others.
    ///
    /// # Errors
    /// As [`Pensum::enqueue`](crate::Pensum::enqueue).
    pub async fn enqueue(&self, task: Task) -> Result<TaskId, Error> {
        let mut batch = Batch::new();
        batch.add(task);
        Ok(self.enqueue_all(batch).await?[0])
    }

    /// Adds the tasks of a batch.
    ///
    /// # Errors
    /// As [`Pensum::enqueue_all`](crate::Pensum::enqueue_all).
    pub async fn enqueue_all(&self, batch: Batch) -> Result<Vec<TaskId>, Error> {
        let tasks = batch.resolve(self.now())?;
        let made = self.engine.enqueue(&self.call(), tasks).await?;
        if self.inline {
            self.run_due().await?;
        }
        Ok(made.into_iter().map(|e| e.id).collect())
    }

    /// Runs everything that is due, one after another in claim order, and answers how many runs that were.
    ///
    /// # Errors
    /// When the store fails, which the one in memory does not.
    pub async fn run_due(&self) -> Result<usize, Error> {
        Ok(self.engine.run_due().await?)
    }

    /// Moves the clock, and runs what came due.
    ///
    /// # Errors
    /// As [`TestKit::run_due`].
    pub async fn advance(&self, by: Duration) -> Result<usize, Error> {
        self.clock.advance(by);
        self.run_due().await
    }

    /// The kit's present.
    pub fn now(&self) -> Time {
        self.engine.now()
    }

    /// The task as it is.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn task(&self, task: TaskId) -> Result<TaskRecord, Error> {
        self.engine
            .store()
            .task("default", task)
            .await?
            .ok_or(Error::NotFound(task))
    }

    /// The status of a task.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn status(&self, task: TaskId) -> Result<Status, Error> {
        Ok(Status::of(&self.task(task).await?.lifecycle, self.now()))
    }

    /// The result of a completed task.
    ///
    /// # Errors
    /// [`Error::Ended`] when it failed or was cancelled, [`Error::WaitTimeout`] when it has not ended.
    pub async fn result<T: DeserializeOwned>(&self, task: TaskId) -> Result<T, Error> {
        let record = self.task(task).await?;
        if record.lifecycle.state.is_terminal() {
            result_of(&record)
        } else {
            Err(Error::WaitTimeout(task))
        }
    }

    /// Cancels a task.
    ///
    /// # Errors
    /// When it has ended already.
    pub async fn cancel(&self, task: TaskId) -> Result<(), Error> {
        self.command(task, Command::Cancel { reason: None }).await
    }

    /// Puts a signal into a task's inbox.
    ///
    /// # Errors
    /// When the task has ended.
    pub async fn signal(&self, task: TaskId, name: &str, payload: impl Serialize) -> Result<(), Error> {
        let payload = crate::Json::of(&payload).map_err(|source| Error::Json {
            what: format!("the payload of signal `{name}`"),
            source,
        })?;
        self.command(
            task,
            Command::Signal {
                name: name.into(),
                payload,
            },
        )
        .await
    }

    async fn command(&self, task: TaskId, command: Command) -> Result<(), Error> {
        let answer = self.engine.command(&self.call(), vec![task], command).await?.pop();
        if let Some(Err(rejected)) = answer {
            return Err(Error::Rejected(rejected));
        }
        if self.inline {
            self.run_due().await?;
        }
        Ok(())
    }

    /// The engine, for everything else.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    fn call(&self) -> Call {
        Call::new("test", self.now())
    }
}
