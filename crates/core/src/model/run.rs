//! What nodes do: claim, renew, finish, checkpoint, and what the reaper does in their stead.

use std::collections::BTreeMap;
use std::time::Duration;

use super::agent::Offer;
use super::{Entry, Facts, Holder, Model, PROBATION};
use crate::agent::Demand;
use crate::outcome::{ErrorInfo, Outcome, Wait};
use crate::queue::Room;
use crate::store::{
    Applied, Beat, Call, Checkpoint, ClaimRequest, Claimed, Finish, LOG_LINES_MAX, LeaseRef, LogEntry, LogLine, Reaped,
    Rejected, Renewal,
};
use crate::task::{Lease, NewTask};
use crate::transition::{Event, Report};
use crate::{LeaseId, Name, State, TaskId, Time};

impl Model {
    /// Claims for a node, or for whoever else makes an offer.
    pub(super) fn claim(
        &mut self,
        request: &ClaimRequest,
        offer: &Offer<'_>,
        now: Time,
        bits: &dyn Fn() -> u64,
    ) -> Vec<Claimed> {
        let holders = || {
            self.tasks
                .values()
                .filter(|e| e.lifecycle.lease.is_some_and(|l| l.node == request.node))
        };
        let fresh = |e: &Entry| {
            let holder = e.holder.as_ref();
            holder.is_some_and(|h| !h.checkpointed && now.since(h.taken_at) < PROBATION)
        };
        if holders().any(|e| fresh(e) && e.holder.as_ref().is_some_and(|h| h.alone)) {
            return Vec::new();
        }
        let mut turns = self.turns_taken();
        let mut order: Vec<i64> = self
            .tasks
            .iter()
            .filter(|(_, e)| e.lifecycle.is_claimable(now))
            // What is overdue must not start any more; the reaper ends it.
            .filter(|(_, e)| overdue(e, now).is_none())
            .map(|(row, _)| *row)
            .collect();
        order.sort_by_key(|row| self.rank(*row, None, now));
        // Of one key only the best tasks can be taken, and only as many as may run beside those that do.
        order.retain(|row| {
            let key = self.key_of(*row);
            key.is_none_or(|key| turns.entry(key).or_default().admits(self.order_rule(*row).width()))
        });
        order.sort_by_key(|row| self.rank(*row, self.served(*row), now));
        order.retain(|row| offer.suits(&self.tasks[row]) && !self.is_kept(*row, request, now));
        let mut probes = self.probes(now);
        let covering = |row: &i64| self.breakers_of(*row, &request.executor);
        let may_try = |probes: &BTreeMap<(Name, Name), u64>, row: &i64| {
            let has_left = |breaker| probes.get(breaker).is_none_or(|left| *left > 0);
            covering(row).iter().all(has_left)
        };
        order.retain(|row| may_try(&probes, row));
        let mut rooms = self.rooms(now);
        let mut free = self.free(request);
        let fits = |room: &Room, row: i64| room.starts > 0 && row <= room.newest;
        order.retain(|row| rooms.get(&self.queue_of(*row)).is_none_or(|room| fits(room, *row)));
        let needs = |row: &i64| Demand::of(&self.tasks[row].spec).resources;
        order.retain(|row| free.is_none_or(|free| needs(row).fits(free)));
        let suspect = order.iter().find(|row| self.tasks[row].lifecycle.suspect);
        let mut chosen: Vec<(i64, bool)> = match suspect {
            // It waits only for what could be blamed with it, and nothing new starts meanwhile.
            Some(_) if holders().any(fresh) => Vec::new(),
            Some(row) => vec![(*row, true)],
            None => {
                let mut has_room = |row: &i64| {
                    let room = rooms.get_mut(&self.queue_of(*row));
                    let is_full = room.as_ref().is_some_and(|room| room.starts == 0);
                    if is_full || !may_try(&probes, row) || free.is_some_and(|free| !needs(row).fits(free)) {
                        return false;
                    }
                    let units = self.tasks[row].spec.units();
                    match room {
                        Some(room) if !room.admits(units) => {
                            // Nothing behind it passes it by.
                            *room = Room::NONE;
                            return false;
                        }
                        Some(room) => room.take(units),
                        None => {}
                    }
                    for breaker in covering(row) {
                        probes.entry(breaker).and_modify(|left| *left -= 1);
                    }
                    free = free.map(|free| free.minus(needs(row)));
                    true
                };
                let taken = order.into_iter().filter(|row| has_room(row)).take(request.slots);
                taken.map(|row| (row, false)).collect()
            }
        };
        if request.slots == 0 {
            chosen.clear();
        }
        chosen
            .into_iter()
            .filter_map(|(row, alone)| self.take(row, alone, request, now, bits))
            .collect()
    }

