//! Creating, reading, changing and deleting tasks.

use serde_json::json;

use crate::support::Server;

const TASKS: &str = "/api/v1/tasks";

fn redacted(mut task: serde_json::Value) -> serde_json::Value {
    for field in ["id", "created_at", "ready_at", "run_at"] {
        if task[field].is_string() {
            task[field] = json!(format!("[{field}]"));
        }
    }
    task
}

#[tokio::test]
async fn a_created_task_is_answered_whole() {
    let server = Server::new();
    let answer = server.post(TASKS, r#"{"handler":"noop"}"#).await.expect(201);
    assert_eq!(answer.header("location"), format!("{TASKS}/{}", answer.id()));
    assert_eq!(answer.header("content-type"), "application/json");
    insta::assert_json_snapshot!("plain_task", redacted(answer.json()));
}

#[tokio::test]
async fn every_field_of_a_task_comes_back() {
    let server = Server::new();
    let body = json!({
        "name": "Report", "description": "The weekly one", "handler": "log", "task_type": "monitoring",
        "parameters": {"message": "hi"}, "metadata": {"a": [1, 2]}, "execution_context": {"b": null},
        "queue": "reports", "priority": 4, "on_dependency_failure": "ignore", "delay": "1h 30m",
        "deadline": "2099-01-01T00:00:00Z", "expires_at": "2099-01-01T00:00:00+02:00", "timeout": "250ms",
        "queue_timeout": 60, "heartbeat_timeout": 5, "max_retries": 7, "on_limit": "reject", "units": 5,
        "retry": {"strategy": "fixed", "delay": 2, "jitter": "none"}, "key": "k", "unique": {"key": "u", "ttl": "1d"},
        "requires": ["gpu"], "agent_id": "agent-1", "resource_requirements": {"cpu_cores": 1.5},
        "created_by": "ann", "assigned_to": "bob", "tags": ["x", "y"],
    });
    let created = server.post(TASKS, &body.to_string()).await.expect(201).json();
    insta::assert_json_snapshot!("full_task", redacted(created.clone()));
    let read = server
        .get(&format!("{TASKS}/{}", created["id"].as_str().unwrap()))
        .await
        .expect(200)
        .json();
    assert_eq!(read, created, "what is answered at once is what the store has");
}

#[tokio::test]
async fn what_is_answered_to_a_post_is_what_a_get_answers() {
    let server = Server::new();
    let first = server.post(TASKS, r#"{"handler":"noop"}"#).await.id();
    for body in [
        r#"{"handler":"noop"}"#.to_owned(),
        r#"{"task_type":"testing"}"#.to_owned(),
        r#"{"handler":"noop","delay":5}"#.to_owned(),
        r#"{"handler":"noop","run_at":"2020-01-01T00:00:00Z"}"#.to_owned(),
        format!(r#"{{"handler":"noop","depends_on":["{first}","{first}"]}}"#),
    ] {
        let posted = server.post(TASKS, &body).await.expect(201).json();
        let read = server
            .get(&format!("{TASKS}/{}", posted["id"].as_str().unwrap()))
            .await
            .json();
        assert_eq!(posted, read, "{body}");
    }
}

#[tokio::test]
async fn a_unique_key_answers_the_task_that_has_it() {
    let server = Server::new();
    let body = r#"{"handler":"noop","unique":{"key":"daily"}}"#;
    let first = server.post(TASKS, body).await.expect(201);
    let second = server.post(TASKS, body).await.expect(200);
    assert_eq!(first.id(), second.id());
    assert_eq!(second.header("location"), "");
    let reject = r#"{"handler":"noop","unique":{"key":"daily","on_conflict":"reject"}}"#;
    let refused = server.post(TASKS, reject).await.expect(409).json();
    assert_eq!(refused["errors"][0]["path"], "unique");
    assert!(refused["detail"].as_str().unwrap().contains(&first.id()));
}

#[tokio::test]
async fn a_batch_answers_its_ids_in_order_and_knows_its_refs() {
    let server = Server::new();
    let body = r#"{"tasks":[{"handler":"noop","depends_on":["z"]},{"ref":"z","handler":"noop"}]}"#;
    let ids = server.post("/api/v1/tasks/batch", body).await.expect(201).json();
    let id = |index: usize| ids["ids"][index].as_str().unwrap().to_owned();
    let waiting = server.get(&format!("{TASKS}/{}", id(0))).await.json();
    assert_eq!(
        (&waiting["status"], &waiting["depends_on"]),
        (&json!("pending"), &json!([id(1)]))
    );
    let sides = server
        .get(&format!("{TASKS}/{}/dependencies", id(1)))
        .await
        .expect(200)
        .json();
    assert_eq!(sides["dependants"][0]["id"], json!(id(0)));
    assert_eq!(sides["dependants_total"], 1);
    let sides = server
        .get(&format!("{TASKS}/{}/dependencies", id(0)))
        .await
        .expect(200)
        .json();
    assert_eq!(
        sides["depends_on"][0],
        json!({"id": id(1), "name": "noop", "handler": "noop", "status": "ready"})
    );
}

#[tokio::test]
async fn a_change_takes_effect_and_moves_the_version() {
    let server = Server::new();
    let id = server
        .post(TASKS, r#"{"handler":"noop","name":"old","delay":60}"#)
        .await
        .id();
    let path = format!("{TASKS}/{id}");
    let before = server.get(&path).await.expect(200);
    let tag = before.header("etag").to_owned();
    assert_eq!(tag, format!("\"{}\"", before.json()["version"]));
    let body = br#"{"name":null,"priority":"urgent","tags":["a"]}"#;
    let after = server
        .ask("PATCH", &path, Some(body), &[("if-match", &tag)])
        .await
        .expect(200);
    let json = after.json();
    assert_eq!(
        (&json["name"], &json["priority"], &json["tags"]),
        (&json!("noop"), &json!("urgent"), &json!(["a"]))
    );
    assert_ne!(after.header("etag"), tag);
    server
        .ask("PATCH", &path, Some(body), &[("if-match", &tag)])
        .await
        .expect(412);
    server
        .ask("PATCH", &path, Some(body), &[("if-match", "*")])
        .await
        .expect(200);
}

#[tokio::test]
async fn a_deleted_task_is_gone() {
    let server = Server::new();
    let id = server.post(TASKS, r#"{"handler":"noop","delay":60}"#).await.id();
    let path = format!("{TASKS}/{id}");
    let answer = server.ask("DELETE", &path, None, &[]).await.expect(204);
    assert_eq!(answer.text, "");
    server.get(&path).await.expect(404);
    server.ask("DELETE", &path, None, &[]).await.expect(404);
}

#[tokio::test]
async fn a_valid_traceparent_is_kept_and_an_invalid_one_ignored() {
    let server = Server::new();
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (sent, kept) in [(good, Some(good)), ("nonsense", None)] {
        let body = br#"{"handler":"noop"}"#;
        let id = server
            .ask("POST", TASKS, Some(body), &[("traceparent", sent)])
            .await
            .expect(201)
            .id();
        let task = server
            .engine
            .store()
            .task("default", id.parse().unwrap())
            .await
            .unwrap()
            .unwrap();
        let stored = task.spec.details.and_then(|d| d.traceparent);
        assert_eq!(stored.as_deref(), kept);
    }
}
