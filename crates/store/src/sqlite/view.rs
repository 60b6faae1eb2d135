//! What readers see of the writer's memory: leases, counts, and what is due later.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use foldhash::fast::FixedState;
use parking_lot::Mutex;
use pensum_core::query::StatusCounts;
use pensum_core::{Counts, LeaseId, Lifecycle, Name, NodeId, State, StoreError, TaskId, Time};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};

use super::names::Catalog;
use super::node::Nodes;
use super::row::LiveRow;

/// A claimed task. It has no row of its own: the manifest remembers it, and readers see it laid over its `live` row.
#[derive(Clone, Debug)]
pub(super) struct Leased {
    pub(super) live: LiveRow,
    /// As far as it was needed.
    pub(super) id: Option<TaskId>,
    pub(super) executor: Name,
    pub(super) taken_at: Time,
    /// Claimed as a suspect, to run alone.
    pub(super) alone: bool,
    pub(super) checkpointed: bool,
    /// How many log lines the task has, once that was needed.
    pub(super) log_lines: Option<u64>,
    /// Given up by a transaction that is not committed yet: no holder may use it, readers still see it.
    pub(super) closing: bool,
    /// Held by an agent: it has a row of its own instead of a place in the manifest, and outlives this process.
    pub(super) outlives: bool,
}

impl Leased {
    pub(super) fn lease_id(&self) -> Option<LeaseId> {
        self.live.life.lease.map(|l| l.id)
    }
}

/// Where a task counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Cell {
    Ready,
    Dependencies,
    Later,
    Retrying,
    Paused,
    Running,
    Completed,
    Failed,
    Cancelled,
    /// Attempts that have ended, not tasks.
    Executions,
}

/// How many tasks of a class count where.
pub(super) type Tally = [i64; 10];

impl Cell {
    /// Where a task counts that has not ended.
    pub(super) const UNFINISHED: [Cell; 6] = [
        Cell::Ready,
        Cell::Dependencies,
        Cell::Later,
        Cell::Retrying,
        Cell::Paused,
        Cell::Running,
    ];

    /// Where a finished task counts.
    pub(super) const fn of_end(state: State) -> Cell {
        match state {
            State::Completed => Cell::Completed,
            State::Failed => Cell::Failed,
            _ => Cell::Cancelled,
        }
    }

    /// Where a leased task counts.
    pub(super) const fn of_leased(life: &Lifecycle) -> Cell {
        if life.paused_at.is_some() {
            Cell::Paused
        } else {
            Cell::Running
        }
    }
}

/// Guarded by one lock that is only ever held for moments.
#[derive(Default)]
pub(super) struct View {
    pub(super) leases: HashMap<i64, Box<Leased>, FixedState>,
    /// Tasks that become ready by the clock: when, which row, of what class, and whether after a failure.
    pub(super) later: BTreeMap<(Time, i64), (u32, bool)>,
    pub(super) tallies: Vec<Tally>,
    pub(super) nodes: HashMap<NodeId, Held, FixedState>,
    /// How many leases tasks of each class hold.
    pub(super) held: Vec<u64>,
}

/// How many leases a node holds, and how many of them to run alone.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    pub(super) leases: usize,
    pub(super) alone: usize,
}

impl View {
    /// Adds a lease.
    pub(super) fn lease(&mut self, row: i64, leased: Box<Leased>) {
        if let Some(lease) = leased.live.life.lease {
            let held = self.nodes.entry(lease.node).or_default();
            held.leases += 1;
            held.alone += usize::from(leased.alone);
        }
        let class = leased.live.class as usize;
        if self.held.len() <= class {
            self.held.resize(class + 1, 0);
        }
        self.held[class] += 1;
        self.leases.insert(row, leased);
    }

    /// Removes a lease.
    pub(super) fn unlease(&mut self, row: i64) {
        let Some(leased) = self.leases.remove(&row) else { return };
        self.held[leased.live.class as usize] -= 1;
        let Some(lease) = leased.live.life.lease else { return };
        if let Some(held) = self.nodes.get_mut(&lease.node) {
            held.leases -= 1;
            held.alone -= usize::from(leased.alone);
            if held.leases == 0 {
                self.nodes.remove(&lease.node);
            }
        }
    }

    pub(super) fn count(&mut self, class: u32, cell: Cell, by: i64) {
        let index = class as usize;
        if self.tallies.len() <= index {
            self.tallies.resize(index + 1, Tally::default());
        }
        self.tallies[index][cell as usize] += by;
    }

