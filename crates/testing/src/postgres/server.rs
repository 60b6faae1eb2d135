//! Servers of a test's own, which may crash.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::place::{Place, free_port};
use super::settings;

/// Longest wait for a server to start or stop, recovery after a crash included.
const LONGEST: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);
/// Another process may take a port between its choice and its use.
const PORTS_TO_TRY: u32 = 5;
const LOG: &str = "server.log";

/// A PostgreSQL server that one test owns, on a port of 127.0.0.1 that it keeps over restarts; superuser `postgres`, no
/// password.
///
/// Unlike the shared one it writes to disk as a real server does (`fsync` and `full_page_writes` are on). It starts in
/// 0.1 s, with a standby 0.5 s; a start after a crash first syncs a thousand files, which takes 0.1 s on an idle disk and two
/// seconds on a busy one. Where that matters, `("fsync", "off")` spares it and loses nothing that a killed process could
/// lose. Everything here blocks its thread until it is done, so a test whose other tasks must go on meanwhile wants a runtime of several
/// threads. The server ends with this value and with the test's process, however that ends, and its data with it.
#[derive(Debug)]
pub struct Server {
    pub(super) place: Place,
    pub(super) port: u16,
    process: Option<Child>,
    /// The names of those that commits wait for.
    pub(super) standbys: Vec<String>,
}

/// How to stop a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Waits for clients to leave, then writes everything out.
    Smart,
    /// Ends clients, then writes everything out.
    Fast,
    /// Writes nothing more, so the next start recovers from the log.
    Immediate,
}

impl Server {
    /// A new server with these settings on top of those of `postgresql.conf`.
    ///
    /// # Panics
    ///
    /// When it does not start; the message shows its log.
    #[must_use]
    pub fn start(settings: &[(&str, &str)]) -> Server {
        let place = Place::new("server-");
        let template = settings::home().join("template/data");
        // A copy of what initdb made takes a tenth of its second.
        let args = ["-R", "--preserve=mode", "--reflink=auto"];
        let (from, to) = (template.display().to_string(), place.join("data").display().to_string());
        place.run(Path::new("cp"), &[&args[..], &[&from, &to]].concat());
        let mut server = Server::new(place);
        server.configure(&[
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", ""),
            // In the data directory, which is removed, rather than in /dev/shm, which a killed server leaves full.
            ("dynamic_shared_memory_type", "mmap"),
            ("shared_buffers", "32MB"),
            // A standby that was away for a while finds what it missed.
            ("wal_keep_size", "256MB"),
            ("max_wal_senders", "10"),
            ("wal_level", "replica"),
        ]);
        server.configure(settings);
        server.start_on_any_port();
        server
    }

    pub(super) fn new(place: Place) -> Server {
        Server {
            place,
            port: 0,
            process: None,
            standbys: Vec::new(),
        }
    }

    pub(super) fn start_on_any_port(&mut self) {
        for attempt in 1.. {
            self.port = free_port();
            match self.launch() {
                Ok(()) => return,
                Err(log) => assert!(attempt < PORTS_TO_TRY, "the server does not start:\n{log}"),
            }
        }
    }

