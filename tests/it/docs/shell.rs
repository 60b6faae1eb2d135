//! The shell that the commands of one page are typed into.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use pensum_testing::postgres::Database;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tempfile::TempDir;

use super::page::{self, Step, What};

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long what runs beside may take to end.
const FAREWELL: Duration = Duration::from_secs(5);
/// Pause between two looks at something that another process changes.
const LOOK: Duration = Duration::from_millis(20);
/// Ends the output of a command.
const MARK: char = '\u{1e}';
/// The addresses that pages name. The first is where a node listens that is not told otherwise.
const ADDRESSES: [&str; 2] = ["127.0.0.1:7400", "127.0.0.1:7401"];
/// The database that pages name, and what the program says of it.
const DATABASE: &str = "postgres://pensum@db.example/pensum";
const DATABASE_SHOWN: &str = "postgres://db.example:5432/pensum";

/// Texts of pages, each with what stands for it here.
type Names = Vec<(&'static str, String)>;

/// A shell in a directory of its own.
pub(crate) struct Shell {
    child: Child,
    input: ChildStdin,
    output: Receiver<String>,
    /// Printed, and not taken yet.
    pending: String,
    /// What pages name, and what that is here.
    names: Names,
    /// Where the commands work.
    place: TempDir,
    /// The scripts, what runs beside prints, and `pensum`.
    aside: TempDir,
    /// What pages call `postgres://pensum@db.example/pensum`, where one does.
    _database: Option<Database>,
    steps: usize,
}

/// Whether a program is on the path.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Addresses of ports that nobody uses now.
fn free_addresses() -> [String; 2] {
    // Both are held before either is given back, so that they differ.
    let listeners = ADDRESSES.map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().to_string())
}

/// True when a text names the database of the pages.
pub(crate) fn names_database(text: &str) -> bool {
    text.contains(DATABASE)
}

/// An empty database, and the names by which the pages and the program call it.
fn fresh_database() -> (Database, Names) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let database = runtime.block_on(Database::fresh());
    let url = database.url();
    let shown = pensum_store::shown(&url);
    (database, vec![(DATABASE, url), (DATABASE_SHOWN, shown)])
}

