//! What the store did with queues that limit what they take, and with tasks that are not durable, for the record.

use std::collections::BTreeMap;

use pensum_core::capacity::{DROPPED, Limit};
use pensum_core::query::PAGE_MAX;
use pensum_core::queue::QueueRecord;
use pensum_core::store::{Enqueued, NodeBeat, Rejected, StoreError};
use pensum_core::task::OnLimit;
use pensum_core::{Name, NewTask, NodeId, Page, State, Status, TaskFilter, TaskId, TaskRecord, Time};

use super::Far;
use crate::history::{PROCESS_ENDED, Queued, Standing, What};

/// What an item of a submission asks for.
pub(super) struct Item {
    queue: Name,
    rejects: bool,
    accepted_by: Option<NodeId>,
}

impl Item {
    pub(super) fn of(task: &NewTask) -> Item {
        Item {
            queue: task.spec.queue.clone(),
            rejects: task.spec.on_limit() == OnLimit::Reject,
            accepted_by: task.accepted_by,
        }
    }
}

/// What there was before a submission.
pub(super) struct Before {
    items: Vec<Item>,
    queues: Vec<QueueRecord>,
    unfinished: BTreeMap<TaskId, TaskRecord>,
}

fn standing(record: &TaskRecord, now: Time) -> Standing {
    let life = &record.lifecycle;
    let waits_for_nothing = life.state == State::Queued && life.waiting_for.is_none() && life.paused_at.is_none();
    Standing {
        task: record.id,
        waits: Status::of(life, now) != Status::Running,
        runs: life.lease.is_some(),
        due: waits_for_nothing.then_some(life.run_at),
        since: life.ready_at.unwrap_or(life.run_at),
        fresh: !life.has_started(),
    }
}

const fn name_of(limit: &Limit) -> &'static str {
    match limit {
        Limit::Concurrent { .. } => "width",
        Limit::Rate { .. } => "rate",
        Limit::Depth { .. } => "depth",
        Limit::Age { .. } => "age",
    }
}

impl Far {
    /// Whether any of this is told.
    pub(super) fn watches_queues(&self) -> bool {
        self.books.lock().limits
    }

    /// What there is before a submission, where that is told.
    pub(super) async fn before(&self, tasks: &[NewTask], now: Time) -> Result<Option<Before>, StoreError> {
        if !self.watches_queues() {
            return Ok(None);
        }
        Ok(Some(Before {
            items: tasks.iter().map(Item::of).collect(),
            queues: self.inner.queues("default").await?,
            unfinished: self.unfinished(now).await?,
        }))
    }

