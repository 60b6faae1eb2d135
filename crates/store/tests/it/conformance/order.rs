//! Which task a claim takes.

use std::sync::Arc;
use std::time::Duration;

use pensum_core::input::Patch;
use pensum_core::store::{ClaimRequest, Command};
use pensum_core::{Name, Priority};

use super::World;
use super::world::{ids, task, task_with};

pub(crate) async fn a_claim_takes_priority_then_deadline_then_age(w: &World) {
    let soon = w.now().plus(Duration::from_secs(60));
    let later = w.now().plus(Duration::from_secs(600));
    let normal = w.add(task()).await;
    let low = w.add(task_with(|t| t.spec.priority = Priority::Low)).await;
    let normal_later = w.add(task_with(|t| t.spec.deadline = Some(later))).await;
    let critical = w.add(task_with(|t| t.spec.priority = Priority::Critical)).await;
    let normal_soon = w.add(task_with(|t| t.spec.deadline = Some(soon))).await;
    let normal_younger = w.add(task()).await;
    let high = w
        .add(task_with(|t| {
            t.spec.priority = Priority::High;
            t.spec.queue = Name::from("other");
        }))
        .await;
    let order = ids(&w.claim(10).await);
    assert_eq!(
        order,
        [critical, high, normal_soon, normal_later, normal, normal_younger, low]
    );
}

pub(crate) async fn a_claim_takes_no_more_than_its_slots(w: &World) {
    w.add_all((0..20).map(|_| task()).collect()).await;
    assert_eq!(w.claim(0).await.len(), 0);
    assert_eq!(w.claim(7).await.len(), 7);
    assert_eq!(w.claim(20).await.len(), 13);
    w.claim_nothing().await;
}

pub(crate) async fn future_tasks_wait_for_their_time(w: &World) {
    let at = w.now().plus(Duration::from_secs(10));
    let future = w.add(task_with(|t| t.run_at = Some(at))).await;
    w.claim_nothing().await;
    w.pass(9.9);
    w.claim_nothing().await;
    w.pass(0.2);
    assert_eq!(ids(&w.claim(10).await), [future]);
}

pub(crate) async fn a_claim_needs_every_required_capability_and_the_handler(w: &World) {
    let plain = w.add(task()).await;
    let gpu = w
        .add(task_with(|t| t.spec.details_mut().requires = vec![Name::from("gpu")]))
        .await;
    let with = |offered: &[&str]| ClaimRequest {
        capabilities: Some(offered.iter().map(|c| Name::from(*c)).collect::<Arc<[Name]>>()),
        ..w.request(10)
    };
    assert!(w.store.claim(with(&["other"]), w.now()).await.unwrap().is_empty());
    assert!(w.store.claim(with(&["gpu"]), w.now()).await.unwrap().is_empty());
    assert_eq!(ids(&w.store.claim(with(&["noop"]), w.now()).await.unwrap()), [plain]);
    assert_eq!(
        ids(&w.store.claim(with(&["noop", "gpu", "more"]), w.now()).await.unwrap()),
        [gpu]
    );
}

pub(crate) async fn a_claim_may_name_the_queues_that_it_takes_from(w: &World) {
    let plain = w.add(task()).await;
    let own = w.add(task_with(|t| t.spec.queue = Name::from("own"))).await;
    let from = |queues: &[&str]| ClaimRequest {
        queues: Some(queues.iter().map(|q| Name::from(*q)).collect::<Arc<[Name]>>()),
        ..w.request(10)
    };
    assert!(w.store.claim(from(&["other"]), w.now()).await.unwrap().is_empty());
    assert_eq!(
        ids(&w.store.claim(from(&["own", "other"]), w.now()).await.unwrap()),
        [own]
    );
    assert_eq!(ids(&w.claim(10).await), [plain]);
}

pub(crate) async fn of_one_key_only_one_runs_and_the_best_goes_first(w: &World) {
    let keyed = |priority| {
        task_with(|t| {
            t.spec.key = Some(Name::from("BTC"));
            t.spec.priority = priority;
        })
    };
    let first = w.add(keyed(Priority::Normal)).await;
    let second = w.add(keyed(Priority::Normal)).await;
    let other = w.add(task_with(|t| t.spec.key = Some(Name::from("ETH")))).await;
    let claimed = w.claim(10).await;
    assert_eq!(ids(&claimed), [first, other]);
    let urgent = w.add(keyed(Priority::Urgent)).await;
    w.claim_nothing().await;
    w.done(&claimed[0]).await;
    let next = w.claim(10).await;
    assert_eq!(ids(&next), [urgent]);
    w.done(&next[0]).await;
    assert_eq!(ids(&w.claim(10).await), [second]);
}

pub(crate) async fn keys_of_different_namespaces_do_not_meet(w: &World) {
    let keyed = || task_with(|t| t.spec.key = Some(Name::from("k")));
    w.add(keyed()).await;
    w.store.enqueue(&w.call_in("elsewhere"), vec![keyed()]).await.unwrap();
    assert_eq!(w.claim(10).await.len(), 2);
}

pub(crate) async fn a_paused_task_is_not_claimed_until_resumed(w: &World) {
    let id = w.add(task()).await;
    w.command(id, Command::Pause).await.unwrap();
    assert_eq!(w.status(id).await.as_str(), "paused");
    w.claim_nothing().await;
    w.command(id, Command::Resume).await.unwrap();
    assert_eq!(ids(&w.claim(10).await), [id]);
}

pub(crate) async fn run_now_makes_a_future_task_ready(w: &World) {
    let at = w.now().plus(Duration::from_secs(1000));
    let id = w.add(task_with(|t| t.run_at = Some(at))).await;
    w.command(id, Command::RunNow).await.unwrap();
    assert_eq!(ids(&w.claim(10).await), [id]);
}

pub(crate) async fn a_changed_priority_changes_the_order(w: &World) {
    let first = w.add(task()).await;
    let second = w.add(task()).await;
    let patch = Patch {
        priority: Some(Priority::High),
        ..Patch::default()
    };
    w.store.update(&w.call(), second, patch, None).await.unwrap().unwrap();
    assert_eq!(ids(&w.claim(10).await), [second, first]);
}

pub(crate) async fn many_rows_of_a_busy_key_hide_nobody(w: &World) {
    let busy = || {
        task_with(|t| {
            t.spec.key = Some(Name::from("busy"));
            t.spec.priority = Priority::Critical;
        })
    };
    w.add_all((0..500).map(|_| busy()).collect()).await;
    let plain = w.add(task()).await;
    let claimed = w.claim(10).await;
    assert_eq!(claimed.len(), 2);
    assert_eq!(claimed[1].lease.task, plain);
}
