//! A task to create, and a batch of them.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::check::Check;
use super::parse::{Invalid, Problem, objects, optional_object};
use super::{DESCRIPTION_MAX, TITLE_MAX};
use crate::id::clip;
use crate::store::DEPENDENCIES_MAX;
use crate::task::{
    Dependency, Details, Named, NewTask, OnConflict, OnDependencyFailure, OnLimit, QUEUE_DEFAULT, Resources, Spec,
    Unique,
};
use crate::time::Span;
use crate::{Json, Name, Priority, RetryPolicy, TaskId, Time};

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
    /// Where it waits; by default in the queue that bears the handler's name, if somebody gave that one settings, else in
    /// `default`.
    pub queue: Option<String>,
    /// low, normal, high, urgent, critical, or 1 to 5; what its queue says by default, else normal.
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
    /// Longest run of one attempt, 0 for no limit; what its queue says by default, else 300 s.
    #[schema(value_type = Option<f64>)]
    pub timeout: Option<Span>,
    /// Longest wait from ready to start; over it the task fails.
    #[schema(value_type = Option<f64>)]
    pub queue_timeout: Option<Span>,
    /// Longest silence of a running attempt; over it the attempt fails.
    #[schema(value_type = Option<f64>)]
    pub heartbeat_timeout: Option<Span>,
    /// How many failures are followed by another attempt; what its queue says by default, else 3.
    pub max_retries: Option<u32>,
    /// What happens at submission when the queue runs as many tasks as it may, or has started as many: `wait`, which is the
    /// default, or `reject` with 429.
    pub on_limit: Option<OnLimit>,
    /// How many tokens of the queue's rate limit a start takes, 1 to 1,000,000; 1 by default.
    pub units: Option<u32>,
    /// The delays between attempts; what its queue says by default.
    #[serde(deserialize_with = "optional_object")]
    #[schema(value_type = Option<Object>)]
    pub retry: Option<RetryPolicy>,
    /// Tasks of one key never run at the same time, unless their queues have a `max_concurrent_per_key`.
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
        check.done()?;
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
            accepted_by: None,
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
            check.queue("queue", queue);
        }
        for (path, time) in [("deadline", self.deadline), ("expires_at", self.expires_at)] {
            if let Some(time) = time {
                check.sane_time(path, time, now);
            }
        }
        check.positive("queue_timeout", self.queue_timeout);
        check.positive("heartbeat_timeout", self.heartbeat_timeout);
        check.retries(self.max_retries);
        check.units(self.units);
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
        let named = Named {
            queue: self.queue.as_deref() == Some(QUEUE_DEFAULT),
            priority: self.priority == Some(Priority::default()),
        };
        let details = Details {
            named,
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
            units: self.units.filter(|units| *units != 1),
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

/// The task as its author would have written it; what only the engine sets is left out. A dependency on another item of
/// the batch names that one's index.
impl From<NewTask> for TaskInput {
    fn from(task: NewTask) -> TaskInput {
        let NewTask {
            spec,
            run_at,
            depends_on,
            unique,
            accepted_by: _,
        } = task;
        let details = spec.details.map(|details| *details).unwrap_or_default();
        let named = details.named;
        let name_of = |dependency: &Dependency| match dependency {
            Dependency::Task(id) => id.to_string(),
            Dependency::Item(index) => index.to_string(),
        };
        TaskInput {
            reference: None,
            handler: Some(spec.handler.to_string()),
            name: details.name,
            description: details.description,
            task_type: details.task_type,
            parameters: Some(spec.parameters),
            metadata: details.metadata,
            execution_context: details.execution_context,
            queue: (named.queue || *spec.queue != *QUEUE_DEFAULT).then(|| spec.queue.to_string()),
            priority: (named.priority || spec.priority != Priority::default()).then_some(spec.priority),
            depends_on: depends_on.iter().map(name_of).collect(),
            on_dependency_failure: details.on_dependency_failure,
            run_at,
            delay: None,
            deadline: spec.deadline,
            expires_at: details.expires_at,
            timeout: spec.timeout.map(Span),
            queue_timeout: details.queue_timeout,
            heartbeat_timeout: details.heartbeat_timeout,
            max_retries: spec.max_retries,
            on_limit: details.on_limit,
            units: details.units,
            retry: details.retry,
            key: spec.key.map(|key| key.to_string()),
            unique: unique.map(|unique| UniqueInput {
                key: unique.key.to_string(),
                ttl: unique.ttl.map(Span),
                on_conflict: unique.on_conflict,
            }),
            requires: details.requires.iter().map(Name::to_string).collect(),
            agent_id: details.agent_id,
            resources: details.resources,
            created_by: details.created_by,
            assigned_to: details.assigned_to,
            tags: details.tags,
        }
    }
}

/// Checks a task that a program made without a [`TaskInput`], by the same bounds.
///
/// # Errors
/// Every problem, by path.
pub fn check_new(task: &NewTask, now: Time) -> Result<(), Invalid> {
    let mut check = Check::default();
    let NewTask {
        spec,
        run_at,
        depends_on,
        unique,
        accepted_by: _,
    } = task;
    check.identifier("handler", &spec.handler);
    check.queue("queue", &spec.queue);
    check.json("parameters", Some(&spec.parameters));
    check.label("key", spec.key.as_deref());
    check.retries(spec.max_retries);
    if depends_on.len() > DEPENDENCIES_MAX {
        check.fail(
            "depends_on",
            format!("holds {} tasks, the most is {DEPENDENCIES_MAX}", depends_on.len()),
        );
    }
    if let Some(unique) = unique {
        check.label("unique.key", Some(&unique.key));
        check.positive("unique.ttl", unique.ttl.map(Span));
    }
    let details = spec.details.as_deref();
    for (path, time) in [
        ("run_at", *run_at),
        ("deadline", spec.deadline),
        ("expires_at", details.and_then(|d| d.expires_at)),
    ] {
        if let Some(time) = time {
            check.sane_time(path, time, now);
        }
    }
    if let Some(details) = details {
        check.text("name", details.name.as_deref(), TITLE_MAX);
        check.text("description", details.description.as_deref(), DESCRIPTION_MAX);
        check.json("metadata", details.metadata.as_ref());
        check.json("execution_context", details.execution_context.as_ref());
        check.labels("tags", &details.tags);
        check.positive("queue_timeout", details.queue_timeout);
        check.positive("heartbeat_timeout", details.heartbeat_timeout);
        check.units(details.units);
        check.labels("requires", &details.requires);
        check.label("agent_id", details.agent_id.as_deref());
        if let Some(resources) = &details.resources {
            check.resources(resources);
        }
        if let Some(retry) = &details.retry {
            check.retry(retry);
        }
    }
    check.done()
}
