//! The handle that users hold.

use std::path::PathBuf;
use std::time::Duration;

use pensum_core::store::{Applied, Call, Command, Rejected};
use pensum_core::{Name, NewTask, State, TaskId, TaskRecord};
use pensum_engine::{Context, Engine, EngineBuilder, EngineError, EngineEvent, Handler};
use pensum_store::postgres::{self, PostgresOptions};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Batch, Error, Outbox, Task, TaskError, Typed};

/// How long [`Pensum::shutdown`] lets running handlers go on.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(30);

/// A running engine over a store. Cheap to clone; all clones are the same engine.
#[derive(Clone)]
pub struct Pensum {
    engine: Engine,
    actor: Name,
    outbox: Option<postgres::Outbox>,
}

impl Pensum {
    /// An engine to configure.
    pub fn builder() -> Builder {
        Builder {
            url: "sqlite:pensum.db".to_owned(),
            steps: Vec::new(),
            builtin: false,
        }
    }

    /// Adds a task. `Ok` means that it is on disk.
    ///
    /// # Errors
    /// When the input is wrong, a dependency is unknown, a unique key is taken and the task asked to be refused then, or
    /// the store cannot write. Nothing was changed then.
    pub async fn enqueue(&self, task: Task) -> Result<TaskId, Error> {
        let task = task.resolve(self.engine.now())?;
        Ok(self.enqueue_new(vec![task]).await?[0])
    }

    /// Adds the tasks of a batch, all or none, and answers their ids in order.
    ///
    /// # Errors
    /// As for [`Pensum::enqueue`]; also when tasks of the batch wait for each other in a cycle.
    pub async fn enqueue_all(&self, batch: Batch) -> Result<Vec<TaskId>, Error> {
        self.enqueue_new(batch.resolve(self.engine.now())?).await
    }

    async fn enqueue_new(&self, tasks: Vec<NewTask>) -> Result<Vec<TaskId>, Error> {
        Ok(self
            .engine
            .enqueue(&self.call(), tasks)
            .await?
            .into_iter()
            .map(|e| e.id)
            .collect())
    }

    /// Waits until the task has ended, and reads its result.
    ///
    /// # Errors
    /// [`Error::Ended`] when it failed or was cancelled; [`Error::Json`] when the result is not a `T`.
    pub async fn result<T: DeserializeOwned>(&self, task: TaskId) -> Result<T, Error> {
        result_of(&self.wait(task).await?)
    }

    /// Waits until the task has ended.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such task, or it was deleted meanwhile.
    pub async fn wait(&self, task: TaskId) -> Result<TaskRecord, Error> {
        self.engine
            .wait("default", task, None)
            .await
            .map_err(|e| Error::of(e, task))
    }

    /// Waits until the task has ended, at most this long.
    ///
    /// # Errors
    /// [`Error::WaitTimeout`] when it has not.
    pub async fn wait_for(&self, task: TaskId, longest: Duration) -> Result<TaskRecord, Error> {
        self.engine
            .wait("default", task, Some(longest))
            .await
            .map_err(|e| Error::of(e, task))
    }

