//! The use of tokens that are kept in Secrets: since when it is tracked, in the ConfigMap
//! `kube-system/kube-apiserver-legacy-service-account-token-tracking`, and when each was last used, in a label of its Secret.
//! Whoever cleans up invalidates tokens that were not used for a year of that time.

use std::{sync::Arc, time::Duration};

use api::status::Status;
use serde_json::{Value, json};
use tracing::warn;

use crate::{
    handlers::{Target, create::Create, update::Update},
    ownership::Writer,
    query::WriteOptions,
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
        let (user, options, writer) = (user(), WriteOptions::default(), Writer::server());
        let create = Create {
            state,
            user: &user,
            target: &target,
            namespace: NAMESPACE,
            options: &options,
            writer: &writer,
        };
        return match create.run(object, &mut Vec::new()).await {
            Ok(_) => Ok(()),
            // Another server of the cluster says the same.
            Err(status) if status.reason == "AlreadyExists" => Ok(()),
            Err(status) => Err(status),
        };
    };
    if stored.value()["data"][SINCE].as_str().is_some_and(|since| since.parse::<jiff::civil::Date>().is_ok())
    {
        return Ok(());
    }
    change(state, &target, NAMESPACE, NAME, &|object| object["data"][SINCE] = json!(today())).await
}

async fn label(state: &State, namespace: &str, name: &str) -> Result<(), Status> {
    let Some(resource) = state.schema.resource("", "v1", "secrets") else { return Ok(()) };
    change(state, &Target::new(resource), namespace, name, &|secret| {
        secret["metadata"]["labels"][LAST_USED] = json!(today());
    })
    .await
}

async fn change(
    state: &State,
    target: &Target,
    namespace: &str,
    name: &str,
    edit: &(dyn Fn(&mut Value) + Sync),
) -> Result<(), Status> {
    let (user, options, writer) = (user(), WriteOptions::default(), Writer::server());
    let update = Update {
        state,
        user: &user,
        target,
        subresource: "",
        namespace,
        name,
        options: &options,
        admits: false,
        face: None,
        writer: &writer,
    };
    let mut edited = |old: &Value| {
        let mut new = old.clone();
        edit(&mut new);
        Ok(new)
    };
    match update.run(&mut Vec::new(), &mut edited).await {
        Ok(_) => Ok(()),
        Err(status) if status.reason == "NotFound" => Ok(()),
        Err(status) => Err(status),
    }
}

fn user() -> Identity {
    Identity::internal("system:apiserver", &[GROUP_MASTERS])
}
