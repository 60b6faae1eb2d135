//! Tasks that are there exactly if a transaction of the application commits.

use std::collections::BTreeMap;

use pensum_core::input::{BatchInput, Invalid, Problem, TaskInput};
use pensum_core::store::Call;
use pensum_core::{Json, Name, NewTask, StoreError, TaskId, Time};
use pensum_engine::Engine;
use pensum_store::postgres;
use tokio_postgres::Transaction;

use super::{Batch, Error, Pensum, Task};

/// Enqueues within transactions of the application on PostgreSQL: the tasks are there exactly if it commits. It holds no
/// connection and runs nothing, so a program that only enqueues needs no [`Pensum`]; one that has a [`Pensum`] takes the
/// outbox from [there](Pensum::outbox), and has the parameters checked by its handlers.
///
/// [`Outbox::enqueue`] writes a task where it belongs, and the nodes find it at the commit. It only inserts, and so takes
/// only tasks without ties. [`Outbox::submit`] takes every task: it goes into the store's intake, and a node enqueues it
/// right after the commit.
///
/// ```no_run
/// # async fn buy(client: &mut tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use pensum::{Outbox, Task};
///
/// let outbox = Outbox::new().actor("shop");
/// let transaction = client.transaction().await?;
/// transaction.execute("INSERT INTO orders(item) VALUES ('lamp')", &[]).await?;
/// let id = outbox.enqueue(&transaction, Task::new("ship", serde_json::json!({"item": "lamp"}))).await?;
/// transaction.commit().await?;
/// println!("task {id} ships it");
/// # Ok(())
/// # }
/// ```
///
/// After an error that came from the database PostgreSQL lets the transaction only be rolled back.
#[derive(Clone, Debug)]
pub struct Outbox {
    outbox: postgres::Outbox,
    actor: Name,
    engine: Option<Engine>,
}

impl Default for Outbox {
    fn default() -> Outbox {
        Outbox {
            outbox: postgres::Outbox::default(),
            actor: Name::from("library"),
            engine: None,
        }
    }
}

impl Outbox {
    /// For the store in the schema `pensum` of the database that the transactions are on.
    pub fn new() -> Outbox {
        Outbox::default()
    }

    /// For the store in another schema, as `?schema=NAME` of its URL says.
    ///
    /// # Errors
    /// When it is not the name of a store's schema.
    pub fn in_schema(schema: &str) -> Result<Outbox, Error> {
        Ok(Outbox {
            outbox: postgres::Outbox::new(schema)?,
            ..Outbox::default()
        })
    }

    pub(super) fn of(outbox: postgres::Outbox, engine: Engine, actor: Name) -> Outbox {
        Outbox {
            outbox,
            actor,
            engine: Some(engine),
        }
    }

    /// Who is kept as the creator of the tasks; `library` by default.
    #[must_use]
    pub fn actor(mut self, actor: impl Into<Name>) -> Outbox {
        self.actor = actor.into();
        self
    }

    /// Whether the commit tells the nodes at once; it does by default. PostgreSQL lets one transaction with a notice commit
    /// at a time, in the whole server, so a busy application may do without: nodes find the tasks within half a second.
    #[must_use]
    pub fn notify(mut self, notify: bool) -> Outbox {
        self.outbox = self.outbox.notify(notify);
        self
    }

    /// Adds a task without ties: no dependencies, no key, no unique key. It is there, under the id that comes back, once
    /// the transaction commits.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the input is wrong or the task has ties, before anything is written; [`Error::Store`] when
    /// the database refuses it, or has no store of this version in the schema.
    pub async fn enqueue(&self, transaction: &Transaction<'_>, task: Task) -> Result<TaskId, Error> {
        let now = self.outbox.now(transaction).await?;
        let task = task.resolve(now)?;
        let ids = self.enqueue_new(transaction, now, vec![task]).await?;
        Ok(ids[0])
    }

    /// Adds the tasks of a batch, and answers their ids in order.
    ///
    /// # Errors
    /// As for [`Outbox::enqueue`].
    pub async fn enqueue_all(&self, transaction: &Transaction<'_>, batch: Batch) -> Result<Vec<TaskId>, Error> {
        let now = self.outbox.now(transaction).await?;
        let tasks = batch.resolve(now)?;
        self.enqueue_new(transaction, now, tasks).await
    }

