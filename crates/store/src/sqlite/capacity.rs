//! Which tasks queues take, and which they drop for them.

use std::collections::{BTreeMap, BTreeSet};

use pensum_core::capacity::{Entrance, Load, dropped_for_age, dropped_for_newer};
use pensum_core::store::{Applied, Rejected};
use pensum_core::task::OnLimit;
use pensum_core::transition::Event;
use pensum_core::{ErrorInfo, Name, TaskId, Time};

use super::ages::Ages;
use super::error::Fault;
use super::row::{COLUMNS, LiveRow};
use super::step::Facts;
use super::verb::Prepared;
use super::view::Cell;
use super::writer::Writer;

/// What makes room for newer tasks, with the reason.
pub(super) type Dropped = Vec<(i64, ErrorInfo)>;

/// Where a task counts that waits: it has not ended, and does not run.
const WAITING: [Cell; 5] = [
    Cell::Ready,
    Cell::Dependencies,
    Cell::Later,
    Cell::Retrying,
    Cell::Paused,
];

impl Writer {
    /// Refuses what meets a limit of its queue, and says what goes to make room for the rest; changes nothing. `is_new` says
    /// of an item that it is a task of its own.
    pub(super) fn make_room(
        &self,
        namespace: &Name,
        tasks: &[Prepared],
        is_new: &dyn Fn(usize) -> bool,
        replaced: &[TaskId],
        now: Time,
    ) -> Result<Result<Dropped, Rejected>, Fault> {
        let judges = |task: &Prepared| self.queues.limits_intake() || task.task.spec.on_limit() == OnLimit::Reject;
        if self.queues.is_empty() || !tasks.iter().any(judges) {
            return Ok(Ok(Dropped::new()));
        }
        let gone: Vec<LiveRow> = self.unfinished(replaced)?;
        let mut entrances: BTreeMap<usize, Entrance<'_>> = BTreeMap::new();
        for (item, prepared) in tasks.iter().enumerate().filter(|(item, _)| is_new(*item)) {
            let task = &prepared.task;
            let Some(gate) = self.queues.position(namespace, &task.spec.queue) else {
                continue;
            };
            let entrance = entrances.entry(gate).or_insert_with(|| self.entrance(gate, &gone, now));
            if let Err(full) = entrance.admit(task) {
                let full = Box::new(full);
                return Ok(Err(Rejected::QueueFull { item, full }));
            }
        }
        let mut dropped = Dropped::new();
        for (gate, entrance) in entrances.iter().filter(|(_, entrance)| entrance.to_drop() > 0) {
            let record = self.queues.record(*gate);
            let max = record.settings.max_depth.unwrap_or_default();
            let kept = |row: &i64| gone.iter().all(|live| live.row != *row);
            let oldest = self.droppable(*gate).into_iter().filter(kept);
            let most = usize::try_from(entrance.to_drop()).unwrap_or(usize::MAX);
            dropped.extend(oldest.take(most).map(|row| (row, dropped_for_newer(&record.name, max))));
        }
        Ok(Ok(dropped))
    }

    fn unfinished(&self, tasks: &[TaskId]) -> Result<Vec<LiveRow>, Fault> {
        let mut found = Vec::with_capacity(tasks.len());
        for task in tasks {
            found.extend(self.subject(task.row(), Some(*task))?.map(|subject| subject.live));
        }
        Ok(found)
    }

