//! Reads, prune and verify.

use super::{Entry, Model};
use crate::query::{Counts, Page, Paged, TaskFilter};
use crate::store::{Pruned, Retention, Verified};
use crate::task::{Details, Execution, ExecutionStatus, TaskRecord};
use crate::{State, Status, TaskId, Time, WaitingFor};

impl Model {
    pub(super) fn find(&self, namespace: &str, id: TaskId) -> Option<&Entry> {
        self.tasks
            .get(&id.row())
            .filter(|e| e.id == id && &*e.namespace == namespace)
    }

    pub(super) fn list(&self, namespace: &str, filter: &TaskFilter, page: &Page, now: Time) -> Paged<TaskRecord> {
        let mut rows = self.tasks.range(..page.before_row.unwrap_or(i64::MAX)).rev();
        let mut items: Vec<(i64, TaskRecord)> = Vec::new();
        for (row, entry) in rows.by_ref() {
            if &*entry.namespace == namespace && matches(entry, filter, now) {
                items.push((*row, entry.record()));
            }
            if items.len() > page.limit {
                break;
            }
        }
        let more = items.len() > page.limit;
        items.truncate(page.limit);
        let next = items.last().filter(|_| more).map(|(row, _)| *row);
        Paged {
            items: items.into_iter().map(|(_, record)| record).collect(),
            next,
        }
    }

    pub(super) fn all_executions(&self, namespace: &str, page: &Page) -> Paged<Execution> {
        let mut items = Vec::new();
        let mut next = None;
        for (row, entry) in self.tasks.range(..page.before_row.unwrap_or(i64::MAX)).rev() {
            if &*entry.namespace != namespace || entry.executions.is_empty() {
                continue;
            }
            if items.len() >= page.limit {
                return Paged { items, next };
            }
            items.extend(entry.executions.iter().rev().cloned());
            next = Some(*row);
        }
        Paged { items, next: None }
    }

    pub(super) fn counts(&self, namespace: &str, now: Time) -> Counts {
        let mut counts = Counts::default();
        for entry in self.tasks.values().filter(|e| &*e.namespace == namespace) {
            let queue = counts.queues.entry(entry.spec.queue.to_string()).or_default();
            *queue.of_mut(Status::of(&entry.lifecycle, now)) += 1;
            counts.executions += entry.executions.len() as u64;
            counts.dead_letters += u64::from(entry.lifecycle.dead_lettered_at.is_some());
        }
        counts
    }

    pub(super) fn prune(&mut self, retention: Retention, now: Time, limit: usize) -> Pruned {
        let old = |e: &Entry| {
            let keep = if e.lifecycle.state == State::Failed {
                retention.failed
            } else {
                retention.completed
            };
            e.lifecycle.state.is_terminal() && e.lifecycle.finished_at.is_some_and(|at| at.plus(keep) <= now)
        };
        let needed: Vec<TaskId> = self
            .tasks
            .values()
            .filter(|e| !e.lifecycle.state.is_terminal())
            .flat_map(|e| e.depends_on.iter().copied())
            .collect();
        let rows: Vec<i64> = self
            .tasks
            .iter()
            .filter(|(_, e)| old(e) && !needed.contains(&e.id))
            .map(|(row, _)| *row)
            .take(limit)
            .collect();
        for row in &rows {
            self.remove(*row);
        }
        self.unique.retain(|_, hold| hold.expires_at.is_none_or(|at| at > now));
        self.idempotency.retain(|_, remembered| remembered.expires_at > now);
        Pruned {
            removed: rows.len() as u64,
            more: rows.len() == limit,
        }
    }

    pub(super) fn verify(&self) -> Verified {
        let mut verified = Verified {
            tasks: self.tasks.len() as u64,
            violations: Vec::new(),
        };
        let mut say = |sentence: String| {
            if verified.violations.len() < crate::store::VIOLATIONS_MAX {
                verified.violations.push(sentence);
            }
        };
        for entry in self.tasks.values() {
            let (id, task) = (entry.id, &entry.lifecycle);
            if (task.state == State::Running) != task.lease.is_some() {
                say(format!("task {id} is {} with lease {:?}", task.state, task.lease));
            }
            if task.state.is_terminal() != task.finished_at.is_some() {
                say(format!(
                    "task {id} is {} with finished_at {:?}",
                    task.state, task.finished_at
                ));
            }
            let unfinished = self.unfinished_dependencies(entry);
            if task.unmet > 0 && task.unmet != unfinished {
                say(format!(
                    "task {id} counts {} unmet dependencies, it has {unfinished}",
                    task.unmet
                ));
            }
            if (task.unmet > 0) != (task.waiting_for == Some(WaitingFor::Dependencies)) && !task.state.is_terminal() {
                say(format!(
                    "task {id} waits for {:?} with {} unmet dependencies",
                    task.waiting_for, task.unmet
                ));
            }
        }
        verified
    }
}

/// The attempts of a task, with the one that goes on now.
pub(super) fn executions(entry: &Entry) -> Vec<Execution> {
    let mut executions = entry.executions.clone();
    let task = &entry.lifecycle;
    if let Some(started_at) = task
        .started_at
        .filter(|_| task.state == State::Running || task.same_attempt)
    {
        executions.push(Execution {
            task: entry.id,
            attempt: task.attempt,
            executor_id: entry
                .holder
                .as_ref()
                .map(|h| h.executor.to_string())
                .unwrap_or_default(),
            status: ExecutionStatus::Running,
            started_at,
            finished_at: None,
            usage: Default::default(),
            result: None,
            error: None,
        });
    }
    executions
}

fn matches(entry: &Entry, filter: &TaskFilter, now: Time) -> bool {
    fn is<T: PartialEq + ?Sized>(wanted: Option<&T>, found: Option<&T>) -> bool {
        wanted.is_none() || wanted == found
    }
    let spec = &entry.spec;
    let plain = Details::default();
    let details = spec.details.as_deref().unwrap_or(&plain);
    (filter.status.is_empty() || filter.status.contains(&Status::of(&entry.lifecycle, now)))
        && is(filter.queue.as_ref(), Some(&spec.queue))
        && is(filter.handler.as_ref(), Some(&spec.handler))
        && is(
            filter.task_type.as_deref(),
            Some(details.task_type.as_deref().unwrap_or("custom")),
        )
        && is(filter.priority.as_ref(), Some(&spec.priority))
        && is(filter.assigned_to.as_ref(), details.assigned_to.as_ref())
        && is(filter.agent_id.as_ref(), details.agent_id.as_ref())
        && is(filter.created_by.as_ref(), details.created_by.as_ref())
        && is(filter.key.as_ref(), spec.key.as_ref())
        && filter.tag.as_ref().is_none_or(|tag| details.tags.contains(tag))
        && is(filter.workflow_id.as_ref(), details.workflow_id.as_ref())
        && is(filter.parent_id.as_ref(), details.parent_id.as_ref())
        && filter.created_after.is_none_or(|at| entry.created_at >= at)
        && filter.created_before.is_none_or(|at| entry.created_at < at)
        && filter
            .dead_lettered
            .is_none_or(|dead| entry.lifecycle.dead_lettered_at.is_some() == dead)
        && filter.q.as_deref().is_none_or(|q| mentions(q, &spec.handler, details))
}

fn mentions(q: &str, handler: &str, details: &Details) -> bool {
    let q = q.to_lowercase();
    [Some(handler), details.name.as_deref(), details.description.as_deref()]
        .into_iter()
        .flatten()
        .any(|text| text.to_lowercase().contains(&q))
}
