//! Errors as HTTP answers: RFC 9457 problem details, with the path of every wrong value.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pensum_core::input::Invalid;
use pensum_core::store::{Rejected, StoreError};
use pensum_engine::EngineError;
use serde::Serialize;

/// One wrong value: its path and what to write instead.
pub use pensum_core::input::Problem as Fault;

/// How long a client should wait before it asks an unavailable store again, in seconds.
const RETRY_AFTER_SECONDS: u64 = 1;

/// Everything that the API refuses or fails at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    kind: Kind,
    detail: String,
    errors: Vec<Fault>,
    /// When to try again, in seconds, where more is known than what holds for the kind.
    retry_after: Option<u64>,
}

/// What sort of problem it is; each has one status, one title and one `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 400: the request cannot be read.
    BadRequest,
    /// 403: the request can be read, and is not allowed here.
    Forbidden,
    /// 404: no such thing or route.
    NotFound,
    /// 405: the route does not know this method.
    MethodNotAllowed,
    /// 408: the body did not arrive in time.
    Timeout,
    /// 409: the present state does not allow it.
    Conflict,
    /// 409: another session of the agent took over.
    SessionFenced,
    /// 412: the thing changed since it was read.
    PreconditionFailed,
    /// 413: the body is too large.
    TooLarge,
    /// 415: the body is not JSON by its own account.
    UnsupportedMediaType,
    /// 421: the request names a host that is not served here.
    Misdirected,
    /// 422: the values are wrong.
    Invalid,
    /// 429: the queue is at a limit, and the task is not to wait, or there is no place for it to.
    QueueFull,
    /// 500: a defect or a damaged store.
    Internal,
    /// 503: the store cannot take it now.
    Unavailable,
}

impl Kind {
    /// The HTTP status.
    pub const fn status(self) -> StatusCode {
        match self {
            Kind::BadRequest => StatusCode::BAD_REQUEST,
            Kind::Forbidden => StatusCode::FORBIDDEN,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Kind::Timeout => StatusCode::REQUEST_TIMEOUT,
            Kind::Conflict | Kind::SessionFenced => StatusCode::CONFLICT,
            Kind::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Kind::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Kind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            Kind::QueueFull => StatusCode::TOO_MANY_REQUESTS,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Kind::BadRequest => "The request cannot be read",
            Kind::Forbidden => "Not allowed here",
            Kind::NotFound => "Not found",
            Kind::MethodNotAllowed => "Method not allowed",
            Kind::Timeout => "The body did not arrive in time",
            Kind::SessionFenced => "This session has ended",
            Kind::Conflict => "The present state does not allow it",
            Kind::PreconditionFailed => "It changed meanwhile",
            Kind::TooLarge => "The body is too large",
            Kind::UnsupportedMediaType => "The body must be JSON",
            Kind::Misdirected => "This host is not served here",
            Kind::Invalid => "Some values are wrong",
            Kind::QueueFull => "The queue takes no more at this moment",
            Kind::Internal => "Internal error",
            Kind::Unavailable => "Unavailable for the moment",
        }
    }

    const fn slug(self) -> &'static str {
        match self {
            Kind::BadRequest => "urn:pensum:problem:bad-request",
            Kind::Forbidden => "urn:pensum:problem:forbidden",
            Kind::NotFound => "urn:pensum:problem:not-found",
            Kind::MethodNotAllowed => "urn:pensum:problem:method-not-allowed",
            Kind::Timeout => "urn:pensum:problem:timeout",
            // Agents look for just this ending.
            Kind::SessionFenced => "urn:pensum:problem:session_fenced",
            Kind::Conflict => "urn:pensum:problem:conflict",
            Kind::PreconditionFailed => "urn:pensum:problem:precondition-failed",
            Kind::TooLarge => "urn:pensum:problem:too-large",
            Kind::UnsupportedMediaType => "urn:pensum:problem:unsupported-media-type",
            Kind::Misdirected => "urn:pensum:problem:misdirected",
            Kind::Invalid => "urn:pensum:problem:invalid",
            Kind::QueueFull => "urn:pensum:problem:queue-full",
            Kind::Internal => "urn:pensum:problem:internal",
            Kind::Unavailable => "urn:pensum:problem:unavailable",
        }
    }
}

/// The body of every error answer.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ProblemDetails<'a> {
    /// A name for the sort of problem, for programs.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The sort of problem, for people; the same sentence for every problem of the type.
    title: &'static str,
    /// The HTTP status, repeated.
    status: u16,
    /// What was wrong with this request, and what to do.
    detail: &'a str,
    /// Every wrong value by its path; empty where the problem is not about values.
    errors: &'a [Fault],
    /// When to try again, in seconds, where that is known; the header `Retry-After` repeats it.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
}

