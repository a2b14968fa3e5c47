//! Decoding: makes a JSON value what its type says, as Go's decoder and encoder would between them.
//!
//! Unknown fields are named and dropped; nulls are dropped (in lists and maps they become the zero value); quantities and
//! times take their canonical form; optional lists and maps that are empty vanish, and so does a zero in an optional field
//! that is no pointer in Go, but for structs, which are always there. Wrong types are named with Go's words.

use serde_json::{Map, Number, Value};

use super::{Alternative, Schema, Shape, Type, TypeId, builder::OBJECT_META};
use crate::{
    field::{child, index, quote},
    quantity::Quantity,
    structural::Structural,
    time,
};

/// How many unknown fields or errors are reported; a document of nothing else must not answer with itself.
const REPORTED_MAX: usize = 100;

/// What was wrong with a decoded value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Texts such as `unknown field "spec.foo"`.
    pub unknown: Vec<String>,
    /// Wrong types, in Go's words: the value cannot be used.
    pub errors: Vec<String>,
}

impl Schema {
    /// Makes `value` what `ty` says, in place.
    pub fn decode(&self, ty: TypeId, value: &mut Value) -> Decoded {
        if let Some(structural) = &self.get(ty).structural {
            return self.decode_custom(structural, value);
        }
        let mut decoder = Decoder { schema: self, outcome: Decoded::default() };
        let place = Place { path: "", names: &Names::Root, in_type: None };
        decoder.value(&Shape::Ref(ty), value, &place);
        decoder.outcome
    }

    /// A custom kind: metadata (also that of embedded objects) by its type, all else by the structural schema.
    fn decode_custom(&self, structural: &Structural, value: &mut Value) -> Decoded {
        let mut outcome = Decoded::default();
        if let Some(metadata) = self.type_named(OBJECT_META) {
            structural.each_metadata(value, &mut |path, value| {
                let mut decoder = Decoder { schema: self, outcome: std::mem::take(&mut outcome) };
                let place = Place { path, names: &Names::Root, in_type: None };
                decoder.value(&Shape::Ref(metadata), value, &place);
                outcome = decoder.outcome;
            });
        }
        let dropped = structural.prune(value);
        outcome.unknown.extend(dropped.iter().map(|path| format!("unknown field {}", quote(path))));
        structural.drop_nulls(value);
        normalise_numbers(value);
        outcome
    }
}

/// Whole numbers lose their fraction of zero, as they do where Go writes them.
fn normalise_numbers(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            if let Some(float) = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 1e18) {
                *value = Value::from(float as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(normalise_numbers),
        Value::Object(object) => object.values_mut().for_each(normalise_numbers),
        _ => {}
    }
}

/// The names of the fields on the way, without indices: what Go says in its errors.
enum Names<'a> {
    Root,
    Field(&'a Names<'a>, &'a str),
}

impl Names<'_> {
    fn text(&self) -> String {
        match self {
            Names::Root => String::new(),
            Names::Field(parent, name) => child(&parent.text(), name),
        }
    }
}

struct Place<'a> {
    path: &'a str,
    names: &'a Names<'a>,
    /// The type that holds the field being read.
    in_type: Option<TypeId>,
}

struct Decoder<'a> {
    schema: &'a Schema,
    outcome: Decoded,
}

