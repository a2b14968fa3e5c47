//! A definition that is being deleted: its objects go first, then its finalizer.

use std::{sync::Arc, time::Duration};

use api::{meta, status::Status};
use futures::StreamExt as _;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::{identity, update_definition};
use crate::{
    handlers::{Target, delete::Delete, now},
    query::DeleteOptions,
    registry::crd::{CLEANUP_FINALIZER, Condition, is_true},
    state::State,
    storage::{StorageError, cache::Object, keys},
};

/// How long objects with finalizers of their own are waited for before their definition says so.
const WAIT: Duration = Duration::from_secs(60);
/// Between two attempts that failed.
const RETRY: Duration = Duration::from_secs(5);

/// Deletes all objects of a definition and lets it go. Returns early only when the server stops.
pub(super) async fn run(state: &Arc<State>, name: &str, definition: &Value) {
    let in_progress = Condition {
        kind: "Terminating",
        is_true: true,
        reason: "InstanceDeletionInProgress",
        message: "CustomResource deletion is in progress",
    };
    set(state, name, &in_progress).await;
    loop {
        let (condition, is_done) = if is_true(definition, "Established") {
            match delete_all(state, definition).await {
                Ok(()) => (("InstanceDeletionCompleted", "removed all instances".to_owned()), true),
                Err((reason, why)) => ((reason, why), false),
            }
        } else {
            (("NeverEstablished", "resource was never established".to_owned()), true)
        };
        let condition =
            Condition { kind: "Terminating", is_true: !is_done, reason: condition.0, message: &condition.1 };
        if is_done {
            return finish(state, name, &condition).await;
        }
        set(state, name, &condition).await;
        tokio::select! {
            () = state.stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn set(state: &State, name: &str, condition: &Condition<'_>) {
    let written = update_definition(state, name, &mut |new| {
        condition.set(&mut new["status"], &now());
    })
    .await;
    report(name, written.map(drop));
}

async fn finish(state: &State, name: &str, condition: &Condition<'_>) {
    let written = update_definition(state, name, &mut |new| {
        condition.set(&mut new["status"], &now());
        let kept: Vec<String> = meta::finalizers(new)
            .into_iter()
            .filter(|finalizer| *finalizer != CLEANUP_FINALIZER)
            .map(str::to_owned)
            .collect();
        meta::set_finalizers(new, &kept.iter().map(String::as_str).collect::<Vec<_>>());
    })
    .await;
    report(name, written.map(drop));
}

fn report(name: &str, result: Result<(), Status>) {
    if let Err(error) = result
        && error.code != 404
    {
        warn!(
            definition = name,
            error = error.message,
            "a definition that is being deleted cannot be written"
        );
    }
}

/// What could not be done: the condition's reason and message.
type Failure = (&'static str, String);

async fn delete_all(state: &State, definition: &Value) -> Result<(), Failure> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, plural) =
        (text(&definition["spec"]["group"]), text(&definition["status"]["acceptedNames"]["plural"]));
    let prefix = keys::resource_prefix(&group, &plural);
    let versions = definition["spec"]["versions"].as_array().into_iter().flatten();
    let target = versions
        .filter_map(|version| version["name"].as_str())
        .find_map(|version| state.kinds.find(&group, version, &plural));
    let mut watch = state.cache.watch(&prefix, None).map_err(|error| failed(&error.to_string()))?;
    state.cache.fresh().await.map_err(|error| failed(&error.to_string()))?;
    let snapshot = state.cache.list(&prefix);
    let mut failures = Vec::new();
    for object in snapshot.iter() {
        if let Err(why) = delete_one(state, target.as_ref(), object).await {
            failures.push(why);
        }
    }
    if let Some(first) = failures.first() {
        return Err(("InstanceDeletionFailed", format!("could not issue all deletes: {first}")));
    }
    let deadline = Instant::now() + WAIT;
    while !state.cache.list(&prefix).is_empty() {
        match timeout_at(deadline, watch.next()).await {
            Ok(Some(Ok(_))) => {}
            Ok(_) => return Err(failed("the watch ended")),
            Err(_) => {
                let why =
                    "could not confirm zero CustomResources remaining: timed out waiting for the condition";
                return Err(("InstanceDeletionCheck", why.to_owned()));
            }
        }
    }
    Ok(())
}

fn failed(why: &str) -> Failure {
    ("InstanceDeletionFailed", format!("could not list instances: {why}"))
}

async fn delete_one(state: &State, target: Option<&Target>, object: &Arc<Object>) -> Result<(), String> {
    let Some(target) = target else {
        // No version is served: nobody is left who could remove a finalizer.
        return match state.cache.delete(object.key(), object.revision()).await {
            Ok(_) | Err(StorageError::Conflict { current: None, .. }) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
    };
    let (user, options) = (identity(), DeleteOptions::default());
    let meta = object.meta();
    let delete = Delete {
        state,
        user: &user,
        target,
        namespace: &meta.namespace,
        name: &meta.name,
        options: &options,
        admits: false,
        is_collection: true,
    };
    match delete.run(&mut Vec::new()).await {
        Ok(_) => Ok(()),
        Err(status) if status.code == 404 => Ok(()),
        Err(status) => Err(status.message),
    }
}
