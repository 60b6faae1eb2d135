//! The row of an unfinished task (`live`), and that of a finished one (`outcome`).

use std::time::Duration;

use pensum_core::outcome::Progress;
use pensum_core::task::{ExecutionStatus, OnDependencyFailure};
use pensum_core::{ErrorInfo, Json, Lifecycle, Name, NodeId, Priority, State, Time, Usage, WaitingFor};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::error::Fault;

/// What else about a task is in other tables, so that nothing else has to look there.
pub(super) mod mark {
    pub(in crate::sqlite) const CHECKPOINT: u32 = 1;
    pub(in crate::sqlite) const INBOX: u32 = 2;
    pub(in crate::sqlite) const STEPS: u32 = 4;
    pub(in crate::sqlite) const UNIQUE: u32 = 8;
    pub(in crate::sqlite) const DEPENDS: u32 = 16;
    pub(in crate::sqlite) const LOGS: u32 = 32;
    pub(in crate::sqlite) const EVENTS: u32 = 64;
    pub(in crate::sqlite) const EXECUTIONS: u32 = 128;
    pub(in crate::sqlite) const TAGS: u32 = 256;
    /// The `started` event of the present or last run is in the event table, not left to be derived.
    pub(in crate::sqlite) const START: u32 = 512;
    pub(super) const BITS: u32 = 12;
}

const SAME_ATTEMPT: u32 = 1 << mark::BITS;
const BACKING_OFF: u32 = 2 << mark::BITS;
const SUSPECT: u32 = 4 << mark::BITS;
const READY_IS_RUN: u32 = 8 << mark::BITS;
/// The flags of a plain row that is no longer read as one.
pub(super) const PLAIN_FLAGS: u32 = READY_IS_RUN;
const POLICY_SHIFT: u32 = mark::BITS + 4;
/// Where the flags of an outcome keep the status of its execution.
pub(super) const STATUS_SHIFT: u32 = POLICY_SHIFT + 2;

/// Why an unfinished row is not simply ready: what lists by status look for first. Never renumbered.
pub(super) mod gate {
    pub(in crate::sqlite) const LATER: i64 = 1;
    pub(in crate::sqlite) const DEPENDENCIES: i64 = 2;
    pub(in crate::sqlite) const PAUSED: i64 = 3;
    pub(in crate::sqlite) const WAITING: i64 = 4;
    pub(in crate::sqlite) const RETRYING: i64 = 5;
}

/// An unfinished task, as far as scheduling goes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LiveRow {
    pub(super) row: i64,
    pub(super) class: u32,
    pub(super) priority: Priority,
    pub(super) deadline: Option<Time>,
    pub(super) key: Option<Name>,
    pub(super) life: Lifecycle,
    pub(super) version: u32,
    pub(super) expires_at: Option<Time>,
    pub(super) queue_timeout: Option<Duration>,
    pub(super) parent: Option<i64>,
    pub(super) marks: u32,
    pub(super) progress: Option<Progress>,
    pub(super) error: Option<ErrorInfo>,
    /// Why a running task was asked to stop, until it does.
    pub(super) cancel_reason: Option<String>,
}

/// The columns of `live`, in the order in which [`LiveRow::read`] takes them.
pub(super) const COLUMNS: &str = "row, class, run_at, priority, flags, deadline, key, state, waiting_for, wake_at, \
    signal, attempt, failures, crashes, unmet, ready_at, started_at, paused_at, cancel_requested_at, \
    pause_requested_at, expires_at, queue_timeout, parent, version, progress, error_kind, error_message, cancel_reason, \
    acceptor";

fn time(row: &Row<'_>, column: usize) -> Result<Option<Time>, rusqlite::Error> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Time::from_micros))
}

fn number(row: &Row<'_>, column: usize) -> Result<u32, rusqlite::Error> {
    Ok(row.get::<_, Option<u32>>(column)?.unwrap_or(0))
}

fn micros(time: Option<Time>) -> Option<i64> {
    time.map(Time::as_micros)
}

fn some(number: u32) -> Option<u32> {
    (number != 0).then_some(number)
}

pub(super) fn damaged(row: i64, what: &str) -> Fault {
    Fault::Damaged(format!("row {row} has an unknown {what}"))
}

pub(super) fn read_progress(row: &Row<'_>, column: usize) -> Result<Option<Progress>, rusqlite::Error> {
    let value = row.get_ref(column)?;
    Ok(value
        .as_str_or_null()
        .ok()
        .flatten()
        .and_then(|text| serde_json::from_str(text).ok()))
}

