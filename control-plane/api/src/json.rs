//! Strict JSON: what serde_json reads, plus the fields that a document names twice.

use std::{cell::RefCell, fmt};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

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
