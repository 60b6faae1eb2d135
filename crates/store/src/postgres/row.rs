//! The row of an unfinished task (`live`), and that of a finished one (`outcome`).

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::Duration;

use pensum_core::order::{OrderRule, deadline_of, place};
use pensum_core::outcome::Progress;
use pensum_core::task::{ExecutionStatus, Lease, OnDependencyFailure};
use pensum_core::{
    ErrorInfo, Json, LeaseId, Lifecycle, Name, NodeId, Priority, State, TaskId, Time, Usage, WaitingFor,
};
use tokio_postgres::Row;
use uuid::Uuid;

use super::error::Fault;
use super::pool::{Value, text};

/// What else about a task is in other tables, so that nothing else has to look there.
pub(super) mod mark {
    pub(in crate::postgres) const CHECKPOINT: u32 = 1;
    pub(in crate::postgres) const INBOX: u32 = 2;
    pub(in crate::postgres) const STEPS: u32 = 4;
    pub(in crate::postgres) const UNIQUE: u32 = 8;
    pub(in crate::postgres) const DEPENDS: u32 = 16;
    pub(in crate::postgres) const LOGS: u32 = 32;
    pub(in crate::postgres) const EVENTS: u32 = 64;
    pub(in crate::postgres) const EXECUTIONS: u32 = 128;
    pub(in crate::postgres) const TAGS: u32 = 256;
    /// The `started` event of the present or last run is in the event table, not left to be derived.
    pub(in crate::postgres) const START: u32 = 512;
    /// Others depend on it.
    pub(in crate::postgres) const AWAITED: u32 = 1024;
    pub(in crate::postgres) const ALL: u32 = (1 << 12) - 1;
}

/// Bits of the column `flags` beside the marks. `schema.sql` and the claim repeat some of them as numbers.
pub(super) mod flag {
    pub(in crate::postgres) const SAME_ATTEMPT: u32 = 4_096;
    pub(in crate::postgres) const BACKING_OFF: u32 = 8_192;
    pub(in crate::postgres) const SUSPECT: u32 = 16_384;
    pub(in crate::postgres) const READY_IS_RUN: u32 = 32_768;
    pub(in crate::postgres) const POLICY_SHIFT: u32 = 16;
    /// Where the flags of an outcome keep the status of its execution.
    pub(in crate::postgres) const STATUS_SHIFT: u32 = 18;
    pub(in crate::postgres) const ALONE: u32 = 4_194_304;
    pub(in crate::postgres) const CHECKPOINTED: u32 = 8_388_608;
    /// The lease is that of an agent's session.
    pub(in crate::postgres) const AGENT: u32 = 16_777_216;
    /// By how many levels a task that waits has risen above its priority, which `rank` includes.
    pub(in crate::postgres) const RISEN_SHIFT: u32 = 25;
    pub(in crate::postgres) const RISEN: u32 = 7 << RISEN_SHIFT;
}

/// Why a row cannot be claimed. Never renumbered.
pub(super) mod gate {
    pub(in crate::postgres) const READY: i16 = 0;
    pub(in crate::postgres) const LATER: i16 = 1;
    pub(in crate::postgres) const DEPENDENCIES: i16 = 2;
    pub(in crate::postgres) const PAUSED: i16 = 3;
    pub(in crate::postgres) const WAITING: i16 = 4;
    pub(in crate::postgres) const RETRYING: i16 = 5;
    pub(in crate::postgres) const RUNNING: i16 = 6;
    /// It is another task's turn among those of its key.
    pub(in crate::postgres) const KEY: i16 = 7;
}

/// Where a task counts. Never renumbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(i16)]
pub(super) enum Cell {
    Ready,
    Dependencies,
    Later,
    Retrying,
    Paused,
    Running,
    Completed,
    Failed,
    Cancelled,
    /// Attempts that have ended, not tasks.
    Executions,
}

impl Cell {
    /// Where a finished task counts.
    pub(super) const fn of_end(state: State) -> Cell {
        match state {
            State::Completed => Cell::Completed,
            State::Failed => Cell::Failed,
            _ => Cell::Cancelled,
        }
    }
}

/// One run of a task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Run {
    /// The interned name of who runs it.
    pub(super) executor: u32,
    pub(super) taken_at: Time,
    /// Claimed as a suspect, to run alone.
    pub(super) alone: bool,
    pub(super) checkpointed: bool,
    /// By an agent's session.
    pub(super) by_agent: bool,
}

