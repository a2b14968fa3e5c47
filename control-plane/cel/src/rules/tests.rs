use serde_json::json;

use super::*;

fn schema() -> Json {
    json!({
        "type": "object",
        "properties": {"spec": {
            "type": "object",
            "x-kubernetes-validations": [
                {"rule": "self.minReplicas <= self.replicas", "message": "replicas too small", "fieldPath": ".replicas"},
                {"rule": "self.replicas == oldSelf.replicas || self.replicas < 5",
                 "messageExpression": "oldSelf.replicas > 2 ? 'was more than two' : 'was few'"},
            ],
            "properties": {
                "replicas": {"type": "integer"},
                "minReplicas": {"type": "integer"},
                "name": {"type": "string", "maxLength": 10,
                         "x-kubernetes-validations": [{"rule": "self == oldSelf", "reason": "FieldValueForbidden"}]},
                "items": {"type": "array", "maxItems": 10, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["key"],
                    "items": {"type": "object", "required": ["key"], "properties": {
                        "key": {"type": "string", "maxLength": 5},
                        "at": {"type": "string", "format": "date-time"}},
                        "x-kubernetes-validations": [{"rule": "!has(oldSelf.at) || self.at >= oldSelf.at"}]}},
            }
        }}
    })
}

fn errors(rules: &Rules, object: &Json, old: Option<&Json>) -> Vec<String> {
    let findings = rules.validate(object, old, &mut Budget::default());
    findings.errors.iter().map(ToString::to_string).collect()
}

#[test]
fn rules_judge_objects_and_their_changes() {
    let rules = Rules::compile(&schema());
    assert_eq!(rules.problems("schema"), Vec::new());
    let good = json!({"spec": {"replicas": 3, "minReplicas": 1, "name": "a", "items": [{"key": "x", "at": "2020-01-01T00:00:00Z"}]}});
    assert_eq!(errors(&rules, &good, None), Vec::<String>::new());
    let bad = json!({"spec": {"replicas": 9, "minReplicas": 10, "name": "b", "items": [{"key": "x", "at": "2019-01-01T00:00:00Z"}]}});
    assert_eq!(
        errors(&rules, &bad, Some(&good)),
        [
            "spec.replicas: Invalid value: replicas too small",
            "spec: Invalid value: was more than two",
            "spec.items[0]: Invalid value: failed rule: !has(oldSelf.at) || self.at >= oldSelf.at",
            "spec.name: Forbidden: failed rule: self == oldSelf",
        ]
    );
}

#[test]
fn what_did_not_change_only_warns() {
    let rules = Rules::compile(&json!({"type": "object", "properties": {
        "a": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 5"}]}, "b": {"type": "integer"}}}));
    let (old, new) = (json!({"a": 1, "b": 1}), json!({"a": 1, "b": 2}));
    let findings = rules.validate(&new, Some(&old), &mut Budget::default());
    assert_eq!(findings.errors, Vec::new());
    assert_eq!(findings.warnings[0].to_string(), "a: Invalid value: 1: failed rule: self > 5");
    assert_eq!(errors(&rules, &new, None), ["a: Invalid value: 1: failed rule: self > 5"]);
}

#[test]
fn problems_name_what_does_not_compile_and_what_costs_too_much() {
    let rules = Rules::compile(&json!({"type": "object", "properties": {
        "bad": {"type": "integer", "x-kubernetes-validations": [{"rule": "self.x > 1"}]},
        "text": {"type": "integer", "x-kubernetes-validations": [{"rule": "'a'"}]},
        "list": {"type": "array", "items": {"type": "array", "items": {"type": "string"}},
                 "x-kubernetes-validations": [{"rule": "self.all(x, x.all(y, y.contains('abc')))"}]},
        "cheap": {"type": "array", "maxItems": 5, "items": {"type": "string", "maxLength": 5},
                 "x-kubernetes-validations": [{"rule": "self.all(x, x.contains('abc'))"}]},
    }}));
    let problems: Vec<String> = rules.problems("schema").iter().map(ToString::to_string).collect();
    assert!(problems.iter().any(|text| text.starts_with("schema.properties[bad].x-kubernetes-validations[0].rule: Invalid value: {")
        && text.ends_with("compilation failed: ERROR: <input>:1:5: type 'int' does not support field selection\n | self.x > 1\n | ....^")), "{problems:?}");
    assert!(
        problems.iter().any(|text| text.ends_with("cel expression must evaluate to a bool")),
        "{problems:?}"
    );
    assert!(problems.contains(&"schema.properties[list].x-kubernetes-validations[0].rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)".to_owned()), "{problems:?}");
    assert!(!problems.iter().any(|text| text.contains("cheap")), "{problems:?}");
}
