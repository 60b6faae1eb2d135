//! `pensum db copy`: what arrives, what is refused, and what a copy that died leaves behind.

use pensum_core::store::Call;
use pensum_core::{Json, NewTask, Spec, Time};
use pensum_testing::postgres::{Database, connect};

use super::program::{Place, Said};

const FROM: &str = "sqlite:from.db";
const TO: &str = "sqlite:to.db";

/// A store with tasks that have ended, that wait and that are ready.
fn settled() -> Place {
    let place = Place::new();
    let plan = "plan: x\ntasks:\n  a: { handler: log, parameters: { message: hello } }\n  b: { handler: noop, \
                depends_on: [a] }\n  c: { handler: fail, max_retries: 0, parameters: { message: no } }\n";
    place.write("p.yaml", plan);
    place.ends(1, &["run", "p.yaml", "--db", FROM]);
    for more in [&["--delay", "1h"][..], &["--priority", "high"], &["--queue", "later"]] {
        place.ends(
            0,
            &[&["task", "create", "--handler", "noop", "--db", FROM], more].concat(),
        );
    }
    place
}

/// What can be seen of the tasks in a store.
fn seen(place: &Place, url: &str) -> String {
    let list = place.ends(0, &["task", "list", "--all", "-o", "json", "--db", url]).out;
    let tasks: serde_json::Value = serde_json::from_str(&list).unwrap();
    let events = tasks["items"].as_array().unwrap().iter().map(|task| {
        let id = task["id"].as_str().unwrap();
        let of = |what| place.ends(0, &["task", what, id, "-o", "json", "--db", url]).out;
        // The order of an event within its store is not the same everywhere.
        let events: serde_json::Value = serde_json::from_str(&of("events")).unwrap();
        let events: Vec<String> = events["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| format!("{} {} {}", event["at"], event["event"], event["attempt"]))
            .collect();
        format!("{events:?} {}", of("logs"))
    });
    format!("{list} {}", events.collect::<String>())
}

#[track_caller]
fn check_refused(said: &Said, code: i32, expected: &str) {
    assert_eq!(said.code, code, "{said:?}");
    assert!(said.err.contains(expected), "{} should hold {expected}", said.err);
    assert!(said.out.is_empty(), "{said:?}");
}

#[test]
fn a_copy_holds_what_its_source_holds_and_says_how_much() {
    let place = settled();
    let said = place.ends(0, &["db", "copy", FROM, TO, "-o", "json"]);
    let copied = said.json();
    assert_eq!((&copied["tasks"], &copied["logs"]), (&6.into(), &1.into()), "{copied}");
    // Six creations, three starts and ends, and one dependency that was met.
    assert_eq!(copied["events"], 13, "{copied}");
    assert!(copied["seconds"].as_f64().unwrap() > 0.0, "{copied}");
    for stage in ["copying …", "comparing …", "verifying …"] {
        assert!(said.err.contains(stage), "{said:?}");
    }
    assert_eq!(seen(&place, FROM), seen(&place, TO));
    let verified = place.ends(0, &["db", "verify", "--db", TO]);
    assert_eq!(verified.out, "6 tasks checked, 0 violations\n");
    // What failed can be retried in the copy, and what comes later is new there.
    place.ends(0, &["dlq", "retry", "--all", "--db", TO]);
    place.ends(0, &["task", "create", "--handler", "noop", "--db", TO]);
    let verified = place.ends(0, &["db", "verify", "--db", TO]);
    assert_eq!(verified.out, "7 tasks checked, 0 violations\n");
}

#[test]
fn a_copy_of_a_copy_tells_the_same_to_people() {
    let place = settled();
    place.ends(0, &["db", "copy", FROM, TO]);
    let said = place.ends(0, &["db", "copy", TO, "sqlite:third.db"]);
    let expected = "tasks             6\nevents            13\nlog lines         1\nidempotency keys  0\nqueues            0\n\
                    agents            0\ncircuit breakers  0\ntook              ";
    assert!(said.out.starts_with(expected), "{said:?}");
    assert_eq!(seen(&place, FROM), seen(&place, "sqlite:third.db"));
}

#[test]
fn a_copy_that_cannot_be_meant_is_refused_and_changes_nothing() {
    let place = settled();
    let copy = |from: &str, to: &str| place.pensum(&["db", "copy", from, to]);
    check_refused(
        &copy("sqlite:nowhere.db", TO),
        3,
        "there is no store at sqlite:nowhere.db",
    );
    check_refused(&copy("from.db", TO), 2, "FROM from.db: is not the URL of a store");
    check_refused(&copy(FROM, "mysql:to"), 2, "TO mysql:to: is not the URL of a store");
    check_refused(&copy(FROM, "sqlite::memory:"), 2, "name a file");
    check_refused(&copy(FROM, "sqlite:./from.db"), 2, "the same store");
    check_refused(
        &place.pensum(&["db", "copy", FROM, TO, "--db", FROM]),
        2,
        "leave --db out",
    );
    assert!(!place.path().join("to.db").exists() && !place.path().join("nowhere.db").exists());
    place.ends(0, &["task", "create", "--handler", "noop", "--db", TO]);
    check_refused(&copy(FROM, TO), 6, "to.db holds 1 task already; name an empty store");
    let verified = place.ends(0, &["db", "verify", "--db", TO]);
    assert_eq!(verified.out, "1 tasks checked, 0 violations\n");
    let (_node, address) = place.serve(&[]);
    check_refused(&copy("sqlite:p.db", "sqlite:other.db"), 6, &address);
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(future)
}

#[test]
fn a_copy_goes_to_postgres_and_back() {
    let place = settled();
    let database = block_on(Database::fresh());
    let url = database.url();
    check_refused(
        &place.pensum(&["db", "copy", &url, TO]),
        3,
        "there is no store at postgres://",
    );
    let copied = place.ends(0, &["db", "copy", FROM, &url, "-o", "json"]).json();
    assert_eq!(
        (&copied["tasks"], &copied["events"]),
        (&6.into(), &13.into()),
        "{copied}"
    );
    check_refused(&place.pensum(&["db", "copy", FROM, &url]), 6, "holds 6 tasks already");
    place.ends(0, &["db", "copy", &url, TO]);
    assert_eq!(seen(&place, FROM), seen(&place, TO));
    assert_eq!(
        place.ends(0, &["db", "verify", "--db", &url]).out,
        "6 tasks checked, 0 violations\n"
    );
    // As a copy that died would leave it.
    block_on(async {
        let half = "INSERT INTO pensum.meta(key, value) VALUES ('filling', 1)";
        connect(&url).await.batch_execute(half).await.unwrap();
    });
    check_refused(
        &place.pensum(&["db", "verify", "--db", &url]),
        6,
        "holds a copy that was not finished",
    );
    check_refused(
        &place.pensum(&["db", "copy", FROM, &url]),
        6,
        "holds a copy that was not finished",
    );
}

#[test]
fn half_a_copy_passes_for_no_store() {
    /// A copy takes longer than this test needs to end it.
    const MANY: usize = 20_000;
    let place = Place::new();
    block_on(async {
        let store = pensum_store::open(&format!("sqlite:{}/from.db", place.path().display()), "tests").unwrap();
        let call = Call::new("tester", Time::EPOCH);
        for _ in 0..MANY / 10_000 {
            let tasks = (0..10_000).map(|_| NewTask::new(Spec::new("noop", Json::null())));
            store.enqueue(&call, tasks.collect()).await.unwrap();
        }
        store.close().await.unwrap();
    });
    let mut copy = place.start("copy", &["db", "copy", FROM, TO]);
    place.until("the copy begins", || place.read("copy.err").contains("copying …"));
    copy.kill();
    assert_eq!(place.read("copy.out"), "", "the copy was faster than its end");
    let half = "to.db holds a copy that was not finished; remove it, and copy again";
    check_refused(&place.pensum(&["db", "verify", "--db", TO]), 6, half);
    check_refused(&place.pensum(&["task", "list", "--db", TO]), 6, half);
    check_refused(
        &place.pensum(&["serve", "--db", TO, "--listen", "127.0.0.1:0"]),
        6,
        half,
    );
    check_refused(&place.pensum(&["db", "copy", FROM, TO]), 6, half);
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(place.path().join(format!("to.db{suffix}")));
    }
    let said = place.ends(0, &["db", "copy", FROM, TO, "-o", "json"]);
    assert_eq!(said.json()["tasks"], MANY);
}
