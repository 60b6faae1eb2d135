//! Claims that count what the claimer holds: those of agents, and those of nodes that keep to their resources.
//!
//! One transaction locks the claimer, so that nothing else is leased in its name meanwhile; looks at the best tasks of each
//! lane; decides how many of each lane fit together; and takes so many.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use pensum_core::agent::Amounts;
use pensum_core::queue::Room;
use pensum_core::store::{AgentClaim, ClaimRequest, Claimed};
use pensum_core::{ExecutionId, LeaseId, NodeId, Time};
use tokio_postgres::Row;

use super::Inner;
use super::agent::{self, LEASED};
use super::claim::{Mode, PROBATION, Try, hindered, keep, read, sort};
use super::error::Fault;
use super::gated::{self, Gates};
use super::lanes::{Claimer, Lanes, next_due, taking, upkeep};
use super::pool::{Statement, Tx, Value};
use super::reads::TASK;
use super::row::{self, LIVE, LiveRow, flag, gate, stored_lease, task_id};
use super::trial::{self, Trials};

/// How many of the best tasks of all lanes are looked at, beside some for each slot. What is left out is found by a later
/// claim: the best of those always fits.
const LOOKED_AT: usize = 256;

/// What a session has leased. After the statement that has locked its agent: all of it.
static HELD: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT l.row, l.class, coalesce(l.attempt, 0), l.taken_at, (l.flags & {alone}) <> 0,
         (l.flags & {checkpointed}) <> 0, t.id FROM pensum.live l JOIN pensum.task t ON t.row = l.row
         WHERE {LEASED} = $1 ORDER BY l.row",
        alone = flag::ALONE,
        checkpointed = flag::CHECKPOINTED
    )
});
/// Leases as their claims answered them.
static AGAIN: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {}, {}, c.state FROM pensum.live l JOIN pensum.task t ON t.row = l.row
         LEFT JOIN pensum.checkpoint c ON c.row = l.row AND (l.flags & 1) <> 0
         WHERE l.row = ANY($1) AND {LEASED} = $2 ORDER BY l.row",
        row::list(&LIVE, "l"),
        row::list(&TASK, "t")
    )
});
/// Of two claims of one node the second waits for the first.
const LOCK_NODE: &str = "SELECT pg_advisory_xact_lock(hashtextextended('pensum.claims of ' || $1::text, 0))";
/// How many leases of each class a node has.
static OF_NODE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT class, count(*) FROM pensum.live WHERE {} AND node = $2 GROUP BY class",
        row::is_due(gate::RUNNING)
    )
});

/// The best tasks of the lanes, in order, behind what has to be done first; and the best suspect.
static LOOK: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH due AS MATERIALIZED (SELECT {next_due} AS next_due),
        lanes AS MATERIALIZED (SELECT * FROM unnest($2::integer[], $3::bigint[], $4::bigint[])
            AS given(class, newest, most)),
        guard AS MATERIALIZED (SELECT {upkeep} AS upkeep, (SELECT count(*) FROM pensum.class) > $5 AS unknown,
            (SELECT value FROM pensum.queue_version) IS DISTINCT FROM $7 AS stale, next_due FROM due),
        alone AS MATERIALIZED (SELECT s.row, s.class FROM (SELECT row, class, rank, deadline FROM pensum.live
                WHERE class = ANY($2) AND gate = 0 AND (flags & 16384) <> 0 AND (timer_at IS NULL OR timer_at > $1)
                ORDER BY (flags & 16384), row LIMIT 1000) s
            JOIN lanes lane ON lane.class = s.class AND s.row <= lane.newest
            ORDER BY s.rank, s.deadline, s.row LIMIT 1),
        found AS MATERIALIZED (SELECT best.* FROM lanes lane CROSS JOIN LATERAL (
                SELECT row, class, rank, deadline FROM pensum.live
                WHERE class = lane.class AND gate = 0 AND (timer_at IS NULL OR timer_at > $1) AND row <= lane.newest
                ORDER BY rank, deadline, row LIMIT lane.most) best
            WHERE NOT (SELECT upkeep OR unknown OR stale FROM guard)
            ORDER BY best.rank, best.deadline, best.row LIMIT $8)
        SELECT g.upkeep, g.unknown, g.stale, false, g.next_due, a.row, a.class, f.class
        FROM guard g LEFT JOIN alone a ON true LEFT JOIN found f ON true ORDER BY f.rank, f.deadline, f.row",
        next_due = next_due(),
        upkeep = upkeep("$6")
    )
});

