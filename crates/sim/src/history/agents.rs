//! Agents and breakers in the history.

use std::fmt;
use std::time::Duration;

use pensum_core::agent::AgentRecord;
use pensum_core::breaker::BreakerRecord;
use pensum_core::{ExecutionId, LeaseId, NodeId, TaskId, Time};

use super::{Names, NodeName};

/// A process of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentName {
    /// The agent's number in the plan, from 0.
    pub agent: usize,
    /// How many processes of it were started before.
    pub life: u32,
}

impl fmt::Display for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a{}", self.agent + 1)?;
        if self.life > 0 {
            write!(f, "'{}", self.life)?;
        }
        Ok(())
    }
}

/// Who holds a lease, and runs what is leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Executor {
    /// A node.
    Node(NodeName),
    /// A session of an agent.
    Agent {
        /// The agent's number in the plan, from 0.
        agent: usize,
        /// The session.
        session: NodeId,
    },
}

impl fmt::Display for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Executor::Node(node) => node.fmt(f),
            Executor::Agent { agent, session } => write!(f, "a{}/{:04x}", agent + 1, session.0 >> 48),
        }
    }
}

/// What can happen to agents and breakers.
#[derive(Clone, Debug)]
pub enum Remote {
    /// A process of an agent begins.
    Starts(AgentName),
    /// It ends: how.
    Ends(AgentName, &'static str),
    /// It stands still.
    Freezes(AgentName, Duration),
    /// It goes on.
    Thaws(AgentName),
    /// The store carries out a change of an agent: this is what it is now; nothing when it is removed.
    Changed {
        /// Its id.
        agent: String,
        /// What was asked.
        verb: &'static str,
        /// What it is now.
        record: Option<Box<AgentRecord>>,
    },
    /// The store notes that an agent is heard.
    Heard {
        /// Its id.
        agent: String,
        /// By whose clock when.
        now: Time,
    },
    /// The store answers a claim of an agent.
    Asks {
        /// Its id.
        agent: String,
        /// The session.
        session: NodeId,
        /// When the claim arrived, since the start of the world.
        since: Duration,
        /// What it said it has.
        have: Vec<ExecutionId>,
        /// What it is given, new or again.
        given: Vec<LeaseId>,
    },
    /// The store gives a lease again to whoever has it already.
    GivenAgain {
        /// The task.
        task: TaskId,
        /// The fence.
        lease: LeaseId,
        /// To whom.
        executor: Executor,
    },
    /// An agent is told what became of a result.
    Answered {
        /// Who sent it.
        agent: AgentName,
        /// The task.
        task: TaskId,
        /// The fence.
        lease: LeaseId,
        /// What became of it.
        status: &'static str,
        /// The lease was another agent's, and so it was sent in a poll.
        foreign: bool,
    },
    /// An agent said something that no agent should be told is wrong.
    Misunderstood(AgentName, String),
    /// A breaker is like this now; nothing when it is removed.
    Breaker {
        /// Its name.
        breaker: String,
        /// What it is now.
        record: Option<Box<BreakerRecord>>,
    },
}

impl Remote {
    pub(super) fn text(&self, names: &Names, dawn: Time) -> String {
        let clock = |time: Time| format!("{:.3} s", (time.as_micros() - dawn.as_micros()) as f64 / 1e6);
        match self {
            Remote::Starts(agent) => format!("{agent} starts"),
            Remote::Ends(agent, how) => format!("{agent} {how}"),
            Remote::Freezes(agent, by) => format!("{agent} STANDS STILL for {} s", by.as_secs_f64()),
            Remote::Thaws(agent) => format!("{agent} goes on"),
            Remote::Changed {
                agent,
                verb,
                record: None,
            } => format!("the store takes `{verb}` of {agent}: it is gone"),
            Remote::Changed {
                agent,
                verb,
                record: Some(record),
            } => {
                let session = record
                    .session
                    .map_or("nobody".to_owned(), |s| format!("{:04x}", s.0 >> 48));
                let skills: Vec<&str> = record.settings.capabilities.iter().map(|name| &**name).collect();
                let draining = if record.draining_at.is_some() { ", DRAINING" } else { "" };
                let cores = record.settings.resources.as_ref().and_then(|r| r.cpu_cores);
                format!(
                    "the store takes `{verb}` of {agent}: {} slot(s), {} core(s), {}{draining}; {session} speaks for it",
                    record.settings.max_concurrent_tasks,
                    cores.unwrap_or_default(),
                    skills.join(" "),
                )
            }
            Remote::Heard { agent, now } => format!("the store hears of {agent} at {}", clock(*now)),
            Remote::Asks {
                agent,
                session,
                have,
                given,
                ..
            } => {
                let have: Vec<String> = have
                    .iter()
                    .map(|e| format!("{}.{}", names.task(e.task), e.attempt))
                    .collect();
                format!(
                    "the store answers {agent}/{:04x}, which has [{}], with {} task(s)",
                    session.0 >> 48,
                    have.join(" "),
                    given.len()
                )
            }
            Remote::GivenAgain { task, lease, executor } => {
                format!(
                    "the store gives {} of {} again to {executor}",
                    names.lease(*lease),
                    names.task(*task)
                )
            }
            Remote::Answered {
                agent,
                task,
                lease,
                status,
                foreign,
            } => {
                let whose = if *foreign { " of another agent" } else { "" };
                let (task, lease) = (names.task(*task), names.lease(*lease));
                format!("{agent} hears of its result{whose} of {task} under {lease}: {status}")
            }
            Remote::Misunderstood(agent, why) => format!("{agent} is told that it is wrong: {why}"),
            Remote::Breaker { breaker, record: None } => format!("{breaker} is gone"),
            Remote::Breaker {
                breaker,
                record: Some(record),
            } => match record.memory.opened_at {
                None => format!("{breaker} lets everything start"),
                Some(since) => format!("{breaker} is OPEN since {}", clock(since)),
            },
        }
    }

    /// True for what a story can do without.
    pub(crate) fn is_idle(&self) -> bool {
        match self {
            Remote::Heard { .. } => true,
            Remote::Asks { given, .. } => given.is_empty(),
            _ => false,
        }
    }
}
