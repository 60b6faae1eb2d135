//! The intake: admits what other programs left in the store within transactions of their own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use pensum_core::input::{Invalid, Problem};
use pensum_core::intake::{self, AdmitRequest, Admitted, IntakeRecord, IntakeStatus, IntakeTask};
use pensum_core::query::{Page, Paged};
use pensum_core::store::Call;
use pensum_core::{Json, Name, NewTask, StoreError};

use crate::claim::Failures;
use crate::queues::NAMESPACE_DEFAULT;
use crate::{Engine, EngineError, EngineEvent};

/// Most rows in one transaction.
const PASS_ROWS_MAX: usize = 500;
/// How long a store may hold a request that finds nothing.
const ADMIT_WAIT: Duration = Duration::from_secs(10);
/// How long to wait before asking again a store that does not hold requests.
const POLL: Duration = Duration::from_millis(500);
/// The handlers that run whatever their parameters say.
const INLINE: [&str; 2] = ["command", "http"];

/// Admits until the node stops.
pub(crate) async fn run(engine: Engine) {
    let node = engine.live();
    let mut failures = Failures::default();
    loop {
        let asked = engine.now();
        // A pass that is given up half-way leaves its rows as they were, or has admitted them.
        let admitted = tokio::select! {
            biased;
            () = node.stopping.cancelled() => return,
            admitted = pass(&engine, ADMIT_WAIT) => admitted,
        };
        let nap = match admitted {
            Ok(admitted) => {
                failures.over();
                let idle = admitted.rows == 0 && admitted.rejected.is_empty();
                let held = engine.now().since(asked) >= POLL;
                if idle && !held { POLL } else { Duration::ZERO }
            }
            Err(StoreError::Closed) => return,
            Err(error) => failures.next(&engine, &error),
        };
        if !nap.is_zero() {
            tokio::select! {
                biased;
                () = engine.seams().clock.sleep_until(engine.now().plus(nap)) => {}
                () = node.stopping.cancelled() => return,
            }
        }
    }
}

/// One admission.
pub(crate) async fn pass(engine: &Engine, wait: Duration) -> Result<Admitted, StoreError> {
    let request = AdmitRequest {
        limit: PASS_ROWS_MAX,
        wait,
    };
    // Rows of another namespace get no defaults within the first second in which any of them is seen.
    engine.know_queues(&Name::from(NAMESPACE_DEFAULT)).await?;
    let now = engine.now();
    let admitted = engine.store().admit(request, now, &|row| judge(engine, row)).await?;
    if !admitted.tasks.is_empty() {
        engine.wake_claims();
    }
    if engine.hub().is_watched() {
        for task in &admitted.tasks {
            engine.hub().emit(EngineEvent::Enqueued {
                task: task.id,
                namespace: task.namespace.clone(),
                handler: task.handler.clone(),
                at: engine.now(),
            });
        }
    }
    if let Some((row, error)) = admitted.rejected.first() {
        let rejected = admitted.rejected.len();
        tracing::warn!(rejected, row, %error, "the intake holds what cannot be enqueued; see `pensum intake list`");
    }
    Ok(admitted)
}

fn judge(engine: &Engine, row: &IntakeTask) -> Result<Vec<NewTask>, String> {
    // A handler's check that panics must not end the admissions.
    let judged = catch_unwind(AssertUnwindSafe(|| {
        let mut tasks = intake::read(&row.task, row.created_at).map_err(|problems| problems.to_string())?;
        match engine.check_intake(&tasks) {
            Ok(()) => {
                engine.fill_from_seen_queues(&row.namespace, &mut tasks);
                Ok(tasks)
            }
            Err(problems) => Err(of_row(problems, tasks.len()).to_string()),
        }
    }));
    judged.unwrap_or_else(|_| Err("parameters: the handler panicked when it checked them".to_owned()))
}

/// Problems of `tasks` tasks with paths within their row: of one task they say nothing of a batch.
fn of_row(mut problems: Invalid, tasks: usize) -> Invalid {
    if tasks == 1 {
        for problem in &mut problems.0 {
            if let Some(rest) = problem.path.strip_prefix("tasks[0].") {
                problem.path = rest.to_owned();
            }
        }
    }
    problems
}

impl Engine {
    /// What this node says of tasks that come through the intake. Beside [`Engine::check`] it refuses `command` and
    /// `http`, which run whatever their parameters say, unless [that is allowed](crate::EngineBuilder::allow_inline).
    ///
    /// # Errors
    /// Every problem, by path.
    pub fn check_intake(&self, tasks: &[NewTask]) -> Result<(), Invalid> {
        let mut problems = match self.check(tasks) {
            Ok(()) => Vec::new(),
            Err(Invalid(problems)) => problems,
        };
        let inline = tasks
            .iter()
            .enumerate()
            .filter(|(_, task)| INLINE.contains(&&*task.spec.handler));
        if !self.allows_inline() {
            problems.extend(inline.map(|(index, task)| Problem {
                path: format!("tasks[{index}].handler"),
                message: format!(
                    "inline `{}` tasks are not taken from the intake; use a handler that the configuration binds to a \
                     command or call, or set handlers.allow_inline",
                    task.spec.handler
                ),
            }));
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Invalid(problems))
        }
    }

    /// The rows of the intake, newest first; none in a store without one.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn intake(
        &self,
        namespace: &str,
        status: Option<IntakeStatus>,
        page: Page,
    ) -> Result<Paged<IntakeRecord>, EngineError> {
        Ok(self.store().intake(namespace, status, page).await?)
    }

    /// Has a rejected row of the intake looked at again, with another text where one is given. False when there is no such
    /// row.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for a text that would be refused again, and those of the store: a row that waits is given
    /// no other text.
    pub async fn retry_intake(&self, call: &Call, id: i64, task: Option<Json>) -> Result<bool, EngineError> {
        if let Some(task) = &task {
            let tasks = intake::read(task, call.now)?;
            self.check_intake(&tasks)
                .map_err(|problems| of_row(problems, tasks.len()))?;
        }
        Ok(self.store().retry_intake(call, id, task).await?)
    }

    /// Removes a row of the intake, so that it is never admitted. False when there is no such row.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn delete_intake(&self, call: &Call, id: i64) -> Result<bool, EngineError> {
        Ok(self.store().delete_intake(call, id).await?)
    }
}
