//! The work that is measured: tasks that do nothing, and the node that runs them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use async_trait::async_trait;
use pensum_core::store::Call;
use pensum_core::{Json, NewTask, Outcome, Spec, Store, TaskId, Time};
use pensum_engine::{Context, Engine, Handler, system_seams};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;

use super::meter::{seconds_since, tick};

/// The handler of the tasks that are run.
pub(super) const HANDLER: &str = "bench";
/// A handler that no node has, for tasks that stay where they are.
pub(super) const PARKED: &str = "parked";
/// Single enqueues under way at once.
pub(super) const IN_FLIGHT: usize = 50;
/// Tasks in one bulk enqueue.
pub(super) const BULK: u64 = 1_000;
/// Bulk enqueues under way at once: one is written while the next is made.
pub(super) const BULKS_IN_FLIGHT: usize = 2;
/// Between two questions whether the store is empty, at least.
const LOOK: Duration = Duration::from_millis(1);
/// The same in times of what the question takes, so that asking is no load of its own.
const LOOK_SHARE: u32 = 20;
/// The same, at most.
const LOOK_MAX: Duration = Duration::from_millis(50);
/// A store that is not empty and in which nothing ends for this long, in seconds, has lost tasks.
const STALL_MAX: f64 = 120.0;

/// A JSON object of about this many bytes.
pub(super) fn payload(number: u64, bytes: usize) -> String {
    let mut text = format!("{{\"i\":{number},\"d\":\"");
    let end = bytes.saturating_sub(2).max(text.len());
    text.push_str(&"x".repeat(end - text.len()));
    text.push_str("\"}");
    text
}

/// A plain task.
pub(super) fn task(handler: &str, number: u64, bytes: usize) -> anyhow::Result<NewTask> {
    Ok(NewTask::new(Spec::new(handler, Json::parse(payload(number, bytes))?)))
}

/// The present, by the clock of the store where it has one.
pub(super) fn now(store: &Arc<dyn Store>) -> Time {
    store.clock().map_or_else(|| system_seams().now(), |clock| clock.now())
}

/// Returns a result at once; remembers when the first run began, counts, and tells of every run when someone listens.
struct Noop {
    first: Arc<OnceLock<Instant>>,
    runs: Arc<AtomicU64>,
    starts: Option<UnboundedSender<Instant>>,
    result: Json,
}

#[async_trait]
impl Handler for Noop {
    async fn run(&self, _: Context) -> Outcome {
        if let Some(starts) = &self.starts {
            // Nobody listens any more at the end of a run.
            let _ = starts.send(tick());
        }
        self.runs.fetch_add(1, Ordering::Relaxed);
        if self.first.get().is_none() {
            self.first.get_or_init(tick);
        }
        Outcome::Done(self.result.clone())
    }
}

/// A store and a node over it.
pub(super) struct World {
    pub(super) store: Arc<dyn Store>,
    pub(super) engine: Engine,
    call: Call,
    payload: usize,
    first: Arc<OnceLock<Instant>>,
    runs: Arc<AtomicU64>,
}

impl World {
    /// A node that is not started yet.
    pub(super) fn new(store: Arc<dyn Store>, slots: usize, payload: usize) -> World {
        World::listening(store, slots, payload, None)
    }

    /// The same; the start of every run is sent to `starts`.
    pub(super) fn listening(
        store: Arc<dyn Store>,
        slots: usize,
        payload: usize,
        starts: Option<UnboundedSender<Instant>>,
    ) -> World {
        let (first, runs) = (Arc::new(OnceLock::new()), Arc::new(AtomicU64::new(0)));
        let result = Json::from(serde_json::json!({ "ok": true }));
        let handler = Noop {
            first: Arc::clone(&first),
            runs: Arc::clone(&runs),
            starts,
            result,
        };
        let engine = Engine::builder(Arc::clone(&store))
            .handler(HANDLER, handler)
            .slots(slots)
            .build();
        let call = Call::new("bench", engine.now());
        World {
            store,
            engine,
            call,
            payload,
            first,
            runs,
        }
    }

    fn call(&self) -> Call {
        Call {
            now: self.engine.now(),
            ..self.call.clone()
        }
    }

    /// When the first run began.
    pub(super) fn first_start(&self) -> anyhow::Result<Instant> {
        self.first.get().copied().context("no task was ever started")
    }

    /// How often a task was started on this node.
    pub(super) fn runs(&self) -> u64 {
        self.runs.load(Ordering::Relaxed)
    }

    /// Enqueues one task.
    pub(super) async fn enqueue_one(&self, number: u64) -> anyhow::Result<TaskId> {
        let enqueued = self
            .engine
            .enqueue(&self.call(), vec![task(HANDLER, number, self.payload)?])
            .await?;
        Ok(enqueued.first().context("an enqueue gave no id")?.id)
    }

