//! Agents: who takes what, whose session holds, and what becomes of what an agent held.

use std::sync::Arc;
use std::time::Duration;

use pensum_core::agent::{AGENT_LEASE, AgentCommand, AgentRecord, AgentSettings, AgentStatus, Amounts};
use pensum_core::queue::QueueSettings;
use pensum_core::store::{AgentClaim, Beat, Checkpoint, ClaimRequest, Claimed, Rejected, Renewal, StoreError};
use pensum_core::task::{ExecutionStatus, Resources};
use pensum_core::{ExecutionId, Name, NewTask, NodeId, Outcome, State, TaskId};

use super::World;
use super::world::{NODE, ids, json, task_with};

const SESSION: NodeId = NodeId(71);
const NEWER: NodeId = NodeId(72);
const OTHER: NodeId = NodeId(73);

fn able(capabilities: &[&str], slots: u32) -> AgentSettings {
    AgentSettings {
        capabilities: capabilities.iter().map(|c| Name::from(*c)).collect(),
        max_concurrent_tasks: slots,
        ..AgentSettings::default()
    }
}

fn amounts(cpu: f64, memory: f64) -> Resources {
    Resources {
        cpu_cores: Some(cpu),
        memory_gb: Some(memory),
        ..Resources::default()
    }
}

fn with_resources(settings: AgentSettings, cpu: f64, memory: f64) -> AgentSettings {
    AgentSettings {
        resources: Some(amounts(cpu, memory)),
        ..settings
    }
}

/// A task of the handler `work`.
fn work(with: impl FnOnce(&mut NewTask)) -> NewTask {
    task_with(|t| {
        t.spec.handler = Name::from("work");
        with(t);
    })
}

fn preferring(agent: &str) -> NewTask {
    work(|t| t.spec.details_mut().agent_id = Some(agent.to_owned()))
}

fn taking(cpu: f64, memory: f64) -> NewTask {
    work(|t| t.spec.details_mut().resources = Some(amounts(cpu, memory)))
}

fn some(count: usize) -> Vec<NewTask> {
    (0..count).map(|_| work(|_| {})).collect()
}

async fn register(w: &World, name: &str, settings: AgentSettings) -> AgentRecord {
    w.store.put_agent(&w.call(), Name::from(name), settings).await.unwrap()
}

async fn open(w: &World, name: &str, session: NodeId) -> AgentRecord {
    w.store
        .open_session(&w.call(), Name::from(name), session)
        .await
        .unwrap()
}

/// An agent with an open session.
async fn agent(w: &World, name: &str, session: NodeId, settings: AgentSettings) {
    register(w, name, settings).await;
    open(w, name, session).await;
}

fn poll(w: &World, name: &str, session: NodeId, slots: usize, have: &[&Claimed]) -> ClaimRequest {
    let have = have.iter().map(|c| execution(c)).collect();
    ClaimRequest {
        node: session,
        executor: Name::from(name),
        agent: Some(AgentClaim {
            namespace: Name::from("default"),
            name: Name::from(name),
            have,
        }),
        ..w.request(slots)
    }
}

fn execution(claimed: &Claimed) -> ExecutionId {
    ExecutionId {
        task: claimed.lease.task,
        attempt: claimed.lifecycle.attempt,
    }
}

async fn try_take(
    w: &World,
    name: &str,
    session: NodeId,
    slots: usize,
    have: &[&Claimed],
) -> Result<Vec<Claimed>, StoreError> {
    w.store.claim(poll(w, name, session, slots, have), w.now()).await
}

async fn take(w: &World, name: &str, session: NodeId, slots: usize, have: &[&Claimed]) -> Vec<Claimed> {
    try_take(w, name, session, slots, have).await.unwrap()
}

async fn known(w: &World, name: &str) -> AgentRecord {
    let agents = w.store.agents("default").await.unwrap();
    agents.into_iter().find(|agent| *agent.name == *name).unwrap()
}

async fn status(w: &World, name: &str) -> AgentStatus {
    known(w, name).await.status(w.now())
}

fn is<T: std::fmt::Debug>(answer: Result<T, StoreError>, wanted: &Rejected) {
    match answer {
        Err(StoreError::Rejected(rejected)) => assert_eq!(rejected, *wanted),
        other => panic!("{other:?} should be {wanted:?}"),
    }
}

