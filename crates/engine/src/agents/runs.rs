//! What agents were given by this process, so that their results need no look at the store. What is missing here is read.

use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
use parking_lot::Mutex;
use pensum_core::{LeaseId, Name, NodeId, Priority, TaskId, TaskRecord, Time};

/// How many runs are remembered; beyond, all are forgotten at once, and read again where they are asked for.
const RUNS_MAX: usize = 65_536;

/// A run of a task, as far as its end needs it.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) namespace: Name,
    pub(super) task: TaskId,
    pub(super) handler: Name,
    pub(super) priority: Priority,
    pub(super) timeout: Option<Duration>,
    pub(super) attempt: u32,
    pub(super) started_at: Option<Time>,
    /// Who holds it, if somebody does.
    pub(super) lease: Option<(LeaseId, NodeId)>,
}

impl Run {
    pub(super) fn of(namespace: &Name, record: &TaskRecord) -> Run {
        Run {
            namespace: namespace.clone(),
            task: record.id,
            handler: record.spec.handler.clone(),
            priority: record.spec.priority,
            timeout: record.spec.timeout(),
            attempt: record.lifecycle.attempt,
            started_at: record.lifecycle.started_at,
            lease: record.lifecycle.lease.map(|lease| (lease.id, lease.node)),
        }
    }
}

/// Runs by lease.
#[derive(Default)]
pub(super) struct Runs(Mutex<HashMap<LeaseId, Arc<Run>>>);

impl Runs {
    /// Remembers what is given.
    pub(super) fn note(&self, run: Run) {
        let Some((lease, _)) = run.lease else { return };
        let mut all = self.0.lock();
        if all.len() >= RUNS_MAX {
            all.clear();
        }
        all.insert(lease, Arc::new(run));
    }

    /// The run of a lease, if this process gave it for this task.
    pub(super) fn get(&self, lease: LeaseId, namespace: &str, task: TaskId) -> Option<Arc<Run>> {
        let run = self.0.lock().get(&lease).cloned()?;
        (run.task == task && *run.namespace == *namespace).then_some(run)
    }

    /// Forgets a run that has ended, here or elsewhere.
    pub(super) fn forget(&self, lease: LeaseId) {
        self.0.lock().remove(&lease);
    }
}
