//! `pensum run --resume`.

use rustix::process::Signal;

use super::program::Place;

const DB: [&str; 2] = ["--db", "sqlite:p.db"];

/// Three steps that each leave a line; the second waits for a file.
const STEPS: &str = "plan: Steps
tasks:
  one: { handler: command, parameters: { program: sh, args: [-c, \"echo one >> one\"] } }
  two: { handler: command, depends_on: [one], parameters: { program: sh, args: [-c, \"echo two >> two; until test -e go; do sleep 0.02; done\"] } }
  three: { handler: command, depends_on: [two], parameters: { program: sh, args: [-c, \"echo three >> three\"] } }
";

#[test]
fn after_a_kill_in_the_middle_completed_tasks_are_not_run_again() {
    let place = Place::new();
    place.write("p.yaml", STEPS);
    let mut first = place.start("first", &[&["run", "p.yaml"], &DB[..]].concat());
    place.until("the second step runs", || place.read("two") == "two\n");
    first.kill();
    place.write("go", "");
    let said = place.ends(0, &[&["run", "p.yaml", "--resume", "-o", "json"], &DB[..]].concat());
    assert!(said.err.contains("1 of 3 tasks are completed"), "{said:?}");
    assert_eq!(said.json()["status"], "completed");
    assert_eq!(place.read("one"), "one\n");
    assert_eq!(place.read("two"), "two\ntwo\n");
    assert_eq!(place.read("three"), "three\n");
    let again = place.ends(0, &[&["run", "p.yaml", "--resume"], &DB[..]].concat());
    assert!(again.err.contains("completed already"), "{again:?}");
    assert_eq!(place.read("three"), "three\n");
    place.ends(0, &[&["db", "verify"], &DB[..]].concat());
}

#[test]
fn an_interrupted_run_stops_cleanly_and_goes_on() {
    let place = Place::new();
    place.write("p.yaml", STEPS);
    let mut first = place.start("first", &[&["run", "p.yaml"], &DB[..]].concat());
    place.until("the second step runs", || place.read("two") == "two\n");
    first.signal(Signal::INT);
    assert_eq!(first.wait().code(), Some(130));
    assert!(
        place.read("first.err").contains("pensum run p.yaml --resume"),
        "{}",
        place.read("first.err")
    );
    let tasks = place
        .ends(0, &[&["task", "list", "-o", "json"], &DB[..]].concat())
        .json();
    let statuses: Vec<_> = tasks["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|task| task["status"].clone())
        .collect();
    assert_eq!(
        statuses,
        ["pending", "ready", "completed"],
        "leases are given back at once"
    );
    place.write("go", "");
    place.write("p.yaml", &format!("{STEPS}  four: {{ handler: noop }}\n"));
    let said = place.ends(0, &[&["run", "p.yaml", "--resume", "-o", "json"], &DB[..]].concat());
    assert!(said.err.contains("p.yaml changed since"), "{said:?}");
    assert_eq!(
        said.json()["tasks"].as_array().unwrap().len(),
        3,
        "the run goes on with the tasks it began with"
    );
    assert_eq!(place.read("one"), "one\n");
}

#[test]
fn failed_and_cancelled_tasks_run_again_in_order() {
    let place = Place::new();
    place.write(
        "p.yaml",
        "plan: Mend
tasks:
  good: { handler: command, parameters: { program: sh, args: [-c, \"echo good >> good\"] } }
  bad: { handler: command, max_retries: 0, depends_on: [good], parameters: { program: test, args: [-e, go] } }
  after: { handler: command, depends_on: [bad], parameters: { program: sh, args: [-c, \"test -e go && echo after >> after\"] } }
  last: { handler: noop, depends_on: [after] }
",
    );
    place.ends(1, &[&["run", "p.yaml"], &DB[..]].concat());
    place.write("go", "");
    let said = place.ends(0, &[&["run", "p.yaml", "--resume"], &DB[..]].concat());
    assert_eq!(
        (place.read("good").as_str(), place.read("after").as_str()),
        ("good\n", "after\n"),
        "{said:?}"
    );
}

#[test]
fn without_an_earlier_run_a_new_one_starts() {
    let place = Place::new();
    place.write("p.yaml", "plan: New\ntasks:\n  a: { handler: noop }\n");
    let said = place.ends(0, &[&["run", "p.yaml", "--resume"], &DB[..]].concat());
    assert!(said.err.contains("no earlier run of p.yaml"), "{said:?}");
}
