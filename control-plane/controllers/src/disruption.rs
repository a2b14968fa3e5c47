//! PodDisruptionBudget status: how many of the selected pods may be evicted now.
//!
//! The API server's eviction subtracts from `disruptionsAllowed` and notes the pod in `disruptedPods`; this controller
//! recomputes the numbers and forgets the note once the pod is gone, or after two minutes if nobody deleted it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::PostParams;
use kube::{Api, ResourceExt};

use crate::cluster::Cluster;
use crate::deployment::rolling::{desired, scaled, size};
use crate::pods;
use crate::queue::Queue;
use crate::reconcile::{Next, Reconcile, Result, elapsed, now};
use crate::store::Key;

const EVICTION_TIMEOUT: Duration = Duration::from_secs(120);

/// The PodDisruptionBudget controller.
pub struct Controller {
    cluster: Arc<Cluster>,
}

/// Makes the controller and the queue that feeds it.
pub fn new(cluster: &Arc<Cluster>) -> (Arc<Controller>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    cluster.disruption_budgets.subscribe(move |_, new| {
        if let Some(budget) = new {
            dirty.add(Key::of(&**budget));
        }
    });
    let (dirty, budgets) = (queue.clone(), cluster.disruption_budgets.clone());
    cluster.pods.subscribe(move |old, new| {
        let Some(namespace) = new.or(old).and_then(|pod| pod.namespace()) else { return };
        for budget in budgets.in_namespace(&namespace) {
            if [old, new].into_iter().flatten().any(|pod| selects(&budget, pod)) {
                dirty.add(Key::of(&*budget));
            }
        }
    });
    (Arc::new(Controller { cluster: cluster.clone() }), queue)
}

fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    // An empty selector of a budget selects everything in its namespace; an absent one nothing.
    selector
        .and_then(|selector| pods::selector(selector).ok())
        .is_some_and(|selector| pods::selects(&selector, pod))
}

/// The status for these pods; `expected` is how many their controllers ask for.
pub fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: i32,
    now: &Time,
) -> PodDisruptionBudgetStatus {
    let spec = budget.spec.clone().unwrap_or_default();
    let old = budget.status.clone().unwrap_or_default();
    let count = i32::try_from(pods.len()).unwrap_or(i32::MAX);
    let (expected, wanted) = match (&spec.max_unavailable, &spec.min_available) {
        (Some(unavailable), _) => (expected, (expected - scaled(unavailable, expected, true)).max(0)),
        (None, Some(IntOrString::Int(available))) => (count, *available),
        (None, Some(percent)) => (expected, scaled(percent, expected, true)),
        (None, None) => (count, 0),
    };
    let mut disrupted: BTreeMap<String, Time> = BTreeMap::new();
    for (name, since) in old.disrupted_pods.iter().flatten() {
        let waits = pods.iter().any(|pod| pod.name_any() == *name && !pods::is_terminating(pod));
        if waits && elapsed(since.0, now.0) < EVICTION_TIMEOUT {
            disrupted.insert(name.clone(), since.clone());
        }
    }
    let healthy = |pod: &&Arc<Pod>| {
        pods::is_ready(pod) && !pods::is_terminating(pod) && !disrupted.contains_key(&pod.name_any())
    };
    let healthy = i32::try_from(pods.iter().filter(healthy).count()).unwrap_or(i32::MAX);
    let allowed = if expected <= 0 { 0 } else { (healthy - wanted).max(0) };
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let (value, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let known = conditions
        .iter()
        .position(|condition| condition.type_ == "DisruptionAllowed")
        .map(|at| conditions.remove(at));
    conditions.push(Condition {
        type_: "DisruptionAllowed".into(),
        status: value.into(),
        reason: reason.into(),
        message: String::new(),
        observed_generation: budget.metadata.generation,
        last_transition_time: known
            .filter(|known| known.status == value)
            .map_or_else(|| now.clone(), |known| known.last_transition_time),
    });
    PodDisruptionBudgetStatus {
        conditions: Some(conditions),
        current_healthy: Some(healthy),
        desired_healthy: Some(wanted),
        disrupted_pods: Some(disrupted).filter(|disrupted| !disrupted.is_empty()),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(expected),
        observed_generation: budget.metadata.generation,
    }
}

impl Reconcile for Controller {
    const NAME: &'static str = "disruption-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(budget) = self.cluster.disruption_budgets.get(key) else { return Ok(Next::Change) };
        let mut pods = self.cluster.pods.in_namespace(&key.namespace);
        pods.retain(|pod| selects(&budget, pod) && !pods::is_finished(pod));
        let status = status(&budget, &pods, self.expected(&key.namespace, &pods), &now());
        let next = if status.disrupted_pods.is_some() { Next::After(EVICTION_TIMEOUT) } else { Next::Change };
        if budget.status.as_ref() != Some(&status) {
            let api = Api::<PodDisruptionBudget>::namespaced(self.cluster.client.clone(), &key.namespace);
            let budget = PodDisruptionBudget { status: Some(status), ..(*budget).clone() };
            let written = api.replace_status(&key.name, &PostParams::default(), &budget).await?;
            self.cluster.disruption_budgets.observe(&written);
        }
        Ok(next)
    }
}

