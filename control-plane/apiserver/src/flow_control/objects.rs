//! The FlowSchemas and priority levels that every cluster begins with. Two of each are mandatory and always as they are
//! here; the others are brought up to date unless their annotation says `false`.

use serde_json::{Value, json};

pub(crate) const GROUP: &str = "flowcontrol.apiserver.k8s.io";
pub(super) const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
pub(crate) const EXEMPT: &str = "exempt";
pub(crate) const CATCH_ALL: &str = "catch-all";

/// Name, shares, lendable percent, and queues with hand size.
const LEVELS: [(&str, u32, u32, (u32, u32)); 6] = [
    ("system", 30, 33, (64, 6)),
    ("node-high", 40, 25, (64, 6)),
    ("leader-election", 10, 0, (16, 4)),
    ("workload-high", 40, 50, (128, 6)),
    ("workload-low", 100, 90, (128, 6)),
    ("global-default", 20, 50, (128, 6)),
];

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": kind,
        "metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}},
        "spec": spec,
    })
}

/// All of them, levels before the schemas that name them.
pub(crate) fn bootstrap() -> Vec<Value> {
    let mut objects = Vec::new();
    for name in [EXEMPT, CATCH_ALL] {
        objects.extend(mandatory_level(name).map(|spec| object("PriorityLevelConfiguration", name, spec)));
    }
    for (name, shares, lendable, (queues, hand)) in LEVELS {
        let queuing = json!({"queues": queues, "handSize": hand, "queueLengthLimit": 50});
        let limited = json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable,
            "limitResponse": {"type": "Queue", "queuing": queuing}});
        let spec = json!({"type": "Limited", "limited": limited});
        objects.push(object("PriorityLevelConfiguration", name, spec));
    }
    for name in [EXEMPT, CATCH_ALL] {
        objects.extend(mandatory_schema(name).map(|spec| object("FlowSchema", name, spec)));
    }
    objects.extend(suggested_schemas());
    objects
}

/// The spec that a level of this name must have.
pub(crate) fn mandatory_level(name: &str) -> Option<Value> {
    match name {
        EXEMPT => Some(json!({"type": "Exempt",
            "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}})),
        CATCH_ALL => Some(json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 5,
            "lendablePercent": 0, "limitResponse": {"type": "Reject"}}})),
        _ => None,
    }
}

/// The spec that a schema of this name must have.
pub(crate) fn mandatory_schema(name: &str) -> Option<Value> {
    match name {
        EXEMPT => Some(schema_spec(EXEMPT, 1, "", groups(&["system:masters"]), everything())),
        CATCH_ALL => Some(schema_spec(CATCH_ALL, 10000, "ByUser", everybody(), everything())),
        _ => None,
    }
}

fn schema_spec(level: &str, precedence: u32, method: &str, subjects: Value, mut rules: Value) -> Value {
    rules["subjects"] = subjects;
    let mut spec = json!({
        "priorityLevelConfiguration": {"name": level},
        "matchingPrecedence": precedence,
        "rules": [rules],
    });
    if !method.is_empty() {
        spec["distinguisherMethod"] = json!({"type": method});
    }
    spec
}

fn groups(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"kind": "Group", "group": {"name": name}})).collect()
}

fn everybody() -> Value {
    groups(&["system:unauthenticated", "system:authenticated"])
}

fn user(name: &str) -> Value {
    json!([{"kind": "User", "user": {"name": name}}])
}

fn system_accounts() -> Value {
    json!([{"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "kube-system"}}])
}

fn resources(verbs: &[&str], groups: &[&str], resources: &[&str], cluster_scope: bool) -> Value {
    let mut rule = json!({"verbs": verbs, "apiGroups": groups, "resources": resources, "namespaces": ["*"]});
    if cluster_scope {
        rule["clusterScope"] = json!(true);
    }
    rule
}

fn everything() -> Value {
    json!({
        "resourceRules": [resources(&["*"], &["*"], &["*"], true)],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    })
}

fn suggested_schemas() -> Vec<Value> {
    let leases = resources(&["get", "create", "update"], &["coordination.k8s.io"], &["leases"], false);
    let mut electors = user("system:kube-controller-manager");
    for more in [user("system:kube-scheduler"), system_accounts()] {
        if let (Some(electors), Value::Array(more)) = (electors.as_array_mut(), more) {
            electors.extend(more);
        }
    }
    let node_rules = json!({"resourceRules": [
        resources(&["*"], &[""], &["nodes", "nodes/status"], true),
        resources(&["*"], &["coordination.k8s.io"], &["leases"], false),
    ]});
    let probes = json!({"nonResourceRules": [
        {"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]});
    let nodes = || groups(&["system:nodes"]);
    let table = [
        ("system-nodes", "system", 500, "ByUser", nodes(), everything()),
        ("system-node-high", "node-high", 400, "ByUser", nodes(), node_rules),
        ("probes", EXEMPT, 2, "", everybody(), probes),
        (
            "system-leader-election",
            "leader-election",
            100,
            "ByUser",
            electors,
            json!({"resourceRules": [leases]}),
        ),
        (
            "kube-controller-manager",
            "workload-high",
            800,
            "ByNamespace",
            user("system:kube-controller-manager"),
            everything(),
        ),
        ("kube-scheduler", "workload-high", 800, "ByNamespace", user("system:kube-scheduler"), everything()),
        (
            "kube-system-service-accounts",
            "workload-high",
            900,
            "ByNamespace",
            system_accounts(),
            everything(),
        ),
        (
            "service-accounts",
            "workload-low",
            9000,
            "ByUser",
            groups(&["system:serviceaccounts"]),
            everything(),
        ),
        ("global-default", "global-default", 9900, "ByUser", everybody(), everything()),
    ];
    table
        .into_iter()
        .map(|(name, level, precedence, method, subjects, rules)| {
            object("FlowSchema", name, schema_spec(level, precedence, method, subjects, rules))
        })
        .collect()
}

/// The stored object as it should be; unchanged where it is its owner's.
pub(crate) fn reconciled(old: &Value, wanted: &Value) -> Value {
    let name = api::meta::name(wanted);
    let is_mandatory = [EXEMPT, CATCH_ALL].contains(&name);
    let updates = match api::meta::annotation(old, AUTO_UPDATE) {
        Some("true") => true,
        Some(_) => false,
        // Nobody has touched it since it was made.
        None => old["metadata"]["generation"] == 1,
    };
    let mut new = old.clone();
    if is_mandatory || updates {
        new["metadata"]["annotations"][AUTO_UPDATE] = json!("true");
        let keeps_exempt = name == EXEMPT && api::meta::kind(wanted) == "PriorityLevelConfiguration";
        if !keeps_exempt {
            new["spec"] = wanted["spec"].clone();
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggested_objects_follow_the_annotation() {
        let wanted = object("FlowSchema", "probes", json!({"matchingPrecedence": 2}));
        let stored = |annotation: Value, generation: i64| {
            json!({"metadata": {"name": "probes", "generation": generation,
                "annotations": {AUTO_UPDATE: annotation}}, "spec": {"matchingPrecedence": 7}})
        };
        let precedence = |old: &Value| reconciled(old, &wanted)["spec"]["matchingPrecedence"].clone();
        assert_eq!(precedence(&stored(json!("true"), 5)), 2);
        assert_eq!(precedence(&stored(json!("false"), 1)), 7);
        assert_eq!(precedence(&json!({"metadata": {"generation": 1}, "spec": {"matchingPrecedence": 7}})), 2);
        assert_eq!(precedence(&json!({"metadata": {"generation": 2}, "spec": {"matchingPrecedence": 7}})), 7);
    }
}
