//! The statement of a claim, and the lanes that it covers: each class of tasks is one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use pensum_core::agent::{AgentSettings, Amounts};
use pensum_core::store::{AgentClaim, ClaimRequest};
use pensum_core::{LeaseId, Name, Time};

use super::Inner;
use super::claim::Mode;
use super::covering::Breakers;
use super::error::Fault;
use super::names::Class;
use super::pool::Value;
use super::queue::{Limited, Stand};
use super::reads::TASK;
use super::row::{self, Cell, LIVE, flag, stored_lease};
use super::trial::Trial;

/// For a queue in the answer of a claim: something is ready that half-open breakers cover.
pub(super) const TRIED: i32 = -1;

/// Who claims.
#[derive(Clone, Copy)]
pub(super) enum Claimer<'a> {
    Node(&'a ClaimRequest),
    Agent(&'a AgentClaim, &'a AgentSettings),
}

impl Claimer<'_> {
    /// True when it is of those for whom the tasks of a class are.
    pub(super) fn suits(&self, class: &Class) -> bool {
        match self {
            Claimer::Node(request) => {
                let offered = request.capabilities.as_ref();
                let queues = request.queues.as_ref();
                offered.is_none_or(|offered| class.demand.suits_node(&class.handler, offered))
                    && queues.is_none_or(|queues| queues.contains(&class.queue))
            }
            Claimer::Agent(claim, settings) => {
                class.namespace == claim.namespace && class.demand.suits_agent(&class.handler, &settings.capabilities)
            }
        }
    }

    /// What its machine has, where that is to be kept to.
    pub(super) fn offered(&self) -> Option<Amounts> {
        match self {
            Claimer::Node(request) => request.resources,
            Claimer::Agent(_, settings) => Some(settings.offered()),
        }
    }

    /// By which name its runs are recorded.
    fn executor(&self) -> &Name {
        match self {
            Claimer::Node(request) => &request.executor,
            Claimer::Agent(claim, _) => &claim.name,
        }
    }

    fn agent(&self) -> Option<&Name> {
        match self {
            Claimer::Node(_) => None,
            Claimer::Agent(claim, _) => Some(&claim.name),
        }
    }
}

/// The classes that a claimer covers, by what their queues and breakers say.
pub(super) struct Lanes {
    /// Of which everything may start, in order.
    pub(super) open: Vec<i32>,
    /// Of queues that have to be asked, with the queue.
    pub(super) limited: Vec<(i32, Limited)>,
    /// Those that half-open breakers cover, which have to be asked, with the numbers of these; of whatever queue.
    pub(super) tried: BTreeMap<i32, BTreeSet<usize>>,
    /// The breakers that these are numbers of.
    pub(super) breakers: Arc<Breakers>,
    /// What is seen of half-open breakers is so until this number grows.
    pub(super) opened: u64,
    /// Which version of the queues and breakers this follows from.
    pub(super) version: i64,
    /// When the first of those opens by the clock that are left out.
    pub(super) opens_at: Option<Time>,
    /// What a task of these takes of the claimer's machine; of others nothing that counts.
    pub(super) needs: BTreeMap<i32, Amounts>,
    /// How many units a task of these has; of others one.
    units: BTreeMap<i32, u32>,
}

impl Lanes {
    pub(super) fn covered(inner: &Inner, claimer: Claimer<'_>, now: Time) -> Lanes {
        let offered = claimer.offered();
        let view = inner.queues.view(&inner.wake, now);
        let mut lanes = Lanes {
            open: Vec::new(),
            limited: Vec::new(),
            tried: BTreeMap::new(),
            breakers: Arc::clone(view.breakers()),
            opened: view.opened(),
            version: view.version(),
            opens_at: None,
            needs: BTreeMap::new(),
            units: BTreeMap::new(),
        };
        for class in inner.catalog.classes() {
            if !claimer.suits(&class) {
                continue;
            }
            if let Some(until) = inner.preferred.keeps(&class, claimer.agent(), now) {
                lanes.opens_at = [lanes.opens_at, Some(until)].into_iter().flatten().min();
                continue;
            }
            let id = class.id as i32;
            let tried = match view.trial(&class, claimer.executor()) {
                Trial::Free => None,
                Trial::Tried(breakers) => Some(breakers),
                Trial::Shut(until) => {
                    lanes.opens_at = [lanes.opens_at, until].into_iter().flatten().min();
                    continue;
                }
            };
            let needs = class.demand.resources;
            if let Some(offered) = offered.filter(|_| !needs.is_zero()) {
                if !needs.fits(offered) {
                    continue;
                }
                lanes.needs.insert(id, needs);
            }
            if class.demand.units != 1 {
                lanes.units.insert(id, class.demand.units);
            }
            match view.stand(&class) {
                Stand::Open if tried.is_none() => lanes.open.push(id),
                Stand::Open => {}
                Stand::Limited(queue) => lanes.limited.push((id, queue)),
                Stand::Shut(until) => {
                    lanes.opens_at = [lanes.opens_at, until].into_iter().flatten().min();
                    continue;
                }
            }
            if let Some(breakers) = tried {
                lanes.tried.insert(id, breakers);
            }
        }
        lanes.open.sort_unstable();
        lanes.limited.sort_unstable();
        lanes
    }

