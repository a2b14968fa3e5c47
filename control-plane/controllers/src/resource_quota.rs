//! ResourceQuota: recounts what a namespace holds and writes it to the quotas' status.
//!
//! Admission charges what is added; this controller gives back what is deleted or finished, fills the status of new and
//! changed quotas, and corrects what a crash between charge and write left behind. Pods, Services and claims are counted
//! from their content, every other kind by number, custom kinds included: the garbage collector knows them all.

mod charges;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::quota::{self, Amounts};
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::api::PostParams;
use kube::core::ApiResource;
use kube::{Api, Resource};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::garbage::Collector;
use crate::pods;
use crate::queue::Queue;
use crate::reconcile::{Next, Reconcile, Result, found, now};
use crate::store::{Key, Store};
use charges::Charges;

/// Core kinds of which the content counts.
const BY_CONTENT: [&str; 3] = ["pods", "services", "persistentvolumeclaims"];
/// How often everything is counted anew, whatever happened.
const RESYNC_PERIOD: Duration = Duration::from_secs(300);
/// Counting takes at most this part of the time: one tenth.
const REST_PER_WORK: u32 = 9;

/// The ResourceQuota controller.
pub struct Controller {
    cluster: Arc<Cluster>,
    collector: Arc<Collector>,
    pace: Arc<Pace>,
    charges: Arc<Charges>,
}

/// Makes the controller and the queue that feeds it.
pub fn new(cluster: &Arc<Cluster>, collector: &Arc<Collector>) -> (Arc<Controller>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let pace = Arc::new(Pace::default());
    let charges = Arc::new(Charges::default());
    let (dirty, charged) = (queue.clone(), charges.clone());
    cluster.resource_quotas.subscribe(move |old, new| {
        let Some(quota) = new else {
            return old.into_iter().for_each(|quota| charged.forget(&Key::of(&**quota)));
        };
        let (key, quota) = (Key::of(&**quota), value(&**quota));
        charged.saw(&key, &quota::amounts(&quota, "/status/used"));
        if needs_status(&quota) {
            dirty.add(key);
        }
    });
    let news = News { quotas: cluster.resource_quotas.clone(), queue: queue.clone(), pace: pace.clone() };
    let news = Arc::new(news);
    let told = news.clone();
    cluster.pods.subscribe(move |old, new| {
        if old.zip(new).is_none_or(|(old, new)| counts_otherwise(old, new)) {
            told.changed("", "pods", old.or(new).and_then(|pod| pod.metadata.namespace.as_deref()));
        }
    });
    let told = news.clone();
    cluster.services.subscribe(move |old, new| {
        if old.zip(new).is_none_or(|(old, new)| old.spec != new.spec) {
            told.changed("", "services", old.or(new).and_then(|object| object.metadata.namespace.as_deref()));
        }
    });
    let told = news.clone();
    cluster.persistent_volume_claims.subscribe(move |old, new| {
        if old.zip(new).is_none_or(|(old, new)| old.spec != new.spec || old.status != new.status) {
            let namespace = old.or(new).and_then(|object| object.metadata.namespace.as_deref());
            told.changed("", "persistentvolumeclaims", namespace);
        }
    });
    collector.subscribe(move |resource: &ApiResource, namespace: &str| {
        // These are counted from their own stores, and the collector may know of a change before those do.
        if resource.group.is_empty() && BY_CONTENT.contains(&resource.plural.as_str()) {
            return;
        }
        let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
        news.changed(&resource.group, &resource.plural, namespace);
    });
    let controller = Controller { cluster: cluster.clone(), collector: collector.clone(), pace, charges };
    (Arc::new(controller), queue)
}

/// Whether a change of a pod may change what it counts for. Admission has counted what was written to its spec.
fn counts_otherwise(old: &Pod, new: &Pod) -> bool {
    pods::is_finished(old) != pods::is_finished(new)
        || old.metadata.uid != new.metadata.uid
        || old.spec.as_ref().map(|spec| &spec.containers) != new.spec.as_ref().map(|spec| &spec.containers)
}

/// Counts all quotas anew from time to time, until `cancel` is cancelled: pods that should be gone stop counting without
/// any change.
pub async fn resync(cluster: Arc<Cluster>, queue: Arc<Queue>, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(RESYNC_PERIOD) => {}
        }
        cluster.resource_quotas.all().iter().for_each(|quota| queue.add(Key::of(&**quota)));
    }
}

/// Brings changes of what is counted to the quotas that count it.
struct News {
    quotas: Arc<Store<ResourceQuota>>,
    queue: Arc<Queue>,
    pace: Arc<Pace>,
}

impl News {
    fn changed(&self, group: &str, plural: &str, namespace: Option<&str>) {
        let quotas = match namespace {
            Some(namespace) => self.quotas.in_namespace(namespace),
            None => self.quotas.all(),
        };
        for quota in quotas {
            let hard = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
            if hard.into_iter().flatten().any(|(name, _)| quota::source(name) == Some((group, plural))) {
                self.pace.add(&self.queue, Key::of(&*quota));
            }
        }
    }
}

/// Lets quotas that are expensive to count wait between two counts.
#[derive(Default)]
struct Pace {
    state: Mutex<PaceState>,
}

#[derive(Default)]
struct PaceState {
    rest_until: HashMap<Key, Instant>,
    pending: HashSet<Key>,
}

