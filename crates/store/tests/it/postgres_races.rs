//! Two transactions that meet, each pair in the one order that does harm: a third one holds a row until both stand where
//! they should.

use std::sync::Arc;
use std::time::Duration;

use pensum_core::outcome::Wait;
use pensum_core::store::{
    Applied, Beat, Call, Checkpoint, ClaimRequest, Claimed, Command, Enqueued, Finish, LeaseRef, LogLine, LogStream,
    Rejected, Renewal, Retention, Store, StoreError,
};
use pensum_core::task::{Dependency, OnConflict, Unique};
use pensum_core::{ErrorInfo, Json, Name, NewTask, NodeId, Outcome, State, TaskId, Time};
use pensum_testing::postgres::{Database, Server, connect};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::conformance::world::{after, json, task, task_with};

/// How long anything may take before a test gives it up for stuck.
const PATIENCE: Duration = Duration::from_secs(15);

/// Several nodes on one database, and a transaction that gets in their way.
///
/// PostgreSQL looks for deadlocks a minute late here: whoever comes to depend on that is stuck, which a test sees.
struct Stage {
    _database: Database,
    stores: Vec<Arc<dyn Store>>,
    rival: Client,
    /// Sees what goes on; a transaction sees it only as it first was.
    watcher: Client,
    now: Time,
}

async fn database() -> Database {
    Database::from_template("races", async |url: String| {
        let store = pensum_store::connect(&url, "tests").await.unwrap();
        store.close().await.unwrap();
    })
    .await
}

impl Stage {
    async fn new() -> Stage {
        Stage::with("").await
    }

    /// Both nodes with these parameters in their URLs.
    async fn with(parameters: &str) -> Stage {
        let database = database().await;
        let rival = connect(&database.url()).await;
        let watcher = connect(&database.url()).await;
        let patient = format!("ALTER DATABASE {} SET deadlock_timeout = '60s'", database.name());
        rival.batch_execute(&patient).await.unwrap();
        let url = format!("{}?{parameters}", database.url());
        let mut stores = Vec::new();
        for node in ["one", "two"] {
            stores.push(pensum_store::connect(&url, node).await.unwrap());
        }
        Stage {
            _database: database,
            stores,
            rival,
            watcher,
            now: Time::parse("2026-03-01T12:00:00Z").unwrap(),
        }
    }

    fn store(&self) -> &Arc<dyn Store> {
        &self.stores[0]
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
    }

    fn call(&self) -> Call {
        Call::new("tester", self.now)
    }

    async fn add(&self, task: NewTask) -> TaskId {
        self.add_all(vec![task]).await[0].id
    }

    async fn add_all(&self, tasks: Vec<NewTask>) -> Vec<Enqueued> {
        in_time(self.store().enqueue(&self.call(), tasks)).await.unwrap()
    }

    fn request(&self, slots: usize) -> ClaimRequest {
        ClaimRequest::new(NodeId(1), "node", slots, Duration::from_secs(30))
    }

    async fn claim(&self, slots: usize) -> Vec<Claimed> {
        in_time(self.store().claim(self.request(slots), self.now))
            .await
            .unwrap()
    }

    async fn claim_one(&self) -> LeaseRef {
        let claimed = self.claim(1).await;
        assert_eq!(claimed.len(), 1, "one task should be claimable");
        claimed[0].lease
    }

    async fn end(&self, finish: Finish) -> Result<Applied, Rejected> {
        in_time(self.store().finish(vec![finish], self.now))
            .await
            .unwrap()
            .remove(0)
    }

    async fn command(&self, tasks: &[TaskId], command: Command) -> Vec<Result<Applied, Rejected>> {
        in_time(self.store().command(&self.call(), tasks.to_vec(), command))
            .await
            .unwrap()
    }

    async fn state(&self, id: TaskId) -> State {
        let found = self.store().task("default", id).await.unwrap();
        found.unwrap().lifecycle.state
    }

    /// Locks the row of an unfinished task until [`Stage::release`].
    async fn hold(&self, id: TaskId) {
        self.get_in_the_way(&format!(
            "SELECT row FROM pensum.live WHERE row = {} FOR UPDATE",
            id.row()
        ))
        .await;
    }

    /// Keeps others from writing the row of a task that has ended as one of an unfinished task.
    async fn hold_place(&self, id: TaskId) {
        self.get_in_the_way(&format!(
            "INSERT INTO pensum.live(row, class, rank, deadline, run_at, gate, flags) VALUES ({}, 1, 0, 0, 0, 3, 0)",
            id.row()
        ))
        .await;
    }

    async fn get_in_the_way(&self, statement: &str) {
        self.rival.batch_execute(&format!("BEGIN; {statement}")).await.unwrap();
    }

