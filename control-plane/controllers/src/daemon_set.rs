//! DaemonSet: one pod on every node that suits it.
//!
//! The pod is tied to its node by node affinity and left to the scheduler, so that room is accounted for in one place.
//! A rolling update deletes old pods, at most `maxUnavailable` at a time; `maxSurge` is not acted upon.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
    PodTemplateSpec, Toleration,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::core::Selector;
use kube::{Api, ResourceExt};
use scheduler::predicates::{accepts_node, untolerated};

use crate::cluster::Cluster;
use crate::deployment::rolling::scaled;
use crate::events::Severity;
use crate::ownership;
use crate::pods;
use crate::queue::Queue;
use crate::reconcile::{Next, Reconcile, Result, now};
use crate::replica_set::{delete_pod, in_terminating_namespace};
use crate::revisions::{self, REVISION_LABEL};
use crate::store::Key;
use crate::taints;

/// What a node is to a DaemonSet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suits {
    /// It should run a pod.
    Yes,
    /// It should get no new pod, but one that is there may stay.
    Stay,
    /// It should run none.
    No,
}

/// Whether a pod of this template belongs on the node.
pub fn suits(template: &PodTemplateSpec, node: &Node) -> Suits {
    let mut spec = template.spec.clone().unwrap_or_default();
    let name = node.name_any();
    let named = spec.node_name.as_deref().filter(|name| !name.is_empty());
    if named.is_some_and(|named| named != name) || !accepts_node(&spec, &name, node.labels()) {
        return Suits::No;
    }
    add_tolerations(&mut spec);
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    if untolerated(taints::of(node), tolerations, &["NoExecute"]).is_some() {
        return Suits::No;
    }
    if untolerated(taints::of(node), tolerations, &["NoSchedule"]).is_some() {
        Suits::Stay
    } else {
        Suits::Yes
    }
}

