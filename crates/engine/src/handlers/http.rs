//! `http`: one HTTP call.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use pensum_core::input::{Invalid, Problem};
use pensum_core::json::JSON_MAX;
use pensum_core::{ErrorInfo, Json, Outcome, Time};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode, Url, redirect};
use serde::{Deserialize, Deserializer, de};

use super::{bad_parameters, read};
use crate::{Context, Handler, kinds};

/// Most redirects that are followed.
const REDIRECTS_MAX: usize = 5;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of an answer that are kept: the result and its quotes fit a task.
const BODY_BYTES_MAX: usize = JSON_MAX - 1024;
/// Most bytes of an answer that are quoted in an error.
const QUOTE_BYTES_MAX: usize = 500;
/// The longest `Retry-After` that is honoured.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// `http {method, url, headers, body, expect}`: done when the answer's status is one that `expect` names (a code, a
/// list of codes, or a class such as `"2xx"`, which is the default). The answer's body is the result: as JSON where it
/// is JSON, else as text, up to 1 MiB.
///
/// No answer, 429 and 5xx are tried again, after the time that `Retry-After` names; any other status fails for good.
/// Only `http` and `https`; the time limit is the task's.
#[derive(Debug, Default)]
pub struct HttpHandler {
    client: OnceLock<Result<Client, String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    #[serde(default)]
    method: Option<String>,
    url: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: Option<Json>,
    #[serde(default)]
    expect: Expect,
}

/// Which statuses are well.
struct Expect(Vec<(u16, u16)>);

impl Default for Expect {
    fn default() -> Expect {
        Expect(vec![(200, 299)])
    }
}

impl Expect {
    fn holds(&self, status: StatusCode) -> bool {
        self.0
            .iter()
            .any(|(low, high)| (*low..=*high).contains(&status.as_u16()))
    }
}

impl<'de> Deserialize<'de> for Expect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Expect, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let items = match value {
            serde_json::Value::Array(items) if !items.is_empty() => items,
            serde_json::Value::Null => return Ok(Expect::default()),
            single => vec![single],
        };
        items
            .iter()
            .map(status_range)
            .collect::<Option<Vec<_>>>()
            .map(Expect)
            .ok_or_else(|| de::Error::custom("expected a status code (200), a class (\"2xx\"), or a list of them"))
    }
}

fn status_range(value: &serde_json::Value) -> Option<(u16, u16)> {
    let text = match value {
        serde_json::Value::Number(number) => number.to_string(),
        serde_json::Value::String(text) => text.to_ascii_lowercase(),
        _ => return None,
    };
    if let Some(class) = text.strip_suffix("xx") {
        let class: u16 = class.parse().ok().filter(|c| (1..=5).contains(c))?;
        return Some((class * 100, class * 100 + 99));
    }
    let code: u16 = text.parse().ok().filter(|c| (100..=599).contains(c))?;
    Some((code, code))
}

/// The parameters, understood.
struct Request {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Option<String>,
    expect: Expect,
}

impl Request {
    fn of(parameters: &Json) -> Result<Request, Invalid> {
        let Parameters {
            method,
            url,
            headers,
            body,
            expect,
        } = read(parameters)?;
        let mut problems = Vec::new();
        let mut fail = |path: String, message: String| problems.push(Problem { path, message });
        let method = method.unwrap_or_else(|| "GET".to_owned()).to_ascii_uppercase();
        let method = Method::from_bytes(method.as_bytes()).unwrap_or_else(|_| {
            fail("method".to_owned(), format!("`{method}` is not an HTTP method"));
            Method::GET
        });
        let url = match Url::parse(&url) {
            Ok(url) if !matches!(url.scheme(), "http" | "https") => {
                fail(
                    "url".to_owned(),
                    format!("begins with `{}:`; only http and https work", url.scheme()),
                );
                None
            }
            Ok(url) => Some(url),
            Err(error) => {
                fail(
                    "url".to_owned(),
                    format!("is not a URL such as https://example.com/path: {error}"),
                );
                None
            }
        };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(&value)) {
                (Ok(name), Ok(value)) => drop(map.append(name, value)),
                (Err(_), _) => fail(format!("headers.{name}"), "is not a header name".to_owned()),
                (_, Err(_)) => fail(
                    format!("headers.{name}"),
                    "holds characters that no header can carry".to_owned(),
                ),
            }
        }
        let body = body
            .filter(|b| b.get() != "null")
            .map(|body| match body.to::<String>() {
                Ok(text) => text,
                Err(_) => {
                    map.entry(CONTENT_TYPE)
                        .or_insert(HeaderValue::from_static("application/json"));
                    body.get().to_owned()
                }
            });
        match url {
            Some(url) if problems.is_empty() => Ok(Request {
                method,
                url,
                headers: map,
                body,
                expect,
            }),
            _ => Err(Invalid(problems)),
        }
    }
}

