//! Queues with settings: what tasks get from them, and how they open and close.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pensum_core::input::{QueueInput, TaskInput, parse_object};
use pensum_core::queue::{QueueCommand, QueueSettings};
use pensum_core::store::Call;
use pensum_core::time::Span;
use pensum_core::{Json, Name, NewTask, Outcome, Priority, RetryPolicy, Spec, TaskId, Wait};
use pensum_engine::{EngineError, GateKind, QueueStatus};

use crate::support::{World, fun, spec, world};

impl World {
    async fn put(&self, queue: &str, settings: &str) {
        let input = parse_object::<QueueInput>(settings.as_bytes()).unwrap();
        self.engine.put_queue(&self.call(), queue, input, None).await.unwrap();
    }

    async fn ask(&self, queue: &str, command: QueueCommand) -> Result<QueueStatus, EngineError> {
        let view = self.engine.command_queue(&self.call(), queue, command).await?;
        Ok(view.status)
    }

    /// Enqueues a task as a user would write it.
    async fn write(&self, task: &str) -> TaskId {
        let input = parse_object::<TaskInput>(task.as_bytes()).unwrap();
        let task = input.resolve(&HashMap::new(), self.engine.now()).unwrap();
        self.add_task(task).await
    }

    async fn spec_of(&self, id: TaskId) -> Spec {
        self.get(id).await.spec
    }

    #[track_caller]
    fn check_gate(explanation: &pensum_engine::Explanation, kind: GateKind, part: &str) {
        let [gate] = explanation.gates.as_slice() else {
            panic!("{explanation:?}");
        };
        assert!(gate.gate == kind && gate.message.contains(part), "{explanation:?}");
    }
}

const MAIL: &str = r#"{"priority":"high","timeout":7,"max_retries":1,"retry":{"strategy":"fixed","delay":4}}"#;

