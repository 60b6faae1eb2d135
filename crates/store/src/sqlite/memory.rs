//! The writer's memory of unfinished tasks: the ready order, timers, and who waits for whom. Rebuilt from `live`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::FixedState;
use pensum_core::{Json, Lifecycle, NodeId, Spec, State, TaskId, Time, WaitingFor};
use rusqlite::Connection;

use super::ageing::Ageing;
use super::ages::Ages;
use super::error::Fault;
use super::order::{Entry, Key, Order, Rank};
use super::row::{COLUMNS, LiveRow};
use super::view::{Cell, Shared, View};

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Wake,
    Expire,
    QueueTimeout,
}

/// A task that was just enqueued.
#[derive(Clone)]
pub(super) struct FreshTask {
    pub(super) id: TaskId,
    pub(super) spec: Arc<Spec>,
    pub(super) created_at: Time,
}

/// What was just enqueued, so that a claim soon after needs no read.
#[derive(Default)]
pub(super) struct Fresh {
    specs: HashMap<i64, FreshTask, FixedState>,
    bytes: usize,
}

/// How much of just-enqueued tasks stays in memory, in bytes of their texts and some for each.
const FRESH_MAX: usize = 16 << 20;

fn weight(spec: &Spec) -> usize {
    let json = |json: Option<&Json>| json.map_or(0, |json| json.get().len());
    let details = spec.details.as_ref().map_or(0, |details| {
        let texts = details.description.iter().chain(&details.tags).map(String::len);
        let webhooks = details.webhooks.iter().map(|webhook| webhook.get().len());
        let free = json(details.metadata.as_ref()) + json(details.execution_context.as_ref());
        500 + free + texts.chain(webhooks).sum::<usize>()
    });
    spec.parameters.get().len() + details + 250
}

impl Fresh {
    /// True while there is room. The oldest are claimed first, so a full cache takes no more instead of forgetting.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < FRESH_MAX
    }

    pub(super) fn put(&mut self, id: TaskId, spec: Spec, created_at: Time) {
        self.bytes += weight(&spec);
        self.specs.insert(
            id.row(),
            FreshTask {
                id,
                spec: Arc::new(spec),
                created_at,
            },
        );
    }

    pub(super) fn take(&mut self, row: i64) -> Option<FreshTask> {
        let found = self.specs.remove(&row)?;
        self.bytes -= weight(&found.spec).min(self.bytes);
        if self.specs.is_empty() {
            // A map keeps its peak size otherwise.
            *self = Fresh::default();
        }
        Some(found)
    }
}

/// The writer's memory.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) order: Order,
    pub(super) ageing: Ageing,
    pub(super) timers: BTreeSet<(Time, i64, Timer)>,
    /// Unfinished children, by parent row.
    pub(super) children: HashMap<i64, u32, FixedState>,
    /// Rows that unfinished tasks may depend on.
    pub(super) awaited: HashSet<i64, FixedState>,
    /// Unfinished tasks that are not durable, by the process that accepted them.
    pub(super) accepted: BTreeSet<(NodeId, i64)>,
    pub(super) fresh: Fresh,
    pub(super) ages: Ages,
    /// The latest time seen; [`CLOCK_UNKNOWN`] before the first.
    pub(super) clock: Time,
    /// Plain tasks were taken for due up to this time, without knowing the present.
    pub(super) taken_for_due: Time,
}

/// What the clock shows before a verb has named the time.
pub(super) const CLOCK_UNKNOWN: Time = Time::from_micros(i64::MIN);

/// The key of a task with the namespace that it holds in.
pub(super) fn key_of(shared: &Shared, live: &LiveRow) -> Option<Key> {
    let key = live.key.clone()?;
    Some((shared.catalog.class(live.class)?.namespace.clone(), key))
}

fn later_cell(life: &Lifecycle) -> Cell {
    if life.failures > 0 && life.backing_off {
        Cell::Retrying
    } else {
        Cell::Later
    }
}

