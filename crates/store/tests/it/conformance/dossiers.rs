//! Copies: what one store exports, another one imports and goes on with.

use std::time::Duration;

use pensum_core::dossier::{Bookmark, Dossier, Import, PARCEL_BYTES, Parcel, Remembered};
use pensum_core::outcome::Wait;
use pensum_core::store::{Call, Command, Finish, IdempotencyKey, Rejected};
use pensum_core::task::{Dependency, OnConflict};
use pensum_core::transition::EventKind;
use pensum_core::{Json, Name, Outcome, State, Status, StoreError, TaskFilter, TaskId};

use super::World;
use super::settled::{broken, claim_of, end, line, of, of_with, settle, start, unique};
use super::world::{json, retry, task, task_with};

/// Everything in a store, page by page.
async fn export(w: &World, limit: usize) -> (Vec<Dossier>, Vec<Remembered>) {
    let (mut dossiers, mut remembered) = (Vec::new(), Vec::new());
    let mut next = Some(Bookmark::START);
    while let Some(from) = next {
        let parcel = w.store.export(from, limit, w.now()).await.unwrap();
        assert!(parcel.dossiers.len() <= limit && parcel.remembered.len() <= limit);
        dossiers.extend(parcel.dossiers);
        remembered.extend(parcel.remembered);
        next = parcel.next;
    }
    (dossiers, remembered)
}

/// Everything that a store keeps, in another one of its kind.
pub(crate) async fn copy(w: &World) -> World {
    let other = w.another().await;
    let import = |step| other.store.import(step, w.now());
    import(Import::Begin).await.unwrap();
    let mut next = Some(Bookmark::START);
    while let Some(from) = next {
        let mut parcel = w.store.export(from, 3, w.now()).await.unwrap();
        next = parcel.next.take();
        import(Import::Parcel(parcel)).await.unwrap();
    }
    import(Import::End).await.unwrap();
    other
}

/// The refusal of a step.
async fn refusal(w: &World, step: Import) -> String {
    match w.store.import(step, w.now()).await {
        Err(StoreError::Conflict(why)) => why,
        other => panic!("the step should be refused: {other:?}"),
    }
}

pub(crate) async fn a_copy_equals_its_original(w: &World) {
    settle(w).await;
    let call = with_key(w, "default", "request", 1);
    w.store.enqueue(&call, vec![of("ready")]).await.unwrap();
    let other = copy(w).await;
    let (ours, theirs) = (export(w, 4).await, export(&other, 7).await);
    for (one, copied) in ours.0.iter().zip(&theirs.0) {
        let fields = one.differences(copied);
        assert!(fields.is_empty(), "{fields:?} differ:\n{one:#?}\n{copied:#?}");
    }
    assert_eq!(ours.0.len(), theirs.0.len());
    assert_eq!(ours.1, theirs.1);
    for dossier in &ours.0 {
        let (namespace, id) = (&*dossier.namespace, dossier.task.id);
        assert_eq!(read(w, namespace, id).await, read(&other, namespace, id).await);
    }
    for namespace in ["default", "elsewhere"] {
        let counts = |w: &World| {
            let (store, now) = (w.store.clone(), w.now());
            async move { store.counts(namespace, now).await.unwrap() }
        };
        assert_eq!(counts(w).await, counts(&other).await);
    }
    for status in Status::ALL {
        let filter = TaskFilter {
            status: vec![status],
            ..TaskFilter::default()
        };
        assert_eq!(w.list(filter.clone()).await, other.list(filter).await, "{status}");
    }
    for (tag, key) in [(Some("red"), None), (Some("late"), None), (None, Some("one"))] {
        let filter = TaskFilter {
            tag: tag.map(str::to_owned),
            key: key.map(Name::from),
            ..TaskFilter::default()
        };
        let found = other.list(filter.clone()).await;
        assert!(!found.is_empty(), "{filter:?}");
        assert_eq!(w.list(filter).await, found);
    }
    other.verify().await;
}

/// What the reads tell of a task.
async fn read(w: &World, namespace: &str, id: TaskId) -> String {
    let store = &w.store;
    let record = store.task(namespace, id).await.unwrap();
    let executions = store.executions(namespace, id).await.unwrap();
    // The sequence numbers of events that are not stored as such are not the same everywhere; a dossier has them.
    let events: Vec<_> = store.events(namespace, id).await.unwrap();
    let events: Vec<_> = events
        .iter()
        .map(|e| (e.at, e.kind, &e.actor, e.attempt, &e.error))
        .collect();
    let logs = store.logs(namespace, id, 0, usize::MAX).await.unwrap();
    let dependants = store.dependants(namespace, id).await.unwrap();
    let (inbox, steps) = (store.inbox(id).await.unwrap(), store.steps(id).await.unwrap());
    format!("{record:#?} {executions:#?} {events:#?} {logs:#?} {dependants:#?} {inbox:#?} {steps:#?}")
}