pub(crate) async fn an_agent_is_listed_as_it_registered(w: &World) {
    let settings = AgentSettings {
        title: Some("A worker".to_owned()),
        agent_type: Some("coder".to_owned()),
        agent_version: Some("1.2".to_owned()),
        labels: [("zone".to_owned(), "eu".to_owned())].into(),
        ..with_resources(able(&["b", "a"], 3), 2.5, 4.0)
    };
    let record = register(w, "w", settings.clone()).await;
    assert_eq!((record.version, &*record.put_by, record.running), (1, "tester", 0));
    assert_eq!((&record.settings, record.created_at), (&settings, w.now()));
    w.pass(1.0);
    assert_eq!(register(w, "w", settings.clone()).await.version, 1);
    let changed = register(w, "w", able(&["c"], 1)).await;
    assert_eq!((changed.version, changed.changed_at), (2, w.now()));
    register(w, "v", able(&["c"], 1)).await;
    let other = w.call_in("elsewhere");
    w.store.put_agent(&other, Name::from("w"), settings).await.unwrap();
    let names = |agents: Vec<AgentRecord>| agents.iter().map(|a| a.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(w.store.agents("default").await.unwrap()), ["v", "w"]);
    assert_eq!(names(w.store.agents("elsewhere").await.unwrap()), ["w"]);
    assert_eq!(known(w, "w").await, changed);
    w.store.delete_agent(&w.call(), Name::from("w")).await.unwrap();
    assert_eq!(names(w.store.agents("default").await.unwrap()), ["v"]);
    is(
        w.store.delete_agent(&w.call(), Name::from("w")).await,
        &Rejected::NoAgent("w".into()),
    );
    assert_eq!(names(w.store.agents("elsewhere").await.unwrap()), ["w"]);
}

pub(crate) async fn an_agent_is_idle_busy_or_offline_by_its_leases_and_by_when_it_was_heard(w: &World) {
    register(w, "w", able(&["work"], 2)).await;
    assert_eq!(status(w, "w").await, AgentStatus::Idle);
    w.pass(AGENT_LEASE.as_secs_f64());
    assert_eq!(status(w, "w").await, AgentStatus::Offline);
    open(w, "w", SESSION).await;
    assert_eq!(status(w, "w").await, AgentStatus::Idle);
    w.add(work(|_| {})).await;
    let held = take(w, "w", SESSION, 5, &[]).await;
    assert_eq!((held.len(), known(w, "w").await.running), (1, 1));
    assert_eq!(status(w, "w").await, AgentStatus::Busy);
    w.pass(20.0);
    let beat = w.store.beat_agent(&w.call(), Name::from("w"), Some(SESSION)).await;
    assert_eq!(beat.unwrap().running, 1);
    w.pass(20.0);
    assert_eq!(status(w, "w").await, AgentStatus::Busy);
    take(w, "w", SESSION, 1, &[&held[0]]).await;
    w.pass(20.0);
    assert_eq!(status(w, "w").await, AgentStatus::Busy);
    w.store.beat_agent(&w.call(), Name::from("w"), None).await.unwrap();
    w.done(&held[0]).await;
    assert_eq!(status(w, "w").await, AgentStatus::Idle);
    w.store
        .close_session(&w.call(), Name::from("w"), SESSION)
        .await
        .unwrap();
    assert_eq!(status(w, "w").await, AgentStatus::Offline);
}

pub(crate) async fn an_agent_takes_what_it_is_capable_of(w: &World) {
    agent(w, "w", SESSION, able(&["work", "gpu"], 10)).await;
    let requiring = |list: &[&str]| {
        let list: Vec<Name> = list.iter().map(|r| Name::from(*r)).collect();
        task_with(|t| t.spec.details_mut().requires = list)
    };
    let all = w
        .add_all(vec![
            task_with(|_| {}),
            work(|_| {}),
            requiring(&["gpu"]),
            requiring(&["gpu", "tpu"]),
            requiring(&["gpu", "work"]),
        ])
        .await;
    let elsewhere = w.call_in("elsewhere");
    w.store.enqueue(&elsewhere, vec![work(|_| {})]).await.unwrap();
    let held = take(w, "w", SESSION, 10, &[]).await;
    assert_eq!(ids(&held), [all[1], all[2], all[4]]);
    assert!(held.iter().all(|c| *c.namespace == *"default"));
    let execution = &w.store.executions("default", all[1]).await.unwrap()[0];
    assert_eq!(execution.executor_id, "w");
}

