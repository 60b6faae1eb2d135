//! The router and what stands round it: one layer that checks where a request comes from, catches panics and sets
//! the headers of every answer.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use pensum_core::id::clip;
use pensum_core::{Name, Time};
use pensum_engine::Engine;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::extract::NAMESPACE;
use crate::problem::{Kind, Problem};
use crate::{openapi, security};

/// What the router works with.
#[derive(Clone)]
pub struct AppState {
    /// The engine that answers.
    pub engine: Engine,
    /// What is allowed.
    pub options: ServerOptions,
}

/// What the server allows, and what it knows about itself.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Tasks may name the handlers `command` and `http`, which run whatever their parameters say. Off by default;
    /// only for a server that none but its own machine's users can reach.
    pub allow_inline: bool,
    /// Names, beside the loopback ones and the listen address, that a Host header may carry. None by default.
    pub allowed_hosts: Vec<String>,
    /// The address that is listened on; [`crate::serve`] fills it in.
    pub listen: Option<SocketAddr>,
    /// When the server started.
    pub started_at: Time,
    /// How long requests may go on after the shutdown began; 5 s by default. Then their connections are cut.
    pub drain: Duration,
}

impl ServerOptions {
    /// The strict defaults.
    pub fn new(started_at: Time) -> ServerOptions {
        ServerOptions {
            allow_inline: false,
            allowed_hosts: Vec::new(),
            listen: None,
            started_at,
            drain: Duration::from_secs(5),
        }
    }
}

/// The state behind every handler.
pub(crate) type App = Arc<Inner>;

pub(crate) struct Inner {
    pub(crate) engine: Engine,
    pub(crate) options: ServerOptions,
    /// Cancelled when the shutdown begins: streams end, readiness goes.
    pub(crate) draining: CancellationToken,
    pub(crate) namespace: Name,
    pub(crate) anonymous: Name,
    pub(crate) openapi: Bytes,
}

/// One page of a list.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct Listing<T> {
    /// The items of this page.
    pub(crate) items: Vec<T>,
    /// What to pass as `cursor` for the next page; null at the end.
    pub(crate) next_cursor: Option<String>,
}

/// The HTTP API over an engine.
pub fn router(state: AppState) -> Router {
    router_until(state, CancellationToken::new())
}

/// The HTTP API over an engine that begins to shut down when `draining` is cancelled.
pub(crate) fn router_until(state: AppState, draining: CancellationToken) -> Router {
    let (routes, document) = openapi::routes().split_for_parts();
    let app = Arc::new(Inner {
        engine: state.engine,
        options: state.options,
        draining,
        namespace: Name::from(NAMESPACE),
        anonymous: Name::from("anonymous"),
        openapi: serde_json::to_vec(&document).unwrap_or_default().into(),
    });
    routes
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&app), guard))
        .with_state(app)
}

async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let options = &app.options;
    let allowed = security::check(
        request.method(),
        request.uri(),
        request.headers(),
        options.listen,
        &options.allowed_hosts,
    );
    let mut response = match allowed {
        Ok(()) => match AssertUnwindSafe(next.run(request)).catch_unwind().await {
            Ok(response) => response,
            Err(panic) => {
                let said = panic.downcast_ref::<String>().map(String::as_str);
                let said = said
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("no message");
                Problem::internal(&format_args!("a handler panicked: {said}")).into_response()
            }
        },
        Err(problem) => problem.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn no_route(uri: Uri) -> Problem {
    let detail = format!(
        "there is no route `{}`; /openapi.json lists the routes",
        clip(uri.path())
    );
    Problem::new(Kind::NotFound, detail)
}

async fn no_method(method: Method, uri: Uri) -> Problem {
    let detail = format!(
        "`{}` does not take {method}; the Allow header says what it takes",
        clip(uri.path())
    );
    Problem::new(Kind::MethodNotAllowed, detail)
}

/// An answer in JSON.
pub(crate) fn json<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut response = Response::new(Body::from(bytes));
            *response.status_mut() = status;
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => Problem::internal(&error).into_response(),
    }
}

/// One thing in JSON, with its version as the ETag.
pub(crate) fn tagged<T: Serialize>(version: u64, view: &T) -> Response {
    let mut response = json(StatusCode::OK, view);
    if let Ok(tag) = HeaderValue::try_from(format!("\"{version}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}
