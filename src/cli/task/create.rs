//! `pensum task create` and `update`: from flags or a file to the body of a request.

use std::io::Read;

use clap::Args;
use pensum_core::input::{self, BatchInput, Invalid, TaskInput};
use pensum_core::time::Span;
use pensum_core::{Priority, TaskId, Time};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::act::id_of;
use super::{path, show, verdict, wait};
use crate::cli::Global;
use crate::cli::client::Client;
use crate::cli::exit::{Exit, Failure};
use crate::yaml::{self, Node};

#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    /// A JSON or YAML file with one task or {tasks: […]}; - is standard input.
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["handler", "param", "params"])]
    file: Option<String>,
    /// What runs the task.
    #[arg(long, required_unless_present_any = ["file", "task_type"])]
    handler: Option<String>,
    /// A parameter; the value is JSON where it reads as such, else text. May be repeated.
    #[arg(short, long, value_name = "NAME=VALUE", conflicts_with = "params")]
    param: Vec<String>,
    /// All parameters as JSON, @FILE, or - for standard input.
    #[arg(long, value_name = "JSON|@FILE|-")]
    params: Option<String>,
    /// One of the eight task types.
    #[arg(long)]
    task_type: Option<String>,
    /// Free-form facts for the handler, as JSON.
    #[arg(long, value_name = "JSON")]
    execution_context: Option<String>,
    /// Task ids that must end first.
    #[arg(long, value_delimiter = ',', value_name = "ID")]
    depends_on: Vec<TaskId>,
    /// What a failed dependency does: cancel (default), ignore or run.
    #[arg(long, value_name = "cancel|ignore|run")]
    on_dependency_failure: Option<String>,
    /// Longest wait from ready to start.
    #[arg(long, value_name = "DURATION")]
    queue_timeout: Option<String>,
    /// Longest silence of a running attempt.
    #[arg(long, value_name = "DURATION")]
    heartbeat_timeout: Option<String>,
    /// When its queue runs as many tasks as it may, or has started as many: wait (default), or reject the submission.
    #[arg(long, value_name = "wait|reject")]
    on_limit: Option<String>,
    /// How many tokens of its queue's rate a start takes; 1 by default.
    #[arg(long, value_name = "N")]
    units: Option<u32>,
    /// Tasks of one key never run at the same time, unless their queues have a `max_concurrent_per_key`.
    #[arg(long)]
    key: Option<String>,
    /// At most one unfinished task of this unique key.
    #[arg(long, value_name = "KEY")]
    unique: Option<String>,
    /// How long the unique key is held; until the task ends by default.
    #[arg(long, value_name = "DURATION", requires = "unique")]
    unique_ttl: Option<String>,
    /// What a second submission of the unique key gets.
    #[arg(long, value_name = "keep|replace|reject", requires = "unique")]
    on_conflict: Option<String>,
    /// Capabilities that the runner must offer beside the handler.
    #[arg(long, value_delimiter = ',')]
    requires: Vec<String>,
    /// The agent that should run it.
    #[arg(long)]
    agent_id: Option<String>,
    /// What it needs of the machine, as JSON: {"cpu_cores": 2, "memory_gb": 4}.
    #[arg(long, value_name = "JSON")]
    resources: Option<String>,
    /// Who made it.
    #[arg(long)]
    created_by: Option<String>,
    #[command(flatten)]
    fields: Fields,
}

#[derive(Args, Debug)]
pub(crate) struct UpdateArgs {
    /// The task.
    id: TaskId,
    /// All parameters as JSON, @FILE, or - for standard input.
    #[arg(long, value_name = "JSON|@FILE|-")]
    params: Option<String>,
    /// Free-form facts for the handler, as JSON.
    #[arg(long, value_name = "JSON")]
    execution_context: Option<String>,
    /// Take these away: name, description, assigned_to, deadline, expires_at.
    #[arg(long, value_delimiter = ',', value_name = "FIELD")]
    clear: Vec<String>,
    #[command(flatten)]
    fields: Fields,
}

