//! What tokens say whose signatures were found good, by the hash of the token: checking a signature costs more than all
//! else in a small request. Bounded: two generations, the older of which is dropped when the newer is full.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use sha2::{Digest as _, Sha256};

/// Tokens of one generation; a token is some 2 kB of claims at most.
const GENERATION_MAX: usize = 2048;
/// Longer tokens are read every time.
const TOKEN_BYTES_MAX: usize = 4096;

type Hash = [u8; 32];

struct Generations<T> {
    young: HashMap<Hash, Arc<T>>,
    old: HashMap<Hash, Arc<T>>,
}

pub(super) struct Seen<T>(Mutex<Generations<T>>);

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self(Mutex::new(Generations { young: HashMap::new(), old: HashMap::new() }))
    }
}

impl<T> Seen<T> {
    /// What the token says: remembered, or read now and remembered where it is good.
    pub(super) fn get_or_read<E>(
        &self,
        token: &str,
        read: impl FnOnce() -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        if token.len() > TOKEN_BYTES_MAX {
            return read().map(Arc::new);
        }
        let hash: Hash = Sha256::digest(token).into();
        if let Some(known) = self.get(&hash) {
            return Ok(known);
        }
        let value = Arc::new(read()?);
        self.insert(hash, value.clone());
        Ok(value)
    }

    fn get(&self, hash: &Hash) -> Option<Arc<T>> {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = generations.young.get(hash) {
            return Some(value.clone());
        }
        let value = generations.old.get(hash)?.clone();
        insert(&mut generations, *hash, value.clone());
        Some(value)
    }

    fn insert(&self, hash: Hash, value: Arc<T>) {
        insert(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), hash, value);
    }
}

fn insert<T>(generations: &mut Generations<T>, hash: Hash, value: Arc<T>) {
    if generations.young.len() >= GENERATION_MAX {
        generations.old = mem::take(&mut generations.young);
    }
    generations.young.insert(hash, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_token_is_read_once_and_a_bad_one_every_time() {
        let seen: Seen<u32> = Seen::default();
        let good: Result<_, ()> = seen.get_or_read("a", || Ok(1));
        assert_eq!(good.as_deref(), Ok(&1));
        assert_eq!(seen.get_or_read("a", || -> Result<u32, ()> { panic!("known") }).as_deref(), Ok(&1));
        assert_eq!(seen.get_or_read("b", || Err(())), Err(()));
        assert_eq!(seen.get_or_read("b", || -> Result<u32, ()> { Ok(2) }).as_deref(), Ok(&2));
    }

    #[test]
    fn memory_is_bounded_and_keeps_what_is_in_use() {
        let seen: Seen<usize> = Seen::default();
        for number in 0..GENERATION_MAX * 3 {
            let _: Result<_, ()> = seen.get_or_read("hot", || Ok(0));
            let _: Result<_, ()> = seen.get_or_read(&number.to_string(), || Ok(number));
        }
        let generations = seen.0.lock().unwrap();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION_MAX);
        drop(generations);
        let _: Result<_, ()> = seen.get_or_read("hot", || panic!("in use all the time"));
    }
}
