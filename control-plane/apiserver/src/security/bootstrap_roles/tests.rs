use std::collections::BTreeSet;

use super::*;
use crate::{
    security::{
        Attributes, Identity,
        rbac::{Kind, Tables},
    },
    storage::keys,
};

fn tables() -> Tables {
    let mut tables = Tables::default();
    for object in bootstrap_roles() {
        let kind = match object["kind"].as_str().unwrap() {
            "ClusterRole" => Kind::ClusterRole,
            "Role" => Kind::Role,
            "ClusterRoleBinding" => Kind::ClusterRoleBinding,
            "RoleBinding" => Kind::RoleBinding,
            other => panic!("{other}"),
        };
        let metadata = &object["metadata"];
        let name = metadata["name"].as_str().unwrap();
        let key = keys::object_key(GROUP, kind.plural(), metadata["namespace"].as_str(), name);
        tables.set(kind, &key, &object);
    }
    tables
}

/// `verb group/resource[/subresource] namespace` or `verb /path`.
fn asks(question: &str) -> Attributes {
    let (verb, rest) = question.split_once(' ').unwrap();
    let mut attributes = Attributes { verb: verb.to_owned(), ..Attributes::default() };
    if rest.starts_with('/') {
        attributes.path = rest.to_owned();
        return attributes;
    }
    let (resource, namespace) = rest.split_once(' ').unwrap_or((rest, ""));
    let mut parts = resource.split('/');
    let group = parts.next().unwrap();
    attributes.group = if group == "core" { "" } else { group }.to_owned();
    attributes.resource = parts.next().unwrap().to_owned();
    attributes.subresource = parts.next().unwrap_or_default().to_owned();
    attributes.namespace = namespace.to_owned();
    attributes.is_resource = true;
    attributes
}

fn allowed(identity: &Identity, question: &str) -> bool {
    tables().authorize(identity, &asks(question)).allowed
}

#[test]
fn every_rule_of_the_tables_is_whole() {
    for role in cluster::ROLES.iter().chain(controllers::ROLES) {
        for line in role.rules {
            let rule = parse_rule(line);
            assert!(!rule.verbs.is_empty(), "{}: {line}", role.name);
            let paths = rule.non_resource_urls.iter().all(|url| url.starts_with('/') || url == "*");
            assert!(paths, "{}: {line}", role.name);
            assert_eq!(rule.resources.is_empty(), rule.is_for_paths(), "{}: {line}", role.name);
            assert_eq!(rule.resources.is_empty(), rule.api_groups.is_empty(), "{}: {line}", role.name);
        }
    }
}

#[test]
fn every_binding_names_a_role_that_is_there_and_no_name_is_used_twice() {
    let objects = bootstrap_roles();
    let name = |object: &Value| {
        let metadata = &object["metadata"];
        format!("{} {} {}", object["kind"], metadata["namespace"], metadata["name"])
    };
    let names: BTreeSet<_> = objects.iter().map(name).collect();
    assert_eq!(names.len(), objects.len());
    for object in objects.iter().filter(|object| object["roleRef"].is_object()) {
        let role = &object["roleRef"];
        let namespace = if role["kind"] == "Role" { &object["metadata"]["namespace"] } else { &Value::Null };
        assert!(names.contains(&format!("{} {namespace} {}", role["kind"], role["name"])), "{object}");
    }
}

#[test]
fn anonymous_sees_versions_and_health_and_nothing_else() {
    let anonymous = Identity::anonymous();
    for path in ["get /version", "get /healthz", "get /livez", "get /readyz"] {
        assert!(allowed(&anonymous, path), "{path}");
    }
    for question in
        ["get /api", "get /apis", "get /openapi/v2", "get /metrics", "get /healthz/etcd", "post /version"]
    {
        assert!(!allowed(&anonymous, question), "{question}");
    }
    assert!(!allowed(&anonymous, "list core/namespaces"));
    assert!(!allowed(&anonymous, "create authorization.k8s.io/selfsubjectaccessreviews"));
}

#[test]
fn a_user_without_bindings_discovers_and_asks_about_itself() {
    let user = Identity::internal("jane", &[]);
    for question in
        ["get /apis/apps", "get /openapi/v3", "create authorization.k8s.io/selfsubjectrulesreviews"]
    {
        assert!(allowed(&user, question), "{question}");
    }
    for question in [
        "list core/pods default",
        "get core/secrets default",
        "create authorization.k8s.io/subjectaccessreviews",
    ] {
        assert!(!allowed(&user, question), "{question}");
    }
}

#[test]
fn agents_read_the_network_and_keep_their_blocks_in_kube_system_only() {
    let agent = Identity::internal("system:node:n1", &["system:nodes"]);
    let may = [
        "watch core/services",
        "list discovery.k8s.io/endpointslices",
        "list core/nodes",
        "create core/configmaps kube-system",
        "patch core/configmaps kube-system",
        // Blocks are given back.
        "delete core/configmaps kube-system",
    ];
    for question in may {
        assert!(allowed(&agent, question), "{question}");
    }
    let may_not = [
        "get core/configmaps default",
        "get core/secrets kube-system",
        "delete core/configmaps default",
        "update core/services default",
        "patch core/nodes",
    ];
    for question in may_not {
        assert!(!allowed(&agent, question), "{question}");
    }
}

#[test]
fn controllers_hold_their_own_role_only() {
    let controller = Identity::service_account("kube-system", "replicaset-controller", "u");
    assert!(allowed(&controller, "create core/pods default"));
    assert!(!allowed(&controller, "create core/secrets default"));
    let stranger = Identity::service_account("default", "replicaset-controller", "u");
    assert!(!allowed(&stranger, "create core/pods default"));
}

#[test]
fn the_controllers_of_kube_system_reach_its_secrets_and_no_others() {
    let account = |name: &str| Identity::service_account("kube-system", name, "u");
    for (name, verb) in [("bootstrap-signer", "list"), ("token-cleaner", "delete")] {
        assert!(allowed(&account(name), &format!("{verb} core/secrets kube-system")), "{name}");
        assert!(!allowed(&account(name), &format!("{verb} core/secrets default")), "{name}");
    }
    assert!(allowed(&account("cloud-provider"), "create core/configmaps kube-system"));
    let evictor = account("device-taint-eviction-controller");
    for question in ["watch resource.k8s.io/resourceslices", "delete core/pods a", "patch core/pods/status a"]
    {
        assert!(allowed(&evictor, question), "{question}");
    }
    assert!(!allowed(&evictor, "create core/pods a"));
    assert!(!allowed(&evictor, "update resource.k8s.io/resourceclaims a"));
}

#[test]
fn admin_has_the_rules_of_edit_and_view_written_out() {
    let objects = bootstrap_roles();
    let role = |name: &str| objects.iter().find(|object| object["metadata"]["name"] == name).unwrap();
    let count = |name: &str| role(name)["rules"].as_array().unwrap().len();
    assert_eq!(count("view"), count("system:aggregate-to-view"));
    assert_eq!(count("edit"), count("system:aggregate-to-edit") + count("view"));
    assert_eq!(count("admin"), count("system:aggregate-to-admin") + count("edit"));
}
