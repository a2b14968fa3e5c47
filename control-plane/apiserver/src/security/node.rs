//! The Node authorizer: an agent reads what the pods bound to its node refer to, and writes what is its node's own.
//!
//! ```text
//! node <- pod <- secret | configmap | serviceaccount | resourceclaim | claim <- volume <- secret
//! node <- volumeattachment | resourceslice
//! ```
//!
//! What a node may put *into* an object is NodeRestriction's concern, an admission plugin.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, LazyLock, Mutex},
};

use api::selector::FieldSelector;
use serde_json::Value;

use super::{Attributes, Decision, bootstrap_roles, rbac::Rule};
use crate::storage::{
    cache::{Cache, Follower, Step},
    keys,
};

/// The namespace of node heartbeats.
const LEASE_NAMESPACE: &str = "kube-node-lease";
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// What every node may, whatever runs on it.
static STATIC_RULES: LazyLock<Vec<Rule>> = LazyLock::new(bootstrap_roles::node_rules);

/// Judges the requests of `system:node:*` users in `system:nodes`.
pub struct NodeAuthorizer {
    cache: Arc<Cache>,
    state: Mutex<(Follower, References)>,
}

/// Which objects the pods of each node refer to.
#[derive(Default)]
struct References {
    /// By pod key.
    pods: HashMap<Arc<str>, Pod>,
    /// How many pods of a node refer to an object: by node, then by plural, namespace and name.
    counts: HashMap<String, HashMap<(&'static str, String, String), usize>>,
}

#[derive(Default, PartialEq)]
struct Pod {
    node: String,
    namespace: String,
    /// Plural and name, within the pod's namespace.
    objects: BTreeSet<(&'static str, String)>,
}

fn refuse(why: impl Into<String>) -> Decision {
    Decision::no_opinion(why)
}

fn allow() -> Decision {
    Decision::allow("")
}

fn no_relationship(node: &str) -> Decision {
    refuse(format!("no relationship found between node '{node}' and this object"))
}

impl NodeAuthorizer {
    pub fn new(cache: &Arc<Cache>) -> Self {
        let follower = Follower::new(cache.clone(), keys::resource_prefix("", "pods"));
        Self { cache: cache.clone(), state: Mutex::new((follower, References::default())) }
    }

    /// Judges a request of the agent of `node`.
    pub fn authorize(&self, node: &str, request: &Attributes) -> Decision {
        if request.is_resource {
            match (request.group.as_str(), request.resource.as_str()) {
                ("", "secrets" | "configmaps") => return self.reads(node, request),
                ("", "persistentvolumeclaims") if request.subresource == "status" => {
                    return match request.verb.as_str() {
                        "update" | "patch" => self.related(node, request),
                        _ => refuse("can only get/update/patch this type"),
                    };
                }
                ("", "persistentvolumeclaims" | "persistentvolumes")
                | ("resource.k8s.io", "resourceclaims")
                | ("storage.k8s.io", "volumeattachments") => return self.gets(node, request),
                ("", "serviceaccounts") => return self.service_account(node, request),
                ("coordination.k8s.io", "leases") => return lease(node, request),
                ("storage.k8s.io", "csinodes") => return csi_node(node, request),
                ("resource.k8s.io", "resourceslices") => return self.resource_slice(node, request),
                ("", "nodes") => return node_object(node, request),
                ("", "pods") => return self.pod(node, request),
                _ => {}
            }
        }
        if STATIC_RULES.iter().any(|rule| rule.allows(request)) { allow() } else { refuse("") }
    }

    /// Reading one object by name, also as a list or a watch of one.
    fn reads(&self, node: &str, request: &Attributes) -> Decision {
        if !matches!(request.verb.as_str(), "get" | "list" | "watch") {
            return refuse("can only read resources of this type");
        }
        if !request.subresource.is_empty() {
            return refuse("cannot read subresource");
        }
        if request.namespace.is_empty() {
            return refuse("can only read namespaced object of this type");
        }
        self.related(node, request)
    }

    fn gets(&self, node: &str, request: &Attributes) -> Decision {
        if request.verb != "get" {
            return refuse("can only get individual resources of this type");
        }
        if !request.subresource.is_empty() {
            return refuse("cannot get subresource");
        }
        self.related(node, request)
    }

