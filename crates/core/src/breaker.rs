//! Circuit breakers: what fails again and again is left alone for a while, on all nodes together.
//!
//! A breaker covers handlers, agents, or both. Closed, it counts the ends of their runs within a window; past its threshold
//! it opens, and nothing that it covers starts. After a time it is half-open: a few runs are let through to find out, and
//! by their ends it closes or opens again. (Michael Nygard, *Release It!*, 2nd edition, chapter 5.) Tasks wait meanwhile, and
//! none fails because of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::store::Rejected;
use crate::time::Span;
use crate::{Name, Time};

/// Most breakers of one store.
pub const BREAKERS_MAX: usize = 1_000;
/// In how many slices a window is counted: what is older than the window is forgotten a slice at a time.
const SLICES: i64 = 10;

/// What a breaker covers, and when it opens and closes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BreakerSettings {
    /// Handlers of which tasks wait while it is open.
    pub handlers: Vec<Name>,
    /// Agents that get nothing while it is open.
    pub agents: Vec<Name>,
    /// So many failures within the window open it.
    pub failures: Option<u32>,
    /// So many failures of a thousand ends within the window open it, once there were `calls_min`.
    pub failure_permille: Option<u32>,
    /// How many ends there must be before their rate counts.
    pub calls_min: u32,
    /// How far back ends count.
    pub window: Span,
    /// How long it is open before it lets somebody try.
    pub open_for: Span,
    /// How many may try at once, and how many must succeed.
    pub probes: u32,
}

impl Default for BreakerSettings {
    /// Five failures within a minute open it for half a minute; one probe closes it.
    fn default() -> BreakerSettings {
        BreakerSettings {
            handlers: Vec::new(),
            agents: Vec::new(),
            failures: Some(5),
            failure_permille: None,
            calls_min: 10,
            window: Span(Duration::from_secs(60)),
            open_for: Span(Duration::from_secs(30)),
            probes: 1,
        }
    }
}

impl BreakerSettings {
    /// True when ends of this handler's runs by this executor count.
    pub fn covers(&self, handler: &str, executor: &str) -> bool {
        self.handlers.iter().any(|covered| **covered == *handler) || self.covers_agent(executor)
    }

    /// True for an agent that gets nothing while it is open.
    pub fn covers_agent(&self, executor: &str) -> bool {
        self.agents.iter().any(|covered| **covered == *executor)
    }
}

/// How a breaker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Everything starts.
    Closed,
    /// Nothing starts.
    Open,
    /// A few start, to find out.
    HalfOpen,
}

/// What a breaker has seen, as stores keep it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BreakerMemory {
    /// Open since then; `None` while it is closed. Whether it is half-open follows from the clock.
    pub opened_at: Option<Time>,
    /// Probes that succeeded since it is half-open.
    pub succeeded: u32,
    /// Slices of the window, oldest first: its number, how many ended well in it, and how many failed.
    pub slices: Vec<(i64, u32, u32)>,
}

/// A breaker as the store keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerRecord {
    /// Its name.
    pub name: Name,
    /// What it covers, and when it opens and closes.
    pub settings: BreakerSettings,
    /// What it has seen.
    pub memory: BreakerMemory,
    /// How many probes run now.
    pub probing: u64,
    /// Who gave it its settings.
    pub put_by: Name,
    /// When it was made.
    pub created_at: Time,
    /// When it was changed last, or opened or closed.
    pub changed_at: Time,
    /// Grows with each change of the settings, and whenever it opens or closes.
    pub version: u64,
}

/// What a person asks of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerCommand {
    /// Close it, and forget what it has seen.
    Reset,
    /// Open it now.
    Trip,
}

/// Why nothing that a breaker covers starts now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tripped {
    /// It is open.
    Open {
        /// Since then.
        since: Time,
        /// When somebody may try.
        until: Time,
    },
    /// It is half-open, and as many try as may.
    Probing {
        /// How many try.
        probing: u64,
        /// When it became half-open.
        since: Time,
    },
}

impl BreakerRecord {
    /// A breaker that was just made.
    pub fn new(name: Name, settings: BreakerSettings, by: Name, now: Time) -> BreakerRecord {
        BreakerRecord {
            name,
            settings,
            memory: BreakerMemory::default(),
            probing: 0,
            put_by: by,
            created_at: now,
            changed_at: now,
            version: 1,
        }
    }

    /// When it became or becomes half-open, unless it is closed. Runs that started from then on are its probes.
    pub fn half_open_at(&self) -> Option<Time> {
        Some(self.memory.opened_at?.plus(self.settings.open_for.0))
    }

    /// How it is at `now`.
    pub fn state(&self, now: Time) -> BreakerState {
        match self.half_open_at() {
            None => BreakerState::Closed,
            Some(at) if now < at => BreakerState::Open,
            Some(_) => BreakerState::HalfOpen,
        }
    }

