//! Claims: served from memory, without a row.

use std::sync::Arc;
use std::time::Duration;

use pensum_core::agent::Amounts;
use pensum_core::store::ClaimRequest;
use pensum_core::task::Lease;
use pensum_core::transition::{Event, Report};
use pensum_core::{LeaseId, Name, Time, apply};

use super::agent::Bounds;
use super::breaker::Trials;
use super::error::Fault;
use super::memory::key_of;
use super::order::Pick;
use super::queue::Rooms;
use super::row::{LiveRow, mark};
use super::step::Facts;
use super::verb::{Claim, Grant, Grants};
use super::view::{Cell, Leased};
use super::writer::Writer;

/// A run that goes on for this long, or has checkpointed, has survived its start: a node's death is not charged to it.
pub(super) const PROBATION: Duration = Duration::from_secs(60);

/// Which classes the last claimer's capabilities cover: most claims come with the same ones.
#[derive(Default)]
pub(super) struct Coverage {
    offered: Option<Arc<[Name]>>,
    queues: Option<Arc<[Name]>>,
    fits: Vec<bool>,
}

/// What stands between a claimer and what is ready, beside what it is capable of.
struct Limits {
    rooms: Rooms,
    bounds: Bounds,
    trials: Trials,
}

impl Limits {
    /// Up to which row tasks of the class may start; `None` when none may.
    fn reach(&self, class: u32) -> Option<i64> {
        match self.bounds.allow(class) && self.trials.allow(class) {
            true => self.rooms.reach(class),
            false => None,
        }
    }

    /// A task of the class starts.
    fn take(&mut self, class: u32) {
        self.rooms.take(class);
        self.bounds.take(class);
        self.trials.take(class);
    }
}

/// True when its `expires_at` or its `queue_timeout` has passed. A claim may come before the reaper, as after a time in
/// which nobody ran.
fn is_overdue(live: &LiveRow, now: Time) -> bool {
    let expired = live.expires_at.is_some_and(|at| at <= now && !live.life.has_started());
    expired
        || live
            .queue_timeout
            .is_some_and(|longest| live.life.ready_from().plus(longest) <= now)
}

impl Writer {
    fn cover(&mut self, request: &ClaimRequest) {
        fn same(known: Option<&Arc<[Name]>>, asked: Option<&Arc<[Name]>>) -> bool {
            match (known, asked) {
                (None, None) => true,
                (Some(known), Some(asked)) => Arc::ptr_eq(known, asked),
                _ => false,
            }
        }
        let coverage = &mut self.coverage;
        let (offered, queues) = (&request.capabilities, &request.queues);
        if !same(coverage.offered.as_ref(), offered.as_ref()) || !same(coverage.queues.as_ref(), queues.as_ref()) {
            *coverage = Coverage {
                offered: offered.clone(),
                queues: queues.clone(),
                fits: Vec::new(),
            };
        }
        let mut next = coverage.fits.len() as u32;
        while let Some(class) = self.shared.catalog.class(next) {
            let capable = offered
                .as_ref()
                .is_none_or(|offered| class.demand.suits_node(&class.handler, offered));
            coverage
                .fits
                .push(capable && queues.as_ref().is_none_or(|queues| queues.contains(&class.queue)));
            next += 1;
        }
    }

    /// Answers a claim from what is ready, or keeps it until something is.
    pub(super) fn serve_or_park(&mut self, claim: Claim) {
        if let Some(agent) = &claim.request.agent
            && let Err(rejected) = self.agents.check(claim.request.node, agent)
        {
            let _ = claim.reply.send(Err(rejected.into()));
            return;
        }
        match self.claim(&claim.request, claim.now) {
            Ok(items) if items.is_empty() => self.parked.push(claim),
            Ok(items) => {
                let Claim {
                    request, reply, home, ..
                } = claim;
                let outlive = request.agent.is_some();
                self.grant(reply, Grants { items, home, outlive });
            }
            Err(fault) => {
                // What could not be read has left the order already.
                self.stale |= matches!(fault, Fault::Sql(_));
                let _ = claim.reply.send(Err(fault.describe(&self.path)));
            }
        }
    }

