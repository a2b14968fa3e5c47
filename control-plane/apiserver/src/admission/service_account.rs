//! Every pod runs as a ServiceAccount of its namespace, with a token of its own mounted where clients look for it.

use std::time::Duration;

use api::status::Status;
use serde_json::{Value, json};

use super::{Lookup, Operation, Plugin, Request};
use crate::registry::fields::*;

pub(super) struct ServiceAccount;

const DEFAULT: &str = "default";
const VOLUME_PREFIX: &str = "kube-api-access-";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// One hour and seven seconds: the odd length marks tokens that the server, not the user, asked for.
const TOKEN_EXPIRATION_SECONDS: i64 = 3607;
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
const ENFORCE_MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";
/// Random name suffixes use letters that spell no words.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A namespace is made before its default ServiceAccount: a pod that comes right after waits a moment.
const WAIT_STEP: Duration = Duration::from_millis(50);
const WAIT_STEPS: u32 = 40;

/// Returns once the namespace has its default ServiceAccount, or after two seconds.
pub(super) async fn wait_for_default(namespace: &str, lookup: &dyn Lookup) {
    for _ in 0..WAIT_STEPS {
        let missing = lookup.get("", "serviceaccounts", namespace, DEFAULT).is_none();
        if !missing || lookup.get("", "namespaces", "", namespace).is_none() {
            return;
        }
        tokio::time::sleep(WAIT_STEP).await;
    }
}

impl Plugin for ServiceAccount {
    fn admit(&self, request: &Request<'_>, object: &mut Value, lookup: &dyn Lookup) -> Result<(), Status> {
        if !request.creates("", "pods") || is_mirror(object) {
            return Ok(());
        }
        let spec = child(object, "spec");
        set_if_zero(spec, "serviceAccountName", DEFAULT);
        let name = text(spec, "/serviceAccountName").to_owned();
        set(spec, "serviceAccount", name.as_str());
        let account = find(request, &name, lookup)?;
        let automount =
            [at(spec, "/automountServiceAccountToken"), at(&account, "/automountServiceAccountToken")];
        if automount.iter().find_map(|value| value.as_bool()).unwrap_or(true) {
            mount_token(spec);
        }
        let secrets = items(&account, "/imagePullSecrets");
        if items(spec, "/imagePullSecrets").is_empty() && !secrets.is_empty() {
            let names: Vec<_> = secrets.iter().map(|secret| json!({ "name": at(secret, "/name") })).collect();
            set(spec, "imagePullSecrets", names);
        }
        Ok(())
    }

    fn validate(&self, request: &Request<'_>, object: &Value, lookup: &dyn Lookup) -> Result<(), Status> {
        if !request.is_any_part_of("", "pods") {
            return Ok(());
        }
        let list = match (request.operation, request.subresource) {
            (Operation::Create, "") if is_mirror(object) => return mirror(request, object),
            (Operation::Create, "") => "containers",
            (Operation::Update, "ephemeralcontainers") => "ephemeralContainers",
            _ => return Ok(()),
        };
        let name = text(object, "/spec/serviceAccountName");
        if name.is_empty() {
            let why = format!("no service account specified for pod {}/{}", request.namespace, request.name);
            return Err(request.forbidden(why));
        }
        let account = find(request, name, lookup)?;
        let enforced = entries(&account, "/metadata/annotations").get(ENFORCE_MOUNTABLE);
        let is_true =
            |value: &Value| matches!(value.as_str(), Some("1" | "t" | "T" | "true" | "True" | "TRUE"));
        if enforced.is_some_and(is_true) {
            only_mountable(request, object, &account, list)?;
        }
        Ok(())
    }
}

fn find(request: &Request<'_>, name: &str, lookup: &dyn Lookup) -> Result<Value, Status> {
    let namespace = request.namespace;
    lookup.get("", "serviceaccounts", namespace, name).ok_or_else(|| {
        request.forbidden(format!(
            "error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found"
        ))
    })
}

fn is_mirror(pod: &Value) -> bool {
    entries(pod, "/metadata/annotations").contains_key(MIRROR_ANNOTATION)
}

/// Adds the token volume and mounts it in every container that has nothing there yet.
fn mount_token(spec: &mut Value) {
    let own = items(spec, "/volumes").iter().map(|volume| text(volume, "/name"));
    let existing = own.into_iter().find(|name| name.starts_with(VOLUME_PREFIX)).map(str::to_owned);
    let name = existing.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", suffix()));
    let mut mounted = false;
    for containers in ["initContainers", "containers"] {
        for container in each(spec, containers) {
            let mounts = list(container, "volumeMounts");
            if mounts.iter().all(|mount| text(mount, "/mountPath") != MOUNT_PATH) {
                mounts.push(json!({ "name": name, "readOnly": true, "mountPath": MOUNT_PATH }));
                mounted = true;
            }
        }
    }
    if mounted && existing.is_none() {
        list(spec, "volumes").push(token_volume(&name));
    }
}

