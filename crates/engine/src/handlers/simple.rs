//! Handlers of a few lines each: noop, sleep, log, fail.

use async_trait::async_trait;
use pensum_core::input::Invalid;
use pensum_core::time::Span;
use pensum_core::{ErrorInfo, Json, Outcome};
use serde::Deserialize;

use super::read;
use crate::{Context, Handler, kinds};

/// `noop`: done at once, with `null`. Takes any parameters.
#[derive(Clone, Copy, Debug)]
pub struct NoopHandler;

#[async_trait]
impl Handler for NoopHandler {
    async fn run(&self, _ctx: Context) -> Outcome {
        Outcome::Done(Json::null())
    }
}

/// `sleep {seconds}`: done after that time.
#[derive(Clone, Copy, Debug)]
pub struct SleepHandler;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sleep {
    seconds: Span,
}

#[async_trait]
impl Handler for SleepHandler {
    async fn run(&self, ctx: Context) -> Outcome {
        let sleep: Sleep = match ctx.parameters() {
            Ok(sleep) => sleep,
            Err(error) => return Outcome::Fail(error),
        };
        let end = ctx.now().plus(sleep.seconds.0);
        tokio::select! {
            biased;
            () = ctx.engine().seams().clock.sleep_until(end) => Outcome::Done(Json::null()),
            () = ctx.cancellation().cancelled() => Outcome::Cancelled,
        }
    }

    fn check(&self, parameters: &Json) -> Result<(), Invalid> {
        read::<Sleep>(parameters).map(drop)
    }
}

/// `log {message}`: writes the message to the task's log and returns it.
#[derive(Clone, Copy, Debug)]
pub struct LogHandler;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Log {
    message: String,
}

#[async_trait]
impl Handler for LogHandler {
    async fn run(&self, ctx: Context) -> Outcome {
        match ctx.parameters::<Log>() {
            Ok(Log { message }) => {
                ctx.log(message.as_str());
                Outcome::Done(Json::from(serde_json::Value::String(message)))
            }
            Err(error) => Outcome::Fail(error),
        }
    }

    fn check(&self, parameters: &Json) -> Result<(), Invalid> {
        read::<Log>(parameters).map(drop)
    }
}

/// `fail {message, times}`: fails in the first `times` attempts, in all when it is absent; done afterwards. For
/// trying out retries and alarms.
#[derive(Clone, Copy, Debug)]
pub struct FailHandler;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fail {
    #[serde(default = "on_purpose")]
    message: String,
    #[serde(default)]
    times: Option<u32>,
}

fn on_purpose() -> String {
    "it failed on purpose".to_owned()
}

#[async_trait]
impl Handler for FailHandler {
    async fn run(&self, ctx: Context) -> Outcome {
        match ctx.parameters::<Fail>() {
            Ok(Fail { times: Some(times), .. }) if ctx.attempt() > times => Outcome::Done(Json::null()),
            Ok(Fail { message, .. }) => Outcome::Retry {
                error: ErrorInfo::new(kinds::FAILED, message),
                after: None,
            },
            Err(error) => Outcome::Fail(error),
        }
    }

    fn check(&self, parameters: &Json) -> Result<(), Invalid> {
        read::<Fail>(parameters).map(drop)
    }
}
