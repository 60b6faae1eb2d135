//! Agents: kept in memory beside the ready order, for every claim asks who is awaited where. Their leases have rows of their
//! own, because they outlive this process.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::{FixedState, RandomState};
use pensum_core::agent::{AGENTS_MAX, AgentCommand, AgentRecord, AgentSettings, Amounts};
use pensum_core::store::{AgentClaim, Applied, Call, ClaimRequest, Rejected};
use pensum_core::task::Lease;
use pensum_core::transition::{Event, Report};
use pensum_core::{ErrorInfo, ExecutionId, LeaseId, Lifecycle, Name, NodeId, State, Time};
use rusqlite::{Connection, Row, params};

use super::error::Fault;
use super::names::Catalog;
use super::reap::Stake;
use super::row::{LiveRow, mark};
use super::step::Facts;
use super::verb::Grant;
use super::view::{Leased, View};
use super::writer::Writer;

/// The columns of an agent, in the order of [`read`].
const COLUMNS: &str =
    "namespace, name, settings, session, fenced, draining_at, seen_at, put_by, created_at, changed_at, version";

/// When an agent was heard is written down this often, to tell after a restart who may still be there.
const SEEN_EVERY: Duration = Duration::from_secs(60);

/// What is asked of an agent.
pub(super) enum Ask {
    Put(Box<AgentSettings>),
    Command(AgentCommand),
    Delete,
    Open(NodeId),
    Close(NodeId),
}

/// A namespace and a name in it.
type Place = (Name, Name);

/// An agent, and what its row says of when it was heard.
struct Seat {
    record: AgentRecord,
    written_seen_at: Option<Time>,
    /// Which classes it is capable of; empty until somebody asks, and short of classes that came since.
    fits: Vec<bool>,
}

/// What the tasks of a class ask beside capabilities.
#[derive(Clone)]
struct Wants {
    takes: Amounts,
    prefers: Option<Place>,
}

/// All agents.
#[derive(Default)]
pub(super) struct Agents {
    seats: HashMap<Place, Seat, RandomState>,
    sessions: HashMap<NodeId, Place, RandomState>,
    /// By class; short of classes that came since.
    wants: Arc<Vec<Wants>>,
    /// There was an agent, or a lease of one, since the file was opened.
    any: bool,
    /// Some class asks for resources.
    any_taker: bool,
    /// Some class prefers an agent.
    any_preference: bool,
    /// Agents that were heard for the first time in a while.
    unwritten: HashSet<Place, RandomState>,
    /// Leases that have no row yet, or one that is out of date.
    unwritten_leases: HashSet<i64, FixedState>,
    /// Somebody's session ended: who waits with it is to hear of it.
    pub(super) fenced: bool,
    /// A lease was restored, or an agent may still be there, and the time is not known yet.
    unsettled: bool,
}

fn read(row: &Row<'_>) -> Result<(Name, AgentRecord), Fault> {
    let name: Name = row.get(1)?;
    let damaged = |error: serde_json::Error| Fault::Damaged(format!("agent {name} cannot be read ({error})"));
    let settings = serde_json::from_str(row.get_ref(2)?.as_str().unwrap_or_default()).map_err(damaged)?;
    let fenced: Vec<u64> = serde_json::from_str(row.get_ref(4)?.as_str().unwrap_or("[]")).map_err(damaged)?;
    let time = |column: usize| row.get::<_, Option<i64>>(column).map(|at| at.map(Time::from_micros));
    let record = AgentRecord {
        settings,
        session: row.get::<_, Option<i64>>(3)?.map(|session| NodeId(session as u64)),
        fenced: fenced.into_iter().map(NodeId).collect(),
        draining_at: time(5)?,
        seen_at: time(6)?,
        running: 0,
        put_by: row.get(7)?,
        created_at: Time::from_micros(row.get(8)?),
        changed_at: Time::from_micros(row.get(9)?),
        version: row.get::<_, i64>(10)? as u64,
        name,
    };
    Ok((row.get(0)?, record))
}

/// All agents of a file, by namespace and name.
pub(super) fn stored(db: &Connection) -> Result<Vec<(Name, AgentRecord)>, Fault> {
    let mut statement = db.prepare_cached(&format!("SELECT {COLUMNS} FROM agent ORDER BY namespace, name"))?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}

