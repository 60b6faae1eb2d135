//! `pensum serve` and the commands that talk to it.

use rustix::process::Signal;

use super::program::Place;

#[test]
fn a_node_does_what_the_commands_ask() {
    let place = Place::new();
    let (mut node, url) = place.serve(&[]);
    let at = ["--url", url.as_str()];
    let task = place
        .ends(
            0,
            &[
                &["task", "create", "--handler", "noop", "--wait", "-o", "json"],
                &at[..],
            ]
            .concat(),
        )
        .json();
    assert_eq!(task["status"], "completed");
    let id = task["id"].as_str().unwrap();
    place.ends(
        1,
        &[
            &["task", "create", "--handler", "fail", "--max-retries", "0", "--wait"],
            &at[..],
        ]
        .concat(),
    );
    place.ends(2, &[&["task", "create", "--handler", "no op"], &at[..]].concat());
    place.ends(2, &[&["task", "create"], &at[..]].concat());
    place.ends(
        3,
        &[&["task", "get", "0198c1f0-7f3c-7abc-8def-0123456789ab"], &at[..]].concat(),
    );
    place.ends(6, &[&["task", "pause", id], &at[..]].concat());
    let slow = place.ends(
        0,
        &[
            &[
                "task",
                "create",
                "--handler",
                "sleep",
                "-p",
                "seconds=600",
                "-o",
                "name",
            ],
            &at[..],
        ]
        .concat(),
    );
    place.ends(
        124,
        &[&["task", "wait", slow.out.trim(), "--timeout", "0.2"], &at[..]].concat(),
    );
    place.ends(0, &[&["task", "cancel", slow.out.trim(), "--wait"], &at[..]].concat());
    assert_eq!(
        place
            .ends(0, &[&["dlq", "list", "-o", "name"], &at[..]].concat())
            .out
            .lines()
            .count(),
        1
    );
    let status = place.ends(0, &[&["status", "-o", "json"], &at[..]].concat()).json();
    assert_eq!(status["total_tasks"], 3);
    place.ends(
        0,
        &[&["task", "cancel", "--filter", "status=ready", "--dry-run"], &at[..]].concat(),
    );
    place.ends(0, &[&["task", "explain", id], &at[..]].concat());
    place.ends(0, &[&["task", "events", id], &at[..]].concat());
    node.signal(Signal::TERM);
    assert_eq!(node.wait().code(), Some(0), "{}", place.read("serve.err"));
    place.ends(5, &[&["status"], &at[..]].concat());
}

#[test]
fn commands_with_a_store_find_the_node_that_holds_it() {
    let place = Place::new();
    let db = ["--db", "sqlite:p.db"];
    let (mut node, url) = place.serve(&[]);
    let created = place.ends(
        0,
        &[
            &["task", "create", "--handler", "noop", "--wait", "-o", "json"],
            &db[..],
        ]
        .concat(),
    );
    assert_eq!(created.json()["status"], "completed", "the node ran it");
    // What only reads works beside the node; what changes the store does not.
    place.ends(0, &[&["db", "verify"], &db[..]].concat());
    place.ends(0, &[&["db", "backup", "beside.db"], &db[..]].concat());
    place.ends(0, &["db", "verify", "--db", "sqlite:beside.db"]);
    let refused = place.ends(6, &[&["db", "prune"], &db[..]].concat());
    assert!(refused.err.contains(&url), "{refused:?}");
    place.write("p.yaml", "plan: P\ntasks:\n  a: { handler: noop }\n");
    let refused = place.ends(6, &[&["run", "p.yaml"], &db[..]].concat());
    assert!(
        refused.err.contains(&url) && refused.err.contains("--db"),
        "{refused:?}"
    );
    place.ends(6, &[&["serve", "--listen", "127.0.0.1:0"], &db[..]].concat());
    node.signal(Signal::INT);
    assert_eq!(node.wait().code(), Some(0));
    // The same commands work on the store itself now.
    assert_eq!(
        place
            .ends(0, &[&["task", "list", "-o", "name"], &db[..]].concat())
            .out
            .lines()
            .count(),
        1
    );
    let waiting = place.ends(
        0,
        &[&["task", "create", "--handler", "noop", "-o", "name"], &db[..]].concat(),
    );
    let stuck = place.ends(5, &[&["task", "wait", waiting.out.trim()], &db[..]].concat());
    assert!(stuck.err.contains("no node runs on this store"), "{stuck:?}");
    place.ends(0, &[&["task", "cancel", "--filter", "status=ready"], &db[..]].concat());
    place.ends(0, &[&["db", "verify"], &db[..]].concat());
    place.ends(0, &[&["db", "backup", "copy.db"], &db[..]].concat());
    place.ends(6, &[&["db", "backup", "copy.db"], &db[..]].concat());
    let removed = place.ends(
        0,
        &[&["db", "prune", "--completed", "0", "-o", "json"], &db[..]].concat(),
    );
    assert_eq!(removed.json()["removed"], 2);
    place.ends(0, &["task", "list", "--db", "sqlite:copy.db"]);
    place.ends(3, &["task", "list", "--db", "sqlite:typo.db"]);
}

