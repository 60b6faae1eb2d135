//! The database's clock, as this process follows it.
//!
//! Leases are judged by one clock, whatever the machines of the nodes say: the server's. Each node measures how far its
//! own counter, which no one sets and which goes on while the machine sleeps, is from the server's time, and measures it
//! again with every beat.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use pensum_core::Time;
use pensum_core::seam::{BoxFuture, Clock};
use rustix::time::{ClockId, clock_gettime};

/// The longest nap between two looks at a clock that may have been corrected.
const LOOK: Duration = Duration::from_secs(1);

/// Microseconds of a counter that only rises.
fn counter() -> i64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

/// The server's time.
#[derive(Debug, Default)]
pub(super) struct DatabaseClock {
    /// The server's time less the counter.
    offset: AtomicI64,
}

/// A question for the server's time under way.
pub(super) struct Asked(i64);

impl DatabaseClock {
    /// Notes that the server is being asked.
    pub(super) fn ask(&self) -> Asked {
        Asked(counter())
    }

    /// Takes in what the server said its time was between then and now.
    pub(super) fn told(&self, asked: Asked, server: i64) {
        let now = counter();
        let (least, most) = (server - now, server - asked.0);
        let offset = self.offset.load(Ordering::Relaxed);
        // The truth is in between. What agrees with that already stays as it is, so that time runs evenly.
        if offset < least || offset > most {
            self.offset.store(least + (most - least) / 2, Ordering::Relaxed);
        }
    }
}

impl Clock for DatabaseClock {
    fn now(&self) -> Time {
        Time::from_micros(counter() + self.offset.load(Ordering::Relaxed))
    }

    fn sleep_until(&self, time: Time) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            loop {
                let left = time.since(self.now());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(LOOK)).await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_takes_the_middle_of_what_is_possible_and_keeps_what_agrees() {
        let clock = DatabaseClock::default();
        let asked = clock.ask();
        let server = counter() + 5_000_000;
        clock.told(asked, server);
        let offset = clock.offset.load(Ordering::Relaxed);
        assert!((offset - 5_000_000).abs() < 1_000_000, "{offset}");
        let asked = Asked(counter() - 2_000);
        clock.told(asked, counter() + offset - 1_000);
        assert_eq!(clock.offset.load(Ordering::Relaxed), offset);
    }
}
