//! The log lines of a task, as a list or as a stream that goes on until the task ends.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::stream;
use pensum_core::query::PAGE_MAX;
use pensum_core::store::{LogEntry, LogStream};
use pensum_core::{State as TaskState, TaskId, Time};
use pensum_engine::EngineError;
use serde::Serialize;

use crate::app::{App, Listing, json};
use crate::cursor::{self, List};
use crate::executions::check_exists;
use crate::extract::{NAMESPACE, Params, TaskPath};
use crate::problem::{Kind, Problem, ProblemDetails};

/// How often a stream looks for new lines. The end of the task wakes it at once.
const POLL: Duration = Duration::from_millis(250);
/// A comment goes out after so many polls without a line, so that proxies keep the connection: every 15 s.
const SILENT_POLLS_MAX: u32 = 60;

/// A line that a task logged.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct LogView {
    /// Order within the store; pass it as `after` to go on behind it.
    seq: u64,
    /// When it was said.
    #[schema(value_type = String)]
    at: Time,
    /// Which attempt said it.
    attempt: u32,
    /// Where it comes from.
    stream: LogStream,
    /// The line, without its line end.
    message: String,
}

impl From<LogEntry> for LogView {
    fn from(LogEntry { seq, line }: LogEntry) -> LogView {
        LogView {
            seq,
            at: line.at,
            attempt: line.attempt,
            stream: line.stream,
            message: line.message,
        }
    }
}

