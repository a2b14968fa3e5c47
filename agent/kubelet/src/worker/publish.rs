//! Status to the apiserver: one patch at a time, the newest status next; and the end of the object.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};

use super::ops::Done;
use super::{RETRY_FIRST, Worker};
use crate::plan::{Op, Plan};
use crate::pod;
use crate::status;

pub struct Publisher {
    /// What the apiserver has.
    published: PodStatus,
    busy: bool,
    pub retry_at: Option<Timestamp>,
    deleting: bool,
}

impl Publisher {
    pub fn new(published: PodStatus) -> Self {
        Self { published, busy: false, retry_at: None, deleting: false }
    }

    /// Takes the apiserver's word where another writer changed a condition that is the kubelet's: the node lifecycle
    /// controller sets Ready to False while the node is out of reach, and nobody but us sets it back. An event that is
    /// older than the last patch costs one more patch that changes nothing.
    pub fn see(&mut self, stored: Option<&PodStatus>) {
        let Some(stored) = stored else { return };
        if !self.busy && owned(stored) != owned(&self.published) {
            self.published = stored.clone();
        }
    }
}

/// Conditions that the kubelet writes, with their status.
fn owned(status: &PodStatus) -> BTreeMap<&str, &str> {
    const OWNED: [&str; 4] = ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"];
    let conditions = status.conditions.iter().flatten();
    conditions
        .map(|condition| (condition.type_.as_str(), condition.status.as_str()))
        .filter(|(kind, _)| OWNED.contains(kind))
        .collect()
}

fn is_gone(error: &kube::Error) -> bool {
    // 409: the name belongs to a younger pod.
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409))
}

impl Worker {
    pub(super) fn publish(&mut self, plan: &Plan, now: Timestamp) {
        self.status = self.view_status(plan, now);
        if pod::is_terminal_phase(self.status.phase.as_deref()) {
            self.memory.terminal = true;
        }
        let waits = self.publisher.retry_at.is_some_and(|at| at > now);
        if self.status == self.publisher.published || self.publisher.busy || waits || self.object_gone {
            return;
        }
        self.publisher.busy = true;
        self.publisher.retry_at = None;
        let api = Api::<Pod>::namespaced(self.context.client.clone(), pod::namespace(&self.pod));
        let name = pod::name(&self.pod).to_owned();
        let body = status::patch(pod::uid(&self.pod), &self.publisher.published, &self.status);
        let sent = self.status.clone();
        self.ops.spawn(async move {
            let result = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(body)).await;
            Done::Published(Box::new(sent), result.map(drop))
        });
    }

    pub(super) fn handle_published(&mut self, sent: PodStatus, result: Result<(), kube::Error>) {
        self.publisher.busy = false;
        match result {
            Ok(()) => self.publisher.published = sent,
            Err(error) if is_gone(&error) => self.publisher.published = sent,
            Err(error) => {
                tracing::warn!(pod = pod::display(&self.pod), %error, "status not written, will be retried");
                self.publisher.retry_at = Some(Timestamp::now() + RETRY_FIRST);
            }
        }
    }

    /// Lets the pod go once nothing of it is left here and its last status is known.
    pub(super) fn finish(&mut self, plan: &Plan) {
        let deleted = self.memory.ending.as_ref().is_some_and(|ending| ending.deleted);
        let busy = self.memory.busy.iter().any(|op| !matches!(op, Op::Volumes));
        if !plan.ended || !deleted || busy || !self.actual.sandboxes.is_empty() || self.publisher.deleting {
            return;
        }
        let told = self.object_gone || self.publisher.published == self.status;
        if !told || self.publisher.busy || self.publisher.retry_at.is_some_and(|at| at > Timestamp::now()) {
            return;
        }
        self.publisher.deleting = true;
        let (context, pod, gone) = (self.context.clone(), self.pod.clone(), self.object_gone);
        self.ops.spawn(async move { Done::Deleted(delete(&context, &pod, gone).await) });
    }

    pub(super) fn handle_deleted(&mut self, result: Result<(), String>) {
        self.publisher.deleting = false;
        match result {
            Ok(()) => self.finished = true,
            Err(error) => {
                tracing::warn!(pod = pod::display(&self.pod), error, "pod not removed, will be retried");
                self.publisher.retry_at = Some(Timestamp::now() + RETRY_FIRST);
            }
        }
    }
}

async fn delete(context: &crate::context::Context, pod: &Pod, gone: bool) -> Result<(), String> {
    let uid = pod::uid(pod);
    context.volumes.remove(uid).await?;
    let logs = crate::runtime_config::log_dir(&context.config, pod);
    match tokio::fs::remove_dir_all(&logs).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::debug!(logs = %logs.display(), %error, "logs not removed");
        }
        _ => {}
    }
    context.owners.forget_pod(uid);
    if gone {
        return Ok(());
    }
    let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(preconditions),
        ..DeleteParams::default()
    };
    let api = Api::<Pod>::namespaced(context.client.clone(), pod::namespace(pod));
    match api.delete(pod::name(pod), &params).await {
        Err(error) if !is_gone(&error) => Err(error.to_string()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodCondition, PodStatus};

    use super::Publisher;

    fn ready(status: &str, message: &str) -> PodStatus {
        let condition = PodCondition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            message: Some(message.to_owned()),
            ..PodCondition::default()
        };
        PodStatus { conditions: Some(vec![condition]), ..PodStatus::default() }
    }

    #[test]
    fn a_condition_that_another_writer_turned_is_published_again() {
        let mut publisher = Publisher::new(ready("True", ""));
        publisher.see(Some(&ready("True", "only the text differs")));
        assert_eq!(publisher.published, ready("True", ""));
        publisher.see(Some(&ready("False", "")));
        assert_eq!(publisher.published, ready("False", ""));
    }

    #[test]
    fn the_answer_to_a_patch_under_way_is_awaited() {
        let mut publisher = Publisher::new(ready("True", ""));
        publisher.busy = true;
        publisher.see(Some(&ready("False", "")));
        assert_eq!(publisher.published, ready("True", ""));
    }
}
