//! `pensum dlq …` through a node: what failed is found, understood, mended and run again.

use serde_json::{Value, json};

use super::program::{Place, Said, Started};

/// A node, and what is asked of it.
struct Dlq {
    place: Place,
    url: String,
    _node: Started,
}

impl Dlq {
    fn new() -> Dlq {
        let place = Place::new();
        let (node, url) = place.serve(&[]);
        Dlq {
            place,
            url,
            _node: node,
        }
    }

    #[track_caller]
    fn ends(&self, code: i32, args: &[&str]) -> Said {
        self.place.ends(code, &[args, &["--url", &self.url]].concat())
    }

    /// Has a task fail for good; its id.
    #[track_caller]
    fn dead(&self, handler: &str, parameters: &Value, max_retries: u32) -> String {
        let (parameters, retries) = (parameters.to_string(), max_retries.to_string());
        let args = [
            "task",
            "create",
            "--handler",
            handler,
            "--params",
            &parameters,
            "--max-retries",
            &retries,
        ];
        let retry = r#"{"delay":0,"jitter":false}"#;
        let said = self.ends(1, &[&args[..], &["--retry", retry, "--wait", "-o", "name"]].concat());
        said.out.trim().to_owned()
    }

    #[track_caller]
    fn task(&self, id: &str) -> Value {
        self.ends(0, &["task", "get", id, "-o", "json"]).json()
    }

    /// The fingerprint of the one group that there is.
    #[track_caller]
    fn fingerprint(&self) -> String {
        let said = self.ends(0, &["dlq", "groups", "-o", "name"]);
        assert_eq!(said.out.lines().count(), 1, "{said:?}");
        said.out.trim().to_owned()
    }
}

