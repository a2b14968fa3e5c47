//! Desired against actual: what has to change so that a table holds what it should.
//!
//! One type for every table of the node: BPF maps, routes, links. It only plans; whoever owns the table carries out
//! the changes and reports each success, so that what failed stays due. Planning costs the number of differences, not
//! the size of the table.

use std::hash::Hash;

use hashbrown::{HashMap, hash_map::Entry};

/// Room that is given back once a table holds what it should.
const DIFFERING_KEPT: usize = 4096;

#[derive(Debug)]
pub struct Delta<K, V> {
    desired: HashMap<K, V>,
    /// What the table holds where that is not what is desired: most of a large table stands here once, not twice.
    differing: HashMap<K, Option<V>>,
}

impl<K: Eq + Hash + Clone, V: PartialEq + Clone> Default for Delta<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Eq + Hash + Clone, V: PartialEq + Clone> Delta<K, V> {
    /// Nothing desired, nothing there.
    pub fn new() -> Self {
        Self { desired: HashMap::new(), differing: HashMap::new() }
    }

    /// Nothing desired yet of a table that holds `actual`: all of it is due for deletion until desired.
    pub fn from_actual(actual: impl IntoIterator<Item = (K, V)>) -> Self {
        let mut delta = Self::new();
        delta.set_actual(actual);
        delta
    }

    pub fn desired(&self) -> &HashMap<K, V> {
        &self.desired
    }

    /// What the table holds under `key`.
    pub fn actual(&self, key: &K) -> Option<&V> {
        match self.differing.get(key) {
            Some(actual) => actual.as_ref(),
            None => self.desired.get(key),
        }
    }

    /// All that the table holds.
    pub fn actuals(&self) -> impl Iterator<Item = (&K, &V)> {
        let as_desired = self.desired.iter().filter(|(key, _)| !self.differing.contains_key(*key));
        as_desired.chain(self.differing.iter().filter_map(|(key, actual)| Some((key, actual.as_ref()?))))
    }

    /// How many entries the table holds. Costs the number of differences.
    pub fn actual_count(&self) -> usize {
        let differing = |(key, actual): (&K, &Option<V>)| (self.desired.contains_key(key), actual.is_some());
        let mut count = self.desired.len();
        for difference in self.differing.iter().map(differing) {
            match difference {
                (true, false) => count -= 1,
                (false, true) => count += 1,
                (true, true) | (false, false) => {}
            }
        }
        count
    }

    /// What is desired of `key`, or else what the table holds.
    pub fn known(&self, key: &K) -> Option<&V> {
        self.desired.get(key).or_else(|| self.actual(key))
    }

    pub fn insert_desired(&mut self, key: K, value: V) {
        match self.differing.entry(key.clone()) {
            Entry::Occupied(differing) => {
                if differing.get().as_ref() == Some(&value) {
                    differing.remove();
                }
            }
            Entry::Vacant(same) => {
                let actual = self.desired.get(&key);
                if actual != Some(&value) {
                    same.insert(actual.cloned());
                }
            }
        }
        self.desired.insert(key, value);
    }

    pub fn remove_desired(&mut self, key: &K) {
        let Some(value) = self.desired.remove(key) else { return };
        match self.differing.get(key) {
            Some(None) => {
                self.differing.remove(key);
            }
            Some(Some(_)) => {}
            None => {
                self.differing.insert(key.clone(), Some(value));
            }
        }
    }

    /// Makes `desired` all that is desired.
    pub fn set_desired(&mut self, desired: impl IntoIterator<Item = (K, V)>) {
        let mut gone = std::mem::take(&mut self.desired);
        for (key, value) in desired {
            if let Some(before) = gone.remove(&key) {
                self.desired.insert(key.clone(), before);
            }
            self.insert_desired(key, value);
        }
        for (key, value) in gone {
            self.desired.insert(key.clone(), value);
            self.remove_desired(&key);
        }
    }

    /// Takes over what a fresh look at the table found.
    pub fn set_actual(&mut self, actual: impl IntoIterator<Item = (K, V)>) {
        let mut actual: HashMap<K, V> = actual.into_iter().collect();
        self.differing.clear();
        for (key, value) in &self.desired {
            match actual.remove(key) {
                Some(found) if found == *value => {}
                found => {
                    self.differing.insert(key.clone(), found);
                }
            }
        }
        self.differing.extend(actual.into_iter().map(|(key, value)| (key, Some(value))));
    }

