//! The files in deploy/: they parse, say only what the program knows, and agree with each other.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use pensum_core::time::Span;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pensum");
/// What the program takes after the grace to stop what did not end, to give it back, and to close the store.
const AFTER_GRACE: Duration = Duration::from_secs(20);

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn deploy(file: &str) -> PathBuf {
    repository().join("deploy").join(file)
}

fn text(file: &str) -> String {
    std::fs::read_to_string(deploy(file)).unwrap()
}

fn compose() -> Value {
    serde_saphyr::from_str(&text("compose.yaml")).unwrap()
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|item| item.as_str().unwrap())
        .collect()
}

/// The values of a setting of the unit, in order.
fn unit(name: &str) -> Vec<String> {
    let text = text("pensum.service");
    let values = text
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    values.map(str::to_owned).collect()
}

fn seconds(duration: &str) -> Duration {
    Span::parse(duration).unwrap().0
}

/// The flags that `pensum serve --help` names.
fn flags() -> BTreeSet<String> {
    let output = Command::new(PROGRAM).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let words = help.split(|c: char| c.is_whitespace() || c == ',');
    words.filter(|word| word.starts_with("--")).map(str::to_owned).collect()
}

/// The command lines of nodes, from `serve` on: that of the unit, of the Compose file and of the image.
fn command_lines() -> Vec<Vec<String>> {
    let own = |words: Vec<&str>| words.into_iter().map(str::to_owned).collect();
    let image = text("Dockerfile");
    let image = image.lines().rev().find_map(|line| line.strip_prefix("CMD ")).unwrap();
    let start = unit("ExecStart").remove(0);
    vec![
        own(start.split_whitespace().skip(1).collect()),
        own(strings(&compose()["services"]["node"]["command"])),
        serde_json::from_str(image).unwrap(),
    ]
}

/// The value of a flag of a command line.
fn value_of(line: &[String], flag: &str) -> Option<Duration> {
    let at = line.iter().position(|word| word == flag)?;
    Some(seconds(line.get(at + 1)?))
}

#[test]
fn every_flag_is_one_that_serve_has() {
    let known = flags();
    assert!(known.contains("--grace"), "{known:?}");
    for line in command_lines() {
        assert_eq!(line[0], "serve", "{line:?}");
        for flag in line.iter().filter(|word| word.starts_with("--")) {
            assert!(known.contains(flag), "pensum serve has no {flag}");
        }
    }
}

#[test]
fn every_variable_is_one_that_the_program_reads() {
    let page = std::fs::read_to_string(repository().join("docs/command-line.md")).unwrap();
    let mut found = BTreeSet::new();
    for file in ["compose.yaml", "pensum.service", "pensum.env", "Dockerfile"] {
        let text = text(file);
        let words = text.split(|c: char| !c.is_ascii_uppercase() && c != '_');
        found.extend(words.filter(|word| word.starts_with("PENSUM_")).map(str::to_owned));
    }
    assert!(found.contains("PENSUM_DB"), "{found:?}");
    for name in found {
        // The page on the command line is held against the program by tests of its own; this holds it against the sources.
        assert!(
            page.contains(&format!("`{name}`")),
            "docs/command-line.md has no {name}"
        );
        assert!(is_read(&name), "no source reads {name}");
    }
}

/// True when a source of the command line names the variable.
fn is_read(name: &str) -> bool {
    let mut left = vec![repository().join("src/cli")];
    while let Some(place) = left.pop() {
        for entry in std::fs::read_dir(place).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if std::fs::read_to_string(&path).unwrap().contains(&format!("\"{name}\"")) {
                return true;
            }
        }
    }
    false
}

