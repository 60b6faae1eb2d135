//! The store on PostgreSQL: many nodes, one truth.
//!
//! Each verb is a transaction on a pooled connection; nothing that decides lives in a process. What a process does keep
//! (interned names, what it holds itself) only spares questions, and every write proves that it still is so.

mod ageing;
mod agent;
mod breaker;
mod capacity;
mod claim;
mod clock;
mod command;
mod counts;
mod covering;
mod dossier;
mod enqueue;
mod error;
mod finish;
mod gated;
mod habits;
mod import;
mod intake;
mod key;
mod lanes;
mod list;
mod measured;
mod names;
mod node;
mod notes;
mod numbers;
mod options;
mod outbox;
mod parked;
mod pool;
mod preferred;
mod prune;
mod queue;
mod reads;
mod reap;
mod row;
mod rows;
mod schema;
mod stats;
mod step;
mod tls;
mod trial;
mod update;
mod verify;
mod volatile;
mod wake;
mod width;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use pensum_core::agent::{AgentCommand, AgentRecord, AgentSettings};
use pensum_core::breaker::{BreakerCommand, BreakerRecord, BreakerSettings};
use pensum_core::dossier::{Bookmark, Import, Parcel};
use pensum_core::input::Patch;
use pensum_core::intake::{AdmitRequest, Admitted, IntakeRecord, IntakeStatus, Judge};
use pensum_core::order::OrderRule;
use pensum_core::query::{Counts, Page, Paged, TaskFilter};
use pensum_core::queue::{QueueCommand, QueueRecord, QueueSettings};
use pensum_core::seam::Clock;
use pensum_core::store::{
    Applied, Beat, Call, Checkpoint, ClaimRequest, Claimed, Command, Enqueued, Finish, LogEntry, NodeBeat, NodeRecord,
    NodeReply, Pruned, Reaped, Rejected, Renewal, Retention, Signal, Store, StoreError, StoreStats, TaskEvent,
    Verified,
};
use pensum_core::task::Execution;
use pensum_core::{Json, Name, NewTask, NodeId, TaskId, TaskRecord, Time};
use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use clock::DatabaseClock;
use error::Fault;
use key::KeyOrder;
pub use options::PostgresOptions;
pub use outbox::Outbox;
use pool::Pool;

/// How many of several tasks are read at once, each on a connection.
const READS_AT_ONCE: usize = 8;

/// How often a transaction that met others at the same moment is tried.
const TRIES_MAX: u32 = 10;
/// First pause before it is tried again; doubled each time, less a random share.
const PAUSE: Duration = Duration::from_millis(5);
/// Longest time between two looks of a parked claim, beneath the notices.
const POLL: Duration = Duration::from_millis(500);
/// The same while notices do not come through.
const POLL_DEAF: Duration = Duration::from_millis(50);
/// The longest time from when a claim was made until it holds what it waits for; what takes longer follows another clock.
const HELD_MOST: Duration = Duration::from_secs(5);
/// How long a store that is closed waits for claims that nobody waits for any more.
const CLAIMS_BACK_MAX: Duration = Duration::from_secs(1);

/// A store that several nodes share.
pub struct PostgresStore {
    inner: Arc<Inner>,
}

/// What the verbs share.
struct Inner {
    pool: Arc<Pool>,
    server: schema::Server,
    catalog: names::Catalog,
    queues: queue::Queues,
    ageing: ageing::Ageing,
    preferred: preferred::Preferred,
    parked: parked::Parked,
    rows: rows::Rows,
    departures: enqueue::Departures,
    holdings: claim::Holdings,
    wake: Arc<wake::Wake>,
    clock: Arc<DatabaseClock>,
    random: Mutex<StdRng>,
    /// When the next gate opens by the clock, as the last claim saw it, in microseconds.
    next_due: AtomicI64,
    /// Passes of the reaper.
    passes: AtomicU64,
    /// Where the clean-up looks next.
    prune_cursor: AtomicI64,
    closed: CancellationToken,
    /// Claims under way, and those on their way back.
    claims: TaskTracker,
}

impl Inner {
    fn bits(&self) -> u64 {
        self.random.lock().next_u64()
    }

    /// A number drawn evenly from `[0, 1)`.
    fn unit(&self) -> f64 {
        self.random.lock().random()
    }

