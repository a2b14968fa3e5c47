use serde_json::{Value, json};

use super::*;

fn object(name: &str, spec: Value, status: Value) -> PodObject {
    let metadata = json!({ "namespace": "default", "name": name, "uid": "u1", "labels": { "app": "web" } });
    serde_json::from_value(json!({ "metadata": metadata, "spec": spec, "status": status })).unwrap()
}

fn policy() -> NetworkPolicy {
    let metadata = json!({ "namespace": "default", "name": "deny" });
    serde_json::from_value(json!({ "metadata": metadata, "spec": { "podSelector": {} } })).unwrap()
}

fn policies(kept: Option<&str>) -> (tempfile::TempDir, Policies) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policies.json");
    if let Some(kept) = kept {
        std::fs::write(&file, kept).unwrap();
    }
    (folder, Policies::open(file).unwrap())
}

/// As long as it has no maps to fail at.
fn set(policies: &Policies) {
    let mut state = policies.lock();
    assert!(state.is_complete());
    state.policer.update();
    state.is_set = true;
}

#[test]
fn of_a_pod_what_policies_depend_on_is_read() {
    let spec = json!({ "hostNetwork": false, "containers": [{ "name": "a", "image": "x", "ports": [
        { "containerPort": 8080, "name": "http", "protocol": "TCP" }, { "containerPort": 1 }] }],
        "initContainers": [{ "restartPolicy": "Always", "ports": [{ "containerPort": 53, "name": "dns",
            "protocol": "UDP" }] }, { "ports": [{ "containerPort": 2, "name": "once" }] }] });
    let status = json!({ "phase": "Running", "podIP": "10.1.0.1", "podIPs": [{ "ip": "10.1.0.1" }, { "ip": "fd00::1" }] });
    let facts = object("web", spec.clone(), status).facts();
    assert_eq!(
        facts.addresses,
        ["10.1.0.1".parse::<std::net::IpAddr>().unwrap(), "fd00::1".parse().unwrap()]
    );
    let ports: Vec<(&str, u16)> = facts.ports.iter().map(|port| (&*port.name, port.number)).collect();
    assert_eq!(ports, [("http", 8080), ("dns", 53)]);
    assert_eq!((facts.uid.as_str(), facts.labels["app"].as_str()), ("u1", "web"));
    let ended = json!({ "phase": "Succeeded", "podIP": "10.1.0.1", "podIPs": [{ "ip": "10.1.0.1" }] });
    assert!(object("web", spec, ended).facts().addresses.is_empty());
    assert!(object("web", json!({ "hostNetwork": true }), json!({})).facts().is_of_host_network);
}

#[test]
fn a_pod_is_added_only_when_its_isolation_is_known() {
    let (_folder, policies) = policies(None);
    let obstacle = |pod: &str, uid: &str| policies.obstacle("default", pod, uid);
    assert!(obstacle("web", "").unwrap().contains("NetworkPolicies are not in the datapath yet"));
    policies.policy(watcher::Event::Init);
    policies.policy(watcher::Event::InitDone);
    set(&policies);
    assert_eq!(obstacle("web", ""), None, "there are no policies");
    policies.policy(watcher::Event::Apply(policy()));
    assert!(obstacle("web", "").unwrap().contains("namespace default select is not known yet"));
    assert_eq!(policies.obstacle("other", "web", ""), None);
    policies.pod(watcher::Event::Init);
    policies.pod(watcher::Event::InitDone);
    policies.lock().knows_namespaces = true;
    assert!(obstacle("web", "").unwrap().contains("has not told of pod default/web yet"));
    policies.pod(watcher::Event::Apply(object("web", json!({}), json!({}))));
    assert_eq!(obstacle("web", "u1"), None);
    assert_eq!(obstacle("web", ""), None);
    assert!(obstacle("web", "u2").is_some(), "that is another pod of the name");
    policies.policy(watcher::Event::Delete(policy()));
    policies.forget();
    assert_eq!(obstacle("web", "u2"), None);
    assert!(!policies.knows_pod_of_tests("web"));
}

#[test]
fn what_was_known_last_counts_only_where_nothing_is_heard() {
    let (_folder, mut policies) = policies(Some(r#"{"namespaces": ["walled"]}"#));
    assert!(policies.obstacle("default", "web", "").is_some(), "the API server has a while to say otherwise");
    policies.started_at -= HEARING_TIME;
    assert_eq!(policies.obstacle("default", "web", ""), None);
    assert!(policies.obstacle("walled", "web", "").is_some());
    policies.started_at += HEARING_TIME;
    assert!(policies.obstacle("default", "web", "").is_some());
    policies.lock().is_unheard = true;
    assert_eq!(policies.obstacle("default", "web", ""), None);
}

#[test]
fn which_namespaces_have_policies_is_kept() {
    let (folder, policies) = policies(None);
    policies.keep().unwrap();
    assert!(!folder.path().join("policies.json").exists(), "nothing was heard yet");
    policies.policy(watcher::Event::Init);
    policies.policy(watcher::Event::InitApply(policy()));
    policies.policy(watcher::Event::InitDone);
    policies.keep().unwrap();
    let again = Policies::open(folder.path().join("policies.json")).unwrap();
    assert_eq!(again.lock().kept, Some(Kept { namespaces: ["default".to_owned()].into() }));
}

#[tokio::test]
async fn an_add_waits_for_the_pods_object_and_not_for_ever() {
    let (_folder, policies) = policies(None);
    policies.policy(watcher::Event::Init);
    policies.policy(watcher::Event::InitApply(policy()));
    policies.policy(watcher::Event::InitDone);
    policies.pod(watcher::Event::Init);
    policies.pod(watcher::Event::InitDone);
    policies.lock().knows_namespaces = true;
    set(&policies);
    let briefly = Duration::from_millis(1);
    let told = policies.await_pod_for(briefly, "default", "web", "u1").await.unwrap_err();
    assert!(told.contains("pod default/web"), "{told}");
    let policies = Arc::new(policies);
    let waiting = tokio::spawn({
        let policies = policies.clone();
        async move { policies.await_pod("default", "web", "u1").await }
    });
    tokio::task::yield_now().await;
    policies.pod(watcher::Event::Apply(object("web", json!({}), json!({}))));
    policies.changed.send_replace(());
    assert_eq!(waiting.await.unwrap(), Ok(()));
}

impl Policies {
    fn knows_pod_of_tests(&self, name: &str) -> bool {
        self.lock().policer.knows_pod("default", name, "")
    }
}
