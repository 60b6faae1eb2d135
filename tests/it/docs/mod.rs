//! What the documentation shows is what happens: its commands are run, its links are followed, and what the program
//! offers is looked for in it.
//!
//! On a page, a fenced block marked `console` is run: each line that begins with `$ ` is a command (lines that begin
//! with `> ` continue it), and the lines after it are all that it prints. `…` within a line stands for any text, `…`
//! alone on a line for any lines; a command without lines after it may print anything. A command ends with exit code 0,
//! or with the one that its last comment names: `# exit 6`. A command that ends with ` &` runs until the end of the
//! page; the lines shown of it are awaited before the next command.
//!
//! A block marked `yaml file=NAME` (or another language) is written to the file NAME first. The commands of a page run
//! in one shell, in an empty directory, with this build as `pensum`, free ports for 7400 and 7401, and an empty database for
//! `postgres://pensum@db.example/pensum`. Blocks marked `sh` are not run.

mod database;
mod facts;
mod page;
mod shell;

use std::path::{Path, PathBuf};

/// The directory of this repository.
fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page: those in docs/, and the front page where there is one.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = std::fs::read_dir(repository().join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    pages.extend(Some(repository().join("README.md")).filter(|path| path.exists()));
    pages.sort();
    pages
}

/// The blocks of a page in one language.
fn blocks(name: &str, language: &str) -> Vec<String> {
    let text = std::fs::read_to_string(repository().join(name)).unwrap();
    page::blocks(&text, language)
}

/// Runs the commands of a page, one after another.
fn check(name: &str) {
    let path = repository().join(name);
    if !path.exists() {
        return;
    }
    let steps = page::read(&path);
    let uses = |program: &str| steps.iter().any(|step| step.runs(program));
    for program in ["curl", "psql"] {
        if uses(program) && !shell::has(program) {
            eprintln!("{name} is not tried: there is no {program} on this machine");
            return;
        }
    }
    let mut shell = shell::Shell::start(steps.iter().any(page::Step::names_database));
    for step in &steps {
        if let Err(difference) = shell.take(step) {
            panic!("{name}:{}: {difference}", step.line);
        }
    }
}

macro_rules! pages {
    ($($test:ident: $page:literal,)*) => {
        $(#[test]
        fn $test() {
            check($page);
        })*

        #[test]
        fn no_page_that_shows_commands_is_left_out() {
            let tested = [$($page),*];
            for path in pages() {
                let name = path.strip_prefix(repository()).unwrap().to_str().unwrap().to_owned();
                assert!(page::read(&path).is_empty() || tested.contains(&&*name), "add {name} to tests/it/docs/mod.rs");
            }
        }
    };
}

pages! {
    the_front_page_shows_what_happens: "README.md",
    the_quick_start_shows_what_happens: "docs/quick-start.md",
    the_page_on_the_life_of_a_task_shows_what_happens: "docs/lifecycle.md",
    the_page_on_tasks_shows_what_happens: "docs/tasks.md",
    the_page_on_queues_shows_what_happens: "docs/queues.md",
    the_page_on_circuit_breakers_shows_what_happens: "docs/breakers.md",
    the_page_on_agents_shows_what_happens: "docs/agents.md",
    the_page_on_plan_files_shows_what_happens: "docs/plan-files.md",
    the_page_on_the_command_line_shows_what_happens: "docs/command-line.md",
    the_page_on_http_shows_what_happens: "docs/http.md",
    the_page_on_configuration_shows_what_happens: "docs/configuration.md",
    the_page_on_operations_shows_what_happens: "docs/operations.md",
    the_page_on_scaling_out_shows_what_happens: "docs/scaling-out.md",
    the_page_on_transactions_shows_what_happens: "docs/transactions.md",
}