    /// Undoes what was in the way.
    async fn release(&self) {
        self.rival.batch_execute("ROLLBACK").await.unwrap();
    }

    /// Returns once so many transactions of this database wait for others.
    async fn waiting(&self, transactions: i64) {
        let enough = async || self.waiters().await >= transactions;
        until("transactions wait for others", enough).await;
    }

    async fn waiters(&self) -> i64 {
        let sql = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
        self.watcher.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// Returns once the task has ended, or so many transactions wait for others.
    async fn done_or_waiting<T>(&self, work: &JoinHandle<T>, transactions: i64) {
        let settled = async || work.is_finished() || self.waiters().await >= transactions;
        until("something is done, or waits", settled).await;
    }

    async fn verify(&self) {
        let verified = self.store().verify().await.unwrap();
        assert_eq!(verified.violations, Vec::<String>::new());
    }

    /// A verb on a node, at the side.
    fn beside<T, F>(&self, node: usize, verb: impl FnOnce(Arc<dyn Store>) -> F) -> JoinHandle<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        tokio::spawn(verb(Arc::clone(&self.stores[node])))
    }

    fn enqueue_beside(&self, node: usize, tasks: Vec<NewTask>) -> JoinHandle<Result<Vec<Enqueued>, StoreError>> {
        let call = self.call();
        self.beside(node, |store| async move { store.enqueue(&call, tasks).await })
    }

    fn command_beside(&self, node: usize, id: TaskId, command: Command) -> JoinHandle<Result<Applied, Rejected>> {
        let call = self.call();
        self.beside(node, move |store| async move {
            store.command(&call, vec![id], command).await.unwrap().remove(0)
        })
    }