impl Problem {
    /// A problem of a kind with a sentence for people.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Problem {
        Problem {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: None,
        }
    }

    /// A problem with one value.
    pub fn at(kind: Kind, path: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem::of_faults(
            kind,
            vec![Fault {
                path: path.into(),
                message: message.into(),
            }],
        )
    }

    /// A problem with several values.
    pub fn of_faults(kind: Kind, errors: Vec<Fault>) -> Problem {
        let detail = match errors.as_slice() {
            [one] => one.to_string(),
            [first, rest @ ..] => format!("{first}; and {} more", rest.len()),
            [] => String::new(),
        };
        Problem {
            kind,
            detail,
            errors,
            retry_after: None,
        }
    }

    /// No such task.
    pub fn no_task(id: impl std::fmt::Display) -> Problem {
        Problem::new(Kind::NotFound, format!("there is no task {id}"))
    }

    /// What sort of problem it is.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Takes `tasks[0].` off every path: a request about one task knows no batch.
    pub fn of_single(mut self) -> Problem {
        const PREFIX: &str = "tasks[0].";
        for fault in &mut self.errors {
            if let Some(rest) = fault.path.strip_prefix(PREFIX) {
                fault.path = rest.to_owned();
            }
        }
        if self.detail.contains(PREFIX) {
            self.detail = self.detail.replace(PREFIX, "");
        }
        self
    }

    fn unavailable(detail: impl Into<String>) -> Problem {
        Problem::new(Kind::Unavailable, detail)
    }

    /// A defect: the cause goes to the log, the client learns only that there was one.
    pub(crate) fn internal(cause: &dyn std::fmt::Display) -> Problem {
        tracing::error!(%cause, "a request failed");
        Problem::new(Kind::Internal, "the server failed at this request; its log says why")
    }
}

impl From<Invalid> for Problem {
    fn from(Invalid(faults): Invalid) -> Problem {
        // `parse` reports what is not JSON at all as one fault of the whole input.
        let malformed =
            matches!(faults.as_slice(), [one] if one.path.is_empty() && one.message.starts_with("is not JSON"));
        if malformed {
            let detail = format!("the body {}", faults[0].message);
            return Problem {
                kind: Kind::BadRequest,
                detail,
                errors: faults,
                retry_after: None,
            };
        }
        Problem::of_faults(Kind::Invalid, faults)
    }
}

impl From<Rejected> for Problem {
    fn from(rejected: Rejected) -> Problem {
        let detail = rejected.to_string();
        match rejected {
            Rejected::NotFound(_) | Rejected::NoQueue(_) | Rejected::NoAgent(_) | Rejected::NoBreaker(_) => {
                Problem::new(Kind::NotFound, detail)
            }
            Rejected::UnknownDependency { item, position, id } => Problem::at(
                Kind::Invalid,
                format!("tasks[{item}].depends_on[{position}]"),
                format!("there is no task {id}"),
            ),
            Rejected::Cycle(_) | Rejected::UnknownItem { .. } => Problem::at(Kind::Invalid, "tasks", detail),
            Rejected::UniqueTaken { item, key, holder } => Problem::at(
                Kind::Conflict,
                format!("tasks[{item}].unique"),
                format!("the key `{key}` is held by task {holder}"),
            ),
            Rejected::UniqueTwice { item, earlier, key } => Problem::at(
                Kind::Invalid,
                format!("tasks[{item}].unique"),
                format!("tasks[{earlier}] of the same batch has the key `{key}` already"),
            ),
            Rejected::QueueFull { item, full } => Problem {
                // Rounded up: a moment early there would be nothing yet.
                retry_after: full.retry_after().map(|wait| wait.as_secs_f64().ceil().max(1.0) as u64),
                ..Problem::at(Kind::QueueFull, format!("tasks[{item}].queue"), full.to_string())
            },
            Rejected::VersionMismatch { .. }
            | Rejected::QueueVersionMismatch { .. }
            | Rejected::BreakerVersionMismatch { .. } => Problem::new(Kind::PreconditionFailed, detail),
            Rejected::SessionFenced(_) => Problem::new(Kind::SessionFenced, detail),
            Rejected::LeaseLost(_)
            | Rejected::Forbidden { .. }
            | Rejected::Nothing(_)
            | Rejected::UniqueTakenByOther { .. }
            | Rejected::IdempotencyMismatch
            | Rejected::HasDependants { .. }
            | Rejected::InboxFull(_)
            | Rejected::QueueForbids { .. }
            | Rejected::QueueHasTasks { .. }
            | Rejected::TooManyQueues
            | Rejected::TooManyAgents
            | Rejected::TooManyBreakers => Problem::new(Kind::Conflict, detail),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        match error {
            StoreError::Rejected(rejected) => rejected.into(),
            StoreError::Unavailable(_) | StoreError::Locked { .. } | StoreError::Closed => {
                Problem::unavailable(error.to_string())
            }
            StoreError::Conflict(_) => Problem::new(Kind::Conflict, error.to_string()),
            StoreError::Corrupt(_) | StoreError::Newer { .. } => Problem::internal(&error),
        }
    }
}

impl From<EngineError> for Problem {
    fn from(error: EngineError) -> Problem {
        match error {
            EngineError::Rejected(rejected) => rejected.into(),
            EngineError::Invalid(invalid) => Problem::from(invalid),
            EngineError::Store(error) => error.into(),
            EngineError::NotFound(id) => Problem::no_task(id),
            EngineError::NoQueue { .. } => Problem::new(Kind::NotFound, error.to_string()),
            EngineError::WaitTimeout => Problem::unavailable("the task had not ended when the wait was over"),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.kind.status();
        let details = ProblemDetails {
            kind: self.kind.slug(),
            title: self.kind.title(),
            status: status.as_u16(),
            detail: &self.detail,
            errors: &self.errors,
            retry_after: self.retry_after,
        };
        let body = serde_json::to_vec(&details).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        let always = (self.kind == Kind::Unavailable).then_some(RETRY_AFTER_SECONDS);
        if let Some(seconds) = self.retry_after.or(always) {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
