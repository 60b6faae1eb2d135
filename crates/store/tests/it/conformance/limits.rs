//! Limits at submission, and the units of a rate.

use std::time::Duration;

use pensum_core::capacity::{Full, Limit};
use pensum_core::queue::{QueueCommand, QueueSettings, Rate, WhenFull};
use pensum_core::store::{Call, ClaimRequest, Command, Finish, IdempotencyKey, Rejected, StoreError};
use pensum_core::task::{Dependency, OnConflict, OnDependencyFailure, OnLimit, Unique};
use pensum_core::time::Span;
use pensum_core::{Name, NewTask, Outcome, Priority, Status, TaskId};

use super::World;
use super::world::{ids, retry, task_with};

fn of(queue: &str, with: impl FnOnce(&mut NewTask)) -> NewTask {
    task_with(|t| {
        t.spec.queue = Name::from(queue);
        with(t);
    })
}

fn plain(queue: &str) -> NewTask {
    of(queue, |_| {})
}

fn units(queue: &str, units: u32) -> NewTask {
    of(queue, |t| t.spec.details_mut().units = Some(units))
}

fn now_or_never(queue: &str) -> NewTask {
    of(queue, |t| t.spec.details_mut().on_limit = Some(OnLimit::Reject))
}

fn unique(queue: &str, on_conflict: OnConflict) -> NewTask {
    let (key, ttl) = (Name::from("one"), None);
    of(queue, |t| {
        t.unique = Some(Box::new(Unique { key, ttl, on_conflict }));
    })
}

fn rate(starts: u32, burst: u32) -> QueueSettings {
    let per = Span(Duration::from_secs(1));
    QueueSettings {
        rate: Some(Rate { starts, per, burst }),
        ..QueueSettings::default()
    }
}

fn width(max: u32) -> QueueSettings {
    QueueSettings {
        max_concurrent: Some(max),
        ..QueueSettings::default()
    }
}

fn depth(max: u32, when_full: WhenFull) -> QueueSettings {
    QueueSettings {
        max_depth: Some(max),
        when_full,
        ..QueueSettings::default()
    }
}

fn age(seconds: u64, when_full: WhenFull) -> QueueSettings {
    QueueSettings {
        max_age: Some(Span(Duration::from_secs(seconds))),
        when_full,
        ..QueueSettings::default()
    }
}

async fn put(w: &World, queue: &str, settings: QueueSettings) {
    let call = w.call();
    w.store
        .put_queue(&call, Name::from(queue), settings, None)
        .await
        .unwrap();
}

/// Which item met which limit of which queue.
async fn refused(w: &World, tasks: Vec<NewTask>) -> (usize, Full) {
    match w.try_add(tasks).await {
        Err(StoreError::Rejected(Rejected::QueueFull { item, full })) => (item, *full),
        other => panic!("{other:?} should be a refusal"),
    }
}

async fn waiting(w: &World, queue: &str) -> u64 {
    let counts = w.store.counts("default", w.now()).await.unwrap();
    let of = counts.queues.get(queue).copied().unwrap_or_default();
    of.pending + of.ready + of.retrying + of.paused
}

/// How many of some tasks were dropped, which are the first of them.
async fn dropped(w: &World, tasks: &[TaskId]) -> usize {
    let mut count = 0;
    for (position, id) in tasks.iter().enumerate() {
        if w.status(*id).await == Status::Cancelled {
            assert_eq!(w.error_kind(*id).await.as_deref(), Some("dropped"));
            assert_eq!(position, count, "the oldest goes first");
            count += 1;
        }
    }
    count
}

pub(crate) async fn a_start_takes_as_many_tokens_as_its_task_has_units(w: &World) {
    put(w, "calls", rate(10, 10)).await;
    let mut all = w
        .add_all(vec![units("calls", 4), units("calls", 5), units("calls", 3)])
        .await;
    all.push(w.add(plain("calls")).await);
    let elsewhere = w.add(units("free", 1_000)).await;
    // The third does not fit, and the fourth, which would, waits behind it.
    assert_eq!(ids(&w.claim(10).await), [all[0], all[1], elsewhere]);
    w.claim_nothing().await;
    w.pass(0.19);
    w.claim_nothing().await;
    w.pass(0.01);
    assert_eq!(ids(&w.claim(10).await), [all[2]]);
    w.claim_nothing().await;
    w.pass(0.1);
    assert_eq!(ids(&w.claim(10).await), [all[3]]);
}