    /// Enqueues tasks one a call, [`IN_FLIGHT`] at once. Answers one of the ids.
    pub(super) async fn enqueue_singles(self: &Arc<Self>, count: u64) -> anyhow::Result<TaskId> {
        let next = Arc::new(AtomicU64::new(0));
        let mut callers = JoinSet::new();
        for _ in 0..IN_FLIGHT {
            let (world, next) = (Arc::clone(self), Arc::clone(&next));
            callers.spawn(async move {
                let mut last = None;
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return anyhow::Ok(last);
                    }
                    last = Some(world.enqueue_one(number).await?);
                }
            });
        }
        last_of(callers).await
    }

    /// Enqueues tasks [`BULK`] a call, [`BULKS_IN_FLIGHT`] calls at once. Answers one of the ids.
    pub(super) async fn enqueue_bulk(self: &Arc<Self>, handler: &'static str, count: u64) -> anyhow::Result<TaskId> {
        let payload = self.payload;
        self.enqueue_made(count, move |number| task(handler, number, payload))
            .await
    }

    /// The same with tasks that `make` makes of their numbers.
    pub(super) async fn enqueue_made<M>(self: &Arc<Self>, count: u64, make: M) -> anyhow::Result<TaskId>
    where
        M: Fn(u64) -> anyhow::Result<NewTask> + Send + Sync + 'static,
    {
        let (next, make) = (Arc::new(AtomicU64::new(0)), Arc::new(make));
        let mut callers = JoinSet::new();
        for _ in 0..BULKS_IN_FLIGHT {
            let (world, next, make) = (Arc::clone(self), Arc::clone(&next), Arc::clone(&make));
            callers.spawn(async move {
                let mut last = None;
                loop {
                    let from = next.fetch_add(BULK, Ordering::Relaxed);
                    if from >= count {
                        return anyhow::Ok(last);
                    }
                    let numbers = from..(from + BULK).min(count);
                    let tasks = numbers.map(|number| make(number)).collect::<Result<_, _>>()?;
                    last = world
                        .engine
                        .enqueue(&world.call(), tasks)
                        .await?
                        .last()
                        .map(|item| item.id);
                }
            });
        }
        last_of(callers).await
    }

    /// Enqueues tasks that may depend on each other, in one call.
    pub(super) async fn enqueue_together(&self, tasks: Vec<NewTask>) -> anyhow::Result<()> {
        self.engine.enqueue(&self.call(), tasks).await?;
        Ok(())
    }

    /// Waits until the store has nothing left to do.
    ///
    /// # Errors
    /// When nothing ends for [`STALL_MAX`] seconds.
    pub(super) async fn until_empty(&self) -> anyhow::Result<()> {
        let (mut least, mut since) = (u64::MAX, tick());
        loop {
            let asked = tick();
            let total = self
                .store
                .counts(&self.call.namespace, self.engine.now())
                .await?
                .total();
            let left = total.pending + total.ready + total.running + total.retrying;
            if left == 0 {
                return Ok(());
            }
            if left < least {
                (least, since) = (left, tick());
            }
            ensure!(
                seconds_since(since) < STALL_MAX,
                "{left} tasks are left ({} running) and none has ended for {STALL_MAX} s: they are lost",
                total.running
            );
            tokio::time::sleep((asked.elapsed() * LOOK_SHARE).clamp(LOOK, LOOK_MAX)).await;
        }
    }

    /// Checks that `count` tasks completed, that they were started as often, and that one of them has its result and its
    /// history.
    pub(super) async fn check(&self, count: u64, sample: TaskId, runs: u64) -> anyhow::Result<()> {
        let total = self
            .store
            .counts(&self.call.namespace, self.engine.now())
            .await?
            .total();
        ensure!(
            total.completed == count,
            "{} of {count} tasks completed: the others are lost",
            total.completed
        );
        ensure!(runs == count, "{count} tasks were started {runs} times: some ran twice");
        let record = self
            .store
            .task(&self.call.namespace, sample)
            .await?
            .context("a task is gone")?;
        ensure!(record.result.is_some(), "task {sample} has no result");
        let events = self.store.events(&self.call.namespace, sample).await?;
        ensure!(!events.is_empty(), "task {sample} has no events");
        Ok(())
    }

    /// Ends the node and closes the store.
    pub(super) async fn close(&self) -> anyhow::Result<()> {
        self.engine.shutdown(Duration::from_secs(10)).await;
        Ok(self.store.close().await?)
    }
}

async fn last_of(mut callers: JoinSet<anyhow::Result<Option<TaskId>>>) -> anyhow::Result<TaskId> {
    let mut last = None;
    while let Some(done) = callers.join_next().await {
        last = done??.or(last);
    }
    last.context("no task was enqueued")
}

/// What an acknowledgement means to a store.
pub(super) async fn durability_of(store: &Arc<dyn Store>) -> anyhow::Result<String> {
    Ok(store.stats().await?.durability)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tasks_that_were_lost_or_ran_twice_are_an_error() {
        let store = pensum_store::connect("sqlite::memory:", "test").await.unwrap();
        let world = Arc::new(World::new(store, 4, 0));
        let sample = world.enqueue_bulk(HANDLER, 3).await.unwrap();
        world.engine.start();
        world.until_empty().await.unwrap();
        assert_eq!(world.runs(), 3);
        world.check(3, sample, 3).await.unwrap();
        let lost = world.check(4, sample, 4).await.unwrap_err().to_string();
        assert!(lost.contains("3 of 4") && lost.contains("lost"), "{lost}");
        let twice = world.check(3, sample, 4).await.unwrap_err().to_string();
        assert!(twice.contains("ran twice"), "{twice}");
        world.close().await.unwrap();
    }

    #[test]
    fn a_payload_is_json_of_the_size_asked_for() {
        for bytes in [0, 30, 200, 1000] {
            let text = payload(12_345, bytes);
            assert!(serde_json::from_str::<serde_json::Value>(&text).unwrap().is_object());
            assert!(text.len() == bytes || bytes < 24, "{bytes}: {}", text.len());
        }
    }
}
