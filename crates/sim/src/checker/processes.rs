//! Tasks that are not durable: they end with the process that accepted them, and not while it lives.

use std::time::Duration;

use pensum_core::{NodeId, TaskId, Time};

use super::Books;
use crate::history::{Entry, PROCESS_ENDED, Queued, What};

/// What the store has heard of a process.
#[derive(Clone, Copy)]
pub(super) struct Process {
    /// The latest time, and the one that it heard last, by the clock of the process.
    latest: Time,
    last: Time,
    ttl: Duration,
    left: bool,
}

impl Process {
    /// True when it has surely been given up by this time.
    fn is_lost(&self, now: Time) -> bool {
        self.left || self.latest.plus(self.ttl) <= now
    }

    /// True when it surely has not.
    fn lives(&self, now: Time) -> bool {
        !self.left && now < self.last.plus(self.ttl)
    }
}

impl Books<'_> {
    pub(super) fn processes(&mut self, at: usize, entry: &Entry) {
        let What::Queued(what) = &entry.what else { return };
        match what {
            Queued::Beats { process, now, ttl, .. } => {
                let before = self.processes.get(process);
                let heard = Process {
                    latest: before.map_or(*now, |before| before.latest.max(*now)),
                    last: *now,
                    ttl: *ttl,
                    left: false,
                };
                self.processes.insert(*process, heard);
            }
            Queued::Left { process, .. } => {
                if let Some(known) = self.processes.get_mut(process) {
                    known.left = true;
                }
            }
            Queued::Accepted { process, tasks } => {
                for task in tasks {
                    self.book(*task).process = Some(*process);
                }
            }
            Queued::Cancelled { task, kind, now, .. } if kind == PROCESS_ENDED => self.cancelled(at, *task, *now),
            Queued::Swept { now } => self.outlived(at, *now),
            _ => {}
        }
    }

    /// A task ends with its process.
    fn cancelled(&mut self, at: usize, task: TaskId, now: Time) {
        let label = self.label(task);
        let book = self.book(task);
        book.abandoned = true;
        let process = book.process;
        let known = process.and_then(|process| self.processes.get(&process));
        let why = match (process, known) {
            (None, _) => "it is durable",
            (_, Some(known)) if known.lives(now) => "that one lives",
            _ => return,
        };
        self.broken(
            "what is not durable lives as long as its process",
            Some(at),
            format!("{label} is cancelled for the end of the process that accepted it, and {why}"),
        );
    }

    /// After upkeep nothing is left of processes that were given up by then.
    fn outlived(&mut self, at: usize, now: Time) {
        let is_lost = |process: NodeId| self.processes.get(&process).is_none_or(|known| known.is_lost(now));
        let left = self
            .tasks
            .iter()
            .find(|(_, book)| !book.has_ended() && book.process.is_some_and(is_lost));
        if let Some((task, _)) = left {
            let label = self.label(*task);
            self.broken(
                "what is not durable ends with its process",
                Some(at),
                format!("{label} goes on after the end of the process that accepted it"),
            );
        }
    }
}
