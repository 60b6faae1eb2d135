//! A node that can be killed, stopped and started again on the same store.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::cli::program;
use super::{Answer, Cli, Http, SOON, alive, eventually, kill_marked, text};

/// How much of a node's log a failed test shows.
const LOG_SHOWN: usize = 4_000;

/// `pensum serve` on a store in a directory of its own.
pub(crate) struct Server {
    dir: TempDir,
    /// The store's URL.
    db: String,
    args: Vec<String>,
    /// Where it listens after its next start.
    listen: String,
    child: Option<Child>,
    pub(crate) http: Http,
}

impl Server {
    /// Starts a node with a new store.
    #[track_caller]
    pub(crate) fn start(args: &[&str]) -> Server {
        let dir = TempDir::with_prefix("pensum-it-").unwrap();
        let db = dir.path().join("x.db");
        Server::start_on(dir, db, args)
    }

    /// Starts a node on a store; `dir` goes with the node.
    #[track_caller]
    pub(crate) fn start_on(dir: TempDir, db: PathBuf, args: &[&str]) -> Server {
        let mut server = Server::new(dir, format!("sqlite:{}", db.display()), args);
        server.restart();
        server
    }

    /// A node that has yet to be started, on a store that is somewhere else.
    pub(crate) fn unstarted(db: &Path) -> Server {
        Server::unstarted_on(format!("sqlite:{}", db.display()), &[])
    }

    /// A node that has yet to be started, on the store of this URL.
    pub(crate) fn unstarted_on(url: String, args: &[&str]) -> Server {
        Server::new(TempDir::with_prefix("pensum-it-").unwrap(), url, args)
    }

    fn new(dir: TempDir, db: String, args: &[&str]) -> Server {
        Server {
            dir,
            db,
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            listen: "127.0.0.1:0".to_owned(),
            child: None,
            http: Http::new(""),
        }
    }

    /// Adds an argument for the next start.
    pub(crate) fn add_arg(&mut self, arg: impl Into<String>) {
        self.args.push(arg.into());
    }

    /// Has the node listen where it listens now after each further start.
    pub(crate) fn keep_address(&mut self) {
        self.listen = self.http.base.trim_start_matches("http://").to_owned();
    }

