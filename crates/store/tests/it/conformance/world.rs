//! A store, a clock and short words for what the suite does with them.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pensum_core::store::{
    Applied, Call, ClaimRequest, Claimed, Command, Finish, LeaseRef, Reaped, Rejected, Store, StoreError,
};
use pensum_core::task::{Dependency, NewTask, Spec, TaskRecord};
use pensum_core::{ErrorInfo, Json, Name, NodeId, Outcome, State, Status, TaskFilter, TaskId, Time};

pub(crate) const LEASE: Duration = Duration::from_secs(30);
pub(crate) const NODE: NodeId = NodeId(1);

pub(crate) type Make = fn() -> Pin<Box<dyn Future<Output = Arc<dyn Store>> + Send>>;

pub(crate) struct World {
    pub(crate) store: Arc<dyn Store>,
    make: Make,
    now: Mutex<Time>,
}

impl World {
    /// A world with a store that `make` gives.
    pub(crate) async fn with(make: Make) -> World {
        World {
            store: make().await,
            make,
            now: Mutex::new(Time::parse("2026-03-01T12:00:00Z").unwrap()),
        }
    }

    /// A world with another store of the same kind, at the same time.
    pub(crate) async fn another(&self) -> World {
        World {
            store: (self.make)().await,
            make: self.make,
            now: Mutex::new(self.now()),
        }
    }

    pub(crate) fn now(&self) -> Time {
        *self.now.lock().unwrap()
    }

    pub(crate) fn pass(&self, seconds: f64) {
        let mut now = self.now.lock().unwrap();
        *now = now.plus(Duration::from_secs_f64(seconds));
    }

    pub(crate) fn call(&self) -> Call {
        Call::new("tester", self.now())
    }

    pub(crate) fn call_in(&self, namespace: &str) -> Call {
        Call {
            namespace: Name::from(namespace),
            ..self.call()
        }
    }

    pub(crate) async fn add(&self, task: NewTask) -> TaskId {
        self.add_all(vec![task]).await[0]
    }

    pub(crate) async fn add_all(&self, tasks: Vec<NewTask>) -> Vec<TaskId> {
        self.try_add(tasks).await.unwrap()
    }

    pub(crate) async fn try_add(&self, tasks: Vec<NewTask>) -> Result<Vec<TaskId>, StoreError> {
        Ok(self
            .store
            .enqueue(&self.call(), tasks)
            .await?
            .into_iter()
            .map(|e| e.id)
            .collect())
    }

    pub(crate) fn request(&self, slots: usize) -> ClaimRequest {
        ClaimRequest::new(NODE, "tester-node", slots, LEASE)
    }

    pub(crate) async fn claim(&self, slots: usize) -> Vec<Claimed> {
        let claimed = self.store.claim(self.request(slots), self.now()).await.unwrap();
        for claimed in &claimed {
            // A claim that says that it is all of the task says what a look at it does.
            if let Some(record) = claimed.record() {
                let found = self.store.task(&claimed.namespace, record.id).await.unwrap();
                assert_eq!(format!("{:?}", Some(record)), format!("{found:?}"));
            }
        }
        claimed
    }

    /// Claims exactly one task.
    pub(crate) async fn claim_one(&self) -> Claimed {
        let mut claimed = self.claim(1).await;
        assert_eq!(claimed.len(), 1, "one task should be claimable");
        claimed.remove(0)
    }

    pub(crate) async fn claim_nothing(&self) {
        let ids: Vec<TaskId> = self.claim(10).await.iter().map(|c| c.lease.task).collect();
        assert!(ids.is_empty(), "nothing should be claimable, got {ids:?}");
    }

    pub(crate) async fn finish(&self, lease: LeaseRef, outcome: Outcome) -> Result<Applied, Rejected> {
        self.end(Finish::new(lease, outcome)).await
    }

    pub(crate) async fn end(&self, finish: Finish) -> Result<Applied, Rejected> {
        self.store.finish(vec![finish], self.now()).await.unwrap().remove(0)
    }

    pub(crate) async fn done(&self, claimed: &Claimed) -> Applied {
        self.finish(claimed.lease, Outcome::Done(json("1"))).await.unwrap()
    }

    pub(crate) async fn fail(&self, claimed: &Claimed) -> Applied {
        let error = ErrorInfo::new("boom", "it broke");
        self.finish(claimed.lease, Outcome::Fail(error)).await.unwrap()
    }

    pub(crate) async fn command(&self, id: TaskId, command: Command) -> Result<Applied, Rejected> {
        self.store
            .command(&self.call(), vec![id], command)
            .await
            .unwrap()
            .remove(0)
    }

    pub(crate) async fn cancel(&self, id: TaskId) -> Result<Applied, Rejected> {
        self.command(id, Command::Cancel { reason: None }).await
    }

    pub(crate) async fn reap(&self) -> Reaped {
        self.store.reap(self.now(), 1000).await.unwrap()
    }

    pub(crate) async fn get(&self, id: TaskId) -> TaskRecord {
        self.store
            .task("default", id)
            .await
            .unwrap()
            .expect("the task should exist")
    }

    pub(crate) async fn status(&self, id: TaskId) -> Status {
        Status::of(&self.get(id).await.lifecycle, self.now())
    }

    pub(crate) async fn state(&self, id: TaskId) -> State {
        self.get(id).await.lifecycle.state
    }

    pub(crate) async fn error_kind(&self, id: TaskId) -> Option<String> {
        self.get(id).await.error.map(|e| e.kind)
    }

    /// All ids that a filter selects, through all pages.
    pub(crate) async fn list(&self, filter: TaskFilter) -> Vec<TaskId> {
        let mut ids = Vec::new();
        let mut page = pensum_core::Page {
            limit: 7,
            before_row: None,
        };
        loop {
            let found = self
                .store
                .tasks("default", filter.clone(), page.clone(), self.now())
                .await
                .unwrap();
            assert!(found.items.len() <= 7);
            ids.extend(found.items.iter().map(|t| t.id));
            match found.next {
                None => return ids,
                Some(row) => page.before_row = Some(row),
            }
        }
    }

    pub(crate) async fn verify(&self) {
        match self.store.verify().await {
            Ok(verified) => assert_eq!(verified.violations, Vec::<String>::new()),
            Err(StoreError::Closed) => {}
            Err(other) => panic!("verify failed: {other}"),
        }
    }
}

pub(crate) fn json(text: &str) -> Json {
    Json::parse(text.to_owned()).unwrap()
}

/// A plain task of the handler `noop`.
pub(crate) fn task() -> NewTask {
    NewTask::new(Spec::new("noop", json("{}")))
}

/// A task changed by `with`.
pub(crate) fn task_with(with: impl FnOnce(&mut NewTask)) -> NewTask {
    let mut task = task();
    with(&mut task);
    task
}

/// A task that depends on others.
pub(crate) fn after(dependencies: &[Dependency]) -> NewTask {
    task_with(|t| t.depends_on = dependencies.iter().copied().collect())
}

pub(crate) fn ids(claimed: &[Claimed]) -> Vec<TaskId> {
    claimed.iter().map(|c| c.lease.task).collect()
}

pub(crate) fn retry() -> Outcome {
    Outcome::Retry {
        error: ErrorInfo::new("boom", "it broke"),
        after: None,
    }
}
