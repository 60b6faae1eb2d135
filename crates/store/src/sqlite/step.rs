//! Carrying out transitions: the row, the history, the counts, and whoever waits for the task.

use std::collections::VecDeque;

use pensum_core::store::{Applied, Rejected};
use pensum_core::task::{Execution, ExecutionStatus};
use pensum_core::transition::{Effects, Event, EventKind};
use pensum_core::{ErrorInfo, Json, Name, State, TaskId, Time, Transition, Usage, apply};
use rusqlite::params;

use super::error::Fault;
use super::memory::key_of;
use super::row::{LiveRow, OutcomeRow, mark};
use super::view::Cell;
use super::writer::Writer;

/// Where a task is while something happens to it.
pub(super) enum Origin {
    /// In its row, held by nobody.
    Queue,
    /// Held by a lease of this process.
    Lease(Run),
    /// Held when the process before this one died.
    Orphan(Run),
    /// Ended.
    Outcome(Box<OutcomeRow>),
}

/// One run of a task.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) executor: Name,
    pub(super) taken_at: Time,
}

impl Origin {
    fn run(&self) -> Option<&Run> {
        match self {
            Origin::Lease(run) | Origin::Orphan(run) => Some(run),
            Origin::Queue | Origin::Outcome(_) => None,
        }
    }
}

/// A task to which something happens.
pub(super) struct Subject {
    pub(super) live: LiveRow,
    pub(super) id: TaskId,
    pub(super) origin: Origin,
}

/// What goes with a transition into the record.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) actor: Option<Name>,
    pub(super) error: Option<ErrorInfo>,
    pub(super) result: Option<Json>,
    pub(super) usage: Usage,
}

/// What follows from the end of a task, still to be done: which row, what happens to it, and why.
type Work = VecDeque<(i64, Event, Option<ErrorInfo>)>;

pub(super) fn dependency_failed(id: TaskId, state: State) -> ErrorInfo {
    ErrorInfo::new(
        "dependency_failed",
        format!("task {id}, which it depends on, is {state}"),
    )
}

impl Writer {
    /// The unfinished task in a row.
    pub(super) fn subject(&self, row: i64, id: Option<TaskId>) -> Result<Option<Subject>, Fault> {
        let leased = {
            let view = self.shared.view.lock();
            view.leases.get(&row).filter(|l| !l.closing).map(|l| {
                (
                    l.live.clone(),
                    Run {
                        executor: l.executor.clone(),
                        taken_at: l.taken_at,
                    },
                    l.id,
                )
            })
        };
        let (live, origin, known) = match leased {
            Some((live, run, known)) => (live, Origin::Lease(run), known),
            None => match LiveRow::load(&self.db, row)? {
                Some(live) => (live, Origin::Queue, None),
                None => return Ok(None),
            },
        };
        let id = match id.or(known) {
            Some(id) => id,
            None => self.id_of(row)?,
        };
        Ok(Some(Subject { live, id, origin }))
    }

    /// Carries out an event, and all that follows from it.
    pub(super) fn happen(
        &mut self,
        subject: Subject,
        event: &Event,
        facts: Facts,
        now: Time,
        applied: &mut Applied,
    ) -> Result<Result<Effects, Rejected>, Fault> {
        let state = subject.live.life.state;
        let transition = match apply(&subject.live.life, event, now) {
            Ok(transition) => transition,
            Err(refusal) => return Ok(Err(Rejected::from_refusal(subject.id, state, refusal))),
        };
        let effects = transition.effects;
        let mut work = Work::new();
        self.step(subject, transition, facts, now, applied, &mut work)?;
        self.follow_all(work, now, applied)?;
        Ok(Ok(effects))
    }

    /// A list of work instead of recursion: a chain of a hundred thousand dependants must not overflow the stack.
    fn follow_all(&mut self, mut work: Work, now: Time, applied: &mut Applied) -> Result<(), Fault> {
        while let Some((row, event, error)) = work.pop_front() {
            let Some(subject) = self.subject(row, None)? else {
                continue;
            };
            // One that does not wait (any more) refuses, which is fine.
            if let Ok(transition) = apply(&subject.live.life, &event, now) {
                self.step(
                    subject,
                    transition,
                    Facts {
                        error,
                        ..Facts::default()
                    },
                    now,
                    applied,
                    &mut work,
                )?;
            }
        }
        Ok(())
    }

