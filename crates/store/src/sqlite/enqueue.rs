//! Enqueue: decides first (every rejection), then writes.

use pensum_core::agent::Demand;
use pensum_core::store::{Applied, Call, Enqueued, IDEMPOTENCY_TTL, Rejected};
use pensum_core::task::{Dependency, OnConflict, OnDependencyFailure, Unique};
use pensum_core::transition::Event;
use pensum_core::{ErrorInfo, Lifecycle, Name, NewTask, Priority, Spec, State, TaskId, Time};
use rusqlite::{OptionalExtension, params};

use super::capacity::Dropped;
use super::error::Fault;
use super::row::{LiveRow, OutcomeRow, mark};
use super::step::{Facts, dependency_failed};
use super::verb::Prepared;
use super::view::Cell;
use super::writer::Writer;

/// Where an item of a batch goes.
#[derive(Clone, Copy)]
enum Place {
    New,
    Existing(TaskId),
    /// An earlier item of the batch has its unique key.
    Same(usize),
}

/// A batch that may be written.
pub(super) struct Plan {
    /// Empty when every item is new.
    places: Vec<Place>,
    /// Unstarted tasks that lose their unique key.
    replaced: Vec<TaskId>,
    /// What makes room for the rest in a full queue.
    dropped: Dropped,
}

/// Who enqueues, where, and when.
pub(super) struct Origin<'a> {
    pub(super) namespace: &'a Name,
    /// `None`: the parent, as its children say themselves.
    pub(super) actor: Option<&'a Name>,
    pub(super) now: Time,
}

impl Writer {
    pub(super) fn enqueue(
        &mut self,
        call: &Call,
        tasks: Vec<Prepared>,
    ) -> Result<Result<Vec<Enqueued>, Rejected>, Fault> {
        match self.remembered(call)? {
            Ok(None) => {}
            Ok(Some(ids)) => return Ok(Ok(ids.into_iter().map(|id| Enqueued { id, created: false }).collect())),
            Err(rejected) => return Ok(Err(rejected)),
        }
        let plan = match self.plan(&call.namespace, &tasks, call.now)? {
            Ok(plan) => plan,
            Err(rejected) => return Ok(Err(rejected)),
        };
        let origin = Origin {
            namespace: &call.namespace,
            actor: Some(&call.actor),
            now: call.now,
        };
        let enqueued = self.write_batch(&origin, tasks, plan)?;
        if call.idempotency.is_some() {
            self.remember(call, enqueued.iter().map(|e| e.id))?;
        }
        Ok(Ok(enqueued))
    }

    /// Finds every reason to refuse a batch; changes nothing.
    pub(super) fn plan(
        &self,
        namespace: &Name,
        tasks: &[Prepared],
        now: Time,
    ) -> Result<Result<Plan, Rejected>, Fault> {
        let mut places = Vec::new();
        let mut replaced = Vec::new();
        let depends = tasks.iter().any(|t| !t.task.depends_on.is_empty());
        if depends {
            let items = tasks.len();
            let unknown = pensum_core::graph::find_unknown_item(items, tasks.iter().map(|t| &t.task));
            if let Some((item, position, index)) = unknown {
                return Ok(Err(Rejected::UnknownItem {
                    item,
                    position,
                    index,
                    items,
                }));
            }
            if let Some(cycle) = find_cycle(tasks, &places) {
                return Ok(Err(Rejected::Cycle(cycle)));
            }
            for (item, task) in tasks.iter().enumerate() {
                for (position, dependency) in task.task.depends_on.iter().enumerate() {
                    if let Dependency::Task(id) = dependency
                        && !self.exists(namespace, *id)?
                    {
                        return Ok(Err(Rejected::UnknownDependency {
                            item,
                            position,
                            id: *id,
                        }));
                    }
                }
            }
        }
        if tasks.iter().any(|t| t.task.unique.is_some()) {
            let mut taken: std::collections::HashMap<(Name, Name), usize> = std::collections::HashMap::new();
            for (item, task) in tasks.iter().enumerate() {
                match self.place_unique(namespace, &task.task, item, now, &mut taken, &mut replaced)? {
                    Ok(place) => places.push(place),
                    Err(rejected) => return Ok(Err(rejected)),
                }
            }
            // Items that stand for one task may wait for each other through it.
            if depends && let Some(cycle) = find_cycle(tasks, &places) {
                return Ok(Err(Rejected::Cycle(cycle)));
            }
        }
        let is_new = |item: usize| matches!(places.get(item), None | Some(Place::New));
        let dropped = match self.make_room(namespace, tasks, &is_new, &replaced, now)? {
            Ok(dropped) => dropped,
            Err(rejected) => return Ok(Err(rejected)),
        };
        Ok(Ok(Plan {
            places,
            replaced,
            dropped,
        }))
    }

