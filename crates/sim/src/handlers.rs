//! What the tasks of a world do: each acts out its plan, and writes down what it did where no store can lie about it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pensum_core::{ErrorInfo, Json, Name, NewTask, Outcome, Spec, TaskId, Wait};
use pensum_engine::{Context, Handler};
use serde::{Deserialize, Serialize};

use crate::history::{Executor, History, NodeName, Returned, What};
use crate::machine::Machine;
use crate::scenario::Act;

/// The handler of everything but [`Act::Pausable`].
pub const ACT: &str = "act";
/// The handler of [`Act::Pausable`], which can pause.
pub const PAUSABLE: &str = "pausable";
/// The handler of what agents can do, too.
pub const COMMON: &str = "common";
/// The signal that [`Act::AwaitSignal`] waits for.
pub const SIGNAL: &str = "go";

/// Parameters of a task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) label: String,
    pub(crate) act: Act,
}

/// The result of a task that completed: which run it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Proof {
    pub(crate) run: u64,
}

/// What the handlers of all nodes of a world share.
pub(crate) struct Stage {
    pub(crate) history: Arc<History>,
    runs: AtomicU64,
    deaths: Mutex<BTreeMap<TaskId, u32>>,
}

impl Stage {
    pub(crate) fn new(history: Arc<History>) -> Stage {
        Stage {
            history,
            runs: AtomicU64::new(1),
            deaths: Mutex::default(),
        }
    }

    /// The number of the next run.
    pub(crate) fn next_run(&self) -> u64 {
        self.runs.fetch_add(1, Ordering::Relaxed)
    }

    /// How often a task has come to where it may kill, this time included.
    pub(crate) fn death_of(&self, task: TaskId) -> u32 {
        let mut deaths = self.deaths.lock();
        let deaths = deaths.entry(task).or_insert(0);
        *deaths += 1;
        *deaths
    }
}

/// Acts on one incarnation of a node.
pub(crate) struct Actor {
    pub(crate) stage: Arc<Stage>,
    pub(crate) node: NodeName,
    pub(crate) machine: Arc<Machine>,
    pub(crate) can_pause: bool,
}

struct Run {
    stage: Arc<Stage>,
    number: u64,
    task: TaskId,
}

impl Run {
    fn returns(&self, how: Returned) {
        self.stage.history.add(What::Returns {
            run: self.number,
            task: self.task,
            how,
        });
    }

    fn done(&self) -> Outcome {
        self.returns(Returned::Done);
        Outcome::Done(Json::of(&Proof { run: self.number }).unwrap_or_else(|_| Json::null()))
    }

    fn failed(&self, error: ErrorInfo) -> Outcome {
        self.returns(Returned::Failed);
        Outcome::Retry { error, after: None }
    }

    fn stopped(&self) -> Outcome {
        self.returns(Returned::Stopped);
        Outcome::Cancelled
    }

    fn later(&self, outcome: Outcome) -> Outcome {
        self.returns(Returned::Later);
        outcome
    }
}

/// Sleeps; false when it is to stop before.
async fn work(ctx: &Context, ms: u64) -> bool {
    tokio::select! {
        biased;
        () = ctx.cancellation().cancelled() => false,
        () = tokio::time::sleep(Duration::from_millis(ms)) => true,
    }
}

fn failure() -> ErrorInfo {
    ErrorInfo::new("failed", "as its plan says")
}

#[async_trait]
impl Handler for Actor {
    fn can_pause(&self) -> bool {
        self.can_pause
    }

