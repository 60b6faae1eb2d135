//! What people ask of tasks.

use pensum_core::store::{Applied, Call, Command, INBOX_MAX, Rejected};
use pensum_core::task::Unique;
use pensum_core::transition::{Event, EventKind};
use pensum_core::{ErrorInfo, Json, Name, State, TaskId};

use super::error::Fault;
use super::row::{OutcomeRow, mark};
use super::step::{Facts, Origin, Subject};
use super::view::Cell;
use super::writer::Writer;

impl Writer {
    pub(super) fn command(
        &mut self,
        call: &Call,
        tasks: &[TaskId],
        command: &Command,
    ) -> Result<Result<Vec<Result<Applied, Rejected>>, Rejected>, Fault> {
        match self.remembered(call)? {
            Ok(None) => {}
            Ok(Some(_)) => {
                let mut answers = Vec::with_capacity(tasks.len());
                for id in tasks {
                    let state = self.state_of(&call.namespace, *id)?;
                    answers.push(Ok(Applied {
                        state,
                        ..Applied::default()
                    }));
                }
                return Ok(Ok(answers));
            }
            Err(rejected) => return Ok(Err(rejected)),
        }
        let mut answers = Vec::with_capacity(tasks.len());
        for id in tasks {
            answers.push(self.command_one(call, *id, command)?);
        }
        // A refusal changed nothing, so a repeat may well find it possible.
        if answers.iter().any(Result::is_ok) {
            self.remember(call, tasks.iter().copied())?;
        }
        Ok(Ok(answers))
    }

    fn state_of(&self, namespace: &str, id: TaskId) -> Result<Option<State>, Fault> {
        if !self.exists(namespace, id)? {
            return Ok(None);
        }
        match self.subject(id.row(), Some(id))? {
            Some(subject) => Ok(Some(subject.live.life.state)),
            None => OutcomeRow::state_of(&self.db, id.row()),
        }
    }

    /// A task, ended or not.
    fn any_subject(&self, namespace: &str, id: TaskId) -> Result<Option<Subject>, Fault> {
        if !self.exists(namespace, id)? {
            return Ok(None);
        }
        if let Some(subject) = self.subject(id.row(), Some(id))? {
            return Ok(Some(subject));
        }
        match OutcomeRow::load(&self.db, id.row())? {
            Some(outcome) => Ok(Some(self.ended_subject(outcome, id)?)),
            None => Ok(None),
        }
    }

    fn command_one(&mut self, call: &Call, id: TaskId, command: &Command) -> Result<Result<Applied, Rejected>, Fault> {
        let Some(subject) = self.any_subject(&call.namespace, id)? else {
            return Ok(Err(Rejected::NotFound(id)));
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
            Command::Retry => return self.retry(call, subject, facts),
            Command::RunNow => Event::RunNow,
            Command::Signal { name, payload } => return self.signal(call, subject, name, payload),
            Command::Delete => return self.delete(call, subject),
        };
        self.carry_out(call, subject, &event, facts)
    }

    fn carry_out(
        &mut self,
        call: &Call,
        subject: Subject,
        event: &Event,
        facts: Facts,
    ) -> Result<Result<Applied, Rejected>, Fault> {
        let (id, holder) = (subject.id, subject.live.life.lease);
        let mut applied = Applied::default();
        match self.happen(subject, event, facts, call.now, &mut applied)? {
            Ok(effects) => applied.interrupt = effects.interrupt,
            Err(rejected) => return Ok(Err(rejected)),
        }
        if let Some(lease) = holder.filter(|_| applied.interrupt.is_some()) {
            self.shared.nodes.lock().commanded(lease.node);
        }
        applied.state = self.state_of(&call.namespace, id)?;
        Ok(Ok(applied))
    }