impl Decoder<'_> {
    fn error(&mut self, text: String) {
        if self.outcome.errors.len() < REPORTED_MAX {
            self.outcome.errors.push(text);
        }
    }

    fn wrong_type(&mut self, shape: &Shape, value: &Value, place: &Place<'_>) {
        let found = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(number) if matches!(shape, Shape::Int32 | Shape::Int64 | Shape::IntOrString) => {
                format!("number {number}")
            }
            Value::Number(_) => "number".to_owned(),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        let expected = self.go_type(shape);
        let text = match place.in_type {
            Some(id) => format!(
                "json: cannot unmarshal {found} into Go struct field {}.{} of type {expected}",
                self.schema.get(id).go_name(),
                place.names.text()
            ),
            None => format!("json: cannot unmarshal {found} into Go value of type {expected}"),
        };
        self.error(text);
    }

    fn go_type(&self, shape: &Shape) -> String {
        match shape {
            Shape::String | Shape::Time | Shape::MicroTime => "string".to_owned(),
            Shape::Bytes => "[]uint8".to_owned(),
            Shape::Boolean => "bool".to_owned(),
            Shape::Int32 | Shape::IntOrString => "int32".to_owned(),
            Shape::Int64 => "int64".to_owned(),
            Shape::Double => "float64".to_owned(),
            Shape::Quantity => "resource.Quantity".to_owned(),
            Shape::Object => "map[string]interface {}".to_owned(),
            Shape::Any => "interface {}".to_owned(),
            Shape::SchemaOr(_) => "v1.JSONSchemaProps".to_owned(),
            Shape::List(item) => format!("[]{}", self.go_type(item)),
            Shape::Map(value) => format!("map[string]{}", self.go_type(value)),
            Shape::Ref(id) => {
                let name = &self.schema.get(*id).name;
                let mut parts = name.rsplit('.');
                let last = parts.next().unwrap_or("");
                format!("{}.{last}", parts.next().unwrap_or("v1"))
            }
        }
    }

    fn value(&mut self, shape: &Shape, value: &mut Value, place: &Place<'_>) {
        let schema = self.schema;
        match schema.resolve(shape) {
            Shape::Ref(id) => self.object(*id, shape, value, place),
            Shape::List(item) => self.list(item, shape, value, place),
            Shape::Map(item) => self.map(item, shape, value, place),
            Shape::SchemaOr(alternative) => self.schema_or(*alternative, value, place),
            scalar => self.scalar(scalar, value, place),
        }
    }

    fn object(&mut self, id: TypeId, shape: &Shape, value: &mut Value, place: &Place<'_>) {
        let Value::Object(object) = value else {
            self.wrong_type(shape, value, place);
            return;
        };
        let ty = self.schema.get(id);
        let mut dropped = Vec::new();
        for (name, value) in object.iter_mut() {
            let Some(field) = ty.field(name) else {
                if self.outcome.unknown.len() < REPORTED_MAX {
                    let text = format!("unknown field {}", quote(&child(place.path, name)));
                    self.outcome.unknown.push(text);
                }
                dropped.push(name.clone());
                continue;
            };
            if !value.is_null() {
                let path = child(place.path, name);
                let names = Names::Field(place.names, name);
                self.value(&field.shape, value, &Place { path: &path, names: &names, in_type: Some(id) });
            }
            let empty = match (&field.shape, &*value) {
                (_, Value::Null) => true,
                (Shape::List(_), Value::Array(items)) => !field.required && items.is_empty(),
                (Shape::Map(_), Value::Object(entries)) => !field.required && entries.is_empty(),
                (shape, value) => field.omits_zero() && is_zero(self.schema.resolve(shape), value),
            };
            if empty {
                dropped.push(name.clone());
            }
        }
        for name in dropped {
            object.remove(&name);
        }
        self.schema.state(ty, object);
    }

    fn list(&mut self, item: &Shape, shape: &Shape, value: &mut Value, place: &Place<'_>) {
        let Value::Array(items) = value else {
            self.wrong_type(shape, value, place);
            return;
        };
        for (i, value) in items.iter_mut().enumerate() {
            if value.is_null() {
                *value = self.schema.zero(item);
                continue;
            }
            let path = index(place.path, i);
            self.value(item, value, &Place { path: &path, ..*place });
        }
    }

    fn map(&mut self, item: &Shape, shape: &Shape, value: &mut Value, place: &Place<'_>) {
        let Value::Object(entries) = value else {
            self.wrong_type(shape, value, place);
            return;
        };
        for (key, value) in entries.iter_mut() {
            if value.is_null() {
                *value = self.schema.zero(item);
                continue;
            }
            let path = child(place.path, key);
            self.value(item, value, &Place { path: &path, ..*place });
        }
    }

    /// A schema of a CustomResourceDefinition, or what may stand in its place.
    fn schema_or(&mut self, alternative: Alternative, value: &mut Value, place: &Place<'_>) {
        let schema = Shape::Ref(self.schema.json_schema_props());
        match (alternative, &*value) {
            (Alternative::Boolean, Value::Bool(_)) => {}
            (Alternative::Schemas, Value::Array(_)) => self.list(&schema, &schema, value, place),
            (Alternative::Strings, Value::Array(_)) => self.list(&Shape::String, &schema, value, place),
            (_, Value::Object(_)) => self.value(&schema, value, place),
            (Alternative::Boolean, _) => self.error("boolean or JSON schema expected".to_owned()),
            _ => self.wrong_type(&schema, value, place),
        }
    }

    fn scalar(&mut self, shape: &Shape, value: &mut Value, place: &Place<'_>) {
        let is_int32 = |value: &Value| value.as_i64().is_some_and(|number| i32::try_from(number).is_ok());
        let fits = match shape {
            Shape::Any => true,
            Shape::Object => value.is_object(),
            Shape::String => value.is_string(),
            Shape::Boolean => value.is_boolean(),
            Shape::Int32 => is_int32(value),
            Shape::Int64 => value.as_i64().is_some(),
            Shape::Double => value.is_number(),
            Shape::IntOrString if value.is_string() || is_int32(value) => true,
            // Its own decoder does not know in which field it is.
            Shape::IntOrString => return self.wrong_type(shape, value, &Place { in_type: None, ..*place }),
            Shape::Quantity => return self.quantity(value),
            Shape::Bytes if value.is_string() => return self.base64(value),
            Shape::Time | Shape::MicroTime if value.is_string() => return self.time(shape, value),
            _ => false,
        };
        if !fits {
            self.wrong_type(shape, value, place);
        }
    }

    fn base64(&mut self, value: &Value) {
        if let Err(at) = check_base64(value.as_str().unwrap_or("")) {
            self.error(format!("illegal base64 data at input byte {at}"));
        }
    }

    fn quantity(&mut self, value: &mut Value) {
        match Quantity::from_json(value) {
            Ok(quantity) => *value = Value::from(quantity.to_string()),
            Err(error) => self.error(error.to_string()),
        }
    }

    fn time(&mut self, shape: &Shape, value: &mut Value) {
        let text = value.as_str().unwrap_or("");
        let canonical = if *shape == Shape::MicroTime {
            time::parse_micro(text).map(time::format_micros)
        } else {
            time::parse(text).map(time::format_seconds)
        };
        match canonical {
            Ok(text) => *value = Value::from(text),
            Err(error) => self.error(error),
        }
    }
}