    /// Starts the node again after its end; its address is another one then, unless it keeps it.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        match self.try_restart() {
            Some(url) => self.http = Http::new(url),
            None => panic!("the node ended before it listened; its log:\n{}", self.log()),
        }
    }

    /// Starts the node again; `None` when it ended before it listened.
    #[track_caller]
    pub(crate) fn try_restart(&mut self) -> Option<String> {
        assert!(self.child.is_none(), "the node runs already");
        let log = File::options().append(true).create(true).open(self.log_file()).unwrap();
        let mut child = program()
            .args(["serve", "--listen", &self.listen, "--db", &self.db_url()])
            .args(&self.args)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (send, receive) = mpsc::channel();
        // Reads on after the address, so that the node never meets a closed pipe.
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(url) = line.strip_prefix("listening on ") {
                    let _ = send.send(url.to_owned());
                }
            }
        });
        self.child = Some(child);
        match receive.recv_timeout(SOON) {
            Ok(url) => Some(url),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = self.wait_end(SOON);
                println!("the node ended before it listened: {status}");
                None
            }
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("no address after {SOON:?}; the log:\n{}", self.log()),
        }
    }

    /// The directory of the test: the store is in it, and whatever else a test puts there.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A file in that directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    pub(crate) fn db_url(&self) -> String {
        self.db.clone()
    }

    pub(crate) fn cli(&self) -> Cli {
        Cli::of(&self.http.base)
    }

    /// True from a start until its end was seen.
    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().expect("the node runs").id()).unwrap()
    }

    fn log_file(&self) -> PathBuf {
        self.dir().join("serve.log")
    }

    /// What the node logged, the end of it.
    pub(crate) fn log(&self) -> String {
        let log = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        log[log.ceil_char_boundary(log.len().saturating_sub(LOG_SHOWN))..].to_owned()
    }

    /// Every line that the node logged, since its first start.
    pub(crate) fn log_all(&self) -> Vec<String> {
        super::lines(&self.log_file())
    }

    pub(crate) fn log_lines(&self) -> usize {
        super::lines(&self.log_file()).len()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid()).unwrap(), signal).unwrap();
    }

    /// Waits for the node's end.
    #[track_caller]
    pub(crate) fn wait_end(&mut self, most: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("the node runs");
        let status = eventually("the end of the node", most, || child.try_wait().unwrap());
        drop(child);
        status
    }

    /// The node's end, if it has ended by itself.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().unwrap()?;
        self.child = None;
        Some(status)
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("the node runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Stops the node as a supervisor does, and expects that it ends well.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait_end(SOON);
        assert_eq!(status.code(), Some(0), "SIGTERM: {status}; the log:\n{}", self.log());
    }

    /// Ends a test: stops the node if it runs, and verifies the store.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        if self.child.is_some() {
            self.stop();
        }
        self.verify();
    }

    /// Checks every invariant of the store, which no node may hold.
    #[track_caller]
    pub(crate) fn verify(&self) {
        let report = Cli::default().json(&["db", "verify", "--db", &self.db_url()]);
        assert_eq!(report["violations"], serde_json::json!([]), "{report}");
    }

    /// Creates a task and gives its id.
    #[track_caller]
    pub(crate) fn create(&self, task: &Value) -> String {
        text(&self.http.post("/api/v1/tasks", task).expect(201)["id"])
    }

    /// Creates tasks in one batch.
    #[track_caller]
    pub(crate) fn create_all(&self, tasks: &[Value]) -> Vec<String> {
        let answer = self
            .http
            .post("/api/v1/tasks/batch", &serde_json::json!({ "tasks": tasks }))
            .expect(201);
        super::items(&answer["ids"]).iter().map(text).collect()
    }

    /// A task, or something under it: `task("ID/events")`.
    #[track_caller]
    pub(crate) fn task(&self, path: &str) -> Value {
        self.http.get(&format!("/api/v1/tasks/{path}")).expect(200)
    }

    /// Posts a command to a task.
    #[track_caller]
    pub(crate) fn command(&self, id: &str, command: &str) -> Answer {
        self.http
            .post(&format!("/api/v1/tasks/{id}/{command}"), &serde_json::json!({}))
    }

    /// Waits until a task has a status, and shows it then.
    #[track_caller]
    pub(crate) fn wait(&self, id: &str, status: &str) -> Value {
        let what = format!("task {id} to be {status}");
        let mut last = Value::Null;
        let end = std::time::Instant::now() + SOON;
        let found = eventually(&what, SOON * 2, || {
            last = self.task(id);
            (last["status"] == status || std::time::Instant::now() > end).then(|| last.clone())
        });
        assert_eq!(found["status"], status, "{what}; {found}; the log:\n{}", self.log());
        found
    }

    /// Waits until a task has a status, and checks that the command line tells the same of it.
    #[track_caller]
    pub(crate) fn wait_both(&self, id: &str, status: &str) -> Value {
        let found = self.wait(id, status);
        let told = self.cli().json(&["task", "get", id]);
        for field in [
            "id",
            "status",
            "attempt",
            "retry_count",
            "error",
            "result",
            "priority",
            "finished_at",
        ] {
            assert_eq!(told[field], found[field], "{field} over the command line and over HTTP");
        }
        found
    }

    /// The kinds of a task's events, in order.
    #[track_caller]
    pub(crate) fn events(&self, id: &str) -> Vec<String> {
        self.http
            .all(&format!("/api/v1/tasks/{id}/events"))
            .iter()
            .map(|event| text(&event["kind"]))
            .collect()
    }

    /// Waits for a process id that a command wrote into a file.
    #[track_caller]
    pub(crate) fn pid_in(&self, file: &Path) -> i32 {
        eventually("a process id", SOON, || {
            let text = std::fs::read_to_string(file).ok()?;
            text.strip_suffix('\n')?
                .lines()
                .last()?
                .trim()
                .parse()
                .ok()
                .filter(|pid| alive(*pid))
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok()?);
            let ended = ended
                .map(|status| format!("; it had ended by itself ({status})"))
                .unwrap_or_default();
            eprintln!("the node's log{ended}:\n{}", self.log());
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        kill_marked(self.dir.path());
    }
}
