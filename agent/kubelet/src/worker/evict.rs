//! The end of a pod that has to go, and of what is left of one that has ended.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use tokio_util::sync::CancellationToken;

use super::{Eviction, Worker};
use crate::eviction;
use crate::plan::{Ending, Plan};
use crate::recorder::Type;
use crate::runtime_config;

/// Whether the status is that of an evicted pod, of which nothing is kept.
pub fn is_evicted(status: &PodStatus) -> bool {
    status.phase.as_deref() == Some("Failed") && status.reason.as_deref() == Some(eviction::REASON)
}

impl Worker {
    /// Ends the pod and removes what it leaves. One that has ended already stays as it is; one that is being deleted gets less
    /// time.
    pub(super) fn evict(&mut self, eviction: Eviction) {
        if self.memory.terminal {
            return eviction.done.cancel();
        }
        self.await_removal.push(eviction.done);
        self.memory.reclaim = true;
        let deadline = Timestamp::now() + eviction.grace;
        let current = self.memory.ending.take();
        self.memory.ending = Some(Ending {
            deadline: current.as_ref().map_or(deadline, |ending| ending.deadline.min(deadline)),
            deleted: current.is_some_and(|ending| ending.deleted),
        });
        if self.failure.is_none() {
            let failure = &eviction.failure;
            self.context.recorder.pod(&self.pod, Type::Warning, &failure.reason, failure.message.clone());
            self.failure = Some(eviction.failure);
        }
    }

    /// Removes what is left of a pod that has ended, if it is not to be kept.
    pub(super) fn reclaim(&mut self, done: CancellationToken) {
        self.memory.reclaim |= self.memory.terminal;
        if self.memory.reclaim {
            self.await_removal.push(done);
        } else {
            done.cancel();
        }
    }

    /// Once containers and volumes are gone, the logs go too, and who waits for that is told.
    pub(super) fn end_reclaim(&mut self, plan: &Plan) {
        let gone = plan.ended && self.actual.sandboxes.is_empty() && self.actual.containers.is_empty();
        if !self.memory.reclaim || !gone || (self.logs_removed && self.await_removal.is_empty()) {
            return;
        }
        self.logs_removed = true;
        let waiting = std::mem::take(&mut self.await_removal);
        let logs = runtime_config::log_dir(&self.context.config, &self.pod);
        tokio::spawn(async move {
            if let Err(error) = tokio::fs::remove_dir_all(&logs).await
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::debug!(logs = %logs.display(), %error, "logs not removed");
            }
            waiting.iter().for_each(CancellationToken::cancel);
        });
    }
}
