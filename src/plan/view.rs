//! What a run looks like while it goes on: a tree that is drawn again and again on a terminal, or a line for each
//! change elsewhere.

use std::collections::HashMap;
use std::time::Duration;

use console::{StyledObject, style, truncate_str};
use pensum_core::{ErrorInfo, State, Status, TaskId, TaskRecord, Time};
use pensum_engine::EngineEvent;

use super::resume::levels;
use crate::cli::output::{one_line, spoken};

/// How wide the bar of a task's progress is, in characters.
const BAR_WIDTH: usize = 16;
/// How wide the bar of the whole run is.
const TOTAL_BAR_WIDTH: usize = 30;
/// The longest ref that gets a column of its own width.
const NAME_WIDTH_MAX: usize = 40;

/// How a run stands: its tasks in the order in which they are shown.
#[derive(Debug)]
pub(crate) struct Board {
    plan: String,
    began: Time,
    rows: Vec<Row>,
    index: HashMap<TaskId, usize>,
}

/// How one task stands.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// The task.
    pub(crate) id: TaskId,
    /// Its name in the plan.
    pub(crate) reference: String,
    /// How deep it stands in the graph.
    pub(crate) level: usize,
    /// What had to end before it could start.
    depends_on: Vec<TaskId>,
    /// Its status.
    pub(crate) status: Status,
    attempt: u32,
    started_at: Option<Time>,
    finished_at: Option<Time>,
    percent: Option<f64>,
    line: String,
}

/// Something that the plain view tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Which task.
    pub(crate) reference: String,
    /// What it became.
    pub(crate) status: Status,
    /// More about it: how long it took, or what went wrong.
    pub(crate) detail: String,
}

impl Board {
    /// The board of a run's tasks.
    pub(crate) fn new(plan: &str, tasks: &[(String, TaskRecord)], now: Time) -> Board {
        let levels = levels(&tasks.iter().map(|(_, task)| task).collect::<Vec<_>>());
        let mut rows: Vec<Row> = tasks
            .iter()
            .zip(levels)
            .map(|((reference, task), level)| {
                let mut row = Row {
                    id: task.id,
                    reference: reference.clone(),
                    level,
                    depends_on: task.depends_on.clone(),
                    status: Status::Pending,
                    attempt: 0,
                    started_at: None,
                    finished_at: None,
                    percent: None,
                    line: String::new(),
                };
                row.refresh(task, now);
                row
            })
            .collect();
        rows.sort_by_key(|row| row.level);
        let index = rows.iter().enumerate().map(|(at, row)| (row.id, at)).collect();
        Board {
            plan: plan.to_owned(),
            began: now,
            rows,
            index,
        }
    }

