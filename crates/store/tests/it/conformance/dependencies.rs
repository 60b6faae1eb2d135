//! Tasks that wait for tasks.

use pensum_core::store::{Command, Rejected, Retention, StoreError};
use pensum_core::task::{Dependency, OnConflict, OnDependencyFailure, Unique};
use pensum_core::{Name, NewTask, State, Status, TaskId, WaitingFor};

use super::World;
use super::world::{after, ids, task, task_with};

fn with_policy(dependencies: &[TaskId], policy: OnDependencyFailure) -> NewTask {
    let dependencies: Vec<Dependency> = dependencies.iter().map(|id| Dependency::Task(*id)).collect();
    let mut task = after(&dependencies);
    task.spec.details_mut().on_dependency_failure = policy;
    task
}

pub(crate) async fn a_dependant_waits_for_all_its_dependencies(w: &World) {
    let (a, b) = (w.add(task()).await, w.add(task()).await);
    let c = w.add(after(&[Dependency::Task(a), Dependency::Task(b)])).await;
    assert_eq!(w.status(c).await, Status::Pending);
    assert_eq!(w.get(c).await.lifecycle.waiting_for, Some(WaitingFor::Dependencies));
    assert_eq!(w.get(c).await.depends_on, [a, b]);
    assert_eq!(w.store.dependants("default", a).await.unwrap(), [c]);
    let first = w.claim_one().await;
    w.done(&first).await;
    let second = w.claim_one().await;
    w.claim_nothing().await;
    w.done(&second).await;
    let last = w.claim_one().await;
    assert_eq!(last.lease.task, c);
    w.done(&last).await;
}

pub(crate) async fn a_failed_dependency_cancels_ignores_or_runs_by_policy(w: &World) {
    let a = w.add(task()).await;
    let b = w.add(task()).await;
    let cancelled = w.add(with_policy(&[a, b], OnDependencyFailure::Cancel)).await;
    let ignoring = w.add(with_policy(&[a, b], OnDependencyFailure::Ignore)).await;
    let cleaning = w.add(with_policy(&[a, b], OnDependencyFailure::Run)).await;
    let running = w.claim(10).await;
    let applied = w.fail(&running[0]).await;
    assert_eq!(applied.ended, [(a, State::Failed), (cancelled, State::Cancelled)]);
    assert_eq!(w.error_kind(cancelled).await.as_deref(), Some("dependency_failed"));
    assert_eq!(w.status(ignoring).await, Status::Pending);
    w.claim_nothing().await;
    w.done(&running[1]).await;
    let released = w.claim(10).await;
    assert_eq!(ids(&released), [ignoring, cleaning]);
    assert_eq!(w.error_kind(cleaning).await, None);
}

pub(crate) async fn a_cancel_cascades_down_a_long_chain(w: &World) {
    let chain: Vec<NewTask> = (0..1000)
        .map(|n| {
            if n == 0 {
                task()
            } else {
                after(&[Dependency::Item(n - 1)])
            }
        })
        .collect();
    let all = w.add_all(chain).await;
    let applied = w.cancel(all[0]).await.unwrap();
    assert_eq!(applied.ended.len(), 1000);
    assert_eq!(w.state(all[999]).await, State::Cancelled);
    w.claim_nothing().await;
}

pub(crate) async fn dependencies_on_ended_tasks_count_at_once(w: &World) {
    let (good, bad) = (w.add(task()).await, w.add(task()).await);
    let running = w.claim(2).await;
    w.done(&running[0]).await;
    w.fail(&running[1]).await;
    let ready = w.add(after(&[Dependency::Task(good)])).await;
    let cancelled = w.add(with_policy(&[good, bad], OnDependencyFailure::Cancel)).await;
    let ignoring = w.add(with_policy(&[bad], OnDependencyFailure::Ignore)).await;
    assert_eq!(w.state(cancelled).await, State::Cancelled);
    assert_eq!(ids(&w.claim(10).await), [ready, ignoring]);
}

pub(crate) async fn a_batch_may_name_items_forwards_and_refuses_cycles(w: &World) {
    let made = w.add_all(vec![after(&[Dependency::Item(1)]), task()]).await;
    let first = w.claim_one().await;
    assert_eq!(first.lease.task, made[1]);
    w.done(&first).await;
    assert_eq!(ids(&w.claim(10).await), [made[0]]);
    let cycle = vec![
        task(),
        after(&[Dependency::Item(2)]),
        after(&[Dependency::Item(1), Dependency::Item(0)]),
    ];
    let refused = w.try_add(cycle).await.unwrap_err();
    assert_eq!(refused, StoreError::Rejected(Rejected::Cycle(vec![1, 2, 1])));
    w.claim_nothing().await;
}