pub(crate) async fn each_attempt_takes_the_units_again(w: &World) {
    put(w, "calls", rate(1, 4)).await;
    let id = w
        .add(of("calls", |t| {
            t.spec.details_mut().units = Some(4);
            t.spec.details_mut().retry = Some(pensum_core::RetryPolicy {
                delay: Span(Duration::ZERO),
                ..Default::default()
            });
        }))
        .await;
    let claimed = w.claim_one().await;
    w.finish(claimed.lease, retry()).await.unwrap();
    w.pass(3.9);
    w.claim_nothing().await;
    w.pass(0.1);
    assert_eq!(w.claim_one().await.lease.task, id);
}

pub(crate) async fn a_task_of_more_units_than_the_burst_waits_for_a_full_bucket_and_overdraws_it(w: &World) {
    put(w, "calls", rate(1, 5)).await;
    w.add(plain("calls")).await;
    w.claim_one().await;
    let big = w.add(units("calls", 12)).await;
    let after = w.add(plain("calls")).await;
    w.claim_nothing().await;
    w.pass(0.99);
    w.claim_nothing().await;
    w.pass(0.01);
    assert_eq!(w.claim_one().await.lease.task, big);
    // It owes what it took beyond the burst, and the next token comes after that.
    w.pass(7.9);
    w.claim_nothing().await;
    w.pass(0.1);
    assert_eq!(w.claim_one().await.lease.task, after);
}

pub(crate) async fn a_more_urgent_task_of_few_units_goes_before_one_that_waits_for_many(w: &World) {
    put(w, "calls", rate(1, 5)).await;
    w.add(units("calls", 3)).await;
    w.claim_one().await;
    let many = w.add(units("calls", 4)).await;
    w.claim_nothing().await;
    let urgent = w.add(of("calls", |t| t.spec.priority = Priority::High)).await;
    assert_eq!(w.claim_one().await.lease.task, urgent);
    w.pass(2.9);
    w.claim_nothing().await;
    w.pass(0.1);
    assert_eq!(w.claim_one().await.lease.task, many);
}

pub(crate) async fn nobody_waits_behind_the_units_of_a_task_whose_time_has_passed(w: &World) {
    let seldom = Rate {
        starts: 1,
        per: Span(Duration::from_secs(3_600)),
        burst: 5,
    };
    let settings = QueueSettings {
        rate: Some(seldom),
        ..QueueSettings::default()
    };
    put(w, "calls", settings).await;
    w.add(units("calls", 4)).await;
    assert_eq!(w.claim(10).await.len(), 1);
    let longest = Some(Duration::from_secs(10).into());
    let impatient = of("calls", |t| {
        t.spec.details_mut().units = Some(3);
        t.spec.details_mut().queue_timeout = longest;
    });
    w.add(impatient).await;
    let patient = w.add(plain("calls")).await;
    w.claim_nothing().await;
    w.pass(10.0);
    // A store may keep in mind for a moment that the queue has too few tokens.
    let request = ClaimRequest {
        wait: Duration::from_secs(5),
        ..w.request(10)
    };
    let claimed = w.store.claim(request, w.now()).await.unwrap();
    assert_eq!(ids(&claimed), [patient]);
}

pub(crate) async fn units_and_width_hold_together(w: &World) {
    let both = QueueSettings {
        max_concurrent: Some(2),
        ..rate(1, 6)
    };
    put(w, "calls", both).await;
    let all = w
        .add_all(vec![units("calls", 2), plain("calls"), units("calls", 3)])
        .await;
    let held = w.claim(10).await;
    assert_eq!(ids(&held), all[..2]);
    w.done(&held[0]).await;
    assert_eq!(w.claim_one().await.lease.task, all[2]);
}

