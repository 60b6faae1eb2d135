//! `pensum node list`, and the nodes in `pensum status`.

use rustix::process::Signal;

use super::program::Place;

#[test]
fn a_node_is_listed_while_it_runs() {
    let place = Place::new();
    let db = ["--db", "sqlite:p.db"];
    let list = |format: &str| place.ends(0, &[&["node", "list", "-o", format], &db[..]].concat());
    let (mut node, url) = place.serve(&["--slots", "5"]);
    // It says that it lives at once, but not before it listens.
    place.until("the node is listed", || !list("name").out.is_empty());
    let items = list("json").json()["items"].take();
    let found = &items[0];
    assert_eq!(
        (&found["status"], &found["address"]),
        (&"running".into(), &url.as_str().into())
    );
    assert_eq!((&found["slots"], &found["running"]), (&5.into(), &0.into()));
    assert_eq!(list("name").out.trim(), found["id"].as_str().unwrap());
    let table = list("table").out;
    assert!(
        table.starts_with("NAME") && table.contains("0/5") && table.contains(" ago"),
        "{table}"
    );
    let status = place.ends(0, &["status", "--url", &url]).out;
    assert!(status.contains("LAST SEEN") && status.contains("0/5"), "{status}");
    node.signal(Signal::TERM);
    assert_eq!(node.wait().code(), Some(0), "{}", place.read("serve.err"));
    assert!(!place.read("serve.err").contains("WARN"), "{}", place.read("serve.err"));
    let none = list("table");
    assert!(none.err.contains("no node works on this store"), "{none:?}");
    assert_eq!(list("json").json()["items"], serde_json::json!([]));
}
