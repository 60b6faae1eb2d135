//! `pensum queue put`.

use clap::Args;
use pensum_core::Priority;
use pensum_core::input::RateInput;
use pensum_core::time::Span;
use serde_json::{Map, Value, json};

use super::{QUEUES, name, settings};
use crate::cli::Global;
use crate::cli::client::Client;
use crate::cli::exit::{Exit, Failure};
use crate::cli::task::{json_of, read_file};
use crate::yaml;

/// What can be taken away from a queue.
const CLEARABLE: [&str; 13] = [
    "name",
    "max_concurrent",
    "max_concurrent_per_key",
    "rate_limit",
    "max_depth",
    "max_age",
    "when_full",
    "priority",
    "timeout",
    "max_retries",
    "retry",
    "ageing",
    "fair",
];

#[derive(Args, Debug)]
#[command(allow_negative_numbers = true)]
pub(crate) struct PutArgs {
    /// The queue.
    #[arg(value_name = "NAME", required_unless_present = "file", conflicts_with = "file", value_parser = name)]
    queue: Option<String>,
    /// A YAML or JSON file with {queues: {NAME: {…}}}; each of its queues gets just what the file says. - is standard input.
    #[arg(short, long, value_name = "FILE")]
    file: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Args, Debug)]
#[group(id = "settings", conflicts_with = "file", multiple = true)]
struct Settings {
    /// A name for people.
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// How many of its tasks run at once, on all nodes together.
    #[arg(long, value_name = "N")]
    max_concurrent: Option<u32>,
    /// How many tasks of one key run at once, on all nodes together; 1 by default.
    #[arg(long, value_name = "N")]
    max_concurrent_per_key: Option<u32>,
    /// How many of its tasks start within a time, such as 50/s, 100/m or 10/h.
    #[arg(long, value_name = "N/TIME", value_parser = RateInput::parse)]
    rate: Option<RateInput>,
    /// How many may start at once after a quiet time; as many as in a second by default, at least 1.
    #[arg(long, value_name = "N")]
    burst: Option<u32>,
    /// Start nothing before `pensum queue process` asks for it.
    #[arg(long, conflicts_with = "auto")]
    manual: bool,
    /// Start tasks by itself, which is the default.
    #[arg(long)]
    auto: bool,
    /// Whether its tasks are durable, which is the default; those of a queue that is not persistent end with the process that
    /// accepts them.
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    persistent: Option<bool>,
    /// How many tasks may wait in it.
    #[arg(long, value_name = "N")]
    max_depth: Option<u32>,
    /// How long its oldest ready task may have waited.
    #[arg(long, value_name = "DURATION", value_parser = Span::parse)]
    max_age: Option<Span>,
    /// What happens at --max-depth and over --max-age: refuse (default) new tasks, or drop_oldest ready ones for them.
    #[arg(long, value_name = "refuse|drop_oldest")]
    when_full: Option<String>,
    /// The priority of tasks that name none: low, normal, high, urgent, critical, or 1 to 5.
    #[arg(long)]
    priority: Option<Priority>,
    /// Longest run of one attempt of tasks that name no timeout.
    #[arg(long, value_name = "DURATION", value_parser = Span::parse)]
    task_timeout: Option<Span>,
    /// The retries of tasks that name no number.
    #[arg(long, value_name = "N")]
    max_retries: Option<u32>,
    /// The delays between attempts of tasks that name none, as JSON.
    #[arg(long, value_name = "JSON")]
    retry: Option<String>,
    /// After how long a ready task starts as if it had the next higher priority, such as 5m; once more each time.
    #[arg(long, value_name = "DURATION", value_parser = Span::parse)]
    ageing: Option<Span>,
    /// Let the keys of its tasks take turns.
    #[arg(long)]
    fair: bool,
    /// Take these away: name, max_concurrent, max_concurrent_per_key, rate_limit, max_depth, max_age, when_full, priority,
    /// timeout, max_retries, retry, ageing, fair.
    #[arg(long, value_delimiter = ',', value_name = "FIELD")]
    clear: Vec<String>,
}

pub(super) async fn put(global: &Global, client: &Client, args: PutArgs) -> anyhow::Result<Exit> {
    let done = match (&args.queue, &args.file) {
        (Some(queue), _) => vec![change(client, queue, args.settings).await?],
        (None, Some(file)) => of_file(client, file).await?,
        // The command line asks for one of the two.
        (None, None) => Vec::new(),
    };
    QUEUES.show(global, &done)?;
    Ok(Exit::Ok)
}

