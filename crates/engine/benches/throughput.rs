//! How many no-op tasks a second the node itself can run, over a store that costs next to nothing: what is left of it
//! over a real store is the store's doing.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a benchmark measures real time and prints it"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pensum_core::agent::{AgentCommand, AgentRecord, AgentSettings};
use pensum_core::breaker::{BreakerCommand, BreakerRecord, BreakerSettings};
use pensum_core::input::Patch;
use pensum_core::query::{Counts, Paged};
use pensum_core::queue::{QueueCommand, QueueRecord, QueueSettings};
use pensum_core::store::*;
use pensum_core::task::{Execution, Lease, Lifecycle, OnDependencyFailure};
use pensum_core::{
    Json, LeaseId, Name, NewTask, NodeId, Page, Spec, State, Store, StoreError, TaskFilter, TaskId, TaskRecord, Time,
};
use pensum_engine::Engine;

const TASKS: u64 = 1_000_000;
/// As long as a fast disk takes to sync.
const COMMIT: Duration = Duration::from_micros(500);

struct InstantStore {
    spec: Arc<Spec>,
    claimed: AtomicU64,
    finished: AtomicU64,
    claims: AtomicU64,
    finishes: AtomicU64,
}

fn closed<T>() -> Result<T, StoreError> {
    Err(StoreError::Unavailable("not part of the benchmark".to_owned()))
}

#[async_trait]
impl Store for InstantStore {
    async fn claim(&self, request: ClaimRequest, now: Time) -> Result<Vec<Claimed>, StoreError> {
        let first = self.claimed.fetch_add(request.slots as u64, Ordering::Relaxed);
        let count = TASKS.saturating_sub(first).min(request.slots as u64);
        if count == 0 {
            std::future::pending::<()>().await;
        }
        self.claims.fetch_add(1, Ordering::Relaxed);
        let namespace = Name::from("default");
        Ok((first..first + count)
            .map(|row| {
                let id = LeaseId(u128::from(row));
                let mut lifecycle = Lifecycle::new(now, None, 0, OnDependencyFailure::Cancel);
                lifecycle.state = State::Running;
                lifecycle.attempt = 1;
                lifecycle.lease = Some(Lease {
                    id,
                    node: request.node,
                    expires_at: now.plus(request.lease),
                });
                Claimed {
                    bare: None,
                    lease: LeaseRef {
                        task: TaskId::mint(now, row as i64, row),
                        lease: id,
                    },
                    namespace: namespace.clone(),
                    spec: Arc::clone(&self.spec),
                    lifecycle,
                    checkpoint: None,
                    created_at: now,
                }
            })
            .collect())
    }

    async fn finish(&self, finishes: Vec<Finish>, _: Time) -> Result<Vec<Result<Applied, Rejected>>, StoreError> {
        tokio::time::sleep(COMMIT).await;
        self.finishes.fetch_add(1, Ordering::Relaxed);
        self.finished.fetch_add(finishes.len() as u64, Ordering::Relaxed);
        Ok(finishes
            .iter()
            .map(|_| {
                Ok(Applied {
                    state: Some(State::Completed),
                    ..Applied::default()
                })
            })
            .collect())
    }

    async fn renew(&self, beats: Vec<Beat>, lease: Duration, now: Time) -> Result<Vec<Renewal>, StoreError> {
        let held = Renewal::Held {
            expires_at: now.plus(lease),
            cancel: false,
            pause: false,
        };
        Ok(vec![held; beats.len()])
    }

    async fn heartbeat(&self, _: NodeBeat, _: Time) -> Result<NodeReply, StoreError> {
        Ok(NodeReply::default())
    }

    async fn leave(&self, _: NodeId, _: Time) -> Result<(), StoreError> {
        Ok(())
    }

    async fn nodes(&self, _: Time) -> Result<Vec<NodeRecord>, StoreError> {
        Ok(Vec::new())
    }

    async fn reap(&self, _: Time, _: usize) -> Result<Reaped, StoreError> {
        Ok(Reaped::default())
    }

    async fn prune(&self, _: Retention, _: Time, _: usize) -> Result<Pruned, StoreError> {
        Ok(Pruned::default())
    }

