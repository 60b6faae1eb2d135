//! Reads of one task.

use std::time::Duration;

use pensum_core::task::Details;
use pensum_core::{Json, Name, Priority, Spec, TaskId, Time};
use tokio_postgres::Row;

use super::error::Fault;
use super::names::Catalog;
use super::row::{damaged, task_id};

/// The columns of `task`, in the order in which [`StoredTask::read`] takes them.
pub(super) const TASK: [(&str, &str); 18] = [
    ("row", "bigint"),
    ("id", "uuid"),
    ("class", "integer"),
    ("created_at", "bigint"),
    ("actor", "integer"),
    ("parameters", "text"),
    ("priority", "smallint"),
    ("deadline", "bigint"),
    ("timeout", "bigint"),
    ("max_retries", "bigint"),
    ("key", "text"),
    ("details", "text"),
    ("parent", "bigint"),
    ("workflow", "bigint"),
    ("created_by", "text"),
    ("assigned_to", "text"),
    ("unique_key", "text"),
    ("unique_ttl", "bigint"),
];

/// A task as it was enqueued.
#[derive(Clone, Debug)]
pub(super) struct StoredTask {
    pub(super) id: TaskId,
    pub(super) class: u32,
    pub(super) created_at: Time,
    /// The interned name of who enqueued it; `None` for the child of a task.
    pub(super) actor: Option<u32>,
    pub(super) spec: Spec,
    pub(super) unique_key: Option<Name>,
    /// How long the key is held, from enqueue; `None`: until the task ends.
    pub(super) unique_ttl: Option<Duration>,
}

impl StoredTask {
    /// From [`TASK`], beginning at `from`. The catalog must know the class by now.
    pub(super) fn read(found: &Row, from: usize, catalog: &Catalog) -> Result<StoredTask, Fault> {
        let at = |column: usize| from + column;
        let row: i64 = found.try_get(at(0))?;
        let class_id = found.try_get::<_, i32>(at(2))? as u32;
        let class = catalog.known_class(class_id).ok_or_else(|| damaged(row, "class"))?;
        let parameters = Json::parse(found.try_get(at(5))?).map_err(|_| damaged(row, "JSON text as parameters"))?;
        let priority = match found.try_get::<_, Option<i16>>(at(6))? {
            None => Priority::Normal,
            Some(level) => Priority::from_level(i64::from(level)).ok_or_else(|| damaged(row, "priority"))?,
        };
        let details = match found.try_get::<_, Option<&str>>(at(11))? {
            None => None,
            Some(text) => {
                let details: Details = serde_json::from_str(text).map_err(|_| damaged(row, "JSON text as details"))?;
                Some(Box::new(details))
            }
        };
        let duration = |column: usize| -> Result<Option<Duration>, Fault> {
            let micros: Option<i64> = found.try_get(column)?;
            Ok(micros.map(|m| Duration::from_micros(m.max(0) as u64)))
        };
        Ok(StoredTask {
            id: task_id(found, at(1))?,
            class: class_id,
            created_at: Time::from_micros(found.try_get(at(3))?),
            actor: found.try_get::<_, Option<i32>>(at(4))?.map(|n| n as u32),
            spec: Spec {
                handler: class.handler.clone(),
                queue: class.queue.clone(),
                priority,
                parameters,
                timeout: duration(at(8))?,
                max_retries: found
                    .try_get::<_, Option<i64>>(at(9))?
                    .map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
                key: found.try_get::<_, Option<&str>>(at(10))?.map(Name::from),
                deadline: found.try_get::<_, Option<i64>>(at(7))?.map(Time::from_micros),
                details,
            },
            unique_key: found.try_get::<_, Option<&str>>(at(16))?.map(Name::from),
            unique_ttl: duration(at(17))?,
        })
    }
}
