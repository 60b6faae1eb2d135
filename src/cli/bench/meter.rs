//! Real time, and what the machine did meanwhile.

use std::fs;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// The present, for measuring.
#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures real time, which no test clock stands in for"
)]
pub(super) fn tick() -> Instant {
    Instant::now()
}

/// Seconds since then.
pub(super) fn seconds_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}

/// The same moment by the clock that all processes of this machine share.
pub(super) fn shared_clock(moment: Instant) -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(
        now.tv_sec.unsigned_abs(),
        u32::try_from(now.tv_nsec).unwrap_or_default(),
    )
    .saturating_sub(moment.elapsed())
}

/// Watches how much processor time everything but this bench uses, by `/proc`.
pub(super) struct Meter {
    start: Option<Reading>,
    since: Instant,
    postmaster: Option<u32>,
}

struct Reading {
    machine: u64,
    own: u64,
}

/// Clock ticks a second that `/proc` counts in; fixed by Linux for every architecture that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

impl Meter {
    /// Starts watching. `postmaster` is the first process of the database server that is measured: what its processes use
    /// counts as the bench's own.
    pub(super) fn start(postmaster: Option<u32>) -> Meter {
        Meter {
            start: read(postmaster),
            since: tick(),
            postmaster,
        }
    }

    /// Cores used by others since the start; `None` where `/proc` does not say. Children of the bench count as its own
    /// once they have ended.
    pub(super) fn others(&self) -> Option<f64> {
        let (start, end) = (self.start.as_ref()?, read(self.postmaster)?);
        let others = end
            .machine
            .saturating_sub(start.machine)
            .saturating_sub(end.own.saturating_sub(start.own));
        Some(others as f64 / TICKS_PER_SECOND / seconds_since(self.since).max(0.01))
    }
}

fn read(postmaster: Option<u32>) -> Option<Reading> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().next()?;
    let fields: Vec<u64> = line.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    // user nice system (idle iowait) irq softirq steal
    let machine = fields.iter().take(3).chain(fields.iter().skip(5).take(3)).sum();
    let own = Process::read("self")?.family_ticks();
    let server = match postmaster {
        Some(postmaster) => server_ticks(postmaster)?,
        None => 0,
    };
    Some(Reading {
        machine,
        own: own + server,
    })
}

/// What a database server's processes have used: the first one, its children that have ended, and those that run.
fn server_ticks(postmaster: u32) -> Option<u64> {
    let first = Process::read(&postmaster.to_string())?;
    let running = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| {
        let process = Process::read(entry.file_name().to_str()?)?;
        (process.parent == postmaster).then_some(process.ticks)
    });
    Some(first.family_ticks() + running.sum::<u64>())
}

/// The first process of the server whose backend has this id, if that is a process of this machine.
pub(super) fn parent_of_backend(backend: u32) -> Option<u32> {
    let backend = Process::read(&backend.to_string())?;
    let parent = Process::read(&backend.parent.to_string())?;
    (backend.name == "postgres" && parent.name == "postgres").then_some(backend.parent)
}

/// A line of `/proc/PID/stat`.
struct Process {
    name: String,
    parent: u32,
    /// What it has used itself, in clock ticks.
    ticks: u64,
    /// What its children that were waited for have used.
    children_ticks: u64,
}

impl Process {
    fn read(id: &str) -> Option<Process> {
        // Not everything in /proc is a process.
        if id != "self" && !id.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        Process::parse(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Process> {
        // The second field is a name in brackets that may hold spaces and brackets.
        let (open, close) = (stat.find('(')?, stat.rfind(')')?);
        let fields: Vec<&str> = stat.get(close + 1..)?.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Process {
            name: stat.get(open + 1..close)?.to_owned(),
            parent: u32::try_from(number(1)?).ok()?,
            ticks: number(11)? + number(12)?,
            children_ticks: number(13)? + number(14)?,
        })
    }

    const fn family_ticks(&self) -> u64 {
        self.ticks + self.children_ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_past_the_brackets_in_its_name() {
        let line = "42 (a (b) c) S 7 1 1 0 -1 4194304 1 2 3 4 100 20 30 4 20 0 1 0 5 6 7";
        let process = Process::parse(line).unwrap();
        assert_eq!((process.name.as_str(), process.parent), ("a (b) c", 7));
        assert_eq!((process.ticks, process.family_ticks()), (120, 154));
        assert!(Process::parse("42 (a").is_none());
    }
}
