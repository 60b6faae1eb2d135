//! Copies: what the store keeps, to and from another store.
//!
//! A dossier tells the whole history of a task; here most of an end is one row that stands for the terminal event, the
//! last attempt and, often, its start. An export unfolds that row, an import folds it again where nothing is lost by it.

use std::time::Duration;

use pensum_core::agent::{AgentRecord, Demand};
use pensum_core::dossier::{self, Bookmark, Dossier, Hold, Import, PARCEL_BYTES, Parcel, Remembered, UniqueKey};
use pensum_core::store::TaskEvent;
use pensum_core::task::{Execution, OnConflict, Unique};
use pensum_core::transition::EventKind;
use pensum_core::{Name, NewTask, State, StoreError, TaskId, TaskRecord, Time, Usage};
use rusqlite::{Connection, OptionalExtension, params};

use super::agent;
use super::breaker;
use super::error::Fault;
use super::names::Catalog;
use super::queue;
use super::reads::{self, Whereabouts};
use super::row::{LiveRow, OutcomeRow, damaged, mark};
use super::view::Cell;
use super::writer::Writer;

/// The entry of `meta` that stands while another store is being copied into this one.
const FILLING: &str = "filling";

/// True when a copy into this store was begun and not finished.
pub(super) fn is_half_copied(db: &Connection) -> Result<bool, Fault> {
    Ok(db.prepare("SELECT 1 FROM meta WHERE key = ?")?.exists([FILLING])?)
}

/// A page of an export.
pub(super) fn export(db: &Connection, catalog: &Catalog, from: &Bookmark, limit: usize) -> Result<Parcel, Fault> {
    match from {
        Bookmark::Task(row) => export_tasks(db, catalog, *row, limit.max(1)),
        Bookmark::Key(namespace, key) => export_keys(db, namespace, key, limit.max(1)),
    }
}

fn export_tasks(db: &Connection, catalog: &Catalog, from: i64, limit: usize) -> Result<Parcel, Fault> {
    let mut parcel = Parcel {
        next: Some(Bookmark::first_key()),
        ..Parcel::default()
    };
    let mut weight = 0;
    let mut statement = db.prepare_cached("SELECT row FROM task WHERE row >= ? ORDER BY row")?;
    let mut rows = statement.query([from])?;
    while let Some(found) = rows.next()? {
        let row = found.get(0)?;
        if parcel.dossiers.len() >= limit || weight >= PARCEL_BYTES {
            parcel.next = Some(Bookmark::Task(row));
            break;
        }
        let dossier = read_dossier(db, catalog, row)?;
        weight += dossier.weight();
        parcel.dossiers.push(dossier);
    }
    Ok(parcel)
}

fn read_dossier(db: &Connection, catalog: &Catalog, row: i64) -> Result<Dossier, Fault> {
    let task = reads::stored_task(db, catalog, row)?.ok_or_else(|| damaged(row, "task"))?;
    let place = reads::whereabouts(db, row, None)?.ok_or_else(|| damaged(row, "whereabouts"))?;
    let class = catalog.class(task.class).ok_or_else(|| damaged(row, "class"))?;
    let marks = match &place {
        Whereabouts::Unfinished(live, _) => live.marks,
        Whereabouts::Finished(outcome) => outcome.marks,
    };
    let has = |mark: u32| marks & mark != 0;
    let mut executions = if has(mark::EXECUTIONS) {
        reads::earlier_executions(db, task.id)?
    } else {
        Vec::new()
    };
    let mut events = reads::events(db, catalog, &task, &place)?;
    let creator = events.remove(0).actor;
    if let Whereabouts::Finished(outcome) = &place {
        executions.extend(reads::last_execution(catalog, outcome, task.id));
        // The number before that of the end was set aside for a start that no row tells.
        for event in events.iter_mut().filter(|event| event.seq == 0) {
            event.seq = outcome.seq - 1;
        }
        events.sort_by_key(|event| event.seq);
    }
    Ok(Dossier {
        namespace: class.namespace.clone(),
        creator,
        unique: if has(mark::UNIQUE) { read_unique(db, row)? } else { None },
        checkpoint: if has(mark::CHECKPOINT) {
            reads::checkpoint(db, row)?
        } else {
            None
        },
        executions,
        events,
        logs: if has(mark::LOGS) {
            reads::logs(db, row, 0, usize::MAX)?
        } else {
            Vec::new()
        },
        inbox: if has(mark::INBOX) {
            reads::inbox(db, row)?
        } else {
            Vec::new()
        },
        steps: if has(mark::STEPS) {
            reads::steps(db, row)?
        } else {
            Vec::new()
        },
        task: reads::record(db, task, place)?,
    })
}

