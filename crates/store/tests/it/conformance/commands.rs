//! What people ask of tasks.

use std::time::Duration;

use pensum_core::input::Patch;
use pensum_core::store::{Call, Command, IdempotencyKey, Rejected, StoreError};
use pensum_core::task::{NewTask, OnConflict, Unique};
use pensum_core::transition::Interrupt;
use pensum_core::{Name, Outcome, Priority, State, Status};

use super::World;
use super::world::{ids, json, retry, task, task_with};

pub(crate) async fn cancel_of_a_queued_task_ends_it(w: &World) {
    let id = w.add(task()).await;
    let applied = w
        .command(
            id,
            Command::Cancel {
                reason: Some("not needed".into()),
            },
        )
        .await
        .unwrap();
    assert_eq!(
        (applied.state, applied.ended),
        (Some(State::Cancelled), vec![(id, State::Cancelled)])
    );
    let error = w.get(id).await.error.unwrap();
    assert_eq!(
        (error.kind.as_str(), error.message.as_str()),
        ("cancelled", "not needed")
    );
    assert_eq!(w.cancel(id).await, Err(Rejected::Nothing(id)));
    w.claim_nothing().await;
}

pub(crate) async fn cancel_of_a_running_task_asks_its_holder(w: &World) {
    let id = w.add(task()).await;
    let claimed = w.claim_one().await;
    let applied = w
        .command(
            id,
            Command::Cancel {
                reason: Some("enough".into()),
            },
        )
        .await
        .unwrap();
    assert_eq!(
        (applied.state, applied.interrupt),
        (Some(State::Running), Some(Interrupt::Cancel))
    );
    assert_eq!(w.cancel(id).await, Err(Rejected::Nothing(id)));
    assert!(w.get(id).await.lifecycle.cancel_requested_at.is_some());
    w.finish(claimed.lease, Outcome::Cancelled).await.unwrap();
    let record = w.get(id).await;
    assert_eq!(record.lifecycle.state, State::Cancelled);
    assert_eq!(record.error.unwrap().message, "enough");
}

pub(crate) async fn cancel_beats_a_later_failure(w: &World) {
    let id = w.add(task()).await;
    let claimed = w.claim_one().await;
    w.cancel(id).await.unwrap();
    w.finish(claimed.lease, retry()).await.unwrap();
    assert_eq!(w.state(id).await, State::Cancelled);
    let finished = w.add(task()).await;
    let claimed = w.claim_one().await;
    w.cancel(finished).await.unwrap();
    w.done(&claimed).await;
    assert_eq!(w.state(finished).await, State::Completed);
}

pub(crate) async fn a_cancel_while_backing_off_ends_it(w: &World) {
    let id = w.add(task()).await;
    let claimed = w.claim_one().await;
    w.finish(claimed.lease, retry()).await.unwrap();
    assert_eq!(w.status(id).await, Status::Retrying);
    w.cancel(id).await.unwrap();
    assert_eq!(w.state(id).await, State::Cancelled);
    w.pass(1000.0);
    w.claim_nothing().await;
}

pub(crate) async fn ended_tasks_refuse_what_makes_no_sense(w: &World) {
    let id = w.add(task()).await;
    let claimed = w.claim_one().await;
    w.done(&claimed).await;
    let signal = Command::Signal {
        name: Name::from("x"),
        payload: json("1"),
    };
    let cancel = Command::Cancel { reason: None };
    for command in [
        cancel,
        Command::Pause,
        Command::Resume,
        Command::Retry,
        Command::RunNow,
        signal,
    ] {
        let refused = w.command(id, command.clone()).await;
        assert!(
            matches!(
                refused,
                Err(Rejected::Forbidden {
                    state: State::Completed,
                    ..
                })
            ),
            "{command:?}: {refused:?}"
        );
    }
    let queued = w.add(task()).await;
    assert!(matches!(
        w.command(queued, Command::Resume).await,
        Err(Rejected::Forbidden { .. })
    ));
    assert!(matches!(
        w.command(queued, Command::Retry).await,
        Err(Rejected::Forbidden { .. })
    ));
    assert_eq!(w.command(queued, Command::RunNow).await, Err(Rejected::Nothing(queued)));
}

pub(crate) async fn retry_revives_a_failed_task_with_all_its_retries(w: &World) {
    let id = w.add(task_with(|t| t.spec.max_retries = Some(0))).await;
    let claimed = w.claim_one().await;
    w.finish(claimed.lease, retry()).await.unwrap();
    assert_eq!(w.state(id).await, State::Failed);
    let applied = w.command(id, Command::Retry).await.unwrap();
    assert_eq!(applied.state, Some(State::Queued));
    let record = w.get(id).await;
    assert_eq!(
        (record.lifecycle.failures, record.lifecycle.dead_lettered_at),
        (0, None)
    );
    let again = w.claim_one().await;
    assert_eq!(again.lifecycle.attempt, 2);
    w.done(&again).await;
    assert_eq!(w.state(id).await, State::Completed);
    let attempts: Vec<_> = w
        .store
        .executions("default", id)
        .await
        .unwrap()
        .iter()
        .map(|e| e.attempt)
        .collect();
    assert_eq!(attempts, [1, 2]);
}