    fn end_beside(&self, node: usize, finish: Finish) -> JoinHandle<Result<Applied, Rejected>> {
        let now = self.now;
        self.beside(node, move |store| async move {
            store.finish(vec![finish], now).await.unwrap().remove(0)
        })
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("stuck")
}

/// What came of a verb at the side.
async fn outcome<T>(work: JoinHandle<T>) -> T {
    in_time(work).await.unwrap()
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain until {what}");
}

fn done() -> Outcome {
    Outcome::Done(Json::null())
}

fn fail() -> Outcome {
    Outcome::Fail(ErrorInfo::new("boom", "it broke"))
}

fn keyed(key: &str) -> NewTask {
    task_with(|t| t.spec.key = Some(Name::from(key)))
}

fn unique(key: &str, ttl: Option<Duration>, on_conflict: OnConflict) -> NewTask {
    let key = Name::from(key);
    task_with(|t| {
        t.unique = Some(Box::new(Unique { key, ttl, on_conflict }));
    })
}

fn signal() -> Command {
    Command::Signal {
        name: Name::from("go"),
        payload: Json::null(),
    }
}

fn wait_for_signal() -> Outcome {
    Outcome::Wait {
        on: Wait::Signal {
            name: Name::from("go"),
            until: None,
        },
        checkpoint: None,
    }
}

fn wait_for_children() -> Outcome {
    Outcome::Wait {
        on: Wait::Children,
        checkpoint: None,
    }
}

fn beat(lease: LeaseRef) -> Beat {
    Beat {
        lease,
        progress: None,
        logs: Vec::new(),
    }
}

// --- Leases

#[tokio::test]
async fn a_renewal_that_meets_a_change_of_its_task_holds() {
    let stage = Stage::new().await;
    stage.add(task()).await;
    let lease = stage.claim_one().await;
    stage.hold(lease.task).await;
    let cancel = stage.command_beside(1, lease.task, Command::Cancel { reason: None });
    stage.waiting(1).await;
    let now = stage.now;
    let renew = stage.beside(0, move |store| async move {
        store.renew(vec![beat(lease)], Duration::from_secs(60), now).await
    });
    stage.waiting(2).await;
    stage.release().await;
    outcome(cancel).await.unwrap();
    let expires_at = stage.now.plus(Duration::from_secs(60));
    let held = Renewal::Held {
        expires_at,
        cancel: true,
        pause: false,
    };
    assert_eq!(outcome(renew).await.unwrap(), vec![held]);
    assert_eq!(
        stage.end(Finish::new(lease, done())).await.unwrap().state,
        Some(State::Completed)
    );
    stage.verify().await;
}

#[tokio::test]
async fn of_an_end_and_the_reaper_exactly_one_has_the_task() {
    for reaper_first in [false, true] {
        let mut stage = Stage::new().await;
        let id = stage.add(task()).await;
        let lease = stage.claim_one().await;
        stage.pass(Duration::from_secs(31));
        stage.hold(id).await;
        let now = stage.now;
        let reap = || stage.beside(1, move |store| async move { store.reap(now, 100).await.unwrap() });
        let end = || stage.end_beside(0, Finish::new(lease, done()));
        let (reap, end) = if reaper_first {
            let reap = reap();
            stage.waiting(1).await;
            (reap, end())
        } else {
            let end = end();
            stage.waiting(1).await;
            (reap(), end)
        };
        stage.waiting(2).await;
        stage.release().await;
        let (reaped, ended) = (outcome(reap).await, outcome(end).await);
        assert_eq!(reaped.leases_expired, u64::from(reaper_first));
        assert_eq!(ended.is_ok(), !reaper_first, "{ended:?}");
        let state = if reaper_first { State::Queued } else { State::Completed };
        assert_eq!(stage.state(id).await, state);
        stage.verify().await;
    }
}

#[tokio::test]
async fn of_a_renewal_and_the_reaper_exactly_one_has_the_task() {
    for reaper_first in [false, true] {
        let mut stage = Stage::new().await;
        let id = stage.add(task()).await;
        let lease = stage.claim_one().await;
        stage.pass(Duration::from_secs(31));
        stage.hold(id).await;
        let now = stage.now;
        let reap = || stage.beside(1, move |store| async move { store.reap(now, 100).await.unwrap() });
        let renew = || {
            stage.beside(0, move |store| async move {
                let beats = vec![beat(lease)];
                store
                    .renew(beats, Duration::from_secs(30), now)
                    .await
                    .unwrap()
                    .remove(0)
            })
        };
        let (reap, renew) = if reaper_first {
            let reap = reap();
            stage.waiting(1).await;
            (reap, renew())
        } else {
            let renew = renew();
            stage.waiting(1).await;
            (reap(), renew)
        };
        stage.waiting(2).await;
        stage.release().await;
        let (reaped, renewed) = (outcome(reap).await, outcome(renew).await);
        assert_eq!(reaped.leases_expired, u64::from(reaper_first));
        assert_eq!(renewed == Renewal::Lost, reaper_first, "{renewed:?}");
        stage.verify().await;
    }
}

#[tokio::test]
async fn what_a_checkpoint_left_goes_with_the_end_even_if_nobody_heard_that_it_was_taken() {
    let stage = Stage::new().await;
    let id = stage.add(task()).await;
    let lease = stage.claim_one().await;
    let row = id.row();
    stage
        .get_in_the_way(&format!(
            "INSERT INTO pensum.checkpoint(row, state) VALUES ({row}, '1')"
        ))
        .await;
    let now = stage.now;
    let checkpoint = stage.beside(0, move |store| async move {
        let checkpoint = Checkpoint {
            state: Some(json("2")),
            ..Checkpoint::new(lease)
        };
        store.checkpoint(checkpoint, now).await
    });
    stage.waiting(1).await;
    checkpoint.abort();
    assert!(checkpoint.await.is_err());
    stage.release().await;
    let sql = "SELECT 1 FROM pensum.checkpoint WHERE row = $1";
    let saved = async || !stage.watcher.query(sql, &[&row]).await.unwrap().is_empty();
    until("the checkpoint is in the store", saved).await;
    stage.end(Finish::new(lease, done())).await.unwrap();
    assert!(!saved().await);
    stage.verify().await;
}

// --- Classes

#[tokio::test]
async fn a_class_whose_first_task_was_long_in_coming_is_claimed_too() {
    let stage = Stage::new().await;
    let queued = |queue: &str| {
        let queue = Name::from(queue);
        task_with(|t| t.spec.queue = queue)
    };
    stage
        .get_in_the_way(
            "INSERT INTO pensum.class(namespace, queue, handler, requires) VALUES ('default', 'slow', 'noop', '[]')",
        )
        .await;
    let slow = stage.enqueue_beside(1, vec![queued("slow")]);
    stage.waiting(1).await;
    let quick = stage.enqueue_beside(0, vec![queued("quick")]);
    stage.done_or_waiting(&quick, 2).await;
    // The node learns of one of both.
    let mut claimed = stage.claim(10).await.len();
    stage.release().await;
    outcome(slow).await.unwrap();
    outcome(quick).await.unwrap();
    claimed += stage.claim(10).await.len();
    assert_eq!(claimed, 2);
}

// --- Dependencies

#[tokio::test]
async fn a_dependant_that_comes_while_its_prerequisite_ends_is_released() {
    for end_first in [false, true] {
        let stage = Stage::new().await;
        let prerequisite = stage.add(task()).await;
        let lease = stage.claim_one().await;
        stage.hold(prerequisite).await;
        let add = || stage.enqueue_beside(1, vec![after(&[Dependency::Task(prerequisite)])]);
        let end = || stage.end_beside(0, Finish::new(lease, done()));
        let (add, end) = if end_first {
            let end = end();
            stage.waiting(1).await;
            (add(), end)
        } else {
            let add = add();
            stage.waiting(1).await;
            (add, end())
        };
        stage.waiting(2).await;
        stage.release().await;
        outcome(end).await.unwrap();
        let dependant = outcome(add).await.unwrap()[0].id;
        assert_eq!(stage.claim_one().await.task, dependant);
        stage.verify().await;
    }
}

#[tokio::test]
async fn a_dependant_that_comes_while_a_cascade_goes_down_to_its_prerequisite_ends_with_it() {
    let stage = Stage::new().await;
    let first = stage.add(task()).await;
    let second = stage.add(after(&[Dependency::Task(first)])).await;
    let third = stage.add(after(&[Dependency::Task(second)])).await;
    let lease = stage.claim_one().await;
    stage.hold(third).await;
    let add = stage.enqueue_beside(1, vec![after(&[Dependency::Task(third)])]);
    stage.waiting(1).await;
    let end = stage.end_beside(0, Finish::new(lease, fail()));
    stage.waiting(2).await;
    stage.release().await;
    let fourth = outcome(add).await.unwrap()[0].id;
    let ended = outcome(end).await.unwrap().ended;
    for id in [second, third, fourth] {
        assert_eq!(stage.state(id).await, State::Cancelled);
    }
    assert_eq!(ended.len(), 4);
    stage.verify().await;
}

#[tokio::test]
async fn a_dependant_that_comes_while_its_prerequisite_is_retried_waits_for_it() {
    for retry_first in [false, true] {
        let stage = Stage::new().await;
        let prerequisite = stage.add(task()).await;
        let lease = stage.claim_one().await;
        stage.end(Finish::new(lease, fail())).await.unwrap();
        let row = prerequisite.row();
        stage
            .get_in_the_way(&format!("SELECT row FROM pensum.outcome WHERE row = {row} FOR UPDATE"))
            .await;
        let mut dependant = after(&[Dependency::Task(prerequisite)]);
        dependant.spec.details_mut().on_dependency_failure = pensum_core::task::OnDependencyFailure::Ignore;
        let add = || stage.enqueue_beside(1, vec![dependant]);
        let retry = || stage.command_beside(0, prerequisite, Command::Retry);
        let (add, retry) = if retry_first {
            let retry = retry();
            stage.waiting(1).await;
            (add(), retry)
        } else {
            let add = add();
            stage.waiting(1).await;
            (add, retry())
        };
        stage.waiting(2).await;
        stage.release().await;
        outcome(retry).await.unwrap();
        let dependant = outcome(add).await.unwrap()[0].id;
        let mut claimed: Vec<TaskId> = stage.claim(10).await.iter().map(|c| c.lease.task).collect();
        claimed.sort_by_key(|id| id.row());
        if retry_first {
            assert_eq!(claimed, vec![prerequisite]);
        } else {
            // It was released by the first end, before the second life began.
            assert_eq!(claimed, vec![prerequisite, dependant]);
        }
        stage.verify().await;
    }
}

#[tokio::test]
async fn a_dependant_that_comes_while_its_prerequisite_is_deleted_is_refused_or_keeps_it() {
    for delete_first in [false, true] {
        let stage = Stage::new().await;
        let prerequisite = stage.add(task()).await;
        stage.hold(prerequisite).await;
        let add = || stage.enqueue_beside(1, vec![after(&[Dependency::Task(prerequisite)])]);
        let delete = || stage.command_beside(0, prerequisite, Command::Delete);
        let (add, delete) = if delete_first {
            let delete = delete();
            stage.waiting(1).await;
            (add(), delete)
        } else {
            let add = add();
            stage.waiting(1).await;
            (add, delete())
        };
        stage.waiting(2).await;
        stage.release().await;
        let (deleted, added) = (outcome(delete).await, outcome(add).await);
        assert_eq!(
            (deleted.is_ok(), added.is_ok()),
            (delete_first, !delete_first),
            "{deleted:?} {added:?}"
        );
        stage.verify().await;
    }
}

#[tokio::test]
async fn a_dependant_that_comes_while_its_prerequisite_is_pruned_is_refused_or_keeps_it() {
    let mut stage = Stage::new().await;
    let prerequisite = stage.add(task()).await;
    let lease = stage.claim_one().await;
    stage.end(Finish::new(lease, done())).await.unwrap();
    stage.pass(Duration::from_secs(3600));
    let retention = Retention {
        completed: Duration::from_secs(60),
        failed: Duration::from_secs(60),
    };
    // What keeps the enqueue at its end keeps its locks, too: the prune passes over what it wants.
    stage.get_in_the_way("LOCK TABLE pensum.dependency IN SHARE MODE").await;
    let add = stage.enqueue_beside(1, vec![after(&[Dependency::Task(prerequisite)])]);
    stage.waiting(1).await;
    let now = stage.now;
    let prune = stage.beside(0, move |store| async move {
        store.prune(retention, now, 100).await.unwrap()
    });
    stage.done_or_waiting(&prune, 2).await;
    stage.release().await;
    assert_eq!(outcome(prune).await.removed, 0);
    let dependant = outcome(add).await.unwrap()[0].id;
    assert_eq!(stage.claim_one().await.task, dependant);
    stage.verify().await;
}

#[tokio::test]
async fn a_child_that_depends_on_the_task_that_spawns_it_comes_after_it() {
    let stage = Stage::new().await;
    stage.add_all(vec![task(), task()]).await;
    let leases: Vec<LeaseRef> = stage.claim(2).await.iter().map(|c| c.lease).collect();
    let spawning = |lease: LeaseRef, on: LeaseRef| Finish {
        spawn: vec![after(&[Dependency::Task(on.task)])],
        ..Finish::new(lease, done())
    };
    // The second one's dependant comes from the first, which ends before it in one transaction.
    let finishes = vec![spawning(leases[0], leases[1]), spawning(leases[1], leases[1])];
    let answers = stage.store().finish(finishes, stage.now).await.unwrap();
    let mut spawned: Vec<TaskId> = answers.into_iter().flat_map(|a| a.unwrap().spawned).collect();
    let mut claimed: Vec<TaskId> = stage.claim(10).await.iter().map(|c| c.lease.task).collect();
    spawned.sort();
    claimed.sort();
    assert_eq!(claimed, spawned);
    stage.verify().await;
}

// --- Parents and children

#[tokio::test]
async fn a_parent_that_is_retried_while_its_child_ends_counts_it_right() {
    let stage = Stage::new().await;
    let parent = stage.add(task()).await;
    let lease = stage.claim_one().await;
    let spawn = Checkpoint {
        spawn: vec![task()],
        ..Checkpoint::new(lease)
    };
    stage.store().checkpoint(spawn, stage.now).await.unwrap().unwrap();
    stage.end(Finish::new(lease, fail())).await.unwrap();
    let child = stage.claim_one().await;
    stage.hold_place(parent).await;
    let retry = stage.command_beside(1, parent, Command::Retry);
    stage.waiting(1).await;
    let end = stage.end_beside(0, Finish::new(child, done()));
    stage.done_or_waiting(&end, 2).await;
    stage.release().await;
    outcome(retry).await.unwrap();
    outcome(end).await.unwrap();
    stage.verify().await;
    let lease = stage.claim_one().await;
    let waited = stage.end(Finish::new(lease, wait_for_children())).await.unwrap();
    assert_eq!(waited.state, Some(State::Queued), "nothing is left to wait for");
    assert_eq!(stage.claim_one().await.task, parent);
}

#[tokio::test]
async fn a_parent_that_begins_to_wait_while_its_last_child_ends_goes_on() {
    for wait_first in [false, true] {
        let stage = Stage::new().await;
        let parent = stage.add(task()).await;
        let lease = stage.claim_one().await;
        let spawn = Checkpoint {
            spawn: vec![task()],
            ..Checkpoint::new(lease)
        };
        stage.store().checkpoint(spawn, stage.now).await.unwrap().unwrap();
        let child = stage.claim_one().await;
        stage.hold(parent).await;
        let wait = || stage.end_beside(0, Finish::new(lease, wait_for_children()));
        let end = || stage.end_beside(1, Finish::new(child, done()));
        let (wait, end) = if wait_first {
            let wait = wait();
            stage.waiting(1).await;
            (wait, end())
        } else {
            let end = end();
            stage.waiting(1).await;
            (wait(), end)
        };
        stage.waiting(2).await;
        stage.release().await;
        outcome(wait).await.unwrap();
        outcome(end).await.unwrap();
        assert_eq!(stage.claim_one().await.task, parent);
        stage.verify().await;
    }
}

#[tokio::test]
async fn a_signal_that_comes_while_its_task_begins_to_wait_is_heard() {
    for wait_first in [false, true] {
        let stage = Stage::new().await;
        let id = stage.add(task()).await;
        let lease = stage.claim_one().await;
        stage.hold(id).await;
        let wait = || stage.end_beside(0, Finish::new(lease, wait_for_signal()));
        let send = || stage.command_beside(1, id, signal());
        let (wait, send) = if wait_first {
            let wait = wait();
            stage.waiting(1).await;
            (wait, send())
        } else {
            let send = send();
            stage.waiting(1).await;
            (wait(), send)
        };
        stage.waiting(2).await;
        stage.release().await;
        outcome(wait).await.unwrap();
        outcome(send).await.unwrap();
        assert_eq!(stage.claim_one().await.task, id);
        stage.verify().await;
    }
}

#[tokio::test]
async fn a_parent_and_its_child_that_are_retried_by_one_command_count_right() {
    let stage = Stage::new().await;
    let parent = stage.add(task()).await;
    let lease = stage.claim_one().await;
    let spawn = Checkpoint {
        spawn: vec![task(), task()],
        ..Checkpoint::new(lease)
    };
    stage.store().checkpoint(spawn, stage.now).await.unwrap().unwrap();
    stage.end(Finish::new(lease, fail())).await.unwrap();
    let children = stage.claim(2).await;
    let child = children[0].lease;
    stage.end(Finish::new(child, fail())).await.unwrap();
    for retried in stage.command(&[child.task, parent], Command::Retry).await {
        retried.unwrap();
    }
    stage.verify().await;
}

// --- Unique keys

#[tokio::test]
async fn whoever_depends_on_the_ended_holder_of_a_unique_key_is_released() {
    let stage = Stage::new().await;
    let minute = Some(Duration::from_secs(60));
    let holder = stage.add(unique("u", minute, OnConflict::Keep)).await;
    let lease = stage.claim_one().await;
    stage.end(Finish::new(lease, done())).await.unwrap();
    let batch = vec![unique("u", minute, OnConflict::Keep), after(&[Dependency::Item(0)])];
    let made = stage.add_all(batch).await;
    assert_eq!((made[0].id, made[0].created), (holder, false));
    assert_eq!(stage.claim_one().await.task, made[1].id);
    stage.verify().await;
}

#[tokio::test]
async fn whoever_depends_on_the_holder_of_a_unique_key_while_that_goes_is_released() {
    for deleted in [false, true] {
        let stage = Stage::new().await;
        let holder = stage.add(unique("u", None, OnConflict::Keep)).await;
        let lease = if deleted { None } else { Some(stage.claim_one().await) };
        stage.hold(holder).await;
        let go = match lease {
            Some(lease) => stage.end_beside(0, Finish::new(lease, done())),
            None => stage.command_beside(0, holder, Command::Delete),
        };
        stage.waiting(1).await;
        let batch = vec![unique("u", None, OnConflict::Keep), after(&[Dependency::Item(0)])];
        let add = stage.enqueue_beside(1, batch);
        stage.waiting(2).await;
        stage.release().await;
        outcome(go).await.unwrap();
        let made = outcome(add).await.unwrap();
        assert!(made[0].created, "the key was free by then");
        let lease = stage.claim_one().await;
        assert_eq!(lease.task, made[0].id);
        stage.end(Finish::new(lease, done())).await.unwrap();
        assert_eq!(stage.claim_one().await.task, made[1].id);
        stage.verify().await;
    }
}

#[tokio::test]
async fn of_two_tasks_with_one_unique_key_one_command_retries_one() {
    let stage = Stage::new().await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(stage.add(unique("u", None, OnConflict::Keep)).await);
        let lease = stage.claim_one().await;
        stage.end(Finish::new(lease, fail())).await.unwrap();
    }
    let retried = stage.command(&ids, Command::Retry).await;
    assert!(retried[0].is_ok());
    let taken = Rejected::UniqueTakenByOther {
        task: ids[1],
        holder: ids[0],
    };
    assert_eq!(retried[1], Err(taken));
    stage.verify().await;
}

