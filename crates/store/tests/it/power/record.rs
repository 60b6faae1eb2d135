//! The workload in a process of its own, under the recorder.

use std::path::Path;
use std::process::{Command, Stdio};

use super::log::Log;
use super::workload;

const RECORDER: &str = include_str!("recorder.c");
const DIRECTORY: &str = "POWER_DIRECTORY";
const LOG: &str = "POWER_LOG";
const SEED: &str = "POWER_SEED";
const SESSIONS: &str = "POWER_SESSIONS";

/// Why there is no log.
pub(super) const SKIPPED: &str = "skipped: the recorder is loaded with LD_PRELOAD, and needs 64-bit Linux with glibc";

/// The log of a workload of so many sessions; none where nothing can be recorded.
pub(super) fn record(seed: u64, sessions: u64) -> Option<Log> {
    if !cfg!(all(
        target_os = "linux",
        target_env = "gnu",
        target_pointer_width = "64"
    )) {
        return None;
    }
    let home = tempfile::tempdir().unwrap();
    let base = home.path().canonicalize().unwrap();
    let (recorder, directory, log) = (base.join("recorder.so"), base.join("store"), base.join("log"));
    compile(&base.join("recorder.c"), &recorder);
    std::fs::create_dir(&directory).unwrap();
    let workload = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "power::the_workload_under_the_recorder",
            "--ignored",
            "--nocapture",
        ])
        .env("LD_PRELOAD", &recorder)
        .env(DIRECTORY, &directory)
        .env(LOG, &log)
        .env(SEED, seed.to_string())
        .env(SESSIONS, sessions.to_string())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&workload.stdout) + String::from_utf8_lossy(&workload.stderr);
    assert!(workload.status.success(), "the workload of seed {seed} failed: {said}");
    Some(Log::parse(std::fs::read(log).unwrap()).unwrap())
}

fn compile(source: &Path, to: &Path) {
    std::fs::write(source, RECORDER).unwrap();
    // Fortified headers define some of the functions that the recorder stands in for.
    let compiler = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-U_FORTIFY_SOURCE", "-pthread", "-o"])
        .args([to, source])
        .output()
        .expect("a C compiler named cc is needed, as for SQLite itself");
    let said = String::from_utf8_lossy(&compiler.stderr);
    assert!(compiler.status.success(), "the recorder does not compile: {said}");
}

/// In the process that is recorded: carries the workload out. Does nothing in any other, and answers false.
pub(super) fn run_if_recorded() -> bool {
    let variable = |name| std::env::var(name).ok();
    let Some(directory) = variable(DIRECTORY) else {
        return false;
    };
    let number = |name| variable(name).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(workload::run(directory.into(), number(SEED), number(SESSIONS)));
    true
}
