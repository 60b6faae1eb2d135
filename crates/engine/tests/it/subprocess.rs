//! The `command` handler with real subprocesses, on the machine's clock.

use std::sync::Arc;
use std::time::Duration;

use pensum_core::model::ModelStore;
use pensum_core::store::{Call, Command};
use pensum_core::task::{Dependency, OnDependencyFailure};
use pensum_core::{NewTask, Spec, State, Status, Store, TaskId, TaskRecord};
use pensum_engine::{Engine, kinds};
use serde_json::json;

use crate::support::{error, with};

fn engine() -> Engine {
    crate::process::cgroups();
    let store: Arc<dyn Store> = Arc::new(ModelStore::new(3));
    let engine = Engine::builder(store)
        .builtin_handlers()
        .grace(Duration::from_secs(5))
        .lease(Duration::from_secs(1))
        .build();
    engine.start();
    engine
}

fn shell(script: &str) -> Spec {
    Spec {
        max_retries: Some(0),
        ..with("command", json!({ "program": "sh", "args": ["-c", script] }))
    }
}

async fn add(engine: &Engine, spec: Spec) -> TaskId {
    add_task(engine, NewTask::new(spec)).await
}

async fn add_task(engine: &Engine, task: NewTask) -> TaskId {
    engine
        .enqueue(&Call::new("tester", engine.now()), vec![task])
        .await
        .unwrap()[0]
        .id
}

async fn end(engine: &Engine, id: TaskId) -> TaskRecord {
    engine.wait("default", id, Some(Duration::from_secs(30))).await.unwrap()
}

