//! What to run: program, arguments, environment and limits, read from a task's parameters.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

use super::units;

/// A command: an argument vector, never a shell string. To use a shell, name it: `{program: sh, args: [-c, "ls | wc -l"]}`.
///
/// Deserializing checks everything that can be checked without starting it, refuses unknown fields, and names the field at fault
/// (`limits.memory: …`) in its error.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandSpec {
    /// The program: a name looked up in `PATH`, or a path. A relative path with a `/` counts from `cwd`.
    pub program: String,
    /// Its arguments, the program's own name left out. Numbers and booleans are taken as their text.
    pub args: Vec<String>,
    /// Variables added to the few that every command gets (see [`Process::spawn`](super::Process::spawn)); default: none.
    pub env: BTreeMap<String, String>,
    /// Directory to run in; default: that of the node.
    pub cwd: Option<PathBuf>,
    /// Text for standard input, which ends after it; default: none, standard input is empty.
    pub stdin: Option<String>,
    /// What the command and all that it starts may use together; default: no limits.
    pub limits: Limits,
}

/// What a command and all that it starts may use together. `None` is no limit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    /// Seconds of processor time, of user and system together.
    pub cpu_seconds: Option<f64>,
    /// Bytes of memory in use; read from a number of bytes or from `512MiB`, `1GB`.
    pub memory: Option<u64>,
    /// Time from start to end, pauses left out; read from a number of seconds or from `90s`, `1h 30m`.
    pub wall: Option<Duration>,
}

/// A command that cannot be: the field, by its path, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct SpecError {
    /// Path of the field from the command's own object, such as `limits.memory` or `args[2]`; `.` for the object itself.
    pub field: String,
    /// What is wrong and what to write instead.
    pub problem: String,
}

impl CommandSpec {
    /// A command without arguments, for callers that build it in code.
    pub fn new(program: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
            stdin: None,
            limits: Limits::default(),
        }
    }

    /// Reads a command from a task's parameters.
    ///
    /// # Errors
    ///
    /// The first field that is missing, unknown, of a wrong type or out of range.
    pub fn from_json(parameters: &serde_json::Value) -> Result<Self, SpecError> {
        let raw: Raw = serde_path_to_error::deserialize(parameters).map_err(|error| SpecError {
            field: error.path().to_string(),
            problem: error.inner().to_string(),
        })?;
        raw.check()
    }

    /// Checks what types cannot: a program, no NUL bytes, usable variable names, positive limits.
    ///
    /// # Errors
    ///
    /// The first field at fault.
    pub fn validate(&self) -> Result<(), SpecError> {
        let fail = |field: String, problem: &str| {
            Err(SpecError {
                field,
                problem: problem.to_owned(),
            })
        };
        const NUL: &str = "has a NUL byte, which no argument or variable can carry; remove it";
        if self.program.trim().is_empty() {
            return fail("program".into(), "is empty; name the program to run");
        }
        if self.program.contains('\0') {
            return fail("program".into(), NUL);
        }
        if let Some(at) = self.args.iter().position(|arg| arg.contains('\0')) {
            return fail(format!("args[{at}]"), NUL);
        }
        for (name, value) in &self.env {
            check_variable(name, value)?;
        }
        if let Some(cwd) = &self.cwd {
            if cwd.as_os_str().is_empty() {
                return fail("cwd".into(), "is empty; name a directory or leave it out");
            }
            if cwd.as_os_str().as_encoded_bytes().contains(&0) {
                return fail("cwd".into(), NUL);
            }
        }
        if self
            .limits
            .cpu_seconds
            .is_some_and(|seconds| !(seconds > 0.0 && seconds.is_finite()))
        {
            return fail("limits.cpu_seconds".into(), "must be a positive number of seconds");
        }
        if self.limits.memory == Some(0) {
            return fail(
                "limits.memory".into(),
                "must be at least one byte; leave it out for no limit",
            );
        }
        if self.limits.wall.is_some_and(|wall| wall.is_zero()) {
            return fail(
                "limits.wall".into(),
                "must be longer than zero; leave it out for no limit",
            );
        }
        Ok(())
    }
}

