//! The processes of this machine as `/proc` shows them. One look serves every command that asks for it at the same time.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Environment variable that marks every process of one command's tree with the node that started it and a count.
pub const MARK: &str = "PENSUM_PROCESS";

/// Longest environment searched for the mark, in bytes. Linux gives programs up to 2 MiB by default.
const ENVIRON_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// One process at the moment of a look.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) group: i32,
    /// The letter of the state: `R` runs, `S` and `D` sleep, `T` is stopped, `Z` and `X` are dead.
    pub(super) state: u8,
    /// Clock ticks from boot to the start of the process; with the id, this names a process for good.
    pub(super) start: u64,
    /// Processor time in clock ticks, of the process and of the children that it waited for.
    pub(super) ticks: u64,
    /// Resident memory in bytes.
    pub(super) resident: u64,
    /// Address space in bytes.
    pub(super) virtual_size: u64,
    /// The value of [`MARK`] in its environment.
    pub(super) mark: Option<Arc<str>>,
}

impl Entry {
    /// False for a process that has ended and waits to be reaped: it holds nothing any more.
    pub(super) fn alive(&self) -> bool {
        !matches!(self.state, b'Z' | b'X')
    }
}

/// One look at all processes.
pub(super) struct Table {
    pub(super) entries: Vec<Entry>,
    /// Counts looks of this process, from 1.
    pub(super) number: u64,
    taken: Instant,
}

/// How many looks were begun until now.
pub(super) fn looks_begun() -> u64 {
    BEGUN.load(Ordering::SeqCst)
}

/// A look that began after this call, so what was started or ended before it shows. Commands that ask while another's look is under
/// way wait for it and share the next. Reads a few files per process: call it where blocking is allowed.
pub(super) fn look() -> Arc<Table> {
    let before = looks_begun();
    shared(|last| last.number > before)
}

/// A look no older than `age`.
pub(super) fn look_within(age: Duration) -> Arc<Table> {
    shared(|last| last.taken.elapsed() <= age)
}

/// One process; `None` when there is none of that id.
pub(super) fn entry(pid: i32) -> Option<Entry> {
    let mut bytes = Vec::with_capacity(512);
    fs::File::open(format!("/proc/{pid}/stat"))
        .ok()?
        .read_to_end(&mut bytes)
        .ok()?;
    parse(pid, &bytes)
}

/// Processor time of the main thread of a process in seconds, to the nanosecond where [`Entry::ticks`] counts hundredths.
pub(super) fn precise_seconds(pid: i32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    Some(text.split_ascii_whitespace().next()?.parse::<u64>().ok()? as f64 / 1e9)
}

/// The most resident memory that a process ever had, in bytes.
pub(super) fn resident_peak(pid: i32) -> Option<u64> {
    kilobytes(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmHWM:")
}

/// What a process and the children that it waited for moved from and to storage, in bytes; see proc(5), `/proc/PID/io`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Transfer {
    pub(super) read: u64,
    pub(super) written: u64,
}

impl Transfer {
    /// The larger of each.
    pub(super) fn max(self, other: Transfer) -> Transfer {
        Transfer {
            read: self.read.max(other.read),
            written: self.written.max(other.written),
        }
    }

    pub(super) fn plus(self, other: Transfer) -> Transfer {
        Transfer {
            read: self.read + other.read,
            written: self.written + other.written,
        }
    }
}

/// What a process moved; `None` where the kernel does not count it, or does not say it of this process.
pub(super) fn transfer(pid: i32) -> Option<Transfer> {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let figure = |field: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(field))?
            .trim()
            .parse()
            .ok()
    };
    Some(Transfer {
        read: figure("read_bytes:")?,
        written: figure("write_bytes:")?,
    })
}

/// What the main thread of a process has started and what has not ended; nothing where the kernel does not list it.
pub(super) fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace()
        .filter_map(|child| child.parse().ok())
        .collect()
}

/// Resident memory of a process in bytes, each page divided among the processes that share it. Walks its page tables: a millisecond or
/// more for each gigabyte.
pub(super) fn proportional(pid: i32) -> Option<u64> {
    kilobytes(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?, "Pss:")
}