/// The timers of an unleased task.
fn timers(live: &LiveRow) -> impl Iterator<Item = (Time, i64, Timer)> {
    let life = &live.life;
    let row = live.row;
    let queued = life.state == State::Queued;
    let free = queued && life.waiting_for.is_none() && life.paused_at.is_none();
    let expire = live
        .expires_at
        .filter(|_| queued && !life.has_started())
        .map(|at| (at, row, Timer::Expire));
    let overdue = live
        .queue_timeout
        .filter(|_| free)
        .map(|t| (live.life.ready_from().plus(t), row, Timer::QueueTimeout));
    let waits = life.state == State::Waiting && life.paused_at.is_none();
    let wake = life.wake_at.filter(|_| waits).map(|at| (at, row, Timer::Wake));
    [expire, overdue, wake].into_iter().flatten()
}

impl Memory {
    /// Where a task stands in the ready order, or would.
    pub(super) fn entry(&self, shared: &Shared, live: &LiveRow) -> Entry {
        Entry {
            class: live.class,
            rank: Rank::new(self.ageing.level(live), live.deadline, live.row),
            key: key_of(shared, live),
            suspect: live.life.suspect,
        }
    }

    /// Puts an unleased task where it belongs; answers where it counts.
    pub(super) fn place(&mut self, shared: &Shared, view: &mut View, live: &LiveRow) -> Cell {
        self.timers.extend(timers(live));
        let life = &live.life;
        if life.paused_at.is_some() {
            return Cell::Paused;
        }
        match life.state {
            State::Waiting => Cell::Running,
            _ if life.waiting_for == Some(WaitingFor::Dependencies) => Cell::Dependencies,
            _ if life.run_at > self.clock => {
                let cell = later_cell(life);
                view.later
                    .insert((life.run_at, live.row), (live.class, cell == Cell::Retrying));
                cell
            }
            _ => {
                self.stand(shared, live);
                self.note_ready(shared, live);
                Cell::Ready
            }
        }
    }

    /// Takes an unleased task out of where [`Memory::place`] put it; answers where it counted.
    pub(super) fn unplace(&mut self, shared: &Shared, view: &mut View, live: &LiveRow) -> Cell {
        for timer in timers(live) {
            self.timers.remove(&timer);
        }
        let life = &live.life;
        if life.paused_at.is_some() {
            return Cell::Paused;
        }
        match life.state {
            State::Waiting => Cell::Running,
            _ if life.waiting_for == Some(WaitingFor::Dependencies) => Cell::Dependencies,
            _ if view.later.remove(&(life.run_at, live.row)).is_some() => later_cell(life),
            _ => {
                self.unstand(shared, live);
                self.ages.leave(live.row);
                Cell::Ready
            }
        }
    }

    /// Takes the timers of a task that was just claimed.
    pub(super) fn forget_timers(&mut self, live: &LiveRow) {
        self.ageing.forget(live.row);
        for timer in timers(live) {
            self.timers.remove(&timer);
        }
    }

    /// Takes what is overdue at `now` out of the way of others: of the turn of its key, for in a closed queue no claim comes by
    /// to do so, and of the tokens of its queue, for which those behind it would wait. The reaper may be a while.
    pub(super) fn pass_over(&mut self, shared: &Shared, db: &Connection, now: Time) -> Result<(), Fault> {
        let due = self.timers.iter().take_while(|(at, ..)| *at <= now);
        let rows: Vec<i64> = due
            .filter(|(.., timer)| *timer != Timer::Wake)
            .map(|(_, row, _)| *row)
            .collect();
        let is_before_others = |live: &LiveRow| {
            let class = shared.catalog.class(live.class);
            live.key.is_some() || class.is_some_and(|class| class.demand.units > 1)
        };
        for row in rows {
            if let Some(live) = LiveRow::load(db, row)?.filter(is_before_others) {
                self.unstand(shared, &live);
            }
        }
        Ok(())
    }

    /// Moves on to `now`, and whatever came due by then into the ready order.
    pub(super) fn advance(&mut self, shared: &Shared, db: &Connection, now: Time) -> Result<(), Fault> {
        self.clock = self.clock.max(now);
        self.order.now = self.clock;
        let due: Vec<i64> = {
            let mut view = shared.view.lock();
            if view.later.first_key_value().is_none_or(|((at, _), _)| *at > self.clock) {
                return Ok(());
            }
            let rest = view.later.split_off(&(self.clock, i64::MAX));
            let due = std::mem::replace(&mut view.later, rest);
            for (class, retrying) in due.values() {
                view.count(*class, if *retrying { Cell::Retrying } else { Cell::Later }, -1);
                view.count(*class, Cell::Ready, 1);
            }
            due.keys().map(|(_, row)| *row).collect()
        };
        for row in due {
            if let Some(live) = LiveRow::load(db, row)? {
                self.stand(shared, &live);
                self.note_ready(shared, &live);
            }
        }
        Ok(())
    }

