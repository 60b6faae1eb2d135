//! Ageing and fairness: who starts first where it is not the most urgent and then the oldest.

use std::time::Duration;

use pensum_core::input::Patch;
use pensum_core::queue::QueueSettings;
use pensum_core::time::Span;
use pensum_core::{Name, NewTask, Outcome, Priority, TaskId};

use super::World;
use super::world::{ids, task_with};

fn ageing(seconds: u64) -> QueueSettings {
    QueueSettings {
        ageing: Some(Span(Duration::from_secs(seconds))),
        ..QueueSettings::default()
    }
}

fn fair() -> QueueSettings {
    QueueSettings {
        fair: true,
        ..QueueSettings::default()
    }
}

async fn put(w: &World, queue: &str, settings: QueueSettings) {
    w.store
        .put_queue(&w.call(), Name::from(queue), settings, None)
        .await
        .unwrap();
    w.reap().await;
}

fn of(queue: &str, priority: Priority) -> NewTask {
    task_with(|t| {
        t.spec.queue = Name::from(queue);
        t.spec.priority = priority;
    })
}

fn keyed(queue: &str, key: &str) -> NewTask {
    task_with(|t| {
        t.spec.queue = Name::from(queue);
        t.spec.key = Some(Name::from(key));
    })
}

/// Lets time pass, and whoever has waited for long enough rise.
async fn pass(w: &World, seconds: f64) {
    w.pass(seconds);
    w.reap().await;
}

/// Starts one task after the other, each when the one before has ended.
async fn in_turn(w: &World, count: usize) -> Vec<TaskId> {
    let mut order = Vec::new();
    for _ in 0..count {
        let claimed = w.claim_one().await;
        w.done(&claimed).await;
        order.push(claimed.lease.task);
    }
    order
}

pub(crate) async fn who_has_waited_for_long_starts_as_if_it_were_more_urgent(w: &World) {
    put(w, "aged", ageing(60)).await;
    let low = w.add(of("aged", Priority::Low)).await;
    pass(w, 119.0).await;
    let high = w.add(of("aged", Priority::High)).await;
    let normal = w.add(of("strict", Priority::Normal)).await;
    assert_eq!(w.claim_one().await.lease.task, high);
    // Twice risen it is as urgent as those, and older.
    pass(w, 1.5).await;
    let high = w.add(of("strict", Priority::High)).await;
    let urgent = w.add(of("strict", Priority::Urgent)).await;
    assert_eq!(ids(&w.claim(10).await), [urgent, low, high, normal]);
    assert_eq!(w.get(low).await.spec.priority, Priority::Low);
}

pub(crate) async fn a_stream_of_urgent_tasks_starves_nobody_where_tasks_age(w: &World) {
    put(w, "aged", ageing(20)).await;
    let starved = w.add(of("strict", Priority::Low)).await;
    let mut low = w.add_all(vec![of("aged", Priority::Low); 3]).await;
    let mut starts = 0;
    while !low.is_empty() {
        w.add(of("aged", Priority::High)).await;
        pass(w, 1.0).await;
        let claimed = w.claim_one().await;
        w.done(&claimed).await;
        starts += 1;
        low.retain(|id| *id != claimed.lease.task);
        assert!(starts <= 43, "{low:?} should have started within 40 s");
    }
    assert!(starts > 39);
    assert_eq!(w.get(starved).await.lifecycle.started_at, None);
}

pub(crate) async fn tasks_of_every_kind_rise_from_when_they_were_ready(w: &World) {
    put(w, "aged", ageing(10)).await;
    let (now, second) = (w.now(), Duration::from_secs(1));
    let mut kinds = vec![of("aged", Priority::Low); 6];
    kinds[1].spec.key = Some(Name::from("k"));
    kinds[2].spec.details_mut().tags = vec!["tagged".to_owned()];
    kinds[3].run_at = Some(now.plus(5 * second));
    kinds[4].spec.deadline = Some(now.plus(900 * second));
    kinds[5].spec.max_retries = Some(3);
    let kinds = w.add_all(kinds).await;
    // The last one starts, and is given back: what it had waited before is forgotten.
    w.pass(6.0);
    for level in [Priority::Critical, Priority::Low] {
        let patched = w.store.update(&w.call(), kinds[5], priority(level), None).await;
        patched.unwrap().unwrap();
        if level == Priority::Critical {
            let claimed = w.claim_one().await;
            assert_eq!(claimed.lease.task, kinds[5]);
            w.finish(claimed.lease, Outcome::Released).await.unwrap();
        }
    }
    pass(w, 4.0).await;
    let normal = w.add(of("aged", Priority::Normal)).await;
    let order = ids(&w.claim(10).await);
    assert_eq!(
        order,
        [kinds[4], kinds[0], kinds[1], kinds[2], normal, kinds[3], kinds[5]]
    );
}

fn priority(priority: Priority) -> Patch {
    Patch {
        priority: Some(priority),
        ..Patch::default()
    }
}