impl Shell {
    /// A shell, and a PostgreSQL database for a page that names one.
    pub(crate) fn start(with_database: bool) -> Shell {
        let (database, names) = with_database.then(fresh_database).unzip();
        let mut names: Names = names.unwrap_or_default();
        let (place, aside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_pensum"), aside.path().join("pensum")).unwrap();
        let mut command = Command::new("bash");
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PENSUM_")) {
            command.env_remove(name);
        }
        let addresses = free_addresses();
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .args(["--noprofile", "--norc"])
            .env("PATH", format!("{}:{path}", aside.path().display()))
            .env("PENSUM_URL", format!("http://{}", addresses[0]))
            .env("PENSUM_LISTEN", &addresses[0])
            // Nobody waits for what still runs at the end of a page.
            .env("PENSUM_GRACE", "0")
            // The server of the tests does not wait for its disk, and each command would warn of that.
            .envs(with_database.then_some(("PENSUM_LOG", "error")))
            .env("NO_COLOR", "1")
            .env("COLUMNS", "100")
            .current_dir(place.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0);
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let mut from = child.stdout.take().unwrap();
        let (to, output) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 16 * 1024];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                // The test may have failed meanwhile.
                let _ = to.send(String::from_utf8_lossy(&bytes[..count]).into_owned());
            }
        });
        names.extend(ADDRESSES.into_iter().zip(addresses));
        Shell {
            child,
            input,
            output,
            pending: String::new(),
            names,
            place,
            aside,
            _database: database,
            steps: 0,
        }
    }

    /// Does what a step says; what came of it is compared with what is shown.
    pub(crate) fn take(&mut self, step: &Step) -> Result<(), String> {
        self.steps += 1;
        match &step.what {
            What::File { name, text } => {
                std::fs::write(self.place.path().join(name), self.there(text)).unwrap();
                Ok(())
            }
            What::Command(command) if command.is_background() => self.start_beside(command),
            What::Command(command) => self.run(command),
        }
    }

    fn run(&mut self, command: &page::Command) -> Result<(), String> {
        let script = self.script(&command.text);
        self.type_in(&format!(". '{}' </dev/null 2>&1", script.display()));
        let (printed, code) = self.answer().map_err(|printed| {
            format!(
                "`{}` has not ended in {PATIENCE:?}; it printed:\n{printed}",
                command.text
            )
        })?;
        if code != command.exit() {
            let expected = command.exit();
            return Err(format!(
                "`{}` ended with {code}, not {expected}; it printed:\n{printed}",
                command.text
            ));
        }
        if command.shown.is_empty() || page::is_shown(&command.shown, &lines(&printed)) {
            return Ok(());
        }
        Err(differs(command, &printed))
    }

    fn start_beside(&mut self, command: &page::Command) -> Result<(), String> {
        let script = self.script(&command.text);
        let out = self.aside.path().join(format!("{}.out", self.steps));
        self.type_in(&format!(
            ". '{}' </dev/null >'{}' 2>&1",
            script.display(),
            out.display()
        ));
        self.answer()?;
        let began = Instant::now();
        loop {
            let printed = self.here(&std::fs::read_to_string(&out).unwrap());
            if page::is_among(&command.shown, &lines(&printed)) {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(differs(command, &printed));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Writes a command to a file of its own, so that nothing has to be quoted.
    fn script(&self, text: &str) -> PathBuf {
        let path = self.aside.path().join(format!("{}.sh", self.steps));
        std::fs::write(&path, self.there(text) + "\n").unwrap();
        path
    }

    fn type_in(&mut self, line: &str) {
        let line = format!("{line}; printf '{MARK}%d{MARK}' $?\n");
        self.input.write_all(line.as_bytes()).unwrap();
    }

    /// The output of the command that was typed last, and its exit code; as an error what it printed so far.
    fn answer(&mut self) -> Result<(String, i32), String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut parts = self.pending.splitn(3, MARK);
            if let (Some(printed), Some(code), Some(rest)) = (parts.next(), parts.next(), parts.next()) {
                let answer = (self.here(printed), code.parse().unwrap_or(-1));
                self.pending = rest.to_owned();
                return Ok(answer);
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(more) => self.pending.push_str(&more),
                Err(_) => return Err(self.here(&self.pending)),
            }
        }
    }

    /// A text of the page as it is here.
    fn there(&self, text: &str) -> String {
        let names = self.names.iter();
        names.fold(text.to_owned(), |text, (name, own)| text.replace(name, own))
    }

    /// What was printed here as the page would show it.
    fn here(&self, text: &str) -> String {
        let place = self.place.path().display().to_string();
        let names = self.names.iter();
        let text = names.fold(text.to_owned(), |text, (name, own)| text.replace(own, name));
        text.replace(&place, "/home/me")
    }
}

/// What a node says when it clears up after one that was killed: any node of this machine does, and other tests kill theirs.
const CLEARED_UP: &str = "killing a process whose node has died";

fn lines(printed: &str) -> Vec<&str> {
    let own = printed.trim_end().lines().filter(|line| !line.contains(CLEARED_UP));
    own.map(str::trim_end).collect()
}

fn differs(command: &page::Command, printed: &str) -> String {
    let shown = command.shown.join("\n");
    format!("`{}` is shown to print\n{shown}\n\nand prints\n{printed}", command.text)
}

impl Drop for Shell {
    /// Ends all that the page started.
    fn drop(&mut self) {
        let group = Pid::from_child(&self.child);
        // It may all have ended already.
        let _ = kill_process_group(group, Signal::TERM);
        let _ = self.child.wait();
        let began = Instant::now();
        while test_kill_process_group(group).is_ok() && began.elapsed() < FAREWELL {
            std::thread::sleep(LOOK);
        }
        let _ = kill_process_group(group, Signal::KILL);
    }
}
