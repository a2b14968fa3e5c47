use proptest::prelude::*;

use super::{
    super::{
        compare::compare,
        typed::{Typed, shape_of},
        walk::{self, extract, fields, merge},
    },
    *,
};

/// Pods as decoding leaves them, without empty lists and maps, with fields of every kind: scalars, maps, sets, keyed
/// lists, what is owned whole.
fn pods() -> impl Strategy<Value = Value> {
    let container = (
        "[a-c]",
        prop::option::of("[xy]"),
        prop::option::of(prop::collection::btree_map("[A-C]", "[12]", 0..3)),
        prop::collection::btree_set(1..4u8, 0..3),
    );
    (
        prop::option::of(prop::collection::btree_map("[k-m]", "[12]", 1..3)),
        prop::collection::btree_set("[f-h]", 0..3),
        prop::collection::vec(container, 1..3),
        prop::option::of(prop::collection::btree_map("[s-t]", "[12]", 1..2)),
        prop::option::of(any::<bool>()),
    )
        .prop_map(|(labels, finalizers, containers, node_selector, host_network)| {
            let mut pod = POD.object(json!({"spec": {}}));
            if let Some(labels) = labels {
                pod["metadata"]["labels"] = json!(labels);
            }
            if !finalizers.is_empty() {
                let finalizers: Vec<String> = finalizers.iter().map(|name| format!("x/{name}")).collect();
                pod["metadata"]["finalizers"] = json!(finalizers);
            }
            if let Some(selector) = node_selector {
                pod["spec"]["nodeSelector"] = json!(selector);
            }
            if let Some(host_network) = host_network {
                pod["spec"]["hostNetwork"] = json!(host_network);
            }
            let mut seen = std::collections::BTreeSet::new();
            let containers: Vec<Value> = containers
                .into_iter()
                .filter(|(name, ..)| seen.insert(name.clone()))
                .map(|(name, image, env, ports)| {
                    let mut container = json!({"name": name});
                    if let Some(image) = image {
                        container["image"] = json!(image);
                    }
                    if let Some(env) = env.filter(|env| !env.is_empty()) {
                        let env: Vec<Value> =
                            env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
                        container["env"] = json!(env);
                    }
                    if !ports.is_empty() {
                        let ports: Vec<Value> = ports
                            .iter()
                            .map(|port| json!({"containerPort": port, "protocol": "TCP"}))
                            .collect();
                        container["ports"] = json!(ports);
                    }
                    container
                })
                .collect();
            pod["spec"]["containers"] = json!(containers);
            pod
        })
}

fn without_owners(object: &Value) -> Value {
    let mut object = object.clone();
    object["metadata"].as_object_mut().unwrap().remove("managedFields");
    object
}

