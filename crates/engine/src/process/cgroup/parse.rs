//! What the files of cgroup v2, and those of `/proc` about it, say; see cgroups(7) and the kernel's `cgroup-v2.rst`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use crate::process::table::Transfer;

/// A mount of the cgroup v2 file system.
#[derive(Debug, PartialEq)]
pub(super) struct Mount {
    /// The cgroup that is mounted.
    root: PathBuf,
    /// Where.
    point: PathBuf,
}

impl Mount {
    /// The directory of a cgroup; `None` when it is not below the mount.
    pub(super) fn directory(&self, cgroup: &str) -> Option<PathBuf> {
        let below = Path::new(cgroup).strip_prefix(&self.root).ok()?;
        // Outside of the namespace's root, paths begin with `/..`.
        let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        plain.then(|| {
            below
                .components()
                .fold(self.point.clone(), |path, part| path.join(part))
        })
    }
}

/// The mounts of cgroup v2 that `/proc/self/mountinfo` lists.
pub(super) fn mounts(mountinfo: &[u8]) -> Vec<Mount> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(mount).collect()
}

/// A line: `31 23 0:28 ROOT POINT rw,relatime optional fields - cgroup2 cgroup2 rw`.
fn mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = unescaped(fields.nth(3)?);
    let point = unescaped(fields.next()?);
    fields.find(|field| *field == b"-")?;
    (fields.next()? == b"cgroup2").then_some(Mount { root, point })
}

/// Spaces, tabs, line ends and backslashes are written as three octal digits after a backslash.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| after.get(..3)).flatten();
        let value = octal.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(value.unwrap_or(*first));
        rest = if value.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(bytes).into()
}

/// The cgroup that `/proc/PID/cgroup` names in the hierarchy of version 2.
pub(super) fn cgroup_of(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    // Somebody removed the cgroup while the process was in it.
    Some(path.strip_suffix(" (deleted)").unwrap_or(path))
}

/// Whether `/proc/PID/cgroup` names a controller among those of version 1.
pub(super) fn in_version_1(text: &str, controller: &str) -> bool {
    let of_line = |line: &str| {
        line.split(':')
            .nth(1)
            .is_some_and(|names| lists(&names.replace(',', " "), controller))
    };
    text.lines().any(of_line)
}

/// Whether a list of words has this one.
pub(super) fn lists(text: &str, word: &str) -> bool {
    text.split_ascii_whitespace().any(|other| other == word)
}

/// A figure of a file of lines `KEY FIGURE`, such as `memory.events`, `memory.stat` and `cpu.stat`.
pub(super) fn figure(text: &str, key: &str) -> Option<u64> {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    rest.trim().parse().ok()
}

/// The bytes that `io.stat` counts, of the devices that `counts` accepts by `MAJOR:MINOR`.
pub(super) fn transfer(text: &str, counts: impl Fn(&str) -> bool) -> Transfer {
    let of_line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let device = fields.next()?;
        let mut transfer = Transfer::default();
        for (name, value) in fields.filter_map(|field| field.split_once('=')) {
            match name {
                "rbytes" => transfer.read = value.parse().ok()?,
                "wbytes" => transfer.written = value.parse().ok()?,
                _ => {}
            }
        }
        counts(device).then_some(transfer)
    };
    text.lines()
        .filter_map(of_line)
        .fold(Transfer::default(), Transfer::plus)
}

