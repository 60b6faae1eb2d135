//! How well the runs of each agent end, as far as this process took their results.

use std::collections::VecDeque;

use foldhash::HashMap;
use parking_lot::Mutex;
use pensum_core::{Name, Outcome};

/// How many runs of an agent count: the newest.
const WINDOW: usize = 100;

/// The newest ends of runs, by namespace and agent; true for those that were no failure.
#[derive(Default)]
pub(crate) struct Health(Mutex<HashMap<(Name, Name), VecDeque<bool>>>);

impl Health {
    /// Notes the end of a run. What was stopped or given back says nothing of the agent.
    pub(super) fn note(&self, namespace: &Name, agent: &Name, outcome: &Outcome) {
        let is_good = match outcome {
            Outcome::Done(_) | Outcome::Again { .. } | Outcome::Wait { .. } | Outcome::Yielded { .. } => true,
            Outcome::Retry { .. } | Outcome::Fail(_) => false,
            Outcome::Cancelled | Outcome::Released => return,
        };
        let mut all = self.0.lock();
        let window = all.entry((namespace.clone(), agent.clone())).or_default();
        if window.len() == WINDOW {
            window.pop_front();
        }
        window.push_back(is_good);
    }

    /// The share of runs that were no failures, 0 to 1; 1 where none is known.
    pub(crate) fn score(&self, namespace: &str, agent: &str) -> f64 {
        let all = self.0.lock();
        match all.get(&(Name::from(namespace), Name::from(agent))) {
            Some(window) if !window.is_empty() => {
                window.iter().filter(|is_good| **is_good).count() as f64 / window.len() as f64
            }
            _ => 1.0,
        }
    }

    pub(super) fn forget(&self, namespace: &str, agent: &str) {
        self.0.lock().remove(&(Name::from(namespace), Name::from(agent)));
    }
}

#[cfg(test)]
mod tests {
    use pensum_core::{ErrorInfo, Json};

    use super::*;

    #[test]
    fn the_score_is_the_share_of_the_newest_runs_that_were_no_failures() {
        let health = Health::default();
        let (namespace, agent) = (Name::from("default"), Name::from("a"));
        let note = |outcome: &Outcome| {
            health.note(&namespace, &agent, outcome);
            health.score("default", "a")
        };
        assert_eq!(note(&Outcome::Released), 1.0);
        let failed = Outcome::Fail(ErrorInfo::new("failed", "no"));
        assert_eq!(note(&failed), 0.0);
        assert_eq!(note(&Outcome::Done(Json::null())), 0.5);
        for _ in 0..WINDOW - 1 {
            note(&failed);
        }
        assert_eq!(note(&Outcome::Cancelled), 0.01);
        assert_eq!(note(&failed), 0.0);
        assert_eq!((health.score("other", "a"), health.score("default", "b")), (1.0, 1.0));
        health.forget("default", "a");
        assert_eq!(health.score("default", "a"), 1.0);
    }
}
