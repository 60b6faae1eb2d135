//! The numbers of events that come from another store.
//!
//! Here an event has twice the version that it took its task to, and the start of a run the odd number below that of the
//! event that followed it. A change of a task that had ended has the odd number below its version's, which tells it from
//! one before the end.

use pensum_core::store::TaskEvent;
use pensum_core::transition::EventKind;
use pensum_core::{StoreError, TaskRecord};

use super::row::seq_of;

/// A version grows by one with each change, and does not reach the bound.
pub(super) fn version(task: &TaskRecord) -> u32 {
    u32::try_from(task.version).unwrap_or(u32::MAX)
}

/// The numbers of a task's events, of which the one at `end` ended it. Those that they have stay, if they are such as this
/// store would have given; otherwise they get numbers in the same order, with room for what comes later.
pub(super) fn numbers(task: &TaskRecord, events: &[TaskEvent], end: Option<usize>) -> Result<Vec<u64>, StoreError> {
    let changes = end.map_or(0, |end| events.len() - 1 - end);
    let before_changes = u32::try_from(changes)
        .ok()
        .and_then(|changes| version(task).checked_sub(changes));
    let history = before_changes.filter(|last| *last > 0).map(|last| History {
        events,
        end,
        last: seq_of(last),
    });
    history.and_then(|history| history.numbers()).ok_or_else(|| {
        StoreError::Conflict(format!(
            "task {} is at version {}, which is lower than its history is long; verify the store that it comes from",
            task.id, task.version
        ))
    })
}

struct History<'a> {
    events: &'a [TaskEvent],
    end: Option<usize>,
    /// The number of the version that the task was at before any change of it as an ended one.
    last: u64,
}

impl History<'_> {
    fn numbers(&self) -> Option<Vec<u64>> {
        let own: Vec<u64> = self.events.iter().map(|event| event.seq).collect();
        if self.is_ours(&own) {
            return Some(own);
        }
        let given = self.give();
        self.is_sound(&given).then_some(given)
    }

    /// How many events came before the end, or so far.
    fn before(&self) -> usize {
        self.end.unwrap_or(self.events.len())
    }

    /// The numbers of the end and of the changes after it.
    fn tail(&self) -> impl Iterator<Item = u64> {
        let changes = self.events.len() - self.before();
        let last = self.last;
        (0..changes).map(move |place| last + 2 * (place as u64).saturating_sub(1) + u64::from(place > 0))
    }

    /// True for numbers that rise, end where the version says, and leave those behind it free.
    fn is_sound(&self, numbers: &[u64]) -> bool {
        let before = &numbers[..self.before()];
        let bound = if self.end.is_some() { self.last - 1 } else { self.last };
        numbers.windows(2).all(|pair| pair[0] < pair[1])
            && before.iter().all(|number| (1..=bound).contains(number))
            && numbers[self.before()..].iter().copied().eq(self.tail())
    }

    /// True for numbers that this store may have given.
    fn is_ours(&self, numbers: &[u64]) -> bool {
        let odd_change = |(event, number): (&TaskEvent, &u64)| event.kind == EventKind::Updated && number % 2 == 1;
        self.is_sound(numbers) && !self.events.iter().zip(numbers).take(self.before()).any(odd_change)
    }

    fn give(&self) -> Vec<u64> {
        let mut numbers: Vec<u64> = (1..=self.before() as u64).map(|place| 2 * place).collect();
        // Next to the end, so that no row has to tell of it.
        if let Some(start) = self.end.and_then(|end| end.checked_sub(1))
            && self.events[start].kind == EventKind::Started
        {
            numbers[start] = self.last - 1;
        }
        numbers.extend(self.tail());
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use EventKind::{Completed, Crashed, Started, Updated};
    use pensum_core::task::{Lifecycle, OnDependencyFailure};
    use pensum_core::{Json, Spec, TaskId, Time};

    #[track_caller]
    fn check(version: u64, events: &[(EventKind, u64)], expected: Option<&[u64]>) {
        let task = TaskRecord {
            id: TaskId::mint(Time::EPOCH, 1, 1),
            created_at: Time::EPOCH,
            spec: Spec::new("noop", Json::null()),
            lifecycle: Lifecycle::new(Time::EPOCH, None, 0, OnDependencyFailure::Cancel),
            progress: None,
            result: None,
            error: None,
            depends_on: Vec::new(),
            version,
        };
        let end = events.iter().position(|(kind, _)| *kind == Completed);
        let event = |(kind, seq): &(EventKind, u64)| TaskEvent {
            seq: *seq,
            at: Time::EPOCH,
            kind: *kind,
            actor: None,
            attempt: 1,
            error: None,
        };
        let events: Vec<TaskEvent> = events.iter().map(event).collect();
        assert_eq!(numbers(&task, &events, end).ok().as_deref(), expected);
    }

    #[test]
    fn numbers_that_this_store_gave_stay() {
        check(3, &[(Started, 5), (Completed, 6)], Some(&[5, 6]));
        check(
            5,
            &[(Started, 5), (Completed, 6), (Updated, 7), (Updated, 9)],
            Some(&[5, 6, 7, 9]),
        );
        check(3, &[(Started, 5), (Crashed, 6)], Some(&[5, 6]));
        check(2, &[(Updated, 4)], Some(&[4]));
        check(1, &[], Some(&[]));
    }

    #[test]
    fn numbers_from_elsewhere_become_ones_that_leave_room_for_what_comes_later() {
        check(3, &[(Started, 1001), (Completed, 1002)], Some(&[5, 6]));
        check(
            6,
            &[
                (Started, 70),
                (Crashed, 71),
                (Started, 90),
                (Completed, 91),
                (Updated, 95),
            ],
            Some(&[2, 4, 9, 10, 11]),
        );
        check(4, &[(Updated, 900), (Started, 901), (Crashed, 902)], Some(&[2, 4, 6]));
        // An odd number would say that the task had ended when it was changed.
        check(2, &[(Updated, 3)], Some(&[2]));
        check(3, &[(Completed, 4), (Updated, 40)], Some(&[4, 5]));
    }

    #[test]
    fn a_history_that_is_longer_than_the_version_allows_is_refused() {
        check(1, &[(Started, 1001), (Crashed, 1002)], None);
        check(1, &[(Completed, 1), (Updated, 2)], None);
        check(0, &[], None);
        check(2, &[(Started, 10), (Crashed, 11), (Started, 12), (Completed, 13)], None);
    }
}
