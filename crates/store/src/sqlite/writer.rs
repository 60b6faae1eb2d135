//! The writer: one connection, and groups of verbs that share a transaction.
//!
//! Plain and synchronous: a thread drives it in the store, a test may drive it by hand. Claims are served before the
//! group's transaction (from what is committed) and after it (from what just became ready); nothing else is answered
//! before its commit.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pensum_core::{StoreError, TaskId, Time};
use rusqlite::Connection;

use super::agent::Agents;
use super::breaker::Breakers;
use super::claim::Coverage;
use super::error::Fault;
use super::manifest::Recovery;
use super::memory::Memory;
use super::names::Interner;
use super::queue::Queues;
use super::verb::{Claim, Done, Grants, Reply, Verb, later};
use super::view::{Cell, Leased, Shared, Tally};

/// Most verbs in one group.
pub(super) const GROUP_VERBS_MAX: usize = 512;
/// Most rows in one group, as far as the verbs tell beforehand.
pub(super) const GROUP_ROWS_MAX: usize = 20_000;
/// How many sequence numbers are set aside at once; what a crash leaves unused of them is skipped.
const SEQ_BLOCK: u64 = 1_000_000;
/// The log is folded into the database by the writer itself past this many pages: some 256 MB.
const WAL_PAGES_MAX: i32 = 65_536;

/// What the open transaction has done so far beside its rows.
#[derive(Default)]
pub(super) struct Group {
    pub(super) tallies: Vec<Tally>,
    touched: Vec<u32>,
    /// Leases that end with the commit.
    pub(super) closed: Vec<i64>,
    /// Leases as they were before this group changed them.
    pub(super) undo: Vec<(i64, Box<Leased>)>,
}

impl Group {
    pub(super) fn count(&mut self, class: u32, cell: Cell, by: i64) {
        let index = class as usize;
        if self.tallies.len() <= index {
            self.tallies.resize(index + 1, Tally::default());
        }
        if self.tallies[index] == Tally::default() {
            self.touched.push(class);
        }
        self.tallies[index][cell as usize] += by;
    }
}

/// Random numbers: keyed hashes of a counter, under keys that the operating system gave.
pub(super) struct Bits {
    hasher: Keys,
    drawn: u64,
}

enum Keys {
    Random(std::hash::RandomState),
    #[cfg(feature = "testkit")]
    Seed(u64),
}

impl Bits {
    /// Numbers that follow from a seed.
    #[cfg(feature = "testkit")]
    pub(super) fn seeded(seed: u64) -> Bits {
        Bits {
            hasher: Keys::Seed(seed),
            drawn: 0,
        }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.drawn += 1;
        match &self.hasher {
            Keys::Random(keys) => keys.hash_one(self.drawn),
            #[cfg(feature = "testkit")]
            Keys::Seed(seed) => {
                std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::new().hash_one((seed, self.drawn))
            }
        }
    }

    pub(super) fn wide(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }
}

/// Everything that changes the store.
pub(super) struct Writer {
    pub(super) db: Connection,
    pub(super) path: String,
    pub(super) shared: Arc<Shared>,
    pub(super) names: Interner,
    pub(super) memory: Memory,
    pub(super) group: Group,
    pub(super) bits: Bits,
    pub(super) next_row: i64,
    pub(super) coverage: Coverage,
    pub(super) queues: Queues,
    pub(super) agents: Agents,
    pub(super) breakers: Breakers,
    pub(super) parked: Vec<Claim>,
    /// What was in flight when the file was last let go, until a verb names the time.
    pub(super) recovery: Option<Recovery>,
    /// Tasks that are not durable are left of the process before this one, until a verb names the time.
    pub(super) forsaken: bool,
    /// Until then a claim is answered only once its manifest is on disk; set by the first verb after an unclean end.
    pub(super) careful_until: Option<Time>,
    pub(super) careful: bool,
    pub(super) manifest_changed: bool,
    /// The `alive` time on disk.
    pub(super) alive: Time,
    pub(super) prune_after: i64,
    held_back: Vec<(Reply<Grants>, Grants)>,
    pub(super) next_seq: u64,
    seq_reserved: u64,
    full_sync: bool,
    memory_only: bool,
    checkpointed_pages: i32,
    pages: Arc<std::sync::atomic::AtomicI32>,
    /// How many pages of the log the folder has carried into the database.
    pub(super) folded: Arc<std::sync::atomic::AtomicI32>,
    pub(super) parked_max: usize,
    /// The memory does not follow the disk, and has to be built anew before anything else happens.
    pub(super) stale: bool,
    /// Asks the checkpointer to fold the log into the database.
    pub(super) fold: Option<std::sync::mpsc::SyncSender<()>>,
}

