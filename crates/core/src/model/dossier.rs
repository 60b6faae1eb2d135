//! Copies: what the model keeps, to and from another store.

use super::{Entry, Model, Remembered, UniqueHold};
use crate::agent::AgentRecord;
use crate::breaker::BreakerRecord;
use crate::dossier::{self, Bookmark, Dossier, Hold, Import, PARCEL_BYTES, Parcel, UniqueKey};
use crate::queue::QueueRecord;
use crate::store::{StoreError, TaskEvent};
use crate::task::{OnConflict, Unique};
use crate::transition::EventKind;
use crate::{Name, State, Time};

impl Model {
    pub(super) fn export(&self, from: Bookmark, limit: usize) -> Result<Parcel, StoreError> {
        self.check_quiet()?;
        let limit = limit.max(1);
        let is_first_key = from.is_first_key();
        let mut parcel = match from {
            Bookmark::Task(row) => self.export_tasks(row, limit),
            Bookmark::Key(namespace, key) => self.export_keys(&(namespace, key), limit),
        };
        if is_first_key {
            let queues = self.queues.iter();
            parcel.queues = queues
                .map(|((namespace, _), queue)| (namespace.clone(), queue.clone()))
                .collect();
            let breakers = self.breakers.iter();
            parcel.breakers = breakers
                .map(|((namespace, _), breaker)| (namespace.clone(), breaker.clone()))
                .collect();
            let agents = self.agents.iter();
            parcel.agents = agents
                .map(|((namespace, _), agent)| (namespace.clone(), agent.registration()))
                .collect();
        }
        Ok(parcel)
    }

    fn is_empty(&self) -> bool {
        self.tasks.is_empty()
            && self.idempotency.is_empty()
            && self.queues.is_empty()
            && self.agents.is_empty()
            && self.breakers.is_empty()
    }

    fn check_quiet(&self) -> Result<(), StoreError> {
        let running = || self.tasks.values().filter(|e| e.lifecycle.state == State::Running);
        if running().next().is_none() {
            return Ok(());
        }
        let mut nodes: Vec<Name> = running()
            .filter_map(|e| e.holder.as_ref().map(|h| h.executor.clone()))
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        let until = running().filter_map(|e| e.lifecycle.lease.map(|l| l.expires_at)).max();
        Err(dossier::still_running(running().count() as u64, &nodes, until))
    }

    fn export_tasks(&self, row: i64, limit: usize) -> Parcel {
        let mut parcel = Parcel {
            next: Some(Bookmark::first_key()),
            ..Parcel::default()
        };
        let mut weight = 0;
        for (row, entry) in self.tasks.range(row..) {
            if parcel.dossiers.len() >= limit || weight >= PARCEL_BYTES {
                parcel.next = Some(Bookmark::Task(*row));
                break;
            }
            let dossier = self.dossier(*row, entry);
            weight += dossier.weight();
            parcel.dossiers.push(dossier);
        }
        parcel
    }

    fn dossier(&self, row: i64, entry: &Entry) -> Dossier {
        let unique = entry.unique.as_ref().map(|unique| {
            let place = (entry.namespace.clone(), entry.spec.handler.clone(), unique.key.clone());
            let held = self.unique.get(&place).filter(|hold| hold.row == row);
            UniqueKey {
                key: unique.key.clone(),
                ttl: unique.ttl,
                hold: held.map(|hold| hold.expires_at.map_or(Hold::UntilEnd, Hold::Until)),
            }
        });
        let created = entry.events.iter().find(|e| e.kind == EventKind::Created);
        Dossier {
            namespace: entry.namespace.clone(),
            creator: created.and_then(|e| e.actor.clone()),
            task: entry.record(),
            unique,
            checkpoint: entry.checkpoint.clone(),
            executions: entry.executions.clone(),
            events: entry
                .events
                .iter()
                .filter(|e| e.kind != EventKind::Created)
                .cloned()
                .collect(),
            logs: entry.logs.clone(),
            inbox: entry.inbox.iter().cloned().collect(),
            steps: entry.steps.clone(),
        }
    }

