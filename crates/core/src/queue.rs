//! Queues: how much of their work may run, and the pure decision whether more of it may start now.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::order::OrderRule;
use crate::store::Rejected;
use crate::time::Span;
use crate::{Name, Priority, RetryPolicy, Time};

/// Most queues with settings of their own in one store. Queues without any are as many as one likes.
pub const QUEUES_MAX: usize = 1_000;

/// What a queue allows, and what its tasks get that do not say otherwise. A queue that nobody put has
/// [`QueueSettings::default`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueSettings {
    /// A name for people; its id where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// How many of its tasks run at once, on all nodes together; `None` is as many as there are slots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<u32>,
    /// False: its tasks start only when someone asks for it, see [`QueueCommand::Process`].
    pub auto_start: bool,
    /// False: its tasks are not durable, and end with the process that accepts them.
    pub persistent: bool,
    /// How many of its tasks start within a time, on all nodes together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// The priority of tasks that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// The timeout of tasks that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// The retries of tasks that name no number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
    /// The delays between attempts of tasks that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryPolicy>,
    /// How long a task waits, ready, until it stands one priority level higher in the claim order; `None` for never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ageing: Option<Span>,
    /// Keys take turns: among tasks of one level, a key that was served goes behind what is ready.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fair: bool,
}

impl Default for QueueSettings {
    fn default() -> QueueSettings {
        QueueSettings {
            title: None,
            max_concurrent: None,
            auto_start: true,
            persistent: true,
            rate: None,
            priority: None,
            timeout: None,
            max_retries: None,
            retry: None,
            ageing: None,
            fair: false,
        }
    }
}

impl QueueSettings {
    /// How its tasks stand in the claim order.
    pub fn order(&self) -> OrderRule {
        OrderRule {
            ageing: self.ageing.map(|ageing| ageing.0),
            fair: self.fair,
        }
    }
}

/// A token bucket: `starts` tokens come in `per`, at most `burst` are kept, and each start takes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// How many starts.
    pub starts: u32,
    /// In which time.
    pub per: Span,
    /// How many may start at once after a quiet time.
    pub burst: u32,
}

impl Rate {
    /// The time between two starts at the full rate, in nanoseconds.
    fn interval(self) -> i128 {
        (self.per.0.as_nanos() as i128 / i128::from(self.starts.max(1))).max(1)
    }
}

/// How full a queue's bucket is, as the generic cell rate algorithm keeps it (ITU-T I.371, annex A): the time at which the
/// bucket would be full again. One integer, and the same in every store, where a count of tokens would be a fraction that
/// depends on how often somebody looked.
///
/// Nanoseconds since the Unix epoch; 0 is a full bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket(pub i64);

impl Bucket {
    /// How many may start at `now`.
    pub fn tokens(self, rate: Rate, now: Time) -> u64 {
        let missing = (i128::from(self.0) - nanos(now)).max(0);
        let room = i128::from(rate.burst.max(1)) * rate.interval() - missing;
        u64::try_from(room / rate.interval()).unwrap_or(0)
    }

    /// The bucket after `starts` starts at `now`.
    #[must_use]
    pub fn take(self, rate: Rate, starts: u64, now: Time) -> Bucket {
        let full_at = i128::from(self.0).max(nanos(now)) + i128::from(starts) * rate.interval();
        Bucket(i64::try_from(full_at).unwrap_or(i64::MAX))
    }

    /// When the next one may start; not before `now`.
    pub fn opens_at(self, rate: Rate, now: Time) -> Time {
        let spare = (i128::from(rate.burst.max(1)) - 1) * rate.interval();
        let at = (i128::from(self.0) - spare).max(nanos(now));
        // Rounded up: a moment early there would be nothing yet.
        Time::from_micros(i64::try_from((at + 999) / 1_000).unwrap_or(i64::MAX)).max(now)
    }
}

fn nanos(time: Time) -> i128 {
    i128::from(time.as_micros()) * 1_000
}

/// A queue as the store keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueRecord {
    /// Its id, which tasks name.
    pub name: Name,
    /// What it allows.
    pub settings: QueueSettings,
    /// Nothing of it starts, since then.
    pub paused_at: Option<Time>,
    /// Without `auto_start`: the newest task, by its row, that may start.
    pub process_to: Option<i64>,
    /// How full its bucket is, where it has a rate.
    pub bucket: Bucket,
    /// How many leases its tasks hold now.
    pub running: u64,
    /// Who gave it its settings; `None` for one that was only commanded.
    pub put_by: Option<Name>,
    /// When it was made.
    pub created_at: Time,
    /// When it was changed last.
    pub changed_at: Time,
    /// Grows with each change of the settings and each command.
    pub version: u64,
}