    /// How many units a task of the class has.
    pub(super) fn units_of(&self, class: i32) -> u32 {
        self.units.get(&class).copied().unwrap_or(1)
    }

    /// Those of queues that have to be asked that no half-open breaker covers.
    pub(super) fn untried(&self) -> impl Iterator<Item = &(i32, Limited)> {
        self.limited.iter().filter(|(class, _)| !self.tried.contains_key(class))
    }

    /// All of them, with the queue where that has to be asked.
    pub(super) fn all(&self) -> impl Iterator<Item = (i32, Option<i32>)> {
        let limited = self.limited.iter().map(|(class, queue)| (*class, Some(queue.id)));
        let is_limited = |class: &i32| {
            self.limited
                .binary_search_by_key(class, |(limited, _)| *limited)
                .is_ok()
        };
        let tried = self.tried.keys().copied().filter(move |class| !is_limited(class));
        let unlimited = self.open.iter().copied().chain(tried);
        unlimited.map(|class| (class, None)).chain(limited)
    }

    /// Which rows a claim of the open lanes looks at.
    pub(super) fn kind(&self, alone: bool) -> Kind {
        match self.open.len() {
            _ if alone => Kind::Suspects,
            1 => Kind::OneLane,
            _ => Kind::Lanes,
        }
    }

    /// What the statement of a claim binds. For [`Limits::Obeyed`] some is still to be added: see [`LANES_GIVEN`].
    pub(super) async fn params(
        &self,
        inner: &Arc<Inner>,
        request: &ClaimRequest,
        mode: Mode,
        limits: Limits,
        now: Time,
    ) -> Result<Vec<Value<'static>>, Fault> {
        let slots = if mode.alone { 1 } else { request.slots };
        let executor = inner.catalog.name_id(&inner.pool, &request.executor).await?;
        let lease = LeaseId(u128::from(inner.bits()) << 64 | u128::from(inner.bits()));
        let mut params = vec![
            Value::Int8(Some(now.as_micros())),
            Value::Int4s(self.open.iter().copied().map(Some).collect()),
            Value::Int8(Some(i64::try_from(slots).unwrap_or(i64::MAX >> 2))),
            Value::Uuid(stored_lease(lease, 0)),
            Value::Int8(Some(request.node.0 as i64)),
            Value::Int8(Some(i64::try_from(request.lease.as_micros()).unwrap_or(i64::MAX >> 2))),
            Value::Int8(Some(inner.catalog.classes_known() as i64)),
            Value::Int8(Some(i64::from(executor))),
            Value::Int8(Some(i64::from(mode.kept_up))),
            Value::Int8(Some(self.version)),
        ];
        if limits == Limits::Asked {
            let limited = self.untried().map(|(class, queue)| (Some(*class), Some(queue.id)));
            let tried = self.tried.keys().map(|class| (Some(*class), Some(TRIED)));
            let (classes, queues) = limited.chain(tried).unzip();
            params.push(Value::Int4s(classes));
            params.push(Value::Int4s(queues));
        }
        Ok(params)
    }
}

/// Which rows a claim looks at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    OneLane,
    Lanes,
    Suspects,
}

/// What a claim has to do with the limits of queues.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Limits {
    /// There are none.
    None,
    /// It finds out which of the limited queues have something ready, and takes nothing if there are any.
    Asked,
    /// It takes from each queue as many as are given, and no newer ones than that.
    Obeyed,
}

