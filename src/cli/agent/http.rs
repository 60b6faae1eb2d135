//! One call of an HTTP endpoint for one task.

use std::time::Duration;

use pensum_core::ErrorInfo;
use pensum_core::Outcome;
use pensum_engine::kinds;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::work::{Ended, Given, written};

/// The longest answer that is read, in bytes.
const ANSWER_MAX: usize = 1 << 20;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// The endpoint, and where it may bring results later.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    pub(super) url: String,
    pub(super) callback: String,
    http: reqwest::Client,
}

impl Endpoint {
    pub(super) fn new(url: &str, node: &str) -> anyhow::Result<Endpoint> {
        // A provider that was installed before stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        Ok(Endpoint {
            url: url.to_owned(),
            callback: format!("{node}/api/v1/executions/complete"),
            http,
        })
    }

    /// Calls it for a task. `None` once the task was cancelled or lost: where the endpoint took it to bring the result later,
    /// that is also how the end of the run is heard.
    pub(super) async fn call(&self, given: &Given, stopped: &CancellationToken) -> Option<Ended> {
        let answer = tokio::select! {
            biased;
            () = stopped.cancelled() => return None,
            answer = self.ask(given) => answer,
        };
        let outcome = match answer {
            Ok(Some(outcome)) => outcome,
            Ok(None) => {
                stopped.cancelled().await;
                return None;
            }
            Err(error) => written(Outcome::Retry { error, after: None }),
        };
        Some(Ended {
            execution_id: given.execution_id.clone(),
            lease_token: given.lease_token.clone(),
            outcome,
            rest: json!({}),
            checkpoint: None,
        })
    }

    /// What it answers; `None` when it brings the result later.
    async fn ask(&self, given: &Given) -> Result<Option<Value>, ErrorInfo> {
        let failed = |error: reqwest::Error| {
            if error.is_timeout() {
                let message = format!("{} gave no answer within the timeout of the task", self.url);
                return ErrorInfo::new(kinds::TIMEOUT, message);
            }
            let cause = anyhow::Error::from(error.without_url());
            ErrorInfo::new(
                kinds::HTTP_CONNECT,
                format!("{} could not be called: {cause:#}", self.url),
            )
        };
        let body = json!({
            "task": given.task,
            "execution_id": given.execution_id,
            "lease_token": given.lease_token,
            "checkpoint": given.checkpoint,
            "callback": self.callback,
        });
        let mut request = self.http.post(&self.url).header("content-type", "application/json");
        if let Some(timeout) = given.timeout() {
            request = request.timeout(timeout);
        }
        let mut response = request.body(body.to_string()).send().await.map_err(failed)?;
        let status = response.status();
        let refused = |answer: &[u8]| {
            let message = format!("{} answered {status}: {}", self.url, shown(answer));
            ErrorInfo::new(kinds::HTTP_STATUS, message)
        };
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if answer.len() + chunk.len() > ANSWER_MAX {
                let message = format!("{} answered more than {ANSWER_MAX} bytes", self.url);
                return Err(ErrorInfo::new(kinds::BAD_RESULT, message));
            }
            answer.extend_from_slice(&chunk);
        }
        match status.as_u16() {
            202 => Ok(None),
            200..=299 => Ok(Some(outcome(&answer))),
            // A request that is wrong now will be wrong again.
            400..=499 if !matches!(status.as_u16(), 408 | 425 | 429) => {
                Ok(Some(written(Outcome::Fail(refused(&answer)))))
            }
            _ => Err(refused(&answer)),
        }
    }
}

/// `{"outcome": …}` says how the run ended; any other JSON is its result, and other text a result as text.
fn outcome(answer: &[u8]) -> Value {
    match serde_json::from_slice::<Value>(answer) {
        Ok(Value::Object(mut fields)) if fields.len() == 1 && fields.contains_key("outcome") => {
            fields.remove("outcome").unwrap_or_default()
        }
        Ok(result) => json!({ "done": result }),
        Err(_) if answer.is_empty() => json!({ "done": null }),
        Err(_) => json!({ "done": String::from_utf8_lossy(answer).replace('\0', "\u{FFFD}") }),
    }
}

/// The beginning of an answer, for a message.
fn shown(answer: &[u8]) -> String {
    const SHOWN: usize = 500;
    String::from_utf8_lossy(&answer[..answer.len().min(SHOWN)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_an_outcome_or_a_result() {
        assert_eq!(
            outcome(br#"{"outcome":{"fail":{"message":"no"}}}"#),
            json!({"fail":{"message":"no"}})
        );
        assert_eq!(
            outcome(br#"{"outcome":1,"more":2}"#),
            json!({"done":{"outcome":1,"more":2}})
        );
        assert_eq!(outcome(b"[1]"), json!({"done":[1]}));
        assert_eq!(outcome(b"hello"), json!({"done":"hello"}));
        assert_eq!(outcome(b""), json!({"done":null}));
    }
}
