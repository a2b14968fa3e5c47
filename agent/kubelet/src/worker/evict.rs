//! The end of a pod that has to go, and of what is left of one that has ended.

use jiff::Timestamp;

use super::{Eviction, Worker};
use crate::plan::{Ending, Plan};
use crate::pod;
use crate::recorder::Type;
use crate::runtime_config;

impl Worker {
    /// Ends the pod. One that has ended already stays as it is; one that is being deleted gets less time.
    pub(super) fn evict(&mut self, eviction: Eviction) {
        self.await_end.push(eviction.done);
        if self.memory.terminal {
            return;
        }
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

    /// Lets go who waits for the pod's end, or for the removal of what is left.
    pub(super) fn tell_waiting(&mut self, plan: &Plan) {
        let removed = self.actual.sandboxes.is_empty() && self.actual.containers.is_empty();
        if plan.ended {
            self.await_end.drain(..).for_each(|done| done.cancel());
        }
        if self.await_removal.is_empty() || (self.memory.reclaim && !(plan.ended && removed)) {
            return;
        }
        if self.memory.reclaim {
            let logs = runtime_config::log_dir(&self.context.config, &self.pod);
            if let Err(error) = std::fs::remove_dir_all(&logs)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::debug!(pod = pod::display(&self.pod), %error, "logs not removed");
            }
        }
        self.await_removal.drain(..).for_each(|done| done.cancel());
    }
}