pub(crate) async fn items_that_wait_for_each_other_through_a_shared_unique_key_are_refused(w: &World) {
    let unique = |dependencies: &[Dependency]| {
        let mut task = after(dependencies);
        task.unique = Some(Box::new(Unique {
            key: Name::from("k"),
            ttl: None,
            on_conflict: OnConflict::Keep,
        }));
        task
    };
    let itself = vec![unique(&[Dependency::Item(1)]), unique(&[])];
    let refused = w.try_add(itself).await.unwrap_err();
    assert_eq!(refused, StoreError::Rejected(Rejected::Cycle(vec![0, 0])));
    let others = vec![
        unique(&[Dependency::Item(1)]),
        after(&[Dependency::Item(2)]),
        unique(&[]),
    ];
    let refused = w.try_add(others).await.unwrap_err();
    assert_eq!(refused, StoreError::Rejected(Rejected::Cycle(vec![0, 1, 0])));
    w.claim_nothing().await;
}

pub(crate) async fn a_dependency_on_an_item_that_is_not_there_is_refused(w: &World) {
    let refused = w.try_add(vec![task(), after(&[Dependency::Item(0), Dependency::Item(7)])]);
    let expected = Rejected::UnknownItem {
        item: 1,
        position: 1,
        index: 7,
        items: 2,
    };
    assert_eq!(refused.await.unwrap_err(), StoreError::Rejected(expected));
    w.claim_nothing().await;
}

pub(crate) async fn an_unknown_dependency_refuses_the_whole_batch(w: &World) {
    let nobody = TaskId::mint(w.now(), 4711, 1);
    let refused = w
        .try_add(vec![task(), after(&[Dependency::Item(0), Dependency::Task(nobody)])])
        .await
        .unwrap_err();
    assert_eq!(
        refused,
        StoreError::Rejected(Rejected::UnknownDependency {
            item: 1,
            position: 1,
            id: nobody
        })
    );
    w.claim_nothing().await;
}

pub(crate) async fn a_retried_dependant_waits_again_for_a_retried_dependency(w: &World) {
    let a = w.add(task()).await;
    let b = w.add(after(&[Dependency::Task(a)])).await;
    let claimed = w.claim_one().await;
    w.fail(&claimed).await;
    assert_eq!(w.state(b).await, State::Cancelled);
    w.command(a, Command::Retry).await.unwrap();
    w.command(b, Command::Retry).await.unwrap();
    assert_eq!(w.status(b).await, Status::Pending);
    let claimed = w.claim_one().await;
    assert_eq!(claimed.lease.task, a);
    w.claim_nothing().await;
    w.done(&claimed).await;
    let last = w.claim_one().await;
    assert_eq!(last.lease.task, b);
    w.done(&last).await;
}

pub(crate) async fn whoever_still_waits_waits_again_for_a_retried_dependency(w: &World) {
    let (a, b) = (w.add(task()).await, w.add(task()).await);
    let waiting = w.add(with_policy(&[a, b], OnDependencyFailure::Ignore)).await;
    let claimed = w.claim(2).await;
    w.fail(&claimed[0]).await;
    w.command(a, Command::Retry).await.unwrap();
    w.done(&claimed[1]).await;
    assert_eq!(w.status(waiting).await, Status::Pending);
    let again = w.claim_one().await;
    assert_eq!(again.lease.task, a);
    w.claim_nothing().await;
    w.done(&again).await;
    assert_eq!(ids(&w.claim(10).await), [waiting]);
}

pub(crate) async fn a_dependency_with_unfinished_dependants_is_neither_deleted_nor_pruned(w: &World) {
    let (a, gate) = (
        w.add(task()).await,
        w.add(task_with(|t| t.spec.priority = pensum_core::Priority::Low)).await,
    );
    let b = w.add(after(&[Dependency::Task(a), Dependency::Task(gate)])).await;
    let claimed = w.claim_one().await;
    w.done(&claimed).await;
    assert_eq!(
        w.command(a, Command::Delete).await,
        Err(Rejected::HasDependants { task: a, dependants: 1 })
    );
    w.pass(1e7);
    assert_eq!(
        w.store.prune(Retention::default(), w.now(), 100).await.unwrap().removed,
        0
    );
    w.cancel(b).await.unwrap();
    w.pass(1e7);
    assert_eq!(
        w.store.prune(Retention::default(), w.now(), 100).await.unwrap().removed,
        2
    );
    assert_eq!(w.state(gate).await, State::Queued);
}

pub(crate) async fn a_thousand_dependants_are_released_together(w: &World) {
    let root = w.add(task()).await;
    w.add_all((0..1000).map(|_| after(&[Dependency::Task(root)])).collect())
        .await;
    let claimed = w.claim_one().await;
    w.claim_nothing().await;
    w.done(&claimed).await;
    assert_eq!(w.claim(2000).await.len(), 1000);
}
