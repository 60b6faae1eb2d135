//! Carrying everything from one store to another, and comparing it there.

use std::collections::{BTreeSet, VecDeque};

use pensum_core::agent::AgentRecord;
use pensum_core::breaker::BreakerRecord;
use pensum_core::dossier::{Bookmark, Dossier, Import, PARCEL_MAX, Parcel, Remembered};
use pensum_core::queue::QueueRecord;
use pensum_core::{Name, Store, StoreError, Time};

/// Most sentences about what is wrong with a copy.
pub const FAULTS_MAX: usize = 20;
/// How many leases that have run out one pass ends.
const REAP_LIMIT: usize = 1_000;

/// What a copy carried, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// How many tasks.
    pub tasks: u64,
    /// How many events of their histories.
    pub events: u64,
    /// How many log lines.
    pub logs: u64,
    /// How many idempotency keys.
    pub keys: u64,
    /// How many queues with settings.
    pub queues: u64,
    /// How many agents.
    pub agents: u64,
    /// How many circuit breakers.
    pub breakers: u64,
    /// One sentence for each difference and each violated invariant, at most [`FAULTS_MAX`]. With any of them the
    /// target stays marked as half a copy.
    pub faults: Vec<String>,
}

/// What a copy is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Ending leases that have run out.
    Preparing,
    /// Reading the source and writing the target.
    Copying,
    /// Reading both, and comparing.
    Comparing,
    /// Checking the invariants of both.
    Verifying,
}

/// One of two stores, and the clock that judges its leases.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// The store.
    pub store: &'a dyn Store,
    /// The present there.
    pub now: &'a (dyn Fn() -> Time + Sync),
}

impl Side<'_> {
    fn now(&self) -> Time {
        (self.now)()
    }
}

/// Copies everything in `from` to `to`, which is empty; then reads both, compares every task and every count, and checks
/// the invariants of both. Only then is `to` a store that can be opened again. `tell` hears how many tasks a stage has
/// got through.
///
/// Leases in `from` that have run out are ended first; nothing else in it changes.
///
/// # Errors
/// [`StoreError::Conflict`] while tasks run in `from`, while nodes work on either, or when `to` holds anything; else
/// whatever goes wrong in one of the stores.
pub async fn copy(
    from: Side<'_>,
    to: Side<'_>,
    tell: &mut (dyn FnMut(Stage, u64) + Send),
) -> Result<Copied, StoreError> {
    tell(Stage::Preparing, 0);
    refuse_nodes(from, "the source").await?;
    refuse_nodes(to, "the target").await?;
    while from.store.reap(from.now(), REAP_LIMIT).await?.leases_expired > 0 {}
    let mut copied = carry(from, to, tell).await?;
    let namespaces = compare(from, to, &mut copied.faults, tell).await?;
    compare_counts(from, to, &namespaces, &mut copied.faults).await?;
    tell(Stage::Verifying, copied.tasks);
    for (what, side) in [("the source", from), ("the target", to)] {
        let violations = side.store.verify().await?.violations.into_iter();
        copied
            .faults
            .extend(violations.map(|sentence| format!("{what}: {sentence}")));
    }
    copied.faults.truncate(FAULTS_MAX);
    if copied.faults.is_empty() {
        to.store.import(Import::End, to.now()).await?;
    }
    Ok(copied)
}

/// A node that is idle now may claim or enqueue in the middle of the copy.
async fn refuse_nodes(side: Side<'_>, what: &str) -> Result<(), StoreError> {
    let nodes = side.store.nodes(side.now()).await?;
    let alive: Vec<&str> = nodes
        .iter()
        .filter(|node| node.status == "running")
        .map(|node| &*node.name)
        .collect();
    match alive.as_slice() {
        [] => Ok(()),
        alive => Err(StoreError::Conflict(format!(
            "{what} is in use by {}; stop what works on it, and copy again",
            alive.join(", ")
        ))),
    }
}

