//! What the workload's answers promise of a store that is found after a power cut.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use pensum_core::{Json, State, TaskId, TaskRecord};

use super::ledger::{Ledger, Standing, Verb, shelf};

/// A store as it was found.
pub(super) struct Found {
    pub(super) tasks: HashMap<TaskId, TaskRecord>,
    /// Names of the durable steps of unfinished tasks.
    pub(super) steps: HashMap<TaskId, HashSet<String>>,
    /// How many unread signals tasks have.
    pub(super) signals: HashMap<TaskId, usize>,
    /// How queues, agents and breakers stand, by kind and name.
    pub(super) stands: BTreeMap<String, String>,
}

impl Found {
    /// How what is not there stands.
    const NOWHERE: &str = "gone";

    fn stands(&self, what: &str) -> &str {
        self.stands.get(what).map_or(Found::NOWHERE, String::as_str)
    }
}

/// What a store that was found after a cut breaks of the promises, a sentence each.
pub(super) fn broken(ledger: &Ledger, cut: usize, found: &Found) -> Vec<String> {
    let mut judge = Judge::new(ledger, cut, found);
    for (verb, standing) in ledger.at(cut) {
        judge.whole(verb, standing);
        if standing == Standing::Acknowledged {
            judge.kept(verb);
        }
    }
    judge.shelves(ledger, cut);
    judge.stands(ledger, cut);
    judge.strangers();
    judge.broken
}

/// The verb that parameters or a result name.
fn verb_of(json: &Json) -> Option<u64> {
    json.value().get("verb")?.as_u64()
}

struct Judge<'a> {
    found: &'a Found,
    /// Tasks that a verb removed, or may just have removed.
    removed: BTreeSet<TaskId>,
    /// The verb that named each task last.
    last: HashMap<TaskId, u64>,
    retries: HashMap<TaskId, u32>,
    asked: HashSet<u64>,
    broken: Vec<String>,
}