/// The log is folded in the background each time it has grown by this many pages: 16 MB.
const FOLD_PAGES: i32 = 4096;

impl Writer {
    /// A writer over a migrated database. Its memory is empty until [`Writer::load`].
    pub(super) fn new(
        mut db: Connection,
        path: String,
        shared: Arc<Shared>,
        memory_only: bool,
    ) -> Result<Writer, Fault> {
        let pages = Arc::new(std::sync::atomic::AtomicI32::new(0));
        if !memory_only {
            let seen = pages.clone();
            db.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages: i32| {
                seen.store(pages, Ordering::Relaxed);
                Ok(())
            }))?;
        }
        Ok(Writer {
            db,
            path,
            shared,
            names: Interner::default(),
            memory: Memory::default(),
            group: Group::default(),
            bits: Bits {
                hasher: Keys::Random(std::hash::RandomState::new()),
                drawn: 0,
            },
            next_row: 1,
            coverage: Coverage::default(),
            queues: Queues::default(),
            agents: Agents::default(),
            breakers: Breakers::default(),
            parked: Vec::new(),
            recovery: None,
            forsaken: false,
            careful_until: None,
            careful: false,
            manifest_changed: false,
            alive: Time::EPOCH,
            prune_after: 0,
            held_back: Vec::new(),
            next_seq: 1,
            seq_reserved: 0,
            full_sync: true,
            memory_only,
            checkpointed_pages: 0,
            folded: Arc::default(),
            parked_max: 0,
            stale: false,
            pages,
            fold: None,
        })
    }

    /// Reads what the memory is made of, and notes that the file is in use.
    pub(super) fn load(&mut self) -> Result<(), Fault> {
        self.shared.catalog.load(&self.db)?;
        self.names.load(&self.shared.catalog);
        self.next_row = 1 + self
            .db
            .query_row("SELECT ifnull(max(row), 0) FROM task", [], |row| row.get::<_, i64>(0))?;
        let meta = |key: &str| -> Result<i64, Fault> {
            use rusqlite::OptionalExtension;
            let found = self
                .db
                .query_row("SELECT value FROM meta WHERE key = ?", [key], |row| row.get(0))
                .optional()?;
            Ok(found.unwrap_or(0))
        };
        let clean = meta("clean")? != 0 || self.next_row == 1;
        self.alive = Time::from_micros(meta("alive")?);
        self.seq_reserved = meta("seq")? as u64;
        self.next_seq = self.seq_reserved.max(1);
        self.memory.clock = super::memory::CLOCK_UNKNOWN;
        self.load_queues()?;
        self.agents.load(&self.db)?;
        self.breakers.load(&self.db)?;
        self.follow_ages();
        self.restore_leases()?;
        let orphans = self.memory.rebuild(&self.shared, &self.db)?;
        self.careful = !clean;
        self.recovery = Recovery::read(&self.db, orphans, !clean)?;
        self.forsaken = !self.memory.accepted.is_empty();
        self.db
            .execute("REPLACE INTO meta(key, value) VALUES ('clean', 0)", [])?;
        self.publish();
        self.shared.loaded.send_replace(true);
        Ok(())
    }

    /// The next number in the order of events.
    pub(super) fn seq(&mut self) -> Result<u64, Fault> {
        if self.next_seq >= self.seq_reserved {
            self.seq_reserved = self.next_seq + SEQ_BLOCK;
            self.db
                .prepare_cached("REPLACE INTO meta(key, value) VALUES ('seq', ?)")?
                .execute([self.seq_reserved as i64])?;
        }
        self.next_seq += 1;
        Ok(self.next_seq - 1)
    }

    /// The id of a row.
    pub(super) fn id_of(&self, row: i64) -> Result<TaskId, Fault> {
        let mut statement = self.db.prepare_cached("SELECT id FROM task WHERE row = ?")?;
        Ok(TaskId::from_bytes(statement.query_row([row], |r| r.get(0))?))
    }

    /// True when the memory and the manifest on disk differ, and nothing else will soon write it.
    pub(super) fn has_manifest_to_write(&self) -> bool {
        self.manifest_changed
    }

    /// Carries out a group of verbs in one transaction. False once the store is closed.
    pub(super) fn run_group(&mut self, verbs: Vec<Verb>) -> bool {
        let mut writes = Vec::with_capacity(verbs.len());
        let mut after = Vec::new();
        let now = verbs.iter().filter_map(Verb::now).max();
        let is_ready = self
            .restore()
            .and_then(|()| now.map_or(Ok(()), |now| self.move_on(now)));
        if let Err(fault) = is_ready {
            let error = fault.describe(&self.path);
            return verbs.into_iter().all(|verb| self.refuse(verb, &error));
        }
        for verb in verbs {
            match verb {
                Verb::Claim(claim) => self.serve_or_park(claim),
                Verb::Tick(_) => {}
                verb @ (Verb::Read(_)
                | Verb::Audit(_)
                | Verb::Queues { .. }
                | Verb::Beat { .. }
                | Verb::Agents { .. }
                | Verb::Breakers { .. }
                | Verb::Quiet { .. }
                | Verb::Close(_)
                | Verb::Stop) => {
                    after.push(verb);
                }
                verb => writes.push(verb),
            }
        }
        if writes.iter().any(Verb::is_relaxed) && writes.iter().any(Verb::is_acknowledged) {
            // What does not wait for the disk goes first, and is answered while the rest waits.
            let (relaxed, rest) = writes.into_iter().partition(Verb::is_relaxed);
            self.commit_group(relaxed);
            self.commit_group(rest);
        } else if !writes.is_empty() {
            self.commit_group(writes);
        }
        self.serve_parked();
        if !self.held_back.is_empty() {
            self.write_manifest();
        }
        self.publish();
        self.fold_log();
        after.into_iter().all(|verb| self.run_after(verb))
    }

    /// Answers a verb with an error; the end of the store is carried out all the same.
    fn refuse(&mut self, verb: Verb, error: &StoreError) -> bool {
        if matches!(verb, Verb::Close(_) | Verb::Stop) {
            return self.run_after(verb);
        }
        verb.fail(error);
        true
    }

    fn run_after(&mut self, verb: Verb) -> bool {
        match verb {
            Verb::Read(read) => read(Ok(&self.db)),
            Verb::Quiet { reply, .. } => {
                let _ = reply.send(self.busy().map_or(Ok(()), Err));
            }
            Verb::Audit(reply) => {
                let found = self.audit().map_err(|fault| fault.describe(&self.path));
                let _ = reply.send(found);
            }
            Verb::Queues { namespace, reply } => {
                let _ = reply.send(Ok(self.list_queues(&namespace)));
            }
            Verb::Beat {
                call,
                agent,
                session,
                reply,
            } => {
                let heard = self.beat_agent(&call, &agent, session);
                let _ = reply.send(heard.map_err(StoreError::from));
            }
            Verb::Breakers { namespace, reply } => {
                let _ = reply.send(Ok(self.list_breakers(&namespace)));
            }
            Verb::Agents { namespace, reply } => {
                let _ = reply.send(Ok(self.list_agents(&namespace)));
            }
            Verb::Close(reply) => {
                let closed = self.shut().map_err(|fault| fault.describe(&self.path));
                // Whoever is still in the queue is told so.
                self.shared.closed.store(true, Ordering::Release);
                let _ = reply.send(closed);
                return false;
            }
            Verb::Stop => return false,
            _ => {}
        }
        true
    }

    /// Builds the memory anew where an earlier try failed half-way: it must not be believed meanwhile.
    fn restore(&mut self) -> Result<(), Fault> {
        if self.stale {
            self.shared.catalog.load(&self.db)?;
            self.names.load(&self.shared.catalog);
            self.load_queues()?;
            self.agents.load(&self.db)?;
            self.breakers.load(&self.db)?;
            self.follow_ages();
            self.memory.rebuild(&self.shared, &self.db)?;
            self.stale = false;
        }
        Ok(())
    }

    /// Moves the clock, and carries out the recovery that waited for one.
    fn move_on(&mut self, now: Time) -> Result<(), Fault> {
        self.memory.clock = self.memory.clock.max(now);
        self.settle_agents(now);
        if self.memory.taken_for_due > self.memory.clock {
            self.stale = true;
            self.restore()?;
        }
        if self.careful {
            self.careful = false;
            self.careful_until = Some(now.plus(super::claim::PROBATION));
        }
        if let Some(recovery) = self.recovery.take() {
            self.set_sync(true)?;
            let recovered = self.transaction(|writer| writer.recover(&recovery, now));
            if let Err(fault) = recovered {
                self.recovery = Some(recovery);
                return Err(fault);
            }
        }
        if let Err(fault) = self.memory.advance(&self.shared, &self.db, now) {
            self.undo();
            return Err(fault);
        }
        if self.forsaken {
            self.abandon_all(now)?;
        }
        Ok(())
    }

    pub(super) fn set_sync(&mut self, full: bool) -> Result<(), Fault> {
        if self.full_sync != full && !self.memory_only {
            self.db.execute_batch(if full {
                "PRAGMA synchronous = FULL"
            } else {
                "PRAGMA synchronous = NORMAL"
            })?;
            self.full_sync = full;
        }
        Ok(())
    }

    /// Runs `work` in a transaction; whatever fails undoes all of it, in memory too.
    pub(super) fn transaction(&mut self, work: impl FnOnce(&mut Writer) -> Result<(), Fault>) -> Result<(), Fault> {
        let done = self
            .db
            .prepare_cached("BEGIN IMMEDIATE")
            .and_then(|mut s| s.execute([]))
            .map_err(Fault::from);
        let done = done.and_then(|_| work(self)).and_then(|()| self.flush());
        let done = done.and_then(|()| {
            self.db.prepare_cached("COMMIT")?.execute([])?;
            Ok(())
        });
        match done {
            Ok(()) => {
                self.committed();
                Ok(())
            }
            Err(fault) => {
                self.undo();
                Err(fault)
            }
        }
    }

    fn commit_group(&mut self, writes: Vec<Verb>) {
        // Claims that wait for their manifest go out with this commit, too.
        let acknowledged = !self.held_back.is_empty() || writes.iter().any(Verb::is_acknowledged);
        let mut dones: Vec<Done> = Vec::with_capacity(writes.len());
        let mut rest = writes.into_iter();
        let result = self.set_sync(acknowledged).and_then(|()| {
            self.transaction(|writer| {
                for verb in rest.by_ref() {
                    writer.execute(verb, &mut dones)?;
                }
                Ok(())
            })
        });
        let error = result.err().map(|fault| fault.describe(&self.path));
        if let Some(error) = &error {
            tracing::error!(%error, "a group of changes was undone");
            rest.for_each(|verb| verb.fail(error));
        }
        for done in dones {
            done(error.as_ref());
        }
    }

    fn execute(&mut self, verb: Verb, dones: &mut Vec<Done>) -> Result<(), Fault> {
        /// The answer is kept first: a fault must reach whoever asked, too.
        macro_rules! answer {
            ($reply:expr, $value:expr) => {
                match $value {
                    Ok(value) => dones.push(later($reply, value)),
                    Err(fault) => {
                        let fault: Fault = fault;
                        let _ = $reply.send(Err(fault.describe(&self.path)));
                        return Err(fault);
                    }
                }
            };
        }
        match verb {
            Verb::Enqueue { call, tasks, reply } => {
                answer!(reply, self.enqueue(&call, tasks).map(|r| r.map_err(StoreError::from)));
            }
            Verb::Unclaim(lost) => self.unclaim(&lost)?,
            Verb::Renew {
                beats,
                lease,
                now,
                reply,
            } => answer!(reply, self.renew(beats, lease, now).map(Ok)),
            Verb::Finish { finishes, now, reply } => answer!(reply, self.finish_all(finishes, now).map(Ok)),
            Verb::Checkpoint {
                checkpoint,
                spawn,
                now,
                reply,
            } => {
                answer!(reply, self.checkpoint(checkpoint, spawn, now).map(Ok));
            }
            Verb::Command {
                call,
                tasks,
                command,
                reply,
            } => {
                answer!(
                    reply,
                    self.command(&call, &tasks, &command)
                        .map(|r| r.map_err(StoreError::from))
                );
            }
            Verb::Update {
                call,
                task,
                patch,
                expected_version,
                reply,
            } => {
                answer!(reply, self.update(&call, task, &patch, expected_version).map(Ok));
            }
            Verb::Reap { now, limit, reply } => answer!(reply, self.reap(now, limit).map(Ok)),
            Verb::Prune {
                retention,
                now,
                limit,
                reply,
            } => answer!(reply, self.prune(retention, now, limit).map(Ok)),
            Verb::Queue {
                call,
                queue,
                ask,
                reply,
            } => answer!(
                reply,
                self.ask_queue(&call, queue, ask).map(|r| r.map_err(StoreError::from))
            ),
            Verb::Agent {
                call,
                agent,
                ask,
                reply,
            } => answer!(
                reply,
                self.ask_agent(&call, agent, ask).map(|r| r.map_err(StoreError::from))
            ),
            Verb::Breaker {
                call,
                breaker,
                ask,
                reply,
            } => answer!(
                reply,
                self.ask_breaker(&call, breaker, ask)
                    .map(|r| r.map_err(StoreError::from))
            ),
            Verb::Import { step, now, reply } => answer!(reply, self.import(step, now)),
            Verb::Claim(_)
            | Verb::Tick(_)
            | Verb::Read(_)
            | Verb::Audit(_)
            | Verb::Queues { .. }
            | Verb::Beat { .. }
            | Verb::Agents { .. }
            | Verb::Breakers { .. }
            | Verb::Quiet { .. }
            | Verb::Close(_)
            | Verb::Stop => {}
        }
        Ok(())
    }

    /// Writes what belongs to the transaction as a whole: counters and the manifest.
    fn flush(&mut self) -> Result<(), Fault> {
        self.group.touched.sort_unstable();
        self.group.touched.dedup();
        let mut statement = self.db.prepare_cached(
            "INSERT INTO counter(class, completed, failed, cancelled, executions) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET completed = completed + ?2, failed = failed + ?3, cancelled = cancelled + ?4,
             executions = executions + ?5",
        )?;
        for class in &self.group.touched {
            let tally = &self.group.tallies[*class as usize];
            let of = |cell: Cell| tally[cell as usize];
            let kept = [Cell::Completed, Cell::Failed, Cell::Cancelled, Cell::Executions].map(of);
            if kept != [0; 4] {
                statement.execute((class, kept[0], kept[1], kept[2], kept[3]))?;
            }
        }
        drop(statement);
        // As long as nobody has recovered what the last owner had in flight, its manifest is the only word of it.
        if self.recovery.is_none() && (self.manifest_changed || !self.group.closed.is_empty()) {
            self.put_manifest()?;
        }
        self.queues.flush(&self.db)?;
        self.breakers.flush(&self.db)?;
        self.agents
            .flush(&self.db, &self.shared.view.lock(), &self.group.closed)?;
        self.put_alive()
    }

    /// The transaction is on disk: what it did becomes visible.
    fn committed(&mut self) {
        let mut view = self.shared.view.lock();
        for row in self.group.closed.drain(..) {
            view.unlease(row);
        }
        for class in self.group.touched.drain(..) {
            let tally = std::mem::take(&mut self.group.tallies[class as usize]);
            if view.tallies.len() <= class as usize {
                view.tallies.resize(class as usize + 1, Tally::default());
            }
            for (total, by) in view.tallies[class as usize].iter_mut().zip(tally) {
                *total += by;
            }
        }
        drop(view);
        self.group.undo.clear();
        self.queues.committed();
        self.agents.committed();
        self.breakers.committed();
        self.manifest_changed = false;
        for (reply, grants) in self.held_back.drain(..) {
            // Grants that nobody takes any more come back by themselves.
            let _ = reply.send(Ok(grants));
        }
    }

    /// The transaction failed: the memory follows the disk again.
    pub(super) fn undo(&mut self) {
        if !self.db.is_autocommit()
            && let Err(error) = self.db.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "a transaction could not be rolled back");
        }
        let group = std::mem::take(&mut self.group);
        {
            let mut view = self.shared.view.lock();
            // The first of several copies is the oldest.
            for (row, leased) in group.undo.into_iter().rev() {
                view.leases.insert(row, leased);
            }
        }
        self.stale = true;
        if let Err(fault) = self.restore() {
            tracing::error!(?fault, "the store cannot be read; it stays unavailable until it can");
        }
        use rusqlite::OptionalExtension;
        let seq = self
            .db
            .query_row("SELECT value FROM meta WHERE key = 'seq'", [], |row| {
                row.get::<_, i64>(0)
            });
        self.seq_reserved = seq.optional().ok().flatten().unwrap_or(0) as u64;
        self.manifest_changed = true;
    }

    /// Writes the manifest in a commit of its own, without waiting for the disk unless claims wait for it.
    pub(super) fn write_manifest(&mut self) {
        let careful = !self.held_back.is_empty();
        let written = self.set_sync(careful).and_then(|()| self.transaction(|_| Ok(())));
        if let Err(fault) = written {
            let error = fault.describe(&self.path);
            tracing::error!(%error, "what is in flight could not be written down");
            for (reply, grants) in self.held_back.drain(..) {
                // The claims of nodes stand all the same; holding them back for ever would help nobody. An agent that asks
                // again is answered what it was given here, once that is on disk.
                let answer = if grants.outlive { Err(error.clone()) } else { Ok(grants) };
                let _ = reply.send(answer);
            }
            self.manifest_changed = false;
        }
    }

    /// Answers a claim, once its manifest is on disk where that matters.
    pub(super) fn grant(&mut self, reply: Reply<Grants>, grants: Grants) {
        self.manifest_changed |= !grants.items.is_empty();
        if grants.outlive && !grants.items.is_empty() {
            for grant in &grants.items {
                self.agents.write_lease(grant.row);
            }
            self.held_back.push((reply, grants));
        } else if self.careful_until.is_some_and(|until| self.memory.clock < until) && !grants.items.is_empty() {
            self.held_back.push((reply, grants));
        } else {
            let _ = reply.send(Ok(grants));
        }
    }

    /// Tells parked claimers when the next task becomes ready by the clock, or its queue opens.
    fn publish(&mut self) {
        let opens_at = self.opens_at().into_iter().chain(self.falls_silent_at());
        let opens_at = opens_at.chain(self.tries_at()).min();
        let first = self
            .shared
            .view
            .lock()
            .later
            .first_key_value()
            .map(|((at, _), _)| at.as_micros());
        let first = first.into_iter().chain(opens_at.map(Time::as_micros)).min();
        let first = first.unwrap_or(i64::MAX);
        self.shared.next_ready.set(first);
    }

    /// Keeps the log short without letting a commit wait for it, as long as that is possible.
    fn fold_log(&mut self) {
        let pages = self.pages.load(Ordering::Relaxed);
        if pages < self.checkpointed_pages {
            self.checkpointed_pages = 0;
        }
        // Most of a long log is folded beforehand, so that the writer waits for a few milliseconds and not for all of it.
        let is_folded = pages - self.folded.load(Ordering::Relaxed) < FOLD_PAGES || pages > 4 * WAL_PAGES_MAX;
        if pages > WAL_PAGES_MAX && is_folded && pages - self.checkpointed_pages > FOLD_PAGES / 4 {
            // Readers in the way make this fail; a later round tries again.
            let _ = self.db.busy_timeout(std::time::Duration::ZERO);
            let _ = self.db.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
            let _ = self.db.busy_timeout(std::time::Duration::from_secs(5));
            self.checkpointed_pages = pages;
        } else if pages - self.checkpointed_pages > FOLD_PAGES
            && let Some(fold) = &self.fold
            && fold.try_send(()).is_ok()
        {
            self.checkpointed_pages = pages;
        }
    }

    /// Leaves the file as one that was closed.
    fn shut(&mut self) -> Result<(), Fault> {
        for claim in std::mem::take(&mut self.parked) {
            let _ = claim.reply.send(Err(StoreError::Closed));
        }
        self.set_sync(true)?;
        self.manifest_changed = true;
        // Whoever only looked (`db verify`, a backup) leaves an unclean end as it was found.
        let clean = !self.careful;
        self.transaction(|writer| {
            writer
                .db
                .execute("REPLACE INTO meta(key, value) VALUES ('clean', ?)", [clean])?;
            Ok(())
        })?;
        if !self.memory_only {
            // With readers in the way the log stays, which is as good.
            let _ = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        }
        Ok(())
    }
}