    /// True when every task has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.rows.iter().all(|row| row.status.is_terminal())
    }

    /// Tasks that have not ended.
    pub(crate) fn unfinished(&self) -> Vec<TaskId> {
        self.rows
            .iter()
            .filter(|row| !row.status.is_terminal())
            .map(|row| row.id)
            .collect()
    }

    /// Tasks that have ended, since one that depends on them (or on one that does) started, and whose own event has not
    /// come yet; in the order of the rows, which puts no task before what it depends on.
    pub(crate) fn overtaken_by(&self, event: &EngineEvent) -> Vec<TaskId> {
        let EngineEvent::Started { task, .. } = event else {
            return Vec::new();
        };
        let mut late = std::collections::BTreeSet::new();
        let mut to_look_at: Vec<usize> = self.index.get(task).copied().into_iter().collect();
        while let Some(at) = to_look_at.pop() {
            let depends_on = self.rows[at]
                .depends_on
                .iter()
                .filter_map(|id| self.index.get(id).copied());
            for dependency in depends_on.filter(|at| !self.rows[*at].status.is_terminal()) {
                if late.insert(dependency) {
                    to_look_at.push(dependency);
                }
            }
        }
        late.into_iter().map(|at| self.rows[at].id).collect()
    }

    /// Takes in what happened; the change, when it is one that the plain view tells.
    pub(crate) fn apply(&mut self, event: &EngineEvent) -> Option<Change> {
        let row = self.rows.get_mut(*self.index.get(&event.task())?)?;
        match event {
            // A look at the store was faster, and saw the end of this attempt already.
            EngineEvent::Started { attempt, .. } if row.status.is_terminal() && *attempt <= row.attempt => None,
            EngineEvent::Started { attempt, at, .. } => {
                row.attempt = *attempt;
                row.started_at = Some(*at);
                row.finished_at = None;
                row.percent = None;
                row.line.clear();
                row.become_status(Status::Running, attempt_detail(*attempt))
            }
            EngineEvent::Progress { progress, .. } => {
                row.percent = Some(progress.percent);
                if let Some(message) = &progress.message {
                    row.line = one_line(message);
                }
                None
            }
            EngineEvent::Log { line, .. } => {
                if !line.message.trim().is_empty() {
                    row.line = one_line(line.message.trim());
                }
                None
            }
            EngineEvent::Requeued { error: Some(error), .. } => {
                row.line = failure_line(error);
                row.become_status(Status::Retrying, failure_line(error))
            }
            EngineEvent::Ended { state, error, at, .. } => {
                row.finished_at = Some(*at);
                let status = ended_status(*state)?;
                let took = row.took(*at);
                let detail = match error {
                    Some(error) if status == Status::Failed => format!("{took} {}", failure_line(error)),
                    _ => took,
                };
                if let Some(error) = error {
                    row.line = failure_line(error);
                }
                row.become_status(status, detail.trim().to_owned())
            }
            _ => None,
        }
    }

    /// Takes in a task as the store has it, in case an event was missed.
    pub(crate) fn refresh(&mut self, task: &TaskRecord, now: Time) -> Option<Change> {
        let row = self.rows.get_mut(*self.index.get(&task.id)?)?;
        let before = row.status;
        row.refresh(task, now);
        let is_news = row.status == Status::Running || row.status.is_terminal();
        (is_news && row.status != before).then(|| {
            if row.status == Status::Running {
                return Change {
                    reference: row.reference.clone(),
                    status: row.status,
                    detail: attempt_detail(row.attempt),
                };
            }
            let error = task
                .error
                .as_ref()
                .filter(|_| row.status != Status::Completed)
                .map(failure_line);
            Change {
                reference: row.reference.clone(),
                status: row.status,
                detail: [row.took(now), error.unwrap_or_default()].join(" ").trim().to_owned(),
            }
        })
    }

    /// The lines of the tree, at most `height` of them and none wider than `width`. Where there is no room for all
    /// tasks, those that run and those that failed are shown.
    pub(crate) fn frame(&self, now: Time, width: usize, height: usize) -> Vec<String> {
        let room = height.saturating_sub(2).max(1);
        let name_width = self
            .rows
            .iter()
            .map(|row| row.level * 2 + row.reference.chars().count())
            .max()
            .unwrap_or_default()
            .min(NAME_WIDTH_MAX);
        let mut lines: Vec<String> = if self.rows.len() <= room {
            self.rows.iter().map(|row| row.line(now, name_width)).collect()
        } else {
            let matters = |row: &&Row| matches!(row.status, Status::Running | Status::Retrying | Status::Failed);
            let mut shown: Vec<String> = self
                .rows
                .iter()
                .filter(matters)
                .map(|row| row.line(now, name_width))
                .collect();
            let skipped = shown.len().saturating_sub(room - 1);
            shown.drain(..skipped);
            shown
        };
        lines.push(self.total(now));
        lines
            .iter()
            .map(|line| truncate_str(line, width.max(20), "…").into_owned())
            .collect()
    }

    fn total(&self, now: Time) -> String {
        let count = |status: Status| self.rows.iter().filter(|row| row.status == status).count();
        let ended = self.rows.iter().filter(|row| row.status.is_terminal()).count();
        let share = ended as f64 / self.rows.len().max(1) as f64;
        let mut text = format!(
            "{} {} {ended}/{}",
            bar(share, TOTAL_BAR_WIDTH),
            self.plan,
            self.rows.len()
        );
        for (status, word) in [
            (Status::Running, "running"),
            (Status::Failed, "failed"),
            (Status::Cancelled, "cancelled"),
        ] {
            let count = count(status);
            if count > 0 {
                text.push_str(&format!(", {count} {word}"));
            }
        }
        format!("{text}  {}", spoken(now.since(self.began)))
    }
}

