//! Claims of agents that wait for work.
//!
//! There may be a thousand, so they do not all look whenever there may be something. One of them all, the usher, looks at
//! which classes have something ready, and calls those that it suits: a few at a time, whoever waits longest first, and no
//! more than there is work for. One that was called in vain is not called for the same tasks again at once.
//!
//! No call is lost: what comes while a claim is trying is looked at once it has tried, and beneath all of that the usher
//! looks as often as a parked claim of a node does, and each claim tries now and then whatever the usher thinks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pensum_core::agent::AgentSettings;
use pensum_core::store::{AgentClaim, ClaimRequest, Claimed};
use pensum_core::{NodeId, StoreError, Time};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::Inner;
use super::claim::{once, promote};
use super::error::Fault;
use super::lanes::{Claimer, next_due, upkeep};
use super::names::Class;
use super::pool::{Value, as_params};
use super::queue::Stand;
use super::trial::Trial;
use super::wake::agent_number;

/// How many claims that were called try at once.
const TRIES_AT_ONCE: usize = 8;
/// How long a claim that was called in vain is not called for the same tasks again: at least, for each that is parked, and
/// at most.
const REST_MIN: Duration = Duration::from_millis(250);
const REST_EACH: Duration = Duration::from_millis(5);
const REST_MAX: Duration = Duration::from_secs(5);
/// The longest time between two tries of a claim; shorter where its agent would be taken to have fallen silent.
const TRY_MAX: Duration = Duration::from_secs(10);
/// Most tasks of a class that the usher counts.
const COUNTED_MAX: i64 = 100;
/// The shortest time between two looks.
const QUIET: Duration = Duration::from_millis(5);
/// When rows that are due, but that someone else holds, are looked at again.
const HELD_BACK: Duration = Duration::from_millis(20);
/// The shortest time before it is looked whether an open breaker is half-open.
const LATE: Duration = Duration::from_millis(1);

/// What of a class is ready, among its first tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ready {
    count: i64,
    newest: i64,
}

impl Ready {
    /// True when something has come since.
    fn is_more_than(self, then: Ready) -> bool {
        self.count > then.count || self.newest > then.newest
    }
}

/// A claim that is parked, or trying.
struct Entry {
    claim: AgentClaim,
    session: NodeId,
    /// By which changes of its agent are told.
    agent: u64,
    /// How many of those had been heard of when it came.
    heard: u64,
    slots: usize,
    now: Time,
    entered_at: Instant,
    tried_at: Instant,
    call: Arc<Notify>,
    is_trying: bool,
    /// It tries because it was called.
    was_called: bool,
    /// It has to look, whatever is ready.
    must_look: bool,
    settings: Option<Arc<AgentSettings>>,
    is_draining: bool,
    /// The classes that suit it, while so many are known.
    suits: Vec<Arc<Class>>,
    classes_known: usize,
    /// What was ready for it when it was called last.
    seen: HashMap<u32, Ready>,
    /// What it was called for in vain.
    barren: HashMap<u32, Ready>,
}

/// All of them, in the order in which they are called.
#[derive(Default)]
pub(super) struct Parked {
    entries: Mutex<(u64, BTreeMap<u64, Entry>)>,
    /// The version of the queues and breakers that was looked at last.
    version: AtomicI64,
    /// Has the usher look.
    look: Notify,
}

/// A place among the parked claims.
struct Seat<'a> {
    parked: &'a Parked,
    number: u64,
    call: Arc<Notify>,
}

