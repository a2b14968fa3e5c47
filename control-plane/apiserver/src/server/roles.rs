//! What becomes of a bootstrap role or binding that was changed: it gets back what was taken from it, and keeps what was
//! added. Pure.

use api::meta;
use serde_json::{Map, Value, json};

use crate::{
    registry::fields::{entries, is_zero, items, same},
    security::rbac::Rule,
};

/// Objects with this annotation set to `false` are left as they are.
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

fn is_left_alone(old: &Value) -> bool {
    meta::annotation(old, AUTOUPDATE) == Some("false")
}

/// Whether a binding points to another role than it should.
pub(super) fn points_elsewhere(old: &Value, wanted: &Value) -> bool {
    !wanted["roleRef"].is_null() && !is_left_alone(old) && !same(&old["roleRef"], &wanted["roleRef"])
}

/// The object as it should be stored; as it is where nothing is missing.
pub(super) fn reconciled(old: &Value, wanted: &Value) -> Value {
    let mut new = old.clone();
    if is_left_alone(old) {
        return new;
    }
    for map in ["annotations", "labels"] {
        let mut merged: Map<String, Value> = entries(&wanted["metadata"], &format!("/{map}")).clone();
        merged.extend(entries(&old["metadata"], &format!("/{map}")).clone());
        if !merged.is_empty() {
            new["metadata"][map] = Value::Object(merged);
        }
    }
    if wanted["roleRef"].is_null() {
        // A controller writes the rules of a role that is made of others.
        if is_zero(&wanted["aggregationRule"]) {
            add_rules(&mut new, old, wanted);
        }
        add_selectors(&mut new, old, wanted);
    } else {
        add(&mut new["subjects"], missing(items(old, "/subjects"), items(wanted, "/subjects")));
    }
    new
}

fn missing(have: &[Value], wanted: &[Value]) -> Vec<Value> {
    wanted.iter().filter(|item| !have.iter().any(|known| same(known, item))).cloned().collect()
}

fn add(list: &mut Value, more: Vec<Value>) {
    if more.is_empty() {
        return;
    }
    match list.as_array_mut() {
        Some(items) => items.extend(more),
        None => *list = Value::from(more),
    }
}

/// Adds the parts of the wanted rules that no rule covers.
fn add_rules(new: &mut Value, old: &Value, wanted: &Value) {
    let have = Rule::parse_all(old);
    let atoms = Rule::parse_all(wanted).into_iter().flat_map(|rule| rule.atoms());
    let missing: Vec<Value> =
        atoms.filter(|atom| !have.iter().any(|rule| rule.covers(atom))).map(|atom| atom.to_value()).collect();
    add(&mut new["rules"], missing);
}

fn add_selectors(new: &mut Value, old: &Value, wanted: &Value) {
    if is_zero(&wanted["aggregationRule"]) {
        if let Some(fields) = new.as_object_mut() {
            fields.remove("aggregationRule");
        }
        return;
    }
    let selectors = "/aggregationRule/clusterRoleSelectors";
    let missing = missing(items(old, selectors), items(wanted, selectors));
    if missing.is_empty() {
        return;
    }
    if !new["aggregationRule"].is_object() {
        new["aggregationRule"] = json!({});
    }
    add(&mut new["aggregationRule"]["clusterRoleSelectors"], missing);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str]) -> Value {
        json!({"apiGroups": [""], "resources": ["pods"], "verbs": verbs})
    }

    #[test]
    fn a_role_gets_back_the_rules_that_were_taken_from_it() {
        let wanted = json!({"kind": "ClusterRole", "metadata": {"labels": {"a": "b", "c": "d"}},
            "rules": [rule(&["get", "list"])]});
        let old = json!({"kind": "ClusterRole", "metadata": {"labels": {"a": "own"}},
            "rules": [rule(&["list"]), rule(&["own"])]});
        let new = reconciled(&old, &wanted);
        assert_eq!(new["rules"], json!([rule(&["list"]), rule(&["own"]), rule(&["get"])]));
        assert_eq!(new["metadata"]["labels"], json!({"a": "own", "c": "d"}));
        assert_eq!(reconciled(&new, &wanted), new, "a second time changes nothing");
        let wide = json!({"metadata": {"labels": {"a": "b", "c": "d"}}, "rules": [rule(&["*"])]});
        assert_eq!(reconciled(&wide, &wanted), wide, "what a wider rule covers is not missing");
    }

    #[test]
    fn what_opted_out_is_left_alone() {
        let old = json!({"metadata": {"annotations": {AUTOUPDATE: "false"}}, "rules": [],
            "roleRef": {"name": "mine"}});
        assert_eq!(reconciled(&old, &json!({"rules": [rule(&["get"])]})), old);
        assert!(!points_elsewhere(&old, &json!({"roleRef": {"name": "theirs"}})));
    }

    #[test]
    fn selectors_come_back_and_go() {
        let selector = |label: &str| json!({"matchLabels": {label: "true"}});
        let wanted = json!({"aggregationRule": {"clusterRoleSelectors": [selector("a")]}});
        let old = json!({"aggregationRule": {"clusterRoleSelectors": [selector("own")]}});
        let new = reconciled(&old, &wanted);
        assert_eq!(new["aggregationRule"]["clusterRoleSelectors"], json!([selector("own"), selector("a")]));
        assert!(reconciled(&old, &json!({"rules": []})).get("aggregationRule").is_none());
    }

    #[test]
    fn a_binding_gets_back_its_subjects() {
        let subject = |name: &str| json!({"kind": "Group", "name": name});
        let wanted = json!({"roleRef": {"name": "r"}, "subjects": [subject("a")]});
        let old = json!({"roleRef": {"name": "r"}, "subjects": [subject("b")]});
        assert_eq!(reconciled(&old, &wanted)["subjects"], json!([subject("b"), subject("a")]));
        assert!(points_elsewhere(&json!({"roleRef": {"name": "x"}}), &wanted));
        assert!(!points_elsewhere(&old, &wanted));
    }
}
