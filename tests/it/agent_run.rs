//! `pensum agent run`: real programs that run tasks, stopped, killed and cut off from their node.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::{
    SOON, Server, alive, assert_says, eventually, items, lines, marked, program, state, text, throughout, with,
};

/// How late a cancel may be: a heartbeat each second, and the end of the program.
const CANCELLED_IN: Duration = Duration::from_secs(3);
/// What every task of these tests may try again quickly.
const QUICK: &str = r#"{ "strategy": "fixed", "delay": 0.1, "jitter": false }"#;

/// How many agents were started by this process, whose messages go to files of their own.
static STARTED: AtomicUsize = AtomicUsize::new(0);

/// An agent that runs `script` with sh; `$1` is the directory of the test.
pub(crate) struct Agent {
    child: Child,
    said: PathBuf,
}

impl Agent {
    #[track_caller]
    pub(crate) fn start(server: &Server, id: &str, more: &[&str], script: &str) -> Agent {
        let dir = server.dir().display().to_string();
        Agent::start_with(server, id, more, &["sh", "-c", script, "sh", &dir])
    }

    /// Starts an agent of the capability `work` and waits until the node knows it.
    #[track_caller]
    pub(crate) fn start_with(server: &Server, id: &str, more: &[&str], argv: &[&str]) -> Agent {
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let said = server.file(&format!("agent.{number}.err"));
        let file = std::fs::File::create(&said).unwrap();
        let mut command = program();
        command
            .args(["agent", "run", "--id", id, "-C", "work", "--url", &server.http.base])
            .args(more)
            .arg("--")
            .args(argv)
            .stdout(Stdio::null())
            .stderr(file)
            .current_dir(server.dir());
        let child = command.process_group(0).spawn().unwrap();
        let agent = Agent { child, said };
        eventually("the agent to wait for work", SOON, || {
            agent.said().contains("waits for work").then_some(())
        });
        agent
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    #[track_caller]
    fn wait_end(&mut self, most: Duration) -> ExitStatus {
        let child = &mut self.child;
        eventually("the end of the agent", most, || child.try_wait().unwrap())
    }

    /// Stops it as a supervisor does, and expects that it ends well.
    #[track_caller]
    pub(crate) fn stop(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.wait_end(SOON).code(), Some(0), "{}", self.said());
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent said:\n{}", self.said());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn work(&self, more: Value) -> String {
        let retry: Value = serde_json::from_str(QUICK).unwrap();
        self.create(&with(json!({ "handler": "work", "retry": retry }), more))
    }

    /// The messages of a task's log.
    fn messages(&self, id: &str) -> Vec<String> {
        let logs = self.http.all(&format!("/api/v1/tasks/{id}/logs"));
        logs.iter().map(|line| text(&line["message"])).collect()
    }

    #[track_caller]
    fn running(&self, id: &str) -> Value {
        self.wait(id, "running")
    }
}

#[test]
fn a_program_reads_its_task_and_prints_its_result() {
    const ADD: &str = r#"
import json, os, sys
task = json.load(sys.stdin)
variables = [os.environ[name] for name in ("PENSUM_TASK_ID", "PENSUM_ATTEMPT", "PENSUM_EXECUTION_ID", "PENSUM_HANDLER")]
print(json.dumps({"sum": sum(task["parameters"]["numbers"]), "variables": variables,
    "same": [task["id"], str(task["attempt"]), task["execution_id"], task["handler"]], "checkpoint": task["checkpoint"]}))
"#;
    let server = Server::start(&[]);
    let agent = Agent::start_with(&server, "adder", &[], &["python3", "-c", ADD]);
    let id = server.work(json!({ "parameters": { "numbers": [1, 2, 39] } }));
    let task = server.wait_both(&id, "completed");
    let names = json!([id, "1", format!("{id}.1"), "work"]);
    assert_eq!(
        task["result"],
        json!({ "sum": 42, "variables": names, "same": names, "checkpoint": null })
    );
    let attempts = server.task(&format!("{id}/executions"));
    let attempt = &attempts["items"][0];
    assert_eq!(attempt["executor_id"], "adder");
    let usage = &attempt["resource_usage"];
    assert!(
        usage["cpu_seconds"].is_f64() && usage["memory_mb"].as_f64() > Some(1.0),
        "{attempt}"
    );
    agent.stop();
    let registered = server.http.get("/api/v1/agents/adder").expect(200);
    assert_eq!(registered["status"], "offline", "{registered}");
    server.finish();
}

