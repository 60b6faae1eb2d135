//! `pensum breaker …`, on a store directly and through a node.

use serde_json::json;

use super::program::{Place, Said};

/// The program at work on one store, with or without a node.
struct Breakers {
    place: Place,
    at: [String; 2],
}

impl Breakers {
    fn alone() -> Breakers {
        Breakers {
            place: Place::new(),
            at: ["--db".to_owned(), "sqlite:p.db".to_owned()],
        }
    }

    #[track_caller]
    fn ends(&self, code: i32, args: &[&str]) -> Said {
        let at = [self.at[0].as_str(), self.at[1].as_str()];
        self.place.ends(code, &[&["breaker"], args, &at[..]].concat())
    }
}

#[test]
fn breakers_are_put_listed_commanded_and_deleted() {
    let mut breakers = Breakers::alone();
    let args = [
        "put",
        "mail",
        "--handler",
        "send_mail",
        "--handler",
        "send_sms",
        "--agent",
        "worker-1",
        "--failures",
        "3",
        "--failure-rate",
        "0.25",
        "--calls-min",
        "8",
        "--window",
        "2m",
        "--open-for",
        "1h",
        "--probes",
        "2",
    ];
    breakers.ends(0, &args);
    let shown = breakers.ends(0, &["get", "mail", "-o", "json"]).json();
    assert_eq!(
        shown["settings"],
        json!({ "handlers": ["send_mail", "send_sms"], "agents": ["worker-1"], "failures": 3, "failure_rate": 0.25,
            "calls_min": 8, "window": 120, "open_for": 3600, "probes": 2 })
    );
    // What is not named gets its default.
    assert_eq!(
        breakers.ends(0, &["put", "handler:noop", "-o", "name"]).out,
        "handler:noop\n"
    );
    let block = breakers.ends(0, &["get", "handler:noop"]).out;
    for line in [
        "id                 handler:noop",
        "state              closed",
        "covers             handler noop",
        "failures           0/0",
        "opens at failures  5",
        "window             60 s",
        "open for           30 s",
        "probes             1",
        "version            1",
    ] {
        assert!(block.lines().any(|found| found == line), "{line}:\n{block}");
    }
    let table = breakers.ends(0, &["list"]).out;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["ID", "STATE", "COVERS", "FAILURES", "TRIES", "AT"]);
    assert_eq!(rows[1], ["handler:noop", "closed", "handler", "noop", "0/0"]);
    assert_eq!(rows[2][..2], ["mail", "closed"]);
    assert!(breakers.ends(0, &["list", "-o", "wide"]).out.contains("VERSION"));
    assert_eq!(breakers.ends(0, &["list", "-o", "name"]).out, "handler:noop\nmail\n");
    assert_eq!(breakers.ends(0, &["list", "-o", "jsonl"]).out.lines().count(), 2);
    assert_eq!(
        breakers.ends(0, &["list", "-n", "1", "-o", "name"]).out,
        "handler:noop\n"
    );
    assert_eq!(
        breakers.ends(0, &["list", "--all", "-o", "json"]).json()["items"][1]["id"],
        "mail"
    );
    assert!(
        breakers
            .ends(0, &["get", "mail", "handler:noop", "-o", "yaml"])
            .out
            .contains("- id: mail")
    );

    let open = breakers.ends(0, &["trip", "mail"]).out;
    assert!(
        open.contains("state              open") && open.contains("run `pensum breaker reset mail`"),
        "{open}"
    );
    let both = breakers.ends(0, &["trip", "mail", "handler:noop", "-o", "json"]).json();
    assert_eq!(both["items"][1]["state"], "open", "{both}");
    // The first refusal decides the code, and every one is tried.
    let some = breakers.ends(3, &["reset", "nobody", "mail", "-o", "name"]);
    assert!(
        some.out == "mail\n" && some.err.contains("there is no circuit breaker `nobody`"),
        "{some:?}"
    );
    for command in ["get", "reset", "trip", "delete"] {
        let refused = breakers.ends(3, &[command, "nobody"]);
        assert!(
            refused.out.is_empty() && refused.err.contains("`nobody`"),
            "{refused:?}"
        );
    }

    // The same through a node, which holds back what the open one covers.
    let (_node, url) = breakers.place.serve(&[]);
    breakers.at = ["--url".to_owned(), url.clone()];
    let task = breakers
        .place
        .ends(0, &["task", "create", "--handler", "noop", "-o", "name", "--url", &url]);
    let id = task.out.trim();
    let told = breakers.place.ends(0, &["task", "explain", id, "--url", &url]).out;
    assert!(
        told.contains("The circuit breaker `handler:noop` is open since"),
        "{told}"
    );
    breakers.ends(0, &["reset", "handler:noop"]);
    breakers.place.ends(0, &["task", "wait", id, "--url", &url]);
    let counted = breakers.ends(0, &["get", "handler:noop", "-o", "json"]).json();
    assert_eq!((&counted["calls"], &counted["failures"]), (&json!(1), &json!(0)));
    assert_eq!(
        breakers.ends(0, &["delete", "mail"]).out,
        "circuit breaker mail deleted\n"
    );
    assert_eq!(
        breakers.ends(0, &["delete", "handler:noop", "-o", "name"]).out,
        "handler:noop\n"
    );
    assert_eq!(breakers.ends(0, &["list", "-o", "json"]).json()["items"], json!([]));
}

#[test]
fn a_put_may_ask_for_a_version() {
    let breakers = Breakers::alone();
    breakers.ends(0, &["put", "handler:x", "--if-version", "0"]);
    let refused = breakers.ends(6, &["put", "handler:x", "--failures", "2", "--if-version", "0"]);
    assert!(refused.err.contains("is at version 1, not 0"), "{refused:?}");
    let put = breakers.ends(
        0,
        &["put", "handler:x", "--failures", "2", "--if-version", "1", "-o", "json"],
    );
    assert_eq!(put.json()["version"], 2);
}

#[test]
fn wrong_settings_are_refused() {
    let breakers = Breakers::alone();
    let check = |args: &[&str], part: &str| {
        let said = breakers.ends(2, args);
        assert!(said.err.contains(part) && said.out.is_empty(), "{args:?}: {said:?}");
    };
    check(&["put"], "<NAME>");
    check(&["put", "mail"], "handlers: covers nothing");
    check(&["put", "two words", "--handler", "x"], "must be 1 to 200");
    check(&["put", "b", "--handler", "a b"], "handlers[0]: must be 1 to 200");
    check(&["put", "handler:x", "--failures", "0"], "failures: must be 1");
    check(&["put", "handler:x", "--failures", "many"], "--failures");
    check(
        &["put", "handler:x", "--failure-rate", "2"],
        "failure_rate: must be above 0",
    );
    check(&["put", "handler:x", "--window", "soon"], "--window");
    check(
        &["put", "handler:x", "--open-for", "0"],
        "open_for: must be longer than zero",
    );
    check(&["put", "handler:x", "--probes", "0"], "probes: must be 1");
    check(&["get"], "<NAME>");
    check(&["open", "handler:x"], "unrecognized subcommand");
    assert_eq!(breakers.ends(0, &["list", "-o", "name"]).out, "", "nothing was put");
}
