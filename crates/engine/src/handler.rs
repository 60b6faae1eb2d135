//! What runs a task.

use async_trait::async_trait;
use pensum_core::input::Invalid;
use pensum_core::{Json, Outcome};

use crate::Context;

/// The work behind a handler name.
///
/// A handler may be run more than once for one task: a node can die after the work was done and before its outcome was
/// on disk. Work whose repetition would harm belongs into [`Context::step`].
///
/// `run` is a future like any other: it must not block its thread. Work that does (long computations, blocking I/O)
/// belongs into `tokio::task::spawn_blocking`. Of a handler that blocks, only the cancellation token is told; its
/// slot stays taken until it returns, for a thread cannot be stopped from outside.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Runs the task once and says how it went. A panic counts as a failure of kind `panic`.
    ///
    /// When the context's cancellation token fires, the handler should return soon; what it returns then hardly
    /// matters, for the engine knows why it was stopped. After the grace time its future is dropped.
    async fn run(&self, ctx: Context) -> Outcome;

    /// True when a running task of this handler can be paused: it waits for [`Context::pause_changed`], and either
    /// stands still until it changes back ([`Context::paused`]), or returns [`Outcome::Yielded`].
    fn can_pause(&self) -> bool {
        false
    }

    /// Checks a task's parameters when it is submitted to this node. Paths are relative to `parameters`.
    ///
    /// # Errors
    /// Every problem, by path.
    fn check(&self, parameters: &Json) -> Result<(), Invalid> {
        let _ = parameters;
        Ok(())
    }
}

#[async_trait]
impl Handler for std::sync::Arc<dyn Handler> {
    async fn run(&self, ctx: Context) -> Outcome {
        (**self).run(ctx).await
    }

    fn can_pause(&self) -> bool {
        (**self).can_pause()
    }

    fn check(&self, parameters: &Json) -> Result<(), Invalid> {
        (**self).check(parameters)
    }
}
