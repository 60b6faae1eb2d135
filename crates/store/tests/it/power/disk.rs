//! A disk at any moment of a log: what is surely on it, and what was on its way.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::log::{DIRECTORY, FileId, Log, Record};

/// A step that changed a file and was not synced yet.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// Bytes of the log at an offset.
    Write { offset: usize, bytes: Range<usize> },
    /// Another length.
    Truncate(usize),
}

/// A step that changed the directory and was not synced yet.
#[derive(Clone, Debug)]
pub(super) enum Naming {
    /// A name for a file.
    Create(String, FileId),
    /// No such name any more.
    Unlink(String),
}

/// One file.
#[derive(Default)]
pub(super) struct OnDisk {
    /// What the last completed sync left.
    pub(super) synced: Vec<u8>,
    /// What came since, by the place in the log.
    pub(super) pending: Vec<(usize, Change)>,
}

/// Which syncs the disk carries out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syncs {
    /// All of them: what SQLite relies on.
    Honest,
    /// From this place of the log on none, though it says that it did: as if the store ran with `synchronous=OFF`.
    IgnoredFrom(usize),
}

/// The disk after the first `at` steps of a log.
pub(super) struct Disk<'a> {
    pub(super) log: &'a Log,
    pub(super) at: usize,
    pub(super) files: BTreeMap<FileId, OnDisk>,
    pub(super) names: BTreeMap<String, FileId>,
    pub(super) naming: Vec<(usize, Naming)>,
    /// What stood before this place when a sync of any file that has ended began.
    pub(super) any_sync: usize,
    syncs: Syncs,
    began: HashMap<u64, usize>,
}

impl<'a> Disk<'a> {
    /// An empty directory.
    pub(super) fn new(log: &'a Log, syncs: Syncs) -> Disk<'a> {
        Disk {
            log,
            at: 0,
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            naming: Vec::new(),
            any_sync: 0,
            syncs,
            began: HashMap::new(),
        }
    }

    /// Goes on to the state before the step `cut`.
    pub(super) fn advance(&mut self, cut: usize) {
        assert!(cut >= self.at, "a disk does not go back");
        let log = self.log;
        for (at, record) in log.records.iter().enumerate().take(cut).skip(self.at) {
            self.step(at, record);
        }
        self.at = cut;
    }

    fn step(&mut self, at: usize, record: &Record) {
        match record {
            Record::Create { file, name } => {
                self.files.insert(*file, OnDisk::default());
                self.naming.push((at, Naming::Create(name.clone(), *file)));
            }
            Record::Unlink { name } => self.naming.push((at, Naming::Unlink(name.clone()))),
            Record::Write { file, offset, bytes } => {
                let (offset, bytes) = (*offset, bytes.clone());
                self.change(*file, at, Change::Write { offset, bytes });
            }
            Record::Truncate { file, length } => self.change(*file, at, Change::Truncate(*length)),
            Record::SyncBegin { sync, .. } => {
                self.began.insert(*sync, at);
            }
            Record::SyncEnd { file, sync } => {
                let began = self.began.remove(sync).unwrap_or(0);
                if matches!(self.syncs, Syncs::IgnoredFrom(from) if at >= from) {
                    return;
                }
                self.any_sync = self.any_sync.max(began);
                if *file == DIRECTORY {
                    let named = self.naming.partition_point(|(at, _)| *at < began);
                    for (_, naming) in self.naming.drain(..named) {
                        rename(&mut self.names, &naming);
                    }
                } else if let Some(file) = self.files.get_mut(file) {
                    let covered = file.pending.partition_point(|(at, _)| *at < began);
                    for (_, change) in file.pending.drain(..covered) {
                        carry_out(&mut file.synced, self.log, &change);
                    }
                }
            }
            Record::Note(_) => {}
        }
    }

    fn change(&mut self, file: FileId, at: usize, change: Change) {
        if let Some(file) = self.files.get_mut(&file) {
            file.pending.push((at, change));
        }
    }

    /// True when a file of this name has writes on their way.
    pub(super) fn has_pending(&self, name: &str) -> bool {
        let mut named = self.files.iter().filter(|(file, _)| self.log.name(**file) == name);
        named.any(|(_, file)| file.pending.iter().any(|(_, c)| matches!(c, Change::Write { .. })))
    }
}

/// Carries a change of the directory out.
pub(super) fn rename(names: &mut BTreeMap<String, FileId>, naming: &Naming) {
    match naming {
        Naming::Create(name, file) => names.insert(name.clone(), *file),
        Naming::Unlink(name) => names.remove(name),
    };
}

/// Carries a change of a file out as a whole.
pub(super) fn carry_out(content: &mut Vec<u8>, log: &Log, change: &Change) {
    match change {
        Change::Write { offset, bytes } => put(content, *offset, log.content(bytes)),
        Change::Truncate(length) => content.resize(*length, 0),
    }
}

/// Writes bytes at an offset, beyond the end too.
pub(super) fn put(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}
