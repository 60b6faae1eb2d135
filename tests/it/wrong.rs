//! Wrong inputs, wrong states and wrong files: the exit codes, and messages that say what to do.

use std::path::Path;
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use crate::harness::{Cli, Server, assert_says, items, text};

const NOBODY: &str = "01890000-0000-7000-8000-000000000000";

#[test]
fn wrong_usage_exits_with_2_and_names_the_fault() {
    let server = Server::start(&[]);
    let file = server.file("task.yaml");
    let check = |args: &[&str], says: &str| assert_says(&server.cli().run(args).fails(2), says);
    check(&["task", "cretae"], "create");
    check(&["task", "get"], "ID");
    check(&["task", "get", "42"], "42");
    check(
        &["task", "create", "--handler", "noop", "--priority", "huge"],
        "critical",
    );
    check(&["task", "create", "--handler", "no op"], "handler");
    check(&["task", "create", "--handler", "noop", "--params", "{"], "--params");
    check(&["task", "create", "--handler", "noop", "--delay", "soon"], "soon");
    check(
        &["task", "create", "--handler", "noop", "--max-retries", "5000"],
        "1000",
    );
    check(
        &["task", "create", "--handler", "sleep", "--param", "seconds=never"],
        "parameters.seconds",
    );
    check(
        &["task", "create", "--handler", "command", "--param", "args=[1]"],
        "program",
    );
    check(&["task", "create", "--handler", "noop", "--depends-on", NOBODY], NOBODY);
    check(&["task", "list", "--status", "done"], "completed");
    check(&["task", "delete", "--filter", ""], "empty filter");
    check(&["task", "list", "--url", "ftp://x"], "http://");
    for (content, says) in [
        ("handler: noop\npriorty: high\n", "task.yaml:2"),
        ("tasks:\n  - handler: noop\n    depends_on: [nobody]\n", "depends_on[0]"),
        ("handler: [noop\n", "task.yaml:"),
        ("handler: noop\nstatus: completed\n", "set by the engine"),
        ("- noop\n", "task.yaml"),
    ] {
        std::fs::write(&file, content).unwrap();
        check(&["task", "create", "--file", file.to_str().unwrap()], says);
    }
    assert_eq!(server.http.all("/api/v1/tasks").len(), 0, "nothing was created");
    server.finish();
}

#[test]
fn the_other_exit_codes_say_what_is_the_matter() {
    let mut server = Server::start(&["--allow-inline", "false"]);
    let cli = server.cli();
    assert_says(&cli.run(&["task", "get", NOBODY]).fails(3), NOBODY);
    assert_says(&cli.run(&["task", "cancel", NOBODY]).fails(3), NOBODY);
    assert_says(
        &cli.run(&["task", "create", "--file", "/nowhere.yaml"]).fails(3),
        "/nowhere.yaml",
    );
    let inline = ["task", "create", "--handler", "command", "--param", "program=true"];
    assert_says(&cli.run(&inline).fails(4), "allow_inline");
    let id = server.create(&json!({ "handler": "noop" }));
    server.wait(&id, "completed");
    assert_says(&cli.run(&["task", "retry", &id]).fails(6), "completed");
    assert_says(&cli.run(&["task", "resume", &id]).fails(6), "ended");
    // Of several the good ones are done all the same.
    let waiting = server.create(&json!({ "handler": "noop", "delay": "1h" }));
    assert_eq!(cli.run(&["task", "cancel", NOBODY, &waiting]).code, Some(3));
    assert_eq!(server.task(&waiting)["status"], "cancelled");
    server.stop();
    for command in [&["task", "list"][..], &["status"], &["dlq", "list"]] {
        assert_says(&cli.run(command).fails(5), "pensum serve");
    }
    server.finish();
}

#[test]
fn a_store_that_is_in_use_says_by_whom_and_can_be_worked_on_through_its_node() {
    let server = Server::start(&[]);
    let db = server.db_url();
    let second = Cli::default()
        .run(&["serve", "--listen", "127.0.0.1:0", "--db", &db])
        .fails(6);
    assert_says(&second, &server.http.base);
    assert_says(
        &Cli::default().run(&["db", "prune", "--yes", "--db", &db]).fails(6),
        &server.http.base,
    );
    let taken = server.http.base.trim_start_matches("http://").to_owned();
    let other = format!("sqlite:{}", server.file("other.db").display());
    assert_says(
        &Cli::default()
            .run(&["serve", "--listen", &taken, "--db", &other])
            .fails(6),
        "in use",
    );

    let created = Cli::default().json(&["task", "create", "--handler", "noop", "--db", &db]);
    server.wait(&text(&created["id"]), "completed");
    let outside = Cli::default()
        .run(&["serve", "--listen", "0.0.0.0:0", "--db", &other])
        .fails(2);
    assert_says(&outside, "authentication");
    server.finish();
}

