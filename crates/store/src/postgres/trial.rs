//! Claims of what half-open circuit breakers cover: while a transaction holds such a breaker, nobody else starts a probe.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use pensum_core::{Name, Time};
use tokio::time::Instant;

use super::Inner;
use super::breaker;
use super::covering::Breakers;
use super::error::Fault;
use super::gated::{HELD, MANNERS, PATIENT};
use super::lanes::Lanes;
use super::names::Class;
use super::pool::{Statement, Tx};

/// What breakers let a claimer start of a class.
pub(super) enum Trial {
    /// Whatever there is.
    Free,
    /// Nothing; by the clock until then.
    Shut(Option<Time>),
    /// As many as these half-open ones say.
    Tried(BTreeSet<usize>),
}

/// Why a claim need not ask a half-open breaker.
#[derive(Clone, Copy)]
enum Shut {
    /// As many probe it as may. A probe that ends is heard of; what is not is found when the time is up.
    Full { version: i64, opened: u64, until: Instant },
    /// Another transaction holds it.
    Held(Instant),
}

/// What claims of this node remember of half-open breakers.
#[derive(Default)]
pub(super) struct Doors {
    /// Grows when one of them may have room again.
    opened: AtomicU64,
    shut: Mutex<HashMap<(Name, Name), Shut, RandomState>>,
}

impl Doors {
    /// A run of this class has ended. True when that may let claims take another one.
    pub(super) fn reopen(&self, breakers: &Breakers, class: &Class) -> bool {
        let opens = breakers.may_hold_up(class);
        if opens {
            self.opened.fetch_add(1, Ordering::AcqRel);
        }
        opens
    }

    /// What was seen to be full while this number stands is so until it grows.
    pub(super) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Acquire)
    }

    fn is_shut(&self, place: &(Name, Name), version: i64, opened: u64) -> bool {
        match self.shut.lock().get(place) {
            Some(Shut::Full {
                version: then,
                opened: seen,
                until,
            }) => (*then, *seen) == (version, opened) && *until > Instant::now(),
            Some(Shut::Held(until)) => *until > Instant::now(),
            None => false,
        }
    }

    /// What the breakers at this version let an executor start of a class.
    pub(super) fn trial(
        &self,
        (breakers, version, opened): (&Breakers, i64, u64),
        (class, executor): (&Class, &Name),
        now: Time,
    ) -> Trial {
        if !breakers.any_tripped() {
            return Trial::Free;
        }
        let (mut tried, mut opens_at, mut is_shut) = (BTreeSet::new(), None, false);
        for place in breakers.covering(&class.namespace, &class.handler, executor) {
            let (namespace, record) = breakers.get(place);
            match record.half_open_at() {
                None => {}
                Some(at) if now < at => opens_at = opens_at.max(Some(at)),
                Some(_) => {
                    is_shut |= self.is_shut(&(namespace.clone(), record.name.clone()), version, opened);
                    tried.insert(place);
                }
            }
        }
        match (opens_at, is_shut, tried.is_empty()) {
            (None, false, true) => Trial::Free,
            (None, false, false) => Trial::Tried(tried),
            _ => Trial::Shut(opens_at),
        }
    }

    fn shut(&self, (namespace, name): (&Name, &Name), why: Shut) {
        let mut shut = self.shut.lock();
        // What is over says nothing any more.
        shut.retain(|_, why| match why {
            Shut::Full { until, .. } | Shut::Held(until) => *until > Instant::now(),
        });
        shut.insert((namespace.clone(), name.clone()), why);
    }
}

/// The half-open breakers that a transaction holds, by their numbers: how many more may try.
pub(super) type Trials = BTreeMap<usize, u64>;

/// The breakers that cover some of these classes.
pub(super) fn ready(lanes: &Lanes, classes: impl Iterator<Item = i32>) -> BTreeSet<usize> {
    classes
        .filter_map(|class| lanes.tried.get(&class))
        .flatten()
        .copied()
        .collect()
}

/// Locks the breakers, and asks them how many may try. A statement after the one that waited for the locks sees everything
/// that was committed before they were got, so the probes are all that there are. What has changed about a breaker since
/// this node read it is seen by the claim, which then takes nothing.
pub(super) async fn hold(
    inner: &Arc<Inner>,
    tx: &mut Tx,
    lanes: &Lanes,
    ready: &BTreeSet<usize>,
    now: Time,
) -> Result<Trials, Fault> {
    let records = || ready.iter().map(|place| (*place, lanes.breakers.get(*place)));
    let say = |sql: &'static str| Statement {
        sql,
        params: Vec::new(),
    };
    let looks = [
        say(MANNERS),
        breaker::lock_all(records().map(|(_, (namespace, record))| (namespace, &record.name))),
        say(PATIENT),
        breaker::count_probes(records().map(|(place, (namespace, record))| (place, namespace, record))),
    ];
    let answers = match tx.pipeline(&looks).await {
        Err(fault) if fault.is_lock_timeout() => {
            for (_, (namespace, record)) in records() {
                let until = Instant::now() + HELD;
                inner.queues.trials.shut((namespace, &record.name), Shut::Held(until));
            }
            return Err(fault);
        }
        answers => answers?,
    };
    let probing = breaker::read_probes(answers.last().map_or(&[], Vec::as_slice))?;
    let left = |place: usize| {
        let (_, record) = lanes.breakers.get(place);
        let room = record.room(probing.get(&place).copied().unwrap_or(0), now);
        room.map_or(0, |room| room.unwrap_or(u64::MAX))
    };
    Ok(ready.iter().map(|place| (*place, left(*place))).collect())
}

impl Lanes {
    /// How many tasks of a class the held breakers let start.
    pub(super) fn may_try(&self, trials: &Trials, class: i32) -> u64 {
        let covering = self.tried.get(&class).into_iter().flatten();
        let left = covering.map(|place| trials.get(place).copied().unwrap_or(0));
        left.min().unwrap_or(u64::MAX)
    }

    /// A task of a class starts.
    pub(super) fn note_trial(&self, trials: &mut Trials, class: i32) {
        for place in self.tried.get(&class).into_iter().flatten() {
            trials.entry(*place).and_modify(|left| *left = left.saturating_sub(1));
        }
    }

    /// Lets claims leave out the breakers that nothing more may try, for a time `poll` at most.
    pub(super) fn remember_trials(&self, inner: &Inner, trials: &Trials, poll: Duration) {
        for (place, _) in trials.iter().filter(|(_, left)| **left == 0) {
            let (namespace, record) = self.breakers.get(*place);
            let full = Shut::Full {
                version: self.version,
                opened: self.opened,
                until: Instant::now() + poll,
            };
            inner.queues.trials.shut((namespace, &record.name), full);
        }
    }
}
