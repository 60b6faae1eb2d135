//! Changes of what a task asks for.

use std::borrow::Cow;
use std::sync::Arc;

use pensum_core::agent::Demand;
use pensum_core::input::Patch;
use pensum_core::store::{Applied, Call, Rejected};
use pensum_core::transition::{Event, EventKind};
use pensum_core::{Priority, Spec, TaskId, TaskRecord};

use super::Inner;
use super::enqueue::retag;
use super::error::Fault;
use super::pool::{Durability, Statement, Value, text};
use super::reads;
use super::row::{mark, micros};
use super::step::{Facts, Place, Work};

/// Changes a task; the answer is read in the same transaction's wake.
pub(super) async fn update(
    inner: &Arc<Inner>,
    call: &Call,
    id: TaskId,
    patch: &Patch,
    expected_version: Option<u64>,
) -> Result<Result<TaskRecord, Rejected>, Fault> {
    let mut work = Work::begin(inner, Durability::Acknowledged, call.now).await?;
    let changed = work.update(call, id, patch, expected_version).await?;
    match changed {
        Ok(true) => {
            if work.commit().await? {
                inner.wake.ready();
            }
        }
        Ok(false) => work.tx.rollback().await?,
        Err(rejected) => {
            work.tx.rollback().await?;
            return Ok(Err(rejected));
        }
    }
    let found = reads::find(&inner.pool, &inner.catalog, &call.namespace, id).await?;
    Ok(found.map(reads::Found::record).ok_or(Rejected::NotFound(id)))
}

impl Work {
    /// True when there is something to commit; false for a repeat of a request that was carried out.
    async fn update(
        &mut self,
        call: &Call,
        id: TaskId,
        patch: &Patch,
        expected_version: Option<u64>,
    ) -> Result<Result<bool, Rejected>, Fault> {
        let row = id.row();
        let remembered = match self.remembered(call).await? {
            Ok(found) => found.is_some(),
            Err(rejected) => return Ok(Err(rejected)),
        };
        self.load_any(&[row]).await?;
        if !self.exists(&call.namespace, id).await? {
            return Ok(Err(Rejected::NotFound(id)));
        }
        if remembered {
            return Ok(Ok(false));
        }
        let (life, found) = match self.place(id) {
            Some(Place::Live(live)) => (&live.life, u64::from(live.version)),
            Some(Place::Ended(outcome)) => (&outcome.life, u64::from(outcome.version)),
            _ => return Ok(Err(Rejected::NotFound(id))),
        };
        if let Some(expected) = expected_version.filter(|v| *v != found) {
            return Ok(Err(Rejected::VersionMismatch {
                task: id,
                expected,
                found,
            }));
        }
        if let Some(why) = patch.refusal(life) {
            return Ok(Err(Rejected::Forbidden {
                task: id,
                state: life.state,
                why,
            }));
        }
        if let Some(at) = patch.start(call.now)
            && self.live(row).is_some()
        {
            let facts = Facts {
                actor: Some(call.actor.clone()),
                ..Facts::default()
            };
            let event = Event::Reschedule(at);
            if let Err(rejected) = self.happen(row, &event, facts, &mut Applied::default()).await? {
                return Ok(Err(rejected));
            }
        }
        let Some(stored) = self.stored(&[row]).await?.remove(&row) else {
            return Ok(Err(Rejected::NotFound(id)));
        };
        let mut spec = stored.spec;
        patch.apply_to(&mut spec);
        let inner = Arc::clone(&self.inner);
        let class = inner
            .catalog
            .class_id(
                &inner.pool,
                (&call.namespace, &spec.queue, &spec.handler, &Demand::of(&spec)),
            )
            .await?;
        self.extra.push(rewrite_task(row, class, &spec));
        let tags = spec.details.as_ref().map(|d| d.tags.clone()).unwrap_or_default();
        match self.place(id).cloned() {
            Some(Place::Live(mut live)) => {
                live.class = class;
                live.priority = spec.priority;
                live.deadline = spec.deadline;
                live.expires_at = spec.expires_at();
                live.version += 1;
                if live.marks & mark::TAGS != 0 || !tags.is_empty() {
                    self.extra.extend(retag(row, &tags));
                    live.marks |= mark::TAGS;
                }
                let run = live.run;
                self.log(&mut live, run, EventKind::Updated, Some(&call.actor), None);
                if let Some(place) = self.live_mut(row) {
                    *place = *live;
                }
            }
            Some(Place::Ended(mut outcome)) => {
                // What may change of an ended task changes no scheduling; only its version and its history move on.
                outcome.version += 1;
                if outcome.marks & mark::TAGS != 0 || !tags.is_empty() {
                    self.extra.extend(retag(row, &tags));
                    outcome.marks |= mark::TAGS;
                }
                outcome.marks |= mark::EVENTS;
                let seq = super::row::seq_of(outcome.version) - 1;
                let attempt = outcome.life.attempt;
                let now = self.now;
                self.put_event(row, seq, now, EventKind::Updated, Some(&call.actor), attempt, None);
                self.change_ended(*outcome);
            }
            _ => return Ok(Err(Rejected::NotFound(id))),
        }
        self.remember(call, std::iter::once(id));
        Ok(Ok(true))
    }
}

fn rewrite_task(row: i64, class: u32, spec: &Spec) -> Statement<'static> {
    let rare = spec.details.as_deref();
    let owned = |t: Option<&str>| Value::Text(t.map(|t| Cow::Owned(text(t).into_owned())));
    let details = rare.and_then(|d| serde_json::to_string(d).ok());
    Statement {
        sql: "UPDATE pensum.task SET class = $2, parameters = $3, priority = $4, deadline = $5, timeout = $6,
              max_retries = $7, details = $8, assigned_to = $9 WHERE row = $1",
        params: vec![
            Value::Int8(Some(row)),
            Value::Int8(Some(i64::from(class))),
            owned(Some(spec.parameters.get())),
            Value::Int8((spec.priority != Priority::Normal).then(|| spec.priority.level())),
            Value::Int8(micros(spec.deadline)),
            Value::Int8(spec.timeout.map(|t| i64::try_from(t.as_micros()).unwrap_or(i64::MAX))),
            Value::Int8(spec.max_retries.map(i64::from)),
            owned(details.as_deref()),
            owned(rare.and_then(|d| d.assigned_to.as_deref())),
        ],
    }
}
