//! Since when what is ready has been ready, for the queues that drop or refuse by it.

use std::collections::{BTreeSet, HashMap};

use foldhash::fast::FixedState;
use pensum_core::{Name, Time};

use super::names::Catalog;

/// The ready tasks of one class, by since when.
#[derive(Default)]
struct Ready {
    /// Those that never started, which may be dropped.
    fresh: BTreeSet<(Time, i64)>,
    started: BTreeSet<(Time, i64)>,
}

/// The ready tasks of the queues that are followed. Where none is, it costs nothing.
#[derive(Default)]
pub(super) struct Ages {
    /// By namespace and name.
    queues: BTreeSet<(Name, Name)>,
    /// By class, as far as a task of it was seen; `None` for a class of a queue that is not followed.
    ready: Vec<Option<Ready>>,
    known: HashMap<i64, (u32, Time), FixedState>,
}

impl Ages {
    /// Nothing yet of these queues.
    pub(super) fn of(queues: BTreeSet<(Name, Name)>) -> Ages {
        Ages {
            queues,
            ..Ages::default()
        }
    }

    /// The queues that are followed.
    pub(super) const fn queues(&self) -> &BTreeSet<(Name, Name)> {
        &self.queues
    }

    /// A task has become ready.
    pub(super) fn enter(&mut self, catalog: &Catalog, class: u32, row: i64, since: Time, is_fresh: bool) {
        if self.queues.is_empty() {
            return;
        }
        while self.ready.len() <= class as usize {
            let place = catalog.class(self.ready.len() as u32);
            let place = place.map(|class| (class.namespace.clone(), class.queue.clone()));
            let is_followed = place.is_some_and(|place| self.queues.contains(&place));
            self.ready.push(is_followed.then(Ready::default));
        }
        let Some(Some(ready)) = self.ready.get_mut(class as usize) else {
            return;
        };
        match is_fresh {
            true => ready.fresh.insert((since, row)),
            false => ready.started.insert((since, row)),
        };
        self.known.insert(row, (class, since));
    }

    /// A task is not ready any more.
    pub(super) fn leave(&mut self, row: i64) {
        if self.known.is_empty() {
            return;
        }
        let Some((class, since)) = self.known.remove(&row) else {
            return;
        };
        if let Some(Some(ready)) = self.ready.get_mut(class as usize)
            && !ready.fresh.remove(&(since, row))
        {
            ready.started.remove(&(since, row));
        }
    }

    /// All of it, by rows: for `verify`.
    pub(super) fn rows(&self) -> BTreeSet<(i64, u32, Time)> {
        self.known
            .iter()
            .map(|(row, (class, since))| (*row, *class, *since))
            .collect()
    }

    fn of_class(&self, class: u32) -> Option<&Ready> {
        self.ready.get(class as usize)?.as_ref()
    }

    /// Since when the oldest of a class is ready, but for some rows.
    pub(super) fn oldest(&self, class: u32, except: &BTreeSet<i64>) -> Option<Time> {
        let ready = self.of_class(class)?;
        let first = |of: &BTreeSet<(Time, i64)>| of.iter().find(|(_, row)| !except.contains(row)).copied();
        let first = [&ready.fresh, &ready.started].into_iter().filter_map(first);
        first.map(|(since, _)| since).min()
    }

    /// How many of a class may be dropped, but for some rows.
    pub(super) fn droppable(&self, class: u32, except: &BTreeSet<i64>) -> u64 {
        let Some(ready) = self.of_class(class) else { return 0 };
        let is_fresh = |row: &&i64| {
            let since = self.known.get(*row).map(|(_, since)| *since);
            since.is_some_and(|since| ready.fresh.contains(&(since, **row)))
        };
        (ready.fresh.len() - except.iter().filter(is_fresh).count()) as u64
    }

    /// Those of a class that may be dropped, the oldest first.
    pub(super) fn fresh(&self, class: u32) -> impl Iterator<Item = (Time, i64)> {
        let ready = self.of_class(class).into_iter();
        ready.flat_map(|ready| ready.fresh.iter().copied())
    }
}
