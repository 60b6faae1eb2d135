//! The least HTTP client that measures a server: one keep-alive connection, one request at a time, whole answers of a
//! declared length. It shares the machine with the server, so it does as little as it can.

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How much is read at once, in bytes.
const READ: usize = 64 * 1024;

/// A connection.
pub(super) struct Wire {
    stream: TcpStream,
    /// The newest answer, from its head on.
    buffer: Vec<u8>,
    body_at: usize,
}

impl Wire {
    pub(super) async fn connect(address: &str) -> anyhow::Result<Wire> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Wire {
            stream,
            buffer: Vec::with_capacity(READ),
            body_at: 0,
        })
    }

    /// The bytes of a GET.
    pub(super) fn get(address: &str, target: &str) -> Vec<u8> {
        format!("GET {target} HTTP/1.1\r\nhost: {address}\r\n\r\n").into_bytes()
    }

    /// The bytes of a POST of JSON.
    pub(super) fn post(address: &str, target: &str, body: &str) -> Vec<u8> {
        let length = body.len();
        format!(
            "POST {target} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }

    /// Sends a request and reads its answer; the status.
    pub(super) async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<u16> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let head = loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            self.read().await?;
        };
        let text = std::str::from_utf8(&self.buffer[..head]).context("the head of an answer is not text")?;
        let (status, length) = (status_of(text)?, length_of(text)?);
        while self.buffer.len() < head + length {
            self.read().await?;
        }
        self.body_at = head;
        Ok(status)
    }

    /// Like [`Wire::exchange`]; an error unless the status is that.
    pub(super) async fn expect(&mut self, request: &[u8], wanted: u16) -> anyhow::Result<()> {
        let status = self.exchange(request).await?;
        if status != wanted {
            bail!(
                "the node answered {status} instead of {wanted}: {}",
                String::from_utf8_lossy(self.body())
            );
        }
        Ok(())
    }

    /// The body of the newest answer.
    pub(super) fn body(&self) -> &[u8] {
        &self.buffer[self.body_at..]
    }

    async fn read(&mut self) -> anyhow::Result<()> {
        self.buffer.reserve(READ);
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            bail!("the node closed the connection");
        }
        Ok(())
    }
}

fn status_of(head: &str) -> anyhow::Result<u16> {
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.with_context(|| format!("not an HTTP answer: {}", head.lines().next().unwrap_or_default()))
}

fn length_of(head: &str) -> anyhow::Result<usize> {
    let values = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = values
        .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map(|(_, value)| value.trim());
    lengths
        .next_back()
        .and_then(|value| value.parse().ok())
        .context("an answer without content-length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_an_answer_gives_its_status_and_length() {
        let head = "HTTP/1.1 201 Created\r\nContent-Length: 12\r\n\r\n";
        assert_eq!((status_of(head).unwrap(), length_of(head).unwrap()), (201, 12));
        assert!(length_of("HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(status_of("nonsense").is_err());
    }
}
