//! The threads behind a store: the writer's, and the one that folds the log into the database.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use pensum_core::StoreError;
use rusqlite::{Connection, OpenFlags};

use super::error::Fault;
use super::lock::FileLock;
use super::schema;
use super::verb::Verb;
use super::view::Shared;
use super::writer::{GROUP_ROWS_MAX, GROUP_VERBS_MAX, Writer};

/// A writer without a thread: whoever sends a verb carries it out.
struct Inline {
    writer: Writer,
    verbs: Receiver<Verb>,
}

/// The writer's thread, and the way to it.
pub(super) struct WriterThread {
    sender: Mutex<Option<Sender<Verb>>>,
    inline: Option<Mutex<Inline>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    lock: Mutex<Option<Arc<FileLock>>>,
}

impl WriterThread {
    /// Opens the file for writing and starts the threads.
    pub(super) fn start(path: &Path, shared: Arc<Shared>, lock: FileLock) -> Result<WriterThread, StoreError> {
        let shown = path.display().to_string();
        let fault = |fault: Fault| fault.describe(&shown);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags).map_err(|e| fault(e.into()))?;
        if db.is_readonly("main").map_err(|e| fault(e.into()))? {
            return Err(StoreError::Unavailable(format!(
                "{shown} is read-only; make the file writable for this user, or open it to be read only"
            )));
        }
        schema::configure_writer(&db, false).map_err(fault)?;
        schema::migrate(&db, &shown)?;
        if super::dossier::is_half_copied(&db).map_err(fault)? {
            return Err(pensum_core::dossier::half_copied(&shown));
        }
        // Reads are served from the first moment on, and find no task of a class that the catalog does not know.
        shared.catalog.load(&db).map_err(fault)?;
        let folder = Connection::open_with_flags(path, flags).map_err(|e| fault(e.into()))?;
        let mut writer = Writer::new(db, shown.clone(), shared, false).map_err(fault)?;
        let (fold, folds) = sync_channel(1);
        writer.fold = Some(fold);
        let folding = start_folding(folder, folds, writer.folded.clone())?;
        Self::spawn(writer, Some(Arc::new(lock)), Some(folding))
    }

    /// A store without a file.
    pub(super) fn start_in_memory(shared: Arc<Shared>) -> Result<WriterThread, StoreError> {
        Self::spawn(Self::memory_writer(shared)?, None, None)
    }

    fn memory_writer(shared: Arc<Shared>) -> Result<Writer, StoreError> {
        let fault = |fault: Fault| fault.describe(":memory:");
        let db = Connection::open_in_memory().map_err(|e| fault(e.into()))?;
        schema::configure_writer(&db, true).map_err(fault)?;
        schema::migrate(&db, ":memory:")?;
        Writer::new(db, ":memory:".to_owned(), shared, true).map_err(fault)
    }

    /// The same without a thread; what is random in it follows from the seed.
    #[cfg(feature = "testkit")]
    pub(super) fn inline_in_memory(shared: Arc<Shared>, seed: u64) -> Result<WriterThread, StoreError> {
        let mut writer = Self::memory_writer(shared)?;
        writer.bits = super::writer::Bits::seeded(seed);
        writer.load().map_err(|fault| fault.describe(":memory:"))?;
        let (sender, verbs) = channel();
        Ok(WriterThread {
            sender: Mutex::new(Some(sender)),
            inline: Some(Mutex::new(Inline { writer, verbs })),
            thread: Mutex::new(None),
            lock: Mutex::new(None),
        })
    }

    fn spawn(
        writer: Writer,
        lock: Option<Arc<FileLock>>,
        folding: Option<JoinHandle<()>>,
    ) -> Result<WriterThread, StoreError> {
        let (sender, verbs) = channel();
        let held = lock.clone();
        let thread = std::thread::Builder::new()
            .name("pensum-writer".to_owned())
            .spawn(move || {
                run(writer, &verbs);
                if let Some(folding) = folding {
                    // It ends once the writer, and with it the way to it, is gone.
                    let _ = folding.join();
                }
                drop(held);
            })
            .map_err(|error| StoreError::Unavailable(format!("the writer's thread cannot be started ({error})")))?;
        Ok(WriterThread {
            sender: Mutex::new(Some(sender)),
            inline: None,
            thread: Mutex::new(Some(thread)),
            lock: Mutex::new(lock),
        })
    }

    pub(super) fn sender(&self) -> Result<Sender<Verb>, StoreError> {
        self.sender.lock().clone().ok_or(StoreError::Closed)
    }

    pub(super) fn send(&self, verb: Verb) -> Result<(), StoreError> {
        let sender = self.sender.lock();
        let Some(sender) = sender.as_ref() else {
            return Err(StoreError::Closed);
        };
        sender.send(verb).map_err(|_| StoreError::Closed)?;
        if let Some(inline) = &self.inline
            // Whoever is at it already carries this one out, too.
            && let Some(mut inline) = inline.try_lock()
        {
            let Inline { writer, verbs } = &mut *inline;
            while let Ok(first) = verbs.try_recv() {
                turn(writer, verbs, first);
            }
            if writer.has_manifest_to_write() {
                writer.write_manifest();
            }
        }
        Ok(())
    }

    pub(super) fn set_owner(&self, owner: &str) {
        if let Some(lock) = self.lock.lock().as_ref()
            && let Err(error) = lock.set_owner(owner)
        {
            tracing::warn!(%error, "the lock file cannot say who owns the store");
        }
    }

    /// Waits for the writer to end, which it has been told to.
    pub(super) fn join(&self) {
        self.sender.lock().take();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the writer's thread panicked");
        }
        // The writer held it too, as long as it had the file open.
        self.lock.lock().take();
    }
}

