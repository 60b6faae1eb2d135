//! What becomes of a claimed task.

use std::time::Duration;

use pensum_core::outcome::{Progress, Wait};
use pensum_core::store::{Beat, Checkpoint, Command, Finish, LogLine, LogStream, Rejected, Renewal};
use pensum_core::{ErrorInfo, Name, Outcome, RetryPolicy, State, Status};

use super::World;
use super::world::{LEASE, ids, json, retry, task, task_with};

pub(crate) async fn a_task_completes_with_its_result(w: &World) {
    let id = w.add(task()).await;
    let claimed = w.claim_one().await;
    assert_eq!(
        (claimed.lifecycle.attempt, claimed.lifecycle.state),
        (1, State::Running)
    );
    assert_eq!(w.status(id).await, Status::Running);
    w.pass(2.0);
    let applied = w
        .finish(claimed.lease, Outcome::Done(json(r#"{"answer":42}"#)))
        .await
        .unwrap();
    assert_eq!(applied.ended, [(id, State::Completed)]);
    let record = w.get(id).await;
    assert_eq!(record.result, Some(json(r#"{"answer":42}"#)));
    assert_eq!(record.lifecycle.finished_at, Some(w.now()));
    assert_eq!(
        (record.lifecycle.attempt, record.lifecycle.failures, record.error),
        (1, 0, None)
    );
    w.claim_nothing().await;
}

pub(crate) async fn a_failure_is_retried_with_backoff_and_then_dead_lettered(w: &World) {
    let id = w.add(task_with(|t| t.spec.max_retries = Some(1))).await;
    let first = w.claim_one().await;
    w.finish(first.lease, retry()).await.unwrap();
    let record = w.get(id).await;
    assert_eq!(w.status(id).await, Status::Retrying);
    assert_eq!(
        (record.lifecycle.failures, record.error.unwrap().kind.as_str()),
        (1, "boom")
    );
    w.claim_nothing().await;
    // The default policy: one second, full jitter, and the draw of this finish is one half.
    w.pass(0.51);
    let second = w.claim_one().await;
    assert_eq!(second.lifecycle.attempt, 2);
    let applied = w.finish(second.lease, retry()).await.unwrap();
    assert_eq!(applied.ended, [(id, State::Failed)]);
    let record = w.get(id).await;
    assert_eq!((record.lifecycle.failures, record.lifecycle.attempt), (2, 2));
    assert_eq!(record.lifecycle.dead_lettered_at, Some(w.now()));
}

pub(crate) async fn a_non_retryable_failure_ends_at_once(w: &World) {
    let id = w.add(task()).await;
    let claimed = w.claim_one().await;
    w.fail(&claimed).await;
    assert_eq!(w.state(id).await, State::Failed);
    assert_eq!(w.error_kind(id).await.as_deref(), Some("boom"));
}

pub(crate) async fn the_handlers_own_delay_beats_the_policy(w: &World) {
    let id = w
        .add(task_with(|t| {
            t.spec.details_mut().retry = Some(RetryPolicy::fixed(Duration::from_secs(1)))
        }))
        .await;
    let claimed = w.claim_one().await;
    let error = ErrorInfo::new("busy", "come back later");
    w.finish(
        claimed.lease,
        Outcome::Retry {
            error,
            after: Some(Duration::from_secs(100)),
        },
    )
    .await
    .unwrap();
    w.pass(99.0);
    w.claim_nothing().await;
    w.pass(1.1);
    assert_eq!(ids(&w.claim(1).await), [id]);
}

pub(crate) async fn a_stale_lease_writes_nothing(w: &World) {
    let id = w.add(task()).await;
    let old = w.claim_one().await;
    w.pass(31.0);
    w.reap().await;
    let new = w.claim_one().await;
    assert_ne!(old.lease.lease, new.lease.lease);
    let lost = w.finish(old.lease, Outcome::Done(json("\"late\""))).await;
    assert_eq!(lost, Err(Rejected::LeaseLost(id)));
    let saved = w
        .store
        .checkpoint(
            Checkpoint {
                state: Some(json("1")),
                ..Checkpoint::new(old.lease)
            },
            w.now(),
        )
        .await;
    assert_eq!(saved.unwrap(), Err(Rejected::LeaseLost(id)));
    let beat = Beat {
        lease: old.lease,
        progress: Some(Progress {
            percent: 9.0,
            message: None,
        }),
        logs: vec![],
    };
    assert_eq!(
        w.store.renew(vec![beat], LEASE, w.now()).await.unwrap(),
        [Renewal::Lost]
    );
    assert_eq!((w.state(id).await, w.get(id).await.progress), (State::Running, None));
    w.done(&new).await;
    assert_eq!(w.finish(new.lease, retry()).await, Err(Rejected::LeaseLost(id)));
    assert_eq!(w.get(id).await.result, Some(json("1")));
}

pub(crate) async fn an_expired_lease_goes_back_without_a_failure(w: &World) {
    let id = w.add(task()).await;
    w.claim_one().await;
    w.pass(29.0);
    assert_eq!(w.reap().await.leases_expired, 0);
    w.pass(1.5);
    assert_eq!(w.reap().await.leases_expired, 1);
    assert_eq!(w.status(id).await, Status::Ready);
    let again = w.claim_one().await;
    assert_eq!(w.get(id).await.lifecycle.failures, 0);
    w.done(&again).await;
}

pub(crate) async fn a_renewed_lease_does_not_expire(w: &World) {
    w.add(task()).await;
    let claimed = w.claim_one().await;
    for _ in 0..5 {
        w.pass(20.0);
        let beat = Beat {
            lease: claimed.lease,
            progress: None,
            logs: vec![],
        };
        let renewed = w.store.renew(vec![beat], LEASE, w.now()).await.unwrap();
        assert_eq!(
            renewed,
            [Renewal::Held {
                expires_at: w.now().plus(LEASE),
                cancel: false,
                pause: false
            }]
        );
        assert_eq!(w.reap().await.leases_expired, 0);
    }
    w.done(&claimed).await;
}

pub(crate) async fn again_keeps_the_attempt_and_the_checkpoint(w: &World) {
    let id = w.add(task()).await;
    let first = w.claim_one().await;
    assert_eq!(first.checkpoint, None);
    let again = Outcome::Again {
        after: Duration::from_secs(5),
        checkpoint: Some(json(r#"{"page":2}"#)),
    };
    w.finish(first.lease, again).await.unwrap();
    assert_eq!(w.status(id).await, Status::Pending);
    w.pass(5.0);
    let second = w.claim_one().await;
    assert_eq!(second.lifecycle.attempt, 1);
    assert_eq!(second.checkpoint, Some(json(r#"{"page":2}"#)));
    w.finish(
        second.lease,
        Outcome::Again {
            after: Duration::ZERO,
            checkpoint: None,
        },
    )
    .await
    .unwrap();
    let third = w.claim_one().await;
    assert_eq!(third.checkpoint, Some(json(r#"{"page":2}"#)));
    w.done(&third).await;
    assert_eq!(w.store.executions("default", id).await.unwrap().len(), 1);
}

pub(crate) async fn a_released_task_spends_no_attempt(w: &World) {
    let id = w.add(task()).await;
    for _ in 0..3 {
        let claimed = w.claim_one().await;
        assert_eq!(claimed.lifecycle.attempt, 1);
        w.finish(claimed.lease, Outcome::Released).await.unwrap();
        assert_eq!(w.status(id).await, Status::Ready);
    }
    let claimed = w.claim_one().await;
    w.done(&claimed).await;
    assert_eq!(w.get(id).await.lifecycle.attempt, 1);
}

fn wait_for(name: &str, seconds: Option<f64>, w: &World) -> Outcome {
    let until = seconds.map(|s| w.now().plus(Duration::from_secs_f64(s)));
    Outcome::Wait {
        on: Wait::Signal {
            name: Name::from(name),
            until,
        },
        checkpoint: None,
    }
}

fn signal(name: &str, payload: &str) -> Command {
    Command::Signal {
        name: Name::from(name),
        payload: json(payload),
    }
}

pub(crate) async fn a_wait_for_a_signal_ends_when_it_comes(w: &World) {
    let id = w.add(task()).await;
    let claimed = w.claim_one().await;
    w.finish(claimed.lease, wait_for("go", None, w)).await.unwrap();
    assert_eq!(
        (w.status(id).await, w.state(id).await),
        (Status::Running, State::Waiting)
    );
    w.command(id, signal("other", "0")).await.unwrap();
    w.claim_nothing().await;
    w.command(id, signal("go", r#"{"by":"me"}"#)).await.unwrap();
    let woken = w.claim_one().await;
    assert_eq!(woken.lifecycle.attempt, 1);
    let inbox = w.store.inbox(id).await.unwrap();
    assert_eq!(inbox.iter().map(|s| &*s.name).collect::<Vec<_>>(), ["other", "go"]);
    assert_eq!(inbox[1].payload, json(r#"{"by":"me"}"#));
    let all = inbox.iter().map(|s| s.seq).collect();
    w.end(Finish {
        consumed: all,
        ..Finish::new(woken.lease, wait_for("go", Some(3.0), w))
    })
    .await
    .unwrap();
    w.claim_nothing().await;
    w.pass(3.5);
    assert_eq!(w.reap().await.woken, 1);
    let timed_out = w.claim_one().await;
    assert!(w.store.inbox(id).await.unwrap().is_empty());
    w.done(&timed_out).await;
}

pub(crate) async fn a_signal_that_came_before_the_wait_is_not_lost(w: &World) {
    let id = w.add(task()).await;
    let claimed = w.claim_one().await;
    w.command(id, signal("go", "1")).await.unwrap();
    w.finish(claimed.lease, wait_for("go", None, w)).await.unwrap();
    let woken = w.claim_one().await;
    assert_eq!(woken.lease.task, id);
    w.done(&woken).await;
}

pub(crate) async fn a_wait_for_a_time_ends_by_the_reaper(w: &World) {
    w.add(task()).await;
    let claimed = w.claim_one().await;
    let at = w.now().plus(Duration::from_secs(60));
    w.finish(
        claimed.lease,
        Outcome::Wait {
            on: Wait::Until(at),
            checkpoint: None,
        },
    )
    .await
    .unwrap();
    assert_eq!(w.reap().await.next_due, Some(at));
    w.pass(61.0);
    assert_eq!(w.reap().await.woken, 1);
    let woken = w.claim_one().await;
    w.done(&woken).await;
}

pub(crate) async fn a_parent_waits_for_the_children_it_spawned(w: &World) {
    let parent = w.add(task()).await;
    let claimed = w.claim_one().await;
    let wait = Outcome::Wait {
        on: Wait::Children,
        checkpoint: Some(json("\"spawned\"")),
    };
    let applied = w
        .end(Finish {
            spawn: vec![task(), task()],
            ..Finish::new(claimed.lease, wait)
        })
        .await
        .unwrap();
    assert_eq!((applied.spawned.len(), applied.state), (2, Some(State::Waiting)));
    let children = w.claim(10).await;
    assert_eq!(ids(&children), applied.spawned);
    assert_eq!(
        w.get(applied.spawned[0]).await.spec.details.unwrap().parent_id,
        Some(parent)
    );
    w.done(&children[0]).await;
    w.claim_nothing().await;
    w.fail(&children[1]).await;
    let woken = w.claim_one().await;
    assert_eq!(
        (woken.lease.task, woken.checkpoint.clone()),
        (parent, Some(json("\"spawned\"")))
    );
    w.done(&woken).await;
}

pub(crate) async fn a_finish_without_children_to_wait_for_goes_on_at_once(w: &World) {
    w.add(task()).await;
    let claimed = w.claim_one().await;
    let wait = Outcome::Wait {
        on: Wait::Children,
        checkpoint: None,
    };
    w.finish(claimed.lease, wait).await.unwrap();
    let woken = w.claim_one().await;
    w.done(&woken).await;
}

pub(crate) async fn steps_and_checkpoints_are_fenced_and_kept(w: &World) {
    let id = w.add(task()).await;
    let first = w.claim_one().await;
    let save = |lease, step: &str, result: &str| Checkpoint {
        step: Some((Name::from(step), json(result))),
        state: Some(json("7")),
        ..Checkpoint::new(lease)
    };
    w.store
        .checkpoint(save(first.lease, "fetch", "\"page\""), w.now())
        .await
        .unwrap()
        .unwrap();
    w.store
        .checkpoint(save(first.lease, "parse", "3"), w.now())
        .await
        .unwrap()
        .unwrap();
    w.finish(first.lease, retry()).await.unwrap();
    w.pass(10.0);
    let second = w.claim_one().await;
    assert_eq!(
        (second.lifecycle.attempt, second.checkpoint.clone()),
        (2, Some(json("7")))
    );
    let mut steps = w.store.steps(id).await.unwrap();
    steps.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(
        steps,
        [
            (Name::from("fetch"), json("\"page\"")),
            (Name::from("parse"), json("3"))
        ]
    );
    w.done(&second).await;
}

pub(crate) async fn consumed_signals_go_with_the_checkpoint(w: &World) {
    let id = w.add(task()).await;
    let claimed = w.claim_one().await;
    w.command(id, signal("a", "1")).await.unwrap();
    w.command(id, signal("b", "2")).await.unwrap();
    let inbox = w.store.inbox(id).await.unwrap();
    let used = Checkpoint {
        consumed: vec![inbox[0].seq],
        ..Checkpoint::new(claimed.lease)
    };
    w.store.checkpoint(used, w.now()).await.unwrap().unwrap();
    let left = w.store.inbox(id).await.unwrap();
    assert_eq!(left.iter().map(|s| &*s.name).collect::<Vec<_>>(), ["b"]);
    w.done(&claimed).await;
}

pub(crate) async fn an_expired_task_is_cancelled_and_a_started_one_is_not(w: &World) {
    let at = w.now().plus(Duration::from_secs(10));
    let expiring = || task_with(|t| t.spec.details_mut().expires_at = Some(at));
    let started = w.add(expiring()).await;
    let claimed = w.claim_one().await;
    let waiting = w.add(expiring()).await;
    w.command(waiting, Command::Pause).await.unwrap();
    w.pass(11.0);
    assert_eq!(w.reap().await.overdue, 1);
    assert_eq!(w.state(waiting).await, State::Cancelled);
    assert_eq!(w.error_kind(waiting).await.as_deref(), Some("expired"));
    assert_eq!(w.state(started).await, State::Running);
    w.done(&claimed).await;
}

pub(crate) async fn what_is_overdue_is_not_started_even_before_the_reaper_comes(w: &World) {
    let at = w.now().plus(Duration::from_secs(10));
    let expiring = || {
        task_with(|t| {
            t.spec.details_mut().expires_at = Some(at);
            t.spec.key = Some(Name::from("k"));
        })
    };
    let impatient = || task_with(|t| t.spec.details_mut().queue_timeout = Some(Duration::from_secs(10).into()));
    let keyed = || task_with(|t| t.spec.key = Some(Name::from("k")));
    let made = w.add_all(vec![expiring(), impatient(), keyed(), task()]).await;
    w.pass(10.0);
    assert_eq!(ids(&w.claim(10).await), made[2..]);
    assert_eq!(w.reap().await.overdue, 2);
    assert_eq!(w.state(made[0]).await, State::Cancelled);
    assert_eq!(w.error_kind(made[1]).await.as_deref(), Some("queue_timeout"));
}

pub(crate) async fn a_queue_timeout_fails_the_task(w: &World) {
    let impatient = |t: &mut pensum_core::NewTask| {
        t.spec.details_mut().queue_timeout = Some(Duration::from_secs(5).into());
    };
    let id = w.add(task_with(impatient)).await;
    w.pass(4.0);
    assert_eq!(w.reap().await.overdue, 0);
    w.pass(1.5);
    assert_eq!(w.reap().await.overdue, 1);
    assert_eq!(w.state(id).await, State::Failed);
    assert_eq!(w.error_kind(id).await.as_deref(), Some("queue_timeout"));
    assert!(w.get(id).await.lifecycle.dead_lettered_at.is_some());
}

pub(crate) async fn progress_and_logs_are_kept_in_order(w: &World) {
    let id = w.add(task()).await;
    let claimed = w.claim_one().await;
    let line = |n: usize| LogLine {
        at: w.now(),
        attempt: 1,
        stream: LogStream::Stdout,
        message: format!("line {n}"),
    };
    let progress = Some(Progress {
        percent: 40.0,
        message: Some("half".into()),
    });
    let beat = Beat {
        lease: claimed.lease,
        progress: progress.clone(),
        logs: vec![line(0), line(1)],
    };
    w.store.renew(vec![beat], LEASE, w.now()).await.unwrap();
    assert_eq!(w.get(id).await.progress, progress);
    let end = Finish {
        logs: vec![line(2), line(3)],
        ..Finish::new(claimed.lease, Outcome::Done(json("null")))
    };
    w.end(end).await.unwrap();
    let logs = w.store.logs("default", id, 0, 3).await.unwrap();
    assert_eq!(
        logs.iter().map(|l| l.line.message.as_str()).collect::<Vec<_>>(),
        ["line 0", "line 1", "line 2"]
    );
    let rest = w.store.logs("default", id, logs[2].seq, 10).await.unwrap();
    assert_eq!(rest.iter().map(|l| l.line.clone()).collect::<Vec<_>>(), [line(3)]);
    assert_eq!(w.get(id).await.progress, progress);
}

pub(crate) async fn yielding_on_a_pause_request_keeps_the_checkpoint(w: &World) {
    let id = w.add(task()).await;
    let claimed = w.claim_one().await;
    let applied = w.command(id, Command::Pause).await.unwrap();
    assert!(applied.interrupt.is_some());
    let beat = Beat {
        lease: claimed.lease,
        progress: None,
        logs: vec![],
    };
    let renewed = w.store.renew(vec![beat], LEASE, w.now()).await.unwrap();
    assert!(matches!(
        renewed[0],
        Renewal::Held {
            pause: true,
            cancel: false,
            ..
        }
    ));
    w.finish(
        claimed.lease,
        Outcome::Yielded {
            checkpoint: Some(json("9")),
        },
    )
    .await
    .unwrap();
    assert_eq!(w.status(id).await, Status::Paused);
    w.claim_nothing().await;
    w.command(id, Command::Resume).await.unwrap();
    let resumed = w.claim_one().await;
    assert_eq!(
        (resumed.lifecycle.attempt, resumed.checkpoint.clone()),
        (1, Some(json("9")))
    );
    w.done(&resumed).await;
}

pub(crate) async fn a_stopped_process_keeps_its_lease_while_paused(w: &World) {
    let id = w.add(task()).await;
    let claimed = w.claim_one().await;
    let unasked = Checkpoint {
        paused: true,
        ..Checkpoint::new(claimed.lease)
    };
    assert!(w.store.checkpoint(unasked.clone(), w.now()).await.unwrap().is_err());
    w.command(id, Command::Pause).await.unwrap();
    w.store.checkpoint(unasked, w.now()).await.unwrap().unwrap();
    assert_eq!(
        (w.status(id).await, w.state(id).await),
        (Status::Paused, State::Running)
    );
    let beat = Beat {
        lease: claimed.lease,
        progress: None,
        logs: vec![],
    };
    let renewed = w.store.renew(vec![beat], LEASE, w.now()).await.unwrap();
    assert!(
        matches!(renewed[0], Renewal::Held { pause: true, .. }),
        "a paused task stays paused: {renewed:?}"
    );
    let applied = w.command(id, Command::Resume).await.unwrap();
    assert_eq!(applied.interrupt, Some(pensum_core::transition::Interrupt::Resume));
    assert_eq!(w.status(id).await, Status::Running);
    w.done(&claimed).await;
}