#[tokio::test]
async fn two_runs_that_end_together_spawn_one_child_of_a_unique_key() {
    let stage = Stage::new().await;
    stage.add_all(vec![task(), task()]).await;
    let finishes = stage.claim(2).await.into_iter().map(|claimed| Finish {
        spawn: vec![unique("u", None, OnConflict::Keep)],
        ..Finish::new(claimed.lease, done())
    });
    let answers = stage.store().finish(finishes.collect(), stage.now).await.unwrap();
    let spawned: Vec<TaskId> = answers.into_iter().flat_map(|a| a.unwrap().spawned).collect();
    assert_eq!(spawned.len(), 2);
    assert_eq!(spawned[0], spawned[1]);
    stage.verify().await;
}

#[tokio::test]
async fn of_two_that_want_a_unique_key_at_once_one_gets_it() {
    let stage = Stage::new().await;
    // Both stand at their ends, with all that they are to lock.
    stage.get_in_the_way("LOCK TABLE pensum.unique_key IN SHARE MODE").await;
    let one = stage.enqueue_beside(0, vec![unique("u", None, OnConflict::Keep)]);
    stage.waiting(1).await;
    let other = stage.enqueue_beside(1, vec![unique("u", None, OnConflict::Keep)]);
    stage.waiting(2).await;
    stage.release().await;
    let (one, other) = (outcome(one).await.unwrap()[0], outcome(other).await.unwrap()[0]);
    assert_eq!(one.id, other.id);
    assert!(one.created && !other.created);
    stage.verify().await;
}

