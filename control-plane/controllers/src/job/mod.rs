//! Job: runs pods until enough of them have succeeded. `plan` decides; this file reads, writes and cleans up.
//!
//! Not acted upon yet: podFailurePolicy, successPolicy, backoffLimitPerIndex.

use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Selector;
use kube::{Api, ResourceExt};

use crate::cluster::Cluster;
use crate::events::Severity;
use crate::ownership;
use crate::pods;
use crate::queue::Queue;
use crate::reconcile::{Next, Reconcile, Result, found, now};
use crate::replica_set::{delete_pod, in_terminating_namespace};
use crate::store::Key;

pub mod indexes;
pub mod plan;

use plan::{INDEX, Plan, TRACKING, holds, is_finished};

/// The Job controller.
pub struct Controller {
    cluster: Arc<Cluster>,
}

/// Makes the controller and the queue that feeds it.
pub fn new(cluster: &Arc<Cluster>) -> (Arc<Controller>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    cluster.jobs.subscribe(move |old, new| {
        if let Some(job) = new.or(old) {
            dirty.add(Key::of(&**job));
        }
    });
    let (dirty, jobs) = (queue.clone(), cluster.jobs.clone());
    cluster.pods.subscribe(move |old, new| ownership::enqueue_owners(&dirty, &jobs, old, new, selector));
    (Arc::new(Controller { cluster: cluster.clone() }), queue)
}

fn selector(job: &Job) -> Option<Selector> {
    pods::selector(job.spec.as_ref()?.selector.as_ref()?).ok()
}

fn is_tracked(pod: &Pod) -> bool {
    pod.finalizers().iter().any(|finalizer| finalizer == TRACKING)
}

impl Reconcile for Controller {
    const NAME: &'static str = "job-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(job) = self.cluster.jobs.get(key) else {
            self.release_orphans(key).await?;
            return Ok(Next::Change);
        };
        let Some(selector) = selector(&job) else { return Ok(Next::Change) };
        let managed = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
        if managed.is_some_and(|by| by != "kubernetes.io/job-controller") {
            return Ok(Next::Change);
        }
        let api = Api::<Job>::namespaced(self.cluster.client.clone(), &key.namespace);
        if job.metadata.deletion_timestamp.is_some() || is_finished(&job) {
            let left = self.cluster.pods.owned_by(&job.uid().unwrap_or_default());
            self.untrack(left.iter().filter(|pod| is_tracked(pod))).await?;
            return Ok(Next::Change);
        }
        let own = ownership::claim_pods(&self.cluster, &api, &*job, &selector).await?;
        let plan = plan::plan(&job, &own, &now());
        let next = plan.again.map_or(Next::Change, Next::After);
        self.carry_out(&api, &job, plan).await?;
        Ok(next)
    }
}

impl Controller {
    async fn carry_out(&self, api: &Api<Job>, job: &Job, plan: Plan) -> Result<()> {
        let pods = Api::<Pod>::namespaced(self.cluster.client.clone(), &job.namespace().unwrap_or_default());
        if job.status.as_ref() != Some(&plan.status) {
            let written = Job { status: Some(plan.status.clone()), ..job.clone() };
            let written = api.replace_status(&job.name_any(), &PostParams::default(), &written).await?;
            self.cluster.jobs.observe(&written);
            self.report_end(job, &written);
        }
        self.untrack(plan.counted.iter()).await?;
        for pod in &plan.delete {
            delete_pod(&self.cluster, &pods, pod).await?;
            let message = format!("Deleted pod: {}", pod.name_any());
            self.cluster.events.report(Self::NAME, job, Severity::Normal, "SuccessfulDelete", message);
        }
        for index in plan.create {
            match pods.create(&PostParams::default(), &make(job, index)).await {
                Ok(created) => {
                    self.cluster.pods.observe(&created);
                    let message = format!("Created pod: {}", created.name_any());
                    self.cluster.events.report(
                        Self::NAME,
                        job,
                        Severity::Normal,
                        "SuccessfulCreate",
                        message,
                    );
                }
                Err(error) if in_terminating_namespace(&error) => return Ok(()),
                Err(error) => {
                    let message = format!("Error creating: {error}");
                    self.cluster.events.report(Self::NAME, job, Severity::Warning, "FailedCreate", message);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    fn report_end(&self, before: &Job, after: &Job) {
        let (Some(status), false) = (&after.status, is_finished(before)) else { return };
        if holds(status, "Complete") {
            self.cluster.events.report(Self::NAME, after, Severity::Normal, "Completed", "Job completed");
        }
        let failed = status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == "Failed" && condition.status == "True");
        if let Some(failed) = failed {
            let reason = match failed.reason.as_deref() {
                Some("DeadlineExceeded") => "DeadlineExceeded",
                _ => "BackoffLimitExceeded",
            };
            let message = failed.message.clone().unwrap_or_default();
            self.cluster.events.report(Self::NAME, after, Severity::Warning, reason, message);
        }
    }

    /// Takes the finalizer off pods whose Job is gone: nobody will count them.
    async fn release_orphans(&self, key: &Key) -> Result<()> {
        let pods = self.cluster.pods.in_namespace(&key.namespace);
        let orphaned = |pod: &&Arc<Pod>| {
            let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
            is_tracked(pod) && owner.is_some_and(|owner| owner.kind == "Job" && owner.name == key.name)
        };
        self.untrack(pods.iter().filter(orphaned)).await
    }

    async fn untrack<'a>(&self, pods: impl Iterator<Item = &'a Arc<Pod>>) -> Result<()> {
        let answers = join_all(pods.map(|pod| self.untrack_one(pod))).await;
        answers.into_iter().collect()
    }

    async fn untrack_one(&self, pod: &Pod) -> Result<()> {
        let finalizers: Vec<_> = pod.finalizers().iter().filter(|finalizer| *finalizer != TRACKING).collect();
        let patch = serde_json::json!({ "metadata": {
            "uid": pod.uid(), "resourceVersion": pod.resource_version(), "finalizers": finalizers,
        }});
        let api = Api::<Pod>::namespaced(self.cluster.client.clone(), &pod.namespace().unwrap_or_default());
        match found(api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await)? {
            Some(written) => self.cluster.pods.observe(&written),
            None => self.cluster.pods.forget(&Key::of(pod), &pod.uid().unwrap_or_default()),
        }
        Ok(())
    }
}

/// A pod of the Job; with an index, its name, host name and environment carry it.
pub fn make(job: &Job, index: Option<i32>) -> Pod {
    let spec = job.spec.clone().unwrap_or_default();
    let namespace = job.namespace().unwrap_or_default();
    let mut pod = pods::from_template(&spec.template, pods::controller_reference(job), &namespace);
    pod.metadata.finalizers.get_or_insert_default().push(TRACKING.into());
    let Some(index) = index else { return pod };
    let name = job.name_any();
    pod.metadata.generate_name = Some(format!("{name}-{index}-"));
    pod.annotations_mut().insert(INDEX.into(), index.to_string());
    pod.labels_mut().insert(INDEX.into(), index.to_string());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname.get_or_insert(format!("{name}-{index}"));
    let field = ObjectFieldSelector { field_path: format!("metadata.labels['{INDEX}']"), api_version: None };
    let variable = EnvVar {
        name: "JOB_COMPLETION_INDEX".into(),
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
        ..EnvVar::default()
    };
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|known| known.name == variable.name) {
            env.push(variable.clone());
        }
    }
    pod
}