/// An unfinished task, as far as scheduling goes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LiveRow {
    pub(super) row: i64,
    pub(super) class: u32,
    pub(super) priority: Priority,
    pub(super) deadline: Option<Time>,
    /// Namespace and key, for a task that has one.
    pub(super) scope: Option<Name>,
    pub(super) life: Lifecycle,
    pub(super) run: Option<Run>,
    pub(super) version: u32,
    pub(super) expires_at: Option<Time>,
    pub(super) queue_timeout: Option<Duration>,
    pub(super) parent: Option<i64>,
    /// Its own children that have not ended.
    pub(super) children: u32,
    pub(super) marks: u32,
    pub(super) progress: Option<Progress>,
    pub(super) error: Option<ErrorInfo>,
    /// Why a running task was asked to stop, until it does.
    pub(super) cancel_reason: Option<String>,
    /// As it was loaded; what it becomes follows from the rest when it is saved.
    pub(super) gate: i16,
    /// Above its priority.
    pub(super) risen: u8,
    /// When it rises again. Not loaded: see [`LiveRow::age`].
    pub(super) rises_at: Option<Time>,
    /// Its place in the claim order, `rank` and `deadline`, as they were loaded.
    pub(super) stands: (i16, i64),
}

/// The name of a key's turn: keys of different namespaces do not meet.
pub(super) fn scope_of(namespace: &str, key: &str) -> Name {
    // A control character that no name may hold keeps them apart.
    Name::from(format!("{namespace}\u{1f}{}", text(key)))
}

/// The columns of `live` with their types, in the order in which [`LiveRow::read`] and [`LiveRow::values`] take them.
pub(super) const LIVE: [(&str, &str); 37] = [
    ("row", "bigint"),
    ("class", "integer"),
    ("rank", "smallint"),
    ("deadline", "bigint"),
    ("run_at", "bigint"),
    ("gate", "smallint"),
    ("flags", "integer"),
    ("due_at", "bigint"),
    ("timer_at", "bigint"),
    ("scope", "text"),
    ("state", "smallint"),
    ("waiting_for", "smallint"),
    ("wake_at", "bigint"),
    ("signal", "text"),
    ("attempt", "bigint"),
    ("failures", "bigint"),
    ("crashes", "bigint"),
    ("unmet", "bigint"),
    ("ready_at", "bigint"),
    ("started_at", "bigint"),
    ("paused_at", "bigint"),
    ("cancel_requested_at", "bigint"),
    ("pause_requested_at", "bigint"),
    ("expires_at", "bigint"),
    ("queue_timeout", "bigint"),
    ("parent", "bigint"),
    ("children", "bigint"),
    ("version", "bigint"),
    ("progress", "text"),
    ("error_kind", "text"),
    ("error_message", "text"),
    ("cancel_reason", "text"),
    ("lease", "uuid"),
    ("node", "bigint"),
    ("executor", "integer"),
    ("taken_at", "bigint"),
    ("acceptor", "bigint"),
];

/// The same with what is only written.
static KEPT: LazyLock<Vec<(&str, &str)>> = LazyLock::new(|| [&LIVE[..], &[("rises_at", "bigint")]].concat());

/// The columns of `outcome`, in the order of [`OutcomeRow::read`] and [`OutcomeRow::values`].
pub(super) const OUTCOME: [(&str, &str); 21] = [
    ("row", "bigint"),
    ("state", "smallint"),
    ("flags", "integer"),
    ("attempt", "bigint"),
    ("finished_at", "bigint"),
    ("started_at", "bigint"),
    ("run_at", "bigint"),
    ("ready_at", "bigint"),
    ("executor", "integer"),
    ("wall", "double precision"),
    ("result", "text"),
    ("version", "bigint"),
    ("failures", "bigint"),
    ("crashes", "bigint"),
    ("unmet", "bigint"),
    ("cancel_requested_at", "bigint"),
    ("usage", "text"),
    ("error_kind", "text"),
    ("error_message", "text"),
    ("actor", "text"),
    ("progress", "text"),
];

/// `a.x, a.y, …` for a table named `a` in a query.
pub(super) fn list(columns: &[(&str, &str)], table: &str) -> String {
    let names: Vec<String> = columns.iter().map(|(name, _)| format!("{table}.{name}")).collect();
    names.join(", ")
}