#[test]
fn text_is_a_result_too_and_one_that_is_too_long_is_no_endless_loop() {
    let server = Server::start(&[]);
    let script =
        r#"if grep -q long; then printf '"'; head -c 1048570 /dev/zero | tr '\0' x; printf '"'; else echo hello; fi"#;
    let agent = Agent::start(&server, "texts", &[], script);
    let short = server.work(json!({}));
    let task = server.wait_both(&short, "completed");
    assert_eq!(task["result"], json!({ "stdout": "hello\n", "exit_code": 0 }));
    // With the name of the outcome round it, it is longer than a result may be.
    let long = server.work(json!({ "parameters": "long" }));
    let task = server.wait(&long, "failed");
    assert_eq!(task["error"]["type"], "bad_result", "{}", task["error"]);
    assert_eq!(server.events(&long), ["created", "started", "failed"]);
    agent.stop();
    server.finish();
}

#[test]
fn progress_logs_and_checkpoints_come_from_standard_error() {
    const FIRST: &str = r#"
task=$(cat)
case "$task" in *'"checkpoint":null'*) ;; *) echo "$task" | grep -o '"checkpoint":{[^}]*}' >> "$1/seen" ;; esac
echo "words of the program" >&2
echo "pensum:progress 40 almost half" >&2
touch "$1/begun"
while [ ! -e "$1/more" ]; do sleep 0.05; done
echo '{"progress": 75.5, "message": "more", "log": "as JSON", "checkpoint": {"at": '$PENSUM_ATTEMPT'}}' >&2
[ "$PENSUM_ATTEMPT" -ge 3 ] || exit 1
echo '{"done": true}'
"#;
    let server = Server::start(&[]);
    let agent = Agent::start(&server, "speaker", &[], FIRST);
    let id = server.work(json!({}));
    eventually("the progress", SOON, || {
        (server.task(&id)["progress"] == json!({ "percent": 40.0, "message": "almost half" })).then_some(())
    });
    assert_eq!(server.messages(&id), ["words of the program"]);
    // It fails right after it has said where it is, and the next attempt hears of it.
    std::fs::write(server.file("more"), "").unwrap();
    let task = server.wait_both(&id, "completed");
    assert_eq!(
        (&task["attempt"], &task["result"]),
        (&json!(3), &json!({ "done": true }))
    );
    assert_eq!(
        lines(&server.file("seen")),
        [r#""checkpoint":{"at":1}"#, r#""checkpoint":{"at":2}"#]
    );
    let messages = server.messages(&id);
    assert_eq!(messages, ["words of the program", "as JSON"].repeat(3));
    agent.stop();
    server.finish();
}

#[test]
fn exit_code_65_is_final_and_others_are_tried_again() {
    let server = Server::start(&[]);
    let script = r#"echo "attempt $PENSUM_ATTEMPT" >> "$1/runs"; echo "it is broken" >&2; exit $(grep -o '"parameters":[0-9]*' | cut -d: -f2)"#;
    let agent = Agent::start(&server, "exits", &[], script);
    let check = |code: u64, attempts: usize| {
        let _ = std::fs::remove_file(server.file("runs"));
        let id = server.work(json!({ "parameters": code, "max_retries": 2 }));
        let task = server.wait_both(&id, "failed");
        let error = &task["error"];
        assert_eq!(error["type"], "exit_code", "{error}");
        assert_says(&error["message"], &format!("it exited with code {code}: it is broken"));
        assert_eq!(lines(&server.file("runs")).len(), attempts, "exit code {code}");
        assert_eq!(task["attempt"], attempts);
    };
    check(65, 1);
    check(64, 3);
    check(1, 3);
    agent.stop();
    server.finish();
}

/// Starts children of its own that no signal but SIGKILL ends, and stays.
const TREE: &str = r#"
for n in 1 2; do sh -c 'trap "" TERM; echo $$ >> "$1/pids"; while :; do sleep 1; done' sh "$1" & done
while [ $(wc -l < "$1/pids" 2>/dev/null || echo 0) -lt 2 ]; do sleep 0.02; done
echo $$ > "$1/root"
wait
"#;

