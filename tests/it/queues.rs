//! Queues with settings, on a node of each store: how wide, how fast, and when they start.

use std::time::Duration;

use pensum_testing::postgres::Database;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::harness::{
    Answer, Cli, Http, NOTE_TIMES, Server, eventually, items, lines, runs_at_once, seconds_between, shell, text,
    throughout, with,
};

const NAME_INTO_FILE: &str = r#"echo "$PENSUM_TASK_ID" >> "$1""#;

/// A node on a store of one kind.
struct Node {
    server: Server,
    _database: Option<(Runtime, Database)>,
}

impl Node {
    fn sqlite() -> Node {
        Node {
            server: Server::start(&[]),
            _database: None,
        }
    }

    fn postgres() -> Node {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let database = runtime.block_on(Database::fresh());
        let mut server = Server::unstarted_on(database.url(), &[]);
        server.restart();
        Node {
            server,
            _database: Some((runtime, database)),
        }
    }

    fn put(&self, queue: &str, settings: &Value) -> Value {
        let path = format!("/api/v1/queues/{queue}");
        self.server.http.put(&path, settings).expect(200)
    }

    fn ask(&self, queue: &str, command: &str) -> Answer {
        let path = format!("/api/v1/queues/{queue}/{command}");
        self.server.http.post(&path, &json!({}))
    }

    fn queue(&self, queue: &str) -> Value {
        self.server.http.get(&format!("/api/v1/queues/{queue}")).expect(200)
    }
}

macro_rules! on_each_store {
    ($($test:ident,)*) => {
        mod sqlite {
            $(#[test]
            fn $test() {
                super::$test(super::Node::sqlite());
            })*
        }
        mod postgres {
            $(#[test]
            fn $test() {
                super::$test(super::Node::postgres());
            })*
        }
    };
}

on_each_store! {
    a_queue_of_width_one_starts_its_tasks_by_priority,
    ten_tasks_in_a_queue_three_wide_never_run_four_at_once,
    two_tasks_of_each_key_run_at_once_and_never_three,
    a_manual_queue_runs_only_what_was_there_when_it_was_asked_to,
    a_rate_holds_over_every_span_of_time,
    a_queue_that_is_paused_stays_so_over_a_restart,
    a_low_task_starts_within_its_ageing_under_a_stream_of_high_ones,
    a_noisy_key_of_a_fair_queue_lets_every_other_start_in_the_first_round,
    a_full_queue_refuses_or_drops_and_goes_on_when_it_has_room,
    units_hold_the_rate_and_explain_says_when_a_task_starts,
    what_waits_too_long_in_a_queue_is_dropped,
    limits_hold_up_no_bulk_command,
}

fn limits_hold_up_no_bulk_command(node: Node) {
    let settings = json!({ "max_concurrent": 1, "max_depth": 1, "when_full": "refuse" });
    node.put("default", &settings);
    node.ask("default", "pause").expect(200);
    let waits = node.server.create(&json!({ "handler": "noop" }));
    // The very command that empties a full queue.
    let cancel = ["task", "cancel", "--filter", "queue=default", "--wait", "-o", "name"];
    node.server.cli().run(&cancel).expect(0);
    node.server.wait(&waits, "cancelled");
    node.server.create(&json!({ "handler": "noop" }));
    // Nobody limits what carries commands out.
    let path = "/api/v1/queues/pensum.bulk";
    for answer in [
        node.server.http.put(path, &settings),
        node.server.http.post(&format!("{path}/pause"), &json!({})),
    ] {
        let problem = answer.expect(422);
        assert_eq!(problem["errors"][0]["path"], "id", "{problem}");
    }
    node.server.finish();
}