/// Refuses names and values that the operating system's `NAME=value` form cannot hold.
pub(super) fn check_variable(name: &str, value: &str) -> Result<(), SpecError> {
    let problem = if name.is_empty() {
        "has a variable without a name"
    } else if name.contains(['=', '\0']) {
        "has a variable whose name holds `=` or a NUL byte"
    } else if value.contains('\0') {
        "has a NUL byte in its value, which no variable can carry; remove it"
    } else {
        return Ok(());
    };
    let field = if name.is_empty() {
        "env".to_owned()
    } else {
        format!("env.{}", name.escape_default())
    };
    Err(SpecError {
        field,
        problem: problem.to_owned(),
    })
}

impl<'de> Deserialize<'de> for CommandSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw: Raw = serde_path_to_error::deserialize(deserializer)
            .map_err(|error| de::Error::custom(format_args!("{}: {}", error.path(), error.inner())))?;
        raw.check().map_err(de::Error::custom)
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    program: String,
    args: Option<Vec<Scalar>>,
    env: Option<BTreeMap<String, Scalar>>,
    cwd: Option<PathBuf>,
    stdin: Option<String>,
    limits: Option<RawLimits>,
}

#[derive(serde::Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    cpu_seconds: Option<f64>,
    memory: Option<Size>,
    wall: Option<Span>,
}

impl Raw {
    fn check(self) -> Result<CommandSpec, SpecError> {
        let limits = self.limits.unwrap_or_default();
        let spec = CommandSpec {
            program: self.program,
            args: self.args.unwrap_or_default().into_iter().map(|arg| arg.0).collect(),
            env: self
                .env
                .unwrap_or_default()
                .into_iter()
                .map(|(name, value)| (name, value.0))
                .collect(),
            cwd: self.cwd,
            stdin: self.stdin,
            limits: Limits {
                cpu_seconds: limits.cpu_seconds,
                memory: limits.memory.map(|size| size.0),
                wall: limits.wall.map(|span| span.0),
            },
        };
        spec.validate()?;
        Ok(spec)
    }
}

/// Text, or a number or boolean taken as its text: `${n}` in a plan may expand to either.
struct Scalar(String);

/// Bytes of memory.
struct Size(u64);

/// A positive duration.
struct Span(Duration);

/// Implements `Deserialize` for a newtype from what text and what a number mean for it.
macro_rules! from_text_or_number {
    ($name:ident, $expecting:literal, text: $text:expr, number: $number:expr $(, boolean: $boolean:expr)?) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Reader;
                impl Visitor<'_> for Reader {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        $text(text).map($name).map_err(E::custom)
                    }
                    fn visit_u64<E: de::Error>(self, number: u64) -> Result<$name, E> {
                        $number(number, number as f64).map($name).map_err(E::custom)
                    }
                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<$name, E> {
                        $number(number, number as f64).map($name).map_err(E::custom)
                    }
                    fn visit_f64<E: de::Error>(self, number: f64) -> Result<$name, E> {
                        $number(number, number).map($name).map_err(E::custom)
                    }
                    $(fn visit_bool<E: de::Error>(self, boolean: bool) -> Result<$name, E> {
                        Ok($name($boolean(boolean)))
                    })?
                }
                deserializer.deserialize_any(Reader)
            }
        }
    };
}

from_text_or_number!(
    Scalar, "text, a number or a boolean",
    text: |text: &str| Ok::<_, String>(text.to_owned()),
    number: scalar_text,
    boolean: |boolean: bool| boolean.to_string()
);
from_text_or_number!(
    Size, "a number of bytes, or text such as 512MiB or 1GB",
    text: units::bytes,
    number: size_in_bytes
);
from_text_or_number!(
    Span, "a number of seconds, or text such as 90s or 1h 30m",
    text: units::duration,
    number: span_in_seconds
);