pub(crate) async fn a_task_that_has_risen_gets_the_turn_of_its_key(w: &World) {
    put(w, "aged", ageing(10)).await;
    let of_key = |priority| {
        let mut task = of("aged", priority);
        task.spec.key = Some(Name::from("k"));
        task
    };
    let low = w.add(of_key(Priority::Low)).await;
    let first = w.add(of_key(Priority::High)).await;
    pass(w, 1.0).await;
    let claimed = w.claim_one().await;
    assert_eq!(claimed.lease.task, first);
    let second = w.add(of_key(Priority::High)).await;
    // It rises while its key is held, and while another one has the turn.
    pass(w, 10.0).await;
    w.done(&claimed).await;
    pass(w, 10.0).await;
    let third = w.add(of_key(Priority::High)).await;
    assert_eq!(in_turn(w, 3).await, [second, low, third]);
}

pub(crate) async fn a_changed_ageing_moves_those_who_wait(w: &World) {
    let low = w.add(of("q", Priority::Low)).await;
    let mut keyed = of("q", Priority::Low);
    keyed.spec.key = Some(Name::from("k"));
    let keyed = w.add(keyed).await;
    pass(w, 100.0).await;
    let normal = w.add(of("q", Priority::Normal)).await;
    let high = w.add(of("q", Priority::High)).await;
    let order = async || {
        let claimed = w.claim(10).await;
        for claimed in &claimed {
            w.finish(claimed.lease, Outcome::Released).await.unwrap();
        }
        ids(&claimed)
    };
    put(w, "q", ageing(100)).await;
    assert_eq!(order().await, [high, low, keyed, normal]);
    // What was given back waits anew.
    pass(w, 100.0).await;
    let others = w
        .add_all(vec![of("q", Priority::Normal), of("q", Priority::High)])
        .await;
    put(w, "q", ageing(1000)).await;
    assert_eq!(order().await, [high, others[1], normal, others[0], low, keyed]);
    pass(w, 100.0).await;
    let last = w.add(of("q", Priority::Normal)).await;
    put(w, "q", ageing(50)).await;
    w.verify().await;
    assert_eq!(order().await, [high, others[1], normal, others[0], low, keyed, last]);
    pass(w, 100.0).await;
    put(w, "q", QueueSettings::default()).await;
    w.verify().await;
    assert_eq!(order().await, [high, others[1], normal, others[0], last, low, keyed]);
}

pub(crate) async fn a_changed_priority_counts_from_there(w: &World) {
    put(w, "aged", ageing(10)).await;
    let first = w.add(of("aged", Priority::Low)).await;
    let second = w.add(of("aged", Priority::Low)).await;
    pass(w, 15.0).await;
    let patched = w
        .store
        .update(&w.call(), second, priority(Priority::Normal), None)
        .await
        .unwrap();
    patched.unwrap();
    w.reap().await;
    let high = w.add(of("aged", Priority::High)).await;
    assert_eq!(ids(&w.claim(10).await), [second, high, first]);
}

pub(crate) async fn ageing_goes_on_in_a_copy(w: &World) {
    put(w, "aged", ageing(10)).await;
    let low = w.add(of("aged", Priority::Low)).await;
    let mut other = of("aged", Priority::Low);
    other.spec.key = Some(Name::from("k"));
    let keyed = w.add(other).await;
    pass(w, 25.0).await;
    let copy = super::dossiers::copy(w).await;
    copy.reap().await;
    copy.verify().await;
    let high = copy.add(of("aged", Priority::High)).await;
    pass(&copy, 5.0).await;
    assert_eq!(ids(&copy.claim(10).await), [low, keyed, high]);
    copy.verify().await;
}

pub(crate) async fn in_a_fair_queue_every_key_starts_within_the_first_round(w: &World) {
    put(w, "fair", fair()).await;
    let noisy = w.add_all(vec![keyed("fair", "noisy"); 40]).await;
    let mut quiet = Vec::new();
    for key in ["a", "b", "c", "d", "e"] {
        quiet.push(w.add_all(vec![keyed("fair", key); 2]).await);
    }
    let rounds = in_turn(w, 14).await;
    let round = |n: usize| -> Vec<TaskId> { quiet.iter().map(|tasks| tasks[n]).collect() };
    assert_eq!(rounds[0], noisy[0]);
    assert_eq!(rounds[1..6], round(0));
    assert_eq!(rounds[6], noisy[1]);
    assert_eq!(rounds[7..12], round(1));
    assert_eq!(rounds[12..], noisy[2..4]);
}

pub(crate) async fn a_key_that_was_served_goes_behind_what_is_ready(w: &World) {
    put(w, "fair", fair()).await;
    let k = w.add_all(vec![keyed("fair", "k"); 3]).await;
    let first = w.claim_one().await;
    let before = w.add(of("fair", Priority::Normal)).await;
    let elsewhere = w.add(of("strict", Priority::Normal)).await;
    w.done(&first).await;
    let after = w.add(of("fair", Priority::Normal)).await;
    assert_eq!(in_turn(w, 5).await, [before, elsewhere, k[1], after, k[2]]);
    // With nothing else ready it goes on at once, and what comes later is no older than it was.
    let more = w.add_all(vec![keyed("fair", "k"); 2]).await;
    let last = w.add(of("fair", Priority::Normal)).await;
    assert_eq!(in_turn(w, 3).await, [more[0], last, more[1]]);
}

