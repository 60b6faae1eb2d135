//! Claims from queues with limits: one transaction that holds the queues while it counts what runs of them.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use pensum_core::Time;
use pensum_core::queue::{Closed, QueueRecord, Room};
use pensum_core::store::{ClaimRequest, Claimed};

use super::Inner;
use super::claim::{Mode, Try, hindered, keep, nothing, read_all};
use super::error::Fault;
use super::lanes::{self, Lanes, Limits, guard};
use super::pool::{Durability, Statement, Tx, Value};
use super::queue::{self, COLUMNS};
use super::row::LiveRow;

/// How the transaction goes about it. It waits for a queue that another one holds, but not for long: nobody holds one for
/// more than a few round trips, but a node that stands still, or is cut off. And the queue is not held while the server
/// plans anew what has one good plan, or compiles it, or reads a whole table by a plan from when that was small.
pub(super) const MANNERS: &str = "SELECT set_config('lock_timeout', '250ms', true), set_config('jit', 'off', true),
    set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true)";
/// How long claims leave out a queue for which one waited in vain.
pub(super) const HELD: Duration = Duration::from_millis(250);
/// For other locks it waits as everyone does.
pub(super) const PATIENT: &str = "SET LOCAL lock_timeout TO DEFAULT";
/// How many leases are looked at first when they are counted: a limit that makes the server walk along their index.
const LEASES_FEW: i64 = 1_000;

pub(super) static HOLD: LazyLock<String> =
    LazyLock::new(|| format!("SELECT {COLUMNS} FROM pensum.queue q WHERE q.id = ANY($1) ORDER BY q.id FOR UPDATE"));

/// How many leases the tasks of each queue hold, among the first of all leases, and how many of those were looked at.
fn count(limit: &str) -> String {
    format!(
        "WITH held AS MATERIALIZED ({})
         SELECT q.id, coalesce(sum(held.count), 0)::bigint, (SELECT coalesce(sum(count), 0)::bigint FROM held)
         FROM pensum.queue q LEFT JOIN pensum.class c ON c.namespace = q.namespace AND c.queue = q.name
         LEFT JOIN held ON held.class = c.id WHERE q.id = ANY($1) GROUP BY q.id",
        queue::leases(limit)
    )
}

static COUNT_FEW: LazyLock<String> = LazyLock::new(|| count(&LEASES_FEW.to_string()));
pub(super) static COUNT_ALL: LazyLock<String> = LazyLock::new(|| count("ALL"));

/// Notes starts in the buckets of queues.
const FILL: &str = "UPDATE pensum.queue q SET bucket = given.bucket
    FROM unnest($1::integer[], $2::bigint[]) AS given(id, bucket) WHERE q.id = given.id";

/// A queue that this transaction holds.
pub(super) struct Gate {
    record: QueueRecord,
    running: u64,
    /// How much of it could start when the claim began.
    pub(super) room: Result<Room, Closed>,
}

impl Gate {
    /// True when starts of it are to be noted.
    pub(super) fn is_rated(&self) -> bool {
        self.record.settings.rate.is_some() && self.room.is_ok()
    }
}

pub(super) type Gates = BTreeMap<i32, Gate>;

