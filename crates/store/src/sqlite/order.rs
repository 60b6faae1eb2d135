//! The ready order: what can be claimed now, best first, without touching the disk.
//!
//! One lane for each class. Within a lane, plain tasks (nothing asked but to run) stand in one queue for each priority,
//! 16 bytes a task; everything else stands in a sorted set. Of the tasks of one key only those are in their lanes that have
//! their turn: the best one while none runs, or more where their queues let more of them run at once. Where a queue ages what waits, plain tasks rise by the clock, for the oldest of each queue
//! stands highest; who moves the others is in `ageing.rs`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};

use foldhash::fast::RandomState;
use pensum_core::order::{KeyTurns, OrderRule, deadline_of, place};
use pensum_core::{Name, Priority, Time};

use super::turns::Turns;

/// The claim order: level, deadline, age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    urgency: Reverse<u8>,
    /// See [`place`].
    place: i64,
    pub(super) row: i64,
}

impl Rank {
    pub(super) fn new(level: Priority, deadline: Option<Time>, row: i64) -> Rank {
        Rank {
            urgency: Reverse(level.level() as u8),
            place: place(deadline, row),
            row,
        }
    }

    /// The rank of a task whose key was served last with this number.
    fn served(self, rule: OrderRule, number: Option<i64>) -> Rank {
        match deadline_of(self.place) {
            Some(_) => self,
            None => Rank {
                place: place(None, rule.age(self.row, number)),
                ..self
            },
        }
    }
}

/// A key and the namespace that it holds in.
pub(super) type Key = (Name, Name);

/// A task on its way into or out of the order.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) class: u32,
    pub(super) rank: Rank,
    pub(super) key: Option<Key>,
    pub(super) suspect: bool,
}

/// What a claim takes out of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) row: i64,
    pub(super) class: u32,
    /// For a plain task its priority and start time, which are all there is to know of it.
    pub(super) plain: Option<(Priority, Time)>,
}

#[derive(Default)]
struct Lane {
    /// By priority, lowest first.
    queues: [Queue; 5],
    ranked: BTreeSet<Rank>,
    rule: OrderRule,
    /// Of the rows up to here none is in `ranked`, as far as is known: what is newer than a claim reaches is not looked
    /// through again by each claim.
    bare_to: i64,
}

/// Plain tasks of one priority, oldest first. One that leaves from the middle is marked, and skipped later.
#[derive(Default)]
struct Queue {
    tasks: VecDeque<(i64, Time)>,
    gone: usize,
}

const GONE: Time = Time::from_micros(i64::MIN);

impl Queue {
    fn front(&mut self) -> Option<i64> {
        while let Some((row, run_at)) = self.tasks.front() {
            if *run_at != GONE {
                return Some(*row);
            }
            self.tasks.pop_front();
            self.gone -= 1;
        }
        None
    }

    fn remove(&mut self, row: i64) -> bool {
        let Ok(at) = self.tasks.binary_search_by_key(&row, |t| t.0) else {
            return false;
        };
        if self.tasks[at].1 == GONE {
            return false;
        }
        self.tasks[at].1 = GONE;
        self.gone += 1;
        if self.gone > 64 && self.gone * 2 > self.tasks.len() {
            self.tasks.retain(|t| t.1 != GONE);
            self.gone = 0;
        }
        true
    }
}

impl Lane {
    /// The best of the tasks up to a row.
    fn best(&mut self, newest: i64, now: Time) -> Option<Rank> {
        let ranked = if newest <= self.bare_to {
            None
        } else {
            self.ranked.iter().find(|rank| rank.row <= newest).copied()
        };
        if ranked.is_none() {
            self.bare_to = self.bare_to.max(newest);
        }
        if self.rule.ageing.is_some() {
            return self.best_aged(newest, now).into_iter().chain(ranked).min();
        }
        for (priority, queue) in Priority::ALL.into_iter().zip(&mut self.queues).rev() {
            if let Some(row) = queue.front().filter(|row| *row <= newest) {
                let rank = Rank::new(priority, None, row);
                return Some(ranked.map_or(rank, |r| r.min(rank)));
            }
        }
        ranked
    }

