//! The watch over a running tree: samples at intervals, and limits enforced by them.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep};

use super::handle::Shared;
use super::spec::Limits;
use super::table::{look_within, proportional};
use super::wait::ExitReason;

/// How often the whole tree is measured. A command with a memory or processor limit is measured twice as often.
pub const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// Time between the `SIGTERM` and the `SIGKILL` to a command that reached its wall limit.
pub const WALL_GRACE: Duration = Duration::from_secs(1);

/// How often the whole tree is looked at when it is in a cgroup, which is read as often as others are looked at.
const LOOK_INTERVAL_IN_CGROUP: Duration = Duration::from_millis(200);
/// Time between two rounds of signals to a tree that is over a limit.
const KILL_AGAIN: Duration = Duration::from_millis(20);
/// Milliseconds from the start at which the first process alone is read, so that a command of a few milliseconds has figures too.
const EARLY_SAMPLES_MS: [u64; 5] = [0, 2, 5, 12, 25];
/// A look at `/proc` of this age, made for another command, serves as a sample.
const SAMPLE_AGE: Duration = Duration::from_millis(20);
/// Time between two findings of too much memory, both needed: a process that is just being started shares the memory of its parent for
/// a moment, and would count twice.
const MEMORY_CONFIRM: Duration = Duration::from_millis(10);

/// Samples the tree and enforces its limits until the first process has ended. The limit that ended it, if one did.
pub(super) async fn watch(shared: &Shared, exit: &AsyncFd<OwnedFd>, limits: &Limits) -> Option<ExitReason> {
    let started = Instant::now();
    let mut early = EARLY_SAMPLES_MS.into_iter().map(Duration::from_millis).peekable();
    let interval = if limits.memory.is_some() || limits.cpu_seconds.is_some() {
        SAMPLE_INTERVAL / 2
    } else {
        SAMPLE_INTERVAL
    };
    let look_interval = if shared.group.is_some() {
        LOOK_INTERVAL_IN_CGROUP
    } else {
        Duration::ZERO
    };
    let mut verdict: Option<(ExitReason, Instant)> = None;
    let mut next_look = started;
    loop {
        let nap = match (early.peek(), verdict) {
            (_, Some(_)) => KILL_AGAIN,
            (Some(at), None) => at.saturating_sub(started.elapsed()),
            (None, None) => interval,
        };
        tokio::select! {
            biased;
            _ = exit.readable() => return verdict.map(|(reason, _)| reason),
            () = sleep(nap.min(until_wall(shared, limits))) => {}
        }
        if early.peek().is_some_and(|at| *at <= started.elapsed()) {
            early.next();
            shared.state.lock().tree.update_root();
        } else {
            shared.count().await;
            if Instant::now() >= next_look {
                shared.see(|| look_within(SAMPLE_AGE)).await;
                shared.house_strays().await;
                next_look = Instant::now() + look_interval;
            }
            shared.hold_strays();
        }
        if verdict.is_none() {
            verdict = exceeded(shared, limits).await.map(|reason| (reason, Instant::now()));
            if let Some((ExitReason::WallExceeded, _)) = verdict {
                shared.terminate().await;
            }
        }
        let kill = verdict.is_some_and(|(reason, at)| reason != ExitReason::WallExceeded || at.elapsed() >= WALL_GRACE);
        if kill || shared.stop_overdue() {
            shared.kill().await;
        }
    }
}

/// Time left until the wall limit; for ever without one, while paused, and past it.
fn until_wall(shared: &Shared, limits: &Limits) -> Duration {
    let Some(wall) = limits.wall else { return Duration::MAX };
    let state = shared.state.lock();
    let left = wall.saturating_sub(state.clock.elapsed());
    if left.is_zero() || !state.clock.running() {
        Duration::MAX
    } else {
        left
    }
}

async fn exceeded(shared: &Shared, limits: &Limits) -> Option<ExitReason> {
    let (usage, out_of_memory) = (shared.usage(), shared.state.lock().figures.out_of_memory);
    if out_of_memory {
        return Some(ExitReason::MemoryExceeded);
    }
    if limits.cpu_seconds.is_some_and(|limit| usage.cpu_seconds > limit) {
        return Some(ExitReason::CpuExceeded);
    }
    if let Some(limit) = limits.memory
        && memory_exceeds(shared, limit).await
    {
        return Some(ExitReason::MemoryExceeded);
    }
    limits
        .wall
        .is_some_and(|limit| usage.wall_seconds >= limit.as_secs_f64())
        .then_some(ExitReason::WallExceeded)
}

/// Whether the tree uses more memory than `limit` bytes, found twice. The sum of resident sizes, which costs nothing, counts shared
/// pages for each process that shares them; only where it is over the limit is each page counted once.
async fn memory_exceeds(shared: &Shared, limit: u64) -> bool {
    for round in 0..2 {
        if round > 0 {
            sleep(MEMORY_CONFIRM).await;
            shared.look().await;
        }
        let members = {
            let state = shared.state.lock();
            if state.tree.resident() <= limit {
                return false;
            }
            state.tree.memory_holders()
        };
        let sum = move || {
            members
                .into_iter()
                .map(|(pid, resident)| proportional(pid).unwrap_or(resident))
                .sum::<u64>()
        };
        match tokio::task::spawn_blocking(sum).await {
            Ok(bytes) if bytes > limit => {}
            _ => return false,
        }
    }
    true
}
