//! Cutting a plan that fails down to what it takes to fail: fewer steps, fewer tasks, fewer faults, fewer nodes.

use crate::checker::check;
use crate::history::What;
use crate::scenario::{Action, QueueOrder, QueuePlan, Scenario, Step};
use crate::world::live;

/// How many plans are tried at most.
const TRIES_MAX: usize = 3_000;

/// The smallest plan that was found to break the same promise, and how many plans were tried.
///
/// # Errors
/// When a world cannot be made.
pub fn shrink(scenario: &Scenario) -> anyhow::Result<(Scenario, usize)> {
    let mut search = Search {
        promises: broken(scenario)?,
        tries: 0,
    };
    let mut best = scenario.clone();
    if search.promises.is_empty() {
        return Ok((best, 0));
    }
    loop {
        let before = best.clone();
        best = search.faults(best)?;
        best = search.steps(best)?;
        best = search.tasks(best)?;
        best = search.nodes(best)?;
        best = search.agents(best)?;
        best = search.simpler(best)?;
        if best == before || search.tries >= TRIES_MAX {
            return Ok((best, search.tries));
        }
    }
}

fn broken(scenario: &Scenario) -> anyhow::Result<Vec<&'static str>> {
    let outcome = live(scenario)?;
    let mut promises: Vec<&'static str> = check(scenario, &outcome).iter().map(|v| v.promise).collect();
    promises.sort_unstable();
    promises.dedup();
    Ok(promises)
}

struct Search {
    promises: Vec<&'static str>,
    tries: usize,
}

impl Search {
    /// True for a plan that breaks one of the promises that the first one broke.
    fn fails(&mut self, scenario: &Scenario) -> anyhow::Result<bool> {
        if self.tries >= TRIES_MAX {
            return Ok(false);
        }
        self.tries += 1;
        let found = broken(scenario)?;
        Ok(found.iter().any(|promise| self.promises.contains(promise)))
    }

    /// Leaves out items of a list, large pieces first, as long as the plan that `with` makes of the rest fails.
    fn without<T: Clone>(&mut self, items: Vec<T>, with: impl Fn(&[T]) -> Scenario) -> anyhow::Result<Vec<T>> {
        let mut items = items;
        let mut piece = items.len().div_ceil(2);
        while piece > 0 {
            let mut at = 0;
            while at < items.len() {
                let rest: Vec<T> = items[..at]
                    .iter()
                    .chain(&items[(at + piece).min(items.len())..])
                    .cloned()
                    .collect();
                if self.fails(&with(&rest))? {
                    items = rest;
                } else {
                    at += piece;
                }
            }
            piece /= 2;
        }
        Ok(items)
    }

    fn faults(&mut self, best: Scenario) -> anyhow::Result<Scenario> {
        let calls: Vec<String> = match &best.faults.only {
            Some(only) => only.clone(),
            None => {
                let outcome = live(&best)?;
                let call = |what: &What| match what {
                    What::Fault { call, .. } => Some(call.clone()),
                    _ => None,
                };
                outcome.entries.iter().filter_map(|entry| call(&entry.what)).collect()
            }
        };
        let with = |only: &[String]| {
            let mut scenario = best.clone();
            scenario.faults.only = Some(only.to_vec());
            scenario
        };
        let calls = self.without(calls, with)?;
        Ok(with(&calls))
    }

    fn steps(&mut self, best: Scenario) -> anyhow::Result<Scenario> {
        let with = |steps: &[Step]| Scenario {
            steps: steps.to_vec(),
            ..best.clone()
        };
        let steps = self.without(best.steps.clone(), with)?;
        Ok(with(&steps))
    }

    fn tasks(&mut self, best: Scenario) -> anyhow::Result<Scenario> {
        let mut best = best;
        for at in 0..best.steps.len() {
            let Action::Submit { tasks, .. } = best.steps[at].action.clone() else {
                continue;
            };
            let base = best.clone();
            let with = |rest: &[crate::TaskPlan]| {
                let mut scenario = base.clone();
                if let Action::Submit { tasks, .. } = &mut scenario.steps[at].action {
                    *tasks = rest.to_vec();
                }
                scenario
            };
            let rest = self.without(tasks, with)?;
            best = with(&rest);
        }
        Ok(best)
    }