fn a_full_queue_refuses_or_drops_and_goes_on_when_it_has_room(mut node: Node) {
    node.put("feed", &json!({ "max_depth": 3, "max_concurrent": 2 }));
    node.ask("feed", "pause").expect(200);
    let noop = json!({ "handler": "noop", "queue": "feed" });
    // Many at once: just as many pass as there is room for.
    let pass = |http: &Http| {
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let submit = || http.post("/api/v1/tasks", &noop);
            let submissions: Vec<_> = (0..8).map(|_| scope.spawn(submit)).collect();
            submissions.into_iter().map(|one| one.join().unwrap()).collect()
        });
        answers.iter().filter(|answer| answer.status == 201).count()
    };
    assert_eq!(pass(&node.server.http), 3);
    let problem = node.server.http.post("/api/v1/tasks", &noop).expect(429);
    assert_eq!(text(&problem["type"]), "urn:pensum:problem:queue-full");
    let task = ["task", "create", "--handler", "noop", "--queue", "feed"];
    let said = node.server.cli().run(&task).fails(6);
    assert!(said.contains("max_depth of 3: 3 tasks wait in it"), "{said}");
    // The limit is of the store, and so is what waits.
    node.server.kill();
    node.server.restart();
    node.server.http.post("/api/v1/tasks", &noop).expect(429);
    node.put(
        "feed",
        &json!({ "max_depth": 3, "max_concurrent": 2, "when_full": "drop_oldest" }),
    );
    let newest = node.server.create(&noop);
    let page = node
        .server
        .http
        .get("/api/v1/tasks?queue=feed&status=cancelled")
        .expect(200);
    let dropped = items(&page["items"]);
    assert_eq!(
        (dropped.len(), text(&dropped[0]["error"]["type"])),
        (1, "dropped".to_owned())
    );
    node.server
        .http
        .post("/api/v1/tasks", &with(noop.clone(), json!({ "on_limit": "reject" })))
        .expect(429);
    node.ask("feed", "resume").expect(200);
    node.server.wait_both(&newest, "completed");
    node.server.create(&with(noop.clone(), json!({ "on_limit": "reject" })));
    node.server.finish();
}

fn units_hold_the_rate_and_explain_says_when_a_task_starts(node: Node) {
    let server = &node.server;
    node.put(
        "calls",
        &json!({ "rate_limit": { "starts": 20, "per": 1, "burst": 4 } }),
    );
    let call = |units: u32| json!({ "handler": "noop", "queue": "calls", "units": units });
    let ids = server.create_all(&[call(4), call(3), call(10), call(1), call(2)]);
    for id in &ids {
        server.wait(id, "completed");
    }
    let started: Vec<Value> = ids.iter().map(|id| server.task(id)["started_at"].clone()).collect();
    // The first takes all that there is. Until a later one starts, as much has come as those between took, and what it
    // waits for itself: its units, or a full bucket.
    for (n, tokens) in [(1, 3), (2, 3 + 4), (3, 3 + 10 + 1), (4, 3 + 10 + 1 + 2)] {
        let (after, least) = (seconds_between(&started[0], &started[n]), f64::from(tokens) / 20.0);
        assert!(
            after >= least - 0.005,
            "start {n} came after {after} s, not {least}: {started:?}"
        );
    }
    assert!(seconds_between(&started[0], &started[4]) < 10.0, "{started:?}");
    node.put(
        "slow",
        &json!({ "rate_limit": { "starts": 1, "per": 3600, "burst": 3 } }),
    );
    server.wait(&server.create(&with(call(1), json!({ "queue": "slow" }))), "completed");
    let held = server.create(&with(call(3), json!({ "queue": "slow" })));
    let explained = server.task(&format!("{held}/explain"));
    let gate = &explained["gates"][0];
    assert_eq!(text(&gate["gate"]), "rate", "{explained}");
    assert!(text(&gate["message"]).contains("takes 3 units"), "{explained}");
    assert!(gate["opens_at"].is_string(), "{explained}");
    node.server.finish();
}

