//! Things that have a name of their own (queues, agents, circuit breakers): listed, shown, commanded and removed alike.

use pensum_core::Time;
use pensum_core::input::{Invalid, check_id};
use serde_json::{Value, json};

use super::client::{Client, escape};
use super::exit::Exit;
use super::output::{self, Column, Format};
use super::task::{Refusals, watched};
use super::{Global, confirm, now};

/// A name that such a thing can have, for clap: another could not stand in an address.
pub(super) fn name(text: &str) -> Result<String, String> {
    checked(text, check_id)
}

/// A name that passes a check, for clap.
pub(super) fn checked(name: &str, check: fn(&str) -> Result<(), Invalid>) -> Result<String, String> {
    match check(name) {
        Ok(()) => Ok(name.to_owned()),
        Err(Invalid(problems)) => {
            let messages = problems.into_iter().map(|problem| problem.message);
            Err(messages.collect::<Vec<_>>().join("; "))
        }
    }
}

/// A kind of such things.
pub(super) struct Kind {
    /// Where they are listed, such as `/api/v1/queues`.
    pub(super) root: &'static str,
    /// What one is called, before its name.
    pub(super) one: &'static str,
    /// What is asked before several are removed: `Forget {} agents?`, in two parts.
    pub(super) ask: (&'static str, &'static str),
    /// What one is afterwards: `deleted`, `removed`.
    pub(super) gone: &'static str,
    /// A row of the list.
    pub(super) columns: &'static [Column],
    /// One of them, as a block.
    pub(super) describe: fn(&Value, Time) -> String,
}

impl Kind {
    /// Where one is read.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}/{}", self.root, escape(name))
    }

    /// Lists those that a query selects.
    pub(super) async fn list(
        &self,
        global: &Global,
        client: &Client,
        query: &[(&str, String)],
        limit: Option<usize>,
        all: bool,
    ) -> anyhow::Result<Exit> {
        watched(global, || async {
            let (items, next) = client.list(self.root, query, limit, all).await?;
            output::list(global.output, self.columns, &items, next.as_deref(), now())?;
            Ok(false)
        })
        .await
    }

    /// Shows those of these names.
    pub(super) async fn get(&self, global: &Global, client: &Client, names: &[String]) -> anyhow::Result<Exit> {
        watched(global, || async {
            let mut found = Vec::with_capacity(names.len());
            for name in names {
                found.push(client.get(&self.path(name), &[]).await?);
            }
            self.show(global, &found)?;
            Ok(false)
        })
        .await
    }

    /// Commands each and shows them afterwards. Every one is tried; the first refusal decides the exit code.
    pub(super) async fn command(
        &self,
        global: &Global,
        client: &Client,
        command: &str,
        names: &[String],
    ) -> anyhow::Result<Exit> {
        let mut done = Vec::new();
        let mut refused = Refusals::default();
        for name in names {
            let path = format!("{}/{command}", self.path(name));
            match client.post(&path, &json!({})).await {
                Ok(one) => done.push(one),
                Err(error) => refused.note(error)?,
            }
        }
        if !done.is_empty() {
            self.show(global, &done)?;
        }
        refused.or(Exit::Ok)
    }

    /// Removes each, after a question where there are several.
    pub(super) async fn remove(&self, global: &Global, client: &Client, names: &[String]) -> anyhow::Result<Exit> {
        if names.len() > 1 {
            confirm(global, &format!("{} {} {}", self.ask.0, names.len(), self.ask.1))?;
        }
        let mut refused = Refusals::default();
        for name in names {
            match client.delete(&self.path(name)).await {
                Ok(()) if global.output.is_for_people() => {
                    output::println(&format!("{} {name} {}", self.one, self.gone))?;
                }
                Ok(()) if global.output == Format::Name => output::println(name)?,
                Ok(()) => {
                    let mut answer = json!({ "id": name });
                    answer[self.gone] = json!(true);
                    output::println(&answer.to_string())?;
                }
                Err(error) => refused.note(error)?,
            }
        }
        refused.or(Exit::Ok)
    }

    /// Shows one as a block, several as a list.
    pub(super) fn show(&self, global: &Global, items: &[String]) -> anyhow::Result<()> {
        match items {
            [one] => output::item(global.output, one, |item| (self.describe)(item, now())),
            many => output::list(global.output, self.columns, many, None, now()),
        }
    }
}
