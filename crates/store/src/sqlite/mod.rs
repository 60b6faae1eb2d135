//! The embedded store: one SQLite file, one process that owns it.
//!
//! A writer thread commits groups of verbs ([`writer`]); readers work beside it on connections of their own, and lay
//! the writer's leases over what they read ([`view`]). Claims write no row ([`claim`], [`manifest`]).

mod ageing;
mod agent;
mod ages;
mod backup;
mod breaker;
mod capacity;
mod claim;
mod command;
mod dossier;
mod enqueue;
mod error;
mod finish;
mod list;
mod lock;
mod manifest;
mod memory;
mod names;
mod node;
mod order;
mod prune;
mod queue;
mod reader;
mod reads;
mod reap;
mod row;
mod schema;
mod step;
mod thread;
mod turns;
mod update;
mod verb;
mod verify;
mod view;
mod volatile;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pensum_core::agent::{AgentCommand, AgentRecord, AgentSettings};
use pensum_core::breaker::{BreakerCommand, BreakerRecord, BreakerSettings};
use pensum_core::dossier::{Bookmark, Import, Parcel};
use pensum_core::input::Patch;
use pensum_core::query::Paged;
use pensum_core::queue::{PER_KEY_MAX, QueueCommand, QueueRecord, QueueSettings};
use pensum_core::store::{
    Applied, Beat, Call, Checkpoint, ClaimRequest, Claimed, Command, Enqueued, Finish, LeaseRef, LogEntry, NodeBeat,
    NodeRecord, NodeReply, Pruned, Reaped, Rejected, Renewal, Retention, Signal, Store, StoreStats, TaskEvent,
    Verified,
};
use pensum_core::task::Execution;
use pensum_core::{Counts, Json, Name, NewTask, NodeId, Page, StoreError, TaskFilter, TaskId, TaskRecord, Time};
use tokio::sync::oneshot;

use error::Fault;
use queue::Ask;
use reader::Readers;
use thread::WriterThread;
use verb::{Claim, Grants, Prepared, Reply, Verb, prepare};
use view::Shared;

/// How to open a store.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// The file; `:memory:` for a store that lives and dies with the process.
    pub path: PathBuf,
    /// Who owns it, for whoever finds it locked: an address or a process id.
    pub owner: String,
    /// Create the file when there is none.
    pub create: bool,
    /// Only read: takes no lock, and every verb that changes something is refused. What runs in the process that
    /// owns the file is not seen as running.
    pub read_only: bool,
}

impl SqliteOptions {
    /// The store in `path`, created when there is none, owned by this process.
    pub fn new(path: impl Into<PathBuf>) -> SqliteOptions {
        SqliteOptions {
            path: path.into(),
            owner: format!("process {}", std::process::id()),
            create: true,
            read_only: false,
        }
    }
}

/// The embedded store.
pub struct SqliteStore {
    path: String,
    shared: Arc<Shared>,
    writer: Option<WriterThread>,
    readers: Option<Readers>,
}

impl SqliteStore {
    /// Opens a store, and creates or migrates its file as needed.
    ///
    /// The ready order is loaded in the background: reads are served at once, other verbs wait for it.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process owns the file; [`StoreError::Corrupt`] and [`StoreError::Newer`]
    /// when it is not ours to use, which leaves it as it is; [`StoreError::Unavailable`] when it cannot be opened.
    pub fn open(options: SqliteOptions) -> Result<SqliteStore, StoreError> {
        schema::check_library()?;
        let path = options.path.display().to_string();
        let shared = Shared::new();
        if path == ":memory:" {
            let writer = WriterThread::start_in_memory(shared.clone())?;
            return Ok(SqliteStore {
                path,
                shared,
                writer: Some(writer),
                readers: None,
            });
        }
        let found = schema::inspect(&options.path)?;
        if found == schema::Found::Nothing && (options.read_only || !options.create) {
            let path = options.path.display();
            return Err(StoreError::Unavailable(format!(
                "there is no store at {path}; check the path, or create one"
            )));
        }
        if options.read_only {
            let readers = Readers::open(&options.path)?;
            return Ok(SqliteStore {
                path,
                shared,
                writer: None,
                readers: Some(readers),
            });
        }
        let lock = lock::FileLock::take(&options.path, &options.owner)?;
        let writer = WriterThread::start(&options.path, shared.clone(), lock)?;
        let readers = Readers::open(&options.path)?;
        Ok(SqliteStore {
            path,
            shared,
            writer: Some(writer),
            readers: Some(readers),
        })
    }

