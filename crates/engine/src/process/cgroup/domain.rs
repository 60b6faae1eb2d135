//! The cgroups of this process: found, taken over, and cleared of what dead processes left.

use std::fs;
use std::io;
use std::io::ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::parse::{Mount, cgroup_of, in_version_1, lists, mounts};
use super::{DELEGATE, NotDelegated, write};
use crate::process::table::{self, OWN};

/// Naps between attempts to remove a cgroup, in milliseconds: the last of its processes may still be on their way out.
const REMOVE_NAPS_MS: [u64; 8] = [1, 2, 5, 10, 20, 50, 100, 200];
/// How deep the cgroups are removed that a command made below its own.
const DEPTH_MAX: usize = 16;
/// systemd marks cgroups that it delegates with one of these attributes: the first for root alone, the second, newer, for all.
const DELEGATION_MARKS: [&str; 2] = ["trusted.delegate", "user.delegate"];

/// The cgroup below which the commands of this process get theirs.
pub(super) struct Domain {
    /// Its directory.
    directory: PathBuf,
    /// Its name in the hierarchy, as `/proc/PID/cgroup` has it.
    cgroup: PathBuf,
    /// Names cgroups of commands.
    next: AtomicU64,
    /// Cgroups of commands that could not be removed yet.
    left: Mutex<Vec<PathBuf>>,
}

impl Domain {
    /// Makes a cgroup for this process and its commands, and moves it there.
    pub(super) fn claim() -> Result<Domain, NotDelegated> {
        let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let place = Place::find(&text)?;
        place.check(&text)?;
        place.clear();
        place.take_over()
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A new cgroup: its directory and its name.
    pub(super) fn add(&self) -> io::Result<(PathBuf, PathBuf)> {
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let directory = self.directory.join(&name);
        fs::create_dir(&directory)?;
        Ok((directory, self.cgroup.join(name)))
    }

    /// Removes a cgroup without processes, and those below it; later, if the last of them have not gone yet. Blocks for up to half a
    /// second where `patient`.
    pub(super) fn remove(&self, directory: PathBuf, patient: bool) {
        let mut left = std::mem::take(&mut *self.left.lock());
        left.retain(|directory| remove(directory, 0).is_err());
        let removed = if patient {
            remove_patiently(&directory)
        } else {
            remove(&directory, 0)
        };
        if let Err(error) = removed {
            tracing::debug!(directory = %directory.display(), %error, "a cgroup is removed later");
            left.push(directory);
        }
        self.left.lock().append(&mut left);
    }
}

/// The cgroup that this process is in.
struct Place {
    directory: PathBuf,
    cgroup: PathBuf,
    /// It is the root of the whole hierarchy, where processes and cgroups may be side by side.
    root: bool,
}

impl Place {
    fn find(text: &str) -> Result<Place, NotDelegated> {
        let mountinfo = fs::read("/proc/self/mountinfo").unwrap_or_default();
        let mounts = mounts(&mountinfo);
        let cgroup = cgroup_of(text)
            .filter(|_| !mounts.is_empty())
            .ok_or(NotDelegated::NotMounted)?;
        let seen = |mount: &Mount| {
            mount
                .directory(cgroup)
                .filter(|path| path.join("cgroup.procs").exists())
        };
        let directory = mounts.iter().find_map(seen).ok_or_else(|| NotDelegated::OutOfSight {
            path: cgroup.to_owned(),
        })?;
        Ok(Place {
            root: !directory.join("cgroup.type").exists(),
            cgroup: cgroup.into(),
            directory,
        })
    }

    /// Whether it was given to this process to manage, and can be.
    fn check(&self, text: &str) -> Result<(), NotDelegated> {
        let controllers = fs::read_to_string(self.directory.join("cgroup.controllers")).unwrap_or_default();
        if !lists(&controllers, "memory") {
            let help = if in_version_1(text, "memory") {
                "memory is under cgroup v1 here; boot with systemd.unified_cgroup_hierarchy=1"
            } else {
                "with systemd, set Delegate=memory io in the unit; elsewhere, enable it in cgroup.subtree_control of the cgroup above"
            };
            return Err(NotDelegated::NoMemoryController {
                directory: self.directory.clone(),
                help,
            });
        }
        // Root can make cgroups anywhere, so that it can is no sign that it may.
        if rustix::process::geteuid().is_root() && Path::new("/run/systemd/system").exists() && !self.is_marked() {
            return Err(NotDelegated::Kept {
                directory: self.directory.clone(),
            });
        }
        if self.root {
            return Ok(());
        }
        let members =
            fs::read_to_string(self.directory.join("cgroup.procs")).map_err(|error| self.refused("reading", error))?;
        let other = members
            .lines()
            .filter_map(|line| line.parse().ok())
            .find(|pid: &i32| *pid != OWN.pid);
        match other {
            Some(pid) => Err(self.not_alone(pid)),
            None => Ok(()),
        }
    }