/// `x, y, …`
pub(super) fn names(columns: &[(&str, &str)]) -> String {
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

/// `$1::bigint[], …`, from parameter `first` on.
fn arrays(columns: &[(&str, &str)], first: usize) -> String {
    joined(columns, first, |array| array)
}

/// When the first row of a gate comes due, as a subquery.
///
/// What the planner believes of a table may be long out of date, or rest on nothing, and a look for a row that is not
/// there must not become a walk through a million others. An order that just one index has, with a limit, leaves it no
/// choice; and so do rows of two columns, by which it cannot mean another index that holds the gate.
pub(super) fn first_due(gate: i16) -> String {
    format!(
        "(SELECT due_at FROM pensum.live WHERE {} AND (gate, due_at) < ({gate}::smallint, 9223372036854775807)
          ORDER BY gate, due_at LIMIT 1)",
        from_gate(gate)
    )
}

/// What holds for rows of a gate that have come due by `$1`; to be asked for in the order of `gate, due_at`.
pub(super) fn is_due(gate: i16) -> String {
    format!("{} AND (gate, due_at) <= ({gate}::smallint, $1)", from_gate(gate))
}

/// The classes of the rows at a gate that has a time, the first `limit` of them, as a subquery; by the one index that has
/// this order.
pub(super) fn classes_at(gate: i16, limit: &str) -> String {
    rows_at("class", gate, limit)
}

/// The same with other columns.
pub(super) fn rows_at(columns: &str, gate: i16, limit: &str) -> String {
    format!(
        "(SELECT {columns} FROM pensum.live WHERE {} AND (gate, due_at) <= ({gate}::smallint, 9223372036854775807)
          ORDER BY gate, due_at LIMIT {limit})",
        from_gate(gate)
    )
}

fn from_gate(gate: i16) -> String {
    format!("gate <> 0 AND (gate, due_at) >= ({gate}::smallint, (-9223372036854775807)::bigint)")
}

/// `(SELECT $1::bigint[]), …`: the planner does not look into these, so that one plan is as good as the other for arrays of
/// any length, and a prepared statement keeps the one that it has.
pub(super) fn opaque_arrays(columns: &[(&str, &str)], first: usize) -> String {
    joined(columns, first, |array| format!("(SELECT {array})"))
}

fn joined(columns: &[(&str, &str)], first: usize, form: impl Fn(String) -> String) -> String {
    let arrays: Vec<String> = columns
        .iter()
        .enumerate()
        .map(|(at, (_, kind))| form(format!("${}::{kind}[]", at + first)))
        .collect();
    arrays.join(", ")
}

/// `unnest($1::bigint[], …)`, from parameter `first` on.
pub(super) fn unnest(columns: &[(&str, &str)], first: usize) -> String {
    format!("unnest({})", arrays(columns, first))
}

pub(super) static LIVE_LIST: LazyLock<String> = LazyLock::new(|| list(&LIVE, "l"));
pub(super) static OUTCOME_LIST: LazyLock<String> = LazyLock::new(|| list(&OUTCOME, "o"));
/// Inserts or replaces rows of unfinished tasks.
pub(super) static SAVE_LIVE: LazyLock<String> = LazyLock::new(|| {
    let set: Vec<String> = KEPT[1..]
        .iter()
        .map(|(name, _)| format!("{name} = EXCLUDED.{name}"))
        .collect();
    format!(
        "INSERT INTO pensum.live({}) SELECT * FROM {} ON CONFLICT (row) DO UPDATE SET {}",
        names(&KEPT),
        unnest(&KEPT, 1),
        set.join(", ")
    )
});
/// Inserts rows of tasks that ended, or changes them.
pub(super) static SAVE_OUTCOME: LazyLock<String> = LazyLock::new(|| {
    let set: Vec<String> = OUTCOME[1..]
        .iter()
        .map(|(name, _)| format!("{name} = EXCLUDED.{name}"))
        .collect();
    format!(
        "INSERT INTO pensum.outcome({}) SELECT * FROM {} ON CONFLICT (row) DO UPDATE SET {}",
        names(&OUTCOME),
        unnest(&OUTCOME, 1),
        set.join(", ")
    )
});

