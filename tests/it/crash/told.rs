//! The history as the store tells it of each task: leases from the starts and ends of its attempts.

use std::collections::BTreeMap;

use pensum_core::transition::EventKind;
use pensum_core::{LeaseId, State, TaskId, Time};
use pensum_sim::{Executor, Final, NodeName, What};
use serde::Deserialize;

use super::record::Effect;

/// The label in a task's parameters.
pub(super) fn label(task: &Final) -> String {
    #[derive(Deserialize)]
    struct Labelled {
        label: String,
    }
    task.record.spec.parameters.to::<Labelled>().unwrap().label
}

/// What the store tells, not yet in order.
pub(super) struct Told {
    /// When, which comes first of what happened in the same microsecond, and what.
    pub(super) lines: Vec<(Time, u8, What)>,
    /// When and where the runs of each attempt started.
    ran: BTreeMap<(TaskId, u32), Vec<(Time, Executor)>>,
    leases: u128,
}

/// A lease of a task, as far as its history was read.
struct Open {
    lease: LeaseId,
    attempt: u32,
    /// Where its beginning is told.
    granted: usize,
}

impl Told {
    /// A task must be kept before anything is told of it.
    const FIRST: u8 = 0;
    /// Most of what happens.
    pub(super) const BETWEEN: u8 = 1;
    /// What was taken back in the same moment as others ended: they had not lost their leases before.
    const LOST: u8 = 2;
    /// Starts follow from ends.
    const START: u8 = 3;
    /// What a run does follows from its start.
    pub(super) const AFTER: u8 = 4;

    pub(super) fn new(effects: &[Effect], executors: &BTreeMap<i32, Executor>) -> Told {
        let mut ran: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for effect in effects.iter().filter(|effect| effect.is_start()) {
            if let Some(executor) = executors.get(&effect.parent) {
                let runs = ran.entry((effect.task, effect.attempt)).or_default();
                runs.push((effect.at, *executor));
            }
        }
        Told {
            lines: Vec::new(),
            ran,
            leases: 0,
        }
    }

    fn line(&mut self, at: Time, rank: u8, what: What) {
        self.lines.push((at, rank, what));
    }

    /// Tells of one task, which was kept by the time that its client heard of it.
    pub(super) fn task(&mut self, task: &Final, acknowledged: Option<Time>) {
        let id = task.record.id;
        let mut at = task.record.created_at;
        // It was asked for then, and may have waited: for a store that was away, or for the end of what had its unique key.
        let next = task.events.iter().map(|event| event.at).find(|next| *next > at);
        let kept = next
            .into_iter()
            .chain(acknowledged)
            .min()
            .map_or(at, |kept| kept.max(at));
        self.line(kept, Told::FIRST, What::Kept(vec![(id, label(task))]));
        let mut open: Option<Open> = None;
        for (number, event) in task.events.iter().enumerate() {
            // Whoever comes back to an attempt is shown by the store to have started when the attempt did.
            at = event.at.max(Time::from_micros(at.as_micros() + 1));
            if event.kind == EventKind::Started {
                // One that is still open is left so: the judge shall see that there are two.
                let next = task.events.get(number + 1).map_or(Time::MAX, |next| next.at);
                let run = self.run(id, event.attempt, at, next);
                open = Some(self.grant(task, event.attempt, at, run));
                at = run.map_or(at, |(ran_at, _)| ran_at);
                continue;
            }
            let crashed = event
                .error
                .as_ref()
                .is_some_and(|error| matches!(&*error.kind, "crashed_node" | "crashed_agent"));
            let (outcome, state) = match event.kind {
                EventKind::Completed => ("done", State::Completed),
                EventKind::Failed if !crashed => ("failed", State::Failed),
                EventKind::Cancelled => ("cancelled", State::Cancelled),
                EventKind::Retrying => ("failed", State::Queued),
                EventKind::Released | EventKind::Yielded => ("yielded", State::Queued),
                EventKind::Crashed | EventKind::LeaseExpired | EventKind::Failed => {
                    if let Some(lost) = open.take() {
                        self.close(lost, at);
                        self.line(at, Told::LOST, What::Reaped { now: at, leases: 1 });
                    }
                    self.ended(id, event.kind, (at, Told::LOST));
                    continue;
                }
                EventKind::Retried => {
                    self.line(at, Told::BETWEEN, What::Revived(id));
                    continue;
                }
                _ => continue,
            };
            match open.take() {
                Some(ended) => {
                    let lease = ended.lease;
                    self.close(ended, at);
                    let state = Some(state);
                    let finished = What::Finished {
                        task: id,
                        lease,
                        outcome,
                        state,
                    };
                    self.line(at, Told::BETWEEN, finished);
                }
                // An end that needs a run, and there was none.
                None if outcome == "done" || state == State::Queued => {
                    let (lease, state) = (LeaseId(0), Some(state));
                    let finished = What::Finished {
                        task: id,
                        lease,
                        outcome,
                        state,
                    };
                    self.line(at, Told::BETWEEN, finished);
                }
                None => {}
            }
            self.ended(id, event.kind, (at, Told::BETWEEN));
        }
    }

    /// The run that followed from a claim before anything else was told of the task.
    ///
    /// A node reads the clock before it claims, and may then wait for the end of what had the key; when its run started it
    /// surely had its turn.
    fn run(&self, task: TaskId, attempt: u32, from: Time, to: Time) -> Option<(Time, Executor)> {
        let mut runs = self.ran.get(&(task, attempt))?.iter().copied();
        runs.find(|(at, _)| from <= *at && *at < to)
    }

    fn grant(&mut self, task: &Final, attempt: u32, now: Time, run: Option<(Time, Executor)>) -> Open {
        self.leases += 1;
        let (id, lease) = (task.record.id, LeaseId(self.leases));
        let key = task.record.spec.key.as_ref().map(ToString::to_string);
        let nobody = Executor::Node(NodeName { node: 0, life: 0 });
        let granted = What::Granted {
            task: id,
            label: label(task),
            lease,
            executor: run.map_or(nobody, |(_, executor)| executor),
            attempt,
            // Without a run nothing is known of its key's turn.
            queue: task.record.spec.queue.to_string(),
            key: key.filter(|_| run.is_some()),
            priority: task.record.spec.priority as u8,
            units: task.record.spec.units(),
            now,
            starts: now,
            until: Time::MAX,
            claim: self.leases as u64,
        };
        self.line(run.map_or(now, |(ran_at, _)| ran_at), Told::START, granted);
        Open {
            lease,
            attempt,
            granted: self.lines.len() - 1,
        }
    }

    /// A lease lasted until then.
    fn close(&mut self, open: Open, at: Time) {
        match &mut self.lines[open.granted].2 {
            What::Granted { until, attempt, .. } if *attempt == open.attempt => *until = at,
            other => panic!("{other:?} gives no lease"),
        }
    }

    fn ended(&mut self, task: TaskId, kind: EventKind, (at, rank): (Time, u8)) {
        let state = match kind {
            EventKind::Completed => State::Completed,
            EventKind::Failed => State::Failed,
            EventKind::Cancelled => State::Cancelled,
            _ => return,
        };
        self.line(at, rank, What::Ended(vec![(task, state)]));
    }
}
