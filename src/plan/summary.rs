//! The end of a run: a table for people, data for programs.

use pensum_core::view::TaskView;
use pensum_core::{State, Status, TaskRecord, Time};
use serde::Serialize;

use super::resume::Run;
use super::view::symbol;
use crate::cli::output::{aligned, one_line, spoken};

/// How a run ended, for programs.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    /// The run.
    pub(crate) run: String,
    /// The plan's name.
    pub(crate) plan: String,
    /// `completed`, `failed`, or `interrupted` when tasks are left.
    pub(crate) status: &'static str,
    /// The tasks, in the order of the plan.
    pub(crate) tasks: Vec<Line>,
}

/// A task of the run.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    /// Its name in the plan.
    #[serde(rename = "ref")]
    pub(crate) reference: String,
    /// The task.
    #[serde(flatten)]
    pub(crate) task: TaskView,
}

impl Summary {
    /// The summary of a run as its tasks are now.
    pub(crate) fn of(run: &Run, now: Time) -> Summary {
        let states = || run.tasks.iter().map(|(_, task)| task.lifecycle.state);
        let status = if states().any(|state| !state.is_terminal()) {
            "interrupted"
        } else if states().all(|state| state == State::Completed) {
            "completed"
        } else {
            "failed"
        };
        let tasks = run.tasks.iter().map(|(reference, task)| Line {
            reference: reference.clone(),
            task: TaskView::of(task.clone(), now),
        });
        Summary {
            run: run.id.clone(),
            plan: run.plan.clone(),
            status,
            tasks: tasks.collect(),
        }
    }
}

/// The table at the end of a run, and where to look for more about what failed.
pub(crate) fn table(run: &Run, db: &str, now: Time) -> String {
    let width = result_width(run);
    let rows = run.tasks.iter().map(|(reference, task)| {
        let status = Status::of(&task.lifecycle, now);
        vec![
            format!("{} {reference}", symbol(status)),
            status.to_string(),
            task.lifecycle.attempt.to_string(),
            took(task, now),
            in_short(task, width),
        ]
    });
    let headers = vec!["task", "status", "attempts", "time", "result"];
    let mut text = aligned(headers, &[false, false, true, true, false], rows.collect());
    for (reference, task) in &run.tasks {
        // Of a store in memory nothing is left to ask.
        if task.lifecycle.state == State::Failed && !db.contains(":memory:") {
            text.push_str(&format!("Log of {reference}: pensum task logs {} --db {db}\n", task.id));
        }
    }
    text
}

fn took(task: &TaskRecord, now: Time) -> String {
    match task.lifecycle.started_at {
        Some(started) => spoken(task.lifecycle.finished_at.unwrap_or(now).since(started)),
        None => String::new(),
    }
}

/// Columns that a result gets where nobody looks at a terminal, and the fewest anywhere.
const RESULT_WIDTH_DEFAULT: usize = 70;
const RESULT_WIDTH_MIN: usize = 20;
/// Columns that status, attempts, time and the gaps between them take.
const FIXED_WIDTH: usize = 34;

/// What is left of the terminal's width for results.
fn result_width(run: &Run) -> usize {
    let names = run
        .tasks
        .iter()
        .map(|(reference, _)| console::measure_text_width(reference))
        .max()
        .unwrap_or(0);
    match console::Term::stdout().size_checked() {
        Some((_, columns)) => usize::from(columns)
            .saturating_sub(names + FIXED_WIDTH)
            .max(RESULT_WIDTH_MIN),
        None => RESULT_WIDTH_DEFAULT,
    }
}

/// The result or the error of a task in a few words.
fn in_short(task: &TaskRecord, width: usize) -> String {
    let text = match (&task.error, &task.result) {
        (Some(error), _) if task.lifecycle.state != State::Completed => error.message.clone(),
        (_, Some(result)) => match result.value() {
            serde_json::Value::Null => String::new(),
            serde_json::Value::String(text) => text,
            // What a command printed says more than that it printed.
            serde_json::Value::Object(map) if map.contains_key("exit_code") => map
                .get("stdout")
                .and_then(|out| out.as_str())
                .unwrap_or_default()
                .trim()
                .to_owned(),
            other => other.to_string(),
        },
        _ => String::new(),
    };
    let line = one_line(text.trim());
    console::truncate_str(&line, width, "…").into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::resume::tests::record;
    use pensum_core::{ErrorInfo, Json};

    #[test]
    fn the_table_says_what_failed_and_where_its_log_is() {
        let mut good = record(1, &[]);
        good.lifecycle.state = State::Completed;
        good.result = Some(Json::parse(r#"{"exit_code":0,"stdout":"42\n"}"#.to_owned()).unwrap());
        let mut bad = record(2, &[1]);
        bad.lifecycle.state = State::Failed;
        bad.error = Some(ErrorInfo::new("exit_code", "it exited with code 1: no such file"));
        let id = bad.id;
        let tasks = vec![("list".to_owned(), good), ("count".to_owned(), bad)];
        let run = Run {
            id: "r".into(),
            plan: "P".into(),
            digest: String::new(),
            tasks,
        };
        let text = table(&run, "sqlite:x.db", Time::EPOCH);
        assert!(text.contains("✓ list") && text.contains("42"), "{text}");
        assert!(text.contains("it exited with code 1"), "{text}");
        assert!(
            text.ends_with(&format!("Log of count: pensum task logs {id} --db sqlite:x.db\n")),
            "{text}"
        );
        assert_eq!(Summary::of(&run, Time::EPOCH).status, "failed");
    }
}
