//! Deployment: moves pods from one template to the next through ReplicaSets.
//!
//! `rolling` holds the arithmetic, `revisions` finds and names ReplicaSets, `status` computes conditions; all three are pure.
//! This file reads the stores, asks them, and writes.
//!
//! ```text
//! Deployment ── template hash ──> ReplicaSet (revision n, grows)
//!      └───────────────────────> ReplicaSets (older revisions, shrink; kept for rollback up to the history limit)
//! ```

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::core::Selector;
use kube::{Api, ResourceExt};

use crate::cluster::Cluster;
use crate::events::Severity;
use crate::ownership;
use crate::pods;
use crate::queue::Queue;
use crate::reconcile::{Error, Next, Reconcile, Result, now};
use crate::store::Key;

pub mod revisions;
pub mod rolling;
pub mod status;

use rolling::Size;

/// The Deployment controller.
pub struct Controller {
    cluster: Arc<Cluster>,
}

/// Makes the controller and the queue that feeds it.
pub fn new(cluster: &Arc<Cluster>) -> (Arc<Controller>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    cluster.deployments.subscribe(move |old, new| {
        if let Some(object) = new.or(old) {
            dirty.add(Key::of(&**object));
        }
    });
    let (dirty, owners) = (queue.clone(), cluster.deployments.clone());
    cluster.replica_sets.subscribe(move |old, new| {
        ownership::enqueue_owners(&dirty, &owners, old, new, selector);
    });
    // Recreate waits for the last old pod to be gone, which no ReplicaSet status tells in time.
    let (dirty, sets) = (queue.clone(), cluster.replica_sets.clone());
    cluster.pods.subscribe(move |old, new| {
        let (Some(pod), None) = (old, new) else { return };
        let owners = pod.owner_references();
        let Some(owner) =
            owners.iter().find(|owner| owner.controller == Some(true) && owner.kind == "ReplicaSet")
        else {
            return;
        };
        let namespace = pod.namespace().unwrap_or_default();
        if let Some(set) = sets.get(&Key::new(namespace.clone(), owner.name.clone()))
            && let Some(owner) = set.owner_references().iter().find(|owner| owner.controller == Some(true))
        {
            dirty.add(Key::new(namespace, owner.name.clone()));
        }
    });
    (Arc::new(Controller { cluster: cluster.clone() }), queue)
}

fn selector(deployment: &Deployment) -> Option<Selector> {
    pods::selector(&deployment.spec.as_ref()?.selector).ok()
}

/// A Deployment and its ReplicaSets, sorted by what they are to it.
struct Rollout {
    deployment: Deployment,
    /// The ReplicaSet of the current template.
    new: Option<Arc<ReplicaSet>>,
    /// All others, oldest first.
    old: Vec<Arc<ReplicaSet>>,
}

impl Rollout {
    fn all(&self) -> Vec<Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new).cloned().collect()
    }

    fn replicas(&self) -> i32 {
        rolling::desired(&self.deployment)
    }
}

impl Reconcile for Controller {
    const NAME: &'static str = "deployment-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(deployment) = self.cluster.deployments.get(key) else { return Ok(Next::Change) };
        let Some(spec) = &deployment.spec else { return Ok(Next::Change) };
        let selector = pods::selector(&spec.selector)?;
        if selector.selects_all() {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.cluster.events.report(Self::NAME, &*deployment, Severity::Warning, "SelectingAll", message);
            return Ok(Next::Change);
        }
        let api = Api::<Deployment>::namespaced(self.cluster.client.clone(), &key.namespace);
        let sets_api = self.sets_api(&deployment);
        let sets =
            ownership::claim(&self.cluster.replica_sets, &sets_api, &api, &*deployment, &selector).await?;
        let (new, old) = revisions::split(&deployment, sets);
        let mut rollout = Rollout { deployment: (*deployment).clone(), new, old };
        if deployment.metadata.deletion_timestamp.is_some() {
            return self.write_status(&rollout).await;
        }
        let paused = spec.paused == Some(true);
        self.note_pause(&mut rollout, paused).await?;
        if paused || rolling::wants_scaling(&rollout.deployment, &rollout.all()) {
            self.adopt_revision(&mut rollout, false).await?;
            self.scale(&mut rollout).await?;
            if paused {
                self.clean_up(&rollout).await?;
            }
        } else if spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate") {
            self.recreate(&mut rollout).await?;
        } else {
            self.roll(&mut rollout).await?;
        }
        self.write_status(&rollout).await
    }
}

impl Controller {
    fn sets_api(&self, deployment: &Deployment) -> Api<ReplicaSet> {
        Api::namespaced(self.cluster.client.clone(), &deployment.namespace().unwrap_or_default())
    }

