//! Circuit breakers: kept in memory beside the ready order, for every claim asks them and every end of a run is told them.

use std::collections::BTreeSet;

use pensum_core::breaker::{BREAKERS_MAX, BreakerCommand, BreakerRecord, BreakerSettings};
use pensum_core::store::{Call, ClaimRequest, Rejected};
use pensum_core::task::ExecutionStatus;
use pensum_core::{Name, Time};
use rusqlite::{Connection, Row, params};

use super::error::Fault;
use super::names::Catalog;
use super::step::Run;
use super::view::View;
use super::writer::Writer;

/// The columns of a breaker, in the order of [`read`].
const COLUMNS: &str = "namespace, name, settings, memory, put_by, created_at, changed_at, version";

/// What is asked of a breaker.
pub(super) enum Ask {
    Put {
        settings: Box<BreakerSettings>,
        expected_version: Option<u64>,
    },
    Command(BreakerCommand),
    Delete,
}

struct Breaker {
    namespace: Name,
    record: BreakerRecord,
}

/// All of them.
#[derive(Default)]
pub(super) struct Breakers {
    all: Vec<Breaker>,
    /// Which of them cover the handler of a class; short of classes that came since.
    of_class: Vec<Box<[usize]>>,
    /// Those that have seen something that is not written.
    unwritten: BTreeSet<usize>,
}

fn read(row: &Row<'_>) -> Result<(Name, BreakerRecord), Fault> {
    let name: Name = row.get(1)?;
    let damaged = |error: serde_json::Error| Fault::Damaged(format!("breaker {name} cannot be read ({error})"));
    let record = BreakerRecord {
        settings: serde_json::from_str(row.get_ref(2)?.as_str().unwrap_or_default()).map_err(damaged)?,
        memory: serde_json::from_str(row.get_ref(3)?.as_str().unwrap_or_default()).map_err(damaged)?,
        probing: 0,
        put_by: row.get(4)?,
        created_at: Time::from_micros(row.get(5)?),
        changed_at: Time::from_micros(row.get(6)?),
        version: row.get::<_, i64>(7)? as u64,
        name,
    };
    Ok((row.get(0)?, record))
}

/// All breakers of a file, by namespace and name.
pub(super) fn stored(db: &Connection) -> Result<Vec<(Name, BreakerRecord)>, Fault> {
    let mut statement = db.prepare_cached(&format!("SELECT {COLUMNS} FROM breaker ORDER BY namespace, name"))?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}

/// Writes a breaker's row.
pub(super) fn write(db: &Connection, namespace: &str, breaker: &BreakerRecord) -> Result<(), Fault> {
    let damaged = |error| Fault::Damaged(format!("breaker {} is no JSON ({error})", breaker.name));
    db.prepare_cached(&format!(
        "REPLACE INTO breaker({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
    ))?
    .execute(params![
        namespace,
        breaker.name,
        serde_json::to_string(&breaker.settings).map_err(damaged)?,
        serde_json::to_string(&breaker.memory).map_err(damaged)?,
        breaker.put_by,
        breaker.created_at.as_micros(),
        breaker.changed_at.as_micros(),
        breaker.version as i64,
    ])?;
    Ok(())
}

impl Breakers {
    /// Follows the disk.
    pub(super) fn load(&mut self, db: &Connection) -> Result<(), Fault> {
        let all = stored(db)?;
        self.all = all
            .into_iter()
            .map(|(namespace, record)| Breaker { namespace, record })
            .collect();
        self.of_class.clear();
        self.unwritten.clear();
        Ok(())
    }

    fn position(&self, namespace: &str, name: &str) -> Option<usize> {
        let is = |breaker: &Breaker| *breaker.record.name == *name && *breaker.namespace == *namespace;
        self.all.iter().position(is)
    }

    /// Finds out which of them cover classes that came since.
    fn follow(&mut self, catalog: &Catalog) {
        while let Some(class) = catalog.class(self.of_class.len() as u32) {
            let covers = |breaker: &Breaker| {
                breaker.namespace == class.namespace && breaker.record.settings.handlers.contains(&class.handler)
            };
            let covering = self.all.iter().enumerate().filter(|(_, breaker)| covers(breaker));
            self.of_class.push(covering.map(|(place, _)| place).collect());
        }
    }