/// Writes an agent's row.
pub(super) fn write(db: &Connection, namespace: &str, agent: &AgentRecord) -> Result<(), Fault> {
    let settings = serde_json::to_string(&agent.settings)
        .map_err(|error| Fault::Damaged(format!("the settings of agent {} are no JSON ({error})", agent.name)))?;
    let fenced: Vec<u64> = agent.fenced.iter().map(|session| session.0).collect();
    db.prepare_cached(&format!(
        "REPLACE INTO agent({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    ))?
    .execute(params![
        namespace,
        agent.name,
        settings,
        agent.session.map(|session| session.0 as i64),
        serde_json::to_string(&fenced).unwrap_or_else(|_| "[]".to_owned()),
        agent.draining_at.map(Time::as_micros),
        agent.seen_at.map(Time::as_micros),
        agent.put_by,
        agent.created_at.as_micros(),
        agent.changed_at.as_micros(),
        agent.version as i64,
    ])?;
    Ok(())
}

impl Agents {
    /// Follows the disk. When an agent was heard is known better here.
    pub(super) fn load(&mut self, db: &Connection) -> Result<(), Fault> {
        let mut seats = HashMap::default();
        let mut sessions = HashMap::default();
        for (namespace, mut record) in stored(db)? {
            let place = (namespace, record.name.clone());
            let written_seen_at = record.seen_at;
            match self.seats.get(&place) {
                Some(known) if known.record.session == record.session => {
                    record.seen_at = record.seen_at.max(known.record.seen_at);
                }
                Some(_) => {}
                None => self.unsettled |= record.session.is_some(),
            }
            if let Some(session) = record.session {
                sessions.insert(session, place.clone());
            }
            let seat = Seat {
                record,
                written_seen_at,
                fits: Vec::new(),
            };
            seats.insert(place, seat);
        }
        (self.seats, self.sessions) = (seats, sessions);
        self.any |= !self.seats.is_empty();
        self.wants = Arc::default();
        self.any_preference = false;
        self.any_taker = false;
        Ok(())
    }

    /// The time is known for the first time since the file was opened: who was heard not long before it was closed may
    /// still be there, and gets the time to be heard again.
    fn settle(&mut self, now: Time) {
        for seat in self.seats.values_mut() {
            let lease = seat.record.settings.lease();
            if seat.record.session.is_some() && seat.record.seen_at.is_some_and(|at| at.plus(SEEN_EVERY + lease) > now)
            {
                seat.record.seen_at = seat.record.seen_at.max(Some(now));
            }
        }
    }

    /// Reads what the tasks of classes ask that came since.
    fn follow(&mut self, catalog: &Catalog) {
        while let Some(class) = catalog.class(self.wants.len() as u32) {
            let prefers = class.demand.agent.clone().map(|agent| (class.namespace.clone(), agent));
            self.any_preference |= prefers.is_some();
            self.any_taker |= !class.demand.resources.is_zero();
            Arc::make_mut(&mut self.wants).push(Wants {
                takes: class.demand.resources,
                prefers,
            });
        }
    }

    /// Finds out of which classes an agent is capable.
    fn cover(&mut self, place: &Place, catalog: &Catalog) {
        let Some(seat) = self.seats.get_mut(place) else { return };
        while let Some(class) = catalog.class(seat.fits.len() as u32) {
            let suits = class.namespace == place.0
                && class
                    .demand
                    .suits_agent(&class.handler, &seat.record.settings.capabilities);
            seat.fits.push(suits);
        }
    }

    /// Notes that an agent was heard.
    fn hear(&mut self, place: &Place, now: Time) {
        let Some(seat) = self.seats.get_mut(place) else { return };
        let seen_at = seat.record.seen_at.max(Some(now));
        seat.record.seen_at = seen_at;
        if seat
            .written_seen_at
            .is_none_or(|written| now > written.plus(SEEN_EVERY))
        {
            self.unwritten.insert(place.clone());
        }
    }

    fn record(&self, place: &Place) -> Result<&AgentRecord, Rejected> {
        let seat = self.seats.get(place);
        seat.map(|seat| &seat.record)
            .ok_or_else(|| Rejected::NoAgent(place.1.clone()))
    }

    /// The agent of a session.
    pub(super) fn of_session(&self, session: NodeId) -> Option<&AgentRecord> {
        let place = self.sessions.get(&session)?;
        self.seats.get(place).map(|seat| &seat.record)
    }

    /// That a claim of an agent may be served or wait.
    pub(super) fn check(&self, session: NodeId, claim: &AgentClaim) -> Result<(), Rejected> {
        self.record(&(claim.namespace.clone(), claim.name.clone()))?
            .check(session)
    }

    /// A lease is to be written.
    pub(super) fn write_lease(&mut self, row: i64) {
        self.unwritten_leases.insert(row);
    }

    /// Writes what has changed within the open transaction: leases that came, and `closed` ones that go.
    pub(super) fn flush(&self, db: &Connection, view: &View, closed: &[i64]) -> Result<(), Fault> {
        if !self.any {
            return Ok(());
        }
        for place in &self.unwritten {
            if let Some(seat) = self.seats.get(place) {
                db.prepare_cached("UPDATE agent SET seen_at = ? WHERE namespace = ? AND name = ?")?
                    .execute((seat.record.seen_at.map(Time::as_micros), &place.0, &place.1))?;
            }
        }
        for row in &self.unwritten_leases {
            if let Some(leased) = view.leases.get(row).filter(|leased| leased.outlives && !leased.closing) {
                write_lease(db, *row, leased)?;
            }
        }
        for row in closed {
            if view.leases.get(row).is_some_and(|leased| leased.outlives) {
                db.prepare_cached("DELETE FROM agent_lease WHERE row = ?")?
                    .execute([row])?;
            }
        }
        Ok(())
    }

    /// Rows that agents hold by the memory and not by the disk, or the reverse.
    pub(super) fn leases_without_a_row(&self, db: &Connection, view: &View) -> Result<Vec<i64>, Fault> {
        let mut statement = db.prepare("SELECT row FROM agent_lease")?;
        let written: HashSet<i64> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let held: HashSet<i64> = view
            .leases
            .iter()
            .filter(|(row, leased)| leased.outlives && !self.unwritten_leases.contains(row))
            .map(|(row, _)| *row)
            .collect();
        Ok(written.symmetric_difference(&held).copied().collect())
    }

    /// The transaction is on disk.
    pub(super) fn committed(&mut self) {
        for place in self.unwritten.drain() {
            if let Some(seat) = self.seats.get_mut(&place) {
                seat.written_seen_at = seat.record.seen_at;
            }
        }
        self.unwritten_leases.clear();
    }
}

fn write_lease(db: &Connection, row: i64, leased: &Leased) -> Result<(), Fault> {
    let life = &leased.live.life;
    let Some(lease) = life.lease else { return Ok(()) };
    db.prepare_cached(
        "REPLACE INTO agent_lease(row, lease, session, attempt, started_at, taken_at, alone, checkpointed, executor)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        row,
        lease.id.0.to_be_bytes(),
        lease.node.0 as i64,
        life.attempt,
        life.started_at.unwrap_or(leased.taken_at).as_micros(),
        leased.taken_at.as_micros(),
        leased.alone,
        leased.checkpointed,
        leased.executor,
    ])?;
    Ok(())
}

/// How much of what is ready a claimer may take, beside what it is capable of.
pub(super) struct Bounds {
    wants: Arc<Vec<Wants>>,
    /// By class: kept for another agent. Empty when no class is.
    kept: Vec<bool>,
    free: Option<Amounts>,
}

impl Bounds {
    /// True when a task of the class may start with this claimer.
    pub(super) fn allow(&self, class: u32) -> bool {
        let class = class as usize;
        let fits = |free: Amounts| self.wants.get(class).is_none_or(|wants| wants.takes.fits(free));
        !self.kept.get(class).copied().unwrap_or(false) && self.free.is_none_or(fits)
    }

    /// A task of the class starts.
    pub(super) fn take(&mut self, class: u32) {
        if let (Some(free), Some(wants)) = (&mut self.free, self.wants.get(class as usize)) {
            *free = free.minus(wants.takes);
        }
    }
}

impl Writer {
    /// What a claimer may take, beside what it is capable of.
    pub(super) fn bounds(&mut self, request: &ClaimRequest, resources: Option<Amounts>, now: Time) -> Bounds {
        self.agents.follow(&self.shared.catalog);
        let agents = &self.agents;
        let asking = request.agent.as_ref().map(|agent| (&agent.namespace, &agent.name));
        let is_kept = |(class, wants): (usize, &Wants)| {
            let Some(place) = &wants.prefers else { return false };
            if asking == Some((&place.0, &place.1)) {
                return false;
            }
            let (Some(seat), Some(class)) = (agents.seats.get(place), self.shared.catalog.class(class as u32)) else {
                return false;
            };
            seat.record.is_awaited(&class.handler, &class.demand, now)
        };
        let kept = match agents.any_preference {
            true => agents.wants.iter().enumerate().map(is_kept).collect(),
            false => Vec::new(),
        };
        let free = resources.filter(|_| agents.any_taker).map(|offered| {
            let view = self.shared.view.lock();
            let leases = view.leases_of(request.node).filter(|leased| !leased.closing);
            let taken =
                leases.filter_map(|leased| agents.wants.get(leased.live.class as usize).map(|wants| wants.takes));
            offered.minus(taken.fold(Amounts::default(), Amounts::plus))
        });
        Bounds {
            wants: Arc::clone(&agents.wants),
            kept,
            free,
        }
    }

    /// Serves the claim of an agent: what it does not know that it has, else something new.
    pub(super) fn claim_for_agent(
        &mut self,
        request: &ClaimRequest,
        claim: &AgentClaim,
        now: Time,
    ) -> Result<Vec<Grant>, Fault> {
        let place = (claim.namespace.clone(), claim.name.clone());
        let Ok(record) = self.agents.record(&place) else {
            return Ok(Vec::new());
        };
        let (most, offered) = (record.settings.max_concurrent_tasks as usize, record.settings.offered());
        let is_draining = record.draining_at.is_some();
        let again = self.unknown_to(request.node, &claim.have)?;
        if !again.is_empty() {
            return Ok(again);
        }
        let held = self
            .shared
            .view
            .lock()
            .nodes
            .get(&request.node)
            .map_or(0, |held| held.leases);
        let slots = request.slots.min(most.saturating_sub(held));
        if is_draining || slots == 0 || !self.memory.order.has_work() {
            return Ok(Vec::new());
        }
        let request = ClaimRequest {
            slots,
            ..request.clone()
        };
        self.agents.cover(&place, &self.shared.catalog);
        let fits = match self.agents.seats.get_mut(&place) {
            Some(seat) => std::mem::take(&mut seat.fits),
            None => Vec::new(),
        };
        let granted = self.claim_covered(&request, now, &fits, Some(offered));
        if let Some(seat) = self.agents.seats.get_mut(&place) {
            seat.fits = fits;
        }
        granted
    }

    /// The leases of a session that it does not say it has.
    fn unknown_to(&self, session: NodeId, have: &[ExecutionId]) -> Result<Vec<Grant>, Fault> {
        let view = self.shared.view.lock();
        let held = view.nodes.get(&session).map_or(0, |held| held.leases);
        let is = |leased: &Leased, execution: &ExecutionId| {
            let life = &leased.live.life;
            !leased.closing
                && life.attempt == execution.attempt
                && life.lease.is_some_and(|lease| lease.node == session)
        };
        let mut named: Vec<i64> = have
            .iter()
            .filter(|execution| {
                view.leases
                    .get(&execution.task.row())
                    .is_some_and(|leased| is(leased, execution))
            })
            .map(|execution| execution.task.row())
            .collect();
        named.sort_unstable();
        named.dedup();
        if named.len() == held {
            return Ok(Vec::new());
        }
        let unknown = view
            .leases_of(session)
            .filter(|leased| !leased.closing && named.binary_search(&leased.live.row).is_err());
        let mut grants: Vec<Grant> = unknown.filter_map(grant_of).collect();
        grants.sort_unstable_by_key(|grant| grant.row);
        Ok(grants)
    }

    /// Notes that the agent of a claim is heard.
    pub(super) fn hear_claim(&mut self, claim: &AgentClaim, now: Time) {
        self.agents.hear(&(claim.namespace.clone(), claim.name.clone()), now);
    }

    /// Notes that an agent is heard; what it is then.
    pub(super) fn beat_agent(
        &mut self,
        call: &Call,
        agent: &Name,
        session: Option<NodeId>,
    ) -> Result<AgentRecord, Rejected> {
        let place = (call.namespace.clone(), agent.clone());
        let record = self.agents.record(&place)?;
        if let Some(session) = session {
            record.check(session)?;
        }
        self.agents.hear(&place, call.now);
        Ok(self.shown(self.agents.record(&place)?))
    }

    fn shown(&self, record: &AgentRecord) -> AgentRecord {
        let view = self.shared.view.lock();
        let held = record.session.and_then(|session| view.nodes.get(&session));
        AgentRecord {
            running: held.map_or(0, |held| held.leases as u64),
            ..record.clone()
        }
    }

    /// The agents of a namespace, by name.
    pub(super) fn list_agents(&self, namespace: &str) -> Vec<AgentRecord> {
        let here = self.agents.seats.iter().filter(|((place, _), _)| **place == *namespace);
        let mut records: Vec<AgentRecord> = here.map(|(_, seat)| self.shown(&seat.record)).collect();
        records.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        records
    }

    /// Carries out what was asked of an agent; answers what it is then.
    pub(super) fn ask_agent(
        &mut self,
        call: &Call,
        agent: Name,
        ask: Ask,
    ) -> Result<Result<Option<AgentRecord>, Rejected>, Fault> {
        let place = (call.namespace.clone(), agent);
        let known = self.agents.seats.get(&place).map(|seat| seat.record.clone());
        let mut record = match (known, &ask) {
            (Some(record), _) => record,
            (None, Ask::Put(_)) if self.agents.seats.len() >= AGENTS_MAX => return Ok(Err(Rejected::TooManyAgents)),
            (None, Ask::Put(settings)) => {
                let settings = (**settings).clone();
                AgentRecord::new(place.1.clone(), settings, call.actor.clone(), call.now)
            }
            (None, _) => return Ok(Err(Rejected::NoAgent(place.1))),
        };
        let (died_at, mut ended) = (record.seen_at, None);
        match ask {
            Ask::Put(settings) => {
                record.put(*settings, &call.actor, call.now);
            }
            Ask::Command(command) => {
                record.command(command, call.now);
            }
            Ask::Delete => {
                self.end_session(record.session, &End::Expired, call.now)?;
                self.db
                    .prepare_cached("DELETE FROM agent WHERE namespace = ? AND name = ?")?
                    .execute((&place.0, &place.1))?;
                self.agents.load(&self.db)?;
                self.agents.fenced = true;
                return Ok(Ok(None));
            }
            Ask::Open(session) => match record.open(session, call.now) {
                Ok(None) => {}
                Ok(replaced) => ended = replaced.map(|replaced| (replaced, End::Died(died_at.unwrap_or(call.now)))),
                Err(rejected) => return Ok(Err(rejected)),
            },
            Ask::Close(session) => match record.close(session) {
                Ok(()) => ended = Some((session, End::Released)),
                Err(rejected) => return Ok(Err(rejected)),
            },
        }
        if let Some((session, end)) = ended {
            self.end_session(Some(session), &end, call.now)?;
            self.agents.fenced = true;
        }
        write(&self.db, &place.0, &record)?;
        let shown = self.shown(&record);
        self.put_seat(&place, record);
        Ok(Ok(Some(shown)))
    }

    /// Takes a record that was just written into the memory. When its transaction fails, the memory follows the disk again.
    fn put_seat(&mut self, place: &Place, record: AgentRecord) {
        let agents = &mut self.agents;
        agents
            .sessions
            .retain(|session, of| of != place || record.session == Some(*session));
        if let Some(session) = record.session {
            agents.sessions.insert(session, place.clone());
        }
        let seat = Seat {
            written_seen_at: record.seen_at,
            record,
            fits: Vec::new(),
        };
        agents.seats.insert(place.clone(), seat);
        agents.any = true;
    }

    /// Ends what a session holds.
    fn end_session(&mut self, session: Option<NodeId>, end: &End, now: Time) -> Result<(), Fault> {
        let Some(session) = session else { return Ok(()) };
        let name = self.agents.of_session(session).map(|agent| agent.name.clone());
        let mut held: Vec<(i64, Event)> = {
            let view = self.shared.view.lock();
            let held = view.leases_of(session).filter(|leased| !leased.closing);
            held.map(|leased| (leased.live.row, end.event(leased))).collect()
        };
        held.sort_unstable_by_key(|(row, _)| *row);
        for (row, event) in held {
            let Some(subject) = self.subject(row, None)? else {
                continue;
            };
            let error = match (&event, &name) {
                (Event::NodeDied(_), Some(name)) => Some(ErrorInfo::agent_crashed(name)),
                _ => None,
            };
            let facts = Facts {
                error,
                ..Facts::default()
            };
            // What holds a lease can lose it.
            let _ = self.happen(subject, &event, facts, now, &mut Applied::default())?;
        }
        Ok(())
    }

    /// Puts the leases back that agents held when the file was last let go.
    pub(super) fn restore_leases(&mut self) -> Result<(), Fault> {
        let mut found = Vec::new();
        {
            let mut statement = self.db.prepare(
                "SELECT row, lease, session, attempt, started_at, taken_at, alone, checkpointed, executor
                 FROM agent_lease ORDER BY row",
            )?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let lease = Lease {
                    id: LeaseId(u128::from_be_bytes(row.get(1)?)),
                    node: NodeId(row.get::<_, i64>(2)? as u64),
                    // Until the time is known.
                    expires_at: Time::MAX,
                };
                let Some(mut live) = LiveRow::load(&self.db, row.get(0)?)? else {
                    continue;
                };
                if live.life.state != State::Running {
                    // The claim did not write this row, so its version was never seen on disk.
                    live.version += 1;
                    live.marks &= !mark::START;
                }
                live.life = Lifecycle {
                    state: State::Running,
                    waiting_for: None,
                    attempt: row.get(3)?,
                    started_at: Some(Time::from_micros(row.get(4)?)),
                    same_attempt: false,
                    backing_off: false,
                    lease: Some(lease),
                    ..live.life
                };
                found.push(Leased {
                    live,
                    id: None,
                    executor: row.get(8)?,
                    taken_at: Time::from_micros(row.get(5)?),
                    alone: row.get(6)?,
                    checkpointed: row.get(7)?,
                    log_lines: None,
                    closing: false,
                    outlives: true,
                });
            }
        }
        self.agents.unsettled |= !found.is_empty();
        self.agents.any |= !found.is_empty();
        let mut view = self.shared.view.lock();
        for leased in found {
            view.lease(leased.live.row, Box::new(leased));
        }
        Ok(())
    }

    /// Gives restored leases their time, now that it is known.
    pub(super) fn settle_agents(&mut self, now: Time) {
        if !std::mem::take(&mut self.agents.unsettled) {
            return;
        }
        self.agents.settle(now);
        let mut view = self.shared.view.lock();
        for leased in view.leases.values_mut().filter(|leased| leased.outlives) {
            if let Some(lease) = &mut leased.live.life.lease
                && lease.expires_at == Time::MAX
            {
                // Without its agent it ends at once.
                let agent = self.agents.of_session(lease.node);
                lease.expires_at = agent.map_or(now, |agent| now.plus(agent.settings.lease()));
            }
        }
    }

    /// When the first of the agents falls silent for whom ready tasks are kept.
    pub(super) fn falls_silent_at(&mut self) -> Option<Time> {
        if self.agents.seats.is_empty() {
            return None;
        }
        self.agents.follow(&self.shared.catalog);
        if !self.agents.any_preference {
            return None;
        }
        let now = self.memory.clock;
        let agents = &self.agents;
        let preferred = |class: u32| agents.wants.get(class as usize)?.prefers.as_ref();
        let busy = self.memory.order.busy().filter_map(preferred);
        let silent = busy.filter_map(|place| {
            let record = &agents.seats.get(place)?.record;
            let at = record.seen_at?.plus(record.settings.lease());
            (at > now).then_some(at)
        });
        silent.min()
    }
}

fn grant_of(leased: &Leased) -> Option<Grant> {
    Some(Grant {
        row: leased.live.row,
        class: leased.live.class,
        lease: leased.lease_id()?,
        lifecycle: leased.live.life.clone(),
        has_checkpoint: leased.live.marks & mark::CHECKPOINT != 0,
        bare: None,
        fresh: None,
    })
}

/// How what a session holds comes to its end.
enum End {
    /// Its process is taken to have died, last heard then.
    Died(Time),
    /// It gave up what it held.
    Released,
    /// Its agent was removed.
    Expired,
}

impl End {
    fn event(&self, leased: &Leased) -> Event {
        match self {
            End::Died(at) => Event::NodeDied(Stake::of(leased).blame(*at)),
            End::Released => Event::Holder(leased.lease_id().unwrap_or(LeaseId(0)), Report::Released),
            End::Expired => Event::LeaseExpired,
        }
    }
}
