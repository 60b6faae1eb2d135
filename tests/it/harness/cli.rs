//! The command line.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest run of one command.
const LONGEST: Duration = Duration::from_secs(60);

/// Stands in the environment of every node, and must not leave it.
pub(crate) const SECRET: &str = "correct-horse-battery-staple";

/// Runs `pensum` with the settings of one test.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cli {
    /// The node, for client commands.
    pub(crate) url: Option<String>,
    /// Where to run.
    pub(crate) dir: Option<PathBuf>,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// Standard output, after a look at the exit code.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.stdout
    }

    /// Standard error, after a look at the exit code: one message and no noise round it.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(
            self.stdout.is_empty(),
            "nothing but results goes to standard output: {self:?}"
        );
        assert!(!self.stderr.trim().is_empty(), "an error says something: {self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        self.stderr
    }
}

/// The program, with an environment that no setting of the developer reaches.
pub(crate) fn program() -> Command {
    let built = || env!("CARGO_BIN_EXE_pensum").into();
    let mut command = Command::new(std::env::var_os("PENSUM_TEST_PROGRAM").unwrap_or_else(built));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PENSUM_") {
            command.env_remove(name);
        }
    }
    command
        .env("NO_COLOR", "1")
        .env("NODE_PASSWORD", SECRET)
        .stdin(Stdio::null());
    command
}

impl Cli {
    /// For a node.
    pub(crate) fn of(url: &str) -> Cli {
        Cli {
            url: Some(url.to_owned()),
            dir: None,
        }
    }

    /// Run in a directory, with no node.
    pub(crate) fn at(dir: &Path) -> Cli {
        Cli {
            url: None,
            dir: Some(dir.to_owned()),
        }
    }

    /// Runs a command to its end.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        let mut command = program();
        if let Some(url) = &self.url {
            command.env("PENSUM_URL", url);
        }
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        let mut child = command
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = reader(child.stdout.take().unwrap());
        let stderr = reader(child.stderr.take().unwrap());
        let end = Instant::now() + LONGEST;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > end {
                let _ = child.kill();
                panic!(
                    "pensum {args:?} has not ended after {LONGEST:?}: {}",
                    stderr.join().unwrap()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Output {
            code: status.code(),
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
        }
    }

    /// Runs a command with JSON output.
    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let mut args = args.to_vec();
        args.extend(["-o", "json"]);
        let output = self.run(&args).expect(0);
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{args:?} printed no JSON ({error}): {output}"))
    }
}

fn reader(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
