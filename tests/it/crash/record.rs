//! What the test itself sees: what it asked for and heard, what it did to the nodes, and what the runs wrote down.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use pensum_core::{TaskId, Time};
use pensum_sim::{Entry, Executor, NodeName, Returned, What};

use crate::harness::lines;

/// By the machine's clock, which nodes and stores follow too.
pub(super) fn now() -> Time {
    Time::from_micros(jiff::Timestamp::now().as_microsecond())
}

/// An append-only record.
pub(super) struct Record {
    pub(super) dawn: Time,
    entries: Mutex<Vec<Entry>>,
}

impl Record {
    pub(super) fn new() -> Record {
        Record {
            dawn: now(),
            entries: Mutex::default(),
        }
    }

    pub(super) fn add(&self, what: What) {
        // The lock first: two entries must not change places.
        let mut entries = self.entries.lock().unwrap();
        let at = self.since_dawn(now());
        entries.push(Entry { at, what });
    }

    pub(super) fn since_dawn(&self, time: Time) -> Duration {
        time.since(self.dawn)
    }

    pub(super) fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut *self.entries.lock().unwrap())
    }

    pub(super) fn count(&self, is: fn(&What) -> bool) -> u32 {
        let entries = self.entries.lock().unwrap();
        entries.iter().filter(|entry| is(&entry.what)).count() as u32
    }
}

/// A line of the file of effects: something that a run did.
pub(super) struct Effect {
    pub(super) at: Time,
    pub(super) task: TaskId,
    pub(super) attempt: u32,
    /// The node that started it, or the agent.
    pub(super) parent: i32,
    run: u64,
    word: String,
}

impl Effect {
    /// All lines of the file; a line that is not whole is the test's own fault.
    pub(super) fn read(file: &Path) -> Vec<Effect> {
        let all = lines(file);
        let read = |line: &String| Effect::parse(line).unwrap_or_else(|| panic!("no effect: {line}"));
        all.iter().map(read).collect()
    }

    fn parse(line: &str) -> Option<Effect> {
        let parts: Vec<&str> = line.split(' ').collect();
        let [word, run, task, attempt, parent, nanos] = parts[..] else {
            return None;
        };
        Some(Effect {
            at: Time::from_micros(nanos.parse::<i64>().ok()? / 1_000),
            task: task.parse().ok()?,
            attempt: attempt.parse().ok()?,
            parent: parent.parse().ok()?,
            run: run.parse().ok()?,
            word: word.to_owned(),
        })
    }

    pub(super) fn is_start(&self) -> bool {
        self.word == "runs"
    }

    /// What the checker is told of it.
    pub(super) fn what(&self, executors: &BTreeMap<i32, Executor>) -> What {
        let (run, task) = (self.run, self.task);
        let how = match self.word.as_str() {
            "runs" => {
                // Only one whose starter died before it could look has another parent.
                let nobody = Executor::Node(NodeName { node: 0, life: 0 });
                return What::Runs {
                    run,
                    task,
                    executor: executors.get(&self.parent).copied().unwrap_or(nobody),
                    attempt: self.attempt,
                };
            }
            "done" => Returned::Done,
            "failed" => Returned::Failed,
            "panicked" => Returned::Panicked,
            other => panic!("no run says `{other}`"),
        };
        What::Returns { run, task, how }
    }
}
