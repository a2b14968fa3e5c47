use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use api::{schema::builtin, status::Status};
use serde_json::{Value, json};

use super::{Admission, Lookup, Operation, Options, Request};
use crate::{
    handlers::Target,
    kinds::Kinds,
    registry::{Context, prepare_create, strategy},
    security::Identity,
};

/// A cluster of plain values: (plural, namespace, name) to object.
#[derive(Default)]
pub(super) struct Objects(BTreeMap<(String, String, String), Value>);

impl Objects {
    pub(super) fn with(mut self, plural: &str, namespace: &str, name: &str, mut object: Value) -> Self {
        object["metadata"]["name"] = json!(name);
        self.0.insert((plural.to_owned(), namespace.to_owned(), name.to_owned()), object);
        self
    }

    /// A namespace `default` with its ServiceAccount.
    fn cluster() -> Self {
        Self::default().with("namespaces", "", "default", json!({ "status": { "phase": "Active" } })).with(
            "serviceaccounts",
            "default",
            "default",
            json!({}),
        )
    }
}

impl Lookup for Objects {
    fn get(&self, _group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.0.get(&(plural.to_owned(), namespace.to_owned(), name.to_owned())).cloned()
    }

    fn list(&self, _group: &str, plural: &str, namespace: &str) -> Vec<Value> {
        let wanted =
            self.0.iter().filter(|((p, n, _), _)| p == plural && (namespace.is_empty() || n == namespace));
        wanted.map(|(_, object)| object.clone()).collect()
    }
}

struct Attempt<'a> {
    operation: Operation,
    group: &'a str,
    plural: &'a str,
    subresource: &'a str,
    namespace: &'a str,
    user: Identity,
    old: Option<Value>,
}

fn create<'a>(group: &'a str, plural: &'a str) -> Attempt<'a> {
    let user = Identity { name: "alice".to_owned(), ..Identity::default() };
    Attempt {
        operation: Operation::Create,
        group,
        plural,
        subresource: "",
        namespace: "default",
        user,
        old: None,
    }
}

impl Attempt<'_> {
    fn by_node(mut self, node: &str) -> Self {
        self.user.name = format!("system:node:{node}");
        self.user.groups = vec!["system:nodes".to_owned()];
        self
    }

    /// Runs the object through all plugins as a handler does, and returns it.
    async fn admit(&self, lookup: impl Lookup + 'static, mut object: Value) -> Result<Value, Status> {
        let resources = builtin().resources();
        let resource =
            resources.iter().find(|r| r.group == self.group && r.plural == self.plural).expect("known");
        let name = object["metadata"]["name"].as_str().unwrap_or("").to_owned();
        let strategy = strategy(self.group, self.plural);
        if self.operation == Operation::Create && self.subresource.is_empty() {
            strategy.default(&mut object);
            let context = Context { resource, subresource: "", now: "2026-03-01T12:00:00Z", user: "alice" };
            prepare_create(strategy, &context, &mut object);
        }
        let target = Target::new(resource);
        let request = Request {
            operation: self.operation,
            kinds: &Kinds::new(builtin()),
            target: &target,
            subresource: self.subresource,
            namespace: self.namespace,
            name: &name,
            user: &self.user,
            old: self.old.as_ref(),
            dry_run: false,
            options: Options::None,
        };
        Admission::new(Arc::new(lookup)).admit(&request, &mut object, &mut Vec::new()).await?;
        Ok(object)
    }

    async fn refusal(&self, objects: Objects, object: Value) -> String {
        self.admit(objects, object).await.expect_err("it must be refused").message
    }
}

fn pod(spec: Value) -> Value {
    let base = json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": { "containers": [{ "name": "web", "image": "nginx" }] },
    });
    api::patch::merge_patch(&base, &json!({ "spec": spec })).expect("a merge patch always applies")
}

