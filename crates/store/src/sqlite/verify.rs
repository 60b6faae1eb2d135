//! Every invariant of the store, checked: each violation one sentence.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use pensum_core::Time;
use pensum_core::store::{VIOLATIONS_MAX, Verified};
use rusqlite::Connection;

use super::ages::Ages;
use super::error::Fault;
use super::memory::{Memory, key_of};
use super::names::Catalog;
use super::order::Key;
use super::view::{Cell, Shared};
use super::writer::Writer;

/// Queries that find nothing in a sound store; each row is the violation's one number.
const CHECKS: [(&str, &str); 16] = [
    (
        "SELECT row FROM task WHERE NOT EXISTS (SELECT 1 FROM live WHERE live.row = task.row)
      AND NOT EXISTS (SELECT 1 FROM outcome WHERE outcome.row = task.row)",
        "task {} is neither unfinished nor finished",
    ),
    (
        "SELECT row FROM live WHERE EXISTS (SELECT 1 FROM outcome WHERE outcome.row = live.row)",
        "task {} is both unfinished and finished",
    ),
    (
        "SELECT row FROM live WHERE NOT EXISTS (SELECT 1 FROM task WHERE task.row = live.row)",
        "unfinished row {} has no task",
    ),
    (
        "SELECT row FROM outcome WHERE NOT EXISTS (SELECT 1 FROM task WHERE task.row = outcome.row)",
        "finished row {} has no task",
    ),
    (
        "SELECT row FROM outcome WHERE state NOT IN (3, 4, 5)",
        "finished row {} is in a state that is not an end",
    ),
    (
        "SELECT row FROM live WHERE state IN (3, 4, 5)",
        "unfinished row {} is in a state that is an end",
    ),
    (
        "SELECT live.row FROM live JOIN task USING (row) WHERE live.class <> task.class",
        "task {} is in one class and counts in another",
    ),
    (
        "SELECT l.row FROM live l WHERE l.unmet IS NOT NULL AND l.unmet <> (SELECT count(*) FROM dependency d
      JOIN live p ON p.row = d.prerequisite WHERE d.dependent = l.row)",
        "task {} counts another number of unmet dependencies than it has",
    ),
    (
        "SELECT row FROM live WHERE (unmet IS NOT NULL) <> (ifnull(waiting_for, 0) = 1)",
        "task {} waits for dependencies without having any, or the reverse",
    ),
    (
        "SELECT row FROM unique_key WHERE NOT EXISTS (SELECT 1 FROM task WHERE task.row = unique_key.row)",
        "a unique key names row {}, which does not exist",
    ),
    (
        "SELECT row FROM unique_key WHERE expires_at IS NULL AND NOT EXISTS
      (SELECT 1 FROM live WHERE live.row = unique_key.row)",
        "task {} has ended and still holds its unique key",
    ),
    (
        "SELECT dependent FROM dependency WHERE NOT EXISTS (SELECT 1 FROM task WHERE row = dependent)",
        "a dependency belongs to row {}, which does not exist",
    ),
    (
        "SELECT row FROM checkpoint WHERE NOT EXISTS (SELECT 1 FROM task WHERE task.row = checkpoint.row)",
        "a checkpoint belongs to row {}, which does not exist",
    ),
    (
        "SELECT row FROM agent_lease WHERE NOT EXISTS (SELECT 1 FROM live WHERE live.row = agent_lease.row)",
        "an agent holds a lease on row {}, which is not unfinished",
    ),
    (
        "SELECT l.row FROM live l JOIN task t USING (row)
      WHERE (l.acceptor IS NOT NULL) <> ifnull(json_extract(t.details, '$.volatile'), 0)",
        "task {} is durable and ends with a process, or the reverse",
    ),
    (
        "SELECT DISTINCT row FROM (SELECT row FROM event UNION SELECT row FROM execution UNION SELECT row FROM inbox
      UNION SELECT row FROM step UNION SELECT row FROM log UNION SELECT row FROM tag) AS rest
      WHERE NOT EXISTS (SELECT 1 FROM task WHERE task.row = rest.row)",
        "row {} has a history and no task",
    ),
];

