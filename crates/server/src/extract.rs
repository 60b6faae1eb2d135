//! What a request says, read with bounds: the body, the query, the id in the path, and who asks.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use futures_util::StreamExt;
use pensum_core::id::clip;
use pensum_core::query::{PAGE_DEFAULT, PAGE_MAX};
use pensum_core::store::{Call, IdempotencyKey};
use pensum_core::{Name, TaskId, input};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::app::App;
use crate::problem::{Kind, Problem};

/// The largest body of most requests, in bytes.
pub const BODY_MAX: usize = 1 << 20;
/// The largest body of a batch, in bytes.
pub const BATCH_BODY_MAX: usize = 16 << 20;
/// The largest body of what agents send of many runs at once, in bytes.
pub const WORK_BODY_MAX: usize = 16 << 20;
/// How much of a body that is too large is read and thrown away, so that the client, which is still sending, gets to
/// read the answer instead of a broken connection.
const DRAIN_MAX: usize = 32 << 20;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest `Idempotency-Key`, in characters.
const IDEMPOTENCY_KEY_MAX: usize = 255;
/// The namespace of everything that is asked over HTTP.
pub(crate) const NAMESPACE: &str = "default";

/// Who is at the other end of the connection. Made once a connection, so that a request only copies a pointer.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// `http:` and the address.
    pub(crate) actor: Name,
}

impl Peer {
    pub(crate) fn of(address: std::net::IpAddr) -> Peer {
        Peer {
            actor: format!("http:{address}").into(),
        }
    }
}

/// A request that changes something: its body, within a limit, and the call that it makes.
pub(crate) struct Submission<const LIMIT: usize = BODY_MAX> {
    /// Who acts, when, and under which idempotency key.
    pub(crate) call: Call,
    /// W3C Trace Context of the client, when it sent a valid one.
    pub(crate) traceparent: Option<String>,
    body: Bytes,
}

impl<const LIMIT: usize> Submission<LIMIT> {
    /// Reads the body as JSON.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        if self.body.is_empty() {
            return Err(Problem::new(Kind::BadRequest, "the body is empty; send a JSON object"));
        }
        Ok(input::parse_object(&self.body)?)
    }

    /// Reads the body as JSON; an empty one is the default.
    pub(crate) fn parse_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, Problem> {
        if self.body.is_empty() {
            Ok(T::default())
        } else {
            self.parse()
        }
    }
}

impl<const LIMIT: usize> FromRequest<App> for Submission<LIMIT> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        no_query(&parts)?;
        check_content_type(&parts.headers)?;
        let key = idempotency_key(&parts.headers)?;
        let body = read_body(body, &parts.headers, LIMIT).await?;
        let idempotency = key.map(|key| {
            let digest = Sha256::new()
                .chain_update(parts.method.as_str())
                .chain_update([0])
                .chain_update(parts.uri.path())
                .chain_update([0])
                .chain_update(&body)
                .finalize();
            IdempotencyKey {
                key,
                digest: digest.into(),
            }
        });
        let call = Call {
            idempotency,
            ..caller(&parts, app)
        };
        Ok(Submission {
            call,
            traceparent: traceparent(&parts.headers),
            body,
        })
    }
}

/// The call that a request without a body makes.
pub(crate) struct Caller(pub(crate) Call);

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Caller, Problem> {
        no_query(parts)?;
        Ok(Caller(caller(parts, app)))
    }
}

fn caller(parts: &Parts, app: &App) -> Call {
    let actor = match parts.extensions.get::<Peer>() {
        Some(peer) => peer.actor.clone(),
        None => app.anonymous.clone(),
    };
    Call {
        namespace: app.namespace.clone(),
        actor,
        now: app.engine.now(),
        idempotency: None,
        process: None,
    }
}

fn no_query(parts: &Parts) -> Result<(), Problem> {
    Params::of(parts.uri.query())?.finish()
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let essence = value
        .to_str()
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    let lower = essence.to_ascii_lowercase();
    let json = lower == "application/json" || (lower.starts_with("application/") && lower.ends_with("+json"));
    if json {
        return Ok(());
    }
    let detail = format!("the Content-Type is `{}`; send JSON as application/json", clip(essence));
    Err(Problem::new(Kind::UnsupportedMediaType, detail))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let bytes = value.as_bytes();
    let printable = bytes.iter().all(|b| (b' '..=b'~').contains(b));
    if values.next().is_some() || bytes.is_empty() || bytes.len() > IDEMPOTENCY_KEY_MAX || !printable {
        let message = format!("must be one value of 1 to {IDEMPOTENCY_KEY_MAX} printable ASCII characters");
        return Err(Problem::at(Kind::BadRequest, "Idempotency-Key", message));
    }
    Ok(Some(String::from_utf8_lossy(bytes).into_owned()))
}