/// Works off everything that there is; tells what happened.
async fn work_off(w: &World) -> Vec<String> {
    let mut told = Vec::new();
    let (dossiers, _) = export(w, 100).await;
    for round in 0..12u32 {
        let claimed = w.claim(100).await;
        for claimed in &claimed {
            told.push(format!(
                "{} starts: {:?} {:?}",
                claimed.lease.task, claimed.lifecycle.attempt, claimed.checkpoint
            ));
        }
        for (n, claimed) in claimed.iter().enumerate() {
            let outcome = match (n as u32 + round) % 4 {
                0 if round < 4 => retry(),
                1 if round < 4 => Outcome::Fail(broken("boom")),
                _ => Outcome::Done(json("1")),
            };
            let applied = w.finish(claimed.lease, outcome).await.unwrap();
            told.push(format!("{} ends: {:?}", claimed.lease.task, applied.ended));
        }
        for dossier in &dossiers {
            let command = match round {
                3 => Command::Resume,
                4 => Command::Signal {
                    name: Name::from("go"),
                    payload: Json::null(),
                },
                5 => Command::Retry,
                10 => Command::Delete,
                _ => continue,
            };
            told.push(format!("{:?}", w.command(dossier.task.id, command).await));
        }
        if round == 9 {
            for Dossier { namespace, task, .. } in &dossiers {
                let events = w.store.events(namespace, task.id).await.unwrap();
                let events: Vec<_> = events.iter().map(|event| (event.kind, event.attempt)).collect();
                told.push(format!("{}: {events:?}", task.id));
            }
        }
        w.pass(100.0);
        let reaped = w.reap().await;
        told.push(format!("{} woken, ended {:?}", reaped.woken, reaped.ended));
        let counts = w.store.counts("default", w.now()).await.unwrap();
        told.push(format!("{counts:?}"));
    }
    told
}

pub(crate) async fn a_copy_goes_on_like_its_original(w: &World) {
    settle(w).await;
    let other = copy(w).await;
    let (ours, theirs) = (work_off(w).await, work_off(&other).await);
    for (one, copied) in ours.iter().zip(&theirs) {
        assert_eq!(one, copied);
    }
    assert_eq!(ours.len(), theirs.len());
    assert!(ours.len() > 100, "{ours:#?}");
    other.verify().await;
}

pub(crate) async fn a_copy_goes_on_counting_where_its_original_stopped(w: &World) {
    settle(w).await;
    let other = copy(w).await;
    let (dossiers, _) = export(w, 100).await;
    let row = dossiers.iter().map(Dossier::row).max().unwrap();
    let new = start(&other, of("new")).await;
    assert_eq!(new.lease.task.row(), row + 1);
    other.done(&new).await;
    // What comes to a task comes after all that it had.
    let saved = dossiers.iter().find(|d| &*d.task.spec.queue == "saved").unwrap();
    assert!(!saved.inbox.is_empty() && !saved.logs.is_empty());
    let claimed = claim_of(&other, "saved").await;
    let id = saved.task.id;
    assert_eq!(claimed.lease.task, id);
    let signal = Command::Signal {
        name: Name::from("last"),
        payload: Json::null(),
    };
    other.command(id, signal).await.unwrap();
    let signals = other.store.inbox(id).await.unwrap();
    assert_eq!((signals.len(), &*signals.last().unwrap().name), (4, "last"));
    let finish = Finish {
        logs: vec![line(&other, "the last line")],
        ..Finish::new(claimed.lease, retry())
    };
    other.end(finish).await.unwrap();
    let logs = other.store.logs("default", id, 0, 100).await.unwrap();
    assert_eq!(logs.len(), saved.logs.len() + 1);
    assert_eq!(logs.last().unwrap().line.message, "the last line");
    let after = other
        .store
        .logs("default", id, logs[logs.len() - 2].seq, 100)
        .await
        .unwrap();
    assert_eq!(after.len(), 1);
    let events = other.store.events("default", id).await.unwrap();
    let kinds: Vec<_> = events.iter().rev().take(3).map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Retrying, EventKind::Signalled, EventKind::Started]);
}

