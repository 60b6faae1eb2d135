//! Claims: one statement takes the best rows of the lanes that the claimer covers and that no one else is taking.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use pensum_core::store::{ClaimRequest, Claimed, Finish, LeaseRef, Rejected};
use pensum_core::{Json, Name, NodeId, Outcome, StoreError, Time};
use tokio::sync::{Notify, oneshot};
use tokio_postgres::Row;

use super::Inner;
use super::error::Fault;
use super::lanes::{self, Claimer, Lanes, Limits, TRIED, guard};
use super::pool::{Durability, Statement, Value};
use super::reads::{StoredTask, TASK};
use super::row::{self, Cell, LIVE, LiveRow, mark};
use super::step::tally_statement;
use super::{gated, key, measured, parked};

/// A run that goes on for this long, or has checkpointed, has survived its start: a node's death is not charged to it.
pub(super) const PROBATION: Duration = Duration::from_secs(60);
/// Most rows of each gate that one transaction opens, and most keys whose overdue head it passes over.
const PROMOTED_MAX: i64 = 2_000;
/// How often a claim does upkeep first; what is due after that waits for the next one.
const UPKEEPS_MAX: usize = 3;
/// How often a claim tries again at once.
const TRIES_MAX: usize = 50;
/// How often a claim tries again at once that found only what others were taking.
const CONTENDED_MAX: usize = 10;
/// Pause before that, with a random share on top.
const CONTENDED_PAUSE: Duration = Duration::from_millis(1);
/// When rows that are due, but that someone else holds, are looked at again.
const HELD_BACK: Duration = Duration::from_millis(20);

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
    /// Sessions of agents of which a run has ended, for their parked claims.
    sessions: Mutex<HashSet<NodeId>>,
    session_ended: Notify,
}

