//! A directory with one process in it, both of which end with the test, however that ends.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::settings;

/// Ports below those that the kernel gives to outgoing connections, one of which could take the port of a server while
/// that is stopped.
const PORTS: std::ops::Range<u64> = 10_000..30_000;

/// Reads "SIGNAL PID" of each process that starts, or an empty line when that has been waited for, and at the end of its
/// input ends the last one and removes the directory.
///
/// The input ends when the test drops its place, and also when the test is killed, since the kernel closes the pipe. A
/// parent-death signal would not do: it is sent when the thread ends that started the process, and tests start servers
/// in threads that end early.
const WATCHDOG: &str = r#"
while read -r a b; do signal=$a pid=$b; done
if [ "$pid" ]; then
    kill -s "$signal" "$pid"
    tries=200
    # In a container nobody may wait for it, and it stays in the table of processes.
    while [ "$tries" -gt 0 ] && kill -0 "$pid" && ! grep -q '^State:.*Z' "/proc/$pid/status"; do
        sleep 0.05
        tries=$((tries - 1))
    done
    kill -s KILL "$pid"
fi
rm -rf "$1"
"#;

/// Tells the watchdog of itself before it becomes the program, so that no moment is unwatched.
const LAUNCHER: &str = r#"echo "$1 $$"; shift; exec "$@" >&2"#;

/// The directory and its watchdog.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    watchdog: Child,
}

impl Place {
    /// A new directory that the servers' user owns.
    pub(super) fn new(prefix: &str) -> Place {
        let path = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir_in(settings::home())
            .unwrap_or_else(|error| panic!("cannot create a directory in {}: {error}", settings::home().display()))
            .keep();
        if let Some((user, group)) = user() {
            std::os::unix::fs::chown(&path, Some(user), Some(group)).expect("root may give directories away");
        }
        let watchdog = command("sh")
            .args(["-c", WATCHDOG, "watchdog"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        Place { path, watchdog }
    }

    /// A file or directory in it.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Starts a program whose output goes to the file `log`, and which the signal of this name ends.
    pub(super) fn spawn(&self, signal: &str, log: &str, program: &Path, args: &[&str]) -> Child {
        let watchdog = self.watchdog.stdin.as_ref().expect("the watchdog listens");
        let to_watchdog = watchdog.as_fd().try_clone_to_owned().expect("a file descriptor");
        command("sh")
            .args(["-c", LAUNCHER, "launcher", signal])
            .arg(program)
            .args(args)
            .current_dir(&self.path)
            .stdin(Stdio::null())
            .stdout(to_watchdog)
            .stderr(self.append(log))
            .spawn()
            .expect("sh")
    }

    /// Runs a program to its end.
    pub(super) fn run(&self, program: &Path, args: &[&str]) {
        let output = command(program)
            .args(args)
            .current_dir(&self.path)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()));
        assert!(
            output.status.success(),
            "{} {args:?}: {}{}",
            program.display(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Waits for a process that was told to end, and says so to the watchdog.
    pub(super) fn reap(&self, mut child: Child) {
        child.wait().expect("the process is a child of this one");
        let mut watchdog = self.watchdog.stdin.as_ref().expect("the watchdog listens");
        // Where the watchdog was killed there is nobody to tell.
        let _ = watchdog.write_all(b"\n");
    }

    /// Opens a file to append to.
    pub(super) fn append(&self, name: &str) -> File {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.join(name))
            .unwrap_or_else(|error| panic!("cannot open {}: {error}", self.join(name).display()))
    }

    /// The last lines of a log.
    pub(super) fn tail(&self, log: &str) -> String {
        let text = std::fs::read_to_string(self.join(log)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The watchdog removes the directory; to wait for that takes two seconds on some disks.
        self.watchdog.stdin = None;
    }
}

/// The user and group of servers, where they are not those of this process: PostgreSQL refuses to run as root.
fn user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let home = settings::home();
    let owner = home
        .metadata()
        .unwrap_or_else(|error| panic!("{}: {error}", home.display()));
    Some((owner.uid(), owner.gid()))
}

/// A command of the servers' user, out of reach of the signals that a terminal or a test runner sends to a whole group.
fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.process_group(0);
    if let Some((user, group)) = user() {
        command.uid(user).gid(group);
    }
    command
}

/// A port of 127.0.0.1 that nobody listens on.
pub(super) fn free_port() -> u16 {
    loop {
        let port = PORTS.start + random() % (PORTS.end - PORTS.start);
        let port = u16::try_from(port).expect("the range lies below 65536");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A number that differs between processes too.
pub(super) fn random() -> u64 {
    // The keys of hash tables are seeded by the operating system.
    RandomState::new().build_hasher().finish()
}
