//! What queues take and drop, and who answers for tasks that are not durable, in the history.

use std::time::Duration;

use pensum_core::queue::{QueueSettings, Rate, WhenFull};
use pensum_core::time::Span;
use pensum_core::{NodeId, TaskId, Time};

use super::{Names, NodeName};

/// A task that has not ended, as the store has it.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// The task.
    pub task: TaskId,
    /// It has not ended, and neither runs nor waits for what it asked for while it ran.
    pub waits: bool,
    /// It holds a lease.
    pub runs: bool,
    /// From when on it can be claimed, but for its key; nothing while it waits for anything but its time.
    pub due: Option<Time>,
    /// Since when it counts as ready, once it is.
    pub since: Time,
    /// It has never started.
    pub fresh: bool,
}

/// What can happen to queues with limits, and to tasks that are not durable.
#[derive(Clone, Debug)]
pub enum Queued {
    /// The store has judged a submission to a queue with settings.
    Judged {
        /// Its name.
        queue: String,
        /// What it allowed.
        settings: Box<QueueSettings>,
        /// By the clock of whoever submitted.
        now: Time,
        /// What was in it before.
        before: Vec<Standing>,
        /// How many tasks came to it.
        new: usize,
        /// How many of them are not to wait.
        rejecting: usize,
        /// What it dropped for them.
        dropped: Vec<TaskId>,
        /// The limit for which it refused them.
        refused: Option<&'static str>,
        /// How many tasks there are now that were not there before, of the whole submission.
        added: usize,
    },
    /// A process answers for tasks that are not durable.
    Accepted {
        /// The process.
        process: NodeId,
        /// The tasks.
        tasks: Vec<TaskId>,
    },
    /// The store hears that a process lives.
    Beats {
        /// Whose.
        node: NodeName,
        /// The process.
        process: NodeId,
        /// By its clock when.
        now: Time,
        /// How long it may be silent.
        ttl: Duration,
    },
    /// The store hears that a process ends.
    Left {
        /// Whose.
        node: NodeName,
        /// The process.
        process: NodeId,
    },
    /// The store has cancelled a task for what befell its queue or its process, or has done so before somebody asks.
    Cancelled {
        /// The task.
        task: TaskId,
        /// The type of its error.
        kind: String,
        /// It had started.
        started: bool,
        /// Its queue.
        queue: String,
        /// When it was enqueued.
        created: Time,
        /// By whose clock when.
        now: Time,
    },
    /// The store has ended whatever was overdue by this time.
    Swept {
        /// By which time.
        now: Time,
    },
}

impl Queued {
    pub(super) fn text(&self, names: &Names, dawn: Time) -> String {
        let clock = |time: Time| format!("{:.3} s", (time.as_micros() - dawn.as_micros()) as f64 / 1e6);
        let list = |tasks: &[TaskId]| {
            let tasks: Vec<String> = tasks.iter().map(|task| names.task(*task)).collect();
            tasks.join(", ")
        };
        match self {
            Queued::Judged {
                queue,
                before,
                new,
                dropped,
                refused,
                ..
            } => {
                let waiting = before.iter().filter(|task| task.waits).count();
                let ready = before.iter().filter(|task| task.due.is_some()).count();
                let running = before.iter().filter(|task| task.runs).count();
                let said = match refused {
                    Some(limit) => format!("is REFUSED for its {limit}"),
                    None if dropped.is_empty() => "is taken".to_owned(),
                    None => format!("is taken, and {} DROPPED for it", list(dropped)),
                };
                format!(
                    "a submission of {new} to {queue} {said}; {waiting} waited there, {ready} of them for their turn or time, and \
                     {running} ran"
                )
            }
            Queued::Accepted { process, tasks } => format!("{process} answers for {}", list(tasks)),
            Queued::Beats { node, now, ttl, .. } => {
                format!(
                    "the store hears that {node} lives at {} + {} s",
                    clock(*now),
                    ttl.as_secs_f64()
                )
            }
            Queued::Left { node, .. } => format!("the store hears that {node} ends"),
            Queued::Cancelled { task, kind, queue, .. } => {
                format!("{} of {queue} is cancelled: {kind}", names.task(*task))
            }
            Queued::Swept { now } => format!("nothing is overdue by {}", clock(*now)),
        }
    }

    /// True for what a story can do without.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self, Queued::Beats { .. } | Queued::Swept { .. })
    }
}

/// What a queue asks for, but for its width.
pub(super) fn limits(settings: &QueueSettings) -> String {
    let mut said = Vec::new();
    let seconds = |span: Span| span.0.as_secs_f64();
    said.extend(settings.max_depth.map(|max| format!("holds {max}")));
    said.extend(settings.max_age.map(|age| format!("keeps them {} s", seconds(age))));
    if settings.max_depth.is_some() || settings.max_age.is_some() {
        said.push(match settings.when_full {
            WhenFull::Refuse => "refuses then".to_owned(),
            WhenFull::DropOldest => "drops the oldest then".to_owned(),
        });
    }
    let rate = |rate: Rate| {
        format!(
            "starts {} in {} s and {} at once",
            rate.starts,
            seconds(rate.per),
            rate.burst
        )
    };
    said.extend(settings.rate.map(rate));
    said.extend(
        settings
            .ageing
            .map(|ageing| format!("lets them rise each {} s", seconds(ageing))),
    );
    said.extend(settings.fair.then(|| "lets keys take turns".to_owned()));
    said.extend((!settings.persistent).then(|| "is not durable".to_owned()));
    said.into_iter().map(|part| format!(", {part}")).collect()
}