/// The first of each lane, as many of each as are given, passing over what others are taking; none where a queue has
/// changed since it was looked at.
const FIRST: &str = "SELECT best.place FROM lanes lane CROSS JOIN LATERAL (
        SELECT ctid AS place FROM pensum.live
        WHERE class = lane.class AND gate = 0 AND (timer_at IS NULL OR timer_at > $1) AND row <= lane.newest
        ORDER BY rank, deadline, row LIMIT lane.most FOR UPDATE SKIP LOCKED) best
    WHERE (SELECT value FROM pensum.queue_version) = $10";
/// One suspect.
const SUSPECT: &str = "SELECT ctid FROM pensum.live
    WHERE row = $9 AND gate = 0 AND (timer_at IS NULL OR timer_at > $1)
      AND (SELECT value FROM pensum.queue_version) = $10 FOR UPDATE SKIP LOCKED";

fn take(picked: &str, flags: u32) -> String {
    format!(
        "WITH lanes AS MATERIALIZED (SELECT * FROM unnest($2::integer[], $7::bigint[], $3::bigint[])
            AS given(class, newest, most)), {}
        SELECT {}, {}, c.state FROM taken l JOIN pensum.task t ON t.row = l.row
        LEFT JOIN pensum.checkpoint c ON c.row = l.row AND (l.flags & 1) <> 0",
        taking(picked, flags),
        row::list(&LIVE, "l"),
        row::list(&TASK, "t"),
    )
}

/// By whether it is a suspect that is taken, and whether by an agent.
static TAKE: LazyLock<[[String; 2]; 2]> = LazyLock::new(|| {
    [(FIRST, 0), (SUSPECT, flag::ALONE)].map(|(picked, flags)| [0, flag::AGENT].map(|by| take(picked, flags | by)))
});

/// What a claimer may be given.
struct Budget {
    slots: usize,
    /// What its machine has left.
    free: Option<Amounts>,
    /// Something runs for it that could be blamed with a suspect.
    any_fresh: bool,
    by_agent: bool,
}

/// A lane of which something may be taken.
#[derive(Clone, Copy)]
struct Lane {
    class: i32,
    /// Its queue, where that has limits.
    queue: Option<i32>,
    newest: i64,
    /// How many of its tasks would fit by themselves.
    most: usize,
}

/// What a claim could take.
struct Look {
    /// The best suspect, with its class.
    suspect: Option<(i64, i32)>,
    /// The classes of the best tasks, in order.
    found: Vec<i32>,
}

impl Look {
    /// The classes of which something is there.
    fn classes(&self) -> impl Iterator<Item = i32> {
        self.found.iter().copied().chain(self.suspect.map(|suspect| suspect.1))
    }
}

