//! Claims: one statement takes the best rows of the lanes that the claimer covers and that no one else is taking.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use pensum_core::store::{ClaimRequest, Claimed, Finish, LeaseRef};
use pensum_core::{Json, LeaseId, Name, NodeId, Outcome, StoreError, Time};
use tokio::sync::{Notify, oneshot};
use tokio_postgres::Row;

use super::Inner;
use super::error::Fault;
use super::key;
use super::pool::{Durability, Statement, Value};
use super::reads::{StoredTask, TASK};
use super::row::{self, Cell, LIVE, LiveRow, mark, stored_lease};
use super::step::tally_statement;

/// A run that goes on for this long, or has checkpointed, has survived its start: a node's death is not charged to it.
pub(super) const PROBATION: Duration = Duration::from_secs(60);
/// Most rows whose gate one transaction opens.
const PROMOTED_MAX: i64 = 2_000;
/// How often a claim that was told to make way for upkeep tries again at once.
const TRIES_MAX: usize = 50;
/// Longest time between two looks of a parked claim, beneath the notices.
const POLL: Duration = Duration::from_millis(500);
/// The same while notices do not come through.
const POLL_DEAF: Duration = Duration::from_millis(50);

/// A task that a node of this process holds.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) live: LiveRow,
    pub(super) log_lines: Option<u64>,
}

/// What this process holds: what the ends of runs need to know without asking.
#[derive(Default)]
pub(super) struct Holdings {
    held: Mutex<HashMap<i64, Held, RandomState>>,
    /// A claim holds back until a run ends. Changed under the lock of `held`.
    awaited: AtomicBool,
    /// Tells claims that held back for a run that one has ended.
    ended: Notify,
}

impl Holdings {
    fn add(&self, rows: Vec<LiveRow>) {
        let mut held = self.held.lock();
        held.extend(rows.into_iter().map(|live| (live.row, Held { live, log_lines: None })));
    }

    /// What is held under this lease.
    pub(super) fn get(&self, lease: LeaseRef) -> Option<Held> {
        let held = self.held.lock();
        held.get(&lease.task.row())
            .filter(|h| h.live.life.lease.is_some_and(|l| l.id == lease.lease))
            .cloned()
    }

    /// Changes what is held under this lease.
    pub(super) fn change(&self, lease: LeaseRef, change: impl FnOnce(&mut Held)) {
        let mut held = self.held.lock();
        if let Some(found) = held.get_mut(&lease.task.row())
            && found.live.life.lease.is_some_and(|l| l.id == lease.lease)
        {
            change(found);
        }
    }

    /// The lease is gone.
    pub(super) fn remove(&self, lease: LeaseRef) {
        let mut held = self.held.lock();
        if held
            .get(&lease.task.row())
            .is_some_and(|h| h.live.life.lease.is_some_and(|l| l.id == lease.lease))
        {
            held.remove(&lease.task.row());
            self.tell();
        }
    }

    /// Rows that were taken back, whoever held them.
    pub(super) fn remove_rows(&self, rows: impl Iterator<Item = i64>) {
        let mut held = self.held.lock();
        for row in rows {
            held.remove(&row);
        }
        self.tell();
    }

    /// Lets claims that held back look again.
    fn tell(&self) {
        if self.awaited.swap(false, Ordering::Relaxed) {
            self.ended.notify_waiters();
        }
    }

    /// Whether the node holds anything that could be blamed for its death at `now`; a claim that holds back for that is
    /// told when a run ends.
    fn any_fresh(&self, node: NodeId, now: Time) -> bool {
        self.any(node, now, |_| true)
    }

    /// The same of what runs alone.
    fn any_alone(&self, node: NodeId, now: Time) -> bool {
        self.any(node, now, |run| run.alone)
    }

    fn any(&self, node: NodeId, now: Time, which: impl Fn(&row::Run) -> bool) -> bool {
        let held = self.held.lock();
        let found = held.values().any(|found| {
            let (Some(lease), Some(run)) = (found.live.life.lease, &found.live.run) else {
                return false;
            };
            lease.node == node && !run.checkpointed && now.since(run.taken_at) < PROBATION && which(run)
        });
        if found {
            self.awaited.store(true, Ordering::Relaxed);
        }
        found
    }
}

