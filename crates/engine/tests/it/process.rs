//! The subprocess runner with real subprocesses.

#![expect(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use pensum_engine::process::{
    CAPTURED_BYTES_MAX, CommandSpec, Exit, ExitReason, LINE_BYTES_MAX, MARK, Process, ProcessHandle, STDOUT_BYTES_MAX,
    SpawnError, Stopped, Stream, TRUNCATED_MARKER, use_cgroups,
};
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Long enough for anything that should happen at once on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn command(parameters: serde_json::Value) -> CommandSpec {
    CommandSpec::from_json(&parameters).unwrap()
}

pub(crate) fn sh(script: &str) -> CommandSpec {
    command(json!({"program": "sh", "args": ["-c", script]}))
}

pub(crate) fn python(script: &str, limits: serde_json::Value) -> CommandSpec {
    command(json!({"program": "python3", "args": ["-c", script], "limits": limits}))
}

/// A command under way: its control, its lines as they come, and its end.
pub(crate) struct Running {
    pub(crate) handle: ProcessHandle,
    lines: UnboundedReceiver<(Stream, String)>,
    pub(crate) exit: JoinHandle<Exit>,
}

/// The directory of the cgroups that commands of this test process get, where it can have any.
///
/// Every test of commands asks, so that all of them see the kernel enforce limits where it can.
pub(crate) fn cgroups() -> Option<&'static Path> {
    use_cgroups().ok()
}

pub(crate) fn start(spec: &CommandSpec) -> Running {
    cgroups();
    let (send, lines) = unbounded_channel();
    let process = Process::spawn(spec, [], move |stream, line| drop(send.send((stream, line)))).unwrap();
    Running {
        handle: process.handle(),
        lines,
        exit: tokio::spawn(process.wait()),
    }
}

impl Running {
    pub(crate) async fn line(&mut self) -> String {
        tokio::time::timeout(SOON, self.lines.recv()).await.unwrap().unwrap().1
    }

    pub(crate) async fn pid_line(&mut self) -> i32 {
        self.line().await.trim().parse().unwrap()
    }

    pub(crate) async fn end(self) -> Exit {
        tokio::time::timeout(SOON, self.exit).await.unwrap().unwrap()
    }
}

pub(crate) async fn run(spec: &CommandSpec) -> (Exit, Vec<(Stream, String)>) {
    cgroups();
    let (send, mut lines) = unbounded_channel();
    let process = Process::spawn(spec, [], move |stream, line| drop(send.send((stream, line)))).unwrap();
    let exit = tokio::time::timeout(SOON, process.wait()).await.unwrap();
    let mut seen = Vec::new();
    while let Ok(line) = lines.try_recv() {
        seen.push(line);
    }
    (exit, seen)
}

/// Whether a process runs, sleeps or is stopped; one that only waits to be reaped is gone.
pub(crate) fn lives(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !matches!(stat.rsplit(") ").next().unwrap().as_bytes()[0], b'Z' | b'X'))
}

/// Clock ticks of processor time that a process used.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn an_exit_code_is_reported_as_it_is() {
    for code in [0, 1, 3, 255] {
        let (exit, _) = run(&sh(&format!("exit {code}"))).await;
        assert_eq!(
            (exit.code, exit.signal, exit.reason),
            (Some(code), None, ExitReason::Exited)
        );
        assert_eq!(exit.success(), code == 0);
    }
}

#[tokio::test]
async fn death_by_a_signal_is_reported_with_its_name() {
    for (number, name) in [(9, "SIGKILL"), (15, "SIGTERM"), (11, "SIGSEGV")] {
        let (exit, _) = run(&sh(&format!("kill -{number} $$"))).await;
        assert_eq!(
            (exit.code, exit.signal, exit.signal_name),
            (None, Some(number), Some(name))
        );
        assert_eq!(exit.reason, ExitReason::Signalled);
        assert!(!exit.success());
    }
}

#[tokio::test]
async fn output_is_captured_line_by_line_from_both_streams() {
    let (exit, lines) = run(&sh(r"printf 'one\r\ntwo\n\nlast'; printf 'bad\000\377\n' >&2")).await;
    let of = |wanted: Stream| -> Vec<&str> {
        lines
            .iter()
            .filter(|(stream, _)| *stream == wanted)
            .map(|(_, line)| line.as_str())
            .collect()
    };
    assert_eq!(of(Stream::Stdout), ["one", "two", "", "last"]);
    assert_eq!(of(Stream::Stderr), ["bad\u{FFFD}\u{FFFD}"]);
    assert_eq!(exit.stdout, "one\r\ntwo\n\nlast");
    assert!(!exit.stdout_truncated);
    assert_eq!(exit.stderr_tail, "bad\u{FFFD}\u{FFFD}\n");
}

