//! The owner of a new object, found in one walk straight to `fieldsV1`: creation is the write that happens most, and what
//! it owns is what is there.

use serde_json::{Map, Value};

use super::{
    element::{PathElement, compare_values},
    typed::{Atom, Typed, zero},
};

/// What a creator owns of `value`, as `fieldsV1`; `None` where items occur twice, which needs the long way.
///
/// # Errors
/// When items of a list cannot be told apart.
pub(super) fn added(typed: Typed<'_>, value: &Value) -> Result<Option<Map<String, Value>>, String> {
    let empty = Value::Object(Map::new());
    let mut walk = Walk { has_repeated: false };
    let fields = walk.value(typed, value, Some(&empty))?.unwrap_or_default();
    Ok((!walk.has_repeated).then_some(fields))
}

struct Walk {
    has_repeated: bool,
}

impl Walk {
    /// What is below the value; `None` where it is what would be there anyway, `before`.
    fn value(
        &mut self,
        typed: Typed<'_>,
        value: &Value,
        before: Option<&Value>,
    ) -> Result<Option<Map<String, Value>>, String> {
        let atom = typed.atom(value);
        let mut fields = Map::new();
        match (atom, value) {
            (Atom::Struct(_) | Atom::Map(_) | Atom::Deduced, Value::Object(object)) if !object.is_empty() => {
                for (name, value) in object {
                    let before = match (before, atom) {
                        (Some(_), Atom::Struct(ty)) => zero(typed.schema, ty, name),
                        _ => None,
                    };
                    if let Some(below) = self.value(typed.of_entry(atom, name), value, before)? {
                        fields.insert(PathElement::field(name).encode(), Value::Object(below));
                    }
                }
            }
            (Atom::Set(_) | Atom::Keyed(..) | Atom::KeyedBy(..), Value::Array(items))
                if !items.is_empty() =>
            {
                let below_type = typed.of_item(atom);
                for (i, item) in items.iter().enumerate() {
                    let element = typed.element(atom, item).map_err(|text| format!("element {i}: {text}"))?;
                    let below = self.value(below_type, item, None)?.unwrap_or_default();
                    self.has_repeated |= fields.insert(element.encode(), Value::Object(below)).is_some();
                }
            }
            _ => {
                let is_same = before.is_some_and(|before| compare_values(before, value).is_eq());
                return Ok((!is_same).then_some(fields));
            }
        }
        match (before, fields.is_empty()) {
            (Some(_), true) => Ok(None),
            (Some(_), false) | (None, true) => Ok(Some(fields)),
            (None, false) => {
                fields.insert(".".to_owned(), Value::Object(Map::new()));
                Ok(Some(fields))
            }
        }
    }
}

/// Takes out what is at a path of field names, and with `and_below` what is below it too.
pub(super) fn take_out(fields: &mut Map<String, Value>, path: &[&str], and_below: bool) {
    let Some((first, rest)) = path.split_first() else { return };
    let key = PathElement::field(first).encode();
    let Some(below) = fields.get_mut(&key).and_then(Value::as_object_mut) else { return };
    if rest.is_empty() {
        below.remove(".");
        if and_below || below.is_empty() {
            fields.remove(&key);
        }
        return;
    }
    let was_leaf = below.is_empty();
    take_out(below, rest, and_below);
    if below.is_empty() && !was_leaf {
        fields.remove(&key);
    }
}
