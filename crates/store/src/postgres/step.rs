//! Carrying out transitions in one transaction: the rows, the history, the counts, and whoever waits for a task.
//!
//! A [`Work`] loads and locks the rows that it needs, decides in memory by [`apply`], and writes everything at its end in
//! one round trip. Rows are locked before they are decided on, so that what was decided still holds when it is written.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use pensum_core::store::{Applied, Rejected};
use pensum_core::task::{Execution, ExecutionStatus};
use pensum_core::transition::{Effects, Event, EventKind};
use pensum_core::{ErrorInfo, Json, Name, State, TaskId, Time, Transition, Usage, apply};
use tokio_postgres::types::Type;

use super::Inner;
use super::error::Fault;
use super::key;
use super::notes::Notes;
use super::pool::{Durability, Statement, Tx, Value, text};
use super::reads::StoredTask;
use super::row::{self, Cell, LIVE_LIST, LiveRow, OUTCOME_LIST, OutcomeRow, Run, mark, scope_of, seq_of};

/// How many levels of dependants a cascade loads at once.
const LEVELS_AT_ONCE: i64 = 64;

/// What goes with a transition into the record.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) actor: Option<Name>,
    pub(super) error: Option<ErrorInfo>,
    pub(super) result: Option<Json>,
    pub(super) usage: Usage,
}

/// What follows from the end of a task, still to be done: which row, what happens to it, and why.
type Following = VecDeque<(i64, Event, Option<ErrorInfo>)>;

/// Where a task is, as far as this transaction knows.
#[derive(Clone)]
pub(super) enum Place {
    Live(Box<LiveRow>),
    Ended(Box<OutcomeRow>),
    /// Not unfinished; whether it ended was not asked, or it is nowhere.
    Unknown,
}

/// How often a row is looked for that is just being moved between the tables.
const MOVES_MAX: usize = 10;

/// A task that this transaction has loaded.
struct Slot {
    id: TaskId,
    class: u32,
    /// As it was loaded from the unfinished tasks.
    parent: Option<i64>,
    /// Where it counted when it was loaded; `None` for one that this transaction adds.
    before: Option<(u32, Cell)>,
    was_live: bool,
    /// As it was loaded.
    was_leased: bool,
    place: Place,
    changed: bool,
}

impl Slot {
    /// True for a task that this transaction adds.
    fn is_new(&self) -> bool {
        self.before.is_none() && !matches!(self.place, Place::Unknown)
    }
}

/// An event to append.
pub(super) struct EventRow {
    pub(super) row: i64,
    pub(super) seq: u64,
    pub(super) at: Time,
    pub(super) kind: EventKind,
    pub(super) actor: Option<Name>,
    pub(super) attempt: u32,
    pub(super) error: Option<ErrorInfo>,
}

/// A change of where tasks count.
pub(super) struct Moved {
    pub(super) class: u32,
    pub(super) cell: Cell,
    pub(super) by: i64,
    /// It holds a lease there.
    pub(super) is_leased: bool,
}

/// One transaction at work.
pub(super) struct Work {
    pub(super) tx: Tx,
    pub(super) inner: Arc<Inner>,
    pub(super) now: Time,
    slots: BTreeMap<i64, Slot>,
    /// Of rows whose dependants have been looked up while the rows were locked.
    dependants: HashMap<i64, Vec<i64>>,
    /// Dependants that this transaction adds, by what they depend on.
    added: HashMap<i64, Vec<i64>>,
    /// Parents that have ended and stay so until this transaction ends.
    ended_parents: HashSet<i64>,
    /// Unique keys that this transaction gives away, by namespace, handler and key: to whom, and until when.
    pub(super) uniques: HashMap<(String, String, String), (TaskId, Option<Time>)>,
    events: Vec<EventRow>,
    executions: Vec<Execution>,
    tallies: BTreeMap<(u32, Cell), i64>,
    /// Keys whose turn has to be settled at the end.
    scopes: BTreeSet<Name>,
    /// Keys of fair queues whose run has ended, in that order.
    served: Vec<Name>,
    /// Keys that this transaction will want, to be locked before rows are.
    pub(super) wanted: BTreeSet<Name>,
    unique_freed: Vec<i64>,
    checkpoints: BTreeMap<i64, String>,
    /// Rows whose checkpoint and inbox go.
    emptied: Vec<i64>,
    /// Nodes that were asked something, each as often as it was.
    pub(super) commanded: Vec<i64>,
    /// What ends of attempts tell breakers.
    notes: Notes,
    /// The version of queues by which tasks were taken.
    pub(super) guarded: Option<i64>,
    /// Whatever else goes into the transaction.
    pub(super) extra: Vec<Statement<'static>>,
}

pub(super) fn dependency_failed(id: TaskId, state: State) -> ErrorInfo {
    ErrorInfo::new(
        "dependency_failed",
        format!("task {id}, which it depends on, is {state}"),
    )
}

impl Work {
    /// Begins a transaction at `now`.
    pub(super) async fn begin(inner: &Arc<Inner>, durability: Durability, now: Time) -> Result<Work, Fault> {
        inner.queues.follow(&inner.pool, &inner.wake).await?;
        let tx = inner.pool.begin_long(durability).await?;
        Ok(Work::on(tx, inner, now))
    }