/// A claim of a session.
pub(super) async fn for_agent(
    inner: &Arc<Inner>,
    request: &ClaimRequest,
    claim: &AgentClaim,
    mode: Mode,
    now: Time,
) -> Result<Try, Fault> {
    inner.preferred.look(inner, now).await?;
    let executor = inner.catalog.name_id(&inner.pool, &request.executor).await?;
    let session = request.node;
    let mut tx = inner.pool.begin_claim().await?;
    let looks = [
        agent::hear(&claim.namespace, &claim.name, Some(session), now),
        Statement {
            sql: &HELD,
            params: vec![Value::Int8(Some(session.0 as i64))],
        },
    ];
    let answers = tx.pipeline(&looks).await?;
    let Some(heard) = answers.first().and_then(|rows| rows.first()) else {
        tx.rollback().await?;
        let rejected = agent::refusal(&inner.pool, &claim.namespace, &claim.name).await?;
        return Ok(Try::Refused(rejected));
    };
    let (_, record) = agent::read(heard)?;
    inner.preferred.note(&claim.namespace, &record);
    inner
        .parked
        .learn(session, &record.settings, record.draining_at.is_some());
    let held = Held::read(answers.get(1).map_or(&[], Vec::as_slice))?;
    inner.holdings.retain(session, &held.rows());
    let Some(taken) = held.needs(inner) else {
        tx.rollback().await?;
        return Ok(Try::Unknown);
    };
    let unknown = held.unknown(&claim.have);
    if !unknown.is_empty() {
        return again(inner, tx, session, &unknown).await;
    }
    let most = record.settings.max_concurrent_tasks as usize;
    let budget = Budget {
        slots: request.slots.min(most.saturating_sub(held.0.len())),
        free: Some(record.settings.offered().minus(taken)),
        any_fresh: held.any_fresh(now),
        by_agent: true,
    };
    if budget.slots == 0 || record.draining_at.is_some() || held.any_alone(now) {
        tx.commit(&[]).await?;
        return Ok(Try::Taken(Vec::new()));
    }
    let lanes = Lanes::covered(inner, Claimer::Agent(claim, &record.settings), now);
    fill(inner, tx, request, executor, &budget, &lanes, mode, now).await
}

/// A claim of a node over lanes of which some take of its resources.
pub(super) async fn for_node(
    inner: &Arc<Inner>,
    request: &ClaimRequest,
    lanes: &Lanes,
    mode: Mode,
    now: Time,
) -> Result<Try, Fault> {
    let executor = inner.catalog.name_id(&inner.pool, &request.executor).await?;
    // Before anything is counted: what ends afterwards may be what it waits for.
    inner.holdings.await_end();
    let any_fresh = inner.holdings.any_fresh(request.node, now);
    let node = request.node.0 as i64;
    let mut tx = inner.pool.begin_claim().await?;
    let looks = [
        Statement {
            sql: LOCK_NODE,
            params: vec![Value::Int8(Some(node))],
        },
        Statement {
            sql: &OF_NODE,
            params: vec![Value::Int8(Some(i64::MAX)), Value::Int8(Some(node))],
        },
    ];
    let answers = tx.pipeline(&looks).await?;
    let mut taken = Amounts::default();
    for row in answers.get(1).into_iter().flatten() {
        let Some(class) = inner.catalog.known_class(row.try_get::<_, i32>(0)? as u32) else {
            tx.rollback().await?;
            return Ok(Try::Unknown);
        };
        let count = row.try_get::<_, i64>(1)?.max(0) as u64;
        taken = taken.plus(class.demand.resources.times(count));
    }
    let budget = Budget {
        slots: request.slots,
        free: request.resources.map(|offered| offered.minus(taken)),
        any_fresh,
        by_agent: false,
    };
    fill(inner, tx, request, executor, &budget, lanes, mode, now).await
}

/// What a session has leased.
struct Held(Vec<HeldRow>);

struct HeldRow {
    row: i64,
    class: u32,
    execution: ExecutionId,
    taken_at: Time,
    alone: bool,
    checkpointed: bool,
}

impl Held {
    fn read(rows: &[Row]) -> Result<Held, Fault> {
        let read = |row: &Row| {
            Ok(HeldRow {
                row: row.try_get(0)?,
                class: row.try_get::<_, i32>(1)? as u32,
                execution: ExecutionId {
                    task: task_id(row, 6)?,
                    attempt: u32::try_from(row.try_get::<_, i64>(2)?).unwrap_or(u32::MAX),
                },
                taken_at: Time::from_micros(row.try_get(3)?),
                alone: row.try_get(4)?,
                checkpointed: row.try_get(5)?,
            })
        };
        Ok(Held(rows.iter().map(read).collect::<Result<_, Fault>>()?))
    }

    fn rows(&self) -> BTreeSet<i64> {
        self.0.iter().map(|held| held.row).collect()
    }

    /// What all of it takes; `None` while a class is not known.
    fn needs(&self, inner: &Inner) -> Option<Amounts> {
        let mut all = Amounts::default();
        for held in &self.0 {
            all = all.plus(inner.catalog.known_class(held.class)?.demand.resources);
        }
        Some(all)
    }