/// A claim over all lanes, where these limited queues have something ready.
pub(super) async fn attempt(
    inner: &Arc<Inner>,
    request: &ClaimRequest,
    mode: Mode,
    lanes: &Lanes,
    ready: &[i32],
    now: Time,
) -> Result<Try, Fault> {
    let mut params = lanes.params(inner, request, mode, Limits::Obeyed, now).await?;
    // A server that dies must not forget what runs of a queue, for it would give its places away again.
    let durability = match inner.queues.is_counted(ready) {
        true => Durability::Acknowledged,
        false => Durability::Relaxed,
    };
    let mut tx = inner.pool.begin(durability).await?;
    let mut gates = match hold(inner, &mut tx, ready, now).await {
        Err(fault) if fault.is_lock_timeout() => {
            tx.rollback().await?;
            for id in ready {
                inner.queues.hold(*id, HELD);
            }
            return Ok(Try::Again);
        }
        held => held?,
    };
    let now = inner.once_held(now);
    params[0] = Value::Int8(Some(now.as_micros()));
    if !add_lanes(&mut params, lanes, &gates) {
        tx.rollback().await?;
        remember(inner, lanes, &gates, None, &[], now);
        return Ok(Try::Taken(Vec::new()));
    }
    let claim = [Statement {
        sql: lanes::statement(lanes.kind(mode.alone), Limits::Obeyed),
        params,
    }];
    let is_rated = gates.values().any(Gate::is_rated);
    let (tx, answers) = match is_rated {
        true => {
            let answers = tx.pipeline(&claim).await?;
            (Some(tx), answers)
        }
        false => (None, tx.commit(&claim).await?),
    };
    let rows = answers.into_iter().next().unwrap_or_default();
    let Some(first) = rows.first() else {
        return Ok(Try::Taken(Vec::new()));
    };
    if let Some(hindered) = hindered(inner, first, mode, now)? {
        if let Some(tx) = tx {
            tx.rollback().await?;
        }
        return Ok(hindered);
    }
    let taken = read_all(inner, &rows)?;
    let changed = note_starts(&mut gates, lanes, &taken);
    if let Some(tx) = tx {
        tx.commit(&fill_buckets(&gates, &changed)).await?;
    }
    if !mode.alone {
        let short: Option<Vec<i32>> = first.try_get(guard::SHORT)?;
        let short = short.unwrap_or_default();
        remember(inner, lanes, &gates, first.try_get(guard::READY)?, &short, now);
    }
    Ok(match keep(inner, taken, now).await? {
        Some(claimed) => Try::Taken(claimed),
        None => nothing(first)?,
    })
}

/// Locks the queues, and asks them how many may start. A statement after the one that waited for the locks sees everything
/// that was committed before they were got, so the leases are all that there are.
pub(super) async fn hold(inner: &Inner, tx: &mut Tx, ready: &[i32], now: Time) -> Result<Gates, Fault> {
    let ids = || Value::Int4s(ready.iter().copied().map(Some).collect());
    let count = |sql: &'static str| Statement {
        sql,
        params: vec![ids()],
    };
    let say = |sql: &'static str| Statement {
        sql,
        params: Vec::new(),
    };
    let lock = Statement {
        sql: &HOLD,
        params: vec![ids()],
    };
    // A queue that has got such a limit since is seen to have changed by the claim, which then takes nothing.
    let is_counted = inner.queues.is_counted(ready);
    let were_many = inner.queues.many_leases.load(Ordering::Relaxed);
    let mut looks = vec![say(MANNERS), lock, say(PATIENT)];
    if is_counted {
        looks.push(count(if were_many { &COUNT_ALL } else { &COUNT_FEW }));
    }
    let mut answers = tx.pipeline(&looks).await?;
    let mut counts = match is_counted {
        true => answers.pop().unwrap_or_default(),
        false => Vec::new(),
    };
    if is_counted {
        let all = counts.first().map_or(Ok(0), |row| row.try_get::<_, i64>(2))?;
        inner.queues.many_leases.store(all >= LEASES_FEW, Ordering::Relaxed);
        if all >= LEASES_FEW && !were_many {
            counts = tx.pipeline(&[count(&COUNT_ALL)]).await?.pop().unwrap_or_default();
        }
    }
    let mut running: BTreeMap<i32, u64> = BTreeMap::new();
    for row in &counts {
        running.insert(row.try_get(0)?, row.try_get::<_, i64>(1)?.max(0) as u64);
    }
    let mut gates = Gates::new();
    for row in answers.get(1).into_iter().flatten() {
        let (id, _, record) = queue::read(row, 0)?;
        let running = running.get(&id).copied().unwrap_or(0);
        let room = record.room(running, now);
        gates.insert(id, Gate { record, running, room });
    }
    Ok(gates)
}

