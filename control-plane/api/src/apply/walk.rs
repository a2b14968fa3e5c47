//! Walks over typed values: which fields a value has, what one value is merged with another, and a value without some
//! of its fields or with nothing but them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{
    element::PathElement,
    set::FieldSet,
    typed::{Atom, Typed, decisive},
};

/// The fields that a value has: its leaves, the items of its sets and keyed lists, the keys of its maps.
pub(super) fn fields(typed: Typed<'_>, value: &Value) -> FieldSet {
    fields_of(typed, value).1
}

/// Whether the value itself counts, and what counts below it.
fn fields_of(typed: Typed<'_>, value: &Value) -> (bool, FieldSet) {
    let atom = typed.atom(value);
    let mut set = FieldSet::default();
    match (atom, value) {
        (Atom::Leaf(_) | Atom::AtomicObject | Atom::AtomicList, _) => return (true, set),
        (Atom::Struct(_) | Atom::Map(_) | Atom::Deduced, Value::Object(object)) => {
            for (name, value) in object {
                let (own, below) = fields_of(typed.of_entry(atom, name), value);
                let is_empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                let is_key = !matches!(atom, Atom::Struct(ty) if ty.field(name).is_some());
                set.push(PathElement::field(name), own || is_empty || is_key, below);
            }
        }
        (Atom::Set(_) | Atom::Keyed(..) | Atom::KeyedBy(..), Value::Array(items)) => {
            let elements: Vec<Option<PathElement>> =
                items.iter().map(|item| typed.element(atom, item).ok()).collect();
            let mut seen = BTreeSet::new();
            let repeated: BTreeSet<&PathElement> =
                elements.iter().flatten().filter(|element| !seen.insert(*element)).collect();
            for (element, item) in elements.iter().zip(items) {
                let Some(element) = element else { continue };
                let below = if repeated.contains(element) {
                    FieldSet::default()
                } else {
                    fields_of(typed.of_item(atom), item).1
                };
                set.push(element.clone(), true, below);
            }
        }
        _ => {}
    }
    set.finish();
    (false, set)
}

/// The fields with all named fields above them, as far as the type knows them.
pub(super) fn with_named_parents(typed: Typed<'_>, set: &FieldSet) -> FieldSet {
    let atom = typed.atom(&Value::Null);
    set.map(|element, member, children| {
        let (named, below) = match (element, atom) {
            (PathElement::Field(name), Atom::Struct(ty)) => {
                (ty.field(name).is_some() && !children.is_empty(), typed.of_field(ty, name))
            }
            (PathElement::Field(name), _) => (false, typed.of_entry(atom, name)),
            _ => (false, typed.of_item(atom)),
        };
        (member || named, with_named_parents(below, children))
    })
}

/// What results when `right` is laid over `left`; nothing is removed, and a list follows the order of `right` where
/// that says something. `None` where neither has anything.
pub(super) fn merge(typed: Typed<'_>, left: Option<&Value>, right: Option<&Value>) -> Option<Value> {
    let leaf = || right.or(left).cloned();
    let atom = typed.atom(decisive(left, right)?);
    match atom {
        Atom::Leaf(_) | Atom::AtomicObject | Atom::AtomicList => leaf(),
        Atom::Struct(_) | Atom::Map(_) | Atom::Deduced => {
            if object_of(left).is_none() && object_of(right).is_none() {
                return leaf();
            }
            let mut out = object_of(left).cloned().unwrap_or_default();
            for (name, value) in object_of(right).into_iter().flatten() {
                let below = typed.of_entry(atom, name);
                let merged = merge(below, object_of(left).and_then(|left| left.get(name)), Some(value));
                out.extend(merged.map(|merged| (name.clone(), merged)));
            }
            Some(Value::Object(out))
        }
        Atom::Set(_) | Atom::Keyed(..) | Atom::KeyedBy(..) => match (list_of(left), list_of(right)) {
            ([], []) => leaf(),
            (left, right) => Some(Value::Array(merge_lists(typed, atom, left, right))),
        },
    }
}

fn object_of(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object).filter(|object| !object.is_empty())
}