pub(crate) async fn a_task_that_is_not_to_wait_is_refused_at_the_width(w: &World) {
    put(w, "narrow", width(2)).await;
    w.add_all(vec![now_or_never("narrow"), now_or_never("narrow")]).await;
    let (item, full) = refused(w, vec![plain("other"), now_or_never("narrow")]).await;
    let limit = |running, ready| Limit::Concurrent { running, ready, max: 2 };
    assert_eq!((item, &*full.queue, full.limit), (1, "narrow", limit(0, 2)));
    assert_eq!(waiting(w, "other").await, 0, "nothing of the batch is written");
    let held = w.claim(1).await;
    assert_eq!(refused(w, vec![now_or_never("narrow")]).await.1.limit, limit(1, 1));
    // Those that wait, wait.
    w.add(plain("narrow")).await;
    w.done(&held[0]).await;
    assert_eq!(refused(w, vec![now_or_never("narrow")]).await.1.limit, limit(0, 2));
    let held = w.claim(2).await;
    w.done(&held[0]).await;
    w.add(now_or_never("narrow")).await;
    // One that waits for another, or for its time, is judged when it is submitted.
    w.done(&held[1]).await;
    let held = w.claim(2).await;
    assert_eq!(held.len(), 1);
    let later = w.now().plus(Duration::from_secs(60));
    let delayed = |t: &mut NewTask| {
        t.spec.details_mut().on_limit = Some(OnLimit::Reject);
        t.run_at = Some(later);
    };
    w.add_all(vec![of("narrow", delayed), of("narrow", delayed)]).await;
    w.add(plain("narrow")).await;
    assert_eq!(refused(w, vec![of("narrow", delayed)]).await.1.limit, limit(1, 1));
}

pub(crate) async fn a_task_that_is_not_to_wait_is_refused_without_tokens(w: &World) {
    put(w, "calls", rate(10, 5)).await;
    w.add(units("calls", 3)).await;
    let reject = |n| {
        of("calls", |t| {
            t.spec.details_mut().units = Some(n);
            t.spec.details_mut().on_limit = Some(OnLimit::Reject);
        })
    };
    let full = refused(w, vec![reject(1), reject(2)]).await;
    let opens_at = w.now().plus(Duration::from_millis(100));
    let limit = Limit::Rate {
        tokens: 5,
        before: 4,
        units: 2,
        opens_at,
    };
    assert_eq!((full.0, full.1.limit), (1, limit));
    assert_eq!(full.1.opens_at(), Some(opens_at));
    w.add(reject(2)).await;
    assert_eq!(w.claim(10).await.len(), 2);
    assert!(matches!(
        refused(w, vec![reject(1)]).await.1.limit,
        Limit::Rate {
            tokens: 0,
            before: 0,
            ..
        }
    ));
    w.pass(0.1);
    w.add(reject(1)).await;
    assert_eq!(
        refused(w, vec![reject(9)]).await.1.opens_at(),
        Some(w.now().plus(Duration::from_millis(900)))
    );
}

pub(crate) async fn a_queue_takes_no_more_than_its_depth(w: &World) {
    put(w, "short", depth(3, WhenFull::Refuse)).await;
    let (item, full) = refused(w, vec![plain("short"); 4]).await;
    let limit = |waiting| Limit::Depth {
        waiting,
        max: 3,
        drops: false,
    };
    assert_eq!((item, full.limit), (3, limit(3)));
    assert_eq!(waiting(w, "short").await, 0);
    let first = w.add(plain("short")).await;
    let delayed = |t: &mut NewTask| t.run_at = Some(w.now().plus(Duration::from_secs(60)));
    let dependent = |t: &mut NewTask| t.depends_on = [Dependency::Task(first)].into_iter().collect();
    w.add_all(vec![of("short", delayed), of("short", dependent)]).await;
    assert_eq!(refused(w, vec![plain("short")]).await.1.limit, limit(3));
    w.add(plain("other")).await;
    // What runs does not wait; what comes back to wait is never refused.
    let held = w.claim(2).await;
    w.add(plain("short")).await;
    let mine = held.iter().find(|c| c.lease.task == first).unwrap();
    w.finish(mine.lease, retry()).await.unwrap();
    assert_eq!(waiting(w, "short").await, 4);
    assert_eq!(refused(w, vec![plain("short")]).await.1.limit, limit(4));
    // A command of a person neither.
    w.cancel(first).await.unwrap();
    assert_eq!(w.command(first, Command::Retry).await.map(|_| ()), Ok(()));
    // Of another namespace nothing is counted.
    w.store
        .enqueue(&w.call_in("elsewhere"), vec![plain("short")])
        .await
        .unwrap();
}

