//! What is overdue: leases, expiries, queue timeouts, waits.

use pensum_core::store::{Applied, Reaped};
use pensum_core::transition::Event;
use pensum_core::{ErrorInfo, Time};

use super::error::Fault;
use super::memory::Timer;
use super::step::Facts;
use super::writer::Writer;

/// How many expired keys a pass removes for each task that it may end.
const KEYS_PER_TASK: usize = 10;

impl Writer {
    pub(super) fn reap(&mut self, now: Time, limit: usize) -> Result<Reaped, Fault> {
        let mut reaped = Reaped::default();
        let mut applied = Applied::default();
        let mut done = 0;
        for row in self.expired_leases(now, limit) {
            let Some(subject) = self.subject(row, None)? else {
                continue;
            };
            if self
                .happen(subject, &Event::LeaseExpired, Facts::default(), now, &mut applied)?
                .is_ok()
            {
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
        self.forget_keys(now, limit.saturating_mul(KEYS_PER_TASK))?;
        reaped.ended = applied.ended;
        let lease = self.first_lease_end();
        reaped.next_due = self
            .memory
            .timers
            .first()
            .map(|(at, ..)| *at)
            .into_iter()
            .chain(lease)
            .min();
        Ok(reaped)
    }

    fn expired_leases(&self, now: Time, limit: usize) -> Vec<i64> {
        let view = self.shared.view.lock();
        let expired =
            |l: &super::view::Leased| !l.closing && l.live.life.lease.is_some_and(|held| held.expires_at <= now);
        let mut rows: Vec<i64> = view
            .leases
            .iter()
            .filter(|(_, l)| expired(l))
            .map(|(row, _)| *row)
            .collect();
        rows.sort_unstable();
        rows.truncate(limit);
        rows
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
