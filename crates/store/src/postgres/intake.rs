//! The intake: rows that other programs insert within transactions of their own, admitted in the order of their numbers.
//!
//! An admission is one transaction: it locks rows, enqueues what they ask for, and removes them, or keeps them with the
//! reason of their refusal. So a crash at any point leaves a row or its tasks, never both and never neither.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use pensum_core::intake::{
    AdmitRequest, Admitted, AdmittedTask, BATCH_BYTES_MAX, IntakeRecord, IntakeStatus, IntakeTask, Judge,
    SHOWN_BYTES_MAX, reason, too_large,
};
use pensum_core::query::{Page, Paged};
use pensum_core::store::{BATCH_MAX, Call};
use pensum_core::{Json, Name, NewTask, StoreError, Time};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::Inner;
use super::enqueue::{Prepared, prepare};
use super::error::Fault;
use super::pool::{Durability, Pool, Statement, Tx, Value, text};
use super::step::Work;

/// Longest time between two looks, beneath the notices.
const POLL: Duration = Duration::from_millis(500);
/// Shortest time between two looks: a busy node hears of work all the time.
const QUIET: Duration = Duration::from_millis(100);
/// Rows whose JSON is no larger come with the list, in bytes; larger ones are read one by one.
const INLINE_BYTES_MAX: i64 = 32 << 10;
/// An admission takes no further row once the JSON of its rows weighs this much, in bytes.
const PASS_BYTES_MAX: usize = 32 << 20;
/// Longest reason that is kept, in characters.
const REASON_MAX: usize = 8_000;
const IS_OPEN: &str = "SELECT 1 FROM pensum.intake WHERE rejected_at IS NULL LIMIT 1";
/// The next rows. One node at a time, so that their order is that of the tasks; a row that someone else holds (a person
/// who mends it by hand) is passed over.
const OPEN: &str = "SELECT id, CASE WHEN octet_length(task::text) <= $2 THEN task::text END, namespace, actor,
      CASE WHEN created_at BETWEEN '0001-01-01' AND '9999-12-31'
           THEN (extract(epoch FROM created_at) * 1000000)::bigint END
    FROM pensum.intake
    WHERE rejected_at IS NULL AND (SELECT pg_try_advisory_xact_lock(hashtextextended('pensum.intake', 0)))
    ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED";
const LARGE: &str = "SELECT octet_length(task::text)::bigint,
      CASE WHEN octet_length(task::text) <= $2 THEN task::text END FROM pensum.intake WHERE id = $1";
const REFUSE: &str = "UPDATE pensum.intake i SET rejected_at = clock_timestamp(), error = refused.error
    FROM unnest($1::bigint[], $2::text[]) AS refused(id, error) WHERE i.id = refused.id";

/// Admits rows, or waits until there are some or the time is up.
pub(super) async fn admit(
    inner: &Arc<Inner>,
    request: AdmitRequest,
    now: Time,
    judge: Judge<'_>,
) -> Result<Admitted, StoreError> {
    let started = tokio::time::Instant::now();
    loop {
        let mut heard = inner.wake.listen();
        let admitted = admit_now(inner, request.limit, now.plus(started.elapsed()), judge).await?;
        let left = request.wait.saturating_sub(started.elapsed());
        if admitted != Admitted::default() || left.is_zero() {
            return Ok(admitted);
        }
        let notice = async {
            tokio::time::sleep(QUIET).await;
            heard.ready().await;
        };
        tokio::select! {
            () = tokio::time::sleep(left.min(POLL)) => {}
            () = notice => {}
            () = inner.closed.cancelled() => return Err(StoreError::Closed),
        }
    }
}

async fn admit_now(inner: &Arc<Inner>, limit: usize, now: Time, judge: Judge<'_>) -> Result<Admitted, StoreError> {
    let is_open = || async { Ok(!inner.pool.read(IS_OPEN, &[]).await?.is_empty()) };
    if limit == 0 || !inner.retry(is_open).await? {
        return Ok(Admitted::default());
    }
    let mut limit = limit;
    loop {
        match inner.retry(|| pass(inner, limit, now, judge)).await? {
            Pass::Done(admitted) => return Ok(admitted),
            // One of them is what the database itself refuses: fewer at a time leave it alone in the end.
            Pass::Undone(..) if limit > 1 => limit /= 2,
            Pass::Undone(id, error) => return inner.retry(|| refuse(inner, id, &error)).await,
        }
    }
}