/// Binds the lanes that may be taken from. False when there are none.
fn add_lanes(params: &mut Vec<Value<'static>>, lanes: &Lanes, gates: &Gates) -> bool {
    let open = lanes.open.iter().map(|class| (*class, 0, Room::OPEN));
    let limited = lanes.untried().filter_map(|(class, queue)| {
        let room = gates.get(&queue.id)?.room.ok()?;
        Some((*class, queue.id, room))
    });
    let all: Vec<(i32, i32, Room)> = open.chain(limited).collect();
    params[1] = Value::Int4s(all.iter().map(|(class, ..)| Some(*class)).collect());
    params.push(Value::Int4s(all.iter().map(|(_, queue, _)| Some(*queue)).collect()));
    let starts = |room: &Room| i64::try_from(room.starts).unwrap_or(i64::MAX);
    params.push(Value::Int8s(all.iter().map(|(.., room)| Some(starts(room))).collect()));
    params.push(Value::Int8s(all.iter().map(|(.., room)| Some(room.newest)).collect()));
    let units = |class: &i32| i32::try_from(lanes.units_of(*class)).unwrap_or(i32::MAX);
    params.push(Value::Int4s(all.iter().map(|(class, ..)| Some(units(class))).collect()));
    let tokens = |room: &Room| {
        let tokens = i64::try_from(room.tokens).unwrap_or(i64::MAX);
        if room.is_full { -tokens } else { tokens }
    };
    params.push(Value::Int8s(all.iter().map(|(.., room)| Some(tokens(room))).collect()));
    !all.is_empty()
}

/// Notes which queues the taken tasks are of; answers those whose bucket changed.
pub(super) fn note_starts(gates: &mut Gates, lanes: &Lanes, taken: &[(LiveRow, Claimed)]) -> Vec<i32> {
    let mut changed = Vec::new();
    for (live, _) in taken {
        let class = live.class as i32;
        let Ok(at) = lanes.limited.binary_search_by_key(&class, |(class, _)| *class) else {
            continue;
        };
        let queue = lanes.limited[at].1.id;
        let (Some(gate), Some(run)) = (gates.get_mut(&queue), live.run) else {
            continue;
        };
        gate.running += 1;
        if gate.record.settings.rate.is_some() {
            gate.record.started(u64::from(lanes.units_of(class)), run.taken_at);
            changed.push(queue);
        }
    }
    changed.sort_unstable();
    changed.dedup();
    changed
}

/// Writes the buckets of queues that have changed.
pub(super) fn fill_buckets(gates: &Gates, changed: &[i32]) -> Vec<Statement<'static>> {
    if changed.is_empty() {
        return Vec::new();
    }
    vec![Statement {
        sql: FILL,
        params: vec![
            Value::Int4s(changed.iter().map(|id| Some(*id)).collect()),
            Value::Int8s(changed.iter().map(|id| Some(gates[id].record.bucket.0)).collect()),
        ],
    }]
}

/// Lets claims leave out the queues that have no room now, and those of which nothing was seen that may start: also those
/// whose next task is of a class in `short`, the units of which are not there yet.
pub(super) fn remember(inner: &Inner, lanes: &Lanes, gates: &Gates, seen: Option<Vec<i32>>, short: &[i32], now: Time) {
    for class in short {
        let queue = lanes.limited.iter().find(|(limited, _)| limited == class);
        if let Some((_, queue)) = queue
            && let Some(gate) = gates.get(&queue.id)
            && gate.record.room(gate.running, now).is_ok()
        {
            let opens_at = gate.record.opens_at(lanes.units_of(*class), now);
            inner.queues.fall_short(*queue, lanes.version, opens_at, inner.poll());
        }
    }
    for (_, queue) in &lanes.limited {
        let Some(gate) = gates.get(&queue.id) else { continue };
        match gate.record.room(gate.running, now) {
            Err(closed) => inner.queues.shut(*queue, lanes.version, Some(closed), inner.poll()),
            Ok(_) if gate.room.is_ok() && seen.as_ref().is_some_and(|seen| !seen.contains(&queue.id)) => {
                inner.queues.shut(*queue, lanes.version, None, inner.poll());
            }
            Ok(_) => {}
        }
    }
}