    fn retry(&mut self, call: &Call, subject: Subject, facts: Facts) -> Result<Result<Applied, Rejected>, Fault> {
        let row = subject.live.row;
        let unmet: u32 = self
            .db
            .prepare_cached(
                "SELECT count(*) FROM dependency WHERE dependent = ?
                 AND EXISTS (SELECT 1 FROM live WHERE live.row = prerequisite)",
            )?
            .query_row([row], |r| r.get(0))?;
        let accepted_by = match &subject.origin {
            Origin::Outcome(outcome) => match self.accepted_again(call, outcome)? {
                Ok(accepted_by) => accepted_by,
                Err(rejected) => return Ok(Err(rejected)),
            },
            _ => None,
        };
        let event = Event::Retry { unmet, accepted_by };
        let Origin::Outcome(outcome) = &subject.origin else {
            return self.carry_out(call, subject, &event, facts);
        };
        if pensum_core::apply(&subject.live.life, &event, call.now).is_ok() {
            if subject.live.marks & mark::UNIQUE != 0
                && let Some(holder) = self.retake_unique(call, row, subject.id)?
            {
                return Ok(Err(Rejected::UniqueTakenByOther {
                    task: subject.id,
                    holder,
                }));
            }
            self.unfold_outcome(outcome)?;
            if unmet > 0 {
                let mut statement = self.db.prepare_cached(
                    "SELECT prerequisite FROM dependency WHERE dependent = ?
                     AND EXISTS (SELECT 1 FROM live WHERE live.row = prerequisite)",
                )?;
                for prerequisite in statement.query_map([row], |r| r.get(0))? {
                    self.memory.awaited.insert(prerequisite?);
                }
            }
            if let Some(parent) = subject.live.parent {
                *self.memory.children.entry(parent).or_default() += 1;
            }
            let mut subject = subject;
            subject.live.marks |= mark::EVENTS | mark::EXECUTIONS | mark::START;
            return self.carry_out(call, subject, &event, facts);
        }
        self.carry_out(call, subject, &event, facts)
    }

