//! A server without a socket, and what tests ask it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use pensum_core::input::Invalid;
use pensum_core::store::LogStream;
use pensum_core::{Json, Outcome, Store, TaskId, model::ModelStore};
use pensum_engine::{Context, Engine, Handler};
use pensum_server::{AppState, ServerOptions, router};
use serde_json::Value;
use tokio::sync::{Mutex, Notify, mpsc};
use tower::ServiceExt;

/// A UUID that names no task.
pub(crate) const NOBODY: &str = "0198c1f0-7f3c-7abc-8def-0123456789ab";

pub(crate) struct Server {
    pub(crate) engine: Engine,
    pub(crate) options: ServerOptions,
    router: Router,
    started: Mutex<mpsc::UnboundedReceiver<TaskId>>,
    release: Arc<Notify>,
}

/// Runs until it is released or stopped; logs a line on either side.
struct Gate {
    started: mpsc::UnboundedSender<TaskId>,
    release: Arc<Notify>,
}

#[async_trait]
impl Handler for Gate {
    async fn run(&self, ctx: Context) -> Outcome {
        ctx.log_line(LogStream::Stdout, "before the gate");
        let _ = self.started.send(ctx.id());
        tokio::select! {
            () = self.release.notified() => {
                ctx.log("behind the gate");
                Outcome::Done(Json::of("through").unwrap())
            }
            () = ctx.cancellation().cancelled() => Outcome::Cancelled,
        }
    }
}

/// Has a defect: its check panics.
struct Bomb;

#[async_trait]
impl Handler for Bomb {
    async fn run(&self, _: Context) -> Outcome {
        Outcome::Done(Json::null())
    }

    fn check(&self, _: &Json) -> Result<(), Invalid> {
        panic!("a defect of a handler's check");
    }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    /// The body as JSON; null when it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|v| v.to_str().unwrap()).unwrap_or_default()
    }

    /// The id of the task in the body.
    #[track_caller]
    pub(crate) fn id(&self) -> String {
        self.json()["id"]
            .as_str()
            .unwrap_or_else(|| panic!("no task: {} {}", self.status, self.text))
            .to_owned()
    }

    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }
}

impl Server {
    /// A server on the model store; nothing runs until [`Server::start`].
    pub(crate) fn new() -> Server {
        Server::over(Arc::new(ModelStore::new(1)))
    }

    pub(crate) fn over(store: Arc<dyn Store>) -> Server {
        Server::with(store, |options| options.allow_inline = true)
    }

    pub(crate) fn with(store: Arc<dyn Store>, set: impl FnOnce(&mut ServerOptions)) -> Server {
        let (sender, started) = mpsc::unbounded_channel();
        let release = Arc::new(Notify::new());
        let gate = Gate {
            started: sender,
            release: Arc::clone(&release),
        };
        let engine = Engine::builder(store)
            .builtin_handlers()
            .handler("gate", gate)
            .handler("bomb", Bomb)
            .slots(4)
            .build();
        let mut options = ServerOptions::new(engine.now());
        set(&mut options);
        let router = router(AppState {
            engine: engine.clone(),
            options: options.clone(),
        });
        Server {
            engine,
            options,
            router,
            started: Mutex::new(started),
            release,
        }
    }

    /// Begins to run tasks.
    pub(crate) fn start(&self) {
        self.engine.start();
    }

    /// Creates a task that waits at the gate, and returns when it does.
    pub(crate) async fn gated(&self) -> String {
        let id = self
            .post("/api/v1/tasks", r#"{"handler":"gate","max_retries":0}"#)
            .await
            .expect(201)
            .id();
        let mut started = self.started.lock().await;
        let begun = tokio::time::timeout(Duration::from_secs(20), started.recv())
            .await
            .expect("the task starts");
        assert_eq!(begun.map(|t| t.to_string()), Some(id.clone()));
        id
    }

    /// Lets the task at the gate through.
    pub(crate) fn open(&self) {
        self.release.notify_one();
    }

    /// Returns once the task has ended.
    pub(crate) async fn ended(&self, id: &str) -> Value {
        let task = id.parse().unwrap();
        self.engine
            .wait("default", task, Some(Duration::from_secs(20)))
            .await
            .expect("the task ends");
        self.get(&format!("/api/v1/tasks/{id}")).await.json()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, None, &[]).await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        self.ask("POST", path, Some(body.as_bytes()), &[]).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &str) -> Answer {
        self.ask("PATCH", path, Some(body.as_bytes()), &[]).await
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, body: Option<&[u8]>, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost:7400");
        if body.is_some_and(|b| !b.is_empty()) && !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(Body::from(body.unwrap_or_default().to_vec())).unwrap())
            .await
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            text,
        }
    }
}
