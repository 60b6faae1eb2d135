//! The real clock, randomness and spawning: the only place of the engine that asks the operating system for them.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pensum_core::Time;
use pensum_core::seam::{BoxFuture, Clock, Random, Seams, Spawn};

/// The longest that [`SystemClock`] sleeps without a look at the clock: after a machine was suspended, or its clock
/// set, sleepers notice within this time.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// The clock of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the seam that everything else asks")]
    fn now(&self) -> Time {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Time::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    fn sleep_until(&self, time: Time) -> BoxFuture<'_, ()> {
        Box::pin(sleep_until(|| self.now(), time))
    }
}

/// Sleeps in short naps, with a look at the clock after each. A clock that was set back makes nobody oversleep: no loop
/// of a node may stand still until the clock has caught up.
async fn sleep_until(now: impl Fn() -> Time, time: Time) {
    let (mut end, mut seen) = (time, now());
    loop {
        let nap = end.since(seen).min(LOOK_MAX);
        if nap.is_zero() {
            return;
        }
        tokio::time::sleep(nap).await;
        let present = now();
        if present < seen {
            end = end.minus(seen.since(present) + nap);
        }
        seen = present;
    }
}

/// The randomness of the machine, from a generator fit for secrets.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    #[expect(clippy::disallowed_methods, reason = "this is the seam that everything else asks")]
    fn bits(&self) -> u64 {
        rand::Rng::next_u64(&mut rand::rng())
    }
}

/// Spawns on the tokio runtime that the caller runs in.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokioSpawn;

impl Spawn for TokioSpawn {
    fn spawn(&self, _name: &'static str, future: BoxFuture<'static, ()>) {
        drop(tokio::spawn(future));
    }
}

/// The real seams.
pub fn system_seams() -> Seams {
    Seams {
        clock: Arc::new(SystemClock),
        random: Arc::new(SystemRandom),
        spawn: Arc::new(TokioSpawn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Sleeps ten seconds, by a clock that shows `shift` seconds less from the third look on; answers how long that took.
    async fn sleep_ten_seconds(shift: u64) -> Duration {
        let looks = AtomicU64::new(0);
        let start = tokio::time::Instant::now();
        let noon = Time::from_micros(1_800_000_000_000_000);
        let now = || {
            let shift = if looks.fetch_add(1, Ordering::Relaxed) < 2 {
                0
            } else {
                shift
            };
            noon.plus(start.elapsed()).minus(Duration::from_secs(shift))
        };
        sleep_until(now, noon.plus(Duration::from_secs(10))).await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_back_makes_nobody_oversleep() {
        let nap = Duration::from_secs(1);
        for shift in [0, 60, 86_400] {
            let took = sleep_ten_seconds(shift).await;
            assert!(took >= 10 * nap && took <= 11 * nap, "{shift}: {took:?}");
        }
    }
}
