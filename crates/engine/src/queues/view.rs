//! Queues as users read them.

use pensum_core::Time;
use pensum_core::input::QueueInput;
use pensum_core::query::StatusCounts;
use pensum_core::queue::{Closed, QueueRecord, QueueSettings};
use serde::Serialize;

/// A queue as it is shown.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct QueueView {
    /// Its id, which tasks name as `queue`.
    pub id: String,
    /// A name for people; the id where there is none.
    pub name: String,
    /// Whether its tasks start.
    pub status: QueueStatus,
    /// Why they do not, and what to do; null for an open queue.
    pub closed: Option<String>,
    /// When it opens by itself, where that is known.
    #[schema(value_type = Option<String>)]
    pub opens_at: Option<Time>,
    /// Paused since then.
    #[schema(value_type = Option<String>)]
    pub paused_at: Option<Time>,
    /// How many of its tasks hold a lease; of a queue without settings, how many have the status `running`.
    pub running: u64,
    /// How many of its tasks have each status.
    pub tasks: StatusCounts,
    /// Its settings, as `PUT` takes them.
    pub settings: QueueInput,
    /// Who gave it its settings: null for a queue that nobody put.
    pub put_by: Option<String>,
    /// When somebody put or commanded it first.
    #[schema(value_type = Option<String>)]
    pub created_at: Option<Time>,
    /// When somebody put or commanded it last.
    #[schema(value_type = Option<String>)]
    pub changed_at: Option<Time>,
    /// Grows with each change; 0 for a queue that nobody put or commanded.
    pub version: u64,
}

/// Whether the tasks of a queue start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum QueueStatus {
    /// They do.
    Open,
    /// Somebody paused it.
    Paused,
    /// It starts nothing by itself: what was enqueued before the last `process` starts, and nothing else.
    Manual,
    /// As many run as may.
    Full,
    /// As many started as may for now.
    RateLimited,
}

impl QueueView {
    pub(super) fn of(record: QueueRecord, tasks: StatusCounts, now: Time) -> QueueView {
        let room = record.room(record.running, now);
        let (status, opens_at) = match room {
            Ok(_) if record.settings.auto_start => (QueueStatus::Open, None),
            Ok(_) | Err(Closed::Manual) => (QueueStatus::Manual, None),
            Err(Closed::Paused { .. }) => (QueueStatus::Paused, None),
            Err(Closed::Full { .. }) => (QueueStatus::Full, None),
            Err(Closed::Rate { opens_at }) => (QueueStatus::RateLimited, Some(opens_at)),
        };
        let closed = match room {
            Ok(_) if record.settings.auto_start => None,
            Ok(_) => Some(manual(
                &record.name,
                "what was enqueued since somebody last asked for it waits",
            )),
            Err(closed) => Some(closed_in_words(&record.name, closed)),
        };
        let id = record.name.to_string();
        QueueView {
            name: record.settings.title.clone().unwrap_or_else(|| id.clone()),
            id,
            status,
            closed,
            opens_at,
            paused_at: record.paused_at,
            running: record.running,
            tasks,
            settings: record.settings.into(),
            put_by: record.put_by.map(|actor| actor.to_string()),
            created_at: Some(record.created_at),
            changed_at: Some(record.changed_at),
            version: record.version,
        }
    }

    /// A queue that exists only as far as tasks name it.
    pub(super) fn unput(id: String, tasks: StatusCounts) -> QueueView {
        QueueView {
            name: id.clone(),
            id,
            status: QueueStatus::Open,
            closed: None,
            opens_at: None,
            paused_at: None,
            running: tasks.running,
            tasks,
            settings: QueueSettings::default().into(),
            put_by: None,
            created_at: None,
            changed_at: None,
            version: 0,
        }
    }
}

/// Why nothing of a queue starts now, and what would open it.
pub(super) fn closed_in_words(queue: &str, closed: Closed) -> String {
    match closed {
        Closed::Paused { since } => {
            format!("the queue `{queue}` is paused since {since}; run `pensum queue resume {queue}`")
        }
        Closed::Manual => manual(queue, "its tasks wait"),
        Closed::Full { running, max } => {
            format!(
                "the queue `{queue}` is full: {running} of {max} tasks run; the next one starts when one of them ends"
            )
        }
        Closed::Rate { opens_at } => {
            format!(
                "the queue `{queue}` has started as many tasks as it may for now; it starts the next one at {opens_at}"
            )
        }
    }
}

pub(super) fn manual(queue: &str, what: &str) -> String {
    format!("the queue `{queue}` starts nothing by itself; {what}; run `pensum queue process {queue}`")
}
