//! What is overdue: leases, expiries, queue timeouts, waits. One node of all looks at a time.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};

use pensum_core::agent::AgentRecord;
use pensum_core::store::{Applied, NODE_LISTED, Reaped};
use pensum_core::transition::{Blame, Event};
use pensum_core::{ErrorInfo, NodeId, State, Time};
use tokio_postgres::types::Type;

use super::Inner;
use super::ageing;
use super::agent;
use super::claim::PROBATION;
use super::error::Fault;
use super::pool::{Durability, Statement, Value};
use super::row::{self, LiveRow, gate};
use super::step::{Facts, Work};
use super::volatile;

/// How many passes go by between two foldings of the counts.
const FOLD_EVERY: u64 = 4;
/// When the next pass has something to do.
static NEXT_DUE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT least({}, {}, (SELECT timer_at FROM pensum.live WHERE timer_at IS NOT NULL ORDER BY timer_at LIMIT 1))",
        row::first_due(gate::RUNNING),
        row::first_due(gate::WAITING)
    )
});
/// Leases that have run out.
static EXPIRED: LazyLock<String> = LazyLock::new(|| {
    let is_due = row::is_due(gate::RUNNING);
    format!("SELECT row FROM pensum.live WHERE {is_due} ORDER BY gate, due_at, row LIMIT $2")
});
/// Waits that are over, and queued tasks whose time is.
static OVERDUE: LazyLock<String> = LazyLock::new(|| {
    let is_due = row::is_due(gate::WAITING);
    format!(
        "SELECT row FROM (
           (SELECT row, due_at AS at FROM pensum.live WHERE {is_due} ORDER BY gate, due_at, row LIMIT $2)
           UNION ALL (SELECT row, timer_at FROM pensum.live WHERE timer_at <= $1 ORDER BY timer_at, row LIMIT $2)
         ) due ORDER BY at, row LIMIT $2"
    )
});

