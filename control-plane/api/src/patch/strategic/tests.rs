use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::builtin;

fn merge(kind: (&str, &str, &str), doc: Value, patch: Value) -> Result<Value> {
    let ty = builtin().type_of(kind.0, kind.1, kind.2).unwrap();
    strategic_merge(builtin(), ty, &doc, &patch)
}

fn pod(doc: Value, patch: Value) -> Value {
    merge(("", "v1", "Pod"), doc, patch).unwrap()
}

fn pod_error(doc: Value, patch: Value) -> String {
    merge(("", "v1", "Pod"), doc, patch).unwrap_err().to_string()
}

#[test]
fn nulls_delete_and_absent_fields_stay() {
    assert_eq!(
        pod(
            json!({"metadata": {"name": "p", "labels": {"a": "1", "b": "2"}}, "spec": {"nodeName": "n"}}),
            json!({"metadata": {"labels": {"a": null, "c": "3", "d": null}}}),
        ),
        json!({"metadata": {"name": "p", "labels": {"b": "2", "c": "3"}}, "spec": {"nodeName": "n"}})
    );
}

#[test]
fn nulls_in_what_a_patch_adds_are_dropped() {
    assert_eq!(
        pod(json!({}), json!({"spec": {"securityContext": {"runAsUser": 1, "fsGroup": null}}})),
        json!({"spec": {"securityContext": {"runAsUser": 1}}})
    );
}

#[test]
fn keyed_lists_merge_by_key_and_keep_the_servers_order() {
    let doc = json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}});
    let patch = json!({"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "3"}]}});
    assert_eq!(
        pod(doc, patch),
        json!({"spec": {"containers": [
            {"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c", "image": "3"}]}})
    );
}

#[test]
fn merge_keys_may_be_numbers() {
    let doc = json!({"spec": {"ports": [{"port": 80, "protocol": "TCP"}, {"port": 81}]}});
    let patch = json!({"spec": {"ports": [{"port": 80, "name": "web"}]}});
    assert_eq!(
        merge(("", "v1", "Service"), doc, patch).unwrap(),
        json!({"spec": {"ports": [{"port": 80, "protocol": "TCP", "name": "web"}, {"port": 81}]}})
    );
}

#[test]
fn atomic_lists_are_replaced() {
    let doc = json!({"spec": {"containers": [{"name": "a", "args": ["x", "y"]}]}});
    let patch = json!({"spec": {"containers": [{"name": "a", "args": ["z"]}]}});
    assert_eq!(pod(doc, patch), json!({"spec": {"containers": [{"name": "a", "args": ["z"]}]}}));
}

#[test]
fn an_empty_list_changes_a_keyed_list_not_and_replaces_an_atomic_one() {
    let doc = json!({"spec": {"containers": [{"name": "a"}], "tolerations": [{"key": "k"}]}});
    let patch = json!({"spec": {"containers": [], "tolerations": []}});
    assert_eq!(pod(doc, patch), json!({"spec": {"containers": [{"name": "a"}], "tolerations": []}}));
}

#[test]
fn scalars_of_a_merge_list_are_a_set_and_can_be_deleted() {
    let doc = json!({"metadata": {"finalizers": ["a", "b"]}});
    assert_eq!(
        pod(doc.clone(), json!({"metadata": {"finalizers": ["b", "c"]}})),
        json!({"metadata": {"finalizers": ["a", "b", "c"]}})
    );
    assert_eq!(
        pod(doc, json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}})),
        json!({"metadata": {"finalizers": ["b"]}})
    );
}

#[test]
fn the_delete_directive_removes_items_and_objects() {
    let doc =
        json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "securityContext": {"runAsUser": 1}}});
    let patch = json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}], "securityContext": {"$patch": "delete"}}});
    assert_eq!(pod(doc, patch), json!({"spec": {"containers": [{"name": "b"}], "securityContext": {}}}));
}

#[test]
fn the_replace_directive_replaces_lists_and_objects() {
    let doc =
        json!({"spec": {"containers": [{"name": "a", "image": "1"}], "securityContext": {"runAsUser": 1}}});
    let patch = json!({"spec": {
        "containers": [{"$patch": "replace"}, {"name": "b"}],
        "securityContext": {"$patch": "replace", "fsGroup": 2}}});
    assert_eq!(
        pod(doc, patch),
        json!({"spec": {"containers": [{"name": "b"}], "securityContext": {"fsGroup": 2}}})
    );
}

#[test]
fn directives_in_what_a_patch_adds_do_not_reach_the_object() {
    let patch = json!({"spec": {
        "containers": [{"name": "a", "$patch": "delete"}, {"name": "b"}],
        "$setElementOrder/containers": [{"name": "b"}],
        "securityContext": {"$patch": "replace", "fsGroup": 2}}});
    assert_eq!(pod(json!({"spec": {}}), patch.clone()), json!({"spec": {"containers": [{"name": "b"}]}}));
    assert_eq!(pod(json!({}), patch), json!({"spec": {"containers": [{"name": "b"}]}}));
}