    /// How many runs that it covers may start at `now` while `probing` that started since it is half-open go on; `None` for
    /// no bound.
    ///
    /// # Errors
    /// Why none may.
    pub fn room(&self, probing: u64, now: Time) -> Result<Option<u64>, Tripped> {
        let (Some(since), Some(until)) = (self.memory.opened_at, self.half_open_at()) else {
            return Ok(None);
        };
        if now < until {
            return Err(Tripped::Open { since, until });
        }
        match u64::from(self.settings.probes).saturating_sub(probing) {
            0 => Err(Tripped::Probing { probing, since: until }),
            left => Ok(Some(left)),
        }
    }

    /// How many ends there were within the window, and how many of them failed.
    pub fn counted(&self, now: Time) -> (u64, u64) {
        let slice = self.slice(now);
        let within = self.memory.slices.iter().filter(|(number, ..)| is_near(*number, slice));
        within.fold((0, 0), |(calls, failed), (_, well, bad)| {
            (calls + u64::from(*well) + u64::from(*bad), failed + u64::from(*bad))
        })
    }

    fn slice(&self, now: Time) -> i64 {
        let length = (self.settings.window.0.as_micros() as i64 / SLICES).max(1);
        now.as_micros().div_euclid(length)
    }

    /// Notes that a run that it covers, started at `started_at`, ended at `now`. True when it opened or closed by that.
    pub fn note(&mut self, succeeded: bool, started_at: Time, now: Time) -> bool {
        let changed = match self.half_open_at() {
            None => self.count(succeeded, now),
            // What had started before says nothing of how it is now.
            Some(at) if now < at || started_at < at => return false,
            Some(_) if !succeeded => {
                self.trip(now);
                true
            }
            Some(_) => {
                self.memory.succeeded += 1;
                let is_well = self.memory.succeeded >= self.settings.probes;
                if is_well {
                    self.memory = BreakerMemory::default();
                }
                is_well
            }
        };
        if changed {
            self.changed_at = now;
            self.version += 1;
        }
        changed
    }

    fn count(&mut self, succeeded: bool, now: Time) -> bool {
        let slice = self.slice(now);
        let slices = &mut self.memory.slices;
        slices.retain(|(number, ..)| is_near(*number, slice));
        let place = slices.partition_point(|(number, ..)| *number < slice);
        if slices.get(place).is_none_or(|(number, ..)| *number != slice) {
            slices.insert(place, (slice, 0, 0));
        }
        let (_, well, failed) = &mut slices[place];
        *if succeeded { well } else { failed } += 1;
        let (calls, failed) = self.counted(now);
        let by_count = self.settings.failures.is_some_and(|most| failed >= u64::from(most));
        let by_rate = self.settings.failure_permille.is_some_and(|permille| {
            calls >= u64::from(self.settings.calls_min) && failed * 1_000 >= u64::from(permille) * calls
        });
        // A good end may be the one that makes a rate count.
        let opens = by_rate || by_count && !succeeded;
        if opens {
            self.trip(now);
        }
        opens
    }

    fn trip(&mut self, now: Time) {
        self.memory = BreakerMemory {
            opened_at: Some(now),
            ..BreakerMemory::default()
        };
    }

    /// Gives it other settings; what it has seen stays, unless the window changed. False when it has just these.
    pub fn put(&mut self, settings: BreakerSettings, by: &Name, now: Time) -> bool {
        if self.settings == settings {
            return false;
        }
        if self.settings.window != settings.window {
            self.memory.slices.clear();
        }
        self.settings = settings;
        self.put_by = by.clone();
        self.changed_at = now;
        self.version += 1;
        true
    }

    /// Carries out a command. False when it is as asked already.
    pub fn command(&mut self, command: BreakerCommand, now: Time) -> bool {
        match command {
            BreakerCommand::Reset if self.memory == BreakerMemory::default() => return false,
            BreakerCommand::Reset => self.memory = BreakerMemory::default(),
            BreakerCommand::Trip => self.trip(now),
        }
        self.changed_at = now;
        self.version += 1;
        true
    }

    /// That it is at a version that somebody saw; 0: that there was none.
    ///
    /// # Errors
    /// [`Rejected::BreakerVersionMismatch`].
    pub fn check(&self, expected: Option<u64>) -> Result<(), Rejected> {
        match expected.filter(|expected| *expected != self.version) {
            None => Ok(()),
            Some(expected) => Err(Rejected::BreakerVersionMismatch {
                breaker: self.name.clone(),
                expected,
                found: self.version,
            }),
        }
    }
}

