//! `pensum dlq …`: failed tasks that nobody has looked at yet.

mod edit;
mod groups;
mod retry;
mod show;

use clap::{Args, Subcommand};
use pensum_core::{Fingerprint, TaskId};

use super::client::Client;
use super::exit::{Exit, Failure};
use super::task::{COLUMNS, FilterArgs, bulk, delete_each, path};
use super::{Global, confirm, now, output};

/// Where dead letters are listed.
const PATH: &str = "/api/v1/dead-letters";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List dead letters, newest first.
    List {
        #[command(flatten)]
        filter: Box<FilterArgs>,
        /// With an error of this fingerprint.
        #[arg(long)]
        fingerprint: Option<Fingerprint>,
        /// How many tasks at most; 50 by default.
        #[arg(short = 'n', long)]
        limit: Option<usize>,
        /// All of them, however many.
        #[arg(short, long)]
        all: bool,
    },
    /// Show which errors dead letters met, and how often.
    Groups(groups::GroupsArgs),
    /// Show a dead letter with all its attempts, their errors, and what it logged last.
    Show(show::ShowArgs),
    /// Run dead letters again, with other parameters where they are given.
    Retry(Box<retry::RetryArgs>),
    /// Remove dead letters.
    Delete(Which),
}

#[derive(Args, Debug)]
pub(crate) struct Which {
    // Clap asks for nothing that conflicts with what is there, so `requires` alone would let `ID --dry-run` pass.
    /// The tasks.
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<TaskId>,
    /// All dead letters, or those that match the other flags.
    #[arg(short, long)]
    all: bool,
    /// With --all, only those of this queue.
    #[arg(long, requires = "all", conflicts_with = "ids")]
    queue: Option<String>,
    /// With --all, only those of this handler.
    #[arg(long, requires = "all", conflicts_with = "ids")]
    handler: Option<String>,
    /// With --all, only those whose error has this fingerprint.
    #[arg(long, requires = "all", conflicts_with = "ids")]
    fingerprint: Option<Fingerprint>,
    /// With --all, only say how many there are.
    #[arg(long, requires = "all", conflicts_with = "ids")]
    dry_run: bool,
}

impl Which {
    fn filter(&self) -> Vec<(&'static str, String)> {
        let mut pairs = vec![("dead_lettered", "true".to_owned())];
        pairs.extend(self.queue.clone().map(|queue| ("queue", queue)));
        pairs.extend(self.handler.clone().map(|handler| ("handler", handler)));
        pairs.extend(by(self.fingerprint));
        pairs
    }
}

fn by(fingerprint: Option<Fingerprint>) -> Option<(&'static str, String)> {
    fingerprint.map(|fingerprint| ("fingerprint", fingerprint.to_string()))
}

pub(crate) async fn dlq(global: &Global, command: Command) -> anyhow::Result<Exit> {
    let client = Client::connect(global, false).await?;
    let result = dispatch(global, &client, command).await;
    client.close().await;
    result
}

async fn dispatch(global: &Global, client: &Client, command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::List {
            filter,
            fingerprint,
            limit,
            all,
        } => {
            let mut query = filter.query();
            query.extend(by(fingerprint));
            let (items, next) = client.list(PATH, &query, limit, all).await?;
            output::list(global.output, &COLUMNS, &items, next.as_deref(), now())?;
            Ok(Exit::Ok)
        }
        Command::Groups(args) => groups::groups(global, client, &args).await,
        Command::Show(args) => show::show(global, client, &args).await,
        Command::Retry(args) => retry::retry(global, client, &args).await,
        Command::Delete(which) if which.all => {
            if !which.dry_run {
                confirm(global, "Delete all dead letters that match?")?;
            }
            bulk(global, client, "delete", &which.filter(), which.dry_run).await
        }
        Command::Delete(which) => {
            for id in &which.ids {
                let task = client.get_value(&path(*id), &[]).await?;
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