pub(crate) async fn retry_of_a_backing_off_task_makes_it_due(w: &World) {
    let id = w.add(task()).await;
    let claimed = w.claim_one().await;
    w.finish(claimed.lease, retry()).await.unwrap();
    w.claim_nothing().await;
    w.command(id, Command::Retry).await.unwrap();
    assert_eq!(ids(&w.claim(1).await), [id]);
}

pub(crate) async fn unknown_tasks_are_not_found_by_any_command(w: &World) {
    let id = pensum_core::TaskId::mint(w.now(), 12345, 6789);
    for command in [
        Command::Cancel { reason: None },
        Command::Pause,
        Command::Retry,
        Command::Delete,
    ] {
        assert_eq!(w.command(id, command).await, Err(Rejected::NotFound(id)));
    }
    let updated = w.store.update(&w.call(), id, Patch::default(), None).await.unwrap();
    assert_eq!(updated.unwrap_err(), Rejected::NotFound(id));
    assert_eq!(w.store.task("default", id).await.unwrap(), None);
}

pub(crate) async fn delete_removes_everything_but_refuses_the_running(w: &World) {
    let id = w.add(task()).await;
    let claimed = w.claim_one().await;
    assert!(matches!(
        w.command(id, Command::Delete).await,
        Err(Rejected::Forbidden { .. })
    ));
    w.done(&claimed).await;
    w.command(id, Command::Delete).await.unwrap();
    assert_eq!(w.store.task("default", id).await.unwrap(), None);
    assert!(w.store.events("default", id).await.unwrap().is_empty());
    let queued = w.add(task()).await;
    w.command(queued, Command::Delete).await.unwrap();
    w.claim_nothing().await;
}

fn unique(on_conflict: OnConflict, ttl: Option<u64>) -> NewTask {
    task_with(|t| {
        let unique = Unique {
            key: Name::from("daily"),
            ttl: ttl.map(Duration::from_secs),
            on_conflict,
        };
        t.unique = Some(Box::new(unique));
    })
}

pub(crate) async fn unique_keys_keep_replace_and_reject(w: &World) {
    let first = w.add(unique(OnConflict::Keep, None)).await;
    let again = w
        .store
        .enqueue(&w.call(), vec![unique(OnConflict::Keep, None)])
        .await
        .unwrap();
    assert_eq!((again[0].id, again[0].created), (first, false));
    let refused = w
        .try_add(vec![task(), unique(OnConflict::Reject, None)])
        .await
        .unwrap_err();
    assert!(matches!(
        refused,
        StoreError::Rejected(Rejected::UniqueTaken { item: 1, holder, .. }) if holder == first
    ));
    let replacing = w.add(unique(OnConflict::Replace, None)).await;
    assert_ne!(replacing, first);
    assert_eq!(w.state(first).await, State::Cancelled);
    assert_eq!(w.error_kind(first).await.as_deref(), Some("replaced"));
    let claimed = w.claim(10).await;
    assert_eq!(ids(&claimed), [replacing]);
    assert_eq!(w.add(unique(OnConflict::Replace, None)).await, replacing);
    let other_handler = task_with(|t| {
        t.spec.handler = Name::from("log");
        t.unique = unique(OnConflict::Reject, None).unique;
    });
    w.add(other_handler).await;
}

pub(crate) async fn a_unique_key_is_free_after_the_end_unless_it_has_a_time_to_live(w: &World) {
    let first = w.add(unique(OnConflict::Keep, None)).await;
    let claimed = w.claim_one().await;
    w.done(&claimed).await;
    let second = w.add(unique(OnConflict::Keep, Some(60))).await;
    assert_ne!(first, second);
    let claimed = w.claim_one().await;
    w.done(&claimed).await;
    assert_eq!(w.add(unique(OnConflict::Keep, Some(60))).await, second);
    w.pass(61.0);
    assert_ne!(w.add(unique(OnConflict::Keep, Some(60))).await, second);
}

