//! Many callers at once: whatever interleaving comes, the store stays sound, and nothing is lost or done twice.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pensum_core::store::{Call, ClaimRequest, Command, Finish, Store};
use pensum_core::task::Dependency;
use pensum_core::{
    ErrorInfo, Json, Name, NewTask, NodeId, Outcome, Page, Priority, Spec, State, TaskFilter, TaskId, Time,
};
use pensum_store::sqlite::{SqliteOptions, SqliteStore};

/// What all callers share.
struct World {
    store: SqliteStore,
    clock: AtomicI64,
    tasks: Mutex<Vec<TaskId>>,
    completed: Mutex<HashMap<TaskId, u32>>,
    finished: AtomicUsize,
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

impl World {
    /// Each look at the clock moves it on a little.
    fn now(&self) -> Time {
        Time::from_micros(self.clock.fetch_add(1_000, Ordering::Relaxed))
    }

    fn any_task(&self, dice: &mut Dice) -> Option<TaskId> {
        let tasks = self.tasks.lock();
        let len = tasks.len() as u64;
        (len > 0).then(|| tasks[dice.roll(len) as usize])
    }

    async fn produce(self: Arc<World>, mut dice: Dice) {
        for _ in 0..150 {
            let mut batch = Vec::new();
            for item in 0..=dice.roll(5) as usize {
                let mut task = NewTask::new(Spec::new("noop", Json::null()));
                task.spec.priority = Priority::from_level(1 + dice.roll(5) as i64).unwrap();
                match dice.roll(6) {
                    0 => task.spec.key = Some(Name::from(format!("key {}", dice.roll(4)))),
                    1 => task.run_at = Some(self.now().plus(Duration::from_millis(dice.roll(50)))),
                    2 if item > 0 => task.depends_on.push(Dependency::Item(item - 1)),
                    3 => task.depends_on.extend(self.any_task(&mut dice).map(Dependency::Task)),
                    _ => {}
                }
                batch.push(task);
            }
            let call = Call::new("producer", self.now());
            // A dependency may have been deleted a moment ago.
            let Ok(made) = self.store.enqueue(&call, batch).await else {
                continue;
            };
            self.tasks.lock().extend(made.iter().map(|m| m.id));
        }
    }

    async fn work(self: Arc<World>, node: u64, mut dice: Dice) {
        loop {
            let request = ClaimRequest {
                wait: Duration::from_millis(dice.roll(20)),
                ..ClaimRequest::new(
                    NodeId(node),
                    format!("node {node}"),
                    1 + dice.roll(8) as usize,
                    Duration::from_secs(3600),
                )
            };
            let claimed = self.store.claim(request, self.now()).await.unwrap();
            if claimed.is_empty() && self.finished.load(Ordering::Relaxed) == 0 {
                return;
            }
            let mut finishes = Vec::new();
            for claimed in &claimed {
                let outcome = match dice.roll(10) {
                    0 => Outcome::Retry {
                        error: ErrorInfo::new("boom", "it broke"),
                        after: Some(Duration::from_millis(5)),
                    },
                    1 => Outcome::Fail(ErrorInfo::new("boom", "it broke")),
                    2 => Outcome::Again {
                        after: Duration::ZERO,
                        checkpoint: Some(Json::null()),
                    },
                    3 => Outcome::Released,
                    _ => Outcome::Done(Json::null()),
                };
                finishes.push(Finish::new(claimed.lease, outcome));
            }
            let results = self.store.finish(finishes, self.now()).await.unwrap();
            for (claimed, result) in claimed.iter().zip(results) {
                let applied = result.unwrap();
                if applied.state == Some(State::Completed) {
                    *self.completed.lock().entry(claimed.lease.task).or_default() += 1;
                }
            }
        }
    }

    async fn meddle(self: Arc<World>, mut dice: Dice) {
        for _ in 0..400 {
            let Some(id) = self.any_task(&mut dice) else {
                tokio::task::yield_now().await;
                continue;
            };
            let command = match dice.roll(6) {
                0 => Command::Cancel { reason: None },
                1 => Command::Pause,
                2 => Command::Retry,
                3 => Command::RunNow,
                _ => Command::Resume,
            };
            let call = Call::new("meddler", self.now());
            // Most commands come at the wrong time, and are refused.
            let _ = self.store.command(&call, vec![id], command).await.unwrap();
            let record = self.store.task("default", id).await.unwrap().unwrap();
            assert_eq!(
                record.lifecycle.state == State::Running,
                record.lifecycle.lease.is_some()
            );
            let page = self
                .store
                .tasks("default", TaskFilter::default(), Page::default(), self.now())
                .await
                .unwrap();
            assert!(
                page.items
                    .iter()
                    .all(|t| !t.lifecycle.state.is_terminal() || t.lifecycle.finished_at.is_some())
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_at_once_leave_a_sound_store_and_complete_nothing_twice() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let start = Time::parse("2026-03-01T12:00:00Z").unwrap();
    let world = Arc::new(World {
        store: SqliteStore::open(SqliteOptions::new(&path)).unwrap(),
        clock: AtomicI64::new(start.as_micros()),
        tasks: Mutex::default(),
        completed: Mutex::default(),
        finished: AtomicUsize::new(3),
    });
    let mut callers = Vec::new();
    for seed in 0..2 {
        callers.push(tokio::spawn(world.clone().produce(Dice(seed))));
    }
    callers.push(tokio::spawn(world.clone().meddle(Dice(99))));
    let workers: Vec<_> = (1..=3)
        .map(|node| tokio::spawn(world.clone().work(node, Dice(node * 7))))
        .collect();
    for caller in callers {
        caller.await.unwrap();
        world.finished.fetch_sub(1, Ordering::Relaxed);
    }
    for worker in workers {
        worker.await.unwrap();
    }
    let (tasks, completed) = (world.tasks.lock().clone(), world.completed.lock().clone());
    assert!(
        tasks.len() > 500 && completed.len() > 300,
        "{} tasks, {} completed",
        tasks.len(),
        completed.len()
    );
    assert!(completed.values().all(|times| *times == 1));
    let now = world.now().plus(Duration::from_secs(1));
    let counts = world.store.counts("default", now).await.unwrap().total();
    assert_eq!(
        (counts.sum(), counts.completed),
        (tasks.len() as u64, completed.len() as u64)
    );
    assert_eq!(world.store.verify().await.unwrap().violations, Vec::<String>::new());

    let image = directory.path().join("image.db");
    std::fs::copy(&path, &image).unwrap();
    std::fs::copy(
        directory.path().join("store.db-wal"),
        directory.path().join("image.db-wal"),
    )
    .unwrap();
    let reopened = SqliteStore::open(SqliteOptions::new(&image)).unwrap();
    reopened.reap(now, 1000).await.unwrap();
    assert_eq!(
        reopened.counts("default", now).await.unwrap().total().sum(),
        tasks.len() as u64
    );
    assert_eq!(reopened.verify().await.unwrap().violations, Vec::<String>::new());
}
