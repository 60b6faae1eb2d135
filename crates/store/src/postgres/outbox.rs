//! Tasks written within transactions of the application: they are there exactly if it commits.
//!
//! Such a transaction may last as long as it likes, and what it locks stays locked as long. So it only ever inserts: a task
//! without ties goes straight into its rows, with its id; whatever has to look at other tasks, and lock them, goes into
//! the intake, and a node enqueues it after the commit.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use pensum_core::agent::Demand;
use pensum_core::store::Call;
use pensum_core::{Json, NewTask, StoreError, TaskId, Time};
use rand::Rng;
use rand::rngs::StdRng;
use tokio_postgres::{Row, Transaction};

use super::enqueue::{
    INSERT_NEW_LIVE, INSERT_TASK, New, Prepared, is_simple, live_of, new_live_values, tag_statement, task_values,
};
use super::error::Fault;
use super::options::{SCHEMA_DEFAULT, check_schema};
use super::pool::{Statement, Value, text};
use super::queue::{self, COLUMNS};
use super::schema;
use super::step::tally_statement;
use super::wake::channel;

/// Writes tasks within transactions that are not the store's own. It holds no connection.
#[derive(Clone, Debug)]
pub struct Outbox {
    schema: String,
    notify: bool,
}

impl Default for Outbox {
    /// For the schema `pensum`.
    fn default() -> Outbox {
        Outbox {
            schema: SCHEMA_DEFAULT.to_owned(),
            notify: true,
        }
    }
}

impl Outbox {
    /// For a store in this schema of the database that the transactions are on.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] for what is not the name of a store's schema.
    pub fn new(schema: &str) -> Result<Outbox, StoreError> {
        check_schema(schema).map_err(StoreError::Unavailable)?;
        Ok(Outbox {
            schema: schema.to_owned(),
            notify: true,
        })
    }

    /// Whether the commit tells the nodes at once, which it does by default. PostgreSQL lets one transaction with a notice
    /// commit at a time, in the whole server; without one nodes find the tasks within half a second.
    #[must_use]
    pub fn notify(mut self, notify: bool) -> Outbox {
        self.notify = notify;
        self
    }

    /// The time of the database, by which tasks become due. Refuses a database whose schema is not this program's.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] where there is no store in the schema, [`StoreError::Conflict`] and [`StoreError::Newer`]
    /// for one of another version.
    pub async fn now(&self, transaction: &Transaction<'_>) -> Result<Time, StoreError> {
        let sql = "SELECT value, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint FROM pensum.meta
                   WHERE key = 'schema_version'";
        let rows = self.run(transaction, &[say(sql, Vec::new())]).await;
        let rows = rows.map_err(|fault| self.describe(fault))?;
        let Some(row) = rows.iter().flatten().next() else {
            let lost = Fault::Damaged("no schema version".to_owned());
            return Err(self.describe(lost));
        };
        let read = |column: usize| {
            row.try_get::<_, i64>(column)
                .map_err(|error| self.describe(error.into()))
        };
        match read(0)? as u64 {
            found if found > schema::VERSION => Err(StoreError::Newer {
                found,
                known: schema::VERSION,
            }),
            found if found < schema::VERSION => Err(StoreError::Conflict(format!(
                "the schema {} has version {found}, this program writes {}: `pensum db migrate` brings it up to that",
                self.schema,
                schema::VERSION
            ))),
            _ => Ok(Time::from_micros(read(1)?)),
        }
    }

    /// Writes tasks without ties: no dependencies, keys, unique keys or parents, and of no queue that has to be counted before
    /// it takes them. They are there, under the ids that come
    /// back in order, once the transaction commits. `call.now` is [the database's time](Outbox::now); an idempotency key
    /// is not looked at, for the transaction itself happens once.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] for a task with ties, before anything is written. After any other error PostgreSQL lets
    /// the transaction only be rolled back.
    pub async fn enqueue(
        &self,
        transaction: &Transaction<'_>,
        call: &Call,
        tasks: Vec<NewTask>,
    ) -> Result<Vec<TaskId>, StoreError> {
        if let Some(item) = tasks.iter().position(|task| !Outbox::takes(task)) {
            return Err(StoreError::Conflict(format!(
                "tasks[{item}] has a dependency, a key, a unique key or a parent, for which others would have to wait as long \
                 as the transaction lasts; submit it to the intake instead"
            )));
        }
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let judged = self.judged(transaction, call, &tasks).await;
        if let Some(item) = judged.map_err(|fault| self.describe(fault))? {
            return Err(StoreError::Conflict(format!(
                "tasks[{item}]: the queue `{}` has limits for which it would have to be locked as long as the transaction \
                 lasts; submit it to the intake instead",
                tasks[item].spec.queue
            )));
        }
        let written = self.write(transaction, call, tasks).await;
        written.map_err(|fault| self.describe(fault))
    }

