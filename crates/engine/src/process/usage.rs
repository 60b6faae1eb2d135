//! What a command used, and the clock that stands still while it is paused.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::cgroup::Figures;
use super::table::Transfer;
use super::tree::Tree;

/// What a command and all that it started used together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Seconds of processor time, of user and system together.
    pub cpu_seconds: f64,
    /// Processor time per wall time, in percent: 200 is two processors in full use.
    pub cpu_percent: f64,
    /// The most memory in use at once, in MB (10⁶ bytes). In a [cgroup](super::use_cgroups) what the kernel counted, without what it
    /// keeps of files and can let go. Else the resident sizes of all processes, summed at each sample: the first samples are a few
    /// milliseconds apart, and a command that ends within two milliseconds may show next to none.
    pub memory_mb: f64,
    /// Read from storage, in MB (10⁶ bytes), what came from caches left out; `None` where the kernel does not count it.
    pub read_mb: Option<f64>,
    /// Written to storage, in MB (10⁶ bytes), also what the kernel still holds back.
    pub written_mb: Option<f64>,
    /// Seconds from start to end, pauses left out.
    pub wall_seconds: f64,
}

impl Usage {
    /// Of what the tree shows and what its cgroup counted, where it has one. Neither counts too much: the one misses what happens
    /// between its looks, the other what a process did before it came there.
    pub(super) fn of(tree: &Tree, counted: Option<&Figures>, wall: Duration) -> Self {
        let wall_seconds = wall.as_secs_f64();
        let cpu_seconds = counted
            .map_or(0.0, |figures| figures.cpu_seconds)
            .max(tree.cpu_seconds());
        let memory = counted.map_or(tree.resident_peak(), |figures| {
            figures.memory_peak.max(tree.single_peak())
        });
        let in_cgroup = counted.and_then(|figures| figures.transfer);
        let transfer = [tree.transfer(), in_cgroup].into_iter().flatten().reduce(Transfer::max);
        Self {
            cpu_seconds,
            cpu_percent: if wall_seconds > 0.0 {
                100.0 * cpu_seconds / wall_seconds
            } else {
                0.0
            },
            memory_mb: megabytes(memory),
            read_mb: transfer.map(|transfer| megabytes(transfer.read)),
            written_mb: transfer.map(|transfer| megabytes(transfer.written)),
            wall_seconds,
        }
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Time since the start, pauses left out.
#[derive(Debug)]
pub(super) struct Clock {
    /// When the command started or was last resumed; `None` while it is paused and after its end.
    running_since: Option<Instant>,
    before: Duration,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self {
            running_since: Some(Instant::now()),
            before: Duration::ZERO,
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.before + self.running_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub(super) fn running(&self) -> bool {
        self.running_since.is_some()
    }

    pub(super) fn halt(&mut self) {
        self.before = self.elapsed();
        self.running_since = None;
    }

    pub(super) fn go_on(&mut self) {
        self.running_since.get_or_insert_with(Instant::now);
    }
}
