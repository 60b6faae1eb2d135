//! Every gate explains itself.

use std::time::Duration;

use pensum_core::store::Command;
use pensum_core::task::Dependency;
use pensum_core::{Json, Name, NewTask, Outcome, Spec, State, TaskId, Wait};
use pensum_engine::{Explanation, GateKind};
use serde_json::json;

use crate::support::{World, fun, retry_in, spec, with, world};

async fn explain(world: &World, id: TaskId) -> Explanation {
    world.engine.explain("default", id).await.unwrap()
}

#[track_caller]
fn check(explanation: &Explanation, gates: &[GateKind], part: &str) {
    let kinds: Vec<_> = explanation.gates.iter().map(|g| g.gate).collect();
    assert_eq!(kinds, gates, "{explanation:?}");
    assert!(
        explanation.gates.iter().any(|g| g.message.contains(part)),
        "{explanation:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_queued_task_names_what_keeps_it() {
    let world = world(|b| b);
    let ready = world.add(spec("noop")).await;
    check(&explain(&world, ready).await, &[GateKind::Node], "takes no work");

    let mut dependant = NewTask::new(spec("noop"));
    dependant.depends_on.push(Dependency::Task(ready));
    let dependant = world.add_task(dependant).await;
    let explanation = explain(&world, dependant).await;
    check(&explanation, &[GateKind::Dependencies], &format!("{ready} (ready)"));
    assert!(
        explanation.summary.starts_with("It waits for 1 task(s) to end first"),
        "{}",
        explanation.summary
    );

    let mut later = NewTask::new(spec("nobody"));
    let at = world.engine.now().plus(Duration::from_secs(60));
    later.run_at = Some(at);
    let later = world.add_task(later).await;
    world.command(later, Command::Pause).await.unwrap();
    let explanation = explain(&world, later).await;
    check(
        &explanation,
        &[GateKind::Paused, GateKind::Time, GateKind::Capability],
        "no `nobody`",
    );
    assert_eq!(explanation.gates[1].opens_at, Some(at));
    assert!(explanation.gates[0].since.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_task_behind_others_names_the_slots_or_the_key() {
    let world = world(|b| b.slots(2)).start();
    let keyed = || Spec {
        key: Some(Name::from("account-7")),
        ..with("sleep", json!({ "seconds": 60 }))
    };
    let first = world.add(keyed()).await;
    world.until(first, |r| r.lifecycle.state == State::Running).await;
    let second = world.add(keyed()).await;
    check(&explain(&world, second).await, &[GateKind::Key], &first.to_string());
    let filler = world.add(with("sleep", json!({ "seconds": 60 }))).await;
    world.until(filler, |r| r.lifecycle.state == State::Running).await;
    let waiting = world.add(spec("noop")).await;
    check(&explain(&world, waiting).await, &[GateKind::Slots], "all 2 slots");
    check(&explain(&world, first).await, &[GateKind::Running], "attempt 1");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_waits_says_for_what_and_one_that_ended_says_how() {
    let wait = |on: fn(pensum_core::Time) -> Wait| {
        fun(move |ctx| async move {
            ctx.spawn_child(NewTask::new(with("sleep", json!({ "seconds": 600 }))));
            Outcome::Wait {
                on: on(ctx.now()),
                checkpoint: None,
            }
        })
    };
    let world = world(|b| {
        b.handler("for_time", wait(|now| Wait::Until(now.plus(Duration::from_secs(60)))))
            .handler(
                "for_signal",
                wait(|_| Wait::Signal {
                    name: Name::from("go"),
                    until: None,
                }),
            )
            .handler("for_children", wait(|_| Wait::Children))
            .handler("done", fun(|_| async { Outcome::Done(Json::null()) }))
    })
    .start();
    for (handler, gate, part) in [
        ("for_time", GateKind::Time, "a time"),
        ("for_signal", GateKind::Signal, "`go`"),
        ("for_children", GateKind::Children, "children"),
    ] {
        let id = world.add(spec(handler)).await;
        world.until(id, |r| r.lifecycle.state == State::Waiting).await;
        let since = world.engine.now();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let explanation = explain(&world, id).await;
        check(&explanation, &[gate], part);
        let told = explanation.gates[0].since.unwrap();
        assert!(
            since.since(told) < Duration::from_secs(1),
            "{explanation:?} since {since:?}"
        );
    }
    let backing_off = world.add(retry_in(with("fail", json!({})), 600)).await;
    world.until(backing_off, |r| r.lifecycle.backing_off).await;
    check(
        &explain(&world, backing_off).await,
        &[GateKind::Time],
        "failed 1 time(s)",
    );
    let failed = world
        .add(Spec {
            max_retries: Some(0),
            ..with("fail", json!({ "message": "broken" }))
        })
        .await;
    world.end(failed).await;
    check(&explain(&world, failed).await, &[GateKind::Ended], "broken");
}
