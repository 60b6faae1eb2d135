//! The intake: tasks that other programs leave in a table of the store, within transactions of their own, and what becomes
//! of them.
//!
//! A program that cannot speak to a node within its transaction can still insert a row. A node admits it after the commit:
//! it enqueues what the row asks for and removes the row, both in one transaction, or keeps the row with the reason of its
//! refusal.

use std::collections::HashMap;
use std::time::Duration;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::input::{BatchInput, Invalid, TaskInput, parse, parse_object};
use crate::{Json, Name, NewTask, TaskId, Time};

/// The largest JSON of a row that asks for one task, in bytes.
pub const TASK_BYTES_MAX: usize = 1 << 20;
/// The largest JSON of a row that asks for a batch, in bytes.
pub const BATCH_BYTES_MAX: usize = 16 << 20;
/// The largest JSON of a row that a list shows, in bytes.
pub const SHOWN_BYTES_MAX: usize = 64 << 10;

/// A row that waits to be admitted.
#[derive(Clone, Debug, PartialEq)]
pub struct IntakeTask {
    /// Its number in the intake.
    pub id: i64,
    /// What is to be enqueued, as it was inserted.
    pub task: Json,
    /// The namespace to enqueue in.
    pub namespace: Name,
    /// Who inserted it.
    pub actor: Name,
    /// When it was inserted.
    pub created_at: Time,
}

/// A row of the intake, as people see it.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct IntakeRecord {
    /// Its number in the intake.
    pub id: i64,
    /// `waiting` until a node has looked at it, `rejected` once one has refused it.
    pub status: IntakeStatus,
    /// What was inserted; null when that is larger than 64 KiB.
    #[schema(value_type = Option<serde_json::Value>)]
    pub task: Option<Json>,
    /// How large that is, in bytes.
    pub bytes: u64,
    /// Who inserted it.
    #[schema(value_type = String)]
    pub actor: Name,
    /// When it was inserted.
    #[schema(value_type = Option<String>)]
    pub created_at: Option<Time>,
    /// When it was refused.
    #[schema(value_type = Option<String>)]
    pub rejected_at: Option<Time>,
    /// Why it was refused: every problem with its path, such as `priority: 9 is not a priority`.
    pub error: Option<String>,
}

/// How a row of the intake stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum IntakeStatus {
    /// No node has looked at it.
    Waiting,
    /// A node has refused it.
    Rejected,
}

impl std::str::FromStr for IntakeStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<IntakeStatus, String> {
        match text {
            "waiting" => Ok(IntakeStatus::Waiting),
            "rejected" => Ok(IntakeStatus::Rejected),
            other => Err(format!("must be waiting or rejected, not `{}`", crate::id::clip(other))),
        }
    }
}

/// Says what is to be enqueued for a row, or why nothing is. It may be asked twice about one row.
pub type Judge<'a> = &'a (dyn Fn(&IntakeTask) -> Result<Vec<NewTask>, String> + Send + Sync);

/// A node asks for rows to be admitted.
#[derive(Clone, Copy, Debug)]
pub struct AdmitRequest {
    /// How many rows at most.
    pub limit: usize,
    /// While there is nothing to admit, the store may hold the request this long; zero answers at once.
    pub wait: Duration,
}

/// What an admission did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Admitted {
    /// How many rows were admitted.
    pub rows: u64,
    /// The tasks that are new by it, in order; a unique key may have kept another one.
    pub tasks: Vec<AdmittedTask>,
    /// The rows that were refused, with the reason.
    pub rejected: Vec<(i64, String)>,
    /// There may be more to admit at once.
    pub more: bool,
}

/// A task that was enqueued for a row of the intake.
#[derive(Clone, Debug, PartialEq)]
pub struct AdmittedTask {
    /// The task.
    pub id: TaskId,
    /// Where it lives.
    pub namespace: Name,
    /// What runs it.
    pub handler: Name,
}

