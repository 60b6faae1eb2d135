//! Dead letters over HTTP: groups, the filter by fingerprint, and parameters changed before a retry.

use serde_json::{Value, json};

use crate::support::{Answer, Server};

const GROUPS: &str = "/api/v1/dead-letters/groups";

impl Server {
    /// Has a task of the handler `fail` fail for good; its id.
    async fn dead(&self, queue: &str, message: &str) -> String {
        let body = json!({ "handler": "fail", "queue": queue, "max_retries": 0, "parameters": { "message": message } });
        let id = self.post("/api/v1/tasks", &body.to_string()).await.expect(201).id();
        assert_eq!(self.ended(&id).await["status"], "failed");
        id
    }

    async fn groups(&self, query: &str) -> Value {
        self.get(&format!("{GROUPS}{query}")).await.expect(200).json()
    }

    async fn bulk(&self, body: &Value) -> Answer {
        self.post("/api/v1/tasks/bulk", &body.to_string()).await
    }
}

/// Three tasks that met the same error, and one that met another.
async fn four(server: &Server) -> [String; 4] {
    server.start();
    [
        server.dead("a", "no order 17").await,
        server.dead("b", "no such host").await,
        server.dead("b", "no order 18").await,
        server
            .dead("a", "no order 0198c1f0-7f3c-7abc-8def-0123456789ab\nask ann")
            .await,
    ]
}

