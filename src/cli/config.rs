//! The configuration file of `pensum serve`.

use std::path::Path;

use pensum_core::input::{BreakerInput, QueueInput};
use pensum_core::store::Retention;
use pensum_core::time::Span;

use super::agent::{self, Configured};
use super::bound::BoundHandler;
use super::exit::{Exit, Failure};
use super::{breaker, queue};
use crate::yaml::{self, Fault, Key, Node, Value, nearest};

/// The blocks that this version knows.
const BLOCKS: [&str; 8] = [
    "server",
    "store",
    "retention",
    "logging",
    "handlers",
    "queues",
    "agents",
    "breakers",
];
/// Blocks of the full product.
const OTHER_BLOCKS: [&str; 14] = [
    "orchestrator",
    "tasks",
    "workflows",
    "calendars",
    "readings",
    "strategies",
    "exchanges",
    "risk",
    "alerts",
    "webhooks",
    "hooks",
    "auth",
    "metrics",
    "schedules",
];

/// What configuration files say. What none of them says is `None`.
#[derive(Debug, Default)]
pub(crate) struct Config {
    /// `server.listen`.
    pub(crate) listen: Option<String>,
    /// `server.allowed_hosts`: names that a Host header may carry, beside the loopback ones.
    pub(crate) allowed_hosts: Vec<String>,
    /// `store.url`.
    pub(crate) store: Option<String>,
    /// `retention.completed`: how long completed and cancelled tasks stay; 7 days by default.
    pub(crate) completed: Option<Span>,
    /// `retention.failed`: how long failed tasks stay; 30 days by default.
    pub(crate) failed: Option<Span>,
    /// `logging.level`.
    pub(crate) level: Option<String>,
    /// `handlers.allow_inline`.
    pub(crate) allow_inline: Option<bool>,
    /// `handlers.NAME`: names bound to a command or an HTTP call.
    pub(crate) handlers: Vec<(String, BoundHandler)>,
    /// `queues.NAME`: what queues allow.
    pub(crate) queues: Vec<(String, QueueInput)>,
    /// `agents.ID`: agents that the node registers, and runs where it is told how.
    pub(crate) agents: Vec<Configured>,
    /// `breakers.NAME`: what is left alone for a while when it fails.
    pub(crate) breakers: Vec<(String, BreakerInput)>,
}