    fn place_unique(
        &self,
        namespace: &Name,
        task: &NewTask,
        item: usize,
        now: Time,
        taken: &mut std::collections::HashMap<(Name, Name), usize>,
        replaced: &mut Vec<TaskId>,
    ) -> Result<Result<Place, Rejected>, Fault> {
        let Some(unique) = &task.unique else {
            return Ok(Ok(Place::New));
        };
        let scope = (task.spec.handler.clone(), unique.key.clone());
        if let Some(earlier) = taken.get(&scope) {
            if unique.on_conflict == OnConflict::Reject {
                return Ok(Err(Rejected::UniqueTwice {
                    item,
                    earlier: *earlier,
                    key: unique.key.clone(),
                }));
            }
            return Ok(Ok(Place::Same(*earlier)));
        }
        taken.insert(scope, item);
        let holder = self.unique_holder(namespace, &task.spec.handler, &unique.key, now)?;
        Ok(match (holder, unique.on_conflict) {
            (None, _) => Ok(Place::New),
            (Some(holder), OnConflict::Reject) => Err(Rejected::UniqueTaken {
                item,
                key: unique.key.clone(),
                holder,
            }),
            (Some(holder), OnConflict::Replace) if self.is_unstarted(holder)? => {
                replaced.push(holder);
                Ok(Place::New)
            }
            (Some(holder), _) => Ok(Place::Existing(holder)),
        })
    }

    fn is_unstarted(&self, id: TaskId) -> Result<bool, Fault> {
        Ok(self
            .subject(id.row(), Some(id))?
            .is_some_and(|s| !s.live.life.has_started()))
    }

    /// True when the namespace has this task.
    pub(super) fn exists(&self, namespace: &str, id: TaskId) -> Result<bool, Fault> {
        let mut statement = self.db.prepare_cached("SELECT id, class FROM task WHERE row = ?")?;
        let found: Option<([u8; 16], u32)> = statement
            .query_row([id.row()], |r| Ok((r.get(0)?, r.get(1)?)))
            .optional()?;
        Ok(found.is_some_and(|(bytes, class)| {
            bytes == *id.as_bytes()
                && self
                    .shared
                    .catalog
                    .class(class)
                    .is_some_and(|class| *class.namespace == *namespace)
        }))
    }

    /// Who has a unique key.
    pub(super) fn unique_holder(
        &self,
        namespace: &str,
        handler: &str,
        key: &str,
        now: Time,
    ) -> Result<Option<TaskId>, Fault> {
        let mut statement = self.db.prepare_cached(
            "SELECT t.id, u.expires_at FROM unique_key u JOIN task t ON t.row = u.row
             WHERE u.namespace = ? AND u.handler = ? AND u.key = ?",
        )?;
        let found: Option<([u8; 16], Option<i64>)> = statement
            .query_row((namespace, handler, key), |r| Ok((r.get(0)?, r.get(1)?)))
            .optional()?;
        Ok(found
            .filter(|(_, at)| at.is_none_or(|at| at > now.as_micros()))
            .map(|(id, _)| TaskId::from_bytes(id)))
    }

    /// Gives a unique key to a row.
    pub(super) fn take_unique(
        &self,
        namespace: &str,
        handler: &str,
        unique: &Unique,
        row: i64,
        now: Time,
    ) -> Result<(), Fault> {
        self.db
            .prepare_cached("REPLACE INTO unique_key(namespace, handler, key, row, expires_at) VALUES (?, ?, ?, ?, ?)")?
            .execute(params![
                namespace,
                handler,
                unique.key,
                row,
                unique.ttl.map(|ttl| now.plus(ttl).as_micros())
            ])?;
        Ok(())
    }