    /// A store in memory that is driven by whoever asks it, on the asker's thread, and whose ids follow from a seed: for
    /// simulations.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when SQLite has no memory left.
    #[cfg(feature = "testkit")]
    pub fn on_this_thread(seed: u64) -> Result<SqliteStore, StoreError> {
        let shared = Shared::new();
        let writer = WriterThread::inline_in_memory(shared.clone(), seed)?;
        Ok(SqliteStore {
            path: ":memory:".to_owned(),
            shared,
            writer: Some(writer),
            readers: None,
        })
    }

    /// Says who owns the store, for whoever finds it locked.
    pub fn set_owner(&self, owner: &str) {
        if let Some(writer) = &self.writer {
            writer.set_owner(owner);
        }
    }

    /// Bounds the size of the database file, in bytes; a change that would need more is refused as on a full disk.
    ///
    /// # Errors
    /// [`StoreError::Closed`] once the store is closed.
    pub async fn set_size_limit(&self, bytes: u64) -> Result<(), StoreError> {
        let pages = (bytes / 4096).clamp(1, 0xFFFF_FFFE);
        let (reply, answer) = oneshot::channel();
        let path = self.path.clone();
        self.writer()?.send(Verb::Read(Box::new(move |db| {
            // The limit never falls below the present size; SQLite sees to that.
            let set = |db: &rusqlite::Connection| {
                db.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
                    .map_err(|error| Fault::Sql(error).describe(&path))
            };
            // Whoever asked may have gone.
            let _ = reply.send(db.and_then(set));
        })))?;
        answer.await.map_err(|_| self.unanswered())?
    }

    fn writer(&self) -> Result<&WriterThread, StoreError> {
        if self.shared.is_closed() {
            return Err(StoreError::Closed);
        }
        self.writer.as_ref().ok_or_else(|| {
            StoreError::Unavailable(format!(
                "{} was opened to be read only; open it to be written",
                self.path
            ))
        })
    }