    /// The task as it is now; `None` when there is no such task.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn task(&self, task: TaskId) -> Result<Option<TaskRecord>, Error> {
        Ok(self.engine.store().task("default", task).await?)
    }

    /// Cancels a task: one that waits ends at once, one that runs is asked to stop. True when that changed anything.
    ///
    /// # Errors
    /// When the task has completed or failed already, or does not exist.
    pub async fn cancel(&self, task: TaskId) -> Result<bool, Error> {
        self.command(task, Command::Cancel { reason: None }).await
    }

    /// Holds a task back, until it is resumed.
    ///
    /// # Errors
    /// When it has ended, or runs under a handler that cannot pause.
    pub async fn pause(&self, task: TaskId) -> Result<bool, Error> {
        self.command(task, Command::Pause).await
    }

    /// Lets a paused task go on.
    ///
    /// # Errors
    /// When it is not paused.
    pub async fn resume(&self, task: TaskId) -> Result<bool, Error> {
        self.command(task, Command::Resume).await
    }

    /// Runs a failed or cancelled task again, with all its retries.
    ///
    /// # Errors
    /// When it has completed, or has not ended.
    pub async fn retry(&self, task: TaskId) -> Result<bool, Error> {
        self.command(task, Command::Retry).await
    }

    /// Puts a signal into the inbox of a task.
    ///
    /// # Errors
    /// When the task has ended, or its inbox is full.
    pub async fn signal(&self, task: TaskId, name: &str, payload: impl Serialize) -> Result<bool, Error> {
        let payload = pensum_core::Json::of(&payload).map_err(|source| Error::Json {
            what: format!("the payload of signal `{name}`"),
            source,
        })?;
        self.command(
            task,
            Command::Signal {
                name: Name::from(name),
                payload,
            },
        )
        .await
    }

    async fn command(&self, task: TaskId, command: Command) -> Result<bool, Error> {
        let mut results = self.engine.command(&self.call(), vec![task], command).await?;
        match results.pop() {
            Some(Ok(Applied { .. })) => Ok(true),
            Some(Err(Rejected::Nothing(_))) => Ok(false),
            Some(Err(Rejected::NotFound(task))) => Err(Error::NotFound(task)),
            Some(Err(rejected)) => Err(Error::Rejected(rejected)),
            None => Err(Error::NotFound(task)),
        }
    }

    /// The engine, with all its verbs.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Stops: claims nothing more, lets running handlers end within thirty seconds, gives back what has not ended
    /// (without spending an attempt), and closes the store.
    pub async fn shutdown(self) {
        self.shutdown_within(SHUTDOWN_GRACE).await;
    }

    /// Like [`Pensum::shutdown`], with another grace time.
    pub async fn shutdown_within(self, grace: Duration) {
        self.engine.shutdown(grace).await;
        // A store that cannot be closed cleanly recovers at its next start, as after a crash.
        if let Err(error) = self.engine.store().close().await {
            tracing::warn!(%error, "the store was not closed cleanly");
        }
    }

    /// Enqueues on the database of this engine's store, where that is on PostgreSQL.
    pub(super) fn own_outbox(&self) -> Option<Outbox> {
        let outbox = self.outbox.clone()?;
        Some(Outbox::of(outbox, self.engine.clone(), self.actor.clone()))
    }

    pub(super) fn call(&self) -> Call {
        Call::new(self.actor.clone(), self.engine.now())
    }
}

/// Reads the result of an ended task.
pub(crate) fn result_of<T: DeserializeOwned>(record: &TaskRecord) -> Result<T, Error> {
    let task = record.id;
    if record.lifecycle.state != State::Completed {
        let error = record
            .error
            .clone()
            .unwrap_or_else(|| pensum_core::ErrorInfo::new("unknown", "no error was kept"));
        return Err(Error::Ended {
            task,
            state: record.lifecycle.state,
            error,
        });
    }
    let json = record.result.clone().unwrap_or_default();
    json.to().map_err(|source| Error::Json {
        what: format!("the result of task {task}"),
        source,
    })
}

type Step = Box<dyn FnOnce(EngineBuilder) -> EngineBuilder + Send>;

/// An engine to configure.
#[must_use = "nothing runs before `start`"]
pub struct Builder {
    url: String,
    steps: Vec<Step>,
    builtin: bool,
}

impl Builder {
    /// Where tasks are kept: `sqlite:PATH`, or `sqlite::memory:` for nothing that outlives the process.
    /// `sqlite:pensum.db` by default.
    pub fn store(mut self, url: impl Into<String>) -> Builder {
        self.url = url.into();
        self
    }

