//! Exit codes, and errors that know theirs.

use std::fmt;
use std::process::ExitCode;

use pensum_core::{Rejected, StoreError};
use pensum_engine::EngineError;

use crate::yaml::Fault;

/// How the program ends. The numbers are part of its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: as asked.
    Ok,
    /// 1: the run, or a task that was waited for, failed; or something unforeseen happened.
    Failed,
    /// 2: the command line or an input is wrong.
    Usage,
    /// 3: what was named does not exist.
    NotFound,
    /// 4: not allowed.
    NotAllowed,
    /// 5: no node could be reached, or it cannot work now.
    Unreachable,
    /// 6: the present state does not allow it.
    Conflict,
    /// 124: the time to wait was over.
    Timeout,
    /// 130: stopped by Ctrl-C.
    Interrupted,
    /// 143: stopped by SIGTERM.
    Terminated,
}

impl Exit {
    /// The number.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotFound => 3,
            Exit::NotAllowed => 4,
            Exit::Unreachable => 5,
            Exit::Conflict => 6,
            Exit::Timeout => 124,
            Exit::Interrupted => 130,
            Exit::Terminated => 143,
        }
    }

    /// The code that an error knows.
    pub(crate) fn of(error: &anyhow::Error) -> Option<Exit> {
        error.downcast_ref::<Failure>().map(|failure| failure.exit)
    }

    /// The code for an answer's HTTP status.
    pub(crate) const fn of_status(status: u16) -> Exit {
        match status {
            200..=299 => Exit::Ok,
            400 | 405 | 413 | 415 | 422 => Exit::Usage,
            401 | 403 | 421 => Exit::NotAllowed,
            404 | 410 => Exit::NotFound,
            409 | 412 | 429 => Exit::Conflict,
            408 | 502 | 503 | 504 => Exit::Unreachable,
            _ => Exit::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// An error for people, with the code to exit with. An empty message prints nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The code.
    pub(crate) exit: Exit,
    /// What happened and what to do, in one or two lines.
    pub(crate) message: String,
}

impl Failure {
    /// A failure with a message.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure {
            exit,
            message: message.into(),
        }
    }

    /// A failure whose message stands on the screen already.
    pub(crate) const fn silent(exit: Exit) -> Failure {
        Failure {
            exit,
            message: String::new(),
        }
    }

    /// A mistake in how the program was called.
    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, message)
    }

    /// Faults in a file, one a line.
    pub(crate) fn of_faults(file: &str, faults: &[Fault]) -> Failure {
        let lines: Vec<String> = faults.iter().map(|fault| fault.describe(file)).collect();
        Failure::usage(lines.join("\n"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        let exit = match &error {
            StoreError::Rejected(rejected) => of_rejected(rejected),
            StoreError::Locked { .. } | StoreError::Conflict(_) => Exit::Conflict,
            StoreError::Unavailable(_) | StoreError::Closed => Exit::Unreachable,
            StoreError::Corrupt(_) | StoreError::Newer { .. } => Exit::Failed,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Failure {
        let exit = match &error {
            EngineError::Rejected(rejected) => of_rejected(rejected),
            EngineError::Invalid(_) => Exit::Usage,
            EngineError::WaitTimeout => Exit::Timeout,
            EngineError::NotFound(_) | EngineError::NoQueue { .. } => Exit::NotFound,
            EngineError::Store(error) => return Failure::from(error.clone()),
            #[expect(unreachable_patterns, reason = "the engine may learn to fail in further ways")]
            _ => Exit::Failed,
        };
        Failure::new(exit, error.to_string())
    }
}

const fn of_rejected(rejected: &Rejected) -> Exit {
    match rejected {
        Rejected::NotFound(_) | Rejected::NoQueue(_) => Exit::NotFound,
        Rejected::UnknownDependency { .. } | Rejected::UnknownItem { .. } | Rejected::Cycle(_) => Exit::Usage,
        _ => Exit::Conflict,
    }
}

/// Prints an error where people look for it, and gives its exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let (exit, message) = match error.downcast_ref::<Failure>() {
        Some(failure) => (failure.exit, failure.message.clone()),
        None => (Exit::Failed, format!("{error:#}")),
    };
    if !message.is_empty() {
        super::output::warn(&format!("error: {message}"));
    }
    exit.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: u16, code: u8) {
        assert_eq!(Exit::of_status(status).code(), code, "HTTP {status}");
    }

    #[test]
    fn each_answer_of_a_node_has_its_exit_code() {
        check(201, 0);
        check(422, 2);
        check(404, 3);
        check(403, 4);
        check(503, 5);
        check(409, 6);
        check(412, 6);
        check(429, 6);
        check(500, 1);
    }
}