    /// The best of the plain tasks up to a row, where they rise.
    fn best_aged(&mut self, newest: i64, now: Time) -> Option<Rank> {
        let rule = self.rule;
        let fronts = Priority::ALL
            .into_iter()
            .zip(&mut self.queues)
            .filter_map(|(own, queue)| {
                let row = queue.front().filter(|row| *row <= newest)?;
                let ready_from = queue.tasks.front()?.1;
                Some(Rank::new(rule.level(own, ready_from, now), None, row))
            });
        fronts.min()
    }

    fn insert(&mut self, rank: Rank) {
        self.bare_to = self.bare_to.min(rank.row - 1);
        self.ranked.insert(rank);
    }

    fn take(&mut self, rank: Rank, class: u32) -> Pick {
        if self.ranked.remove(&rank) {
            return Pick {
                row: rank.row,
                class,
                plain: None,
            };
        }
        let mut priority = Priority::from_level(i64::from(rank.urgency.0)).unwrap_or_default();
        if self.rule.ageing.is_some() {
            // It may have risen from another queue than that of its level.
            let mut own = Priority::ALL.into_iter().zip(&mut self.queues);
            priority = own
                .find_map(|(own, queue)| (queue.front() == Some(rank.row)).then_some(own))
                .unwrap_or(priority);
        }
        let queue = &mut self.queues[priority.level() as usize - 1];
        let plain = queue.tasks.pop_front().map(|(_, run_at)| (priority, run_at));
        if queue.tasks.is_empty() && queue.tasks.capacity() > 4096 {
            queue.tasks = VecDeque::new();
        }
        Pick {
            row: rank.row,
            class,
            plain,
        }
    }

    fn is_empty(&self) -> bool {
        self.ranked.is_empty() && self.queues.iter().all(|q| q.tasks.len() == q.gone)
    }
}

/// A task that has the turn of its key.
struct Head {
    rank: Rank,
    class: u32,
    suspect: bool,
    /// The rank by which it stands in its lane: the turn of its key may have made it younger.
    stands: Rank,
}

/// The tasks of one key that are ready or run.
#[derive(Default)]
struct Group {
    /// Who runs, with their classes.
    running: Vec<(i64, u32)>,
    /// Those that have their turn beside these, best first, in their lanes.
    heads: Vec<Head>,
    /// Those behind them.
    rest: BTreeMap<Rank, (u32, bool)>,
}

fn rule_of(rules: &[OrderRule], class: u32) -> OrderRule {
    rules.get(class as usize).copied().unwrap_or_default()
}

impl Group {
    /// The turns that are taken, and for how many of its heads that is in order.
    fn taken(&self, rules: &[OrderRule]) -> (KeyTurns, usize) {
        let width = |class: u32| rule_of(rules, class).width();
        let mut turns = KeyTurns::beside(self.running.iter().map(|(_, class)| width(*class)));
        let admitted = self.heads.iter().take_while(|head| turns.admits(width(head.class)));
        let heads = admitted.count();
        (turns, heads)
    }

    /// True when those have their turn that should.
    fn is_settled(&self, rules: &[OrderRule]) -> bool {
        let (mut turns, heads) = self.taken(rules);
        let next = self.rest.first_key_value();
        let is_behind = |(rank, _): (&Rank, _)| self.heads.last().is_none_or(|last| last.rank < *rank);
        heads == self.heads.len()
            && next.is_none_or(is_behind)
            && next.is_none_or(|(_, (class, _))| !turns.admits(rule_of(rules, *class).width()))
    }

    /// Adds one that has its turn.
    fn add(&mut self, head: Head) {
        if self.heads.is_empty() {
            // Most keys have one at a time.
            self.heads.reserve_exact(1);
        }
        let at = self.heads.partition_point(|other| other.rank < head.rank);
        self.heads.insert(at, head);
    }
}

/// All lanes.
#[derive(Default)]
pub(super) struct Order {
    lanes: Vec<Lane>,
    busy: BTreeSet<u32>,
    groups: HashMap<Key, Group, RandomState>,
    /// Tasks that run alone.
    suspects: BTreeMap<Rank, u32>,
    len: usize,
    /// By class.
    rules: Vec<OrderRule>,
    turns: Turns,
    /// What the clock shows.
    pub(super) now: Time,
}

