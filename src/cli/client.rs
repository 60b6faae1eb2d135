//! The client: one path for every command, over HTTP to a node, or to the same router in this process when `--db`
//! names a store that no node holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request};
use pensum_core::{Store, StoreError};
use pensum_engine::Engine;
use pensum_server::{AppState, ServerOptions};
use pensum_store::postgres::PostgresOptions;
use serde::Deserialize;
use serde_json::Value;
use tower::ServiceExt;

use super::Global;
use super::exit::{Exit, Failure};

/// The store of commands that name none.
pub(crate) const DB_DEFAULT: &str = "sqlite:pensum.db";
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes.
const ANSWER_MAX: usize = 256 << 20;

/// Sends requests and reads answers.
pub(crate) struct Client {
    transport: Transport,
}

enum Transport {
    Http {
        http: reqwest::Client,
        base: String,
        token: Option<String>,
    },
    Direct {
        router: Router,
        store: Arc<dyn Store>,
    },
}

/// An answer in problem details, RFC 9457.
#[derive(Deserialize)]
struct Problem {
    #[serde(default)]
    title: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    errors: Vec<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    path: String,
    message: String,
}

impl Client {
    /// The client that the options ask for. `create` makes the store of `--db` when it does not exist.
    pub(crate) async fn connect(global: &Global, create: bool) -> anyhow::Result<Client> {
        let Some(db) = &global.db else {
            return Client::http(&global.url(), global.token());
        };
        check_url(db)?;
        if !create {
            must_exist(db)?;
        }
        match open_store(db, &format!("process {}", std::process::id())).await {
            Ok(store) => Ok(Client::direct(store)),
            Err(StoreError::Locked { path, owner }) => match owner.strip_prefix("http://") {
                Some(_) => Client::http(&owner, global.token()),
                None => Err(Failure::from(StoreError::Locked { path, owner }).into()),
            },
            Err(error) => Err(Failure::from(error).into()),
        }
    }

    /// A client of the node at this address.
    pub(crate) fn to(address: &str) -> anyhow::Result<Client> {
        Client::http(address, None)
    }

    fn http(base: &str, token: Option<String>) -> anyhow::Result<Client> {
        // A provider that was installed before stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .no_proxy()
            .build()?;
        let base = base.trim_end_matches('/').to_owned();
        if !base.starts_with("http://") && !base.starts_with("https://") {
            let message = format!("`{base}` is not the address of a node: write it as http://127.0.0.1:7400");
            return Err(Failure::usage(message).into());
        }
        Ok(Client {
            transport: Transport::Http { http, base, token },
        })
    }

    fn direct(store: Arc<dyn Store>) -> Client {
        let engine = Engine::builder(Arc::clone(&store)).builtin_handlers().build();
        let options = ServerOptions {
            allow_inline: true,
            ..ServerOptions::new(engine.now())
        };
        let router = pensum_server::router(AppState { engine, options });
        Client {
            transport: Transport::Direct { router, store },
        }
    }

    /// True when nothing runs tasks while this command works: it holds the store itself.
    pub(crate) const fn is_alone(&self) -> bool {
        matches!(self.transport, Transport::Direct { .. })
    }

    /// Lets go of the store.
    pub(crate) async fn close(&self) {
        if let Transport::Direct { store, .. } = &self.transport
            && let Err(error) = store.close().await
        {
            tracing::warn!(%error, "the store did not close cleanly");
        }
    }

