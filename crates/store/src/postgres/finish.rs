//! What holders of leases report: renewals, ends of runs, checkpoints.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use pensum_core::store::{Applied, Beat, Checkpoint, Finish, LOG_LINES_MAX, LeaseRef, LogLine, Rejected, Renewal};
use pensum_core::task::ExecutionStatus;
use pensum_core::transition::{Event, Report};
use pensum_core::{Name, NewTask, Outcome, State, StoreError, TaskId, Time, Wait, apply};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::Inner;
use super::enqueue::{Prepared, prepare};
use super::error::Fault;
use super::notes::{Note, Notes};
use super::pool::{Durability, Statement, Value, text};
use super::reads::{StoredTask, TASK};
use super::row::{self, Cell, LiveRow, OUTCOME, OutcomeRow, Run, damaged, mark, scope_of, stored_lease};
use super::step::{Facts, Place, Work};

/// Marks that an end has nothing to do with: a task that has no others ends by one statement.
const QUIET: u32 =
    mark::STEPS | mark::DEPENDS | mark::LOGS | mark::EVENTS | mark::EXECUTIONS | mark::TAGS | mark::START;

/// Ends runs; per-item results, in order.
pub(super) async fn finish(
    inner: &Arc<Inner>,
    finishes: Vec<Finish>,
    now: Time,
) -> Result<Vec<Result<Applied, Rejected>>, StoreError> {
    let mut answers: Vec<Option<Result<Applied, Rejected>>> = finishes.iter().map(|_| None).collect();
    let mut plain = Vec::new();
    for (at, finish) in finishes.iter().enumerate() {
        plain.extend(plain_end(inner, finish, now).map(|end| (at, end)));
    }
    // One lease may be named twice in a batch; the second one is to find it gone.
    let mut seen = std::collections::HashSet::new();
    plain.retain(|(_, end)| seen.insert(end.outcome.row));
    inner.retry(|| inner.queues.follow(&inner.pool, &inner.wake)).await?;
    let notes = Notes::of(inner);
    for (_, end) in &mut plain {
        let note = inner.retry(|| notes.note(inner, end.class, end.run, ExecutionStatus::Completed));
        end.note = note.await?;
    }
    // Breakers hear of all in order: what goes on fully comes later.
    if plain.len() < finishes.len() {
        plain.retain(|(_, end)| end.note.is_none());
    }
    if !plain.is_empty() {
        let gone = inner
            .retry(|| end_plainly(inner, plain.iter().map(|(_, end)| end).collect(), &notes, now))
            .await?;
        let mut room = false;
        for (at, end) in plain.iter().filter(|(_, end)| gone.contains(&end.outcome.row)) {
            room |= inner.reopen(end.class);
            let lease = finishes[*at].lease;
            inner.holdings.remove(lease);
            let ended = vec![(lease.task, State::Completed)];
            answers[*at] = Some(Ok(Applied {
                state: Some(State::Completed),
                ended,
                ..Applied::default()
            }));
        }
        if room {
            inner.wake.room();
        }
    }
    let rest: Vec<(usize, &Finish)> = finishes
        .iter()
        .enumerate()
        .filter(|(at, _)| answers[*at].is_none())
        .collect();
    if !rest.is_empty() {
        let only: Vec<&Finish> = rest.iter().map(|(_, finish)| *finish).collect();
        let results = inner.retry(|| end_fully(inner, &only, now)).await?;
        for ((at, finish), result) in rest.iter().zip(results) {
            if !matches!(result, Ok(_) | Err(Rejected::LeaseLost(_))) {
                // Refused for what it says; the run goes on.
                answers[*at] = Some(result);
                continue;
            }
            inner.holdings.remove(finish.lease);
            answers[*at] = Some(result);
        }
    }
    let lost = |at: usize| Err(Rejected::LeaseLost(finishes[at].lease.task));
    Ok(answers
        .into_iter()
        .enumerate()
        .map(|(at, answer)| answer.unwrap_or_else(|| lost(at)))
        .collect())
}

