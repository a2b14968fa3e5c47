//! StatefulSet: pods with a name, an order and volumes of their own.
//!
//! With OrderedReady, one pod at a time: the next is made when all before it are Ready, and deletion goes from the highest
//! ordinal down. A rolling update replaces pods from the highest ordinal down to the partition, each only once the ones
//! above are healthy. Templates live in ControllerRevisions, so that a pod below the partition is made anew from the
//! revision it had.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::core::Selector;
use kube::{Api, ResourceExt};

use crate::cluster::Cluster;
use crate::events::Severity;
use crate::ownership;
use crate::pods;
use crate::queue::Queue;
use crate::reconcile::{Next, Reconcile, Result, now};
use crate::replica_set::{delete_pod, in_terminating_namespace};
use crate::revisions::{self, REVISION_LABEL};
use crate::store::Key;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The shape of a set, as far as the plan needs it.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The first ordinal.
    pub start: i32,
    /// How many pods.
    pub replicas: i32,
    /// Whether pods may be made and deleted all at once.
    pub parallel: bool,
    /// Ordinals from here on are updated; `None` with strategy OnDelete.
    pub partition: Option<i32>,
    /// How many pods may be missing during an update.
    pub unavailable_max: i32,
    /// The revision that pods should have.
    pub update: String,
    /// The revision of pods below the partition.
    pub current: String,
    /// How long a pod must be Ready to count.
    pub min_ready_seconds: i32,
}

/// The next things to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make the pod of this ordinal from this revision.
    Create(i32, String),
    /// Delete this pod.
    Delete(Arc<Pod>),
}

/// The ordinal in a pod's name.
pub fn ordinal(set: &str, pod: &Pod) -> Option<i32> {
    let name = pod.metadata.name.as_deref()?;
    name.strip_prefix(set)?.strip_prefix('-')?.parse().ok()
}

/// The revision that a pod was made from.
pub fn revision_of(pod: &Pod) -> &str {
    pod.labels().get(REVISION_LABEL).map_or("", String::as_str)
}

/// What to do next; with ordered management at most one thing.
pub fn plan(shape: &Shape, pods_by_ordinal: &BTreeMap<i32, Arc<Pod>>, now: Timestamp) -> Vec<Action> {
    let healthy =
        |pod: &Pod| !pods::is_terminating(pod) && pods::is_available(pod, shape.min_ready_seconds, now);
    let wanted = shape.start..shape.start.saturating_add(shape.replicas);
    let mut actions = Vec::new();
    for ordinal in wanted.clone() {
        match pods_by_ordinal.get(&ordinal) {
            None => actions.push(Action::Create(ordinal, revision_for(shape, ordinal))),
            Some(pod) if pods::is_finished(pod) && !pods::is_terminating(pod) => {
                actions.push(Action::Delete(pod.clone()))
            }
            Some(pod) if healthy(pod) => continue,
            Some(_) => {}
        }
        // Whatever is missing or unhealthy here holds up everything after it.
        if !shape.parallel {
            return actions;
        }
    }
    if !shape.parallel && !actions.is_empty() {
        return actions;
    }
    let mut condemned =
        pods_by_ordinal.iter().rev().filter(|(ordinal, _)| !wanted.contains(ordinal)).peekable();
    if condemned.peek().is_some() && !shape.parallel {
        let (_, last) = condemned.next().expect("just peeked");
        return if pods::is_terminating(last) { Vec::new() } else { vec![Action::Delete(last.clone())] };
    }
    actions.extend(
        condemned.filter(|(_, pod)| !pods::is_terminating(pod)).map(|(_, pod)| Action::Delete(pod.clone())),
    );
    if actions.is_empty() { update(shape, pods_by_ordinal, &wanted, healthy) } else { actions }
}

