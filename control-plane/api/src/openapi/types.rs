//! One type of the table as an OpenAPI schema.

use serde_json::{Map, Value, json};

use super::{Dialect, descriptions::Descriptions, group_versions};
use crate::schema::{Field, ListType, MapType, Schema, Shape, Type};

pub(super) fn definition(schema: &Schema, ty: &Type, dialect: Dialect, descriptions: &Descriptions) -> Value {
    let mut out = match &ty.leaf {
        Some(shape) => object(leaf(shape, dialect)),
        None => structure(schema, ty, dialect, descriptions),
    };
    let description = descriptions.line(ty.description_line);
    if !description.is_empty() {
        out.insert("description".to_owned(), Value::from(description));
    }
    let kinds = kinds(schema, ty);
    if !kinds.is_empty() {
        out.insert("x-kubernetes-group-version-kind".to_owned(), Value::from(kinds));
    }
    if ty.atomic {
        out.insert("x-kubernetes-map-type".to_owned(), Value::from("atomic"));
    }
    Value::Object(out)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

/// The kinds that a type is. Some types belong to every group.
fn kinds(schema: &Schema, ty: &Type) -> Vec<Value> {
    let name = ty.go_name();
    if matches!(name, "DeleteOptions" | "WatchEvent") {
        let all = group_versions(schema).into_iter();
        return all
            .map(|(group, version)| json!({"group": group, "version": version, "kind": name}))
            .collect();
    }
    let kind = ty.gvk.iter();
    kind.map(|gvk| json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})).collect()
}

fn structure(
    schema: &Schema,
    ty: &Type,
    dialect: Dialect,
    descriptions: &Descriptions,
) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("type".to_owned(), Value::from("object"));
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (field, line) in ty.fields.iter().zip(ty.description_line + 1..) {
        let description = descriptions.line(line);
        properties.insert(field.name.as_ref().to_owned(), property(schema, field, description, dialect));
        if field.required {
            required.push(Value::from(field.name.as_ref()));
        }
    }
    if !properties.is_empty() {
        out.insert("properties".to_owned(), Value::Object(properties));
    }
    if !required.is_empty() {
        out.insert("required".to_owned(), Value::from(required));
    }
    out
}

fn property(schema: &Schema, field: &Field, description: String, dialect: Dialect) -> Value {
    let mut out = object(form(schema, &field.shape, dialect));
    // In OpenAPI 3.0 nothing may stand beside a `$ref`.
    if let (Dialect::V3, Some(reference)) = (dialect, out.get("$ref").cloned()) {
        out.remove("$ref");
        out.insert("allOf".to_owned(), json!([{"$ref": reference}]));
    }
    let mut set = |name: &str, value: Value| {
        out.insert(name.to_owned(), value);
    };
    if !description.is_empty() {
        set("description", Value::from(description));
    }
    if let Some(default) = &field.default {
        set("default", serde_json::from_str(default).expect("xtask checked that defaults are JSON"));
    }
    match &field.list {
        ListType::Unset => {}
        ListType::Atomic => set("x-kubernetes-list-type", Value::from("atomic")),
        ListType::Set => set("x-kubernetes-list-type", Value::from("set")),
        ListType::Map(keys) => {
            set("x-kubernetes-list-type", Value::from("map"));
            set("x-kubernetes-list-map-keys", json!(keys));
        }
    }
    match field.map {
        Some(MapType::Atomic) => set("x-kubernetes-map-type", Value::from("atomic")),
        Some(MapType::Granular) => set("x-kubernetes-map-type", Value::from("granular")),
        None => {}
    }
    let patch = field.patch;
    let strategies = [("merge", patch.merge), ("replace", patch.replace), ("retainKeys", patch.retain_keys)];
    let strategies: Vec<&str> = strategies.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
    if !strategies.is_empty() {
        set("x-kubernetes-patch-strategy", Value::from(strategies.join(",")));
    }
    if let Some(key) = &field.merge_key {
        set("x-kubernetes-patch-merge-key", Value::from(key.as_ref()));
    }
    Value::Object(out)
}

fn form(schema: &Schema, shape: &Shape, dialect: Dialect) -> Value {
    match shape {
        Shape::Ref(id) => dialect.reference(&schema.get(*id).definition()),
        Shape::List(item) => json!({"type": "array", "items": form(schema, item, dialect)}),
        Shape::Map(value) => json!({"type": "object", "additionalProperties": form(schema, value, dialect)}),
        scalar => leaf(scalar, dialect),
    }
}

fn leaf(shape: &Shape, dialect: Dialect) -> Value {
    match (shape, dialect) {
        (Shape::String, _) => json!({"type": "string"}),
        (Shape::Bytes, _) => json!({"type": "string", "format": "byte"}),
        (Shape::Boolean, _) => json!({"type": "boolean"}),
        (Shape::Int32, _) => json!({"type": "integer", "format": "int32"}),
        (Shape::Int64, _) => json!({"type": "integer", "format": "int64"}),
        (Shape::Double, _) => json!({"type": "number", "format": "double"}),
        (Shape::IntOrString, Dialect::V2) => json!({"type": "string", "format": "int-or-string"}),
        (Shape::IntOrString, Dialect::V3) => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        (Shape::Quantity, Dialect::V2) => json!({"type": "string"}),
        (Shape::Quantity, Dialect::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        (Shape::Time | Shape::MicroTime, _) => json!({"type": "string", "format": "date-time"}),
        (Shape::Object, _) => json!({"type": "object"}),
        // Anything goes.
        (Shape::Any | Shape::SchemaOr(_) | Shape::List(_) | Shape::Map(_) | Shape::Ref(_), _) => json!({}),
    }
}
