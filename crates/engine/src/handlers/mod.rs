//! The built-in handlers.

mod command;
mod http;
mod simple;

use std::sync::Arc;

use pensum_core::input::Invalid;
use pensum_core::{ErrorInfo, Json, Name};
use serde::de::DeserializeOwned;

pub use command::CommandHandler;
pub use http::HttpHandler;
pub use simple::{FailHandler, LogHandler, NoopHandler, SleepHandler};

use crate::{Handler, kinds};

/// All of them by name: `command`, `http`, `sleep`, `log`, `noop` and `fail`.
pub fn builtin() -> Vec<(Name, Arc<dyn Handler>)> {
    vec![
        (Name::from("command"), Arc::new(CommandHandler)),
        (Name::from("http"), Arc::new(HttpHandler::default())),
        (Name::from("sleep"), Arc::new(SleepHandler)),
        (Name::from("log"), Arc::new(LogHandler)),
        (Name::from("noop"), Arc::new(NoopHandler)),
        (Name::from("fail"), Arc::new(FailHandler)),
    ]
}

/// Reads parameters into a type, for [`Handler::check`].
fn read<T: DeserializeOwned>(parameters: &Json) -> Result<T, Invalid> {
    pensum_core::input::parse_object(parameters.get().as_bytes())
}

fn bad_parameters(invalid: &Invalid) -> ErrorInfo {
    ErrorInfo::new(kinds::BAD_PARAMETERS, format!("parameters: {invalid}"))
}
