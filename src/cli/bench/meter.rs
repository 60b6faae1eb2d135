//! Real time, and what the machine did meanwhile.

use std::fs;
use std::time::Instant;

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

/// Watches how much processor time everything but this bench uses, by `/proc`.
pub(super) struct Meter {
    start: Option<Reading>,
    since: Instant,
}

struct Reading {
    machine: u64,
    own: u64,
}

/// Clock ticks a second that `/proc` counts in; fixed by Linux for every architecture that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

impl Meter {
    /// Starts watching.
    pub(super) fn start() -> Meter {
        Meter {
            start: read(),
            since: tick(),
        }
    }

    /// Cores used by others since the start; `None` where `/proc` does not say. Children of the bench count as its own
    /// once they have ended.
    pub(super) fn others(&self) -> Option<f64> {
        let (start, end) = (self.start.as_ref()?, read()?);
        let others = end
            .machine
            .saturating_sub(start.machine)
            .saturating_sub(end.own.saturating_sub(start.own));
        Some(others as f64 / TICKS_PER_SECOND / seconds_since(self.since).max(0.01))
    }
}

fn read() -> Option<Reading> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().next()?;
    let fields: Vec<u64> = line.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    // user nice system (idle iowait) irq softirq steal
    let machine = fields.iter().take(3).chain(fields.iter().skip(5).take(3)).sum();
    let own = own_ticks()?;
    Some(Reading { machine, own })
}

/// What this process, and its children that were waited for, have used.
fn own_ticks() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is a name in brackets that may hold spaces.
    let rest = &stat[stat.rfind(')')? + 1..];
    Some(
        rest.split_whitespace()
            .skip(11)
            .take(4)
            .filter_map(|f| f.parse::<u64>().ok())
            .sum(),
    )
}
