//! Strategic merge: a merge patch that knows which lists are keyed.
//!
//! A null deletes, an absent field stays. A list with the `merge` strategy is merged by its merge key (or as a set of
//! scalars); other lists are replaced. Directives: `$patch: replace | delete`, `$retainKeys`,
//! `$setElementOrder/LIST`, `$deleteFromPrimitiveList/LIST`. Works on what was sent, before decoding.

use serde_json::{Map, Value};

use super::PatchError;
use crate::schema::{Field, Schema, Shape, TypeId};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;
type Result<T> = std::result::Result<T, PatchError>;

/// Applies a strategic merge patch to an object of type `ty`.
///
/// # Errors
/// When the patch is not an object, misuses a directive, or has list items without their merge key.
pub fn strategic_merge(schema: &Schema, ty: TypeId, doc: &Value, patch: &Value) -> Result<Value> {
    let (Some(doc), Some(patch)) = (doc.as_object(), patch.as_object()) else {
        return Err(PatchError::Malformed(
            "a strategic merge patch and what it is applied to are objects".to_owned(),
        ));
    };
    let merged = Merge { schema }.object(doc.clone(), patch.clone(), &Place::Type(ty))?;
    Ok(Value::Object(merged))
}

/// What the schema says about an object on the way down.
#[derive(Clone, Debug)]
enum Place<'a> {
    Type(TypeId),
    /// A map, with the form of its values.
    Map(&'a Shape),
    /// No schema: objects are merged, lists replaced.
    Unknown,
}

/// What the schema says about one field.
struct Rule<'a> {
    /// Where the field's value, or each of its items, leads.
    place: Place<'a>,
    merge: bool,
    replace: bool,
    merge_key: Option<&'a str>,
}

struct Merge<'a> {
    schema: &'a Schema,
}

fn malformed(message: impl Into<String>) -> PatchError {
    PatchError::Malformed(message.into())
}

fn no_merge_key(item: &Value, key: &str) -> PatchError {
    malformed(format!("map: {item} does not contain declared merge key: {key}"))
}

