//! The checks that fields share.

use std::ops::Deref;

use super::parse::{Invalid, Problem};
use super::{NAME_MAX, RETRIES_MAX, TAGS_MAX, TASK_TYPES};
use crate::id::clip;
use crate::task::{Resources, UNITS_MAX};
use crate::time::Span;
use crate::{Json, RetryPolicy, Time};

/// A name that no queue can have: `GET /queues/stats` answers the counts of all.
const RESERVED_QUEUE: &str = "stats";

/// Checks the id of what people name, such as an agent: the characters of a handler.
///
/// # Errors
/// What is wrong, at the path `id`.
pub fn check_id(id: &str) -> Result<(), Invalid> {
    let mut check = Check::default();
    check.identifier("id", id);
    check.done()
}

/// Checks the id of a queue: a name as tasks may name it, and none that a route has.
///
/// # Errors
/// What is wrong, at the path `id`.
pub fn check_queue_id(id: &str) -> Result<(), Invalid> {
    let mut check = Check::default();
    check.queue("id", id);
    check.done()
}

/// Collects problems.
#[derive(Default)]
pub(super) struct Check {
    pub(super) problems: Vec<Problem>,
}

impl Check {
    /// What was found, if anything.
    pub(super) fn done(self) -> Result<(), Invalid> {
        match self.problems.is_empty() {
            true => Ok(()),
            false => Err(Invalid(self.problems)),
        }
    }

    pub(super) fn fail(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem {
            path: path.into(),
            message: message.into(),
        });
    }

    pub(super) fn text(&mut self, path: &str, text: Option<&str>, most: usize) {
        let Some(text) = text else { return };
        if text.contains('\0') {
            self.fail(path, "contains the NUL character, which cannot be stored");
        } else if text.chars().count() > most {
            self.fail(path, format!("is longer than {most} characters"));
        }
    }

    pub(super) fn label(&mut self, path: &str, text: Option<&str>) {
        let Some(text) = text else { return };
        if text.trim().is_empty() {
            self.fail(path, "must not be empty");
        } else if text.chars().any(char::is_control) {
            self.fail(path, "must not contain control characters");
        } else if text.chars().count() > NAME_MAX {
            self.fail(path, format!("is longer than {NAME_MAX} characters"));
        }
    }

    pub(super) fn labels(&mut self, path: &str, texts: &[impl Deref<Target = str>]) {
        if texts.len() > TAGS_MAX {
            self.fail(path, format!("holds {} items, the most is {TAGS_MAX}", texts.len()));
            return;
        }
        for (index, text) in texts.iter().enumerate() {
            self.label(&format!("{path}[{index}]"), Some(text));
        }
    }

    pub(super) fn identifier(&mut self, path: &str, text: &str) {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
        if text.is_empty() || text.len() > NAME_MAX || !text.chars().all(fits) {
            let message = format!(
                "must be 1 to {NAME_MAX} letters, digits or any of _ - . : /, not `{}`",
                clip(text)
            );
            self.fail(path, message);
        } else if matches!(text, "." | "..") {
            self.fail(
                path,
                format!("must not be `{text}`, which has a meaning of its own in addresses"),
            );
        }
    }

    /// A name that a queue may have: none that a route has.
    pub(super) fn queue(&mut self, path: &str, text: &str) {
        self.identifier(path, text);
        if text == RESERVED_QUEUE {
            self.fail(
                path,
                format!("`{text}` is taken by the route /queues/{text}; choose another name"),
            );
        }
    }

    pub(super) fn task_type(&mut self, text: &str) {
        if !TASK_TYPES.contains(&text) {
            let message = format!(
                "`{}` is not a task type; the types are {}",
                clip(text),
                TASK_TYPES.join(", ")
            );
            self.fail("task_type", message);
        }
    }

    pub(super) fn json(&mut self, path: &str, json: Option<&Json>) {
        if let Some(problem) = json.and_then(Json::problem) {
            self.fail(path, problem);
        }
    }

    pub(super) fn positive(&mut self, path: &str, span: Option<Span>) {
        if span.is_some_and(|s| s.0.is_zero()) {
            self.fail(path, "must be longer than zero; leave it out for none");
        }
    }

    pub(super) fn retries(&mut self, retries: Option<u32>) {
        if retries.is_some_and(|r| r > RETRIES_MAX) {
            self.fail("max_retries", format!("must be 0 to {RETRIES_MAX}"));
        }
    }

    pub(super) fn retry(&mut self, retry: &RetryPolicy) {
        for (field, message) in retry.problems() {
            self.fail(format!("retry.{field}"), message);
        }
    }

    pub(super) fn units(&mut self, units: Option<u32>) {
        if units.is_some_and(|units| !(1..=UNITS_MAX).contains(&units)) {
            self.fail("units", format!("must be 1 to {UNITS_MAX}"));
        }
    }

    pub(super) fn resources(&mut self, resources: &Resources) {
        for (field, value) in [
            ("cpu_cores", resources.cpu_cores),
            ("memory_gb", resources.memory_gb),
            ("disk_gb", resources.disk_gb),
            ("gpu_memory_gb", resources.gpu_memory_gb),
        ] {
            if value.is_some_and(|v| !v.is_finite() || v < 0.0) {
                self.fail(format!("resources.{field}"), "must be zero or more");
            }
        }
    }

    /// Times centuries away are mistakes (milliseconds for seconds, year 0001), and would overflow sums.
    pub(super) fn sane_time(&mut self, path: &str, time: Time, now: Time) {
        let far = crate::time::DURATION_MAX * 10;
        if time > now.plus(far) || time < now.minus(far) {
            self.fail(path, format!("{time} is more than a century away"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_name_has_the_characters_of_a_handler() {
        assert!(check_id("mail/eu-1.x:y_z").is_ok());
        for bad in ["", "two words", "a\0b", ".", ".."] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_queue_has_a_name_that_no_route_has() {
        assert!(check_queue_id("mail").is_ok());
        for bad in ["two words", "stats"] {
            assert!(check_queue_id(bad).is_err(), "{bad:?}");
        }
    }
}
