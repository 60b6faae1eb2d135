//! Standbys: a second server that has every commit which the first has acknowledged.

use tokio_postgres::Client;

use super::place::Place;
use super::server::{Server, wait_until};
use super::{block_on, connect, settings};

/// What a commit on the primary waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Confirm {
    /// That the standby has it on disk (`synchronous_commit = on`).
    Flushed,
    /// That queries on the standby see it (`synchronous_commit = remote_apply`).
    Applied,
}

impl Server {
    /// A streaming standby of this server, which from now on acknowledges a commit only when the standby has confirmed
    /// it, and all earlier standbys too.
    ///
    /// # Panics
    ///
    /// When the copy fails, or the standby does not start or connect; the message shows its log.
    #[must_use]
    pub fn standby(&mut self, confirm: Confirm) -> Server {
        let name = format!("standby_{}", self.standbys.len() + 1);
        let mut standby = Server::new(Place::new("standby-"));
        let data = standby.place.join("data").display().to_string();
        let from = format!("host=127.0.0.1 port={} user=postgres", self.port);
        let args = [
            "--pgdata",
            &data,
            "--dbname",
            &from,
            "--checkpoint",
            "fast",
            "--no-sync",
            "--write-recovery-conf",
        ];
        standby.place.run(&settings::programs().join("pg_basebackup"), &args);
        // The receiver of the log presents itself by the name of its cluster.
        standby.configure(&[("cluster_name", &name), ("hot_standby", "on")]);
        // Promoted, it waits for nobody; in this file, because it is read last and the copy may have named standbys in it.
        standby.append_settings("data/postgresql.auto.conf", &[("synchronous_standby_names", "")]);
        standby.start_on_any_port();

        self.standbys.push(name);
        block_on(self.wait_for_standbys(confirm));
        let url = self.url();
        let synchronous = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'sync'";
        assert!(
            wait_until(|| block_on(async { number(&connect(&url).await, synchronous).await }) == self.standbys.len()),
            "the standby does not stream:\n{}",
            standby.log()
        );
        standby
    }

    /// Makes this standby a primary that takes writes, and waits until it does.
    ///
    /// # Panics
    ///
    /// When it is no standby or does not run.
    pub fn promote(&mut self) {
        let url = self.url();
        let promoted = block_on(async move {
            let client = connect(&url).await;
            client.query_one("SELECT pg_promote(true, 60)", &[]).await
        });
        let done = promoted.is_ok_and(|row| row.get(0));
        assert!(done, "the standby was not promoted:\n{}", self.log());
    }

    async fn wait_for_standbys(&self, confirm: Confirm) {
        let commit = match confirm {
            Confirm::Flushed => "on",
            Confirm::Applied => "remote_apply",
        };
        let names = format!("FIRST {} ({})", self.standbys.len(), self.standbys.join(", "));
        let client = connect(&self.url()).await;
        for statement in [
            format!("ALTER SYSTEM SET synchronous_commit = {commit}"),
            format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'"),
            "SELECT pg_reload_conf()".to_owned(),
        ] {
            if let Err(error) = client.batch_execute(&statement).await {
                panic!("{statement}: {error:?}");
            }
        }
    }
}

async fn number(client: &Client, query: &str) -> usize {
    let row = client
        .query_one(query, &[])
        .await
        .unwrap_or_else(|error| panic!("{query}: {error:?}"));
    usize::try_from(row.get::<_, i64>(0)).expect("a count is not negative")
}
