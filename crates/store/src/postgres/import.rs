//! Taking in what another store kept: whole pages, a transaction each.
//!
//! Here the number of an event follows from the version that it took its task to, and that of a log line is its place
//! among the lines of its task. What comes from a store that counts otherwise gets numbers that keep its order.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use pensum_core::agent::Demand;
use pensum_core::dossier::{self, Dossier, Hold, Import, Parcel, Remembered, UniqueKey};
use pensum_core::queue::QueueRecord;
use pensum_core::store::{LogEntry, Signal, TaskEvent};
use pensum_core::task::{Execution, OnConflict, Unique};
use pensum_core::transition::EventKind;
use pensum_core::{Json, Name, NewTask, StoreError, TaskId, TaskRecord, Time, Usage};

use super::Inner;
use super::enqueue::{INSERT_TASK, New, Prepared, tag_statement, task_values};
use super::error::Fault;
use super::key::KeyOrder;
use super::numbers::{numbers, version};
use super::pool::{Durability, Pool, Statement, Tx, Value, text};
use super::reads::{last_execution, terminal_kind};
use super::row::{self, Cell, LiveRow, OutcomeRow, mark, scope_of, seq_of};
use super::step::{EventRow, event_statement, execution_statement, tally_statement};
use super::{agent, breaker, key, queue, width};

/// Finds the entry that stands while another store is being copied into this one.
const FILLING: &str = "SELECT 1 FROM pensum.meta WHERE key = 'filling'";

/// True when a copy into this store was begun and not finished.
pub(super) async fn is_half_copied(pool: &Arc<Pool>) -> Result<bool, Fault> {
    Ok(!pool.read(FILLING, &[]).await?.is_empty())
}

/// One step of an import.
pub(super) async fn import(inner: &Arc<Inner>, step: &Import, now: Time) -> Result<Result<(), StoreError>, Fault> {
    let location = &inner.pool.location;
    // Names and classes are looked up before the transaction: new ones take one of their own.
    let page = match step {
        Import::Parcel(parcel) => match Page::prepare(inner, parcel).await? {
            Ok(page) => Some(page),
            Err(refusal) => return Ok(Err(refusal)),
        },
        Import::Begin | Import::End => None,
    };
    let mut tx = inner.pool.begin(Durability::Acknowledged).await?;
    // Of two that copy at once, one waits for the other, and is then refused.
    tx.query("LOCK TABLE pensum.meta IN SHARE ROW EXCLUSIVE MODE", &[])
        .await?;
    let none = Vec::new;
    let answers = tx
        .pipeline(&[
            Statement {
                sql: FILLING,
                params: none(),
            },
            Statement {
                sql: "SELECT max(row) FROM pensum.task",
                params: none(),
            },
        ])
        .await?;
    let filling = answers.first().is_some_and(|rows| !rows.is_empty());
    let last: Option<i64> = answers
        .get(1)
        .and_then(|rows| rows.first())
        .map_or(Ok(None), |row| row.try_get(0))?;
    let refused = match step {
        Import::Begin if filling => Some(dossier::half_copied(location)),
        Import::Begin => held(&mut tx).await?.map(|tasks| dossier::not_empty(location, tasks)),
        _ if !filling => Some(dossier::not_begun(location)),
        Import::Parcel(parcel) => parcel.check(last.unwrap_or(0) + 1).err(),
        Import::End => None,
    };
    if let Some(refusal) = refused {
        tx.rollback().await?;
        return Ok(Err(refusal));
    }
    let statements = match (step, &page) {
        (_, Some(page)) => page.statements(now),
        (Import::Begin, _) => {
            vec![Statement {
                sql: "INSERT INTO pensum.meta(key, value) VALUES ('filling', 1)",
                params: none(),
            }]
        }
        _ => vec![Statement {
            sql: "DELETE FROM pensum.meta WHERE key = 'filling'",
            params: none(),
        }],
    };
    tx.commit(&statements).await?;
    // Numbers that were set aside for new tasks may be taken now.
    inner.rows.forget().await;
    if page.is_some_and(|page| !page.parcel.breakers.is_empty()) {
        inner.wake.breakers_changed();
    }
    inner.wake.ready();
    if matches!(step, Import::End) {
        inner.queues.refresh(&inner.pool).await?;
        if inner.queues.is_wide() {
            // Keys were settled before their queues came.
            width::settle_all(inner, now).await;
        }
    }
    Ok(Ok(()))
}

