//! The settings of a circuit breaker.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::check::Check;
use super::parse::Invalid;
use crate::Name;
use crate::breaker::BreakerSettings;
use crate::time::Span;

/// Most handlers, and most agents, of one breaker.
const COVERED_MAX: usize = 100;
/// Most ends that a threshold may ask for, and most probes.
const COUNT_MAX: u32 = 1_000_000;

/// What a breaker covers, and when it opens and closes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerInput {
    /// Handlers of which tasks wait while it is open. A breaker named `handler:NAME` that says nothing covers that one.
    pub handlers: Vec<String>,
    /// Agents that get nothing while it is open. A breaker named `agent:NAME` that says nothing covers that one.
    pub agents: Vec<String>,
    /// So many failures within the window open it; 5 by default, unless there is a `failure_rate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failures: Option<u32>,
    /// So large a part of the ends within the window open it, above 0 and up to 1, once there were `calls_min`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_rate: Option<f64>,
    /// How many ends there must be before their rate counts; 10 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls_min: Option<u32>,
    /// How far back ends count, in seconds; 60 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    pub window: Option<Span>,
    /// How long it is open before it lets somebody try, in seconds; 30 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    pub open_for: Option<Span>,
    /// How many may try at once, and how many must succeed; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<u32>,
}

impl BreakerInput {
    /// Checks the settings of the breaker of this name.
    ///
    /// # Errors
    /// Every problem, by path; a name that no breaker can have is one at `id`.
    pub fn resolve(self, name: &str) -> Result<BreakerSettings, Invalid> {
        let mut check = Check::default();
        check.identifier("id", name);
        let mut covered = [self.handlers, self.agents];
        if covered.iter().all(Vec::is_empty) {
            if let Some(handler) = name.strip_prefix("handler:").filter(|handler| !handler.is_empty()) {
                covered[0].push(handler.to_owned());
            } else if let Some(agent) = name.strip_prefix("agent:").filter(|agent| !agent.is_empty()) {
                covered[1].push(agent.to_owned());
            } else {
                check.fail(
                    "handlers",
                    "covers nothing: name handlers or agents, or call the breaker handler:NAME or agent:NAME",
                );
            }
        }
        for (path, names) in ["handlers", "agents"].into_iter().zip(&covered) {
            if names.len() > COVERED_MAX {
                check.fail(path, format!("holds {} names, the most is {COVERED_MAX}", names.len()));
                continue;
            }
            for (index, name) in names.iter().enumerate() {
                check.identifier(&format!("{path}[{index}]"), name);
            }
        }
        for names in &mut covered {
            let mut seen = BTreeSet::new();
            names.retain(|name| seen.insert(name.clone()));
        }
        let default = BreakerSettings::default();
        for (path, count) in [
            ("failures", self.failures),
            ("calls_min", self.calls_min),
            ("probes", self.probes),
        ] {
            if count.is_some_and(|count| !(1..=COUNT_MAX).contains(&count)) {
                check.fail(path, format!("must be 1 to {COUNT_MAX}"));
            }
        }
        if self.failure_rate.is_some_and(|rate| !(rate > 0.0 && rate <= 1.0)) {
            check.fail("failure_rate", "must be above 0 and up to 1, such as 0.5");
        }
        for (path, span, default) in [
            ("window", self.window, default.window),
            ("open_for", self.open_for, default.open_for),
        ] {
            if span.is_some_and(|span| span.0.is_zero()) {
                let default = default.0.as_secs_f64();
                check.fail(path, format!("must be longer than zero; leave it out for {default} s"));
            }
        }
        check.done()?;
        let [handlers, agents] = covered.map(|names| names.into_iter().map(Name::from).collect());
        let failures = match self.failure_rate {
            Some(_) => self.failures,
            None => self.failures.or(default.failures),
        };
        Ok(BreakerSettings {
            handlers,
            agents,
            failures,
            failure_permille: self.failure_rate.map(|rate| (rate * 1_000.0).ceil() as u32),
            calls_min: self.calls_min.unwrap_or(default.calls_min),
            window: self.window.unwrap_or(default.window),
            open_for: self.open_for.unwrap_or(default.open_for),
            probes: self.probes.unwrap_or(default.probes),
        })
    }
}

/// The settings as their author would have written them.
impl From<BreakerSettings> for BreakerInput {
    fn from(settings: BreakerSettings) -> BreakerInput {
        let names = |names: Vec<Name>| names.iter().map(ToString::to_string).collect();
        BreakerInput {
            handlers: names(settings.handlers),
            agents: names(settings.agents),
            failures: settings.failures,
            failure_rate: settings.failure_permille.map(|permille| f64::from(permille) / 1_000.0),
            calls_min: Some(settings.calls_min),
            window: Some(settings.window),
            open_for: Some(settings.open_for),
            probes: Some(settings.probes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::parse_object;

    fn read(name: &str, text: &str) -> Result<BreakerSettings, Invalid> {
        parse_object::<BreakerInput>(text.as_bytes())?.resolve(name)
    }

    #[track_caller]
    fn check(name: &str, text: &str, problem: &str) {
        let found = read(name, text).unwrap_err().to_string();
        assert!(found.contains(problem), "{text}: {found:?} should say {problem:?}");
    }

    #[test]
    fn every_problem_is_named_by_its_path() {
        check("b", "{}", "handlers: covers nothing");
        check("handler:", "{}", "handlers: covers nothing");
        check("two words", r#"{"handlers":["h"]}"#, "id: must be 1 to 200");
        check("b", r#"{"handlers":["a b"]}"#, "handlers[0]: must be 1 to 200");
        check("b", r#"{"agents":[""]}"#, "agents[0]");
        for (field, problem) in [
            (r#""failures":0"#, "failures: must be 1"),
            (r#""probes":0"#, "probes: must be 1"),
            (r#""failure_rate":1.5"#, "failure_rate: must be above 0"),
            (r#""failure_rate":"half""#, "failure_rate: invalid type"),
            (r#""window":0"#, "window: must be longer than zero"),
            (r#""open_for":"soon""#, "open_for: `soon` is not a duration"),
            (r#""colour":1"#, "colour: unknown field"),
        ] {
            check("b", &format!(r#"{{"handlers":["h"],{field}}}"#), problem);
        }
        check("b", r#"{"handlers":"h"}"#, "handlers: invalid type");
    }

    #[test]
    fn a_name_may_say_what_is_covered() {
        let of = |name: &str| read(name, "{}").unwrap();
        assert_eq!(of("handler:mail/eu").handlers, [Name::from("mail/eu")]);
        assert_eq!(of("agent:w-1").agents, [Name::from("w-1")]);
        assert!(of("agent:w-1").handlers.is_empty());
        let other = read("handler:mail", r#"{"handlers":["x"]}"#).unwrap();
        assert_eq!(other.handlers, [Name::from("x")]);
    }

    #[test]
    fn settings_can_be_written_down_and_read_again() {
        let text = r#"{"handlers":["h"],"agents":["a"],"failure_rate":0.25,"calls_min":4,"window":"2m","open_for":5,"probes":3}"#;
        let settings = read("b", text).unwrap();
        assert_eq!((settings.failures, settings.failure_permille), (None, Some(250)));
        let written = serde_json::to_string(&BreakerInput::from(settings.clone())).unwrap();
        assert_eq!(read("b", &written).unwrap(), settings);
        assert_eq!(read("handler:h", "{}").unwrap().failures, Some(5));
    }
}
