//! `pensum queue …`, on a store directly and through a node.

use super::program::{Place, Said};

/// The program at work on one store, with or without a node.
struct Queues {
    place: Place,
    at: [String; 2],
}

impl Queues {
    fn alone() -> Queues {
        Queues {
            place: Place::new(),
            at: ["--db".to_owned(), "sqlite:p.db".to_owned()],
        }
    }

    #[track_caller]
    fn ends(&self, code: i32, args: &[&str]) -> Said {
        let at = [self.at[0].as_str(), self.at[1].as_str()];
        self.place.ends(code, &[&["queue"], args, &at[..]].concat())
    }

    #[track_caller]
    fn settings(&self, name: &str) -> serde_json::Value {
        self.ends(0, &["get", name, "-o", "json"]).json()["settings"].take()
    }
}

#[test]
fn put_changes_only_what_is_named() {
    let queues = Queues::alone();
    let first = [
        "put",
        "mail",
        "--name",
        "Mail",
        "--max-concurrent",
        "3",
        "--rate",
        "50/s",
        "--burst",
        "10",
        "--manual",
        "--priority",
        "high",
        "--task-timeout",
        "1m",
        "--max-retries",
        "2",
        "--retry",
        r#"{"strategy":"fixed","delay":4}"#,
        "--ageing",
        "5m",
        "--fair",
        "--max-concurrent-per-key",
        "4",
    ];
    queues.ends(0, &first);
    let settings = queues.settings("mail");
    let rate = serde_json::json!({ "starts": 50, "per": 1, "burst": 10 });
    assert_eq!((&settings["rate_limit"], &settings["timeout"]), (&rate, &60.into()));
    assert_eq!(
        (&settings["auto_start"], &settings["retry"]["delay"]),
        (&false.into(), &4.into())
    );
    assert_eq!((&settings["ageing"], &settings["fair"]), (&300.into(), &true.into()));
    queues.ends(0, &["put", "mail", "--max-concurrent", "5", "--auto", "--burst", "7"]);
    let changed = queues.settings("mail");
    assert_eq!(
        (&changed["max_concurrent"], &changed["auto_start"]),
        (&5.into(), &true.into())
    );
    assert_eq!(changed["rate_limit"]["burst"], 7);
    assert_eq!(settings["max_concurrent_per_key"], 4);
    let others = [
        "name",
        "priority",
        "timeout",
        "max_retries",
        "retry",
        "ageing",
        "fair",
        "max_concurrent_per_key",
    ];
    for field in others {
        assert_eq!(changed[field], settings[field], "{field}");
    }
    queues.ends(
        0,
        &[
            "put",
            "mail",
            "--clear",
            "rate_limit,priority,retry,ageing,fair,max_concurrent_per_key",
        ],
    );
    let cleared = queues.settings("mail");
    assert!(
        cleared["rate_limit"].is_null() && cleared["retry"].is_null(),
        "{cleared}"
    );
    assert_eq!(cleared["max_concurrent"], 5);
    assert!(cleared["max_concurrent_per_key"].is_null(), "{cleared}");
    assert!(cleared["ageing"].is_null() && cleared["fair"].is_null(), "{cleared}");
    // To name nothing makes a queue of the defaults, and changes none.
    queues.ends(0, &["put", "plain"]);
    assert_eq!(
        queues.settings("plain"),
        serde_json::json!({ "auto_start": true, "persistent": true })
    );
    queues.ends(0, &["put", "mail"]);
    assert_eq!(queues.settings("mail"), cleared);
}

#[test]
fn wrong_settings_are_refused() {
    let queues = Queues::alone();
    queues.ends(0, &["put", "mail"]);
    let check = |args: &[&str], part: &str| {
        let said = queues.ends(2, args);
        assert!(said.err.contains(part) && said.out.is_empty(), "{args:?}: {said:?}");
    };
    check(&["put"], "NAME");
    check(
        &["put", "mail", "--max-concurrent", "0"],
        "max_concurrent: must be 1 or more",
    );
    check(&["put", "mail", "--rate", "fast"], "`fast` is not a rate");
    check(
        &["put", "mail", "--rate", "0/s"],
        "rate_limit.starts: must be 1 to 1000000",
    );
    check(&["put", "mail", "--ageing", "10ms"], "ageing: must be at least 1 s");
    check(&["put", "mail", "--ageing", "soon"], "is not a duration");
    check(&["put", "mail", "--burst", "5"], "--burst: the queue has no rate");
    check(&["put", "mail", "--manual", "--auto"], "cannot be used with");
    check(&["put", "mail", "--priority", "huge"], "is not a priority");
    check(
        &["put", "mail", "--clear", "colour"],
        "--clear colour: can be any of name, max_concurrent",
    );
    check(&["put", "mail", "--retry", "soon"], "--retry");
    check(&["put", "two words"], "must be 1 to 200");
    check(&["put", "stats"], "`stats` is taken by the route");
    check(&["pause", "mail", ".."], "must not be `..`");
    check(&["put", "mail", "--file", "q.yaml"], "cannot be used with");
    check(&["put", "--file", "q.yaml", "--manual"], "cannot be used with");
    queues
        .place
        .write("q.yaml", "queues:\n  good: {}\n  bad: { rate_limit: fast }\n");
    check(
        &["put", "--file", "q.yaml"],
        "q.yaml:3:22: queues.bad.rate_limit: `fast` is not a rate",
    );
    queues.place.write("q.yaml", "tasks: []\n");
    check(&["put", "--file", "q.yaml"], "has no `queues:");
    queues.ends(3, &["put", "--file", "nowhere.yaml"]);
    assert_eq!(
        queues.ends(0, &["list", "-o", "name"]).out,
        "mail\n",
        "nothing else was put"
    );
}

