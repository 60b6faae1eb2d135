//! Which tasks queues take, and which they drop for them. Only queues with such limits are locked for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use pensum_core::capacity::{Entrance, Load, dropped_for_age, dropped_for_newer};
use pensum_core::queue::QueueRecord;
use pensum_core::store::{Applied, Rejected};
use pensum_core::transition::Event;
use pensum_core::{ErrorInfo, Name, TaskId, Time};
use tokio_postgres::Row;

use super::counts::read_cell;
use super::enqueue::Prepared;
use super::error::Fault;
use super::gated::{COUNT_ALL, HOLD};
use super::pool::{Statement, Value};
use super::queue;
use super::row::{self, Cell, gate};
use super::step::{Facts, Work};

/// What makes room for newer tasks, with the reason.
pub(super) type Dropped = Vec<(i64, ErrorInfo)>;

/// How often what may be dropped is looked for again, because others started it meanwhile.
const LOOKS_MAX: usize = 5;

/// Fails, with [`Fault::is_stale`], where queues have changed since they were at a version: what was decided by that one is
/// decided again.
const GUARD: &str = "SELECT 1 / (CASE WHEN (SELECT value FROM pensum.queue_version) = $1::bigint THEN 1 ELSE 0 END)";

/// The classes of queues.
const CLASSES: &str = "classes AS MATERIALIZED (SELECT q.id AS queue, c.id AS class FROM pensum.queue q
    JOIN pensum.class c ON c.namespace = q.namespace AND c.queue = q.name WHERE q.id = ANY($2))";

/// How many tasks of each class of some queues count where. What has come due counts as ready.
static COUNT: LazyLock<String> = LazyLock::new(|| {
    let due = |at: i16, cell: Cell| {
        let is_due = row::is_due(at);
        let (ready, cell) = (Cell::Ready as i16, cell as i16);
        format!(
            "UNION ALL SELECT due.class, changed.cell, changed.n FROM (SELECT class FROM pensum.live WHERE {is_due}) due
             CROSS JOIN (VALUES ({cell}::smallint, -1::bigint), ({ready}::smallint, 1)) AS changed(cell, n)"
        )
    };
    format!(
        "WITH {CLASSES}
         SELECT classes.class, changes.cell, sum(changes.n)::bigint, classes.queue FROM classes JOIN (
           SELECT class, cell, n FROM pensum.counter UNION ALL SELECT class, cell, n FROM pensum.tally {} {}
         ) AS changes ON changes.class = classes.class GROUP BY classes.class, changes.cell, classes.queue",
        due(gate::LATER, Cell::Later),
        due(gate::RETRYING, Cell::Retrying)
    )
});

/// What is ready in some queues, as the table `ready`: which row of which queue, since when, and in which attempt.
static READY: LazyLock<String> = LazyLock::new(|| {
    let at = |what: String| {
        format!(
            "SELECT l.row, classes.queue, coalesce(l.ready_at, l.run_at) AS since, coalesce(l.attempt, 0) AS attempt
             FROM classes JOIN {what} l ON l.class = classes.class"
        )
    };
    let others = [gate::LATER, gate::RETRYING].map(|gate| {
        let is_due = row::is_due(gate);
        at(format!("(SELECT * FROM pensum.live WHERE {is_due})"))
    });
    format!(
        "ready AS ({} WHERE l.gate = 0 UNION ALL {} UNION ALL {})",
        at("pensum.live".to_owned()),
        at(format!(
            "(SELECT * FROM pensum.live WHERE gate <> 0 AND gate = {})",
            gate::KEY
        )),
        others.join(" UNION ALL ")
    )
});

/// Since when the oldest ready task of each queue is so, but for some rows.
static OLDEST: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH {CLASSES}, {} SELECT queue, min(since) FROM ready WHERE row <> ALL($3) GROUP BY queue",
        *READY
    )
});

