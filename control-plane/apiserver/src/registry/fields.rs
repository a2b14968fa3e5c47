//! Reading and writing an object's fields by JSON pointer, with Go's view of absence: a missing field, null and the
//! zero value read alike. Pure; nothing here knows a kind.

use std::sync::LazyLock;

use api::quantity::Quantity;
use serde_json::{Map, Value};

static NULL: Value = Value::Null;
static NO_ENTRIES: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);

/// The value at a JSON pointer (`/spec/replicas`), null where there is none.
pub(crate) fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    let mut at = value;
    for token in pointer.split('/').skip(1) {
        let next = match at {
            Value::Object(entries) if token.contains('~') => {
                entries.get(&token.replace("~1", "/").replace("~0", "~"))
            }
            Value::Object(entries) => entries.get(token),
            Value::Array(items) => token.parse().ok().and_then(|index: usize| items.get(index)),
            _ => None,
        };
        match next {
            Some(next) => at = next,
            None => return &NULL,
        }
    }
    at
}

pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    at(value, pointer).as_str().unwrap_or("")
}

pub(crate) fn int(value: &Value, pointer: &str) -> i64 {
    at(value, pointer).as_i64().unwrap_or(0)
}

pub(crate) fn flag(value: &Value, pointer: &str) -> bool {
    at(value, pointer).as_bool().unwrap_or(false)
}

pub(crate) fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    at(value, pointer).as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn entries<'a>(value: &'a Value, pointer: &str) -> &'a Map<String, Value> {
    at(value, pointer).as_object().unwrap_or(&NO_ENTRIES)
}

pub(crate) fn present(value: &Value, pointer: &str) -> bool {
    !at(value, pointer).is_null()
}

/// Absent, null, "", 0, false, [] or {}.
pub(crate) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
    }
}

/// The object under `key`, made where it is missing or null. `value` becomes an object if it is none.
pub(crate) fn child<'a>(value: &'a mut Value, key: &str) -> &'a mut Value {
    let slot = fields_mut(value).entry(key).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Object(Map::new());
    }
    slot
}

/// The array under `key`, made where it is missing.
pub(crate) fn list<'a>(value: &'a mut Value, key: &str) -> &'a mut Vec<Value> {
    let slot = fields_mut(value).entry(key).or_insert(Value::Null);
    if !slot.is_array() {
        *slot = Value::Array(Vec::new());
    }
    slot.as_array_mut().expect("made an array above")
}

pub(crate) fn fields_mut(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("made an object above")
}

/// The elements of the array under `key`; nothing where there is none.
pub(crate) fn each<'a>(value: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    value.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// The value under `key` where it is an object.
pub(crate) fn existing<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    value.get_mut(key).filter(|v| v.is_object())
}

pub(crate) fn set(value: &mut Value, key: &str, to: impl Into<Value>) {
    fields_mut(value).insert(key.to_owned(), to.into());
}

/// Sets `key` where it is missing or null (a pointer field of Go).
pub(crate) fn set_default(value: &mut Value, key: &str, to: impl Into<Value>) {
    if value.get(key).is_none_or(Value::is_null) {
        set(value, key, to);
    }
}

/// Sets `key` where it is missing or the zero value (a plain field of Go).
pub(crate) fn set_if_zero(value: &mut Value, key: &str, to: impl Into<Value>) {
    if value.get(key).is_none_or(is_zero) {
        set(value, key, to);
    }
}

pub(crate) fn remove(value: &mut Value, key: &str) {
    if let Some(fields) = value.as_object_mut() {
        fields.remove(key);
    }
}

/// Makes `key` of `to` what it is in `from`, absence included.
pub(crate) fn copy(to: &mut Value, from: &Value, key: &str) {
    match from.get(key) {
        Some(value) => set(to, key, value.clone()),
        None => remove(to, key),
    }
}

/// The members of these objects are quantities, equal by amount and not by text.
const QUANTITY_MAPS: [&str; 6] = ["limits", "requests", "capacity", "allocatable", "hard", "overhead"];

/// Equality as upstream's `Semantic.DeepEqual`: absent equals null, "", 0, false, [] and {}; quantities by amount.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.iter().all(|(key, value)| same_under(key, value, b.get(key).unwrap_or(&NULL)))
                && b.iter().all(|(key, value)| a.contains_key(key) || is_zero(value))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        _ => a == b || (is_zero(a) && is_zero(b)),
    }
}

fn same_under(key: &str, a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) if QUANTITY_MAPS.contains(&key) => {
            a.len() == b.len()
                && a.iter().all(|(name, amount)| b.get(name).is_some_and(|b| same_amount(amount, b)))
        }
        _ => same(a, b),
    }
}

fn same_amount(a: &Value, b: &Value) -> bool {
    a == b || matches!((quantity(a), quantity(b)), (Some(a), Some(b)) if a.milli() == b.milli())
}

/// A quantity as JSON writes it: a string or a bare number.
pub(crate) fn quantity(value: &Value) -> Option<Quantity> {
    Quantity::from_json(value).ok()
}

/// Seconds since the epoch of an RFC 3339 text.
pub(crate) fn seconds(value: &Value) -> Option<i64> {
    value.as_str()?.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}
