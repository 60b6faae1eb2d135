//! Agents: who of them may have what, how much of it, what is kept for them, and that nothing is lost on the way.

use std::collections::BTreeSet;
use std::time::Duration;

use pensum_core::agent::AgentRecord;
use pensum_core::{LeaseId, NodeId, TaskId, Time};

use super::{Books, Hold};
use crate::handlers::COMMON;
use crate::history::{Entry, Executor, Remote, What};
use crate::remote::{agent_id, skill_name};
use crate::scenario::DemandPlan;

/// What an agent was from which time on; nothing while it was not registered.
#[derive(Default)]
pub(super) struct Seat {
    changes: Vec<(Duration, Option<AgentRecord>)>,
    /// When it was noted that it is heard, and by whose clock; nothing once it said that it goes.
    heard: Vec<(Duration, Option<Time>)>,
}

impl Seat {
    /// All that it was at this time: a claim may be written down just after a change that it came before.
    fn at(&self, at: Duration) -> impl Iterator<Item = Option<&AgentRecord>> {
        let before = self.changes.iter().rev().find(|(since, _)| *since < at);
        let just_now = self.changes.iter().filter(move |(since, _)| *since == at);
        before.into_iter().chain(just_now).map(|(_, record)| record.as_ref())
    }

    fn is(&self, at: Duration, test: impl Fn(&AgentRecord) -> bool) -> bool {
        self.at(at).any(|record| record.is_some_and(&test))
    }

    /// The latest time by which the store had surely heard of it.
    fn seen(&self, at: Duration) -> Option<Time> {
        let gone = self.heard.iter().any(|(since, heard)| *since == at && heard.is_none());
        let before = self.heard.iter().rev().filter(|(since, _)| *since < at);
        let seen = before.map_while(|(_, heard)| *heard).max();
        seen.filter(|_| !gone)
    }
}

impl AgentRecordExt for AgentRecord {
    fn can(&self, demand: &DemandPlan) -> bool {
        let has = |name: &str| self.settings.capabilities.iter().any(|known| **known == *name);
        match demand.skills.is_empty() {
            true => has(COMMON),
            false => demand.skills.iter().all(|skill| has(&skill_name(*skill))),
        }
    }

    fn cores(&self) -> u32 {
        let cores = self
            .settings
            .resources
            .as_ref()
            .and_then(|resources| resources.cpu_cores);
        cores.unwrap_or_default() as u32
    }
}

/// What an agent said of itself, read anew.
trait AgentRecordExt {
    fn can(&self, demand: &DemandPlan) -> bool;
    fn cores(&self) -> u32;
}