#[tokio::test]
async fn lines_arrive_while_the_command_runs() {
    let mut running = start(&sh("echo ready; read answer; echo done"));
    assert_eq!(running.line().await, "ready");
    // Without input the read ends at once.
    assert_eq!(running.line().await, "done");
    assert!(running.end().await.success());
}

#[tokio::test]
async fn a_flood_of_output_is_cut_and_drained() {
    let script = "import sys\nfor _ in range(40000): sys.stdout.write('x'*99+'\\n'); sys.stderr.write('e'*99+'\\n')";
    let (exit, lines) = run(&python(script, json!(null))).await;
    assert_eq!(exit.code, Some(0), "the command was never blocked");
    assert!(exit.stdout_truncated);
    assert_eq!(exit.stdout.len(), STDOUT_BYTES_MAX);
    assert_eq!(lines.iter().filter(|(_, line)| line == TRUNCATED_MARKER).count(), 1);
    let kept: usize = lines
        .iter()
        .filter(|(_, line)| line != TRUNCATED_MARKER)
        .map(|(_, line)| line.len() + 1)
        .sum();
    assert!(kept <= CAPTURED_BYTES_MAX);
    assert_eq!(exit.output_dropped as usize, 8_000_000 - kept);
}

#[tokio::test]
async fn a_line_without_end_comes_in_pieces() {
    let (exit, lines) = run(&python("print('y'*100000, end='')", json!(null))).await;
    assert!(lines.iter().all(|(_, line)| line.len() <= LINE_BYTES_MAX));
    assert_eq!(lines.iter().map(|(_, line)| line.len()).sum::<usize>(), 100_000);
    assert_eq!(exit.stdout.len(), 100_000);
}

#[tokio::test]
async fn a_big_input_arrives_whole_and_input_nobody_reads_does_no_harm() {
    let input = "0123456789abcde\n".repeat(200_000);
    let mut spec = command(json!({"program": "wc", "args": ["-c"], "stdin": input}));
    let (exit, lines) = run(&spec).await;
    assert_eq!(exit.code, Some(0));
    assert_eq!(lines[0].1.trim(), "3200000");
    spec.program = "true".to_owned();
    assert!(run(&spec).await.0.success());
    // A command that gave its output away still gets its input.
    let file = tempfile::NamedTempFile::new().unwrap();
    let script = "exec >/dev/null 2>&1; sleep 0.05; cat > \"$OUT\"";
    let out = file.path().to_str().unwrap();
    let (exit, _) = run(&command(
        json!({"program": "sh", "args": ["-c", script], "env": {"OUT": out}, "stdin": input}),
    ))
    .await;
    assert!(exit.success());
    assert_eq!(file.as_file().metadata().unwrap().len(), 3_200_000);
}

#[tokio::test]
async fn only_the_allowed_environment_reaches_a_command() {
    // Cargo and nextest set many variables of this process that must not pass.
    assert!(std::env::vars().any(|(name, _)| name.starts_with("CARGO")));
    let mut spec = command(json!({"program": "env", "env": {"MINE": "yes", "PENSUM_TASK_ID": "forged"}}));
    spec.env.insert("LC_ALL".into(), "C".into());
    let extra = [("PENSUM_TASK_ID".to_owned(), "t1".to_owned())];
    let exit = Process::spawn(&spec, extra, |_, _| {}).unwrap().wait().await;
    let env: BTreeMap<&str, &str> = exit.stdout.lines().filter_map(|line| line.split_once('=')).collect();
    assert_eq!((env["MINE"], env["PENSUM_TASK_ID"], env["LC_ALL"]), ("yes", "t1", "C"));
    assert_eq!(env["PATH"], std::env::var("PATH").unwrap());
    let allowed = [
        "PATH",
        "HOME",
        "LANG",
        "TZ",
        "TMPDIR",
        "USER",
        "LOGNAME",
        "SHELL",
        "TERM",
        "MINE",
        "PENSUM_TASK_ID",
        MARK,
    ];
    for name in env.keys() {
        assert!(allowed.contains(name) || name.starts_with("LC_"), "{name} leaked");
    }
}

