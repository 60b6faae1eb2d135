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

    /// One request on a connection of its own; answers head and body.
    async fn request(&self, method: &str, path: &str, body: &str) -> String {
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close");
        self.raw(
            format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes(),
            "never said",
        )
        .await
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
    let body = r#"{"handler":"noop","delay":60}"#;
    let created = live.request("POST", "/api/v1/tasks", body).await;
    assert!(created.starts_with("HTTP/1.1 201 Created\r\n"), "{created}");
    let task: serde_json::Value = serde_json::from_str(created.split_once("\r\n\r\n").unwrap().1).unwrap();
    let path = format!("/api/v1/tasks/{}", task["id"].as_str().unwrap());
    live.request("POST", &format!("{path}/cancel"), "").await;
    let events = live.request("GET", &format!("{path}/events"), "").await;
    assert!(events.contains(r#""actor":"http:127.0.0.1""#), "{events}");
    live.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let live = Live::start(Duration::from_secs(5)).await;
    let one = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let last = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let said = live.raw(format!("{one}{one}{last}").as_bytes(), "never said").await;
    assert_eq!(said.matches("HTTP/1.1 ").count(), 3, "{said}");
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
    let mut stream = TcpStream::connect(live.address).await.unwrap();
    let path = format!("/api/v1/tasks/{id}/logs?follow=true");
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    live.stop(Duration::from_secs(10)).await;
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("event: broken"), "{rest}");
}

#[tokio::test]
async fn a_client_that_sends_too_much_still_reads_why() {
    let live = Live::start(Duration::from_secs(5)).await;
    let said = live.request("POST", "/api/v1/tasks", &" ".repeat(2 << 20)).await;
    assert!(said.starts_with("HTTP/1.1 413"), "{said}");
    assert!(said.contains("larger than 1048576 bytes"), "{said}");
    let head = format!(
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: {}\r\n\r\n",
        "x".repeat(100_000)
    );
    // The answer is 431, but the client, still sending, may see the connection end before it can read that.
    let said = live.raw(head.as_bytes(), "\r\n\r\n").await;
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 431"), "{said}");
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
