//! Whether a queue takes another task at its submission: one pure decision over how full the queue is.
//!
//! What was taken once is never judged again: retries, releases and commands of people pass by.

use std::fmt;
use std::time::Duration;

use crate::queue::{QueueRecord, QueueSettings};
use crate::task::{NewTask, OnLimit};
use crate::time::Span;
use crate::{ErrorInfo, Name, Time};

/// How full a queue is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// How many leases its tasks hold.
    pub running: u64,
    /// How many of its tasks are ready.
    pub ready: u64,
    /// How many units those have together.
    pub ready_units: u64,
    /// How many have not ended and do not run, the ready ones among them.
    pub waiting: u64,
    /// Since when the oldest ready one is, without those that are replaced; asked only of a queue with an age to keep to.
    pub oldest_ready: Option<Time>,
    /// How many ready ones have never started: those may be dropped, without those that are replaced. Asked only of a queue that
    /// drops.
    pub droppable: u64,
}

/// Which limit a submission met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `max_concurrent`, for a task that is not to wait.
    Concurrent {
        /// How many run.
        running: u64,
        /// How many are ready before it.
        ready: u64,
        /// How many may run.
        max: u32,
    },
    /// `rate_limit`, for a task that is not to wait.
    Rate {
        /// How many tokens the bucket holds.
        tokens: u64,
        /// How many of them those take that are ready before it.
        before: u64,
        /// How many it takes.
        units: u32,
        /// When so many will have come.
        opens_at: Time,
    },
    /// `max_depth`.
    Depth {
        /// How many wait.
        waiting: u64,
        /// How many may.
        max: u32,
        /// The queue drops its oldest, and has none that it may drop.
        drops: bool,
    },
    /// `max_age`.
    Age {
        /// How long the oldest has waited.
        waited: Span,
        /// How long it may have.
        max: Span,
    },
}

/// A queue takes no task at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Full {
    /// The queue.
    pub queue: Name,
    /// Its limit.
    pub limit: Limit,
    /// When that was so.
    pub at: Time,
}

impl Full {
    /// How long to wait before trying again, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        self.opens_at().map(|opens_at| opens_at.since(self.at))
    }

    /// When to try again, where that is known.
    pub const fn opens_at(&self) -> Option<Time> {
        match self.limit {
            Limit::Rate { opens_at, .. } => Some(opens_at),
            _ => None,
        }
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = &self.queue;
        match self.limit {
            Limit::Concurrent { running, ready, max } => write!(
                f,
                "the queue `{queue}` is at its max_concurrent of {max}: {running} run and {ready} are ready; submit it again \
                 when one has ended, or without `on_limit: reject` to let it wait"
            ),
            Limit::Rate {
                tokens,
                before,
                units,
                opens_at,
            } => write!(
                f,
                "the queue `{queue}` is at its rate_limit: it can start {tokens} more unit(s) now, those ready before take \
                 {before} and this one takes {units}; submit it again at {opens_at}, or without `on_limit: reject` to let \
                 it wait"
            ),
            Limit::Depth { waiting, max, drops } => {
                write!(
                    f,
                    "the queue `{queue}` is at its max_depth of {max}: {waiting} tasks wait in it"
                )?;
                f.write_str(match drops {
                    true => " and none that it could drop; submit it again later",
                    false => "; submit it again later",
                })
            }
            Limit::Age { waited, max } => write!(
                f,
                "the queue `{queue}` is over its max_age of {} s: its oldest ready task has waited {} s; submit it again \
                 later",
                max.0.as_secs_f64(),
                waited.0.as_secs_f64()
            ),
        }
    }
}

/// The `error.type` of a task that made room for a newer one, or waited longer than its queue allows.
pub const DROPPED: &str = "dropped";

/// Why a task was dropped for newer ones.
pub fn dropped_for_newer(queue: &str, max_depth: u32) -> ErrorInfo {
    let message = format!("the queue `{queue}` holds at most {max_depth} waiting tasks, and a newer one came");
    ErrorInfo::new(DROPPED, message)
}

/// Why a task was dropped that waited too long.
pub fn dropped_for_age(queue: &str, max_age: Span) -> ErrorInfo {
    let longest = max_age.0.as_secs_f64();
    let message = format!("it was ready for longer than the {longest} s that the queue `{queue}` keeps waiting tasks");
    ErrorInfo::new(DROPPED, message)
}

impl QueueSettings {
    /// True when every submission has to be judged, and not only those that are not to wait.
    pub const fn limits_intake(&self) -> bool {
        self.max_depth.is_some() || self.max_age.is_some()
    }

