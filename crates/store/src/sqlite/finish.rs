//! What holders of leases report: renewals, ends of runs, checkpoints.

use std::time::Duration;

use pensum_core::outcome::{Said, Wait};
use pensum_core::store::{Applied, Beat, Checkpoint, Finish, LOG_LINES_MAX, LeaseRef, LogLine, Rejected, Renewal};
use pensum_core::transition::{Event, Report};
use pensum_core::{Json, Outcome, TaskId, Time};

use super::enqueue::{Origin as Source, Plan};
use super::error::Fault;
use super::row::{LiveRow, mark};
use super::step::{Facts, Origin, Run, Subject};
use super::verb::Prepared;
use super::writer::Writer;

impl Writer {
    /// The task that this lease holds, if it still does.
    fn held(&self, lease: LeaseRef) -> Option<Subject> {
        let view = self.shared.view.lock();
        let leased = view.leases.get(&lease.task.row())?;
        if leased.closing || leased.lease_id() != Some(lease.lease) {
            return None;
        }
        let run = Run {
            executor: leased.executor.clone(),
            taken_at: leased.taken_at,
        };
        Some(Subject {
            live: leased.live.clone(),
            id: lease.task,
            origin: Origin::Lease(run),
        })
    }

    pub(super) fn renew(&mut self, beats: Vec<Beat>, lease: Duration, now: Time) -> Result<Vec<Renewal>, Fault> {
        let mut renewals = Vec::with_capacity(beats.len());
        for beat in beats {
            renewals.push(self.renew_one(beat, lease, now)?);
        }
        Ok(renewals)
    }

    fn renew_one(&mut self, beat: Beat, lease: Duration, now: Time) -> Result<Renewal, Fault> {
        let row = beat.lease.task.row();
        let expires_at = now.plus(lease);
        let progress = {
            let mut view = self.shared.view.lock();
            let Some(leased) = view.leases.get_mut(&row) else {
                return Ok(Renewal::Lost);
            };
            if leased.closing || leased.lease_id() != Some(beat.lease.lease) {
                return Ok(Renewal::Lost);
            }
            if let Some(held) = &mut leased.live.life.lease {
                held.expires_at = expires_at;
            }
            if beat.progress.is_some() {
                leased.live.progress.clone_from(&beat.progress);
            }
            beat.progress
        };
        if let Some(text) = super::row::write_progress(progress.as_ref()) {
            // Zero flags make the row one that is read in full.
            self.db
                .prepare_cached("UPDATE live SET progress = ?, flags = ifnull(flags, ?) WHERE row = ?")?
                .execute((text, super::row::PLAIN_FLAGS, row))?;
        }
        self.append_logs(row, beat.logs)?;
        let view = self.shared.view.lock();
        let Some(leased) = view.leases.get(&row) else {
            return Ok(Renewal::Lost);
        };
        let life = &leased.live.life;
        Ok(Renewal::Held {
            expires_at,
            cancel: life.cancel_requested_at.is_some(),
            pause: life.pause_requested_at.or(life.paused_at).is_some(),
        })
    }

    /// Keeps lines up to the cap.
    fn append_logs(&mut self, row: i64, lines: Vec<LogLine>) -> Result<(), Fault> {
        if lines.is_empty() {
            return Ok(());
        }
        let known = self.shared.view.lock().leases.get(&row).and_then(|l| l.log_lines);
        let mut kept: u64 = match known {
            Some(kept) => kept,
            None => self
                .db
                .prepare_cached("SELECT count(*) FROM log WHERE row = ?")?
                .query_row([row], |r| r.get::<_, i64>(0))? as u64,
        };
        for mut line in lines {
            if kept >= LOG_LINES_MAX {
                break;
            }
            if kept == LOG_LINES_MAX - 1 {
                line.message = format!("further lines were dropped: a task keeps {LOG_LINES_MAX}");
            }
            kept += 1;
            let seq = self.seq()?;
            self.db
                .prepare_cached("INSERT INTO log(row, seq, at, attempt, stream, message) VALUES (?, ?, ?, ?, ?, ?)")?
                .execute((
                    row,
                    seq as i64,
                    line.at.as_micros(),
                    line.attempt,
                    line.stream.code(),
                    line.message,
                ))?;
        }
        if known.is_none() {
            self.db
                .prepare_cached("UPDATE live SET flags = ifnull(flags, ?) | ? WHERE row = ?")?
                .execute((super::row::PLAIN_FLAGS, mark::LOGS, row))?;
        }
        if let Some(leased) = self.shared.view.lock().leases.get_mut(&row) {
            leased.live.marks |= mark::LOGS;
            // After a rollback this would be too high; the count is only trusted while the lease lasts, and a lost
            // group drops lines in any case.
            leased.log_lines = Some(kept);
        }
        Ok(())
    }