    async fn unfinished(&self, now: Time) -> Result<BTreeMap<TaskId, TaskRecord>, StoreError> {
        let filter = TaskFilter {
            status: Status::ALL
                .into_iter()
                .filter(|status| !matches!(status, Status::Completed | Status::Failed | Status::Cancelled))
                .collect(),
            ..TaskFilter::default()
        };
        let mut page = Page {
            limit: PAGE_MAX,
            before_row: None,
        };
        let mut all = BTreeMap::new();
        loop {
            let found = self.inner.tasks("default", filter.clone(), page.clone(), now).await?;
            all.extend(found.items.into_iter().map(|record| (record.id, record)));
            match found.next {
                Some(next) => page.before_row = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// Tells what became of a submission, and of others for its sake.
    pub(super) async fn tell_intake(
        &self,
        before: Before,
        answer: &Result<Vec<Enqueued>, StoreError>,
        now: Time,
    ) -> Result<(), StoreError> {
        let refused = match answer {
            Ok(_) => None,
            Err(StoreError::Rejected(Rejected::QueueFull { full, .. })) => Some((&full.queue, name_of(&full.limit))),
            Err(_) => return Ok(()),
        };
        let after = self.unfinished(now).await?;
        let created: Vec<(TaskId, &Item)> = match answer {
            Ok(enqueued) => {
                let items = enqueued.iter().zip(&before.items);
                items
                    .filter(|(task, _)| task.created)
                    .map(|(task, item)| (task.id, item))
                    .collect()
            }
            Err(_) => Vec::new(),
        };
        // What has come and is not there any more, and what was there and has gone.
        let come = created.iter().map(|(task, _)| *task);
        let gone: Vec<TaskId> = come
            .chain(before.unfinished.keys().copied())
            .filter(|task| !after.contains_key(task))
            .collect();
        let gone = self.ended(gone).await?;
        let added = after
            .keys()
            .filter(|task| !before.unfinished.contains_key(task))
            .count();
        for queue in &before.queues {
            let here = |item: &&Item| item.queue == queue.name;
            let coming: Vec<&Item> = match &refused {
                Some((full, _)) if **full == queue.name => before.items.iter().filter(here).collect(),
                Some(_) => continue,
                None => created.iter().map(|(_, item)| *item).filter(here).collect(),
            };
            if coming.is_empty() {
                continue;
            }
            let was_there = before.unfinished.values().filter(|task| task.spec.queue == queue.name);
            let dropped = gone
                .iter()
                .filter(|task| task.spec.queue == queue.name && kind_of(task) == DROPPED);
            self.add(What::Queued(Queued::Judged {
                queue: queue.name.to_string(),
                settings: Box::new(queue.settings.clone()),
                now,
                before: was_there.map(|task| standing(task, now)).collect(),
                new: coming.len(),
                rejecting: coming.iter().filter(|item| item.rejects).count(),
                dropped: dropped.map(|task| task.id).collect(),
                refused: refused.as_ref().map(|(_, limit)| *limit),
                added,
            }));
        }
        self.accepted(
            created
                .iter()
                .filter_map(|(task, item)| Some((item.accepted_by?, *task))),
        );
        if !gone.is_empty() {
            self.add(What::Ended(
                gone.iter().map(|task| (task.id, task.lifecycle.state)).collect(),
            ));
            self.why(&gone, now);
        }
        Ok(())
    }

    async fn ended(&self, tasks: Vec<TaskId>) -> Result<Vec<TaskRecord>, StoreError> {
        let mut ended = Vec::with_capacity(tasks.len());
        for task in tasks {
            ended.extend(self.inner.task("default", task).await?);
        }
        Ok(ended)
    }

    /// Tells who answers for tasks that are not durable.
    fn accepted(&self, tasks: impl Iterator<Item = (NodeId, TaskId)>) {
        let mut by_process: BTreeMap<NodeId, Vec<TaskId>> = BTreeMap::new();
        for (process, task) in tasks {
            by_process.entry(process).or_default().push(task);
        }
        for (process, tasks) in by_process {
            self.add(What::Queued(Queued::Accepted { process, tasks }));
        }
    }

    /// Tells of those that were cancelled for what befell their queue, or their process.
    fn why(&self, ended: &[TaskRecord], now: Time) {
        for task in ended {
            let kind = kind_of(task);
            if matches!(kind, DROPPED | PROCESS_ENDED) {
                self.add(What::Queued(Queued::Cancelled {
                    task: task.id,
                    kind: kind.to_owned(),
                    started: task.lifecycle.has_started(),
                    queue: task.spec.queue.to_string(),
                    created: task.created_at,
                    now,
                }));
            }
        }
    }

    /// Tells what upkeep has ended, and that nothing is overdue after it.
    pub(super) async fn swept(&self, ended: &[(TaskId, State)], now: Time) -> Result<(), StoreError> {
        if !self.watches_queues() {
            return Ok(());
        }
        let ended = self.ended(ended.iter().map(|(task, _)| *task).collect()).await?;
        self.why(&ended, now);
        self.add(What::Queued(Queued::Swept { now }));
        Ok(())
    }

    /// Tells who answers for a task that was put back.
    pub(super) async fn put_back(&self, task: TaskId) -> Result<(), StoreError> {
        if !self.watches_queues() {
            return Ok(());
        }
        let record = self.inner.task("default", task).await?;
        let process = record.and_then(|record| record.lifecycle.accepted_by);
        self.accepted(process.into_iter().map(|process| (process, task)));
        Ok(())
    }

    pub(super) fn beats(&self, beat: &NodeBeat, now: Time) {
        if self.watches_queues() {
            self.add(What::Queued(Queued::Beats {
                node: self.node,
                process: beat.node,
                now,
                ttl: beat.ttl,
            }));
        }
    }

    pub(super) fn left(&self, process: NodeId) {
        if self.watches_queues() {
            let node = self.node;
            self.add(What::Queued(Queued::Left { node, process }));
        }
    }
}

fn kind_of(task: &TaskRecord) -> &str {
    task.error.as_ref().map_or("", |error| error.kind.as_str())
}