/// The end of a run that touches nothing but its own rows, decided on what was read at the claim: it stands only if the
/// row still is as it was then.
struct PlainEnd {
    outcome: OutcomeRow,
    class: u32,
    run: Run,
    note: Option<Note>,
    lease: uuid::Uuid,
    version: u32,
}

fn plain_end(inner: &Inner, finish: &Finish, now: Time) -> Option<PlainEnd> {
    let Outcome::Done(result) = &finish.outcome else {
        return None;
    };
    if !finish.logs.is_empty() || !finish.consumed.is_empty() || !finish.spawn.is_empty() {
        return None;
    }
    let live = inner.holdings.get(finish.lease)?.live;
    let run = live.run?;
    if live.marks & !QUIET != 0
        || live.scope.is_some()
        || live.parent.is_some()
        || live.life.started_at != Some(run.taken_at)
    {
        return None;
    }
    let event = Event::Holder(finish.lease.lease, Report::Done);
    let transition = apply(&live.life, &event, now).ok()?;
    Some(PlainEnd {
        lease: stored_lease(finish.lease.lease, live.row),
        class: live.class,
        run,
        note: None,
        version: live.version,
        outcome: OutcomeRow {
            row: live.row,
            life: transition.next,
            version: live.version + 1,
            marks: live.marks,
            status: Some(ExecutionStatus::Completed),
            executor: Some(run.executor),
            result: Some(result.clone()),
            error: None,
            usage: finish.usage,
            actor: None,
            progress: finish.progress.clone().or(live.progress),
        },
    })
}

/// Ends runs that nothing waits for, as far as their rows are as they were read. The lookups are lateral, so that each is
/// one probe of the index whatever the planner thinks of the table's size; and `IS TRUE` keeps the one comparison of lists a
/// look into a hash table, where a join might become as many comparisons as the square of the batch.
static END: LazyLock<String> = LazyLock::new(|| {
    let columns = row::names(&OUTCOME);
    let first = OUTCOME.len() + 1;
    format!(
        "WITH given AS MATERIALIZED (SELECT * FROM unnest({arrays},
                (SELECT ${first}::uuid[]), (SELECT ${second}::bigint[])) AS g({columns}, lease, live_version)),
        gone AS (DELETE FROM pensum.live WHERE ctid = ANY(ARRAY(
            SELECT held.place FROM given CROSS JOIN LATERAL (
                SELECT ctid AS place FROM pensum.live l WHERE l.row = given.row AND l.lease = given.lease
                AND coalesce(l.version, 1) = given.live_version AND (l.flags & {marks}) = (given.flags & {marks})
                FOR UPDATE) held))
            RETURNING row, class),
        kept AS (INSERT INTO pensum.outcome({columns}) SELECT {columns} FROM given
            WHERE (row IN (SELECT row FROM gone)) IS TRUE),
        counted AS (INSERT INTO pensum.tally(class, cell, n)
            SELECT class, change.cell, change.by * count(*) FROM gone
            CROSS JOIN (VALUES ({running}::smallint, -1), ({completed}::smallint, 1), ({executions}::smallint, 1))
                AS change(cell, by) GROUP BY class, change.cell, change.by)
        SELECT row FROM gone",
        arrays = row::opaque_arrays(&OUTCOME, 1),
        marks = mark::ALL,
        second = first + 1,
        running = Cell::Running as i16,
        completed = Cell::Completed as i16,
        executions = Cell::Executions as i16,
    )
});