    /// What a verb that does not go through the writer answers where there is none, or none that works.
    fn check_writable(&self) -> Result<(), StoreError> {
        self.writer()?;
        match &*self.shared.broken.lock() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Why a request got no answer.
    fn unanswered(&self) -> StoreError {
        if self.shared.is_closed() {
            return StoreError::Closed;
        }
        StoreError::Unavailable(format!(
            "a mistake in this program cut a request to {} short; nothing of it was kept, and the log says more",
            self.path
        ))
    }

    async fn ask<T>(&self, verb: impl FnOnce(Reply<T>) -> Verb) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.writer()?.send(verb(reply))?;
        answer.await.map_err(|_| self.unanswered())?
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&rusqlite::Connection, &Shared) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        if self.shared.is_closed() {
            return Err(StoreError::Closed);
        }
        let shared = self.shared.clone();
        let path = self.path.clone();
        if let Some(readers) = &self.readers {
            if self.writer.is_none() {
                // Nobody keeps the catalog of a store that is only read up to date.
                return readers
                    .run(move |db| {
                        shared
                            .catalog
                            .load(db)
                            .and_then(|()| work(db, &shared))
                            .map_err(|fault| fault.describe(&path))
                    })
                    .await;
            }
            return readers
                .run(move |db| work(db, &shared).map_err(|fault| fault.describe(&path)))
                .await;
        }
        let (reply, answer) = oneshot::channel();
        self.writer()?.send(Verb::Read(Box::new(move |db| {
            let result = db.and_then(|db| work(db, &shared).map_err(|fault| fault.describe(&path)));
            // Whoever asked may have gone.
            let _ = reply.send(result);
        })))?;
        answer.await.map_err(|_| self.unanswered())?
    }

    async fn ask_queue(&self, call: &Call, queue: Name, ask: Ask) -> Result<QueueRecord, StoreError> {
        let (call, name) = (call.clone(), queue.clone());
        let found = self
            .ask(|reply| Verb::Queue {
                call,
                queue,
                ask,
                reply,
            })
            .await?;
        found.ok_or(StoreError::Rejected(Rejected::NoQueue(name)))
    }

    async fn ask_breaker(
        &self,
        call: &Call,
        breaker: &Name,
        ask: breaker::Ask,
    ) -> Result<Option<BreakerRecord>, StoreError> {
        let (call, breaker) = (call.clone(), breaker.clone());
        self.ask(|reply| Verb::Breaker {
            call,
            breaker,
            ask,
            reply,
        })
        .await
    }

    async fn ask_agent(&self, call: &Call, agent: Name, ask: agent::Ask) -> Result<AgentRecord, StoreError> {
        let (call, name) = (call.clone(), agent.clone());
        let record = self
            .ask(|reply| Verb::Agent {
                call,
                agent: name,
                ask,
                reply,
            })
            .await?;
        record.ok_or_else(|| StoreError::Unavailable(format!("agent {agent} is gone already")))
    }

    /// Waits until the writer's memory stands.
    async fn loaded(&self) -> Result<(), StoreError> {
        if self.writer.is_some() {
            let mut loaded = self.shared.loaded.subscribe();
            loaded
                .wait_for(|loaded| *loaded)
                .await
                .map_err(|_| StoreError::Closed)?;
        }
        match &*self.shared.broken.lock() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Waits for a parked claim: until it is answered, its time is up, or a task comes due by the clock.
    async fn await_claim(
        &self,
        mut answer: oneshot::Receiver<Result<Grants, StoreError>>,
        wait: Duration,
        now: Time,
    ) -> Result<Option<Grants>, StoreError> {
        let started = tokio::time::Instant::now();
        let end = tokio::time::sleep(wait);
        tokio::pin!(end);
        loop {
            // Before the look, so that no change in between is missed.
            let mut changed = std::pin::pin!(self.shared.next_ready.changed());
            changed.as_mut().enable();
            let due = self.shared.next_ready.get();
            let waits = due.since(now).saturating_sub(started.elapsed());
            let has_timer = due != Time::MAX && !wait.is_zero();
            tokio::select! {
                biased;
                found = &mut answer => return found.map_err(|_| self.unanswered())?.map(Some),
                () = &mut end, if !wait.is_zero() => {
                    // An answer that was sent a moment ago still counts.
                    answer.close();
                    return match answer.try_recv() {
                        Ok(found) => found.map(Some),
                        Err(_) => Ok(None),
                    };
                }
                () = tokio::time::sleep(waits), if has_timer => {
                    self.writer()?.send(Verb::Tick(now.plus(started.elapsed()).max(due)))?;
                    // The tick moves the clock on; then `next_ready` changes, or the answer comes.
                    tokio::select! {
                        biased;
                        found = &mut answer => return found.map_err(|_| self.unanswered())?.map(Some),
                        () = changed.as_mut() => {}
                        () = &mut end => return Ok(None),
                    }
                }
                () = changed.as_mut() => {}
            }
        }
    }

    /// Fills in what a claim did not have in memory. The grants go back if this is dropped before it is done.
    async fn fill(&self, mut grants: Grants) -> Result<Vec<Claimed>, StoreError> {
        if grants.items.iter().all(|g| g.fresh.is_some() && !g.has_checkpoint) {
            let claimed = grants
                .items
                .iter_mut()
                .filter_map(|grant| reader::fill_fresh(&self.shared, grant))
                .collect();
            grants.items.clear();
            return Ok(claimed);
        }
        self.read(move |db, shared| {
            let claimed = reader::fill(db, shared, &mut grants.items)?;
            grants.items.clear();
            Ok(ClaimedSafe {
                claimed,
                home: grants.home.clone(),
                outlive: grants.outlive,
            })
        })
        .await
        .map(ClaimedSafe::arrive)
    }
}