    fn service_account(&self, node: &str, request: &Attributes) -> Decision {
        match (request.verb.as_str(), request.subresource.as_str()) {
            ("get", "") => self.reads(node, request),
            ("create", "token") if !request.name.is_empty() => self.related(node, request),
            ("create", _) if !request.name.is_empty() => {
                refuse("can only create token subresource of serviceaccount")
            }
            _ => refuse("can only create tokens for individual service accounts"),
        }
    }

    fn resource_slice(&self, node: &str, request: &Attributes) -> Decision {
        if !request.subresource.is_empty() {
            return refuse("cannot authorize ResourceSlice subresources");
        }
        match request.verb.as_str() {
            // Whose slice it is to be, NodeRestriction sees.
            "create" => allow(),
            "get" | "update" | "patch" | "delete" => self.related(node, request),
            "watch" | "list" | "deletecollection" if selects(request, "spec.nodeName", node) => allow(),
            "watch" | "list" | "deletecollection" => {
                refuse("can only list/watch/deletecollection resourceslices with nodeName field selector")
            }
            _ => refuse(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, \
                 delete, deletecollection",
            ),
        }
    }

    fn pod(&self, node: &str, request: &Attributes) -> Decision {
        match (request.subresource.as_str(), request.verb.as_str()) {
            ("", "get") => self.related(node, request),
            ("", "list" | "watch") if selects(request, "spec.nodeName", node) => allow(),
            ("", "list" | "watch") if !request.name.is_empty() => self.related(node, request),
            ("", "list" | "watch") => refuse("can only list/watch pods with spec.nodeName field selector"),
            // Of which pods, NodeRestriction sees.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => allow(),
            _ => refuse(""),
        }
    }

    /// Whether there is a path from the named object to the node.
    fn related(&self, node: &str, request: &Attributes) -> Decision {
        if request.name.is_empty() {
            return refuse("No Object name found");
        }
        let (namespace, name) = (request.namespace.as_str(), request.name.as_str());
        let is_related = match request.resource.as_str() {
            "persistentvolumes" => self.mounts(node, name),
            "secrets" => {
                self.refers(node, SECRETS, namespace, name) || self.volume_needs(node, namespace, name)
            }
            "pods" => self.is_on(node, "", "pods", Some(namespace), name),
            "volumeattachments" => self.is_on(node, "storage.k8s.io", "volumeattachments", None, name),
            "resourceslices" => self.is_on(node, "resource.k8s.io", "resourceslices", None, name),
            plural => match REFERENCED.iter().copied().find(|known| *known == plural) {
                Some(plural) => self.refers(node, plural, namespace, name),
                None => false,
            },
        };
        if is_related { allow() } else { no_relationship(node) }
    }

    fn refers(&self, node: &str, plural: &'static str, namespace: &str, name: &str) -> bool {
        let key = (plural, namespace.to_owned(), name.to_owned());
        self.current(|references| {
            references.counts.get(node).is_some_and(|objects| objects.contains_key(&key))
        })
    }

    /// Whether the volume is bound to a claim of the node's pods.
    fn mounts(&self, node: &str, volume: &str) -> bool {
        let volume = self.cache.get(&keys::object_key("", "persistentvolumes", None, volume));
        volume.is_some_and(|volume| {
            let claim = &volume.value()["spec"]["claimRef"];
            let text = |field: &str| claim[field].as_str().unwrap_or_default().to_owned();
            claim.is_object() && self.refers(node, CLAIMS, &text("namespace"), &text("name"))
        })
    }

    /// Whether a volume of the node's pods is mounted with the help of this secret.
    fn volume_needs(&self, node: &str, namespace: &str, secret: &str) -> bool {
        let claims: Vec<_> = self.current(|references| {
            let objects = references.counts.get(node).into_iter().flat_map(HashMap::keys);
            objects.filter(|(plural, ..)| *plural == CLAIMS).cloned().collect()
        });
        claims.iter().any(|(_, claim_namespace, name)| {
            let claim = self.cache.get(&keys::object_key("", CLAIMS, Some(claim_namespace), name));
            let Some(claim) = claim.map(|claim| claim.value()) else { return false };
            let volume = claim["spec"]["volumeName"].as_str().unwrap_or_default();
            let volume = self.cache.get(&keys::object_key("", "persistentvolumes", None, volume));
            volume.is_some_and(|volume| {
                let volume = volume.value();
                let bound = &volume["spec"]["claimRef"];
                bound["namespace"] == **claim_namespace
                    && bound["name"] == **name
                    && volume_secrets(&volume["spec"], claim_namespace)
                        .contains(&(namespace.to_owned(), secret.to_owned()))
            })
        })
    }