async fn end_plainly(
    inner: &Arc<Inner>,
    ends: Vec<&PlainEnd>,
    none: &Notes,
    now: Time,
) -> Result<std::collections::HashSet<i64>, Fault> {
    let noted: Vec<(i64, &Note)> = (ends.iter())
        .filter_map(|end| Some((end.outcome.row, end.note.as_ref()?)))
        .collect();
    let mut ends = ends;
    ends.sort_unstable_by_key(|end| end.outcome.row);
    let outcomes: Vec<&OutcomeRow> = ends.iter().map(|end| &end.outcome).collect();
    let mut params = OutcomeRow::values(&outcomes);
    params.push(Value::Uuids(ends.iter().map(|end| Some(end.lease)).collect()));
    params.push(Value::Int8s(
        ends.iter().map(|end| Some(i64::from(end.version))).collect(),
    ));
    let mut statements = vec![Statement { sql: &END, params }];
    let mut tx = inner.pool.begin(Durability::Acknowledged).await?;
    let gone = |rows: &[Row]| rows.iter().map(|found| Ok(found.try_get(0)?)).collect();
    if noted.is_empty() {
        let answers = tx.commit(&statements).await?;
        return gone(answers.first().map_or(&[], Vec::as_slice));
    }
    statements.push(none.with(noted.iter().map(|(_, note)| *note)).lock());
    let answers = tx.pipeline(&statements).await?;
    let gone: std::collections::HashSet<i64> = gone(answers.first().map_or(&[], Vec::as_slice))?;
    let ended = noted.iter().filter(|(row, _)| gone.contains(row));
    let notes = none.with(ended.map(|(_, note)| *note));
    let (seen, tells) = notes.write(answers.last().map_or(&[], Vec::as_slice), now)?;
    tx.commit(&seen).await?;
    if tells {
        inner.wake.room();
    }
    Ok(gone)
}

async fn end_fully(
    inner: &Arc<Inner>,
    finishes: &[&Finish],
    now: Time,
) -> Result<Vec<Result<Applied, Rejected>>, Fault> {
    let mut work = Work::begin(inner, Durability::Acknowledged, now).await?;
    let rows: Vec<i64> = finishes.iter().map(|f| f.lease.task.row()).collect();
    for finish in finishes {
        work.want_keys(finish.lease, &finish.spawn);
    }
    work.load_to_end(&rows).await?;
    work.look_ahead(&rows).await?;
    let specs = work.specs_of_failed(finishes).await?;
    let mut results = Vec::with_capacity(finishes.len());
    for finish in finishes {
        results.push(work.finish(finish, &specs).await?);
    }
    if work.commit().await? {
        inner.wake.ready();
    }
    Ok(results)
}

/// What a task whose run failed asked for about retries, by row.
type Specs = HashMap<i64, StoredTask>;

impl Work {
    /// The task that this lease holds, if it still does.
    fn held(&self, lease: LeaseRef) -> Option<&LiveRow> {
        self.live(lease.task.row())
            .filter(|(id, live)| *id == lease.task && live.life.lease.is_some_and(|l| l.id == lease.lease))
            .map(|(_, live)| live)
    }

    async fn specs_of_failed(&mut self, finishes: &[&Finish]) -> Result<Specs, Fault> {
        let rows: Vec<i64> = finishes
            .iter()
            .filter(|f| matches!(f.outcome, Outcome::Retry { .. }))
            .map(|f| f.lease.task.row())
            .collect();
        self.stored(&rows).await
    }

    /// What these tasks ask for, by row.
    pub(super) async fn stored(&mut self, rows: &[i64]) -> Result<Specs, Fault> {
        if rows.is_empty() {
            return Ok(Specs::new());
        }
        let sql = format!(
            "SELECT {} FROM pensum.task t WHERE t.row = ANY($1)",
            row::list(&TASK, "t")
        );
        let found = self.tx.query(&sql, &[(&rows, Type::INT8_ARRAY)]).await?;
        let mut stored = Specs::new();
        for found in found {
            let class = found.try_get::<_, i32>(2)? as u32;
            self.inner.catalog.class(&self.inner.pool, class).await?;
            let task = StoredTask::read(&found, 0, &self.inner.catalog)?;
            stored.insert(task.id.row(), task);
        }
        Ok(stored)
    }