/// True for a slice of the window around another one. One ahead was counted by a clock that is further on, or before this
/// one was set back: it counts, unless it is so far away that it would count for ever.
fn is_near(number: i64, slice: i64) -> bool {
    (number - slice).abs() < SLICES
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: i64) -> Time {
        Time::from_micros(1_700_000_000_000_000 + millis * 1_000)
    }

    fn breaker(settings: BreakerSettings) -> BreakerRecord {
        BreakerRecord::new("b".into(), settings, "me".into(), at(0))
    }

    #[test]
    fn failures_within_the_window_open_it_and_older_ones_are_forgotten() {
        let mut breaker = breaker(BreakerSettings {
            failures: Some(3),
            ..BreakerSettings::default()
        });
        for start in [0, 1] {
            assert!(!breaker.note(false, at(start), at(start * 1_000)));
        }
        assert!(!breaker.note(false, at(0), at(70_000)));
        assert!(!breaker.note(true, at(0), at(71_000)));
        assert!(!breaker.note(false, at(0), at(75_000)));
        assert!(breaker.note(false, at(0), at(80_000)));
        assert_eq!(breaker.state(at(80_000)), BreakerState::Open);
        let (since, until) = (at(80_000), at(110_000));
        assert_eq!(breaker.room(0, at(109_999)), Err(Tripped::Open { since, until }));
        assert_eq!(breaker.room(0, until), Ok(Some(1)));
        assert_eq!(
            breaker.room(1, until),
            Err(Tripped::Probing {
                probing: 1,
                since: until
            })
        );
        assert_eq!(breaker.version, 2);
    }

    #[test]
    fn a_clock_that_is_behind_forgets_no_failure() {
        let settings = BreakerSettings {
            failures: Some(3),
            ..BreakerSettings::default()
        };
        let mut counting = breaker(settings.clone());
        // A slice of the window is six seconds.
        for end in [60_000, 50_000] {
            assert!(!counting.note(false, at(0), at(end)));
        }
        assert_eq!(counting.counted(at(50_000)), (2, 2));
        assert!(counting.note(false, at(0), at(60_000)));
        // Set back by more than the window it begins anew, and does not count for ever what is yet to come.
        let mut counting = breaker(settings);
        for end in [200_000, 199_000, 100_000, 100_000] {
            assert!(!counting.note(false, at(0), at(end)));
        }
        assert_eq!(counting.counted(at(100_000)), (2, 2));
    }

    #[test]
    fn a_rate_counts_once_there_were_enough_calls() {
        let mut breaker = breaker(BreakerSettings {
            failures: None,
            failure_permille: Some(500),
            calls_min: 4,
            ..BreakerSettings::default()
        });
        let mut late = breaker.clone();
        for succeeded in [false, true, true, true, false] {
            assert!(!breaker.note(succeeded, at(0), at(1)));
        }
        assert!(breaker.note(false, at(0), at(3)));
        assert_eq!(breaker.state(at(3)), BreakerState::Open);
        for succeeded in [false, false, false] {
            assert!(!late.note(succeeded, at(0), at(1)));
        }
        assert!(late.note(true, at(0), at(2)), "with it there are enough");
    }

    #[test]
    fn probes_close_it_or_open_it_again_and_runs_of_before_say_nothing() {
        let mut breaker = breaker(BreakerSettings {
            failures: Some(1),
            probes: 2,
            ..BreakerSettings::default()
        });
        assert!(breaker.note(false, at(0), at(0)));
        assert!(!breaker.note(true, at(0), at(10)) && !breaker.note(false, at(0), at(31_000)));
        assert!(!breaker.note(true, at(30_000), at(31_000)));
        assert_eq!(breaker.state(at(31_000)), BreakerState::HalfOpen);
        assert!(breaker.note(false, at(30_500), at(32_000)));
        assert!(breaker.room(0, at(61_999)).is_err());
        assert_eq!(breaker.room(0, at(62_000)), Ok(Some(2)));
        assert!(!breaker.note(true, at(62_000), at(63_000)));
        assert!(breaker.note(true, at(62_000), at(64_000)));
        assert_eq!(breaker.state(at(64_000)), BreakerState::Closed);
        assert_eq!(breaker.memory, BreakerMemory::default());
        assert_eq!(breaker.version, 4);
    }

    #[test]
    fn people_open_and_close_it() {
        let mut breaker = breaker(BreakerSettings::default());
        assert!(!breaker.command(BreakerCommand::Reset, at(1)));
        assert!(breaker.command(BreakerCommand::Trip, at(2)));
        assert_eq!(breaker.state(at(3)), BreakerState::Open);
        assert!(breaker.command(BreakerCommand::Reset, at(4)));
        assert_eq!(breaker.room(7, at(4)), Ok(None));
        assert!(breaker.check(Some(3)).is_ok() && breaker.check(Some(2)).is_err());
        assert!(!breaker.put(BreakerSettings::default(), &"me".into(), at(5)));
    }
}
