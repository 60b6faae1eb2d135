//! Tasks as users write them, over HTTP, in plan files and on the command line, and the checks that turn them into a
//! [`NewTask`]. Every problem is named by its path.

use std::collections::HashMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use smallvec::SmallVec;

use crate::id::clip;
use crate::store::DEPENDENCIES_MAX;
use crate::task::{
    Dependency, Details, Lifecycle, NewTask, OnConflict, OnDependencyFailure, OnLimit, QUEUE_DEFAULT, Resources, Spec,
    Unique,
};
use crate::time::Span;
use crate::{Json, Name, Priority, RetryPolicy, State, TaskId, Time};

/// The eight task types.
pub const TASK_TYPES: [&str; 8] = [
    "code_analysis",
    "code_generation",
    "code_review",
    "testing",
    "deployment",
    "monitoring",
    "workflow",
    "custom",
];
/// Fields of a task that only the engine sets.
pub const ENGINE_FIELDS: [&str; 20] = [
    "id",
    "status",
    "state",
    "waiting_for",
    "attempt",
    "retry_count",
    "progress",
    "result",
    "error",
    "created_at",
    "ready_at",
    "started_at",
    "finished_at",
    "workflow_id",
    "parent_id",
    "schedule",
    "dead_lettered_at",
    "version",
    "lease",
    "node",
];
/// Longest handler, queue, key, tag, capability or person's name, in characters.
pub const NAME_MAX: usize = 200;
/// Longest task name, in characters.
pub const TITLE_MAX: usize = 500;
/// Longest description, in characters.
pub const DESCRIPTION_MAX: usize = 10_000;
/// Most tags, and most capabilities, of one task.
pub const TAGS_MAX: usize = 50;
/// Most retries of one task.
pub const RETRIES_MAX: u32 = 1_000;

/// One thing that is wrong with an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Problem {
    /// Where: `tasks[3].priority`; empty for the input as a whole.
    pub path: String,
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// Everything that is wrong with an input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Invalid(pub Vec<Problem>);

impl Invalid {
    /// One problem.
    pub fn one(path: impl Into<String>, message: impl Into<String>) -> Invalid {
        Invalid(vec![Problem {
            path: path.into(),
            message: message.into(),
        }])
    }
}

/// Reads JSON into a type.
///
/// # Errors
/// One problem, with the path of the value or field that is wrong.
pub fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, Invalid> {
    match serde_json::from_slice(text) {
        Ok(value) => Ok(value),
        // The path costs a second, slower pass, which only wrong input pays.
        Err(plain) => Err(explain_failure::<T>(text, &plain)),
    }
}

fn explain_failure<T: DeserializeOwned>(text: &[u8], plain: &serde_json::Error) -> Invalid {
    use serde_json::error::Category;
    if matches!(plain.classify(), Category::Syntax | Category::Eof | Category::Io) {
        return Invalid::one("", format!("is not JSON: {plain}"));
    }
    let deserializer = &mut serde_json::Deserializer::from_slice(text);
    let Err(error) = serde_path_to_error::deserialize::<_, T>(deserializer) else {
        return Invalid::one("", plain.to_string());
    };
    let path = error.path().to_string();
    let path = if path == "." { String::new() } else { path };
    let message = friendly(&error.inner().to_string());
    // Serde places these two at the object; the field is what has to change.
    let field = ["missing field `", "duplicate field `"]
        .iter()
        .find_map(|start| message.strip_prefix(start));
    let path = match field.and_then(|rest| rest.strip_suffix('`')) {
        Some(field) if path.is_empty() => field.to_owned(),
        Some(field) => format!("{path}.{field}"),
        None => path,
    };
    Invalid::one(path, message)
}

/// Reads JSON into a struct, which must be written as an object.
///
/// # Errors
/// One problem, with the path of the value or field that is wrong.
pub fn parse_object<T: DeserializeOwned>(text: &[u8]) -> Result<T, Invalid> {
    parse::<Object<T>>(text).map(|Object(value)| value)
}

/// A struct that is read from an object and from nothing else. Serde reads structs from arrays of their fields' values
/// too, which nobody means who writes `[]`.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Visitor(std::marker::PhantomData))
    }
}

/// For serde's `deserialize_with`: a struct, written as an object.
///
/// # Errors
/// Those of the deserializer.
pub fn object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|Object(value)| value)
}