/// Columns of a claim's answer before those of the task.
pub(super) mod guard {
    /// Rows have come due, or a key's turn has passed.
    pub(in crate::postgres) const UPKEEP: usize = 0;
    /// There are classes that the claimer does not know.
    pub(in crate::postgres) const UNKNOWN: usize = 1;
    /// Queues have changed.
    pub(in crate::postgres) const STALE: usize = 2;
    /// A suspect waits to run alone.
    pub(in crate::postgres) const SUSPECT: usize = 3;
    pub(in crate::postgres) const NEXT_DUE: usize = 4;
    /// There was something to take, which others may have taken first.
    pub(in crate::postgres) const SEEN: usize = 5;
    /// The limited queues of which something is ready; where limits are obeyed, something that may start.
    pub(in crate::postgres) const READY: usize = 6;
    /// Where limits are obeyed: the classes of the next tasks of queues whose buckets hold too little for them.
    pub(in crate::postgres) const SHORT: usize = 7;
    /// How many there are.
    pub(in crate::postgres) const COLUMNS: usize = 8;
}

/// The rows to take from one lane: straight off the index, passing over what others are taking.
const ONE_LANE: &str = "SELECT ctid FROM pensum.live
    WHERE class = ($2::integer[])[1] AND gate = 0 AND (timer_at IS NULL OR timer_at > $1) AND NOT (HINDERED)
    ORDER BY rank, deadline, row LIMIT $3 FOR UPDATE SKIP LOCKED";

/// The best rows of several lanes: the best of each lane first, and of those the best. Some more than are to be taken,
/// for others may be taking the same.
const LANES: &str = "SELECT best.row FROM unnest($2::integer[]) AS lane(class) CROSS JOIN LATERAL (
        SELECT row, rank, deadline FROM pensum.live
        WHERE class = lane.class AND gate = 0 AND (timer_at IS NULL OR timer_at > $1)
        ORDER BY rank, deadline, row LIMIT 2 * $3 + 64) best
    WHERE NOT (HINDERED)
    ORDER BY best.rank, best.deadline, best.row LIMIT 2 * $3 + 64";

/// The lanes of a claim that obeys limits: class, queue (0 for none), how many of the queue may start, the newest row of
/// those, how many units a task has, and how many tokens the queue's bucket holds (negative
/// for a full one).
const LANES_GIVEN: &str = "lanes AS MATERIALIZED (SELECT * FROM unnest($2::integer[], $11::integer[], $12::bigint[],
        $13::bigint[], $14::integer[], $15::bigint[]) AS given(class, queue, starts, newest, units, tokens)),";

/// The best rows of each of several lanes, and no more of any than may start. Of queues with limits, which the claimer has
/// locked, nobody else takes any.
const FOUND: &str = "found AS MATERIALIZED (
        SELECT best.row, best.rank, best.deadline, lane.class, lane.queue, lane.starts, lane.tokens,
            row_number() OVER of_queue AS place, sum(lane.units) OVER of_queue AS units
        FROM lanes lane CROSS JOIN LATERAL (
            SELECT row, rank, deadline FROM pensum.live
            WHERE class = lane.class AND gate = 0 AND (timer_at IS NULL OR timer_at > $1) AND row <= lane.newest
            ORDER BY rank, deadline, row LIMIT least(2 * $3 + 64, lane.starts)) best
        WHERE NOT (HINDERED)
        WINDOW of_queue AS (PARTITION BY lane.queue ORDER BY best.rank, best.deadline, best.row)),";

/// True while those of a queue up to this one have no more units than its bucket holds; the first of a full one may.
const IN_BUCKET: &str = "(units <= abs(tokens) OR (place = 1 AND tokens < 0))";

/// The best of all those, of each queue no more than may start.
const LANES_LIMITED: &str = "SELECT row FROM found WHERE place <= starts AND IN_BUCKET
    ORDER BY rank, deadline, row LIMIT 2 * $3 + 64";

/// The classes of the first tasks of queues whose buckets hold too little for them.
const SHORT: &str = "ARRAY(SELECT class FROM found WHERE place = 1 AND starts > 0 AND NOT IN_BUCKET)";

