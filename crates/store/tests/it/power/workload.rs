//! The workload under the recorder: callers at once on one store, which note what they ask and what they are answered.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use pensum_core::store::{Call, IdempotencyKey, Store};
use pensum_core::task::Dependency;
use pensum_core::{Json, Name, NewTask, NodeId, Priority, Spec, TaskId, Time};
use pensum_store::sqlite::{SqliteOptions, SqliteStore};

use super::dice::Dice;
use super::ledger::Effect;
use super::log::ACKS;

/// The name of the store's file.
pub(super) const STORE: &str = "store.db";
/// The queue whose tasks no node claims.
pub(super) const SHELF: &str = "shelf";
/// The queue of the others.
pub(super) const WORK: &str = "work";

/// How many callers there are in a session, nodes aside.
const CALLERS: usize = 7;
/// How often the store is opened and closed.
pub(super) const SESSIONS: u64 = 4;
/// The session whose log grows so long that the store folds it while it works on.
const LONG_SESSION: u64 = 3;
/// The session that ends without a close.
const DROPPED_SESSION: u64 = 2;

/// The verb of a number as an idempotency key.
pub(super) fn once(call: Call, number: u64) -> Call {
    let key = format!("verb {number}");
    let digest = [number as u8; 32];
    Call {
        idempotency: Some(IdempotencyKey { key, digest }),
        ..call
    }
}

/// A task whose parameters name the verb that made it.
pub(super) fn task(verb: u64, item: usize, queue: &str) -> NewTask {
    let parameters = Json::parse(format!(r#"{{"verb":{verb},"item":{item}}}"#)).unwrap();
    let mut task = NewTask::new(Spec::new("noop", parameters));
    task.spec.queue = Name::from(queue);
    task
}

/// A call by the workload.
pub(super) fn call(now: Time) -> Call {
    Call::new("tester", now)
}

/// The time that the workload starts at; its clock moves on a millisecond at each look.
pub(super) fn start() -> Time {
    Time::parse("2026-03-01T12:00:00Z").unwrap()
}

/// What all callers of a session share.
pub(super) struct World {
    pub(super) store: SqliteStore,
    pub(super) notes: Arc<Notes>,
    pub(super) tasks: Mutex<Vec<TaskId>>,
    path: PathBuf,
    pub(super) busy: AtomicUsize,
}

/// The lines about the workload, and its clock.
pub(super) struct Notes {
    file: Mutex<File>,
    verbs: AtomicU64,
    clock: AtomicI64,
}

impl Notes {
    pub(super) fn now(&self) -> Time {
        Time::from_micros(self.clock.fetch_add(1_000, Ordering::Relaxed))
    }

    /// One write a line, so that it has one place in the order of the log.
    fn line(&self, line: &str) {
        self.file.lock().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    pub(super) fn ask(&self, touched: &[TaskId]) -> u64 {
        let number = self.verbs.fetch_add(1, Ordering::Relaxed);
        let touched: String = touched.iter().map(|id| format!(" {id}")).collect();
        self.line(&format!("ask {number}{touched}"));
        number
    }

    pub(super) fn answer(&self, number: u64, effect: &Effect) {
        self.line(&format!("answer {number}{effect}"));
    }
}

/// Runs the first sessions of the workload in `directory`.
pub(super) async fn run(directory: PathBuf, seed: u64, sessions: u64) {
    let mut acks = File::options();
    let acks = acks.create(true).append(true).open(directory.join(ACKS)).unwrap();
    let notes = Arc::new(Notes {
        file: Mutex::new(acks),
        verbs: AtomicU64::new(1),
        clock: AtomicI64::new(start().as_micros()),
    });
    let mut dice = Dice::new(seed);
    let mut tasks = Vec::new();
    for session in 0..sessions {
        let path = directory.join(STORE);
        let world = Arc::new(World {
            store: SqliteStore::open(SqliteOptions::new(&path)).unwrap(),
            notes: notes.clone(),
            tasks: Mutex::new(tasks),
            path,
            busy: AtomicUsize::new(CALLERS),
        });
        world.clone().session(session, &mut dice).await;
        let world = Arc::into_inner(world).unwrap();
        tasks = world.tasks.into_inner();
        if session != DROPPED_SESSION {
            world.store.close().await.unwrap();
        }
    }
}

impl World {
    async fn session(self: Arc<World>, session: u64, dice: &mut Dice) {
        let mut callers = Vec::new();
        for _ in 0..2 {
            callers.push(tokio::spawn(self.clone().produce(dice.split())));
            callers.push(tokio::spawn(self.clone().keep_shelf(dice.split())));
        }
        callers.push(tokio::spawn(self.clone().keep_bounded(dice.split())));
        callers.push(tokio::spawn(self.clone().keep_hand(session, dice.split())));
        let process = NodeId(1_000 + session);
        callers.push(tokio::spawn(self.clone().preview(process, dice.split())));
        assert_eq!(callers.len(), CALLERS);
        let nodes = (1..=3).map(|node| session * 10 + node);
        let workers: Vec<_> = nodes
            .map(|node| tokio::spawn(self.clone().work(node, dice.split())))
            .collect();
        for caller in callers {
            caller.await.unwrap();
            self.busy.fetch_sub(1, Ordering::Relaxed);
        }
        for worker in workers {
            worker.await.unwrap();
        }
        if session % 2 == 1 {
            self.prune().await;
        }
        // With nobody writing, all of the log is folded, and what comes next begins it anew.
        self.fold();
        if session == LONG_SESSION {
            self.save_much().await;
        }
        self.enqueue(dice).await;
        self.enqueue(dice).await;
    }

    /// Folds the log into the database as the store does it by itself once there are 16 MB of it.
    fn fold(&self) {
        let db = rusqlite::Connection::open(&self.path).unwrap();
        db.execute_batch("PRAGMA wal_autocheckpoint = 0; PRAGMA synchronous = NORMAL;")
            .unwrap();
        db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
    }

    async fn produce(self: Arc<World>, mut dice: Dice) {
        for _ in 0..25 {
            self.enqueue(&mut dice).await;
            if dice.chance(8) {
                self.fold();
            }
        }
    }

    async fn enqueue(&self, dice: &mut Dice) {
        let number = self.notes.ask(&[]);
        let size = match dice.roll(100) {
            0..50 => 1,
            50..90 => 2 + dice.roll(6),
            _ => 30 + dice.roll(30),
        };
        let known = self.tasks.lock().clone();
        let batch = (0..size as usize).map(|item| {
            let mut task = task(number, item, WORK);
            task.spec.priority = Priority::from_level(1 + dice.roll(5) as i64).unwrap();
            match dice.roll(8) {
                0 => task.spec.key = Some(Name::from(format!("key {}", dice.roll(4)))),
                1 | 2 if item > 0 => task.depends_on.push(Dependency::Item(dice.roll(item as u64) as usize)),
                3 if !known.is_empty() => task.depends_on.push(Dependency::Task(dice.pick(&known))),
                _ => {}
            }
            task
        });
        let batch = batch.collect();
        let mut effect = Effect {
            once: dice.chance(30),
            ..Effect::default()
        };
        let now = call(self.notes.now());
        let call = if effect.once { once(now, number) } else { now };
        match self.store.enqueue(&call, batch).await {
            Ok(made) => effect.made = made.into_iter().map(|made| made.id).collect(),
            // A dependency may have been pruned.
            Err(refused) => {
                assert!(refused.to_string().contains("there is no task"), "{refused}");
                effect.once = false;
            }
        }
        self.notes.answer(number, &effect);
        self.tasks.lock().extend(&effect.made);
    }
}