#[tokio::test]
async fn no_descriptor_of_this_process_reaches_a_command() {
    let _open = fs::File::open("/proc/self/stat").unwrap();
    // Descriptors that test runners hand down are inherited without close-on-exec, which makes them the harder case.
    let (exit, _) = run(&sh("ls /proc/$$/fd")).await;
    let mut numbers: Vec<&str> = exit.stdout.lines().collect();
    numbers.sort_unstable();
    assert_eq!(numbers, ["0", "1", "2"]);
}

#[tokio::test]
async fn a_command_that_cannot_start_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let plain = file("plain", "data", 0o644);
    let lost = file("lost", "#!/no/such/interpreter\n", 0o755);
    let bare = file("bare", "echo hello\n", 0o755);
    let here = directory.path().to_str().unwrap();
    for (parameters, expected) in [
        (json!({"program": "no-such-program"}), vec!["`no-such-program`", "PATH"]),
        (
            json!({"program": "/no/such/program"}),
            vec!["`/no/such/program`", "check the path"],
        ),
        (json!({"program": "ls -la"}), vec!["`ls -la`", "`args`"]),
        (json!({"program": plain}), vec!["plain", "chmod +x"]),
        (json!({"program": "./plain", "cwd": here}), vec!["./plain", "chmod +x"]),
        (
            json!({"program": "plain", "env": {"PATH": here}}),
            vec!["`plain`", "chmod +x"],
        ),
        (json!({"program": lost}), vec!["lost", "interpreter"]),
        (json!({"program": bare}), vec!["bare", "#!"]),
        (
            json!({"program": "ls", "cwd": "/no/such/place"}),
            vec!["/no/such/place", "does not exist"],
        ),
        (json!({"program": "ls", "cwd": plain}), vec!["plain", "not a directory"]),
    ] {
        let error = Process::spawn(&command(parameters.clone()), [], |_, _| {})
            .err()
            .unwrap();
        let text = error.to_string();
        assert!(expected.iter().all(|part| text.contains(part)), "{parameters}: {text}");
    }
    let error = Process::spawn(&CommandSpec::new(""), [], |_, _| {}).err().unwrap();
    assert!(matches!(error, SpawnError::Invalid(_)));
    let huge = CommandSpec {
        args: vec!["x".repeat(4 << 20)],
        ..CommandSpec::new("true")
    };
    assert!(matches!(
        Process::spawn(&huge, [], |_, _| {}),
        Err(SpawnError::TooLong { .. })
    ));
}

#[tokio::test]
async fn a_relative_program_counts_from_its_directory_and_keeps_its_name() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("bin")).unwrap();
    std::os::unix::fs::symlink("/bin/sh", directory.path().join("bin/tool")).unwrap();
    let here = directory.path().to_str().unwrap();
    for program in ["bin/tool", "./bin/tool"] {
        let (exit, _) = run(&command(
            json!({"program": program, "args": ["-c", "pwd; echo \"$0\""], "cwd": here}),
        ))
        .await;
        let real = fs::canonicalize(here).unwrap();
        assert_eq!(exit.stdout, format!("{}\n{program}\n", real.display()));
    }
}

#[tokio::test]
async fn a_grandchild_that_ignores_sigterm_is_gone_after_stop() {
    let mut running = start(&sh(
        "sh -c 'trap \"\" TERM; echo $$; while :; do sleep 0.05; done' & wait",
    ));
    let grandchild = running.pid_line().await;
    let stopped = running.handle.stop(Duration::from_millis(100)).await;
    assert!(!lives(grandchild));
    assert_eq!(
        stopped,
        Stopped {
            forced: true,
            survivors: Vec::new()
        }
    );
    assert_eq!(running.end().await.signal_name, Some("SIGTERM"));
}

#[tokio::test]
async fn a_grandchild_keeps_the_grace_of_a_stop_after_the_first_process_has_ended() {
    let script = "sh -c 'trap \"sleep 0.8; echo tidied; exit\" TERM; echo $$; while :; do sleep 0.02; done' & wait";
    let mut running = start(&sh(script));
    let grandchild = running.pid_line().await;
    let stopped = running.handle.stop(SOON).await;
    assert_eq!(
        stopped,
        Stopped {
            forced: false,
            survivors: Vec::new()
        }
    );
    assert!(!lives(grandchild));
    assert_eq!(running.end().await.stdout, format!("{grandchild}\ntidied\n"));
}