/// What one transaction came to.
enum Pass {
    Done(Admitted),
    /// The database refused what one of the rows asks for, and everything is as before. The number is that of the first.
    Undone(i64, String),
}

async fn pass(inner: &Arc<Inner>, limit: usize, now: Time, judge: Judge<'_>) -> Result<Pass, Fault> {
    let mut tx = inner.pool.begin_long(Durability::Acknowledged).await?;
    let most = i64::try_from(limit).unwrap_or(i64::MAX);
    let answers = tx
        .pipeline(&[Statement {
            sql: OPEN,
            params: vec![Value::Int8(Some(most)), Value::Int8(Some(INLINE_BYTES_MAX))],
        }])
        .await?;
    let rows = answers.into_iter().next().unwrap_or_default();
    let Some(first) = rows.first() else {
        tx.rollback().await?;
        return Ok(Pass::Done(Admitted::default()));
    };
    let first: i64 = first.try_get(0)?;
    match carry_out(Work::on(tx, inner, now), &rows, limit, judge).await {
        Ok(admitted) => Ok(Pass::Done(admitted)),
        Err(fault) => match refusal(&fault) {
            Some(error) => Ok(Pass::Undone(first, error)),
            None => Err(fault),
        },
    }
}

async fn carry_out(work: Work, rows: &[Row], limit: usize, judge: Judge<'_>) -> Result<Admitted, Fault> {
    // Numbers from before this turn would put tasks before those that another node admitted meanwhile.
    work.inner.rows.forget().await;
    let mut admission = Admission::new(work);
    let taken = admission.take_all(rows, judge).await;
    let Admission {
        mut work,
        mut admitted,
        gone,
        ..
    } = admission;
    let taken = match taken {
        Ok(taken) => taken,
        Err(fault) => {
            // The next try wants the turn that this one holds.
            work.tx.rollback().await?;
            return Err(fault);
        }
    };
    admitted.more = taken < rows.len() || rows.len() >= limit;
    if !gone.is_empty() {
        work.extra.push(Statement {
            sql: "DELETE FROM pensum.intake WHERE id = ANY($1)",
            params: vec![Value::Int8s(gone)],
        });
    }
    if !admitted.rejected.is_empty() {
        work.extra.push(refusals(&admitted.rejected));
    }
    let inner = Arc::clone(&work.inner);
    if work.commit().await? {
        inner.wake.ready();
    }
    Ok(admitted)
}

/// What the database says of values that it cannot keep (classes 22 and 54 of SQLSTATE: a label too long for an index,
/// say); `None` where it failed for another reason.
fn refusal(fault: &Fault) -> Option<String> {
    if fault.is_stale() {
        return None;
    }
    let Fault::Db(error) = fault else { return None };
    let error = error.as_db_error()?;
    let class = error.code().code().get(..2)?;
    matches!(class, "22" | "54").then(|| format!("the database refuses it: {}", error.message()))
}

async fn refuse(inner: &Arc<Inner>, id: i64, error: &str) -> Result<Admitted, Fault> {
    let rejected = vec![(id, error.to_owned())];
    let tx = inner.pool.begin(Durability::Acknowledged).await?;
    tx.commit(&[refusals(&rejected)]).await?;
    Ok(Admitted {
        rejected,
        more: true,
        ..Admitted::default()
    })
}

fn refusals(rejected: &[(i64, String)]) -> Statement<'static> {
    Statement {
        sql: REFUSE,
        params: vec![
            Value::Int8s(rejected.iter().map(|(id, _)| Some(*id)).collect()),
            Value::Texts(
                rejected
                    .iter()
                    .map(|(_, error)| Some(Cow::Owned(text(error).into_owned())))
                    .collect(),
            ),
        ],
    }
}