/// Claims between the reader and the claimer, who may have gone meanwhile.
struct ClaimedSafe {
    claimed: Vec<Claimed>,
    home: std::sync::mpsc::Sender<Verb>,
    /// Of an agent, whose next claim answers them again.
    outlive: bool,
}

impl ClaimedSafe {
    fn arrive(mut self) -> Vec<Claimed> {
        std::mem::take(&mut self.claimed)
    }
}

impl Drop for ClaimedSafe {
    fn drop(&mut self) {
        if !self.claimed.is_empty() && !self.outlive {
            let lost = self
                .claimed
                .iter()
                .map(|c| (c.lease.task.row(), c.lease.lease))
                .collect();
            // A writer that is gone has no leases either.
            let _ = self.home.send(Verb::Unclaim(lost));
        }
    }
}

/// Children know their parent, and are written out on the caller's thread.
fn prepare_children(parent: LeaseRef, mut spawn: Vec<NewTask>) -> Vec<Prepared> {
    for task in &mut spawn {
        task.spec.details_mut().parent_id = Some(parent.task);
    }
    prepare(spawn)
}

#[async_trait]
impl Store for SqliteStore {
    async fn enqueue(&self, call: &Call, tasks: Vec<NewTask>) -> Result<Vec<Enqueued>, StoreError> {
        let (call, tasks) = (call.clone(), prepare(tasks));
        self.ask(|reply| Verb::Enqueue { call, tasks, reply }).await
    }

    async fn claim(&self, request: ClaimRequest, now: Time) -> Result<Vec<Claimed>, StoreError> {
        let (reply, answer) = oneshot::channel();
        let wait = request.wait;
        let writer = self.writer()?;
        writer.send(Verb::Claim(Claim {
            request,
            now,
            reply,
            home: writer.sender()?,
        }))?;
        match self.await_claim(answer, wait, now).await? {
            Some(grants) => self.fill(grants).await,
            None => Ok(Vec::new()),
        }
    }

    async fn renew(&self, beats: Vec<Beat>, lease: Duration, now: Time) -> Result<Vec<Renewal>, StoreError> {
        self.ask(|reply| Verb::Renew {
            beats,
            lease,
            now,
            reply,
        })
        .await
    }

    async fn finish(&self, finishes: Vec<Finish>, now: Time) -> Result<Vec<Result<Applied, Rejected>>, StoreError> {
        let split = |mut finish: Finish| {
            let spawn = prepare_children(finish.lease, std::mem::take(&mut finish.spawn));
            (finish, spawn)
        };
        let finishes = finishes.into_iter().map(split).collect();
        self.ask(|reply| Verb::Finish { finishes, now, reply }).await
    }

    async fn checkpoint(&self, checkpoint: Checkpoint, now: Time) -> Result<Result<Applied, Rejected>, StoreError> {
        let mut checkpoint = checkpoint;
        let spawn = prepare_children(checkpoint.lease, std::mem::take(&mut checkpoint.spawn));
        self.ask(|reply| Verb::Checkpoint {
            checkpoint,
            spawn,
            now,
            reply,
        })
        .await
    }

    async fn command(
        &self,
        call: &Call,
        tasks: Vec<TaskId>,
        command: Command,
    ) -> Result<Vec<Result<Applied, Rejected>>, StoreError> {
        let call = call.clone();
        self.ask(|reply| Verb::Command {
            call,
            tasks,
            command,
            reply,
        })
        .await
    }

