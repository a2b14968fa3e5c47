//! Reading: the fields of a message by their tags, into the values that JSON would have.

use std::cell::Cell;

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{DEPTH_MAX, MAGIC, ProtobufError};
use crate::{
    schema::{Alternative, Field, Schema, Shape, TypeId, is_zero},
    time,
};

/// An object may have so many values: a message of two bytes may stand for many fields.
const VALUES_MAX: usize = 400_000;

/// Whether bytes begin as an encoded object does.
pub fn is_encoded(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Reads an object of a type. `apiVersion` and `kind` are those of the envelope, where it has them.
///
/// # Errors
/// Where the bytes are no such object, with the field.
pub fn decode(schema: &Schema, ty: TypeId, bytes: &[u8]) -> Result<Value, ProtobufError> {
    let unknown = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::NoMagic)?;
    let mut object = Map::new();
    let mut raw: &[u8] = &[];
    for part in Parts::new(unknown, "the envelope") {
        match part? {
            (1, Wire::Bytes(meta)) => {
                for part in Parts::new(meta, "the envelope's typeMeta") {
                    match part? {
                        (1, Wire::Bytes(text)) => insert_text(&mut object, "apiVersion", text),
                        (2, Wire::Bytes(text)) => insert_text(&mut object, "kind", text),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    Reader { schema, depth: 0, left: &Cell::new(VALUES_MAX) }.message(ty, raw, "", &mut object)?;
    Ok(Value::Object(object))
}

/// `apiVersion` and `kind` that an object's envelope states.
///
/// # Errors
/// Where the bytes are no envelope.
pub fn identity(bytes: &[u8]) -> Result<(String, String), ProtobufError> {
    let unknown = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::NoMagic)?;
    let mut found = (String::new(), String::new());
    for part in Parts::new(unknown, "the envelope") {
        if let (1, Wire::Bytes(meta)) = part? {
            for part in Parts::new(meta, "the envelope's typeMeta") {
                match part? {
                    (1, Wire::Bytes(text)) => found.0 = utf8(text, "apiVersion")?,
                    (2, Wire::Bytes(text)) => found.1 = utf8(text, "kind")?,
                    _ => {}
                }
            }
        }
    }
    Ok(found)
}

fn insert_text(object: &mut Map<String, Value>, name: &str, text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    if !text.is_empty() {
        object.insert(name.to_owned(), Value::from(text));
    }
}

/// The value of one field, as the wire has it.
#[derive(Clone, Copy, Debug)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// The fields of a message, in order.
struct Parts<'a> {
    rest: &'a [u8],
    what: &'a str,
}

impl<'a> Parts<'a> {
    fn new(rest: &'a [u8], what: &'a str) -> Self {
        Self { rest, what }
    }

    fn truncated(&self) -> ProtobufError {
        ProtobufError::Truncated(if self.what.is_empty() { "the object" } else { self.what }.to_owned())
    }

    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or_else(|| self.truncated())?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.truncated())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtobufError> {
        if self.rest.len() < length {
            return Err(self.truncated());
        }
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(taken)
    }

    fn part(&mut self) -> Result<(u32, Wire<'a>), ProtobufError> {
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3).map_err(|_| self.truncated())?;
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes were taken"))),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| self.truncated())?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes were taken"))),
            _ => return Err(self.truncated()),
        };
        Ok((tag, wire))
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Result<(u32, Wire<'a>), ProtobufError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let part = self.part();
        if part.is_err() {
            self.rest = &[];
        }
        Some(part)
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    schema: &'a Schema,
    depth: usize,
    /// How many values may still be made.
    left: &'a Cell<usize>,
}