/// A `traceparent` of the form `00-<32 hex>-<16 hex>-<2 hex>`. The W3C recommendation has an invalid one ignored.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let fields: Vec<&str> = text.split('-').collect();
    let hex = |field: &str, length: usize| {
        field.len() == length && field.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let [version, trace, parent, flags] = fields[..] else {
        return None;
    };
    let well_formed = hex(version, 2) && version != "ff" && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
    let zero = |field: &str| field.bytes().all(|b| b == b'0');
    (well_formed && !zero(trace) && !zero(parent)).then(|| text.to_owned())
}

/// The version in `If-Match`; `None` for any.
pub(crate) fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let version = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .and_then(|v| v.parse().ok());
    match version {
        Some(version) => Ok(Some(version)),
        None => Err(Problem::at(
            Kind::BadRequest,
            "If-Match",
            "must be the version in quotes, such as \"3\"",
        )),
    }
}

async fn read_body(body: Body, headers: &HeaderMap, limit: usize) -> Result<Bytes, Problem> {
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse::<usize>().ok());
    let too_large = || {
        Problem::new(
            Kind::TooLarge,
            format!("the body is larger than {limit} bytes; send less at a time"),
        )
    };
    let refused_unread = headers.contains_key(header::EXPECT) || length.is_some_and(|l| l > limit + DRAIN_MAX);
    if length.is_some_and(|l| l > limit) && refused_unread {
        return Err(too_large());
    }
    let read = collect(body, limit, length.unwrap_or_default());
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => Err(too_large()),
        Ok(Err(_)) => Err(Problem::new(
            Kind::BadRequest,
            "the body broke off before its end; send it again",
        )),
        Err(_) => {
            let detail = format!("the body took longer than {} s to arrive", BODY_TIMEOUT.as_secs());
            Err(Problem::new(Kind::Timeout, detail))
        }
    }
}

/// Reads a body; `None` when it is larger than the limit. `length` is what the client announced.
async fn collect(body: Body, limit: usize, length: usize) -> Result<Option<Bytes>, axum::Error> {
    let mut chunks = body.into_data_stream();
    let Some(first) = chunks.next().await.transpose()? else {
        return Ok(Some(Bytes::new()));
    };
    if first.len() == length && length <= limit {
        // The common case, without a copy.
        return Ok(Some(first));
    }
    let mut whole = Vec::with_capacity(length.clamp(first.len(), limit.max(first.len())));
    whole.extend_from_slice(&first);
    while let Some(chunk) = chunks.next().await.transpose()? {
        if whole.len() + chunk.len() > limit {
            let mut thrown = whole.len() + chunk.len();
            drop(whole);
            while thrown <= limit + DRAIN_MAX {
                let Some(chunk) = chunks.next().await.transpose()? else {
                    break;
                };
                thrown += chunk.len();
            }
            return Ok(None);
        }
        whole.extend_from_slice(&chunk);
    }
    Ok((whole.len() <= limit).then(|| whole.into()))
}

/// The task id in the path. What is no id names no task: 404.
pub(crate) struct TaskPath(pub(crate) TaskId);

impl FromRequestParts<App> for TaskPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<TaskPath, Problem> {
        let Segment(text) = Segment::from_request_parts(parts, app).await?;
        text.parse()
            .map(TaskPath)
            .map_err(|sentence| Problem::new(Kind::NotFound, sentence))
    }
}

/// The one variable part of the path.
pub(crate) struct Segment(pub(crate) String);

impl FromRequestParts<App> for Segment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Segment, Problem> {
        match Path::<String>::from_request_parts(parts, app).await {
            Ok(Path(text)) => Ok(Segment(text)),
            Err(_) => Err(Problem::new(Kind::NotFound, "the id in the path is not readable text")),
        }
    }
}