    fn entrance(&self, gate: usize, gone: &[LiveRow], now: Time) -> Entrance<'_> {
        let mut entrance = Entrance::new(self.queues.record(gate), self.load_of(gate, gone), now);
        for (class, units) in self.classes_of(gate) {
            for live in gone.iter().filter(|live| live.class == class) {
                entrance.replaced(live.life.is_claimable(self.memory.clock), units);
            }
        }
        entrance
    }

    /// The classes of the tasks of a queue, with their units.
    fn classes_of(&self, gate: usize) -> Vec<(u32, u32)> {
        let (namespace, queue) = self.queues.place(gate);
        self.shared.catalog.classes_of(namespace, queue)
    }

    /// How full a queue is, the transaction under way included; by age without what goes.
    fn load_of(&self, gate: usize, gone: &[LiveRow]) -> Load {
        let gone: BTreeSet<i64> = gone.iter().map(|live| live.row).collect();
        let mut load = Load::default();
        let view = self.shared.view.lock();
        for (class, units) in self.classes_of(gate) {
            let at = class as usize;
            let of = |cell: Cell| {
                let of = |tallies: &[super::view::Tally]| tallies.get(at).map_or(0, |tally| tally[cell as usize]);
                u64::try_from(of(&view.tallies) + of(&self.group.tallies)).unwrap_or(0)
            };
            let ready = of(Cell::Ready);
            load.ready += ready;
            load.ready_units += ready * u64::from(units);
            load.waiting += WAITING.into_iter().map(of).sum::<u64>();
            load.running += view.held.get(at).copied().unwrap_or(0);
            let ended = self.group.closed.iter().filter_map(|row| view.leases.get(row));
            load.running -= ended.filter(|leased| leased.live.class == class).count() as u64;
            let oldest = self.memory.ages.oldest(class, &gone);
            load.oldest_ready = load.oldest_ready.into_iter().chain(oldest).min();
            load.droppable += self.memory.ages.droppable(class, &gone);
        }
        load
    }

    /// The rows of a queue that may be dropped, those first that have been ready longest.
    fn droppable(&self, gate: usize) -> Vec<i64> {
        let classes = self.classes_of(gate).into_iter();
        let mut all: Vec<(Time, i64)> = classes.flat_map(|(class, _)| self.memory.ages.fresh(class)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, row)| row).collect()
    }

    /// Cancels what makes room, or has waited too long; answers how many that were.
    pub(super) fn drop_all(&mut self, dropped: Dropped, now: Time, applied: &mut Applied) -> Result<u64, Fault> {
        let mut count = 0;
        for (row, error) in dropped {
            let Some(subject) = self.subject(row, None)? else {
                continue;
            };
            let facts = Facts {
                error: Some(error),
                ..Facts::default()
            };
            count += u64::from(self.happen(subject, &Event::Cancel, facts, now, applied)?.is_ok());
        }
        Ok(count)
    }

    /// What has waited longer than its queue keeps it, the oldest of each queue first.
    pub(super) fn too_old(&self, now: Time, limit: usize) -> Dropped {
        let mut dropped = Dropped::new();
        for gate in 0..self.queues.len() {
            let record = self.queues.record(gate);
            let Some(max) = record.settings.drops_over() else {
                continue;
            };
            let is_old = |(since, _): &(Time, i64)| since.plus(max.0) <= now;
            let classes = self.classes_of(gate).into_iter();
            let mut old: Vec<(Time, i64)> = classes
                .flat_map(|(class, _)| self.memory.ages.fresh(class).take_while(is_old).take(limit))
                .collect();
            old.sort_unstable();
            dropped.extend(old.iter().map(|(_, row)| (*row, dropped_for_age(&record.name, max))));
        }
        dropped.truncate(limit);
        dropped
    }

    /// When the first of what is ready has waited as long as its queue keeps it.
    pub(super) fn next_too_old(&self) -> Option<Time> {
        let ends = (0..self.queues.len()).filter_map(|gate| {
            let max = self.queues.record(gate).settings.drops_over()?;
            let classes = self.classes_of(gate).into_iter();
            let first = classes.filter_map(|(class, _)| self.memory.ages.fresh(class).next());
            Some(first.min()?.0.plus(max.0))
        });
        ends.min()
    }

    /// The settings of queues have changed: looks since when what is ready is so, where that is asked for now.
    pub(super) fn look_at_ages(&mut self) -> Result<(), Fault> {
        if !self.follow_ages() || self.memory.ages.queues().is_empty() {
            return Ok(());
        }
        let mut statement = self.db.prepare(&format!("SELECT {COLUMNS} FROM live"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let live = LiveRow::read(row)?;
            // The rows of leased tasks still say that they wait.
            let view = self.shared.view.lock();
            let is_held = view.leases.get(&live.row).is_some_and(|leased| !leased.closing);
            drop(view);
            if !is_held && live.life.is_claimable(self.memory.clock) {
                self.memory.note_ready(&self.shared, &live);
            }
        }
        Ok(())
    }

    /// Follows the ages of what is ready in the queues that ask for them. True when these have changed: then what is ready
    /// now has to be looked at.
    pub(super) fn follow_ages(&mut self) -> bool {
        let queues = self.queues.aged();
        let changed = queues != *self.memory.ages.queues();
        if changed {
            self.memory.ages = Ages::of(queues);
        }
        changed
    }
}
