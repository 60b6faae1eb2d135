//! The history from all that is known afterwards, for the simulation's judge.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use pensum_core::{TaskId, Time};
use pensum_sim::{Entry, Executor, Order, Outcome, Scenario, What, check_from_outside, story};

use super::record::{Effect, Record};
use super::told::{Told, label};

/// Fills in the history, and judges it; the story of what must not have been.
pub(super) fn judge(
    scenario: &Scenario,
    record: &Record,
    effects: &Path,
    executors: &BTreeMap<i32, Executor>,
    outcome: &mut Outcome,
) -> Result<(), String> {
    let labels: BTreeMap<TaskId, String> = outcome.tasks.iter().map(|task| (task.record.id, label(task))).collect();
    let effects = Effect::read(effects);
    let mut told = Told::new(&effects, executors);
    let seen = heard(scenario, record, outcome, &labels);
    let acknowledged = acknowledged(&seen);
    for task in &outcome.tasks {
        let heard = acknowledged.get(&task.record.id);
        told.task(task, heard.map(|at| record.dawn.plus(*at)));
    }
    let mut lines: Vec<(Time, u8, What)> = told.lines;
    for effect in &effects {
        lines.push((effect.at, Told::AFTER, effect.what(executors)));
    }
    let mut entries: Vec<(u8, Entry)> = seen.into_iter().map(|entry| (Told::BETWEEN, entry)).collect();
    for (at, rank, what) in lines {
        let at = record.since_dawn(at);
        entries.push((rank, Entry { at, what }));
    }
    // Stable: what one witness tells stays in its order.
    entries.sort_by_key(|(rank, entry)| (entry.at, *rank));
    outcome.entries = entries.into_iter().map(|(_, entry)| entry).collect();
    // What was deleted has no history, and nothing unfinished depended on it.
    for task in &mut outcome.tasks {
        task.record.depends_on.retain(|on| labels.contains_key(on));
    }
    let violations = check_from_outside(scenario, outcome);
    match violations.is_empty() {
        true => Ok(()),
        false => Err(story(scenario, outcome, &violations, false)),
    }
}

/// What clients were told, with what only the store can add to it.
fn heard(scenario: &Scenario, record: &Record, outcome: &Outcome, labels: &BTreeMap<TaskId, String>) -> Vec<Entry> {
    let told = record.take();
    // A crash of the store may take the last of what is not durable with it.
    let crashed = told.iter().any(|entry| matches!(entry.what, What::StoreAway(_)));
    let volatile = may_be_volatile(scenario);
    let mut orders: BTreeMap<u64, (TaskId, Order)> = BTreeMap::new();
    let mut deleted = BTreeSet::new();
    let mut entries = Vec::new();
    for mut entry in told {
        let mut follows = None;
        match &mut entry.what {
            // Another task had the unique key.
            What::Acknowledged { tasks, .. } => {
                tasks.retain(|(label, task, _)| !crashed || labels.contains_key(task) || !volatile.contains(label));
                for (label, task, is_new) in tasks {
                    *is_new = labels.get(task).is_none_or(|kept| *kept == super::client::name(*label));
                }
            }
            What::Orders {
                request, task, order, ..
            } => drop(orders.insert(*request, (*task, *order))),
            What::Ordered { request, answer } => match (orders[request], *answer) {
                // Without an answer it is known by what the store has left.
                ((task, Order::Delete), Some(true) | None) if !labels.contains_key(&task) => {
                    follows = deleted.insert(task).then_some(What::Deleted(task));
                }
                // Somebody else's retry may have come before this answer.
                ((task, Order::Cancel), Some(true)) => {
                    let asked = cancelled_at(outcome, task, record.dawn.plus(entry.at));
                    entry.at = asked.map_or(entry.at, |at| record.since_dawn(at));
                }
                _ => {}
            },
            _ => {}
        }
        let at = entry.at;
        entries.push(entry);
        entries.extend(follows.map(|what| Entry { at, what }));
    }
    entries
}

/// The labels of the tasks that may not be durable.
fn may_be_volatile(scenario: &Scenario) -> BTreeSet<u32> {
    let of_queue = |queue: u8| super::promises::ever(scenario, Some(queue), |plan| plan.volatile);
    let tasks = scenario.tasks().filter(|task| task.queue.is_some_and(of_queue));
    tasks.map(|task| task.label).collect()
}

/// When a client first heard of each task.
fn acknowledged(entries: &[Entry]) -> BTreeMap<TaskId, Duration> {
    let mut first = BTreeMap::new();
    for entry in entries {
        if let What::Acknowledged { tasks, .. } = &entry.what {
            for (_, task, _) in tasks {
                first.entry(*task).or_insert(entry.at);
            }
        }
    }
    first
}

/// When the store took the cancel that was answered by `heard`.
fn cancelled_at(outcome: &Outcome, task: TaskId, heard: Time) -> Option<Time> {
    use pensum_core::transition::EventKind::{CancelRequested, Cancelled};
    let task = outcome.tasks.iter().find(|found| found.record.id == task)?;
    let mut cancels = task
        .events
        .iter()
        .filter(|event| matches!(event.kind, CancelRequested | Cancelled));
    cancels.rfind(|event| event.at <= heard).map(|event| event.at)
}