/// How much of a queue may start now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// How many tasks at most; `u64::MAX` for no bound.
    pub starts: u64,
    /// Only tasks of this row or an older one.
    pub newest: i64,
}

impl Room {
    /// No bound at all.
    pub const OPEN: Room = Room {
        starts: u64::MAX,
        newest: i64::MAX,
    };
}

/// Why nothing of a queue may start now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Somebody paused it.
    Paused {
        /// Since then.
        since: Time,
    },
    /// It is not started by itself, and nobody asked for it yet.
    Manual,
    /// As many run as may.
    Full {
        /// How many run.
        running: u64,
        /// How many may.
        max: u32,
    },
    /// Its bucket is empty.
    Rate {
        /// When the next one may start.
        opens_at: Time,
    },
}

impl QueueRecord {
    /// A queue that was just made.
    pub fn new(name: Name, now: Time) -> QueueRecord {
        QueueRecord {
            name,
            settings: QueueSettings::default(),
            paused_at: None,
            process_to: None,
            bucket: Bucket::default(),
            running: 0,
            put_by: None,
            created_at: now,
            changed_at: now,
            version: 0,
        }
    }

    /// True when a claim need not look at this queue: it allows everything at any time.
    pub const fn is_open(&self) -> bool {
        let QueueSettings {
            max_concurrent,
            auto_start,
            rate,
            ..
        } = &self.settings;
        self.paused_at.is_none() && max_concurrent.is_none() && *auto_start && rate.is_none()
    }

    /// How much of it may start at `now` while `running` of its tasks hold a lease.
    ///
    /// # Errors
    /// Why nothing may.
    pub fn room(&self, running: u64, now: Time) -> Result<Room, Closed> {
        if let Some(since) = self.paused_at {
            return Err(Closed::Paused { since });
        }
        let mut room = Room::OPEN;
        if !self.settings.auto_start {
            room.newest = self.process_to.ok_or(Closed::Manual)?;
        }
        if let Some(max) = self.settings.max_concurrent {
            room.starts = u64::from(max).saturating_sub(running);
            if room.starts == 0 {
                return Err(Closed::Full { running, max });
            }
        }
        if let Some(rate) = self.settings.rate {
            room.starts = room.starts.min(self.bucket.tokens(rate, now));
            if room.starts == 0 {
                let opens_at = self.bucket.opens_at(rate, now);
                return Err(Closed::Rate { opens_at });
            }
        }
        Ok(room)
    }

    /// Notes that `starts` of its tasks start at `now`.
    pub fn started(&mut self, starts: u64, now: Time) {
        if let Some(rate) = self.settings.rate {
            self.bucket = self.bucket.take(rate, starts, now);
        }
    }

    /// Gives it other settings; with `expected` only when it is at that version. False when it has just these.
    ///
    /// # Errors
    /// [`Rejected::QueueVersionMismatch`].
    pub fn put(
        &mut self,
        settings: QueueSettings,
        expected: Option<u64>,
        by: &Name,
        now: Time,
    ) -> Result<bool, Rejected> {
        if let Some(expected) = expected.filter(|expected| *expected != self.version) {
            return Err(Rejected::QueueVersionMismatch {
                queue: self.name.clone(),
                expected,
                found: self.version,
            });
        }
        if self.put_by.is_some() && self.settings == settings {
            return Ok(false);
        }
        if self.settings.rate != settings.rate {
            self.bucket = Bucket::default();
        }
        if settings.auto_start {
            self.process_to = None;
        }
        self.settings = settings;
        self.put_by = Some(by.clone());
        self.changed_at = now;
        self.version += 1;
        Ok(true)
    }

    /// Carries out a command; `newest` is the row of the newest task. False when the queue is as asked already.
    ///
    /// # Errors
    /// [`Rejected::QueueForbids`], with what to do.
    pub fn command(&mut self, command: QueueCommand, newest: i64, now: Time) -> Result<bool, Rejected> {
        match command {
            QueueCommand::Pause if self.paused_at.is_some() => return Ok(false),
            QueueCommand::Pause => self.paused_at = Some(now),
            QueueCommand::Resume if self.paused_at.is_none() => return Ok(false),
            QueueCommand::Resume => self.paused_at = None,
            QueueCommand::Process if self.paused_at.is_some() => {
                return Err(Rejected::QueueForbids {
                    queue: self.name.clone(),
                    why: "it is paused; resume it first",
                });
            }
            QueueCommand::Process if self.settings.auto_start => return Ok(false),
            QueueCommand::Process if self.process_to >= Some(newest) => return Ok(false),
            QueueCommand::Process => self.process_to = Some(newest),
        }
        self.changed_at = now;
        self.version += 1;
        Ok(true)
    }
}