/// Changes what is named, of a queue that nobody else changes meanwhile.
async fn change(client: &Client, queue: &str, settings: Settings) -> anyhow::Result<String> {
    let (mut present, version) = match client.get_value(&QUEUES.path(queue), &[]).await {
        Ok(mut found) => (found["settings"].take(), found["version"].as_u64().unwrap_or_default()),
        Err(error) if Exit::of(&error) == Some(Exit::NotFound) => (json!({}), 0),
        Err(error) => return Err(error),
    };
    let Value::Object(fields) = &mut present else {
        return Err(Failure::new(Exit::Failed, "the node answered a queue without settings").into());
    };
    settings.write_to(fields)?;
    client.put(&QUEUES.path(queue), &present, Some(version)).await
}

impl Settings {
    fn write_to(self, fields: &mut Map<String, Value>) -> anyhow::Result<()> {
        for field in &self.clear {
            let field = field.trim();
            if !CLEARABLE.contains(&field) {
                let message = format!("--clear {field}: can be any of {}", CLEARABLE.join(", "));
                return Err(Failure::usage(message).into());
            }
            fields.remove(field);
        }
        // A burst that somebody chose stays with another rate.
        let rate = self.rate.map(|rate| RateInput {
            burst: fields.get("rate_limit").and_then(chosen_burst),
            ..rate
        });
        let rate = rate.map(serde_json::to_value).transpose()?;
        let retry = self.retry.map(|text| json_of("--retry", &text)).transpose()?;
        let auto_start = (self.manual || self.auto).then_some(self.auto);
        let named = [
            ("name", self.name.map(Value::from)),
            ("max_concurrent", self.max_concurrent.map(Value::from)),
            ("max_concurrent_per_key", self.max_concurrent_per_key.map(Value::from)),
            ("auto_start", auto_start.map(Value::from)),
            ("persistent", self.persistent.map(Value::from)),
            ("rate_limit", rate),
            ("max_depth", self.max_depth.map(Value::from)),
            ("max_age", self.max_age.map(serde_json::to_value).transpose()?),
            (
                "when_full",
                self.when_full.map(|when| Value::from(when.replace('-', "_"))),
            ),
            ("priority", self.priority.map(|priority| Value::from(priority.as_str()))),
            ("timeout", self.task_timeout.map(serde_json::to_value).transpose()?),
            ("max_retries", self.max_retries.map(Value::from)),
            ("retry", retry),
            ("ageing", self.ageing.map(serde_json::to_value).transpose()?),
            ("fair", self.fair.then_some(Value::Bool(true))),
        ];
        for (name, value) in named {
            let Some(value) = value else { continue };
            if self.clear.iter().any(|field| field.trim() == name) {
                return Err(Failure::usage(format!("--clear {name}: cannot stand beside a value for it")).into());
            }
            fields.insert(name.to_owned(), value);
        }
        if let Some(burst) = self.burst {
            match fields.get_mut("rate_limit") {
                Some(Value::Object(rate)) => drop(rate.insert("burst".to_owned(), burst.into())),
                _ => return Err(Failure::usage("--burst: the queue has no rate; give it one with --rate").into()),
            }
        }
        Ok(())
    }
}

/// The burst of a rate, unless it is what the rate has by default.
fn chosen_burst(rate: &Value) -> Option<u32> {
    let rate: RateInput = serde_json::from_value(rate.clone()).ok()?;
    rate.burst.filter(|burst| *burst != rate.burst_default())
}

/// Puts every queue of a file, once all of it is known to be right.
async fn of_file(client: &Client, file: &str) -> anyhow::Result<Vec<String>> {
    let root = yaml::read(&read_file(file)?).map_err(|fault| Failure::of_faults(file, &[fault]))?;
    let Some(block) = root.get("queues") else {
        let message = format!("{file}: has no `queues: {{NAME: {{…}}}}`");
        return Err(Failure::usage(message).into());
    };
    let queues = settings::read(block).map_err(|faults| Failure::of_faults(file, &faults))?;
    let mut done = Vec::with_capacity(queues.len());
    for (queue, input) in queues {
        done.push(
            client
                .put(&QUEUES.path(&queue), &serde_json::to_value(input)?, None)
                .await?,
        );
    }
    Ok(done)
}
