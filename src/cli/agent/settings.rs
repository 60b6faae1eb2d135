//! Agents in files: the block `agents` of the configuration, which a node registers, starts and watches.

use std::collections::BTreeMap;
use std::time::Duration;

use pensum_core::input::{self, AgentInput, Invalid};
use pensum_core::time::Span;
use pensum_engine::process::{Limits, SpecError};
use serde::Deserialize;
use serde_json::Value as Json;

use super::runner::read_limits;
use crate::yaml::{Fault, Node};

/// How long what an agent runs may go on after it was asked to stop, when the configuration does not say.
const GRACE: Span = Span(Duration::from_secs(10));

/// An agent of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Configured {
    /// What it registers as.
    pub(crate) input: AgentInput,
    /// What the node runs for it; `None` for one that comes by itself.
    pub(super) kind: Option<Kind>,
    /// Variables for its programs.
    pub(super) env: BTreeMap<String, String>,
    /// What each run of its program may use.
    pub(super) limits: Limits,
    /// How long what it runs may go on after it was asked to stop.
    pub(super) grace: Duration,
}

/// What a node runs for an agent.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// A program for each task.
    Program(Vec<String>),
    /// A process that polls by itself, and is started again when it ends.
    Worker(Vec<String>),
    /// An HTTP endpoint that is called for each task.
    Url(String),
}

/// The fields that an agent has in the configuration beside those that it registers.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Extra {
    program: Option<Vec<String>>,
    worker: Option<Vec<String>>,
    url: Option<String>,
    env: BTreeMap<String, String>,
    limits: Option<Json>,
    grace: Option<Span>,
}

/// Their names; `status` is what older files say of an agent, and follows from leases here.
const EXTRA: [&str; 7] = ["program", "worker", "url", "env", "limits", "grace", "status"];

/// Reads `{ID: {…}}`.
pub(crate) fn read(block: &Node) -> Result<Vec<Configured>, Vec<Fault>> {
    block.read_entries("agents", |id, node| read_one(id, &node.json()))
}

fn read_one(id: &str, text: &str) -> Result<Configured, Invalid> {
    let Ok(Json::Object(mut fields)) = serde_json::from_str(text) else {
        return Err(Invalid::one("", "must be a map with at least `capabilities`"));
    };
    let mut extra = serde_json::Map::new();
    for name in EXTRA {
        if let Some(value) = fields.remove(name) {
            extra.insert(name.to_owned(), value);
        }
    }
    let named = fields.entry("id").or_insert_with(|| Json::from(id));
    if named.as_str() != Some(id) {
        return Err(Invalid::one(
            "id",
            format!("must be `{id}`, the name that it stands under"),
        ));
    }
    let for_a_run = ["env", "limits", "grace"]
        .into_iter()
        .find(|name| extra.contains_key(*name));
    let extra: Extra = input::parse(Json::Object(extra).to_string().as_bytes())?;
    let mut kinds = Vec::new();
    kinds.extend(extra.program.map(Kind::Program));
    kinds.extend(extra.worker.map(Kind::Worker));
    kinds.extend(extra.url.map(Kind::Url));
    if kinds.len() > 1 {
        return Err(Invalid::one(
            "",
            "must have one of `program`, `worker` and `url`, not several",
        ));
    }
    let kind = kinds.pop();
    if kind.is_none()
        && let Some(name) = for_a_run
    {
        let message = "is for what the node runs: give `program`, `worker` or `url` as well, or leave it out";
        return Err(Invalid::one(name, message));
    }
    let limits = match (&extra.limits, &kind) {
        (None, _) => Limits::default(),
        (Some(limits), Some(Kind::Program(_))) => {
            read_limits(limits).map_err(|SpecError { field, problem }| Invalid::one(field, problem))?
        }
        (Some(_), _) => {
            return Err(Invalid::one(
                "limits",
                "is for a `program`, which is run once for each task",
            ));
        }
    };
    let (kind_name, wrong) = match &kind {
        None => (None, None),
        Some(Kind::Program(argv)) => (
            Some("program"),
            argv.first().is_none_or(String::is_empty).then_some("program"),
        ),
        Some(Kind::Worker(argv)) => (
            Some("worker"),
            argv.first().is_none_or(String::is_empty).then_some("worker"),
        ),
        Some(Kind::Url(url)) => {
            let is_http = url.starts_with("http://") || url.starts_with("https://");
            (Some("http"), (!is_http).then_some("url"))
        }
    };
    match wrong {
        Some("url") => return Err(Invalid::one("url", "must begin with http:// or https://")),
        Some(path) => return Err(Invalid::one(path, "must be a list that begins with the program to run")),
        None => {}
    }
    if let Some(kind_name) = kind_name {
        fields.entry("agent_type").or_insert_with(|| Json::from(kind_name));
    }
    let agent = input::parse_object::<AgentInput>(Json::Object(fields).to_string().as_bytes()).map_err(with_extra)?;
    agent.clone().resolve()?;
    Ok(Configured {
        input: agent,
        kind,
        env: extra.env,
        limits,
        grace: extra.grace.unwrap_or(GRACE).0,
    })
}

