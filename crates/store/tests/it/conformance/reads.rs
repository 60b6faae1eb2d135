//! What can be asked.

use std::time::Duration;

use pensum_core::outcome::Usage;
use pensum_core::store::{Command, Finish, Retention, StoreError};
use pensum_core::task::ExecutionStatus;
use pensum_core::transition::EventKind;
use pensum_core::{Name, NewTask, Outcome, Page, Priority, Spec, Status, TaskFilter, TaskId};

use super::World;
use super::world::{json, retry, task, task_with};

pub(crate) async fn a_list_pages_from_the_newest_to_the_oldest(w: &World) {
    let mut all = w.add_all((0..30).map(|_| task()).collect()).await;
    all.reverse();
    assert_eq!(w.list(TaskFilter::default()).await, all);
    let page = w.store.tasks(
        "default",
        TaskFilter::default(),
        Page {
            limit: 30,
            before_row: None,
        },
        w.now(),
    );
    assert_eq!(page.await.unwrap().items.len(), 30);
}

pub(crate) async fn every_filter_selects_what_it_says(w: &World) {
    w.add(task()).await;
    w.pass(10.0);
    let since = w.now();
    let mut special = NewTask::new(Spec::new("special", json("{}")));
    special.spec.queue = Name::from("q2");
    special.spec.priority = Priority::Urgent;
    special.spec.key = Some(Name::from("K"));
    let workflow = TaskId::mint(w.now(), 99, 7);
    let details = special.spec.details_mut();
    details.name = Some("Weekly Report".into());
    details.description = Some("All about prices".into());
    details.task_type = Some("monitoring".into());
    details.assigned_to = Some("ann".into());
    details.created_by = Some("bob".into());
    details.agent_id = Some("agent-1".into());
    details.tags = vec!["red".into(), "blue".into()];
    details.workflow_id = Some(workflow);
    let id = w.add(special).await;
    w.pass(10.0);
    w.add(task()).await;
    let until = w.now();
    let check = async |filter: TaskFilter| assert_eq!(w.list(filter.clone()).await, [id], "{filter:?}");
    let none = async |filter: TaskFilter| assert!(w.list(filter.clone()).await.is_empty(), "{filter:?}");
    let any = TaskFilter::default;
    check(TaskFilter {
        queue: Some(Name::from("q2")),
        ..any()
    })
    .await;
    check(TaskFilter {
        handler: Some(Name::from("special")),
        ..any()
    })
    .await;
    check(TaskFilter {
        task_type: Some("monitoring".into()),
        ..any()
    })
    .await;
    check(TaskFilter {
        priority: Some(Priority::Urgent),
        ..any()
    })
    .await;
    check(TaskFilter {
        assigned_to: Some("ann".into()),
        ..any()
    })
    .await;
    check(TaskFilter {
        created_by: Some("bob".into()),
        ..any()
    })
    .await;
    check(TaskFilter {
        agent_id: Some("agent-1".into()),
        ..any()
    })
    .await;
    check(TaskFilter {
        key: Some(Name::from("K")),
        ..any()
    })
    .await;
    check(TaskFilter {
        tag: Some("blue".into()),
        ..any()
    })
    .await;
    check(TaskFilter {
        workflow_id: Some(workflow),
        ..any()
    })
    .await;
    check(TaskFilter {
        created_after: Some(since),
        created_before: Some(until),
        ..any()
    })
    .await;
    for q in ["weekly rep", "PRICES", "speci"] {
        check(TaskFilter {
            q: Some(q.into()),
            ..any()
        })
        .await;
    }
    check(TaskFilter {
        status: vec![Status::Ready],
        queue: Some(Name::from("q2")),
        tag: Some("red".into()),
        ..any()
    })
    .await;
    none(TaskFilter {
        status: vec![Status::Running],
        queue: Some(Name::from("q2")),
        ..any()
    })
    .await;
    none(TaskFilter {
        tag: Some("green".into()),
        ..any()
    })
    .await;
    none(TaskFilter {
        handler: Some(Name::from("nobody")),
        ..any()
    })
    .await;
    none(TaskFilter {
        q: Some("100%_".into()),
        ..any()
    })
    .await;
    none(TaskFilter {
        dead_lettered: Some(true),
        ..any()
    })
    .await;
}