pub(super) fn damaged(row: i64, what: &str) -> Fault {
    Fault::Damaged(format!("row {row} has an unknown {what}"))
}

fn time(row: &Row, column: usize) -> Result<Option<Time>, Fault> {
    Ok(row.try_get::<_, Option<i64>>(column)?.map(Time::from_micros))
}

fn number(row: &Row, column: usize) -> Result<u32, Fault> {
    Ok(row
        .try_get::<_, Option<i64>>(column)?
        .map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX)))
}

fn name(row: &Row, column: usize) -> Result<Option<Name>, Fault> {
    Ok(row.try_get::<_, Option<&str>>(column)?.map(Name::from))
}

pub(super) fn read_progress(row: &Row, column: usize) -> Result<Option<Progress>, Fault> {
    Ok(row
        .try_get::<_, Option<&str>>(column)?
        .and_then(|text| serde_json::from_str(text).ok()))
}

pub(super) fn read_error(row: &Row, column: usize) -> Result<Option<ErrorInfo>, Fault> {
    let kind: Option<String> = row.try_get(column)?;
    Ok(match kind {
        Some(kind) => Some(ErrorInfo {
            kind,
            message: row.try_get::<_, Option<String>>(column + 1)?.unwrap_or_default(),
        }),
        None => None,
    })
}

pub(super) fn micros(time: Option<Time>) -> Option<i64> {
    time.map(Time::as_micros)
}

pub(super) fn some(number: u32) -> Option<i64> {
    (number != 0).then_some(i64::from(number))
}

pub(super) fn write_progress(progress: Option<&Progress>) -> Option<String> {
    progress
        .and_then(|p| serde_json::to_string(p).ok())
        .map(|json| text(&json).into_owned())
}

/// A lease's id, as it is in the row: one claim writes the same bits to each of its rows, and each lease's own id is
/// these with the row's number laid over them.
pub(super) fn stored_lease(lease: LeaseId, row: i64) -> Uuid {
    Uuid::from_u128(lease.0 ^ row as u128)
}

pub(super) fn lease_of(stored: Uuid, row: i64) -> LeaseId {
    LeaseId(stored.as_u128() ^ row as u128)
}

/// The priority with its sign turned, so that the most urgent sorts first.
pub(super) fn rank(priority: Priority) -> i16 {
    -i16::try_from(priority.level()).unwrap_or(0)
}

/// Who answers for a task, as it is in the row.
pub(super) fn acceptor(life: &Lifecycle) -> Option<i64> {
    life.accepted_by.map(|process| process.0 as i64)
}

impl LiveRow {
    /// A task of which nothing was asked but to run, just enqueued at `run_at`.
    pub(super) fn plain(row: i64, class: u32, priority: Priority, run_at: Time) -> LiveRow {
        LiveRow {
            row,
            class,
            priority,
            deadline: None,
            scope: None,
            life: Lifecycle::new(run_at, None, 0, OnDependencyFailure::Cancel),
            run: None,
            version: 1,
            expires_at: None,
            queue_timeout: None,
            parent: None,
            children: 0,
            marks: 0,
            progress: None,
            error: None,
            cancel_reason: None,
            gate: gate::READY,
            risen: 0,
            rises_at: None,
            stands: (0, 0),
        }
    }

    /// Says where it stands in a queue with this rule: a waiting task rises while it is ready.
    pub(super) fn age(&mut self, rule: OrderRule, now: Time) {
        if !matches!(
            self.gate_at(now),
            gate::READY | gate::KEY | gate::LATER | gate::RETRYING
        ) {
            (self.risen, self.rises_at) = (0, None);
            return;
        }
        let level = rule.level(self.priority, self.life.ready_from(), now);
        self.risen = u8::try_from(level.level() - self.priority.level()).unwrap_or(0);
        self.rises_at = rule.rises_at(self.priority, self.life.ready_from(), level);
    }

    /// The priority as the claim order has it.
    pub(super) fn rank(&self) -> i16 {
        rank(self.priority) - i16::from(self.risen)
    }

