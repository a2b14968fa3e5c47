//! The way from client-side to server-side apply: kubectl once kept what it applied in an annotation. Its first apply
//! from the server's side may take what that annotation says, without a conflict.

use serde_json::Value;

use super::{
    compare::compare,
    ownership::Ownership,
    set::FieldSet,
    typed::{Typed, shape_of},
    validate::validate,
    walk,
};
use crate::meta;

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// All annotations of one object together, in bytes.
const ANNOTATIONS_SIZE_BYTES_MAX: usize = 256 * 1024;

/// The fields that the annotation says and that still have the value it says; `None` where it says nothing usable.
pub(super) fn owned_by_client(write: &Ownership<'_>, live: &Value) -> Option<FieldSet> {
    let text = meta::annotation(live, ANNOTATION).filter(|text| !text.is_empty())?;
    let config: Value = serde_json::from_str(text).ok()?;
    if meta::api_version(&config) != write.api_version {
        return None;
    }
    let shape = shape_of(write.ty);
    let typed = Typed::root(write.schema, &shape);
    validate(typed, &config, false).ok()?;
    let changed = compare(typed, &config, live).ok()?.all();
    Some(walk::fields(typed, &config).difference(&changed))
}

/// Writes what is applied into the annotation, where there is one.
pub(super) fn refresh(object: &mut Value, config: &Value) {
    if meta::annotation(object, ANNOTATION).is_none_or(str::is_empty) {
        return;
    }
    let mut config = config.clone();
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut)
        && let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut)
    {
        annotations.remove(ANNOTATION);
        if annotations.is_empty() {
            metadata.remove("annotations");
        }
    }
    meta::set_annotation(object, ANNOTATION, &format!("{config}\n"));
    let annotations = meta::annotations(object).as_object();
    let size: usize = annotations
        .into_iter()
        .flatten()
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    if size > ANNOTATIONS_SIZE_BYTES_MAX
        && let Some(annotations) = object["metadata"]["annotations"].as_object_mut()
    {
        annotations.remove(ANNOTATION);
    }
}