/// What a queue may drop but for some rows, the oldest first.
static DROPPABLE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH {CLASSES}, {} SELECT row FROM ready WHERE attempt = 0 AND row <> ALL($3)
         ORDER BY since, row LIMIT $4",
        *READY
    )
});

/// What has been ready longer than its queue keeps it, and when the first of the rest will have been.
static TOO_OLD: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH {CLASSES}, {}, fresh AS MATERIALIZED (SELECT ready.row, ready.queue, ready.since, given.age
           FROM ready JOIN unnest($2::integer[], $3::bigint[]) AS given(queue, age) ON given.queue = ready.queue
           WHERE ready.attempt = 0)
         (SELECT row, queue, NULL::bigint FROM fresh WHERE since <= $1 - age ORDER BY since, row LIMIT $4)
         UNION ALL SELECT NULL, NULL, min(since + age) FROM fresh WHERE since > $1 - age",
        *READY
    )
});

fn ids(queues: &[i32]) -> Value<'static> {
    Value::Int4s(queues.iter().copied().map(Some).collect())
}

/// The guard of a decision that was made by the queues at this version.
pub(super) fn guard(version: i64) -> Statement<'static> {
    Statement {
        sql: GUARD,
        params: vec![Value::Int8(Some(version))],
    }
}

/// A queue that this transaction holds.
struct Held {
    id: i32,
    record: QueueRecord,
    load: Load,
    /// What may be dropped for newer tasks; locked.
    oldest: Vec<i64>,
}

/// An unfinished task of a queue as this transaction has made it, which the tables do not show yet.
struct Changed {
    row: i64,
    queue: i32,
    class: u32,
    units: u32,
    /// Since when it is ready, where it is.
    since: Option<Time>,
}

impl Work {
    /// Refuses what meets a limit of its queue, and says what goes to make room for the rest; changes nothing. `is_new` says
    /// of an item that it is a task of its own; those that it replaces have been loaded.
    ///
    /// The queues are locked until the end, so that whoever submits at the same moment counts after this one has committed.
    pub(super) async fn make_room(
        &mut self,
        namespace: &Name,
        tasks: &[Prepared],
        is_new: &(dyn Fn(usize) -> bool + Sync),
        replaced: &[TaskId],
    ) -> Result<Result<Dropped, Rejected>, Fault> {
        let new = tasks.iter().enumerate().filter(|(item, _)| is_new(*item));
        let new: Vec<(usize, &Prepared)> = new.collect();
        let (version, queues) = self
            .inner
            .queues
            .judging(namespace, new.iter().map(|(_, task)| &task.task));
        self.guard(version);
        if queues.is_empty() {
            return Ok(Ok(Dropped::new()));
        }
        let held = self.hold_queues(namespace, &queues, &new, replaced).await?;
        let mut entrances: BTreeMap<Name, Entrance<'_>> = BTreeMap::new();
        for held in &held {
            let mut entrance = Entrance::new(&held.record, held.load, self.now);
            for (is_ready, units) in self.replaced_of(namespace, &held.record.name, replaced).await? {
                entrance.replaced(is_ready, units);
            }
            entrances.insert(held.record.name.clone(), entrance);
        }
        for (item, prepared) in new {
            let Some(entrance) = entrances.get_mut(&prepared.task.spec.queue) else {
                continue;
            };
            if let Err(full) = entrance.admit(&prepared.task) {
                let full = Box::new(full);
                return Ok(Err(Rejected::QueueFull { item, full }));
            }
        }
        let mut dropped = Dropped::new();
        for held in &held {
            let name = &held.record.name;
            let most = entrances.get(name).map_or(0, Entrance::to_drop);
            let max = held.record.settings.max_depth.unwrap_or_default();
            let oldest = held.oldest.iter().take(usize::try_from(most).unwrap_or(usize::MAX));
            dropped.extend(oldest.map(|row| (*row, dropped_for_newer(name, max))));
        }
        Ok(Ok(dropped))
    }

