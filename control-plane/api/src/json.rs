//! Strict JSON: what serde_json reads, plus the fields that a document names twice.

use std::{cell::RefCell, collections::HashSet, fmt};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::schema::{Schema, Shape, TypeId};

/// How many duplicates are reported; a document of nothing else must not answer with itself.
const DUPLICATES_MAX: usize = 100;

/// Reads one JSON document. The last of several values of a field counts, as upstream has it.
///
/// The second part lists texts such as `duplicate field "spec.replicas"`.
///
/// # Errors
/// Where and why the text is not JSON.
pub fn parse_strict(bytes: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let duplicates = RefCell::new(Vec::new());
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = Node { path: &Path::Root, duplicates: &duplicates };
    let value = seed.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, duplicates.into_inner()))
}

/// Where the reader is, as a list that lives on the stack: spelled out only when something is wrong.
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

struct Node<'a> {
    path: &'a Path<'a>,
    duplicates: &'a RefCell<Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = Path::Item(self.path, items.len());
            match sequence.next_element_seed(Node { path: &path, duplicates: self.duplicates })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            let path = Path::Field(self.path, &name);
            let value = entries.next_value_seed(Node { path: &path, duplicates: self.duplicates })?;
            if object.contains_key(&name) {
                let mut duplicates = self.duplicates.borrow_mut();
                let text = format!("duplicate field {}", crate::field::quote(&path.to_string()));
                if duplicates.len() < DUPLICATES_MAX && !duplicates.contains(&text) {
                    duplicates.push(text);
                }
            }
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

/// What is wrong with a document that was read already, in its own order: fields that `ty` does not have, and fields that
/// it has and the document names twice. What is below an unknown field, or in an object whose fields nobody knows, is
/// not looked at.
pub fn strict_errors(schema: &Schema, ty: TypeId, bytes: &[u8]) -> Vec<String> {
    let found = RefCell::new(Vec::new());
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let root = Shape::Ref(ty);
    let checked = Check { schema, shape: Some(&root), path: &Path::Root, found: &found };
    // It is JSON: the document was read before.
    let _ = checked.deserialize(&mut deserializer);
    found.into_inner()
}

/// Checks one value; no shape means that anything goes.
struct Check<'a> {
    schema: &'a Schema,
    shape: Option<&'a Shape>,
    path: &'a Path<'a>,
    found: &'a RefCell<Vec<String>>,
}

impl<'a> Check<'a> {
    fn report(&self, what: &str, path: &Path<'_>) {
        let mut found = self.found.borrow_mut();
        let text = format!("{what} field {}", crate::field::quote(&path.to_string()));
        if found.len() < DUPLICATES_MAX && !found.contains(&text) {
            found.push(text);
        }
    }

    fn at<'b>(&self, path: &'b Path<'b>, shape: Option<&'b Shape>) -> Check<'b>
    where
        'a: 'b,
    {
        Check { schema: self.schema, shape, path, found: self.found }
    }
}

impl<'de> DeserializeSeed<'de> for Check<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.shape.map(|shape| self.schema.resolve(shape)) {
            Some(Shape::Ref(_) | Shape::Map(_) | Shape::List(_)) => deserializer.deserialize_any(self),
            _ => deserializer.deserialize_ignored_any(IgnoredAny).map(drop),
        }
    }
}

impl<'de> Visitor<'de> for Check<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        let item = match self.shape.map(|shape| self.schema.resolve(shape)) {
            Some(Shape::List(item)) => Some(&**item),
            _ => None,
        };
        for index in 0.. {
            let path = Path::Item(self.path, index);
            if sequence.next_element_seed(self.at(&path, item))?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = entries.next_key::<String>()? {
            let path = Path::Field(self.path, &name);
            let (is_known, shape) = match self.shape.map(|shape| self.schema.resolve(shape)) {
                Some(Shape::Ref(id)) => match self.schema.get(*id).field(&name) {
                    Some(field) => (true, Some(&field.shape)),
                    None => (false, None),
                },
                Some(Shape::Map(value)) => (true, Some(&**value)),
                _ => (true, None),
            };
            if !is_known {
                self.report("unknown", &path);
            } else if seen.contains(&name) {
                self.report("duplicate", &path);
            }
            entries.next_value_seed(self.at(&path, shape))?;
            seen.insert(name);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn duplicates_are_named_with_their_path_and_the_last_counts() {
        let text = br#"{"spec":{"replicas":1,"list":[{"a":1},{"a":1,"a":2}],"replicas":2}}"#;
        let (value, duplicates) = parse_strict(text).unwrap();
        assert_eq!(value, json!({"spec": {"replicas": 2, "list": [{"a": 1}, {"a": 2}]}}));
        assert_eq!(duplicates, ["duplicate field \"spec.list[1].a\"", "duplicate field \"spec.replicas\""]);
    }

    #[test]
    fn strict_errors_stand_in_the_order_of_the_document() {
        let schema = crate::schema::builtin();
        let ty = schema.type_of("apps", "v1", "Deployment").unwrap();
        let body = br#"{"metadata":{"name":"a","name":"b","unknownMeta":1,"labels":{"x":"1","x":"2"}},
            "spec":{"unknown1":{"a":1,"a":2},"unknownDupe":1,"unknownDupe":2,"paused":true,"paused":false,
            "template":{"spec":{"containers":[{"unknownNested":1,"imagePullPolicy":"A","imagePullPolicy":"B"}]}}}}"#;
        assert_eq!(
            strict_errors(schema, ty, body),
            [
                "duplicate field \"metadata.name\"",
                "unknown field \"metadata.unknownMeta\"",
                "duplicate field \"metadata.labels.x\"",
                "unknown field \"spec.unknown1\"",
                "unknown field \"spec.unknownDupe\"",
                "duplicate field \"spec.paused\"",
                "unknown field \"spec.template.spec.containers[0].unknownNested\"",
                "duplicate field \"spec.template.spec.containers[0].imagePullPolicy\"",
            ]
        );
    }

    #[test]
    fn trailing_text_is_refused() {
        assert!(parse_strict(b"{} {}").is_err());
        assert!(parse_strict(b"{\"a\":").is_err());
    }

    proptest! {
        #[test]
        fn reads_what_serde_json_reads(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let plain: Option<Value> = serde_json::from_slice(&bytes).ok();
            prop_assert_eq!(parse_strict(&bytes).ok().map(|(value, _)| value), plain);
        }
    }
}
