use serde_json::json;

use super::*;
use crate::{
    security::{Authorizer, GROUP_AUTHENTICATED, GROUP_MASTERS},
    storage::embedded::Embedded,
};

fn role(kind: &str, namespace: &str, name: &str, rules: Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": { "name": name, "namespace": namespace },
        "rules": rules,
    })
}

fn binding(namespace: &str, name: &str, role: (&str, &str), subjects: Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": if namespace.is_empty() { "ClusterRoleBinding" } else { "RoleBinding" },
        "metadata": { "name": name, "namespace": namespace },
        "roleRef": { "apiGroup": GROUP, "kind": role.0, "name": role.1 },
        "subjects": subjects,
    })
}

fn key(object: &Value) -> (Kind, String) {
    let kind =
        *Kind::ALL.iter().find(|kind| format!("{kind:?}") == object["kind"].as_str().unwrap()).unwrap();
    let namespace = object["metadata"]["namespace"].as_str().filter(|namespace| !namespace.is_empty());
    let name = object["metadata"]["name"].as_str().unwrap();
    (kind, keys::object_key(GROUP, kind.plural(), namespace, name))
}

fn tables(objects: &[Value]) -> Tables {
    let mut tables = Tables::default();
    for object in objects {
        let (kind, key) = key(object);
        tables.set(kind, &key, object);
    }
    tables
}

fn user(name: &str) -> Value {
    json!([{ "kind": "User", "name": name, "apiGroup": GROUP }])
}

fn jane() -> Identity {
    Identity::internal("jane", &["devs"])
}

/// `verb group/resource[/subresource] namespace [name]`.
fn asks(question: &str) -> Attributes {
    let words: Vec<&str> = question.split(' ').collect();
    if words[1].starts_with('/') {
        let (verb, path) = (words[0].to_owned(), words[1].to_owned());
        return Attributes { verb, path, ..Attributes::default() };
    }
    let parts: Vec<&str> = words[1].split('/').collect();
    let word = |index: usize| (*words.get(index).unwrap_or(&"")).replace('-', "");
    Attributes {
        verb: words[0].to_owned(),
        group: parts[0].replace("core", ""),
        version: "v1".to_owned(),
        resource: parts[1].to_owned(),
        subresource: (*parts.get(2).unwrap_or(&"")).to_owned(),
        namespace: word(2),
        name: word(3),
        path: String::new(),
        is_resource: true,
        ..Attributes::default()
    }
}

#[test]
fn rules_allow_what_they_name_and_nothing_else() {
    let rules = json!([
        { "verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/log"] },
        { "verbs": ["*"], "apiGroups": ["apps"], "resources": ["*/scale"] },
        { "verbs": ["update", "list"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["one", "two"] },
        { "verbs": ["create"], "apiGroups": ["batch"], "resources": ["*"] },
    ]);
    let tables = tables(&[role("Role", "ns", "r", rules), binding("ns", "b", ("Role", "r"), user("jane"))]);
    let cases = [
        (true, "get core/pods ns p"),
        (true, "get core/pods/log ns p"),
        (false, "get core/pods/exec ns p"),
        (false, "list core/pods ns"),
        (false, "get apps/pods ns p"),
        (false, "get core/pods other p"),
        (false, "get core/pods - p"),
        (true, "patch apps/deployments/scale ns d"),
        (false, "patch apps/deployments ns d"),
        (false, "patch apps/deployments/status ns d"),
        (true, "update core/configmaps ns one"),
        (false, "update core/configmaps ns three"),
        (false, "list core/configmaps ns"),
        (true, "list core/configmaps ns two"),
        (true, "create batch/jobs ns"),
        (true, "create batch/jobs/anything ns"),
        (false, "delete batch/jobs ns j"),
    ];
    for (allowed, question) in cases {
        assert_eq!(tables.authorize(&jane(), &asks(question)).allowed, allowed, "{question}");
    }
    for stranger in
        [Identity::internal("john", &["devs"]), Identity::internal("devs", &["jane"]), Identity::anonymous()]
    {
        assert!(!tables.authorize(&stranger, &asks("get core/pods ns p")).allowed, "{stranger:?}");
    }
}

