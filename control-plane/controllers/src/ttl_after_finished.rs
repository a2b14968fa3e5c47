//! TTL after finished: deletes Jobs some time after they ended, if they ask for it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::cluster::Cluster;
use crate::queue::Queue;
use crate::reconcile::{Next, Reconcile, Result, elapsed, found, now};
use crate::store::Key;

/// The controller.
pub struct Controller {
    cluster: Arc<Cluster>,
}

/// Makes the controller and the queue that feeds it.
pub fn new(cluster: &Arc<Cluster>) -> (Arc<Controller>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let dirty = queue.clone();
    cluster.jobs.subscribe(move |_, new| {
        if let Some(job) =
            new.filter(|job| job.spec.as_ref().is_some_and(|spec| spec.ttl_seconds_after_finished.is_some()))
        {
            dirty.add(Key::of(&**job));
        }
    });
    (Arc::new(Controller { cluster: cluster.clone() }), queue)
}

/// How long the Job may still stay; `None` if it has not ended or asks for no end.
pub fn remaining(job: &Job, now: Timestamp) -> Option<Duration> {
    let ttl = u64::try_from(job.spec.as_ref()?.ttl_seconds_after_finished?).ok()?;
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let ended = conditions
        .iter()
        .find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")?;
    let since = ended.last_transition_time.as_ref()?.0;
    Some(Duration::from_secs(ttl).saturating_sub(elapsed(since, now)))
}

impl Reconcile for Controller {
    const NAME: &'static str = "ttl-after-finished-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let job = self.cluster.jobs.get(key).filter(|job| job.metadata.deletion_timestamp.is_none());
        let Some((job, remaining)) = job.and_then(|job| Some((job.clone(), remaining(&job, now().0)?)))
        else {
            return Ok(Next::Change);
        };
        if !remaining.is_zero() {
            return Ok(Next::After(remaining));
        }
        let api = Api::<Job>::namespaced(self.cluster.client.clone(), &key.namespace);
        // The version guards against a time to live that was raised meanwhile.
        let preconditions = Preconditions { uid: job.uid(), resource_version: job.resource_version() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::foreground() };
        found(api.delete(&key.name, &params).await)?;
        Ok(Next::Change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::batch::v1::{JobCondition, JobSpec, JobStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn the_time_runs_from_the_end() {
        let ended = Timestamp::from_second(1_700_000_000).expect("a valid time");
        let mut job = Job {
            spec: Some(JobSpec { ttl_seconds_after_finished: Some(60), ..JobSpec::default() }),
            ..Job::default()
        };
        assert_eq!(remaining(&job, ended), None);
        let condition = JobCondition {
            type_: "Complete".into(),
            status: "True".into(),
            last_transition_time: Some(Time(ended)),
            ..JobCondition::default()
        };
        job.status = Some(JobStatus { conditions: Some(vec![condition]), ..JobStatus::default() });
        assert_eq!(remaining(&job, ended + Duration::from_secs(20)), Some(Duration::from_secs(40)));
        assert_eq!(remaining(&job, ended + Duration::from_secs(90)), Some(Duration::ZERO));
    }
}