impl Drop for WriterThread {
    /// Like a crash as far as the file can tell, but without leaving a thread behind that still has it open.
    fn drop(&mut self) {
        if let Some(sender) = self.sender.lock().take() {
            // It may have ended by itself.
            let _ = sender.send(Verb::Stop);
        }
        self.join();
    }
}

fn run(mut writer: Writer, verbs: &Receiver<Verb>) {
    if let Err(fault) = writer.load() {
        let error = fault.describe(&writer.path);
        tracing::error!(%error, "the store cannot be loaded");
        *writer.shared.broken.lock() = Some(error.clone());
        writer.shared.loaded.send_replace(true);
        while let Ok(verb) = verbs.recv() {
            let ends = matches!(verb, Verb::Stop | Verb::Close(_));
            verb.fail(&error);
            if ends {
                return;
            }
        }
        return;
    }
    loop {
        let first = match verbs.try_recv() {
            Ok(verb) => Ok(verb),
            Err(_) => {
                // Nothing else will carry the manifest to the disk for now.
                if writer.has_manifest_to_write() {
                    writer.write_manifest();
                }
                verbs.recv()
            }
        };
        let Ok(first) = first else { return };
        if !turn(&mut writer, verbs, first) {
            return;
        }
    }
}

/// Carries out a verb together with those that wait behind it. False once the store is closed.
fn turn(writer: &mut Writer, verbs: &Receiver<Verb>, first: Verb) -> bool {
    let mut rows = first.weight();
    let mut group = vec![first];
    while group.len() < GROUP_VERBS_MAX
        && rows < GROUP_ROWS_MAX
        && let Ok(verb) = verbs.try_recv()
    {
        rows += verb.weight();
        group.push(verb);
    }
    match catch_unwind(AssertUnwindSafe(|| writer.run_group(group))) {
        Ok(goes_on) => goes_on,
        Err(_) => {
            // A mistake of ours costs its group, not the store: nothing of it is on disk, and the memory is built anew.
            writer.undo();
            true
        }
    }
}

/// Folds the log into the database whenever the writer says so, without holding it up.
fn start_folding(db: Connection, folds: Receiver<()>, folded: Arc<AtomicI32>) -> Result<JoinHandle<()>, StoreError> {
    let fold = move || {
        // The settings that matter: who folds must not start to fold by itself on close.
        let _ = db.execute_batch("PRAGMA wal_autocheckpoint = 0; PRAGMA synchronous = NORMAL;");
        while folds.recv().is_ok() {
            match db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(2)) {
                Ok(pages) => folded.store(pages, Ordering::Relaxed),
                Err(error) => {
                    tracing::warn!(%error, "the log could not be folded into the database; it is tried again later");
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("pensum-folder".to_owned())
        .spawn(fold)
        .map_err(|error| StoreError::Unavailable(format!("the folding thread cannot be started ({error})")))
}