    /// Leaves out the last node as long as that is possible; whatever meant it means the first one then.
    fn nodes(&mut self, best: Scenario) -> anyhow::Result<Scenario> {
        let mut best = best;
        while best.nodes.len() > 1 {
            let mut fewer = best.clone();
            fewer.nodes.pop();
            let count = fewer.nodes.len();
            for step in &mut fewer.steps {
                if let Action::Submit { node, .. }
                | Action::Order { node, .. }
                | Action::Queue { node, .. }
                | Action::Agent { node, .. }
                | Action::Breaker { node, .. }
                | Action::Kill { node }
                | Action::Freeze { node, .. }
                | Action::Restart { node } = &mut step.action
                {
                    *node %= count;
                }
            }
            if !self.fails(&fewer)? {
                break;
            }
            best = fewer;
        }
        Ok(best)
    }

    /// Leaves out the last agent as long as that is possible, and nothing that they all could do is asked for.
    fn agents(&mut self, best: Scenario) -> anyhow::Result<Scenario> {
        let mut best = best;
        while !best.agents.is_empty() {
            let mut fewer = best.clone();
            fewer.agents.pop();
            if !fewer.is_possible() || !self.fails(&fewer)? {
                break;
            }
            best = fewer;
        }
        Ok(best)
    }

    /// Takes away what a task or a node need not have.
    fn simpler(&mut self, best: Scenario) -> anyhow::Result<Scenario> {
        let mut best = best;
        let mut attempt = |best: &mut Scenario, change: &dyn Fn(&mut Scenario)| -> anyhow::Result<()> {
            let mut simpler = best.clone();
            change(&mut simpler);
            if simpler != *best && self.fails(&simpler)? {
                *best = simpler;
            }
            Ok(())
        };
        attempt(&mut best, &|s| s.shared_clock = true)?;
        for node in 0..best.nodes.len() {
            attempt(&mut best, &|s| s.nodes[node].behind_ms = 0)?;
            attempt(&mut best, &|s| s.nodes[node].cores = None)?;
        }
        for agent in 0..best.agents.len() {
            attempt(&mut best, &|s| s.agents[agent].sloppy = 0.0)?;
        }
        for at in 0..best.steps.len() {
            for part in [
                (|plan| plan.max = None) as fn(&mut QueuePlan),
                |plan| plan.depth = None,
                |plan| plan.max_age_ms = None,
                |plan| plan.drops = false,
                |plan| plan.rate = None,
                |plan| plan.ageing_ms = None,
                |plan| plan.fair = false,
                |plan| plan.volatile = false,
            ] {
                attempt(&mut best, &|s| {
                    if let Action::Queue { order, .. } = &mut s.steps[at].action
                        && let QueueOrder::Put { plan } = order
                    {
                        part(plan);
                    }
                })?;
            }
            let Action::Submit { tasks, .. } = &best.steps[at].action else {
                continue;
            };
            for item in 0..tasks.len() {
                let change = |s: &mut Scenario, f: &dyn Fn(&mut crate::TaskPlan)| {
                    if let Action::Submit { tasks, .. } = &mut s.steps[at].action {
                        f(&mut tasks[item]);
                    }
                };
                attempt(&mut best, &|s| change(s, &|t| t.depends_on.clear()))?;
                attempt(&mut best, &|s| change(s, &|t| t.key = None))?;
                attempt(&mut best, &|s| change(s, &|t| t.queue = None))?;
                attempt(&mut best, &|s| change(s, &|t| t.units = None))?;
                attempt(&mut best, &|s| change(s, &|t| t.rejects = false))?;
                attempt(&mut best, &|s| change(s, &|t| t.unique = None))?;
                attempt(&mut best, &|s| change(s, &|t| t.delay_ms = 0))?;
                attempt(&mut best, &|s| change(s, &|t| t.expires_ms = None))?;
                attempt(&mut best, &|s| change(s, &|t| t.queue_timeout_ms = None))?;
                attempt(&mut best, &|s| change(s, &|t| t.priority = 1))?;
                attempt(&mut best, &|s| change(s, &|t| t.demand = None))?;
                for part in [
                    (|d| d.prefers = None) as fn(&mut crate::DemandPlan),
                    |d| d.cores = 0,
                    |d| d.skills.truncate(1),
                ] {
                    attempt(&mut best, &|s| {
                        change(s, &|t| {
                            if let Some(d) = &mut t.demand {
                                part(d)
                            }
                        })
                    })?;
                }
            }
            attempt(&mut best, &|s| {
                if let Action::Submit { patience_ms, .. } = &mut s.steps[at].action {
                    *patience_ms = None;
                }
            })?;
        }
        Ok(best)
    }
}
