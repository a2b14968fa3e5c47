//! The schema of one version: what CustomResourceDefinitions may not use, and that its extensions agree.

use api::field::{FieldError, quote};
use serde_json::{Value, json};

use super::{at, defaults, flag, items, parsed, present, structural, text};
use crate::registry::{fields::entries, rules::Errors};

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const META_FIELDS: [&str; 3] = ["metadata", "kind", "apiVersion"];
/// What the root may have beside `type` where there is a status subresource.
const AT_ROOT: [(&str, &str); 22] = [
    ("description", "Description"),
    ("type", "Type"),
    ("format", "Format"),
    ("title", "Title"),
    ("maximum", "Maximum"),
    ("exclusiveMaximum", "ExclusiveMaximum"),
    ("minimum", "Minimum"),
    ("exclusiveMinimum", "ExclusiveMinimum"),
    ("maxLength", "MaxLength"),
    ("minLength", "MinLength"),
    ("pattern", "Pattern"),
    ("maxItems", "MaxItems"),
    ("minItems", "MinItems"),
    ("uniqueItems", "UniqueItems"),
    ("multipleOf", "MultipleOf"),
    ("required", "Required"),
    ("items", "Items"),
    ("properties", "Properties"),
    ("externalDocs", "ExternalDocs"),
    ("example", "Example"),
    ("x-kubernetes-preserve-unknown-fields", "XPreserveUnknownFields"),
    ("x-kubernetes-validations", "XValidations"),
];

/// Judges a schema. `is_unchanged`: it was accepted before, in this version of this definition.
pub(super) fn validate(
    errors: &mut Errors,
    schema: &Value,
    has_status: bool,
    is_unchanged: bool,
    path: &str,
) {
    if !schema.is_object() || is_unchanged {
        return;
    }
    let path = format!("{path}.openAPIV3Schema");
    let before = errors.len();
    if has_status {
        root(errors, schema, &path);
    }
    if flag(schema, "/nullable") {
        errors.forbidden(format!("{path}.nullable"), "nullable cannot be true at the root");
    }
    let shape = structural::errors(schema, &path);
    let is_structural = shape.is_empty();
    if is_structural {
        errors.extend(defaults::errors(schema, &path));
    }
    errors.extend(shape);
    let mut found = Vec::new();
    let place = Place { allows_defaults: true, ..Place::default() };
    node(&mut found, schema, &path, true, &place);
    errors.extend(found);
    if is_structural && errors.len() == before && parsed(schema).is_some_and(|schema| schema.has_rules()) {
        errors.extend(cel::rules::Rules::compile(schema).problems(&path));
    }
    if errors.len() == before
        && let Err(why) = api::structural::Structural::parse(schema)
    {
        let text = format!("error building validator: {why}");
        errors.invalid(path.trim_end_matches(".openAPIV3Schema"), &"".into(), text);
    }
}

fn root(errors: &mut Errors, schema: &Value, path: &str) {
    if text(schema, "/type") != "object" {
        let why = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        errors.invalid(format!("{path}.type"), at(schema, "/type"), why);
    }
    let known = |name: &String| AT_ROOT.iter().any(|(known, _)| known == name);
    if entries(schema, "").iter().any(|(name, value)| !known(name) && !super::super::fields::is_zero(value)) {
        let names: Vec<&str> = AT_ROOT.iter().map(|(_, name)| *name).collect();
        let why = format!(
            "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
            names.join(" ")
        );
        errors.invalid(path, &Value::from("openAPIV3Schema"), why);
    }
}

/// Where a node of the schema is.
#[derive(Clone, Default)]
struct Place {
    allows_defaults: bool,
    no_defaults_because: String,
    is_metadata: bool,
}

