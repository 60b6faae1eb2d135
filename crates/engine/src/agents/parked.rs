//! Polls that wait for a task: of one session the newest.

use std::sync::Arc;

use foldhash::HashMap;
use parking_lot::Mutex;
use pensum_core::NodeId;
use tokio_util::sync::CancellationToken;

/// Polls under way, by session.
#[derive(Default)]
pub(super) struct Parked(Mutex<HashMap<NodeId, Newest>>);

struct Newest {
    superseded: CancellationToken,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Parked {
    /// A place for a poll of a session; the one before it is told to end.
    pub(super) fn enter(&self, session: NodeId) -> Place<'_> {
        let mut all = self.0.lock();
        let superseded = CancellationToken::new();
        let turn = match all.get_mut(&session) {
            Some(newest) => {
                std::mem::replace(&mut newest.superseded, superseded.clone()).cancel();
                Arc::clone(&newest.turn)
            }
            None => {
                let turn = Arc::new(tokio::sync::Mutex::new(()));
                let newest = Newest {
                    superseded: superseded.clone(),
                    turn: Arc::clone(&turn),
                };
                all.insert(session, newest);
                turn
            }
        };
        Place {
            parked: self,
            session,
            superseded,
            turn,
        }
    }
}

/// See [`Parked::enter`].
pub(super) struct Place<'a> {
    parked: &'a Parked,
    session: NodeId,
    /// A newer poll has come.
    pub(super) superseded: CancellationToken,
    /// Held while the poll claims, so that of one session only one does.
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut all = self.parked.0.lock();
        // Under the lock: a newer poll has the place as soon as it has cancelled this one.
        if !self.superseded.is_cancelled() {
            all.remove(&self.session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_poll_ends_the_older_and_clears_up_after_itself() {
        let parked = Parked::default();
        let first = parked.enter(NodeId(1));
        let other = parked.enter(NodeId(2));
        let second = parked.enter(NodeId(1));
        assert!(first.superseded.is_cancelled() && !second.superseded.is_cancelled());
        assert!(Arc::ptr_eq(&first.turn, &second.turn));
        drop(first);
        assert_eq!(parked.0.lock().len(), 2);
        drop((second, other));
        assert!(parked.0.lock().is_empty());
    }
}
