//! Why a task does not start: its queue, and the turn of its key.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use pensum_core::order::{KeyTurns, OrderRule, place};
use pensum_core::query::PAGE_MAX;
use pensum_core::queue::Closed;
use pensum_core::{Name, Page, Priority, Status, TaskFilter, TaskRecord, Time};

use super::view::{closed_in_words, manual};
use crate::explain::{Gate, GateKind, gate};
use crate::{Engine, EngineError};

/// How many pages of ready tasks of one key are looked through for those that have its turn.
const KEY_PAGES_MAX: usize = 5;
/// How many tasks of a key are named that have its turn.
const KEY_NAMED_MAX: usize = 20;

/// How the tasks of each queue stand; those of all others in the usual way.
struct Rules(BTreeMap<Name, OrderRule>);

impl Rules {
    async fn read(engine: &Engine, namespace: &str) -> Result<Rules, EngineError> {
        let queues = engine.store().queues(namespace).await?;
        Ok(Rules(
            queues.into_iter().map(|q| (q.name, q.settings.order())).collect(),
        ))
    }

    fn of(&self, task: &TaskRecord) -> OrderRule {
        self.0.get(&task.spec.queue).copied().unwrap_or_default()
    }
}

/// The gate of a task's key: of one key only one task runs at a time, or as many as their queues let, and the best of them
/// keep their turns even while their queues are closed.
pub(crate) async fn turn_of_key(
    engine: &Engine,
    namespace: &str,
    record: &TaskRecord,
    now: Time,
) -> Result<Option<Gate>, EngineError> {
    let Some(key) = &record.spec.key else { return Ok(None) };
    let holders = engine.store().key_holders(namespace, key).await?;
    if holders.contains(&record.id) {
        return Ok(None);
    }
    let rules = Rules::read(engine, namespace).await?;
    let own = rules.of(record).width();
    let mut running = Vec::new();
    for holder in holders.iter().take(KEY_NAMED_MAX) {
        running.extend(engine.store().task(namespace, *holder).await?);
    }
    // Beside more than these nobody runs whose queue is narrower than that.
    let others = std::iter::repeat_n(own, holders.len().saturating_sub(KEY_NAMED_MAX));
    let mut turns = KeyTurns::beside(running.iter().map(|task| rules.of(task).width()).chain(others));
    let has_room = |mut turns: KeyTurns| turns.admits(own);
    let (mut ahead, mut next) = (Vec::new(), None);
    if has_room(turns) {
        for task in ready_of_key(engine, namespace, key, &rules, now).await? {
            let had_room = has_room(turns);
            let has_turn = turns.admits(rules.of(&task).width());
            match (has_turn, task.id == record.id) {
                (true, true) => return Ok(None),
                (true, false) => ahead.push(task),
                (false, is_own) => {
                    next = (!is_own && had_room).then_some(task);
                    break;
                }
            }
        }
        if has_room(turns) {
            return Ok(None);
        }
    }
    let since = running.iter().filter_map(|task| task.lifecycle.started_at).max();
    let say = |message: String| Gate {
        since,
        ..gate(GateKind::Key, message)
    };
    if let Some(next) = next {
        let message = format!(
            "task {} of the same key `{key}` goes before it, and waits until fewer than {} of that key run",
            next.id,
            rules.of(&next).width()
        );
        return Ok(Some(say(message)));
    }
    let mut closed = None;
    for task in &ahead {
        closed = closed_queue(engine, namespace, task, now, true)
            .await?
            .map(|closed| (task.id, closed));
        if closed.is_some() {
            break;
        }
    }
    let stuck = closed.map(|(id, closed)| Gate {
        message: format!(
            "it is the turn of task {id} of the same key `{key}`: {}",
            closed.message
        ),
        gate: GateKind::Key,
        ..closed
    });
    match (&running[..], stuck) {
        ([], stuck) => Ok(stuck),
        ([only], None) if ahead.is_empty() => {
            let message = format!("task {} of the same key `{key}` runs; one at a time", only.id);
            Ok(Some(say(message)))
        }
        (several, stuck) => {
            let all = several.iter().chain(&ahead);
            let most = all
                .clone()
                .map(|task| rules.of(task).width())
                .min()
                .unwrap_or(own)
                .min(own);
            let named: Vec<String> = all.take(KEY_NAMED_MAX).map(|task| task.id.to_string()).collect();
            let count = holders.len() + ahead.len();
            let more = match count - named.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let of = match count > most as usize {
                false => format!("{count} of {most} tasks of the same key `{key}` have their turn"),
                true => format!("{count} tasks of the same key `{key}` have their turn, and only {most} may"),
            };
            let mut message = format!("{of}: {}{more}", named.join(", "));
            if let Some(stuck) = stuck {
                message = format!("{message}; {}", stuck.message);
            }
            Ok(Some(say(message)))
        }
    }
}

/// The ready tasks of a key, in the order in which they get its turn.
async fn ready_of_key(
    engine: &Engine,
    namespace: &str,
    key: &Name,
    rules: &Rules,
    now: Time,
) -> Result<Vec<TaskRecord>, EngineError> {
    let filter = TaskFilter {
        key: Some(key.clone()),
        status: vec![Status::Ready],
        ..TaskFilter::default()
    };
    let mut page = Page {
        limit: PAGE_MAX,
        before_row: None,
    };
    let mut ready: Vec<TaskRecord> = Vec::new();
    for _ in 0..KEY_PAGES_MAX {
        let found = engine
            .store()
            .tasks(namespace, filter.clone(), page.clone(), now)
            .await?;
        ready.extend(found.items);
        match found.next {
            Some(row) => page.before_row = Some(row),
            None => break,
        }
    }
    ready.sort_by_cached_key(|task| {
        let row = task.id.row();
        (
            Reverse(level(rules.of(task), task, now)),
            place(task.spec.deadline, row),
            row,
        )
    });
    Ok(ready)
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
                ..gate(GateKind::Rate, message)
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
    let level = level(queue.settings.order(), record, now);
    let risen = match is_ready && level > record.spec.priority {
        true => format!("; it has risen to {level} by waiting"),
        false => String::new(),
    };
    let (kind, since, opens_at) = match closed {
        Closed::Full { .. } | Closed::Rate { .. } if !is_ready => return Ok(None),
        Closed::Paused { since } => (GateKind::Queue, Some(since), None),
        Closed::Rate { opens_at } => (GateKind::Rate, None, Some(opens_at)),
        Closed::Manual | Closed::Full { .. } => (GateKind::Queue, None, None),
    };
    Ok(Some(Gate {
        since,
        opens_at,
        ..gate(kind, closed_in_words(name, closed) + &risen)
    }))
}
