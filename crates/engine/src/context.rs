//! What a handler knows and may say while it runs.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use pensum_core::outcome::{Progress, Usage};
use pensum_core::store::{Checkpoint, LogLine, LogStream, Signal};
use pensum_core::task::OnDependencyFailure;
use pensum_core::{ErrorInfo, Json, Name, NewTask, Rejected, Spec, State, StoreError, TaskId, Time};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::hub::EngineEvent;
use crate::run::{Run, StopReason};
use crate::{Engine, kinds};

/// What the steps are called by which a write with children is known again.
const CHILDREN_STEP: &str = "children, write";
/// How often a write of a running handler is tried while the store is unavailable.
const WRITE_TRIES: u32 = 6;
/// The pause after the first failed write; it doubles.
const WRITE_PAUSE: Duration = Duration::from_millis(50);

/// A handler's view of its run. Cheap to clone; clones are the same run.
#[derive(Clone)]
pub struct Context {
    run: Arc<Run>,
    /// What the handler is to see instead of the task's own spec.
    spec: Option<Arc<Spec>>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Context({}.{})", self.run.id(), self.run.attempt)
    }
}

/// What it is.
impl Context {
    pub(crate) fn new(run: Arc<Run>) -> Context {
        Context { run, spec: None }
    }

    /// The same run as seen by an inner handler that gets other parameters.
    #[must_use]
    pub fn with_parameters(&self, parameters: Json) -> Context {
        let spec = Spec {
            parameters,
            ..self.spec().clone()
        };
        Context {
            run: Arc::clone(&self.run),
            spec: Some(Arc::new(spec)),
        }
    }

    /// The task.
    pub fn id(&self) -> TaskId {
        self.run.id()
    }

    /// What the task asks for.
    pub fn spec(&self) -> &Spec {
        self.spec.as_ref().unwrap_or(&self.run.spec)
    }

    /// Which attempt this is, from 1. Runs after a wait belong to the same attempt.
    pub fn attempt(&self) -> u32 {
        self.run.attempt
    }

    /// The namespace that the task lives in.
    pub fn namespace(&self) -> &Name {
        &self.run.namespace
    }

    /// Reads the task's parameters.
    ///
    /// # Errors
    /// Kind `bad_parameters`, with the path of the field at fault.
    pub fn parameters<T: DeserializeOwned>(&self) -> Result<T, ErrorInfo> {
        pensum_core::input::parse(self.spec().parameters.get().as_bytes())
            .map_err(|invalid| ErrorInfo::new(kinds::BAD_PARAMETERS, format!("parameters: {invalid}")))
    }

    /// What an earlier run of this task left.
    pub fn checkpoint(&self) -> Option<&Json> {
        self.run.checkpoint.as_ref()
    }

    /// The engine that runs this.
    pub fn engine(&self) -> &Engine {
        &self.run.engine
    }

    /// The present, by the engine's clock.
    pub fn now(&self) -> Time {
        self.run.engine.now()
    }

    /// Which of the task's dependencies failed or were cancelled, for tasks with `on_dependency_failure: run`; empty
    /// for all others.
    ///
    /// # Errors
    /// Kind `store_unavailable`.
    pub async fn failed_dependencies(&self) -> Result<Vec<TaskId>, ErrorInfo> {
        let runs_anyway = self
            .spec()
            .details
            .as_ref()
            .is_some_and(|d| d.on_dependency_failure == OnDependencyFailure::Run);
        if !runs_anyway {
            return Ok(Vec::new());
        }
        let store = self.run.engine.store();
        let Some(record) = store.task(self.namespace(), self.id()).await.map_err(unavailable)? else {
            return Ok(Vec::new());
        };
        let mut failed = Vec::new();
        for id in record.depends_on {
            let dependency = store.task(self.namespace(), id).await.map_err(unavailable)?;
            if dependency.is_some_and(|d| matches!(d.lifecycle.state, State::Failed | State::Cancelled)) {
                failed.push(id);
            }
        }
        Ok(failed)
    }
}

