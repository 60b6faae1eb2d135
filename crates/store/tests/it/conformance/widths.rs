//! Queues that let more than one task of a key run at once.

use std::time::Duration;

use pensum_core::queue::{QueueCommand, QueueSettings};
use pensum_core::store::{Claimed, Command};
use pensum_core::{ErrorInfo, Name, NewTask, Outcome, Priority, Status, TaskId};

use super::World;
use super::world::{LEASE, ids, task_with};

fn wide(width: u32) -> QueueSettings {
    QueueSettings {
        max_concurrent_per_key: Some(width),
        ..QueueSettings::default()
    }
}

async fn put(w: &World, queue: &str, settings: QueueSettings) {
    let put = w.store.put_queue(&w.call(), Name::from(queue), settings, None).await;
    put.unwrap();
}

async fn ask(w: &World, queue: &str, command: QueueCommand) {
    let asked = w.store.command_queue(&w.call(), Name::from(queue), command).await;
    asked.unwrap();
}

fn keyed(queue: &str, key: &str) -> NewTask {
    task_with(|t| {
        t.spec.queue = Name::from(queue);
        t.spec.key = Some(Name::from(key));
    })
}

async fn add<const N: usize>(w: &World, tasks: [NewTask; N]) -> [TaskId; N] {
    w.add_all(tasks.into()).await.try_into().unwrap()
}

/// What starts now, in order.
async fn start(w: &World) -> Vec<TaskId> {
    let started = ids(&w.claim(20).await);
    w.verify().await;
    started
}

/// Ends a task that runs.
async fn end(w: &World, claimed: &[Claimed], task: TaskId) {
    w.done(claimed.iter().find(|claimed| claimed.lease.task == task).unwrap())
        .await;
    w.verify().await;
}

pub(crate) async fn of_a_key_as_many_run_as_its_queue_lets(w: &World) {
    put(w, "wide", wide(2)).await;
    let a = w.add_all(vec![keyed("wide", "a"); 4]).await;
    let b = w.add_all(vec![keyed("wide", "b"); 3]).await;
    let narrow = w.add_all(vec![keyed("narrow", "c"); 2]).await;
    let claimed = w.claim(20).await;
    assert_eq!(ids(&claimed), [a[0], a[1], b[0], b[1], narrow[0]]);
    assert_eq!(w.store.key_holders("default", "a").await.unwrap(), [a[0], a[1]]);
    assert_eq!(start(w).await, []);
    end(w, &claimed, a[1]).await;
    assert_eq!(start(w).await, [a[2]]);
    end(w, &claimed, b[0]).await;
    end(w, &claimed, b[1]).await;
    end(w, &claimed, a[0]).await;
    // The one that has come last has its turn like the others.
    let more = w.add_all(vec![keyed("wide", "b"); 2]).await;
    assert_eq!(start(w).await, [a[3], b[2], more[0]]);
    assert_eq!(start(w).await, []);
}

pub(crate) async fn a_task_of_a_narrow_queue_waits_for_its_key_and_nobody_passes_it_by(w: &World) {
    put(w, "wide", wide(3)).await;
    put(w, "wider", wide(5)).await;
    let [first, second, alone, third, fourth] = add(
        w,
        [
            keyed("wide", "k"),
            keyed("wider", "k"),
            keyed("narrow", "k"),
            keyed("wider", "k"),
            keyed("wide", "k"),
        ],
    )
    .await;
    let claimed = w.claim(20).await;
    assert_eq!(ids(&claimed), [first, second]);
    end(w, &claimed, first).await;
    assert_eq!(start(w).await, []);
    end(w, &claimed, second).await;
    // While it runs nothing of its key does, whatever the other queues say.
    let claimed = w.claim(20).await;
    assert_eq!(ids(&claimed), [alone]);
    assert_eq!(start(w).await, []);
    end(w, &claimed, alone).await;
    let fifth = w.add_all(vec![keyed("wider", "k"); 3]).await;
    // Of those that run the narrowest counts.
    let claimed = w.claim(20).await;
    assert_eq!(ids(&claimed), [third, fourth, fifth[0]]);
    end(w, &claimed, fourth).await;
    assert_eq!(start(w).await, fifth[1..]);
}

