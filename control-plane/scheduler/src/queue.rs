//! The scheduling queue: who is next, who waits out a backoff, and who waits for the cluster to change. `now` is an
//! argument.
//!
//! ```text
//!   add ──> active ──pop──> being scheduled ──reject──> unschedulable ──change that helps──> backoff ──time──> active
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::pod::PodInfo;

const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// After this long a pod is tried again even if nothing seems to have changed.
const PATIENCE: Duration = Duration::from_secs(300);

/// A change of the cluster that may make room for waiting pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A node came, or its labels, taints or resources changed.
    Node,
    /// A pod left a node.
    PodRemoved,
    /// A pod came to a node.
    PodPlaced,
}

impl Change {
    /// Whether the change may cure a rejection by this plugin.
    fn may_cure(self, plugin: &str) -> bool {
        match self {
            Self::Node => true,
            Self::PodRemoved => {
                matches!(plugin, "NodeResourcesFit" | "NodePorts" | "InterPodAffinity" | "PodTopologySpread")
            }
            Self::PodPlaced => matches!(plugin, "InterPodAffinity" | "PodTopologySpread"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active(u64),
    Backoff(Instant),
    Unschedulable(Instant),
    Popped,
}

struct Entry {
    pod: Arc<PodInfo>,
    place: Place,
    attempts: u32,
    rejected_by: Vec<&'static str>,
    ready_at: Instant,
}

/// Pods without a node.
#[derive(Default)]
pub struct Queue {
    entries: HashMap<String, Entry>,
    active: BTreeSet<(Reverse<i32>, u64, String)>,
    backoff: BTreeSet<(Instant, String)>,
    sequence: u64,
}

impl Queue {
    /// Takes in a pod, or a new version of one. A changed spec or label is a new chance at once.
    pub fn add(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let uid = pod.uid.clone();
        match self.entries.get_mut(&uid) {
            None => {
                let entry =
                    Entry { pod, place: Place::Popped, attempts: 0, rejected_by: Vec::new(), ready_at: now };
                self.entries.insert(uid.clone(), entry);
                self.activate(&uid);
            }
            Some(entry) => {
                let same = entry.pod.pod.spec == pod.pod.spec
                    && entry.pod.pod.metadata.labels == pod.pod.metadata.labels;
                let reprioritised = entry.pod.priority != pod.priority;
                entry.pod = pod;
                if !same && entry.place != Place::Popped || reprioritised {
                    self.activate(&uid);
                }
            }
        }
    }

    /// Forgets a pod: it has a node, or is gone.
    pub fn remove(&mut self, uid: &str) {
        self.leave(uid);
        self.entries.remove(uid);
    }

    /// The uids of all pods that wait.
    pub fn uids(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    /// The most important pod that may be tried now, the longest waiting among equals.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        self.promote(now);
        let (_, _, uid) = self.active.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.place = Place::Popped;
        entry.attempts += 1;
        Some(entry.pod.clone())
    }

    /// Puts back a pod that these plugins found no node for.
    pub fn reject(&mut self, uid: &str, plugins: Vec<&'static str>, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.rejected_by = plugins;
        entry.ready_at = now + backoff(entry.attempts);
        entry.place = Place::Unschedulable(now);
    }

    /// Puts back a pod whose binding failed, to be tried after its backoff.
    pub fn retry(&mut self, uid: &str, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.ready_at = now + backoff(entry.attempts);
        self.wait(uid, now);
    }

    /// Gives every pod that `change` may help another chance, after what is left of its backoff.
    pub fn changed(&mut self, change: Change, now: Instant) {
        let helped = |entry: &Entry| {
            matches!(entry.place, Place::Unschedulable(_))
                && (entry.rejected_by.is_empty()
                    || entry.rejected_by.iter().any(|plugin| change.may_cure(plugin)))
        };
        let uids: Vec<String> =
            self.entries.iter().filter(|(_, entry)| helped(entry)).map(|(uid, _)| uid.clone()).collect();
        uids.iter().for_each(|uid| self.wait(uid, now));
    }

    /// When [`Queue::pop`] may give a pod that it does not give now.
    pub fn next_deadline(&self) -> Option<Instant> {
        let waiting = self.entries.values().filter_map(|entry| match entry.place {
            Place::Unschedulable(since) => Some(since + PATIENCE),
            _ => None,
        });
        waiting.chain(self.backoff.first().map(|(at, _)| *at)).min()
    }

    fn promote(&mut self, now: Instant) {
        while let Some((at, uid)) = self.backoff.first().cloned()
            && at <= now
        {
            self.activate(&uid);
        }
        let overdue =
            |entry: &Entry| matches!(entry.place, Place::Unschedulable(since) if since + PATIENCE <= now);
        let uids: Vec<String> =
            self.entries.iter().filter(|(_, entry)| overdue(entry)).map(|(uid, _)| uid.clone()).collect();
        uids.iter().for_each(|uid| self.activate(uid));
    }

    fn wait(&mut self, uid: &str, now: Instant) {
        let Some(ready_at) = self.entries.get(uid).map(|entry| entry.ready_at) else { return };
        if ready_at <= now {
            return self.activate(uid);
        }
        self.leave(uid);
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.place = Place::Backoff(ready_at);
            self.backoff.insert((ready_at, uid.to_owned()));
        }
    }

    fn activate(&mut self, uid: &str) {
        self.leave(uid);
        if let Some(entry) = self.entries.get_mut(uid) {
            self.sequence += 1;
            entry.place = Place::Active(self.sequence);
            self.active.insert((Reverse(entry.pod.priority), self.sequence, uid.to_owned()));
        }
    }

    fn leave(&mut self, uid: &str) {
        match self.entries.get(uid).map(|entry| entry.place) {
            Some(Place::Active(sequence)) => self.active.retain(|(_, at, _)| *at != sequence),
            Some(Place::Backoff(at)) => _ = self.backoff.remove(&(at, uid.to_owned())),
            Some(Place::Unschedulable(_) | Place::Popped) | None => {}
        }
    }
}

fn backoff(attempts: u32) -> Duration {
    (BACKOFF_MIN * 2_u32.pow(attempts.saturating_sub(1).min(8))).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;

    fn info(name: &str, priority: i32) -> Arc<PodInfo> {
        let mut pod = pod(name, "100m");
        pod.spec.as_mut().unwrap().priority = Some(priority);
        Arc::new(PodInfo::new(Arc::new(pod)))
    }

    fn popped(queue: &mut Queue, now: Instant) -> Option<String> {
        queue.pop(now).map(|pod| pod.uid.clone())
    }

    #[test]
    fn importance_goes_before_age() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for (name, priority) in [("a", 0), ("b", 0), ("c", 9)] {
            queue.add(info(name, priority), now);
        }
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut queue, now)).collect();
        assert_eq!(order, ["c", "a", "b"]);
    }

    #[test]
    fn a_rejected_pod_waits_for_a_change_that_helps_and_for_its_backoff() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(info("a", 0), now);
        queue.pop(now);
        queue.reject("a", vec!["NodeResourcesFit"], now);
        queue.changed(Change::PodPlaced, now + Duration::from_secs(5));
        assert_eq!(popped(&mut queue, now + Duration::from_secs(5)), None);
        queue.changed(Change::PodRemoved, now + Duration::from_millis(500));
        assert_eq!(popped(&mut queue, now + Duration::from_millis(500)), None);
        assert_eq!(queue.next_deadline(), Some(now + Duration::from_secs(1)));
        assert_eq!(popped(&mut queue, now + Duration::from_secs(1)), Some("a".into()));
    }

    #[test]
    fn a_new_status_is_no_new_chance_and_a_new_spec_is() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(info("a", 0), now);
        queue.pop(now);
        queue.reject("a", vec!["NodeAffinity"], now);
        queue.add(info("a", 0), now);
        assert_eq!(popped(&mut queue, now), None);
        let mut changed = pod("a", "50m");
        changed.spec.as_mut().unwrap().priority = Some(0);
        queue.add(Arc::new(PodInfo::new(Arc::new(changed))), now);
        assert_eq!(popped(&mut queue, now), Some("a".into()));
    }

    #[test]
    fn after_five_minutes_a_pod_is_tried_again() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.add(info("a", 0), now);
        queue.pop(now);
        queue.reject("a", vec!["NodeAffinity"], now);
        assert_eq!(popped(&mut queue, now + PATIENCE), Some("a".into()));
    }

    #[test]
    fn failures_double_the_backoff_up_to_ten_seconds() {
        let seconds: Vec<u64> = (1..7).map(|attempts| backoff(attempts).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 10, 10]);
    }
}
