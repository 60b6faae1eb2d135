//! What the loops of a node share: the table of runs, slots, queues between the loops, and the way to their end.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use foldhash::fast::FixedState;
use parking_lot::Mutex;
use pensum_core::agent::{Amounts, Demand};
use pensum_core::store::Finish;
use pensum_core::transition::Interrupt;
use pensum_core::{LeaseId, TaskId, Time};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::StopReason;
use crate::run::Run;

/// Time between two lines which say that the store does not answer.
const COMPLAINTS_APART: Duration = Duration::from_secs(10);

pub(crate) struct Node {
    pub(crate) slots: usize,
    /// How many threads run at once on this machine: asked once, for the answer takes reads of several files.
    pub(crate) processors: usize,
    busy: AtomicUsize,
    /// A slot became free.
    pub(crate) slot_freed: Notify,
    /// Something may have become claimable.
    pub(crate) wake: Notify,
    /// Every run whose end the store has not acknowledged, by lease: a task may be claimed again here before the
    /// answer to its last finish has arrived.
    /// Leases are random, so their hashes need not be; and a simulation that is repeated sees them in the same order.
    runs: Mutex<HashMap<LeaseId, Arc<Run>, FixedState>>,
    /// The table was empty and is not any more.
    pub(crate) some_runs: Notify,
    pub(crate) ready: Mutex<Ready>,
    /// How many runs were ever taken from `ready`; when it stands still while `ready` does not empty, a handler blocks.
    pub(crate) taken: AtomicU64,
    finishes: Mutex<Vec<(Arc<Run>, Finish)>>,
    /// There are finishes to send.
    pub(crate) finish_ready: Notify,
    /// Held while the node tells the store that it lives, or that it ends.
    pub(crate) beating: tokio::sync::Mutex<()>,
    /// When the store last heard that the node lives, in microseconds.
    heard_at: AtomicI64,
    was_heard: AtomicBool,
    /// The node has accepted tasks that are not durable.
    answers: AtomicBool,
    /// When it was last said that the store does not answer, in microseconds.
    complained_at: AtomicI64,
    /// How often the store says that somebody asked something of what runs here.
    commands: AtomicU64,
    /// The keeper shall renew every lease at once.
    renewal_wanted: AtomicBool,
    /// Outcomes that the store has not acknowledged yet.
    unacknowledged: AtomicUsize,
    /// An outcome was acknowledged, or a handler returned.
    pub(crate) settled: Notify,
    /// The earliest end of a wait that was stored since the reaper last looked, in microseconds.
    due: AtomicI64,
    /// `due` came closer.
    pub(crate) due_sooner: Notify,
    started: AtomicBool,
    /// No claims any more.
    pub(crate) stopping: CancellationToken,
    /// Everything ends.
    pub(crate) stopped: CancellationToken,
    /// The claim loop has ended: nothing comes to this node any more.
    pub(crate) claims_over: CancellationToken,
}

/// Claimed runs that no worker has taken yet.
#[derive(Default)]
pub(crate) struct Ready {
    pub(crate) queue: VecDeque<Arc<Run>>,
    /// Workers that look at the queue.
    pub(crate) workers: usize,
}

impl Node {
    pub(crate) fn new(slots: usize, now: Time) -> Node {
        Node {
            slots,
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            busy: AtomicUsize::new(0),
            slot_freed: Notify::new(),
            wake: Notify::new(),
            runs: Mutex::new(HashMap::default()),
            some_runs: Notify::new(),
            ready: Mutex::new(Ready::default()),
            taken: AtomicU64::new(0),
            finishes: Mutex::new(Vec::new()),
            finish_ready: Notify::new(),
            beating: tokio::sync::Mutex::new(()),
            heard_at: AtomicI64::new(now.as_micros()),
            was_heard: AtomicBool::new(false),
            answers: AtomicBool::new(false),
            complained_at: AtomicI64::new(i64::MIN),
            commands: AtomicU64::new(0),
            renewal_wanted: AtomicBool::new(false),
            unacknowledged: AtomicUsize::new(0),
            settled: Notify::new(),
            due: AtomicI64::new(i64::MAX),
            due_sooner: Notify::new(),
            started: AtomicBool::new(false),
            stopping: CancellationToken::new(),
            stopped: CancellationToken::new(),
            claims_over: CancellationToken::new(),
        }
    }

