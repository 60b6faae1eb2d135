//! `pensum dlq retry`: by id, with other parameters; all of a filter, with a sample first.

use std::collections::BTreeSet;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use pensum_core::query::PAGE_MAX;
use pensum_core::time::Span;
use pensum_core::{Status, TaskId, Time};
use serde_json::{Value, json};

use super::edit::{Edit, edit};
use super::{PATH, Which};
use crate::cli::client::Client;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{self, Column, Format, plain};
use crate::cli::task::{Begun, act_on_each, begin_bulk, bulk, id_of, path, verdict, wait};
use crate::cli::{Global, now};

/// What became of the sample.
const COLUMNS: [Column; 4] = [
    Column::text("id", |task, _| plain(&task["id"])),
    Column::text("name", |task, _| plain(&task["name"])),
    Column::text("status", |task, _| plain(&task["status"])),
    Column::text("error", |task, _| plain(&task["error"]["message"])),
];

#[derive(Args, Debug)]
pub(crate) struct RetryArgs {
    #[command(flatten)]
    which: Which,
    /// Change a parameter of each task first: to=ann, limits.memory=1GB, args[0]=5. May be repeated.
    #[arg(long, value_name = "PATH=VALUE", conflicts_with = "all")]
    set: Vec<String>,
    /// Give each task these parameters first: JSON, @FILE, or - for standard input.
    #[arg(long, alias = "params", value_name = "JSON|@FILE|-", conflicts_with_all = ["all", "set"])]
    parameters: Option<String>,
    /// With --all, retry so many first, and the others only when all of these have completed.
    #[arg(long, value_name = "N", requires = "all", conflicts_with_all = ["dry_run", "ids"],
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=PAGE_MAX as u64))]
    sample: Option<usize>,
}

pub(super) async fn retry(global: &Global, client: &Client, args: &RetryArgs) -> anyhow::Result<Exit> {
    let which = &args.which;
    if let Some(size) = args.sample {
        return sampled(global, client, which, size).await;
    }
    if which.all {
        return bulk(global, client, "retry", &which.filter(), which.dry_run).await;
    }
    let mut seen = BTreeSet::new();
    let ids: Vec<TaskId> = which.ids.iter().copied().filter(|id| seen.insert(*id)).collect();
    if let Some(change) = Edit::of(&args.set, args.parameters.as_deref())? {
        edit(client, &ids, &change).await?;
    }
    act_on_each(global, client, "retry", &ids, None).await
}

/// Retries some, and the others when all of those have completed.
async fn sampled(global: &Global, client: &Client, which: &Which, size: usize) -> anyhow::Result<Exit> {
    if client.is_alone() {
        let message = "no node runs on this store, so no sample would end; start one with `pensum serve`";
        return Err(Failure::new(Exit::Unreachable, message).into());
    }
    let filter = which.filter();
    let matched = begin_bulk(client, "retry", &filter, true).await?.matched;
    let (sample, _) = client.list(PATH, &filter, Some(size), false).await?;
    let ids = sample
        .iter()
        .map(|task| id_of(task))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let left = matched.saturating_sub(ids.len() as u64);
    let alone = |failure: &Failure| Failure::new(failure.exit, format!("{failure}\n{}", left_alone(left)));
    let ended = match run(global, client, &ids).await {
        Ok(ended) => ended,
        Err(error) => return Err(error.downcast_ref().map(alone).map_or(error, Into::into)),
    };
    let good = verdict(&ended) == Exit::Ok;
    let begun = match good && left > 0 {
        true => Some(begin_bulk(client, "retry", &filter, false).await?),
        false => None,
    };
    let mut exit = if good { Exit::Ok } else { Exit::Failed };
    let mut rest = begun.as_ref().map(|begun| begun.text.clone());
    if global.wait
        && let Some(task) = begun.as_ref().and_then(|begun| begun.task)
    {
        let done = wait(global, client, &[task]).await?;
        exit = verdict(&done);
        rest = done.into_iter().next();
    }
    report(global.output, &ended, begun.as_ref(), rest.as_deref(), left)?;
    if good {
        return Ok(exit);
    }
    let bad = ended
        .iter()
        .filter(|task| verdict(std::slice::from_ref(*task)) != Exit::Ok)
        .count();
    let message = format!(
        "{bad} of {} tasks of the sample did not complete\n{}",
        ended.len(),
        left_alone(left)
    );
    Err(Failure::new(Exit::Failed, message).into())
}

/// Retries tasks and waits until they have ended, within the time of `--timeout` for all of them together.
async fn run(global: &Global, client: &Client, ids: &[TaskId]) -> anyhow::Result<Vec<String>> {
    let until = global.timeout.map_or(Time::MAX, |timeout| now().plus(timeout.0));
    for id in ids {
        client.post(&format!("{}/retry", path(*id)), &json!({})).await?;
    }
    let mut ended = Vec::with_capacity(ids.len());
    for id in ids {
        let left = Global {
            timeout: global.timeout.map(|_| Span(until.since(now()))),
            ..global.clone()
        };
        ended.extend(wait(&left, client, &[*id]).await?);
        let task: Value = serde_json::from_str(ended.last().map_or("null", String::as_str))?;
        let status = plain(&task["status"]);
        let error = match task["status"].as_str() {
            Some(status) if status == Status::Completed.as_str() => String::new(),
            _ => format!(": {}", output::one_line(&plain(&task["error"]["message"]))),
        };
        output::warn(&format!(
            "sample: {} of {} ended; task {id} {status}{error}",
            ended.len(),
            ids.len()
        ));
    }
    Ok(ended)
}

/// Shows what became of the sample, and what was begun with the rest.
fn report(
    format: Format,
    sample: &[String],
    begun: Option<&Begun>,
    rest: Option<&str>,
    left: u64,
) -> anyhow::Result<()> {
    let task = begun.and_then(|begun| begun.task);
    match format {
        Format::Name => {
            for text in sample {
                output::println(&id_of(text)?.to_string())?;
            }
            task.iter().try_for_each(|task| output::println(&task.to_string()))
        }
        Format::Json | Format::Jsonl | Format::Yaml => {
            let left = if begun.is_some() { 0 } else { left };
            let sample = sample.join(",");
            let rest = rest.unwrap_or("null");
            let whole = format!("{{\"sample\":[{sample}],\"rest\":{rest},\"left_alone\":{left}}}");
            output::item(format, &whole, |_| String::new())
        }
        Format::Table | Format::Wide if sample.is_empty() => output::println("retry: no dead letter matches"),
        Format::Table | Format::Wide => {
            output::list(format, &COLUMNS, sample, None, now())?;
            match (begun, task) {
                (Some(begun), Some(task)) => {
                    output::println(&format!("retry: {} tasks, carried out by task {task}", begun.matched))
                }
                _ => Ok(()),
            }
        }
    }
}

fn left_alone(left: u64) -> String {
    match left {
        0 => "No other dead letter matches".to_owned(),
        1 => "The other dead letter that matches was left alone".to_owned(),
        _ => format!("The other {left} dead letters that match were left alone"),
    }
}