    /// Like [`Builder::store`], with the path of a SQLite file.
    pub fn sqlite(self, path: impl Into<PathBuf>) -> Builder {
        let path: PathBuf = path.into();
        self.store(format!("sqlite:{}", path.display()))
    }

    /// Adds a handler: an `async fn(Context, Parameters) -> Result<Output, TaskError>`.
    ///
    /// Parameters that do not fit the type are refused when a task is enqueued.
    pub fn handler<F, P, Fut, R>(self, name: &str, function: F) -> Builder
    where
        F: Fn(Context, P) -> Fut + Send + Sync + 'static,
        P: DeserializeOwned + Send + 'static,
        Fut: Future<Output = Result<R, TaskError>> + Send + 'static,
        R: Serialize + Send + 'static,
    {
        self.raw_handler(name, Typed::new(function))
    }

    /// Adds a [`Handler`], which may answer with any [`pensum_core::Outcome`]: run again, wait, yield.
    pub fn raw_handler(self, name: &str, handler: impl Handler) -> Builder {
        let name = Name::from(name);
        self.with(move |engine| engine.handler(name, handler))
    }

    /// Adds the built-in handlers `command`, `http`, `sleep`, `log`, `noop` and `fail`.
    pub fn builtin_handlers(mut self) -> Builder {
        self.builtin = true;
        self
    }

    /// How many tasks run at once.
    pub fn slots(self, slots: usize) -> Builder {
        self.with(move |engine| engine.slots(slots))
    }

    /// How long a handler has to return once it was asked to stop.
    pub fn grace(self, grace: Duration) -> Builder {
        self.with(move |engine| engine.grace(grace))
    }

    /// Whether tasks that come through the intake of a store on PostgreSQL may name `command` and `http`, which run whatever
    /// their parameters say; not by default, for whoever may insert there could run any command here.
    pub fn allow_inline(self, allow: bool) -> Builder {
        self.with(move |engine| engine.allow_inline(allow))
    }

    /// Calls a hook for every event of this node: created, started, progress, ended. It must return quickly.
    pub fn on_event(self, hook: impl Fn(&EngineEvent) + Send + Sync + 'static) -> Builder {
        self.with(move |engine| engine.on_event(hook))
    }

    fn with(mut self, step: impl FnOnce(EngineBuilder) -> EngineBuilder + Send + 'static) -> Builder {
        self.steps.push(Box::new(step));
        self
    }

    pub(crate) fn configure(self, mut engine: EngineBuilder) -> EngineBuilder {
        if self.builtin {
            engine = engine.builtin_handlers();
        }
        self.steps.into_iter().fold(engine, |engine, step| step(engine))
    }

    /// Opens the store and starts to work.
    ///
    /// # Errors
    /// When the store cannot be opened: in use by another process, damaged, newer than this program, not writable.
    pub async fn start(self) -> Result<Pensum, Error> {
        let owner = format!("process {}", std::process::id());
        let outbox = match pensum_store::is_postgres(&self.url) {
            true => Some(postgres::Outbox::new(&PostgresOptions::parse(&self.url)?.schema)?),
            false => None,
        };
        let store = pensum_store::connect(&self.url, &owner).await?;
        let engine = self.configure(Engine::builder(store)).build();
        engine.start();
        Ok(Pensum {
            engine,
            actor: Name::from("library"),
            outbox,
        })
    }
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Error {
        match error {
            EngineError::Invalid(invalid) => Error::Invalid(invalid),
            EngineError::Rejected(rejected) => Error::Rejected(rejected),
            EngineError::Store(error) => Error::Store(error),
            EngineError::NotFound(task) => Error::NotFound(task),
            EngineError::NoQueue { queue, .. } => Error::Rejected(Rejected::NoQueue(queue)),
            // Only waits time out, and they know their task: see `Error::of`.
            EngineError::WaitTimeout => Error::Store(pensum_core::StoreError::Closed),
        }
    }
}