async fn until(engine: &Engine, id: TaskId, what: impl Fn(&TaskRecord) -> bool) -> TaskRecord {
    for _ in 0..2_000 {
        let record = engine.store().task("default", id).await.unwrap().unwrap();
        if what(&record) {
            return record;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never came to it: {:?}", engine.store().task("default", id).await);
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

async fn log(engine: &Engine, id: TaskId) -> Vec<String> {
    let entries = engine.store().logs("default", id, 0, 100).await.unwrap();
    entries.into_iter().map(|e| e.line.message).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_s_output_is_its_result_and_its_log_and_its_usage_is_kept() {
    let engine = engine();
    let text = add(
        &engine,
        shell("echo hello; echo 'pensum:progress 40 almost half' >&2; echo oops >&2; sleep 0.4"),
    )
    .await;
    let object = add(
        &engine,
        shell("echo \"{\\\"task\\\": \\\"$PENSUM_TASK_ID\\\", \\\"attempt\\\": $PENSUM_ATTEMPT}\""),
    )
    .await;
    let record = end(&engine, text).await;
    assert_eq!(
        record.result.unwrap().value(),
        json!({ "stdout": "hello\n", "exit_code": 0 })
    );
    let progress = record.progress.unwrap();
    assert_eq!(
        (progress.percent, progress.message.as_deref()),
        (40.0, Some("almost half"))
    );
    let mut lines = log(&engine, text).await;
    lines.sort();
    assert_eq!(lines, ["hello", "oops"]);
    let record = end(&engine, object).await;
    assert_eq!(
        record.result.unwrap().value(),
        json!({ "task": object.to_string(), "attempt": 1 })
    );
    let executions = engine.store().executions("default", text).await.unwrap();
    assert!(executions[0].usage.wall_seconds >= 0.4 && executions[0].usage.memory_mb.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_fails_says_how() {
    let engine = engine();
    let code = add(&engine, shell("echo no such table >&2; exit 3")).await;
    let signal = add(&engine, shell("kill -KILL $$")).await;
    let missing = Spec {
        max_retries: Some(0),
        ..with("command", json!({ "program": "no-such-program-here" }))
    };
    let missing = add(&engine, missing).await;
    let (kind, message) = error(&end(&engine, code).await);
    assert_eq!(kind, kinds::EXIT_CODE);
    assert!(
        message.contains("code 3") && message.contains("no such table"),
        "{message}"
    );
    assert_eq!(
        error(&end(&engine, signal).await),
        (kinds::SIGNAL.to_owned(), "SIGKILL ended it".to_owned())
    );
    assert_eq!(error(&end(&engine, missing).await).0, kinds::SPAWN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_command_gets_sigterm_and_leaves_nothing_behind() {
    let engine = engine();
    let id = add(
        &engine,
        shell("trap 'echo bye; exit 0' TERM; sleep 77.1 & echo started; wait"),
    )
    .await;
    loop {
        if log(&engine, id).await == ["started"] {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    command(&engine, id, Command::Cancel { reason: None }).await;
    let record = end(&engine, id).await;
    assert_eq!(
        record.lifecycle.state,
        State::Cancelled,
        "exit code 0 after SIGTERM is no success"
    );
    assert!(log(&engine, id).await.contains(&"bye".to_owned()));
    let ps = std::process::Command::new("pgrep")
        .args(["-f", "^sleep 77.1"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&ps.stdout), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_past_its_timeout_is_ended_and_failed() {
    let engine = engine();
    let id = add(
        &engine,
        Spec {
            timeout: Some(Duration::from_millis(300)),
            ..shell("sleep 60")
        },
    )
    .await;
    assert_eq!(error(&end(&engine, id).await).0, kinds::TIMEOUT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_command_stands_still_with_its_clocks_and_goes_on_when_resumed() {
    let engine = engine();
    let script = "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.1; done";
    let id = add(
        &engine,
        Spec {
            timeout: Some(Duration::from_millis(2500)),
            ..shell(script)
        },
    )
    .await;
    while log(&engine, id).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    command(&engine, id, Command::Pause).await;
    let record = until(&engine, id, |r| r.lifecycle.paused_at.is_some()).await;
    assert_eq!(
        (record.lifecycle.state, Status::of(&record.lifecycle, engine.now())),
        (State::Running, Status::Paused)
    );
    let before = log(&engine, id).await.len();
    // Longer than the timeout: nothing of it may count.
    tokio::time::sleep(Duration::from_millis(2600)).await;
    assert!(
        log(&engine, id).await.len() <= before + 2,
        "it went on while it was paused"
    );
    assert_eq!(
        engine
            .store()
            .task("default", id)
            .await
            .unwrap()
            .unwrap()
            .lifecycle
            .state,
        State::Running
    );
    command(&engine, id, Command::Resume).await;
    let record = end(&engine, id).await;
    assert_eq!(record.lifecycle.state, State::Completed, "{record:?}");
    assert_eq!(log(&engine, id).await, ["1", "2", "3", "4", "5", "6", "7", "8"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_ends_commands_and_gives_their_tasks_back() {
    let engine = engine();
    let id = add(&engine, shell("sleep 77.2")).await;
    until(&engine, id, |r| r.lifecycle.state == State::Running).await;
    let report = engine.shutdown(Duration::from_millis(100)).await;
    assert_eq!((report.given_back, report.stuck, report.unsaved), (1, 0, 0));
    let record = engine.store().task("default", id).await.unwrap().unwrap();
    assert!(
        record.lifecycle.state == State::Queued && record.lifecycle.failures == 0,
        "{record:?}"
    );
    let ps = std::process::Command::new("pgrep")
        .args(["-f", "^sleep 77.2"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&ps.stdout), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_up_command_is_told_which_dependencies_failed() {
    let engine = engine();
    let good = add(&engine, shell("true")).await;
    let bad = add(&engine, shell("false")).await;
    let mut cleanup = NewTask::new(shell("echo \"\\\"$PENSUM_FAILED_DEPENDENCIES\\\"\""));
    cleanup
        .depends_on
        .extend([Dependency::Task(good), Dependency::Task(bad)]);
    cleanup.spec.details_mut().on_dependency_failure = OnDependencyFailure::Run;
    let id = add_task(&engine, cleanup).await;
    assert_eq!(end(&engine, id).await.result.unwrap().value(), json!(bad.to_string()));
}