// --- Connections

#[tokio::test]
async fn a_closed_store_leaves_no_transaction_behind() {
    let stage = Stage::new().await;
    let id = stage.add(task()).await;
    stage.hold(id).await;
    let pause = {
        let call = stage.call();
        stage.beside(0, move |store| async move {
            store.command(&call, vec![id], Command::Pause).await
        })
    };
    stage.waiting(1).await;
    stage.store().close().await.unwrap();
    stage.release().await;
    // It was on its way already: its answer is the truth.
    let answer = outcome(pause).await;
    let other = &stage.stores[1];
    let record = other.task("default", id).await.unwrap().unwrap();
    assert_eq!(answer.is_ok(), record.lifecycle.paused_at.is_some(), "{answer:?}");
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
               AND state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()";
    let none = async || stage.watcher.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0;
    until("no transaction is open", none).await;
}

#[tokio::test]
async fn verbs_that_are_given_up_leave_no_transaction_behind() {
    let stage = Stage::with("pool_size=2").await;
    let id = stage.add(task()).await;
    let lease = stage.claim_one().await;
    let lines = vec![LogLine {
        at: stage.now,
        attempt: 1,
        stream: LogStream::Log,
        message: "here".to_owned(),
    }];
    for turn in 0..6 {
        stage.hold(id).await;
        let (call, now, lines) = (stage.call(), stage.now, lines.clone());
        let verb = stage.beside(0, move |store| async move {
            match turn % 3 {
                0 => drop(store.command(&call, vec![id], signal()).await),
                1 => drop(store.checkpoint(Checkpoint::new(lease), now).await),
                _ => {
                    let logs = Beat {
                        logs: lines,
                        ..beat(lease)
                    };
                    drop(store.renew(vec![logs], Duration::from_secs(30), now).await);
                }
            }
        });
        stage.waiting(1).await;
        verb.abort();
        assert!(verb.await.is_err());
        stage.release().await;
    }
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
               AND (state LIKE 'idle in transaction%' OR wait_event_type = 'Lock') AND pid <> pg_backend_pid()";
    let none = async || stage.watcher.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0;
    until("no transaction is open", none).await;
    let finish = Finish {
        logs: lines,
        ..Finish::new(lease, done())
    };
    stage.end(finish).await.unwrap();
    stage.verify().await;
}
#[tokio::test]
async fn a_claim_passes_over_what_others_hold() {
    let mut stage = Stage::new().await;
    let soon = stage.now.plus(Duration::from_secs(1));
    let delayed = stage.add(task_with(|t| t.run_at = Some(soon))).await;
    let ready = stage.add(task()).await;
    stage.pass(Duration::from_secs(2));
    stage.hold(delayed).await;
    let started = tokio::time::Instant::now();
    assert_eq!(stage.claim_one().await.task, ready);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    stage.release().await;
    assert_eq!(stage.claim_one().await.task, delayed);
    stage.verify().await;
}

