//! The one seam for time, randomness and spawning, so that a simulation can own all three.
//!
//! The engine holds a [`Seams`] and asks it; clippy's `disallowed-methods` bans the ways around it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::Time;

/// A boxed future, as object-safe traits return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where the time comes from.
pub trait Clock: Send + Sync + 'static {
    /// The present.
    fn now(&self) -> Time;

    /// Returns once [`Clock::now`] is at or after `time`; at once when it is already. Where the clock is set back
    /// meanwhile, returns once the time that was left has passed.
    fn sleep_until(&self, time: Time) -> BoxFuture<'_, ()>;
}

/// Where randomness comes from.
pub trait Random: Send + Sync + 'static {
    /// 64 random bits.
    fn bits(&self) -> u64;

    /// A number drawn evenly from `[0, 1)`.
    fn unit(&self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Runs futures in the background.
pub trait Spawn: Send + Sync + 'static {
    /// Starts the future; the name is for people who read traces.
    fn spawn(&self, name: &'static str, future: BoxFuture<'static, ()>);
}

/// All three, cheap to clone.
#[derive(Clone)]
pub struct Seams {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
    /// Spawning.
    pub spawn: Arc<dyn Spawn>,
}

impl std::fmt::Debug for Seams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seams")
    }
}

impl Seams {
    /// The present.
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// Starts a future in the background.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        self.spawn.spawn(name, Box::pin(future));
    }
}

/// Randomness that a seed repeats.
pub struct SeededRandom(Mutex<StdRng>);

impl SeededRandom {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> SeededRandom {
        SeededRandom(Mutex::new(StdRng::seed_from_u64(seed)))
    }
}

impl Random for SeededRandom {
    fn bits(&self) -> u64 {
        self.0.lock().next_u64()
    }
}

/// A clock that stands still until it is moved; sleepers wake when it passes their time.
pub struct ManualClock {
    now: Mutex<Time>,
    moved: tokio::sync::watch::Sender<Time>,
}

impl ManualClock {
    /// A clock that shows `now`.
    pub fn new(now: Time) -> ManualClock {
        ManualClock {
            now: Mutex::new(now),
            moved: tokio::sync::watch::Sender::new(now),
        }
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: std::time::Duration) {
        let mut now = self.now.lock();
        *now = now.plus(by);
        self.moved.send_replace(*now);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Time {
        *self.now.lock()
    }

    fn sleep_until(&self, time: Time) -> BoxFuture<'_, ()> {
        let mut moved = self.moved.subscribe();
        Box::pin(async move {
            // The sender lives in `self`, so waiting cannot fail while we borrow it.
            let _ = moved.wait_for(|now| *now >= time).await;
        })
    }
}
