//! What people ask of tasks: commands and changes.

use super::{Facts, Model};
use crate::input::Patch;
use crate::outcome::ErrorInfo;
use crate::store::{Applied, Call, Command, INBOX_MAX, Rejected, Signal, StoreError, TaskEvent};
use crate::task::TaskRecord;
use crate::transition::{Event, EventKind};
use crate::{State, TaskId, Time};

impl Model {
    pub(super) fn commands(
        &mut self,
        call: &Call,
        tasks: &[TaskId],
        command: &Command,
    ) -> Result<Vec<Result<Applied, Rejected>>, StoreError> {
        if self.remembered(call)?.is_some() {
            let state = |model: &Model, id: &TaskId| model.find(&call.namespace, *id).map(|e| e.lifecycle.state);
            return Ok(tasks
                .iter()
                .map(|id| {
                    Ok(Applied {
                        state: state(self, id),
                        ..Applied::default()
                    })
                })
                .collect());
        }
        let results: Vec<_> = tasks.iter().map(|id| self.command(call, *id, command)).collect();
        // A refusal changed nothing, so a repeat may well find it possible.
        if results.iter().any(Result::is_ok) {
            self.remember(call, tasks.to_vec());
        }
        Ok(results)
    }

    fn command(&mut self, call: &Call, id: TaskId, command: &Command) -> Result<Applied, Rejected> {
        let Some(entry) = self.find(&call.namespace, id) else {
            return Err(Rejected::NotFound(id));
        };
        let mut facts = Facts {
            actor: Some(call.actor.clone()),
            ..Facts::default()
        };
        let event = match command {
            Command::Cancel { reason } => {
                let message = reason.clone().unwrap_or_else(|| format!("cancelled by {}", call.actor));
                facts.error = Some(ErrorInfo::new("cancelled", message));
                Event::Cancel
            }
            Command::Pause => Event::Pause,
            Command::Resume => Event::Resume,
            Command::Retry => {
                let unmet = self.unfinished_dependencies(entry);
                let state = entry.lifecycle.state;
                let accepted_by = entry
                    .spec
                    .accepted_again(state, call.process)
                    .map_err(|refusal| Rejected::from_refusal(id, state, refusal))?;
                self.retake_unique(call, id)?;
                Event::Retry { unmet, accepted_by }
            }
            Command::RunNow => Event::RunNow,
            Command::Signal { name, payload } => {
                return self.signal(
                    call,
                    id,
                    Signal {
                        seq: 0,
                        name: name.clone(),
                        payload: payload.clone(),
                        at: call.now,
                    },
                );
            }
            Command::Delete => return self.delete(id, call.now),
        };
        let cancel = facts.error.clone();
        let mut applied = Applied::default();
        let effects = self.happen(id.row(), &event, facts, call.now, &mut applied)?;
        applied.interrupt = effects.interrupt;
        let Some(entry) = self.entry(id) else {
            return Err(Rejected::NotFound(id));
        };
        applied.state = Some(entry.lifecycle.state);
        if entry.lifecycle.state == State::Running && cancel.is_some() {
            entry.cancel_reason = cancel;
            entry.error = None;
        }
        let holder = entry.lifecycle.lease.filter(|_| applied.interrupt.is_some());
        if let Some(lease) = holder {
            self.commanded(lease.node);
        }
        Ok(applied)
    }

    /// A task that runs again needs its unique key again.
    fn retake_unique(&mut self, call: &Call, id: TaskId) -> Result<(), Rejected> {
        let Some(entry) = self.find(&call.namespace, id) else {
            return Err(Rejected::NotFound(id));
        };
        let ended = matches!(entry.lifecycle.state, State::Failed | State::Cancelled);
        let (Some(unique), true) = (entry.unique.clone(), ended) else {
            return Ok(());
        };
        let handler = entry.spec.handler.clone();
        match self.unique_holder(&call.namespace, &handler, &unique, call.now) {
            Some(holder) if holder != id => Err(Rejected::UniqueTakenByOther { task: id, holder }),
            _ => {
                self.take_unique(&call.namespace, &handler, &unique, id.row(), call.now);
                Ok(())
            }
        }
    }

