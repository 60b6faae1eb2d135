//! `pensum bench` with few tasks: every mode gives figures that programs can read.

use std::process::Output;

use pensum_testing::postgres::{Database, connect};
use serde_json::Value;
use tokio_postgres::Client;

use crate::harness::program;

/// Modes and how many figures each gives.
const MODES: [(&str, usize); 13] = [
    ("enqueue", 2),
    ("drain", 1),
    ("end-to-end", 2),
    ("latency", 3),
    ("pending", 2),
    ("finished", 2),
    ("gated", 8),
    ("dependencies", 2),
    ("recovery", 2),
    ("start", 2),
    ("memory", 4),
    ("http", 8),
    ("agents", 13),
];

/// The same on a server, whose baseline is measured in more ways, and whose nodes may be in other processes.
const SERVER_MODES: [(&str, usize); 14] = [
    ("limit", 27),
    ("enqueue", 2),
    ("drain", 1),
    ("end-to-end", 2),
    ("latency", 6),
    ("pending", 2),
    ("finished", 2),
    ("gated", 8),
    ("dependencies", 2),
    ("recovery", 2),
    ("start", 2),
    ("memory", 4),
    ("http", 8),
    ("agents", 13),
];

fn bench(store: &str, arguments: &[&str]) -> Output {
    program()
        .args(["bench", "--store", store])
        .args(arguments)
        .output()
        .unwrap()
}

/// The figures of a bench of one run that ended well, as many of each mode as it gives.
fn figures(done: &Output, modes: &[(&str, usize)]) -> Vec<Value> {
    let (out, noise) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
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
    for (mode, count) in modes {
        let found = figures.iter().filter(|figure| figure["mode"] == *mode).count();
        assert_eq!(found, *count, "{mode}: {out}");
    }
    for figure in figures.iter().filter(|figure| figure["unit"] == "tasks/s") {
        assert!(figure["ratio"].as_f64().unwrap() > 0.0, "{figure}");
        assert!(figure["baseline"]["metric"].is_string(), "{figure}");
    }
    figures
}

#[test]
fn every_mode_of_a_bench_prints_figures_as_json_lines_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", dir.path().join("bench.db").display());
    let done = bench(&store, &["--tasks", "100", "--runs", "1", "--mode", "all"]);
    let figures = figures(&done, &MODES);
    let rates = figures.iter().filter(|figure| figure["unit"] == "tasks/s");
    assert!(rates.clone().count() >= 8);
    for figure in rates {
        assert!(figure["durability"].as_str().unwrap().contains("full"), "{figure}");
    }
    let left: Vec<_> = dir.path().read_dir().unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The name of what a bench says it made.
fn place(done: &Output) -> String {
    let noise = String::from_utf8_lossy(&done.stderr).into_owned();
    let word = |word: &str| word.starts_with("pensum_bench_");
    let found = noise.split([' ', ',']).find(|text| word(text));
    found.unwrap_or_else(|| panic!("no place is named: {noise}")).to_owned()
}

async fn count(client: &Client, sql: &str, name: &str) -> i64 {
    client.query_one(sql, &[&name]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_bench_of_a_server_says_what_it_measured_and_drops_the_database_that_it_made() {
    let given = Database::fresh().await;
    let arguments = ["--tasks", "20", "--runs", "1", "--nodes", "2", "--mode", "all"];
    let done = bench(&given.url(), &arguments);
    for figure in figures(&done, &SERVER_MODES) {
        assert!(figure["server"].as_str().unwrap().contains("fsync="), "{figure}");
    }
    let client = connect(&given.url()).await;
    let made = "SELECT count(*) FROM pg_database WHERE datname = $1";
    assert_eq!(count(&client, made, &place(&done)).await, 0);
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('information_schema', $1)";
    assert_eq!(
        count(&client, tables, "pg_catalog").await,
        0,
        "the given database is not empty"
    );
}

#[tokio::test]
async fn a_bench_of_a_user_who_may_create_no_database_keeps_to_schemas_and_drops_them() {
    let given = Database::fresh().await;
    let (database, client) = (given.name(), connect(&given.url()).await);
    let user = format!("bench_{database}");
    let sql = format!(
        "CREATE ROLE {user} LOGIN; GRANT CREATE ON DATABASE {database} TO {user};
         CREATE SCHEMA pensum; CREATE TABLE pensum.precious(id int)"
    );
    client.batch_execute(&sql).await.unwrap();
    let given_url = given.url();
    let host = given_url.rsplit_once('@').unwrap().1.split('/').next().unwrap();
    let url = |database: &str| format!("postgres://{user}@{host}/{database}");

    let refused = bench(&url("postgres"), &["--tasks", "10", "--mode", "limit"]);
    assert_eq!(
        refused.status.code(),
        Some(4),
        "{}",
        String::from_utf8_lossy(&refused.stderr)
    );
    let done = bench(
        &url(database),
        &["--tasks", "10", "--runs", "1", "--mode", "drain", "--mode", "pending"],
    );
    figures(&done, &[("drain", 1), ("pending", 2)]);
    let schemas = "SELECT count(*) FROM pg_namespace WHERE starts_with(nspname::text, $1)";
    assert_eq!(count(&client, schemas, &place(&done)).await, 0);
    let tables = "SELECT count(*) FROM pg_tables WHERE tablename = $1";
    assert_eq!(count(&client, tables, "precious").await, 1);
    client
        .batch_execute(&format!("DROP OWNED BY {user}; DROP ROLE {user}"))
        .await
        .unwrap();
}

#[test]
fn several_nodes_are_refused_on_a_file() {
    let done = bench("sqlite:never-made.db", &["--nodes", "2"]);
    assert_eq!(done.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&done.stderr).contains("--store postgres://"));
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
