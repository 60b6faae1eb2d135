//! Commands on tasks, one by one or all of a filter.

use clap::Args;
use pensum_core::TaskId;
use serde_json::{Value, json};

use super::{filter, parse_pairs, path, show, verdict, wait};
use crate::cli::client::Client;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::{self, Format};
use crate::cli::{Global, confirm};

#[derive(Args, Debug)]
pub(crate) struct Targets {
    /// The tasks.
    #[arg(value_name = "ID", required_unless_present = "filter", conflicts_with = "filter")]
    pub(crate) ids: Vec<TaskId>,
    /// All tasks that match, such as status=ready,queue=mail.
    #[arg(long, value_name = "FIELD=VALUE,…")]
    pub(crate) filter: Option<String>,
    /// Only say how many tasks match the filter.
    // Clap asks for nothing that conflicts with what is there, so `requires` alone would let `ID --dry-run` pass.
    #[arg(long, requires = "filter", conflicts_with = "ids")]
    pub(crate) dry_run: bool,
}

#[derive(Args, Debug)]
pub(crate) struct CancelArgs {
    #[command(flatten)]
    targets: Targets,
    /// Why; shown as the error of the tasks.
    #[arg(long, conflicts_with = "filter")]
    reason: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct SignalArgs {
    /// The task.
    id: TaskId,
    /// The signal's name.
    name: String,
    /// What it carries: JSON, or a plain text.
    payload: Option<String>,
}

pub(crate) async fn cancel(global: &Global, client: &Client, args: CancelArgs) -> anyhow::Result<Exit> {
    let body = args.reason.map(|reason| json!({ "reason": reason }));
    act(global, client, "cancel", &args.targets, body).await
}

pub(crate) async fn signal(global: &Global, client: &Client, args: SignalArgs) -> anyhow::Result<Exit> {
    let payload = args
        .payload
        .map(|text| serde_json::from_str(&text).unwrap_or(Value::String(text)));
    let body = json!({ "name": args.name, "payload": payload });
    act_on_each(global, client, "signal", &[args.id], Some(body)).await
}

/// Carries out a command on tasks by id, or on all of a filter.
pub(crate) async fn act(
    global: &Global,
    client: &Client,
    action: &'static str,
    targets: &Targets,
    body: Option<Value>,
) -> anyhow::Result<Exit> {
    match &targets.filter {
        Some(text) => bulk(global, client, action, &parse_pairs(text)?, targets.dry_run).await,
        None => act_on_each(global, client, action, &targets.ids, body).await,
    }
}

/// Carries out a command on each task and shows the tasks afterwards. Every task is tried; the first refusal decides
/// the exit code.
pub(crate) async fn act_on_each(
    global: &Global,
    client: &Client,
    action: &str,
    ids: &[TaskId],
    body: Option<Value>,
) -> anyhow::Result<Exit> {
    let body = body.unwrap_or_else(|| json!({}));
    let mut done = Vec::new();
    let mut refused = Refusals::default();
    for id in ids {
        match client.post(&format!("{}/{action}", path(*id)), &body).await {
            Ok(task) => done.push((*id, task)),
            Err(error) => refused.note(error)?,
        }
    }
    if global.wait && !done.is_empty() {
        let ids: Vec<TaskId> = done.iter().map(|(id, _)| *id).collect();
        let ended = wait(global, client, &ids).await?;
        show::tasks(global, &ended)?;
        // A cancelled task is what was asked for.
        let verdict = if action == "cancel" { Exit::Ok } else { verdict(&ended) };
        return refused.or(verdict);
    }
    let done: Vec<String> = done.into_iter().map(|(_, task)| task).collect();
    if !done.is_empty() {
        show::tasks(global, &done)?;
    }
    refused.or(Exit::Ok)
}

pub(crate) async fn delete(global: &Global, client: &Client, targets: &Targets) -> anyhow::Result<Exit> {
    if let Some(text) = &targets.filter {
        let pairs = parse_pairs(text)?;
        if !targets.dry_run {
            confirm(global, &format!("Delete all tasks with {text}?"))?;
        }
        return bulk(global, client, "delete", &pairs, targets.dry_run).await;
    }
    if targets.ids.len() > 1 {
        confirm(global, &format!("Delete {} tasks?", targets.ids.len()))?;
    }
    delete_each(global, client, &targets.ids).await
}

pub(crate) async fn delete_each(global: &Global, client: &Client, ids: &[TaskId]) -> anyhow::Result<Exit> {
    let mut refused = Refusals::default();
    for id in ids {
        match client.delete(&path(*id)).await {
            Ok(()) if global.output.is_for_people() => output::println(&format!("task {id} deleted"))?,
            Ok(()) if global.output == Format::Name => output::println(&id.to_string())?,
            Ok(()) => output::println(&json!({ "id": id, "deleted": true }).to_string())?,
            Err(error) => refused.note(error)?,
        }
    }
    refused.or(Exit::Ok)
}

/// A command on all tasks of a filter. A node does it as a durable task; without a node it is done here, one by one.
pub(crate) async fn bulk(
    global: &Global,
    client: &Client,
    action: &'static str,
    pairs: &[(&'static str, String)],
    dry_run: bool,
) -> anyhow::Result<Exit> {
    if pairs.is_empty() {
        let message =
            "--filter: name at least one field, such as status=failed; an empty filter would match every task";
        return Err(Failure::usage(message).into());
    }
    if client.is_alone() && !dry_run {
        // Fingerprints are for dead letters, and only their list knows them.
        let list = match pairs.iter().any(|(name, _)| *name == "fingerprint") {
            true => "/api/v1/dead-letters",
            false => "/api/v1/tasks",
        };
        let (items, _) = client.list(list, pairs, None, true).await?;
        let ids = items
            .iter()
            .map(|item| id_of(item))
            .collect::<anyhow::Result<Vec<_>>>()?;
        return match action {
            "delete" => delete_each(global, client, &ids).await,
            _ => act_on_each(global, client, action, &ids, None).await,
        };
    }
    let Begun { text, matched, task } = begin_bulk(client, action, pairs, dry_run).await?;
    if global.wait
        && let Some(task) = task
    {
        let ended = wait(global, client, &[task]).await?;
        show::tasks(global, &ended)?;
        return Ok(verdict(&ended));
    }
    match global.output {
        Format::Table | Format::Wide => match task {
            Some(task) => output::println(&format!("{action}: {matched} tasks, carried out by task {task}"))?,
            None => output::println(&format!("{action}: would concern {matched} tasks"))?,
        },
        Format::Name => task.iter().try_for_each(|task| output::println(&task.to_string()))?,
        format => output::item(format, &text, |_| String::new())?,
    }
    Ok(Exit::Ok)
}

/// A bulk command that a node has begun, or would begin.
pub(crate) struct Begun {
    /// The answer as JSON text.
    pub(crate) text: String,
    /// How many tasks matched.
    pub(crate) matched: u64,
    /// The task that carries it out; `None` after a dry run.
    pub(crate) task: Option<TaskId>,
}

/// Has a node begin a bulk command.
pub(crate) async fn begin_bulk(
    client: &Client,
    action: &'static str,
    pairs: &[(&'static str, String)],
    dry_run: bool,
) -> anyhow::Result<Begun> {
    let body = json!({ "action": action, "filter": filter::body(pairs)?, "dry_run": dry_run });
    let text = client.post("/api/v1/tasks/bulk", &body).await?;
    let receipt: Value = serde_json::from_str(&text)?;
    Ok(Begun {
        matched: receipt["matched"].as_u64().unwrap_or_default(),
        task: receipt["task_id"].as_str().and_then(|id| id.parse().ok()),
        text,
    })
}

/// The id in the JSON text of a task.
pub(crate) fn id_of(task: &str) -> anyhow::Result<TaskId> {
    #[derive(serde::Deserialize)]
    struct HasId {
        id: TaskId,
    }
    Ok(serde_json::from_str::<HasId>(task)?.id)
}

/// Refusals of single tasks, told at once, remembered for the exit code.
#[derive(Default)]
pub(crate) struct Refusals(Option<Exit>);

impl Refusals {
    /// Notes a refusal; an error that will meet every task comes back.
    pub(crate) fn note(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        match error.downcast_ref::<Failure>() {
            Some(failure) if matches!(failure.exit, Exit::NotFound | Exit::Conflict) => {
                output::warn(&format!("error: {failure}"));
                self.0.get_or_insert(failure.exit);
                Ok(())
            }
            _ => Err(error),
        }
    }

    pub(crate) fn or(self, exit: Exit) -> anyhow::Result<Exit> {
        Ok(self.0.unwrap_or(exit))
    }
}
