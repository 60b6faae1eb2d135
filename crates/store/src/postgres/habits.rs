//! Statements that are sent again and again are prepared, each connection for itself, as pgjdbc does it: parsing and
//! planning the larger ones takes the server several times as long as carrying them out.
//!
//! A prepared statement lives in a session, and behind a pooler in transaction mode the next transaction may be in the
//! session of someone else, where the same name stands for nothing, or for something else. So nothing is prepared unless
//! the server says that it is at the very address that was dialled.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::config::Host;

/// How often a statement is sent before it is prepared, when the URL does not say.
pub(super) const THRESHOLD_DEFAULT: u32 = 5;
/// Most statements that are kept count of. Those of lists with filters are many and come seldom.
const KNOWN_MAX: usize = 256;
/// Where the port of a server is not said.
const PORT_DEFAULT: u16 = 5432;

/// Which statements are sent again and again.
pub(super) struct Habits {
    threshold: u32,
    is_on: AtomicBool,
    sent: Mutex<HashMap<String, u32, RandomState>>,
}

impl Habits {
    /// Zero prepares nothing.
    pub(super) fn new(threshold: u32) -> Habits {
        Habits {
            threshold,
            is_on: AtomicBool::new(threshold > 0),
            sent: Mutex::default(),
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Someone stands between us and the server.
    pub(super) fn give_up(&self) {
        if self.is_on.swap(false, Ordering::Relaxed) {
            tracing::debug!("a pooler or a proxy stands before the server, so no statement is prepared");
        }
    }

    /// Counts a statement; true once it is worth preparing.
    pub(super) fn note(&self, sql: &str) -> bool {
        if !self.is_on() {
            return false;
        }
        let mut sent = self.sent.lock();
        if let Some(times) = sent.get_mut(sql) {
            *times = times.saturating_add(1);
            return *times > self.threshold;
        }
        if sent.len() < KNOWN_MAX {
            sent.insert(sql.to_owned(), 1);
        }
        false
    }
}

/// True for an answer about `rows` rows that took so long that the plan may be to blame: it was made when the tables had
/// another size.
pub(super) fn is_slow(took: Duration, rows: usize) -> bool {
    let rows = u32::try_from(rows).unwrap_or(u32::MAX);
    took > Duration::from_millis(20) + Duration::from_micros(50) * rows
}

/// The shortest and the longest time between two times that a connection's plans are thrown away.
const DOUBT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How many connections are kept count of before those are forgotten that were not slow for long.
const DOUBTED_MAX: usize = 256;

/// When the plans of connections were thrown away, because an answer was slow. Where that does not help, it is done ever more
/// seldom: waiting for a lock, or for a busy machine, is slow too, and making all plans anew makes it slower.
pub(super) struct Doubts<K>(Mutex<HashMap<K, Doubt, RandomState>>);

struct Doubt {
    at: Instant,
    pause: Duration,
}

impl<K> Default for Doubts<K> {
    fn default() -> Self {
        Doubts(Mutex::default())
    }
}

impl<K: Eq + Hash> Doubts<K> {
    /// An answer on a connection was slow at `now`; true when its plans are to be thrown away.
    pub(super) fn raise(&self, connection: K, now: Instant) -> bool {
        let mut all = self.0.lock();
        if all.len() >= DOUBTED_MAX {
            all.retain(|_, doubt| now.saturating_duration_since(doubt.at) < 4 * DOUBT.1);
        }
        let pause = match all.get(&connection) {
            None => DOUBT.0,
            Some(Doubt { at, pause }) => match now.saturating_duration_since(*at) {
                since if since < *pause => return false,
                since if since > 4 * *pause => DOUBT.0,
                _ => (4 * *pause).min(DOUBT.1),
            },
        };
        all.insert(connection, Doubt { at: now, pause });
        true
    }
}

/// Asks the server where it is, and looks whether that is where we dialled.
pub(super) async fn is_direct(config: &tokio_postgres::Config, client: &Client) -> Result<bool, tokio_postgres::Error> {
    // Not everyone may know the directories: the view leaves them out then, where the function would fail.
    let sql = "SELECT host(inet_server_addr()), inet_server_port(), current_setting('port')::integer,
        coalesce((SELECT setting FROM pg_settings WHERE name = 'unix_socket_directories'), '')";
    let found = client.query_typed(sql, &[]).await?;
    let Some(found) = found.first() else {
        return Ok(false);
    };
    let address: Option<&str> = found.try_get(0)?;
    let (port, own_port): (Option<i32>, i32) = (found.try_get(1)?, found.try_get(2)?);
    let directories: &str = found.try_get(3)?;
    let ports = config.get_ports();
    for (at, host) in config.get_hosts().iter().enumerate() {
        let dialled = ports.get(at).or(ports.first()).copied().unwrap_or(PORT_DEFAULT);
        match host {
            Host::Unix(path) => {
                let is_there = directories
                    .split(',')
                    .any(|one| std::path::Path::new(one.trim()) == path.as_path());
                if address.is_none() && is_there && own_port == i32::from(dialled) {
                    return Ok(true);
                }
            }
            Host::Tcp(name) => {
                let Some(address) = address.filter(|_| port == Some(i32::from(dialled))) else {
                    continue;
                };
                let known = config.get_hostaddrs().get(at).map(ToString::to_string);
                if known.is_some_and(|known| known == address) {
                    return Ok(true);
                }
                // A name that cannot be looked up any more says nothing about the server.
                let Ok(mut found) = tokio::net::lookup_host((name.as_str(), dialled)).await else {
                    continue;
                };
                if found.any(|socket| socket.ip().to_string() == address) {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_often_is_prepared_and_what_is_never_the_same_is_not() {
        let habits = Habits::new(2);
        let noted: Vec<bool> = (0..4).map(|_| habits.note("SELECT 1")).collect();
        assert_eq!(noted, [false, false, true, true]);
        for n in 0..2 * KNOWN_MAX {
            assert!(!habits.note(&format!("SELECT {n} AS once")));
        }
        assert!(habits.sent.lock().len() <= KNOWN_MAX);
        habits.give_up();
        assert!(!habits.note("SELECT 1"));
        assert!(!Habits::new(0).note("SELECT 1") && !Habits::new(0).is_on());
    }

    #[test]
    fn plans_that_are_not_to_blame_are_thrown_away_ever_more_seldom() {
        let (doubts, start) = (Doubts::default(), Instant::now());
        let at = |ms: u64| doubts.raise(1, start + Duration::from_millis(ms));
        let minutes: Vec<u64> = (0..180_000).step_by(10).filter(|ms| at(*ms)).collect();
        assert_eq!(minutes, [0, 1_000, 5_000, 21_000, 81_000, 141_000]);
        // After a time without a slow answer the next one is taken seriously again.
        assert!(!at(200_000) && at(400_000) && !at(400_990) && at(401_000));
        // Each connection has plans of its own.
        assert!(doubts.raise(2, start + Duration::from_millis(401_010)));
    }

    #[test]
    fn an_answer_is_slow_for_what_it_is_about() {
        assert!(is_slow(Duration::from_millis(30), 1));
        assert!(!is_slow(Duration::from_millis(30), 1_000));
        assert!(is_slow(Duration::from_millis(90), 1_000));
    }
}
