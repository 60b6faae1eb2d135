//! The rules of ARCHITECTURE.md that a reader can break without noticing.

use std::path::{Path, PathBuf};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below a directory, with what stands before its unit tests.
fn sources(directory: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut left = vec![repository().join(directory)];
    while let Some(place) = left.pop() {
        for entry in std::fs::read_dir(&place).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
                found.push((path, code));
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {directory}");
    found
}

/// Nothing in `directory` may say any of `words`, but for the files that end in one of `but`.
fn check(directory: &str, words: &[&str], but: &[&str]) {
    for (path, code) in sources(directory) {
        if but.iter().any(|end| path.ends_with(end)) {
            continue;
        }
        let code = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect::<Vec<_>>()
            .join("\n");
        for word in words {
            assert!(!code.contains(word), "{} names {word}", path.display());
        }
    }
}

#[test]
fn the_core_does_no_io_and_reads_no_clock() {
    let io = [
        "std::fs",
        "std::net",
        "std::process",
        "std::env",
        "tokio::net",
        "tokio::fs",
    ];
    check("crates/core/src", &io, &[]);
    check(
        "crates/core/src",
        &["SystemTime", "Instant::now", "Timestamp::now", "rand::rng"],
        &[],
    );
}

#[test]
fn engine_and_server_name_no_database() {
    for crate_name in ["engine", "server"] {
        check(
            &format!("crates/{crate_name}/src"),
            &["rusqlite", "tokio_postgres", "pensum_store"],
            &[],
        );
        let manifest = std::fs::read_to_string(repository().join(format!("crates/{crate_name}/Cargo.toml"))).unwrap();
        let dependencies = manifest.split("[dev-dependencies]").next().unwrap_or_default();
        assert!(
            !dependencies.contains("pensum-store") && !dependencies.contains("rusqlite"),
            "{crate_name} depends"
        );
    }
}

#[test]
fn the_engine_asks_only_its_seam_for_time_randomness_and_spawning() {
    let ways_around = [
        "SystemTime::now",
        "Instant::now",
        "Timestamp::now",
        "rand::rng",
        "tokio::spawn(",
        "thread::spawn",
    ];
    // Subprocesses live by the real clock of the machine that they run on.
    let but: Vec<String> = sources("crates/engine/src/process")
        .into_iter()
        .map(|(path, _)| format!("process/{}", path.file_name().unwrap().to_string_lossy()))
        .collect();
    let but: Vec<&str> = but.iter().map(String::as_str).chain(["system.rs"]).collect();
    check("crates/engine/src", &ways_around, &but);
}

#[test]
fn every_source_file_has_its_place_in_the_architecture() {
    let page = std::fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap();
    let roots = [
        "crates/core/src",
        "crates/store/src",
        "crates/engine/src",
        "crates/server/src",
        "crates/sim/src",
        "crates/testing/src",
        "src",
    ];
    for root in roots {
        for (path, _) in sources(root) {
            let name = path
                .strip_prefix(repository().join(root))
                .unwrap()
                .display()
                .to_string();
            assert!(
                page.contains(&format!("`{name}`")),
                "ARCHITECTURE.md has no sentence about {root}/{name}"
            );
        }
    }
    assert!(page.lines().count() <= 300, "ARCHITECTURE.md is longer than 300 lines");
}
