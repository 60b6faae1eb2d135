//! Row numbers of new tasks: given out by a sequence, some ahead of need while tasks keep coming.
//!
//! The claim order among equals is that of the row numbers. What is taken ahead is therefore thrown away when it is not
//! used at once: a node that enqueues rarely must not put its tasks before those of others that came earlier.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_postgres::types::Type;

use super::error::Fault;
use super::pool::Pool;

/// How long numbers that were taken ahead may be used.
const FRESH: Duration = Duration::from_millis(20);
/// Most numbers taken ahead.
const AHEAD_MAX: usize = 2_000;

#[derive(Default)]
struct Spare {
    rows: VecDeque<i64>,
    taken_at: Option<Instant>,
    asked_at: Option<Instant>,
}

/// The numbers that this process has.
#[derive(Default)]
pub(super) struct Rows {
    spare: Mutex<Spare>,
}

impl Rows {
    /// Gives up what was taken ahead: rows from elsewhere may have these numbers now.
    pub(super) async fn forget(&self) {
        self.spare.lock().await.rows.clear();
    }

    /// Numbers for `count` tasks, rising.
    pub(super) async fn take(&self, pool: &Arc<Pool>, count: usize) -> Result<Vec<i64>, Fault> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut spare = self.spare.lock().await;
        let now = Instant::now();
        if spare.taken_at.is_none_or(|at| now.duration_since(at) > FRESH) {
            spare.rows.clear();
        }
        let busy = spare.asked_at.is_some_and(|at| now.duration_since(at) <= FRESH);
        spare.asked_at = Some(now);
        if spare.rows.len() < count {
            let ahead = if busy { count.min(AHEAD_MAX) } else { 0 };
            let want = (count - spare.rows.len() + ahead) as i64;
            let sql = "SELECT nextval('pensum.task_row') FROM generate_series(1, $1)";
            for row in pool.read(sql, &[(&want, Type::INT8)]).await? {
                spare.rows.push_back(row.try_get(0)?);
            }
            spare.taken_at = Some(Instant::now());
        }
        Ok(spare.rows.drain(..count).collect())
    }
}