#[test]
fn a_node_listens_on_this_machine_alone() {
    let place = Place::new();
    let said = place.ends(2, &["serve", "--listen", "0.0.0.0:0", "--db", "sqlite:p.db"]);
    assert!(said.err.contains("no authentication"), "{said:?}");
}

#[test]
fn names_bound_in_the_configuration_run_where_inline_commands_may_not() {
    let place = Place::new();
    place.write(
        "c.yaml",
        "handlers:\n  allow_inline: false\n  greet: { command: { program: sh, args: [-c, 'echo \"hello $1\"', sh, \"${who}\"] } }\n",
    );
    let (_node, url) = place.serve(&["--config", "c.yaml"]);
    let at = ["--url", url.as_str()];
    let greeted = place.ends(
        0,
        &[
            &[
                "task",
                "create",
                "--handler",
                "greet",
                "-p",
                "who=$(id)",
                "--wait",
                "-o",
                "json",
            ],
            &at[..],
        ]
        .concat(),
    );
    assert_eq!(greeted.json()["result"]["stdout"], "hello $(id)\n");
    place.ends(
        4,
        &[&["task", "create", "--handler", "command", "-p", "program=ls"], &at[..]].concat(),
    );
    let refused = place.ends(2, &[&["task", "create", "--handler", "greet"], &at[..]].concat());
    assert!(refused.err.contains("needs the parameter `who`"), "{refused:?}");
}

#[test]
fn a_wrong_configuration_is_named_with_its_place() {
    let place = Place::new();
    place.write("c.yaml", "server:\n  lisen: x\n");
    let said = place.ends(2, &["serve", "--config", "c.yaml", "--db", "sqlite:p.db"]);
    assert!(
        said.err
            .contains("c.yaml:2:3: server.lisen: there is no such setting; did you mean `listen`?"),
        "{said:?}"
    );
    place.ends(3, &["serve", "--config", "missing.yaml"]);
}

#[test]
fn unfinished_work_survives_a_kill_of_the_node() {
    let place = Place::new();
    let (mut node, url) = place.serve(&[]);
    let create = [
        "task",
        "create",
        "--handler",
        "noop",
        "--delay",
        "1",
        "-o",
        "name",
        "--url",
        &url,
    ];
    let id = place.ends(0, &create).out;
    node.kill();
    let (_node, url) = place.serve(&[]);
    let task = place
        .ends(
            0,
            &[
                "task",
                "wait",
                id.trim(),
                "--timeout",
                "30",
                "--url",
                &url,
                "-o",
                "json",
            ],
        )
        .json();
    assert_eq!(task["status"], "completed");
}

#[test]
fn completions_and_help_are_for_standard_output() {
    let place = Place::new();
    assert!(place.ends(0, &["completions", "bash"]).out.contains("_pensum"));
    assert!(place.ends(0, &["--help"]).out.contains("Exit codes"));
    assert!(place.ends(2, &["frobnicate"]).out.is_empty());
}