    /// How many runs that a breaker covers have started since it is half-open, and go on.
    fn probing(&self, breaker: &Breaker, catalog: &Catalog, view: &View) -> u64 {
        let Some(since) = breaker.record.half_open_at() else {
            return 0;
        };
        let leases = view.leases.values();
        let since = leases.filter(|leased| !leased.closing && leased.taken_at >= since);
        let covers = |executor: &str, class: u32| {
            catalog.class(class).is_some_and(|class| {
                class.namespace == breaker.namespace && breaker.record.settings.covers(&class.handler, executor)
            })
        };
        since
            .filter(|leased| covers(&leased.executor, leased.live.class))
            .count() as u64
    }

    /// Writes what has been seen within the open transaction.
    pub(super) fn flush(&self, db: &Connection) -> Result<(), Fault> {
        for place in &self.unwritten {
            let breaker = &self.all[*place];
            write(db, &breaker.namespace, &breaker.record)?;
        }
        Ok(())
    }

    /// The transaction is on disk.
    pub(super) fn committed(&mut self) {
        self.unwritten.clear();
    }
}

/// How many runs the breakers let start, at one moment of one claim.
#[derive(Default)]
pub(super) struct Trials {
    /// By breaker: how many may start; `None` for no bound. Empty when all of them are closed.
    left: Vec<Option<u64>>,
    /// By class: those that cover it with this claimer.
    of_class: Vec<Box<[usize]>>,
}

impl Trials {
    fn of(&self, class: u32) -> &[usize] {
        self.of_class.get(class as usize).map(AsRef::as_ref).unwrap_or_default()
    }

    /// True when a task of the class may start.
    pub(super) fn allow(&self, class: u32) -> bool {
        self.of(class).iter().all(|breaker| self.left[*breaker] != Some(0))
    }

    /// A task of the class starts.
    pub(super) fn take(&mut self, class: u32) {
        let of_class = std::mem::take(&mut self.of_class);
        for breaker in of_class.get(class as usize).into_iter().flatten() {
            if let Some(left) = &mut self.left[*breaker] {
                *left = left.saturating_sub(1);
            }
        }
        self.of_class = of_class;
    }
}

impl Writer {
    /// What the breakers let a claimer start.
    pub(super) fn trials(&mut self, request: &ClaimRequest, now: Time) -> Trials {
        let breakers = &mut self.breakers;
        if breakers
            .all
            .iter()
            .all(|breaker| breaker.record.memory.opened_at.is_none())
        {
            return Trials::default();
        }
        breakers.follow(&self.shared.catalog);
        let view = self.shared.view.lock();
        let left = |breaker: &Breaker| {
            let probing = breakers.probing(breaker, &self.shared.catalog, &view);
            breaker.record.room(probing, now).unwrap_or(Some(0))
        };
        let left = breakers.all.iter().map(left).collect();
        let covers = |breaker: &Breaker| breaker.record.settings.covers_agent(&request.executor);
        let of_claimer: Vec<usize> = (0..breakers.all.len())
            .filter(|place| covers(&breakers.all[*place]))
            .collect();
        let mut of_class = breakers.of_class.clone();
        for (class, of_class) in of_class.iter_mut().enumerate().filter(|_| !of_claimer.is_empty()) {
            let namespace = self
                .shared
                .catalog
                .class(class as u32)
                .map(|class| class.namespace.clone());
            let mut all = of_class.to_vec();
            let here = |place: &&usize| Some(&breakers.all[**place].namespace) == namespace.as_ref();
            all.extend(of_claimer.iter().filter(here));
            all.sort_unstable();
            all.dedup();
            *of_class = all.into();
        }
        Trials { left, of_class }
    }