    fn take(
        &mut self,
        row: i64,
        alone: bool,
        request: &ClaimRequest,
        now: Time,
        bits: &dyn Fn() -> u64,
    ) -> Option<Claimed> {
        let now = self.tasks.get(&row)?.lifecycle.starts_at(now);
        let id = LeaseId(u128::from(bits()) << 64 | u128::from(bits()));
        let lease = Lease {
            id,
            node: request.node,
            expires_at: now.plus(request.lease),
        };
        self.happen(
            row,
            &Event::Claim(lease),
            Facts::default(),
            now,
            &mut Applied::default(),
        )
        .ok()?;
        self.queue_started(row, now);
        let entry = self.tasks.get_mut(&row)?;
        entry.holder = Some(Holder {
            executor: request.executor.clone(),
            taken_at: now,
            alone,
            checkpointed: false,
        });
        Some(self.claimed(row))
    }

    fn held(&mut self, lease: LeaseRef) -> Option<&mut Entry> {
        self.entry(lease.task)
            .filter(|e| e.lifecycle.lease.is_some_and(|l| l.id == lease.lease))
    }

    pub(super) fn renew(&mut self, beat: Beat, lease: Duration, now: Time) -> Renewal {
        let seq = self.next_seq;
        let Some(entry) = self.held(beat.lease) else {
            return Renewal::Lost;
        };
        let expires_at = now.plus(lease);
        if let Some(held) = &mut entry.lifecycle.lease {
            held.expires_at = expires_at;
        }
        if beat.progress.is_some() {
            entry.progress = beat.progress;
        }
        let added = append_logs(entry, beat.logs, seq);
        let renewal = Renewal::Held {
            expires_at,
            cancel: entry.lifecycle.cancel_requested_at.is_some(),
            pause: entry.lifecycle.pause_requested_at.is_some() || entry.lifecycle.paused_at.is_some(),
        };
        self.next_seq += added;
        renewal
    }

    pub(super) fn finish(&mut self, finish: Finish, now: Time, bits: &dyn Fn() -> u64) -> Result<Applied, Rejected> {
        let Finish {
            lease,
            outcome,
            draw,
            usage,
            logs,
            progress,
            consumed,
            spawn,
        } = finish;
        let seq = self.next_seq;
        let Some(entry) = self.held(lease) else {
            return Err(Rejected::LeaseLost(lease.task));
        };
        let namespace = entry.namespace.clone();
        self.check_spawn(&namespace, &spawn, now)?;
        let Some(entry) = self.held(lease) else {
            return Err(Rejected::LeaseLost(lease.task));
        };
        let added = append_logs(entry, logs, seq);
        entry.progress = progress.or(entry.progress.take());
        entry.inbox.retain(|s| !consumed.contains(&s.seq));
        let failures = entry.lifecycle.failures;
        let (max_retries, policy) = (entry.spec.max_retries(), entry.spec.retry());
        self.next_seq += added;
        let spawned = self.spawn(lease.task, &namespace, spawn, now, bits)?;
        let met = match &outcome {
            Outcome::Wait { on, .. } => match on {
                Wait::Children => self.unfinished_children(lease.task) == 0,
                Wait::Signal { name, .. } => self
                    .entry(lease.task)
                    .is_some_and(|e| e.inbox.iter().any(|s| s.name == *name)),
                Wait::Until(at) => *at <= now,
            },
            _ => false,
        };
        let said = outcome.said(failures, max_retries, policy, draw, now, met);
        let checkpointed = said.checkpoint;
        let facts = Facts {
            usage,
            result: said.result,
            error: said.error,
            ..Facts::default()
        };
        let mut applied = Applied::default();
        self.happen(
            lease.task.row(),
            &Event::Holder(lease.lease, said.report),
            facts,
            now,
            &mut applied,
        )?;
        if let Some(entry) = self.entry(lease.task) {
            entry.checkpoint = checkpointed.or(entry.checkpoint.take());
            applied.state = Some(entry.lifecycle.state);
        }
        applied.spawned = spawned;
        Ok(applied)
    }