    async fn finish(&mut self, finish: &Finish, specs: &Specs) -> Result<Result<Applied, Rejected>, Fault> {
        let lease = finish.lease;
        let row = lease.task.row();
        if self.held(lease).is_none() {
            return Ok(Err(Rejected::LeaseLost(lease.task)));
        }
        let spawned = match self.spawn(lease.task, &finish.spawn).await? {
            Ok(spawned) => spawned,
            Err(rejected) => return Ok(Err(rejected)),
        };
        self.append_logs(lease, &finish.logs).await?;
        self.consume(row, &finish.consumed);
        if let Some(live) = self.live_mut(row)
            && finish.progress.is_some()
        {
            live.progress.clone_from(&finish.progress);
        }
        let met = self.is_met(row, &finish.outcome, &finish.consumed).await?;
        let Some(live) = self.held(lease) else {
            return Ok(Err(Rejected::LeaseLost(lease.task)));
        };
        let (max_retries, policy) = match specs.get(&row) {
            Some(task) => (task.spec.max_retries(), task.spec.retry()),
            None if matches!(finish.outcome, Outcome::Retry { .. }) => return Err(damaged(row, "task")),
            None => (0, Default::default()),
        };
        let said = finish
            .outcome
            .clone()
            .said(live.life.failures, max_retries, policy, finish.draw, self.now, met);
        let facts = Facts {
            usage: finish.usage,
            error: said.error,
            result: said.result,
            actor: None,
        };
        if said.checkpoint.is_some()
            && let Some(live) = self.live_mut(row)
        {
            live.marks |= mark::CHECKPOINT;
        }
        let mut applied = Applied {
            spawned,
            ..Applied::default()
        };
        if let Err(rejected) = self
            .happen(row, &Event::Holder(lease.lease, said.report), facts, &mut applied)
            .await?
        {
            return Ok(Err(rejected));
        }
        if let Some(state) = said.checkpoint {
            self.put_checkpoint(row, &state);
        }
        applied.state = match self.place(lease.task) {
            Some(Place::Live(live)) => Some(live.life.state),
            Some(Place::Ended(outcome)) => Some(outcome.life.state),
            _ => None,
        };
        Ok(Ok(applied))
    }

    /// True when what a handler wants to wait for is there already.
    async fn is_met(&mut self, row: i64, outcome: &Outcome, consumed: &[u64]) -> Result<bool, Fault> {
        let Outcome::Wait { on, .. } = outcome else {
            return Ok(false);
        };
        Ok(match on {
            Wait::Children => self.live(row).is_some_and(|(_, live)| live.children == 0),
            Wait::Until(at) => *at <= self.now,
            Wait::Signal { name, .. } => {
                let used: Vec<i64> = consumed.iter().map(|seq| *seq as i64).collect();
                let sql = "SELECT 1 FROM pensum.inbox WHERE row = $1 AND name = $2 AND seq <> ALL($3) LIMIT 1";
                let name = text(name);
                let params = [
                    (&row as _, Type::INT8),
                    (&name as _, Type::TEXT),
                    (&used as _, Type::INT8_ARRAY),
                ];
                !self.tx.query(sql, &params).await?.is_empty()
            }
        })
    }

    /// Notes the keys of children, to be locked before rows are. They are in the namespace of their parent, which whoever
    /// claimed it knows; where nobody does, they are locked later.
    fn want_keys(&mut self, lease: LeaseRef, spawn: &[NewTask]) {
        if spawn.iter().all(|child| child.spec.key.is_none()) {
            return;
        }
        let held = self.inner.holdings.get(lease);
        let Some(class) = held.and_then(|held| self.inner.catalog.known_class(held.live.class)) else {
            return;
        };
        let keys = spawn.iter().filter_map(|child| child.spec.key.as_ref());
        self.wanted.extend(keys.map(|key| scope_of(&class.namespace, key)));
    }