impl Order {
    /// An empty order that goes by the same rules, and remembers the same turns.
    pub(super) fn emptied(&mut self) -> Order {
        let mut order = Order {
            turns: std::mem::take(&mut self.turns),
            now: self.now,
            ..Order::default()
        };
        order.set_rules(std::mem::take(&mut self.rules));
        order
    }

    /// Makes tasks of each class stand by a rule. Those that stand by themselves go by the old one until they are placed
    /// anew.
    pub(super) fn set_rules(&mut self, rules: Vec<OrderRule>) {
        let classes = 0..self.rules.len().max(rules.len()) as u32;
        let width = |rules: &[OrderRule], class| rule_of(rules, class).width();
        let widens = |class| width(&self.rules, class) != width(&rules, class);
        let is_other = classes.into_iter().any(widens);
        self.rules = rules;
        for (class, rule) in self.rules.iter().enumerate() {
            if *rule != OrderRule::STRICT || class < self.lanes.len() {
                if self.lanes.len() <= class {
                    self.lanes.resize_with(class + 1, Lane::default);
                }
                self.lanes[class].rule = *rule;
            }
        }
        if is_other {
            let unsettled: Vec<Key> = self.unsettled().cloned().collect();
            for key in unsettled {
                self.settle(&key);
            }
        }
    }

    /// How tasks of a class stand.
    pub(super) fn rule(&self, class: u32) -> OrderRule {
        rule_of(&self.rules, class)
    }

    pub(super) fn rules(&self) -> &[OrderRule] {
        &self.rules
    }

    /// A run of this key's ended in a fair queue: it goes behind whatever took its number before.
    pub(super) fn note_turn(&mut self, key: &Key, number: i64) {
        self.turns.note(key, number);
        self.stand_anew(key);
    }

    /// True when this is a plain task in its queue, where it needs nobody to rise.
    pub(super) fn is_queued(&self, class: u32, priority: Priority, row: i64) -> bool {
        let queue = self.lanes.get(class as usize);
        let queue = queue.map(|lane| &lane.queues[priority.level() as usize - 1]);
        let at = |queue: &Queue| {
            queue
                .tasks
                .binary_search_by_key(&row, |t| t.0)
                .map(|at| queue.tasks[at].1)
        };
        queue.is_some_and(|queue| at(queue).is_ok_and(|run_at| run_at != GONE))
    }

    /// How many tasks are ready, whether their key is free or not.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// True when a claim could find something.
    pub(super) fn has_work(&self) -> bool {
        !self.busy.is_empty() || !self.suspects.is_empty()
    }

    /// The same of the classes that are within reach.
    pub(super) fn has_work_in(&self, reach: Reach<'_>) -> bool {
        self.busy.iter().any(|class| reach(*class).is_some()) || self.has_suspect(reach)
    }

    /// The classes of which tasks are ready, suspected ones aside.
    pub(super) fn busy(&self) -> impl Iterator<Item = u32> {
        self.busy.iter().copied()
    }

    /// Adds a plain task that was just enqueued. False where it has to stand by itself, like any other, because a newer one
    /// is there already.
    pub(super) fn push_plain(&mut self, class: u32, priority: Priority, row: i64, run_at: Time) -> bool {
        let lane = self.lane(class);
        let is_aged = lane.rule.ageing.is_some();
        let queue = &mut lane.queues[priority.level() as usize - 1];
        // Where tasks rise, the front has to be the one that has waited longest.
        let is_older = |(last, at): &(i64, Time)| *last >= row || is_aged && *at != GONE && *at > run_at;
        if queue.tasks.back().is_some_and(is_older) {
            return false;
        }
        queue.tasks.push_back((row, run_at));
        self.busy.insert(class);
        self.len += 1;
        true
    }