/// The suspects of the lanes, of which one is to run alone.
const SUSPECTS: &str = "SELECT row FROM (SELECT row, rank, deadline FROM pensum.live
        WHERE class = ANY($2) AND gate = 0 AND (flags & 16384) <> 0 AND (timer_at IS NULL OR timer_at > $1)
          AND NOT (HINDERED)
        ORDER BY (flags & 16384), row LIMIT 1000) suspects
    ORDER BY rank, deadline, row LIMIT 64";

/// The same of those that may start.
const SUSPECTS_LIMITED: &str = "SELECT s.row FROM (SELECT row, class, rank, deadline FROM pensum.live
        WHERE class = ANY($2) AND gate = 0 AND (flags & 16384) <> 0 AND (timer_at IS NULL OR timer_at > $1)
          AND NOT (HINDERED)
        ORDER BY (flags & 16384), row LIMIT 1000) s JOIN lanes lane ON lane.class = s.class AND s.row <= lane.newest
    ORDER BY s.rank, s.deadline, s.row LIMIT 64";

/// The rows to take of those: by their numbers. A plan from when little was ready would walk along the index of what is,
/// were it good for this.
const OF_BEST: &str = "SELECT ctid FROM pensum.live WHERE row = ANY(ARRAY(SELECT row FROM best)) AND gate + 0 = 0
    ORDER BY rank, deadline, row LIMIT $3 FOR UPDATE SKIP LOCKED";

/// True when a suspect waits to run alone.
const SUSPECT: &str =
    "coalesce((SELECT true FROM pensum.live WHERE class = ANY($2) AND gate = 0 AND (flags & 16384) <> 0
    AND (timer_at IS NULL OR timer_at > $1) ORDER BY (flags & 16384), row LIMIT 1), false)";

/// The same of those that may start.
const SUSPECT_LIMITED: &str = "coalesce((SELECT true FROM (SELECT row, class FROM pensum.live
        WHERE class = ANY($2) AND gate = 0 AND (flags & 16384) <> 0 AND (timer_at IS NULL OR timer_at > $1)
        ORDER BY (flags & 16384), row LIMIT 1000) s JOIN lanes lane ON lane.class = s.class AND s.row <= lane.newest
    LIMIT 1), false)";

/// The limited queues of which something is ready: one look at the first row of each lane.
const READY: &str = "ARRAY(SELECT DISTINCT lane.queue FROM unnest($11::integer[], $12::integer[]) AS lane(class, queue)
    CROSS JOIN LATERAL (SELECT row FROM pensum.live
        WHERE class = lane.class AND gate = 0 AND (timer_at IS NULL OR timer_at > $1)
        ORDER BY rank, deadline, row LIMIT 1) first)";

/// [`pensum_core::task::Lifecycle::starts_at`] in SQL, and not before the turn of its key.
const STARTS_AT: &str = "greatest($1, due_at, CASE WHEN (flags & 32768) <> 0 THEN run_at ELSE ready_at END)";

/// When the first gate opens by the clock.
pub(super) fn next_due() -> String {
    format!(
        "least({}, {})",
        row::first_due(row::gate::LATER),
        row::first_due(row::gate::RETRYING)
    )
}

/// True when rows have come due, as `next_due` says, or a key's turn has passed, unless `kept_up` is not 0.
pub(super) fn upkeep(kept_up: &str) -> String {
    format!(
        "coalesce({kept_up} = 0 AND (next_due <= $1 OR (SELECT true FROM pensum.live
                WHERE timer_at <= $1 AND gate = 0 AND scope IS NOT NULL ORDER BY timer_at LIMIT 1)), false)"
    )
}