fn ids(page: &Value) -> Vec<&str> {
    page["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|task| task["id"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn failures_with_the_same_error_make_one_group() {
    let server = Server::new();
    let nothing = json!({ "items": [], "total": 0, "examined": 0, "complete": true });
    assert_eq!(server.groups("").await, nothing);
    let [first, host, second, third] = four(&server).await;
    let groups = server.groups("").await;
    assert_eq!(
        (&groups["total"], &groups["examined"], &groups["complete"]),
        (&json!(2), &json!(4), &json!(true))
    );
    let [orders, hosts] = groups["items"].as_array().unwrap().as_slice() else {
        panic!("{groups}");
    };
    assert_eq!((&orders["count"], &orders["handler"]), (&json!(3), &json!("fail")));
    assert_eq!(orders["queues"], json!(["a", "b"]));
    assert_eq!(orders["newest"], json!([third, second, first]));
    let newest = server.get(&format!("/api/v1/tasks/{third}")).await.json();
    assert_eq!(
        (&orders["error"], &orders["last_at"]),
        (&newest["error"], &newest["dead_lettered_at"])
    );
    let oldest = server.get(&format!("/api/v1/tasks/{first}")).await.json();
    assert_eq!(orders["first_at"], oldest["dead_lettered_at"]);
    assert_eq!((&hosts["newest"], &hosts["count"]), (&json!([host]), &json!(1)));
    assert_ne!(orders["fingerprint"], hosts["fingerprint"]);
    // The filters of the list narrow the groups down, and `limit` the answer.
    let of_a = server.groups("?queue=a&handler=fail").await;
    assert_eq!((&of_a["total"], &of_a["items"][0]["count"]), (&json!(1), &json!(2)));
    assert_eq!(of_a["items"][0]["fingerprint"], orders["fingerprint"]);
    let one = server.groups("?limit=1").await;
    assert_eq!((one["items"].as_array().unwrap().len(), &one["total"]), (1, &json!(2)));
    let print = hosts["fingerprint"].as_str().unwrap();
    assert_eq!(
        server.groups(&format!("?fingerprint={print}")).await["items"],
        json!([hosts])
    );
}

#[tokio::test]
async fn a_group_names_its_newest_tasks_and_no_more() {
    let server = Server::new();
    server.start();
    let mut all = Vec::new();
    for number in 0..7 {
        all.push(server.dead("a", &format!("no order {number}")).await);
    }
    let group = server.groups("").await["items"][0].take();
    assert_eq!(group["count"], 7);
    let newest: Vec<&String> = all.iter().rev().take(5).collect();
    assert_eq!(group["newest"], json!(newest));
}

#[tokio::test]
async fn the_list_shows_the_tasks_of_one_fingerprint_page_by_page() {
    let server = Server::new();
    let [first, host, second, third] = four(&server).await;
    let groups = server.groups("").await;
    let print = |index: usize| groups["items"][index]["fingerprint"].as_str().unwrap().to_owned();
    let page = async |query: &str| {
        let path = format!("/api/v1/dead-letters?fingerprint={}{query}", print(0));
        server.get(&path).await.expect(200).json()
    };
    let all = page("").await;
    assert_eq!(
        (ids(&all), &all["next_cursor"]),
        (vec![&*third, &*second, &*first], &Value::Null)
    );
    let newest = page("&limit=2&dead_lettered=true").await;
    assert_eq!(ids(&newest), [&*third, &*second]);
    let rest = page(&format!("&limit=2&cursor={}", newest["next_cursor"].as_str().unwrap())).await;
    assert_eq!((ids(&rest), &rest["next_cursor"]), (vec![&*first], &Value::Null));
    assert_eq!(ids(&page("&queue=b").await), [&*second]);
    let other = server
        .get(&format!("/api/v1/dead-letters?fingerprint={}", print(1)))
        .await
        .json();
    assert_eq!(ids(&other), [&*host]);
    let none = server
        .get("/api/v1/dead-letters?fingerprint=000000000000")
        .await
        .expect(200)
        .json();
    assert!(ids(&none).is_empty());
}

#[tokio::test]
async fn a_bulk_request_reaches_the_tasks_of_one_fingerprint_and_no_other() {
    let server = Server::new();
    let [first, host, second, third] = four(&server).await;
    let print = server.groups("").await["items"][0]["fingerprint"].take();
    let filter = json!({ "dead_lettered": true, "fingerprint": print });
    let dry = server
        .bulk(&json!({ "action": "delete", "filter": filter, "dry_run": true }))
        .await
        .expect(200);
    assert_eq!(dry.json(), json!({ "matched": 3 }));
    let begun = server
        .bulk(&json!({ "action": "delete", "filter": filter }))
        .await
        .expect(202)
        .json();
    assert_eq!(begun["matched"], 3);
    let ended = server.ended(begun["task_id"].as_str().unwrap()).await;
    assert_eq!(
        (&ended["result"]["matched"], &ended["result"]["done"]),
        (&json!(3), &json!(3))
    );
    for id in [first, second, third] {
        server.get(&format!("/api/v1/tasks/{id}")).await.expect(404);
    }
    let host = server.get(&format!("/api/v1/tasks/{host}")).await.expect(200).json();
    assert_eq!(host["status"], "failed");
}

#[tokio::test]
async fn a_wrong_fingerprint_is_refused_where_it_stands() {
    let server = Server::new();
    for path in ["/api/v1/dead-letters", GROUPS] {
        for query in [
            "fingerprint=x",
            "fingerprint=",
            "fingerprint=00C0FFEE0017",
            "fingerprint=00c0ffee0017&fingerprint=00c0ffee0018",
        ] {
            let answer = server.get(&format!("{path}?{query}")).await.expect(400).json();
            assert_eq!(answer["errors"][0]["path"], "fingerprint", "{query}: {answer}");
        }
    }
    for (query, path) in [
        ("cursor=x", "cursor"),
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("dead_lettered=false", "dead_lettered"),
        ("status=gone", "status"),
        ("colour=red", "colour"),
    ] {
        let answer = server.get(&format!("{GROUPS}?{query}")).await.expect(400).json();
        assert_eq!(answer["errors"][0]["path"], path, "{answer}");
    }
    server.get("/api/v1/tasks?fingerprint=00c0ffee0017").await.expect(400);
    let print = "00c0ffee0017";
    for (action, filter, part) in [
        ("retry", json!({ "fingerprint": print }), "dead_lettered: true"),
        (
            "delete",
            json!({ "fingerprint": print, "dead_lettered": false }),
            "dead_lettered: true",
        ),
        (
            "cancel",
            json!({ "fingerprint": print, "dead_lettered": true }),
            "none can cancel",
        ),
        (
            "retry",
            json!({ "fingerprint": "x", "dead_lettered": true }),
            "12 digits",
        ),
        (
            "retry",
            json!({ "fingerprint": 7, "dead_lettered": true }),
            "expected a string",
        ),
    ] {
        let answer = server
            .bulk(&json!({ "action": action, "filter": filter }))
            .await
            .expect(422)
            .json();
        assert_eq!(answer["errors"][0]["path"], "filter.fingerprint", "{answer}");
        assert!(answer["detail"].as_str().unwrap().contains(part), "{answer}");
    }
}

#[tokio::test]
async fn a_failed_task_takes_other_parameters_and_is_retried_with_them() {
    let server = Server::new();
    server.start();
    let id = server.dead("a", "no").await;
    let path = format!("/api/v1/tasks/{id}");
    let version = server.get(&path).await.header("etag").to_owned();
    let patch = async |body: &str, version: &str| {
        server
            .ask("PATCH", &path, Some(body.as_bytes()), &[("if-match", version)])
            .await
    };
    // What its handler would not have taken at first it does not take now.
    let wrong = patch(r#"{"parameters":{"times":"many"}}"#, &version)
        .await
        .expect(422)
        .json();
    assert_eq!(wrong["errors"][0]["path"], "parameters.times", "{wrong}");
    patch(r#"{"parameters":{"times":1},"queue":"b"}"#, &version)
        .await
        .expect(409);
    patch(r#"{"parameters":{"times":1}}"#, "\"77\"").await.expect(412);
    let changed = patch(r#"{"parameters":{"times":1}}"#, &version)
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&changed["status"], &changed["parameters"]),
        (&json!("failed"), &json!({ "times": 1 }))
    );
    server.post(&format!("{path}/retry"), "").await.expect(200);
    assert_eq!(server.ended(&id).await["status"], "completed");
    patch(r#"{"parameters":{}}"#, "*").await.expect(409);
    let attempts = server.get(&format!("{path}/executions")).await.json();
    let statuses: Vec<&Value> = attempts["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| &a["status"])
        .collect();
    assert_eq!(statuses, ["failed", "completed"]);
}

#[tokio::test]
async fn a_list_of_rare_matches_has_short_pages_before_them() {
    let server = Server::new();
    server.start();
    let rare = server.dead("a", "a rare one").await;
    let print = server.groups("").await["items"][0]["fingerprint"].take();
    let print = print.as_str().unwrap();
    let common = json!({ "handler": "fail", "max_retries": 0, "parameters": { "message": "a common one" } });
    let batch = json!({ "tasks": vec![common; 2_100] }).to_string();
    let created = server.post("/api/v1/tasks/batch", &batch).await.expect(201).json();
    for id in created["ids"].as_array().unwrap() {
        let id = id.as_str().unwrap().parse().unwrap();
        server.engine.wait("default", id, None).await.unwrap();
    }
    let mut pages = 0;
    let mut cursor = String::new();
    let found = loop {
        let path = format!("/api/v1/dead-letters?fingerprint={print}{cursor}");
        let page = server.get(&path).await.expect(200).json();
        pages += 1;
        match page["next_cursor"].as_str() {
            Some(next) => {
                assert!(ids(&page).is_empty() && pages < 20, "{page}");
                cursor = format!("&cursor={next}");
            }
            None => break page,
        }
    };
    assert_eq!(ids(&found), [rare]);
    assert!(pages > 1, "{pages}");
}