impl Reader<'_> {
    fn message(
        self,
        ty: TypeId,
        bytes: &[u8],
        path: &str,
        object: &mut Map<String, Value>,
    ) -> Result<(), ProtobufError> {
        self.embedded(ty, &mut Vec::new(), bytes, path, object)?;
        // No list and an empty one are the same bytes; JSON has the empty one where there must be one.
        for field in self.schema.get(ty).fields.iter().filter(|field| field.required) {
            let empty = match &field.shape {
                Shape::List(_) => Value::Array(Vec::new()),
                Shape::Map(_) => Value::Object(Map::new()),
                _ => continue,
            };
            object.entry(field.name.as_ref()).or_insert(empty);
        }
        self.schema.state(self.schema.get(ty), object);
        Ok(())
    }

    fn count(self) -> Result<(), ProtobufError> {
        let left = self.left.get().checked_sub(1).ok_or(ProtobufError::TooMany(VALUES_MAX))?;
        self.left.set(left);
        Ok(())
    }

    /// The fields below `prefix`: those of a struct that Go embeds, which JSON shows among their owner's.
    fn embedded(
        self,
        ty: TypeId,
        prefix: &mut Vec<u32>,
        bytes: &[u8],
        path: &str,
        object: &mut Map<String, Value>,
    ) -> Result<(), ProtobufError> {
        if self.depth > DEPTH_MAX {
            return Err(wrong(path, "nested too deep"));
        }
        let deeper = Self { depth: self.depth + 1, ..self };
        for part in Parts::new(bytes, path) {
            let (tag, wire) = part?;
            prefix.push(tag);
            let fields = &self.schema.get(ty).fields;
            if let Some(field) = fields.iter().find(|field| *field.tags == **prefix) {
                let path = crate::field::child(path, &field.name);
                deeper.field(field, wire, &path, object)?;
            } else if let Wire::Bytes(bytes) = wire
                && fields.iter().any(|field| field.tags.starts_with(prefix))
            {
                deeper.embedded(ty, prefix, bytes, path, object)?;
            }
            prefix.pop();
        }
        Ok(())
    }

    fn field(
        self,
        field: &Field,
        wire: Wire<'_>,
        path: &str,
        object: &mut Map<String, Value>,
    ) -> Result<(), ProtobufError> {
        let name = field.name.as_ref();
        match &field.shape {
            Shape::List(_) if field.wrapped => {
                if let Some(list) = self.value(&field.shape, wire, path)? {
                    object.insert(name.to_owned(), list);
                }
            }
            Shape::List(items) => {
                let list = object.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    self.items(items, wire, path, list)?;
                }
            }
            Shape::Map(values) => {
                let map = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
                let Wire::Bytes(bytes) = wire else {
                    return Err(wrong(path, "a map entry must be a message"));
                };
                let (key, value) = self.entry(values, bytes, path)?;
                map[key] = value;
            }
            shape => {
                let Some(value) = self.value(shape, wire, path)? else { return Ok(()) };
                if !field.omits_zero() || !is_zero(self.schema.resolve(shape), &value) {
                    object.insert(name.to_owned(), value);
                }
            }
        }
        Ok(())
    }

    fn items(
        self,
        shape: &Shape,
        wire: Wire<'_>,
        path: &str,
        list: &mut Vec<Value>,
    ) -> Result<(), ProtobufError> {
        if let (Shape::Int32 | Shape::Int64, Wire::Bytes(packed)) = (shape, wire) {
            let mut parts = Parts::new(packed, path);
            while !parts.rest.is_empty() {
                list.push(Value::from(parts.varint()?.cast_signed()));
            }
            return Ok(());
        }
        list.extend(self.value(shape, wire, path)?);
        Ok(())
    }

    fn entry(self, shape: &Shape, bytes: &[u8], path: &str) -> Result<(String, Value), ProtobufError> {
        let mut key = String::new();
        let mut value = None;
        for part in Parts::new(bytes, path) {
            match part? {
                (1, Wire::Bytes(text)) => key = utf8(text, path)?,
                (2, wire) => {
                    let found = self.value(shape, wire, &crate::field::key(path, &key))?;
                    // A time that is not set.
                    value = Some(found.unwrap_or(Value::Null));
                }
                _ => {}
            }
        }
        Ok((key, value.unwrap_or_else(|| self.schema.zero(shape))))
    }

    /// `None` for a time that is not set.
    fn value(self, shape: &Shape, wire: Wire<'_>, path: &str) -> Result<Option<Value>, ProtobufError> {
        self.count()?;
        Ok(Some(match (shape, wire) {
            (Shape::String, Wire::Bytes(bytes)) => Value::from(utf8(bytes, path)?),
            (Shape::Bytes, Wire::Bytes(bytes)) => {
                Value::from(base64::engine::general_purpose::STANDARD.encode(bytes))
            }
            (Shape::Boolean, Wire::Varint(number)) => Value::from(number != 0),
            (Shape::Int32 | Shape::Int64, Wire::Varint(number)) => Value::from(number.cast_signed()),
            (Shape::Double, Wire::Fixed64(bits)) => Value::from(f64::from_bits(bits)),
            (Shape::Double, Wire::Fixed32(bits)) => Value::from(f64::from(f32::from_bits(bits))),
            (Shape::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes, path)?,
            (Shape::Quantity, Wire::Bytes(bytes)) => {
                let text = first_text(bytes, path)?;
                Value::from(if text.is_empty() { "0".to_owned() } else { text })
            }
            (Shape::Time, Wire::Bytes(bytes)) => {
                return Ok(timestamp(bytes, path)?.map(|at| Value::from(time::format_seconds(at))));
            }
            (Shape::MicroTime, Wire::Bytes(bytes)) => {
                return Ok(timestamp(bytes, path)?.map(|at| Value::from(time::format_micros(at))));
            }
            (Shape::Object | Shape::Any, Wire::Bytes(bytes)) => return raw_json(bytes, path),
            (Shape::SchemaOr(alternative), Wire::Bytes(bytes)) => {
                return self.schema_or(*alternative, bytes, path);
            }
            (Shape::Ref(ty), wire) => match (&self.schema.get(*ty).leaf, wire) {
                (Some(leaf), wire) => return self.value(leaf, wire, path),
                (None, Wire::Bytes(bytes)) => {
                    let mut object = Map::new();
                    self.message(*ty, bytes, path, &mut object)?;
                    Value::Object(object)
                }
                (None, _) => return Err(wrong(path, "a message was expected")),
            },
            // A list as the value of a map is a message whose first field repeats.
            (Shape::List(items), Wire::Bytes(bytes)) => {
                let mut list = Vec::new();
                for part in Parts::new(bytes, path) {
                    let (tag, wire) = part?;
                    if tag == 1 {
                        self.items(items, wire, path, &mut list)?;
                    }
                }
                Value::Array(list)
            }
            (shape, _) => return Err(wrong(path, &format!("cannot be read as {shape:?}"))),
        }))
    }
}

