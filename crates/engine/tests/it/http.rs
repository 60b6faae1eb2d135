//! The `http` handler against a server of a few lines.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pensum_core::model::ModelStore;
use pensum_core::store::Call;
use pensum_core::{NewTask, Spec, State, Store, TaskRecord};
use pensum_engine::{Engine, kinds};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{error, with};

/// Answers `/status/CODE` with that status, `/flaky` with 503 and then 200, `/echo` with the request itself.
async fn server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let flaky = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let flaky = Arc::clone(&flaky);
            tokio::spawn(async move {
                let mut bytes = vec![0; 4096];
                let count = stream.read(&mut bytes).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&bytes[..count]).into_owned();
                let path = request.split(' ').nth(1).unwrap_or("/").to_owned();
                let (status, headers, body) = answer(&path, &request, &flaky);
                let length = body.len();
                let reply = format!(
                    "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}"
                );
                let _ = stream.write_all(reply.as_bytes()).await;
            });
        }
    });
    format!("http://{address}")
}

fn answer(path: &str, request: &str, flaky: &AtomicUsize) -> (u16, String, String) {
    match path {
        "/flaky" if flaky.fetch_add(1, Ordering::SeqCst) == 0 => {
            (503, "Retry-After: 1\r\n".to_owned(), "busy".to_owned())
        }
        "/flaky" => (200, String::new(), r#"{"well": true}"#.to_owned()),
        "/loop" => (302, "Location: /loop\r\n".to_owned(), String::new()),
        "/echo" => (200, String::new(), request.to_owned()),
        _ => (
            path.rsplit('/').next().and_then(|c| c.parse().ok()).unwrap_or(404),
            String::new(),
            "sorry".to_owned(),
        ),
    }
}

async fn run(parameters: serde_json::Value) -> TaskRecord {
    let store: Arc<dyn Store> = Arc::new(ModelStore::new(4));
    let engine = Engine::builder(store).builtin_handlers().build();
    engine.start();
    let spec = Spec {
        max_retries: Some(1),
        ..with("http", parameters)
    };
    let call = Call::new("tester", engine.now());
    let id = engine.enqueue(&call, vec![NewTask::new(spec)]).await.unwrap()[0].id;
    engine.wait("default", id, Some(Duration::from_secs(20))).await.unwrap()
}

#[tokio::test]
async fn an_answer_s_body_is_the_result_and_the_request_is_as_asked() {
    let url = server().await;
    let body =
        json!({ "method": "post", "url": format!("{url}/echo"), "headers": { "X-One": "1" }, "body": { "a": 1 } });
    let record = run(body).await;
    let echoed: String = record.result.unwrap().to().unwrap();
    let lower = echoed.to_ascii_lowercase();
    assert!(
        lower.starts_with("post /echo") && lower.contains("x-one: 1"),
        "{echoed}"
    );
    assert!(
        lower.contains("content-type: application/json") && lower.ends_with(r#"{"a":1}"#),
        "{echoed}"
    );
}

#[tokio::test]
async fn a_server_that_is_busy_is_asked_again_when_it_says() {
    let url = server().await;
    let record = run(json!({ "url": format!("{url}/flaky") })).await;
    assert_eq!(
        (record.lifecycle.state, record.lifecycle.attempt),
        (State::Completed, 2)
    );
    assert_eq!(record.result.unwrap().value(), json!({ "well": true }));
}

#[tokio::test]
async fn an_unexpected_status_fails_for_good_unless_it_was_expected() {
    let url = server().await;
    let record = run(json!({ "url": format!("{url}/status/404") })).await;
    assert_eq!((record.lifecycle.state, record.lifecycle.attempt), (State::Failed, 1));
    let (kind, message) = error(&record);
    assert!(
        kind == kinds::HTTP_STATUS && message.contains("404") && message.contains("sorry"),
        "{message}"
    );
    let record = run(json!({ "url": format!("{url}/status/404"), "expect": [200, 404] })).await;
    assert_eq!(record.result.unwrap().value(), json!("sorry"));
}

#[tokio::test]
async fn redirects_without_end_and_closed_ports_are_errors() {
    let url = server().await;
    let record = run(json!({ "url": format!("{url}/loop") })).await;
    assert_eq!(
        (error(&record).0.as_str(), record.lifecycle.attempt),
        (kinds::HTTP_CONNECT, 1)
    );
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let record = run(json!({ "url": format!("http://{closed}/") })).await;
    assert_eq!(
        (error(&record).0.as_str(), record.lifecycle.attempt),
        (kinds::HTTP_CONNECT, 2)
    );
}