    /// The first task that its queue has to judge.
    async fn judged(
        &self,
        transaction: &Transaction<'_>,
        call: &Call,
        tasks: &[NewTask],
    ) -> Result<Option<usize>, Fault> {
        let names: BTreeSet<&str> = tasks.iter().map(|task| &*task.spec.queue).collect();
        let sql = format!("SELECT {COLUMNS} FROM pensum.queue q WHERE q.namespace = $1 AND q.name = ANY($2)");
        let params = vec![
            Value::Text(Some(Cow::Borrowed(&*call.namespace))),
            Value::Texts(names.into_iter().map(|name| Some(text(name))).collect()),
        ];
        let rows = self.run(transaction, &[say(&sql, params)]).await?;
        let mut queues = BTreeMap::new();
        for row in rows.iter().flatten() {
            let (_, _, record) = queue::read(row, 0)?;
            queues.insert(record.name, record.settings);
        }
        let judges = |task: &NewTask| {
            queues
                .get(&task.spec.queue)
                .is_some_and(|settings| settings.judges(task))
        };
        Ok(tasks.iter().position(judges))
    }

    /// True for a task that [`Outbox::enqueue`] takes.
    pub fn takes(task: &NewTask) -> bool {
        is_simple(task)
    }

    /// Puts a task, or a batch, into the intake, as [`pensum_core::intake::read`] reads it. A node enqueues it after the
    /// commit. Answers the number of its row.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] where the database refuses the row; then the transaction can only be rolled back.
    pub async fn submit(&self, transaction: &Transaction<'_>, call: &Call, task: &Json) -> Result<i64, StoreError> {
        let sql = "INSERT INTO pensum.intake(task, namespace, actor) VALUES ($1::text::jsonb, $2, $3) RETURNING id";
        let params = vec![
            Value::Text(Some(Cow::Borrowed(task.get()))),
            Value::Text(Some(Cow::Borrowed(&*call.namespace))),
            Value::Text(Some(text(&call.actor))),
        ];
        let mut statements = vec![say(sql, params)];
        statements.extend(self.notice());
        let inserted = self.run(transaction, &statements).await;
        let inserted = inserted.map_err(|fault| self.describe(fault))?;
        let id = inserted.iter().flatten().next().map(|row| row.try_get(0));
        match id {
            Some(id) => id.map_err(|error| self.describe(Fault::Db(error))),
            None => Err(self.describe(Fault::Damaged("an insert without a number".to_owned()))),
        }
    }

    async fn write(
        &self,
        transaction: &Transaction<'_>,
        call: &Call,
        tasks: Vec<NewTask>,
    ) -> Result<Vec<TaskId>, Fault> {
        let kinds = Kinds::of(&tasks);
        let known = self
            .run(
                transaction,
                &[
                    say("SELECT nextval('pensum.task_row') FROM generate_series(1, $1)", {
                        vec![Value::Int8(Some(i64::try_from(tasks.len()).unwrap_or(i64::MAX)))]
                    }),
                    kinds.find(call),
                    find_name(call),
                ],
            )
            .await?;
        let [rows, classes, name] = <[Vec<Row>; 3]>::try_from(known).map_err(|_| lost())?;
        let mut classes = numbers(&classes)?;
        let mut actor = numbers(&name)?;
        if actor.is_empty() || classes.contains(&None) {
            (classes, actor) = self.intern(transaction, call, &kinds).await?;
        }
        let class_of = |place: usize| classes.get(place).copied().flatten().ok_or_else(lost);
        let actor = actor.first().copied().flatten().ok_or_else(lost)?;
        let prepared = tasks
            .into_iter()
            .zip(&kinds.places)
            .map(|(task, place)| {
                Ok(Prepared {
                    class: class_of(*place)?,
                    details: task.spec.details.as_ref().and_then(|d| serde_json::to_string(d).ok()),
                    task,
                })
            })
            .collect::<Result<Vec<Prepared>, Fault>>()?;
        let mut fresh = Vec::with_capacity(prepared.len());
        let mut lives = Vec::with_capacity(prepared.len());
        let mut tallies = BTreeMap::new();
        let mut random: StdRng = rand::make_rng();
        for (prepared, row) in prepared.iter().zip(&rows) {
            let id = TaskId::mint(call.now, row.try_get(0)?, random.next_u64());
            let live = live_of(id, prepared, None, 0, call.now);
            *tallies
                .entry((prepared.class, live.cell(live.gate_at(call.now))))
                .or_default() += 1;
            lives.push((live, call.now));
            fresh.push(New {
                id,
                actor: Some(actor),
                created_at: call.now,
                prepared,
            });
        }
        let mut statements = vec![
            say(&INSERT_TASK, task_values(&fresh)),
            say(&INSERT_NEW_LIVE, new_live_values(&lives)),
            tally_statement(&tallies),
        ];
        statements.extend(tag_statement(&fresh));
        statements.extend(self.notice());
        self.run(transaction, &statements).await?;
        Ok(fresh.iter().map(|new| new.id).collect())
    }