    fn step(
        &mut self,
        subject: Subject,
        transition: Transition,
        facts: Facts,
        now: Time,
        applied: &mut Applied,
        work: &mut Work,
    ) -> Result<(), Fault> {
        let Subject { mut live, id, origin } = subject;
        let Transition { next, kind, effects } = transition;
        let before = live.life.state;
        self.leave(&live, &origin);
        if live.life.accepted_by != next.accepted_by {
            self.answer_for(live.row, live.life.accepted_by, next.accepted_by);
        }
        live.life = next;
        live.version += 1;
        let mut facts = facts;
        settle_error(&mut live, &mut facts, before, effects);
        if let Some(status) = effects.attempt_ended {
            if let Some(run) = origin.run() {
                self.note_end(live.class, run, status, now);
            }
            self.group.count(live.class, Cell::Executions, 1);
        }
        if effects.ended.is_none() {
            if let Some(status) = effects.attempt_ended {
                live.marks |= mark::EXECUTIONS;
                let execution = Execution {
                    task: id,
                    attempt: live.life.attempt,
                    executor_id: origin.run().map(|run| run.executor.to_string()).unwrap_or_default(),
                    status,
                    started_at: live.life.started_at.unwrap_or(now),
                    finished_at: Some(now),
                    usage: facts.usage,
                    result: None,
                    error: facts.error.clone().or_else(|| live.error.clone()),
                };
                self.put_execution(live.row, &execution)?;
            }
            let error = live.error.clone();
            self.log(&mut live, origin.run(), now, kind, facts.actor.as_ref(), error.as_ref())?;
            if kind == EventKind::CancelRequested {
                live.cancel_reason = live.error.take().map(|e| e.message);
            } else if matches!(kind, EventKind::DependencyMet | EventKind::DependenciesMet)
                && live.error.as_ref().is_some_and(|e| e.kind == "dependency_failed")
            {
                // A dependency's failure is the error of a task that it cancelled, not of one that ignores it.
                live.error = None;
            }
        }
        match effects.ended {
            Some(state) => {
                self.end(live, id, state, effects.attempt_ended, facts, &origin, work)?;
                applied.ended.push((id, state));
            }
            None if live.life.state == State::Running => self.stay(live, now)?,
            None => {
                live.save(&self.db, now)?;
                if let Origin::Lease(_) = origin {
                    self.close_lease(&live);
                }
                let cell = {
                    let mut view = self.shared.view.lock();
                    self.memory.place(&self.shared, &mut view, &live)
                };
                self.group.count(live.class, cell, 1);
                if before.is_terminal() {
                    self.revived(live.row, work)?;
                }
            }
        }
        Ok(())
    }

    /// Whoever still waits for a task that runs again, waits for it again.
    fn revived(&mut self, row: i64, work: &mut Work) -> Result<(), Fault> {
        let mut statement = self
            .db
            .prepare_cached("SELECT dependent FROM dependency WHERE prerequisite = ? ORDER BY dependent")?;
        for dependant in statement.query_map([row], |r| r.get(0))? {
            work.push_back((dependant?, Event::DependencyRevived, None));
            self.memory.awaited.insert(row);
        }
        Ok(())
    }

    /// Takes a task out of where it counts and waits.
    fn leave(&mut self, live: &LiveRow, origin: &Origin) {
        let cell = match origin {
            Origin::Queue => {
                let mut view = self.shared.view.lock();
                self.memory.unplace(&self.shared, &mut view, live)
            }
            Origin::Lease(_) => Cell::of_leased(&live.life),
            Origin::Orphan(_) => Cell::Running,
            Origin::Outcome(outcome) => Cell::of_end(outcome.life.state),
        };
        self.group.count(live.class, cell, -1);
    }

    /// A leased task changes and goes on running.
    pub(super) fn stay(&mut self, live: LiveRow, now: Time) -> Result<(), Fault> {
        live.save(&self.db, now)?;
        self.group.count(live.class, Cell::of_leased(&live.life), 1);
        let mut view = self.shared.view.lock();
        if let Some(leased) = view.leases.get_mut(&live.row) {
            self.group.undo.push((live.row, leased.clone()));
            leased.live = live;
        }
        Ok(())
    }

