//! What is overdue: leases, expiries, queue timeouts, waits.

use pensum_core::store::{Applied, Reaped};
use pensum_core::transition::{Blame, Event};
use pensum_core::{ErrorInfo, NodeId, Time};

use super::claim::PROBATION;
use super::error::Fault;
use super::memory::Timer;
use super::step::Facts;
use super::view::Leased;
use super::writer::Writer;

/// How many expired keys a pass removes for each task that it may end.
const KEYS_PER_TASK: usize = 10;

/// What decides how far a run is to be blamed for the death of whoever ran it.
#[derive(Clone, Copy)]
pub(super) struct Stake {
    taken_at: Time,
    alone: bool,
    checkpointed: bool,
}

impl Stake {
    pub(super) const fn of(leased: &Leased) -> Stake {
        Stake {
            taken_at: leased.taken_at,
            alone: leased.alone,
            checkpointed: leased.checkpointed,
        }
    }

    /// The blame for a death at `died_at`: the task ran for as long as its node was heard, and not until somebody noticed.
    pub(super) fn blame(self, died_at: Time) -> Blame {
        if self.checkpointed || died_at.since(self.taken_at) >= PROBATION {
            Blame::None
        } else if self.alone {
            Blame::Alone
        } else {
            Blame::Suspect
        }
    }
}

/// A lease that ran out.
struct Expired {
    row: i64,
    node: NodeId,
    expires_at: Time,
    stake: Stake,
}

impl Expired {
    fn of(row: i64, leased: &Leased, now: Time) -> Option<Expired> {
        let lease = leased.live.life.lease.filter(|lease| lease.expires_at <= now)?;
        (!leased.closing).then_some(Expired {
            row,
            node: lease.node,
            expires_at: lease.expires_at,
            stake: Stake::of(leased),
        })
    }
}

impl Writer {
    pub(super) fn reap(&mut self, now: Time, limit: usize) -> Result<Reaped, Fault> {
        let mut reaped = Reaped::default();
        let mut applied = Applied::default();
        let mut done = 0;
        for expired in self.expired_leases(now, limit) {
            let Some(subject) = self.subject(expired.row, None)? else {
                continue;
            };
            let (event, facts) = self.lease_end(&expired, now);
            if self.happen(subject, &event, facts, now, &mut applied)?.is_ok() {
                reaped.leases_expired += 1;
                done += 1;
            }
        }
        while done < limit
            && let Some(timer) = self.memory.timers.first().copied().filter(|(at, ..)| *at <= now)
        {
            self.memory.timers.remove(&timer);
            let (_, row, timer) = timer;
            let Some(subject) = self.subject(row, None)? else {
                continue;
            };
            let (event, error) = match timer {
                Timer::Wake => (Event::WakeDue, None),
                Timer::Expire => {
                    let at = subject.live.expires_at.unwrap_or(now);
                    let message = format!("it had not started by its expires_at, {at}");
                    (Event::Expired, Some(ErrorInfo::new("expired", message)))
                }
                Timer::QueueTimeout => {
                    let longest = subject.live.queue_timeout.unwrap_or_default();
                    let message = format!("it was ready for {} s without being started", longest.as_secs_f64());
                    (Event::QueueTimeout, Some(ErrorInfo::new("queue_timeout", message)))
                }
            };
            let facts = Facts {
                error,
                ..Facts::default()
            };
            if self.happen(subject, &event, facts, now, &mut applied)?.is_ok() {
                done += 1;
                match timer {
                    Timer::Wake => reaped.woken += 1,
                    Timer::Expire | Timer::QueueTimeout => reaped.overdue += 1,
                }
            }
        }
        reaped.abandoned = self.abandon_the_dead(limit - done.min(limit), now, &mut applied)?;
        self.age()?;
        let old = self.too_old(now, limit.saturating_sub(done));
        reaped.overdue += self.drop_all(old, now, &mut applied)?;
        self.forget_keys(now, limit.saturating_mul(KEYS_PER_TASK))?;
        self.forget_nodes(now);
        reaped.ended = applied.ended;
        let lease = self.first_lease_end();
        reaped.next_due = self
            .memory
            .timers
            .first()
            .map(|(at, ..)| *at)
            .into_iter()
            .chain(lease)
            .chain(self.memory.ageing.next_due())
            .chain(self.next_too_old())
            .min();
        Ok(reaped)
    }

    fn expired_leases(&self, now: Time, limit: usize) -> Vec<Expired> {
        let view = self.shared.view.lock();
        let leases = view.leases.iter();
        let mut expired: Vec<Expired> = leases.filter_map(|(row, l)| Expired::of(*row, l, now)).collect();
        expired.sort_unstable_by_key(|expired| expired.row);
        expired.truncate(limit);
        expired
    }

    /// What becomes of a task whose lease ran out: its node died, or did not renew it for another reason.
    fn lease_end(&self, expired: &Expired, now: Time) -> (Event, Facts) {
        let agent = self.agents.of_session(expired.node);
        let (died_at, error) = if let Some(agent) = agent.filter(|agent| agent.died_before(expired.expires_at, now)) {
            (agent.seen_at.unwrap_or(now), ErrorInfo::agent_crashed(&agent.name))
        } else if let Some(died_at) = self.shared.nodes.lock().died_at(expired.node, now) {
            let message = format!("{} died while it ran the task", expired.node);
            (died_at, ErrorInfo::new("crashed_node", message))
        } else {
            return (Event::LeaseExpired, Facts::default());
        };
        let facts = Facts {
            error: Some(error),
            ..Facts::default()
        };
        (Event::NodeDied(expired.stake.blame(died_at)), facts)
    }

    fn forget_nodes(&self, now: Time) {
        let view = self.shared.view.lock();
        let mut nodes = self.shared.nodes.lock();
        nodes.forget(now, |node| view.nodes.contains_key(&node));
    }

    fn first_lease_end(&self) -> Option<Time> {
        let view = self.shared.view.lock();
        view.leases
            .values()
            .filter(|l| !l.closing)
            .filter_map(|l| l.live.life.lease.map(|held| held.expires_at))
            .min()
    }
}
