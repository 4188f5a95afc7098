//! A bounded set of values that forgets the least recently used one first. Pure bookkeeping, without locks or reads.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Values by key, up to a budget of bytes.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Keys by the time of their last use; times are unique.
    by_use: BTreeMap<u64, K>,
    clock: u64,
    bytes: u64,
    budget: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: u64,
    used: u64,
}

impl<K: Copy + Eq + Hash, V: Clone> Recent<K, V> {
    pub(crate) fn new(budget_bytes: u64) -> Self {
        Self { entries: HashMap::new(), by_use: BTreeMap::new(), clock: 0, bytes: 0, budget: budget_bytes }
    }

    /// The value of `key`, which counts as a use.
    pub(crate) fn get(&mut self, key: K) -> Option<V> {
        let entry = self.entries.get_mut(&key)?;
        self.by_use.remove(&entry.used);
        self.clock += 1;
        entry.used = self.clock;
        self.by_use.insert(self.clock, key);
        Some(entry.value.clone())
    }

    /// Keeps `value`, and forgets others, and in the end this one, until the budget holds.
    pub(crate) fn insert(&mut self, key: K, value: V, bytes: u64) {
        self.remove(key);
        self.clock += 1;
        self.by_use.insert(self.clock, key);
        self.entries.insert(key, Entry { value, bytes, used: self.clock });
        self.bytes += bytes;
        while self.bytes > self.budget
            && let Some((_, oldest)) = self.by_use.first_key_value()
        {
            self.remove(*oldest);
        }
    }

    fn remove(&mut self, key: K) {
        if let Some(entry) = self.entries.remove(&key) {
            self.by_use.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }

    /// Bytes of the values that are kept.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of values that are kept.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut recent = Recent::new(30);
        for key in 1..=3 {
            recent.insert(key, key * 100, 10);
        }
        assert_eq!(recent.get(1), Some(100));
        recent.insert(4, 400, 10);
        assert_eq!([1, 2, 3, 4].map(|key| recent.get(key)), [Some(100), None, Some(300), Some(400)]);
        // One larger than the budget is not kept, and takes the others with it.
        recent.insert(5, 500, 31);
        assert_eq!((recent.len(), recent.bytes()), (0, 0));
        recent.insert(6, 600, 30);
        recent.insert(6, 601, 20);
        assert_eq!((recent.get(6), recent.len(), recent.bytes()), (Some(601), 1, 20));
    }

    proptest! {
        /// Against a list that is kept in order of use.
        #[test]
        fn like_a_list(budget in 0u64..60, steps in prop::collection::vec((any::<bool>(), 0u8..12, 1u64..25), 0..200)) {
            let mut recent = Recent::new(budget);
            let mut list: Vec<(u8, u64)> = Vec::new();
            for (insert, key, bytes) in steps {
                let place = list.iter().position(|(other, _)| *other == key);
                if insert {
                    place.map(|place| list.remove(place));
                    list.push((key, bytes));
                    while list.iter().map(|(_, bytes)| bytes).sum::<u64>() > budget {
                        list.remove(0);
                    }
                    recent.insert(key, bytes, bytes);
                } else {
                    let expected = place.map(|place| {
                        let used = list.remove(place);
                        list.push(used);
                        used.1
                    });
                    prop_assert_eq!(recent.get(key), expected);
                }
                prop_assert_eq!(recent.len(), list.len());
                prop_assert_eq!(recent.bytes(), list.iter().map(|(_, bytes)| bytes).sum::<u64>());
            }
        }
    }
}