impl<'a> Merge<'a> {
    fn place(&self, shape: &'a Shape) -> Place<'a> {
        match self.schema.resolve(shape) {
            Shape::Ref(id) => Place::Type(*id),
            Shape::Map(value) => Place::Map(value),
            Shape::List(item) => self.place(item),
            _ => Place::Unknown,
        }
    }

    fn rule(&self, place: &Place<'a>, name: &str) -> Rule<'a> {
        let field: Option<&'a Field> = match place {
            Place::Type(id) => self.schema.get(*id).field(name),
            Place::Map(value) => {
                return Rule { place: self.place(value), merge: false, replace: false, merge_key: None };
            }
            Place::Unknown => None,
        };
        match field {
            Some(field) => Rule {
                place: self.place(&field.shape),
                merge: field.patch.merge,
                replace: field.patch.replace,
                merge_key: field.merge_key.as_deref(),
            },
            None => Rule { place: Place::Unknown, merge: false, replace: false, merge_key: None },
        }
    }

    fn object(&self, mut original: Object, mut patch: Object, place: &Place<'a>) -> Result<Object> {
        if let Some(directive) = patch.remove(PATCH) {
            return match directive.as_str() {
                Some("replace") => Ok(without_directives_in(patch)),
                Some("delete") => Ok(Object::new()),
                _ => Err(malformed(format!(
                    "unknown patch type: {directive} in map: {}",
                    Value::Object(patch)
                ))),
            };
        }
        retain_keys(&mut original, &mut patch)?;
        self.set_orders(&mut original, &mut patch, place)?;
        for (key, value) in patch {
            match key.strip_prefix(DELETE_FROM_LIST) {
                Some(list) => delete_from_list(&mut original, list, &value)?,
                None => self.field(&mut original, key, value, place)?,
            }
        }
        Ok(original)
    }

    fn field(&self, original: &mut Object, key: String, patch: Value, place: &Place<'a>) -> Result<()> {
        if patch.is_null() {
            original.remove(&key);
            return Ok(());
        }
        let rule = self.rule(place, &key);
        let merged = match (original.remove(&key), patch) {
            (Some(Value::Object(_)), Value::Object(patch)) if rule.replace => Value::Object(patch),
            (Some(Value::Object(old)), Value::Object(patch)) => {
                Value::Object(self.object(old, patch, &rule.place)?)
            }
            (Some(Value::Array(old)), Value::Array(patch)) if rule.merge => {
                Value::Array(self.list(old, patch, &rule)?)
            }
            (Some(Value::Array(_)), patch @ Value::Array(_)) => patch,
            (_, patch) => match added(patch) {
                Some(value) => value,
                None => return Ok(()),
            },
        };
        original.insert(key, merged);
        Ok(())
    }

    fn list(&self, original: Vec<Value>, patch: Vec<Value>, rule: &Rule<'a>) -> Result<Vec<Value>> {
        let Some(first) = original.first().or(patch.first()) else {
            return Ok(original);
        };
        if original.iter().chain(&patch).any(|item| item.is_object() != first.is_object() || item.is_array())
        {
            return Err(malformed("list element types are not identical, or lists of lists"));
        }
        if !first.is_object() {
            let order = original.clone();
            let mut merged = original;
            for item in &patch {
                if !merged.contains(item) {
                    merged.push(item.clone());
                }
            }
            return Ok(ordered(merged, &patch, &order, None));
        }
        let key = rule.merge_key.ok_or_else(|| malformed("cannot merge lists without merge key"))?;
        let (original, patch) = list_directives(original, patch, key)?;
        let order = original.clone();
        let mut merged = original;
        for item in &patch {
            let value = item.get(key).ok_or_else(|| no_merge_key(item, key))?;
            let found = merged.iter_mut().find(|old| old.get(key) == Some(value));
            match (found, item) {
                (Some(old), Value::Object(item)) => {
                    let place = &rule.place;
                    let before = old.as_object_mut().map(std::mem::take).unwrap_or_default();
                    *old = Value::Object(self.object(before, item.clone(), place)?);
                }
                _ => merged.extend(added(item.clone())),
            }
        }
        if let Some(item) = merged.iter().find(|item| item.get(key).is_none()) {
            return Err(no_merge_key(item, key));
        }
        Ok(ordered(merged, &patch, &order, Some(key)))
    }

    /// Handles `$setElementOrder/LIST` together with the patch of that list.
    fn set_orders(&self, original: &mut Object, patch: &mut Object, place: &Place<'a>) -> Result<()> {
        let keys: Vec<String> = patch.keys().filter(|key| key.starts_with(SET_ORDER)).cloned().collect();
        for directive in keys {
            let name = directive[SET_ORDER.len()..].to_owned();
            let Some(Value::Array(order)) = patch.remove(&directive) else {
                return Err(malformed(format!("{directive} must be a list")));
            };
            let rule = self.rule(place, &name);
            let list = |value: Option<Value>| match value {
                None | Some(Value::Null) => Ok(None),
                Some(Value::Array(items)) => Ok(Some(items)),
                Some(other) => Err(malformed(format!("expected {name} to be a list, got {other}"))),
            };
            let explicit_null = patch.get(&name).is_some_and(Value::is_null);
            let changes = list(patch.remove(&name))?;
            if explicit_null {
                original.remove(&name);
                continue;
            }
            if let Some(changes) = &changes {
                check_order(changes, &order, rule.merge_key)?;
            }
            let before = list(original.get(&name).cloned())?;
            let deletes = changes.iter().flatten().any(|item| item[PATCH] == "delete");
            let merged = match (before.clone(), changes) {
                (None, None) => continue,
                (Some(before), None) => before,
                (None, Some(changes)) => changes.into_iter().filter_map(added).collect(),
                (Some(before), Some(changes)) if rule.merge => self.list(before, changes, &rule)?,
                (Some(_), Some(changes)) => changes,
            };
            let (mut before, key) = (before.unwrap_or_default(), rule.merge_key);
            if deletes {
                refill(&mut before, &merged, key);
            }
            original.insert(name, Value::Array(ordered(merged, &order, &before, key)));
        }
        Ok(())
    }
}

/// As upstream has it, new items take the places in the server's order that deleted ones leave.
fn refill(server_order: &mut Vec<Value>, merged: &[Value], key: Option<&str>) {
    let places = server_order.len();
    let added = merged.iter().filter(|item| !server_order.iter().any(|old| same(old, item, key)));
    let added: Vec<Value> = added.cloned().collect();
    server_order.retain(|old| merged.iter().any(|item| same(old, item, key)));
    server_order.extend(added);
    server_order.truncate(places);
}

/// Keeps only the fields that `$retainKeys` lists.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<()> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let wrong = || malformed("invalid patch format of retainKeys");
    let keys = keys.as_array().ok_or_else(wrong)?;
    let listed = |name: &str| keys.iter().any(|key| key == name);
    for (name, value) in patch.iter() {
        let directive = name.starts_with(DELETE_FROM_LIST) || name.starts_with(SET_ORDER);
        if !value.is_null() && !directive && !listed(name) {
            return Err(wrong());
        }
    }
    original.retain(|name, _| listed(name));
    Ok(())
}

