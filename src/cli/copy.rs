//! `pensum db copy`: everything in one store, carried to another and compared there.

use std::sync::Arc;
use std::time::Duration;

use pensum_core::{Store, Time};
use pensum_store::copy::{self, Copied, Side, Stage};
use serde_json::json;

use super::client::{check_url, open_store, store_path};
use super::exit::{Exit, Failure};
use super::{Global, now, output};

/// How often the progress of a stage is told.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// Carries everything in the store `from` to the empty store `to`.
pub(crate) async fn copy(global: &Global, from: &str, to: &str) -> anyhow::Result<Exit> {
    check(global, from, to)?;
    if !pensum_store::exists(from).await.map_err(Failure::from)? {
        let message = format!("there is no store at {}; check FROM", pensum_store::shown(from));
        return Err(Failure::new(Exit::NotFound, message).into());
    }
    let owner = format!("process {}", std::process::id());
    let source = open_store(from, &owner).await.map_err(Failure::from)?;
    let done = match open_store(to, &owner).await {
        Ok(target) => {
            let done = carry(&source, &target).await;
            let closed = target.close().await.map_err(Failure::from);
            done.and_then(|done| closed.map(|()| done))
        }
        Err(error) => Err(Failure::from(error)),
    };
    let closed = source.close().await;
    let (copied, took) = done?;
    closed.map_err(Failure::from)?;
    for fault in &copied.faults {
        output::warn(fault);
    }
    if !copied.faults.is_empty() {
        let message = format!(
            "the copy is not what it should be; {} stays marked as half a copy, so remove it and copy again. What is \
             wrong with the source itself, `pensum db verify` says",
            pensum_store::shown(to)
        );
        return Err(Failure::new(Exit::Failed, message).into());
    }
    let value = json!({
        "tasks": copied.tasks,
        "events": copied.events,
        "logs": copied.logs,
        "idempotency_keys": copied.keys,
        "queues": copied.queues,
        "agents": copied.agents,
        "breakers": copied.breakers,
        "seconds": took.as_secs_f64(),
    });
    output::item(global.output, &value.to_string(), |_| {
        output::fields(&[
            ("tasks", copied.tasks.to_string()),
            ("events", copied.events.to_string()),
            ("log lines", copied.logs.to_string()),
            ("idempotency keys", copied.keys.to_string()),
            ("queues", copied.queues.to_string()),
            ("agents", copied.agents.to_string()),
            ("circuit breakers", copied.breakers.to_string()),
            ("took", output::spoken(took)),
        ])
    })?;
    Ok(Exit::Ok)
}

/// Refuses what cannot be meant.
fn check(global: &Global, from: &str, to: &str) -> Result<(), Failure> {
    if global.db.is_some() {
        return Err(Failure::usage(
            "db copy takes both stores as FROM and TO; leave --db out",
        ));
    }
    for (name, url) in [("FROM", from), ("TO", to)] {
        check_url(url).map_err(|failure| Failure {
            message: failure.message.replacen("--db", name, 1),
            ..failure
        })?;
        if url.starts_with("sqlite:") && store_path(url).is_none() {
            let message = format!("{name} {url}: a store in memory is gone when this command ends; name a file");
            return Err(Failure::usage(message));
        }
    }
    let file = |url: &str| store_path(url).and_then(|path| path.canonicalize().ok());
    if from == to || (file(from).is_some() && file(from) == file(to)) {
        return Err(Failure::usage(
            "FROM and TO are the same store; name another one to copy to",
        ));
    }
    Ok(())
}

async fn carry(from: &Arc<dyn Store>, to: &Arc<dyn Store>) -> Result<(Copied, Duration), Failure> {
    let start = now();
    let mut teller = Teller::default();
    let (at_source, at_target) = (clock_of(from), clock_of(to));
    let source = Side {
        store: &**from,
        now: &*at_source,
    };
    let target = Side {
        store: &**to,
        now: &*at_target,
    };
    let copied = copy::copy(source, target, &mut |stage, tasks| teller.tell(stage, tasks)).await;
    Ok((copied.map_err(Failure::from)?, now().since(start)))
}

/// The clock that judges the leases of a store.
fn clock_of(store: &Arc<dyn Store>) -> Box<dyn Fn() -> Time + Sync> {
    match store.clock() {
        Some(clock) => Box::new(move || clock.now()),
        None => Box::new(now),
    }
}

/// Says what goes on, when something new does and every now and then.
#[derive(Default)]
struct Teller {
    last: Option<(Stage, Time)>,
}

impl Teller {
    fn tell(&mut self, stage: Stage, tasks: u64) {
        let now = now();
        let known = self.last.is_some_and(|(last, _)| last == stage);
        if known && self.last.is_some_and(|(_, at)| now.since(at) < TELL_EVERY) {
            return;
        }
        self.last = Some((stage, now));
        let what = match stage {
            Stage::Preparing => return,
            Stage::Copying => "copying",
            Stage::Comparing => "comparing",
            Stage::Verifying => "verifying",
        };
        output::warn(&match tasks {
            0 => format!("{what} …"),
            tasks => format!("{what} … {tasks} tasks"),
        });
    }
}
