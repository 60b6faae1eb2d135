//! Where a scenario is lived through: a directory, a store in it or beside it, and the configuration of its nodes.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use pensum_sim::{ACT, COMMON, PAUSABLE};
use pensum_testing::postgres::{Database, Mode, Server as Postgres};
use serde_json::json;
use tempfile::TempDir;

use super::plan::LEASE;
use crate::cluster;
use crate::harness::{Server, kill_marked};

/// What `pensum serve` keeps its tasks in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file, of one node.
    Sqlite,
    /// A database, of one to three.
    Postgres,
}

enum Store {
    Sqlite,
    Shared(Database),
    /// A server of its own, which can be stopped; boxed for its size.
    Own(Box<Mutex<Postgres>>),
}

/// All that nodes need.
pub(super) struct Place {
    dir: TempDir,
    store: Store,
}

impl Place {
    /// A new and empty store; on PostgreSQL one that `can_stop` where that is asked for.
    pub(super) fn new(kind: Kind, can_stop: bool) -> Place {
        let dir = TempDir::with_prefix("pensum-crash-").unwrap();
        std::fs::write(dir.path().join("act.sh"), include_str!("act.sh")).unwrap();
        std::fs::write(dir.path().join("agent.sh"), include_str!("agent.sh")).unwrap();
        let args = ["${role}", "${count}", "${seconds}"];
        let script = dir.path().join("act.sh").display().to_string();
        let at = dir.path().display().to_string();
        let args = [&[script.as_str(), at.as_str()], &args[..]].concat();
        let command = json!({ "command": { "program": "sh", "args": args, "stdin": "" } });
        // JSON is YAML too.
        let config = json!({ "handlers": { ACT: command, COMMON: command, PAUSABLE: command } });
        std::fs::write(dir.path().join("node.yaml"), config.to_string()).unwrap();
        let store = match (kind, can_stop) {
            (Kind::Sqlite, _) => Store::Sqlite,
            (Kind::Postgres, false) => Store::Shared(cluster::database()),
            // A killed process loses nothing by it, and a start after a crash is a matter of no time.
            (Kind::Postgres, true) => Store::Own(Box::new(Mutex::new(Postgres::start(&[("fsync", "off")])))),
        };
        Place { dir, store }
    }

    /// The store's URL.
    pub(super) fn url(&self) -> String {
        match &self.store {
            Store::Sqlite => format!("sqlite:{}", self.dir.path().join("x.db").display()),
            Store::Shared(database) => database.url(),
            Store::Own(server) => server.lock().unwrap_or_else(PoisonError::into_inner).url(),
        }
    }

    /// Where each run writes down what it does.
    pub(super) fn effects(&self) -> PathBuf {
        self.path().join("effects")
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A node that has yet to be started.
    pub(super) fn node(&self, slots: usize) -> Server {
        let mut node = Server::unstarted_on(self.url(), &["--grace", "1"]);
        let config = self.path().join("node.yaml").display().to_string();
        let (slots, lease) = (slots.to_string(), LEASE.as_secs().to_string());
        for arg in ["--slots", &slots, "--lease", &lease, "--config", &config] {
            node.add_arg(arg);
        }
        node
    }

    /// Stops the store as a crash does, and starts it again after `meanwhile`; false where it cannot be stopped.
    pub(super) fn outage(&self, meanwhile: impl FnOnce()) -> bool {
        let Store::Own(server) = &self.store else {
            return false;
        };
        let mut server = server.lock().unwrap_or_else(PoisonError::into_inner);
        server.stop(Mode::Immediate);
        meanwhile();
        server.start_again();
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What a killed node may have left.
        kill_marked(self.dir.path());
    }
}