    /// A run of this class has ended, or a task of it may have become ready. True when that may let claims take one from a
    /// queue, or of what a breaker covers, that they leave out now.
    fn reopen(&self, class: u32) -> bool {
        self.queues.any()
            && self
                .catalog
                .known_class(class)
                .is_some_and(|class| self.queues.reopen(&class))
    }

    /// How the tasks of a class stand in the claim order.
    fn order_rule(&self, class: u32) -> OrderRule {
        match self.queues.has_rules() {
            true => (self.catalog.known_class(class)).map_or(OrderRule::STRICT, |class| self.queues.rule(&class)),
            false => OrderRule::STRICT,
        }
    }

    /// How keys stand.
    fn key_order(&self) -> KeyOrder {
        if !self.queues.has_rules() {
            return KeyOrder::default();
        }
        let classes = self.catalog.classes();
        let fair = classes.iter().filter(|class| self.queues.rule(class).fair);
        KeyOrder {
            fair: fair.map(|class| class.id as i32).collect(),
            is_wide: self.queues.is_wide(),
        }
    }

    /// A task of this class was enqueued.
    fn came(&self, class: u32) {
        if self.queues.any()
            && let Some(class) = self.catalog.known_class(class)
        {
            self.queues.came(&class);
        }
    }

    /// The longest time between two looks of a parked claim, beneath the notices.
    fn poll(&self) -> Duration {
        if self.wake.is_deaf() { POLL_DEAF } else { POLL }
    }

    /// The time at which a claim holds what it waited for. Whatever it sees to have ended has ended by then, and not after
    /// what it starts in its place: the time at which the claim was made may be before that.
    fn once_held(&self, now: Time) -> Time {
        let told = self.clock.now();
        // Who names times of another clock keeps to that one.
        if told.since(now) < HELD_MOST {
            now.max(told)
        } else {
            now
        }
    }