/// Daemons stay on nodes that have trouble: often they are what will cure it.
fn add_tolerations(spec: &mut PodSpec) {
    let mut wanted = vec![
        (taints::NOT_READY, "NoExecute"),
        (taints::UNREACHABLE, "NoExecute"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
        ("node.kubernetes.io/memory-pressure", "NoSchedule"),
        ("node.kubernetes.io/pid-pressure", "NoSchedule"),
        (taints::UNSCHEDULABLE, "NoSchedule"),
    ];
    if spec.host_network == Some(true) {
        wanted.push(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in wanted {
        let toleration = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
}

/// The node that a pod is meant for, bound or not.
pub fn target(pod: &Pod) -> Option<String> {
    if let Some(node) = pods::node_name(pod) {
        return Some(node.to_owned());
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let field = terms.first()?.match_fields.as_ref()?.iter().find(|field| field.key == "metadata.name")?;
    field.values.as_ref()?.first().cloned()
}

/// A pod for one node.
pub fn make(set: &DaemonSet, template: &PodTemplateSpec, node: &str, hash: &str) -> Pod {
    let mut pod =
        pods::from_template(template, pods::controller_reference(set), &set.namespace().unwrap_or_default());
    pod.labels_mut().insert(REVISION_LABEL.into(), hash.to_owned());
    let spec = pod.spec.get_or_insert_default();
    add_tolerations(spec);
    let field = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity =
        spec.affinity.get_or_insert_default().node_affinity.get_or_insert_with(NodeAffinity::default);
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(|| NodeSelector { node_selector_terms: vec![NodeSelectorTerm::default()] });
    for term in &mut required.node_selector_terms {
        term.match_fields = Some(vec![field.clone()]);
    }
    pod
}

/// The next things to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make a pod for this node.
    Create(String),
    /// Delete this pod.
    Delete(Arc<Pod>),
}

/// Compares nodes with pods; pods that are not of revision `hash` are replaced, `unavailable_max` at a time if `rolling`.
pub fn plan(
    template: &PodTemplateSpec,
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    hash: &str,
    rolling: Option<i32>,
    available: impl Fn(&Pod) -> bool,
) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut by_node: BTreeMap<String, Vec<&Arc<Pod>>> = BTreeMap::new();
    for pod in pods {
        if let Some(node) = target(pod) {
            by_node.entry(node).or_default().push(pod);
        }
    }
    let mut stale = Vec::new();
    let mut unavailable = 0;
    for node in nodes {
        let suits = suits(template, node);
        let mut here = by_node.remove(&node.name_any()).unwrap_or_default();
        here.sort_by_key(|pod| (pod.metadata.creation_timestamp.clone(), pod.name_any()));
        let (gone, live): (Vec<_>, Vec<_>) =
            here.into_iter().partition(|pod| pods::is_finished(pod) || pods::is_terminating(pod));
        let wanted = usize::from(suits == Suits::Yes || suits == Suits::Stay && !live.is_empty());
        let finished = gone.iter().filter(|pod| !pods::is_terminating(pod));
        actions.extend(finished.map(|pod| Action::Delete((*pod).clone())));
        actions.extend(live.iter().skip(wanted).map(|pod| Action::Delete((*pod).clone())));
        match live.first() {
            // A pod on its way out still holds its ports and volumes.
            None if suits == Suits::Yes && gone.is_empty() => actions.push(Action::Create(node.name_any())),
            Some(pod)
                if wanted == 1 && pod.labels().get(REVISION_LABEL).is_none_or(|label| label != hash) =>
            {
                stale.push((*pod).clone())
            }
            _ => {}
        }
        unavailable += i32::from(suits == Suits::Yes && !live.first().is_some_and(|pod| available(pod)));
    }
    let elsewhere = by_node
        .into_values()
        .flatten()
        .filter(|pod| !pods::is_terminating(pod) && pods::node_name(pod).is_none());
    actions.extend(elsewhere.map(|pod| Action::Delete(pod.clone())));
    let mut room = rolling.unwrap_or(0) - unavailable;
    for pod in stale {
        // An old pod that is not available anyway costs nothing.
        let free = rolling.is_some() && !available(&pod);
        if free || room > 0 {
            room -= i32::from(!free);
            actions.push(Action::Delete(pod));
        }
    }
    actions
}

/// The DaemonSet controller.
pub struct Controller {
    cluster: Arc<Cluster>,
}

/// Makes the controller and the queue that feeds it.
pub fn new(cluster: &Arc<Cluster>) -> (Arc<Controller>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    cluster.daemon_sets.subscribe(move |old, new| {
        if let Some(set) = new.or(old) {
            dirty.add(Key::of(&**set));
        }
    });
    let (dirty, sets) = (queue.clone(), cluster.daemon_sets.clone());
    cluster.pods.subscribe(move |old, new| ownership::enqueue_owners(&dirty, &sets, old, new, selector));
    let (dirty, sets) = (queue.clone(), cluster.daemon_sets.clone());
    cluster.nodes.subscribe(move |old, new| {
        let relevant = |node: &Arc<Node>| (node.labels().clone(), node.spec.clone());
        if old.map(relevant) != new.map(relevant) {
            sets.all().iter().for_each(|set| dirty.add(Key::of(&**set)));
        }
    });
    (Arc::new(Controller { cluster: cluster.clone() }), queue)
}

fn selector(set: &DaemonSet) -> Option<Selector> {
    pods::selector(&set.spec.as_ref()?.selector).ok()
}

/// How many pods a rolling update may miss at a time; `None` for OnDelete.
fn rolling(set: &DaemonSet, nodes: i32) -> Option<i32> {
    let strategy = set.spec.as_ref()?.update_strategy.clone().unwrap_or_default();
    if strategy.type_.as_deref() == Some("OnDelete") {
        return None;
    }
    let max =
        strategy.rolling_update.and_then(|rolling| rolling.max_unavailable).unwrap_or(IntOrString::Int(1));
    Some(scaled(&max, nodes, true).max(1))
}

impl Reconcile for Controller {
    const NAME: &'static str = "daemonset-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(set) = self.cluster.daemon_sets.get(key) else { return Ok(Next::Change) };
        let Some(spec) = &set.spec else { return Ok(Next::Change) };
        let selector = pods::selector(&spec.selector)?;
        let api = Api::<DaemonSet>::namespaced(self.cluster.client.clone(), &key.namespace);
        let own = ownership::claim_pods(&self.cluster, &api, &*set, &selector).await?;
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Change);
        }
        let history = revisions::history(&self.cluster, &api, &*set, &selector).await?;
        let newest = revisions::ensure(&self.cluster, &*set, &spec.template, &selector, &history).await?;
        let hash = revisions::hash(&newest);
        let (nodes, now) = (self.cluster.nodes.all(), now());
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        let wanted = nodes.iter().filter(|node| suits(&spec.template, node) == Suits::Yes).count();
        let rolling = rolling(&set, i32::try_from(wanted).unwrap_or(i32::MAX));
        let available = |pod: &Pod| pods::is_available(pod, min_ready, now.0);
        let mut outcome = Ok(());
        for action in plan(&spec.template, &nodes, &own, &hash, rolling, available) {
            outcome = self.act(&set, &spec.template, action, &hash).await;
            if outcome.is_err() {
                break;
            }
        }
        self.write_status(&api, &set, &spec.template, &hash, now.0).await?;
        outcome?;
        self.prune(&set, &history, &newest, &own).await?;
        let waits = own.iter().filter_map(|pod| pods::available_in(pod, min_ready, now.0));
        Ok(waits.filter(|wait| !wait.is_zero()).min().map_or(Next::Change, Next::After))
    }
}