#[test]
fn a_cancel_stops_the_whole_tree() {
    let server = Server::start(&[]);
    let agent = Agent::start(&server, "trees", &["--grace", "300ms"], TREE);
    let id = server.work(json!({}));
    let root = server.pid_in(&server.file("root"));
    let children: Vec<i32> = lines(&server.file("pids"))
        .iter()
        .map(|pid| pid.parse().unwrap())
        .collect();
    assert!(children.len() == 2 && children.iter().all(|pid| alive(*pid)));
    let asked = Instant::now();
    server.command(&id, "cancel").expect(202);
    server.wait_both(&id, "cancelled");
    assert!(asked.elapsed() < CANCELLED_IN, "{:?}", asked.elapsed());
    for pid in children.into_iter().chain([root]) {
        assert!(!alive(pid), "process {pid} goes on");
    }
    agent.stop();
    server.finish();
}

#[test]
fn a_pause_stops_the_program_where_it_stands() {
    let server = Server::start(&[]);
    let script = r#"echo $$ > "$1/pid"; while [ ! -e "$1/go" ]; do :; done; echo '"went"'"#;
    let agent = Agent::start(&server, "pauses", &[], script);
    let id = server.work(json!({}));
    let pid = server.pid_in(&server.file("pid"));
    server.command(&id, "pause").expect(202);
    eventually("the program to stand still", SOON, || {
        (state(pid) == Some('T')).then_some(())
    });
    std::fs::write(server.file("go"), "").unwrap();
    throughout("it stands still", Duration::from_secs(2), || {
        state(pid) == Some('T') && server.task(&id)["result"].is_null()
    });
    server.command(&id, "resume").expect(200);
    let task = server.wait_both(&id, "completed");
    assert_eq!((&task["result"], &task["attempt"]), (&json!("went"), &json!(1)));
    agent.stop();
    server.finish();
}

#[test]
fn a_run_that_takes_too_long_is_ended_with_its_timeout() {
    let server = Server::start(&[]);
    let agent = Agent::start(&server, "slow", &[], r#"echo $$ > "$1/pid"; exec sleep 600"#);
    let id = server.work(json!({ "timeout": 1, "max_retries": 0 }));
    let pid = server.pid_in(&server.file("pid"));
    let task = server.wait_both(&id, "failed");
    assert_eq!(task["error"]["type"], "timeout", "{}", task["error"]);
    eventually("the program's end", SOON, || (!alive(pid)).then_some(()));
    agent.stop();
    server.finish();
}

#[test]
fn a_stop_lets_what_runs_end_and_gives_back_what_does_not() {
    let server = Server::start(&[]);
    // What is long runs until somebody lets it; what is short ends soon after the agent was asked to.
    let script = r#"
echo "$PENSUM_TASK_ID" >> "$1/started"
if grep -q long; then while [ ! -e "$1/go" ]; do sleep 0.05; done; else sleep 1; fi
echo '"done"'
"#;
    let mut agent = Agent::start(&server, "stops", &["--max", "2", "--grace", "3s"], script);
    let long = server.work(json!({ "parameters": "long" }));
    let short = server.work(json!({ "parameters": "short" }));
    eventually("both to start", SOON, || {
        (lines(&server.file("started")).len() == 2).then_some(())
    });
    let later = server.work(json!({ "parameters": "short" }));
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait_end(SOON).code(), Some(0), "{}", agent.said());
    assert_eq!(server.wait(&short, "completed")["attempt"], 1);
    for id in [&long, &later] {
        let task = server.wait(id, "ready");
        assert!(task["error"].is_null(), "{task}");
    }
    assert_eq!(
        marked(server.dir()),
        Vec::<i32>::from([server.pid()]),
        "nothing of it runs"
    );
    assert_eq!(server.events(&long), ["created", "started", "released"]);
    std::fs::write(server.file("go"), "").unwrap();
    let next = Agent::start(&server, "stops", &["--max", "2"], script);
    for id in [&long, &later] {
        let task = server.wait_both(id, "completed");
        assert_eq!(
            (&task["attempt"], &task["retry_count"]),
            (&json!(1), &json!(0)),
            "{task}"
        );
    }
    next.stop();
    server.finish();
}