/// What a person asks of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueCommand {
    /// Start nothing of it; what runs goes on.
    Pause,
    /// Start its tasks again.
    Resume,
    /// Let everything start that has been enqueued until now, retries of it included. A queue with `auto_start` needs no
    /// asking.
    Process,
}

/// The shortest ageing: the store looks for who has waited for so long about once a second.
pub const AGEING_MIN: Duration = Duration::from_secs(1);

/// The longest time between two starts of a queue with a rate.
pub const RATE_INTERVAL_MAX: Duration = Duration::from_secs(366 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: i64) -> Time {
        Time::from_micros(1_700_000_000_000_000 + millis * 1_000)
    }

    fn queue(settings: QueueSettings) -> QueueRecord {
        let mut queue = QueueRecord::new("q".into(), at(0));
        assert_eq!(queue.put(settings, None, &"me".into(), at(0)), Ok(true));
        queue
    }

    fn rate(starts: u32, burst: u32) -> Rate {
        Rate {
            starts,
            per: Span(Duration::from_secs(1)),
            burst,
        }
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let rate = rate(50, 10);
        let mut bucket = Bucket::default();
        assert_eq!(bucket.tokens(rate, at(0)), 10);
        bucket = bucket.take(rate, 10, at(0));
        assert_eq!(bucket.tokens(rate, at(19)), 0);
        assert_eq!(bucket.opens_at(rate, at(3)), at(20));
        let mut started = 0;
        for millis in 0..=60_000 {
            let tokens = bucket.tokens(rate, at(millis));
            bucket = bucket.take(rate, tokens, at(millis));
            started += tokens;
        }
        assert_eq!(started, 3_000);
        assert_eq!(bucket.tokens(rate, at(1_000_000)), 10);
    }

    #[test]
    fn a_rate_that_is_no_whole_number_of_nanoseconds_is_not_exceeded_by_more_than_a_millionth() {
        let rate = rate(7, 1);
        let mut bucket = Bucket::default();
        let (mut now, mut started) = (at(0), 0u64);
        while now < at(100_000) {
            assert_eq!(bucket.tokens(rate, now), 1);
            bucket = bucket.take(rate, 1, now);
            started += 1;
            now = bucket.opens_at(rate, now);
        }
        assert_eq!(started, 700);
    }

    #[test]
    fn the_narrowest_limit_decides() {
        let mut queue = queue(QueueSettings {
            max_concurrent: Some(3),
            rate: Some(rate(2, 2)),
            ..QueueSettings::default()
        });
        assert_eq!(queue.room(0, at(0)).map(|r| r.starts), Ok(2));
        assert_eq!(queue.room(2, at(0)).map(|r| r.starts), Ok(1));
        assert_eq!(queue.room(3, at(0)), Err(Closed::Full { running: 3, max: 3 }));
        queue.started(2, at(0));
        assert_eq!(queue.room(2, at(0)), Err(Closed::Rate { opens_at: at(500) }));
        assert_eq!(queue.room(2, at(500)).map(|r| r.starts), Ok(1));
    }

    #[test]
    fn a_paused_queue_is_closed_and_a_manual_one_opens_as_far_as_it_was_asked_to() {
        let mut queue = queue(QueueSettings {
            auto_start: false,
            ..QueueSettings::default()
        });
        assert_eq!(queue.room(0, at(0)), Err(Closed::Manual));
        assert_eq!(queue.command(QueueCommand::Process, 17, at(1)), Ok(true));
        assert_eq!(queue.room(0, at(1)).map(|r| r.newest), Ok(17));
        assert_eq!(queue.command(QueueCommand::Process, 17, at(1)), Ok(false));
        assert_eq!(queue.command(QueueCommand::Pause, 20, at(2)), Ok(true));
        assert_eq!(queue.command(QueueCommand::Pause, 20, at(3)), Ok(false));
        assert!(queue.command(QueueCommand::Process, 20, at(3)).is_err());
        assert_eq!(queue.room(0, at(3)), Err(Closed::Paused { since: at(2) }));
        assert_eq!(queue.command(QueueCommand::Resume, 20, at(4)), Ok(true));
        assert_eq!(queue.room(0, at(4)).map(|r| r.newest), Ok(17));
        assert_eq!(queue.version, 4);
    }
}