impl Pace {
    fn add(&self, queue: &Queue, key: Key) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = state.rest_until.get(&key).map(|until| until.saturating_duration_since(Instant::now()));
        match rest.filter(|rest| !rest.is_zero()) {
            None => queue.add(key),
            Some(rest) => {
                if state.pending.insert(key.clone()) {
                    queue.add_after(key, rest);
                }
            }
        }
    }

    fn begins(&self, key: &Key) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).pending.remove(key);
    }

    fn ended(&self, key: &Key, work: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        state.rest_until.retain(|_, until| *until > now);
        state.rest_until.insert(key.clone(), now + work * REST_PER_WORK);
    }
}

fn value(object: &impl Serialize) -> Value {
    serde_json::to_value(object).expect("an API object has string keys only")
}

/// Whether the status says less than, or other limits than, the spec.
fn needs_status(quota: &Value) -> bool {
    let hard = quota::amounts(quota, "/spec/hard");
    let used = quota::amounts(quota, "/status/used");
    let unknown = |name: &String| quota::source(name).is_some() && !used.contains_key(name);
    hard != quota::amounts(quota, "/status/hard") || hard.keys().any(unknown)
}

impl Controller {
    /// What the namespace holds of everything that the quota limits; kinds that are not known are left out.
    fn used(&self, quota: &Value, namespace: &str) -> Amounts {
        let hard = quota::amounts(quota, "/spec/hard");
        let kinds: HashSet<_> = hard.keys().filter_map(|name| quota::source(name)).collect();
        let mut used = Amounts::new();
        for (group, plural) in kinds {
            let counted = match (group, plural) {
                ("", "pods") => Some(sum(quota, "pods", &self.cluster.pods.in_namespace(namespace))),
                ("", "services") => {
                    Some(sum(quota, "services", &self.cluster.services.in_namespace(namespace)))
                }
                ("", "persistentvolumeclaims") => {
                    let claims = self.cluster.persistent_volume_claims.in_namespace(namespace);
                    Some(sum(quota, "persistentvolumeclaims", &claims))
                }
                _ => self.count(quota, group, plural, namespace),
            };
            let Some(counted) = counted else { continue };
            for name in quota::tracked(&hard, group, plural) {
                let amount = counted.get(name).copied().unwrap_or(api::quantity::Quantity::ZERO);
                used.insert(name.to_owned(), amount);
            }
        }
        used
    }

    fn count(&self, quota: &Value, group: &str, plural: &str, namespace: &str) -> Option<Amounts> {
        let count = self.collector.count(group, plural, namespace)?;
        let mut one = quota::usage(group, plural, &Value::Null, 0);
        let count = if quota::in_scope(quota, group, plural, &Value::Null) { count } else { 0 };
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let amount = api::quantity::Quantity::from_value(count, api::quantity::Format::DecimalSi);
        one.values_mut().for_each(|value| *value = amount);
        Some(one)
    }
}

fn sum<K: Serialize + Resource>(quota: &Value, plural: &str, objects: &[Arc<K>]) -> Amounts {
    let (mut sum, now) = (Amounts::new(), now().0.as_second());
    for object in objects {
        let object = value(&**object);
        if quota::in_scope(quota, "", plural, &object) {
            quota::add(&mut sum, &quota::usage("", plural, &object, now));
        }
    }
    sum
}

impl Reconcile for Controller {
    const NAME: &'static str = "resourcequota-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        self.pace.begins(key);
        let Some(quota) = self.cluster.resource_quotas.get(key) else { return Ok(Next::Change) };
        let began = Instant::now();
        let mut object = value(&*quota);
        let hard = quota::amounts(&object, "/spec/hard");
        let before = quota::amounts(&object, "/status/used");
        let mut used = before.clone();
        let (settled, again) = self.charges.settle(key, &before, self.used(&object, &key.namespace));
        used.extend(settled);
        used.retain(|name, _| hard.contains_key(name));
        self.pace.ended(key, began.elapsed());
        let next = again.map_or(Next::Change, Next::After);
        if used == before && hard == quota::amounts(&object, "/status/hard") {
            return Ok(next);
        }
        object["status"] = serde_json::json!({
            "hard": object["spec"]["hard"].clone(),
            "used": quota::to_json(&used),
        });
        let api = Api::<ResourceQuota>::namespaced(self.cluster.client.clone(), &key.namespace);
        let updated: ResourceQuota = serde_json::from_value(object)
            .map_err(|error| crate::reconcile::Error::Invalid(error.to_string()))?;
        if let Some(written) = found(api.replace_status(&key.name, &PostParams::default(), &updated).await)? {
            self.cluster.resource_quotas.observe(&written);
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_status_that_lacks_a_resource_or_has_another_limit_is_to_be_written() {
        let quota = |hard: Value, status: Value| json!({ "spec": { "hard": hard }, "status": status });
        let right = json!({ "hard": { "pods": "1000m" }, "used": { "pods": "0" } });
        assert!(!needs_status(&quota(json!({ "pods": "1" }), right.clone())));
        assert!(needs_status(&quota(json!({ "pods": "2" }), right.clone())));
        assert!(needs_status(&quota(json!({ "pods": "1", "secrets": "1" }), right)));
        let unknown = json!({ "hard": { "example.com/x": "1" } });
        assert!(!needs_status(&quota(json!({ "example.com/x": "1" }), unknown)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_expensive_quota_rests_and_is_queued_once() {
        let (pace, queue, key) = (Pace::default(), Queue::default(), Key::new("ns", "q"));
        pace.ended(&key, Duration::from_secs(1));
        pace.add(&queue, key.clone());
        pace.add(&queue, key.clone());
        let began = Instant::now();
        assert_eq!(queue.next().await, key);
        assert_eq!(began.elapsed().as_secs(), u64::from(REST_PER_WORK));
        queue.done(&key);
        assert!(tokio::time::timeout(Duration::from_secs(60), queue.next()).await.is_err());
    }
}
