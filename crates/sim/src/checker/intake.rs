//! What queues take and drop: no more than they may, what has waited longest goes first, and a refusal has its reason and
//! leaves nothing.

use std::time::Duration;

use pensum_core::capacity::DROPPED;
use pensum_core::queue::{QueueSettings, WhenFull};
use pensum_core::{TaskId, Time};

use super::Books;
use crate::history::{Entry, Queued, Standing, What};

/// A submission to one queue, as the store judged it.
struct Judged<'a> {
    queue: &'a str,
    settings: &'a QueueSettings,
    /// By the clock of whoever submitted, and by that which is furthest on.
    now: Time,
    latest: Time,
    before: &'a [Standing],
    new: usize,
    rejecting: usize,
    dropped: &'a [TaskId],
}

impl Judged<'_> {
    fn count(&self, is: impl Fn(&Standing) -> bool) -> usize {
        self.before.iter().filter(|task| is(task)).count()
    }

    fn waiting(&self) -> usize {
        self.count(|task| task.waits)
    }

    fn drops(&self) -> bool {
        self.settings.when_full == WhenFull::DropOldest
    }

    /// How many are ready by this clock, and run.
    fn busy(&self, now: Time) -> usize {
        self.count(|task| task.runs || is_ready(task, now))
    }

    /// True when by this clock one has been ready for too long to take another one.
    fn is_behind(&self, ready_by: Time, now: Time) -> bool {
        let Some(max) = self.settings.max_age.filter(|_| !self.drops()) else {
            return false;
        };
        self.count(|task| is_ready(task, ready_by) && task.since.plus(max.0) <= now) > 0
    }

    /// Why it should not have been taken.
    fn wrongly_taken(&self) -> Option<String> {
        let waiting = self.waiting();
        let after = (waiting + self.new).saturating_sub(self.dropped.len());
        let most = self.settings.max_depth.map(|max| match self.drops() {
            // What came back to wait may be more than that, and each newer one takes the place of an older one.
            true => (max as usize).max(waiting),
            false => max as usize,
        });
        if let Some(most) = most.filter(|most| after > *most) {
            return Some(format!("{after} wait there then, and no more than {most} may"));
        }
        if self.is_behind(self.now, self.now) {
            return Some("its oldest has waited for too long".to_owned());
        }
        let width = self
            .settings
            .max_concurrent
            .filter(|_| self.rejecting == 1 && self.new == 1);
        let busy = self.busy(self.now);
        let width = width.filter(|width| busy >= *width as usize)?;
        Some(format!(
            "it is not to wait, and {busy} run or are ready of {width} that may run"
        ))
    }

    /// Why it should have been taken.
    fn wrongly_refused(&self, limit: &str) -> Option<String> {
        let waiting = self.waiting();
        match limit {
            "depth" => {
                let Some(max) = self.settings.max_depth else {
                    return Some("it has no bound".to_owned());
                };
                let droppable = self.count(|task| task.fresh && is_ready(task, self.now));
                if waiting + self.new <= max as usize {
                    return Some(format!("{waiting} wait there, and {max} may"));
                }
                (self.drops() && droppable >= self.new).then(|| format!("it could have dropped {droppable}"))
            }
            "age" => (!self.is_behind(self.latest, self.latest)).then(|| "none has waited for too long".to_owned()),
            "width" => {
                let Some(width) = self.settings.max_concurrent.filter(|_| self.rejecting > 0) else {
                    return Some("nobody asked for that".to_owned());
                };
                let busy = self.busy(self.latest) + self.new - 1;
                (busy < width as usize).then(|| format!("no more than {busy} run or are ready of {width} that may run"))
            }
            _ => (self.rejecting == 0 || self.settings.rate.is_none()).then(|| "nobody asked for that".to_owned()),
        }
    }

    /// What should not have been dropped, or not before another one.
    fn wrongly_dropped(&self) -> Option<(TaskId, String)> {
        let is_dropped = |task: &Standing| self.dropped.contains(&task.task);
        for task in self.before.iter().filter(|task| is_dropped(task)) {
            let why = match task {
                _ if !self.drops() || self.settings.max_depth.is_none() => "its queue drops nothing",
                Standing { fresh: false, .. } => "it had started before",
                _ if !is_ready(task, self.latest) => "it was not ready",
                _ => continue,
            };
            return Some((task.task, why.to_owned()));
        }
        if self
            .dropped
            .iter()
            .any(|task| self.before.iter().all(|other| other.task != *task))
        {
            return Some((self.dropped[0], "it came with them".to_owned()));
        }
        if self.dropped.len() > self.new {
            return Some((self.dropped[0], format!("only {} came", self.new)));
        }
        let youngest = self
            .before
            .iter()
            .filter(|task| is_dropped(task))
            .map(|task| task.since)
            .max()?;
        let is_older =
            |task: &&Standing| !is_dropped(task) && task.fresh && is_ready(task, self.now) && task.since < youngest;
        let older = self.before.iter().find(is_older)?;
        Some((
            older.task,
            "it has waited longer than what was dropped, and was not".to_owned(),
        ))
    }
}

fn is_ready(task: &Standing, now: Time) -> bool {
    task.due.is_some_and(|due| due <= now)
}