    /// True for the first caller.
    pub(crate) fn begin(&self) -> bool {
        !self.started.swap(true, Ordering::SeqCst)
    }

    pub(crate) fn is_started(&self) -> bool {
        self.started.load(Ordering::SeqCst)
    }

    pub(crate) fn is_accepting(&self) -> bool {
        self.is_started() && !self.stopping.is_cancelled()
    }
}

/// Slots.
impl Node {
    pub(crate) fn busy(&self) -> usize {
        self.busy.load(Ordering::SeqCst)
    }

    pub(crate) fn free(&self) -> usize {
        self.slots.saturating_sub(self.busy())
    }

    pub(crate) fn take_slots(&self, count: usize) {
        self.busy.fetch_add(count, Ordering::SeqCst);
    }

    pub(crate) fn free_slots(&self, count: usize) {
        if count > 0 {
            self.busy.fetch_sub(count, Ordering::SeqCst);
            self.slot_freed.notify_one();
            self.settled.notify_waiters();
        }
    }
}

/// The table of runs.
impl Node {
    pub(crate) fn add(&self, runs: &[Arc<Run>]) {
        let mut table = self.runs.lock();
        let was_empty = table.is_empty();
        table.extend(runs.iter().map(|run| (run.lease.lease, Arc::clone(run))));
        drop(table);
        if was_empty {
            self.some_runs.notify_one();
        }
    }

    pub(crate) fn remove<'a>(&self, runs: impl Iterator<Item = &'a Arc<Run>>) {
        let mut table = self.runs.lock();
        let mut gone: smallvec::SmallVec<[Arc<Run>; 8]> = smallvec::SmallVec::new();
        for run in runs {
            gone.extend(table.remove(&run.lease.lease));
        }
        // The last references may go here; not under the lock.
        drop(table);
    }

    pub(crate) fn has_runs(&self) -> bool {
        !self.runs.lock().is_empty()
    }

    pub(crate) fn for_each_run(&self, mut f: impl FnMut(&Arc<Run>)) {
        for run in self.runs.lock().values() {
            f(run);
        }
    }

    /// The runs at this moment.
    /// What the tasks that run here hold of the machine.
    pub(crate) fn held(&self) -> Amounts {
        let mut held = Amounts::default();
        self.for_each_run(|run| held = held.plus(Demand::of(&run.spec).resources));
        held
    }

    pub(crate) fn all_runs(&self) -> Vec<Arc<Run>> {
        self.runs.lock().values().cloned().collect()
    }

    /// Those of `tasks` that run here with a handler that cannot pause.
    pub(crate) fn unpausable(&self, tasks: &[TaskId]) -> Vec<TaskId> {
        let mut found = Vec::new();
        self.for_each_run(|run| {
            if tasks.contains(&run.id()) && !run.is_concluded() && !run.can_pause() {
                found.push(run.id());
            }
        });
        found
    }

    /// Tells a run of this node what was asked for.
    pub(crate) fn interrupt(&self, task: TaskId, interrupt: Interrupt, now: Time, grace: Duration) {
        let mut asked: smallvec::SmallVec<[Arc<Run>; 1]> = smallvec::SmallVec::new();
        self.for_each_run(|run| {
            if run.id() == task && !run.is_concluded() {
                asked.push(Arc::clone(run));
            }
        });
        // Not under the table's lock: this wakes handlers.
        for run in asked {
            match interrupt {
                Interrupt::Cancel => run.stop(StopReason::Cancel, now, grace),
                Interrupt::Pause => run.request_pause(true, now),
                Interrupt::Resume => run.request_pause(false, now),
            }
        }
    }
}