/// One task of every status.
async fn one_of_each(w: &World) -> Vec<(TaskId, Status)> {
    let mut all = Vec::new();
    let completed = w.add(task()).await;
    let failed = w.add(task()).await;
    let retrying = w.add(task()).await;
    let running = w.add(task()).await;
    let claimed = w.claim(4).await;
    w.done(&claimed[0]).await;
    w.fail(&claimed[1]).await;
    w.finish(claimed[2].lease, retry()).await.unwrap();
    let pending = w
        .add(task_with(|t| t.run_at = Some(w.now().plus(Duration::from_secs(99)))))
        .await;
    let ready = w.add(task()).await;
    let paused = w.add(task()).await;
    w.command(paused, Command::Pause).await.unwrap();
    let cancelled = w.add(task()).await;
    w.cancel(cancelled).await.unwrap();
    all.extend([
        (completed, Status::Completed),
        (failed, Status::Failed),
        (retrying, Status::Retrying),
        (running, Status::Running),
        (pending, Status::Pending),
        (ready, Status::Ready),
        (paused, Status::Paused),
        (cancelled, Status::Cancelled),
    ]);
    all
}

pub(crate) async fn statuses_follow_the_columns_and_the_clock(w: &World) {
    let all = one_of_each(w).await;
    for (id, status) in &all {
        assert_eq!(w.status(*id).await, *status);
        assert_eq!(
            w.list(TaskFilter {
                status: vec![*status],
                ..TaskFilter::default()
            })
            .await,
            [*id],
            "{status}"
        );
    }
    w.pass(100.0);
    let ready = w
        .list(TaskFilter {
            status: vec![Status::Ready],
            ..TaskFilter::default()
        })
        .await;
    assert_eq!(ready.len(), 3, "the retrying and the pending one are due now");
    let dead = TaskFilter {
        dead_lettered: Some(true),
        ..TaskFilter::default()
    };
    assert_eq!(w.list(dead).await, [all[1].0]);
}

pub(crate) async fn counts_equal_a_listing(w: &World) {
    one_of_each(w).await;
    w.add(task_with(|t| t.spec.queue = Name::from("other"))).await;
    for _ in 0..2 {
        let counts = w.store.counts("default", w.now()).await.unwrap();
        for status in Status::ALL {
            let listed = w
                .list(TaskFilter {
                    status: vec![status],
                    ..TaskFilter::default()
                })
                .await
                .len() as u64;
            assert_eq!(counts.total().of(status), listed, "{status}");
        }
        assert_eq!(counts.queues["other"].ready, 1);
        assert_eq!((counts.executions, counts.dead_letters), (3, 1));
        w.pass(200.0);
    }
}

pub(crate) async fn executions_tell_every_attempt(w: &World) {
    let id = w.add(task()).await;
    let first = w.claim_one().await;
    w.pass(2.0);
    let usage = Usage {
        cpu_seconds: Some(1.5),
        memory_mb: Some(20.0),
        cpu_percent: Some(75.0),
        read_mb: Some(0.5),
        written_mb: Some(2.25),
        wall_seconds: 2.0,
    };
    w.end(Finish {
        usage,
        ..Finish::new(first.lease, retry())
    })
    .await
    .unwrap();
    w.pass(60.0);
    let second = w.claim_one().await;
    let running = w.store.executions("default", id).await.unwrap();
    assert_eq!(
        (running.len(), running[1].status, running[1].finished_at),
        (2, ExecutionStatus::Running, None)
    );
    assert_eq!(running[0].error.as_ref().unwrap().kind, "boom");
    assert_eq!(
        (running[0].usage, running[0].executor_id.as_str()),
        (usage, "tester-node")
    );
    w.finish(second.lease, Outcome::Done(json("5"))).await.unwrap();
    let ended = w.store.executions("default", id).await.unwrap();
    let told: Vec<_> = ended.iter().map(|e| (e.attempt, e.status)).collect();
    assert_eq!(told, [(1, ExecutionStatus::Failed), (2, ExecutionStatus::Completed)]);
    assert_eq!(
        (ended[1].result.clone(), ended[1].finished_at),
        (Some(json("5")), Some(w.now()))
    );
    let all = w.store.all_executions("default", Page::default()).await.unwrap();
    assert_eq!(all.items.len(), 2);
    assert_eq!(all.items[0].attempt, 2);
}

