//! Several nodes on one PostgreSQL database, and somebody who looks in from the side.

use std::sync::Arc;
use std::time::Duration;

use pensum_core::store::{Call, ClaimRequest, Claimed, Finish, Store};
use pensum_core::{Json, NewTask, NodeId, Outcome, TaskId, Time};
use pensum_testing::postgres::{Database, connect};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::Client;

/// How long anything may take before a test gives it up for stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long leases last.
pub(crate) const LEASE: Duration = Duration::from_secs(3_600);

pub(crate) struct Nodes {
    database: Database,
    pub(crate) stores: Vec<Arc<dyn Store>>,
    pub(crate) watcher: Client,
    pub(crate) now: Time,
}

impl Nodes {
    pub(crate) async fn new(count: usize) -> Nodes {
        let database = Database::from_template("nodes", async |url: String| {
            let store = pensum_store::connect(&url, "tests").await.unwrap();
            store.close().await.unwrap();
        })
        .await;
        let mut stores = Vec::new();
        for node in 0..count {
            let name = format!("node{node}");
            stores.push(pensum_store::connect(&database.url(), &name).await.unwrap());
        }
        Nodes {
            watcher: connect(&database.url()).await,
            database,
            stores,
            now: noon(),
        }
    }

    /// One more node, which brings the schema up to date.
    pub(crate) async fn join(&mut self) {
        let store = pensum_store::connect(&self.database.url(), "later").await.unwrap();
        self.stores.push(store);
    }

    pub(crate) fn call(&self) -> Call {
        Call::new("tester", self.now)
    }

    pub(crate) async fn add(&self, node: usize, tasks: Vec<NewTask>) -> Vec<TaskId> {
        let added = self.stores[node].enqueue(&self.call(), tasks).await.unwrap();
        added.into_iter().map(|task| task.id).collect()
    }

    pub(crate) async fn take(&self, node: usize, request: ClaimRequest) -> Vec<Claimed> {
        in_time(self.stores[node].claim(request, self.now)).await.unwrap()
    }

    /// What a node claims for itself.
    pub(crate) async fn claim(&self, node: usize, slots: usize) -> Vec<Claimed> {
        self.take(node, of_node(node as u64 + 1, slots)).await
    }

    /// A claim that waits, at the side; when it was answered.
    pub(crate) fn park(&self, node: usize, request: ClaimRequest) -> JoinHandle<(Vec<Claimed>, Instant)> {
        let (store, now) = (Arc::clone(&self.stores[node]), self.now);
        let wait = if request.wait.is_zero() { PATIENCE } else { request.wait };
        let request = ClaimRequest { wait, ..request };
        tokio::spawn(async move {
            let claimed = store.claim(request, now).await.unwrap();
            (claimed, Instant::now())
        })
    }

    /// Ends runs well.
    pub(crate) async fn end(&self, node: usize, claimed: &[Claimed]) {
        self.end_as(node, claimed, || Outcome::Done(Json::null())).await;
    }

    pub(crate) async fn end_as(&self, node: usize, claimed: &[Claimed], outcome: fn() -> Outcome) {
        let finishes = claimed.iter().map(|claimed| Finish::new(claimed.lease, outcome()));
        let ended = self.stores[node].finish(finishes.collect(), self.now).await.unwrap();
        assert!(ended.iter().all(Result::is_ok), "{ended:?}");
    }

    pub(crate) async fn verify(&self) {
        let verified = self.stores[0].verify().await.unwrap();
        assert_eq!(verified.violations, Vec::<String>::new());
    }
}

pub(crate) async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("stuck")
}

pub(crate) fn noon() -> Time {
    Time::parse("2026-03-01T12:00:00Z").unwrap()
}

/// Asks for whatever there is, and does not wait.
pub(crate) fn of_node(node: u64, slots: usize) -> ClaimRequest {
    ClaimRequest::new(NodeId(node), format!("node{node}"), slots, LEASE)
}
