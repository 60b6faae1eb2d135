//! A look at processes through `/proc`.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// The fields of `/proc/PID/stat` after the name; empty when there is no such process.
fn stat(pid: i32) -> Vec<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.to_owned())
        .unwrap_or_default();
    rest.split_whitespace().map(str::to_owned).collect()
}

/// The state letter of a process: R, S, T, Z, …
pub(crate) fn state(pid: i32) -> Option<char> {
    stat(pid).first()?.chars().next()
}

/// True while it runs, sleeps or is stopped; a zombie is dead.
pub(crate) fn alive(pid: i32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Processor time used so far, in clock ticks.
pub(crate) fn cpu_ticks(pid: i32) -> u64 {
    let stat = stat(pid);
    [11, 12]
        .iter()
        .filter_map(|at| stat.get(*at)?.parse::<u64>().ok())
        .sum()
}

/// Living processes whose arguments name `path`, this one left out.
pub(crate) fn marked(path: &Path) -> Vec<i32> {
    let mark = path.as_os_str().as_bytes();
    let own = i32::try_from(std::process::id()).unwrap();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    ids.filter(|&pid| pid != own)
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.windows(mark.len()).any(|part| part == mark)
        })
        .filter(|&pid| alive(pid))
        .collect()
}

/// Kills every process whose arguments name `path`: what a killed node may have left.
pub(crate) fn kill_marked(path: &Path) {
    for pid in marked(path) {
        if let Some(pid) = Pid::from_raw(pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}
