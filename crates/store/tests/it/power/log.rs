//! The log of everything that a process wrote to one directory, as `recorder.c` left it.

use std::collections::BTreeMap;
use std::ops::Range;

/// Which file: a number for each file that was ever created, so that two of one name are two.
pub(super) type FileId = u32;

/// The directory itself, as something that is synced.
pub(super) const DIRECTORY: FileId = 1;

/// The file whose lines stand in the total order and are not part of the disk.
pub(super) const ACKS: &str = "acks";

/// One step.
#[derive(Debug, PartialEq)]
pub(super) enum Record {
    /// A file came into being.
    Create { file: FileId, name: String },
    /// A name went.
    Unlink { name: String },
    /// Bytes of the log were written at an offset.
    Write {
        file: FileId,
        offset: usize,
        bytes: Range<usize>,
    },
    /// A file got this length.
    Truncate { file: FileId, length: usize },
    /// A sync began: it covers what stands before this.
    SyncBegin { file: FileId, sync: u64 },
    /// A sync had ended: what it covers is on the disk.
    SyncEnd { file: FileId, sync: u64 },
    /// A line about the workload.
    Note(String),
}

/// All steps in their order.
pub(super) struct Log {
    bytes: Vec<u8>,
    pub(super) records: Vec<Record>,
    names: BTreeMap<FileId, String>,
}

const HEADER_BYTES: usize = 24;

impl Log {
    /// Reads what the recorder wrote.
    ///
    /// # Errors
    /// A sentence about a log that is cut short, or that holds a step which no disk of ours models.
    pub(super) fn parse(bytes: Vec<u8>) -> Result<Log, String> {
        let mut log = Log {
            records: Vec::new(),
            names: BTreeMap::new(),
            bytes: Vec::new(),
        };
        let mut at = 0;
        while at < bytes.len() {
            let header = bytes.get(at..at + HEADER_BYTES).ok_or("the log ends within a record")?;
            let word = |from: usize| u64::from_ne_bytes(header[from..from + 8].try_into().unwrap_or_default());
            let half = |from: usize| u32::from_ne_bytes(header[from..from + 4].try_into().unwrap_or_default());
            let (kind, file, offset, length) = (half(0), half(4), word(8), word(16) as usize);
            let content = at + HEADER_BYTES..at + HEADER_BYTES + length;
            at = content.end;
            let payload = bytes.get(content.clone()).ok_or("the log ends within a record")?;
            let text = || String::from_utf8_lossy(payload).into_owned();
            let is_acks = log.names.get(&file).is_some_and(|name| name == ACKS);
            log.records.push(match kind {
                1 => {
                    log.names.insert(file, text());
                    if text() == ACKS {
                        continue;
                    }
                    Record::Create { file, name: text() }
                }
                2 if is_acks => Record::Note(text().trim_end().to_owned()),
                2 => Record::Write {
                    file,
                    offset: offset as usize,
                    bytes: content,
                },
                3 => Record::Truncate {
                    file,
                    length: offset as usize,
                },
                4 => Record::SyncBegin { file, sync: offset },
                5 => Record::SyncEnd { file, sync: offset },
                6 => Record::Unlink { name: text() },
                _ => return Err(format!("the log holds a step that is not modelled: {}", text())),
            });
        }
        log.bytes = bytes;
        Ok(log)
    }

    /// What a write wrote.
    pub(super) fn content(&self, bytes: &Range<usize>) -> &[u8] {
        &self.bytes[bytes.clone()]
    }

    /// The name that a file was created under.
    pub(super) fn name(&self, file: FileId) -> &str {
        self.names.get(&file).map_or("", String::as_str)
    }

    /// What a failure says of the steps round a cut.
    pub(super) fn around(&self, cut: usize) -> String {
        let from = cut.saturating_sub(6);
        let shown = self.records[from..(cut + 3).min(self.records.len())].iter();
        let lines = shown.enumerate().map(|(index, record)| {
            let mark = if from + index == cut { "→ (cut) " } else { "  " };
            match record {
                Record::Write { file, offset, bytes } => {
                    format!("{mark}write {} bytes to {} at {offset}", bytes.len(), self.name(*file))
                }
                other => format!("{mark}{other:?}").chars().take(160).collect(),
            }
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}
