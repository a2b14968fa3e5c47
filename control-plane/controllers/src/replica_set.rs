//! ReplicaSet and ReplicationController: keep the asked number of pods alive.
//!
//! Both kinds run through one code path over [`ReplicaOwner`]. Pods are created in batches that double as long as they
//! succeed, so that a template the API refuses costs one request and not hundreds.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition};
use k8s_openapi::api::core::v1::{
    Pod, PodTemplateSpec, ReplicationController, ReplicationControllerCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::core::{NamespaceResourceScope, Selector};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cluster::Cluster;
use crate::events::Severity;
use crate::ownership;
use crate::pods;
use crate::queue::Queue;
use crate::reconcile::{Next, Reconcile, Result, now};
use crate::store::{Key, Store, owner_uid};

/// A kind whose whole purpose is a number of equal pods.
pub trait ReplicaOwner:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
    + Send
    + Sync
    + 'static
{
    /// The controller's name.
    const NAME: &'static str;
    /// The store of this kind.
    fn store(cluster: &Cluster) -> &Arc<Store<Self>>;
    /// `spec.replicas`.
    fn replicas(&self) -> i32;
    /// `spec.selector`.
    fn selector(&self) -> Result<Selector>;
    /// `spec.template`.
    fn template(&self) -> Option<&PodTemplateSpec>;
    /// `spec.minReadySeconds`.
    fn min_ready_seconds(&self) -> i32;
    /// Writes `counts` and the ReplicaFailure condition into the status; returns whether anything changed.
    fn set_status(&mut self, counts: Counts, failure: Failure) -> bool;
}

/// The numbers of a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Active pods.
    pub replicas: i32,
    /// Those whose labels match the template's.
    pub fully_labeled: i32,
    /// Those that are Ready.
    pub ready: i32,
    /// Those that have been Ready long enough.
    pub available: i32,
    /// Pods on their way out.
    pub terminating: i32,
}

/// What becomes of the ReplicaFailure condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// There was none; remove it.
    None,
    /// `reason`, `message`.
    Some(&'static str, String),
}

/// What to do about a number of pods.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Create this many.
    Create(usize),
    /// Delete these.
    Delete(Vec<Arc<Pod>>),
}

const BURST_MAX: usize = 500;