impl Reader<'_> {
    /// An OpenAPI schema, or what may stand in its place.
    fn schema_or(
        self,
        alternative: Alternative,
        bytes: &[u8],
        path: &str,
    ) -> Result<Option<Value>, ProtobufError> {
        let props = Shape::Ref(self.schema.json_schema_props());
        let (schema_tag, items) = match alternative {
            Alternative::Boolean => (2, &Shape::Boolean),
            Alternative::Schemas => (1, &props),
            Alternative::Strings => (1, &Shape::String),
        };
        let (mut schema, mut list, mut allows) = (None, Vec::new(), false);
        for part in Parts::new(bytes, path) {
            match part? {
                (tag, wire) if tag == schema_tag => schema = self.value(&props, wire, path)?,
                (1, Wire::Varint(flag)) => allows = flag != 0,
                (2, wire) => self.items(items, wire, path, &mut list)?,
                _ => {}
            }
        }
        Ok(match alternative {
            Alternative::Boolean => Some(schema.unwrap_or(Value::Bool(allows))),
            _ if !list.is_empty() => Some(Value::Array(list)),
            _ => schema,
        })
    }
}

fn wrong(path: &str, detail: &str) -> ProtobufError {
    ProtobufError::Field { path: path.to_owned(), detail: detail.to_owned() }
}

fn utf8(bytes: &[u8], path: &str) -> Result<String, ProtobufError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| wrong(path, "the text is not UTF-8"))
}

/// The text of a message's first field.
fn first_text(bytes: &[u8], path: &str) -> Result<String, ProtobufError> {
    for part in Parts::new(bytes, path) {
        if let (1, Wire::Bytes(text)) = part? {
            return utf8(text, path);
        }
    }
    Ok(String::new())
}

fn int_or_string(bytes: &[u8], path: &str) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for part in Parts::new(bytes, path) {
        match part? {
            (1, Wire::Varint(kind)) => is_text = kind == 1,
            (2, Wire::Varint(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(value)) => text = utf8(value, path)?,
            _ => {}
        }
    }
    Ok(if is_text { Value::from(text) } else { Value::from(number) })
}

fn timestamp(bytes: &[u8], path: &str) -> Result<Option<Timestamp>, ProtobufError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (mut seconds, mut nanos) = (0, 0);
    for part in Parts::new(bytes, path) {
        match part? {
            (1, Wire::Varint(value)) => seconds = value.cast_signed(),
            (2, Wire::Varint(value)) => nanos = i32::try_from(value).unwrap_or(0),
            _ => {}
        }
    }
    Timestamp::new(seconds, nanos).map(Some).map_err(|error| wrong(path, &error.to_string()))
}

/// RawExtension, JSON and FieldsV1: JSON text in the first field.
fn raw_json(bytes: &[u8], path: &str) -> Result<Option<Value>, ProtobufError> {
    for part in Parts::new(bytes, path) {
        if let (1, Wire::Bytes(raw)) = part? {
            if raw.is_empty() {
                return Ok(None);
            }
            return serde_json::from_slice(raw)
                .map(Some)
                .map_err(|error| wrong(path, &format!("the raw object is not JSON: {error}")));
        }
    }
    Ok(None)
}
