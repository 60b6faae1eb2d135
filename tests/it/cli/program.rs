//! Starts the program in a directory of its own.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks at something that another process changes.
const LOOK: Duration = Duration::from_millis(20);

/// A directory with a store, and the program in it.
pub(crate) struct Place {
    directory: TempDir,
}

/// What a finished program said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Place {
    pub(crate) fn new() -> Place {
        Place {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn write(&self, file: &str, text: &str) {
        std::fs::write(self.path().join(file), text).unwrap();
    }

    pub(crate) fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.path().join(file)).unwrap_or_default()
    }

    /// The command, with nothing of the developer's own settings.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pensum"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PENSUM_")) {
            command.env_remove(name);
        }
        // No test may meet a node of the developer's.
        command.env("PENSUM_URL", "http://127.0.0.1:1");
        command.args(args).current_dir(self.path()).stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    #[track_caller]
    pub(crate) fn pensum(&self, args: &[&str]) -> Said {
        Said::from(self.command(args).output().unwrap())
    }

    /// Runs the program, which must end with `code`; what it said.
    #[track_caller]
    pub(crate) fn ends(&self, code: i32, args: &[&str]) -> Said {
        let said = self.pensum(args);
        assert_eq!(said.code, code, "pensum {}: {said:?}", args.join(" "));
        said
    }

    /// Starts the program; its output goes to the files `NAME.out` and `NAME.err`.
    pub(crate) fn start(&self, name: &str, args: &[&str]) -> Started {
        let file = |ending: &str| std::fs::File::create(self.path().join(format!("{name}.{ending}"))).unwrap();
        Started {
            child: self
                .command(args)
                .stdout(file("out"))
                .stderr(file("err"))
                .spawn()
                .unwrap(),
        }
    }

    /// Starts a node on a free port and waits until it listens; its address.
    pub(crate) fn serve(&self, more: &[&str]) -> (Started, String) {
        let node = self.start(
            "serve",
            &[&["serve", "--db", "sqlite:p.db", "--listen", "127.0.0.1:0"], more].concat(),
        );
        self.until("the node listens", || self.read("serve.out").contains('\n'));
        let out = self.read("serve.out");
        let address = out
            .trim()
            .strip_prefix("listening on ")
            .unwrap_or_else(|| panic!("{out:?}"))
            .to_owned();
        (node, address)
    }

    /// Waits for what another process does.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let mut waited = Duration::ZERO;
        while !done() {
            assert!(
                waited < PATIENCE,
                "{what}: not after {PATIENCE:?}; {}",
                self.read("serve.err")
            );
            std::thread::sleep(LOOK);
            waited += LOOK;
        }
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        Said {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Said {
    /// Standard output, all of which must be one JSON document.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A program that runs; killed when the test ends.
pub(crate) struct Started {
    child: Child,
}

impl Started {
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
