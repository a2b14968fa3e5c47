//! Uniqueness: items of sets, and keys of lists that are maps.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{ListKind, Structural};
use crate::field::{FieldError, child, index, key};

impl Structural {
    /// Duplicates in lists of `x-kubernetes-list-type` set and map, anywhere in the value.
    pub fn duplicates(&self, value: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        self.find_duplicates(value, "", &mut errors);
        errors
    }

    fn find_duplicates(&self, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
        match value {
            Value::Object(object) => {
                for (name, value) in object {
                    if let Some(property) = self.property(name) {
                        property.find_duplicates(value, &child(path, name), errors);
                    } else if let Some(additional) = self.additional_schema() {
                        additional.find_duplicates(value, &key(path, name), errors);
                    }
                }
            }
            Value::Array(items) => {
                match &self.list {
                    ListKind::Set => {
                        for at in repeated(items.iter()) {
                            errors.push(FieldError::duplicate(index(path, at), items[at].clone()));
                        }
                    }
                    ListKind::Map(keys) => map_duplicates(items, keys, path, errors),
                    ListKind::Unset | ListKind::Atomic => {}
                }
                if let Some(item) = &self.items {
                    for (at, value) in items.iter().enumerate() {
                        item.find_duplicates(value, &index(path, at), errors);
                    }
                }
            }
            _ => {}
        }
    }
}

fn map_duplicates(items: &[Value], keys: &[String], path: &str, errors: &mut Vec<FieldError>) {
    for (at, item) in items.iter().enumerate() {
        if !item.is_object() && !item.is_null() {
            let text = "must be an object for an array of list-type map";
            errors.push(FieldError::invalid(index(path, at), item.clone(), text));
            return;
        }
    }
    let keys_of = |item: &Value| -> Value {
        let pairs = keys.iter().filter_map(|key| Some((key.clone(), item.get(key)?.clone())));
        Value::Object(pairs.collect::<Map<_, _>>())
    };
    let keyed: Vec<Value> = items.iter().map(keys_of).collect();
    for at in repeated(keyed.iter()) {
        errors.push(FieldError::duplicate(index(path, at), keyed[at].clone()));
    }
}

/// The places where a value stands for the second time.
fn repeated<'a>(values: impl Iterator<Item = &'a Value>) -> Vec<usize> {
    let mut seen: HashMap<&Value, usize> = HashMap::new();
    let mut again = Vec::new();
    for (at, value) in values.enumerate() {
        let times = seen.entry(value).or_default();
        *times += 1;
        if *times == 2 {
            again.push(at);
        }
    }
    again
}

pub(super) fn has_duplicates(items: &[Value]) -> bool {
    items.len() > 1 && !repeated(items.iter()).is_empty()
}