impl Holdings {
    pub(super) fn add(&self, rows: Vec<LiveRow>) {
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
            let gone = held.remove(&lease.task.row());
            self.tell();
            drop(held);
            self.tell_sessions(gone.iter());
        }
    }

    /// Rows that were taken back, unless they were renewed or claimed anew at that moment.
    pub(super) fn expire(&self, rows: &[i64], now: Time) {
        let mut held = self.held.lock();
        let mut gone = Vec::new();
        for row in rows {
            let expired = |found: &Held| found.live.life.lease.is_none_or(|lease| lease.expires_at <= now);
            if held.get(row).is_some_and(expired) {
                gone.extend(held.remove(row));
            }
        }
        self.tell();
        drop(held);
        self.tell_sessions(gone.iter());
    }

    /// What a session holds is just this: what it ended on another node is not known here.
    pub(super) fn retain(&self, session: NodeId, rows: &BTreeSet<i64>) {
        let mut held = self.held.lock();
        let of_session = |found: &Held| found.live.life.lease.is_some_and(|lease| lease.node == session);
        held.retain(|row, found| rows.contains(row) || !of_session(found));
    }

    /// Forgets leases of agents that have run out, as far as is known here: they may have been renewed, or ended, on another
    /// node. Their ends ask the store.
    pub(super) fn forget_expired_of_agents(&self, now: Time) {
        let mut held = self.held.lock();
        let is_over = |found: &Held| {
            let run_out = found.live.life.lease.is_none_or(|lease| lease.expires_at <= now);
            run_out && found.live.run.is_some_and(|run| run.by_agent)
        };
        held.retain(|_, found| !is_over(found));
    }

    /// Tells the parked claims of sessions that runs of these have ended.
    fn tell_sessions<'a>(&self, gone: impl Iterator<Item = &'a Held>) {
        let by_agents = gone.filter(|held| held.live.run.is_some_and(|run| run.by_agent));
        let ended: Vec<NodeId> = by_agents.filter_map(|held| Some(held.live.life.lease?.node)).collect();
        if !ended.is_empty() {
            self.sessions.lock().extend(ended);
            self.session_ended.notify_one();
        }
    }

    /// The sessions of which a run has ended since this was asked last.
    pub(super) fn ended_sessions(&self) -> HashSet<NodeId> {
        std::mem::take(&mut self.sessions.lock())
    }

    /// Returns when a run of a session has ended.
    pub(super) async fn session_ended(&self) {
        self.session_ended.notified().await;
    }

    /// A claim that finds no room is told when a run ends.
    pub(super) fn await_end(&self) {
        let _held = self.held.lock();
        self.awaited.store(true, Ordering::Relaxed);
    }

    /// Lets claims that held back look again.
    fn tell(&self) {
        if self.awaited.swap(false, Ordering::Relaxed) {
            self.ended.notify_waiters();
        }
    }

    /// Whether the node holds anything that could be blamed for its death at `now`; a claim that holds back for that is
    /// told when a run ends.
    pub(super) fn any_fresh(&self, node: NodeId, now: Time) -> bool {
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
pub(super) enum Try {
    Taken(Vec<Claimed>),
    /// Rows have come due, or a key's turn has passed: their gates open first.
    Upkeep,
    /// There are classes that this process does not know yet.
    Unknown,
    /// Queues have changed since this process read them.
    Stale,
    /// A suspect waits to run alone.
    Suspect,
    /// There are tasks, but just now others are taking every one that was looked at.
    Contended,
    /// Something is to be left out.
    Again,
    /// The claimer may not claim.
    Refused(Rejected),
}

/// How a claim is carried out.
#[derive(Clone, Copy, Default)]
pub(super) struct Mode {
    /// Takes one suspect, to run alone.
    pub(super) alone: bool,
    /// Upkeep has been done, as far as it could be.
    pub(super) kept_up: bool,
}

/// Serves a claim, or keeps it until there is something or its time is up.
pub(super) async fn claim<T>(
    inner: &Arc<Inner>,
    request: ClaimRequest,
    now: Time,
    claimer: &mut oneshot::Sender<T>,
) -> Result<Vec<Claimed>, StoreError> {
    if request.agent.is_some() {
        return parked::claim(inner, request, now, claimer).await;
    }
    let started = tokio::time::Instant::now();
    // The first try is made at the time that the claimer named, to the microsecond.
    let mut at = now;
    loop {
        let mut heard = inner.wake.listen();
        let mut ended = std::pin::pin!(inner.holdings.ended.notified());
        ended.as_mut().enable();
        let claimed = inner.retry(|| once(inner, &request, at)).await??;
        let left = request.wait.saturating_sub(started.elapsed());
        if !claimed.is_empty() || request.slots == 0 || left.is_zero() {
            return Ok(claimed);
        }
        let mut due = inner.next_due();
        if (inner.queues.any() || inner.preferred.any())
            && let Some(opens_at) = Lanes::covered(inner, Claimer::Node(&request), at).opens_at
        {
            due = due.min(opens_at);
        }
        // A moment late rather than early, when nothing would be due yet.
        let nap = left.min(inner.poll()).min(due.since(at).max(Duration::from_millis(1)));
        // Whoever has gone takes nothing any more, not even what it has just given back.
        tokio::select! {
            biased;
            () = claimer.closed() => return Ok(Vec::new()),
            () = inner.closed.cancelled() => return Err(StoreError::Closed),
            () = heard.ready() => {}
            () = ended => {}
            () = tokio::time::sleep(nap) => {}
        }
        at = now.plus(started.elapsed());
    }
}

pub(super) async fn once(
    inner: &Arc<Inner>,
    request: &ClaimRequest,
    now: Time,
) -> Result<Result<Vec<Claimed>, Rejected>, Fault> {
    // Where an agent runs what, no process knows.
    if request.agent.is_none() && (request.slots == 0 || inner.holdings.any_alone(request.node, now)) {
        return Ok(Ok(Vec::new()));
    }
    let mut mode = Mode::default();
    let (mut upkeeps, mut contended) = (0, 0);
    for _ in 0..TRIES_MAX {
        let tried = match &request.agent {
            None => attempt(inner, request, mode, now).await?,
            Some(agent) => measured::for_agent(inner, request, agent, mode, now).await?,
        };
        match tried {
            Try::Taken(claimed) => return Ok(Ok(claimed)),
            Try::Refused(rejected) => return Ok(Err(rejected)),
            Try::Upkeep => {
                upkeeps += 1;
                // What one pass has left, because it is too much or because someone holds it, keeps nobody from the rest.
                mode.kept_up = !promote(inner, now).await? || upkeeps == UPKEEPS_MAX;
            }
            Try::Unknown => inner.catalog.refresh(&inner.pool).await?,
            Try::Stale => inner.queues.refresh(&inner.pool).await?,
            Try::Again => {}
            // It waits only for what could be blamed with it, and nothing new starts meanwhile: else a busy node would
            // never come to it.
            Try::Suspect if inner.holdings.any_fresh(request.node, now) => return Ok(Ok(Vec::new())),
            Try::Suspect => mode.alone = true,
            Try::Contended if contended == CONTENDED_MAX => break,
            Try::Contended => {
                contended += 1;
                let share = inner.unit();
                tokio::time::sleep(CONTENDED_PAUSE.mul_f64(1.0 + share)).await;
            }
        }
    }
    Ok(Ok(Vec::new()))
}

async fn attempt(inner: &Arc<Inner>, request: &ClaimRequest, mode: Mode, now: Time) -> Result<Try, Fault> {
    inner.preferred.look(inner, now).await?;
    let lanes = Lanes::covered(inner, Claimer::Node(request), now);
    if !lanes.needs.is_empty() {
        return measured::for_node(inner, request, &lanes, mode, now).await;
    }
    let limits = match lanes.limited.is_empty() && lanes.tried.is_empty() {
        true => Limits::None,
        false => Limits::Asked,
    };
    let sql = lanes::statement(lanes.kind(mode.alone), limits);
    let params = lanes.params(inner, request, mode, limits, now).await?;
    let tx = inner.pool.begin_claim().await?;
    let answers = tx.commit(&[Statement { sql, params }]).await?;
    let rows = answers.into_iter().next().unwrap_or_default();
    let Some(first) = rows.first() else {
        return Ok(Try::Taken(Vec::new()));
    };
    if let Some(hindered) = hindered(inner, first, mode, now)? {
        return Ok(hindered);
    }
    let ready: Option<Vec<i32>> = first.try_get(guard::READY)?;
    if let Some(ready) = ready.filter(|ready| !ready.is_empty()) {
        if ready.contains(&TRIED) {
            return measured::for_node(inner, request, &lanes, mode, now).await;
        }
        return gated::attempt(inner, request, mode, &lanes, &ready, now).await;
    }
    Ok(match keep(inner, read_all(inner, &rows)?, now).await? {
        Some(claimed) => Try::Taken(claimed),
        None => nothing(first)?,
    })
}

/// What was not taken: nothing is there, or others were quicker.
pub(super) fn nothing(first: &Row) -> Result<Try, Fault> {
    Ok(match first.try_get(guard::SEEN)? {
        true => Try::Contended,
        false => Try::Taken(Vec::new()),
    })
}

/// What has to be done before anything is taken.
pub(super) fn hindered(inner: &Inner, first: &Row, mode: Mode, now: Time) -> Result<Option<Try>, Fault> {
    let due: Option<i64> = first.try_get(guard::NEXT_DUE)?;
    let soonest = if mode.kept_up { now.plus(HELD_BACK) } else { now };
    inner.note_due(due.map(|at| at.max(soonest.as_micros())));
    for (column, hindered) in [
        (guard::UNKNOWN, Try::Unknown),
        (guard::STALE, Try::Stale),
        (guard::UPKEEP, Try::Upkeep),
        (guard::SUSPECT, Try::Suspect),
    ] {
        if first.try_get(column)? {
            return Ok(Some(hindered));
        }
    }
    Ok(None)
}

/// The tasks of an answer, in the order of claims.
pub(super) fn read_all(inner: &Inner, rows: &[Row]) -> Result<Vec<(LiveRow, Claimed)>, Fault> {
    if rows
        .first()
        .map_or(Ok(None), |first| first.try_get::<_, Option<i64>>(guard::COLUMNS))?
        .is_none()
    {
        return Ok(Vec::new());
    }
    let mut taken = rows
        .iter()
        .map(|found| read(inner, found, guard::COLUMNS))
        .collect::<Result<Vec<_>, _>>()?;
    sort(&mut taken);
    Ok(taken)
}

/// RETURNING keeps no order.
pub(super) fn sort(taken: &mut [(LiveRow, Claimed)]) {
    taken.sort_by_key(|(live, _)| (live.stands, live.row));
}

/// Notes what this process holds now; `None` for nothing.
pub(super) async fn keep(
    inner: &Arc<Inner>,
    taken: Vec<(LiveRow, Claimed)>,
    now: Time,
) -> Result<Option<Vec<Claimed>>, Fault> {
    if taken.is_empty() {
        return Ok(None);
    }
    let (lives, claimed): (Vec<LiveRow>, Vec<Claimed>) = taken.into_iter().unzip();
    let keyed = lives.iter().find(|live| live.scope.is_some()).map(|live| live.class);
    inner.holdings.add(lives);
    if let Some(class) = keyed
        && let Err(fault) = settle_on_disk(inner, class).await
    {
        let inner = Arc::clone(inner);
        tokio::spawn(async move { unclaim(&inner, claimed, now).await });
        return Err(fault);
    }
    Ok(Some(claimed))
}

/// A lease from the columns [`LIVE`], [`TASK`] and that of the checkpoint, beginning at `from`.
pub(super) fn read(inner: &Inner, found: &Row, from: usize) -> Result<(LiveRow, Claimed), Fault> {
    let live = LiveRow::read(found, from)?;
    let task = StoredTask::read(found, from + LIVE.len(), &inner.catalog)?;
    let checkpoint = match found.try_get::<_, Option<String>>(from + LIVE.len() + TASK.len())? {
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
    let is_bare = live.marks & mark::DEPENDS == 0 && live.progress.is_none() && live.error.is_none();
    let claimed = Claimed {
        bare: is_bare.then_some(u64::from(live.version)),
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

/// The first rows of a gate that have come due: how many, until when, and their keys.
fn due(gate: i16) -> String {
    format!(
        "SELECT count(*), max(due_at), array_agg(DISTINCT scope) FILTER (WHERE scope IS NOT NULL) FROM (
           SELECT scope, due_at FROM pensum.live WHERE {is_due} ORDER BY gate, due_at LIMIT {PROMOTED_MAX}) due",
        is_due = row::is_due(gate)
    )
}

/// Opens the gate of rows that are due by `$1`, without a key or with one of those in `$2`, which are locked. What is
/// keyed stands behind its key first.
fn open(gate: i16, cell: Cell) -> String {
    format!(
        "WITH moved AS (UPDATE pensum.live SET gate = CASE WHEN scope IS NULL THEN 0 ELSE 7 END, due_at = NULL
            WHERE ctid = ANY(ARRAY(
                SELECT ctid FROM pensum.live WHERE {is_due} AND (scope IS NULL OR scope = ANY($2))
                ORDER BY gate, due_at LIMIT {PROMOTED_MAX} FOR UPDATE SKIP LOCKED)) RETURNING class),
         counted AS (INSERT INTO pensum.tally(class, cell, n)
            SELECT class, change.cell, change.by * count(*) FROM moved
            CROSS JOIN (VALUES ({}::smallint, -1), ({}::smallint, 1)) AS change(cell, by)
            GROUP BY class, change.cell, change.by)
         SELECT count(*) FROM moved",
        cell as i16,
        Cell::Ready as i16,
        is_due = row::is_due(gate)
    )
}

/// Keys whose head has come to its end before its turn.
const OVERDUE: &str = "SELECT count(*), NULL::bigint, array_agg(DISTINCT scope) FROM (
    SELECT scope FROM pensum.live WHERE timer_at <= $1 AND gate = 0 AND scope IS NOT NULL
    ORDER BY timer_at LIMIT 2000) overdue";

/// Opens the gates of rows that have come due, and passes on the turns of keys whose head is overdue. True when that was
/// all there is to do.
///
/// Keys are locked before rows, as everywhere.
pub(super) async fn promote(inner: &Arc<Inner>, now: Time) -> Result<bool, Fault> {
    use row::gate::{LATER, RETRYING};
    let (due_later, due_again) = (due(LATER), due(RETRYING));
    let mut tx = inner.pool.begin(Durability::Relaxed).await?;
    let look = |sql| Statement {
        sql,
        params: vec![Value::Int8(Some(now.as_micros()))],
    };
    let answers = tx
        .pipeline(&[look(&due_later), look(&due_again), look(OVERDUE)])
        .await?;
    let mut scopes: BTreeSet<Name> = BTreeSet::new();
    let (mut counts, mut until) = (Vec::new(), Vec::new());
    for found in answers.iter().flatten() {
        counts.push(found.try_get::<_, i64>(0)?);
        until.push(found.try_get::<_, Option<i64>>(1)?);
        let keys: Option<Vec<&str>> = found.try_get(2)?;
        scopes.extend(keys.into_iter().flatten().map(Name::from));
    }
    let [later, again, overdue] = counts[..] else {
        return Err(Fault::Damaged("fewer counts than were asked for".to_owned()));
    };
    let (open_later, open_again) = (open(LATER, Cell::Later), open(RETRYING, Cell::Retrying));
    let gates = [(later, &open_later, until[0]), (again, &open_again, until[1])];
    let mut statements: Vec<Statement<'_>> = key::lock(&scopes).into_iter().collect();
    let before = statements.len();
    for (_, sql, until) in gates.iter().filter(|(due, ..)| *due > 0) {
        let params = vec![Value::Int8(*until), key::keys(&scopes)];
        statements.push(Statement { sql, params });
    }
    let opening = before..statements.len();
    statements.extend(key::settle(&scopes, &inner.key_order(), now));
    let answers = tx.commit(&statements).await?;
    let mut opened: i64 = 0;
    for found in answers[opening].iter().flatten() {
        opened += found.try_get::<_, i64>(0)?;
    }
    inner.wake.any_room();
    Ok(later.max(again).max(overdue) < PROMOTED_MAX && opened >= later + again)
}

/// Gives back what was claimed for someone who did not wait for it.
pub(super) async fn unclaim(inner: &Arc<Inner>, lost: Vec<Claimed>, now: Time) {
    // It may have waited for a while, and must not have come back before it went.
    let started_at = lost.iter().filter_map(|claimed| claimed.lifecycle.started_at).max();
    let now = started_at.map_or(now, |at| at.max(now));
    let finishes = lost
        .into_iter()
        .map(|claimed| Finish::new(claimed.lease, Outcome::Released))
        .collect();
    if let Err(error) = super::finish::finish(inner, finishes, now).await {
        tracing::debug!(%error, "claimed tasks that nobody waited for come back when their leases run out");
    }
}