fn update(
    shape: &Shape,
    pods_by_ordinal: &BTreeMap<i32, Arc<Pod>>,
    wanted: &std::ops::Range<i32>,
    healthy: impl Fn(&Pod) -> bool,
) -> Vec<Action> {
    let Some(partition) = shape.partition else { return Vec::new() };
    let pods = || wanted.clone().filter_map(|ordinal| Some((ordinal, pods_by_ordinal.get(&ordinal)?)));
    let mut room = shape.unavailable_max
        - i32::try_from(pods().filter(|(_, pod)| !healthy(pod)).count()).unwrap_or(i32::MAX);
    let mut actions = Vec::new();
    for (_, pod) in pods().rev().filter(|(ordinal, _)| *ordinal >= partition) {
        let stale = revision_of(pod) != shape.update && !pods::is_terminating(pod);
        // A pod that is unhealthy anyway costs no availability.
        if stale && (room > 0 || !healthy(pod)) {
            room -= i32::from(healthy(pod));
            actions.push(Action::Delete(pod.clone()));
        } else if !healthy(pod) && room <= 0 {
            break;
        }
    }
    actions
}

fn revision_for(shape: &Shape, ordinal: i32) -> String {
    match shape.partition {
        Some(partition) if ordinal >= partition => shape.update.clone(),
        Some(_) | None => shape.current.clone(),
    }
}

/// The pod of an ordinal.
pub fn make(set: &StatefulSet, template: &PodTemplateSpec, ordinal: i32, revision: &str) -> Pod {
    let namespace = set.namespace().unwrap_or_default();
    let name = format!("{}-{ordinal}", set.name_any());
    let mut pod = pods::from_template(template, pods::controller_reference(set), &namespace);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    pod.labels_mut().insert(POD_NAME.into(), name.clone());
    pod.labels_mut().insert(POD_INDEX.into(), ordinal.to_string());
    pod.labels_mut().insert(REVISION_LABEL.into(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name.clone());
    spec.subdomain =
        set.spec.as_ref().and_then(|spec| spec.service_name.clone()).filter(|name| !name.is_empty());
    let claims =
        set.spec.as_ref().and_then(|spec| spec.volume_claim_templates.as_deref()).unwrap_or_default();
    let volumes = spec.volumes.get_or_insert_default();
    for claim in claims {
        let volume = claim.name_any();
        volumes.retain(|other| other.name != volume);
        let source =
            PersistentVolumeClaimVolumeSource { claim_name: format!("{volume}-{name}"), read_only: None };
        volumes.push(Volume { name: volume, persistent_volume_claim: Some(source), ..Volume::default() });
    }
    pod
}

/// The claims that the pod of an ordinal needs.
pub fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let templates =
        set.spec.as_ref().and_then(|spec| spec.volume_claim_templates.as_deref()).unwrap_or_default();
    let labels = set.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
    let claim = |template: &PersistentVolumeClaim| {
        let mut claim = template.clone();
        claim.metadata.name = Some(format!("{}-{}-{ordinal}", template.name_any(), set.name_any()));
        claim.metadata.namespace = set.namespace();
        claim.labels_mut().extend(labels.clone());
        claim.status = None;
        claim
    };
    templates.iter().map(claim).collect()
}

/// The StatefulSet controller.
pub struct Controller {
    cluster: Arc<Cluster>,
}

/// Makes the controller and the queue that feeds it.
pub fn new(cluster: &Arc<Cluster>) -> (Arc<Controller>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    cluster.stateful_sets.subscribe(move |old, new| {
        if let Some(set) = new.or(old) {
            dirty.add(Key::of(&**set));
        }
    });
    let (dirty, sets) = (queue.clone(), cluster.stateful_sets.clone());
    cluster.pods.subscribe(move |old, new| ownership::enqueue_owners(&dirty, &sets, old, new, selector));
    (Arc::new(Controller { cluster: cluster.clone() }), queue)
}

fn selector(set: &StatefulSet) -> Option<Selector> {
    pods::selector(&set.spec.as_ref()?.selector).ok()
}