    async fn update(
        &self,
        call: &Call,
        task: TaskId,
        patch: Patch,
        expected_version: Option<u64>,
    ) -> Result<Result<TaskRecord, Rejected>, StoreError> {
        let call = call.clone();
        self.ask(|reply| Verb::Update {
            call,
            task,
            patch,
            expected_version,
            reply,
        })
        .await
    }

    async fn heartbeat(&self, beat: NodeBeat, now: Time) -> Result<NodeReply, StoreError> {
        self.check_writable()?;
        Ok(self.shared.nodes.lock().heartbeat(beat, now))
    }

    async fn leave(&self, node: NodeId, _now: Time) -> Result<(), StoreError> {
        self.check_writable()?;
        self.shared.nodes.lock().leave(node);
        Ok(())
    }

    async fn nodes(&self, now: Time) -> Result<Vec<NodeRecord>, StoreError> {
        if self.shared.is_closed() {
            return Err(StoreError::Closed);
        }
        Ok(self.shared.nodes.lock().list(now))
    }

    async fn reap(&self, now: Time, limit: usize) -> Result<Reaped, StoreError> {
        self.ask(|reply| Verb::Reap { now, limit, reply }).await
    }

    async fn task(&self, namespace: &str, task: TaskId) -> Result<Option<TaskRecord>, StoreError> {
        let namespace = namespace.to_owned();
        self.read(move |db, shared| {
            let seen = shared.seen(task.row());
            let reading = db.unchecked_transaction()?;
            let found = reads::find(&reading, &shared.catalog, &namespace, task, seen)?;
            found
                .map(|(task, place)| reads::record(&reading, task, place))
                .transpose()
        })
        .await
    }

    async fn some_tasks(&self, namespace: &str, tasks: &[TaskId]) -> Result<Vec<Option<TaskRecord>>, StoreError> {
        let (namespace, tasks) = (namespace.to_owned(), tasks.to_vec());
        self.read(move |db, shared| {
            let seen: Vec<_> = tasks.iter().map(|task| shared.seen(task.row())).collect();
            let reading = db.unchecked_transaction()?;
            let read = |(task, seen): (TaskId, _)| {
                let found = reads::find(&reading, &shared.catalog, &namespace, task, seen)?;
                found
                    .map(|(task, place)| reads::record(&reading, task, place))
                    .transpose()
            };
            tasks.into_iter().zip(seen).map(read).collect()
        })
        .await
    }

    async fn tasks(
        &self,
        namespace: &str,
        filter: TaskFilter,
        page: Page,
        now: Time,
    ) -> Result<Paged<TaskRecord>, StoreError> {
        let namespace = namespace.to_owned();
        self.read(move |db, shared| {
            let overlay = shared.seen_all();
            let reading = db.unchecked_transaction()?;
            list::tasks(&reading, &shared.catalog, &overlay, &namespace, &filter, &page, now)
        })
        .await
    }

    async fn executions(&self, namespace: &str, task: TaskId) -> Result<Vec<Execution>, StoreError> {
        let namespace = namespace.to_owned();
        self.read(move |db, shared| {
            let seen = shared.seen(task.row());
            let reading = db.unchecked_transaction()?;
            match reads::find(&reading, &shared.catalog, &namespace, task, seen)? {
                Some((found, place)) => reads::executions(&reading, &shared.catalog, found.id, &place),
                None => Ok(Vec::new()),
            }
        })
        .await
    }

    async fn all_executions(&self, namespace: &str, page: Page) -> Result<Paged<Execution>, StoreError> {
        let namespace = namespace.to_owned();
        self.read(move |db, shared| {
            let reading = db.unchecked_transaction()?;
            list::executions(&reading, &shared.catalog, &namespace, &page)
        })
        .await
    }