    /// Adds classes and names that no task has had before. Others who add the same wait until this transaction ends: once
    /// in the life of a store.
    async fn intern(
        &self,
        transaction: &Transaction<'_>,
        call: &Call,
        kinds: &Kinds,
    ) -> Result<(Vec<Option<u32>>, Vec<Option<u32>>), Fault> {
        let answers = self
            .run(
                transaction,
                &[
                    kinds.add(call),
                    say("INSERT INTO pensum.name(text) VALUES ($1) ON CONFLICT DO NOTHING", {
                        vec![Value::Text(Some(text(&call.actor)))]
                    }),
                    kinds.find(call),
                    find_name(call),
                ],
            )
            .await?;
        let [_, _, classes, name] = <[Vec<Row>; 4]>::try_from(answers).map_err(|_| lost())?;
        Ok((numbers(&classes)?, numbers(&name)?))
    }

    fn notice(&self) -> Option<Statement<'static>> {
        let params = vec![Value::Text(Some(Cow::Owned(channel(&self.schema))))];
        self.notify.then(|| say("SELECT pg_notify($1, '')", params))
    }

    /// Statements on the transaction, at once and in order. They are unnamed and carry their types, so that a pooler may
    /// stand between.
    async fn run(&self, transaction: &Transaction<'_>, statements: &[Statement<'_>]) -> Result<Vec<Vec<Row>>, Fault> {
        let quoted = format!("\"{}\".", self.schema);
        let texts: Vec<_> = statements
            .iter()
            .map(|statement| {
                let params: Vec<_> = statement.params.iter().map(Value::as_param).collect();
                (statement.sql.replace("pensum.", &quoted), params)
            })
            .collect();
        let answers = join_all(texts.iter().map(|(sql, params)| transaction.query_typed(sql, params))).await;
        Ok(answers.into_iter().collect::<Result<_, _>>()?)
    }

    fn describe(&self, fault: Fault) -> StoreError {
        fault.describe(&format!("the schema {} of the transaction's database", self.schema))
    }
}

fn say<'a>(sql: &'a str, params: Vec<Value<'a>>) -> Statement<'a> {
    Statement { sql, params }
}

fn lost() -> Fault {
    Fault::Damaged("fewer rows than were asked for".to_owned())
}

fn find_name(call: &Call) -> Statement<'_> {
    say(
        "SELECT id FROM pensum.name WHERE text = $1",
        vec![Value::Text(Some(text(&call.actor)))],
    )
}

fn numbers(rows: &[Row]) -> Result<Vec<Option<u32>>, Fault> {
    rows.iter()
        .map(|row| Ok(row.try_get::<_, Option<i32>>(0)?.map(|id| id as u32)))
        .collect()
}

/// The kinds of tasks in a call, each once, and which of them each task is.
struct Kinds {
    queues: Vec<String>,
    handlers: Vec<String>,
    requires: Vec<String>,
    places: Vec<usize>,
}

impl Kinds {
    fn of(tasks: &[NewTask]) -> Kinds {
        let mut found: BTreeMap<(&str, &str, String), usize> = BTreeMap::new();
        let mut kinds = Kinds {
            queues: Vec::new(),
            handlers: Vec::new(),
            requires: Vec::new(),
            places: Vec::with_capacity(tasks.len()),
        };
        for NewTask { spec, .. } in tasks {
            let requires = Demand::of(spec).to_text();
            let next = found.len();
            let place = *found
                .entry((&spec.queue, &spec.handler, requires.clone()))
                .or_insert(next);
            if place == next {
                kinds.queues.push(spec.queue.to_string());
                kinds.handlers.push(spec.handler.to_string());
                kinds.requires.push(requires);
            }
            kinds.places.push(place);
        }
        kinds
    }

    fn params<'a>(&'a self, call: &'a Call) -> Vec<Value<'a>> {
        let texts = |list: &'a [String]| Value::Texts(list.iter().map(|t| Some(Cow::Borrowed(t.as_str()))).collect());
        vec![
            Value::Text(Some(Cow::Borrowed(&*call.namespace))),
            texts(&self.queues),
            texts(&self.handlers),
            texts(&self.requires),
        ]
    }

    /// Their numbers in order, null for those that are new.
    fn find<'a>(&'a self, call: &'a Call) -> Statement<'a> {
        say(
            "SELECT c.id FROM unnest($2::text[], $3::text[], $4::text[]) WITH ORDINALITY AS kind(queue, handler, requires, n)
             LEFT JOIN pensum.class c ON c.namespace = $1 AND c.queue = kind.queue AND c.handler = kind.handler
               AND c.requires = kind.requires ORDER BY kind.n",
            self.params(call),
        )
    }

    /// Adds those that are new, always in the same order, so that two who add the same do not wait for each other.
    fn add<'a>(&'a self, call: &'a Call) -> Statement<'a> {
        say(
            "INSERT INTO pensum.class(namespace, queue, handler, requires)
             SELECT $1, queue, handler, requires FROM unnest($2::text[], $3::text[], $4::text[])
               AS kind(queue, handler, requires)
             WHERE NOT EXISTS (SELECT 1 FROM pensum.class c WHERE c.namespace = $1 AND c.queue = kind.queue
               AND c.handler = kind.handler AND c.requires = kind.requires)
             ORDER BY queue, handler, requires ON CONFLICT DO NOTHING",
            self.params(call),
        )
    }
}