impl Row {
    fn refresh(&mut self, task: &TaskRecord, now: Time) {
        self.status = Status::of(&task.lifecycle, now);
        self.attempt = task.lifecycle.attempt;
        self.started_at = task.lifecycle.started_at;
        self.finished_at = task.lifecycle.finished_at;
        if let (Some(error), Status::Failed | Status::Cancelled) = (&task.error, self.status) {
            self.line = failure_line(error);
        }
    }

    fn become_status(&mut self, status: Status, detail: String) -> Option<Change> {
        // A run that goes on after a wait is news to nobody.
        let is_news = self.status != status || status == Status::Retrying;
        self.status = status;
        is_news.then(|| Change {
            reference: self.reference.clone(),
            status,
            detail,
        })
    }

    fn took(&self, now: Time) -> String {
        match self.started_at {
            Some(started) => spoken(self.finished_at.unwrap_or(now).since(started)),
            None => String::new(),
        }
    }

    fn line(&self, now: Time, name_width: usize) -> String {
        let name = format!("{}{}", "  ".repeat(self.level.min(10)), self.reference);
        let name = truncate_str(&name, name_width, "…");
        let time = if self.status == Status::Pending {
            String::new()
        } else {
            self.took(now)
        };
        let mut line = format!(
            "{} {name:name_width$} {time:>7}",
            painted(self.status, symbol(self.status))
        );
        if self.status == Status::Running
            && let Some(percent) = self.percent
        {
            line.push_str(&format!(" {} {percent:>3.0}%", bar(percent / 100.0, BAR_WIDTH)));
        }
        if self.attempt > 1 {
            line.push_str(&format!(" #{}", self.attempt));
        }
        if matches!(self.status, Status::Running | Status::Retrying | Status::Failed) && !self.line.is_empty() {
            line.push_str(&format!("  {}", style(&self.line).dim()));
        }
        line
    }
}

impl Change {
    /// The line of the plain view: `12:00:01 ✓ count completed 1.2s`.
    pub(crate) fn describe(&self, now: Time) -> String {
        let symbol = painted(self.status, symbol(self.status));
        let word = if self.status == Status::Running {
            "started"
        } else {
            self.status.as_str()
        };
        format!(
            "{} {symbol} {} {word} {}",
            clock(now),
            self.reference,
            one_line(&self.detail)
        )
        .trim_end()
        .to_owned()
    }
}

/// A time of day where the reader is.
fn clock(now: Time) -> String {
    match jiff::Timestamp::from_microsecond(now.as_micros()) {
        Ok(time) => time
            .to_zoned(jiff::tz::TimeZone::system())
            .strftime("%H:%M:%S")
            .to_string(),
        Err(_) => String::new(),
    }
}

/// The sign of a status.
pub(crate) const fn symbol(status: Status) -> &'static str {
    match status {
        Status::Pending | Status::Ready => "·",
        Status::Running => "▸",
        Status::Completed => "✓",
        Status::Failed => "✗",
        Status::Cancelled => "⊘",
        Status::Paused => "‖",
        Status::Retrying => "↻",
    }
}

/// A text in the colour of a status, where colours are wanted.
pub(crate) fn painted(status: Status, text: &str) -> StyledObject<&str> {
    match status {
        Status::Completed => style(text).green(),
        Status::Failed => style(text).red(),
        Status::Cancelled | Status::Paused | Status::Retrying => style(text).yellow(),
        Status::Running => style(text).cyan(),
        Status::Pending | Status::Ready => style(text).dim(),
    }
}

fn bar(share: f64, width: usize) -> String {
    let full = (share.clamp(0.0, 1.0) * width as f64).round() as usize;
    format!("[{}{}]", "█".repeat(full), "░".repeat(width - full))
}

/// Which attempt starts, where it is not the first.
fn attempt_detail(attempt: u32) -> String {
    match attempt {
        0 | 1 => String::new(),
        more => format!("attempt {more}"),
    }
}

fn failure_line(error: &ErrorInfo) -> String {
    one_line(error.message.lines().next().unwrap_or_default())
}