pub(crate) async fn a_retry_takes_its_unique_key_again_or_is_refused(w: &World) {
    let first = w.add(unique(OnConflict::Keep, None)).await;
    let claimed = w.claim_one().await;
    w.fail(&claimed).await;
    let second = w.add(unique(OnConflict::Keep, None)).await;
    assert_ne!(first, second);
    let refused = w.command(first, Command::Retry).await;
    assert_eq!(
        refused,
        Err(Rejected::UniqueTakenByOther {
            task: first,
            holder: second
        })
    );
    w.cancel(second).await.unwrap();
    w.command(first, Command::Retry).await.unwrap();
    assert_eq!(w.add(unique(OnConflict::Keep, None)).await, first);
}

pub(crate) async fn unique_duplicates_within_a_batch_stand_for_one_task(w: &World) {
    let both = vec![unique(OnConflict::Keep, None), unique(OnConflict::Keep, None)];
    let made = w.store.enqueue(&w.call(), both).await.unwrap();
    assert_eq!(
        (made[0].id, made[0].created, made[1].created),
        (made[1].id, true, false)
    );
    assert_eq!(w.claim(10).await.len(), 1);
    let mut rejecting = vec![unique(OnConflict::Reject, None), unique(OnConflict::Reject, None)];
    for task in &mut rejecting {
        task.spec.handler = Name::from("log");
    }
    let refused = w.try_add(rejecting).await.unwrap_err();
    assert!(
        matches!(
            refused,
            StoreError::Rejected(Rejected::UniqueTwice {
                item: 1,
                earlier: 0,
                ..
            })
        ),
        "{refused}"
    );
}

fn with_key(w: &World, key: &str, digest: u8) -> Call {
    Call {
        idempotency: Some(IdempotencyKey {
            key: key.to_owned(),
            digest: [digest; 32],
        }),
        ..w.call()
    }
}

pub(crate) async fn an_idempotency_key_answers_the_same_and_refuses_another_request(w: &World) {
    let first = w
        .store
        .enqueue(&with_key(w, "k", 1), vec![task(), task()])
        .await
        .unwrap();
    let again = w
        .store
        .enqueue(&with_key(w, "k", 1), vec![task(), task()])
        .await
        .unwrap();
    assert_eq!(
        first.iter().map(|e| e.id).collect::<Vec<_>>(),
        again.iter().map(|e| e.id).collect::<Vec<_>>()
    );
    assert!(first[0].created && !again[0].created);
    let other = w.store.enqueue(&with_key(w, "k", 2), vec![task()]).await.unwrap_err();
    assert_eq!(other, StoreError::Rejected(Rejected::IdempotencyMismatch));
    assert_eq!(w.claim(10).await.len(), 2);
    w.pass(25.0 * 3600.0);
    let fresh = w.store.enqueue(&with_key(w, "k", 2), vec![task()]).await.unwrap();
    assert!(fresh[0].created);
}

pub(crate) async fn an_idempotent_command_happens_once(w: &World) {
    let id = w.add(task_with(|t| t.spec.max_retries = Some(0))).await;
    let claimed = w.claim_one().await;
    w.finish(claimed.lease, retry()).await.unwrap();
    let call = with_key(w, "retry-it", 1);
    w.store
        .command(&call, vec![id], Command::Retry)
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    let claimed = w.claim_one().await;
    w.finish(claimed.lease, retry()).await.unwrap();
    let replay = w
        .store
        .command(&call, vec![id], Command::Retry)
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    assert_eq!((replay.state, w.state(id).await), (Some(State::Failed), State::Failed));
    let other = w
        .store
        .command(&with_key(w, "retry-it", 2), vec![id], Command::Retry)
        .await
        .unwrap_err();
    assert_eq!(other, StoreError::Rejected(Rejected::IdempotencyMismatch));
}

