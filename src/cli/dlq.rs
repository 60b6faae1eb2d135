//! `pensum dlq …`: failed tasks that nobody has looked at yet.

use clap::{Args, Subcommand};
use pensum_core::TaskId;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::task::{COLUMNS, FilterArgs, act_on_each, bulk, delete_each};
use super::{Global, confirm, now, output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List dead letters, newest first.
    List {
        #[command(flatten)]
        filter: Box<FilterArgs>,
        /// How many tasks at most; 50 by default.
        #[arg(short = 'n', long)]
        limit: Option<usize>,
        /// All of them, however many.
        #[arg(short, long)]
        all: bool,
    },
    /// Run dead letters again.
    Retry(Which),
    /// Remove dead letters.
    Delete(Which),
}

#[derive(Args, Debug)]
pub(crate) struct Which {
    /// The tasks.
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<TaskId>,
    /// All dead letters, or those that match the other flags.
    #[arg(short, long)]
    all: bool,
    /// With --all, only those of this queue.
    #[arg(long, requires = "all")]
    queue: Option<String>,
    /// With --all, only those of this handler.
    #[arg(long, requires = "all")]
    handler: Option<String>,
    /// With --all, only say how many there are.
    #[arg(long, requires = "all")]
    dry_run: bool,
}

impl Which {
    fn filter(&self) -> Vec<(&'static str, String)> {
        let mut pairs = vec![("dead_lettered", "true".to_owned())];
        pairs.extend(self.queue.clone().map(|queue| ("queue", queue)));
        pairs.extend(self.handler.clone().map(|handler| ("handler", handler)));
        pairs
    }
}

pub(crate) async fn dlq(global: &Global, command: Command) -> anyhow::Result<Exit> {
    let client = Client::connect(global, false).await?;
    let result = dispatch(global, &client, command).await;
    client.close().await;
    result
}

async fn dispatch(global: &Global, client: &Client, command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::List { filter, limit, all } => {
            let (items, next) = client.list("/api/v1/dead-letters", &filter.query(), limit, all).await?;
            output::list(global.output, &COLUMNS, &items, next.as_deref(), now())?;
            Ok(Exit::Ok)
        }
        Command::Retry(which) if which.all => bulk(global, client, "retry", &which.filter(), which.dry_run).await,
        Command::Retry(which) => act_on_each(global, client, "retry", &which.ids, None).await,
        Command::Delete(which) if which.all => {
            if !which.dry_run {
                confirm(global, "Delete all dead letters that match?")?;
            }
            bulk(global, client, "delete", &which.filter(), which.dry_run).await
        }
        Command::Delete(which) => {
            for id in &which.ids {
                let task = client.get_value(&format!("/api/v1/tasks/{id}"), &[]).await?;
                if task["dead_lettered_at"].is_null() {
                    let message = format!("task {id} is no dead letter; `pensum task delete {id}` removes any task");
                    return Err(Failure::new(Exit::Conflict, message).into());
                }
            }
            if which.ids.len() > 1 {
                confirm(global, &format!("Delete {} dead letters?", which.ids.len()))?;
            }
            delete_each(global, client, &which.ids).await
        }
    }
}
