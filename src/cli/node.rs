//! `pensum node …`: the nodes that work on a store.

use clap::Subcommand;
use pensum_core::Time;
use serde_json::Value;

use super::client::Client;
use super::exit::Exit;
use super::output::{self, Column, age, plain};
use super::{Global, now, task};

const COLUMNS: [Column; 8] = [
    Column::text("name", |node, _| plain(&node["name"])),
    Column::text("id", |node, _| plain(&node["id"])),
    Column::text("status", |node, _| plain(&node["status"])),
    Column::text("version", |node, _| plain(&node["version"])),
    Column::text("address", |node, _| plain(&node["address"])),
    Column::number("running", |node, _| load(node)),
    Column::number("started", |node, now| ago(&node["started_at"], now)),
    Column::number("last seen", |node, now| ago(&node["seen_at"], now)),
];

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the nodes that work on the store, oldest first.
    List,
}

pub(crate) async fn node(global: &Global, command: Command) -> anyhow::Result<Exit> {
    let client = Client::connect(global, false).await?;
    let result = match command {
        Command::List => list(global, &client).await,
    };
    client.close().await;
    result
}

async fn list(global: &Global, client: &Client) -> anyhow::Result<Exit> {
    task::watched(global, || async {
        let (items, next) = client.list("/api/v1/nodes", &[], None, true).await?;
        output::list(global.output, &COLUMNS, &items, next.as_deref(), now())?;
        if items.is_empty() && global.output.is_for_people() {
            output::warn("no node works on this store; start one with `pensum serve`");
        }
        Ok(false)
    })
    .await
}

/// How many tasks a node runs, of how many it can.
pub(crate) fn load(node: &Value) -> String {
    format!("{}/{}", plain(&node["running"]), plain(&node["slots"]))
}

/// How long ago something was.
pub(crate) fn ago(at: &Value, now: Time) -> String {
    format!("{} ago", age(at, now))
}
