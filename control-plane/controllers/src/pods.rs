//! What the controllers of pods have in common: readiness, ownership, making pods from templates, and choosing which
//! pods to delete. No IO.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::core::{Selector, SelectorExt};
use kube::{Resource, ResourceExt};

use crate::reconcile::{Error, Result, elapsed};

/// The pod's condition of this type.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// Whether the pod's Ready condition is True.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// Whether the pod has been Ready for `min_ready_seconds`.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    available_in(pod, min_ready_seconds, now).is_some_and(|remaining| remaining.is_zero())
}

/// How long until a Ready pod counts as available; `None` if it is not Ready.
pub fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    let ready = condition(pod, "Ready").filter(|ready| ready.status == "True")?;
    let needed = Duration::from_secs(u64::try_from(min_ready_seconds).unwrap_or(0));
    if needed.is_zero() {
        return Some(Duration::ZERO);
    }
    let since = ready.last_transition_time.as_ref()?.0;
    Some(needed.saturating_sub(elapsed(since, now)))
}

/// The pod's phase; Pending where it has none yet.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Whether the pod has ended and will not run again.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod is asked to go.
pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether the pod runs or may still run.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_terminating(pod)
}

/// The node that the pod is bound to.
pub fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// Parses a selector; an invalid one is an error that names it.
pub fn selector(selector: &LabelSelector) -> Result<Selector> {
    Selector::try_from(selector.clone()).map_err(|error| Error::Invalid(format!("spec.selector: {error}")))
}

/// Whether `selector` matches the labels of `object`.
pub fn selects<K: Resource>(selector: &Selector, object: &K) -> bool {
    selector.matches(object.labels())
}

