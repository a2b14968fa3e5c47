//! JSON schemas to [`Node`]s, with the largest and smallest sizes that upstream's cost estimation assumes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;

use super::{Kind, ListKind, Node, RuleText, escape};

/// Bytes of the largest request.
pub(super) const REQUEST_MAX: i64 = 3 * 1024 * 1024;
/// The longest RFC 3339 time, in quotes.
const DATETIME_MAX: u64 = 32;
const DATE_SIZE: u64 = 12;
const DEPTH_MAX: usize = 64;

pub(super) fn node(schema: &Json, name: &str, root: bool) -> Node {
    read(schema, name, root, 0)
}

fn leaf(kind: Kind, size_min: i64, elements_max: u64) -> Node {
    Node {
        kind,
        nullable: false,
        has_default: false,
        elements_max,
        bounded: true,
        size_min,
        rules: Vec::new(),
    }
}

fn read(schema: &Json, name: &str, root: bool, depth: usize) -> Node {
    let flag = |name: &str| schema[name] == Json::Bool(true);
    let mut node = if depth > DEPTH_MAX {
        leaf(Kind::Hidden, 0, 0)
    } else if flag("x-kubernetes-int-or-string") {
        leaf(Kind::IntOrString, 1, length_max(schema).unwrap_or(REQUEST_MAX as u64 - 2))
    } else {
        let embedded = root || flag("x-kubernetes-embedded-resource");
        match schema["type"].as_str().unwrap_or_default() {
            "array" => list(schema, name, depth),
            "object" => object(schema, name, embedded, depth),
            "string" => string(schema),
            "boolean" => leaf(Kind::Bool, 4, 0),
            "number" => leaf(Kind::Double, 1, 0),
            "integer" => leaf(Kind::Int, 1, 0),
            _ => leaf(Kind::Hidden, 0, 0),
        }
    };
    node.nullable = flag("nullable");
    node.has_default = schema.get("default").is_some_and(|default| !default.is_null());
    add_rules(&mut node, schema, 0);
    node
}

/// Reads the rules of a schema and of what `allOf` adds to it, at any depth of the node.
fn add_rules(node: &mut Node, schema: &Json, depth: usize) {
    node.rules.extend(schema["x-kubernetes-validations"].as_array().into_iter().flatten().map(rule));
    if depth > DEPTH_MAX {
        return;
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        add_nested(node, part, depth + 1);
    }
}

fn add_nested(node: &mut Node, schema: &Json, depth: usize) {
    add_rules(node, schema, depth);
    if depth > DEPTH_MAX {
        return;
    }
    match &mut node.kind {
        Kind::List(items, _) if schema["items"].is_object() => add_nested(items, &schema["items"], depth + 1),
        Kind::Map(values) if schema["additionalProperties"].is_object() => {
            add_nested(values, &schema["additionalProperties"], depth + 1);
        }
        Kind::Object { properties, .. } => {
            for (name, part) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(property) = properties.get_mut(name) {
                    add_nested(property, part, depth + 1);
                }
            }
        }
        _ => {}
    }
}

fn rule(rule: &Json) -> RuleText {
    let text = |name: &str| rule[name].as_str().unwrap_or_default().to_owned();
    RuleText {
        rule: text("rule"),
        message: text("message"),
        message_expression: text("messageExpression"),
        reason: text("reason"),
        field_path: text("fieldPath"),
        optional_old_self: rule["optionalOldSelf"] == Json::Bool(true),
    }
}

fn bound(schema: &Json, name: &str) -> Option<u64> {
    let value = &schema[name];
    value.as_i64().or_else(|| value.as_f64().map(|value| value as i64)).map(|value| value.max(0) as u64)
}

/// In bytes: a character takes up to four.
fn length_max(schema: &Json) -> Option<u64> {
    bound(schema, "maxLength").map(|length| length.saturating_mul(4))
}