pub(crate) async fn in_a_fair_queue_priorities_and_deadlines_go_first(w: &World) {
    put(w, "fair", fair()).await;
    let soon = w.now().plus(Duration::from_secs(60));
    let mut urgent = vec![keyed("fair", "noisy"); 4];
    urgent[1].spec.priority = Priority::High;
    urgent[2].spec.deadline = Some(soon);
    let noisy = w.add_all(urgent).await;
    let quiet = w.add(keyed("fair", "quiet")).await;
    assert_eq!(in_turn(w, 5).await, [noisy[1], noisy[2], quiet, noisy[0], noisy[3]]);
}

pub(crate) async fn a_turn_is_kept_when_another_task_of_the_key_comes_or_goes(w: &World) {
    put(w, "fair", fair()).await;
    let noisy = w.add_all(vec![keyed("fair", "noisy"); 5]).await;
    let served = w.claim_one().await;
    let first = w.add(of("fair", Priority::Normal)).await;
    w.done(&served).await;
    let second = w.add(of("fair", Priority::Normal)).await;
    // Who stood in the place of its key is cancelled, or paused for a while, and another one comes before it.
    w.cancel(noisy[1]).await.unwrap();
    w.command(noisy[2], pensum_core::store::Command::Pause).await.unwrap();
    w.verify().await;
    let mut urgent = keyed("fair", "noisy");
    urgent.spec.priority = Priority::High;
    let urgent = w.add(urgent).await;
    w.cancel(urgent).await.unwrap();
    w.command(noisy[2], pensum_core::store::Command::Resume).await.unwrap();
    w.verify().await;
    assert_eq!(in_turn(w, 3).await, [first, noisy[2], second]);
    // A key of which nothing was ready for a while has had its turn all the same.
    let other = w.add(of("fair", Priority::Normal)).await;
    w.command(noisy[3], pensum_core::store::Command::Pause).await.unwrap();
    w.command(noisy[4], pensum_core::store::Command::Pause).await.unwrap();
    let last = w.add(of("fair", Priority::Normal)).await;
    w.command(noisy[3], pensum_core::store::Command::Resume).await.unwrap();
    assert_eq!(ids(&w.claim(10).await), [noisy[3], other, last]);
}

pub(crate) async fn keys_take_turns_in_fair_queues_only(w: &World) {
    put(w, "fair", fair()).await;
    let noisy = w.add_all(vec![keyed("strict", "noisy"); 3]).await;
    let quiet = w.add(keyed("strict", "quiet")).await;
    assert_eq!(in_turn(w, 4).await, [noisy[0], noisy[1], noisy[2], quiet]);
    // Of a key with tasks in both, the runs in the fair one count, for its tasks there.
    let mixed = w
        .add_all(vec![
            keyed("fair", "k"),
            keyed("strict", "k"),
            keyed("fair", "k"),
            keyed("fair", "other"),
        ])
        .await;
    assert_eq!(in_turn(w, 4).await, [mixed[0], mixed[1], mixed[3], mixed[2]]);
}

pub(crate) async fn a_changed_fairness_moves_those_who_wait(w: &World) {
    put(w, "q", fair()).await;
    let noisy = w.add_all(vec![keyed("q", "noisy"); 4]).await;
    let quiet = w.add_all(vec![keyed("q", "quiet"); 2]).await;
    assert_eq!(in_turn(w, 1).await, [noisy[0]]);
    put(w, "q", QueueSettings::default()).await;
    w.verify().await;
    assert_eq!(in_turn(w, 1).await, [noisy[1]]);
    put(w, "q", fair()).await;
    w.verify().await;
    assert_eq!(in_turn(w, 4).await, [quiet[0], noisy[2], quiet[1], noisy[3]]);
}

pub(crate) async fn fair_queues_age_too(w: &World) {
    let both = QueueSettings {
        fair: true,
        ..ageing(10)
    };
    put(w, "both", both).await;
    let mut low = keyed("both", "low");
    low.spec.priority = Priority::Low;
    let low = w.add_all(vec![low; 2]).await;
    let busy = w.add_all(vec![keyed("both", "busy"); 3]).await;
    assert_eq!(in_turn(w, 1).await, [busy[0]]);
    pass(w, 10.0).await;
    let late = w.add_all(vec![keyed("both", "late"); 2]).await;
    // All that had waited has risen, and those of one level take turns.
    assert_eq!(in_turn(w, 3).await, [busy[1], busy[2], low[0]]);
    assert_eq!(in_turn(w, 3).await, [late[0], low[1], late[1]]);
}