    /// Takes the unique key again for a task that runs again; answers who has it instead.
    fn retake_unique(&self, call: &Call, row: i64, id: TaskId) -> Result<Option<TaskId>, Fault> {
        let (handler, key, ttl): (Name, Option<Name>, Option<i64>) = self
            .db
            .prepare_cached(
                "SELECT c.handler, t.unique_key, t.unique_ttl FROM task t JOIN class c ON c.id = t.class
                 WHERE t.row = ?",
            )?
            .query_row([row], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
        let Some(key) = key else { return Ok(None) };
        match self.unique_holder(&call.namespace, &handler, &key, call.now)? {
            Some(holder) if holder != id => Ok(Some(holder)),
            _ => {
                let ttl = ttl.map(|m| std::time::Duration::from_micros(m.max(0) as u64));
                let unique = Unique {
                    key,
                    ttl,
                    on_conflict: Default::default(),
                };
                self.take_unique(&call.namespace, &handler, &unique, row, call.now)?;
                Ok(None)
            }
        }
    }

    /// Writes out what the outcome row stood for beside the outcome: its events and its execution.
    fn unfold_outcome(&self, outcome: &OutcomeRow) -> Result<(), Fault> {
        let life = &outcome.life;
        let finished_at = life.finished_at.unwrap_or(life.run_at);
        if outcome.status.is_some()
            && outcome.marks & mark::START == 0
            && let Some(started_at) = life.started_at
        {
            self.put_event(
                outcome.row,
                outcome.seq - 1,
                started_at,
                EventKind::Started,
                None,
                life.attempt,
                None,
            )?;
        }
        let kind = super::reads::terminal_kind(life.state);
        let error = outcome.error.as_ref();
        self.put_event(
            outcome.row,
            outcome.seq,
            finished_at,
            kind,
            outcome.actor.as_ref(),
            life.attempt,
            error,
        )?;
        let id = self.id_of(outcome.row)?;
        if let Some(execution) = super::reads::last_execution(&self.shared.catalog, outcome, id) {
            self.put_execution(outcome.row, &execution)?;
        }
        self.db
            .prepare_cached("DELETE FROM outcome WHERE row = ?")?
            .execute([outcome.row])?;
        Ok(())
    }

    fn signal(
        &mut self,
        call: &Call,
        mut subject: Subject,
        name: &Name,
        payload: &Json,
    ) -> Result<Result<Applied, Rejected>, Fault> {
        let (id, row, state) = (subject.id, subject.live.row, subject.live.life.state);
        if state.is_terminal() {
            let why = "it has ended; nobody reads its signals";
            return Ok(Err(Rejected::Forbidden { task: id, state, why }));
        }
        let unread: i64 = self
            .db
            .prepare_cached("SELECT count(*) FROM inbox WHERE row = ?")?
            .query_row([row], |r| r.get(0))?;
        if unread >= INBOX_MAX as i64 {
            return Ok(Err(Rejected::InboxFull(id)));
        }
        let run = match &subject.origin {
            Origin::Lease(run) => Some(run.clone()),
            _ => None,
        };
        let seq = self.log(
            &mut subject.live,
            run.as_ref(),
            call.now,
            EventKind::Signalled,
            Some(&call.actor),
            None,
        )?;
        self.db
            .prepare_cached("INSERT INTO inbox(row, seq, name, payload, at) VALUES (?, ?, ?, ?, ?)")?
            .execute((row, seq as i64, name, payload.get(), call.now.as_micros()))?;
        subject.live.version += 1;
        subject.live.marks |= mark::INBOX;
        let wakes = subject.live.life.signal.as_ref() == Some(name);
        if matches!(subject.origin, Origin::Queue) {
            // As a plain task it would be claimed without a look at its row, which says more now.
            let mut view = self.shared.view.lock();
            let cell = self.memory.unplace(&self.shared, &mut view, &subject.live);
            self.group.count(subject.live.class, cell, -1);
            let cell = self.memory.place(&self.shared, &mut view, &subject.live);
            self.group.count(subject.live.class, cell, 1);
        }
        self.rewrite(&subject, call.now)?;
        if wakes {
            return self.carry_out(call, subject, &Event::Signalled, Facts::default());
        }
        Ok(Ok(Applied {
            state: Some(state),
            ..Applied::default()
        }))
    }

    /// Writes a change of an unfinished task's row that moves it nowhere.
    pub(super) fn rewrite(&mut self, subject: &Subject, now: pensum_core::Time) -> Result<(), Fault> {
        match subject.origin {
            Origin::Lease(_) => {
                self.group
                    .count(subject.live.class, Cell::of_leased(&subject.live.life), -1);
                self.stay(subject.live.clone(), now)
            }
            _ => subject.live.save(&self.db, now),
        }
    }

    fn delete(&mut self, call: &Call, subject: Subject) -> Result<Result<Applied, Rejected>, Fault> {
        let Subject { live, id, origin } = subject;
        let state = live.life.state;
        if state == State::Running {
            return Ok(Err(Rejected::Forbidden {
                task: id,
                state,
                why: "it is running; cancel it first",
            }));
        }
        let dependants: i64 = self
            .db
            .prepare_cached(
                "SELECT count(*) FROM dependency WHERE prerequisite = ?
                 AND EXISTS (SELECT 1 FROM live WHERE live.row = dependent)",
            )?
            .query_row([live.row], |r| r.get(0))?;
        if dependants > 0 {
            return Ok(Err(Rejected::HasDependants {
                task: id,
                dependants: dependants as u64,
            }));
        }
        let mut applied = Applied::default();
        let ended = matches!(origin, Origin::Outcome(_));
        if ended {
            self.group.count(live.class, Cell::of_end(state), -1);
            let ended_by_attempt = matches!(&origin, Origin::Outcome(o) if o.status.is_some());
            self.group
                .count(live.class, Cell::Executions, -i64::from(ended_by_attempt));
        } else {
            let cell = {
                let mut view = self.shared.view.lock();
                self.memory.unplace(&self.shared, &mut view, &live)
            };
            self.group.count(live.class, cell, -1);
            self.answer_for(live.row, live.life.accepted_by, None);
            applied.ended.push((id, State::Cancelled));
        }
        self.erase(live.row, live.class, live.marks)?;
        if let (Some(parent), false) = (live.parent, ended) {
            self.child_deleted(parent, call.now, &mut applied)?;
        }
        Ok(Ok(applied))
    }

    /// Removes every trace of a row, whether it ended or not. Its own counts are the caller's to change.
    pub(super) fn erase(&mut self, row: i64, class: u32, marks: u32) -> Result<(), Fault> {
        let delete = |sql: &str| -> Result<usize, Fault> { Ok(self.db.prepare_cached(sql)?.execute([row])?) };
        delete("DELETE FROM task WHERE row = ?")?;
        delete("DELETE FROM live WHERE row = ?")?;
        delete("DELETE FROM outcome WHERE row = ?")?;
        delete("DELETE FROM dependency WHERE prerequisite = ?")?;
        let tables: [(u32, &str); 9] = [
            (mark::DEPENDS, "DELETE FROM dependency WHERE dependent = ?"),
            (mark::CHECKPOINT, "DELETE FROM checkpoint WHERE row = ?"),
            (mark::INBOX, "DELETE FROM inbox WHERE row = ?"),
            (mark::STEPS, "DELETE FROM step WHERE row = ?"),
            (mark::UNIQUE, "DELETE FROM unique_key WHERE row = ?"),
            (mark::LOGS, "DELETE FROM log WHERE row = ?"),
            (mark::EVENTS, "DELETE FROM event WHERE row = ?"),
            (mark::TAGS, "DELETE FROM tag WHERE row = ?"),
            (mark::EXECUTIONS, "DELETE FROM execution WHERE row = ?"),
        ];
        let mut executions = 0;
        for (_, sql) in tables.iter().filter(|(mark, _)| marks & mark != 0) {
            executions = delete(sql)?;
        }
        if marks & mark::EXECUTIONS != 0 {
            self.group.count(class, Cell::Executions, -(executions as i64));
        }
        self.memory.fresh.take(row);
        self.memory.awaited.remove(&row);
        Ok(())
    }
}
