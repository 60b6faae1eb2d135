//! What a node has done, in counters that cost a few atomic additions a task.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::HashMap;
use parking_lot::Mutex;
use pensum_core::store::Finish;
use pensum_core::{Name, Outcome, Priority, State, Time};
use serde::Serialize;

use crate::Engine;

/// Upper bounds of the duration histogram's buckets, in seconds; one more bucket holds what is longer.
pub const DURATION_BUCKETS: [f64; 8] = [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// A node's figures since it was built.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct NodeMetrics {
    /// Handlers running now.
    pub concurrent_tasks: usize,
    /// How many it can run at once.
    pub slots: usize,
    /// Tasks that completed, failed or were cancelled in a run here.
    pub tasks_finished: u64,
    /// Those that completed.
    pub tasks_completed: u64,
    /// Those that failed with nothing left to try.
    pub tasks_failed: u64,
    /// Runs whose failure was followed by another attempt.
    pub attempts_retried: u64,
    /// Runs that ended, for whatever reason.
    pub runs: u64,
    /// `tasks_finished` per minute since the node was built.
    pub tasks_per_minute: f64,
    /// Mean wall time of a run, in seconds.
    pub average_duration_seconds: f64,
    /// Leases that were lost.
    pub leases_lost: u64,
    /// Outcomes on their way to the store.
    pub outcomes_pending: usize,
    /// Seconds since the node was built.
    pub uptime_seconds: f64,
}

/// One handler's figures on this node.
#[derive(Clone, Debug, Serialize)]
pub struct HandlerMetrics {
    /// The handler.
    pub handler: Name,
    /// How many tasks ended, by priority (lowest first), and within it completed, failed, cancelled.
    pub ended: [[u64; 3]; 5],
    /// How many runs took up to each bound of [`DURATION_BUCKETS`], and longer; not cumulative.
    pub durations: [u64; 9],
    /// The sum of all runs' wall times, in seconds.
    pub duration_sum_seconds: f64,
    /// Runs whose failure was followed by another attempt.
    pub retried: u64,
    /// The sum of the processor time of all runs that measured it, in seconds.
    pub cpu_sum_seconds: f64,
    /// The most memory that one run used, of those that measured it, in MB.
    pub memory_mb_max: f64,
    /// The sum of what all runs that measured it read from storage, in MB.
    pub read_mb_sum: f64,
    /// The sum of what they wrote to it, in MB.
    pub written_mb_sum: f64,
}

#[derive(Default)]
struct HandlerCounters {
    ended: [[AtomicU64; 3]; 5],
    durations: [AtomicU64; 9],
    duration_micros: AtomicU64,
    cpu_micros: AtomicU64,
    memory_bytes_max: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    retried: AtomicU64,
}

/// Most handlers of agents alone that are counted by name; what comes beyond is counted as [`OTHERS`].
const HANDLERS_MAX: usize = 1_000;
/// What the handlers beyond [`HANDLERS_MAX`] are counted as.
const OTHERS: &str = "others";

pub(crate) struct Metrics {
    /// Those of this node.
    handlers: HashMap<Name, HandlerCounters>,
    /// Those that agents ran.
    agents: Mutex<HashMap<Name, Arc<HandlerCounters>>>,
    lost: AtomicU64,
    started_at: Time,
}

impl Metrics {
    pub(crate) fn new(handlers: impl Iterator<Item = Name>, started_at: Time) -> Metrics {
        let handlers = handlers.map(|name| (name, HandlerCounters::default())).collect();
        Metrics {
            handlers,
            agents: Mutex::default(),
            lost: AtomicU64::new(0),
            started_at,
        }
    }

