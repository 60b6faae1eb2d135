//! `pensum dlq groups`.

use std::time::Duration;

use clap::Args;
use pensum_core::{Fingerprint, Time};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{PATH, by};
use crate::cli::client::Client;
use crate::cli::exit::Exit;
use crate::cli::output::{self, Column, Format, plain};
use crate::cli::task::{FilterArgs, watched};
use crate::cli::{Global, now};

const COLUMNS: [Column; 8] = [
    Column::number("count", |group, _| plain(&group["count"])),
    Column::text("fingerprint", |group, _| plain(&group["fingerprint"])),
    Column::text("handler", |group, _| plain(&group["handler"])),
    Column::text("error", |group, _| error(&group["error"])),
    Column::number("last", |group, now| ago(&group["last_at"], now)),
    Column::number("first", |group, now| ago(&group["first_at"], now)).wide(),
    Column::text("queues", |group, _| names(&group["queues"])).wide(),
    Column::text("newest", |group, _| plain(&group["newest"][0])).wide(),
];

#[derive(Args, Debug)]
pub(crate) struct GroupsArgs {
    #[command(flatten)]
    filter: Box<FilterArgs>,
    /// Only the group with this fingerprint.
    #[arg(long)]
    fingerprint: Option<Fingerprint>,
    /// How many groups at most; 50 by default.
    #[arg(short = 'n', long)]
    limit: Option<usize>,
}

#[derive(Deserialize)]
struct Groups {
    items: Vec<Box<RawValue>>,
    total: usize,
    examined: usize,
    complete: bool,
}

pub(super) async fn groups(global: &Global, client: &Client, args: &GroupsArgs) -> anyhow::Result<Exit> {
    let mut query = args.filter.query();
    query.extend(by(args.fingerprint));
    query.extend(args.limit.map(|limit| ("limit", limit.to_string())));
    watched(global, || async {
        let text = client.get(&format!("{PATH}/groups"), &query).await?;
        show(global.output, &text, now())?;
        Ok(false)
    })
    .await
}

fn show(format: Format, text: &str, now: Time) -> anyhow::Result<()> {
    let Groups {
        items,
        total,
        examined,
        complete,
    } = serde_json::from_str(text)?;
    let items: Vec<String> = items.into_iter().map(|item| item.get().to_owned()).collect();
    match format {
        Format::Json | Format::Yaml => return output::item(format, text, |_| String::new()),
        Format::Name => {
            for item in &items {
                let group: Value = serde_json::from_str(item)?;
                output::println(&plain(&group["fingerprint"]))?;
            }
        }
        _ => output::list(format, &COLUMNS, &items, None, now)?,
    }
    if format.is_for_people() && items.len() < total {
        output::warn(&format!("these are {} of {total} groups: give --limit N", items.len()));
    }
    if format.is_for_people() && !complete {
        output::warn(&format!(
            "there are more dead letters than the newest {examined} that were looked at"
        ));
    }
    Ok(())
}

/// The type and the first line of the message.
fn error(error: &Value) -> String {
    let message = plain(&error["message"]);
    let line = message
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or_default();
    match error["type"].as_str() {
        Some(kind) => format!("{kind}: {line}"),
        None => line.to_owned(),
    }
}

fn ago(at: &Value, now: Time) -> String {
    let since = at.as_str().and_then(|at| Time::parse(at).ok()).map(|at| now.since(at));
    since
        .map(|since: Duration| format!("{} ago", output::spoken(since)))
        .unwrap_or_default()
}

fn names(value: &Value) -> String {
    let names: Vec<String> = value.as_array().into_iter().flatten().map(plain).collect();
    names.join(", ")
}
