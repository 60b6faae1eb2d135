//! `pensum intake …`: what other programs left in the store within transactions of their own, and was not enqueued yet.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::Client;
use super::exit::Exit;
use super::output::{self, Column, Format, age, plain};
use super::task::{Refusals, json_of, source};
use super::{Global, confirm, now};

const COLUMNS: [Column; 7] = [
    Column::number("id", |row, _| plain(&row["id"])),
    Column::text("status", |row, _| plain(&row["status"])),
    Column::text("asks for", |row, _| asks_for(&row["task"])),
    Column::text("by", |row, _| plain(&row["actor"])),
    Column::number("age", |row, now| age(&row["created_at"], now)),
    Column::number("bytes", |row, _| plain(&row["bytes"])).wide(),
    Column::text("error", |row, _| plain(&row["error"])),
];

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the rows that wait and those that were refused, newest first.
    List {
        /// Only rows that wait, or only rejected ones.
        #[arg(long, value_name = "waiting|rejected")]
        status: Option<String>,
        /// How many rows at most; 50 by default.
        #[arg(short = 'n', long)]
        limit: Option<usize>,
        /// All of them, however many.
        #[arg(short, long)]
        all: bool,
    },
    /// Have rejected rows looked at again.
    Retry(RetryArgs),
    /// Remove rows, so that they are never enqueued.
    Delete {
        /// The rows.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<i64>,
    },
}

#[derive(Args, Debug)]
pub(crate) struct RetryArgs {
    /// The rows.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<i64>,
    /// What is to stand in the row from now on: a task or a batch as JSON, @FILE, or - for standard input.
    #[arg(long, value_name = "JSON|@FILE|-")]
    task: Option<String>,
}

pub(crate) async fn intake(global: &Global, command: Command) -> anyhow::Result<Exit> {
    let client = Client::connect(global, false).await?;
    let result = dispatch(global, &client, command).await;
    client.close().await;
    result
}

async fn dispatch(global: &Global, client: &Client, command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::List { status, limit, all } => {
            let query: Vec<(&str, String)> = status.into_iter().map(|status| ("status", status)).collect();
            let (items, next) = client.list("/api/v1/intake", &query, limit, all).await?;
            output::list(global.output, &COLUMNS, &items, next.as_deref(), now())?;
            Ok(Exit::Ok)
        }
        Command::Retry(args) => retry(global, client, &args).await,
        Command::Delete { ids } => delete(global, client, &ids).await,
    }
}

async fn retry(global: &Global, client: &Client, args: &RetryArgs) -> anyhow::Result<Exit> {
    let body = match &args.task {
        Some(text) => json!({ "task": json_of("--task", &source(text)?)? }),
        None => json!({}),
    };
    let mut refused = Refusals::default();
    for id in &args.ids {
        match client.post(&format!("/api/v1/intake/{id}/retry"), &body).await {
            Ok(_) => say(global, *id, "retried", "waits to be enqueued")?,
            Err(error) => refused.note(error)?,
        }
    }
    refused.or(Exit::Ok)
}

async fn delete(global: &Global, client: &Client, ids: &[i64]) -> anyhow::Result<Exit> {
    if ids.len() > 1 {
        confirm(global, &format!("Delete {} rows of the intake?", ids.len()))?;
    }
    let mut refused = Refusals::default();
    for id in ids {
        match client.delete(&format!("/api/v1/intake/{id}")).await {
            Ok(()) => say(global, *id, "deleted", "deleted")?,
            Err(error) => refused.note(error)?,
        }
    }
    refused.or(Exit::Ok)
}

/// Tells what was done with a row.
fn say(global: &Global, id: i64, done: &str, for_people: &str) -> anyhow::Result<()> {
    match global.output {
        format if format.is_for_people() => output::println(&format!("row {id} {for_people}")),
        Format::Name => output::println(&id.to_string()),
        _ => output::println(&json!({ "id": id, done: true }).to_string()),
    }
}

/// What a row asks for, in a few words.
fn asks_for(task: &Value) -> String {
    let batch = task.as_array().or_else(|| task["tasks"].as_array());
    match (batch, task) {
        (Some(batch), _) => format!("{} tasks", batch.len()),
        (None, Value::Null) => "(large)".to_owned(),
        (None, _) => ["handler", "task_type"]
            .iter()
            .map(|field| plain(&task[*field]))
            .find(|name| !name.is_empty())
            .unwrap_or_default(),
    }
}
