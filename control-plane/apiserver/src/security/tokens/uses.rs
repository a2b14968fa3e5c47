//! Which tokens of Secrets were used today: noted where a token is judged, which must not wait for a write, and taken by
//! whoever labels the Secrets. Bounded: what does not fit is noted again at the token's next use.

use std::{
    collections::BTreeSet,
    mem,
    sync::{Mutex, PoisonError},
};

use tokio::sync::Notify;

/// Secrets that wait for their label at a time.
const WAITING_MAX: usize = 1024;

/// Namespace and name of a Secret.
pub type SecretName = (String, String);

/// The Secrets that wait for their label.
#[derive(Default)]
pub struct Uses {
    waiting: Mutex<BTreeSet<SecretName>>,
    noted: Notify,
}

impl Uses {
    pub(super) fn note(&self, namespace: &str, name: &str) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < WAITING_MAX && waiting.insert((namespace.to_owned(), name.to_owned())) {
            self.noted.notify_one();
        }
    }

    /// Waits until there is one, and takes all that there are. For one taker at a time.
    pub async fn take(&self) -> BTreeSet<SecretName> {
        loop {
            let taken = mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken;
            }
            self.noted.notified().await;
        }
    }
}