pub(crate) async fn an_update_changes_what_it_may_and_refuses_the_rest(w: &World) {
    let id = w.add(task()).await;
    let update = async |patch: Patch| w.store.update(&w.call(), id, patch, None).await.unwrap();
    let at = w.now().plus(Duration::from_secs(100));
    let patch = Patch {
        name: Some(Some("Renamed".into())),
        parameters: Some(json(r#"{"new":true}"#)),
        queue: Some("other".into()),
        tags: Some(vec!["red".into()]),
        max_retries: Some(9),
        run_at: Some(at),
        ..Patch::default()
    };
    let record = update(patch).await.unwrap();
    assert_eq!(record.spec.display_name(), "Renamed");
    assert_eq!(
        (&*record.spec.queue, record.spec.max_retries(), record.lifecycle.run_at),
        ("other", 9, at)
    );
    assert_eq!(w.get(id).await, record);
    w.claim_nothing().await;
    w.pass(101.0);
    let claimed = w.claim_one().await;
    assert_eq!(
        (claimed.spec.parameters.get(), &*claimed.spec.queue),
        (r#"{"new":true}"#, "other")
    );
    let running = update(Patch {
        parameters: Some(json("1")),
        ..Patch::default()
    })
    .await;
    assert!(matches!(
        running,
        Err(Rejected::Forbidden {
            state: State::Running,
            ..
        })
    ));
    update(Patch {
        priority: Some(Priority::High),
        ..Patch::default()
    })
    .await
    .unwrap();
    w.done(&claimed).await;
    let ended = update(Patch {
        priority: Some(Priority::Low),
        ..Patch::default()
    })
    .await;
    assert!(matches!(
        ended,
        Err(Rejected::Forbidden {
            state: State::Completed,
            ..
        })
    ));
    let record = update(Patch {
        description: Some(Some("kept".into())),
        ..Patch::default()
    })
    .await
    .unwrap();
    assert_eq!(record.spec.priority, Priority::High);
    let tagged = pensum_core::TaskFilter {
        tag: Some("red".into()),
        ..Default::default()
    };
    assert_eq!(w.list(tagged).await, [id]);
}

pub(crate) async fn a_failed_task_is_retried_with_other_parameters(w: &World) {
    let id = w.add(task()).await;
    let failed = w.claim_one().await;
    w.fail(&failed).await;
    let version = w.get(id).await.version;
    let patch = Patch {
        parameters: Some(json(r#"{"mended":true}"#)),
        execution_context: Some(json(r#"{"by":"hand"}"#)),
        ..Patch::default()
    };
    let update = async |patch: Patch, version| w.store.update(&w.call(), id, patch, version).await.unwrap();
    let record = update(patch.clone(), Some(version)).await.unwrap();
    assert_eq!(record.spec.parameters.get(), r#"{"mended":true}"#);
    assert_eq!((record.lifecycle.state, record.version), (State::Failed, version + 1));
    assert!(record.lifecycle.dead_lettered_at.is_some() && record.error.is_some());
    assert_eq!(w.get(id).await, record);
    let stale = update(patch.clone(), Some(version)).await;
    assert!(matches!(stale, Err(Rejected::VersionMismatch { .. })), "{stale:?}");
    // Where and when it runs follows from its end, until it is queued again.
    let at = w.now().plus(Duration::from_secs(100));
    for refused in [
        Patch {
            queue: Some("other".into()),
            ..patch.clone()
        },
        Patch {
            run_at: Some(at),
            ..patch.clone()
        },
        Patch {
            priority: Some(Priority::Low),
            ..patch.clone()
        },
    ] {
        let answer = update(refused, None).await;
        let Err(Rejected::Forbidden {
            state: State::Failed, ..
        }) = answer
        else {
            panic!("{answer:?}");
        };
    }
    assert_eq!(w.get(id).await, record);
    w.command(id, Command::Retry).await.unwrap();
    let again = w.claim_one().await;
    assert_eq!(
        (again.lease.task, again.spec.parameters.get()),
        (id, r#"{"mended":true}"#)
    );
    w.done(&again).await;
    let answer = update(patch, None).await;
    assert!(
        matches!(
            answer,
            Err(Rejected::Forbidden {
                state: State::Completed,
                ..
            })
        ),
        "{answer:?}"
    );
    // So can a cancelled one, which can be retried too.
    let id = w.add(task()).await;
    w.command(id, Command::Cancel { reason: None }).await.unwrap();
    let patch = Patch {
        parameters: Some(json("7")),
        ..Patch::default()
    };
    let record = w.store.update(&w.call(), id, patch, None).await.unwrap().unwrap();
    assert_eq!(
        (record.lifecycle.state, record.spec.parameters.get()),
        (State::Cancelled, "7")
    );
    w.command(id, Command::Retry).await.unwrap();
    assert_eq!(w.claim_one().await.spec.parameters.get(), "7");
}

pub(crate) async fn an_update_of_a_stale_version_is_refused(w: &World) {
    let id = w.add(task()).await;
    let version = w.get(id).await.version;
    let patch = || Patch {
        priority: Some(Priority::High),
        ..Patch::default()
    };
    let record = w
        .store
        .update(&w.call(), id, patch(), Some(version))
        .await
        .unwrap()
        .unwrap();
    assert!(record.version > version);
    let stale = w.store.update(&w.call(), id, patch(), Some(version)).await.unwrap();
    assert!(matches!(stale, Err(Rejected::VersionMismatch { expected, .. }) if expected == version));
}

pub(crate) async fn a_full_inbox_refuses_signals(w: &World) {
    let id = w.add(task()).await;
    let signal = || Command::Signal {
        name: Name::from("x"),
        payload: json("1"),
    };
    for _ in 0..pensum_core::store::INBOX_MAX {
        w.command(id, signal()).await.unwrap();
    }
    assert_eq!(w.command(id, signal()).await, Err(Rejected::InboxFull(id)));
}