/// Checks the disk.
pub(super) fn verify(db: &Connection) -> Result<Verified, Fault> {
    let mut verified = Verified::default();
    let mut say = |sentence: String| {
        if verified.violations.len() < VIOLATIONS_MAX {
            verified.violations.push(sentence);
        }
    };
    let mut statement = db.prepare("PRAGMA quick_check(20)")?;
    for line in statement.query_map([], |row| row.get::<_, String>(0))? {
        let line = line?;
        if line != "ok" {
            say(format!("the file is damaged: {line}"));
        }
    }
    for (sql, sentence) in CHECKS {
        let mut statement = db.prepare(&format!("{sql} LIMIT {VIOLATIONS_MAX}"))?;
        for row in statement.query_map([], |row| row.get::<_, i64>(0))? {
            say(sentence.replace("{}", &row?.to_string()));
        }
    }
    let mut statement = db.prepare("SELECT row, id FROM task")?;
    let mut rows = statement.query([])?;
    let mut tasks = 0;
    while let Some(row) = rows.next()? {
        tasks += 1;
        let number: i64 = row.get(0)?;
        let id = pensum_core::TaskId::from_bytes(row.get(1)?);
        if id.row() != number {
            say(format!("task {id} stands in row {number} and names another"));
        }
    }
    count_again(db, &mut say)?;
    verified.tasks = tasks;
    Ok(verified)
}

/// Compares the counters with a count of the rows.
fn count_again(db: &Connection, say: &mut dyn FnMut(String)) -> Result<(), Fault> {
    let mut found: BTreeMap<i64, [i64; 3]> = BTreeMap::new();
    let mut executions: i64 = db.query_row("SELECT count(*) FROM execution", [], |row| row.get(0))?;
    let sql = format!(
        "SELECT t.class, o.state, count(*), sum(o.flags >> {} <> 0)
         FROM outcome o JOIN task t USING (row) GROUP BY 1, 2",
        super::row::STATUS_SHIFT
    );
    let mut statement = db.prepare(&sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let cell = match row.get::<_, i64>(1)? {
            3 => 0,
            4 => 1,
            _ => 2,
        };
        found.entry(row.get(0)?).or_default()[cell] += row.get::<_, i64>(2)?;
        executions += row.get::<_, i64>(3)?;
    }
    let mut counted_executions = 0;
    let mut statement = db.prepare("SELECT class, completed, failed, cancelled, executions FROM counter")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let class: i64 = row.get(0)?;
        let has = found.remove(&class).unwrap_or_default();
        for (cell, what) in ["completed", "failed", "cancelled"].into_iter().enumerate() {
            let counted: i64 = row.get(cell + 1)?;
            if counted != has[cell] {
                say(format!(
                    "class {class} counts {counted} {what} tasks and has {}",
                    has[cell]
                ));
            }
        }
        counted_executions += row.get::<_, i64>(4)?;
    }
    for class in found.keys() {
        say(format!("class {class} has finished tasks that it does not count"));
    }
    if counted_executions != executions {
        say(format!(
            "{counted_executions} ended attempts are counted, and there are {executions}"
        ));
    }
    Ok(())
}

impl Writer {
    /// Compares the memory with one that is built anew from the disk.
    pub(super) fn audit(&mut self) -> Result<Vec<String>, Fault> {
        let mut sentences = Vec::new();
        if self.recovery.is_some() {
            // What was in flight before the last end still has to be put right, by the first verb that names the time.
            return Ok(sentences);
        }
        let twin = Shared::new();
        twin.catalog.load(&self.db)?;
        let mut memory = Memory {
            clock: self.memory.clock,
            ages: Ages::of(self.memory.ages.queues().clone()),
            ..Memory::default()
        };
        {
            let view = self.shared.view.lock();
            let mut other = twin.view.lock();
            other.leases = view.leases.clone();
            other.nodes = view.nodes.clone();
            other.held.clone_from(&view.held);
        }
        let orphans = memory.rebuild(&twin, &self.db)?;
        for row in orphans {
            sentences.push(format!("row {row} runs, and nobody holds a lease on it"));
        }
        let ready = |memory: &Memory| {
            // What is overdue may have left the order before the reaper came.
            let due = memory.timers.iter().take_while(|(at, ..)| *at <= memory.clock);
            let overdue: HashSet<i64> = due.map(|(_, row, _)| *row).collect();
            let mut rows = memory.order.rows();
            rows.retain(|row| !overdue.contains(row));
            rows
        };
        compare("the ready order", &ready(&self.memory), &ready(&memory), &mut sentences);
        let ages = |memory: &Memory| memory.ages.rows().into_iter().map(|(row, ..)| row).collect::<Vec<_>>();
        compare(
            "since when what is ready is so",
            &ages(&self.memory),
            &ages(&memory),
            &mut sentences,
        );
        let timers = |memory: &Memory| memory.timers.iter().map(|(_, row, _)| *row).collect::<Vec<_>>();
        compare("the timers", &timers(&self.memory), &timers(&memory), &mut sentences);
        let mut children: Vec<(i64, u32)> = self.memory.children.iter().map(|(r, n)| (*r, *n)).collect();
        let mut expected: Vec<(i64, u32)> = memory.children.iter().map(|(r, n)| (*r, *n)).collect();
        children.sort_unstable();
        expected.sort_unstable();
        if children != expected {
            sentences.push("the counts of unfinished children differ from what the disk says".to_owned());
        }
        if self.memory.accepted != memory.accepted {
            sentences.push("the memory of who accepted what differs from what the disk says".to_owned());
        }
        for row in memory.awaited.difference(&self.memory.awaited) {
            sentences.push(format!("row {row} has dependants, and its end would not tell them"));
        }
        self.compare_views(&twin, &mut sentences);
        self.check_leases(&mut sentences)?;
        self.check_keys(&mut sentences);
        Ok(sentences)
    }