fn what_waits_too_long_in_a_queue_is_dropped(node: Node) {
    let server = &node.server;
    node.put("feed", &json!({ "max_age": 0.5, "when_full": "drop_oldest" }));
    node.ask("feed", "pause").expect(200);
    let noop = json!({ "handler": "noop", "queue": "feed" });
    let old = server.create(&noop);
    let after = server.create(&json!({ "handler": "noop", "depends_on": [old], "on_dependency_failure": "run" }));
    let found = server.wait_both(&old, "cancelled");
    assert_eq!(text(&found["error"]["type"]), "dropped");
    server.wait(&after, "completed");
    node.put("feed", &json!({ "max_age": 0.5 }));
    server.create(&noop);
    eventually("a refusal for age", Duration::from_secs(10), || {
        let answer = server.http.post("/api/v1/tasks", &noop);
        (answer.status == 429).then_some(())
    });
    node.server.finish();
}

fn a_queue_of_width_one_starts_its_tasks_by_priority(node: Node) {
    let server = &node.server;
    node.put("symbol_validation", &json!({ "max_concurrent": 1 }));
    node.ask("symbol_validation", "pause").expect(200);
    let order = server.file("order");
    let task = |name: &str, priority: &str| {
        let more = json!({ "name": name, "queue": "symbol_validation", "priority": priority });
        server.create(&with(shell(NAME_INTO_FILE, &order), more))
    };
    let low = task("Clean Old Logs", "low");
    let normal = task("Daily Analytics", "normal");
    let high = task("Process User Dream", "high");
    let critical = task("Security Alert Response", "critical");
    assert_eq!(node.queue("symbol_validation")["tasks"]["ready"], 4);
    for explanation in [
        server.task(&format!("{critical}/explain")),
        server.cli().json(&["task", "explain", &critical]),
    ] {
        assert_eq!(explanation["gates"][0]["gate"], "queue", "{explanation}");
    }
    node.ask("symbol_validation", "resume").expect(200);
    let wanted = [critical, high, normal, low];
    for id in &wanted {
        server.wait_both(id, "completed");
    }
    assert_eq!(lines(&order), wanted);
    node.server.finish();
}

fn ten_tasks_in_a_queue_three_wide_never_run_four_at_once(node: Node) {
    let server = &node.server;
    node.put("symbol_validation", &json!({ "max_concurrent": 3 }));
    let file = server.file("times");
    let task = with(shell(NOTE_TIMES, &file), json!({ "queue": "symbol_validation" }));
    let ids = server.create_all(&vec![task; 10]);
    for id in &ids {
        server.wait(id, "completed");
    }
    assert_eq!(runs_at_once(&file), (10, 3));
    node.server.finish();
}

fn two_tasks_of_each_key_run_at_once_and_never_three(node: Node) {
    let server = &node.server;
    let put = ["queue", "put", "tenants", "--max-concurrent-per-key"];
    server.cli().run(&[&put[..], &["2"]].concat()).expect(0);
    let of_key = |key: &str| {
        let task = shell(NOTE_TIMES, &server.file(key));
        with(task, json!({ "queue": "tenants", "key": key }))
    };
    let both: Vec<Value> = ["a", "b"].iter().flat_map(|key| vec![of_key(key); 6]).collect();
    let ids = server.create_all(&both);
    for id in &ids {
        server.wait(id, "completed");
    }
    for key in ["a", "b"] {
        assert_eq!(runs_at_once(&server.file(key)), (6, 2), "{key}");
    }
    // While two run the third is told who they are; a wider queue lets it in, and a narrow one takes them one by one.
    let nap = json!({ "handler": "sleep", "parameters": { "seconds": 60 }, "queue": "tenants", "key": "nap" });
    let naps = server.create_all(&vec![nap; 3]);
    for id in &naps[..2] {
        server.wait(id, "running");
    }
    let told = server.task(&format!("{}/explain", naps[2]));
    assert_eq!(told["gates"][0]["gate"], "key", "{told}");
    let message = text(&told["gates"][0]["message"]);
    let of = format!(
        "2 of 2 tasks of the same key `nap` have their turn: {}, {}",
        naps[0], naps[1]
    );
    assert_eq!(message, of);
    server.cli().run(&[&put[..], &["3"]].concat()).expect(0);
    server.wait(&naps[2], "running");
    let cancel: Vec<&str> = ["task", "cancel"]
        .into_iter()
        .chain(naps.iter().map(String::as_str))
        .collect();
    server.cli().run(&cancel).expect(0);
    let clear = ["queue", "put", "tenants", "--clear", "max_concurrent_per_key"];
    server.cli().run(&clear).expect(0);
    let ids = server.create_all(&vec![of_key("one"); 3]);
    for id in &ids {
        server.wait(id, "completed");
    }
    assert_eq!(runs_at_once(&server.file("one")), (3, 1));
    node.server.finish();
}