pub(crate) async fn whoever_has_a_turn_may_start_first(w: &World) {
    put(w, "wide", wide(2)).await;
    put(w, "closed", wide(2)).await;
    ask(w, "closed", QueueCommand::Pause).await;
    let [closed, first, second, third] = add(
        w,
        [
            keyed("closed", "k"),
            keyed("wide", "k"),
            keyed("wide", "k"),
            keyed("closed", "k"),
        ],
    )
    .await;
    // The task of the closed queue keeps its turn, and the others have what is left.
    for task in [first, second] {
        let claimed = w.claim(20).await;
        assert_eq!(ids(&claimed), [task]);
        end(w, &claimed, task).await;
    }
    assert_eq!(start(w).await, []);
    ask(w, "closed", QueueCommand::Resume).await;
    assert_eq!(start(w).await, [closed, third]);
}

pub(crate) async fn a_changed_width_counts_at_once(w: &World) {
    let tasks = w.add_all(vec![keyed("q", "k"); 8]).await;
    let mut claimed = w.claim(20).await;
    assert_eq!(ids(&claimed), tasks[..1]);
    put(w, "q", wide(3)).await;
    w.verify().await;
    claimed.extend(w.claim(20).await);
    assert_eq!(ids(&claimed), tasks[..3]);
    // What runs goes on to its end, and nothing starts until there are fewer.
    put(w, "q", wide(2)).await;
    for task in &tasks[..2] {
        assert_eq!(start(w).await, []);
        end(w, &claimed, *task).await;
    }
    claimed.extend(w.claim(20).await);
    assert_eq!(ids(&claimed)[3..], tasks[3..4]);
    put(w, "q", QueueSettings::default()).await;
    assert_eq!(start(w).await, []);
    end(w, &claimed, tasks[2]).await;
    assert_eq!(start(w).await, []);
    end(w, &claimed, tasks[3]).await;
    // Turns that nobody has taken yet go as well.
    put(w, "q", wide(10)).await;
    put(w, "q", wide(1)).await;
    w.verify().await;
    assert_eq!(start(w).await, tasks[4..5]);
    put(w, "q", wide(10)).await;
    assert_eq!(start(w).await, tasks[5..]);
}

pub(crate) async fn a_turn_is_given_up_by_whoever_cannot_start(w: &World) {
    put(w, "wide", wide(2)).await;
    let mut failing = keyed("wide", "k");
    failing.spec.max_retries = Some(3);
    let mut hasty = keyed("wide", "k");
    hasty.spec.details_mut().expires_at = Some(w.now().plus(Duration::from_secs(5)));
    let [fails, waits, expires, third] = add(w, [failing, keyed("wide", "k"), hasty, keyed("wide", "k")]).await;
    let claimed = w.claim(20).await;
    assert_eq!(ids(&claimed), [fails, waits]);
    // One that backs off lets others go before it, and so does one that waits for a time of its own.
    let retry = Outcome::Retry {
        error: ErrorInfo::new("boom", "it broke"),
        after: Some(Duration::from_secs(60)),
    };
    w.finish(claimed[0].lease, retry).await.unwrap();
    let until = Outcome::Again {
        after: Duration::from_secs(60),
        checkpoint: None,
    };
    w.finish(claimed[1].lease, until).await.unwrap();
    w.verify().await;
    // So does one that is overdue, before the reaper comes, and one that is paused.
    w.pass(6.0);
    let more = w.add_all(vec![keyed("wide", "k"); 3]).await;
    w.command(third, Command::Pause).await.unwrap();
    let claimed = w.claim(20).await;
    assert_eq!(ids(&claimed), more[..2]);
    w.reap().await;
    assert_eq!(w.error_kind(expires).await.as_deref(), Some("expired"));
    w.verify().await;
    w.cancel(more[2]).await.unwrap();
    w.pass(20.0);
    w.command(third, Command::Resume).await.unwrap();
    end(w, &claimed, more[0]).await;
    assert_eq!(start(w).await, [third]);
    w.pass(40.0);
    w.reap().await;
    w.verify().await;
}

