//! The use of tokens that are kept in Secrets: since when it is tracked, in the ConfigMap
//! `kube-system/kube-apiserver-legacy-service-account-token-tracking`, and when each was last used, in a label of its Secret.
//! Whoever cleans up invalidates tokens that were not used for a year of that time.

use std::{sync::Arc, time::Duration};

use api::status::Status;
use serde_json::{Value, json};
use tracing::warn;

use crate::{
    handlers::{
        Target,
        own::{self, OwnUpdate},
    },
    security::{
        GROUP_MASTERS, Identity,
        tokens::{LAST_USED, date},
    },
    state::State,
};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-apiserver-legacy-service-account-token-tracking";
const SINCE: &str = "since";
const PERIOD: Duration = Duration::from_secs(60);

/// Looks after both until the server stops.
pub(super) async fn keep(state: Arc<State>) {
    let mut timer = tokio::time::interval(PERIOD);
    loop {
        let outcome = tokio::select! {
            () = state.stop.cancelled() => return,
            _ = timer.tick() => ensure(&state).await,
            uses = state.tokens.uses().take() => {
                let mut outcome = Ok(());
                for (namespace, name) in uses {
                    outcome = outcome.and(label(&state, &namespace, &name).await);
                }
                outcome
            }
        };
        if let Err(status) = outcome {
            warn!(problem = status.message, "the use of tokens in Secrets cannot be tracked");
        }
    }
}

fn today() -> String {
    date(jiff::Timestamp::now().as_second())
}

/// Says since when uses are tracked, where that is not said.
async fn ensure(state: &State) -> Result<(), Status> {
    let Some(resource) = state.schema.resource("", "v1", "configmaps") else { return Ok(()) };
    let target = Target::new(resource);
    let Some(stored) = state.cache.get(&target.key(NAMESPACE, NAME)) else {
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": NAME, "namespace": NAMESPACE },
            "data": { SINCE: today() },
        });
        return own::create(state, &user(), &target, NAMESPACE, object).await.map(drop);
    };
    if stored.value()["data"][SINCE].as_str().is_some_and(|since| since.parse::<jiff::civil::Date>().is_ok())
    {
        return Ok(());
    }
    change(state, &target, NAMESPACE, NAME, &mut |object| object["data"][SINCE] = json!(today())).await
}

async fn label(state: &State, namespace: &str, name: &str) -> Result<(), Status> {
    let Some(resource) = state.schema.resource("", "v1", "secrets") else { return Ok(()) };
    change(state, &Target::new(resource), namespace, name, &mut |secret| {
        secret["metadata"]["labels"][LAST_USED] = json!(today());
    })
    .await
}

async fn change(
    state: &State,
    target: &Target,
    namespace: &str,
    name: &str,
    edit: &mut (dyn FnMut(&mut Value) + Send),
) -> Result<(), Status> {
    let update = OwnUpdate { state, user: &user(), target, subresource: "", namespace, name, admits: false };
    match update.run(edit).await {
        Ok(_) => Ok(()),
        Err(status) if status.reason == "NotFound" => Ok(()),
        Err(status) => Err(status),
    }
}

fn user() -> Identity {
    Identity::internal("system:apiserver", &[GROUP_MASTERS])
}