    /// Enqueues children of a task.
    async fn spawn(&mut self, parent: TaskId, spawn: &[NewTask]) -> Result<Result<Vec<TaskId>, Rejected>, Fault> {
        if spawn.is_empty() {
            return Ok(Ok(Vec::new()));
        }
        let Some(class) = self.class_of(parent.row()) else {
            return Ok(Ok(Vec::new()));
        };
        let inner = Arc::clone(&self.inner);
        let namespace = inner.catalog.class(&inner.pool, class).await?.namespace.clone();
        let mut children = spawn.to_vec();
        for child in &mut children {
            child.spec.details_mut().parent_id = Some(parent);
        }
        let children: Vec<Prepared> = prepare(&inner, &namespace, children).await?;
        match self.plan(&namespace, &children).await? {
            Ok(plan) => {
                let enqueued = self.write_batch(&namespace, None, &children, plan).await?;
                Ok(Ok(enqueued.into_iter().map(|e| e.id).collect()))
            }
            Err(rejected) => Ok(Err(rejected)),
        }
    }

    fn consume(&mut self, row: i64, consumed: &[u64]) {
        if consumed.is_empty() {
            return;
        }
        self.extra.push(Statement {
            sql: "DELETE FROM pensum.inbox WHERE row = $1 AND seq = ANY($2)",
            params: vec![
                Value::Int8(Some(row)),
                Value::Int8s(consumed.iter().map(|seq| Some(*seq as i64)).collect()),
            ],
        });
    }

    /// Keeps lines up to the cap.
    async fn append_logs(&mut self, lease: LeaseRef, lines: &[LogLine]) -> Result<(), Fault> {
        if lines.is_empty() {
            return Ok(());
        }
        let row = lease.task.row();
        let known = self.inner.holdings.get(lease).and_then(|held| held.log_lines);
        let kept = match known {
            Some(kept) => kept,
            None => {
                let sql = "SELECT coalesce(max(seq), 0) FROM pensum.log WHERE row = $1";
                let rows = self.tx.query(sql, &[(&row, Type::INT8)]).await?;
                rows.first().map(|r| r.try_get::<_, i64>(0)).transpose()?.unwrap_or(0) as u64
            }
        };
        let (statement, _) = log_statement(row, kept, lines);
        self.extra.extend(statement);
        if let Some(live) = self.live_mut(row) {
            live.marks |= mark::LOGS;
        }
        Ok(())
    }
}

/// The statement that keeps further lines of a task that has `kept`, and how many it has then. A line's number is its
/// place among the lines of its task.
fn log_statement(row: i64, kept: u64, lines: &[LogLine]) -> (Option<Statement<'static>>, u64) {
    let room = LOG_LINES_MAX.saturating_sub(kept) as usize;
    let lines = &lines[..lines.len().min(room)];
    if lines.is_empty() {
        return (None, kept);
    }
    let message = |at: usize, line: &LogLine| -> Cow<'static, str> {
        if kept + at as u64 == LOG_LINES_MAX - 1 {
            return Cow::Owned(format!("further lines were dropped: a task keeps {LOG_LINES_MAX}"));
        }
        Cow::Owned(text(&line.message).into_owned())
    };
    let statement = Statement {
        sql: "INSERT INTO pensum.log(row, seq, at, attempt, stream, message)
              SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::smallint[], $6::text[])
              ON CONFLICT DO NOTHING",
        params: vec![
            Value::Int8s(vec![Some(row); lines.len()]),
            Value::Int8s((0..lines.len()).map(|at| Some((kept + 1 + at as u64) as i64)).collect()),
            Value::Int8s(lines.iter().map(|l| Some(l.at.as_micros())).collect()),
            Value::Int8s(lines.iter().map(|l| Some(i64::from(l.attempt))).collect()),
            Value::Int2s(lines.iter().map(|l| Some(l.stream.code() as i16)).collect()),
            Value::Texts(lines.iter().enumerate().map(|(at, l)| Some(message(at, l))).collect()),
        ],
    };
    (Some(statement), kept + lines.len() as u64)
}

