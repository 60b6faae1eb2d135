//! Enqueue, unique keys and idempotency keys.

use smallvec::SmallVec;

use super::capacity::Dropped;
use super::{Entry, Facts, Model, Remembered, UniqueHold, dependency_failed};
use crate::graph::{find_cycle, find_cycle_in, find_unknown_item};
use crate::outcome::ErrorInfo;
use crate::store::{Applied, Call, Enqueued, IDEMPOTENCY_TTL, Rejected, StoreError, TaskEvent};
use crate::task::{Dependency, Lifecycle, NewTask, OnConflict, Unique};
use crate::transition::{Event, EventKind};
use crate::{Name, State, TaskId, Time};

/// Where an item of a batch goes.
pub(super) enum Place {
    New(i64),
    Existing(TaskId),
    /// An earlier item of the batch has its unique key.
    Same(usize),
}

/// Refuses dependencies on items that are not there, or that wait for each other.
pub(super) fn check_items(tasks: &[NewTask]) -> Result<(), Rejected> {
    if let Some((item, position, index)) = find_unknown_item(tasks.len(), tasks.iter()) {
        let items = tasks.len();
        return Err(Rejected::UnknownItem {
            item,
            position,
            index,
            items,
        });
    }
    match find_cycle(tasks) {
        None => Ok(()),
        Some(cycle) => Err(Rejected::Cycle(cycle)),
    }
}

impl Model {
    pub(super) fn enqueue(
        &mut self,
        call: &Call,
        tasks: Vec<NewTask>,
        bits: &dyn Fn() -> u64,
    ) -> Result<Vec<Enqueued>, StoreError> {
        if let Some(ids) = self.remembered(call)? {
            return Ok(ids.into_iter().map(|id| Enqueued { id, created: false }).collect());
        }
        check_items(&tasks)?;
        for (item, task) in tasks.iter().enumerate() {
            for (position, dependency) in task.depends_on.iter().enumerate() {
                if let Dependency::Task(id) = dependency
                    && self.find(&call.namespace, *id).is_none()
                {
                    return Err(Rejected::UnknownDependency {
                        item,
                        position,
                        id: *id,
                    }
                    .into());
                }
            }
        }
        let (places, replaced) = self.places(call, &tasks)?;
        // Items that stand for one task may wait for each other through it.
        let edges = |item: usize| {
            tasks[item].depends_on.iter().filter_map(|d| match d {
                Dependency::Item(index) => match places[*index] {
                    Place::Same(earlier) => Some(earlier),
                    _ => Some(*index),
                },
                Dependency::Task(_) => None,
            })
        };
        if let Some(cycle) = find_cycle_in(tasks.len(), edges) {
            return Err(Rejected::Cycle(cycle).into());
        }
        let dropped = self.make_room(call, &tasks, &places, &replaced)?;
        let mut ids: Vec<Enqueued> = Vec::with_capacity(places.len());
        for place in &places {
            ids.push(match place {
                Place::New(row) => Enqueued {
                    id: TaskId::mint(call.now, *row, bits()),
                    created: true,
                },
                Place::Existing(id) => Enqueued {
                    id: *id,
                    created: false,
                },
                Place::Same(item) => Enqueued {
                    id: ids[*item].id,
                    created: false,
                },
            });
        }
        self.next_row += places.iter().filter(|p| matches!(p, Place::New(_))).count() as i64;
        for old in replaced {
            let error = Some(ErrorInfo::new("replaced", "a newer task took its unique key"));
            let facts = Facts {
                actor: Some(call.actor.clone()),
                error,
                ..Facts::default()
            };
            let _ = self.happen(old, &Event::Cancel, facts, call.now, &mut Applied::default());
        }
        self.drop_all(dropped, call.now);
        for (task, place) in tasks.into_iter().zip(&ids) {
            if place.created {
                self.insert(call, place.id, task, &ids);
            }
        }
        // Dependencies count only once the whole batch is in: an item may name a later one.
        for place in &ids {
            if place.created {
                self.count_dependencies(place.id.row(), &ids, call.now);
            }
        }
        self.remember(call, ids.iter().map(|e| e.id).collect());
        Ok(ids)
    }

    /// Decides for every item whether it is new, before anything is written; also the rows that it replaces.
    pub(super) fn places(&self, call: &Call, tasks: &[NewTask]) -> Result<(Vec<Place>, Vec<i64>), Rejected> {
        let mut places: Vec<Place> = Vec::with_capacity(tasks.len());
        let mut replaced = Vec::new();
        let mut row = self.next_row;
        // The key that an earlier item of this batch took, with the item's index.
        let mut taken: Vec<((Name, Name), usize)> = Vec::new();
        for (item, task) in tasks.iter().enumerate() {
            let Some(unique) = &task.unique else {
                places.push(Place::New(row));
                row += 1;
                continue;
            };
            let scope = (task.spec.handler.clone(), unique.key.clone());
            if let Some((_, earlier)) = taken.iter().find(|(s, _)| *s == scope) {
                if unique.on_conflict == OnConflict::Reject {
                    return Err(Rejected::UniqueTwice {
                        item,
                        earlier: *earlier,
                        key: unique.key.clone(),
                    });
                }
                places.push(Place::Same(*earlier));
                continue;
            }
            let held = self.unique_holder(&call.namespace, &scope.0, unique, call.now);
            taken.push((scope, item));
            match (held, unique.on_conflict) {
                (None, _) => {}
                (Some(holder), OnConflict::Reject) => {
                    return Err(Rejected::UniqueTaken {
                        item,
                        key: unique.key.clone(),
                        holder,
                    });
                }
                (Some(holder), OnConflict::Replace) if self.is_unstarted(holder) => replaced.push(holder.row()),
                (Some(holder), _) => {
                    places.push(Place::Existing(holder));
                    continue;
                }
            }
            places.push(Place::New(row));
            row += 1;
        }
        Ok((places, replaced))
    }

