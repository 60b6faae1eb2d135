//! Queues with settings: how much of them starts, and when.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use pensum_core::queue::{QueueCommand, QueueRecord, QueueSettings, Rate};
use pensum_core::store::{Checkpoint, ClaimRequest, Claimed, Command, Rejected, StoreError};
use pensum_core::time::Span;
use pensum_core::{Name, NewTask, NodeId, Outcome, Priority, TaskId};

use super::World;
use super::world::{ids, retry, task, task_with};

fn of(queue: &str) -> NewTask {
    task_with(|t| t.spec.queue = Name::from(queue))
}

fn many(queue: &str, count: usize) -> Vec<NewTask> {
    (0..count).map(|_| of(queue)).collect()
}

fn width(max: u32) -> QueueSettings {
    QueueSettings {
        max_concurrent: Some(max),
        ..QueueSettings::default()
    }
}

fn rate(starts: u32, burst: u32) -> QueueSettings {
    let per = Span(Duration::from_secs(1));
    QueueSettings {
        rate: Some(Rate { starts, per, burst }),
        ..QueueSettings::default()
    }
}

fn manual() -> QueueSettings {
    QueueSettings {
        auto_start: false,
        ..QueueSettings::default()
    }
}

async fn put(w: &World, queue: &str, settings: QueueSettings) -> QueueRecord {
    w.store
        .put_queue(&w.call(), Name::from(queue), settings, None)
        .await
        .unwrap()
}

async fn ask(w: &World, queue: &str, command: QueueCommand) -> QueueRecord {
    w.store
        .command_queue(&w.call(), Name::from(queue), command)
        .await
        .unwrap()
}

async fn of_node(w: &World, node: u64, slots: usize) -> Vec<Claimed> {
    let request = ClaimRequest {
        node: NodeId(node),
        ..w.request(slots)
    };
    w.store.claim(request, w.now()).await.unwrap()
}

pub(crate) async fn a_queue_runs_no_more_than_its_width_on_all_nodes_together(w: &World) {
    put(w, "narrow", width(3)).await;
    w.add_all(many("narrow", 10)).await;
    let elsewhere = w.add(of("wide")).await;
    let mut held = of_node(w, 1, 2).await;
    held.extend(of_node(w, 2, 10).await);
    let mut in_order: Vec<TaskId> = ids(&held);
    assert_eq!(held.len(), 4);
    assert!(in_order.contains(&elsewhere));
    assert_eq!(w.store.queues("default").await.unwrap()[0].running, 3);
    assert!(of_node(w, 1, 10).await.is_empty());
    held.retain(|claimed| claimed.lease.task != elsewhere);
    // Each end makes room for one.
    while let Some(first) = held.first().cloned() {
        w.done(&first).await;
        held.remove(0);
        let next = of_node(w, 2, 10).await;
        assert_eq!(next.len(), usize::from(in_order.len() < 11));
        in_order.extend(ids(&next));
        held.extend(next);
        assert!(held.len() <= 3);
    }
    assert_eq!(in_order.iter().collect::<HashSet<_>>().len(), 11);
}

pub(crate) async fn a_slot_of_a_queue_is_held_by_a_lease_and_by_nothing_else(w: &World) {
    put(w, "narrow", width(1)).await;
    let id = w.add(of("narrow")).await;
    let other = w.add(of("narrow")).await;
    // A lease that ran out, a claim that was given back, a wait and a retry each free it.
    w.claim_one().await;
    w.pass(31.0);
    w.reap().await;
    let claimed = w.claim_one().await;
    w.finish(claimed.lease, Outcome::Released).await.unwrap();
    let claimed = w.claim_one().await;
    assert_eq!(claimed.lease.task, id);
    let until = pensum_core::Wait::Until(w.now().plus(Duration::from_secs(60)));
    w.finish(
        claimed.lease,
        Outcome::Wait {
            on: until,
            checkpoint: None,
        },
    )
    .await
    .unwrap();
    let claimed = w.claim_one().await;
    assert_eq!(claimed.lease.task, other);
    w.pass(29.0);
    w.store
        .renew(
            vec![pensum_core::store::Beat {
                lease: claimed.lease,
                progress: None,
                logs: Vec::new(),
            }],
            Duration::from_secs(60),
            w.now(),
        )
        .await
        .unwrap();
    w.pass(32.0);
    w.reap().await;
    w.claim_nothing().await;
    // One that paused in place keeps it.
    w.command(other, Command::Pause).await.unwrap();
    let paused = Checkpoint {
        paused: true,
        ..Checkpoint::new(claimed.lease)
    };
    w.store.checkpoint(paused, w.now()).await.unwrap().unwrap();
    assert_eq!(w.store.queues("default").await.unwrap()[0].running, 1);
    w.claim_nothing().await;
    w.command(other, Command::Resume).await.unwrap();
    w.done(&claimed).await;
    assert_eq!(ids(&w.claim(10).await), [id]);
}