pub(super) fn read_error(row: &Row<'_>, column: usize) -> Result<Option<ErrorInfo>, rusqlite::Error> {
    let kind: Option<String> = row.get(column)?;
    Ok(match kind {
        Some(kind) => Some(ErrorInfo {
            kind,
            message: row.get::<_, Option<String>>(column + 1)?.unwrap_or_default(),
        }),
        None => None,
    })
}

pub(super) fn write_progress(progress: Option<&Progress>) -> Option<String> {
    progress.and_then(|p| serde_json::to_string(p).ok())
}

impl LiveRow {
    /// A task of which nothing was asked but to run, just enqueued at `run_at`.
    pub(super) fn plain(row: i64, class: u32, priority: Priority, run_at: Time) -> LiveRow {
        LiveRow {
            row,
            class,
            priority,
            deadline: None,
            key: None,
            life: Lifecycle::new(run_at, None, 0, OnDependencyFailure::Cancel),
            version: 1,
            expires_at: None,
            queue_timeout: None,
            parent: None,
            marks: 0,
            progress: None,
            error: None,
            cancel_reason: None,
        }
    }

    /// From [`COLUMNS`].
    pub(super) fn read(row: &Row<'_>) -> Result<LiveRow, Fault> {
        let id: i64 = row.get(0)?;
        let run_at = Time::from_micros(row.get(2)?);
        let priority = match row.get::<_, Option<i64>>(3)? {
            None => Priority::Normal,
            Some(level) => Priority::from_level(level).ok_or_else(|| damaged(id, "priority"))?,
        };
        let mut live = LiveRow::plain(id, row.get(1)?, priority, run_at);
        let Some(flags) = row.get::<_, Option<u32>>(4)? else {
            return Ok(live);
        };
        live.marks = flags & ((1 << mark::BITS) - 1);
        live.deadline = time(row, 5)?;
        live.key = row.get(6)?;
        let life = &mut live.life;
        life.state =
            State::from_code(row.get::<_, Option<i64>>(7)?.unwrap_or(0)).ok_or_else(|| damaged(id, "state"))?;
        life.waiting_for = match row.get::<_, Option<i64>>(8)? {
            None => None,
            Some(code) => Some(WaitingFor::from_code(code).ok_or_else(|| damaged(id, "wait"))?),
        };
        life.wake_at = time(row, 9)?;
        life.signal = row.get(10)?;
        life.attempt = number(row, 11)?;
        life.failures = number(row, 12)?;
        life.crashes = number(row, 13)?;
        life.unmet = number(row, 14)?;
        life.ready_at = if flags & READY_IS_RUN != 0 {
            Some(run_at)
        } else {
            time(row, 15)?
        };
        life.started_at = time(row, 16)?;
        life.paused_at = time(row, 17)?;
        life.cancel_requested_at = time(row, 18)?;
        life.pause_requested_at = time(row, 19)?;
        read_flags(life, flags, id)?;
        live.expires_at = time(row, 20)?;
        live.queue_timeout = row
            .get::<_, Option<i64>>(21)?
            .map(|m| Duration::from_micros(m.max(0) as u64));
        live.parent = row.get(22)?;
        live.version = row.get::<_, Option<u32>>(23)?.unwrap_or(1);
        live.progress = read_progress(row, 24)?;
        live.error = read_error(row, 25)?;
        live.cancel_reason = row.get(27)?;
        live.life.accepted_by = row.get::<_, Option<i64>>(28)?.map(|id| NodeId(id as u64));
        Ok(live)
    }

    /// Loads the row of an unfinished task.
    pub(super) fn load(db: &Connection, row: i64) -> Result<Option<LiveRow>, Fault> {
        let mut statement = db.prepare_cached(LOAD.as_str())?;
        let mut rows = statement.query([row])?;
        rows.next()?.map(LiveRow::read).transpose()
    }

    /// Writes the row, new or not. `now` decides what gates it.
    pub(super) fn save(&self, db: &Connection, now: Time) -> Result<(), Fault> {
        let life = &self.life;
        let ready_is_run = life.ready_at == Some(life.run_at);
        let mut flags = self.marks | write_flags(life);
        if ready_is_run {
            flags |= READY_IS_RUN;
        }
        let (kind, message) = self.error.as_ref().map(|e| (&e.kind, &e.message)).unzip();
        db.prepare_cached(SAVE.as_str())?.execute(params![
            self.row,
            self.class,
            life.run_at.as_micros(),
            (self.priority != Priority::Normal).then(|| self.priority.level()),
            flags,
            micros(self.deadline),
            self.key,
            (life.state != State::Queued).then(|| life.state.code()),
            life.waiting_for.map(WaitingFor::code),
            micros(life.wake_at),
            life.signal,
            some(life.attempt),
            some(life.failures),
            some(life.crashes),
            some(life.unmet),
            if ready_is_run { None } else { micros(life.ready_at) },
            micros(life.started_at),
            micros(life.paused_at),
            micros(life.cancel_requested_at),
            micros(life.pause_requested_at),
            micros(self.expires_at),
            self.queue_timeout.map(|d| d.as_micros() as i64),
            self.parent,
            (self.version != 1).then_some(self.version),
            write_progress(self.progress.as_ref()),
            kind,
            message,
            self.cancel_reason,
            life.accepted_by.map(|process| process.0 as i64),
            self.gate(now),
        ])?;
        Ok(())
    }