fn token_volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                { "serviceAccountToken": { "path": "token", "expirationSeconds": TOKEN_EXPIRATION_SECONDS } },
                { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                { "downwardAPI": { "items": [{
                    "path": "namespace",
                    "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" },
                }] } },
            ],
        },
    })
}

fn suffix() -> String {
    (0..5).map(|_| char::from(SUFFIX_ALPHABET[rand::random_range(0..SUFFIX_ALPHABET.len())])).collect()
}

/// Mirror pods stand for static ones: they can use nothing that the API has to give out.
fn mirror(request: &Request<'_>, pod: &Value) -> Result<(), Status> {
    if !text(pod, "/spec/serviceAccountName").is_empty() {
        return Err(request.forbidden("a mirror pod may not reference service accounts"));
    }
    let volumes = items(pod, "/spec/volumes");
    if volumes.iter().any(|volume| present(volume, "/secret"))
        || ["containers", "initContainers"].iter().any(|list| !secret_names(pod, list).is_empty())
    {
        return Err(request.forbidden("a mirror pod may not reference secrets"));
    }
    let sources = volumes.iter().flat_map(|volume| items(volume, "/projected/sources"));
    if sources.into_iter().any(|source| present(source, "/serviceAccountToken")) {
        return Err(request.forbidden("a mirror pod may not use ServiceAccountToken volume projections"));
    }
    Ok(())
}

/// For accounts that enforce it: only secrets that the account lists may be used.
fn only_mountable(request: &Request<'_>, pod: &Value, account: &Value, list: &str) -> Result<(), Status> {
    let mountable: Vec<_> = items(account, "/secrets").iter().map(|secret| text(secret, "/name")).collect();
    let account_name = text(account, "/metadata/name");
    let unreferenced =
        format!("is not allowed because service account {account_name} does not reference that secret");
    for volume in items(pod, "/spec/volumes") {
        let name = text(volume, "/secret/secretName");
        if !name.is_empty() && !mountable.contains(&name) {
            return Err(request.forbidden(format!("volume with secret.secretName=\"{name}\" {unreferenced}")));
        }
    }
    let containers: &[&str] =
        if list == "containers" { &["initContainers", "containers"] } else { &["ephemeralContainers"] };
    for (what, name) in containers.iter().flat_map(|list| secret_names(pod, list)) {
        if !mountable.contains(&name.as_str()) {
            return Err(
                request.forbidden(format!("{what} referencing secret.secretName=\"{name}\" {unreferenced}"))
            );
        }
    }
    if list == "containers" {
        only_own_pull_secrets(request, pod, account)?;
    }
    Ok(())
}

fn only_own_pull_secrets(request: &Request<'_>, pod: &Value, account: &Value) -> Result<(), Status> {
    let own = items(account, "/imagePullSecrets");
    for (i, secret) in items(pod, "/spec/imagePullSecrets").iter().enumerate() {
        let name = text(secret, "/name");
        if !own.iter().any(|secret| text(secret, "/name") == name) {
            let account = text(account, "/metadata/name");
            return Err(request.forbidden(format!(
                "imagePullSecrets[{i}].name=\"{name}\" is not allowed because service account {account} does not \
                 reference that imagePullSecret"
            )));
        }
    }
    Ok(())
}

/// The secrets that the environment of containers comes from, each with who uses it.
fn secret_names(pod: &Value, list: &str) -> Vec<(String, String)> {
    let kind = match list {
        "initContainers" => "init container",
        "ephemeralContainers" => "ephemeral container",
        _ => "container",
    };
    let mut found = Vec::new();
    for container in items(pod, &format!("/spec/{list}")) {
        let container_name = text(container, "/name");
        for variable in items(container, "/env") {
            let secret = text(variable, "/valueFrom/secretKeyRef/name");
            if !secret.is_empty() {
                let what = format!("{kind} {container_name} with envVar {}", text(variable, "/name"));
                found.push((what, secret.to_owned()));
            }
        }
        for source in items(container, "/envFrom") {
            let secret = text(source, "/secretRef/name");
            if !secret.is_empty() {
                found.push((format!("{kind} {container_name} with envFrom"), secret.to_owned()));
            }
        }
    }
    found
}