    /// Works in a transaction that stands already.
    pub(super) fn on(tx: Tx, inner: &Arc<Inner>, now: Time) -> Work {
        Work {
            tx,
            inner: Arc::clone(inner),
            now,
            slots: BTreeMap::new(),
            dependants: HashMap::new(),
            added: HashMap::new(),
            ended_parents: HashSet::new(),
            uniques: HashMap::new(),
            events: Vec::new(),
            executions: Vec::new(),
            tallies: BTreeMap::new(),
            scopes: BTreeSet::new(),
            served: Vec::new(),
            wanted: BTreeSet::new(),
            unique_freed: Vec::new(),
            checkpoints: BTreeMap::new(),
            emptied: Vec::new(),
            commanded: Vec::new(),
            notes: Notes::of(inner),
            guarded: None,
            extra: Vec::new(),
        }
    }

    /// Loads and locks unfinished tasks, the turns of their keys first: whoever settles a turn wants rows of that key.
    pub(super) async fn load(&mut self, rows: &[i64]) -> Result<(), Fault> {
        self.load_after(key::LOCK_OF_TASKS, rows).await
    }

    /// The same for tasks that may end: the keys of those that it will be told to are locked in the same order.
    pub(super) async fn load_to_end(&mut self, rows: &[i64]) -> Result<(), Fault> {
        self.load_after(key::LOCK_AROUND_TASKS, rows).await
    }

