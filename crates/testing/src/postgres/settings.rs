//! What `tests/postgres` says, asked once in each process.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const SERVER: &str = "PENSUM_TEST_POSTGRES";
const POOLER: &str = "PENSUM_TEST_PGBOUNCER";

pub(super) fn url() -> String {
    environment(SERVER).unwrap_or_else(|| started(SERVER))
}

pub(super) fn pooled_url() -> String {
    match (environment(POOLER), environment(SERVER)) {
        (Some(url), _) => url,
        // The pooler of the script stands in front of the script's own server.
        (None, Some(server)) => panic!("{SERVER} is {server}, and {POOLER} is not set: set both or neither"),
        (None, None) => started(POOLER),
    }
}

/// The directory of `postgres`, `pg_basebackup` and the other programs of one version.
pub(super) fn programs() -> PathBuf {
    path("PENSUM_TEST_POSTGRES_BIN")
}

pub(super) fn pgbouncer() -> PathBuf {
    path("PENSUM_TEST_PGBOUNCER_PROGRAM")
}

/// Where servers keep their data. Who owns this directory is who they must run as.
pub(super) fn home() -> PathBuf {
    path("PENSUM_TEST_POSTGRES_HOME")
}

fn path(name: &str) -> PathBuf {
    environment(name).unwrap_or_else(|| started(name)).into()
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The value of a variable in the answer of `tests/postgres start`.
fn started(name: &str) -> String {
    static ANSWER: OnceLock<HashMap<String, String>> = OnceLock::new();
    let answer = ANSWER.get_or_init(start);
    answer
        .get(name)
        .unwrap_or_else(|| panic!("tests/postgres start says nothing of {name}"))
        .clone()
}

fn start() -> HashMap<String, String> {
    let repository = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let output = Command::new(repository.join("tests/postgres"))
        .arg("start")
        .output()
        .unwrap_or_else(|error| panic!("cannot run tests/postgres: {error}"));
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "tests/postgres start failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
        .lines()
        .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
