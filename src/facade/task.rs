//! What to do, when, and after what.

use std::time::Duration;

use pensum_core::input::{TaskInput, check_new};
use pensum_core::task::{
    Dependency, NewTask, OnConflict, OnDependencyFailure, OnLimit, QUEUE_DEFAULT, Resources, Spec, Unique,
};
use pensum_core::time::Span;
use pensum_core::{Json, Name, Priority, RetryPolicy, TaskId, Time};
use serde::Serialize;

use super::Error;

/// A task to enqueue.
///
/// ```
/// use pensum::{Priority, RetryPolicy, Task};
/// use std::time::Duration;
///
/// let task = Task::new("resize", serde_json::json!({"path": "cat.png", "width": 320}))
///     .name("Resize the cat")
///     .priority(Priority::High)
///     .key("cat.png")
///     .delay(Duration::from_secs(5))
///     .retries(5, RetryPolicy::fixed(Duration::from_secs(10)));
/// ```
#[derive(Debug)]
pub struct Task {
    new: NewTask,
    delay: Option<Duration>,
    problem: Option<serde_json::Error>,
}

impl Task {
    /// A task for a handler. Parameters that JSON cannot write are reported when it is enqueued.
    pub fn new(handler: impl Into<Name>, parameters: impl Serialize) -> Task {
        let (parameters, problem) = match Json::of(&parameters) {
            Ok(json) => (json, None),
            Err(error) => (Json::null(), Some(error)),
        };
        Task {
            new: NewTask::new(Spec::new(handler, parameters)),
            delay: None,
            problem,
        }
    }

    /// A name for people.
    pub fn name(mut self, name: impl Into<String>) -> Task {
        self.new.spec.details_mut().name = Some(name.into());
        self
    }

    /// The queue to wait in. By default the one that bears the handler's name, if somebody gave that one settings, else
    /// `default`.
    pub fn queue(mut self, queue: impl Into<Name>) -> Task {
        self.new.spec.queue = queue.into();
        if *self.new.spec.queue == *QUEUE_DEFAULT {
            self.new.spec.details_mut().named.queue = true;
        }
        self
    }

    /// How much it matters; higher runs first. What its queue says by default, else [`Priority::Normal`].
    pub fn priority(mut self, priority: Priority) -> Task {
        self.new.spec.priority = priority;
        if priority == Priority::default() {
            self.new.spec.details_mut().named.priority = true;
        }
        self
    }

    /// When it should be done: within one priority, earlier deadlines run first.
    pub fn deadline(mut self, deadline: Time) -> Task {
        self.new.spec.deadline = Some(deadline);
        self
    }

    /// Tasks of one key never run at the same time, unless their queues have a `max_concurrent_per_key`.
    pub fn key(mut self, key: impl Into<Name>) -> Task {
        self.new.spec.key = Some(key.into());
        self
    }

    /// Not before this time.
    pub fn run_at(mut self, time: Time) -> Task {
        self.new.run_at = Some(time);
        self.delay = None;
        self
    }

    /// Not before this long from the moment it is enqueued.
    pub fn delay(mut self, delay: Duration) -> Task {
        self.delay = Some(delay);
        self.new.run_at = None;
        self
    }

    /// Cancelled unless it started by then.
    pub fn expires_at(mut self, time: Time) -> Task {
        self.new.spec.details_mut().expires_at = Some(time);
        self
    }

    /// Fails when it has not started so long after it was ready.
    pub fn queue_timeout(mut self, longest: Duration) -> Task {
        self.new.spec.details_mut().queue_timeout = Some(Span(longest));
        self
    }

    /// How many tokens of its queue's rate its start takes; 1 by default.
    pub fn units(mut self, units: u32) -> Task {
        self.new.spec.details_mut().units = Some(units);
        self
    }

    /// Whether it waits, as by default, or is refused with [`Error::Rejected`], where a limit of its queue would keep it from
    /// starting at once.
    pub fn on_limit(mut self, answer: OnLimit) -> Task {
        self.new.spec.details_mut().on_limit = Some(answer);
        self
    }

    /// A capability that whoever runs it must have; by default just its handler. More than one call asks for all of them.
    pub fn requires(mut self, capability: impl Into<Name>) -> Task {
        self.new.spec.details_mut().requires.push(capability.into());
        self
    }

    /// The agent that should run it: it is kept for that one while it is heard, is not draining and could run it.
    pub fn agent(mut self, name: impl Into<String>) -> Task {
        self.new.spec.details_mut().agent_id = Some(name.into());
        self
    }

    /// What it takes of the machine that runs it.
    pub fn resources(mut self, resources: Resources) -> Task {
        self.new.spec.details_mut().resources = Some(resources);
        self
    }

