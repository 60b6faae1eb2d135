//! Queues with settings of their own: kept in memory beside the ready order, for every claim asks them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use pensum_core::order::OrderRule;
use pensum_core::queue::{Bucket, QUEUES_MAX, QueueCommand, QueueRecord, QueueSettings, Room};
use pensum_core::store::{Call, Rejected};
use pensum_core::{Name, Time};
use rusqlite::{Connection, Row, params};

use super::error::Fault;
use super::names::Catalog;
use super::view::{Tally, View};
use super::writer::Writer;

/// The columns of a queue, in the order of [`read`].
const COLUMNS: &str =
    "namespace, name, settings, paused_at, process_to, bucket, put_by, created_at, changed_at, version";

/// What is asked of a queue.
pub(super) enum Ask {
    Put {
        settings: Box<QueueSettings>,
        expected_version: Option<u64>,
    },
    Command(QueueCommand),
    Delete,
}

/// A queue with settings, and what its row says of the bucket.
struct Gate {
    namespace: Name,
    record: QueueRecord,
    written: Bucket,
}

/// All of them.
#[derive(Default)]
pub(super) struct Queues {
    gates: Vec<Gate>,
    /// Which gate the tasks of a class pass; empty until somebody asks, and short of classes that came since.
    gate_of: Arc<[Option<u32>]>,
    /// How many units the tasks of these classes have, where that is not one.
    units_of: Arc<HashMap<u32, u32>>,
}

/// How much of each class may start, at one moment of one claim.
#[derive(Default)]
pub(super) struct Rooms {
    gate_of: Arc<[Option<u32>]>,
    units_of: Arc<HashMap<u32, u32>>,
    /// By gate; `None` where nothing may start.
    rooms: Vec<Option<Room>>,
}

fn units(units_of: &HashMap<u32, u32>, class: u32) -> u32 {
    match units_of.is_empty() {
        true => 1,
        false => units_of.get(&class).copied().unwrap_or(1),
    }
}

impl Rooms {
    /// Up to which row tasks of the class may start; `None` when none may.
    pub(super) fn reach(&self, class: u32) -> Option<i64> {
        match self.gate_of.get(class as usize).copied().flatten() {
            None => Some(i64::MAX),
            Some(gate) => self.rooms[gate as usize]
                .filter(|room| room.starts > 0)
                .map(|room| room.newest),
        }
    }

    fn room(&mut self, class: u32) -> Option<&mut Option<Room>> {
        let gate = self.gate_of.get(class as usize).copied().flatten()?;
        self.rooms.get_mut(gate as usize)
    }

    /// True when the best task of the class may start, which is the next one of its queue. Where its units are not there
    /// yet, nothing else of that queue starts either.
    pub(super) fn admit(&mut self, class: u32) -> bool {
        let units = units(&self.units_of, class);
        let Some(room) = self.room(class) else { return true };
        let admits = room.is_some_and(|room| room.admits(units));
        if !admits {
            *room = None;
        }
        admits
    }

    /// A task of the class starts.
    pub(super) fn take(&mut self, class: u32) {
        let units = units(&self.units_of, class);
        if let Some(Some(room)) = self.room(class) {
            room.take(units);
        }
    }
}

fn read(row: &Row<'_>) -> Result<(Name, QueueRecord), Fault> {
    let name: Name = row.get(1)?;
    let settings = serde_json::from_str(row.get_ref(2)?.as_str().unwrap_or_default())
        .map_err(|error| Fault::Damaged(format!("the settings of queue {name} cannot be read ({error})")))?;
    let time = |column: usize| row.get::<_, Option<i64>>(column).map(|at| at.map(Time::from_micros));
    let record = QueueRecord {
        name,
        settings,
        paused_at: time(3)?,
        process_to: row.get(4)?,
        bucket: Bucket(row.get(5)?),
        running: 0,
        put_by: row.get(6)?,
        created_at: Time::from_micros(row.get(7)?),
        changed_at: Time::from_micros(row.get(8)?),
        version: row.get::<_, i64>(9)? as u64,
    };
    Ok((row.get(0)?, record))
}

/// All queues of a file, by namespace and name.
pub(super) fn stored(db: &Connection) -> Result<Vec<(Name, QueueRecord)>, Fault> {
    let mut statement = db.prepare_cached(&format!("SELECT {COLUMNS} FROM queue ORDER BY namespace, name"))?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}