    async fn roll(&self, rollout: &mut Rollout) -> Result<()> {
        self.adopt_revision(rollout, true).await?;
        let Some(new) = rollout.new.clone() else { return Ok(()) };
        let old: Vec<Size> = rollout.old.iter().map(|set| Size::of(set)).collect();
        match rolling::step(&rolling::Bounds::of(&rollout.deployment), Size::of(&new), &old) {
            rolling::Step::New(size) => self.resize(rollout, &new, size).await?,
            rolling::Step::Old(sizes) => {
                for (set, size) in rollout.old.clone().iter().zip(sizes) {
                    self.resize(rollout, set, size).await?;
                }
            }
            rolling::Step::Wait => {}
        }
        if status::is_complete(&rollout.deployment, rollout.deployment.status.as_ref()) {
            self.clean_up(rollout).await?;
        }
        Ok(())
    }

    async fn recreate(&self, rollout: &mut Rollout) -> Result<()> {
        self.adopt_revision(rollout, false).await?;
        let mut shrunk = false;
        for set in rollout.old.clone() {
            if rolling::size(&set) > 0 {
                self.resize(rollout, &set, 0).await?;
                shrunk = true;
            }
        }
        if shrunk || self.old_pods_remain(rollout) {
            return Ok(());
        }
        self.adopt_revision(rollout, true).await?;
        if let Some(new) = rollout.new.clone() {
            self.resize(rollout, &new, rollout.replicas()).await?;
        }
        if status::is_complete(&rollout.deployment, rollout.deployment.status.as_ref()) {
            self.clean_up(rollout).await?;
        }
        Ok(())
    }

    fn old_pods_remain(&self, rollout: &Rollout) -> bool {
        let remains = |pod: &Arc<Pod>| !pods::is_finished(pod);
        rollout
            .old
            .iter()
            .any(|set| self.cluster.pods.owned_by(&set.uid().unwrap_or_default()).iter().any(remains))
    }

    async fn scale(&self, rollout: &mut Rollout) -> Result<()> {
        let sets = rollout.all();
        for (set, size) in rolling::scale(&rollout.deployment, rollout.new.as_ref(), &sets) {
            self.resize(rollout, &set, size).await?;
        }
        Ok(())
    }

    /// Makes the current template's ReplicaSet carry the highest revision; makes the set itself where `create` allows.
    async fn adopt_revision(&self, rollout: &mut Rollout, create: bool) -> Result<()> {
        let revision = revisions::highest(&rollout.old) + 1;
        if let Some(new) = rollout.new.clone() {
            let mut set = (*new).clone();
            if revisions::annotate(&rollout.deployment, &mut set, revision) {
                rollout.new = Some(self.replace(rollout, &set).await?);
            }
            self.note_found(rollout, &new).await?;
        } else if create {
            self.create(rollout, revision).await?;
        } else {
            return Ok(());
        }
        let Some(new) = &rollout.new else { return Ok(()) };
        let carried = new.annotations().get(revisions::REVISION).cloned();
        if let Some(carried) = carried
            .filter(|carried| rollout.deployment.annotations().get(revisions::REVISION) != Some(carried))
        {
            rollout.deployment.annotations_mut().insert(revisions::REVISION.into(), carried);
            let api = Api::<Deployment>::namespaced(
                self.cluster.client.clone(),
                &rollout.deployment.namespace().unwrap_or_default(),
            );
            let written = api
                .replace(&rollout.deployment.name_any(), &PostParams::default(), &rollout.deployment)
                .await?;
            self.cluster.deployments.observe(&written);
            // The main resource ignores status: carry over what was put into it here.
            let status = rollout.deployment.status.take();
            rollout.deployment = Deployment { status, ..written };
        }
        Ok(())
    }

    async fn create(&self, rollout: &mut Rollout, revision: i64) -> Result<()> {
        let set = revisions::make(&rollout.deployment, &rollout.old, revision);
        let api = self.sets_api(&rollout.deployment);
        match api.create(&PostParams::default(), &set).await {
            Ok(created) => {
                self.cluster.replica_sets.observe(&created);
                let name = created.name_any();
                let size = rolling::size(&created);
                if size > 0 {
                    self.report_scaling(rollout, &name, 0, size);
                }
                let message = format!("Created new replica set \"{name}\"");
                status::set_progress(&mut rollout.deployment, "True", "NewReplicaSetCreated", message, now());
                rollout.new = Some(Arc::new(created));
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                self.resolve_collision(rollout, &api, &set).await
            }
            Err(error) => {
                let message = match &error {
                    kube::Error::Api(status) => status.message.clone(),
                    other => other.to_string(),
                };
                let message = format!("Failed to create new replica set \"{}\": {message}", set.name_any());
                status::set_progress(
                    &mut rollout.deployment,
                    "False",
                    "ReplicaSetCreateError",
                    message,
                    now(),
                );
                self.write_status(rollout).await?;
                Err(error.into())
            }
        }
    }

    /// The name is taken: by our own set that the store has not shown yet, or by another template with the same hash.
    async fn resolve_collision(
        &self,
        rollout: &Rollout,
        api: &Api<ReplicaSet>,
        set: &ReplicaSet,
    ) -> Result<()> {
        let name = set.name_any();
        let live = api.get(&name).await?;
        let ours = crate::store::owner_uid(&live) == rollout.deployment.uid().as_deref();
        if ours && revisions::same_template(&rollout.deployment, &live) {
            self.cluster.replica_sets.observe(&live);
            return Err(Error::Waiting(format!("replica set {name} exists already")));
        }
        let mut deployment = rollout.deployment.clone();
        let status = deployment.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        self.replace_status(&deployment).await?;
        Err(Error::Waiting(format!("the name {name} is taken by another replica set")))
    }

