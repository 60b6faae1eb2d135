//! A store with a task in every state that it can rest in, each with all that a task leaves behind.

use std::time::Duration;

use pensum_core::input::Patch;
use pensum_core::outcome::{Progress, Usage, Wait};
use pensum_core::store::{Beat, Checkpoint, ClaimRequest, Claimed, Command, Finish, LogLine, LogStream};
use pensum_core::task::{Dependency, NewTask, OnConflict, OnDependencyFailure, Unique};
use pensum_core::{ErrorInfo, Json, Name, Outcome, Priority, State, TaskId};

use super::World;
use super::world::{json, retry, task_with};

/// A task of its own queue, so that it can be claimed by itself.
pub(crate) fn of(queue: &str) -> NewTask {
    task_with(|t| t.spec.queue = Name::from(queue))
}

pub(crate) fn of_with(queue: &str, with: impl FnOnce(&mut NewTask)) -> NewTask {
    let mut task = of(queue);
    with(&mut task);
    task
}

pub(crate) fn unique(queue: &str, key: &str, ttl: Option<u64>, on_conflict: OnConflict) -> NewTask {
    of_with(queue, |t| {
        t.unique = Some(Box::new(Unique {
            key: Name::from(key),
            ttl: ttl.map(Duration::from_secs),
            on_conflict,
        }));
    })
}

/// Enqueues a task and claims it.
pub(crate) async fn start(w: &World, task: NewTask) -> Claimed {
    let queue = task.spec.queue.clone();
    w.add(task).await;
    w.pass(0.25);
    claim_of(w, &queue).await
}

pub(crate) async fn claim_of(w: &World, queue: &str) -> Claimed {
    let request = ClaimRequest {
        queues: Some([Name::from(queue)].into()),
        ..w.request(1)
    };
    let mut claimed = w.store.claim(request, w.now()).await.unwrap();
    w.pass(0.25);
    claimed.pop().unwrap_or_else(|| panic!("{queue} should have a task"))
}

pub(crate) async fn end(w: &World, claimed: &Claimed, outcome: Outcome) {
    w.finish(claimed.lease, outcome).await.unwrap();
    w.pass(0.25);
}

pub(crate) fn line(w: &World, message: &str) -> LogLine {
    LogLine {
        at: w.now(),
        attempt: 1,
        stream: LogStream::Stderr,
        message: message.to_owned(),
    }
}

pub(crate) fn broken(kind: &str) -> ErrorInfo {
    ErrorInfo::new(kind, "it \"broke\"\nin two lines – überall")
}

/// Gives a task another tag.
async fn change(w: &World, id: TaskId, tag: &str) {
    let changed = Patch {
        tags: Some(vec![tag.to_owned()]),
        ..Patch::default()
    };
    w.store.update(&w.call(), id, changed, None).await.unwrap().unwrap();
    w.pass(0.25);
}

