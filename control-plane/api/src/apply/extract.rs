//! What one applier applied, read back from an object: the start of a read-modify-apply loop.

use serde_json::Value;

use super::{
    set::FieldSet,
    typed::{Typed, shape_of},
    walk,
};
use crate::{
    meta,
    schema::{Schema, TypeId},
};

/// The part of `object` that `manager` applied through `subresource` (empty for the object itself), with version and
/// kind; `None` where it applied nothing.
///
/// # Errors
/// When the entry's fields cannot be read.
pub fn extract(
    schema: &Schema,
    ty: TypeId,
    object: &Value,
    manager: &str,
    subresource: &str,
) -> Result<Option<Value>, String> {
    let entries = object["metadata"]["managedFields"].as_array();
    let entry = entries.into_iter().flatten().find(|entry| {
        entry["operation"] == "Apply"
            && entry["manager"].as_str().unwrap_or_default() == manager
            && entry["subresource"].as_str().unwrap_or_default() == subresource
    });
    let Some(entry) = entry else { return Ok(None) };
    let set = FieldSet::decode(&entry["fieldsV1"])?;
    let shape = shape_of(ty);
    let mut taken = walk::extract(Typed::root(schema, &shape), object, &set.leaves())
        .unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    taken["apiVersion"] = Value::from(meta::api_version(object));
    taken["kind"] = Value::from(meta::kind(object));
    Ok(Some(taken))
}