impl Controller {
    async fn act(
        &self,
        set: &DaemonSet,
        template: &PodTemplateSpec,
        action: Action,
        hash: &str,
    ) -> Result<()> {
        let api = Api::<Pod>::namespaced(self.cluster.client.clone(), &set.namespace().unwrap_or_default());
        let report = |severity, reason, message| {
            self.cluster.events.report(Self::NAME, set, severity, reason, message)
        };
        match action {
            Action::Delete(pod) => {
                if pods::phase(&pod) == "Failed" {
                    let node = target(&pod).unwrap_or_default();
                    let message = format!(
                        "Found failed daemon pod {} on node {node}, will try to kill it",
                        Key::of(&*pod)
                    );
                    report(Severity::Warning, "FailedDaemonPod", message);
                }
                delete_pod(&self.cluster, &api, &pod).await?;
                report(Severity::Normal, "SuccessfulDelete", format!("Deleted pod: {}", pod.name_any()));
            }
            Action::Create(node) => {
                match api.create(&PostParams::default(), &make(set, template, &node, hash)).await {
                    Ok(created) => {
                        self.cluster.pods.observe(&created);
                        report(
                            Severity::Normal,
                            "SuccessfulCreate",
                            format!("Created pod: {}", created.name_any()),
                        );
                    }
                    Err(error) if in_terminating_namespace(&error) => {}
                    Err(error) => {
                        report(Severity::Warning, "FailedCreate", format!("Error creating: {error}"));
                        return Err(error.into());
                    }
                }
            }
        }
        Ok(())
    }

    async fn prune(
        &self,
        set: &DaemonSet,
        history: &[Arc<ControllerRevision>],
        newest: &ControllerRevision,
        own: &[Arc<Pod>],
    ) -> Result<()> {
        let limit = set.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
        let used = |name: &str| {
            let hash =
                history.iter().find(|known| known.name_any() == name).map(|known| revisions::hash(known));
            name == newest.name_any()
                || own.iter().any(|pod| pod.labels().get(REVISION_LABEL) == hash.as_ref())
        };
        revisions::prune(&self.cluster, history, limit, used).await
    }

    async fn write_status(
        &self,
        api: &Api<DaemonSet>,
        set: &DaemonSet,
        template: &PodTemplateSpec,
        hash: &str,
        now: Timestamp,
    ) -> Result<()> {
        let pods = self.cluster.pods.owned_by(&set.uid().unwrap_or_default());
        let status = status(set, template, &self.cluster.nodes.all(), &pods, hash, now);
        if set.status.as_ref() != Some(&status) {
            let set = DaemonSet { status: Some(status), ..set.clone() };
            let written = api.replace_status(&set.name_any(), &PostParams::default(), &set).await?;
            self.cluster.daemon_sets.observe(&written);
        }
        Ok(())
    }
}