    async fn run(&self, ctx: Context) -> Outcome {
        let run = Run {
            number: self.stage.next_run(),
            stage: Arc::clone(&self.stage),
            task: ctx.id(),
        };
        run.stage.history.add(What::Runs {
            run: run.number,
            task: run.task,
            executor: Executor::Node(self.node),
            attempt: ctx.attempt(),
        });
        let part: Part = match ctx.parameters() {
            Ok(part) => part,
            Err(error) => return Outcome::Fail(error),
        };
        match part.act {
            Act::Work { ms } => match work(&ctx, ms).await {
                true => run.done(),
                false => run.stopped(),
            },
            Act::Fail { attempts, ms } => match work(&ctx, ms).await {
                true if ctx.attempt() <= attempts => run.failed(failure()),
                true => run.done(),
                false => run.stopped(),
            },
            Act::FailForGood => {
                run.returns(Returned::FailedForGood);
                Outcome::Fail(failure())
            }
            Act::Panic { attempts } if ctx.attempt() <= attempts => {
                run.returns(Returned::Panicked);
                // Past the hook that would print it: this one is part of the play.
                std::panic::resume_unwind(Box::new("as its plan says"))
            }
            Act::Panic { .. } => run.done(),
            Act::Hang => {
                ctx.cancellation().cancelled().await;
                run.stopped()
            }
            Act::Stubborn { ms } => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                run.done()
            }
            Act::Steps { count, ms } => steps(&ctx, &run, count, ms).await,
            Act::Again { times } => {
                let so_far: u32 = ctx.checkpoint().and_then(|state| state.to().ok()).unwrap_or(0);
                if so_far >= times {
                    return run.done();
                }
                run.later(Outcome::Again {
                    after: Duration::from_millis(300),
                    checkpoint: Json::of(&(so_far + 1)).ok(),
                })
            }
            Act::Children { count, saves } => children(&ctx, &run, &part.label, count, saves).await,
            Act::AwaitSignal { ms } => await_signal(&ctx, &run, ms).await,
            Act::Pausable { ms } => pausable(&ctx, &run, ms).await,
            Act::Deadly { runs } => {
                if self.stage.death_of(run.task) > runs {
                    return run.done();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                self.machine.kill();
                std::future::pending().await
            }
        }
    }
}

async fn steps(ctx: &Context, run: &Run, count: u32, ms: u64) -> Outcome {
    for step in 0..count {
        ctx.log(format!("step {step}"));
        ctx.progress(f64::from(step) * 100.0 / f64::from(count), None);
        let done = || async {
            if !work(ctx, ms).await {
                return Err(ErrorInfo::new("stopped", "it was to stop"));
            }
            run.stage.history.add(What::StepDone {
                run: run.number,
                task: run.task,
                step,
            });
            Ok(run.number)
        };
        match ctx.step::<u64, _, _>(&format!("step {step}"), done).await {
            Ok(_) => run.stage.history.add(What::StepKept {
                run: run.number,
                task: run.task,
                step,
            }),
            Err(error) if error.kind == "stopped" => return run.stopped(),
            Err(error) => return run.failed(error),
        }
    }
    run.done()
}

async fn children(ctx: &Context, run: &Run, label: &str, count: u32, saves: bool) -> Outcome {
    let state: u8 = ctx.checkpoint().and_then(|state| state.to().ok()).unwrap_or(0);
    if state == 2 {
        return run.done();
    }
    if state == 0 {
        for child in 0..count {
            let part = Part {
                label: format!("{label}/{child}"),
                act: Act::Work {
                    ms: 100 * u64::from(child),
                },
            };
            ctx.spawn_child(NewTask::new(Spec::new(
                ACT,
                Json::of(&part).unwrap_or_else(|_| Json::null()),
            )));
        }
        if saves && let Err(error) = ctx.save(&1u8).await {
            return run.failed(error);
        }
    }
    run.later(Outcome::Wait {
        on: Wait::Children,
        checkpoint: Json::of(&2u8).ok(),
    })
}

async fn await_signal(ctx: &Context, run: &Run, ms: u64) -> Outcome {
    let signals = match ctx.signals().await {
        Ok(signals) => signals,
        Err(error) => return run.failed(error),
    };
    if let Some(signal) = signals.first() {
        ctx.consume(signal.seq);
        return run.done();
    }
    if ctx.checkpoint().is_some() {
        return run.done();
    }
    run.later(Outcome::Wait {
        on: Wait::Signal {
            name: Name::from(SIGNAL),
            until: Some(ctx.now().plus(Duration::from_millis(ms))),
        },
        checkpoint: Json::of(&1u8).ok(),
    })
}

async fn pausable(ctx: &Context, run: &Run, ms: u64) -> Outcome {
    let mut left = Duration::from_millis(ms);
    loop {
        let began = tokio::time::Instant::now();
        tokio::select! {
            biased;
            () = ctx.cancellation().cancelled() => return run.stopped(),
            pause = ctx.pause_changed() => {
                left = left.saturating_sub(began.elapsed());
                if !pause {
                    continue;
                }
                if let Err(error) = ctx.paused().await {
                    return run.failed(error);
                }
                tokio::select! {
                    biased;
                    () = ctx.cancellation().cancelled() => return run.stopped(),
                    _ = ctx.pause_changed() => {}
                }
            }
            () = tokio::time::sleep(left) => return run.done(),
        }
    }
}