#[test]
fn retain_keys_drops_the_others() {
    let doc = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    let deployment = ("apps", "v1", "Deployment");
    assert_eq!(
        merge(deployment, doc.clone(), patch).unwrap(),
        json!({"spec": {"strategy": {"type": "Recreate"}}})
    );
    let wrong = json!({"spec": {"strategy": {"$retainKeys": ["rollingUpdate"], "type": "Recreate"}}});
    assert!(merge(deployment, doc, wrong).unwrap_err().to_string().contains("retainKeys"));
}

#[test]
fn set_element_order_orders_and_leaves_items_of_the_server_where_they_were() {
    let named =
        |names: &[&str]| Value::from(names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>());
    let containers = |list: Value| json!({"spec": {"containers": list}});
    let reorder = json!({"spec": {"$setElementOrder/containers": named(&["c", "a"])}});
    assert_eq!(pod(containers(named(&["a", "b", "c"])), reorder), containers(named(&["b", "c", "a"])));
    let insert = json!({"spec": {"$setElementOrder/containers": named(&["a", "new", "b"]), "containers": named(&["new"])}});
    assert_eq!(
        pod(containers(named(&["a", "injected", "b"])), insert),
        containers(named(&["a", "new", "injected", "b"]))
    );
    let remove = json!({"spec": {
        "$setElementOrder/containers": named(&["b"]), "containers": [{"name": "a", "$patch": "delete"}]}});
    assert_eq!(pod(containers(named(&["a", "b"])), remove), containers(named(&["b"])));
    let exchange = json!({"spec": {
        "$setElementOrder/containers": named(&["b", "new"]),
        "containers": [{"name": "new"}, {"name": "a", "$patch": "delete"}]}});
    assert_eq!(
        pod(containers(named(&["a", "b", "injected"])), exchange),
        containers(named(&["b", "injected", "new"]))
    );
    let scalars = json!({"metadata": {"$setElementOrder/finalizers": ["c", "a"], "finalizers": ["c"]}});
    assert_eq!(
        pod(json!({"metadata": {"finalizers": ["a"]}}), scalars),
        json!({"metadata": {"finalizers": ["c", "a"]}})
    );
}

#[test]
fn a_patch_that_breaks_its_own_order_is_refused() {
    let patch = json!({"spec": {
        "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}], "containers": [{"name": "b"}, {"name": "a"}]}});
    let error = pod_error(json!({"spec": {"containers": [{"name": "a"}]}}), patch);
    assert!(error.contains("doesn't match $setElementOrder"), "{error}");
}

#[test]
fn mistakes_are_named() {
    let doc = json!({"spec": {"containers": [{"name": "a"}]}});
    let error = pod_error(doc.clone(), json!({"spec": {"containers": [{"image": "x"}]}}));
    assert_eq!(error, r#"map: {"image":"x"} does not contain declared merge key: name"#);
    let error = pod_error(doc.clone(), json!({"spec": {"$patch": "explode"}}));
    assert!(error.starts_with("unknown patch type: \"explode\""), "{error}");
    let error = pod_error(doc.clone(), json!({"spec": {"containers": ["x"]}}));
    assert!(error.contains("not identical"), "{error}");
    assert!(merge(("", "v1", "Pod"), doc, json!([])).is_err());
}

#[test]
fn other_types_replace() {
    assert_eq!(pod(json!({"spec": {"nodeName": "a"}}), json!({"spec": "x"})), json!({"spec": "x"}));
    let volumes = json!({"spec": {"volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}]}});
    let patch = json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]}});
    assert_eq!(pod(volumes, patch), json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}}));
}

/// Pods with names, labels, containers and finalizers, without repeated keys.
fn pods() -> impl Strategy<Value = Value> {
    let labels = prop::collection::btree_map("[a-d]", "[a-z]{0,2}", 0..4);
    let containers =
        prop::collection::btree_map("[a-d]", ("[a-z]", prop::collection::vec("[a-z]", 0..3)), 0..4);
    let finalizers = prop::collection::btree_set("[a-d]", 0..4);
    (labels, containers, finalizers).prop_map(|(labels, containers, finalizers)| {
        let containers: Vec<Value> = containers
            .into_iter()
            .map(|(name, (image, args))| json!({"name": name, "image": image, "args": args}))
            .collect();
        json!({"metadata": {"labels": labels, "finalizers": finalizers}, "spec": {"containers": containers}})
    })
}

proptest! {
    #[test]
    fn merging_a_pod_with_itself_changes_nothing(doc in pods()) {
        prop_assert_eq!(pod(doc.clone(), doc.clone()), doc);
    }

    #[test]
    fn merging_the_empty_patch_changes_nothing(doc in pods()) {
        prop_assert_eq!(pod(doc.clone(), json!({})), doc);
    }

    #[test]
    fn merging_twice_is_merging_once(doc in pods(), patch in pods()) {
        let once = pod(doc, patch.clone());
        prop_assert_eq!(pod(once.clone(), patch), once);
    }

    #[test]
    fn any_patch_is_merged_or_refused_without_panic(doc in pods(), patch in crate::patch::tests::objects()) {
        let ty = builtin().type_of("", "v1", "Pod").unwrap();
        let patch = json!({"metadata": patch, "spec": patch});
        let _outcome = strategic_merge(builtin(), ty, &doc, &patch);
    }
}