    /// Notes since when a task is ready.
    pub(super) fn note_ready(&mut self, shared: &Shared, live: &LiveRow) {
        let (since, is_fresh) = (live.life.ready_from(), !live.life.has_started());
        self.ages.enter(&shared.catalog, live.class, live.row, since, is_fresh);
    }

    /// Rebuilds everything from `live` but for the leases, which are kept, with their keys. Answers the rows that say
    /// that they run, or should stop, though nobody holds them.
    pub(super) fn rebuild(&mut self, shared: &Shared, db: &Connection) -> Result<Vec<i64>, Fault> {
        let (clock, order) = (self.clock, self.order.emptied());
        *self = Memory {
            clock,
            order,
            ages: Ages::of(self.ages.queues().clone()),
            ..Memory::default()
        };
        let mut orphans = Vec::new();
        let mut view = {
            let view = shared.view.lock();
            View {
                leases: view.leases.clone(),
                nodes: view.nodes.clone(),
                held: view.held.clone(),
                ..View::default()
            }
        };
        let scanned = self.scan(shared, db, &mut view, &mut orphans);
        let mut live_view = shared.view.lock();
        *live_view = view;
        drop(live_view);
        scanned?;
        Ok(orphans)
    }

    fn scan(&mut self, shared: &Shared, db: &Connection, view: &mut View, orphans: &mut Vec<i64>) -> Result<(), Fault> {
        let mut statement = db.prepare("SELECT class, completed, failed, cancelled, executions FROM counter")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let class: u32 = row.get(0)?;
            for (column, cell) in [Cell::Completed, Cell::Failed, Cell::Cancelled, Cell::Executions]
                .into_iter()
                .enumerate()
            {
                view.count(class, cell, row.get(column + 1)?);
            }
        }
        for leased in view.leases.values_mut() {
            leased.closing = false;
            // A transaction that was undone may have counted lines, and marked the row, in vain.
            leased.log_lines = None;
        }
        let held: Vec<(u32, Cell)> = view
            .leases
            .values()
            .map(|l| (l.live.class, Cell::of_leased(&l.live.life)))
            .collect();
        for (class, cell) in held {
            view.count(class, cell, 1);
        }
        let mut statement = db.prepare(&format!("SELECT {COLUMNS} FROM live ORDER BY row"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let live = LiveRow::read(row)?;
            let plain = row.get_ref(4)? == rusqlite::types::ValueRef::Null;
            self.accepted
                .extend(live.life.accepted_by.map(|process| (process, live.row)));
            if let Some(parent) = live.parent {
                *self.children.entry(parent).or_default() += 1;
            }
            if let Some(leased) = view.leases.get(&live.row) {
                if let Some(key) = key_of(shared, &leased.live) {
                    self.order.hold(&key, live.row, live.class);
                }
                continue;
            }
            let life = &live.life;
            if life.state == State::Running || life.cancel_requested_at.or(life.pause_requested_at).is_some() {
                orphans.push(live.row);
                view.count(live.class, Cell::Running, 1);
            } else if plain && (life.run_at <= self.clock || self.clock == CLOCK_UNKNOWN) {
                // A plain task was due when it was written. It is not any more where the clock was set back since.
                self.taken_for_due = self.taken_for_due.max(life.run_at);
                self.stand_plain(shared, live.class, live.priority, live.row, life.run_at);
                self.note_ready(shared, &live);
                view.count(live.class, Cell::Ready, 1);
            } else {
                let cell = self.place(shared, view, &live);
                view.count(live.class, cell, 1);
            }
        }
        let mut statement = db.prepare(
            "SELECT DISTINCT prerequisite FROM dependency WHERE EXISTS (SELECT 1 FROM live WHERE row = prerequisite)",
        )?;
        for row in statement.query_map([], |row| row.get::<_, i64>(0))? {
            self.awaited.insert(row?);
        }
        Ok(())
    }
}
