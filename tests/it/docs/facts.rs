//! What the program offers, looked for in the pages; and the links between pages.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{pages, repository};

fn text(page: &str) -> String {
    std::fs::read_to_string(repository().join("docs").join(page)).unwrap()
}

/// Fails when a page lacks some of the names.
#[track_caller]
fn check(page: &str, names: impl IntoIterator<Item = String>) {
    let text = text(page);
    let missing: BTreeSet<String> = names.into_iter().filter(|name| !text.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "docs/{page} does not say {missing:#?}");
}

fn openapi() -> Value {
    serde_json::to_value(pensum_server::openapi()).unwrap()
}

fn keys(value: &Value) -> Vec<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

#[test]
fn every_field_of_a_task_and_of_an_attempt_is_on_the_page_on_tasks() {
    let schemas = &openapi()["components"]["schemas"];
    for schema in ["TaskInput", "TaskView", "ExecutionView", "Patch"] {
        let fields = keys(&schemas[schema]["properties"]);
        assert!(!fields.is_empty());
        check("tasks.md", fields.iter().map(|field| format!("`{field}`")));
    }
}

#[test]
fn every_field_of_a_node_is_on_the_page_on_http() {
    let fields = keys(&openapi()["components"]["schemas"]["NodeRecord"]["properties"]);
    assert!(!fields.is_empty());
    check("http.md", fields.iter().map(|field| format!("`{field}`")));
}

#[test]
fn every_field_of_an_agent_and_of_what_it_sends_is_on_its_page() {
    let schemas = &openapi()["components"]["schemas"];
    for (schema, page) in [
        ("AgentView", "http.md"),
        ("AgentInput", "agents.md"),
        ("PollInput", "agents.md"),
        ("BeatInput", "agents.md"),
        ("Heard", "http.md"),
    ] {
        let fields = keys(&schemas[schema]["properties"]);
        assert!(!fields.is_empty());
        let text = text(page);
        let missing: Vec<_> = fields.iter().filter(|field| !text.contains(field.as_str())).collect();
        assert!(missing.is_empty(), "docs/{page} does not say {missing:?} of {schema}");
    }
}

#[test]
fn every_field_and_setting_of_a_queue_is_on_its_page() {
    let schemas = &openapi()["components"]["schemas"];
    for (schema, page) in [
        ("QueueView", "http.md"),
        ("QueueInput", "queues.md"),
        ("RateInput", "queues.md"),
    ] {
        let fields = keys(&schemas[schema]["properties"]);
        assert!(!fields.is_empty());
        check(page, fields.iter().map(|field| format!("`{field}`")));
    }
}

#[test]
fn every_field_and_setting_of_a_breaker_is_on_its_page() {
    let schemas = &openapi()["components"]["schemas"];
    for (schema, page) in [("BreakerView", "http.md"), ("BreakerInput", "breakers.md")] {
        let fields = keys(&schemas[schema]["properties"]);
        assert!(!fields.is_empty());
        check(page, fields.iter().map(|field| format!("`{field}`")));
    }
}

#[test]
fn every_field_of_a_row_of_the_intake_is_on_the_page_on_http() {
    let fields = keys(&openapi()["components"]["schemas"]["IntakeRecord"]["properties"]);
    assert!(!fields.is_empty());
    check("http.md", fields.iter().map(|field| format!("`{field}`")));
}

#[test]
fn every_route_and_filter_is_on_the_page_on_http() {
    let openapi = openapi();
    for (path, item) in openapi["paths"].as_object().unwrap() {
        let path = path.strip_prefix("/api/v1").unwrap_or(path);
        let methods = keys(item);
        let routes = methods
            .iter()
            .filter(|method| ["get", "put", "post", "patch", "delete"].contains(&method.as_str()));
        check(
            "http.md",
            routes.map(|method| format!("`{} {path}`", method.to_uppercase())),
        );
    }
    let parameters = openapi["paths"]["/api/v1/tasks"]["get"]["parameters"]
        .as_array()
        .unwrap();
    check(
        "http.md",
        parameters
            .iter()
            .map(|parameter| format!("`{}`", parameter["name"].as_str().unwrap())),
    );
}

#[test]
fn every_command_and_flag_is_on_the_page_on_the_command_line() {
    let mut found = Vec::new();
    offers(&[], &mut found);
    assert!(found.len() > 60, "{found:?}");
    check("command-line.md", found);
}

/// The commands below a command and their flags, as the program's own help names them.
fn offers(command: &[&str], found: &mut Vec<String>) {
    let output = Command::new(env!("CARGO_BIN_EXE_pensum"))
        .args(command)
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let mut below = Vec::new();
    let mut lists_commands = false;
    for line in help.lines() {
        if line.ends_with(':') {
            lists_commands = line == "Commands:";
        } else if lists_commands && let Some(name) = line.strip_prefix("  ").and_then(|line| line.split(' ').next()) {
            below.extend(Some(name).filter(|name| !["", "help"].contains(name)));
        } else if let Some(flag) = line
            .trim_start()
            .split(|c: char| c != '-' && !c.is_ascii_lowercase())
            .find(|word| word.starts_with("--"))
        {
            found.extend(Some(format!("`{flag}")).filter(|_| line.trim_start().starts_with('-')));
        }
    }
    found.retain(|flag| !["`--help", "`--version"].contains(&flag.as_str()));
    for name in below {
        let path = [command, &[name]].concat();
        found.push(format!("pensum {}", path.join(" ")));
        offers(&path, found);
    }
}

#[test]
fn every_error_type_is_on_the_page_on_the_life_of_a_task() {
    let kinds = std::fs::read_to_string(repository().join("crates/engine/src/kinds.rs")).unwrap();
    let named = kinds
        .lines()
        .filter(|line| line.starts_with("pub const "))
        .filter_map(|line| line.split('"').nth(1));
    let named: Vec<String> = named.map(|kind| format!("`{kind}`")).collect();
    assert!(named.len() > 20);
    check("lifecycle.md", named);
}

#[test]
fn every_link_leads_somewhere() {
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().unwrap_or(Path::new("")).join(file),
            };
            assert!(target.exists(), "{}: there is no {link}", page.display());
            if !heading.is_empty() {
                let found = headings(&std::fs::read_to_string(&target).unwrap());
                assert!(
                    found.contains(heading),
                    "{}: there is no {link}; there are {found:?}",
                    page.display()
                );
            }
        }
    }
}

#[test]
fn every_page_is_in_the_index() {
    let index = text("README.md");
    let named: BTreeSet<&str> = links(&index).collect();
    for page in pages() {
        let name = page.file_name().unwrap().to_str().unwrap();
        assert!(
            name == "README.md" || named.contains(name),
            "docs/README.md does not lead to {name}"
        );
    }
}

/// What the links of a page lead to, but for those to other sites.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    targets.filter(|target| !target.contains("://") && !target.contains(char::is_whitespace))
}

/// The names under which the headings of a page can be linked to.
fn headings(text: &str) -> BTreeSet<String> {
    let titles = text.lines().filter(|line| line.starts_with('#'));
    titles
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}
