//! Tasks that are not durable: their end with the process that accepted them.

use pensum_core::store::{Applied, Reaped};
use pensum_core::transition::Event;
use pensum_core::{ErrorInfo, NodeId, Time};
use tokio_postgres::Row;

use super::error::Fault;
use super::pool::{Statement, Value};
use super::step::{Facts, Work};

/// The rows of processes that are not heard any more. The processes are few and their tasks may be many, so the index is
/// walked from process to process.
const ABANDONED: &str = "
    WITH RECURSIVE process(id) AS (
      (SELECT acceptor FROM pensum.live WHERE acceptor IS NOT NULL ORDER BY acceptor LIMIT 1)
      UNION ALL
      SELECT (SELECT l.acceptor FROM pensum.live l WHERE l.acceptor > process.id ORDER BY l.acceptor LIMIT 1)
      FROM process WHERE process.id IS NOT NULL
    )
    SELECT accepted.row, process.id FROM process CROSS JOIN LATERAL (
      SELECT l.row FROM pensum.live l WHERE l.acceptor = process.id ORDER BY l.acceptor, l.row LIMIT $2
    ) accepted
    WHERE NOT EXISTS (SELECT 1 FROM pensum.node n WHERE n.id = process.id AND n.expires_at > $1)
    ORDER BY accepted.row LIMIT $2";

/// Asks for the rows of tasks that are not durable and whose process has ended.
pub(super) fn abandoned(now: Time, limit: usize) -> Statement<'static> {
    Statement {
        sql: ABANDONED,
        params: vec![
            Value::Int8(Some(now.as_micros())),
            Value::Int8(Some(i64::try_from(limit).unwrap_or(i64::MAX))),
        ],
    }
}

/// The rows that were asked for, with who accepted them.
pub(super) fn read(found: &[Row]) -> Result<Vec<(i64, NodeId)>, Fault> {
    let read = |found: &Row| Ok((found.try_get(0)?, NodeId(found.try_get::<_, i64>(1)? as u64)));
    found.iter().map(read).collect()
}

impl Work {
    /// Cancels tasks whose process has ended, at most `limit` of them.
    pub(super) async fn abandon(
        &mut self,
        abandoned: &[(i64, NodeId)],
        limit: usize,
        reaped: &mut Reaped,
        applied: &mut Applied,
    ) -> Result<(), Fault> {
        let abandoned = &abandoned[..abandoned.len().min(limit)];
        if abandoned.is_empty() {
            return Ok(());
        }
        let rows: Vec<i64> = abandoned.iter().map(|(row, _)| *row).collect();
        self.load_to_end(&rows).await?;
        self.look_ahead(&rows).await?;
        for (row, process) in abandoned {
            let Some((_, live)) = self.live(*row) else { continue };
            if live.life.accepted_by != Some(*process) {
                // It ended meanwhile, and a process that lives has revived it.
                continue;
            }
            let held_by = live.life.lease.map(|lease| lease.node.0 as i64);
            let facts = Facts {
                error: Some(ErrorInfo::process_ended(*process)),
                ..Facts::default()
            };
            if self.happen(*row, &Event::Abandoned, facts, applied).await?.is_ok() {
                // Whoever runs it looks at its leases, and finds that this one is gone.
                self.commanded.extend(held_by);
                reaped.abandoned += 1;
            }
        }
        Ok(())
    }
}