    async fn enqueue(&self, _: &Call, _: Vec<NewTask>) -> Result<Vec<Enqueued>, StoreError> {
        closed()
    }
    async fn checkpoint(&self, _: Checkpoint, _: Time) -> Result<Result<Applied, Rejected>, StoreError> {
        closed()
    }
    async fn command(
        &self,
        _: &Call,
        _: Vec<TaskId>,
        _: Command,
    ) -> Result<Vec<Result<Applied, Rejected>>, StoreError> {
        closed()
    }
    async fn update(
        &self,
        _: &Call,
        _: TaskId,
        _: Patch,
        _: Option<u64>,
    ) -> Result<Result<TaskRecord, Rejected>, StoreError> {
        closed()
    }
    async fn task(&self, _: &str, _: TaskId) -> Result<Option<TaskRecord>, StoreError> {
        closed()
    }
    async fn tasks(&self, _: &str, _: TaskFilter, _: Page, _: Time) -> Result<Paged<TaskRecord>, StoreError> {
        closed()
    }
    async fn executions(&self, _: &str, _: TaskId) -> Result<Vec<Execution>, StoreError> {
        closed()
    }
    async fn all_executions(&self, _: &str, _: Page) -> Result<Paged<Execution>, StoreError> {
        closed()
    }
    async fn events(&self, _: &str, _: TaskId) -> Result<Vec<TaskEvent>, StoreError> {
        closed()
    }
    async fn logs(&self, _: &str, _: TaskId, _: u64, _: usize) -> Result<Vec<LogEntry>, StoreError> {
        closed()
    }
    async fn dependants(&self, _: &str, _: TaskId) -> Result<Vec<TaskId>, StoreError> {
        closed()
    }
    async fn inbox(&self, _: TaskId) -> Result<Vec<Signal>, StoreError> {
        closed()
    }
    async fn steps(&self, _: TaskId) -> Result<Vec<(Name, Json)>, StoreError> {
        closed()
    }
    async fn key_holders(&self, _: &str, _: &str) -> Result<Vec<TaskId>, StoreError> {
        closed()
    }
    async fn put_queue(&self, _: &Call, _: Name, _: QueueSettings, _: Option<u64>) -> Result<QueueRecord, StoreError> {
        closed()
    }
    async fn command_queue(&self, _: &Call, _: Name, _: QueueCommand) -> Result<QueueRecord, StoreError> {
        closed()
    }
    async fn delete_queue(&self, _: &Call, _: Name) -> Result<(), StoreError> {
        closed()
    }
    async fn queues(&self, _: &str) -> Result<Vec<QueueRecord>, StoreError> {
        Ok(Vec::new())
    }
    async fn put_agent(&self, _: &Call, _: Name, _: AgentSettings) -> Result<AgentRecord, StoreError> {
        closed()
    }
    async fn command_agent(&self, _: &Call, _: Name, _: AgentCommand) -> Result<AgentRecord, StoreError> {
        closed()
    }
    async fn delete_agent(&self, _: &Call, _: Name) -> Result<(), StoreError> {
        closed()
    }
    async fn open_session(&self, _: &Call, _: Name, _: NodeId) -> Result<AgentRecord, StoreError> {
        closed()
    }
    async fn close_session(&self, _: &Call, _: Name, _: NodeId) -> Result<(), StoreError> {
        closed()
    }
    async fn beat_agent(&self, _: &Call, _: Name, _: Option<NodeId>) -> Result<AgentRecord, StoreError> {
        closed()
    }
    async fn agents(&self, _: &str) -> Result<Vec<AgentRecord>, StoreError> {
        Ok(Vec::new())
    }
    async fn put_breaker(
        &self,
        _: &Call,
        _: Name,
        _: BreakerSettings,
        _: Option<u64>,
    ) -> Result<BreakerRecord, StoreError> {
        closed()
    }
    async fn command_breaker(&self, _: &Call, _: Name, _: BreakerCommand) -> Result<BreakerRecord, StoreError> {
        closed()
    }
    async fn delete_breaker(&self, _: &Call, _: Name) -> Result<(), StoreError> {
        closed()
    }
    async fn breakers(&self, _: &str) -> Result<Vec<BreakerRecord>, StoreError> {
        Ok(Vec::new())
    }
    async fn counts(&self, _: &str, _: Time) -> Result<Counts, StoreError> {
        closed()
    }
    async fn verify(&self) -> Result<Verified, StoreError> {
        closed()
    }
    async fn stats(&self) -> Result<StoreStats, StoreError> {
        closed()
    }
    async fn backup(&self, _: &std::path::Path) -> Result<(), StoreError> {
        closed()
    }
    async fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

fn main() {
    // `cargo test --benches` runs this too, and wants no figures.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    for slots in [64, 256, 1024] {
        runtime.block_on(measure(slots));
    }
    for slots in [64, 256, 1024] {
        runtime.block_on(measure_sqlite(slots));
    }
}

/// The same over SQLite in a fresh file: from the first enqueue to the last acknowledged outcome.
async fn measure_sqlite(slots: usize) {
    const SQLITE_TASKS: usize = 300_000;
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", directory.path().join("bench.db").display());
    let store = pensum_store::open(&url, "the benchmark").unwrap();
    let engine = Engine::builder(Arc::clone(&store))
        .builtin_handlers()
        .slots(slots)
        .build();
    let task = NewTask::new(Spec::new("noop", Json::empty_object()));
    let began = Instant::now();
    engine.start();
    for _ in 0..SQLITE_TASKS / BATCH_MAX {
        let call = Call::new("bench", engine.now());
        engine.enqueue(&call, vec![task.clone(); BATCH_MAX]).await.unwrap();
    }
    let enqueued = began.elapsed().as_secs_f64();
    while engine.metrics().tasks_completed < SQLITE_TASKS as u64 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    engine.shutdown(Duration::from_secs(1)).await;
    store.close().await.unwrap();
    println!(
        "{slots:>5} slots over SQLite: {:>9.0} tasks/s end to end, enqueued after {enqueued:.2} s of {seconds:.2} s",
        SQLITE_TASKS as f64 / seconds,
    );
}

async fn measure(slots: usize) {
    let store = Arc::new(InstantStore {
        spec: Arc::new(Spec::new("noop", Json::empty_object())),
        claimed: AtomicU64::new(0),
        finished: AtomicU64::new(0),
        claims: AtomicU64::new(0),
        finishes: AtomicU64::new(0),
    });
    let shared: Arc<dyn Store> = Arc::clone(&store) as Arc<dyn Store>;
    let engine = Engine::builder(shared).builtin_handlers().slots(slots).build();
    let began = Instant::now();
    engine.start();
    while store.finished.load(Ordering::Relaxed) < TASKS {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    engine.shutdown(Duration::from_secs(1)).await;
    println!(
        "{slots:>5} slots: {:>9.0} tasks/s, {:.1} tasks a claim, {:.1} a finish",
        TASKS as f64 / seconds,
        TASKS as f64 / store.claims.load(Ordering::Relaxed) as f64,
        TASKS as f64 / store.finishes.load(Ordering::Relaxed) as f64,
    );
}