    async fn events(&self, namespace: &str, task: TaskId) -> Result<Vec<TaskEvent>, StoreError> {
        let namespace = namespace.to_owned();
        self.read(move |db, shared| {
            let seen = shared.seen(task.row());
            let reading = db.unchecked_transaction()?;
            match reads::find(&reading, &shared.catalog, &namespace, task, seen)? {
                Some((found, place)) => reads::events(&reading, &shared.catalog, &found, &place),
                None => Ok(Vec::new()),
            }
        })
        .await
    }

    async fn logs(&self, namespace: &str, task: TaskId, after: u64, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        let namespace = namespace.to_owned();
        self.read(move |db, shared| {
            let found = reads::stored_task(db, &shared.catalog, task.row())?.filter(|found| found.id == task);
            let class = found.and_then(|found| shared.catalog.class(found.class));
            match class.filter(|class| *class.namespace == *namespace) {
                Some(_) => reads::logs(db, task.row(), after, limit),
                None => Ok(Vec::new()),
            }
        })
        .await
    }

    async fn dependants(&self, namespace: &str, task: TaskId) -> Result<Vec<TaskId>, StoreError> {
        let namespace = namespace.to_owned();
        self.read(move |db, shared| {
            let found = reads::stored_task(db, &shared.catalog, task.row())?.filter(|found| found.id == task);
            let class = found.and_then(|found| shared.catalog.class(found.class));
            match class.filter(|class| *class.namespace == *namespace) {
                Some(_) => reads::dependants(db, task.row()),
                None => Ok(Vec::new()),
            }
        })
        .await
    }

    async fn inbox(&self, task: TaskId) -> Result<Vec<Signal>, StoreError> {
        self.read(move |db, _| {
            if reads::is_id(db, task)? {
                reads::inbox(db, task.row())
            } else {
                Ok(Vec::new())
            }
        })
        .await
    }

    async fn steps(&self, task: TaskId) -> Result<Vec<(Name, Json)>, StoreError> {
        self.read(move |db, _| {
            if reads::is_id(db, task)? {
                reads::steps(db, task.row())
            } else {
                Ok(Vec::new())
            }
        })
        .await
    }

    async fn key_holders(&self, namespace: &str, key: &str) -> Result<Vec<TaskId>, StoreError> {
        let mut rows: Vec<i64> = {
            let view = self.shared.view.lock();
            let holds = |l: &view::Leased| {
                l.live.key.as_deref() == Some(key)
                    && self
                        .shared
                        .catalog
                        .class(l.live.class)
                        .is_some_and(|class| *class.namespace == *namespace)
            };
            let held = view.leases.iter().filter(|(_, l)| !l.closing && holds(l));
            held.map(|(row, _)| *row).collect()
        };
        if rows.is_empty() {
            return if self.shared.is_closed() {
                Err(StoreError::Closed)
            } else {
                Ok(Vec::new())
            };
        }
        rows.sort_unstable();
        rows.truncate(PER_KEY_MAX as usize);
        self.read(move |db, shared| {
            let tasks = rows.into_iter().map(|row| reads::stored_task(db, &shared.catalog, row));
            tasks
                .filter_map(|task| task.map(|task| task.map(|task| task.id)).transpose())
                .collect()
        })
        .await
    }

    async fn put_queue(
        &self,
        call: &Call,
        queue: Name,
        settings: QueueSettings,
        expected_version: Option<u64>,
    ) -> Result<QueueRecord, StoreError> {
        let settings = Box::new(settings);
        self.ask_queue(
            call,
            queue,
            Ask::Put {
                settings,
                expected_version,
            },
        )
        .await
    }

    async fn command_queue(&self, call: &Call, queue: Name, command: QueueCommand) -> Result<QueueRecord, StoreError> {
        self.ask_queue(call, queue, Ask::Command(command)).await
    }

    async fn delete_queue(&self, call: &Call, queue: Name) -> Result<(), StoreError> {
        let (call, ask) = (call.clone(), Ask::Delete);
        let deleted = self
            .ask(|reply| Verb::Queue {
                call,
                queue,
                ask,
                reply,
            })
            .await;
        deleted.map(|_| ())
    }

