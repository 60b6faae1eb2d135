//! The files as a power cut could leave them.
//!
//! What a completed sync covers is there. Of everything later each 512-byte sector of each write may be there or not,
//! and seldom is torn: the first part of what was written, and behind it what was there before, zeros or noise. Bytes
//! that nobody wrote stay as they were, which is all that SQLite asks of a disk (its "powersafe overwrite").

use std::collections::BTreeMap;
use std::path::Path;

use super::dice::Dice;
use super::disk::{Change, Disk, OnDisk, carry_out, put, rename};
use super::log::{FileId, Log};

const SECTOR: usize = 512;

/// How a disk and its file system carry unsynced changes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    /// One after the other, in all files together; the last one is torn.
    Strict,
    /// As ext4 with ordered data: names and lengths change in order, a file grows by what was written there, and any
    /// sync carries all earlier names; sectors that are overwritten come as they like.
    Grown,
    /// As they like: sectors, lengths and names, each for itself.
    Loose,
}

/// What became of the sectors that were on their way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Damage {
    pub(super) kept: usize,
    pub(super) lost: usize,
    pub(super) torn: usize,
}

/// The files after a power cut.
pub(super) struct Image {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    pub(super) damage: Damage,
    pub(super) order: Order,
}

/// The chances of one image.
struct Weather<'a> {
    log: &'a Log,
    dice: Dice,
    /// How many of a hundred unsynced sectors arrive.
    arrive: u64,
    /// How many of a thousand sectors that arrive are torn.
    torn: u64,
    /// Whether what a torn sector shows behind the tear may be noise.
    noise: bool,
    damage: Damage,
}

impl Image {
    /// An image of the disk as it is.
    pub(super) fn of(disk: &Disk<'_>, mut dice: Dice) -> Image {
        let order = dice.pick(&[Order::Strict, Order::Grown, Order::Loose, Order::Loose]);
        let mut weather = Weather {
            log: disk.log,
            arrive: dice.pick(&[0, 10, 50, 50, 90, 100]),
            torn: dice.pick(&[0, 5, 50]),
            noise: order == Order::Loose,
            damage: Damage::default(),
            dice,
        };
        let end = weather.end(disk);
        let names = weather.names(disk, order, end);
        let mut files = BTreeMap::new();
        for (name, file) in names {
            if let Some(file) = disk.files.get(&file) {
                let content = match order {
                    Order::Strict => weather.in_order(file, end),
                    Order::Grown => weather.grown(file),
                    Order::Loose => weather.loose(file),
                };
                files.insert(name, content);
            }
        }
        Image {
            files,
            damage: weather.damage,
            order,
        }
    }

    /// Tears the first sector of a file that was on its way: a part of it is as it should be, the rest noise.
    pub(super) fn tear_start(&mut self, name: &str, dice: &mut Dice) {
        let whole = dice.pick(&[0, 0, 10, 40, 70, 100]);
        for content in self
            .files
            .get_mut(name)
            .into_iter()
            .flat_map(|file| file.iter_mut().take(SECTOR).skip(whole))
        {
            *content = dice.roll(256) as u8;
        }
        self.damage.torn += 1;
    }

    /// Writes the files into an empty directory.
    pub(super) fn write(&self, directory: &Path) -> std::io::Result<()> {
        for (name, content) in &self.files {
            std::fs::write(directory.join(name), content)?;
        }
        Ok(())
    }
}