pub(crate) async fn what_a_copy_waits_for_still_comes(w: &World) {
    let parent = start(w, of("parent")).await;
    let wait = Outcome::Wait {
        on: Wait::Children,
        checkpoint: None,
    };
    let finish = Finish {
        spawn: vec![of("child")],
        ..Finish::new(parent.lease, wait)
    };
    w.end(finish).await.unwrap();
    let needed = w.add(of("needed")).await;
    let dependant = of_with("dependant", |t| t.depends_on = vec![Dependency::Task(needed)].into());
    let dependant = w.add(dependant).await;
    let first = w
        .add_all(vec![
            of_with("first", |t| t.depends_on = vec![Dependency::Item(1)].into()),
            of("second"),
        ])
        .await[0];
    let other = copy(w).await;
    for queue in ["child", "needed", "second"] {
        let claimed = claim_of(&other, queue).await;
        other.done(&claimed).await;
    }
    for (queue, id) in [
        ("parent", parent.lease.task),
        ("dependant", dependant),
        ("first", first),
    ] {
        let claimed = claim_of(&other, queue).await;
        assert_eq!(claimed.lease.task, id);
        other.done(&claimed).await;
    }
    other.verify().await;
}

pub(crate) async fn unique_keys_are_held_in_a_copy_as_before(w: &World) {
    let held = w.add(unique("held", "held", None, OnConflict::Keep)).await;
    let mut ended = Vec::new();
    for (key, ttl) in [("lasting", Some(900)), ("passing", None)] {
        let claimed = start(w, unique("ended", key, ttl, OnConflict::Keep)).await;
        end(w, &claimed, Outcome::Fail(broken("boom"))).await;
        ended.push(claimed.lease.task);
    }
    let other = copy(w).await;
    let refused = |holder: TaskId, key: &str| {
        StoreError::Rejected(Rejected::UniqueTaken {
            item: 0,
            key: Name::from(key),
            holder,
        })
    };
    let add = |key: &'static str| other.try_add(vec![unique("new", key, None, OnConflict::Reject)]);
    assert_eq!(add("held").await.unwrap_err(), refused(held, "held"));
    assert_eq!(add("lasting").await.unwrap_err(), refused(ended[0], "lasting"));
    let new = add("passing").await.unwrap()[0];
    // A retry needs the key again, which the copy knows.
    let answer = other.command(ended[1], Command::Retry).await;
    assert_eq!(
        answer,
        Err(Rejected::UniqueTakenByOther {
            task: ended[1],
            holder: new
        })
    );
    other.command(ended[0], Command::Retry).await.unwrap();
    other.pass(900.0);
    add("lasting").await.unwrap();
    other.cancel(held).await.unwrap();
    add("held").await.unwrap();
}

fn with_key(w: &World, namespace: &str, key: &str, digest: u8) -> Call {
    Call {
        idempotency: Some(IdempotencyKey {
            key: key.to_owned(),
            digest: [digest; 32],
        }),
        ..w.call_in(namespace)
    }
}

pub(crate) async fn idempotency_keys_answer_in_a_copy_as_before(w: &World) {
    let mut made = Vec::new();
    // More than a page of them, and of more than one namespace.
    for n in 0..7 {
        for namespace in ["default", "Other", "other"] {
            let call = with_key(w, namespace, &format!("key {n}"), n);
            let ids = w.store.enqueue(&call, vec![task(), task()]).await.unwrap();
            made.push((call, ids));
        }
    }
    let other = copy(w).await;
    assert_eq!(export(w, 4).await.1, export(&other, 100).await.1);
    for (call, ids) in &made {
        let again = other.store.enqueue(call, vec![task(), task()]).await.unwrap();
        assert!(again.iter().zip(ids).all(|(a, b)| a.id == b.id && !a.created));
        let mut changed = call.clone();
        changed.idempotency = with_key(w, "", &changed.idempotency.unwrap().key, 200).idempotency;
        let refused = other.store.enqueue(&changed, vec![task()]).await.unwrap_err();
        assert_eq!(refused, StoreError::Rejected(Rejected::IdempotencyMismatch));
    }
    other.pass(25.0 * 3600.0);
    let call = Call {
        now: other.now(),
        ..made[0].0.clone()
    };
    assert!(other.store.enqueue(&call, vec![task()]).await.unwrap()[0].created);
}

