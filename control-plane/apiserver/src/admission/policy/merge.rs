//! Lays a part of an object over the whole of it, by the schema: fields and map entries one by one, sets and keyed lists
//! item by item. Nothing is removed; parts that the schema holds atomic may not be touched.

use api::schema::{self, Field, ListType, MapType, Schema, Shape};
use serde_json::{Map, Value};

use crate::{admission::GroupVersionKind, handlers::Target};

/// The object with the part laid over it.
///
/// # Errors
/// Parts that are atomic, or items of keyed lists without a key.
pub(super) fn apply(
    kind: &GroupVersionKind,
    target: &Target,
    object: &Value,
    part: &Value,
) -> Result<Value, String> {
    let is_own = kind.kind == target.resource.kind && kind.group == target.resource.group;
    let (schema, ty): (&Schema, _) = if is_own {
        (&target.schema, Some(target.resource.ty))
    } else {
        let builtin = schema::builtin();
        (builtin, builtin.type_of(&kind.group, &kind.version, &kind.kind))
    };
    let shape = ty.map_or(Shape::Any, Shape::Ref);
    let merge = Merge { schema };
    let mut atomics = Vec::new();
    merge.find_atomics(Place { shape: &shape, field: None }, part, "", &mut atomics);
    if !atomics.is_empty() {
        let atomics = atomics.join(", ");
        return Err(format!(
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {atomics}"
        ));
    }
    merge.merge(Place { shape: &shape, field: None }, Some(object), part)
}

struct Merge<'s> {
    schema: &'s Schema,
}

/// A value's type, and the field that holds it where that says more.
#[derive(Clone, Copy)]
struct Place<'s> {
    shape: &'s Shape,
    field: Option<&'s Field>,
}

const ANY: &Shape = &Shape::Any;

/// How the items of a list are told apart.
enum Items<'s> {
    Atomic,
    Set,
    Keyed(&'s Shape, Vec<&'s str>),
}

impl<'s> Merge<'s> {
    fn resolved(&self, place: Place<'s>) -> &'s Shape {
        match place.shape {
            Shape::Ref(id) => self.schema.get(*id).leaf.as_ref().unwrap_or(place.shape),
            shape => shape,
        }
    }

    fn is_atomic_object(&self, place: Place<'s>) -> bool {
        let stated = place.field.and_then(|field| field.map).map(|map| map == MapType::Atomic);
        stated.unwrap_or_else(|| match self.resolved(place) {
            Shape::Ref(id) => self.schema.get(*id).atomic,
            _ => false,
        })
    }

    fn items(&self, place: Place<'s>) -> Items<'s> {
        let (Some(field), Shape::List(item)) = (place.field, self.resolved(place)) else {
            return Items::Atomic;
        };
        match &field.list {
            ListType::Set => Items::Set,
            ListType::Map(keys) => Items::Keyed(item, keys.iter().map(AsRef::as_ref).collect()),
            ListType::Unset if field.patch.merge => match &field.merge_key {
                Some(key) => Items::Keyed(item, vec![key.as_ref()]),
                None => Items::Set,
            },
            ListType::Atomic | ListType::Unset => Items::Atomic,
        }
    }

    fn entry(&self, place: Place<'s>, name: &str) -> Place<'s> {
        match self.resolved(place) {
            Shape::Ref(id) => match self.schema.get(*id).field(name) {
                Some(field) => Place { shape: &field.shape, field: Some(field) },
                None => Place { shape: ANY, field: None },
            },
            Shape::Map(values) => Place { shape: values, field: None },
            _ => Place { shape: ANY, field: None },
        }
    }

    fn find_atomics(&self, place: Place<'s>, part: &Value, path: &str, atomics: &mut Vec<String>) {
        match part {
            Value::Object(fields) => {
                if self.is_atomic_object(place) {
                    atomics.push(path.to_owned());
                }
                for (name, value) in fields {
                    self.find_atomics(self.entry(place, name), value, &format!("{path}.{name}"), atomics);
                }
            }
            Value::Array(items) if matches!(self.resolved(place), Shape::List(_)) => {
                let Shape::List(item) = self.resolved(place) else { return };
                if matches!(self.items(place), Items::Atomic) {
                    atomics.push(path.to_owned());
                }
                for (index, value) in items.iter().enumerate() {
                    let place = Place { shape: item, field: None };
                    self.find_atomics(place, value, &format!("{path}[{index}]"), atomics);
                }
            }
            _ => {}
        }
    }

    fn merge(&self, place: Place<'s>, object: Option<&Value>, part: &Value) -> Result<Value, String> {
        match part {
            Value::Object(fields) => {
                let mut merged = object.and_then(Value::as_object).cloned().unwrap_or_else(Map::new);
                for (name, value) in fields {
                    let below = self.merge(self.entry(place, name), merged.get(name), value)?;
                    merged.insert(name.clone(), below);
                }
                Ok(Value::Object(merged))
            }
            Value::Array(items) => {
                let old = object.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                match self.items(place) {
                    Items::Atomic => Ok(part.clone()),
                    Items::Set => {
                        let mut merged = old.to_vec();
                        merged.extend(items.iter().filter(|item| !old.contains(item)).cloned());
                        Ok(Value::Array(merged))
                    }
                    Items::Keyed(item, keys) => self.merge_keyed(item, &keys, old, items),
                }
            }
            scalar => Ok(scalar.clone()),
        }
    }

    fn merge_keyed(
        &self,
        item: &'s Shape,
        keys: &[&str],
        old: &[Value],
        items: &[Value],
    ) -> Result<Value, String> {
        let place = Place { shape: item, field: None };
        let mut merged = old.to_vec();
        for new in items {
            // A key may be left out where the schema gives it a default, as `protocol` of ports.
            let key_of = |value: &Value| -> Vec<Value> {
                keys.iter()
                    .map(|key| value.get(*key).cloned().unwrap_or_else(|| self.key_default(item, key)))
                    .collect()
            };
            let wanted = key_of(new);
            if wanted.iter().all(Value::is_null) {
                return Err(format!(
                    "failed to convert patch object to typed object: associative list with keys has an element that \
                     omits key field {:?} (and doesn't have default value)",
                    keys.first().unwrap_or(&"")
                ));
            }
            match merged.iter().position(|known| key_of(known) == wanted) {
                Some(at) => merged[at] = self.merge(place, Some(&merged[at]), new)?,
                None => merged.push(self.merge(place, None, new)?),
            }
        }
        Ok(Value::Array(merged))
    }

    fn key_default(&self, item: &Shape, key: &str) -> Value {
        let Shape::Ref(id) = item else { return Value::Null };
        let default = self.schema.get(*id).field(key).and_then(|field| field.default.as_deref());
        default.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }
}