#[tokio::test]
async fn a_grandchild_in_a_session_of_its_own_is_gone_after_stop() {
    for setsid in ["setsid", "setsid -f"] {
        let mut running = start(&sh(&format!(
            "{setsid} sh -c 'trap \"\" TERM; echo $$; exec sleep 60' & echo x; wait; sleep 60"
        )));
        let first = running.line().await;
        let second = running.line().await;
        let grandchild: i32 = first.parse().or_else(|_| second.parse()).unwrap();
        running.handle.stop(Duration::from_millis(50)).await;
        assert!(!lives(grandchild), "{setsid}");
        running.end().await;
    }
}

#[tokio::test]
async fn a_daemon_left_behind_is_gone_when_wait_returns() {
    let mut running = start(&sh("setsid -f sh -c 'echo $$; exec sleep 60 >/dev/null 2>&1'; exit 4"));
    let daemon = running.pid_line().await;
    let exit = running.end().await;
    assert_eq!(exit.code, Some(4));
    assert!(!lives(daemon));
}

#[tokio::test]
async fn a_grandchild_that_holds_the_output_open_does_not_hang_wait() {
    let began = Instant::now();
    let (exit, lines) = run(&sh("sleep 60 & echo $!; exit 0")).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(exit.success());
    assert!(!lives(lines[0].1.parse().unwrap()));
}

#[tokio::test]
async fn output_written_just_after_the_first_process_ended_is_kept() {
    let (exit, _) = run(&sh("(sleep 0.15; echo late) & exit 0")).await;
    assert_eq!(exit.stdout, "late\n");
}

#[tokio::test]
async fn dropping_the_wait_kills_the_tree() {
    let mut running = start(&sh("setsid sleep 60 & echo $!; sleep 60 & echo $!; wait"));
    let (session, member) = (running.pid_line().await, running.pid_line().await);
    let first = running.handle.pid().cast_signed();
    assert!(lives(first) && lives(member));
    running.exit.abort();
    eventually("the tree is killed", || {
        !lives(first) && !lives(member) && !lives(session)
    })
    .await;
    // A handle that is left over touches nothing.
    running.handle.kill().await;
    running.handle.pause().await;
    assert_eq!(
        running.handle.stop(Duration::ZERO).await,
        Stopped {
            forced: false,
            survivors: Vec::new()
        }
    );
}

#[tokio::test]
async fn a_process_never_waited_for_is_killed_when_dropped() {
    let process = Process::spawn(&sh("sleep 60"), [], |_, _| {}).unwrap();
    let pid = process.handle().pid().cast_signed();
    drop(process);
    eventually("it is killed", || !lives(pid)).await;
}

#[test]
fn a_runtime_that_ends_takes_its_commands_with_it() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut running = runtime.block_on(async { start(&sh("sleep 60 & echo $!; wait")) });
    let member = runtime.block_on(running.pid_line());
    let first = running.handle.pid().cast_signed();
    assert!(lives(first) && lives(member));
    drop(runtime);
    tokio::runtime::Runtime::new()
        .unwrap()
        .block_on(eventually("both are killed", || !lives(first) && !lives(member)));
}

#[tokio::test]
async fn a_paused_command_uses_no_processor_and_its_clock_stands_still() {
    let script = "setsid python3 -c 'import os\nprint(os.getpid(), flush=True)\nwhile True: pass' & \
                  python3 -c 'import os\nprint(os.getpid(), flush=True)\nwhile True: pass'";
    let mut spec = sh(script);
    spec.limits.wall = Some(Duration::from_millis(1500));
    let mut running = start(&spec);
    let workers = [running.pid_line().await, running.pid_line().await];
    running.handle.pause().await;
    assert!(running.handle.is_paused());
    let used = workers.map(ticks);
    let clock = running.handle.usage().wall_seconds;
    // The only way to see that nothing happens is to let time pass: more of it than the wall limit allows.
    tokio::time::sleep(Duration::from_millis(1600)).await;
    assert_eq!(workers.map(ticks), used);
    assert_eq!(running.handle.usage().wall_seconds, clock);
    assert!(!running.exit.is_finished());
    running.handle.resume().await;
    assert!(!running.handle.is_paused());
    eventually("both go on", || {
        workers
            .iter()
            .zip(used)
            .all(|(pid, used)| !lives(*pid) || ticks(*pid) > used)
    })
    .await;
    let exit = running.end().await;
    assert_eq!(exit.reason, ExitReason::WallExceeded);
    assert!(
        exit.usage.wall_seconds >= 1.5 && exit.usage.wall_seconds < 3.0,
        "{:?}",
        exit.usage
    );
    assert!(!workers.into_iter().any(lives));
}

