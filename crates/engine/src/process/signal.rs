//! Signals: their names, and sending one to exactly the process that was meant.

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use super::table;

/// The name of a signal, such as `SIGKILL`; `None` for a real-time signal.
pub(super) fn name(number: i32) -> Option<&'static str> {
    NAMES
        .iter()
        .find(|(signal, _)| signal.as_raw() == number)
        .map(|(_, name)| *name)
}

/// Signals every process of a group. A group that is gone, or may not be signalled, is left alone: the next look at `/proc` tells.
pub(super) fn send_group(group: Pid, signal: Signal) {
    let _ = kill_process_group(group, signal);
}

/// Signals the process that has this id *and* this start time. The descriptor pins the process before the start time is read, so a
/// stranger that was given the same id meanwhile is never hit.
pub(super) fn send_exact(pid: i32, start: u64, signal: Signal) {
    let Some(raw) = Pid::from_raw(pid) else { return };
    let Ok(pinned) = pidfd_open(raw, PidfdFlags::empty()) else {
        return;
    };
    if table::entry(pid).is_some_and(|entry| entry.start == start) {
        let _ = pidfd_send_signal(pinned, signal);
    }
}

const NAMES: [(Signal, &str); 31] = [
    (Signal::HUP, "SIGHUP"),
    (Signal::INT, "SIGINT"),
    (Signal::QUIT, "SIGQUIT"),
    (Signal::ILL, "SIGILL"),
    (Signal::TRAP, "SIGTRAP"),
    (Signal::ABORT, "SIGABRT"),
    (Signal::BUS, "SIGBUS"),
    (Signal::FPE, "SIGFPE"),
    (Signal::KILL, "SIGKILL"),
    (Signal::USR1, "SIGUSR1"),
    (Signal::SEGV, "SIGSEGV"),
    (Signal::USR2, "SIGUSR2"),
    (Signal::PIPE, "SIGPIPE"),
    (Signal::ALARM, "SIGALRM"),
    (Signal::TERM, "SIGTERM"),
    (Signal::STKFLT, "SIGSTKFLT"),
    (Signal::CHILD, "SIGCHLD"),
    (Signal::CONT, "SIGCONT"),
    (Signal::STOP, "SIGSTOP"),
    (Signal::TSTP, "SIGTSTP"),
    (Signal::TTIN, "SIGTTIN"),
    (Signal::TTOU, "SIGTTOU"),
    (Signal::URG, "SIGURG"),
    (Signal::XCPU, "SIGXCPU"),
    (Signal::XFSZ, "SIGXFSZ"),
    (Signal::VTALARM, "SIGVTALRM"),
    (Signal::PROF, "SIGPROF"),
    (Signal::WINCH, "SIGWINCH"),
    (Signal::IO, "SIGIO"),
    (Signal::POWER, "SIGPWR"),
    (Signal::SYS, "SIGSYS"),
];