impl Books<'_> {
    /// Judges a start before its lease is noted.
    pub(super) fn agents(&mut self, at: usize, entry: &Entry) {
        match &entry.what {
            What::Remote(what) => self.remote(at, entry, what),
            What::Granted { task, executor, .. } if !self.outside => {
                self.given(at, entry, *task, *executor);
                self.preferred(at, entry, *task, *executor);
            }
            _ => {}
        }
    }

    fn remote(&mut self, at: usize, entry: &Entry, what: &Remote) {
        match what {
            Remote::Freezes(..) => self.stood_still = true,
            Remote::Changed { agent, verb, record } => self.changed(entry, agent, verb, record.as_deref()),
            Remote::Heard { agent, now } => {
                let seat = self.seats.entry(agent.clone()).or_default();
                seat.heard.push((entry.at, Some(*now)));
            }
            Remote::Asks {
                agent,
                session,
                since,
                have,
                given,
            } => {
                let known = |record: &AgentRecord| record.session == Some(*session);
                let speaks = self.seats.get(agent).is_some_and(|seat| seat.is(entry.at, known));
                if !speaks && !given.is_empty() {
                    self.broken(
                        "a session that has ended gets nothing",
                        Some(at),
                        format!(
                            "{agent} gets {} task(s) in a session that does not speak for it",
                            given.len()
                        ),
                    );
                }
                let have: BTreeSet<(TaskId, u32)> = have.iter().map(|e| (e.task, e.attempt)).collect();
                self.again(at, entry, *session, *since, &have, given);
            }
            Remote::GivenAgain { task, lease, executor } => {
                let holds = self
                    .tasks
                    .get(task)
                    .map(|book| book.holds.as_slice())
                    .unwrap_or_default();
                if !holds
                    .iter()
                    .any(|hold| hold.lease == *lease && hold.executor == *executor)
                {
                    let label = self.label(*task);
                    self.broken(
                        "what is given again was given before",
                        Some(at),
                        format!("{label} is given again to {executor}, who never had it"),
                    );
                }
            }
            Remote::Answered {
                agent,
                task,
                lease,
                status,
                foreign,
            } => {
                let label = self.label(*task);
                let is_kept = self.finished.contains(lease);
                let why = match (*status, *foreign) {
                    ("accepted", true) => "it was given to another agent",
                    ("accepted", false) if !is_kept => "the store has not taken it",
                    ("repeat", _) if !is_kept && !self.may_be_mixed_up(*task, *lease) => "the store has never taken it",
                    ("invalid", false) => "it says what it was told to say",
                    _ => return,
                };
                self.broken(
                    "agents are told what became of their results",
                    Some(at),
                    format!("{agent} is told `{status}` of {label}, and {why}"),
                );
            }
            Remote::Misunderstood(agent, why) => {
                self.broken(
                    "what agents say is understood",
                    Some(at),
                    format!("{agent} is told: {why}"),
                );
            }
            _ => {}
        }
    }

    /// Whether a run can be taken for another one of its attempt that did end: where clocks differ, its claim may seem to
    /// come before that one's end.
    fn may_be_mixed_up(&self, task: TaskId, lease: LeaseId) -> bool {
        if self.scenario.shared_clock || self.scenario.nodes.iter().all(|node| node.behind_ms == 0) {
            return false;
        }
        let Some(book) = self.tasks.get(&task) else {
            return false;
        };
        let attempt = book
            .holds
            .iter()
            .find(|hold| hold.lease == lease)
            .map(|hold| hold.attempt);
        let mut of_attempt = book.holds.iter().filter(|hold| Some(hold.attempt) == attempt);
        of_attempt.any(|hold| hold.lease != lease && self.finished.contains(&hold.lease))
    }

    fn changed(&mut self, entry: &Entry, agent: &str, verb: &str, record: Option<&AgentRecord>) {
        let seat = self.seats.entry(agent.to_owned()).or_default();
        let before = seat.changes.last().and_then(|(_, record)| record.clone());
        let heard = record.and_then(|record| record.seen_at);
        seat.heard.push((entry.at, heard));
        seat.changes.push((entry.at, record.cloned()));
        let session = before.and_then(|record| record.session);
        let Some(session) = session.filter(|_| record.is_none_or(|record| record.session != session)) else {
            return;
        };
        // Leases that were over before stay what they were.
        let holds = self.tasks.values_mut().filter_map(|book| book.holds.last_mut());
        for hold in holds.filter(|hold| hold.session() == Some(session) && !hold.is_over()) {
            // What is given back is no crash.
            match verb {
                "close" => hold.closed = true,
                _ => hold.over = true,
            }
        }
    }

    /// What a session holds and does not name is given again, before anything new.
    fn again(
        &mut self,
        at: usize,
        entry: &Entry,
        session: NodeId,
        since: Duration,
        have: &BTreeSet<(TaskId, u32)>,
        given: &[LeaseId],
    ) {
        let now = self.dawn.plus(entry.at);
        let is_unknown = |task: TaskId, hold: &&Hold| {
            let is_held = hold.session() == Some(session) && !hold.is_over() && now < hold.until;
            is_held && hold.granted_at < since && !have.contains(&(task, hold.attempt))
        };
        let mut held = self.tasks.iter().filter_map(|(task, book)| {
            let hold = book.holds.last().filter(|hold| is_unknown(*task, hold))?;
            (!given.contains(&hold.lease)).then_some(*task)
        });
        if let Some(task) = held.next() {
            let label = self.label(task);
            self.broken(
                "what an agent does not know that it has is given again",
                Some(at),
                format!(
                    "an agent has {label} without knowing it, and gets {} other task(s)",
                    given.len()
                ),
            );
        }
    }

    /// That a claimer may have a task, and has room for it.
    fn given(&mut self, at: usize, entry: &Entry, task: TaskId, executor: Executor) {
        let label = self.label_or(task, entry);
        let demand = self.plans.get(&label).and_then(|plan| plan.demand.clone());
        let mine = self
            .tasks
            .iter()
            .flat_map(|(task, book)| book.holds.iter().map(|hold| (*task, hold)));
        let mine: Vec<TaskId> = mine
            .filter(|(_, hold)| hold.executor == executor && self.is_live(hold))
            .map(|(task, _)| task)
            .collect();
        let asked = demand.as_ref().map_or(0, |demand| demand.cores);
        let taken = asked + mine.iter().map(|task| self.cores_of(*task)).sum::<u32>();
        let mut wrong = |promise, what: String| {
            self.violations.push(super::Violation {
                promise,
                what,
                entry: Some(at),
            })
        };
        let Executor::Agent { agent, .. } = executor else {
            if demand.as_ref().is_some_and(|demand| !demand.skills.is_empty()) {
                wrong(
                    "whoever runs it is able to",
                    format!("{label} is given to {executor}, a node"),
                );
            }
            let offered = match executor {
                Executor::Node(name) => self.scenario.nodes.get(name.node).and_then(|node| node.cores),
                Executor::Agent { .. } => None,
            };
            if let Some(offered) = offered.filter(|offered| asked > 0 && taken > *offered) {
                wrong(
                    "nobody gives more than there is",
                    format!("{label} is given to {executor}: {taken} cores of {offered}"),
                );
            }
            return;
        };
        let Some(seat) = self.seats.get(&agent_id(agent)) else {
            return wrong(
                "whoever runs it is able to",
                format!("{label} is given to {executor}, unregistered"),
            );
        };
        let is_able = |record: &AgentRecord| demand.as_ref().is_some_and(|demand| record.can(demand));
        if !seat.is(entry.at, is_able) {
            wrong(
                "whoever runs it is able to",
                format!("{label} is given to {executor}, who is not"),
            );
        }
        if !seat.is(entry.at, |record| record.draining_at.is_none()) {
            wrong(
                "who is draining gets nothing new",
                format!("{label} is given to {executor}"),
            );
        }
        let held = mine.len();
        if !seat.is(entry.at, |record| held < record.settings.max_concurrent_tasks as usize) {
            wrong(
                "an agent runs no more than it said",
                format!("{label} is given to {executor}, who has {held} already"),
            );
        }
        if asked > 0 && !seat.is(entry.at, |record| taken <= record.cores()) {
            wrong(
                "nobody gives more than there is",
                format!("{label} is given to {executor}: {taken} cores"),
            );
        }
    }

    /// That a task is not kept for another agent.
    fn preferred(&mut self, at: usize, entry: &Entry, task: TaskId, executor: Executor) {
        let label = self.label_or(task, entry);
        let Some(demand) = self.plans.get(&label).and_then(|plan| plan.demand.clone()) else {
            return;
        };
        let Some(preferred) = demand.prefers else { return };
        if matches!(executor, Executor::Agent { agent, .. } if agent == preferred) {
            return;
        }
        let Some(seat) = self.seats.get(&agent_id(preferred)) else {
            return;
        };
        let Some(seen) = seat.seen(entry.at) else { return };
        // By the clock that is furthest on.
        let now = self.dawn.plus(entry.at);
        let waits = |record: Option<&AgentRecord>| {
            record.is_some_and(|record| {
                let lease = record.settings.lease.map_or(Duration::from_secs(30), |span| span.0);
                record.draining_at.is_none()
                    && now < seen.plus(lease)
                    && record.can(&demand)
                    && demand.cores <= record.cores()
            })
        };
        if seat.at(entry.at).all(waits) {
            self.broken(
                "what prefers an agent waits for it",
                Some(at),
                format!("{label} is given to {executor}, and a{} could have it", preferred + 1),
            );
        }
    }

    fn cores_of(&self, task: TaskId) -> u32 {
        let demand = self.plan(task).and_then(|plan| plan.demand.as_ref());
        demand.map_or(0, |demand| demand.cores)
    }

    /// The label of a task that may never have been told of before.
    pub(super) fn label_or(&self, task: TaskId, entry: &Entry) -> String {
        match &entry.what {
            What::Granted { label, .. } => label.clone(),
            _ => self.label(task),
        }
    }
}

impl Hold {
    fn session(&self) -> Option<NodeId> {
        match self.executor {
            Executor::Agent { session, .. } => Some(session),
            Executor::Node(_) => None,
        }
    }
}