fn node(errors: &mut Vec<FieldError>, schema: &Value, path: &str, is_root: bool, place: &Place) {
    standard(errors, schema, path, place);
    if flag(schema, "/uniqueItems") {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(FieldError::forbidden(format!("{path}.uniqueItems"), why));
    }
    let additional = at(schema, "/additionalProperties");
    let has_properties = !entries(schema, "/properties").is_empty();
    if additional.is_object() || *additional == Value::Bool(false) {
        if has_properties {
            let why = "additionalProperties and properties are mutual exclusive";
            errors.push(FieldError::forbidden(format!("{path}.additionalProperties"), why));
        }
        let mut place = place.clone();
        if place.is_metadata {
            place.allows_defaults = false;
            "inside additionalProperties applying to object metadata"
                .clone_into(&mut place.no_defaults_because);
        }
        if additional.is_object() {
            node(errors, additional, &format!("{path}.additionalProperties"), false, &place);
        }
    }
    for (name, property) in entries(schema, "/properties") {
        let mut place = place.clone();
        let is_whole = is_root || flag(schema, "/x-kubernetes-embedded-resource");
        if is_whole && META_FIELDS.contains(&name.as_str()) {
            place.is_metadata = true;
            if is_root {
                place.allows_defaults = false;
                place.no_defaults_because = format!("in top-level {name}");
            }
        }
        node(errors, property, &format!("{path}.properties[{name}]"), false, &place);
    }
    if schema["not"].is_object() {
        node(errors, &schema["not"], &format!("{path}.not"), false, place);
    }
    for name in ["allOf", "oneOf", "anyOf"] {
        for (i, inner) in items(schema, &format!("/{name}")).iter().enumerate() {
            node(errors, inner, &format!("{path}.{name}[{i}]"), false, place);
        }
    }
    if schema["items"].is_object() {
        node(errors, &schema["items"], &format!("{path}.items"), false, place);
    }
    extensions(errors, schema, path);
    list_map_keys(errors, schema, path);
}

fn standard(errors: &mut Vec<FieldError>, schema: &Value, path: &str, place: &Place) {
    let kind = text(schema, "/type");
    let mut forbid = |name: &str, why: String| {
        errors.push(FieldError::forbidden(format!("{path}.{name}"), why));
    };
    if present(schema, "/default") && !place.allows_defaults {
        let because = &place.no_defaults_because;
        forbid(
            "default",
            if because.is_empty() {
                "must not be set".to_owned()
            } else {
                format!("must not be set {because}")
            },
        );
    }
    for name in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
        let value = schema.get(name).unwrap_or(&Value::Null);
        let is_set = match name {
            "additionalItems" | "dependencies" | "$ref" => !value.is_null(),
            _ => !super::super::fields::is_zero(value),
        };
        if is_set {
            forbid(name, format!("{name} is not supported"));
        }
    }
    if kind == "null" {
        forbid("type", "type cannot be set to null, use nullable as an alternative".to_owned());
    }
    if schema["items"].is_array() {
        forbid("items", "items must be a schema object and not an array".to_owned());
    }
    if place.is_metadata && flag(schema, "/x-kubernetes-embedded-resource") {
        forbid("x-kubernetes-embedded-resource", "must not be used inside of resource meta".to_owned());
    }
    if !kind.is_empty() && !TYPES.contains(&kind) {
        errors.push(FieldError::not_supported(format!("{path}.type"), kind, &TYPES));
    }
}

fn extensions(errors: &mut Vec<FieldError>, schema: &Value, path: &str) {
    let kind = text(schema, "/type");
    if schema["x-kubernetes-preserve-unknown-fields"] == false {
        let at = format!("{path}.x-kubernetes-preserve-unknown-fields");
        errors.push(FieldError::invalid(at, false, "must be true or undefined"));
    }
    for (name, needed, known) in [
        ("x-kubernetes-map-type", "object", &["atomic", "granular"][..]),
        ("x-kubernetes-list-type", "array", &["atomic", "set", "map"][..]),
    ] {
        let Some(written) = schema[name].as_str() else { continue };
        let text = format!("must be {needed} if {name} is specified");
        match kind {
            "" => errors.push(FieldError::required(format!("{path}.type"), text)),
            kind if kind != needed => errors.push(FieldError::invalid(format!("{path}.type"), kind, text)),
            _ => {}
        }
        if !known.contains(&written) {
            errors.push(FieldError::not_supported(format!("{path}.{name}"), written, known));
        }
    }
    let item = at(schema, "/items");
    if kind == "array" && schema["x-kubernetes-list-type"] == "set" && item.is_object() {
        let text_is = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let (name, is_wrong) = match text(item, "/type") {
            "array" => {
                let written = &item["x-kubernetes-list-type"];
                ("x-kubernetes-list-type", !written.is_null() && written != "atomic")
            }
            "object" => ("x-kubernetes-map-type", item["x-kubernetes-map-type"] != "atomic"),
            _ => ("", false),
        };
        if is_wrong {
            let written = item["x-kubernetes-list-type"].clone();
            errors.push(FieldError::invalid(format!("{path}.items.{name}"), written, text_is));
        }
        if flag(item, "/nullable") {
            let why = "cannot be nullable when x-kubernetes-list-type is set";
            errors.push(FieldError::forbidden(format!("{path}.items.nullable"), why));
        }
    }
}

