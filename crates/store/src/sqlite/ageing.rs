//! Tasks that rise in the ready order while they wait, and those that stand elsewhere because their queue has changed.
//!
//! All of it is in memory, and follows from the times that rows keep. Plain tasks rise by the clock without anyone moving
//! them, see `order.rs`; what is here is for those that stand by themselves, in queues that age what waits.

use std::collections::{BTreeSet, HashMap};

use foldhash::fast::FixedState;
use pensum_core::agent::Demand;
use pensum_core::{Name, Priority, Time};
use rusqlite::Connection;

use super::error::Fault;
use super::memory::Memory;
use super::row::{COLUMNS, LiveRow};
use super::view::Shared;
use super::writer::Writer;

/// How many tasks rise in one step.
const RAISED_MAX: usize = 1_000;
/// How many rows are looked at in one step after the settings of queues have changed.
const SWEPT_MAX: usize = 2_000;

/// Where a task stands that rises.
#[derive(Clone, Copy)]
struct Risen {
    level: Priority,
    /// When it rises again.
    next: Option<Time>,
}

/// Who rises when.
#[derive(Default)]
pub(super) struct Ageing {
    risen: HashMap<i64, Risen, FixedState>,
    due: BTreeSet<(Time, i64)>,
    /// Rows up to here stand as their queues say, if not all of them do.
    swept_to: Option<i64>,
}

impl Ageing {
    /// Forgets a task that has left the ready order.
    pub(super) fn forget(&mut self, row: i64) {
        if let Some(Risen { next: Some(at), .. }) = self.risen.remove(&row) {
            self.due.remove(&(at, row));
        }
    }

    /// The level of a task in the ready order.
    pub(super) fn level(&self, live: &LiveRow) -> Priority {
        self.risen.get(&live.row).map_or(live.priority, |risen| risen.level)
    }

    /// When there is something to do next.
    pub(super) fn next_due(&self) -> Option<Time> {
        match self.swept_to {
            Some(_) => Some(Time::EPOCH),
            None => self.due.first().map(|(at, _)| *at),
        }
    }
}

impl Memory {
    /// Puts a task that stands by itself into the ready order.
    pub(super) fn stand(&mut self, shared: &Shared, live: &LiveRow) {
        let rule = self.order.rule(live.class);
        if rule.ageing.is_some() {
            let ready_from = live.life.ready_from();
            let level = rule.level(live.priority, ready_from, self.clock);
            let next = rule.rises_at(live.priority, ready_from, level);
            self.ageing.risen.insert(live.row, Risen { level, next });
            self.ageing.due.extend(next.map(|at| (at, live.row)));
        }
        self.order.push(self.entry(shared, live));
    }

    /// Puts a task that asks for nothing but to run into the ready order.
    pub(super) fn stand_plain(&mut self, shared: &Shared, class: u32, priority: Priority, row: i64, run_at: Time) {
        if !self.order.push_plain(class, priority, row, run_at) {
            self.stand(shared, &LiveRow::plain(row, class, priority, run_at));
        }
    }

    /// Takes a task out of the ready order. False when it was not there.
    pub(super) fn unstand(&mut self, shared: &Shared, live: &LiveRow) -> bool {
        let entry = self.entry(shared, live);
        self.ageing.forget(live.row);
        self.order.remove(&entry)
    }

    /// Lets rise who has waited for long enough, and places anew whose queue has changed: a bounded step.
    fn age(&mut self, shared: &Shared, db: &Connection) -> Result<(), Fault> {
        for _ in 0..RAISED_MAX {
            let Some((_, row)) = self.ageing.due.first().copied().filter(|(at, _)| *at <= self.clock) else {
                break;
            };
            match LiveRow::load(db, row)? {
                Some(live) if self.unstand(shared, &live) => self.stand(shared, &live),
                _ => self.ageing.forget(row),
            }
        }
        self.sweep(shared, db)
    }

    fn sweep(&mut self, shared: &Shared, db: &Connection) -> Result<(), Fault> {
        let Some(swept_to) = self.ageing.swept_to else {
            return Ok(());
        };
        let mut statement = db.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM live WHERE row > ? ORDER BY row LIMIT {SWEPT_MAX}"
        ))?;
        let mut rows = statement.query([swept_to])?;
        let (mut last, mut seen) = (swept_to, 0);
        while let Some(row) = rows.next()? {
            let live = LiveRow::read(row)?;
            (last, seen) = (live.row, seen + 1);
            if !self.order.is_queued(live.class, live.priority, live.row) && self.unstand(shared, &live) {
                self.stand(shared, &live);
            }
        }
        self.ageing.swept_to = (seen == SWEPT_MAX).then_some(last);
        Ok(())
    }
}

impl Writer {
    /// Lets the tasks of each class stand as its queue says. Those that stand otherwise are placed anew step by step.
    pub(super) fn follow_order(&mut self) {
        let rules = self.queues.rules(&self.shared.catalog);
        let known = self.memory.order.rules();
        if rules == known {
            return;
        }
        let is_same = known.iter().zip(&rules).all(|(known, rule)| known == rule);
        self.memory.order.set_rules(rules);
        if !is_same {
            self.memory.ageing.swept_to = Some(0);
        }
    }

    /// The number of a class, whose tasks stand as their queue says.
    pub(super) fn class(&mut self, class: (&Name, &Name, &Name, Demand)) -> Result<u32, Fault> {
        let id = self.names.class(&self.db, &self.shared.catalog, class)?;
        if id as usize >= self.memory.order.rules().len() {
            self.follow_order();
        }
        Ok(id)
    }

    /// One step of what waiting tasks rise by.
    pub(super) fn age(&mut self) -> Result<(), Fault> {
        self.memory.age(&self.shared, &self.db)
    }
}