#[test]
fn commands_work_on_a_store_without_a_node() {
    let mut server = Server::start(&[]);
    server.stop();
    let direct = |args: &[&str]| {
        let mut args = args.to_vec();
        let db = server.db_url();
        args.extend(["--db", &db]);
        Cli::default().json(&args)
    };
    let id = text(&direct(&["task", "create", "--handler", "noop"])["id"]);
    let held = text(&direct(&["task", "create", "--handler", "noop"])["id"]);
    assert_eq!(direct(&["task", "pause", &held])["status"], "paused");
    assert_eq!(items(&direct(&["task", "list"])["items"]).len(), 2);
    assert_eq!(direct(&["task", "explain", &id])["gates"][0]["gate"], "node");
    let backup = server.file("copy.db");
    Cli::default()
        .run(&["db", "backup", backup.to_str().unwrap(), "--db", &server.db_url()])
        .expect(0);
    server.restart();
    server.wait(&id, "completed");
    assert_eq!(server.task(&held)["status"], "paused");
    let copy = format!("sqlite:{}", backup.display());
    let verified = Cli::default().json(&["db", "verify", "--db", &copy]);
    assert_eq!((&verified["tasks"], &verified["violations"]), (&json!(2), &json!([])));
    server.finish();
}

/// `serve` and `db verify` on a file that is no store: a clear message, soon, and the file as it was.
#[track_caller]
fn refused(path: &Path, says: &str) {
    let before = path.is_file().then(|| std::fs::read(path).unwrap());
    let db = format!("sqlite:{}", path.display());
    for args in [
        &["serve", "--listen", "127.0.0.1:0", "--db", &db][..],
        &["db", "verify", "--db", &db],
        &["task", "list", "--db", &db],
    ] {
        let output = Cli::default().run(args);
        let code = output.code;
        assert!(matches!(code, Some(1 | 5)), "{args:?}: {output:?}");
        assert_says(&output.fails(code.unwrap()), says);
    }
    if let Some(before) = before {
        assert!(std::fs::read(path).unwrap() == before, "{} was changed", path.display());
    }
}

#[test]
fn what_is_no_store_is_refused_and_left_alone() {
    let dir = TempDir::with_prefix("pensum-it-").unwrap();
    let garbage = dir.path().join("garbage.db");
    std::fs::write(
        &garbage,
        [b"this is not a database, whatever its name says. ".as_slice(); 200].concat(),
    )
    .unwrap();
    refused(&garbage, "not a");
    let directory = dir.path().join("directory.db");
    std::fs::create_dir(&directory).unwrap();
    refused(&directory, "director");
    let foreign = dir.path().join("foreign.db");
    let connection = rusqlite::Connection::open(&foreign).unwrap();
    connection
        .execute_batch("CREATE TABLE customers(name TEXT); INSERT INTO customers VALUES ('Ada');")
        .unwrap();
    drop(connection);
    refused(&foreign, "another application");

    let cli = Cli::at(dir.path());
    assert_says(
        &cli.run(&["db", "verify", "--db", "sqlite:nowhere.db"]).fails(3),
        "nowhere.db",
    );
    assert_says(
        &cli.run(&["task", "list", "--db", "sqlite:nowhere.db"]).fails(3),
        "nowhere.db",
    );
    assert!(!dir.path().join("nowhere.db").exists(), "looking does not make a store");
    let lost = cli.run(&["serve", "--listen", "127.0.0.1:0", "--db", "sqlite:no/such/place.db"]);
    assert!(matches!(lost.code, Some(1..=5)), "{lost:?}");
    assert_says(&lost.stderr, "no/such");
    assert_says(
        &cli.run(&["serve", "--listen", "127.0.0.1:0", "--db", "mongo:x"]).stderr,
        "sqlite:",
    );
}