fn list_map_keys(errors: &mut Vec<FieldError>, schema: &Value, path: &str) {
    let keys = items(schema, "/x-kubernetes-list-map-keys");
    let list_type = schema["x-kubernetes-list-type"].as_str();
    let type_path = format!("{path}.x-kubernetes-list-type");
    let keys_path = format!("{path}.x-kubernetes-list-map-keys");
    if list_type != Some("map") {
        let text = "must be map if x-kubernetes-list-map-keys is non-empty";
        match list_type {
            _ if keys.is_empty() => {}
            None => errors.push(FieldError::required(type_path, text)),
            Some(written) => errors.push(FieldError::invalid(type_path, written, text)),
        }
        return;
    }
    if keys.is_empty() {
        errors.push(FieldError::required(
            keys_path.clone(),
            "must not be empty if x-kubernetes-list-type is map",
        ));
    }
    let item = at(schema, "/items");
    if !item.is_object() {
        let why = "must have a schema if x-kubernetes-list-type is map";
        errors.push(FieldError::required(format!("{path}.items"), why));
        return;
    }
    if text(item, "/type") != "object" {
        let why = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(FieldError::invalid(format!("{path}.items.type"), text(item, "/type"), why));
        return;
    }
    if flag(item, "/nullable") {
        let why = "cannot be nullable when x-kubernetes-list-type is map";
        errors.push(FieldError::forbidden(format!("{path}.items.nullable"), why));
    }
    for (i, key) in keys.iter().enumerate() {
        let name = key.as_str().unwrap_or("");
        let all = || at(schema, "/x-kubernetes-list-map-keys").clone();
        if keys[..i].contains(key) {
            errors.push(FieldError::invalid(keys_path.clone(), all(), "must not contain duplicate entries"));
        }
        let Some(property) = item["properties"].get(name) else {
            let why = "entries must all be names of item properties";
            errors.push(FieldError::invalid(keys_path.clone(), all(), why));
            continue;
        };
        let at = format!("{path}.items.properties[{name}]");
        if matches!(text(property, "/type"), "array" | "object") {
            let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            errors.push(FieldError::invalid(format!("{at}.type"), text(item, "/type"), why));
        }
        if !items(item, "/required").contains(key) && !present(property, "/default") {
            let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required \
                       property";
            errors.push(FieldError::required(format!("{at}.default"), why));
        }
        if flag(property, "/nullable") {
            let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.push(FieldError::forbidden(format!("{at}.nullable"), why));
        }
    }
}

/// Warnings for formats that are not checked.
pub(super) fn unrecognized_formats(schema: &Value, warnings: &mut Vec<String>) {
    if let Some(format) = schema["format"].as_str().filter(|format| !format.is_empty()) {
        let kind = parsed(&json!({"type": schema["type"]})).unwrap_or_default().kind;
        let text = format!("unrecognized format {}", quote(format));
        if !api::structural::is_known_format(kind, format) && !warnings.contains(&text) {
            warnings.push(text);
        }
    }
    for name in ["items", "not", "additionalProperties"] {
        if schema[name].is_object() {
            unrecognized_formats(&schema[name], warnings);
        }
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        for inner in items(schema, &format!("/{name}")) {
            unrecognized_formats(inner, warnings);
        }
    }
    for property in entries(schema, "/properties").values() {
        unrecognized_formats(property, warnings);
    }
}