    /// What is not among these.
    fn unknown(&self, have: &[ExecutionId]) -> Vec<i64> {
        let unknown = self.0.iter().filter(|held| !have.contains(&held.execution));
        unknown.map(|held| held.row).collect()
    }

    fn fresh(&self, now: Time) -> impl Iterator<Item = &HeldRow> {
        let is_fresh = move |held: &&HeldRow| !held.checkpointed && now.since(held.taken_at) < PROBATION;
        self.0.iter().filter(is_fresh)
    }

    fn any_fresh(&self, now: Time) -> bool {
        self.fresh(now).next().is_some()
    }

    fn any_alone(&self, now: Time) -> bool {
        self.fresh(now).any(|held| held.alone)
    }
}

/// Answers again what a session has leased. It is on disk since it was claimed.
async fn again(inner: &Arc<Inner>, tx: Tx, session: NodeId, rows: &[i64]) -> Result<Try, Fault> {
    let again = Statement {
        sql: &AGAIN,
        params: vec![
            Value::Int8s(rows.iter().copied().map(Some).collect()),
            Value::Int8(Some(session.0 as i64)),
        ],
    };
    let answers = tx.commit(&[again]).await?;
    let found = answers.iter().flatten().map(|row| read(inner, row, 0));
    let found: Vec<(LiveRow, Claimed)> = found.collect::<Result<_, _>>()?;
    let (lives, claimed) = found.into_iter().unzip();
    inner.holdings.add(lives);
    Ok(Try::Taken(claimed))
}

/// Takes what fits.
#[expect(clippy::too_many_arguments, reason = "the parts of one claim")]
async fn fill(
    inner: &Arc<Inner>,
    mut tx: Tx,
    request: &ClaimRequest,
    executor: u32,
    budget: &Budget,
    lanes: &Lanes,
    mode: Mode,
    mut now: Time,
) -> Result<Try, Fault> {
    now = inner.once_held(now);
    let mut open = open_lanes(lanes, budget);
    let (first, mut look) = look(inner, &mut tx, &open, budget, lanes, mode, now).await?;
    if let Some(hindered) = first {
        tx.rollback().await?;
        return Ok(hindered);
    }
    let ready = ready_queues(&open, &look);
    let tried = trial::ready(lanes, look.classes());
    let (mut gates, mut trials) = (Gates::new(), Trials::new());
    if !ready.is_empty() || !tried.is_empty() {
        (gates, trials) = match hold(inner, &mut tx, lanes, (&ready, &tried), now).await {
            Err(fault) if fault.is_lock_timeout() => {
                tx.rollback().await?;
                return Ok(Try::Again);
            }
            held => held?,
        };
        now = inner.once_held(now);
        // Of the other half-open breakers and limited queues nothing was seen.
        open.retain_mut(|lane| {
            let most = lanes.may_try(&trials, lane.class);
            lane.most = usize::try_from(most).unwrap_or(usize::MAX).min(lane.most);
            lane.most > 0
        });
        let room = |lane: &mut Lane| match lane.queue {
            None => true,
            Some(queue) => match gates.get(&queue).and_then(|gate| gate.room.as_ref().ok()) {
                Some(room) => {
                    lane.newest = room.newest;
                    true
                }
                None => false,
            },
        };
        open.retain_mut(room);
        let again = self::look(inner, &mut tx, &open, budget, lanes, mode, now).await?;
        if let Some(hindered) = again.0 {
            tx.rollback().await?;
            return Ok(hindered);
        }
        look = again.1;
    }
    let Choice { counts, suspect, short } = choose(budget, lanes, &open, (&gates, &trials), &look);
    let is_held_up = look.suspect.is_some() && suspect.is_none();
    if counts.is_empty() || is_held_up {
        gated::remember(inner, lanes, &gates, None, &short, now);
        lanes.remember_trials(inner, &trials, inner.poll());
        tx.commit(&[]).await?;
        return Ok(Try::Taken(Vec::new()));
    }
    let mut statements = Vec::new();
    // A server that dies must not forget what an agent holds, for that outlives this process; nor what runs of a queue, or
    // probes a breaker.
    if budget.by_agent || inner.queues.is_counted(&ready) || !trials.is_empty() {
        statements.push(inner.pool.acknowledge());
    }
    let class_of = |lane: &&Lane| counts.contains_key(&lane.class);
    let taken_from: Vec<&Lane> = open.iter().filter(class_of).collect();
    let lease = LeaseId(u128::from(inner.bits()) << 64 | u128::from(inner.bits()));
    let sql = &TAKE[usize::from(suspect.is_some())][usize::from(budget.by_agent)];
    statements.push(Statement {
        sql,
        params: vec![
            Value::Int8(Some(now.as_micros())),
            Value::Int4s(taken_from.iter().map(|lane| Some(lane.class)).collect()),
            Value::Int8s(taken_from.iter().map(|lane| Some(counts[&lane.class])).collect()),
            Value::Uuid(stored_lease(lease, 0)),
            Value::Int8(Some(request.node.0 as i64)),
            Value::Int8(Some(i64::try_from(request.lease.as_micros()).unwrap_or(i64::MAX >> 2))),
            Value::Int8s(taken_from.iter().map(|lane| Some(lane.newest)).collect()),
            Value::Int8(Some(i64::from(executor))),
            Value::Int8(suspect),
            Value::Int8(Some(lanes.version)),
        ],
    });
    let is_rated = gates.values().any(gated::Gate::is_rated);
    let (tx, answers) = match is_rated {
        true => {
            let answers = tx.pipeline(&statements).await?;
            (Some(tx), answers)
        }
        false => (None, tx.commit(&statements).await?),
    };
    let rows = answers.last().map_or(&[][..], Vec::as_slice);
    let mut taken = rows
        .iter()
        .map(|found| read(inner, found, 0))
        .collect::<Result<Vec<_>, _>>()?;
    sort(&mut taken);
    let changed = gated::note_starts(&mut gates, lanes, &taken);
    if let Some(tx) = tx {
        tx.commit(&gated::fill_buckets(&gates, &changed)).await?;
    }
    gated::remember(inner, lanes, &gates, None, &short, now);
    for (live, _) in &taken {
        lanes.note_trial(&mut trials, live.class as i32);
    }
    lanes.remember_trials(inner, &trials, inner.poll());
    if taken.is_empty() {
        return Ok(Try::Contended);
    }
    if budget.by_agent {
        let (lives, claimed) = taken.into_iter().unzip();
        inner.holdings.add(lives);
        return Ok(Try::Taken(claimed));
    }
    Ok(Try::Taken(keep(inner, taken, now).await?.unwrap_or_default()))
}

