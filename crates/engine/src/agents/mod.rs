//! Agents: programs outside the nodes that ask for tasks over the wire. The verbs, and what this process remembers of them.

mod finish;
mod gates;
mod health;
mod heartbeat;
mod outcome;
mod parked;
mod poll;
mod results;
mod runs;
mod token;
mod view;
mod wire;

use pensum_core::Name;
use pensum_core::agent::{AgentCommand, AgentStatus};
use pensum_core::input::{AgentInput, Invalid};
use pensum_core::store::Call;
use tokio::sync::Notify;

pub(crate) use gates::{Offers, scarce_here};
pub use view::AgentView;
pub use wire::{
    Accepted, AcceptedStatus, BeatInput, Given, Heard, HeartbeatInput, LogInput, PollInput, Polled, ProgressInput,
    ResultInput, UsageInput,
};

use crate::{Engine, EngineError, RESERVED_PREFIX};

/// What this process remembers of agents: nothing that another node, or the next start, would miss.
#[derive(Default)]
pub(crate) struct Agents {
    pub(crate) health: health::Health,
    parked: parked::Parked,
    runs: runs::Runs,
    /// Something may have become claimable.
    wake: Notify,
    /// Somebody asked something of an agent.
    asked: Notify,
}

impl Agents {
    /// Has the polls that wait look again.
    pub(crate) fn wake(&self) {
        self.wake.notify_waiters();
    }
}

impl Engine {
    /// Registers an agent, or changes what it said before; true when it is new. It counts as a sign of life.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for wrong values, by path; [`EngineError::Rejected`] where there are too many agents.
    pub async fn register_agent(&self, call: &Call, input: AgentInput) -> Result<(AgentView, bool), EngineError> {
        let (agent, settings) = input.resolve()?;
        if let Some(index) = settings
            .capabilities
            .iter()
            .position(|capability| capability.starts_with(RESERVED_PREFIX))
        {
            let message = format!("names that begin with `{RESERVED_PREFIX}` are the engine's own; use another");
            return Err(Invalid::one(format!("capabilities[{index}]"), message).into());
        }
        let record = self.store().put_agent(call, agent, settings).await?;
        // What prefers it waits for it from now on, and what it can do it may do.
        self.wake_claims();
        let is_new = record.version == 1 && record.created_at == call.now;
        Ok((AgentView::of(record, self.now()), is_new))
    }

    /// The agents of a namespace by id: those with this status, and with this capability.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn agents(
        &self,
        namespace: &str,
        status: Option<AgentStatus>,
        capability: Option<&str>,
    ) -> Result<Vec<AgentView>, EngineError> {
        let now = self.now();
        let all = self.store().agents(namespace).await?.into_iter();
        let views = all.map(|record| AgentView::of(record, now));
        let wanted = |view: &AgentView| {
            status.is_none_or(|status| view.status == status)
                && capability.is_none_or(|capability| view.capabilities.iter().any(|known| known == capability))
        };
        Ok(views.filter(wanted).collect())
    }

    /// One agent.
    ///
    /// # Errors
    /// [`EngineError::Rejected`] where it is not registered.
    pub async fn agent(&self, namespace: &str, agent: &str) -> Result<AgentView, EngineError> {
        let all = self.store().agents(namespace).await?;
        let found = all.into_iter().find(|record| *record.name == *agent);
        let record = found.ok_or_else(|| no_agent(agent))?;
        Ok(AgentView::of(record, self.now()))
    }

    /// Forgets an agent; what it runs is taken from it.
    ///
    /// # Errors
    /// [`EngineError::Rejected`] where it is not registered.
    pub async fn remove_agent(&self, call: &Call, agent: &str) -> Result<(), EngineError> {
        self.store().delete_agent(call, Name::from(agent)).await?;
        self.inner_agents().health.forget(&call.namespace, agent);
        self.wake_claims();
        Ok(())
    }

    /// Gives an agent nothing more, or work again.
    ///
    /// # Errors
    /// [`EngineError::Rejected`] where it is not registered.
    pub async fn command_agent(
        &self,
        call: &Call,
        agent: &str,
        command: AgentCommand,
    ) -> Result<AgentView, EngineError> {
        let record = self.store().command_agent(call, Name::from(agent), command).await?;
        self.inner_agents().asked.notify_waiters();
        self.wake_claims();
        Ok(AgentView::of(record, self.now()))
    }

    /// Ends a session of an agent: what it holds is given back without an attempt spent.
    ///
    /// # Errors
    /// [`EngineError::Rejected`] where the agent is not registered, or another session took over.
    pub async fn leave_agent(&self, call: &Call, agent: &str, session: &str) -> Result<(), EngineError> {
        let mut faults = wire::Faults::default();
        faults.session(session);
        faults.finish()?;
        let session = token::session(&call.namespace, agent, session);
        self.store().close_session(call, Name::from(agent), session).await?;
        self.wake_claims();
        Ok(())
    }
}

/// Says that an agent is not registered.
fn no_agent(agent: &str) -> EngineError {
    EngineError::Rejected(pensum_core::Rejected::NoAgent(pensum_core::id::clip(agent).into()))
}