/// Rows on their way from the intake to the tasks.
struct Admission {
    work: Work,
    /// Tasks without ties, of one namespace and one actor: they are written together.
    plain: Option<Together>,
    /// Unique keys that rows before asked for. Who has one of them shows only once it is written.
    keys: HashSet<(Name, Name, Name)>,
    admitted: Admitted,
    gone: Vec<Option<i64>>,
    tasks: usize,
    bytes: usize,
}

/// What goes in by one call.
struct Together {
    rows: Vec<i64>,
    call: Call,
    tasks: Vec<Prepared>,
}

/// True for a task that may be written with others of other rows: nothing can keep it from being enqueued.
fn is_plain(task: &NewTask) -> bool {
    task.depends_on.is_empty() && task.unique.is_none()
}

impl Admission {
    fn new(work: Work) -> Admission {
        Admission {
            work,
            plain: None,
            keys: HashSet::new(),
            admitted: Admitted::default(),
            gone: Vec::new(),
            tasks: 0,
            bytes: 0,
        }
    }

    /// Takes rows in, and answers how many; the others wait for the next transaction.
    async fn take_all(&mut self, rows: &[Row], judge: Judge<'_>) -> Result<usize, Fault> {
        let mut taken = 0;
        while taken < rows.len() && self.take(&rows[taken], judge).await? {
            taken += 1;
        }
        self.flush().await?;
        Ok(taken)
    }

    /// Takes a row in. False when it has to wait for the next transaction.
    async fn take(&mut self, row: &Row, judge: Judge<'_>) -> Result<bool, Fault> {
        if self.tasks >= BATCH_MAX || self.bytes >= PASS_BYTES_MAX {
            return Ok(false);
        }
        let id: i64 = row.try_get(0)?;
        let task = match read(&mut self.work.tx, row).await? {
            Ok(task) => task,
            Err(error) => {
                self.reject(id, error);
                return Ok(true);
            }
        };
        self.bytes += task.task.get().len();
        let tasks = match judge(&task) {
            Ok(tasks) => tasks,
            Err(error) => {
                self.reject(id, error);
                return Ok(true);
            }
        };
        let keys: Vec<(Name, Name, Name)> = tasks
            .iter()
            .filter_map(|new| Some((new.spec.handler.clone(), new.unique.as_ref()?.key.clone())))
            .map(|(handler, key)| (task.namespace.clone(), handler, key))
            .collect();
        if keys.iter().any(|key| self.keys.contains(key)) {
            return Ok(false);
        }
        self.keys.extend(keys);
        self.tasks += tasks.len();
        let call = Call {
            namespace: task.namespace,
            ..Call::new(task.actor, self.work.now)
        };
        let inner = Arc::clone(&self.work.inner);
        let (_, judging) = inner.queues.judging(&call.namespace, tasks.iter());
        let plain = judging.is_empty() && tasks.iter().all(is_plain);
        match prepare(&inner, &call.namespace, tasks).await {
            Ok(tasks) => self.add(id, call, tasks, plain).await?,
            // On a connection of its own, so that nothing else is undone.
            Err(fault) => match refusal(&fault) {
                Some(error) => self.reject(id, error),
                None => return Err(fault),
            },
        }
        Ok(true)
    }