    /// Of each key as many have their turn as may. Where a queue was wider once, more of them may run than that.
    fn check_keys(&self, sentences: &mut Vec<String>) {
        let of_key =
            |(namespace, key): &Key, what: &str| format!("of the key {key} in the namespace {namespace} {what}");
        for key in self.memory.order.unsettled() {
            sentences.push(of_key(key, "others have their turn than should"));
        }
        let mut runs: BTreeMap<Key, KeyRuns> = BTreeMap::new();
        let mut running = Vec::new();
        let view = self.shared.view.lock();
        for (row, leased) in view.leases.iter().filter(|(_, leased)| !leased.closing) {
            let Some(key) = key_of(&self.shared, &leased.live) else {
                continue;
            };
            running.push(*row);
            let runs = runs.entry(key).or_default();
            runs.count += 1;
            runs.least = runs.least.min(self.memory.order.rule(leased.live.class).width());
            runs.taken_at = runs.taken_at.max(Some(leased.taken_at));
            runs.changed_at = runs.changed_at.max(self.queues.changed_at(leased.live.class));
        }
        running.sort_unstable();
        compare("what runs of keys", &self.memory.order.running(), &running, sentences);
        for (key, runs) in runs {
            if runs.count > runs.least && runs.taken_at > runs.changed_at {
                let what = format!("{} tasks run, where {} may", runs.count, runs.least);
                sentences.push(of_key(&key, &what));
            }
        }
    }

    fn compare_views(&self, twin: &Arc<Shared>, sentences: &mut Vec<String>) {
        let (view, other) = (self.shared.view.lock(), twin.view.lock());
        let later = |view: &super::view::View| view.later.keys().map(|(_, row)| *row).collect::<Vec<_>>();
        compare("what is due later", &later(&view), &later(&other), sentences);
        let catalog: &Catalog = &twin.catalog;
        for (class, _) in catalog.classes().iter().enumerate() {
            let tally = |view: &super::view::View| view.tallies.get(class).copied().unwrap_or_default();
            let (counted, found) = (tally(&view), tally(&other));
            if counted != found {
                sentences.push(format!(
                    "class {class} counts {counted:?} and has {found:?} (ready, dependencies, later, retrying, paused, \
                     running, completed, failed, cancelled, executions; {} cells)",
                    Cell::Executions as usize + 1
                ));
            }
        }
    }

    fn check_leases(&self, sentences: &mut Vec<String>) -> Result<(), Fault> {
        let rows: Vec<i64> = {
            let view = self.shared.view.lock();
            let mut held = vec![0; view.held.len()];
            for leased in view.leases.values() {
                held[leased.live.class as usize] += 1;
            }
            if held != view.held {
                let counted = &view.held;
                sentences.push(format!("the leases by class count {counted:?} and are {held:?}"));
            }
            view.leases.keys().copied().collect()
        };
        let lost = self.agents.leases_without_a_row(&self.db, &self.shared.view.lock())?;
        for row in lost {
            sentences.push(format!("an agent holds row {row}, and the disk does not say so"));
        }
        for row in rows {
            if super::row::LiveRow::load(&self.db, row)?.is_none() {
                sentences.push(format!("row {row} is leased and is not unfinished"));
            }
        }
        Ok(())
    }
}

/// What runs of a key.
struct KeyRuns {
    count: u32,
    /// The width of the narrowest of their queues.
    least: u32,
    /// When the last of them started.
    taken_at: Option<Time>,
    /// When the last of their queues was changed.
    changed_at: Option<Time>,
}

impl Default for KeyRuns {
    fn default() -> KeyRuns {
        KeyRuns {
            count: 0,
            least: u32::MAX,
            taken_at: None,
            changed_at: None,
        }
    }
}

fn compare(what: &str, found: &[i64], expected: &[i64], sentences: &mut Vec<String>) {
    if found == expected {
        return;
    }
    let has: std::collections::BTreeSet<i64> = found.iter().copied().collect();
    let wants: std::collections::BTreeSet<i64> = expected.iter().copied().collect();
    let missing: Vec<i64> = wants.difference(&has).take(5).copied().collect();
    let extra: Vec<i64> = has.difference(&wants).take(5).copied().collect();
    sentences.push(format!("{what} lacks the rows {missing:?} and has {extra:?} too many"));
}
