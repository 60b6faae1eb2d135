//! Agents: programs outside the nodes that run tasks. What each offers, what a task demands, and who takes what.
//!
//! An agent says once what it can do ([`AgentSettings`]). A process that polls for it opens a session; of one agent one
//! session holds at a time, and a newer one fences the older. A session claims as a node does, under its own
//! [`NodeId`]: what it holds, and whether that outlives it, follows from leases and from when it was last heard.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::store::Rejected;
use crate::task::{Resources, Spec};
use crate::time::Span;
use crate::{Name, NodeId, Time};

/// Most agents of one store.
pub const AGENTS_MAX: usize = 10_000;
/// Most tasks that one agent may run at once.
pub const AGENT_SLOTS_MAX: u32 = 10_000;
/// How long an agent's leases last without renewal, and how long it may be silent before it is offline, unless it says
/// otherwise.
pub const AGENT_LEASE: Duration = Duration::from_secs(30);
/// How many sessions that were fenced are remembered, so that they are refused instead of taking over again.
pub const SESSIONS_FENCED_MAX: usize = 16;

/// Amounts of the four resources in thousandths, so that sums are exact: cpu cores, GB of memory, of disk, of GPU memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Amounts([u64; 4]);

/// What the four are called, in the order of [`Amounts`].
pub const RESOURCE_NAMES: [&str; 4] = ["cpu_cores", "memory_gb", "disk_gb", "gpu_memory_gb"];

impl Amounts {
    /// The amounts that somebody wrote down; what is left out is none. Fractions beyond the thousandth are rounded up.
    pub fn of(resources: &Resources) -> Amounts {
        let of = |amount: Option<f64>| (amount.unwrap_or(0.0) * 1_000.0).ceil() as u64;
        Amounts([
            of(resources.cpu_cores),
            of(resources.memory_gb),
            of(resources.disk_gb),
            of(resources.gpu_memory_gb),
        ])
    }

    /// The same as somebody would write them.
    pub fn resources(self) -> Resources {
        let of = |amount: u64| (amount > 0).then_some(amount as f64 / 1_000.0);
        let [cpu, memory, disk, gpu] = self.0;
        Resources {
            cpu_cores: of(cpu),
            memory_gb: of(memory),
            disk_gb: of(disk),
            gpu_memory_gb: of(gpu),
        }
    }

    /// True when nothing is asked.
    pub fn is_zero(self) -> bool {
        self == Amounts::default()
    }

    /// True when all of it is there in `offered`.
    pub fn fits(self, offered: Amounts) -> bool {
        self.0.iter().zip(offered.0).all(|(asked, there)| *asked <= there)
    }

    /// The names of those of which `offered` has too little.
    pub fn lacking(self, offered: Amounts) -> Vec<&'static str> {
        let pairs = self.0.iter().zip(offered.0).zip(RESOURCE_NAMES);
        pairs
            .filter(|((asked, there), _)| *asked > there)
            .map(|(_, name)| name)
            .collect()
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Amounts) -> Amounts {
        Amounts(std::array::from_fn(|n| self.0[n].saturating_add(other.0[n])))
    }

    /// So many times as much.
    #[must_use]
    pub fn times(self, count: u64) -> Amounts {
        Amounts(self.0.map(|amount| amount.saturating_mul(count)))
    }

    /// What is left of it; never below nothing.
    #[must_use]
    pub fn minus(self, other: Amounts) -> Amounts {
        Amounts(std::array::from_fn(|n| self.0[n].saturating_sub(other.0[n])))
    }
}

/// What a task demands of whoever runs it, beside its handler: part of its class, for tasks of one class are for the same
/// claimers, and alike to their queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Demand {
    /// Capabilities; empty asks for one of the handler's name.
    pub requires: Box<[Name]>,
    /// The agent that it prefers.
    pub agent: Option<Name>,
    /// What it takes of the machine while it runs.
    pub resources: Amounts,
    /// How many tokens of its queue's rate a start takes.
    pub units: u32,
}

