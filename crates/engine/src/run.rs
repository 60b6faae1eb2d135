//! One run of one task on this node: what its handler, the keeper and the completer share about it.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, Ordering, fence};
use std::time::Duration;

use foldhash::HashMap;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use pensum_core::outcome::{Progress, Usage};
use pensum_core::store::{Beat, Claimed, Finish, LOG_LINES_MAX, LeaseRef, LogLine};
use pensum_core::{Json, Name, NewTask, Spec, TaskId, Time};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{Engine, Handler};

/// Most bytes of log messages that are kept of one run.
pub const LOG_BYTES_MAX: usize = 4 << 20;
/// The longest log line that is kept, in bytes; longer ones are cut.
pub const LOG_LINE_BYTES_MAX: usize = 8 << 10;

/// Why a run was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Someone cancelled the task.
    Cancel,
    /// It ran for longer than its `timeout`.
    Timeout,
    /// It was silent for longer than its `heartbeat_timeout`.
    HeartbeatTimeout,
    /// The lease is lost, or can no longer be trusted: another node may run the task by now.
    LeaseLost,
    /// The node shuts down.
    Shutdown,
}

impl StopReason {
    const fn code(self) -> u8 {
        match self {
            StopReason::Cancel => 1,
            StopReason::Timeout => 2,
            StopReason::HeartbeatTimeout => 3,
            StopReason::LeaseLost => 4,
            StopReason::Shutdown => 5,
        }
    }

    const fn from_code(code: u8) -> Option<StopReason> {
        Some(match code {
            1 => StopReason::Cancel,
            2 => StopReason::Timeout,
            3 => StopReason::HeartbeatTimeout,
            4 => StopReason::LeaseLost,
            5 => StopReason::Shutdown,
            _ => return None,
        })
    }
}

/// No time: a clock that does not run.
const NEVER: i64 = i64::MAX;

pub(crate) struct Run {
    pub(crate) engine: Engine,
    pub(crate) handler: Option<Arc<dyn Handler>>,
    pub(crate) lease: LeaseRef,
    pub(crate) namespace: Name,
    pub(crate) spec: Arc<Spec>,
    pub(crate) attempt: u32,
    pub(crate) checkpoint: Option<Json>,
    /// When it was claimed. Timeouts count from here.
    pub(crate) started: Time,
    stop: Stop,
    pause: Pause,
    /// Until when the lease holds by our own clock: send time of the claim or the last renewal, plus its length.
    lease_until: AtomicI64,
    timeout_at: AtomicI64,
    /// The last progress, log line or heartbeat.
    last_life: AtomicI64,
    /// The outcome was taken: whatever the handler still says is not heard.
    concluded: AtomicBool,
    /// The loss of its lease was noted.
    lost: AtomicBool,
    /// There is something in `output` that the store has not seen.
    dirty: AtomicBool,
    output: Mutex<Output>,
    pub(crate) extras: Mutex<Extras>,
}

struct Stop {
    reason: AtomicU8,
    kill_at: AtomicI64,
    killed: AtomicBool,
    waker: AtomicWaker,
    token: OnceLock<CancellationToken>,
}

struct Pause {
    requested: AtomicBool,
    /// The answer that the handler got last.
    seen: AtomicBool,
    changed: Notify,
    /// Standing still since; zero while it runs.
    since: AtomicI64,
    /// Counts local requests, so that a renewal that was sent before one does not undo it.
    epoch: AtomicU32,
}

/// What goes to the store with the next beat.
#[derive(Default)]
struct Output {
    progress: Option<Progress>,
    logs: Vec<LogLine>,
    lines: u64,
    bytes: usize,
    full: bool,
    /// Lines of this run are on their way in a beat, so the finish waits for its answer: else they could come too late.
    in_flight: bool,
    parked: Option<Box<Finish>>,
}

/// What goes to the store with the next checkpoint or the finish.
#[derive(Default)]
pub(crate) struct Extras {
    pub(crate) consumed: Vec<u64>,
    pub(crate) spawn: Vec<NewTask>,
    /// How many writes carried children before the end of the run.
    pub(crate) writes_with_children: u32,
    /// A write with the first so many of `spawn` was given up, and may have been carried out: then there is this step.
    pub(crate) unsure_children: Option<(Name, usize)>,
    pub(crate) usage: Option<Usage>,
    /// Results of durable steps, once they were loaded.
    pub(crate) steps: Option<HashMap<Name, Json>>,
}

