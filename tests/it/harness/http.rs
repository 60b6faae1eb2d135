//! A blocking HTTP client with a connection of its own.

use std::time::Duration;

use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::Value;
use tokio::runtime::Runtime;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// A node closes connections that were idle for half a minute; one that is used at that moment would fail its request.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Talks to one node at a time.
pub(crate) struct Http {
    runtime: Runtime,
    client: reqwest::Client,
    pub(crate) base: String,
}

/// What the node said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// Null where the body is not JSON.
    pub(crate) body: Value,
}

impl Answer {
    /// The body, after a look at the status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        if status >= 400 {
            assert_eq!(self.headers["content-type"], "application/problem+json");
            assert_eq!(self.body["status"], status);
        }
        self.body
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Http {
    pub(crate) fn new(base: impl Into<String>) -> Http {
        // The client asks for a TLS provider even where it speaks plain HTTP.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(REQUEST_TIMEOUT)
            .pool_idle_timeout(IDLE_MAX)
            .build()
            .unwrap();
        Http {
            runtime,
            client,
            base: base.into(),
        }
    }

    /// Any request; an error where no answer came.
    pub(crate) fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Result<Answer, reqwest::Error> {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        self.runtime.block_on(async {
            let response = request.send().await?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            let bytes = response.bytes().await?;
            let body = serde_json::from_slice(&bytes).unwrap_or_default();
            Ok(Answer { status, headers, body })
        })
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None, &[]).unwrap()
    }

    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, Some(body), &[]).unwrap()
    }

    #[track_caller]
    pub(crate) fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PUT, path, Some(body), &[]).unwrap()
    }

    #[track_caller]
    pub(crate) fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, None, &[]).unwrap()
    }

    #[track_caller]
    pub(crate) fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PATCH, path, Some(body), &[]).unwrap()
    }

    /// Reads an answer as it comes, line by line, until its end or until `take` has enough.
    pub(crate) fn stream(&self, path: &str, accept: &str, mut take: impl FnMut(&str) -> bool) {
        let request = self.client.get(format!("{}{path}", self.base)).header("accept", accept);
        self.runtime.block_on(async {
            let mut response = request.send().await.unwrap();
            assert_eq!(response.status().as_u16(), 200);
            let mut pending = Vec::new();
            while let Some(chunk) = response.chunk().await.unwrap() {
                pending.extend_from_slice(&chunk);
                while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = pending.drain(..=end).collect();
                    if !take(String::from_utf8_lossy(&line).trim_end()) {
                        return;
                    }
                }
            }
        });
    }

    /// All items of a list, page by page.
    #[track_caller]
    pub(crate) fn all(&self, path: &str) -> Vec<Value> {
        let join = if path.contains('?') { '&' } else { '?' };
        let mut found = Vec::new();
        let mut target = format!("{path}{join}limit=200");
        loop {
            let mut page = self.get(&target).expect(200);
            let Value::Array(items) = page["items"].take() else {
                panic!("{path} answered no list")
            };
            found.extend(items);
            match page["next_cursor"].as_str() {
                Some(cursor) => target = format!("{path}{join}limit=200&cursor={cursor}"),
                None => return found,
            }
        }
    }
}
