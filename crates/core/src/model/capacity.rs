//! Which tasks queues take, and which they drop for them.

use std::collections::BTreeMap;

use super::{Entry, Facts, Model};
use crate::capacity::{Entrance, Load, dropped_for_age, dropped_for_newer};
use crate::store::{Applied, Rejected};
use crate::task::NewTask;
use crate::time::Span;
use crate::transition::Event;
use crate::{ErrorInfo, Name, Status, Time};

/// What makes room for newer tasks, with the reason.
pub(super) type Dropped = Vec<(i64, ErrorInfo)>;

impl Model {
    /// Refuses what meets a limit of its queue. `new` are the items that are new tasks, `replaced` the rows that give their
    /// unique keys to some of them.
    pub(super) fn judge(
        &self,
        namespace: &Name,
        new: &[(usize, &NewTask)],
        replaced: &[i64],
        now: Time,
    ) -> Result<Dropped, Rejected> {
        let mut entrances: BTreeMap<&Name, Entrance<'_>> = BTreeMap::new();
        for (item, task) in new {
            let Some((place, queue)) = self.queues.get_key_value(&(namespace.clone(), task.spec.queue.clone())) else {
                continue;
            };
            let entrance = entrances
                .entry(&place.1)
                .or_insert_with(|| Entrance::new(queue, self.load_of(place, replaced, now), now));
            if let Err(full) = entrance.admit(task) {
                let full = Box::new(full);
                return Err(Rejected::QueueFull { item: *item, full });
            }
        }
        let mut dropped = Dropped::new();
        for (name, entrance) in entrances {
            let place = (namespace.clone(), name.clone());
            let max = self.queues[&place].settings.max_depth.unwrap_or_default();
            let oldest = self.droppable(&place, replaced, now).into_iter();
            let first = oldest.take(usize::try_from(entrance.to_drop()).unwrap_or(usize::MAX));
            dropped.extend(first.map(|(_, row)| (row, dropped_for_newer(name, max))));
        }
        Ok(dropped)
    }

    /// Cancels what makes room.
    pub(super) fn drop_all(&mut self, dropped: Dropped, now: Time) {
        for (row, error) in dropped {
            let facts = Facts {
                error: Some(error),
                ..Facts::default()
            };
            let _ = self.happen(row, &Event::Cancel, facts, now, &mut Applied::default());
        }
    }

    /// The tasks of a queue but for some.
    fn tasks_of(&self, place: &(Name, Name), except: &[i64]) -> impl Iterator<Item = (i64, &Entry)> {
        let is_here = move |(row, entry): &(&i64, &Entry)| {
            (&entry.namespace, &entry.spec.queue) == (&place.0, &place.1) && !except.contains(row)
        };
        self.tasks.iter().filter(is_here).map(|(row, entry)| (*row, entry))
    }

    fn load_of(&self, place: &(Name, Name), except: &[i64], now: Time) -> Load {
        let mut load = Load {
            running: self.running_of(place),
            droppable: self.droppable(place, except, now).len() as u64,
            ..Load::default()
        };
        for (_, entry) in self.tasks_of(place, except) {
            match Status::of(&entry.lifecycle, now) {
                Status::Ready => {
                    load.ready += 1;
                    load.ready_units += u64::from(entry.spec.units());
                    load.oldest_ready = load.oldest_ready.into_iter().chain(entry.ready_since(now)).min();
                }
                Status::Pending | Status::Retrying | Status::Paused => {}
                _ => continue,
            }
            load.waiting += 1;
        }
        load
    }

    /// What is ready and has never started, since when, the oldest first.
    fn droppable(&self, place: &(Name, Name), except: &[i64], now: Time) -> Vec<(Time, i64)> {
        let fresh = self.tasks_of(place, except).filter(|(_, e)| !e.lifecycle.has_started());
        let mut ready: Vec<(Time, i64)> = fresh.filter_map(|(row, e)| Some((e.ready_since(now)?, row))).collect();
        ready.sort_unstable();
        ready
    }

    /// What has waited longer than its queue keeps it, the oldest of each queue first.
    pub(super) fn too_old(&self, now: Time) -> Dropped {
        let mut dropped = Dropped::new();
        for (place, max) in self.dropping_by_age() {
            let old = self.droppable(place, &[], now).into_iter();
            let old = old.take_while(|(since, _)| since.plus(max.0) <= now);
            dropped.extend(old.map(|(_, row)| (row, dropped_for_age(&place.1, max))));
        }
        dropped
    }

    /// When the first of those comes to its age that are ready now.
    pub(super) fn next_too_old(&self, now: Time) -> Option<Time> {
        let first = |(place, max): (&(Name, Name), Span)| {
            let (since, _) = *self.droppable(place, &[], now).first()?;
            Some(since.plus(max.0))
        };
        self.dropping_by_age().filter_map(first).min()
    }

    fn dropping_by_age(&self) -> impl Iterator<Item = (&(Name, Name), Span)> {
        self.queues
            .iter()
            .filter_map(|(place, queue)| Some((place, queue.settings.drops_over()?)))
    }
}
