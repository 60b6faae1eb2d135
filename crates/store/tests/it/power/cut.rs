//! Where the power may fail: places of the log, by what is going on there.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::ledger::Ledger;
use super::log::{DIRECTORY, FileId, Log, Record};
use super::workload::STORE;

/// What is going on at a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Moment {
    /// The files come into being, until the log of SQLite was synced a first time, with its directory.
    Creation,
    /// Pages of a commit are on their way to the log of SQLite.
    Commit,
    /// Pages are on their way from that log into the database.
    Fold,
    /// The first page of the database is on its way, which says whose file it is; its first sector is torn.
    FirstPage,
    /// That log is begun anew, or cut to nothing.
    Reset,
    /// A file has just been made or removed.
    Naming,
    /// A sync ends: just before, and just after.
    Sync,
    /// A verb has just been answered.
    Answer,
}

impl Moment {
    /// Each of them but the creation; the more frequent stand for the ones with the most that can go wrong.
    pub(super) const TURNS: [Moment; 10] = [
        Moment::Commit,
        Moment::Fold,
        Moment::Reset,
        Moment::Sync,
        Moment::Answer,
        Moment::Commit,
        Moment::Fold,
        Moment::Reset,
        Moment::Naming,
        Moment::FirstPage,
    ];
}

/// All places of each kind.
pub(super) fn places(log: &Log, ledger: &Ledger) -> BTreeMap<Moment, Vec<usize>> {
    let wal = format!("{STORE}-wal");
    let mut places: BTreeMap<Moment, Vec<usize>> = BTreeMap::new();
    let mut add = |moment, from: usize, to: usize| {
        let all = places.entry(moment).or_default();
        all.extend(from..to.min(log.records.len() + 1));
    };
    let mut unsynced: HashMap<FileId, VecDeque<usize>> = HashMap::new();
    let mut began: HashMap<u64, usize> = HashMap::new();
    let is_named = |record: &Record| matches!(record, Record::SyncEnd { file: DIRECTORY, .. });
    let named = log.records.iter().enumerate().filter(|(_, record)| is_named(record));
    // The directory is synced for the journal of the first page, and for the log.
    add(Moment::Creation, 1, named.map(|(at, _)| at + 4).nth(1).unwrap());
    for (at, record) in log.records.iter().enumerate() {
        for (file, writes) in &unsynced {
            match log.name(*file) {
                _ if writes.is_empty() => {}
                STORE => {
                    add(Moment::Fold, at, at + 1);
                    let is_first = |write: &usize| matches!(log.records[*write], Record::Write { offset: 0, .. });
                    if writes.iter().any(is_first) {
                        add(Moment::FirstPage, at, at + 1);
                    }
                }
                name if name == wal => add(Moment::Commit, at, at + 1),
                _ => {}
            }
        }
        match record {
            Record::Create { .. } | Record::Unlink { .. } => add(Moment::Naming, at, at + 4),
            Record::Write { file, offset: 0, .. } | Record::Truncate { file, .. } if log.name(*file) == wal => {
                add(Moment::Reset, at.saturating_sub(3), at + 6);
            }
            Record::SyncBegin { sync, .. } => {
                began.insert(*sync, at);
            }
            Record::SyncEnd { .. } => add(Moment::Sync, at, at + 2),
            _ => {}
        }
        match record {
            Record::Write { file, .. } => unsynced.entry(*file).or_default().push_back(at),
            Record::SyncEnd { file, sync } => {
                let covered = began.remove(sync).unwrap_or(0);
                if let Some(writes) = unsynced.get_mut(file) {
                    writes.retain(|write| *write >= covered);
                }
            }
            _ => {}
        }
    }
    for answer in ledger.answers() {
        add(Moment::Answer, answer + 1, answer + 2);
    }
    places
}