/// What one try gave.
enum Try {
    Taken(Vec<Claimed>),
    /// Rows have come due, or a key's turn has passed: their gates open first.
    Upkeep,
    /// There are classes that this process does not know yet.
    Unknown,
    /// A suspect waits to run alone.
    Suspect,
}

/// How a claim is carried out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Usual,
    /// Takes one suspect, to run alone.
    Alone,
}

/// Serves a claim, or keeps it until there is something or its time is up.
pub(super) async fn claim(
    inner: &Arc<Inner>,
    request: ClaimRequest,
    now: Time,
    claimer: &mut oneshot::Sender<Result<Vec<Claimed>, StoreError>>,
) -> Result<Vec<Claimed>, StoreError> {
    let started = tokio::time::Instant::now();
    // The first try is made at the time that the claimer named, to the microsecond.
    let mut at = now;
    loop {
        let mut heard = inner.wake.listen();
        let mut ended = std::pin::pin!(inner.holdings.ended.notified());
        ended.as_mut().enable();
        let claimed = inner.retry(|| once(inner, &request, at)).await?;
        let left = request.wait.saturating_sub(started.elapsed());
        if !claimed.is_empty() || request.slots == 0 || left.is_zero() {
            return Ok(claimed);
        }
        let due = inner.next_due().since(at);
        let poll = if inner.wake.is_deaf() { POLL_DEAF } else { POLL };
        // A moment late rather than early, when nothing would be due yet.
        let nap = left.min(poll).min(due.max(Duration::from_millis(1)));
        tokio::select! {
            () = tokio::time::sleep(nap) => {}
            () = heard.ready() => {}
            () = ended => {}
            () = claimer.closed() => return Ok(Vec::new()),
            () = inner.closed.cancelled() => return Err(StoreError::Closed),
        }
        at = now.plus(started.elapsed());
    }
}

async fn once(inner: &Arc<Inner>, request: &ClaimRequest, now: Time) -> Result<Vec<Claimed>, Fault> {
    if request.slots == 0 {
        return Ok(Vec::new());
    }
    if inner.holdings.any_alone(request.node, now) {
        return Ok(Vec::new());
    }
    let mut mode = Mode::Usual;
    for _ in 0..TRIES_MAX {
        match attempt(inner, request, mode, now).await? {
            Try::Taken(claimed) => return Ok(claimed),
            Try::Upkeep => promote(inner, now).await?,
            Try::Unknown => inner.catalog.refresh(&inner.pool).await?,
            // It waits only for what could be blamed with it, and nothing new starts meanwhile: else a busy node would
            // never come to it.
            Try::Suspect if inner.holdings.any_fresh(request.node, now) => return Ok(Vec::new()),
            Try::Suspect => mode = Mode::Alone,
        }
    }
    Ok(Vec::new())
}

/// The classes that the claimer covers.
fn covered(inner: &Inner, request: &ClaimRequest) -> Vec<Option<i32>> {
    let mut classes: Vec<i32> = inner
        .catalog
        .classes()
        .iter()
        .filter(|class| request.capabilities.as_ref().is_none_or(|offered| class.fits(offered)))
        .filter(|class| {
            request
                .queues
                .as_ref()
                .is_none_or(|queues| queues.contains(&class.queue))
        })
        .map(|class| class.id as i32)
        .collect();
    classes.sort_unstable();
    classes.into_iter().map(Some).collect()
}

/// The rows to take from one lane: straight off the index, passing over what others are taking.
const ONE_LANE: &str = "SELECT ctid FROM pensum.live
    WHERE class = ($2::integer[])[1] AND gate = 0 AND (timer_at IS NULL OR timer_at > $1)
      AND NOT (SELECT upkeep OR unknown OR suspect FROM guard)
    ORDER BY rank, deadline, row LIMIT $3 FOR UPDATE SKIP LOCKED";