impl Run {
    pub(crate) fn new(engine: &Engine, claimed: Claimed, lease_until: Time, now: Time) -> Run {
        let timeout_at = claimed.spec.timeout().map_or(NEVER, |t| now.plus(t).as_micros());
        Run {
            engine: engine.clone(),
            handler: engine.handler(&claimed.spec.handler),
            lease: claimed.lease,
            namespace: claimed.namespace,
            spec: claimed.spec,
            attempt: claimed.lifecycle.attempt,
            checkpoint: claimed.checkpoint,
            started: now,
            stop: Stop {
                reason: AtomicU8::new(0),
                kill_at: AtomicI64::new(NEVER),
                killed: AtomicBool::new(false),
                waker: AtomicWaker::new(),
                token: OnceLock::new(),
            },
            pause: Pause {
                requested: AtomicBool::new(false),
                seen: AtomicBool::new(false),
                changed: Notify::new(),
                since: AtomicI64::new(0),
                epoch: AtomicU32::new(0),
            },
            lease_until: AtomicI64::new(lease_until.as_micros()),
            timeout_at: AtomicI64::new(timeout_at),
            last_life: AtomicI64::new(now.as_micros()),
            concluded: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            dirty: AtomicBool::new(false),
            output: Mutex::new(Output::default()),
            extras: Mutex::new(Extras::default()),
        }
    }

    pub(crate) fn id(&self) -> TaskId {
        self.lease.task
    }

    pub(crate) fn can_pause(&self) -> bool {
        self.handler.as_ref().is_some_and(|h| h.can_pause())
    }

    /// True for the first caller only: it hands the run's outcome on.
    pub(crate) fn conclude(&self) -> bool {
        !self.concluded.swap(true, Ordering::SeqCst)
    }

    pub(crate) fn is_concluded(&self) -> bool {
        self.concluded.load(Ordering::SeqCst)
    }

    /// True for the first caller only: it counts the loss of the lease and says so.
    pub(crate) fn lose(&self) -> bool {
        !self.lost.swap(true, Ordering::SeqCst)
    }
}

/// Stopping.
impl Run {
    /// Asks the handler to stop; after `grace` its future is dropped. The first reason stays, but for a lost lease, which
    /// outranks the others: nothing may be written then.
    pub(crate) fn stop(&self, reason: StopReason, now: Time, grace: Duration) {
        let before = self.stop.reason.load(Ordering::SeqCst);
        if before == 0 || reason == StopReason::LeaseLost {
            self.stop.reason.store(reason.code(), Ordering::SeqCst);
        }
        let kill_at = now.plus(grace).as_micros();
        self.stop.kill_at.fetch_min(kill_at, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if let Some(token) = self.stop.token.get() {
            token.cancel();
        }
    }

    pub(crate) fn stop_reason(&self) -> Option<StopReason> {
        StopReason::from_code(self.stop.reason.load(Ordering::SeqCst))
    }

    /// The token, made when it is first asked for: most handlers never do.
    pub(crate) fn token(&self) -> &CancellationToken {
        let token = self.stop.token.get_or_init(CancellationToken::new);
        // Either this sees the reason, or `stop` sees the token.
        fence(Ordering::SeqCst);
        if self.stop.reason.load(Ordering::SeqCst) != 0 {
            token.cancel();
        }
        token
    }

    /// When the handler's future is dropped, if it was asked to stop.
    pub(crate) fn kill_at(&self) -> Option<Time> {
        let at = self.stop.kill_at.load(Ordering::SeqCst);
        (at != NEVER).then(|| Time::from_micros(at))
    }

    /// Has the handler's future dropped when it is next polled, which this brings about.
    pub(crate) fn kill(&self) {
        self.stop.killed.store(true, Ordering::SeqCst);
        self.stop.waker.wake();
    }

    /// Whether the future is to be dropped; registers `waker` for when that changes.
    pub(crate) fn poll_killed(&self, waker: &std::task::Waker) -> bool {
        self.stop.waker.register(waker);
        self.is_killed()
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.stop.killed.load(Ordering::SeqCst)
    }
}

/// Pausing, and the clocks that stand still meanwhile.
impl Run {
    /// Takes a request of this node's own, which outranks renewals that were sent before it.
    pub(crate) fn request_pause(&self, pause: bool, now: Time) {
        self.pause.epoch.fetch_add(1, Ordering::SeqCst);
        self.set_pause(pause, now);
    }

    pub(crate) fn pause_epoch(&self) -> u32 {
        self.pause.epoch.load(Ordering::SeqCst)
    }

    /// Takes what a renewal said, unless a request overtook it.
    pub(crate) fn renewed_pause(&self, pause: bool, epoch: u32, now: Time) {
        if self.pause_epoch() == epoch && self.pause.requested.load(Ordering::SeqCst) != pause {
            self.set_pause(pause, now);
        }
    }

    fn set_pause(&self, pause: bool, now: Time) {
        self.pause.requested.store(pause, Ordering::SeqCst);
        if !pause {
            self.unfreeze(now);
        }
        self.pause.changed.notify_waiters();
    }

    pub(crate) fn pause_requested(&self) -> bool {
        self.pause.requested.load(Ordering::SeqCst)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.pause.since.load(Ordering::SeqCst) != 0
    }

    /// Returns when the request is another than the one returned last.
    pub(crate) async fn pause_changed(&self) -> bool {
        loop {
            let mut changed = std::pin::pin!(self.pause.changed.notified());
            changed.as_mut().enable();
            let requested = self.pause_requested();
            if self.pause.seen.swap(requested, Ordering::SeqCst) != requested {
                return requested;
            }
            changed.await;
        }
    }

