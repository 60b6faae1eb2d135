//! Tasks, their attempts and their history, as tables and as data.

use clap::Args;
use pensum_core::{TaskId, Time};
use serde_json::Value;

use super::{FilterArgs, has_ended, path, watched};
use crate::cli::client::Client;
use crate::cli::exit::Exit;
use crate::cli::output::{self, Column, Format, age, plain, spoken};
use crate::cli::{Global, now};

/// The columns of a list of tasks.
pub(crate) const COLUMNS: [Column; 15] = [
    Column::text("id", |task, _| plain(&task["id"])),
    Column::text("name", |task, _| plain(&task["name"])),
    Column::text("handler", |task, _| plain(&task["handler"])),
    Column::text("status", |task, _| plain(&task["status"])),
    Column::text("waiting for", |task, _| plain(&task["waiting_for"])).wide(),
    Column::text("queue", |task, _| plain(&task["queue"])).wide(),
    Column::text("priority", |task, _| plain(&task["priority"])),
    Column::number("attempt", |task, _| plain(&task["attempt"])),
    Column::number("progress", |task, _| progress(task)),
    Column::number("age", |task, now| age(&task["created_at"], now)),
    Column::number("took", took).wide(),
    Column::text("tags", |task, _| list_of(&task["tags"])).wide(),
    Column::text("key", |task, _| plain(&task["key"])).wide(),
    Column::text("parent", |task, _| plain(&task["parent_id"])).wide(),
    Column::text("error", |task, _| plain(&task["error"]["message"])).wide(),
];

const EVENTS: [Column; 5] = [
    Column::text("time", |event, _| plain(&event["at"])),
    Column::text("event", |event, _| plain(&event["kind"])),
    Column::number("attempt", |event, _| plain(&event["attempt"])),
    Column::text("by", |event, _| plain(&event["actor"])),
    Column::text("error", |event, _| plain(&event["error"]["message"])),
];

const EXECUTIONS: [Column; 8] = [
    Column::number("attempt", |run, _| plain(&run["attempt"])),
    Column::text("status", |run, _| plain(&run["status"])),
    Column::text("executor", |run, _| plain(&run["executor_id"])),
    Column::text("started", |run, _| plain(&run["started_at"])),
    Column::number("wall", |run, _| seconds(&run["resource_usage"]["wall_seconds"])),
    Column::number("cpu", |run, _| seconds(&run["resource_usage"]["cpu_seconds"])),
    Column::number("memory", |run, _| {
        run["resource_usage"]["memory_mb"]
            .as_f64()
            .map(|mb| format!("{mb:.1} MB"))
            .unwrap_or_default()
    }),
    Column::text("error", |run, _| plain(&run["error"]["message"])),
];

#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// How many tasks at most; 50 by default.
    #[arg(short = 'n', long)]
    limit: Option<usize>,
    /// All tasks, however many.
    #[arg(short, long)]
    all: bool,
}

pub(crate) async fn list(global: &Global, client: &Client, args: &ListArgs) -> anyhow::Result<Exit> {
    watched(global, || async {
        let (items, next) = client
            .list("/api/v1/tasks", &args.filter.query(), args.limit, args.all)
            .await?;
        output::list(global.output, &COLUMNS, &items, next.as_deref(), now())?;
        if next.is_some() && args.limit.is_none() && global.output.is_for_people() {
            output::warn("there are more: give --limit N or --all");
        }
        Ok(false)
    })
    .await
}

pub(crate) async fn get(global: &Global, client: &Client, ids: &[TaskId]) -> anyhow::Result<Exit> {
    watched(global, || async {
        let mut texts = Vec::with_capacity(ids.len());
        for id in ids {
            texts.push(client.get(&path(*id), &[]).await?);
        }
        tasks(global, &texts)?;
        Ok(texts
            .iter()
            .all(|text| serde_json::from_str(text).is_ok_and(|task| has_ended(&task))))
    })
    .await
}

/// Shows one task in full, several as a list.
pub(crate) fn tasks(global: &Global, texts: &[String]) -> anyhow::Result<()> {
    let now = now();
    match (texts, global.output) {
        ([one], format) => output::item(format, one, |task| describe(task, now)),
        (many, Format::Json | Format::Yaml) => {
            output::item(global.output, &format!("[{}]", many.join(",")), |_| String::new())
        }
        (many, format) => output::list(format, &COLUMNS, many, None, now),
    }
}