    /// Reads a path; the answer as JSON text.
    pub(crate) async fn get(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<String> {
        self.send(Method::GET, &target(path, query), None).await
    }

    /// Reads a path into a value.
    pub(crate) async fn get_value(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.get(path, query).await?)?)
    }

    /// Posts a body; the answer as JSON text.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<String> {
        self.send(Method::POST, path, Some(body.to_string())).await
    }

    /// Puts a body; the answer as JSON text. With `version` only onto what is at that version.
    pub(crate) async fn put(&self, path: &str, body: &Value, version: Option<u64>) -> anyhow::Result<String> {
        let body = Some(body.to_string());
        self.send_if(Method::PUT, path, body, version).await
    }

    /// Patches with a body; the answer as JSON text. With `version` only what is at that version.
    pub(crate) async fn patch(&self, path: &str, body: &Value, version: Option<u64>) -> anyhow::Result<String> {
        let body = Some(body.to_string());
        self.send_if(Method::PATCH, path, body, version).await
    }

    /// Deletes.
    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.send(Method::DELETE, path, None).await.map(drop)
    }

    /// A list's items as JSON texts, and the cursor of the next page. With `all`, every page up to `limit` items.
    pub(crate) async fn list(
        &self,
        path: &str,
        query: &[(&str, String)],
        limit: Option<usize>,
        all: bool,
    ) -> anyhow::Result<(Vec<String>, Option<String>)> {
        #[derive(Deserialize)]
        struct Page {
            items: Vec<Box<serde_json::value::RawValue>>,
            #[serde(default)]
            next_cursor: Option<String>,
        }
        const PAGE_MAX: usize = pensum_core::query::PAGE_MAX;
        let mut items: Vec<String> = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let left = limit.map(|limit| limit.saturating_sub(items.len()));
            let mut query = query.to_vec();
            match left {
                Some(left) => query.push(("limit", left.min(PAGE_MAX).to_string())),
                None if all => query.push(("limit", PAGE_MAX.to_string())),
                None => {}
            }
            query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
            let page: Page = serde_json::from_str(&self.get(path, &query).await?)?;
            items.extend(page.items.into_iter().map(|item| item.get().to_owned()));
            let enough = limit.is_some_and(|limit| items.len() >= limit) || (limit.is_none() && !all);
            match page.next_cursor {
                Some(next) if !enough => cursor = Some(next),
                next => return Ok((items, next)),
            }
        }
    }

    async fn send(&self, method: Method, target: &str, body: Option<String>) -> anyhow::Result<String> {
        self.send_if(method, target, body, None).await
    }

    async fn send_if(
        &self,
        method: Method,
        target: &str,
        body: Option<String>,
        version: Option<u64>,
    ) -> anyhow::Result<String> {
        let version = version.map(|version| format!("\"{version}\""));
        let (status, text) = match &self.transport {
            Transport::Http { http, base, token } => {
                let mut request = http.request(method, format!("{base}{target}"));
                if let Some(token) = token {
                    request = request.bearer_auth(token);
                }
                if let Some(body) = body {
                    request = request.header("content-type", "application/json").body(body);
                }
                if let Some(version) = version {
                    request = request.header("if-match", version);
                }
                let response = request.send().await.map_err(|error| unreachable(base, &error))?;
                (
                    response.status().as_u16(),
                    response.text().await.map_err(|error| unreachable(base, &error))?,
                )
            }
            Transport::Direct { router, .. } => {
                let mut request = Request::builder()
                    .method(method)
                    .uri(target)
                    .header("host", "localhost");
                if body.is_some() {
                    request = request.header("content-type", "application/json");
                }
                if let Some(version) = version {
                    request = request.header("if-match", version);
                }
                let request = request.body(body.map(Body::from).unwrap_or_default())?;
                let response = router.clone().oneshot(request).await?;
                let status = response.status().as_u16();
                let bytes = to_bytes(response.into_body(), ANSWER_MAX).await?;
                (status, String::from_utf8_lossy(&bytes).into_owned())
            }
        };
        match Exit::of_status(status) {
            Exit::Ok => Ok(text),
            exit => Err(refused(exit, status, &text).into()),
        }
    }
}