pub(crate) async fn events_tell_the_history_in_order(w: &World) {
    let id = w.add(task()).await;
    w.pass(1.0);
    w.command(id, Command::Pause).await.unwrap();
    w.pass(1.0);
    w.command(id, Command::Resume).await.unwrap();
    w.pass(1.0);
    let claimed = w.claim_one().await;
    w.pass(1.0);
    w.finish(claimed.lease, retry()).await.unwrap();
    w.pass(10.0);
    let claimed = w.claim_one().await;
    w.pass(1.0);
    w.done(&claimed).await;
    let events = w.store.events("default", id).await.unwrap();
    let kinds: Vec<EventKind> = events.iter().map(|e| e.kind).collect();
    use EventKind::{Completed, Created, Paused, Resumed, Retrying, Started};
    assert_eq!(kinds, [Created, Paused, Resumed, Started, Retrying, Started, Completed]);
    assert!(events.is_sorted_by_key(|e| e.at));
    assert_eq!(events[1].actor.as_deref(), Some("tester"));
    assert_eq!(events[4].error.as_ref().unwrap().kind, "boom");
}

pub(crate) async fn namespaces_do_not_see_each_other(w: &World) {
    let id = w.add(task()).await;
    assert_eq!(w.store.task("elsewhere", id).await.unwrap(), None);
    let page = w
        .store
        .tasks("elsewhere", TaskFilter::default(), Page::default(), w.now())
        .await
        .unwrap();
    assert!(page.items.is_empty());
    let refused = w
        .store
        .command(&w.call_in("elsewhere"), vec![id], Command::Pause)
        .await
        .unwrap();
    assert!(refused[0].is_err());
    assert_eq!(w.store.counts("elsewhere", w.now()).await.unwrap().total().sum(), 0);
}

pub(crate) async fn a_foreign_id_with_a_known_row_finds_nothing(w: &World) {
    let id = w.add(task()).await;
    let forged = TaskId::mint(w.now(), id.row(), 0x1234_5678);
    assert_eq!(w.store.task("default", forged).await.unwrap(), None);
    assert!(w.cancel(forged).await.is_err());
    assert_eq!(w.status(id).await, Status::Ready);
}

pub(crate) async fn prune_respects_the_retention(w: &World) {
    let (done, failed) = (w.add(task()).await, w.add(task()).await);
    let claimed = w.claim(2).await;
    w.done(&claimed[0]).await;
    w.fail(&claimed[1]).await;
    w.add(task()).await;
    let day = Duration::from_secs(86_400);
    let retention = Retention {
        completed: 7 * day,
        failed: 30 * day,
    };
    assert_eq!(w.store.prune(retention, w.now(), 100).await.unwrap().removed, 0);
    w.pass(8.0 * 86_400.0);
    assert_eq!(w.store.prune(retention, w.now(), 100).await.unwrap().removed, 1);
    assert_eq!(w.store.task("default", done).await.unwrap(), None);
    assert!(w.store.task("default", failed).await.unwrap().is_some());
    w.pass(30.0 * 86_400.0);
    assert_eq!(w.store.prune(retention, w.now(), 100).await.unwrap().removed, 1);
    assert_eq!(w.list(TaskFilter::default()).await.len(), 1);
}

pub(crate) async fn the_key_holder_is_the_running_task(w: &World) {
    let id = w.add(task_with(|t| t.spec.key = Some(Name::from("k")))).await;
    let holders = || async { w.store.key_holders("default", "k").await.unwrap() };
    assert_eq!(holders().await, []);
    let claimed = w.claim_one().await;
    assert_eq!(holders().await, [id]);
    assert_eq!(w.store.key_holders("other", "k").await.unwrap(), []);
    w.done(&claimed).await;
    assert_eq!(holders().await, []);
}

pub(crate) async fn a_closed_store_says_so(w: &World) {
    let id = w.add(task()).await;
    w.store.close().await.unwrap();
    assert_eq!(w.try_add(vec![task()]).await.unwrap_err(), StoreError::Closed);
    assert_eq!(w.store.task("default", id).await.unwrap_err(), StoreError::Closed);
}
