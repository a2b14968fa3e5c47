//! Reading and writing `metadata` of an object held as JSON. Readers answer with what an absent field means: an empty
//! string, an empty iterator, `None`.

use serde_json::{Map, Value, json};

static NULL: Value = Value::Null;

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or("")
}

pub fn api_version(object: &Value) -> &str {
    object["apiVersion"].as_str().unwrap_or("")
}

pub fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or("")
}

/// Splits `apps/v1` into group and version; `v1` has the empty group.
pub fn group_and_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

pub fn name(object: &Value) -> &str {
    text(object, "name")
}

pub fn generate_name(object: &Value) -> &str {
    text(object, "generateName")
}

pub fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

pub fn uid(object: &Value) -> &str {
    text(object, "uid")
}

pub fn resource_version(object: &Value) -> &str {
    text(object, "resourceVersion")
}

pub fn generation(object: &Value) -> i64 {
    object["metadata"]["generation"].as_i64().unwrap_or(0)
}

pub fn creation_timestamp(object: &Value) -> &str {
    text(object, "creationTimestamp")
}

pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    object["metadata"]["deletionTimestamp"].as_str()
}

pub fn deletion_grace_period_seconds(object: &Value) -> Option<i64> {
    object["metadata"]["deletionGracePeriodSeconds"].as_i64()
}

/// The labels object, or null.
pub fn labels(object: &Value) -> &Value {
    object.get("metadata").and_then(|metadata| metadata.get("labels")).unwrap_or(&NULL)
}

/// The annotations object, or null.
pub fn annotations(object: &Value) -> &Value {
    object.get("metadata").and_then(|metadata| metadata.get("annotations")).unwrap_or(&NULL)
}

pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    labels(object).get(key)?.as_str()
}

pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    annotations(object).get(key)?.as_str()
}

pub fn finalizers(object: &Value) -> Vec<&str> {
    let list = object["metadata"]["finalizers"].as_array();
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

pub fn owner_references(object: &Value) -> &[Value] {
    object["metadata"]["ownerReferences"].as_array().map_or(&[], Vec::as_slice)
}

/// The owner that manages the object.
pub fn controller(object: &Value) -> Option<&Value> {
    owner_references(object).iter().find(|owner| owner["controller"] == true)
}

/// `metadata`, made where it is missing or not an object.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let metadata = &mut object["metadata"];
    if !metadata.is_object() {
        *metadata = json!({});
    }
    metadata.as_object_mut().expect("made an object just above")
}

fn set_text(object: &mut Value, field: &str, value: &str) {
    if value.is_empty() {
        metadata_mut(object).remove(field);
    } else {
        metadata_mut(object).insert(field.to_owned(), Value::from(value));
    }
}

pub fn set_name(object: &mut Value, name: &str) {
    set_text(object, "name", name);
}

/// The empty namespace removes the field.
pub fn set_namespace(object: &mut Value, namespace: &str) {
    set_text(object, "namespace", namespace);
}

pub fn set_uid(object: &mut Value, uid: &str) {
    set_text(object, "uid", uid);
}

/// The empty version removes the field.
pub fn set_resource_version(object: &mut Value, version: &str) {
    set_text(object, "resourceVersion", version);
}

/// `time` is RFC 3339 to the second.
pub fn set_creation_timestamp(object: &mut Value, time: &str) {
    set_text(object, "creationTimestamp", time);
}

/// `time` is RFC 3339 to the second; the empty text removes the field.
pub fn set_deletion_timestamp(object: &mut Value, time: &str) {
    set_text(object, "deletionTimestamp", time);
}

pub fn set_deletion_grace_period_seconds(object: &mut Value, seconds: i64) {
    metadata_mut(object).insert("deletionGracePeriodSeconds".to_owned(), Value::from(seconds));
}

pub fn set_generation(object: &mut Value, generation: i64) {
    metadata_mut(object).insert("generation".to_owned(), Value::from(generation));
}

fn set_entry(object: &mut Value, map: &str, key: &str, value: &str) {
    let entries = metadata_mut(object).entry(map).or_insert_with(|| json!({}));
    if !entries.is_object() {
        *entries = json!({});
    }
    entries[key] = Value::from(value);
}

pub fn set_label(object: &mut Value, key: &str, value: &str) {
    set_entry(object, "labels", key, value);
}

pub fn set_annotation(object: &mut Value, key: &str, value: &str) {
    set_entry(object, "annotations", key, value);
}

/// No finalizers remove the field.
pub fn set_finalizers(object: &mut Value, finalizers: &[&str]) {
    if finalizers.is_empty() {
        metadata_mut(object).remove("finalizers");
    } else {
        metadata_mut(object).insert("finalizers".to_owned(), json!(finalizers));
    }
}

/// No owners remove the field.
pub fn set_owner_references(object: &mut Value, owners: Vec<Value>) {
    if owners.is_empty() {
        metadata_mut(object).remove("ownerReferences");
    } else {
        metadata_mut(object).insert("ownerReferences".to_owned(), Value::from(owners));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_metadata_reads_as_empty() {
        let object = json!({"kind": "Pod"});
        assert_eq!(name(&object), "");
        assert_eq!(deletion_timestamp(&object), None);
        assert!(finalizers(&object).is_empty());
        assert!(labels(&object).is_null());
        assert_eq!(name(&Value::Null), "");
    }

    #[test]
    fn setters_make_what_is_missing_and_remove_what_is_empty() {
        let mut object = json!({"metadata": null});
        set_name(&mut object, "a");
        set_label(&mut object, "k", "v");
        set_finalizers(&mut object, &["x/y"]);
        assert_eq!(object, json!({"metadata": {"name": "a", "labels": {"k": "v"}, "finalizers": ["x/y"]}}));
        set_finalizers(&mut object, &[]);
        set_name(&mut object, "");
        assert_eq!(object, json!({"metadata": {"labels": {"k": "v"}}}));
    }

    #[test]
    fn the_core_group_is_empty() {
        assert_eq!(group_and_version("v1"), ("", "v1"));
        assert_eq!(group_and_version("apps/v1"), ("apps", "v1"));
    }
}
