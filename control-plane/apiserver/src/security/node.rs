//! The Node authorizer: an agent reads what the pods bound to its node refer to, and writes what is its node's own.
//!
//! Deliberately coarse where upstream is: pods, nodes and Services are readable by every node, because routing and
//! Services need them. What a node may put *into* an object is NodeRestriction's concern, an admission plugin.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
};

use serde_json::Value;

use super::{Attributes, Decision};
use crate::storage::{
    cache::{Cache, Follower, Step},
    keys,
};

/// The namespace of node heartbeats.
const LEASE_NAMESPACE: &str = "kube-node-lease";
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

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

impl NodeAuthorizer {
    pub fn new(cache: &Arc<Cache>) -> Self {
        let follower = Follower::new(cache.clone(), keys::resource_prefix("", "pods"));
        Self { cache: cache.clone(), state: Mutex::new((follower, References::default())) }
    }

    /// Judges a request of the agent of `node`.
    pub fn authorize(&self, node: &str, request: &Attributes) -> Decision {
        if !request.is_resource {
            return Decision::no_opinion("");
        }
        let object = (request.group.as_str(), request.resource.as_str(), request.subresource.as_str());
        let verb = request.verb.as_str();
        let named_own = request.name == node;
        let allowed = match object {
            ("", "secrets" | "configmaps" | "persistentvolumeclaims", "") => {
                return self.reads_referenced(node, request);
            }
            ("", "persistentvolumeclaims", "status") => verb == "get" && self.refers(node, request),
            ("", "persistentvolumes", "") => verb == "get" && self.mounts(node, &request.name),
            ("", "serviceaccounts", "token") => verb == "create" && self.refers(node, request),
            ("", "serviceaccounts", "") => verb == "get" && self.refers(node, request),
            ("", "pods", "") => {
                reads(verb) || verb == "create" || (verb == "delete" && self.runs(node, request))
            }
            ("", "pods", "status") => writes(verb) && self.runs(node, request),
            ("", "pods", "eviction") => verb == "create" && self.runs(node, request),
            ("", "nodes", "") => reads(verb) || verb == "create" || (writes(verb) && named_own),
            ("", "nodes", "status") => (writes(verb) || verb == "get") && named_own,
            ("coordination.k8s.io", "leases", "") => {
                let own = named_own && (writes(verb) || matches!(verb, "get" | "delete"));
                request.namespace == LEASE_NAMESPACE && (own || verb == "create")
            }
            ("storage.k8s.io", "csinodes", "") => {
                verb == "create" || (named_own && (writes(verb) || matches!(verb, "get" | "delete")))
            }
            ("", "services", "") | ("discovery.k8s.io", "endpointslices", "") => reads(verb),
            ("node.k8s.io", "runtimeclasses", "") | ("storage.k8s.io", "csidrivers", "") => reads(verb),
            ("" | "events.k8s.io", "events", "") => verb == "create" || writes(verb),
            ("authentication.k8s.io", "tokenreviews", "") => verb == "create",
            ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") => {
                verb == "create"
            }
            ("certificates.k8s.io", "certificatesigningrequests", "") => verb == "create" || reads(verb),
            _ => false,
        };
        if allowed {
            Decision::allow(format!("Node: allowed for node {node:?}"))
        } else {
            Decision::no_opinion("")
        }
    }

    /// Reading one named object is allowed when a pod of the node refers to it.
    fn reads_referenced(&self, node: &str, request: &Attributes) -> Decision {
        if !reads(&request.verb) {
            return Decision::no_opinion("");
        }
        if request.name.is_empty() {
            return Decision::no_opinion("can only read resources of this type by name");
        }
        if self.refers(node, request) {
            Decision::allow(format!("Node: a pod of node {node:?} refers to it"))
        } else {
            Decision::no_opinion(format!("no relationship found between node {node:?} and this object"))
        }
    }

    fn refers(&self, node: &str, request: &Attributes) -> bool {
        let Some(plural) = REFERENCED.iter().copied().find(|plural| *plural == request.resource) else {
            return false;
        };
        let key = (plural, request.namespace.clone(), request.name.clone());
        self.current(|references| {
            references.counts.get(node).is_some_and(|objects| objects.contains_key(&key))
        })
    }

    /// Whether a claim of the node's pods is bound to this volume.
    fn mounts(&self, node: &str, volume: &str) -> bool {
        let claims: Vec<_> = self.current(|references| {
            let objects = references.counts.get(node).into_iter().flat_map(HashMap::keys);
            objects.filter(|(plural, ..)| *plural == CLAIMS).cloned().collect()
        });
        claims.iter().any(|(_, namespace, name)| {
            let claim = self.cache.get(&keys::object_key("", CLAIMS, Some(namespace), name));
            claim.is_some_and(|claim| claim.value()["spec"]["volumeName"] == volume)
        })
    }

    /// Whether the named pod is bound to the node.
    fn runs(&self, node: &str, request: &Attributes) -> bool {
        let key = keys::object_key("", "pods", Some(&request.namespace), &request.name);
        let bound = |pod: &Value| pod["spec"]["nodeName"] == node;
        self.cache.get(&key).is_some_and(|pod| bound(&pod.value()))
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
const REFERENCED: [&str; 4] = [SECRETS, CONFIG_MAPS, CLAIMS, SERVICE_ACCOUNTS];

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

fn reads(verb: &str) -> bool {
    matches!(verb, "get" | "list" | "watch")
}

fn writes(verb: &str) -> bool {
    matches!(verb, "update" | "patch")
}

#[cfg(test)]
mod tests;