    fn close_lease(&mut self, live: &LiveRow) {
        if let Some(leased) = self.shared.view.lock().leases.get_mut(&live.row) {
            leased.closing = true;
        }
        self.group.closed.push(live.row);
        if let Some(key) = key_of(&self.shared, live) {
            if self.memory.order.rule(live.class).fair {
                // Behind everything that has a number.
                self.memory.order.note_turn(&key, self.next_row);
                self.next_row += 1;
            }
            self.memory.order.release(&key, live.row);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "all of it goes into one row")]
    fn end(
        &mut self,
        mut live: LiveRow,
        id: TaskId,
        state: State,
        status: Option<ExecutionStatus>,
        facts: Facts,
        origin: &Origin,
        work: &mut Work,
    ) -> Result<(), Fault> {
        let row = live.row;
        self.db
            .prepare_cached("DELETE FROM live WHERE row = ?")?
            .execute([row])?;
        if state == State::Completed && live.marks & (mark::CHECKPOINT | mark::INBOX) != 0 {
            self.db
                .prepare_cached("DELETE FROM checkpoint WHERE row = ?")?
                .execute([row])?;
            self.db
                .prepare_cached("DELETE FROM inbox WHERE row = ?")?
                .execute([row])?;
            live.marks &= !(mark::CHECKPOINT | mark::INBOX);
        }
        if live.marks & mark::UNIQUE != 0 {
            self.db
                .prepare_cached("DELETE FROM unique_key WHERE row = ? AND expires_at IS NULL")?
                .execute([row])?;
        }
        if matches!(origin, Origin::Lease(_)) {
            self.close_lease(&live);
        }
        let executor = match origin.run() {
            Some(run) => Some(self.names.name(&self.db, &self.shared.catalog, &run.executor)?),
            None => None,
        };
        if let Some(run) = origin.run().filter(|run| live.life.started_at != Some(run.taken_at)) {
            // Not the first run of its attempt: when this one started is nowhere else.
            self.log_start(&mut live, run)?;
        }
        let (class, parent) = (live.class, live.parent);
        // The number before it is for the start, should the task run again and its derived events have to be written.
        self.seq()?;
        let seq = self.seq()?;
        OutcomeRow {
            row,
            seq,
            life: live.life,
            version: live.version,
            marks: live.marks,
            status,
            executor,
            result: facts.result,
            error: live.error,
            usage: facts.usage,
            actor: facts.actor,
            progress: live.progress,
        }
        .insert(&self.db)?;
        self.group.count(class, Cell::of_end(state), 1);
        self.memory.fresh.take(row);
        if self.memory.awaited.remove(&row) {
            let completed = state == State::Completed;
            let mut statement = self
                .db
                .prepare_cached("SELECT dependent FROM dependency WHERE prerequisite = ? ORDER BY dependent")?;
            for dependant in statement.query_map([row], |r| r.get(0))? {
                let error = (!completed).then(|| dependency_failed(id, state));
                work.push_back((dependant?, Event::DependencyEnded(completed), error));
            }
        }
        if let Some(parent) = parent {
            self.child_ended(parent, work);
        }
        Ok(())
    }

    /// Appends an event, after the start of the run where that is not written yet.
    pub(super) fn log(
        &mut self,
        live: &mut LiveRow,
        run: Option<&Run>,
        at: Time,
        kind: EventKind,
        actor: Option<&Name>,
        error: Option<&ErrorInfo>,
    ) -> Result<u64, Fault> {
        if let Some(run) = run {
            self.log_start(live, run)?;
        }
        live.marks |= mark::EVENTS;
        let seq = self.seq()?;
        self.put_event(live.row, seq, at, kind, actor, live.life.attempt, error)?;
        Ok(seq)
    }

    fn log_start(&mut self, live: &mut LiveRow, run: &Run) -> Result<(), Fault> {
        if live.marks & mark::START == 0 {
            live.marks |= mark::START | mark::EVENTS;
            let seq = self.seq()?;
            self.put_event(
                live.row,
                seq,
                run.taken_at,
                EventKind::Started,
                None,
                live.life.attempt,
                None,
            )?;
        }
        Ok(())
    }

