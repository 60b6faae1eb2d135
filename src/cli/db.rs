//! `pensum db …`: looking after a store.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Subcommand;
use pensum_core::store::Retention;
use pensum_core::time::Span;
use pensum_core::{Store, StoreError};
use pensum_store::sqlite::{SqliteOptions, SqliteStore};
use serde_json::json;

use super::client::{DB_DEFAULT, check_url, must_exist, open_store, store_path};
use super::exit::{Exit, Failure};
use super::{Global, confirm, copy, now, output};

/// How many tasks one step of a prune removes: a short transaction each.
const PRUNE_STEP: usize = 1_000;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make the store, or bring it up to this program's schema.
    Migrate,
    /// Check every invariant; exit 1 when one is violated.
    Verify,
    /// Show figures: rows, bytes, settings.
    Stats,
    /// Remove finished tasks that are old enough.
    Prune {
        /// How long completed and cancelled tasks stay.
        #[arg(long, value_name = "DURATION", value_parser = Span::parse, default_value = "7d")]
        completed: Span,
        /// How long failed tasks stay.
        #[arg(long, value_name = "DURATION", value_parser = Span::parse, default_value = "30d")]
        failed: Span,
    },
    /// Write a consistent copy to a new file.
    Backup {
        /// The new file.
        to: PathBuf,
    },
    /// Carry everything from one store to another, empty one, and compare it there.
    Copy {
        /// The store to read, such as sqlite:pensum.db.
        from: String,
        /// The store to fill; made when it does not exist.
        to: String,
    },
}

impl Command {
    const fn only_reads(&self) -> bool {
        matches!(self, Command::Verify | Command::Stats | Command::Backup { .. })
    }
}

async fn open_to_read(url: &str) -> Result<Arc<dyn Store>, StoreError> {
    let options = SqliteOptions {
        read_only: true,
        ..SqliteOptions::new(store_path(url).unwrap_or_default())
    };
    match tokio::task::spawn_blocking(move || SqliteStore::open(options)).await {
        Ok(opened) => Ok(Arc::new(opened?)),
        Err(_) => Err(StoreError::Unavailable("opening the store was interrupted".to_owned())),
    }
}

pub(crate) async fn db(global: &Global, command: Command) -> anyhow::Result<Exit> {
    if let Command::Copy { from, to } = &command {
        return copy::copy(global, from, to).await;
    }
    let url = global.store().unwrap_or_else(|| DB_DEFAULT.to_owned());
    check_url(&url)?;
    if !matches!(command, Command::Migrate) {
        must_exist(&url)?;
    }
    let store = match open_store(&url, &format!("process {}", std::process::id())).await {
        // What only reads works beside whoever owns the file.
        Err(StoreError::Locked { .. }) if command.only_reads() => open_to_read(&url).await,
        opened => opened,
    };
    let store = store.map_err(Failure::from)?;
    let result = dispatch(global, &store, command).await;
    let closed = store.close().await;
    let exit = result?;
    closed.map_err(Failure::from)?;
    Ok(exit)
}

async fn dispatch(global: &Global, store: &Arc<dyn Store>, command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Migrate => {
            let stats = store.stats().await.map_err(Failure::from)?;
            show(
                global,
                &json!({ "location": stats.location, "schema_version": stats.schema_version }),
                || format!("{} is at schema version {}\n", stats.location, stats.schema_version),
            )?;
        }
        Command::Verify => {
            let verified = store.verify().await.map_err(Failure::from)?;
            show(global, &serde_json::to_value(&verified)?, || {
                let mut text: String = verified
                    .violations
                    .iter()
                    .map(|violation| format!("{violation}\n"))
                    .collect();
                text.push_str(&format!(
                    "{} tasks checked, {} violations\n",
                    verified.tasks,
                    verified.violations.len()
                ));
                text
            })?;
            if !verified.violations.is_empty() {
                return Ok(Exit::Failed);
            }
        }
        Command::Stats => {
            let stats = store.stats().await.map_err(Failure::from)?;
            show(global, &serde_json::to_value(&stats)?, || {
                let mut pairs = vec![
                    ("store", stats.kind.clone()),
                    ("location", stats.location.clone()),
                    ("schema", stats.schema_version.to_string()),
                    ("size", output::bytes(stats.bytes)),
                    ("durability", stats.durability.clone()),
                ];
                pairs.extend(
                    stats
                        .rows
                        .iter()
                        .map(|(table, rows)| (table.as_str(), format!("{rows} rows"))),
                );
                output::fields(&pairs)
            })?;
        }
        Command::Prune { completed, failed } => {
            let retention = Retention {
                completed: completed.0,
                failed: failed.0,
            };
            confirm(global, "Remove finished tasks that are past their retention for good?")?;
            let mut removed = 0;
            loop {
                let step = store.prune(retention, now(), PRUNE_STEP).await.map_err(Failure::from)?;
                removed += step.removed;
                if !step.more {
                    break;
                }
            }
            show(global, &json!({ "removed": removed }), || {
                format!("{removed} tasks removed\n")
            })?;
        }
        Command::Backup { to } => {
            if to.exists() {
                let message = format!("{} exists; a backup goes to a new file", to.display());
                return Err(Failure::new(Exit::Conflict, message).into());
            }
            if store_path(&format!("sqlite:{}", to.display())).is_none() {
                return Err(Failure::usage("name the file to write the backup to").into());
            }
            store.backup(&to).await.map_err(Failure::from)?;
            show(global, &json!({ "backup": to }), || {
                format!("{} written\n", to.display())
            })?;
        }
        // It opens two stores, and was carried out before this one.
        Command::Copy { .. } => {}
    }
    Ok(Exit::Ok)
}

fn show(global: &Global, value: &serde_json::Value, for_people: impl Fn() -> String) -> anyhow::Result<()> {
    output::item(global.output, &value.to_string(), |_| for_people())
}
