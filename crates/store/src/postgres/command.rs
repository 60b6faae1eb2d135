//! What people ask of tasks.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use pensum_core::store::{Applied, Call, Command, INBOX_MAX, Rejected};
use pensum_core::task::Unique;
use pensum_core::transition::{Event, EventKind};
use pensum_core::{ErrorInfo, Json, Name, State, TaskId, apply};
use tokio_postgres::types::Type;

use super::Inner;
use super::error::Fault;
use super::pool::{Durability, Statement, Value, text};
use super::reads::{StoredTask, last_execution, terminal_kind};
use super::row::{Cell, OutcomeRow, mark, seq_of};
use super::step::{Facts, Place, Work};

type Answers = Vec<Result<Applied, Rejected>>;

/// Carries out a command on each task.
pub(super) async fn command(
    inner: &Arc<Inner>,
    call: &Call,
    tasks: &[TaskId],
    command: &Command,
) -> Result<Result<Answers, Rejected>, Fault> {
    let mut work = Work::begin(inner, Durability::Acknowledged, call.now).await?;
    let remembered = match work.remembered(call).await? {
        Ok(found) => found.is_some(),
        Err(rejected) => {
            work.tx.rollback().await?;
            return Ok(Err(rejected));
        }
    };
    let mut rows: Vec<i64> = tasks.iter().map(|id| id.row()).collect();
    rows.sort_unstable();
    rows.dedup();
    if matches!(command, Command::Cancel { .. }) {
        work.load_to_end(&rows).await?;
    }
    work.load_any(&rows).await?;
    let mut answers = Vec::with_capacity(tasks.len());
    for id in tasks {
        if remembered {
            let known = work.exists(&call.namespace, *id).await?;
            let state = if known { work.state_of(*id) } else { None };
            answers.push(Ok(Applied {
                state,
                ..Applied::default()
            }));
        } else {
            answers.push(work.command(call, *id, command).await?);
        }
    }
    // A refusal changed nothing, so a repeat may well find it possible.
    if answers.iter().any(Result::is_ok) && !remembered {
        work.remember(call, tasks.iter().copied());
        if work.commit().await? {
            inner.wake.ready();
        }
    } else {
        work.tx.rollback().await?;
    }
    Ok(Ok(answers))
}

impl Work {
    /// The state of a task that was loaded.
    pub(super) fn state_of(&self, id: TaskId) -> Option<State> {
        match self.place(id) {
            Some(Place::Live(live)) => Some(live.life.state),
            Some(Place::Ended(outcome)) => Some(outcome.life.state),
            _ => None,
        }
    }

