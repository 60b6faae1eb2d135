//! What the end of a command means for the task that it ran.

use pensum_core::outcome::Usage as Used;
use pensum_core::{ErrorInfo, Json, Outcome};
use serde_json::json;

use super::wait::{Exit, ExitReason};
use crate::kinds;

/// A line on standard error that begins with this sets the task's progress: `pensum:progress 40 almost half`.
const PROGRESS_PREFIX: &str = "pensum:progress ";

/// The progress that a line on standard error tells, if it does.
pub fn progress_of(line: &str) -> Option<(f64, Option<String>)> {
    let rest = line.strip_prefix(PROGRESS_PREFIX)?.trim();
    let (percent, message) = rest.split_once(' ').unwrap_or((rest, ""));
    let percent: f64 = percent
        .trim_end_matches('%')
        .parse()
        .ok()
        .filter(|p: &f64| p.is_finite())?;
    let message = message.trim();
    Some((percent, (!message.is_empty()).then(|| message.to_owned())))
}

impl Exit {
    /// What the command used, as an attempt keeps it.
    pub fn used(&self) -> Used {
        Used {
            cpu_seconds: Some(self.usage.cpu_seconds),
            cpu_percent: Some(self.usage.cpu_percent),
            memory_mb: Some(self.usage.memory_mb),
            read_mb: self.usage.read_mb,
            written_mb: self.usage.written_mb,
            wall_seconds: self.usage.wall_seconds,
        }
    }

    /// What it says of the task: exit code 0 is done, with standard output as the result, as JSON where it is JSON, else as
    /// `{"stdout": …, "exit_code": 0}`. Any other end is a failure that is tried again.
    pub fn outcome(&self) -> Outcome {
        if self.success() {
            return Outcome::Done(result(self));
        }
        let (kind, what) = match self.reason {
            ExitReason::CpuExceeded => (
                kinds::CPU_EXCEEDED,
                "it used more processor time than limits.cpu_seconds".into(),
            ),
            ExitReason::MemoryExceeded => (kinds::MEMORY_EXCEEDED, "it used more memory than limits.memory".into()),
            ExitReason::WallExceeded => (kinds::WALL_EXCEEDED, "it ran for longer than limits.wall".into()),
            ExitReason::Signalled => {
                let name = self.signal_name.map(str::to_owned);
                let name = name
                    .or_else(|| self.signal.map(|n| format!("signal {n}")))
                    .unwrap_or_else(|| "a signal".into());
                (kinds::SIGNAL, format!("{name} ended it"))
            }
            ExitReason::Exited => match self.code {
                Some(code) => (kinds::EXIT_CODE, format!("it exited with code {code}")),
                None => (kinds::EXIT_CODE, "its exit code was lost".to_owned()),
            },
        };
        let tail = self.stderr_tail.trim_end();
        let message = if tail.is_empty() {
            what
        } else {
            format!("{what}: {tail}")
        };
        Outcome::Retry {
            error: ErrorInfo::new(kind, message),
            after: None,
        }
    }
}

/// Standard output as the task's result.
fn result(exit: &Exit) -> Json {
    let text = exit.stdout.trim();
    if !exit.stdout_truncated
        && !text.is_empty()
        && let Ok(json) = Json::parse(text.to_owned())
        && json.problem().is_none()
    {
        return json;
    }
    // Escapes make JSON longer than the text; what does not fit is cut, and said to be.
    let mut keep = exit.stdout.as_str();
    let mut truncated = exit.stdout_truncated;
    loop {
        let mut value = json!({ "stdout": keep, "exit_code": 0 });
        if truncated {
            value["stdout_truncated"] = json!(true);
        }
        let json = Json::from(value);
        if json.problem().is_none() || keep.is_empty() {
            return json;
        }
        keep = &keep[..keep.floor_char_boundary(keep.len() / 2)];
        truncated = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: Option<(f64, Option<&str>)>) {
        assert_eq!(
            progress_of(line),
            expected.map(|(p, m)| (p, m.map(str::to_owned))),
            "{line}"
        );
    }

    #[test]
    fn a_progress_line_is_a_percentage_and_words() {
        check("pensum:progress 40 almost half", Some((40.0, Some("almost half"))));
        check("pensum:progress 12.5%", Some((12.5, None)));
        check("pensum:progress soon", None);
        check("pensum:progress NaN x", None);
        check("progress 40", None);
    }
}
