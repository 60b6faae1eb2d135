//! Which task goes first, and which may not run beside which.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Server, items, lines, shell, text, time_in, with};

const WAIT_FOR_FILE: &str = r#"until [ -e "$1" ]; do sleep 0.05; done"#;
const NAME_INTO_FILE: &str = r#"echo "$PENSUM_TASK_ID" >> "$1""#;

/// Creates the tasks while the only slot is taken, then lets them run; the ids in the order of their runs.
fn run_in_turn(server: &Server, tasks: &[Value]) -> (Vec<String>, Vec<String>) {
    let (gate, order) = (server.file("gate"), server.file("order"));
    let blocker = server.create(&shell(WAIT_FOR_FILE, &gate));
    server.wait(&blocker, "running");
    let ids: Vec<String> = tasks
        .iter()
        .map(|task| server.create(&with(shell(NAME_INTO_FILE, &order), task.clone())))
        .collect();
    std::fs::write(&gate, "").unwrap();
    for id in &ids {
        server.wait(id, "completed");
    }
    (ids, lines(&order))
}

#[test]
fn the_more_urgent_task_goes_first_and_equals_in_order_of_arrival() {
    let server = Server::start(&["--slots", "1"]);
    let priorities = [
        "low", "normal", "critical", "normal", "urgent", "high", "low", "critical",
    ];
    let tasks: Vec<Value> = priorities
        .iter()
        .map(|priority| json!({ "priority": priority }))
        .collect();
    let (ids, order) = run_in_turn(&server, &tasks);
    let wanted = [2, 7, 4, 5, 1, 3, 0, 6].map(|at| ids[at].clone());
    assert_eq!(order, wanted);

    // The list can be asked for a priority in both ways, by level too.
    let listed = server.http.all("/api/v1/tasks?priority=5");
    assert_eq!(
        listed.iter().map(|task| text(&task["id"])).collect::<Vec<_>>(),
        [ids[7].clone(), ids[2].clone()]
    );
    let told = server.cli().json(&["task", "list", "--priority", "critical"]);
    assert_eq!(
        items(&told["items"])
            .iter()
            .map(|task| text(&task["id"]))
            .collect::<Vec<_>>(),
        [ids[7].clone(), ids[2].clone()]
    );
    server.finish();
}

#[test]
fn within_a_priority_the_earlier_deadline_goes_first() {
    let server = Server::start(&["--slots", "1"]);
    let at = |minutes: u64| time_in(Duration::from_secs(60 * minutes));
    let tasks = [
        json!({}),
        json!({ "deadline": at(30) }),
        json!({ "deadline": at(10) }),
        json!({ "deadline": at(50), "priority": "high" }),
        json!({ "deadline": at(20) }),
    ];
    let (ids, order) = run_in_turn(&server, &tasks);
    assert_eq!(order, [3, 2, 4, 1, 0].map(|at| ids[at].clone()));
    server.finish();
}

#[test]
fn tasks_of_one_key_never_overlap_and_other_keys_do_not_wait() {
    let server = Server::start(&["--slots", "8"]);
    let (file, gate) = (server.file("overlap"), server.file("gate"));
    let script = r#"echo "begin $PENSUM_TASK_ID" >> "$1"; sleep 0.1; echo "end $PENSUM_TASK_ID" >> "$1""#;
    let held = server.create(&with(shell(WAIT_FOR_FILE, &gate), json!({ "key": "account/7" })));
    server.wait(&held, "running");
    let ids = server.create_all(&vec![with(shell(script, &file), json!({ "key": "account/7" })); 6]);
    let other = server.create(&json!({ "handler": "noop", "key": "account/8" }));
    server.wait(&other, "completed");

    // Both ways tell what it waits for, and for whom.
    for explanation in [
        server.task(&format!("{}/explain", ids[0])),
        server.cli().json(&["task", "explain", &ids[0]]),
    ] {
        let gates = items(&explanation["gates"]);
        let key = gates
            .iter()
            .find(|gate| gate["gate"] == "key")
            .unwrap_or_else(|| panic!("{explanation}"));
        assert!(text(&key["message"]).contains(&held), "{explanation}");
    }
    std::fs::write(&gate, "").unwrap();
    for id in &ids {
        server.wait_both(id, "completed");
    }
    let seen = lines(&file);
    assert_eq!(seen.len(), 2 * ids.len());
    for pair in seen.chunks(2) {
        assert_eq!(
            pair[0].strip_prefix("begin "),
            pair[1].strip_prefix("end "),
            "{seen:#?}"
        );
    }
    let order: Vec<&str> = seen.iter().filter_map(|line| line.strip_prefix("begin ")).collect();
    assert_eq!(order, ids, "in order of arrival");
    server.finish();
}

#[test]
fn a_task_starts_at_its_time_or_when_it_is_told_to() {
    let server = Server::start(&[]);
    let delayed = server.create(&json!({ "handler": "noop", "delay": 1.5 }));
    let timed = server.create(&json!({ "handler": "noop", "run_at": time_in(Duration::from_secs(2)) }));
    let told = server.create(&json!({ "handler": "noop", "delay": "1h" }));
    let told_too = server.create(&json!({ "handler": "noop", "delay": "1h" }));
    let moved = server.create(&json!({ "handler": "noop", "delay": "1h" }));
    let pending = server.task(&told);
    assert_eq!(
        (text(&pending["status"]), text(&pending["waiting_for"])),
        ("pending".to_owned(), "time".to_owned())
    );

    server.command(&told, "execute").expect(200);
    server.cli().run(&["task", "execute", &told_too]).expect(0);
    server
        .http
        .patch(&format!("/api/v1/tasks/{moved}"), &json!({ "delay": 0.2 }))
        .expect(200);
    for id in [&told, &told_too, &moved] {
        server.wait_both(id, "completed");
    }
    for (id, least) in [(&delayed, 1.5), (&timed, 1.8)] {
        let task = server.wait_both(id, "completed");
        let waited = crate::harness::seconds_between(&task["created_at"], &task["started_at"]);
        assert!((least..15.0).contains(&waited), "started after {waited} s, not {least}");
    }
    server.finish();
}