    async fn queues(&self, namespace: &str) -> Result<Vec<QueueRecord>, StoreError> {
        if self.writer.is_some() {
            let namespace = Name::from(namespace);
            return self.ask(|reply| Verb::Queues { namespace, reply }).await;
        }
        let namespace = namespace.to_owned();
        self.read(move |db, _| {
            let mut found = queue::stored(db)?;
            found.retain(|(place, _)| **place == *namespace);
            Ok(found.into_iter().map(|(_, queue)| queue).collect())
        })
        .await
    }

    async fn put_agent(&self, call: &Call, agent: Name, settings: AgentSettings) -> Result<AgentRecord, StoreError> {
        let ask = agent::Ask::Put(Box::new(settings));
        self.ask_agent(call, agent, ask).await
    }

    async fn command_agent(&self, call: &Call, agent: Name, command: AgentCommand) -> Result<AgentRecord, StoreError> {
        self.ask_agent(call, agent, agent::Ask::Command(command)).await
    }

    async fn delete_agent(&self, call: &Call, agent: Name) -> Result<(), StoreError> {
        let (call, ask) = (call.clone(), agent::Ask::Delete);
        let deleted = self
            .ask(|reply| Verb::Agent {
                call,
                agent,
                ask,
                reply,
            })
            .await;
        deleted.map(|_| ())
    }

    async fn open_session(&self, call: &Call, agent: Name, session: NodeId) -> Result<AgentRecord, StoreError> {
        self.ask_agent(call, agent, agent::Ask::Open(session)).await
    }

    async fn close_session(&self, call: &Call, agent: Name, session: NodeId) -> Result<(), StoreError> {
        self.ask_agent(call, agent, agent::Ask::Close(session))
            .await
            .map(|_| ())
    }

    async fn beat_agent(&self, call: &Call, agent: Name, session: Option<NodeId>) -> Result<AgentRecord, StoreError> {
        let call = call.clone();
        self.ask(|reply| Verb::Beat {
            call,
            agent,
            session,
            reply,
        })
        .await
    }

    async fn agents(&self, namespace: &str) -> Result<Vec<AgentRecord>, StoreError> {
        if self.writer.is_some() {
            let namespace = Name::from(namespace);
            return self.ask(|reply| Verb::Agents { namespace, reply }).await;
        }
        let namespace = namespace.to_owned();
        self.read(move |db, _| {
            let mut found = agent::stored(db)?;
            found.retain(|(place, _)| **place == *namespace);
            Ok(found.into_iter().map(|(_, agent)| agent).collect())
        })
        .await
    }

    async fn put_breaker(
        &self,
        call: &Call,
        breaker: Name,
        settings: BreakerSettings,
        expected_version: Option<u64>,
    ) -> Result<BreakerRecord, StoreError> {
        let ask = breaker::Ask::Put {
            settings: Box::new(settings),
            expected_version,
        };
        let found = self.ask_breaker(call, &breaker, ask).await?;
        found.ok_or(StoreError::Rejected(Rejected::NoBreaker(breaker)))
    }

    async fn command_breaker(
        &self,
        call: &Call,
        breaker: Name,
        command: BreakerCommand,
    ) -> Result<BreakerRecord, StoreError> {
        let found = self.ask_breaker(call, &breaker, breaker::Ask::Command(command)).await?;
        found.ok_or(StoreError::Rejected(Rejected::NoBreaker(breaker)))
    }

    async fn delete_breaker(&self, call: &Call, breaker: Name) -> Result<(), StoreError> {
        self.ask_breaker(call, &breaker, breaker::Ask::Delete).await.map(|_| ())
    }