    fn is_marked(&self) -> bool {
        DELEGATION_MARKS.iter().any(|mark| {
            let mut value = [0; 1];
            matches!(rustix::fs::getxattr(&self.directory, *mark, &mut value), Ok(1)) && value == *b"1"
        })
    }

    fn not_alone(&self, pid: i32) -> NotDelegated {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        NotDelegated::NotAlone {
            directory: self.directory.clone(),
            pid,
            name: name.trim().to_owned(),
        }
    }

    /// Kills and removes what processes left here that have died.
    fn clear(&self) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let Some((namespace, pid, start)) = entry.file_name().to_str().and_then(owner_of) else {
                continue;
            };
            let lives = table::entry(pid).is_some_and(|other| other.start == start && other.alive());
            if namespace != OWN.namespace || lives {
                continue;
            }
            let directory = entry.path();
            tracing::debug!(directory = %directory.display(), "removing the cgroup of a process that has died");
            let _ = write(&directory.join("cgroup.kill"), "1");
            if let Err(error) = remove_patiently(&directory) {
                tracing::warn!(directory = %directory.display(), %error, "the cgroup of a process that has died cannot be removed");
            }
        }
    }

    /// Puts a cgroup here for this process and its commands. On an error everything is as it was.
    fn take_over(self) -> Result<Domain, NotDelegated> {
        let name = format!("pensum-{}-{}-{}", OWN.namespace, OWN.pid, OWN.start);
        let domain = self.directory.join(&name);
        fs::create_dir(&domain).map_err(|error| self.refused("making a cgroup", error))?;
        let result = self.divide(&domain);
        if let Err(error) = result {
            let _ = remove_patiently(&domain);
            return Err(error);
        }
        Ok(Domain {
            cgroup: self.cgroup.join(name),
            directory: domain,
            next: AtomicU64::new(1),
            left: Mutex::default(),
        })
    }

    /// Moves this process out of the way, and lets the cgroups of commands control memory.
    fn divide(&self, domain: &Path) -> Result<(), NotDelegated> {
        let own = OWN.pid.to_string();
        let back = || {
            if !self.root {
                let _ = write(&self.directory.join("cgroup.procs"), &own);
            }
        };
        if !self.root {
            let leaf = domain.join("node");
            fs::create_dir(&leaf).map_err(|error| self.refused("making a cgroup", error))?;
            write(&leaf.join("cgroup.procs"), &own).map_err(|error| self.refused("moving into a cgroup", error))?;
        }
        let control = self.directory.join("cgroup.subtree_control");
        let before = fs::read_to_string(&control).unwrap_or_default();
        if let Err(error) = write(&control, "+memory") {
            back();
            return Err(
                match Errno::from_io_error(&error)
                    .filter(|errno| *errno == Errno::BUSY)
                    .and_then(|_| self.other())
                {
                    Some(pid) => self.not_alone(pid),
                    None => self.refused("enabling the memory controller", error),
                },
            );
        }
        // Without it, what is moved from and to storage is read from `/proc` alone.
        let _ = write(&control, "+io");
        let below = domain.join("cgroup.subtree_control");
        if let Err(error) = write(&below, "+memory") {
            for controller in ["memory", "io"].into_iter().filter(|name| !lists(&before, name)) {
                let _ = write(&control, &format!("-{controller}"));
            }
            back();
            return Err(self.refused("enabling the memory controller", error));
        }
        let _ = write(&below, "+io");
        Ok(())
    }

    /// A process that is here and is not this one.
    fn other(&self) -> Option<i32> {
        let members = fs::read_to_string(self.directory.join("cgroup.procs")).ok()?;
        members
            .lines()
            .filter_map(|line| line.parse().ok())
            .find(|pid| *pid != OWN.pid)
    }

    fn refused(&self, what: &str, source: io::Error) -> NotDelegated {
        let help = match Errno::from_io_error(&source) {
            Some(Errno::ROFS) => {
                "it is mounted read-only: with systemd, set ProtectControlGroups=no; with Docker, pass --security-opt writable-cgroups=true"
            }
            Some(Errno::ACCESS | Errno::PERM) => DELEGATE,
            _ => "see cgroups(7)",
        };
        NotDelegated::Refused {
            what: format!("{what} in {}", self.directory.display()),
            source: Arc::new(source),
            help,
        }
    }
}

