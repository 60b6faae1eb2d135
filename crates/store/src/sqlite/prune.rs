//! Removing what is past its retention.

use pensum_core::store::{Pruned, Retention};
use pensum_core::{State, Time};
use rusqlite::OptionalExtension;

use super::error::Fault;
use super::row::{OutcomeRow, damaged};
use super::view::Cell;
use super::writer::Writer;

/// How many finished tasks one pass looks at, at least. There is no index on the time of the end, which every finish
/// would pay for; passes go round the table instead, oldest task first.
const LOOK_MAX: usize = 20_000;

impl Writer {
    pub(super) fn prune(&mut self, retention: Retention, now: Time, limit: usize) -> Result<Pruned, Fault> {
        self.forget_keys(now, LOOK_MAX.max(limit))?;
        let started_at = self.prune_after;
        let mut old = Vec::new();
        let mut looked = self.look(started_at, i64::MAX, retention, now, limit, &mut old)?;
        if let Some(last) = looked
            && old.len() < limit
            && self.is_young(last, retention, now)?
        {
            // Rows stand in the order of their enqueue: nothing behind this one is old enough. Walking on through all of
            // them, a pass an hour, might never come round.
            looked = None;
        }
        // Whoever asks again until nothing is left must not go round for ever.
        let more = looked.is_some();
        if looked.is_none() && started_at > 0 {
            looked = self.look(0, started_at, retention, now, limit, &mut old)?;
        }
        self.prune_after = looked.unwrap_or(0);
        for row in &old {
            let Some(outcome) = OutcomeRow::load(&self.db, *row)? else {
                continue;
            };
            let class: u32 = self
                .db
                .prepare_cached("SELECT class FROM task WHERE row = ?")?
                .query_row([row], |r| r.get(0))?;
            self.group.count(class, Cell::of_end(outcome.life.state), -1);
            self.group
                .count(class, Cell::Executions, -i64::from(outcome.status.is_some()));
            self.erase(*row, class, outcome.marks)?;
        }
        Ok(Pruned {
            removed: old.len() as u64,
            more,
        })
    }

    /// Removes keys that nobody remembers any more, at most `limit` of each kind: those of a whole day come due in a day,
    /// and all at once would hold everything else up.
    pub(super) fn forget_keys(&mut self, now: Time, limit: usize) -> Result<(), Fault> {
        let bounds = (now.as_micros(), i64::try_from(limit).unwrap_or(i64::MAX));
        self.db
            .prepare_cached(
                "DELETE FROM unique_key WHERE (namespace, handler, key) IN
                 (SELECT namespace, handler, key FROM unique_key WHERE expires_at <= ? LIMIT ?)",
            )?
            .execute(bounds)?;
        self.db
            .prepare_cached(
                "DELETE FROM idempotency WHERE (namespace, key) IN
                 (SELECT namespace, key FROM idempotency WHERE expires_at <= ? LIMIT ?)",
            )?
            .execute(bounds)?;
        Ok(())
    }

    /// Collects what may go among the rows in `(after, until]`; answers where it stopped, `None` at the end.
    fn look(
        &self,
        after: i64,
        until: i64,
        retention: Retention,
        now: Time,
        limit: usize,
        old: &mut Vec<i64>,
    ) -> Result<Option<i64>, Fault> {
        let mut statement = self.db.prepare_cached(
            "SELECT row, state, finished_at FROM outcome WHERE row > ? AND row <= ? ORDER BY row LIMIT ?",
        )?;
        let most = LOOK_MAX.max(limit);
        let mut rows = statement.query((after, until, most as i64))?;
        let mut looked = 0;
        let mut last = after;
        while let Some(row) = rows.next()? {
            looked += 1;
            last = row.get(0)?;
            let state = State::from_code(row.get(1)?).ok_or_else(|| damaged(last, "state"))?;
            let keep = if state == State::Failed {
                retention.failed
            } else {
                retention.completed
            };
            if Time::from_micros(row.get(2)?).plus(keep) <= now && !self.is_needed(last)? {
                old.push(last);
                if old.len() >= limit {
                    return Ok(Some(last));
                }
            }
        }
        Ok((looked == most).then_some(last))
    }

    /// True when a task was enqueued too lately to be past any retention.
    fn is_young(&self, row: i64, retention: Retention, now: Time) -> Result<bool, Fault> {
        let created_at: Option<i64> = self
            .db
            .prepare_cached("SELECT created_at FROM task WHERE row = ?")?
            .query_row([row], |r| r.get(0))
            .optional()?;
        let shortest = retention.completed.min(retention.failed);
        Ok(created_at.is_some_and(|at| Time::from_micros(at).plus(shortest) > now))
    }

    /// True when an unfinished task depends on it.
    fn is_needed(&self, row: i64) -> Result<bool, Fault> {
        Ok(self
            .db
            .prepare_cached(
                "SELECT 1 FROM dependency WHERE prerequisite = ?
                 AND EXISTS (SELECT 1 FROM live WHERE live.row = dependent)",
            )?
            .exists([row])?)
    }
}