/// One pass.
pub(super) async fn reap(inner: &Arc<Inner>, now: Time, limit: usize) -> Result<Reaped, Fault> {
    let mut work = Work::begin(inner, Durability::Acknowledged, now).await?;
    let at = || Value::Int8(Some(now.as_micros()));
    let most = || Value::Int8(Some(i64::try_from(limit).unwrap_or(i64::MAX)));
    let answers = work
        .tx
        .pipeline(&[
            Statement {
                sql: "SELECT pg_try_advisory_xact_lock(hashtextextended('pensum.reap', 0))",
                params: Vec::new(),
            },
            Statement {
                sql: &EXPIRED,
                params: vec![at(), most()],
            },
            Statement {
                sql: &OVERDUE,
                params: vec![at(), most()],
            },
            Statement {
                sql: &NEXT_DUE,
                params: Vec::new(),
            },
            volatile::abandoned(now, limit),
            Statement {
                sql: "SELECT value FROM pensum.queue_version",
                params: Vec::new(),
            },
        ])
        .await?;
    if answers
        .get(5)
        .and_then(|rows| rows.first())
        .map_or(Ok(0), |row| row.try_get::<_, i64>(0))?
        != inner.queues.version()
    {
        inner.queues.refresh(&inner.pool).await?;
    }
    let column = |answer: usize| -> Result<Vec<i64>, Fault> {
        answers
            .get(answer)
            .into_iter()
            .flatten()
            .map(|found| Ok(found.try_get(0)?))
            .collect()
    };
    let mine = answers
        .first()
        .and_then(|rows| rows.first())
        .map_or(Ok(false), |found| found.try_get(0))?;
    let next: Option<i64> = answers
        .get(3)
        .and_then(|rows| rows.first())
        .map_or(Ok(None), |found| found.try_get(0))?;
    let (leases, timers) = (column(1)?, column(2)?);
    let abandoned = volatile::read(answers.get(4).map_or(&[], Vec::as_slice))?;
    let queues = column(5)?;
    let mut reaped = Reaped {
        next_due: next.map(Time::from_micros),
        ..Reaped::default()
    };
    let drops = !inner.queues.dropping_by_age().is_empty();
    if !mine || leases.is_empty() && timers.is_empty() && abandoned.is_empty() && !drops {
        work.tx.rollback().await?;
        inner
            .queues
            .catch_up(&inner.pool, queues.first().copied().unwrap_or(0))
            .await?;
        if mine {
            let rises_at = ageing::step(inner, now).await?;
            reaped.next_due = reaped.next_due.into_iter().chain(rises_at).min();
            keep_up(inner, now).await?;
        }
        return Ok(reaped);
    }
    let mut applied = Applied::default();
    let mut done = work.end_leases(&leases, &mut reaped, &mut applied).await?;
    work.load_to_end(&timers).await?;
    for row in timers {
        if done == limit {
            break;
        }
        let Some((event, error)) = work.live(row).and_then(|(_, live)| overdue(live, now)) else {
            continue;
        };
        let facts = Facts {
            error,
            ..Facts::default()
        };
        if work.happen(row, &event, facts, &mut applied).await?.is_ok() {
            done += 1;
            match event {
                Event::WakeDue => reaped.woken += 1,
                _ => reaped.overdue += 1,
            }
        }
    }
    work.abandon(&abandoned, limit - done.min(limit), &mut reaped, &mut applied)
        .await?;
    let (old, next_old) = work.drop_old(limit.saturating_sub(done), &mut applied).await?;
    reaped.overdue += old;
    if work.commit().await? {
        inner.wake.ready();
    }
    inner.holdings.expire(&leases, now);
    reaped.ended = applied.ended;
    let rows = inner.pool.read(&NEXT_DUE, &[]).await?;
    let next: Option<i64> = rows.first().map_or(Ok(None), |found| found.try_get(0))?;
    inner
        .queues
        .catch_up(&inner.pool, queues.first().copied().unwrap_or(0))
        .await?;
    let rises_at = ageing::step(inner, now).await?;
    reaped.next_due = next
        .map(Time::from_micros)
        .into_iter()
        .chain(rises_at)
        .chain(next_old)
        .min();
    keep_up(inner, now).await?;
    Ok(reaped)
}

/// What else wants doing now and then.
async fn keep_up(inner: &Arc<Inner>, now: Time) -> Result<(), Fault> {
    if !inner.passes.fetch_add(1, Ordering::Relaxed).is_multiple_of(FOLD_EVERY) {
        return Ok(());
    }
    inner.holdings.forget_expired_of_agents(now);
    super::counts::fold(&inner.pool).await?;
    let silent = now.minus(NODE_LISTED).as_micros();
    let sql = "DELETE FROM pensum.node n WHERE n.seen_at < $1
               AND NOT EXISTS (SELECT 1 FROM pensum.live l WHERE l.gate = 6 AND l.node = n.id)";
    inner
        .pool
        .begin(Durability::Relaxed)
        .await?
        .commit(&[Statement {
            sql,
            params: vec![Value::Int8(Some(silent))],
        }])
        .await?;
    Ok(())
}