/// How many tasks the store holds, if it holds anything.
async fn held(tx: &mut Tx) -> Result<Option<u64>, Fault> {
    let sql = "SELECT (SELECT count(*) FROM pensum.task), EXISTS (SELECT 1 FROM pensum.idempotency)
               OR EXISTS (SELECT 1 FROM pensum.intake) OR EXISTS (SELECT 1 FROM pensum.queue)
               OR EXISTS (SELECT 1 FROM pensum.agent) OR EXISTS (SELECT 1 FROM pensum.breaker)";
    let rows = tx.query(sql, &[]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let (tasks, more): (i64, bool) = (row.try_get(0)?, row.try_get(1)?);
    Ok((tasks > 0 || more).then_some(tasks as u64))
}

/// A page on its way into the tables.
struct Page<'a> {
    parcel: &'a Parcel,
    tasks: Vec<(TaskId, Option<u32>, Time, Prepared)>,
    lives: Vec<LiveRow>,
    /// The keys whose turns have to be settled.
    scopes: BTreeSet<Name>,
    outcomes: Vec<OutcomeRow>,
    events: Vec<EventRow>,
    executions: Vec<Execution>,
}

impl<'a> Page<'a> {
    /// Makes rows of dossiers.
    async fn prepare(inner: &Arc<Inner>, parcel: &'a Parcel) -> Result<Result<Page<'a>, StoreError>, Fault> {
        let mut page = Page {
            parcel,
            tasks: Vec::with_capacity(parcel.dossiers.len()),
            lives: Vec::new(),
            scopes: BTreeSet::new(),
            outcomes: Vec::new(),
            events: Vec::new(),
            executions: Vec::new(),
        };
        for dossier in &parcel.dossiers {
            if let Err(refusal) = page.take_in(inner, dossier).await? {
                return Ok(Err(refusal));
            }
        }
        Ok(Ok(page))
    }

    async fn take_in(&mut self, inner: &Arc<Inner>, dossier: &Dossier) -> Result<Result<(), StoreError>, Fault> {
        let (task, spec) = (&dossier.task, &dossier.task.spec);
        let details = spec.details.as_deref();
        let class = (&dossier.namespace, &spec.queue, &spec.handler, &Demand::of(spec));
        let class = inner.catalog.class_id(&inner.pool, class).await?;
        let parent = details.and_then(|d| d.parent_id);
        // A child's creator is its parent, which its row says already.
        let creator = dossier
            .creator
            .as_ref()
            .filter(|creator| parent.is_none_or(|parent| ***creator != *format!("task:{parent}")));
        let actor = match creator {
            Some(creator) => Some(inner.catalog.name_id(&inner.pool, creator).await?),
            None => None,
        };
        let unique = dossier.unique.as_ref().map(|unique| {
            Box::new(Unique {
                key: unique.key.clone(),
                ttl: unique.ttl,
                on_conflict: OnConflict::default(),
            })
        });
        let prepared = Prepared {
            task: NewTask {
                unique,
                ..NewTask::new(spec.clone())
            },
            class,
            details: details.and_then(|details| serde_json::to_string(details).ok()),
        };
        self.tasks.push((task.id, actor, task.created_at, prepared));
        if task.lifecycle.state.is_terminal() {
            self.take_in_finished(inner, dossier).await
        } else {
            Ok(self.take_in_unfinished(dossier, class))
        }
    }

    fn take_in_unfinished(&mut self, dossier: &Dossier, class: u32) -> Result<(), StoreError> {
        let (task, spec) = (&dossier.task, &dossier.task.spec);
        let row = task.id.row();
        let numbers = numbers(task, &dossier.events, None)?;
        self.put_events(row, dossier.events.iter().zip(numbers));
        self.executions.extend(dossier.executions.iter().cloned());
        let mut live = LiveRow {
            deadline: spec.deadline,
            scope: spec.key.as_ref().map(|key| scope_of(&dossier.namespace, key)),
            life: task.lifecycle.clone(),
            version: version(task),
            expires_at: spec.expires_at(),
            queue_timeout: spec.queue_timeout(),
            parent: spec.details.as_ref().and_then(|d| d.parent_id).map(TaskId::row),
            marks: marks(dossier),
            progress: task.progress.clone(),
            error: task.error.clone(),
            ..LiveRow::plain(row, class, spec.priority, task.lifecycle.run_at)
        };
        let mut mark = |on: bool, mark: u32| live.marks |= if on { mark } else { 0 };
        mark(!dossier.events.is_empty(), mark::EVENTS);
        mark(!dossier.executions.is_empty(), mark::EXECUTIONS);
        mark(
            dossier.events.iter().any(|event| event.kind == EventKind::Started),
            mark::START,
        );
        self.scopes.extend(live.scope.clone());
        self.lives.push(live);
        Ok(())
    }

    async fn take_in_finished(
        &mut self,
        inner: &Arc<Inner>,
        dossier: &Dossier,
    ) -> Result<Result<(), StoreError>, Fault> {
        let (task, events) = (&dossier.task, &dossier.events);
        let Some(end) = terminal(task, events) else {
            return Ok(Err(StoreError::Conflict(format!(
                "task {} is {} and its history does not say since when; verify the store that it comes from",
                task.id, task.lifecycle.state
            ))));
        };
        let numbers = match numbers(task, events, Some(end)) {
            Ok(numbers) => numbers,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut outcome = OutcomeRow {
            row: task.id.row(),
            life: task.lifecycle.clone(),
            version: version(task),
            marks: marks(dossier),
            status: None,
            executor: None,
            result: task.result.clone(),
            error: task.error.clone(),
            usage: Usage::default(),
            actor: events[end].actor.clone(),
            progress: task.progress.clone(),
        };
        let mut executions = &dossier.executions[..];
        if let Some((last, earlier)) = executions.split_last() {
            let folded = OutcomeRow {
                status: Some(last.status),
                executor: match last.executor_id.as_str() {
                    "" => None,
                    name => Some(inner.catalog.name_id(&inner.pool, &Name::from(name)).await?),
                },
                usage: last.usage,
                ..outcome.clone()
            };
            // The row of the end stands for the last attempt as well, where it says all of it.
            if last_execution(&folded, task.id, last.executor_id.clone()).as_ref() == Some(last) {
                (outcome, executions) = (folded, earlier);
            }
        }
        let start = end
            .checked_sub(1)
            .filter(|start| numbers[*start] + 1 == numbers[end] && is_derived(&events[*start], &outcome));
        if outcome.status.is_some() && start.is_none() {
            outcome.marks |= mark::START;
        }
        let stored: Vec<(&TaskEvent, u64)> = (events.iter().zip(numbers).enumerate())
            .filter(|(at, _)| *at != end && Some(*at) != start)
            .map(|(_, event)| event)
            .collect();
        outcome.marks |= if stored.is_empty() { 0 } else { mark::EVENTS };
        outcome.marks |= if executions.is_empty() { 0 } else { mark::EXECUTIONS };
        self.put_events(outcome.row, stored.into_iter());
        self.executions.extend(executions.iter().cloned());
        self.outcomes.push(outcome);
        Ok(Ok(()))
    }

    fn put_events<'e>(&mut self, row: i64, events: impl Iterator<Item = (&'e TaskEvent, u64)>) {
        self.events.extend(events.map(|(event, seq)| EventRow {
            row,
            seq,
            at: event.at,
            kind: event.kind,
            actor: event.actor.clone(),
            attempt: event.attempt,
            error: event.error.clone(),
        }));
    }