impl Schema {
    /// Adds the fields that JSON has in any case and that are absent.
    pub(crate) fn state(&self, ty: &Type, object: &mut Map<String, Value>) {
        for field in self.stated(ty) {
            if !object.contains_key(field.name.as_ref()) {
                object.insert(field.name.as_ref().to_owned(), self.zero(&field.shape));
            }
        }
    }

    /// What Go makes of a null inside a list or a map, or of a value that is nowhere stated.
    pub(crate) fn zero(&self, shape: &Shape) -> Value {
        match self.resolve(shape) {
            Shape::String | Shape::Bytes => Value::from(""),
            Shape::Boolean => Value::Bool(false),
            Shape::Int32 | Shape::Int64 | Shape::IntOrString => Value::from(0),
            Shape::Double => Number::from_f64(0.0).map_or(Value::Null, Value::Number),
            Shape::Quantity => Value::from("0"),
            Shape::List(_) => Value::Array(Vec::new()),
            Shape::Map(_) | Shape::Object | Shape::SchemaOr(_) => Value::Object(Map::new()),
            Shape::Ref(id) => {
                let mut object = Map::new();
                self.state(self.get(*id), &mut object);
                Value::Object(object)
            }
            Shape::Time | Shape::MicroTime | Shape::Any => Value::Null,
        }
    }
}

/// What Go leaves out of JSON where the field is no pointer. Structs, of which a quantity is one, it never leaves out.
pub(crate) fn is_zero(shape: &Shape, value: &Value) -> bool {
    match value {
        Value::String(_) if *shape == Shape::Quantity => false,
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(_) => false,
        Value::Object(object) => object.is_empty() && !matches!(shape, Shape::Ref(_)),
    }
}

/// Checks standard, padded base64 without making the bytes; the error says where it stops being that.
fn check_base64(text: &str) -> Result<(), usize> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    // Line breaks are allowed, as in Go.
    let joined;
    let text = if text.contains(['\r', '\n']) {
        joined = text.replace(['\r', '\n'], "");
        joined.as_str()
    } else {
        text
    };
    STANDARD.decode(text).map(|_bytes| ()).map_err(|error| match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
        base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => text.len() / 4 * 4,
    })
}