#[tokio::test(start_paused = true)]
async fn a_task_gets_from_its_queue_what_it_does_not_name() {
    let world = world(|b| b);
    world.put("mail", MAIL).await;
    let given = world
        .spec_of(world.write(r#"{"handler":"noop","queue":"mail"}"#).await)
        .await;
    assert_eq!((given.priority, given.max_retries), (Priority::High, Some(1)));
    assert_eq!(given.timeout, Some(Duration::from_secs(7)));
    assert_eq!(given.retry().delay, Span(Duration::from_secs(4)));

    let named =
        r#"{"handler":"noop","queue":"mail","priority":"normal","timeout":9,"max_retries":3,"retry":{"delay":1}}"#;
    let named = world.spec_of(world.write(named).await).await;
    assert_eq!((named.priority, named.max_retries), (Priority::Normal, Some(3)));
    assert_eq!(named.timeout, Some(Duration::from_secs(9)));
    assert_eq!(named.retry(), RetryPolicy::default());

    let elsewhere = world.spec_of(world.write(r#"{"handler":"noop"}"#).await).await;
    assert_eq!(elsewhere, Spec::new("noop", Json::empty_object()));
}

#[tokio::test(start_paused = true)]
async fn the_queue_of_the_handlers_name_is_the_default_once_somebody_put_it() {
    let world = world(|b| b);
    let queue_of = async |task: &str| world.spec_of(world.write(task).await).await.queue.to_string();
    assert_eq!(queue_of(r#"{"handler":"noop"}"#).await, "default");
    // A pause makes no queue that tasks are meant for.
    let call = world.call();
    let store = world.engine.store();
    store
        .command_queue(&call, "noop".into(), QueueCommand::Pause)
        .await
        .unwrap();
    world.ask("default", QueueCommand::Resume).await.unwrap();
    assert_eq!(queue_of(r#"{"handler":"noop"}"#).await, "default");
    world.put("noop", "{}").await;
    assert_eq!(queue_of(r#"{"handler":"noop"}"#).await, "noop");
    assert_eq!(queue_of(r#"{"handler":"noop","queue":"default"}"#).await, "default");
    assert_eq!(queue_of(r#"{"handler":"noop","queue":"other"}"#).await, "other");
    let stored = world
        .spec_of(world.write(r#"{"handler":"noop","queue":"default"}"#).await)
        .await;
    assert!(
        stored.details.is_none(),
        "what its author named is not kept: {stored:?}"
    );
    // Of another namespace nothing is known.
    let call = Call {
        namespace: Name::from("elsewhere"),
        ..world.call()
    };
    let ids = world
        .engine
        .enqueue(&call, vec![NewTask::new(spec("noop"))])
        .await
        .unwrap();
    let task = store.task("elsewhere", ids[0].id).await.unwrap().unwrap();
    assert_eq!(&*task.spec.queue, "default");
}

#[tokio::test(start_paused = true)]
async fn enqueueing_asks_no_store_for_the_queues() {
    let world = world(|b| b);
    for _ in 0..100 {
        world.add(spec("noop")).await;
    }
    assert_eq!(world.faults.queue_reads.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn what_another_node_puts_is_known_within_a_second() {
    let world = world(|b| b).start();
    world.add(spec("noop")).await;
    let settings = QueueSettings {
        priority: Some(Priority::Critical),
        ..QueueSettings::default()
    };
    let store = world.engine.store();
    store
        .put_queue(&world.call(), "noop".into(), settings, None)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let spec = world.spec_of(world.add(spec("noop")).await).await;
    assert_eq!((&*spec.queue, spec.priority), ("noop", Priority::Critical));
}

#[tokio::test(start_paused = true)]
async fn children_get_from_their_queue_what_they_do_not_name() {
    let parent = fun(|ctx| async move {
        if ctx.checkpoint().is_some() {
            return Outcome::Done(Json::null());
        }
        ctx.spawn_child(NewTask::new(spec("noop")));
        Outcome::Wait {
            on: Wait::Children,
            checkpoint: Some(Json::null()),
        }
    });
    let world = world(|b| b.handler("parent", parent));
    world.put("noop", MAIL).await;
    let world = world.start();
    let id = world.add(spec("parent")).await;
    world.end(id).await;
    let page = pensum_core::Page::default();
    let filter = pensum_core::TaskFilter {
        parent_id: Some(id),
        ..pensum_core::TaskFilter::default()
    };
    let store = world.engine.store();
    let children = store
        .tasks("default", filter, page, world.engine.now())
        .await
        .unwrap()
        .items;
    assert_eq!(children.len(), 1);
    assert_eq!(
        (&*children[0].spec.queue, children[0].spec.priority),
        ("noop", Priority::High)
    );
}

#[tokio::test(start_paused = true)]
async fn a_name_that_nobody_knows_makes_no_queue() {
    let world = world(|b| b);
    world.put("mail", "{}").await;
    for command in [QueueCommand::Pause, QueueCommand::Resume, QueueCommand::Process] {
        let error = world.ask("mial", command).await.unwrap_err();
        assert_eq!(error.to_string(), "there is no queue `mial`; there are mail");
    }
    let error = world.engine.delete_queue(&world.call(), "mial").await.unwrap_err();
    assert!(matches!(error, EngineError::NoQueue { .. }), "{error:?}");
    assert_eq!(world.engine.list_queues("default").await.unwrap().len(), 1);
    // One that holds a task is a queue.
    let mut task = spec("noop");
    task.queue = "mial".into();
    world.add(task).await;
    assert_eq!(
        world.ask("mial", QueueCommand::Pause).await.unwrap(),
        QueueStatus::Paused
    );
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_opens_starts_its_tasks_at_once() {
    let world = world(|b| b).start();
    world.put("noop", r#"{"auto_start":false}"#).await;
    let first = world.add(spec("noop")).await;
    world.ask("noop", QueueCommand::Pause).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!world.get(first).await.lifecycle.state.is_terminal());
    assert!(world.ask("noop", QueueCommand::Process).await.is_err(), "it is paused");
    world.ask("noop", QueueCommand::Resume).await.unwrap();
    for open in ["process", "put"] {
        let task = world.add(spec("noop")).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!world.get(task).await.lifecycle.state.is_terminal());
        let asked = world.engine.now();
        match open {
            "process" => drop(world.ask("noop", QueueCommand::Process).await.unwrap()),
            _ => world.put("noop", "{}").await,
        }
        let ended = world.end(task).await;
        let late = ended.lifecycle.finished_at.unwrap().since(asked);
        assert!(late < Duration::from_millis(50), "{open}: {late:?}");
    }
    world.end(first).await;
}

#[tokio::test(start_paused = true)]
async fn a_closed_queue_explains_itself() {
    let slow = fun(|_| async {
        tokio::time::sleep(Duration::from_secs(600)).await;
        Outcome::Done(Json::null())
    });
    let world = world(|b| b.handler("slow", slow).slots(8)).start();
    let explain = async |id: TaskId| world.engine.explain("default", id).await.unwrap();

    world.put("slow", r#"{"max_concurrent":1}"#).await;
    let first = world.add(spec("slow")).await;
    world.until(first, |task| task.lifecycle.lease.is_some()).await;
    let second = world.add(spec("slow")).await;
    World::check_gate(
        &explain(second).await,
        GateKind::Queue,
        "the queue `slow` is full: 1 of 1 tasks run",
    );

    let paused = world.engine.now();
    world.ask("slow", QueueCommand::Pause).await.unwrap();
    let told = explain(second).await;
    World::check_gate(&told, GateKind::Queue, "run `pensum queue resume slow`");
    assert_eq!(told.gates[0].since, Some(paused));

    world.put("hand", r#"{"auto_start":false}"#).await;
    let task = world.write(r#"{"handler":"noop","queue":"hand"}"#).await;
    World::check_gate(&explain(task).await, GateKind::Queue, "run `pensum queue process hand`");
    world.ask("hand", QueueCommand::Process).await.unwrap();
    world.end(task).await;
    let later = world.write(r#"{"handler":"noop","queue":"hand"}"#).await;
    World::check_gate(
        &explain(later).await,
        GateKind::Queue,
        "nobody asked for it since this task was enqueued",
    );

    world.put("rated", r#"{"rate_limit":{"starts":1,"per":"1h"}}"#).await;
    let task = world.write(r#"{"handler":"noop","queue":"rated"}"#).await;
    let started = world.end(task).await.lifecycle.started_at.unwrap();
    let task = world.write(r#"{"handler":"noop","queue":"rated"}"#).await;
    let told = explain(task).await;
    World::check_gate(&told, GateKind::Rate, "it starts the next one at");
    assert_eq!(told.gates[0].opens_at, Some(started.plus(Duration::from_secs(3_600))));
}

#[tokio::test(start_paused = true)]
async fn the_turns_of_a_wide_key_name_those_who_have_them() {
    let world = world(|b| b.slots(8)).start();
    world.put("wide", r#"{"max_concurrent_per_key":2}"#).await;
    let nap = r#"{"handler":"sleep","parameters":{"seconds":10},"queue":"wide","key":"k"}"#;
    let (first, second) = (world.write(nap).await, world.write(nap).await);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let third = world.write(nap).await;
    let told = world.engine.explain("default", third).await.unwrap();
    let all = format!("2 of 2 tasks of the same key `k` have their turn: {first}, {second}");
    World::check_gate(&told, GateKind::Key, &all);
    assert!(told.gates[0].since.is_some());
    // One of a narrow queue goes before what comes after it, and waits for all of them.
    let narrow = world.write(r#"{"handler":"noop","key":"k"}"#).await;
    let last = world.write(nap).await;
    world.put("wide", r#"{"max_concurrent_per_key":5}"#).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let explain = async |task| world.engine.explain("default", task).await.unwrap();
    let all = format!("3 tasks of the same key `k` have their turn, and only 1 may: {first}, {second}, {third}");
    World::check_gate(&explain(narrow).await, GateKind::Key, &all);
    let passed =
        format!("task {narrow} of the same key `k` goes before it, and waits until fewer than 1 of that key run");
    World::check_gate(&explain(last).await, GateKind::Key, &passed);
    // A turn that is kept by a closed queue is named as well.
    for task in [first, second, third, narrow, last] {
        world.end(task).await;
    }
    world
        .put("closed", r#"{"auto_start":false,"max_concurrent_per_key":2}"#)
        .await;
    world.put("wide", r#"{"max_concurrent_per_key":2}"#).await;
    let kept = world.write(r#"{"handler":"noop","queue":"closed","key":"k"}"#).await;
    let runs = world.write(nap).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let told = explain(world.write(nap).await).await;
    let all =
        format!("2 of 2 tasks of the same key `k` have their turn: {runs}, {kept}; it is the turn of task {kept}");
    World::check_gate(&told, GateKind::Key, &all);
    World::check_gate(&told, GateKind::Key, "run `pensum queue process closed`");
}

#[tokio::test(start_paused = true)]
async fn the_turn_of_a_key_names_the_closed_queue_that_has_it() {
    let world = world(|b| b).start();
    world.put("hand", r#"{"auto_start":false}"#).await;
    let first = world.write(r#"{"handler":"noop","queue":"hand","key":"k"}"#).await;
    let second = world.write(r#"{"handler":"noop","key":"k"}"#).await;
    let told = world.engine.explain("default", second).await.unwrap();
    World::check_gate(
        &told,
        GateKind::Key,
        &format!("it is the turn of task {first} of the same key `k`"),
    );
    World::check_gate(&told, GateKind::Key, "run `pensum queue process hand`");
    World::check_gate(
        &world.engine.explain("default", first).await.unwrap(),
        GateKind::Queue,
        "run `pensum queue process hand`",
    );
    world.ask("hand", QueueCommand::Process).await.unwrap();
    world.end(second).await;
}