    /// The entries to write, new and changed ones.
    pub fn upserts(&self) -> Vec<(K, V)> {
        let desired = |key: &K| Some((key.clone(), self.desired.get(key)?.clone()));
        self.differing.keys().filter_map(desired).collect()
    }

    /// The keys to delete.
    pub fn deletes(&self) -> Vec<K> {
        self.differing.keys().filter(|key| !self.desired.contains_key(*key)).cloned().collect()
    }

    /// Notes that the table now holds `value` under `key`.
    pub fn upserted(&mut self, key: &K, value: V) {
        if self.desired.get(key) == Some(&value) {
            self.settled(key);
        } else {
            self.differing.insert(key.clone(), Some(value));
        }
    }

    /// Notes that the table no longer holds `key`.
    pub fn deleted(&mut self, key: &K) {
        if self.desired.contains_key(key) {
            self.differing.insert(key.clone(), None);
        } else {
            self.settled(key);
        }
    }

    fn settled(&mut self, key: &K) {
        self.differing.remove(key);
        if self.differing.is_empty() && self.differing.capacity() > DIFFERING_KEPT {
            self.differing = HashMap::new();
        }
    }

    /// Whether the table holds what it should.
    pub fn is_settled(&self) -> bool {
        self.differing.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settle(delta: &mut Delta<u8, u8>, table: &mut HashMap<u8, u8>) {
        for (key, value) in delta.upserts() {
            table.insert(key, value);
            delta.upserted(&key, value);
        }
        for key in delta.deletes() {
            assert!(table.remove(&key).is_some(), "deletes what is not there");
            delta.deleted(&key);
        }
    }

    #[test]
    fn an_unchanged_entry_is_not_written_again() {
        let mut delta = Delta::from_actual([(1, 10), (2, 20)]);
        delta.set_desired([(1, 10), (2, 21)]);
        assert_eq!(delta.upserts(), [(2, 21)]);
        assert!(delta.deletes().is_empty());
    }

    #[test]
    fn a_failed_change_stays_due() {
        let mut delta = Delta::new();
        delta.insert_desired(1, 10);
        assert_eq!(delta.upserts(), [(1, 10)]);
        assert_eq!(delta.upserts(), [(1, 10)]);
        delta.upserted(&1, 10);
        assert!(delta.is_settled());
    }

    #[test]
    fn a_change_that_is_taken_back_is_not_due() {
        let mut delta = Delta::from_actual([(1, 10)]);
        delta.set_desired([(1, 10)]);
        delta.insert_desired(1, 11);
        delta.insert_desired(1, 10);
        delta.insert_desired(2, 20);
        delta.remove_desired(&2);
        assert!(delta.is_settled());
    }

    #[test]
    fn a_fresh_look_finds_what_somebody_else_changed() {
        let mut delta = Delta::from_actual([(1, 10)]);
        delta.set_desired([(1, 10), (2, 20)]);
        delta.upserted(&2, 20);
        delta.set_actual([(2, 99), (3, 30)]);
        let mut upserts = delta.upserts();
        upserts.sort_unstable();
        assert_eq!(upserts, [(1, 10), (2, 20)]);
        assert_eq!(delta.deletes(), [3]);
    }

    proptest! {
        #[test]
        fn applying_after_any_changes_makes_the_table_equal_to_desired(
            before in prop::collection::hash_map(0u8..20, 0u8..4, 0..20),
            steps in prop::collection::vec((0u8..20, prop::option::of(0u8..4), any::<bool>()), 0..60),
        ) {
            let mut table: HashMap<u8, u8> = before.into_iter().collect();
            let mut delta = Delta::from_actual(table.clone());
            let mut wanted = HashMap::new();
            for (key, value, settles) in steps {
                match value {
                    Some(value) => { delta.insert_desired(key, value); wanted.insert(key, value); }
                    None => { delta.remove_desired(&key); wanted.remove(&key); }
                }
                prop_assert_eq!(delta.desired(), &wanted);
                let actual: HashMap<u8, u8> = delta.actuals().map(|(key, value)| (*key, *value)).collect();
                prop_assert_eq!(&actual, &table);
                prop_assert_eq!(delta.actual_count(), table.len());
                prop_assert!((0..20).all(|key| delta.actual(&key) == table.get(&key)));
                prop_assert_eq!(delta.is_settled(), table == wanted);
                if settles {
                    settle(&mut delta, &mut table);
                    prop_assert!(delta.is_settled());
                    prop_assert_eq!(&table, &wanted);
                }
            }
            settle(&mut delta, &mut table);
            prop_assert_eq!(&table, &wanted);
        }
    }
}
