//! Planting bugs in a copy of the sources, to see that the simulation catches them.

mod list;
mod queues;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

pub use list::{Edit, Mutant};

use crate::scenario::{Size, StoreKind};

/// Where the copies and what is built of them are, below the build directory.
const PLACE: &str = "target/mutants";

/// How a bug was met.
#[derive(Clone, Debug)]
pub enum Catch {
    /// These lines tell which seed broke which promise.
    Caught(Vec<String>),
    /// It lived through all its seeds.
    Missed,
}

/// All bugs of the lists.
pub fn mutants() -> impl Iterator<Item = &'static Mutant> {
    list::MUTANTS.iter().chain(queues::MUTANTS)
}

/// The root of the repository that this was built from.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A copy of the sources, in which one bug after the other is planted.
pub struct Greenhouse {
    tree: PathBuf,
    build: PathBuf,
}

impl Greenhouse {
    /// Copies what Git knows of the repository, changes that are not committed included.
    ///
    /// # Errors
    /// Where there is no Git, or no room.
    pub fn new(repository: &Path) -> anyhow::Result<Greenhouse> {
        let place = repository.join(PLACE);
        let (tree, build) = (place.join("tree"), place.join("build"));
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(repository)
            .output()
            .context("git ls-files")?;
        ensure!(
            listed.status.success(),
            "git ls-files failed; the bugs are planted in a Git checkout"
        );
        for name in String::from_utf8(listed.stdout)?.split_terminator('\0') {
            let (from, to) = (repository.join(name), tree.join(name));
            if !from.is_file() {
                continue;
            }
            let text = std::fs::read(&from)?;
            // What is the same already keeps its time, so that cargo builds only what has changed.
            if std::fs::read(&to).ok().as_ref() != Some(&text) {
                std::fs::create_dir_all(to.parent().context("a file without a directory")?)?;
                std::fs::write(&to, text)?;
            }
        }
        Ok(Greenhouse { tree, build })
    }

    /// Plants a bug, lives through its seeds, and takes it out again.
    ///
    /// # Errors
    /// When the code has changed so that the bug cannot be planted, or what is planted does not build.
    pub fn grow(&self, mutant: &Mutant) -> anyhow::Result<Catch> {
        let mut before: Vec<(PathBuf, String)> = Vec::new();
        for edit in mutant.edits {
            let path = self.tree.join(edit.file);
            let text = std::fs::read_to_string(&path)?;
            let planted = plant(&text, edit).with_context(|| format!("{}: {}", mutant.name, edit.file))?;
            before.push((path.clone(), text));
            std::fs::write(path, planted)?;
        }
        let caught = self.judge(mutant);
        for (path, text) in before.into_iter().rev() {
            std::fs::write(path, text)?;
        }
        caught
    }

    fn judge(&self, mutant: &Mutant) -> anyhow::Result<Catch> {
        let built = Command::new("cargo")
            .args(["build", "--quiet", "--package", "pensum-sim"])
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.build)
            .env("RUSTFLAGS", "--cap-lints warn")
            .output()?;
        ensure!(
            built.status.success(),
            "{} does not build:\n{}",
            mutant.name,
            String::from_utf8_lossy(&built.stderr)
        );
        let store = match mutant.store {
            StoreKind::Model => "model",
            StoreKind::Sqlite => "sqlite",
        };
        let size = match mutant.size {
            Size::Small => "small",
            Size::Large => "large",
        };
        let lived = Command::new(self.build.join("debug/pensum-sim"))
            .args(["--from", "1", "--seeds", &mutant.seeds.to_string()])
            .args(["--store", store, "--size", size])
            .output()?;
        if lived.status.success() {
            return Ok(Catch::Missed);
        }
        let said = String::from_utf8_lossy(&lived.stdout).into_owned() + &String::from_utf8_lossy(&lived.stderr);
        let is_news = |line: &&str| {
            line.starts_with("seed ") && line.ends_with(':') || line.starts_with("  ") || line.contains("panicked")
        };
        Ok(Catch::Caught(
            said.lines().filter(is_news).take(2).map(str::to_owned).collect(),
        ))
    }
}

/// The text with the bug in it.
///
/// # Errors
/// When what is to be replaced is not there, or more than once.
pub fn plant(text: &str, edit: &Edit) -> anyhow::Result<String> {
    let found = text.matches(edit.find).count();
    ensure!(found == 1, "`{}` is there {found} times", edit.find);
    Ok(text.replacen(edit.find, edit.replace, 1))
}