fn read_unique(db: &Connection, row: i64) -> Result<Option<UniqueKey>, Fault> {
    let (key, ttl): (Option<Name>, Option<i64>) = db
        .prepare_cached("SELECT unique_key, unique_ttl FROM task WHERE row = ?")?
        .query_row([row], |r| Ok((r.get(0)?, r.get(1)?)))?;
    let Some(key) = key else { return Ok(None) };
    let expires_at: Option<Option<i64>> = db
        .prepare_cached("SELECT expires_at FROM unique_key WHERE row = ?")?
        .query_row([row], |r| r.get(0))
        .optional()?;
    Ok(Some(UniqueKey {
        key,
        ttl: ttl.map(|m| Duration::from_micros(m.max(0) as u64)),
        hold: expires_at.map(|at| at.map_or(Hold::UntilEnd, |at| Hold::Until(Time::from_micros(at)))),
    }))
}

fn export_keys(db: &Connection, namespace: &str, key: &str, limit: usize) -> Result<Parcel, Fault> {
    let mut statement = db.prepare_cached(
        "SELECT namespace, key, digest, ids, expires_at FROM idempotency WHERE (namespace, key) > (?, ?)
         ORDER BY namespace, key LIMIT ?",
    )?;
    let found = statement.query_map((namespace, key, limit as i64), |r| {
        let ids: Vec<u8> = r.get(3)?;
        Ok(Remembered {
            namespace: r.get(0)?,
            key: r.get(1)?,
            digest: r.get(2)?,
            ids: ids
                .as_chunks::<16>()
                .0
                .iter()
                .map(|bytes| TaskId::from_bytes(*bytes))
                .collect(),
            expires_at: Time::from_micros(r.get(4)?),
        })
    })?;
    let remembered = found.collect::<Result<Vec<_>, _>>()?;
    let is_first = namespace.is_empty() && key.is_empty();
    Ok(Parcel {
        next: remembered
            .last()
            .filter(|_| remembered.len() == limit)
            .map(Remembered::bookmark),
        remembered,
        queues: if is_first { queue::stored(db)? } else { Vec::new() },
        agents: if is_first { agents(db)? } else { Vec::new() },
        breakers: if is_first { breaker::stored(db)? } else { Vec::new() },
        dossiers: Vec::new(),
    })
}

/// What a copy carries of agents.
fn agents(db: &Connection) -> Result<Vec<(Name, AgentRecord)>, Fault> {
    let mut agents = agent::stored(db)?;
    for (_, record) in &mut agents {
        *record = record.registration();
    }
    Ok(agents)
}

impl Writer {
    /// Why nothing may be exported now, if tasks are running.
    pub(super) fn busy(&self) -> Option<StoreError> {
        let view = self.shared.view.lock();
        let leases = || view.leases.values().filter(|leased| !leased.closing);
        let mut nodes: Vec<Name> = leases().map(|leased| leased.executor.clone()).collect();
        let tasks = nodes.len() as u64;
        nodes.sort_unstable();
        nodes.dedup();
        let until = leases()
            .filter_map(|leased| leased.live.life.lease.map(|lease| lease.expires_at))
            .max();
        (tasks > 0).then(|| dossier::still_running(tasks, &nodes, until))
    }