#[tokio::test]
async fn a_claim_that_is_given_up_while_its_answer_is_on_the_way_keeps_nothing() {
    let stage = Stage::new().await;
    let id = stage.add(task()).await;
    let mut claim = Box::pin(stage.store().claim(stage.request(1), stage.now));
    // Started, and not looked at again: the answer comes, and nobody takes it.
    assert!(futures_util::poll!(&mut claim).is_pending());
    let sql = "SELECT 1 FROM pensum.live WHERE gate = 6";
    let leased = async || !stage.watcher.query(sql, &[]).await.unwrap().is_empty();
    until("the claim is in the store", leased).await;
    // Whatever carries the answer has had its turns then.
    for _ in 0..100 {
        stage.watcher.query("SELECT 1", &[]).await.unwrap();
    }
    drop(claim);
    let back = async || !leased().await;
    until("the task is back", back).await;
    assert_eq!(stage.claim_one().await.task, id);
}

#[tokio::test]
async fn a_delayed_task_of_a_key_comes_due_while_others_are_at_work_on_the_key() {
    let mut stage = Stage::new().await;
    let soon = stage.now.plus(Duration::from_secs(1));
    let running = stage.add(keyed("k")).await;
    stage.claim_one().await;
    let delayed = task_with(|t| {
        t.spec.key = Some(Name::from("k"));
        t.run_at = Some(soon);
    });
    let delayed = stage.add(delayed).await;
    stage.pass(Duration::from_secs(2));
    stage.hold(running).await;
    // It has the key, and waits for the row.
    let send = stage.command_beside(0, running, signal());
    stage.waiting(1).await;
    let pause = stage.command_beside(0, delayed, Command::Pause);
    stage.waiting(2).await;
    let (request, now) = (stage.request(1), stage.now);
    let claim = stage.beside(1, move |store| async move { store.claim(request, now).await.unwrap() });
    stage.done_or_waiting(&claim, 3).await;
    stage.release().await;
    outcome(send).await.unwrap();
    outcome(pause).await.unwrap();
    assert_eq!(outcome(claim).await.len(), 0, "the key's task still runs");
    stage.verify().await;
}