#[tokio::test]
async fn a_paused_command_can_be_terminated() {
    let running = start(&sh("sleep 60"));
    running.handle.pause().await;
    let stopped = running.handle.stop(SOON).await;
    assert!(!stopped.forced);
    assert_eq!(running.end().await.signal_name, Some("SIGTERM"));
}

#[tokio::test]
async fn the_wall_limit_ends_a_command_also_when_it_ignores_sigterm() {
    let mut spec = sh("sleep 60");
    spec.limits.wall = Some(Duration::from_millis(100));
    let (exit, _) = run(&spec).await;
    assert_eq!(
        (exit.reason, exit.signal_name),
        (ExitReason::WallExceeded, Some("SIGTERM"))
    );
    spec.args[1] = "trap '' TERM; while :; do sleep 0.05; done".to_owned();
    let (exit, _) = run(&spec).await;
    assert_eq!(
        (exit.reason, exit.signal_name),
        (ExitReason::WallExceeded, Some("SIGKILL"))
    );
    assert!(exit.usage.wall_seconds < 3.0);
}

/// Grows by 4 MiB every few milliseconds and prints its resident size in MiB and the time.
const GROW: &str = "import resource, time
held = []
while True:
    held.append(bytearray(b'x' * (4 << 20)))
    resident = int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() / (1 << 20)
    print(resident, time.monotonic(), flush=True)
    time.sleep(0.005)";

/// How long a command lived after it crossed its limit of memory, in seconds.
async fn outgrow() -> f64 {
    let (exit, lines) = run(&python(GROW, json!({"memory": "128MiB"}))).await;
    assert_eq!(
        (exit.reason, exit.signal_name),
        (ExitReason::MemoryExceeded, Some("SIGKILL"))
    );
    let times: Vec<(f64, f64)> = lines
        .iter()
        .filter_map(|(_, line)| line.split_once(' '))
        .map(|(size, time)| (size.parse().unwrap(), time.parse().unwrap()))
        .collect();
    let last = times.last().unwrap().1;
    // It may be killed before it comes to print that it crossed.
    let crossed = times
        .iter()
        .find(|(size, _)| *size > 128.0)
        .map_or(last, |(_, time)| *time);
    assert!(
        exit.usage.memory_mb > 100.0 && exit.usage.memory_mb < 512.0,
        "{:?}",
        exit.usage
    );
    last - crossed
}

#[tokio::test]
async fn a_command_that_outgrows_its_memory_is_killed_within_200_ms() {
    let mut shortest = f64::MAX;
    // What else a busy machine does may delay one of them.
    for _ in 0..3 {
        shortest = shortest.min(outgrow().await);
    }
    assert!(shortest < 0.2, "it lived {shortest:.3} s after it crossed its limit");
}

#[tokio::test]
async fn memory_is_that_of_the_whole_tree() {
    // Each child alone is below the limit.
    let script =
        "for i in 1 2 3; do python3 -c 'import time\nx=bytearray(b\"x\"*(60<<20))\ntime.sleep(60)' & done; wait";
    let mut spec = sh(script);
    spec.limits.memory = Some(150 << 20);
    let (exit, _) = run(&spec).await;
    assert_eq!(exit.reason, ExitReason::MemoryExceeded);
}

#[tokio::test]
async fn shared_pages_are_not_counted_against_the_limit_twice() {
    let script = "import os, time
x = bytearray(b'x' * (64 << 20))
children = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        time.sleep(0.4)
        os._exit(0)
    children.append(pid)
for pid in children: os.waitpid(pid, 0)";
    let (exit, _) = run(&python(script, json!({"memory": "150MiB"}))).await;
    assert_eq!((exit.code, exit.reason), (Some(0), ExitReason::Exited), "{exit:?}");
    let counted_once = exit.usage.memory_mb < 150.0;
    assert_eq!(
        counted_once,
        cgroups().is_some(),
        "the kernel counts each page once; resident sizes count it for every process: {:?}",
        exit.usage
    );
}