    fn export_keys(&self, after: &(Name, String), limit: usize) -> Parcel {
        use std::ops::Bound::{Excluded, Unbounded};
        let mut parcel = Parcel::default();
        for ((namespace, key), found) in self.idempotency.range((Excluded(after), Unbounded)) {
            if parcel.remembered.len() >= limit {
                parcel.next = parcel.remembered.last().map(dossier::Remembered::bookmark);
                break;
            }
            parcel.remembered.push(dossier::Remembered {
                namespace: namespace.clone(),
                key: key.clone(),
                digest: found.digest,
                ids: found.ids.clone(),
                expires_at: found.expires_at,
            });
        }
        parcel
    }

    pub(super) fn import(&mut self, step: Import) -> Result<(), StoreError> {
        const HERE: &str = "the model store";
        match step {
            Import::Begin if self.filling => Err(dossier::half_copied(HERE)),
            Import::Begin if self.is_empty() => {
                self.filling = true;
                // Rows of tasks that were deleted are free.
                self.next_row = 1;
                Ok(())
            }
            Import::Begin => Err(dossier::not_empty(HERE, self.tasks.len() as u64)),
            Import::Parcel(_) | Import::End if !self.filling => Err(dossier::not_begun(HERE)),
            Import::Parcel(parcel) => {
                parcel.check(self.next_row)?;
                for dossier in parcel.dossiers {
                    self.take_in(dossier);
                }
                for found in parcel.remembered {
                    let remembered = Remembered {
                        digest: found.digest,
                        ids: found.ids,
                        expires_at: found.expires_at,
                    };
                    self.idempotency.insert((found.namespace, found.key), remembered);
                }
                let place = |(namespace, queue): (Name, QueueRecord)| ((namespace, queue.name.clone()), queue);
                self.queues.extend(parcel.queues.into_iter().map(place));
                let place = |(namespace, breaker): (Name, BreakerRecord)| ((namespace, breaker.name.clone()), breaker);
                self.breakers.extend(parcel.breakers.into_iter().map(place));
                let place = |(namespace, agent): (Name, AgentRecord)| ((namespace, agent.name.clone()), agent);
                self.agents.extend(parcel.agents.into_iter().map(place));
                Ok(())
            }
            Import::End => {
                self.filling = false;
                Ok(())
            }
        }
    }

    fn take_in(&mut self, dossier: Dossier) {
        let row = dossier.row();
        self.next_row = row + 1;
        self.next_seq = self.next_seq.max(dossier.seq_max());
        let Dossier {
            namespace,
            creator,
            task,
            unique,
            checkpoint,
            executions,
            events,
            logs,
            inbox,
            steps,
        } = dossier;
        if let Some(UniqueKey {
            key, hold: Some(hold), ..
        }) = &unique
        {
            let place = (namespace.clone(), task.spec.handler.clone(), key.clone());
            let expires_at = match hold {
                Hold::UntilEnd => None,
                Hold::Until(at) => Some(*at),
            };
            self.unique.insert(place, UniqueHold { row, expires_at });
        }
        let created = created(creator, task.created_at);
        let entry = Entry {
            id: task.id,
            namespace,
            created_at: task.created_at,
            spec: task.spec,
            lifecycle: task.lifecycle,
            holder: None,
            unique: unique.map(|unique| Unique {
                key: unique.key,
                ttl: unique.ttl,
                on_conflict: OnConflict::default(),
            }),
            depends_on: task.depends_on,
            progress: task.progress,
            result: task.result,
            error: task.error,
            cancel_reason: None,
            checkpoint,
            version: task.version,
            executions,
            events: std::iter::once(created).chain(events).collect(),
            logs,
            inbox: inbox.into(),
            steps,
        };
        self.tasks.insert(row, entry);
    }
}

fn created(actor: Option<Name>, at: Time) -> TaskEvent {
    TaskEvent {
        seq: 0,
        at,
        kind: EventKind::Created,
        actor,
        attempt: 0,
        error: None,
    }
}
