//! Nodes: who lives, who fell silent, and who is to look at what was asked of its tasks. They live in the process that owns
//! the file, and so does this.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use pensum_core::store::{NODE_LISTED, NodeBeat, NodeRecord, NodeReply};
use pensum_core::{NodeId, Time};

/// The nodes that have said something and did not leave.
#[derive(Default)]
pub(super) struct Nodes {
    known: HashMap<NodeId, Known, FixedState>,
}

struct Known {
    beat: NodeBeat,
    seen_at: Time,
    commands: u64,
}

impl Known {
    fn is_listed(&self, now: Time) -> bool {
        now.since(self.seen_at) <= NODE_LISTED
    }
}

impl Nodes {
    /// Notes that a node lives.
    pub(super) fn heartbeat(&mut self, beat: NodeBeat, now: Time) -> NodeReply {
        let commands = self.known.get(&beat.node).map_or(0, |known| known.commands);
        let known = Known {
            seen_at: now,
            commands,
            beat,
        };
        self.known.insert(known.beat.node, known);
        NodeReply { commands }
    }

    /// Notes that a node has ended in good order.
    pub(super) fn leave(&mut self, node: NodeId) {
        self.known.remove(&node);
    }

    /// The nodes that were heard not too long ago, oldest first.
    pub(super) fn list(&self, now: Time) -> Vec<NodeRecord> {
        let mut listed: Vec<&Known> = self.known.values().filter(|known| known.is_listed(now)).collect();
        listed.sort_unstable_by_key(|known| (known.beat.started_at, known.beat.node));
        listed
            .into_iter()
            .map(|known| known.beat.record(known.seen_at, now))
            .collect()
    }

    /// Somebody asked something of a task that this node holds. It counts even when the change is undone: a look too many
    /// costs the node one renewal.
    pub(super) fn commanded(&mut self, node: NodeId) {
        if let Some(known) = self.known.get_mut(&node) {
            known.commands += 1;
        }
    }

    /// True for a node that was heard and is not given up for dead.
    pub(super) fn lives(&self, node: NodeId, now: Time) -> bool {
        let known = self.known.get(&node);
        known.is_some_and(|known| !known.beat.is_lost(known.seen_at, now))
    }

    /// When a node that is given up for dead was last heard.
    pub(super) fn died_at(&self, node: NodeId, now: Time) -> Option<Time> {
        let known = self.known.get(&node)?;
        known.beat.is_lost(known.seen_at, now).then_some(known.seen_at)
    }

    /// Forgets nodes that are not listed any more, but for those that `is_holder` says still hold leases.
    pub(super) fn forget(&mut self, now: Time, is_holder: impl Fn(NodeId) -> bool) {
        self.known
            .retain(|node, known| known.is_listed(now) || is_holder(*node));
    }
}
