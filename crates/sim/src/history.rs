//! What happened, in the order in which it happened: the only thing that the checker believes.

mod agents;
mod queues;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use parking_lot::Mutex;
use pensum_core::queue::{QueueRecord, QueueSettings};
use pensum_core::{LeaseId, State, TaskId, Time};

pub use agents::{AgentName, Executor, Remote};
pub use queues::{Queued, Standing};

use crate::scenario::Order;

/// The error type of a task that ended with the process that accepted it.
pub(crate) const PROCESS_ENDED: &str = "process_ended";

/// One thing that happened.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When, since the start of the world.
    pub at: Duration,
    /// What.
    pub what: What,
}

/// A node, and which of its incarnations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName {
    /// Its number in the plan, from 0.
    pub node: usize,
    /// How often it was started before.
    pub life: u32,
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.node + 1)?;
        if self.life > 0 {
            write!(f, "'{}", self.life)?;
        }
        Ok(())
    }
}

/// How a call to the store went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Nothing was done.
    Error,
    /// It was done, and the answer got lost.
    LostReply,
    /// It took this long to arrive.
    LateRequest(Duration),
    /// Its answer took this long.
    LateReply(Duration),
    /// It was done twice.
    Duplicate,
    /// It answered what was true before.
    Stale,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Error => f.write_str("fails, and nothing is done"),
            Fault::LostReply => f.write_str("is done, but its answer is lost"),
            Fault::LateRequest(by) => write!(f, "arrives {} s late", by.as_secs_f64()),
            Fault::LateReply(by) => write!(f, "is answered {} s late", by.as_secs_f64()),
            Fault::Duplicate => f.write_str("is done twice"),
            Fault::Stale => f.write_str("answers what was true before"),
        }
    }
}

/// How the run of a handler ended, as the handler itself knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Returned {
    /// It is done.
    Done,
    /// It failed, and may be tried again.
    Failed,
    /// It failed for good.
    FailedForGood,
    /// It panics.
    Panicked,
    /// It stopped as it was asked to.
    Stopped,
    /// It wants to be run again, or to wait.
    Later,
}

/// What can happen.
#[derive(Clone, Debug)]
pub enum What {
    /// A process begins.
    NodeStarts(NodeName),
    /// A process ends without a word.
    NodeDies(NodeName),
    /// A process ends in good order.
    NodeLeaves(NodeName),
    /// A process stands still.
    NodeFreezes(NodeName, Duration),
    /// It goes on.
    NodeThaws(NodeName),
    /// The store answers nobody.
    StoreAway(Duration),
    /// It answers again.
    StoreBack,
    /// Nothing goes wrong any more.
    Healed,
    /// A call to the store goes wrong.
    Fault {
        /// Who called, what, and the how manieth call of that kind it was, such as `n1 claim 3`.
        call: String,
        /// How.
        fault: Fault,
    },
    /// A client sends a batch.
    Submits {
        /// The number of the submission.
        submission: u64,
        /// To whom.
        node: NodeName,
        /// The labels of its tasks.
        labels: Vec<u32>,
    },
    /// The client hears that the batch is kept: for each task its label, its id, and whether it is new.
    Acknowledged {
        /// The number of the submission.
        submission: u64,
        /// The tasks.
        tasks: Vec<(u32, TaskId, bool)>,
    },
    /// The client hears that nothing was kept, and why.
    Refused {
        /// The number of the submission.
        submission: u64,
        /// Why.
        why: String,
        /// It is not known whether the batch was kept.
        unsure: bool,
    },
    /// A person asks for something.
    Orders {
        /// The number of the request.
        request: u64,
        /// On which node.
        node: NodeName,
        /// Of which task.
        task: TaskId,
        /// What.
        order: Order,
    },
    /// The person is answered: true for yes, false for no, `None` when nobody knows.
    Ordered {
        /// The number of the request.
        request: u64,
        /// The answer.
        answer: Option<bool>,
    },
    /// The store keeps a batch: the tasks that are new, with the labels in their parameters.
    Kept(Vec<(TaskId, String)>),
    /// The store carries out a change of a queue: this is what it allows now.
    Queue {
        /// Its name.
        queue: String,
        /// Its settings.
        settings: Box<QueueSettings>,
        /// Nothing of it may start.
        paused: bool,
    },
    /// Something of queues with limits, or of tasks that are not durable.
    Queued(Queued),
    /// Something of agents or breakers.
    Remote(Remote),
    /// The store gives a task to a node, or to an agent.
    Granted {
        /// The task.
        task: TaskId,
        /// The label in its parameters.
        label: String,
        /// The fence.
        lease: LeaseId,
        /// To whom.
        executor: Executor,
        /// Which attempt.
        attempt: u32,
        /// Its queue.
        queue: String,
        /// Its key.
        key: Option<String>,
        /// Its priority, 1 to 5.
        priority: u8,
        /// How many units of its queue's rate it takes.
        units: u32,
        /// The claim's time.
        now: Time,
        /// When the store took it to start.
        starts: Time,
        /// When the lease ends.
        until: Time,
        /// Which claim gave it.
        claim: u64,
    },
    /// The store renews a lease.
    Renewed {
        /// The task.
        task: TaskId,
        /// The fence.
        lease: LeaseId,
        /// When it ends now.
        until: Time,
    },
    /// The store says that a lease is lost.
    LeaseLost {
        /// The task.
        task: TaskId,
        /// The fence.
        lease: LeaseId,
        /// What was tried with it.
        verb: &'static str,
    },
    /// The store takes the end of a run.
    Finished {
        /// The task.
        task: TaskId,
        /// The fence.
        lease: LeaseId,
        /// What the node reported.
        outcome: &'static str,
        /// Where the task is now.
        state: Option<State>,
    },
    /// The store takes a checkpoint.
    Saved {
        /// The task.
        task: TaskId,
        /// The fence.
        lease: LeaseId,
    },
    /// Tasks have ended.
    Ended(Vec<(TaskId, State)>),
    /// The store takes back what was overdue by this time.
    Reaped {
        /// By which time.
        now: Time,
        /// How many leases.
        leases: u64,
    },
    /// The store carries a command out.
    Commanded {
        /// The task.
        task: TaskId,
        /// What was asked for.
        command: &'static str,
        /// Where the task is now.
        state: Option<State>,
    },
    /// The store removes a task.
    Deleted(TaskId),
    /// The store puts an ended task back.
    Revived(TaskId),
    /// A handler starts.
    Runs {
        /// The number of the run, unlike any other in this world.
        run: u64,
        /// The task.
        task: TaskId,
        /// Where.
        executor: Executor,
        /// Which attempt.
        attempt: u32,
    },
    /// A handler has done a durable step.
    StepDone {
        /// The number of the run.
        run: u64,
        /// The task.
        task: TaskId,
        /// Which step.
        step: u32,
    },
    /// A handler hears that the step is kept.
    StepKept {
        /// The number of the run.
        run: u64,
        /// The task.
        task: TaskId,
        /// Which step.
        step: u32,
    },
    /// A handler returns.
    Returns {
        /// The number of the run.
        run: u64,
        /// The task.
        task: TaskId,
        /// What.
        how: Returned,
    },
}

