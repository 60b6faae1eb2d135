//! A store after a power cut: opened, held against the ledger, used, closed and opened again.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use pensum_core::store::{ClaimRequest, Finish, Store};
use pensum_core::{Json, Name, NodeId, Outcome, State, StoreError};
use pensum_store::sqlite::{SqliteOptions, SqliteStore};

use super::callers::all;
use super::judge::{Found, broken};
use super::ledger::{Ledger, Standing, shelf};
use super::limits::{PREVIEWS, standing};
use super::workload::{STORE, WORK, call, once, start, task};

/// How many verbs are asked again under their idempotency keys.
const REPEATS: usize = 3;

/// What is wrong with the store in `directory`, a sentence each, and what stands against a promise with `lost: `.
pub(super) async fn check(directory: &Path, ledger: &Ledger, cut: usize) -> Vec<String> {
    let mut wrong = Vec::new();
    if let Err(error) = look(directory, ledger, cut, &mut wrong).await {
        wrong.push(format!("the store does not work: {error}"));
    }
    wrong
}

async fn look(directory: &Path, ledger: &Ledger, cut: usize, wrong: &mut Vec<String>) -> Result<(), StoreError> {
    let open = || SqliteStore::open(SqliteOptions::new(directory.join(STORE)));
    let store = open()?;
    wrong.extend(store.verify().await?.violations);
    // Reads change nothing: what was in flight is given back by the first verb that names a time.
    let found = found(&store, ledger, cut).await?;
    wrong.extend(broken(ledger, cut, &found));
    repeat(&store, ledger, cut, wrong).await?;
    let finished = go_on(&store).await?;
    volatile(&store, wrong).await?;
    wrong.extend(store.verify().await?.violations);
    store.close().await?;

    let store = open()?;
    wrong.extend(store.verify().await?.violations);
    for id in finished {
        let record = store.task("default", id).await?;
        if record.is_none_or(|record| record.lifecycle.state != State::Completed) {
            wrong.push(format!("task {id} was completed after the cut and is not"));
        }
    }
    store.close().await?;
    // `verify` asks SQLite for a quick look only, which leaves the indexes out.
    let integrity = rusqlite::Connection::open(directory.join(STORE))
        .and_then(|db| db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)));
    match integrity {
        Ok(answer) if answer == "ok" => {}
        answer => wrong.push(format!("the file is damaged: {answer:?}")),
    }
    Ok(())
}

async fn found(store: &SqliteStore, ledger: &Ledger, cut: usize) -> Result<Found, StoreError> {
    let tasks = all(store).await?;
    let mut found = Found {
        tasks: tasks.into_iter().map(|task| (task.id, task)).collect(),
        steps: Default::default(),
        signals: Default::default(),
        stands: standing(store).await,
    };
    for (verb, _) in ledger.at(cut) {
        for id in &verb.effect.stepped {
            let steps = store.steps(*id).await?.into_iter();
            let steps: HashSet<String> = steps.map(|(name, _)| name.to_string()).collect();
            found.steps.insert(*id, steps);
        }
        for (id, how) in &verb.effect.shelf {
            if *how != shelf(None, 0) {
                found.signals.insert(*id, store.inbox(*id).await?.len());
            }
        }
    }
    Ok(found)
}

/// Acknowledged verbs with an idempotency key answer again what they answered then.
async fn repeat(store: &SqliteStore, ledger: &Ledger, cut: usize, wrong: &mut Vec<String>) -> Result<(), StoreError> {
    let acknowledged = ledger
        .at(cut)
        .filter(|(verb, standing)| verb.effect.once && *standing == Standing::Acknowledged);
    let verbs: Vec<_> = acknowledged.map(|(verb, _)| verb).collect();
    for verb in verbs.into_iter().rev().take(REPEATS) {
        let call = once(call(start().plus(Duration::from_secs(3600))), verb.number);
        let again = store.enqueue(&call, vec![task(verb.number, 0, WORK)]).await?;
        if !again.iter().map(|made| made.id).eq(verb.effect.made.iter().copied()) {
            wrong.push(format!("lost: the idempotency key of verb {}", verb.number));
        }
    }
    Ok(())
}

/// What is not durable has ended with its process, and has never started.
async fn volatile(store: &SqliteStore, wrong: &mut Vec<String>) -> Result<(), StoreError> {
    for task in all(store).await?.iter().filter(|task| !task.spec.is_durable()) {
        let kind = task.error.as_ref().map_or("", |error| error.kind.as_str());
        let state = task.lifecycle.state;
        if state != State::Cancelled || kind != "process_ended" || task.lifecycle.has_started() {
            wrong.push(format!(
                "task {} is not durable, and is {state:?} ({kind}) after its process",
                task.id
            ));
        }
    }
    Ok(())
}

/// Works on, and says what it completed.
async fn go_on(store: &SqliteStore) -> Result<Vec<pensum_core::TaskId>, StoreError> {
    let now = start().plus(Duration::from_secs(7200));
    let more = store.enqueue(&call(now), vec![task(0, 0, WORK)]).await?;
    let request = ClaimRequest {
        queues: Some([Name::from(WORK), Name::from(PREVIEWS)].into()),
        ..ClaimRequest::new(NodeId(1000), "node 1000", 8, Duration::from_secs(30))
    };
    let claimed = store.claim(request, now).await?;
    assert!(!more.is_empty() && !claimed.is_empty(), "nothing can be claimed");
    let finishes = claimed
        .iter()
        .map(|claimed| Finish::new(claimed.lease, Outcome::Done(Json::null())));
    store.finish(finishes.collect(), now).await?;
    Ok(claimed.into_iter().map(|claimed| claimed.lease.task).collect())
}