pub(crate) async fn an_agent_never_holds_more_tasks_than_it_runs_at_once(w: &World) {
    agent(w, "w", SESSION, able(&["work"], 3)).await;
    w.add_all(some(10)).await;
    let two = take(w, "w", SESSION, 2, &[]).await;
    assert_eq!(two.len(), 2);
    let third = take(w, "w", SESSION, 10, &[&two[0], &two[1]]).await;
    assert_eq!(third.len(), 1);
    let have = [&two[0], &two[1], &third[0]];
    assert!(take(w, "w", SESSION, 10, &have).await.is_empty());
    w.done(&two[0]).await;
    assert_eq!(take(w, "w", SESSION, 10, &have[1..]).await.len(), 1);
    register(w, "w", able(&["work"], 1)).await;
    w.done(&two[1]).await;
    w.done(&third[0]).await;
    // One is left, and was not named: it comes again.
    assert_eq!(take(w, "w", SESSION, 10, &[]).await.len(), 1);
}

pub(crate) async fn resources_are_never_given_out_twice(w: &World) {
    agent(w, "w", SESSION, with_resources(able(&["work"], 100), 4.0, 8.0)).await;
    let big = w.add(taking(4.5, 0.0)).await;
    let cores = w.add_all((0..6).map(|_| taking(1.0, 0.5)).collect()).await;
    let light = w.add(work(|_| {})).await;
    let memory = w.add(taking(0.0, 6.5)).await;
    let held = take(w, "w", SESSION, 100, &[]).await;
    assert_eq!(ids(&held), [cores[0], cores[1], cores[2], cores[3], light]);
    let have: Vec<&Claimed> = held.iter().collect();
    assert!(take(w, "w", SESSION, 100, &have).await.is_empty());
    w.done(&held[0]).await;
    // Another core is free, and half a GB: the next of one core is older than the one of much memory.
    let next = take(w, "w", SESSION, 100, &have[1..]).await;
    assert_eq!(ids(&next), [cores[4]]);
    w.done(&held[1]).await;
    let have = [&held[2], &held[3], &held[4], &next[0]];
    let last = take(w, "w", SESSION, 100, &have).await;
    assert_eq!(ids(&last), [cores[5]]);
    for done in [&held[2], &held[3], &next[0]] {
        w.done(done).await;
    }
    assert_eq!(ids(&take(w, "w", SESSION, 100, &[&held[4], &last[0]]).await), [memory]);
    assert_eq!(w.state(big).await, State::Queued);
    // A node has what it says it has.
    let node = |cpu: f64| ClaimRequest {
        resources: Some(Amounts::of(&amounts(cpu, 64.0))),
        ..w.request(10)
    };
    assert!(w.store.claim(node(4.0), w.now()).await.unwrap().is_empty());
    let more = w.add(taking(2.0, 0.0)).await;
    assert_eq!(ids(&w.store.claim(node(5.0), w.now()).await.unwrap()), [big]);
    assert!(w.store.claim(node(5.0), w.now()).await.unwrap().is_empty());
    assert_eq!(ids(&w.store.claim(w.request(1), w.now()).await.unwrap()), [more]);
}

pub(crate) async fn a_task_is_kept_for_the_agent_that_it_prefers_while_that_one_lives(w: &World) {
    agent(w, "best", SESSION, able(&["work"], 1)).await;
    agent(w, "other", OTHER, able(&["work"], 5)).await;
    let tasks = w
        .add_all(vec![preferring("best"), preferring("best"), work(|_| {})])
        .await;
    assert_eq!(ids(&take(w, "other", OTHER, 5, &[]).await), [tasks[2]]);
    w.claim_nothing().await;
    let held = take(w, "best", SESSION, 5, &[]).await;
    assert_eq!(ids(&held), [tasks[0]]);
    // It is full, and still waited for.
    w.claim_nothing().await;
    w.pass(AGENT_LEASE.as_secs_f64());
    assert_eq!(ids(&w.claim(5).await), [tasks[1]]);
}