/// Compares the asked number with the active pods; `related` decides which node is crowded.
pub fn plan(replicas: i32, active: &[Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) -> Option<Action> {
    let desired = usize::try_from(replicas).unwrap_or(0);
    if active.len() < desired {
        return Some(Action::Create((desired - active.len()).min(BURST_MAX)));
    }
    let excess = (active.len() - desired).min(BURST_MAX);
    (excess > 0).then(|| Action::Delete(pods::choose_for_deletion(active, related, excess, now)))
}

/// Counts `pods`, active and terminating, for the status.
pub fn count(
    template: Option<&PodTemplateSpec>,
    min_ready_seconds: i32,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> Counts {
    let labels = template.and_then(|template| template.metadata.as_ref()?.labels.as_ref());
    let mut counts = Counts { replicas: 0, fully_labeled: 0, ready: 0, available: 0, terminating: 0 };
    for pod in pods {
        if !pods::is_active(pod) {
            counts.terminating += i32::from(pods::is_terminating(pod) && !pods::is_finished(pod));
            continue;
        }
        counts.replicas += 1;
        let labeled = labels.into_iter().flatten().all(|(key, value)| pod.labels().get(key) == Some(value));
        counts.fully_labeled += i32::from(labeled);
        counts.ready += i32::from(pods::is_ready(pod));
        counts.available += i32::from(pods::is_available(pod, min_ready_seconds, now));
    }
    counts
}

/// The controller of one of the two kinds.
pub struct Controller<O> {
    cluster: Arc<Cluster>,
    kind: std::marker::PhantomData<fn() -> O>,
}

/// Makes the controller and the queue that feeds it.
pub fn new<O: ReplicaOwner>(cluster: &Arc<Cluster>) -> (Arc<Controller<O>>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    O::store(cluster).subscribe(move |old, new| {
        if let Some(object) = new.or(old) {
            dirty.add(Key::of(&**object));
        }
    });
    let (dirty, owners) = (queue.clone(), Arc::downgrade(cluster));
    cluster.pods.subscribe(move |old, new| {
        let Some(cluster) = owners.upgrade() else { return };
        ownership::enqueue_owners(&dirty, O::store(&cluster), old, new, |owner| owner.selector().ok());
    });
    (Arc::new(Controller { cluster: cluster.clone(), kind: std::marker::PhantomData }), queue)
}

impl<O: ReplicaOwner> Reconcile for Controller<O> {
    const NAME: &'static str = O::NAME;

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(owner) = O::store(&self.cluster).get(key) else { return Ok(Next::Change) };
        let now = now();
        let api = Api::<O>::namespaced(self.cluster.client.clone(), &key.namespace);
        let all = ownership::claim_pods(&self.cluster, &api, &*owner, &owner.selector()?).await?;
        let active: Vec<_> = all.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
        let mut outcome = Ok(());
        if owner.meta().deletion_timestamp.is_none() {
            outcome = match plan(owner.replicas(), &active, &self.related(&owner, &active), now.0) {
                Some(Action::Create(count)) => {
                    self.create(&owner, count).await.map_err(|error| ("FailedCreate", error))
                }
                Some(Action::Delete(pods)) => {
                    self.delete(&owner, &pods).await.map_err(|error| ("FailedDelete", error))
                }
                None => Ok(()),
            };
        }
        let pods = self.cluster.pods.owned_by(&owner.uid().unwrap_or_default());
        let failure = match &outcome {
            Ok(()) => Failure::None,
            Err((reason, error)) => Failure::Some(reason, message(error)),
        };
        let counts = count(owner.template(), owner.min_ready_seconds(), &pods, now.0);
        self.write_status(&api, &owner, counts, failure).await?;
        outcome.map_err(|(_, error)| error)?;
        let waits = pods.iter().filter_map(|pod| pods::available_in(pod, owner.min_ready_seconds(), now.0));
        Ok(waits
            .filter(|wait| !wait.is_zero())
            .min()
            .map_or(Next::Change, |wait| Next::After(wait + Duration::from_millis(100))))
    }
}

impl<O: ReplicaOwner> Controller<O> {
    /// The pods of every sibling under the same controller: a Deployment's pods crowd a node whatever their revision.
    fn related(&self, owner: &O, own: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let Some(controller) = owner_uid(owner) else { return own.to_vec() };
        let siblings = O::store(&self.cluster).owned_by(controller);
        siblings
            .iter()
            .flat_map(|sibling| self.cluster.pods.owned_by(&sibling.uid().unwrap_or_default()))
            .collect()
    }

    async fn create(&self, owner: &O, count: usize) -> Result<()> {
        let Some(template) = owner.template() else { return Ok(()) };
        let namespace = owner.namespace().unwrap_or_default();
        let api = Api::<Pod>::namespaced(self.cluster.client.clone(), &namespace);
        let pod = pods::from_template(template, pods::controller_reference(owner), &namespace);
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            let size = batch.min(left);
            let params = PostParams::default();
            let answers = join_all((0..size).map(|_| api.create(&params, &pod))).await;
            for answer in answers {
                match answer {
                    Ok(created) => {
                        self.cluster.pods.observe(&created);
                        let message = format!("Created pod: {}", created.name_any());
                        self.cluster.events.report(
                            O::NAME,
                            owner,
                            Severity::Normal,
                            "SuccessfulCreate",
                            message,
                        );
                    }
                    // Everything in it is about to go; the ReplicaSet too.
                    Err(error) if in_terminating_namespace(&error) => return Ok(()),
                    Err(error) => {
                        let message = format!("Error creating: {}", api_message(&error));
                        self.cluster.events.report(
                            O::NAME,
                            owner,
                            Severity::Warning,
                            "FailedCreate",
                            message,
                        );
                        return Err(error.into());
                    }
                }
            }
            left -= size;
            batch *= 2;
        }
        Ok(())
    }

    async fn delete(&self, owner: &O, chosen: &[Arc<Pod>]) -> Result<()> {
        let api = Api::<Pod>::namespaced(self.cluster.client.clone(), &owner.namespace().unwrap_or_default());
        let answers = join_all(chosen.iter().map(|pod| delete_pod(&self.cluster, &api, pod))).await;
        for (pod, answer) in chosen.iter().zip(answers) {
            let name = pod.name_any();
            match answer {
                Ok(()) => {
                    let message = format!("Deleted pod: {name}");
                    self.cluster.events.report(O::NAME, owner, Severity::Normal, "SuccessfulDelete", message);
                }
                Err(error) => {
                    let message = format!("Error deleting: {error}");
                    self.cluster.events.report(O::NAME, owner, Severity::Warning, "FailedDelete", message);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn write_status(&self, api: &Api<O>, owner: &O, counts: Counts, failure: Failure) -> Result<()> {
        let mut owner = owner.clone();
        if owner.set_status(counts, failure) {
            let written = api.replace_status(&owner.name_any(), &PostParams::default(), &owner).await?;
            O::store(&self.cluster).observe(&written);
        }
        Ok(())
    }
}

/// Deletes exactly this incarnation of `pod` and lets the shared store know.
pub async fn delete_pod(cluster: &Cluster, api: &Api<Pod>, pod: &Pod) -> Result<()> {
    let uid = pod.uid().unwrap_or_default();
    let preconditions = Preconditions { uid: Some(uid.clone()), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(&pod.name_any(), &params).await {
        Ok(answer) => match answer.left().filter(pods::is_terminating) {
            Some(going) => cluster.pods.observe(&going),
            None => cluster.pods.forget(&Key::of(pod), &uid),
        },
        Err(kube::Error::Api(status)) if status.is_not_found() => cluster.pods.forget(&Key::of(pod), &uid),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Whether the API refused a creation since its namespace is going away.
pub fn in_terminating_namespace(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.is_forbidden() && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

fn api_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

fn message(error: &crate::reconcile::Error) -> String {
    match error {
        crate::reconcile::Error::Api(error) => api_message(error),
        other => other.to_string(),
    }
}

/// Fills what the statuses of both kinds have in common; whether anything changed to a reader, to whom an absent number and
/// zero are the same. The types are alike and yet different, so this cannot be a function.
macro_rules! fill_status {
    ($owner:expr, $counts:expr, $failure:expr, $condition:ident) => {{
        let generation = $owner.metadata.generation;
        let status = $owner.status.get_or_insert_default();
        let old = status.clone();
        status.replicas = $counts.replicas;
        status.fully_labeled_replicas = nonzero($counts.fully_labeled);
        status.ready_replicas = nonzero($counts.ready);
        status.available_replicas = nonzero($counts.available);
        status.observed_generation = generation;
        status.conditions = next_conditions(
            old.conditions.clone(),
            &$failure,
            |condition| (&condition.type_, &condition.reason),
            |reason, message, at| $condition {
                type_: REPLICA_FAILURE.into(),
                status: "True".into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_transition_time: Some(at),
            },
        );
        old.observed_generation != generation
            || old.replicas != $counts.replicas
            || old.conditions != status.conditions
            || old.fully_labeled_replicas.unwrap_or(0) != $counts.fully_labeled
            || old.ready_replicas.unwrap_or(0) != $counts.ready
            || old.available_replicas.unwrap_or(0) != $counts.available
    }};
}

impl ReplicaOwner for ReplicaSet {
    const NAME: &'static str = "replicaset-controller";

    fn store(cluster: &Cluster) -> &Arc<Store<Self>> {
        &cluster.replica_sets
    }

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn selector(&self) -> Result<Selector> {
        self.spec.as_ref().map_or_else(|| Ok(Selector::default()), |spec| pods::selector(&spec.selector))
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn set_status(&mut self, counts: Counts, failure: Failure) -> bool {
        let terminating = |set: &Self| set.status.as_ref().and_then(|status| status.terminating_replicas);
        let before = terminating(self).unwrap_or(0);
        let changed = fill_status!(self, counts, failure, ReplicaSetCondition);
        self.status.get_or_insert_default().terminating_replicas = Some(counts.terminating);
        changed || before != counts.terminating
    }
}

impl ReplicaOwner for ReplicationController {
    const NAME: &'static str = "replication-controller";

    fn store(cluster: &Cluster) -> &Arc<Store<Self>> {
        &cluster.replication_controllers
    }

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn selector(&self) -> Result<Selector> {
        Ok(self
            .spec
            .as_ref()
            .and_then(|spec| spec.selector.clone())
            .unwrap_or_default()
            .into_iter()
            .collect())
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn set_status(&mut self, counts: Counts, failure: Failure) -> bool {
        fill_status!(self, counts, failure, ReplicationControllerCondition)
    }
}

const REPLICA_FAILURE: &str = "ReplicaFailure";

fn nonzero(number: i32) -> Option<i32> {
    Some(number).filter(|number| *number != 0)
}

/// Keeps an existing ReplicaFailure condition with the same reason as it is, so that its time and text stay.
fn next_conditions<C>(
    conditions: Option<Vec<C>>,
    failure: &Failure,
    identify: impl for<'a> Fn(&'a C) -> (&'a String, &'a Option<String>),
    make: impl Fn(&'static str, String, Time) -> C,
) -> Option<Vec<C>> {
    let mut conditions = conditions.unwrap_or_default();
    match failure {
        Failure::None => conditions.retain(|condition| identify(condition).0 != REPLICA_FAILURE),
        Failure::Some(reason, message) => {
            let same = |condition: &C| {
                identify(condition).0 == REPLICA_FAILURE && identify(condition).1.as_deref() == Some(*reason)
            };
            if !conditions.iter().any(same) {
                conditions.retain(|condition| identify(condition).0 != REPLICA_FAILURE);
                conditions.push(make(reason, message.clone(), now()));
            }
        }
    }
    Some(conditions).filter(|conditions| !conditions.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodCondition, PodStatus};

    fn pods(count: usize) -> Vec<Arc<Pod>> {
        (0..count)
            .map(|n| {
                let mut pod = Pod::default();
                pod.metadata.name = Some(format!("p{n}"));
                Arc::new(pod)
            })
            .collect()
    }

    #[test]
    fn the_difference_is_created_or_deleted_and_nothing_when_equal() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(plan(3, &pods(1), &[], now), Some(Action::Create(2)));
        assert_eq!(plan(3, &pods(3), &[], now), None);
        let Some(Action::Delete(chosen)) = plan(1, &pods(3), &[], now) else { panic!("expected a deletion") };
        assert_eq!(chosen.len(), 2);
        assert_eq!(plan(2000, &pods(0), &[], now), Some(Action::Create(BURST_MAX)));
    }

    #[test]
    fn status_counts_only_active_pods_and_settles() {
        let mut all: Vec<Pod> = pods(3).iter().map(|pod| (**pod).clone()).collect();
        let ready = PodCondition { type_: "Ready".into(), status: "True".into(), ..PodCondition::default() };
        all[0].status = Some(PodStatus { conditions: Some(vec![ready]), ..PodStatus::default() });
        all[1].status = Some(PodStatus { phase: Some("Failed".into()), ..PodStatus::default() });
        all[2].metadata.deletion_timestamp = Some(now());
        let all: Vec<_> = all.into_iter().map(Arc::new).collect();
        let counts = count(None, 0, &all, now().0);
        assert_eq!(counts, Counts { replicas: 1, fully_labeled: 1, ready: 1, available: 1, terminating: 1 });
        let mut set = ReplicaSet::default();
        assert!(set.set_status(counts, Failure::None));
        assert!(!set.set_status(counts, Failure::None));
    }

    #[test]
    fn a_repeated_failure_keeps_its_condition() {
        let counts = Counts { replicas: 0, fully_labeled: 0, ready: 0, available: 0, terminating: 0 };
        let mut set = ReplicaSet::default();
        assert!(set.set_status(counts, Failure::Some("FailedCreate", "quota: a".into())));
        assert!(!set.set_status(counts, Failure::Some("FailedCreate", "quota: b".into())));
        assert!(set.set_status(counts, Failure::None));
    }
}