/// The reference to a controller that its dependents carry.
pub fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A pod made from `template`, owned by `owner`, its name generated from the owner's.
pub fn from_template(template: &PodTemplateSpec, owner: OwnerReference, namespace: &str) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let mut prefix = format!("{}-", owner.name);
    if prefix.len() > 253 {
        prefix.truncate(253);
    }
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(prefix),
            namespace: Some(namespace.to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Which objects belong to an owner and what must be written to make that so.
pub struct Claim<K> {
    /// Already owned, and selected.
    pub owned: Vec<Arc<K>>,
    /// Selected orphans that the owner should take.
    pub adopt: Vec<Arc<K>>,
    /// Owned, but selected no longer.
    pub release: Vec<Arc<K>>,
}

/// Sorts `candidates` by what they are to the owner with this `uid`.
///
/// An owner that is being deleted takes and releases nothing; orphans that are being deleted are left alone.
pub fn claim<K: Resource>(
    uid: &str,
    owner_terminating: bool,
    selector: &Selector,
    candidates: impl IntoIterator<Item = Arc<K>>,
) -> Claim<K> {
    let mut claim = Claim { owned: Vec::new(), adopt: Vec::new(), release: Vec::new() };
    for object in candidates {
        let selected = !selector.selects_all() && selects(selector, &*object);
        match crate::store::owner_uid(&*object) {
            Some(owner) if owner == uid => match selected {
                true => claim.owned.push(object),
                false if !owner_terminating => claim.release.push(object),
                false => {}
            },
            Some(_) => {}
            None => {
                if selected && !owner_terminating && object.meta().deletion_timestamp.is_none() {
                    claim.adopt.push(object);
                }
            }
        }
    }
    claim
}

/// Orders pods so that the first is the first to be deleted.
///
/// `rank` is the number of the owner's active pods on the pod's node: crowded nodes are relieved first. Times are compared
/// on a logarithmic scale, so that among pods of about the same age the choice does not always fall on the same one.
pub fn compare_for_deletion(a: (&Pod, usize), b: (&Pod, usize), now: Timestamp) -> Ordering {
    let ((a, rank_a), (b, rank_b)) = (a, b);
    node_name(a)
        .is_some()
        .cmp(&node_name(b).is_some())
        .then_with(|| phase_order(a).cmp(&phase_order(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| rank_b.cmp(&rank_a))
        .then_with(|| compare_ages(ready_since(a), ready_since(b), now))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| compare_ages(created(a), created(b), now))
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

/// The `count` pods of `pods` to delete first; `related` are all pods that crowd the nodes.
pub fn choose_for_deletion(
    pods: &[Arc<Pod>],
    related: &[Arc<Pod>],
    count: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    let mut crowd: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in related.iter().filter(|pod| is_active(pod)) {
        if let Some(node) = node_name(pod) {
            *crowd.entry(node).or_default() += 1;
        }
    }
    let rank = |pod: &Pod| node_name(pod).and_then(|node| crowd.get(node)).copied().unwrap_or(0);
    let mut sorted = pods.to_vec();
    sorted.sort_by(|a, b| compare_for_deletion((a, rank(a)), (b, rank(b)), now));
    sorted.truncate(count);
    sorted
}

fn phase_order(pod: &Pod) -> u8 {
    match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    let cost = pod.annotations().get("controller.kubernetes.io/pod-deletion-cost");
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready").filter(|c| c.status == "True")?.last_transition_time.as_ref().map(|time| time.0)
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref());
    statuses.unwrap_or_default().iter().map(|status| status.restart_count).max().unwrap_or(0)
}

/// Younger first, by powers of two of the age; a missing time is the youngest.
fn compare_ages(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp) -> Ordering {
    let magnitude = |time: Option<Timestamp>| {
        time.map(|time| elapsed(time, now).as_secs().checked_ilog2().map_or(0, |log| log + 1))
    };
    magnitude(a).cmp(&magnitude(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodSpec, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use proptest::prelude::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn pod(name: &str, node: Option<&str>, phase: &str, ready_at: Option<i64>) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(name.into());
        pod.metadata.creation_timestamp = Some(Time(at(0)));
        pod.spec = Some(PodSpec { node_name: node.map(Into::into), ..PodSpec::default() });
        let ready = PodCondition {
            type_: "Ready".into(),
            status: if ready_at.is_some() { "True".into() } else { "False".into() },
            last_transition_time: Some(Time(at(ready_at.unwrap_or(0)))),
            ..PodCondition::default()
        };
        pod.status = Some(PodStatus {
            phase: Some(phase.into()),
            conditions: Some(vec![ready]),
            ..PodStatus::default()
        });
        pod
    }

    fn first(pods: &[Pod]) -> String {
        let pods: Vec<_> = pods.iter().cloned().map(Arc::new).collect();
        choose_for_deletion(&pods, &pods, 1, at(100_000))[0].name_any()
    }

    #[test]
    fn pods_that_lose_least_are_deleted_first() {
        let running = pod("running", Some("n1"), "Running", Some(10));
        let unready = pod("unready", Some("n1"), "Running", None);
        let pending = pod("pending", Some("n1"), "Pending", None);
        let unbound = pod("unbound", None, "Pending", None);
        assert_eq!(first(&[running.clone(), unready.clone(), pending.clone(), unbound]), "unbound");
        assert_eq!(first(&[running.clone(), unready.clone(), pending]), "pending");
        assert_eq!(first(&[running, unready]), "unready");
    }

    #[test]
    fn deletion_cost_goes_before_crowding_and_crowding_before_age() {
        let mut dear = pod("dear", Some("n1"), "Running", Some(10));
        dear.annotations_mut().insert("controller.kubernetes.io/pod-deletion-cost".into(), "5".into());
        let crowded = pod("crowded", Some("n1"), "Running", Some(10));
        let alone = pod("alone", Some("n2"), "Running", Some(90_000));
        assert_eq!(first(&[dear.clone(), crowded.clone(), alone.clone()]), "crowded");
        assert_eq!(first(&[dear, alone]), "alone");
    }

    #[test]
    fn a_pod_becomes_available_after_min_ready_seconds() {
        let pod = pod("a", Some("n1"), "Running", Some(0));
        assert_eq!(available_in(&pod, 10, at(4)), Some(Duration::from_secs(6)));
        assert!(is_available(&pod, 10, at(10)));
        assert!(is_available(&pod, 0, at(0)));
    }

    #[test]
    fn a_terminating_owner_claims_nothing_new() {
        let selector: Selector = [("app", "web")].into_iter().collect();
        let mut orphan = pod("orphan", None, "Pending", None);
        orphan.labels_mut().insert("app".into(), "web".into());
        let claimed = claim("u", true, &selector, [Arc::new(orphan.clone())]);
        assert!(claimed.adopt.is_empty());
        let claimed = claim("u", false, &selector, [Arc::new(orphan)]);
        assert_eq!(claimed.adopt.len(), 1);
    }

    proptest! {
        #[test]
        fn the_choice_does_not_depend_on_the_order_of_the_list(
            seeds in prop::collection::vec((0_u8..3, 0_u8..3, prop::option::of(0_i64..99_000)), 1..12),
            count in 0_usize..12,
            rotation in 0_usize..12,
        ) {
            let pods: Vec<Arc<Pod>> = seeds.iter().enumerate().map(|(n, (node, phase, ready))| {
                let node = ["n1", "n2", ""][usize::from(*node)];
                let phase = ["Pending", "Running", "Unknown"][usize::from(*phase)];
                Arc::new(pod(&format!("p{n}"), Some(node), phase, *ready))
            }).collect();
            let mut rotated = pods.clone();
            rotated.rotate_left(rotation % pods.len());
            let names = |chosen: Vec<Arc<Pod>>| chosen.iter().map(|p| p.name_any()).collect::<Vec<_>>();
            prop_assert_eq!(
                names(choose_for_deletion(&pods, &pods, count, at(100_000))),
                names(choose_for_deletion(&rotated, &rotated, count, at(100_000)))
            );
        }
    }
}