fn scalar_text(number: impl fmt::Display, _: f64) -> Result<String, String> {
    Ok(number.to_string())
}

fn size_in_bytes(number: impl fmt::Display, figure: f64) -> Result<u64, String> {
    units::bytes_from(figure)
        .ok_or_else(|| format!("{number} is not a positive number of bytes; leave it out for no limit"))
}

fn span_in_seconds(number: impl fmt::Display, figure: f64) -> Result<Duration, String> {
    units::duration_from(figure)
        .ok_or_else(|| format!("{number} is not a positive number of seconds; leave it out for no limit"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_full_command_reads_as_written() {
        let spec = CommandSpec::from_json(&json!({
            "program": "make", "args": ["-j", 4, true], "env": {"PORT": 8080, "MODE": "test"}, "cwd": "/srv", "stdin": "y\n",
            "limits": {"cpu_seconds": 2, "memory": "512MiB", "wall": "1h 30m"},
        }))
        .unwrap();
        assert_eq!(spec.args, ["-j", "4", "true"]);
        assert_eq!(spec.env["PORT"], "8080");
        assert_eq!(
            spec.limits,
            Limits {
                cpu_seconds: Some(2.0),
                memory: Some(512 << 20),
                wall: Some(Duration::from_secs(5400)),
            }
        );
        let same: CommandSpec = serde_json::from_value(json!({
            "program": "make", "limits": {"memory": 1048576, "wall": 2.5}, "args": null,
        }))
        .unwrap();
        assert_eq!(
            (same.limits.memory, same.limits.wall),
            (Some(1 << 20), Some(Duration::from_millis(2500)))
        );
    }

    #[test]
    fn every_refusal_names_its_field() {
        for (parameters, field) in [
            (json!({"program": ""}), "program"),
            (json!({"program": "a\u{0}b"}), "program"),
            (json!({"program": "a", "args": ["x", "y\u{0}"]}), "args[1]"),
            (json!({"program": "a", "args": [["x"]]}), "args[0]"),
            (json!({"program": "a", "args": "x y"}), "args"),
            (json!({"program": "a", "env": {"A=B": "1"}}), "env.A=B"),
            (json!({"program": "a", "env": {"A": "\u{0}"}}), "env.A"),
            (json!({"program": "a", "env": {"A": {}}}), "env.A"),
            (json!({"program": "a", "cwd": ""}), "cwd"),
            (json!({"program": "a", "limits": {"memory": 0}}), "limits.memory"),
            (json!({"program": "a", "limits": {"memory": "lots"}}), "limits.memory"),
            (json!({"program": "a", "limits": {"memory": -5}}), "limits.memory"),
            (json!({"program": "a", "limits": {"wall": "soon"}}), "limits.wall"),
            (json!({"program": "a", "limits": {"wall": 0}}), "limits.wall"),
            (
                json!({"program": "a", "limits": {"cpu_seconds": 0}}),
                "limits.cpu_seconds",
            ),
            (
                json!({"program": "a", "limits": {"cpu_seconds": "x"}}),
                "limits.cpu_seconds",
            ),
            (json!({"program": "a", "limits": {"disk": 5}}), "limits.disk"),
            (json!({"program": "a", "shell": true}), "shell"),
        ] {
            let error = CommandSpec::from_json(&parameters).unwrap_err();
            assert_eq!(error.field, field, "{parameters} gave {error}");
            let plain = serde_json::from_value::<CommandSpec>(parameters)
                .unwrap_err()
                .to_string();
            assert!(plain.starts_with(&format!("{field}: ")), "{plain}");
        }
        let error = CommandSpec::from_json(&json!({"args": []})).unwrap_err();
        assert!(error.to_string().contains("program"), "{error}");
    }
}
