//! Desired against actual: what has to change so that a table holds what it should.
//!
//! One type for every table of the node: BPF maps, routes, links. It only plans; whoever owns the table carries out
//! the changes and reports each success, so that what failed stays due. Planning costs the number of differences, not
//! the size of the table.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
};

#[derive(Debug)]
pub struct Delta<K, V> {
    desired: HashMap<K, V>,
    actual: HashMap<K, V>,
    /// The keys where the two may differ.
    due: HashSet<K>,
}

impl<K: Eq + Hash + Clone, V: PartialEq + Clone> Default for Delta<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Eq + Hash + Clone, V: PartialEq + Clone> Delta<K, V> {
    /// Nothing desired, nothing there.
    pub fn new() -> Self {
        Self { desired: HashMap::new(), actual: HashMap::new(), due: HashSet::new() }
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

    pub fn actual(&self) -> &HashMap<K, V> {
        &self.actual
    }

    pub fn insert_desired(&mut self, key: K, value: V) {
        if self.actual.get(&key) == Some(&value) {
            self.due.remove(&key);
        } else {
            self.due.insert(key.clone());
        }
        self.desired.insert(key, value);
    }

    pub fn remove_desired(&mut self, key: &K) {
        if self.desired.remove(key).is_some() || self.actual.contains_key(key) {
            if self.actual.contains_key(key) {
                self.due.insert(key.clone());
            } else {
                self.due.remove(key);
            }
        }
    }

    /// Makes `desired` all that is desired.
    pub fn set_desired(&mut self, desired: impl IntoIterator<Item = (K, V)>) {
        let mut gone: HashSet<K> = self.desired.keys().cloned().collect();
        gone.extend(self.actual.keys().cloned());
        for (key, value) in desired {
            gone.remove(&key);
            self.insert_desired(key, value);
        }
        for key in gone {
            self.remove_desired(&key);
        }
    }

    /// Takes over what a fresh look at the table found.
    pub fn set_actual(&mut self, actual: impl IntoIterator<Item = (K, V)>) {
        self.actual = actual.into_iter().collect();
        self.due = self.desired.keys().chain(self.actual.keys()).cloned().collect();
        let (desired, actual) = (&self.desired, &self.actual);
        self.due.retain(|key| desired.get(key) != actual.get(key));
    }

    /// The entries to write, new and changed ones.
    pub fn upserts(&self) -> Vec<(K, V)> {
        let mut upserts = Vec::new();
        for key in &self.due {
            if let Some(value) = self.desired.get(key) {
                upserts.push((key.clone(), value.clone()));
            }
        }
        upserts
    }

    /// The keys to delete.
    pub fn deletes(&self) -> Vec<K> {
        self.due.iter().filter(|key| !self.desired.contains_key(*key)).cloned().collect()
    }

    /// Notes that the table now holds `value` under `key`.
    pub fn upserted(&mut self, key: &K, value: V) {
        if self.desired.get(key) == Some(&value) {
            self.due.remove(key);
        } else {
            self.due.insert(key.clone());
        }
        self.actual.insert(key.clone(), value);
    }

    /// Notes that the table no longer holds `key`.
    pub fn deleted(&mut self, key: &K) {
        self.actual.remove(key);
        if self.desired.contains_key(key) {
            self.due.insert(key.clone());
        } else {
            self.due.remove(key);
        }
    }

    /// Whether the table holds what it should.
    pub fn is_settled(&self) -> bool {
        self.due.is_empty()
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
            let mut table = before.clone();
            let mut delta = Delta::from_actual(before);
            let mut wanted = HashMap::new();
            for (key, value, settles) in steps {
                match value {
                    Some(value) => { delta.insert_desired(key, value); wanted.insert(key, value); }
                    None => { delta.remove_desired(&key); wanted.remove(&key); }
                }
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
