//! The work queue between stores and reconcilers.
//!
//! A key is handed out to one worker at a time and is never queued twice: marking it dirty while it is worked on makes it
//! ready again afterwards. Failures come back after 5 ms, doubling up to 16 min.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::store::Key;

/// Keys that want to be reconciled.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Key>,
    queued: HashSet<Key>,
    active: HashSet<Key>,
    later: BTreeSet<(Instant, Key)>,
    failures_by_key: HashMap<Key, u32>,
}

const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_DOUBLINGS_MAX: u32 = 17;

impl Queue {
    /// Marks `key` as dirty.
    pub fn add(&self, key: Key) {
        let mut state = self.lock();
        if state.queued.insert(key.clone()) && !state.active.contains(&key) {
            state.ready.push_back(key);
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Marks `key` as dirty after `delay`.
    pub fn add_after(&self, key: Key, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.lock().later.insert((Instant::now() + delay, key));
        self.wake.notify_one();
    }

    /// Marks `key` as dirty after a delay that grows with each failure in a row.
    pub fn add_failed(&self, key: Key) {
        let mut state = self.lock();
        let failures = state.failures_by_key.entry(key.clone()).or_default();
        let delay = BACKOFF_MIN * 2_u32.pow((*failures).min(BACKOFF_DOUBLINGS_MAX));
        *failures += 1;
        drop(state);
        self.add_after(key, delay);
    }

    /// Forgets the failures of `key`.
    pub fn succeeded(&self, key: &Key) {
        self.lock().failures_by_key.remove(key);
    }

    /// The next key to work on; call [`Queue::done`] when finished with it.
    pub async fn next(&self) -> Key {
        loop {
            let woken = self.wake.notified();
            let deadline = {
                let mut state = self.lock();
                state.promote(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.queued.remove(&key);
                    state.active.insert(key.clone());
                    if !state.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.later.first().map(|(at, _)| *at)
            };
            match deadline {
                Some(at) => tokio::select! {
                    () = woken => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => woken.await,
            }
        }
    }

    /// Ends the work on `key`; it becomes ready again if it was marked meanwhile.
    pub fn done(&self, key: &Key) {
        let mut state = self.lock();
        state.active.remove(key);
        if state.queued.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.wake.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn promote(&mut self, now: Instant) {
        while self.later.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.later.pop_first() else { return };
            if self.queued.insert(key.clone()) && !self.active.contains(&key) {
                self.ready.push_back(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn key(name: &str) -> Key {
        Key::cluster(name)
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_marked_twice_is_handed_out_once() {
        let queue = Queue::default();
        queue.add(key("a"));
        queue.add(key("a"));
        queue.add(key("b"));
        assert_eq!(queue.next().await, key("a"));
        assert_eq!(queue.next().await, key("b"));
        assert!(tokio::time::timeout(Duration::from_secs(1), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_marked_while_active_comes_back_after_done_only() {
        let queue = Queue::default();
        queue.add(key("a"));
        let a = queue.next().await;
        queue.add(key("a"));
        assert!(tokio::time::timeout(Duration::from_secs(1), queue.next()).await.is_err());
        queue.done(&a);
        assert_eq!(queue.next().await, a);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_double_the_delay_until_a_success() {
        let queue = Queue::default();
        for expected in [5, 10, 20, 40] {
            let start = Instant::now();
            queue.add_failed(key("a"));
            let a = queue.next().await;
            assert!(start.elapsed() >= Duration::from_millis(expected));
            assert!(start.elapsed() <= Duration::from_millis(expected + 2));
            queue.done(&a);
        }
        queue.succeeded(&key("a"));
        let start = Instant::now();
        queue.add_failed(key("a"));
        queue.next().await;
        assert!(start.elapsed() <= Duration::from_millis(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_worker_is_woken_by_an_earlier_deadline() {
        let queue = Arc::new(Queue::default());
        queue.add_after(key("late"), Duration::from_secs(60));
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.next().await }
        });
        tokio::task::yield_now().await;
        queue.add_after(key("early"), Duration::from_secs(1));
        assert_eq!(waiting.await.unwrap(), key("early"));
    }
}
