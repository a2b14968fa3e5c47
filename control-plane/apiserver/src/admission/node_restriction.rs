//! What a node may write: its own Node, its own pods' status, tokens for its own pods, its own lease, and the answers of
//! CalicoNodeStatus objects that ask it. The Node authorizer decides what a node may ask for at all; this plugin looks into the
//! objects.

use std::collections::BTreeSet;

use api::status::Status;
use serde_json::{Map, Value};

use super::{Lookup, Operation, Plugin, Request, certificates};
use crate::{
    registry::fields::*,
    security::{Attributes, GROUP_NODES, USER_NODE_PREFIX},
};

pub(super) struct NodeRestriction;

const LEASE_NAMESPACE: &str = "kube-node-lease";
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// Labels under kubernetes.io that a node may set on itself.
const OWN_LABELS: [&str; 10] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
];
const OWN_LABEL_NAMESPACES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

impl Plugin for NodeRestriction {
    fn validate(&self, request: &Request<'_>, object: &Value, lookup: &dyn Lookup) -> Result<(), Status> {
        if !request.user.is_in(GROUP_NODES) {
            return Ok(());
        }
        let Some(node) = request.user.name.strip_prefix(USER_NODE_PREFIX).filter(|node| !node.is_empty())
        else {
            return Ok(());
        };
        let check = match (request.target.resource.group.as_str(), request.target.resource.plural.as_str()) {
            ("", "pods") => pod(request, object, node, lookup),
            ("", "nodes") => own_node(request, object, node),
            ("", "persistentvolumeclaims") => claim(request, object, node),
            ("", "serviceaccounts") if request.subresource == "token" => token(request, object, node, lookup),
            ("coordination.k8s.io", "leases") => lease(request, node),
            ("resource.k8s.io", "resourceslices") => resource_slice(request, object, node),
            ("certificates.k8s.io", "certificatesigningrequests") => signing_request(request, object),
            ("projectcalico.org", "caliconodestatuses") => node_status(request, node),
            ("storage.k8s.io", "csinodes") if request.name != node => {
                Err("can only access CSINode with the same name as the requesting node".to_owned())
            }
            _ => Ok(()),
        };
        check.map_err(|why| request.forbidden(why))
    }
}

fn pod(request: &Request<'_>, object: &Value, node: &str, lookup: &dyn Lookup) -> Result<(), String> {
    let old_node = request.old.map(|old| text(old, "/spec/nodeName"));
    match (request.subresource, request.operation) {
        ("", Operation::Create) => mirror_pod(object, node, lookup),
        ("", Operation::Delete) if old_node == Some(node) => Ok(()),
        ("", Operation::Delete) => {
            Err(format!("node \"{node}\" can only delete pods with spec.nodeName set to itself"))
        }
        ("", operation) => Err(format!(
            "unexpected operation \"{}\", node \"{node}\" can only create and delete mirror pods",
            format!("{operation:?}").to_uppercase()
        )),
        ("status", Operation::Update) if old_node != Some(node) => Err(format!(
            "node \"{node}\" can only update pod status for pods with spec.nodeName set to itself"
        )),
        ("status", Operation::Update) => {
            let old = request.old.unwrap_or(&Value::Null);
            let unchanged = |field| same(at(old, field), at(object, field));
            if !unchanged("/metadata/labels") {
                return Err(format!("node \"{node}\" cannot update labels through pod status"));
            }
            if !unchanged("/status/resourceClaimStatuses") {
                return Err(format!("node \"{node}\" cannot update resource claim statues"));
            }
            if !unchanged("/status/extendedResourceClaimStatus") {
                return Err(format!("node \"{node}\" cannot update extended resource claim status"));
            }
            Ok(())
        }
        ("eviction", Operation::Create) => {
            let pod = lookup.get("", "pods", request.namespace, request.name);
            match pod {
                Some(pod) if text(&pod, "/spec/nodeName") != node => {
                    Err(format!("node {node} can only evict pods with spec.nodeName set to itself"))
                }
                _ => Ok(()),
            }
        }
        (_, Operation::Connect) => Ok(()),
        (subresource, _) => Err(format!(
            "unexpected pod subresource \"{subresource}\", only 'status' and 'eviction' are allowed"
        )),
    }
}

