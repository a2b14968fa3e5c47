//! The ServiceCIDR `kubernetes`: the ranges that the server was started with. Made where it is missing, at start and
//! later; given its second family when the server has got one; otherwise left as it is.

use std::{sync::Arc, time::Duration};

use api::{meta, status::Status};
use serde_json::{Value, json};
use tracing::warn;

use crate::{
    handlers::{
        Target, now,
        own::{self, OwnUpdate},
    },
    security::{GROUP_MASTERS, Identity},
    state::State,
};

const NAME: &str = "kubernetes";
const PERIOD: Duration = Duration::from_secs(10);

/// Looks after it until the server stops.
pub(super) async fn keep(state: Arc<State>) {
    let mut reported = String::new();
    loop {
        tokio::select! {
            () = state.stop.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        let problem = ensure(&state).await.err().map(|status| status.message).unwrap_or_default();
        if !problem.is_empty() && problem != reported {
            warn!(problem, "the ServiceCIDR kubernetes cannot be looked after");
        }
        reported = problem;
    }
}

/// Makes it, or brings it up to date.
pub(super) async fn ensure(state: &State) -> Result<(), Status> {
    let Some(target) = state.kinds.of_kind("networking.k8s.io", "v1", "ServiceCIDR") else {
        return Err(Status::internal("no resource for ServiceCIDR"));
    };
    let user = Identity::internal("system:apiserver", &[GROUP_MASTERS]);
    let ranges: Vec<String> = state.config.service_cidrs.iter().map(ToString::to_string).collect();
    let Some(stored) = state.cache.get(&target.key("", NAME)) else {
        let object = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "ServiceCIDR",
            "metadata": { "name": NAME },
            "spec": { "cidrs": ranges },
        });
        own::create(state, &user, &target, "", object).await?;
        return set_ready(state, &user, &target).await;
    };
    let value = stored.value();
    let stored = value["spec"]["cidrs"].as_array().map(Vec::as_slice).unwrap_or_default();
    if meta::deletion_timestamp(&value).is_some() {
        return Ok(());
    }
    if *stored != ranges[..] {
        if ranges.len() == 2 && stored.len() == 1 && stored[0] == ranges[0] {
            write(state, &user, &target, "", &mut |object| object["spec"]["cidrs"] = json!(ranges)).await?;
        }
        return Ok(());
    }
    let conditions = value["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] != "Unknown") {
        return Ok(());
    }
    set_ready(state, &user, &target).await
}

async fn set_ready(state: &State, user: &Identity, target: &Target) -> Result<(), Status> {
    let condition = json!({
        "type": "Ready",
        "status": "True",
        "reason": "",
        "message": "Kubernetes default Service CIDR is ready",
        "lastTransitionTime": now(),
    });
    write(state, user, target, "status", &mut |object| object["status"]["conditions"] = json!([condition]))
        .await
}

async fn write(
    state: &State,
    user: &Identity,
    target: &Target,
    subresource: &'static str,
    change: &mut (dyn FnMut(&mut Value) + Send),
) -> Result<(), Status> {
    let update = OwnUpdate { state, user, target, subresource, namespace: "", name: NAME, admits: true };
    update.run(change).await.map(drop)
}