    /// Everything that the page writes.
    fn statements(&self, now: Time) -> Vec<Statement<'_>> {
        let mut statements = Vec::new();
        if !self.tasks.is_empty() {
            let fresh: Vec<New<'_>> = (self.tasks.iter())
                .map(|(id, actor, created_at, prepared)| New {
                    id: *id,
                    actor: *actor,
                    created_at: *created_at,
                    prepared,
                })
                .collect();
            statements.push(Statement {
                sql: &INSERT_TASK,
                params: task_values(&fresh),
            });
            statements.extend(tag_statement(&fresh));
            statements.extend(self.states(now));
            statements.extend(
                [
                    self.dependencies(),
                    self.holds(),
                    self.checkpoints(),
                    self.inbox(),
                    self.steps(),
                ]
                .into_iter()
                .flatten(),
            );
            statements.extend(self.logs());
            statements.extend(self.ties());
            statements.extend(key::settle(&self.scopes, &KeyOrder::default(), now));
        }
        statements.extend(self.remembered());
        statements.extend(self.queues());
        statements.extend(self.agents());
        statements.extend(self.breakers());
        statements
    }

    /// Where the tasks are, how they came there, and where they count.
    fn states(&self, now: Time) -> Vec<Statement<'_>> {
        let mut statements = Vec::new();
        let mut tallies: BTreeMap<(u32, Cell), i64> = BTreeMap::new();
        let classes: HashMap<i64, u32> = self.tasks.iter().map(|(id, _, _, p)| (id.row(), p.class)).collect();
        let mut count = |row: i64, cell: Cell| {
            if let Some(class) = classes.get(&row) {
                *tallies.entry((*class, cell)).or_default() += 1;
            }
        };
        for live in &self.lives {
            count(live.row, live.cell(live.gate_at(now)));
        }
        for outcome in &self.outcomes {
            count(outcome.row, Cell::of_end(outcome.life.state));
        }
        let folded = self
            .outcomes
            .iter()
            .filter(|outcome| outcome.status.is_some())
            .map(|outcome| outcome.row);
        let stored = self.executions.iter().map(|execution| execution.task.row());
        folded.chain(stored).for_each(|row| count(row, Cell::Executions));
        if !self.lives.is_empty() {
            let rows: Vec<&LiveRow> = self.lives.iter().collect();
            statements.push(Statement {
                sql: &row::SAVE_LIVE,
                params: LiveRow::values(&rows, now),
            });
        }
        if !self.outcomes.is_empty() {
            let rows: Vec<&OutcomeRow> = self.outcomes.iter().collect();
            statements.push(Statement {
                sql: &row::SAVE_OUTCOME,
                params: OutcomeRow::values(&rows),
            });
        }
        if !self.events.is_empty() {
            statements.push(event_statement(&self.events));
        }
        if !self.executions.is_empty() {
            statements.push(execution_statement(&self.executions));
        }
        statements.push(tally_statement(&tallies));
        statements
    }

    fn dependencies(&self) -> Option<Statement<'_>> {
        let edges: Vec<(i64, i32, i64)> = (self.parcel.dossiers.iter())
            .flat_map(|d| {
                d.task
                    .depends_on
                    .iter()
                    .enumerate()
                    .map(|(at, on)| (d.row(), at as i32, on.row()))
            })
            .collect();
        (!edges.is_empty()).then(|| Statement {
            sql: "INSERT INTO pensum.dependency(dependent, position, prerequisite)
                  SELECT * FROM unnest($1::bigint[], $2::integer[], $3::bigint[])",
            params: vec![
                int8(edges.iter().map(|e| e.0)),
                Value::Int4s(edges.iter().map(|e| Some(e.1)).collect()),
                int8(edges.iter().map(|e| e.2)),
            ],
        })
    }

    fn holds(&self) -> Option<Statement<'_>> {
        let held: Vec<(&Dossier, &UniqueKey, Hold)> = (self.parcel.dossiers.iter())
            .filter_map(|d| d.unique.as_ref().and_then(|unique| Some((d, unique, unique.hold?))))
            .collect();
        let until = |hold: &Hold| match hold {
            Hold::UntilEnd => None,
            Hold::Until(at) => Some(at.as_micros()),
        };
        (!held.is_empty()).then(|| Statement {
            sql: "INSERT INTO pensum.unique_key(namespace, handler, key, row, expires_at)
                  SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])",
            params: vec![
                texts(held.iter().map(|(d, ..)| &*d.namespace)),
                texts(held.iter().map(|(d, ..)| &*d.task.spec.handler)),
                texts(held.iter().map(|(_, unique, _)| &*unique.key)),
                int8(held.iter().map(|(d, ..)| d.row())),
                Value::Int8s(held.iter().map(|(.., hold)| until(hold)).collect()),
            ],
        })
    }

    fn checkpoints(&self) -> Option<Statement<'_>> {
        let left: Vec<(i64, &Json)> = (self.parcel.dossiers.iter())
            .filter_map(|d| d.checkpoint.as_ref().map(|state| (d.row(), state)))
            .collect();
        (!left.is_empty()).then(|| Statement {
            sql: "INSERT INTO pensum.checkpoint(row, state) SELECT * FROM unnest($1::bigint[], $2::text[])",
            params: vec![
                int8(left.iter().map(|(row, _)| *row)),
                texts(left.iter().map(|(_, state)| state.get())),
            ],
        })
    }

    fn inbox(&self) -> Option<Statement<'_>> {
        let mut unread: Vec<(i64, u64, &Signal)> = Vec::new();
        for dossier in &self.parcel.dossiers {
            // Later ones get numbers behind that of the version.
            let fits = dossier
                .inbox
                .iter()
                .all(|signal| signal.seq <= seq_of(version(&dossier.task)));
            for (place, signal) in (1..).zip(&dossier.inbox) {
                unread.push((dossier.row(), if fits { signal.seq } else { place }, signal));
            }
        }
        (!unread.is_empty()).then(|| Statement {
            sql: "INSERT INTO pensum.inbox(row, seq, name, payload, at)
                  SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::bigint[])",
            params: vec![
                int8(unread.iter().map(|u| u.0)),
                int8(unread.iter().map(|u| u.1 as i64)),
                texts(unread.iter().map(|u| &*u.2.name)),
                texts(unread.iter().map(|u| u.2.payload.get())),
                int8(unread.iter().map(|u| u.2.at.as_micros())),
            ],
        })
    }

    fn steps(&self) -> Option<Statement<'_>> {
        let steps: Vec<(i64, i64, &(Name, Json))> = (self.parcel.dossiers.iter())
            .flat_map(|d| (1..).zip(&d.steps).map(|(place, step)| (d.row(), place, step)))
            .collect();
        (!steps.is_empty()).then(|| Statement {
            sql: "INSERT INTO pensum.step(row, seq, name, result)
                  SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[])",
            params: vec![
                int8(steps.iter().map(|s| s.0)),
                int8(steps.iter().map(|s| s.1)),
                texts(steps.iter().map(|s| &*s.2.0)),
                texts(steps.iter().map(|s| s.2.1.get())),
            ],
        })
    }

    fn logs(&self) -> Option<Statement<'_>> {
        let logs: Vec<(i64, i64, &LogEntry)> = (self.parcel.dossiers.iter())
            .flat_map(|d| (1..).zip(&d.logs).map(|(place, entry)| (d.row(), place, entry)))
            .collect();
        (!logs.is_empty()).then(|| Statement {
            sql: "INSERT INTO pensum.log(row, seq, at, attempt, stream, message) SELECT * FROM
                  unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::smallint[], $6::text[])",
            params: vec![
                int8(logs.iter().map(|l| l.0)),
                int8(logs.iter().map(|l| l.1)),
                int8(logs.iter().map(|l| l.2.line.at.as_micros())),
                int8(logs.iter().map(|l| i64::from(l.2.line.attempt))),
                Value::Int2s(logs.iter().map(|l| Some(l.2.line.stream.code() as i16)).collect()),
                texts(logs.iter().map(|l| l.2.line.message.as_str())),
            ],
        })
    }

    /// What rows say about others, of this page and of those before it, and where new rows go on.
    fn ties(&self) -> Vec<Statement<'_>> {
        let rows: Vec<i64> = self.tasks.iter().map(|(id, ..)| id.row()).collect();
        let last = rows.last().copied();
        let own = || int8(rows.iter().copied());
        vec![
            Statement {
                sql: "UPDATE pensum.live l SET children = coalesce(l.children, 0) + born.n
                      FROM (SELECT c.parent, count(*) AS n FROM pensum.live c
                            WHERE c.row = ANY($1) AND c.parent IS NOT NULL GROUP BY c.parent) born
                      WHERE l.row = born.parent",
                params: vec![own()],
            },
            // One of them may come with a page before the other.
            Statement {
                sql: "UPDATE pensum.live l SET flags = l.flags | 1024 WHERE l.flags & 1024 = 0 AND l.row IN
                      (SELECT d.prerequisite FROM pensum.dependency d WHERE d.dependent = ANY($1)
                       UNION SELECT d.prerequisite FROM pensum.dependency d WHERE d.prerequisite = ANY($1))",
                params: vec![own()],
            },
            Statement {
                sql: "SELECT setval('pensum.task_row', greatest($1, (SELECT last_value FROM pensum.task_row)))",
                params: vec![Value::Int8(last)],
            },
        ]
    }

    fn queues(&self) -> Vec<Statement<'_>> {
        if self.parcel.queues.is_empty() {
            return Vec::new();
        }
        let all = || self.parcel.queues.iter().map(|(_, queue)| queue);
        let settings = |queue: &QueueRecord| serde_json::to_string(&queue.settings).unwrap_or_else(|_| "{}".to_owned());
        let carried = Statement {
            sql: "INSERT INTO pensum.queue(namespace, name, settings, paused_at, process_to, bucket, put_by, created_at,
                  changed_at, version) SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[],
                  $6::bigint[], $7::text[], $8::bigint[], $9::bigint[], $10::bigint[])",
            params: vec![
                texts(self.parcel.queues.iter().map(|(namespace, _)| &**namespace)),
                texts(all().map(|queue| &*queue.name)),
                Value::Texts(all().map(|queue| Some(Cow::Owned(settings(queue)))).collect()),
                Value::Int8s(all().map(|queue| queue.paused_at.map(Time::as_micros)).collect()),
                Value::Int8s(all().map(|queue| queue.process_to).collect()),
                int8(all().map(|queue| queue.bucket.0)),
                Value::Texts(all().map(|queue| queue.put_by.as_deref().map(text)).collect()),
                int8(all().map(|queue| queue.created_at.as_micros())),
                int8(all().map(|queue| queue.changed_at.as_micros())),
                int8(all().map(|queue| queue.version as i64)),
            ],
        };
        vec![carried, queue::GROW]
    }

    fn agents(&self) -> impl Iterator<Item = Statement<'_>> {
        self.parcel.agents.iter().map(|(namespace, record)| Statement {
            sql: agent::INSERT,
            params: agent::values(namespace, record),
        })
    }

    fn breakers(&self) -> Vec<Statement<'_>> {
        let carried = self.parcel.breakers.iter();
        let mut all: Vec<_> = carried
            .map(|(namespace, record)| breaker::insert(namespace, record))
            .collect();
        if !all.is_empty() {
            all.push(queue::GROW);
        }
        all
    }

    fn remembered(&self) -> Option<Statement<'_>> {
        let keys = &self.parcel.remembered;
        let hex = |bytes: &[u8]| Cow::Owned(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let ids = |found: &Remembered| found.ids.iter().flat_map(|id| *id.as_bytes()).collect::<Vec<u8>>();
        (!keys.is_empty()).then(|| Statement {
            sql: "INSERT INTO pensum.idempotency(namespace, key, digest, ids, expires_at)
                  SELECT namespace, key, decode(digest, 'hex'), decode(ids, 'hex'), expires_at
                  FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[])
                  AS given(namespace, key, digest, ids, expires_at)",
            params: vec![
                texts(keys.iter().map(|found| &*found.namespace)),
                texts(keys.iter().map(|found| found.key.as_str())),
                Value::Texts(keys.iter().map(|found| Some(hex(&found.digest))).collect()),
                Value::Texts(keys.iter().map(|found| Some(hex(&ids(found)))).collect()),
                int8(keys.iter().map(|found| found.expires_at.as_micros())),
            ],
        })
    }
}

