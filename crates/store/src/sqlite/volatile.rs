//! Tasks that are not durable: who answers for them, and their end with that process.

use pensum_core::store::{Applied, Call, Rejected};
use pensum_core::transition::Event;
use pensum_core::{ErrorInfo, NodeId, Time};

use super::error::Fault;
use super::row::OutcomeRow;
use super::step::Facts;
use super::writer::Writer;

/// Most tasks that are cancelled in one transaction when the store is opened.
const ABANDONED_AT_ONCE: usize = 10_000;

impl Writer {
    /// Notes who answers for a row from now on.
    pub(super) fn answer_for(&mut self, row: i64, before: Option<NodeId>, after: Option<NodeId>) {
        if let Some(process) = before {
            self.memory.accepted.remove(&(process, row));
        }
        self.memory.accepted.extend(after.map(|process| (process, row)));
    }

    /// Who answers for an ended task that runs again.
    pub(super) fn accepted_again(
        &self,
        call: &Call,
        outcome: &OutcomeRow,
    ) -> Result<Result<Option<NodeId>, Rejected>, Fault> {
        let stored = super::reads::stored_task(&self.db, &self.shared.catalog, outcome.row)?;
        let Some(stored) = stored else { return Ok(Ok(None)) };
        let state = outcome.life.state;
        let accepted_by = stored.spec.accepted_again(state, call.process);
        Ok(accepted_by.map_err(|refusal| Rejected::from_refusal(stored.id, state, refusal)))
    }

    /// Cancels what processes accepted that have ended: at most `limit` tasks, by row. Answers how many.
    pub(super) fn abandon_the_dead(&mut self, limit: usize, now: Time, applied: &mut Applied) -> Result<u64, Fault> {
        let mut abandoned: Vec<(i64, NodeId)> = Vec::new();
        {
            let nodes = self.shared.nodes.lock();
            let mut from = Some(NodeId(0));
            while let Some(least) = from
                && let Some((process, _)) = self.memory.accepted.range((least, i64::MIN)..).next()
            {
                if !nodes.lives(*process, now) {
                    let rows = self.memory.accepted.range((*process, i64::MIN)..=(*process, i64::MAX));
                    abandoned.extend(rows.map(|(process, row)| (*row, *process)));
                }
                from = process.0.checked_add(1).map(NodeId);
            }
        }
        abandoned.sort_unstable();
        abandoned.truncate(limit);
        let mut cancelled = 0;
        for (row, process) in abandoned {
            cancelled += u64::from(self.abandon(row, process, now, applied)?);
        }
        Ok(cancelled)
    }

    /// Cancels everything that the process before this one accepted, before any of it can start.
    pub(super) fn abandon_all(&mut self, now: Time) -> Result<(), Fault> {
        self.set_sync(true)?;
        while !self.memory.accepted.is_empty() {
            let some: Vec<(NodeId, i64)> = self.memory.accepted.iter().take(ABANDONED_AT_ONCE).copied().collect();
            self.transaction(|writer| {
                for (process, row) in some {
                    writer.abandon(row, process, now, &mut Applied::default())?;
                }
                Ok(())
            })?;
        }
        self.forsaken = false;
        Ok(())
    }

    /// Cancels a task; false for one that has ended already, with a task that it depended on.
    fn abandon(&mut self, row: i64, process: NodeId, now: Time, applied: &mut Applied) -> Result<bool, Fault> {
        self.memory.accepted.remove(&(process, row));
        let Some(subject) = self.subject(row, None)? else {
            return Ok(false);
        };
        if let Some(lease) = subject.live.life.lease {
            self.shared.nodes.lock().commanded(lease.node);
        }
        let facts = Facts {
            error: Some(ErrorInfo::process_ended(process)),
            ..Facts::default()
        };
        Ok(self.happen(subject, &Event::Abandoned, facts, now, applied)?.is_ok())
    }
}
