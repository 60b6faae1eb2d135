//! When keys were served last, in queues whose keys take turns.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::RandomState;

use super::order::Key;

/// Of how many keys the last turn is remembered, at least: of those that were served last. One that is forgotten goes by the
/// age of its tasks again.
const TURNS_MAX: usize = 65_536;

/// When keys were served last, in fair queues.
#[derive(Default)]
pub(super) struct Turns {
    numbers: HashMap<Key, i64, RandomState>,
    keys: BTreeMap<i64, Key>,
}

impl Turns {
    /// A key was served, with a number that grows.
    pub(super) fn note(&mut self, key: &Key, number: i64) {
        if let Some(before) = self.numbers.insert(key.clone(), number) {
            self.keys.remove(&before);
        }
        self.keys.insert(number, key.clone());
        if self.keys.len() > TURNS_MAX
            && let Some((_, oldest)) = self.keys.pop_first()
        {
            self.numbers.remove(&oldest);
        }
    }

    /// With which number a key was served last.
    pub(super) fn of(&self, key: &Key) -> Option<i64> {
        self.numbers.get(key).copied()
    }
}

#[cfg(test)]
mod tests {
    use pensum_core::Name;

    use super::*;

    #[test]
    fn of_many_keys_the_turns_of_those_that_were_served_last_are_remembered() {
        let mut turns = Turns::default();
        let key = |n: i64| (Name::from("default"), Name::from(n.to_string()));
        for n in 0..2 * TURNS_MAX as i64 {
            turns.note(&key(n / 2), n);
        }
        assert_eq!(turns.keys.len(), TURNS_MAX);
        turns.note(&key(-1), i64::MAX);
        assert_eq!((turns.keys.len(), turns.numbers.len()), (TURNS_MAX, TURNS_MAX));
        assert_eq!((turns.of(&key(0)), turns.of(&key(1))), (None, Some(3)));
    }
}