    fn child_ended(&mut self, parent: i64, work: &mut Work) {
        if let Some(children) = self.memory.children.get_mut(&parent) {
            *children -= 1;
            if *children == 0 {
                self.memory.children.remove(&parent);
                work.push_back((parent, Event::ChildrenEnded, None));
            }
        }
    }

    /// A child was deleted before it ended: its parent must not wait for it for ever.
    pub(super) fn child_deleted(&mut self, parent: i64, now: Time, applied: &mut Applied) -> Result<(), Fault> {
        let mut work = Work::new();
        self.child_ended(parent, &mut work);
        self.follow_all(work, now, applied)
    }

    /// Loads an ended task as one that is about to run again.
    pub(super) fn ended_subject(&self, outcome: OutcomeRow, id: TaskId) -> Result<Subject, Fault> {
        let stored = super::reads::stored_task(&self.db, &self.shared.catalog, outcome.row)?;
        let Some(stored) = stored else {
            return Err(Fault::Damaged(format!("row {} ended without a task", outcome.row)));
        };
        let live = LiveRow {
            deadline: stored.spec.deadline,
            key: stored.spec.key.clone(),
            life: outcome.life.clone(),
            version: outcome.version,
            expires_at: stored.spec.expires_at(),
            queue_timeout: stored.spec.queue_timeout(),
            parent: stored.spec.details.as_ref().and_then(|d| d.parent_id).map(TaskId::row),
            marks: outcome.marks,
            progress: outcome.progress.clone(),
            error: outcome.error.clone(),
            ..LiveRow::plain(outcome.row, stored.class, stored.spec.priority, outcome.life.run_at)
        };
        Ok(Subject {
            live,
            id,
            origin: Origin::Outcome(Box::new(outcome)),
        })
    }

    pub(super) fn put_execution(&self, row: i64, execution: &Execution) -> Result<(), Fault> {
        let error = execution.error.as_ref();
        let usage = (execution.usage != Usage::default())
            .then(|| serde_json::to_string(&execution.usage).ok())
            .flatten();
        self.db
            .prepare_cached(
                "REPLACE INTO execution(row, attempt, executor, status, started_at, finished_at, usage, result,
                 error_kind, error_message) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                row,
                execution.attempt,
                execution.executor_id,
                execution.status.code(),
                execution.started_at.as_micros(),
                execution.finished_at.map(Time::as_micros),
                usage,
                execution.result.as_ref().map(Json::get),
                error.map(|e| &e.kind),
                error.map(|e| &e.message),
            ])?;
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the columns of one row")]
    pub(super) fn put_event(
        &self,
        row: i64,
        seq: u64,
        at: Time,
        kind: EventKind,
        actor: Option<&Name>,
        attempt: u32,
        error: Option<&ErrorInfo>,
    ) -> Result<(), Fault> {
        self.db
            .prepare_cached(
                "INSERT INTO event(row, seq, at, kind, actor, attempt, error_kind, error_message)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                row,
                seq as i64,
                at.as_micros(),
                kind.code(),
                actor,
                attempt,
                error.map(|e| &e.kind),
                error.map(|e| &e.message)
            ])?;
        Ok(())
    }
}

/// What the task's error is after a transition.
fn settle_error(live: &mut LiveRow, facts: &mut Facts, before: State, effects: Effects) {
    if live.life.state == State::Cancelled || effects.interrupt.is_some() {
        // The reason given with the request outlives the handler's own last words.
        let reason = live
            .cancel_reason
            .take()
            .map(|message| ErrorInfo::new("cancelled", message));
        if live.life.state != State::Cancelled {
            live.cancel_reason = reason.as_ref().map(|r| r.message.clone());
        }
        live.error = reason.or_else(|| facts.error.clone()).or_else(|| live.error.take());
    } else if let Some(error) = &facts.error {
        live.error = Some(error.clone());
    }
    if live.life.state == State::Completed {
        live.error = None;
    } else {
        facts.result = None;
    }
    if before.is_terminal() {
        live.error = None;
        live.cancel_reason = None;
    }
}