/// True for the configuration of a task manager: JSON, and nothing but queues and agents.
fn is_of_task_manager(text: &str, root: &Node) -> bool {
    let is_known = |(key, _): &(Key, Node)| matches!(&*key.name, "queues" | "agents");
    root.entries().is_some_and(|entries| entries.iter().all(is_known))
        && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// Names the priorities of queues that are numbers of a task manager's own scale.
fn name_priorities(root: &mut Node) -> Result<(), Vec<Fault>> {
    const SCALE: [&str; 4] = ["low", "normal", "high", "critical"];
    let queues = root.values_mut().filter(|(key, _)| key.name == "queues");
    let fields = queues
        .flat_map(|(_, queues)| queues.values_mut())
        .flat_map(|(queue, fields)| fields.values_mut().map(|field| (&*queue.name, field)));
    for (queue, (key, value)) in fields {
        let Value::Number(number) = &value.value else { continue };
        if key.name != "priority" {
            continue;
        }
        let place = number
            .as_u64()
            .and_then(|number| usize::try_from(number).ok()?.checked_sub(1));
        let Some(name) = place.and_then(|place| SCALE.get(place)) else {
            let message = format!(
                "queues.{queue}.priority: {number} is not a priority of a task manager's file: 1 (low), 2 (normal), 3 (high) or \
                 4 (critical)"
            );
            return Err(vec![Fault::new(value.at, message)]);
        };
        value.value = Value::Text((*name).to_owned());
    }
    Ok(())
}

impl Config {
    /// Reads files in order; what a later one says counts.
    pub(crate) fn load(files: &[impl AsRef<Path>]) -> Result<Config, Failure> {
        let mut config = Config::default();
        for file in files {
            let file = file.as_ref();
            let name = file.display().to_string();
            let text = std::fs::read_to_string(file).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => {
                    Failure::new(Exit::NotFound, format!("there is no configuration file {name}"))
                }
                _ => Failure::usage(format!("{name} cannot be read: {error}")),
            })?;
            config
                .merge(&text)
                .map_err(|faults| Failure::of_faults(&name, &faults))?;
        }
        Ok(config)
    }

    /// How long finished tasks are kept.
    pub(crate) fn retention(&self) -> Retention {
        let default = Retention::default();
        Retention {
            completed: self.completed.map_or(default.completed, |span| span.0),
            failed: self.failed.map_or(default.failed, |span| span.0),
        }
    }

    fn merge(&mut self, text: &str) -> Result<(), Vec<Fault>> {
        let mut root = yaml::read(text).map_err(|fault| vec![fault])?;
        if root.value == Value::Null {
            return Ok(());
        }
        if is_of_task_manager(text, &root) {
            name_priorities(&mut root)?;
        }
        let mut reader = Reader { faults: Vec::new() };
        for (key, block) in reader.map("the configuration", &root) {
            match key.name.as_str() {
                "server" => self.server(block, &mut reader),
                "store" => self.store(block, &mut reader),
                "retention" => self.keep(block, &mut reader),
                "logging" => self.logging(block, &mut reader),
                "handlers" => self.bind(block, &mut reader),
                "queues" => self.set_up(block, &mut reader),
                "agents" => match agent::read(block) {
                    Ok(agents) => {
                        self.agents
                            .retain(|known| agents.iter().all(|new| new.input.id != known.input.id));
                        self.agents.extend(agents);
                    }
                    Err(mut faults) => reader.faults.append(&mut faults),
                },
                "breakers" => match breaker::read(block) {
                    Ok(breakers) => {
                        self.breakers
                            .retain(|(name, _)| breakers.iter().all(|(new, _)| new != name));
                        self.breakers.extend(breakers);
                    }
                    Err(mut faults) => reader.faults.append(&mut faults),
                },
                other if OTHER_BLOCKS.contains(&other) => {
                    reader.fail(key, format!("{other}: not available in this version; remove the block"));
                }
                other => reader.unknown("", key, other, &BLOCKS),
            }
        }
        if reader.faults.is_empty() {
            Ok(())
        } else {
            Err(reader.faults)
        }
    }

    fn server(&mut self, block: &Node, reader: &mut Reader) {
        for (key, node) in reader.map("server", block) {
            match key.name.as_str() {
                "listen" => self.listen = reader.text("server.listen", node).or(self.listen.take()),
                "allowed_hosts" => {
                    let items = match &node.value {
                        Value::List(items) => items.as_slice(),
                        _ => std::slice::from_ref(node),
                    };
                    self.allowed_hosts = items
                        .iter()
                        .filter_map(|item| reader.text("server.allowed_hosts", item))
                        .collect();
                }
                other => reader.unknown("server.", key, other, &["listen", "allowed_hosts"]),
            }
        }
    }

    fn store(&mut self, block: &Node, reader: &mut Reader) {
        for (key, node) in reader.map("store", block) {
            match key.name.as_str() {
                "url" => self.store = reader.text("store.url", node).or(self.store.take()),
                other => reader.unknown("store.", key, other, &["url"]),
            }
        }
    }

    fn keep(&mut self, block: &Node, reader: &mut Reader) {
        for (key, node) in reader.map("retention", block) {
            match key.name.as_str() {
                "completed" => self.completed = reader.span("retention.completed", node).or(self.completed),
                "failed" => self.failed = reader.span("retention.failed", node).or(self.failed),
                other => reader.unknown("retention.", key, other, &["completed", "failed"]),
            }
        }
    }

    fn logging(&mut self, block: &Node, reader: &mut Reader) {
        for (key, node) in reader.map("logging", block) {
            match key.name.as_str() {
                "level" => self.level = reader.text("logging.level", node).or(self.level.take()),
                "file" => reader.fail(
                    key,
                    "logging.file: not available in this version; logs go to standard error".to_owned(),
                ),
                other => reader.unknown("logging.", key, other, &["level"]),
            }
        }
    }

    fn set_up(&mut self, block: &Node, reader: &mut Reader) {
        match queue::read(block) {
            Ok(queues) => {
                self.queues
                    .retain(|(name, _)| queues.iter().all(|(new, _)| new != name));
                self.queues.extend(queues);
            }
            Err(mut faults) => reader.faults.append(&mut faults),
        }
    }

    fn bind(&mut self, block: &Node, reader: &mut Reader) {
        for (key, node) in reader.map("handlers", block) {
            if key.name == "allow_inline" {
                match node.value {
                    Value::Bool(value) => self.allow_inline = Some(value),
                    _ => reader.wrong("handlers.allow_inline", node, "true or false"),
                }
                continue;
            }
            match BoundHandler::new(&key.name, node) {
                Ok(handler) => {
                    self.handlers.retain(|(name, _)| *name != key.name);
                    self.handlers.push((key.name.clone(), handler));
                }
                Err(mut faults) => reader.faults.append(&mut faults),
            }
        }
    }
}

