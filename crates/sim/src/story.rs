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
    for (number, agent) in scenario.agents.iter().enumerate() {
        let common = if agent.common { " and what nodes do" } else { "" };
        writeln!(
            text,
            "  a{}: skills {:?}{common}, {} slot(s), {} core(s), leases of {} s, {:.0} % sloppy",
            number + 1,
            agent.skills,
            agent.slots,
            agent.cores,
            agent.lease_ms as f64 / 1e3,
            agent.sloppy * 100.0
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
            if let Some(queue) = task.queue {
                write!(text, ", queue {queue}")?;
            }
            if let Some(units) = task.units {
                write!(text, ", {units} unit(s)")?;
            }
            if task.rejects {
                write!(text, ", not to wait")?;
            }
            if let Some(unique) = task.unique {
                write!(text, ", unique {unique}")?;
            }
            if !task.depends_on.is_empty() {
                let on: Vec<String> = task.depends_on.iter().map(|label| format!("t{label}")).collect();
                write!(text, ", after {} (or {:?})", on.join(" and "), task.on_failure)?;
            }
            if let Some(demand) = &task.demand {
                write!(text, ", {} core(s)", demand.cores)?;
                if !demand.skills.is_empty() {
                    write!(text, ", skills {:?}", demand.skills)?;
                }
                if let Some(agent) = demand.prefers {
                    write!(text, ", prefers a{}", agent + 1)?;
                }
            }
            writeln!(text)?;
        }
    }
    writeln!(text)?;
    let names = Names::of(&outcome.entries);
    for (at, entry) in outcome.entries.iter().enumerate() {
        let here: Vec<&Violation> = violations.iter().filter(|v| v.entry == Some(at)).collect();
        let is_idle = match &entry.what {
            What::Renewed { .. } => true,
            What::Remote(what) => what.is_idle(),
            What::Queued(what) => what.is_idle(),
            _ => false,
        };
        if everything || !here.is_empty() || !is_idle {
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