/// Holds the half-open breakers and then the limited queues of which something is there.
async fn hold(
    inner: &Arc<Inner>,
    tx: &mut Tx,
    lanes: &Lanes,
    (ready, tried): (&[i32], &BTreeSet<usize>),
    now: Time,
) -> Result<(Gates, Trials), Fault> {
    let (mut gates, mut trials) = (Gates::new(), Trials::new());
    if !tried.is_empty() {
        trials = trial::hold(inner, tx, lanes, tried, now).await?;
    }
    if !ready.is_empty() {
        gates = match gated::hold(inner, tx, ready, now).await {
            Err(fault) if fault.is_lock_timeout() => {
                for id in ready {
                    inner.queues.hold(*id, gated::HELD);
                }
                return Err(fault);
            }
            held => held?,
        };
    }
    Ok((gates, trials))
}

/// The lanes of which at least one task would fit.
fn open_lanes(lanes: &Lanes, budget: &Budget) -> Vec<Lane> {
    let lane = |(class, queue)| {
        let most = match (budget.free, lanes.needs.get(&class)) {
            (Some(free), Some(needs)) => (0..budget.slots as u64)
                .take_while(|n| needs.times(n + 1).fits(free))
                .count(),
            _ => budget.slots,
        };
        (most > 0).then_some(Lane {
            class,
            queue,
            newest: Room::OPEN.newest,
            most,
        })
    };
    lanes.all().filter_map(lane).collect()
}