/// Serves a claim of an agent, or keeps it until there is something or its time is up.
pub(super) async fn claim<T>(
    inner: &Arc<Inner>,
    request: ClaimRequest,
    now: Time,
    claimer: &mut oneshot::Sender<T>,
) -> Result<Vec<Claimed>, StoreError> {
    let started = Instant::now();
    let mut seat = match &request.agent {
        Some(agent) if request.slots > 0 && !request.wait.is_zero() => {
            let heard = inner.wake.agents();
            Some(inner.parked.enter(&request, agent, heard, now))
        }
        _ => None,
    };
    let mut at = now;
    loop {
        let claimed = inner.retry(|| once(inner, &request, at)).await??;
        let left = request.wait.saturating_sub(started.elapsed());
        // Who begins to drain is to know it at once.
        let may_wait = |seat: &&mut Seat<'_>| claimed.is_empty() && !left.is_zero() && !seat.is_draining();
        let Some(seat) = seat.as_mut().filter(may_wait) else {
            if !claimed.is_empty() {
                inner.parked.look_again(request.node);
            }
            return Ok(claimed);
        };
        seat.rest();
        // Whoever has gone takes nothing any more.
        tokio::select! {
            biased;
            () = claimer.closed() => return Ok(Vec::new()),
            () = inner.closed.cancelled() => return Err(StoreError::Closed),
            () = seat.call.notified() => {}
            () = tokio::time::sleep(left) => {}
        }
        at = now.plus(started.elapsed());
    }
}

impl Parked {
    fn enter(&self, request: &ClaimRequest, claim: &AgentClaim, heard: u64, now: Time) -> Seat<'_> {
        let call = Arc::new(Notify::new());
        let entry = Entry {
            claim: claim.clone(),
            session: request.node,
            agent: agent_number(&claim.namespace, &claim.name),
            heard,
            slots: request.slots,
            now,
            entered_at: Instant::now(),
            tried_at: Instant::now(),
            call: Arc::clone(&call),
            is_trying: true,
            was_called: false,
            must_look: false,
            settings: None,
            is_draining: false,
            suits: Vec::new(),
            classes_known: 0,
            seen: HashMap::new(),
            barren: HashMap::new(),
        };
        let mut entries = self.entries.lock();
        entries.0 += 1;
        let number = entries.0;
        entries.1.insert(number, entry);
        Seat {
            parked: self,
            number,
            call,
        }
    }

    /// Notes what the agent of a session says of itself, and whether it is to take nothing more.
    pub(super) fn learn(&self, session: NodeId, settings: &AgentSettings, is_draining: bool) {
        let mut entries = self.entries.lock();
        for entry in entries.1.values_mut().filter(|entry| entry.session == session) {
            entry.is_draining = is_draining;
            if entry.settings.as_deref() != Some(settings) {
                entry.settings = Some(Arc::new(settings.clone()));
                entry.classes_known = 0;
            }
        }
    }

    /// What a claim of a session took may be what another one of it is to answer again.
    fn look_again(&self, session: NodeId) {
        let mut entries = self.entries.lock();
        for entry in entries.1.values_mut().filter(|entry| entry.session == session) {
            entry.must_look = true;
        }
        drop(entries);
        self.look.notify_one();
    }
}

impl Seat<'_> {
    fn is_draining(&self) -> bool {
        let entries = self.parked.entries.lock();
        entries.1.get(&self.number).is_some_and(|entry| entry.is_draining)
    }

    /// It has tried in vain, and goes to the end of the row.
    fn rest(&mut self) {
        let mut entries = self.parked.entries.lock();
        entries.0 += 1;
        let number = entries.0;
        if let Some(mut entry) = entries.1.remove(&self.number) {
            entry.is_trying = false;
            entry.was_called = false;
            entry.tried_at = Instant::now();
            entry.barren = std::mem::take(&mut entry.seen);
            entries.1.insert(number, entry);
        }
        self.number = number;
        drop(entries);
        self.parked.look.notify_one();
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.parked.entries.lock().1.remove(&self.number);
        // What it was called for may be for another one.
        self.parked.look.notify_one();
    }
}

/// Calls parked claims until the store is closed.
pub(super) async fn usher(inner: Arc<Inner>) {
    let mut due = None;
    loop {
        let mut heard = inner.wake.listen();
        let nap = match (inner.parked.entries.lock().1.is_empty(), due) {
            (true, _) => None,
            (false, None) => Some(inner.poll()),
            (false, Some(due)) => Some(inner.poll().min(due)),
        };
        if nap.is_some() {
            due = match look(&inner).await {
                Ok(due) => due,
                Err(fault) => {
                    tracing::debug!(?fault, "parked claims of agents are looked after a little later");
                    None
                }
            };
        } else {
            // Nobody wants to know.
            inner.wake.changed_agents();
            inner.holdings.ended_sessions();
        }
        tokio::time::sleep(QUIET).await;
        tokio::select! {
            () = inner.closed.cancelled() => return,
            () = heard.ready(), if nap.is_some() => {}
            () = inner.parked.look.notified() => {}
            () = inner.holdings.session_ended() => {}
            () = tokio::time::sleep(nap.unwrap_or(TRY_MAX)) => {}
        }
    }
}