    async fn load_after(&mut self, lock: &'static str, rows: &[i64]) -> Result<(), Fault> {
        let missing: Vec<i64> = rows
            .iter()
            .copied()
            .filter(|row| !self.slots.contains_key(row))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "SELECT {}, t.id FROM pensum.live l JOIN pensum.task t ON t.row = l.row
             WHERE l.row = ANY($1) ORDER BY l.row FOR UPDATE OF l",
            *LIVE_LIST
        );
        let ids = || Value::Int8s(missing.iter().copied().map(Some).collect());
        let wanted = std::mem::take(&mut self.wanted);
        let answers = self
            .tx
            .pipeline(&[
                Statement {
                    sql: lock,
                    params: vec![ids(), key::keys(&wanted)],
                },
                Statement {
                    sql: &sql,
                    params: vec![ids()],
                },
            ])
            .await?;
        for found in answers.get(1).into_iter().flatten() {
            let live = LiveRow::read(found, 0)?;
            let id = row::task_id(found, row::LIVE.len())?;
            let before = Some((live.class, live.cell(live.gate)));
            let class = live.class;
            let was_leased = live.life.lease.is_some();
            let slot = Slot {
                id,
                class,
                parent: live.parent,
                before,
                was_live: true,
                was_leased,
                place: Place::Live(Box::new(live)),
                changed: false,
            };
            self.slots.insert(id.row(), slot);
        }
        for row in missing {
            self.slots.entry(row).or_insert(Slot {
                id: TaskId::from_bytes([0; 16]),
                class: 0,
                parent: None,
                before: None,
                was_live: false,
                was_leased: false,
                place: Place::Unknown,
                changed: false,
            });
        }
        Ok(())
    }

    /// Loads and locks tasks, ended or not.
    pub(super) async fn load_any(&mut self, rows: &[i64]) -> Result<(), Fault> {
        // One that is moved between the two tables at this moment is seen in neither; the next look finds it.
        for _ in 0..MOVES_MAX {
            self.load(rows).await?;
            let ended: Vec<i64> = rows.iter().copied().filter(|row| self.is_unknown(*row)).collect();
            if ended.is_empty() {
                return Ok(());
            }
            let sql = format!(
                "SELECT {}, t.id, t.class FROM pensum.outcome o JOIN pensum.task t ON t.row = o.row
                 WHERE o.row = ANY($1) ORDER BY o.row FOR UPDATE OF o",
                *OUTCOME_LIST
            );
            for found in self.tx.query(&sql, &[(&ended, Type::INT8_ARRAY)]).await? {
                let outcome = OutcomeRow::read(&found, 0)?;
                let id = row::task_id(&found, row::OUTCOME.len())?;
                let class = found.try_get::<_, i32>(row::OUTCOME.len() + 1)? as u32;
                let before = Some((class, Cell::of_end(outcome.life.state)));
                let place = Place::Ended(Box::new(outcome));
                self.slots.insert(
                    id.row(),
                    Slot {
                        id,
                        class,
                        parent: None,
                        before,
                        was_live: false,
                        was_leased: false,
                        place,
                        changed: false,
                    },
                );
            }
            let lost: Vec<i64> = ended.into_iter().filter(|row| self.is_unknown(*row)).collect();
            if lost.is_empty() {
                return Ok(());
            }
            let known = "SELECT row FROM pensum.task WHERE row = ANY($1)";
            if self.tx.query(known, &[(&lost, Type::INT8_ARRAY)]).await?.is_empty() {
                return Ok(());
            }
            for row in lost {
                self.slots.remove(&row);
            }
        }
        Ok(())
    }

    fn is_unknown(&self, row: i64) -> bool {
        self.slots
            .get(&row)
            .is_none_or(|slot| matches!(slot.place, Place::Unknown))
    }

    /// The task of this id, where this transaction has loaded it.
    pub(super) fn place(&self, id: TaskId) -> Option<&Place> {
        self.slots
            .get(&id.row())
            .filter(|slot| slot.id == id)
            .map(|slot| &slot.place)
    }

    /// The unfinished task in a row that was loaded.
    pub(super) fn live(&self, row: i64) -> Option<(TaskId, &LiveRow)> {
        match self.slots.get(&row) {
            Some(Slot {
                id,
                place: Place::Live(live),
                ..
            }) => Some((*id, live)),
            _ => None,
        }
    }

    /// The same, to be changed.
    pub(super) fn live_mut(&mut self, row: i64) -> Option<&mut LiveRow> {
        match self.slots.get_mut(&row) {
            Some(Slot {
                place: Place::Live(live),
                changed,
                ..
            }) => {
                *changed = true;
                Some(live)
            }
            _ => None,
        }
    }

    /// The class where a loaded task counted.
    pub(super) fn class_of(&self, row: i64) -> Option<u32> {
        self.slots.get(&row).map(|slot| slot.class)
    }

    /// Adds a task that is new.
    pub(super) fn add(&mut self, id: TaskId, live: LiveRow) {
        let class = live.class;
        let place = Place::Live(Box::new(live));
        self.slots.insert(
            id.row(),
            Slot {
                id,
                class,
                parent: None,
                before: None,
                was_live: false,
                was_leased: false,
                place,
                changed: true,
            },
        );
    }

    /// Notes new edges, by dependent and prerequisite: the ends of the prerequisites tell the dependents.
    pub(super) fn note_dependants(&mut self, edges: &[(i64, i32, i64)]) {
        for (dependent, _, prerequisite) in edges {
            if let Some(live) = self.live_mut(*prerequisite) {
                live.marks |= mark::AWAITED;
            }
            self.added.entry(*prerequisite).or_default().push(*dependent);
        }
    }

    /// Whoever depends on a row that was looked up, those included that this transaction adds.
    fn dependants_of(&self, row: i64) -> Vec<i64> {
        let of = |edges: &HashMap<i64, Vec<i64>>| edges.get(&row).cloned().unwrap_or_default();
        [of(&self.dependants), of(&self.added)].concat()
    }

    /// How many unfinished children of a row this transaction makes or ends, which the tables do not show yet.
    pub(super) fn children_changed(&self, parent: i64) -> i64 {
        let changed = self.slots.values().filter_map(|slot| match &slot.place {
            Place::Live(live) if live.parent == Some(parent) => Some(i64::from(!slot.was_live)),
            Place::Ended(_) if slot.was_live && slot.parent == Some(parent) => Some(-1),
            _ => None,
        });
        changed.sum()
    }

    /// What this transaction has changed so far in where unfinished tasks count, which the tables do not show yet.
    pub(super) fn moved(&self) -> impl Iterator<Item = Moved> {
        let changed = self.slots.values().filter(|slot| slot.changed);
        changed.flat_map(|slot| {
            let before = slot.before.filter(|_| slot.was_live).map(|(class, cell)| Moved {
                class,
                cell,
                by: -1,
                is_leased: slot.was_leased,
            });
            let after = match &slot.place {
                Place::Live(live) => Some(Moved {
                    class: live.class,
                    cell: live.cell(live.gate_at(self.now)),
                    by: 1,
                    is_leased: live.life.lease.is_some(),
                }),
                _ => None,
            };
            before.into_iter().chain(after)
        })
    }

    /// The rows that this transaction changes.
    pub(super) fn changed_rows(&self) -> impl Iterator<Item = i64> {
        self.slots.iter().filter(|(_, slot)| slot.changed).map(|(row, _)| *row)
    }

    /// Replaces what is known of an ended task.
    pub(super) fn change_ended(&mut self, outcome: OutcomeRow) {
        if let Some(slot) = self.slots.get_mut(&outcome.row) {
            slot.place = Place::Ended(Box::new(outcome));
            slot.changed = true;
        }
    }

    /// Makes an ended task one that is about to run again.
    pub(super) fn unend(&mut self, outcome: &OutcomeRow, stored: &StoredTask) {
        let namespace = self
            .inner
            .catalog
            .known_class(stored.class)
            .map(|c| c.namespace.clone());
        let live = LiveRow {
            deadline: stored.spec.deadline,
            scope: stored
                .spec
                .key
                .as_ref()
                .zip(namespace)
                .map(|(key, ns)| scope_of(&ns, key)),
            life: outcome.life.clone(),
            version: outcome.version,
            expires_at: stored.spec.expires_at(),
            queue_timeout: stored.spec.queue_timeout(),
            parent: stored.spec.details.as_ref().and_then(|d| d.parent_id).map(TaskId::row),
            marks: outcome.marks,
            progress: outcome.progress.clone(),
            error: outcome.error.clone(),
            ..LiveRow::plain(outcome.row, stored.class, stored.spec.priority, outcome.life.run_at)
        };
        if let Some(slot) = self.slots.get_mut(&outcome.row) {
            slot.place = Place::Live(Box::new(live));
            slot.changed = true;
        }
    }

    /// Forgets a task whose rows are erased; answers where it counted.
    pub(super) fn forget(&mut self, row: i64) -> Option<(u32, Cell)> {
        let slot = self.slots.remove(&row)?;
        if let Place::Live(live) = &slot.place {
            self.scopes.extend(live.scope.clone());
        }
        if let Some((class, cell)) = slot.before {
            self.tally(class, cell, -1);
        }
        slot.before
    }

    pub(super) fn tally(&mut self, class: u32, cell: Cell, by: i64) {
        *self.tallies.entry((class, cell)).or_default() += by;
    }

    pub(super) fn put_checkpoint(&mut self, row: i64, state: &Json) {
        self.checkpoints.insert(row, state.get().to_owned());
    }

    /// Carries out an event, and all that follows from it. The row must have been loaded.
    pub(super) async fn happen(
        &mut self,
        row: i64,
        event: &Event,
        facts: Facts,
        applied: &mut Applied,
    ) -> Result<Result<Effects, Rejected>, Fault> {
        let Some((id, live)) = self.live(row) else {
            return Ok(Err(Rejected::NotFound(TaskId::from_bytes([0; 16]))));
        };
        let transition = match apply(&live.life, event, self.now) {
            Ok(transition) => transition,
            Err(refusal) => return Ok(Err(Rejected::from_refusal(id, live.life.state, refusal))),
        };
        let effects = transition.effects;
        let mut following = Following::new();
        self.step(row, transition, facts, applied, &mut following).await?;
        self.follow_all(following, applied).await?;
        Ok(Ok(effects))
    }

    /// A list of work instead of recursion: a chain of a hundred thousand dependants must not overflow the stack.
    async fn follow_all(&mut self, mut following: Following, applied: &mut Applied) -> Result<(), Fault> {
        while let Some((row, event, error)) = following.pop_front() {
            if !self.slots.contains_key(&row) {
                let ahead: Vec<i64> = following.iter().map(|(row, ..)| *row).chain([row]).collect();
                self.load(&ahead).await?;
            }
            let Some((_, live)) = self.live(row) else { continue };
            // One that does not wait (any more) refuses, which is fine.
            if let Ok(transition) = apply(&live.life, &event, self.now) {
                let facts = Facts {
                    error,
                    ..Facts::default()
                };
                self.step(row, transition, facts, applied, &mut following).await?;
            }
        }
        Ok(())
    }

    async fn step(
        &mut self,
        row: i64,
        transition: Transition,
        facts: Facts,
        applied: &mut Applied,
        following: &mut Following,
    ) -> Result<(), Fault> {
        let Some(slot) = self.slots.get_mut(&row) else {
            return Ok(());
        };
        let Place::Live(place) = &slot.place else { return Ok(()) };
        let (id, mut live, now) = (slot.id, place.clone(), self.now);
        let Transition { next, kind, effects } = transition;
        let before = live.life.state;
        let run = live.run;
        let mut facts = facts;
        live.life = next;
        live.version += 1;
        if live.life.state != State::Running {
            live.run = None;
        }
        settle_error(&mut live, &mut facts, before, effects);
        if effects.interrupt.is_some() {
            self.commanded.extend(live.life.lease.map(|l| l.node.0 as i64));
        }
        if let Some(status) = effects.attempt_ended {
            self.tally(live.class, Cell::Executions, 1);
            if let Some(run) = run
                && let Some(note) = self.notes.note(&self.inner, live.class, run, status).await?
            {
                self.notes.add(note);
            }
        }
        self.scopes.extend(live.scope.clone());
        if run.is_some() && live.run.is_none() && self.inner.order_rule(live.class).fair {
            self.served.extend(live.scope.clone());
        }
        if let Some(state) = effects.ended {
            self.end(*live, id, state, effects.attempt_ended, facts, run, following)
                .await?;
            applied.ended.push((id, state));
            return Ok(());
        }
        if let Some(status) = effects.attempt_ended {
            live.marks |= mark::EXECUTIONS;
            self.executions.push(Execution {
                task: id,
                attempt: live.life.attempt,
                executor_id: self.executor_of(run).await?,
                status,
                started_at: live.life.started_at.unwrap_or(now),
                finished_at: Some(now),
                usage: facts.usage,
                result: None,
                error: facts.error.clone().or_else(|| live.error.clone()),
            });
        }
        let error = live.error.clone();
        self.log(&mut live, run, kind, facts.actor.as_ref(), error.as_ref());
        if kind == EventKind::CancelRequested {
            live.cancel_reason = live.error.take().map(|e| e.message);
        } else if matches!(kind, EventKind::DependencyMet | EventKind::DependenciesMet)
            && live.error.as_ref().is_some_and(|e| e.kind == "dependency_failed")
        {
            // A dependency's failure is the error of a task that it cancelled, not of one that ignores it.
            live.error = None;
        }
        if before.is_terminal() {
            self.look_down(row, 1).await?;
            let waiting = self.dependants_of(row);
            if !waiting.is_empty() {
                live.marks |= mark::AWAITED;
            }
            following.extend(
                waiting
                    .into_iter()
                    .map(|dependant| (dependant, Event::DependencyRevived, None)),
            );
        }
        self.put(live);
        Ok(())
    }

    fn put(&mut self, live: Box<LiveRow>) {
        if let Some(slot) = self.slots.get_mut(&live.row) {
            slot.place = Place::Live(live);
            slot.changed = true;
        }
    }

    async fn executor_of(&self, run: Option<Run>) -> Result<String, Fault> {
        match run {
            Some(run) => Ok(self
                .inner
                .catalog
                .name(&self.inner.pool, run.executor)
                .await?
                .to_string()),
            None => Ok(String::new()),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "all of it goes into one row")]
    async fn end(
        &mut self,
        mut live: LiveRow,
        id: TaskId,
        state: State,
        status: Option<ExecutionStatus>,
        facts: Facts,
        run: Option<Run>,
        following: &mut Following,
    ) -> Result<(), Fault> {
        let row = live.row;
        if state == State::Completed && live.marks & (mark::CHECKPOINT | mark::INBOX) != 0 {
            self.checkpoints.remove(&row);
            self.emptied.push(row);
            live.marks &= !(mark::CHECKPOINT | mark::INBOX);
        }
        if live.marks & mark::UNIQUE != 0 {
            self.unique_freed.push(row);
        }
        if let Some(run) = run.filter(|run| live.life.started_at != Some(run.taken_at)) {
            // Not the first run of its attempt: when this one started is nowhere else.
            self.log_start(&mut live, run);
        }
        let (parent, awaited) = (live.parent, live.marks & mark::AWAITED != 0);
        let outcome = OutcomeRow {
            row,
            life: live.life,
            version: live.version,
            marks: live.marks,
            status,
            executor: run.map(|run| run.executor),
            result: facts.result,
            error: live.error,
            usage: facts.usage,
            actor: facts.actor,
            progress: live.progress,
        };
        self.change_ended(outcome);
        if awaited {
            // A task that did not complete may take whole chains with it.
            let levels = if state == State::Completed { 1 } else { LEVELS_AT_ONCE };
            self.look_down(row, levels).await?;
            let completed = state == State::Completed;
            for dependant in self.dependants_of(row) {
                let error = (!completed).then(|| dependency_failed(id, state));
                following.push_back((dependant, Event::DependencyEnded(completed), error));
            }
        }
        if let Some(parent) = parent {
            self.child_ended(parent, following).await?;
        }
        Ok(())
    }

    async fn child_ended(&mut self, parent: i64, following: &mut Following) -> Result<(), Fault> {
        self.load(&[parent]).await?;
        self.hold_ended_parents(&[parent]).await?;
        if let Some(live) = self.live_mut(parent) {
            live.children = live.children.saturating_sub(1);
            if live.children == 0 {
                following.push_back((parent, Event::ChildrenEnded, None));
            }
        }
        Ok(())
    }

    /// Keeps parents that have ended from being retried until their children's ends are written: a retry counts the
    /// children. Many children may do so at once.
    async fn hold_ended_parents(&mut self, parents: &[i64]) -> Result<(), Fault> {
        for _ in 0..MOVES_MAX {
            let unknown: Vec<i64> = parents
                .iter()
                .copied()
                .filter(|row| self.is_unknown(*row) && !self.ended_parents.contains(row))
                .collect();
            if unknown.is_empty() {
                return Ok(());
            }
            let sql = "SELECT row FROM pensum.outcome WHERE row = ANY($1) ORDER BY row FOR SHARE";
            for found in self.tx.query(sql, &[(&unknown, Type::INT8_ARRAY)]).await? {
                self.ended_parents.insert(found.try_get(0)?);
            }
            self.load_moved(&unknown).await?;
        }
        Ok(())
    }

    /// Looks again for rows that are in neither table: they may just have been moved from one to the other.
    async fn load_moved(&mut self, rows: &[i64]) -> Result<(), Fault> {
        let lost: Vec<i64> = rows
            .iter()
            .copied()
            .filter(|row| self.is_unknown(*row) && !self.ended_parents.contains(row))
            .collect();
        if lost.is_empty() {
            return Ok(());
        }
        let sql = "SELECT row FROM pensum.task WHERE row = ANY($1)";
        let found = self.tx.query(sql, &[(&lost, Type::INT8_ARRAY)]).await?;
        let moved: Vec<i64> = found.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        // What is gone altogether does not come back.
        self.ended_parents
            .extend(lost.into_iter().filter(|row| !moved.contains(row)));
        for row in &moved {
            self.slots.remove(row);
        }
        self.load(&moved).await
    }

    /// A child was deleted before it ended: its parent must not wait for it for ever.
    pub(super) async fn child_deleted(&mut self, parent: i64, applied: &mut Applied) -> Result<(), Fault> {
        let mut following = Following::new();
        self.child_ended(parent, &mut following).await?;
        self.follow_all(following, applied).await
    }

    /// Looks up who depends on these rows, and loads them and the parents of the rows: what ends of many tasks need, at
    /// once.
    pub(super) async fn look_ahead(&mut self, rows: &[i64]) -> Result<(), Fault> {
        let awaited: Vec<i64> = rows
            .iter()
            .copied()
            .filter(|row| self.live(*row).is_some_and(|(_, live)| live.marks & mark::AWAITED != 0))
            .filter(|row| !self.dependants.contains_key(row))
            .collect();
        let mut parents: Vec<i64> = rows
            .iter()
            .filter_map(|row| self.live(*row).and_then(|(_, l)| l.parent))
            .collect();
        parents.sort_unstable();
        parents.dedup();
        let mut next = self.look_up_dependants(&awaited).await?;
        next.extend(&parents);
        next.sort_unstable();
        next.dedup();
        self.load(&next).await?;
        self.hold_ended_parents(&parents).await
    }

    /// Looks up who depends on rows that are locked, so that no one comes to depend on them meanwhile; answers all of
    /// those.
    async fn look_up_dependants(&mut self, rows: &[i64]) -> Result<Vec<i64>, Fault> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let sql = "SELECT prerequisite, dependent FROM pensum.dependency WHERE prerequisite = ANY($1)
                   ORDER BY prerequisite, dependent";
        let found = self.tx.query(sql, &[(&rows, Type::INT8_ARRAY)]).await?;
        self.dependants.extend(rows.iter().map(|row| (*row, Vec::new())));
        let mut all = Vec::with_capacity(found.len());
        for edge in found {
            let dependent: i64 = edge.try_get(1)?;
            self.dependants.entry(edge.try_get(0)?).or_default().push(dependent);
            all.push(dependent);
        }
        Ok(all)
    }

    /// Looks up who depends on a row that is locked, and loads them; several levels down at once, where `levels` says so.
    async fn look_down(&mut self, row: i64, levels: i64) -> Result<(), Fault> {
        // Of a new one, everyone who depends on it is new, too.
        if self.dependants.contains_key(&row) || self.slots.get(&row).is_some_and(Slot::is_new) {
            return Ok(());
        }
        let mut next = self.look_up_dependants(&[row]).await?;
        if levels > 1 && !next.is_empty() {
            let sql = "WITH RECURSIVE down(row, level) AS (
                         SELECT * FROM unnest($1::bigint[], array_fill(1::bigint, ARRAY[cardinality($1)]))
                         UNION
                         SELECT d.dependent, down.level + 1 FROM pensum.dependency d
                         JOIN down ON d.prerequisite = down.row WHERE down.level < $2)
                       SELECT DISTINCT row FROM down ORDER BY row";
            let params = [(&next as _, Type::INT8_ARRAY), (&levels as _, Type::INT8)];
            let found = self.tx.query(sql, &params).await?;
            next = found.iter().map(|found| found.try_get(0)).collect::<Result<_, _>>()?;
        }
        self.load(&next).await?;
        // None of these was locked when it was found, and others may have come to depend on it before it was.
        let unasked = |row: &i64| !self.dependants.contains_key(row) && self.live(*row).is_some();
        let unasked: Vec<i64> = next.into_iter().filter(unasked).collect();
        if levels > 1 {
            self.look_up_dependants(&unasked).await?;
        }
        Ok(())
    }

    /// Appends an event, after the start of the run where that is not written yet.
    pub(super) fn log(
        &mut self,
        live: &mut LiveRow,
        run: Option<Run>,
        kind: EventKind,
        actor: Option<&Name>,
        error: Option<&ErrorInfo>,
    ) {
        if let Some(run) = run {
            self.log_start(live, run);
        }
        live.marks |= mark::EVENTS;
        self.put_event(
            live.row,
            seq_of(live.version),
            self.now,
            kind,
            actor,
            live.life.attempt,
            error,
        );
    }

    fn log_start(&mut self, live: &mut LiveRow, run: Run) {
        if live.marks & mark::START == 0 {
            live.marks |= mark::START | mark::EVENTS;
            let seq = seq_of(live.version) - 1;
            self.put_event(
                live.row,
                seq,
                run.taken_at,
                EventKind::Started,
                None,
                live.life.attempt,
                None,
            );
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the columns of one row")]
    pub(super) fn put_event(
        &mut self,
        row: i64,
        seq: u64,
        at: Time,
        kind: EventKind,
        actor: Option<&Name>,
        attempt: u32,
        error: Option<&ErrorInfo>,
    ) {
        self.events.push(EventRow {
            row,
            seq,
            at,
            kind,
            actor: actor.cloned(),
            attempt,
            error: error.cloned(),
        });
    }

    pub(super) fn put_execution(&mut self, execution: Execution) {
        self.executions.push(execution);
    }

    /// Writes everything and commits. True when something may have become claimable.
    pub(super) async fn commit(self) -> Result<bool, Fault> {
        let Work {
            mut tx,
            inner,
            now,
            mut slots,
            events,
            executions,
            mut tallies,
            mut scopes,
            served,
            unique_freed,
            checkpoints,
            emptied,
            commanded,
            notes,
            extra,
            ..
        } = self;
        let mut wakes = false;
        // Of these a run ended, or a task may have become ready.
        let mut opened: BTreeSet<u32> = BTreeSet::new();
        let mut saved: Vec<&LiveRow> = Vec::new();
        let mut ended: Vec<&OutcomeRow> = Vec::new();
        let mut gone: Vec<Option<i64>> = Vec::new();
        let mut revived: Vec<Option<i64>> = Vec::new();
        let has_rules = inner.queues.has_rules();
        for slot in slots.values_mut() {
            if let Place::Live(live) = &mut slot.place
                && (has_rules || live.risen > 0)
            {
                live.age(inner.order_rule(live.class), now);
            }
        }
        for (row, slot) in slots.iter().filter(|(_, slot)| slot.changed) {
            if let Some((class, cell)) = slot.before {
                *tallies.entry((class, cell)).or_default() -= 1;
                match &slot.place {
                    Place::Live(live) if live.life.lease.is_some() => {}
                    Place::Live(live) => opened.extend([class, live.class]),
                    _ => _ = opened.insert(class),
                }
            }
            match &slot.place {
                Place::Live(live) => {
                    let gate = live.gate_at(now);
                    *tallies.entry((live.class, live.cell(gate))).or_default() += 1;
                    wakes |= matches!(gate, row::gate::READY | row::gate::KEY | row::gate::LATER);
                    scopes.extend(live.scope.clone());
                    saved.push(live);
                    if !slot.was_live && slot.before.is_some() {
                        revived.push(Some(*row));
                    }
                }
                Place::Ended(outcome) => {
                    *tallies
                        .entry((slot.class, Cell::of_end(outcome.life.state)))
                        .or_default() += 1;
                    ended.push(outcome);
                    if slot.was_live {
                        gone.push(Some(*row));
                    }
                }
                Place::Unknown => {}
            }
        }
        wakes |= !scopes.is_empty();
        let mut statements: Vec<Statement<'_>> = Vec::new();
        statements.extend(key::lock(&scopes));
        if !gone.is_empty() {
            statements.push(say("DELETE FROM pensum.live WHERE row = ANY($1)", gone));
        }
        if !revived.is_empty() {
            statements.push(say("DELETE FROM pensum.outcome WHERE row = ANY($1)", revived));
        }
        if !saved.is_empty() {
            statements.push(Statement {
                sql: &row::SAVE_LIVE,
                params: LiveRow::values(&saved, now),
            });
        }
        if !ended.is_empty() {
            statements.push(Statement {
                sql: &row::SAVE_OUTCOME,
                params: OutcomeRow::values(&ended),
            });
        }
        if !events.is_empty() {
            statements.push(event_statement(&events));
        }
        if !executions.is_empty() {
            statements.push(execution_statement(&executions));
        }
        if !emptied.is_empty() {
            let rows: Vec<Option<i64>> = emptied.into_iter().map(Some).collect();
            statements.push(say("DELETE FROM pensum.checkpoint WHERE row = ANY($1)", rows.clone()));
            statements.push(say("DELETE FROM pensum.inbox WHERE row = ANY($1)", rows));
        }
        if !checkpoints.is_empty() {
            statements.push(Statement {
                sql: "INSERT INTO pensum.checkpoint(row, state) SELECT * FROM unnest($1::bigint[], $2::text[])
                      ON CONFLICT (row) DO UPDATE SET state = EXCLUDED.state",
                params: vec![
                    Value::Int8s(checkpoints.keys().copied().map(Some).collect()),
                    Value::Texts(checkpoints.values().map(|s| Some(text(s))).collect()),
                ],
            });
        }
        statements.extend(extra);
        if !unique_freed.is_empty() {
            let rows = unique_freed.into_iter().map(Some).collect();
            // After whatever else it writes: a task may end in the very transaction that gave it its key.
            statements.push(say(
                "DELETE FROM pensum.unique_key WHERE row = ANY($1) AND expires_at IS NULL",
                rows,
            ));
        }
        tallies.retain(|_, n| *n != 0);
        if !tallies.is_empty() {
            statements.push(tally_statement(&tallies));
        }
        if !commanded.is_empty() {
            let nodes = commanded.into_iter().map(Some).collect();
            statements.push(say(
                "UPDATE pensum.node n SET commands = n.commands + asked.times
                 FROM (SELECT id, count(*) AS times FROM unnest($1::bigint[]) AS id GROUP BY id) asked WHERE n.id = asked.id",
                nodes,
            ));
        }
        if !served.is_empty() {
            inner.rows.forget().await;
            statements.extend(key::serve(&served));
        }
        statements.extend(key::settle(&scopes, &inner.key_order(), now));
        if notes.is_empty() {
            tx.commit(&statements).await?;
        } else {
            statements.push(notes.lock());
            let locked = tx.pipeline(&statements).await?.pop().unwrap_or_default();
            let (seen, tells) = notes.write(&locked, now)?;
            tx.commit(&seen).await?;
            if tells {
                inner.wake.room();
            }
        }
        // Whose turn it is now of a key may be of any queue.
        let mut room = !scopes.is_empty() && inner.queues.any();
        if room {
            inner.wake.any_room();
        }
        for class in opened {
            room |= inner.reopen(class);
        }
        if room {
            inner.wake.room();
        }
        Ok(wakes)
    }
}

/// A statement whose one parameter is a list of rows.
fn say(sql: &'static str, rows: Vec<Option<i64>>) -> Statement<'static> {
    Statement {
        sql,
        params: vec![Value::Int8s(rows)],
    }
}

/// Appends changes of counts.
pub(super) fn tally_statement(tallies: &BTreeMap<(u32, Cell), i64>) -> Statement<'static> {
    Statement {
        sql: "INSERT INTO pensum.tally(class, cell, n)
              SELECT * FROM unnest($1::integer[], $2::smallint[], $3::bigint[])",
        params: vec![
            Value::Int4s(tallies.keys().map(|(class, _)| Some(*class as i32)).collect()),
            Value::Int2s(tallies.keys().map(|(_, cell)| Some(*cell as i16)).collect()),
            Value::Int8s(tallies.values().map(|n| Some(*n)).collect()),
        ],
    }
}

pub(super) fn event_statement(events: &[EventRow]) -> Statement<'_> {
    let error = |f: fn(&ErrorInfo) -> &str| -> Value<'_> {
        Value::Texts(events.iter().map(|e| e.error.as_ref().map(|e| text(f(e)))).collect())
    };
    Statement {
        sql: "INSERT INTO pensum.event(row, seq, at, kind, actor, attempt, error_kind, error_message)
              SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::smallint[], $5::text[], $6::bigint[],
              $7::text[], $8::text[])",
        params: vec![
            Value::Int8s(events.iter().map(|e| Some(e.row)).collect()),
            Value::Int8s(events.iter().map(|e| Some(e.seq as i64)).collect()),
            Value::Int8s(events.iter().map(|e| Some(e.at.as_micros())).collect()),
            Value::Int2s(events.iter().map(|e| Some(e.kind.code() as i16)).collect()),
            Value::Texts(events.iter().map(|e| e.actor.as_deref().map(text)).collect()),
            Value::Int8s(events.iter().map(|e| Some(i64::from(e.attempt))).collect()),
            error(|e| &e.kind),
            error(|e| &e.message),
        ],
    }
}

