//! Tasks that are not durable: they end with the process that accepted them.

use std::time::Duration;

use pensum_core::outcome::Wait;
use pensum_core::store::{Beat, Call, Checkpoint, ClaimRequest, Command, Finish, NodeBeat, Rejected, Renewal};
use pensum_core::task::{Dependency, ExecutionStatus, NewTask, OnConflict, OnDependencyFailure, Unique};
use pensum_core::transition::EventKind;
use pensum_core::{Name, NodeId, Outcome, State, TaskId};

use super::World;
use super::dossiers::copy;
use super::world::{LEASE, NODE, after, json, retry, task, task_with};

/// The process that accepts; [`NODE`] is the one that runs tasks.
const PROCESS: NodeId = NodeId(u64::MAX - 2);
const TTL: Duration = Duration::from_secs(15);

async fn lives(w: &World, node: NodeId) -> u64 {
    let beat = NodeBeat {
        node,
        name: Name::from(node.to_string()),
        version: "1".to_owned(),
        address: None,
        started_at: w.now(),
        slots: 8,
        running: 0,
        ttl: TTL,
    };
    w.store.heartbeat(beat, w.now()).await.unwrap().commands
}

async fn leaves(w: &World, node: NodeId) {
    w.store.leave(node, w.now()).await.unwrap();
}

fn volatile() -> NewTask {
    volatile_with(|_| {})
}

fn volatile_with(with: impl FnOnce(&mut NewTask)) -> NewTask {
    task_with(|task| {
        with(task);
        task.accept_by(PROCESS);
    })
}

fn by(process: Option<NodeId>, w: &World) -> Call {
    Call { process, ..w.call() }
}

async fn retry_by(w: &World, process: Option<NodeId>, id: TaskId) -> Result<State, Rejected> {
    let answers = w.store.command(&by(process, w), vec![id], Command::Retry).await;
    let applied = answers.unwrap().remove(0)?;
    Ok(applied.state.unwrap())
}

async fn is_abandoned(w: &World, id: TaskId) {
    let record = w.get(id).await;
    assert_eq!(record.lifecycle.state, State::Cancelled);
    let error = record.error.unwrap();
    let message = format!("{PROCESS}, which accepted it, has ended, and its queue was not persistent");
    assert_eq!((&*error.kind, error.message), ("process_ended", message));
    let events = w.store.events("default", id).await.unwrap();
    let last = events.last().unwrap();
    assert_eq!((last.kind, last.actor.as_deref()), (EventKind::Cancelled, None));
    assert_eq!(last.error.as_ref().map(|e| &*e.kind), Some("process_ended"));
}

pub(crate) async fn a_task_that_is_not_durable_says_so_to_its_end(w: &World) {
    lives(w, PROCESS).await;
    let (id, durable) = (w.add(volatile()).await, w.add(task()).await);
    let record = w.get(id).await;
    assert!(!record.spec.is_durable() && w.get(durable).await.spec.is_durable());
    assert_eq!(record.lifecycle.accepted_by, Some(PROCESS));
    let patch = pensum_core::input::Patch {
        description: Some(Some("another".to_owned())),
        ..Default::default()
    };
    w.store.update(&w.call(), id, patch, None).await.unwrap().unwrap();
    assert!(!w.get(id).await.spec.is_durable());
    let claimed = w.claim_one().await;
    assert_eq!((claimed.lease.task, claimed.spec.is_durable()), (id, false));
    w.finish(claimed.lease, retry()).await.unwrap();
    assert_eq!(w.get(id).await.lifecycle.accepted_by, Some(PROCESS));
    retry_by(w, Some(NODE), id).await.unwrap();
    // Only a task that had ended is revived; this one goes on, with whoever accepted it.
    assert_eq!(w.get(id).await.lifecycle.accepted_by, Some(PROCESS));
    let claimed = w.claim_one().await;
    w.done(&claimed).await;
    let record = w.get(id).await;
    assert!(!record.spec.is_durable());
    assert_eq!(record.lifecycle.accepted_by, None);
    leaves(w, PROCESS).await;
    assert_eq!(w.reap().await.moved(), 0);
    assert_eq!(w.state(id).await, State::Completed);
}

