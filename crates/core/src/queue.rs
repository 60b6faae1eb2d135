//! Queues: how much of their work may run, and the pure decision whether more of it may start now.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::order::OrderRule;
use crate::store::Rejected;
use crate::time::Span;
use crate::{Name, Priority, RetryPolicy, Time};

/// Most queues with settings of their own in one store. Queues without any are as many as one likes.
pub const QUEUES_MAX: usize = 1_000;

/// The largest [`QueueSettings::max_concurrent_per_key`].
pub const PER_KEY_MAX: u32 = 10_000;

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
    /// How many tasks of one key run at once, one of this queue among them; `None` is one. See
    /// [`KeyTurns`](crate::order::KeyTurns).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent_per_key: Option<u32>,
    /// False: its tasks start only when someone asks for it, see [`QueueCommand::Process`].
    pub auto_start: bool,
    /// False: its tasks are not durable, and end with the process that accepts them.
    pub persistent: bool,
    /// How many of its tasks start within a time, on all nodes together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// How many tasks may wait in it: not ended, not running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_depth: Option<u32>,
    /// How long its oldest ready task may have waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
    /// What becomes of a task that comes while it is at `max_depth` or over `max_age`.
    #[serde(skip_serializing_if = "WhenFull::is_refuse")]
    pub when_full: WhenFull,
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
            max_concurrent_per_key: None,
            auto_start: true,
            persistent: true,
            rate: None,
            max_depth: None,
            max_age: None,
            when_full: WhenFull::Refuse,
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
            per_key: self.max_concurrent_per_key.filter(|most| *most > 1),
        }
    }
}

/// What becomes of a task that comes to a queue that is full, or behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// It is refused at submission.
    #[default]
    Refuse,
    /// It is taken, and those that have waited longest are cancelled.
    DropOldest,
}

impl WhenFull {
    /// True for [`WhenFull::Refuse`].
    pub fn is_refuse(&self) -> bool {
        *self == WhenFull::Refuse
    }
}

/// A token bucket: `starts` tokens come in `per`, at most `burst` are kept, and each start takes one for each of its units.
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
    /// How many units may start at `now`.
    pub fn tokens(self, rate: Rate, now: Time) -> u64 {
        let missing = (i128::from(self.0) - nanos(now)).max(0);
        let room = i128::from(rate.burst.max(1)) * rate.interval() - missing;
        u64::try_from(room / rate.interval()).unwrap_or(0)
    }

    /// True when it holds all that it can.
    pub fn is_full(self, now: Time) -> bool {
        i128::from(self.0) <= nanos(now)
    }

    /// The bucket after starts of so many units at `now`. More than it holds leaves it in debt, which comes in first.
    #[must_use]
    pub fn take(self, rate: Rate, units: u64, now: Time) -> Bucket {
        let full_at = i128::from(self.0).max(nanos(now)) + i128::from(units) * rate.interval();
        Bucket(i64::try_from(full_at).unwrap_or(i64::MAX))
    }

    /// When a task of so many units may start, those of more than the burst when the bucket is full; not before `now`.
    pub fn opens_at(self, rate: Rate, units: u64, now: Time) -> Time {
        self.holds_at(rate, units.min(u64::from(rate.burst.max(1))), now)
    }

    /// When so many units could have started one after the other; not before `now`.
    pub fn holds_at(self, rate: Rate, units: u64, now: Time) -> Time {
        let spare = (i128::from(rate.burst.max(1)) - i128::from(units)) * rate.interval();
        let at = (i128::from(self.0).max(nanos(now)) - spare).max(nanos(now));
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
    /// How many units they may have together; `u64::MAX` for no bound.
    pub tokens: u64,
    /// The bucket is full: the first of them may have more units than it holds.
    pub is_full: bool,
}

impl Room {
    /// No bound at all.
    pub const OPEN: Room = Room {
        starts: u64::MAX,
        newest: i64::MAX,
        tokens: u64::MAX,
        is_full: false,
    };
    /// Nothing.
    pub const NONE: Room = Room {
        starts: 0,
        newest: 0,
        tokens: 0,
        is_full: false,
    };

