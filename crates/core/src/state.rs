//! States, priorities, and the eight statuses that users see.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{Lifecycle, Time};

/// What is stored. The eight statuses of [`Status`] are derived from it, other columns and the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// May be claimed once it is due and nothing gates it.
    Queued,
    /// Held by a lease.
    Running,
    /// Given up its lease until a wait ends.
    Waiting,
    /// Ended well.
    Completed,
    /// Ended badly, with nothing left to try.
    Failed,
    /// Ended on request, or because a dependency did.
    Cancelled,
}

impl State {
    /// Every state, in the order of the life cycle.
    pub const ALL: [State; 6] = [
        State::Queued,
        State::Running,
        State::Waiting,
        State::Completed,
        State::Failed,
        State::Cancelled,
    ];

    /// True for the three states that a task ends in.
    pub const fn is_terminal(self) -> bool {
        matches!(self, State::Completed | State::Failed | State::Cancelled)
    }

    /// The name in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Running => "running",
            State::Waiting => "waiting",
            State::Completed => "completed",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
        }
    }

    /// A small number for storage; never renumbered.
    pub const fn code(self) -> i64 {
        match self {
            State::Queued => 0,
            State::Running => 1,
            State::Waiting => 2,
            State::Completed => 3,
            State::Failed => 4,
            State::Cancelled => 5,
        }
    }

    /// From storage.
    pub const fn from_code(code: i64) -> Option<State> {
        Some(match code {
            0 => State::Queued,
            1 => State::Running,
            2 => State::Waiting,
            3 => State::Completed,
            4 => State::Failed,
            5 => State::Cancelled,
            _ => return None,
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a task that is not running waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitingFor {
    /// Tasks that must end first (state queued).
    Dependencies,
    /// Its own children (state waiting).
    Children,
    /// A named signal (state waiting).
    Signal,
    /// A time that a handler asked for (state waiting).
    Time,
    /// The turn of its key (state queued; derived, never stored).
    Key,
}

impl WaitingFor {
    /// The name in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            WaitingFor::Dependencies => "dependencies",
            WaitingFor::Children => "children",
            WaitingFor::Signal => "signal",
            WaitingFor::Time => "time",
            WaitingFor::Key => "key",
        }
    }

    /// A small number for storage; never renumbered.
    pub const fn code(self) -> i64 {
        match self {
            WaitingFor::Dependencies => 1,
            WaitingFor::Children => 2,
            WaitingFor::Signal => 3,
            WaitingFor::Time => 4,
            WaitingFor::Key => 5,
        }
    }

    /// From storage.
    pub const fn from_code(code: i64) -> Option<WaitingFor> {
        Some(match code {
            1 => WaitingFor::Dependencies,
            2 => WaitingFor::Children,
            3 => WaitingFor::Signal,
            4 => WaitingFor::Time,
            5 => WaitingFor::Key,
            _ => return None,
        })
    }
}

/// The eight statuses that users see: a pure function of the stored columns and the clock, so that no background job
/// has to flip one into another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Queued for later, or waiting for dependencies.
    Pending,
    /// Queued and due.
    Ready,
    /// Held by a lease, or waiting for children, a signal or a time.
    Running,
    /// Ended well.
    Completed,
    /// Ended badly.
    Failed,
    /// Ended on request.
    Cancelled,
    /// Held back on request.
    Paused,
    /// Queued for later after a failure.
    Retrying,
}

impl Status {
    /// Every status, in the order in which people read them.
    pub const ALL: [Status; 8] = [
        Status::Pending,
        Status::Ready,
        Status::Running,
        Status::Retrying,
        Status::Paused,
        Status::Completed,
        Status::Failed,
        Status::Cancelled,
    ];

    /// The status of a task in `lifecycle` at `now`.
    pub fn of(lifecycle: &Lifecycle, now: Time) -> Status {
        match lifecycle.state {
            State::Completed => Status::Completed,
            State::Failed => Status::Failed,
            State::Cancelled => Status::Cancelled,
            _ if lifecycle.paused_at.is_some() => Status::Paused,
            State::Running | State::Waiting => Status::Running,
            State::Queued if lifecycle.waiting_for == Some(WaitingFor::Dependencies) => Status::Pending,
            State::Queued if lifecycle.run_at <= now => Status::Ready,
            State::Queued if lifecycle.failures > 0 && lifecycle.backing_off => Status::Retrying,
            State::Queued => Status::Pending,
        }
    }

    /// The name in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Ready => "ready",
            Status::Running => "running",
            Status::Completed => "completed",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
            Status::Paused => "paused",
            Status::Retrying => "retrying",
        }
    }

    /// True for completed, failed and cancelled.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Status::Completed | Status::Failed | Status::Cancelled)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = String;

    fn from_str(text: &str) -> Result<Status, String> {
        Status::ALL
            .into_iter()
            .find(|s| s.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| {
                let all: Vec<_> = Status::ALL.iter().map(|s| s.as_str()).collect();
                format!(
                    "`{}` is not a status; the statuses are {}",
                    crate::id::clip(text),
                    all.join(", ")
                )
            })
    }
}

/// How much a task matters; higher runs first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// 1: background work.
    Low = 1,
    /// 2: the default.
    #[default]
    Normal = 2,
    /// 3.
    High = 3,
    /// 4.
    Urgent = 4,
    /// 5: before everything else.
    Critical = 5,
}

impl Priority {
    /// Every priority, lowest first.
    pub const ALL: [Priority; 5] = [
        Priority::Low,
        Priority::Normal,
        Priority::High,
        Priority::Urgent,
        Priority::Critical,
    ];

    /// The name in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Priority::Low => "low",
            Priority::Normal => "normal",
            Priority::High => "high",
            Priority::Urgent => "urgent",
            Priority::Critical => "critical",
        }
    }

    /// The level, 1 to 5; also the number in storage.
    pub const fn level(self) -> i64 {
        self as i64
    }

    /// From a level of 1 to 5.
    pub const fn from_level(level: i64) -> Option<Priority> {
        Some(match level {
            1 => Priority::Low,
            2 => Priority::Normal,
            3 => Priority::High,
            4 => Priority::Urgent,
            5 => Priority::Critical,
            _ => return None,
        })
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Priority {
    type Err = String;

    fn from_str(text: &str) -> Result<Priority, String> {
        let lower = text.to_ascii_lowercase();
        let named = Priority::ALL.into_iter().find(|p| p.as_str() == lower);
        named
            .or_else(|| (lower == "medium").then_some(Priority::Normal))
            .or_else(|| lower.parse().ok().and_then(Priority::from_level))
            .ok_or_else(|| {
                let text = crate::id::clip(text);
                format!("`{text}` is not a priority; write low, normal, high, urgent, critical, or 1 to 5")
            })
    }
}

impl<'de> Deserialize<'de> for Priority {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Priority, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Priority;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a priority: low, normal, high, urgent, critical, or 1 to 5")
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Priority, E> {
                Priority::from_level(v)
                    .ok_or_else(|| E::custom(format!("{v} is not a priority; the levels are 1 to 5")))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Priority, E> {
                self.visit_i64(i64::try_from(v).unwrap_or(i64::MAX))
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Priority, E> {
                v.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