pub(crate) async fn a_task_ends_with_the_process_that_accepted_it(w: &World) {
    lives(w, NODE).await;
    lives(w, PROCESS).await;
    let waits = w.add(volatile()).await;
    let claimed = w.claim_one().await;
    let on = Wait::Signal {
        name: Name::from("go"),
        until: None,
    };
    let outcome = Outcome::Wait { on, checkpoint: None };
    w.finish(claimed.lease, outcome).await.unwrap();
    let retrying = w.add(volatile()).await;
    let claimed = w.claim_one().await;
    w.finish(claimed.lease, retry()).await.unwrap();
    let running = w.add(volatile()).await;
    w.claim_one().await;
    let paused = w.add(volatile()).await;
    w.command(paused, Command::Pause).await.unwrap();
    let ready = w.add(volatile()).await;
    let later = w.now().plus(Duration::from_secs(600));
    let delayed = w.add(volatile_with(|task| task.run_at = Some(later))).await;
    let durable = w.add(task()).await;
    let blocked = task_with(|task| task.depends_on = [Dependency::Task(durable)].into_iter().collect());
    let blocked = w.add(volatile_with(|task| *task = blocked)).await;
    let tasks = [waits, retrying, running, paused, ready, delayed, blocked];
    assert_eq!(w.reap().await.moved(), 0);
    leaves(w, PROCESS).await;
    let reaped = w.reap().await;
    assert_eq!((reaped.abandoned, reaped.moved()), (7, 7));
    let ended = tasks.map(|id| (id, State::Cancelled));
    let mut found = reaped.ended;
    found.sort_by_key(|(id, _)| id.row());
    assert_eq!(found, ended);
    for id in tasks {
        is_abandoned(w, id).await;
    }
    assert_eq!(w.claim_one().await.lease.task, durable);
    assert_eq!(w.reap().await.moved(), 0);
    let executions = w.store.executions("default", running).await.unwrap();
    assert_eq!(executions.last().unwrap().status, ExecutionStatus::Cancelled);
}

pub(crate) async fn a_process_that_is_silent_or_was_never_heard_has_ended(w: &World) {
    lives(w, PROCESS).await;
    let silent = w.add(volatile()).await;
    let never_heard = w.add(task_with(|task| task.accept_by(NodeId(77)))).await;
    let reaped = w.reap().await;
    assert_eq!(reaped.ended, [(never_heard, State::Cancelled)]);
    w.pass(TTL.as_secs_f64() - 0.1);
    assert_eq!(w.reap().await.abandoned, 0);
    w.pass(0.1);
    assert_eq!(w.reap().await.ended, [(silent, State::Cancelled)]);
    is_abandoned(w, silent).await;
}

pub(crate) async fn nothing_ends_while_its_process_lives(w: &World) {
    let id = {
        lives(w, PROCESS).await;
        w.add(volatile()).await
    };
    for _ in 0..5 {
        w.pass(TTL.as_secs_f64() - 1.0);
        lives(w, PROCESS).await;
        assert_eq!(w.reap().await.moved(), 0);
    }
    // The death of another node is the crash of a run, and not the end of the task.
    lives(w, NODE).await;
    w.claim_one().await;
    for _ in 0..4 {
        w.pass(TTL.as_secs_f64() - 1.0);
        lives(w, PROCESS).await;
    }
    let reaped = w.reap().await;
    assert_eq!((reaped.leases_expired, reaped.abandoned), (1, 0));
    assert_eq!(w.state(id).await, State::Queued);
    assert_eq!(w.get(id).await.lifecycle.accepted_by, Some(PROCESS));
}

pub(crate) async fn whoever_ran_it_has_lost_its_lease(w: &World) {
    lives(w, PROCESS).await;
    let id = w.add(volatile()).await;
    let claimed = w.claim_one().await;
    let commands = lives(w, NODE).await;
    leaves(w, PROCESS).await;
    assert_eq!(w.reap().await.abandoned, 1);
    // Its node is told to look.
    assert!(lives(w, NODE).await > commands);
    let beat = Beat {
        lease: claimed.lease,
        progress: None,
        logs: Vec::new(),
    };
    let renewed = w.store.renew(vec![beat], LEASE, w.now()).await.unwrap();
    assert_eq!(renewed, [Renewal::Lost]);
    let lost = Err(Rejected::LeaseLost(id));
    assert_eq!(w.finish(claimed.lease, Outcome::Done(json("1"))).await, lost);
    let checkpoint = Checkpoint::new(claimed.lease);
    let late = w.store.checkpoint(checkpoint, w.now()).await.unwrap();
    assert_eq!(late, lost);
    is_abandoned(w, id).await;
}