fn delete_from_list(original: &mut Object, list: &str, items: &Value) -> Result<()> {
    let items = items.as_array().ok_or_else(|| malformed("invalid patch format of primitive list"))?;
    if let Some(Value::Array(values)) = original.get_mut(list) {
        values.retain(|value| !items.contains(value));
    }
    Ok(())
}

/// Takes `$patch` items out of the patch of a list, and does what they say.
fn list_directives(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    key: &str,
) -> Result<(Vec<Value>, Vec<Value>)> {
    let mut rest = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        match item.get(PATCH).map(|directive| directive.as_str().unwrap_or("")) {
            None => rest.push(item),
            Some("delete") => {
                let value = item.get(key).ok_or_else(|| no_merge_key(&item, key))?;
                original.retain(|old| old.get(key) != Some(value));
            }
            Some("replace") => replace = true,
            Some("merge") => return Err(malformed("merging lists cannot yet be specified in the patch")),
            Some(other) => return Err(malformed(format!("unknown patch type: {other} in map: {item}"))),
        }
    }
    if replace {
        return Ok((rest.into_iter().filter_map(added).collect(), Vec::new()));
    }
    Ok((original, rest))
}

/// The items of a patch must follow the order that the patch demands.
fn check_order(changes: &[Value], order: &[Value], key: Option<&str>) -> Result<()> {
    if changes.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut places = order.iter();
    for item in changes.iter().filter(|item| item.get(PATCH).is_none()) {
        if let (Some(key), None) = (key, key.and_then(|key| item.get(key))) {
            return Err(no_merge_key(item, key));
        }
        if !places.any(|place| same(place, item, key)) {
            return Err(malformed(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                Value::from(changes.to_vec()),
                Value::from(order.to_vec())
            )));
        }
    }
    Ok(())
}

fn same(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    }
}

/// Orders merged items: those of the patch as `patch_order` has them, the others as they stood in `server_order`, and
/// an item of the server goes before one of the patch where it stood before it.
fn ordered(
    merged: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    key: Option<&str>,
) -> Vec<Value> {
    let place = |order: &[Value], item: &Value| order.iter().position(|other| same(other, item, key));
    let (mut patch, mut server): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| place(patch_order, item).is_some());
    patch.sort_by_key(|item| place(patch_order, item));
    server.sort_by_key(|item| place(server_order, item));
    let mut result = Vec::with_capacity(patch.len() + server.len());
    let (mut patch, mut server) = (patch.into_iter().peekable(), server.into_iter().peekable());
    loop {
        let server_first = match (server.peek(), patch.peek()) {
            (None, None) => return result,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(left), Some(right)) => match (place(server_order, left), place(server_order, right)) {
                (Some(left), Some(right)) => left < right,
                _ => false,
            },
        };
        result.extend(if server_first { server.next() } else { patch.next() });
    }
}

/// What a patch adds where nothing was: without nulls and directives; nothing where it is a directive itself.
fn added(value: Value) -> Option<Value> {
    match value {
        Value::Object(object) if object.contains_key(PATCH) => None,
        Value::Object(object) => Some(Value::Object(without_directives_in(object))),
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(added).collect())),
        value => Some(value),
    }
}

fn without_directives_in(object: Object) -> Object {
    let entries = object.into_iter().filter(|(name, value)| {
        let directive =
            name == RETAIN_KEYS || name.starts_with(DELETE_FROM_LIST) || name.starts_with(SET_ORDER);
        !directive && !value.is_null()
    });
    entries.filter_map(|(name, value)| Some((name, added(value)?))).collect()
}

#[cfg(test)]
mod tests;
