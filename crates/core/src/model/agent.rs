//! Agents: registrations, sessions, and what they may claim.

use std::sync::Arc;

use super::{Entry, Facts, Model};
use crate::agent::{AGENTS_MAX, AgentCommand, AgentRecord, AgentSettings, Amounts, Demand};
use crate::outcome::ErrorInfo;
use crate::store::{AgentClaim, Applied, Call, ClaimRequest, Claimed, LeaseRef, Rejected};
use crate::transition::{Event, Report};
use crate::{ExecutionId, Name, NodeId, Time};

/// What a claimer has to offer.
pub(super) enum Offer<'a> {
    Node(&'a ClaimRequest),
    Agent { namespace: Name, capabilities: Vec<Name> },
}

impl Offer<'_> {
    /// True when it is of those for whom the task is, keys, lanes and resources aside.
    pub(super) fn suits(&self, entry: &Entry) -> bool {
        let demand = Demand::of(&entry.spec);
        match self {
            Offer::Node(request) => {
                let queues = request.queues.as_ref();
                queues.is_none_or(|queues| queues.contains(&entry.spec.queue))
                    && request
                        .capabilities
                        .as_ref()
                        .is_none_or(|offered| demand.suits_node(&entry.spec.handler, offered))
            }
            Offer::Agent {
                namespace,
                capabilities,
            } => entry.namespace == *namespace && demand.suits_agent(&entry.spec.handler, capabilities),
        }
    }
}

impl Model {
    /// Claims for a session of an agent.
    pub(super) fn claim_for_agent(
        &mut self,
        request: &ClaimRequest,
        agent: &AgentClaim,
        now: Time,
        bits: &dyn Fn() -> u64,
    ) -> Result<Vec<Claimed>, Rejected> {
        let place = (agent.namespace.clone(), agent.name.clone());
        let record = self.agents.get_mut(&place);
        let record = record.ok_or_else(|| Rejected::NoAgent(agent.name.clone()))?;
        record.check(request.node)?;
        record.seen_at = record.seen_at.max(Some(now));
        let (settings, is_draining) = (record.settings.clone(), record.draining_at.is_some());
        let held: Vec<i64> = self.held_by(request.node);
        let unknown = |row: &&i64| !agent.have.contains(&self.execution_of(**row));
        let again: Vec<Claimed> = held.iter().filter(unknown).map(|row| self.claimed(*row)).collect();
        if !again.is_empty() {
            return Ok(again);
        }
        if is_draining {
            return Ok(Vec::new());
        }
        let free = (settings.max_concurrent_tasks as usize).saturating_sub(held.len());
        let request = ClaimRequest {
            slots: request.slots.min(free),
            resources: Some(settings.offered()),
            ..request.clone()
        };
        let offer = Offer::Agent {
            namespace: agent.namespace.clone(),
            capabilities: settings.capabilities,
        };
        Ok(self.claim(&request, &offer, now, bits))
    }

    /// What a claimer's machine has left for more tasks.
    pub(super) fn free(&self, request: &ClaimRequest) -> Option<Amounts> {
        let taken = |row: &i64| Demand::of(&self.tasks[row].spec).resources;
        let held = self.held_by(request.node);
        let held = held.iter().map(taken).fold(Amounts::default(), Amounts::plus);
        request.resources.map(|offered| offered.minus(held))
    }

    /// True when a task is kept for an agent that it prefers, and that is not the one who asks.
    pub(super) fn is_kept(&self, row: i64, request: &ClaimRequest, now: Time) -> bool {
        let entry = &self.tasks[&row];
        let demand = Demand::of(&entry.spec);
        let Some(preferred) = &demand.agent else { return false };
        if let Some(asking) = &request.agent
            && asking.name == *preferred
        {
            return false;
        }
        let record = self.agents.get(&(entry.namespace.clone(), preferred.clone()));
        record.is_some_and(|record| record.is_awaited(&entry.spec.handler, &demand, now))
    }

    fn held_by(&self, node: NodeId) -> Vec<i64> {
        let held = self
            .tasks
            .iter()
            .filter(|(_, e)| e.lifecycle.lease.is_some_and(|l| l.node == node));
        held.map(|(row, _)| *row).collect()
    }

    fn execution_of(&self, row: i64) -> ExecutionId {
        let entry = &self.tasks[&row];
        ExecutionId {
            task: entry.id,
            attempt: entry.lifecycle.attempt,
        }
    }

    fn lease_of(&self, row: i64) -> LeaseRef {
        let entry = &self.tasks[&row];
        LeaseRef {
            task: entry.id,
            lease: entry.lifecycle.lease.map_or(crate::LeaseId(0), |lease| lease.id),
        }
    }