    fn gate(&self, now: Time) -> Option<i64> {
        let life = &self.life;
        match life.state {
            State::Running => None,
            _ if life.paused_at.is_some() => Some(gate::PAUSED),
            State::Waiting => Some(gate::WAITING),
            _ if life.waiting_for.is_some() => Some(gate::DEPENDENCIES),
            _ if life.run_at <= now => None,
            _ if life.failures > 0 && life.backing_off => Some(gate::RETRYING),
            _ => Some(gate::LATER),
        }
    }
}

fn write_flags(life: &Lifecycle) -> u32 {
    let bit = |on: bool, flag: u32| if on { flag } else { 0 };
    bit(life.same_attempt, SAME_ATTEMPT)
        | bit(life.backing_off, BACKING_OFF)
        | bit(life.suspect, SUSPECT)
        | (life.on_dependency_failure.code() as u32) << POLICY_SHIFT
}

fn read_flags(life: &mut Lifecycle, flags: u32, row: i64) -> Result<(), Fault> {
    life.same_attempt = flags & SAME_ATTEMPT != 0;
    life.backing_off = flags & BACKING_OFF != 0;
    life.suspect = flags & SUSPECT != 0;
    life.on_dependency_failure = OnDependencyFailure::from_code(i64::from(flags >> POLICY_SHIFT & 3))
        .ok_or_else(|| damaged(row, "dependency policy"))?;
    Ok(())
}

static LOAD: std::sync::LazyLock<String> =
    std::sync::LazyLock::new(|| format!("SELECT {COLUMNS} FROM live WHERE row = ?"));
static SAVE: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    format!(
        "REPLACE INTO live({COLUMNS}, gate) VALUES ({})",
        vec!["?"; 30].join(", ")
    )
});

/// A finished task: how it ended, and its last execution.
#[derive(Clone, Debug)]
pub(super) struct OutcomeRow {
    pub(super) row: i64,
    pub(super) seq: u64,
    pub(super) life: Lifecycle,
    pub(super) version: u32,
    pub(super) marks: u32,
    /// The status of the execution that this end ended; `None` when it ended between attempts.
    pub(super) status: Option<ExecutionStatus>,
    /// The interned name of who ran it.
    pub(super) executor: Option<u32>,
    pub(super) result: Option<Json>,
    pub(super) error: Option<ErrorInfo>,
    pub(super) usage: Usage,
    pub(super) actor: Option<Name>,
    pub(super) progress: Option<Progress>,
}

const OUTCOME_COLUMNS: &str = "row, seq, state, flags, attempt, finished_at, started_ago, run_ago, ready_ago, \
    executor, wall, result, version, failures, crashes, unmet, cancel_requested_at, usage, error_kind, error_message, \
    actor, progress";