fn a_manual_queue_runs_only_what_was_there_when_it_was_asked_to(node: Node) {
    let server = &node.server;
    node.put("integration_sync", &json!({ "auto_start": false }));
    let noop = json!({ "handler": "noop", "queue": "integration_sync" });
    let before: Vec<String> = (0..3).map(|_| server.create(&noop)).collect();
    let status = || text(&node.queue("integration_sync")["status"]);
    throughout("nothing starts by itself", Duration::from_millis(500), || {
        status() == "manual" && server.task(&before[0])["status"] == "ready"
    });
    node.ask("integration_sync", "process").expect(200);
    for id in &before {
        server.wait(id, "completed");
    }
    let after = server.create(&noop);
    throughout("what came later waits", Duration::from_millis(500), || {
        server.task(&after)["status"] == "ready"
    });
    let told = server.task(&format!("{after}/explain"));
    assert!(
        text(&told["summary"]).contains("pensum queue process integration_sync"),
        "{told}"
    );
    node.ask("integration_sync", "process").expect(200);
    server.wait(&after, "completed");
    node.server.finish();
}

fn a_rate_holds_over_every_span_of_time(node: Node) {
    const TASKS: usize = 60;
    let server = &node.server;
    node.put("mail", &json!({ "rate_limit": { "starts": 50, "burst": 10 } }));
    node.ask("mail", "pause").expect(200);
    let ids = server.create_all(&vec![json!({ "handler": "noop", "queue": "mail" }); TASKS]);
    node.ask("mail", "resume").expect(200);
    for id in &ids {
        server.wait(id, "completed");
    }
    let mut starts: Vec<Value> = ids.iter().map(|id| server.task(id)["started_at"].clone()).collect();
    starts.sort_by_key(text);
    for (first, from) in starts.iter().enumerate() {
        for (last, to) in starts.iter().enumerate().skip(first) {
            let (count, span) = (last - first + 1, seconds_between(from, to));
            // Ten at once, then one each 20 ms; the span holds both of its ends.
            assert!(
                count as f64 <= 11.0 + 50.0 * span,
                "{count} tasks started within {span} s"
            );
        }
    }
    let whole = seconds_between(&starts[0], &starts[TASKS - 1]);
    // Twice as long is a machine that is busy with something else; more is a limit that starts too little.
    assert!((0.97..2.5).contains(&whole), "{TASKS} starts took {whole} s");
    node.server.finish();
}

fn a_queue_that_is_paused_stays_so_over_a_restart(mut node: Node) {
    node.put("mail", &json!({ "max_concurrent": 2, "priority": "high" }));
    node.ask("mail", "pause").expect(200);
    let before = node.queue("mail");
    node.server.kill();
    node.server.restart();
    assert_eq!(node.queue("mail"), before);
    let id = node.server.create(&json!({ "handler": "noop", "queue": "mail" }));
    assert_eq!(
        node.server.task(&id)["priority"],
        "high",
        "its queue is known from the start"
    );
    throughout("it stays paused", Duration::from_millis(300), || {
        node.server.task(&id)["status"] == "ready"
    });
    node.ask("mail", "resume").expect(200);
    node.server.wait(&id, "completed");
    node.server.finish();
}

#[test]
fn the_task_manager_of_a_json_file_is_taken_over_with_its_agents() {
    take_over(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/task_manager_config.json"
    ));
}

#[test]
fn the_same_task_manager_is_told_in_yaml() {
    take_over(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/task_manager_config.yaml"
    ));
}

