//! A node that stood still for longer than its leases: a stopped process, a laptop that slept.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{Http, SOON, Server, eventually, lines, long, shell, with};

/// Longer than a lease, which lasts 30 s by default.
const ASLEEP: Duration = Duration::from_secs(35);

#[test]
fn a_node_that_slept_past_its_leases_goes_on() {
    if !long() {
        println!("skipped: takes {ASLEEP:?}; PENSUM_TEST_LONG=1 runs it");
        return;
    }
    let mut server = Server::start(&["--slots", "4"]);
    let (gate, done) = (server.file("gate"), server.file("done"));
    let wait = r#"until [ -e "$1" ]; do sleep 0.1; done; echo "$PENSUM_TASK_ID" >> "${1%gate}done""#;
    let running = server.create_all(&vec![with(shell(wait, &gate), json!({ "timeout": 0, "key": "k" })); 2]);
    server.wait(&running[0], "running");
    let delayed = server.create(&json!({ "handler": "noop", "delay": 5 }));
    let expired = server.create(
        &json!({ "handler": "noop", "delay": "1h", "expires_at": crate::harness::time_in(Duration::from_secs(5)) }),
    );
    server.signal(Signal::STOP);
    std::thread::sleep(ASLEEP);
    server.signal(Signal::CONT);
    // The old connections have been idle for too long.
    server.http = Http::new(server.http.base.clone());

    server.wait_both(&delayed, "completed");
    server.wait_both(&expired, "cancelled");
    let fresh = server.create(&json!({ "handler": "noop" }));
    server.wait(&fresh, "completed");
    std::fs::write(&gate, "").unwrap();
    for id in &running {
        let task = server.wait_both(id, "completed");
        assert_eq!(task["retry_count"], 0, "sleep is no failure: {task}");
        let ends = server.events(id).iter().filter(|kind| *kind == "completed").count();
        assert_eq!(ends, 1);
    }
    let effects = eventually("the effects", SOON, || (lines(&done).len() >= 2).then(|| lines(&done)));
    assert!(effects.len() <= 3, "{effects:?}");
    server.finish();
}
