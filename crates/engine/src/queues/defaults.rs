//! What tasks get from their queue: the one place where it is filled in, whichever way they come.

use foldhash::HashMap;
use parking_lot::RwLock;
use pensum_core::input::{Invalid, Problem};
use pensum_core::queue::QueueSettings;
use pensum_core::task::{Named, QUEUE_DEFAULT};
use pensum_core::{Details, Name, NewTask, Priority, StoreError};

use crate::{Engine, EngineError, heartbeat};

/// Most namespaces whose queues are remembered; tasks of further ones get no defaults.
const NAMESPACES_MAX: usize = 1_000;
/// The namespace that is looked at from the start.
pub(crate) const NAMESPACE_DEFAULT: &str = "default";

/// The queues that somebody put, as this node saw them last: at most a second ago while it runs. Enqueueing asks this and
/// not the store.
#[derive(Default)]
pub(crate) struct Queues {
    /// By namespace; `None` for one that is to be looked at and was not yet.
    seen: RwLock<HashMap<Name, Option<Settings>>>,
}

/// The settings of the queues of a namespace, by name.
type Settings = HashMap<Name, QueueSettings>;

impl Queues {
    fn knows(&self, namespace: &str) -> bool {
        matches!(self.seen.read().get(namespace), Some(Some(_)))
    }

    /// Notes a namespace to be looked at. False when there are too many.
    fn note(&self, namespace: &Name) -> bool {
        if self.knows(namespace) {
            return true;
        }
        let mut seen = self.seen.write();
        if seen.len() >= NAMESPACES_MAX && !seen.contains_key(namespace) {
            return false;
        }
        seen.entry(namespace.clone()).or_default();
        true
    }

    /// Fills in what tasks leave to their queue. A task that was filled in once must not be again: its author's notes of
    /// what he named are gone. Tasks of a queue that is not persistent are handed to `accept`.
    fn fill(&self, namespace: &str, tasks: &mut [NewTask], mut accept: impl FnMut(usize, &mut NewTask)) {
        let seen = self.seen.read();
        let settings = seen.get(namespace).and_then(Option::as_ref);
        let settings = settings.filter(|settings| !settings.is_empty());
        for (index, task) in tasks.iter_mut().enumerate() {
            let named = take_named(task);
            if let Some(settings) = settings {
                fill(settings, named, task);
                if settings.get(&task.spec.queue).is_some_and(|queue| !queue.persistent) {
                    accept(index, task);
                }
            }
        }
    }
}

/// Takes the notes off a task, so that none of them is stored.
fn take_named(task: &mut NewTask) -> Named {
    // Who made the task has no say in this.
    task.accepted_by = None;
    let Some(details) = &mut task.spec.details else {
        return Named::default();
    };
    details.volatile = false;
    let named = std::mem::take(&mut details.named);
    if named != Named::default() && **details == Details::default() {
        task.spec.details = None;
    }
    named
}

fn fill(settings: &Settings, named: Named, task: &mut NewTask) {
    let spec = &mut task.spec;
    if *spec.queue == *QUEUE_DEFAULT && !named.queue && settings.contains_key(&spec.handler) {
        spec.queue = spec.handler.clone();
    }
    let Some(queue) = settings.get(&spec.queue) else {
        return;
    };
    if let Some(priority) = queue.priority
        && spec.priority == Priority::default()
        && !named.priority
    {
        spec.priority = priority;
    }
    spec.timeout = spec.timeout.or(queue.timeout.map(|timeout| timeout.0));
    spec.max_retries = spec.max_retries.or(queue.max_retries);
    if queue.retry.is_some() && spec.details.as_ref().is_none_or(|details| details.retry.is_none()) {
        spec.details_mut().retry = queue.retry;
    }
}

impl Engine {
    /// Fills in what tasks leave to their queue: the queue itself where they name none, then priority, timeout, retries and
    /// whether they are durable.
    ///
    /// The first tasks of a namespace cost one read of the store, all others none.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for tasks that are to end with this process, where it runs no node that could be missed.
    pub(crate) async fn fill_from_queues(&self, namespace: &Name, tasks: &mut [NewTask]) -> Result<(), EngineError> {
        self.know_queues(namespace).await?;
        let (stays, mut problems, mut accepted) = (self.live().is_started(), Vec::new(), false);
        self.seen_queues().fill(namespace, tasks, |index, task| {
            if stays {
                self.accept(task);
                accepted = true;
            } else {
                let queue = &task.spec.queue;
                let message = format!(
                    "`{queue}` is not persistent: its tasks end with the process that accepts them, and this one runs no \
                     node; send them to a running node, or name another queue"
                );
                let path = format!("tasks[{index}].queue");
                problems.push(Problem { path, message });
            }
        });
        if !problems.is_empty() {
            return Err(Invalid(problems).into());
        }
        if accepted {
            // Whoever was never heard is not among the living.
            heartbeat::be_heard(self).await?;
        }
        Ok(())
    }

    /// Reads the queues of a namespace that was not looked at yet.
    pub(crate) async fn know_queues(&self, namespace: &Name) -> Result<(), StoreError> {
        match self.seen_queues().knows(namespace) {
            true => Ok(()),
            false => self.load_queues(namespace).await,
        }
    }

    /// The same without a look at the store: the queues of a namespace that was never heard of are known a second later,
    /// and tasks are durable as long as the store has not heard of this node.
    pub(crate) fn fill_from_seen_queues(&self, namespace: &Name, tasks: &mut [NewTask]) {
        self.seen_queues().note(namespace);
        let stays = self.live().is_started() && self.live().was_heard();
        self.seen_queues().fill(namespace, tasks, |_, task| {
            if stays {
                self.accept(task);
            }
        });
    }

    fn accept(&self, task: &mut NewTask) {
        task.accept_by(self.node().id);
        self.live().answer();
    }

    /// Reads the queues of a namespace.
    pub(crate) async fn load_queues(&self, namespace: &Name) -> Result<(), StoreError> {
        if !self.seen_queues().note(namespace) {
            return Ok(());
        }
        let records = self.store().queues(namespace).await?;
        // A queue that was only paused has nothing to give, and is no queue that a handler's tasks are meant for.
        let put = records.into_iter().filter(|record| record.put_by.is_some());
        let settings = put.map(|record| (record.name, record.settings)).collect();
        self.seen_queues()
            .seen
            .write()
            .insert(namespace.clone(), Some(settings));
        Ok(())
    }

    /// Reads the queues of every namespace that tasks came from.
    pub(crate) async fn reload_queues(&self) -> Result<(), StoreError> {
        self.seen_queues().note(&Name::from(NAMESPACE_DEFAULT));
        let namespaces: Vec<Name> = self.seen_queues().seen.read().keys().cloned().collect();
        for namespace in namespaces {
            self.load_queues(&namespace).await?;
        }
        Ok(())
    }
}