fn optional_object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Option::<Object<T>>::deserialize(deserializer).map(|some| some.map(|Object(value)| value))
}

fn objects<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let all = Vec::<Object<T>>::deserialize(deserializer)?;
    Ok(all.into_iter().map(|Object(value)| value).collect())
}

/// Adds what to do to serde's sentence, and takes the position off, which the path replaces.
pub fn friendly(message: &str) -> String {
    let message = message.rsplit_once(" at line ").map_or(message, |(head, _)| head);
    if let Some(field) = message
        .strip_prefix("unknown field `")
        .and_then(|rest| rest.split('`').next())
        && ENGINE_FIELDS.contains(&field)
    {
        return format!("`{field}` is set by the engine; leave it out");
    }
    message.to_owned()
}

/// A task to create.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TaskInput {
    /// The name of this item within its batch, for `depends_on` of others.
    #[serde(rename = "ref")]
    pub reference: Option<String>,
    /// What runs it; `task_type` when absent. One of the two is required.
    pub handler: Option<String>,
    /// A name for people.
    pub name: Option<String>,
    /// What it is about.
    pub description: Option<String>,
    /// One of the eight types; `custom` by default.
    pub task_type: Option<String>,
    /// The handler's input: any JSON, `{}` by default.
    #[schema(value_type = Option<serde_json::Value>)]
    pub parameters: Option<Json>,
    /// Free-form facts about the task.
    #[schema(value_type = Option<serde_json::Value>)]
    pub metadata: Option<Json>,
    /// Free-form facts for the handler.
    #[schema(value_type = Option<serde_json::Value>)]
    pub execution_context: Option<Json>,
    /// Where it waits; `default` by default.
    pub queue: Option<String>,
    /// low, normal (default), high, urgent, critical, or 1 to 5.
    #[schema(value_type = Option<String>)]
    pub priority: Option<Priority>,
    /// Task ids, or `ref`s of other items of the batch.
    #[serde(alias = "dependencies")]
    pub depends_on: Vec<String>,
    /// What a failed or cancelled dependency does; `cancel` by default.
    pub on_dependency_failure: OnDependencyFailure,
    /// Not before this time.
    #[schema(value_type = Option<String>)]
    pub run_at: Option<Time>,
    /// Not before this long from now; instead of `run_at`.
    #[schema(value_type = Option<f64>)]
    pub delay: Option<Span>,
    /// When it should be done: within one priority, earlier deadlines run first.
    #[schema(value_type = Option<String>)]
    pub deadline: Option<Time>,
    /// Not started by then: cancelled.
    #[schema(value_type = Option<String>)]
    pub expires_at: Option<Time>,
    /// Longest run of one attempt; 300 s by default, 0 for no limit.
    #[schema(value_type = Option<f64>)]
    pub timeout: Option<Span>,
    /// Longest wait from ready to start; over it the task fails.
    #[schema(value_type = Option<f64>)]
    pub queue_timeout: Option<Span>,
    /// Longest silence of a running attempt; over it the attempt fails.
    #[schema(value_type = Option<f64>)]
    pub heartbeat_timeout: Option<Span>,
    /// How many failures are followed by another attempt; 3 by default.
    pub max_retries: Option<u32>,
    /// What happens at submission when a limit is reached.
    pub on_limit: Option<OnLimit>,
    /// The delays between attempts.
    #[serde(deserialize_with = "optional_object")]
    #[schema(value_type = Option<Object>)]
    pub retry: Option<RetryPolicy>,
    /// Tasks of one key never run at the same time.
    pub key: Option<String>,
    /// At most one unfinished task per key.
    #[serde(deserialize_with = "optional_object")]
    pub unique: Option<UniqueInput>,
    /// Capabilities that the runner must offer beside the handler.
    pub requires: Vec<String>,
    /// The agent that should run it while it is alive.
    pub agent_id: Option<String>,
    /// What it needs of the machine.
    #[serde(alias = "resource_requirements", deserialize_with = "optional_object")]
    pub resources: Option<Resources>,
    /// Who made it.
    pub created_by: Option<String>,
    /// Who is in charge of it.
    pub assigned_to: Option<String>,
    /// Labels to find it by.
    pub tags: Vec<String>,
}