fn mirror_pod(pod: &Value, node: &str, lookup: &dyn Lookup) -> Result<(), String> {
    if !entries(pod, "/metadata/annotations").contains_key(MIRROR_ANNOTATION) {
        return Err(format!(
            "pod does not have \"{MIRROR_ANNOTATION}\" annotation, node \"{node}\" can only create mirror pods"
        ));
    }
    if text(pod, "/spec/nodeName") != node {
        return Err(format!("node \"{node}\" can only create pods with spec.nodeName set to itself"));
    }
    let owner = match items(pod, "/metadata/ownerReferences") {
        [owner] => owner,
        [] => {
            return Err(format!(
                "node \"{node}\" can only create pods with an owner reference set to itself"
            ));
        }
        _ => {
            return Err(format!(
                "node \"{node}\" can only create pods with a single owner reference set to itself"
            ));
        }
    };
    let is_node =
        text(owner, "/apiVersion") == "v1" && text(owner, "/kind") == "Node" && text(owner, "/name") == node;
    if !is_node {
        return Err(format!("node \"{node}\" can only create pods with an owner reference set to itself"));
    }
    if !flag(owner, "/controller") {
        return Err(format!(
            "node \"{node}\" can only create pods with a controller owner reference set to itself"
        ));
    }
    if flag(owner, "/blockOwnerDeletion") {
        return Err(format!("node \"{node}\" must not set blockOwnerDeletion on an owner reference"));
    }
    let stored = lookup.get("", "nodes", "", node).unwrap_or(Value::Null);
    let (expected, got) = (text(&stored, "/metadata/uid"), text(owner, "/uid"));
    if expected != got {
        return Err(format!("node {node} UID mismatch: expected {expected} got {got}"));
    }
    match referenced(at(pod, "/spec")) {
        Some(kind) => Err(format!("node \"{node}\" can not create pods that reference {kind}")),
        None => Ok(()),
    }
}

/// What of the API a pod's spec refers to: a node would grant itself the reading of it.
fn referenced(spec: &Value) -> Option<&'static str> {
    if !text(spec, "/serviceAccountName").is_empty() {
        return Some("serviceaccounts");
    }
    let text_of = spec.to_string();
    let has = |fields: &[&str]| fields.iter().any(|field| text_of.contains(&format!("\"{field}\":")));
    let volumes = items(spec, "/volumes");
    let has_volume = |kind: &str| volumes.iter().any(|volume| present(volume, &format!("/{kind}")));
    if !items(spec, "/imagePullSecrets").is_empty()
        || has(&["secretKeyRef", "secretRef", "nodePublishSecretRef"])
        || has_volume("secret")
        || volumes
            .iter()
            .any(|volume| items(volume, "/projected/sources").iter().any(|source| present(source, "/secret")))
    {
        return Some("secrets");
    }
    if has(&["configMapKeyRef", "configMapRef", "configMap"]) {
        return Some("configmaps");
    }
    if has(&["serviceAccountToken"]) {
        return Some("serviceaccounts/token");
    }
    if has(&["clusterTrustBundle"]) {
        return Some("clustertrustbundles");
    }
    if !items(spec, "/resourceClaims").is_empty() {
        return Some("resourceclaims");
    }
    if has_volume("persistentVolumeClaim") || has_volume("ephemeral") {
        return Some("persistentvolumeclaims");
    }
    if has_volume("csi") {
        return Some("csidrivers");
    }
    None
}

fn claim(request: &Request<'_>, object: &Value, node: &str) -> Result<(), String> {
    let Some(old) = request.old.filter(|_| request.subresource == "status") else {
        return Err("may only update PVC status".to_owned());
    };
    let fixed = |claim: &Value| {
        let mut claim = claim.clone();
        for field in ["capacity", "conditions", "allocatedResourceStatuses", "allocatedResources"] {
            remove(child(&mut claim, "status"), field);
        }
        for field in ["resourceVersion", "managedFields"] {
            remove(child(&mut claim, "metadata"), field);
        }
        claim
    };
    if same(&fixed(object), &fixed(old)) {
        return Ok(());
    }
    Err(format!(
        "node \"{node}\" is not allowed to update fields other than status.quantity and status.conditions"
    ))
}

