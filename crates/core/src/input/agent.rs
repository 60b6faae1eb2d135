//! An agent that registers.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::Check;
use super::parse::{Invalid, optional_object};
use super::{CAPABILITIES_MAX, LABELS_MAX, NAME_MAX, TITLE_MAX};
use crate::Name;
use crate::agent::{AGENT_SLOTS_MAX, AgentSettings};
use crate::task::Resources;
use crate::time::Span;

/// Shortest lease of an agent.
const LEASE_MIN: Duration = Duration::from_secs(1);
/// Longest lease of an agent.
const LEASE_MAX: Duration = Duration::from_secs(3_600);

/// What an agent says of itself when it registers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentInput {
    /// Its id: 1 to 200 letters, digits or any of `_ - . : /`.
    pub id: String,
    /// A name for people; its id by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What kind of agent it is, in its author's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_type: Option<String>,
    /// The version of its program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// What it can do, 1 to 100 names: names of handlers, or whatever tasks require.
    pub capabilities: Vec<String>,
    /// How many tasks it runs at once, 1 to 10,000; 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrent_tasks: Option<u32>,
    /// What its machine has for tasks; what is left out is none.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "optional_object"
    )]
    pub resources: Option<Resources>,
    /// Free text for people and lists, at most 50 pairs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How long its leases last without a heartbeat, and how long it may be silent: 1 s to 1 h; 30 s by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    pub lease: Option<Span>,
}

impl AgentInput {
    /// Checks what it says.
    ///
    /// # Errors
    /// Every problem, by path.
    pub fn resolve(self) -> Result<(Name, AgentSettings), Invalid> {
        let mut check = Check::default();
        check.identifier("id", &self.id);
        check.text("name", self.name.as_deref(), TITLE_MAX);
        if self.name.as_deref().is_some_and(|name| name.trim().is_empty()) {
            check.fail("name", "must not be empty; leave it out for the agent's id");
        }
        check.label("agent_type", self.agent_type.as_deref());
        check.label("agent_version", self.agent_version.as_deref());
        self.check_capabilities(&mut check);
        let slots = self.max_concurrent_tasks.unwrap_or(1);
        if !(1..=AGENT_SLOTS_MAX).contains(&slots) {
            let message = format!("must be 1 to {AGENT_SLOTS_MAX}; drain the agent to give it nothing");
            check.fail("max_concurrent_tasks", message);
        }
        if let Some(resources) = &self.resources {
            check.resources(resources);
        }
        self.check_labels(&mut check);
        if self
            .lease
            .is_some_and(|lease| !(LEASE_MIN..=LEASE_MAX).contains(&lease.0))
        {
            let (least, most) = (LEASE_MIN.as_secs(), LEASE_MAX.as_secs());
            check.fail("lease", format!("must be {least} to {most} seconds"));
        }
        check.done()?;
        let mut capabilities: Vec<Name> = Vec::with_capacity(self.capabilities.len());
        for capability in self.capabilities {
            if !capabilities.iter().any(|known| **known == *capability) {
                capabilities.push(capability.into());
            }
        }
        let settings = AgentSettings {
            title: self.name,
            agent_type: self.agent_type,
            agent_version: self.agent_version,
            capabilities,
            max_concurrent_tasks: slots,
            resources: self.resources,
            labels: self.labels,
            lease: self.lease,
        };
        Ok((self.id.into(), settings))
    }

    fn check_capabilities(&self, check: &mut Check) {
        let count = self.capabilities.len();
        if !(1..=CAPABILITIES_MAX).contains(&count) {
            check.fail(
                "capabilities",
                format!("holds {count} names; must be 1 to {CAPABILITIES_MAX}"),
            );
            return;
        }
        for (index, capability) in self.capabilities.iter().enumerate() {
            check.label(&format!("capabilities[{index}]"), Some(capability));
        }
    }