    /// Adds any other task.
    pub(super) fn push(&mut self, entry: Entry) {
        self.len += 1;
        let Entry {
            class,
            rank,
            key,
            suspect,
        } = entry;
        let Some(key) = key else {
            return self.insert(rank, class, suspect);
        };
        let group = self.groups.entry(key.clone()).or_default();
        let passes = group.heads.last().is_some_and(|last| rank < last.rank);
        let joins = group.rest.is_empty() && group.taken(&self.rules).0.admits(rule_of(&self.rules, class).width());
        if passes || joins {
            self.give(&key, rank, class, suspect);
        } else {
            group.rest.insert(rank, (class, suspect));
        }
        if !joins || passes {
            self.settle(&key);
        }
    }

    /// The rank by which a task stands in its lane that has the turn of its key.
    fn stands(&self, key: &Key, rank: Rank, class: u32) -> Rank {
        let rule = self.rule(class);
        let number = match rule.fair {
            true => self.turns.of(key),
            false => None,
        };
        rank.served(rule, number)
    }

    /// Gives the turn of a key to those who should have it, and their places in their lanes.
    fn settle(&mut self, key: &Key) {
        let Some(group) = self.groups.get_mut(key) else { return };
        let (mut turns, kept) = group.taken(&self.rules);
        let passed = group.heads.split_off(kept);
        group
            .rest
            .extend(passed.iter().map(|head| (head.rank, (head.class, head.suspect))));
        let mut next = Vec::new();
        while let Some(first) = group.rest.first_entry() {
            if !turns.admits(rule_of(&self.rules, first.get().0).width()) {
                break;
            }
            next.push(first.remove_entry());
        }
        if next.is_empty() && group.heads.is_empty() && group.running.is_empty() {
            self.groups.remove(key);
        }
        for head in passed {
            self.withdraw(head.stands, head.class, head.suspect);
        }
        for (rank, (class, suspect)) in next {
            self.give(key, rank, class, suspect);
        }
    }

    /// Gives a task the turn of its key, and its place in its lane.
    fn give(&mut self, key: &Key, rank: Rank, class: u32, suspect: bool) {
        let stands = self.stands(key, rank, class);
        let Some(group) = self.groups.get_mut(key) else { return };
        group.add(Head {
            rank,
            class,
            suspect,
            stands,
        });
        self.insert(stands, class, suspect);
    }

    /// Those of a key that have its turn stand as its last turn says.
    fn stand_anew(&mut self, key: &Key) {
        let ranks = self
            .groups
            .get(key)
            .map(|group| group.heads.iter().map(|head| (head.rank, head.class)));
        let anew: Vec<Rank> = ranks
            .into_iter()
            .flatten()
            .map(|(rank, class)| self.stands(key, rank, class))
            .collect();
        for (at, stands) in anew.into_iter().enumerate() {
            let Some(head) = self.groups.get_mut(key).and_then(|group| group.heads.get_mut(at)) else {
                return;
            };
            if head.stands != stands {
                let (before, class, suspect) = (std::mem::replace(&mut head.stands, stands), head.class, head.suspect);
                self.withdraw(before, class, suspect);
                self.insert(stands, class, suspect);
            }
        }
    }

    /// The keys of which others have their turn than should.
    pub(super) fn unsettled(&self) -> impl Iterator<Item = &Key> {
        let unsettled = self.groups.iter().filter(|(_, group)| !group.is_settled(&self.rules));
        unsettled.map(|(key, _)| key)
    }

    /// Takes a task out, wherever it stands; false when it was not there.
    pub(super) fn remove(&mut self, entry: &Entry) -> bool {
        let Entry {
            class,
            rank,
            key,
            suspect,
        } = entry;
        let found = match key {
            None => self.withdraw(*rank, *class, *suspect),
            Some(key) => self.remove_keyed(key, *rank),
        };
        self.len -= usize::from(found);
        found
    }

    fn remove_keyed(&mut self, key: &Key, rank: Rank) -> bool {
        let Some(group) = self.groups.get_mut(key) else {
            return false;
        };
        match group.heads.binary_search_by_key(&rank, |head| head.rank) {
            Ok(at) => {
                let head = group.heads.remove(at);
                self.withdraw(head.stands, head.class, head.suspect);
            }
            Err(_) if group.rest.remove(&rank).is_some() => {}
            Err(_) => return false,
        }
        // Whoever was behind it may have its turn now, or does not have to wait for a narrower one any more.
        self.settle(key);
        true
    }

