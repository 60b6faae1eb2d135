//! Identities: tasks, leases, nodes, executions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

use crate::Time;

/// A task's identity: a UUIDv7 (RFC 9562, section 5.7) whose random bits also carry the store's row number.
///
/// Layout, from the most significant bit: 48 bits of Unix milliseconds, 4 bits version, 12 random bits, 2 bits variant,
/// 22 random bits, 40 bits row number. A store therefore finds a task by its primary key without an index on the
/// 16-byte id (an index of its own costs each enqueue some 0.7 µs and 30 bytes), and compares the whole id
/// afterwards, so that a guessed or foreign id finds nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(Uuid);

/// The largest row number that a [`TaskId`] can carry: some 10¹² tasks in the life of one store.
pub const ROW_MAX: i64 = (1 << 40) - 1;

impl TaskId {
    /// Makes the id of the task in `row`, created at `now`, from 64 random bits.
    pub fn mint(now: Time, row: i64, random: u64) -> TaskId {
        debug_assert!((0..=ROW_MAX).contains(&row));
        let millis = u128::from(now.as_millis() & 0xFFFF_FFFF_FFFF);
        let high = u128::from(random & 0xFFF);
        let low = u128::from((random >> 12) & 0x3F_FFFF);
        let bits = (millis << 80) | (0x7 << 76) | (high << 64) | (0b10 << 62) | (low << 40) | (row as u128);
        TaskId(Uuid::from_u128(bits))
    }

    /// The row number that this id carries. It is a claim, not a proof: compare the stored id.
    pub fn row(self) -> i64 {
        (self.0.as_u128() & ROW_MAX as u128) as i64
    }

    /// The id as a UUID.
    pub const fn uuid(self) -> Uuid {
        self.0
    }

    /// The 16 bytes of the id, for storage.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// From storage.
    pub const fn from_bytes(bytes: [u8; 16]) -> TaskId {
        TaskId(Uuid::from_bytes(bytes))
    }

    /// From a UUID, whatever its version: an unknown one finds nothing.
    pub const fn from_uuid(uuid: Uuid) -> TaskId {
        TaskId(uuid)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TaskId {
    type Err = String;

    fn from_str(text: &str) -> Result<TaskId, String> {
        Uuid::try_parse(text).map(TaskId).map_err(|_| {
            format!(
                "`{}` is not a task id: an id is a UUID such as 0198c1f0-7f3c-7abc-8def-0123456789ab",
                clip(text)
            )
        })
    }
}

impl Serialize for TaskId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.hyphenated().encode_lower(&mut Uuid::encode_buffer()))
    }
}

impl<'de> Deserialize<'de> for TaskId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TaskId, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// Shortens text that comes from outside before it is repeated in a message.
pub fn clip(text: &str) -> String {
    const CLIP_MAX: usize = 80;
    match text.char_indices().nth(CLIP_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// The fence of one claim: 128 fresh random bits, so that no earlier owner of the task can hold the same one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u128);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One incarnation of a node: fresh random bits at every boot, so that a restart under the same name is another node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node-{:016x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The identity of one attempt of one task, written `TASK.ATTEMPT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecutionId {
    /// The task.
    pub task: TaskId,
    /// Which attempt, from 1.
    pub attempt: u32,
}

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.task, self.attempt)
    }
}

impl FromStr for ExecutionId {
    type Err = String;

    fn from_str(text: &str) -> Result<ExecutionId, String> {
        let wrong = || {
            format!(
                "`{}` is not an execution id: it is a task id, a dot and the attempt's number",
                clip(text)
            )
        };
        let (task, attempt) = text.split_once('.').ok_or_else(wrong)?;
        Ok(ExecutionId {
            task: task.parse().map_err(|_| wrong())?,
            attempt: attempt.parse().map_err(|_| wrong())?,
        })
    }
}

impl Serialize for ExecutionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_id_is_a_version_7_uuid_that_carries_its_row() {
        let now = Time::parse("2026-11-21T08:00:00Z").unwrap();
        for row in [0, 1, 77, ROW_MAX] {
            let id = TaskId::mint(now, row, u64::MAX);
            assert_eq!(id.row(), row);
            assert_eq!(id.uuid().get_version_num(), 7);
            assert_eq!(id.uuid().get_variant(), uuid::Variant::RFC4122);
            assert_eq!(id.to_string().parse::<TaskId>().unwrap(), id);
        }
    }

    #[test]
    fn ids_sort_by_creation_time() {
        let early = TaskId::mint(Time::from_micros(1_000_000), 9, u64::MAX);
        let late = TaskId::mint(Time::from_micros(2_000_000), 1, 0);
        assert!(early < late);
    }

    #[test]
    fn a_wrong_id_is_named_in_its_message_and_clipped() {
        let message = "x".repeat(500).parse::<TaskId>().unwrap_err();
        assert!(message.len() < 300 && message.contains("not a task id"));
    }

    #[test]
    fn an_execution_id_is_the_task_and_the_attempt() {
        let id = ExecutionId {
            task: TaskId::mint(Time::EPOCH, 3, 1),
            attempt: 2,
        };
        assert_eq!(id.to_string().parse::<ExecutionId>().unwrap(), id);
        assert!("nonsense".parse::<ExecutionId>().is_err());
    }
}
