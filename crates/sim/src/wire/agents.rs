//! What the store did for agents, and with breakers, for the record.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pensum_core::agent::AgentRecord;
use pensum_core::breaker::BreakerRecord;
use pensum_core::query::PAGE_MAX;
use pensum_core::store::{AgentClaim, Claimed, StoreError};
use pensum_core::{LeaseId, Name, NodeId, Page, State, Status, TaskFilter, TaskId, Time};

use super::Far;
use crate::history::{Executor, Remote, What};

/// What is told once.
#[derive(Default)]
pub(super) struct Books {
    /// Leases that agents were given.
    pub(super) granted: BTreeSet<LeaseId>,
    /// What was told last of breakers, where there are such.
    pub(super) breakers: Option<BTreeMap<Name, BreakerRecord>>,
    /// There are queues with limits.
    pub(super) limits: bool,
}

/// The number in the id of an agent of a plan.
pub(crate) fn number_of(agent: &str) -> usize {
    let number = agent
        .strip_prefix("agent-")
        .and_then(|number| number.parse::<usize>().ok());
    number.map_or(usize::MAX, |number| number - 1)
}

impl Far {
    /// The store has answered a claim of an agent.
    pub(super) fn asked(
        &self,
        claim: AgentClaim,
        session: NodeId,
        since: Duration,
        now: Time,
        claimed: &[Claimed],
    ) -> Executor {
        self.heard(&claim.name, now);
        self.add(What::Remote(Remote::Asks {
            agent: claim.name.to_string(),
            session,
            since,
            have: claim.have,
            given: claimed.iter().map(|task| task.lease.lease).collect(),
        }));
        Executor::Agent {
            agent: number_of(&claim.name),
            session,
        }
    }

    pub(super) fn heard(&self, agent: &Name, now: Time) {
        let agent = agent.to_string();
        self.add(What::Remote(Remote::Heard { agent, now }));
    }

    /// The store has changed an agent, or refused to.
    pub(super) fn changed(
        &self,
        verb: &'static str,
        found: Result<AgentRecord, StoreError>,
    ) -> Result<AgentRecord, StoreError> {
        if let Ok(record) = &found {
            self.add(What::Remote(Remote::Changed {
                agent: record.name.to_string(),
                verb,
                record: Some(Box::new(record.clone())),
            }));
        }
        found
    }

    /// The store has ended a session, or removed an agent, or refused to.
    pub(super) async fn gone(
        &self,
        agent: Name,
        verb: &'static str,
        done: Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        done?;
        let all = self.inner.agents("default").await?;
        let record = all.into_iter().find(|record| record.name == agent).map(Box::new);
        let agent = agent.to_string();
        self.add(What::Remote(Remote::Changed { agent, verb, record }));
        Ok(())
    }

    /// What has failed or was cancelled: the end of a session ends tasks without saying which.
    pub(super) async fn ends(&self, now: Time) -> BTreeMap<TaskId, State> {
        let filter = TaskFilter {
            status: vec![Status::Failed, Status::Cancelled],
            ..TaskFilter::default()
        };
        let page = Page {
            limit: PAGE_MAX,
            before_row: None,
        };
        let found = self.inner.tasks("default", filter, page, now).await;
        let found = found.map(|page| page.items).unwrap_or_default();
        found.into_iter().map(|task| (task.id, task.lifecycle.state)).collect()
    }

    /// Tells what has ended since.
    pub(super) async fn tell_ends(&self, before: &BTreeMap<TaskId, State>, now: Time) {
        let after = self.ends(now).await.into_iter();
        let ended: Vec<(TaskId, State)> = after.filter(|(task, _)| !before.contains_key(task)).collect();
        if !ended.is_empty() {
            self.add(What::Ended(ended));
        }
    }

    /// Tells how breakers have changed.
    pub(super) async fn breakers(&self) {
        if self.books.lock().breakers.is_none() {
            return;
        }
        let Ok(found) = self.inner.breakers("default").await else {
            return;
        };
        let found: BTreeMap<Name, BreakerRecord> = found
            .into_iter()
            // How many try is counted, not kept.
            .map(|breaker| (breaker.name.clone(), BreakerRecord { probing: 0, ..breaker }))
            .collect();
        let before = self.books.lock().breakers.replace(found.clone()).unwrap_or_default();
        for (name, record) in &found {
            if before.get(name) != Some(record) {
                self.tell(name, Some(record));
            }
        }
        for name in before.keys().filter(|name| !found.contains_key(*name)) {
            self.tell(name, None);
        }
    }

    fn tell(&self, name: &Name, record: Option<&BreakerRecord>) {
        self.add(What::Remote(Remote::Breaker {
            breaker: name.to_string(),
            record: record.cloned().map(Box::new),
        }));
    }
}