pub(crate) async fn what_it_held_up_goes_on(w: &World) {
    lives(w, PROCESS).await;
    let unique = || {
        Some(Box::new(Unique {
            key: Name::from("one"),
            ttl: None,
            on_conflict: OnConflict::Reject,
        }))
    };
    let parent = w.add(task()).await;
    let claimed = w.claim_one().await;
    let on = Wait::Children;
    let children = Finish {
        spawn: vec![volatile()],
        ..Finish::new(claimed.lease, Outcome::Wait { on, checkpoint: None })
    };
    let child = w.end(children).await.unwrap().spawned[0];
    let keyed = |task: &mut NewTask| task.spec.key = Some(Name::from("key"));
    let held = volatile_with(|task| {
        keyed(task);
        task.unique = unique();
    });
    let held = w.add(held).await;
    let successor = w.add(task_with(keyed)).await;
    let cancelled = w.add(after(&[Dependency::Task(held)])).await;
    let mut run = after(&[Dependency::Task(held)]);
    run.spec.details_mut().on_dependency_failure = OnDependencyFailure::Run;
    let released = w.add(run).await;
    let taken = w.try_add(vec![task_with(|task| task.unique = unique())]).await;
    assert!(taken.is_err());
    leaves(w, PROCESS).await;
    assert_eq!(w.reap().await.abandoned, 2);
    is_abandoned(w, child).await;
    is_abandoned(w, held).await;
    assert_eq!(w.error_kind(cancelled).await.as_deref(), Some("dependency_failed"));
    w.add(task_with(|task| task.unique = unique())).await;
    let mut started = super::world::ids(&w.claim(10).await);
    started.truncate(3);
    assert_eq!(started, [parent, successor, released]);
}

pub(crate) async fn a_revived_task_lives_with_the_process_that_revived_it(w: &World) {
    lives(w, NODE).await;
    let id = w.add(volatile()).await;
    w.reap().await;
    is_abandoned(w, id).await;
    let refused = retry_by(w, None, id).await.unwrap_err();
    assert!(matches!(refused, Rejected::Forbidden { task, state: State::Cancelled, .. } if task == id));
    assert_eq!(retry_by(w, Some(NODE), id).await, Ok(State::Queued));
    let record = w.get(id).await;
    assert_eq!(
        (record.spec.is_durable(), record.lifecycle.accepted_by),
        (false, Some(NODE))
    );
    assert_eq!(w.reap().await.moved(), 0);
    let claimed = w.claim_one().await;
    w.fail(&claimed).await;
    assert_eq!(retry_by(w, Some(NODE), id).await, Ok(State::Queued));
    leaves(w, NODE).await;
    assert_eq!(w.reap().await.ended, [(id, State::Cancelled)]);
    // A durable task needs nobody.
    let durable = w.add(task()).await;
    w.cancel(durable).await.unwrap();
    for process in [None, Some(NODE)] {
        assert_eq!(retry_by(w, process, durable).await, Ok(State::Queued));
        assert_eq!(w.get(durable).await.lifecycle.accepted_by, None);
        w.cancel(durable).await.unwrap();
    }
}

pub(crate) async fn a_pass_cancels_no_more_than_its_limit(w: &World) {
    lives(w, NODE).await;
    lives(w, PROCESS).await;
    let ids = w.add_all((0..5).map(|_| volatile()).collect()).await;
    let others = w.add(task_with(|task| task.accept_by(NODE))).await;
    w.command(ids[1], Command::Delete).await.unwrap();
    leaves(w, PROCESS).await;
    let pass = async || {
        let reaped = w.store.reap(w.now(), 3).await.unwrap();
        reaped.ended.into_iter().map(|(id, _)| id).collect::<Vec<_>>()
    };
    assert_eq!(pass().await, [ids[0], ids[2], ids[3]]);
    assert_eq!(pass().await, [ids[4]]);
    assert!(pass().await.is_empty());
    assert_eq!(w.state(others).await, State::Queued);
}

pub(crate) async fn durable_tasks_of_the_same_batch_stay(w: &World) {
    let ids = w.add_all(vec![task(), volatile(), task(), volatile()]).await;
    w.reap().await;
    let request = ClaimRequest { ..w.request(10) };
    let claimed = w.store.claim(request, w.now()).await.unwrap();
    assert_eq!(super::world::ids(&claimed), [ids[0], ids[2]]);
    is_abandoned(w, ids[1]).await;
    is_abandoned(w, ids[3]).await;
}

pub(crate) async fn a_copy_carries_it_and_cancels_it(w: &World) {
    lives(w, PROCESS).await;
    let (id, durable) = (w.add(volatile()).await, w.add(task()).await);
    let copy = copy(w).await;
    assert_eq!(copy.get(id).await.lifecycle.accepted_by, Some(PROCESS));
    copy.verify().await;
    let reaped = copy.reap().await;
    assert_eq!(reaped.ended, [(id, State::Cancelled)]);
    is_abandoned(&copy, id).await;
    assert_eq!(copy.state(durable).await, State::Queued);
    assert_eq!(w.reap().await.moved(), 0);
    assert_eq!(w.state(id).await, State::Queued);
    copy.verify().await;
}