    pub(super) fn checkpoint(
        &mut self,
        checkpoint: Checkpoint,
        now: Time,
        bits: &dyn Fn() -> u64,
    ) -> Result<Applied, Rejected> {
        let lost = Rejected::LeaseLost(checkpoint.lease.task);
        let Some(entry) = self.held(checkpoint.lease) else {
            return Err(lost);
        };
        let (id, namespace) = (entry.id, entry.namespace.clone());
        self.check_spawn(&namespace, &checkpoint.spawn, now)?;
        let mut applied = Applied::default();
        if checkpoint.paused {
            let event = Event::Holder(checkpoint.lease.lease, Report::PauseStarted);
            self.happen(id.row(), &event, Facts::default(), now, &mut applied)?;
        }
        applied.spawned = self.spawn(id, &namespace, checkpoint.spawn, now, bits)?;
        let Some(entry) = self.held(checkpoint.lease) else {
            return Err(lost);
        };
        if let Some(holder) = &mut entry.holder {
            holder.checkpointed = true;
        }
        entry.checkpoint = checkpoint.state.or(entry.checkpoint.take());
        entry.inbox.retain(|s| !checkpoint.consumed.contains(&s.seq));
        if let Some((name, result)) = checkpoint.step {
            entry.steps.retain(|(n, _)| *n != name);
            entry.steps.push((name, result));
        }
        applied.state = Some(entry.lifecycle.state);
        Ok(applied)
    }

    /// Finds out whether children can be enqueued before anything of the finish is written.
    fn check_spawn(&self, namespace: &Name, spawn: &[NewTask], now: Time) -> Result<(), Rejected> {
        use crate::task::Dependency;
        super::enqueue::check_items(spawn)?;
        for (item, task) in spawn.iter().enumerate() {
            for (position, dependency) in task.depends_on.iter().enumerate() {
                if let Dependency::Task(id) = dependency
                    && self.find(namespace, *id).is_none()
                {
                    return Err(Rejected::UnknownDependency {
                        item,
                        position,
                        id: *id,
                    });
                }
            }
        }
        let call = Call {
            namespace: namespace.clone(),
            ..Call::new(namespace.clone(), now)
        };
        let (places, replaced) = self.places(&call, spawn)?;
        self.make_room(&call, spawn, &places, &replaced).map(drop)
    }

    fn spawn(
        &mut self,
        parent: TaskId,
        namespace: &Name,
        mut spawn: Vec<NewTask>,
        now: Time,
        bits: &dyn Fn() -> u64,
    ) -> Result<Vec<TaskId>, Rejected> {
        if spawn.is_empty() {
            return Ok(Vec::new());
        }
        for task in &mut spawn {
            task.spec.details_mut().parent_id = Some(parent);
        }
        let call = Call {
            namespace: namespace.clone(),
            actor: Name::from(format!("task:{parent}")),
            now,
            idempotency: None,
            process: None,
        };
        match self.enqueue(&call, spawn, bits) {
            Ok(ids) => Ok(ids.into_iter().map(|e| e.id).collect()),
            Err(crate::StoreError::Rejected(rejected)) => Err(rejected),
            Err(_) => Err(Rejected::NotFound(parent)),
        }
    }

