//! Whether a schema is structural: types are said once and outside of `allOf`, `anyOf`, `oneOf` and `not`, and whatever
//! those speak of is declared outside of them.

use api::field::FieldError;
use serde_json::{Value, json};

use super::{at, flag, items, text};
use crate::registry::fields::entries;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What keeps a schema from being structural, sorted by its text.
pub(super) fn errors(schema: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    invariants(schema, Level::Root, path, &mut errors);
    completeness(schema, schema, path, path, &mut errors);
    errors.sort_by_cached_key(ToString::to_string);
    errors
}

fn key(path: &str, name: &str) -> String {
    format!("{path}.properties[{name}]")
}

fn required(errors: &mut Vec<FieldError>, path: String, text: &str) {
    errors.push(FieldError::required(path, text));
}

fn invariants(schema: &Value, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    let kind = text(schema, "/type");
    if kind == "array" && !schema["items"].is_object() {
        required(errors, format!("{path}.items"), "must be specified");
    }
    if schema["items"].is_object() {
        invariants(&schema["items"], Level::Item, &format!("{path}.items"), errors);
    }
    for (name, property) in entries(schema, "/properties") {
        invariants(property, Level::Field, &key(path, name), errors);
    }
    let additional = at(schema, "/additionalProperties");
    let has_additional = additional.is_object() || additional.is_boolean();
    if has_additional && level == Level::Root {
        let at = format!("{path}.additionalProperties");
        errors.push(FieldError::forbidden(at, "must not be used at the root"));
    }
    if additional.is_object() {
        invariants(additional, Level::Field, &format!("{path}.additionalProperties"), errors);
    }
    let is_int_or_string = flag(schema, "/x-kubernetes-int-or-string");
    let preserves = flag(schema, "/x-kubernetes-preserve-unknown-fields");
    let is_embedded = flag(schema, "/x-kubernetes-embedded-resource");
    for (name, is_set) in [("preserve-unknown-fields", preserves), ("embedded-resource", is_embedded)] {
        if is_int_or_string && is_set {
            let at = format!("{path}.x-kubernetes-{name}");
            let text = "must be false if x-kubernetes-int-or-string is true";
            errors.push(FieldError::invalid(at, true, text));
        }
    }
    value_validation(schema, path, errors);
    type_errors(schema, level, path, errors);
    if is_embedded && has_additional {
        let at = format!("{path}.additionalProperties");
        errors.push(FieldError::forbidden(at, "must not be used if x-kubernetes-embedded-resource is set"));
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.push(FieldError::invalid(format!("{path}.type"), kind, "must be object at the root"));
    }
    metadata(schema, level, is_embedded, path, errors);
    if is_embedded && !preserves && entries(schema, "/properties").is_empty() {
        let text = "must not be empty if x-kubernetes-embedded-resource is true without \
                    x-kubernetes-preserve-unknown-fields";
        required(errors, format!("{path}.properties"), text);
    }
}

fn type_errors(schema: &Value, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    let kind = text(schema, "/type");
    let at = format!("{path}.type");
    if flag(schema, "/x-kubernetes-embedded-resource") && kind != "object" {
        let text = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(match kind {
            "" => FieldError::required(at, text),
            kind => FieldError::invalid(at, kind, text),
        });
    } else if kind.is_empty()
        && !flag(schema, "/x-kubernetes-int-or-string")
        && !flag(schema, "/x-kubernetes-preserve-unknown-fields")
    {
        let text = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        required(errors, at, text);
    }
}

/// Kind, version and metadata are the server's: a schema may only restrict names.
fn metadata(schema: &Value, level: Level, is_embedded: bool, path: &str, errors: &mut Vec<FieldError>) {
    let properties = entries(schema, "/properties");
    let is_whole = level == Level::Root || is_embedded;
    for name in ["kind", "apiVersion"] {
        if let Some(property) = properties.get(name).filter(|_| is_whole)
            && text(property, "/type") != "string"
        {
            let at = format!("{}.type", key(path, name));
            errors.push(FieldError::invalid(at, text(property, "/type"), "must be string"));
        }
    }
    let Some(metadata) = properties.get("metadata") else { return };
    let at = key(path, "metadata");
    if is_whole && text(metadata, "/type") != "object" {
        let text_is = text(metadata, "/type");
        errors.push(FieldError::invalid(format!("{at}.type"), text_is, "must be object"));
    }
    if level == Level::Root {
        let names_only = entries(metadata, "/properties")
            .keys()
            .all(|name| matches!(name.as_str(), "name" | "generateName"));
        let others = metadata.as_object().into_iter().flatten();
        let plain = |(name, value): (&String, &Value)| {
            matches!(name.as_str(), "type" | "properties" | "default") || value.is_null()
        };
        if !names_only || !others.clone().all(plain) {
            let text = "must not specify anything other than name and generateName, but metadata is implicitly \
                        specified";
            errors.push(FieldError::forbidden(at, text));
        }
    }
}