    /// Counts of a namespace at `now`.
    pub(super) fn counts(&self, catalog: &Catalog, namespace: &str, now: Time) -> Counts {
        let mut tallies = self.tallies.clone();
        // What came due since the writer last looked.
        for (class, retrying) in self.later.range(..=(now, i64::MAX)).map(|(_, what)| *what) {
            let from = if retrying { Cell::Retrying } else { Cell::Later } as usize;
            // One that waits only in a transaction under way is still counted as what it was before.
            if let Some(tally) = tallies.get_mut(class as usize).filter(|tally| tally[from] > 0) {
                tally[from] -= 1;
                tally[Cell::Ready as usize] += 1;
            }
        }
        let mut counts = Counts::default();
        for (class, tally) in catalog.classes().iter().zip(&tallies) {
            if *class.namespace != *namespace {
                continue;
            }
            let of = |cell: Cell| tally[cell as usize].max(0) as u64;
            counts.executions += of(Cell::Executions);
            counts.dead_letters += of(Cell::Failed);
            let found = StatusCounts {
                pending: of(Cell::Dependencies) + of(Cell::Later),
                ready: of(Cell::Ready),
                running: of(Cell::Running),
                completed: of(Cell::Completed),
                failed: of(Cell::Failed),
                cancelled: of(Cell::Cancelled),
                paused: of(Cell::Paused),
                retrying: of(Cell::Retrying),
            };
            if found.sum() == 0 {
                continue;
            }
            let queue = counts.queues.entry(class.queue.to_string()).or_default();
            for status in pensum_core::Status::ALL {
                *queue.of_mut(status) += found.of(status);
            }
        }
        counts
    }

    /// The leases that a node holds. Who holds none costs no walk through those of the others.
    pub(super) fn leases_of(&self, node: NodeId) -> impl Iterator<Item = &Leased> {
        let all = self.nodes.contains_key(&node).then(|| self.leases.values());
        all.into_iter()
            .flatten()
            .map(AsRef::as_ref)
            .filter(move |l| l.live.life.lease.is_some_and(|held| held.node == node))
    }
}

/// A lease as a reader lays it over what the disk says.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) live: LiveRow,
    pub(super) executor: Name,
    pub(super) taken_at: Time,
}

/// When the next task becomes ready by the clock, in microseconds; `i64::MAX` for none. Who waits for a change hears of it in the order of their waiting, which a
/// `watch` channel leaves to chance.
pub(super) struct NextReady {
    at: AtomicI64,
    changed: Notify,
}

impl Default for NextReady {
    fn default() -> NextReady {
        NextReady {
            at: AtomicI64::new(i64::MAX),
            changed: Notify::new(),
        }
    }
}

impl NextReady {
    pub(super) fn set(&self, at: i64) {
        if self.at.swap(at, Ordering::AcqRel) != at {
            self.changed.notify_waiters();
        }
    }

    pub(super) fn get(&self) -> Time {
        Time::from_micros(self.at.load(Ordering::Acquire))
    }

    /// Hears of changes from now on, once it is enabled.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }
}

/// What writer and readers share.
pub(super) struct Shared {
    pub(super) view: Mutex<View>,
    pub(super) catalog: Catalog,
    pub(super) nodes: Mutex<Nodes>,
    /// When the next task becomes ready by the clock. Parked claims watch it.
    pub(super) next_ready: NextReady,
    /// True once the writer's memory stands; until then counts and overlays are incomplete.
    pub(super) loaded: watch::Sender<bool>,
    /// Why the memory could not be loaded, if so.
    pub(super) broken: Mutex<Option<StoreError>>,
    pub(super) closed: AtomicBool,
}

impl Shared {
    pub(super) fn new() -> Arc<Shared> {
        Arc::new(Shared {
            view: Mutex::default(),
            catalog: Catalog::default(),
            nodes: Mutex::default(),
            next_ready: NextReady::default(),
            loaded: watch::Sender::new(false),
            broken: Mutex::default(),
            closed: AtomicBool::new(false),
        })
    }

    /// The lease on a row, if any.
    pub(super) fn seen(&self, row: i64) -> Option<Seen> {
        let view = self.view.lock();
        view.leases.get(&row).map(|l| Seen {
            live: l.live.clone(),
            executor: l.executor.clone(),
            taken_at: l.taken_at,
        })
    }

    /// All leases. Taken before a list reads the disk: a later version there wins.
    pub(super) fn seen_all(&self) -> HashMap<i64, Seen, FixedState> {
        let view = self.view.lock();
        view.leases
            .iter()
            .map(|(r, l)| {
                (
                    *r,
                    Seen {
                        live: l.live.clone(),
                        executor: l.executor.clone(),
                        taken_at: l.taken_at,
                    },
                )
            })
            .collect()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}
