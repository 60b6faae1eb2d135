//! The server on a real socket.

use std::sync::Arc;
use std::time::Duration;

use pensum_core::model::ModelStore;
use pensum_server::{AppState, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::Server;

struct Live {
    server: Server,
    address: std::net::SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    ended: JoinHandle<std::io::Result<()>>,
}

impl Live {
    async fn start(drain: Duration) -> Live {
        let server = Server::with(Arc::new(ModelStore::new(1)), |options| options.drain = drain);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let state = AppState {
            engine: server.engine.clone(),
            options: server.options.clone(),
        };
        let ended = tokio::spawn(serve(listener, state, async {
            let _ = stopped.await;
        }));
        Live {
            server,
            address,
            stop: Some(stop),
            ended,
        }
    }

    /// Shuts down; the server has to end within the time.
    async fn stop(mut self, within: Duration) {
        let _ = self.stop.take().unwrap().send(());
        tokio::time::timeout(within, self.ended)
            .await
            .expect("the server ends")
            .unwrap()
            .unwrap();
    }

    /// Sends raw bytes, and reads until the server closes or has said `until`.
    async fn raw(&self, bytes: &[u8], until: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let mut said = Vec::new();
        let mut buffer = [0; 4096];
        let read = async {
            while !String::from_utf8_lossy(&said).contains(until) {
                match stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => said.extend_from_slice(&buffer[..n]),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), read)
            .await
            .expect("the server answers");
        String::from_utf8_lossy(&said).into_owned()
    }
}

#[tokio::test]
async fn a_request_over_a_socket_is_answered_and_names_its_actor() {
    let live = Live::start(Duration::from_secs(5)).await;
    let client = reqwest::Client::new();
    let url = format!("http://{}/api/v1/tasks", live.address);
    let created = client
        .post(&url)
        .body(r#"{"handler":"noop","delay":60}"#)
        .send()
        .await
        .unwrap();
    assert_eq!(created.status(), 201);
    let task: serde_json::Value = created.json().await.unwrap();
    let id = task["id"].as_str().unwrap();
    client.post(format!("{url}/{id}/cancel")).send().await.unwrap();
    let events: serde_json::Value = client
        .get(format!("{url}/{id}/events"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let actors: Vec<_> = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|e| e["actor"].as_str())
        .collect();
    assert!(actors.contains(&"http:127.0.0.1"), "{events}");
    live.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_client_that_stalls_cannot_hold_the_shutdown() {
    let live = Live::start(Duration::from_millis(200)).await;
    let mut half_head = TcpStream::connect(live.address).await.unwrap();
    half_head
        .write_all(b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\n")
        .await
        .unwrap();
    let mut half_body = TcpStream::connect(live.address).await.unwrap();
    let head = b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{";
    half_body.write_all(head).await.unwrap();
    let _silent = TcpStream::connect(live.address).await.unwrap();
    live.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", "uptime")
        .await;
    live.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_followed_log_ends_with_the_server() {
    let live = Live::start(Duration::from_secs(60)).await;
    let id = live
        .server
        .post("/api/v1/tasks", r#"{"handler":"noop","delay":3600}"#)
        .await
        .id();
    let url = format!("http://{}/api/v1/tasks/{id}/logs?follow=true", live.address);
    let response = reqwest::Client::new()
        .get(url)
        .header("accept", "text/event-stream")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    live.stop(Duration::from_secs(10)).await;
    assert!(response.text().await.unwrap().contains("event: broken"));
}

#[tokio::test]
async fn a_client_that_sends_too_much_still_reads_why() {
    let live = Live::start(Duration::from_secs(5)).await;
    let url = format!("http://{}/api/v1/tasks", live.address);
    let client = reqwest::Client::new();
    let sent = client.post(url).body(vec![b' '; 2 << 20]).send().await.unwrap();
    assert_eq!(sent.status(), 413);
    assert!(sent.text().await.unwrap().contains("larger than 1048576 bytes"));
    let head = format!(
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: {}\r\n\r\n",
        "x".repeat(100_000)
    );
    assert!(live.raw(head.as_bytes(), "\r\n\r\n").await.starts_with("HTTP/1.1 431"));
    live.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn an_address_that_other_machines_reach_is_refused() {
    let server = Server::new();
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let state = AppState {
        engine: server.engine.clone(),
        options: server.options.clone(),
    };
    let refused = serve(listener, state, std::future::pending()).await.unwrap_err();
    assert!(refused.to_string().contains("loopback"), "{refused}");
}
