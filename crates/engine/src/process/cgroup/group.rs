//! The cgroup of one command.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use super::parse::{cgroup_of, figure, transfer, within};
use super::{domain, write};
use crate::process::spec::Limits;
use crate::process::table::{self, Transfer};

/// Block devices that hand on to others what they are asked, by a directory that theirs has in `/sys/dev/block`: their bytes are
/// counted again below.
const STACKED: [&str; 3] = ["dm", "md", "loop"];

/// The cgroup of one command. Dropping it kills what is in it.
pub(in crate::process) struct Group {
    directory: PathBuf,
    /// Its name in the hierarchy, as `/proc/PID/cgroup` has it.
    cgroup: PathBuf,
    /// Whether the kernel bounds its memory.
    pub(in crate::process) bounded: bool,
    removed: AtomicBool,
}

/// What a cgroup says of all that is and was in it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(in crate::process) struct Figures {
    /// Seconds of processor time, of user and system together.
    pub(in crate::process) cpu_seconds: f64,
    /// The most memory that was in use at once, in bytes, left out what the kernel keeps of files and can let go.
    pub(in crate::process) memory_peak: u64,
    /// The most that the kernel kept in that way, in bytes.
    cache_peak: u64,
    /// What was moved from and to block devices; at the end alone.
    pub(in crate::process) transfer: Option<Transfer>,
    /// The kernel killed because the limit of memory was reached.
    pub(in crate::process) out_of_memory: bool,
}

impl Group {
    /// A cgroup for a command with these limits; `None` where commands are sampled.
    pub(in crate::process) fn create(limits: &Limits) -> Option<Group> {
        let domain = domain()?;
        let (directory, cgroup) = domain
            .add()
            .inspect_err(|error| tracing::warn!(%error, "no cgroup for a command; it is sampled"))
            .ok()?;
        let mut group = Group {
            directory,
            cgroup,
            bounded: false,
            removed: AtomicBool::new(false),
        };
        if let Some(bytes) = limits.memory {
            match group.bound(bytes) {
                Ok(()) => group.bounded = true,
                Err(error) => tracing::warn!(%error, "no limit of memory on a command's cgroup; it is sampled"),
            }
        }
        Some(group)
    }

    fn bound(&self, bytes: u64) -> io::Result<()> {
        write(&self.file("memory.max"), &bytes.to_string())?;
        // A tree that is over its limit ends whole, not with one process missing.
        write(&self.file("memory.oom.group"), "1")?;
        // Swapped out is in use as well. A kernel without swap has no such file.
        let _ = write(&self.file("memory.swap.max"), "0");
        Ok(())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.file(name)).ok()
    }

    /// Takes a process in. What it has started stays where it is, and what it uses already stays counted there. May take a dozen
    /// milliseconds: the kernel waits until no processor is amid the birth of a process.
    pub(in crate::process) fn admit(&self, pid: i32) -> io::Result<()> {
        match write(&self.file("cgroup.procs"), &pid.to_string()) {
            // It has ended, or the command was dropped and its cgroup is gone.
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::SRCH | Errno::NOENT | Errno::NODEV)
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Sees to it that a process is in it, or in a cgroup that the command made below. Whether it is.
    pub(in crate::process) fn house(&self, pid: i32, start: u64) -> bool {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
            return false;
        };
        if cgroup_of(&text).is_some_and(|cgroup| within(cgroup, &self.cgroup)) {
            return true;
        }
        // Another process may have been given the id meanwhile.
        table::entry(pid).is_some_and(|entry| entry.start == start) && self.admit(pid).is_ok()
    }

    /// The ids of the processes in it, those in cgroups below left out.
    pub(in crate::process) fn pids(&self) -> Vec<i32> {
        let text = self.read("cgroup.procs").unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Kills all that is in it or below. A kernel before 5.14 cannot; signals to each process then have to do.
    pub(in crate::process) fn kill(&self) {
        if !self.removed.load(Ordering::Relaxed)
            && let Err(error) = write(&self.file("cgroup.kill"), "1")
        {
            tracing::debug!(%error, "a cgroup was not killed as a whole");
        }
    }

    /// What it says now, over what it said `before`.
    pub(in crate::process) fn figures(&self, before: Figures) -> Figures {
        let cpu = self.read("cpu.stat").and_then(|text| figure(&text, "usage_usec"));
        let stat = self.read("memory.stat").unwrap_or_default();
        let part = |name: &str| figure(&stat, name).unwrap_or(0);
        // Shared memory is kept as pages of files are, but there is no file to let it go to.
        let cache = (part("file") + part("slab_reclaimable")).saturating_sub(part("shmem"));
        let current = self.bytes("memory.current").unwrap_or(0).saturating_sub(cache);
        Figures {
            cpu_seconds: cpu.map_or(before.cpu_seconds, |micros| before.cpu_seconds.max(micros as f64 / 1e6)),
            memory_peak: before.memory_peak.max(current),
            cache_peak: before.cache_peak.max(cache),
            transfer: before.transfer,
            out_of_memory: before.out_of_memory || (self.bounded && self.killed_for_memory()),
        }
    }

    /// The last figures: with the peak between samples, and what was moved from and to storage.
    pub(in crate::process) fn last_figures(&self, before: Figures) -> Figures {
        let figures = self.figures(before);
        // The kernel's peak is that of the sum. How much of it was kept of files then is not known, but no more than ever was.
        let peak = self
            .bytes("memory.peak")
            .unwrap_or(0)
            .saturating_sub(figures.cache_peak);
        Figures {
            memory_peak: figures.memory_peak.max(peak),
            transfer: self
                .read("io.stat")
                .map(|text| transfer(&text, |device| !is_stacked(device))),
            ..figures
        }
    }

    /// What a file of one figure says; `None` also where the kernel is too old to have it.
    fn bytes(&self, name: &str) -> Option<u64> {
        self.read(name)?.trim().parse().ok()
    }

    /// Whether the kernel killed something here, and the limit of this very cgroup was the cause: it also kills when the machine, or a
    /// cgroup above or below, has no memory left.
    fn killed_for_memory(&self) -> bool {
        let count = |file: &str, key: &str| self.read(file).and_then(|text| figure(&text, key));
        let reached = count("memory.events.local", "oom").or_else(|| count("memory.events", "oom"));
        reached.is_some_and(|times| times > 0) && count("memory.events", "oom_kill").is_some_and(|times| times > 0)
    }

    /// Removes it, when everything in it has ended. Blocks for up to half a second.
    pub(in crate::process) fn remove(&self) {
        self.give_up(true);
    }

    fn give_up(&self, patient: bool) {
        if !self.removed.swap(true, Ordering::Relaxed)
            && let Some(domain) = domain()
        {
            domain.remove(self.directory.clone(), patient);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        self.give_up(false);
    }
}

fn is_stacked(device: &str) -> bool {
    let directory = Path::new("/sys/dev/block").join(device);
    STACKED.iter().any(|kind| directory.join(kind).exists())
}