    /// Serves the claims that wait, first come first served; those that do not want to wait get nothing.
    pub(super) fn serve_parked(&mut self) {
        if std::mem::take(&mut self.agents.fenced) {
            self.refuse_fenced();
        }
        let mut has_work = self.has_work();
        if !has_work && self.parked.iter().all(|claim| !claim.request.wait.is_zero()) {
            // Nothing for anyone. Those who stopped waiting are swept out once they may be the half of all.
            if self.parked.len() > self.parked_max {
                self.parked.retain(|claim| !claim.reply.is_closed());
                self.parked_max = (2 * self.parked.len()).max(64);
            }
            return;
        }
        let mut waiting = std::mem::take(&mut self.parked).into_iter();
        for claim in waiting.by_ref() {
            if claim.reply.is_closed() {
                continue;
            }
            let impatient = claim.request.wait.is_zero();
            if has_work {
                self.serve_or_park(claim);
                has_work = self.has_work();
            } else {
                self.parked.push(claim);
            }
            if impatient && let Some(claim) = self.parked.pop_if(|c| c.request.wait.is_zero()) {
                let Claim { reply, home, .. } = claim;
                let _ = reply.send(Ok(Grants {
                    items: Vec::new(),
                    home,
                    outlive: false,
                }));
            }
        }
    }

    /// Tells those that wait with a session that has ended.
    fn refuse_fenced(&mut self) {
        for claim in std::mem::take(&mut self.parked) {
            let agent = claim.request.agent.as_ref();
            match agent.map_or(Ok(()), |agent| self.agents.check(claim.request.node, agent)) {
                Ok(()) => self.parked.push(claim),
                Err(rejected) => {
                    let _ = claim.reply.send(Err(rejected.into()));
                }
            }
        }
    }

    fn claim(&mut self, request: &ClaimRequest, now: Time) -> Result<Vec<Grant>, Fault> {
        if let Some(agent) = &request.agent {
            self.hear_claim(agent, now);
        } else if request.slots == 0 || !self.memory.order.has_work() {
            return Ok(Vec::new());
        }
        let now = now.max(self.memory.clock);
        if !self.queues.is_empty() {
            self.memory.pass_over(&self.shared, &self.db, now)?;
        }
        if let Some(agent) = &request.agent {
            return self.claim_for_agent(request, agent, now);
        }
        self.cover(request);
        let coverage = std::mem::take(&mut self.coverage);
        let granted = self.claim_covered(request, now, &coverage.fits, request.resources);
        self.coverage = coverage;
        granted
    }

    pub(super) fn claim_covered(
        &mut self,
        request: &ClaimRequest,
        now: Time,
        fits: &[bool],
        resources: Option<Amounts>,
    ) -> Result<Vec<Grant>, Fault> {
        let mut limits = Limits {
            rooms: self.rooms(now),
            bounds: self.bounds(request, resources, now),
            trials: self.trials(request, now),
        };
        let reach = |limits: &Limits, class: u32| {
            let covered = fits.get(class as usize).copied().unwrap_or(false);
            if covered { limits.reach(class) } else { None }
        };
        let fresh = |l: &Leased| !l.checkpointed && now.since(l.taken_at) < PROBATION;
        {
            let view = self.shared.view.lock();
            let held = view.nodes.get(&request.node).copied().unwrap_or_default();
            if held.alone > 0 && view.leases_of(request.node).any(|l| l.alone && fresh(l)) {
                return Ok(Vec::new());
            }
            // A suspect waits only for what could be blamed with it, and nothing new starts meanwhile: else a busy node
            // would never come to it.
            let suspect = self.memory.order.has_suspect(&|class| reach(&limits, class));
            if suspect && held.leases > 0 && view.leases_of(request.node).any(fresh) {
                return Ok(Vec::new());
            }
        }
        while let Some(pick) = self.memory.order.take_suspect(&|class| reach(&limits, class)) {
            if let Some(grant) = self.take(pick, request, now, true, &mut false)? {
                return Ok(vec![grant]);
            }
        }
        let mut merge = self.memory.order.merge(&|class| reach(&limits, class));
        let mut granted = Vec::with_capacity(request.slots.min(1024));
        while granted.len() < request.slots
            && let Some(class) = self.memory.order.next(&mut merge, &|class| reach(&limits, class))
        {
            if !limits.rooms.admit(class) {
                continue;
            }
            let Some(pick) = self.memory.order.take(&mut merge, &|class| reach(&limits, class)) else {
                break;
            };
            let mut freed = false;
            if let Some(grant) = self.take(pick, request, now, false, &mut freed)? {
                limits.take(grant.class);
                granted.push(grant);
            }
            if freed {
                merge = self.memory.order.merge(&|class| reach(&limits, class));
            }
        }
        Ok(granted)
    }