    /// Has the transaction fail where queues have changed since that version.
    fn guard(&mut self, version: i64) {
        if self.guarded != Some(version) {
            self.guarded = Some(version);
            self.extra.push(guard(version));
        }
    }

    /// Of the tasks in a queue that are replaced: whether each is ready, and its units.
    async fn replaced_of(
        &self,
        namespace: &Name,
        queue: &Name,
        replaced: &[TaskId],
    ) -> Result<Vec<(bool, u32)>, Fault> {
        let mut found = Vec::new();
        for task in replaced {
            let Some((_, live)) = self.live(task.row()) else {
                continue;
            };
            let class = self.inner.catalog.class(&self.inner.pool, live.class).await?;
            if (&class.namespace, &class.queue) == (namespace, queue) {
                found.push((live.life.is_claimable(self.now), class.demand.units));
            }
        }
        Ok(found)
    }

    /// Locks queues, counts what is in them, and locks what may be dropped for the new tasks.
    async fn hold_queues(
        &mut self,
        namespace: &Name,
        queues: &[i32],
        new: &[(usize, &Prepared)],
        replaced: &[TaskId],
    ) -> Result<Vec<Held>, Fault> {
        let lock = Statement {
            sql: &HOLD,
            params: vec![ids(queues)],
        };
        let rows = self.tx.pipeline(&[lock]).await?.pop().unwrap_or_default();
        let mut held = Vec::with_capacity(rows.len());
        for row in &rows {
            let (id, _, record) = queue::read(row, 0)?;
            let (load, oldest) = (Load::default(), Vec::new());
            held.push(Held {
                id,
                record,
                load,
                oldest,
            });
        }
        let changed = self.changed_in(namespace, &held, replaced).await?;
        for _ in 0..LOOKS_MAX {
            self.count(&mut held, &changed, replaced).await?;
            let mut all = true;
            for held in &mut held {
                let Some(max) = held.record.settings.drops_beyond() else {
                    continue;
                };
                let coming = new.iter().filter(|(_, task)| task.task.spec.queue == held.record.name);
                let beyond = (held.load.waiting + coming.count() as u64).saturating_sub(u64::from(max));
                if beyond > 0 {
                    let (oldest, is_all) = self.hold_oldest(held.id, beyond, &changed, replaced).await?;
                    all &= is_all;
                    held.load.droppable = oldest.len() as u64;
                    held.oldest = oldest;
                }
            }
            if all {
                break;
            }
        }
        Ok(held)
    }