    /// Writes a batch that [`Writer::plan`] found good.
    pub(super) fn write_batch(
        &mut self,
        origin: &Origin<'_>,
        tasks: Vec<Prepared>,
        plan: Plan,
    ) -> Result<Vec<Enqueued>, Fault> {
        let now = origin.now;
        for old in plan.replaced {
            let error = Some(ErrorInfo::new("replaced", "a newer task took its unique key"));
            if let Some(subject) = self.subject(old.row(), Some(old))? {
                let facts = Facts {
                    actor: origin.actor.cloned(),
                    error,
                    ..Facts::default()
                };
                // It had not started a moment ago, in this very transaction.
                let _ = self.happen(subject, &Event::Cancel, facts, now, &mut Applied::default())?;
            }
        }
        self.drop_all(plan.dropped, now, &mut Applied::default())?;
        let mut ids: Vec<Enqueued> = Vec::with_capacity(tasks.len());
        for item in 0..tasks.len() {
            ids.push(match plan.places.get(item) {
                None | Some(Place::New) => {
                    self.next_row += 1;
                    Enqueued {
                        id: TaskId::mint(now, self.next_row - 1, self.bits.next()),
                        created: true,
                    }
                }
                Some(Place::Existing(id)) => Enqueued {
                    id: *id,
                    created: false,
                },
                Some(Place::Same(earlier)) => Enqueued {
                    id: ids[*earlier].id,
                    created: false,
                },
            });
        }
        let actor = match origin.actor {
            Some(actor) => Some(self.names.name(&self.db, &self.shared.catalog, actor)?),
            None => None,
        };
        let mut ended = Vec::new();
        for (item, task) in tasks.into_iter().enumerate() {
            if ids[item].created {
                self.write_task(origin, actor, ids[item].id, task, &ids, &mut ended)?;
            }
        }
        // Dependencies that had ended before count once the whole batch is in: an item may name a later one.
        for (row, of, state) in ended {
            let Some(subject) = self.subject(row, None)? else {
                continue;
            };
            let completed = state == State::Completed;
            let error = (!completed).then(|| dependency_failed(of, state));
            let facts = Facts {
                error,
                ..Facts::default()
            };
            let _ = self.happen(
                subject,
                &Event::DependencyEnded(completed),
                facts,
                now,
                &mut Applied::default(),
            )?;
        }
        Ok(ids)
    }

    fn write_task(
        &mut self,
        origin: &Origin<'_>,
        actor: Option<u32>,
        id: TaskId,
        prepared: Prepared,
        ids: &[Enqueued],
        ended: &mut Vec<(i64, TaskId, State)>,
    ) -> Result<(), Fault> {
        let (row, now) = (id.row(), origin.now);
        let Prepared { task, details } = prepared;
        let spec = &task.spec;
        let class = (origin.namespace, &spec.queue, &spec.handler, Demand::of(spec));
        let class = self.class(class)?;
        let plain = details.is_none()
            && task.unique.is_none()
            && task.depends_on.is_empty()
            && task.run_at.is_none()
            && spec.key.is_none()
            && spec.deadline.is_none();
        self.insert_task(row, id, class, actor, now, &task, details.as_deref())?;
        if plain {
            self.put_plain(row, class, spec.priority, now)?;
        }
        let ready = plain || self.write_special(origin, class, id, &task, ids, ended)? == Cell::Ready;
        // What waits would keep the place of what is claimed soon.
        if ready && self.memory.fresh.has_room() {
            self.memory.fresh.put(id, task.spec, now);
        }
        Ok(())
    }