fn resource_slice(request: &Request<'_>, object: &Value, node: &str) -> Result<(), String> {
    match (request.operation, request.old) {
        (Operation::Create, _) if text(object, "/spec/nodeName") != node => {
            Err("can only create ResourceSlice with the same NodeName as the requesting node".to_owned())
        }
        (Operation::Delete, Some(old)) if text(old, "/spec/nodeName") != node => {
            Err("can only delete ResourceSlice with the same NodeName as the requesting node".to_owned())
        }
        _ => Ok(()),
    }
}

fn node_status(request: &Request<'_>, node: &str) -> Result<(), String> {
    if request.old.is_some_and(|old| text(old, "/spec/node") == node) {
        return Ok(());
    }
    Err(format!("node \"{node}\" can only answer a CalicoNodeStatus with spec.node set to itself"))
}

/// A node asks for certificates of its own name only.
fn signing_request(request: &Request<'_>, object: &Value) -> Result<(), String> {
    if request.operation != Operation::Create || !request.subresource.is_empty() {
        return Ok(());
    }
    let signer = text(object, "/spec/signerName");
    if !matches!(signer, "kubernetes.io/kubelet-serving" | "kubernetes.io/kube-apiserver-client-kubelet") {
        return Ok(());
    }
    let name = certificates::common_name(text(object, "/spec/request"))
        .map_err(|why| format!("unable to parse csr: {why}"))?;
    if name == request.user.name {
        return Ok(());
    }
    Err(format!("can only create a node CSR with CN={}", request.user.name))
}

fn own_node(request: &Request<'_>, object: &Value, node: &str) -> Result<(), String> {
    if request.name != node {
        return Err(format!("node \"{node}\" is not allowed to modify node \"{}\"", request.name));
    }
    let labels = entries(object, "/metadata/labels");
    let empty = Map::new();
    match (request.operation, request.old) {
        (Operation::Create, _) => {
            let forbidden = forbidden_labels(labels, &empty);
            if forbidden.is_empty() {
                return Ok(());
            }
            Err(format!(
                "node \"{node}\" is not allowed to set the following labels: {}",
                forbidden.join(", ")
            ))
        }
        (Operation::Update, Some(old)) => {
            if !same(at(object, "/spec/taints"), at(old, "/spec/taints")) {
                return Err(format!("node \"{node}\" is not allowed to modify taints"));
            }
            if !same(at(object, "/metadata/ownerReferences"), at(old, "/metadata/ownerReferences")) {
                return Err(format!("node \"{node}\" is not allowed to modify ownerReferences"));
            }
            let forbidden = forbidden_labels(labels, entries(old, "/metadata/labels"));
            if forbidden.is_empty() {
                return Ok(());
            }
            Err(format!("is not allowed to modify labels: {}", forbidden.join(", ")))
        }
        _ => Ok(()),
    }
}

/// Labels that differ and that a node may not touch, sorted.
fn forbidden_labels(new: &Map<String, Value>, old: &Map<String, Value>) -> Vec<String> {
    let keys: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
    let changed = keys.into_iter().filter(|key| new.get(*key) != old.get(*key));
    changed.filter(|key| is_forbidden(key)).cloned().collect()
}

fn is_forbidden(label: &str) -> bool {
    let namespace = label.split_once('/').map_or("", |(namespace, _)| namespace);
    let within = |domain: &str| namespace == domain || namespace.ends_with(&format!(".{domain}"));
    let own = OWN_LABELS.contains(&label)
        || label == "beta.kubernetes.io/arch"
        || OWN_LABEL_NAMESPACES.iter().any(|domain| within(domain));
    within("node-restriction.kubernetes.io") || ((within("kubernetes.io") || within("k8s.io")) && !own)
}