    /// The age beyond which submissions are refused.
    pub fn refuses_over(&self) -> Option<Span> {
        self.max_age.filter(|_| self.when_full.is_refuse())
    }

    /// The age beyond which waiting tasks are dropped.
    pub fn drops_over(&self) -> Option<Span> {
        self.max_age.filter(|_| !self.when_full.is_refuse())
    }

    /// The depth beyond which waiting tasks are dropped.
    pub fn drops_beyond(&self) -> Option<u32> {
        self.max_depth.filter(|_| !self.when_full.is_refuse())
    }

    /// True when a task has to be judged before it is taken.
    pub fn judges(&self, task: &NewTask) -> bool {
        let limits_starts = self.max_concurrent.is_some() || self.rate.is_some();
        self.limits_intake() || (limits_starts && task.spec.on_limit() == OnLimit::Reject)
    }
}

/// The way into a queue for the tasks of one submission, one after the other.
#[derive(Debug)]
pub struct Entrance<'a> {
    queue: &'a QueueRecord,
    load: Load,
    now: Time,
    dropped: u64,
}

impl<'a> Entrance<'a> {
    /// The entrance of a queue that is so full at `now`.
    pub const fn new(queue: &'a QueueRecord, load: Load, now: Time) -> Entrance<'a> {
        Entrance {
            queue,
            load,
            now,
            dropped: 0,
        }
    }

    /// A task that waits in the queue gives its place away to one of the submission, for that has its unique key.
    pub fn replaced(&mut self, is_ready: bool, units: u32) {
        let load = &mut self.load;
        load.waiting = load.waiting.saturating_sub(1);
        if is_ready {
            load.ready = load.ready.saturating_sub(1);
            load.ready_units = load.ready_units.saturating_sub(u64::from(units));
        }
    }

    /// Takes a task, or says why not. One that waits for others or for its time is judged like the rest, now.
    ///
    /// # Errors
    /// The limit that it met.
    pub fn admit(&mut self, task: &NewTask) -> Result<(), Full> {
        let units = task.spec.units();
        let drop = self.judge(units, task.spec.on_limit()).map_err(|limit| Full {
            queue: self.queue.name.clone(),
            limit,
            at: self.now,
        })?;
        let load = &mut self.load;
        if drop {
            self.dropped += 1;
            load.waiting = load.waiting.saturating_sub(1);
            load.ready = load.ready.saturating_sub(1);
            // Which one that will be is not known here; it has one unit at least.
            load.ready_units = load.ready_units.saturating_sub(1);
        }
        load.waiting += 1;
        if task.depends_on.is_empty() && task.run_at.is_none_or(|at| at <= self.now) {
            load.ready += 1;
            load.ready_units += u64::from(units);
        }
        Ok(())
    }

    /// How many of those that have been ready longest make room for what was taken.
    pub const fn to_drop(&self) -> u64 {
        self.dropped
    }

    /// True when one has to be dropped for it.
    fn judge(&self, units: u32, on_limit: OnLimit) -> Result<bool, Limit> {
        let (settings, load) = (&self.queue.settings, &self.load);
        if let (Some(max), Some(since)) = (settings.refuses_over(), load.oldest_ready) {
            let waited = self.now.since(since);
            if waited >= max.0 {
                let waited = Span(waited);
                return Err(Limit::Age { waited, max });
            }
        }
        if on_limit == OnLimit::Reject {
            if let Some(max) = settings.max_concurrent
                && load.running + load.ready >= u64::from(max)
            {
                let (running, ready) = (load.running, load.ready);
                return Err(Limit::Concurrent { running, ready, max });
            }
            self.judge_rate(units)?;
        }
        match settings.max_depth {
            Some(max) if load.waiting >= u64::from(max) => {
                let drops = !settings.when_full.is_refuse();
                if drops && self.dropped < load.droppable {
                    return Ok(true);
                }
                let waiting = load.waiting;
                Err(Limit::Depth { waiting, max, drops })
            }
            _ => Ok(false),
        }
    }

    fn judge_rate(&self, units: u32) -> Result<(), Limit> {
        let Some(rate) = self.queue.settings.rate else {
            return Ok(());
        };
        let (bucket, before) = (self.queue.bucket, self.load.ready_units);
        let tokens = bucket.tokens(rate, self.now);
        let wanted = before + u64::from(units);
        // As a claim has it: the first of a full bucket may take more than that holds.
        if tokens >= wanted || (before == 0 && bucket.is_full(self.now)) {
            return Ok(());
        }
        let opens_at = match before {
            0 => bucket.opens_at(rate, wanted, self.now),
            _ => bucket.holds_at(rate, wanted, self.now),
        };
        Err(Limit::Rate {
            tokens,
            before,
            units,
            opens_at,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{Rate, WhenFull};
    use crate::{Json, Spec};

    const fn at(millis: i64) -> Time {
        Time::from_micros(1_700_000_000_000_000 + millis * 1_000)
    }

    fn seconds(seconds: u64) -> Span {
        Span(Duration::from_secs(seconds))
    }

    fn settings() -> QueueSettings {
        QueueSettings::default()
    }

    fn task(on_limit: OnLimit, units: u32) -> NewTask {
        let mut spec = Spec::new("noop", Json::null());
        spec.details_mut().on_limit = Some(on_limit);
        spec.details_mut().units = Some(units);
        NewTask::new(spec)
    }

    /// How many of some tasks in a row are taken, how many drop another one, and the limit that the next one met.
    #[track_caller]
    fn check(settings: QueueSettings, load: Load, task: &NewTask, taken: usize, dropped: u64, limit: &str) {
        let mut queue = QueueRecord::new("q".into(), at(0));
        queue.put(settings, None, &"me".into(), at(0)).unwrap();
        let mut entrance = Entrance::new(&queue, load, at(0));
        for n in 0..taken {
            assert_eq!(entrance.admit(task), Ok(()), "task {n} of {taken}");
        }
        assert_eq!(entrance.to_drop(), dropped);
        let met = entrance.admit(task).map_err(|full| full.to_string());
        match limit {
            "" => assert_eq!(met, Ok(())),
            _ => assert!(
                met.clone().is_err_and(|full| full.contains(limit)),
                "{met:?}: {limit:?}"
            ),
        }
    }

    #[test]
    fn a_queue_without_limits_takes_everything() {
        let load = Load {
            running: 1_000,
            ready: 1_000,
            ready_units: 1_000,
            waiting: 1_000,
            oldest_ready: Some(at(-1_000_000)),
            droppable: 0,
        };
        check(settings(), load, &task(OnLimit::Reject, 5), 100, 0, "");
    }

    #[test]
    fn a_task_that_is_not_to_wait_is_taken_while_something_is_free() {
        let width = QueueSettings {
            max_concurrent: Some(4),
            ..settings()
        };
        let reject = task(OnLimit::Reject, 1);
        let load = |running, ready| Load {
            running,
            ready,
            ..Load::default()
        };
        check(width.clone(), load(0, 0), &reject, 4, 0, "0 run and 4 are ready");
        check(
            width.clone(),
            load(2, 1),
            &reject,
            1,
            0,
            "max_concurrent of 4: 2 run and 2 are",
        );
        check(width.clone(), load(4, 0), &reject, 0, 0, "4 run and 0 are ready");
        check(width.clone(), load(9, 0), &reject, 0, 0, "9 run");
        check(width.clone(), load(4, 9), &task(OnLimit::Wait, 1), 9, 0, "");
        let later = NewTask {
            run_at: Some(at(1)),
            ..reject
        };
        check(width.clone(), load(3, 0), &later, 9, 0, "");
        check(width, load(3, 1), &later, 0, 0, "max_concurrent of 4");
    }

    #[test]
    fn a_task_that_is_not_to_wait_needs_the_tokens_that_those_before_it_leave() {
        let rate = QueueSettings {
            rate: Some(Rate {
                starts: 10,
                per: seconds(1),
                burst: 6,
            }),
            ..settings()
        };
        let load = |ready_units: u64| Load {
            ready: ready_units.min(1),
            ready_units,
            ..Load::default()
        };
        check(
            rate.clone(),
            load(0),
            &task(OnLimit::Reject, 2),
            3,
            0,
            "start 6 more unit(s) now",
        );
        check(
            rate.clone(),
            load(5),
            &task(OnLimit::Reject, 1),
            1,
            0,
            "take 6 and this one takes 1",
        );
        let opens_at = format!("again at {}", at(200));
        check(rate.clone(), load(6), &task(OnLimit::Reject, 2), 0, 0, &opens_at);
        check(
            rate.clone(),
            load(0),
            &task(OnLimit::Reject, 9),
            1,
            0,
            "take 9 and this one",
        );
        check(
            rate.clone(),
            load(1),
            &task(OnLimit::Reject, 9),
            0,
            0,
            "it can start 6 more",
        );
        check(rate, load(100), &task(OnLimit::Wait, 9), 9, 0, "");
    }

    #[test]
    fn what_is_dropped_for_a_task_takes_no_tokens_from_it() {
        let limits = QueueSettings {
            max_depth: Some(2),
            when_full: WhenFull::DropOldest,
            rate: Some(Rate {
                starts: 10,
                per: seconds(1),
                burst: 3,
            }),
            ..settings()
        };
        let load = Load {
            ready: 2,
            ready_units: 2,
            waiting: 2,
            droppable: 2,
            ..Load::default()
        };
        check(limits, load, &task(OnLimit::Reject, 1), 2, 2, "at its max_depth of 2");
    }

    #[test]
    fn when_the_bucket_is_not_full_the_time_says_when_it_will_do() {
        let mut queue = QueueRecord::new("q".into(), at(0));
        let rate = Rate {
            starts: 10,
            per: seconds(1),
            burst: 5,
        };
        let limits = QueueSettings {
            rate: Some(rate),
            ..settings()
        };
        queue.put(limits, None, &"me".into(), at(0)).unwrap();
        queue.started(5, at(0));
        let refused = |units, now| {
            let mut entrance = Entrance::new(&queue, Load::default(), now);
            let taken = entrance.admit(&task(OnLimit::Reject, units));
            taken.err().and_then(|full| Some(full.at.plus(full.retry_after()?)))
        };
        assert_eq!(refused(3, at(100)), Some(at(300)));
        assert_eq!(refused(3, at(300)), None);
        assert_eq!(refused(50, at(300)), Some(at(500)));
        assert_eq!(refused(50, at(500)), None);
    }

    #[test]
    fn a_full_queue_refuses_or_drops_those_that_waited_longest() {
        let depth = |when_full| QueueSettings {
            max_depth: Some(5),
            when_full,
            ..settings()
        };
        let load = |waiting, droppable| Load {
            ready: droppable,
            waiting,
            droppable,
            ..Load::default()
        };
        let plain = task(OnLimit::Wait, 1);
        check(
            depth(WhenFull::Refuse),
            load(0, 0),
            &plain,
            5,
            0,
            "max_depth of 5: 5 tasks wait",
        );
        check(
            depth(WhenFull::Refuse),
            load(8, 8),
            &plain,
            0,
            0,
            "8 tasks wait in it; submit",
        );
        check(
            depth(WhenFull::DropOldest),
            load(5, 3),
            &plain,
            3,
            3,
            "none that it could drop",
        );
        check(
            depth(WhenFull::DropOldest),
            load(3, 3),
            &plain,
            5,
            3,
            "max_depth of 5: 5 tasks",
        );
        check(
            depth(WhenFull::DropOldest),
            load(5, 0),
            &plain,
            0,
            0,
            "none that it could drop",
        );
    }

    #[test]
    fn a_queue_that_is_behind_refuses_until_its_oldest_has_started() {
        let age = |when_full| QueueSettings {
            max_age: Some(seconds(10)),
            when_full,
            ..settings()
        };
        let load = |oldest_ready| Load {
            oldest_ready,
            ..Load::default()
        };
        let plain = task(OnLimit::Wait, 1);
        check(age(WhenFull::Refuse), load(None), &plain, 9, 0, "");
        check(age(WhenFull::Refuse), load(Some(at(-9_999))), &plain, 9, 0, "");
        check(
            age(WhenFull::Refuse),
            load(Some(at(-10_500))),
            &plain,
            0,
            0,
            "max_age of 10 s",
        );
        check(
            age(WhenFull::Refuse),
            load(Some(at(-10_500))),
            &plain,
            0,
            0,
            "has waited 10.5 s",
        );
        check(age(WhenFull::DropOldest), load(Some(at(-90_000))), &plain, 9, 0, "");
    }

    #[test]
    fn what_is_replaced_leaves_its_place() {
        let mut queue = QueueRecord::new("q".into(), at(0));
        let limits = QueueSettings {
            max_depth: Some(1),
            ..settings()
        };
        queue.put(limits, None, &"me".into(), at(0)).unwrap();
        let load = Load {
            ready: 1,
            ready_units: 1,
            waiting: 1,
            ..Load::default()
        };
        let mut entrance = Entrance::new(&queue, load, at(0));
        entrance.replaced(true, 1);
        assert_eq!(entrance.admit(&task(OnLimit::Wait, 1)), Ok(()));
        assert!(entrance.admit(&task(OnLimit::Wait, 1)).is_err());
    }
}
