use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn set(text: &str) -> FieldSet {
    FieldSet::decode(&serde_json::from_str(text).unwrap()).unwrap()
}

#[test]
fn members_with_children_say_so_with_a_dot() {
    let text = r#"{"f:a":{".":{},"f:b":{},"k:{\"name\":\"x\"}":{".":{},"f:name":{}}},"f:c":{"v:1":{}}}"#;
    let decoded = set(text);
    assert_eq!(decoded.to_json(), text);
    assert_eq!(decoded.encode().to_string(), text);
    assert_eq!(decoded.to_string(), ".a\n.a.b\n.a[name=\"x\"]\n.a[name=\"x\"].name\n.c[=1]");
    assert_eq!(decoded.len(), 5);
}

#[test]
fn text_is_in_the_order_of_elements_and_numbers_by_amount() {
    let text = r#"{"f:ports":{"k:{\"port\":80}":{},"k:{\"port\":443}":{},"v:2":{},"v:10":{},"i:3":{}}}"#;
    let jumbled = r#"{"f:ports":{"i:3":{},"v:10":{},"k:{\"port\":443}":{},"v:2":{},"k:{\"port\":80}":{}}}"#;
    assert_eq!(set(jumbled).to_json(), text);
}

#[test]
fn unknown_kinds_of_steps_vanish_and_foreign_forms_are_refused() {
    assert_eq!(set(r#"{"f:a":{},"x:new":{"f:b":{}}}"#).to_json(), r#"{"f:a":{}}"#);
    for text in [r#"[]"#, "3", "null", r#"{"f:a":3}"#, r#"{"f:a":null}"#, r#"{"a":{}}"#, r#"{"k:[":{}}"#] {
        assert!(FieldSet::decode(&serde_json::from_str(text).unwrap()).is_err(), "{text}");
    }
    let mut deep = json!({});
    for _ in 0..200 {
        deep = json!({"f:a": deep});
    }
    assert!(FieldSet::decode(&deep).is_err());
}

#[test]
fn a_difference_keeps_children_of_removed_parents_and_a_recursive_one_does_not() {
    let fields = set(r#"{"f:a":{".":{},"f:b":{".":{},"f:c":{}}},"f:d":{}}"#);
    let parent = set(r#"{"f:a":{"f:b":{}}}"#);
    assert_eq!(fields.difference(&parent).to_json(), r#"{"f:a":{".":{},"f:b":{"f:c":{}}},"f:d":{}}"#);
    assert_eq!(fields.recursive_difference(&parent).to_json(), r#"{"f:a":{},"f:d":{}}"#);
    assert_eq!(parent.difference(&fields).to_json(), "{}");
}

#[test]
fn leaves_are_members_without_members_below() {
    let fields = set(r#"{"f:a":{".":{},"f:b":{".":{},"f:c":{}}},"f:d":{}}"#);
    assert_eq!(fields.leaves().to_json(), r#"{"f:a":{"f:b":{"f:c":{}}},"f:d":{}}"#);
}

#[test]
fn paths_can_be_taken_out_and_kept_by_prefix() {
    let mut fields = set(
        r#"{"f:metadata":{".":{},"f:name":{}},"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{".":{},"f:image":{},"f:resources":{"f:limits":{}}}}},"f:status":{".":{},"f:x":{}}}"#,
    );
    let kept = fields.keep_prefixes(&[&["spec", "containers", "*", "resources"]]);
    assert_eq!(
        kept.to_json(),
        r#"{"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{".":{},"f:resources":{"f:limits":{}}}}}}"#
    );
    fields.remove_below(&["status"]);
    fields.remove_below(&["spec", "containers"]);
    fields.remove_member(&["metadata"]);
    assert_eq!(fields.to_json(), r#"{"f:metadata":{"f:name":{}}}"#);
    fields.remove_member(&["metadata", "name"]);
    assert!(fields.is_empty());
}

fn elements() -> impl Strategy<Value = PathElement> {
    prop_oneof![
        "[a-c]".prop_map(|name| PathElement::field(&name)),
        (0..3i64).prop_map(|port| PathElement::key(vec![("port".into(), json!(port))])),
        "[xy]".prop_map(|value| PathElement::Value(json!(value))),
        (0..2i64).prop_map(PathElement::Index),
    ]
}

fn sets() -> impl Strategy<Value = FieldSet> {
    prop::collection::vec(prop::collection::vec(elements(), 1..4), 0..12).prop_map(FieldSet::of)
}

fn paths(set: &FieldSet) -> BTreeSet<Vec<PathElement>> {
    set.paths().into_iter().collect()
}

fn is_below(path: &[PathElement], set: &BTreeSet<Vec<PathElement>>) -> bool {
    (1..=path.len()).any(|end| set.contains(&path[..end]))
}

proptest! {
    #[test]
    fn the_algebra_is_that_of_sets_of_paths(a in sets(), b in sets()) {
        let (left, right) = (paths(&a), paths(&b));
        prop_assert_eq!(paths(&a.union(&b)), left.union(&right).cloned().collect::<BTreeSet<_>>());
        prop_assert_eq!(paths(&a.intersection(&b)), left.intersection(&right).cloned().collect::<BTreeSet<_>>());
        prop_assert_eq!(paths(&a.difference(&b)), left.difference(&right).cloned().collect::<BTreeSet<_>>());
        let kept: BTreeSet<_> = left.iter().filter(|path| !is_below(path, &right)).cloned().collect();
        prop_assert_eq!(paths(&a.recursive_difference(&b)), kept);
        prop_assert_eq!(a.is_subset(&b), left.is_subset(&right));
        prop_assert_eq!(a.len(), left.len());
        prop_assert!(a.intersection(&b).union(&a.difference(&b)) == a);
    }

    #[test]
    fn a_set_survives_both_encodings(a in sets()) {
        prop_assert_eq!(&FieldSet::decode(&a.encode()).unwrap(), &a);
        prop_assert_eq!(&set(&a.to_json()), &a);
    }

    #[test]
    fn questions_to_the_encoded_form_are_answered_as_by_the_set(a in sets(), b in sets()) {
        let encoded = b.encode();
        let encoded = encoded.as_object().unwrap();
        prop_assert_eq!(a.touches_encoded(encoded), !a.intersection(&b).is_empty());
        prop_assert_eq!(a.is_subset_encoded(encoded), a.is_subset(&b));
    }

    #[test]
    fn decoding_never_panics(text in r#"\{"[fkvix.]:?[a-z{}\[\]":0-9]{0,8}":\{\}\}"#) {
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            let _outcome = FieldSet::decode(&value);
        }
    }
}
