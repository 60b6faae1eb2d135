//! What the judge of the worlds cannot see from outside: that agents run what they can and no more, and what befalls tasks of
//! queues that drop, or that are not durable.

use std::collections::BTreeMap;
use std::time::Duration;

use pensum_core::capacity::DROPPED;
use pensum_core::task::Execution;
use pensum_core::transition::EventKind;
use pensum_core::{TaskId, Time};
use pensum_sim::{
    Action, AgentPlan, Entry, Executor, Outcome, QueueOrder, QueuePlan, Scenario, TaskPlan, What, agent_id,
};

use super::client::name;
use super::place::Kind;
use super::told::label;

/// What is broken, a sentence each.
pub(super) fn broken(
    scenario: &Scenario,
    kind: Kind,
    outcome: &Outcome,
    executions: &BTreeMap<TaskId, Vec<Execution>>,
) -> Vec<String> {
    let plans: BTreeMap<String, &TaskPlan> = scenario.tasks().map(|plan| (name(plan.label), plan)).collect();
    let mut broken = able(scenario, outcome, executions, &plans);
    broken.extend(crowded(scenario, &outcome.entries));
    broken.extend(cancelled(scenario, outcome, &plans));
    if kind == Kind::Sqlite {
        broken.extend(outlived(outcome));
    }
    broken
}

fn can(agent: &AgentPlan, plan: &TaskPlan) -> bool {
    plan.demand
        .as_ref()
        .is_some_and(|demand| match demand.skills.is_empty() {
            true => agent.common,
            false => demand.skills.iter().all(|skill| agent.skills.contains(skill)),
        })
}

/// Nobody runs what it cannot, as the runs say themselves, and as the store says.
fn able(
    scenario: &Scenario,
    outcome: &Outcome,
    executions: &BTreeMap<TaskId, Vec<Execution>>,
    plans: &BTreeMap<String, &TaskPlan>,
) -> Vec<String> {
    let labels: BTreeMap<TaskId, String> = outcome.tasks.iter().map(|task| (task.record.id, label(task))).collect();
    let is_able = |task: TaskId, agent: Option<usize>| {
        let Some(plan) = labels.get(&task).and_then(|label| plans.get(label)) else {
            return true;
        };
        match agent {
            Some(agent) => scenario.agents.get(agent).is_some_and(|agent| can(agent, plan)),
            None => plan.demand.as_ref().is_none_or(|demand| demand.skills.is_empty()),
        }
    };
    let number = |id: &str| (0..scenario.agents.len()).find(|agent| agent_id(*agent) == id);
    let is_of_agent = |task: TaskId, attempt: u32| {
        let mut attempts = executions.get(&task).into_iter().flatten();
        attempts.any(|execution| execution.attempt == attempt && number(&execution.executor_id).is_some())
    };
    let ran = outcome.entries.iter().filter_map(|entry| match entry.what {
        What::Runs {
            task,
            executor,
            attempt,
            ..
        } => match executor {
            Executor::Agent { agent, .. } => Some((task, Some(agent))),
            // A run whose agent died before it could look whose it is.
            Executor::Node(_) if is_of_agent(task, attempt) => None,
            Executor::Node(_) => Some((task, None)),
        },
        _ => None,
    });
    let told = executions.iter().flat_map(|(task, executions)| {
        let executors = executions.iter().map(|execution| number(&execution.executor_id));
        executors.map(|agent| (*task, agent))
    });
    let wrong = ran.chain(told).filter(|(task, agent)| !is_able(*task, *agent));
    let tell = |(task, agent): (TaskId, Option<usize>)| {
        let who = agent.map_or("a node".to_owned(), agent_id);
        format!("whoever runs it is able to: {} is run by {who}", labels[&task])
    };
    wrong.map(tell).collect()
}