pub(crate) async fn what_was_accepted_once_is_answered_again_by_a_full_queue(w: &World) {
    put(w, "short", depth(1, WhenFull::Refuse)).await;
    let call = Call {
        idempotency: Some(IdempotencyKey {
            key: "again".to_owned(),
            digest: [7; 32],
        }),
        ..w.call()
    };
    let made = w
        .store
        .enqueue(&call, vec![unique("short", OnConflict::Keep)])
        .await
        .unwrap();
    let again = w
        .store
        .enqueue(&call, vec![unique("short", OnConflict::Keep)])
        .await
        .unwrap();
    assert_eq!(
        (made[0].id, made[0].created, again[0].created),
        (again[0].id, true, false)
    );
    let kept = w.add(unique("short", OnConflict::Keep)).await;
    assert_eq!(kept, made[0].id);
    // Another one in its place is none more.
    let replaced = w.add(unique("short", OnConflict::Replace)).await;
    assert_ne!(replaced, kept);
    assert_eq!(w.error_kind(kept).await.as_deref(), Some("replaced"));
    assert_eq!(waiting(w, "short").await, 1);
    assert!(matches!(
        refused(w, vec![plain("short")]).await.1.limit,
        Limit::Depth { waiting: 1, .. }
    ));
}

pub(crate) async fn a_queue_that_drops_takes_the_newest(w: &World) {
    put(w, "feed", depth(3, WhenFull::DropOldest)).await;
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(w.add(plain("feed")).await);
        w.pass(1.0);
    }
    assert_eq!(dropped(w, &all).await, 2);
    all.extend(w.add_all(vec![plain("feed"), plain("feed")]).await);
    assert_eq!(dropped(w, &all).await, 4);
    assert_eq!(waiting(w, "feed").await, 3);
    // A batch never drops its own, and what has started is kept.
    assert_eq!(refused(w, vec![plain("feed"); 4]).await.0, 3);
    let held = w.claim(2).await;
    assert_eq!(ids(&held), all[4..6]);
    for claimed in &held {
        w.finish(claimed.lease, Outcome::Released).await.unwrap();
    }
    w.add(plain("feed")).await;
    assert_eq!(w.status(all[6]).await, Status::Cancelled);
    let full = refused(w, vec![plain("feed"), plain("feed")]).await;
    assert_eq!(
        full.1.limit,
        Limit::Depth {
            waiting: 3,
            max: 3,
            drops: true
        }
    );
    assert_eq!(w.status(all[4]).await, Status::Ready);
}

pub(crate) async fn what_is_dropped_lets_go_of_all_that_it_held(w: &World) {
    put(w, "feed", depth(1, WhenFull::DropOldest)).await;
    let old = of("feed", |t| {
        t.spec.key = Some(Name::from("k"));
        t.unique = unique("feed", OnConflict::Reject).unique;
    });
    let old = w.add(old).await;
    let keyed = w.add(of("other", |t| t.spec.key = Some(Name::from("k")))).await;
    let dependent = |policy| {
        of("other", |t| {
            t.spec.details_mut().on_dependency_failure = policy;
            t.depends_on = [Dependency::Task(old)].into_iter().collect();
        })
    };
    let cancelled = w.add(dependent(OnDependencyFailure::Cancel)).await;
    let released = w.add(dependent(OnDependencyFailure::Run)).await;
    // Its unique key is taken until it goes, which is too late for one that asks for it.
    let taken = w.try_add(vec![unique("feed", OnConflict::Reject)]).await;
    assert!(matches!(taken, Err(StoreError::Rejected(Rejected::UniqueTaken { .. }))));
    let new = w.add(plain("feed")).await;
    assert_eq!(w.error_kind(old).await.as_deref(), Some("dropped"));
    assert_eq!(w.error_kind(cancelled).await.as_deref(), Some("dependency_failed"));
    assert_eq!(ids(&w.claim(10).await), [keyed, released, new]);
    w.add(unique("other", OnConflict::Reject)).await;
}