    async fn breakers(&self, namespace: &str) -> Result<Vec<BreakerRecord>, StoreError> {
        if self.writer.is_some() {
            let namespace = Name::from(namespace);
            return self.ask(|reply| Verb::Breakers { namespace, reply }).await;
        }
        let namespace = namespace.to_owned();
        self.read(move |db, _| {
            let mut found = breaker::stored(db)?;
            found.retain(|(place, _)| **place == *namespace);
            Ok(found.into_iter().map(|(_, breaker)| breaker).collect())
        })
        .await
    }

    async fn counts(&self, namespace: &str, now: Time) -> Result<Counts, StoreError> {
        self.loaded().await?;
        if self.shared.is_closed() {
            return Err(StoreError::Closed);
        }
        if self.writer.is_some() {
            return Ok(self.shared.view.lock().counts(&self.shared.catalog, namespace, now));
        }
        let namespace = namespace.to_owned();
        self.read(move |db, _| {
            let twin = Shared::new();
            twin.catalog.load(db)?;
            memory::Memory {
                clock: now,
                ..Default::default()
            }
            .rebuild(&twin, db)?;
            let counts = twin.view.lock().counts(&twin.catalog, &namespace, now);
            Ok(counts)
        })
        .await
    }

    async fn prune(&self, retention: Retention, now: Time, limit: usize) -> Result<Pruned, StoreError> {
        self.ask(|reply| Verb::Prune {
            retention,
            now,
            limit,
            reply,
        })
        .await
    }

    async fn verify(&self) -> Result<Verified, StoreError> {
        let mut verified = self
            .read(|db, _| {
                let reading = db.unchecked_transaction()?;
                verify::verify(&reading)
            })
            .await?;
        if self.writer.is_some() {
            verified.violations.extend(self.ask(Verb::Audit).await?);
        }
        Ok(verified)
    }

    async fn stats(&self) -> Result<StoreStats, StoreError> {
        let (path, memory) = (self.path.clone(), self.readers.is_none());
        self.read(move |db, _| backup::stats(db, &path, memory)).await
    }

    async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let (to, path) = (to.to_owned(), self.path.clone());
        self.read(move |db, _| Ok(backup::backup(db, &to, &path))).await?
    }

    async fn export(&self, from: Bookmark, limit: usize, now: Time) -> Result<Parcel, StoreError> {
        self.ask(|reply| Verb::Quiet { now, reply }).await?;
        self.read(move |db, shared| {
            let reading = db.unchecked_transaction()?;
            dossier::export(&reading, &shared.catalog, &from, limit)
        })
        .await
    }

    async fn import(&self, step: Import, now: Time) -> Result<(), StoreError> {
        self.ask(|reply| Verb::Import { step, now, reply }).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        if self.shared.closed.load(std::sync::atomic::Ordering::Acquire) {
            return Ok(());
        }
        if let Some(readers) = &self.readers {
            readers.settle().await;
            readers.close();
        }
        let closed = match &self.writer {
            Some(_) => self.ask(Verb::Close).await,
            None => Ok(()),
        };
        self.shared.closed.store(true, std::sync::atomic::Ordering::Release);
        if let Some(writer) = &self.writer {
            writer.join();
        }
        closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_mistake_in_the_writer_costs_one_request_and_not_the_store() {
        let store = SqliteStore::open(SqliteOptions::new(":memory:")).unwrap();
        let call = Call::new("tester", Time::EPOCH.plus(Duration::from_secs(1)));
        let task = || vec![NewTask::new(pensum_core::Spec::new("noop", Json::null()))];
        store.enqueue(&call, task()).await.unwrap();
        let broken: Result<(), StoreError> = store.read(|_, _| panic!("as a test")).await;
        assert!(matches!(broken, Err(StoreError::Unavailable(_))), "{broken:?}");
        store.enqueue(&call, task()).await.unwrap();
        assert_eq!(store.counts("default", call.now).await.unwrap().total().ready, 2);
        assert_eq!(store.verify().await.unwrap().violations, Vec::<String>::new());
    }
}