pub(crate) async fn a_paused_queue_starts_nothing_and_then_the_best_first(w: &World) {
    put(w, "validation", width(1)).await;
    assert_eq!(ask(w, "validation", QueueCommand::Pause).await.paused_at, Some(w.now()));
    let mut of_priority = Vec::new();
    for priority in [
        Priority::Low,
        Priority::Normal,
        Priority::High,
        Priority::Urgent,
        Priority::Critical,
    ] {
        let mut task = of("validation");
        task.spec.priority = priority;
        of_priority.insert(0, w.add(task).await);
    }
    w.pass(5.0);
    w.claim_nothing().await;
    let before = w.store.queues("default").await.unwrap().remove(0);
    assert_eq!(ask(w, "validation", QueueCommand::Pause).await, before);
    assert_eq!(ask(w, "validation", QueueCommand::Resume).await.paused_at, None);
    let mut order = Vec::new();
    for _ in 0..5 {
        let claimed = w.claim(10).await;
        assert_eq!(claimed.len(), 1);
        order.push(claimed[0].lease.task);
        w.done(&claimed[0]).await;
    }
    assert_eq!(order, of_priority);
}

pub(crate) async fn what_runs_goes_on_while_its_queue_is_paused(w: &World) {
    let ran = w.add(of("q")).await;
    let claimed = w.claim_one().await;
    ask(w, "q", QueueCommand::Pause).await;
    w.add(of("q")).await;
    w.done(&claimed).await;
    assert_eq!(w.state(ran).await, pensum_core::State::Completed);
    w.claim_nothing().await;
    ask(w, "q", QueueCommand::Resume).await;
    assert_eq!(w.claim(10).await.len(), 1);
}

pub(crate) async fn a_manual_queue_starts_what_was_there_when_it_was_asked_to(w: &World) {
    put(w, "manual", manual()).await;
    let first = w.add(of("manual")).await;
    let later = w
        .add(task_with(|t| {
            t.spec.queue = Name::from("manual");
            t.run_at = Some(w.now().plus(Duration::from_secs(10)));
        }))
        .await;
    w.claim_nothing().await;
    let asked = ask(w, "manual", QueueCommand::Process).await;
    assert!(asked.process_to.is_some());
    let newer = w.add_all(many("manual", 3)).await;
    let mut urgent = of("manual");
    urgent.spec.priority = Priority::Critical;
    let urgent = w.add(urgent).await;
    let plain = w.add(task()).await;
    let claimed = w.claim(10).await;
    assert_eq!(ids(&claimed), [first, plain]);
    // A retry of what was there, and what comes due of it, needs no further asking.
    w.finish(claimed[0].lease, retry()).await.unwrap();
    w.done(&claimed[1]).await;
    w.pass(400.0);
    assert_eq!(
        w.claim(10).await.iter().map(|c| c.lease.task).collect::<HashSet<_>>(),
        HashSet::from([first, later])
    );
    ask(w, "manual", QueueCommand::Process).await;
    let rest: Vec<TaskId> = std::iter::once(urgent).chain(newer).collect();
    assert_eq!(ids(&w.claim(10).await), rest);
}

pub(crate) async fn a_rate_lets_its_burst_start_and_then_so_many_in_a_time(w: &World) {
    put(w, "limited", rate(10, 5)).await;
    w.add_all(many("limited", 60)).await;
    assert_eq!(w.claim(100).await.len(), 5);
    w.claim_nothing().await;
    w.pass(0.05);
    w.claim_nothing().await;
    let mut started = 5;
    // 4.95 s in uneven steps: 49 of the rate after the burst.
    for step in [
        0.05, 0.1, 0.25, 0.3, 0.2, 0.4, 0.05, 0.4, 0.35, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4,
    ] {
        w.pass(step);
        started += of_node(w, 1 + started as u64 % 2, 100).await.len();
    }
    assert_eq!(started, 5 + 49);
    w.pass(60.0);
    assert_eq!(w.claim(100).await.len(), 5);
}