    /// Counts a run whose outcome was acknowledged.
    pub(crate) fn finished(&self, handler: &Name, priority: Priority, finish: &Finish, state: Option<State>) {
        let others;
        let counters = match self.handlers.get(handler) {
            Some(counters) => counters,
            None => {
                others = self.of_agents(handler);
                &*others
            }
        };
        let seconds = finish.usage.wall_seconds;
        let bucket = DURATION_BUCKETS
            .iter()
            .position(|bound| seconds <= *bound)
            .unwrap_or(DURATION_BUCKETS.len());
        add(&counters.durations[bucket], 1);
        add(&counters.duration_micros, (seconds * 1e6) as u64);
        if let Some(cpu_seconds) = finish.usage.cpu_seconds {
            add(&counters.cpu_micros, (cpu_seconds * 1e6) as u64);
        }
        if let Some(memory_mb) = finish.usage.memory_mb {
            let bytes = (memory_mb * 1e6) as u64;
            counters.memory_bytes_max.fetch_max(bytes, Ordering::Relaxed);
        }
        let moved = [
            (finish.usage.read_mb, &counters.read_bytes),
            (finish.usage.written_mb, &counters.written_bytes),
        ];
        for (megabytes, counter) in moved {
            add(counter, (megabytes.unwrap_or_default() * 1e6) as u64);
        }
        let end = match state {
            Some(State::Completed) => Some(0),
            Some(State::Failed) => Some(1),
            Some(State::Cancelled) => Some(2),
            _ => None,
        };
        if let Some(end) = end {
            let priority = Priority::ALL.iter().position(|p| *p == priority).unwrap_or(1);
            add(&counters.ended[priority][end], 1);
        } else if matches!(finish.outcome, Outcome::Retry { .. }) {
            add(&counters.retried, 1);
        }
    }

    /// The counters of a handler that this node does not have.
    fn of_agents(&self, handler: &Name) -> Arc<HandlerCounters> {
        let mut all = self.agents.lock();
        let is_room = all.len() < HANDLERS_MAX || all.contains_key(handler);
        let name = if is_room { handler.clone() } else { Name::from(OTHERS) };
        Arc::clone(all.entry(name).or_default())
    }

    pub(crate) fn lease_lost(&self) {
        add(&self.lost, 1);
    }

    pub(crate) fn by_handler(&self) -> Vec<HandlerMetrics> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let agents = self.agents.lock();
        let here = self.handlers.iter();
        let mut all: Vec<_> = here
            .chain(agents.iter().map(|(name, counters)| (name, &**counters)))
            .map(|(name, c)| HandlerMetrics {
                handler: name.clone(),
                ended: std::array::from_fn(|p| std::array::from_fn(|e| read(&c.ended[p][e]))),
                durations: std::array::from_fn(|b| read(&c.durations[b])),
                duration_sum_seconds: read(&c.duration_micros) as f64 / 1e6,
                retried: read(&c.retried),
                cpu_sum_seconds: read(&c.cpu_micros) as f64 / 1e6,
                memory_mb_max: read(&c.memory_bytes_max) as f64 / 1e6,
                read_mb_sum: read(&c.read_bytes) as f64 / 1e6,
                written_mb_sum: read(&c.written_bytes) as f64 / 1e6,
            })
            .collect();
        all.sort_by(|a, b| a.handler.cmp(&b.handler));
        all
    }

    pub(crate) fn snapshot(&self, engine: &Engine) -> NodeMetrics {
        let all = self.by_handler();
        let ended = |which: usize| -> u64 { all.iter().flat_map(|h| h.ended.iter()).map(|by| by[which]).sum() };
        let (completed, failed, cancelled) = (ended(0), ended(1), ended(2));
        let finished = completed + failed + cancelled;
        let runs: u64 = all.iter().flat_map(|h| h.durations).sum();
        let seconds: f64 = all.iter().map(|h| h.duration_sum_seconds).sum();
        let uptime = engine.now().since(self.started_at).as_secs_f64();
        NodeMetrics {
            concurrent_tasks: engine.running(),
            slots: engine.node().slots,
            tasks_finished: finished,
            tasks_completed: completed,
            tasks_failed: failed,
            attempts_retried: all.iter().map(|h| h.retried).sum(),
            runs,
            tasks_per_minute: if uptime > 0.0 {
                finished as f64 * 60.0 / uptime
            } else {
                0.0
            },
            average_duration_seconds: if runs > 0 { seconds / runs as f64 } else { 0.0 },
            leases_lost: self.lost.load(Ordering::Relaxed),
            outcomes_pending: engine.live().unacknowledged(),
            uptime_seconds: uptime,
        }
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