pub(crate) async fn turns_follow_from_leases(w: &World) {
    put(w, "wide", wide(2)).await;
    let tasks = w.add_all(vec![keyed("wide", "k"); 4]).await;
    let claimed = w.claim(20).await;
    assert_eq!(ids(&claimed), tasks[..2]);
    w.finish(claimed[1].lease, Outcome::Released).await.unwrap();
    w.pass(LEASE.as_secs_f64() / 2.0);
    assert_eq!(start(w).await, tasks[1..2]);
    // The first lease runs out, the other one does not.
    w.pass(LEASE.as_secs_f64() / 2.0 + 1.0);
    w.reap().await;
    w.verify().await;
    assert_eq!(w.store.key_holders("default", "k").await.unwrap(), tasks[1..2]);
    assert_eq!(w.claim(20).await.len(), 1);
    assert_eq!(start(w).await, []);
}

pub(crate) async fn the_best_tasks_of_a_key_have_its_turns(w: &World) {
    put(w, "wide", wide(2)).await;
    let [first, second, third] = add(w, [(); 3].map(|()| keyed("wide", "k"))).await;
    let mut urgent = keyed("wide", "k");
    urgent.spec.priority = Priority::Urgent;
    let urgent = w.add(urgent).await;
    w.verify().await;
    assert_eq!(ids(&w.claim(1).await), [urgent]);
    w.command(first, Command::Pause).await.unwrap();
    w.verify().await;
    assert_eq!(start(w).await, [second]);
    w.command(first, Command::Resume).await.unwrap();
    assert_eq!(start(w).await, []);
    w.cancel(first).await.unwrap();
    assert_eq!(w.store.key_holders("default", "k").await.unwrap(), [second, urgent]);
    assert_eq!(w.status(third).await, Status::Ready);
    w.verify().await;
}

pub(crate) async fn wide_keys_of_a_fair_queue_take_turns(w: &World) {
    let fair = QueueSettings { fair: true, ..wide(2) };
    put(w, "fair", fair).await;
    let noisy = w.add_all(vec![keyed("fair", "noisy"); 6]).await;
    let quiet = w.add_all(vec![keyed("fair", "quiet"); 3]).await;
    let first = w.claim(1).await;
    assert_eq!(ids(&first), noisy[..1]);
    // Both that have the turn of a key go behind the other one when it was served.
    end(w, &first, noisy[0]).await;
    let second = w.claim(3).await;
    assert_eq!(ids(&second), [quiet[0], quiet[1], noisy[1]]);
    let other = w.add(keyed("fair", "other")).await;
    end(w, &second, quiet[0]).await;
    assert_eq!(start(w).await, [noisy[2], other, quiet[2]]);
}

pub(crate) async fn a_queue_bounds_its_keys_and_itself(w: &World) {
    let settings = QueueSettings {
        max_concurrent: Some(3),
        ..wide(2)
    };
    put(w, "q", settings).await;
    let a = w.add_all(vec![keyed("q", "a"); 3]).await;
    let b = w.add_all(vec![keyed("q", "b"); 3]).await;
    let claimed = w.claim(20).await;
    assert_eq!(ids(&claimed), [a[0], a[1], b[0]]);
    end(w, &claimed, b[0]).await;
    assert_eq!(start(w).await, b[1..2]);
    end(w, &claimed, a[0]).await;
    assert_eq!(start(w).await, a[2..]);
}

pub(crate) async fn keys_are_as_wide_in_a_copy(w: &World) {
    put(w, "wide", wide(2)).await;
    let tasks = w.add_all(vec![keyed("wide", "k"); 4]).await;
    let copy = super::dossiers::copy(w).await;
    copy.verify().await;
    let claimed = copy.claim(20).await;
    assert_eq!(ids(&claimed), tasks[..2]);
    end(&copy, &claimed, tasks[0]).await;
    assert_eq!(start(&copy).await, tasks[2..3]);
}