#[test]
fn queues_are_listed_commanded_and_deleted() {
    let mut queues = Queues::alone();
    queues.place.write(
        "q.json",
        r#"{"queues": {"b": {"max_concurrent": 2}, "a": {"auto_start": false}}, "agents": {}}"#,
    );
    let put = queues.ends(0, &["put", "--file", "q.json", "-o", "name"]);
    assert_eq!(put.out, "b\na\n");
    let db = ["--db", "sqlite:p.db", "-o", "name"];
    queues.place.ends(
        0,
        &[&["task", "create", "--handler", "noop", "--queue", "b"], &db[..]].concat(),
    );
    let table = queues.ends(0, &["list"]).out;
    assert!(
        table.starts_with("ID") && table.contains("0/2") && table.contains("manual"),
        "{table}"
    );
    assert!(queues.ends(0, &["list", "-o", "wide"]).out.contains("PUT BY"));
    assert_eq!(queues.ends(0, &["list", "-o", "jsonl"]).out.lines().count(), 2);
    assert!(queues.ends(0, &["get", "a", "b", "-o", "yaml"]).out.contains("- id: a"));
    assert!(
        queues
            .ends(0, &["get", "a"])
            .out
            .contains("run `pensum queue process a`")
    );
    assert!(queues.ends(0, &["pause", "a", "b"]).out.contains("paused"));
    let refused = queues.ends(6, &["process", "a"]);
    assert!(refused.err.contains("it is paused; resume it first"), "{refused:?}");
    queues.ends(0, &["resume", "a", "b"]);
    queues.ends(0, &["process", "a"]);
    // The first refusal decides the code, and every queue is tried.
    let some = queues.ends(3, &["pause", "nobody", "b", "-o", "name"]);
    assert!(
        some.out == "b\n" && some.err.contains("there is no queue `nobody`; there are a, b"),
        "{some:?}"
    );
    queues.ends(3, &["get", "nobody"]);
    queues.ends(3, &["delete", "nobody"]);
    let held = queues.ends(6, &["delete", "b"]);
    assert!(held.err.contains("1 unfinished task"), "{held:?}");
    queues.ends(0, &["resume", "b"]);

    // The same through a node, which runs what is ready.
    let (_node, url) = queues.place.serve(&[]);
    queues.at = ["--url".to_owned(), url];
    queues.place.until("the task has ended", || {
        queues.ends(0, &["get", "b", "-o", "json"]).json()["tasks"]["completed"] == 1
    });
    assert_eq!(queues.ends(0, &["delete", "a", "b", "-o", "name"]).out, "a\nb\n");
    let left = queues.ends(0, &["list", "-o", "json"]).json();
    assert_eq!(
        (left["items"][0]["id"].as_str(), left["items"][0]["version"].as_u64()),
        (Some("b"), Some(0))
    );
    queues.ends(0, &["put", "b", "--max-concurrent", "1"]);
    queues.ends(2, &["put", "b", "--max-concurrent", "0"]);
}

#[test]
fn limits_at_submission_are_put_shown_and_cleared() {
    let queues = Queues::alone();
    queues.ends(
        0,
        &[
            "put",
            "feed",
            "--max-depth",
            "2",
            "--max-age",
            "1h 30m",
            "--when-full",
            "drop-oldest",
        ],
    );
    let settings = queues.settings("feed");
    let put = serde_json::json!({ "depth": 2, "age": 5_400, "full": "drop_oldest" });
    let [depth, age, full] = ["max_depth", "max_age", "when_full"].map(|field| settings[field].clone());
    assert_eq!(serde_json::json!({ "depth": depth, "age": age, "full": full }), put);
    let shown = queues.ends(0, &["get", "feed"]);
    assert!(shown.out.contains("drop_oldest"), "{shown:?}");
    queues.ends(0, &["put", "feed", "--clear", "max_age,when_full"]);
    assert!(queues.settings("feed")["max_age"].is_null());
    let wrong = queues.ends(2, &["put", "feed", "--max-depth", "0", "--when-full", "shrug"]);
    assert!(wrong.err.contains("when_full: unknown variant `shrug`"), "{wrong:?}");
    let wrong = queues.ends(2, &["put", "other", "--when-full", "drop_oldest"]);
    assert!(
        wrong.err.contains("when_full: says nothing without max_depth"),
        "{wrong:?}"
    );
}
