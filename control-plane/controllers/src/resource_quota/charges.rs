//! What admission charged to quotas of late: objects that are paid for and need not be in sight yet.
//!
//! A request is charged before its object is stored, and the object is seen only after that. A recount in between finds
//! less than what is used; written as it is, it would let as many further requests through. So a recount adds what was
//! charged within [`SETTLE`] and is repeated when that has passed; by then a charge is either an object or was refunded.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::{
    quantity::Quantity,
    quota::{self, Amounts},
};
use tokio::time::Instant;

use crate::store::Key;

/// How long a charge may take to become an object that is seen.
const SETTLE: Duration = Duration::from_secs(1);
/// Charges within this time are kept as one.
const GRAIN: Duration = Duration::from_millis(100);

/// The recent charges of all quotas.
#[derive(Default)]
pub struct Charges {
    by_quota: Mutex<HashMap<Key, History>>,
}

#[derive(Default)]
struct History {
    used: Amounts,
    /// Oldest first; each is the sum of the charges until its time.
    raises: VecDeque<(Instant, Amounts)>,
}

impl Charges {
    /// Takes in `status.used` as it was seen now: what it rose by since it was seen last was charged.
    pub fn saw(&self, key: &Key, used: &Amounts) {
        let mut quotas = self.by_quota.lock().unwrap_or_else(PoisonError::into_inner);
        quotas.entry(key.clone()).or_default().saw(used, Instant::now());
    }

    pub fn forget(&self, key: &Key) {
        self.by_quota.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// What to write for a quota whose objects were counted as `counted` while its status says `used`: never less than
    /// the count, and less than `used` only by what recent charges do not explain. With it the time after which the last of
    /// them has settled, where a count shall follow then.
    pub fn settle(&self, key: &Key, used: &Amounts, counted: Amounts) -> (Amounts, Option<Duration>) {
        let mut quotas = self.by_quota.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (recent, rest) = quotas.get_mut(key).map(|history| history.recent(now)).unwrap_or_default();
        let mut again = None;
        let settle = |(name, counted): (String, Quantity)| {
            let Some(used) = used.get(&name) else { return (name, counted) };
            let charged = recent.get(&name).map_or(counted, |recent| counted.add(recent));
            let amount = charged.min(*used).max(counted);
            if amount > counted {
                again = Some(rest);
            }
            (name, amount)
        };
        (counted.into_iter().map(settle).collect(), again)
    }
}

impl History {
    fn saw(&mut self, used: &Amounts, now: Instant) {
        let mut raise = Amounts::new();
        for (name, amount) in used {
            let raised = self.used.get(name).map_or(*amount, |before| amount.sub(before));
            if raised.sign() > 0 {
                raise.insert(name.clone(), raised);
            }
        }
        self.used.clone_from(used);
        if raise.is_empty() {
            return;
        }
        match self.raises.back_mut() {
            Some((until, sum)) if *until >= now => quota::add(sum, &raise),
            _ => self.raises.push_back((now + GRAIN, raise)),
        }
    }

    /// The sum of what was charged within [`SETTLE`], and in what time all of it will have settled.
    fn recent(&mut self, now: Instant) -> (Amounts, Duration) {
        while self.raises.front().is_some_and(|(until, _)| *until + SETTLE <= now) {
            self.raises.pop_front();
        }
        let mut sum = Amounts::new();
        self.raises.iter().for_each(|(_, raise)| quota::add(&mut sum, raise));
        let settled = self.raises.back().map_or(now, |(until, _)| *until + SETTLE);
        (sum, settled - now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn amounts(pods: &str) -> Amounts {
        quota::amounts(&json!({ "used": { "pods": pods } }), "/used")
    }

    fn settled(charges: &Charges, used: &str, counted: &str) -> (String, Option<Duration>) {
        let (settled, again) = charges.settle(&Key::new("ns", "q"), &amounts(used), amounts(counted));
        (settled["pods"].to_string(), again)
    }

    fn quiet_at(used: &str) -> Charges {
        let charges = Charges::default();
        charges.saw(&Key::new("ns", "q"), &amounts(used));
        charges
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_charged_of_late_is_given_back_at_once() {
        let charges = quiet_at("5");
        tokio::time::advance(SETTLE + GRAIN).await;
        assert_eq!(settled(&charges, "5", "3"), ("3".to_owned(), None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_charge_whose_object_is_not_seen_yet_stays_until_it_must_have_been() {
        let charges = quiet_at("5");
        tokio::time::advance(SETTLE + GRAIN).await;
        charges.saw(&Key::new("ns", "q"), &amounts("7"));
        assert_eq!(settled(&charges, "7", "5"), ("7".to_owned(), Some(SETTLE + GRAIN)));
        assert_eq!(settled(&charges, "7", "4"), ("6".to_owned(), Some(SETTLE + GRAIN)));
        tokio::time::advance(SETTLE + GRAIN).await;
        assert_eq!(settled(&charges, "7", "5"), ("5".to_owned(), None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refund_does_not_hide_a_charge() {
        let charges = quiet_at("5");
        tokio::time::advance(SETTLE + GRAIN).await;
        let key = Key::new("ns", "q");
        charges.saw(&key, &amounts("4"));
        charges.saw(&key, &amounts("5"));
        assert_eq!(settled(&charges, "5", "4"), ("5".to_owned(), Some(SETTLE + GRAIN)));
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_was_charged_is_written_at_once() {
        let charges = quiet_at("1");
        assert_eq!(settled(&charges, "1", "4"), ("4".to_owned(), None));
        charges.forget(&Key::new("ns", "q"));
        assert_eq!(settled(&charges, "4", "2"), ("2".to_owned(), None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_quota_keeps_few_samples() {
        let charges = Charges::default();
        let key = Key::new("ns", "q");
        for pods in 0..1_000 {
            charges.saw(&key, &amounts(&pods.to_string()));
            tokio::time::advance(Duration::from_millis(5)).await;
        }
        let (settled, again) = charges.settle(&key, &amounts("999"), amounts("0"));
        let pods = settled["pods"].value();
        assert!(again.is_some() && (200..=230).contains(&pods), "{pods}");
        assert!(charges.by_quota.lock().unwrap()[&key].raises.len() <= 12);
    }
}