pub(super) fn execution_statement(executions: &[Execution]) -> Statement<'_> {
    // A statement may not insert one row twice; of two records of one attempt the later one stands.
    let mut latest: BTreeMap<(i64, u32), &Execution> = BTreeMap::new();
    for execution in executions {
        latest.insert((execution.task.row(), execution.attempt), execution);
    }
    let all: Vec<&Execution> = latest.into_values().collect();
    let usage = |e: &Execution| {
        (e.usage != Usage::default())
            .then(|| serde_json::to_string(&e.usage).ok().map(Cow::Owned))
            .flatten()
    };
    Statement {
        sql: "INSERT INTO pensum.execution(row, attempt, executor, status, started_at, finished_at, usage, result,
              error_kind, error_message) SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::smallint[],
              $5::bigint[], $6::bigint[], $7::text[], $8::text[], $9::text[], $10::text[])
              ON CONFLICT (row, attempt) DO UPDATE SET executor = EXCLUDED.executor, status = EXCLUDED.status,
              started_at = EXCLUDED.started_at, finished_at = EXCLUDED.finished_at, usage = EXCLUDED.usage,
              result = EXCLUDED.result, error_kind = EXCLUDED.error_kind, error_message = EXCLUDED.error_message",
        params: vec![
            Value::Int8s(all.iter().map(|e| Some(e.task.row())).collect()),
            Value::Int8s(all.iter().map(|e| Some(i64::from(e.attempt))).collect()),
            Value::Texts(all.iter().map(|e| Some(text(&e.executor_id))).collect()),
            Value::Int2s(all.iter().map(|e| Some(e.status.code() as i16)).collect()),
            Value::Int8s(all.iter().map(|e| Some(e.started_at.as_micros())).collect()),
            Value::Int8s(all.iter().map(|e| row::micros(e.finished_at)).collect()),
            Value::Texts(all.iter().map(|e| usage(e)).collect()),
            Value::Texts(all.iter().map(|e| e.result.as_ref().map(|r| text(r.get()))).collect()),
            Value::Texts(all.iter().map(|e| e.error.as_ref().map(|e| text(&e.kind))).collect()),
            Value::Texts(all.iter().map(|e| e.error.as_ref().map(|e| text(&e.message))).collect()),
        ],
    }
}

/// What the task's error is after a transition.
fn settle_error(live: &mut LiveRow, facts: &mut Facts, before: State, effects: Effects) {
    if live.life.state == State::Cancelled || effects.interrupt.is_some() {
        // The reason given with the request outlives the handler's own last words.
        let reason = live
            .cancel_reason
            .take()
            .map(|message| ErrorInfo::new("cancelled", message));
        if live.life.state != State::Cancelled {
            live.cancel_reason = reason.as_ref().map(|r| r.message.clone());
        }
        live.error = reason.or_else(|| facts.error.clone()).or_else(|| live.error.take());
    } else if let Some(error) = &facts.error {
        live.error = Some(error.clone());
    }
    if live.life.state == State::Completed {
        live.error = None;
    } else {
        facts.result = None;
    }
    if before.is_terminal() {
        live.error = None;
        live.cancel_reason = None;
    }
}
