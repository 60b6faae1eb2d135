//! What is in flight, as one row: claims write nothing else.
//!
//! After an unclean end the manifest says which tasks ran, since when and where, so that their attempts count and a
//! task that brings its node down is found.

use std::time::Duration;

use pensum_core::store::Applied;
use pensum_core::task::Lease;
use pensum_core::transition::{Blame, Event};
use pensum_core::{ErrorInfo, LeaseId, Lifecycle, Name, NodeId, State, Time};
use rusqlite::{Connection, OptionalExtension};

use super::claim::PROBATION;
use super::error::Fault;
use super::row::{LiveRow, mark};
use super::step::{Facts, Origin, Run, Subject};
use super::view::Cell;
use super::writer::Writer;

/// The time of the last commit is written this often, to tell later how long a run had lasted when its node died.
const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// One task in flight.
#[derive(Clone, Debug, PartialEq)]
struct InFlight {
    row: i64,
    attempt: u32,
    started_at: Time,
    taken_at: Time,
    alone: bool,
    checkpointed: bool,
    executor: Name,
}

/// What has to be put right before the first verb after an unclean end.
pub(super) struct Recovery {
    in_flight: Vec<InFlight>,
    /// Rows that say that they run, or should stop.
    orphans: Vec<i64>,
    unclean: bool,
}

impl Recovery {
    pub(super) fn read(db: &Connection, orphans: Vec<i64>, unclean: bool) -> Result<Option<Recovery>, Fault> {
        let entries: Option<Vec<u8>> = db
            .query_row("SELECT entries FROM manifest", [], |row| row.get(0))
            .optional()?;
        let in_flight = match entries {
            None => Vec::new(),
            Some(bytes) => decode(&bytes).ok_or_else(|| Fault::Damaged("its manifest cannot be read".to_owned()))?,
        };
        let empty = in_flight.is_empty() && orphans.is_empty();
        Ok((!empty).then_some(Recovery {
            in_flight,
            orphans,
            unclean,
        }))
    }
}

impl Writer {
    /// Gives back what was in flight when the process before this one ended.
    pub(super) fn recover(&mut self, recovery: &Recovery, now: Time) -> Result<(), Fault> {
        let alive = self.alive;
        let mut orphans: std::collections::HashSet<i64> = recovery.orphans.iter().copied().collect();
        for entry in &recovery.in_flight {
            let blame = if !recovery.unclean || entry.checkpointed || alive.since(entry.taken_at) >= PROBATION {
                Blame::None
            } else if entry.alone {
                Blame::Alone
            } else {
                Blame::Suspect
            };
            let orphan = orphans.remove(&entry.row);
            self.give_back(entry, blame, orphan, now)?;
        }
        for row in orphans {
            let Some(live) = LiveRow::load(&self.db, row)? else {
                continue;
            };
            let started_at = live.life.started_at.unwrap_or(now);
            let (attempt, executor) = (live.life.attempt, Name::from(""));
            let entry = InFlight {
                row,
                attempt,
                started_at,
                taken_at: started_at,
                alone: false,
                checkpointed: true,
                executor,
            };
            self.give_back(&entry, Blame::None, true, now)?;
        }
        self.manifest_changed = true;
        Ok(())
    }

    fn give_back(&mut self, entry: &InFlight, blame: Blame, orphan: bool, now: Time) -> Result<(), Fault> {
        // A manifest may be older than the end of a task in it.
        let Some(mut live) = LiveRow::load(&self.db, entry.row)? else {
            return Ok(());
        };
        if !orphan {
            let cell = {
                let mut view = self.shared.view.lock();
                self.memory.unplace(&self.shared, &mut view, &live)
            };
            self.group.count(live.class, cell, -1);
            self.group.count(live.class, Cell::Running, 1);
        }
        if live.life.state != State::Running {
            // The claim wrote nothing, so its version was never seen on disk.
            live.version += 1;
            live.marks &= !mark::START;
        }
        let lease = Lease {
            id: LeaseId(0),
            node: NodeId(0),
            expires_at: now,
        };
        live.life = Lifecycle {
            state: State::Running,
            waiting_for: None,
            attempt: entry.attempt,
            started_at: Some(entry.started_at),
            same_attempt: false,
            backing_off: false,
            lease: Some(lease),
            ..live.life
        };
        let id = self.id_of(entry.row)?;
        let run = Run {
            executor: entry.executor.clone(),
            taken_at: entry.taken_at,
        };
        let subject = Subject {
            live,
            id,
            origin: Origin::Orphan(run),
        };
        let error = ErrorInfo::new("crashed_node", format!("{} died while it ran the task", entry.executor));
        let facts = Facts {
            error: Some(error),
            ..Facts::default()
        };
        let _ = self.happen(subject, &Event::NodeDied(blame), facts, now, &mut Applied::default())?;
        Ok(())
    }

    /// Writes the manifest as part of the open transaction.
    pub(super) fn put_manifest(&self) -> Result<(), Fault> {
        let mut entries = Encoder::default();
        {
            let view = self.shared.view.lock();
            for (row, leased) in view.leases.iter().filter(|(_, l)| !l.closing && !l.outlives) {
                entries.push(*row, leased);
            }
        }
        self.db
            .prepare_cached("REPLACE INTO manifest(id, entries) VALUES (1, ?)")?
            .execute([entries.finish()])?;
        Ok(())
    }