#[tokio::test]
async fn a_small_pool_is_enough_for_many_callers() {
    let stage = Stage::with("pool_size=2").await;
    let mut callers = Vec::new();
    for number in 0..16 {
        let call = stage.call();
        callers.push(stage.beside(0, move |store| async move {
            for turn in 0..5 {
                let mut task = keyed(&format!("{number}"));
                // Each of these makes names that nobody knows yet.
                task.spec.queue = Name::from(format!("queue {number} {turn}"));
                let call = Call {
                    actor: Name::from(format!("actor {number} {turn}")),
                    ..call.clone()
                };
                store.enqueue(&call, vec![task]).await.unwrap();
            }
        }));
    }
    let started = tokio::time::Instant::now();
    for caller in callers {
        outcome(caller).await;
    }
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert_eq!(stage.claim(100).await.len(), 16);
    stage.verify().await;
}

#[test]
fn a_runtime_that_ends_with_tasks_on_the_way_leaves_the_store_to_others() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().build().unwrap()
    };
    let (first, second) = (runtime(), runtime());
    let stage = first.block_on(Stage::new());
    first.block_on(stage.get_in_the_way("LOCK TABLE pensum.task IN EXCLUSIVE MODE"));
    for _ in 0..4 {
        let (store, call) = (Arc::clone(stage.store()), stage.call());
        second.spawn(async move { store.enqueue(&call, vec![task()]).await });
        // One after the other, so that they do not travel together.
        std::thread::sleep(Duration::from_millis(50));
    }
    first.block_on(stage.waiting(2));
    // It sees no answer any more.
    let waiting = first.spawn({
        let (store, call) = (Arc::clone(stage.store()), stage.call());
        async move { store.enqueue(&call, vec![task()]).await }
    });
    second.shutdown_background();
    first.block_on(async {
        stage.release().await;
        // Either answer will do, but there must be one.
        let _ = outcome(waiting).await;
        stage.add(task()).await;
        stage.verify().await;
    });
    // The database goes while its connections still have a runtime.
    drop(stage);
    first.shutdown_background();
}