/// A node takes queues and agents from an example, and more agents from a file beside it.
fn take_over(example: &str) {
    let mut server = Server::start(&[]);
    server.stop();
    let agents = server.file("agents.json");
    let text_of_agents = r#"{"agents": {"designer": {"id": "designer", "name": "Designer", "capabilities": ["design_system"],
        "max_concurrent_tasks": 3, "status": "active"}, "validator": {"id": "validator", "capabilities": ["validation"]}}}"#;
    std::fs::write(&agents, text_of_agents).unwrap();
    for file in [example, agents.to_str().unwrap()] {
        server.add_arg("--config");
        server.add_arg(file);
    }
    server.restart();
    let queues = server.http.get("/api/v1/queues").expect(200);
    let shown: Vec<(String, u64, bool)> = items(&queues["items"])
        .iter()
        .map(|queue| {
            let settings = &queue["settings"];
            assert_eq!(queue["put_by"], "config");
            (
                text(&queue["name"]),
                settings["max_concurrent"].as_u64().unwrap(),
                settings["auto_start"].as_bool().unwrap(),
            )
        })
        .collect();
    let wanted = [
        ("Agent Communication", 5, true),
        ("Design System", 2, true),
        ("File Processing", 4, true),
        ("Integration Sync", 2, false),
        ("Symbol Validation", 3, true),
    ];
    assert_eq!(shown, wanted.map(|(name, width, auto)| (name.to_owned(), width, auto)));
    assert!(server.log_all().iter().all(|line| !line.contains("WARN")));
    let agents = server.http.get("/api/v1/agents").expect(200);
    let ids: Vec<String> = items(&agents["items"]).iter().map(|agent| text(&agent["id"])).collect();
    let wanted = [
        "communication_hub",
        "design_coordinator",
        "designer",
        "file_processor",
        "integration_manager",
        "symbol_validator",
        "validator",
    ];
    assert_eq!(ids, wanted);
    assert_eq!(agents["items"][0]["max_concurrent_tasks"], 3);
    assert_eq!(agents["items"][0]["status"], "idle");
    // A second start finds everything as it is to be.
    server.stop();
    server.restart();
    assert_eq!(server.http.get("/api/v1/queues").expect(200), queues);
    server.finish();
}

#[test]
fn settings_that_somebody_gave_a_queue_outlive_those_of_the_configuration() {
    let mut server = Server::start(&[]);
    server.stop();
    let file = server.file("c.yaml");
    let configure = |width: u32| std::fs::write(&file, format!("queues: {{ mail: {{ max_concurrent: {width} }} }}\n"));
    configure(1).unwrap();
    server.add_arg("--config");
    server.add_arg(file.to_str().unwrap());
    let width = |server: &Server| {
        server.http.get("/api/v1/queues/mail").expect(200)["settings"]["max_concurrent"]
            .as_u64()
            .unwrap()
    };
    let warnings = |server: &Server| server.log_all().iter().filter(|line| line.contains("WARN")).count();
    server.restart();
    assert_eq!(width(&server), 1);
    configure(2).unwrap();
    server.stop();
    server.restart();
    assert_eq!(
        (width(&server), warnings(&server)),
        (2, 0),
        "the configuration follows itself"
    );
    server
        .cli()
        .run(&["queue", "put", "mail", "--max-concurrent", "9"])
        .expect(0);
    server.stop();
    server.restart();
    assert_eq!((width(&server), warnings(&server)), (9, 1));
    let log = server.log();
    assert!(
        log.contains("mail") && log.contains("http:127.0.0.1") && log.contains("pensum queue put --file"),
        "{log}"
    );
    server
        .cli()
        .run(&["queue", "put", "--file", file.to_str().unwrap()])
        .expect(0);
    server.stop();
    server.restart();
    assert_eq!((width(&server), warnings(&server)), (2, 1), "now both say the same");
    server.finish();
}