#[test]
fn every_store_that_is_named_has_a_url_that_the_program_takes() {
    let compose = compose();
    let node = compose["services"]["node"]["environment"]["PENSUM_DB"]
        .as_str()
        .unwrap();
    let env = text("pensum.env");
    let env = env.lines().find_map(|line| line.strip_prefix("PENSUM_DB=")).unwrap();
    for url in [node.replace("${POSTGRES_PASSWORD}", "secret"), env.to_owned()] {
        pensum_store::postgres::PostgresOptions::parse(&url).unwrap();
        assert!(!pensum_store::shown(&url).contains("secret"));
    }
}

#[test]
fn every_image_has_a_version() {
    let dockerfile = text("Dockerfile");
    let from = dockerfile.lines().filter_map(|line| line.strip_prefix("FROM "));
    let mut images: Vec<String> = from.map(|image| image.split(' ').next().unwrap().to_owned()).collect();
    for service in compose()["services"].as_object().unwrap().values() {
        images.extend(service["image"].as_str().map(str::to_owned));
    }
    assert_eq!(images.len(), 4, "{images:?}");
    for image in &images {
        let tag = image.split_once(':').map_or("", |(_, tag)| tag);
        let version = tag.split('-').next().unwrap();
        let numbers = version.split('.').filter(|part| part.parse::<u32>().is_ok()).count();
        assert!(numbers >= 2, "{image} names no version");
    }
    let rust = format!("rust:{}", env!("CARGO_PKG_RUST_VERSION"));
    assert!(images[0].starts_with(&rust), "{} builds with {rust}", images[0]);
    let own = concat!("pensum:", env!("CARGO_PKG_VERSION"));
    assert!(images.iter().any(|image| image == own), "no {own} in {images:?}");
}

#[test]
fn whoever_stops_a_node_leaves_it_the_time_to_end() {
    let [start, compose_line, _] = command_lines().try_into().unwrap();
    let stop = [
        (start, unit("TimeoutStopSec").remove(0)),
        (
            compose_line,
            compose()["services"]["node"]["stop_grace_period"]
                .as_str()
                .unwrap()
                .to_owned(),
        ),
    ];
    for (line, longest) in stop {
        let grace = value_of(&line, "--grace").unwrap();
        assert!(seconds(&longest) >= grace + AFTER_GRACE, "{longest} for {line:?}");
    }
    assert_eq!(unit("KillSignal"), ["SIGTERM"]);
    assert!(text("Dockerfile").contains("\nSTOPSIGNAL SIGTERM\n"));
}

#[test]
fn a_node_is_healthy_when_it_is_ready() {
    let compose = compose();
    let test = strings(&compose["services"]["node"]["healthcheck"]["test"]);
    let address = "http://127.0.0.1:7400/readyz";
    assert_eq!(test.last(), Some(&address));
    assert!(text("Dockerfile").contains(address));
    let replicas = &compose["services"]["node"]["deploy"]["replicas"];
    assert_eq!(replicas, &serde_json::json!(3));
    // It listens on loopback alone, so a port that is handed on would lead nowhere.
    assert!(compose["services"]["node"].get("ports").is_none());
}

/// The output of a program, unless this machine has none of that name.
fn run(program: &str, args: &[&str]) -> Option<Output> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let exists = std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
    let mut command = Command::new(program);
    exists.then(|| command.args(args).env("POSTGRES_PASSWORD", "secret").output().unwrap())
}

#[test]
fn systemd_takes_the_unit() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("pensum.service");
    // It looks for the program too.
    std::fs::write(&file, text("pensum.service").replace("/usr/local/bin/pensum", PROGRAM)).unwrap();
    let file = file.to_str().unwrap();
    let Some(output) = run("systemd-analyze", &["verify", "--man=no", file]) else {
        println!("there is no systemd-analyze on this machine");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("pensum.service"), "{said}");
}

#[test]
fn compose_takes_its_file() {
    let file = deploy("compose.yaml");
    let file = file.to_str().unwrap();
    let is_there = run("docker", &["compose", "version"]).is_some_and(|output| output.status.success());
    if !is_there {
        println!("there is no docker compose on this machine");
        return;
    }
    let output = run("docker", &["compose", "--file", file, "config", "--quiet"]).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