proptest! {
    #[test]
    fn applying_twice_is_applying_once(live in pods(), config in pods()) {
        let mut live = live;
        POD.by("creator", NOW).record(None, &mut live);
        let once = POD.by("a", NOW).apply(Some(&live), &config, true).unwrap();
        let twice = POD.by("a", LATER).apply(Some(&once), &config, false).unwrap();
        prop_assert_eq!(twice, once);
    }

    #[test]
    fn merging_sets_all_of_the_configuration(live in pods(), config in pods()) {
        let shape = shape_of(POD.ty());
        let typed = Typed::root(POD.schema(), &shape);
        let merged = merge(typed, Some(&live), Some(&config)).unwrap();
        let set = fields(typed, &config);
        prop_assert!(set.is_subset(&fields(typed, &merged)));
        prop_assert!(fields(typed, &live).is_subset(&fields(typed, &merged)));
        let taken = extract(typed, &merged, &set.leaves()).unwrap();
        let difference = compare(typed, &config, &taken).unwrap();
        prop_assert!(difference.modified.is_empty(), "{}", difference.modified);
        prop_assert_eq!(merge(typed, Some(&merged), Some(&config)), Some(merged.clone()));
    }

    #[test]
    fn comparing_tells_what_becomes_of_every_field(left in pods(), right in pods()) {
        let shape = shape_of(POD.ty());
        let typed = Typed::root(POD.schema(), &shape);
        let there = compare(typed, &left, &right).unwrap();
        let back = compare(typed, &right, &left).unwrap();
        prop_assert_eq!(&there.added, &back.removed);
        prop_assert_eq!(&there.modified, &back.modified);
        prop_assert!(compare(typed, &left, &left).unwrap().is_empty());
        let (had, has) = (fields(typed, &left), fields(typed, &right));
        prop_assert!(has.difference(&had).is_subset(&there.added));
        prop_assert!(had.difference(&has).is_subset(&there.removed));
    }

    #[test]
    fn what_is_removed_is_not_there_and_the_rest_is(pod in pods(), other in pods()) {
        let shape = shape_of(POD.ty());
        let typed = Typed::root(POD.schema(), &shape);
        let set = fields(typed, &other);
        let rest = fields(typed, &walk::remove(typed, pod.clone(), &set));
        let had = fields(typed, &pod);
        prop_assert!(rest.recursive_difference(&set) == rest.clone());
        prop_assert!(had.recursive_difference(&set).leaves().is_subset(&rest));
    }

    #[test]
    fn an_applier_that_applies_nothing_any_more_leaves_what_others_had(live in pods(), config in pods()) {
        let mut live = live;
        POD.by("creator", NOW).record(None, &mut live);
        let applied = match POD.by("a", NOW).apply(Some(&live), &config, false) {
            Ok(applied) => applied,
            Err(_) => return Ok(()),
        };
        let left = POD.by("a", NOW).apply(Some(&applied), &POD.object(json!({})), false).unwrap();
        let shape = shape_of(POD.ty());
        let typed = Typed::root(POD.schema(), &shape);
        let lost = compare(typed, &without_owners(&live), &without_owners(&left)).unwrap();
        prop_assert!(lost.removed.is_empty(), "{}", lost.removed);
        prop_assert!(lost.modified.is_empty(), "{}", lost.modified);
    }

    #[test]
    fn the_short_way_of_a_creation_finds_what_the_long_way_finds(pod in pods(), double in any::<bool>()) {
        let mut pod = pod;
        pod["status"] = json!({"phase": "Running"});
        if double {
            let first = pod["spec"]["containers"][0].clone();
            pod["spec"]["containers"].as_array_mut().unwrap().push(first);
        }
        let mut long = pod.clone();
        // An entry that cannot be read is ignored, but makes the way long.
        long["metadata"]["managedFields"] = json!([{"operation": "?"}]);
        POD.by("x", NOW).record(None, &mut pod);
        POD.by("x", NOW).record(None, &mut long);
        prop_assert_eq!(pod, long);
    }

    #[test]
    fn no_two_updates_own_the_same_field(first in pods(), second in pods(), third in pods()) {
        let mut live = first;
        POD.by("one", NOW).record(None, &mut live);
        for (manager, next) in [("two", second), ("three", third)] {
            let mut new = next;
            POD.by(manager, LATER).record(Some(&live), &mut new);
            live = new;
        }
        let entries = live["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        let sets: Vec<FieldSet> =
            entries.iter().map(|entry| FieldSet::decode(&entry["fieldsV1"]).unwrap()).collect();
        for (i, a) in sets.iter().enumerate() {
            for b in &sets[i + 1..] {
                prop_assert!(a.intersection(b).is_empty(), "{}", a.intersection(b));
            }
        }
    }
}

#[test]
fn unknown_objects_are_owned_field_by_field_and_their_lists_whole() {
    let shape = schema::Shape::Any;
    let typed = Typed::root(schema::builtin(), &shape);
    let value = json!({"a": {"b": [1, {"c": 2}], "d": null, "e": {}}, "f": "x"});
    assert_eq!(fields(typed, &value).to_json(), r#"{"f:a":{".":{},"f:b":{},"f:d":{},"f:e":{}},"f:f":{}}"#);
    let other = json!({"a": "scalar", "f": {"g": 1}});
    let difference = compare(typed, &value, &other).unwrap();
    assert_eq!(difference.modified.to_json(), r#"{"f:a":{},"f:f":{}}"#);
    assert_eq!(difference.removed.to_json(), r#"{"f:a":{"f:b":{},"f:d":{},"f:e":{}}}"#);
    assert_eq!(difference.added.to_json(), r#"{"f:f":{"f:g":{}}}"#);
    assert_eq!(merge(typed, Some(&value), Some(&other)), Some(json!({"a": "scalar", "f": {"g": 1}})));
    assert_eq!(
        merge(typed, Some(&json!({"a": {"b": 1}})), Some(&json!({"a": null}))),
        Some(json!({"a": {"b": 1}}))
    );
}

#[test]
fn lists_follow_the_order_of_the_configuration_with_others_in_their_places() {
    let shape = shape_of(POD.ty());
    let typed = Typed::root(POD.schema(), &shape);
    let list = |names: &[&str]| {
        let containers: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        POD.object(json!({"spec": {"containers": containers}}))
    };
    for (left, right, expected) in [
        (&["a", "b", "c"][..], &["c", "a"][..], &["b", "c", "a"][..]),
        (&["a", "b"], &["b", "c"], &["a", "b", "c"]),
        (&["a", "b", "c"], &["x", "b"], &["a", "x", "b", "c"]),
        (&["a", "b"], &[], &["a", "b"]),
        (&[], &["a", "b"], &["a", "b"]),
        (&["a", "b", "c"], &["b", "a"], &["b", "c", "a"]),
    ] {
        let merged = merge(typed, Some(&list(left)), Some(&list(right))).unwrap();
        assert_eq!(merged, list(expected), "{left:?} {right:?}");
    }
}