impl Books<'_> {
    /// How far the clock of a node is behind that the store is shown.
    fn most_behind(&self) -> Duration {
        let behind = self.scenario.nodes.iter().map(|node| node.behind_ms);
        let most = behind.max().filter(|_| !self.scenario.shared_clock);
        Duration::from_millis(most.unwrap_or_default())
    }

    pub(super) fn intake(&mut self, at: usize, entry: &Entry, all: &[Entry]) {
        let What::Queued(what) = &entry.what else { return };
        match what {
            Queued::Judged {
                queue,
                settings,
                now,
                before,
                new,
                rejecting,
                dropped,
                refused,
                added,
            } => {
                let judged = Judged {
                    queue,
                    settings,
                    now: *now,
                    latest: self.dawn.plus(entry.at),
                    before,
                    new: *new,
                    rejecting: *rejecting,
                    dropped,
                };
                self.judged(at, &judged, *refused, *added);
            }
            Queued::Cancelled {
                task,
                kind,
                started,
                queue,
                created,
                now,
            } if kind == DROPPED => {
                let book = self.book(*task);
                book.dropped = true;
                let is_touched = book.touched;
                let settings = self.queues.get(queue).map(|changes| changes.since(entry.at));
                // What somebody let run at once is ready since then by the clock of the node that was asked.
                let now = now.plus(if is_touched { self.most_behind() } else { Duration::ZERO });
                let drops = settings.into_iter().flatten().any(|change| {
                    let settings = change.settings;
                    let is_old = settings.max_age.is_some_and(|max| created.plus(max.0) <= now);
                    settings.when_full == WhenFull::DropOldest && (is_old || settings.max_depth.is_some())
                });
                if *started || !drops {
                    let label = self.label(*task);
                    let why = match started {
                        true => "it had started",
                        false => "it had not waited for so long",
                    };
                    self.broken(
                        "only what waits too long is dropped",
                        Some(at),
                        format!("{label} is dropped, and {why}"),
                    );
                }
            }
            Queued::Swept { now } => self.too_old(at, entry, *now, all),
            _ => {}
        }
    }

    fn judged(&mut self, at: usize, judged: &Judged<'_>, refused: Option<&str>, added: usize) {
        let queue = judged.queue;
        if let Some(limit) = refused {
            if let Some(why) = judged.wrongly_refused(limit) {
                self.broken(
                    "a queue refuses nothing that it has room for",
                    Some(at),
                    format!("{queue} refuses {} task(s) for its {limit}, and {why}", judged.new),
                );
            }
            if added + judged.dropped.len() > 0 {
                self.broken(
                    "what is refused leaves nothing",
                    Some(at),
                    format!("{queue} refuses a submission, of which {added} are kept"),
                );
            }
        } else if let Some(why) = judged.wrongly_taken() {
            self.broken(
                "a queue takes no more than it may",
                Some(at),
                format!("{queue} takes {} task(s), and {why}", judged.new),
            );
        }
        if let Some((task, why)) = judged.wrongly_dropped() {
            let label = self.label(task);
            self.broken(
                "what has waited longest is dropped first",
                Some(at),
                format!("{queue} drops for newer ones; of {label}: {why}"),
            );
        }
    }

    /// After upkeep nothing waits that is as old as its queue keeps what waits.
    fn too_old(&mut self, at: usize, entry: &Entry, now: Time, all: &[Entry]) {
        // A start may be written down just after upkeep that it came before.
        let starts_now = |task: TaskId| {
            let same = all[at..].iter().take_while(|other| other.at == entry.at);
            same.into_iter()
                .any(|other| matches!(other.what, What::Granted { task: given, .. } if given == task))
        };
        let left = self.tasks.iter().find_map(|(task, book)| {
            let plan = self.plans.get(&book.label)?;
            let kept = book.surely_waits_since(plan, entry.at, all)?;
            let changes = self.queues.get(&*crate::world::queue_name(plan.queue?))?;
            let oldest = |change: super::queues::Change| {
                let max = change.settings.max_age?;
                (change.settings.when_full == WhenFull::DropOldest).then_some(max.0)
            };
            let ages: Option<Vec<Duration>> = changes.since(kept).map(oldest).collect();
            let longest = ages?.into_iter().max()?;
            let is_old = self.dawn.plus(kept).plus(longest) <= now;
            (is_old && !starts_now(*task)).then_some(*task)
        });
        if let Some(task) = left {
            let label = self.label(task);
            self.broken(
                "what has waited too long is dropped",
                Some(at),
                format!("{label} still waits, longer than its queue keeps what waits"),
            );
        }
    }

    /// What a client was told is refused is not there, unless it had asked for it before without hearing an answer.
    pub(super) fn refusals(&mut self, all: &[Entry]) {
        let mut labels = std::collections::BTreeMap::new();
        let mut unsure = std::collections::BTreeSet::new();
        let mut refused = Vec::new();
        for (at, entry) in all.iter().enumerate() {
            match &entry.what {
                What::Submits {
                    submission, labels: of, ..
                } => drop(labels.insert(*submission, of.clone())),
                What::Refused {
                    submission,
                    unsure: true,
                    ..
                } => drop(unsure.insert(*submission)),
                What::Refused { submission, .. } if !unsure.contains(submission) => refused.push((at, *submission)),
                _ => {}
            }
        }
        for (at, submission) in refused {
            for label in labels.get(&submission).into_iter().flatten() {
                let label = format!("t{label}");
                if self
                    .tasks
                    .values()
                    .any(|book| book.label == label && book.kept_at.is_some())
                {
                    self.broken(
                        "what is refused leaves nothing",
                        Some(at),
                        format!("a client hears that {label} is refused, and it is kept"),
                    );
                }
            }
        }
    }
}