impl Default for Demand {
    fn default() -> Demand {
        Demand {
            requires: Box::default(),
            agent: None,
            resources: Amounts::default(),
            units: 1,
        }
    }
}

/// How a demand that is more than a list of capabilities is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    requires: Vec<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agent: Option<Name>,
    #[serde(default, skip_serializing_if = "is_none")]
    resources: [u64; 4],
    #[serde(default = "one", skip_serializing_if = "is_one")]
    units: u32,
}

const fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_one(units: &u32) -> bool {
    *units == 1
}

fn is_none(resources: &[u64; 4]) -> bool {
    *resources == [0; 4]
}

impl Demand {
    /// What a task demands.
    pub fn of(spec: &Spec) -> Demand {
        let Some(details) = &spec.details else {
            return Demand::default();
        };
        Demand {
            requires: details.requires.as_slice().into(),
            agent: details.agent_id.as_deref().map(Name::from),
            resources: details.resources.as_ref().map(Amounts::of).unwrap_or_default(),
            units: spec.units(),
        }
    }

    /// As stores keep it: a list of capabilities, or an object where there is more.
    pub fn to_text(&self) -> String {
        let text = if self.agent.is_none() && self.resources.is_zero() && self.units == 1 {
            serde_json::to_string(&self.requires)
        } else {
            serde_json::to_string(&Written {
                requires: self.requires.to_vec(),
                agent: self.agent.clone(),
                resources: self.resources.0,
                units: self.units,
            })
        };
        text.unwrap_or_else(|_| "[]".to_owned())
    }

    /// Reads what [`Demand::to_text`] wrote.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn from_text(text: &str) -> Result<Demand, String> {
        let written = if text.starts_with('{') {
            serde_json::from_str::<Written>(text).map_err(|error| error.to_string())?
        } else {
            Written {
                requires: serde_json::from_str(text).map_err(|error: serde_json::Error| error.to_string())?,
                agent: None,
                resources: [0; 4],
                units: 1,
            }
        };
        Ok(Demand {
            requires: written.requires.into(),
            agent: written.agent,
            resources: Amounts(written.resources),
            units: written.units,
        })
    }

    /// True when a node with these handlers and capabilities can run it: a node must have the handler itself.
    pub fn suits_node(&self, handler: &Name, offered: &[Name]) -> bool {
        offered.contains(handler) && self.requires.iter().all(|required| offered.contains(required))
    }

    /// True when an agent with these capabilities can run it. What a task requires stands for its handler, where it
    /// requires anything.
    pub fn suits_agent(&self, handler: &Name, offered: &[Name]) -> bool {
        match &*self.requires {
            [] => offered.contains(handler),
            required => required.iter().all(|required| offered.contains(required)),
        }
    }
}

/// What an agent says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentSettings {
    /// A name for people; its id where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What kind of agent it is, in its author's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_type: Option<String>,
    /// The version of its program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// What it can do: names of handlers, or whatever tasks require.
    pub capabilities: Vec<Name>,
    /// How many tasks it runs at once.
    pub max_concurrent_tasks: u32,
    /// What its machine has for tasks; what is left out is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Free text for people and lists.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub labels: std::collections::BTreeMap<String, String>,
    /// How long its leases last without renewal, and how long it may be silent; `None` is [`AGENT_LEASE`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<Span>,
}

impl AgentSettings {
    /// How long its leases last without renewal, and how long it may be silent.
    pub fn lease(&self) -> Duration {
        self.lease.map_or(AGENT_LEASE, |span| span.0)
    }

    /// What its machine has for tasks.
    pub fn offered(&self) -> Amounts {
        self.resources.as_ref().map(Amounts::of).unwrap_or_default()
    }
}