/// Fields that can be given at the start and changed later.
#[derive(Args, Debug)]
struct Fields {
    /// A name for people.
    #[arg(long)]
    name: Option<String>,
    /// What it is about.
    #[arg(long)]
    description: Option<String>,
    /// Free-form facts, as JSON.
    #[arg(long, value_name = "JSON")]
    metadata: Option<String>,
    /// Where it waits.
    #[arg(long)]
    queue: Option<String>,
    /// low, normal, high, urgent, critical, or 1 to 5.
    #[arg(long)]
    priority: Option<Priority>,
    /// Not before this time.
    #[arg(long, value_name = "TIME", value_parser = Time::parse)]
    run_at: Option<Time>,
    /// Not before this long from now.
    #[arg(long, value_name = "DURATION", value_parser = Span::parse)]
    delay: Option<Span>,
    /// When it should be done.
    #[arg(long, value_name = "TIME", value_parser = Time::parse)]
    deadline: Option<Time>,
    /// Not started by then: cancelled.
    #[arg(long, value_name = "TIME", value_parser = Time::parse)]
    expires_at: Option<Time>,
    /// Longest run of one attempt; 300 s by default, 0 for no limit. (--timeout is how long to --wait.)
    #[arg(long, value_name = "DURATION", value_parser = Span::parse)]
    task_timeout: Option<Span>,
    /// How many failures are followed by another attempt; 3 by default.
    #[arg(long, value_name = "N")]
    max_retries: Option<u32>,
    /// The delays between attempts, as JSON: {"strategy": "exponential", "delay": 2}.
    #[arg(long, value_name = "JSON")]
    retry: Option<String>,
    /// Who is in charge of it.
    #[arg(long)]
    assigned_to: Option<String>,
    /// A label to find it by. May be repeated.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
}

/// A body that takes only what was given.
#[derive(Default)]
struct Fill(Map<String, Value>);

impl Fill {
    fn set(&mut self, name: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.0.insert(name.to_owned(), value.into());
        }
    }

    fn json(&mut self, name: &str, text: Option<&str>) -> anyhow::Result<()> {
        if let Some(text) = text {
            self.0.insert(
                name.to_owned(),
                json_of(&format!("--{}", name.replace('_', "-")), text)?,
            );
        }
        Ok(())
    }

    fn list(&mut self, name: &str, items: &[impl ToString]) {
        if !items.is_empty() {
            self.0
                .insert(name.to_owned(), items.iter().map(ToString::to_string).collect());
        }
    }

    fn fields(&mut self, fields: &Fields) -> anyhow::Result<()> {
        self.set("name", fields.name.clone());
        self.set("description", fields.description.clone());
        self.json("metadata", fields.metadata.as_deref())?;
        self.set("queue", fields.queue.clone());
        self.set("priority", fields.priority.map(|priority| priority.as_str()));
        self.set("run_at", fields.run_at.map(|time| time.to_string()));
        self.set("delay", fields.delay.map(|span| span.0.as_secs_f64()));
        self.set("deadline", fields.deadline.map(|time| time.to_string()));
        self.set("expires_at", fields.expires_at.map(|time| time.to_string()));
        self.set("timeout", fields.task_timeout.map(|span| span.0.as_secs_f64()));
        self.set("max_retries", fields.max_retries);
        self.json("retry", fields.retry.as_deref())?;
        self.set("assigned_to", fields.assigned_to.clone());
        self.list("tags", &fields.tags);
        Ok(())
    }
}

pub(crate) async fn create(global: &Global, client: &Client, args: CreateArgs) -> anyhow::Result<Exit> {
    let texts = match &args.file {
        Some(file) => from_file(client, file).await?,
        None => vec![client.post("/api/v1/tasks", &from_flags(&args)?).await?],
    };
    if !global.wait {
        show::tasks(global, &texts)?;
        return Ok(Exit::Ok);
    }
    let ids = texts
        .iter()
        .map(|text| id_of(text))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let ended = wait(global, client, &ids).await?;
    show::tasks(global, &ended)?;
    Ok(verdict(&ended))
}

pub(crate) async fn update(global: &Global, client: &Client, args: UpdateArgs) -> anyhow::Result<Exit> {
    let mut body = Fill::default();
    body.fields(&args.fields)?;
    if let Some(text) = &args.params {
        body.0
            .insert("parameters".to_owned(), json_of("--params", &source(text)?)?);
    }
    body.json("execution_context", args.execution_context.as_deref())?;
    for field in &args.clear {
        body.0.insert(field.replace('-', "_"), Value::Null);
    }
    if body.0.is_empty() {
        return Err(
            Failure::usage("nothing to change: give the fields to change as flags, such as --priority high").into(),
        );
    }
    let text = client.patch(&path(args.id), &Value::Object(body.0), None).await?;
    show::tasks(global, &[text])?;
    Ok(Exit::Ok)
}

