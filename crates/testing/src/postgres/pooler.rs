//! Poolers of a test's own.

use std::io::Write;
use std::net::TcpStream;
use std::process::Child;

use tokio_postgres::config::{Config, Host};

use super::place::{Place, free_port};
use super::server::wait_until;
use super::{settings, with_database};

const LOG: &str = "pgbouncer.log";

/// A pgbouncer in transaction mode in front of one server, with pools of 20 connections; it ends with this value and with
/// the test's process, however that ends.
#[derive(Debug)]
pub struct Pooler {
    place: Place,
    process: Option<Child>,
    url: String,
}

impl Pooler {
    /// A pooler in front of the server of this URL, such as [`Server::url`](super::Server::url).
    ///
    /// # Panics
    ///
    /// When the URL names no host, and when pgbouncer does not start; the message shows its log.
    #[must_use]
    pub fn start(url: &str) -> Pooler {
        let config: Config = url.parse().unwrap_or_else(|error| panic!("{url}: {error}"));
        let Some(Host::Tcp(host)) = config.get_hosts().first() else {
            panic!("{url} names no host");
        };
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let user = config.get_user().unwrap_or("postgres");
        let listen = free_port();
        let place = Place::new("pooler-");
        let ini = format!(
            "[databases]\n\
             * = host={host} port={port} user={user}\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\n\
             listen_port = {listen}\n\
             unix_socket_dir =\n\
             auth_type = any\n\
             pool_mode = transaction\n\
             default_pool_size = 20\n\
             max_client_conn = 1000\n"
        );
        place
            .append("pgbouncer.ini")
            .write_all(ini.as_bytes())
            .expect("a small file can be written");
        let database = config.get_dbname().unwrap_or("postgres");
        let url = with_database(&format!("postgres://{user}@127.0.0.1:{listen}"), database);
        let mut process = place.spawn("KILL", LOG, &settings::pgbouncer(), &["pgbouncer.ini"]);
        let mut ended = false;
        let decided = wait_until(|| {
            ended = matches!(process.try_wait(), Ok(Some(_)));
            ended || TcpStream::connect(("127.0.0.1", listen)).is_ok()
        });
        assert!(decided && !ended, "pgbouncer does not start:\n{}", place.tail(LOG));
        Pooler {
            place,
            process: Some(process),
            url,
        }
    }

    /// The URL of the same database, through this pooler.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            self.place.reap(process);
        }
    }
}
