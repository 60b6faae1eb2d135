//! Queues with settings of their own.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::Model;
use crate::order::{KeyTurns, OrderRule, place};
use crate::queue::{QUEUES_MAX, QueueCommand, QueueRecord, QueueSettings, Room};
use crate::store::{Call, Rejected};
use crate::{Name, Priority, State, Time};

impl Model {
    /// The queue of a task, and its namespace.
    pub(super) fn queue_of(&self, row: i64) -> (Name, Name) {
        let entry = &self.tasks[&row];
        (entry.namespace.clone(), entry.spec.queue.clone())
    }

    /// How many leases the tasks of a queue hold.
    pub(super) fn running_of(&self, place: &(Name, Name)) -> u64 {
        let held = self.tasks.values().filter(|e| e.lifecycle.lease.is_some());
        let here = held.filter(|e| (&e.namespace, &e.spec.queue) == (&place.0, &place.1));
        here.count() as u64
    }

    /// How much of each queue with settings may start.
    pub(super) fn rooms(&self, now: Time) -> BTreeMap<(Name, Name), Room> {
        let room = |place, queue: &QueueRecord| queue.room(self.running_of(place), now).unwrap_or(Room::NONE);
        self.queues
            .iter()
            .map(|(place, queue)| (place.clone(), room(place, queue)))
            .collect()
    }

    /// A task starts.
    pub(super) fn queue_started(&mut self, row: i64, now: Time) {
        let (place, units) = (self.queue_of(row), self.tasks[&row].spec.units());
        if let Some(queue) = self.queues.get_mut(&place) {
            queue.started(u64::from(units), now);
        }
    }

    pub(super) fn order_rule(&self, row: i64) -> OrderRule {
        let queue = self.queues.get(&self.queue_of(row));
        queue.map_or(OrderRule::STRICT, |queue| queue.settings.order())
    }

    /// The key of a task, and its namespace.
    pub(super) fn key_of(&self, row: i64) -> Option<(Name, Name)> {
        let entry = &self.tasks[&row];
        Some((entry.namespace.clone(), entry.spec.key.clone()?))
    }

    /// The turns of keys that tasks have which run.
    pub(super) fn turns_taken(&self) -> BTreeMap<(Name, Name), KeyTurns> {
        let mut widths: BTreeMap<(Name, Name), Vec<u32>> = BTreeMap::new();
        for (row, entry) in &self.tasks {
            if entry.lifecycle.state == State::Running
                && let Some(key) = self.key_of(*row)
            {
                widths.entry(key).or_default().push(self.order_rule(*row).width());
            }
        }
        let taken = widths.into_iter().map(|(key, widths)| (key, KeyTurns::beside(widths)));
        taken.collect()
    }

    /// The number that the last run of its key took at its end.
    pub(super) fn served(&self, row: i64) -> Option<i64> {
        self.served.get(&self.key_of(row)?).copied()
    }

    /// Where a task stands in the claim order, whose key was `served` last.
    pub(super) fn rank(&self, row: i64, served: Option<i64>, now: Time) -> (Reverse<Priority>, i64, i64) {
        let (entry, rule) = (&self.tasks[&row], self.order_rule(row));
        let life = &entry.lifecycle;
        let level = rule.level(entry.spec.priority, life.ready_from(), now);
        let place = place(entry.spec.deadline, rule.age(row, served));
        (Reverse(level), place, row)
    }

    /// A run ended: its key goes behind what is ready now.
    pub(super) fn note_turn(&mut self, row: i64) {
        let Some(key) = self.key_of(row).filter(|_| self.order_rule(row).fair) else {
            return;
        };
        self.served.insert(key, self.next_row);
        self.next_row += 1;
    }

    /// The queue as it is, or as it would be made.
    fn found_or_new(&self, place: &(Name, Name), call: &Call) -> Result<QueueRecord, Rejected> {
        match self.queues.get(place) {
            Some(queue) => Ok(queue.clone()),
            None if self.queues.len() >= QUEUES_MAX => Err(Rejected::TooManyQueues),
            None => Ok(QueueRecord::new(place.1.clone(), call.now)),
        }
    }

    fn keep(&mut self, place: (Name, Name), queue: QueueRecord) -> QueueRecord {
        let running = self.running_of(&place);
        self.queues.insert(place, queue.clone());
        QueueRecord { running, ..queue }
    }

    pub(super) fn put_queue(
        &mut self,
        call: &Call,
        queue: Name,
        settings: QueueSettings,
        expected: Option<u64>,
    ) -> Result<QueueRecord, Rejected> {
        let place = (call.namespace.clone(), queue);
        let mut record = self.found_or_new(&place, call)?;
        record.put(settings, expected, &call.actor, call.now)?;
        Ok(self.keep(place, record))
    }

    pub(super) fn command_queue(
        &mut self,
        call: &Call,
        queue: Name,
        command: QueueCommand,
    ) -> Result<QueueRecord, Rejected> {
        let place = (call.namespace.clone(), queue);
        let mut record = self.found_or_new(&place, call)?;
        record.command(command, self.next_row - 1, call.now)?;
        Ok(self.keep(place, record))
    }

    pub(super) fn delete_queue(&mut self, call: &Call, queue: Name) -> Result<(), Rejected> {
        let place = (call.namespace.clone(), queue.clone());
        if !self.queues.contains_key(&place) {
            return Err(Rejected::NoQueue(queue));
        }
        let here = self.tasks.keys().filter(|row| self.queue_of(**row) == place);
        let unfinished = here
            .filter(|row| !self.tasks[row].lifecycle.state.is_terminal())
            .count() as u64;
        if unfinished > 0 {
            return Err(Rejected::QueueHasTasks { queue, unfinished });
        }
        self.queues.remove(&place);
        Ok(())
    }

    pub(super) fn list_queues(&self, namespace: &str) -> Vec<QueueRecord> {
        let here = self.queues.iter().filter(|(place, _)| *place.0 == *namespace);
        here.map(|(place, queue)| QueueRecord {
            running: self.running_of(place),
            ..queue.clone()
        })
        .collect()
    }
}