/// Reads the log of a task, oldest line first.
///
/// With `follow=true` the answer is a stream that ends when the task has ended: server-sent events (`log`, then `end`
/// with the task's state) where the Accept header names `text/event-stream`, else one JSON object a line.
#[utoipa::path(get, path = "/api/v1/tasks/{id}/logs", operation_id = "read_logs", tag = "tasks",
    params(("id" = String, Path, description = "The task's id, a UUID"),
        ("after" = Option<u64>, Query, description = "Only lines after this `seq`"),
        ("attempt" = Option<u32>, Query, description = "Only lines of this attempt"),
        ("follow" = Option<bool>, Query, description = "Stream lines until the task ends"),
        ("limit" = Option<usize>, Query, description = "How many items, 1 to 200; 50 by default. Not with `follow`"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before, instead of `after`"),
        ("Last-Event-ID" = Option<u64>, Header, description = "The `seq` after which a broken stream goes on, instead of `after`")),
    responses(
        (status = 200, description = "One page, or the stream", content((Listing<LogView> = "application/json"),
            (LogView = "application/x-ndjson"), (String = "text/event-stream"))),
        (status = 404, description = "No such task", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn read(
    State(app): State<App>,
    TaskPath(id): TaskPath,
    headers: HeaderMap,
    mut params: Params,
) -> Result<Response, Problem> {
    let after = params.number::<u64>("after")?;
    let attempt = params.number::<u32>("attempt")?;
    let follow = params.flag("follow")?.unwrap_or(false);
    let limit = params.limit()?;
    let cursor = params
        .text("cursor")?
        .map(|text| cursor::decode(List::Logs, &text))
        .transpose()?;
    params.finish()?;
    if after.is_some() && cursor.is_some() {
        return Err(Problem::at(
            Kind::BadRequest,
            "cursor",
            "cannot stand beside after; give one of them",
        ));
    }
    let after = after.or_else(|| cursor.and_then(|c| u64::try_from(c).ok()));
    // Stores count in signed numbers.
    if after.is_some_and(|after| i64::try_from(after).is_err()) {
        return Err(Problem::at(Kind::BadRequest, "after", "is larger than any seq"));
    }
    check_exists(&app, id).await?;
    if follow {
        let after = after.or_else(|| last_event_id(&headers)).unwrap_or_default();
        return Ok(stream_from(Follow::new(
            app,
            id,
            after,
            attempt,
            wants_events(&headers),
        )));
    }
    page(&app, id, after.unwrap_or_default(), attempt, limit).await
}

async fn page(app: &App, id: TaskId, mut after: u64, attempt: Option<u32>, limit: usize) -> Result<Response, Problem> {
    let mut items = Vec::new();
    // A task keeps a bounded number of lines, so this ends.
    let more = loop {
        let entries = app.engine.store().logs(NAMESPACE, id, after, PAGE_MAX).await?;
        let full = entries.len() == PAGE_MAX;
        let mut rest = entries.into_iter();
        for entry in rest.by_ref() {
            after = entry.seq;
            if attempt.is_none_or(|attempt| attempt == entry.line.attempt) {
                items.push(LogView::from(entry));
            }
            if items.len() == limit {
                break;
            }
        }
        if items.len() == limit {
            break full || rest.len() > 0;
        }
        if !full {
            break false;
        }
    };
    let next_cursor = more.then(|| cursor::encode(List::Logs, after as i64));
    Ok(json(StatusCode::OK, &Listing { items, next_cursor }))
}

fn last_event_id(headers: &HeaderMap) -> Option<u64> {
    let id = headers.get("last-event-id")?.to_str().ok()?.parse::<u64>().ok()?;
    i64::try_from(id).ok().map(|_| id)
}

fn wants_events(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(header::ACCEPT).iter();
    accepts
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("text/event-stream"))
}

fn stream_from(follow: Follow) -> Response {
    let media = if follow.events {
        "text/event-stream"
    } else {
        "application/x-ndjson"
    };
    let chunks = stream::unfold(follow, |mut follow| async {
        let chunk = follow.next().await?;
        Some((Ok::<_, Infallible>(chunk), follow))
    });
    let mut response = Response::new(Body::from_stream(chunks));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

/// A reader of a task's log that waits for more.
struct Follow {
    app: App,
    id: TaskId,
    after: u64,
    attempt: Option<u32>,
    /// Server-sent events instead of lines of JSON.
    events: bool,
    end: Option<End>,
    silent_polls: u32,
    done: bool,
}

/// Why a stream ends.
#[derive(Clone, Copy)]
enum End {
    /// The task has ended; what it logged before is read first.
    Task(TaskState),
    /// The task is gone, the store fails or the server shuts down.
    Broken(&'static str),
}

impl Follow {
    fn new(app: App, id: TaskId, after: u64, attempt: Option<u32>, events: bool) -> Follow {
        Follow {
            app,
            id,
            after,
            attempt,
            events,
            end: None,
            silent_polls: 0,
            done: false,
        }
    }

    /// The next piece of the stream; `None` at its end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.done {
                return None;
            }
            match self
                .app
                .engine
                .store()
                .logs(NAMESPACE, self.id, self.after, PAGE_MAX)
                .await
            {
                Ok(entries) if entries.is_empty() => {}
                Ok(entries) => {
                    let text = self.render(entries);
                    if text.is_empty() {
                        continue;
                    }
                    self.silent_polls = 0;
                    return Some(text.into());
                }
                Err(_) => self.end = Some(End::Broken("the store is unavailable")),
            }
            if let Some(end) = self.end {
                self.done = true;
                return self.events.then(|| farewell(end));
            }
            self.wait().await;
            if self.events && self.silent_polls >= SILENT_POLLS_MAX {
                self.silent_polls = 0;
                return Some(Bytes::from_static(b": still here\n\n"));
            }
        }
    }

    /// Returns when there may be something new.
    async fn wait(&mut self) {
        let ended = self.app.engine.wait(NAMESPACE, self.id, None);
        tokio::select! {
            () = self.app.draining.cancelled() => self.end = Some(End::Broken("the server shuts down")),
            waited = tokio::time::timeout(POLL, ended) => match waited {
                Ok(Ok(record)) => self.end = Some(End::Task(record.lifecycle.state)),
                Ok(Err(EngineError::NotFound(_))) => self.end = Some(End::Broken("the task was deleted")),
                Ok(Err(_)) => self.end = Some(End::Broken("the store is unavailable")),
                Err(_) => self.silent_polls += 1,
            },
        }
    }

    fn render(&mut self, entries: Vec<LogEntry>) -> String {
        let mut text = String::new();
        for entry in entries {
            self.after = entry.seq;
            if self.attempt.is_some_and(|attempt| attempt != entry.line.attempt) {
                continue;
            }
            let view = LogView::from(entry);
            let line = serde_json::to_string(&view).unwrap_or_default();
            if self.events {
                text.push_str(&format!("id: {}\nevent: log\ndata: {line}\n\n", view.seq));
            } else {
                text.push_str(&line);
                text.push('\n');
            }
        }
        text
    }
}

fn farewell(end: End) -> Bytes {
    match end {
        End::Task(state) => format!("event: end\ndata: {{\"status\":\"{state}\"}}\n\n").into(),
        End::Broken(why) => format!("event: broken\ndata: {{\"message\":\"{why}\"}}\n\n").into(),
    }
}
