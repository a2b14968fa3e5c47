use serde_json::json;

use super::*;
use crate::{
    security::{Authorizer, GROUP_NODES, Identity, bootstrap_roles},
    storage::embedded::Embedded,
};

fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "ns", "uid": name },
        "spec": {
            "nodeName": node,
            "serviceAccountName": "robot",
            "imagePullSecrets": [{ "name": "pull" }],
            "resourceClaims": [{ "name": "g", "resourceClaimName": "gpu" }],
            "initContainers": [{ "envFrom": [{ "configMapRef": { "name": "from" } }] }],
            "containers": [{
                "env": [{ "name": "A", "valueFrom": { "secretKeyRef": { "name": "env", "key": "k" } } }],
            }],
            "volumes": [
                { "name": "s", "secret": { "secretName": "volume" } },
                { "name": "p", "projected": { "sources": [
                    { "secret": { "name": "projected" } },
                    { "configMap": { "name": "kube-root-ca.crt" } },
                ] } },
                { "name": "c", "persistentVolumeClaim": { "claimName": "claim" } },
                { "name": "scratch", "ephemeral": {} },
            ],
        },
    })
}

async fn cluster() -> (Arc<Cache>, Authorizer, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path().join("store.redb")).unwrap();
    let cache = Cache::start(Arc::new(store)).await.unwrap();
    for object in bootstrap_roles() {
        let plural = format!("{}s", object["kind"].as_str().unwrap().to_lowercase());
        let metadata = &object["metadata"];
        let (namespace, name) = (metadata["namespace"].as_str(), metadata["name"].as_str().unwrap());
        let key = keys::object_key("rbac.authorization.k8s.io", &plural, namespace, name);
        cache.create(&key, object).await.unwrap();
    }
    let authorizer = Authorizer::new(&cache);
    (cache, authorizer, folder)
}

fn agent(node: &str) -> Identity {
    Identity::internal(&format!("system:node:{node}"), &[GROUP_NODES])
}

/// `verb group/resource[/subresource] namespace name`; `-` is empty.
fn asks(question: &str) -> Attributes {
    let words: Vec<&str> = question.split(' ').map(|word| word.trim_matches('-')).collect();
    let parts: Vec<&str> = words[1].split('/').collect();
    Attributes {
        verb: words[0].to_owned(),
        group: parts[0].replace("core", ""),
        resource: parts[1].to_owned(),
        subresource: (*parts.get(2).unwrap_or(&"")).to_owned(),
        namespace: words[2].to_owned(),
        name: words[3].to_owned(),
        is_resource: true,
        ..Attributes::default()
    }
}

async fn put(cache: &Cache, plural: &str, name: &str, value: Value) {
    let key = keys::object_key("", plural, Some("ns"), name);
    match cache.get(&key) {
        Some(old) => drop(cache.update(&key, old.revision(), value).await.unwrap()),
        None => drop(cache.create(&key, value).await.unwrap()),
    }
}

async fn put_cluster(cache: &Cache, group: &str, plural: &str, name: &str, value: Value) {
    cache.create(&keys::object_key(group, plural, None, name), value).await.unwrap();
}

#[tokio::test]
async fn an_agent_reads_what_the_pods_of_its_node_refer_to() {
    let (cache, authorizer, _folder) = cluster().await;
    put(&cache, "pods", "p", pod("p", "")).await;
    let may = [
        "get core/secrets ns env",
        "watch core/secrets ns volume",
        "list core/secrets ns projected",
        "get core/secrets ns pull",
        "get core/configmaps ns from",
        "get core/configmaps ns kube-root-ca.crt",
        "get core/persistentvolumeclaims ns claim",
        "get core/persistentvolumeclaims ns p-scratch",
        "create core/serviceaccounts/token ns robot",
    ];
    let check = |allowed: bool, node: &str, why: &str| {
        for question in may {
            let decision = authorizer.authorize(&agent(node), &asks(question));
            assert_eq!(decision.allowed, allowed, "{question} on {node}, {why}: {}", decision.reason);
        }
    };
    check(false, "n1", "not bound yet");
    put(&cache, "pods", "p", pod("p", "n1")).await;
    check(true, "n1", "bound");
    check(false, "n2", "bound elsewhere");
    put(&cache, "pods", "q", pod("q", "n1")).await;
    let at = keys::object_key("", "pods", Some("ns"), "p");
    cache.delete(&at, cache.get(&at).unwrap().revision()).await.unwrap();
    assert!(
        authorizer.authorize(&agent("n1"), &asks("get core/secrets ns env")).allowed,
        "the other pod refers to it"
    );
    let at = keys::object_key("", "pods", Some("ns"), "q");
    cache.delete(&at, cache.get(&at).unwrap().revision()).await.unwrap();
    check(false, "n1", "gone");
}

