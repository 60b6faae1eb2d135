//! Queues: nothing of a paused one starts, and no more of one than it allows run at once.

use std::time::Duration;

use super::Books;
use crate::history::{Entry, What};

/// What a queue allowed from which time on.
#[derive(Clone, Copy)]
struct Change {
    at: Duration,
    max: Option<u32>,
    paused: bool,
}

/// What a queue allowed, in the order of time.
#[derive(Default)]
pub(super) struct Changes(Vec<Change>);

impl Changes {
    /// What it allowed at this time, at most. A start may be written down just after a change that it came before, so
    /// what was changed at this very time counts as it was before, too.
    fn at(&self, at: Duration) -> Change {
        let plain = Change {
            at: Duration::ZERO,
            max: None,
            paused: false,
        };
        let before = self.0.iter().rev().find(|change| change.at < at).copied();
        let just_now = self.0.iter().filter(|change| change.at == at);
        just_now.fold(before.unwrap_or(plain), |one, other| Change {
            at,
            max: one.max.zip(other.max).map(|(one, other)| one.max(other)),
            paused: one.paused && other.paused,
        })
    }
}

impl Books<'_> {
    /// Judges a start before its lease is noted.
    pub(super) fn queues(&mut self, at: usize, entry: &Entry) {
        match &entry.what {
            What::Queue { queue, max, paused } => {
                let change = Change {
                    at: entry.at,
                    max: *max,
                    paused: *paused,
                };
                self.queues.entry(queue.clone()).or_default().0.push(change);
            }
            What::Granted {
                task,
                queue,
                executor,
                now,
                ..
            } if !self.outside => {
                self.latest = self.latest.max(*now);
                let Some(allowed) = self.queues.get(queue).map(|changes| changes.at(entry.at)) else {
                    self.book(*task).queue.clone_from(queue);
                    return;
                };
                let label = self.label(*task);
                if allowed.paused {
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
                if let Some(max) = allowed.max.filter(|max| running >= *max as usize) {
                    self.broken(
                        "a queue runs no more than it may",
                        Some(at),
                        format!("{label} is given to {executor} while {running} of {queue} run, which may run {max}"),
                    );
                }
                self.book(*task).queue.clone_from(queue);
            }
            _ => {}
        }
    }
}