pub(crate) async fn a_queue_that_is_behind_takes_nothing_until_it_has_caught_up(w: &World) {
    put(w, "feed", age(10, WhenFull::Refuse)).await;
    let first = w
        .add(of("feed", |t| t.run_at = Some(w.now().plus(Duration::from_secs(5)))))
        .await;
    w.pass(14.9);
    w.add(plain("feed")).await;
    w.pass(0.5);
    let (_, full) = refused(w, vec![plain("feed")]).await;
    let waited = Span(Duration::from_millis(10_400));
    let max = Span(Duration::from_secs(10));
    assert_eq!(full.limit, Limit::Age { waited, max });
    w.add(plain("other")).await;
    w.command(first, Command::Pause).await.unwrap();
    w.add(plain("feed")).await;
    w.command(first, Command::Resume).await.unwrap();
    assert_eq!(w.claim(1).await.len(), 1);
    w.add(plain("feed")).await;
}

pub(crate) async fn what_is_replaced_neither_refuses_nor_is_dropped_for_its_successor(w: &World) {
    put(w, "feed", age(10, WhenFull::Refuse)).await;
    let old = w.add(unique("feed", OnConflict::Replace)).await;
    w.pass(11.0);
    refused(w, vec![plain("feed")]).await;
    let successor = w.add(unique("feed", OnConflict::Replace)).await;
    assert_eq!(w.error_kind(old).await.as_deref(), Some("replaced"));
    w.add(plain("feed")).await;
    w.cancel(successor).await.unwrap();

    put(w, "short", depth(2, WhenFull::DropOldest)).await;
    let old = w.add(unique("short", OnConflict::Replace)).await;
    let other = w.add(plain("short")).await;
    put(w, "short", depth(1, WhenFull::DropOldest)).await;
    let successor = w.add(unique("short", OnConflict::Replace)).await;
    assert_eq!(w.error_kind(old).await.as_deref(), Some("replaced"));
    assert_eq!(w.error_kind(other).await.as_deref(), Some("dropped"));
    assert_eq!(w.status(successor).await, Status::Ready);
}

pub(crate) async fn what_waits_too_long_is_dropped_by_the_reaper(w: &World) {
    put(w, "feed", age(10, WhenFull::DropOldest)).await;
    let later = w.now().plus(Duration::from_secs(8));
    let old = w.add(plain("feed")).await;
    let delayed = w.add(of("feed", |t| t.run_at = Some(later))).await;
    let elsewhere = w.add(plain("other")).await;
    let held = w.claim(1).await;
    assert_eq!(ids(&held), [old]);
    w.finish(held[0].lease, Outcome::Released).await.unwrap();
    w.pass(9.0);
    let young = w.add(plain("feed")).await;
    assert_eq!(w.reap().await.overdue, 0);
    w.pass(9.0);
    let reaped = w.reap().await;
    assert_eq!(reaped.ended, [(delayed, pensum_core::State::Cancelled)]);
    assert_eq!(reaped.overdue, 1);
    assert_eq!(w.error_kind(delayed).await.as_deref(), Some("dropped"));
    assert_eq!(reaped.next_due, Some(w.now().plus(Duration::from_secs(1))));
    w.pass(1.0);
    assert_eq!(w.reap().await.ended.len(), 1);
    assert_eq!(w.status(young).await, Status::Cancelled);
    // What has started once is kept, and other queues are not concerned.
    w.pass(100.0);
    assert_eq!(w.reap().await.ended, []);
    assert_eq!(
        (w.status(old).await, w.status(elsewhere).await),
        (Status::Ready, Status::Ready)
    );
}