    pub(super) fn import(&mut self, step: Import, now: Time) -> Result<Result<(), StoreError>, Fault> {
        let filling = is_half_copied(&self.db)?;
        match step {
            Import::Begin if filling => return Ok(Err(dossier::half_copied(&self.path))),
            Import::Begin => {
                let count = |table: &str| -> Result<i64, Fault> {
                    let sql = format!("SELECT count(*) FROM {table}");
                    Ok(self.db.query_row(&sql, [], |r| r.get(0))?)
                };
                let tasks = count("task")?;
                if tasks > 0
                    || count("idempotency")? > 0
                    || count("queue")? > 0
                    || count("agent")? > 0
                    || count("breaker")? > 0
                {
                    return Ok(Err(dossier::not_empty(&self.path, tasks as u64)));
                }
                // Rows of tasks that were deleted since the store was opened are free.
                self.next_row = 1;
                self.db
                    .execute("INSERT INTO meta(key, value) VALUES (?, 1)", [FILLING])?;
            }
            _ if !filling => return Ok(Err(dossier::not_begun(&self.path))),
            Import::Parcel(parcel) => {
                if let Err(refusal) = check(&parcel, self.next_row) {
                    return Ok(Err(refusal));
                }
                let seq = parcel.dossiers.iter().map(Dossier::seq_max).max().unwrap_or(0);
                for dossier in parcel.dossiers {
                    self.take_in(dossier, now)?;
                }
                for remembered in &parcel.remembered {
                    self.take_in_key(remembered)?;
                }
                for (namespace, record) in &parcel.queues {
                    queue::write(&self.db, namespace, record)?;
                }
                self.load_queues()?;
                self.look_at_ages()?;
                for (namespace, record) in &parcel.agents {
                    agent::write(&self.db, namespace, record)?;
                }
                self.agents.load(&self.db)?;
                for (namespace, record) in &parcel.breakers {
                    breaker::write(&self.db, namespace, record)?;
                }
                self.breakers.load(&self.db)?;
                // Taking one sets the numbers after it aside on disk.
                self.next_seq = self.next_seq.max(seq);
                self.seq()?;
            }
            Import::End => {
                self.db.execute("DELETE FROM meta WHERE key = ?", [FILLING])?;
            }
        }
        Ok(Ok(()))
    }

    fn take_in_key(&self, remembered: &Remembered) -> Result<(), Fault> {
        let ids: Vec<u8> = remembered.ids.iter().flat_map(|id| *id.as_bytes()).collect();
        self.db
            .prepare_cached("INSERT INTO idempotency(namespace, key, digest, ids, expires_at) VALUES (?, ?, ?, ?, ?)")?
            .execute(params![
                remembered.namespace,
                remembered.key,
                remembered.digest,
                ids,
                remembered.expires_at.as_micros()
            ])?;
        Ok(())
    }

    fn take_in(&mut self, dossier: Dossier, now: Time) -> Result<(), Fault> {
        let (id, row) = (dossier.task.id, dossier.row());
        self.next_row = row + 1;
        let spec = &dossier.task.spec;
        let details = spec.details.as_deref();
        let class = (&dossier.namespace, &spec.queue, &spec.handler, Demand::of(spec));
        let class = self.class(class)?;
        let parent = details.and_then(|d| d.parent_id);
        // A child's creator is its parent, which its row says already.
        let creator = dossier
            .creator
            .clone()
            .filter(|creator| parent.is_none_or(|parent| **creator != *format!("task:{parent}")));
        let actor = match creator {
            Some(creator) => Some(self.names.name(&self.db, &self.shared.catalog, &creator)?),
            None => None,
        };
        let marks = self.take_in_rest(&dossier)?;
        let Dossier {
            task,
            unique,
            executions,
            events,
            ..
        } = dossier;
        let details = details_text(&task);
        let asked = NewTask {
            unique: unique.map(|unique| {
                Box::new(Unique {
                    key: unique.key,
                    ttl: unique.ttl,
                    on_conflict: OnConflict::default(),
                })
            }),
            ..NewTask::new(task.spec.clone())
        };
        self.insert_task(row, id, class, actor, task.created_at, &asked, details.as_deref())?;
        self.group.count(class, Cell::Executions, executions.len() as i64);
        if task.lifecycle.state.is_terminal() {
            self.take_in_finished(class, marks, task, &executions, &events)
        } else {
            self.put_events(row, &events)?;
            for execution in &executions {
                self.put_execution(row, execution)?;
            }
            let started = events.iter().any(|event| event.kind == EventKind::Started);
            let marks = marks | if started { mark::START } else { 0 };
            self.take_in_unfinished(class, marks, task, now)
        }
    }

