//! `pensum task …`.

mod act;
mod create;
mod filter;
mod logs;
mod show;

use std::time::Duration;

use clap::{Args, Subcommand};
use pensum_core::{Status, TaskId, Time};
use serde_json::Value;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::{Global, output};

pub(crate) use act::{Begun, Refusals, act_on_each, begin_bulk, bulk, delete_each, id_of};
pub(crate) use create::{json_of, read as read_file, source};
pub(crate) use filter::{FilterArgs, parse_pairs};
pub(crate) use logs::printable;
pub(crate) use show::{COLUMNS, describe};

/// How often a wait looks at a task: quickly at first, then more slowly.
const POLL_FIRST: Duration = Duration::from_millis(50);
const POLL_LAST: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a task from flags, or one or many from a file.
    Create(Box<create::CreateArgs>),
    /// Show tasks.
    Get(Ids),
    /// List tasks, newest first.
    List(Box<show::ListArgs>),
    /// Cancel tasks: at once while they wait; running ones are asked to stop.
    Cancel(act::CancelArgs),
    /// Hold tasks back.
    Pause(act::Targets),
    /// Let paused tasks go on.
    Resume(act::Targets),
    /// Run ended tasks again, or waiting ones now instead of after their delay.
    Retry(act::Targets),
    /// Run waiting tasks now instead of at their time.
    Execute(Ids),
    /// Put a signal into the inbox of a task.
    Signal(act::SignalArgs),
    /// Change a task.
    Update(Box<create::UpdateArgs>),
    /// Remove tasks and everything about them.
    Delete(act::Targets),
    /// Wait until tasks have ended; exit 1 when one failed or was cancelled, 124 after --timeout.
    Wait(Ids),
    /// Show what a task logged.
    Logs(logs::LogsArgs),
    /// Show the history of a task.
    Events(Id),
    /// Show the attempts of a task.
    Executions(Id),
    /// Tell why a task does not run.
    Explain(Id),
}

#[derive(Args, Debug)]
pub(crate) struct Id {
    /// The task.
    id: TaskId,
}

#[derive(Args, Debug)]
pub(crate) struct Ids {
    /// The tasks.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<TaskId>,
}

pub(crate) async fn task(global: &Global, command: Command) -> anyhow::Result<Exit> {
    let client = Client::connect(global, matches!(command, Command::Create(_))).await?;
    let result = dispatch(global, &client, command).await;
    client.close().await;
    result
}

async fn dispatch(global: &Global, client: &Client, command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Create(args) => create::create(global, client, *args).await,
        Command::Update(args) => create::update(global, client, *args).await,
        Command::Get(Ids { ids }) => show::get(global, client, &ids).await,
        Command::List(args) => show::list(global, client, &args).await,
        Command::Events(Id { id }) => show::events(global, client, id).await,
        Command::Executions(Id { id }) => show::executions(global, client, id).await,
        Command::Explain(Id { id }) => show::explain(global, client, id).await,
        Command::Cancel(args) => act::cancel(global, client, args).await,
        Command::Pause(targets) => act::act(global, client, "pause", &targets, None).await,
        Command::Resume(targets) => act::act(global, client, "resume", &targets, None).await,
        Command::Retry(targets) => act::act(global, client, "retry", &targets, None).await,
        Command::Execute(Ids { ids }) => act::act_on_each(global, client, "execute", &ids, None).await,
        Command::Signal(args) => act::signal(global, client, args).await,
        Command::Delete(targets) => act::delete(global, client, &targets).await,
        Command::Wait(Ids { ids }) => {
            let ended = wait(global, client, &ids).await?;
            show::tasks(global, &ended)?;
            Ok(verdict(&ended))
        }
        Command::Logs(args) => logs::logs(global, client, &args).await,
    }
}

/// Where a task is read.
pub(crate) fn path(id: TaskId) -> String {
    format!("/api/v1/tasks/{id}")
}

/// Waits until all tasks have ended; their JSON texts then.
pub(crate) async fn wait(global: &Global, client: &Client, ids: &[TaskId]) -> anyhow::Result<Vec<String>> {
    let until = global.timeout.map_or(Time::MAX, |timeout| super::now().plus(timeout.0));
    let mut ended = Vec::with_capacity(ids.len());
    for id in ids {
        let mut pause = POLL_FIRST;
        loop {
            let text = client.get(&path(*id), &[]).await?;
            if has_ended(&serde_json::from_str(&text)?) {
                ended.push(text);
                break;
            }
            if client.is_alone() {
                let message =
                    format!("task {id} has not ended, and no node runs on this store; start one with `pensum serve`");
                return Err(Failure::new(Exit::Unreachable, message).into());
            }
            let left = until.since(super::now());
            if left.is_zero() {
                let message = format!("task {id} has not ended in time; it goes on, and so can the wait");
                return Err(Failure::new(Exit::Timeout, message).into());
            }
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(POLL_LAST);
        }
    }
    Ok(ended)
}

/// Ok when every task completed.
pub(crate) fn verdict(tasks: &[String]) -> Exit {
    let completed = |text: &String| {
        serde_json::from_str::<Value>(text).is_ok_and(|task| task["status"] == Status::Completed.as_str())
    };
    if tasks.iter().all(completed) {
        Exit::Ok
    } else {
        Exit::Failed
    }
}

fn has_ended(task: &Value) -> bool {
    task["status"]
        .as_str()
        .and_then(|status| status.parse::<Status>().ok())
        .is_some_and(Status::is_terminal)
}

/// Shows tasks again each second until `ended` says so; once when the user does not watch.
pub(crate) async fn watched<F>(global: &Global, mut once: impl FnMut() -> F) -> anyhow::Result<Exit>
where
    F: Future<Output = anyhow::Result<bool>>,
{
    use std::io::IsTerminal;
    let redraw = global.watch && global.output.is_for_people() && std::io::stdout().is_terminal();
    loop {
        if redraw {
            output::print("\x1b[H\x1b[2J")?;
        }
        let ended = once().await?;
        if !global.watch || ended {
            return Ok(Exit::Ok);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