/// The rows to take from several lanes: the best of each lane first, and of those the best. It looks at some more than
/// it takes, for others may be taking the same.
const LANES: &str = "SELECT ctid FROM pensum.live WHERE row = ANY(ARRAY(
        SELECT best.row FROM unnest($2::integer[]) AS lane(class) CROSS JOIN LATERAL (
            SELECT row, rank, deadline FROM pensum.live
            WHERE class = lane.class AND gate = 0 AND (timer_at IS NULL OR timer_at > $1)
            ORDER BY rank, deadline, row LIMIT 2 * $3 + 64) best
        WHERE NOT (SELECT upkeep OR unknown OR suspect FROM guard)
        ORDER BY best.rank, best.deadline, best.row LIMIT 2 * $3 + 64)) AND gate = 0
    ORDER BY rank, deadline, row LIMIT $3 FOR UPDATE SKIP LOCKED";

/// The suspect to run alone.
const SUSPECT: &str = "SELECT ctid FROM pensum.live WHERE row = ANY(ARRAY(
        SELECT row FROM pensum.live WHERE class = ANY($2) AND gate = 0 AND (flags & 16384) <> 0
          AND (timer_at IS NULL OR timer_at > $1)
          AND NOT (SELECT upkeep OR unknown FROM guard)
        ORDER BY rank, deadline, row LIMIT 64)) AND gate = 0
    ORDER BY rank, deadline, row LIMIT least($3, 1) FOR UPDATE SKIP LOCKED";

/// A claim by `apply`'s rules for [`pensum_core::transition::Event::Claim`], set-based: found by their place in the table,
/// which the lock has just looked up (a join on the row numbers takes four times as long).
fn statement(picked: &str, alone: bool) -> String {
    let alone_flag = if alone { 4_194_304 } else { 0 };
    let suspect = if alone {
        "false"
    } else {
        "EXISTS (SELECT 1 FROM pensum.live WHERE class = ANY($2) AND gate = 0 AND (flags & 16384) <> 0
                 AND (timer_at IS NULL OR timer_at > $1))"
    };
    format!(
        "WITH guard AS MATERIALIZED (SELECT
            EXISTS (SELECT 1 FROM pensum.live WHERE gate = 1 AND due_at <= $1)
            OR EXISTS (SELECT 1 FROM pensum.live WHERE gate = 5 AND due_at <= $1)
            OR EXISTS (SELECT 1 FROM pensum.live WHERE timer_at <= $1 AND gate = 0 AND scope IS NOT NULL) AS upkeep,
            (SELECT count(*) FROM pensum.class) > $7 AS unknown,
            {suspect} AS suspect,
            least((SELECT min(due_at) FROM pensum.live WHERE gate = 1),
                  (SELECT min(due_at) FROM pensum.live WHERE gate = 5)) AS next_due),
        taken AS (UPDATE pensum.live SET state = 1, gate = 6, lease = $4, node = $5, executor = $8, taken_at = $1,
            due_at = $6, timer_at = NULL,
            attempt = CASE WHEN (flags & 4096) <> 0 THEN greatest(coalesce(attempt, 0), 1)
                           ELSE coalesce(attempt, 0) + 1 END,
            started_at = CASE WHEN (flags & 4096) <> 0 AND started_at IS NOT NULL THEN started_at ELSE $1 END,
            flags = (flags & ~(512 | 4096 | 8192 | 4194304 | 8388608)) | {alone_flag},
            version = coalesce(version, 1) + 1
          WHERE ctid = ANY(ARRAY({picked})) RETURNING *),
        counted AS (INSERT INTO pensum.tally(class, cell, n)
            SELECT class, change.cell, change.by * count(*) FROM taken
            CROSS JOIN (VALUES ({ready}::smallint, -1), ({running}::smallint, 1)) AS change(cell, by)
            GROUP BY class, change.cell, change.by)
        SELECT g.upkeep, g.unknown, g.suspect, g.next_due, {live}, {task}, c.state
        FROM guard g LEFT JOIN taken l ON true LEFT JOIN pensum.task t ON t.row = l.row
        LEFT JOIN pensum.checkpoint c ON c.row = l.row AND (l.flags & 1) <> 0",
        ready = Cell::Ready as i16,
        running = Cell::Running as i16,
        live = row::list(&LIVE, "l"),
        task = row::list(&TASK, "t"),
    )
}