    /// Longest run of one attempt; five minutes by default, zero for no limit.
    pub fn timeout(mut self, timeout: Duration) -> Task {
        self.new.spec.timeout = Some(timeout);
        self
    }

    /// How many failures are followed by another attempt (3 by default), and after which delays.
    pub fn retries(mut self, most: u32, policy: RetryPolicy) -> Task {
        self.new.spec.max_retries = Some(most);
        self.new.spec.details_mut().retry = Some(policy);
        self
    }

    /// A label to find it by.
    pub fn tag(mut self, tag: impl Into<String>) -> Task {
        self.new.spec.details_mut().tags.push(tag.into());
        self
    }

    /// Free-form facts about the task.
    pub fn metadata(mut self, metadata: impl Serialize) -> Task {
        match Json::of(&metadata) {
            Ok(json) => self.new.spec.details_mut().metadata = Some(json),
            Err(error) => self.problem = Some(error),
        }
        self
    }

    /// Waits for a task that was enqueued before.
    pub fn after(mut self, task: TaskId) -> Task {
        self.new.depends_on.push(Dependency::Task(task));
        self
    }

    /// Waits for another task of the same [`Batch`].
    pub fn after_item(mut self, item: ItemRef) -> Task {
        self.new.depends_on.push(Dependency::Item(item.0));
        self
    }

    /// What happens to it when a task that it waits for fails or is cancelled; it is cancelled too by default.
    pub fn on_dependency_failure(mut self, policy: OnDependencyFailure) -> Task {
        self.new.spec.details_mut().on_dependency_failure = policy;
        self
    }

    /// At most one unfinished task of this handler has the key; `on_conflict` says what a second one gets.
    pub fn unique(mut self, key: impl Into<Name>, on_conflict: OnConflict) -> Task {
        self.new.unique = Some(Box::new(Unique {
            key: key.into(),
            ttl: None,
            on_conflict,
        }));
        self
    }

    /// Like [`Task::unique`], with the key held for a time, whenever the task ends.
    pub fn unique_for(mut self, key: impl Into<Name>, ttl: Duration, on_conflict: OnConflict) -> Task {
        self.new.unique = Some(Box::new(Unique {
            key: key.into(),
            ttl: Some(ttl),
            on_conflict,
        }));
        self
    }

    pub(super) fn resolve(mut self, now: Time) -> Result<NewTask, Error> {
        if let Some(source) = self.problem {
            return Err(Error::Json {
                what: format!("the input of `{}`", self.new.spec.handler),
                source,
            });
        }
        if let Some(delay) = self.delay {
            self.new.run_at = Some(now.plus(delay));
        }
        check_new(&self.new, now)?;
        Ok(self.new)
    }

    /// The task, and how its author would have written it.
    pub(super) fn input(self, now: Time) -> Result<(NewTask, TaskInput), Error> {
        let delay = self.delay;
        let task = self.resolve(now)?;
        let mut input = TaskInput::from(task.clone());
        if let Some(delay) = delay {
            input.run_at = None;
            input.delay = Some(Span(delay));
        }
        Ok((task, input))
    }
}

/// Tasks to enqueue together, all or none; they may wait for each other.
///
/// ```
/// use pensum::{Batch, Task};
///
/// let mut batch = Batch::new();
/// let fetch = batch.add(Task::new("fetch", "https://example.org"));
/// batch.add(Task::new("index", ()).after_item(fetch));
/// ```
#[derive(Debug, Default)]
pub struct Batch {
    tasks: Vec<Task>,
}

/// A task of a [`Batch`] that has no id yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemRef(usize);

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Adds a task; the answer is its name for [`Task::after_item`] and its position among the ids.
    pub fn add(&mut self, task: Task) -> ItemRef {
        self.tasks.push(task);
        ItemRef(self.tasks.len() - 1)
    }

    pub(crate) fn resolve(self, now: Time) -> Result<Vec<NewTask>, Error> {
        self.tasks.into_iter().map(|task| task.resolve(now)).collect()
    }

    /// The tasks, and how their author would have written them: each bears its position as `ref`.
    pub(super) fn inputs(self, now: Time) -> Result<Vec<(NewTask, TaskInput)>, Error> {
        let mut inputs = self
            .tasks
            .into_iter()
            .map(|task| task.input(now))
            .collect::<Result<Vec<_>, _>>()?;
        for (index, (_, input)) in inputs.iter_mut().enumerate() {
            input.reference = Some(index.to_string());
        }
        Ok(inputs)
    }
}

impl ItemRef {
    /// The position among the ids that enqueueing the batch answers.
    pub fn index(self) -> usize {
        self.0
    }
}