    pub(super) fn finish_all(
        &mut self,
        finishes: Vec<(Finish, Vec<Prepared>)>,
        now: Time,
    ) -> Result<Vec<Result<Applied, Rejected>>, Fault> {
        let mut results = Vec::with_capacity(finishes.len());
        for (finish, spawn) in finishes {
            results.push(self.finish(finish, spawn, now)?);
        }
        Ok(results)
    }

    fn finish(&mut self, finish: Finish, spawn: Vec<Prepared>, now: Time) -> Result<Result<Applied, Rejected>, Fault> {
        let Finish {
            lease,
            outcome,
            draw,
            usage,
            logs,
            progress,
            consumed,
            ..
        } = finish;
        let row = lease.task.row();
        let Some(mut subject) = self.held(lease) else {
            return Ok(Err(Rejected::LeaseLost(lease.task)));
        };
        let plan = match self.plan_spawn(&subject.live, &spawn, now)? {
            Ok(plan) => plan,
            Err(rejected) => return Ok(Err(rejected)),
        };
        if !logs.is_empty() {
            self.append_logs(row, logs)?;
            subject.live.marks |= mark::LOGS;
        }
        self.consume(row, &consumed)?;
        subject.live.progress = progress.or(subject.live.progress.take());
        let spawned = self.spawn(lease.task, &subject.live, spawn, plan, now)?;
        let Said {
            report,
            result,
            error,
            checkpoint,
        } = self.said(&subject.live, outcome, draw, now)?;
        let facts = Facts {
            usage,
            result,
            error,
            ..Facts::default()
        };
        if checkpoint.is_some() {
            subject.live.marks |= mark::CHECKPOINT;
        }
        let mut applied = Applied {
            spawned,
            ..Applied::default()
        };
        if let Err(rejected) = self.happen(subject, &Event::Holder(lease.lease, report), facts, now, &mut applied)? {
            return Ok(Err(rejected));
        }
        if let Some(state) = checkpoint {
            self.put_checkpoint(row, &state)?;
        }
        applied.state = match applied.ended.first() {
            Some((id, state)) if *id == lease.task => Some(*state),
            _ => self.subject(row, Some(lease.task))?.map(|s| s.live.life.state),
        };
        Ok(Ok(applied))
    }

    /// What the handler's words mean to the life cycle, and what they leave.
    fn said(&self, live: &LiveRow, outcome: Outcome, draw: f64, now: Time) -> Result<Said, Fault> {
        let met = match &outcome {
            Outcome::Wait { on, .. } => match on {
                Wait::Children => !self.memory.children.contains_key(&live.row),
                Wait::Signal { name, .. } => self
                    .db
                    .prepare_cached("SELECT 1 FROM inbox WHERE row = ? AND name = ?")?
                    .exists((live.row, name))?,
                Wait::Until(at) => *at <= now,
            },
            _ => false,
        };
        // Only a failure asks what the task says of retries, and only then is its row read.
        let (max_retries, policy) = match &outcome {
            Outcome::Retry { .. } => {
                let stored = super::reads::stored_task(&self.db, &self.shared.catalog, live.row)?;
                let spec = stored
                    .ok_or_else(|| Fault::Damaged(format!("row {} runs without a task", live.row)))?
                    .spec;
                (spec.max_retries(), spec.retry())
            }
            _ => (0, Default::default()),
        };
        Ok(outcome.said(live.life.failures, max_retries, policy, draw, now, met))
    }