/// Collects what is wrong.
struct Reader {
    faults: Vec<Fault>,
}

impl Reader {
    fn map<'a>(&mut self, path: &str, node: &'a Node) -> &'a [(Key, Node)] {
        node.entries().unwrap_or_else(|| {
            self.wrong(path, node, "a map");
            &[]
        })
    }

    fn text(&mut self, path: &str, node: &Node) -> Option<String> {
        let text = node.text().map(str::to_owned);
        if text.is_none() {
            self.wrong(path, node, "a text");
        }
        text
    }

    fn span(&mut self, path: &str, node: &Node) -> Option<Span> {
        let parsed = match &node.value {
            Value::Number(number) => Span::from_seconds(number.as_f64().unwrap_or(-1.0)),
            Value::Text(text) => Span::parse(text),
            _ => Err(format!("must be a duration (90 or \"1h 30m\"), not {}", node.kind())),
        };
        parsed
            .map_err(|message| self.faults.push(Fault::new(node.at, format!("{path}: {message}"))))
            .ok()
    }

    fn wrong(&mut self, path: &str, node: &Node, wanted: &str) {
        self.faults.push(Fault::new(
            node.at,
            format!("{path}: must be {wanted}, not {}", node.kind()),
        ));
    }

    fn unknown(&mut self, prefix: &str, key: &Key, name: &str, known: &[&str]) {
        let near = nearest(name, known.iter().copied())
            .map(|n| format!("did you mean `{n}`? "))
            .unwrap_or_default();
        self.fail(
            key,
            format!(
                "{prefix}{name}: there is no such setting; {near}known are {}",
                known.join(", ")
            ),
        );
    }

    fn fail(&mut self, key: &Key, message: String) {
        self.faults.push(Fault::new(key.at, message));
    }
}

#[cfg(test)]
mod tests {
    use pensum_core::Priority;

    use super::*;

    fn read(texts: &[&str]) -> Result<Config, Vec<String>> {
        let mut config = Config::default();
        for text in texts {
            config
                .merge(text)
                .map_err(|faults| faults.iter().map(|f| f.describe("c.yaml")).collect::<Vec<_>>())?;
        }
        Ok(config)
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let faults = read(&[text]).unwrap_err();
        assert!(
            faults.iter().any(|fault| fault.starts_with(expected)),
            "{faults:#?} should hold {expected}"
        );
    }

