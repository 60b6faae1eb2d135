//! Notices between nodes that there may be work: a hint, never the truth. Polling goes on beneath them.
//!
//! A notice is sent after the commit that made work, by a task of its own and at most one each [`QUIET`]: inside the
//! commit it would make all commits of the database wait for each other. It says nothing but "look", and whether a queue
//! with limits may have room again: else each new task would send claims to look at queues that are full. Which agents have
//! changed is told by numbers that follow from their names.

use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::poll_fn;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_postgres::AsyncMessage;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;

use super::options::PostgresOptions;
use super::pool::{Param, Pool};
use super::tls;

/// Shortest time between two notices of one node.
const QUIET: Duration = Duration::from_millis(10);
/// First and longest pause before the connection that listens is made again.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long a notice to oneself may take before nobody believes in notices.
const ECHO_MAX: Duration = Duration::from_secs(5);
/// The pause after a notice that could not be sent.
const SEND_PAUSE: Duration = Duration::from_millis(500);
/// What a notice begins with when a queue with limits may have room again.
const ROOM: &str = "room ";
/// What a notice begins with when somebody has put, changed or removed a breaker.
const BREAKERS: &str = "breakers ";
/// What a notice begins with that names agents which have changed.
const AGENTS: &str = "agents ";
/// Most agents in one notice: the server takes none of 8,000 bytes or more.
const AGENTS_TOLD_MAX: usize = 300;

/// The number by which an agent is told of. Of two that share one, both are looked at.
pub(super) fn agent_number(namespace: &str, agent: &str) -> u64 {
    // The same in every process of this program, and of the next version of it.
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    (namespace, agent).hash(&mut hasher);
    hasher.finish()
}

struct Fnv(u64);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Which agents have changed since somebody asked.
#[derive(Default)]
pub(super) struct ChangedAgents {
    /// Any may have: the change that was heard of last.
    any: u64,
    /// By their numbers, the last change of each.
    numbers: HashMap<u64, u64>,
}

impl ChangedAgents {
    /// True when an agent has changed since so many changes had been heard of.
    pub(super) fn since(&self, heard: u64, agent: u64) -> bool {
        self.any > heard || self.numbers.get(&agent).is_some_and(|change| *change > heard)
    }
}

/// What wakes parked claims.
pub(super) struct Wake {
    /// Grows when there may be work.
    ready: watch::Sender<u64>,
    /// Others want to know.
    outbox: Notify,
    /// Grows when any queue with limits may have room again.
    rooms: AtomicU64,
    /// One has, and others do not know of that yet.
    tell_room: AtomicBool,
    /// What this node's notices of that say, for it hears them, too.
    own_room: String,
    own_breakers: String,
    /// What those begin with that name agents.
    own_agents: String,
    /// Grows when somebody has put, changed or removed a breaker, or may have.
    breakers: AtomicU64,
    /// This node has, and others do not know of that yet.
    tell_breakers: AtomicBool,
    /// Notices do not come through.
    deaf: AtomicBool,
    /// Grows when an agent has changed.
    agents: AtomicU64,
    /// Which have, for the parked claims of this node.
    changed_agents: Mutex<ChangedAgents>,
    /// Which have, and others do not know of that yet.
    tell_agents: Mutex<BTreeSet<u64>>,
}

/// Hears of work from the moment it was made.
pub(super) struct Ear(watch::Receiver<u64>);