    fn signal(&mut self, call: &Call, id: TaskId, signal: Signal) -> Result<Applied, Rejected> {
        let seq = self.seq();
        let Some(entry) = self.entry(id) else {
            return Err(Rejected::NotFound(id));
        };
        let state = entry.lifecycle.state;
        if state.is_terminal() {
            let why = "it has ended; nobody reads its signals";
            return Err(Rejected::Forbidden { task: id, state, why });
        }
        if entry.inbox.len() >= INBOX_MAX {
            return Err(Rejected::InboxFull(id));
        }
        let wakes = entry.lifecycle.signal.as_ref() == Some(&signal.name);
        entry.inbox.push_back(Signal { seq, ..signal });
        entry.version += 1;
        entry.events.push(TaskEvent {
            seq,
            at: call.now,
            kind: EventKind::Signalled,
            actor: Some(call.actor.clone()),
            attempt: entry.lifecycle.attempt,
            error: None,
        });
        let mut applied = Applied::default();
        if wakes {
            self.happen(id.row(), &Event::Signalled, Facts::default(), call.now, &mut applied)?;
        }
        applied.state = self.entry(id).map(|e| e.lifecycle.state);
        Ok(applied)
    }

    fn delete(&mut self, id: TaskId, now: Time) -> Result<Applied, Rejected> {
        let Some(entry) = self.entry(id) else {
            return Err(Rejected::NotFound(id));
        };
        let state = entry.lifecycle.state;
        if state == State::Running {
            return Err(Rejected::Forbidden {
                task: id,
                state,
                why: "it is running; cancel it first",
            });
        }
        let waits = |e: &&super::Entry| e.depends_on.contains(&id) && !e.lifecycle.state.is_terminal();
        let dependants = self.tasks.values().filter(waits).count() as u64;
        if dependants > 0 {
            return Err(Rejected::HasDependants { task: id, dependants });
        }
        let mut applied = Applied::default();
        if !state.is_terminal() {
            // Whoever waits for it learns that it will not come.
            applied.ended.push((id, State::Cancelled));
        }
        let parent = self.find_parent(id);
        self.remove(id.row());
        if let Some(parent) = parent.filter(|_| !state.is_terminal())
            && self.unfinished_children(parent) == 0
        {
            // A parent that does not wait for children refuses, which is fine.
            let _ = self.happen(parent.row(), &Event::ChildrenEnded, Facts::default(), now, &mut applied);
        }
        Ok(applied)
    }

    fn find_parent(&self, id: TaskId) -> Option<TaskId> {
        self.tasks
            .get(&id.row())
            .and_then(|e| e.spec.details.as_ref())
            .and_then(|d| d.parent_id)
    }

    /// Takes a task out of the store with everything that names it.
    pub(super) fn remove(&mut self, row: i64) {
        let Some(entry) = self.tasks.remove(&row) else { return };
        self.unique.retain(|_, hold| hold.row != row);
        for other in self.tasks.values_mut() {
            other.depends_on.retain(|id| *id != entry.id);
        }
    }

    pub(super) fn update(
        &mut self,
        call: &Call,
        id: TaskId,
        patch: &Patch,
        expected_version: Option<u64>,
    ) -> Result<TaskRecord, Rejected> {
        match self.remembered(call) {
            Ok(None) => {}
            Ok(Some(_)) => {
                return self
                    .find(&call.namespace, id)
                    .map(|e| e.record())
                    .ok_or(Rejected::NotFound(id));
            }
            Err(mismatch) => return Err(mismatch),
        }
        let Some(entry) = self.find(&call.namespace, id) else {
            return Err(Rejected::NotFound(id));
        };
        if let Some(expected) = expected_version.filter(|v| *v != entry.version) {
            return Err(Rejected::VersionMismatch {
                task: id,
                expected,
                found: entry.version,
            });
        }
        if let Some(why) = patch.refusal(&entry.lifecycle) {
            return Err(Rejected::Forbidden {
                task: id,
                state: entry.lifecycle.state,
                why,
            });
        }
        if let Some(at) = patch.start(call.now) {
            let facts = Facts {
                actor: Some(call.actor.clone()),
                ..Facts::default()
            };
            self.happen(
                id.row(),
                &Event::Reschedule(at),
                facts,
                call.now,
                &mut Applied::default(),
            )?;
        }
        let seq = self.seq();
        let Some(entry) = self.entry(id) else {
            return Err(Rejected::NotFound(id));
        };
        patch.apply_to(&mut entry.spec);
        entry.version += 1;
        entry.events.push(TaskEvent {
            seq,
            at: call.now,
            kind: EventKind::Updated,
            actor: Some(call.actor.clone()),
            attempt: entry.lifecycle.attempt,
            error: None,
        });
        let record = entry.record();
        self.remember(call, vec![id]);
        Ok(record)
    }
}