    async fn add(&mut self, id: i64, call: Call, tasks: Vec<Prepared>, plain: bool) -> Result<(), Fault> {
        if plain
            && let Some(together) = &mut self.plain
            && together.call.namespace == call.namespace
            && together.call.actor == call.actor
        {
            together.rows.push(id);
            together.tasks.extend(tasks);
            return Ok(());
        }
        self.flush().await?;
        let together = Together {
            rows: vec![id],
            call,
            tasks,
        };
        match plain {
            true => self.plain = Some(together),
            false => self.enqueue(together).await?,
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Fault> {
        match self.plain.take() {
            Some(together) => self.enqueue(together).await,
            None => Ok(()),
        }
    }

    async fn enqueue(&mut self, together: Together) -> Result<(), Fault> {
        let Together { rows, call, tasks } = together;
        match self.work.enqueue(&call, &tasks).await? {
            Ok(enqueued) => {
                self.admitted.rows += rows.len() as u64;
                self.gone.extend(rows.into_iter().map(Some));
                let fresh = enqueued.iter().zip(&tasks).filter(|(item, _)| item.created);
                self.admitted.tasks.extend(fresh.map(|(item, prepared)| AdmittedTask {
                    id: item.id,
                    namespace: call.namespace.clone(),
                    handler: prepared.task.spec.handler.clone(),
                }));
            }
            Err(rejected) => {
                for id in rows {
                    self.reject(id, reason(&rejected, tasks.len()));
                }
            }
        }
        Ok(())
    }

    fn reject(&mut self, id: i64, mut error: String) {
        if let Some((end, _)) = error.char_indices().nth(REASON_MAX) {
            error.truncate(end);
            error.push('…');
        }
        self.admitted.rejected.push((id, error));
    }
}

/// Reads an open row; what is wrong with it as a text.
async fn read(tx: &mut Tx, row: &Row) -> Result<Result<IntakeTask, String>, Fault> {
    let id: i64 = row.try_get(0)?;
    let mut task: Option<String> = row.try_get(1)?;
    if task.is_none() {
        let most = BATCH_BYTES_MAX as i64;
        let found = tx.query(LARGE, &[(&id, Type::INT8), (&most, Type::INT8)]).await?;
        let found = found
            .first()
            .ok_or_else(|| Fault::Damaged(format!("row {id} of the intake went while it was locked")))?;
        task = found.try_get(1)?;
        if task.is_none() {
            let bytes: i64 = found.try_get(0)?;
            return Ok(Err(too_large(bytes as usize, BATCH_BYTES_MAX).to_string()));
        }
    }
    let Ok(task) = Json::parse(task.unwrap_or_default()) else {
        return Ok(Err("task: is no JSON that this program reads".to_owned()));
    };
    let Some(created_at) = row.try_get(4)? else {
        return Ok(Err(
            "created_at: must be a time between the years 1 and 9999; leave it out".to_owned(),
        ));
    };
    Ok(Ok(IntakeTask {
        id,
        task,
        namespace: row.try_get::<_, String>(2)?.into(),
        actor: row.try_get::<_, String>(3)?.into(),
        created_at: Time::from_micros(created_at),
    }))
}

/// Rows for people, newest first.
pub(super) async fn list(
    pool: &Arc<Pool>,
    namespace: &str,
    status: Option<IntakeStatus>,
    page: &Page,
) -> Result<Paged<IntakeRecord>, Fault> {
    let limit = i64::try_from(page.limit).unwrap_or(i64::MAX - 1);
    let before = page.before_row.unwrap_or(i64::MAX);
    let rejected = match status {
        None => "",
        Some(IntakeStatus::Waiting) => "AND rejected_at IS NULL",
        Some(IntakeStatus::Rejected) => "AND rejected_at IS NOT NULL",
    };
    let micros = |column: &str| {
        format!(
            "CASE WHEN {column} BETWEEN '0001-01-01' AND '9999-12-31'
                  THEN (extract(epoch FROM {column}) * 1000000)::bigint END"
        )
    };
    let sql = format!(
        "SELECT id, octet_length(task::text)::bigint, CASE WHEN octet_length(task::text) <= $4 THEN task::text END,
           actor, {}, {}, rejected_at IS NOT NULL, error
         FROM pensum.intake WHERE namespace = $1 AND id < $2 {rejected} ORDER BY id DESC LIMIT $3",
        micros("created_at"),
        micros("rejected_at")
    );
    let params = [
        (&namespace as _, Type::TEXT),
        (&before as _, Type::INT8),
        (&(limit + 1) as _, Type::INT8),
        (&(SHOWN_BYTES_MAX as i64) as _, Type::INT8),
    ];
    let rows = pool.read(&sql, &params).await?;
    let mut items = rows.iter().map(record).collect::<Result<Vec<_>, _>>()?;
    let more = items.len() > page.limit;
    items.truncate(page.limit);
    let next = items.last().map(|item| item.id).filter(|_| more);
    Ok(Paged { items, next })
}

fn record(row: &Row) -> Result<IntakeRecord, Fault> {
    let time = |column: usize| -> Result<Option<Time>, Fault> {
        Ok(row.try_get::<_, Option<i64>>(column)?.map(Time::from_micros))
    };
    let status = match row.try_get(6)? {
        true => IntakeStatus::Rejected,
        false => IntakeStatus::Waiting,
    };
    Ok(IntakeRecord {
        id: row.try_get(0)?,
        status,
        task: row
            .try_get::<_, Option<String>>(2)?
            .and_then(|task| Json::parse(task).ok()),
        bytes: row.try_get::<_, i64>(1)? as u64,
        actor: row.try_get::<_, String>(3)?.into(),
        created_at: time(4)?,
        rejected_at: time(5)?,
        error: row.try_get(7)?,
    })
}

/// Has a rejected row looked at again.
pub(super) async fn retry(
    inner: &Arc<Inner>,
    call: &Call,
    id: i64,
    task: Option<&Json>,
) -> Result<Result<bool, StoreError>, Fault> {
    let mut work = Work::begin(inner, Durability::Acknowledged, call.now).await?;
    match work.remembered(call).await? {
        Ok(None) => {}
        earlier => {
            work.tx.rollback().await?;
            return Ok(earlier.map(|_| true).map_err(StoreError::from));
        }
    }
    let status = "SELECT rejected_at IS NOT NULL FROM pensum.intake WHERE id = $1 AND namespace = $2 FOR UPDATE";
    let found = work
        .tx
        .query(status, &[(&id, Type::INT8), (&&*call.namespace, Type::TEXT)])
        .await?;
    let rejected = match found.first() {
        Some(row) => Some(row.try_get::<_, bool>(0)?),
        None => None,
    };
    let refusal = match (rejected, task) {
        (None, _) => Some(Ok(false)),
        (Some(false), Some(_)) => Some(Err(StoreError::Conflict(format!(
            "row {id} of the intake waits to be admitted; only a rejected one can be given another task"
        )))),
        _ => None,
    };
    if let Some(refusal) = refusal {
        work.tx.rollback().await?;
        return Ok(refusal);
    }
    if rejected == Some(true) {
        work.extra.push(Statement {
            sql: "UPDATE pensum.intake SET rejected_at = NULL, error = NULL, task = coalesce($2::text::jsonb, task)
                  WHERE id = $1",
            params: vec![
                Value::Int8(Some(id)),
                Value::Text(task.map(|task| Cow::Owned(task.get().to_owned()))),
            ],
        });
    }
    work.remember(call, std::iter::empty());
    work.commit().await?;
    inner.wake.ready();
    Ok(Ok(true))
}

/// Removes a row, rejected or not. One that is being admitted at this moment is gone by then.
pub(super) async fn delete(pool: &Arc<Pool>, call: &Call, id: i64) -> Result<bool, Fault> {
    let tx = pool.begin(Durability::Acknowledged).await?;
    let deleted = tx
        .commit(&[Statement {
            sql: "DELETE FROM pensum.intake WHERE id = $1 AND namespace = $2 RETURNING id",
            params: vec![
                Value::Int8(Some(id)),
                Value::Text(Some(Cow::Borrowed(&*call.namespace))),
            ],
        }])
        .await?;
    Ok(deleted.iter().flatten().next().is_some())
}

/// Removes rows that were refused before a time, at most `limit`.
pub(super) async fn forget(pool: &Arc<Pool>, before: Time, limit: usize) -> Result<(), Fault> {
    let tx = pool.begin(Durability::Relaxed).await?;
    tx.commit(&[Statement {
        sql: "DELETE FROM pensum.intake WHERE id IN (SELECT id FROM pensum.intake
              WHERE rejected_at <= to_timestamp($1::bigint / 1000000.0) ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED)",
        params: vec![
            Value::Int8(Some(before.as_micros())),
            Value::Int8(Some(i64::try_from(limit).unwrap_or(i64::MAX))),
        ],
    }])
    .await?;
    Ok(())
}