    /// From [`LIVE`], beginning at `from`.
    pub(super) fn read(found: &Row, from: usize) -> Result<LiveRow, Fault> {
        let at = |column: usize| from + column;
        let row: i64 = found.try_get(at(0))?;
        let run_at = Time::from_micros(found.try_get(at(4))?);
        let class = found.try_get::<_, i32>(at(1))? as u32;
        let flags = found.try_get::<_, i32>(at(6))? as u32;
        let (risen, stands) = (
            (flags & flag::RISEN) >> flag::RISEN_SHIFT,
            (found.try_get(at(2))?, found.try_get(at(3))?),
        );
        let level = -i64::from(stands.0) - i64::from(risen);
        let priority = Priority::from_level(level).ok_or_else(|| damaged(row, "priority"))?;
        let mut live = LiveRow::plain(row, class, priority, run_at);
        (live.risen, live.stands) = (risen as u8, stands);
        live.gate = found.try_get(at(5))?;
        live.marks = flags & mark::ALL;
        live.deadline = deadline_of(stands.1);
        live.scope = name(found, at(9))?;
        let life = &mut live.life;
        let state = found.try_get::<_, Option<i16>>(at(10))?.unwrap_or(0);
        life.state = State::from_code(i64::from(state)).ok_or_else(|| damaged(row, "state"))?;
        life.waiting_for = match found.try_get::<_, Option<i16>>(at(11))? {
            None => None,
            Some(code) => Some(WaitingFor::from_code(i64::from(code)).ok_or_else(|| damaged(row, "wait"))?),
        };
        life.wake_at = time(found, at(12))?;
        life.signal = name(found, at(13))?;
        life.attempt = number(found, at(14))?;
        life.failures = number(found, at(15))?;
        life.crashes = number(found, at(16))?;
        life.unmet = number(found, at(17))?;
        life.ready_at = if flags & flag::READY_IS_RUN != 0 {
            Some(run_at)
        } else {
            time(found, at(18))?
        };
        life.started_at = time(found, at(19))?;
        life.paused_at = time(found, at(20))?;
        life.cancel_requested_at = time(found, at(21))?;
        life.pause_requested_at = time(found, at(22))?;
        read_flags(life, flags, row)?;
        live.expires_at = time(found, at(23))?;
        live.queue_timeout = found
            .try_get::<_, Option<i64>>(at(24))?
            .map(|m| Duration::from_micros(m.max(0) as u64));
        live.parent = found.try_get(at(25))?;
        live.children = number(found, at(26))?;
        live.version = number(found, at(27))?.max(1);
        live.progress = read_progress(found, at(28))?;
        live.error = read_error(found, at(29))?;
        live.cancel_reason = found.try_get(at(31))?;
        live.life.accepted_by = found.try_get::<_, Option<i64>>(at(36))?.map(|id| NodeId(id as u64));
        if let Some(stored) = found.try_get::<_, Option<Uuid>>(at(32))? {
            live.life.lease = Some(Lease {
                id: lease_of(stored, row),
                node: NodeId(found.try_get::<_, Option<i64>>(at(33))?.unwrap_or(0) as u64),
                expires_at: time(found, at(7))?.unwrap_or(run_at),
            });
            live.run = Some(Run {
                executor: found.try_get::<_, Option<i32>>(at(34))?.unwrap_or(0) as u32,
                taken_at: time(found, at(35))?.unwrap_or(run_at),
                alone: flags & flag::ALONE != 0,
                checkpointed: flags & flag::CHECKPOINTED != 0,
                by_agent: flags & flag::AGENT != 0,
            });
        }
        Ok(live)
    }