fn string(schema: &Json) -> Node {
    let unbounded = REQUEST_MAX as u64 - 2;
    match schema["format"].as_str().unwrap_or_default() {
        "byte" => leaf(Kind::Bytes, 2, bound(schema, "maxLength").unwrap_or(unbounded)),
        "duration" => leaf(Kind::Duration, 3, 32),
        "date" => leaf(Kind::Date, DATE_SIZE as i64, DATE_SIZE),
        "date-time" => leaf(Kind::DateTime, 21, DATETIME_MAX),
        _ => {
            let values = schema["enum"].as_array().map(Vec::as_slice).unwrap_or_default();
            let longest = values.iter().filter_map(Json::as_str).map(|text| text.len() as u64).max();
            let by_enum = (!values.is_empty()).then(|| longest.unwrap_or(0));
            leaf(Kind::String, 2, length_max(schema).or(by_enum).unwrap_or(unbounded))
        }
    }
}

fn list(schema: &Json, name: &str, depth: usize) -> Node {
    let Some(items) = schema.get("items").filter(|items| items.is_object()) else {
        return leaf(Kind::Hidden, 0, 0);
    };
    let items = read(items, &format!("{name}.@idx"), false, depth + 1);
    let kind = match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => ListKind::Set,
        Some("map") => {
            let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
            ListKind::Map(keys.filter_map(Json::as_str).map(str::to_owned).collect())
        }
        _ => ListKind::Atomic,
    };
    let elements_max = bound(schema, "maxItems").unwrap_or(((REQUEST_MAX - 2) / (items.size_min + 1)) as u64);
    let bounded = bound(schema, "maxItems").is_some();
    Node { bounded, ..leaf(Kind::List(Box::new(items), kind), 2, elements_max) }
}

fn object(schema: &Json, name: &str, embedded: bool, depth: usize) -> Node {
    if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object())
        && !embedded
    {
        let values = read(values, &format!("{name}.@elem"), false, depth + 1);
        let elements_max =
            bound(schema, "maxProperties").unwrap_or(((REQUEST_MAX - 2) / (values.size_min + 6)) as u64);
        let bounded = bound(schema, "maxProperties").is_some();
        return Node { bounded, ..leaf(Kind::Map(Box::new(values)), 2, elements_max) };
    }
    let required: BTreeSet<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
    let mut properties = BTreeMap::new();
    for (property, inner) in schema["properties"].as_object().into_iter().flatten() {
        properties.insert(property.clone(), read(inner, &format!("{name}.{property}"), false, depth + 1));
    }
    if embedded {
        add_meta(&mut properties, name);
    }
    let mut size_min = 2;
    for (property, node) in &properties {
        let counts = required.contains(&**property) && !node.has_default && node.ty().is_some();
        if counts && escape(property).is_some() {
            size_min += property.len() as i64 + node.size_min + 4;
        }
    }
    let name = name.into();
    leaf(Kind::Object { name, properties }, size_min, 0)
}

/// What every whole object has, whether its schema says so or not.
fn add_meta(properties: &mut BTreeMap<String, Node>, name: &str) {
    let text = || leaf(Kind::String, 2, REQUEST_MAX as u64 - 2);
    let complete = ["apiVersion", "kind"].iter().all(|field| properties.contains_key(*field))
        && matches!(&properties.get("metadata").map(|node| &node.kind), Some(Kind::Object { properties, .. })
            if properties.contains_key("name") && properties.contains_key("generateName"));
    if complete {
        return;
    }
    properties.insert("apiVersion".to_owned(), text());
    properties.insert("kind".to_owned(), text());
    let rules = properties.remove("metadata").map(|metadata| metadata.rules).unwrap_or_default();
    let fields = [("name".to_owned(), text()), ("generateName".to_owned(), text())].into_iter().collect();
    let kind = Kind::Object { name: format!("{name}.metadata").into(), properties: fields };
    let mut metadata = leaf(kind, 2, 0);
    metadata.rules = rules;
    properties.insert("metadata".to_owned(), metadata);
}