/// Writes a queue's row.
pub(super) fn write(db: &Connection, namespace: &str, queue: &QueueRecord) -> Result<(), Fault> {
    let settings = serde_json::to_string(&queue.settings)
        .map_err(|error| Fault::Damaged(format!("the settings of queue {} are no JSON ({error})", queue.name)))?;
    db.prepare_cached(&format!(
        "REPLACE INTO queue({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    ))?
    .execute(params![
        namespace,
        queue.name,
        settings,
        queue.paused_at.map(Time::as_micros),
        queue.process_to,
        queue.bucket.0,
        queue.put_by,
        queue.created_at.as_micros(),
        queue.changed_at.as_micros(),
        queue.version as i64,
    ])?;
    Ok(())
}

impl Queues {
    /// Follows the disk. A bucket that has given more than its row says stays as empty as it is.
    pub(super) fn load(&mut self, db: &Connection) -> Result<(), Fault> {
        let mut gates = Vec::new();
        for (namespace, mut record) in stored(db)? {
            let written = record.bucket;
            let known = self
                .gates
                .iter()
                .find(|gate| gate.namespace == namespace && gate.record.name == record.name);
            if let Some(known) = known.filter(|known| known.record.settings.rate == record.settings.rate) {
                record.bucket = Bucket(record.bucket.0.max(known.record.bucket.0));
            }
            gates.push(Gate {
                namespace,
                record,
                written,
            });
        }
        self.gates = gates;
        self.gate_of = Arc::default();
        self.units_of = Arc::default();
        Ok(())
    }

    pub(super) const fn len(&self) -> usize {
        self.gates.len()
    }

    pub(super) fn record(&self, gate: usize) -> &QueueRecord {
        &self.gates[gate].record
    }

    /// The namespace and the name of a queue.
    pub(super) fn place(&self, gate: usize) -> (&Name, &Name) {
        let gate = &self.gates[gate];
        (&gate.namespace, &gate.record.name)
    }

    /// True when one of them judges every submission.
    pub(super) fn limits_intake(&self) -> bool {
        self.gates.iter().any(|gate| gate.record.settings.limits_intake())
    }

    /// Those that have to know since when what is ready is so.
    pub(super) fn aged(&self) -> BTreeSet<(Name, Name)> {
        let aged = |gate: &&Gate| {
            let settings = &gate.record.settings;
            settings.max_age.is_some() || settings.drops_beyond().is_some()
        };
        let places = self.gates.iter().filter(aged);
        places
            .map(|gate| (gate.namespace.clone(), gate.record.name.clone()))
            .collect()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.gates.is_empty()
    }

    pub(super) fn position(&self, namespace: &str, name: &str) -> Option<usize> {
        let is = |gate: &Gate| *gate.record.name == *name && *gate.namespace == *namespace;
        self.gates.iter().position(is)
    }

    /// Finds the gates of classes that came since.
    fn follow(&mut self, catalog: &Catalog) {
        let mut next = self.gate_of.len() as u32;
        if catalog.class(next).is_none() {
            return;
        }
        let mut gate_of = self.gate_of.to_vec();
        let mut units_of = HashMap::clone(&self.units_of);
        while let Some(class) = catalog.class(next) {
            if class.demand.units != 1 {
                units_of.insert(next, class.demand.units);
            }
            gate_of.push(self.position(&class.namespace, &class.queue).map(|gate| gate as u32));
            next += 1;
        }
        self.gate_of = gate_of.into();
        self.units_of = Arc::new(units_of);
    }

    /// How the tasks of each class stand in the claim order.
    pub(super) fn rules(&mut self, catalog: &Catalog) -> Vec<OrderRule> {
        self.follow(catalog);
        let rule = |gate: &Option<u32>| gate.map(|gate| self.gates[gate as usize].record.settings.order());
        self.gate_of.iter().map(|gate| rule(gate).unwrap_or_default()).collect()
    }

    /// When the queue of a class was changed last.
    pub(super) fn changed_at(&self, class: u32) -> Option<Time> {
        let gate = self.gate_of.get(class as usize).copied().flatten()?;
        Some(self.gates[gate as usize].record.changed_at)
    }

    /// How many leases each gate's tasks hold.
    fn leases(&self, view: &View) -> Vec<u64> {
        let mut leases = vec![0; self.gates.len()];
        for (gate, held) in self.gate_of.iter().zip(&view.held) {
            if let Some(gate) = gate {
                leases[*gate as usize] += held;
            }
        }
        leases
    }

    /// Writes the buckets that have given something since they were written.
    pub(super) fn flush(&self, db: &Connection) -> Result<(), Fault> {
        for gate in self.gates.iter().filter(|gate| gate.record.bucket != gate.written) {
            db.prepare_cached("UPDATE queue SET bucket = ? WHERE namespace = ? AND name = ?")?
                .execute((gate.record.bucket.0, &gate.namespace, &gate.record.name))?;
        }
        Ok(())
    }

    /// The transaction is on disk.
    pub(super) fn committed(&mut self) {
        for gate in &mut self.gates {
            gate.written = gate.record.bucket;
        }
    }
}

impl Writer {
    /// Follows the disk.
    pub(super) fn load_queues(&mut self) -> Result<(), Fault> {
        self.queues.load(&self.db)?;
        self.follow_order();
        Ok(())
    }

    /// How much of each class may start at `now`.
    pub(super) fn rooms(&mut self, now: Time) -> Rooms {
        if self.queues.is_empty() {
            return Rooms::default();
        }
        self.queues.follow(&self.shared.catalog);
        let leases = self.queues.leases(&self.shared.view.lock());
        let room = |(gate, running): (&Gate, u64)| gate.record.room(running, now).ok();
        Rooms {
            gate_of: Arc::clone(&self.queues.gate_of),
            units_of: Arc::clone(&self.queues.units_of),
            rooms: self.queues.gates.iter().zip(leases).map(room).collect(),
        }
    }

    /// True when a claim could find something now.
    pub(super) fn has_work(&mut self) -> bool {
        if self.queues.is_empty() || !self.memory.order.has_work() {
            return self.memory.order.has_work();
        }
        let rooms = self.rooms(self.memory.clock);
        self.memory.order.has_work_in(&|class| rooms.reach(class))
    }

    /// When the first of the queues opens by itself that is closed by its rate, for a task of some class that is ready.
    pub(super) fn opens_at(&mut self) -> Option<Time> {
        use pensum_core::queue::Closed;
        if self.queues.is_empty() {
            return None;
        }
        self.queues.follow(&self.shared.catalog);
        let leases = self.queues.leases(&self.shared.view.lock());
        let busy = self.memory.order.busy();
        let gates = busy.filter_map(|class| Some((class, self.queues.gate_of.get(class as usize).copied().flatten()?)));
        let opening = gates.filter_map(|(class, gate)| {
            let record = &self.queues.gates[gate as usize].record;
            let units = units(&self.queues.units_of, class);
            match record.room(leases[gate as usize], self.memory.clock) {
                Ok(room) if room.admits(units) => None,
                Ok(_) | Err(Closed::Rate { .. }) => Some(record.opens_at(units, self.memory.clock)),
                Err(_) => None,
            }
        });
        opening.min()
    }

    /// A task of the class starts.
    pub(super) fn queue_started(&mut self, class: u32, now: Time) {
        if let Some(gate) = self.queues.gate_of.get(class as usize).copied().flatten() {
            let units = u64::from(units(&self.queues.units_of, class));
            self.queues.gates[gate as usize].record.started(units, now);
        }
    }

    /// Carries out what was asked of a queue; answers what it is then.
    pub(super) fn ask_queue(
        &mut self,
        call: &Call,
        queue: Name,
        ask: Ask,
    ) -> Result<Result<Option<QueueRecord>, Rejected>, Fault> {
        let place = self.queues.position(&call.namespace, &queue);
        if place.is_none() && self.queues.gates.len() >= QUEUES_MAX && !matches!(ask, Ask::Delete) {
            return Ok(Err(Rejected::TooManyQueues));
        }
        let known = place.map(|place| self.queues.gates[place].record.clone());
        let is_known = known.is_some();
        let mut record = known.unwrap_or_else(|| QueueRecord::new(queue.clone(), call.now));
        let changed = match ask {
            Ask::Put {
                settings,
                expected_version,
            } => record.put(*settings, expected_version, &call.actor, call.now),
            Ask::Command(command) => record.command(command, self.next_row - 1, call.now),
            Ask::Delete if !is_known => return Ok(Err(Rejected::NoQueue(queue))),
            Ask::Delete => {
                let unfinished = self.unfinished_of(&call.namespace, &queue);
                if unfinished > 0 {
                    return Ok(Err(Rejected::QueueHasTasks { queue, unfinished }));
                }
                self.db
                    .prepare_cached("DELETE FROM queue WHERE namespace = ? AND name = ?")?
                    .execute((&call.namespace, &queue))?;
                self.load_queues()?;
                self.look_at_ages()?;
                return Ok(Ok(None));
            }
        };
        if let Err(rejected) = changed {
            return Ok(Err(rejected));
        }
        write(&self.db, &call.namespace, &record)?;
        self.load_queues()?;
        self.look_at_ages()?;
        let records = self.list_queues(&call.namespace);
        Ok(Ok(records.into_iter().find(|found| found.name == queue)))
    }

    /// How many unfinished tasks a queue holds, the transaction under way included.
    fn unfinished_of(&self, namespace: &str, queue: &str) -> u64 {
        let view = self.shared.view.lock();
        let unfinished = |tallies: &[Tally], class: usize| {
            let tally = tallies.get(class).copied().unwrap_or_default();
            super::view::Cell::UNFINISHED
                .iter()
                .map(|cell| tally[*cell as usize])
                .sum::<i64>()
        };
        let classes = self.shared.catalog.classes();
        let here = classes
            .iter()
            .enumerate()
            .filter(|(_, class)| *class.namespace == *namespace && *class.queue == *queue);
        let found: i64 = here
            .map(|(class, _)| unfinished(&view.tallies, class) + unfinished(&self.group.tallies, class))
            .sum();
        u64::try_from(found).unwrap_or(0)
    }

    /// The queues of a namespace, by name.
    pub(super) fn list_queues(&mut self, namespace: &str) -> Vec<QueueRecord> {
        self.queues.follow(&self.shared.catalog);
        let leases = self.queues.leases(&self.shared.view.lock());
        let gates = self.queues.gates.iter().zip(leases);
        gates
            .filter(|(gate, _)| *gate.namespace == *namespace)
            .map(|(gate, running)| QueueRecord {
                running,
                ..gate.record.clone()
            })
            .collect()
    }
}
