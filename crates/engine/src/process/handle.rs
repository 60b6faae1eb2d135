//! Control of a running command from any task: signals, stop, pause, usage.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal};
use tokio::time::{Instant, sleep};

use super::cgroup::{Figures, Group};
use super::signal;
use super::table::{self, look};
use super::tree::Tree;
use super::usage::{Clock, Usage};

/// How long the killing of a tree may take before the rest is reported as survivors. Only a process in an uninterruptible system call,
/// or one of another user, outlives it.
pub(super) const SWEEP_MAX: Duration = Duration::from_secs(5);
/// Longest grace of a stop; a longer one is cut to it.
const GRACE_MAX: Duration = Duration::from_secs(366 * 86_400);
/// How often a pause looks for members that do not stand still yet.
const PAUSE_ROUNDS: u32 = 5;
/// First and longest nap between two looks while waiting for members to end.
const NAP_MIN: Duration = Duration::from_millis(2);
const NAP_MAX: Duration = Duration::from_millis(50);

/// Controls a running command. Cheap to clone, usable while [`Process::wait`](super::Process::wait) is in progress, and without effect
/// once the command has ended. It does not keep the command alive: when the [`Process`](super::Process) is dropped, the tree is killed.
#[derive(Clone)]
pub struct ProcessHandle {
    pub(super) shared: Arc<Shared>,
}

/// How a [`ProcessHandle::stop`] ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// Some of the tree outlived the grace and was killed.
    pub forced: bool,
    /// Ids of processes that could not be killed within five seconds. Empty unless one hangs in the kernel or belongs to another user.
    pub survivors: Vec<u32>,
}

impl ProcessHandle {
    /// The id of the command's first process, which is also that of its process group.
    pub fn pid(&self) -> u32 {
        self.shared.root.as_raw_nonzero().get().cast_unsigned()
    }

    /// Asks the whole tree to end (`SIGTERM`). A paused tree is resumed so that it can. Does not wait for the end.
    pub async fn terminate(&self) {
        self.shared.terminate().await;
    }

    /// Kills the whole tree (`SIGKILL`). Does not wait for the end; [`stop`](Self::stop) with no grace does.
    pub async fn kill(&self) {
        self.shared.kill().await;
    }

    /// Ends the whole tree: `SIGTERM`, then `SIGKILL` to what is left after `grace`; returns when nothing of it is left. A second stop
    /// with a shorter grace shortens that of the first. Should this future be dropped, a `wait` in progress carries the stop out.
    pub async fn stop(&self, grace: Duration) -> Stopped {
        let until = Instant::now() + grace.min(GRACE_MAX);
        {
            let mut state = self.shared.state.lock();
            state.stop_until = Some(state.stop_until.map_or(until, |other| other.min(until)));
        }
        self.terminate().await;
        let mut nap = NAP_MIN;
        while self.shared.anything_lives().await {
            let left = self
                .shared
                .stop_until()
                .unwrap_or(until)
                .saturating_duration_since(Instant::now());
            if left.is_zero() {
                let survivors = self.shared.sweep().await;
                return Stopped {
                    forced: true,
                    survivors,
                };
            }
            sleep(nap.min(left)).await;
            nap = (nap * 2).min(NAP_MAX);
        }
        Stopped {
            forced: false,
            survivors: Vec::new(),
        }
    }

    /// Stops the whole tree where it stands (`SIGSTOP`) and its clock with it: the wall limit does not count the time until
    /// [`resume`](Self::resume).
    pub async fn pause(&self) {
        self.shared.state.lock().clock.halt();
        self.shared.signal_group(Signal::STOP);
        for _ in 0..PAUSE_ROUNDS {
            self.shared.look().await;
            if self.shared.hold_strays() {
                return;
            }
            sleep(NAP_MIN).await;
        }
    }

    /// Lets a paused tree go on (`SIGCONT`).
    pub async fn resume(&self) {
        self.shared.state.lock().resume();
        self.shared.signal_group(Signal::CONT);
        self.shared.look().await;
        self.shared.signal_strays(Signal::CONT);
    }

    /// Whether the tree is paused.
    pub fn is_paused(&self) -> bool {
        self.shared.state.lock().paused()
    }

    /// What the tree used until the last sample, at most [`SAMPLE_INTERVAL`](super::SAMPLE_INTERVAL) ago.
    pub fn usage(&self) -> Usage {
        self.shared.usage()
    }
}

/// What a command's waiter and its handles share.
pub(super) struct Shared {
    pub(super) root: Pid,
    /// The command's cgroup; `None` where commands are sampled.
    pub(super) group: Option<Arc<Group>>,
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    pub(super) tree: Tree,
    pub(super) clock: Clock,
    /// What the command's cgroup counted until the last sample.
    pub(super) figures: Figures,
    /// The first process was reaped, or may be at any moment: its id may go to another process, so the group is not signalled any more.
    /// Set under the lock under which signals are sent.
    pub(super) reaped: bool,
    /// The first process has ended.
    ended: bool,
    stop_until: Option<Instant>,
}

impl State {
    pub(super) fn paused(&self) -> bool {
        !self.clock.running() && !self.ended
    }

    /// Lets the clock go on; whether it had been stopped by a pause.
    fn resume(&mut self) -> bool {
        let paused = self.paused();
        if paused {
            self.clock.go_on();
        }
        paused
    }
}

