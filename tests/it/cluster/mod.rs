//! Several nodes on one PostgreSQL: real processes, killed, stopped and cut off from a real server, which is killed and
//! cut off in its turn. What is promised is judged from the outside: answers over HTTP, what the tasks themselves wrote
//! into files, their histories, and `pensum db verify`.

mod bounds;
mod commands;
mod failover;
mod kills;
mod load;
mod outages;
mod pooler;
mod rolling;
mod silent;
mod storm;

use std::path::Path;
use std::time::{Duration, Instant};

use pensum_testing::postgres::Database;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Http, SOON, Server, eventually, text, with};

/// The nodes' lease: short, so that a test does not wait long for what dead nodes held, and long enough that a machine
/// with other work renews in time.
pub(super) const LEASE: Duration = Duration::from_secs(4);

/// A database of a test's own on the shared server.
pub(super) fn database() -> Database {
    runtime().block_on(Database::fresh())
}

pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// The nodes of one store. Each has a handler that no other has, so that a test can have a script run there and nowhere
/// else.
pub(super) struct Cluster {
    pub(super) nodes: Vec<Server>,
    url: String,
}

impl Cluster {
    /// Starts so many nodes at the same moment, the first of which makes the tables.
    #[track_caller]
    pub(super) fn start(url: &str, nodes: usize, args: &[&str]) -> Cluster {
        let mut cluster = Cluster {
            nodes: (0..nodes).map(|number| unstarted(url, number, args)).collect(),
            url: url.to_owned(),
        };
        std::thread::scope(|scope| {
            for node in &mut cluster.nodes {
                scope.spawn(|| node.restart());
            }
        });
        cluster
    }

    /// Starts one more node.
    #[track_caller]
    pub(super) fn join(&mut self, args: &[&str]) -> usize {
        let number = self.nodes.len();
        self.nodes.push(unstarted(&self.url, number, args));
        self.nodes[number].restart();
        number
    }

    /// Where the nodes listen now.
    pub(super) fn bases(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.http.base.clone()).collect()
    }

    /// Ends a test: stops the nodes that run, and verifies the store that none holds any more.
    #[track_caller]
    pub(super) fn finish(mut self) {
        for node in &mut self.nodes {
            if node.is_running() {
                node.stop();
            }
        }
        self.nodes[0].verify();
    }
}

fn unstarted(url: &str, number: usize, args: &[&str]) -> Server {
    let mut node = Server::unstarted_on(url.to_owned(), args);
    let config = node.file("node.yaml");
    let command = json!({ "program": "sh", "args": ["-c", "${script}", "sh", "${file}"] });
    let config_text = json!({ "handlers": { own_handler(number): { "command": command } } });
    // JSON is YAML too.
    std::fs::write(&config, config_text.to_string()).unwrap();
    if !args.contains(&"--lease") {
        node.add_arg("--lease");
        node.add_arg(LEASE.as_secs().to_string());
    }
    node.add_arg("--config");
    node.add_arg(config.display().to_string());
    node
}

fn own_handler(number: usize) -> String {
    format!("node-{number}")
}

/// A task that runs a shell script on one node and on no other; `$1` is `file`.
pub(super) fn only_on(node: usize, script: &str, file: &Path) -> Value {
    json!({ "handler": own_handler(node), "parameters": { "script": script, "file": file } })
}

/// Submits a task at one node that only another one can run, again until it is taken; says how long it took until the
/// task had completed.
#[track_caller]
pub(super) fn probe(at: &Http, runner: usize, most: Duration) -> Duration {
    let began = Instant::now();
    let task = with(only_on(runner, ":", Path::new("")), json!({ "priority": "critical" }));
    let what = format!("node {runner} to run a task that {} took", at.base);
    let mut id = None;
    eventually(&what, most, || {
        if id.is_none() {
            let answer = at.send(Method::POST, "/api/v1/tasks", Some(&task), &[]).ok()?;
            id = (answer.status == 201).then(|| text(&answer.body["id"]));
        }
        let path = format!("/api/v1/tasks/{}", id.as_ref()?);
        let answer = at.send(Method::GET, &path, None, &[]).ok()?;
        (answer.body["status"] == "completed").then(|| began.elapsed())
    })
}

/// Lines of warning and error that the node logged so far, but for the one about a server that does not wait for its disk.
pub(super) fn complaints(node: &Server) -> Vec<String> {
    let mut lines = node.log_all();
    lines.retain(|line| (line.contains(" WARN ") || line.contains("ERROR")) && !line.contains("fsync=off"));
    lines
}

/// The nodes that the store lists, with these of their fields.
#[track_caller]
pub(super) fn listed(http: &Http, field: &str) -> Vec<String> {
    let nodes = http.all("/api/v1/nodes");
    nodes.iter().map(|node| text(&node[field])).collect()
}

/// The name of the node that listens there, which attempts keep as `executor_id`.
#[track_caller]
pub(super) fn name_of(node: &Server) -> String {
    let of_this = |found: &Value| found["address"] == node.http.base.as_str();
    eventually("the node to be listed", SOON, || {
        let found = node.http.all("/api/v1/nodes").into_iter().find(of_this)?;
        Some(text(&found["name"]))
    })
}

/// A task that runs a shell script with arguments.
pub(super) fn script(script: &str, args: &[&Path]) -> Value {
    let mut all = vec!["-c".to_owned(), script.to_owned(), "sh".to_owned()];
    all.extend(args.iter().map(|arg| arg.display().to_string()));
    json!({ "handler": "command", "parameters": { "program": "sh", "args": all } })
}