/// The status for these nodes and pods.
pub fn status(
    set: &DaemonSet,
    template: &PodTemplateSpec,
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    hash: &str,
    now: Timestamp,
) -> DaemonSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let min_ready = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let (mut desired, mut current, mut misscheduled, mut ready, mut available, mut updated) =
        (0, 0, 0, 0, 0, 0);
    for node in nodes {
        let mut here: Vec<_> =
            pods.iter().filter(|pod| target(pod).as_deref() == Some(&node.name_any())).collect();
        here.sort_by_key(|pod| (pods::is_terminating(pod), pod.metadata.creation_timestamp.clone()));
        if suits(template, node) != Suits::Yes {
            misscheduled += i32::from(!here.is_empty());
            continue;
        }
        desired += 1;
        if let Some(pod) = here.first() {
            current += 1;
            ready += i32::from(pods::is_ready(pod));
            available += i32::from(pods::is_available(pod, min_ready, now));
            updated += i32::from(pod.labels().get(REVISION_LABEL).is_some_and(|label| label == hash));
        }
    }
    DaemonSetStatus {
        collision_count: old.collision_count,
        conditions: old.conditions,
        current_number_scheduled: current,
        desired_number_scheduled: desired,
        number_available: Some(available).filter(|number| *number != 0),
        number_misscheduled: misscheduled,
        number_ready: ready,
        number_unavailable: Some(desired - available).filter(|number| *number != 0),
        observed_generation: set.metadata.generation,
        updated_number_scheduled: Some(updated).filter(|number| *number != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, taint: Option<(&str, &str)>) -> Arc<Node> {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        node.spec.get_or_insert_default().taints =
            taint.map(|(key, effect)| vec![taints::taint(key, effect)]);
        Arc::new(node)
    }

    fn pod(name: &str, node: &str, hash: &str) -> Arc<Pod> {
        let mut pod = make(&DaemonSet::default(), &PodTemplateSpec::default(), node, hash);
        pod.metadata.name = Some(name.into());
        Arc::new(pod)
    }

    fn planned(nodes: &[Arc<Node>], pods: &[Arc<Pod>], rolling: Option<i32>) -> Vec<String> {
        let text = |action| match action {
            Action::Create(node) => format!("+{node}"),
            Action::Delete(pod) => format!("-{}", pod.name_any()),
        };
        plan(&PodTemplateSpec::default(), nodes, pods, "new", rolling, |_| true)
            .into_iter()
            .map(text)
            .collect()
    }

    #[test]
    fn every_suitable_node_gets_one_pod_and_keeps_the_oldest() {
        let nodes = [
            node("n1", None),
            node("n2", Some(("dedicated", "NoSchedule"))),
            node("n3", Some((taints::NOT_READY, "NoExecute"))),
        ];
        assert_eq!(planned(&nodes, &[], None), ["+n1", "+n3"]);
        let pods =
            [pod("a", "n1", "new"), pod("b", "n1", "new"), pod("c", "n2", "new"), pod("d", "n3", "new")];
        assert_eq!(planned(&nodes, &pods, None), ["-b"], "a pod may stay where a new one may not come");
        let expelled = [node("n2", Some(("dedicated", "NoExecute")))];
        assert_eq!(planned(&expelled, &pods[2..3], None), ["-c"]);
    }

    #[test]
    fn a_rolling_update_replaces_no_more_than_allowed() {
        let nodes = [node("n1", None), node("n2", None), node("n3", None)];
        let pods = [pod("a", "n1", "old"), pod("b", "n2", "old"), pod("c", "n3", "new")];
        assert_eq!(planned(&nodes, &pods, Some(1)), ["-a"]);
        assert_eq!(planned(&nodes, &pods, Some(5)), ["-a", "-b"]);
        assert!(planned(&nodes, &pods, None).is_empty());
        assert_eq!(planned(&nodes, &pods[1..], Some(1)), ["+n1"], "the missing pod is the one allowed");
    }

    #[test]
    fn a_pod_is_tied_to_its_node() {
        let pod = pod("a", "n1", "new");
        assert_eq!(target(&pod).as_deref(), Some("n1"));
        let spec = pod.spec.as_ref().unwrap();
        assert!(accepts_node(spec, "n1", &BTreeMap::new()));
        assert!(!accepts_node(spec, "n2", &BTreeMap::new()));
    }
}