#[test]
fn a_node_with_wrong_queues_does_not_start() {
    let mut server = Server::start(&[]);
    server.stop();
    let file = server.file("c.yaml");
    std::fs::write(&file, "queues:\n  mail: { max_concurrent: 0 }\n  two words: {}\n").unwrap();
    server.add_arg("--config");
    server.add_arg(file.to_str().unwrap());
    assert!(server.try_restart().is_none());
    let log = server.log();
    assert!(
        log.contains("c.yaml:2:27: queues.mail.max_concurrent: must be 1 or more"),
        "{log}"
    );
    assert!(log.contains("c.yaml:3:3: queues.two words: must be 1 to 200"), "{log}");
}

#[test]
fn a_plan_runs_in_a_queue_of_its_own_whatever_the_queues_of_its_store_say() {
    let mut server = Server::start(&[]);
    server
        .cli()
        .run(&["queue", "put", "log", "--max-retries", "0"])
        .expect(0);
    server.cli().run(&["queue", "pause", "log"]).expect(0);
    server.stop();
    let plan = "plan: P\ntasks:\n  a: { handler: log, parameters: { message: x } }\n";
    std::fs::write(server.file("p.yaml"), plan).unwrap();
    let cli = Cli::at(server.dir());
    let db = server.db_url();
    cli.run(&["run", "p.yaml", "--db", &db]).expect(0);
    let tasks = cli.json(&["task", "list", "--db", &db]);
    let task = &items(&tasks["items"])[0];
    assert!(text(&task["queue"]).starts_with("run:"), "{task}");
    assert_eq!(task["max_retries"], 3);
    server.finish();
}

fn a_low_task_starts_within_its_ageing_under_a_stream_of_high_ones(node: Node) {
    const QUEUES: [&str; 2] = ["aged", "strict"];
    let server = &node.server;
    node.put("aged", &json!({ "max_concurrent": 1, "ageing": "3s" }));
    node.put("strict", &json!({ "max_concurrent": 1 }));
    let high = |queue: &str| json!({ "handler": "sleep", "parameters": { "seconds": 0.3 }, "queue": queue, "priority": "high" });
    let keep_up = || {
        for queue in QUEUES {
            let ready = node.queue(queue)["tasks"]["ready"].as_u64().unwrap();
            // Of these none waits for long enough to rise itself.
            if ready < 4 {
                server.create_all(&vec![high(queue); 3]);
            }
        }
    };
    keep_up();
    let low = QUEUES.map(|queue| server.create(&json!({ "handler": "noop", "queue": queue, "priority": "low" })));
    let done = eventually("the low task starts", Duration::from_secs(40), || {
        keep_up();
        let task = server.task(&low[0]);
        (task["status"] == "completed").then_some(task)
    });
    let waited = seconds_between(&done["created_at"], &done["started_at"]);
    assert!((6.0..=15.0).contains(&waited), "it waited {waited} s");
    assert_eq!(done["priority"], "low");
    assert_eq!(server.task(&low[1])["status"], "ready");
    node.server.finish();
}

fn a_noisy_key_of_a_fair_queue_lets_every_other_start_in_the_first_round(node: Node) {
    let server = &node.server;
    node.put("fair", &json!({ "max_concurrent": 1, "fair": true }));
    node.ask("fair", "pause").expect(200);
    let noop = |key: &str| json!({ "handler": "noop", "queue": "fair", "key": key });
    let mut noisy = Vec::new();
    for _ in 0..10 {
        noisy.extend(server.create_all(&vec![noop("noisy"); 100]));
    }
    let quiet = ["a", "b", "c", "d", "e"].map(|key| server.create(&noop(key)));
    node.ask("fair", "resume").expect(200);
    let started = |id: &String| text(&server.wait(id, "completed")["started_at"]);
    let last = quiet.iter().map(started).max().unwrap();
    // The oldest of all goes first, and its key has its turn again after everyone else's.
    let before = noisy[..10].iter().filter(|id| started(id) < last).count();
    assert_eq!(before, 1);
    node.ask("fair", "pause").expect(200);
    node.server.finish();
}
