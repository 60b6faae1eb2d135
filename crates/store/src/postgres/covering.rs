//! Which circuit breakers cover what, as a node remembers it so that its claims and the ends of its runs need not ask.

use std::collections::{BTreeSet, HashMap};

use foldhash::fast::RandomState;
use pensum_core::breaker::BreakerRecord;
use pensum_core::{Name, Time};

use super::names::Class;

type Covering = HashMap<Name, HashMap<Name, Vec<usize>, RandomState>, RandomState>;

/// All breakers, as a node remembers them; each has its place as its number. What they have counted is older than whether
/// they are open.
#[derive(Default)]
pub(super) struct Breakers {
    all: Vec<(Name, BreakerRecord)>,
    by_handler: Covering,
    by_agent: Covering,
    any_tripped: bool,
}

impl Breakers {
    pub(super) fn new(all: Vec<(Name, BreakerRecord)>) -> Breakers {
        let mut breakers = Breakers {
            any_tripped: all.iter().any(|(_, record)| record.memory.opened_at.is_some()),
            ..Breakers::default()
        };
        for (place, (namespace, record)) in all.iter().enumerate() {
            let note = |covering: &mut Covering, covered: &[Name]| {
                let here = covering.entry(namespace.clone()).or_default();
                for name in covered {
                    here.entry(name.clone()).or_default().push(place);
                }
            };
            note(&mut breakers.by_handler, &record.settings.handlers);
            note(&mut breakers.by_agent, &record.settings.agents);
        }
        breakers.all = all;
        breakers
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// True when some are open, or half-open.
    pub(super) fn any_tripped(&self) -> bool {
        self.any_tripped
    }

    /// The one of a number, with its namespace.
    pub(super) fn get(&self, place: usize) -> (&Name, &BreakerRecord) {
        let (namespace, record) = &self.all[place];
        (namespace, record)
    }

    /// Those that cover runs of a handler by an executor.
    pub(super) fn covering(&self, namespace: &Name, handler: &Name, executor: &Name) -> BTreeSet<usize> {
        let of = |covering: &Covering, name: &Name| covering.get(namespace)?.get(name).cloned();
        let of_handler = of(&self.by_handler, handler).unwrap_or_default();
        of_handler
            .into_iter()
            .chain(of(&self.by_agent, executor).unwrap_or_default())
            .collect()
    }

    /// True when one that is not closed may cover tasks of a class, whoever runs them.
    pub(super) fn may_hold_up(&self, class: &Class) -> bool {
        let is_tripped = |place: &usize| self.all[*place].1.memory.opened_at.is_some();
        let of_handler = self
            .by_handler
            .get(&class.namespace)
            .and_then(|here| here.get(&class.handler));
        let of_agents = self
            .by_agent
            .get(&class.namespace)
            .into_iter()
            .flat_map(HashMap::values);
        self.any_tripped && of_handler.into_iter().chain(of_agents).flatten().any(is_tripped)
    }

    /// When the first of those that are open becomes half-open.
    pub(super) fn tries_at(&self, now: Time) -> Option<Time> {
        let at = self.all.iter().filter_map(|(_, record)| record.half_open_at());
        at.filter(|at| *at > now).min()
    }
}