impl Controller {
    /// The sum of what the pods' controllers ask for; pods without one that has a size count as one each.
    fn expected(&self, namespace: &str, pods: &[Arc<Pod>]) -> i32 {
        let mut by_controller: BTreeMap<String, i32> = BTreeMap::new();
        for pod in pods {
            let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
            let sized =
                owner.and_then(|owner| self.size_of(&owner.kind, &Key::new(namespace, owner.name.clone())));
            let (uid, size) = sized.unwrap_or_else(|| (pod.uid().unwrap_or_default(), 1));
            by_controller.insert(uid, size);
        }
        by_controller.values().sum()
    }

    fn size_of(&self, kind: &str, key: &Key) -> Option<(String, i32)> {
        match kind {
            "ReplicaSet" => {
                let set = self.cluster.replica_sets.get(key)?;
                let owner = set
                    .owner_references()
                    .iter()
                    .find(|owner| owner.controller == Some(true) && owner.kind == "Deployment");
                let above = owner.and_then(|owner| {
                    self.cluster.deployments.get(&Key::new(key.namespace.clone(), owner.name.clone()))
                });
                above.map_or_else(
                    || Some((set.uid()?, size(&set))),
                    |deployment| Some((deployment.uid()?, desired(&deployment))),
                )
            }
            "ReplicationController" => {
                let controller = self.cluster.replication_controllers.get(key)?;
                Some((controller.uid()?, controller.spec.as_ref()?.replicas.unwrap_or(1)))
            }
            "StatefulSet" => {
                let set = self.cluster.stateful_sets.get(key)?;
                Some((set.uid()?, set.spec.as_ref()?.replicas.unwrap_or(1)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
    use k8s_openapi::api::policy::v1::PodDisruptionBudgetSpec;

    fn pods(ready: usize, unready: usize) -> Vec<Arc<Pod>> {
        let pod = |n: usize| {
            let mut pod = Pod::default();
            pod.metadata.name = Some(format!("p{n}"));
            let status = if n < ready { "True" } else { "False" };
            let condition =
                PodCondition { type_: "Ready".into(), status: status.into(), ..PodCondition::default() };
            pod.status = Some(PodStatus { conditions: Some(vec![condition]), ..PodStatus::default() });
            Arc::new(pod)
        };
        (0..ready + unready).map(pod).collect()
    }

    fn budget(
        max_unavailable: Option<IntOrString>,
        min_available: Option<IntOrString>,
    ) -> PodDisruptionBudget {
        let spec =
            PodDisruptionBudgetSpec { max_unavailable, min_available, ..PodDisruptionBudgetSpec::default() };
        PodDisruptionBudget { spec: Some(spec), ..PodDisruptionBudget::default() }
    }

    fn allowed(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], expected: i32) -> i32 {
        status(budget, pods, expected, &now()).disruptions_allowed.expect("always set")
    }

    #[test]
    fn each_form_of_budget_allows_what_it_says() {
        let percent = |text: &str| IntOrString::String(text.into());
        assert_eq!(allowed(&budget(None, Some(IntOrString::Int(2))), &pods(3, 0), 3), 1);
        assert_eq!(allowed(&budget(Some(IntOrString::Int(1)), None), &pods(3, 0), 3), 1);
        assert_eq!(allowed(&budget(Some(IntOrString::Int(1)), None), &pods(2, 1), 3), 0);
        assert_eq!(allowed(&budget(None, Some(percent("50%"))), &pods(3, 0), 3), 1);
        assert_eq!(allowed(&budget(Some(percent("100%")), None), &pods(3, 0), 3), 3);
        assert_eq!(allowed(&budget(Some(IntOrString::Int(1)), None), &[], 0), 0);
    }

    #[test]
    fn a_pod_under_eviction_is_not_healthy_until_its_note_expires() {
        let mut budget = budget(None, Some(IntOrString::Int(1)));
        let noted = PodDisruptionBudgetStatus {
            disrupted_pods: Some([("p0".to_owned(), now())].into()),
            ..Default::default()
        };
        budget.status = Some(noted);
        assert_eq!(allowed(&budget, &pods(2, 0), 2), 0);
        let later = Time(now().0 + EVICTION_TIMEOUT);
        assert_eq!(status(&budget, &pods(2, 0), 2, &later).disruptions_allowed, Some(1));
    }
}