    #[test]
    fn later_files_win_and_handlers_gather() {
        let config = read(&[
            "server: { listen: \"127.0.0.1:1\", allowed_hosts: [a.example] }\nretention: { completed: 1h }\nhandlers:\n  a: { command: { program: ls } }\n",
            "server: { listen: \"127.0.0.1:2\" }\nlogging: { level: debug }\nstore: { url: \"sqlite:x.db\" }\nhandlers:\n  allow_inline: false\n  b: { http: { url: \"http://x/\" } }\n",
            "",
        ])
        .unwrap();
        assert_eq!(config.listen.as_deref(), Some("127.0.0.1:2"));
        assert_eq!(config.allowed_hosts, ["a.example"]);
        assert_eq!(
            (config.level.as_deref(), config.store.as_deref()),
            (Some("debug"), Some("sqlite:x.db"))
        );
        assert_eq!(config.allow_inline, Some(false));
        assert_eq!(
            config
                .handlers
                .iter()
                .map(|(name, _)| name.as_str())
                .collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!(config.retention().completed.as_secs(), 3600);
    }

    #[test]
    fn queues_gather_and_the_later_file_wins() {
        let config = read(&[
            "queues:\n  mail: { max_concurrent: 3, rate_limit: 50/s }\n  plain:\n",
            "{\"queues\": {\"mail\": {\"auto_start\": false, \"persistent\": false}}, \"agents\": {\"worker-1\": {\"id\": \"worker-1\", \"capabilities\": [\"a\"], \"status\": \"idle\"}}}",
        ])
        .unwrap();
        let names: Vec<&str> = config.queues.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["plain", "mail"]);
        assert_eq!(config.queues[0].1, QueueInput::default());
        assert_eq!(
            (
                config.queues[1].1.auto_start,
                config.queues[1].1.persistent,
                config.queues[1].1.max_concurrent
            ),
            (false, false, None)
        );
        let agents: Vec<&str> = config.agents.iter().map(|agent| agent.input.id.as_str()).collect();
        assert_eq!(agents, ["worker-1"]);
    }

    #[test]
    fn numbers_of_a_task_managers_priorities_are_on_its_own_scale() {
        let priority = |text: &str| read(&[text]).unwrap().queues[0].1.priority;
        let of_manager = r#"{"queues": {"a": {"name": "A", "priority": 4}}, "agents": {}}"#;
        assert_eq!(priority(of_manager), Some(Priority::Critical));
        assert_eq!(priority("queues: { a: { priority: 4 } }"), Some(Priority::Urgent));
        let ours = r#"{"queues": {"a": {"priority": 4}}, "logging": {"level": "info"}}"#;
        assert_eq!(priority(ours), Some(Priority::Urgent));
    }

    #[test]
    fn wrong_queues_are_named_with_their_place() {
        check("queues: 5\n", "c.yaml:1:9: queues: must be a map, not a number");
        check(
            "queues: { a b: {} }\n",
            "c.yaml:1:11: queues.a b: must be 1 to 200 letters",
        );
        check(
            r#"{"queues": {"a": {"priority": 5}}, "agents": {}}"#,
            "c.yaml:1:31: queues.a.priority: 5 is not a priority of a task manager's file: 1 (low)",
        );
        check("queues: { stats: {} }\n", "c.yaml:1:11: queues.stats: `stats` is taken");
        check("queues: { a: [] }\n", "c.yaml:1:14: queues.a: invalid type");
        let text = "queues:\n  a: { max_concurrent: 0 }\n  b: { colour: 1 }\n  c: { rate_limit: { starts: 0 } }\n";
        check(
            "queues: { a: { persistent: 1 } }\n",
            "c.yaml:1:28: queues.a.persistent: invalid type",
        );
        check(text, "c.yaml:2:24: queues.a.max_concurrent: must be 1 or more");
        check(text, "c.yaml:3:8: queues.b.colour: unknown field `colour`");
        check(text, "c.yaml:4:30: queues.c.rate_limit.starts: must be 1");
    }

    #[test]
    fn wrong_settings_are_named_with_their_place() {
        check(
            "server: { lisen: x }\n",
            "c.yaml:1:11: server.lisen: there is no such setting; did you mean `listen`?",
        );
        check(
            "servre: {}\n",
            "c.yaml:1:1: servre: there is no such setting; did you mean `server`?",
        );
        check("auth: {}\n", "c.yaml:1:1: auth: not available in this version");
        check(
            "retention: { failed: soon }\n",
            "c.yaml:1:22: retention.failed: `soon` is not a duration",
        );
        check("server: 5\n", "c.yaml:1:9: server: must be a map, not a number");
        check(
            "handlers: { allow_inline: maybe }\n",
            "c.yaml:1:27: handlers.allow_inline: must be true or false",
        );
        check("handlers:\n  a: { run: x }\n", "c.yaml:2:8: handlers.a.run: ");
        check("store: { url: a }\nstore: { url: b }\n", "c.yaml:2:1: ");
    }
}