    /// Whether the object says that it is of the node.
    fn is_on(&self, node: &str, group: &str, plural: &str, namespace: Option<&str>, name: &str) -> bool {
        let object = self.cache.get(&keys::object_key(group, plural, namespace, name));
        object.is_some_and(|object| object.value()["spec"]["nodeName"] == node)
    }

    fn current<T>(&self, read: impl FnOnce(&References) -> T) -> T {
        let mut state = self.state.lock().expect("no code panics while it holds this lock");
        let (follower, references) = &mut *state;
        follower.catch_up(|step| match step {
            Step::Reset(snapshot) => {
                *references = References::default();
                for object in snapshot.iter() {
                    references.set(object.key(), Pod::parse(&object.value()));
                }
            }
            Step::Event(event) if event.is_deletion() => references.set(event.object.key(), Pod::default()),
            Step::Event(event) => references.set(event.object.key(), Pod::parse(&event.object.value())),
        });
        read(references)
    }
}

/// Whether the request selects by this field, with this value.
fn selects(request: &Attributes, field: &str, value: &str) -> bool {
    let selector = FieldSelector::parse(&request.field_selector);
    selector.is_ok_and(|selector| {
        selector.requirements().iter().any(|(name, equal, wanted)| *equal && name == field && wanted == value)
    })
}

fn lease(node: &str, request: &Attributes) -> Decision {
    let verb = request.verb.as_str();
    if !matches!(verb, "get" | "create" | "update" | "patch" | "delete") {
        return refuse("can only get, create, update, patch, or delete a node lease");
    }
    if request.namespace != LEASE_NAMESPACE {
        return refuse(format!("can only access leases in the \"{LEASE_NAMESPACE}\" system namespace"));
    }
    if verb != "create" && request.name != node {
        return refuse("can only access node lease with the same name as the requesting node");
    }
    allow()
}

fn csi_node(node: &str, request: &Attributes) -> Decision {
    let verb = request.verb.as_str();
    if !matches!(verb, "get" | "create" | "update" | "patch" | "delete") {
        return refuse("can only get, create, update, patch, or delete a CSINode");
    }
    if !request.subresource.is_empty() {
        return refuse("cannot authorize CSINode subresources");
    }
    if verb != "create" && request.name != node {
        return refuse("can only access CSINode with the same name as the requesting node");
    }
    allow()
}

fn node_object(node: &str, request: &Attributes) -> Decision {
    match (request.subresource.as_str(), request.verb.as_str()) {
        // Of which node, NodeRestriction sees.
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => allow(),
        ("", "get" | "list" | "watch") if request.name == node => allow(),
        ("", "get" | "list" | "watch") if request.name.is_empty() => {
            refuse(format!("node '{node}' cannot read all nodes, only its own Node object"))
        }
        ("", "get" | "list" | "watch") => {
            refuse(format!("node '{node}' cannot read '{}', only its own Node object", request.name))
        }
        _ => refuse(""),
    }
}

/// The secrets that a kubelet needs for a volume, by namespace and name.
fn volume_secrets(spec: &Value, claim_namespace: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut secrets = Vec::new();
    let mut add = |namespace: String, name: String| {
        if !name.is_empty() {
            let namespace = if namespace.is_empty() { claim_namespace.to_owned() } else { namespace };
            secrets.push((namespace, name));
        }
    };
    add(text(&spec["azureFile"]["secretNamespace"]), text(&spec["azureFile"]["secretName"]));
    for source in ["cephfs", "cinder", "flexVolume", "rbd", "scaleIO", "iscsi", "storageos"] {
        let reference = &spec[source]["secretRef"];
        add(text(&reference["namespace"]), text(&reference["name"]));
    }
    for reference in ["nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"] {
        let reference = &spec["csi"][reference];
        add(text(&reference["namespace"]), text(&reference["name"]));
    }
    secrets
}

impl References {
    /// Takes in a pod; one without a node refers to nothing.
    fn set(&mut self, key: &Arc<str>, pod: Pod) {
        if self.pods.get(key) == Some(&pod) {
            return;
        }
        if let Some(old) = self.pods.remove(key) {
            let counts = self.counts.entry(old.node.clone()).or_default();
            for (plural, name) in old.objects {
                let object = (plural, old.namespace.clone(), name);
                match counts.get_mut(&object) {
                    Some(count) if *count > 1 => *count -= 1,
                    _ => drop(counts.remove(&object)),
                }
            }
            if counts.is_empty() {
                self.counts.remove(&old.node);
            }
        }
        if pod.node.is_empty() {
            return;
        }
        let counts = self.counts.entry(pod.node.clone()).or_default();
        for (plural, name) in &pod.objects {
            *counts.entry((plural, pod.namespace.clone(), name.clone())).or_default() += 1;
        }
        self.pods.insert(key.clone(), pod);
    }
}

const SECRETS: &str = "secrets";
const CONFIG_MAPS: &str = "configmaps";
const CLAIMS: &str = "persistentvolumeclaims";
const SERVICE_ACCOUNTS: &str = "serviceaccounts";
const RESOURCE_CLAIMS: &str = "resourceclaims";
const REFERENCED: [&str; 5] = [SECRETS, CONFIG_MAPS, CLAIMS, SERVICE_ACCOUNTS, RESOURCE_CLAIMS];

impl Pod {
    fn parse(pod: &Value) -> Self {
        let (metadata, spec) = (&pod["metadata"], &pod["spec"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        // The kubelet makes mirror pods itself: what they refer to, it would grant itself.
        if metadata["annotations"].get(MIRROR_ANNOTATION).is_some() {
            return Self::default();
        }
        let mut objects = BTreeSet::new();
        collect(spec, &mut objects);
        for secret in spec["imagePullSecrets"].as_array().into_iter().flatten() {
            objects.insert((SECRETS, text(&secret["name"])));
        }
        for volume in spec["volumes"].as_array().into_iter().flatten() {
            if volume["ephemeral"].is_object() {
                let name = format!("{}-{}", text(&metadata["name"]), text(&volume["name"]));
                objects.insert((CLAIMS, name));
            }
        }
        objects.insert((SERVICE_ACCOUNTS, text(&spec["serviceAccountName"])));
        for claim in spec["resourceClaims"].as_array().into_iter().flatten() {
            objects.insert((RESOURCE_CLAIMS, text(&claim["resourceClaimName"])));
        }
        let status = &pod["status"];
        for claim in status["resourceClaimStatuses"].as_array().into_iter().flatten() {
            objects.insert((RESOURCE_CLAIMS, text(&claim["resourceClaimName"])));
        }
        objects.insert((RESOURCE_CLAIMS, text(&status["extendedResourceClaimStatus"]["resourceClaimName"])));
        objects.retain(|(_, name)| !name.is_empty());
        Self { node: text(&spec["nodeName"]), namespace: text(&metadata["namespace"]), objects }
    }
}

/// Finds references by the names of the fields that hold them, wherever in a pod spec they are.
fn collect(value: &Value, objects: &mut BTreeSet<(&'static str, String)>) {
    let fields = match value {
        Value::Object(fields) => fields,
        Value::Array(items) => return items.iter().for_each(|item| collect(item, objects)),
        _ => return,
    };
    for (field, value) in fields {
        let reference = match field.as_str() {
            "secretKeyRef" | "secretRef" | "nodePublishSecretRef" => Some((SECRETS, "name")),
            "secret" => {
                Some((SECRETS, if value.get("secretName").is_some() { "secretName" } else { "name" }))
            }
            "azureFile" => Some((SECRETS, "secretName")),
            "configMapKeyRef" | "configMapRef" | "configMap" => Some((CONFIG_MAPS, "name")),
            "persistentVolumeClaim" => Some((CLAIMS, "claimName")),
            _ => None,
        };
        if let Some((plural, name)) = reference
            && let Some(name) = value[name].as_str()
        {
            objects.insert((plural, name.to_owned()));
        }
        collect(value, objects);
    }
}

#[cfg(test)]
mod tests;