pub(crate) async fn a_closed_queue_hides_nobody(w: &World) {
    ask(w, "paused", QueueCommand::Pause).await;
    put(w, "narrow", width(1)).await;
    put(w, "manual", manual()).await;
    put(w, "limited", rate(1, 1)).await;
    let mut tasks = Vec::new();
    for queue in ["paused", "narrow", "manual", "limited"] {
        tasks.extend(many(queue, 300).into_iter().map(|mut task| {
            task.spec.priority = Priority::Critical;
            task
        }));
    }
    w.add_all(tasks).await;
    let open = w.add_all(many("open", 3)).await;
    let claimed = w.claim(100).await;
    assert_eq!(claimed.len(), 5);
    let found: HashSet<TaskId> = claimed.iter().map(|c| c.lease.task).collect();
    assert!(open.iter().all(|id| found.contains(id)));
    w.claim_nothing().await;
}

pub(crate) async fn the_width_of_a_queue_and_its_keys_hold_together(w: &World) {
    put(w, "narrow", width(2)).await;
    let keyed = |key: &str, queue: &str| {
        task_with(|t| {
            t.spec.queue = Name::from(queue);
            t.spec.key = Some(Name::from(key));
        })
    };
    let tasks = vec![
        keyed("a", "narrow"),
        keyed("a", "narrow"),
        keyed("b", "narrow"),
        keyed("c", "narrow"),
        keyed("c", "wide"),
    ];
    let made = w.add_all(tasks).await;
    let claimed = w.claim(10).await;
    // The turn of `c` is that of a task whose queue is full.
    assert_eq!(ids(&claimed), [made[0], made[2]]);
    w.done(&claimed[0]).await;
    let next = w.claim(10).await;
    assert_eq!(ids(&next), [made[1]]);
    w.done(&next[0]).await;
    let next = w.claim(10).await;
    assert_eq!(ids(&next), [made[3]]);
    w.done(&next[0]).await;
    assert_eq!(ids(&w.claim(10).await), [made[4]]);
}

