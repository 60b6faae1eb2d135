//! Why a task does not start: its queue, and the turn of its key.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use pensum_core::order::{OrderRule, place};
use pensum_core::query::PAGE_MAX;
use pensum_core::queue::Closed;
use pensum_core::{Name, Page, Priority, Status, TaskFilter, TaskRecord, Time};

use super::view::{closed_in_words, manual};
use crate::explain::{Gate, GateKind, gate};
use crate::{Engine, EngineError};

/// How many pages of ready tasks of one key are looked through for the one that has its turn.
const KEY_PAGES_MAX: usize = 5;

/// The gate of a task's key: of one key only one task runs at a time, and it is the turn of the best of them even while
/// that one's queue is closed.
pub(crate) async fn turn_of_key(
    engine: &Engine,
    namespace: &str,
    record: &TaskRecord,
    now: Time,
) -> Result<Option<Gate>, EngineError> {
    let Some(key) = &record.spec.key else { return Ok(None) };
    if let Some(holder) = engine.store().key_holder(namespace, key).await? {
        if holder == record.id {
            return Ok(None);
        }
        let holding = engine.store().task(namespace, holder).await?;
        return Ok(Some(Gate {
            since: holding.and_then(|task| task.lifecycle.started_at),
            ..gate(
                GateKind::Key,
                format!("task {holder} of the same key `{key}` runs; one at a time"),
            )
        }));
    }
    let Some(first) = first_of_key(engine, namespace, key, now).await? else {
        return Ok(None);
    };
    if first.id == record.id {
        return Ok(None);
    }
    let closed = closed_queue(engine, namespace, &first, now, true).await?;
    Ok(closed.map(|closed| Gate {
        message: format!(
            "it is the turn of task {} of the same key `{key}`: {}",
            first.id, closed.message
        ),
        gate: GateKind::Key,
        ..closed
    }))
}

/// The ready task of a key that is claimed before the others.
async fn first_of_key(
    engine: &Engine,
    namespace: &str,
    key: &Name,
    now: Time,
) -> Result<Option<TaskRecord>, EngineError> {
    let filter = TaskFilter {
        key: Some(key.clone()),
        status: vec![Status::Ready],
        ..TaskFilter::default()
    };
    let mut page = Page {
        limit: PAGE_MAX,
        before_row: None,
    };
    let mut first: Option<TaskRecord> = None;
    let queues = engine.store().queues(namespace).await?;
    let rules: BTreeMap<Name, OrderRule> = queues.into_iter().map(|q| (q.name, q.settings.order())).collect();
    let order = |task: &TaskRecord| {
        let rule = rules.get(&task.spec.queue).copied().unwrap_or_default();
        let row = task.id.row();
        (Reverse(level(rule, task, now)), place(task.spec.deadline, row), row)
    };
    for _ in 0..KEY_PAGES_MAX {
        let found = engine
            .store()
            .tasks(namespace, filter.clone(), page.clone(), now)
            .await?;
        first = first.into_iter().chain(found.items).min_by_key(order);
        match found.next {
            Some(row) => page.before_row = Some(row),
            None => break,
        }
    }
    Ok(first)
}

/// The level at which a ready task stands.
fn level(rule: OrderRule, task: &TaskRecord, now: Time) -> Priority {
    rule.level(task.spec.priority, task.lifecycle.ready_from(), now)
}

/// The level at which a task stands in the claim order: its priority, unless its queue lets what waits rise.
pub(crate) async fn level_of(
    engine: &Engine,
    namespace: &str,
    record: &TaskRecord,
    now: Time,
) -> Result<Priority, EngineError> {
    let queue = engine.queue_record(namespace, &record.spec.queue).await?;
    let rule = queue.map_or(OrderRule::STRICT, |queue| queue.settings.order());
    Ok(level(rule, record, now))
}

/// The gate of a task's queue. That it is full, or out of starts for now, concerns only a task that is ready.
pub(crate) async fn closed_queue(
    engine: &Engine,
    namespace: &str,
    record: &TaskRecord,
    now: Time,
    is_ready: bool,
) -> Result<Option<Gate>, EngineError> {
    let name = &record.spec.queue;
    let Some(queue) = engine.queue_record(namespace, name).await? else {
        return Ok(None);
    };
    let units = record.spec.units();
    let mut closed = match queue.room(queue.running, now) {
        Ok(room) if record.id.row() <= room.newest && is_ready && !room.admits(units) => {
            let opens_at = queue.opens_at(units, now);
            let message = format!(
                "it takes {units} units of the rate of the queue `{name}`, which has {} for now; it starts at {opens_at}, and \
                 none behind it before",
                room.tokens
            );
            return Ok(Some(Gate {
                opens_at: Some(opens_at),
                ..gate(GateKind::Queue, message)
            }));
        }
        Ok(room) if record.id.row() <= room.newest => return Ok(None),
        Ok(_) => {
            let message = manual(name, "nobody asked for it since this task was enqueued");
            return Ok(Some(gate(GateKind::Queue, message)));
        }
        Err(closed) => closed,
    };
    if let Closed::Rate { opens_at } = &mut closed {
        // The bucket may have to hold more than the one token for which it opens.
        *opens_at = queue.opens_at(units, now);
    }
    let (since, opens_at) = match closed {
        Closed::Full { .. } | Closed::Rate { .. } if !is_ready => return Ok(None),
        Closed::Paused { since } => (Some(since), None),
        Closed::Rate { opens_at } => (None, Some(opens_at)),
        Closed::Manual | Closed::Full { .. } => (None, None),
    };
    Ok(Some(Gate {
        since,
        opens_at,
        ..gate(GateKind::Queue, closed_in_words(name, closed))
    }))
}