/// Renews leases in one statement, and keeps progress and logs.
const RENEW: &str = "WITH given AS MATERIALIZED (
        SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::boolean[]) AS g(row, lease, progress, logs))
    UPDATE pensum.live l SET due_at = $5, progress = coalesce(given.progress, l.progress),
        flags = CASE WHEN given.logs THEN l.flags | 32 ELSE l.flags END
    FROM given WHERE l.row = given.row AND l.lease = given.lease AND l.ctid = ANY(ARRAY(
        SELECT held.place FROM given CROSS JOIN LATERAL (
            SELECT ctid AS place FROM pensum.live h WHERE h.row = given.row AND h.lease = given.lease AND h.gate = 6
            FOR UPDATE) held))
    RETURNING l.row, l.lease, l.cancel_requested_at IS NOT NULL, coalesce(l.pause_requested_at, l.paused_at) IS NOT NULL";

/// Renews leases for `lease` from `now`. Durable, for all its cost of a commit every few seconds: a renewal that a crash of
/// the server undid would let another node take over while the holder still trusts its lease.
pub(super) async fn renew(
    inner: &Arc<Inner>,
    beats: &[Beat],
    lease: Duration,
    now: Time,
) -> Result<Vec<Renewal>, Fault> {
    if beats.is_empty() {
        return Ok(Vec::new());
    }
    let expires_at = now.plus(lease);
    let mut sorted: Vec<&Beat> = beats.iter().collect();
    sorted.sort_unstable_by_key(|beat| (beat.lease.task.row(), beat.lease.lease));
    sorted.dedup_by_key(|beat| beat.lease);
    let key = |lease: LeaseRef| (lease.task.row(), stored_lease(lease.lease, lease.task.row()));
    let mut tx = inner.pool.begin(Durability::Acknowledged).await?;
    let mut found: HashMap<(i64, uuid::Uuid), (bool, bool)> = HashMap::new();
    // A row that somebody changed just now was waited for, and then not seen: the statement sees the moment that it began
    // in. By now it is locked here, and the second look sees what it has become. Only what that does not find is lost.
    for _ in 0..2 {
        let left: Vec<&Beat> = sorted
            .iter()
            .copied()
            .filter(|b| !found.contains_key(&key(b.lease)))
            .collect();
        if left.is_empty() {
            break;
        }
        let params = renewal(&left, expires_at);
        for held in tx.pipeline(&[Statement { sql: RENEW, params }]).await?.iter().flatten() {
            found.insert(
                (held.try_get(0)?, held.try_get(1)?),
                (held.try_get(2)?, held.try_get(3)?),
            );
        }
    }
    let mut logs = Vec::new();
    let mut counts = Vec::new();
    for beat in beats
        .iter()
        .filter(|b| !b.logs.is_empty() && found.contains_key(&key(b.lease)))
    {
        let row = beat.lease.task.row();
        let kept = match inner.holdings.get(beat.lease).and_then(|held| held.log_lines) {
            Some(kept) => kept,
            None => {
                let sql = "SELECT coalesce(max(seq), 0) FROM pensum.log WHERE row = $1";
                let rows = tx.query(sql, &[(&row, Type::INT8)]).await?;
                rows.first().map(|r| r.try_get::<_, i64>(0)).transpose()?.unwrap_or(0) as u64
            }
        };
        let (statement, kept) = log_statement(row, kept, &beat.logs);
        logs.extend(statement);
        counts.push((beat.lease, kept));
    }
    tx.commit(&logs).await?;
    for (lease, kept) in counts {
        inner.holdings.change(lease, |held| {
            held.log_lines = Some(kept);
            held.live.marks |= mark::LOGS;
        });
    }
    let mut renewals = Vec::with_capacity(beats.len());
    for beat in beats {
        renewals.push(match found.get(&key(beat.lease)) {
            Some((cancel, pause)) => {
                inner.holdings.change(beat.lease, |held| {
                    if let Some(lease) = &mut held.live.life.lease {
                        lease.expires_at = expires_at;
                    }
                    if beat.progress.is_some() {
                        held.live.progress.clone_from(&beat.progress);
                    }
                });
                Renewal::Held {
                    expires_at,
                    cancel: *cancel,
                    pause: *pause,
                }
            }
            None => {
                inner.holdings.remove(beat.lease);
                Renewal::Lost
            }
        });
    }
    Ok(renewals)
}