impl Weather<'_> {
    /// For a strict order: where in the log the disk had come to.
    fn end(&mut self, disk: &Disk<'_>) -> usize {
        let pending = disk.files.values().flat_map(|file| &file.pending);
        let places: Vec<usize> = pending.map(|(at, _)| *at).collect();
        match self.arrive {
            100 => disk.at,
            0 => 0,
            _ if places.is_empty() => disk.at,
            _ => self.dice.pick(&places),
        }
    }

    /// Which names there are.
    fn names(&mut self, disk: &Disk<'_>, order: Order, end: usize) -> BTreeMap<String, FileId> {
        let mut names = disk.names.clone();
        let sure = disk
            .naming
            .iter()
            .filter(|(at, _)| order != Order::Loose && *at < disk.any_sync);
        let sure = sure.count();
        let arrived = sure + self.dice.roll((disk.naming.len() - sure) as u64 + 1) as usize;
        for (index, (at, naming)) in disk.naming.iter().enumerate() {
            let is_there = match order {
                Order::Strict => index < sure || *at < end,
                Order::Grown => index < arrived,
                Order::Loose => self.dice.chance(self.arrive),
            };
            if is_there {
                rename(&mut names, naming);
            }
        }
        names
    }

    fn in_order(&mut self, file: &OnDisk, end: usize) -> Vec<u8> {
        let mut content = file.synced.clone();
        for (at, change) in &file.pending {
            match change {
                Change::Write { offset, bytes } if *at == end => {
                    let bytes = self.log.content(bytes);
                    let whole = self.dice.roll(bytes.len() as u64) as usize;
                    put(&mut content, *offset, &bytes[..whole]);
                    self.damage.torn += 1;
                }
                Change::Write { bytes, .. } if *at > end => self.damage.lost += bytes.len().div_ceil(SECTOR),
                _ if *at > end => {}
                change => {
                    carry_out(&mut content, self.log, change);
                    self.damage.kept += 1;
                }
            }
        }
        content
    }

    fn grown(&mut self, file: &OnDisk) -> Vec<u8> {
        let mut content = file.synced.clone();
        // Changes of the length come in order; this many of them came.
        let mut ends = file.synced.len();
        let mut resizing = Vec::new();
        for (index, (_, change)) in file.pending.iter().enumerate() {
            let (length, resizes) = match change {
                Change::Write { offset, bytes } => (offset + bytes.len(), offset + bytes.len() > ends),
                Change::Truncate(length) => (*length, *length != ends),
            };
            if resizes {
                ends = length;
                resizing.push(index);
            }
        }
        let arrived = match self.arrive {
            0 => 0,
            100 => resizing.len(),
            _ => self.dice.roll(resizing.len() as u64 + 1) as usize,
        };
        for (index, (_, change)) in file.pending.iter().enumerate() {
            match (resizing.binary_search(&index), change) {
                (Ok(place), change) if place < arrived => carry_out(&mut content, self.log, change),
                (Err(_), Change::Write { offset, bytes }) => self.sectors(&mut content, *offset, bytes.clone(), false),
                (_, Change::Write { bytes, .. }) => self.damage.lost += bytes.len().div_ceil(SECTOR),
                (_, Change::Truncate(_)) => {}
            }
        }
        content
    }

    fn loose(&mut self, file: &OnDisk) -> Vec<u8> {
        let mut content = file.synced.clone();
        for (_, change) in &file.pending {
            match change {
                Change::Write { offset, bytes } => self.sectors(&mut content, *offset, bytes.clone(), true),
                change if self.dice.chance(self.arrive) => carry_out(&mut content, self.log, change),
                Change::Truncate(_) => {}
            }
        }
        content
    }

    /// Carries a write out, sector by sector. One that does not `grow` the file leaves out what lies behind its end.
    fn sectors(&mut self, content: &mut Vec<u8>, offset: usize, bytes: std::ops::Range<usize>, grow: bool) {
        let bytes = self.log.content(&bytes);
        let end = offset + bytes.len();
        if grow && content.len() < end && self.dice.chance(50) {
            content.resize(end, 0);
        }
        let mut at = offset;
        while at < end {
            let next = (at / SECTOR + 1) * SECTOR;
            let piece = &bytes[at - offset..next.min(end) - offset];
            let piece = if grow {
                piece
            } else {
                &piece[..piece.len().min(content.len().saturating_sub(at))]
            };
            if !self.dice.chance(self.arrive) {
                self.damage.lost += 1;
            } else if self.dice.roll(1000) < self.torn {
                self.damage.torn += 1;
                self.tear(content, at, piece);
            } else {
                self.damage.kept += 1;
                put(content, at, piece);
            }
            at = next;
        }
    }

    /// The first part of a sector's write came; behind it there is what was there before, or zeros, or noise.
    fn tear(&mut self, content: &mut Vec<u8>, at: usize, piece: &[u8]) {
        let whole = self.dice.roll(piece.len() as u64 + 1) as usize;
        put(content, at, &piece[..whole]);
        if self.noise && self.dice.chance(50) {
            let zero = self.dice.chance(50);
            let rest: Vec<u8> = piece[whole..]
                .iter()
                .map(|_| if zero { 0 } else { self.dice.roll(256) as u8 })
                .collect();
            put(content, at + whole, &rest);
        }
    }
}