impl Reconcile for Controller {
    const NAME: &'static str = "statefulset-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(set) = self.cluster.stateful_sets.get(key) else { return Ok(Next::Change) };
        let Some(spec) = &set.spec else { return Ok(Next::Change) };
        let selector = pods::selector(&spec.selector)?;
        let api = Api::<StatefulSet>::namespaced(self.cluster.client.clone(), &key.namespace);
        let own = ownership::claim_pods(&self.cluster, &api, &*set, &selector).await?;
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Change);
        }
        let history = revisions::history(&self.cluster, &api, &*set, &selector).await?;
        let newest = revisions::ensure(&self.cluster, &*set, &spec.template, &selector, &history).await?;
        let shape = shape(&set, &newest);
        let now = now();
        let pods_by_ordinal: BTreeMap<i32, Arc<Pod>> =
            own.into_iter().filter_map(|pod| Some((ordinal(&key.name, &pod)?, pod))).collect();
        let mut outcome = Ok(());
        for action in plan(&shape, &pods_by_ordinal, now.0) {
            outcome = self.act(&set, action, &history, &newest).await;
            if outcome.is_err() {
                break;
            }
        }
        self.write_status(&api, &set, &shape, now.0).await?;
        outcome?;
        let used: Vec<String> = pods_by_ordinal.values().map(|pod| revision_of(pod).to_owned()).collect();
        let limit = spec.revision_history_limit.unwrap_or(10);
        revisions::prune(&self.cluster, &history, limit, |name| {
            name == shape.current || name == shape.update || used.iter().any(|u| u == name)
        })
        .await?;
        let waits = pods_by_ordinal
            .values()
            .filter_map(|pod| pods::available_in(pod, shape.min_ready_seconds, now.0));
        Ok(waits.filter(|wait| !wait.is_zero()).min().map_or(Next::Change, Next::After))
    }
}

fn shape(set: &StatefulSet, newest: &ControllerRevision) -> Shape {
    let spec = set.spec.clone().unwrap_or_default();
    let replicas = spec.replicas.unwrap_or(1);
    let strategy = spec.update_strategy.unwrap_or_default();
    let rolling = strategy.rolling_update.unwrap_or_default();
    let update = newest.name_any();
    let current = set
        .status
        .as_ref()
        .and_then(|status| status.current_revision.clone())
        .filter(|name| !name.is_empty());
    let unavailable = rolling
        .max_unavailable
        .map_or(1, |max| crate::deployment::rolling::scaled(&max, replicas, true).max(1));
    Shape {
        start: spec.ordinals.and_then(|ordinals| ordinals.start).unwrap_or(0),
        replicas,
        parallel: spec.pod_management_policy.as_deref() == Some("Parallel"),
        partition: (strategy.type_.as_deref() != Some("OnDelete")).then(|| rolling.partition.unwrap_or(0)),
        unavailable_max: unavailable,
        current: current.unwrap_or_else(|| update.clone()),
        update,
        min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
    }
}

impl Controller {
    async fn act(
        &self,
        set: &StatefulSet,
        action: Action,
        history: &[Arc<ControllerRevision>],
        newest: &ControllerRevision,
    ) -> Result<()> {
        let namespace = set.namespace().unwrap_or_default();
        let api = Api::<Pod>::namespaced(self.cluster.client.clone(), &namespace);
        match action {
            Action::Delete(pod) => {
                delete_pod(&self.cluster, &api, &pod).await?;
                let message =
                    format!("delete Pod {} in StatefulSet {} successful", pod.name_any(), set.name_any());
                self.cluster.events.report(Self::NAME, set, Severity::Normal, "SuccessfulDelete", message);
            }
            Action::Create(ordinal, revision) => {
                let older = history.iter().find(|known| known.name_any() == revision);
                let template = revisions::template(older.map_or(newest, |known| known));
                let Some(template) = template.or_else(|| set.spec.as_ref().map(|spec| spec.template.clone()))
                else {
                    return Ok(());
                };
                self.create_claims(set, ordinal).await?;
                match api.create(&PostParams::default(), &make(set, &template, ordinal, &revision)).await {
                    Ok(created) => {
                        self.cluster.pods.observe(&created);
                        let message = format!(
                            "create Pod {} in StatefulSet {} successful",
                            created.name_any(),
                            set.name_any()
                        );
                        self.cluster.events.report(
                            Self::NAME,
                            set,
                            Severity::Normal,
                            "SuccessfulCreate",
                            message,
                        );
                    }
                    Err(error) if in_terminating_namespace(&error) => {}
                    Err(error) => {
                        let message = format!(
                            "create Pod {}-{ordinal} in StatefulSet {} failed error: {error}",
                            set.name_any(),
                            set.name_any()
                        );
                        self.cluster.events.report(
                            Self::NAME,
                            set,
                            Severity::Warning,
                            "FailedCreate",
                            message,
                        );
                        return Err(error.into());
                    }
                }
            }
        }
        Ok(())
    }