/// What it says.
impl Context {
    /// Says how far the work is, 0 to 100. The store sees the newest within a quarter of a second.
    pub fn progress(&self, percent: f64, message: impl Into<Option<String>>) {
        let percent = if percent.is_finite() {
            percent.clamp(0.0, 100.0)
        } else {
            0.0
        };
        let message = message.into().map(|m: String| {
            if m.contains('\0') {
                m.replace('\0', "\u{FFFD}")
            } else {
                m
            }
        });
        let progress = Progress { percent, message };
        let now = self.now();
        self.run.lives(now);
        let hub = self.run.engine.hub();
        if hub.is_watched() {
            let (task, namespace) = (self.id(), self.namespace().clone());
            hub.emit(EngineEvent::Progress {
                task,
                namespace,
                progress: progress.clone(),
                at: now,
            });
        }
        self.run.set_progress(progress);
    }

    /// Writes a line to the task's log.
    pub fn log(&self, message: impl Into<String>) {
        self.log_line(LogStream::Log, message);
    }

    /// Writes a line of a stream to the task's log. What one run may write is bounded by
    /// [`LOG_LINES_MAX`](pensum_core::store::LOG_LINES_MAX) and [`LOG_BYTES_MAX`](crate::LOG_BYTES_MAX); the rest is dropped.
    pub fn log_line(&self, stream: LogStream, message: impl Into<String>) {
        let at = self.now();
        self.run.lives(at);
        let line = LogLine {
            at,
            attempt: self.run.attempt,
            stream,
            message: message.into(),
        };
        let hub = self.run.engine.hub();
        let event = hub.is_watched().then(|| EngineEvent::Log {
            task: self.id(),
            namespace: self.namespace().clone(),
            line: line.clone(),
        });
        if self.run.add_line(line)
            && let Some(event) = event
        {
            hub.emit(event);
        }
    }

    /// Says that the work goes on: starts the `heartbeat_timeout` anew. Progress and log lines do so too.
    pub fn heartbeat(&self) {
        self.run.lives(self.now());
    }

    /// Says what the run used, for handlers that measure it. `wall_seconds` is the engine's own figure.
    pub fn usage(&self, usage: Usage) {
        self.run.extras.lock().usage = Some(usage);
    }
}

/// What it is told.
impl Context {
    /// Fires on cancel, timeout, lost lease and shutdown; [`Context::stop_reason`] says which.
    pub fn cancellation(&self) -> &CancellationToken {
        self.run.token()
    }