impl What {
    pub(crate) fn of_queue(queue: &QueueRecord) -> What {
        What::Queue {
            queue: queue.name.to_string(),
            settings: Box::new(queue.settings.clone()),
            paused: queue.paused_at.is_some(),
        }
    }
}

/// An append-only record.
pub(crate) struct History {
    start: tokio::time::Instant,
    entries: Mutex<Vec<Entry>>,
}

impl History {
    pub(crate) fn new(start: tokio::time::Instant) -> History {
        History {
            start,
            entries: Mutex::default(),
        }
    }

    pub(crate) fn add(&self, what: What) {
        let at = self.start.elapsed();
        self.entries.lock().push(Entry { at, what });
    }

    /// How long the world has lived.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut *self.entries.lock())
    }
}

/// Makes a story of entries: tasks by their labels, leases by the order in which they were given.
#[derive(Default)]
pub struct Names {
    tasks: BTreeMap<TaskId, String>,
    leases: BTreeMap<LeaseId, usize>,
}

impl Names {
    /// The names of what these entries tell of.
    pub fn of(entries: &[Entry]) -> Names {
        let mut names = Names::default();
        for entry in entries {
            match &entry.what {
                What::Kept(tasks) => {
                    for (task, label) in tasks {
                        names.tasks.entry(*task).or_insert_with(|| label.clone());
                    }
                }
                What::Acknowledged { tasks, .. } => {
                    for (label, task, is_new) in tasks {
                        if *is_new {
                            names.tasks.entry(*task).or_insert_with(|| format!("t{label}"));
                        }
                    }
                }
                What::Granted { task, label, lease, .. } => {
                    names.tasks.entry(*task).or_insert_with(|| label.clone());
                    let next = names.leases.len() + 1;
                    names.leases.entry(*lease).or_insert(next);
                }
                _ => {}
            }
        }
        names
    }

    /// What a task is called.
    pub fn task(&self, task: TaskId) -> String {
        self.tasks
            .get(&task)
            .cloned()
            .unwrap_or_else(|| format!("row {}", task.row()))
    }

    fn lease(&self, lease: LeaseId) -> String {
        match self.leases.get(&lease) {
            Some(number) => format!("lease {number}"),
            None => "an unknown lease".to_owned(),
        }
    }