/// What the store knows of the node, and it of what was asked there.
impl Node {
    /// The store heard at `sent` that the node lives, and has counted `commands` for what runs here.
    pub(crate) fn heard(&self, sent: Time, commands: u64) {
        self.heard_at.store(sent.as_micros(), Ordering::SeqCst);
        self.was_heard.store(true, Ordering::SeqCst);
        // A store that had forgotten the node counts from the start.
        if self.commands.swap(commands, Ordering::SeqCst) != commands {
            self.want_renewal();
        }
    }

    /// True for whoever may say that the store does not answer: the first one in a while, since all loops fail together.
    pub(crate) fn may_complain(&self, now: Time) -> bool {
        let now = now.as_micros();
        let apart = i64::try_from(COMPLAINTS_APART.as_micros()).unwrap_or(i64::MAX);
        let passed = |last: i64| now.abs_diff(last) >= apart.unsigned_abs();
        self.complained_at
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| passed(last).then_some(now))
            .is_ok()
    }

    /// True once the store has heard that the node lives.
    pub(crate) fn was_heard(&self) -> bool {
        self.was_heard.load(Ordering::SeqCst)
    }

    /// Notes that tasks are to end with this node.
    pub(crate) fn answer(&self) {
        self.answers.store(true, Ordering::SeqCst);
    }

    /// True once the node has accepted tasks that are to end with it.
    pub(crate) fn answers(&self) -> bool {
        self.answers.load(Ordering::SeqCst)
    }

    pub(crate) fn heard_at(&self) -> Time {
        Time::from_micros(self.heard_at.load(Ordering::SeqCst))
    }

    /// How many commands for what runs here the store had counted when it was last heard.
    pub(crate) fn commands(&self) -> u64 {
        self.commands.load(Ordering::SeqCst)
    }

    /// Has the keeper renew every lease at once, which tells what was asked.
    pub(crate) fn want_renewal(&self) {
        self.renewal_wanted.store(true, Ordering::SeqCst);
    }

    /// True once for each time that a renewal was wanted, or several times.
    pub(crate) fn take_wanted_renewal(&self) -> bool {
        self.renewal_wanted.swap(false, Ordering::SeqCst)
    }
}

/// The way from handlers to the store.
impl Node {
    /// Hands finishes to the completer.
    pub(crate) fn send(&self, finishes: &mut Vec<(Arc<Run>, Finish)>) {
        if finishes.is_empty() {
            return;
        }
        self.unacknowledged.fetch_add(finishes.len(), Ordering::SeqCst);
        self.finishes.lock().append(finishes);
        self.finish_ready.notify_one();
    }

    /// Takes up to `most` finishes, oldest first.
    pub(crate) fn take_finishes(&self, most: usize) -> Vec<(Arc<Run>, Finish)> {
        let mut finishes = self.finishes.lock();
        if finishes.len() <= most {
            return std::mem::take(&mut *finishes);
        }
        let rest = finishes.split_off(most);
        std::mem::replace(&mut *finishes, rest)
    }

    /// Outcomes that the store has not acknowledged yet.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.unacknowledged.load(Ordering::SeqCst)
    }

    pub(crate) fn acknowledged(&self, count: usize) {
        self.unacknowledged.fetch_sub(count, Ordering::SeqCst);
        self.settled.notify_waiters();
    }

    /// A wait that ends by itself at `at` was stored.
    pub(crate) fn note_due(&self, at: Time) {
        if self.due.fetch_min(at.as_micros(), Ordering::SeqCst) > at.as_micros() {
            self.due_sooner.notify_one();
        }
    }

    pub(crate) fn due(&self) -> Time {
        Time::from_micros(self.due.load(Ordering::SeqCst))
    }

    /// The reaper looks now, and learns from the store what is due next.
    pub(crate) fn forget_due(&self) {
        self.due.store(i64::MAX, Ordering::SeqCst);
    }
}