impl OutcomeRow {
    /// Inserts the row of a task that just ended.
    pub(super) fn insert(&self, db: &Connection) -> Result<(), Fault> {
        let life = &self.life;
        let finished = life.finished_at.unwrap_or(life.run_at).as_micros();
        // Differences take a byte or four where times take eight.
        let ago = |time: Option<Time>| time.map(|t| finished - t.as_micros());
        let flags = self.marks | write_flags(life) | (self.status.map_or(0, |s| s.code() as u32) << STATUS_SHIFT);
        let (seq, state) = (self.seq as i64, life.state.code());
        let wall = (self.usage.wall_seconds != 0.0).then_some(self.usage.wall_seconds);
        let plain_usage = self.usage
            == Usage {
                wall_seconds: self.usage.wall_seconds,
                ..Usage::default()
            };
        // `null` is what most handlers answer, and the state says that there is a result.
        let result = self.result.as_ref().map(Json::get).filter(|text| *text != "null");
        let common = plain_usage
            && self.version == 3
            && life.failures | life.crashes | life.unmet == 0
            && life.cancel_requested_at.is_none()
            && self.error.is_none()
            && self.actor.is_none()
            && self.progress.is_none();
        if common {
            db.prepare_cached(
                "INSERT INTO outcome(row, seq, state, flags, attempt, finished_at, started_ago, run_ago, ready_ago,
                 executor, wall, result) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                self.row,
                seq,
                state,
                flags,
                life.attempt,
                finished,
                ago(life.started_at),
                ago(Some(life.run_at)),
                ago(life.ready_at),
                self.executor,
                wall,
                result
            ])?;
            return Ok(());
        }
        let usage = if plain_usage {
            None
        } else {
            serde_json::to_string(&self.usage).ok()
        };
        let (kind, message) = self.error.as_ref().map(|e| (&e.kind, &e.message)).unzip();
        db.prepare_cached(INSERT_OUTCOME.as_str())?.execute(params![
            self.row,
            seq,
            state,
            flags,
            life.attempt,
            finished,
            ago(life.started_at),
            ago(Some(life.run_at)),
            ago(life.ready_at),
            self.executor,
            wall,
            result,
            self.version,
            some(life.failures),
            some(life.crashes),
            some(life.unmet),
            micros(life.cancel_requested_at),
            usage,
            kind,
            message,
            self.actor,
            write_progress(self.progress.as_ref()),
        ])?;
        Ok(())
    }

    /// Loads the row of a finished task.
    pub(super) fn load(db: &Connection, row: i64) -> Result<Option<OutcomeRow>, Fault> {
        let mut statement = db.prepare_cached(LOAD_OUTCOME.as_str())?;
        let mut rows = statement.query([row])?;
        rows.next()?.map(OutcomeRow::read).transpose()
    }

    fn read(row: &Row<'_>) -> Result<OutcomeRow, Fault> {
        let id: i64 = row.get(0)?;
        let flags: u32 = row.get(3)?;
        let finished: i64 = row.get(5)?;
        let ago = |column: usize| -> Result<Option<Time>, rusqlite::Error> {
            Ok(row
                .get::<_, Option<i64>>(column)?
                .map(|ago| Time::from_micros(finished - ago)))
        };
        let finished_at = Time::from_micros(finished);
        let state = State::from_code(row.get(2)?)
            .filter(|s| s.is_terminal())
            .ok_or_else(|| damaged(id, "state"))?;
        let mut life = Lifecycle::new(ago(7)?.unwrap_or(finished_at), None, 0, OnDependencyFailure::Cancel);
        life.state = state;
        life.ready_at = ago(8)?;
        life.started_at = ago(6)?;
        life.finished_at = Some(finished_at);
        life.dead_lettered_at = (state == State::Failed).then_some(finished_at);
        life.attempt = number(row, 4)?;
        life.failures = number(row, 13)?;
        life.crashes = number(row, 14)?;
        life.unmet = number(row, 15)?;
        life.cancel_requested_at = time(row, 16)?;
        read_flags(&mut life, flags, id)?;
        let wall_seconds = row.get::<_, Option<f64>>(10)?.unwrap_or(0.0);
        let usage = row
            .get_ref(17)?
            .as_str_or_null()
            .ok()
            .flatten()
            .and_then(|text| serde_json::from_str(text).ok());
        let result = match row.get::<_, Option<String>>(11)? {
            Some(text) => Some(Json::parse(text).map_err(|_| damaged(id, "result"))?),
            None => (state == State::Completed).then(Json::null),
        };
        Ok(OutcomeRow {
            row: id,
            seq: row.get::<_, i64>(1)? as u64,
            life,
            version: row.get::<_, Option<u32>>(12)?.unwrap_or(3),
            marks: flags & ((1 << mark::BITS) - 1),
            status: ExecutionStatus::from_code(i64::from(flags >> STATUS_SHIFT)),
            executor: row.get(9)?,
            result,
            error: read_error(row, 18)?,
            usage: usage.unwrap_or(Usage {
                wall_seconds,
                ..Usage::default()
            }),
            actor: row.get(20)?,
            progress: read_progress(row, 21)?,
        })
    }

    /// How a finished task ended, without the rest.
    pub(super) fn state_of(db: &Connection, row: i64) -> Result<Option<State>, Fault> {
        let code: Option<i64> = db
            .prepare_cached("SELECT state FROM outcome WHERE row = ?")?
            .query_row([row], |r| r.get(0))
            .optional()?;
        code.map(|code| State::from_code(code).ok_or_else(|| damaged(row, "state")))
            .transpose()
    }
}

static LOAD_OUTCOME: std::sync::LazyLock<String> =
    std::sync::LazyLock::new(|| format!("SELECT {OUTCOME_COLUMNS} FROM outcome WHERE row = ?"));
static INSERT_OUTCOME: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    format!(
        "INSERT INTO outcome({OUTCOME_COLUMNS}) VALUES ({})",
        vec!["?"; 22].join(", ")
    )
});