fn from_flags(args: &CreateArgs) -> anyhow::Result<Value> {
    let mut body = Fill::default();
    body.fields(&args.fields)?;
    body.set("handler", args.handler.clone());
    body.set("task_type", args.task_type.clone());
    if let Some(text) = &args.params {
        body.0
            .insert("parameters".to_owned(), json_of("--params", &source(text)?)?);
    } else if !args.param.is_empty() {
        body.0.insert("parameters".to_owned(), parameters(&args.param)?);
    }
    body.json("execution_context", args.execution_context.as_deref())?;
    body.list("depends_on", &args.depends_on);
    body.set("on_dependency_failure", args.on_dependency_failure.clone());
    body.set("queue_timeout", args.queue_timeout.clone());
    body.set("heartbeat_timeout", args.heartbeat_timeout.clone());
    body.set("on_limit", args.on_limit.clone());
    body.set("units", args.units);
    body.set("key", args.key.clone());
    if let Some(key) = &args.unique {
        let mut unique = Fill::default();
        unique.set("key", Some(key.clone()));
        unique.set("ttl", args.unique_ttl.clone());
        unique.set("on_conflict", args.on_conflict.clone());
        body.0.insert("unique".to_owned(), Value::Object(unique.0));
    }
    body.list("requires", &args.requires);
    body.set("agent_id", args.agent_id.clone());
    body.json("resources", args.resources.as_deref())?;
    body.set("created_by", args.created_by.clone());
    Ok(Value::Object(body.0))
}

/// `name=value` pairs as an object. A value that reads as JSON is that; everything else is text.
fn parameters(pairs: &[String]) -> Result<Value, Failure> {
    let mut parameters = Map::new();
    for pair in pairs {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(Failure::usage(format!(
                "--param: `{pair}` is not of the form name=value"
            )));
        };
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        if parameters.insert(name.to_owned(), value).is_some() {
            return Err(Failure::usage(format!("--param: `{name}` is given twice")));
        }
    }
    Ok(Value::Object(parameters))
}

pub(crate) fn json_of(flag: &str, text: &str) -> anyhow::Result<Value> {
    serde_json::from_str(text).map_err(|error| Failure::usage(format!("{flag}: is not JSON: {error}")).into())
}

/// The text itself, of `@FILE` the file, of `-` standard input.
pub(crate) fn source(text: &str) -> anyhow::Result<String> {
    match text.strip_prefix('@') {
        Some(file) => read(file),
        None if text == "-" => read("-"),
        None => Ok(text.to_owned()),
    }
}

/// The text of a file; `-` is standard input.
pub(crate) fn read(file: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    let result = match file {
        "-" => std::io::stdin().lock().read_to_string(&mut text).map(drop),
        _ => std::fs::read_to_string(file).map(|content| text = content),
    };
    match result {
        Ok(()) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Failure::new(Exit::NotFound, format!("there is no file {file}")).into())
        }
        Err(error) => Err(Failure::usage(format!("{file} cannot be read: {error}")).into()),
    }
}

async fn from_file(client: &Client, file: &str) -> anyhow::Result<Vec<String>> {
    let root = yaml::read(&read(file)?).map_err(|fault| Failure::of_faults(file, &[fault]))?;
    if root.get("plan").is_some() {
        let message = format!("{file} is a plan file: run it with `pensum run {file}`");
        return Err(Failure::usage(message).into());
    }
    if root.get("tasks").is_none() {
        check::<TaskInput>(file, &root)?;
        return Ok(vec![client.post("/api/v1/tasks", &serde_json::to_value(&root)?).await?]);
    }
    check::<BatchInput>(file, &root)?;
    #[derive(Deserialize)]
    struct Created {
        ids: Vec<TaskId>,
    }
    let text = client
        .post("/api/v1/tasks/batch", &serde_json::to_value(&root)?)
        .await?;
    let created: Created = serde_json::from_str(&text)?;
    let mut tasks = Vec::with_capacity(created.ids.len());
    for id in created.ids {
        tasks.push(client.get(&path(id), &[]).await?);
    }
    Ok(tasks)
}

/// Finds wrong fields before anything is sent, while their places in the file are known.
fn check<T: serde::de::DeserializeOwned>(file: &str, root: &Node) -> Result<(), Failure> {
    match input::parse_object::<T>(root.json().as_bytes()) {
        Ok(_) => Ok(()),
        Err(Invalid(problems)) => {
            let faults: Vec<_> = problems.iter().map(|problem| root.fault("", problem)).collect();
            Err(Failure::of_faults(file, &faults))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parameters_are_json_where_they_read_as_such() {
        let pairs = ["n=5", "text=hello world", "list=[1,\"a\"]", "quoted=\"5\""].map(str::to_owned);
        assert_eq!(
            parameters(&pairs).unwrap(),
            json!({"n": 5, "text": "hello world", "list": [1, "a"], "quoted": "5"})
        );
        assert!(
            parameters(&["n".to_owned()])
                .unwrap_err()
                .message
                .contains("name=value")
        );
    }
}
