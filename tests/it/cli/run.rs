//! `pensum run`: plans that end well, plans that do not, and plans that never start.

use super::program::Place;

const DB: [&str; 2] = ["--db", "sqlite:p.db"];

#[track_caller]
fn check_fault(plan: &str, more: &[&str], expected: &str) {
    let place = Place::new();
    place.write("p.yaml", plan);
    let said = place.ends(2, &[&["run", "p.yaml"], more, &DB].concat());
    assert!(said.err.contains(expected), "{} should hold {expected}", said.err);
    assert!(said.out.is_empty(), "{said:?}");
    assert!(
        !place.path().join("p.db").exists(),
        "a plan with faults must not make a store"
    );
}

#[test]
fn faults_of_a_plan_are_named_with_file_line_and_column() {
    check_fault(
        "plan: x\ntasks:\n  a: { handler: nop }\n",
        &[],
        "p.yaml:3:17: tasks.a.handler: there is no handler `nop`",
    );
    check_fault(
        "plan: x\ntasks:\n  a: { handler: noop, colour: 1 }\n",
        &[],
        "p.yaml:3:23: tasks.a.colour: unknown field",
    );
    check_fault(
        "plan: x\ntasks:\n  a: { handler: noop, depends_on: [b] }\n",
        &[],
        "p.yaml:3:36: tasks.a.depends_on[0]: the plan has no task `b`",
    );
    check_fault(
        "plan: x\ntasks:\n  a: { handler: noop, depends_on: [b] }\n  b: { handler: noop, depends_on: [a] }\n",
        &[],
        "a → b → a",
    );
    check_fault(
        "plan: x\ntasks:\n  a: { handler: noop, name: \"${who}\" }\n",
        &[],
        "p.yaml:3:29: there is no variable `who`",
    );
    check_fault(
        "plan: x\ntasks:\n  a: { handler: noop }\n",
        &["--var", "who=me"],
        "--var who: the plan declares no variable",
    );
    check_fault(
        "plan: x\ntasks:\n  a: { handler: command, parameters: { args: [x] } }\n",
        &[],
        "p.yaml:3:",
    );
    check_fault("plan: x\nplan: y\ntasks:\n  a: { handler: noop }\n", &[], "p.yaml:2:1");
    check_fault("workflow: x\nsteps: []\n", &[], "this is a workflow file");
}

#[test]
fn a_plan_runs_to_its_end_in_order() {
    let place = Place::new();
    place.write(
        "p.yaml",
        "plan: Order\nvariables: { word: none }\ntasks:\n  second: { handler: command, depends_on: [first], parameters: { program: sh, args: [-c, \"cat ${run_dir}/word >> seen; pwd\"] } }\n  first: { handler: command, parameters: { program: sh, args: [-c, \"printf '%s' ${word} > ${run_dir}/word\"] } }\n",
    );
    let said = place.ends(0, &[&["run", "p.yaml", "--var", "word=hello"], &DB[..]].concat());
    assert_eq!(place.read("seen"), "hello");
    assert!(
        said.out.contains("✓ second completed") && said.out.contains("✓ first"),
        "{said:?}"
    );
    assert!(place.path().join("pensum-runs").is_dir());
}

#[test]
fn a_failed_plan_exits_1_and_says_where_its_log_is() {
    let place = Place::new();
    place.write(
        "p.yaml",
        "plan: Bad\ntasks:\n  bad: { handler: command, max_retries: 0, parameters: { program: sh, args: [-c, \"echo it broke >&2; exit 3\"] } }\n  after: { handler: noop, depends_on: [bad] }\n",
    );
    let said = place.ends(1, &[&["run", "p.yaml"], &DB[..]].concat());
    assert!(
        said.out.contains("✗ bad failed") && said.out.contains("⊘ after cancelled"),
        "{said:?}"
    );
    let hint = said
        .out
        .lines()
        .find(|line| line.starts_with("Log of bad: pensum "))
        .unwrap();
    let args: Vec<&str> = hint.trim_start_matches("Log of bad: pensum ").split(' ').collect();
    assert_eq!(place.ends(0, &args).out, "it broke\n");
}

#[test]
fn data_formats_have_standard_output_to_themselves() {
    let place = Place::new();
    place.write(
        "p.yaml",
        "plan: Data\ntasks:\n  a: { handler: command, parameters: { program: echo, args: [hi] } }\n",
    );
    let said = place.ends(0, &[&["run", "p.yaml", "-o", "json"], &DB[..]].concat());
    let summary = said.json();
    assert_eq!(
        (&summary["status"], &summary["tasks"][0]["ref"]),
        (&"completed".into(), &"a".into())
    );
    assert!(said.err.contains("✓ a completed"), "{said:?}");
    let lines = place.ends(0, &[&["task", "list", "-o", "jsonl"], &DB[..]].concat()).out;
    assert_eq!(lines.lines().count(), 1);
    let id = place.ends(0, &[&["task", "list", "-o", "name"], &DB[..]].concat()).out;
    let task = place
        .ends(0, &[&["task", "get", id.trim(), "-o", "json"], &DB[..]].concat())
        .json();
    assert_eq!(task["metadata"]["pensum"]["ref"], "a");
}

#[test]
fn only_the_tasks_of_the_run_are_started() {
    let place = Place::new();
    place.write(
        "p.yaml",
        "plan: Mine\ntasks:\n  a: { handler: sleep, parameters: { seconds: 0.3 } }\n",
    );
    let id = place
        .ends(
            0,
            &[&["task", "create", "--handler", "noop", "-o", "name"], &DB[..]].concat(),
        )
        .out;
    place.ends(0, &[&["run", "p.yaml"], &DB[..]].concat());
    let other = place
        .ends(0, &[&["task", "get", id.trim(), "-o", "json"], &DB[..]].concat())
        .json();
    assert_eq!((&other["status"], &other["attempt"]), (&"ready".into(), &0.into()));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::new();
    let file = place.path().join("many.json");
    let tasks: Vec<_> = (0..300)
        .map(|n| serde_json::json!({ "handler": "noop", "name": format!("task {n}") }))
        .collect();
    std::fs::write(&file, serde_json::json!({ "tasks": tasks }).to_string()).unwrap();
    place.ends(
        0,
        &[&["task", "create", "-f", "many.json", "-o", "name"], &DB[..]].concat(),
    );
    let list = format!(
        "{} task list --all -o json --db sqlite:p.db | head -n 1; echo \"${{PIPESTATUS[0]}}\"",
        env!("CARGO_BIN_EXE_pensum")
    );
    let output = std::process::Command::new("bash")
        .args(["-c", &list])
        .current_dir(place.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{\n0\n");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_run_that_takes_too_long_exits_124_and_can_go_on() {
    let place = Place::new();
    place.write(
        "p.yaml",
        "plan: Long\ntasks:\n  a: { handler: command, parameters: { program: sh, args: [-c, \"test -e go || sleep 60\"] } }\n",
    );
    let said = place.ends(124, &[&["run", "p.yaml", "--timeout", "0.5"], &DB[..]].concat());
    assert!(
        said.err.contains("pensum run p.yaml --resume --db sqlite:p.db"),
        "{said:?}"
    );
    place.write("go", "");
    let said = place.ends(0, &[&["run", "p.yaml", "--resume", "-o", "json"], &DB[..]].concat());
    assert_eq!(
        said.json()["tasks"][0]["retry_count"],
        0,
        "an interruption spends no retry"
    );
}
