//! Commands in cgroups of their own, where this test process can have any; `process.rs` runs the same way there.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pensum_engine::process::{CommandSpec, Enforcement, ExitReason, Process, enforcement, use_cgroups};
use rustix::fs::{Advice, fadvise};
use serde_json::json;

use crate::process::{eventually, lives, python, run, sh, start};

/// The directory of the commands' cgroups; `None`, with a line that says why, where the machine has none for this process.
#[expect(clippy::print_stdout, reason = "a test that skips itself says so")]
fn cgroups() -> Option<&'static Path> {
    match use_cgroups() {
        Ok(directory) => Some(directory),
        Err(why) => {
            assert_eq!(enforcement(), Enforcement::Sampled);
            println!("skipped: {why}");
            None
        }
    }
}

/// The cgroups of commands that are there now.
fn present(directory: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    let cgroups = entries.filter(|entry| entry.file_type().unwrap().is_dir() && entry.file_name() != "node");
    cgroups.map(|entry| entry.path()).collect()
}

/// The cgroup of a process.
fn cgroup_of(pid: i32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
async fn a_tree_at_its_limit_of_memory_is_killed_whole_by_the_kernel_and_its_neighbours_go_on() {
    if cgroups().is_none() {
        return;
    }
    let neighbour = start(&sh("sleep 60"));
    let grow = "held = []\nwhile True: held.append(bytearray(b'x' * (1 << 20)))";
    let mut spec = sh(&format!(
        "setsid -f sleep 60 & echo $$; sleep 60 & python3 -c \"{grow}\"; echo survived"
    ));
    spec.limits.memory = Some(64 << 20);
    let (exit, lines) = run(&spec).await;
    assert_eq!(
        (exit.reason, exit.signal_name),
        (ExitReason::MemoryExceeded, Some("SIGKILL"))
    );
    assert_eq!(lines.len(), 1, "the first process did not outlive its child: {lines:?}");
    let megabytes = exit.usage.memory_mb;
    assert!(
        (50.0..80.0).contains(&megabytes),
        "it had no more than its limit and its programs: {megabytes}"
    );
    assert!(lives(neighbour.handle.pid().cast_signed()));
    neighbour.handle.kill().await;
    assert_eq!(neighbour.end().await.reason, ExitReason::Signalled);
}

#[tokio::test]
async fn a_first_process_that_allocates_at_once_does_not_outrun_its_limit() {
    if cgroups().is_none() {
        return;
    }
    // The kernel counts memory where it was used first: had this one begun before it was in its cgroup, some would be missing.
    let all = "bytearray(b'x' * (512 << 20))";
    for _ in 0..5 {
        let (exit, _) = run(&python(all, json!({"memory": "32MiB"}))).await;
        assert_eq!(exit.reason, ExitReason::MemoryExceeded);
        // Its programs and libraries, some of which others had read before, are counted there.
        assert!(exit.usage.memory_mb < 64.0, "{:?}", exit.usage);
    }
}

#[tokio::test]
async fn what_the_kernel_keeps_of_files_is_no_memory_of_the_command() {
    if cgroups().is_none() {
        return;
    }
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut files = Vec::new();
    for number in 1..=4 {
        let mut file = fs::File::create(place.path().join(number.to_string())).unwrap();
        file.write_all(&vec![7; 12 << 20]).unwrap();
        file.sync_all().unwrap();
        files.push(file);
    }
    let mut spec = sh("cat 1 2 3 4 > /dev/null; sleep 0.2; cat 1 2 3 4 > /dev/null");
    spec.cwd = Some(place.path().to_owned());
    for limit in [None, Some(32 << 20)] {
        for file in &files {
            // The kernel lets go of it, so that it is the command that reads it from the disk.
            fadvise(file, 0, None, Advice::DontNeed).unwrap();
        }
        spec.limits.memory = limit;
        let (exit, _) = run(&spec).await;
        assert!(exit.success(), "the kernel lets go of files before it kills: {exit:?}");
        assert!(exit.usage.memory_mb < 24.0, "{:?}", exit.usage);
        let read = exit.usage.read_mb.unwrap();
        assert!(read >= 48.0, "{:?}", exit.usage);
    }
}

#[tokio::test]
async fn a_daemon_without_the_mark_is_gone_when_wait_returns() {
    if cgroups().is_none() {
        return;
    }
    // Twice away from its parents, in a session of its own and without a trace in its environment: nothing but the cgroup knows it.
    let mut running = start(&sh(
        "env -i /usr/bin/setsid -f /bin/sh -c 'echo $$; exec sleep 60 >/dev/null 2>&1'; exit 4",
    ));
    let daemon = running.pid_line().await;
    assert_eq!(running.end().await.code, Some(4));
    assert!(!lives(daemon));
    let mut running = start(&sh(
        "env -i /usr/bin/setsid -f /bin/sh -c 'echo $$; exec sleep 60 >/dev/null 2>&1'; sleep 60",
    ));
    let daemon = running.pid_line().await;
    running.exit.abort();
    eventually("the daemon is killed with what was dropped", || !lives(daemon)).await;
}

#[tokio::test]
async fn a_member_that_was_moved_out_is_brought_back() {
    let Some(directory) = cgroups() else { return };
    let mut running = start(&sh("sleep 60 & echo $!; wait"));
    let member = running.pid_line().await;
    let first = running.handle.pid().cast_signed();
    let apart = |pid: i32| cgroup_of(pid) != cgroup_of(std::process::id().cast_signed());
    eventually("the tree is in its cgroup", || apart(first) && apart(member)).await;
    let home = cgroup_of(first);
    assert_eq!(cgroup_of(member), home);
    let elsewhere = directory.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    for pid in [member, first] {
        fs::write(elsewhere.join("cgroup.procs"), pid.to_string()).unwrap();
    }
    eventually("both are back", || {
        [member, first].into_iter().all(|pid| cgroup_of(pid) == home)
    })
    .await;
    running.handle.kill().await;
    running.end().await;
    fs::remove_dir(&elsewhere).unwrap();
}

#[tokio::test]
async fn cgroups_that_a_command_makes_count_with_it_and_go_with_it() {
    let Some(directory) = cgroups() else { return };
    // Where its memory is bounded it begins within its cgroup.
    let script = "
import os, time
own = [line for line in open('/proc/self/cgroup') if line.startswith('0::')][0].strip()[4:]
place = os.path.join(os.environ['MOUNT'], own, 'inner', 'most')
os.makedirs(place)
with open(place + '/cgroup.procs', 'w') as file: file.write('0')
print(os.getpid(), flush=True)
while time.process_time() < 0.3: pass
time.sleep(60)";
    let mut spec = python(script, json!({"memory": "256MiB"}));
    let own = cgroup_of(std::process::id().cast_signed());
    let base = own.rsplit_once("/pensum-").map_or("", |(base, _)| base);
    let mount = directory
        .parent()
        .unwrap()
        .to_str()
        .unwrap()
        .strip_suffix(base)
        .unwrap();
    spec.env.insert("MOUNT".to_owned(), mount.to_owned());
    let before = present(directory);
    let mut running = start(&spec);
    let pid = running.pid_line().await;
    eventually("its time is counted", || running.handle.usage().cpu_seconds > 0.3).await;
    assert!(cgroup_of(pid).ends_with("/inner/most"), "{}", cgroup_of(pid));
    running.handle.kill().await;
    assert_eq!(running.end().await.reason, ExitReason::Signalled);
    assert!(present(directory).is_subset(&before), "{:?}", present(directory));
}

#[tokio::test]
async fn no_cgroup_outlives_its_command() {
    let Some(directory) = cgroups() else { return };
    let ours = |spec: &CommandSpec| {
        let before = present(directory);
        let process = Process::spawn(spec, [], |_, _| {});
        let cgroups: Vec<PathBuf> = present(directory).difference(&before).cloned().collect();
        (process, cgroups)
    };
    let gone = |cgroups: &[PathBuf]| cgroups.iter().all(|path| !path.exists());

    let (process, cgroups) = ours(&sh("exit 3"));
    assert!(!cgroups.is_empty());
    assert_eq!(process.unwrap().wait().await.code, Some(3));
    assert!(gone(&cgroups), "{cgroups:?}");

    let (process, cgroups) = ours(&sh("setsid -f sleep 60; sleep 60"));
    drop(process);
    eventually("that of a command that was dropped", || gone(&cgroups)).await;

    let (process, cgroups) = ours(&CommandSpec {
        args: vec!["x".repeat(4 << 20)],
        ..CommandSpec::new("true")
    });
    assert!(process.is_err());
    assert!(gone(&cgroups), "{cgroups:?}");

    let many: Vec<_> = (0..30).map(|_| tokio::spawn(run_one())).collect();
    for one in many {
        assert!(gone(&[one.await.unwrap()]));
    }
}

/// Runs a command in a cgroup that it names itself, and returns that cgroup's directory.
async fn run_one() -> PathBuf {
    let mut spec = sh("cat /proc/self/cgroup");
    spec.limits.memory = Some(64 << 20);
    let (exit, _) = run(&spec).await;
    let name = exit.stdout.trim().rsplit('/').next().unwrap().to_owned();
    assert!(
        name.parse::<u64>().is_ok(),
        "it did not begin in a cgroup of its own: {}",
        exit.stdout
    );
    use_cgroups().unwrap().join(name)
}

#[tokio::test]
async fn processor_time_between_two_looks_is_counted() {
    if cgroups().is_none() {
        return;
    }
    // Short-lived children of a daemon: each has ended and was waited for by nobody in the tree before a look could see it.
    let burn = "import time\nwhile time.process_time() < 0.02: pass";
    let script =
        format!("sleep 0.1; for i in 1 2 3 4 5 6 7 8 9 10; do setsid -f python3 -S -c \"{burn}\"; done; sleep 1");
    let (exit, _) = run(&sh(&script)).await;
    assert!(exit.usage.cpu_seconds >= 0.2, "{:?}", exit.usage);
}

#[tokio::test]
async fn a_command_can_be_paused_before_it_has_come_to_its_cgroup() {
    if cgroups().is_none() {
        return;
    }
    for _ in 0..10 {
        let mut spec = sh("echo up; sleep 60");
        spec.limits.memory = Some(64 << 20);
        let running = start(&spec);
        running.handle.pause().await;
        assert!(running.handle.is_paused());
        let first = running.handle.pid().cast_signed();
        // Time in which it would go on if it were let go all the same.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let stat = fs::read_to_string(format!("/proc/{first}/stat")).unwrap();
        assert!(stat.contains(") T "), "{stat}");
        running.handle.resume().await;
        assert!(running.handle.stop(Duration::from_secs(20)).await.survivors.is_empty());
        running.end().await;
    }
}