    /// Tells the breakers of the end of an attempt.
    pub(super) fn note_end(&mut self, class: u32, run: &Run, status: ExecutionStatus, now: Time) {
        let succeeded = match status {
            ExecutionStatus::Completed => true,
            ExecutionStatus::Failed => false,
            // A death, or a person, says nothing of what it does.
            _ => return,
        };
        if self.breakers.all.is_empty() {
            return;
        }
        let Some(class) = self.shared.catalog.class(class) else {
            return;
        };
        for (place, breaker) in self.breakers.all.iter_mut().enumerate() {
            if breaker.namespace == class.namespace && breaker.record.settings.covers(&class.handler, &run.executor) {
                breaker.record.note(succeeded, run.taken_at, now);
                self.breakers.unwritten.insert(place);
            }
        }
    }

    /// When the first of the breakers lets somebody try that hold ready tasks up.
    pub(super) fn tries_at(&mut self) -> Option<Time> {
        if self.breakers.all.is_empty() {
            return None;
        }
        self.breakers.follow(&self.shared.catalog);
        let now = self.memory.clock;
        let opens = |breaker: &Breaker| breaker.record.half_open_at().filter(|at| *at > now);
        let busy = self.memory.order.busy();
        let of_class = busy.filter_map(|class| self.breakers.of_class.get(class as usize));
        let handlers = of_class.flatten().filter_map(|place| opens(&self.breakers.all[*place]));
        let agents = self
            .breakers
            .all
            .iter()
            .filter(|breaker| !breaker.record.settings.agents.is_empty());
        handlers.chain(agents.filter_map(opens)).min()
    }

    /// Carries out what was asked of a breaker; answers what it is then.
    pub(super) fn ask_breaker(
        &mut self,
        call: &Call,
        breaker: Name,
        ask: Ask,
    ) -> Result<Result<Option<BreakerRecord>, Rejected>, Fault> {
        let place = self.breakers.position(&call.namespace, &breaker);
        let known = place.map(|place| self.breakers.all[place].record.clone());
        let record = match (known, ask) {
            (
                Some(mut record),
                Ask::Put {
                    settings,
                    expected_version,
                },
            ) => {
                if let Err(rejected) = record.check(expected_version) {
                    return Ok(Err(rejected));
                }
                record.put(*settings, &call.actor, call.now);
                record
            }
            (
                None,
                Ask::Put {
                    expected_version: Some(1..),
                    ..
                },
            ) => {
                return Ok(Err(Rejected::NoBreaker(breaker)));
            }
            (None, Ask::Put { .. }) if self.breakers.all.len() >= BREAKERS_MAX => {
                return Ok(Err(Rejected::TooManyBreakers));
            }
            (None, Ask::Put { settings, .. }) => {
                BreakerRecord::new(breaker.clone(), *settings, call.actor.clone(), call.now)
            }
            (Some(mut record), Ask::Command(command)) => {
                record.command(command, call.now);
                record
            }
            (Some(_), Ask::Delete) => {
                self.breakers.flush(&self.db)?;
                self.db
                    .prepare_cached("DELETE FROM breaker WHERE namespace = ? AND name = ?")?
                    .execute((&call.namespace, &breaker))?;
                self.breakers.load(&self.db)?;
                return Ok(Ok(None));
            }
            (None, Ask::Command(_) | Ask::Delete) => return Ok(Err(Rejected::NoBreaker(breaker))),
        };
        self.breakers.flush(&self.db)?;
        write(&self.db, &call.namespace, &record)?;
        self.breakers.load(&self.db)?;
        let records = self.list_breakers(&call.namespace);
        Ok(Ok(records.into_iter().find(|found| found.name == breaker)))
    }

    /// The breakers of a namespace, by name.
    pub(super) fn list_breakers(&self, namespace: &str) -> Vec<BreakerRecord> {
        let view = self.shared.view.lock();
        let here = self
            .breakers
            .all
            .iter()
            .filter(|breaker| *breaker.namespace == *namespace);
        here.map(|breaker| BreakerRecord {
            probing: self.breakers.probing(breaker, &self.shared.catalog, &view),
            ..breaker.record.clone()
        })
        .collect()
    }
}