    /// A claim took a task of a key that had its turn, and keeps it until it is released.
    pub(super) fn hold(&mut self, key: &Key, row: i64, class: u32) {
        let group = self.groups.entry(key.clone()).or_default();
        if group.running.is_empty() {
            group.running.reserve_exact(1);
        }
        group.running.push((row, class));
        match group.heads.iter().position(|head| head.rank.row == row) {
            // The claim took it out of its lane. As many as before have their turn.
            Some(at) => drop(group.heads.remove(at)),
            None => self.settle(key),
        }
    }

    /// The run of one of a key's holders ended.
    pub(super) fn release(&mut self, key: &Key, row: i64) {
        let Some(group) = self.groups.get_mut(key) else { return };
        let Some(at) = group.running.iter().position(|(held, _)| *held == row) else {
            return;
        };
        group.running.swap_remove(at);
        self.settle(key);
    }

    fn lane(&mut self, class: u32) -> &mut Lane {
        let index = class as usize;
        if self.lanes.len() <= index {
            self.lanes.resize_with(index + 1, Lane::default);
        }
        &mut self.lanes[index]
    }

    fn insert(&mut self, rank: Rank, class: u32, suspect: bool) {
        if suspect {
            self.suspects.insert(rank, class);
        } else {
            self.lane(class).insert(rank);
            self.busy.insert(class);
        }
    }

    fn withdraw(&mut self, rank: Rank, class: u32, suspect: bool) -> bool {
        if suspect {
            return self.suspects.remove(&rank).is_some();
        }
        let lane = self.lane(class);
        let mut found = lane.ranked.remove(&rank);
        if !found && deadline_of(rank.place).is_none() {
            found = lane.queues[rank.urgency.0 as usize - 1].remove(rank.row);
        }
        if lane.is_empty() {
            self.busy.remove(&class);
        }
        found
    }

    /// True when a suspected task is ready within reach.
    pub(super) fn has_suspect(&self, reach: Reach<'_>) -> bool {
        self.suspect(reach).is_some()
    }

    fn suspect(&self, reach: Reach<'_>) -> Option<(Rank, u32)> {
        let within = |(rank, class): &(&Rank, &u32)| reach(**class).is_some_and(|newest| rank.row <= newest);
        self.suspects.iter().find(within).map(|(rank, class)| (*rank, *class))
    }

    /// The best suspected task within reach, taken out.
    pub(super) fn take_suspect(&mut self, reach: Reach<'_>) -> Option<Pick> {
        let (rank, class) = self.suspect(reach)?;
        self.suspects.remove(&rank);
        self.len -= 1;
        Some(Pick {
            row: rank.row,
            class,
            plain: None,
        })
    }

    /// Starts taking tasks within reach.
    pub(super) fn merge(&mut self, reach: Reach<'_>) -> Merge {
        let (lanes, now) = (&mut self.lanes, self.now);
        let heads = self.busy.iter().filter_map(|class| Some((*class, reach(*class)?)));
        Merge(
            heads
                .filter_map(|(class, newest)| Some(Reverse((lanes[class as usize].best(newest, now)?, class))))
                .collect(),
        )
    }

    /// The class of the next best task of a merge. One that has come out of reach since is left where it is.
    pub(super) fn next(&self, merge: &mut Merge, reach: Reach<'_>) -> Option<u32> {
        while let Some(Reverse((_, class))) = merge.0.peek() {
            if reach(*class).is_some() {
                return Some(*class);
            }
            merge.0.pop();
        }
        None
    }

    /// The next best task of a merge, taken out. A class that has come out of reach since is left where it is.
    pub(super) fn take(&mut self, merge: &mut Merge, reach: Reach<'_>) -> Option<Pick> {
        loop {
            let Reverse((rank, class)) = merge.0.pop()?;
            let Some(newest) = reach(class) else { continue };
            let lane = &mut self.lanes[class as usize];
            let pick = lane.take(rank, class);
            self.len -= 1;
            if let Some(next) = lane.best(newest, self.now) {
                merge.0.push(Reverse((next, class)));
            } else if lane.is_empty() {
                self.busy.remove(&class);
            }
            return Some(pick);
        }
    }

