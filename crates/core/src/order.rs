//! The claim order: which of the tasks that are ready starts first.
//!
//! The level goes first, then the deadline, then the age. A level is the task's own priority unless its queue ages what
//! waits; the age is the row number, which grows with each enqueue, unless its queue is fair to keys.

use std::time::Duration;

use crate::{Priority, Time};

/// How the tasks of a queue stand in the claim order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OrderRule {
    /// Whoever has been ready for this long stands one level higher, again and again up to critical; `None` for never.
    pub ageing: Option<Duration>,
    /// Keys take turns: see [`OrderRule::age`].
    pub fair: bool,
    /// How many tasks of one key may have their turn at once beside one of this queue, itself included; `None` for one. See
    /// [`KeyTurns`].
    pub per_key: Option<u32>,
}

impl OrderRule {
    /// The rule of queues that do not say otherwise.
    pub const STRICT: OrderRule = OrderRule {
        ageing: None,
        fair: false,
        per_key: None,
    };

    /// [`OrderRule::per_key`] as a number, one at least.
    pub fn width(self) -> u32 {
        self.per_key.unwrap_or(1).max(1)
    }

    /// The level at which a task stands at `now` that could have been claimed since `ready_from`.
    pub fn level(self, priority: Priority, ready_from: Time, now: Time) -> Priority {
        let Some(ageing) = self.ageing.filter(|ageing| !ageing.is_zero()) else {
            return priority;
        };
        let rises = now.since(ready_from).as_micros() / ageing.as_micros().max(1);
        let highest = Priority::Critical.level();
        let level = i64::try_from(rises).map_or(highest, |rises| priority.level().saturating_add(rises).min(highest));
        Priority::from_level(level).unwrap_or(Priority::Critical)
    }

    /// When a task that stands at `level` stands at the next one; `None` for one that rises no more.
    pub fn rises_at(self, priority: Priority, ready_from: Time, level: Priority) -> Option<Time> {
        let ageing = self.ageing?;
        if level >= Priority::Critical {
            return None;
        }
        let rises = u32::try_from(level.level() - priority.level() + 1).unwrap_or(1);
        Some(ready_from.plus(ageing.saturating_mul(rises)))
    }

    /// Since when a task counts among others of its level, as a number of the sequence that row numbers are from. In a fair
    /// queue the end of a key's run takes a number (`served`), and until the next one its tasks are as young as that: behind
    /// whatever was enqueued before it, and before whatever comes after.
    pub fn age(self, row: i64, served: Option<i64>) -> i64 {
        match served {
            Some(served) if self.fair => served.max(row),
            _ => row,
        }
    }
}

/// Whose turn it is among the tasks of one key: of those that run, and of those that could start, best first, as many as the
/// narrowest queue of all of these lets have their turn at once.
///
/// Nothing passes by the first one that has to wait, so a task of a narrow queue comes to its turn behind any number of
/// tasks of wide ones, and whoever has a turn may start before or after the others that have one.
#[derive(Clone, Copy, Debug)]
pub struct KeyTurns {
    taken: u32,
    least: u32,
    is_over: bool,
}

impl Default for KeyTurns {
    fn default() -> KeyTurns {
        KeyTurns {
            taken: 0,
            least: u32::MAX,
            is_over: false,
        }
    }
}

impl KeyTurns {
    /// With tasks that run, by the widths of their queues. They may be more than that: those were wider then.
    pub fn beside(running: impl IntoIterator<Item = u32>) -> KeyTurns {
        let mut turns = KeyTurns::default();
        for width in running {
            turns.taken = turns.taken.saturating_add(1);
            turns.least = turns.least.min(width);
        }
        turns
    }

    /// True when the next best one has its turn, too. Once false, it is so for all behind.
    pub fn admits(&mut self, width: u32) -> bool {
        let least = self.least.min(width);
        self.is_over |= self.taken >= least;
        if self.is_over {
            return false;
        }
        (self.taken, self.least) = (self.taken + 1, least);
        true
    }

    /// How many have their turn.
    pub fn taken(&self) -> u32 {
        self.taken
    }
}

/// What comes behind every deadline: the age of a task that has none is added to it.
const UNDATED: i64 = i64::MAX - (1 << 40);

/// Deadline and age as one number, by which tasks of one level stand. Of two with one deadline, the older row is first.
pub fn place(deadline: Option<Time>, age: i64) -> i64 {
    match deadline {
        Some(deadline) => deadline.as_micros().min(UNDATED - 1),
        None => UNDATED.saturating_add(age),
    }
}

