//! The commands of the page on testing do what it says.

use std::process::Command;

use pensum_sim::mutants::repository;

#[test]
fn the_commands_on_the_page_succeed() {
    let page = std::fs::read_to_string(repository().join("docs/testing.md")).unwrap();
    let mut commands = 0;
    for line in page.lines() {
        let Some(arguments) = line.strip_prefix("cargo run -p pensum-sim -- ") else {
            continue;
        };
        let arguments: Vec<&str> = arguments.split_whitespace().take_while(|word| *word != "#").collect();
        // That takes as long as all other tests together.
        if arguments.contains(&"--mutants") {
            continue;
        }
        let ended = Command::new(env!("CARGO_BIN_EXE_pensum-sim"))
            .args(&arguments)
            .current_dir(repository())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success(), "{arguments:?}: {said}");
        assert!(said.contains("lived for"), "{arguments:?}: {said}");
        commands += 1;
    }
    assert_eq!(commands, 5);
}