    async fn command(
        &mut self,
        call: &Call,
        id: TaskId,
        command: &Command,
    ) -> Result<Result<Applied, Rejected>, Fault> {
        if !self.exists(&call.namespace, id).await? {
            return Ok(Err(Rejected::NotFound(id)));
        }
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
            Command::Retry => return self.retry(call, id, facts).await,
            Command::RunNow => Event::RunNow,
            Command::Signal { name, payload } => return self.signal(call, id, name, payload).await,
            Command::Delete => return self.delete(id).await,
        };
        self.carry_out(id, &event, facts).await
    }

    async fn carry_out(&mut self, id: TaskId, event: &Event, facts: Facts) -> Result<Result<Applied, Rejected>, Fault> {
        let mut applied = Applied::default();
        if let Some(Place::Ended(outcome)) = self.place(id) {
            // Nothing that is asked of an ended task but a retry is possible; `apply` says why not.
            let state = outcome.life.state;
            return Ok(match apply(&outcome.life, event, self.now) {
                Ok(_) => Err(Rejected::Nothing(id)),
                Err(refusal) => Err(Rejected::from_refusal(id, state, refusal)),
            });
        }
        match self.happen(id.row(), event, facts, &mut applied).await? {
            Ok(effects) => applied.interrupt = effects.interrupt,
            Err(rejected) => return Ok(Err(rejected)),
        }
        applied.state = self.state_of(id);
        Ok(Ok(applied))
    }

    async fn retry(&mut self, call: &Call, id: TaskId, facts: Facts) -> Result<Result<Applied, Rejected>, Fault> {
        let row = id.row();
        let sql = "SELECT prerequisite FROM pensum.dependency WHERE dependent = $1 ORDER BY 1";
        let found = self.tx.query(sql, &[(&row, Type::INT8)]).await?;
        let prerequisites: Vec<i64> = found.iter().map(|found| found.try_get(0)).collect::<Result<_, _>>()?;
        self.load_any(&prerequisites).await?;
        let unfinished: Vec<i64> = prerequisites
            .into_iter()
            .filter(|row| self.live(*row).is_some())
            .collect();
        let event = Event::Retry {
            unmet: u32::try_from(unfinished.len()).unwrap_or(u32::MAX),
            accepted_by: call.process,
        };
        let Some(Place::Ended(outcome)) = self.place(id).cloned() else {
            return self.carry_out(id, &event, facts).await;
        };
        if apply(&outcome.life, &event, self.now).is_err() {
            return self.carry_out(id, &event, facts).await;
        }
        let Some(stored) = self.stored(&[row]).await?.remove(&row) else {
            return Ok(Err(Rejected::NotFound(id)));
        };
        let state = outcome.life.state;
        let event = match (event, stored.spec.accepted_again(state, call.process)) {
            (Event::Retry { unmet, .. }, Ok(accepted_by)) => Event::Retry { unmet, accepted_by },
            (_, Err(refusal)) => return Ok(Err(Rejected::from_refusal(id, state, refusal))),
            (event, Ok(_)) => event,
        };
        if outcome.marks & mark::UNIQUE != 0
            && let Some(holder) = self.retake_unique(call, &stored).await?
        {
            return Ok(Err(Rejected::UniqueTakenByOther { task: id, holder }));
        }
        self.unfold_outcome(&outcome, id).await?;
        self.unend(&outcome, &stored);
        for prerequisite in unfinished {
            if let Some(live) = self.live_mut(prerequisite) {
                live.marks |= mark::AWAITED;
            }
        }
        let sql = "SELECT count(*) FROM pensum.task t JOIN pensum.live l ON l.row = t.row WHERE t.parent = $1";
        let found = self.tx.query(sql, &[(&row, Type::INT8)]).await?;
        let children = found.first().map_or(Ok(0), |found| found.try_get::<_, i64>(0))?;
        let children = children + self.children_changed(row);
        let mut parent = None;
        if let Some(live) = self.live_mut(row) {
            live.children = u32::try_from(children).unwrap_or(u32::MAX);
            live.marks |= mark::EVENTS | mark::EXECUTIONS | mark::START;
            parent = live.parent;
        }
        if let Some(parent) = parent {
            self.load_any(&[parent]).await?;
            if let Some(live) = self.live_mut(parent) {
                live.children += 1;
            }
        }
        self.carry_out(id, &event, facts).await
    }

    /// Takes the unique key again for a task that runs again; answers who has it instead.
    async fn retake_unique(&mut self, call: &Call, stored: &StoredTask) -> Result<Option<TaskId>, Fault> {
        let Some(key) = stored.unique_key.clone() else {
            return Ok(None);
        };
        let handler = stored.spec.handler.clone();
        let holders = self.unique_holders(&call.namespace, &[(&*handler, &*key)]).await?;
        if let Some(holder) = holders.into_values().find(|holder| *holder != stored.id) {
            return Ok(Some(holder));
        }
        let unique = Unique {
            key,
            ttl: stored.unique_ttl,
            on_conflict: Default::default(),
        };
        self.take_unique(&call.namespace, &handler, &unique, stored.id);
        Ok(None)
    }

    /// Writes out what the outcome row stood for beside the outcome: its events and its execution.
    async fn unfold_outcome(&mut self, outcome: &OutcomeRow, id: TaskId) -> Result<(), Fault> {
        let life = &outcome.life;
        let finished_at = life.finished_at.unwrap_or(life.run_at);
        let changes = if outcome.marks & mark::EVENTS == 0 {
            Vec::new()
        } else {
            let sql = "SELECT seq FROM pensum.event WHERE row = $1 AND kind = $2 AND seq % 2 = 1";
            let kind = EventKind::Updated.code() as i16;
            let params = [(&outcome.row as _, Type::INT8), (&kind as _, Type::INT2)];
            self.tx.query(sql, &params).await?
        };
        let changes: HashSet<i64> = changes.iter().map(|found| found.try_get(0)).collect::<Result<_, _>>()?;
        let seq = seq_of(outcome.end_version(|seq| changes.contains(&(seq as i64))));
        if outcome.status.is_some()
            && outcome.marks & mark::START == 0
            && let Some(started_at) = life.started_at
        {
            self.put_event(
                outcome.row,
                seq - 1,
                started_at,
                EventKind::Started,
                None,
                life.attempt,
                None,
            );
        }
        let (kind, error, actor) = (
            terminal_kind(life.state),
            outcome.error.as_ref(),
            outcome.actor.as_ref(),
        );
        self.put_event(outcome.row, seq, finished_at, kind, actor, life.attempt, error);
        let executor = match outcome.executor {
            Some(executor) => self.inner.catalog.name(&self.inner.pool, executor).await?.to_string(),
            None => String::new(),
        };
        if let Some(execution) = last_execution(outcome, id, executor) {
            self.put_execution(execution);
        }
        Ok(())
    }

    async fn signal(
        &mut self,
        call: &Call,
        id: TaskId,
        name: &Name,
        payload: &Json,
    ) -> Result<Result<Applied, Rejected>, Fault> {
        let row = id.row();
        let Some((_, live)) = self.live(row) else {
            let state = self.state_of(id).unwrap_or(State::Completed);
            let why = "it has ended; nobody reads its signals";
            return Ok(Err(Rejected::Forbidden { task: id, state, why }));
        };
        let (mut live, state) = (live.clone(), live.life.state);
        let sql = "SELECT count(*) FROM pensum.inbox WHERE row = $1";
        let unread = self.tx.query(sql, &[(&row, Type::INT8)]).await?;
        if unread.first().map_or(Ok(0), |found| found.try_get::<_, i64>(0))? >= INBOX_MAX as i64 {
            return Ok(Err(Rejected::InboxFull(id)));
        }
        live.version += 1;
        live.marks |= mark::INBOX;
        let run = live.run;
        self.log(&mut live, run, EventKind::Signalled, Some(&call.actor), None);
        let owned = |t: &str| Value::Text(Some(Cow::Owned(text(t).into_owned())));
        self.extra.push(Statement {
            sql: "INSERT INTO pensum.inbox(row, seq, name, payload, at) VALUES ($1, $2, $3, $4, $5)",
            params: vec![
                Value::Int8(Some(row)),
                Value::Int8(Some(seq_of(live.version) as i64)),
                owned(name),
                owned(payload.get()),
                Value::Int8(Some(call.now.as_micros())),
            ],
        });
        let wakes = live.life.signal.as_ref() == Some(name);
        if let Some(place) = self.live_mut(row) {
            *place = live;
        }
        if wakes {
            return self.carry_out(id, &Event::Signalled, Facts::default()).await;
        }
        Ok(Ok(Applied {
            state: Some(state),
            ..Applied::default()
        }))
    }

    async fn delete(&mut self, id: TaskId) -> Result<Result<Applied, Rejected>, Fault> {
        let row = id.row();
        let Some(state) = self.state_of(id) else {
            return Ok(Err(Rejected::NotFound(id)));
        };
        if state == State::Running {
            let why = "it is running; cancel it first";
            return Ok(Err(Rejected::Forbidden { task: id, state, why }));
        }
        let sql = "SELECT d.dependent FROM pensum.dependency d WHERE d.prerequisite = $1
                   AND EXISTS (SELECT 1 FROM pensum.live l WHERE l.row = d.dependent)";
        let found = self.tx.query(sql, &[(&row, Type::INT8)]).await?;
        // One that this very command has deleted or ended waits for nothing any more.
        let mut dependants = 0;
        for dependant in &found {
            let dependant: i64 = dependant.try_get(0)?;
            dependants += u64::from(self.class_of(dependant).is_none() || self.live(dependant).is_some());
        }
        if dependants > 0 {
            return Ok(Err(Rejected::HasDependants { task: id, dependants }));
        }
        let mut applied = Applied::default();
        let (mut marks, mut parent, class) = (0, None, self.class_of(row).unwrap_or(0));
        match self.place(id) {
            Some(Place::Live(live)) => {
                marks = live.marks;
                parent = live.parent;
                applied.ended.push((id, State::Cancelled));
            }
            Some(Place::Ended(outcome)) => {
                marks = outcome.marks;
                if outcome.status.is_some() {
                    self.tally(class, Cell::Executions, -1);
                }
            }
            _ => {}
        }
        self.forget(row);
        let executions = super::prune::erase(&mut self.tx, &[(row, class, marks)]).await?;
        for (class, count) in executions {
            self.tally(class, Cell::Executions, -count);
        }
        if let Some(parent) = parent {
            self.child_deleted(parent, &mut applied).await?;
        }
        Ok(Ok(applied))
    }
}