/// A task as lines of names and values.
pub(crate) fn describe(task: &Value, now: Time) -> String {
    let when = |key: &str| match task[key].as_str() {
        Some(at) => format!("{at} ({} ago)", age(&task[key], now)),
        None => String::new(),
    };
    let later = |key: &str| match task[key].as_str().and_then(|at| Time::parse(at).ok()) {
        Some(at) if at > now => format!("{at} (in {})", spoken(at.since(now))),
        _ => String::new(),
    };
    let error = match (task["error"]["type"].as_str(), task["error"]["message"].as_str()) {
        (Some(kind), Some(message)) => format!("{kind}: {message}"),
        _ => String::new(),
    };
    let status = match task["waiting_for"].as_str() {
        Some(what) => format!("{}, waiting for {what}", plain(&task["status"])),
        None => plain(&task["status"]),
    };
    let attempt = format!(
        "{} ({} failed, {} retries allowed)",
        task["attempt"], task["retry_count"], task["max_retries"]
    );
    let json = |key: &str| {
        if task[key].is_null() {
            String::new()
        } else {
            task[key].to_string()
        }
    };
    output::fields(&[
        ("id", plain(&task["id"])),
        ("name", plain(&task["name"])),
        ("description", plain(&task["description"])),
        ("handler", plain(&task["handler"])),
        ("status", status),
        ("error", error),
        (
            "progress",
            match has_ended(task) {
                true => String::new(),
                false => [progress(task), plain(&task["progress"]["message"])]
                    .join(" ")
                    .trim()
                    .to_owned(),
            },
        ),
        ("result", json("result")),
        ("parameters", json("parameters")),
        ("metadata", json("metadata")),
        ("queue", plain(&task["queue"])),
        ("priority", plain(&task["priority"])),
        ("attempt", attempt),
        (
            "timeout",
            task["timeout"]
                .as_f64()
                .filter(|t| *t > 0.0)
                .map(|t| format!("{t} s"))
                .unwrap_or_default(),
        ),
        ("key", plain(&task["key"])),
        ("tags", list_of(&task["tags"])),
        ("depends on", list_of(&task["depends_on"])),
        ("durable", durable(task)),
        ("created", when("created_at")),
        ("runs at", later("run_at")),
        ("started", when("started_at")),
        ("finished", when("finished_at")),
        ("took", took(task, now)),
        ("dead letter", when("dead_lettered_at")),
        ("created by", plain(&task["created_by"])),
        ("assigned to", plain(&task["assigned_to"])),
        ("parent", plain(&task["parent_id"])),
        ("version", plain(&task["version"])),
    ])
}

/// Said of a task that is not.
fn durable(task: &Value) -> String {
    match task["durable"].as_bool() {
        Some(false) => "no: it ends with the process that accepted it".to_owned(),
        _ => String::new(),
    }
}

pub(crate) async fn events(global: &Global, client: &Client, id: TaskId) -> anyhow::Result<Exit> {
    let (items, next) = client.list(&format!("{}/events", path(id)), &[], None, true).await?;
    output::list(global.output, &EVENTS, &items, next.as_deref(), now())?;
    Ok(Exit::Ok)
}

pub(crate) async fn executions(global: &Global, client: &Client, id: TaskId) -> anyhow::Result<Exit> {
    let (items, next) = client
        .list(&format!("{}/executions", path(id)), &[], None, true)
        .await?;
    output::list(global.output, &EXECUTIONS, &items, next.as_deref(), now())?;
    Ok(Exit::Ok)
}

pub(crate) async fn explain(global: &Global, client: &Client, id: TaskId) -> anyhow::Result<Exit> {
    let text = client.get(&format!("{}/explain", path(id)), &[]).await?;
    output::item(global.output, &text, |explanation| {
        let mut lines = vec![plain(&explanation["summary"])];
        for gate in explanation["gates"].as_array().into_iter().flatten() {
            let expected = match gate["opens_at"].as_str().and_then(|at| Time::parse(at).ok()) {
                Some(at) => format!("; expected at {at} (in {})", spoken(at.since(now()))),
                None => String::new(),
            };
            lines.push(format!(
                "- {}: {}{expected}",
                plain(&gate["gate"]),
                plain(&gate["message"])
            ));
        }
        lines
            .iter()
            .filter(|line| !line.is_empty())
            .map(|line| format!("{line}\n"))
            .collect()
    })?;
    Ok(Exit::Ok)
}

/// How far an unfinished task is; what a finished one said last would only mislead.
fn progress(task: &Value) -> String {
    match task["progress"]["percent"].as_f64() {
        Some(percent) if !has_ended(task) => format!("{percent:.0}%"),
        _ => String::new(),
    }
}

/// From the start to the end of the last attempt, or until now.
fn took(task: &Value, now: Time) -> String {
    let time = |key: &str| task[key].as_str().and_then(|at| Time::parse(at).ok());
    let Some(started) = time("started_at") else {
        return String::new();
    };
    spoken(time("finished_at").unwrap_or(now).since(started))
}

fn seconds(value: &Value) -> String {
    value
        .as_f64()
        .map(|seconds| format!("{seconds:.2}s"))
        .unwrap_or_default()
}

fn list_of(value: &Value) -> String {
    let items: Vec<String> = value.as_array().into_iter().flatten().map(plain).collect();
    items.join(", ")
}