static CLAIM_ONE: LazyLock<String> = LazyLock::new(|| statement(ONE_LANE, false));
static CLAIM_MANY: LazyLock<String> = LazyLock::new(|| statement(LANES, false));
static CLAIM_ALONE: LazyLock<String> = LazyLock::new(|| statement(SUSPECT, true));

async fn attempt(inner: &Arc<Inner>, request: &ClaimRequest, mode: Mode, now: Time) -> Result<Try, Fault> {
    let classes = covered(inner, request);
    let sql: &str = match (mode, classes.len()) {
        (Mode::Alone, _) => &CLAIM_ALONE,
        (Mode::Usual, 1) => &CLAIM_ONE,
        (Mode::Usual, _) => &CLAIM_MANY,
    };
    let executor = inner.catalog.name_id(&inner.pool, &request.executor).await?;
    let lease = LeaseId(u128::from(inner.bits()) << 64 | u128::from(inner.bits()));
    let params = vec![
        Value::Int8(Some(now.as_micros())),
        Value::Int4s(classes),
        Value::Int8(Some(i64::try_from(request.slots).unwrap_or(i64::MAX >> 2))),
        Value::Uuid(stored_lease(lease, 0)),
        Value::Int8(Some(request.node.0 as i64)),
        Value::Int8(Some(now.plus(request.lease).as_micros())),
        Value::Int8(Some(inner.catalog.classes_known() as i64)),
        Value::Int8(Some(i64::from(executor))),
    ];
    let tx = inner.pool.begin(Durability::Relaxed).await?;
    let answers = tx.commit(&[Statement { sql, params }]).await?;
    let rows = answers.into_iter().next().unwrap_or_default();
    let Some(first) = rows.first() else {
        return Ok(Try::Taken(Vec::new()));
    };
    inner.note_due(first.try_get::<_, Option<i64>>(3)?);
    if first.try_get(1)? {
        return Ok(Try::Unknown);
    }
    if first.try_get(0)? {
        return Ok(Try::Upkeep);
    }
    let suspect: bool = first.try_get(2)?;
    if suspect {
        return Ok(Try::Suspect);
    }
    if first.try_get::<_, Option<i64>>(4)?.is_none() {
        return Ok(Try::Taken(Vec::new()));
    }
    let mut claimed = rows
        .iter()
        .map(|found| read(inner, found))
        .collect::<Result<Vec<_>, _>>()?;
    // RETURNING keeps no order.
    claimed.sort_by_key(|(live, _)| (row::rank(live.priority), live.deadline.unwrap_or(Time::MAX), live.row));
    let (lives, claimed): (Vec<LiveRow>, Vec<Claimed>) = claimed.into_iter().unzip();
    let keyed = lives.iter().find(|live| live.scope.is_some()).map(|live| live.class);
    inner.holdings.add(lives);
    if let Some(class) = keyed {
        settle_on_disk(inner, class).await?;
    }
    Ok(Try::Taken(claimed))
}

fn read(inner: &Inner, found: &Row) -> Result<(LiveRow, Claimed), Fault> {
    let live = LiveRow::read(found, 4)?;
    let task = StoredTask::read(found, 4 + LIVE.len(), &inner.catalog)?;
    let checkpoint = match found.try_get::<_, Option<String>>(4 + LIVE.len() + TASK.len())? {
        Some(text) if live.marks & mark::CHECKPOINT != 0 => {
            Some(Json::parse(text).map_err(|_| row::damaged(live.row, "JSON text as checkpoint"))?)
        }
        _ => None,
    };
    let class = inner
        .catalog
        .known_class(live.class)
        .ok_or_else(|| row::damaged(live.row, "class"))?;
    let lease = live.life.lease.ok_or_else(|| row::damaged(live.row, "lease"))?;
    let claimed = Claimed {
        lease: LeaseRef {
            task: task.id,
            lease: lease.id,
        },
        namespace: class.namespace.clone(),
        spec: Arc::new(task.spec),
        lifecycle: live.life.clone(),
        checkpoint,
        created_at: task.created_at,
    };
    Ok((live, claimed))
}

