//! What the page on scaling out says of PostgreSQL, held against a PostgreSQL.

use pensum_testing::postgres::{Database, Server, connect};
use tokio_postgres::SimpleQueryMessage;

use super::{blocks, repository};

const PAGE: &str = "docs/scaling-out.md";

/// An empty database with the tables of a store.
async fn store() -> Database {
    let database = Database::fresh().await;
    let store = pensum_store::connect(&database.url(), "a test").await.unwrap();
    store.close().await.unwrap();
    database
}

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_on_the_page_is_one_that_the_server_takes() {
    let blocks = blocks(PAGE, "sql");
    assert!(blocks.len() >= 4, "{blocks:#?}");
    let database = store().await;
    let client = connect(&database.url()).await;
    // Roles belong to the whole server, so what the page does is taken back.
    client.batch_execute("BEGIN; CREATE ROLE pensum_node").await.unwrap();
    let mut answered = 0;
    let code = blocks.join("\n");
    let code: Vec<&str> = code.lines().filter(|line| !line.starts_with("--")).collect();
    for statement in code.join("\n").split_inclusive(';') {
        // No transaction can make a database.
        if statement.trim().is_empty() || statement.contains("CREATE DATABASE") {
            continue;
        }
        let answer = client.simple_query(statement).await;
        let answer = answer.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        answered += answer
            .iter()
            .filter(|row| matches!(row, SimpleQueryMessage::Row(_)))
            .count();
    }
    client.batch_execute("ROLLBACK").await.unwrap();
    assert!(answered > 10, "the statements found {answered} rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_on_the_page_are_those_that_a_node_needs() {
    let database = store().await;
    let admin = connect(&database.url()).await;
    let role = database.name().replace("test_", "node_");
    let grants = blocks(PAGE, "sql").into_iter().find(|block| block.contains("GRANT"));
    let grants = grants.unwrap().replace("pensum_node", &role);
    admin
        .batch_execute(&format!("CREATE ROLE {role} LOGIN; {grants}"))
        .await
        .unwrap();
    let url = database.url().replacen("postgres@", &format!("{role}@"), 1);
    assert_ne!(
        url,
        database.url(),
        "this server is reached as another user than postgres"
    );
    let done = works(&url).await;
    admin
        .batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"))
        .await
        .unwrap();
    done.unwrap();
}

/// What a node does, in short: a task runs to its end, and the store is looked after.
async fn works(url: &str) -> Result<(), String> {
    let pensum = pensum::Pensum::builder()
        .store(url)
        .handler("greet", |_: pensum::Context, name: String| async move {
            Ok::<_, pensum::TaskError>(format!("Hello, {name}!"))
        })
        .start()
        .await
        .map_err(|error| error.to_string())?;
    let ended = async {
        let id = pensum.enqueue(pensum::Task::new("greet", "Ada").key("k")).await?;
        pensum.result::<String>(id).await
    };
    let ended = ended.await;
    pensum.shutdown().await;
    let said = ended.map_err(|error| error.to_string())?;
    let store = pensum_store::connect(url, "a test")
        .await
        .map_err(|error| error.to_string())?;
    let verified = store.verify().await.map_err(|error| error.to_string())?;
    let stats = store.stats().await.map_err(|error| error.to_string())?;
    store.close().await.map_err(|error| error.to_string())?;
    assert_eq!(
        (said.as_str(), verified.violations.len(), stats.kind.as_str()),
        ("Hello, Ada!", 0, "postgres")
    );
    Ok(())
}

#[test]
fn every_setting_on_the_page_is_one_that_the_server_starts_with() {
    let blocks = blocks(PAGE, "ini");
    assert!(blocks.len() >= 2, "{blocks:#?}");
    let lines = blocks.iter().flat_map(|block| block.lines());
    let settings: Vec<(&str, &str)> = lines
        .map(|line| line.split_once(" = ").unwrap_or_else(|| panic!("{line}: no setting")))
        .map(|(name, value)| (name, value.trim_matches('\'')))
        .collect();
    let server = Server::start(&settings);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = connect(&server.url()).await;
        for (name, value) in settings {
            let row = client.query_one(&format!("SHOW {name}"), &[]).await.unwrap();
            assert_eq!(row.get::<_, &str>(0), value, "{name}");
        }
    });
}

#[test]
fn every_parameter_of_the_url_is_on_the_page() {
    let page = std::fs::read_to_string(repository().join(PAGE)).unwrap();
    let source = std::fs::read_to_string(repository().join("crates/store/src/postgres/options.rs")).unwrap();
    let arms = source
        .split("match name {")
        .nth(1)
        .unwrap()
        .split("_ => rest")
        .next()
        .unwrap();
    // The arms of the outer match stand at this depth.
    let names: Vec<&str> = arms
        .lines()
        .filter_map(|line| line.strip_prefix("                \"")?.split_once("\" =>"))
        .map(|(name, _)| name)
        .collect();
    assert!(names.contains(&"schema") && names.len() >= 4, "{names:?}");
    for name in names {
        assert!(page.contains(&format!("| `{name}` |")), "{PAGE} does not say `{name}`");
    }
}

#[test]
fn what_autovacuum_does_is_as_the_page_says() {
    let page = std::fs::read_to_string(repository().join(PAGE)).unwrap();
    let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
    let schema = std::fs::read_to_string(repository().join("crates/store/src/postgres/schema.sql")).unwrap();
    let live = schema.split("CREATE TABLE pensum.live").nth(1).unwrap();
    let settings = live.split("WITH (").nth(1).unwrap().split(')').next().unwrap();
    for (name, value) in settings.split(',').filter_map(|setting| setting.split_once('=')) {
        let line = format!("`{}` = {}", name.trim(), value.trim());
        assert!(page.contains(&line), "{PAGE} does not say {line}");
    }
}