/// Whether one cgroup is another, or below it.
pub(super) fn within(cgroup: &str, other: &Path) -> bool {
    Path::new(std::ffi::OsStr::from_bytes(cgroup.as_bytes())).starts_with(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_version_2_are_found_among_others() {
        for (line, expected) in [
            (
                "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate",
                Some(("/", "/sys/fs/cgroup")),
            ),
            (
                "35 24 0:30 / /sys/fs/cgroup rw shared:9 master:2 - cgroup2 none rw",
                Some(("/", "/sys/fs/cgroup")),
            ),
            (
                "35 24 0:30 /a\\040b /my\\011c\\134d rw - cgroup2 cgroup2 rw",
                Some(("/a b", "/my\tc\\d")),
            ),
            (
                "35 24 0:30 /\\04 /x\\9zz rw - cgroup2 cgroup2 rw",
                Some(("/\\04", "/x\\9zz")),
            ),
            ("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", None),
            ("31 23 0:28 / /cgroup2 rw - tmpfs cgroup2 rw", None),
            ("31 23 0:28 / /cgroup2 rw", None),
            ("", None),
        ] {
            let expected = expected.map(|(root, point)| Mount {
                root: root.into(),
                point: point.into(),
            });
            assert_eq!(mounts(line.as_bytes()), Vec::from_iter(expected), "{line}");
        }
    }

    #[test]
    fn a_cgroup_has_a_directory_where_its_mount_shows_it() {
        for (root, cgroup, expected) in [
            ("/", "/", Some("/m")),
            (
                "/",
                "/system.slice/pensum.service",
                Some("/m/system.slice/pensum.service"),
            ),
            ("/docker/7", "/docker/7", Some("/m")),
            ("/docker/7", "/docker/7/a", Some("/m/a")),
            ("/docker/7", "/docker/77", None),
            ("/docker/7", "/", None),
            ("/", "/../other", None),
        ] {
            let mount = Mount {
                root: root.into(),
                point: "/m".into(),
            };
            assert_eq!(mount.directory(cgroup), expected.map(PathBuf::from), "{root} {cgroup}");
        }
    }

    #[test]
    fn the_cgroup_of_a_process_is_on_the_line_of_version_2() {
        for (text, expected) in [
            ("0::/user.slice/a:b\n", Some("/user.slice/a:b")),
            ("4:memory:/x\n1:name=systemd:/y\n0::/\n", Some("/")),
            ("0::/gone (deleted)\n", Some("/gone")),
            ("4:memory:/x\n", None),
            ("", None),
        ] {
            assert_eq!(cgroup_of(text), expected, "{text}");
        }
        assert!(in_version_1("5:cpu,memory:/\n0::/\n", "memory"));
        assert!(!in_version_1("1:name=systemd:/memory\n0::/memory\n", "memory"));
        assert!(within("/a/b/c", Path::new("/a/b")) && within("/a/b", Path::new("/a/b")));
        assert!(!within("/a/bc", Path::new("/a/b")) && !within("/a", Path::new("/a/b")));
    }

    #[test]
    fn figures_are_found_by_their_whole_name() {
        let events = "low 0\nhigh 0\nmax 31\noom 2\noom_kill 5\noom_group_kill 1\n";
        let cpu = "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\n";
        for (text, key, expected) in [
            (events, "oom", Some(2)),
            (events, "oom_kill", Some(5)),
            (events, "oom_group", None),
            (cpu, "usage_usec", Some(1_234_567)),
            (cpu, "nr_periods", None),
            ("anon 4096\nfile 8192\n", "file", Some(8_192)),
            ("oom many\n", "oom", None),
            ("oom\n", "oom", None),
            ("", "oom", None),
        ] {
            assert_eq!(figure(text, key), expected, "{key} in {text}");
        }
        assert!(lists("cpuset cpu io memory\n", "io") && !lists("cpuset cpu memory", "io"));
    }

    #[test]
    fn the_bytes_of_all_devices_that_count_are_added() {
        let all = |_: &str| true;
        for (text, read, written) in [
            (
                "8:0 rbytes=100 wbytes=20 rios=3 wios=1 dbytes=7 dios=1\n254:0 rbytes=1 wbytes=2 rios=1 wios=1\n",
                101,
                22,
            ),
            ("8:0 \n254:0 rbytes=1 wbytes=2\n", 1, 2),
            ("8:0 rbytes=x wbytes=2\n", 0, 0),
            ("8:0 cost.usage=5 rbytes=4\n", 4, 0),
            ("", 0, 0),
        ] {
            assert_eq!(transfer(text, all), Transfer { read, written }, "{text}");
        }
        let one = transfer("8:0 rbytes=1 wbytes=1\n253:0 rbytes=1 wbytes=1\n", |device| {
            device == "8:0"
        });
        assert_eq!(one, Transfer { read: 1, written: 1 });
    }
}