    /// Refuses what its queue does not take; answers what goes to make room for the rest.
    pub(super) fn make_room(
        &self,
        call: &Call,
        tasks: &[NewTask],
        places: &[Place],
        replaced: &[i64],
    ) -> Result<Dropped, Rejected> {
        let new = places.iter().zip(tasks).enumerate();
        let new = new.filter(|(_, (place, _))| matches!(place, Place::New(_)));
        let new: Vec<(usize, &NewTask)> = new.map(|(item, (_, task))| (item, task)).collect();
        self.judge(&call.namespace, &new, replaced, call.now)
    }

    fn is_unstarted(&self, id: TaskId) -> bool {
        self.tasks
            .get(&id.row())
            .is_some_and(|e| !e.lifecycle.state.is_terminal() && !e.lifecycle.has_started())
    }

    pub(super) fn unique_holder(&self, namespace: &Name, handler: &Name, unique: &Unique, now: Time) -> Option<TaskId> {
        let hold = self
            .unique
            .get(&(namespace.clone(), handler.clone(), unique.key.clone()))?;
        if hold.expires_at.is_some_and(|at| at <= now) {
            return None;
        }
        self.tasks.get(&hold.row).map(|e| e.id)
    }

    pub(super) fn take_unique(&mut self, namespace: &Name, handler: &Name, unique: &Unique, row: i64, now: Time) {
        let hold = UniqueHold {
            row,
            expires_at: unique.ttl.map(|ttl| now.plus(ttl)),
        };
        self.unique
            .insert((namespace.clone(), handler.clone(), unique.key.clone()), hold);
    }

    fn insert(&mut self, call: &Call, id: TaskId, task: NewTask, ids: &[Enqueued]) {
        let depends_on: Vec<TaskId> = task
            .depends_on
            .iter()
            .map(|d| match d {
                Dependency::Task(id) => *id,
                Dependency::Item(item) => ids[*item].id,
            })
            .collect::<SmallVec<[TaskId; 4]>>()
            .into_iter()
            .fold(Vec::new(), |mut unique, id| {
                if !unique.contains(&id) {
                    unique.push(id);
                }
                unique
            });
        let policy = task
            .spec
            .details
            .as_ref()
            .map(|d| d.on_dependency_failure)
            .unwrap_or_default();
        if let Some(unique) = &task.unique {
            self.take_unique(&call.namespace, &task.spec.handler, unique, id.row(), call.now);
        }
        let unmet = u32::try_from(depends_on.len()).unwrap_or(u32::MAX);
        let created = TaskEvent {
            seq: 0,
            at: call.now,
            kind: EventKind::Created,
            actor: Some(call.actor.clone()),
            attempt: 0,
            error: None,
        };
        let entry = Entry {
            id,
            namespace: call.namespace.clone(),
            created_at: call.now,
            lifecycle: Lifecycle {
                accepted_by: task.accepted_by,
                ..Lifecycle::new(call.now, task.run_at, unmet, policy)
            },
            spec: task.spec,
            holder: None,
            unique: task.unique.map(|u| *u),
            depends_on,
            progress: None,
            result: None,
            error: None,
            cancel_reason: None,
            checkpoint: None,
            version: 1,
            executions: Vec::new(),
            events: vec![created],
            logs: Vec::new(),
            inbox: Default::default(),
            steps: Vec::new(),
        };
        self.tasks.insert(id.row(), entry);
    }

    /// Lets dependencies count that had ended before the batch. Those of the batch itself tell when they end, which may
    /// be in this very call.
    fn count_dependencies(&mut self, row: i64, batch: &[Enqueued], now: Time) {
        let Some(entry) = self.tasks.get(&row) else { return };
        let ended: Vec<(TaskId, State)> = entry
            .depends_on
            .iter()
            .filter(|id| !batch.iter().any(|item| item.created && item.id == **id))
            .filter_map(|id| self.tasks.get(&id.row()).map(|e| (*id, e.lifecycle.state)))
            .filter(|(_, state)| state.is_terminal())
            .collect();
        for (id, state) in ended {
            let completed = state == State::Completed;
            let error = (!completed).then(|| dependency_failed(id, state));
            let facts = Facts {
                error,
                ..Facts::default()
            };
            let _ = self.happen(
                row,
                &Event::DependencyEnded(completed),
                facts,
                now,
                &mut Applied::default(),
            );
            self.drop_error_of_the_waiting(row);
        }
    }

    /// The ids that the same request answered before.
    pub(super) fn remembered(&self, call: &Call) -> Result<Option<Vec<TaskId>>, Rejected> {
        let Some(key) = &call.idempotency else { return Ok(None) };
        match self.idempotency.get(&(call.namespace.clone(), key.key.clone())) {
            Some(found) if found.expires_at <= call.now => Ok(None),
            Some(found) if found.digest == key.digest => Ok(Some(found.ids.clone())),
            Some(_) => Err(Rejected::IdempotencyMismatch),
            None => Ok(None),
        }
    }

    pub(super) fn remember(&mut self, call: &Call, ids: Vec<TaskId>) {
        if let Some(key) = &call.idempotency {
            let remembered = Remembered {
                digest: key.digest,
                ids,
                expires_at: call.now.plus(IDEMPOTENCY_TTL),
            };
            self.idempotency
                .insert((call.namespace.clone(), key.key.clone()), remembered);
        }
    }
}