/// The parameters of [`RENEW`].
fn renewal(beats: &[&Beat], expires_at: Time) -> Vec<Value<'static>> {
    let lease = |b: &&Beat| stored_lease(b.lease.lease, b.lease.task.row());
    let progress = |b: &&Beat| row::write_progress(b.progress.as_ref()).map(Cow::Owned);
    vec![
        Value::Int8s(beats.iter().map(|b| Some(b.lease.task.row())).collect()),
        Value::Uuids(beats.iter().map(|b| Some(lease(b))).collect()),
        Value::Texts(beats.iter().map(progress).collect()),
        Value::Bools(beats.iter().map(|b| Some(!b.logs.is_empty())).collect()),
        Value::Int8(Some(expires_at.as_micros())),
    ]
}

/// Saves state of a running task, fenced by its lease.
pub(super) async fn checkpoint(
    inner: &Arc<Inner>,
    checkpoint: &Checkpoint,
    now: Time,
) -> Result<Result<Applied, Rejected>, Fault> {
    let lease = checkpoint.lease;
    let (id, row) = (lease.task, lease.task.row());
    let mut work = Work::begin(inner, Durability::Acknowledged, now).await?;
    work.want_keys(lease, &checkpoint.spawn);
    work.load(&[row]).await?;
    if work.held(lease).is_none() {
        work.tx.rollback().await?;
        inner.holdings.remove(lease);
        return Ok(Err(Rejected::LeaseLost(id)));
    }
    let mut applied = Applied::default();
    if checkpoint.paused {
        let event = Event::Holder(lease.lease, Report::PauseStarted);
        if let Err(rejected) = work.happen(row, &event, Facts::default(), &mut applied).await? {
            work.tx.rollback().await?;
            return Ok(Err(rejected));
        }
    }
    match work.spawn(id, &checkpoint.spawn).await? {
        Ok(spawned) => applied.spawned = spawned,
        Err(rejected) => {
            work.tx.rollback().await?;
            return Ok(Err(rejected));
        }
    }
    work.consume(row, &checkpoint.consumed);
    let mut marks = 0;
    if let Some(state) = &checkpoint.state {
        work.put_checkpoint(row, state);
        marks |= mark::CHECKPOINT;
    }
    if let Some((name, result)) = &checkpoint.step {
        work.extra.push(step_statement(row, name, result.get()));
        marks |= mark::STEPS;
    }
    if let Some(live) = work.live_mut(row) {
        live.marks |= marks;
        if let Some(run) = &mut live.run {
            run.checkpointed = true;
        }
    }
    applied.state = work.live(row).map(|(_, live)| live.life.state);
    let saved = work.live(row).map(|(_, live)| live.clone());
    if work.commit().await? {
        inner.wake.ready();
    }
    if let Some(saved) = saved {
        inner.holdings.change(lease, |held| held.live = saved);
    }
    Ok(Ok(applied))
}

/// Steps are told apart by name, and come back in the order in which they finished.
fn step_statement(row: i64, name: &Name, result: &str) -> Statement<'static> {
    Statement {
        sql: "INSERT INTO pensum.step(row, name, seq, result)
              VALUES ($1, $2, (SELECT coalesce(max(seq), 0) + 1 FROM pensum.step WHERE row = $1), $3)
              ON CONFLICT (row, name) DO UPDATE SET seq = EXCLUDED.seq, result = EXCLUDED.result",
        params: vec![
            Value::Int8(Some(row)),
            Value::Text(Some(Cow::Owned(text(name).into_owned()))),
            Value::Text(Some(Cow::Owned(result.to_owned()))),
        ],
    }
}