#[tokio::test]
async fn processor_time_is_limited_for_the_whole_tree() {
    let spec = python("while True: pass", json!({"cpu_seconds": 0.3}));
    let (exit, _) = run(&spec).await;
    assert_eq!(exit.reason, ExitReason::CpuExceeded);
    assert!(
        exit.usage.cpu_seconds >= 0.3 && exit.usage.cpu_seconds < 1.0,
        "{:?}",
        exit.usage
    );
    let mut spec = sh("for i in 1 2 3; do sh -c 'while :; do :; done' & done; wait");
    spec.limits.cpu_seconds = Some(0.5);
    let (exit, _) = run(&spec).await;
    assert_eq!(exit.reason, ExitReason::CpuExceeded);
    assert!(exit.usage.cpu_seconds >= 0.5, "{:?}", exit.usage);
}

#[tokio::test]
async fn usage_is_measured_for_short_and_for_longer_commands() {
    let (exit, _) = run(&sh("exit 0")).await;
    assert!(
        exit.usage.cpu_seconds > 0.0 && exit.usage.cpu_seconds < 0.5,
        "{:?}",
        exit.usage
    );
    assert!(exit.usage.wall_seconds > 0.0);
    let (exit, _) = run(&sh("sleep 0.05; exit 0")).await;
    assert!(exit.usage.memory_mb > 0.1, "{:?}", exit.usage);

    let burn = "import time\nx=bytearray(b'x'*(50<<20))\nwhile time.process_time() < 0.3: pass";
    let (exit, _) = run(&sh(&format!("python3 -c \"{burn}\"; exit 0"))).await;
    let usage = exit.usage;
    assert!(usage.cpu_seconds >= 0.28 && usage.cpu_seconds < 1.0, "{usage:?}");
    assert!(usage.memory_mb > 50.0 && usage.memory_mb < 120.0, "{usage:?}");
    assert!(usage.cpu_percent > 1.0 && usage.cpu_percent <= 220.0, "{usage:?}");
}

#[tokio::test]
async fn what_a_tree_moves_to_storage_is_measured() {
    // In the target directory, which is on a disk where the one for temporary files may be in memory.
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let write =
        "import os\nfile = open('out', 'wb')\nfile.write(bytes(8 << 20))\nfile.flush()\nos.fsync(file.fileno())";
    let mut spec = sh(&format!("python3 -c \"{write}\"; exit 0"));
    spec.cwd = Some(place.path().to_owned());
    let (exit, _) = run(&spec).await;
    assert!(exit.success(), "{exit:?}");
    // A kernel that does not count it says nothing.
    if std::path::Path::new("/proc/self/io").exists() {
        let written = exit.usage.written_mb.unwrap();
        assert!((8.0..100.0).contains(&written), "{:?}", exit.usage);
        assert!(exit.usage.read_mb.is_some());
    }
}

#[tokio::test]
async fn processor_time_of_children_nobody_waited_for_is_counted() {
    let burn = "import time\nwhile time.process_time() < 0.4: pass\nprint(1, flush=True)\ntime.sleep(60)";
    let (exit, _) = run(&sh(&format!(
        "setsid -f python3 -c \"{burn}\" | (read x; exit 0); exit 0"
    )))
    .await;
    assert!(
        exit.usage.cpu_seconds >= 0.38 && exit.usage.cpu_seconds < 1.5,
        "{:?}",
        exit.usage
    );
}

#[tokio::test]
async fn many_commands_at_once_keep_their_output_apart() {
    let all: Vec<_> = (0..40)
        .map(|number| tokio::spawn(async move { run(&sh(&format!("echo {number}; sleep 0.1; echo {number}"))).await }))
        .collect();
    for (number, one) in all.into_iter().enumerate() {
        let (exit, lines) = one.await.unwrap();
        assert_eq!(exit.stdout, format!("{number}\n{number}\n"));
        assert_eq!(lines.len(), 2);
    }
}

#[tokio::test]
async fn a_second_stop_without_grace_ends_the_first_at_once() {
    let mut running = start(&sh("trap '' TERM; echo up; while :; do sleep 0.05; done"));
    running.line().await;
    let patient = tokio::spawn({
        let handle = running.handle.clone();
        async move { handle.stop(Duration::from_secs(600)).await }
    });
    assert!(running.handle.stop(Duration::ZERO).await.survivors.is_empty());
    assert_eq!(running.end().await.signal_name, Some("SIGKILL"));
    tokio::time::timeout(SOON, patient).await.unwrap().unwrap();
}