    /// Writes what stands in tables of its own; answers the marks that say so.
    fn take_in_rest(&mut self, dossier: &Dossier) -> Result<u32, Fault> {
        let row = dossier.row();
        for (position, prerequisite) in dossier.task.depends_on.iter().enumerate() {
            self.db
                .prepare_cached("INSERT INTO dependency(dependent, position, prerequisite) VALUES (?, ?, ?)")?
                .execute((row, position as i64, prerequisite.row()))?;
            // One that comes with a later page may have ended; then its row is looked for in vain, once.
            if OutcomeRow::state_of(&self.db, prerequisite.row())?.is_none() {
                self.memory.awaited.insert(prerequisite.row());
            }
        }
        if let Some(UniqueKey {
            key, hold: Some(hold), ..
        }) = &dossier.unique
        {
            let expires_at = match hold {
                Hold::UntilEnd => None,
                Hold::Until(at) => Some(at.as_micros()),
            };
            let handler = &dossier.task.spec.handler;
            self.db
                .prepare_cached(
                    "INSERT INTO unique_key(namespace, handler, key, row, expires_at) VALUES (?, ?, ?, ?, ?)",
                )?
                .execute(params![dossier.namespace, handler, key, row, expires_at])?;
        }
        if let Some(checkpoint) = &dossier.checkpoint {
            self.put_checkpoint(row, checkpoint)?;
        }
        for (position, (name, result)) in dossier.steps.iter().enumerate() {
            self.db
                .prepare_cached("INSERT INTO step(row, name, seq, result) VALUES (?, ?, ?, ?)")?
                .execute((row, name, position as i64, result.get()))?;
        }
        for signal in &dossier.inbox {
            self.db
                .prepare_cached("INSERT INTO inbox(row, seq, name, payload, at) VALUES (?, ?, ?, ?, ?)")?
                .execute((
                    row,
                    signal.seq as i64,
                    &signal.name,
                    signal.payload.get(),
                    signal.at.as_micros(),
                ))?;
        }
        for entry in &dossier.logs {
            let line = &entry.line;
            self.db
                .prepare_cached("INSERT INTO log(row, seq, at, attempt, stream, message) VALUES (?, ?, ?, ?, ?, ?)")?
                .execute((
                    row,
                    entry.seq as i64,
                    line.at.as_micros(),
                    line.attempt,
                    line.stream.code(),
                    &line.message,
                ))?;
        }
        let tags = dossier.task.spec.details.as_ref().is_some_and(|d| !d.tags.is_empty());
        let marks = [
            (mark::DEPENDS, !dossier.task.depends_on.is_empty()),
            (mark::UNIQUE, dossier.unique.is_some()),
            (mark::CHECKPOINT, dossier.checkpoint.is_some()),
            (mark::STEPS, !dossier.steps.is_empty()),
            (mark::INBOX, !dossier.inbox.is_empty()),
            (mark::LOGS, !dossier.logs.is_empty()),
            (mark::EVENTS, !dossier.events.is_empty()),
            (mark::EXECUTIONS, !dossier.executions.is_empty()),
            (mark::TAGS, tags),
        ];
        Ok(marks
            .iter()
            .filter(|(_, is)| *is)
            .fold(0, |marks, (mark, _)| marks | mark))
    }

    fn put_events(&self, row: i64, events: &[TaskEvent]) -> Result<(), Fault> {
        for event in events {
            let (actor, error) = (event.actor.as_ref(), event.error.as_ref());
            self.put_event(row, event.seq, event.at, event.kind, actor, event.attempt, error)?;
        }
        Ok(())
    }

    fn take_in_unfinished(&mut self, class: u32, marks: u32, task: TaskRecord, now: Time) -> Result<(), Fault> {
        let row = task.id.row();
        self.answer_for(row, None, task.lifecycle.accepted_by);
        let spec = &task.spec;
        let live = LiveRow {
            row,
            class,
            priority: spec.priority,
            deadline: spec.deadline,
            key: spec.key.clone(),
            expires_at: spec.expires_at(),
            queue_timeout: spec.queue_timeout(),
            parent: spec.details.as_ref().and_then(|d| d.parent_id).map(TaskId::row),
            version: version(&task),
            life: task.lifecycle,
            marks,
            progress: task.progress,
            error: task.error,
            cancel_reason: None,
        };
        let plain = LiveRow::plain(row, class, live.priority, live.life.run_at);
        if live == plain && live.life.run_at <= self.memory.clock {
            return self.put_plain(row, class, live.priority, live.life.run_at);
        }
        live.save(&self.db, now)?;
        if let Some(parent) = live.parent {
            *self.memory.children.entry(parent).or_default() += 1;
        }
        let cell = {
            let mut view = self.shared.view.lock();
            self.memory.place(&self.shared, &mut view, &live)
        };
        self.group.count(class, cell, 1);
        Ok(())
    }