pub(crate) async fn a_preference_falls_back_on_others_when_the_agent_cannot(w: &World) {
    let nobody = w.add(preferring("nobody")).await;
    assert_eq!(w.claim_one().await.lease.task, nobody);
    agent(w, "draining", SESSION, able(&["work"], 5)).await;
    let draining = w.add(preferring("draining")).await;
    w.claim_nothing().await;
    let asked = async |command| w.store.command_agent(&w.call(), Name::from("draining"), command).await;
    let record = asked(AgentCommand::Drain).await.unwrap();
    assert_eq!((record.draining_at, record.version), (Some(w.now()), 2));
    assert_eq!(asked(AgentCommand::Drain).await.unwrap().version, 2);
    assert!(take(w, "draining", SESSION, 5, &[]).await.is_empty());
    assert_eq!(w.claim_one().await.lease.task, draining);
    let again = w.add(preferring("draining")).await;
    assert_eq!(asked(AgentCommand::Undrain).await.unwrap().draining_at, None);
    w.claim_nothing().await;
    assert_eq!(ids(&take(w, "draining", SESSION, 5, &[]).await), [again]);
    agent(w, "unable", OTHER, able(&["else"], 5)).await;
    let unable = w.add(preferring("unable")).await;
    assert_eq!(w.claim_one().await.lease.task, unable);
    let small = w.add(work(|t| {
        t.spec.details_mut().agent_id = Some("draining".to_owned());
        t.spec.details_mut().resources = Some(amounts(1.0, 0.0));
    }));
    let small = small.await;
    assert_eq!(w.claim_one().await.lease.task, small);
}

pub(crate) async fn what_an_answer_lost_is_answered_again_before_anything_new(w: &World) {
    agent(w, "w", SESSION, able(&["work"], 5)).await;
    let tasks = w.add_all(some(4)).await;
    let first = take(w, "w", SESSION, 2, &[]).await;
    let checkpoint = Checkpoint {
        state: Some(json("{\"at\":1}")),
        ..Checkpoint::new(first[1].lease)
    };
    w.store.checkpoint(checkpoint, w.now()).await.unwrap().unwrap();
    let mut again = take(w, "w", SESSION, 5, &[&first[0]]).await;
    assert_eq!(ids(&again), [tasks[1]]);
    assert_eq!(again[0].lease, first[1].lease);
    assert_eq!(again[0].checkpoint, Some(json("{\"at\":1}")));
    assert_eq!(again[0].spec, first[1].spec);
    assert_eq!(again[0].lifecycle.attempt, 1);
    again = take(w, "w", SESSION, 1, &[]).await;
    again.sort_by_key(|claimed| claimed.lease.task.row());
    assert_eq!(ids(&again), [tasks[0], tasks[1]]);
    let next = take(w, "w", SESSION, 5, &[&first[0], &first[1]]).await;
    assert_eq!(ids(&next), [tasks[2], tasks[3]]);
    for claimed in first.iter().chain(&next) {
        w.done(claimed).await;
    }
    assert!(take(w, "w", SESSION, 5, &[]).await.is_empty());
}

pub(crate) async fn a_newer_session_fences_the_older_one(w: &World) {
    agent(w, "w", SESSION, able(&["work"], 5)).await;
    let id = w.add(work(|t| t.spec.max_retries = Some(0))).await;
    let held = take(w, "w", SESSION, 1, &[]).await;
    let fenced = Rejected::SessionFenced("w".into());
    is(try_take(w, "w", NEWER, 1, &[]).await, &fenced);
    w.pass(1.0);
    open(w, "w", NEWER).await;
    is(try_take(w, "w", SESSION, 1, &[]).await, &fenced);
    is(w.store.open_session(&w.call(), "w".into(), SESSION).await, &fenced);
    is(w.store.beat_agent(&w.call(), "w".into(), Some(SESSION)).await, &fenced);
    is(w.store.close_session(&w.call(), "w".into(), SESSION).await, &fenced);
    let late = w.finish(held[0].lease, Outcome::Done(json("1"))).await;
    assert_eq!(late, Err(Rejected::LeaseLost(id)));
    let renewal = Beat {
        lease: held[0].lease,
        progress: None,
        logs: Vec::new(),
    };
    let renewed = w.store.renew(vec![renewal], AGENT_LEASE, w.now()).await.unwrap();
    assert_eq!(renewed, [Renewal::Lost]);
    // The death of an agent is no failure of its task, which runs alone next.
    let execution = w.store.executions("default", id).await.unwrap().remove(0);
    assert_eq!(execution.status, ExecutionStatus::Crashed);
    assert_eq!(execution.error.map(|e| e.kind).as_deref(), Some("crashed_agent"));
    assert!(w.get(id).await.lifecycle.suspect);
    let again = take(w, "w", NEWER, 5, &[]).await;
    assert_eq!((ids(&again), again[0].lifecycle.attempt), (vec![id], 2));
    w.done(&again[0]).await;
}