    pub(super) fn checkpoint(
        &mut self,
        checkpoint: Checkpoint,
        spawn: Vec<Prepared>,
        now: Time,
    ) -> Result<Result<Applied, Rejected>, Fault> {
        let lease = checkpoint.lease;
        let (id, row) = (lease.task, lease.task.row());
        let Some(subject) = self.held(lease) else {
            return Ok(Err(Rejected::LeaseLost(id)));
        };
        let plan = match self.plan_spawn(&subject.live, &spawn, now)? {
            Ok(plan) => plan,
            Err(rejected) => return Ok(Err(rejected)),
        };
        let mut applied = Applied::default();
        if checkpoint.paused {
            let event = Event::Holder(lease.lease, Report::PauseStarted);
            if let Err(rejected) = self.happen(subject, &event, Facts::default(), now, &mut applied)? {
                return Ok(Err(rejected));
            }
        }
        let Some(mut subject) = self.held(lease) else {
            return Ok(Err(Rejected::LeaseLost(id)));
        };
        applied.spawned = self.spawn(id, &subject.live, spawn, plan, now)?;
        self.consume(row, &checkpoint.consumed)?;
        let before = subject.live.marks;
        if let Some(state) = &checkpoint.state {
            self.put_checkpoint(row, state)?;
            subject.live.marks |= mark::CHECKPOINT;
        }
        if let Some((name, result)) = &checkpoint.step {
            let seq = self.seq()?;
            self.db
                .prepare_cached("REPLACE INTO step(row, name, seq, result) VALUES (?, ?, ?, ?)")?
                .execute((row, name, seq as i64, result.get()))?;
            subject.live.marks |= mark::STEPS;
        }
        applied.state = Some(subject.live.life.state);
        let changed = subject.live.marks != before;
        if changed {
            // The row must know what else there is, for whoever claims the task after a crash.
            let cell = super::view::Cell::of_leased(&subject.live.life);
            self.group.count(subject.live.class, cell, -1);
            self.stay(subject.live, now)?;
        }
        let mut view = self.shared.view.lock();
        if let Some(leased) = view.leases.get_mut(&row)
            && !leased.checkpointed
        {
            leased.checkpointed = true;
            self.manifest_changed = true;
            if leased.outlives {
                self.agents.write_lease(row);
            }
        }
        Ok(Ok(applied))
    }

    pub(super) fn put_checkpoint(&self, row: i64, state: &Json) -> Result<(), Fault> {
        self.db
            .prepare_cached("REPLACE INTO checkpoint(row, state) VALUES (?, ?)")?
            .execute((row, state.get()))?;
        Ok(())
    }

    fn consume(&self, row: i64, consumed: &[u64]) -> Result<(), Fault> {
        for seq in consumed {
            self.db
                .prepare_cached("DELETE FROM inbox WHERE row = ? AND seq = ?")?
                .execute((row, *seq as i64))?;
        }
        Ok(())
    }

    fn plan_spawn(
        &self,
        parent: &LiveRow,
        spawn: &[Prepared],
        now: Time,
    ) -> Result<Result<Option<Plan>, Rejected>, Fault> {
        if spawn.is_empty() {
            return Ok(Ok(None));
        }
        let namespace = self.namespace_of(parent)?;
        Ok(self.plan(&namespace, spawn, now)?.map(Some))
    }

    fn namespace_of(&self, live: &LiveRow) -> Result<pensum_core::Name, Fault> {
        let class = self.shared.catalog.class(live.class);
        Ok(class
            .ok_or_else(|| super::row::damaged(live.row, "class"))?
            .namespace
            .clone())
    }

    fn spawn(
        &mut self,
        parent: TaskId,
        live: &LiveRow,
        spawn: Vec<Prepared>,
        plan: Option<Plan>,
        now: Time,
    ) -> Result<Vec<TaskId>, Fault> {
        let Some(plan) = plan else { return Ok(Vec::new()) };
        debug_assert!(spawn.iter().all(|s| {
            s.task
                .spec
                .details
                .as_ref()
                .is_some_and(|d| d.parent_id == Some(parent))
        }));
        let namespace = self.namespace_of(live)?;
        let source = Source {
            namespace: &namespace,
            actor: None,
            now,
        };
        Ok(self
            .write_batch(&source, spawn, plan)?
            .into_iter()
            .map(|e| e.id)
            .collect())
    }
}