    /// The URL of its database `postgres`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log(&self) -> String {
        self.place.tail(LOG)
    }

    /// Stops it and waits for its end. A server that is stopped stays so.
    ///
    /// # Panics
    ///
    /// When it has not ended after a minute, as with [`Mode::Smart`] while clients stay.
    pub fn stop(&mut self, mode: Mode) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        let signal = match mode {
            Mode::Smart => Signal::TERM,
            Mode::Fast => Signal::INT,
            Mode::Immediate => Signal::QUIT,
        };
        let pid = pid_of(&process);
        kill_process(pid, signal).expect("a child that was not waited for can be signalled");
        if !wait_until(|| matches!(process.try_wait(), Ok(Some(_)))) {
            self.process = Some(process);
            panic!("{mode:?} has not stopped the server after {LONGEST:?}:\n{}", self.log());
        }
        self.place.reap(process);
    }

    /// Starts it again on the same port and waits until it takes connections, recovery included.
    ///
    /// # Panics
    ///
    /// When it runs, or does not start; the message shows its log.
    pub fn start_again(&mut self) {
        if let Err(log) = self.launch() {
            panic!("the server does not start again:\n{log}");
        }
    }

    /// Kills every process of the server at once, as the kernel does where memory runs out.
    ///
    /// What it had written stays: it is in the hands of the kernel, `fsync` or not.
    ///
    /// # Panics
    ///
    /// When it does not run.
    pub fn kill(&mut self) {
        let process = self.process.take().expect("the server runs");
        let pid = pid_of(&process);
        // Stopped, it neither starts another process nor sees that one has ended.
        kill_process(pid, Signal::STOP).expect("a child that was not waited for can be signalled");
        let mut all = children(pid);
        all.push(pid);
        for pid in &all {
            // One that has just ended needs no signal.
            let _ = kill_process(*pid, Signal::KILL);
        }
        self.place.reap(process);
        assert!(
            wait_until(|| all.iter().all(|pid| !lives(*pid))),
            "processes of the server have survived SIGKILL"
        );
        self.remove_shared_memory();
    }

    /// Adds settings, of which the last of each name counts, to be read at the next start.
    pub(super) fn configure(&self, settings: &[(&str, &str)]) {
        self.append_settings("data/postgresql.conf", settings);
    }

    pub(super) fn append_settings(&self, file: &str, settings: &[(&str, &str)]) {
        let lines = settings
            .iter()
            .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")))
            .collect::<String>();
        self.place
            .append(file)
            .write_all(lines.as_bytes())
            .unwrap_or_else(|error| panic!("cannot write {file}: {error}"));
    }

    /// Starts it and waits until it takes connections; its log where it ends instead.
    fn launch(&mut self) -> Result<(), String> {
        assert!(self.process.is_none(), "the server runs already");
        let program = settings::programs().join("postgres");
        let data = self.place.join("data").display().to_string();
        let port = self.port.to_string();
        let mut process = self.place.spawn("QUIT", LOG, &program, &["-D", &data, "-p", &port]);
        let mut ended = false;
        let decided = wait_until(|| {
            ended = matches!(process.try_wait(), Ok(Some(_)));
            ended || self.is_ready(process.id())
        });
        if ended {
            self.place.reap(process);
            return Err(self.log());
        }
        self.process = Some(process);
        if decided {
            Ok(())
        } else {
            Err(format!("not ready after {LONGEST:?}\n{}", self.log()))
        }
    }

    /// Says whether the process takes connections, of which a standby's only read.
    fn is_ready(&self, process: u32) -> bool {
        let file = self.pid_file();
        // A file that an earlier process left behind names another one.
        file.first().is_some_and(|pid| *pid == process.to_string())
            && file
                .get(7)
                .is_some_and(|status| matches!(status.trim(), "ready" | "standby"))
    }

    /// Lines of `postmaster.pid`: process, directory, start, port, socket, address, shared memory, status.
    fn pid_file(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.place.join("data/postmaster.pid")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Gives back the few bytes by which a server tells whether another uses its data; a killed one leaves them, and the
    /// kernel has places for 4096 in all.
    fn remove_shared_memory(&self) {
        let file = self.pid_file();
        let Some(id) = file.get(6).and_then(|line| line.split_whitespace().nth(1)) else {
            return;
        };
        let _ = Command::new("ipcrm").args(["--shmem-id", id]).output();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(process) = self.process.take() else {
            return;
        };
        let pid = pid_of(&process);
        // Nobody reads its data again.
        let _ = kill_process(pid, Signal::QUIT);
        self.place.reap(process);
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Looks at a condition until it holds or the longest wait is over; says whether it holds.
pub(super) fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + LONGEST;
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// The state letter and the parent of a process, from `/proc`.
fn status(process: &Path) -> Option<(char, i32)> {
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    // The name before them may hold anything, but nothing after it holds a parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

fn children(of: Pid) -> Vec<Pid> {
    let all = std::fs::read_dir("/proc").expect("/proc is mounted");
    all.flatten()
        .filter(|entry| status(&entry.path()).is_some_and(|(_, parent)| parent == of.as_raw_nonzero().get()))
        .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

fn lives(pid: Pid) -> bool {
    let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    // One that nobody waits for has ended all the same.
    status(&process).is_some_and(|(state, _)| state != 'Z')
}