    /// Why the run was asked to stop, if it was.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.run.stop_reason()
    }

    /// How much time is left before the handler's future is dropped; the engine's grace while nobody asked it to stop.
    pub fn grace(&self) -> Duration {
        match self.run.kill_at() {
            Some(at) => at.since(self.now()),
            None => self.run.engine.grace(),
        }
    }

    /// True while someone wants the task to pause.
    pub fn pause_requested(&self) -> bool {
        self.run.pause_requested()
    }

    /// Returns when a pause is asked for (true) or is over (false), each change once. For handlers that
    /// [can pause](crate::Handler::can_pause); one waiter at a time.
    pub async fn pause_changed(&self) -> bool {
        self.run.pause_changed().await
    }

    /// Tells the store that the pause took effect while the run keeps its lease and its slot. Its clocks stand still
    /// until it is resumed.
    ///
    /// # Errors
    /// Kinds `lease_lost` and `store_unavailable`.
    pub async fn paused(&self) -> Result<(), ErrorInfo> {
        self.run.freeze(self.now());
        let checkpoint = Checkpoint {
            paused: true,
            ..Checkpoint::new(self.run.lease)
        };
        match self.write(checkpoint).await {
            // The request was taken back meanwhile; the resume is on its way to the handler.
            Err(WriteError::Rejected(Rejected::Nothing(_))) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What it keeps.
impl Context {
    /// Saves state for the next run, together with what was consumed and spawned so far. Once it returns, the state
    /// is on disk.
    ///
    /// # Errors
    /// Kinds `lease_lost`, `store_unavailable`, and `bad_checkpoint` for what JSON cannot hold.
    pub async fn save(&self, state: &(impl Serialize + Sync)) -> Result<(), ErrorInfo> {
        let state = json(state, "the checkpoint", kinds::BAD_CHECKPOINT)?;
        let checkpoint = Checkpoint {
            state: Some(state),
            ..Checkpoint::new(self.run.lease)
        };
        self.write_extras(checkpoint).await
    }

    /// Runs `f` once in the life of the task: its result is kept under `name`, and later runs and attempts get that
    /// instead of running `f` again. A crash between the end of `f` and the answer of the disk does run it again.
    ///
    /// # Errors
    /// Those of `f`, and of [`Context::save`].
    pub async fn step<T, F, Fut>(&self, name: &str, f: F) -> Result<T, ErrorInfo>
    where
        T: Serialize + DeserializeOwned + Sync,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, ErrorInfo>>,
    {
        if let Some(result) = self.kept_step(name).await? {
            return result.to().map_err(|e| {
                ErrorInfo::new(
                    kinds::BAD_CHECKPOINT,
                    format!("the kept result of step `{name}` cannot be read: {e}"),
                )
            });
        }
        let result = f().await?;
        let kept = json(&result, &format!("the result of step `{name}`"), kinds::BAD_CHECKPOINT)?;
        let name = Name::from(name);
        let checkpoint = Checkpoint {
            step: Some((name.clone(), kept.clone())),
            ..Checkpoint::new(self.run.lease)
        };
        self.write_extras(checkpoint).await?;
        if let Some(steps) = &mut self.run.extras.lock().steps {
            steps.insert(name, kept);
        }
        Ok(result)
    }

    async fn kept_step(&self, name: &str) -> Result<Option<Json>, ErrorInfo> {
        if let Some(steps) = &self.run.extras.lock().steps {
            return Ok(steps.get(name).cloned());
        }
        let steps = self.run.engine.store().steps(self.id()).await.map_err(unavailable)?;
        let mut extras = self.run.extras.lock();
        let known = extras.steps.get_or_insert_with(Default::default);
        for (name, result) in steps {
            known.entry(name).or_insert(result);
        }
        Ok(known.get(name).cloned())
    }

    /// The signals in the task's inbox that this run has not consumed, oldest first.
    ///
    /// # Errors
    /// Kind `store_unavailable`.
    pub async fn signals(&self) -> Result<Vec<Signal>, ErrorInfo> {
        let mut signals = self.run.engine.store().inbox(self.id()).await.map_err(unavailable)?;
        let extras = self.run.extras.lock();
        signals.retain(|signal| !extras.consumed.contains(&signal.seq));
        Ok(signals)
    }

    /// Uses a signal up: it leaves the inbox in the transaction of the next save or step, or of the end of this run
    /// unless that is a failure.
    pub fn consume(&self, seq: u64) {
        self.run.extras.lock().consumed.push(seq);
    }

    /// Has a child enqueued in the transaction of the next save or step, or of the end of this run unless that is a
    /// failure. Like any other task it gets from its queue what it does not name.
    pub fn spawn_child(&self, mut task: NewTask) {
        let engine = &self.run.engine;
        engine.fill_from_seen_queues(self.namespace(), std::slice::from_mut(&mut task));
        self.run.extras.lock().spawn.push(task);
    }

    /// Writes a checkpoint with what was consumed and spawned; puts that back when it fails.
    async fn write_extras(&self, mut checkpoint: Checkpoint) -> Result<(), ErrorInfo> {
        let unsure = self.run.extras.lock().unsure_children.clone();
        if let Some((step, count)) = unsure {
            self.settle_children(&step, count).await.map_err(unavailable)?;
        }
        let (consumed, spawn, writes) = {
            let mut extras = self.run.extras.lock();
            let (consumed, spawn) = (std::mem::take(&mut extras.consumed), std::mem::take(&mut extras.spawn));
            (consumed, spawn, extras.writes_with_children)
        };
        checkpoint.consumed.clone_from(&consumed);
        checkpoint.spawn.clone_from(&spawn);
        if !spawn.is_empty() {
            let count = json(&spawn.len(), "a number", kinds::BAD_CHECKPOINT)?;
            let step = format!("{CHILDREN_STEP} {writes} of {}", self.run.lease.lease);
            checkpoint.step.get_or_insert((Name::from(step), count));
        }
        let step = checkpoint.step.as_ref().map(|(step, _)| step.clone());
        let written = self.write(checkpoint).await;
        let mut extras = self.run.extras.lock();
        match &written {
            Ok(()) => extras.writes_with_children += u32::from(!spawn.is_empty()),
            Err(error) => {
                if matches!(error, WriteError::Store(_)) {
                    extras.unsure_children = step.filter(|_| !spawn.is_empty()).map(|step| (step, spawn.len()));
                }
                extras.consumed.splice(0..0, consumed);
                extras.spawn.splice(0..0, spawn);
            }
        }
        drop(extras);
        Ok(written?)
    }

    /// Finds out what became of a write with `count` children that was given up without an answer.
    async fn settle_children(&self, step: &Name, count: usize) -> Result<(), StoreError> {
        let is_kept = self.has_step(step).await?;
        let mut extras = self.run.extras.lock();
        if is_kept {
            extras.spawn.drain(..count);
            extras.writes_with_children += 1;
        }
        extras.unsure_children = None;
        Ok(())
    }

    async fn write(&self, checkpoint: Checkpoint) -> Result<(), WriteError> {
        let engine = &self.run.engine;
        let mut pause = WRITE_PAUSE;
        let mut tries = 1;
        loop {
            self.run.lives(self.now());
            // Everything else in it may be written twice; children would be there twice.
            let earlier = checkpoint
                .step
                .as_ref()
                .filter(|_| tries > 1 && !checkpoint.spawn.is_empty());
            let is_kept = match earlier {
                Some((step, _)) => self.has_step(step).await,
                None => Ok(false),
            };
            let answer = match is_kept {
                Ok(true) => Ok(Ok(())),
                Ok(false) => {
                    let answer = engine.store().checkpoint(checkpoint.clone(), self.now()).await;
                    answer.map(|answer| answer.map(drop))
                }
                Err(error) => Err(error),
            };
            match answer {
                Ok(Ok(())) => {
                    if !checkpoint.spawn.is_empty() {
                        engine.wake_claims();
                    }
                    return Ok(());
                }
                Ok(Err(rejected)) => {
                    if matches!(rejected, Rejected::LeaseLost(_)) {
                        self.run.stop(StopReason::LeaseLost, self.now(), engine.grace());
                    }
                    return Err(WriteError::Rejected(rejected));
                }
                Err(StoreError::Unavailable(_)) if tries < WRITE_TRIES => {
                    engine.seams().clock.sleep_until(self.now().plus(pause)).await;
                    (tries, pause) = (tries + 1, pause * 2);
                }
                Err(error) => return Err(WriteError::Store(error)),
            }
        }
    }

    /// Whether the store has this step: asked past what the run remembers.
    async fn has_step(&self, step: &Name) -> Result<bool, StoreError> {
        let steps = self.run.engine.store().steps(self.id()).await?;
        Ok(steps.iter().any(|(kept, _)| kept == step))
    }
}

enum WriteError {
    Rejected(Rejected),
    Store(StoreError),
}

impl From<WriteError> for ErrorInfo {
    fn from(error: WriteError) -> ErrorInfo {
        match error {
            WriteError::Rejected(rejected @ Rejected::LeaseLost(_)) => {
                ErrorInfo::new(kinds::LEASE_LOST, rejected.to_string())
            }
            WriteError::Rejected(rejected) => ErrorInfo::new(kinds::BAD_CHECKPOINT, rejected.to_string()),
            WriteError::Store(error) => unavailable(error),
        }
    }
}

fn unavailable(error: StoreError) -> ErrorInfo {
    ErrorInfo::new(kinds::STORE_UNAVAILABLE, error.to_string())
}

/// The JSON of a value that a store can keep.
fn json(value: &impl Serialize, what: &str, kind: &str) -> Result<Json, ErrorInfo> {
    let json = Json::of(value).map_err(|e| ErrorInfo::new(kind, format!("{what} cannot be written as JSON: {e}")))?;
    match json.problem() {
        None => Ok(json),
        Some(problem) => Err(ErrorInfo::new(kind, format!("{what} {problem}"))),
    }
}