fn refused(exit: Exit, status: u16, text: &str) -> Failure {
    let Ok(problem) = serde_json::from_str::<Problem>(text) else {
        return Failure::new(exit, format!("the server answered HTTP {status}; is it a Pensum node?"));
    };
    let lines: Vec<String> = problem
        .errors
        .iter()
        .map(|fault| {
            if fault.path.is_empty() {
                fault.message.clone()
            } else {
                format!("{}: {}", fault.path, fault.message)
            }
        })
        .collect();
    match lines.as_slice() {
        [] if problem.detail.is_empty() => Failure::new(exit, problem.title),
        [] => Failure::new(exit, problem.detail),
        [one] => Failure::new(exit, one.clone()),
        many => Failure::new(exit, format!("{}:\n  {}", problem.title, many.join("\n  "))),
    }
}

fn unreachable(base: &str, error: &reqwest::Error) -> Failure {
    if error.is_timeout() {
        return Failure::new(
            Exit::Unreachable,
            format!("{base} did not answer in time; try again, or look at its log"),
        );
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let message = format!(
        "no node answers at {base} ({cause})\nStart one with `pensum serve`, name another with --url or PENSUM_URL, or \
         work on a store directly with --db sqlite:FILE"
    );
    Failure::new(Exit::Unreachable, message)
}

/// A path with its query.
pub(crate) fn target(path: &str, query: &[(&str, String)]) -> String {
    if query.is_empty() {
        return path.to_owned();
    }
    let pairs: Vec<String> = query
        .iter()
        .map(|(name, value)| format!("{name}={}", escape(value)))
        .collect();
    format!("{path}?{}", pairs.join("&"))
}

/// Percent-encodes a text for use within a path or a query (RFC 3986, section 2.3).
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Refuses what is not the URL of a store.
pub(crate) fn check_url(url: &str) -> Result<(), Failure> {
    if pensum_store::is_postgres(url) {
        return match PostgresOptions::parse(url) {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::usage(format!("--db: {error}"))),
        };
    }
    match url.strip_prefix("sqlite:") {
        Some(path) if !path.is_empty() => Ok(()),
        _ => Err(Failure::usage(format!(
            "--db {url}: is not the URL of a store; write sqlite:FILE, sqlite::memory: or \
             postgres://USER@HOST:PORT/DATABASE"
        ))),
    }
}

/// Opens a store without blocking the runtime. Its URL was [checked](check_url) before.
pub(crate) async fn open_store(url: &str, owner: &str) -> Result<Arc<dyn Store>, StoreError> {
    pensum_store::connect(url, owner).await
}

/// The file of a store URL; `None` for a store in memory or on a server.
pub(crate) fn store_path(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix("sqlite:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    (path != ":memory:" && !path.is_empty()).then(|| Path::new(path).to_owned())
}

/// Refuses a store file that does not exist: a typing error must not make an empty store.
pub(crate) fn must_exist(url: &str) -> Result<(), Failure> {
    match store_path(url) {
        Some(path) if !path.exists() => {
            let message = format!(
                "there is no store at {}; `pensum serve` or `pensum db migrate` makes one",
                path.display()
            );
            Err(Failure::new(Exit::NotFound, message))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped() {
        assert_eq!(
            target("/tasks", &[("q", "a b&c/ü".to_owned())]),
            "/tasks?q=a%20b%26c%2F%C3%BC"
        );
        assert_eq!(target("/tasks", &[]), "/tasks");
    }

    #[test]
    fn problem_details_become_lines() {
        let text = r#"{"title":"Some values are wrong","status":422,"detail":"x","errors":[{"path":"a","message":"b"},{"path":"c[0]","message":"d"}]}"#;
        let failure = refused(Exit::Usage, 422, text);
        assert_eq!(failure.message, "Some values are wrong:\n  a: b\n  c[0]: d");
        assert_eq!(
            refused(Exit::Failed, 500, "<html>").message,
            "the server answered HTTP 500; is it a Pensum node?"
        );
    }

    #[test]
    fn the_file_of_a_store_is_known_from_its_url() {
        assert_eq!(store_path("sqlite:a/b.db"), Some(PathBuf::from("a/b.db")));
        assert_eq!(store_path("sqlite:///tmp/b.db"), Some(PathBuf::from("/tmp/b.db")));
        assert_eq!(store_path("sqlite::memory:"), None);
    }
}