/// A new value for [`MARK`]: the namespace of process ids, this process in it, and a count. It tells whose command a process was even
/// after this process died.
pub(super) fn marker() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    let own = &*OWN;
    format!(
        "{}-{}-{}-{}",
        own.namespace,
        own.pid,
        own.start,
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

/// This process, as its commands' marks name it.
pub(super) struct Own {
    pub(super) namespace: u64,
    pub(super) pid: i32,
    pub(super) start: u64,
}

pub(super) static OWN: LazyLock<Own> = LazyLock::new(|| {
    let pid = std::process::id().cast_signed();
    let namespace = fs::read_link("/proc/self/ns/pid")
        .ok()
        .and_then(|link| link.to_str()?.strip_prefix("pid:[")?.strip_suffix(']')?.parse().ok())
        .unwrap_or(0);
    Own {
        namespace,
        pid,
        start: entry(pid).map_or(0, |own| own.start),
    }
});

/// All processes, with the marks of those that started at tick `since` or later.
pub(super) fn read(since: u64, known: &mut Marks) -> Vec<Entry> {
    let mut entries = Vec::new();
    let Ok(directory) = fs::read_dir("/proc") else {
        return entries;
    };
    let mut seen = Marks::with_capacity(known.len());
    for pid in directory
        .flatten()
        .filter_map(|item| item.file_name().to_str()?.parse::<i32>().ok())
    {
        let Some(mut entry) = entry(pid) else { continue };
        if entry.start >= since && entry.alive() {
            // A process keeps its mark for life: it was there before the first `exec` of its own.
            let mark = known.remove(&(pid, entry.start)).unwrap_or_else(|| mark_of(pid));
            entry.mark.clone_from(&mark);
            seen.insert((pid, entry.start), mark);
        }
        entries.push(entry);
    }
    *known = seen;
    entries
}

/// The marks of processes already read, by id and start.
pub(super) type Marks = HashMap<(i32, u64), Option<Arc<str>>>;

struct Cache {
    last: Option<Arc<Table>>,
    marks: Marks,
}

/// How many looks were begun: [`look`] tells by it whether a look began after it was called.
static BEGUN: AtomicU64 = AtomicU64::new(0);
static CACHE: LazyLock<Mutex<Cache>> = LazyLock::new(|| {
    Mutex::new(Cache {
        last: None,
        marks: Marks::new(),
    })
});

fn shared(good_enough: impl Fn(&Table) -> bool) -> Arc<Table> {
    let mut cache = CACHE.lock();
    if let Some(last) = &cache.last
        && good_enough(last)
    {
        return last.clone();
    }
    let number = BEGUN.fetch_add(1, Ordering::SeqCst) + 1;
    let taken = Instant::now();
    // What is older than this process is none of its commands.
    let entries = read(OWN.start, &mut cache.marks);
    let table = Arc::new(Table { entries, number, taken });
    cache.last = Some(table.clone());
    table
}

/// Reads `/proc/PID/stat`. The second field, the program's name, may hold spaces and parentheses; the last `)` ends it.
fn parse(pid: i32, stat: &[u8]) -> Option<Entry> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let fields: Vec<&str> = str::from_utf8(stat.get(name_end + 1..)?)
        .ok()?
        .split_ascii_whitespace()
        .collect();
    // proc(5) numbers fields from 1; the state, here the first, is field 3.
    let field = |number: usize| fields.get(number - 3).copied();
    let figure = |number: usize| field(number)?.parse::<u64>().ok();
    Some(Entry {
        pid,
        state: *field(3)?.as_bytes().first()?,
        parent: field(4)?.parse().ok()?,
        group: field(5)?.parse().ok()?,
        // Waited-for children's times may be negative in old kernels' rounding; such a figure counts as none.
        ticks: (14..=17).map(|number| figure(number).unwrap_or(0)).sum(),
        start: figure(22)?,
        virtual_size: figure(23)?,
        resident: figure(24)? * procfs::page_size(),
        mark: None,
    })
}

fn mark_of(pid: i32) -> Option<Arc<str>> {
    let mut bytes = Vec::new();
    fs::File::open(format!("/proc/{pid}/environ"))
        .ok()?
        .take(ENVIRON_BYTES_MAX)
        .read_to_end(&mut bytes)
        .ok()?;
    let value = bytes
        .split(|byte| *byte == 0)
        .find_map(|variable| variable.strip_prefix(MARK.as_bytes())?.strip_prefix(b"="))?;
    Some(str::from_utf8(value).ok()?.into())
}

fn kilobytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_spaces_and_parentheses_is_no_obstacle() {
        let line = b"42 (a ) R 1 (b)) T 7 40 40 0 -1 4194304 1 2 3 4 10 20 30 40 20 0 1 0 987654 1000 5 18446744073709551615 0";
        let entry = parse(42, line).unwrap();
        assert_eq!((entry.state, entry.parent, entry.group), (b'T', 7, 40));
        assert_eq!(
            (entry.ticks, entry.start, entry.resident),
            (100, 987_654, 5 * procfs::page_size())
        );
        assert!(parse(42, b"42 (short) R 1").is_none());
        assert!(parse(42, b"").is_none());
    }

    #[test]
    fn a_look_shows_this_process_and_a_later_look_is_a_new_one() {
        let first = look();
        let own = first.entries.iter().find(|entry| entry.pid == OWN.pid).unwrap();
        assert_eq!(own.start, OWN.start);
        assert!(own.resident > 0);
        assert!(look().number > first.number);
        assert!(look_within(Duration::from_secs(600)).number >= first.number);
    }
}