    /// Notes that the process is alive, now and then.
    pub(super) fn put_alive(&mut self) -> Result<(), Fault> {
        let now = self.memory.clock;
        // A time from before the clock was set back would make every run look as if it had lasted.
        let was_set_back = now < self.alive && now > Time::EPOCH;
        if now > self.alive.plus(ALIVE_EVERY) || was_set_back {
            self.db
                .prepare_cached("REPLACE INTO meta(key, value) VALUES ('alive', ?)")?
                .execute([now.as_micros()])?;
            self.alive = now;
        }
        Ok(())
    }
}

/// Packs tasks in flight into a few bytes each: most fields are differences to the task before.
#[derive(Default)]
struct Encoder {
    bytes: Vec<u8>,
    names: Vec<Name>,
    count: u64,
    last: (i64, i64),
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn put_signed(bytes: &mut Vec<u8>, value: i64) {
    put(bytes, ((value << 1) ^ (value >> 63)) as u64);
}

impl Encoder {
    fn push(&mut self, row: i64, leased: &super::view::Leased) {
        let name = match self.names.iter().rposition(|n| *n == leased.executor) {
            Some(name) => name,
            None => {
                self.names.push(leased.executor.clone());
                self.names.len() - 1
            }
        };
        let life = &leased.live.life;
        let taken = leased.taken_at.as_micros();
        put_signed(&mut self.bytes, row - self.last.0);
        put(&mut self.bytes, u64::from(life.attempt));
        put_signed(&mut self.bytes, taken.wrapping_sub(self.last.1));
        put_signed(
            &mut self.bytes,
            taken.wrapping_sub(life.started_at.unwrap_or(leased.taken_at).as_micros()),
        );
        let flags = u64::from(leased.alone) | u64::from(leased.checkpointed) << 1;
        put(&mut self.bytes, (name as u64) << 2 | flags);
        self.last = (row, taken);
        self.count += 1;
    }

    fn finish(self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.bytes.len() + 64);
        put(&mut all, self.names.len() as u64);
        for name in &self.names {
            put(&mut all, name.len() as u64);
            all.extend_from_slice(name.as_bytes());
        }
        put(&mut all, self.count);
        all.extend_from_slice(&self.bytes);
        all
    }
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7F) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take_signed(bytes: &mut &[u8]) -> Option<i64> {
    let value = take(bytes)?;
    Some((value >> 1) as i64 ^ -((value & 1) as i64))
}

fn decode(mut bytes: &[u8]) -> Option<Vec<InFlight>> {
    let bytes = &mut bytes;
    let mut names = Vec::new();
    for _ in 0..take(bytes)? {
        let length = usize::try_from(take(bytes)?).ok()?;
        let (name, rest) = bytes.split_at_checked(length)?;
        *bytes = rest;
        names.push(Name::from(std::str::from_utf8(name).ok()?));
    }
    let mut entries = Vec::new();
    let (mut row, mut taken) = (0i64, 0i64);
    for _ in 0..take(bytes)? {
        row = row.wrapping_add(take_signed(bytes)?);
        let attempt = u32::try_from(take(bytes)?).ok()?;
        taken = taken.wrapping_add(take_signed(bytes)?);
        let started = taken.wrapping_sub(take_signed(bytes)?);
        let packed = take(bytes)?;
        entries.push(InFlight {
            row,
            attempt,
            started_at: Time::from_micros(started),
            taken_at: Time::from_micros(taken),
            alone: packed & 1 != 0,
            checkpointed: packed & 2 != 0,
            executor: names.get((packed >> 2) as usize)?.clone(),
        });
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::view::Leased;
    use pensum_core::Priority;

    #[test]
    fn a_manifest_survives_packing_and_a_cut_one_is_noticed() {
        let mut encoder = Encoder::default();
        let mut expected = Vec::new();
        for n in 0..200i64 {
            let row = (n * 7919) % 1009;
            let taken_at = Time::from_micros(1_790_000_000_000_000 + n * 31);
            let mut live = LiveRow::plain(row, 0, Priority::Normal, taken_at);
            live.life.attempt = n as u32 % 5 + 1;
            live.life.started_at = Some(taken_at.minus(Duration::from_millis(n as u64)));
            let executor = Name::from(format!("node {}", n % 3));
            let (alone, checkpointed) = (n % 2 == 0, n % 3 == 0);
            expected.push(InFlight {
                row,
                attempt: live.life.attempt,
                started_at: live.life.started_at.unwrap_or(taken_at),
                taken_at,
                alone,
                checkpointed,
                executor: executor.clone(),
            });
            encoder.push(
                row,
                &Leased {
                    live,
                    id: None,
                    executor,
                    taken_at,
                    alone,
                    checkpointed,
                    log_lines: None,
                    closing: false,
                    outlives: false,
                },
            );
        }
        let bytes = encoder.finish();
        assert_eq!(decode(&bytes), Some(expected));
        assert!((0..bytes.len()).all(|cut| decode(&bytes[..cut]).is_none()));
    }
}