async fn carry(from: Side<'_>, to: Side<'_>, tell: &mut (dyn FnMut(Stage, u64) + Send)) -> Result<Copied, StoreError> {
    let mut copied = Copied::default();
    // Whatever refuses the first page refuses it before the target is marked.
    let mut parcel = from.store.export(Bookmark::START, PARCEL_MAX, from.now()).await?;
    to.store.import(Import::Begin, to.now()).await?;
    tell(Stage::Copying, 0);
    loop {
        count(&parcel, &mut copied);
        let next = parcel.next.take();
        let import = to.store.import(Import::Parcel(parcel), to.now());
        let Some(next) = next else {
            import.await?;
            return Ok(copied);
        };
        // The next page is read while this one is written.
        let export = from.store.export(next, PARCEL_MAX, from.now());
        let (imported, exported) = tokio::join!(import, export);
        imported?;
        parcel = exported?;
        tell(Stage::Copying, copied.tasks);
    }
}

fn count(parcel: &Parcel, copied: &mut Copied) {
    copied.tasks += parcel.dossiers.len() as u64;
    copied.keys += parcel.remembered.len() as u64;
    copied.queues += parcel.queues.len() as u64;
    copied.agents += parcel.agents.len() as u64;
    copied.breakers += parcel.breakers.len() as u64;
    for dossier in &parcel.dossiers {
        // The creation is an event, too, that people see.
        copied.events += 1 + dossier.events.len() as u64;
        copied.logs += dossier.logs.len() as u64;
    }
}

/// Reads a store in order.
struct Pages<'a> {
    side: Side<'a>,
    next: Option<Bookmark>,
    dossiers: VecDeque<Dossier>,
    remembered: VecDeque<Remembered>,
    queues: VecDeque<(Name, QueueRecord)>,
    agents: VecDeque<(Name, AgentRecord)>,
    breakers: VecDeque<(Name, BreakerRecord)>,
}