impl<'a> Judge<'a> {
    fn new(ledger: &Ledger, cut: usize, found: &'a Found) -> Judge<'a> {
        let mut judge = Judge {
            found,
            removed: BTreeSet::new(),
            last: HashMap::new(),
            retries: HashMap::new(),
            asked: HashSet::new(),
            broken: Vec::new(),
        };
        for (verb, _) in ledger.at(cut) {
            judge.removed.extend(&verb.effect.gone);
            let touched = verb.touched.iter().chain(&verb.effect.given);
            judge.last.extend(touched.map(|id| (*id, verb.number)));
            judge.asked.insert(verb.number);
        }
        judge
    }

    fn has_ended(&self, id: TaskId) -> Option<State> {
        let state = self.found.tasks.get(&id)?.lifecycle.state;
        state.is_terminal().then_some(state)
    }

    fn is_leased(&self, id: TaskId) -> bool {
        let life = self.found.tasks.get(&id).map(|record| &record.lifecycle);
        life.is_some_and(|life| life.state == State::Running && life.lease.is_some())
    }

    /// A verb that was in flight is there whole or not at all; an acknowledged one is there.
    fn whole(&mut self, verb: &Verb, standing: Standing) {
        let effect = &verb.effect;
        let lasting = |id: &&TaskId| !self.removed.contains(id);
        let made = effect.made.iter().filter(lasting);
        let made = made.map(|id| (format!("task {id} is missing"), self.found.tasks.contains_key(id)));
        let ended = effect.ended.iter().filter(|(id, _)| lasting(&id));
        let ended = ended.map(|(id, state)| {
            let here = self.has_ended(*id);
            (
                format!("task {id} ended as {state:?} and is {here:?}"),
                here == Some(*state),
            )
        });
        let gone = effect.gone.iter();
        let gone = gone.map(|id| (format!("task {id} is back"), !self.found.tasks.contains_key(id)));
        let given = effect.given.iter().filter(|id| self.last[id] == verb.number);
        let given = given.map(|id| (format!("the lease of task {id}"), self.is_leased(*id)));
        let changed = effect.stands.iter().filter(|_| standing == Standing::InFlight);
        let changed = changed.map(|(what, how)| (format!("{what} as {how}"), self.found.stands(what) == how));
        let parts: Vec<(String, bool)> = made.chain(ended).chain(gone).chain(given).chain(changed).collect();
        let here = parts.iter().filter(|(_, here)| *here).count();
        let missing = parts.iter().filter(|(_, here)| !here).map(|(what, _)| what);
        // What is not durable may be lost, and may be pruned once it has ended with its process.
        let volatile = effect.volatile.iter().filter(lasting);
        let here_of_volatile = volatile.clone().filter(|id| self.found.tasks.contains_key(id)).count();
        if here_of_volatile != 0 && here_of_volatile != volatile.count() {
            self.broken.push(format!("verb {} is there in part", verb.number));
        }
        match standing {
            Standing::Acknowledged => {
                let lost = missing.map(|what| format!("lost: {what}, though verb {} was acknowledged", verb.number));
                self.broken.extend(lost.collect::<Vec<_>>());
            }
            Standing::InFlight if here != 0 && here != parts.len() => {
                let missing: Vec<_> = missing.cloned().collect();
                let missing = missing.join(", ");
                self.broken
                    .push(format!("verb {} is there in part: {missing}", verb.number));
            }
            Standing::InFlight => {}
        }
    }

    /// What else an acknowledged verb promises.
    fn kept(&mut self, verb: &Verb) {
        let number = verb.number;
        let mut lost = Vec::new();
        for id in &verb.effect.retried {
            *self.retries.entry(*id).or_default() += 1;
        }
        for (id, record) in self.present(&verb.effect.retried) {
            if record.lifecycle.failures < self.retries[&id] {
                lost.push(format!("the failure of task {id}"));
            }
        }
        for (id, record) in self.present(&verb.effect.stepped) {
            let steps = self.found.steps.get(&id);
            let has_step = steps.is_some_and(|steps| steps.contains(&number.to_string()));
            if !record.lifecycle.state.is_terminal() && !has_step {
                lost.push(format!("a step of task {id}"));
            }
        }
        for (id, record) in self.present(&verb.effect.waiting) {
            if self.last[&id] == number && record.lifecycle.state != State::Waiting {
                lost.push(format!("the wait of task {id}"));
            }
        }
        for (id, record) in self.present(&verb.effect.stopping) {
            let life = &record.lifecycle;
            if !life.state.is_terminal() && life.cancel_requested_at.is_none() {
                lost.push(format!("the cancel of task {id}"));
            }
        }
        for (id, record) in self.present(&verb.effect.made) {
            if verb_of(&record.spec.parameters) != Some(number) {
                lost.push(format!("the parameters of task {id}"));
            }
        }
        let completed = verb
            .effect
            .ended
            .iter()
            .filter(|(id, state)| *state == State::Completed && verb.touched.contains(id));
        let completed: Vec<TaskId> = completed.map(|(id, _)| *id).collect();
        for (id, record) in self.present(&completed) {
            if record.result.as_ref().and_then(verb_of) != Some(number) {
                lost.push(format!("the result of task {id}"));
            }
        }
        let lost = lost
            .into_iter()
            .map(|what| format!("lost: {what}, though verb {number} was acknowledged"));
        self.broken.extend(lost);
    }

    fn present(&self, ids: &[TaskId]) -> Vec<(TaskId, &'a TaskRecord)> {
        let found = self.found;
        ids.iter().filter_map(|id| Some((*id, found.tasks.get(id)?))).collect()
    }

    /// A task on the shelf is as the last acknowledged verb left it, or as the one in flight leaves it.
    fn shelves(&mut self, ledger: &Ledger, cut: usize) {
        let gone = shelf(None, 0);
        let mut allowed: BTreeMap<TaskId, Vec<String>> = BTreeMap::new();
        for (verb, standing) in ledger.at(cut) {
            let shelved = verb.effect.shelf.iter().cloned();
            let pruned = verb.effect.gone.iter().filter(|id| allowed.contains_key(id));
            let pruned: Vec<_> = pruned.map(|id| (*id, gone.clone())).collect();
            for (id, how) in shelved.chain(pruned) {
                let allowed = allowed.entry(id).or_insert_with(|| vec![gone.clone()]);
                if standing == Standing::Acknowledged {
                    allowed.clear();
                }
                allowed.push(how);
            }
        }
        for (id, allowed) in allowed {
            let signals = self.found.signals.get(&id).copied().unwrap_or(0);
            let how = shelf(self.found.tasks.get(&id), signals);
            if !allowed.contains(&how) {
                self.broken
                    .push(format!("lost: task {id} is {how} and should be one of {allowed:?}"));
            }
        }
    }

    /// What has a name stands as the last acknowledged verb left it, or as the one in flight leaves it.
    fn stands(&mut self, ledger: &Ledger, cut: usize) {
        let mut allowed: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (verb, standing) in ledger.at(cut) {
            for (what, how) in &verb.effect.stands {
                let allowed = allowed.entry(what).or_insert_with(|| vec![Found::NOWHERE]);
                if standing == Standing::Acknowledged {
                    allowed.clear();
                }
                allowed.push(how);
            }
        }
        for (what, allowed) in allowed {
            let how = self.found.stands(what);
            if !allowed.contains(&how) {
                self.broken
                    .push(format!("lost: {what} is {how} and should be one of {allowed:?}"));
            }
        }
    }

    /// Nothing is there that nobody asked for.
    fn strangers(&mut self) {
        for (id, record) in &self.found.tasks {
            let maker = verb_of(&record.spec.parameters);
            if !maker.is_some_and(|verb| self.asked.contains(&verb)) {
                self.broken.push(format!("nobody made task {id}"));
            }
            let finisher = record.result.as_ref().and_then(verb_of);
            let completed = record.lifecycle.state == State::Completed;
            if completed && !finisher.is_some_and(|verb| self.asked.contains(&verb)) {
                self.broken.push(format!("nobody completed task {id}"));
            }
        }
    }
}
