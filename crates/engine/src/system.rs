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
        Box::pin(async move {
            loop {
                let left = time.since(self.now());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(LOOK_MAX)).await;
            }
        })
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