impl Shared {
    pub(super) fn new(root: Pid, tree: Tree, clock: Clock, group: Option<Arc<Group>>) -> Self {
        Self {
            root,
            group,
            state: Mutex::new(State {
                tree,
                clock,
                figures: Figures::default(),
                reaped: false,
                ended: false,
                stop_until: None,
            }),
        }
    }

    pub(super) fn usage(&self) -> Usage {
        let state = self.state.lock();
        let counted = self.group.is_some().then_some(&state.figures);
        Usage::of(&state.tree, counted, state.clock.elapsed())
    }

    /// When the grace of a stop in progress ends.
    pub(super) fn stop_until(&self) -> Option<Instant> {
        self.state.lock().stop_until
    }

    /// Whether a stop in progress has used up its grace.
    pub(super) fn stop_overdue(&self) -> bool {
        self.stop_until().is_some_and(|until| Instant::now() >= until)
    }

    /// See [`ProcessHandle::terminate`].
    pub(super) async fn terminate(&self) {
        self.signal_group(Signal::TERM);
        let paused = self.state.lock().resume();
        if paused {
            self.signal_group(Signal::CONT);
        }
        self.look().await;
        self.signal_strays(Signal::TERM);
        if paused {
            self.signal_strays(Signal::CONT);
        }
    }

    /// See [`ProcessHandle::kill`].
    pub(super) async fn kill(&self) {
        self.signal_group(Signal::KILL);
        self.kill_cgroup().await;
        self.look().await;
        self.signal_strays(Signal::KILL);
    }

    /// Takes the last figures of the first process, which has ended and was not reaped, and stops the clock for good.
    pub(super) fn root_ended(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        state.clock.halt();
        state.tree.update_root();
    }

    /// Takes in a look that begins now.
    pub(super) async fn look(&self) {
        self.see(look).await;
    }

    /// Takes in a look, made off the threads of the runtime.
    pub(super) async fn see(&self, look: fn() -> Arc<table::Table>) {
        let group = self.group.clone();
        let see = move || {
            let table = look();
            // After the look: an id that was given to another process meanwhile then names one that is not in it.
            let housed: HashSet<i32> = group.iter().flat_map(|group| group.pids()).collect();
            (table, housed)
        };
        let seen = tokio::task::spawn_blocking(see.clone()).await;
        let (table, housed) = seen.unwrap_or_else(|_| see());
        self.take_in(&table, &housed);
    }

    fn take_in(&self, table: &table::Table, housed: &HashSet<i32>) {
        let mut state = self.state.lock();
        let group_is_ours = !state.reaped;
        state.tree.update(table, group_is_ours, housed);
    }

    pub(super) async fn anything_lives(&self) -> bool {
        self.look().await;
        self.state.lock().tree.living().next().is_some()
    }

    pub(super) fn signal_group(&self, signal: Signal) {
        let state = self.state.lock();
        if !state.reaped {
            signal::send_group(self.root, signal);
        }
    }

    /// Signals the known living members that a signal to the group does not reach.
    pub(super) fn signal_strays(&self, signal: Signal) {
        let state = self.state.lock();
        let group = self.root.as_raw_nonzero().get();
        for member in state
            .tree
            .living()
            .filter(|member| state.reaped || member.group != group)
        {
            signal::send_exact(member.pid, member.start, signal);
        }
    }

    /// While paused, stops the known members that still run. Whether nothing was left to do.
    pub(super) fn hold_strays(&self) -> bool {
        let state = self.state.lock();
        if !state.paused() {
            return true;
        }
        let mut still = true;
        for member in state.tree.living().filter(|member| !member.stopped) {
            still = false;
            signal::send_exact(member.pid, member.start, Signal::STOP);
        }
        still
    }

    /// Kills the tree until a look shows nothing of it, or [`SWEEP_MAX`] is over; the ids of what is left.
    pub(super) async fn sweep(&self) -> Vec<u32> {
        let deadline = Instant::now() + SWEEP_MAX;
        let mut nap = NAP_MIN;
        loop {
            if !self.anything_lives().await {
                return Vec::new();
            }
            if Instant::now() >= deadline {
                return self.survivors();
            }
            self.signal_group(Signal::KILL);
            self.kill_cgroup().await;
            self.signal_strays(Signal::KILL);
            sleep(nap).await;
            nap = (nap * 2).min(NAP_MAX);
        }
    }

    /// Kills what is known of the tree at once, and looks for the rest from a thread that may block. For a waiter that was dropped: its
    /// first process is reaped by the runtime from here on.
    pub(super) fn abandon(self: &Arc<Self>) {
        self.signal_group(Signal::KILL);
        self.signal_strays(Signal::KILL);
        self.state.lock().reaped = true;
        let shared = Arc::clone(self);
        let sweep = move || shared.sweep_blocking();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(sweep)),
            Err(_) => sweep(),
        }
    }

    fn sweep_blocking(&self) {
        if let Some(group) = &self.group {
            group.kill();
        }
        // Two looks in a row, since a process being started during the first may be missing in it.
        for _ in 0..2 {
            self.take_in(&look(), &HashSet::new());
            self.signal_strays(Signal::KILL);
        }
        if let Some(group) = &self.group {
            group.remove();
        }
    }

    fn survivors(&self) -> Vec<u32> {
        let survivors: Vec<u32> = self
            .state
            .lock()
            .tree
            .living()
            .map(|member| member.pid.cast_unsigned())
            .collect();
        tracing::warn!(
            command = self.root.as_raw_nonzero().get(),
            ?survivors,
            "processes of a command could not be killed"
        );
        survivors
    }
}