/// The query string. Read what you know, then [`Params::finish`] refuses the rest.
pub(crate) struct Params {
    pairs: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl FromRequestParts<App> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Params, Problem> {
        Params::of(parts.uri.query())
    }
}

impl Params {
    fn of(query: Option<&str>) -> Result<Params, Problem> {
        let Some(query) = query.filter(|q| !q.is_empty()) else {
            return Ok(Params {
                pairs: Vec::new(),
                known: Vec::new(),
            });
        };
        let mut pairs = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if value.is_empty() {
                return Err(bad(&clip(&name), "is empty; leave the parameter out"));
            }
            if value.contains(char::is_control) {
                return Err(bad(&clip(&name), "must not contain control characters"));
            }
            pairs.push((name.into_owned(), value.into_owned()));
        }
        Ok(Params {
            pairs,
            known: Vec::new(),
        })
    }

    /// Every value of a parameter that may repeat.
    pub(crate) fn all(&mut self, name: &'static str) -> Vec<String> {
        self.known.push(name);
        let mut found = Vec::new();
        self.pairs.retain_mut(|(n, value)| {
            if n == name {
                found.push(std::mem::take(value));
            }
            n != name
        });
        found
    }

    /// The value of a parameter that may be given once.
    pub(crate) fn text(&mut self, name: &'static str) -> Result<Option<String>, Problem> {
        let mut found = self.all(name);
        if found.len() > 1 {
            return Err(bad(name, "is given more than once"));
        }
        Ok(found.pop())
    }

    /// The value of a parameter, read as a type.
    pub(crate) fn read<T: FromStr>(&mut self, name: &'static str) -> Result<Option<T>, Problem>
    where
        T::Err: fmt::Display,
    {
        self.with(name, |text| text.parse().map_err(|error: T::Err| error.to_string()))
    }

    /// The value of a parameter, read by a function.
    pub(crate) fn with<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Problem> {
        self.text(name)?
            .map(|text| read(&text).map_err(|message| bad(name, &message)))
            .transpose()
    }

    /// A whole number.
    pub(crate) fn number<T: FromStr>(&mut self, name: &'static str) -> Result<Option<T>, Problem> {
        self.with(name, |text| {
            text.parse()
                .map_err(|_| format!("`{}` is not a whole number that fits", clip(text)))
        })
    }

    /// `true` or `false`.
    pub(crate) fn flag(&mut self, name: &'static str) -> Result<Option<bool>, Problem> {
        self.with(name, |text| {
            text.parse()
                .map_err(|_| format!("must be true or false, not `{}`", clip(text)))
        })
    }

    /// `limit`: 1 to 200, 50 by default.
    pub(crate) fn limit(&mut self) -> Result<usize, Problem> {
        let limit = self.number::<usize>("limit")?.unwrap_or(PAGE_DEFAULT);
        if (1..=PAGE_MAX).contains(&limit) {
            Ok(limit)
        } else {
            Err(bad("limit", &format!("must be 1 to {PAGE_MAX}")))
        }
    }

    /// Refuses every parameter that nothing has asked for.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        let Some((name, _)) = self.pairs.first() else {
            return Ok(());
        };
        let message = if self.known.is_empty() {
            "is not a parameter of this route; it takes none".to_owned()
        } else {
            format!("is not a parameter of this route; it takes {}", self.known.join(", "))
        };
        Err(bad(&clip(name), &message))
    }
}

fn bad(path: &str, message: &str) -> Problem {
    Problem::at(Kind::BadRequest, path, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn only_a_well_formed_traceparent_is_kept() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(traceparent(&headers("traceparent", good)).as_deref(), Some(good));
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            assert_eq!(traceparent(&headers("traceparent", bad)), None, "{bad}");
        }
    }

    #[test]
    fn json_by_any_of_its_media_types_is_accepted() {
        for good in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/merge-patch+json",
        ] {
            assert!(check_content_type(&headers("content-type", good)).is_ok(), "{good}");
        }
        for bad in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            "text/json",
            "",
        ] {
            assert!(check_content_type(&headers("content-type", bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_parameter_that_nothing_asks_for_is_named() {
        let mut params = Params::of(Some("limit=7&colour=red")).unwrap();
        assert_eq!(params.limit(), Ok(7));
        let problem = params.finish().unwrap_err();
        assert_eq!(
            problem,
            bad("colour", "is not a parameter of this route; it takes limit")
        );
    }
}