impl Ear {
    /// Returns once there may be work.
    pub(super) async fn ready(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Wake {
    /// `tag` is this node's own.
    pub(super) fn new(tag: u64) -> Wake {
        Wake {
            own_room: format!("{ROOM}{tag:x}"),
            own_breakers: format!("{BREAKERS}{tag:x}"),
            own_agents: format!("{AGENTS}{tag:x} "),
            ready: watch::Sender::new(0),
            outbox: Notify::new(),
            rooms: AtomicU64::new(0),
            tell_room: AtomicBool::new(false),
            breakers: AtomicU64::new(0),
            tell_breakers: AtomicBool::new(false),
            deaf: AtomicBool::new(true),
            agents: AtomicU64::new(0),
            changed_agents: Mutex::default(),
            tell_agents: Mutex::default(),
        }
    }

    /// There may be work, for this node and all others.
    pub(super) fn ready(&self) {
        self.heard();
        self.outbox.notify_one();
    }

    /// A queue with limits may have room again; which one, this node knows.
    pub(super) fn room(&self) {
        self.tell_room.store(true, Ordering::Relaxed);
        self.ready();
    }

    /// Any queue with limits may have room again, as far as this node knows.
    pub(super) fn any_room(&self) {
        self.rooms.fetch_add(1, Ordering::AcqRel);
    }

    /// What was seen to be full while this number stood is so until it grows.
    pub(super) fn rooms(&self) -> u64 {
        self.rooms.load(Ordering::Acquire)
    }

    /// Somebody has put, changed or removed a breaker on this node.
    pub(super) fn breakers_changed(&self) {
        self.breakers.fetch_add(1, Ordering::AcqRel);
        self.tell_breakers.store(true, Ordering::Relaxed);
        self.ready();
    }

    /// Whom breakers cover is as it was read while this number stood, until it grows.
    pub(super) fn breakers(&self) -> u64 {
        self.breakers.load(Ordering::Acquire)
    }

    /// An agent has changed: what it may claim, or what others may claim instead of it.
    pub(super) fn agent(&self, namespace: &str, agent: &str) {
        let number = agent_number(namespace, agent);
        self.tell_agents.lock().insert(number);
        let change = self.agents.fetch_add(1, Ordering::AcqRel) + 1;
        self.changed_agents.lock().numbers.insert(number, change);
        self.ready();
    }

    /// Others have changed, or any may have, where nothing can be read.
    fn hear_agents(&self, numbers: &str) {
        let change = self.agents.fetch_add(1, Ordering::AcqRel) + 1;
        let mut changed = self.changed_agents.lock();
        for number in numbers.split(' ') {
            match u64::from_str_radix(number, 16) {
                Ok(number) => _ = changed.numbers.insert(number, change),
                Err(_) => changed.any = change,
            }
        }
    }

    /// What is known of agents while this number stands is so, but for when they were heard, until it grows.
    pub(super) fn agents(&self) -> u64 {
        self.agents.load(Ordering::Acquire)
    }

    /// The agents that have changed since this was asked last.
    pub(super) fn changed_agents(&self) -> ChangedAgents {
        std::mem::take(&mut self.changed_agents.lock())
    }

    /// Some of those that others are to hear of.
    fn agents_to_tell(&self) -> Vec<u64> {
        let mut told = self.tell_agents.lock();
        let now: Vec<u64> = told.iter().copied().take(AGENTS_TOLD_MAX).collect();
        told.retain(|number| !now.contains(number));
        now
    }

    fn heard(&self) {
        self.ready.send_modify(|n| *n = n.wrapping_add(1));
    }

    pub(super) fn listen(&self) -> Ear {
        Ear(self.ready.subscribe())
    }

    /// True while work that other nodes make is found by polling alone.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf.load(Ordering::Relaxed)
    }
}

/// The channel on which the nodes of a store listen.
pub(super) fn channel(schema: &str) -> String {
    // A name of PostgreSQL has 63 bytes at most; what is cut off only makes a notice reach one more store.
    format!("pensum_{schema}").chars().take(63).collect()
}

const NOTIFY: &str = "SELECT pg_notify($1, $2)";

/// Sends notices until the store is closed.
pub(super) async fn send(wake: Arc<Wake>, pool: Arc<Pool>, schema: String, closed: CancellationToken) {
    let channel = channel(&schema);
    loop {
        tokio::select! {
            () = wake.outbox.notified() => {}
            () = closed.cancelled() => return,
        }
        let room = wake.tell_room.swap(false, Ordering::Relaxed);
        let says = if room { wake.own_room.as_str() } else { "" };
        let params: [Param<'_>; 2] = [(&channel, Type::TEXT), (&says, Type::TEXT)];
        let mut sent = pool.read(NOTIFY, &params).await;
        let breakers = wake.tell_breakers.swap(false, Ordering::Relaxed);
        if sent.is_ok() && breakers {
            let says = wake.own_breakers.as_str();
            sent = pool.read(NOTIFY, &[(&channel, Type::TEXT), (&says, Type::TEXT)]).await;
        }
        let agents = wake.agents_to_tell();
        if sent.is_ok() && !agents.is_empty() {
            let numbers: Vec<String> = agents.iter().map(|number| format!("{number:x}")).collect();
            let says = format!("{}{}", wake.own_agents, numbers.join(" "));
            sent = pool.read(NOTIFY, &[(&channel, Type::TEXT), (&says, Type::TEXT)]).await;
        }
        if sent.is_err() {
            // Others find the work by looking; who waits for an echo does not.
            wake.tell_room.fetch_or(room, Ordering::Relaxed);
            wake.tell_breakers.fetch_or(breakers, Ordering::Relaxed);
            wake.tell_agents.lock().extend(agents);
        }
        if sent.is_err() || !wake.tell_agents.lock().is_empty() {
            wake.outbox.notify_one();
        }
        tokio::time::sleep(if sent.is_ok() { QUIET } else { SEND_PAUSE }).await;
    }
}

/// Listens until the store is closed, on a connection of its own.
pub(super) async fn hear(wake: Arc<Wake>, options: PostgresOptions, closed: CancellationToken) {
    let mut pause = PAUSE_MIN;
    let mut said = false;
    loop {
        let heard = tokio::select! {
            heard = hear_once(&wake, &options, &mut said) => heard,
            () = closed.cancelled() => return,
        };
        wake.deaf.store(true, Ordering::Relaxed);
        match heard {
            // It worked for a while.
            Ok(()) => pause = PAUSE_MIN,
            Err(Deaf::Broken) => pause = (pause * 2).min(PAUSE_MAX),
            Err(Deaf::Pooler) => {
                if !said {
                    tracing::info!(
                        "notices do not come through, probably for a pooler in transaction mode; this node looks for work of other \
                         nodes some 20 times a second"
                    );
                    said = true;
                }
                pause = Duration::from_secs(60);
            }
        }
        // What was missed meanwhile is found by looking.
        wake.any_room();
        wake.breakers.fetch_add(1, Ordering::AcqRel);
        wake.hear_agents("any");
        wake.heard();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = closed.cancelled() => return,
        }
    }
}

enum Deaf {
    /// No connection.
    Broken,
    /// A connection on which no notice arrives.
    Pooler,
}

/// Listens until the connection ends. Notices count once one has come back that was sent on another connection: on the
/// same one a pooler would pass it on as well, and nobody else's.
async fn hear_once(wake: &Wake, options: &PostgresOptions, said: &mut bool) -> Result<(), Deaf> {
    let connector = tls::connector(options).map_err(|_| Deaf::Broken)?;
    let (client, mut connection) = options.config.connect(connector).await.map_err(|_| Deaf::Broken)?;
    let listen = format!("LISTEN \"{}\"", channel(&options.schema));
    let mut listening = std::pin::pin!(client.batch_execute(&listen));
    let mut is_listening = false;
    let mut echoed = false;
    let patience = tokio::time::sleep(ECHO_MAX);
    let mut patience = std::pin::pin!(patience);
    loop {
        tokio::select! {
            message = poll_fn(|ctx| connection.poll_message(ctx)) => match message {
                Some(Ok(AsyncMessage::Notification(notice))) => {
                    // One that came with the answer may have been meant for who had the pooler's connection before.
                    if is_listening && !echoed {
                        echoed = true;
                        *said = false;
                        // What changed before it listened.
                        wake.breakers.fetch_add(1, Ordering::AcqRel);
                        wake.deaf.store(false, Ordering::Relaxed);
                    }
                    if notice.payload().starts_with(ROOM) && notice.payload() != wake.own_room {
                        wake.any_room();
                    }
                    if notice.payload().starts_with(BREAKERS) && notice.payload() != wake.own_breakers {
                        wake.breakers.fetch_add(1, Ordering::AcqRel);
                    }
                    if !notice.payload().starts_with(&wake.own_agents)
                        && let Some((_, numbers)) =
                            notice.payload().strip_prefix(AGENTS).and_then(|says| says.split_once(' '))
                    {
                        wake.hear_agents(numbers);
                    }
                    wake.heard();
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return if echoed { Ok(()) } else { Err(Deaf::Broken) },
            },
            result = &mut listening, if !is_listening => {
                result.map_err(|_| Deaf::Broken)?;
                is_listening = true;
                wake.outbox.notify_one();
            }
            () = &mut patience, if !echoed => return Err(if is_listening { Deaf::Pooler } else { Deaf::Broken }),
        }
    }
}
