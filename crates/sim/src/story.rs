//! A history as a story: who did what, when, and where it went wrong.

use std::fmt::Write;

use crate::checker::Violation;
use crate::history::{Names, What};
use crate::scenario::{Action, Scenario};
use crate::world::Outcome;

/// A number on which two runs of one scenario must agree.
pub fn fingerprint(outcome: &Outcome) -> u64 {
    Names::of(&outcome.entries).hash(&outcome.entries, outcome.dawn)
}

/// The plan, what happened, and what is wrong with it, for people. Without `everything`, renewals that found nothing
/// special are left out.
pub fn story(scenario: &Scenario, outcome: &Outcome, violations: &[Violation], everything: bool) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = tell(&mut text, scenario, outcome, violations, everything);
    text
}

fn tell(
    text: &mut String,
    scenario: &Scenario,
    outcome: &Outcome,
    violations: &[Violation],
    everything: bool,
) -> std::fmt::Result {
    let clock = if scenario.shared_clock {
        "the store's clock"
    } else {
        "their own clocks"
    };
    writeln!(
        text,
        "Seed {} over {:?}: {} node(s) by {clock}, leases of {} s.",
        scenario.seed,
        scenario.store,
        scenario.nodes.len(),
        scenario.lease_ms as f64 / 1e3,
    )?;
    for (number, node) in scenario.nodes.iter().enumerate() {
        let behind = match node.behind_ms {
            0 => String::new(),
            ms => format!(", its clock {} s behind", ms as f64 / 1e3),
        };
        writeln!(
            text,
            "  n{}: {} slot(s){behind}, back {} s after its death",
            number + 1,
            node.slots,
            node.restart_ms as f64 / 1e3
        )?;
    }
    for step in &scenario.steps {
        let Action::Submit { tasks, .. } = &step.action else {
            continue;
        };
        for task in tasks {
            write!(
                text,
                "  t{}: {:?}, priority {}, {} retries",
                task.label, task.act, task.priority, task.retries
            )?;
            if let Some(key) = task.key {
                write!(text, ", key {key}")?;
            }
            if let Some(unique) = task.unique {
                write!(text, ", unique {unique}")?;
            }
            if !task.depends_on.is_empty() {
                let on: Vec<String> = task.depends_on.iter().map(|label| format!("t{label}")).collect();
                write!(text, ", after {} (or {:?})", on.join(" and "), task.on_failure)?;
            }
            writeln!(text)?;
        }
    }
    writeln!(text)?;
    let names = Names::of(&outcome.entries);
    for (at, entry) in outcome.entries.iter().enumerate() {
        let here: Vec<&Violation> = violations.iter().filter(|v| v.entry == Some(at)).collect();
        if everything || !here.is_empty() || !matches!(entry.what, What::Renewed { .. }) {
            writeln!(text, "{}", names.line(entry, outcome.dawn))?;
        }
        for violation in here {
            writeln!(text, "              ^^^ {}: {}", violation.promise, violation.what)?;
        }
    }
    writeln!(text, "\nThe world lived for {:.3} s.", outcome.lived.as_secs_f64())?;
    for task in &outcome.tasks {
        let error = task
            .record
            .error
            .as_ref()
            .map(|e| format!(" ({e})"))
            .unwrap_or_default();
        writeln!(
            text,
            "  {} is {}{error} after attempt {}",
            names.task(task.record.id),
            task.record.lifecycle.state,
            task.record.lifecycle.attempt
        )?;
    }
    for violation in violations {
        writeln!(text, "\nBROKEN: {}.\n  {}", violation.promise, violation.what)?;
    }
    Ok(())
}
