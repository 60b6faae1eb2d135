//! Agents: polls, results and heartbeats over the model store, on a clock that stands still until nothing can run.

use std::time::Duration;

use pensum_core::agent::AgentCommand;
use pensum_core::breaker::BreakerCommand;
use pensum_core::input::{AgentInput, parse_object};
use pensum_core::store::{Command, NodeBeat, Rejected};
use pensum_core::task::ExecutionStatus;
use pensum_core::{NewTask, NodeId, State, TaskId};
use pensum_engine::{
    Accepted, AcceptedStatus, EngineError, EngineEvent, GateKind, Given, Heard, HeartbeatInput, PollInput, Polled,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{World, retry_in, spec, with, world};

impl World {
    async fn register(&self, id: &str, more: Value) {
        let mut agent = json!({ "id": id, "capabilities": ["x"] });
        agent.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let input = parse_object::<AgentInput>(agent.to_string().as_bytes()).unwrap();
        self.engine.register_agent(&self.call(), input).await.unwrap();
    }

    async fn try_poll(&self, agent: &str, poll: Value) -> Result<Polled, EngineError> {
        let input = parse_object::<PollInput>(poll.to_string().as_bytes()).unwrap();
        let over = CancellationToken::new();
        self.engine.poll_agent(&self.call(), agent, input, &over).await
    }

    async fn poll(&self, agent: &str, poll: Value) -> Polled {
        self.try_poll(agent, poll).await.unwrap()
    }

    /// Polls once for one task.
    async fn take(&self, agent: &str) -> Given {
        let mut polled = self.poll(agent, json!({ "session": "1" })).await;
        assert_eq!(polled.tasks.len(), 1);
        polled.tasks.remove(0)
    }

    /// Posts one result with a poll that has everything and asks for nothing else.
    async fn result(&self, agent: &str, given: &Given, outcome: Value) -> Accepted {
        let result = result(given, outcome);
        let polled = self
            .poll(
                agent,
                json!({ "session": "1", "have": [given.execution_id], "results": [result] }),
            )
            .await;
        polled.accepted.into_iter().next().unwrap()
    }

    async fn try_beat(&self, agent: &str, beat: Value) -> Result<Heard, EngineError> {
        let input = parse_object::<HeartbeatInput>(beat.to_string().as_bytes()).unwrap();
        self.engine.heartbeat_agent(&self.call(), agent, input).await
    }

    async fn beat(&self, agent: &str, given: &Given, more: Value) -> Heard {
        let mut execution = json!({ "execution_id": given.execution_id, "lease_token": given.lease_token });
        execution
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        self.try_beat(agent, json!({ "session": "1", "executions": [execution] }))
            .await
            .unwrap()
    }

    async fn gates(&self, id: TaskId) -> Vec<(GateKind, String)> {
        let explanation = self.engine.explain("default", id).await.unwrap();
        explanation.gates.into_iter().map(|g| (g.gate, g.message)).collect()
    }
}

fn result(given: &Given, outcome: Value) -> Value {
    json!({ "execution_id": given.execution_id, "lease_token": given.lease_token, "outcome": outcome })
}

fn tokens(polled: &Polled) -> Vec<String> {
    polled.tasks.iter().map(|given| given.lease_token.clone()).collect()
}

async fn sleep(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

#[track_caller]
fn fenced(answer: &Result<Polled, EngineError>) {
    assert!(
        matches!(answer, Err(EngineError::Rejected(Rejected::SessionFenced(_)))),
        "{answer:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_agent_takes_a_task_and_its_result_is_stored() {
    let world = world(|b| b);
    world.register("a", json!({})).await;
    let id = world.add(with("x", json!({ "n": 7 }))).await;
    let given = world.take("a").await;
    assert_eq!(given.execution_id, format!("{id}.1"));
    assert_eq!(
        (given.task.status.as_str(), given.task.parameters.get()),
        ("running", r#"{"n":7}"#)
    );
    assert_eq!(world.engine.agent("default", "a").await.unwrap().active_tasks, 1);
    sleep(2.0).await;
    let accepted = world
        .engine
        .complete_executions(
            &world.call(),
            vec![
                parse_object(
                    json!({ "execution_id": given.execution_id, "lease_token": given.lease_token,
                        "outcome": { "done": { "sum": 1 } }, "usage": { "cpu_seconds": 1.0 },
                        "logs": [{ "message": "last\n", "stream": "stderr" }],
                        "progress": { "percent": 120, "message": "nearly" } })
                    .to_string()
                    .as_bytes(),
                )
                .unwrap(),
            ],
        )
        .await
        .unwrap();
    assert_eq!(accepted[0].status, AcceptedStatus::Accepted, "{accepted:?}");
    let task = world.end(id).await;
    assert_eq!(
        (task.lifecycle.state, task.result.unwrap().get()),
        (State::Completed, r#"{"sum":1}"#)
    );
    assert_eq!(task.progress.unwrap().percent, 100.0);
    assert_eq!(world.messages(id).await, ["last"]);
    let executions = world.engine.store().executions("default", id).await.unwrap();
    let usage = executions[0].usage;
    assert_eq!((&*executions[0].executor_id, usage.wall_seconds), ("a", 2.0));
    assert_eq!((usage.cpu_seconds, usage.cpu_percent), (Some(1.0), Some(50.0)));
    let metrics = world.engine.metrics();
    assert_eq!((metrics.tasks_completed, metrics.runs), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn waiters_listeners_and_dependants_hear_of_an_agents_result() {
    let world = world(|b| b).start();
    world.register("a", json!({})).await;
    let mut events = world.engine.subscribe();
    let first = world.add(spec("x")).await;
    let mut second = NewTask::new(spec("noop"));
    second.depends_on.push(pensum_core::task::Dependency::Task(first));
    let second = world.add_task(second).await;
    let given = world.take("a").await;
    world
        .beat(
            "a",
            &given,
            json!({ "progress": { "percent": 5 }, "logs": [{ "message": "m" }] }),
        )
        .await;
    world.result("a", &given, json!({ "done": null })).await;
    assert_eq!(world.end(second).await.lifecycle.state, State::Completed);
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        if event.task() == first {
            seen.push(event.summary().event);
        }
        if let EngineEvent::Started { handler, attempt, .. } = &event
            && event.task() == first
        {
            assert_eq!((&**handler, *attempt), ("x", 1));
        }
    }
    assert_eq!(seen, ["enqueued", "started", "progress", "log", "ended"]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_given_again_with_the_same_token() {
    let world = world(|b| b);
    world.register("a", json!({ "max_concurrent_tasks": 2 })).await;
    world.add(spec("x")).await;
    let lost = world.poll("a", json!({ "session": "1", "max": 5 })).await;
    sleep(1.0).await;
    world.add(spec("x")).await;
    let again = world.poll("a", json!({ "session": "1", "max": 5 })).await;
    assert_eq!(tokens(&lost), tokens(&again));
    let have = &again.tasks[0].execution_id;
    let more = world
        .poll("a", json!({ "session": "1", "max": 5, "have": [have] }))
        .await;
    assert!(more.tasks.len() == 1 && more.tasks[0].execution_id != *have);
    // It is renewed where little of it is left: a first heartbeat may take a third of the lease.
    sleep(20.0).await;
    let late = world
        .poll("a", json!({ "session": "1", "have": [more.tasks[0].execution_id] }))
        .await;
    assert_eq!(late.tasks[0].execution_id, *have);
    assert_eq!(
        late.tasks[0].lease_expires_at,
        world.engine.now().plus(Duration::from_secs(30))
    );
    let result = result(&late.tasks[0], json!({ "done": 1 }));
    let polled = world
        .poll("a", json!({ "session": "1", "have": [], "results": [result] }))
        .await;
    assert_eq!(polled.accepted[0].status, AcceptedStatus::Accepted);
}

#[tokio::test(start_paused = true)]
async fn a_poll_waits_for_a_task_and_a_newer_one_of_the_session_ends_it() {
    let world = world(|b| b);
    world.register("a", json!({ "lease": 3 })).await;
    let begun = world.engine.now();
    let waited = world.poll("a", json!({ "session": "1", "wait_ms": 30_000 })).await;
    assert!(waited.tasks.is_empty());
    let took = world.engine.now().since(begun).as_secs_f64();
    assert!((30.0..30.5).contains(&took), "{took}");
    // It was heard all the while.
    assert_eq!(
        world.engine.agent("default", "a").await.unwrap().status,
        pensum_core::agent::AgentStatus::Idle
    );

    let older = async { world.poll("a", json!({ "session": "1", "wait_ms": 30_000 })).await };
    let newer = async {
        sleep(1.0).await;
        let begun = world.engine.now();
        let polled = tokio::join!(world.poll("a", json!({ "session": "1", "wait_ms": 30_000 })), async {
            sleep(1.0).await;
            world.add(spec("x")).await;
        });
        (polled.0, world.engine.now().since(begun).as_secs_f64())
    };
    let (older, (newer, took)) = tokio::join!(older, newer);
    assert!(older.tasks.is_empty());
    assert_eq!(newer.tasks.len(), 1);
    assert!(took < 1.3, "{took}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_lets_go_of_the_polls_that_wait() {
    let world = world(|b| b).start();
    world.register("a", json!({})).await;
    let waiting = async {
        let polled = world.poll("a", json!({ "session": "1", "wait_ms": 30_000 })).await;
        (polled, world.engine.now())
    };
    let begun = world.engine.now();
    let ((polled, ended), _) = tokio::join!(waiting, async {
        sleep(1.0).await;
        world.engine.shutdown(Duration::ZERO).await
    });
    assert!(polled.tasks.is_empty());
    assert_eq!(ended.since(begun), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_newer_session_takes_over_and_the_older_is_refused() {
    let world = world(|b| b);
    world.register("a", json!({})).await;
    let id = world.add(spec("x")).await;
    let given = world.take("a").await;
    sleep(1.0).await;
    let taken = world.poll("a", json!({ "session": "2" })).await;
    // Its process is taken to have died, so the task is another attempt's.
    let other = &taken.tasks.first().expect("the task is free");
    assert_eq!(other.task.id, id);
    assert_ne!(other.lease_token, given.lease_token);
    let before = world.get(id).await;
    let refused = world
        .try_poll(
            "a",
            json!({ "session": "1", "results": [result(&given, json!({ "done": 1 }))] }),
        )
        .await;
    fenced(&refused);
    let beat = json!({ "execution_id": given.execution_id, "lease_token": given.lease_token, "checkpoint": 1 });
    let heard = world
        .try_beat("a", json!({ "session": "1", "executions": [beat] }))
        .await;
    assert!(matches!(heard, Err(EngineError::Rejected(Rejected::SessionFenced(_)))));
    // Without a session it is only this lease that is lost.
    let heard = world.try_beat("a", json!({ "executions": [beat] })).await.unwrap();
    assert_eq!(heard.lost, std::slice::from_ref(&given.execution_id));
    assert_eq!(world.get(id).await, before);
    fenced(&world.try_poll("a", json!({ "session": "1" })).await);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_leaves_gives_back_what_it_holds() {
    let world = world(|b| b);
    world.register("a", json!({})).await;
    world.register("b", json!({})).await;
    let id = world.add(spec("x")).await;
    world.take("a").await;
    world.engine.leave_agent(&world.call(), "a", "1").await.unwrap();
    let view = world.engine.agent("default", "a").await.unwrap();
    assert_eq!(
        (view.status, view.active_tasks),
        (pensum_core::agent::AgentStatus::Offline, 0)
    );
    let again = world.take("b").await;
    assert_eq!((again.task.id, again.task.attempt), (id, 1));
    let refused = world.engine.leave_agent(&world.call(), "a", "1").await;
    assert!(matches!(
        refused,
        Err(EngineError::Rejected(Rejected::SessionFenced(_)))
    ));
    let empty = world.engine.leave_agent(&world.call(), "a", "").await;
    assert!(matches!(empty, Err(EngineError::Invalid(_))));
}

#[tokio::test(start_paused = true)]
async fn a_repeated_result_changes_nothing_and_a_stale_one_is_refused() {
    let world = world(|b| b);
    world.register("a", json!({})).await;
    let check = async |outcome: Value, other: Value, state: State| {
        let id = world.add(retry_in(spec("x"), 600)).await;
        let given = world.take("a").await;
        assert_eq!(given.task.id, id);
        let first = world.result("a", &given, outcome.clone()).await;
        assert_eq!(first.status, AcceptedStatus::Accepted, "{outcome} {first:?}");
        let before = world.get(id).await;
        assert_eq!(before.lifecycle.state, state, "{outcome}");
        let repeat = world.result("a", &given, outcome.clone()).await;
        assert_eq!(
            (repeat.status, repeat.message),
            (AcceptedStatus::Repeat, None),
            "{outcome}"
        );
        let stale = world.result("a", &given, other.clone()).await;
        assert_eq!(stale.status, AcceptedStatus::LeaseLost, "{other} after {outcome}");
        assert!(stale.message.unwrap().contains("lease"));
        assert_eq!(world.get(id).await, before, "{outcome}");
    };
    let done = || json!({ "done": 1 });
    check(done(), json!({ "fail": { "message": "m" } }), State::Completed).await;
    check(
        json!({ "fail": { "message": "m", "type": "T" } }),
        done(),
        State::Failed,
    )
    .await;
    check(json!({ "retry": { "message": "m" } }), done(), State::Queued).await;
    check(
        json!({ "retry": { "message": "m", "after": 600 } }),
        json!({ "released": {} }),
        State::Queued,
    )
    .await;
    check(json!({ "cancelled": {} }), done(), State::Cancelled).await;
    check(json!({ "again": { "after": 600 } }), done(), State::Queued).await;
    check(
        json!({ "wait": { "signal": "go" } }),
        json!({ "yielded": {} }),
        State::Waiting,
    )
    .await;
    check(
        json!({ "wait": { "until": 600 } }),
        json!({ "again": {} }),
        State::Waiting,
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_ended_with_its_lease_is_no_repeat_of_a_result_that_says_so() {
    let world = world(|b| b).start();
    world.register("a", json!({ "lease": 3 })).await;
    let id = world.add(spec("x")).await;
    let given = world.take("a").await;
    world.command(id, Command::Cancel { reason: None }).await.unwrap();
    sleep(5.0).await;
    assert_eq!(world.get(id).await.lifecycle.state, State::Cancelled);
    for outcome in [json!({ "cancelled": {} }), json!({ "retry": { "message": "m" } })] {
        let late = world.result("a", &given, outcome.clone()).await;
        assert_eq!(late.status, AcceptedStatus::LeaseLost, "{outcome}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_ended_with_the_process_that_accepted_it_is_no_repeat_either() {
    let world = world(|b| b).start();
    world.register("a", json!({ "lease": 30 })).await;
    let process = NodeId(77);
    let beat = NodeBeat {
        node: process,
        name: "elsewhere".into(),
        version: "1".to_owned(),
        address: None,
        started_at: world.engine.now(),
        slots: 1,
        running: 0,
        ttl: Duration::from_secs(2),
    };
    let store = world.engine.store();
    store.heartbeat(beat, world.engine.now()).await.unwrap();
    let mut task = NewTask::new(spec("x"));
    task.accept_by(process);
    let id = store.enqueue(&world.call(), vec![task]).await.unwrap()[0].id;
    let given = world.take("a").await;
    assert_eq!(given.task.id, id);
    sleep(5.0).await;
    assert_eq!(world.get(id).await.lifecycle.state, State::Cancelled);
    for outcome in [json!({ "again": {} }), json!({ "retry": { "message": "m" } })] {
        let late = world.result("a", &given, outcome.clone()).await;
        assert_eq!(late.status, AcceptedStatus::LeaseLost, "{outcome}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_stored_is_invalid_and_changes_nothing() {
    let world = world(|b| b);
    world.register("a", json!({})).await;
    world.register("b", json!({})).await;
    let id = world.add(spec("x")).await;
    let given = world.take("a").await;
    world.poll("b", json!({ "session": "1" })).await;
    let before = world.get(id).await;
    let check =
        async |agent: &str, execution: &str, token: &str, outcome: Value, status: AcceptedStatus, part: &str| {
            let result = json!({ "execution_id": execution, "lease_token": token, "outcome": outcome });
            let polled = world
                .poll(
                    agent,
                    json!({ "session": "1", "have": [given.execution_id], "results": [result] }),
                )
                .await;
            let Accepted {
                status: found,
                message,
                execution_id,
            } = polled.accepted[0].clone();
            assert_eq!((found, &*execution_id), (status, execution), "{message:?}");
            assert!(message.clone().unwrap().contains(part), "{message:?} should say {part}");
            assert_eq!(world.get(id).await, before, "{part}");
        };
    let (execution, token) = (&*given.execution_id, &*given.lease_token);
    let invalid = AcceptedStatus::Invalid;
    let done = || json!({ "done": 1 });
    check(
        "b",
        execution,
        token,
        done(),
        invalid,
        "was given to agent `a`, not to `b`",
    )
    .await;
    check("a", "nonsense", token, done(), invalid, "is not an execution id").await;
    check(
        "a",
        execution,
        "nonsense",
        done(),
        invalid,
        "lease_token: is no lease token",
    )
    .await;
    check("a", &format!("{id}.2"), token, done(), invalid, "is of attempt 1").await;
    check(
        "a",
        execution,
        token,
        json!({ "done": "x".repeat(1 << 20) }),
        invalid,
        "the most is 1048576",
    )
    .await;
    check("a", execution, token, json!({ "done": "\0" }), invalid, "NUL").await;
    check(
        "a",
        execution,
        token,
        json!({ "finished": {} }),
        invalid,
        "is no outcome",
    )
    .await;
    check("a", execution, token, json!(7), invalid, "write an object").await;
    // Another lease than the one that was given, and another session's mark on the right one.
    let stale = format!("{}{}", "0".repeat(32), &token[32..]);
    check("a", execution, &stale, done(), AcceptedStatus::LeaseLost, "is lost").await;
    let altered = format!("{}{}{}", &token[..32], "0".repeat(16), &token[48..]);
    check("a", execution, &altered, done(), invalid, "was altered").await;
    let gone = TaskId::from_bytes([7; 16]);
    check(
        "a",
        &format!("{gone}.1"),
        token,
        done(),
        AcceptedStatus::LeaseLost,
        "there is no task",
    )
    .await;
    // The good among the bad are taken.
    let results = json!([
        result(&given, json!({ "fail": {} })),
        result(&given, done()),
        result(&given, done())
    ]);
    let polled = world.poll("a", json!({ "session": "1", "results": results })).await;
    let statuses: Vec<_> = polled.accepted.iter().map(|accepted| accepted.status).collect();
    assert_eq!(statuses, [invalid, AcceptedStatus::Accepted, AcceptedStatus::Repeat]);
    assert_eq!(world.get(id).await.lifecycle.state, State::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_keeps_the_lease_and_what_was_said() {
    let world = world(|b| b).start();
    world.register("a", json!({ "lease": 6 })).await;
    let id = world.add(spec("x")).await;
    let given = world.take("a").await;
    for n in 0..10 {
        sleep(4.0).await;
        let heard = world
            .beat(
                "a",
                &given,
                json!({ "progress": { "percent": n }, "logs": [{ "message": format!("line {n}") }], "checkpoint": { "n": n } }),
            )
            .await;
        assert_eq!(heard.lease_expires_at, world.engine.now().plus(Duration::from_secs(6)));
        assert!(heard.lost.is_empty() && heard.cancel.is_empty() && heard.pause.is_empty() && !heard.drain);
    }
    let task = world.get(id).await;
    assert_eq!(
        (task.lifecycle.state, task.progress.unwrap().percent),
        (State::Running, 9.0)
    );
    assert_eq!(world.messages(id).await.len(), 10);
    // Silent for longer than its lease, it loses the task, which goes on from its checkpoint.
    let task = world.until(id, |task| task.lifecycle.state == State::Queued).await;
    assert_eq!(task.lifecycle.attempt, 1);
    let heard = world.beat("a", &given, json!({ "checkpoint": 1 })).await;
    assert_eq!(heard.lost, std::slice::from_ref(&given.execution_id));
    let again = world.take("a").await;
    assert_eq!(
        again.checkpoint.map(|json| json.get().to_owned()).as_deref(),
        Some(r#"{"n":9}"#)
    );
    assert_ne!(again.lease_token, given.lease_token);
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_tells_what_was_asked() {
    let world = world(|b| b);
    world.register("a", json!({ "max_concurrent_tasks": 2 })).await;
    let (first, second) = (world.add(spec("x")).await, world.add(spec("x")).await);
    let tasks = world.poll("a", json!({ "session": "1", "max": 2 })).await.tasks;
    world.command(first, Command::Cancel { reason: None }).await.unwrap();
    world.command(second, Command::Pause).await.unwrap();
    world
        .engine
        .command_agent(&world.call(), "a", AgentCommand::Drain)
        .await
        .unwrap();
    let beats: Vec<Value> = tasks
        .iter()
        .map(|given| json!({ "execution_id": given.execution_id, "lease_token": given.lease_token }))
        .collect();
    let heard = world
        .try_beat("a", json!({ "session": "1", "executions": beats }))
        .await
        .unwrap();
    assert_eq!(heard.cancel, [tasks[0].execution_id.clone()]);
    assert_eq!(heard.pause, [tasks[1].execution_id.clone()]);
    assert!(heard.drain);
    world.result("a", &tasks[0], json!({ "cancelled": {} })).await;
    world
        .result("a", &tasks[1], json!({ "yielded": { "checkpoint": 3 } }))
        .await;
    assert_eq!(world.get(first).await.lifecycle.state, State::Cancelled);
    assert!(world.get(second).await.lifecycle.paused_at.is_some());
    // Foreign leases are lost to whoever names them, and stay with their holder.
    world.command(second, Command::Resume).await.unwrap();
    world.register("b", json!({})).await;
    let given = world.take("b").await;
    let heard = world.beat("a", &given, json!({ "checkpoint": "stolen" })).await;
    assert_eq!(heard.lost, std::slice::from_ref(&given.execution_id));
    assert!(world.beat("b", &given, json!({})).await.lost.is_empty());
    world.engine.leave_agent(&world.call(), "b", "1").await.unwrap();
    world
        .engine
        .command_agent(&world.call(), "a", AgentCommand::Undrain)
        .await
        .unwrap();
    assert_eq!(world.take("a").await.checkpoint.unwrap().get(), "3");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_takes_longer_than_its_timeout_is_ended_at_the_next_heartbeat() {
    let world = world(|b| b);
    world.register("a", json!({})).await;
    let mut limited = retry_in(spec("x"), 60);
    limited.timeout = Some(Duration::from_secs(10));
    let id = world.add(limited).await;
    let given = world.take("a").await;
    sleep(9.0).await;
    assert!(world.beat("a", &given, json!({})).await.lost.is_empty());
    sleep(1.5).await;
    let heard = world
        .beat(
            "a",
            &given,
            json!({ "logs": [{ "message": "too slow" }], "checkpoint": 5, "usage": { "memory_mb": 3 } }),
        )
        .await;
    assert_eq!(heard.lost, std::slice::from_ref(&given.execution_id));
    let executions = world.engine.store().executions("default", id).await.unwrap();
    let error = executions[0].error.clone().unwrap();
    assert_eq!(
        (&*error.kind, &*error.message),
        ("timeout", "it ran for longer than its timeout of 10 s")
    );
    assert_eq!(
        (executions[0].status, executions[0].usage.memory_mb),
        (ExecutionStatus::Failed, Some(3.0))
    );
    assert!(world.get(id).await.lifecycle.backing_off);
    assert_eq!(world.messages(id).await, ["too slow"]);
    let late = world.result("a", &given, json!({ "done": 1 })).await;
    assert_eq!(late.status, AcceptedStatus::LeaseLost);
}

#[tokio::test(start_paused = true)]
async fn a_draining_agent_gets_nothing_and_a_poll_that_waits_is_told() {
    let world = world(|b| b);
    world.register("a", json!({})).await;
    let waiting = async {
        let begun = world.engine.now();
        let polled = world.poll("a", json!({ "session": "1", "wait_ms": 20_000 })).await;
        (polled, world.engine.now().since(begun))
    };
    let ((polled, took), ()) = tokio::join!(waiting, async {
        sleep(1.1).await;
        let drained = world
            .engine
            .command_agent(&world.call(), "a", AgentCommand::Drain)
            .await
            .unwrap();
        assert!(drained.draining && drained.draining_at.is_some());
    });
    assert!(polled.drain && polled.tasks.is_empty());
    assert_eq!(took, Duration::from_millis(1_100));
    let id = world.add(spec("x")).await;
    let polled = world.poll("a", json!({ "session": "1", "wait_ms": 5_000 })).await;
    assert!(polled.drain && polled.tasks.is_empty());
    let gates = world.gates(id).await;
    assert!(
        gates[0].0 == GateKind::Agent && gates[0].1.contains("`a` is draining since"),
        "{gates:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn results_are_known_although_the_store_gives_no_more_tasks() {
    let world = world(|b| b);
    let unknown = world.try_poll("a", json!({ "session": "1" })).await;
    assert!(
        matches!(unknown, Err(EngineError::Rejected(Rejected::NoAgent(_)))),
        "{unknown:?}"
    );
    world.register("a", json!({})).await;
    world.add(spec("x")).await;
    let given = world.take("a").await;
    world
        .faults
        .lose_finish_reply
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let results = json!([result(&given, json!({ "done": 1 }))]);
    let lost = world.try_poll("a", json!({ "session": "1", "results": results })).await;
    assert!(matches!(lost, Err(EngineError::Store(_))), "{lost:?}");
    let polled = world.poll("a", json!({ "session": "1", "results": results })).await;
    assert_eq!(polled.accepted[0].status, AcceptedStatus::Repeat);
}

#[tokio::test(start_paused = true)]
async fn the_engines_own_names_are_no_capabilities() {
    let world = world(|b| b);
    let input = AgentInput {
        id: "a".to_owned(),
        capabilities: vec!["x".to_owned(), "pensum.bulk".to_owned()],
        ..AgentInput::default()
    };
    let refused = world.engine.register_agent(&world.call(), input).await.unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("capabilities[1]: names that begin with `pensum.`"),
        "{refused}"
    );
    assert!(world.engine.agents("default", None, None).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_task_that_no_agent_takes_says_why() {
    let world = world(|b| b);
    let check = async |id: TaskId, kind: GateKind, part: &str| {
        let gates = world.gates(id).await;
        assert!(
            gates.len() == 1 && gates[0].0 == kind && gates[0].1.contains(part),
            "{gates:?}"
        );
    };
    let plain = world.add(spec("x")).await;
    check(plain, GateKind::Capability, "there are no agents").await;
    world.register("other", json!({ "capabilities": ["y", "z"] })).await;
    check(plain, GateKind::Capability, "there are the agents `other` (y, z)").await;
    world
        .register("a", json!({ "resources": { "cpu_cores": 4 }, "name": "The first" }))
        .await;
    check(plain, GateKind::Turn, "given to an agent").await;

    let mut large = spec("x");
    large.details_mut().resources = Some(pensum_core::task::Resources {
        cpu_cores: Some(8.0),
        ..Default::default()
    });
    let large = world.add(large).await;
    check(
        large,
        GateKind::Resources,
        "agent `a` comes nearest, with 4 of 8 cpu_cores",
    )
    .await;

    world.take("a").await;
    let next = world.add(spec("x")).await;
    check(next, GateKind::Slot, "`a` runs 1 of 1 tasks").await;
    let mut kept = spec("noop");
    kept.details_mut().agent_id = Some("other".to_owned());
    kept.details_mut().requires = vec!["y".into()];
    let kept = world.add(kept).await;
    check(
        kept,
        GateKind::Agent,
        "it is kept for agent `other`, which runs 0 of 1 tasks",
    )
    .await;
    world.poll("other", json!({ "session": "1" })).await;
    let mut busy = spec("noop");
    busy.details_mut().agent_id = Some("other".to_owned());
    busy.details_mut().requires = vec!["y".into()];
    let busy = world.add(busy).await;
    check(busy, GateKind::Agent, "which is busy: it runs 1 of 1 tasks").await;
    check(kept, GateKind::Running, "it runs with agent `other`, attempt 1").await;
    sleep(31.0).await;
    check(next, GateKind::Agent, "`a` is offline since").await;
    check(busy, GateKind::Agent, "`other` is offline since").await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_finds_every_agents_machine_taken_is_told_what_is_free() {
    let world = world(|b| b);
    let asks = |cpu_cores: f64| {
        let mut spec = spec("x");
        let resources = pensum_core::task::Resources {
            cpu_cores: Some(cpu_cores),
            ..Default::default()
        };
        spec.details_mut().resources = Some(resources);
        spec
    };
    let offers = json!({ "resources": { "cpu_cores": 4 }, "max_concurrent_tasks": 3 });
    world.register("a", offers).await;
    let running = world.add(asks(3.0)).await;
    world.take("a").await;
    let next = world.add(asks(2.0)).await;
    let gates = world.gates(next).await;
    assert!(
        gates.len() == 1 && gates[0].0 == GateKind::Resources && gates[0].1.contains("`a` has 1 of 2 cpu_cores free"),
        "{gates:?}"
    );
    let small = world.add(asks(1.0)).await;
    assert_eq!(world.gates(small).await[0].0, GateKind::Turn);
    world.command(running, Command::Cancel { reason: None }).await.unwrap();
    sleep(31.0).await;
    let gates = world.engine.explain("default", next).await.unwrap().gates;
    assert_eq!((gates.len(), gates[0].gate), (1, GateKind::Agent), "{gates:?}");
    // Closed since the agent fell silent, and not since the task was there.
    assert!(gates[0].since > Some(world.get(next).await.created_at), "{gates:?}");
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_agents_are_left_alone_names_the_breaker() {
    let world = world(|b| b);
    world.register("a", json!({})).await;
    let task = world.add(spec("x")).await;
    let ready_at = world.get(task).await.lifecycle.ready_at;
    let name = "agent:a";
    let settings = parse_object(b"{}").unwrap();
    world
        .engine
        .put_breaker(&world.call(), name, settings, None)
        .await
        .unwrap();
    let since = async || {
        let gates = world.engine.explain("default", task).await.unwrap().gates;
        assert_eq!(gates.len(), 1, "{gates:?}");
        (gates[0].gate, gates[0].since)
    };
    assert_eq!(since().await, (GateKind::Turn, ready_at));
    sleep(3.0).await;
    let trip = BreakerCommand::Trip;
    let open = world.engine.command_breaker(&world.call(), name, trip).await.unwrap();
    assert_eq!(since().await, (GateKind::Breaker, open.opened_at));
    assert!(world.poll("a", json!({ "session": "1" })).await.tasks.is_empty());
    // One of its agents that is not left alone is enough.
    world.register("b", json!({})).await;
    assert_eq!(since().await, (GateKind::Turn, ready_at));
}

#[tokio::test(start_paused = true)]
async fn the_status_names_the_agents_and_how_well_they_do() {
    let world = world(|b| b);
    world.register("a", json!({ "name": "The first" })).await;
    world.register("b", json!({})).await;
    for outcome in [json!({ "done": 1 }), json!({ "fail": { "message": "m" } })] {
        world.add(spec("x")).await;
        let given = world.take("a").await;
        world.result("a", &given, outcome).await;
    }
    world.add(spec("x")).await;
    world.take("a").await;
    let status = world.engine.status().await.unwrap();
    assert_eq!(status.registered_agents, 2);
    assert_eq!(
        serde_json::to_value(&status.agent_status).unwrap(),
        json!({ "a": { "name": "The first", "status": "busy", "active_tasks": 1, "health_score": 0.5 },
            "b": { "name": "b", "status": "idle", "active_tasks": 0, "health_score": 1.0 } })
    );
    let idle = pensum_core::agent::AgentStatus::Idle;
    let names = async |status, capability| -> Vec<String> {
        let agents = world.engine.agents("default", status, capability).await.unwrap();
        agents.into_iter().map(|agent| agent.id).collect()
    };
    assert_eq!(names(Some(idle), None).await, ["b"]);
    assert_eq!(names(None, Some("x")).await, ["a", "b"]);
    assert!(names(None, Some("y")).await.is_empty());
    world.engine.remove_agent(&world.call(), "a").await.unwrap();
    let gone = world.engine.remove_agent(&world.call(), "a").await;
    assert!(matches!(gone, Err(EngineError::Rejected(Rejected::NoAgent(_)))));
    assert_eq!(names(None, None).await, ["b"]);
}