/// Names the fields of the configuration too, where one is unknown.
fn with_extra(Invalid(mut problems): Invalid) -> Invalid {
    for problem in &mut problems {
        if problem.message.starts_with("unknown field `") && problem.message.contains(", expected one of ") {
            let names = EXTRA.map(|name| format!("`{name}`"));
            problem.message = format!("{}, {}", problem.message, names.join(", "));
        }
    }
    Invalid(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, problem: &str) {
        let found = read_one("w", text).unwrap_err().to_string();
        assert!(found.contains(problem), "{text}: {found:?} should say {problem:?}");
    }

    #[test]
    fn every_problem_is_named_by_its_path() {
        check("7", "must be a map");
        check("{}", "capabilities: missing field");
        check(r#"{"capabilities":[]}"#, "capabilities: holds 0 names");
        check(r#"{"capabilities":["a"],"id":"v"}"#, "id: must be `w`");
        check(r#"{"capabilities":["a"],"colour":1}"#, "colour: unknown field");
        check(r#"{"capabilities":["a"],"prog":["x"]}"#, "`lease`, `program`, `worker`");
        check(
            r#"{"capabilities":["a"],"env":{"A":"1"}}"#,
            "env: is for what the node runs",
        );
        check(
            r#"{"capabilities":["a"],"grace":5}"#,
            "grace: is for what the node runs",
        );
        check(r#"{"capabilities":["a"],"program":[]}"#, "program: must be a list");
        for (limits, problem) in [
            (r#"{"memory":"lots"}"#, "limits.memory: "),
            (r#"{"cpu_seconds":0}"#, "limits.cpu_seconds: must be a positive number"),
            (r#"{"wall":5}"#, "limits.wall: is what the `timeout`"),
            (r#"{"disk":5}"#, "limits.disk: unknown field"),
        ] {
            check(
                &format!(r#"{{"capabilities":["a"],"program":["x"],"limits":{limits}}}"#),
                problem,
            );
        }
        check(
            r#"{"capabilities":["a"],"worker":["x"],"limits":{"memory":"1GB"}}"#,
            "limits: is for a `program`",
        );
        check(r#"{"capabilities":["a"],"program":"x"}"#, "program: invalid type");
        check(
            r#"{"capabilities":["a"],"worker":["x"],"url":"http://h"}"#,
            "one of `program`, `worker` and `url`",
        );
        check(r#"{"capabilities":["a"],"url":"ftp://h"}"#, "url: must begin with http");
        check(
            r#"{"capabilities":["a"],"grace":"soon"}"#,
            "grace: `soon` is not a duration",
        );
    }

    #[test]
    fn an_agent_says_what_the_node_runs_for_it() {
        let of = |text: &str| read_one("w", text).unwrap();
        let old = of(r#"{"id":"w","name":"W","capabilities":["a"],"max_concurrent_tasks":2,"status":"idle"}"#);
        assert_eq!((old.kind, old.input.max_concurrent_tasks), (None, Some(2)));
        let program = of(
            r#"{"capabilities":["a"],"program":["sh","-c","cat"],"env":{"A":"b"},"grace":"3s",
            "limits":{"memory":"1MiB"}}"#,
        );
        assert_eq!(program.limits.memory, Some(1 << 20));
        assert_eq!(
            program.kind,
            Some(Kind::Program(vec!["sh".into(), "-c".into(), "cat".into()]))
        );
        assert_eq!(
            (program.input.agent_type.as_deref(), program.grace.as_secs()),
            (Some("program"), 3)
        );
        let http = of(r#"{"capabilities":["a"],"url":"http://127.0.0.1:1/","agent_type":"mine"}"#);
        assert_eq!(http.input.agent_type.as_deref(), Some("mine"));
    }
}