#[test]
fn what_always_fails_is_understood_mended_and_completes() {
    let dlq = Dlq::new();
    let script = "echo trying; echo no disk 17 >&2; exit 3";
    let parameters = json!({ "program": "sh", "args": ["-c", script], "env": { "A": "1" } });
    let id = dlq.dead("command", &parameters, 2);
    // Found in its group,
    let groups = dlq.ends(0, &["dlq", "groups", "-o", "json"]).json();
    let group = &groups["items"][0];
    assert_eq!((&group["count"], &group["newest"]), (&json!(1), &json!([id])));
    assert_eq!((&groups["total"], &groups["complete"]), (&json!(1), &json!(true)));
    let print = group["fingerprint"].as_str().unwrap();
    let table = dlq.ends(0, &["dlq", "groups"]).out;
    for part in [
        "COUNT",
        "FINGERPRINT",
        print,
        "command",
        "exit_code: it exited with code 3",
        " ago",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    // with every attempt and its log,
    let shown = dlq.ends(0, &["dlq", "show", &id]).out;
    for part in [
        print,
        "attempt 1  failed",
        "attempt 2  failed",
        "attempt 3  failed",
        "took ",
        "exit_code: it exited",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(
        shown.contains("#3 stderr no disk 17") && shown.contains("#1 stdout trying"),
        "{shown}"
    );
    let short = dlq.ends(0, &["dlq", "show", &id, "--lines", "1"]).out;
    assert!(
        short.contains("the last 1 of 6 lines") && !short.contains("#1 stdout"),
        "{short}"
    );
    let whole = dlq.ends(0, &["dlq", "show", &id, "-o", "json"]).json();
    assert_eq!(
        (&whole["task"]["id"], &whole["fingerprint"]),
        (&json!(id), &json!(print))
    );
    assert_eq!(whole["executions"].as_array().unwrap().len(), 3);
    assert_eq!(whole["executions"][1]["error"]["type"], "exit_code");
    assert!(
        whole["executions"][1]["resource_usage"]["wall_seconds"].is_f64(),
        "{whole}"
    );
    assert_eq!(whole["logs"].as_array().unwrap().len(), 6);
    // mended and run again.
    let retry = [
        "dlq",
        "retry",
        &id,
        "--set",
        "args[1]=echo mended",
        "--set",
        "env.B=2",
        "--wait",
        "-o",
        "json",
    ];
    let done = dlq.ends(0, &retry).json();
    assert_eq!((&done["status"], &done["attempt"]), (&json!("completed"), &json!(4)));
    assert_eq!(
        done["result"]["stdout"].as_str().unwrap_or_default().trim(),
        "mended",
        "{done}"
    );
    let mended = json!({ "program": "sh", "args": ["-c", "echo mended"], "env": { "A": "1", "B": 2 } });
    assert_ne!(done["parameters"], parameters);
    assert_eq!(done["parameters"]["args"], mended["args"]);
    assert_eq!(dlq.ends(0, &["dlq", "groups", "-o", "json"]).json()["total"], 0);
}

#[test]
fn nothing_is_retried_when_the_parameters_are_refused() {
    let dlq = Dlq::new();
    let one = dlq.dead("fail", &json!({ "message": "no" }), 0);
    let two = dlq.dead("fail", &json!({ "message": "no" }), 0);
    let fine = dlq.ends(0, &["task", "create", "--handler", "noop", "--wait", "-o", "name"]);
    let check = |code: i32, args: &[&str], part: &str| {
        let said = dlq.ends(code, &[&["dlq", "retry"], args].concat());
        assert!(said.err.contains(part) && said.out.is_empty(), "{args:?}: {said:?}");
        for id in [&one, &two] {
            let task = dlq.task(id);
            assert_eq!(
                (&task["status"], &task["attempt"]),
                (&json!("failed"), &json!(1)),
                "{args:?}"
            );
            assert_eq!(task["parameters"], json!({ "message": "no" }), "{args:?}");
        }
    };
    check(2, &[&one, &two, "--set", "times=often"], "parameters.times");
    check(2, &[&one, &two, "--set", "times=often"], "nothing was retried");
    // What only the second task refuses, the first one does not keep.
    let command = dlq.dead("command", &json!({ "program": "false" }), 0);
    let said = dlq.ends(2, &["dlq", "retry", &one, &command, "--set", "times=0"]);
    assert!(
        said.err.contains(&command) && said.err.contains("nothing was retried or changed"),
        "{said:?}"
    );
    check(2, &[&one, "--set", "times"], "PATH=VALUE");
    check(2, &[&one, "--set", "message.first=1"], "nothing was changed or retried");
    check(2, &[&one, "--parameters", "{"], "--parameters: is not JSON");
    check(
        2,
        &[&one, "--parameters", "{}", "--set", "times=1"],
        "cannot be used with",
    );
    check(2, &["--all", "--set", "times=1"], "cannot be used with");
    check(6, &[&one, fine.out.trim(), "--set", "times=1"], "is no dead letter");
    check(
        3,
        &[&one, "0198c1f0-7f3c-7abc-8def-0123456789ab", "--set", "times=1"],
        "0198c1f0",
    );
    dlq.ends(0, &["dlq", "delete", &command]);
    check(2, &["--all", "--sample", "0"], "--sample");
    check(2, &["--all", "--sample", "201"], "--sample");
    for flag in [
        &["--sample", "1"][..],
        &["--dry-run"],
        &["--queue", "x"],
        &["--fingerprint", "00c0ffee0017"],
    ] {
        check(2, &[&[one.as_str()], flag].concat(), "cannot be used with");
        dlq.ends(2, &[&["dlq", "delete", &one], flag].concat());
    }
    dlq.ends(2, &["task", "delete", &one, "--dry-run"]);
    check(2, &["--all", "--sample", "1", "--dry-run"], "cannot be used with");
    check(2, &["--all", "--fingerprint", "X"], "12 digits");
    dlq.ends(3, &["dlq", "show", "0198c1f0-7f3c-7abc-8def-0123456789ab"]);
    dlq.ends(2, &["dlq", "groups", "--limit", "0"]);
    let both = [
        "dlq",
        "retry",
        &one,
        &two,
        "--parameters",
        r#"{"times":1}"#,
        "--wait",
        "-o",
        "json",
    ];
    let done = dlq.ends(0, &both).json();
    assert_eq!(
        (&done[0]["status"], &done[1]["status"]),
        (&json!("completed"), &json!("completed"))
    );
}

#[test]
fn commands_reach_the_dead_letters_of_one_fingerprint() {
    let dlq = Dlq::new();
    let ours = dlq.dead("fail", &json!({ "message": "no order 17", "times": 1 }), 0);
    let print = dlq.fingerprint();
    let other = dlq.dead("fail", &json!({ "message": "no host" }), 0);
    let again = dlq.dead("fail", &json!({ "message": "no order 18", "times": 1 }), 0);
    let by = ["--fingerprint", print.as_str()];
    let list = dlq.ends(0, &[&["dlq", "list", "-o", "name"], &by[..]].concat());
    assert_eq!(list.out, format!("{again}\n{ours}\n"));
    let group = dlq
        .ends(0, &[&["dlq", "groups", "-o", "jsonl"], &by[..]].concat())
        .json();
    assert_eq!(group["count"], 2);
    dlq.ends(0, &[&["dlq", "retry", "--all", "--wait"], &by[..]].concat());
    for id in [&ours, &again] {
        assert_eq!(
            dlq.ends(0, &["task", "wait", id, "-o", "json"]).json()["status"],
            "completed"
        );
    }
    let gone = dlq.fingerprint();
    assert_ne!(gone, print);
    dlq.ends(0, &["dlq", "delete", "--all", "--fingerprint", &gone, "--wait"]);
    dlq.ends(3, &["task", "get", &other]);
}

#[test]
fn the_rest_is_retried_when_all_of_the_sample_completed() {
    let dlq = Dlq::new();
    let all: Vec<String> = (0..4)
        .map(|_| dlq.dead("fail", &json!({ "message": "busy", "times": 1 }), 0))
        .collect();
    let print = dlq.fingerprint();
    let retry = [
        "dlq",
        "retry",
        "--all",
        "--fingerprint",
        &print,
        "--sample",
        "2",
        "--wait",
        "-o",
        "json",
    ];
    let said = dlq.ends(0, &retry);
    assert!(
        said.err.contains("sample: 1 of 2 ended") && said.err.contains("sample: 2 of 2 ended"),
        "{said:?}"
    );
    let report = said.json();
    let sample: Vec<&Value> = report["sample"]
        .as_array()
        .unwrap()
        .iter()
        .map(|task| &task["id"])
        .collect();
    assert_eq!(sample, [&all[3], &all[2]]);
    assert_eq!(
        (&report["rest"]["result"]["done"], &report["left_alone"]),
        (&json!(2), &json!(0))
    );
    for id in &all {
        assert_eq!(
            dlq.ends(0, &["task", "wait", id, "-o", "json"]).json()["status"],
            "completed"
        );
    }
    // Nothing is left, which is no failure.
    let said = dlq.ends(0, &["dlq", "retry", "--all", "--sample", "2"]);
    assert_eq!(said.out, "retry: no dead letter matches\n");
}

#[test]
fn the_rest_is_left_alone_when_one_of_the_sample_failed() {
    let dlq = Dlq::new();
    let old: Vec<String> = (0..3)
        .map(|_| dlq.dead("fail", &json!({ "message": "busy", "times": 1 }), 0))
        .collect();
    let bad = dlq.dead("fail", &json!({ "message": "busy" }), 0);
    let said = dlq.ends(1, &["dlq", "retry", "--all", "--sample", "2"]);
    assert!(
        said.err.contains("1 of 2 tasks of the sample did not complete"),
        "{said:?}"
    );
    assert!(
        said.err.contains("The other 2 dead letters that match were left alone"),
        "{said:?}"
    );
    let line = said.out.lines().find(|line| line.starts_with(&bad)).unwrap_or_default();
    assert!(line.contains("failed") && line.contains("busy"), "{said:?}");
    let statuses: Vec<Value> = old.iter().map(|id| dlq.task(id)["status"].clone()).collect();
    assert_eq!(statuses, ["failed", "failed", "completed"]);
    assert_eq!(dlq.task(&old[0])["attempt"], 1);
    let report = dlq
        .ends(1, &["dlq", "retry", "--all", "--sample", "1", "-o", "json"])
        .json();
    assert_eq!((&report["left_alone"], &report["rest"]), (&json!(2), &Value::Null));
}

#[test]
fn a_sample_that_does_not_end_in_time_stops_the_retry() {
    let dlq = Dlq::new();
    let script = "test -e slow && exec sleep 600; exit 1";
    let parameters = json!({ "program": "sh", "args": ["-c", script] });
    let older = dlq.dead("command", &parameters, 0);
    let newer = dlq.dead("command", &parameters, 0);
    dlq.place.write("slow", "");
    let said = dlq.ends(124, &["dlq", "retry", "--all", "--sample", "1", "--timeout", "0.3"]);
    assert!(
        said.err.contains("has not ended in time") && said.err.contains("was left alone"),
        "{said:?}"
    );
    assert_eq!(dlq.task(&older)["status"], "failed");
    dlq.ends(0, &["task", "cancel", &newer, "--wait"]);
}

#[test]
fn a_store_without_a_node_is_looked_at_and_takes_no_sample() {
    let dlq = Dlq::new();
    let id = dlq.dead("fail", &json!({ "message": "no" }), 0);
    let other = dlq.dead("fail", &json!({ "message": "never" }), 0);
    let Dlq {
        place, _node: mut node, ..
    } = dlq;
    node.signal(rustix::process::Signal::TERM);
    assert_eq!(node.wait().code(), Some(0));
    let ends = |code: i32, args: &[&str]| place.ends(code, &[args, &["--db", "sqlite:p.db"]].concat());
    let groups = ends(0, &["dlq", "groups", "-o", "json"]).json();
    assert_eq!(groups["total"], 2);
    let whole = ends(0, &["dlq", "show", &id, "-o", "json"]).json();
    let print = whole["fingerprint"].as_str().unwrap();
    let refused = ends(5, &["dlq", "retry", "--all", "--sample", "1"]);
    assert!(refused.err.contains("no node runs on this store"), "{refused:?}");
    ends(0, &["dlq", "delete", "--all", "--fingerprint", print]);
    ends(3, &["dlq", "show", &id]);
    let left = ends(0, &["dlq", "list", "-o", "name"]);
    assert_eq!(left.out.trim(), other);
    let mended = ends(0, &["dlq", "retry", &other, "--set", "times=1", "-o", "json"]).json();
    assert_eq!(
        (&mended["status"], &mended["parameters"]["times"]),
        (&json!("ready"), &json!(1))
    );
}