    pub(super) fn reap(&mut self, now: Time, limit: usize) -> Reaped {
        let mut reaped = Reaped::default();
        let mut applied = Applied::default();
        // Leases first, then whatever came first: the end of one may be the end of others.
        let mut due: Vec<(bool, Time, i64)> = self
            .tasks
            .iter()
            .filter_map(|(row, e)| overdue(e, now).map(|(at, event, _)| (event != Event::LeaseExpired, at, *row)))
            .collect();
        due.sort_unstable();
        let mut done = 0;
        for (_, _, row) in due {
            if done == limit {
                break;
            }
            let due = self.tasks.get(&row).and_then(|e| Some((e, overdue(e, now)?)));
            let (event, error) = match due {
                Some((entry, (_, Event::LeaseExpired, _))) => self.lease_end(entry, now),
                Some((_, (_, event, error))) => (event, error),
                None => continue,
            };
            let facts = Facts {
                error,
                ..Facts::default()
            };
            if self.happen(row, &event, facts, now, &mut applied).is_err() {
                continue;
            }
            done += 1;
            match event {
                Event::LeaseExpired | Event::NodeDied(_) => reaped.leases_expired += 1,
                Event::WakeDue => reaped.woken += 1,
                _ => reaped.overdue += 1,
            }
        }
        for (row, process) in self.abandoned(now) {
            if done == limit {
                break;
            }
            reaped.abandoned += u64::from(self.abandon(row, process, now, &mut applied));
            done += 1;
        }
        for (row, error) in self.too_old(now) {
            let facts = Facts {
                error: Some(error),
                ..Facts::default()
            };
            if done < limit && self.happen(row, &Event::Cancel, facts, now, &mut applied).is_ok() {
                done += 1;
                reaped.overdue += 1;
            }
        }
        self.forget_nodes(now);
        reaped.ended = applied.ended;
        let dues = self.tasks.values().filter_map(next_due);
        reaped.next_due = dues.chain(self.next_too_old(now)).min();
        reaped
    }
}

/// What is overdue about a task since when, with the error that goes with it.
fn overdue(entry: &Entry, now: Time) -> Option<(Time, Event, Option<ErrorInfo>)> {
    let task = &entry.lifecycle;
    if let Some(lease) = task.lease.filter(|l| l.expires_at <= now) {
        return Some((lease.expires_at, Event::LeaseExpired, None));
    }
    if task.state == State::Waiting && task.paused_at.is_none() {
        return task
            .wake_at
            .filter(|at| *at <= now)
            .map(|at| (at, Event::WakeDue, None));
    }
    if task.state != State::Queued {
        return None;
    }
    let expires = entry.spec.expires_at().filter(|_| !task.has_started());
    let ready = entry.ready_since(now);
    let impatient = ready.and_then(|at| entry.spec.queue_timeout().map(|longest| (at.plus(longest), longest)));
    let expired = expires.filter(|at| *at <= now).map(|at| {
        let error = ErrorInfo::new("expired", format!("it had not started by its expires_at, {at}"));
        (at, Event::Expired, error)
    });
    let queued_out = impatient.filter(|(at, _)| *at <= now).map(|(at, longest)| {
        let message = format!("it was ready for {} s without being started", longest.as_secs_f64());
        (at, Event::QueueTimeout, ErrorInfo::new("queue_timeout", message))
    });
    // Whichever came first ended the task.
    let first = [expired, queued_out].into_iter().flatten().min_by_key(|(at, ..)| *at);
    first.map(|(at, event, error)| (at, event, Some(error)))
}

fn next_due(entry: &Entry) -> Option<Time> {
    let task = &entry.lifecycle;
    let expires_at = entry
        .spec
        .expires_at()
        .filter(|_| task.state == State::Queued && !task.has_started());
    let overdue = (task.state == State::Queued && task.waiting_for.is_none() && task.paused_at.is_none())
        .then(|| {
            entry
                .spec
                .queue_timeout()
                .map(|longest| task.ready_from().plus(longest))
        })
        .flatten();
    let wake_at = task.wake_at.filter(|_| task.paused_at.is_none());
    [task.lease.map(|l| l.expires_at), wake_at, expires_at, overdue]
        .into_iter()
        .flatten()
        .min()
}

impl Entry {
    /// Since when it could have been claimed, keys and lanes aside.
    pub(super) fn ready_since(&self, now: Time) -> Option<Time> {
        self.lifecycle.is_claimable(now).then(|| self.lifecycle.ready_from())
    }
}

/// Keeps lines up to the cap; answers how many sequence numbers it used.
fn append_logs(entry: &mut Entry, lines: Vec<LogLine>, mut seq: u64) -> u64 {
    let start = seq;
    for mut line in lines {
        let kept = entry.logs.len() as u64;
        if kept >= LOG_LINES_MAX {
            break;
        }
        if kept == LOG_LINES_MAX - 1 {
            line.message = format!("further lines were dropped: a task keeps {LOG_LINES_MAX}");
        }
        seq += 1;
        entry.logs.push(LogEntry { seq, line });
    }
    seq - start
}