    /// The rows that run of each key: for `verify`.
    pub(super) fn running(&self) -> Vec<i64> {
        let held = self.groups.values().flat_map(|group| &group.running);
        let mut rows: Vec<i64> = held.map(|(row, _)| *row).collect();
        rows.sort_unstable();
        rows
    }

    /// Every ready row, sorted: for `verify`.
    pub(super) fn rows(&self) -> Vec<i64> {
        let mut rows: Vec<i64> = self.suspects.keys().map(|r| r.row).collect();
        for lane in &self.lanes {
            rows.extend(lane.ranked.iter().map(|r| r.row));
            rows.extend(
                lane.queues
                    .iter()
                    .flat_map(|q| &q.tasks)
                    .filter(|t| t.1 != GONE)
                    .map(|t| t.0),
            );
        }
        for group in self.groups.values() {
            rows.extend(group.rest.keys().map(|r| r.row));
        }
        rows.sort_unstable();
        rows
    }
}

/// Up to which row a claim may take tasks of a class; `None` for a class that it may not take from.
pub(super) type Reach<'a> = &'a dyn Fn(u32) -> Option<i64>;

/// The best of each lane that a claim may take from.
pub(super) struct Merge(BinaryHeap<Reverse<(Rank, u32)>>);

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(class: u32, priority: Priority, deadline: Option<i64>, row: i64, key: Option<&str>) -> Entry {
        let key = key.map(|k| (Name::from("default"), Name::from(k)));
        Entry {
            class,
            rank: Rank::new(priority, deadline.map(Time::from_micros), row),
            key,
            suspect: false,
        }
    }

    fn drain(order: &mut Order, reach: Reach<'_>) -> Vec<i64> {
        let mut merge = order.merge(reach);
        std::iter::from_fn(|| order.take(&mut merge, reach))
            .map(|p| p.row)
            .collect()
    }

    fn plain(order: &mut Order, class: u32, priority: Priority, row: i64) {
        assert!(order.push_plain(class, priority, row, Time::EPOCH));
    }

    const ALL: Reach<'static> = &|_| Some(i64::MAX);

    #[test]
    fn claims_over_all_lanes_go_by_priority_then_deadline_then_age() {
        let mut order = Order::default();
        plain(&mut order, 0, Priority::Normal, 1);
        plain(&mut order, 1, Priority::Normal, 2);
        plain(&mut order, 0, Priority::Normal, 3);
        plain(&mut order, 1, Priority::High, 4);
        order.push(entry(1, Priority::Normal, Some(9), 5, None));
        order.push(entry(0, Priority::Normal, Some(8), 6, None));
        order.push(entry(2, Priority::Critical, None, 7, None));
        // A newer one is there already.
        assert!(!order.push_plain(0, Priority::Normal, 0, Time::EPOCH));
        order.push(entry(0, Priority::Normal, None, 0, None));
        assert_eq!(order.rows(), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(
            drain(&mut order, &|class| (class != 2).then_some(i64::MAX)),
            [4, 6, 5, 0, 1, 2, 3]
        );
        assert_eq!(drain(&mut order, ALL), [7]);
        assert!(!order.has_work() && order.len() == 0);
    }

    #[test]
    fn of_one_key_only_the_best_is_ready_and_none_while_it_is_held() {
        let mut order = Order::default();
        for row in 1..=4 {
            order.push(entry(0, Priority::Normal, None, row, Some("k")));
        }
        order.push(entry(1, Priority::High, None, 5, Some("k")));
        order.push(entry(0, Priority::Normal, None, 6, None));
        let key = (Name::from("default"), Name::from("k"));
        assert_eq!(drain(&mut order, ALL), [5, 6]);
        order.hold(&key, 5, 1);
        assert_eq!(drain(&mut order, ALL), [0i64; 0]);
        assert!(order.remove(&entry(0, Priority::Normal, None, 1, Some("k"))));
        order.release(&key, 5);
        assert_eq!(order.rows(), [2, 3, 4]);
        assert_eq!(drain(&mut order, ALL), [2]);
    }

    fn wide(width: u32) -> OrderRule {
        OrderRule {
            per_key: Some(width),
            ..OrderRule::STRICT
        }
    }

    #[test]
    fn of_one_key_as_many_are_ready_as_their_queues_let_run() {
        let mut order = Order::default();
        order.set_rules(vec![wide(3), OrderRule::STRICT]);
        let key = (Name::from("default"), Name::from("k"));
        let push = |order: &mut Order, class, row| order.push(entry(class, Priority::Normal, None, row, Some("k")));
        for row in [1, 2, 4, 5] {
            push(&mut order, 0, row);
        }
        // The one that comes last is the third, and a narrow one lets nobody behind it pass.
        push(&mut order, 1, 3);
        assert_eq!(drain(&mut order, ALL), [1, 2]);
        order.hold(&key, 2, 0);
        assert!(order.remove(&entry(1, Priority::Normal, None, 3, Some("k"))));
        assert_eq!(drain(&mut order, ALL), [4]);
        order.hold(&key, 1, 0);
        order.hold(&key, 4, 0);
        order.release(&key, 1);
        assert_eq!(drain(&mut order, ALL), [5]);
        order.hold(&key, 5, 0);
        // Beside a task that comes first and is narrow, nobody has the turn until it has run.
        push(&mut order, 1, 6);
        push(&mut order, 0, 7);
        for row in [2, 4, 5] {
            assert_eq!(drain(&mut order, ALL), [0i64; 0]);
            order.release(&key, row);
        }
        assert_eq!(drain(&mut order, ALL), [6]);
        order.hold(&key, 6, 1);
        assert_eq!(drain(&mut order, ALL), [0i64; 0]);
        order.release(&key, 6);
        assert_eq!((drain(&mut order, ALL), order.unsettled().count()), (vec![7], 0));
    }

    #[test]
    fn a_changed_width_gives_turns_and_takes_them() {
        let mut order = Order::default();
        let key = (Name::from("default"), Name::from("k"));
        for row in 1..=6 {
            order.push(entry(0, Priority::Normal, None, row, Some("k")));
        }
        let ready = |order: &mut Order, width| {
            order.set_rules(vec![wide(width)]);
            assert_eq!(order.unsettled().count(), 0);
            order.lanes[0].ranked.iter().map(|rank| rank.row).collect::<Vec<_>>()
        };
        assert_eq!(ready(&mut order, 1), [1]);
        assert_eq!(ready(&mut order, 4), [1, 2, 3, 4]);
        assert_eq!(ready(&mut order, 2), [1, 2]);
        let mut merge = order.merge(ALL);
        for row in [1, 2] {
            assert_eq!(order.take(&mut merge, ALL).unwrap().row, row);
            order.hold(&key, row, 0);
        }
        assert_eq!(ready(&mut order, 1), [0i64; 0]);
        order.release(&key, 1);
        assert_eq!(ready(&mut order, 1), [0i64; 0]);
        assert_eq!(ready(&mut order, 3), [3, 4]);
        assert_eq!(order.rows(), [3, 4, 5, 6]);
    }

    #[test]
    fn what_is_newer_than_a_claim_reaches_stays_where_it_is() {
        let mut order = Order::default();
        plain(&mut order, 0, Priority::Normal, 1);
        plain(&mut order, 0, Priority::High, 3);
        order.push(entry(0, Priority::Normal, Some(9), 2, None));
        order.push(entry(0, Priority::Critical, Some(9), 4, None));
        assert_eq!(drain(&mut order, &|_| Some(2)), [2, 1]);
        assert_eq!(drain(&mut order, &|_| Some(2)), [0i64; 0]);
        order.push(entry(0, Priority::Low, Some(9), 0, None));
        assert_eq!(drain(&mut order, &|_| Some(2)), [0]);
        assert!(order.has_work() && !order.has_work_in(&|_| None));
        assert_eq!(drain(&mut order, ALL), [4, 3]);
        assert!(!order.has_work());
    }

    #[test]
    fn a_task_taken_from_the_middle_of_a_queue_is_never_claimed() {
        let mut order = Order::default();
        for row in 0..1000 {
            plain(&mut order, 0, Priority::Normal, row);
        }
        for row in (0..1000).filter(|r| r % 10 != 0) {
            assert!(order.remove(&entry(0, Priority::Normal, None, row, None)));
            assert!(!order.remove(&entry(0, Priority::Normal, None, row, None)));
        }
        assert_eq!(order.len(), 100);
        assert_eq!(drain(&mut order, ALL), (0..100).map(|r| r * 10).collect::<Vec<_>>());
    }

    #[test]
    fn plain_tasks_rise_by_the_clock_from_the_front_of_each_queue() {
        let at = |seconds: i64| Time::from_micros(1_000_000 * seconds);
        let mut order = Order::default();
        order.set_rules(vec![OrderRule {
            ageing: Some(std::time::Duration::from_secs(10)),
            ..OrderRule::STRICT
        }]);
        for (row, priority, run_at) in [(1, Priority::Low, 0), (2, Priority::Normal, 15), (3, Priority::Low, 16)] {
            assert!(order.push_plain(0, priority, row, at(run_at)));
        }
        // One that has waited longer than an older row stands by itself.
        assert!(!order.push_plain(0, Priority::Low, 4, at(12)));
        plain(&mut order, 1, Priority::High, 5);
        let first = |order: &mut Order, now: i64| {
            order.now = at(now);
            let mut merge = order.merge(ALL);
            order
                .take(&mut merge, ALL)
                .map(|pick| (pick.row, pick.plain.map(|(own, _)| own)))
        };
        assert_eq!(first(&mut order, 19), Some((5, Some(Priority::High))));
        assert_eq!(first(&mut order, 20), Some((1, Some(Priority::Low))));
        assert_eq!(first(&mut order, 40), Some((2, Some(Priority::Normal))));
        assert!(order.remove(&entry(0, Priority::Low, None, 3, None)));
        assert!(!order.has_work());
    }

    #[test]
    fn the_turn_of_a_key_goes_with_whoever_is_the_best_of_it() {
        let fair = OrderRule {
            fair: true,
            ..OrderRule::STRICT
        };
        let mut order = Order::default();
        order.set_rules(vec![fair, OrderRule::STRICT]);
        let key = (Name::from("default"), Name::from("k"));
        for row in [1, 2] {
            order.push(entry(0, Priority::Normal, None, row, Some("k")));
        }
        order.push(entry(0, Priority::Normal, None, 3, None));
        order.push(entry(1, Priority::Normal, None, 4, Some("k")));
        order.note_turn(&key, 5);
        order.push(entry(0, Priority::Normal, None, 6, None));
        // The one that stands already is placed anew when it is taken out and put back.
        assert!(order.remove(&entry(0, Priority::Normal, None, 1, Some("k"))));
        let mut merge = order.merge(ALL);
        let next = |order: &mut Order, merge: &mut Merge| order.take(merge, ALL).map(|pick| pick.row);
        assert_eq!(next(&mut order, &mut merge), Some(3));
        assert_eq!(next(&mut order, &mut merge), Some(2));
        order.hold(&key, 2, 0);
        // Of a strict queue its age is its own.
        order.release(&key, 2);
        let mut merge = order.merge(ALL);
        assert_eq!(next(&mut order, &mut merge), Some(4));
    }

    #[test]
    fn all_of_a_key_that_have_their_turn_go_behind_when_it_was_served() {
        let mut order = Order::default();
        order.set_rules(vec![OrderRule { fair: true, ..wide(2) }]);
        let key = (Name::from("default"), Name::from("k"));
        for row in [1, 2, 3] {
            order.push(entry(0, Priority::Normal, None, row, Some("k")));
        }
        order.push(entry(0, Priority::Normal, None, 4, None));
        let mut merge = order.merge(ALL);
        assert_eq!(order.take(&mut merge, ALL).unwrap().row, 1);
        order.hold(&key, 1, 0);
        order.note_turn(&key, 5);
        order.release(&key, 1);
        assert_eq!(drain(&mut order, ALL), [4, 2, 3]);
    }
}
