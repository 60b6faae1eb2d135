//! Nodes: who lives, who fell silent, and who is to look at what was asked of its tasks.

use super::{Entry, Facts, Model, PROBATION};
use crate::outcome::ErrorInfo;
use crate::store::{Applied, NODE_LISTED, NodeBeat, NodeRecord, NodeReply};
use crate::transition::{Blame, Event};
use crate::{NodeId, Time};

/// A node that has said something and did not leave.
pub(super) struct Known {
    beat: NodeBeat,
    seen_at: Time,
    commands: u64,
}

impl Model {
    pub(super) fn heartbeat(&mut self, beat: NodeBeat, now: Time) -> NodeReply {
        let commands = self.nodes.get(&beat.node).map_or(0, |known| known.commands);
        let known = Known {
            seen_at: now,
            commands,
            beat,
        };
        self.nodes.insert(known.beat.node, known);
        NodeReply { commands }
    }

    pub(super) fn list_nodes(&self, now: Time) -> Vec<NodeRecord> {
        let listed = self.nodes.values().filter(|known| known.is_listed(now));
        let mut records: Vec<NodeRecord> = listed.map(|known| known.beat.record(known.seen_at, now)).collect();
        // Stable: those of one moment stay in the order of their ids.
        records.sort_by_key(|record| record.started_at);
        records
    }

    /// Somebody asked something of a task that this node holds.
    pub(super) fn commanded(&mut self, node: NodeId) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.commands += 1;
        }
    }

    /// What becomes of a task whose lease ran out: its node died, or did not renew it for another reason.
    pub(super) fn lease_end(&self, entry: &Entry, now: Time) -> (Event, Option<ErrorInfo>) {
        let node = entry.lifecycle.lease.map(|lease| lease.node);
        if let Some(agent) = node.and_then(|node| self.agent_of(node))
            && agent.died_before(entry.lifecycle.lease.map_or(now, |lease| lease.expires_at), now)
        {
            let blame = entry.blame(agent.seen_at.unwrap_or(now));
            return (Event::NodeDied(blame), Some(ErrorInfo::agent_crashed(&agent.name)));
        }
        let known = node.and_then(|node| self.nodes.get(&node));
        match known.filter(|known| known.beat.is_lost(known.seen_at, now)) {
            // It ran for as long as its node was heard, and not until somebody noticed.
            Some(known) => {
                let error = crashed(known.beat.node);
                (Event::NodeDied(entry.blame(known.seen_at)), Some(error))
            }
            None => (Event::LeaseExpired, None),
        }
    }

    /// The tasks that are not durable and whose process is not heard any more, by row.
    pub(super) fn abandoned(&self, now: Time) -> Vec<(i64, NodeId)> {
        let lives = |process: &NodeId| {
            let known = self.nodes.get(process);
            known.is_some_and(|known| !known.beat.is_lost(known.seen_at, now))
        };
        let accepted = self
            .tasks
            .iter()
            .filter_map(|(row, e)| Some((*row, e.lifecycle.accepted_by?)));
        accepted.filter(|(_, process)| !lives(process)).collect()
    }

    /// Cancels a task that is not durable, for its process has ended.
    pub(super) fn abandon(&mut self, row: i64, process: NodeId, now: Time, applied: &mut Applied) -> bool {
        if let Some(lease) = self.tasks.get(&row).and_then(|e| e.lifecycle.lease) {
            self.commanded(lease.node);
        }
        let facts = Facts {
            error: Some(ErrorInfo::process_ended(process)),
            ..Facts::default()
        };
        self.happen(row, &Event::Abandoned, facts, now, applied).is_ok()
    }

    /// Forgets nodes that are not listed any more and that nothing can be blamed on.
    pub(super) fn forget_nodes(&mut self, now: Time) {
        let held: Vec<NodeId> = self
            .tasks
            .values()
            .filter_map(|e| e.lifecycle.lease.map(|lease| lease.node))
            .collect();
        self.nodes
            .retain(|node, known| known.is_listed(now) || held.contains(node));
    }
}

impl Known {
    fn is_listed(&self, now: Time) -> bool {
        now.since(self.seen_at) <= NODE_LISTED
    }
}

impl Entry {
    /// How far this task is to be blamed for the death of its node at `died_at`.
    pub(super) fn blame(&self, died_at: Time) -> Blame {
        match &self.holder {
            Some(held) if held.checkpointed || died_at.since(held.taken_at) >= PROBATION => Blame::None,
            Some(held) if held.alone => Blame::Alone,
            _ => Blame::Suspect,
        }
    }
}

/// The error of a run whose node died.
pub(super) fn crashed(node: NodeId) -> ErrorInfo {
    ErrorInfo::new("crashed_node", format!("{node} died while it ran the task"))
}