pub(crate) async fn a_closed_session_gives_back_what_it_held(w: &World) {
    agent(w, "w", SESSION, able(&["work"], 5)).await;
    let id = w.add(work(|_| {})).await;
    let held = take(w, "w", SESSION, 1, &[]).await;
    w.store.close_session(&w.call(), "w".into(), SESSION).await.unwrap();
    assert_eq!(
        w.finish(held[0].lease, Outcome::Done(json("1"))).await,
        Err(Rejected::LeaseLost(id))
    );
    let again = w.claim_one().await;
    assert_eq!((again.lease.task, again.lifecycle.attempt), (id, 1));
    assert!(!w.get(id).await.lifecycle.suspect);
    is(
        w.store.open_session(&w.call(), "w".into(), SESSION).await,
        &Rejected::SessionFenced("w".into()),
    );
    assert_eq!(open(w, "w", NEWER).await.running, 0);
}

pub(crate) async fn a_removed_agent_loses_what_it_held(w: &World) {
    agent(w, "w", SESSION, able(&["work"], 5)).await;
    let id = w.add(work(|_| {})).await;
    let held = take(w, "w", SESSION, 1, &[]).await;
    w.store.delete_agent(&w.call(), "w".into()).await.unwrap();
    assert_eq!(
        w.finish(held[0].lease, Outcome::Done(json("1"))).await,
        Err(Rejected::LeaseLost(id))
    );
    is(try_take(w, "w", SESSION, 1, &[]).await, &Rejected::NoAgent("w".into()));
    let again = w.claim_one().await;
    assert_eq!((again.lease.task, again.lifecycle.attempt), (id, 2));
}

pub(crate) async fn a_task_whose_agent_fell_silent_runs_elsewhere(w: &World) {
    agent(w, "w", SESSION, able(&["work"], 5)).await;
    let ids_of = w.add_all(some(2)).await;
    let held = take(w, "w", SESSION, 5, &[]).await;
    w.pass(10.0);
    let beat = |claimed: &Claimed| Beat {
        lease: claimed.lease,
        progress: None,
        logs: Vec::new(),
    };
    w.store.renew(vec![beat(&held[0])], AGENT_LEASE, w.now()).await.unwrap();
    w.store.beat_agent(&w.call(), "w".into(), Some(SESSION)).await.unwrap();
    w.pass(8.0);
    w.store.beat_agent(&w.call(), "w".into(), Some(SESSION)).await.unwrap();
    w.pass(12.0);
    // The agent lives and did not renew the second: no crash.
    assert_eq!(w.reap().await.leases_expired, 1);
    let executions = |id: TaskId| w.store.executions("default", id);
    assert_eq!(w.state(ids_of[1]).await, State::Queued);
    assert!(!w.get(ids_of[1]).await.lifecycle.suspect);
    w.pass(10.0);
    // Now it is not heard any more.
    assert_eq!(w.reap().await.leases_expired, 1);
    let crashed = executions(ids_of[0]).await.unwrap().remove(0);
    assert_eq!(crashed.error.map(|e| e.kind).as_deref(), Some("crashed_agent"));
    assert!(w.get(ids_of[0]).await.lifecycle.suspect);
    w.pass(8.0);
    assert_eq!(status(w, "w").await, AgentStatus::Offline);
    assert_eq!(w.claim(1).await.len(), 1);
}

pub(crate) async fn a_cancel_reaches_an_agent_with_its_renewal(w: &World) {
    agent(w, "w", SESSION, able(&["work"], 5)).await;
    let id = w.add(work(|_| {})).await;
    let held = take(w, "w", SESSION, 1, &[]).await;
    w.cancel(id).await.unwrap();
    let beat = Beat {
        lease: held[0].lease,
        progress: None,
        logs: Vec::new(),
    };
    match w.store.renew(vec![beat], AGENT_LEASE, w.now()).await.unwrap()[0] {
        Renewal::Held { cancel, pause, .. } => assert!(cancel && !pause),
        Renewal::Lost => panic!("the lease holds until the agent has stopped"),
    }
    w.finish(held[0].lease, Outcome::Cancelled).await.unwrap();
    assert_eq!(w.state(id).await, State::Cancelled);
}