fn token(request: &Request<'_>, object: &Value, node: &str, lookup: &dyn Lookup) -> Result<(), String> {
    let reference = at(object, "/spec/boundObjectRef");
    let is_pod = text(reference, "/apiVersion") == "v1" && text(reference, "/kind") == "Pod";
    let (name, uid) = (text(reference, "/name"), text(reference, "/uid"));
    if !is_pod || name.is_empty() {
        return Err("node requested token not bound to a pod".to_owned());
    }
    if uid.is_empty() {
        return Err("node requested token with a pod binding without a uid".to_owned());
    }
    let Some(pod) = lookup.get("", "pods", request.namespace, name) else {
        return Err(format!("pod \"{name}\" not found"));
    };
    if text(&pod, "/metadata/uid") != uid {
        return Err(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been \
             deleted and then recreated"
        ));
    }
    if text(&pod, "/spec/nodeName") != node {
        return Err("node requested token bound to a pod scheduled on a different node".to_owned());
    }
    audience(request, object, &pod, lookup)
}

/// A node gets tokens for the audiences that the pod's volumes name, and for those that it was given leave for.
fn audience(request: &Request<'_>, object: &Value, pod: &Value, lookup: &dyn Lookup) -> Result<(), String> {
    let audience = match items(object, "/spec/audiences") {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return Err("node may only request 0 or 1 audiences".to_owned()),
    };
    let names_it = |volume: &Value| {
        let tokens = items(volume, "/projected/sources").iter();
        tokens
            .filter(|source| present(source, "/serviceAccountToken"))
            .any(|source| text(source, "/serviceAccountToken/audience") == audience)
            || driver_of(pod, volume, lookup).is_some_and(|driver| driver_names(&driver, audience, lookup))
    };
    if items(pod, "/spec/volumes").iter().any(names_it) {
        return Ok(());
    }
    let attributes = Attributes {
        verb: "request-serviceaccounts-token-audience".to_owned(),
        version: "v1".to_owned(),
        resource: audience.to_owned(),
        namespace: request.namespace.to_owned(),
        name: request.name.to_owned(),
        is_resource: true,
        ..Attributes::default()
    };
    if lookup.allows(request.user, &attributes) {
        return Ok(());
    }
    Err(format!(
        "audience \"{audience}\" not found in pod spec volume, {} is not authorized to request tokens for this audience",
        request.user.name
    ))
}

/// The CSI driver behind a volume of a pod.
fn driver_of(pod: &Value, volume: &Value, lookup: &dyn Lookup) -> Option<String> {
    if present(volume, "/csi") {
        return Some(text(volume, "/csi/driver").to_owned());
    }
    let claim = if present(volume, "/ephemeral/volumeClaimTemplate") {
        format!("{}-{}", text(pod, "/metadata/name"), text(volume, "/name"))
    } else {
        text(volume, "/persistentVolumeClaim/claimName").to_owned()
    };
    if claim.is_empty() {
        return None;
    }
    let claim = lookup.get("", "persistentvolumeclaims", text(pod, "/metadata/namespace"), &claim)?;
    let volume = lookup.get("", "persistentvolumes", "", text(&claim, "/spec/volumeName"))?;
    Some(text(&volume, "/spec/csi/driver").to_owned()).filter(|driver| !driver.is_empty())
}

fn driver_names(driver: &str, audience: &str, lookup: &dyn Lookup) -> bool {
    let driver = lookup.get("storage.k8s.io", "csidrivers", "", driver);
    driver.is_some_and(|driver| {
        items(&driver, "/spec/tokenRequests").iter().any(|token| text(token, "/audience") == audience)
    })
}

fn lease(request: &Request<'_>, node: &str) -> Result<(), String> {
    if request.namespace != LEASE_NAMESPACE {
        return Err(format!("can only access leases in the \"{LEASE_NAMESPACE}\" system namespace"));
    }
    if request.name != node {
        return Err("can only access node lease with the same name as the requesting node".to_owned());
    }
    Ok(())
}
