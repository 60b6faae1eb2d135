//! The engine over each real store, on the machine's clock: the same tests for all.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pensum_core::model::ModelStore;
use pensum_core::store::{BATCH_MAX, Call, Command};
use pensum_core::task::Dependency;
use pensum_core::transition::EventKind;
use pensum_core::{
    ErrorInfo, Json, Name, NewTask, Outcome, Priority, Spec, State, Store, TaskFilter, TaskId, TaskRecord, Wait,
};
use pensum_engine::{BulkAction, BulkRequest, Engine, EngineBuilder, kinds};
use pensum_testing::postgres::Database;
use serde_json::json;

use crate::support::{error, fun, retry_in, spec, with};

macro_rules! on_every_store {
    ($($name:ident),* $(,)?) => {
        mod model {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let bench = super::Bench::new(std::sync::Arc::new(super::ModelStore::new(5)));
                super::$name(&bench).await;
                bench.close().await;
            })*
        }

        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let directory = tempfile::tempdir().unwrap();
                let url = format!("sqlite:{}", directory.path().join("test.db").display());
                let bench = super::Bench::new(pensum_store::open(&url, "the engine's tests").unwrap());
                super::$name(&bench).await;
                bench.close().await;
                bench.store.close().await.unwrap();
            })*
        }

        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let database = super::migrated().await;
                let store = pensum_store::connect(&database.url(), "the engine's tests").await.unwrap();
                let bench = super::Bench::new(store);
                super::$name(&bench).await;
                bench.close().await;
                bench.store.close().await.unwrap();
            })*
        }
    };
}

on_every_store!(
    every_task_of_a_large_batch_runs_exactly_once,
    urgent_tasks_go_first,
    a_slow_task_times_out_and_is_tried_again,
    a_cancel_reaches_a_running_task_at_once,
    tasks_of_one_key_never_overlap_and_keep_their_order,
    dependants_run_after_what_they_depend_on,
    waits_for_children_signals_and_times_come_to_their_ends,
    steps_and_checkpoints_survive_attempts,
    a_shutdown_gives_tasks_back_and_the_next_node_finishes_them,
    a_node_that_stops_is_not_given_its_own_tasks_again,
    logs_and_progress_are_kept_in_order,
    bulk_operations_reach_every_match,
);

/// A database with an empty store.
async fn migrated() -> Database {
    Database::from_template("engine", async |url: String| {
        let store = pensum_store::connect(&url, "the engine's tests").await.unwrap();
        store.close().await.unwrap();
    })
    .await
}

struct Bench {
    store: Arc<dyn Store>,
    engines: Mutex<Vec<Engine>>,
}

impl Bench {
    fn new(store: Arc<dyn Store>) -> Bench {
        Bench {
            store,
            engines: Mutex::new(Vec::new()),
        }
    }

    fn node(&self, build: impl FnOnce(EngineBuilder) -> EngineBuilder) -> Engine {
        let engine = build(Engine::builder(Arc::clone(&self.store)).builtin_handlers()).build();
        engine.start();
        self.engines.lock().push(engine.clone());
        engine
    }

    async fn close(&self) {
        let engines = self.engines.lock().clone();
        for engine in engines {
            let report = engine.shutdown(Duration::from_secs(5)).await;
            assert_eq!((report.stuck, report.unsaved), (0, 0));
        }
        assert_eq!(self.store.verify().await.unwrap().violations, Vec::<String>::new());
    }
}

async fn add_all(engine: &Engine, tasks: Vec<NewTask>) -> Vec<TaskId> {
    let call = Call::new("tester", engine.now());
    engine
        .enqueue(&call, tasks)
        .await
        .unwrap()
        .into_iter()
        .map(|e| e.id)
        .collect()
}

async fn add(engine: &Engine, spec: Spec) -> TaskId {
    add_all(engine, vec![NewTask::new(spec)]).await[0]
}

async fn end(engine: &Engine, id: TaskId) -> TaskRecord {
    engine.wait("default", id, Some(Duration::from_secs(30))).await.unwrap()
}