    pub(super) fn claimed(&self, row: i64) -> Claimed {
        let entry = &self.tasks[&row];
        let is_bare = entry.depends_on.is_empty() && entry.progress.is_none() && entry.error.is_none();
        Claimed {
            bare: is_bare.then_some(entry.version),
            lease: self.lease_of(row),
            namespace: entry.namespace.clone(),
            spec: Arc::new(entry.spec.clone()),
            lifecycle: entry.lifecycle.clone(),
            checkpoint: entry.checkpoint.clone(),
            created_at: entry.created_at,
        }
    }

    /// The agent of a session.
    pub(super) fn agent_of(&self, session: NodeId) -> Option<&AgentRecord> {
        self.agents.values().find(|agent| agent.session == Some(session))
    }

    pub(super) fn put_agent(
        &mut self,
        call: &Call,
        agent: Name,
        settings: AgentSettings,
    ) -> Result<AgentRecord, Rejected> {
        let place = (call.namespace.clone(), agent.clone());
        let is_full = self.agents.len() >= AGENTS_MAX;
        match self.agents.get_mut(&place) {
            Some(record) => {
                record.put(settings, &call.actor, call.now);
            }
            None if is_full => return Err(Rejected::TooManyAgents),
            None => {
                let record = AgentRecord::new(agent, settings, call.actor.clone(), call.now);
                self.agents.insert(place.clone(), record);
            }
        }
        Ok(self.shown(&self.agents[&place]))
    }

    pub(super) fn command_agent(
        &mut self,
        call: &Call,
        agent: &Name,
        command: AgentCommand,
    ) -> Result<AgentRecord, Rejected> {
        let record = self.agent(call, agent)?;
        record.command(command, call.now);
        let record = record.clone();
        Ok(self.shown(&record))
    }

    pub(super) fn delete_agent(&mut self, call: &Call, agent: &Name) -> Result<(), Rejected> {
        let place = (call.namespace.clone(), agent.clone());
        let record = self.agents.remove(&place);
        let record = record.ok_or_else(|| Rejected::NoAgent(agent.clone()))?;
        for row in record.session.map(|session| self.held_by(session)).unwrap_or_default() {
            self.end_lease(row, &Event::LeaseExpired, None, call.now);
        }
        Ok(())
    }

    pub(super) fn open_session(&mut self, call: &Call, agent: &Name, session: NodeId) -> Result<AgentRecord, Rejected> {
        let record = self.agent(call, agent)?;
        let died_at = record.seen_at;
        let replaced = record.open(session, call.now)?;
        let record = record.clone();
        for row in replaced.map(|replaced| self.held_by(replaced)).unwrap_or_default() {
            let blame = self.tasks[&row].blame(died_at.unwrap_or(call.now));
            self.end_lease(
                row,
                &Event::NodeDied(blame),
                Some(ErrorInfo::agent_crashed(agent)),
                call.now,
            );
        }
        Ok(self.shown(&record))
    }

    pub(super) fn close_session(&mut self, call: &Call, agent: &Name, session: NodeId) -> Result<(), Rejected> {
        self.agent(call, agent)?.close(session)?;
        for row in self.held_by(session) {
            let event = Event::Holder(self.lease_of(row).lease, Report::Released);
            self.end_lease(row, &event, None, call.now);
        }
        Ok(())
    }

    pub(super) fn beat_agent(
        &mut self,
        call: &Call,
        agent: &Name,
        session: Option<NodeId>,
    ) -> Result<AgentRecord, Rejected> {
        let record = self.agent(call, agent)?;
        if let Some(session) = session {
            record.check(session)?;
        }
        record.seen_at = record.seen_at.max(Some(call.now));
        let record = record.clone();
        Ok(self.shown(&record))
    }

    pub(super) fn list_agents(&self, namespace: &str) -> Vec<AgentRecord> {
        let here = self.agents.iter().filter(|(place, _)| *place.0 == *namespace);
        here.map(|(_, record)| self.shown(record)).collect()
    }

    fn agent(&mut self, call: &Call, agent: &Name) -> Result<&mut AgentRecord, Rejected> {
        let place = (call.namespace.clone(), agent.clone());
        self.agents
            .get_mut(&place)
            .ok_or_else(|| Rejected::NoAgent(agent.clone()))
    }

    fn shown(&self, record: &AgentRecord) -> AgentRecord {
        let running = record.session.map_or(0, |session| self.held_by(session).len());
        AgentRecord {
            running: running as u64,
            ..record.clone()
        }
    }

    fn end_lease(&mut self, row: i64, event: &Event, error: Option<ErrorInfo>, now: Time) {
        let facts = Facts {
            error,
            ..Facts::default()
        };
        // What holds a lease can lose it.
        let _ = self.happen(row, event, facts, now, &mut Applied::default());
    }
}