    /// Counts what is in queues, what this transaction has done so far included; by age without what is replaced.
    async fn count(&mut self, held: &mut [Held], changed: &[Changed], replaced: &[TaskId]) -> Result<(), Fault> {
        let queues: Vec<i32> = held.iter().map(|held| held.id).collect();
        let now = self.now;
        let look = |sql: &'static str| Statement {
            sql,
            params: vec![Value::Int8(Some(now.as_micros())), ids(&queues)],
        };
        let mut looks = vec![
            look(&COUNT),
            Statement {
                sql: &COUNT_ALL,
                params: vec![ids(&queues)],
            },
        ];
        if held.iter().any(|held| held.record.settings.refuses_over().is_some()) {
            let mut oldest = look(&OLDEST);
            oldest.params.push(self.but(replaced));
            looks.push(oldest);
        }
        let answers = self.tx.pipeline(&looks).await?;
        let mut loads: BTreeMap<i32, Load> = BTreeMap::new();
        let mut queue_of: BTreeMap<u32, (i32, u32)> = BTreeMap::new();
        let mut cells: BTreeMap<(u32, Cell), i64> = BTreeMap::new();
        for row in answers.first().into_iter().flatten() {
            let ((class, cell), n) = read_cell(row)?;
            let units = self.inner.catalog.class(&self.inner.pool, class).await?.demand.units;
            queue_of.insert(class, (row.try_get(3)?, units));
            *cells.entry((class, cell)).or_default() += n;
        }
        // Of a class whose first tasks this transaction adds, the tables know nothing yet.
        queue_of.extend(changed.iter().map(|task| (task.class, (task.queue, task.units))));
        let mut leases: BTreeMap<u32, i64> = BTreeMap::new();
        for moved in self.moved() {
            *cells.entry((moved.class, moved.cell)).or_default() += moved.by;
            if moved.is_leased {
                *leases.entry(moved.class).or_default() += moved.by;
            }
        }
        for ((class, cell), n) in cells {
            let Some((queue, units)) = queue_of.get(&class) else {
                continue;
            };
            let (load, n) = (loads.entry(*queue).or_default(), u64::try_from(n).unwrap_or(0));
            match cell {
                Cell::Ready => {
                    load.ready += n;
                    load.ready_units += n * u64::from(*units);
                }
                Cell::Dependencies | Cell::Later | Cell::Retrying | Cell::Paused => {}
                _ => continue,
            }
            load.waiting += n;
        }
        for row in answers.get(1).into_iter().flatten() {
            let queue: i32 = row.try_get(0)?;
            let of_queue = leases
                .iter()
                .filter(|(class, _)| queue_of.get(class).is_some_and(|of| of.0 == queue));
            let running = row.try_get::<_, i64>(1)? + of_queue.map(|(_, n)| n).sum::<i64>();
            loads.entry(queue).or_default().running = u64::try_from(running).unwrap_or(0);
        }
        for row in answers.get(2).into_iter().flatten() {
            let since: Option<i64> = row.try_get(1)?;
            loads.entry(row.try_get(0)?).or_default().oldest_ready = since.map(Time::from_micros);
        }
        for task in changed {
            let load = loads.entry(task.queue).or_default();
            load.oldest_ready = load.oldest_ready.into_iter().chain(task.since).min();
        }
        for held in held {
            held.load = loads.get(&held.id).copied().unwrap_or_default();
        }
        Ok(())
    }

    /// The rows that a look at the tables leaves out: what is replaced, and what this transaction has changed, which the
    /// tables do not show yet.
    fn but(&self, replaced: &[TaskId]) -> Value<'static> {
        let not: BTreeSet<i64> = self.changed_rows().chain(replaced.iter().map(|id| id.row())).collect();
        Value::Int8s(not.into_iter().map(Some).collect())
    }

    /// What this transaction has changed in queues, but for what has ended. What is replaced counts as not ready.
    async fn changed_in(&self, namespace: &Name, held: &[Held], replaced: &[TaskId]) -> Result<Vec<Changed>, Fault> {
        let replaced: BTreeSet<i64> = replaced.iter().map(|id| id.row()).collect();
        let mut place_of: BTreeMap<u32, Option<(i32, u32)>> = BTreeMap::new();
        let mut found = Vec::new();
        for row in self.changed_rows() {
            let Some((_, live)) = self.live(row) else { continue };
            let place = match place_of.get(&live.class) {
                Some(place) => *place,
                None => {
                    let class = self.inner.catalog.class(&self.inner.pool, live.class).await?;
                    let is_of = |held: &&Held| (namespace, &held.record.name) == (&class.namespace, &class.queue);
                    let place = held.iter().find(is_of).map(|held| (held.id, class.demand.units));
                    place_of.insert(live.class, place);
                    place
                }
            };
            let Some((queue, units)) = place else { continue };
            let is_ready = live.life.is_claimable(self.now) && !replaced.contains(&row);
            found.push(Changed {
                row,
                queue,
                class: live.class,
                units,
                since: is_ready.then(|| live.life.ready_from()),
            });
        }
        Ok(found)
    }

    /// Locks some of those that a queue may drop, the oldest first. False when there may be more of them.
    async fn hold_oldest(
        &mut self,
        queue: i32,
        most: u64,
        changed: &[Changed],
        replaced: &[TaskId],
    ) -> Result<(Vec<i64>, bool), Fault> {
        let find = Statement {
            sql: &DROPPABLE,
            params: vec![
                Value::Int8(Some(self.now.as_micros())),
                ids(&[queue]),
                self.but(replaced),
                Value::Int8(Some(i64::try_from(most).unwrap_or(i64::MAX))),
            ],
        };
        let rows = self.tx.pipeline(&[find]).await?.pop().unwrap_or_default();
        let found = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
        self.load_to_end(&found).await?;
        let droppable = found.iter().copied().filter(|row| self.is_droppable(*row)).count() as u64;
        let is_all = droppable == most || (found.len() as u64) < most;
        let ready = changed
            .iter()
            .filter(|task| task.queue == queue && task.since.is_some());
        let all = found.into_iter().chain(ready.map(|task| task.row));
        let all = all.filter(|row| self.is_droppable(*row));
        let since = |row: i64| self.live(row).map(|(_, live)| live.life.ready_from());
        let mut oldest: Vec<(Option<Time>, i64)> = all.map(|row| (since(row), row)).collect();
        oldest.sort_unstable();
        oldest.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        Ok((oldest.into_iter().map(|(_, row)| row).collect(), is_all))
    }

    fn is_droppable(&self, row: i64) -> bool {
        self.live(row)
            .is_some_and(|(_, live)| live.life.is_claimable(self.now) && !live.life.has_started())
    }

    /// Cancels what makes room.
    pub(super) async fn drop_all(&mut self, dropped: Dropped) -> Result<(), Fault> {
        for (row, error) in dropped {
            self.drop_one(row, error, &mut Applied::default()).await?;
        }
        Ok(())
    }

    async fn drop_one(&mut self, row: i64, error: ErrorInfo, applied: &mut Applied) -> Result<bool, Fault> {
        let facts = Facts {
            error: Some(error),
            ..Facts::default()
        };
        Ok(self.happen(row, &Event::Cancel, facts, applied).await?.is_ok())
    }

    /// Cancels what has waited longer than its queue keeps it, at most `limit`; answers how many that were, and when the
    /// first of the rest will have waited as long.
    pub(super) async fn drop_old(&mut self, limit: usize, applied: &mut Applied) -> Result<(u64, Option<Time>), Fault> {
        let inner = Arc::clone(&self.inner);
        let aged = inner.queues.dropping_by_age();
        if aged.is_empty() {
            return Ok((0, None));
        }
        let micros = |age: &pensum_core::time::Span| i64::try_from(age.0.as_micros()).unwrap_or(i64::MAX >> 2);
        let find = Statement {
            sql: &TOO_OLD,
            params: vec![
                Value::Int8(Some(self.now.as_micros())),
                Value::Int4s(aged.iter().map(|(id, ..)| Some(*id)).collect()),
                Value::Int8s(aged.iter().map(|(.., age)| Some(micros(age))).collect()),
                Value::Int8(Some(i64::try_from(limit).unwrap_or(i64::MAX))),
            ],
        };
        let rows: Vec<Row> = self.tx.pipeline(&[find]).await?.pop().unwrap_or_default();
        let (mut old, mut next) = (Vec::new(), None);
        for row in &rows {
            match (row.try_get::<_, Option<i64>>(0)?, row.try_get::<_, Option<i32>>(1)?) {
                (Some(row), Some(queue)) => old.push((row, queue)),
                _ => next = row.try_get::<_, Option<i64>>(2)?.map(Time::from_micros),
            }
        }
        let all: Vec<i64> = old.iter().map(|(row, _)| *row).collect();
        self.load_to_end(&all).await?;
        let mut count = 0;
        for (row, queue) in old {
            let Some((_, name, age)) = aged.iter().find(|(id, ..)| *id == queue) else {
                continue;
            };
            if self.is_droppable(row) {
                let error = dropped_for_age(name, *age);
                count += u64::from(self.drop_one(row, error, applied).await?);
            }
        }
        Ok((count, next))
    }
}
