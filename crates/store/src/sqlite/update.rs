//! Changes of what a task asks for.

use pensum_core::agent::Demand;
use pensum_core::input::Patch;
use pensum_core::store::{Applied, Call, Rejected};
use pensum_core::transition::{Event, EventKind};
use pensum_core::{Priority, Spec, State, TaskId, TaskRecord, Time};
use rusqlite::params;

use super::error::Fault;
use super::reads::{self, Whereabouts};
use super::row::{LiveRow, mark};
use super::step::{Facts, Origin};
use super::writer::Writer;

impl Writer {
    pub(super) fn update(
        &mut self,
        call: &Call,
        id: TaskId,
        patch: &Patch,
        expected_version: Option<u64>,
    ) -> Result<Result<TaskRecord, Rejected>, Fault> {
        let remembered = match self.remembered(call)? {
            Ok(found) => found.is_some(),
            Err(rejected) => return Ok(Err(rejected)),
        };
        let Some((task, place)) = self.find(&call.namespace, id)? else {
            return Ok(Err(Rejected::NotFound(id)));
        };
        if remembered {
            return Ok(Ok(reads::record(&self.db, task, place)?));
        }
        let (life, found) = match &place {
            Whereabouts::Unfinished(live, _) => (&live.life, u64::from(live.version)),
            Whereabouts::Finished(outcome) => (&outcome.life, u64::from(outcome.version)),
        };
        if let Some(expected) = expected_version.filter(|v| *v != found) {
            return Ok(Err(Rejected::VersionMismatch {
                task: id,
                expected,
                found,
            }));
        }
        if let Some(why) = patch.refusal(life) {
            return Ok(Err(Rejected::Forbidden {
                task: id,
                state: life.state,
                why,
            }));
        }
        if let Some(at) = patch.start(call.now)
            && let Some(subject) = self.subject(id.row(), Some(id))?
        {
            let facts = Facts {
                actor: Some(call.actor.clone()),
                ..Facts::default()
            };
            let event = Event::Reschedule(at);
            if let Err(rejected) = self.happen(subject, &event, facts, call.now, &mut Applied::default())? {
                return Ok(Err(rejected));
            }
        }
        let mut spec = task.spec;
        patch.apply_to(&mut spec);
        let class = (&call.namespace, &spec.queue, &spec.handler, Demand::of(&spec));
        let class = self.class(class)?;
        self.rewrite_task(id.row(), class, &spec)?;
        self.memory.fresh.take(id.row());
        match self.subject(id.row(), Some(id))? {
            Some(subject) => self.update_live(call, subject, class, &spec)?,
            None => self.update_ended(call, id)?,
        }
        self.remember(call, std::iter::once(id))?;
        match self.find(&call.namespace, id)? {
            Some((task, place)) => Ok(Ok(reads::record(&self.db, task, place)?)),
            None => Ok(Err(Rejected::NotFound(id))),
        }
    }

    fn find(&self, namespace: &str, id: TaskId) -> Result<Option<(reads::StoredTask, Whereabouts)>, Fault> {
        let closing = self.shared.view.lock().leases.get(&id.row()).is_some_and(|l| l.closing);
        let seen = self.shared.seen(id.row()).filter(|_| !closing);
        reads::find(&self.db, &self.shared.catalog, namespace, id, seen)
    }

    fn rewrite_task(&self, row: i64, class: u32, spec: &Spec) -> Result<(), Fault> {
        let rare = spec.details.as_deref();
        self.db
            .prepare_cached(
                "UPDATE task SET class = ?, parameters = ?, priority = ?, deadline = ?, timeout = ?, max_retries = ?,
                 details = ?, assigned_to = ? WHERE row = ?",
            )?
            .execute(params![
                class,
                spec.parameters.get(),
                (spec.priority != Priority::Normal).then(|| spec.priority.level()),
                spec.deadline.map(Time::as_micros),
                spec.timeout.map(|t| t.as_micros() as i64),
                spec.max_retries,
                rare.and_then(|d| serde_json::to_string(d).ok()),
                rare.and_then(|d| d.assigned_to.as_deref()),
                row,
            ])?;
        Ok(())
    }

    fn update_live(
        &mut self,
        call: &Call,
        mut subject: super::step::Subject,
        class: u32,
        spec: &Spec,
    ) -> Result<(), Fault> {
        let queued = matches!(subject.origin, Origin::Queue);
        if queued {
            let cell = {
                let mut view = self.shared.view.lock();
                self.memory.unplace(&self.shared, &mut view, &subject.live)
            };
            self.group.count(subject.live.class, cell, -1);
        }
        let live = &mut subject.live;
        debug_assert!(queued || live.class == class, "the class of a held task cannot change");
        live.class = class;
        live.priority = spec.priority;
        live.deadline = spec.deadline;
        live.expires_at = spec.expires_at();
        live.version += 1;
        self.rewrite_tags(live, spec)?;
        let run = match &subject.origin {
            Origin::Lease(run) => Some(run.clone()),
            _ => None,
        };
        self.log(
            &mut subject.live,
            run.as_ref(),
            call.now,
            EventKind::Updated,
            Some(&call.actor),
            None,
        )?;
        self.rewrite(&subject, call.now)?;
        if queued {
            let cell = {
                let mut view = self.shared.view.lock();
                self.memory.place(&self.shared, &mut view, &subject.live)
            };
            self.group.count(class, cell, 1);
        }
        Ok(())
    }

    fn rewrite_tags(&self, live: &mut LiveRow, spec: &Spec) -> Result<(), Fault> {
        let tags = spec.details.as_ref().map(|d| d.tags.as_slice()).unwrap_or_default();
        if live.marks & mark::TAGS != 0 {
            self.db
                .prepare_cached("DELETE FROM tag WHERE row = ?")?
                .execute([live.row])?;
        }
        if !tags.is_empty() {
            live.marks |= mark::TAGS;
        }
        tags.iter().try_for_each(|tag| self.put_tag(tag, live.row))
    }

    /// What may change of an ended task changes no scheduling; only the version and the history of it move on.
    fn update_ended(&mut self, call: &Call, id: TaskId) -> Result<(), Fault> {
        let row = id.row();
        let Some(outcome) = super::row::OutcomeRow::load(&self.db, row)? else {
            return Ok(());
        };
        let mut subject = self.ended_subject(outcome, id)?;
        let stored = reads::stored_task(&self.db, &self.shared.catalog, row)?;
        if let Some(stored) = stored {
            self.rewrite_tags(&mut subject.live, &stored.spec)?;
        }
        self.log(
            &mut subject.live,
            None,
            call.now,
            EventKind::Updated,
            Some(&call.actor),
            None,
        )?;
        debug_assert!(!matches!(
            subject.live.life.state,
            State::Queued | State::Running | State::Waiting
        ));
        let Origin::Outcome(mut outcome) = subject.origin else {
            return Ok(());
        };
        outcome.version += 1;
        outcome.marks = subject.live.marks;
        self.db
            .prepare_cached("DELETE FROM outcome WHERE row = ?")?
            .execute([row])?;
        outcome.insert(&self.db)
    }
}