pub(crate) async fn queues_and_keys_hold_for_agents_too(w: &World) {
    let width = QueueSettings {
        max_concurrent: Some(2),
        ..QueueSettings::default()
    };
    w.store
        .put_queue(&w.call(), "narrow".into(), width, None)
        .await
        .unwrap();
    let narrow = |_| work(|t| t.spec.queue = "narrow".into());
    w.add_all((0..5).map(narrow).collect()).await;
    let keyed = |_| work(|t| t.spec.key = Some("k".into()));
    w.add_all((0..3).map(keyed).collect()).await;
    agent(w, "w", SESSION, able(&["work"], 50)).await;
    agent(w, "v", OTHER, able(&["work"], 50)).await;
    let held = take(w, "w", SESSION, 50, &[]).await;
    assert_eq!(held.len(), 3);
    assert!(take(w, "v", OTHER, 50, &[]).await.is_empty());
    w.claim_nothing().await;
    for claimed in &held {
        w.done(claimed).await;
    }
    assert_eq!(take(w, "v", OTHER, 50, &[]).await.len(), 3);
}

pub(crate) async fn a_parked_agent_is_woken_by_what_it_can_do(w: &World) {
    agent(w, "w", SESSION, able(&["work"], 1)).await;
    agent(w, "v", OTHER, able(&["else"], 1)).await;
    let store = Arc::clone(&w.store);
    // A store may answer early, with nothing: then the agent asks again.
    let parked = |name: &str, session| {
        let request = ClaimRequest {
            wait: Duration::from_secs(5),
            ..poll(w, name, session, 1, &[])
        };
        let (store, now) = (Arc::clone(&store), w.now());
        tokio::spawn(async move {
            loop {
                let claimed = store.claim(request.clone(), now).await?;
                if !claimed.is_empty() {
                    return Ok(claimed);
                }
                tokio::task::yield_now().await;
            }
        })
    };
    let (for_work, for_else) = (parked("w", SESSION), parked("v", OTHER));
    tokio::task::yield_now().await;
    let id = w.add(work(|_| {})).await;
    let claimed: Result<Vec<Claimed>, StoreError> = for_work.await.unwrap();
    assert_eq!(ids(&claimed.unwrap()), [id]);
    assert!(!for_else.is_finished());
    open(w, "v", NEWER).await;
    is(for_else.await.unwrap(), &Rejected::SessionFenced("v".into()));
}

pub(crate) async fn agents_are_carried_into_a_copy_without_their_sessions(w: &World) {
    agent(w, "w", SESSION, with_resources(able(&["work"], 5), 2.0, 2.0)).await;
    let drain = AgentCommand::Drain;
    w.store.command_agent(&w.call(), "w".into(), drain).await.unwrap();
    let id = w.add(preferring("w")).await;
    let other = super::dossiers::copy(w).await;
    let copied = known(&other, "w").await;
    assert_eq!(copied, known(w, "w").await.registration());
    assert_eq!(copied.status(w.now()), AgentStatus::Offline);
    assert_eq!(other.claim_one().await.lease.task, id);
    other.verify().await;
}

pub(crate) async fn an_unknown_agent_is_refused_everything(w: &World) {
    let nobody = Rejected::NoAgent("w".into());
    is(try_take(w, "w", SESSION, 1, &[]).await, &nobody);
    is(w.store.open_session(&w.call(), "w".into(), SESSION).await, &nobody);
    is(w.store.close_session(&w.call(), "w".into(), SESSION).await, &nobody);
    is(w.store.beat_agent(&w.call(), "w".into(), None).await, &nobody);
    is(
        w.store.command_agent(&w.call(), "w".into(), AgentCommand::Drain).await,
        &nobody,
    );
    register(w, "w", able(&["work"], 1)).await;
    // A claim opens no session.
    is(
        try_take(w, "w", SESSION, 1, &[]).await,
        &Rejected::SessionFenced("w".into()),
    );
    assert_eq!(w.store.claim(w.request(1), w.now()).await.unwrap().len(), 0);
    assert_ne!(SESSION, NODE);
}