    fn ended(&self, tasks: &[(TaskId, State)]) -> String {
        let one = |(task, state): &(TaskId, State)| format!("{} is {state}", self.task(*task));
        tasks.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// One line of the story.
    pub fn line(&self, entry: &Entry, dawn: Time) -> String {
        let text = self.text(&entry.what, dawn);
        format!("{:>10.3} s  {text}", entry.at.as_secs_f64())
    }

    fn text(&self, what: &What, dawn: Time) -> String {
        let task = |task: &TaskId| self.task(*task);
        let lease = |lease: &LeaseId| self.lease(*lease);
        let clock = |time: &Time| format!("{:.3} s", (time.as_micros() - dawn.as_micros()) as f64 / 1e6);
        match what {
            What::NodeStarts(node) => format!("{node} starts"),
            What::NodeDies(node) => format!("{node} DIES"),
            What::NodeLeaves(node) => format!("{node} leaves in good order"),
            What::NodeFreezes(node, by) => format!("{node} STANDS STILL for {} s", by.as_secs_f64()),
            What::NodeThaws(node) => format!("{node} goes on"),
            What::StoreAway(by) => format!("the store is AWAY for {} s", by.as_secs_f64()),
            What::StoreBack => "the store is back".to_owned(),
            What::Healed => "nothing goes wrong any more".to_owned(),
            What::Fault { call, fault } => format!("the call `{call}` {fault}"),
            What::Submits { node, labels, .. } => {
                let labels: Vec<String> = labels.iter().map(|label| format!("t{label}")).collect();
                format!("a client submits {} to {node}", labels.join(", "))
            }
            What::Acknowledged { tasks, .. } => {
                let one = |(label, id, is_new): &(u32, TaskId, bool)| match is_new {
                    true => format!("t{label}"),
                    false => format!("t{label} (which is {})", task(id)),
                };
                format!(
                    "the client hears that it is kept: {}",
                    tasks.iter().map(one).collect::<Vec<_>>().join(", ")
                )
            }
            What::Refused { why, unsure, .. } => match unsure {
                true => format!("the client does not know what became of it: {why}"),
                false => format!("the client is refused: {why}"),
            },
            What::Orders {
                node, task: id, order, ..
            } => format!("somebody asks {node}: {order:?} {}", task(id)),
            What::Ordered { answer, .. } => match answer {
                Some(true) => "… it is done".to_owned(),
                Some(false) => "… it is refused".to_owned(),
                None => "… nobody knows whether it is done".to_owned(),
            },
            What::Kept(tasks) => {
                let labels: Vec<&str> = tasks.iter().map(|(_, label)| label.as_str()).collect();
                format!("the store keeps {}", labels.join(", "))
            }
            What::Remote(what) => what.text(self, dawn),
            What::Queued(what) => what.text(self, dawn),
            What::Queue {
                queue,
                settings,
                paused,
            } => {
                let width = settings.max_concurrent;
                let width = width.map_or("as many as may".to_owned(), |max| max.to_string());
                let limits = queues::limits(settings);
                let paused = if *paused { ", and is PAUSED" } else { "" };
                format!("the store lets {width} of {queue} run{limits}{paused}")
            }
            What::Granted {
                task: id,
                lease: fence,
                executor,
                attempt,
                queue,
                key,
                until,
                ..
            } => {
                let queue = match queue.as_str() {
                    "default" => String::new(),
                    queue => format!(" of {queue}"),
                };
                let key = key.as_ref().map(|key| format!(" with key {key}")).unwrap_or_default();
                format!(
                    "the store gives {}{queue}{key} to {executor}: attempt {attempt}, {} until {}",
                    task(id),
                    lease(fence),
                    clock(until)
                )
            }
            What::Renewed {
                task: id,
                lease: fence,
                until,
            } => format!("{} of {} is renewed until {}", lease(fence), task(id), clock(until)),
            What::LeaseLost {
                task: id,
                lease: fence,
                verb,
            } => format!("a {verb} of {} is refused: {} is lost", task(id), lease(fence)),
            What::Finished {
                task: id,
                lease: fence,
                outcome,
                state,
            } => {
                let state = state.map_or("gone".to_owned(), |state| state.to_string());
                format!(
                    "the store takes `{outcome}` of {} under {}: it is {state}",
                    task(id),
                    lease(fence)
                )
            }
            What::Saved { task: id, lease: fence } => {
                format!("the store keeps a checkpoint of {} under {}", task(id), lease(fence))
            }
            What::Ended(tasks) => format!("ended: {}", self.ended(tasks)),
            What::Reaped { now, leases } => {
                format!("the reaper takes {leases} lease(s) back that ran out by {}", clock(now))
            }
            What::Commanded {
                task: id,
                command,
                state,
            } => {
                let state = state.map_or("gone".to_owned(), |state| state.to_string());
                format!("the store takes `{command}` of {}: it is {state}", task(id))
            }
            What::Deleted(id) => format!("the store removes {}", task(id)),
            What::Revived(id) => format!("the store puts {} back", task(id)),
            What::Runs {
                run,
                task: id,
                executor,
                attempt,
            } => format!("{executor} runs {} (run {run}, attempt {attempt})", task(id)),
            What::StepDone { run, task: id, step } => format!("run {run} has done step {step} of {}", task(id)),
            What::StepKept { run, task: id, step } => {
                format!("run {run} hears that step {step} of {} is kept", task(id))
            }
            What::Returns { run, task: id, how } => format!("run {run} of {} returns: {how:?}", task(id)),
        }
    }

    /// A number that two runs of one plan must agree on.
    pub fn hash(&self, entries: &[Entry], dawn: Time) -> u64 {
        let mut hasher = DefaultHasher::new();
        for entry in entries {
            self.line(entry, dawn).hash(&mut hasher);
        }
        hasher.finish()
    }
}