async fn until(engine: &Engine, id: TaskId, state: State) {
    for _ in 0..5_000 {
        let record = engine.store().task("default", id).await.unwrap().unwrap();
        if record.lifecycle.state == state {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("never {state}: {:?}", engine.store().task("default", id).await);
}

async fn command(engine: &Engine, id: TaskId, command: Command) {
    let call = Call::new("tester", engine.now());
    engine
        .command(&call, vec![id], command)
        .await
        .unwrap()
        .remove(0)
        .unwrap();
}

async fn every_task_of_a_large_batch_runs_exactly_once(bench: &Bench) {
    const TASKS: usize = 600;
    const _: () = assert!(TASKS < BATCH_MAX);
    let runs: Arc<Mutex<HashMap<TaskId, usize>>> = Arc::default();
    let seen = Arc::clone(&runs);
    let engine = bench.node(|b| {
        b.handler(
            "count",
            fun(move |ctx| {
                *seen.lock().entry(ctx.id()).or_default() += 1;
                async move {
                    if ctx.id().row() % 3 == 0 {
                        tokio::task::yield_now().await;
                    }
                    Outcome::Done(Json::null())
                }
            }),
        )
    });
    let ids = add_all(&engine, vec![NewTask::new(spec("count")); TASKS]).await;
    for id in &ids {
        assert_eq!(end(&engine, *id).await.lifecycle.state, State::Completed);
    }
    let runs = runs.lock();
    assert_eq!(runs.len(), TASKS);
    assert!(runs.values().all(|count| *count == 1));
}

async fn urgent_tasks_go_first(bench: &Bench) {
    let order: Arc<Mutex<Vec<u32>>> = Arc::default();
    let seen = Arc::clone(&order);
    let idle = Engine::builder(Arc::clone(&bench.store)).build();
    let task = |number: u32, priority| {
        NewTask::new(Spec {
            priority,
            ..with("note", json!(number))
        })
    };
    let tasks = vec![
        task(3, Priority::Low),
        task(1, Priority::Critical),
        task(2, Priority::High),
        task(4, Priority::Low),
    ];
    let ids = add_all(&idle, tasks).await;
    let engine = bench.node(|b| {
        b.slots(1).handler(
            "note",
            fun(move |ctx| {
                seen.lock().push(ctx.parameters().unwrap());
                async { Outcome::Done(Json::null()) }
            }),
        )
    });
    for id in ids {
        end(&engine, id).await;
    }
    assert_eq!(*order.lock(), [1, 2, 3, 4]);
}

async fn a_slow_task_times_out_and_is_tried_again(bench: &Bench) {
    let engine = bench.node(|b| b);
    let mut slow = with("sleep", json!({ "seconds": 60 }));
    slow.timeout = Some(Duration::from_millis(150));
    slow.max_retries = Some(1);
    slow.details_mut().retry = Some(pensum_core::RetryPolicy::fixed(Duration::from_millis(50)));
    let id = add(&engine, slow).await;
    let record = end(&engine, id).await;
    assert_eq!((record.lifecycle.state, record.lifecycle.attempt), (State::Failed, 2));
    assert_eq!(error(&record).0, kinds::TIMEOUT);
    let executions = engine.store().executions("default", id).await.unwrap();
    assert_eq!(executions.len(), 2);
}

async fn a_cancel_reaches_a_running_task_at_once(bench: &Bench) {
    let engine = bench.node(|b| b);
    let id = add(&engine, with("sleep", json!({ "seconds": 60 }))).await;
    until(&engine, id, State::Running).await;
    let asked = engine.now();
    command(
        &engine,
        id,
        Command::Cancel {
            reason: Some("enough".to_owned()),
        },
    )
    .await;
    assert_eq!(end(&engine, id).await.lifecycle.state, State::Cancelled);
    assert!(engine.now().since(asked) < Duration::from_secs(2));
}

async fn tasks_of_one_key_never_overlap_and_keep_their_order(bench: &Bench) {
    let running = Arc::new(AtomicUsize::new(0));
    let order: Arc<Mutex<Vec<u32>>> = Arc::default();
    let seen = Arc::clone(&order);
    let engine = bench.node(|b| {
        b.handler(
            "keyed",
            fun(move |ctx| {
                let (running, seen) = (Arc::clone(&running), Arc::clone(&seen));
                async move {
                    assert_eq!(
                        running.fetch_add(1, Ordering::SeqCst),
                        0,
                        "two tasks of one key at once"
                    );
                    seen.lock().push(ctx.parameters().unwrap());
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    running.fetch_sub(1, Ordering::SeqCst);
                    Outcome::Done(Json::null())
                }
            }),
        )
    });
    let task = |number| {
        NewTask::new(Spec {
            key: Some(Name::from("k")),
            ..with("keyed", json!(number))
        })
    };
    let ids = add_all(&engine, (0..40).map(task).collect()).await;
    for id in ids {
        assert_eq!(end(&engine, id).await.lifecycle.state, State::Completed);
    }
    assert_eq!(*order.lock(), (0..40).collect::<Vec<u32>>());
}

async fn dependants_run_after_what_they_depend_on(bench: &Bench) {
    let engine = bench.node(|b| b);
    let mut tasks = vec![NewTask::new(with("sleep", json!({ "seconds": 0.05 })))];
    for item in 1..20 {
        let mut task = NewTask::new(spec("noop"));
        task.depends_on.push(Dependency::Item(item - 1));
        tasks.push(task);
    }
    let mut doomed = NewTask::new(Spec {
        max_retries: Some(0),
        ..with("fail", json!({}))
    });
    doomed.depends_on.push(Dependency::Item(19));
    tasks.push(doomed);
    let mut cancelled = NewTask::new(spec("noop"));
    cancelled.depends_on.push(Dependency::Item(20));
    tasks.push(cancelled);
    let ids = add_all(&engine, tasks).await;
    let last = end(&engine, ids[21]).await;
    assert_eq!(last.lifecycle.state, State::Cancelled);
    assert_eq!(error(&last).0, kinds::DEPENDENCY_FAILED);
    for pair in ids[..20].windows(2) {
        let (first, second) = (end(&engine, pair[0]).await, end(&engine, pair[1]).await);
        assert_eq!(second.lifecycle.state, State::Completed);
        assert!(second.lifecycle.started_at >= first.lifecycle.finished_at);
    }
}

async fn waits_for_children_signals_and_times_come_to_their_ends(bench: &Bench) {
    let engine = bench.node(|b| {
        b.handler(
            "patient",
            fun(|ctx| async move {
                let go_on = |on, stage: u32| Outcome::Wait {
                    on,
                    checkpoint: Some(Json::from(json!(stage))),
                };
                match ctx.checkpoint().map(|c| c.to::<u32>().unwrap()) {
                    None => {
                        ctx.spawn_child(NewTask::new(with("sleep", json!({ "seconds": 0.05 }))));
                        ctx.spawn_child(NewTask::new(spec("noop")));
                        go_on(Wait::Children, 1)
                    }
                    Some(1) => go_on(Wait::Until(ctx.now().plus(Duration::from_millis(100))), 2),
                    Some(2) => go_on(
                        Wait::Signal {
                            name: Name::from("go"),
                            until: None,
                        },
                        3,
                    ),
                    _ => {
                        let signals = ctx.signals().await.unwrap();
                        for signal in &signals {
                            ctx.consume(signal.seq);
                        }
                        Outcome::Done(signals[0].payload.clone())
                    }
                }
            }),
        )
    });
    let id = add(&engine, spec("patient")).await;
    // Early: it has to keep until the task waits for it.
    let signal = Command::Signal {
        name: Name::from("go"),
        payload: Json::from(json!("well")),
    };
    command(&engine, id, signal).await;
    let record = end(&engine, id).await;
    assert_eq!(
        (record.result.unwrap().get(), record.lifecycle.attempt),
        ("\"well\"", 1)
    );
    assert!(engine.store().inbox(id).await.unwrap().is_empty());
}

async fn steps_and_checkpoints_survive_attempts(bench: &Bench) {
    let charges = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&charges);
    let engine = bench.node(|b| {
        b.handler(
            "order",
            fun(move |ctx| {
                let count = Arc::clone(&count);
                async move {
                    let charge = || async { Ok(count.fetch_add(1, Ordering::SeqCst) + 41) };
                    let receipt: usize = ctx.step("charge", charge).await.unwrap();
                    if ctx.attempt() == 1 {
                        ctx.save(&json!({ "tried": ctx.attempt() })).await.unwrap();
                        return Outcome::Retry {
                            error: ErrorInfo::new("failed", "parcel lost"),
                            after: Some(Duration::from_millis(20)),
                        };
                    }
                    let saved = ctx.checkpoint().map(Json::value);
                    Outcome::Done(Json::from(json!([receipt, saved])))
                }
            }),
        )
    });
    let id = add(&engine, spec("order")).await;
    let record = end(&engine, id).await;
    assert_eq!(record.result.unwrap().value(), json!([41, { "tried": 1 }]));
    assert_eq!(charges.load(Ordering::SeqCst), 1);
}

async fn a_shutdown_gives_tasks_back_and_the_next_node_finishes_them(bench: &Bench) {
    let started = Arc::new(tokio::sync::Notify::new());
    let slow = |seconds: f64| {
        let started = Arc::clone(&started);
        move |b: EngineBuilder| {
            b.handler(
                "slow",
                fun(move |ctx| {
                    let started = Arc::clone(&started);
                    async move {
                        started.notify_one();
                        tokio::select! {
                            () = tokio::time::sleep(Duration::from_secs_f64(seconds)) => Outcome::Done(Json::null()),
                            () = ctx.cancellation().cancelled() => Outcome::Cancelled,
                        }
                    }
                }),
            )
        }
    };
    let first = bench.node(slow(60.0));
    let id = add(&first, spec("slow")).await;
    // The store says running a moment before the node has its answer; only the handler knows that it runs.
    started.notified().await;
    let report = first.shutdown(Duration::from_millis(50)).await;
    assert_eq!((report.given_back, report.stuck, report.unsaved), (1, 0, 0));
    let second = bench.node(slow(0.01));
    let record = end(&second, id).await;
    assert_eq!(
        (record.lifecycle.state, record.lifecycle.attempt),
        (State::Completed, 1)
    );
}

async fn a_node_that_stops_is_not_given_its_own_tasks_again(bench: &Bench) {
    const ROUNDS: u32 = 8;
    let started = Arc::new(tokio::sync::Notify::new());
    let hang = |b: EngineBuilder| {
        let started = Arc::clone(&started);
        b.handler(
            "hang",
            fun(move |ctx| {
                let started = Arc::clone(&started);
                async move {
                    started.notify_one();
                    ctx.cancellation().cancelled().await;
                    Outcome::Cancelled
                }
            }),
        )
    };
    let mut id = None;
    for round in 1..=ROUNDS {
        let node = bench.node(hang);
        let id = match id {
            Some(id) => id,
            None => *id.insert(add(&node, spec("hang")).await),
        };
        started.notified().await;
        // A claim of this node waits at the store for its other slots when the task goes back.
        node.shutdown(Duration::ZERO).await;
        let events = bench.store.events("default", id).await.unwrap();
        let starts = events.iter().filter(|event| event.kind == EventKind::Started).count();
        // On a server a statement that is under way may still take it, and then gives it back.
        if bench.store.stats().await.unwrap().kind != "postgres" {
            assert_eq!(starts, round as usize, "{events:#?}");
        }
        let mut record = bench.store.task("default", id).await.unwrap().unwrap();
        while record.lifecycle.state == State::Running {
            tokio::time::sleep(Duration::from_millis(5)).await;
            record = bench.store.task("default", id).await.unwrap().unwrap();
        }
        assert_eq!((record.lifecycle.state, record.lifecycle.attempt), (State::Queued, 1));
    }
}

async fn logs_and_progress_are_kept_in_order(bench: &Bench) {
    let engine = bench.node(|b| {
        b.handler(
            "chatty",
            fun(|ctx| async move {
                for line in 0..50 {
                    ctx.log(format!("line {line}"));
                    ctx.progress(f64::from(line), None);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Outcome::Done(Json::null())
            }),
        )
    });
    let id = add(&engine, spec("chatty")).await;
    let record = end(&engine, id).await;
    assert_eq!(record.progress.map(|p| p.percent), Some(49.0));
    let lines: Vec<_> = engine
        .store()
        .logs("default", id, 0, 100)
        .await
        .unwrap()
        .into_iter()
        .map(|e| e.line.message)
        .collect();
    assert_eq!(lines, (0..50).map(|line| format!("line {line}")).collect::<Vec<_>>());
}

async fn bulk_operations_reach_every_match(bench: &Bench) {
    let engine = bench.node(|b| b);
    let mut failing = retry_in(with("fail", json!({ "times": 1 })), 1);
    failing.max_retries = Some(0);
    failing.details_mut().tags = vec!["batch".to_owned()];
    let ids = add_all(&engine, vec![NewTask::new(failing); 230]).await;
    for id in &ids {
        assert_eq!(end(&engine, *id).await.lifecycle.state, State::Failed);
    }
    let request = |action| BulkRequest {
        action,
        filter: TaskFilter {
            tag: Some("batch".to_owned()),
            ..TaskFilter::default()
        }
        .into(),
        all: false,
        dry_run: false,
    };
    let call = Call::new("tester", engine.now());
    let retry = engine.bulk(&call, request(BulkAction::Retry)).await.unwrap();
    assert_eq!((retry.matched, retry.exact), (230, true));
    let done = end(&engine, retry.task.unwrap()).await;
    assert_eq!(done.result.unwrap().value()["done"], json!(230));
    for id in &ids {
        until(&engine, *id, State::Completed).await;
    }
    let call = Call::new("tester", engine.now());
    let delete = engine.bulk(&call, request(BulkAction::Delete)).await.unwrap();
    let done = end(&engine, delete.task.unwrap()).await;
    assert_eq!(done.result.unwrap().value()["done"], json!(230));
    assert!(engine.store().task("default", ids[0]).await.unwrap().is_none());
}
