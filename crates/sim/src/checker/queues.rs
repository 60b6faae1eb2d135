//! Queues: nothing of a paused one starts, no more of one than it allows run at once, and no more start than its rate
//! allows.

use std::time::Duration;

use pensum_core::queue::{QueueSettings, Rate};
use pensum_core::{TaskId, Time};

use super::Books;
use crate::history::{Entry, What};

/// What a queue allowed from which time on.
#[derive(Clone, Default)]
pub(super) struct Change {
    at: Duration,
    pub(super) settings: QueueSettings,
    pub(super) paused: bool,
}

/// What a queue allowed, in the order of time.
#[derive(Default)]
pub(super) struct Changes {
    all: Vec<Change>,
    /// What has started since its rate was changed: when by the clock of its claim, with how many units, and for the first
    /// time.
    starts: Vec<(Time, u32, bool)>,
    rate_since: Duration,
}

impl Changes {
    /// What it may have allowed since this time: what was changed at this very time counts as it was before, too, for
    /// something may be written down just after a change that it came before.
    pub(super) fn since(&self, from: Duration) -> impl Iterator<Item = Change> {
        let before = self.all.iter().rev().find(|change| change.at < from).cloned();
        let later = self.all.iter().filter(move |change| change.at >= from).cloned();
        std::iter::once(before.unwrap_or_default()).chain(later)
    }

    /// What it may have allowed at this time, which is the newest.
    fn at(&self, at: Duration) -> (Option<u32>, bool) {
        let now = self
            .since(at)
            .map(|change| (change.settings.max_concurrent, change.paused));
        let widest = now.reduce(|one, other| {
            let max = one.0.zip(other.0).map(|(one, other)| one.max(other));
            (max, one.1 && other.1)
        });
        widest.unwrap_or_default()
    }

    fn change(&mut self, at: Duration, settings: QueueSettings, paused: bool) {
        let before = self.all.last().and_then(|change| change.settings.rate);
        if before != settings.rate {
            self.starts.clear();
            self.rate_since = at;
        }
        self.all.push(Change { at, settings, paused });
    }

    /// Notes a start, and says how many units started within how long where those are too many.
    ///
    /// A bucket of the rate never holds more than its burst, by the clocks of those who claim, in whichever order they come.
    /// But one with more units than that starts when it is full, and one that starts alone with the first of them.
    fn start(&mut self, at: Duration, start: (Time, u32, bool)) -> Option<(u64, Duration)> {
        let rate = self.all.last()?.settings.rate?;
        if at <= self.rate_since {
            return None;
        }
        self.starts.push(start);
        let (now, ..) = start;
        let window = |from: Time, to: Time| {
            let within = self.starts.iter().filter(move |(at, ..)| (from..=to).contains(at));
            let units: u64 = within.clone().map(|(_, units, _)| u64::from(*units)).sum();
            let spare = within.map(|(_, units, first)| match first {
                true => u64::from(*units).max(u64::from(rate.burst)),
                false => u64::from(*units) + u64::from(rate.burst),
            });
            let most = spare.max().unwrap_or_default() + tokens(rate, to.since(from));
            (units > most).then_some((units, to.since(from)))
        };
        let times = || self.starts.iter().map(|(at, ..)| *at);
        let windows = times().filter(|from| *from <= now).flat_map(|from| {
            let to = times().filter(move |to| *to >= now);
            to.map(move |to| (from, to))
        });
        windows.into_iter().find_map(|(from, to)| window(from, to))
    }
}

/// How many come in this time.
fn tokens(rate: Rate, time: Duration) -> u64 {
    let interval = (rate.per.0.as_nanos() / u128::from(rate.starts.max(1))).max(1);
    u64::try_from(time.as_nanos() / interval).unwrap_or(u64::MAX)
}

impl Books<'_> {
    /// Judges a start before its lease is noted.
    pub(super) fn queues(&mut self, at: usize, entry: &Entry) {
        match &entry.what {
            What::Queue {
                queue,
                settings,
                paused,
            } => {
                let changes = self.queues.entry(queue.clone()).or_default();
                changes.change(entry.at, QueueSettings::clone(settings), *paused);
            }
            What::Granted {
                task,
                queue,
                now,
                units,
                starts,
                ..
            } if !self.outside => {
                self.latest = self.latest.max(*now);
                self.width(at, entry, *task, queue);
                let is_first = self.tasks.get(task).is_none_or(|book| book.holds.is_empty());
                let changes = self.queues.get_mut(queue);
                let broken = changes.and_then(|changes| changes.start(entry.at, (*starts, *units, is_first)));
                if let Some((units, within)) = broken {
                    let label = self.label(*task);
                    let within = within.as_secs_f64();
                    self.broken(
                        "a queue starts no more than its rate",
                        Some(at),
                        format!("with {label}, {units} units of {queue} start within {within} s"),
                    );
                }
                self.book(*task).queue.clone_from(queue);
            }
            _ => {}
        }
    }

    fn width(&mut self, at: usize, entry: &Entry, task: TaskId, queue: &str) {
        let What::Granted { executor, .. } = &entry.what else {
            return;
        };
        let Some((max, paused)) = self.queues.get(queue).map(|changes| changes.at(entry.at)) else {
            return;
        };
        let label = self.label(task);
        if paused {
            self.broken(
                "a paused queue starts nothing",
                Some(at),
                format!("{label} is given to {executor}, and {queue} is paused"),
            );
        }
        let runs = self.tasks.values().filter(|book| book.queue == *queue);
        let running = runs
            .flat_map(|book| &book.holds)
            .filter(|hold| self.is_live(hold))
            .count();
        if let Some(max) = max.filter(|max| running >= *max as usize) {
            self.broken(
                "a queue runs no more than it may",
                Some(at),
                format!("{label} is given to {executor} while {running} of {queue} run, which may run {max}"),
            );
        }
    }
}
