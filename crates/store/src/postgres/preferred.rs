//! The agents that tasks prefer, as a node knows them: their tasks are kept for them while they may be waited for.
//!
//! They are read at most once a second, and only where a known class prefers one; a change of what one may take is heard
//! of at once where notices come through.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use pensum_core::agent::AgentRecord;
use pensum_core::{Name, Time};
use tokio::time::Instant;

use super::Inner;
use super::agent;
use super::error::Fault;
use super::names::{AgentPlace, Class};
use super::pool::as_params;

/// How old what is known of agents may be.
const AGE_MAX: Duration = Duration::from_secs(1);

/// What was read of agents at one moment.
#[derive(Clone)]
struct Snapshot {
    asked: Arc<HashSet<AgentPlace>>,
    agents: HashMap<AgentPlace, AgentRecord>,
    /// When, by the clock of the claims, and by that of this process.
    now: Time,
    read_at: Instant,
    /// How many changes of agents had been heard of.
    heard: u64,
}

/// What this node knows of preferred agents.
#[derive(Default)]
pub(super) struct Preferred {
    snapshot: RwLock<Option<Snapshot>>,
}

impl Preferred {
    /// Reads them again, where that is due.
    pub(super) async fn look(&self, inner: &Arc<Inner>, now: Time) -> Result<(), Fault> {
        let asked = inner.catalog.preferred();
        if asked.is_empty() {
            return Ok(());
        }
        let heard = inner.wake.agents();
        let is_fresh = |known: &Snapshot| {
            // Whoever seems to have fallen silent since may just have been heard on another node.
            let went_silent = |agent: &AgentRecord| agent.is_alive(known.now) && !agent.is_alive(now);
            known.heard == heard
                && known.read_at.elapsed() < AGE_MAX
                && (Arc::ptr_eq(&known.asked, &asked) || known.asked == asked)
                && !known.agents.values().any(went_silent)
        };
        if self.snapshot.read().as_ref().is_some_and(is_fresh) {
            return Ok(());
        }
        let places: Vec<AgentPlace> = asked.iter().cloned().collect();
        let read_at = Instant::now();
        let statement = agent::of_places(&places);
        let mut agents = HashMap::new();
        for row in inner.pool.read(statement.sql, &as_params(&statement.params)).await? {
            let (namespace, agent) = agent::read(&row)?;
            agents.insert((namespace, agent.name.clone()), agent);
        }
        *self.snapshot.write() = Some(Snapshot {
            asked,
            agents,
            now,
            read_at,
            heard,
        });
        Ok(())
    }

    /// Notes what a verb of this node has just read of an agent.
    pub(super) fn note(&self, namespace: &Name, agent: &AgentRecord) {
        let place = (namespace.clone(), agent.name.clone());
        let is_asked = |known: &Snapshot| known.asked.contains(&place);
        if !self.snapshot.read().as_ref().is_some_and(is_asked) {
            return;
        }
        if let Some(known) = self.snapshot.write().as_mut() {
            known.agents.insert(place, agent.clone());
        }
    }

    /// True when tasks of known classes prefer agents.
    pub(super) fn any(&self) -> bool {
        self.snapshot.read().is_some()
    }

    /// Until when, unless it is heard again, the tasks of a class are kept for an agent that they prefer and that is not
    /// the one who asks.
    pub(super) fn keeps(&self, class: &Class, asking: Option<&Name>, now: Time) -> Option<Time> {
        let preferred = class.demand.agent.as_ref()?;
        if asking == Some(preferred) {
            return None;
        }
        let snapshot = self.snapshot.read();
        let place = (class.namespace.clone(), preferred.clone());
        let agent = snapshot.as_ref()?.agents.get(&place)?;
        let awaited = agent.is_awaited(&class.handler, &class.demand, now);
        awaited.then(|| agent.seen_at.map_or(now, |seen| seen.plus(agent.settings.lease())))
    }
}
