//! What agents do with the tasks that they are given, and write down as the handlers of nodes do.

use std::future::Future;
use std::time::Duration;

use pensum_core::{ExecutionId, Json, TaskId};
use pensum_engine::{BeatInput, Given};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Agent, Ask};
use crate::handlers::{Part, SIGNAL};
use crate::history::{Returned, What};
use crate::scenario::Act;

/// A run of a task.
struct Run<'a> {
    agent: &'a Agent,
    number: u64,
    task: TaskId,
    attempt: u32,
    given: &'a Given,
    asked: watch::Receiver<Ask>,
}

/// Why a run does not go on.
enum Stop {
    /// It is somebody else's.
    Lost,
    /// With this outcome.
    With(Value),
}

impl Agent {
    /// Acts out a task.
    pub(super) async fn run(&self, given: Given, asked: watch::Receiver<Ask>) {
        let Ok(ExecutionId { task, attempt }) = given.execution_id.parse() else {
            return;
        };
        let mut run = Run {
            agent: self,
            number: self.stage.next_run(),
            task,
            attempt,
            given: &given,
            asked,
        };
        self.stage.history.add(What::Runs {
            run: run.number,
            task,
            executor: self.executor(&given.lease_token),
            attempt,
        });
        let Ok(part) = given.task.parameters.to::<Part>() else {
            return;
        };
        let outcome = match run.act(&part.act).await {
            Ok(outcome) | Err(Stop::With(outcome)) => outcome,
            Err(Stop::Lost) => return,
        };
        let outcome = Json::of(&outcome).unwrap_or_else(|_| Json::null());
        self.ended(&given.execution_id, &given.lease_token, outcome);
    }
}

impl Run<'_> {
    fn add(&self, what: What) {
        self.agent.stage.history.add(what);
    }

    fn returns(&self, how: Returned, outcome: Value) -> Value {
        self.add(What::Returns {
            run: self.number,
            task: self.task,
            how,
        });
        outcome
    }

    fn done(&self) -> Value {
        self.returns(Returned::Done, json!({ "done": { "run": self.number } }))
    }

    fn failed(&self, how: Returned) -> Value {
        let name = if how == Returned::FailedForGood {
            "fail"
        } else {
            "retry"
        };
        self.returns(
            how,
            json!({ name: { "message": "as its plan says", "type": "failed" } }),
        )
    }

    /// What an earlier run left.
    fn state<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        self.given.checkpoint.as_ref().and_then(|state| state.to().ok())
    }

    /// Waits for something, unless the run is to stop before.
    async fn unless_asked<T>(&mut self, wait: impl Future<Output = T>) -> Result<T, Stop> {
        let mut asked = self.asked.clone();
        tokio::select! {
            biased;
            ask = asked.wait_for(|ask| *ask != Ask::Nothing) => match ask.map_or(Ask::Lost, |ask| *ask) {
                Ask::Cancel => Err(Stop::With(self.returns(Returned::Stopped, json!({ "cancelled": {} })))),
                Ask::Pause => Err(Stop::With(self.returns(Returned::Later, json!({ "yielded": {} })))),
                Ask::Lost | Ask::Nothing => Err(Stop::Lost),
            },
            there = wait => Ok(there),
        }
    }

    async fn work(&mut self, ms: u64) -> Result<(), Stop> {
        self.unless_asked(tokio::time::sleep(Duration::from_millis(ms))).await
    }

    async fn act(&mut self, act: &Act) -> Result<Value, Stop> {
        match *act {
            Act::Work { ms } => self.work(ms).await.map(|()| self.done()),
            Act::Fail { attempts, ms } => {
                self.work(ms).await?;
                Ok(match self.attempt <= attempts {
                    true => self.failed(Returned::Failed),
                    false => self.done(),
                })
            }
            Act::Panic { attempts } if self.attempt <= attempts => Ok(self.failed(Returned::Panicked)),
            Act::Panic { .. } => Ok(self.done()),
            Act::Hang => self.unless_asked(std::future::pending()).await,
            Act::Stubborn { ms } => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Ok(self.done())
            }
            Act::Steps { count, ms } => self.steps(count, ms).await,
            Act::Again { times } => {
                let so_far: u32 = self.state().unwrap_or(0);
                if so_far >= times {
                    return Ok(self.done());
                }
                let again = json!({ "again": { "after": 0.3, "checkpoint": so_far + 1 } });
                Ok(self.returns(Returned::Later, again))
            }
            Act::AwaitSignal { ms } => {
                if self.given.checkpoint.is_some() {
                    return Ok(self.done());
                }
                let wait = json!({ "wait": { "signal": SIGNAL, "timeout": ms as f64 / 1e3, "checkpoint": 1 } });
                Ok(self.returns(Returned::Later, wait))
            }
            Act::Deadly { runs } => {
                if self.agent.stage.death_of(self.task) > runs {
                    return Ok(self.done());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                self.agent.machine.kill();
                std::future::pending().await
            }
            Act::FailForGood | Act::Children { .. } | Act::Pausable { .. } => Ok(self.failed(Returned::FailedForGood)),
        }
    }

    /// Steps, each saved with a heartbeat.
    async fn steps(&mut self, count: u32, ms: u64) -> Result<Value, Stop> {
        for step in self.state().unwrap_or(0)..count {
            self.work(ms).await?;
            let (run, task) = (self.number, self.task);
            self.add(What::StepDone { run, task, step });
            let agent = self.agent;
            let save = agent.beat(vec![BeatInput {
                execution_id: self.given.execution_id.clone(),
                lease_token: self.given.lease_token.clone(),
                progress: None,
                usage: None,
                logs: Vec::new(),
                checkpoint: Json::of(&(step + 1)).ok(),
            }]);
            let saved = save.await;
            // A step whose lease is lost was not saved; whether it is, is asked for before anything else.
            self.unless_asked(async {}).await?;
            match saved {
                Ok(true) => self.add(What::StepKept { run, task, step }),
                _ => return Ok(self.failed(Returned::Failed)),
            }
        }
        Ok(self.done())
    }
}