/// Tasks that have ended, in every way that there is.
async fn add_ended(w: &World) {
    let rich = start(
        w,
        of_with("rich", |t| {
            t.spec.parameters = json(r#"{"b": 1.10, "a":[ ]}"#);
            t.spec.timeout = Some(Duration::from_millis(1500));
            t.spec.max_retries = Some(7);
            t.spec.deadline = Some(w.now().plus(Duration::from_secs(90)));
            let details = t.spec.details_mut();
            details.name = Some("a name".to_owned());
            details.tags = vec!["red".to_owned(), "blue".to_owned()];
            details.created_by = Some("someone".to_owned());
            details.assigned_to = Some("someone else".to_owned());
            details.metadata = Some(json(r#"{"ratio":0.1}"#));
        }),
    )
    .await;
    let beat = Beat {
        lease: rich.lease,
        progress: None,
        logs: vec![line(w, "one"), line(w, "")],
    };
    w.store.renew(vec![beat], super::world::LEASE, w.now()).await.unwrap();
    w.end(Finish {
        usage: Usage {
            cpu_seconds: Some(0.1 + 0.2),
            cpu_percent: Some(33.333_333_333_333_336),
            memory_mb: None,
            read_mb: None,
            written_mb: None,
            wall_seconds: 1.0 / 3.0,
        },
        progress: Some(Progress {
            percent: 100.0 / 3.0,
            message: Some("half".to_owned()),
        }),
        logs: vec![line(w, "two")],
        ..Finish::new(rich.lease, Outcome::Done(json(r#"{"n":1e3}"#)))
    })
    .await
    .unwrap();
    let plain = start(w, of("plain")).await;
    end(w, &plain, Outcome::Done(Json::null())).await;
    change(w, plain.lease.task, "late").await;

    // Failed for good after a first attempt that was retried.
    let failing = start(w, of_with("failing", |t| t.spec.max_retries = Some(1))).await;
    end(w, &failing, retry()).await;
    w.pass(2.0);
    let again = claim_of(w, "failing").await;
    end(w, &again, retry()).await;
    assert_eq!(w.state(failing.lease.task).await, State::Failed);
    change(w, failing.lease.task, "mended").await;
    change(w, failing.lease.task, "mended again").await;

    let queued = w.add(of("cancelled")).await;
    w.cancel(queued).await.unwrap();
    let stopped = start(w, of("stopped")).await;
    let reason = Command::Cancel {
        reason: Some("not needed".to_owned()),
    };
    w.command(stopped.lease.task, reason).await.unwrap();
    end(w, &stopped, Outcome::Cancelled).await;
    // Cancelled between two attempts: the end of the task is the end of none of them.
    let between = start(w, of("between")).await;
    end(w, &between, retry()).await;
    w.cancel(between.lease.task).await.unwrap();
    // Given back, taken again in the same moment, and only then ended: two starts of one attempt.
    let twice = w.add(of("twice")).await;
    let request = || ClaimRequest {
        queues: Some([Name::from("twice")].into()),
        ..w.request(1)
    };
    for outcome in [Outcome::Released, Outcome::Done(Json::null())] {
        let claimed = w.store.claim(request(), w.now()).await.unwrap().remove(0);
        w.finish(claimed.lease, outcome).await.unwrap();
    }
    assert_eq!(w.state(twice).await, State::Completed);
    let expired = w
        .add(of_with("expired", |t| {
            t.spec.details_mut().expires_at = Some(w.now().plus(Duration::from_secs(1)));
        }))
        .await;
    w.pass(2.0);
    w.reap().await;
    assert_eq!(w.state(expired).await, State::Cancelled);
}

/// Tasks that wait for something, each for another thing.
async fn add_waiting(w: &World) {
    let parent = start(w, of("parent")).await;
    let wait = Outcome::Wait {
        on: Wait::Children,
        checkpoint: Some(json(r#""spawned""#)),
    };
    let spawn = vec![of("child one"), of("child two")];
    let finish = Finish {
        spawn,
        ..Finish::new(parent.lease, wait)
    };
    assert_eq!(w.end(finish).await.unwrap().spawned.len(), 2);
    let child = claim_of(w, "child one").await;
    end(w, &child, Outcome::Done(Json::null())).await;

    let signal = start(w, of("signal")).await;
    let on = Wait::Signal {
        name: Name::from("go"),
        until: Some(w.now().plus(Duration::from_secs(600))),
    };
    let wait = Outcome::Wait { on, checkpoint: None };
    end(w, &signal, wait).await;
    let time = start(w, of("time")).await;
    let until = w.now().plus(Duration::from_secs(120));
    let wait = Outcome::Wait {
        on: Wait::Until(until),
        checkpoint: None,
    };
    end(w, &time, wait).await;

    let later = of_with("later", |t| t.run_at = Some(w.now().plus(Duration::from_secs(300))));
    w.add(later).await;
    let backing = start(w, of("backing off")).await;
    let error = broken("busy");
    let after = Some(Duration::from_secs(200));
    end(w, &backing, Outcome::Retry { error, after }).await;
    let paused = w.add(of("paused")).await;
    w.command(paused, Command::Pause).await.unwrap();
    let patient = of_with("patient", |t| {
        t.spec.details_mut().queue_timeout = Some(Duration::from_secs(3000).into());
        t.spec.details_mut().expires_at = Some(w.now().plus(Duration::from_secs(5000)));
    });
    w.add(patient).await;

    let done = start(w, of("done")).await;
    end(w, &done, Outcome::Done(Json::null())).await;
    let ready = w.add(of("needed")).await;
    for policy in [OnDependencyFailure::Cancel, OnDependencyFailure::Run] {
        w.add(of_with("dependant", |t| {
            t.depends_on = vec![Dependency::Task(done.lease.task), Dependency::Task(ready)].into();
            t.spec.details_mut().on_dependency_failure = policy;
        }))
        .await;
    }
    // Item 0 waits for item 1: its row comes before the row that it depends on.
    let forwards = of_with("forwards", |t| t.depends_on = vec![Dependency::Item(1)].into());
    w.add_all(vec![forwards, of("behind")]).await;
}

/// Tasks that are ready, with all that a task may have left behind meanwhile.
async fn add_ready(w: &World) {
    for priority in [Priority::Low, Priority::Critical] {
        w.add(of_with("ready", |t| t.spec.priority = priority)).await;
    }
    w.add(of_with("ready", |t| {
        t.spec.deadline = Some(w.now().plus(Duration::from_secs(60)))
    }))
    .await;
    for _ in 0..2 {
        w.add(of_with("keyed", |t| t.spec.key = Some(Name::from("one")))).await;
    }
    let saved = start(w, of("saved")).await;
    let checkpoint = Checkpoint {
        state: Some(json(r#"{"at": 7}"#)),
        step: Some((Name::from("second"), json("2"))),
        ..Checkpoint::new(saved.lease)
    };
    let step = Checkpoint {
        step: Some((Name::from("a first"), json("1"))),
        ..Checkpoint::new(saved.lease)
    };
    for checkpoint in [checkpoint, step] {
        w.store.checkpoint(checkpoint, w.now()).await.unwrap().unwrap();
    }
    for n in 0..3 {
        let signal = Command::Signal {
            name: Name::from("note"),
            payload: json(&format!("[{n}]")),
        };
        w.command(saved.lease.task, signal).await.unwrap();
    }
    let finish = Finish {
        logs: vec![line(w, "given back")],
        progress: Some(Progress {
            percent: 12.5,
            message: None,
        }),
        ..Finish::new(saved.lease, Outcome::Released)
    };
    w.end(finish).await.unwrap();
    let again = start(w, of("again")).await;
    let outcome = Outcome::Again {
        after: Duration::ZERO,
        checkpoint: Some(json("1")),
    };
    end(w, &again, outcome).await;

    let revived = start(w, of("revived")).await;
    end(w, &revived, Outcome::Fail(broken("boom"))).await;
    w.command(revived.lease.task, Command::Retry).await.unwrap();
    let changed = w.add(of("changed")).await;
    let patch = Patch {
        priority: Some(Priority::High),
        ..Patch::default()
    };
    w.store.update(&w.call(), changed, patch, None).await.unwrap().unwrap();
    // Its lease runs out.
    start(w, of("lost")).await;
    w.pass(31.0);
    assert_eq!(w.reap().await.leases_expired, 1);
    w.store
        .enqueue(&w.call_in("elsewhere"), vec![of("ready")])
        .await
        .unwrap();
}

async fn add_unique(w: &World) {
    w.add(unique("unique", "held", None, OnConflict::Keep)).await;
    w.add(unique("unique", "held for a while", Some(900), OnConflict::Keep))
        .await;
    for (key, ttl) in [("outlives its task", Some(900)), ("free again", None)] {
        let claimed = start(w, unique("ended", key, ttl, OnConflict::Keep)).await;
        end(w, &claimed, Outcome::Fail(broken("boom"))).await;
        // It ends as it begins, and lets go of its key.
        let mut doomed = unique("doomed", "doomed", None, OnConflict::Keep);
        doomed.depends_on = vec![Dependency::Task(claimed.lease.task)].into();
        let doomed = w.add(doomed).await;
        assert_eq!(w.state(doomed).await, State::Cancelled);
    }
}

/// A store with tasks in every state.
pub(crate) async fn settle(w: &World) {
    add_ended(w).await;
    add_waiting(w).await;
    add_ready(w).await;
    add_unique(w).await;
}
