//! One process owns a store: the lock file beside it says which.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use pensum_core::StoreError;

/// How often a lock that another process has is tried again.
const TRIES: u32 = 20;
/// How long between two tries: 200 ms in all.
const PAUSE: Duration = Duration::from_millis(10);

/// The lock on a store file; let go when dropped, whatever ends the process.
pub(super) struct FileLock {
    file: Mutex<File>,
}

impl FileLock {
    /// Locks `path`, and writes down who did.
    ///
    /// # Errors
    /// [`StoreError::Locked`] with the text of whoever has it; [`StoreError::Unavailable`] when the lock file cannot
    /// be written.
    pub(super) fn take(path: &Path, owner: &str) -> Result<FileLock, StoreError> {
        let lock_path = lock_path(path);
        let unavailable = |error: std::io::Error| {
            StoreError::Unavailable(format!(
                "the lock file {} cannot be written; make its directory exist and be writable ({error})",
                lock_path.display()
            ))
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(unavailable)?;
        match patiently(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // The text may be half written at this moment; then the owner is simply not named.
                let _ = Read::take(&mut file, 500).read_to_string(&mut owner);
                let owner = owner.trim();
                let owner = if owner.is_empty() { "another process" } else { owner };
                return Err(StoreError::Locked {
                    path: path.display().to_string(),
                    owner: owner.to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(unavailable(error)),
        }
        let lock = FileLock { file: Mutex::new(file) };
        lock.set_owner(owner).map_err(unavailable)?;
        Ok(lock)
    }

    /// Says who owns the store: an address once one is known, a process id before.
    pub(super) fn set_owner(&self, owner: &str) -> std::io::Result<()> {
        let mut file = self.file.lock();
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(owner.as_bytes())
    }
}

/// Takes the lock, if need be after a moment: a process that was killed while it started a program leaves a copy of its
/// descriptors to the child, which closes them only as the program begins.
fn patiently(file: &File) -> Result<(), TryLockError> {
    for _ in 0..TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            decided => return decided,
        }
    }
    file.try_lock()
}

/// The lock file of a store: beside the file itself, whatever links lead to it.
fn lock_path(path: &Path) -> PathBuf {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut name = path.into_os_string();
    name.push(".lock");
    PathBuf::from(name)
}