#[test]
fn paths_need_a_cluster_role_and_a_cluster_binding() {
    let rules = json!([{ "verbs": ["get"], "nonResourceURLs": ["/metrics", "/healthz/*"] }]);
    let role = role("ClusterRole", "", "paths", rules);
    let cluster = tables(&[role.clone(), binding("", "b", ("ClusterRole", "paths"), user("jane"))]);
    let cases = [
        (true, "get /metrics"),
        (false, "post /metrics"),
        (false, "get /metrics/slis"),
        (true, "get /healthz/etcd"),
        (false, "get /healthz"),
    ];
    for (allowed, question) in cases {
        assert_eq!(cluster.authorize(&jane(), &asks(question)).allowed, allowed, "{question}");
    }
    let namespaced = tables(&[role, binding("ns", "b", ("ClusterRole", "paths"), user("jane"))]);
    assert!(!namespaced.authorize(&jane(), &asks("get /metrics")).allowed);
}

#[test]
fn a_role_binding_to_a_cluster_role_grants_in_its_namespace_only() {
    let rules = json!([{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }]);
    let objects =
        [role("ClusterRole", "", "all", rules), binding("ns", "b", ("ClusterRole", "all"), user("jane"))];
    let tables = tables(&objects);
    assert!(tables.authorize(&jane(), &asks("delete core/secrets ns s")).allowed);
    for question in ["delete core/secrets other s", "list core/secrets -", "get core/nodes - n"] {
        assert!(!tables.authorize(&jane(), &asks(question)).allowed, "{question}");
    }
}

