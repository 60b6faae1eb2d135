//! `pensum task logs`.

use std::time::Duration;

use clap::Args;
use pensum_core::TaskId;
use serde_json::Value;

use super::{has_ended, path};
use crate::cli::Global;
use crate::cli::client::Client;
use crate::cli::exit::Exit;
use crate::cli::output::{self, Format, plain};

/// How often `--follow` looks for new lines.
const POLL: Duration = Duration::from_millis(300);

#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// The task.
    id: TaskId,
    /// Only lines of this attempt.
    #[arg(long)]
    attempt: Option<u32>,
    /// Go on until the task has ended.
    #[arg(short, long)]
    follow: bool,
}

pub(crate) async fn logs(global: &Global, client: &Client, args: &LogsArgs) -> anyhow::Result<Exit> {
    let follow = (args.follow || global.watch) && !client.is_alone();
    let mut after = 0;
    let mut all = Vec::new();
    loop {
        // Whether it has ended is asked first, so that no line written before its end is missed.
        let ended = !follow || has_ended(&client.get_value(&path(args.id), &[]).await?);
        let mut query = vec![("after", after.to_string())];
        query.extend(args.attempt.map(|attempt| ("attempt", attempt.to_string())));
        let (lines, _) = client
            .list(&format!("{}/logs", path(args.id)), &query, None, true)
            .await?;
        for line in lines {
            let value: Value = serde_json::from_str(&line)?;
            after = value["seq"].as_u64().unwrap_or(after);
            match global.output {
                Format::Table => output::println(&printable(&plain(&value["message"])))?,
                Format::Wide => output::println(&wide(&value))?,
                Format::Jsonl => output::println(&line)?,
                Format::Name => output::println(&after.to_string())?,
                Format::Json | Format::Yaml => all.push(line),
            }
        }
        if ended {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    if matches!(global.output, Format::Json | Format::Yaml) {
        output::list(global.output, &[], &all, None, crate::cli::now())?;
    }
    Ok(Exit::Ok)
}

fn wide(line: &Value) -> String {
    let message = printable(&plain(&line["message"]));
    format!(
        "{} #{} {:6} {message}",
        plain(&line["at"]),
        line["attempt"],
        plain(&line["stream"])
    )
}

/// A line without control characters other than tabs: what a task wrote must not steer the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\t').collect()
}
