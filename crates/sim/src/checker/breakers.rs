//! Breakers: they open when what they cover fails, and then nothing of it starts but a few that try.

use std::time::Duration;

use pensum_core::breaker::BreakerRecord;
use pensum_core::{State, TaskId};

use super::Books;
use crate::handlers::{ACT, COMMON, PAUSABLE};
use crate::history::{Entry, Executor, Remote, What};
use crate::remote::agent_id;
use crate::scenario::Act;

/// What a breaker was from which time on; nothing while it was not there.
#[derive(Default)]
pub(super) struct Changes {
    all: Vec<(Duration, Option<BreakerRecord>)>,
    /// Failures of what it covers since it was closed, or its settings changed.
    failures: u32,
}

impl Changes {
    /// All that it was at this time: a start may be written down just after a change that it came before.
    fn at(&self, at: Duration) -> Vec<Option<&BreakerRecord>> {
        let before = self.all.iter().rev().find(|(since, _)| *since < at);
        let just_now = self.all.iter().filter(|(since, _)| *since == at);
        let none = if before.is_none() { vec![None] } else { Vec::new() };
        let then = before.into_iter().chain(just_now).map(|(_, record)| record.as_ref());
        none.into_iter().chain(then).collect()
    }
}

impl BookedBreaker for BreakerRecord {
    fn is_of(&self, handler: &str, executor: Executor) -> bool {
        let agent = match executor {
            Executor::Agent { agent, .. } => Some(agent_id(agent)),
            Executor::Node(_) => None,
        };
        let settings = &self.settings;
        settings.handlers.iter().any(|name| **name == *handler)
            || agent.is_some_and(|agent| settings.agents.iter().any(|name| **name == *agent))
    }
}

/// What a breaker covers, read anew.
trait BookedBreaker {
    fn is_of(&self, handler: &str, executor: Executor) -> bool;
}

impl Books<'_> {
    fn handler(&self, label: &str) -> &'static str {
        match self.plans.get(label) {
            Some(plan) if matches!(plan.act, Act::Pausable { .. }) => PAUSABLE,
            Some(plan) if plan.demand.is_some() => COMMON,
            _ => ACT,
        }
    }

    /// Judges a start before its lease is noted.
    pub(super) fn breakers(&mut self, at: usize, entry: &Entry) {
        match &entry.what {
            What::Remote(Remote::Breaker { breaker, record }) => {
                let changes = self.breakers.entry(breaker.clone()).or_default();
                let record = record.as_deref().cloned();
                let before = changes.all.last().and_then(|(_, record)| record.as_ref());
                let settings = |record: Option<&BreakerRecord>| record.map(|record| record.settings.clone());
                let opened = |record: Option<&BreakerRecord>| record.and_then(|record| record.memory.opened_at);
                if settings(before) != settings(record.as_ref()) || opened(before) != opened(record.as_ref()) {
                    changes.failures = 0;
                }
                // Somebody made it forget.
                if record.as_ref().is_some_and(|record| record.memory.slices.is_empty()) {
                    changes.failures = 0;
                }
                changes.all.push((entry.at, record));
            }
            What::Granted { task, executor, .. } if !self.outside => self.tripped(at, entry, *task, *executor),
            What::Finished {
                task,
                lease,
                outcome: "failed" | "failed for good",
                state: Some(State::Queued | State::Failed),
            } => {
                let hold = self
                    .tasks
                    .get(task)
                    .and_then(|book| book.holds.iter().find(|hold| hold.lease == *lease));
                let Some(executor) = hold.map(|hold| hold.executor) else {
                    return;
                };
                let handler = self.handler(&self.label(*task));
                for changes in self.breakers.values_mut() {
                    if let Some((_, Some(record))) = changes.all.last()
                        && record.memory.opened_at.is_none()
                        && record.is_of(handler, executor)
                    {
                        changes.failures += 1;
                    }
                }
            }
            _ => {}
        }
    }

    fn tripped(&mut self, at: usize, entry: &Entry, task: TaskId, executor: Executor) {
        let label = self.label_or(task, entry);
        let handler = self.handler(&label);
        // By the clock that is furthest on.
        let now = self.dawn.plus(entry.at);
        let mut wrong = Vec::new();
        for (name, changes) in &self.breakers {
            let then = changes.at(entry.at);
            let covers = |record: &Option<&BreakerRecord>| record.is_some_and(|record| record.is_of(handler, executor));
            if then.is_empty() || !then.iter().all(covers) {
                continue;
            }
            let half_open_at = |record: &Option<&BreakerRecord>| {
                let record = (*record)?;
                Some(record.memory.opened_at?.plus(record.settings.open_for.0))
            };
            if then
                .iter()
                .all(|record| half_open_at(record).is_some_and(|half_open_at| now < half_open_at))
            {
                wrong.push((
                    "of an open breaker nothing starts",
                    format!("{label} starts, and {name} is open"),
                ));
                continue;
            }
            let is_closed = |record: &Option<&BreakerRecord>| half_open_at(record).is_none();
            let last = then.last().copied().flatten();
            let Some(record) = last else { continue };
            if then.iter().all(is_closed) && record.settings.failures.is_some_and(|most| changes.failures >= most) {
                let failures = changes.failures;
                wrong.push((
                    "what fails is left alone",
                    format!("{label} starts, and {name} is closed after {failures} failures"),
                ));
            }
            // Two states at once say nothing of how many may try.
            let ([_], Some(since)) = (&then[..], half_open_at(&then[0])) else {
                continue;
            };
            let trying = self
                .tasks
                .iter()
                .flat_map(|(task, book)| book.holds.iter().map(|hold| (*task, hold)));
            let trying = trying.filter(|(task, hold)| {
                let is_probe = hold.claimed_at >= since && self.is_live(hold);
                is_probe && record.is_of(self.handler(&self.label(*task)), hold.executor)
            });
            let trying = trying.count();
            if trying >= record.settings.probes as usize {
                wrong.push((
                    "of a half-open breaker only probes start",
                    format!(
                        "{label} starts while {trying} try for {name}, of {}",
                        record.settings.probes
                    ),
                ));
            }
        }
        for (promise, what) in wrong {
            self.broken(promise, Some(at), what);
        }
    }
}