impl<'a> Pages<'a> {
    fn of(side: Side<'a>) -> Pages<'a> {
        Pages {
            side,
            next: Some(Bookmark::START),
            dossiers: VecDeque::new(),
            remembered: VecDeque::new(),
            queues: VecDeque::new(),
            agents: VecDeque::new(),
            breakers: VecDeque::new(),
        }
    }

    /// Reads the next page once all of the last one is taken.
    async fn fill(&mut self) -> Result<(), StoreError> {
        while self.dossiers.is_empty()
            && self.remembered.is_empty()
            && self.queues.is_empty()
            && self.agents.is_empty()
            && self.breakers.is_empty()
            && let Some(next) = self.next.take()
        {
            let parcel = self.side.store.export(next, PARCEL_MAX, self.side.now()).await?;
            self.next = parcel.next;
            self.dossiers = parcel.dossiers.into();
            self.remembered = parcel.remembered.into();
            self.queues = parcel.queues.into();
            self.agents = parcel.agents.into();
            self.breakers = parcel.breakers.into();
        }
        Ok(())
    }
}

/// Takes what comes next off two ordered queues: off both, where the same comes next on both.
fn take<T, K: Ord>(
    left: &mut VecDeque<T>,
    right: &mut VecDeque<T>,
    key: impl Fn(&T) -> K,
) -> Option<(Option<T>, Option<T>)> {
    let (ours, theirs) = (left.front().map(&key), right.front().map(&key));
    let (from_left, from_right) = match (ours, theirs) {
        (None, None) => return None,
        (Some(ours), Some(theirs)) => (ours <= theirs, theirs <= ours),
        (ours, theirs) => (ours.is_some(), theirs.is_some()),
    };
    let mut taken = (None, None);
    if from_left {
        taken.0 = left.pop_front();
    }
    if from_right {
        taken.1 = right.pop_front();
    }
    Some(taken)
}

/// Compares what comes next of two lists of named things in namespaces, and says where it differs; `None` at the end of both.
fn differing<T: PartialEq>(
    what: &str,
    left: &mut VecDeque<(Name, T)>,
    right: &mut VecDeque<(Name, T)>,
    name: impl Fn(&T) -> &Name,
) -> Option<Option<String>> {
    let place = |(namespace, one): &(Name, T)| (namespace.clone(), name(one).clone());
    let (ours, theirs) = take(left, right, place)?;
    if ours == theirs {
        return Some(None);
    }
    let found = ours.or(theirs);
    Some(found.map(|(namespace, one)| format!("the {what} `{}` of the namespace {namespace} differs", name(&one))))
}

/// Compares both stores row by row; answers the namespaces that they have tasks in.
async fn compare(
    from: Side<'_>,
    to: Side<'_>,
    faults: &mut Vec<String>,
    tell: &mut (dyn FnMut(Stage, u64) + Send),
) -> Result<BTreeSet<Name>, StoreError> {
    let (mut left, mut right) = (Pages::of(from), Pages::of(to));
    let mut namespaces = BTreeSet::new();
    let mut compared = 0;
    tell(Stage::Comparing, compared);
    while faults.len() < FAULTS_MAX {
        if left.dossiers.is_empty() || right.dossiers.is_empty() {
            let (one, other) = tokio::join!(left.fill(), right.fill());
            one?;
            other?;
        }
        if let Some((ours, theirs)) = take(&mut left.dossiers, &mut right.dossiers, Dossier::row) {
            compared += 1;
            if compared % PARCEL_MAX as u64 == 0 {
                tell(Stage::Comparing, compared);
            }
            namespaces.extend([&ours, &theirs].into_iter().flatten().map(|d| d.namespace.clone()));
            faults.extend(describe(ours, theirs));
            continue;
        }
        let settings = differing("queue", &mut left.queues, &mut right.queues, |queue| &queue.name)
            .or_else(|| differing("agent", &mut left.agents, &mut right.agents, |agent| &agent.name))
            .or_else(|| {
                differing("circuit breaker", &mut left.breakers, &mut right.breakers, |breaker| {
                    &breaker.name
                })
            });
        if let Some(fault) = settings {
            faults.extend(fault);
            continue;
        }
        let place = |found: &Remembered| (found.namespace.clone(), found.key.clone());
        let Some((ours, theirs)) = take(&mut left.remembered, &mut right.remembered, place) else {
            break;
        };
        if ours != theirs
            && let Some(found) = ours.or(theirs)
        {
            faults.push(format!(
                "the idempotency key `{}` of the namespace {} differs",
                found.key, found.namespace
            ));
        }
    }
    Ok(namespaces)
}

/// What is different about one row.
fn describe(ours: Option<Dossier>, theirs: Option<Dossier>) -> Option<String> {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) => {
            if ours == theirs {
                return None;
            }
            // Stores of another kind count otherwise.
            let (ours, theirs) = (ours.by_places(), theirs.by_places());
            let fields = ours.differences(&theirs);
            (!fields.is_empty()).then(|| format!("task {} differs in {}", ours.task.id, fields.join(", ")))
        }
        (Some(ours), None) => Some(format!("task {} is not in the target", ours.task.id)),
        (None, Some(theirs)) => Some(format!(
            "task {} is in the target and not in the source",
            theirs.task.id
        )),
        (None, None) => None,
    }
}

async fn compare_counts(
    from: Side<'_>,
    to: Side<'_>,
    namespaces: &BTreeSet<Name>,
    faults: &mut Vec<String>,
) -> Result<(), StoreError> {
    // One moment for both: what comes due counts elsewhere.
    let now = from.now();
    for namespace in namespaces {
        let ours = from.store.counts(namespace, now).await?;
        let theirs = to.store.counts(namespace, now).await?;
        if ours != theirs {
            faults.push(format!(
                "the counts of the namespace {namespace} differ: {} tasks and {} attempts in the source, {} and {} in \
                 the target",
                ours.total().sum(),
                ours.executions,
                theirs.total().sum(),
                theirs.executions
            ));
        }
    }
    Ok(())
}