fn int8(values: impl Iterator<Item = i64>) -> Value<'static> {
    Value::Int8s(values.map(Some).collect())
}

fn texts<'a>(values: impl Iterator<Item = &'a str>) -> Value<'a> {
    Value::Texts(values.map(|value| Some(text(value))).collect())
}

/// The marks of what stands in tables of its own, but for the history.
fn marks(dossier: &Dossier) -> u32 {
    let tags = dossier.task.spec.details.as_ref().is_some_and(|d| !d.tags.is_empty());
    let marks = [
        (mark::DEPENDS, !dossier.task.depends_on.is_empty()),
        (mark::UNIQUE, dossier.unique.is_some()),
        (mark::CHECKPOINT, dossier.checkpoint.is_some()),
        (mark::STEPS, !dossier.steps.is_empty()),
        (mark::INBOX, !dossier.inbox.is_empty()),
        (mark::LOGS, !dossier.logs.is_empty()),
        (mark::TAGS, tags),
    ];
    marks
        .iter()
        .filter(|(_, is)| *is)
        .fold(0, |marks, (mark, _)| marks | mark)
}

/// Which event is the end of a finished task.
fn terminal(task: &TaskRecord, events: &[TaskEvent]) -> Option<usize> {
    let life = &task.lifecycle;
    events.iter().rposition(|event| {
        event.kind == terminal_kind(life.state) && Some(event.at) == life.finished_at && event.attempt == life.attempt
    })
}

/// The start that the outcome's row stands for as well, when no row tells of it.
fn is_derived(start: &TaskEvent, outcome: &OutcomeRow) -> bool {
    outcome.status.is_some()
        && start.kind == EventKind::Started
        && Some(start.at) == outcome.life.started_at
        && start.attempt == outcome.life.attempt
        && start.actor.is_none()
        && start.error.is_none()
}