    fn check_labels(&self, check: &mut Check) {
        let count = self.labels.len();
        if count > LABELS_MAX {
            check.fail("labels", format!("holds {count} pairs, the most is {LABELS_MAX}"));
            return;
        }
        for (key, value) in &self.labels {
            let before = check.problems.len();
            check.label("labels", Some(key));
            if check.problems.len() == before {
                check.text(&format!("labels.{key}"), Some(value), NAME_MAX);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::parse_object;

    fn read(text: &str) -> Result<(Name, AgentSettings), Invalid> {
        parse_object::<AgentInput>(text.as_bytes()).and_then(AgentInput::resolve)
    }

    #[track_caller]
    fn check(more: &str, problem: &str) {
        let text = format!(r#"{{"id":"a","capabilities":["x"]{more}}}"#);
        let found = read(&text).unwrap_err().to_string();
        assert!(found.contains(problem), "{text}: {found:?} should say {problem:?}");
    }

    #[test]
    fn an_agent_says_at_least_what_it_is_called_and_what_it_can_do() {
        let (name, settings) = read(r#"{"id":"eu/gpu-1","capabilities":["x","y","x"]}"#).unwrap();
        assert_eq!(&*name, "eu/gpu-1");
        assert_eq!(settings.capabilities, [Name::from("x"), Name::from("y")]);
        assert_eq!((settings.max_concurrent_tasks, settings.lease), (1, None));
        let missing = |text: &str| read(text).unwrap_err().0[0].path.clone();
        assert_eq!(missing(r#"{"capabilities":["x"]}"#), "id");
        assert_eq!(missing(r#"{"id":"a"}"#), "capabilities");
        assert_eq!(missing(r#"{"id":"a","capabilities":[]}"#), "capabilities");
        assert_eq!(missing(r#"{"id":"a b","capabilities":["x"]}"#), "id");
        assert_eq!(missing(r#"{"id":"","capabilities":["x"]}"#), "id");
        assert_eq!(missing(r#"{"id":"a","capabilities":["x",""]}"#), "capabilities[1]");
        let many = vec!["\"x\""; CAPABILITIES_MAX + 1].join(",");
        assert_eq!(
            missing(&format!(r#"{{"id":"a","capabilities":[{many}]}}"#)),
            "capabilities"
        );
        assert!(read("[]").is_err());
    }

    #[test]
    fn every_problem_is_named_by_its_path() {
        check(r#","colour":1"#, "colour: unknown field `colour`");
        check(r#","status":"idle""#, "status: `status` is set by the engine");
        check(r#","name":" ""#, "name: must not be empty");
        check(r#","agent_type":"\u0007""#, "agent_type: must not contain control");
        check(r#","agent_version":"""#, "agent_version: must not be empty");
        check(
            r#","max_concurrent_tasks":0"#,
            "max_concurrent_tasks: must be 1 to 10000",
        );
        check(r#","max_concurrent_tasks":10001"#, "max_concurrent_tasks: must be");
        check(r#","max_concurrent_tasks":-1"#, "max_concurrent_tasks: invalid value");
        check(r#","resources":{"cpu_cores":-1}"#, "resources.cpu_cores: must be zero");
        check(r#","resources":{"cpus":1}"#, "resources.cpus: unknown field");
        check(r#","resources":[]"#, "resources: invalid type");
        check(r#","labels":{"":"x"}"#, "labels: must not be empty");
        check(r#","labels":{"zone":"a\u0000"}"#, "labels.zone: contains the NUL");
        check(r#","labels":{"zone":7}"#, "labels.zone: invalid type");
        check(r#","lease":0.5"#, "lease: must be 1 to 3600 seconds");
        check(r#","lease":"2h""#, "lease: must be 1 to 3600 seconds");
        check(r#","lease":"soon""#, "lease: `soon` is not a duration");
        let pairs = (0..=LABELS_MAX).map(|n| format!(r#""l{n}":"v""#)).collect::<Vec<_>>();
        check(&format!(r#","labels":{{{}}}"#, pairs.join(",")), "labels: holds 51");
        let all = read(r#"{"id":"","capabilities":[],"max_concurrent_tasks":0,"lease":0}"#).unwrap_err();
        assert_eq!(all.0.len(), 4, "{all}");
    }
}
