//! Interned texts: classes (what decides who can claim a task) and names (of actors and executors).

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;
use parking_lot::RwLock;
use pensum_core::Name;
use pensum_core::agent::Demand;
use rusqlite::Connection;

use super::error::Fault;

/// Tasks that the same claimers can take: one lane of the ready order.
#[derive(Debug, PartialEq)]
pub(super) struct Class {
    pub(super) namespace: Name,
    pub(super) queue: Name,
    pub(super) handler: Name,
    pub(super) demand: Demand,
}

/// What both writer and readers look up by number.
#[derive(Default)]
pub(super) struct Catalog {
    classes: RwLock<Vec<Arc<Class>>>,
    names: RwLock<Vec<Name>>,
}

impl Catalog {
    pub(super) fn class(&self, id: u32) -> Option<Arc<Class>> {
        self.classes.read().get(id as usize).cloned()
    }

    pub(super) fn name(&self, id: u32) -> Option<Name> {
        self.names.read().get(id as usize).cloned()
    }

    /// All classes, by number.
    pub(super) fn classes(&self) -> Vec<Arc<Class>> {
        self.classes.read().clone()
    }

    /// The classes of a queue with how many units their tasks have.
    pub(super) fn classes_of(&self, namespace: &str, queue: &str) -> Vec<(u32, u32)> {
        let classes = self.classes.read();
        let all = classes.iter().enumerate();
        let here = all.filter(|(_, class)| *class.queue == *queue && *class.namespace == *namespace);
        here.map(|(number, class)| (number as u32, class.demand.units))
            .collect()
    }

    /// Reads both tables anew, so that what a rolled back transaction had added is gone.
    pub(super) fn load(&self, db: &Connection) -> Result<(), Fault> {
        let mut classes = Vec::new();
        let mut statement = db.prepare("SELECT namespace, queue, handler, requires FROM class ORDER BY id")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let demand = Demand::from_text(row.get_ref(3)?.as_str().unwrap_or("[]"))
                .map_err(|error| Fault::Damaged(format!("the requirements of a class cannot be read ({error})")))?;
            classes.push(Arc::new(Class {
                namespace: row.get(0)?,
                queue: row.get(1)?,
                handler: row.get(2)?,
                demand,
            }));
        }
        let mut statement = db.prepare("SELECT text FROM name ORDER BY id")?;
        let names = statement
            .query_map([], |row| row.get(0))?
            .collect::<Result<Vec<Name>, _>>()?;
        *self.classes.write() = classes;
        *self.names.write() = names;
        Ok(())
    }
}

/// The writer's way from text to number. New entries go into the open transaction.
#[derive(Default)]
pub(super) struct Interner {
    hasher: RandomState,
    by_hash: HashMap<u64, Vec<u32>, RandomState>,
    last: Option<(u32, Arc<Class>)>,
    names: HashMap<Name, u32, RandomState>,
}

impl Interner {
    /// Rebuilds the lookups from the catalog.
    pub(super) fn load(&mut self, catalog: &Catalog) {
        *self = Interner::default();
        for (id, class) in catalog.classes().iter().enumerate() {
            let hash = self.hash(&class.namespace, &class.queue, &class.handler, &class.demand);
            self.by_hash.entry(hash).or_default().push(id as u32);
        }
        for (id, name) in catalog.names.read().iter().enumerate() {
            self.names.insert(name.clone(), id as u32);
        }
    }

    fn hash(&self, namespace: &str, queue: &str, handler: &str, demand: &Demand) -> u64 {
        self.hasher.hash_one((namespace, queue, handler, demand))
    }

    /// The number of a class.
    pub(super) fn class(
        &mut self,
        db: &Connection,
        catalog: &Catalog,
        (namespace, queue, handler, demand): (&Name, &Name, &Name, Demand),
    ) -> Result<u32, Fault> {
        let is =
            |c: &Class| c.handler == *handler && c.queue == *queue && c.namespace == *namespace && c.demand == demand;
        // Batches mostly hold tasks of one class.
        if let Some((id, class)) = &self.last
            && is(class)
        {
            return Ok(*id);
        }
        let hash = self.hash(namespace, queue, handler, &demand);
        for id in self.by_hash.get(&hash).into_iter().flatten() {
            if let Some(class) = catalog.class(*id).filter(|c| is(c)) {
                self.last = Some((*id, class));
                return Ok(*id);
            }
        }
        let class = Arc::new(Class {
            namespace: namespace.clone(),
            queue: queue.clone(),
            handler: handler.clone(),
            demand,
        });
        let mut classes = catalog.classes.write();
        let id = classes.len() as u32;
        db.prepare_cached("INSERT INTO class(id, namespace, queue, handler, requires) VALUES (?, ?, ?, ?, ?)")?
            .execute((id, namespace, queue, handler, class.demand.to_text()))?;
        classes.push(class.clone());
        self.by_hash.entry(hash).or_default().push(id);
        self.last = Some((id, class));
        Ok(id)
    }

    /// The number of a name.
    pub(super) fn name(&mut self, db: &Connection, catalog: &Catalog, name: &Name) -> Result<u32, Fault> {
        if let Some(id) = self.names.get(name) {
            return Ok(*id);
        }
        let mut names = catalog.names.write();
        let id = names.len() as u32;
        db.prepare_cached("INSERT INTO name(id, text) VALUES (?, ?)")?
            .execute((id, name))?;
        names.push(name.clone());
        self.names.insert(name.clone(), id);
        Ok(id)
    }
}