    async fn create_claims(&self, set: &StatefulSet, ordinal: i32) -> Result<()> {
        for claim in claims(set, ordinal) {
            if self.cluster.persistent_volume_claims.get(&Key::of(&claim)).is_some() {
                continue;
            }
            let api = Api::<PersistentVolumeClaim>::namespaced(
                self.cluster.client.clone(),
                &set.namespace().unwrap_or_default(),
            );
            match api.create(&PostParams::default(), &claim).await {
                Ok(created) => self.cluster.persistent_volume_claims.observe(&created),
                Err(kube::Error::Api(status)) if status.is_already_exists() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn write_status(
        &self,
        api: &Api<StatefulSet>,
        set: &StatefulSet,
        shape: &Shape,
        now: Timestamp,
    ) -> Result<()> {
        let pods = self.cluster.pods.owned_by(&set.uid().unwrap_or_default());
        let status = status(set, shape, &pods, now);
        if set.status.as_ref() != Some(&status) {
            let set = StatefulSet { status: Some(status), ..set.clone() };
            let written = api.replace_status(&set.name_any(), &PostParams::default(), &set).await?;
            self.cluster.stateful_sets.observe(&written);
        }
        Ok(())
    }
}

/// The status for these pods.
pub fn status(set: &StatefulSet, shape: &Shape, pods: &[Arc<Pod>], now: Timestamp) -> StatefulSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let count = |f: &dyn Fn(&Pod) -> bool| {
        i32::try_from(pods.iter().filter(|pod| f(pod)).count()).unwrap_or(i32::MAX)
    };
    let live = |pod: &Pod| !pods::is_terminating(pod);
    let updated = count(&|pod| live(pod) && revision_of(pod) == shape.update);
    let ready = count(&pods::is_ready);
    let rolled = shape.partition.is_some()
        && updated == shape.replicas
        && ready == shape.replicas
        && count(&|_| true) == shape.replicas;
    let current = if rolled { shape.update.clone() } else { shape.current.clone() };
    StatefulSetStatus {
        available_replicas: Some(count(&|pod| pods::is_available(pod, shape.min_ready_seconds, now))),
        collision_count: old.collision_count.or(Some(0)),
        conditions: old.conditions,
        current_replicas: Some(count(&|pod| live(pod) && revision_of(pod) == current)),
        current_revision: Some(current),
        observed_generation: set.metadata.generation,
        ready_replicas: Some(ready),
        replicas: count(&|_| true),
        update_revision: Some(shape.update.clone()),
        updated_replicas: Some(updated),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use proptest::prelude::*;

    fn pod(ordinal: i32, revision: &str, ready: bool) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.name = Some(format!("db-{ordinal}"));
        pod.labels_mut().insert(REVISION_LABEL.into(), revision.into());
        let status = if ready { "True" } else { "False" };
        let condition = PodCondition {
            type_: "Ready".into(),
            status: status.into(),
            last_transition_time: Some(Time(Timestamp::UNIX_EPOCH)),
            ..PodCondition::default()
        };
        pod.status = Some(PodStatus { conditions: Some(vec![condition]), ..PodStatus::default() });
        Arc::new(pod)
    }

    fn shape(replicas: i32) -> Shape {
        Shape {
            start: 0,
            replicas,
            parallel: false,
            partition: Some(0),
            unavailable_max: 1,
            update: "new".into(),
            current: "old".into(),
            min_ready_seconds: 0,
        }
    }

    fn planned(shape: &Shape, pods: &[Arc<Pod>]) -> Vec<String> {
        let pods = pods.iter().map(|pod| (ordinal("db", pod).unwrap(), pod.clone())).collect();
        let text = |action: Action| match action {
            Action::Create(ordinal, revision) => format!("+{ordinal} {revision}"),
            Action::Delete(pod) => format!("-{}", pod.name_any()),
        };
        plan(shape, &pods, now().0).into_iter().map(text).collect()
    }

    #[test]
    fn ordered_sets_grow_one_ready_pod_at_a_time() {
        assert_eq!(planned(&shape(3), &[]), ["+0 new"]);
        assert!(planned(&shape(3), &[pod(0, "new", false)]).is_empty());
        assert_eq!(planned(&shape(3), &[pod(0, "new", true)]), ["+1 new"]);
        let parallel = Shape { parallel: true, ..shape(3) };
        assert_eq!(planned(&parallel, &[pod(1, "new", false)]), ["+0 new", "+2 new"]);
    }

    #[test]
    fn shrinking_takes_the_highest_ordinal_first() {
        let pods = [pod(0, "new", true), pod(1, "new", true), pod(2, "new", true)];
        assert_eq!(planned(&shape(1), &pods), ["-db-2"]);
        let parallel = Shape { parallel: true, ..shape(1) };
        assert_eq!(planned(&parallel, &pods), ["-db-2", "-db-1"]);
    }

    #[test]
    fn an_update_goes_down_to_the_partition_and_waits_for_health() {
        let pods = [pod(0, "old", true), pod(1, "old", true), pod(2, "old", true)];
        assert_eq!(planned(&shape(3), &pods), ["-db-2"]);
        let pods = [pod(0, "old", true), pod(1, "old", true), pod(2, "new", false)];
        assert!(planned(&shape(3), &pods).is_empty());
        let canary = Shape { partition: Some(2), ..shape(3) };
        let pods = [pod(0, "old", true), pod(1, "old", true), pod(2, "new", true)];
        assert!(planned(&canary, &pods).is_empty());
        assert_eq!(planned(&canary, &pods[1..]), ["+0 old"], "below the partition the old revision is kept");
        let manual = Shape { partition: None, ..shape(3) };
        assert!(
            planned(&manual, &[pod(0, "old", true), pod(1, "old", true), pod(2, "old", true)]).is_empty()
        );
    }

    #[test]
    fn a_pod_carries_its_identity_and_its_claims() {
        let mut set = StatefulSet::default();
        set.metadata.name = Some("db".into());
        let mut claim = PersistentVolumeClaim::default();
        claim.metadata.name = Some("data".into());
        set.spec.get_or_insert_default().volume_claim_templates = Some(vec![claim]);
        let pod = make(&set, &PodTemplateSpec::default(), 1, "r");
        assert_eq!(pod.name_any(), "db-1");
        assert_eq!((pod.labels()[POD_NAME].as_str(), pod.labels()[POD_INDEX].as_str()), ("db-1", "1"));
        let volume = &pod.spec.unwrap().volumes.unwrap()[0];
        assert_eq!(volume.persistent_volume_claim.as_ref().unwrap().claim_name, "data-db-1");
        assert_eq!(claims(&set, 1)[0].name_any(), "data-db-1");
    }

    proptest! {
        /// Applying plans while pods become ready in between must end with exactly the wanted pods of the new revision.
        #[test]
        fn plans_lead_to_the_wanted_set(replicas in 0_i32..6, parallel: bool, start in prop::collection::btree_map(0_i32..8, any::<bool>(), 0..8)) {
            let shape = Shape { parallel, ..shape(replicas) };
            let mut pods: BTreeMap<i32, Arc<Pod>> = start.into_iter().map(|(n, ready)| (n, pod(n, "old", ready))).collect();
            for _ in 0..60 {
                for action in plan(&shape, &pods, now().0) {
                    match action {
                        Action::Create(n, revision) => prop_assert!(pods.insert(n, pod(n, &revision, false)).is_none()),
                        Action::Delete(gone) => _ = pods.remove(&ordinal("db", &gone).unwrap()),
                    }
                }
                for (n, slot) in &mut pods { *slot = pod(*n, revision_of(slot), true); }
            }
            let expected: Vec<(i32, String)> = (0..replicas).map(|n| (n, "new".to_owned())).collect();
            let actual: Vec<(i32, String)> = pods.iter().map(|(n, pod)| (*n, revision_of(pod).to_owned())).collect();
            prop_assert_eq!(actual, expected);
        }
    }
}