    /// Stops the clocks.
    pub(crate) fn freeze(&self, now: Time) {
        let _ = self
            .pause
            .since
            .compare_exchange(0, now.as_micros(), Ordering::SeqCst, Ordering::SeqCst);
        // A resume that came in between has nothing to thaw, so look again.
        if !self.pause_requested() {
            self.unfreeze(now);
        }
    }

    fn unfreeze(&self, now: Time) {
        let since = self.pause.since.swap(0, Ordering::SeqCst);
        if since == 0 {
            return;
        }
        let stood = now.as_micros().saturating_sub(since).max(0);
        let moved = |at: i64| (at != NEVER).then(|| at.saturating_add(stood));
        let _ = self.timeout_at.fetch_update(Ordering::SeqCst, Ordering::SeqCst, moved);
        self.last_life.store(now.as_micros(), Ordering::SeqCst);
    }

    /// The clock that has run out, if one has.
    pub(crate) fn overdue(&self, now: Time) -> Option<StopReason> {
        if self.is_paused() {
            return None;
        }
        if self.timeout_at.load(Ordering::SeqCst) <= now.as_micros() {
            return Some(StopReason::Timeout);
        }
        let silence = self.spec.heartbeat_timeout()?;
        let last = Time::from_micros(self.last_life.load(Ordering::SeqCst));
        (last.plus(silence) <= now).then_some(StopReason::HeartbeatTimeout)
    }

    pub(crate) fn lives(&self, now: Time) {
        self.last_life.store(now.as_micros(), Ordering::SeqCst);
    }

    pub(crate) fn lease_until(&self) -> Time {
        Time::from_micros(self.lease_until.load(Ordering::SeqCst))
    }

    pub(crate) fn renewed_until(&self, until: Time) {
        self.lease_until.fetch_max(until.as_micros(), Ordering::SeqCst);
    }
}

/// Progress and logs.
impl Run {
    pub(crate) fn set_progress(&self, progress: Progress) {
        self.output.lock().progress = Some(progress);
        self.dirty.store(true, Ordering::SeqCst);
    }

    /// Keeps a line for the next beat; false when the run's share is used up.
    pub(crate) fn add_line(&self, mut line: LogLine) -> bool {
        tidy(&mut line.message);
        let mut output = self.output.lock();
        if output.full {
            return false;
        }
        output.lines += 1;
        output.bytes += line.message.len();
        if output.lines >= LOG_LINES_MAX || output.bytes > LOG_BYTES_MAX {
            output.full = true;
            line.message = format!(
                "[log truncated: more than {LOG_LINES_MAX} lines or {LOG_BYTES_MAX} bytes in this run; the rest is dropped]"
            );
        }
        output.logs.push(line);
        drop(output);
        self.dirty.store(true, Ordering::SeqCst);
        true
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::SeqCst)
    }

    /// The beat to send now.
    pub(crate) fn beat(&self) -> Beat {
        let mut beat = Beat {
            lease: self.lease,
            progress: None,
            logs: Vec::new(),
        };
        if self.dirty.swap(false, Ordering::SeqCst) {
            let mut output = self.output.lock();
            beat.progress = output.progress.take();
            beat.logs = std::mem::take(&mut output.logs);
            output.in_flight = true;
        }
        beat
    }

    /// A beat was answered; `unsent` is what it carried, when it did not arrive. Gives the finish that waited for it.
    pub(crate) fn beat_answered(&self, unsent: Option<(Option<Progress>, Vec<LogLine>)>) -> Option<Finish> {
        let mut output = self.output.lock();
        output.in_flight = false;
        if let Some((progress, mut logs)) = unsent {
            output.progress = output.progress.take().or(progress);
            logs.append(&mut output.logs);
            output.logs = logs;
            self.dirty.store(true, Ordering::SeqCst);
        }
        let mut finish = *output.parked.take()?;
        finish.progress = output.progress.take();
        finish.logs = std::mem::take(&mut output.logs);
        self.dirty.store(false, Ordering::SeqCst);
        Some(finish)
    }

    /// Puts what was not sent yet into the finish, and gives it back, unless it has to wait for a beat.
    pub(crate) fn seal(&self, mut finish: Finish) -> Option<Finish> {
        let mut output = self.output.lock();
        if output.in_flight {
            output.parked = Some(Box::new(finish));
            return None;
        }
        finish.progress = output.progress.take();
        finish.logs = std::mem::take(&mut output.logs);
        self.dirty.store(false, Ordering::SeqCst);
        Some(finish)
    }
}

/// Cuts a line to its bound and frees it of line ends and NUL, which not every store can keep.
pub(crate) fn tidy(message: &mut String) {
    if message.len() > LOG_LINE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(LOG_LINE_BYTES_MAX));
        message.push('…');
    }
    if message.contains('\0') {
        *message = message.replace('\0', "\u{FFFD}");
    }
    let end = message.trim_end_matches(['\n', '\r']).len();
    message.truncate(end);
}
