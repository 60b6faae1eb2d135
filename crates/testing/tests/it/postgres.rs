//! Databases, servers that crash, standbys, poolers.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pensum_testing::postgres::{Confirm, Database, Mode, Pooler, Server, connect};

async fn run(url: &str, statement: &str) {
    connect(url).await.batch_execute(statement).await.unwrap();
}

async fn count(url: &str, table: &str) -> i64 {
    let query = format!("SELECT count(*) FROM {table}");
    connect(url).await.query_one(&query, &[]).await.unwrap().get(0)
}

async fn exists(database: &str) -> bool {
    let admin = connect(&pensum_testing::postgres::url()).await;
    let found = admin
        .query("SELECT 1 FROM pg_database WHERE datname = $1", &[&database])
        .await;
    !found.unwrap().is_empty()
}

#[tokio::test]
async fn fresh_databases_do_not_see_each_other_and_are_dropped() {
    let (one, other) = (Database::fresh().await, Database::fresh().await);
    for database in [&one, &other] {
        run(&database.url(), "CREATE TABLE t (i int); INSERT INTO t VALUES (1)").await;
    }
    run(&one.pooled_url(), "INSERT INTO t VALUES (2)").await;
    assert_eq!(count(&one.url(), "t").await, 2);
    assert_eq!(count(&other.pooled_url(), "t").await, 1);
    let name = one.name().to_owned();
    assert!(exists(&name).await);
    drop(one);
    assert!(!exists(&name).await, "also where a pooler has connections to it");
}

#[tokio::test]
async fn a_template_is_migrated_once_and_copied_for_each_test() {
    static MIGRATED: AtomicU32 = AtomicU32::new(0);
    let copy = async || {
        Database::from_template("copied", async |url: String| {
            MIGRATED.fetch_add(1, Ordering::Relaxed);
            let client = connect(&url).await;
            let tables = "CREATE TABLE t (i int); INSERT INTO t VALUES (1), (2)";
            client.batch_execute(tables).await.unwrap();
            // A client that nobody closes must not be in the way of the copies.
            std::mem::forget(client);
        })
        .await
    };
    let (one, two, three) = tokio::join!(copy(), copy(), copy());
    run(&one.url(), "DELETE FROM t").await;
    assert_eq!(count(&one.url(), "t").await, 0);
    assert_eq!(count(&two.url(), "t").await, 2);
    assert_eq!(count(&three.url(), "t").await, 2);
    assert!(
        MIGRATED.load(Ordering::Relaxed) <= 1,
        "none where an earlier run of this build did it"
    );
}

#[tokio::test]
async fn a_server_that_crashed_keeps_what_was_committed() {
    let mut server = Server::start(&[("max_connections", "7")]);
    let connections = connect(&server.url())
        .await
        .query_one("SHOW max_connections", &[])
        .await;
    assert_eq!(connections.unwrap().get::<_, String>(0), "7");
    run(&server.url(), "CREATE TABLE t (i int); INSERT INTO t VALUES (1)").await;
    server.stop(Mode::Immediate);
    assert!(
        tokio_postgres::connect(&server.url(), tokio_postgres::NoTls)
            .await
            .is_err()
    );
    server.start_again();
    run(&server.url(), "INSERT INTO t VALUES (2)").await;
    let open = connect(&server.url()).await;
    open.batch_execute("BEGIN; INSERT INTO t VALUES (3)").await.unwrap();
    server.kill();
    server.start_again();
    assert_eq!(count(&server.url(), "t").await, 2);
    server.stop(Mode::Fast);
    server.start_again();
    assert_eq!(count(&server.url(), "t").await, 2);
}