/// "Only one of these."
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UniqueInput {
    /// The key, scoped to the handler.
    pub key: String,
    /// How long it is held from submission on; until the task ends by default.
    #[serde(default)]
    #[schema(value_type = Option<f64>)]
    pub ttl: Option<Span>,
    /// What a second submission gets; `keep` by default.
    #[serde(default)]
    pub on_conflict: OnConflict,
}

/// A batch of tasks to create, all or none.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchInput {
    /// The tasks; `depends_on` may name another one's `ref`.
    #[serde(deserialize_with = "objects")]
    pub tasks: Vec<TaskInput>,
}

impl BatchInput {
    /// Checks all tasks and resolves their references to each other.
    ///
    /// # Errors
    /// Every problem of every task, by path.
    pub fn resolve(self, now: Time) -> Result<Vec<NewTask>, Invalid> {
        let mut problems = Vec::new();
        if self.tasks.is_empty() || self.tasks.len() > crate::store::BATCH_MAX {
            let most = crate::store::BATCH_MAX;
            return Err(Invalid::one(
                "tasks",
                format!("must hold 1 to {most} tasks, not {}", self.tasks.len()),
            ));
        }
        let mut refs = HashMap::new();
        for (index, task) in self.tasks.iter().enumerate() {
            let Some(name) = &task.reference else { continue };
            if let Some(earlier) = refs.insert(name.clone(), index) {
                let message = format!("`{}` is the ref of tasks[{earlier}] already", clip(name));
                problems.push(Problem {
                    path: format!("tasks[{index}].ref"),
                    message,
                });
            }
        }
        let mut tasks = Vec::with_capacity(self.tasks.len());
        for (index, task) in self.tasks.into_iter().enumerate() {
            match task.resolve(&refs, now) {
                Ok(task) => tasks.push(task),
                Err(Invalid(found)) => problems.extend(found.into_iter().map(|p| Problem {
                    path: format!("tasks[{index}].{}", p.path),
                    message: p.message,
                })),
            }
        }
        if problems.is_empty() {
            Ok(tasks)
        } else {
            Err(Invalid(problems))
        }
    }
}

impl TaskInput {
    /// Checks the task. `refs` gives the index of each `ref` of the batch.
    ///
    /// # Errors
    /// Every problem, by path.
    pub fn resolve(self, refs: &HashMap<String, usize>, now: Time) -> Result<NewTask, Invalid> {
        let mut check = Check::default();
        let depends_on = self.dependencies(refs, &mut check);
        let run_at = self.start(&mut check, now);
        self.check_fields(&mut check, now);
        let Some(handler) = self.handler.as_deref().or(self.task_type.as_deref()) else {
            check.fail("handler", "is required: name what runs the task, or give a task_type");
            return Err(Invalid(check.problems));
        };
        check.identifier("handler", handler);
        if !check.problems.is_empty() {
            return Err(Invalid(check.problems));
        }
        let handler = Name::from(handler);
        let unique = self.unique.as_ref().map(|u| {
            Box::new(Unique {
                key: u.key.as_str().into(),
                ttl: u.ttl.map(|t| t.0),
                on_conflict: u.on_conflict,
            })
        });
        let spec = Spec {
            handler,
            queue: self.queue.as_deref().unwrap_or(QUEUE_DEFAULT).into(),
            priority: self.priority.unwrap_or_default(),
            timeout: self.timeout.map(|t| t.0),
            max_retries: self.max_retries,
            key: self.key.as_deref().map(Name::from),
            deadline: self.deadline,
            parameters: self.parameters.clone().unwrap_or_else(Json::empty_object),
            details: self.details(),
        };
        Ok(NewTask {
            spec,
            run_at,
            depends_on,
            unique,
        })
    }

    fn dependencies(&self, refs: &HashMap<String, usize>, check: &mut Check) -> SmallVec<[Dependency; 2]> {
        let mut found: SmallVec<[Dependency; 2]> = SmallVec::new();
        if self.depends_on.len() > DEPENDENCIES_MAX {
            check.fail(
                "depends_on",
                format!("holds {} ids, the most is {DEPENDENCIES_MAX}", self.depends_on.len()),
            );
            return found;
        }
        let mut seen = std::collections::HashSet::new();
        for (position, name) in self.depends_on.iter().enumerate() {
            let dependency = match refs.get(name) {
                Some(index) => Dependency::Item(*index),
                None => match name.parse::<TaskId>() {
                    Ok(id) => Dependency::Task(id),
                    Err(_) => {
                        let message = format!(
                            "`{}` is neither a task id nor the ref of a task in this batch",
                            clip(name)
                        );
                        check.fail(format!("depends_on[{position}]"), message);
                        continue;
                    }
                },
            };
            // Naming a dependency twice is harmless, and counts once.
            if seen.insert(dependency) {
                found.push(dependency);
            }
        }
        found
    }

