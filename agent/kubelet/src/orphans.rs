//! What is left of pods that no longer exist: they were deleted while the kubelet was not running.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_cri::v1 as cri;

use crate::actual::ANNOTATION_GRACE;
use crate::context::Context;
use crate::cri::LABEL_POD_UID;
use crate::pod;
use crate::run::PodTable;

const GRACE_MAX: Duration = Duration::from_secs(30);
const GRACE_DEFAULT: Duration = Duration::from_secs(2);

/// Stops and removes everything here that belongs to no pod in `pods`. To be called only once the list of pods is
/// complete. A container gets the grace its pod asked for, at most 30 s.
pub async fn remove(context: Arc<Context>, pods: PodTable) {
    let lists =
        tokio::try_join!(context.runtime.list_pod_sandboxes(None), context.runtime.list_containers(None));
    let (sandboxes, containers) = match lists {
        Ok(lists) => lists,
        Err(error) => return tracing::warn!(%error, "orphaned pods not looked for"),
    };
    let directories = context.volumes.known_uids().into_iter().chain(context.cgroups.known_uids());
    let directories: Vec<String> = directories.collect();
    // A pod enters the table before anything of it is made, so a table read after the lists knows all owners.
    let known: HashSet<String> = pods.all().iter().map(|pod| pod::uid(pod).to_owned()).collect();
    let mut orphans: BTreeMap<String, (Vec<cri::PodSandbox>, Vec<cri::Container>)> = BTreeMap::new();
    for sandbox in sandboxes {
        if let Some(uid) = sandbox.labels.get(LABEL_POD_UID).filter(|uid| !known.contains(*uid)) {
            orphans.entry(uid.clone()).or_default().0.push(sandbox);
        }
    }
    for container in containers {
        if let Some(uid) = container.labels.get(LABEL_POD_UID).filter(|uid| !known.contains(*uid)) {
            orphans.entry(uid.clone()).or_default().1.push(container);
        }
    }
    for uid in directories {
        if !known.contains(&uid) {
            orphans.entry(uid).or_default();
        }
    }
    join_all(orphans.into_iter().map(|(uid, (sandboxes, containers))| {
        let context = context.clone();
        async move {
            match remove_one(&context, &uid, &sandboxes, &containers).await {
                Ok(()) => tracing::info!(uid, "orphaned pod removed"),
                Err(error) => tracing::warn!(uid, error, "orphaned pod not removed, will be retried"),
            }
        }
    }))
    .await;
}

fn grace(container: &cri::Container) -> Duration {
    let text = container.annotations.get(ANNOTATION_GRACE);
    let asked = text.and_then(|text| text.parse().ok()).map(Duration::from_secs);
    asked.unwrap_or(GRACE_DEFAULT).min(GRACE_MAX)
}

async fn remove_one(
    context: &Context,
    uid: &str,
    sandboxes: &[cri::PodSandbox],
    containers: &[cri::Container],
) -> Result<(), String> {
    let running = containers.iter().filter(|c| c.state == cri::ContainerState::ContainerRunning as i32);
    let stops = running.map(|container| context.runtime.stop_container(&container.id, grace(container)));
    for stopped in join_all(stops).await {
        stopped.map_err(|error| error.to_string())?;
    }
    for sandbox in sandboxes {
        context.runtime.stop_pod_sandbox(&sandbox.id).await.map_err(|error| error.to_string())?;
        context.runtime.remove_pod_sandbox(&sandbox.id).await.map_err(|error| error.to_string())?;
    }
    context.volumes.remove(uid).await?;
    context.cgroups.remove_pod(uid).map_err(|error| format!("cgroup: {error}"))
}