pub(crate) async fn a_parked_claim_hears_that_its_queue_opened(w: &World) {
    let started = tokio::time::Instant::now();
    let parked = |queue: &'static str| {
        let request = ClaimRequest {
            wait: Duration::from_secs(20),
            queues: Some([Name::from(queue)].into_iter().collect::<Arc<[Name]>>()),
            ..w.request(1)
        };
        let (store, now) = (Arc::clone(&w.store), w.now());
        tokio::spawn(async move {
            loop {
                let claimed = store.claim(request.clone(), now.plus(started.elapsed())).await.unwrap();
                if !claimed.is_empty() {
                    return claimed;
                }
                // A store may answer early, with nothing.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    };
    ask(w, "paused", QueueCommand::Pause).await;
    put(w, "manual", manual()).await;
    put(w, "narrow", width(1)).await;
    put(w, "limited", rate(4, 1)).await;
    let names = ["paused", "manual", "narrow", "limited"];
    let mut first = Vec::new();
    for queue in names {
        w.add_all(many(queue, 2)).await;
    }
    first.extend(w.claim(10).await);
    assert_eq!(first.len(), 2, "of the narrow and of the limited one");
    let waiting: Vec<_> = names.into_iter().map(parked).collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(waiting[..3].iter().all(|claim| !claim.is_finished()));
    ask(w, "paused", QueueCommand::Resume).await;
    ask(w, "manual", QueueCommand::Process).await;
    for claimed in &first {
        w.done(claimed).await;
    }
    for claim in waiting {
        assert_eq!(claim.await.unwrap().len(), 1);
    }
    // It was opened, not waited out.
    assert!(started.elapsed() < Duration::from_secs(15));
}

pub(crate) async fn settings_come_back_as_they_were_put(w: &World) {
    let settings = QueueSettings {
        title: Some("Design System".to_owned()),
        max_concurrent: Some(2),
        max_concurrent_per_key: Some(5),
        auto_start: false,
        persistent: false,
        rate: rate(50, 10).rate,
        max_depth: Some(1_000),
        max_age: Some(Span(Duration::from_secs(86_400))),
        when_full: pensum_core::queue::WhenFull::DropOldest,
        priority: Some(Priority::High),
        timeout: Some(Span(Duration::from_millis(1_500))),
        max_retries: Some(7),
        retry: Some(pensum_core::RetryPolicy::fixed(Duration::from_secs(3))),
        ageing: Some(Span(Duration::from_millis(90_500))),
        fair: true,
    };
    let made = put(w, "b", settings.clone()).await;
    assert_eq!((&made.settings, made.version), (&settings, 1));
    assert_eq!((made.put_by.as_deref(), made.created_at), (Some("tester"), w.now()));
    put(w, "a", QueueSettings::default()).await;
    w.pass(1.0);
    // Once more the same is no change.
    assert_eq!(put(w, "b", settings.clone()).await, made);
    let changed = QueueSettings {
        max_concurrent: None,
        ..settings.clone()
    };
    let stale = w.store.put_queue(&w.call(), "b".into(), changed.clone(), Some(7)).await;
    let expected = Rejected::QueueVersionMismatch {
        queue: "b".into(),
        expected: 7,
        found: 1,
    };
    assert_eq!(stale, Err(StoreError::Rejected(expected)));
    let now = w
        .store
        .put_queue(&w.call(), "b".into(), changed.clone(), Some(1))
        .await
        .unwrap();
    assert_eq!(
        (now.settings.clone(), now.version, now.changed_at),
        (changed, 2, w.now())
    );
    let listed = w.store.queues("default").await.unwrap();
    assert_eq!(listed.iter().map(|q| &*q.name).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(listed[1], now);
    assert!(w.store.queues("elsewhere").await.unwrap().is_empty());
}

pub(crate) async fn a_queue_is_deleted_once_it_is_empty(w: &World) {
    let delete = |queue: &'static str| async move { w.store.delete_queue(&w.call(), queue.into()).await };
    assert_eq!(
        delete("q").await,
        Err(StoreError::Rejected(Rejected::NoQueue("q".into())))
    );
    put(w, "q", width(1)).await;
    w.add_all(many("q", 2)).await;
    let refused = |unfinished| {
        Err(StoreError::Rejected(Rejected::QueueHasTasks {
            queue: "q".into(),
            unfinished,
        }))
    };
    assert_eq!(delete("q").await, refused(2));
    for left in [1, 0] {
        let claimed = w.claim_one().await;
        w.done(&claimed).await;
        if left > 0 {
            assert_eq!(delete("q").await, refused(left));
        }
    }
    assert_eq!(delete("q").await, Ok(()));
    assert!(w.store.queues("default").await.unwrap().is_empty());
    w.add_all(many("q", 2)).await;
    assert_eq!(w.claim(10).await.len(), 2);
}

pub(crate) async fn queues_of_different_namespaces_do_not_meet(w: &World) {
    w.store
        .command_queue(&w.call_in("theirs"), "q".into(), QueueCommand::Pause)
        .await
        .unwrap();
    let ours = w.add(of("q")).await;
    w.store.enqueue(&w.call_in("theirs"), many("q", 1)).await.unwrap();
    assert_eq!(ids(&w.claim(10).await), [ours]);
}

pub(crate) async fn a_command_that_does_not_fit_is_refused(w: &World) {
    put(w, "manual", manual()).await;
    ask(w, "manual", QueueCommand::Pause).await;
    let refused = w
        .store
        .command_queue(&w.call(), "manual".into(), QueueCommand::Process)
        .await;
    let Err(StoreError::Rejected(Rejected::QueueForbids { queue, why })) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(&*queue, "manual");
    assert!(why.contains("resume"), "{why}");
}

pub(crate) async fn settings_and_pauses_are_carried_into_a_copy(w: &World) {
    put(w, "narrow", width(2)).await;
    put(w, "limited", rate(1, 3)).await;
    ask(w, "paused", QueueCommand::Pause).await;
    w.add_all(many("limited", 9)).await;
    for claimed in w.claim(10).await {
        w.done(&claimed).await;
    }
    w.add_all(many("narrow", 5)).await;
    w.add_all(many("paused", 2)).await;
    let other = super::dossiers::copy(w).await;
    assert_eq!(
        other.store.queues("default").await.unwrap(),
        w.store.queues("default").await.unwrap()
    );
    assert_eq!(other.claim(10).await.len(), 2);
    other.verify().await;
}
