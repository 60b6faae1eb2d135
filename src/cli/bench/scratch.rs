//! Places that the bench makes and removes: files, and schemas on a database server.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pensum_core::Store;

use super::database::Schema;
use super::meter::tick;
use crate::cli::exit::{Exit, Failure};

/// What stands beside a database file.
const COMPANIONS: [&str; 4] = ["", "-wal", "-shm", ".lock"];

/// A place for a store that did not exist before.
pub(super) enum Scratch {
    /// A file for SQLite.
    File(ScratchFile),
    /// A schema on PostgreSQL.
    Schema(Schema),
}

impl Scratch {
    /// Another place beside this one.
    pub(super) fn beside(&self, name: &str) -> anyhow::Result<Scratch> {
        Ok(match self {
            Scratch::File(file) => Scratch::File(file.beside(name)?),
            Scratch::Schema(schema) => Scratch::Schema(schema.beside(name)),
        })
    }

    /// The URL of the store here.
    pub(super) fn url(&self) -> String {
        match self {
            Scratch::File(file) => file.url(),
            Scratch::Schema(schema) => schema.url(),
        }
    }

    /// True when several processes can open the store here at once.
    pub(super) const fn is_shared(&self) -> bool {
        matches!(self, Scratch::Schema(_))
    }

    /// Opens the store here, with what is in it.
    pub(super) async fn open(&self) -> anyhow::Result<Arc<dyn Store>> {
        open(&self.url()).await
    }

    /// Opens a new store here.
    pub(super) async fn fresh(&self) -> anyhow::Result<Arc<dyn Store>> {
        self.clear().await?;
        self.open().await
    }

    /// Removes what is here.
    pub(super) async fn clear(&self) -> anyhow::Result<()> {
        match self {
            Scratch::File(file) => file.clear(),
            Scratch::Schema(schema) => schema.clear().await?,
        }
        Ok(())
    }
}

/// Opens a store for this process.
pub(super) async fn open(url: &str) -> anyhow::Result<Arc<dyn Store>> {
    let owner = format!("bench, process {}", std::process::id());
    Ok(pensum_store::connect(url, &owner).await.map_err(Failure::from)?)
}

/// A place for a database file. Whatever is there is removed in the end.
pub(super) struct ScratchFile {
    path: PathBuf,
}

impl ScratchFile {
    /// The place that a store URL names.
    ///
    /// # Errors
    /// When the URL is not `sqlite:PATH`, or something is there already: a bench must never touch anyone's tasks.
    pub(super) fn at(url: &str) -> anyhow::Result<ScratchFile> {
        let path = match url.strip_prefix("sqlite:") {
            Some(path) if !path.is_empty() && !path.starts_with(':') => PathBuf::from(path),
            _ => {
                let message = format!(
                    "cannot bench `{}`: name a new file on the disk to measure, such as sqlite:bench.db, or a server, \
                     such as postgres://USER@HOST/DATABASE",
                    pensum_core::id::clip(url)
                );
                return Err(Failure::usage(message).into());
            }
        };
        ScratchFile::new(path)
    }

    fn new(path: PathBuf) -> anyhow::Result<ScratchFile> {
        for companion in COMPANIONS {
            let file = suffixed(&path, companion);
            if fs::metadata(&file).is_ok_and(|found| !found.is_file() || found.len() > 0) {
                let message = format!(
                    "{} exists and is not empty; a bench fills and removes its database, so name a new file",
                    file.display()
                );
                return Err(Failure::new(Exit::Conflict, message).into());
            }
        }
        Ok(ScratchFile { path })
    }

    /// Another place in the same directory.
    pub(super) fn beside(&self, name: &str) -> anyhow::Result<ScratchFile> {
        ScratchFile::new(suffixed(&self.path, &format!(".{name}")))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn url(&self) -> String {
        format!("sqlite:{}", self.path.display())
    }

    /// Removes what is here.
    pub(super) fn clear(&self) {
        for companion in COMPANIONS {
            // What is not there need not go; what cannot go shows at the next open.
            let _ = fs::remove_file(suffixed(&self.path, companion));
        }
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        self.clear();
    }
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// A file that grows by one block at a time, each forced to the disk: what one commit costs at least.
pub(super) struct Disk {
    file: File,
    /// Removes the file in the end.
    _place: ScratchFile,
}

/// How much one append writes, in bytes.
const BLOCK: usize = 4096;

impl Disk {
    /// A new file.
    pub(super) fn at(place: ScratchFile) -> anyhow::Result<Disk> {
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(place.path())?;
        Ok(Disk { file, _place: place })
    }

    /// Appends one block and waits until the disk has it.
    pub(super) fn append(&mut self) -> anyhow::Result<Duration> {
        let start = tick();
        self.file.write_all(&[7; BLOCK])?;
        self.file.sync_data()?;
        Ok(start.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_with_something_in_it_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.db");
        fs::write(&path, "precious").unwrap();
        let error = ScratchFile::at(&format!("sqlite:{}", path.display())).err().unwrap();
        assert!(error.to_string().contains("is not empty"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert!(ScratchFile::at("sqlite::memory:").is_err());
        assert!(ScratchFile::at("mysql://x").is_err());
    }
}
