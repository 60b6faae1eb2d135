//! Plans that broke a promise once, by name.

use pensum_sim::mutants::repository;
use pensum_sim::{Scenario, check, live, story};

#[test]
fn what_was_broken_once_holds() {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(repository().join("crates/sim/regressions")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let scenario: Scenario = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let outcome = live(&scenario).unwrap();
        let violations = check(&scenario, &outcome);
        assert!(
            violations.is_empty(),
            "{name}:\n{}",
            story(&scenario, &outcome, &violations, false)
        );
        names.push(name);
    }
    assert!(!names.is_empty());
}