#[test]
fn a_second_signal_ends_the_agent_at_once() {
    let server = Server::start(&[]);
    let script = r#"echo $$ > "$1/pid"; exec sleep 600"#;
    let mut agent = Agent::start(&server, "twice", &["--grace", "1h"], script);
    let id = server.work(json!({}));
    let pid = server.pid_in(&server.file("pid"));
    agent.signal(Signal::TERM);
    eventually("it to say so", SOON, || {
        agent.said().contains("1 running").then_some(())
    });
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait_end(SOON).code(), Some(143), "{}", agent.said());
    assert!(!alive(pid));
    // It left, so nobody waits for its lease.
    assert_eq!(server.wait(&id, "ready")["attempt"], 1);
    server.finish();
}

#[test]
fn what_a_killed_agent_ran_runs_elsewhere_after_its_lease() {
    let server = Server::start(&[]);
    let script = r#"echo $$ > "$1/pid.$PENSUM_ATTEMPT"; [ "$PENSUM_ATTEMPT" = 1 ] && exec sleep 600; echo '"second"'"#;
    let mut first = Agent::start(&server, "first", &["--lease", "1s"], script);
    let id = server.work(json!({}));
    let orphan = server.pid_in(&server.file("pid.1"));
    // Its heartbeats keep the task longer than one lease.
    throughout("the task stays", Duration::from_millis(2_500), || {
        server.task(&id)["attempt"] == 1
    });
    first.kill();
    let killed = Instant::now();
    let second = Agent::start(&server, "second", &[], script);
    let task = server.wait_both(&id, "completed");
    assert!(killed.elapsed() < Duration::from_secs(6), "{:?}", killed.elapsed());
    assert_eq!((&task["result"], &task["attempt"]), (&json!("second"), &json!(2)));
    let attempts = server.task(&format!("{id}/executions"));
    let by: Vec<&Value> = items(&attempts["items"]).iter().map(|e| &e["executor_id"]).collect();
    assert!(
        by.contains(&&json!("first")) && by.contains(&&json!("second")),
        "{attempts}"
    );
    // The agent that started on the same machine found what the dead one left.
    assert!(!alive(orphan), "{}", second.said());
    second.stop();
    server.finish();
}

#[test]
fn a_restart_of_the_server_loses_nothing() {
    let mut server = Server::start(&[]);
    server.keep_address();
    let script = r#"
echo "$PENSUM_TASK_ID $PENSUM_ATTEMPT" >> "$1/started"
echo '{"log": "while it is away", "checkpoint": {"at": 7}}' >&2
while [ ! -e "$1/go.$PENSUM_TASK_ID" ]; do sleep 0.05; done
[ -e "$1/fail.$PENSUM_TASK_ID" ] && rm "$1/fail.$PENSUM_TASK_ID" && { echo '{"checkpoint": {"at": 8}}' >&2; exit 1; }
cat | grep -o '"checkpoint":[^}]*}'
"#;
    let agent = Agent::start(&server, "steady", &["--max", "3"], script);
    let ids: Vec<String> = (0..3).map(|_| server.work(json!({}))).collect();
    eventually("all to start", SOON, || {
        (lines(&server.file("started")).len() == 3).then_some(())
    });
    server.kill();
    // Two end while nobody listens, one of them with a failure; the third after the server is back.
    std::fs::write(server.file(&format!("fail.{}", ids[1])), "").unwrap();
    for id in &ids[..2] {
        std::fs::write(server.file(&format!("go.{id}")), "").unwrap();
    }
    eventually("the agent to miss the node", SOON, || {
        agent
            .said()
            .contains("it is tried again until it answers")
            .then_some(())
    });
    std::thread::sleep(Duration::from_secs(1));
    server.verify();
    server.restart();
    let first = server.wait_both(&ids[0], "completed");
    assert_eq!(first["attempt"], 1, "{first}");
    let second = server.wait_both(&ids[1], "completed");
    assert_eq!(second["attempt"], 2, "{second}");
    assert_eq!(second["result"]["stdout"], "\"checkpoint\":{\"at\":8}\n", "{second}");
    std::fs::write(server.file(&format!("go.{}", ids[2])), "").unwrap();
    let third = server.wait_both(&ids[2], "completed");
    assert_eq!(third["attempt"], 1, "{third}");
    assert_eq!(lines(&server.file("started")).len(), 4);
    for id in [&ids[0], &ids[2]] {
        assert_eq!(server.messages(id), ["while it is away"]);
    }
    assert_says(&agent.said(), "the node is back");
    agent.stop();
    server.finish();
}

