//! Words of structural schemas.

use serde_json::{Value, json};

pub(super) const SELECTOR_MAX: usize = 1024;
/// No component above 65535.
const U16: &str =
    "([0-9]|[1-9][0-9]{1,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])";
/// No component above 4294967295.
const U32: &str = "([0-9]|[1-9][0-9]{1,8}|[1-3][0-9]{9}|4[01][0-9]{8}|42[0-8][0-9]{7}|429[0-3][0-9]{6}|4294[0-8][0-9]{5}|\
                   42949[0-5][0-9]{4}|429496[0-6][0-9]{3}|4294967[01][0-9]{2}|42949672[0-8][0-9]|429496729[0-5])";

/// Text of this many characters at most.
pub(super) fn text(length_max: usize, description: &str) -> Value {
    json!({ "type": "string", "maxLength": length_max, "description": description })
}

pub(super) fn choice(values: &[&str], description: &str) -> Value {
    json!({ "type": "string", "enum": values, "description": description })
}

pub(super) fn flag(description: &str) -> Value {
    json!({ "type": "boolean", "description": description })
}

pub(super) fn integer(minimum: i64, maximum: i64, description: &str) -> Value {
    json!({ "type": "integer", "format": "int64", "minimum": minimum, "maximum": maximum, "description": description })
}

pub(super) fn cidr(description: &str) -> Value {
    json!({ "type": "string", "format": "cidr", "maxLength": 48, "description": description })
}

/// A number, or text in asplain or asdot notation.
pub(super) fn as_number(description: &str) -> Value {
    json!({
        "x-kubernetes-int-or-string": true,
        "minimum": 0,
        "maximum": u32::MAX,
        "maxLength": 11,
        "pattern": format!("^({U32}|{U16}\\.{U16})$"),
        "description": description,
    })
}

/// `aa:nn` of 16 bits each, or `aa:nn:mm` of 32 bits each.
pub(super) fn community(description: &str) -> Value {
    let pattern = format!("^({U16}:{U16}|{U32}:{U32}:{U32})$");
    json!({ "type": "string", "maxLength": 32, "pattern": pattern, "description": description })
}

/// A duration as Go writes it.
pub(super) fn duration(description: &str) -> Value {
    json!({
        "type": "string",
        "maxLength": 32,
        "pattern": "^([0-9]{1,9}(ns|us|µs|ms|s|m|h))+$",
        "description": description,
    })
}

/// A duration that the 12 bits of a restart time can hold (RFC 4724).
pub(super) fn restart_time(description: &str) -> Value {
    rule(duration(description), "duration(self) <= duration('4095s')", "must be at most 4095s (RFC 4724)")
}

pub(super) fn password(description: &str) -> Value {
    let reference = json!({
        "type": "object",
        "required": ["key", "name"],
        "properties": {
            "name": text(253, "Name of the Secret, in namespace kube-system."),
            "key": text(253, "Which of its values is the password."),
            "optional": { "type": "boolean" },
        },
        "description": "The Secret, in namespace kube-system, that nodes must be allowed to read.",
    });
    let reference = rule(
        reference,
        "!has(self.optional) || !self.optional",
        "an optional password is not supported: without its Secret, the peer is not connected to",
    );
    object(description, json!({ "secretKeyRef": reference }))
}

pub(super) fn object(description: &str, properties: Value) -> Value {
    json!({ "type": "object", "properties": properties, "description": description })
}

/// An object that is one value to server-side apply.
pub(super) fn atomic(mut object: Value) -> Value {
    object["x-kubernetes-map-type"] = json!("atomic");
    object
}

pub(super) fn list(items: Value, items_max: usize, description: &str) -> Value {
    json!({
        "type": "array",
        "items": items,
        "maxItems": items_max,
        "x-kubernetes-list-type": "atomic",
        "description": description,
    })
}

pub(super) fn set(items: Value, items_max: usize, description: &str) -> Value {
    let mut set = list(items, items_max, description);
    set["x-kubernetes-list-type"] = json!("set");
    set
}

pub(super) fn default(mut schema: Value, value: impl Into<Value>) -> Value {
    schema["default"] = value.into();
    schema
}

/// The schema with a rule of CEL that must hold.
pub(super) fn rule(mut schema: Value, rule: &str, message: &str) -> Value {
    let rule = json!({ "rule": rule, "message": message });
    match schema["x-kubernetes-validations"].as_array_mut() {
        Some(rules) => rules.push(rule),
        None => schema["x-kubernetes-validations"] = json!([rule]),
    }
    schema
}

pub(super) fn rules(schema: Value, rules: &[(&str, &str)]) -> Value {
    rules.iter().fold(schema, |schema, (text, message)| rule(schema, text, message))
}
