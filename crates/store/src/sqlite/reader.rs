//! Connections that read beside the writer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pensum_core::store::{Claimed, LeaseRef};
use pensum_core::{Name, StoreError};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use super::error::Fault;
use super::memory::FreshTask;
use super::reads;
use super::schema;
use super::verb::Grant;
use super::view::Shared;

/// How many reads run at the same time; further ones wait their turn.
const READERS_MAX: usize = 4;
/// How long the end of a store waits for reads that are under way.
const SETTLES_IN: Duration = Duration::from_secs(1);

/// A pool of reading connections.
pub(super) struct Readers {
    pool: Arc<Pool>,
    turns: Arc<Semaphore>,
}

struct Pool {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    closed: AtomicBool,
}

impl Pool {
    fn take(&self) -> Result<Connection, Fault> {
        if let Some(db) = self.idle.lock().pop() {
            return Ok(db);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&self.path, flags)?;
        schema::configure_reader(&db)?;
        Ok(db)
    }

    fn put(&self, db: Connection) {
        let mut idle = self.idle.lock();
        if !self.closed.load(Ordering::Acquire) {
            idle.push(db);
        }
    }
}

impl Readers {
    /// Opens the first of the connections, so that what is wrong shows now.
    pub(super) fn open(path: &Path) -> Result<Readers, StoreError> {
        let pool = Arc::new(Pool {
            path: path.to_owned(),
            idle: Mutex::default(),
            closed: AtomicBool::new(false),
        });
        let shown = path.display().to_string();
        let db = pool.take().map_err(|fault| fault.describe(&shown))?;
        let version = db.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0));
        let found = version.map_err(|error| Fault::Sql(error).describe(&shown))? as u64;
        if found > schema::VERSION {
            return Err(StoreError::Newer {
                found,
                known: schema::VERSION,
            });
        }
        pool.put(db);
        Ok(Readers {
            pool,
            turns: Arc::new(Semaphore::new(READERS_MAX)),
        })
    }

    /// Runs a read on a thread that may block.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let turn = self
            .turns
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| StoreError::Closed)?;
        let pool = self.pool.clone();
        let running = tokio::task::spawn_blocking(move || {
            let db = pool.take();
            let result = match db {
                Ok(db) => {
                    let result = work(&db);
                    pool.put(db);
                    result
                }
                Err(fault) => Err(fault.describe(&pool.path.display().to_string())),
            };
            // In this order they are dropped where nobody waits for the answer any more; see `settle`.
            (result, turn)
        });
        match running.await {
            Ok((result, _)) => result,
            Err(error) => Err(StoreError::Unavailable(format!(
                "a read was cut short ({error}); try again"
            ))),
        }
    }

    /// Waits a moment for the reads that are under way. A claim that was given up in the middle of one sends back what it
    /// was given, and the writer must be there to hear of it.
    pub(super) async fn settle(&self) {
        let all = self.turns.acquire_many(READERS_MAX as u32);
        // Long reads are of nobody who holds a claim.
        let _ = tokio::time::timeout(SETTLES_IN, all).await;
    }

    /// Lets go of the files; later reads answer [`StoreError::Closed`].
    pub(super) fn close(&self) {
        self.pool.closed.store(true, Ordering::Release);
        self.turns.close();
        self.pool.idle.lock().clear();
    }
}

fn claimed(grant: &mut Grant, shared: &Shared, task: pensum_core::TaskId) -> Option<(LeaseRef, Name)> {
    let class = shared.catalog.class(grant.class)?;
    Some((
        LeaseRef {
            task,
            lease: grant.lease,
        },
        class.namespace.clone(),
    ))
}

/// A claimed task that needs no read.
pub(super) fn fill_fresh(shared: &Shared, grant: &mut Grant) -> Option<Claimed> {
    let FreshTask { id, spec, created_at } = grant.fresh.take()?;
    let (lease, namespace) = claimed(grant, shared, id)?;
    Some(Claimed {
        bare: grant.bare,
        lease,
        namespace,
        spec,
        lifecycle: grant.lifecycle.clone(),
        checkpoint: None,
        created_at,
    })
}

/// Reads what claims lack: specs, ids, checkpoints.
pub(super) fn fill(db: &Connection, shared: &Shared, grants: &mut [Grant]) -> Result<Vec<Claimed>, Fault> {
    let reading = db.unchecked_transaction()?;
    let mut filled = Vec::with_capacity(grants.len());
    for grant in grants {
        let stored = reads::stored_task(&reading, &shared.catalog, grant.row)?
            .ok_or_else(|| Fault::Damaged(format!("row {} is claimed and has no task", grant.row)))?;
        let (lease, namespace) = claimed(grant, shared, stored.id)
            .ok_or_else(|| Fault::Damaged(format!("row {} is of an unknown class", grant.row)))?;
        let checkpoint = if grant.has_checkpoint {
            reads::checkpoint(&reading, grant.row)?
        } else {
            None
        };
        filled.push(Claimed {
            bare: grant.bare,
            lease,
            namespace,
            spec: Arc::new(stored.spec),
            lifecycle: grant.lifecycle.clone(),
            checkpoint,
            created_at: stored.created_at,
        });
    }
    Ok(filled)
}
