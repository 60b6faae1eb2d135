//! `pensum run`: a plan from its file to its end, also after a kill in the middle.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Cli, SOON, assert_says, eventually, items, kill_marked, lines, program, text};

/// A directory with a small Git repository and a store.
struct Workshop {
    dir: TempDir,
}

impl Workshop {
    fn new() -> Workshop {
        Workshop {
            dir: TempDir::with_prefix("pensum-it-").unwrap(),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn db(&self) -> String {
        format!("sqlite:{}", self.file("plan.db").display())
    }

    fn cli(&self) -> Cli {
        Cli::at(self.dir.path())
    }

    fn verify(&self) {
        let report = self.cli().json(&["db", "verify", "--db", &self.db()]);
        assert_eq!(report["violations"], json!([]), "{report}");
    }

    /// The tasks by name.
    fn tasks(&self) -> BTreeMap<String, Value> {
        let listed = self.cli().json(&["task", "list", "--all", "--db", &self.db()]);
        items(&listed["items"])
            .iter()
            .map(|task| (text(&task["name"]), task.clone()))
            .collect()
    }

    fn start(&self, args: &[&str]) -> Running {
        let child = program()
            .args(args)
            .current_dir(self.dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Running(child)
    }

    fn repository(&self) -> PathBuf {
        let repo = self.file("repo");
        std::fs::create_dir(&repo).unwrap();
        git(&repo, &["init", "--quiet", "--initial-branch", "main"]);
        for (number, (name, content)) in [
            ("main.py", "import os\n# TODO: say more\nprint('hello')\n"),
            ("Cargo.toml", "[package]\nname = \"x\"\n[dependencies]\nserde = \"1\"\n"),
            ("src.rs", "fn main() {\n    // FIXME later\n}\n"),
        ]
        .into_iter()
        .enumerate()
        {
            std::fs::write(repo.join(name), content).unwrap();
            git(&repo, &["add", name]);
            git(&repo, &["commit", "--quiet", "-m", &format!("Change {number}")]);
        }
        repo
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        kill_marked(self.dir.path());
    }
}

/// A run under way; killed with the value.
struct Running(Child);

impl Running {
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn git(repo: &Path, args: &[&str]) {
    let output = Command::new("git")
        .args([
            "-c",
            "user.name=Ada",
            "-c",
            "user.email=ada@example.org",
            "-c",
            "commit.gpgsign=false",
            "-C",
        ])
        .arg(repo)
        .args(args)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_INDEX_FILE")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_repository_analysis_survives_a_kill_and_redoes_nothing_that_was_done() {
    let shop = Workshop::new();
    let repo = shop.repository();
    let plan = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/repo-analysis.yaml");
    let (repo, out, db) = (
        format!("repo={}", repo.display()),
        format!("out={}", shop.file("report.md").display()),
        shop.db(),
    );
    let args = ["run", plan, "--db", &db, "--var", &repo, "--var", &out, "--slots", "1"];
    let running = shop.start(&args);
    // Each step leaves a file in the run's directory.
    let results = || {
        let runs = std::fs::read_dir(shop.file("pensum-runs"))
            .ok()?
            .flatten()
            .next()?
            .path();
        (std::fs::read_dir(runs).ok()?.count() >= 4).then_some(())
    };
    eventually("some steps to be done", SOON, results);
    running.kill();
    assert!(
        !shop.file("report.md").exists(),
        "it was killed too late to show anything"
    );
    shop.verify();
    let before = shop.tasks();
    let done: Vec<_> = before
        .iter()
        .filter(|(_, task)| task["status"] == "completed")
        .collect();
    assert!(
        !done.is_empty() && done.len() < before.len(),
        "{} of {} were done",
        done.len(),
        before.len()
    );

    let resumed = shop.cli().run(&[&args[..], &["--resume"]].concat());
    assert_eq!(resumed.code, Some(0), "{resumed:?}");
    let after = shop.tasks();
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, task) in &after {
        assert_eq!(task["status"], "completed", "{name}: {task}");
    }
    for (name, task) in done {
        for field in ["id", "attempt", "finished_at", "version"] {
            assert_eq!(after[name][field], task[field], "{name} was done already, {field}");
        }
    }
    let report = std::fs::read_to_string(shop.file("report.md")).unwrap();
    assert_says(&report, "# Repository analysis");
    shop.verify();

    // A run that is done is not done again.
    let again = shop.cli().run(&[&args[..], &["--resume"]].concat());
    assert_eq!(again.code, Some(0), "{again:?}");
    assert_eq!(
        shop.tasks()["Write the report"]["finished_at"],
        after["Write the report"]["finished_at"]
    );
}

const PLAN: &str = r#"
plan: Three steps
variables: { file: nowhere, code: 0 }
tasks:
  first: { handler: command, parameters: { program: sh, args: [-c, 'echo first >> "$1"', sh, "${file}"] } }
  middle:
    handler: command
    depends_on: [first]
    parameters: { program: sh, args: [-c, 'echo middle >> "$1"; until [ -e "$1.gate" ]; do sleep 0.05; done; exit "$2"', sh, "${file}", "${code}"] }
    max_retries: 0
  last: { handler: command, depends_on: [middle], parameters: { program: sh, args: [-c, 'echo last >> "$1"', sh, "${file}"] } }
"#;

#[test]
fn a_killed_run_repeats_only_what_was_under_way() {
    let shop = Workshop::new();
    let (plan, file, db) = (shop.file("plan.yaml"), shop.file("effects"), shop.db());
    std::fs::write(&plan, PLAN).unwrap();
    let var = format!("file={}", file.display());
    let args = ["run", plan.to_str().unwrap(), "--db", &db, "--var", &var];
    let running = shop.start(&args);
    eventually("the middle step to run", SOON, || {
        (lines(&file) == ["first", "middle"]).then_some(())
    });
    // Somebody else cannot have the store meanwhile.
    assert_says(
        &shop.cli().run(&["db", "prune", "--yes", "--db", &db]).fails(6),
        "in use",
    );
    running.kill();
    shop.verify();
    std::fs::write(shop.file("effects.gate"), "").unwrap();
    let resumed = shop
        .cli()
        .run(&["run", plan.to_str().unwrap(), "--db", &db, "--resume"]);
    assert_eq!(resumed.code, Some(0), "{resumed:?}");
    assert_eq!(lines(&file), ["first", "middle", "middle", "last"]);
    shop.verify();
}

#[test]
fn a_failed_run_exits_with_1_and_an_interrupted_one_can_go_on() {
    let shop = Workshop::new();
    let (plan, file) = (shop.file("plan.yaml"), shop.file("effects"));
    std::fs::write(&plan, PLAN).unwrap();
    let var = format!("file={}", file.display());
    let db = shop.db();
    let args = ["run", plan.to_str().unwrap(), "--db", &db, "--var", &var];
    let mut running = shop.start(&args);
    eventually("the middle step to run", SOON, || {
        (lines(&file) == ["first", "middle"]).then_some(())
    });
    let pid = rustix::process::Pid::from_raw(i32::try_from(running.0.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    let status = eventually("the run to stop", Duration::from_secs(60), || {
        running.0.try_wait().unwrap()
    });
    assert!(!status.success(), "an interrupted run is not a completed one");
    shop.verify();
    std::fs::write(shop.file("effects.gate"), "").unwrap();
    shop.cli()
        .run(&["run", plan.to_str().unwrap(), "--db", &db, "--resume"])
        .expect(0);
    assert_eq!(lines(&file), ["first", "middle", "middle", "last"]);

    let failed = shop.cli().run(&[&args[..], &["--var", "code=7"]].concat());
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert_says(&format!("{}{}", failed.stdout, failed.stderr), "code 7");
    assert_eq!(
        shop.cli()
            .run(&["run", plan.to_str().unwrap(), "--db", &db, "--var", "nobody=1"])
            .code,
        Some(2)
    );
    assert_eq!(shop.cli().run(&["run", "missing.yaml", "--db", &db]).code, Some(3));
    shop.verify();
}