#[async_trait]
impl Handler for HttpHandler {
    async fn run(&self, ctx: Context) -> Outcome {
        let request = match Request::of(&ctx.spec().parameters) {
            Ok(request) => request,
            Err(invalid) => return Outcome::Fail(bad_parameters(&invalid)),
        };
        let client = match self.client.get_or_init(build_client) {
            Ok(client) => client,
            Err(error) => {
                return Outcome::Fail(ErrorInfo::new(
                    kinds::FAILED,
                    format!("no HTTP client could be made: {error}"),
                ));
            }
        };
        tokio::select! {
            outcome = call(client, request, ctx.now()) => outcome,
            () = ctx.cancellation().cancelled() => Outcome::Cancelled,
        }
    }

    fn check(&self, parameters: &Json) -> Result<(), Invalid> {
        Request::of(parameters).map(drop)
    }
}

fn build_client() -> Result<Client, String> {
    // A provider that the program installed before stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .user_agent(concat!("pensum/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(redirect::Policy::limited(REDIRECTS_MAX))
        .build()
        .map_err(|error| error.to_string())
}

async fn call(client: &Client, request: Request, now: Time) -> Outcome {
    let Request {
        method,
        url,
        headers,
        body,
        expect,
    } = request;
    let mut builder = client.request(method, url).headers(headers);
    if let Some(body) = body {
        builder = builder.body(body);
    }
    let response = match builder.send().await {
        Ok(response) => response,
        Err(error) => return no_answer(&error),
    };
    let status = response.status();
    let after = retry_after(&response, now);
    let (body, whole) = match read_body(response).await {
        Ok(body) => body,
        Err(error) => return no_answer(&error),
    };
    if expect.holds(status) {
        return Outcome::Done(result(&body, whole));
    }
    let quote = body[..body.floor_char_boundary(QUOTE_BYTES_MAX)].trim();
    let colon = if quote.is_empty() { "" } else { ": " };
    let error = ErrorInfo::new(
        kinds::HTTP_STATUS,
        format!("the answer was {status}, which was not expected{colon}{quote}"),
    );
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        Outcome::Retry { error, after }
    } else {
        Outcome::Fail(error)
    }
}

/// No answer, or half of one. An error without its causes says little, so they are all named.
fn no_answer(error: &reqwest::Error) -> Outcome {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        message = format!("{message}: {inner}");
        cause = inner.source();
    }
    let error_info = ErrorInfo::new(kinds::HTTP_CONNECT, message);
    if error.is_redirect() || error.is_builder() {
        return Outcome::Fail(error_info);
    }
    Outcome::Retry {
        error: error_info,
        after: None,
    }
}

/// The body as text, and whether it is whole.
async fn read_body(mut response: Response) -> Result<(String, bool), reqwest::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = BODY_BYTES_MAX - bytes.len();
        if chunk.len() > room {
            bytes.extend_from_slice(&chunk[..room]);
            return Ok((text(&bytes), false));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok((text(&bytes), true))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\0', "\u{FFFD}")
}

/// The body as the task's result.
fn result(body: &str, whole: bool) -> Json {
    if whole
        && let Ok(json) = Json::parse(body.trim().to_owned())
        && json.problem().is_none()
    {
        return json;
    }
    // Escapes make JSON longer than the text.
    let mut keep = body;
    loop {
        let json = Json::from(serde_json::Value::from(keep));
        if json.problem().is_none() || keep.is_empty() {
            return json;
        }
        keep = &keep[..keep.floor_char_boundary(keep.len() / 2)];
    }
}

/// `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date.
fn retry_after(response: &Response, now: Time) -> Option<Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    let after = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
            Time::from_micros(date.as_microsecond()).since(now)
        }
    };
    Some(after.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(parameters: &str, problem: Option<&str>) {
        let found = Request::of(&Json::parse(parameters.to_owned()).unwrap())
            .err()
            .map(|e| e.to_string());
        match problem {
            None => assert_eq!(found, None, "{parameters}"),
            Some(part) => assert!(
                found.as_deref().is_some_and(|f| f.contains(part)),
                "{parameters}: {found:?}"
            ),
        }
    }

    #[test]
    fn wrong_parameters_are_named_by_their_path() {
        check(
            r#"{"url":"http://a/","expect":[200,"4xx"],"headers":{"x-a":"b"}}"#,
            None,
        );
        check(r#"{"url":"ftp://a/"}"#, Some("url: begins with `ftp:`"));
        check(r#"{"url":"nowhere"}"#, Some("url: is not a URL"));
        check(r#"{"url":"http://a/","method":"a b"}"#, Some("method"));
        check(r#"{"url":"http://a/","expect":"9xx"}"#, Some("expect"));
        check(r#"{"url":"http://a/","headers":{"a b":"c"}}"#, Some("headers.a b"));
        check(r#"{"url":"http://a/","speed":1}"#, Some("speed"));
        check("{}", Some("url"));
    }

    #[test]
    fn an_expectation_is_a_code_a_class_or_a_list() {
        let expect: Expect = serde_json::from_str(r#"[204, "3xx"]"#).unwrap();
        assert!(expect.holds(StatusCode::NO_CONTENT) && expect.holds(StatusCode::FOUND));
        assert!(!expect.holds(StatusCode::OK));
        assert!(Expect::default().holds(StatusCode::CREATED));
    }
}
