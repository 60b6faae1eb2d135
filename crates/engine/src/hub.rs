//! What happened on this node, for whoever listens: live views, hooks, and waiters for the end of a task.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use foldhash::HashMap;
use parking_lot::Mutex;
use pensum_core::outcome::{ErrorInfo, Progress};
use pensum_core::store::LogLine;
use pensum_core::{Name, State, TaskId, Time};
use serde::Serialize;
use tokio::sync::{Notify, broadcast};

/// How many events a slow subscriber may be behind before it misses some.
pub const EVENTS_BEHIND_MAX: usize = 4_096;

/// Something that happened to a task on this node. Best effort: the store's own history is the truth.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields carry the names of the task's own")]
pub enum EngineEvent {
    /// It was enqueued through this node.
    Enqueued {
        task: TaskId,
        namespace: Name,
        handler: Name,
        at: Time,
    },
    /// A run of it began here.
    Started {
        task: TaskId,
        namespace: Name,
        handler: Name,
        attempt: u32,
        at: Time,
    },
    /// It said how far it is.
    Progress {
        task: TaskId,
        namespace: Name,
        progress: Progress,
        at: Time,
    },
    /// It wrote a line.
    Log {
        task: TaskId,
        namespace: Name,
        line: LogLine,
    },
    /// A run of it ended here, and it goes on later.
    Requeued {
        task: TaskId,
        namespace: Name,
        state: State,
        error: Option<ErrorInfo>,
        at: Time,
    },
    /// It ended: here, by a command, because of a dependency, or overdue.
    Ended {
        task: TaskId,
        state: State,
        error: Option<ErrorInfo>,
        at: Time,
    },
    /// A command changed it: paused, resumed, cancel requested and so on. Read it again to see how it stands.
    Changed { task: TaskId, at: Time },
}

/// A few facts of an event, for the wire.
#[derive(Clone, Debug, Serialize)]
pub struct EventSummary {
    /// `enqueued`, `started`, `progress`, `log`, `requeued`, `ended` or `changed`.
    pub event: &'static str,
    /// The task.
    pub task: TaskId,
    /// The event's own facts.
    #[serde(flatten)]
    pub facts: serde_json::Map<String, serde_json::Value>,
}

impl EngineEvent {
    /// The task that it is about.
    pub fn task(&self) -> TaskId {
        match self {
            EngineEvent::Enqueued { task, .. }
            | EngineEvent::Started { task, .. }
            | EngineEvent::Progress { task, .. }
            | EngineEvent::Log { task, .. }
            | EngineEvent::Requeued { task, .. }
            | EngineEvent::Ended { task, .. }
            | EngineEvent::Changed { task, .. } => *task,
        }
    }

    /// The event as it goes over the wire.
    pub fn summary(&self) -> EventSummary {
        use serde_json::json;
        let (event, facts) = match self {
            EngineEvent::Enqueued {
                namespace, handler, at, ..
            } => (
                "enqueued",
                json!({ "namespace": &**namespace, "handler": &**handler, "at": at }),
            ),
            EngineEvent::Started {
                namespace,
                handler,
                attempt,
                at,
                ..
            } => (
                "started",
                json!({ "namespace": &**namespace, "handler": &**handler, "attempt": attempt, "at": at }),
            ),
            EngineEvent::Progress {
                namespace,
                progress,
                at,
                ..
            } => (
                "progress",
                json!({ "namespace": &**namespace, "progress": progress, "at": at }),
            ),
            EngineEvent::Log { namespace, line, .. } => (
                "log",
                json!({ "namespace": &**namespace, "at": line.at, "attempt": line.attempt, "stream": line.stream,
                    "message": line.message }),
            ),
            EngineEvent::Requeued {
                namespace,
                state,
                error,
                at,
                ..
            } => (
                "requeued",
                json!({ "namespace": &**namespace, "state": state, "error": error, "at": at }),
            ),
            EngineEvent::Ended { state, error, at, .. } => {
                ("ended", json!({ "state": state, "error": error, "at": at }))
            }
            EngineEvent::Changed { at, .. } => ("changed", json!({ "at": at })),
        };
        let facts = if let serde_json::Value::Object(facts) = facts {
            facts
        } else {
            serde_json::Map::new()
        };
        EventSummary {
            event,
            task: self.task(),
            facts,
        }
    }
}

/// A closure that sees every event of this node. It is called where the event happens, so it must return at once.
pub(crate) type Hook = Box<dyn Fn(&EngineEvent) + Send + Sync>;

pub(crate) struct Hub {
    sender: broadcast::Sender<EngineEvent>,
    hooks: Vec<Hook>,
    /// How many waiters there are, so that the end of a task nobody waits for takes no lock.
    waiting: AtomicUsize,
    waiters: Mutex<HashMap<TaskId, Waiters>>,
}

struct Waiters {
    count: usize,
    ended: Arc<Notify>,
}

impl Hub {
    pub(crate) fn new(hooks: Vec<Hook>) -> Hub {
        Hub {
            sender: broadcast::Sender::new(EVENTS_BEHIND_MAX),
            hooks,
            waiting: AtomicUsize::new(0),
            waiters: Mutex::new(HashMap::default()),
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<EngineEvent> {
        self.sender.subscribe()
    }

    /// Whether anybody would see an event. It takes a lock, so hot paths ask once a batch.
    pub(crate) fn is_watched(&self) -> bool {
        !self.hooks.is_empty() || self.sender.receiver_count() > 0
    }

    /// Shows an event to hooks and subscribers.
    pub(crate) fn emit(&self, event: EngineEvent) {
        for hook in &self.hooks {
            // A hook is a guest: its panic must not end a loop of the node.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| hook(&event))).is_err() {
                tracing::error!(task = %event.task(), "a hook on task events panicked");
            }
        }
        // Nobody listening is no error.
        let _ = self.sender.send(event);
    }

    /// Wakes whoever waits for the end of a task.
    pub(crate) fn ended(&self, task: TaskId) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        if let Some(waiters) = self.waiters.lock().get(&task) {
            waiters.ended.notify_waiters();
        }
    }

    /// A place among the waiters for a task, taken until it is dropped.
    pub(crate) fn wait_for(&self, task: TaskId) -> Waiter<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut waiters = self.waiters.lock();
        let entry = waiters.entry(task).or_insert_with(|| Waiters {
            count: 0,
            ended: Arc::new(Notify::new()),
        });
        entry.count += 1;
        Waiter {
            hub: self,
            task,
            ended: Arc::clone(&entry.ended),
        }
    }
}

/// See [`Hub::wait_for`].
pub(crate) struct Waiter<'a> {
    hub: &'a Hub,
    task: TaskId,
    /// Notified when the task ends.
    pub(crate) ended: Arc<Notify>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.hub.waiting.fetch_sub(1, Ordering::SeqCst);
        let mut waiters = self.hub.waiters.lock();
        if let Some(entry) = waiters.get_mut(&self.task) {
            entry.count -= 1;
            if entry.count == 0 {
                waiters.remove(&self.task);
            }
        }
    }
}