    async fn enqueue_new(
        &self,
        transaction: &Transaction<'_>,
        now: Time,
        tasks: Vec<NewTask>,
    ) -> Result<Vec<TaskId>, Error> {
        let problems: Vec<Problem> = tasks.iter().enumerate().filter_map(tie).collect();
        if !problems.is_empty() {
            return Err(Invalid(problems).into());
        }
        let call = Call::new(self.actor.clone(), now);
        let tasks = match &self.engine {
            Some(engine) => engine.prepare(&call.namespace, tasks).await?.into_tasks(),
            None => tasks,
        };
        Ok(self.outbox.enqueue(transaction, &call, tasks).await?)
    }

    /// Puts any task into the intake of the store; a node enqueues it right after the commit, or keeps it there with the
    /// reason of its refusal (`pensum intake list`). Answers the number of its row; its id comes with the enqueue.
    ///
    /// A delay counts from the beginning of the transaction.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the input is wrong, before anything is written; [`Error::Store`] when the database refuses
    /// it, or has no store of this version in the schema.
    pub async fn submit(&self, transaction: &Transaction<'_>, task: Task) -> Result<i64, Error> {
        let now = self.outbox.now(transaction).await?;
        let (task, input) = task.input(now)?;
        self.check_intake(&[task])?;
        self.submit_json(transaction, now, &json_of(&written(&input)?)?).await
    }

    /// Puts a batch into the intake of the store: a node enqueues all of it, or nothing.
    ///
    /// # Errors
    /// As for [`Outbox::submit`].
    pub async fn submit_all(&self, transaction: &Transaction<'_>, batch: Batch) -> Result<i64, Error> {
        let now = self.outbox.now(transaction).await?;
        let (tasks, inputs): (Vec<NewTask>, Vec<TaskInput>) = batch.inputs(now)?.into_iter().unzip();
        // By the rules of a batch, such as the number of its tasks.
        BatchInput { tasks: inputs.clone() }.resolve(now)?;
        self.check_intake(&tasks)?;
        let written = inputs.iter().map(written).collect::<Result<Vec<_>, _>>()?;
        let json = json_of(&BTreeMap::from([("tasks", written)]))?;
        self.submit_json(transaction, now, &json).await
    }

    fn check_intake(&self, tasks: &[NewTask]) -> Result<(), Error> {
        match &self.engine {
            Some(engine) => Ok(engine.check_intake(tasks)?),
            None => Ok(()),
        }
    }

    async fn submit_json(&self, transaction: &Transaction<'_>, now: Time, task: &Json) -> Result<i64, Error> {
        let call = Call::new(self.actor.clone(), now);
        Ok(self.outbox.submit(transaction, &call, task).await?)
    }
}

impl Pensum {
    /// Enqueues within transactions of the application, on the database of this engine's store.
    ///
    /// # Errors
    /// When the store is not on PostgreSQL.
    pub fn outbox(&self) -> Result<Outbox, Error> {
        self.own_outbox().ok_or_else(|| {
            let message = "only a store on PostgreSQL takes part in transactions of the application";
            Error::Store(StoreError::Conflict(message.to_owned()))
        })
    }
}

/// What keeps a task of a batch from being written in a transaction that is not the store's.
fn tie((index, task): (usize, &NewTask)) -> Option<Problem> {
    let details = task.spec.details.as_deref();
    let (field, what) = if !task.depends_on.is_empty() {
        ("depends_on", "dependencies")
    } else if task.unique.is_some() {
        ("unique", "a unique key")
    } else if task.spec.key.is_some() {
        ("key", "a key")
    } else if details.is_some_and(|details| details.parent_id.is_some()) {
        ("parent_id", "a parent")
    } else {
        return None;
    };
    let message = format!(
        "nodes would have to wait as long as this transaction lasts for a task with {what}; submit it instead, and a node \
         enqueues it right after the commit"
    );
    Some(Problem {
        path: format!("tasks[{index}].{field}"),
        message,
    })
}

/// A task as JSON, without what is absent.
fn written(input: &TaskInput) -> Result<BTreeMap<String, Json>, Error> {
    let mut fields: BTreeMap<String, Json> = json_of(input)?.to().map_err(unwritable)?;
    let is_list = |name: &str| matches!(name, "depends_on" | "requires" | "tags");
    fields.retain(|name, value| match value.get() {
        "null" => false,
        "[]" => !is_list(name),
        _ => true,
    });
    Ok(fields)
}

fn json_of(value: &impl serde::Serialize) -> Result<Json, Error> {
    Json::of(value).map_err(unwritable)
}

fn unwritable(source: serde_json::Error) -> Error {
    Error::Json {
        what: "the task".to_owned(),
        source,
    }
}