    fn take_in_finished(
        &mut self,
        class: u32,
        marks: u32,
        task: TaskRecord,
        executions: &[Execution],
        events: &[TaskEvent],
    ) -> Result<(), Fault> {
        let (id, row) = (task.id, task.id.row());
        let Some(end) = terminal(&task, events) else {
            return Err(Fault::Damaged(format!("row {row} has ended without an event")));
        };
        self.group.count(class, Cell::of_end(task.lifecycle.state), 1);
        let mut outcome = OutcomeRow {
            row,
            seq: events[end].seq,
            version: version(&task),
            marks: marks & !(mark::EVENTS | mark::EXECUTIONS),
            status: None,
            executor: None,
            result: task.result,
            error: task.error,
            usage: Usage::default(),
            actor: events[end].actor.clone(),
            progress: task.progress,
            life: task.lifecycle,
        };
        let mut executions = executions;
        if let Some((last, earlier)) = executions.split_last() {
            let executor = Name::from(last.executor_id.as_str());
            let folded = OutcomeRow {
                status: Some(last.status),
                executor: match &*executor {
                    "" => None,
                    _ => Some(self.names.name(&self.db, &self.shared.catalog, &executor)?),
                },
                usage: last.usage,
                ..outcome.clone()
            };
            if reads::last_execution(&self.shared.catalog, &folded, id).as_ref() == Some(last) {
                (outcome, executions) = (folded, earlier);
            }
        }
        let mut stored: Vec<&TaskEvent> = events.iter().collect();
        stored.remove(end);
        if outcome.status.is_some() {
            match end.checked_sub(1).filter(|start| is_derived(&events[*start], &outcome)) {
                Some(start) => drop(stored.remove(start)),
                None => outcome.marks |= mark::START,
            }
        }
        for event in &stored {
            self.put_events(row, std::slice::from_ref(*event))?;
        }
        for execution in executions {
            self.put_execution(row, execution)?;
        }
        if !stored.is_empty() {
            outcome.marks |= mark::EVENTS;
        }
        if !executions.is_empty() {
            outcome.marks |= mark::EXECUTIONS;
        }
        outcome.insert(&self.db)
    }
}

/// The start that the outcome's row stands for as well, when no row tells of it.
fn is_derived(start: &TaskEvent, outcome: &OutcomeRow) -> bool {
    start.seq + 1 == outcome.seq
        && start.kind == EventKind::Started
        && Some(start.at) == outcome.life.started_at
        && start.attempt == outcome.life.attempt
        && start.actor.is_none()
        && start.error.is_none()
}

/// Which event is the end of a finished task.
fn terminal(task: &TaskRecord, events: &[TaskEvent]) -> Option<usize> {
    let life = &task.lifecycle;
    events.iter().rposition(|event| {
        event.kind == reads::terminal_kind(life.state)
            && Some(event.at) == life.finished_at
            && event.attempt == life.attempt
    })
}

/// Finds every reason to refuse a page.
fn check(parcel: &Parcel, next_row: i64) -> Result<(), StoreError> {
    parcel.check(next_row)?;
    for Dossier { task, events, .. } in &parcel.dossiers {
        let ended = matches!(
            task.lifecycle.state,
            State::Completed | State::Failed | State::Cancelled
        );
        if ended && terminal(task, events).is_none() {
            return Err(StoreError::Conflict(format!(
                "task {} is {} and its history does not say since when; verify the store that it comes from",
                task.id, task.lifecycle.state
            )));
        }
    }
    Ok(())
}

fn details_text(task: &TaskRecord) -> Option<String> {
    let details = task.spec.details.as_ref();
    details.and_then(|details| serde_json::to_string(details).ok())
}

/// A version grows by one with each change, and does not reach the bound of its column.
fn version(task: &TaskRecord) -> u32 {
    u32::try_from(task.version).unwrap_or(u32::MAX)
}
