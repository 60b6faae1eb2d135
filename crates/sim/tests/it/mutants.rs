//! The bugs on the list are still where they are looked for.

use pensum_sim::mutants::{mutants, plant, repository};

#[test]
fn every_bug_on_the_list_can_be_planted() {
    assert!(mutants().count() >= 50);
    let mut names: Vec<&str> = mutants().map(|mutant| mutant.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), mutants().count(), "two bugs have one name");
    for mutant in mutants() {
        for edit in mutant.edits {
            let text = std::fs::read_to_string(repository().join(edit.file)).unwrap();
            let planted = plant(&text, edit).unwrap_or_else(|error| panic!("{}: {}: {error}", mutant.name, edit.file));
            assert_ne!(planted, text, "{}", mutant.name);
        }
    }
}