pub(crate) async fn a_store_with_running_tasks_is_not_exported(w: &World) {
    w.add(of("other")).await;
    let claimed = start(w, of("busy")).await;
    let refused = w.store.export(Bookmark::START, 10, w.now()).await.unwrap_err();
    let StoreError::Conflict(why) = refused else {
        panic!("{refused}")
    };
    let until = claimed.lifecycle.lease.unwrap().expires_at.to_string();
    assert!(why.contains("1 task is running on tester-node"), "{why}");
    assert!(why.contains(&until), "{why} should name {until}");
    w.done(&claimed).await;
    assert_eq!(export(w, 10).await.0.len(), 2);
    // A wait holds no lease.
    let waiting = start(w, of("waiting")).await;
    let on = Wait::Until(w.now().plus(Duration::from_secs(5)));
    end(w, &waiting, Outcome::Wait { on, checkpoint: None }).await;
    assert_eq!(export(w, 10).await.0.len(), 3);
}

pub(crate) async fn only_an_empty_store_takes_a_copy(w: &World) {
    assert!(refusal(w, Import::End).await.contains("has begun"));
    assert!(
        refusal(w, Import::Parcel(Parcel::default()))
            .await
            .contains("has begun")
    );
    let first = w.add(task()).await;
    assert!(refusal(w, Import::Begin).await.contains("holds 1 task already"));
    w.add(task()).await;
    assert!(refusal(w, Import::Begin).await.contains("holds 2 tasks already"));
    let other = copy(w).await;
    assert!(refusal(&other, Import::Begin).await.contains("holds 2 tasks already"));
    // One that holds nothing any more is empty, too.
    w.claim(2).await;
    w.pass(31.0);
    w.reap().await;
    for id in w.list(TaskFilter::default()).await {
        w.command(id, Command::Delete).await.unwrap();
    }
    assert_eq!(w.store.task("default", first).await.unwrap(), None);
    w.store.import(Import::Begin, w.now()).await.unwrap();
    assert!(refusal(w, Import::Begin).await.contains("not finished"));
    let parcel = other.store.export(Bookmark::START, 10, w.now()).await.unwrap();
    w.store.import(Import::Parcel(parcel), w.now()).await.unwrap();
    w.store.import(Import::End, w.now()).await.unwrap();
    assert_eq!(export(w, 10).await, export(&other, 10).await);
}

pub(crate) async fn a_page_that_does_not_follow_the_last_one_changes_nothing(w: &World) {
    w.add_all(vec![task(), task(), task()]).await;
    let page = w.store.export(Bookmark::START, 10, w.now()).await.unwrap();
    let part = |rows: &[usize]| {
        Import::Parcel(Parcel {
            dossiers: rows.iter().map(|row| page.dossiers[*row].clone()).collect(),
            ..Parcel::default()
        })
    };
    let other = w.another().await;
    let import = |step| other.store.import(step, w.now());
    import(Import::Begin).await.unwrap();
    import(part(&[0])).await.unwrap();
    assert!(refusal(&other, part(&[0])).await.contains("in their order"));
    assert!(refusal(&other, part(&[2, 1])).await.contains("in their order"));
    let mut running = page.dossiers[1].clone();
    running.task.lifecycle.state = State::Running;
    let running = Parcel {
        dossiers: vec![running],
        ..Parcel::default()
    };
    assert!(refusal(&other, Import::Parcel(running)).await.contains("is running"));
    assert_eq!(other.list(TaskFilter::default()).await.len(), 1);
    import(part(&[1, 2])).await.unwrap();
    import(Import::End).await.unwrap();
    assert_eq!(export(w, 10).await, export(&other, 10).await);
}

pub(crate) async fn pages_of_an_export_are_bounded_in_number_and_weight(w: &World) {
    let large = format!("\"{}\"", "x".repeat(1 << 20));
    let heavy = || task_with(|t| t.spec.parameters = json(&large));
    w.add_all(vec![task(), task(), task(), task(), task()]).await;
    for _ in 0..3 {
        w.add_all(vec![heavy(), heavy(), heavy(), heavy()]).await;
    }
    let mut sizes = Vec::new();
    let mut next = Some(Bookmark::START);
    while let Some(from) = next {
        let limit = if sizes.len() < 2 { 2 } else { 1000 };
        let parcel = w.store.export(from, limit, w.now()).await.unwrap();
        let weight: usize = parcel.dossiers.iter().map(Dossier::weight).sum();
        assert!(weight < PARCEL_BYTES + (2 << 20), "{weight}");
        sizes.push(parcel.dossiers.len());
        next = parcel.next;
    }
    assert_eq!(sizes, [2, 2, 9, 4, 0]);
}