    fn start(&self, check: &mut Check, now: Time) -> Option<Time> {
        match (self.run_at, self.delay) {
            (Some(_), Some(_)) => {
                check.fail("delay", "cannot stand beside run_at; give one of them");
                None
            }
            (Some(at), None) => {
                check.sane_time("run_at", at, now);
                Some(at)
            }
            (None, Some(delay)) => Some(now.plus(delay.0)),
            (None, None) => None,
        }
    }

    fn check_fields(&self, check: &mut Check, now: Time) {
        check.text("name", self.name.as_deref(), TITLE_MAX);
        check.text("description", self.description.as_deref(), DESCRIPTION_MAX);
        if let Some(task_type) = &self.task_type {
            check.task_type(task_type);
        }
        check.json("parameters", self.parameters.as_ref());
        check.json("metadata", self.metadata.as_ref());
        check.json("execution_context", self.execution_context.as_ref());
        if let Some(queue) = &self.queue {
            check.identifier("queue", queue);
        }
        for (path, time) in [("deadline", self.deadline), ("expires_at", self.expires_at)] {
            if let Some(time) = time {
                check.sane_time(path, time, now);
            }
        }
        check.positive("queue_timeout", self.queue_timeout);
        check.positive("heartbeat_timeout", self.heartbeat_timeout);
        check.retries(self.max_retries);
        if let Some(retry) = &self.retry {
            check.retry(retry);
        }
        check.label("key", self.key.as_deref());
        if let Some(unique) = &self.unique {
            check.label("unique.key", Some(&unique.key));
            check.positive("unique.ttl", unique.ttl);
        }
        check.labels("requires", &self.requires);
        check.labels("tags", &self.tags);
        check.label("ref", self.reference.as_deref());
        check.label("agent_id", self.agent_id.as_deref());
        check.label("created_by", self.created_by.as_deref());
        check.label("assigned_to", self.assigned_to.as_deref());
        if let Some(resources) = &self.resources {
            check.resources(resources);
        }
    }

    fn details(self) -> Option<Box<Details>> {
        let details = Details {
            name: self.name,
            description: self.description,
            task_type: self.task_type,
            metadata: self.metadata,
            execution_context: self.execution_context,
            on_dependency_failure: self.on_dependency_failure,
            expires_at: self.expires_at,
            queue_timeout: self.queue_timeout,
            heartbeat_timeout: self.heartbeat_timeout,
            on_limit: self.on_limit,
            retry: self.retry,
            requires: self.requires.into_iter().map(Name::from).collect(),
            agent_id: self.agent_id,
            resources: self.resources,
            created_by: self.created_by,
            assigned_to: self.assigned_to,
            tags: self.tags,
            ..Details::default()
        };
        (details != Details::default()).then(|| Box::new(details))
    }
}

/// A change to a task. Absent fields stay; `null` clears a field that may be absent.
///
/// Names, description, metadata, tags and `assigned_to` may change at any time; priority, deadline, timeouts and
/// retries while the task has not ended (a running attempt keeps its own timeout); parameters, execution context,
/// queue and start time while it is queued.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the fields are those of the task")]
pub struct Patch {
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub name: Option<Option<String>>,
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub description: Option<Option<String>>,
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub assigned_to: Option<Option<String>>,
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub deadline: Option<Option<Time>>,
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub expires_at: Option<Option<Time>>,
    #[schema(value_type = Option<serde_json::Value>)]
    pub metadata: Option<Json>,
    pub tags: Option<Vec<String>>,
    #[schema(value_type = Option<String>)]
    pub priority: Option<Priority>,
    #[schema(value_type = Option<f64>)]
    pub timeout: Option<Span>,
    pub max_retries: Option<u32>,
    #[serde(deserialize_with = "optional_object")]
    #[schema(value_type = Option<Object>)]
    pub retry: Option<RetryPolicy>,
    #[schema(value_type = Option<serde_json::Value>)]
    pub parameters: Option<Json>,
    #[schema(value_type = Option<serde_json::Value>)]
    pub execution_context: Option<Json>,
    pub queue: Option<String>,
    #[schema(value_type = Option<String>)]
    pub run_at: Option<Time>,
    #[schema(value_type = Option<f64>)]
    pub delay: Option<Span>,
}

fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(deserializer).map(Some)
}

impl Patch {
    /// What is wrong with the values themselves.
    ///
    /// # Errors
    /// Every problem, by path.
    pub fn check(&self, now: Time) -> Result<(), Invalid> {
        let mut check = Check::default();
        check.text("name", self.name.as_ref().and_then(|n| n.as_deref()), TITLE_MAX);
        check.text(
            "description",
            self.description.as_ref().and_then(|d| d.as_deref()),
            DESCRIPTION_MAX,
        );
        check.label("assigned_to", self.assigned_to.as_ref().and_then(|a| a.as_deref()));
        for (path, time) in [
            ("deadline", self.deadline.flatten()),
            ("expires_at", self.expires_at.flatten()),
            ("run_at", self.run_at),
        ] {
            if let Some(time) = time {
                check.sane_time(path, time, now);
            }
        }
        check.json("metadata", self.metadata.as_ref());
        check.json("parameters", self.parameters.as_ref());
        check.json("execution_context", self.execution_context.as_ref());
        check.labels("tags", self.tags.as_deref().unwrap_or_default());
        check.retries(self.max_retries);
        if let Some(retry) = &self.retry {
            check.retry(retry);
        }
        if let Some(queue) = &self.queue {
            check.identifier("queue", queue);
        }
        if self.run_at.is_some() && self.delay.is_some() {
            check.fail("delay", "cannot stand beside run_at; give one of them");
        }
        if check.problems.is_empty() {
            Ok(())
        } else {
            Err(Invalid(check.problems))
        }
    }

    /// Why a task in this state cannot take the change, if so.
    pub fn refusal(&self, task: &Lifecycle) -> Option<&'static str> {
        let scheduling = self.priority.is_some()
            || self.deadline.is_some()
            || self.expires_at.is_some()
            || self.timeout.is_some()
            || self.max_retries.is_some()
            || self.retry.is_some();
        let content = self.parameters.is_some()
            || self.execution_context.is_some()
            || self.queue.is_some()
            || self.run_at.is_some()
            || self.delay.is_some();
        if task.state.is_terminal() && (scheduling || content) {
            return Some("it has ended; only name, description, metadata, tags and assigned_to can change");
        }
        if task.state != State::Queued && content {
            return Some("it is running; parameters, execution_context, queue and start time change only while queued");
        }
        None
    }

    /// The new start time, where the change has one.
    pub fn start(&self, now: Time) -> Option<Time> {
        self.run_at.or_else(|| self.delay.map(|d| now.plus(d.0)))
    }

    /// Carries the change into the spec.
    pub fn apply_to(&self, spec: &mut Spec) {
        if let Some(priority) = self.priority {
            spec.priority = priority;
        }
        if let Some(deadline) = self.deadline {
            spec.deadline = deadline;
        }
        if let Some(timeout) = self.timeout {
            spec.timeout = Some(timeout.0);
        }
        if self.max_retries.is_some() {
            spec.max_retries = self.max_retries;
        }
        if let Some(parameters) = &self.parameters {
            spec.parameters = parameters.clone();
        }
        if let Some(queue) = &self.queue {
            spec.queue = queue.as_str().into();
        }
        let mut details = spec.details.take().map(|d| *d).unwrap_or_default();
        if let Some(name) = &self.name {
            details.name.clone_from(name);
        }
        if let Some(description) = &self.description {
            details.description.clone_from(description);
        }
        if let Some(assigned_to) = &self.assigned_to {
            details.assigned_to.clone_from(assigned_to);
        }
        if let Some(expires_at) = self.expires_at {
            details.expires_at = expires_at;
        }
        if let Some(metadata) = &self.metadata {
            details.metadata = Some(metadata.clone());
        }
        if let Some(context) = &self.execution_context {
            details.execution_context = Some(context.clone());
        }
        if let Some(tags) = &self.tags {
            details.tags.clone_from(tags);
        }
        if self.retry.is_some() {
            details.retry = self.retry;
        }
        spec.details = (details != Details::default()).then(|| Box::new(details));
    }
}