fn list_of(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Joins two lists: items of `right` in its order, items that only `left` has before the shared item that they stood
/// before.
fn merge_lists(typed: Typed<'_>, atom: Atom<'_>, left: &[Value], right: &[Value]) -> Vec<Value> {
    let elements = |items: &[Value]| -> Vec<PathElement> {
        items.iter().map(|item| typed.element(atom, item).unwrap_or(PathElement::Index(-1))).collect()
    };
    let (left_elements, right_elements) = (elements(left), elements(right));
    let right_by_element: BTreeMap<&PathElement, &Value> = right_elements.iter().zip(right).collect();
    let mut left_by_element: BTreeMap<&PathElement, Option<&Value>> = BTreeMap::new();
    for (element, item) in left_elements.iter().zip(left) {
        // Repeated items are not merged with the new one.
        left_by_element.entry(element).and_modify(|item| *item = None).or_insert(Some(item));
    }
    let below = typed.of_item(atom);
    let mut shared = right_elements.iter().filter(|element| left_by_element.contains_key(element)).peekable();
    let mut merged: BTreeSet<&PathElement> = BTreeSet::new();
    let mut out = Vec::with_capacity(left.len().max(right.len()));
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if let (Some(element), Some(wanted)) = (left_elements.get(l), right_elements.get(r)) {
            if element == wanted {
                let before = left_by_element.get(element).copied().flatten();
                out.extend(merge(below, before, Some(&right[r])));
                merged.insert(element);
                (l, r) = (l + 1, r + 1);
                shared.next();
                continue;
            }
            let waits =
                right_by_element.contains_key(element) && shared.peek().is_some_and(|next| *next != element);
            if waits {
                l += 1;
                continue;
            }
        }
        if let Some(element) = left_elements.get(l) {
            if !right_by_element.contains_key(element) {
                out.push(left[l].clone());
                l += 1;
                continue;
            }
            if merged.contains(element) {
                l += 1;
            }
        }
        if let Some(element) = right_elements.get(r) {
            let before = left_by_element.get(element).copied().flatten();
            out.extend(merge(below, before, Some(&right[r])));
            merged.insert(element);
            r += 1;
            if shared.peek() == Some(&element) {
                shared.next();
            }
        }
    }
    out
}

/// The value without these fields; containers that were there stay, empty if need be.
pub(super) fn remove(typed: Typed<'_>, value: Value, set: &FieldSet) -> Value {
    let atom = typed.atom(&value);
    match (atom, value) {
        (Atom::Struct(_) | Atom::Map(_) | Atom::Deduced, Value::Object(object)) => {
            let keep = |(name, value): (String, Value)| {
                let element = PathElement::field(&name);
                if set.has_member(&element) {
                    return None;
                }
                let value = match set.below(&element) {
                    Some(below) => remove(typed.of_entry(atom, &name), value, below),
                    None => value,
                };
                Some((name, value))
            };
            Value::Object(object.into_iter().filter_map(keep).collect())
        }
        (Atom::Set(_) | Atom::Keyed(..) | Atom::KeyedBy(..), Value::Array(items)) => {
            let keep = |item: Value| {
                let Ok(element) = typed.element(atom, &item) else { return Some(item) };
                if set.has_member(&element) {
                    return None;
                }
                Some(match set.below(&element) {
                    Some(below) => remove(typed.of_item(atom), item, below),
                    None => item,
                })
            };
            Value::Array(items.into_iter().filter_map(keep).collect())
        }
        // What is owned whole has nothing inside that could be owned apart.
        (Atom::AtomicObject, Value::Object(_)) => Value::Object(Map::new()),
        (Atom::AtomicList, Value::Array(_)) => Value::Array(Vec::new()),
        (_, value) => value,
    }
}

/// Only these fields of the value; `None` where none of them is there.
pub(super) fn extract(typed: Typed<'_>, value: &Value, set: &FieldSet) -> Option<Value> {
    let atom = typed.atom(value);
    match (atom, value) {
        (Atom::Struct(_) | Atom::Map(_) | Atom::Deduced, Value::Object(object)) if !object.is_empty() => {
            let mut out = Map::new();
            for (name, value) in object {
                let element = PathElement::field(name);
                let below = typed.of_entry(atom, name);
                let taken = match set.below(&element) {
                    Some(children) => extract(below, value, children),
                    None if set.has_member(&element) => Some(bare(below, value)),
                    None => None,
                };
                out.extend(taken.map(|taken| (name.clone(), taken)));
            }
            (!out.is_empty()).then_some(Value::Object(out))
        }
        (Atom::Set(_) | Atom::Keyed(..) | Atom::KeyedBy(..), Value::Array(items)) if !items.is_empty() => {
            let mut out = Vec::new();
            for item in items {
                let Ok(element) = typed.element(atom, item) else { continue };
                match set.below(&element) {
                    Some(children) => out.extend(extract(typed.of_item(atom), item, children)),
                    None if set.has_member(&element) => out.push(item.clone()),
                    None => {}
                }
            }
            (!out.is_empty()).then_some(Value::Array(out))
        }
        (_, value) => Some(value.clone()),
    }
}

/// A member of which nothing below is owned: a leaf whole, of a container only that it is there.
fn bare(typed: Typed<'_>, value: &Value) -> Value {
    match (typed.atom(value), value) {
        (Atom::Struct(_) | Atom::Map(_) | Atom::Deduced, Value::Object(_)) => Value::Object(Map::new()),
        (_, value) => value.clone(),
    }
}