    async fn resize(&self, rollout: &mut Rollout, set: &Arc<ReplicaSet>, size: i32) -> Result<()> {
        let from = rolling::size(set);
        let mut resized = (**set).clone();
        let annotated = revisions::annotate_sizes(&rollout.deployment, &mut resized);
        if from == size && !annotated {
            return Ok(());
        }
        if let Some(spec) = &mut resized.spec {
            spec.replicas = Some(size);
        }
        self.replace(rollout, &resized).await?;
        if from != size {
            self.report_scaling(rollout, &set.name_any(), from, size);
        }
        Ok(())
    }

    /// Writes a ReplicaSet and puts the answer in the place of the old one.
    async fn replace(&self, rollout: &mut Rollout, set: &ReplicaSet) -> Result<Arc<ReplicaSet>> {
        let api = self.sets_api(&rollout.deployment);
        let written = api.replace(&set.name_any(), &PostParams::default(), set).await?;
        self.cluster.replica_sets.observe(&written);
        let written = Arc::new(written);
        for slot in rollout.old.iter_mut().chain(&mut rollout.new) {
            if slot.metadata.uid == written.metadata.uid {
                *slot = written.clone();
            }
        }
        Ok(written)
    }

    fn report_scaling(&self, rollout: &Rollout, name: &str, from: i32, to: i32) {
        let direction = if to > from { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {name} from {from} to {to}");
        self.cluster.events.report(
            Self::NAME,
            &rollout.deployment,
            Severity::Normal,
            "ScalingReplicaSet",
            message,
        );
    }

    async fn clean_up(&self, rollout: &Rollout) -> Result<()> {
        let api = self.sets_api(&rollout.deployment);
        for set in revisions::beyond_history(&rollout.deployment, &rollout.old) {
            let preconditions = Preconditions { uid: set.uid(), resource_version: None };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
            if crate::reconcile::found(api.delete(&set.name_any(), &params).await)?
                .is_none_or(|answer| answer.is_right())
            {
                self.cluster.replica_sets.forget(&Key::of(&*set), &set.uid().unwrap_or_default());
            }
        }
        Ok(())
    }

    async fn note_pause(&self, rollout: &mut Rollout, paused: bool) -> Result<()> {
        if rollout.deployment.spec.as_ref().is_none_or(|spec| spec.progress_deadline_seconds.is_none()) {
            return Ok(());
        }
        let noted = status::progress(&rollout.deployment)
            .is_some_and(|c| c.reason.as_deref() == Some("DeploymentPaused"));
        let timed_out = status::progress(&rollout.deployment)
            .is_some_and(|c| c.reason.as_deref() == Some(status::TIMED_OUT));
        let (reason, message) = match (paused, noted) {
            (true, false) if !timed_out => ("DeploymentPaused", "Deployment is paused"),
            (false, true) => ("DeploymentResumed", "Deployment is resumed"),
            _ => return Ok(()),
        };
        status::set_progress(&mut rollout.deployment, "Unknown", reason, message.into(), now());
        rollout.deployment = self.replace_status(&rollout.deployment).await?;
        Ok(())
    }

    async fn note_found(&self, rollout: &mut Rollout, new: &ReplicaSet) -> Result<()> {
        let wanted =
            rollout.deployment.spec.as_ref().is_some_and(|spec| spec.progress_deadline_seconds.is_some());
        if wanted && status::progress(&rollout.deployment).is_none() {
            let message = format!("Found new replica set \"{}\"", new.name_any());
            status::set_progress(&mut rollout.deployment, "True", "FoundNewReplicaSet", message, now());
            rollout.deployment = self.replace_status(&rollout.deployment).await?;
        }
        Ok(())
    }

    async fn write_status(&self, rollout: &Rollout) -> Result {
        let now = now();
        let stored = self.cluster.deployments.get(&Key::of(&rollout.deployment));
        let old = stored.and_then(|deployment| deployment.status.clone()).unwrap_or_default();
        let status = status::compute(&rollout.deployment, &old, rollout.new.as_deref(), &rollout.all(), &now);
        let next = status::deadline(&rollout.deployment, &status, now.0).map_or(Next::Change, Next::After);
        if !status::same(&old, &status) {
            let deployment = Deployment { status: Some(status), ..rollout.deployment.clone() };
            self.replace_status(&deployment).await?;
        }
        Ok(next)
    }

    async fn replace_status(&self, deployment: &Deployment) -> Result<Deployment> {
        let api = Api::<Deployment>::namespaced(
            self.cluster.client.clone(),
            &deployment.namespace().unwrap_or_default(),
        );
        let written = api.replace_status(&deployment.name_any(), &PostParams::default(), deployment).await?;
        self.cluster.deployments.observe(&written);
        Ok(written)
    }
}

/// The status of a Deployment; empty where it has none.
fn status_of(deployment: &Deployment) -> DeploymentStatus {
    deployment.status.clone().unwrap_or_default()
}
