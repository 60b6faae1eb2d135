//! A task that brings its node down does so only a few times, and harms nobody else for good.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use crate::harness::{Server, eventually, shell, text, with};

/// More restarts than this would be a loop.
const RESTARTS_MAX: usize = 5;

#[test]
fn a_task_that_kills_its_node_is_set_aside_and_its_neighbours_complete() {
    let mut server = Server::start(&["--slots", "8"]);
    let none = server.file("none");
    // The name is checked, so that nothing but a node can be hit.
    let script = r#"[ "$(cat /proc/$PPID/comm)" = pensum ] && kill -9 $PPID; sleep 30"#;
    let mut tasks = vec![with(shell(script, &none), json!({ "name": "killer", "delay": 0.6 }))];
    tasks.extend(vec![with(shell("sleep 1", &none), json!({ "name": "beside" })); 3]);
    tasks.extend(vec![json!({ "handler": "noop", "delay": 0.6 }); 10]);
    tasks.push(json!({ "handler": "sleep", "parameters": { "seconds": 1 } }));
    let ids = server.create_all(&tasks);

    let mut restarts = 0;
    let killer = eventually("the killer to be set aside", Duration::from_secs(90), || {
        if server.ended().is_some() {
            restarts += 1;
            assert!(restarts <= RESTARTS_MAX, "the node was brought down {restarts} times");
            // Whoever looks at the store meanwhile wipes no trace away.
            server.verify();
            // It may be killed again before it has said where it listens.
            while server.try_restart().map(|url| server.http.base = url).is_none() {
                restarts += 1;
                assert!(restarts <= RESTARTS_MAX, "the node was brought down {restarts} times");
            }
        }
        let answer = server
            .http
            .send(Method::GET, &format!("/api/v1/tasks/{}", ids[0]), None, &[]);
        answer
            .ok()
            .filter(|answer| answer.body["status"] == "failed")
            .map(|answer| answer.body)
    });
    assert_eq!(killer["error"]["type"], "crashed_node", "{killer}");
    assert!(!killer["dead_lettered_at"].is_null());
    assert!(
        restarts >= 2,
        "one death beside others proves nothing against it, {restarts}"
    );
    for id in &ids[1..] {
        let task = server.wait_both(id, "completed");
        assert_eq!(task["retry_count"], 0, "a node's death is no failure: {task}");
    }
    let status = server.http.get("/api/v1/system/status").expect(200);
    assert_eq!(status["task_counts"]["completed"], ids.len() - 1);
    let events = server.events(&ids[0]);
    assert_eq!(events.iter().filter(|kind| *kind == "failed").count(), 1, "{events:?}");
    let listed = server.http.all("/api/v1/dead-letters");
    assert_eq!(
        listed.iter().map(|task| text(&task["id"])).collect::<Vec<_>>(),
        [ids[0].clone()]
    );
    println!("{restarts} restarts");
    server.finish();
}
