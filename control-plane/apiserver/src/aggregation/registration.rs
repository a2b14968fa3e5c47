//! An APIService for every group and version that this server answers itself: the built-in ones at the start, those of
//! CustomResourceDefinitions while these are established. Whoever deletes one gets it back. Also publishes how aggregated
//! servers are to know us: the ConfigMap `extension-apiserver-authentication`.

use std::{collections::BTreeMap, sync::Arc};

use api::{meta, status::Status};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tracing::warn;

use super::{GROUP, PLURAL};
use crate::{
    handlers::{
        Target,
        delete::Delete,
        own::{self, OwnUpdate},
    },
    query::DeleteOptions,
    registry::fields::*,
    security::{GROUP_MASTERS, Identity},
    state::State,
    storage::keys,
};

const MANAGED_LABEL: &str = "kube-aggregator.kubernetes.io/automanaged";
const DEFINITIONS: (&str, &str) = ("apiextensions.k8s.io", "customresourcedefinitions");
/// Groups of CustomResourceDefinitions come after all of ours.
pub const CUSTOM_GROUP_PRIORITY: i64 = 1000;
const CUSTOM_VERSION_PRIORITY: i64 = 100;

/// The priorities of built-in groups, upstream's numbers: they order discovery.
pub const GROUP_PRIORITIES: [(&str, i64); 21] = [
    ("", 18000),
    ("apiregistration.k8s.io", 18000),
    ("apps", 17800),
    ("events.k8s.io", 17750),
    ("authentication.k8s.io", 17700),
    ("authorization.k8s.io", 17600),
    ("autoscaling", 17500),
    ("batch", 17400),
    ("certificates.k8s.io", 17300),
    ("networking.k8s.io", 17200),
    ("policy", 17100),
    ("rbac.authorization.k8s.io", 17000),
    ("storage.k8s.io", 16800),
    ("admissionregistration.k8s.io", 16700),
    ("apiextensions.k8s.io", 16700),
    ("scheduling.k8s.io", 16600),
    ("coordination.k8s.io", 16500),
    ("node.k8s.io", 16300),
    ("discovery.k8s.io", 16200),
    ("flowcontrol.apiserver.k8s.io", 16100),
    ("resource.k8s.io", 15900),
];

pub fn group_priority(group: &str) -> i64 {
    let known = GROUP_PRIORITIES.iter().find(|(name, _)| *name == group);
    known.map_or(CUSTOM_GROUP_PRIORITY, |(_, priority)| *priority)
}

fn version_priority(version: &str) -> i64 {
    // Newer stable versions first, as autoscaling/v2 before v1.
    let number = version.strip_prefix('v').and_then(|number| number.parse::<i64>().ok());
    number.map_or(9, |number| 14 + number)
}

fn api_service(group: &str, version: &str, is_custom: bool) -> Value {
    let (group_priority, version_priority) = if is_custom {
        (CUSTOM_GROUP_PRIORITY, CUSTOM_VERSION_PRIORITY)
    } else {
        (group_priority(group), if group.is_empty() { 1 } else { version_priority(version) })
    };
    let mut spec = json!({
        "version": version, "groupPriorityMinimum": group_priority, "versionPriority": version_priority,
    });
    if !group.is_empty() {
        spec["group"] = json!(group);
    }
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {
            "name": format!("{version}.{group}"),
            "labels": {MANAGED_LABEL: if is_custom { "true" } else { "onstart" }},
        },
        "spec": spec,
    })
}

/// What must be there, by name.
fn wanted(state: &State) -> BTreeMap<String, Value> {
    let mut wanted = BTreeMap::new();
    let mut add = |group: &str, version: &str, is_custom: bool| {
        let object = api_service(group, version, is_custom);
        wanted.entry(meta::name(&object).to_owned()).or_insert(object);
    };
    for resource in state.schema.resources() {
        add(&resource.group, &resource.version, false);
    }
    for object in state.cache.list(&keys::resource_prefix(DEFINITIONS.0, DEFINITIONS.1)).iter() {
        let definition = object.value();
        let established = items(&definition, "/status/conditions").iter().any(|condition| {
            text(condition, "/type") == "Established" && text(condition, "/status") == "True"
        });
        for version in items(&definition, "/spec/versions").iter().filter(|_| established) {
            if flag(version, "/served") {
                add(text(&definition, "/spec/group"), text(version, "/name"), true);
            }
        }
    }
    wanted
}