#[tokio::test]
async fn a_promoted_standby_has_what_the_primary_acknowledged() {
    for confirm in [Confirm::Flushed, Confirm::Applied] {
        let mut primary = Server::start(&[]);
        let mut standby = primary.standby(confirm);
        let client = connect(&primary.url()).await;
        client.batch_execute("CREATE TABLE t (i int)").await.unwrap();
        for _ in 0..20 {
            client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
            if confirm == Confirm::Applied {
                let seen = count(&standby.url(), "t").await;
                assert_eq!(seen, count(&primary.url(), "t").await);
            }
        }
        primary.kill();
        standby.promote();
        assert_eq!(count(&standby.url(), "t").await, 20);
        run(&standby.url(), "INSERT INTO t VALUES (1)").await;
    }
}

#[tokio::test]
async fn commits_wait_for_a_standby_that_is_away() {
    let mut primary = Server::start(&[]);
    let mut standby = primary.standby(Confirm::Flushed);
    run(&primary.url(), "CREATE TABLE t (i int)").await;
    standby.stop(Mode::Immediate);
    let url = primary.url();
    let insert = tokio::spawn(async move { run(&url, "INSERT INTO t VALUES (1)").await });
    let watcher = connect(&primary.url()).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let end = Instant::now() + Duration::from_secs(30);
    while watcher.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        assert!(Instant::now() < end, "the commit waits for the standby");
        assert!(!insert.is_finished(), "the commit was acknowledged without the standby");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    standby.start_again();
    insert.await.unwrap();
}

#[tokio::test]
async fn a_pooler_gives_each_transaction_a_connection() {
    let server = Server::start(&[]);
    let pooler = Pooler::start(&server.url());
    let mut clients = Vec::new();
    for _ in 0..30 {
        let client = connect(&pooler.url()).await;
        client.batch_execute("BEGIN; SELECT 1; COMMIT").await.unwrap();
        clients.push(client);
    }
    let query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
    let direct = connect(&server.url()).await;
    let backends: i64 = direct.query_one(query, &[]).await.unwrap().get(0);
    assert!(backends <= 21, "30 clients share {backends} connections");
}

/// Not a test of its own: what the test below kills.
#[test]
#[ignore = "is run by a_server_ends_with_a_test_that_is_killed"]
fn a_server_to_be_abandoned() {
    let mut primary = Server::start(&[]);
    let standby = primary.standby(Confirm::Flushed);
    let pooler = Pooler::start(&primary.url());
    println!("\nabandoned {} {} {}", primary.url(), standby.url(), pooler.url());
    std::io::Write::flush(&mut std::io::stdout()).unwrap();
    // Ends by itself only where its killer ends first.
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn a_server_ends_with_a_test_that_is_killed() {
    use std::io::BufRead;

    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "--nocapture",
            "postgres::a_server_to_be_abandoned",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let urls = lines
        .find_map(|line| Some(line.unwrap().strip_prefix("abandoned ")?.to_owned()))
        .unwrap();
    let places = places_of(child.id());
    assert_eq!(places.len(), 3, "a primary, a standby and a pooler");
    let ports: Vec<u16> = urls
        .split(' ')
        .map(|url| url.parse::<tokio_postgres::Config>().unwrap().get_ports()[0])
        .collect();
    let listens = |port: &u16| std::net::TcpStream::connect(("127.0.0.1", *port)).is_ok();
    assert!(ports.iter().all(listens), "all three run");
    child.kill().unwrap();
    child.wait().unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while ports.iter().any(listens) || places.iter().any(|place| place.exists()) {
        assert!(Instant::now() < end, "{places:?} and {ports:?} are still there");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The directories that the watchdogs of a process are to remove: the last argument of each.
fn places_of(process: u32) -> Vec<PathBuf> {
    let parent = format!("PPid:\t{process}\n");
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter(|entry| {
        std::fs::read_to_string(entry.path().join("status")).is_ok_and(|status| status.contains(&parent))
    })
    .map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).unwrap())
    .filter(|arguments| arguments.contains("\0watchdog\0"))
    .map(|arguments| PathBuf::from(arguments.trim_end_matches('\0').rsplit('\0').next().unwrap()))
    .collect()
}
