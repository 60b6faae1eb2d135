//! Circuit breakers.

use std::collections::BTreeMap;

use super::Model;
use crate::breaker::{BREAKERS_MAX, BreakerCommand, BreakerRecord, BreakerSettings};
use crate::store::{Call, Rejected};
use crate::task::ExecutionStatus;
use crate::{Name, State, Time};

impl Model {
    /// How many runs that a breaker covers have started since it is half-open, and go on.
    fn probing(&self, namespace: &Name, breaker: &BreakerRecord) -> u64 {
        let Some(since) = breaker.half_open_at() else { return 0 };
        let running = self.tasks.values().filter(|e| e.lifecycle.state == State::Running);
        let probes = running.filter(|e| {
            let holder = e.holder.as_ref().filter(|holder| holder.taken_at >= since);
            e.namespace == *namespace
                && holder.is_some_and(|holder| breaker.settings.covers(&e.spec.handler, &holder.executor))
        });
        probes.count() as u64
    }

    /// How many runs may start by each breaker that is not closed.
    pub(super) fn probes(&self, now: Time) -> BTreeMap<(Name, Name), u64> {
        let left = |place: &(Name, Name), breaker: &BreakerRecord| {
            let room = breaker.room(self.probing(&place.0, breaker), now);
            Some((place.clone(), room.map_or(Some(0), |left| left)?))
        };
        self.breakers
            .iter()
            .filter_map(|(place, breaker)| left(place, breaker))
            .collect()
    }

    /// The breakers that cover a task when this executor runs it.
    pub(super) fn breakers_of(&self, row: i64, executor: &str) -> Vec<(Name, Name)> {
        let entry = &self.tasks[&row];
        let covering = self.breakers.iter().filter(|((namespace, _), breaker)| {
            *namespace == entry.namespace && breaker.settings.covers(&entry.spec.handler, executor)
        });
        covering.map(|(place, _)| place.clone()).collect()
    }

    /// Notes the end of an attempt.
    pub(super) fn note_end(&mut self, row: i64, executor: &str, taken_at: Time, status: ExecutionStatus, now: Time) {
        let succeeded = match status {
            ExecutionStatus::Completed => true,
            ExecutionStatus::Failed => false,
            // A death, or a person, says nothing of what it does.
            _ => return,
        };
        let Some(entry) = self.tasks.get(&row) else { return };
        let (namespace, handler) = (entry.namespace.clone(), entry.spec.handler.clone());
        for ((place, _), breaker) in &mut self.breakers {
            if *place == namespace && breaker.settings.covers(&handler, executor) {
                breaker.note(succeeded, taken_at, now);
            }
        }
    }

    fn breaker_shown(&self, namespace: &Name, breaker: &BreakerRecord) -> BreakerRecord {
        BreakerRecord {
            probing: self.probing(namespace, breaker),
            ..breaker.clone()
        }
    }

    pub(super) fn put_breaker(
        &mut self,
        call: &Call,
        breaker: Name,
        settings: BreakerSettings,
        expected: Option<u64>,
    ) -> Result<BreakerRecord, Rejected> {
        let place = (call.namespace.clone(), breaker.clone());
        let is_full = self.breakers.len() >= BREAKERS_MAX;
        match self.breakers.get_mut(&place) {
            Some(record) => {
                record.check(expected)?;
                record.put(settings, &call.actor, call.now);
            }
            None if is_full => return Err(Rejected::TooManyBreakers),
            None if expected.is_some_and(|expected| expected > 0) => return Err(Rejected::NoBreaker(breaker)),
            None => {
                let record = BreakerRecord::new(breaker, settings, call.actor.clone(), call.now);
                self.breakers.insert(place.clone(), record);
            }
        }
        Ok(self.breaker_shown(&place.0, &self.breakers[&place]))
    }

    pub(super) fn command_breaker(
        &mut self,
        call: &Call,
        breaker: Name,
        command: BreakerCommand,
    ) -> Result<BreakerRecord, Rejected> {
        let place = (call.namespace.clone(), breaker.clone());
        let record = self.breakers.get_mut(&place).ok_or(Rejected::NoBreaker(breaker))?;
        record.command(command, call.now);
        Ok(self.breaker_shown(&place.0, &self.breakers[&place]))
    }

    pub(super) fn delete_breaker(&mut self, call: &Call, breaker: Name) -> Result<(), Rejected> {
        let place = (call.namespace.clone(), breaker.clone());
        let found = self.breakers.remove(&place);
        found.map(|_| ()).ok_or(Rejected::NoBreaker(breaker))
    }

    pub(super) fn list_breakers(&self, namespace: &str) -> Vec<BreakerRecord> {
        let here = self.breakers.iter().filter(|((place, _), _)| **place == *namespace);
        here.map(|((place, _), breaker)| self.breaker_shown(place, breaker))
            .collect()
    }
}