/// Keeps them until the server stops.
pub(crate) async fn run(state: Arc<State>) {
    let user = Identity::internal("system:apiserver", &[GROUP_MASTERS]);
    loop {
        let follow =
            |group: &str, plural: &str| state.cache.watch(&keys::resource_prefix(group, plural), None);
        let (Ok(mut definitions), Ok(mut services)) =
            (follow(DEFINITIONS.0, DEFINITIONS.1), follow(GROUP, PLURAL))
        else {
            return;
        };
        loop {
            if let Err(status) = reconcile(&state, &user).await {
                warn!(message = status.message, "not all APIServices are registered");
            }
            let ended = tokio::select! {
                () = state.stop.cancelled() => return,
                event = definitions.next() => !matches!(event, Some(Ok(_))),
                event = services.next() => !matches!(event, Some(Ok(_))),
            };
            if ended {
                // The watch was too slow or the cache began anew: look again from the start.
                break;
            }
            // One look for all events that wait already.
            while let (Ok(Some(_)), _) | (_, Ok(Some(_))) = (definitions.try_next(), services.try_next()) {}
        }
    }
}

async fn reconcile(state: &State, user: &Identity) -> Result<(), Status> {
    let Some(resource) = state.schema.resource(GROUP, "v1", PLURAL) else { return Ok(()) };
    let target = Target::new(resource);
    let wanted = wanted(state);
    let stored = state.cache.list(&target.list_prefix(""));
    for (name, object) in &wanted {
        if stored.get(&target.key("", name)).is_none() {
            own::create(state, user, &target, "", object.clone()).await?;
        }
    }
    for object in stored.iter() {
        let meta = object.meta();
        if meta.label(MANAGED_LABEL) == Some("true") && !wanted.contains_key(&meta.name) {
            let delete = Delete {
                state,
                user,
                target: &target,
                namespace: "",
                name: &meta.name,
                options: &DeleteOptions::default(),
                admits: false,
                is_collection: false,
            };
            match delete.run(&mut Vec::new()).await {
                Ok(_) => {}
                Err(status) if status.code == 404 => {}
                Err(status) => return Err(status),
            }
        }
    }
    Ok(())
}

/// Writes `kube-system/extension-apiserver-authentication`: whom aggregated servers are to believe.
///
/// # Errors
/// What the store answers.
pub(crate) async fn publish_authentication(
    state: &State,
    client_ca: &str,
    proxy_ca: &str,
) -> Result<(), Status> {
    let user = Identity::internal("system:apiserver", &[GROUP_MASTERS]);
    let Some(resource) = state.schema.resource("", "v1", "configmaps") else { return Ok(()) };
    let target = Target::new(resource);
    let (namespace, name) = ("kube-system", "extension-apiserver-authentication");
    let data = json!({
        "client-ca-file": client_ca,
        "requestheader-allowed-names": "[\"front-proxy-client\"]",
        "requestheader-client-ca-file": proxy_ca,
        "requestheader-extra-headers-prefix": "[\"X-Remote-Extra-\"]",
        "requestheader-group-headers": "[\"X-Remote-Group\"]",
        "requestheader-uid-headers": "[\"X-Remote-Uid\"]",
        "requestheader-username-headers": "[\"X-Remote-User\"]",
    });
    if state.cache.get(&target.key(namespace, name)).is_none() {
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data});
        return own::create(state, &user, &target, namespace, object).await.map(drop);
    }
    let update =
        OwnUpdate { state, user: &user, target: &target, subresource: "", namespace, name, admits: false };
    update.run(&mut |object| object["data"] = data.clone()).await.map(drop)
}
