//! Is the judge awake? Each history that it finds in order is falsified in a few ways, and it must say how.

use pensum_core::{LeaseId, State};
use pensum_sim::{Entry, Outcome, Returned, Scenario, What, check_from_outside};

/// Tells some lies of a history that is in order, and says how many there were to tell.
pub(super) fn find_lies(scenario: &Scenario, outcome: &mut Outcome) -> u32 {
    let done = |entry: &Entry| match entry.what {
        What::Returns {
            task,
            how: Returned::Done,
            ..
        } => Some(task),
        _ => None,
    };
    let is_completed = |at: &usize| outcome.tasks[*at].record.lifecycle.state == State::Completed;
    let Some(place) = (0..outcome.tasks.len()).find(is_completed) else {
        return 0;
    };
    let task = outcome.tasks[place].record.id;
    let truth = outcome.entries.clone();
    let mut lies = 0;
    let mut sees = |outcome: &Outcome, promise: &str| {
        let found = check_from_outside(scenario, outcome);
        let seed = scenario.seed;
        assert!(
            found.iter().any(|violation| violation.promise == promise),
            "seed {seed}: `{promise}` was broken, and the judge says {found:?}"
        );
        lies += 1;
    };

    let gone = outcome.tasks.remove(place);
    sees(outcome, "nothing acknowledged is lost");
    outcome.tasks.insert(place, gone);

    outcome.entries.retain(|entry| done(entry) != Some(task));
    sees(outcome, "what is completed was done");
    outcome.entries.clone_from(&truth);

    let of_this = |entry: &&Entry| matches!(&entry.what, What::Ended(tasks) if tasks[0].0 == task);
    let end = truth.iter().rfind(of_this).unwrap();
    outcome.entries.push(end.clone());
    sees(outcome, "a task ends once");
    outcome.entries.clone_from(&truth);

    let of_this = |entry: &Entry| matches!(entry.what, What::Granted { task: of, .. } if of == task);
    let start = truth.iter().position(of_this).unwrap();
    let mut second = truth[start].clone();
    if let What::Granted { lease, .. } = &mut second.what {
        *lease = LeaseId(u128::MAX);
    }
    outcome.entries.insert(start + 1, second);
    sees(outcome, "one lease at a time");
    outcome.entries = truth;
    lies
}