/// What is ready of each class, behind what has to be done first.
fn statement() -> String {
    format!(
        "WITH due AS MATERIALIZED (SELECT {next_due} AS next_due),
        guard AS MATERIALIZED (SELECT {upkeep} AS upkeep, (SELECT count(*) FROM pensum.class) > $4 AS unknown,
            (SELECT value FROM pensum.queue_version) IS DISTINCT FROM $5 AS stale, next_due FROM due)
        SELECT g.upkeep, g.unknown, g.stale, g.next_due, f.class, f.count, f.newest FROM guard g LEFT JOIN (
            SELECT lane.class, first.count, first.newest FROM unnest($2::integer[]) AS lane(class)
            CROSS JOIN LATERAL (SELECT count(*) AS count, max(row) AS newest FROM (
                SELECT row FROM pensum.live WHERE class = lane.class AND gate = 0
                ORDER BY rank, deadline, row LIMIT {COUNTED_MAX}) ready) first
            WHERE first.count > 0) f ON true",
        next_due = next_due(),
        upkeep = upkeep("$3")
    )
}

static LOOK: std::sync::LazyLock<String> = std::sync::LazyLock::new(statement);

/// Looks what there is, and calls whom it suits. Answers in how long a gate opens by the clock, if one does.
async fn look(inner: &Arc<Inner>) -> Result<Option<Duration>, Fault> {
    let mut kept_up = false;
    loop {
        let Some((now, classes)) = inner.parked.survey(inner) else {
            return Ok(None);
        };
        inner.preferred.look(inner, now).await?;
        let version = inner.queues.view(&inner.wake, now).version();
        let params = [
            Value::Int8(Some(now.as_micros())),
            Value::Int4s(classes.iter().map(|class| Some(*class as i32)).collect()),
            Value::Int8(Some(i64::from(kept_up))),
            Value::Int8(Some(inner.catalog.classes_known() as i64)),
            Value::Int8(Some(version)),
        ];
        let rows = inner.pool.read(&LOOK, &as_params(&params)).await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let (is_due, unknown, stale): (bool, bool, bool) = (first.try_get(0)?, first.try_get(1)?, first.try_get(2)?);
        if unknown {
            inner.catalog.refresh(&inner.pool).await?;
        }
        if stale {
            inner.queues.refresh(&inner.pool).await?;
        }
        if is_due {
            promote(inner, now).await?;
            kept_up = true;
        }
        if unknown || stale || is_due {
            continue;
        }
        let mut ready = BTreeMap::new();
        for row in &rows {
            if let Some(class) = row.try_get::<_, Option<i32>>(4)? {
                let (count, newest) = (row.try_get(5)?, row.try_get(6)?);
                ready.insert(class as u32, Ready { count, newest });
            }
        }
        inner.parked.call(inner, now, &ready);
        let due = first.try_get::<_, Option<i64>>(3)?.map(Time::from_micros);
        let due = due.map(|due| due.since(now).max(HELD_BACK));
        // A moment late rather than early, when it would still be open.
        let tried = inner.queues.breakers().tries_at(now).map(|at| at.since(now).max(LATE));
        return Ok(due.into_iter().chain(tried).min());
    }
}

impl Parked {
    /// The time by which the latest claim goes, and the classes that suit anyone. `None` when nobody is there.
    fn survey(&self, inner: &Inner) -> Option<(Time, BTreeSet<u32>)> {
        let changed = inner.wake.changed_agents();
        let ended = inner.holdings.ended_sessions();
        let known = inner.catalog.classes_known();
        let mut entries = self.entries.lock();
        let mut classes = BTreeSet::new();
        for entry in entries.1.values_mut() {
            entry.must_look |= changed.since(entry.heard, entry.agent) || ended.contains(&entry.session);
            entry.suit(inner, known);
            classes.extend(entry.suits.iter().map(|class| class.id));
        }
        let now = entries
            .1
            .values()
            .map(|entry| entry.now.plus(entry.entered_at.elapsed()));
        now.max().map(|now| (now, classes))
    }