#[test]
fn a_second_process_of_an_id_takes_over() {
    let server = Server::start(&[]);
    let script = r#"echo $$ > "$1/pid.$PENSUM_ATTEMPT"; [ "$PENSUM_ATTEMPT" = 1 ] && exec sleep 600; echo '"second"'"#;
    let mut first = Agent::start(&server, "one", &[], script);
    let id = server.work(json!({}));
    let pid = server.pid_in(&server.file("pid.1"));
    let second = Agent::start(&server, "one", &[], script);
    assert_eq!(first.wait_end(SOON).code(), Some(6), "{}", first.said());
    assert_says(&first.said(), "error: ");
    assert_says(&first.said(), "a newer one took over");
    assert!(!alive(pid), "what it ran has ended before it");
    let task = server.wait_both(&id, "completed");
    assert_eq!(task["result"], "second", "{task}");
    second.stop();
    server.finish();
}

#[test]
fn a_program_that_cannot_be_started_fails_its_tasks_slowly() {
    let server = Server::start(&[]);
    let agent = Agent::start_with(&server, "missing", &[], &["/nowhere/to/be/found"]);
    let began = Instant::now();
    let id = server.work(json!({ "max_retries": 2 }));
    let task = server.wait_both(&id, "failed");
    assert_eq!((&task["error"]["type"], &task["attempt"]), (&json!("spawn"), &json!(3)));
    assert_says(&task["error"]["message"], "/nowhere/to/be/found");
    // After the first one at least 0.25 s, after the second one at least 0.5 s.
    assert!(began.elapsed() > Duration::from_millis(750), "{:?}", began.elapsed());
    assert_eq!(
        agent.said().matches("could not be started; the next task in").count(),
        3
    );
    agent.stop();
    server.finish();
}

#[test]
fn what_else_runs_does_not_shorten_the_pause_after_a_crash() {
    let server = Server::start(&[]);
    let script = r#"
echo "$(date +%s%N)" >> "$1/starts"
if grep -q steady; then while [ ! -e "$1/go" ]; do sleep 0.05; done; else kill -KILL $$; fi
"#;
    let agent = Agent::start(&server, "crashing", &["--max", "2"], script);
    let steady = server.work(json!({ "parameters": "steady" }));
    server.running(&steady);
    let crash = server.work(json!({ "parameters": "crash", "max_retries": 4 }));
    let task = server.wait_both(&crash, "failed");
    assert_eq!(
        (&task["error"]["type"], &task["attempt"]),
        (&json!("signal"), &json!(5))
    );
    let starts: Vec<f64> = lines(&server.file("starts"))
        .iter()
        .map(|at| at.parse::<f64>().unwrap() / 1e9)
        .collect();
    for (number, pair) in starts[1..].windows(2).enumerate() {
        let least = 0.25 * f64::from(1 << number);
        assert!(
            pair[1] - pair[0] >= least,
            "pause {number} is shorter than {least} s: {starts:?}"
        );
    }
    std::fs::write(server.file("go"), "").unwrap();
    server.wait(&steady, "completed");
    agent.stop();
    server.finish();
}

#[test]
fn an_agent_runs_as_many_at_once_as_it_may() {
    let server = Server::start(&[]);
    let script = r#"b=$(date +%s%N); sleep 0.5; echo "$b $(date +%s%N)" >> "$1/times""#;
    let agent = Agent::start(&server, "three", &["--max", "3"], script);
    let ids: Vec<String> = (0..9).map(|_| server.work(json!({}))).collect();
    for id in &ids {
        server.wait(id, "completed");
    }
    let runs: Vec<(u64, u64)> = lines(&server.file("times"))
        .iter()
        .map(|line| {
            let (begin, end) = line.split_once(' ').unwrap();
            (begin.parse().unwrap(), end.parse().unwrap())
        })
        .collect();
    let at_once = |(at, _): &(u64, u64)| runs.iter().filter(|(begin, end)| begin <= at && at < end).count();
    assert_eq!(runs.iter().map(at_once).max(), Some(3), "{runs:?}");
    agent.stop();
    server.finish();
}

