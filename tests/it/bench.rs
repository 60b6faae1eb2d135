//! `pensum bench` with few tasks: every mode gives figures that programs can read.

use std::process::Output;

use serde_json::Value;

use crate::harness::program;

/// Modes and how many figures each gives.
const MODES: [(&str, usize); 11] = [
    ("enqueue", 2),
    ("drain", 1),
    ("end-to-end", 2),
    ("latency", 3),
    ("pending", 2),
    ("finished", 2),
    ("dependencies", 2),
    ("recovery", 2),
    ("start", 2),
    ("memory", 4),
    ("http", 8),
];

fn bench(store: &str, arguments: &[&str]) -> Output {
    program()
        .args(["bench", "--store", store])
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn every_mode_of_a_bench_prints_figures_as_json_lines_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", dir.path().join("bench.db").display());
    let done = bench(&store, &["--tasks", "100", "--runs", "1", "--mode", "all"]);
    let (out, noise) = (
        String::from_utf8(done.stdout).unwrap(),
        String::from_utf8_lossy(&done.stderr).into_owned(),
    );
    assert!(done.status.success(), "{noise}");
    let figures: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for figure in &figures {
        assert!(figure["median"].as_f64().unwrap() > 0.0, "{figure}");
        assert_eq!(figure["runs"].as_array().unwrap().len(), 1, "{figure}");
        assert!(
            figure["unit"].is_string() && figure["metric"].is_string() && figure["n"].is_u64(),
            "{figure}"
        );
    }
    for (mode, count) in MODES {
        assert_eq!(
            figures.iter().filter(|figure| figure["mode"] == mode).count(),
            count,
            "{mode}: {out}"
        );
    }
    let rates = figures.iter().filter(|figure| figure["unit"] == "tasks/s");
    assert!(rates.clone().count() >= 8);
    for figure in rates {
        assert!(figure["ratio"].as_f64().unwrap() > 0.0, "{figure}");
        assert!(figure["baseline"]["metric"].is_string(), "{figure}");
        assert!(figure["durability"].as_str().unwrap().contains("full"), "{figure}");
    }
    let left: Vec<_> = dir.path().read_dir().unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_bench_refuses_a_database_that_is_there_already() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.db");
    std::fs::write(&path, "precious").unwrap();
    let done = bench(&format!("sqlite:{}", path.display()), &["--tasks", "1"]);
    assert_eq!(done.status.code(), Some(6));
    assert!(String::from_utf8_lossy(&done.stderr).contains("not empty"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
