//! Bugs to plant: those of what queues take, drop and put in order, and of tasks that are not durable.

use super::list::{Mutant, edit, model, sqlite};
use crate::scenario::Size;

const CAPACITY: &str = "crates/core/src/capacity.rs";
const ORDER: &str = "crates/core/src/order.rs";
const MODEL_CAPACITY: &str = "crates/core/src/model/capacity.rs";
const MODEL_NODE: &str = "crates/core/src/model/node.rs";
const SQLITE_CAPACITY: &str = "crates/store/src/sqlite/capacity.rs";
const SQLITE_STEP: &str = "crates/store/src/sqlite/step.rs";
const SQLITE_VOLATILE: &str = "crates/store/src/sqlite/volatile.rs";
const MODEL_QUEUE: &str = "crates/core/src/model/queue.rs";

/// In large worlds, where more wait for the same.
const fn large(mutant: Mutant) -> Mutant {
    Mutant {
        size: Size::Large,
        ..mutant
    }
}

/// All of them.
pub(super) const MUTANTS: &[Mutant] = &[
    model(
        "queue-holds-one-too-many",
        "a queue takes one more than may wait in it",
        &[edit(
            CAPACITY,
            "Some(max) if load.waiting >= u64::from(max) => {",
            "Some(max) if load.waiting > u64::from(max) => {",
        )],
        300,
    ),
    model(
        "batch-not-counted",
        "the tasks of one submission are not counted for each other",
        &[edit(
            CAPACITY,
            "        load.waiting += 1;\n        if task",
            "        if task",
        )],
        500,
    ),
    large(model(
        "drops-the-youngest",
        "what has waited longest stays, and the newest is dropped",
        &[edit(
            MODEL_CAPACITY,
            "        ready.sort_unstable();",
            "        ready.sort_unstable_by(|one, other| other.cmp(one));",
        )],
        500,
    )),
    model(
        "drops-what-has-started",
        "what has started once is dropped, too",
        &[edit(
            MODEL_CAPACITY,
            ".filter(|(_, e)| !e.lifecycle.has_started());",
            ".filter(|(_, e)| !e.lifecycle.suspect);",
        )],
        500,
    ),
    model(
        "never-too-old",
        "what has waited too long is not dropped",
        &[edit(
            MODEL_CAPACITY,
            "old.take_while(|(since, _)| since.plus(max.0) <= now);",
            "old.take_while(|(since, _)| since.plus(max.0 * 1_000) <= now);",
        )],
        500,
    ),
    model(
        "waits-although-it-is-not-to",
        "a task that is not to wait waits for its turn",
        &[edit(
            CAPACITY,
            "if on_limit == OnLimit::Reject {",
            "if on_limit == OnLimit::Reject && load.ready > 1_000 {",
        )],
        500,
    ),
    model(
        "units-not-counted",
        "each start takes one token, whatever its units",
        &[edit(
            MODEL_QUEUE,
            "queue.started(u64::from(units), now);",
            "queue.started(u64::from(units.min(1)), now);",
        )],
        500,
    ),
    large(model(
        "keys-do-not-take-turns",
        "a key is as old as its tasks are",
        &[edit(
            ORDER,
            "Some(served) if self.fair => served.max(row),",
            "Some(served) if self.fair => served.min(row),",
        )],
        1_000,
    )),
    model(
        "nobody-rises",
        "what waits stays at its priority",
        &[edit(
            ORDER,
            "priority.level().saturating_add(rises).min(highest)",
            "priority.level().saturating_add(rises / 1_000).min(highest)",
        )],
        1_000,
    ),
    model(
        "outlives-its-process",
        "what is not durable goes on after its process",
        &[edit(
            MODEL_NODE,
            "accepted.filter(|(_, process)| !lives(process)).collect()",
            "accepted.filter(|(_, process)| !lives(process) && process.0 == 0).collect()",
        )],
        300,
    ),
    model(
        "ends-before-its-process",
        "what is not durable ends while its process lives",
        &[edit(
            MODEL_NODE,
            "known.is_some_and(|known| !known.beat.is_lost(known.seen_at, now))\n        };",
            "known.is_some_and(|known| !known.beat.is_lost(known.seen_at, now.plus(known.beat.ttl / 2)))\n        };",
        )],
        300,
    ),
    large(sqlite(
        "sqlite-drops-the-youngest",
        "what has waited longest stays, and the newest is dropped",
        &[edit(
            SQLITE_CAPACITY,
            "        all.sort_unstable();\n        all.into_iter()",
            "        all.sort_unstable_by(|one, other| other.cmp(one));\n        all.into_iter()",
        )],
        500,
    )),
    sqlite(
        "sqlite-lease-counts-as-waiting",
        "what runs counts among what waits",
        &[edit(
            SQLITE_CAPACITY,
            "            load.waiting += WAITING.into_iter().map(of).sum::<u64>();",
            "            load.waiting += WAITING.into_iter().map(of).sum::<u64>() + view.held.get(at).copied().unwrap_or(0);",
        )],
        500,
    ),
    large(sqlite(
        "sqlite-key-keeps-its-turn",
        "nobody notes that a key was served",
        &[edit(
            SQLITE_STEP,
            "self.memory.order.note_turn(&key, self.next_row);",
            "self.memory.order.note_turn(&key, self.next_row.min(0));",
        )],
        1_000,
    )),
    sqlite(
        "sqlite-outlives-its-process",
        "what is not durable goes on after its process",
        &[edit(
            SQLITE_VOLATILE,
            "if !nodes.lives(*process, now) {",
            "if !nodes.lives(*process, now) && process.0 == 0 {",
        )],
        300,
    ),
];