/// An agent as the store keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentRecord {
    /// Its id.
    pub name: Name,
    /// What it says of itself.
    pub settings: AgentSettings,
    /// The session that may claim, once one was opened and until it is closed.
    pub session: Option<NodeId>,
    /// Sessions that were replaced, the newest last, at most [`SESSIONS_FENCED_MAX`].
    pub fenced: Vec<NodeId>,
    /// It is to take nothing more, since then.
    pub draining_at: Option<Time>,
    /// When it was last heard; `None` once it said that it goes.
    pub seen_at: Option<Time>,
    /// How many leases it holds now.
    pub running: u64,
    /// Who registered it last.
    pub put_by: Name,
    /// When it was registered first.
    pub created_at: Time,
    /// When it was changed last.
    pub changed_at: Time,
    /// Grows with each change of the settings and each command.
    pub version: u64,
}

/// How an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AgentStatus {
    /// It is heard, and runs nothing.
    Idle,
    /// It is heard, and runs something.
    Busy,
    /// It is not heard.
    Offline,
}

/// What a person asks of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentCommand {
    /// Give it nothing more; what it runs goes on.
    Drain,
    /// Give it work again.
    Undrain,
}

impl AgentRecord {
    /// An agent that registers for the first time.
    pub fn new(name: Name, settings: AgentSettings, by: Name, now: Time) -> AgentRecord {
        AgentRecord {
            name,
            settings,
            session: None,
            fenced: Vec::new(),
            draining_at: None,
            seen_at: Some(now),
            running: 0,
            put_by: by,
            created_at: now,
            changed_at: now,
            version: 1,
        }
    }

    /// True while it is heard.
    pub fn is_alive(&self, now: Time) -> bool {
        self.seen_at.is_some_and(|seen| now < seen.plus(self.settings.lease()))
    }

    /// True when it is taken to have died, one of its leases having run out at `expires_at`: it is not heard any more, or was
    /// not in the second half of that lease. One that lives renews long before; one that died right after it was heard for
    /// the last time is not silent for a whole lease yet.
    pub fn died_before(&self, expires_at: Time, now: Time) -> bool {
        let late = self
            .seen_at
            .is_some_and(|seen| seen.plus(self.settings.lease() / 2) > expires_at);
        !(late && self.is_alive(now))
    }

    /// How it is at `now`.
    pub fn status(&self, now: Time) -> AgentStatus {
        match self.is_alive(now) {
            false => AgentStatus::Offline,
            true if self.running > 0 => AgentStatus::Busy,
            true => AgentStatus::Idle,
        }
    }

    /// True when a task that prefers this agent is kept for it: it is heard, takes work, and could run the task if it
    /// had nothing else to do.
    pub fn is_awaited(&self, handler: &Name, demand: &Demand, now: Time) -> bool {
        self.draining_at.is_none()
            && self.is_alive(now)
            && demand.suits_agent(handler, &self.settings.capabilities)
            && demand.resources.fits(self.settings.offered())
    }

    /// Registers it again with other settings. False when it has just these.
    ///
    /// While its session is heard that says nothing of the session: the process of it may have died just now, and this be the
    /// next one, which has yet to open its own.
    pub fn put(&mut self, settings: AgentSettings, by: &Name, now: Time) -> bool {
        if self.session.is_none() || !self.is_alive(now) {
            self.seen_at = self.seen_at.max(Some(now));
        }
        if self.settings == settings {
            return false;
        }
        self.settings = settings;
        self.put_by = by.clone();
        self.changed_at = now;
        self.version += 1;
        true
    }

    /// Carries out a command. False when it is as asked already.
    pub fn command(&mut self, command: AgentCommand, now: Time) -> bool {
        let draining_at = match command {
            AgentCommand::Drain => self.draining_at.or(Some(now)),
            AgentCommand::Undrain => None,
        };
        if draining_at == self.draining_at {
            return false;
        }
        self.draining_at = draining_at;
        self.changed_at = now;
        self.version += 1;
        true
    }

    /// Opens a session, or notes that the present one is heard. Answers the session that it replaced, whose leases end.
    ///
    /// # Errors
    /// [`Rejected::SessionFenced`] for one that was replaced itself.
    pub fn open(&mut self, session: NodeId, now: Time) -> Result<Option<NodeId>, Rejected> {
        if self.fenced.contains(&session) {
            return Err(Rejected::SessionFenced(self.name.clone()));
        }
        self.seen_at = self.seen_at.max(Some(now));
        if self.session == Some(session) {
            return Ok(None);
        }
        let replaced = self.session.replace(session);
        if let Some(replaced) = replaced {
            self.fence(replaced);
        }
        Ok(replaced)
    }