#[tokio::test]
async fn two_chains_of_keyed_tasks_that_cross_do_not_wait_for_each_other() {
    let stage = Stage::new().await;
    // The end of a task of either key releases one of the other key.
    let first = stage.add_all(vec![keyed("a"), keyed("b")]).await;
    let crossed = |key: &str, on: TaskId| {
        let mut task = keyed(key);
        task.depends_on.push(Dependency::Task(on));
        task
    };
    stage
        .add_all(vec![crossed("b", first[0].id), crossed("a", first[1].id)])
        .await;
    let claimed = stage.claim(2).await;
    stage.hold(claimed[0].lease.task).await;
    let one = stage.end_beside(0, Finish::new(claimed[0].lease, done()));
    stage.waiting(1).await;
    let other = stage.end_beside(1, Finish::new(claimed[1].lease, done()));
    stage.done_or_waiting(&other, 2).await;
    stage.release().await;
    outcome(one).await.unwrap();
    outcome(other).await.unwrap();
    assert_eq!(stage.claim(10).await.len(), 2);
    stage.verify().await;
}

#[tokio::test]
async fn a_batch_may_have_as_many_keys_as_tasks() {
    // As many locks as a small server has room for: some 3,000.
    let server = Server::start(&[
        ("fsync", "off"),
        ("max_connections", "20"),
        ("autovacuum_max_workers", "1"),
    ]);
    let store = pensum_store::connect(&server.url(), "tests").await.unwrap();
    let call = Call::new("tester", Time::parse("2026-03-01T12:00:00Z").unwrap());
    let batch = |with: fn(String) -> NewTask| -> Vec<NewTask> {
        let tasks = 0..pensum_core::store::BATCH_MAX;
        tasks.map(|number| with(number.to_string())).collect()
    };
    let keyed = batch(|key| keyed(&key));
    let unique = batch(|key| unique(&key, None, OnConflict::Keep));
    // Whoever has few keys goes on beside whoever has many.
    let few = tokio::spawn({
        let (store, call) = (Arc::clone(&store), call.clone());
        async move {
            for number in 0..20 {
                let task = task_with(|t| t.spec.key = Some(Name::from(number.to_string())));
                store.enqueue(&call, vec![task]).await.unwrap();
            }
        }
    });
    for tasks in [keyed, unique] {
        in_time(store.enqueue(&call, tasks)).await.unwrap();
    }
    outcome(few).await;
    let counts = store.counts("default", call.now).await.unwrap().total();
    assert_eq!(counts.ready, 20_020);
    assert_eq!(store.verify().await.unwrap().violations, Vec::<String>::new());
}