    /// True when the next one may start, with so many units. Where it may not, nothing behind it may: else those of few
    /// units would take each token as it comes, and one of many would wait for ever.
    pub fn admits(&self, units: u32) -> bool {
        self.starts > 0 && (self.is_full || self.tokens >= u64::from(units))
    }

    /// The next one starts.
    pub fn take(&mut self, units: u32) {
        self.starts = self.starts.saturating_sub(1);
        if self.tokens < u64::MAX {
            self.tokens = self.tokens.saturating_sub(u64::from(units));
            self.starts = self.starts.min(self.tokens);
            self.is_full = false;
        }
    }
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
            room.tokens = self.bucket.tokens(rate, now);
            room.is_full = self.bucket.is_full(now);
            room.starts = room.starts.min(room.tokens);
            if room.starts == 0 {
                let opens_at = self.opens_at(1, now);
                return Err(Closed::Rate { opens_at });
            }
        }
        Ok(room)
    }

    /// When its bucket lets a task of so many units start; not before `now`.
    pub fn opens_at(&self, units: u32, now: Time) -> Time {
        let rate = self.settings.rate;
        rate.map_or(now, |rate| self.bucket.opens_at(rate, u64::from(units), now))
    }

    /// Notes that tasks with so many units start at `now`.
    pub fn started(&mut self, units: u64, now: Time) {
        if let Some(rate) = self.settings.rate {
            self.bucket = self.bucket.take(rate, units, now);
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
        assert_eq!(bucket.opens_at(rate, 1, at(3)), at(20));
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
            now = bucket.opens_at(rate, 1, now);
        }
        assert_eq!(started, 700);
    }

    #[test]
    fn a_task_of_more_units_than_the_burst_starts_from_a_full_bucket_and_the_rate_holds_in_the_long_run() {
        let limits = QueueSettings {
            rate: Some(rate(10, 5)),
            ..QueueSettings::default()
        };
        let mut queue = queue(limits);
        let admits = |queue: &QueueRecord, units, now| queue.room(0, now).is_ok_and(|room| room.admits(units));
        let mut now = at(0);
        let mut units = 0;
        for wanted in [3, 2, 12, 1, 5, 40, 6, 1].into_iter().cycle().take(400) {
            let opens_at = queue.opens_at(wanted, now);
            if opens_at > now {
                let before = Time::from_micros(opens_at.as_micros() - 1);
                assert!(
                    !admits(&queue, wanted, before),
                    "{wanted} units start before {opens_at}"
                );
            }
            now = opens_at;
            assert!(admits(&queue, wanted, now), "{wanted} units do not start at {now}");
            queue.started(u64::from(wanted), now);
            units += i64::from(wanted);
        }
        let seconds = (now.as_micros() - at(0).as_micros()) as f64 / 1e6;
        let most = 5.0 + 40.0 + 10.0 * seconds;
        let least = 10.0 * seconds;
        assert!((least..=most).contains(&(units as f64)), "{units} units in {seconds} s");
    }

    #[test]
    fn a_room_gives_tasks_and_tokens_until_one_of_them_is_used_up() {
        let mut queue = queue(QueueSettings {
            max_concurrent: Some(3),
            rate: Some(rate(10, 5)),
            ..QueueSettings::default()
        });
        let mut room = queue.room(0, at(0)).unwrap();
        assert!(room.admits(7), "the bucket is full");
        room.take(2);
        assert!(room.admits(3) && !room.admits(4));
        room.take(3);
        assert!(!room.admits(1));
        queue.started(5, at(0));
        assert_eq!(queue.room(0, at(50)), Err(Closed::Rate { opens_at: at(100) }));
        assert_eq!(queue.opens_at(4, at(50)), at(400));
        assert_eq!(
            queue.opens_at(9, at(50)),
            at(500),
            "more than the burst: once it is full"
        );
        let mut open = Room::OPEN;
        open.take(1_000_000);
        assert!(open.admits(1_000_000));
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