#[test]
fn subjects_are_users_groups_and_service_accounts_each_by_their_own_name() {
    let rules = json!([{ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"] }]);
    let subjects = json!([
        { "kind": "Group", "name": "devs" },
        { "kind": "ServiceAccount", "name": "robot", "namespace": "other" },
        { "kind": "ServiceAccount", "name": "here" },
        { "kind": "Something", "name": "jane" },
    ]);
    let tables = tables(&[role("Role", "ns", "r", rules), binding("ns", "b", ("Role", "r"), subjects)]);
    let cases = [
        (true, Identity::internal("anyone", &["devs"])),
        (false, Identity::internal("devs", &[])),
        (true, Identity::service_account("other", "robot", "u")),
        (false, Identity::service_account("ns", "robot", "u")),
        (true, Identity::service_account("ns", "here", "u")),
        (false, Identity::internal("jane", &[])),
    ];
    for (allowed, identity) in cases {
        assert_eq!(tables.authorize(&identity, &asks("get core/pods ns p")).allowed, allowed, "{identity:?}");
    }
}

#[test]
fn aggregated_roles_follow_their_parts() {
    let rule = |resource: &str| json!([{ "verbs": ["get"], "apiGroups": [""], "resources": [resource] }]);
    let mut whole = role("ClusterRole", "", "whole", json!([]));
    whole["aggregationRule"] = json!({ "clusterRoleSelectors": [{ "matchLabels": { "to": "whole" } }] });
    whole["metadata"]["labels"] = json!({ "to": "whole" });
    let mut part = role("ClusterRole", "", "part", rule("pods"));
    part["metadata"]["labels"] = json!({ "to": "whole" });
    let other = role("ClusterRole", "", "other", rule("secrets"));
    let mut empty = role("ClusterRole", "", "empty", json!([]));
    empty["aggregationRule"] = json!({ "clusterRoleSelectors": [{}] });
    let bound = binding("", "b", ("ClusterRole", "whole"), user("jane"));
    let careless = binding("", "c", ("ClusterRole", "empty"), user("john"));
    let mut tables = tables(&[whole, part.clone(), other, empty, bound, careless]);
    assert!(tables.authorize(&jane(), &asks("get core/pods ns p")).allowed);
    assert!(!tables.authorize(&jane(), &asks("get core/secrets ns p")).allowed);
    assert!(!tables.authorize(&Identity::internal("john", &[]), &asks("get core/secrets ns p")).allowed);
    let (kind, key) = key(&part);
    tables.remove(kind, &key);
    assert!(!tables.authorize(&jane(), &asks("get core/pods ns p")).allowed);
}

#[test]
fn removing_or_changing_a_binding_takes_effect() {
    let rules = json!([{ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"] }]);
    let role = role("Role", "ns", "r", rules);
    let bound = binding("ns", "b", ("Role", "r"), user("jane"));
    let second = binding("ns", "b2", ("Role", "r"), user("jane"));
    let mut tables = tables(&[role.clone(), bound.clone(), second.clone()]);
    let allowed = |tables: &Tables| tables.authorize(&jane(), &asks("get core/pods ns p")).allowed;
    let (kind, at) = key(&bound);
    tables.set(kind, &at, &binding("ns", "b", ("Role", "r"), user("john")));
    assert!(allowed(&tables), "the other binding still holds");
    let (kind, at) = key(&second);
    tables.remove(kind, &at);
    assert!(!allowed(&tables));
    tables.set(kind, &at, &second);
    assert!(allowed(&tables));
    let (kind, at) = key(&role);
    tables.remove(kind, &at);
    assert!(!allowed(&tables));
}

#[test]
fn nobody_grants_more_than_they_hold() {
    let held = json!([
        { "verbs": ["get", "list"], "apiGroups": ["", "apps"], "resources": ["pods", "deployments"] },
        { "verbs": ["update"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["one"] },
        { "verbs": ["get"], "nonResourceURLs": ["/logs/*"] },
    ]);
    let tables = tables(&[
        role("ClusterRole", "", "held", held),
        binding("", "b", ("ClusterRole", "held"), user("jane")),
    ]);
    let rule = |value: Value| vec![Rule::parse(&value)];
    let covered = [
        json!({ "verbs": ["list"], "apiGroups": ["apps"], "resources": ["deployments"] }),
        json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["p"] }),
        json!({ "verbs": ["update"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["one"] }),
        json!({ "verbs": ["get"], "nonResourceURLs": ["/logs/a", "/logs/b/*"] }),
    ];
    for rules in covered {
        assert_eq!(tables.covers(&jane(), "", &rule(rules.clone())), Ok(()), "{rules}");
    }
    let missing = [
        json!({ "verbs": ["*"], "apiGroups": [""], "resources": ["pods"] }),
        json!({ "verbs": ["get"], "apiGroups": ["*"], "resources": ["pods"] }),
        json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["*"] }),
        json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["pods/log"] }),
        json!({ "verbs": ["get", "delete"], "apiGroups": [""], "resources": ["pods"] }),
        json!({ "verbs": ["update"], "apiGroups": [""], "resources": ["configmaps"] }),
        json!({ "verbs": ["update"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["one", "two"] }),
        json!({ "verbs": ["get"], "nonResourceURLs": ["*"] }),
        json!({ "verbs": ["get"], "nonResourceURLs": ["/logs"] }),
    ];
    for rules in missing {
        assert!(tables.covers(&jane(), "", &rule(rules.clone())).is_err(), "{rules}");
    }
    let wanted = rule(json!({ "verbs": ["get", "delete"], "apiGroups": [""], "resources": ["pods"] }));
    let text = tables.covers(&jane(), "", &wanted).unwrap_err();
    assert_eq!(
        text,
        "user \"jane\" (groups=[\"devs\" \"system:authenticated\"]) is attempting to grant RBAC permissions not \
         currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}"
    );
}

async fn cache() -> (Arc<Cache>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path().join("store.redb")).unwrap();
    (Cache::start(Arc::new(store)).await.unwrap(), folder)
}

#[tokio::test]
async fn a_binding_counts_for_the_request_after_its_write() {
    let (cache, _folder) = cache().await;
    let authorizer = Authorizer::new(&cache);
    let question = asks("get core/pods ns p");
    assert!(!authorizer.authorize(&jane(), &question).allowed);
    let rules = json!([{ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"] }]);
    for object in [role("Role", "ns", "r", rules), binding("ns", "b", ("Role", "r"), user("jane"))] {
        cache.create(&key(&object).1, object).await.unwrap();
    }
    let decision = authorizer.authorize(&jane(), &question);
    assert_eq!(
        decision,
        Decision::allow("RBAC: allowed by RoleBinding \"b/ns\" of Role \"r\" to User \"jane\"")
    );
    assert_eq!(authorizer.rules_for(&jane(), "ns").len(), 1);
    assert!(authorizer.rules_for(&jane(), "other").is_empty());
    let at = keys::object_key(GROUP, "rolebindings", Some("ns"), "b");
    cache.delete(&at, cache.get(&at).unwrap().revision()).await.unwrap();
    assert!(!authorizer.authorize(&jane(), &question).allowed);
}

#[tokio::test]
async fn roles_and_bindings_are_written_by_those_who_hold_escalate_or_bind_or_the_rights() {
    let (cache, _folder) = cache().await;
    let authorizer = Authorizer::new(&cache);
    let rules = |verbs: &[&str], group: &str, resource: &str| json!([{ "verbs": verbs, "apiGroups": [group], "resources": [resource] }]);
    let objects = [
        role("ClusterRole", "", "reader", rules(&["get"], "", "pods")),
        role("ClusterRole", "", "writer", rules(&["delete"], "", "pods")),
        role("ClusterRole", "", "binder", rules(&["bind"], GROUP, "clusterroles")),
        role("ClusterRole", "", "escalator", rules(&["escalate"], GROUP, "roles")),
        binding("ns", "jane", ("ClusterRole", "reader"), user("jane")),
        binding("ns", "bob", ("ClusterRole", "binder"), user("bob")),
        binding("ns", "eve", ("ClusterRole", "escalator"), user("eve")),
    ];
    for object in &objects {
        cache.create(&key(object).1, object.clone()).await.unwrap();
    }
    let person = |name: &str| Identity::internal(name, &[]);
    let get = role("Role", "ns", "x", rules(&["get"], "", "pods"));
    let delete = role("Role", "ns", "x", rules(&["delete"], "", "pods"));
    assert_eq!(authorizer.check_role_write(&person("jane"), "ns", "", &get, None), Ok(()));
    assert!(authorizer.check_role_write(&person("jane"), "ns", "", &delete, None).is_err());
    assert!(authorizer.check_role_write(&person("jane"), "", "", &get, None).is_err(), "held in ns only");
    assert_eq!(authorizer.check_role_write(&person("eve"), "ns", "", &delete, None), Ok(()));
    assert!(authorizer.check_role_write(&person("eve"), "other", "", &delete, None).is_err());
    let mut aggregated = role("ClusterRole", "", "a", json!([]));
    aggregated["aggregationRule"] = json!({ "clusterRoleSelectors": [{ "matchLabels": { "a": "b" } }] });
    let refused = authorizer.check_role_write(&person("jane"), "", "", &aggregated, None);
    assert_eq!(refused, Err("must have cluster-admin privileges to use the aggregationRule".to_owned()));
    let plain = role("ClusterRole", "", "a", json!([]));
    assert_eq!(authorizer.check_role_write(&person("jane"), "", "a", &plain, None), Ok(()));
    let loosened = authorizer.check_role_write(&person("jane"), "", "a", &plain, Some(&aggregated));
    assert!(loosened.is_err(), "what was aggregated stays the business of administrators");
    let bind = |role: &str| binding("ns", "new", ("ClusterRole", role), user("mallory"));
    assert_eq!(authorizer.check_binding_write(&person("jane"), "ns", &bind("reader")), Ok(()));
    assert!(authorizer.check_binding_write(&person("jane"), "ns", &bind("writer")).is_err());
    let missing = authorizer.check_binding_write(&person("jane"), "ns", &bind("absent")).unwrap_err();
    assert_eq!(
        (missing.code, missing.message.as_str()),
        (404, "clusterroles.rbac.authorization.k8s.io \"absent\" not found")
    );
    assert_eq!(authorizer.check_binding_write(&person("bob"), "ns", &bind("writer")), Ok(()));
    assert!(authorizer.check_binding_write(&person("bob"), "other", &bind("writer")).is_err());
    let root =
        Identity { groups: vec![GROUP_MASTERS.to_owned(), GROUP_AUTHENTICATED.to_owned()], ..person("root") };
    assert_eq!(authorizer.check_role_write(&root, "", "", &aggregated, None), Ok(()));
    assert_eq!(authorizer.check_binding_write(&root, "", &bind("absent")), Ok(()));
    assert!(authorizer.authorize(&root, &asks("delete core/nodes - n")).allowed);
    assert_eq!(authorizer.rules_for(&root, "ns").len(), 2);
}