    /// Closes a session: it is not heard again.
    ///
    /// # Errors
    /// [`Rejected::SessionFenced`] for one that is not the present one.
    pub fn close(&mut self, session: NodeId) -> Result<(), Rejected> {
        self.check(session)?;
        self.session = None;
        self.seen_at = None;
        self.fence(session);
        Ok(())
    }

    /// That a session may act.
    ///
    /// # Errors
    /// [`Rejected::SessionFenced`] for one that is not the present one.
    pub fn check(&self, session: NodeId) -> Result<(), Rejected> {
        match self.session == Some(session) {
            true => Ok(()),
            false => Err(Rejected::SessionFenced(self.name.clone())),
        }
    }

    /// What a copy of the store carries: no session, for what runs goes on with the original.
    #[must_use]
    pub fn registration(&self) -> AgentRecord {
        AgentRecord {
            session: None,
            fenced: Vec::new(),
            seen_at: None,
            running: 0,
            ..self.clone()
        }
    }

    fn fence(&mut self, session: NodeId) {
        self.fenced.push(session);
        if self.fenced.len() > SESSIONS_FENCED_MAX {
            self.fenced.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Json;

    const fn at(seconds: i64) -> Time {
        Time::from_micros(1_700_000_000_000_000 + seconds * 1_000_000)
    }

    fn amounts(cpu: f64, memory: f64) -> Amounts {
        Amounts::of(&Resources {
            cpu_cores: Some(cpu),
            memory_gb: Some(memory),
            ..Resources::default()
        })
    }

    fn agent(capabilities: &[&str]) -> AgentRecord {
        let settings = AgentSettings {
            capabilities: capabilities.iter().map(|c| Name::from(*c)).collect(),
            max_concurrent_tasks: 2,
            resources: Some(amounts(4.0, 8.0).resources()),
            ..AgentSettings::default()
        };
        AgentRecord::new("a".into(), settings, "me".into(), at(0))
    }

    #[test]
    fn amounts_add_up_exactly_and_what_was_not_named_is_none() {
        let tenth = amounts(0.1, 0.0);
        let mut sum = Amounts::default();
        for _ in 0..10 {
            sum = sum.plus(tenth);
        }
        assert_eq!(sum, amounts(1.0, 0.0));
        assert_eq!(tenth.times(10), sum);
        assert!(sum.fits(amounts(1.0, 0.0)) && !amounts(1.0, 0.001).fits(sum));
        assert_eq!(amounts(2.0, 1.0).lacking(sum), ["cpu_cores", "memory_gb"]);
        assert_eq!(sum.minus(amounts(2.0, 1.0)), Amounts::default());
        assert_eq!(Amounts::of(&sum.resources()), sum);
    }

    #[test]
    fn a_demand_is_written_as_a_list_unless_it_is_more_than_one() {
        let mut spec = Spec::new("h", Json::null());
        assert_eq!(Demand::of(&spec).to_text(), "[]");
        spec.details_mut().requires = vec!["gpu".into()];
        assert_eq!(Demand::of(&spec).to_text(), r#"["gpu"]"#);
        spec.details_mut().agent_id = Some("a".to_owned());
        spec.details_mut().resources = Some(amounts(0.5, 2.0).resources());
        let demand = Demand::of(&spec);
        let text = demand.to_text();
        assert_eq!(text, r#"{"requires":["gpu"],"agent":"a","resources":[500,2000,0,0]}"#);
        assert_eq!(Demand::from_text(&text), Ok(demand));
        assert_eq!(Demand::from_text("[]"), Ok(Demand::default()));
        assert!(Demand::from_text("{").is_err() && Demand::from_text("7").is_err());
    }

    #[test]
    fn a_node_needs_the_handler_and_an_agent_what_is_required() {
        let handler = Name::from("h");
        let offered = [Name::from("x"), Name::from("y")];
        let plain = Demand::default();
        assert!(!plain.suits_agent(&handler, &offered) && !plain.suits_node(&handler, &offered));
        assert!(plain.suits_agent(&"x".into(), &offered) && plain.suits_node(&"x".into(), &offered));
        let requires = Demand {
            requires: Box::new(["x".into()]),
            ..Demand::default()
        };
        assert!(requires.suits_agent(&handler, &offered) && !requires.suits_node(&handler, &offered));
        assert!(requires.suits_node(&"y".into(), &offered));
    }

    #[test]
    fn a_newer_session_fences_the_older_which_never_comes_back() {
        let mut agent = agent(&["x"]);
        assert_eq!(agent.status(at(0)), AgentStatus::Idle);
        assert_eq!(agent.open(NodeId(1), at(1)), Ok(None));
        assert_eq!(agent.open(NodeId(1), at(2)), Ok(None));
        assert_eq!(agent.status(at(2)), AgentStatus::Idle);
        assert_eq!(agent.open(NodeId(2), at(3)), Ok(Some(NodeId(1))));
        assert!(agent.open(NodeId(1), at(4)).is_err() && agent.check(NodeId(1)).is_err());
        assert_eq!(agent.check(NodeId(2)), Ok(()));
        assert_eq!(agent.status(at(32)), AgentStatus::Idle);
        assert_eq!(agent.status(at(33)), AgentStatus::Offline);
        assert_eq!(agent.close(NodeId(2)), Ok(()));
        assert!(agent.close(NodeId(2)).is_err() && agent.open(NodeId(2), at(5)).is_err());
        assert_eq!(agent.status(at(5)), AgentStatus::Offline);
        for n in 3..50 {
            agent.open(NodeId(n), at(6)).unwrap();
        }
        assert_eq!(agent.fenced.len(), SESSIONS_FENCED_MAX);
    }

    #[test]
    fn an_agent_that_fell_silent_in_the_middle_of_a_lease_has_died_by_its_end() {
        let mut agent = agent(&["x"]);
        agent.open(NodeId(1), at(1)).unwrap();
        // A lease of before it was heard last, by a second.
        assert!(agent.is_alive(at(30)) && agent.died_before(at(30), at(30)));
        agent.open(NodeId(1), at(16)).unwrap();
        assert!(!agent.died_before(at(30), at(30)) && agent.died_before(at(30), at(46)));
    }

    #[test]
    fn a_process_that_registers_anew_does_not_keep_the_session_before_it_alive() {
        let mut agent = agent(&["x"]);
        agent.open(NodeId(1), at(1)).unwrap();
        let again = agent.settings.clone();
        agent.put(again.clone(), &"me".into(), at(29));
        assert!(agent.died_before(at(31), at(31)), "its session was heard 30 s ago");
        agent.put(again, &"me".into(), at(32));
        assert!(agent.is_alive(at(61)), "whoever comes back after that is there");
    }

    #[test]
    fn a_preferred_agent_is_awaited_while_it_lives_and_could_do_it() {
        let mut agent = agent(&["h"]);
        let mut demand = Demand {
            agent: Some("a".into()),
            ..Demand::default()
        };
        let awaited = |agent: &AgentRecord, demand: &Demand, now| agent.is_awaited(&"h".into(), demand, now);
        assert!(awaited(&agent, &demand, at(29)) && !awaited(&agent, &demand, at(30)));
        demand.resources = amounts(5.0, 0.0);
        assert!(!awaited(&agent, &demand, at(0)));
        demand.resources = amounts(4.0, 8.0);
        assert!(awaited(&agent, &demand, at(0)));
        assert!(agent.command(AgentCommand::Drain, at(1)) && !agent.command(AgentCommand::Drain, at(2)));
        assert!(!awaited(&agent, &demand, at(1)));
        assert!(agent.command(AgentCommand::Undrain, at(3)) && awaited(&agent, &demand, at(3)));
        assert!(!agent.put(agent.settings.clone(), &"you".into(), at(4)) && agent.version == 3);
    }
}