/// A claim by `apply`'s rules for [`pensum_core::transition::Event::Claim`], set-based: found by their place in the table,
/// which the lock has just looked up (a join on the row numbers takes four times as long). A row that someone has changed
/// since the statement began, and that is locked only now, is not seen there: another claim takes it.
///
/// These are the common tables `taken` and `counted` of a statement with the parameters of [`Lanes::params`]; the leases
/// get these flags.
pub(super) fn taking(picked: &str, flags: u32) -> String {
    format!(
        "taken AS (UPDATE pensum.live SET state = 1, gate = 6, lease = $4, node = $5, executor = $8,
            taken_at = {STARTS_AT}, due_at = {STARTS_AT} + $6, timer_at = NULL,
            attempt = CASE WHEN (flags & 4096) <> 0 THEN greatest(coalesce(attempt, 0), 1)
                           ELSE coalesce(attempt, 0) + 1 END,
            started_at = CASE WHEN (flags & 4096) <> 0 AND started_at IS NOT NULL THEN started_at
                              ELSE {STARTS_AT} END,
            flags = (flags & ~(512 | 4096 | 8192 | 4194304 | 8388608)) | {flags},
            version = coalesce(version, 1) + 1
          WHERE ctid = ANY(ARRAY({picked})) RETURNING *),
        counted AS (INSERT INTO pensum.tally(class, cell, n)
            SELECT class, change.cell, change.by * count(*) FROM taken
            CROSS JOIN (VALUES ({ready}::smallint, -1), ({running}::smallint, 1)) AS change(cell, by)
            GROUP BY class, change.cell, change.by)",
        ready = Cell::Ready as i16,
        running = Cell::Running as i16,
    )
}

fn write(kind: Kind, limits: Limits) -> String {
    let alone = kind == Kind::Suspects;
    let obeyed = limits == Limits::Obeyed;
    let best = match kind {
        Kind::OneLane if !obeyed => None,
        Kind::Suspects if obeyed => Some(SUSPECTS_LIMITED),
        Kind::Suspects => Some(SUSPECTS),
        _ if obeyed => Some(LANES_LIMITED),
        _ => Some(LANES),
    };
    let (best, picked, seen) = match best {
        Some(best) => (
            format!("best AS MATERIALIZED ({best}),"),
            OF_BEST,
            "EXISTS (SELECT 1 FROM best)",
        ),
        None => (String::new(), ONE_LANE, "false"),
    };
    let suspect = match alone {
        true => "false",
        false if obeyed => SUSPECT_LIMITED,
        false => SUSPECT,
    };
    let (asked, ready, busy) = match limits {
        Limits::None => ("", "NULL::integer[]", ""),
        Limits::Asked => (READY, "g.ready", " OR cardinality(ready) > 0"),
        Limits::Obeyed if alone => ("", "NULL::integer[]", ""),
        Limits::Obeyed => ("", "ARRAY(SELECT DISTINCT queue FROM found)", ""),
    };
    let short = if obeyed && !alone { SHORT } else { "NULL::integer[]" };
    let asked = if asked.is_empty() {
        String::new()
    } else {
        format!(", {asked} AS ready")
    };
    let hindered = format!("SELECT upkeep OR unknown OR stale OR suspect{busy} FROM guard");
    let sql = format!(
        "WITH due AS MATERIALIZED (SELECT {next_due} AS next_due),
        {lanes}
        guard AS MATERIALIZED (SELECT
            {upkeep} AS upkeep,
            (SELECT count(*) FROM pensum.class) > $7 AS unknown,
            (SELECT value FROM pensum.queue_version) IS DISTINCT FROM $10 AS stale,
            {suspect} AS suspect, next_due{asked} FROM due),
        {found}
        {best}
        {taking}
        SELECT g.upkeep, g.unknown, g.stale, g.suspect, g.next_due, {seen}, {ready}, {short}, {live}, {task}, c.state
        FROM guard g LEFT JOIN taken l ON true LEFT JOIN pensum.task t ON t.row = l.row
        LEFT JOIN pensum.checkpoint c ON c.row = l.row AND (l.flags & 1) <> 0",
        lanes = if obeyed { LANES_GIVEN } else { "" },
        found = if obeyed && !alone { FOUND } else { "" },
        taking = taking(picked, if alone { flag::ALONE } else { 0 }),
        next_due = next_due(),
        upkeep = upkeep("$9"),
        live = row::list(&LIVE, "l"),
        task = row::list(&TASK, "t"),
    );
    sql.replace("HINDERED", &hindered).replace("IN_BUCKET", IN_BUCKET)
}

/// All statements, by kind and limits.
static STATEMENTS: LazyLock<[[String; 3]; 3]> = LazyLock::new(|| {
    [Kind::OneLane, Kind::Lanes, Kind::Suspects]
        .map(|kind| [Limits::None, Limits::Asked, Limits::Obeyed].map(|limits| write(kind, limits)))
});

pub(super) fn statement(kind: Kind, limits: Limits) -> &'static str {
    &STATEMENTS[kind as usize][limits as usize]
}
