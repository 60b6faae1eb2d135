//! Interned texts: classes (what decides who can claim a task) and names (of actors and executors).
//!
//! Rows of both tables are only ever added, each in a transaction of its own before it is used, so what a node has once
//! read stays true.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;
use parking_lot::RwLock;
use pensum_core::Name;
use pensum_core::agent::Demand;
use tokio_postgres::types::Type;

use super::error::Fault;
use super::pool::{Durability, Pool, text};

/// Tasks that the same claimers can take: one lane of the ready order.
#[derive(Debug, PartialEq)]
pub(super) struct Class {
    pub(super) id: u32,
    pub(super) namespace: Name,
    pub(super) queue: Name,
    pub(super) handler: Name,
    pub(super) demand: Demand,
}

type ClassKey = (Name, Name, Name, String);

/// An agent by its namespace and its name.
pub(super) type AgentPlace = (Name, Name);

#[derive(Default)]
struct Known {
    classes: HashMap<u32, Arc<Class>, RandomState>,
    by_key: HashMap<ClassKey, u32, RandomState>,
    names: HashMap<u32, Name, RandomState>,
    by_name: HashMap<Name, u32, RandomState>,
    preferred: Arc<HashSet<AgentPlace>>,
}

/// What this process knows of both tables.
#[derive(Default)]
pub(super) struct Catalog {
    known: RwLock<Known>,
}

impl Catalog {
    /// How many classes are known. As none ever goes, a store that has more has one that is not known.
    pub(super) fn classes_known(&self) -> usize {
        self.known.read().classes.len()
    }

    /// All known classes.
    pub(super) fn classes(&self) -> Vec<Arc<Class>> {
        self.known.read().classes.values().cloned().collect()
    }

    /// The agents that tasks of known classes prefer.
    pub(super) fn preferred(&self) -> Arc<HashSet<AgentPlace>> {
        Arc::clone(&self.known.read().preferred)
    }

    /// Reads the classes that were added since.
    pub(super) async fn refresh(&self, pool: &Arc<Pool>) -> Result<(), Fault> {
        // Numbers are given before their rows are committed: one that was missed may appear below those already seen.
        let rows = pool
            .read("SELECT id, namespace, queue, handler, requires FROM pensum.class", &[])
            .await?;
        let mut known = self.known.write();
        for row in rows {
            let id: i32 = row.try_get(0)?;
            let requires: String = row.try_get(4)?;
            let demand = Demand::from_text(&requires)
                .map_err(|error| Fault::Damaged(format!("the requirements of class {id} cannot be read ({error})")))?;
            let class = Class {
                id: id as u32,
                namespace: row.try_get::<_, String>(1)?.into(),
                queue: row.try_get::<_, String>(2)?.into(),
                handler: row.try_get::<_, String>(3)?.into(),
                demand,
            };
            let key = (
                class.namespace.clone(),
                class.queue.clone(),
                class.handler.clone(),
                requires,
            );
            known.by_key.insert(key, class.id);
            known.classes.insert(class.id, Arc::new(class));
        }
        let prefers = |class: &Arc<Class>| Some((class.namespace.clone(), class.demand.agent.clone()?));
        let preferred: HashSet<AgentPlace> = known.classes.values().filter_map(prefers).collect();
        if preferred.len() != known.preferred.len() {
            known.preferred = Arc::new(preferred);
        }
        Ok(())
    }

    /// The class of a number.
    pub(super) async fn class(&self, pool: &Arc<Pool>, id: u32) -> Result<Arc<Class>, Fault> {
        if let Some(class) = self.known.read().classes.get(&id) {
            return Ok(Arc::clone(class));
        }
        self.refresh(pool).await?;
        let known = self.known.read();
        known
            .classes
            .get(&id)
            .cloned()
            .ok_or_else(|| Fault::Damaged(format!("there is no class {id}")))
    }

    /// The class of a number that was looked up before.
    pub(super) fn known_class(&self, id: u32) -> Option<Arc<Class>> {
        self.known.read().classes.get(&id).cloned()
    }

    /// The number of a class, new or not.
    pub(super) async fn class_id(
        &self,
        pool: &Arc<Pool>,
        (namespace, queue, handler, demand): (&Name, &Name, &Name, &Demand),
    ) -> Result<u32, Fault> {
        let key = (namespace.clone(), queue.clone(), handler.clone(), demand.to_text());
        if let Some(id) = self.known.read().by_key.get(&key) {
            return Ok(*id);
        }
        let params = [
            (&**namespace as &str),
            (&**queue as &str),
            (&**handler as &str),
            key.3.as_str(),
        ];
        let mut tx = pool.begin(Durability::Acknowledged).await?;
        tx.query(
            "INSERT INTO pensum.class(namespace, queue, handler, requires) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
            &[
                (&params[0], Type::TEXT),
                (&params[1], Type::TEXT),
                (&params[2], Type::TEXT),
                (&params[3], Type::TEXT),
            ],
        )
        .await?;
        tx.commit(&[]).await?;
        self.refresh(pool).await?;
        let known = self.known.read();
        known
            .by_key
            .get(&key)
            .copied()
            .ok_or_else(|| Fault::Damaged(format!("the class of {handler} was lost")))
    }

    /// The number of a name, new or not.
    pub(super) async fn name_id(&self, pool: &Arc<Pool>, name: &Name) -> Result<u32, Fault> {
        if let Some(id) = self.known.read().by_name.get(name) {
            return Ok(*id);
        }
        let clean = text(name);
        let mut tx = pool.begin(Durability::Acknowledged).await?;
        tx.query(
            "INSERT INTO pensum.name(text) VALUES ($1) ON CONFLICT DO NOTHING",
            &[(&clean, Type::TEXT)],
        )
        .await?;
        let rows = tx
            .query("SELECT id FROM pensum.name WHERE text = $1", &[(&clean, Type::TEXT)])
            .await?;
        tx.commit(&[]).await?;
        let row = rows
            .first()
            .ok_or_else(|| Fault::Damaged(format!("the name {name} was lost")))?;
        let id = row.try_get::<_, i32>(0)? as u32;
        let mut known = self.known.write();
        known.by_name.insert(name.clone(), id);
        known.names.insert(id, name.clone());
        Ok(id)
    }

    /// The name of a number.
    pub(super) async fn name(&self, pool: &Arc<Pool>, id: u32) -> Result<Name, Fault> {
        if let Some(name) = self.known.read().names.get(&id) {
            return Ok(name.clone());
        }
        let rows = pool
            .read(
                "SELECT text FROM pensum.name WHERE id = $1",
                &[(&(id as i32), Type::INT4)],
            )
            .await?;
        let row = rows
            .first()
            .ok_or_else(|| Fault::Damaged(format!("there is no name {id}")))?;
        let name: Name = row.try_get::<_, String>(0)?.into();
        self.known.write().names.insert(id, name.clone());
        Ok(name)
    }
}