    /// The columns of several rows, for [`SAVE_LIVE`]. `now` decides what gates them; the claimable ones of a key stand
    /// behind, until their key's turn is settled.
    pub(super) fn values<'a>(rows: &[&'a LiveRow], now: Time) -> Vec<Value<'a>> {
        fn int8<'a>(rows: &[&'a LiveRow], f: impl Fn(&LiveRow) -> Option<i64>) -> Value<'a> {
            Value::Int8s(rows.iter().map(|r| f(r)).collect())
        }
        fn texts<'a>(rows: &[&'a LiveRow], f: impl Fn(&'a LiveRow) -> Option<Cow<'a, str>>) -> Value<'a> {
            Value::Texts(rows.iter().map(|r| f(r)).collect())
        }
        vec![
            int8(rows, |r| Some(r.row)),
            Value::Int4s(rows.iter().map(|r| Some(r.class as i32)).collect()),
            Value::Int2s(rows.iter().map(|r| Some(r.rank())).collect()),
            int8(rows, |r| Some(place(r.deadline, r.row))),
            int8(rows, |r| Some(r.life.run_at.as_micros())),
            Value::Int2s(rows.iter().map(|r| Some(r.gate_at(now))).collect()),
            Value::Int4s(rows.iter().map(|r| Some(r.flags() as i32)).collect()),
            int8(rows, |r| micros(r.due_at(now))),
            int8(rows, |r| micros(r.timer_at())),
            texts(rows, |r| r.scope.as_deref().map(Cow::Borrowed)),
            Value::Int2s(
                rows.iter()
                    .map(|r| (r.life.state != State::Queued).then(|| r.life.state.code() as i16))
                    .collect(),
            ),
            Value::Int2s(
                rows.iter()
                    .map(|r| r.life.waiting_for.map(|w| w.code() as i16))
                    .collect(),
            ),
            int8(rows, |r| micros(r.life.wake_at)),
            texts(rows, |r| r.life.signal.as_deref().map(text)),
            int8(rows, |r| some(r.life.attempt)),
            int8(rows, |r| some(r.life.failures)),
            int8(rows, |r| some(r.life.crashes)),
            int8(rows, |r| some(r.life.unmet)),
            int8(rows, |r| {
                if r.life.ready_at == Some(r.life.run_at) {
                    None
                } else {
                    micros(r.life.ready_at)
                }
            }),
            int8(rows, |r| micros(r.life.started_at)),
            int8(rows, |r| micros(r.life.paused_at)),
            int8(rows, |r| micros(r.life.cancel_requested_at)),
            int8(rows, |r| micros(r.life.pause_requested_at)),
            int8(rows, |r| micros(r.expires_at)),
            int8(rows, |r| {
                r.queue_timeout
                    .map(|d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
            }),
            int8(rows, |r| r.parent),
            int8(rows, |r| some(r.children)),
            int8(rows, |r| (r.version != 1).then_some(i64::from(r.version))),
            texts(rows, |r| write_progress(r.progress.as_ref()).map(Cow::Owned)),
            texts(rows, |r| r.error.as_ref().map(|e| text(&e.kind))),
            texts(rows, |r| r.error.as_ref().map(|e| text(&e.message))),
            texts(rows, |r| r.cancel_reason.as_deref().map(text)),
            Value::Uuids(
                rows.iter()
                    .map(|r| r.life.lease.map(|l| stored_lease(l.id, r.row)))
                    .collect(),
            ),
            int8(rows, |r| r.life.lease.map(|l| l.node.0 as i64)),
            Value::Int4s(rows.iter().map(|r| r.run.map(|run| run.executor as i32)).collect()),
            int8(rows, |r| r.run.map(|run| run.taken_at.as_micros())),
            int8(rows, |r| acceptor(&r.life)),
            int8(rows, |r| micros(r.rises_at)),
        ]
    }

    pub(super) fn flags(&self) -> u32 {
        let bit = |on: bool, flag: u32| if on { flag } else { 0 };
        self.marks
            | write_flags(&self.life)
            | bit(self.life.ready_at == Some(self.life.run_at), flag::READY_IS_RUN)
            | bit(self.run.is_some_and(|run| run.alone), flag::ALONE)
            | bit(self.run.is_some_and(|run| run.checkpointed), flag::CHECKPOINTED)
            | bit(self.run.is_some_and(|run| run.by_agent), flag::AGENT)
            | u32::from(self.risen) << flag::RISEN_SHIFT
    }

    /// What gates the row at `now`, as far as the row itself says.
    pub(super) fn gate_at(&self, now: Time) -> i16 {
        let life = &self.life;
        match life.state {
            State::Running => gate::RUNNING,
            _ if life.paused_at.is_some() => gate::PAUSED,
            State::Waiting => gate::WAITING,
            _ if life.waiting_for.is_some() => gate::DEPENDENCIES,
            _ if life.run_at <= now && self.scope.is_none() => gate::READY,
            _ if life.run_at <= now => gate::KEY,
            _ if life.failures > 0 && life.backing_off => gate::RETRYING,
            _ => gate::LATER,
        }
    }

    /// Where a row with this gate counts.
    pub(super) fn cell(&self, gate: i16) -> Cell {
        match gate {
            gate::LATER => Cell::Later,
            gate::DEPENDENCIES => Cell::Dependencies,
            gate::PAUSED => Cell::Paused,
            gate::RETRYING => Cell::Retrying,
            gate::RUNNING if self.life.paused_at.is_some() => Cell::Paused,
            gate::RUNNING | gate::WAITING => Cell::Running,
            _ => Cell::Ready,
        }
    }

    pub(super) fn due_at(&self, now: Time) -> Option<Time> {
        match self.gate_at(now) {
            gate::LATER | gate::RETRYING => Some(self.life.run_at),
            gate::RUNNING => self.life.lease.map(|l| l.expires_at),
            gate::WAITING => self.life.wake_at,
            _ => None,
        }
    }

    /// When a queued task expires, or has been ready for too long.
    pub(super) fn timer_at(&self) -> Option<Time> {
        let life = &self.life;
        if life.state != State::Queued {
            return None;
        }
        let expires = self.expires_at.filter(|_| !life.has_started());
        let impatient = self
            .queue_timeout
            .filter(|_| life.waiting_for.is_none() && life.paused_at.is_none())
            .map(|longest| self.life.ready_from().plus(longest));
        [expires, impatient].into_iter().flatten().min()
    }
}