impl Work {
    /// Takes back leases that have run out; a dead node's with the blame that its run deserves.
    async fn end_leases(&mut self, rows: &[i64], reaped: &mut Reaped, applied: &mut Applied) -> Result<usize, Fault> {
        if rows.is_empty() {
            return Ok(0);
        }
        self.load_to_end(rows).await?;
        self.look_ahead(rows).await?;
        let sql = "SELECT id, seen_at FROM pensum.node WHERE expires_at <= $1";
        // When those were last heard that have fallen silent.
        let mut dead: HashMap<u64, Time> = HashMap::new();
        for node in self.tx.query(sql, &[(&self.now.as_micros(), Type::INT8)]).await? {
            dead.insert(node.try_get::<_, i64>(0)? as u64, Time::from_micros(node.try_get(1)?));
        }
        let agents = self.agents_of(rows).await?;
        let mut done = 0;
        for row in rows {
            let Some((_, live)) = self.live(*row) else { continue };
            let Some(lease) = live.life.lease.filter(|l| l.expires_at <= self.now) else {
                continue;
            };
            let agent = agents.get(&lease.node);
            let agent = agent.filter(|agent| agent.died_before(lease.expires_at, self.now));
            let (event, error) = match (agent, dead.get(&lease.node.0)) {
                (Some(agent), _) => {
                    let error = ErrorInfo::agent_crashed(&agent.name);
                    let heard_at = agent.seen_at.unwrap_or(self.now);
                    (Event::NodeDied(blame(live, heard_at)), Some(error))
                }
                (None, Some(heard_at)) => died(live, lease.node, *heard_at),
                (None, None) => (Event::LeaseExpired, None),
            };
            let facts = Facts {
                error,
                ..Facts::default()
            };
            if self.happen(*row, &event, facts, applied).await?.is_ok() {
                reaped.leases_expired += 1;
                done += 1;
            }
        }
        Ok(done)
    }

    /// The agents whose sessions hold these rows, by session.
    async fn agents_of(&mut self, rows: &[i64]) -> Result<HashMap<NodeId, AgentRecord>, Fault> {
        let held = rows.iter().filter_map(|row| self.live(*row));
        let by_agents = held.filter(|(_, live)| live.run.is_some_and(|run| run.by_agent));
        let mut sessions: Vec<i64> = by_agents
            .filter_map(|(_, live)| live.life.lease.map(|lease| lease.node.0 as i64))
            .collect();
        if sessions.is_empty() {
            return Ok(HashMap::new());
        }
        sessions.sort_unstable();
        sessions.dedup();
        let answers = self.tx.pipeline(&[agent::of_sessions(&sessions)]).await?;
        let mut agents = HashMap::new();
        for row in answers.iter().flatten() {
            let (_, agent) = agent::read(row)?;
            if let Some(session) = agent.session {
                agents.insert(session, agent);
            }
        }
        Ok(agents)
    }
}

/// The node that held a task died.
fn died(live: &LiveRow, node: NodeId, heard_at: Time) -> (Event, Option<ErrorInfo>) {
    let error = ErrorInfo::new("crashed_node", format!("{node} died while it ran the task"));
    (Event::NodeDied(blame(live, heard_at)), Some(error))
}

/// How far a task is to be blamed for the death of who held it. The run counts until that one was last heard, not until
/// somebody noticed.
pub(super) fn blame(live: &LiveRow, heard_at: Time) -> Blame {
    match live.run {
        Some(run) if run.checkpointed || heard_at.since(run.taken_at) >= PROBATION => Blame::None,
        Some(run) if run.alone => Blame::Alone,
        _ => Blame::Suspect,
    }
}

/// What is overdue about a task that nobody runs, with the error that goes with it.
fn overdue(live: &LiveRow, now: Time) -> Option<(Event, Option<ErrorInfo>)> {
    let life = &live.life;
    if life.state == State::Waiting {
        return life
            .wake_at
            .filter(|at| *at <= now && life.paused_at.is_none())
            .map(|_| (Event::WakeDue, None));
    }
    if life.state != State::Queued {
        return None;
    }
    let expires = live.expires_at.filter(|at| *at <= now && !life.has_started());
    let impatient = live
        .queue_timeout
        .filter(|_| life.is_claimable(now))
        .map(|longest| (live.life.ready_from().plus(longest), longest))
        .filter(|(at, _)| *at <= now);
    // Whichever came first ended the task.
    match (expires, impatient) {
        (Some(at), rest) if rest.is_none_or(|(other, _)| at <= other) => {
            let message = format!("it had not started by its expires_at, {at}");
            Some((Event::Expired, Some(ErrorInfo::new("expired", message))))
        }
        (_, Some((_, longest))) => {
            let message = format!("it was ready for {} s without being started", longest.as_secs_f64());
            Some((Event::QueueTimeout, Some(ErrorInfo::new("queue_timeout", message))))
        }
        _ => None,
    }
}