/// The process that a cgroup belongs to, by its name: the namespace of its id, the id, and when it started.
fn owner_of(name: &str) -> Option<(u64, i32, u64)> {
    let mut parts = name.strip_prefix("pensum-")?.split('-');
    let owner = (
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
    );
    parts.next().is_none().then_some(owner)
}

fn remove_patiently(directory: &Path) -> io::Result<()> {
    for nap in REMOVE_NAPS_MS {
        if remove(directory, 0).is_ok() {
            return Ok(());
        }
        sleep(Duration::from_millis(nap));
    }
    remove(directory, 0)
}

/// Removes a cgroup and those below it. Only directories can be removed there; files go with theirs.
fn remove(directory: &Path, depth: usize) -> io::Result<()> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == NotFound => return Ok(()),
        Err(error) if !matches!(error.kind(), ResourceBusy | DirectoryNotEmpty) || depth == DEPTH_MAX => {
            return Err(error);
        }
        Ok(()) => return Ok(()),
        Err(_) => {}
    }
    for entry in fs::read_dir(directory)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path(), depth + 1)?;
        }
    }
    fs::remove_dir(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_cgroup_says_whose_it_is() {
        for (name, expected) in [
            ("pensum-4026531836-17-990", Some((4_026_531_836, 17, 990))),
            ("pensum-1-2", None),
            ("pensum-1-2-3-4", None),
            ("pensum-node", None),
            ("pensum.service", None),
            ("1-2-3", None),
        ] {
            assert_eq!(owner_of(name), expected, "{name}");
        }
    }

    /// A directory that looks like a cgroup, with these files.
    fn place(files: &[(&str, &str)]) -> (tempfile::TempDir, Place) {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let place = Place {
            directory: directory.path().to_owned(),
            cgroup: "/x".into(),
            root: false,
        };
        (directory, place)
    }

    #[test]
    fn a_cgroup_that_cannot_be_used_says_why_and_what_to_do() {
        let own = format!("{}\n", OWN.pid);
        let shared = format!("{}\n1\n", OWN.pid);
        for (controllers, members, version_1, expected) in [
            ("cpuset cpu io memory pids\n", own.as_str(), "0::/x\n", None),
            ("cpu io\n", own.as_str(), "0::/x\n", Some("Delegate=memory io")),
            (
                "\n",
                own.as_str(),
                "4:memory:/y\n0::/x\n",
                Some("systemd.unified_cgroup_hierarchy=1"),
            ),
            ("memory\n", shared.as_str(), "0::/x\n", Some("process 1 (")),
        ] {
            let (_directory, place) = place(&[("cgroup.controllers", controllers), ("cgroup.procs", members)]);
            // Where systemd runs and this user is root, its mark is missing.
            if Path::new("/run/systemd/system").exists() && lists(controllers, "memory") {
                continue;
            }
            match (place.check(version_1), expected) {
                (Ok(()), None) => {}
                (Err(why), Some(part)) => assert!(why.to_string().contains(part), "{why}"),
                (result, _) => panic!("{controllers}: {result:?}"),
            }
        }
    }

    #[test]
    fn a_cgroup_that_refuses_is_left_as_it_was() {
        for files in [&[][..], &[("cgroup.subtree_control", "")]] {
            let (directory, place) = place(files);
            let error = place.take_over().err().unwrap();
            assert!(matches!(error, NotDelegated::Refused { .. }), "{error}");
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), files.len(), "{error}");
        }
    }

    #[test]
    fn what_dead_processes_left_is_removed() {
        let (directory, place) = place(&[]);
        let add = |name: String| fs::create_dir_all(directory.path().join(name)).unwrap();
        let living = format!("pensum-{}-{}-{}", OWN.namespace, OWN.pid, OWN.start);
        let foreign = format!("pensum-{}-{}-{}", OWN.namespace + 1, i32::MAX, OWN.start);
        add(format!(
            "pensum-{}-{}-{}/3/deeper",
            OWN.namespace,
            OWN.pid,
            OWN.start + 1
        ));
        add(format!("pensum-{}-{}-{}/node", OWN.namespace, i32::MAX, OWN.start));
        add(format!("{living}/3"));
        add(format!("{foreign}/node"));
        add("others/3".to_owned());
        place.clear();
        let mut left: Vec<String> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut expected = vec!["others".to_owned(), foreign, living];
        expected.sort();
        assert_eq!(left, expected);
    }
}