fn int_or_string() -> Value {
    json!([{"type": "integer"}, {"type": "string"}])
}

fn value_validation(schema: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let is_pattern = |list: &Value| *list == int_or_string();
    if !is_pattern(at(schema, "/anyOf")) {
        for (i, inner) in items(schema, "/anyOf").iter().enumerate() {
            nested(inner, false, &format!("{path}.anyOf[{i}]"), errors);
        }
    }
    for (i, inner) in items(schema, "/allOf").iter().enumerate() {
        nested(inner, i == 0 && is_pattern(at(inner, "/anyOf")), &format!("{path}.allOf[{i}]"), errors);
    }
    for (i, inner) in items(schema, "/oneOf").iter().enumerate() {
        nested(inner, false, &format!("{path}.oneOf[{i}]"), errors);
    }
    if schema["not"].is_object() {
        nested(&schema["not"], false, &format!("{path}.not"), errors);
    }
    if let Some(pattern) = schema["pattern"].as_str().filter(|pattern| !pattern.is_empty())
        && let Err(why) = api::structural::compile_pattern(pattern)
    {
        let text = format!("must be a valid regular expression, but isn't: {why}");
        errors.push(FieldError::invalid(format!("{path}.pattern"), pattern, text));
    }
}

/// What may not be said inside of `allOf` and the like, by the words of the refusal.
const EMPTY: &[&str] =
    &["type", "title", "description", "x-kubernetes-list-map-keys", "x-kubernetes-validations"];
const UNDEFINED: &[&str] =
    &["additionalProperties", "default", "x-kubernetes-list-type", "x-kubernetes-map-type"];
const FALSE: &[&str] = &[
    "nullable",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
];

/// Inside of `allOf` and the like only values may be spoken of.
fn nested(schema: &Value, skips_any_of: bool, path: &str, errors: &mut Vec<FieldError>) {
    if skips_any_of {
        let mut rest = schema.clone();
        if let Some(rest) = rest.as_object_mut() {
            rest.remove("anyOf");
        }
        value_validation(&rest, path, errors);
    } else {
        value_validation(schema, path, errors);
    }
    if schema["items"].is_object() {
        nested(&schema["items"], false, &format!("{path}.items"), errors);
    }
    for (name, property) in entries(schema, "/properties") {
        nested(property, false, &key(path, name), errors);
    }
    let is_set = |name: &str| !super::super::fields::is_zero(&schema[name]);
    for (names, text) in
        [(EMPTY, "must be empty"), (UNDEFINED, "must be undefined"), (FALSE, "must be false")]
    {
        for name in names.iter().filter(|name| match text {
            "must be undefined" => !schema[**name].is_null(),
            _ => is_set(name),
        }) {
            let text = format!("{text} to be structural");
            errors.push(FieldError::forbidden(format!("{path}.{name}"), text));
        }
    }
    if schema["properties"].get("metadata").is_some() {
        let text = "must not be specified in a nested context";
        errors.push(FieldError::forbidden(key(path, "metadata"), text));
    }
}

/// `values` is what `allOf` and the like say of the value that `schema` declares.
fn completeness(
    values: &Value,
    schema: &Value,
    schema_path: &str,
    values_path: &str,
    errors: &mut Vec<FieldError>,
) {
    let mut each = |name: &str, inner: &Value, index: Option<usize>| {
        let path = match index {
            Some(i) => format!("{values_path}.{name}[{i}]"),
            None => format!("{values_path}.{name}"),
        };
        nested_completeness(inner, Some(schema), schema_path, &path, errors);
    };
    if values["not"].is_object() {
        each("not", &values["not"], None);
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        for (i, inner) in items(values, &format!("/{name}")).iter().enumerate() {
            each(name, inner, Some(i));
        }
    }
}

fn nested_completeness(
    values: &Value,
    schema: Option<&Value>,
    schema_path: &str,
    values_path: &str,
    errors: &mut Vec<FieldError>,
) {
    let Some(schema) = schema else {
        required(errors, schema_path.to_owned(), &format!("because it is defined in {values_path}"));
        return;
    };
    completeness(values, schema, schema_path, values_path, errors);
    if values["items"].is_object() {
        let items = Some(&schema["items"]).filter(|items| items.is_object());
        let (schema_path, values_path) = (format!("{schema_path}.items"), format!("{values_path}.items"));
        nested_completeness(&values["items"], items, &schema_path, &values_path, errors);
    }
    for (name, inner) in entries(values, "/properties") {
        let property = schema["properties"].get(name);
        nested_completeness(inner, property, &key(schema_path, name), &key(values_path, name), errors);
    }
}