/// Collects problems.
#[derive(Default)]
struct Check {
    problems: Vec<Problem>,
}

impl Check {
    fn fail(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem {
            path: path.into(),
            message: message.into(),
        });
    }

    fn text(&mut self, path: &str, text: Option<&str>, most: usize) {
        let Some(text) = text else { return };
        if text.contains('\0') {
            self.fail(path, "contains the NUL character, which cannot be stored");
        } else if text.chars().count() > most {
            self.fail(path, format!("is longer than {most} characters"));
        }
    }

    fn label(&mut self, path: &str, text: Option<&str>) {
        let Some(text) = text else { return };
        if text.trim().is_empty() {
            self.fail(path, "must not be empty");
        } else if text.chars().any(char::is_control) {
            self.fail(path, "must not contain control characters");
        } else if text.chars().count() > NAME_MAX {
            self.fail(path, format!("is longer than {NAME_MAX} characters"));
        }
    }

    fn labels(&mut self, path: &str, texts: &[String]) {
        if texts.len() > TAGS_MAX {
            self.fail(path, format!("holds {} items, the most is {TAGS_MAX}", texts.len()));
            return;
        }
        for (index, text) in texts.iter().enumerate() {
            self.label(&format!("{path}[{index}]"), Some(text));
        }
    }

    fn identifier(&mut self, path: &str, text: &str) {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
        if text.is_empty() || text.len() > NAME_MAX || !text.chars().all(fits) {
            let message = format!(
                "must be 1 to {NAME_MAX} letters, digits or any of _ - . : /, not `{}`",
                clip(text)
            );
            self.fail(path, message);
        }
    }

    fn task_type(&mut self, text: &str) {
        if !TASK_TYPES.contains(&text) {
            let message = format!(
                "`{}` is not a task type; the types are {}",
                clip(text),
                TASK_TYPES.join(", ")
            );
            self.fail("task_type", message);
        }
    }

    fn json(&mut self, path: &str, json: Option<&Json>) {
        if let Some(problem) = json.and_then(Json::problem) {
            self.fail(path, problem);
        }
    }

    fn positive(&mut self, path: &str, span: Option<Span>) {
        if span.is_some_and(|s| s.0.is_zero()) {
            self.fail(path, "must be longer than zero; leave it out for none");
        }
    }

    fn retries(&mut self, retries: Option<u32>) {
        if retries.is_some_and(|r| r > RETRIES_MAX) {
            self.fail("max_retries", format!("must be 0 to {RETRIES_MAX}"));
        }
    }

    fn retry(&mut self, retry: &RetryPolicy) {
        for (field, message) in retry.problems() {
            self.fail(format!("retry.{field}"), message);
        }
    }

    fn resources(&mut self, resources: &Resources) {
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
    fn sane_time(&mut self, path: &str, time: Time, now: Time) {
        let far = crate::time::DURATION_MAX * 10;
        if time > now.plus(far) || time < now.minus(far) {
            self.fail(path, format!("{time} is more than a century away"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        match parse::<BatchInput>(text.as_bytes()).and_then(|b| b.resolve(Time::EPOCH)) {
            Ok(_) => Vec::new(),
            Err(Invalid(problems)) => problems.iter().map(ToString::to_string).collect(),
        }
    }

    #[track_caller]
    fn check(task: &str, problem: &str) {
        let found = problems(&format!(r#"{{"tasks":[{task}]}}"#));
        assert!(
            found.iter().any(|p| p.contains(problem)),
            "{task}: {found:?} should say {problem:?}"
        );
    }

    #[test]
    fn every_problem_is_named_by_its_path() {
        check(r#"{}"#, "tasks[0].handler: is required");
        check(r#"{"handler":"noop","id":"x"}"#, "`id` is set by the engine");
        check(
            r#"{"handler":"noop","colour":1}"#,
            "tasks[0].colour: unknown field `colour`",
        );
        check(
            r#"{"handler":"noop","priority":9}"#,
            "tasks[0].priority: 9 is not a priority",
        );
        check(r#"{"handler":"noop","priority":"huge"}"#, "`huge` is not a priority");
        check(r#"{"handler":"noop","max_retries":-1}"#, "tasks[0].max_retries");
        check(r#"{"handler":"noop","max_retries":5000}"#, "must be 0 to 1000");
        check(
            r#"{"handler":"noop","timeout":"soon"}"#,
            "tasks[0].timeout: `soon` is not a duration",
        );
        check(r#"{"handler":"noop","run_at":"2026"}"#, "RFC 3339");
        check(
            r#"{"handler":"noop","run_at":"2026-01-01T00:00:00Z","delay":3}"#,
            "tasks[0].delay",
        );
        check(
            r#"{"handler":"noop","depends_on":["nobody"]}"#,
            "tasks[0].depends_on[0]: `nobody` is neither",
        );
        check(
            r#"{"handler":"noop","parameters":{"a":"\u0000"}}"#,
            "tasks[0].parameters: contains \\u0000",
        );
        check(
            r#"{"handler":"noop","name":"a\u0000b"}"#,
            "tasks[0].name: contains the NUL",
        );
        check(r#"{"handler":"no op"}"#, "tasks[0].handler: must be 1 to 200");
        check(r#"{"task_type":"cooking"}"#, "is not a task type");
        check(r#"{"handler":"noop","retry":{"factor":0}}"#, "tasks[0].retry.factor");
        check(r#"{"handler":"noop","retry":{"speed":0}}"#, "tasks[0].retry.speed");
        check(
            r#"{"handler":"noop","unique":{"key":""}}"#,
            "tasks[0].unique.key: must not be empty",
        );
        check(
            r#"{"handler":"noop","resources":{"cpu_cores":-1}}"#,
            "resources.cpu_cores",
        );
        check(r#"{"handler":"noop","deadline":"9999-01-01T00:00:00Z"}"#, "century");
    }

    #[test]
    fn an_array_is_no_object() {
        check("[]", "tasks[0]: invalid type: sequence, expected an object");
        check(r#"{"handler":"noop","unique":["k"]}"#, "tasks[0].unique: invalid type");
        check(r#"{"handler":"noop","retry":[]}"#, "tasks[0].retry: invalid type");
        check(
            r#"{"handler":"noop","resources":[]}"#,
            "tasks[0].resources: invalid type",
        );
        assert!(parse_object::<Patch>(b"[]").is_err());
        assert!(parse_object::<Patch>(br#"{"name":"x"}"#).is_ok());
    }

    #[test]
    fn missing_and_repeated_fields_are_named_by_their_own_path() {
        check(
            r#"{"handler":"noop","unique":{}}"#,
            "tasks[0].unique.key: missing field `key`",
        );
        check(
            r#"{"handler":"noop","handler":"noop"}"#,
            "tasks[0].handler: duplicate field `handler`",
        );
        assert_eq!(parse::<BatchInput>(b"{}").unwrap_err().0[0].path, "tasks");
    }

    #[test]
    fn all_problems_of_a_task_are_reported_at_once() {
        let found = problems(r#"{"tasks":[{"handler":"a b","queue":"","tags":[""],"max_retries":2000}]}"#);
        assert_eq!(found.len(), 4, "{found:?}");
    }

    #[test]
    fn references_resolve_within_the_batch_and_task_type_stands_in_for_the_handler() {
        let batch: BatchInput = parse(
            br#"{"tasks":[{"ref":"a","handler":"noop"},{"task_type":"testing","dependencies":["a","a"],"priority":"medium"}]}"#,
        )
        .unwrap();
        let tasks = batch.resolve(Time::EPOCH).unwrap();
        assert_eq!(tasks[1].depends_on.as_slice(), [Dependency::Item(0)]);
        assert_eq!(&*tasks[1].spec.handler, "testing");
        assert_eq!(tasks[1].spec.priority, Priority::Normal);
        assert!(tasks[0].spec.details.is_none());
    }

    #[test]
    fn a_patch_can_clear_what_may_be_absent() {
        let patch: Patch = parse(br#"{"name":null,"deadline":null,"priority":"high"}"#).unwrap();
        assert_eq!((patch.name.clone(), patch.deadline), (Some(None), Some(None)));
        let mut spec = Spec::new("noop", Json::null());
        spec.details_mut().name = Some("x".into());
        patch.apply_to(&mut spec);
        assert!(spec.details.is_none());
        assert_eq!(spec.priority, Priority::High);
        assert!(
            parse::<Patch>(br#"{"status":"completed"}"#)
                .unwrap_err()
                .to_string()
                .contains("set by the engine")
        );
    }
}
