//! The callers of the workload: nodes that claim and finish, people who command, the upkeep.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pensum_core::outcome::Wait;
use pensum_core::query::PAGE_MAX;
use pensum_core::store::{Applied, Beat, Checkpoint, ClaimRequest, Claimed, Command, Finish, Retention, Store};
use pensum_core::task::{OnConflict, Unique};
use pensum_core::{ErrorInfo, Json, Name, NodeId, Outcome, Page, State, StoreError, TaskFilter, TaskId, TaskRecord};
use pensum_store::sqlite::SqliteStore;

use super::dice::Dice;
use super::ledger::{Effect, shelf};
use super::workload::{SHELF, WORK, World, call, start, task};

/// The size of the state that is saved again and again in the long session.
const STATE_BYTES: usize = 256 * 1024;
/// How often it is saved: 20 MB of log, of which the store folds 16 MB at once.
const SAVES: usize = 80;

impl World {
    pub(super) async fn work(self: Arc<World>, node: u64, mut dice: Dice) {
        loop {
            let request = ClaimRequest {
                queues: Some([Name::from(WORK)].into()),
                wait: Duration::from_millis(5),
                ..ClaimRequest::new(
                    NodeId(node),
                    format!("node {node}"),
                    1 + dice.roll(6) as usize,
                    Duration::from_secs(3600),
                )
            };
            let claimed = self.store.claim(request, self.notes.now()).await.unwrap();
            if claimed.is_empty() && self.busy.load(Ordering::Relaxed) == 0 {
                return;
            }
            for claimed in &claimed {
                match dice.roll(20) {
                    0 | 1 => self.save(claimed, Json::null()).await,
                    2 => self.renew(claimed).await,
                    3 => self.cancel(claimed.lease.task).await,
                    _ => {}
                }
            }
            for some in claimed.chunks(1 + dice.roll(4) as usize) {
                self.finish(some, &mut dice).await;
            }
        }
    }

    async fn save(&self, claimed: &Claimed, state: Json) {
        let id = claimed.lease.task;
        let number = self.notes.ask(&[id]);
        let checkpoint = Checkpoint {
            state: Some(state),
            step: Some((Name::from(number.to_string()), Json::null())),
            ..Checkpoint::new(claimed.lease)
        };
        let saved = self.store.checkpoint(checkpoint, self.notes.now()).await.unwrap();
        let stepped = if saved.is_ok() { vec![id] } else { Vec::new() };
        let effect = Effect {
            stepped,
            ..Effect::default()
        };
        self.notes.answer(number, &effect);
    }

    async fn renew(&self, claimed: &Claimed) {
        let beat = Beat {
            lease: claimed.lease,
            progress: None,
            logs: Vec::new(),
        };
        let (lease, now) = (Duration::from_secs(3600), self.notes.now());
        self.store.renew(vec![beat], lease, now).await.unwrap();
    }

    async fn cancel(&self, id: TaskId) {
        let number = self.notes.ask(&[id]);
        let call = call(self.notes.now());
        let cancel = Command::Cancel { reason: None };
        let mut answers = self.store.command(&call, vec![id], cancel).await.unwrap();
        let mut effect = Effect::default();
        if let Ok(applied) = answers.remove(0) {
            effect.stopping.push(id);
            effect.ended = applied.ended;
        }
        self.notes.answer(number, &effect);
    }

