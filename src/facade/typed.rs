//! Async functions over serde types as handlers.

use std::marker::PhantomData;

use async_trait::async_trait;
use pensum_core::input::{Invalid, parse};
use pensum_core::{ErrorInfo, Json, Outcome};
use pensum_engine::{Context, Handler};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::TaskError;

/// A function with its parameter type.
pub(crate) struct Typed<F, P> {
    function: F,
    parameters: PhantomData<fn(P)>,
}

impl<F, P> Typed<F, P> {
    pub(crate) fn new(function: F) -> Typed<F, P> {
        Typed {
            function,
            parameters: PhantomData,
        }
    }
}

#[async_trait]
impl<F, P, Fut, R> Handler for Typed<F, P>
where
    F: Fn(Context, P) -> Fut + Send + Sync + 'static,
    P: DeserializeOwned + Send + 'static,
    Fut: Future<Output = Result<R, TaskError>> + Send,
    R: Serialize + Send,
{
    async fn run(&self, ctx: Context) -> Outcome {
        let parameters = match ctx.parameters::<P>() {
            Ok(parameters) => parameters,
            Err(error) => match ctx.parameters::<Json>().map(|given| read(&given)) {
                Ok(Ok(parameters)) => parameters,
                // Parameters that do not fit today will not fit tomorrow either.
                _ => return Outcome::Fail(error),
            },
        };
        match (self.function)(ctx, parameters).await {
            Ok(output) => match Json::of(&output) {
                Ok(json) => Outcome::Done(json),
                Err(error) => Outcome::Fail(ErrorInfo::new("bad_result", format!("the result is not JSON: {error}"))),
            },
            Err(error) => error.outcome(),
        }
    }

    fn check(&self, parameters: &Json) -> Result<(), Invalid> {
        read::<P>(parameters).map(drop)
    }
}

/// Reads parameters. Where none are given they are an empty object, which stands for `null` where the type takes that: a
/// handler without parameters has the type `()`.
fn read<P: DeserializeOwned>(parameters: &Json) -> Result<P, Invalid> {
    parse(parameters.get().as_bytes()).or_else(|problem| match parameters.get() {
        "{}" => parse(b"null").map_err(|_| problem),
        _ => Err(problem),
    })
}