    /// Leases a task that has left the order, unless it may not start any more; says then whether its key is `freed` for
    /// another one, which enters the order.
    fn take(
        &mut self,
        pick: Pick,
        request: &ClaimRequest,
        now: Time,
        alone: bool,
        freed: &mut bool,
    ) -> Result<Option<Grant>, Fault> {
        let row = pick.row;
        let live = match pick.plain {
            Some((priority, run_at)) => Some(LiveRow::plain(row, pick.class, priority, run_at)),
            None => LiveRow::load(&self.db, row)?,
        };
        // A row that is gone, or cannot be claimed, has no place in the order; `verify` would have said so.
        let Some(mut live) = live else { return Ok(None) };
        if is_overdue(&live, now) {
            // The reaper is about to end it.
            if let Some(key) = key_of(&self.shared, &live) {
                self.memory.order.hold(&key, row, live.class);
                self.memory.order.release(&key, row);
                *freed = true;
            }
            return Ok(None);
        }
        let now = live.life.starts_at(now);
        let lease = Lease {
            id: LeaseId(self.bits.wide()),
            node: request.node,
            expires_at: now.plus(request.lease),
        };
        let Ok(transition) = apply(&live.life, &Event::Claim(lease), now) else {
            debug_assert!(false, "row {row} is in the ready order and cannot be claimed");
            return Ok(None);
        };
        if let Some(key) = key_of(&self.shared, &live) {
            self.memory.order.hold(&key, row, live.class);
        }
        if pick.plain.is_none() {
            self.memory.forget_timers(&live);
        }
        live.life = transition.next;
        live.version += 1;
        live.marks &= !mark::START;
        let grant = Grant {
            row,
            class: live.class,
            lease: lease.id,
            lifecycle: live.life.clone(),
            has_checkpoint: live.marks & mark::CHECKPOINT != 0,
            bare: pick.plain.map(|_| u64::from(live.version)),
            fresh: self.memory.fresh.take(row),
        };
        let class = live.class;
        self.memory.ages.leave(row);
        self.queue_started(class, now);
        let leased = Leased {
            live,
            id: grant.fresh.as_ref().map(|fresh| fresh.id),
            executor: request.executor.clone(),
            taken_at: now,
            alone,
            checkpointed: false,
            log_lines: None,
            closing: false,
            outlives: request.agent.is_some(),
        };
        let mut view = self.shared.view.lock();
        view.count(class, Cell::Ready, -1);
        view.count(class, Cell::Running, 1);
        view.lease(row, Box::new(leased));
        Ok(Some(grant))
    }

    /// Takes claims back that never arrived. Nothing of them was written, so nothing remains of them, unless someone
    /// commanded the task meanwhile: then it is released.
    pub(super) fn unclaim(&mut self, lost: &[(i64, LeaseId)]) -> Result<(), Fault> {
        for (row, lease) in lost {
            let held = {
                let view = self.shared.view.lock();
                view.leases
                    .get(row)
                    .filter(|l| !l.closing && l.lease_id() == Some(*lease))
                    .cloned()
            };
            let Some(held) = held else { continue };
            let now = self.memory.clock;
            let Some(live) = LiveRow::load(&self.db, *row)? else {
                continue;
            };
            if live.life.state.is_terminal() || live.life.state == pensum_core::State::Running {
                if let Some(subject) = self.subject(*row, None)? {
                    let event = Event::Holder(*lease, Report::Released);
                    let _ = self.happen(subject, &event, Facts::default(), now, &mut Default::default())?;
                }
                continue;
            }
            {
                let mut view = self.shared.view.lock();
                if let Some(leased) = view.leases.get_mut(row) {
                    leased.closing = true;
                }
            }
            self.group.closed.push(*row);
            self.group.count(live.class, Cell::of_leased(&held.live.life), -1);
            if let Some(key) = key_of(&self.shared, &live) {
                self.memory.order.release(&key, *row);
            }
            let cell = {
                let mut view = self.shared.view.lock();
                self.memory.place(&self.shared, &mut view, &live)
            };
            self.group.count(live.class, cell, 1);
        }
        Ok(())
    }
}