pub(super) fn write_flags(life: &Lifecycle) -> u32 {
    let bit = |on: bool, flag: u32| if on { flag } else { 0 };
    bit(life.same_attempt, flag::SAME_ATTEMPT)
        | bit(life.backing_off, flag::BACKING_OFF)
        | bit(life.suspect, flag::SUSPECT)
        | (life.on_dependency_failure.code() as u32) << flag::POLICY_SHIFT
}

fn read_flags(life: &mut Lifecycle, flags: u32, row: i64) -> Result<(), Fault> {
    life.same_attempt = flags & flag::SAME_ATTEMPT != 0;
    life.backing_off = flags & flag::BACKING_OFF != 0;
    life.suspect = flags & flag::SUSPECT != 0;
    life.on_dependency_failure = OnDependencyFailure::from_code(i64::from(flags >> flag::POLICY_SHIFT & 3))
        .ok_or_else(|| damaged(row, "dependency policy"))?;
    Ok(())
}

/// A finished task: how it ended, and its last execution.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OutcomeRow {
    pub(super) row: i64,
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

/// The number of the event that took a task to this version; the start of the run before it has the number below.
pub(super) fn seq_of(version: u32) -> u64 {
    2 * u64::from(version)
}

impl OutcomeRow {
    /// The version that its end took it to. Changes since then have moved it on; each of them has an event with the odd
    /// number below that of its version, for which `is_change` is asked.
    pub(super) fn end_version(&self, is_change: impl Fn(u64) -> bool) -> u32 {
        let mut version = self.version;
        while version > 1 && is_change(seq_of(version) - 1) {
            version -= 1;
        }
        version
    }

    /// The number of its terminal event.
    pub(super) fn seq(&self) -> u64 {
        seq_of(self.version)
    }

    /// From [`OUTCOME`], beginning at `from`.
    pub(super) fn read(found: &Row, from: usize) -> Result<OutcomeRow, Fault> {
        let at = |column: usize| from + column;
        let row: i64 = found.try_get(at(0))?;
        let flags = found.try_get::<_, i32>(at(2))? as u32;
        let finished_at = Time::from_micros(found.try_get(at(4))?);
        let state = State::from_code(i64::from(found.try_get::<_, i16>(at(1))?))
            .filter(|s| s.is_terminal())
            .ok_or_else(|| damaged(row, "state"))?;
        let run_at = Time::from_micros(found.try_get(at(6))?);
        let mut life = Lifecycle::new(run_at, None, 0, OnDependencyFailure::Cancel);
        life.state = state;
        life.ready_at = if flags & flag::READY_IS_RUN != 0 {
            Some(run_at)
        } else {
            time(found, at(7))?
        };
        life.started_at = time(found, at(5))?;
        life.finished_at = Some(finished_at);
        life.dead_lettered_at = (state == State::Failed).then_some(finished_at);
        life.attempt = number(found, at(3))?;
        life.failures = number(found, at(12))?;
        life.crashes = number(found, at(13))?;
        life.unmet = number(found, at(14))?;
        life.cancel_requested_at = time(found, at(15))?;
        read_flags(&mut life, flags, row)?;
        let wall_seconds = found.try_get::<_, Option<f64>>(at(9))?.unwrap_or(0.0);
        let usage = found
            .try_get::<_, Option<&str>>(at(16))?
            .and_then(|text| serde_json::from_str(text).ok());
        let result = match found.try_get::<_, Option<String>>(at(10))? {
            Some(text) => Some(Json::parse(text).map_err(|_| damaged(row, "result"))?),
            None => (state == State::Completed).then(Json::null),
        };
        Ok(OutcomeRow {
            row,
            life,
            version: number(found, at(11))?,
            marks: flags & mark::ALL,
            status: ExecutionStatus::from_code(i64::from(flags >> flag::STATUS_SHIFT & 7)),
            executor: found.try_get::<_, Option<i32>>(at(8))?.map(|n| n as u32),
            result,
            error: read_error(found, at(17))?,
            usage: usage.unwrap_or(Usage {
                wall_seconds,
                ..Usage::default()
            }),
            actor: name(found, at(19))?,
            progress: read_progress(found, at(20))?,
        })
    }