    async fn finish(&self, claimed: &[Claimed], dice: &mut Dice) {
        let ids: Vec<TaskId> = claimed.iter().map(|claimed| claimed.lease.task).collect();
        let number = self.notes.ask(&ids);
        let result = Json::parse(format!(r#"{{"verb":{number}}}"#)).unwrap();
        let finishes = claimed.iter().map(|claimed| {
            let error = ErrorInfo::new("boom", "it broke");
            let after = Duration::from_millis(5);
            let outcome = match dice.roll(12) {
                0 | 1 => Outcome::Retry {
                    error,
                    after: Some(after),
                },
                2 => Outcome::Fail(error),
                3 => Outcome::Again {
                    after,
                    checkpoint: Some(result.clone()),
                },
                4 => Outcome::Wait {
                    on: Wait::Signal {
                        name: Name::from("go"),
                        until: None,
                    },
                    checkpoint: None,
                },
                5 => Outcome::Released,
                _ => Outcome::Done(result.clone()),
            };
            let mut finish = Finish::new(claimed.lease, outcome);
            if dice.chance(5) {
                finish.spawn = (0..3).map(|item| task(number, item, WORK)).collect();
            }
            finish
        });
        let finishes: Vec<Finish> = finishes.collect();
        let waits: Vec<bool> = finishes
            .iter()
            .map(|f| matches!(f.outcome, Outcome::Wait { .. }))
            .collect();
        let fails: Vec<bool> = finishes
            .iter()
            .map(|f| matches!(f.outcome, Outcome::Retry { .. }))
            .collect();
        let answers = self.store.finish(finishes, self.notes.now()).await.unwrap();
        let mut effect = Effect::default();
        for (index, answer) in answers.into_iter().enumerate() {
            let applied: Applied = answer.unwrap();
            if waits[index] && applied.state == Some(State::Waiting) {
                effect.waiting.push(ids[index]);
            }
            if fails[index] && applied.state == Some(State::Queued) {
                effect.retried.push(ids[index]);
            }
            effect.made.extend(applied.spawned);
            effect.ended.extend(applied.ended);
        }
        self.notes.answer(number, &effect);
    }

    /// One task saves so much that the store has to fold its log.
    pub(super) async fn save_much(&self) {
        let number = self.notes.ask(&[]);
        let made = self
            .store
            .enqueue(&call(self.notes.now()), vec![task(number, 0, "long")])
            .await;
        let effect = Effect {
            made: made.unwrap().into_iter().map(|made| made.id).collect(),
            ..Effect::default()
        };
        self.notes.answer(number, &effect);
        let request = ClaimRequest {
            queues: Some([Name::from("long")].into()),
            wait: Duration::from_secs(5),
            ..ClaimRequest::new(NodeId(99), "node 99", 1, Duration::from_secs(3600))
        };
        let claimed = self.store.claim(request, self.notes.now()).await.unwrap();
        let state = Json::parse(format!("\"{}\"", "x".repeat(STATE_BYTES))).unwrap();
        for _ in 0..SAVES {
            self.save(&claimed[0], state.clone()).await;
        }
    }

    /// One person and some tasks that nobody runs: what is commanded of them comes one after the other.
    pub(super) async fn keep_shelf(self: Arc<World>, mut dice: Dice) {
        let number = self.notes.ask(&[]);
        let batch = (0..6).map(|item| {
            let mut task = task(number, item, SHELF);
            task.unique = Some(Box::new(Unique {
                key: Name::from(format!("shelf {number} {item}")),
                ttl: None,
                on_conflict: OnConflict::Reject,
            }));
            task
        });
        let made = self
            .store
            .enqueue(&call(self.notes.now()), batch.collect())
            .await
            .unwrap();
        let ids: Vec<TaskId> = made.into_iter().map(|made| made.id).collect();
        let mut effect = Effect {
            made: ids.clone(),
            ..Effect::default()
        };
        for id in &ids {
            effect.shelf.push((*id, self.on_shelf(*id).await));
        }
        self.notes.answer(number, &effect);
        for _ in 0..30 {
            let id = dice.pick(&ids);
            let command = match dice.roll(20) {
                0..5 => Command::Pause,
                5..10 => Command::Resume,
                10..13 => Command::Cancel { reason: None },
                13..17 => Command::Retry,
                17 => Command::Delete,
                _ => Command::Signal {
                    name: Name::from("hello"),
                    payload: Json::null(),
                },
            };
            let number = self.notes.ask(&[id]);
            // Most commands come at the wrong time, and are refused.
            let answers = self.store.command(&call(self.notes.now()), vec![id], command).await;
            let _ = answers.unwrap();
            let how = self.on_shelf(id).await;
            let effect = Effect {
                gone: if how == shelf(None, 0) { vec![id] } else { Vec::new() },
                shelf: vec![(id, how)],
                ..Effect::default()
            };
            self.notes.answer(number, &effect);
        }
    }

    async fn on_shelf(&self, id: TaskId) -> String {
        let record = self.store.task("default", id).await.unwrap();
        let signals = self.store.inbox(id).await.unwrap().len();
        shelf(record.as_ref(), signals)
    }

    /// Removes some of what has ended, while nobody else does anything.
    pub(super) async fn prune(&self) {
        let before = all(&self.store).await.unwrap();
        let number = self.notes.ask(&[]);
        let retention = Retention {
            completed: Duration::ZERO,
            failed: Duration::ZERO,
        };
        self.store.prune(retention, self.notes.now(), 100).await.unwrap();
        let after = all(&self.store).await.unwrap();
        let gone = before
            .iter()
            .map(|task| task.id)
            .filter(|id| after.iter().all(|task| task.id != *id));
        let effect = Effect {
            gone: gone.collect(),
            ..Effect::default()
        };
        assert_eq!(effect.gone.len(), 100);
        self.notes.answer(number, &effect);
    }
}

/// All tasks of a store.
pub(super) async fn all(store: &SqliteStore) -> Result<Vec<TaskRecord>, StoreError> {
    let (mut found, mut page) = (Vec::new(), Page::default());
    page.limit = PAGE_MAX;
    loop {
        let got = store
            .tasks("default", TaskFilter::default(), page.clone(), start())
            .await?;
        found.extend(got.items);
        match got.next {
            Some(next) => page.before_row = Some(next),
            None => return Ok(found),
        }
    }
}