/// The deadline of a [`place`].
pub fn deadline_of(place: i64) -> Option<Time> {
    (place < UNDATED).then_some(Time::from_micros(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: i64) -> Time {
        Time::from_micros(1_700_000_000_000_000 + seconds * 1_000_000)
    }

    fn ageing(seconds: u64) -> OrderRule {
        OrderRule {
            ageing: Some(Duration::from_secs(seconds)),
            fair: false,
            per_key: None,
        }
    }

    #[track_caller]
    fn check(priority: Priority, waited: i64, level: Priority, rises_at: Option<i64>) {
        let rule = ageing(60);
        let found = rule.level(priority, at(0), at(waited));
        assert_eq!(found, level, "{priority} after {waited} s");
        assert_eq!(rule.rises_at(priority, at(0), level), rises_at.map(at), "{priority}");
    }

    #[test]
    fn a_task_rises_by_one_level_for_each_time_that_it_has_waited() {
        use Priority::{Critical, High, Low, Normal, Urgent};
        check(Low, -5, Low, Some(60));
        check(Low, 0, Low, Some(60));
        check(Low, 59, Low, Some(60));
        check(Low, 60, Normal, Some(120));
        check(Low, 179, High, Some(180));
        check(Low, 180, Urgent, Some(240));
        check(Low, 240, Critical, None);
        check(Low, 100_000_000, Critical, None);
        check(High, 61, Urgent, Some(120));
        check(Critical, 0, Critical, None);
    }

    #[test]
    fn without_ageing_nobody_rises() {
        let rule = OrderRule::STRICT;
        assert_eq!(rule.level(Priority::Low, at(0), at(1_000_000)), Priority::Low);
        assert_eq!(rule.rises_at(Priority::Low, at(0), Priority::Low), None);
        assert_eq!(rule.age(7, Some(90)), 7);
    }

    #[test]
    fn the_longest_and_the_shortest_ageing_overflow_nothing() {
        let longest = OrderRule {
            ageing: Some(Duration::MAX),
            fair: false,
            per_key: None,
        };
        assert_eq!(longest.level(Priority::Low, Time::EPOCH, Time::MAX), Priority::Low);
        assert_eq!(
            longest.rises_at(Priority::Low, at(0), Priority::Urgent),
            Some(Time::MAX)
        );
        let shortest = OrderRule {
            ageing: Some(Duration::from_micros(1)),
            fair: false,
            per_key: None,
        };
        let first = Time::from_micros(i64::MIN);
        assert_eq!(shortest.level(Priority::Low, first, Time::MAX), Priority::Critical);
    }

    #[test]
    fn in_a_fair_queue_a_key_is_as_old_as_its_last_turn() {
        let fair = OrderRule {
            ageing: None,
            fair: true,
            per_key: None,
        };
        assert_eq!(fair.age(7, None), 7);
        assert_eq!(fair.age(7, Some(90)), 90);
        assert_eq!(fair.age(91, Some(90)), 91);
    }

    #[track_caller]
    fn check_turns(running: &[u32], waiting: &[u32], expected: usize) {
        let mut turns = KeyTurns::beside(running.iter().copied());
        let admitted: Vec<bool> = waiting.iter().map(|width| turns.admits(*width)).collect();
        let wanted: Vec<bool> = (0..waiting.len()).map(|place| place < expected).collect();
        assert_eq!(admitted, wanted, "{waiting:?} beside {running:?}");
        assert_eq!(turns.taken() as usize, running.len() + expected);
    }

    #[test]
    fn of_a_key_as_many_have_their_turn_as_the_narrowest_of_their_queues_lets() {
        check_turns(&[], &[], 0);
        check_turns(&[], &[1, 1], 1);
        check_turns(&[1], &[1, 1], 0);
        check_turns(&[], &[3, 3, 3, 3], 3);
        check_turns(&[3, 3], &[3, 3], 1);
        check_turns(&[3, 3, 3], &[3], 0);
        // A narrow one waits until nobody has a turn, and nobody passes it by.
        check_turns(&[3], &[1, 3], 0);
        check_turns(&[], &[3, 1, 3], 1);
        // Beside a narrow one nobody starts.
        check_turns(&[1], &[3], 0);
        check_turns(&[], &[1, 3], 1);
        check_turns(&[3], &[2, 3], 1);
        check_turns(&[2], &[3, 3], 1);
        check_turns(&[], &[2, 3, 3], 2);
        check_turns(&[], &[3, 3, 2, 3], 2);
        check_turns(&[3, 3], &[10_000; 2], 1);
        // The queue was wider.
        check_turns(&[2, 2, 2], &[2], 0);
        check_turns(&[1, 1], &[1, 3], 0);
    }

    #[test]
    fn a_queue_that_says_nothing_is_one_wide() {
        let wide = |per_key| OrderRule {
            per_key,
            ..OrderRule::STRICT
        };
        let widths = [None, Some(0), Some(1), Some(7)].map(|per_key| wide(per_key).width());
        assert_eq!(widths, [1, 1, 1, 7]);
    }

    #[test]
    fn deadlines_come_before_ages_and_can_be_read_again() {
        let places = [
            place(Some(at(1)), 9),
            place(Some(at(2)), 1),
            place(Some(Time::MAX), 1),
            place(None, 0),
            place(None, 1),
            place(None, (1 << 40) - 1),
        ];
        assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
        assert_eq!(deadline_of(places[1]), Some(at(2)));
        assert_eq!(deadline_of(places[3]), None);
        assert_eq!(deadline_of(i64::MAX), None);
    }
}
