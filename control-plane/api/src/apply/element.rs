//! One step of a path into an object, as `fieldsV1` writes it: `f:name`, `k:{"name":"web"}`, `v:"x"`, `i:0`.

use std::{cmp::Ordering, fmt};

use serde_json::{Map, Number, Value};

use crate::{field::quote, schema::Text};

/// Selects a child of an object or of a list.
#[derive(Clone, Debug)]
pub enum PathElement {
    /// A field of an object or a key of a map.
    Field(Box<str>),
    /// The item of a list whose key fields have these values; sorted by name.
    Key(Box<[(Text, Value)]>),
    /// The item of a set.
    Value(Value),
    /// An item by its position.
    Index(i64),
}

impl PathElement {
    pub fn field(name: &str) -> Self {
        Self::Field(name.into())
    }

    /// Sorts the fields.
    pub fn key(mut fields: Vec<(Text, Value)>) -> Self {
        fields.sort_by(|(a, _), (b, _)| a.cmp(b));
        Self::Key(fields.into())
    }

    /// Reads the form of `fieldsV1`; `None` for a kind of step that nobody knows yet, which is ignored.
    ///
    /// # Errors
    /// When the text has no kind, or what follows it is not what the kind says.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let Some((kind, rest)) = text.get(..1).zip(text.get(2..)) else {
            return Err("key must be 2 characters long:".to_owned());
        };
        if text.as_bytes()[1] != b':' {
            return Err(format!("missing colon: {text}"));
        }
        let json = |error: serde_json::Error| format!("{text}: {error}");
        Ok(Some(match kind {
            "f" => Self::field(rest),
            "v" => Self::Value(serde_json::from_str(rest).map_err(json)?),
            "i" => Self::Index(rest.parse().map_err(|_| format!("{text}: not an index"))?),
            "k" => {
                let fields: Map<String, Value> = serde_json::from_str(rest).map_err(json)?;
                Self::Key(fields.into_iter().map(|(name, value)| (Text::from(name), value)).collect())
            }
            _ => return Ok(None),
        }))
    }

    /// The form of `fieldsV1`.
    pub fn encode(&self) -> String {
        match self {
            Self::Field(name) => {
                let mut text = String::with_capacity(name.len() + 2);
                text.push_str("f:");
                text.push_str(name);
                text
            }
            Self::Key(fields) => {
                let mut text = String::from("k:{");
                for (i, (name, value)) in fields.iter().enumerate() {
                    if i > 0 {
                        text.push(',');
                    }
                    text.push_str(&Value::from(name.as_ref()).to_string());
                    text.push(':');
                    text.push_str(&value.to_string());
                }
                text.push('}');
                text
            }
            Self::Value(value) => format!("v:{value}"),
            Self::Index(index) => format!("i:{index}"),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        }
    }
}

impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Key(a), Self::Key(b)) => compare_keys(a, b),
            (Self::Value(a), Self::Value(b)) => compare_values(a, b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for PathElement {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for PathElement {}

fn compare_keys(a: &[(Text, Value)], b: &[(Text, Value)]) -> Ordering {
    for ((a_name, a_value), (b_name, b_value)) in a.iter().zip(b) {
        let order = a_name.cmp(b_name).then_with(|| compare_values(a_value, b_value));
        if order != Ordering::Equal {
            return order;
        }
    }
    a.len().cmp(&b.len())
}

/// A total order of JSON values in which 1 equals 1.0: numbers, texts, booleans, lists, objects, null.
pub fn compare_values(a: &Value, b: &Value) -> Ordering {
    fn rank(value: &Value) -> u8 {
        match value {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            Value::Array(_) => 3,
            Value::Object(_) => 4,
            Value::Null => 5,
        }
    }
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare_numbers(a, b),
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            let different = a.iter().zip(b).map(|(a, b)| compare_values(a, b)).find(|order| order.is_ne());
            different.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (Value::Object(a), Value::Object(b)) => {
            let different = a
                .iter()
                .zip(b)
                .map(|((a_name, a), (b_name, b))| a_name.cmp(b_name).then_with(|| compare_values(a, b)))
                .find(|order| order.is_ne());
            different.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

fn compare_numbers(a: &Number, b: &Number) -> Ordering {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0)),
    }
}

impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Index(index) => write!(f, "[{index}]"),
            Self::Value(value) => write!(f, "[={}]", plain(value)),
            Self::Key(fields) => {
                f.write_str("[")?;
                for (i, (name, value)) in fields.iter().enumerate() {
                    let comma = if i > 0 { "," } else { "" };
                    write!(f, "{comma}{name}={}", plain(value))?;
                }
                f.write_str("]")
            }
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        Value::Array(items) => format!("[{}]", items.iter().map(plain).collect::<Vec<_>>().join(",")),
        Value::Object(entries) => {
            entries.iter().map(|(name, value)| format!("{name}={}", plain(value))).collect()
        }
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_of_step_survives_writing_and_reading() {
        for (text, shown) in [
            ("f:replicas", ".replicas"),
            ("f:a:b/c", ".a:b/c"),
            ("f:", "."),
            (r#"k:{"containerPort":80,"protocol":"TCP"}"#, r#"[containerPort=80,protocol="TCP"]"#),
            (r#"v:"finalizer""#, r#"[="finalizer"]"#),
            ("v:3", "[=3]"),
            ("v:true", "[=true]"),
            ("i:7", "[7]"),
        ] {
            let element = PathElement::parse(text).unwrap().unwrap();
            assert_eq!(element.encode(), text);
            assert_eq!(element.to_string(), shown);
        }
    }

    #[test]
    fn malformed_steps_are_refused_and_unknown_ones_ignored() {
        for text in ["", "f", "fx", "v:", "v:{", "k:[]", "k:3", "i:x", "i:", "é:x"] {
            assert!(PathElement::parse(text).is_err(), "{text}");
        }
        assert_eq!(PathElement::parse("x:new"), Ok(None));
    }

    #[test]
    fn steps_are_ordered_by_kind_then_content_and_numbers_by_amount() {
        let parse = |text: &str| PathElement::parse(text).unwrap().unwrap();
        let sorted = [
            "f:a",
            "f:b",
            r#"k:{"port":80}"#,
            r#"k:{"port":443}"#,
            "v:1",
            "v:\"a\"",
            "v:true",
            "i:0",
            "i:10",
        ];
        for pair in sorted.windows(2) {
            assert!(parse(pair[0]) < parse(pair[1]), "{pair:?}");
        }
        assert_eq!(parse("v:1"), parse("v:1.0"));
        assert_eq!(compare_values(&json!([1, {"a": 2}]), &json!([1.0, {"a": 2}])), Ordering::Equal);
        assert_eq!(compare_values(&json!([1]), &json!([1, 2])), Ordering::Less);
    }
}