/// What the agent of n1 may ask for, and what not, in the cluster of the test below.
const QUESTIONS: &[(bool, &str)] = &[
    (false, "get core/secrets ns other"),
    (false, "get core/secrets other env"),
    (false, "list core/secrets ns -"),
    (false, "watch core/configmaps - -"),
    (false, "update core/secrets ns env"),
    (false, "get core/secrets ns wanted"),
    (false, "create core/serviceaccounts/token ns other"),
    (true, "patch core/nodes/status - n1"),
    (true, "update core/nodes - n1"),
    (false, "delete core/nodes - n1"),
    (false, "get core/nodes/proxy - n1"),
    (true, "create core/nodes - -"),
    (true, "update coordination.k8s.io/leases kube-node-lease n1"),
    (false, "update coordination.k8s.io/leases kube-node-lease n2"),
    (false, "update coordination.k8s.io/leases kube-system n1"),
    (false, "list coordination.k8s.io/leases kube-node-lease -"),
    (true, "patch core/pods/status ns p"),
    (false, "patch core/pods ns p"),
    (true, "delete core/pods ns p"),
    (false, "deletecollection core/pods ns -"),
    (true, "get core/persistentvolumes - v"),
    (false, "get core/persistentvolumes - w"),
    (false, "get core/persistentvolumes - stolen"),
    (false, "list core/persistentvolumes - -"),
    (true, "get core/secrets storage stage"),
    (false, "get core/secrets storage other"),
    (true, "get storage.k8s.io/volumeattachments - mine"),
    (false, "get storage.k8s.io/volumeattachments - theirs"),
    (true, "update resource.k8s.io/resourceslices - mine"),
    (false, "update resource.k8s.io/resourceslices - theirs"),
    (false, "list resource.k8s.io/resourceslices - -"),
    (true, "get resource.k8s.io/resourceclaims ns gpu"),
    (false, "get resource.k8s.io/resourceclaims ns other"),
    (true, "patch storage.k8s.io/csinodes - n1"),
    (false, "patch storage.k8s.io/csinodes - n2"),
    (true, "create core/configmaps kube-system -"),
    (false, "create core/configmaps ns -"),
    (false, "create core/pods/exec ns p"),
    (false, "list rbac.authorization.k8s.io/clusterroles - -"),
    (true, "list discovery.k8s.io/endpointslices - -"),
];

#[tokio::test]
async fn an_agent_does_not_read_or_write_what_is_not_its_own() {
    let (cache, authorizer, _folder) = cluster().await;
    put(&cache, "pods", "p", pod("p", "n1")).await;
    put(&cache, "pods", "other", pod("other", "n2")).await;
    let mut mirror = pod("mirror", "n1");
    mirror["metadata"]["annotations"] = json!({ MIRROR_ANNOTATION: "x" });
    mirror["spec"]["volumes"] = json!([{ "secret": { "secretName": "wanted" } }]);
    put(&cache, "pods", "mirror", mirror).await;
    put(&cache, "persistentvolumeclaims", "claim", json!({ "metadata": {}, "spec": { "volumeName": "v" } }))
        .await;
    let volume = |claim: &str| {
        json!({ "metadata": {}, "spec": {
            "claimRef": { "namespace": "ns", "name": claim },
            "csi": { "nodeStageSecretRef": { "namespace": "storage", "name": "stage" } },
        } })
    };
    put_cluster(&cache, "", "persistentvolumes", "v", volume("claim")).await;
    put_cluster(&cache, "", "persistentvolumes", "stolen", volume("elsewhere")).await;
    for (name, node) in [("mine", "n1"), ("theirs", "n2")] {
        let object = json!({ "metadata": {}, "spec": { "nodeName": node } });
        put_cluster(&cache, "storage.k8s.io", "volumeattachments", name, object.clone()).await;
        put_cluster(&cache, "resource.k8s.io", "resourceslices", name, object).await;
    }
    for (allowed, question) in QUESTIONS {
        assert_eq!(authorizer.authorize(&agent("n1"), &asks(question)).allowed, *allowed, "{question}");
    }
    for stranger in [Identity::internal("system:node:n1", &[]), Identity::internal("n1", &[GROUP_NODES])] {
        assert!(
            !authorizer.authorize(&stranger, &asks("patch core/nodes/status - n1")).allowed,
            "{stranger:?}"
        );
    }
    let reason = authorizer.authorize(&agent("n1"), &asks("get core/secrets ns other")).reason;
    assert_eq!(reason, "no relationship found between node 'n1' and this object");
}

/// The Node authorizer alone: in a cluster, our agents hold more rights by a role.
#[tokio::test]
async fn an_agent_sees_its_own_node_and_the_pods_on_it() {
    let (cache, _, _folder) = cluster().await;
    put(&cache, "pods", "p", pod("p", "n1")).await;
    put(&cache, "pods", "other", pod("other", "n2")).await;
    let authorizer = NodeAuthorizer::new(&cache);
    let decide = |question: &str, selector: &str| {
        let request = Attributes { field_selector: selector.to_owned(), ..asks(question) };
        let decision = authorizer.authorize("n1", &request);
        if decision.allowed { "yes".to_owned() } else { decision.reason }
    };
    assert_eq!(decide("get core/pods ns p", ""), "yes");
    assert_eq!(
        decide("get core/pods ns other", ""),
        "no relationship found between node 'n1' and this object"
    );
    let unselected = "can only list/watch pods with spec.nodeName field selector";
    assert_eq!(decide("list core/pods - -", ""), unselected);
    assert_eq!(decide("list core/pods - -", "spec.nodeName!=n1"), unselected);
    assert_eq!(decide("watch core/pods - -", "spec.nodeName=n2"), unselected);
    assert_eq!(decide("watch core/pods - -", "status.phase!=Failed,spec.nodeName=n1"), "yes");
    assert_eq!(decide("list resource.k8s.io/resourceslices - -", "spec.nodeName=n1"), "yes");
    assert_eq!(decide("get core/nodes - n1", ""), "yes");
    assert_eq!(
        decide("list core/nodes - -", ""),
        "node 'n1' cannot read all nodes, only its own Node object"
    );
    assert_eq!(decide("get core/nodes - n2", ""), "node 'n1' cannot read 'n2', only its own Node object");
}