async fn look(
    inner: &Arc<Inner>,
    tx: &mut Tx,
    open: &[Lane],
    budget: &Budget,
    lanes: &Lanes,
    mode: Mode,
    now: Time,
) -> Result<(Option<Try>, Look), Fault> {
    let looked_at = budget.slots.saturating_mul(2).saturating_add(LOOKED_AT);
    let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX >> 2);
    let statement = Statement {
        sql: &LOOK,
        params: vec![
            Value::Int8(Some(now.as_micros())),
            Value::Int4s(open.iter().map(|lane| Some(lane.class)).collect()),
            Value::Int8s(open.iter().map(|lane| Some(lane.newest)).collect()),
            Value::Int8s(open.iter().map(|lane| Some(number(lane.most))).collect()),
            Value::Int8(Some(number(inner.catalog.classes_known()))),
            Value::Int8(Some(i64::from(mode.kept_up))),
            Value::Int8(Some(lanes.version)),
            Value::Int8(Some(number(looked_at))),
        ],
    };
    let rows = tx.pipeline(&[statement]).await?.pop().unwrap_or_default();
    let mut look = Look {
        suspect: None,
        found: Vec::new(),
    };
    let Some(first) = rows.first() else {
        return Ok((None, look));
    };
    let hindered = hindered(inner, first, mode, now)?;
    if let (Some(row), Some(class)) = (first.try_get(5)?, first.try_get(6)?) {
        look.suspect = Some((row, class));
    }
    for row in &rows {
        look.found.extend(row.try_get::<_, Option<i32>>(7)?);
    }
    Ok((hindered, look))
}

/// The queues with limits of which something is there.
fn ready_queues(open: &[Lane], look: &Look) -> Vec<i32> {
    let seen: BTreeSet<i32> = look.classes().collect();
    let limited = open.iter().filter(|lane| seen.contains(&lane.class));
    let queues: BTreeSet<i32> = limited.filter_map(|lane| lane.queue).collect();
    queues.into_iter().collect()
}

/// What to take.
#[derive(Default)]
struct Choice {
    /// How many of each class, in the order of claims as long as they fit.
    counts: BTreeMap<i32, i64>,
    /// Or the suspect that is to run alone.
    suspect: Option<i64>,
    /// The classes of the next tasks of queues whose buckets hold too little for them.
    short: Vec<i32>,
}

fn choose(budget: &Budget, lanes: &Lanes, open: &[Lane], (gates, trials): (&Gates, &Trials), look: &Look) -> Choice {
    if let Some((row, class)) = look.suspect {
        return match budget.any_fresh {
            true => Choice::default(),
            false => Choice {
                counts: BTreeMap::from([(class, 1)]),
                suspect: Some(row),
                ..Choice::default()
            },
        };
    }
    let queues: BTreeMap<i32, i32> = open.iter().filter_map(|l| Some((l.class, l.queue?))).collect();
    let mut rooms: BTreeMap<i32, Room> = BTreeMap::new();
    for (queue, gate) in gates {
        rooms.insert(*queue, *gate.room.as_ref().unwrap_or(&Room::NONE));
    }
    let mut short = Vec::new();
    let (mut counts, mut free, mut trials) = (BTreeMap::new(), budget.free, trials.clone());
    let mut slots = budget.slots;
    for class in &look.found {
        if slots == 0 {
            break;
        }
        let needs = lanes.needs.get(class).copied().unwrap_or_default();
        let queue = queues.get(class);
        let room = queue.map(|queue| rooms.entry(*queue).or_insert(Room::NONE));
        let is_full = room.as_ref().is_some_and(|room| room.starts == 0) || lanes.may_try(&trials, *class) == 0;
        if is_full || free.is_some_and(|free| !needs.fits(free)) {
            continue;
        }
        let units = lanes.units_of(*class);
        match room {
            Some(room) if !room.admits(units) => {
                let before = queue.and_then(|queue| gates.get(queue)?.room.ok());
                if before == Some(*room) {
                    short.push(*class);
                }
                // Nothing behind it passes it by.
                *room = Room::NONE;
                continue;
            }
            Some(room) => room.take(units),
            None => {}
        }
        lanes.note_trial(&mut trials, *class);
        free = free.map(|free| free.minus(needs));
        slots -= 1;
        *counts.entry(*class).or_default() += 1;
    }
    Choice {
        counts,
        suspect: None,
        short,
    }
}