/// No process of an agent has more programs at once than it said. One that was killed has no end, and counts for nothing.
fn crowded(scenario: &Scenario, entries: &[Entry]) -> Vec<String> {
    let ends: BTreeMap<u64, Duration> = entries
        .iter()
        .filter_map(|entry| match entry.what {
            What::Returns { run, .. } => Some((run, entry.at)),
            _ => None,
        })
        .collect();
    let mut by_process: BTreeMap<Executor, Vec<(Duration, Duration)>> = BTreeMap::new();
    for entry in entries {
        if let What::Runs { run, executor, .. } = entry.what
            && matches!(executor, Executor::Agent { .. })
            && let Some(end) = ends.get(&run)
        {
            by_process.entry(executor).or_default().push((entry.at, *end));
        }
    }
    let mut broken = Vec::new();
    for (executor, runs) in by_process {
        let Executor::Agent { agent, .. } = executor else {
            continue;
        };
        let most = scenario.agents[agent].slots as usize;
        let at = |time: Duration| runs.iter().filter(|(from, to)| *from <= time && time < *to).count();
        if let Some(crowd) = runs.iter().map(|(from, _)| at(*from)).find(|crowd| *crowd > most) {
            broken.push(format!(
                "an agent runs no more than it said: {executor} has {crowd} runs, and said {most}"
            ));
        }
    }
    broken
}

/// What a queue of the plan ever was.
pub(super) fn ever(scenario: &Scenario, queue: Option<u8>, is: impl Fn(&QueuePlan) -> bool) -> bool {
    scenario.steps.iter().any(|step| match &step.action {
        Action::Queue {
            queue: of,
            order: QueueOrder::Put { plan },
            ..
        } => Some(*of) == queue && is(plan),
        _ => false,
    })
}

/// Only queues that drop do so, and nothing that had started; and only what is not durable ends with its process.
fn cancelled(scenario: &Scenario, outcome: &Outcome, plans: &BTreeMap<String, &TaskPlan>) -> Vec<String> {
    let mut broken = Vec::new();
    for task in &outcome.tasks {
        let label = label(task);
        let queue = plans.get(&label).and_then(|plan| plan.queue);
        let may_be_lost = ever(scenario, queue, |plan| plan.volatile);
        if !task.record.spec.is_durable() && !may_be_lost {
            broken.push(format!("{label} is not durable, and its queue always was"));
        }
        let mut started = false;
        for event in &task.events {
            let kind = event.error.as_ref().map_or("", |error| error.kind.as_str());
            let why = match (event.kind, kind) {
                (EventKind::Started, _) => {
                    started = true;
                    continue;
                }
                (EventKind::Cancelled, DROPPED) if !ever(scenario, queue, |plan| plan.drops) => {
                    "its queue drops nothing"
                }
                (EventKind::Cancelled, DROPPED) if started => "it had started",
                (EventKind::Cancelled, "process_ended") if task.record.spec.is_durable() => "it is durable",
                _ => continue,
            };
            broken.push(format!("{label} is cancelled as `{kind}`, and {why}"));
        }
    }
    broken
}

/// Where one process follows the other on a store of its own, none of them runs what another one accepted that is not durable.
fn outlived(outcome: &Outcome) -> Vec<String> {
    let mut ends: Vec<(u32, Duration)> = Vec::new();
    for entry in &outcome.entries {
        if let What::NodeDies(node) | What::NodeLeaves(node) = entry.what {
            ends.push((node.life, entry.at));
        }
    }
    let since = |time: Time| time.since(outcome.dawn);
    let mut broken = Vec::new();
    for task in &outcome.tasks {
        let is_retried = task.events.iter().any(|event| event.kind == EventKind::Retried);
        if task.record.spec.is_durable() || is_retried {
            continue;
        }
        let created = since(task.record.created_at);
        // The first to end after it was accepted is the one that accepted it, or a later one.
        let Some((life, _)) = ends.iter().find(|(_, at)| *at > created) else {
            continue;
        };
        let by_another = outcome.entries.iter().find_map(|entry| match entry.what {
            What::Runs {
                task: of,
                executor: Executor::Node(node),
                ..
            } if of == task.record.id && node.life > *life => Some(node),
            _ => None,
        });
        if let Some(node) = by_another {
            let label = label(task);
            broken.push(format!(
                "{label} is not durable, and runs on {node} after the end of whoever accepted it"
            ));
        }
    }
    broken
}