pub(crate) async fn what_a_handler_spawns_is_refused_like_a_submission(w: &World) {
    put(w, "short", depth(1, WhenFull::Refuse)).await;
    w.add(plain("short")).await;
    let parent = w.add(of("other", |t| t.spec.priority = Priority::High)).await;
    let claimed = w.claim_one().await;
    let spawn = |queue: &str| Finish {
        spawn: vec![plain("other"), plain(queue)],
        ..Finish::new(claimed.lease, Outcome::Done(super::world::json("1")))
    };
    let told = w.end(spawn("short")).await;
    assert!(matches!(told, Err(Rejected::QueueFull { item: 1, .. })), "{told:?}");
    assert_eq!(w.status(parent).await, Status::Running);
    assert_eq!(waiting(w, "other").await, 0, "nothing of the end is written");
    let checkpoint = pensum_core::store::Checkpoint {
        spawn: vec![plain("short")],
        ..pensum_core::store::Checkpoint::new(claimed.lease)
    };
    let told = w.store.checkpoint(checkpoint, w.now()).await.unwrap();
    assert!(matches!(told, Err(Rejected::QueueFull { item: 0, .. })), "{told:?}");
    assert_eq!(w.end(spawn("other")).await.unwrap().spawned.len(), 2);
}

pub(crate) async fn what_handlers_spawn_that_end_together_is_judged_one_after_the_other(w: &World) {
    let twice = async |child: &dyn Fn() -> NewTask| {
        w.add_all(vec![plain("other"), plain("other")]).await;
        let request = ClaimRequest {
            queues: Some([Name::from("other")].into()),
            ..w.request(2)
        };
        let claimed = w.store.claim(request, w.now()).await.unwrap();
        assert_eq!(claimed.len(), 2);
        let end = |claimed: &pensum_core::store::Claimed| Finish {
            spawn: vec![child()],
            ..Finish::new(claimed.lease, Outcome::Done(super::world::json("1")))
        };
        let ends = claimed.iter().map(end).collect();
        let told = w.store.finish(ends, w.now()).await.unwrap();
        told.into_iter()
            .map(|told| told.map(|applied| applied.spawned[0]))
            .collect::<Vec<_>>()
    };

    put(w, "feed", age(10, WhenFull::Refuse)).await;
    let old = w.add(unique("feed", OnConflict::Replace)).await;
    w.pass(11.0);
    let told = twice(&|| unique("feed", OnConflict::Replace)).await;
    let [Ok(first), Ok(second)] = told[..] else {
        panic!("{told:?}")
    };
    assert_eq!(w.error_kind(old).await.as_deref(), Some("replaced"));
    assert_eq!(w.error_kind(first).await.as_deref(), Some("replaced"));
    assert_eq!(w.status(second).await, Status::Ready);

    put(w, "newest", depth(1, WhenFull::DropOldest)).await;
    let told = twice(&|| plain("newest")).await;
    let [Ok(first), Ok(second)] = told[..] else {
        panic!("{told:?}")
    };
    assert_eq!(w.error_kind(first).await.as_deref(), Some("dropped"));
    assert_eq!(w.status(second).await, Status::Ready);

    put(w, "short", depth(1, WhenFull::Refuse)).await;
    let told = twice(&|| plain("short")).await;
    assert!(
        matches!(told[..], [Ok(_), Err(Rejected::QueueFull { item: 0, .. })]),
        "{told:?}"
    );
    assert_eq!(waiting(w, "short").await, 1);
}

pub(crate) async fn limits_that_are_put_or_taken_away_hold_at_once(w: &World) {
    let old = w.add_all(vec![plain("feed"), plain("feed"), plain("feed")]).await;
    w.pass(20.0);
    put(w, "feed", depth(2, WhenFull::Refuse)).await;
    assert!(matches!(
        refused(w, vec![plain("feed")]).await.1.limit,
        Limit::Depth { waiting: 3, .. }
    ));
    put(w, "feed", depth(2, WhenFull::DropOldest)).await;
    let new = w.add(plain("feed")).await;
    assert_eq!(dropped(w, &old).await, 1);
    put(w, "feed", age(20, WhenFull::Refuse)).await;
    assert!(matches!(
        refused(w, vec![plain("feed")]).await.1.limit,
        Limit::Age { .. }
    ));
    put(w, "feed", age(20, WhenFull::DropOldest)).await;
    assert_eq!(w.reap().await.ended.len(), 2);
    put(w, "feed", QueueSettings::default()).await;
    w.add_all(vec![plain("feed"); 9]).await;
    w.store
        .command_queue(&w.call(), Name::from("feed"), QueueCommand::Pause)
        .await
        .unwrap();
    assert_eq!(w.status(new).await, Status::Ready);
}
