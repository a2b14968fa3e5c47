//! The first look: what ran before this kubelet did goes on as it was.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodStatus;

use super::Worker;
use crate::pod;

/// Lives of containers by the API's status, of those that once ran: if the runtime has forgotten them, the count of
/// restarts goes on.
pub fn restarts_before(status: &PodStatus) -> BTreeMap<String, u32> {
    let app = status.container_statuses.iter().flatten();
    let all = app.chain(status.init_container_statuses.iter().flatten());
    all.filter(|status| status.container_id.is_some())
        .filter_map(|status| Some((status.name.clone(), u32::try_from(status.restart_count).ok()?)))
        .collect()
}

impl Worker {
    /// Takes over the verdicts that the API's status holds of containers still running.
    pub(super) async fn adopt(&mut self) {
        let Ok(actual) = self.observer.observe(&self.context, pod::uid(&self.pod)).await else { return };
        let statuses = self.status.container_statuses.iter().flatten();
        let statuses = statuses.chain(self.status.init_container_statuses.iter().flatten());
        for status in statuses {
            let id = status.container_id.as_deref().and_then(|id| id.rsplit('/').next()).unwrap_or_default();
            if !actual.containers.iter().any(|c| c.id == id && c.is_running()) {
                continue;
            }
            self.adopted.insert(id.to_owned());
            if status.ready {
                self.memory.ready.insert(id.to_owned());
            }
            if status.started == Some(true) {
                self.memory.started.insert(id.to_owned());
            }
        }
        self.actual = actual;
    }
}