#[tokio::test]
async fn a_pod_gets_account_token_tolerations_and_priority() {
    let stored = create("", "pods").admit(Objects::cluster(), pod(json!({}))).await.unwrap();
    let spec = &stored["spec"];
    assert_eq!(
        (&spec["serviceAccountName"], &spec["serviceAccount"]),
        (&json!("default"), &json!("default"))
    );
    assert_eq!((&spec["priority"], &spec["preemptionPolicy"]), (&json!(0), &json!("PreemptLowerPriority")));
    assert_eq!(
        spec["tolerations"],
        json!([
            { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
            { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
        ])
    );
    let volume = spec["volumes"][0]["name"].as_str().unwrap();
    assert!(
        volume.starts_with("kube-api-access-") && volume.len() == "kube-api-access-".len() + 5,
        "{volume}"
    );
    assert_eq!(
        spec["containers"][0]["volumeMounts"],
        json!([{ "name": volume, "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount" }])
    );
    let sources = &spec["volumes"][0]["projected"]["sources"];
    assert_eq!(sources[0], json!({ "serviceAccountToken": { "path": "token", "expirationSeconds": 3607 } }));
    assert_eq!(sources[1]["configMap"]["name"], "kube-root-ca.crt");
    assert_eq!(sources[2]["downwardAPI"]["items"][0]["fieldRef"]["fieldPath"], "metadata.namespace");
}

#[tokio::test]
async fn an_account_may_decline_the_token_and_lend_its_pull_secrets() {
    let account =
        json!({ "automountServiceAccountToken": false, "imagePullSecrets": [{ "name": "registry" }] });
    let objects = || Objects::cluster().with("serviceaccounts", "default", "app", account.clone());
    let named = pod(json!({ "serviceAccountName": "app" }));
    let stored = create("", "pods").admit(objects(), named).await.unwrap();
    assert_eq!(stored["spec"]["volumes"], Value::Null);
    assert_eq!(stored["spec"]["imagePullSecrets"], json!([{ "name": "registry" }]));
    let asking = pod(json!({ "serviceAccountName": "app", "automountServiceAccountToken": true }));
    let stored = create("", "pods").admit(objects(), asking).await.unwrap();
    assert!(stored["spec"]["volumes"][0]["projected"].is_object(), "the pod's own word counts");
    assert_eq!(
        create("", "pods").refusal(objects(), pod(json!({ "serviceAccountName": "none" }))).await,
        "pods \"web\" is forbidden: error looking up service account default/none: serviceaccount \"none\" not found"
    );
}

#[tokio::test]
async fn nothing_is_created_where_no_namespace_is_or_where_it_ends() {
    let config_map = json!({ "metadata": { "name": "a", "namespace": "default" } });
    let missing = create("", "configmaps").admit(Objects::default(), config_map.clone()).await.unwrap_err();
    assert_eq!((missing.code, missing.message.as_str()), (404, "namespaces \"default\" not found"));
    let ending =
        Objects::default().with("namespaces", "", "default", json!({ "status": { "phase": "Terminating" } }));
    let refused = create("", "configmaps").admit(ending, config_map).await.unwrap_err();
    assert_eq!(refused.code, 403);
    assert_eq!(
        refused.message,
        "configmaps \"a\" is forbidden: unable to create new content in namespace default because it is being terminated"
    );
    let causes = &refused.to_value()["details"]["causes"];
    assert_eq!(causes[0]["reason"], "NamespaceTerminating");
    assert_eq!(causes[0]["field"], "metadata.namespace");
}

#[tokio::test]
async fn the_first_namespaces_stay() {
    let mut deletion = create("", "namespaces");
    deletion.operation = Operation::Delete;
    deletion.namespace = "";
    let namespace = |name: &str| json!({ "metadata": { "name": name } });
    assert_eq!(
        deletion.refusal(Objects::cluster(), namespace("kube-system")).await,
        "namespaces \"kube-system\" is forbidden: this namespace may not be deleted"
    );
    assert!(deletion.admit(Objects::cluster(), namespace("mine")).await.is_ok());
}

#[tokio::test]
async fn limit_ranges_fill_in_and_refuse() {
    let objects = |limit: Value| {
        Objects::cluster().with("limitranges", "default", "bounds", json!({ "spec": { "limits": [limit] } }))
    };
    let defaults = json!({ "type": "Container", "default": { "cpu": "1" }, "defaultRequest": { "cpu": "100m", "memory": "1Mi" } });
    let stored = create("", "pods").admit(objects(defaults), pod(json!({}))).await.unwrap();
    assert_eq!(
        stored["spec"]["containers"][0]["resources"],
        json!({ "limits": { "cpu": "1" }, "requests": { "cpu": "100m", "memory": "1Mi" } })
    );
    assert_eq!(
        stored["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu, memory request for container web; cpu limit for container web"
    );
    let greedy = pod(
        json!({ "containers": [{ "name": "web", "image": "i", "resources": { "limits": { "cpu": "3" } } }] }),
    );
    assert_eq!(
        create("", "pods")
            .refusal(objects(json!({ "type": "Container", "max": { "cpu": "2" } })), greedy)
            .await,
        "pods \"web\" is forbidden: maximum cpu usage per Container is 2, but limit is 3"
    );
    assert_eq!(
        create("", "pods")
            .refusal(objects(json!({ "type": "Pod", "min": { "memory": "1Gi" } })), pod(json!({})))
            .await,
        "pods \"web\" is forbidden: minimum memory usage per Pod is 1Gi.  No request is specified"
    );
}

#[tokio::test]
async fn priority_classes_become_numbers() {
    let class = |value: i64, default: bool| json!({ "value": value, "globalDefault": default, "preemptionPolicy": "Never" });
    let objects = || {
        Objects::cluster().with("priorityclasses", "", "high", class(1000, false)).with(
            "priorityclasses",
            "",
            "usual",
            class(5, true),
        )
    };
    let stored =
        create("", "pods").admit(objects(), pod(json!({ "priorityClassName": "high" }))).await.unwrap();
    assert_eq!(
        (&stored["spec"]["priority"], &stored["spec"]["preemptionPolicy"]),
        (&json!(1000), &json!("Never"))
    );
    let stored = create("", "pods").admit(objects(), pod(json!({}))).await.unwrap();
    assert_eq!(
        (&stored["spec"]["priorityClassName"], &stored["spec"]["priority"]),
        (&json!("usual"), &json!(5))
    );
    assert_eq!(
        create("", "pods").refusal(objects(), pod(json!({ "priorityClassName": "none" }))).await,
        "pods \"web\" is forbidden: no PriorityClass with name none was found"
    );
    assert_eq!(
        create("", "pods").refusal(objects(), pod(json!({ "priority": 7 }))).await,
        "pods \"web\" is forbidden: the integer value of priority (7) must not be provided in pod spec; priority admission \
         controller computed 5 from the given PriorityClass name"
    );
    let mut second = create("scheduling.k8s.io", "priorityclasses");
    second.namespace = "";
    let other = json!({ "metadata": { "name": "other" }, "value": 1, "globalDefault": true });
    assert_eq!(
        second.refusal(objects(), other).await,
        "priorityclasses.scheduling.k8s.io \"other\" is forbidden: PriorityClass usual is already marked as default. Only \
         one default can exist"
    );
}

#[tokio::test]
async fn a_runtime_class_must_be_there_and_brings_its_overhead() {
    let missing = pod(json!({ "runtimeClassName": "kata" }));
    assert_eq!(
        create("", "pods").refusal(Objects::cluster(), missing.clone()).await,
        "pods \"web\" is forbidden: pod rejected: RuntimeClass \"kata\" not found"
    );
    let class = json!({
        "handler": "kata", "overhead": { "podFixed": { "cpu": "250m" } }, "scheduling": { "nodeSelector": { "kata": "yes" } },
    });
    let objects = || Objects::cluster().with("runtimeclasses", "", "kata", class.clone());
    let stored = create("", "pods").admit(objects(), missing).await.unwrap();
    assert_eq!(stored["spec"]["overhead"], json!({ "cpu": "250m" }));
    assert_eq!(stored["spec"]["nodeSelector"], json!({ "kata": "yes" }));
    assert_eq!(
        create("", "pods").refusal(Objects::cluster(), pod(json!({ "overhead": { "cpu": "1" } }))).await,
        "pods \"web\" is forbidden: pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"
    );
}

#[tokio::test]
async fn claims_get_the_default_class_and_their_finalizer() {
    let marked = |created: &str| {
        json!({ "metadata": {
        "annotations": { "storageclass.kubernetes.io/is-default-class": "true" }, "creationTimestamp": created,
    } })
    };
    let objects = Objects::cluster().with("storageclasses", "", "old", marked("2026-01-01T00:00:00Z")).with(
        "storageclasses",
        "",
        "new",
        marked("2026-02-01T00:00:00Z"),
    );
    let claim = json!({ "metadata": { "name": "data", "namespace": "default" }, "spec": {} });
    let stored = create("", "persistentvolumeclaims").admit(objects, claim).await.unwrap();
    assert_eq!(stored["spec"]["storageClassName"], "new");
    assert_eq!(stored["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
}

#[tokio::test]
async fn a_new_node_is_tainted_until_it_is_ready() {
    let mut attempt = create("", "nodes").by_node("n1");
    attempt.namespace = "";
    let stored = attempt.admit(Objects::cluster(), json!({ "metadata": { "name": "n1" } })).await.unwrap();
    assert_eq!(
        stored["spec"]["taints"],
        json!([{ "key": "node.kubernetes.io/not-ready", "effect": "NoSchedule" }])
    );
}

#[tokio::test]
async fn a_node_writes_only_what_is_its_own() {
    let mut attempt = create("", "nodes").by_node("n1");
    attempt.namespace = "";
    assert_eq!(
        attempt.refusal(Objects::cluster(), json!({ "metadata": { "name": "n2" } })).await,
        "nodes \"n2\" is forbidden: node \"n1\" is not allowed to modify node \"n2\""
    );
    let labelled = json!({ "metadata": { "name": "n1", "labels": {
        "kubernetes.io/hostname": "n1", "node-role.kubernetes.io/control-plane": "", "mine.example/x": "y",
    } } });
    assert_eq!(
        attempt.refusal(Objects::cluster(), labelled).await,
        "nodes \"n1\" is forbidden: node \"n1\" is not allowed to set the following labels: \
         node-role.kubernetes.io/control-plane"
    );
    let elsewhere = pod(json!({ "nodeName": "n2" }));
    let mut status = create("", "pods").by_node("n1");
    (status.operation, status.subresource, status.old) =
        (Operation::Update, "status", Some(elsewhere.clone()));
    assert_eq!(
        status.refusal(Objects::cluster(), elsewhere).await,
        "pods \"web\" is forbidden: node \"n1\" can only update pod status for pods with spec.nodeName set to itself"
    );
    let mut lease = create("coordination.k8s.io", "leases").by_node("n1");
    lease.namespace = "kube-node-lease";
    let leases = || Objects::cluster().with("namespaces", "", "kube-node-lease", json!({}));
    assert!(lease.admit(leases(), json!({ "metadata": { "name": "n1" } })).await.is_ok());
    assert!(lease.admit(leases(), json!({ "metadata": { "name": "n2" } })).await.is_err());
}

#[tokio::test]
async fn a_node_asks_tokens_only_for_its_own_pods() {
    let mut attempt = create("", "serviceaccounts").by_node("n1");
    attempt.subresource = "token";
    let objects = || {
        Objects::cluster().with(
            "pods",
            "default",
            "web",
            json!({ "metadata": { "uid": "u1" }, "spec": { "nodeName": "n1", "volumes": [{ "name": "t",
                "projected": { "sources": [
                    { "serviceAccountToken": { "path": "t" } },
                    { "serviceAccountToken": { "path": "v", "audience": "vault" } },
                ] } }] } }),
        )
    };
    let bound = |uid: &str| {
        json!({ "metadata": { "name": "default" }, "spec": { "boundObjectRef": {
        "apiVersion": "v1", "kind": "Pod", "name": "web", "uid": uid,
    } } })
    };
    assert!(attempt.admit(objects(), bound("u1")).await.is_ok());
    assert!(attempt.refusal(objects(), bound("u2")).await.contains("does not match the UID in record"));
    let with_audiences = |audiences: Value| {
        let mut request = bound("u1");
        request["spec"]["audiences"] = audiences;
        request
    };
    assert!(attempt.admit(objects(), with_audiences(json!(["vault"]))).await.is_ok());
    assert_eq!(
        attempt.refusal(objects(), with_audiences(json!(["bank"]))).await,
        "serviceaccounts \"default\" is forbidden: audience \"bank\" not found in pod spec volume, system:node:n1 is \
         not authorized to request tokens for this audience"
    );
    assert!(
        attempt
            .refusal(objects(), with_audiences(json!(["vault", "bank"])))
            .await
            .ends_with("node may only request 0 or 1 audiences")
    );
    let unbound = json!({ "metadata": { "name": "default" }, "spec": {} });
    assert_eq!(
        attempt.refusal(objects(), unbound).await,
        "serviceaccounts \"default\" is forbidden: node requested token not bound to a pod"
    );
}

#[tokio::test]
async fn a_binding_copies_the_nodes_place_to_the_pod() {
    let node = json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": "z1", "other": "x" } } });
    let mut attempt = create("", "pods");
    let binding = json!({ "metadata": { "name": "web" }, "target": { "name": "n1" } });
    attempt.subresource = "binding";
    let admitted = attempt.admit(Objects::cluster().with("nodes", "", "n1", node), binding).await.unwrap();
    assert_eq!(admitted["metadata"]["labels"], json!({ "topology.kubernetes.io/zone": "z1" }));
}

/// A namespace whose default ServiceAccount appears at the third look.
struct LateAccount {
    objects: Objects,
    looks: AtomicU32,
}

impl Lookup for LateAccount {
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        if plural == "serviceaccounts" && self.looks.fetch_add(1, Ordering::Relaxed) < 2 {
            return None;
        }
        self.objects.get(group, plural, namespace, name)
    }

    fn list(&self, group: &str, plural: &str, namespace: &str) -> Vec<Value> {
        self.objects.list(group, plural, namespace)
    }
}

#[tokio::test]
async fn a_pod_waits_for_the_default_account_of_a_new_namespace() {
    let lookup = LateAccount { objects: Objects::cluster(), looks: AtomicU32::new(0) };
    let stored = create("", "pods").admit(lookup, pod(json!({}))).await.unwrap();
    assert_eq!(stored["spec"]["serviceAccountName"], "default");
}

#[tokio::test]
async fn a_claim_grows_only_where_its_class_allows() {
    let claim = |size: &str| {
        json!({ "metadata": { "name": "data" }, "spec": { "storageClassName": "fast",
            "resources": { "requests": { "storage": size } } }, "status": { "phase": "Bound" } })
    };
    let objects = |expands: bool| {
        Objects::cluster().with("storageclasses", "", "fast", json!({ "allowVolumeExpansion": expands }))
    };
    let mut attempt = create("", "persistentvolumeclaims");
    attempt.operation = Operation::Update;
    attempt.old = Some(claim("1Gi"));
    assert!(attempt.admit(objects(true), claim("2Gi")).await.is_ok());
    assert!(attempt.admit(objects(false), claim("1Gi")).await.is_ok());
    assert!(
        attempt
            .refusal(objects(false), claim("2Gi"))
            .await
            .ends_with("the storageclass that provisions the pvc must support resize")
    );
    let mut pending = claim("1Gi");
    pending["status"]["phase"] = json!("Pending");
    attempt.old = Some(pending);
    assert!(
        attempt
            .refusal(objects(true), claim("2Gi"))
            .await
            .ends_with("Only bound persistent volume claims can be expanded")
    );
}

#[tokio::test]
async fn a_pod_is_not_resized_beyond_its_node() {
    let sized = |generation: i64, cpu: &str| {
        json!({ "metadata": { "name": "web", "namespace": "default", "generation": generation },
            "spec": { "nodeName": "n1", "serviceAccountName": "default", "containers": [
                { "name": "web", "image": "nginx", "resources": { "requests": { "cpu": cpu } } }] } })
    };
    let node = |system: &str| {
        let node = json!({ "metadata": { "labels": { "kubernetes.io/os": system } },
            "status": { "allocatable": { "cpu": "2", "memory": "1Gi" } } });
        Objects::cluster().with("nodes", "", "n1", node)
    };
    let mut attempt = create("", "pods");
    attempt.operation = Operation::Update;
    attempt.subresource = "resize";
    attempt.old = Some(sized(1, "1"));
    assert!(attempt.admit(node("linux"), sized(2, "2")).await.is_ok());
    let refused = attempt.admit(node("linux"), sized(2, "3")).await.unwrap_err();
    assert!(
        refused.message.ends_with(
            "node didn't have enough allocatable resources: cpu, requested: 3000, allocatable: 2000"
        ),
        "{refused}"
    );
    assert_eq!(refused.details.unwrap()["causes"][0]["reason"], "NodeCapacity");
    assert!(
        attempt
            .refusal(node("windows"), sized(2, "1"))
            .await
            .ends_with("pod resize is only supported on linux nodes, node \"n1\" is \"windows\"")
    );
}

#[tokio::test]
async fn a_node_changes_nothing_of_a_claim_but_its_progress() {
    let claim = |capacity: &str, label: &str| {
        json!({ "metadata": { "name": "data", "labels": { "a": label } }, "spec": { "volumeName": "v" },
            "status": { "phase": "Bound", "capacity": { "storage": capacity } } })
    };
    let mut attempt = create("", "persistentvolumeclaims").by_node("n1");
    attempt.operation = Operation::Update;
    attempt.subresource = "status";
    attempt.old = Some(claim("1Gi", "x"));
    assert!(attempt.admit(Objects::cluster(), claim("2Gi", "x")).await.is_ok());
    assert!(
        attempt
            .refusal(Objects::cluster(), claim("1Gi", "y"))
            .await
            .contains("is not allowed to update fields other than status.quantity and status.conditions")
    );
    attempt.subresource = "";
    assert!(
        attempt.refusal(Objects::cluster(), claim("1Gi", "x")).await.ends_with("may only update PVC status")
    );
}