    fn note_due(&self, at: Option<i64>) {
        self.next_due.store(at.unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    fn next_due(&self) -> Time {
        Time::from_micros(self.next_due.load(Ordering::Relaxed))
    }

    /// Runs a transaction, again if others at the same moment undid it.
    async fn retry<T, F>(&self, transaction: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        for tried in 0.. {
            if self.closed.is_cancelled() {
                return Err(StoreError::Closed);
            }
            match transaction().await {
                Err(fault) if fault.is_contention() && tried < TRIES_MAX => {
                    let longest = PAUSE * (1 << tried.min(7));
                    let share = self.unit();
                    tokio::time::sleep(longest.mul_f64(0.5 + share / 2.0)).await;
                }
                Err(fault) if fault.is_stale() && tried < TRIES_MAX => {
                    let read = self.queues.refresh(&self.pool).await;
                    read.map_err(|fault| fault.describe(&self.pool.location))?;
                }
                Err(fault) => return Err(fault.describe(&self.pool.location)),
                Ok(done) => return Ok(done),
            }
        }
        Err(StoreError::Closed)
    }
}

impl PostgresStore {
    /// Connects, brings the schema up to date, and begins to listen for notices of other nodes.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the server cannot be reached or is too old, [`StoreError::Newer`] for a schema of
    /// a newer program, [`StoreError::Corrupt`] for one of another application.
    pub async fn open(options: PostgresOptions) -> Result<PostgresStore, StoreError> {
        let pool = Arc::new(Pool::new(&options)?);
        let server = schema::inspect(&pool).await?;
        if server.fsync != "on" {
            tracing::warn!(
                "this PostgreSQL runs with fsync={}: a crash of its machine may lose acknowledged tasks",
                server.fsync
            );
        }
        pool.set_careless(matches!(server.synchronous_commit.as_str(), "off"));
        schema::migrate(&pool, &options.schema).await?;
        if import::is_half_copied(&pool)
            .await
            .map_err(|fault| fault.describe(&pool.location))?
        {
            return Err(pensum_core::dossier::half_copied(&pool.location));
        }
        let mut random: StdRng = rand::make_rng();
        let inner = Arc::new(Inner {
            server,
            catalog: names::Catalog::default(),
            queues: queue::Queues::default(),
            ageing: ageing::Ageing::default(),
            preferred: preferred::Preferred::default(),
            parked: parked::Parked::default(),
            rows: rows::Rows::default(),
            departures: enqueue::Departures::default(),
            holdings: claim::Holdings::default(),
            wake: Arc::new(wake::Wake::new(random.next_u64())),
            clock: Arc::new(DatabaseClock::default()),
            random: Mutex::new(random),
            next_due: AtomicI64::new(i64::MAX),
            passes: AtomicU64::new(0),
            prune_cursor: AtomicI64::new(0),
            closed: CancellationToken::new(),
            claims: TaskTracker::new(),
            pool,
        });
        let fault = |fault: Fault| fault.describe(&inner.pool.location);
        node::set_clock(&inner).await.map_err(fault)?;
        inner.catalog.refresh(&inner.pool).await.map_err(fault)?;
        inner.queues.follow(&inner.pool, &inner.wake).await.map_err(fault)?;
        let (wake, closed) = (Arc::clone(&inner.wake), inner.closed.clone());
        tokio::spawn(wake::send(
            Arc::clone(&wake),
            Arc::clone(&inner.pool),
            options.schema.clone(),
            closed.clone(),
        ));
        tokio::spawn(wake::hear(wake, options, closed));
        tokio::spawn(parked::usher(Arc::clone(&inner)));
        Ok(PostgresStore { inner })
    }

    /// True when there is a store, of whatever version. Makes none.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the server cannot be reached.
    pub async fn exists(options: &PostgresOptions) -> Result<bool, StoreError> {
        let pool = Arc::new(Pool::new(options)?);
        let exists = schema::exists(&pool, &options.schema).await;
        pool.close();
        exists
    }

    fn open_inner(&self) -> Result<&Arc<Inner>, StoreError> {
        if self.inner.closed.is_cancelled() {
            Err(StoreError::Closed)
        } else {
            Ok(&self.inner)
        }
    }

    fn describe(&self, fault: Fault) -> StoreError {
        fault.describe(&self.inner.pool.location)
    }
}

/// Claimed tasks on their way to the claimer; they go back unless they are accepted, or kept for it.
struct Offer {
    inner: Arc<Inner>,
    claimed: Vec<Claimed>,
    now: Time,
    is_kept: bool,
}

impl Offer {
    fn accept(mut self) -> Vec<Claimed> {
        std::mem::take(&mut self.claimed)
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        let lost = std::mem::take(&mut self.claimed);
        // Where there is no runtime any more, their leases run out.
        if !lost.is_empty()
            && !self.is_kept
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (inner, now) = (Arc::clone(&self.inner), self.now);
            let back = async move { claim::unclaim(&inner, lost, now).await };
            self.inner.claims.spawn_on(back, &runtime);
        }
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.inner.closed.cancel();
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn enqueue(&self, call: &Call, tasks: Vec<NewTask>) -> Result<Vec<Enqueued>, StoreError> {
        enqueue::enqueue(self.open_inner()?, call.clone(), tasks).await
    }

    async fn claim(&self, request: ClaimRequest, now: Time) -> Result<Vec<Claimed>, StoreError> {
        let inner = Arc::clone(self.open_inner()?);
        let (mut reply, answer) = oneshot::channel();
        // A task of its own: who gives up waiting must not leave rows behind that no one knows to be claimed.
        let claims = inner.claims.clone();
        claims.spawn(async move {
            // An agent gets again what did not arrive, perhaps at this moment: what it holds must not be taken back.
            let is_kept = request.agent.is_some();
            let claimed = claim::claim(&inner, request, now, &mut reply).await;
            // Nor may what was sent already, and is never looked at.
            let offer = claimed.map(|claimed| Offer {
                inner,
                claimed,
                now,
                is_kept,
            });
            let _ = reply.send(offer);
        });
        match answer.await {
            Ok(offer) => offer.map(Offer::accept),
            Err(_) => Err(StoreError::Closed),
        }
    }

    async fn renew(&self, beats: Vec<Beat>, lease: Duration, now: Time) -> Result<Vec<Renewal>, StoreError> {
        let inner = self.open_inner()?;
        inner.retry(|| finish::renew(inner, &beats, lease, now)).await
    }

    async fn finish(&self, finishes: Vec<Finish>, now: Time) -> Result<Vec<Result<Applied, Rejected>>, StoreError> {
        finish::finish(self.open_inner()?, finishes, now).await
    }

    async fn checkpoint(&self, checkpoint: Checkpoint, now: Time) -> Result<Result<Applied, Rejected>, StoreError> {
        let inner = self.open_inner()?;
        inner.retry(|| finish::checkpoint(inner, &checkpoint, now)).await
    }

    async fn command(
        &self,
        call: &Call,
        tasks: Vec<TaskId>,
        command: Command,
    ) -> Result<Vec<Result<Applied, Rejected>>, StoreError> {
        let inner = self.open_inner()?;
        let answers = inner.retry(|| command::command(inner, call, &tasks, &command)).await?;
        Ok(answers?)
    }

    async fn update(
        &self,
        call: &Call,
        task: TaskId,
        patch: Patch,
        expected_version: Option<u64>,
    ) -> Result<Result<TaskRecord, Rejected>, StoreError> {
        let inner = self.open_inner()?;
        inner
            .retry(|| update::update(inner, call, task, &patch, expected_version))
            .await
    }

    async fn heartbeat(&self, beat: NodeBeat, now: Time) -> Result<NodeReply, StoreError> {
        let inner = self.open_inner()?;
        inner.retry(|| node::heartbeat(inner, &beat, now)).await
    }

    async fn leave(&self, node: NodeId, _now: Time) -> Result<(), StoreError> {
        let inner = self.open_inner()?;
        inner.retry(|| node::leave(inner, node)).await
    }

    async fn nodes(&self, now: Time) -> Result<Vec<NodeRecord>, StoreError> {
        let inner = self.open_inner()?;
        node::nodes(inner, now).await.map_err(|fault| self.describe(fault))
    }

    fn clock(&self) -> Option<Arc<dyn Clock>> {
        Some(Arc::clone(&self.inner.clock) as Arc<dyn Clock>)
    }

    async fn reap(&self, now: Time, limit: usize) -> Result<Reaped, StoreError> {
        let inner = self.open_inner()?;
        inner.retry(|| reap::reap(inner, now, limit)).await
    }

    async fn task(&self, namespace: &str, task: TaskId) -> Result<Option<TaskRecord>, StoreError> {
        let inner = self.open_inner()?;
        let found = reads::find(&inner.pool, &inner.catalog, namespace, task).await;
        Ok(found.map_err(|fault| self.describe(fault))?.map(reads::Found::record))
    }

    async fn some_tasks(&self, namespace: &str, tasks: &[TaskId]) -> Result<Vec<Option<TaskRecord>>, StoreError> {
        let reads: Vec<_> = tasks.iter().map(|task| self.task(namespace, *task)).collect();
        futures_util::stream::iter(reads)
            .buffered(READS_AT_ONCE)
            .try_collect()
            .await
    }

    async fn tasks(
        &self,
        namespace: &str,
        filter: TaskFilter,
        page: Page,
        now: Time,
    ) -> Result<Paged<TaskRecord>, StoreError> {
        let inner = self.open_inner()?;
        let listed = list::tasks(&inner.pool, &inner.catalog, namespace, &filter, &page, now).await;
        listed.map_err(|fault| self.describe(fault))
    }

    async fn executions(&self, namespace: &str, task: TaskId) -> Result<Vec<Execution>, StoreError> {
        let inner = self.open_inner()?;
        let found = reads::executions(&inner.pool, &inner.catalog, namespace, task).await;
        found.map_err(|fault| self.describe(fault))
    }

    async fn all_executions(&self, namespace: &str, page: Page) -> Result<Paged<Execution>, StoreError> {
        let inner = self.open_inner()?;
        let listed = list::executions(&inner.pool, &inner.catalog, namespace, &page).await;
        listed.map_err(|fault| self.describe(fault))
    }

    async fn events(&self, namespace: &str, task: TaskId) -> Result<Vec<TaskEvent>, StoreError> {
        let inner = self.open_inner()?;
        let found = reads::events(&inner.pool, &inner.catalog, namespace, task).await;
        found.map_err(|fault| self.describe(fault))
    }

    async fn logs(&self, namespace: &str, task: TaskId, after: u64, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        let inner = self.open_inner()?;
        let found = reads::logs(&inner.pool, namespace, task, after, limit).await;
        found.map_err(|fault| self.describe(fault))
    }

    async fn dependants(&self, namespace: &str, task: TaskId) -> Result<Vec<TaskId>, StoreError> {
        let inner = self.open_inner()?;
        let found = reads::dependants(&inner.pool, namespace, task).await;
        found.map_err(|fault| self.describe(fault))
    }

    async fn inbox(&self, task: TaskId) -> Result<Vec<Signal>, StoreError> {
        let inner = self.open_inner()?;
        reads::inbox(&inner.pool, task)
            .await
            .map_err(|fault| self.describe(fault))
    }

    async fn steps(&self, task: TaskId) -> Result<Vec<(Name, Json)>, StoreError> {
        let inner = self.open_inner()?;
        reads::steps(&inner.pool, task)
            .await
            .map_err(|fault| self.describe(fault))
    }

    async fn key_holders(&self, namespace: &str, key: &str) -> Result<Vec<TaskId>, StoreError> {
        let inner = self.open_inner()?;
        reads::key_holders(&inner.pool, namespace, key)
            .await
            .map_err(|fault| self.describe(fault))
    }

    async fn put_queue(
        &self,
        call: &Call,
        queue: Name,
        settings: QueueSettings,
        expected_version: Option<u64>,
    ) -> Result<QueueRecord, StoreError> {
        let inner = self.open_inner()?;
        let put = inner.retry(|| queue::put(inner, call, &queue, &settings, expected_version));
        Ok(put.await??)
    }

    async fn command_queue(&self, call: &Call, queue: Name, command: QueueCommand) -> Result<QueueRecord, StoreError> {
        let inner = self.open_inner()?;
        Ok(inner.retry(|| queue::command(inner, call, &queue, command)).await??)
    }

    async fn delete_queue(&self, call: &Call, queue: Name) -> Result<(), StoreError> {
        let inner = self.open_inner()?;
        Ok(inner.retry(|| queue::delete(inner, call, &queue)).await??)
    }

    async fn queues(&self, namespace: &str) -> Result<Vec<QueueRecord>, StoreError> {
        let inner = self.open_inner()?;
        let listed = queue::list(&inner.pool, namespace).await;
        listed.map_err(|fault| self.describe(fault))
    }

    async fn put_agent(&self, call: &Call, agent: Name, settings: AgentSettings) -> Result<AgentRecord, StoreError> {
        let inner = self.open_inner()?;
        Ok(inner.retry(|| agent::put(inner, call, &agent, &settings)).await??)
    }

    async fn command_agent(&self, call: &Call, agent: Name, command: AgentCommand) -> Result<AgentRecord, StoreError> {
        let inner = self.open_inner()?;
        Ok(inner.retry(|| agent::command(inner, call, &agent, command)).await??)
    }

    async fn delete_agent(&self, call: &Call, agent: Name) -> Result<(), StoreError> {
        let inner = self.open_inner()?;
        Ok(inner.retry(|| agent::delete(inner, call, &agent)).await??)
    }

    async fn open_session(&self, call: &Call, agent: Name, session: NodeId) -> Result<AgentRecord, StoreError> {
        let inner = self.open_inner()?;
        Ok(inner.retry(|| agent::open(inner, call, &agent, session)).await??)
    }

    async fn close_session(&self, call: &Call, agent: Name, session: NodeId) -> Result<(), StoreError> {
        let inner = self.open_inner()?;
        Ok(inner.retry(|| agent::close(inner, call, &agent, session)).await??)
    }

    async fn beat_agent(&self, call: &Call, agent: Name, session: Option<NodeId>) -> Result<AgentRecord, StoreError> {
        let inner = self.open_inner()?;
        Ok(inner.retry(|| agent::beat(inner, call, &agent, session)).await??)
    }

    async fn agents(&self, namespace: &str) -> Result<Vec<AgentRecord>, StoreError> {
        let inner = self.open_inner()?;
        let listed = agent::list(&inner.pool, namespace).await;
        listed.map_err(|fault| self.describe(fault))
    }

    async fn put_breaker(
        &self,
        call: &Call,
        breaker: Name,
        settings: BreakerSettings,
        expected_version: Option<u64>,
    ) -> Result<BreakerRecord, StoreError> {
        let inner = self.open_inner()?;
        let put = inner.retry(|| breaker::put(inner, call, &breaker, &settings, expected_version));
        Ok(put.await??)
    }

    async fn command_breaker(
        &self,
        call: &Call,
        breaker: Name,
        command: BreakerCommand,
    ) -> Result<BreakerRecord, StoreError> {
        let inner = self.open_inner()?;
        Ok(inner
            .retry(|| breaker::command(inner, call, &breaker, command))
            .await??)
    }

    async fn delete_breaker(&self, call: &Call, breaker: Name) -> Result<(), StoreError> {
        let inner = self.open_inner()?;
        Ok(inner.retry(|| breaker::delete(inner, call, &breaker)).await??)
    }

    async fn breakers(&self, namespace: &str) -> Result<Vec<BreakerRecord>, StoreError> {
        let inner = self.open_inner()?;
        let listed = breaker::list(&inner.pool, &Name::from(namespace)).await;
        listed.map_err(|fault| self.describe(fault))
    }

    async fn counts(&self, namespace: &str, now: Time) -> Result<Counts, StoreError> {
        let inner = self.open_inner()?;
        counts::counts(&inner.pool, &inner.catalog, namespace, now)
            .await
            .map_err(|fault| self.describe(fault))
    }

    async fn prune(&self, retention: Retention, now: Time, limit: usize) -> Result<Pruned, StoreError> {
        let inner = self.open_inner()?;
        inner
            .retry(|| intake::forget(&inner.pool, now.minus(retention.failed), limit))
            .await?;
        inner
            .retry(|| prune::prune(&inner.pool, &inner.prune_cursor, retention, now, limit))
            .await
    }

    async fn verify(&self) -> Result<Verified, StoreError> {
        let inner = self.open_inner()?;
        verify::verify(&inner.pool).await.map_err(|fault| self.describe(fault))
    }

    async fn stats(&self) -> Result<StoreStats, StoreError> {
        let inner = self.open_inner()?;
        stats::stats(&inner.pool, &inner.server)
            .await
            .map_err(|fault| self.describe(fault))
    }

    async fn backup(&self, _to: &Path) -> Result<(), StoreError> {
        self.open_inner()?;
        Err(StoreError::Unavailable(format!(
            "{} is backed up with PostgreSQL's own tools (pg_dump, pg_basebackup), or with `pensum db copy` into a file",
            self.inner.pool.location
        )))
    }

    fn has_intake(&self) -> bool {
        true
    }

    async fn admit(&self, request: AdmitRequest, now: Time, judge: Judge<'_>) -> Result<Admitted, StoreError> {
        intake::admit(self.open_inner()?, request, now, judge).await
    }

    async fn intake(
        &self,
        namespace: &str,
        status: Option<IntakeStatus>,
        page: Page,
    ) -> Result<Paged<IntakeRecord>, StoreError> {
        let inner = self.open_inner()?;
        let listed = intake::list(&inner.pool, namespace, status, &page).await;
        listed.map_err(|fault| self.describe(fault))
    }

    async fn retry_intake(&self, call: &Call, id: i64, task: Option<Json>) -> Result<bool, StoreError> {
        let inner = self.open_inner()?;
        inner.retry(|| intake::retry(inner, call, id, task.as_ref())).await?
    }

    async fn delete_intake(&self, call: &Call, id: i64) -> Result<bool, StoreError> {
        let inner = self.open_inner()?;
        inner.retry(|| intake::delete(&inner.pool, call, id)).await
    }

    async fn export(&self, from: Bookmark, limit: usize, _now: Time) -> Result<Parcel, StoreError> {
        let inner = self.open_inner()?;
        inner.retry(|| dossier::export(inner, &from, limit)).await?
    }

    async fn import(&self, step: Import, now: Time) -> Result<(), StoreError> {
        let inner = self.open_inner()?;
        inner.retry(|| import::import(inner, &step, now)).await?
    }

    async fn close(&self) -> Result<(), StoreError> {
        let inner = self.open_inner()?;
        // What was claimed for somebody who has gone goes back first; else its lease would run out, and cost it an attempt.
        inner.claims.close();
        let _ = tokio::time::timeout(CLAIMS_BACK_MAX, inner.claims.wait()).await;
        inner.closed.cancel();
        inner.pool.close();
        Ok(())
    }
}
