//! A machine that a node runs on: its clock, and a process that can stand still or die between any two moments at which
//! it waits for something.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use pensum_core::Time;
use pensum_core::seam::{BoxFuture, Clock, Random, Seams, SeededRandom, Spawn};

/// When every world begins.
pub(crate) const DAWN: &str = "2026-03-01T12:00:00Z";

/// The time of the world, or of a machine whose clock is behind.
pub(crate) struct WorldClock {
    pub(crate) start: tokio::time::Instant,
    pub(crate) dawn: Time,
    pub(crate) behind: Duration,
}

impl Clock for WorldClock {
    fn now(&self) -> Time {
        self.dawn.plus(self.start.elapsed()).minus(self.behind)
    }

    fn sleep_until(&self, time: Time) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(time.since(self.now())))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Runs,
    Frozen,
    Dead,
}

struct Process {
    life: Life,
    /// Whom to wake when that changes, by the number of the future.
    wakers: BTreeMap<u64, Waker>,
}

/// One incarnation of a node, as the operating system sees it: everything that it does passes through here.
pub(crate) struct Machine {
    process: Mutex<Process>,
    futures: AtomicU64,
    died: tokio::sync::Notify,
}

impl Machine {
    pub(crate) fn new() -> Arc<Machine> {
        Arc::new(Machine {
            process: Mutex::new(Process {
                life: Life::Runs,
                wakers: BTreeMap::new(),
            }),
            futures: AtomicU64::new(0),
            died: tokio::sync::Notify::new(),
        })
    }

    /// What the engine of this incarnation asks for time, randomness and spawning.
    pub(crate) fn seams(self: &Arc<Machine>, clock: WorldClock, seed: u64) -> Seams {
        Seams {
            clock: Arc::new(clock),
            random: Arc::new(SeededRandom::new(seed)) as Arc<dyn Random>,
            spawn: Arc::new(Spawner(Arc::clone(self))),
        }
    }

    fn turn(&self, life: Life) -> bool {
        let mut process = self.process.lock();
        if process.life == Life::Dead || process.life == life {
            return false;
        }
        process.life = life;
        let wakers = std::mem::take(&mut process.wakers);
        drop(process);
        wakers.into_values().for_each(Waker::wake);
        if life == Life::Dead {
            self.died.notify_waiters();
        }
        true
    }

    /// Ends the process without a word. False when it is dead already.
    pub(crate) fn kill(&self) -> bool {
        self.turn(Life::Dead)
    }

    /// Lets the process stand still.
    pub(crate) fn freeze(&self) -> bool {
        self.turn(Life::Frozen)
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) -> bool {
        self.turn(Life::Runs)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.process.lock().life == Life::Dead
    }

    /// Returns once the process is dead.
    pub(crate) async fn died(&self) {
        let mut died = std::pin::pin!(self.died.notified());
        died.as_mut().enable();
        if !self.is_dead() {
            died.await;
        }
    }

    /// Carries on with a future as long as the process lives; `None` when it dies first.
    pub(crate) async fn run<T>(self: &Arc<Machine>, future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        let number = self.futures.fetch_add(1, Ordering::Relaxed);
        let forget = Forget(self, number);
        let ended = poll_fn(|context| self.poll(number, future.as_mut(), context)).await;
        drop(forget);
        ended
    }

    fn poll<F: Future + ?Sized>(
        &self,
        number: u64,
        future: Pin<&mut F>,
        context: &mut Context<'_>,
    ) -> Poll<Option<F::Output>> {
        {
            let mut process = self.process.lock();
            if process.life == Life::Dead {
                return Poll::Ready(None);
            }
            process.wakers.insert(number, context.waker().clone());
            if process.life == Life::Frozen {
                return Poll::Pending;
            }
        }
        future.poll(context).map(Some)
    }
}

struct Forget<'a>(&'a Machine, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.process.lock().wakers.remove(&self.1);
    }
}

struct Spawner(Arc<Machine>);

impl Spawn for Spawner {
    fn spawn(&self, _name: &'static str, future: BoxFuture<'static, ()>) {
        let machine = Arc::clone(&self.0);
        tokio::spawn(async move {
            machine.run(future).await;
        });
    }
}