    /// Writes the scheduling row of a task that asks for nothing but to run, and is due.
    pub(super) fn put_plain(&mut self, row: i64, class: u32, priority: Priority, run_at: Time) -> Result<(), Fault> {
        let level = (priority != Priority::Normal).then(|| priority.level());
        self.db
            .prepare_cached("INSERT INTO live(row, class, run_at, priority) VALUES (?, ?, ?, ?)")?
            .execute((row, class, run_at.as_micros(), level))?;
        self.memory.stand_plain(&self.shared, class, priority, row, run_at);
        self.memory.ages.enter(&self.shared.catalog, class, row, run_at, true);
        self.group.count(class, Cell::Ready, 1);
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the columns of one row")]
    pub(super) fn insert_task(
        &self,
        row: i64,
        id: TaskId,
        class: u32,
        actor: Option<u32>,
        now: Time,
        task: &NewTask,
        details: Option<&str>,
    ) -> Result<(), Fault> {
        let spec = &task.spec;
        let plain = details.is_none()
            && task.unique.is_none()
            && spec.key.is_none()
            && spec.deadline.is_none()
            && spec.timeout.is_none()
            && spec.max_retries.is_none()
            && spec.priority == Priority::Normal;
        if plain {
            // Binding five columns instead of eighteen is a sixth of the time of an enqueue.
            self.db
                .prepare_cached(
                    "INSERT INTO task(row, id, class, created_at, actor, parameters) VALUES (?, ?, ?, ?, ?, ?)",
                )?
                .execute((row, id.as_bytes(), class, now.as_micros(), actor, spec.parameters.get()))?;
            return Ok(());
        }
        let rare = spec.details.as_deref();
        self.db
            .prepare_cached(
                "INSERT INTO task(row, id, class, created_at, actor, parameters, priority, deadline, timeout,
                 max_retries, key, details, parent, workflow, created_by, assigned_to, unique_key, unique_ttl)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                row,
                id.as_bytes(),
                class,
                now.as_micros(),
                actor,
                spec.parameters.get(),
                (spec.priority != Priority::Normal).then(|| spec.priority.level()),
                spec.deadline.map(Time::as_micros),
                spec.timeout.map(|t| t.as_micros() as i64),
                spec.max_retries,
                spec.key,
                details,
                rare.and_then(|d| d.parent_id).map(TaskId::row),
                rare.and_then(|d| d.workflow_id).map(TaskId::row),
                rare.and_then(|d| d.created_by.as_deref()),
                rare.and_then(|d| d.assigned_to.as_deref()),
                task.unique.as_ref().map(|u| &u.key),
                task.unique.as_ref().and_then(|u| u.ttl).map(|t| t.as_micros() as i64),
            ])?;
        for tag in rare.map(|d| d.tags.as_slice()).unwrap_or_default() {
            self.put_tag(tag, row)?;
        }
        Ok(())
    }

    pub(super) fn put_tag(&self, tag: &str, row: i64) -> Result<(), Fault> {
        self.db
            .prepare_cached("INSERT OR IGNORE INTO tag(tag, row) VALUES (?, ?)")?
            .execute((tag, row))?;
        Ok(())
    }

    /// Writes the scheduling row of a task that asks for more than to run; answers where it counts.
    fn write_special(
        &mut self,
        origin: &Origin<'_>,
        class: u32,
        id: TaskId,
        task: &NewTask,
        ids: &[Enqueued],
        ended: &mut Vec<(i64, TaskId, State)>,
    ) -> Result<Cell, Fault> {
        let (row, now, spec) = (id.row(), origin.now, &task.spec);
        let mut live = LiveRow {
            deadline: spec.deadline,
            key: spec.key.clone(),
            expires_at: spec.expires_at(),
            queue_timeout: spec.queue_timeout(),
            parent: spec.details.as_ref().and_then(|d| d.parent_id).map(TaskId::row),
            ..LiveRow::plain(row, class, spec.priority, now)
        };
        if spec.details.as_ref().is_some_and(|d| !d.tags.is_empty()) {
            live.marks |= mark::TAGS;
        }
        if let Some(unique) = &task.unique {
            self.take_unique(origin.namespace, &spec.handler, unique, row, now)?;
            live.marks |= mark::UNIQUE;
        }
        let unmet = self.write_dependencies(row, task, ids, ended)?;
        if unmet > 0 {
            live.marks |= mark::DEPENDS;
        }
        live.life = Lifecycle {
            accepted_by: task.accepted_by,
            ..Lifecycle::new(now, task.run_at, unmet, policy(spec))
        };
        live.save(&self.db, now)?;
        self.memory
            .accepted
            .extend(task.accepted_by.map(|process| (process, row)));
        if let Some(parent) = live.parent {
            *self.memory.children.entry(parent).or_default() += 1;
        }
        let cell = {
            let mut view = self.shared.view.lock();
            self.memory.place(&self.shared, &mut view, &live)
        };
        self.group.count(class, cell, 1);
        Ok(cell)
    }

    /// Writes what a task depends on; answers how many. Those that have ended are noted, to be counted later.
    fn write_dependencies(
        &mut self,
        row: i64,
        task: &NewTask,
        ids: &[Enqueued],
        ended: &mut Vec<(i64, TaskId, State)>,
    ) -> Result<u32, Fault> {
        let mut seen: Vec<i64> = Vec::with_capacity(task.depends_on.len());
        let mut unique = std::collections::HashSet::new();
        for dependency in &task.depends_on {
            let (id, is_new) = match dependency {
                Dependency::Task(id) => (*id, false),
                Dependency::Item(item) => (ids[*item].id, ids[*item].created),
            };
            if !unique.insert(id) {
                continue;
            }
            self.db
                .prepare_cached("INSERT INTO dependency(dependent, position, prerequisite) VALUES (?, ?, ?)")?
                .execute((row, seen.len() as i64, id.row()))?;
            seen.push(id.row());
            let state = if is_new {
                None
            } else {
                OutcomeRow::state_of(&self.db, id.row())?
            };
            match state {
                Some(state) => ended.push((row, id, state)),
                None => {
                    self.memory.awaited.insert(id.row());
                }
            }
        }
        Ok(seen.len() as u32)
    }

    /// The ids that the same request answered before.
    pub(super) fn remembered(&self, call: &Call) -> Result<Result<Option<Vec<TaskId>>, Rejected>, Fault> {
        let Some(key) = &call.idempotency else {
            return Ok(Ok(None));
        };
        let mut statement = self
            .db
            .prepare_cached("SELECT digest, ids, expires_at FROM idempotency WHERE namespace = ? AND key = ?")?;
        let found: Option<([u8; 32], Vec<u8>, i64)> = statement
            .query_row((&call.namespace, &key.key), |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
            .optional()?;
        Ok(match found {
            None => Ok(None),
            Some((.., expires_at)) if expires_at <= call.now.as_micros() => Ok(None),
            Some((digest, ..)) if digest != key.digest => Err(Rejected::IdempotencyMismatch),
            Some((_, ids, _)) => Ok(Some(
                ids.as_chunks::<16>()
                    .0
                    .iter()
                    .map(|bytes| TaskId::from_bytes(*bytes))
                    .collect(),
            )),
        })
    }

    /// Remembers what a request answered.
    pub(super) fn remember(&self, call: &Call, ids: impl Iterator<Item = TaskId>) -> Result<(), Fault> {
        let Some(key) = &call.idempotency else { return Ok(()) };
        let bytes: Vec<u8> = ids.flat_map(|id| *id.as_bytes()).collect();
        self.db
            .prepare_cached("REPLACE INTO idempotency(namespace, key, digest, ids, expires_at) VALUES (?, ?, ?, ?, ?)")?
            .execute(params![
                call.namespace,
                key.key,
                key.digest,
                bytes,
                call.now.plus(IDEMPOTENCY_TTL).as_micros()
            ])?;
        Ok(())
    }
}

/// A cycle among the items of a batch, as far as their places are known.
fn find_cycle(tasks: &[Prepared], places: &[Place]) -> Option<Vec<usize>> {
    let edges = |item: usize| {
        tasks[item].task.depends_on.iter().filter_map(|d| match d {
            Dependency::Item(index) => match places.get(*index) {
                Some(Place::Same(earlier)) => Some(*earlier),
                _ => Some(*index),
            },
            Dependency::Task(_) => None,
        })
    };
    pensum_core::graph::find_cycle_in(tasks.len(), edges)
}

fn policy(spec: &Spec) -> OnDependencyFailure {
    spec.details
        .as_ref()
        .map(|d| d.on_dependency_failure)
        .unwrap_or_default()
}