/// Grows, spins, or waits for a file, as its task says.
const HUNGRY: &str = r#"
case "$(cat)" in
*'"how":"grow"'*) python3 -c 'held = []
while True: held.append(bytearray(range(256)) * 16384)' ;;
*'"how":"spin"'*) while :; do :; done ;;
*) while [ ! -e "$1/go" ]; do sleep 0.02; done ;;
esac
"#;

#[test]
fn a_program_over_its_limits_is_ended_and_its_neighbour_goes_on() {
    let server = Server::start(&[]);
    let limits = ["--max", "3", "--memory", "64MiB", "--cpu-seconds", "2"];
    let agent = Agent::start(&server, "limited", &limits, HUNGRY);
    let work = |how: &str| server.work(json!({ "parameters": { "how": how }, "max_retries": 0 }));
    let (waiting, growing, spinning) = (work("wait"), work("grow"), work("spin"));
    assert_eq!(server.wait_both(&growing, "failed")["error"]["type"], "memory_exceeded");
    assert_eq!(server.wait_both(&spinning, "failed")["error"]["type"], "cpu_exceeded");
    assert_eq!(server.task(&waiting)["status"], "running");
    std::fs::write(server.file("go"), "").unwrap();
    server.wait(&waiting, "completed");
    agent.stop();
    server.finish();
}

#[test]
fn a_drained_agent_takes_nothing_until_it_is_undrained() {
    let server = Server::start(&[]);
    let agent = Agent::start(&server, "drained", &[], "echo 1");
    let command = |command: &str| {
        let path = format!("/api/v1/agents/drained/{command}");
        server.http.post(&path, &json!({})).expect(200)
    };
    command("drain");
    eventually("the agent to hear of it", SOON, || {
        agent.said().contains("draining").then_some(())
    });
    let id = server.work(json!({}));
    throughout("nothing is taken", Duration::from_secs(1), || {
        server.task(&id)["status"] == "ready"
    });
    command("undrain");
    server.wait_both(&id, "completed");
    agent.stop();
    server.finish();
}

#[test]
fn wrong_options_exit_with_2_and_no_node_with_5() {
    let server = Server::start(&[]);
    let check = |code: i32, args: &[&str], says: &str| {
        let said = server.cli().run(&[&["agent", "run"], args].concat()).fails(code);
        assert_says(&said, says);
    };
    check(2, &["-C", "work", "--", "true"], "--id");
    check(2, &["--id", "a", "--", "true"], "--capability");
    check(2, &["--id", "a", "-C", "work"], "PROGRAM");
    check(2, &["--id", "a", "-C", "work", "true"], "true");
    let whole = |code: i32, id: &str, capability: &str, options: &[&str], says: &str| {
        let args = [&["--id", id, "-C", capability], options, &["--", "true"]].concat();
        check(code, &args, says);
    };
    whole(2, "two words", "work", &[], "id: must be 1 to 200");
    whole(2, "a", "", &[], "capabilities[0]");
    for (option, value, says) in [
        ("--max", "0", "max_concurrent_tasks"),
        ("--max", "many", "--max"),
        ("--lease", "10ms", "lease"),
        ("--lease", "soon", "--lease"),
        ("--grace", "soon", "--grace"),
        ("--memory", "lots", "--memory: "),
        ("--cpu-seconds", "0", "--cpu-seconds: must be a positive number"),
        ("--resource", "cpu_cores", "NAME=VALUE"),
        ("--resource", "cpu_cores=x", "not a number"),
        ("--resource", "cpus=1", "resources.cpus"),
        ("--label", "zone", "NAME=VALUE"),
    ] {
        whole(2, "a", "work", &[option, value], says);
    }
    let alone = format!("sqlite:{}", server.file("other.db").display());
    crate::harness::Cli::default()
        .run(&["task", "create", "--handler", "noop", "--db", &alone])
        .expect(0);
    whole(2, "a", "work", &["--db", &alone], "an agent needs a node");
    whole(5, "a", "work", &["--url", "http://127.0.0.1:1"], "no node answers at");
    assert!(server.http.all("/api/v1/agents").is_empty(), "nobody registered");
    server.finish();
}