/// Reads the JSON of a row: one task, or a batch as `{"tasks": […]}` or as a list. Times that are given as a delay count
/// from `created_at`.
///
/// # Errors
/// Every problem, by path; those of a batch begin with `tasks[N].`.
pub fn read(task: &Json, created_at: Time) -> Result<Vec<NewTask>, Invalid> {
    let text = task.get().trim_start();
    if text.starts_with('[') {
        within(text, BATCH_BYTES_MAX)?;
        let batch: BatchInput = parse(format!("{{\"tasks\":{text}}}").as_bytes())?;
        return batch.resolve(created_at);
    }
    let problem = match parse_object::<TaskInput>(text.as_bytes()) {
        Ok(input) => {
            within(text, TASK_BYTES_MAX)?;
            return Ok(vec![input.resolve(&HashMap::new(), created_at)?]);
        }
        Err(problem) => problem,
    };
    match parse::<BatchProbe>(text.as_bytes()) {
        Ok(_) => {
            within(text, BATCH_BYTES_MAX)?;
            parse_object::<BatchInput>(text.as_bytes())?.resolve(created_at)
        }
        Err(_) => {
            within(text, TASK_BYTES_MAX)?;
            Err(problem)
        }
    }
}

/// Succeeds for whatever was meant as a batch.
#[derive(Deserialize)]
struct BatchProbe {
    #[serde(rename = "tasks")]
    _tasks: IgnoredAny,
}

fn within(text: &str, most: usize) -> Result<(), Invalid> {
    match text.len() {
        length if length > most => Err(too_large(length, most)),
        _ => Ok(()),
    }
}

/// What is said of a row whose JSON is too large.
pub fn too_large(bytes: usize, most: usize) -> Invalid {
    Invalid::one("task", format!("is {bytes} bytes of JSON, the most is {most}"))
}

/// The reason of a refusal as it is kept with a row that asks for `tasks` tasks: of one task the paths say nothing of a
/// batch.
pub fn reason(problems: &dyn std::fmt::Display, tasks: usize) -> String {
    let text = problems.to_string();
    match tasks {
        1 => text.replace("tasks[0].", ""),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Dependency;

    fn row(text: &str) -> Result<Vec<NewTask>, String> {
        let task = Json::parse(text.to_owned()).unwrap();
        read(&task, Time::from_micros(1_000_000)).map_err(|invalid| invalid.to_string())
    }

    #[track_caller]
    fn check(text: &str, problem: &str) {
        let found = row(text).unwrap_err();
        assert!(found.contains(problem), "{text}: {found:?} should say {problem:?}");
    }

    #[test]
    fn a_row_asks_for_one_task_or_for_a_batch_in_either_form() {
        assert_eq!(row(r#"{"handler": "noop"}"#).unwrap().len(), 1);
        for batch in [
            r#"{"tasks": [{"ref": "a", "handler": "noop"}, {"handler": "noop", "depends_on": ["a"]}]}"#,
            r#" [{"ref": "a", "handler": "noop"}, {"handler": "noop", "depends_on": ["a"]}]"#,
        ] {
            let tasks = row(batch).unwrap();
            assert_eq!(tasks[1].depends_on.as_slice(), [Dependency::Item(0)], "{batch}");
        }
    }

    #[test]
    fn a_delay_counts_from_the_moment_of_the_insert() {
        let tasks = row(r#"{"handler": "noop", "delay": 2}"#).unwrap();
        assert_eq!(tasks[0].run_at, Some(Time::from_micros(3_000_000)));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        check(r#"{"handler": "noop", "priority": 9}"#, "priority: 9 is not a priority");
        check(r#"{"handler": "noop", "colour": 1}"#, "colour: unknown field `colour`");
        check(r#"{}"#, "handler: is required");
        check(r#""noop""#, "expected an object");
        check("null", "expected an object");
        check("[]", "tasks: must hold 1 to 10000 tasks");
        check(
            r#"[{"handler": "noop"}, {"handler": "noop", "timeout": "soon"}]"#,
            "tasks[1].timeout",
        );
        check(r#"{"tasks": [{"handler": 7}]}"#, "tasks[0].handler");
        check(r#"{"tasks": [{"handler": "noop"}], "more": 1}"#, "more: unknown field");
        let long = format!(
            r#"{{"handler": "noop", "parameters": "{}"}}"#,
            "x".repeat(TASK_BYTES_MAX)
        );
        check(&long, "task: is 1048613 bytes of JSON, the most is 1048576");
        let long = format!(r#"{{"handle": "{}"}}"#, "x".repeat(TASK_BYTES_MAX));
        check(&long, "task: is");
    }

    #[test]
    fn the_reason_of_one_task_says_nothing_of_a_batch() {
        let problem = Invalid::one("tasks[0].depends_on[1]", "there is no task x");
        assert_eq!(reason(&problem, 1), "depends_on[1]: there is no task x");
        assert_eq!(reason(&problem, 2), "tasks[0].depends_on[1]: there is no task x");
    }
}