const fn ended_status(state: State) -> Option<Status> {
    Some(match state {
        State::Completed => Status::Completed,
        State::Failed => Status::Failed,
        State::Cancelled => Status::Cancelled,
        State::Queued | State::Running | State::Waiting => return None,
    })
}

/// How often the tree is drawn.
pub(crate) const FRAME: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::resume::tests::record;
    use pensum_core::Name;
    use pensum_core::outcome::Progress;

    fn board() -> Board {
        let tasks = [
            ("list", record(1, &[])),
            ("count", record(2, &[1])),
            ("other", record(3, &[])),
        ];
        let tasks: Vec<_> = tasks.into_iter().map(|(name, task)| (name.to_owned(), task)).collect();
        Board::new("Two steps", &tasks, Time::EPOCH)
    }

    fn at(seconds: i64) -> Time {
        Time::from_micros(seconds * 1_000_000)
    }

    fn started(board: &Board, row: usize) -> EngineEvent {
        let namespace = Name::from("default");
        EngineEvent::Started {
            task: board.rows[row].id,
            namespace,
            handler: Name::from("noop"),
            attempt: 1,
            at: at(1),
        }
    }

    #[test]
    fn a_look_at_the_store_and_the_events_that_follow_it_tell_each_change_once() {
        let mut board = board();
        let mut task = record(1, &[]);
        task.lifecycle.state = State::Running;
        task.lifecycle.attempt = 1;
        let change = board.refresh(&task, at(1)).unwrap();
        assert_eq!((change.status, &*change.detail), (Status::Running, ""));
        assert_eq!(board.apply(&started(&board, 0)), None);
        task.lifecycle.state = State::Completed;
        assert_eq!(board.refresh(&task, at(2)).unwrap().status, Status::Completed);
        assert_eq!(board.apply(&started(&board, 0)), None);
        assert_eq!(board.rows[0].status, Status::Completed);
    }

    #[test]
    fn a_task_that_started_shows_that_what_it_waited_for_has_ended() {
        let mut board = board();
        let count = started(&board, 2);
        assert_eq!(board.overtaken_by(&count), [board.rows[0].id]);
        board.rows[0].status = Status::Completed;
        assert!(board.overtaken_by(&count).is_empty());
        assert!(board.overtaken_by(&started(&board, 1)).is_empty());
    }

    #[test]
    fn the_tree_shows_levels_progress_and_the_last_line() {
        console::set_colors_enabled(false);
        let mut board = board();
        assert_eq!(
            board.rows.iter().map(|r| r.reference.as_str()).collect::<Vec<_>>(),
            ["list", "other", "count"]
        );
        board.apply(&started(&board, 0));
        let progress = Progress {
            percent: 50.0,
            message: Some("half way".to_owned()),
        };
        let task = board.rows[0].id;
        board.apply(&EngineEvent::Progress {
            task,
            namespace: Name::from("default"),
            progress,
            at: at(2),
        });
        let frame = board.frame(at(3), 100, 24);
        assert_eq!(frame[0], "▸ list       2.0s [████████░░░░░░░░]  50%  half way");
        assert_eq!(frame[2].trim_end(), "·   count");
        assert_eq!(
            frame[3],
            "[░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░] Two steps 0/3, 1 running  3.0s"
        );
        assert!(board.frame(at(3), 30, 24).iter().all(|line| line.chars().count() <= 30));
        assert_eq!(
            board.frame(at(3), 100, 3).len(),
            1,
            "only the total fits beside nothing else"
        );
    }

    #[test]
    fn each_change_is_told_once() {
        let mut board = board();
        let change = board.apply(&started(&board, 0)).unwrap();
        assert_eq!((change.reference.as_str(), change.status), ("list", Status::Running));
        assert_eq!(board.apply(&started(&board, 0)), None);
        let ended = EngineEvent::Ended {
            task: board.rows[0].id,
            state: State::Completed,
            error: None,
            at: at(3),
        };
        let change = board.apply(&ended).unwrap();
        assert_eq!((change.status, change.detail.as_str()), (Status::Completed, "2.0s"));
        assert_eq!(board.apply(&ended), None);
        assert!(!board.is_over() && board.unfinished().len() == 2);
    }
}