    fn flags(&self) -> u32 {
        let ready = if self.life.ready_at == Some(self.life.run_at) {
            flag::READY_IS_RUN
        } else {
            0
        };
        self.marks | write_flags(&self.life) | ready | self.status.map_or(0, |s| s.code() as u32) << flag::STATUS_SHIFT
    }

    /// The columns of several rows, for [`SAVE_OUTCOME`].
    pub(super) fn values<'a>(rows: &[&'a OutcomeRow]) -> Vec<Value<'a>> {
        fn int8<'a>(rows: &[&'a OutcomeRow], f: impl Fn(&OutcomeRow) -> Option<i64>) -> Value<'a> {
            Value::Int8s(rows.iter().map(|r| f(r)).collect())
        }
        fn texts<'a>(rows: &[&'a OutcomeRow], f: impl Fn(&'a OutcomeRow) -> Option<Cow<'a, str>>) -> Value<'a> {
            Value::Texts(rows.iter().map(|r| f(r)).collect())
        }
        vec![
            int8(rows, |r| Some(r.row)),
            Value::Int2s(rows.iter().map(|r| Some(r.life.state.code() as i16)).collect()),
            Value::Int4s(rows.iter().map(|r| Some(r.flags() as i32)).collect()),
            int8(rows, |r| some(r.life.attempt)),
            int8(rows, |r| micros(r.life.finished_at.or(Some(r.life.run_at)))),
            int8(rows, |r| micros(r.life.started_at)),
            int8(rows, |r| Some(r.life.run_at.as_micros())),
            int8(rows, |r| {
                if r.life.ready_at == Some(r.life.run_at) {
                    None
                } else {
                    micros(r.life.ready_at)
                }
            }),
            Value::Int4s(rows.iter().map(|r| r.executor.map(|e| e as i32)).collect()),
            Value::Floats(
                rows.iter()
                    .map(|r| (r.usage.wall_seconds != 0.0).then_some(r.usage.wall_seconds))
                    .collect(),
            ),
            // `null` is what most handlers answer, and the state says that there is a result.
            texts(rows, |r| {
                r.result.as_ref().map(Json::get).filter(|t| *t != "null").map(text)
            }),
            int8(rows, |r| Some(i64::from(r.version))),
            int8(rows, |r| some(r.life.failures)),
            int8(rows, |r| some(r.life.crashes)),
            int8(rows, |r| some(r.life.unmet)),
            int8(rows, |r| micros(r.life.cancel_requested_at)),
            texts(rows, |r| {
                let plain = Usage {
                    wall_seconds: r.usage.wall_seconds,
                    ..Usage::default()
                };
                if r.usage == plain {
                    None
                } else {
                    serde_json::to_string(&r.usage).ok().map(Cow::Owned)
                }
            }),
            texts(rows, |r| r.error.as_ref().map(|e| text(&e.kind))),
            texts(rows, |r| r.error.as_ref().map(|e| text(&e.message))),
            texts(rows, |r| r.actor.as_deref().map(text)),
            texts(rows, |r| write_progress(r.progress.as_ref()).map(Cow::Owned)),
        ]
    }
}

/// The id of a task, from its column.
pub(super) fn task_id(row: &Row, column: usize) -> Result<TaskId, Fault> {
    Ok(TaskId::from_uuid(row.try_get(column)?))
}