/// Returns once everything that was committed before is on disk. A claim that a crash of the server undoes would give the
/// turn of its key to another task while the claimed one runs.
async fn settle_on_disk(inner: &Arc<Inner>, class: u32) -> Result<(), Fault> {
    // Any write will do; this one changes no count.
    let nothing = BTreeMap::from([((class, Cell::Running), 0)]);
    let tx = inner.pool.begin(Durability::Acknowledged).await?;
    tx.commit(&[tally_statement(&nothing)]).await?;
    Ok(())
}

/// Opens the gates of rows that have come due, and passes on the turns of keys whose head is overdue.
pub(super) async fn promote(inner: &Arc<Inner>, now: Time) -> Result<(), Fault> {
    // What opens: rows that came due after a delay or a failure. What is keyed stands behind its key first.
    let opened = |gate: i16, cell: Cell| {
        format!(
            "WITH due AS MATERIALIZED (
                SELECT ctid AS place FROM pensum.live WHERE gate = {gate} AND due_at <= $1
                ORDER BY due_at LIMIT {PROMOTED_MAX} FOR UPDATE SKIP LOCKED),
             moved AS (UPDATE pensum.live SET gate = CASE WHEN scope IS NULL THEN 0 ELSE 7 END, due_at = NULL
                WHERE ctid = ANY(ARRAY(SELECT place FROM due)) RETURNING class, scope),
             counted AS (INSERT INTO pensum.tally(class, cell, n)
                SELECT class, change.cell, change.by * count(*) FROM moved
                CROSS JOIN (VALUES ({}::smallint, -1), ({}::smallint, 1)) AS change(cell, by)
                GROUP BY class, change.cell, change.by)
             SELECT DISTINCT scope FROM moved WHERE scope IS NOT NULL",
            cell as i16,
            Cell::Ready as i16
        )
    };
    let (later, retrying) = (
        opened(row::gate::LATER, Cell::Later),
        opened(row::gate::RETRYING, Cell::Retrying),
    );
    let at = || vec![Value::Int8(Some(now.as_micros()))];
    let mut tx = inner.pool.begin(Durability::Relaxed).await?;
    let answers = tx
        .pipeline(&[
            Statement {
                sql: &later,
                params: at(),
            },
            Statement {
                sql: &retrying,
                params: at(),
            },
            Statement {
                sql: "SELECT DISTINCT scope FROM (SELECT scope FROM pensum.live WHERE timer_at <= $1 AND gate = 0
                      AND scope IS NOT NULL LIMIT 1000) overdue",
                params: at(),
            },
        ])
        .await?;
    let mut scopes: BTreeSet<Name> = BTreeSet::new();
    for found in answers.iter().flatten() {
        scopes.insert(Name::from(found.try_get::<_, &str>(0)?));
    }
    let mut statements: Vec<Statement<'_>> = key::lock(&scopes).into_iter().collect();
    statements.extend(key::settle(&scopes, now));
    tx.commit(&statements).await?;
    Ok(())
}

/// Gives back what was claimed for someone who did not wait for it.
pub(super) async fn unclaim(inner: &Arc<Inner>, lost: Vec<Claimed>, now: Time) {
    let finishes = lost
        .into_iter()
        .map(|claimed| Finish::new(claimed.lease, Outcome::Released))
        .collect();
    if let Err(error) = super::finish::finish(inner, finishes, now).await {
        tracing::debug!(%error, "claimed tasks that nobody waited for come back when their leases run out");
    }
}