    /// Calls whom this suits.
    fn call(&self, inner: &Inner, now: Time, ready: &BTreeMap<u32, Ready>) {
        let view = inner.queues.view(&inner.wake, now);
        let mut entries = self.entries.lock();
        if self.version.swap(view.version(), Ordering::Relaxed) != view.version() {
            // A queue or a breaker may let start now what it did not; those that try may have seen it as it was.
            for entry in entries.1.values_mut() {
                entry.barren.clear();
                entry.must_look |= entry.is_trying;
            }
        }
        let all = entries.1.len() as u32;
        let rest = (REST_EACH * all).clamp(REST_MIN, REST_MAX);
        let mut left: BTreeMap<u32, i64> = ready.iter().map(|(class, ready)| (*class, ready.count)).collect();
        // Those that were called take some of it.
        let mut called = 0;
        for entry in entries.1.values().filter(|entry| entry.was_called) {
            called += 1;
            spend(&mut left, entry.seen.keys(), entry.slots);
        }
        for entry in entries.1.values_mut().filter(|entry| !entry.is_trying) {
            if called >= TRIES_AT_ONCE {
                return;
            }
            let is_open = |class: &&Arc<Class>| {
                ready.contains_key(&class.id)
                    && !matches!(view.stand(class), Stand::Shut(_))
                    && !matches!(view.trial(class, &entry.claim.name), Trial::Shut(_))
                    && inner.preferred.keeps(class, Some(&entry.claim.name), now).is_none()
            };
            let there = entry.suits.iter().filter(is_open);
            let there: HashMap<u32, Ready> = there.map(|class| (class.id, ready[&class.id])).collect();
            let barren = &mut entry.barren;
            // What has gone may come again.
            barren.retain(|class, _| there.contains_key(class));
            for (class, then) in barren.iter_mut() {
                then.count = then.count.min(there[class].count);
            }
            let is_new = |(class, now): (&u32, &Ready)| barren.get(class).is_none_or(|then| now.is_more_than(*then));
            let tried = entry.tried_at.elapsed();
            let is_worth_it = (there.iter().any(is_new) || !there.is_empty() && tried >= rest)
                && there.keys().any(|class| left.get(class).is_some_and(|left| *left > 0));
            let longest = entry.settings.as_ref().map_or(TRY_MAX, |settings| settings.lease() / 3);
            if is_worth_it || entry.must_look || tried >= longest.min(TRY_MAX) {
                spend(&mut left, there.keys(), entry.slots);
                entry.seen = there;
                entry.must_look = false;
                entry.is_trying = true;
                entry.was_called = true;
                entry.call.notify_one();
                called += 1;
            }
        }
    }
}

/// Counts what one that was called may take of what is left.
fn spend<'a>(left: &mut BTreeMap<u32, i64>, classes: impl Iterator<Item = &'a u32>, slots: usize) {
    let mut slots = i64::try_from(slots).unwrap_or(i64::MAX);
    for class in classes {
        let Some(left) = left.get_mut(class) else { continue };
        let taken = slots.min((*left).max(0));
        *left -= taken;
        slots -= taken;
    }
}

impl Entry {
    /// Finds out which classes suit it, where more are known than then, or it says something else of itself.
    fn suit(&mut self, inner: &Inner, known: usize) {
        let Some(settings) = self.settings.as_deref().filter(|_| self.classes_known != known) else {
            return;
        };
        let claimer = Claimer::Agent(&self.claim, settings);
        let offered = settings.offered();
        let suits = |class: &Arc<Class>| claimer.suits(class) && class.demand.resources.fits(offered);
        self.suits = inner.catalog.classes().into_iter().filter(suits).collect();
        self.classes_known = known;
    }
}