#[test]
fn a_damaged_store_is_noticed() {
    let mut server = Server::start(&[]);
    for _ in 0..5 {
        server.create_all(&vec![
            json!({ "handler": "log", "parameters": { "message": "x".repeat(200) }, "delay": "1h" });
            400
        ]);
    }
    server.stop();
    server.verify();
    let whole = std::fs::read(server.file("x.db")).unwrap();
    let check = |name: &str, bytes: &[u8]| {
        let damaged = server.file(name);
        std::fs::write(&damaged, bytes).unwrap();
        let output = Cli::default().run(&["db", "verify", "--db", &format!("sqlite:{}", damaged.display())]);
        assert_eq!(output.code, Some(1), "{name}: {output:?}");
        assert!(!output.stderr.contains("panicked"), "{output:?}");
        assert!(
            !format!("{}{}", output.stdout, output.stderr).trim().is_empty(),
            "{name}: {output:?}"
        );
        // A node either refuses it, or starts and does not fall over.
        let mut node = Server::unstarted(&damaged);
        if let Some(url) = node.try_restart() {
            node.http.base = url;
            node.http.get("/healthz").expect(200);
            let listed = node.http.get("/api/v1/tasks?limit=200");
            assert!(matches!(listed.status, 200 | 500 | 503), "{listed:?}");
        }
        assert!(!node.log().contains("panicked"), "{}", node.log());
    };
    check("half.db", &whole[..whole.len() / 2 / 4096 * 4096]);
    check("odd.db", &whole[..whole.len() - 1234]);
    let mut scratched = whole.clone();
    let middle = scratched.len() / 2 / 4096 * 4096;
    scratched[middle..middle + 4096].fill(0xA5);
    check("scratched.db", &scratched);
    server.finish();
}

#[test]
fn a_store_of_a_newer_program_is_refused() {
    let mut server = Server::start(&[]);
    server.create(&json!({ "handler": "noop", "delay": "1h" }));
    server.stop();
    let connection = rusqlite::Connection::open(server.file("x.db")).unwrap();
    let known: i64 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap();
    connection.pragma_update(None, "user_version", 9_999).unwrap();
    drop(connection);
    refused(&server.file("x.db"), "newer");
    let connection = rusqlite::Connection::open(server.file("x.db")).unwrap();
    connection.pragma_update(None, "user_version", known).unwrap();
    drop(connection);
    server.finish();
}

#[test]
fn a_directory_without_leave_to_write_is_named() {
    let dir = TempDir::with_prefix("pensum-it-").unwrap();
    let place = dir.path().join("place");
    std::fs::create_dir(&place).unwrap();
    // Root writes wherever the mount lets it, others where the mode does.
    let mounted = rustix::process::geteuid().is_root();
    if mounted {
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "ro,size=64k", "pensum-it"])
            .arg(&place)
            .output();
        if !mount.is_ok_and(|output| output.status.success()) {
            println!("skipped: mounting is not permitted here");
            return;
        }
    } else {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o555)).unwrap();
    }
    let db = format!("sqlite:{}", place.join("x.db").display());
    let output = Cli::default().run(&["serve", "--listen", "127.0.0.1:0", "--db", &db]);
    if mounted {
        let _ = Command::new("umount").arg(&place).status();
    }
    let code = output.code;
    assert!(matches!(code, Some(1 | 4 | 5)), "{output:?}");
    assert_says(&output.fails(code.unwrap()), place.to_str().unwrap());
}

#[test]
fn of_two_nodes_that_start_on_one_store_at_the_same_time_one_gets_it() {
    let dir = TempDir::with_prefix("pensum-it-").unwrap();
    let db = dir.path().join("shared.db");
    for _ in 0..3 {
        let mut nodes: Vec<Server> = (0..4).map(|_| Server::unstarted(&db)).collect();
        let started: Vec<bool> = std::thread::scope(|scope| {
            let starts: Vec<_> = nodes
                .iter_mut()
                .map(|node| scope.spawn(|| node.try_restart().is_some()))
                .collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert_eq!(started.iter().filter(|started| **started).count(), 1, "{started:?}");
        for (node, started) in nodes.iter_mut().zip(&started) {
            if *started {
                node.stop();
            } else {
                assert_says(&node.log(), "in use");
            }
        }
    }
}

#[test]
fn a_store_whose_owner_is_just_dying_is_waited_for() {
    let mut server = Server::start(&[]);
    server.kill();
    // As a child of the killed node may, between its fork and its exec.
    let lock = std::fs::File::open(server.file("x.db.lock")).unwrap();
    lock.lock().unwrap();
    let release = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(60));
        drop(lock);
    });
    server.restart();
    release.join().unwrap();
    server.finish();
}
